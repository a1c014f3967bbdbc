/*
 * epoll: the kernel keeps the set, so that changes from other threads need nothing of ours, and a
 * wait costs what happened and not what is watched.
 */
#include "pyreactor/demux.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyreactor/clock.h"

#ifndef SYS_epoll_pwait2 /* Linux 5.11; one number on every architecture */
#define SYS_epoll_pwait2 441
#endif

#define WAKEUP UINT64_MAX /* no descriptor and generation look like this: fd is not negative */

struct epoll_demux {
    struct pr_demux base;
    int set; /* owned */
    /* The waiting thread's: */
    bool no_nanosecond_wait;   /* the kernel lacks epoll_pwait2 */
    struct epoll_event *found; /* owned; what the kernel fills */
    int capacity;
};

static struct epoll_demux *of(struct pr_demux *demux)
{
    return (struct epoll_demux *)demux;
}

static int epoll_demux_init(struct pr_demux *demux)
{
    struct epoll_demux *self = of(demux);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = WAKEUP};
    self->set = epoll_create1(EPOLL_CLOEXEC);
    if (self->set < 0)
        return -errno;
    if (epoll_ctl(self->set, EPOLL_CTL_ADD, demux->wakeup.fd, &event) < 0) {
        int error = -errno;
        close(self->set);
        return error;
    }
    return 0;
}

static void epoll_demux_deinit(struct pr_demux *demux)
{
    close(of(demux)->set);
    free(of(demux)->found);
}

static int control(struct pr_demux *demux, int operation, int fd, uint32_t generation,
                   uint32_t events)
{
    struct epoll_event event = {
        .events = (events & PR_READABLE ? EPOLLIN : 0u) | (events & PR_WRITABLE ? EPOLLOUT : 0u) |
                  (events & PR_EXCEPTIONAL ? EPOLLPRI : 0u) |
                  (events & PR_ONE_SHOT ? (uint32_t)EPOLLONESHOT : 0u) |
                  (events & PR_EDGE_TRIGGERED ? (uint32_t)EPOLLET : 0u) |
                  (events & PR_EXCLUSIVE ? (uint32_t)EPOLLEXCLUSIVE : 0u),
        .data.u64 = (uint64_t)generation << 32 | (uint32_t)fd,
    };
    return epoll_ctl(of(demux)->set, operation, fd, &event) < 0 ? -errno : 0;
}

/* The kernel reports hang-ups of whatever is in its set: what is wanted for nothing is not. */
static int epoll_demux_add(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    if ((events & PR_ONE_SHOT) && (events & PR_EXCLUSIVE))
        return -EINVAL;
    return events & PR_EVENTS_MASK ? control(demux, EPOLL_CTL_ADD, fd, generation, events) : 0;
}

static int epoll_demux_modify(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    if ((events & PR_ONE_SHOT) && (events & PR_EXCLUSIVE))
        return -EINVAL;
    if (!(events & PR_EVENTS_MASK) || (events & PR_EXCLUSIVE)) {
        /* The kernel does not modify an exclusive entry. */
        int error = control(demux, EPOLL_CTL_DEL, fd, generation, 0);
        if ((error < 0 && error != -ENOENT) || !(events & PR_EVENTS_MASK))
            return error == -ENOENT ? 0 : error;
        return control(demux, EPOLL_CTL_ADD, fd, generation, events);
    }
    int error = control(demux, EPOLL_CTL_MOD, fd, generation, events);
    return error == -ENOENT ? control(demux, EPOLL_CTL_ADD, fd, generation, events) : error;
}

static int epoll_demux_remove(struct pr_demux *demux, int fd)
{
    return control(demux, EPOLL_CTL_DEL, fd, 0, 0);
}

static int reserve(struct epoll_demux *self, int capacity)
{
    if (self->capacity >= capacity)
        return 0;
    struct epoll_event *found = realloc(self->found, (size_t)capacity * sizeof *found);
    if (!found)
        return -ENOMEM;
    self->found = found;
    self->capacity = capacity;
    return 0;
}

/* The call with the timeout it takes: nanoseconds where the kernel can, else milliseconds,
 * rounded up, because a timer must never be early. */
static int wait_for_events(struct epoll_demux *self, int capacity, int64_t timeout_ns)
{
    struct epoll_event *events = self->found;
    if (timeout_ns <= 0)
        return epoll_wait(self->set, events, capacity, timeout_ns < 0 ? -1 : 0);
    if (!self->no_nanosecond_wait) {
        struct timespec timeout = {.tv_sec = timeout_ns / PR_NS_PER_SECOND,
                                   .tv_nsec = timeout_ns % PR_NS_PER_SECOND};
        long count =
            syscall(SYS_epoll_pwait2, self->set, events, capacity, &timeout, NULL, (size_t)0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) /* EPERM: a seccomp filter */
            return (int)count;
        self->no_nanosecond_wait = true;
    }
    int64_t timeout_ms = (timeout_ns - 1) / PR_NS_PER_MS + 1;
    return epoll_wait(self->set, events, capacity,
                      timeout_ms < INT_MAX ? (int)timeout_ms : INT_MAX);
}

static uint32_t events_of_epoll(uint32_t events)
{
    /* A hang-up or an error concerns reader and writer alike. */
    return (events & ~(uint32_t)(EPOLLOUT | EPOLLPRI) ? PR_READABLE : 0) |
           (events & ~(uint32_t)(EPOLLIN | EPOLLPRI) ? PR_WRITABLE : 0) |
           (events & EPOLLPRI ? PR_EXCEPTIONAL : 0);
}

static int epoll_demux_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                            int64_t timeout_ns)
{
    struct epoll_demux *self = of(demux);
    int error = reserve(self, capacity);
    if (error < 0)
        return error;
    if (!pr_wakeup_begin_sleep(&demux->wakeup))
        timeout_ns = 0;
    int count = wait_for_events(self, capacity, timeout_ns);
    error = errno;
    pr_wakeup_end_sleep(&demux->wakeup);
    if (count < 0)
        return -error;
    int reported = 0;
    for (int i = 0; i < count; i++) {
        if (self->found[i].data.u64 == WAKEUP) {
            pr_wakeup_drain(&demux->wakeup);
            continue;
        }
        events[reported++] = (struct pr_ready_event){
            .fd = (int)(uint32_t)self->found[i].data.u64,
            .generation = (uint32_t)(self->found[i].data.u64 >> 32),
            .events = events_of_epoll(self->found[i].events),
        };
    }
    return reported;
}

static void epoll_demux_wake(struct pr_demux *demux)
{
    pr_wakeup_wake(&demux->wakeup);
}

int pr_demux_fileno(const struct pr_demux *demux)
{
    return demux->ops == &pr_demux_epoll_ops ? ((const struct epoll_demux *)demux)->set : -1;
}

const struct pr_demux_ops pr_demux_epoll_ops = {
    .name = "epoll",
    .size = sizeof(struct epoll_demux),
    .add = epoll_demux_add,
    .modify = epoll_demux_modify,
    .remove = epoll_demux_remove,
    .wait = epoll_demux_wait,
    .wake = epoll_demux_wake,
    .init = epoll_demux_init,
    .deinit = epoll_demux_deinit,
};
