/*
 * A proactor: operations are started here, and handlers are told when they are done.  Its main
 * thread starts them, waits for what becomes of them, and chooses the worker that handles each
 * result.  Workers, and all other threads, hand it what they want to be started.
 *
 * Two engines do the work:
 *
 *     "io_uring"   the kernel reads, writes, accepts and connects by itself
 *     "readiness"  the main thread does so, when a demultiplexer says that it can
 *
 * An operation that was submitted ends once, with a result: handled by a worker, or, where it is
 * PR_SILENT and all went well, noted in `silence`.
 */
#ifndef PYREACTOR_PROACTOR_H
#define PYREACTOR_PROACTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/aio.h"
#include "pyreactor/buffer_group.h"
#include "pyreactor/completion_queue.h"
#include "pyreactor/demux.h"
#include "pyreactor/notifier.h"
#include "pyreactor/timer_heap.h"
#include "pyreactor/trace.h"
#include "pyreactor/wakeup.h"

struct pr_proactor;

struct pr_proactor_ops {
    const char *name;
    size_t size; /* of the structure that begins with a struct pr_proactor */

    /* Gets what it needs of the kernel.  Returns 0 or a negative errno.  One thread. */
    int (*init)(struct pr_proactor *proactor);

    /* Gives it back, when nothing is under way.  One thread, after all others. */
    void (*deinit)(struct pr_proactor *proactor);

    /* Sets an operation on its way to the main thread, or starts it.  Any thread. */
    void (*submit)(struct pr_proactor *proactor, struct pr_aio *aio);

    /* Starts an operation; pr_proactor_finish() follows, at once perhaps.  Main thread. */
    void (*start)(struct pr_proactor *proactor, struct pr_aio *aio);

    /* Cuts one short that was started; pr_proactor_finish() follows.  Main thread. */
    void (*cancel)(struct pr_proactor *proactor, struct pr_aio *aio);

    /* Waits up to `timeout_ns` (-1: no limit) for operations to be done, or to be woken.  Returns 0
     * or a negative errno, -EINTR where a signal ended the wait.  Main thread. */
    int (*wait)(struct pr_proactor *proactor, int64_t timeout_ns);

    /* Ends its wait where it sleeps.  Any thread. */
    void (*wake)(struct pr_proactor *proactor);

    /* Forgets a descriptor that is about to be closed; NULL: nothing to do.  Any thread. */
    void (*forget)(struct pr_proactor *proactor, int fd);
};

enum pr_proactor_stop {
    PR_GO_ON,
    PR_DRAIN, /* reads and accepts end, writes are written, results are handled */
    PR_ABORT, /* everything ends */
};

struct pr_proactor_stats {
    uint64_t submitted;
    uint64_t completed; /* the cancelled ones, too */
    uint64_t cancelled;
    uint64_t postponed; /* how often an operation had to wait for a buffer */
    uint64_t silent;    /* ended without a worker */
    uint64_t waits;
    uint64_t live; /* submitted, and not handled yet */
};

struct pr_proactor {
    const struct pr_proactor_ops *ops;
    struct pr_buffer_group buffers;
    struct pr_trace *trace;   /* borrowed; NULL: none */
    struct pr_demux *demux;   /* borrowed; of "readiness" */
    struct pr_wakeup *wakeup; /* the engine's */
    struct pr_notifier notifier;
    bool strict; /* one step at a time: a buffer is named when the read is started */

    struct pr_completion_queues workers;

    /* The main thread's: */
    struct pr_aio in_flight; /* list head: started, and not finished */
    struct pr_timer_heap timers;
    struct pr_aio *first_postponed, *last_postponed;
    size_t pool_wanters; /* of these, those that want a buffer of the pool */
    bool stop_seen, abort_seen;

    _Atomic(int) stop; /* enum pr_proactor_stop */
    _Atomic(uint64_t) live;
    _Atomic(uint64_t) submitted, completed, cancelled, postponements, silent, waits;
};

extern const struct pr_proactor_ops pr_proactor_uring_ops;
extern const struct pr_proactor_ops pr_proactor_readiness_ops;

/*
 * Makes a proactor over `pool` with `workers` completion queues; `demux` is for "readiness".
 * Returns 0 or a negative errno, -ENOSYS, -EPERM or -EINVAL where the kernel's io_uring is missing,
 * forbidden or too old (6.1).  One thread.
 */
int pr_proactor_new(struct pr_proactor **proactor, const struct pr_proactor_ops *ops,
                    struct pr_buffer_pool *pool, struct pr_demux *demux, struct pr_trace *trace,
                    unsigned workers, enum pr_worker_policy policy, bool strict);

/* Frees it; does nothing with NULL.  One thread, when nothing is live and no other uses it. */
void pr_proactor_free(struct pr_proactor *proactor);

/*
 * Gives it an operation, whose owner has filled in what is wanted.  Never fails and never waits:
 * what is wrong with it becomes its result.  Any thread.
 */
void pr_proactor_submit(struct pr_proactor *proactor, struct pr_aio *aio);

/* Asks for an operation to be cut short; it ends all the same, with -ECANCELED where there was time
 * for it.  Returns whether it was not done yet.  Any thread, while the owner keeps it alive. */
bool pr_proactor_cancel(struct pr_proactor *proactor, struct pr_aio *aio);

/* Makes the end of a silent operation loud.  Returns false where it has ended already.  Any
 * thread, one at a time for one operation. */
bool pr_aio_make_loud(struct pr_aio *aio);

/*
 * One turn of the main thread: starts what was handed in, waits up to `timeout_ns` (-1: no limit),
 * and puts what is done into the workers' queues.  Returns 0, 1 where it was stopped and nothing is
 * live any more, or a negative errno; -EINTR when a signal ended the wait.  Main thread.
 */
int pr_proactor_run_once(struct pr_proactor *proactor, int64_t timeout_ns);

/*
 * Says that what `worker` took out of the queues is handled; `strand` is the operation's, which may
 * be under way again by now.  That worker's thread.
 */
void pr_proactor_handled(struct pr_proactor *proactor, unsigned worker, struct pr_strand *strand);

/*
 * Ends what was handed in after the last turn, and puts it into the workers' queues.  Any thread,
 * when there are no turns any more.
 */
void pr_proactor_end_rest(struct pr_proactor *proactor);

/* Gives a buffer of its pool back.  Any thread. */
void pr_proactor_release_buffer(struct pr_proactor *proactor, uint32_t index);

/*
 * Says that a descriptor, of which nothing is under way, is about to be closed.  Needed where its
 * operations have a strand: it stays known between them.  Any thread.
 */
void pr_proactor_forget(struct pr_proactor *proactor, int fd);

/* Makes the turns come to an end; an abort may follow a drain.  Any thread. */
void pr_proactor_stop(struct pr_proactor *proactor, enum pr_proactor_stop how);

/* Makes the main thread return from its wait.  Any thread. */
void pr_proactor_wake(struct pr_proactor *proactor);

/* Reads the counters.  Any thread. */
void pr_proactor_read_stats(struct pr_proactor *proactor, struct pr_proactor_stats *stats);

/* --- For the engines; of the main thread. -------------------------------------------------------
 */

/* Ends an operation.  `announced`: the kernel has told the application in the way it asked for.
 * Main thread. */
void pr_proactor_finish(struct pr_proactor *proactor, struct pr_aio *aio, int32_t result,
                        bool announced);

/* Starts what was handed in.  Main thread. */
void pr_proactor_take_inbox(struct pr_proactor *proactor);

/* Has a started operation started again when there is a buffer.  Main thread. */
void pr_proactor_postpone(struct pr_proactor *proactor, struct pr_aio *aio);

/* Takes one of those back.  Returns false where it is none.  Main thread. */
bool pr_proactor_unpostpone(struct pr_proactor *proactor, struct pr_aio *aio);

/* Takes a buffer for an operation with PR_ANY_BUFFER.  Returns false where there is none: the
 * operation is postponed.  Main thread. */
bool pr_proactor_give_buffer(struct pr_proactor *proactor, struct pr_aio *aio);

/* The signals of PR_NOTIFY_SIGNAL have come: their operations go to workers.  Main thread. */
void pr_proactor_take_signals(struct pr_proactor *proactor);

#endif
