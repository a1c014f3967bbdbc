/*
 * The lock-free kinds of request queue: a ring, and two parkers, one for those who wait for room
 * and one for those who wait for requests.  Each successful push looks for sleeping consumers, each
 * successful pop for sleeping producers; where there are none, neither makes a system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pyreactor/parker.h"
#include "pyreactor/request_queue.h"
#include "pyreactor/ring.h"

/* Those who wait on one side. */
struct waiting {
    struct pr_parker parker;
    struct pr_bell_list bells;
};

struct ring_queue {
    struct pr_request_queue queue;
    union {
        struct pr_ring mpmc;
        struct pr_spsc_ring spsc;
    };
    alignas(PR_CACHE_LINE) struct waiting producers;
    alignas(PR_CACHE_LINE) struct waiting consumers;
    /*
     * Written by producers: the most that waited at one time, and the position up to which all is
     * known to be taken.  A producer looks at the consumers' cursor only where the depth might be a
     * new record.
     */
    alignas(PR_CACHE_LINE) _Atomic(uint64_t) depth_max;
    _Atomic(uint64_t) head_seen;
};

static struct ring_queue *ring_queue_of(struct pr_request_queue *queue)
{
    return (struct ring_queue *)queue;
}

static void waiting_deinit(struct waiting *waiting)
{
    pr_bell_list_deinit(&waiting->bells);
}

static int waiting_init(struct waiting *waiting, int64_t spin_ns)
{
    pr_parker_init(&waiting->parker, spin_ns);
    return pr_bell_list_init(&waiting->bells);
}

/* Threads come first: they have nothing else to do. */
static inline void wake(struct waiting *waiting, uint32_t count)
{
    uint32_t woken = pr_unpark(&waiting->parker, count);
    if (woken < count)
        pr_bell_ring(&waiting->bells, count - woken);
}

static void note_depth(struct ring_queue *self, _Atomic(uint64_t) *tail_cursor,
                       _Atomic(uint64_t) *head_cursor)
{
    uint64_t tail = atomic_load_explicit(tail_cursor, memory_order_relaxed) & ~PR_RING_CLOSED;
    uint64_t record = atomic_load_explicit(&self->depth_max, memory_order_relaxed);
    if (tail - atomic_load_explicit(&self->head_seen, memory_order_relaxed) <= record)
        return;
    uint64_t head = atomic_load_explicit(head_cursor, memory_order_relaxed);
    atomic_store_explicit(&self->head_seen, head, memory_order_relaxed);
    uint64_t depth = tail - head;
    if (depth > self->queue.capacity)
        depth = tail > head ? self->queue.capacity : 0; /* one of the two was read too early */
    while (depth > record &&
           !atomic_compare_exchange_weak_explicit(&self->depth_max, &record, depth,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

/* Everything but the rings, which are in their place already. */
static int create(struct pr_request_queue **queue, const struct pr_request_queue_ops *ops,
                  int (*init_ring)(struct ring_queue *self, size_t capacity),
                  void (*deinit_ring)(struct ring_queue *self), size_t capacity, int64_t spin_ns)
{
    struct ring_queue *self = aligned_alloc(PR_CACHE_LINE, sizeof *self);
    if (!self)
        return -ENOMEM;
    memset(self, 0, sizeof *self);
    self->queue.ops = ops;
    int error = init_ring(self, capacity);
    if (error < 0)
        goto free_self;
    error = waiting_init(&self->producers, spin_ns);
    if (error < 0)
        goto deinit_ring;
    error = waiting_init(&self->consumers, spin_ns);
    if (error < 0)
        goto deinit_producers;
    *queue = &self->queue;
    return 0;

deinit_producers:
    waiting_deinit(&self->producers);
deinit_ring:
    deinit_ring(self);
free_self:
    free(self);
    return error;
}

static struct pr_bell_list *ring_queue_bells(struct pr_request_queue *queue,
                                             enum pr_queue_side side)
{
    struct ring_queue *self = ring_queue_of(queue);
    return side == PR_QUEUE_PRODUCERS ? &self->producers.bells : &self->consumers.bells;
}

static void ring_queue_pass_on(struct pr_request_queue *queue, enum pr_queue_side side)
{
    struct ring_queue *self = ring_queue_of(queue);
    wake(side == PR_QUEUE_PRODUCERS ? &self->producers : &self->consumers, 1);
}

static void read_stats(struct ring_queue *self, uint64_t tail, uint64_t head,
                       struct pr_request_queue_stats *stats)
{
    *stats = (struct pr_request_queue_stats){
        .puts = tail & ~PR_RING_CLOSED,
        .gets = head,
        .depth_max = atomic_load_explicit(&self->depth_max, memory_order_relaxed),
        .put_sleeps = atomic_load_explicit(&self->producers.parker.sleeps, memory_order_relaxed),
        .get_sleeps = atomic_load_explicit(&self->consumers.parker.sleeps, memory_order_relaxed),
        .put_wakes = atomic_load_explicit(&self->producers.parker.wakes, memory_order_relaxed),
        .get_wakes = atomic_load_explicit(&self->consumers.parker.wakes, memory_order_relaxed),
    };
}

/* Any number of producers and consumers. */

static int mpmc_init_ring(struct ring_queue *self, size_t capacity)
{
    int error = pr_ring_init(&self->mpmc, capacity);
    self->queue.capacity = (size_t)(self->mpmc.mask + 1);
    return error;
}

static void mpmc_deinit_ring(struct ring_queue *self)
{
    pr_ring_deinit(&self->mpmc);
}

static int mpmc_create(struct pr_request_queue **queue, size_t capacity, int64_t spin_ns)
{
    return create(queue, &pr_mpmc_queue_ops, mpmc_init_ring, mpmc_deinit_ring, capacity, spin_ns);
}

static void mpmc_free(struct pr_request_queue *queue)
{
    struct ring_queue *self = ring_queue_of(queue);
    waiting_deinit(&self->consumers);
    waiting_deinit(&self->producers);
    pr_ring_deinit(&self->mpmc);
    free(self);
}

static int mpmc_try_put(struct pr_request_queue *queue, const struct pr_request *requests,
                        size_t count)
{
    struct ring_queue *self = ring_queue_of(queue);
    int pushed = pr_ring_push(&self->mpmc, requests, count);
    if (pushed > 0) {
        note_depth(self, &self->mpmc.tail, &self->mpmc.head);
        wake(&self->consumers, (uint32_t)pushed);
    }
    return pushed;
}

static int mpmc_try_get(struct pr_request_queue *queue, struct pr_request *requests, size_t max)
{
    struct ring_queue *self = ring_queue_of(queue);
    int popped = pr_ring_pop(&self->mpmc, requests, max);
    if (popped > 0)
        wake(&self->producers, (uint32_t)popped);
    return popped;
}

static bool mpmc_has_room(void *argument)
{
    struct ring_queue *self = argument;
    return pr_ring_depth(&self->mpmc) <= self->mpmc.mask || pr_ring_is_closed(&self->mpmc);
}

static bool mpmc_has_request(void *argument)
{
    struct ring_queue *self = argument;
    return pr_ring_depth(&self->mpmc) > 0 || pr_ring_is_closed(&self->mpmc);
}

static int mpmc_wait_room(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct ring_queue *self = ring_queue_of(queue);
    return pr_park(&self->producers.parker, mpmc_has_room, self, deadline_ns);
}

static int mpmc_wait_request(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct ring_queue *self = ring_queue_of(queue);
    return pr_park(&self->consumers.parker, mpmc_has_request, self, deadline_ns);
}

static void mpmc_close(struct pr_request_queue *queue)
{
    struct ring_queue *self = ring_queue_of(queue);
    pr_ring_close(&self->mpmc);
    wake(&self->producers, PR_UNPARK_ALL);
    wake(&self->consumers, PR_UNPARK_ALL);
}

static bool mpmc_is_closed(struct pr_request_queue *queue)
{
    return pr_ring_is_closed(&ring_queue_of(queue)->mpmc);
}

static size_t mpmc_depth(struct pr_request_queue *queue)
{
    return pr_ring_depth(&ring_queue_of(queue)->mpmc);
}

static void mpmc_read_stats(struct pr_request_queue *queue, struct pr_request_queue_stats *stats)
{
    struct ring_queue *self = ring_queue_of(queue);
    uint64_t head = atomic_load(&self->mpmc.head);
    read_stats(self, atomic_load(&self->mpmc.tail), head, stats);
}

static int mpmc_visit(struct pr_request_queue *queue,
                      int (*visit)(struct pr_request *request, void *argument), void *argument)
{
    return pr_ring_visit(&ring_queue_of(queue)->mpmc, visit, argument);
}

const struct pr_request_queue_ops pr_mpmc_queue_ops = {
    .name = "mpmc",
    .create = mpmc_create,
    .free = mpmc_free,
    .try_put = mpmc_try_put,
    .try_get = mpmc_try_get,
    .wait_room = mpmc_wait_room,
    .wait_request = mpmc_wait_request,
    .close = mpmc_close,
    .is_closed = mpmc_is_closed,
    .depth = mpmc_depth,
    .bells = ring_queue_bells,
    .pass_on = ring_queue_pass_on,
    .read_stats = mpmc_read_stats,
    .visit = mpmc_visit,
};

/* One producer, one consumer. */

static int spsc_init_ring(struct ring_queue *self, size_t capacity)
{
    int error = pr_spsc_ring_init(&self->spsc, capacity);
    self->queue.capacity = (size_t)(self->spsc.mask + 1);
    return error;
}

static void spsc_deinit_ring(struct ring_queue *self)
{
    pr_spsc_ring_deinit(&self->spsc);
}

static int spsc_create(struct pr_request_queue **queue, size_t capacity, int64_t spin_ns)
{
    return create(queue, &pr_spsc_queue_ops, spsc_init_ring, spsc_deinit_ring, capacity, spin_ns);
}

static void spsc_free(struct pr_request_queue *queue)
{
    struct ring_queue *self = ring_queue_of(queue);
    waiting_deinit(&self->consumers);
    waiting_deinit(&self->producers);
    pr_spsc_ring_deinit(&self->spsc);
    free(self);
}

static int spsc_try_put(struct pr_request_queue *queue, const struct pr_request *requests,
                        size_t count)
{
    struct ring_queue *self = ring_queue_of(queue);
    int pushed = pr_spsc_ring_push(&self->spsc, requests, count);
    if (pushed > 0) {
        note_depth(self, &self->spsc.tail, &self->spsc.head);
        wake(&self->consumers, (uint32_t)pushed);
    }
    return pushed;
}

static int spsc_try_get(struct pr_request_queue *queue, struct pr_request *requests, size_t max)
{
    struct ring_queue *self = ring_queue_of(queue);
    int popped = pr_spsc_ring_pop(&self->spsc, requests, max);
    if (popped > 0)
        wake(&self->producers, (uint32_t)popped);
    return popped;
}

static bool spsc_has_room(void *argument)
{
    struct ring_queue *self = argument;
    return pr_spsc_ring_depth(&self->spsc) <= self->spsc.mask ||
           pr_spsc_ring_is_closed(&self->spsc);
}

static bool spsc_has_request(void *argument)
{
    struct ring_queue *self = argument;
    return pr_spsc_ring_depth(&self->spsc) > 0 || pr_spsc_ring_is_closed(&self->spsc);
}

static int spsc_wait_room(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct ring_queue *self = ring_queue_of(queue);
    return pr_park(&self->producers.parker, spsc_has_room, self, deadline_ns);
}

static int spsc_wait_request(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct ring_queue *self = ring_queue_of(queue);
    return pr_park(&self->consumers.parker, spsc_has_request, self, deadline_ns);
}

static void spsc_close(struct pr_request_queue *queue)
{
    struct ring_queue *self = ring_queue_of(queue);
    pr_spsc_ring_close(&self->spsc);
    wake(&self->producers, PR_UNPARK_ALL);
    wake(&self->consumers, PR_UNPARK_ALL);
}

static bool spsc_is_closed(struct pr_request_queue *queue)
{
    return pr_spsc_ring_is_closed(&ring_queue_of(queue)->spsc);
}

static size_t spsc_depth(struct pr_request_queue *queue)
{
    return pr_spsc_ring_depth(&ring_queue_of(queue)->spsc);
}

static void spsc_read_stats(struct pr_request_queue *queue, struct pr_request_queue_stats *stats)
{
    struct ring_queue *self = ring_queue_of(queue);
    uint64_t head = atomic_load(&self->spsc.head);
    read_stats(self, atomic_load(&self->spsc.tail), head, stats);
}

static int spsc_visit(struct pr_request_queue *queue,
                      int (*visit)(struct pr_request *request, void *argument), void *argument)
{
    return pr_spsc_ring_visit(&ring_queue_of(queue)->spsc, visit, argument);
}

const struct pr_request_queue_ops pr_spsc_queue_ops = {
    .name = "spsc",
    .create = spsc_create,
    .free = spsc_free,
    .try_put = spsc_try_put,
    .try_get = spsc_try_get,
    .wait_room = spsc_wait_room,
    .wait_request = spsc_wait_request,
    .close = spsc_close,
    .is_closed = spsc_is_closed,
    .depth = spsc_depth,
    .bells = ring_queue_bells,
    .pass_on = ring_queue_pass_on,
    .read_stats = spsc_read_stats,
    .visit = spsc_visit,
};
