/*
 * A handle set: the one source of events of a dispatcher.  It has descriptors (handles, as the
 * patterns call them), timers and a way to be woken, and one wait for all of these.
 *
 * A handle that was reported is busy: it is not reported again until pr_handle_set_complete(), so
 * that its handler runs in one thread at a time.  What is removed while it is busy stays in the set
 * until then; its owner closes it afterwards, and not before.
 */
#ifndef PYREACTOR_HANDLE_SET_H
#define PYREACTOR_HANDLE_SET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/demux.h"
#include "pyreactor/timer_heap.h"
#include "pyreactor/trace.h"

#define PR_EVENTS_PER_WAIT_MAX 64        /* the next leader finds the rest without a system call */
#define PR_TIMERS_PER_WAIT_MAX 64        /* a flood of timers must not keep the handles waiting */
#define PR_UNSENT_BYTES_MAX (256 * 1024) /* a channel with more is not read: its peer does not */

/* How a handle is dispatched; what none of these is said of goes to a handler as it is. */
#define PR_HANDLE_INLINE 1u  /* by the thread that waits, not through the queue */
#define PR_HANDLE_CHANNEL 2u /* the thread that waits reads and writes; see pump.h */
#define PR_HANDLE_SPREAD 4u  /* a listener, whose connections are spread over loops; see pump.h */

/* One thing for a handler to do: a handle is ready, or a timer is due. */
struct pr_event {
    int fd;              /* -1: of a timer */
    uint32_t generation; /* of the registration */
    uint32_t events;     /* PR_READABLE, PR_WRITABLE, PR_EXCEPTIONAL */
    uint32_t flags;      /* as the handle was registered with */
    uint64_t timer_id;
};

/* What is to be written to a handle; under the set's lock. */
struct pr_channel {
    char *data; /* owned */
    size_t begin;
    size_t end;
    size_t capacity;
    bool close_when_written;
    bool report_written;
    bool unread; /* not waited for to be readable until all is written */
};

struct pr_handle {
    bool used;
    bool unasked;   /* registered, and the demultiplexer is still to be told */
    bool busy;      /* reported, and not completed */
    bool suspended; /* not to be reported until resumed */
    bool removed;   /* while it was busy */
    uint32_t generation;
    uint32_t wanted;
    uint32_t flags;
    struct pr_channel channel; /* of a PR_HANDLE_CHANNEL */
};

struct pr_handle_set_stats {
    uint64_t waits; /* that reached the demultiplexer */
    uint64_t events;
    uint64_t stale_events; /* of handles that were removed meanwhile */
    uint64_t timers;
    uint64_t handles; /* registered now */
};

struct pr_handle_set {
    pthread_mutex_t lock;
    struct pr_demux *demux; /* borrowed */
    struct pr_trace *trace; /* borrowed; NULL: none */
    int events_per_wait;

    /* Under the lock: */
    bool closed;
    bool waiter_adds;          /* see pr_handle_set_let_waiter_add() */
    struct pr_handle *handles; /* owned; by descriptor */
    int capacity;
    int *unasked; /* owned; descriptors that the waiting thread is to add, or that are gone */
    int unasked_count;
    int unasked_capacity;
    uint32_t last_generation;
    struct pr_timer_heap timers;
    struct pr_event ready[PR_EVENTS_PER_WAIT_MAX + PR_TIMERS_PER_WAIT_MAX]; /* a ring */
    int ready_first;
    int ready_count;
    struct pr_handle_set_stats stats;

    struct pr_ready_event found[PR_EVENTS_PER_WAIT_MAX]; /* the waiting thread's */
};

/* Makes an empty set over `demux`, which nobody else uses from here on; `events_per_wait` is how
 * many events one wait fetches, at most PR_EVENTS_PER_WAIT_MAX.  Any thread. */
void pr_handle_set_init(struct pr_handle_set *set, struct pr_demux *demux, struct pr_trace *trace,
                        int events_per_wait);

/*
 * Forgets timers and handles, which stay open; all later calls fail with -ESHUTDOWN, or do nothing.
 * The demultiplexer is not used any more.  Any thread, when none waits.
 */
void pr_handle_set_close(struct pr_handle_set *set);

/* Frees it.  Any thread, when no other uses it. */
void pr_handle_set_deinit(struct pr_handle_set *set);

/*
 * From here on only the waiting thread adds handles to the demultiplexer: what others register is
 * added when that thread waits next, for which it is woken.  What the demultiplexer refuses then
 * is reported as an event with nothing ready.  Any thread.
 */
void pr_handle_set_let_waiter_add(struct pr_handle_set *set);

/*
 * Registers the open descriptor `fd` for what is wanted of it.  Of a PR_HANDLE_CHANNEL, PR_WRITABLE
 * means that it is reported at once, as pr_handle_set_report_written() does, before it is read.
 * Returns 0 and its generation, or a negative errno as pr_demux_ops.add does; -EEXIST also while
 * its removal waits for its handler, -ESHUTDOWN where the set is closed.  Any thread.
 */
int pr_handle_set_register(struct pr_handle_set *set, int fd, uint32_t wanted, uint32_t flags,
                           uint32_t *generation);

/*
 * Removes a handle.  Returns 0 and its generation: it is out, and may be closed; 1: its handler is
 * about to run or running, and pr_handle_set_complete() will say so; or -ENOENT, -ESHUTDOWN.  Any
 * thread.
 */
int pr_handle_set_remove(struct pr_handle_set *set, int fd, uint32_t *generation);

/* Removes the handle of an event, unless it was removed already; its thread completes the event
 * all the same, and learns from that whether it is out.  The thread that has the event. */
void pr_handle_set_drop(struct pr_handle_set *set, const struct pr_event *event);

/* Whether the handle is registered.  Any thread. */
bool pr_handle_set_has(struct pr_handle_set *set, int fd);

/*
 * Changes what is wanted, lets the handle rest, or ends its rest.  While it is busy it takes effect
 * when its handler has returned.  Return 0 or a negative errno: -ENOENT, -ESHUTDOWN.  Any thread.
 */
int pr_handle_set_modify(struct pr_handle_set *set, int fd, uint32_t wanted);
int pr_handle_set_suspend(struct pr_handle_set *set, int fd);
int pr_handle_set_resume(struct pr_handle_set *set, int fd);

/*
 * Waits up to `timeout_ns` (0: do not sleep; -1: no limit) for the next event.  Returns 1 with the
 * event, whose handle is busy from here on; 0 where there is none, because the time is over, the
 * set was woken or a timer was added; or a negative errno, -EINTR when a signal ended the wait and
 * -EBUSY where another thread waits.  One thread at a time.
 */
int pr_handle_set_wait(struct pr_handle_set *set, struct pr_event *event, int64_t timeout_ns);

/*
 * Asks, just before the handler is called, whether it is still to be.  Where it is not, because the
 * handle was removed or suspended meanwhile, the caller completes the event all the same.  The
 * thread that has the event.
 */
bool pr_handle_set_is_wanted(struct pr_handle_set *set, const struct pr_event *event);

/* Whether an event of the handle has been reported, and not completed.  Any thread. */
bool pr_handle_set_is_busy(struct pr_handle_set *set, int fd);

/*
 * Ends the event of a handle: its handler has returned.  The handle is waited for again.  Returns
 * 0, or 1 where it was removed meanwhile, or the demultiplexer refuses it, as when it was closed:
 * it is out now and may be closed.  The thread that has the event.
 */
int pr_handle_set_complete(struct pr_handle_set *set, const struct pr_event *event);

/*
 * Puts bytes, which are copied, behind those to be written to a PR_HANDLE_CHANNEL, and waits for it
 * to become writable.  Where more than PR_UNSENT_BYTES_MAX are left, nothing is read until all is
 * written.  Returns how many are unsent, or a negative errno: -ENOENT, -ENOMEM, -ESHUTDOWN.  Any
 * thread.
 */
int64_t pr_handle_set_write(struct pr_handle_set *set, int fd, const char *data, size_t size);

/*
 * Lets a PR_HANDLE_CHANNEL be reported, once, as PR_WRITABLE when all is written, which may be at
 * once; what is read first is reported instead.  Without `reading` nothing is read before that.
 * Returns 0 or a negative errno: -ENOENT.  Any thread.
 */
int pr_handle_set_report_written(struct pr_handle_set *set, int fd, bool reading);

/* Lets a PR_HANDLE_CHANNEL be reported with no events when all is written.  Returns whether there
 * is anything left to be written; if not, nothing is reported.  Any thread. */
bool pr_handle_set_close_when_written(struct pr_handle_set *set, int fd);

/* Makes the wait return soon, or the next one.  Any thread. */
void pr_handle_set_wake(struct pr_handle_set *set);

/* Starts an idle timer, by its deadline_ns; its callback.owner is the event's timer_id.  Returns
 * 0, -ENOMEM or -ESHUTDOWN.  Any thread. */
int pr_handle_set_start_timer(struct pr_handle_set *set, struct pr_timer *timer);

/* Cancels a timer.  Returns whether it had not been reported yet.  Any thread. */
bool pr_handle_set_cancel_timer(struct pr_handle_set *set, struct pr_timer *timer);

/* Reads the counters.  Any thread. */
void pr_handle_set_read_stats(struct pr_handle_set *set, struct pr_handle_set_stats *stats);

#endif
