/*
 * A watch: a standing interest in the readiness of one descriptor, embedded in its owner.  The
 * table gives each descriptor one watch at a time and each watch a generation, so that an event
 * that was on its way when the descriptor changed hands never reaches the new owner.
 *
 * The functions are inline because several modules use them, each linked by itself; they reach the
 * kernel through the backend's table.
 */
#ifndef PYREACTOR_WATCH_H
#define PYREACTOR_WATCH_H

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "pyreactor/backend.h"

struct pr_watch {
    int fd;              /* borrowed from the owner; -1 while stopped */
    uint32_t generation; /* of this descriptor's slot, since the watch was started */
    uint32_t wanted; /* what the owner asks for: PR_READABLE or PR_RECEIVED, PR_WRITABLE, PR_EDGE */
    uint32_t registered; /* what the kernel was told; may be more than wanted, see pr_watch_want */

    /* Hears of readiness, wanted events only.  Returns 0, or non-zero to end the turn here. */
    int (*on_ready)(struct pr_watch *watch, uint32_t events);
    /* Gets what it asked for with PR_RECEIVED: `result` bytes, lent until the return; 0 for the
     * end, or a negative errno.  Returns as on_ready(). */
    int (*on_received)(struct pr_watch *watch, const char *data, int32_t result);
    /* Optional: another watch starts on this descriptor.  Stops this one and returns true, or
     * returns false: then that one cannot start. */
    bool (*gives_way)(struct pr_watch *watch);
    void *owner; /* borrowed */
};

struct pr_watch_slot {
    struct pr_watch *watch; /* borrowed; NULL while nobody watches the descriptor */
    uint32_t generation;
};

struct pr_watch_table {
    struct pr_backend *backend;  /* borrowed from the loop */
    struct pr_watch_slot *slots; /* owned; by descriptor */
    size_t capacity;
    size_t count; /* watches started */
};

/* The watch of `fd`, or NULL.  Loop thread only. */
static inline struct pr_watch *pr_watch_find(const struct pr_watch_table *table, int fd)
{
    return fd >= 0 && (size_t)fd < table->capacity ? table->slots[fd].watch : NULL;
}

/* Makes room for descriptors up to `fd`.  Returns 0 or -ENOMEM.  Loop thread only. */
static inline int pr_watch_table_reserve(struct pr_watch_table *table, int fd)
{
    if ((size_t)fd < table->capacity)
        return 0;
    size_t capacity = table->capacity ? table->capacity : 64;
    while (capacity <= (size_t)fd)
        capacity *= 2;
    struct pr_watch_slot *slots = realloc(table->slots, capacity * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    memset(slots + table->capacity, 0, (capacity - table->capacity) * sizeof *slots);
    table->slots = slots;
    table->capacity = capacity;
    return 0;
}

/* Prepares a stopped watch.  Any thread. */
static inline void pr_watch_init(struct pr_watch *watch,
                                 int (*on_ready)(struct pr_watch *, uint32_t), void *owner)
{
    *watch = (struct pr_watch){.fd = -1, .on_ready = on_ready, .owner = owner};
}

/* True between pr_watch_start and pr_watch_stop.  Loop thread only. */
static inline bool pr_watch_is_active(const struct pr_watch *watch)
{
    return watch->fd >= 0;
}

/*
 * Starts watching `fd` for `events` (0: for nothing yet).  Returns 0 or a negative errno; -EEXIST
 * where the descriptor has a watch already that does not give way.  Loop thread only.
 */
static inline int pr_watch_start(struct pr_watch_table *table, struct pr_watch *watch, int fd,
                                 uint32_t events)
{
    int error = fd < 0 ? -EBADF : pr_watch_table_reserve(table, fd);
    if (error < 0)
        return error;
    struct pr_watch_slot *slot = &table->slots[fd];
    if (slot->watch && !(slot->watch->gives_way && slot->watch->gives_way(slot->watch)))
        return -EEXIST;
    uint32_t generation = slot->generation + 1;
    if (events) {
        error = table->backend->ops->update(table->backend, fd, generation, 0, events);
        if (error < 0)
            return error;
    }
    slot->watch = watch;
    slot->generation = generation;
    watch->fd = fd;
    watch->generation = generation;
    watch->wanted = watch->registered = events;
    table->count++;
    return 0;
}

/* Tells the kernel to report `events` and nothing else.  Returns 0 or a negative errno.
 * Loop thread only. */
static inline int pr_watch_register(struct pr_watch_table *table, struct pr_watch *watch,
                                    uint32_t events)
{
    if (watch->registered == events)
        return 0;
    int error = table->backend->ops->update(table->backend, watch->fd, watch->generation,
                                            watch->registered, events);
    if (error == 0)
        watch->registered = events;
    return error;
}

/*
 * Changes what is wanted.  More is registered with the kernel at once; less only when an event that
 * nobody wants comes (see pr_loop_dispatch), so that pausing and resuming cost no system call.
 * With PR_EDGE less is hardly ever registered: an edge comes once, wanted or not.
 * Only for a descriptor that stays open while it is watched, and not for a change between PR_EDGE
 * and without.  Returns 0 or a negative errno.  Loop thread only.
 */
static inline int pr_watch_want(struct pr_watch_table *table, struct pr_watch *watch,
                                uint32_t events)
{
    if (events & ~watch->registered) {
        uint32_t kept = events & PR_EDGE ? watch->registered : 0;
        int error = pr_watch_register(table, watch, events | kept);
        if (error < 0)
            return error;
    }
    watch->wanted = events;
    return 0;
}

/*
 * Changes what is wanted and tells the kernel now, as a new life of the watch: for a descriptor
 * that somebody else may have closed, and opened another under the same number, since it was
 * started. Returns 0 or a negative errno.  Loop thread only.
 */
static inline int pr_watch_renew(struct pr_watch_table *table, struct pr_watch *watch,
                                 uint32_t events)
{
    uint32_t generation = watch->generation + 1;
    if (watch->registered || events) { /* else the kernel knows nothing of it, and need not */
        int error = table->backend->ops->update(table->backend, watch->fd, generation,
                                                watch->registered, events);
        if (error < 0)
            return error;
    }
    table->slots[watch->fd].generation = watch->generation = generation;
    watch->wanted = watch->registered = events;
    return 0;
}

/*
 * Stops the watch, before its descriptor is closed; events on their way are dropped.  Does nothing
 * where it is stopped.  Loop thread only.
 */
static inline void pr_watch_stop(struct pr_watch_table *table, struct pr_watch *watch)
{
    if (watch->fd < 0)
        return;
    if (watch->registered) /* fails only where the descriptor is gone, and its entry with it */
        (void)table->backend->ops->update(table->backend, watch->fd, watch->generation,
                                          watch->registered, 0);
    table->slots[watch->fd].watch = NULL;
    table->slots[watch->fd].generation++;
    watch->fd = -1;
    watch->wanted = watch->registered = 0;
    table->count--;
}

#endif
