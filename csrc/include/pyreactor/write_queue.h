/*
 * The write queue: what is still to be sent on one stream, in order, without copying it.  Each
 * write keeps its owner (a Python object, say) alive until its last byte has left.
 */
#ifndef PYREACTOR_WRITE_QUEUE_H
#define PYREACTOR_WRITE_QUEUE_H

#include <stddef.h>
#include <sys/uio.h>

#define PR_WRITES_INLINE 4 /* a response's header and body, twice: no allocation */

struct pr_write {
    const char *data; /* borrowed from `owner` */
    size_t size;
    void *owner; /* held until released */
};

struct pr_write_queue {
    struct pr_write *writes; /* inline_writes, or owned memory once there were more */
    size_t capacity;
    size_t head; /* the first write that has bytes left */
    size_t count;
    size_t bytes; /* left in all */
    void (*release)(void *owner);
    struct pr_write inline_writes[PR_WRITES_INLINE];
};

/* Makes an empty queue that gives owners back through `release`.  Any thread. */
void pr_write_queue_init(struct pr_write_queue *queue, void (*release)(void *owner));

/* Releases what is left and frees the memory.  Loop thread only. */
void pr_write_queue_deinit(struct pr_write_queue *queue);

/* Appends `size` bytes (not 0); takes over `owner` where it succeeds.  Returns 0 or -ENOMEM.
 * Loop thread only. */
int pr_write_queue_push(struct pr_write_queue *queue, const char *data, size_t size, void *owner);

/* Fills up to `most` vectors with the next bytes to go; returns how many.  Loop thread only. */
int pr_write_queue_peek(const struct pr_write_queue *queue, struct iovec *vectors, int most);

/* Takes `size` bytes off the front, releasing each owner with its last byte.  Loop thread only. */
void pr_write_queue_consume(struct pr_write_queue *queue, size_t size);

/* Moves everything from `from`, which is empty afterwards, to `to`, which need not be initialised.
 * Loop thread only. */
void pr_write_queue_move(struct pr_write_queue *to, struct pr_write_queue *from);

/* Releases everything.  Loop thread only. */
void pr_write_queue_clear(struct pr_write_queue *queue);

#endif
