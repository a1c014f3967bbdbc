/*
 * A trace: which thread did which step of a pattern, and when.  Each thread writes into a ring of
 * its own, without a lock; one reader takes the steps out.  Off at first, and then a step costs one
 * load.
 */
#ifndef PYREACTOR_TRACE_H
#define PYREACTOR_TRACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/clock.h"

#define PR_TRACE_STEPS_MAX 16384 /* unread, of one thread; a power of two */

enum pr_action {
    PR_ACTION_REGISTER, /* a handle is bound to its handler and the demultiplexer told */
    PR_ACTION_REARM,    /* a handle is waited for again, after its handler has returned */
    PR_ACTION_REMOVE,
    PR_ACTION_WAIT,      /* the wait returned with this event */
    PR_ACTION_PUT,       /* a request was put into the queue */
    PR_ACTION_TAKE,      /* a request was taken out of it */
    PR_ACTION_HANDLE,    /* the handler is called */
    PR_ACTION_READ,      /* the dispatcher itself has read the bytes */
    PR_ACTION_WRITE,     /* ... has written them */
    PR_ACTION_JOIN,      /* a thread joins the thread set */
    PR_ACTION_LEAD,      /* it has become the leader */
    PR_ACTION_PROMOTE,   /* the leader has made room for a new one */
    PR_ACTION_DELEGATE,  /* the leader has given the event to a follower */
    PR_ACTION_HAND_OVER, /* a connection was given to the loop that owns it from now on */
    PR_ACTION_SUBMIT,    /* an operation was started */
    PR_ACTION_COMPLETE,  /* it is done */
    PR_ACTION_SELECT,    /* a worker was chosen for its result */
};

enum pr_role {
    PR_ROLE_APPLICATION, /* a thread that is none of the dispatcher's */
    PR_ROLE_MAIN,
    PR_ROLE_WORKER,
    PR_ROLE_ASYNC,
    PR_ROLE_SYNC,
    PR_ROLE_MEMBER, /* of a thread set: leader, processing or follower */
    PR_ROLE_LOOP,
};

struct pr_step {
    int64_t time_ns; /* of pr_now_ns() */
    int32_t thread_id;
    int32_t fd; /* -1: of none */
    uint32_t events;
    uint16_t action; /* enum pr_action */
    uint16_t role;   /* enum pr_role */
};

struct pr_trace_ring {
    struct pr_trace_ring *next;
    int32_t thread_id;
    _Atomic(uint64_t) written; /* by its thread */
    _Atomic(uint64_t) read;    /* by the reader */
    struct pr_step steps[PR_TRACE_STEPS_MAX];
};

struct pr_trace {
    atomic_bool on;
    /* pr_trace_write(): called through this, a trace serves extension modules beside its own. */
    void (*write)(struct pr_trace *trace, enum pr_action action, int fd, uint32_t events,
                  int64_t time_ns);
    uint64_t life; /* tells this trace from an earlier one at the same address */
    pthread_mutex_t lock;
    struct pr_trace_ring *rings; /* owned; under the lock */
    _Atomic(uint64_t) lost;      /* steps that found their ring full */
};

/* Makes a trace that is off.  Any thread. */
void pr_trace_init(struct pr_trace *trace);

/* Frees it.  Any thread, when no other uses it. */
void pr_trace_deinit(struct pr_trace *trace);

/* Says what the calling thread is, in all traces.  Any thread. */
void pr_trace_set_role(enum pr_role role);

/* Writes a step that was done at `time_ns`; see pr_trace_note_at().  Any thread. */
void pr_trace_write(struct pr_trace *trace, enum pr_action action, int fd, uint32_t events,
                    int64_t time_ns);

/* Takes up to `max` unread steps, in the order of time.  Returns how many.  One thread at a
 * time. */
size_t pr_trace_read(struct pr_trace *trace, struct pr_step *steps, size_t max);

/* Notes a step of the calling thread, where the trace is on; NULL is no trace.  Any thread. */
static inline void pr_trace_note(struct pr_trace *trace, enum pr_action action, int fd,
                                 uint32_t events)
{
    if (trace && atomic_load_explicit(&trace->on, memory_order_relaxed))
        trace->write(trace, action, fd, events, pr_now_ns());
}

/* The time of a step that begins now and is noted when it has succeeded, by which time another
 * thread may have gone on; 0 where the trace is off.  Any thread. */
static inline int64_t pr_trace_begin(struct pr_trace *trace)
{
    return trace && atomic_load_explicit(&trace->on, memory_order_relaxed) ? pr_now_ns() : 0;
}

/* Notes a step that began at a time of pr_trace_begin().  Any thread. */
static inline void pr_trace_note_at(struct pr_trace *trace, enum pr_action action, int fd,
                                    uint32_t events, int64_t time_ns)
{
    if (time_ns > 0)
        trace->write(trace, action, fd, events, time_ns);
}

#endif
