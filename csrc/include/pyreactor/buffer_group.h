/*
 * The buffers of a proactor, out of a pool: some that the kernel chooses from when bytes are there
 * (a provided-buffer ring of io_uring), so that a connection that waits holds none; and any other
 * buffer of the pool, taken for one operation.
 *
 * A buffer has one owner: the pool or the kernel, the operation that reads into it, the worker that
 * has its result, and then the pool or the kernel again.
 */
#ifndef PYREACTOR_BUFFER_GROUP_H
#define PYREACTOR_BUFFER_GROUP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/bell.h"
#include "pyreactor/buffer_pool.h"

#define PR_GROUP_BUFFERS_MAX 32768u /* what one ring of the kernel holds */

struct pr_uring_buffer;

struct pr_buffer_group {
    struct pr_buffer_pool *pool;                      /* borrowed */
    struct pr_bell bell;                              /* rings when a buffer is back in the pool */
    void (*on_return)(struct pr_buffer_group *group); /* one that was wanted is back; any thread */

    /* The kernel's buffers: */
    uint32_t *buffers; /* owned; by their number in the ring */
    int32_t *numbers;  /* owned; by their index in the pool, -1: not the kernel's */
    uint32_t count;
    pthread_mutex_t lock;
    struct pr_uring_buffer *ring; /* borrowed; under the lock, as the next two */
    uint16_t ring_mask;
    uint16_t ring_tail;

    atomic_bool wanted;            /* an operation waits for one of the kernel's */
    _Atomic(uint64_t) taken;       /* how often an operation got one */
    _Atomic(uint64_t) released;    /* ... and gave it back */
    _Atomic(uint32_t) kernel_free; /* of the kernel's, those that no operation has */
    _Atomic(uint64_t) exhaustions; /* how often there was none */
};

/* Makes a group without buffers of the kernel's.  One thread, before any other uses it. */
void pr_buffer_group_init(struct pr_buffer_group *group, struct pr_buffer_pool *pool,
                          void (*on_return)(struct pr_buffer_group *group));

/* Gives all its buffers back to the pool.  One thread, when no operation has one and the kernel's
 * ring is gone. */
void pr_buffer_group_deinit(struct pr_buffer_group *group);

/*
 * Takes up to `count` buffers of the pool and lets the kernel choose from them, through `ring`,
 * which has `entries` places (a power of two) and is registered.  Returns 0 or -ENOMEM, -ENOBUFS.
 * One thread, before any other uses it.
 */
int pr_buffer_group_provide(struct pr_buffer_group *group, struct pr_uring_buffer *ring,
                            uint32_t entries, uint32_t count);

/* Takes a buffer of the pool.  Returns its index, or PR_BUFFER_NONE.  Any thread. */
uint32_t pr_buffer_group_acquire(struct pr_buffer_group *group);

/* The buffer that the kernel has taken, by its number in the ring.  The thread that reads the
 * completions. */
uint32_t pr_buffer_group_taken(struct pr_buffer_group *group, uint32_t number);

/*
 * Says that operations wait, for one of the kernel's buffers or, with `of_pool`, for one of the
 * pool: on_return() will be called when one is back.  Look whether one is free once more after it.
 * Any thread.
 */
void pr_buffer_group_want(struct pr_buffer_group *group, bool of_pool);

/* Gives a buffer back to whom it belongs.  Any thread. */
void pr_buffer_group_release(struct pr_buffer_group *group, uint32_t index);

#endif
