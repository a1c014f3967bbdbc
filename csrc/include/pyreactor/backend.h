/*
 * A backend: one kernel interface that tells what happened to file descriptors.  The loop knows
 * backends by this table alone.
 */
#ifndef PYREACTOR_BACKEND_H
#define PYREACTOR_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "pyreactor/op.h"

#define PR_READABLE 1u /* a read would not block; a hang-up or an error counts, too */
#define PR_WRITABLE 2u /* a write would not block; a hang-up or an error counts, too */

/* Asked for beside the two above: be told when one of them becomes so, not for as long as it is.
 * For whoever tries first and waits only where that would have blocked.  May come too often. */
#define PR_EDGE 4u

/* For backends that complete operations themselves (`completion` in their table): */
#define PR_RECEIVED                                                                                \
    8u              /* asked for in place of PR_READABLE: not the news of bytes, but the bytes     \
                     */
#define PR_SENT 16u /* never asked for: a pr_send is done */
#define PR_COMPLETED 32u           /* never asked for: a pr_op is done */
#define PR_RECEIVED_BYTES_MAX 4096 /* in one event: a page */

/* "This descriptor, in this life of it, is ready for these", or what was completed. */
struct pr_ready_event {
    int fd;
    uint32_t generation; /* of the watch that asked; an older one marks a stale event */
    uint32_t events;     /* PR_READABLE and PR_WRITABLE, or one of the completions; never PR_EDGE */
    int32_t result;      /* of a completion: bytes, 0 for the end, or a negative errno */
    union {
        const char *data;     /* PR_RECEIVED: the backend's, until return_data() */
        struct pr_send *send; /* PR_SENT */
        struct pr_op *op;     /* PR_COMPLETED */
    };
};

/* One send that the kernel carries out by itself.  It and all it points to stay where they are
 * until on_sent(). */
struct pr_send {
    int fd;
    struct msghdr message;
    struct pr_send *prev, *next; /* the backend's, until on_sent(); NULL before */
    int32_t result;              /* the backend's, until it is done */
    /* Called by the loop, or at its end: the kernel is done with it.  Returns 0, or non-zero to end
     * the turn here. */
    int (*on_sent)(struct pr_send *send, int32_t result);
};

struct pr_backend;
struct pr_uring_state;

/* Operations that the kernel completes by itself.  All: loop thread only. */
struct pr_completion_ops {
    /* Submits `send` with the next wait; PR_SENT will follow.  Returns 0, or a negative errno:
     * nothing was taken, so that the
     * caller sends by itself. */
    int (*send)(struct pr_backend *backend, struct pr_send *send);

    /* Gives the kernel what was submitted, without waiting.  Returns true where `send` is done by
     * then: its result is there, and no PR_SENT follows. */
    bool (*settle_send)(struct pr_backend *backend, struct pr_send *send);

    /* Cuts it short, so that the descriptor may be closed; PR_SENT follows all the same. */
    void (*cancel_send)(struct pr_backend *backend, struct pr_send *send);

    /* The event's data is dealt with. */
    void (*return_data)(struct pr_backend *backend, const struct pr_ready_event *event);

    /* Nobody wants the event's data now: a copy is reported once PR_RECEIVED or PR_READABLE is
     * asked for (again), before anything newer. */
    void (*hold_data)(struct pr_backend *backend, const struct pr_ready_event *event);

    /* Whether older data is held for the descriptor of `event`: then its data is to be held, too,
     * and that it is readable comes again. */
    bool (*holds_older)(const struct pr_backend *backend, const struct pr_ready_event *event);

    /* From here on what `fd` receives is for others: ends the receive under way, and returns when
     * the kernel says so.  `event` gets the bytes that it has brought and nobody was told of: until
     * return_data(), and a result of 0 for none.  An end of the stream is found by whoever receives
     * next.  Returns 0, or the negative errno that followed the bytes. */
    int (*end_receive)(struct pr_backend *backend, int fd, struct pr_ready_event *event);

    /* Whether the kernel has operations of that kind. */
    bool (*supports)(const struct pr_backend *backend, enum pr_op_kind kind);

    /* Submits `op` with the next wait; PR_COMPLETED will follow. */
    void (*submit)(struct pr_backend *backend, struct pr_op *op);

    /* Cuts it short, if it may still be; PR_COMPLETED follows all the same. */
    void (*cancel)(struct pr_backend *backend, struct pr_op *op);

    /* Calls `visit` for each operation that is not complete, until it returns non-zero, and returns
     * that. */
    int (*visit)(const struct pr_backend *backend, int (*visit)(struct pr_op *op, void *argument),
                 void *argument);

    /* Cuts all sends short, and puts off the operations that have had no effect yet: another thread
     * may be the next to wait. */
    void (*quiesce)(struct pr_backend *backend);
};

struct pr_backend_ops {
    const char *name;
    const struct pr_completion_ops *completion; /* NULL: it tells readiness only */

    /* PR_EDGE works, and watching a descriptor does not keep its file open: a registration may stay
     * while nobody waits, and go with a close that nobody has announced. */
    bool has_edges;

    /*
     * Changes what is wanted of `fd` from `old_events` to `new_events`; 0 means nothing, not even
     * hang-ups.  The descriptor is open and its watch has `generation`.
     * Returns 0 or a negative errno: -EPERM for a descriptor that cannot be waited for (a regular
     * file), -EBADF for one that is not open.  Loop thread only.
     */
    int (*update)(struct pr_backend *backend, int fd, uint32_t generation, uint32_t old_events,
                  uint32_t new_events);

    /*
     * Waits up to `timeout_ns` (0: do not sleep; -1: no limit; otherwise never less than that
     * unless something happened) and fills at most `capacity` events.
     * Returns their number, or a negative errno; -EINTR when a signal ended the wait.
     * One thread at a time; touches nothing but its arguments.
     */
    int (*wait)(struct pr_backend *backend, struct pr_ready_event *events, int capacity,
                int64_t timeout_ns);

    /* The descriptor that is readable while wait() would report something and others look at it:
     * between expose() and the next wait.  The backend's.  Returns it or a negative errno; -EXDEV
     * is what another thread's wait fails with from then on.  Loop thread only. */
    int (*pollable_fd)(struct pr_backend *backend);

    /* No wait follows for now.  Only after pollable_fd().  Loop thread only. */
    void (*expose)(struct pr_backend *backend);

    /* Gets the kernel's object.  Returns 0 or a negative errno. */
    int (*init)(struct pr_backend *backend);

    /* Gives it back; descriptors watched are left open.  Loop thread only. */
    void (*deinit)(struct pr_backend *backend);
};

struct pr_backend {
    const struct pr_backend_ops *ops;
    int fd;                       /* owned: the kernel's object (an epoll set, a ring) */
    struct pr_uring_state *state; /* owned: io_uring's own */
    bool receives;                /* PR_RECEIVED may be asked for */
    int no_nanosecond_wait;       /* the kernel lacks epoll_pwait2 (before 5.11) */
};

/* The backend named `name` ("auto", "epoll"), or NULL where there is none such.  Any thread. */
const struct pr_backend_ops *pr_backend_find(const char *name);

extern const struct pr_backend_ops pr_epoll_ops;
extern const struct pr_backend_ops pr_uring_ops;

#endif
