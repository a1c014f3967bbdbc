/*
 * The mapped rings of io_uring: what is submitted completes, once, in a ring that goes round, and
 * a kernel that has none says so.
 */
#include "pyreactor/uring_map.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"

#define ENTRIES 8

static struct pr_uring_map map;

/* Returns false where this machine has no io_uring. */
static bool begin(void)
{
    int error = pr_uring_map_init(&map, ENTRIES, 0, 0);
    if (error == -ENOSYS || error == -EPERM)
        return false;
    REQUIRE_EQUAL(error, 0);
    return true;
}

#define NEEDS_URING "no io_uring here"

static void submit_nop(uint64_t user_data)
{
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&map);
    REQUIRE(sqe != NULL);
    sqe->opcode = PR_URING_NOP;
    sqe->user_data = user_data;
}

static void what_is_submitted_completes_once_and_in_order(void)
{
    struct pr_uring_cqe cqe;
    if (!begin())
        SKIP(NEEDS_URING);
    for (uint64_t round = 0; round < 100 * ENTRIES; round += 3) { /* round the ring many times */
        for (uint64_t i = 0; i < 3; i++)
            submit_nop(round + i);
        REQUIRE_EQUAL(pr_uring_map_submit(&map), 0);
        for (uint64_t i = 0; i < 3; i++) {
            REQUIRE(pr_uring_map_pop(&map, &cqe));
            CHECK_EQUAL(cqe.user_data, round + i);
            CHECK_EQUAL(cqe.result, 0);
        }
        CHECK(!pr_uring_map_pop(&map, &cqe));
    }
    pr_uring_map_deinit(&map);
}

static void a_full_ring_gives_no_place(void)
{
    if (!begin())
        SKIP(NEEDS_URING);
    for (uint64_t i = 0; i < ENTRIES; i++)
        submit_nop(i);
    CHECK_SAME(pr_uring_map_next_sqe(&map), NULL);
    REQUIRE_EQUAL(pr_uring_map_submit(&map), 0);
    CHECK(pr_uring_map_next_sqe(&map) != NULL);
    pr_uring_map_deinit(&map);
}

static void what_the_completion_ring_cannot_hold_is_kept(void)
{
    struct pr_uring_cqe cqe;
    int count = 0;
    if (!begin())
        SKIP(NEEDS_URING);
    CHECK(!pr_uring_map_has_overflow(&map));
    for (int round = 0; round < 4; round++) { /* the completion ring has twice the entries */
        for (uint64_t i = 0; i < ENTRIES; i++)
            submit_nop(i);
        REQUIRE_EQUAL(pr_uring_map_submit(&map), 0);
    }
    CHECK(pr_uring_map_has_overflow(&map));
    for (int round = 0; round < 4; round++) {
        while (pr_uring_map_pop(&map, &cqe))
            count++;
        REQUIRE_EQUAL(pr_uring_map_wait(&map, 0), 0);
    }
    CHECK_EQUAL(count, 4 * ENTRIES);
    CHECK(!pr_uring_map_has_overflow(&map));
    pr_uring_map_deinit(&map);
}

static void a_wait_is_never_early_and_ends_with_a_completion(void)
{
    struct pr_uring_cqe cqe;
    int ends[2];
    if (!begin())
        SKIP(NEEDS_URING);
    int64_t start_ns = pr_now_ns();
    CHECK_EQUAL(pr_uring_map_wait(&map, 3 * PR_NS_PER_MS), 0);
    CHECK_AT_LEAST(pr_now_ns() - start_ns, 3 * PR_NS_PER_MS);
    REQUIRE_EQUAL(pipe(ends), 0);
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&map);
    sqe->opcode = PR_URING_POLL_ADD;
    sqe->fd = ends[0];
    sqe->operation_flags = 1; /* POLLIN; the halves are swapped on a big-endian machine */
    sqe->user_data = 77;
    REQUIRE_EQUAL(pr_uring_map_submit(&map), 0);
    CHECK(!pr_uring_map_pop(&map, &cqe));
    REQUIRE_EQUAL(write(ends[1], "x", 1), 1);
    CHECK_EQUAL(pr_uring_map_wait(&map, -1), 0);
    REQUIRE(pr_uring_map_pop(&map, &cqe));
    CHECK_EQUAL(cqe.user_data, 77);
    CHECK_EQUAL(cqe.result, 1);
    close(ends[0]);
    close(ends[1]);
    pr_uring_map_deinit(&map);
}

/* In a child, which keeps its filter to itself: what pr_uring_map_init() says there. */
static int init_where_forbidden(int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1), /* io_uring_setup */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program))
            _exit(CHECK_SKIPPED);
        _exit(pr_uring_map_init(&map, ENTRIES, 0, 0) == -error && map.fd == -1 ? 0 : 1);
    }
    int status = 0;
    REQUIRE_EQUAL(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_machine_without_it_says_so(void)
{
    static const int errors[] = {ENOSYS, EPERM};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        int status = init_where_forbidden(errors[i]);
        if (status == CHECK_SKIPPED)
            SKIP("no seccomp filters here");
        CHECK_EQUAL(status, 0);
    }
}

static void the_probe_knows_what_the_kernel_has(void)
{
    uint64_t supported = 0;
    if (!begin())
        SKIP(NEEDS_URING);
    REQUIRE_EQUAL(pr_uring_map_probe(&map, &supported), 0);
    CHECK(supported >> PR_URING_NOP & 1);
    CHECK(supported >> PR_URING_RECV & 1);
    pr_uring_map_deinit(&map);
    CHECK_AT_MOST(pr_uring_map_probe(&map, &supported), -1);
}

int main(void)
{
    RUN(what_is_submitted_completes_once_and_in_order);
    RUN(the_probe_knows_what_the_kernel_has);
    RUN(a_full_ring_gives_no_place);
    RUN(what_the_completion_ring_cannot_hold_is_kept);
    RUN(a_wait_is_never_early_and_ends_with_a_completion);
    RUN(a_machine_without_it_says_so);
    return check_status();
}
