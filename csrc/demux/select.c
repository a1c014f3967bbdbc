/*
 * select(): the set is handed to the kernel anew with every wait, as a bit for each descriptor.
 * A bit set has room for FD_SETSIZE descriptors, and a larger number would be written beside it: it
 * is refused where it is added.
 */
#include "pyreactor/interests.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/select.h>

#include "pyreactor/clock.h"

struct select_demux {
    struct pr_demux base;
    struct pr_interests interests;
    int next; /* where the search for ready ones begins: nobody starves */
};

struct sets {
    fd_set readable, writable, exceptional;
    int limit;
    uint64_t version; /* of the interests that were copied */
};

static struct select_demux *of(struct pr_demux *demux)
{
    return (struct select_demux *)demux;
}

static int select_init(struct pr_demux *demux)
{
    if (demux->wakeup.fd >= FD_SETSIZE)
        return -ERANGE;
    pr_interests_init(&of(demux)->interests);
    return 0;
}

static void select_deinit(struct pr_demux *demux)
{
    pr_interests_deinit(&of(demux)->interests);
}

static int select_add(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    if (fd >= FD_SETSIZE)
        return -ERANGE;
    return pr_interests_add(&of(demux)->interests, demux, fd, generation, events);
}

static int select_modify(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    return pr_interests_modify(&of(demux)->interests, demux, fd, generation, events);
}

static int select_remove(struct pr_demux *demux, int fd)
{
    return pr_interests_remove(&of(demux)->interests, demux, fd);
}

static void copy_interests(struct select_demux *self, struct sets *sets)
{
    FD_ZERO(&sets->readable);
    FD_ZERO(&sets->writable);
    FD_ZERO(&sets->exceptional);
    pthread_mutex_lock(&self->interests.lock);
    for (int fd = 0; fd < self->interests.limit; fd++) {
        uint32_t armed = self->interests.items[fd].armed;
        if (armed & PR_READABLE)
            FD_SET(fd, &sets->readable);
        if (armed & PR_WRITABLE)
            FD_SET(fd, &sets->writable);
        if (armed & PR_EXCEPTIONAL)
            FD_SET(fd, &sets->exceptional);
    }
    sets->limit = self->interests.limit;
    sets->version = self->interests.version;
    pthread_mutex_unlock(&self->interests.lock);
    FD_SET(self->base.wakeup.fd, &sets->readable);
    if (sets->limit <= self->base.wakeup.fd)
        sets->limit = self->base.wakeup.fd + 1;
}

/* select() refuses the whole set for one descriptor that was closed under it: what remains of the
 * set are those, ready for whatever was wanted, so that their owner comes upon the error. */
static int keep_closed(struct sets *sets)
{
    int count = 0;
    for (int fd = 0; fd < sets->limit; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) {
            FD_CLR(fd, &sets->readable);
            FD_CLR(fd, &sets->writable);
            FD_CLR(fd, &sets->exceptional);
        }
        count += FD_ISSET(fd, &sets->readable) || FD_ISSET(fd, &sets->writable) ||
                 FD_ISSET(fd, &sets->exceptional);
    }
    return count;
}

static int report(struct select_demux *self, struct sets *sets, struct pr_ready_event *events,
                  int capacity)
{
    int count = 0;
    int start = self->next < sets->limit ? self->next : 0;
    pthread_mutex_lock(&self->interests.lock);
    for (int i = 0; i < sets->limit && count < capacity; i++) {
        int fd = (start + i) % sets->limit;
        uint32_t found = (FD_ISSET(fd, &sets->readable) ? PR_READABLE : 0) |
                         (FD_ISSET(fd, &sets->writable) ? PR_WRITABLE : 0) |
                         (FD_ISSET(fd, &sets->exceptional) ? PR_EXCEPTIONAL : 0);
        /* What was added or changed meanwhile may be another descriptor than the one asked about:
         * the next wait asks about that one. */
        if (!found || fd >= self->interests.limit ||
            self->interests.items[fd].changed > sets->version)
            continue;
        if (pr_interests_report_locked(&self->interests, fd, found, &events[count])) {
            count++;
            self->next = fd + 1;
        }
    }
    pthread_mutex_unlock(&self->interests.lock);
    return count;
}

static int select_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                       int64_t timeout_ns)
{
    struct select_demux *self = of(demux);
    struct sets sets;
    if (!pr_wakeup_begin_sleep(&demux->wakeup))
        timeout_ns = 0;
    copy_interests(self, &sets);
    struct timespec timeout = {.tv_sec = timeout_ns / PR_NS_PER_SECOND,
                               .tv_nsec = timeout_ns % PR_NS_PER_SECOND};
    int found = pselect(sets.limit, &sets.readable, &sets.writable, &sets.exceptional,
                        timeout_ns < 0 ? NULL : &timeout, NULL);
    int error = errno;
    pr_wakeup_end_sleep(&demux->wakeup);
    if (found < 0 && error == EBADF)
        found = keep_closed(&sets);
    else if (found < 0)
        return -error;
    if (FD_ISSET(demux->wakeup.fd, &sets.readable))
        pr_wakeup_drain(&demux->wakeup);
    return found ? report(self, &sets, events, capacity) : 0;
}

static void select_wake(struct pr_demux *demux)
{
    pr_wakeup_wake(&demux->wakeup);
}

const struct pr_demux_ops pr_demux_select_ops = {
    .name = "select",
    .size = sizeof(struct select_demux),
    .add = select_add,
    .modify = select_modify,
    .remove = select_remove,
    .wait = select_wait,
    .wake = select_wake,
    .init = select_init,
    .deinit = select_deinit,
};
