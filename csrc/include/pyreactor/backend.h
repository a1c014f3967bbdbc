/*
 * A backend: one kernel interface that tells what happened to file descriptors.  The loop knows
 * backends by this table alone.
 */
#ifndef PYREACTOR_BACKEND_H
#define PYREACTOR_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#define PR_READABLE 1u /* a read would not block; a hang-up or an error counts, too */
#define PR_WRITABLE 2u /* a write would not block; a hang-up or an error counts, too */

/* Asked for beside the two above: be told when one of them becomes so, not for as long as it is.
 * For whoever tries first and waits only where that would have blocked.  May come too often. */
#define PR_EDGE 4u

/* "This descriptor, in this life of it, is ready for these." */
struct pr_ready_event {
    int fd;
    uint32_t generation; /* of the watch that asked; an older one marks a stale event */
    uint32_t events;     /* PR_READABLE, PR_WRITABLE; never PR_EDGE */
};

struct pr_backend;

struct pr_backend_ops {
    const char *name;

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

    /* Gets the kernel's object.  Returns 0 or a negative errno. */
    int (*init)(struct pr_backend *backend);

    /* Gives it back; descriptors watched are left open.  Loop thread only. */
    void (*deinit)(struct pr_backend *backend);
};

struct pr_backend {
    const struct pr_backend_ops *ops;
    int fd;                 /* owned: the kernel's object (an epoll set) */
    int no_nanosecond_wait; /* the kernel lacks epoll_pwait2 (before 5.11) */
};

/* The backend named `name` ("auto", "epoll"), or NULL where there is none such.  Any thread. */
const struct pr_backend_ops *pr_backend_find(const char *name);

extern const struct pr_backend_ops pr_epoll_ops;

#endif
