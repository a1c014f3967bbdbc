/*
 * The ready queue: callbacks that are due, first in first out.  A growing circular array of
 * pointers, touched by the loop's thread alone.
 */
#ifndef PYREACTOR_READY_QUEUE_H
#define PYREACTOR_READY_QUEUE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/callback.h"

struct pr_ready_queue {
    struct pr_callback **slots; /* owned; the callbacks in it are borrowed */
    size_t capacity;            /* a power of two */
    size_t head;                /* next to pop; counts up for ever */
    size_t tail;                /* next to push; counts up for ever */
};

/* Makes an empty queue.  Returns 0 or -ENOMEM.  Loop thread only. */
int pr_ready_queue_init(struct pr_ready_queue *queue);

/* Frees the array; callbacks still queued are forgotten.  Loop thread only. */
void pr_ready_queue_deinit(struct pr_ready_queue *queue);

/* Doubles the capacity.  Returns 0 or -ENOMEM.  Loop thread only. */
int pr_ready_queue_grow(struct pr_ready_queue *queue);

/* How many callbacks wait.  Loop thread only. */
static inline size_t pr_ready_queue_count(const struct pr_ready_queue *queue)
{
    return queue->tail - queue->head;
}

/* Appends `callback`.  Returns 0 or -ENOMEM.  Loop thread only. */
static inline int pr_ready_queue_push(struct pr_ready_queue *queue, struct pr_callback *callback)
{
    if (queue->tail - queue->head == queue->capacity && pr_ready_queue_grow(queue) < 0)
        return -ENOMEM;
    queue->slots[queue->tail++ & (queue->capacity - 1)] = callback;
    return 0;
}

/* Takes the oldest callback, or NULL where there is none.  Loop thread only. */
static inline struct pr_callback *pr_ready_queue_pop(struct pr_ready_queue *queue)
{
    if (queue->head == queue->tail)
        return NULL;
    return queue->slots[queue->head++ & (queue->capacity - 1)];
}

#endif
