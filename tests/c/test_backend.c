/*
 * Which backends exist, and whether each keeps the contract of struct pr_backend_ops: what is
 * reported, for whom, and how long a wait lasts.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "backend_under_test.h"

static void auto_names_the_best_backend(void)
{
    CHECK_SAME(pr_backend_find("auto"), &pr_epoll_ops);
}

static void a_backend_is_found_by_its_own_name(void)
{
    const struct pr_backend_ops *ops = pr_backend_find("epoll");
    REQUIRE(ops);
    CHECK_SAME(ops, &pr_epoll_ops);
    CHECK_TEXT(ops->name, "epoll");
    CHECK_SAME(pr_backend_find("io_uring"), &pr_uring_ops);
}

static void a_name_that_no_backend_has_finds_nothing(void)
{
    static const char *const names[] = {"", "EPOLL", "epoll ", "epol", "select", "automatic"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK_SAME(pr_backend_find(names[i]), NULL);
}

static void a_backend_has_every_function(void)
{
    const struct pr_backend_ops *ops = ops_under_test;
    CHECK(ops->name && ops->update && ops->wait && ops->init && ops->deinit);
}

static void a_backend_can_be_given_back_twice(void)
{
    open_backend();
    CHECK_AT_LEAST(backend.fd, 0);
    backend.ops->deinit(&backend);
    CHECK_EQUAL(backend.fd, -1);
    backend.ops->deinit(&backend);
    CHECK_EQUAL(backend.fd, -1);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
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
    CHECK_EQUAL(wait_for(0), 0);
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

static void a_wait_in_nanoseconds_is_never_early(void)
{
    open_backend();
    check_waits_are_never_early();
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
    close_pair(pair);
    close_backend();
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
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old_action, NULL);
    close_backend();
}

static void the_set_is_closed_on_exec(void)
{
    open_backend();
    CHECK(fcntl(backend.fd, F_GETFD) & FD_CLOEXEC);
    close_backend();
}

static void keep_the_contract(const struct pr_backend_ops *ops)
{
    ops_under_test = ops;
    backend = (struct pr_backend){.ops = ops};
    int error = ops->init(&backend);
    if (error < 0) {
        printf("%s is not to be had here: %s\n", ops->name, strerror(-error));
        return;
    }
    ops->deinit(&backend);
    RUN(a_backend_has_every_function);
    RUN(a_backend_can_be_given_back_twice);
    RUN(nothing_watched_reports_nothing_at_once);
    RUN(readable_and_writable_are_told_apart);
    RUN(an_event_that_was_not_dealt_with_comes_again);
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
    RUN(a_signal_ends_the_wait);
    RUN(the_set_is_closed_on_exec);
    RUN(the_longest_timeout_does_not_overflow);
}

int main(void)
{
    RUN(auto_names_the_best_backend);
    RUN(a_backend_is_found_by_its_own_name);
    RUN(a_name_that_no_backend_has_finds_nothing);
    keep_the_contract(&pr_epoll_ops);
    keep_the_contract(&pr_uring_ops);
    return check_status();
}
