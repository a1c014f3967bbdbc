/*
 * The rings: bounded queues of requests that threads share without a lock and without a system
 * call.  `pr_ring` takes any number of producers and consumers, `pr_spsc_ring` one of each.
 *
 * Both count positions that only grow; a position's slot is its lower bits.  In `pr_ring` each slot
 * has a sequence, which says whose turn it is: 2 x position while the slot is free for that
 * position, one more while it holds that position's request.  A producer claims a position by
 * moving `tail`, writes the slot and then says so in the sequence; a consumer does the same with
 * `head`.  `pr_spsc_ring` needs no sequences: its cursors themselves hand the slots over.
 *
 * The order of requests is the order of their positions, which is the order in which `tail` moved.
 * A thread that stops between its claim and its sequence holds up those that come to its slot; they
 * wait for it.  So "empty" and "full" are said only where they are true.
 *
 * Closing sets a bit in `tail`, and so has a place in the order of the pushes: none comes after it.
 *
 * The cursors move with sequentially consistent operations, because the one who moved a cursor
 * looks next for somebody asleep, who said so and looked at the cursor (parker.h): one of the two
 * has to see the other.
 */
#ifndef PYREACTOR_RING_H
#define PYREACTOR_RING_H

#include <assert.h>
#include <errno.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/request.h"

#define PR_CACHE_LINE 128 /* two of 64 bytes: processors fetch them in pairs */
#define PR_RING_CLOSED (UINT64_C(1) << 63)
#define PR_RING_CAPACITY_MAX (UINT64_C(1) << 30)

struct pr_ring_slot {
    _Atomic(uint64_t) sequence;
    struct pr_request request;
};

static_assert(sizeof(struct pr_ring_slot) == 32 || sizeof(void *) != 8,
              "a slot does not straddle two cache lines");

struct pr_ring {
    alignas(PR_CACHE_LINE) _Atomic(uint64_t) tail;     /* next to push, and PR_RING_CLOSED */
    alignas(PR_CACHE_LINE) _Atomic(uint64_t) head;     /* next to pop */
    alignas(PR_CACHE_LINE) struct pr_ring_slot *slots; /* owned */
    uint64_t mask;                                     /* the capacity, a power of two, less one */
};

static_assert(offsetof(struct pr_ring, head) - offsetof(struct pr_ring, tail) == PR_CACHE_LINE,
              "producers and consumers do not share a cache line");
static_assert(offsetof(struct pr_ring, slots) - offsetof(struct pr_ring, head) == PR_CACHE_LINE,
              "what nobody writes is on no cache line that somebody does");

struct pr_spsc_ring {
    alignas(PR_CACHE_LINE) _Atomic(uint64_t) tail; /* next to push, and PR_RING_CLOSED */
    uint64_t head_seen;                            /* the producer's: `head` when it last looked */
    alignas(PR_CACHE_LINE) _Atomic(uint64_t) head; /* next to pop */
    uint64_t tail_seen;                            /* the consumer's: `tail` when it last looked */
    alignas(PR_CACHE_LINE) struct pr_request *slots; /* owned */
    uint64_t mask;                                   /* the capacity less one */
};

static_assert(offsetof(struct pr_spsc_ring, head) - offsetof(struct pr_spsc_ring, tail) ==
                  PR_CACHE_LINE,
              "the producer and the consumer do not share a cache line");

/*
 * Makes an empty ring of at least `capacity` slots, rounded up to a power of two.  The ring's own
 * memory must be aligned to PR_CACHE_LINE.  Returns 0, -EINVAL where the capacity is 0 or more than
 * PR_RING_CAPACITY_MAX, or -ENOMEM.  One thread, before any other uses it.
 */
int pr_ring_init(struct pr_ring *ring, size_t capacity);
int pr_spsc_ring_init(struct pr_spsc_ring *ring, size_t capacity);

/* Releases the requests that are left, and frees the slots.  One thread, after all others. */
void pr_ring_deinit(struct pr_ring *ring);
void pr_spsc_ring_deinit(struct pr_spsc_ring *ring);

/*
 * Calls `visit` for each request that is in the ring; a result other than 0 ends it and is
 * returned.  One thread, while no other pushes or pops.
 */
int pr_ring_visit(struct pr_ring *ring, int (*visit)(struct pr_request *request, void *argument),
                  void *argument);
int pr_spsc_ring_visit(struct pr_spsc_ring *ring,
                       int (*visit)(struct pr_request *request, void *argument), void *argument);

/*
 * Lets time pass for another thread that has claimed a slot and not finished with it: a short spin
 * at first, then the processor goes to somebody else.  Starts with `*tries` 0.  Any thread.
 */
void pr_ring_wait_turn(unsigned *tries);

/* The two sequences of a position's slot: free for it, and with its request.  Any thread. */
static inline uint64_t pr_ring_free_for(uint64_t position)
{
    return 2 * position;
}
static inline uint64_t pr_ring_holds(uint64_t position)
{
    return 2 * position + 1;
}

/*
 * Pushes the first of `count` requests, as many as there is room for; they stand in the ring one
 * after the other.  Returns how many, -EAGAIN where the ring is full, or -ESHUTDOWN where it is
 * closed.  Any thread.
 */
static inline int pr_ring_push(struct pr_ring *ring, const struct pr_request *requests,
                               size_t count)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    uint64_t pushed;
    unsigned tries = 0;
    if (count == 0)
        return 0;
    for (;;) {
        if (tail & PR_RING_CLOSED)
            return -ESHUTDOWN;
        /* The acquire pairs with the release in pr_ring_pop(): the consumer is done with it. */
        for (pushed = 0; pushed < count; pushed++) {
            struct pr_ring_slot *slot = &ring->slots[(tail + pushed) & ring->mask];
            if (atomic_load_explicit(&slot->sequence, memory_order_acquire) !=
                pr_ring_free_for(tail + pushed))
                break;
        }
        if (pushed > 0) {
            /* Pairs with the look at `tail` before a consumer sleeps. */
            if (atomic_compare_exchange_weak_explicit(&ring->tail, &tail, tail + pushed,
                                                      memory_order_seq_cst, memory_order_relaxed))
                break;
            continue;
        }
        /* Where `tail` is out of date, `head` may be past it. */
        uint64_t head = atomic_load_explicit(&ring->head, memory_order_seq_cst);
        if (tail - head == ring->mask + 1)
            return -EAGAIN;
        uint64_t moved = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        if (moved == tail)
            pr_ring_wait_turn(&tries); /* a consumer has claimed the slot and still reads it */
        tail = moved;
    }
    for (uint64_t i = 0; i < pushed; i++) {
        struct pr_ring_slot *slot = &ring->slots[(tail + i) & ring->mask];
        slot->request = requests[i];
        /* Pairs with the acquire in pr_ring_pop(): publishes the request. */
        atomic_store_explicit(&slot->sequence, pr_ring_holds(tail + i), memory_order_release);
    }
    return (int)pushed;
}

/*
 * Pops up to `max` requests, oldest first.  Returns how many, -EAGAIN where the ring is empty, or
 * -ESHUTDOWN where it is empty and closed, and so for ever.  Any thread.
 */
static inline int pr_ring_pop(struct pr_ring *ring, struct pr_request *requests, size_t max)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t popped;
    unsigned tries = 0;
    if (max == 0)
        return 0;
    for (;;) {
        /* The acquire pairs with the release in pr_ring_push(): the request is whole. */
        for (popped = 0; popped < max; popped++) {
            struct pr_ring_slot *slot = &ring->slots[(head + popped) & ring->mask];
            if (atomic_load_explicit(&slot->sequence, memory_order_acquire) !=
                pr_ring_holds(head + popped))
                break;
        }
        if (popped > 0) {
            /* Pairs with the look at `head` before a producer sleeps. */
            if (atomic_compare_exchange_weak_explicit(&ring->head, &head, head + popped,
                                                      memory_order_seq_cst, memory_order_relaxed))
                break;
            continue;
        }
        uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_seq_cst);
        if ((tail & ~PR_RING_CLOSED) == head)
            return tail & PR_RING_CLOSED ? -ESHUTDOWN : -EAGAIN;
        uint64_t moved = atomic_load_explicit(&ring->head, memory_order_relaxed);
        if (moved == head)
            pr_ring_wait_turn(&tries); /* a producer has claimed the slot and still writes it */
        head = moved;
    }
    for (uint64_t i = 0; i < popped; i++) {
        struct pr_ring_slot *slot = &ring->slots[(head + i) & ring->mask];
        requests[i] = slot->request;
        /* Pairs with the acquire in pr_ring_push(): the slot is free for its next position. */
        atomic_store_explicit(&slot->sequence, pr_ring_free_for(head + i + ring->mask + 1),
                              memory_order_release);
    }
    return (int)popped;
}

/* Lets no push succeed from here on; what is in the ring can be popped.  Any thread. */
static inline void pr_ring_close(struct pr_ring *ring)
{
    atomic_fetch_or_explicit(&ring->tail, PR_RING_CLOSED, memory_order_seq_cst);
}

/* Tells whether the ring was closed.  Any thread. */
static inline bool pr_ring_is_closed(struct pr_ring *ring)
{
    return atomic_load_explicit(&ring->tail, memory_order_seq_cst) & PR_RING_CLOSED;
}

/*
 * How many positions are claimed and not popped.  Exact while no other thread pushes or pops; else
 * a number that was true at some moment of the call, or nearly.  Any thread.
 */
static inline size_t pr_ring_depth(struct pr_ring *ring)
{
    /* In this order the difference cannot be negative. */
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_seq_cst) & ~PR_RING_CLOSED;
    uint64_t depth = tail - head;
    return (size_t)(depth > ring->mask ? ring->mask + 1 : depth);
}

/*
 * Pushes as pr_ring_push() does.  The producer's thread only.
 */
static inline int pr_spsc_ring_push(struct pr_spsc_ring *ring, const struct pr_request *requests,
                                    size_t count)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail & PR_RING_CLOSED)
        return -ESHUTDOWN;
    uint64_t room = ring->mask + 1 - (tail - ring->head_seen);
    if (room < count) {
        /* Pairs with the store in pr_spsc_ring_pop(): the consumer is done with the slots. */
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_seq_cst);
        room = ring->mask + 1 - (tail - ring->head_seen);
        if (room == 0 && count > 0)
            return -EAGAIN;
    }
    uint64_t pushed = count < room ? count : room;
    for (uint64_t i = 0; i < pushed; i++)
        ring->slots[(tail + i) & ring->mask] = requests[i];
    /* Publishes the requests.  Only closing moves `tail` as well, and then nothing was pushed. */
    if (!atomic_compare_exchange_strong_explicit(&ring->tail, &tail, tail + pushed,
                                                 memory_order_seq_cst, memory_order_relaxed))
        return -ESHUTDOWN;
    return (int)pushed;
}

/* Pops as pr_ring_pop() does.  The consumer's thread only. */
static inline int pr_spsc_ring_pop(struct pr_spsc_ring *ring, struct pr_request *requests,
                                   size_t max)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t waiting = ring->tail_seen - head;
    if (waiting < max) {
        /* Pairs with the exchange in pr_spsc_ring_push(): the requests are whole. */
        uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_seq_cst);
        ring->tail_seen = tail & ~PR_RING_CLOSED;
        waiting = ring->tail_seen - head;
        if (waiting == 0 && max > 0)
            return tail & PR_RING_CLOSED ? -ESHUTDOWN : -EAGAIN;
    }
    uint64_t popped = max < waiting ? max : waiting;
    for (uint64_t i = 0; i < popped; i++)
        requests[i] = ring->slots[(head + i) & ring->mask];
    /* Gives the slots back. */
    atomic_store_explicit(&ring->head, head + popped, memory_order_seq_cst);
    return (int)popped;
}

/* As their namesakes for `pr_ring`.  Any thread. */
static inline void pr_spsc_ring_close(struct pr_spsc_ring *ring)
{
    atomic_fetch_or_explicit(&ring->tail, PR_RING_CLOSED, memory_order_seq_cst);
}
static inline bool pr_spsc_ring_is_closed(struct pr_spsc_ring *ring)
{
    return atomic_load_explicit(&ring->tail, memory_order_seq_cst) & PR_RING_CLOSED;
}
static inline size_t pr_spsc_ring_depth(struct pr_spsc_ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_seq_cst) & ~PR_RING_CLOSED;
    uint64_t depth = tail - head;
    return (size_t)(depth > ring->mask ? ring->mask + 1 : depth);
}

#endif
