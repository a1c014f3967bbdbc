/*
 * The epoll backend where it differs from others: waits in milliseconds, for kernels that know no
 * others.  What all backends have in common is in test_backend.c.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "backend_under_test.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static void a_wait_in_milliseconds_is_never_early(void)
{
    open_backend();
    backend.no_nanosecond_wait = 1;
    check_waits_are_never_early();
    close_backend();
}

static void a_wait_in_milliseconds_hears_of_events(void)
{
    int pair[2];
    open_backend();
    backend.no_nanosecond_wait = 1;
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    CHECK_EQUAL(wait_for(1), 1);
    CHECK_EQUAL(wait_for(3600 * PR_NS_PER_SECOND), 1);
    close_pair(pair);
    close_backend();
}

/* Lets epoll_pwait2 fail with `error` in this process, as an older kernel or a sandbox has it. */
static bool forbid_nanosecond_wait(int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* In a child, which keeps its filter to itself.  Its exit status is that of a test. */
static int wait_where_forbidden(int error)
{
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        open_backend();
        if (!forbid_nanosecond_wait(error))
            _exit(CHECK_SKIPPED);
        int64_t start_ns = pr_now_ns();
        CHECK_EQUAL(wait_for(1500000), 0);
        CHECK_AT_LEAST(pr_now_ns() - start_ns, 1500000);
        CHECK(backend.no_nanosecond_wait); /* it is asked once only */
        _exit(check_results.failures ? 1 : 0);
    }
    int status = 0;
    REQUIRE_EQUAL(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_kernel_without_nanoseconds_is_asked_for_milliseconds(void)
{
    static const int errors[] = {ENOSYS, EPERM};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        int status = wait_where_forbidden(errors[i]);
        if (status == CHECK_SKIPPED)
            SKIP("no seccomp filters here");
        CHECK_EQUAL(status, 0);
    }
}

static void the_longest_timeout_in_milliseconds_does_not_overflow(void)
{
    int pair[2];
    open_backend();
    backend.no_nanosecond_wait = 1;
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    CHECK_EQUAL(wait_for(INT64_MAX), 1);
    close_pair(pair);
    close_backend();
}

static void an_edge_comes_once_and_again_with_more(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE | PR_EDGE), 0);
    for (int i = 0; i < 2; i++) {
        send_byte(pair[1]);
        check_one_event(pair[0], 1, PR_READABLE);
        CHECK_EQUAL(wait_for(0), 0);
    }
    close_pair(pair);
    close_backend();
}

int main(void)
{
    ops_under_test = &pr_epoll_ops;
    RUN(an_edge_comes_once_and_again_with_more);
    RUN(a_wait_in_milliseconds_is_never_early);
    RUN(a_wait_in_milliseconds_hears_of_events);
    RUN(the_longest_timeout_in_milliseconds_does_not_overflow);
    RUN(a_kernel_without_nanoseconds_is_asked_for_milliseconds);
    return check_status();
}
