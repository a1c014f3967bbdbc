/*
 * epoll backend: tells which descriptors are ready; whoever watches them performs the system call.
 * Level-triggered, so that an event that was not dealt with comes again, but for PR_EDGE.
 */
#include "pyreactor/backend.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyreactor/clock.h"
#include "pyreactor/loop.h"

#ifndef SYS_epoll_pwait2 /* Linux 5.11; one number on every architecture */
#define SYS_epoll_pwait2 441
#endif

static int epoll_init(struct pr_backend *backend)
{
    backend->fd = epoll_create1(EPOLL_CLOEXEC);
    return backend->fd < 0 ? -errno : 0;
}

static void epoll_deinit(struct pr_backend *backend)
{
    if (backend->fd >= 0)
        close(backend->fd);
    backend->fd = -1;
}

static int control(struct pr_backend *backend, int operation, int fd, uint32_t generation,
                   uint32_t events)
{
    struct epoll_event event = {
        .events = (events & PR_READABLE ? EPOLLIN : 0u) | (events & PR_WRITABLE ? EPOLLOUT : 0u) |
                  (events & PR_EDGE ? (uint32_t)EPOLLET : 0u),
        .data.u64 = (uint64_t)generation << 32 | (uint32_t)fd,
    };
    return epoll_ctl(backend->fd, operation, fd, &event) < 0 ? -errno : 0;
}

static int epoll_update(struct pr_backend *backend, int fd, uint32_t generation,
                        uint32_t old_events, uint32_t new_events)
{
    if (!new_events)
        return control(backend, EPOLL_CTL_DEL, fd, generation, 0);
    int error =
        control(backend, old_events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, generation, new_events);
    /* A descriptor closed and reused behind our back has lost its entry; a duplicate of a closed
     * one has kept it. */
    if (error == -ENOENT && old_events)
        error = control(backend, EPOLL_CTL_ADD, fd, generation, new_events);
    else if (error == -EEXIST && !old_events)
        error = control(backend, EPOLL_CTL_MOD, fd, generation, new_events);
    return error;
}

/* The call with the timeout it takes: nanoseconds where the kernel can, else milliseconds,
 * rounded up, because a timer must never be early. */
static int wait_for_events(struct pr_backend *backend, struct epoll_event *events, int capacity,
                           int64_t timeout_ns)
{
    if (timeout_ns <= 0)
        return epoll_wait(backend->fd, events, capacity, timeout_ns < 0 ? -1 : 0);
    if (!backend->no_nanosecond_wait) {
        struct timespec timeout = {.tv_sec = timeout_ns / PR_NS_PER_SECOND,
                                   .tv_nsec = timeout_ns % PR_NS_PER_SECOND};
        long count =
            syscall(SYS_epoll_pwait2, backend->fd, events, capacity, &timeout, NULL, (size_t)0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) /* EPERM: a seccomp filter */
            return (int)count;
        backend->no_nanosecond_wait = true;
    }
    int64_t timeout_ms = (timeout_ns - 1) / PR_NS_PER_MS + 1;
    return epoll_wait(backend->fd, events, capacity,
                      timeout_ms < INT_MAX ? (int)timeout_ms : INT_MAX);
}

static int epoll_backend_wait(struct pr_backend *backend, struct pr_ready_event *events,
                              int capacity, int64_t timeout_ns)
{
    struct epoll_event found[PR_EVENTS_PER_TURN_MAX];
    if (capacity > PR_EVENTS_PER_TURN_MAX)
        capacity = PR_EVENTS_PER_TURN_MAX;
    int count = wait_for_events(backend, found, capacity, timeout_ns);
    if (count < 0)
        return -errno;
    for (int i = 0; i < count; i++) {
        /* A hang-up or an error concerns reader and writer alike. */
        events[i].fd = (int)(uint32_t)found[i].data.u64;
        events[i].generation = (uint32_t)(found[i].data.u64 >> 32);
        events[i].events = (found[i].events & ~(uint32_t)EPOLLOUT ? PR_READABLE : 0) |
                           (found[i].events & ~(uint32_t)EPOLLIN ? PR_WRITABLE : 0);
    }
    return count;
}

/* The set itself can be polled, at any time. */
static int epoll_pollable_fd(struct pr_backend *backend)
{
    return backend->fd;
}

static void epoll_expose(struct pr_backend *backend)
{
    (void)backend;
}

const struct pr_backend_ops pr_epoll_ops = {
    .name = "epoll",
    .has_edges = true,
    .update = epoll_update,
    .wait = epoll_backend_wait,
    .pollable_fd = epoll_pollable_fd,
    .expose = epoll_expose,
    .init = epoll_init,
    .deinit = epoll_deinit,
};
