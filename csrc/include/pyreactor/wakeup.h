/*
 * Wakeup: the one way into the loop from another thread.  Callbacks travel through the inbox, a
 * lock-free list that any thread pushes to and the loop takes whole; an eventfd ends the loop's
 * sleep, and is written only while the loop really sleeps.
 */
#ifndef PYREACTOR_WAKEUP_H
#define PYREACTOR_WAKEUP_H

#include <stdatomic.h>
#include <stdbool.h>

#include "pyreactor/callback.h"

enum pr_wakeup_state {
    PR_AWAKE,    /* the loop will look at the inbox by itself */
    PR_SLEEPING, /* the loop waits: the first to come must write the eventfd */
    PR_WOKEN,    /* somebody wrote it already */
};

struct pr_wakeup {
    int fd; /* owned eventfd */
    _Atomic(int) state;
    _Atomic(struct pr_callback *) inbox; /* newest first */
};

/* Makes the eventfd.  Returns 0 or a negative errno.  Any thread. */
int pr_wakeup_init(struct pr_wakeup *wakeup);

/* Closes the eventfd.  Loop thread only. */
void pr_wakeup_deinit(struct pr_wakeup *wakeup);

/* Puts `callback` in the inbox and wakes the loop where it sleeps.  Any thread. */
void pr_wakeup_post(struct pr_wakeup *wakeup, struct pr_callback *callback);

/* Puts it there without waking: for who wakes once for several, or in another way.  Any thread. */
void pr_wakeup_push(struct pr_wakeup *wakeup, struct pr_callback *callback);

/* Makes the loop return from its wait soon.  Any thread; async-signal-safe. */
void pr_wakeup_wake(struct pr_wakeup *wakeup);

/*
 * Says that the loop is about to wait.  Returns false where the inbox holds something already: then
 * the loop must not sleep.  Pairs with pr_wakeup_end_sleep().  The waiting thread only.
 */
bool pr_wakeup_begin_sleep(struct pr_wakeup *wakeup);

/* Says that the wait is over.  The waiting thread only. */
void pr_wakeup_end_sleep(struct pr_wakeup *wakeup);

/* Empties the eventfd after its readiness event.  Loop thread only. */
void pr_wakeup_drain(struct pr_wakeup *wakeup);

/* Takes the whole inbox, oldest first, linked by `next`; NULL where empty.  Loop thread only. */
struct pr_callback *pr_wakeup_take_inbox(struct pr_wakeup *wakeup);

#endif
