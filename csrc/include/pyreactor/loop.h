/*
 * The event loop: three calls, prepare, wait and dispatch, and everything else is built from them.
 * One turn runs the callbacks that were ready, then the descriptors' events, then the timers that
 * were due, in this order (asyncio's), and nothing that is scheduled meanwhile.
 *
 * "Loop thread" means the thread that runs the loop now; "any thread" may call at any time.
 */
#ifndef PYREACTOR_LOOP_H
#define PYREACTOR_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pyreactor/alarm.h"
#include "pyreactor/backend.h"
#include "pyreactor/callback.h"
#include "pyreactor/ready_queue.h"
#include "pyreactor/stats.h"
#include "pyreactor/timer_heap.h"
#include "pyreactor/wakeup.h"
#include "pyreactor/watch.h"

#define PR_EVENTS_PER_TURN_MAX 256 /* more stay in the kernel: one turn must end */
#define PR_RECEIVE_BUFFER_BYTES (256 * 1024)
#define PR_PAGE_BYTES 4096

/* While callbacks keep the loop busy and polls find nothing, it asks the kernel this often only. */
#define PR_EMPTY_POLLS_MAX 8
#define PR_POLL_INTERVAL_NS 20000 /* a poll costs about 0.3 us: at most 2 % of the time */

/*
 * Something to be done when the callback that runs now has returned: a stream that was written to
 * sends everything in one call.  Embedded in its owner.
 */
struct pr_flush {
    struct pr_flush *prev, *next; /* NULL, NULL while it is not in the list */
    /* Called once, out of the list.  Returns 0, or non-zero to end the turn here. */
    int (*run)(struct pr_flush *flush);
};

struct pr_loop {
    struct pr_backend backend;
    struct pr_watch_table watches;
    struct pr_ready_queue ready;
    struct pr_timer_heap timers;
    struct pr_wakeup wakeup;
    struct pr_watch wakeup_watch;
    struct pr_alarm alarm; /* when the next timer is due, for others; there once they poll */
    struct pr_watch alarm_watch;
    struct pr_flush flushes; /* list head */
    bool dispatching;        /* a callback may be running */
    bool in_event;           /* it is an event's */
    bool running;            /* turns follow each other: see pr_loop_end_run() */
    bool exposed;            /* nobody runs it: see pr_loop_pollable_fd() */

    int64_t now_ns;    /* read once a turn, in prepare, and once more after a sleep */
    int64_t polled_ns; /* the last poll */
    int64_t shown_ns;  /* see pr_loop_show_time() */
    bool is_shown_time;
    unsigned empty_polls;

    struct pr_ready_event events[PR_EVENTS_PER_TURN_MAX];
    int event_count;
    int event_next; /* the first that is not dispatched yet; more than one turn may be needed */

    /* Where streams receive: one warm buffer, lent for the length of a callback. */
    char *receive_buffer; /* owned; PR_RECEIVE_BUFFER_BYTES */

    struct pr_loop_stats stats;
};

/* Makes a loop on the backend of that name.  Returns 0 or a negative errno (-ENOTSUP: no such
 * backend).  Any thread. */
int pr_loop_init(struct pr_loop *loop, const char *backend_name);

/* Gives back what the loop holds.  Take back scheduled callbacks first.  Loop thread only. */
void pr_loop_deinit(struct pr_loop *loop);

/*
 * Closes the descriptors that a fork copied, without a word to the kernel's epoll set, which is
 * still the parent's.  After it only pr_loop_deinit() may be called.  In the child only.
 */
void pr_loop_abandon_after_fork(struct pr_loop *loop);

/*
 * Timers go by a clock of the caller's, which shows `now_ns`, until it is called again or
 * pr_loop_show_usual_time().  To be told before pr_loop_prepare() and before pr_loop_dispatch().
 * Loop thread only.
 */
static inline void pr_loop_show_time(struct pr_loop *loop, int64_t now_ns)
{
    loop->is_shown_time = true;
    loop->shown_ns = now_ns;
}

/* Timers go by the loop's clock, pr_now_ns(), again.  Loop thread only. */
static inline void pr_loop_show_usual_time(struct pr_loop *loop)
{
    loop->is_shown_time = false;
}

/* How long the next wait may sleep: 0, nanoseconds, or -1 for no limit.  Loop thread only. */
int64_t pr_loop_prepare(struct pr_loop *loop);

/*
 * Waits for events, at most `timeout_ns` (as pr_loop_prepare gives it).  Returns 0 or a negative
 * errno; a signal is no error.  Loop thread only; the only call of the three that may sleep, and
 * the one to make without the GIL where the timeout is not 0.
 */
int pr_loop_wait(struct pr_loop *loop, int64_t timeout_ns);

/*
 * Runs what was ready, what happened and what is due.  Returns 0, or what a callback returned that
 * was not 0: callbacks and events left over are the next turn's.
 * Loop thread only; not from a callback.
 */
int pr_loop_dispatch(struct pr_loop *loop);

/*
 * Says that no turn follows for now, and that the next may be another thread's: until the next
 * pr_loop_prepare() the loop counts its time neither as busy nor as idle, and no send of the
 * backend's is under way; operations wait for that.  After pr_loop_pollable_fd() everything goes
 * on, and the next turn has to be this thread's.  Loop thread only; not from a callback.
 */
void pr_loop_end_run(struct pr_loop *loop);

/*
 * A descriptor that select(2) and its kind find readable while nobody runs the loop and it has
 * something to do: an event, a post, a timer that is due.  It belongs to the loop; nobody else
 * reads it.  What is scheduled between two runs by other means than these is to be followed by
 * pr_loop_wakeup().  From the first call on, this thread has to make all turns.
 * Returns it or a negative errno (-ENOTSUP: the backend has none).  Loop thread only.
 */
int pr_loop_pollable_fd(struct pr_loop *loop);

/* One turn: prepare, wait (at most `timeout_ns` if that is not negative), dispatch.
 * Loop thread only. */
int pr_loop_run_once(struct pr_loop *loop, int64_t timeout_ns);

/* Schedules `callback` for the next turn, from another thread.  Any thread. */
void pr_loop_post(struct pr_loop *loop, struct pr_callback *callback);

/* Makes the loop return from its wait soon.  Any thread; async-signal-safe. */
void pr_loop_wakeup(struct pr_loop *loop);

/* Makes ready what other threads have posted; prepare does it, too.  Loop thread only. */
void pr_loop_take_inbox(struct pr_loop *loop);

/* Takes back the next callback that is ready or in the inbox, without running it; NULL at the end.
 * Loop thread only. */
struct pr_callback *pr_loop_take_ready(struct pr_loop *loop);

/* Takes back the earliest timer, which counts as cancelled; NULL at the end.  Loop thread only. */
struct pr_timer *pr_loop_take_timer(struct pr_loop *loop);

/* Calls `visit` for each operation that was submitted and is not complete, until it returns
 * non-zero, and returns that.  For a garbage collector: no other thread may be running. */
int pr_loop_visit_ops(const struct pr_loop *loop, int (*visit)(struct pr_op *op, void *argument),
                      void *argument);

/*
 * Calls `visit` for each callback that is ready, in the inbox or a timer's, until it returns
 * non-zero, and returns that.  For a garbage collector: no other thread may be running.
 */
int pr_loop_visit_scheduled(const struct pr_loop *loop,
                            int (*visit)(struct pr_callback *callback, void *argument),
                            void *argument);

/* Schedules `callback` for the next turn.  Returns 0 or -ENOMEM.  Loop thread only. */
static inline int pr_loop_call_soon(struct pr_loop *loop, struct pr_callback *callback)
{
    return pr_ready_queue_push(&loop->ready, callback);
}

/* Schedules an idle timer by its deadline_ns.  Returns 0 or -ENOMEM.  Loop thread only. */
static inline int pr_loop_start_timer(struct pr_loop *loop, struct pr_timer *timer)
{
    int error = pr_timer_heap_push(&loop->timers, timer);
    if (error == 0)
        pr_counter_add(&loop->stats.timers_started, 1);
    return error;
}

/* Takes back a timer that has not fired.  Returns false where it is idle.  Loop thread only. */
static inline bool pr_loop_cancel_timer(struct pr_loop *loop, struct pr_timer *timer)
{
    if (timer->heap_index == PR_TIMER_IDLE)
        return false;
    pr_timer_heap_remove(&loop->timers, timer);
    pr_counter_add(&loop->stats.timers_cancelled, 1);
    return true;
}

/* Whether the backend carries out operations of that kind.  Loop thread only. */
static inline bool pr_loop_supports(const struct pr_loop *loop, enum pr_op_kind kind)
{
    const struct pr_completion_ops *completion = loop->backend.ops->completion;
    return completion && completion->supports(&loop->backend, kind);
}

/* Begins `op`, which is filled in and idle, with the next wait.  Where the backend does not support
 * it, it must not be called.  Loop thread only. */
static inline void pr_loop_submit(struct pr_loop *loop, struct pr_op *op)
{
    loop->backend.ops->completion->submit(&loop->backend, op);
}

/* Asks for an early end of `op`, which was submitted; on_complete() is still to come, perhaps with
 * the whole result.  Loop thread only. */
static inline void pr_loop_cancel(struct pr_loop *loop, struct pr_op *op)
{
    loop->backend.ops->completion->cancel(&loop->backend, op);
}

/* Asks for flush->run() when the running callback returns.  Loop thread only. */
static inline void pr_loop_add_flush(struct pr_loop *loop, struct pr_flush *flush)
{
    if (flush->next)
        return;
    flush->prev = loop->flushes.prev;
    flush->next = &loop->flushes;
    flush->prev->next = flush;
    loop->flushes.prev = flush;
}

/* Whether nothing waits for the callback that runs now to return, other than the events that came
 * with its own.  Loop thread only, in an event's callback. */
static inline bool pr_loop_is_quiet(const struct pr_loop *loop)
{
    return loop->in_event && !pr_ready_queue_count(&loop->ready) &&
           loop->flushes.next == &loop->flushes;
}

/* Takes it out again; does nothing where it is not in the list.  Loop thread only. */
static inline void pr_loop_remove_flush(struct pr_flush *flush)
{
    if (!flush->next)
        return;
    flush->prev->next = flush->next;
    flush->next->prev = flush->prev;
    flush->prev = flush->next = NULL;
}

/*
 * Whether the kernel is done with `send`, which was given to the backend, although the turn has not
 * come to it.  Returns true where it is: the result is there, and on_sent() is not called.  Loop
 * thread only.
 */
static inline bool pr_loop_settle_send(struct pr_loop *loop, struct pr_send *send)
{
    for (int i = loop->event_next; i < loop->event_count; i++) {
        struct pr_ready_event *event = &loop->events[i];
        if (!(event->events & PR_SENT) || event->send != send)
            continue;
        send->result = event->result;
        loop->event_count--;
        memmove(event, event + 1, (size_t)(loop->event_count - i) * sizeof *event);
        return true;
    }
    return loop->backend.ops->completion->settle_send(&loop->backend, send);
}

#endif
