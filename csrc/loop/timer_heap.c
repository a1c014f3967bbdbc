/*
 * The timer heap.  Four children a node: half the levels of a binary heap, and the children stand
 * in one or two cache lines.
 */
#include "pyreactor/timer_heap.h"

#include <errno.h>
#include <stdlib.h>

#define CHILDREN 4
#define INITIAL_CAPACITY 64

void pr_timer_heap_init(struct pr_timer_heap *heap)
{
    *heap = (struct pr_timer_heap){0};
}

void pr_timer_heap_deinit(struct pr_timer_heap *heap)
{
    free(heap->entries);
    *heap = (struct pr_timer_heap){0};
}

static bool is_before(const struct pr_timer_entry *a, const struct pr_timer_entry *b)
{
    if (a->deadline_ns != b->deadline_ns)
        return a->deadline_ns < b->deadline_ns;
    return a->order < b->order;
}

static void place(struct pr_timer_heap *heap, size_t index, struct pr_timer_entry entry)
{
    heap->entries[index] = entry;
    entry.timer->heap_index = index;
}

/* Puts `entry` at `index` or above it. */
static void sift_up(struct pr_timer_heap *heap, size_t index, struct pr_timer_entry entry)
{
    while (index > 0) {
        size_t parent = (index - 1) / CHILDREN;
        if (!is_before(&entry, &heap->entries[parent]))
            break;
        place(heap, index, heap->entries[parent]);
        index = parent;
    }
    place(heap, index, entry);
}

/* Puts `entry` at `index` or below it. */
static void sift_down(struct pr_timer_heap *heap, size_t index, struct pr_timer_entry entry)
{
    for (;;) {
        size_t first = index * CHILDREN + 1;
        if (first >= heap->count)
            break;
        size_t end = first + CHILDREN < heap->count ? first + CHILDREN : heap->count;
        size_t earliest = first;
        for (size_t child = first + 1; child < end; child++)
            if (is_before(&heap->entries[child], &heap->entries[earliest]))
                earliest = child;
        if (!is_before(&heap->entries[earliest], &entry))
            break;
        place(heap, index, heap->entries[earliest]);
        index = earliest;
    }
    place(heap, index, entry);
}

int pr_timer_heap_push(struct pr_timer_heap *heap, struct pr_timer *timer)
{
    if (heap->count == heap->capacity) {
        size_t capacity = heap->capacity ? heap->capacity * 2 : INITIAL_CAPACITY;
        struct pr_timer_entry *entries = realloc(heap->entries, capacity * sizeof *entries);
        if (!entries)
            return -ENOMEM;
        heap->entries = entries;
        heap->capacity = capacity;
    }
    struct pr_timer_entry entry = {
        .deadline_ns = timer->deadline_ns, .order = heap->next_order++, .timer = timer};
    sift_up(heap, heap->count++, entry);
    return 0;
}

void pr_timer_heap_remove(struct pr_timer_heap *heap, struct pr_timer *timer)
{
    size_t index = timer->heap_index;
    if (index == PR_TIMER_IDLE)
        return;
    timer->heap_index = PR_TIMER_IDLE;
    struct pr_timer_entry last = heap->entries[--heap->count];
    if (last.timer == timer)
        return;
    if (index > 0 && is_before(&last, &heap->entries[(index - 1) / CHILDREN]))
        sift_up(heap, index, last);
    else
        sift_down(heap, index, last);
}

struct pr_timer *pr_timer_heap_pop(struct pr_timer_heap *heap)
{
    if (heap->count == 0)
        return NULL;
    struct pr_timer *timer = heap->entries[0].timer;
    pr_timer_heap_remove(heap, timer);
    return timer;
}
