/*
 * io_uring: each interest is a poll operation in flight, which completes when its descriptor is
 * ready.  One that is reported while it lasts is submitted again before the next wait: the kernel
 * looks at the descriptor then, so that readiness which is left over is seen.
 *
 * The ring is a plain one: any thread may submit to it, one at a time.  The kernel cancels what a
 * thread had submitted when that thread ends; such a completion is submitted again by the one that
 * waits.
 */
#include "pyreactor/interests.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "pyreactor/uring_map.h"

#define ENTRIES 256
#define IGNORED UINT64_MAX /* user_data of a cancellation; an interest's is never this */
#define WAKEUP (UINT64_MAX - 1)
#define NOT_IN_FLIGHT 0 /* an interest's token; others name one submission */

struct uring_demux {
    struct pr_demux base;
    struct pr_interests interests; /* its lock guards the submission ring and `last_token`, too */
    struct pr_uring_map map;
    uint32_t last_token;
    bool wakeup_in_flight;
    /* What is to be submitted again before the next wait; the waiting thread's. */
    int *again; /* owned */
    int again_count;
    int again_capacity;
};

static struct uring_demux *of(struct pr_demux *demux)
{
    return (struct uring_demux *)demux;
}

static int uring_init(struct pr_demux *demux)
{
    int error = pr_uring_map_init(&of(demux)->map, ENTRIES, 0, 0);
    if (error == 0)
        pr_interests_init(&of(demux)->interests);
    return error;
}

static void uring_deinit(struct pr_demux *demux)
{
    pr_uring_map_deinit(&of(demux)->map);
    pr_interests_deinit(&of(demux)->interests);
    free(of(demux)->again);
}

static uint64_t user_data_of(int fd, uint32_t token)
{
    return (uint64_t)token << 32 | (uint32_t)fd;
}

static int next_sqe_locked(struct uring_demux *self, struct pr_uring_sqe **sqe)
{
    *sqe = pr_uring_map_next_sqe(&self->map);
    if (*sqe)
        return 0;
    int error = pr_uring_map_submit(&self->map);
    if (error < 0)
        return error;
    *sqe = pr_uring_map_next_sqe(&self->map);
    return *sqe ? 0 : -EAGAIN;
}

static int start_poll_locked(struct uring_demux *self, int fd, uint64_t user_data,
                             uint32_t poll_events)
{
    struct pr_uring_sqe *sqe;
    int error = next_sqe_locked(self, &sqe);
    if (error < 0)
        return error;
    /* A poll operation for POLLPRI alone sleeps through it (seen on Linux 6.18: the bit is taken
     * out of what may wake it up); what wakes up its readers comes with POLLRDBAND, too. */
    uint32_t events = poll_events | (poll_events & POLLPRI ? POLLRDBAND : 0u);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = events << 16 | events >> 16; /* the kernel swaps the halves there */
#endif
    sqe->opcode = PR_URING_POLL_ADD;
    sqe->fd = fd;
    sqe->operation_flags = events;
    sqe->user_data = user_data;
    return 0;
}

/* Puts the operation of `fd` into the ring, where it is wanted and not in flight. */
static int arm_locked(struct uring_demux *self, int fd)
{
    struct pr_interest *interest = pr_interests_find_locked(&self->interests, fd);
    if (!interest || !interest->armed || interest->token != NOT_IN_FLIGHT)
        return 0;
    if (++self->last_token >= UINT32_MAX)
        self->last_token = 1;
    int error = start_poll_locked(self, fd, user_data_of(fd, self->last_token),
                                  pr_poll_of_events(interest->armed));
    if (error == 0)
        interest->token = self->last_token;
    return error;
}

static int cancel_locked(struct uring_demux *self, int fd, uint32_t token)
{
    struct pr_uring_sqe *sqe;
    if (token == NOT_IN_FLIGHT)
        return 0;
    int error = next_sqe_locked(self, &sqe);
    if (error < 0)
        return error;
    sqe->opcode = PR_URING_POLL_REMOVE;
    sqe->fd = -1;
    sqe->address = user_data_of(fd, token);
    sqe->user_data = IGNORED;
    return 0;
}

static int uring_add(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    struct uring_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    int error = pr_interests_add_locked(&self->interests, fd, generation, events);
    if (error == 0) {
        error = arm_locked(self, fd);
        if (error == 0)
            error = pr_uring_map_submit(&self->map);
        if (error < 0)
            pr_interests_remove_locked(&self->interests, fd);
    }
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

static int uring_modify(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    struct uring_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    struct pr_interest *interest = pr_interests_find_locked(&self->interests, fd);
    uint32_t token = interest ? interest->token : NOT_IN_FLIGHT;
    int error = pr_interests_modify_locked(&self->interests, fd, generation, events);
    if (error == 0)
        error = cancel_locked(self, fd, token);
    if (error == 0) {
        interest->token = NOT_IN_FLIGHT;
        error = arm_locked(self, fd);
    }
    if (error == 0)
        error = pr_uring_map_submit(&self->map);
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

static int uring_remove(struct pr_demux *demux, int fd)
{
    struct uring_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    struct pr_interest *interest = pr_interests_find_locked(&self->interests, fd);
    uint32_t token = interest ? interest->token : NOT_IN_FLIGHT;
    int error = pr_interests_remove_locked(&self->interests, fd);
    if (error == 0)
        error = cancel_locked(self, fd, token);
    if (error == 0)
        error = pr_uring_map_submit(&self->map);
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

/* Whether what was completed has to be in flight again before anybody sleeps. */
static bool must_submit(const struct uring_demux *self)
{
    return !self->wakeup_in_flight || self->again_count > 0;
}

static int submit_again_locked(struct uring_demux *self)
{
    int error = 0;
    if (!self->wakeup_in_flight) {
        error = start_poll_locked(self, self->base.wakeup.fd, WAKEUP, POLLIN);
        if (error < 0)
            return error;
        self->wakeup_in_flight = true;
    }
    while (self->again_count > 0) {
        error = arm_locked(self, self->again[self->again_count - 1]);
        if (error < 0)
            return error;
        self->again_count--;
    }
    return pr_uring_map_submit(&self->map);
}

static int submit_again(struct uring_demux *self)
{
    pthread_mutex_lock(&self->interests.lock);
    int error = submit_again_locked(self);
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

static int remember_again(struct uring_demux *self, int fd)
{
    if (self->again_count == self->again_capacity) {
        int capacity = self->again_capacity ? self->again_capacity * 2 : ENTRIES;
        int *again = realloc(self->again, (size_t)capacity * sizeof *again);
        if (!again)
            return -ENOMEM;
        self->again = again;
        self->again_capacity = capacity;
    }
    self->again[self->again_count++] = fd;
    return 0;
}

/* Makes of one completion at most one event.  Returns their number or a negative errno. */
static int complete_locked(struct uring_demux *self, const struct pr_uring_cqe *cqe,
                           struct pr_ready_event *event)
{
    if (cqe->user_data == IGNORED)
        return 0;
    if (cqe->user_data == WAKEUP) {
        self->wakeup_in_flight = false;
        pr_wakeup_drain(&self->base.wakeup);
        return 0;
    }
    int fd = (int)(uint32_t)cqe->user_data;
    struct pr_interest *interest = pr_interests_find_locked(&self->interests, fd);
    if (!interest || interest->token != (uint32_t)(cqe->user_data >> 32))
        return 0; /* of an interest that was changed or removed */
    interest->token = NOT_IN_FLIGHT;
    int error = remember_again(self, fd);
    if (error < 0 || cqe->result == -ECANCELED) /* the thread that had submitted it is gone */
        return error;
    uint32_t found = pr_events_of_poll(cqe->result < 0 ? (uint32_t)POLLERR : (uint32_t)cqe->result);
    return pr_interests_report_locked(&self->interests, fd, found, event);
}

static int reap_ring(struct uring_demux *self, struct pr_ready_event *events, int capacity)
{
    struct pr_uring_cqe cqe;
    int count = 0;
    int error = 0;
    pthread_mutex_lock(&self->interests.lock);
    while (count < capacity && error >= 0 && pr_uring_map_pop(&self->map, &cqe)) {
        error = complete_locked(self, &cqe, &events[count]);
        if (error > 0)
            count++;
    }
    pthread_mutex_unlock(&self->interests.lock);
    return count > 0 ? count : error;
}

/* The same, with those that the completion ring had no room for. */
static int reap(struct uring_demux *self, struct pr_ready_event *events, int capacity)
{
    int count = reap_ring(self, events, capacity);
    while (count >= 0 && count < capacity && pr_uring_map_has_overflow(&self->map)) {
        if (pr_uring_map_wait(&self->map, 0) < 0)
            break; /* they are there for the next wait */
        int more = reap_ring(self, events + count, capacity - count);
        if (more <= 0)
            break;
        count += more;
    }
    return count;
}

static int uring_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                      int64_t timeout_ns)
{
    struct uring_demux *self = of(demux);
    int error;
    do { /* a completion that is no event, such as the wakeup's, leaves its descriptor unwatched */
        error = submit_again(self);
        int found = error < 0 ? error : reap(self, events, capacity);
        if (found != 0)
            return found;
    } while (must_submit(self));
    if (!pr_wakeup_begin_sleep(&demux->wakeup))
        timeout_ns = 0;
    error = pr_uring_map_wait(&self->map, timeout_ns);
    pr_wakeup_end_sleep(&demux->wakeup);
    int count = reap(self, events, capacity); /* a completion may have come with the EINTR */
    return count == 0 && error < 0 ? error : count;
}

static void uring_wake(struct pr_demux *demux)
{
    pr_wakeup_wake(&demux->wakeup);
}

const struct pr_demux_ops pr_demux_uring_ops = {
    .name = "io_uring",
    .size = sizeof(struct uring_demux),
    .add = uring_add,
    .modify = uring_modify,
    .remove = uring_remove,
    .wait = uring_wait,
    .wake = uring_wake,
    .init = uring_init,
    .deinit = uring_deinit,
};
