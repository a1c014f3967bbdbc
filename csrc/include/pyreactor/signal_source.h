/*
 * A source of signals: a descriptor that is readable when one of its signals is pending, so that
 * signals come with the other events, one by one, counted, and no code runs in a signal handler.
 *
 * A signal stays pending while the threads block it.  The calling thread and those it starts do;
 * where a signal finds a thread that does not, a small handler blocks it there, for good, and sends
 * the signal once more.
 */
#ifndef PYREACTOR_SIGNAL_SOURCE_H
#define PYREACTOR_SIGNAL_SOURCE_H

#include <signal.h>
#include <stdint.h>

struct pr_signal_source {
    int fd; /* owned signalfd */
    sigset_t signals;
    struct sigaction old_actions[_NSIG];
};

/* Makes a source without signals.  Returns 0 or a negative errno.  Any thread. */
int pr_signal_source_init(struct pr_signal_source *source);

/* Removes the signals that are left and closes it.  The thread that added them. */
void pr_signal_source_deinit(struct pr_signal_source *source);

/* Adds a signal, and blocks it in the calling thread.  Returns 0 or a negative errno: -EINVAL for
 * what cannot be caught.  One thread at a time. */
int pr_signal_source_add(struct pr_signal_source *source, int signal_number);

/* Gives a signal back to who had it before, and unblocks it in the calling thread.  Returns 0 or
 * -ENOENT.  The thread that added it. */
int pr_signal_source_remove(struct pr_signal_source *source, int signal_number);

/* Takes up to `max` signals.  Returns how many, 0 for none, or a negative errno.  Any thread. */
int pr_signal_source_read(struct pr_signal_source *source, int *signal_numbers, int max);

#endif
