/*
 * What the kinds of request queue have in common: being found by name, and the calls that block.
 */
#include "pyreactor/request_queue.h"

#include <errno.h>
#include <string.h>

static const struct pr_request_queue_ops *const kinds[] = {
    &pr_mpmc_queue_ops,
    &pr_spsc_queue_ops,
    &pr_mutex_queue_ops,
};

int pr_request_queue_new(struct pr_request_queue **queue, const char *kind, size_t capacity,
                         int64_t spin_ns)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i]->name, kind) == 0)
            return kinds[i]->create(queue, capacity, spin_ns);
    return -ENOTSUP;
}

int pr_request_queue_put(struct pr_request_queue *queue, const struct pr_request *requests,
                         size_t count, int64_t deadline_ns)
{
    size_t done = 0;
    while (done < count) {
        int result = queue->ops->try_put(queue, requests + done, count - done);
        if (result == -EAGAIN)
            result = queue->ops->wait_room(queue, deadline_ns);
        if (result < 0)
            return done > 0 ? (int)done : result;
        done += (size_t)result;
    }
    return (int)done;
}

int pr_request_queue_get(struct pr_request_queue *queue, struct pr_request *requests, size_t max,
                         int64_t deadline_ns)
{
    for (;;) {
        int result = queue->ops->try_get(queue, requests, max);
        if (result != -EAGAIN)
            return result;
        result = queue->ops->wait_request(queue, deadline_ns);
        if (result < 0)
            return result;
    }
}
