/*
 * The buffer pool: memory for receiving and sending that is mapped and touched once, when the pool
 * is made.  Lending and giving back make no system call, but where a thread sleeps for a buffer.  A
 * pool that has none left is back-pressure, not an error: who needs one waits, or leaves its data
 * where it is until a buffer is given back.
 *
 * The buffers lie one after the other in one piece, so that a whole pool can be registered with
 * io_uring as one region, and a buffer's number can be the buffer id of a provided-buffer ring: who
 * binds such a ring acquires buffers, hands them to the kernel, and releases what comes back.
 *
 * All functions: any thread, unless they say otherwise.
 */
#ifndef PYREACTOR_BUFFER_POOL_H
#define PYREACTOR_BUFFER_POOL_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/bell.h"
#include "pyreactor/parker.h"

#define PR_BUFFER_ALIGNMENT 64          /* a cache line: neighbours do not share one */
#define PR_BUFFERS_MAX (1u << 24)       /* of one pool */
#define PR_BUFFER_NONE UINT32_MAX       /* no buffer: the end of the list of free ones */
#define PR_BUFFER_LENT (UINT32_MAX - 1) /* in `next`: not in the list */

struct pr_buffer_pool {
    char *memory;        /* owned: all buffers, page-aligned */
    size_t buffer_bytes; /* of one, a multiple of PR_BUFFER_ALIGNMENT */
    uint32_t count;
    _Atomic(uint32_t) *next; /* owned: the free buffer after this one, or PR_BUFFER_LENT */
    /* The free buffer given back last, in the lower half; changes, counted, in the upper. */
    alignas(PR_BUFFER_ALIGNMENT) _Atomic(uint64_t) first;
    _Atomic(uint32_t) lent_count;
    _Atomic(uint32_t) lent_max;                           /* the most that were lent at one time */
    _Atomic(uint64_t) exhausted;                          /* how often there was none */
    alignas(PR_BUFFER_ALIGNMENT) struct pr_parker parker; /* threads that wait for a buffer */
    struct pr_bell_list bells;                            /* loops that do; rung for one each */
};

/*
 * Maps `count` buffers of at least `buffer_bytes`, and touches every page.  The pool's own memory
 * must be aligned to PR_BUFFER_ALIGNMENT.  Returns 0, -EINVAL where one of the numbers is 0 or too
 * large, or -ENOMEM.  One thread, before any other uses it.
 */
int pr_buffer_pool_init(struct pr_buffer_pool *pool, size_t buffer_bytes, uint32_t count);

/* Unmaps the buffers, none of which is lent.  One thread, after all others. */
void pr_buffer_pool_deinit(struct pr_buffer_pool *pool);

/* Lends a buffer, the one given back last.  Returns its number, or -ENOBUFS. */
int pr_buffer_pool_acquire(struct pr_buffer_pool *pool);

/*
 * The same, but waits for one, until `deadline_ns` on the clock of pr_now_ns() at most; INT64_MAX
 * is for ever.  Returns its number, -ETIMEDOUT, -EINTR where a signal handler ran, for the caller
 * to call again, or -EUSERS where too many threads wait.
 */
int pr_buffer_pool_wait(struct pr_buffer_pool *pool, int64_t deadline_ns);

/*
 * Takes a buffer back, and wakes a thread or else rings a bell that waits for one.  Returns 0, or
 * -EINVAL where the number is of no buffer that is lent.
 */
int pr_buffer_pool_release(struct pr_buffer_pool *pool, uint32_t index);

/*
 * Wakes one that waits if a buffer is free: for a loop whose bell rang and that does not take what
 * it was rung for.
 */
void pr_buffer_pool_pass_on(struct pr_buffer_pool *pool);

/* Where a buffer begins. */
static inline char *pr_buffer_pool_data(struct pr_buffer_pool *pool, uint32_t index)
{
    return pool->memory + (size_t)index * pool->buffer_bytes;
}

/* The number of the buffer that holds `address`, or PR_BUFFER_NONE. */
static inline uint32_t pr_buffer_pool_index(struct pr_buffer_pool *pool, const char *address)
{
    uintptr_t offset = (uintptr_t)address - (uintptr_t)pool->memory;
    return offset < (size_t)pool->count * pool->buffer_bytes
               ? (uint32_t)(offset / pool->buffer_bytes)
               : PR_BUFFER_NONE;
}

/* Whether a buffer is free now. */
static inline bool pr_buffer_pool_has_free(struct pr_buffer_pool *pool)
{
    return (uint32_t)atomic_load_explicit(&pool->first, memory_order_seq_cst) != PR_BUFFER_NONE;
}

#endif
