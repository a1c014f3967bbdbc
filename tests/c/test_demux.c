/*
 * Demultiplexers: one suite for select, poll, epoll, io_uring and SIGIO.  What one of them promises
 * all of them keep, threads included.
 */
#include "pyreactor/demux.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long something was lost */
#define CHURN_ROUNDS 2000

#define EVENTS_MAX 512

static const struct pr_demux_ops *ops; /* of the demultiplexer under test */
static struct pr_demux *demux;
static struct pr_ready_event events[EVENTS_MAX];

static void begin(void)
{
    REQUIRE_EQUAL(pr_demux_new(ops, &demux), 0);
}

static void end(void)
{
    pr_demux_free(demux);
    demux = NULL;
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

static void take_byte(int fd)
{
    char byte;
    REQUIRE_EQUAL(read(fd, &byte, 1), 1);
}

static int add(int fd, uint32_t generation, uint32_t wanted)
{
    return ops->add(demux, fd, generation, wanted);
}

static int modify(int fd, uint32_t generation, uint32_t wanted)
{
    return ops->modify(demux, fd, generation, wanted);
}

/* Waits as the contract says: what returns early without an event is asked again.  -EINTR comes
 * without a signal, too, when the kernel completes an operation of a ring in this thread. */
static int wait_for(int capacity, int64_t timeout_ns)
{
    int64_t deadline_ns = pr_now_ns() + timeout_ns;
    for (;;) {
        int64_t left_ns = deadline_ns - pr_now_ns();
        int count = pr_demux_wait(demux, events, capacity, left_ns > 0 ? left_ns : 0);
        if (count > 0 || (count < 0 && count != -EINTR) || (count == 0 && left_ns <= 0))
            return count;
    }
}

static void check_one_event(int fd, uint32_t generation, uint32_t expected)
{
    REQUIRE_EQUAL(wait_for(EVENTS_MAX, PATIENCE_NS), 1);
    CHECK_EQUAL(events[0].fd, fd);
    CHECK_EQUAL(events[0].generation, generation);
    CHECK_EQUAL(events[0].events & expected, expected); /* a hang-up may be more than wanted */
}

static void check_no_event(void)
{
    CHECK_EQUAL(wait_for(EVENTS_MAX, 0), 0);
}

static void nothing_is_ready_where_nothing_is_watched(void)
{
    begin();
    check_no_event();
    int64_t start_ns = pr_now_ns();
    CHECK_EQUAL(wait_for(8, 5 * PR_NS_PER_MS), 0);
    CHECK_AT_LEAST(pr_now_ns() - start_ns, 5 * PR_NS_PER_MS);
    end();
}

static void readable_and_writable_are_told_apart(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 7, PR_READABLE), 0);
    check_no_event();
    send_byte(pair[1]);
    check_one_event(pair[0], 7, PR_READABLE);
    REQUIRE_EQUAL(modify(pair[0], 8, PR_WRITABLE), 0);
    check_one_event(pair[0], 8, PR_WRITABLE);
    REQUIRE_EQUAL(modify(pair[0], 9, PR_READABLE | PR_WRITABLE), 0);
    check_one_event(pair[0], 9, PR_READABLE | PR_WRITABLE);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    check_no_event();
    close_pair(pair);
    end();
}

static void what_is_left_over_is_reported_again(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    send_byte(pair[1]);
    send_byte(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE);
    check_one_event(pair[0], 1, PR_READABLE);
    take_byte(pair[0]);
    check_one_event(pair[0], 1, PR_READABLE);
    take_byte(pair[0]);
    check_no_event();
    send_byte(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

static void a_one_shot_is_silent_until_it_is_armed_again(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE | PR_ONE_SHOT), 0);
    send_byte(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE);
    check_no_event();
    send_byte(pair[1]);
    close(pair[1]); /* not even a hang-up */
    check_no_event();
    REQUIRE_EQUAL(modify(pair[0], 1, PR_READABLE | PR_ONE_SHOT), 0);
    check_one_event(pair[0], 1, PR_READABLE);
    check_no_event();
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close(pair[0]);
    end();
}

static void wanting_nothing_hears_of_nothing(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    REQUIRE_EQUAL(modify(pair[0], 1, 0), 0);
    send_byte(pair[1]);
    close(pair[1]);
    check_no_event();
    REQUIRE_EQUAL(modify(pair[0], 2, PR_READABLE), 0);
    check_one_event(pair[0], 2, PR_READABLE);
    REQUIRE_EQUAL(ops->remove(demux, pair[0]), 0);
    close(pair[0]);
    end();
}

static void a_hang_up_is_reported_to_a_reader(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    check_no_event();
    close(pair[1]);
    REQUIRE_EQUAL(wait_for(8, PATIENCE_NS), 1);
    CHECK(events[0].events & PR_READABLE);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close(pair[0]);
    end();
}

static void urgent_data_is_exceptional(void)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    begin();
    REQUIRE_EQUAL(listen(listener, 1), 0);
    REQUIRE_EQUAL(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    REQUIRE_EQUAL(connect(client, (struct sockaddr *)&address, size), 0);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    REQUIRE(server >= 0);
    REQUIRE_EQUAL(add(server, 3, PR_EXCEPTIONAL), 0);
    check_no_event();
    REQUIRE_EQUAL(send(client, "!", 1, MSG_OOB), 1);
    check_one_event(server, 3, PR_EXCEPTIONAL);
    CHECK_EQUAL(ops->remove(demux, server), 0);
    close(listener);
    close(client);
    close(server);
    end();
}

static void a_generation_of_any_size_comes_back_whole(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    send_byte(pair[1]);
    REQUIRE_EQUAL(add(pair[0], UINT32_MAX, PR_READABLE), 0);
    check_one_event(pair[0], UINT32_MAX, PR_READABLE);
    REQUIRE_EQUAL(modify(pair[0], 0x80000000u, PR_READABLE), 0);
    check_one_event(pair[0], 0x80000000u, PR_READABLE);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

static void a_number_that_comes_again_is_another_descriptor(void)
{
    int first[2], second[2];
    begin();
    open_pair(first);
    open_pair(second);
    REQUIRE_EQUAL(add(first[0], 1, PR_READABLE), 0);
    send_byte(first[1]);
    check_one_event(first[0], 1, PR_READABLE);
    REQUIRE_EQUAL(ops->remove(demux, first[0]), 0);
    REQUIRE_EQUAL(dup2(second[0], first[0]), first[0]);
    REQUIRE_EQUAL(add(first[0], 2, PR_READABLE), 0);
    check_no_event();
    send_byte(second[1]);
    check_one_event(first[0], 2, PR_READABLE);
    CHECK_EQUAL(ops->remove(demux, first[0]), 0);
    close_pair(first);
    close_pair(second);
    end();
}

static void what_cannot_be_is_refused(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    CHECK_EQUAL(add(pair[0], 2, PR_READABLE), -EEXIST);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    CHECK_EQUAL(ops->remove(demux, pair[0]), -ENOENT);
    CHECK_EQUAL(add(-1, 2, PR_READABLE), -EBADF);
    close_pair(pair);
    CHECK_EQUAL(add(pair[0], 2, PR_READABLE), -EBADF);
    if (ops != &pr_demux_epoll_ops) {
        CHECK_EQUAL(add(0, 2, PR_READABLE | PR_EDGE_TRIGGERED), -EOPNOTSUPP);
        CHECK_EQUAL(add(0, 2, PR_READABLE | PR_EXCLUSIVE), -EOPNOTSUPP);
    }
    end();
}

static void nobody_starves_where_there_is_too_little_room(void)
{
    int pairs[5][2];
    int seen[5] = {0};
    begin();
    for (int i = 0; i < 5; i++) {
        open_pair(pairs[i]);
        REQUIRE_EQUAL(add(pairs[i][0], 1, PR_READABLE), 0);
        send_byte(pairs[i][1]);
    }
    for (int round = 0; round < 10; round++) {
        int count = wait_for(2, PATIENCE_NS);
        REQUIRE(count == 1 || count == 2);
        for (int i = 0; i < 5; i++)
            for (int j = 0; j < count; j++)
                seen[i] += events[j].fd == pairs[i][0];
    }
    for (int i = 0; i < 5; i++) {
        CHECK_AT_LEAST(seen[i], 2);
        CHECK_EQUAL(ops->remove(demux, pairs[i][0]), 0);
        close_pair(pairs[i]);
    }
    end();
}

static void who_is_always_ready_does_not_hide_the_others(void)
{
    int writer[2], reader[2];
    begin();
    open_pair(writer);
    open_pair(reader);
    REQUIRE_EQUAL(add(writer[0], 1, PR_WRITABLE), 0);
    REQUIRE_EQUAL(add(reader[0], 2, PR_READABLE), 0);
    CHECK_EQUAL(wait_for(8, PATIENCE_NS), 1);
    send_byte(reader[1]);
    CHECK_EQUAL(wait_for(8, PATIENCE_NS), 2);
    CHECK_EQUAL(ops->remove(demux, writer[0]), 0);
    CHECK_EQUAL(ops->remove(demux, reader[0]), 0);
    close_pair(writer);
    close_pair(reader);
    end();
}

static void many_that_are_ready_come_with_one_wait(void)
{
    int pairs[100][2];
    begin();
    for (int i = 0; i < 100; i++) {
        open_pair(pairs[i]);
        REQUIRE_EQUAL(add(pairs[i][0], 1, PR_READABLE), 0);
    }
    for (int i = 0; i < 100; i++)
        send_byte(pairs[i][1]);
    CHECK_EQUAL(wait_for(EVENTS_MAX, PATIENCE_NS), 100);
    for (int i = 0; i < 100; i++) {
        CHECK_EQUAL(ops->remove(demux, pairs[i][0]), 0);
        close_pair(pairs[i]);
    }
    end();
}

static void a_wake_ends_the_next_wait_once(void)
{
    begin();
    demux->ops->wake(demux);
    CHECK_EQUAL(pr_demux_wait(demux, events, 8, PATIENCE_NS), 0);
    int64_t start_ns = pr_now_ns();
    CHECK_EQUAL(wait_for(8, 2 * PR_NS_PER_MS), 0);
    CHECK_AT_LEAST(pr_now_ns() - start_ns, 2 * PR_NS_PER_MS);
    end();
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
    begin();
    REQUIRE_EQUAL(sigaction(SIGALRM, &action, &old_action), 0);
    REQUIRE_EQUAL(setitimer(ITIMER_REAL, &often, NULL), 0);
    CHECK_EQUAL(pr_demux_wait(demux, events, 8, -1), -EINTR);
    CHECK_EQUAL(pr_demux_wait(demux, events, 8, PATIENCE_NS), -EINTR);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old_action, NULL);
    end();
}

/* --- Threads ---------------------------------------------------------------------------------- */

struct waiter {
    pthread_t thread;
    int capacity;
    int count;
};

static void *wait_in_thread(void *argument)
{
    struct waiter *waiter = argument;
    waiter->count = wait_for(waiter->capacity, PATIENCE_NS);
    return NULL;
}

static void start_waiter(struct waiter *waiter)
{
    waiter->capacity = 8;
    REQUIRE_EQUAL(pthread_create(&waiter->thread, NULL, wait_in_thread, waiter), 0);
    while (atomic_load(&demux->wakeup.state) != PR_SLEEPING)
        sched_yield();
    struct timespec moment = {.tv_nsec = PR_NS_PER_MS};
    nanosleep(&moment, NULL); /* for the kernel, too; the other order must work as well */
}

static void check_waiter_heard(struct waiter *waiter, int fd, uint32_t generation)
{
    pthread_join(waiter->thread, NULL);
    REQUIRE_EQUAL(waiter->count, 1);
    CHECK_EQUAL(events[0].fd, fd);
    CHECK_EQUAL(events[0].generation, generation);
}

static void *wake_the_sleeper(void *argument)
{
    atomic_bool *woken = argument;
    while (atomic_load(&demux->wakeup.state) != PR_SLEEPING)
        sched_yield();
    struct timespec moment = {.tv_nsec = PR_NS_PER_MS};
    nanosleep(&moment, NULL); /* for the kernel, too */
    atomic_store(woken, true);
    ops->wake(demux);
    return NULL;
}

/* A wake for which the wait before had no room, since an event came with it. */
static void a_wake_beside_an_event_does_not_cost_the_next_one(void)
{
    int pair[2];
    atomic_bool woken = false;
    pthread_t waker;
    uint64_t one = 1;
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE | PR_ONE_SHOT), 0);
    check_no_event();
    send_byte(pair[1]);
    REQUIRE_EQUAL(write(demux->wakeup.fd, &one, sizeof one), sizeof one); /* in the last moment */
    REQUIRE_EQUAL(wait_for(1, PATIENCE_NS), 1);
    take_byte(pair[0]);
    int64_t start_ns = pr_now_ns();
    REQUIRE_EQUAL(pthread_create(&waker, NULL, wake_the_sleeper, &woken), 0);
    while (!atomic_load(&woken))
        CHECK_AT_MOST(pr_demux_wait(demux, events, 1, PATIENCE_NS), 0); /* 0, or -EINTR */
    CHECK_EQUAL(pr_now_ns() - start_ns < PATIENCE_NS, true);
    pthread_join(waker, NULL);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

static void what_is_added_during_a_wait_ends_it(void)
{
    int pair[2];
    struct waiter waiter;
    begin();
    open_pair(pair);
    send_byte(pair[1]);
    start_waiter(&waiter);
    REQUIRE_EQUAL(add(pair[0], 4, PR_READABLE), 0);
    check_waiter_heard(&waiter, pair[0], 4);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

static void what_is_modified_during_a_wait_ends_it(void)
{
    int pair[2];
    struct waiter waiter;
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 4, PR_READABLE | PR_ONE_SHOT), 0);
    start_waiter(&waiter);
    REQUIRE_EQUAL(modify(pair[0], 5, PR_WRITABLE | PR_ONE_SHOT), 0);
    check_waiter_heard(&waiter, pair[0], 5);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

static void what_is_removed_during_a_wait_does_not_end_it(void)
{
    int removed[2], kept[2];
    struct waiter waiter;
    begin();
    open_pair(removed);
    open_pair(kept);
    REQUIRE_EQUAL(add(removed[0], 1, PR_READABLE), 0);
    REQUIRE_EQUAL(add(kept[0], 2, PR_READABLE), 0);
    start_waiter(&waiter);
    REQUIRE_EQUAL(ops->remove(demux, removed[0]), 0);
    send_byte(removed[1]);
    send_byte(kept[1]);
    check_waiter_heard(&waiter, kept[0], 2);
    CHECK_EQUAL(ops->remove(demux, kept[0]), 0);
    close_pair(removed);
    close_pair(kept);
    end();
}

static void a_second_thread_may_not_wait(void)
{
    struct waiter waiter;
    begin();
    start_waiter(&waiter);
    CHECK_EQUAL(pr_demux_wait(demux, events, 8, 0), -EBUSY);
    int pair[2];
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_WRITABLE), 0);
    check_waiter_heard(&waiter, pair[0], 1);
    close_pair(pair);
    end();
}

static void the_waiting_thread_may_change(void)
{
    int pair[2];
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    for (int round = 0; round < 4; round++) {
        struct waiter waiter;
        start_waiter(&waiter); /* a thread that ends after its wait */
        send_byte(pair[1]);
        check_waiter_heard(&waiter, pair[0], 1);
        check_one_event(pair[0], 1, PR_READABLE);
        take_byte(pair[0]);
        check_no_event();
    }
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close_pair(pair);
    end();
}

/* Adds, arms, removes and closes descriptors while another thread waits for them. */
static void *churn(void *argument)
{
    atomic_bool *done = argument;
    for (uint32_t round = 0; round < CHURN_ROUNDS; round++) {
        int pair[2];
        open_pair(pair);
        REQUIRE_EQUAL(add(pair[0], round, PR_READABLE | PR_ONE_SHOT), 0);
        send_byte(pair[1]);
        REQUIRE_EQUAL(modify(pair[0], round, PR_READABLE | PR_WRITABLE | PR_ONE_SHOT), 0);
        REQUIRE_EQUAL(ops->remove(demux, pair[0]), 0);
        close_pair(pair);
    }
    atomic_store(done, true);
    ops->wake(demux);
    return NULL;
}

static void the_set_may_be_changed_at_any_time(void)
{
    atomic_bool done = false;
    pthread_t thread;
    begin();
    REQUIRE_EQUAL(pthread_create(&thread, NULL, churn, &done), 0);
    while (!atomic_load(&done)) {
        int count = pr_demux_wait(demux, events, 8, PATIENCE_NS);
        REQUIRE(count >= 0 || count == -EINTR);
    }
    pthread_join(thread, NULL);
    check_no_event();
    end();
}

static void test_demultiplexer(void)
{
    RUN(nothing_is_ready_where_nothing_is_watched);
    RUN(readable_and_writable_are_told_apart);
    RUN(what_is_left_over_is_reported_again);
    RUN(a_one_shot_is_silent_until_it_is_armed_again);
    RUN(wanting_nothing_hears_of_nothing);
    RUN(a_hang_up_is_reported_to_a_reader);
    RUN(urgent_data_is_exceptional);
    RUN(a_generation_of_any_size_comes_back_whole);
    RUN(a_number_that_comes_again_is_another_descriptor);
    RUN(what_cannot_be_is_refused);
    RUN(nobody_starves_where_there_is_too_little_room);
    RUN(who_is_always_ready_does_not_hide_the_others);
    RUN(many_that_are_ready_come_with_one_wait);
    RUN(a_wake_ends_the_next_wait_once);
    RUN(a_signal_ends_the_wait);
    RUN(a_wake_beside_an_event_does_not_cost_the_next_one);
    RUN(what_is_added_during_a_wait_ends_it);
    RUN(what_is_modified_during_a_wait_ends_it);
    RUN(what_is_removed_during_a_wait_does_not_end_it);
    RUN(a_second_thread_may_not_wait);
    RUN(the_waiting_thread_may_change);
    RUN(the_set_may_be_changed_at_any_time);
}

/* --- What only one of them has ---------------------------------------------------------------- */

static void there_are_five_demultiplexers(void)
{
    CHECK_SAME(pr_demux_find("select"), &pr_demux_select_ops);
    CHECK_SAME(pr_demux_find("sigio"), &pr_demux_sigio_ops);
    CHECK_SAME(pr_demux_find("kqueue"), NULL);
    CHECK_EQUAL(pr_demux_new(&pr_demux_epoll_ops, &demux), 0);
    CHECK_AT_LEAST(pr_demux_fileno(demux), 0);
    end();
    CHECK_EQUAL(pr_demux_new(&pr_demux_poll_ops, &demux), 0);
    CHECK_EQUAL(pr_demux_fileno(demux), -1);
    end();
}

static void select_refuses_a_number_beyond_its_set(void)
{
    struct rlimit limit;
    REQUIRE_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max <= FD_SETSIZE + 10)
        SKIP("too few descriptors are allowed here");
    limit.rlim_cur = FD_SETSIZE + 10;
    REQUIRE_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
    ops = &pr_demux_select_ops;
    begin();
    int last = fcntl(0, F_DUPFD_CLOEXEC, FD_SETSIZE - 1);
    int beyond = fcntl(0, F_DUPFD_CLOEXEC, FD_SETSIZE);
    REQUIRE_EQUAL(beyond, FD_SETSIZE);
    CHECK_EQUAL(add(beyond, 1, PR_READABLE), -ERANGE);
    CHECK_EQUAL(add(last, 1, PR_READABLE), 0);
    CHECK_AT_LEAST(wait_for(8, 0), 0);
    close(last);
    close(beyond);
    end();
}

static void select_reports_what_was_closed_under_it(void)
{
    int pair[2];
    ops = &pr_demux_select_ops;
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE), 0);
    close(pair[0]);
    check_one_event(pair[0], 1, PR_READABLE);
    CHECK_EQUAL(ops->remove(demux, pair[0]), 0);
    close(pair[1]);
    end();
}

static void an_edge_is_reported_once(void)
{
    int pair[2];
    ops = &pr_demux_epoll_ops;
    begin();
    open_pair(pair);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE | PR_EDGE_TRIGGERED), 0);
    send_byte(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE);
    check_no_event();
    send_byte(pair[1]);
    check_one_event(pair[0], 1, PR_READABLE);
    close_pair(pair);
    end();
}

static void an_exclusive_interest_can_be_modified(void)
{
    int pair[2];
    ops = &pr_demux_epoll_ops;
    begin();
    open_pair(pair);
    CHECK_EQUAL(add(pair[0], 1, PR_READABLE | PR_EXCLUSIVE | PR_ONE_SHOT), -EINVAL);
    REQUIRE_EQUAL(add(pair[0], 1, PR_READABLE | PR_EXCLUSIVE), 0);
    check_no_event();
    REQUIRE_EQUAL(modify(pair[0], 2, PR_WRITABLE | PR_EXCLUSIVE), 0);
    check_one_event(pair[0], 2, PR_WRITABLE);
    close_pair(pair);
    end();
}

static void sigio_refuses_what_cannot_signal(void)
{
    ops = &pr_demux_sigio_ops;
    begin();
    int set = epoll_create1(EPOLL_CLOEXEC);
    CHECK_EQUAL(add(set, 1, PR_READABLE), -EPERM);
    CHECK_EQUAL(ops->remove(demux, set), -ENOENT);
    close(set);
    end();
}

static void a_full_queue_of_signals_loses_nothing(void)
{
    enum { PAIRS = 50 };
    int pairs[PAIRS][2];
    struct rlimit limit, few = {.rlim_cur = 5, .rlim_max = 5};
    REQUIRE_EQUAL(getrlimit(RLIMIT_SIGPENDING, &limit), 0);
    few.rlim_max = limit.rlim_max;
    ops = &pr_demux_sigio_ops;
    begin();
    for (int i = 0; i < PAIRS; i++) {
        open_pair(pairs[i]);
        REQUIRE_EQUAL(add(pairs[i][0], 1, PR_READABLE), 0);
    }
    check_no_event();
    REQUIRE_EQUAL(setrlimit(RLIMIT_SIGPENDING, &few), 0);
    for (int i = 0; i < PAIRS; i++)
        send_byte(pairs[i][1]);
    CHECK_EQUAL(wait_for(EVENTS_MAX, PATIENCE_NS), PAIRS);
    REQUIRE_EQUAL(setrlimit(RLIMIT_SIGPENDING, &limit), 0);
    for (int i = 0; i < PAIRS; i++) {
        CHECK_EQUAL(ops->remove(demux, pairs[i][0]), 0);
        close_pair(pairs[i]);
    }
    end();
}

int main(void)
{
    static const struct pr_demux_ops *const all[] = {
        &pr_demux_select_ops, &pr_demux_poll_ops,  &pr_demux_epoll_ops,
        &pr_demux_uring_ops,  &pr_demux_sigio_ops,
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        int failures = check_results.failures;
        ops = all[i];
        check_results.test = ops->name;
        int error = pr_demux_new(ops, &demux);
        if (error < 0) {
            fprintf(stderr, "skipped: %s: %s\n", ops->name, strerror(-error));
            continue;
        }
        end();
        test_demultiplexer();
        if (check_results.failures > failures)
            fprintf(stderr, "  (with %s)\n", ops->name);
    }
    RUN(there_are_five_demultiplexers);
    RUN(select_refuses_a_number_beyond_its_set);
    RUN(select_reports_what_was_closed_under_it);
    RUN(an_edge_is_reported_once);
    RUN(an_exclusive_interest_can_be_modified);
    RUN(sigio_refuses_what_cannot_signal);
    RUN(a_full_queue_of_signals_loses_nothing);
    return check_status();
}
