/*
 * The kernel's ring of buffers, which any thread refills, and the bell for those of the pool.
 */
#include "pyreactor/buffer_group.h"

#include <errno.h>
#include <stdlib.h>

#include "pyreactor/uring_map.h"

static void ring_bell(struct pr_bell *bell)
{
    struct pr_buffer_group *group =
        (struct pr_buffer_group *)(void *)((char *)bell - offsetof(struct pr_buffer_group, bell));
    group->on_return(group);
}

void pr_buffer_group_init(struct pr_buffer_group *group, struct pr_buffer_pool *pool,
                          void (*on_return)(struct pr_buffer_group *group))
{
    *group = (struct pr_buffer_group){.pool = pool, .on_return = on_return};
    group->bell.ring = ring_bell;
    pthread_mutex_init(&group->lock, NULL); /* cannot fail on Linux */
}

void pr_buffer_group_deinit(struct pr_buffer_group *group)
{
    (void)pr_bell_disarm(&group->pool->bells, &group->bell);
    for (uint32_t number = 0; number < group->count; number++)
        (void)pr_buffer_pool_release(group->pool, group->buffers[number]);
    free(group->buffers);
    free(group->numbers);
    pthread_mutex_destroy(&group->lock);
}

static void give_to_kernel_locked(struct pr_buffer_group *group, uint32_t number)
{
    struct pr_uring_buffer *place = &group->ring[group->ring_tail & group->ring_mask];
    place->address = (uint64_t)(uintptr_t)pr_buffer_pool_data(group->pool, group->buffers[number]);
    place->length = (uint32_t)group->pool->buffer_bytes;
    place->id = (uint16_t)number;
    /* Pairs with the kernel's acquire of the tail: publishes the buffer. */
    atomic_store_explicit((_Atomic uint16_t *)&group->ring->tail, ++group->ring_tail,
                          memory_order_release);
    atomic_fetch_add(&group->kernel_free, 1);
}

int pr_buffer_group_provide(struct pr_buffer_group *group, struct pr_uring_buffer *ring,
                            uint32_t entries, uint32_t count)
{
    group->buffers = malloc(count * sizeof *group->buffers);
    group->numbers = malloc(group->pool->count * sizeof *group->numbers);
    if (!group->buffers || !group->numbers)
        return -ENOMEM;
    for (uint32_t index = 0; index < group->pool->count; index++)
        group->numbers[index] = -1;
    group->ring = ring;
    group->ring_mask = (uint16_t)(entries - 1);
    pthread_mutex_lock(&group->lock);
    while (group->count < count) {
        int index = pr_buffer_pool_acquire(group->pool);
        if (index < 0) /* others have some: with fewer it works as well */
            break;
        group->buffers[group->count] = (uint32_t)index;
        group->numbers[index] = (int32_t)group->count;
        give_to_kernel_locked(group, group->count++);
    }
    pthread_mutex_unlock(&group->lock);
    return group->count > 0 ? 0 : -ENOBUFS;
}

uint32_t pr_buffer_group_acquire(struct pr_buffer_group *group)
{
    int index = pr_buffer_pool_acquire(group->pool);
    if (index < 0) {
        atomic_fetch_add_explicit(&group->exhaustions, 1, memory_order_relaxed);
        return PR_BUFFER_NONE;
    }
    atomic_fetch_add_explicit(&group->taken, 1, memory_order_relaxed);
    return (uint32_t)index;
}

uint32_t pr_buffer_group_taken(struct pr_buffer_group *group, uint32_t number)
{
    atomic_fetch_add_explicit(&group->taken, 1, memory_order_relaxed);
    atomic_fetch_sub(&group->kernel_free, 1);
    return group->buffers[number];
}

void pr_buffer_group_want(struct pr_buffer_group *group, bool of_pool)
{
    atomic_store(&group->wanted, true);
    if (of_pool)
        pr_bell_arm(&group->pool->bells, &group->bell);
}

void pr_buffer_group_release(struct pr_buffer_group *group, uint32_t index)
{
    atomic_fetch_add_explicit(&group->released, 1, memory_order_relaxed);
    int32_t number = group->numbers ? group->numbers[index] : -1;
    if (number < 0) {
        (void)pr_buffer_pool_release(group->pool, index); /* it was lent */
        return;
    }
    pthread_mutex_lock(&group->lock);
    give_to_kernel_locked(group, (uint32_t)number);
    pthread_mutex_unlock(&group->lock);
    /* Whoever wants one looks for it after it has said so: one of the two sees the other. */
    if (atomic_load(&group->wanted) && atomic_exchange(&group->wanted, false))
        group->on_return(group);
}
