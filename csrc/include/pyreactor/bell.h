/*
 * Bells: how an event loop waits for something that happens in other threads.  A thread sleeps on a
 * parker or a condition; a loop must not, so it arms a bell, looks once more, and goes on with its
 * turns.  Whoever makes the thing happen rings: the bell's function tells the loop, by an eventfd
 * for example.  A bell rings once for each time it was armed.
 */
#ifndef PYREACTOR_BELL_H
#define PYREACTOR_BELL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pr_bell {
    /* Tells the owner.  Called on any thread, with the list's lock held: short, no arming. */
    void (*ring)(struct pr_bell *bell);
    struct pr_bell *next; /* in the list, while armed */
    bool armed;
};

/* The bells that are armed, longest first. */
struct pr_bell_list {
    _Atomic(uint32_t) count; /* changes under the lock, is read without */
    pthread_mutex_t lock;
    struct pr_bell *first;
    struct pr_bell *last;
};

/* Makes an empty list.  Returns 0 or a negative errno.  One thread, before any other uses it. */
int pr_bell_list_init(struct pr_bell_list *list);

/* Frees the list, in which no bell is left.  One thread, after all others. */
void pr_bell_list_deinit(struct pr_bell_list *list);

/*
 * Arms `bell`, which stays where it is and alive until it rang or was disarmed.  The caller looks
 * after it whether what it waits for has happened meanwhile.  Does nothing where it is armed.  Any
 * thread.
 */
void pr_bell_arm(struct pr_bell_list *list, struct pr_bell *bell);

/*
 * Disarms `bell`: it does not ring any more when this returns.  Returns whether it was armed; if
 * not, it rang, or never was.  Any thread.
 */
bool pr_bell_disarm(struct pr_bell_list *list, struct pr_bell *bell);

/* Rings up to `max` bells, those armed first.  Any thread. */
void pr_bell_ring_armed(struct pr_bell_list *list, size_t max);

/* The same; costs one load where none is armed.  Any thread. */
static inline void pr_bell_ring(struct pr_bell_list *list, size_t max)
{
    /* Pairs with the addition in pr_bell_arm(): the one who arms looks after it. */
    if (atomic_load_explicit(&list->count, memory_order_seq_cst) != 0)
        pr_bell_ring_armed(list, max);
}

#endif
