/*
 * poll(): the set is handed to the kernel anew with every wait, as an array.  The array is kept
 * between the waits and made again only when the set has changed.
 */
#include "pyreactor/interests.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "pyreactor/clock.h"

struct poll_demux {
    struct pr_demux base;
    struct pr_interests interests;
    /* The copy that the kernel sees; the waiting thread's. */
    struct pollfd *copy; /* owned */
    int copied;
    int capacity;
    bool current;
    uint64_t version;
    int next; /* where the search for ready ones begins: nobody starves */
};

static struct poll_demux *of(struct pr_demux *demux)
{
    return (struct poll_demux *)demux;
}

static int poll_init(struct pr_demux *demux)
{
    pr_interests_init(&of(demux)->interests);
    return 0;
}

static void poll_deinit(struct pr_demux *demux)
{
    pr_interests_deinit(&of(demux)->interests);
    free(of(demux)->copy);
}

static int poll_add(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    return pr_interests_add(&of(demux)->interests, demux, fd, generation, events);
}

static int poll_modify(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    return pr_interests_modify(&of(demux)->interests, demux, fd, generation, events);
}

static int poll_remove(struct pr_demux *demux, int fd)
{
    return pr_interests_remove(&of(demux)->interests, demux, fd);
}

static int copy_interests_locked(struct poll_demux *self)
{
    const struct pr_interests *interests = &self->interests;
    int needed = interests->limit + 1;
    if (self->capacity < needed) {
        int capacity = needed * 2;
        struct pollfd *copy = realloc(self->copy, (size_t)capacity * sizeof *copy);
        if (!copy)
            return -ENOMEM;
        self->copy = copy;
        self->capacity = capacity;
    }
    int count = 0;
    self->copy[count++] = (struct pollfd){.fd = self->base.wakeup.fd, .events = POLLIN};
    for (int fd = 0; fd < interests->limit; fd++)
        if (interests->items[fd].armed)
            self->copy[count++] = (struct pollfd){
                .fd = fd, .events = (short)pr_poll_of_events(interests->items[fd].armed)};
    self->copied = count;
    self->version = interests->version;
    self->current = true;
    return 0;
}

static int report(struct poll_demux *self, struct pr_ready_event *events, int capacity)
{
    struct pr_interests *interests = &self->interests;
    int others = self->copied - 1; /* the first is the wakeup */
    int start = self->next < others ? self->next : 0;
    int count = 0;
    pthread_mutex_lock(&interests->lock);
    for (int i = 0; i < others && count < capacity; i++) {
        int index = (start + i) % others;
        const struct pollfd *entry = &self->copy[1 + index];
        /* What was added or changed meanwhile may be another descriptor than the one asked about:
         * the next wait asks about that one. */
        if (!entry->revents || entry->fd >= interests->limit ||
            interests->items[entry->fd].changed > self->version)
            continue;
        uint32_t found = pr_events_of_poll((uint32_t)(unsigned short)entry->revents);
        if (pr_interests_report_locked(interests, entry->fd, found, &events[count])) {
            if (!interests->items[entry->fd].armed)
                self->current = false;
            count++;
            self->next = index + 1;
        }
    }
    pthread_mutex_unlock(&interests->lock);
    return count;
}

static int poll_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                     int64_t timeout_ns)
{
    struct poll_demux *self = of(demux);
    if (!pr_wakeup_begin_sleep(&demux->wakeup))
        timeout_ns = 0;
    pthread_mutex_lock(&self->interests.lock);
    int error =
        self->current && self->version == self->interests.version ? 0 : copy_interests_locked(self);
    pthread_mutex_unlock(&self->interests.lock);
    if (error < 0) {
        pr_wakeup_end_sleep(&demux->wakeup);
        return error;
    }
    struct timespec timeout = {.tv_sec = timeout_ns / PR_NS_PER_SECOND,
                               .tv_nsec = timeout_ns % PR_NS_PER_SECOND};
    int found = ppoll(self->copy, (nfds_t)self->copied, timeout_ns < 0 ? NULL : &timeout, NULL);
    error = errno;
    pr_wakeup_end_sleep(&demux->wakeup);
    if (found < 0)
        return -error;
    if (self->copy[0].revents)
        pr_wakeup_drain(&demux->wakeup);
    return found ? report(self, events, capacity) : 0;
}

static void poll_wake(struct pr_demux *demux)
{
    pr_wakeup_wake(&demux->wakeup);
}

const struct pr_demux_ops pr_demux_poll_ops = {
    .name = "poll",
    .size = sizeof(struct poll_demux),
    .add = poll_add,
    .modify = poll_modify,
    .remove = poll_remove,
    .wait = poll_wait,
    .wake = poll_wake,
    .init = poll_init,
    .deinit = poll_deinit,
};
