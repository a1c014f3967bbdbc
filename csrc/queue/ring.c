/*
 * The rings' memory, and what is not hot.  Pushing and popping are inline in the header.
 */
#include "pyreactor/ring.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#ifndef PR_RING_SPINS
#define PR_RING_SPINS 64 /* longer than it takes to copy a request, shorter than a system call */
#endif

static void pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

void pr_ring_wait_turn(unsigned *tries)
{
    if (++*tries <= PR_RING_SPINS)
        pause_processor();
    else
        sched_yield();
}

/* Rounds up to a power of two; 0 where there is none that is allowed. */
static uint64_t round_capacity(size_t capacity)
{
    if (capacity == 0 || capacity > PR_RING_CAPACITY_MAX)
        return 0;
    uint64_t rounded = 1;
    while (rounded < capacity)
        rounded *= 2;
    return rounded;
}

/* Zeroed memory that begins on a cache line of its own, or NULL. */
static void *new_slots(size_t size)
{
    size_t rounded = (size + PR_CACHE_LINE - 1) / PR_CACHE_LINE * PR_CACHE_LINE;
    void *slots = aligned_alloc(PR_CACHE_LINE, rounded);
    if (slots)
        memset(slots, 0, rounded);
    return slots;
}

int pr_ring_init(struct pr_ring *ring, size_t capacity)
{
    uint64_t rounded = round_capacity(capacity);
    if (!rounded)
        return -EINVAL;
    ring->slots = new_slots(rounded * sizeof *ring->slots);
    if (!ring->slots)
        return -ENOMEM;
    ring->mask = rounded - 1;
    atomic_init(&ring->tail, 0);
    atomic_init(&ring->head, 0);
    for (uint64_t position = 0; position < rounded; position++)
        atomic_init(&ring->slots[position].sequence, pr_ring_free_for(position));
    return 0;
}

int pr_spsc_ring_init(struct pr_spsc_ring *ring, size_t capacity)
{
    uint64_t rounded = round_capacity(capacity);
    if (!rounded)
        return -EINVAL;
    ring->slots = new_slots(rounded * sizeof *ring->slots);
    if (!ring->slots)
        return -ENOMEM;
    ring->mask = rounded - 1;
    ring->head_seen = ring->tail_seen = 0;
    atomic_init(&ring->tail, 0);
    atomic_init(&ring->head, 0);
    return 0;
}

static int release_visited(struct pr_request *request, void *argument)
{
    (void)argument;
    pr_request_release(request);
    return 0;
}

void pr_ring_deinit(struct pr_ring *ring)
{
    pr_ring_visit(ring, release_visited, NULL);
    free(ring->slots);
    ring->slots = NULL;
}

void pr_spsc_ring_deinit(struct pr_spsc_ring *ring)
{
    pr_spsc_ring_visit(ring, release_visited, NULL);
    free(ring->slots);
    ring->slots = NULL;
}

int pr_ring_visit(struct pr_ring *ring, int (*visit)(struct pr_request *request, void *argument),
                  void *argument)
{
    uint64_t position = atomic_load(&ring->head);
    uint64_t tail = atomic_load(&ring->tail) & ~PR_RING_CLOSED;
    for (; position != tail; position++) {
        struct pr_ring_slot *slot = &ring->slots[position & ring->mask];
        /* Neither half written nor half read, should a thread have been stopped in its midst. */
        if (atomic_load(&slot->sequence) != pr_ring_holds(position))
            continue;
        int result = visit(&slot->request, argument);
        if (result != 0)
            return result;
    }
    return 0;
}

int pr_spsc_ring_visit(struct pr_spsc_ring *ring,
                       int (*visit)(struct pr_request *request, void *argument), void *argument)
{
    uint64_t position = atomic_load(&ring->head);
    uint64_t tail = atomic_load(&ring->tail) & ~PR_RING_CLOSED;
    for (; position != tail; position++) {
        int result = visit(&ring->slots[position & ring->mask], argument);
        if (result != 0)
            return result;
    }
    return 0;
}
