/*
 * Operations in the order in which they were put in: any thread puts, one thread, the owner, takes
 * them one at a time, and others may take its place for all that there is.
 *
 * It is a stack that is taken whole and turned round, with one exchange for however many there are;
 * what has been turned round lies in `rest`.  Only the owner makes that something, and everybody
 * else only nothing: so there is no moment at which two threads have the same operation.
 */
#ifndef PYREACTOR_AIO_FIFO_H
#define PYREACTOR_AIO_FIFO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "pyreactor/aio.h"

struct pr_aio_fifo {
    _Atomic(struct pr_aio *) newest; /* newest first */
    _Atomic(struct pr_aio *) rest;   /* before all of these, oldest first */
};

/* Puts an operation in.  Any thread. */
static inline void pr_aio_fifo_put(struct pr_aio_fifo *fifo, struct pr_aio *aio)
{
    struct pr_aio *newest = atomic_load_explicit(&fifo->newest, memory_order_relaxed);
    do {
        aio->next = newest;
        /* Pairs with the exchange in pr_aio_fifo_take_all(): publishes the operation. */
    } while (!atomic_compare_exchange_weak(&fifo->newest, &newest, aio));
}

/* Whether there is something; a thread that takes may hold what it is about to leave there.  Any
 * thread. */
static inline bool pr_aio_fifo_has_some(struct pr_aio_fifo *fifo)
{
    return atomic_load(&fifo->rest) || atomic_load(&fifo->newest);
}

/* Takes all, oldest first, linked by `next`; NULL where there is none.  Any thread. */
static inline struct pr_aio *pr_aio_fifo_take_all(struct pr_aio_fifo *fifo)
{
    struct pr_aio *oldest = NULL;
    if (atomic_load_explicit(&fifo->rest, memory_order_relaxed))
        oldest = atomic_exchange(&fifo->rest, NULL);
    if (!oldest && atomic_load_explicit(&fifo->newest, memory_order_relaxed)) {
        struct pr_aio *newest = atomic_exchange(&fifo->newest, NULL);
        while (newest) {
            struct pr_aio *next = newest->next;
            newest->next = oldest;
            oldest = newest;
            newest = next;
        }
    }
    return oldest;
}

/* Has `rest`, which may be NULL, taken next of all.  The thread that owns it, when it found nothing
 * else to be taken, or has taken what comes before. */
static inline void pr_aio_fifo_leave(struct pr_aio_fifo *fifo, struct pr_aio *rest)
{
    if (rest)
        atomic_store(&fifo->rest, rest);
}

/* Takes the oldest; NULL where there is none.  The thread that owns it. */
static inline struct pr_aio *pr_aio_fifo_take(struct pr_aio_fifo *fifo)
{
    struct pr_aio *oldest = pr_aio_fifo_take_all(fifo);
    if (oldest)
        pr_aio_fifo_leave(fifo, oldest->next);
    return oldest;
}

#endif
