/*
 * Proactors, both engines in both profiles: operations from any thread, their results in the queues
 * of workers, cancellation, buffers, notification, and the end of everything.
 */
#include "pyreactor/proactor.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long something was lost */
#define WORKERS 2
#define PAIRS 8
#define ROUNDS 200
#define BUFFER_BYTES 256

/* A connection: what is read of it is written again by the worker that has it. */
struct connection {
    struct pr_strand strand;
    struct pr_aio reader, writer;
    int ours, theirs;
    _Atomic(int) inside; /* how many workers handle it */
};

static struct pr_buffer_pool *pool;
static struct pr_demux *demux;
static struct pr_proactor *proactor;
static pthread_t main_thread, workers[WORKERS];
static struct connection connections[PAIRS];
static _Atomic(unsigned) ended; /* operations of nobody that a worker has had */

static void *run(void *argument)
{
    (void)argument;
    int result;
    do
        result = pr_proactor_run_once(proactor, -1);
    while (result == 0 || result == -EINTR);
    CHECK_EQUAL(result, 1);
    pr_completion_queues_close(&proactor->workers);
    return NULL;
}

static void start_read(struct connection *connection)
{
    connection->reader.buffer = PR_ANY_BUFFER;
    connection->reader.size = 0;
    pr_proactor_submit(proactor, &connection->reader);
}

static void handle_connection(struct connection *connection, struct pr_aio *aio)
{
    CHECK_EQUAL(atomic_fetch_add(&connection->inside, 1), 0);
    if (aio == &connection->reader && aio->result == 0 && aio->done > 0) {
        connection->writer.buffer = aio->buffer; /* the writer's from here on */
        connection->writer.data = aio->data;
        connection->writer.size = aio->done;
        connection->writer.silence = PR_LOUD;
        atomic_fetch_sub(&connection->inside, 1);
        pr_proactor_submit(proactor, &connection->writer);
        return;
    }
    if (aio->buffer < PR_ANY_BUFFER)
        pr_proactor_release_buffer(proactor, aio->buffer);
    bool again = aio == &connection->writer && aio->result == 0;
    atomic_fetch_sub(&connection->inside, 1);
    if (again)
        start_read(connection);
}

static void *work(void *argument)
{
    const unsigned worker = (unsigned)(uintptr_t)argument;
    struct pr_aio *aio;
    while (pr_completion_queues_take(&proactor->workers, worker, &aio, INT64_MAX) == 0) {
        struct pr_strand *strand = aio->strand;
        if (strand) {
            handle_connection(aio->owner, aio);
        } else {
            if (aio->buffer < PR_ANY_BUFFER && aio->kind == PR_AIO_READ)
                pr_proactor_release_buffer(proactor, aio->buffer);
            atomic_fetch_add(&ended, 1);
        }
        pr_proactor_handled(proactor, worker, strand);
    }
    return NULL;
}

/* Returns false where this machine has no io_uring. */
static bool begin(const struct pr_proactor_ops *ops, bool strict, uint32_t buffers)
{
    atomic_store(&ended, 0);
    pool = aligned_alloc(PR_BUFFER_ALIGNMENT, (sizeof *pool + PR_BUFFER_ALIGNMENT - 1) /
                                                  PR_BUFFER_ALIGNMENT * PR_BUFFER_ALIGNMENT);
    REQUIRE(pool != NULL);
    REQUIRE_EQUAL(pr_buffer_pool_init(pool, BUFFER_BYTES, buffers), 0);
    REQUIRE_EQUAL(pr_demux_new(pr_demux_find("epoll"), &demux), 0);
    int error = pr_proactor_new(&proactor, ops, pool, demux, NULL, WORKERS, PR_ROUND_ROBIN, strict);
    if (error == -ENOSYS || error == -EPERM || error == -EINVAL) {
        pr_demux_free(demux);
        pr_buffer_pool_deinit(pool);
        free(pool);
        return false;
    }
    REQUIRE_EQUAL(error, 0);
    REQUIRE_EQUAL(pthread_create(&main_thread, NULL, run, NULL), 0);
    for (unsigned i = 0; i < WORKERS; i++)
        REQUIRE_EQUAL(pthread_create(&workers[i], NULL, work, (void *)(uintptr_t)i), 0);
    return true;
}

static void end(enum pr_proactor_stop how)
{
    struct pr_proactor_stats stats;
    pr_proactor_stop(proactor, how);
    pthread_join(main_thread, NULL);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(workers[i], NULL);
    pr_proactor_read_stats(proactor, &stats);
    CHECK_EQUAL(stats.live, 0);
    CHECK_EQUAL(stats.submitted, stats.completed);
    pr_proactor_free(proactor);
    CHECK_EQUAL(atomic_load(&pool->lent_count), 0);
    pr_demux_free(demux);
    pr_buffer_pool_deinit(pool);
    free(pool);
}

static void open_pair(int pair[2])
{
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
}

static void open_connection(struct connection *connection)
{
    int pair[2];
    open_pair(pair);
    *connection = (struct connection){.ours = pair[0], .theirs = pair[1]};
    pr_aio_init(&connection->reader, connection);
    pr_aio_init(&connection->writer, connection);
    connection->writer.kind = PR_AIO_WRITE;
    connection->reader.fd = connection->writer.fd = pair[0];
    connection->reader.is_socket = connection->writer.is_socket = true;
    connection->reader.strand = connection->writer.strand = &connection->strand;
    start_read(connection);
}

static void receive(int fd, char *data, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t more = recv(fd, data + got, size - got, 0);
        REQUIRE(more > 0);
        got += (size_t)more;
    }
}

static void wait_until_ended(unsigned count)
{
    int64_t deadline_ns = pr_now_ns() + PATIENCE_NS;
    while (atomic_load(&ended) < count) {
        REQUIRE(pr_now_ns() < deadline_ns);
        sched_yield();
    }
}

/* --- The tests, for one engine in one profile ------------------------------------------------- */

static void echo(void)
{
    char received[7];
    for (int i = 0; i < PAIRS; i++)
        open_connection(&connections[i]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < PAIRS; i++) {
            const char sent[] = {(char)i, (char)round, 'e', 'c', 'h', 'o', '.'};
            REQUIRE_EQUAL(send(connections[i].theirs, sent, 7, 0), 7);
        }
        for (int i = 0; i < PAIRS; i++) {
            const char sent[] = {(char)i, (char)round, 'e', 'c', 'h', 'o', '.'};
            receive(connections[i].theirs, received, 7);
            CHECK_BYTES(received, 7, sent, 7);
        }
    }
}

static void close_connections(void)
{
    for (int i = 0; i < PAIRS; i++) {
        close(connections[i].ours);
        close(connections[i].theirs);
    }
}

/* Leaves `pair` open: the main thread may look once more at what nobody reads. */
static void cancel_many(int pair[2])
{
    static struct pr_aio reads[PAIRS];
    open_pair(pair);
    unsigned before = atomic_load(&ended);
    for (int i = 0; i < PAIRS; i++) {
        pr_aio_init(&reads[i], NULL);
        reads[i].fd = pair[0];
        reads[i].is_socket = true;
        reads[i].buffer = PR_ANY_BUFFER;
        pr_proactor_submit(proactor, &reads[i]);
        if (i % 2)
            REQUIRE_EQUAL(send(pair[1], "x", 1, 0), 1);
        (void)pr_proactor_cancel(proactor, &reads[i]);
        wait_until_ended(before + (unsigned)i + 1);
        CHECK(reads[i].result == -ECANCELED || (reads[i].result == 0 && reads[i].done > 0));
        CHECK(!pr_proactor_cancel(proactor, &reads[i]));
    }
}

static void announce(enum pr_notify notify)
{
    int pair[2];
    char data[4] = "";
    struct pr_aio read;
    unsigned before = atomic_load(&ended);
    open_pair(pair);
    pr_aio_init(&read, NULL);
    read.fd = pair[0];
    read.is_socket = true;
    read.data = data;
    read.size = sizeof data;
    read.notify = notify;
    pr_proactor_submit(proactor, &read);
    REQUIRE_EQUAL(send(pair[1], "told", 4, 0), 4);
    wait_until_ended(before + 1);
    CHECK_EQUAL(read.done, 4);
    CHECK_BYTES(data, 4, "told", 4);
    CHECK(read.announced);
    if (notify == PR_NOTIFY_EVENTFD) {
        uint64_t count = 0;
        CHECK_EQUAL(eventfd_read(proactor->notifier.event_fd, &count), 0);
        CHECK_EQUAL(count, 1);
    }
    close(pair[0]);
    close(pair[1]);
}

static void in_every_way(const struct pr_proactor_ops *ops, bool strict)
{
    int pair[2];
    if (!begin(ops, strict, 2 * PAIRS))
        SKIP("no io_uring here");
    echo();
    cancel_many(pair);
    announce(PR_NOTIFY_EVENTFD);
    announce(PR_NOTIFY_SIGNAL);
    end(PR_DRAIN);
    close(pair[0]);
    close(pair[1]);
    close_connections();
}

static void the_kernel_does_it(void)
{
    in_every_way(&pr_proactor_uring_ops, false);
}

static void the_kernel_does_it_step_by_step(void)
{
    in_every_way(&pr_proactor_uring_ops, true);
}

static void the_main_thread_does_it(void)
{
    in_every_way(&pr_proactor_readiness_ops, false);
}

static void the_main_thread_does_it_step_by_step(void)
{
    in_every_way(&pr_proactor_readiness_ops, true);
}

static void fewer_buffers_than_connections(const struct pr_proactor_ops *ops)
{
    if (!begin(ops, false, 2))
        SKIP("no io_uring here");
    echo();
    end(PR_ABORT);
    close_connections();
}

static void with_few_buffers_connections_take_turns_in_the_kernel(void)
{
    fewer_buffers_than_connections(&pr_proactor_uring_ops);
}

static void with_few_buffers_connections_take_turns_in_the_main_thread(void)
{
    fewer_buffers_than_connections(&pr_proactor_readiness_ops);
}

int main(void)
{
    RUN(the_kernel_does_it);
    RUN(the_kernel_does_it_step_by_step);
    RUN(the_main_thread_does_it);
    RUN(the_main_thread_does_it_step_by_step);
    RUN(with_few_buffers_connections_take_turns_in_the_kernel);
    RUN(with_few_buffers_connections_take_turns_in_the_main_thread);
    return check_status();
}
