/*
 * What the loop counts: counters, stopwatches, histograms, and which event moves which.
 */
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/loop.h"
#include "pyreactor/stats.h"

static struct pr_loop loop;
static struct fake_backend fake;

static void begin(void)
{
    REQUIRE_EQUAL(pr_loop_init(&loop, "auto"), 0);
}

static void begin_with_fake(void)
{
    begin();
    fake_backend_install(&fake, &loop);
    fake_backend_forget(&fake);
}

static void end(void)
{
    pr_loop_deinit(&loop);
}

static uint64_t sum(const struct pr_histogram *histogram)
{
    uint64_t total = 0;
    for (int i = 0; i < PR_HISTOGRAM_BUCKETS; i++)
        total += pr_counter_read(&histogram->buckets[i]);
    return total;
}

static int64_t busy_ns(void)
{
    int64_t busy, idle;
    pr_stats_read_times(&loop.stats, &busy, &idle);
    return busy;
}

static int64_t idle_ns(void)
{
    int64_t busy, idle;
    pr_stats_read_times(&loop.stats, &busy, &idle);
    return idle;
}

static int do_nothing(struct pr_callback *callback)
{
    (void)callback;
    return 0;
}

static int schedule_again(struct pr_callback *callback)
{
    return pr_loop_call_soon(&loop, callback);
}

static int stop_the_turn(struct pr_callback *callback)
{
    (void)callback;
    return 1;
}

static void spend(int64_t duration_ns)
{
    int64_t end_ns = pr_now_ns() + duration_ns;
    while (pr_now_ns() < end_ns)
        ;
}

static int spend_a_millisecond(struct pr_callback *callback)
{
    (void)callback;
    spend(PR_NS_PER_MS);
    return 0;
}

/* --- The parts -------------------------------------------------------------------------------- */

static void a_counter_adds_and_keeps_its_highest(void)
{
    pr_counter counter = 0;
    pr_counter_add(&counter, 3);
    pr_counter_add(&counter, 4);
    CHECK_EQUAL(pr_counter_read(&counter), 7);
    pr_counter_raise(&counter, 5);
    CHECK_EQUAL(pr_counter_read(&counter), 7);
    pr_counter_raise(&counter, 9);
    CHECK_EQUAL(pr_counter_read(&counter), 9);
    pr_counter_set(&counter, 2);
    CHECK_EQUAL(pr_counter_read(&counter), 2);
}

static void a_stopwatch_adds_up_its_runs_and_can_be_read_within_one(void)
{
    pr_stopwatch stopwatch = 0;
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 100), 0);
    pr_stopwatch_start(&stopwatch, 100);
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 100), 0);
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 130), 30);
    pr_stopwatch_stop(&stopwatch, 150);
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 1000), 50);
    pr_stopwatch_start(&stopwatch, 2000);
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 2001), 51);
    pr_stopwatch_stop(&stopwatch, 2010);
    CHECK_EQUAL(pr_stopwatch_shows(stopwatch, 5000), 60);
}

static void a_duration_is_counted_at_its_power_of_two(void)
{
    static const struct {
        uint64_t duration_ns;
        int index;
    } cases[] = {
        {0, 0},          {1, 0},          {2, 1},
        {3, 1},          {4, 2},          {1023, 9},
        {1024, 10},      {1025, 10},      {(1LL << 39) - 1, 38},
        {1LL << 39, 39}, {1LL << 40, 39}, {UINT64_MAX, 39},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pr_histogram histogram = {0};
        pr_histogram_add(&histogram, cases[i].duration_ns);
        CHECK_EQUAL(pr_counter_read(&histogram.buckets[cases[i].index]), 1);
        CHECK_EQUAL(sum(&histogram), 1);
    }
}

/* --- The loop --------------------------------------------------------------------------------- */

static void a_new_loop_has_counted_nothing(void)
{
    begin();
    CHECK_EQUAL(sum(&loop.stats.turns_ns), 0);
    CHECK_EQUAL(busy_ns(), 0);
    CHECK_EQUAL(idle_ns(), 0);
    end();
}

static void a_turn_is_counted_when_it_ends(void)
{
    begin_with_fake();
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
        CHECK_EQUAL(sum(&loop.stats.turns_ns), i);
    }
    pr_loop_end_run(&loop);
    CHECK_EQUAL(sum(&loop.stats.turns_ns), 3);
    pr_loop_end_run(&loop); /* once is enough */
    CHECK_EQUAL(sum(&loop.stats.turns_ns), 3);
    CHECK_EQUAL(pr_counter_read(&loop.stats.polls), 3);
    CHECK_EQUAL(pr_counter_read(&loop.stats.empty_polls), 3);
    end();
}

static void a_turn_that_takes_long_is_counted_as_long(void)
{
    struct pr_callback callback = {.run = spend_a_millisecond};
    begin();
    REQUIRE_EQUAL(pr_loop_call_soon(&loop, &callback), 0);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    pr_loop_end_run(&loop);
    CHECK_AT_LEAST(pr_counter_read(&loop.stats.turn_max_ns), PR_NS_PER_MS);
    uint64_t shorter = 0;
    for (int i = 0; i < 19; i++) /* 2^19 ns is about half of it */
        shorter += pr_counter_read(&loop.stats.turns_ns.buckets[i]);
    CHECK_EQUAL(shorter, 0);
    CHECK_AT_LEAST(busy_ns(), PR_NS_PER_MS);
    end();
}

static void sleeping_is_idle_and_no_part_of_the_turn(void)
{
    begin();
    CHECK_EQUAL(pr_loop_run_once(&loop, 20 * PR_NS_PER_MS), 0);
    pr_loop_end_run(&loop);
    CHECK_AT_LEAST(idle_ns(), 20 * PR_NS_PER_MS);
    CHECK_EQUAL(sum(&loop.stats.turns_ns), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.turn_max_ns), busy_ns());
    end();
}

static void time_between_two_runs_is_neither_busy_nor_idle(void)
{
    begin();
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    pr_loop_end_run(&loop);
    int64_t busy = busy_ns(), idle = idle_ns();
    spend(PR_NS_PER_MS);
    CHECK_EQUAL(busy_ns(), busy);
    CHECK_EQUAL(idle_ns(), idle);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    pr_loop_end_run(&loop);
    CHECK_EQUAL(sum(&loop.stats.turns_ns), 2);
    end();
}

static void callbacks_are_counted_with_the_depth_that_their_turn_found(void)
{
    struct pr_callback callbacks[3] = {
        {.run = do_nothing}, {.run = schedule_again}, {.run = do_nothing}};
    begin_with_fake();
    for (int i = 0; i < 3; i++)
        REQUIRE_EQUAL(pr_loop_call_soon(&loop, &callbacks[i]), 0);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(pr_counter_read(&loop.stats.ready), 3);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(pr_counter_read(&loop.stats.callbacks), 4);
    CHECK_EQUAL(pr_counter_read(&loop.stats.ready), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.ready_max), 3);
    end();
}

static void a_callback_that_ends_the_turn_is_counted_and_the_rest_not_yet(void)
{
    struct pr_callback callbacks[2] = {{.run = stop_the_turn}, {.run = do_nothing}};
    begin_with_fake();
    for (int i = 0; i < 2; i++)
        REQUIRE_EQUAL(pr_loop_call_soon(&loop, &callbacks[i]), 0);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.callbacks), 1);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(pr_counter_read(&loop.stats.callbacks), 2);
    end();
}

static void timers_are_counted_by_their_end(void)
{
    struct pr_timer timers[4];
    begin_with_fake();
    int64_t now_ns = pr_now_ns();
    for (int i = 0; i < 4; i++) {
        timers[i] = (struct pr_timer){.callback.run = do_nothing, .heap_index = PR_TIMER_IDLE};
        timers[i].deadline_ns = now_ns + (i ? 1000 * PR_NS_PER_SECOND : -PR_NS_PER_SECOND);
        REQUIRE_EQUAL(pr_loop_start_timer(&loop, &timers[i]), 0);
    }
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK(pr_loop_cancel_timer(&loop, &timers[1]));
    CHECK(!pr_loop_cancel_timer(&loop, &timers[1]));
    CHECK(!pr_loop_cancel_timer(&loop, &timers[0])); /* it has fired */
    CHECK_EQUAL(pr_counter_read(&loop.stats.timers_started), 4);
    CHECK_EQUAL(pr_counter_read(&loop.stats.timers_fired), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.timers_cancelled), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.timer_lateness_ns.buckets[29]) +
                    pr_counter_read(&loop.stats.timer_lateness_ns.buckets[30]),
                1); /* a second is 2^29.9 ns */
    CHECK_EQUAL(sum(&loop.stats.timer_lateness_ns), 1);
    CHECK_SAME(pr_loop_take_timer(&loop), &timers[2]);
    CHECK_SAME(pr_loop_take_timer(&loop), &timers[3]);
    CHECK_SAME(pr_loop_take_timer(&loop), NULL);
    CHECK_EQUAL(pr_counter_read(&loop.stats.timers_cancelled), 3);
    end();
}

static void *post(void *argument)
{
    pr_loop_post(&loop, argument);
    return NULL;
}

static void *wait_and_post(void *argument)
{
    while (atomic_load(&loop.wakeup.state) != PR_SLEEPING)
        ;
    return post(argument);
}

static void posts_and_the_sleeps_they_end_are_counted(void)
{
    struct pr_callback callbacks[2] = {{.run = do_nothing}, {.run = do_nothing}};
    pthread_t thread;
    begin();
    REQUIRE_EQUAL(pthread_create(&thread, NULL, post, &callbacks[0]), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(pr_counter_read(&loop.stats.posts), 1);
    CHECK_EQUAL(pr_counter_read(&loop.stats.wakeups), 0);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, wait_and_post, &callbacks[1]), 0);
    CHECK_EQUAL(pr_loop_run_once(&loop, -1), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(pr_loop_run_once(&loop, 0), 0);
    CHECK_EQUAL(pr_counter_read(&loop.stats.posts), 2);
    CHECK_EQUAL(pr_counter_read(&loop.stats.wakeups), 1);
    end();
}

/* --- Reading from another thread -------------------------------------------------------------- */

#define READINGS 20000

static atomic_bool reading;

static void *read_on_and_on(void *argument)
{
    int *disorders = argument;
    for (int i = 0; i < READINGS; i++) {
        int64_t busy, idle;
        pr_stats_read_times(&loop.stats, &busy, &idle);
        if (busy < 0 || idle < 0)
            ++*disorders;
        uint64_t fired = pr_counter_read(&loop.stats.timers_fired);
        if (fired > pr_counter_read(&loop.stats.timers_started))
            ++*disorders;
    }
    atomic_store(&reading, false);
    return NULL;
}

static void figures_are_whole_for_a_thread_that_reads_along(void)
{
    pthread_t thread;
    int disorders = 0;
    struct pr_timer timer = {.callback.run = do_nothing, .heap_index = PR_TIMER_IDLE};
    begin();
    atomic_store(&reading, true);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, read_on_and_on, &disorders), 0);
    while (atomic_load(&reading)) {
        timer.deadline_ns = pr_now_ns() + 5000;
        REQUIRE_EQUAL(pr_loop_start_timer(&loop, &timer), 0);
        while (timer.heap_index != PR_TIMER_IDLE)
            REQUIRE_EQUAL(pr_loop_run_once(&loop, -1), 0);
        pr_loop_end_run(&loop);
    }
    pthread_join(thread, NULL);
    CHECK_EQUAL(disorders, 0);
    end();
}

int main(void)
{
    RUN(a_counter_adds_and_keeps_its_highest);
    RUN(a_stopwatch_adds_up_its_runs_and_can_be_read_within_one);
    RUN(a_duration_is_counted_at_its_power_of_two);
    RUN(a_new_loop_has_counted_nothing);
    RUN(a_turn_is_counted_when_it_ends);
    RUN(a_turn_that_takes_long_is_counted_as_long);
    RUN(sleeping_is_idle_and_no_part_of_the_turn);
    RUN(time_between_two_runs_is_neither_busy_nor_idle);
    RUN(callbacks_are_counted_with_the_depth_that_their_turn_found);
    RUN(a_callback_that_ends_the_turn_is_counted_and_the_rest_not_yet);
    RUN(timers_are_counted_by_their_end);
    RUN(posts_and_the_sleeps_they_end_are_counted);
    RUN(figures_are_whole_for_a_thread_that_reads_along);
    return check_status();
}
