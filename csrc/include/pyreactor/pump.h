/*
 * The pump: what the asynchronous thread of a dispatcher does.  It waits on a handle set and turns
 * each event into a request for the threads that handle them.  Of a PR_HANDLE_CHANNEL it reads and
 * writes the bytes itself, so that the others get finished reads; the connections of a
 * PR_HANDLE_SPREAD it gives to loops, in turn.
 */
#ifndef PYREACTOR_PUMP_H
#define PYREACTOR_PUMP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/handle_set.h"
#include "pyreactor/request_queue.h"

#define PR_TRANSFER_BYTES_MAX (1024 * 1024) /* one fast peer must not starve the others */
#define PR_ACCEPTS_PER_EVENT_MAX 100        /* neither must one busy listener */
#define PR_PUMPS_MAX 255                    /* a request has eight bits for its pump's index */

/* A finished read. */
struct pr_transfer {
    uint32_t generation;
    int error;  /* a negative errno that ended the connection, or 0 */
    bool ended; /* the peer sends no more */
    size_t size;
    size_t capacity;
    char data[];
};

/* A loop that owns the connections it is given. */
struct pr_loop_place {
    struct pr_request_queue *connections; /* borrowed; what is put there is the loop's */
    struct pr_handle_set *set;            /* borrowed; to wake the loop */
};

struct pr_pump {
    struct pr_handle_set *set;      /* borrowed */
    struct pr_request_queue *queue; /* borrowed; NULL: every event is the caller's */
    struct pr_trace *trace;         /* borrowed; NULL: none */
    unsigned index;                 /* among the pumps of one queue */
    atomic_bool stopping;
    struct pr_loop_place *places; /* borrowed */
    unsigned place_count;
    unsigned next_place;
    _Atomic(uint64_t) handed_over;
    _Atomic(size_t) unhandled; /* its requests in the queue or being handled */
    struct pr_request pending; /* the pump's: for which there was no room before a signal */
    bool has_pending;
};

/* A pump's request that a worker has taken out of the queue. */
struct pr_work {
    struct pr_event event;
    unsigned pump_index;
    struct pr_transfer *transfer; /* owned, to be freed; NULL: none */
};

/*
 * Waits for events and puts them into the queue, waiting for room in it if need be.  Returns 1 with
 * an event that the caller handles itself (PR_HANDLE_INLINE, all of them without a queue, and of a
 * PR_HANDLE_SPREAD what is no connection); 0 when it is to stop or was woken by
 * pr_handle_set_wake(); -EINTR when a signal ended the wait, for events or for room, -ESHUTDOWN
 * where the queue is closed, or another negative errno.  The pump's thread.
 */
int pr_pump_next(struct pr_pump *pump, struct pr_event *event);

/* Releases what the pump still holds; the queue and the handle set are the caller's.  Any thread,
 * when no other uses it. */
void pr_pump_deinit(struct pr_pump *pump);

/* Makes pr_pump_next() return 0, from now on.  Any thread. */
void pr_pump_stop(struct pr_pump *pump);

/*
 * Takes the next request out of the queue, and sleeps until there is one.  Returns 0, -ESHUTDOWN
 * where the queue is closed and empty, or -EINTR.  Any thread.
 */
int pr_pump_take(struct pr_request_queue *queue, struct pr_request *request);

/* Whether a request that was taken is a pump's; then `work` owns what the request owned.  The
 * thread that has taken it. */
bool pr_pump_read(const struct pr_request *request, struct pr_trace *trace, struct pr_work *work);

/* Counts a request of the pump's as handled.  The thread that has taken it, after all it did. */
void pr_pump_handled(struct pr_pump *pump);

/* How many requests of the pump's are in the queue or being handled.  Any thread. */
size_t pr_pump_unhandled(const struct pr_pump *pump);

#endif
