/*
 * The epoll backend, against the kernel: what is reported, for whom, and how long a wait lasts.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/backend.h"
#include "pyreactor/clock.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

#define EVENTS_MAX 8

static struct pr_backend backend;
static struct pr_ready_event events[EVENTS_MAX];

static void open_backend(void)
{
    backend = (struct pr_backend){.ops = &pr_epoll_ops};
    REQUIRE_EQUAL(backend.ops->init(&backend), 0);
}

static void close_backend(void)
{
    backend.ops->deinit(&backend);
}

static int update(int fd, uint32_t generation, uint32_t old_events, uint32_t new_events)
{
    return backend.ops->update(&backend, fd, generation, old_events, new_events);
}

static int wait_for(int64_t timeout_ns)
{
    return backend.ops->wait(&backend, events, EVENTS_MAX, timeout_ns);
}

static void open_pair(int pair[2])
{
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

static void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

static void send_byte(int fd)
{
    REQUIRE_EQUAL(write(fd, "x", 1), 1);
}

/* Exactly one event waits, and it says this. */
static void check_one_event(int fd, uint32_t generation, uint32_t expected)
{
    REQUIRE_EQUAL(wait_for(0), 1);
    CHECK_EQUAL(events[0].fd, fd);
    CHECK_EQUAL(events[0].generation, generation);
    CHECK_EQUAL(events[0].events, expected);
}

static void nothing_watched_reports_nothing_at_once(void)
{
    open_backend();
    CHECK_EQUAL(wait_for(0), 0);
    close_backend();
}

static void readable_and_writable_are_told_apart(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(update(pair[0], 7, 0, PR_READABLE), 0);
    CHECK_EQUAL(wait_for(0), 0); /* writable, but nobody asked */
    send_byte(pair[1]);
    check_one_event(pair[0], 7, PR_READABLE);
    CHECK_EQUAL(update(pair[0], 7, PR_READABLE, PR_WRITABLE), 0);
    check_one_event(pair[0], 7, PR_WRITABLE);
    CHECK_EQUAL(update(pair[0], 7, PR_WRITABLE, PR_READABLE | PR_WRITABLE), 0);
    check_one_event(pair[0], 7, PR_READABLE | PR_WRITABLE);
    close_pair(pair);
    close_backend();
}

static void an_event_that_was_not_dealt_with_comes_again(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    for (int i = 0; i < 3; i++)
        check_one_event(pair[0], 1, PR_READABLE);
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

static void a_generation_of_any_size_comes_back_whole(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    send_byte(pair[1]);
    REQUIRE_EQUAL(update(pair[0], UINT32_MAX, 0, PR_READABLE), 0);
    check_one_event(pair[0], UINT32_MAX, PR_READABLE);
    REQUIRE_EQUAL(update(pair[0], 0x80000000u, PR_READABLE, PR_READABLE | PR_WRITABLE), 0);
    check_one_event(pair[0], 0x80000000u, PR_READABLE | PR_WRITABLE);
    close_pair(pair);
    close_backend();
}

static void a_hang_up_is_reported_to_reader_and_writer(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    close(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE | PR_WRITABLE);
    close(pair[0]);
    close_backend();
}

static void an_error_is_reported_to_reader_and_writer(void)
{
    int ends[2];
    open_backend();
    REQUIRE_EQUAL(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    REQUIRE_EQUAL(update(ends[1], 1, 0, PR_WRITABLE), 0);
    close(ends[0]); /* the writing end of a pipe without a reader: EPOLLERR */
    check_one_event(ends[1], 1, PR_READABLE | PR_WRITABLE);
    close(ends[1]);
    close_backend();
}

static void a_half_closed_peer_is_the_readers_affair(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    REQUIRE_EQUAL(shutdown(pair[1], SHUT_WR), 0);
    check_one_event(pair[0], 1, PR_READABLE);
    close_pair(pair);
    close_backend();
}

static void wanting_nothing_hears_of_nothing_not_even_a_hang_up(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    REQUIRE_EQUAL(update(pair[0], 1, PR_READABLE, 0), 0);
    send_byte(pair[1]);
    close(pair[1]);
    CHECK_EQUAL(wait_for(0), 0);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    check_one_event(pair[0], 1, PR_READABLE | PR_WRITABLE);
    close(pair[0]);
    close_backend();
}

static void a_regular_file_cannot_be_waited_for(void)
{
    open_backend();
    int fd = memfd_create("pyreactor", MFD_CLOEXEC);
    REQUIRE(fd >= 0);
    CHECK_EQUAL(update(fd, 1, 0, PR_READABLE), -EPERM);
    close(fd);
    close_backend();
}

static void a_closed_descriptor_cannot_be_waited_for(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    close_pair(pair);
    CHECK_EQUAL(update(pair[0], 1, 0, PR_READABLE), -EBADF);
    CHECK_EQUAL(update(pair[0], 1, PR_READABLE, 0), -EBADF);
    close_backend();
}

/* The owner closed the descriptor and got its number again: the kernel's entry is gone. */
static void a_descriptor_closed_and_reused_is_watched_again(void)
{
    int first[2], second[2];
    open_backend();
    open_pair(first);
    open_pair(second);
    REQUIRE_EQUAL(update(first[0], 1, 0, PR_READABLE), 0);
    REQUIRE_EQUAL(dup2(second[0], first[0]), first[0]);
    send_byte(second[1]);
    CHECK_EQUAL(wait_for(0), 0);
    CHECK_EQUAL(update(first[0], 2, PR_READABLE, PR_READABLE | PR_WRITABLE), 0);
    check_one_event(first[0], 2, PR_READABLE | PR_WRITABLE);
    close_pair(first);
    close_pair(second);
    close_backend();
}

/* A duplicate kept the entry of a closed descriptor alive, and the number came back. */
static void an_entry_that_a_duplicate_kept_is_taken_over(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    int duplicate = dup(pair[0]);
    REQUIRE(duplicate >= 0);
    close(pair[0]);
    REQUIRE_EQUAL(dup2(duplicate, pair[0]), pair[0]);
    CHECK_EQUAL(update(pair[0], 3, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    check_one_event(pair[0], 3, PR_READABLE);
    close(duplicate);
    close_pair(pair);
    close_backend();
}

static void no_more_events_come_than_there_is_room_for(void)
{
    int pairs[3][2];
    int seen[3] = {0};
    open_backend();
    for (int i = 0; i < 3; i++) {
        open_pair(pairs[i]);
        REQUIRE_EQUAL(update(pairs[i][0], 1, 0, PR_READABLE), 0);
        send_byte(pairs[i][1]);
    }
    for (int round = 0; round < 3; round++) {
        REQUIRE_EQUAL(backend.ops->wait(&backend, events, 2, 0), 2);
        for (int i = 0; i < 3; i++)
            seen[i] += events[0].fd == pairs[i][0] || events[1].fd == pairs[i][0];
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(seen[i], 2); /* nobody starves */
        close_pair(pairs[i]);
    }
    close_backend();
}

static void an_event_ends_a_wait_without_limit(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    CHECK_EQUAL(wait_for(-1), 1);
    CHECK_EQUAL(wait_for(3600 * PR_NS_PER_SECOND), 1);
    close_pair(pair);
    close_backend();
}

static void check_waits_are_never_early(void)
{
    static const int64_t timeouts_ns[] = {1,
                                          999,
                                          50000,
                                          100000,
                                          999999,
                                          1000000,
                                          1000001,
                                          1500000,
                                          3 * PR_NS_PER_MS + 1,
                                          20 * PR_NS_PER_MS};
    for (size_t i = 0; i < sizeof timeouts_ns / sizeof *timeouts_ns; i++) {
        int64_t start_ns = pr_now_ns();
        CHECK_EQUAL(wait_for(timeouts_ns[i]), 0);
        CHECK_AT_LEAST(pr_now_ns() - start_ns, timeouts_ns[i]);
    }
}

static void a_wait_in_nanoseconds_is_never_early(void)
{
    open_backend();
    check_waits_are_never_early();
    close_backend();
}

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

static void the_longest_timeout_does_not_overflow(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_READABLE), 0);
    send_byte(pair[1]);
    CHECK_EQUAL(wait_for(INT64_MAX), 1);
    backend.no_nanosecond_wait = 1;
    CHECK_EQUAL(wait_for(INT64_MAX), 1);
    close_pair(pair);
    close_backend();
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void a_signal_ends_the_wait(void)
{
    struct sigaction action = {.sa_handler = on_alarm}, old_action;
    struct itimerval often = {.it_value = {.tv_usec = 5000}, .it_interval = {.tv_usec = 5000}};
    struct itimerval never = {.it_value = {.tv_sec = 0}};
    open_backend();
    REQUIRE_EQUAL(sigaction(SIGALRM, &action, &old_action), 0);
    REQUIRE_EQUAL(setitimer(ITIMER_REAL, &often, NULL), 0);
    CHECK_EQUAL(wait_for(-1), -EINTR);
    CHECK_EQUAL(wait_for(10 * PR_NS_PER_SECOND), -EINTR);
    backend.no_nanosecond_wait = 1;
    CHECK_EQUAL(wait_for(10 * PR_NS_PER_SECOND), -EINTR);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old_action, NULL);
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

static void the_set_is_closed_on_exec(void)
{
    open_backend();
    CHECK(fcntl(backend.fd, F_GETFD) & FD_CLOEXEC);
    close_backend();
}

int main(void)
{
    RUN(nothing_watched_reports_nothing_at_once);
    RUN(readable_and_writable_are_told_apart);
    RUN(an_event_that_was_not_dealt_with_comes_again);
    RUN(an_edge_comes_once_and_again_with_more);
    RUN(a_generation_of_any_size_comes_back_whole);
    RUN(a_hang_up_is_reported_to_reader_and_writer);
    RUN(an_error_is_reported_to_reader_and_writer);
    RUN(a_half_closed_peer_is_the_readers_affair);
    RUN(wanting_nothing_hears_of_nothing_not_even_a_hang_up);
    RUN(a_regular_file_cannot_be_waited_for);
    RUN(a_closed_descriptor_cannot_be_waited_for);
    RUN(a_descriptor_closed_and_reused_is_watched_again);
    RUN(an_entry_that_a_duplicate_kept_is_taken_over);
    RUN(no_more_events_come_than_there_is_room_for);
    RUN(an_event_ends_a_wait_without_limit);
    RUN(a_wait_in_nanoseconds_is_never_early);
    RUN(a_wait_in_milliseconds_is_never_early);
    RUN(a_wait_in_milliseconds_hears_of_events);
    RUN(a_signal_ends_the_wait);
    RUN(a_kernel_without_nanoseconds_is_asked_for_milliseconds);
    RUN(the_set_is_closed_on_exec);
    RUN(the_longest_timeout_does_not_overflow);
    return check_status();
}
