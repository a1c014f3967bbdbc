/*
 * A demultiplexer: one call of the kernel that waits for many descriptors, and the set of them.  It
 * is what the pattern programs stand on.  Unlike a backend (backend.h), which belongs to the thread
 * of its loop, its set may be changed from any thread while another one waits.
 */
#ifndef PYREACTOR_DEMUX_H
#define PYREACTOR_DEMUX_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/backend.h" /* struct pr_ready_event, PR_READABLE, PR_WRITABLE */
#include "pyreactor/wakeup.h"

#define PR_EXCEPTIONAL 8u /* urgent (out-of-band) data */
#define PR_EVENTS_MASK (PR_READABLE | PR_WRITABLE | PR_EXCEPTIONAL)

/* How an interest is reported, beside the events; without any of them, while it lasts. */
#define PR_ONE_SHOT 16u       /* once, and then not until modify() */
#define PR_EXCLUSIVE 32u      /* to one of several epoll sets; epoll only, not with PR_ONE_SHOT */
#define PR_EDGE_TRIGGERED 64u /* when it begins; epoll only */

struct pr_demux;

struct pr_demux_ops {
    const char *name;
    size_t size; /* of the structure that begins with a struct pr_demux */

    /*
     * Adds the open descriptor `fd`; its events carry `generation`.  `events` may lack all of
     * PR_READABLE, PR_WRITABLE and PR_EXCEPTIONAL: nothing is reported then, not even a hang-up.
     * Returns 0 or a negative errno: -EEXIST where it is there already, -EBADF where it is not
     * open, -EPERM where it cannot be waited for, -ERANGE where its number is too large, -EINVAL
     * or -EOPNOTSUPP where it cannot be reported in this way.  Any thread, also during a wait,
     * for which it takes effect.
     */
    int (*add)(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events);

    /*
     * Changes what is wanted of a descriptor in the set, and arms a one-shot interest again.
     * Returns 0 or a negative errno.  Any thread, as add().
     */
    int (*modify)(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events);

    /*
     * Takes the descriptor out, before it is closed; events of it that a wait has fetched already
     * may still be returned, with their generation.  Returns 0 or -ENOENT.  Any thread, as add().
     */
    int (*remove)(struct pr_demux *demux, int fd);

    /*
     * Waits up to `timeout_ns` (0: do not sleep; -1: no limit; otherwise never less than that
     * unless something happened) and fills at most `capacity` events; a hang-up or an error may be
     * reported as more than was wanted.  Returns their number, which is 0 also, before the time,
     * after wake() or a change of the set; or a negative errno, -EINTR when a signal ended the
     * wait.  One thread at a time: see pr_demux_wait().
     */
    int (*wait)(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                int64_t timeout_ns);

    /* Makes the wait return soon, or the next one if there is none.  Any thread. */
    void (*wake)(struct pr_demux *demux);

    /* Gets what it needs of the kernel.  Returns 0 or a negative errno.  Any thread. */
    int (*init)(struct pr_demux *demux);

    /* Gives it back; the descriptors of the set stay open.  Any thread, when no other uses it. */
    void (*deinit)(struct pr_demux *demux);
};

struct pr_demux {
    const struct pr_demux_ops *ops;
    struct pr_wakeup wakeup; /* how the wait is ended; its inbox is whoever waits' to use */
    atomic_bool waiting;     /* a thread is in pr_demux_wait() */
};

/* The demultiplexer named "select", "poll", "epoll", "io_uring" or "sigio", or NULL.  Any thread.
 */
const struct pr_demux_ops *pr_demux_find(const char *name);

/* Makes one.  Returns 0 or a negative errno; -ENOSYS or -EPERM where the kernel has none such.
 * Any thread. */
int pr_demux_new(const struct pr_demux_ops *ops, struct pr_demux **demux);

/* Frees it; does nothing with NULL.  Any thread, when no other uses it. */
void pr_demux_free(struct pr_demux *demux);

/* ops->wait(), for one thread at a time: -EBUSY where another one waits.  Any thread. */
static inline int pr_demux_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                                int64_t timeout_ns)
{
    if (atomic_exchange(&demux->waiting, true))
        return -EBUSY;
    int count = demux->ops->wait(demux, events, capacity, timeout_ns);
    atomic_store(&demux->waiting, false);
    return count;
}

/* Makes the wait under way, if there is one, look at the set again.  Any thread. */
void pr_demux_nudge(struct pr_demux *demux);

/* The epoll set of an epoll demultiplexer, borrowed; -1 of another one.  Any thread. */
int pr_demux_fileno(const struct pr_demux *demux);

extern const struct pr_demux_ops pr_demux_select_ops;
extern const struct pr_demux_ops pr_demux_poll_ops;
extern const struct pr_demux_ops pr_demux_epoll_ops;
extern const struct pr_demux_ops pr_demux_uring_ops;
extern const struct pr_demux_ops pr_demux_sigio_ops;

#endif
