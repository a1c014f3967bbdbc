/*
 * The write queue: a window [head, head + count) of an array that grows when it must and is moved
 * back to its start when the window has reached the end.
 */
#include "pyreactor/write_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void pr_write_queue_init(struct pr_write_queue *queue, void (*release)(void *owner))
{
    *queue = (struct pr_write_queue){.release = release, .capacity = PR_WRITES_INLINE};
    queue->writes = queue->inline_writes;
}

void pr_write_queue_deinit(struct pr_write_queue *queue)
{
    pr_write_queue_clear(queue);
    if (queue->writes != queue->inline_writes)
        free(queue->writes);
    queue->writes = queue->inline_writes;
    queue->capacity = PR_WRITES_INLINE;
}

/* Makes room behind the window: by moving it to the front where half is free, else by growing. */
static int make_room(struct pr_write_queue *queue)
{
    if (queue->head >= queue->capacity / 2 && queue->head > 0) {
        memmove(queue->writes, queue->writes + queue->head, queue->count * sizeof *queue->writes);
        queue->head = 0;
        return 0;
    }
    size_t capacity = queue->capacity * 2;
    struct pr_write *writes = malloc(capacity * sizeof *writes);
    if (!writes)
        return -ENOMEM;
    memcpy(writes, queue->writes + queue->head, queue->count * sizeof *writes);
    if (queue->writes != queue->inline_writes)
        free(queue->writes);
    queue->writes = writes;
    queue->capacity = capacity;
    queue->head = 0;
    return 0;
}

int pr_write_queue_push(struct pr_write_queue *queue, const char *data, size_t size, void *owner)
{
    if (queue->head + queue->count == queue->capacity) {
        int error = make_room(queue);
        if (error < 0)
            return error;
    }
    queue->writes[queue->head + queue->count++] =
        (struct pr_write){.data = data, .size = size, .owner = owner};
    queue->bytes += size;
    return 0;
}

int pr_write_queue_peek(const struct pr_write_queue *queue, struct iovec *vectors, int most)
{
    int filled = 0;
    for (; filled < most && (size_t)filled < queue->count; filled++) {
        const struct pr_write *write = &queue->writes[queue->head + (size_t)filled];
        vectors[filled] = (struct iovec){.iov_base = (void *)write->data, .iov_len = write->size};
    }
    return filled;
}

void pr_write_queue_consume(struct pr_write_queue *queue, size_t size)
{
    queue->bytes -= size;
    for (size_t i = queue->head; size > 0; i++) {
        struct pr_write *write = &queue->writes[i];
        size_t taken = size < write->size ? size : write->size;
        write->data += taken;
        write->size -= taken;
        size -= taken;
    }
    while (queue->count && queue->writes[queue->head].size == 0) {
        struct pr_write *write = &queue->writes[queue->head];
        void *owner = write->owner;
        queue->head++;
        queue->count--;
        if (queue->count == 0)
            queue->head = 0;
        queue->release(owner); /* last: the queue is whole again, whatever this sets off */
    }
}

void pr_write_queue_move(struct pr_write_queue *to, struct pr_write_queue *from)
{
    *to = *from;
    if (from->writes == from->inline_writes)
        to->writes = to->inline_writes;
    pr_write_queue_init(from, to->release);
}

void pr_write_queue_clear(struct pr_write_queue *queue)
{
    pr_write_queue_consume(queue, queue->bytes);
}
