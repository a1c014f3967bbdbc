/*
 * A completion queue: what a worker of a proactor has to handle.  The main thread puts operations
 * in, one thread takes them all out at once.  It has no bound of its own: there are as many
 * operations as connections have under way, and each brings its own link.
 */
#ifndef PYREACTOR_COMPLETION_QUEUE_H
#define PYREACTOR_COMPLETION_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/aio.h"
#include "pyreactor/parker.h"

struct pr_completion_queue {
    _Atomic(struct pr_aio *) newest;
    atomic_bool closed;
    struct pr_parker parker;
    _Atomic(uint32_t) load; /* put in, and not handled yet */
    bool touched;           /* its worker is to be woken; the main thread's */
};

/* Makes an empty queue.  One thread, before any other uses it. */
void pr_completion_queue_init(struct pr_completion_queue *queue);

/* Puts an operation in, without waking the worker.  Any thread. */
void pr_completion_queue_put(struct pr_completion_queue *queue, struct pr_aio *aio);

/* Wakes the worker where it sleeps.  Any thread. */
void pr_completion_queue_wake(struct pr_completion_queue *queue);

/*
 * Takes what is there, oldest first, linked by `next`, and sleeps until `deadline_ns` (on the clock
 * of pr_now_ns(); 0: not at all; INT64_MAX: for ever) where nothing is.  Returns 0 with the first,
 * -ESHUTDOWN where it is closed and empty, -ETIMEDOUT or -EINTR.  One thread at a time.
 */
int pr_completion_queue_take(struct pr_completion_queue *queue, struct pr_aio **first,
                             int64_t deadline_ns);

/* Says that one that was taken is handled.  The thread that took it. */
static inline void pr_completion_queue_handled(struct pr_completion_queue *queue)
{
    atomic_fetch_sub_explicit(&queue->load, 1, memory_order_relaxed);
}

/* Makes taking fail once it is empty.  Any thread. */
void pr_completion_queue_close(struct pr_completion_queue *queue);

#endif
