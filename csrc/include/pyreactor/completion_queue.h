/*
 * Completion queues: what the workers of a proactor have to handle.  The main thread chooses a
 * worker for each result and puts it into that one's queue.  They have no bound of their own: there
 * are as many operations as connections have under way, and each brings its own link.
 *
 * The choice holds while the chosen worker is free.  Where it handles something else, or has
 * several to begin with, what waits in its queue is for whoever has nothing to do: no result waits
 * behind another while a worker sleeps.  But with PR_BY_CONNECTION each waits for its own worker,
 * whose thread is what was asked for.
 *
 * Results of one strand are handled one after the other all the same, since no more than one of
 * them is in a queue, or being handled; the others wait in the strand.
 */
#ifndef PYREACTOR_COMPLETION_QUEUE_H
#define PYREACTOR_COMPLETION_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/aio.h"
#include "pyreactor/aio_fifo.h"
#include "pyreactor/parker.h"

enum pr_worker_policy {
    PR_ROUND_ROBIN,
    PR_LEAST_LOADED,  /* the fewest results that wait or are being handled */
    PR_BY_CONNECTION, /* always the same one for a descriptor */
};

/* Operations whose results are to be handled one after the other, in one thread at a time. */
struct pr_strand {
    _Atomic(unsigned) delivered; /* and not handled yet */
    _Atomic(unsigned) worker;    /* which had the last */
    struct pr_aio_fifo waiting;  /* its owner is who handles one of them */
};

/* One worker's. */
struct pr_completion_queue {
    struct pr_aio_fifo fifo;
    struct pr_parker parker;
    _Atomic(uint32_t) load; /* chosen for it, or being handled by it */
    atomic_bool busy;       /* its worker handles results, and has not found the end of them */
    bool touched;           /* its worker is to be woken; the main thread's */
    bool brought;           /* there may be something that sleepers have not seen; its worker's */
};

struct pr_completion_queues {
    struct pr_completion_queue *each; /* owned */
    unsigned count;
    enum pr_worker_policy policy;
    unsigned next;                /* in turn; the main thread's */
    _Atomic(unsigned) idle;       /* workers that sleep, or are about to */
    _Atomic(uint64_t) taken_over; /* results, from one worker to another */
    atomic_bool closed;
};

/* Makes empty queues for `count` workers.  Returns 0 or -ENOMEM.  One thread, before any other. */
int pr_completion_queues_init(struct pr_completion_queues *queues, unsigned count,
                              enum pr_worker_policy policy);

/* Frees them.  One thread, after all others. */
void pr_completion_queues_deinit(struct pr_completion_queues *queues);

/* Chooses a worker for a result, without waking it.  Main thread. */
void pr_completion_queues_put(struct pr_completion_queues *queues, struct pr_aio *aio);

/* Wakes who has been given something since the last time, or another where that one is busy.  Main
 * thread. */
void pr_completion_queues_wake(struct pr_completion_queues *queues);

/*
 * Takes the next result for `worker`, whose number it notes in it, and sleeps until `deadline_ns`
 * (on the clock of pr_now_ns(); 0: not at all; INT64_MAX: for ever) where there is none.  Returns
 * 0, -ESHUTDOWN where they are closed and there is nothing for it, -ETIMEDOUT or -EINTR.
 * pr_completion_queues_end() follows before the next.  That worker's thread.
 */
int pr_completion_queues_take(struct pr_completion_queues *queues, unsigned worker,
                              struct pr_aio **aio, int64_t deadline_ns);

/* Says that what `worker` took is handled; `strand` is the operation's, which may be under way
 * again by now.  That worker's thread. */
void pr_completion_queues_end(struct pr_completion_queues *queues, unsigned worker,
                              struct pr_strand *strand);

/* Returns how many results wait for a worker, or are being handled.  Any thread. */
uint64_t pr_completion_queues_depth(struct pr_completion_queues *queues);

/* Makes taking fail once there is nothing.  Any thread, when nothing is put any more. */
void pr_completion_queues_close(struct pr_completion_queues *queues);

#endif
