/*
 * What the loop counts, always: figures that one thread, the loop's, writes and any thread may
 * read. Plain loads and stores (relaxed atomics of one writer), so that counting costs an addition;
 * each figure is right, but two of them need not be of one instant.
 *
 * Whoever moves bytes on a descriptor of the loop counts them here, at the place of the system
 * call: stream.c and datagram.c do; a new kind of transport adds its own to `bytes_received` and
 * `bytes_sent`.
 */
#ifndef PYREACTOR_STATS_H
#define PYREACTOR_STATS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/clock.h"

typedef _Atomic(uint64_t) pr_counter;

/* Adds `amount`.  Loop thread only: there is one writer, so no locked instruction is needed. */
static inline void pr_counter_add(pr_counter *counter, uint64_t amount)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + amount, memory_order_relaxed);
}

/* Makes it `value`.  Loop thread only. */
static inline void pr_counter_set(pr_counter *counter, uint64_t value)
{
    atomic_store_explicit(counter, value, memory_order_relaxed);
}

/* Makes it `value` where that is more.  Loop thread only. */
static inline void pr_counter_raise(pr_counter *counter, uint64_t value)
{
    if (value > atomic_load_explicit(counter, memory_order_relaxed))
        atomic_store_explicit(counter, value, memory_order_relaxed);
}

/* Its value.  Any thread. */
static inline uint64_t pr_counter_read(const pr_counter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/*
 * A stopwatch: time that has passed while it ran, over all its runs.  One word says both whether it
 * runs and how far it is, so that any thread reads it whole, also in the middle of a run: the total
 * while it stands, and (total - start), which is less than 0, while it runs.
 */
typedef _Atomic(int64_t) pr_stopwatch;

/* What a stopwatch in this state shows at `now_ns`, in ns.  Any thread. */
static inline int64_t pr_stopwatch_shows(int64_t state, int64_t now_ns)
{
    return state < 0 ? now_ns + state : state;
}

/* Lets it run from `now_ns` on.  It must stand.  Loop thread only. */
static inline void pr_stopwatch_start(pr_stopwatch *stopwatch, int64_t now_ns)
{
    int64_t total_ns = atomic_load_explicit(stopwatch, memory_order_relaxed);
    atomic_store_explicit(stopwatch, total_ns - now_ns, memory_order_release);
}

/* Stops it at `now_ns`.  It must run.  Loop thread only. */
static inline void pr_stopwatch_stop(pr_stopwatch *stopwatch, int64_t now_ns)
{
    int64_t state = atomic_load_explicit(stopwatch, memory_order_relaxed);
    atomic_store_explicit(stopwatch, now_ns + state, memory_order_release);
}

/*
 * A histogram of durations: the count at index i is of those of 2^i ns or more, but less than
 * 2^(i+1); the last one has no upper end (it begins at 9 minutes), the first none below.
 */
#define PR_HISTOGRAM_BUCKETS 40

struct pr_histogram {
    pr_counter buckets[PR_HISTOGRAM_BUCKETS];
};

/* Counts one duration.  Loop thread only. */
static inline void pr_histogram_add(struct pr_histogram *histogram, uint64_t duration_ns)
{
    int index = 63 - __builtin_clzll(duration_ns | 1);
    pr_counter_add(
        &histogram->buckets[index < PR_HISTOGRAM_BUCKETS ? index : PR_HISTOGRAM_BUCKETS - 1], 1);
}

struct pr_loop_stats {
    pr_counter callbacks; /* run from the ready queue, timers' included */
    pr_counter posts;     /* callbacks from other threads */
    pr_counter wakeups;   /* sleeps that another thread has ended */

    pr_counter polls;        /* waits that reached the kernel */
    pr_counter empty_polls;  /* those that found nothing */
    pr_counter events;       /* that they found */
    pr_counter stale_events; /* of descriptors that nobody watches any more */

    pr_counter ready;     /* callbacks that the latest turn found ready or due */
    pr_counter ready_max; /* the most that a turn has found */

    pr_stopwatch running;         /* between a first pr_loop_prepare() and pr_loop_end_run() */
    pr_stopwatch idle;            /* of that, asleep in the kernel */
    pr_counter turn_max_ns;       /* the longest turn; a turn's sleep is no part of it */
    struct pr_histogram turns_ns; /* how long turns took: as many as there were */

    pr_counter timers_started;
    pr_counter timers_fired;
    pr_counter timers_cancelled;
    struct pr_histogram timer_lateness_ns; /* from the deadline to the turn that found it passed */

    pr_counter accepted; /* connections */
    pr_counter bytes_received;
    pr_counter bytes_sent;
};

/*
 * How long the loop has been busy and idle, up to now, whatever it is doing.  Any thread; another
 * than the loop's may see either go back by the moment in which the loop has read the clock but not
 * yet moved its stopwatch.
 */
static inline void pr_stats_read_times(const struct pr_loop_stats *stats, int64_t *busy_ns,
                                       int64_t *idle_ns)
{
    int64_t idle, running, now_ns;
    do { /* again where the loop has changed one meanwhile: all three must be of one instant */
        idle = atomic_load(&stats->idle);
        running = atomic_load(&stats->running);
        now_ns = pr_now_ns();
    } while (idle != atomic_load(&stats->idle) || running != atomic_load(&stats->running));
    *idle_ns = pr_stopwatch_shows(idle, now_ns);
    *busy_ns = pr_stopwatch_shows(running, now_ns) - *idle_ns;
}

#endif
