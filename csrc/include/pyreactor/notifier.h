/*
 * The notifier of a proactor: the ways to tell the application of a completion other than the
 * completion itself.
 *
 * An eventfd, which is the application's to wait for.
 *
 * A signal: a byte is written to a pipe whose other end has O_ASYNC, F_SETSIG and the main thread
 * as its owner, so that the kernel sends that thread a real-time signal which names the pipe.  The
 * thread keeps it blocked, is told by a signalfd that it is there, and takes it.  (O_ASYNC on a
 * ring's own descriptor does nothing: seen on Linux 6.18.)
 *
 * All functions: main thread of the proactor, unless they say otherwise.
 */
#ifndef PYREACTOR_NOTIFIER_H
#define PYREACTOR_NOTIFIER_H

#include <signal.h>
#include <stdbool.h>

#include "pyreactor/aio.h"

struct pr_notifier {
    int event_fd; /* owned */

    /* From the first operation that is to be told by a signal: */
    int pipe_read_fd;  /* owned; -1 before */
    int pipe_write_fd; /* owned */
    int signal_fd;     /* owned; readable while the signal is pending */
    int signal_number;
    sigset_t signals; /* the signal, and SIGIO, which comes where the kernel's queue is full */
    sigset_t mask_before;
    bool has_mask;

    struct pr_aio *oldest, *newest; /* done, and not told yet */
    size_t early;                   /* signals that were taken before their operations came */
};

/* Makes the eventfd.  Returns 0 or a negative errno.  Any thread. */
int pr_notifier_init(struct pr_notifier *notifier);

/* Closes everything.  Any thread, when no other uses it. */
void pr_notifier_deinit(struct pr_notifier *notifier);

/* Makes the pipe and its signal ready, for the calling thread, once.  Returns 0 or a negative
 * errno. */
int pr_notifier_prepare_signal(struct pr_notifier *notifier);

/* Gives the thread the mask back that it had before, and takes the signals that are left. */
void pr_notifier_end(struct pr_notifier *notifier);

/* What is written, and where, for one operation to be announced. */
static inline int pr_notifier_fd(const struct pr_notifier *notifier, enum pr_notify notify)
{
    return notify == PR_NOTIFY_SIGNAL ? notifier->pipe_write_fd : notifier->event_fd;
}
extern const uint64_t pr_notifier_one;
static inline uint32_t pr_notifier_bytes(enum pr_notify notify)
{
    return notify == PR_NOTIFY_SIGNAL ? 1 : sizeof pr_notifier_one;
}

/* Writes it; for an operation that the kernel does not announce itself.  Returns 0 or a negative
 * errno. */
int pr_notifier_write(const struct pr_notifier *notifier, enum pr_notify notify);

/* Keeps an operation that is done until its signal has come.  Returns false where that was taken
 * already: the kernel may report it before the operation. */
bool pr_notifier_await(struct pr_notifier *notifier, struct pr_aio *aio);

/* Takes the signals that have come, and returns the operations that they stand for, linked by
 * `next`; NULL for none. */
struct pr_aio *pr_notifier_take(struct pr_notifier *notifier);

#endif
