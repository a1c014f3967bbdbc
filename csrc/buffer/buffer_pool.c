/*
 * The free buffers are a stack, so that the one that is lent next is the one whose memory is most
 * likely still in the cache.  The links stand beside the buffers, not in them: a buffer that the
 * kernel writes to too late breaks nothing but itself.  The counter in the head tells a head from
 * an earlier one of the same buffer.
 */
#include "pyreactor/buffer_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHANGE ((uint64_t)1 << 32)

static uint64_t head_after(uint64_t head, uint32_t first)
{
    return ((head & ~(uint64_t)UINT32_MAX) + CHANGE) | first;
}

static void link_all(struct pr_buffer_pool *pool)
{
    for (uint32_t index = 0; index < pool->count; index++)
        atomic_init(&pool->next[index], index + 1 < pool->count ? index + 1 : PR_BUFFER_NONE);
    atomic_init(&pool->first, 0);
    atomic_init(&pool->lent_count, 0);
    atomic_init(&pool->lent_max, 0);
    atomic_init(&pool->exhausted, 0);
}

int pr_buffer_pool_init(struct pr_buffer_pool *pool, size_t buffer_bytes, uint32_t count)
{
    memset(pool, 0, sizeof *pool);
    if (buffer_bytes == 0 || buffer_bytes > INT32_MAX || count == 0 || count > PR_BUFFERS_MAX)
        return -EINVAL;
    pool->count = count;
    pool->buffer_bytes =
        (buffer_bytes + PR_BUFFER_ALIGNMENT - 1) / PR_BUFFER_ALIGNMENT * PR_BUFFER_ALIGNMENT;
    pool->next = malloc(count * sizeof *pool->next);
    if (!pool->next)
        return -ENOMEM;
    size_t size = count * pool->buffer_bytes;
    pool->memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int error = -ENOMEM;
    if (pool->memory == MAP_FAILED)
        goto free_next;
    error = pr_bell_list_init(&pool->bells);
    if (error < 0)
        goto unmap;
    pr_parker_init(&pool->parker, 0);
    link_all(pool);
    return 0;

unmap:
    munmap(pool->memory, size);
free_next:
    free(pool->next);
    return error;
}

void pr_buffer_pool_deinit(struct pr_buffer_pool *pool)
{
    pr_bell_list_deinit(&pool->bells);
    munmap(pool->memory, (size_t)pool->count * pool->buffer_bytes);
    free(pool->next);
    pool->memory = NULL;
    pool->next = NULL;
}

static void note_lent(struct pr_buffer_pool *pool)
{
    uint32_t lent = atomic_fetch_add_explicit(&pool->lent_count, 1, memory_order_relaxed) + 1;
    uint32_t most = atomic_load_explicit(&pool->lent_max, memory_order_relaxed);
    while (lent > most &&
           !atomic_compare_exchange_weak_explicit(&pool->lent_max, &most, lent,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

int pr_buffer_pool_acquire(struct pr_buffer_pool *pool)
{
    uint64_t head = atomic_load_explicit(&pool->first, memory_order_acquire);
    uint32_t index;
    uint32_t next;
    do {
        index = (uint32_t)head;
        if (index == PR_BUFFER_NONE) {
            atomic_fetch_add_explicit(&pool->exhausted, 1, memory_order_relaxed);
            return -ENOBUFS;
        }
        /* Where another thread was faster this is out of date, and the exchange notices. */
        next = atomic_load_explicit(&pool->next[index], memory_order_relaxed);
    } while (!atomic_compare_exchange_weak_explicit(&pool->first, &head, head_after(head, next),
                                                    memory_order_acquire, memory_order_acquire));
    atomic_store_explicit(&pool->next[index], PR_BUFFER_LENT, memory_order_relaxed);
    note_lent(pool);
    return (int)index;
}

static bool has_free(void *argument)
{
    return pr_buffer_pool_has_free(argument);
}

int pr_buffer_pool_wait(struct pr_buffer_pool *pool, int64_t deadline_ns)
{
    for (;;) {
        int result = pr_buffer_pool_acquire(pool);
        if (result != -ENOBUFS)
            return result;
        result = pr_park(&pool->parker, has_free, pool, deadline_ns);
        if (result < 0)
            return result;
    }
}

static void wake_one(struct pr_buffer_pool *pool)
{
    if (pr_unpark(&pool->parker, 1) == 0)
        pr_bell_ring(&pool->bells, 1);
}

int pr_buffer_pool_release(struct pr_buffer_pool *pool, uint32_t index)
{
    uint64_t head = atomic_load_explicit(&pool->first, memory_order_relaxed);
    uint32_t lent = PR_BUFFER_LENT;
    /* One of two who give the same buffer back is told: this is what takes it from its owner. */
    if (index >= pool->count ||
        !atomic_compare_exchange_strong_explicit(&pool->next[index], &lent, (uint32_t)head,
                                                 memory_order_relaxed, memory_order_relaxed))
        return -EINVAL;
    /* Before it can be lent again, so that the count is never more than there are. */
    atomic_fetch_sub_explicit(&pool->lent_count, 1, memory_order_relaxed);
    /* Publishes the link, and pairs with the look at `first` before a thread sleeps. */
    while (!atomic_compare_exchange_weak_explicit(&pool->first, &head, head_after(head, index),
                                                  memory_order_seq_cst, memory_order_relaxed))
        atomic_store_explicit(&pool->next[index], (uint32_t)head, memory_order_relaxed);
    wake_one(pool);
    return 0;
}

void pr_buffer_pool_pass_on(struct pr_buffer_pool *pool)
{
    if (pr_buffer_pool_has_free(pool))
        wake_one(pool);
}
