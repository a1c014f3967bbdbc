/*
 * Timers: a 4-ary min-heap over deadlines.  Each timer knows its place, so that cancelling takes it
 * out at once (O(log n)) and cancelled timers never pile up.  Equal deadlines leave in the order in
 * which they came.
 */
#ifndef PYREACTOR_TIMER_HEAP_H
#define PYREACTOR_TIMER_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/callback.h"

#define PR_TIMER_IDLE SIZE_MAX /* a timer's heap_index while it is in no heap */

struct pr_timer {
    struct pr_callback callback;
    int64_t deadline_ns;
    size_t heap_index; /* kept by the heap */
};

/* Deadline and order stand beside the pointer: sifting reads no timer's own memory. */
struct pr_timer_entry {
    int64_t deadline_ns;
    uint64_t order;
    struct pr_timer *timer; /* borrowed until popped or removed */
};

struct pr_timer_heap {
    struct pr_timer_entry *entries; /* owned */
    size_t count;
    size_t capacity;
    uint64_t next_order;
};

/* Makes an empty heap; allocates nothing yet.  Loop thread only. */
void pr_timer_heap_init(struct pr_timer_heap *heap);

/* Frees the array; timers still in it are forgotten.  Loop thread only. */
void pr_timer_heap_deinit(struct pr_timer_heap *heap);

/* Adds an idle timer by its deadline_ns.  Returns 0 or -ENOMEM.  Loop thread only. */
int pr_timer_heap_push(struct pr_timer_heap *heap, struct pr_timer *timer);

/* Takes `timer` out; does nothing where it is idle.  Loop thread only. */
void pr_timer_heap_remove(struct pr_timer_heap *heap, struct pr_timer *timer);

/* Takes the earliest timer, or NULL.  Loop thread only. */
struct pr_timer *pr_timer_heap_pop(struct pr_timer_heap *heap);

/* True where the earliest deadline is at or before `now_ns`.  Loop thread only. */
static inline bool pr_timer_heap_has_due(const struct pr_timer_heap *heap, int64_t now_ns)
{
    return heap->count != 0 && heap->entries[0].deadline_ns <= now_ns;
}

#endif
