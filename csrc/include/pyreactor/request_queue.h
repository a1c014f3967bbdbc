/*
 * The request queue: how the units of a server pass requests to each other.  It is bounded: who
 * puts into a full queue waits, so that the slower side sets the pace.  It is closed once; what is
 * in it then can still be taken.
 *
 * There are several kinds behind one table of functions, chosen by name:
 *
 *     "mpmc"   lock-free ring, any number of producers and consumers
 *     "spsc"   lock-free ring for one producer and one consumer
 *     "mutex"  a lock and two conditions: what the others are compared with
 *
 * The functions in the table never sleep but for the two that are named wait_; from these the
 * blocking calls below are made, alike for every kind.
 *
 * All functions: any thread, unless they say otherwise; of a queue of kind "spsc", those that put
 * one thread, and those that get one thread.
 */
#ifndef PYREACTOR_REQUEST_QUEUE_H
#define PYREACTOR_REQUEST_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/bell.h"
#include "pyreactor/request.h"

struct pr_request_queue;

struct pr_request_queue_stats {
    uint64_t puts;
    uint64_t gets;
    uint64_t depth_max;  /* the most requests that waited at one time */
    uint64_t put_sleeps; /* how often a thread went to sleep because the queue was full */
    uint64_t get_sleeps; /* ... because it was empty */
    uint64_t put_wakes;  /* how often sleeping producers were woken, one or several at once */
    uint64_t get_wakes;  /* ... consumers */
};

/* The two sides that a bell can be armed for. */
enum pr_queue_side {
    PR_QUEUE_PRODUCERS, /* rings when there is room, or the queue was closed */
    PR_QUEUE_CONSUMERS, /* rings when there is a request, or the queue was closed */
};

struct pr_request_queue_ops {
    const char *name;

    /* Makes an empty queue.  Returns 0, -EINVAL or -ENOMEM.  One thread. */
    int (*create)(struct pr_request_queue **queue, size_t capacity, int64_t spin_ns);

    /* Releases the requests that are left, and frees the queue.  One thread, after all others. */
    void (*free)(struct pr_request_queue *queue);

    /*
     * Puts the first of `count` requests, as many as there is room for, and wakes as many
     * consumers.  Returns how many, -EAGAIN where there is no room, or -ESHUTDOWN.
     */
    int (*try_put)(struct pr_request_queue *queue, const struct pr_request *requests, size_t count);

    /*
     * Takes up to `max` requests, oldest first, and wakes as many producers.  Returns how many,
     * -EAGAIN where there are none, or -ESHUTDOWN where there are none and the queue was closed.
     */
    int (*try_get)(struct pr_request_queue *queue, struct pr_request *requests, size_t max);

    /*
     * Wait until there is room, until there is a request, or until the queue is closed.  Return 0,
     * -ETIMEDOUT, -EINTR where a signal handler ran or may have run, for the caller to call again,
     * or -EUSERS where too many sleep already.
     * After 0 the caller tries: it may have been woken in the place of another.
     */
    int (*wait_room)(struct pr_request_queue *queue, int64_t deadline_ns);
    int (*wait_request)(struct pr_request_queue *queue, int64_t deadline_ns);

    /* Makes puts fail from here on, and wakes everybody.  Does nothing the second time. */
    void (*close)(struct pr_request_queue *queue);

    bool (*is_closed)(struct pr_request_queue *queue);

    /* How many requests wait; while others put and get, how many did a moment ago. */
    size_t (*depth)(struct pr_request_queue *queue);

    /* The bells of one side.  After arming one, look at depth() and is_closed() again. */
    struct pr_bell_list *(*bells)(struct pr_request_queue *queue, enum pr_queue_side side);

    /*
     * Wakes one of those who wait on `side`: for a thread that was woken, or a loop whose bell
     * rang, and that does not take what it was woken for.
     */
    void (*pass_on)(struct pr_request_queue *queue, enum pr_queue_side side);

    void (*read_stats)(struct pr_request_queue *queue, struct pr_request_queue_stats *stats);

    /*
     * Calls `visit` for each request in the queue; a result other than 0 ends it and is returned.
     * Only while no other thread puts or gets.
     */
    int (*visit)(struct pr_request_queue *queue,
                 int (*visit)(struct pr_request *request, void *argument), void *argument);
};

/* What every kind begins with. */
struct pr_request_queue {
    const struct pr_request_queue_ops *ops;
    size_t capacity; /* as many requests as it holds */
};

extern const struct pr_request_queue_ops pr_mpmc_queue_ops;
extern const struct pr_request_queue_ops pr_spsc_queue_ops;
extern const struct pr_request_queue_ops pr_mutex_queue_ops;

/*
 * Makes a queue of a kind, for at least `capacity` requests; it is rounded up to a power of two.
 * `spin_ns` is how long a thread looks again and again before it sleeps.  Returns 0, -ENOTSUP where
 * there is no such kind, -EINVAL where the capacity is 0 or too large, or -ENOMEM.
 */
int pr_request_queue_new(struct pr_request_queue **queue, const char *kind, size_t capacity,
                         int64_t spin_ns);

/*
 * Puts all of `count` requests, waiting for room as long as it takes, `deadline_ns` on the clock of
 * pr_now_ns() at most; INT64_MAX is for ever.  Returns how many were put: fewer than `count` only
 * where the wait ended or the queue was closed in between.  Where none was: -ESHUTDOWN, -ETIMEDOUT,
 * -EINTR (see wait_room) or -EUSERS.
 */
int pr_request_queue_put(struct pr_request_queue *queue, const struct pr_request *requests,
                         size_t count, int64_t deadline_ns);

/*
 * Takes up to `max` requests, waiting for the first as pr_request_queue_put() does for room, and
 * for no other.  Returns how many, or -ESHUTDOWN, -ETIMEDOUT, -EINTR or -EUSERS.
 */
int pr_request_queue_get(struct pr_request_queue *queue, struct pr_request *requests, size_t max,
                         int64_t deadline_ns);

#endif
