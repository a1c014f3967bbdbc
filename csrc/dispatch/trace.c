/*
 * The rings of a trace, one for each thread that has written to it.
 */
#include "pyreactor/trace.h"

#include <stdlib.h>
#include <unistd.h>

static atomic_uint_fast64_t last_life;

static _Thread_local enum pr_role this_role;
static _Thread_local uint64_t ring_life;              /* of the trace that `this_ring` belongs to */
static _Thread_local struct pr_trace_ring *this_ring; /* borrowed from that trace */

void pr_trace_init(struct pr_trace *trace)
{
    atomic_init(&trace->on, false);
    atomic_init(&trace->lost, 0);
    trace->write = pr_trace_write;
    trace->life = atomic_fetch_add(&last_life, 1) + 1;
    trace->rings = NULL;
    pthread_mutex_init(&trace->lock, NULL); /* cannot fail on Linux */
}

void pr_trace_deinit(struct pr_trace *trace)
{
    while (trace->rings) {
        struct pr_trace_ring *ring = trace->rings;
        trace->rings = ring->next;
        free(ring);
    }
    pthread_mutex_destroy(&trace->lock);
}

void pr_trace_set_role(enum pr_role role)
{
    this_role = role;
}

/* The ring of the calling thread; NULL where there is no memory for one. */
static struct pr_trace_ring *own_ring(struct pr_trace *trace)
{
    if (ring_life == trace->life)
        return this_ring;
    int32_t thread_id = gettid();
    pthread_mutex_lock(&trace->lock);
    struct pr_trace_ring *ring = trace->rings;
    while (ring && ring->thread_id != thread_id) /* it wrote to another trace in between */
        ring = ring->next;
    if (!ring && (ring = calloc(1, sizeof *ring))) {
        ring->thread_id = thread_id;
        ring->next = trace->rings;
        trace->rings = ring;
    }
    pthread_mutex_unlock(&trace->lock);
    if (ring) {
        this_ring = ring;
        ring_life = trace->life;
    }
    return ring;
}

void pr_trace_write(struct pr_trace *trace, enum pr_action action, int fd, uint32_t events,
                    int64_t time_ns)
{
    struct pr_trace_ring *ring = own_ring(trace);
    uint64_t written = ring ? atomic_load_explicit(&ring->written, memory_order_relaxed) : 0;
    /* Pairs with the release in pr_trace_read(): the place is free. */
    if (!ring ||
        written - atomic_load_explicit(&ring->read, memory_order_acquire) == PR_TRACE_STEPS_MAX) {
        atomic_fetch_add(&trace->lost, 1);
        return;
    }
    ring->steps[written % PR_TRACE_STEPS_MAX] = (struct pr_step){
        .time_ns = time_ns,
        .thread_id = ring->thread_id,
        .fd = fd,
        .events = events,
        .action = (uint16_t)action,
        .role = (uint16_t)this_role,
    };
    /* Pairs with the acquire in pr_trace_read(): publishes the step. */
    atomic_store_explicit(&ring->written, written + 1, memory_order_release);
}

/* The ring with the oldest unread step, or NULL. */
static struct pr_trace_ring *oldest(struct pr_trace_ring *rings)
{
    struct pr_trace_ring *found = NULL;
    int64_t time_ns = INT64_MAX;
    for (struct pr_trace_ring *ring = rings; ring; ring = ring->next) {
        uint64_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);
        if (read == atomic_load_explicit(&ring->written, memory_order_acquire))
            continue;
        const struct pr_step *step = &ring->steps[read % PR_TRACE_STEPS_MAX];
        if (step->time_ns < time_ns) {
            time_ns = step->time_ns;
            found = ring;
        }
    }
    return found;
}

size_t pr_trace_read(struct pr_trace *trace, struct pr_step *steps, size_t max)
{
    size_t count = 0;
    pthread_mutex_lock(&trace->lock);
    for (struct pr_trace_ring *ring; count < max && (ring = oldest(trace->rings)); count++) {
        uint64_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);
        steps[count] = ring->steps[read % PR_TRACE_STEPS_MAX];
        atomic_store_explicit(&ring->read, read + 1, memory_order_release);
    }
    pthread_mutex_unlock(&trace->lock);
    return count;
}
