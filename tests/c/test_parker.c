/*
 * The parker: as many threads wake as were asked to, without a system call where nobody sleeps, and
 * no wake-up is lost.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/parker.h"

#define SLEEPERS 4
#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long asleep a wake-up was lost */

static struct pr_parker parker;
static _Atomic(int) things; /* what the threads wait for */
static _Atomic(int) returned;

static bool look_for_things(void *argument)
{
    (void)argument;
    return atomic_load(&things) > 0;
}

static void bring(int count)
{
    atomic_fetch_add(&things, count);
}

static bool take(void)
{
    int count = atomic_load(&things);
    while (count > 0)
        if (atomic_compare_exchange_weak(&things, &count, count - 1))
            return true;
    return false;
}

static uint32_t sleepers(void)
{
    return atomic_load(&parker.state) / PR_PARKER_SLEEPER;
}

static void wait_for_sleepers(uint32_t count)
{
    int64_t end_ns = pr_now_ns() + PATIENCE_NS;
    while (sleepers() != count && pr_now_ns() < end_ns)
        sched_yield();
    REQUIRE_EQUAL(sleepers(), count);
}

static void begin(int64_t spin_ns)
{
    pr_parker_init(&parker, spin_ns);
    atomic_store(&things, 0);
    atomic_store(&returned, 0);
}

static void *sleep_until_taken(void *argument)
{
    (void)argument;
    do
        REQUIRE_EQUAL(pr_park(&parker, look_for_things, NULL, pr_now_ns() + PATIENCE_NS), 0);
    while (!take());
    atomic_fetch_add(&returned, 1);
    return NULL;
}

static void start(pthread_t *threads, int count, void *(*function)(void *))
{
    for (int i = 0; i < count; i++)
        REQUIRE_EQUAL(pthread_create(&threads[i], NULL, function, NULL), 0);
}

static void join(pthread_t *threads, int count)
{
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void waking_nobody_makes_no_system_call(void)
{
    begin(0);
    bring(1);
    CHECK_EQUAL(pr_unpark(&parker, 1), 0);
    CHECK_EQUAL(pr_unpark(&parker, PR_UNPARK_ALL), 0);
    CHECK_EQUAL(atomic_load(&parker.wakes), 0);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
}

static void what_is_there_already_is_not_slept_for(void)
{
    begin(0);
    bring(1);
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, INT64_MAX), 0);
    CHECK_EQUAL(atomic_load(&parker.sleeps), 0);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
}

static void a_wait_ends_at_its_deadline_and_not_before(void)
{
    begin(0);
    int64_t deadline_ns = pr_now_ns() + 20 * PR_NS_PER_MS;
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, deadline_ns), -ETIMEDOUT);
    CHECK_AT_LEAST(pr_now_ns(), deadline_ns);
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, 0), -ETIMEDOUT);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
}

static void one_thing_wakes_one_of_many(void)
{
    pthread_t threads[SLEEPERS];
    begin(0);
    start(threads, SLEEPERS, sleep_until_taken);
    for (uint32_t left = SLEEPERS; left > 0; left--) {
        wait_for_sleepers(left);
        bring(1);
        CHECK_EQUAL(pr_unpark(&parker, 1), 1);
        CHECK_EQUAL(sleepers(), left - 1);
        while (atomic_load(&returned) != (int)(SLEEPERS - left + 1))
            sched_yield();
        CHECK_EQUAL(atomic_load(&parker.state), (left - 1) * PR_PARKER_SLEEPER);
    }
    CHECK_EQUAL(atomic_load(&parker.wakes), SLEEPERS);
    join(threads, SLEEPERS);
}

static void many_are_woken_by_one_system_call(void)
{
    pthread_t threads[SLEEPERS];
    begin(0);
    start(threads, SLEEPERS, sleep_until_taken);
    wait_for_sleepers(SLEEPERS);
    bring(SLEEPERS);
    CHECK_EQUAL(pr_unpark(&parker, PR_UNPARK_ALL), SLEEPERS);
    join(threads, SLEEPERS);
    CHECK_EQUAL(atomic_load(&parker.wakes), 1);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
}

static void a_thread_that_was_woken_is_not_woken_again(void)
{
    pthread_t thread;
    begin(0);
    start(&thread, 1, sleep_until_taken);
    wait_for_sleepers(1);
    bring(2);
    CHECK_EQUAL(pr_unpark(&parker, 1), 1);
    CHECK_EQUAL(pr_unpark(&parker, 1), 0);
    join(&thread, 1);
    CHECK_EQUAL(atomic_load(&parker.wakes), 1);
}

static void a_wake_up_for_nothing_goes_back_to_sleep(void)
{
    pthread_t thread;
    begin(0);
    start(&thread, 1, sleep_until_taken);
    wait_for_sleepers(1);
    CHECK_EQUAL(pr_unpark(&parker, 1), 1);
    wait_for_sleepers(1);
    CHECK_EQUAL(atomic_load(&returned), 0);
    bring(1);
    CHECK_EQUAL(pr_unpark(&parker, 1), 1);
    join(&thread, 1);
}

static void spinning_finds_it_without_sleeping(void)
{
    pthread_t thread;
    begin(PATIENCE_NS);
    start(&thread, 1, sleep_until_taken);
    sched_yield();
    bring(1);
    CHECK_EQUAL(pr_unpark(&parker, 1), 0);
    join(&thread, 1);
    CHECK_EQUAL(atomic_load(&parker.sleeps), 0);
    begin(1);
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, 0), -ETIMEDOUT);
    CHECK_EQUAL(atomic_load(&parker.sleeps), 1);
}

static void do_nothing(int signal_number)
{
    (void)signal_number;
}

static void *sleep_until_interrupted(void *argument)
{
    (void)argument;
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, pr_now_ns() + PATIENCE_NS), -EINTR);
    atomic_store(&returned, 1);
    return NULL;
}

static void a_signal_ends_the_sleep(void)
{
    struct sigaction action = {.sa_handler = do_nothing}, old_action;
    pthread_t thread;
    begin(0);
    REQUIRE_EQUAL(sigaction(SIGUSR1, &action, &old_action), 0);
    start(&thread, 1, sleep_until_interrupted);
    wait_for_sleepers(1);
    while (!atomic_load(&returned)) { /* the first may come between the count and the sleep */
        pthread_kill(thread, SIGUSR1);
        sched_yield();
    }
    join(&thread, 1);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
    sigaction(SIGUSR1, &old_action, NULL);
}

static void there_is_a_bound_to_the_sleepers(void)
{
    begin(0);
    atomic_store(&parker.state, PR_PARKER_SLEEPERS_MAX * PR_PARKER_SLEEPER);
    CHECK_EQUAL(pr_park(&parker, look_for_things, NULL, 0), -EUSERS);
    CHECK_EQUAL(sleepers(), PR_PARKER_SLEEPERS_MAX);
}

#define ROUNDS 20000

static void *take_rounds(void *argument)
{
    (void)argument;
    for (int taken = 0; taken < ROUNDS;) {
        /* Short waits, so that some end at the same moment as something comes. */
        int64_t deadline_ns = pr_now_ns() + (taken % 3 ? PATIENCE_NS : 1000);
        int error = pr_park(&parker, look_for_things, NULL, deadline_ns);
        if (error < 0)
            REQUIRE(error == -ETIMEDOUT && taken % 3 == 0);
        else if (take())
            taken++;
    }
    return NULL;
}

static void *bring_rounds(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        bring(1);
        pr_unpark(&parker, 1);
        if (i % 16 == 0)
            sched_yield();
    }
    return NULL;
}

static void no_wake_up_is_lost_among_threads_and_deadlines(void)
{
    pthread_t takers[SLEEPERS], bringers[SLEEPERS];
    begin(0);
    start(takers, SLEEPERS, take_rounds);
    start(bringers, SLEEPERS, bring_rounds);
    join(bringers, SLEEPERS);
    join(takers, SLEEPERS);
    CHECK_EQUAL(atomic_load(&things), 0);
    CHECK_EQUAL(atomic_load(&parker.state), 0);
}

int main(void)
{
    RUN(waking_nobody_makes_no_system_call);
    RUN(what_is_there_already_is_not_slept_for);
    RUN(a_wait_ends_at_its_deadline_and_not_before);
    RUN(one_thing_wakes_one_of_many);
    RUN(many_are_woken_by_one_system_call);
    RUN(a_thread_that_was_woken_is_not_woken_again);
    RUN(a_wake_up_for_nothing_goes_back_to_sleep);
    RUN(spinning_finds_it_without_sleeping);
    RUN(a_signal_ends_the_sleep);
    RUN(there_is_a_bound_to_the_sleepers);
    RUN(no_wake_up_is_lost_among_threads_and_deadlines);
    return check_status();
}
