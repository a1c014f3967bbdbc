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
        /* Pairs with the exchange in pr_aio_fifo_take(): publishes the operation. */
    } while (!atomic_compare_exchange_weak(&fifo->newest, &newest, aio));
}

/* Whether there is something; a thread that takes may hold what it is about to leave in `rest`.
 * Any thread. */
static inline bool pr_aio_fifo_has_some(struct pr_aio_fifo *fifo)
{
    return atomic_load(&fifo->rest) || atomic_load(&fifo->newest);
}

/*
 * Takes the oldest operation, and leaves those behind it in `own`: the same one, or an empty one
 * for which others are taken.  NULL where there is none.  The thread that owns `own`.
 */
static inline struct pr_aio *pr_aio_fifo_take(struct pr_aio_fifo *fifo, struct pr_aio_fifo *own)
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
    if (oldest && oldest->next)
        atomic_store(&own->rest, oldest->next);
    return oldest;
}

#endif
