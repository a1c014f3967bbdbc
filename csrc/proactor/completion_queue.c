/*
 * A stack that is taken whole and turned round: one exchange for however many there are.
 */
#include "pyreactor/completion_queue.h"

#include <errno.h>
#include <stddef.h>

#include "pyreactor/clock.h"

void pr_completion_queue_init(struct pr_completion_queue *queue)
{
    *queue = (struct pr_completion_queue){.newest = NULL};
    pr_parker_init(&queue->parker, 0);
}

void pr_completion_queue_put(struct pr_completion_queue *queue, struct pr_aio *aio)
{
    struct pr_aio *newest = atomic_load_explicit(&queue->newest, memory_order_relaxed);
    atomic_fetch_add_explicit(&queue->load, 1, memory_order_relaxed);
    do {
        aio->next = newest;
        /* Pairs with the exchange in take_all(): publishes the operation. */
    } while (!atomic_compare_exchange_weak(&queue->newest, &newest, aio));
}

void pr_completion_queue_wake(struct pr_completion_queue *queue)
{
    (void)pr_unpark(&queue->parker, 1);
}

static struct pr_aio *take_all(struct pr_completion_queue *queue)
{
    struct pr_aio *newest = atomic_exchange(&queue->newest, NULL);
    struct pr_aio *oldest = NULL;
    while (newest) {
        struct pr_aio *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

static bool has_something(void *argument)
{
    struct pr_completion_queue *queue = argument;
    return atomic_load(&queue->newest) || atomic_load(&queue->closed);
}

int pr_completion_queue_take(struct pr_completion_queue *queue, struct pr_aio **first,
                             int64_t deadline_ns)
{
    for (;;) {
        bool closed = atomic_load(&queue->closed); /* before the look: nothing comes after it */
        *first = take_all(queue);
        if (*first)
            return 0;
        if (closed)
            return -ESHUTDOWN;
        if (deadline_ns == 0)
            return -ETIMEDOUT;
        int error = pr_park(&queue->parker, has_something, queue, deadline_ns);
        if (error < 0)
            return error;
    }
}

void pr_completion_queue_close(struct pr_completion_queue *queue)
{
    atomic_store(&queue->closed, true);
    (void)pr_unpark(&queue->parker, PR_UNPARK_ALL);
}
