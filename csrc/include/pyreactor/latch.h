/*
 * The latch: closed until somebody opens it, once and for good; threads wait until then.  Opening
 * makes no system call where nobody waits, and looking costs one load.
 */
#ifndef PYREACTOR_LATCH_H
#define PYREACTOR_LATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/parker.h"

struct pr_latch {
    struct pr_parker parker;
    _Atomic(bool) opened;
};

/* Makes a closed latch.  One thread, before any other uses it. */
static inline void pr_latch_init(struct pr_latch *latch)
{
    pr_parker_init(&latch->parker, 0);
    atomic_init(&latch->opened, false);
}

/* Whether it was opened; what the opener did before is then seen.  Any thread. */
static inline bool pr_latch_is_open(struct pr_latch *latch)
{
    return atomic_load_explicit(&latch->opened, memory_order_seq_cst);
}

/*
 * Opens it and wakes all who wait, in two steps: the opener may do something in between, release a
 * lock for example that those who wake will want.  Does nothing the second time.  Any thread.
 */
static inline void pr_latch_open_quietly(struct pr_latch *latch)
{
    atomic_store_explicit(&latch->opened, true, memory_order_seq_cst);
}
static inline void pr_latch_wake(struct pr_latch *latch)
{
    pr_unpark(&latch->parker, PR_UNPARK_ALL);
}

/* Both.  Any thread. */
static inline void pr_latch_open(struct pr_latch *latch)
{
    pr_latch_open_quietly(latch);
    pr_latch_wake(latch);
}

/* What pr_latch_wait() looks at before it sleeps.  Any thread. */
static inline bool pr_latch_look(void *argument)
{
    return pr_latch_is_open((struct pr_latch *)argument);
}

/*
 * Waits until it is open, as pr_park() waits: returns 0, -ETIMEDOUT, -EINTR or -EUSERS.  Any
 * thread.
 */
static inline int pr_latch_wait(struct pr_latch *latch, int64_t deadline_ns)
{
    if (pr_latch_is_open(latch))
        return 0;
    return pr_park(&latch->parker, pr_latch_look, latch, deadline_ns);
}

#endif
