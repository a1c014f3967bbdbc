/*
 * The kind of request queue that the textbook draws: a circular array under a lock, with two
 * conditions to wait on.  It is here to be measured against.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "pyreactor/clock.h"
#include "pyreactor/request_queue.h"

#define CAPACITY_MAX ((size_t)1 << 30)
/* pthread_cond_timedwait() does not tell of signals; so a wait ends this often for the caller's. */
#define SIGNAL_LATENCY_NS (50 * PR_NS_PER_MS)

/* Those who wait on one side. */
struct waiting {
    pthread_cond_t condition;
    struct pr_bell_list bells;
    uint32_t sleepers; /* asleep, and not chosen to wake */
    uint32_t permits;  /* chosen, and still to run */
    uint64_t sleeps;
    uint64_t wakes;
};

struct mutex_queue {
    struct pr_request_queue queue;
    pthread_mutex_t lock; /* of all that follows */
    struct waiting producers;
    struct waiting consumers;
    struct pr_request *slots; /* owned */
    uint64_t head;            /* next to get; grows for ever */
    uint64_t tail;            /* next to put */
    uint64_t depth_max;
    bool closed;
};

static struct mutex_queue *mutex_queue_of(struct pr_request_queue *queue)
{
    return (struct mutex_queue *)queue;
}

static struct pr_request *slot_of(struct mutex_queue *self, uint64_t position)
{
    return &self->slots[position & (self->queue.capacity - 1)];
}

static int waiting_init(struct waiting *waiting)
{
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);
    if (error)
        return -error;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_cond_init(&waiting->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    if (error)
        return -error;
    error = pr_bell_list_init(&waiting->bells);
    if (error < 0)
        pthread_cond_destroy(&waiting->condition);
    return error;
}

static void waiting_deinit(struct waiting *waiting)
{
    pr_bell_list_deinit(&waiting->bells);
    pthread_cond_destroy(&waiting->condition);
}

/* Wakes up to `count`, threads first.  The caller holds the lock. */
static void wake(struct waiting *waiting, size_t count)
{
    size_t woken = waiting->sleepers < count ? waiting->sleepers : count;
    for (size_t i = 0; i < woken; i++)
        pthread_cond_signal(&waiting->condition);
    waiting->sleepers -= (uint32_t)woken;
    waiting->permits += (uint32_t)woken;
    waiting->wakes += woken > 0;
    if (woken < count)
        pr_bell_ring(&waiting->bells, count - woken);
}

static int mutex_create(struct pr_request_queue **queue, size_t capacity, int64_t spin_ns)
{
    (void)spin_ns; /* the lock's own business */
    if (capacity == 0 || capacity > CAPACITY_MAX)
        return -EINVAL;
    struct mutex_queue *self = calloc(1, sizeof *self);
    if (!self)
        return -ENOMEM;
    self->queue.ops = &pr_mutex_queue_ops;
    self->queue.capacity = 1;
    while (self->queue.capacity < capacity)
        self->queue.capacity *= 2;
    int error = -ENOMEM;
    self->slots = calloc(self->queue.capacity, sizeof *self->slots);
    if (!self->slots)
        goto free_self;
    error = -pthread_mutex_init(&self->lock, NULL);
    if (error < 0)
        goto free_slots;
    error = waiting_init(&self->producers);
    if (error < 0)
        goto destroy_lock;
    error = waiting_init(&self->consumers);
    if (error < 0)
        goto deinit_producers;
    *queue = &self->queue;
    return 0;

deinit_producers:
    waiting_deinit(&self->producers);
destroy_lock:
    pthread_mutex_destroy(&self->lock);
free_slots:
    free(self->slots);
free_self:
    free(self);
    return error;
}

static void mutex_free(struct pr_request_queue *queue)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    waiting_deinit(&self->consumers);
    waiting_deinit(&self->producers);
    pthread_mutex_destroy(&self->lock);
    for (; self->head != self->tail; self->head++)
        pr_request_release(slot_of(self, self->head));
    free(self->slots);
    free(self);
}

static int mutex_try_put(struct pr_request_queue *queue, const struct pr_request *requests,
                         size_t count)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    int result = 0;
    pthread_mutex_lock(&self->lock);
    if (self->closed) {
        result = -ESHUTDOWN;
    } else {
        while ((size_t)result < count && self->tail - self->head < queue->capacity)
            *slot_of(self, self->tail++) = requests[result++];
        if (self->tail - self->head > self->depth_max)
            self->depth_max = self->tail - self->head;
        if (result > 0)
            wake(&self->consumers, (size_t)result);
        else if (count > 0)
            result = -EAGAIN;
    }
    pthread_mutex_unlock(&self->lock);
    return result;
}

static int mutex_try_get(struct pr_request_queue *queue, struct pr_request *requests, size_t max)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    int result = 0;
    pthread_mutex_lock(&self->lock);
    while ((size_t)result < max && self->head != self->tail)
        requests[result++] = *slot_of(self, self->head++);
    if (result > 0)
        wake(&self->producers, (size_t)result);
    else if (max > 0)
        result = self->closed ? -ESHUTDOWN : -EAGAIN;
    pthread_mutex_unlock(&self->lock);
    return result;
}

static bool has_room(struct mutex_queue *self)
{
    return self->tail - self->head < self->queue.capacity || self->closed;
}

static bool has_request(struct mutex_queue *self)
{
    return self->tail != self->head || self->closed;
}

static int wait_until(struct mutex_queue *self, struct waiting *waiting,
                      bool (*look)(struct mutex_queue *self), int64_t deadline_ns)
{
    int64_t slice_ns = pr_now_ns() + SIGNAL_LATENCY_NS;
    int64_t end_ns = deadline_ns < slice_ns ? deadline_ns : slice_ns;
    struct timespec end = {
        .tv_sec = (time_t)(end_ns / PR_NS_PER_SECOND),
        .tv_nsec = (long)(end_ns % PR_NS_PER_SECOND),
    };
    int error = 0;
    pthread_mutex_lock(&self->lock);
    while (!look(self) && error == 0) {
        waiting->sleepers++;
        waiting->sleeps++;
        error = -pthread_cond_timedwait(&waiting->condition, &self->lock, &end);
        if (waiting->permits > 0)
            waiting->permits--;
        else
            waiting->sleepers--;
    }
    if (look(self))
        error = 0;
    else if (error == -ETIMEDOUT && end_ns < deadline_ns)
        error = -EINTR;
    pthread_mutex_unlock(&self->lock);
    return error;
}

static int mutex_wait_room(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    return wait_until(self, &self->producers, has_room, deadline_ns);
}

static int mutex_wait_request(struct pr_request_queue *queue, int64_t deadline_ns)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    return wait_until(self, &self->consumers, has_request, deadline_ns);
}

static void mutex_close(struct pr_request_queue *queue)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    pthread_mutex_lock(&self->lock);
    self->closed = true;
    wake(&self->producers, SIZE_MAX);
    wake(&self->consumers, SIZE_MAX);
    pthread_mutex_unlock(&self->lock);
}

static bool mutex_is_closed(struct pr_request_queue *queue)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    pthread_mutex_lock(&self->lock);
    bool closed = self->closed;
    pthread_mutex_unlock(&self->lock);
    return closed;
}

static size_t mutex_depth(struct pr_request_queue *queue)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    pthread_mutex_lock(&self->lock);
    size_t depth = (size_t)(self->tail - self->head);
    pthread_mutex_unlock(&self->lock);
    return depth;
}

static struct pr_bell_list *mutex_bells(struct pr_request_queue *queue, enum pr_queue_side side)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    return side == PR_QUEUE_PRODUCERS ? &self->producers.bells : &self->consumers.bells;
}

static void mutex_pass_on(struct pr_request_queue *queue, enum pr_queue_side side)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    pthread_mutex_lock(&self->lock);
    wake(side == PR_QUEUE_PRODUCERS ? &self->producers : &self->consumers, 1);
    pthread_mutex_unlock(&self->lock);
}

static void mutex_read_stats(struct pr_request_queue *queue, struct pr_request_queue_stats *stats)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    pthread_mutex_lock(&self->lock);
    *stats = (struct pr_request_queue_stats){
        .puts = self->tail,
        .gets = self->head,
        .depth_max = self->depth_max,
        .put_sleeps = self->producers.sleeps,
        .get_sleeps = self->consumers.sleeps,
        .put_wakes = self->producers.wakes,
        .get_wakes = self->consumers.wakes,
    };
    pthread_mutex_unlock(&self->lock);
}

static int mutex_visit(struct pr_request_queue *queue,
                       int (*visit)(struct pr_request *request, void *argument), void *argument)
{
    struct mutex_queue *self = mutex_queue_of(queue);
    for (uint64_t position = self->head; position != self->tail; position++) {
        int result = visit(slot_of(self, position), argument);
        if (result != 0)
            return result;
    }
    return 0;
}

const struct pr_request_queue_ops pr_mutex_queue_ops = {
    .name = "mutex",
    .create = mutex_create,
    .free = mutex_free,
    .try_put = mutex_try_put,
    .try_get = mutex_try_get,
    .wait_room = mutex_wait_room,
    .wait_request = mutex_wait_request,
    .close = mutex_close,
    .is_closed = mutex_is_closed,
    .depth = mutex_depth,
    .bells = mutex_bells,
    .pass_on = mutex_pass_on,
    .read_stats = mutex_read_stats,
    .visit = mutex_visit,
};
