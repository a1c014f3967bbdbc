/*
 * Operations that the kernel carries out by itself, on a loop: what each does, what is said of a
 * failure, and that each ends exactly once, however it is cancelled, put off or forgotten.
 *
 * An argument names how many operations the random test makes.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/loop.h"

#define PATIENCE_NS (60 * PR_NS_PER_SECOND)

static struct pr_loop loop;
static char folder[] = "/tmp/pyreactor-op-XXXXXX";
static unsigned random_ops = 20000;

/* An operation, and how it ended. */
struct ending {
    struct pr_op op;
    int ends;
    int32_t result;
};

static int on_complete(struct pr_op *op, int32_t result)
{
    struct ending *ending = op->owner;
    ending->ends++;
    ending->result = result;
    return 0;
}

static void begin(struct ending *ending, struct pr_op op)
{
    *ending = (struct ending){.op = op};
    ending->op.owner = ending;
    ending->op.on_complete = on_complete;
    pr_loop_submit(&loop, &ending->op);
}

static void wait_for_end(const struct ending *ending)
{
    int64_t deadline_ns = pr_now_ns() + PATIENCE_NS;
    while (!ending->ends && pr_now_ns() < deadline_ns)
        REQUIRE_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_SECOND), 0);
    REQUIRE_EQUAL(ending->ends, 1);
}

static int32_t result_of(struct pr_op op)
{
    struct ending ending;
    begin(&ending, op);
    wait_for_end(&ending);
    return ending.result;
}

static void open_loop(void)
{
    REQUIRE_EQUAL(pr_loop_init(&loop, "io_uring"), 0);
}

static void close_loop(void)
{
    pr_loop_deinit(&loop);
}

static struct pr_op read_op(int fd, void *buffer, uint32_t size, int64_t position)
{
    return (struct pr_op){
        .kind = PR_OP_READ, .fd = fd, .buffer = buffer, .size = size, .position = position};
}

static struct pr_op path_op(enum pr_op_kind kind, const char *path)
{
    return (struct pr_op){.kind = kind, .fd = AT_FDCWD, .path = path};
}

static void each_kind_does_what_its_system_call_does(void)
{
    char path[64], other[64], text[16] = {0};
    struct statx status;
    open_loop();
    snprintf(path, sizeof path, "%s/one", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    for (int kind = 0; kind < PR_OP_KINDS; kind++)
        CHECK(kind == PR_OP_TRUNCATE || pr_loop_supports(&loop, (enum pr_op_kind)kind));

    struct pr_op op = path_op(PR_OP_OPEN, path);
    op.flags = O_RDWR | O_CREAT | O_CLOEXEC;
    op.mode = 0600;
    int fd = result_of(op);
    REQUIRE(fd >= 0);
    op = read_op(fd, "some text", 9, 3);
    op.kind = PR_OP_WRITE;
    CHECK_EQUAL(result_of(op), 9);
    CHECK_EQUAL(result_of(read_op(fd, text, 4, 8)), 4);
    CHECK_TEXT(text, "text");
    CHECK_EQUAL(result_of(read_op(fd, text, 4, -1)), 4); /* from its own position on, */
    CHECK_EQUAL(lseek(fd, 0, SEEK_CUR), 4);              /* which moves */
    CHECK_EQUAL(result_of(read_op(fd, text, 4, 100)), 0);
    CHECK_EQUAL(result_of((struct pr_op){.kind = PR_OP_FSYNC, .fd = fd}), 0);
    op = (struct pr_op){.kind = PR_OP_FSYNC, .fd = fd, .flags = PR_OP_DATA_ONLY};
    CHECK_EQUAL(result_of(op), 0);
    if (pr_loop_supports(&loop, PR_OP_TRUNCATE)) {
        op = (struct pr_op){.kind = PR_OP_TRUNCATE, .fd = fd, .position = 5};
        CHECK_EQUAL(result_of(op), 0);
        CHECK_EQUAL(lseek(fd, 0, SEEK_END), 5);
    }
    op = path_op(PR_OP_STATX, path);
    op.buffer = &status;
    op.size = STATX_BASIC_STATS;
    CHECK_EQUAL(result_of(op), 0);
    CHECK_EQUAL(status.stx_mode, S_IFREG | 0600);
    CHECK_EQUAL(result_of((struct pr_op){.kind = PR_OP_CLOSE, .fd = fd}), 0);
    CHECK_EQUAL(fcntl(fd, F_GETFD), -1);

    op = path_op(PR_OP_RENAME, path);
    op.other_fd = AT_FDCWD;
    op.other_path = other;
    CHECK_EQUAL(result_of(op), 0);
    CHECK_EQUAL(result_of(path_op(PR_OP_UNLINK, path)), -ENOENT);
    CHECK_EQUAL(result_of(path_op(PR_OP_UNLINK, other)), 0);
    op = path_op(PR_OP_MKDIR, path);
    op.mode = 0700;
    CHECK_EQUAL(result_of(op), 0);
    CHECK_EQUAL(result_of(op), -EEXIST);
    CHECK_EQUAL(result_of(path_op(PR_OP_UNLINK, path)), -EISDIR);
    op = path_op(PR_OP_UNLINK, path);
    op.flags = AT_REMOVEDIR;
    CHECK_EQUAL(result_of(op), 0);
    CHECK_EQUAL(result_of(path_op(PR_OP_OPEN, path)), -ENOENT);
    CHECK_EQUAL(result_of(read_op(fd, text, 4, 0)), -EBADF);
    close_loop();
}

static void open_pipe(int ends[2])
{
    REQUIRE_EQUAL(pipe2(ends, O_CLOEXEC), 0);
}

static void close_pipe(const int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

static void a_cancelled_read_ends_and_takes_nothing(void)
{
    int ends[2];
    char text[8] = {0};
    struct ending reading;
    open_loop();
    open_pipe(ends);
    begin(&reading, read_op(ends[0], text, 4, -1));
    pr_loop_cancel(&loop, &reading.op); /* before the kernel has it */
    pr_loop_cancel(&loop, &reading.op);
    wait_for_end(&reading);
    CHECK_EQUAL(reading.result, -ECANCELED);

    begin(&reading, read_op(ends[0], text, 4, -1));
    REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(reading.ends, 0);
    pr_loop_cancel(&loop, &reading.op);
    wait_for_end(&reading);
    CHECK_EQUAL(reading.result, -ECANCELED);

    REQUIRE_EQUAL(write(ends[1], "text", 4), 4);
    CHECK_EQUAL(result_of(read_op(ends[0], text, 4, -1)), 4);
    CHECK_TEXT(text, "text");
    close_pipe(ends);
    close_loop();
}

static void an_open_that_waits_for_the_other_end_can_be_cancelled(void)
{
    char path[64];
    struct ending opening;
    open_loop();
    snprintf(path, sizeof path, "%s/fifo", folder);
    REQUIRE_EQUAL(mkfifo(path, 0600), 0);
    struct pr_op op = path_op(PR_OP_OPEN, path);
    op.flags = O_RDONLY | O_CLOEXEC;
    begin(&opening, op);
    REQUIRE_EQUAL(pr_loop_run_once(&loop, 20 * PR_NS_PER_MS), 0);
    CHECK_EQUAL(opening.ends, 0);
    pr_loop_cancel(&loop, &opening.op);
    wait_for_end(&opening);
    CHECK_EQUAL(opening.result, -ECANCELED);
    unlink(path);
    close_loop();
}

static void *run_in_thread(void *ending)
{
    wait_for_end(ending);
    pr_loop_end_run(&loop);
    return NULL;
}

static void what_is_put_off_between_runs_goes_on_even_in_another_thread(void)
{
    int ends[2];
    char text[8] = {0};
    struct ending reading;
    pthread_t thread;
    open_loop();
    open_pipe(ends);
    begin(&reading, read_op(ends[0], text, 4, -1));
    for (int i = 0; i < 3; i++) {
        REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
        pr_loop_end_run(&loop);
    }
    CHECK_EQUAL(reading.ends, 0);
    REQUIRE_EQUAL(write(ends[1], "text", 4), 4);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, run_in_thread, &reading), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(reading.result, 4);
    CHECK_TEXT(text, "text");
    close_pipe(ends);
    close_loop();
}

static int count_visit(struct pr_op *op, void *argument)
{
    (void)op;
    ++*(int *)argument;
    return 0;
}

static void the_end_of_the_loop_ends_each_once(void)
{
    int ends[2];
    char text[8], file_text[8];
    struct ending under_way, queued, done, cancelled;
    for (int runs = 0; runs < 2; runs++) {
        int visited = 0;
        open_loop();
        open_pipe(ends);
        int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        begin(&under_way, read_op(ends[0], text, 4, -1));
        if (runs)
            REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
        begin(&queued, read_op(ends[0], text, 4, -1));
        begin(&done, read_op(file, file_text, 4, 0));
        begin(&cancelled, read_op(ends[0], text, 4, -1));
        pr_loop_cancel(&loop, &cancelled.op);
        CHECK_EQUAL(pr_loop_visit_ops(&loop, count_visit, &visited), 0);
        CHECK_EQUAL(visited, 4);
        close_loop();
        CHECK_EQUAL(under_way.ends, 1);
        CHECK_EQUAL(under_way.result, -ECANCELED);
        CHECK_EQUAL(queued.ends, 1);
        CHECK_EQUAL(done.ends, 1);
        CHECK_EQUAL(cancelled.ends, 1);
        CHECK_EQUAL(cancelled.result, -ECANCELED);
        close(file);
        close_pipe(ends);
    }
}

static void more_than_the_ring_has_places_for_all_end(void)
{
    enum { COUNT = 3000 };
    static struct ending endings[COUNT];
    static char bytes[COUNT];
    int ends[2];
    open_loop();
    open_pipe(ends);
    for (int i = 0; i < COUNT; i++)
        begin(&endings[i], read_op(ends[0], &bytes[i], 1, -1));
    REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
    for (int i = 0; i < COUNT; i += 2)
        pr_loop_cancel(&loop, &endings[i].op);
    static const char written[COUNT / 2] = {0};
    REQUIRE_EQUAL(write(ends[1], written, sizeof written), (ssize_t)sizeof written);
    for (int i = 0; i < COUNT; i++) {
        wait_for_end(&endings[i]);
        CHECK_EQUAL(endings[i].result, i % 2 ? 1 : -ECANCELED);
    }
    close_pipe(ends);
    close_loop();
}

/* For the random test: an operation that is freed when it ends, with the memory it works on. */
struct random_op {
    struct pr_op op;
    struct random_op **place; /* where the test knows it; NULL once nobody does */
    char bytes[64];
};

static unsigned live, ended;

static int on_random_end(struct pr_op *op, int32_t result)
{
    struct random_op *random = op->owner;
    CHECK(result >= 0 || result == -ECANCELED);
    if (random->place)
        *random->place = NULL;
    free(random);
    live--;
    ended++;
    return 0;
}

static void any_order_of_submit_cancel_and_end_ends_each_once(void)
{
    enum { PLACES = 100 };
    struct random_op *places[PLACES] = {0};
    uint64_t state = 4;
    unsigned begun = 0;
    int ends[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    open_pipe(ends);
    live = ended = 0;
    open_loop();
    while (begun < random_ops) {
        unsigned place = check_random(&state) % PLACES;
        switch (check_random(&state) % 8) {
        case 0:
        case 1:
        case 2:
            if (places[place])
                break;
            places[place] = calloc(1, sizeof *places[place]);
            places[place]->place = &places[place];
            bool at_pipe = check_random(&state) % 2;
            places[place]->op = read_op(at_pipe ? ends[0] : file, places[place]->bytes,
                                        sizeof places[place]->bytes, at_pipe ? -1 : 0);
            places[place]->op.owner = places[place];
            places[place]->op.on_complete = on_random_end;
            pr_loop_submit(&loop, &places[place]->op);
            begun++;
            live++;
            break;
        case 3:
        case 4:
            if (places[place])
                pr_loop_cancel(&loop, &places[place]->op);
            break;
        case 5:
            if (check_random(&state) % 4 == 0)
                REQUIRE_EQUAL(write(ends[1], "x", 1), 1);
            break;
        case 6:
            REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
            break;
        case 7:
            if (check_random(&state) % 64 == 0) {
                pr_loop_end_run(&loop);
            } else if (check_random(&state) % 1024 == 0) {
                close_loop();
                CHECK_EQUAL(live, 0);
                open_loop();
            }
        }
    }
    close_loop();
    CHECK_EQUAL(live, 0);
    CHECK_EQUAL(ended, begun);
    close(file);
    close_pipe(ends);
}

static bool io_uring_is_there(void)
{
    if (pr_loop_init(&loop, "io_uring") < 0)
        return false;
    close_loop();
    return true;
}

static void epoll_carries_out_none(void)
{
    REQUIRE_EQUAL(pr_loop_init(&loop, "epoll"), 0);
    for (int kind = 0; kind < PR_OP_KINDS; kind++)
        CHECK(!pr_loop_supports(&loop, (enum pr_op_kind)kind));
    CHECK_EQUAL(pr_loop_visit_ops(&loop, NULL, NULL), 0);
    close_loop();
}

/* --- Between two runs, while others poll the loop
 * -------------------------------------------------
 */

static bool is_readable(int timeout_ms)
{
    struct pollfd poll_fd = {.fd = pr_loop_pollable_fd(&loop), .events = POLLIN};
    REQUIRE(poll_fd.fd >= 0);
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void one_turn(void)
{
    REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
    pr_loop_end_run(&loop);
}

/* A read of a pipe that the kernel waits in, while nobody runs the loop. */
static void begin_polled_read(struct ending *ending, int ends[2], char *byte)
{
    open_loop();
    REQUIRE_EQUAL(pipe(ends), 0);
    CHECK(!is_readable(0));
    begin(ending, read_op(ends[0], byte, 1, -1));
    CHECK(is_readable(0)); /* to be submitted */
    one_turn();
    for (int i = 0; i < 3 && is_readable(0); i++)
        one_turn();
    CHECK(!is_readable(0));
    CHECK_EQUAL(ending->ends, 0);
}

static void operations_go_on_while_others_poll_the_loop(void)
{
    struct ending ending, second;
    int ends[2];
    char byte = 0, other = 0;
    begin_polled_read(&ending, ends, &byte);
    REQUIRE_EQUAL(write(ends[1], "x", 1), 1);
    REQUIRE(is_readable(20000));
    one_turn();
    CHECK_EQUAL(ending.ends, 1);
    CHECK_EQUAL(byte, 'x');

    begin(&second, read_op(ends[0], &other, 1, -1));
    one_turn();
    pr_loop_cancel(&loop, &second.op);
    for (int i = 0; i < 10 && !second.ends; i++) {
        REQUIRE(is_readable(20000));
        one_turn();
    }
    CHECK_EQUAL(second.ends, 1);
    CHECK_EQUAL(second.result, -ECANCELED);
    close_loop();
    close_pipe(ends);
}

static void *run_elsewhere(void *argument)
{
    *(int *)argument = pr_loop_run_once(&loop, 0);
    return NULL;
}

static void a_thread_that_does_not_poll_cannot_take_over_what_is_under_way(void)
{
    struct ending ending;
    int ends[2], result = 0;
    char byte = 0;
    pthread_t thread;
    begin_polled_read(&ending, ends, &byte);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, run_elsewhere, &result), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(result, -EXDEV);
    REQUIRE_EQUAL(write(ends[1], "x", 1), 1);
    wait_for_end(&ending);
    CHECK_EQUAL(byte, 'x');
    close_loop();
    close_pipe(ends);
}

static void *begin_elsewhere(void *argument)
{
    struct ending *ending = argument;
    REQUIRE(pr_loop_pollable_fd(&loop) >= 0);
    begin(ending, ending->op);
    one_turn();
    return NULL;
}

static void what_a_thread_leaves_behind_ends_with_the_loop_or_not_at_all(void)
{
    struct ending ending;
    int ends[2];
    char byte = 0;
    pthread_t thread;
    open_loop();
    REQUIRE_EQUAL(pipe(ends), 0);
    ending.op = read_op(ends[0], &byte, 1, -1);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, begin_elsewhere, &ending), 0);
    pthread_join(thread, NULL);
    close_loop(); /* in this thread, which the ring does not obey */
    CHECK_AT_MOST(ending.ends, 1);
    if (ending.ends)
        CHECK_EQUAL(ending.result, -ECANCELED);
    close_pipe(ends);
}

int main(int count, char **arguments)
{
    if (count > 1)
        random_ops = (unsigned)strtoul(arguments[1], NULL, 10);
    RUN(epoll_carries_out_none);
    if (!io_uring_is_there()) {
        fputs("skipped: this machine has no io_uring\n", stderr);
        return check_status() ? check_status() : CHECK_SKIPPED;
    }
    REQUIRE(mkdtemp(folder) != NULL);
    RUN(each_kind_does_what_its_system_call_does);
    RUN(a_cancelled_read_ends_and_takes_nothing);
    RUN(an_open_that_waits_for_the_other_end_can_be_cancelled);
    RUN(what_is_put_off_between_runs_goes_on_even_in_another_thread);
    RUN(the_end_of_the_loop_ends_each_once);
    RUN(more_than_the_ring_has_places_for_all_end);
    RUN(any_order_of_submit_cancel_and_end_ends_each_once);
    RUN(operations_go_on_while_others_poll_the_loop);
    RUN(a_thread_that_does_not_poll_cannot_take_over_what_is_under_way);
    RUN(what_a_thread_leaves_behind_ends_with_the_loop_or_not_at_all);
    rmdir(folder);
    return check_status();
}
