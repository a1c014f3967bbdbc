/*
 * The set of descriptors that select, poll, io_uring and SIGIO wait for, and how it is changed
 * under a thread that waits.
 */
#include "pyreactor/interests.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define INITIAL_CAPACITY 64

void pr_interests_init(struct pr_interests *interests)
{
    *interests = (struct pr_interests){0};
    pthread_mutex_init(&interests->lock, NULL); /* cannot fail on Linux */
}

void pr_interests_deinit(struct pr_interests *interests)
{
    pthread_mutex_destroy(&interests->lock);
    free(interests->items);
}

static int reserve(struct pr_interests *interests, int fd)
{
    if (fd < interests->capacity)
        return 0;
    int capacity = interests->capacity ? interests->capacity : INITIAL_CAPACITY;
    while (capacity <= fd)
        capacity *= 2; /* a descriptor is below 2^30: fs.nr_open cannot be larger */
    struct pr_interest *items = realloc(interests->items, (size_t)capacity * sizeof *items);
    if (!items)
        return -ENOMEM;
    memset(items + interests->capacity, 0,
           (size_t)(capacity - interests->capacity) * sizeof *items);
    interests->items = items;
    interests->capacity = capacity;
    return 0;
}

static void set(struct pr_interests *interests, int fd, uint32_t generation, uint32_t events)
{
    struct pr_interest *interest = &interests->items[fd];
    interest->generation = generation;
    interest->events = events;
    interest->armed = events & PR_EVENTS_MASK;
    interest->changed = ++interests->version;
}

int pr_interests_add_locked(struct pr_interests *interests, int fd, uint32_t generation,
                            uint32_t events)
{
    if (events & (PR_EDGE_TRIGGERED | PR_EXCLUSIVE))
        return -EOPNOTSUPP;
    if (fd < 0 || fcntl(fd, F_GETFD) < 0)
        return -EBADF;
    if (pr_interests_find_locked(interests, fd))
        return -EEXIST;
    int error = reserve(interests, fd);
    if (error < 0)
        return error;
    if (fd >= interests->limit)
        interests->limit = fd + 1;
    interests->items[fd] = (struct pr_interest){.used = true};
    set(interests, fd, generation, events);
    return 0;
}

int pr_interests_modify_locked(struct pr_interests *interests, int fd, uint32_t generation,
                               uint32_t events)
{
    if (events & (PR_EDGE_TRIGGERED | PR_EXCLUSIVE))
        return -EOPNOTSUPP;
    if (!pr_interests_find_locked(interests, fd))
        return -ENOENT;
    set(interests, fd, generation, events);
    return 0;
}

int pr_interests_remove_locked(struct pr_interests *interests, int fd)
{
    struct pr_interest *interest = pr_interests_find_locked(interests, fd);
    if (!interest)
        return -ENOENT;
    *interest = (struct pr_interest){.changed = ++interests->version};
    while (interests->limit > 0 && !interests->items[interests->limit - 1].used)
        interests->limit--;
    return 0;
}

int pr_interests_add(struct pr_interests *interests, struct pr_demux *demux, int fd,
                     uint32_t generation, uint32_t events)
{
    pthread_mutex_lock(&interests->lock);
    int error = pr_interests_add_locked(interests, fd, generation, events);
    pthread_mutex_unlock(&interests->lock);
    if (error == 0)
        pr_demux_nudge(demux);
    return error;
}

int pr_interests_modify(struct pr_interests *interests, struct pr_demux *demux, int fd,
                        uint32_t generation, uint32_t events)
{
    pthread_mutex_lock(&interests->lock);
    int error = pr_interests_modify_locked(interests, fd, generation, events);
    pthread_mutex_unlock(&interests->lock);
    if (error == 0)
        pr_demux_nudge(demux);
    return error;
}

int pr_interests_remove(struct pr_interests *interests, struct pr_demux *demux, int fd)
{
    pthread_mutex_lock(&interests->lock);
    int error = pr_interests_remove_locked(interests, fd);
    pthread_mutex_unlock(&interests->lock);
    if (error == 0)
        pr_demux_nudge(demux);
    return error;
}

bool pr_interests_report_locked(struct pr_interests *interests, int fd, uint32_t found,
                                struct pr_ready_event *event)
{
    struct pr_interest *interest = pr_interests_find_locked(interests, fd);
    if (!interest || !interest->armed || !found)
        return false;
    /* An error that nobody asked about goes to whoever is there: it would come for ever. */
    event->events = found & interest->armed ? found & interest->armed : interest->armed;
    event->fd = fd;
    event->generation = interest->generation;
    if (interest->events & PR_ONE_SHOT)
        interest->armed = 0;
    return true;
}

uint32_t pr_events_of_poll(uint32_t poll_events)
{
    return (poll_events & ~(uint32_t)(POLLOUT | POLLPRI) ? PR_READABLE : 0) |
           (poll_events & ~(uint32_t)(POLLIN | POLLPRI) ? PR_WRITABLE : 0) |
           (poll_events & POLLPRI ? PR_EXCEPTIONAL : 0);
}

uint32_t pr_poll_of_events(uint32_t events)
{
    return (events & PR_READABLE ? POLLIN : 0u) | (events & PR_WRITABLE ? POLLOUT : 0u) |
           (events & PR_EXCEPTIONAL ? POLLPRI : 0u);
}
