/*
 * The ready queue's memory.  Pushing and popping are inline in the header.
 */
#include "pyreactor/ready_queue.h"

#include <stdlib.h>

#define INITIAL_CAPACITY 64

int pr_ready_queue_init(struct pr_ready_queue *queue)
{
    *queue = (struct pr_ready_queue){.capacity = INITIAL_CAPACITY};
    queue->slots = malloc(INITIAL_CAPACITY * sizeof *queue->slots);
    return queue->slots ? 0 : -ENOMEM;
}

void pr_ready_queue_deinit(struct pr_ready_queue *queue)
{
    free(queue->slots);
    *queue = (struct pr_ready_queue){0};
}

int pr_ready_queue_grow(struct pr_ready_queue *queue)
{
    size_t capacity = queue->capacity * 2;
    struct pr_callback **slots = malloc(capacity * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    size_t count = pr_ready_queue_count(queue);
    for (size_t i = 0; i < count; i++)
        slots[i] = queue->slots[(queue->head + i) & (queue->capacity - 1)];
    free(queue->slots);
    *queue = (struct pr_ready_queue){.slots = slots, .capacity = capacity, .tail = count};
    return 0;
}
