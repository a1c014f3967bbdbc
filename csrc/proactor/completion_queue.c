/*
 * Who brings something does so first and looks for sleepers then; who has nothing to do says that
 * it sleeps first and looks once more then.  All of these are sequentially consistent.  Something
 * is brought in these ways: a result is put into a queue, by the main thread, or, from its strand,
 * by the worker that had the one before; a worker becomes busy, so that what is behind in its queue
 * is for others; and it leaves in its own queue what it has taken from another.
 *
 * Who is woken takes one result, of whichever queue, and wakes the next where there are more.  Who
 * goes on with what it had left looks for nobody: all who have gone to sleep since have seen it.
 */
#include "pyreactor/completion_queue.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

int pr_completion_queues_init(struct pr_completion_queues *queues, unsigned count,
                              enum pr_worker_policy policy)
{
    *queues = (struct pr_completion_queues){.count = count, .policy = policy};
    queues->each = calloc(count, sizeof *queues->each);
    if (!queues->each)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++)
        pr_parker_init(&queues->each[i].parker, 0);
    return 0;
}

void pr_completion_queues_deinit(struct pr_completion_queues *queues)
{
    free(queues->each);
    queues->each = NULL;
}

/* --- The main thread --------------------------------------------------------------------------
 */

static unsigned least_loaded(const struct pr_completion_queues *queues)
{
    unsigned found = 0;
    uint32_t least = UINT32_MAX;
    for (unsigned i = 0; i < queues->count && least > 0; i++) {
        uint32_t load = atomic_load_explicit(&queues->each[i].load, memory_order_relaxed);
        if (load < least) {
            least = load;
            found = i;
        }
    }
    return found;
}

static unsigned choose_worker(struct pr_completion_queues *queues, const struct pr_aio *aio)
{
    switch (queues->policy) {
    case PR_LEAST_LOADED:
        return least_loaded(queues);
    case PR_BY_CONNECTION:
        return (unsigned)aio->fd % queues->count;
    default:
        return queues->next++ % queues->count;
    }
}

static void add_load(struct pr_completion_queues *queues, struct pr_aio *aio, unsigned worker)
{
    aio->worker = worker;
    atomic_fetch_add_explicit(&queues->each[worker].load, 1, memory_order_relaxed);
}

void pr_completion_queues_put(struct pr_completion_queues *queues, struct pr_aio *aio)
{
    struct pr_strand *strand = aio->strand;
    if (strand && atomic_load(&strand->delivered) > 0) {
        add_load(queues, aio, atomic_load_explicit(&strand->worker, memory_order_relaxed));
        pr_aio_fifo_put(&strand->waiting, aio);
        if (atomic_fetch_add(&strand->delivered, 1) > 0)
            return; /* whoever handles the one before it goes on with it */
        (void)pr_aio_fifo_take(&strand->waiting);
    } else {
        add_load(queues, aio, choose_worker(queues, aio));
        if (strand) {
            atomic_store_explicit(&strand->worker, aio->worker, memory_order_relaxed);
            atomic_store(&strand->delivered, 1);
        }
    }
    struct pr_completion_queue *queue = &queues->each[aio->worker];
    queue->touched = true;
    pr_aio_fifo_put(&queue->fifo, aio); /* a worker's from here on */
}

/*
 * Whether something waits in a worker's queue that it will not see soon.  Where it is not busy it
 * looks once more before it sleeps, and where it becomes so it sees to what is behind itself.
 */
static bool is_open_to_others(struct pr_completion_queues *queues, unsigned worker)
{
    struct pr_completion_queue *queue = &queues->each[worker];
    return queues->policy != PR_BY_CONNECTION && atomic_load(&queue->busy) &&
           pr_aio_fifo_has_some(&queue->fifo);
}

/* Wakes one worker that has nothing to do. */
static void wake_idle(struct pr_completion_queues *queues)
{
    if (queues->policy == PR_BY_CONNECTION || atomic_load(&queues->idle) == 0)
        return;
    for (unsigned i = 0; i < queues->count; i++) {
        if (pr_unpark(&queues->each[i].parker, 1) > 0)
            return;
    }
}

void pr_completion_queues_wake(struct pr_completion_queues *queues)
{
    for (unsigned i = 0; i < queues->count; i++) {
        struct pr_completion_queue *queue = &queues->each[i];
        if (!queue->touched)
            continue;
        queue->touched = false;
        if (pr_unpark(&queue->parker, 1) == 0 && is_open_to_others(queues, i))
            wake_idle(queues);
    }
}

/* --- Workers ----------------------------------------------------------------------------------
 */

/* Takes over what waits behind the busy worker `other`: the first of it, and the rest for later. */
static struct pr_aio *take_over(struct pr_completion_queues *queues, unsigned worker,
                                unsigned other)
{
    struct pr_aio *first = pr_aio_fifo_take_all(&queues->each[other].fifo);
    uint64_t count = 0;
    for (struct pr_aio *aio = first; aio; aio = aio->next, count++) {
        atomic_fetch_sub_explicit(&queues->each[aio->worker].load, 1, memory_order_relaxed);
        add_load(queues, aio, worker);
    }
    if (first)
        pr_aio_fifo_leave(&queues->each[worker].fifo, first->next);
    atomic_fetch_add_explicit(&queues->taken_over, count, memory_order_relaxed);
    return first;
}

/* Whether more was chosen for a worker than it can begin with when it is awake. */
static bool has_several(struct pr_completion_queues *queues, unsigned worker)
{
    return queues->policy != PR_BY_CONNECTION &&
           atomic_load_explicit(&queues->each[worker].load, memory_order_relaxed) > 1;
}

static struct pr_aio *find(struct pr_completion_queues *queues, unsigned worker)
{
    struct pr_completion_queue *queue = &queues->each[worker];
    struct pr_aio *left = atomic_load(&queue->fifo.rest);
    struct pr_aio *aio = pr_aio_fifo_take(&queue->fifo);
    queue->brought |= !aio || aio != left;
    for (unsigned i = 1; !aio && i < queues->count; i++) {
        unsigned other = (worker + i) % queues->count;
        if (is_open_to_others(queues, other) || has_several(queues, other))
            aio = take_over(queues, worker, other);
    }
    return aio;
}

static void begin(struct pr_completion_queues *queues, unsigned worker, struct pr_aio *aio)
{
    if (aio->strand)
        atomic_store_explicit(&aio->strand->worker, worker, memory_order_relaxed);
    atomic_store(&queues->each[worker].busy, true);
}

/* Whether something waits that only others see to in time. */
static bool has_more(struct pr_completion_queues *queues)
{
    for (unsigned i = 0; i < queues->count; i++) {
        if (is_open_to_others(queues, i))
            return true;
    }
    return false;
}

struct look {
    struct pr_completion_queues *queues;
    unsigned worker;
};

static bool has_something(void *argument)
{
    const struct look *look = argument;
    struct pr_completion_queues *queues = look->queues;
    return atomic_load(&queues->closed) || pr_aio_fifo_has_some(&queues->each[look->worker].fifo) ||
           has_more(queues);
}

int pr_completion_queues_take(struct pr_completion_queues *queues, unsigned worker,
                              struct pr_aio **aio, int64_t deadline_ns)
{
    struct pr_completion_queue *queue = &queues->each[worker];
    for (;;) {
        bool closed = atomic_load(&queues->closed); /* before the look: nothing comes after it */
        *aio = find(queues, worker);
        if (*aio) {
            begin(queues, worker, *aio);
            if (queue->brought && atomic_load(&queues->idle) > 0 && has_more(queues))
                wake_idle(queues);
            queue->brought = false;
            return 0;
        }
        atomic_store(&queue->busy, false);
        if (closed)
            return -ESHUTDOWN;
        if (deadline_ns == 0)
            return -ETIMEDOUT;
        atomic_fetch_add(&queues->idle, 1);
        struct look look = {.queues = queues, .worker = worker};
        int error = pr_park(&queue->parker, has_something, &look, deadline_ns);
        atomic_fetch_sub(&queues->idle, 1);
        queue->brought = true; /* what it was woken for, if it finds something else */
        if (error < 0)
            return error;
    }
}

void pr_completion_queues_end(struct pr_completion_queues *queues, unsigned worker,
                              struct pr_strand *strand)
{
    struct pr_completion_queue *queue = &queues->each[worker];
    atomic_fetch_sub_explicit(&queue->load, 1, memory_order_relaxed);
    /* Where it was not the last of its strand the strand is this thread's still. */
    if (strand && atomic_fetch_sub(&strand->delivered, 1) > 1) {
        struct pr_aio *next = pr_aio_fifo_take(&strand->waiting);
        atomic_fetch_sub_explicit(&queues->each[next->worker].load, 1, memory_order_relaxed);
        add_load(queues, next, worker);
        pr_aio_fifo_put(&queue->fifo, next);
        queue->brought = true;
    }
}

/* --- Any thread -------------------------------------------------------------------------------
 */

uint64_t pr_completion_queues_depth(struct pr_completion_queues *queues)
{
    uint64_t depth = 0;
    for (unsigned i = 0; i < queues->count; i++)
        depth += atomic_load_explicit(&queues->each[i].load, memory_order_relaxed);
    return depth;
}

void pr_completion_queues_close(struct pr_completion_queues *queues)
{
    atomic_store(&queues->closed, true);
    for (unsigned i = 0; i < queues->count; i++)
        (void)pr_unpark(&queues->each[i].parker, PR_UNPARK_ALL);
}
