/*
 * Signal-driven I/O: the kernel queues a real-time signal when a descriptor becomes ready, with the
 * descriptor's number in it, for the thread that waits, which takes the signals one by one with
 * sigtimedwait().  No signal handler runs.
 *
 * A signal tells that something has happened, not what is so now: it makes its descriptor a
 * candidate, and one poll() of the candidates that does not sleep tells what is reported.  What was
 * reported stays a candidate for the next wait, so that readiness which is left over is seen.
 * Where the queue of signals overflows, the kernel sends a plain SIGIO instead, and every
 * descriptor becomes a candidate.
 *
 * The signals go to one thread.  When another one comes to wait, it makes itself the receiver for
 * every descriptor and looks at them all, because signals may have gone to the former one.  The
 * receiver, O_ASYNC and the signal's number belong to the open file: duplicates share them.
 */
#include "pyreactor/interests.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pyreactor/clock.h"

#define SIGNALS_PER_WAIT_MAX 1024 /* a flood of signals must not keep the ready ones waiting */

struct sigio_demux {
    struct pr_demux base;
    struct pr_interests interests;
    int signal_number;
    sigset_t signals;
    pid_t receiver;         /* thread id, under the lock; 0: none yet */
    uint64_t receiver_life; /* tells a thread from a later one of the same id */
    bool all;               /* every descriptor is a candidate; under the lock */
    /* The candidates, each once: an interest's token tells that it is among them.  Under the lock
     * but during the poll(), when they are the waiting thread's. */
    struct pollfd *candidates; /* owned */
    int candidate_count;
    int candidate_capacity;
    int *added; /* owned; candidates that came from other threads' changes */
    int added_count;
    int added_capacity;
};

/* The one piece of static state: thread ids come again, these numbers do not. */
static atomic_uint_fast64_t last_life;
static _Thread_local uint64_t this_life;

static struct sigio_demux *of(struct pr_demux *demux)
{
    return (struct sigio_demux *)demux;
}

static int sigio_init(struct pr_demux *demux)
{
    struct sigio_demux *self = of(demux);
    self->signal_number = SIGRTMIN + 1;
    sigemptyset(&self->signals);
    sigaddset(&self->signals, self->signal_number);
    sigaddset(&self->signals, SIGIO);
    pr_interests_init(&self->interests);
    return 0;
}

static int direct_signals_to(int fd, int signal_number, pid_t receiver)
{
    struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = receiver};
    if (fcntl(fd, F_SETOWN_EX, &owner) < 0 || fcntl(fd, F_SETSIG, signal_number) < 0)
        return -errno;
    return 0;
}

/* Switches the signals of `fd` on.  Many kinds of descriptors take O_ASYNC without a word and never
 * send one; the flag stays off then. */
static int start_signals(const struct sigio_demux *self, int fd)
{
    int error = direct_signals_to(fd, self->signal_number, self->receiver);
    int flags = fcntl(fd, F_GETFL);
    if (error == -ESRCH) /* the receiver is gone; the next to wait takes its place */
        error = 0;
    if (error < 0 || flags < 0)
        return error < 0 ? error : -errno;
    if (fcntl(fd, F_SETFL, flags | O_ASYNC) < 0)
        return -errno;
    return fcntl(fd, F_GETFL) & O_ASYNC ? 0 : -EPERM;
}

static void stop_signals(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        (void)fcntl(fd, F_SETFL, flags & ~O_ASYNC);
    (void)direct_signals_to(fd, 0, 0);
}

static void sigio_deinit(struct pr_demux *demux)
{
    struct sigio_demux *self = of(demux);
    for (int fd = 0; fd < self->interests.limit; fd++)
        if (self->interests.items[fd].used)
            stop_signals(fd);
    if (self->receiver_life && self->receiver_life == this_life) {
        /* Nobody takes these any more; unblocked they would end the process. */
        struct timespec at_once = {0};
        while (sigtimedwait(&self->signals, NULL, &at_once) > 0)
            ;
    }
    pr_interests_deinit(&self->interests);
    free(self->candidates);
    free(self->added);
}

static void sigio_wake(struct pr_demux *demux)
{
    struct sigio_demux *self = of(demux);
    if (atomic_exchange(&demux->wakeup.state, PR_WOKEN) != PR_SLEEPING)
        return;
    pthread_mutex_lock(&self->interests.lock);
    pid_t receiver = self->receiver;
    pthread_mutex_unlock(&self->interests.lock);
    siginfo_t info = {.si_signo = self->signal_number, .si_code = SI_QUEUE};
    /* Where the queue is full, the receiver has signals enough to wake up by. */
    (void)syscall(SYS_rt_tgsigqueueinfo, getpid(), receiver, self->signal_number, &info);
}

/* Makes `fd` a candidate of the next look, whoever waits. */
static int add_candidate_locked(struct sigio_demux *self, int fd)
{
    if (self->added_count == self->added_capacity) {
        int capacity = self->added_capacity ? self->added_capacity * 2 : 64;
        int *added = realloc(self->added, (size_t)capacity * sizeof *added);
        if (!added)
            return -ENOMEM;
        self->added = added;
        self->added_capacity = capacity;
    }
    self->added[self->added_count++] = fd;
    return 0;
}

static int sigio_add(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    struct sigio_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    int error = pr_interests_add_locked(&self->interests, fd, generation, events);
    if (error == 0) {
        error = start_signals(self, fd);
        if (error == 0)
            error = add_candidate_locked(self, fd);
        if (error < 0)
            pr_interests_remove_locked(&self->interests, fd);
    }
    pthread_mutex_unlock(&self->interests.lock);
    if (error == 0)
        pr_demux_nudge(demux);
    return error;
}

static int sigio_modify(struct pr_demux *demux, int fd, uint32_t generation, uint32_t events)
{
    struct sigio_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    int error = pr_interests_modify_locked(&self->interests, fd, generation, events);
    if (error == 0)
        error = add_candidate_locked(self, fd);
    pthread_mutex_unlock(&self->interests.lock);
    if (error == 0)
        pr_demux_nudge(demux);
    return error;
}

static int sigio_remove(struct pr_demux *demux, int fd)
{
    struct sigio_demux *self = of(demux);
    pthread_mutex_lock(&self->interests.lock);
    int error = pr_interests_remove_locked(&self->interests, fd);
    if (error == 0)
        stop_signals(fd);
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

static int become_receiver(struct sigio_demux *self)
{
    if (!this_life)
        this_life = atomic_fetch_add(&last_life, 1) + 1;
    if (self->receiver_life == this_life)
        return 0;
    int error = pthread_sigmask(SIG_BLOCK, &self->signals, NULL);
    if (error)
        return -error;
    pthread_mutex_lock(&self->interests.lock);
    self->receiver = gettid();
    self->receiver_life = this_life;
    self->all = true;
    for (int fd = 0; fd < self->interests.limit; fd++)
        if (self->interests.items[fd].used)
            (void)direct_signals_to(fd, self->signal_number, self->receiver);
    pthread_mutex_unlock(&self->interests.lock);
    return 0;
}

/* Adds `fd` to the candidates unless it is among them, by the token of its interest: the place
 * after its own. */
static int propose_locked(struct sigio_demux *self, int fd)
{
    struct pr_interest *interest = pr_interests_find_locked(&self->interests, fd);
    if (!interest || !interest->armed || interest->token)
        return 0;
    if (self->candidate_count == self->candidate_capacity) {
        int capacity = self->candidate_capacity ? self->candidate_capacity * 2 : 64;
        struct pollfd *candidates =
            realloc(self->candidates, (size_t)capacity * sizeof *candidates);
        if (!candidates)
            return -ENOMEM;
        self->candidates = candidates;
        self->candidate_capacity = capacity;
    }
    self->candidates[self->candidate_count++] = (struct pollfd){.fd = fd};
    interest->token = 1;
    return 0;
}

static int gather_candidates_locked(struct sigio_demux *self)
{
    int error = 0;
    if (self->all)
        for (int fd = 0; fd < self->interests.limit && error == 0; fd++)
            error = propose_locked(self, fd);
    else
        for (int i = 0; i < self->added_count && error == 0; i++)
            error = propose_locked(self, self->added[i]);
    if (error < 0)
        return error;
    self->all = false;
    self->added_count = 0;
    for (int i = 0; i < self->candidate_count; i++) {
        struct pollfd *candidate = &self->candidates[i];
        struct pr_interest *interest = pr_interests_find_locked(&self->interests, candidate->fd);
        candidate->events = interest ? (short)pr_poll_of_events(interest->armed) : 0;
        candidate->revents = 0;
        if (!interest || !interest->armed) { /* poll() passes over a negative number */
            if (interest)
                interest->token = 0;
            candidate->fd = -1;
        }
    }
    return 0;
}

static void reverse(struct pollfd *first, struct pollfd *end)
{
    while (first < end--) {
        struct pollfd other = *first;
        *first++ = *end;
        *end = other;
    }
}

/* Reports what is ready and keeps it, and what there was no room for, as candidates. */
static int report_locked(struct sigio_demux *self, uint64_t version, struct pr_ready_event *events,
                         int capacity)
{
    int count = 0;
    int kept = 0;
    int passed_over = -1; /* the first that there was no room for */
    for (int i = 0; i < self->candidate_count; i++) {
        struct pollfd candidate = self->candidates[i];
        struct pr_interest *interest = pr_interests_find_locked(&self->interests, candidate.fd);
        if (!interest)
            continue;
        bool keep = candidate.revents != 0;
        if (interest->changed > version)
            keep = true; /* another one than was asked about */
        else if (keep && count == capacity)
            passed_over = passed_over >= 0 ? passed_over : kept;
        else if (keep && pr_interests_report_locked(
                             &self->interests, candidate.fd,
                             pr_events_of_poll((uint32_t)(unsigned short)candidate.revents),
                             &events[count]))
            count++;
        interest->token = keep;
        if (keep)
            self->candidates[kept++] = candidate;
    }
    self->candidate_count = kept;
    if (passed_over > 0) { /* rotated, it is first the next time: nobody starves */
        reverse(self->candidates, self->candidates + passed_over);
        reverse(self->candidates + passed_over, self->candidates + kept);
        reverse(self->candidates, self->candidates + kept);
    }
    return count;
}

static int look(struct sigio_demux *self, struct pr_ready_event *events, int capacity)
{
    pthread_mutex_lock(&self->interests.lock);
    int count = gather_candidates_locked(self);
    if (count == 0 && self->candidate_count > 0) {
        uint64_t version = self->interests.version;
        pthread_mutex_unlock(&self->interests.lock);
        int found = poll(self->candidates, (nfds_t)self->candidate_count, 0);
        pthread_mutex_lock(&self->interests.lock);
        if (found >= 0)
            count = report_locked(self, version, events, capacity);
    }
    pthread_mutex_unlock(&self->interests.lock);
    return count;
}

/* Takes the signals that are there, and sleeps for the first of them.  Returns 0, or -EINTR. */
static int take_signals(struct sigio_demux *self, int64_t timeout_ns)
{
    struct timespec timeout = {.tv_sec = timeout_ns / PR_NS_PER_SECOND,
                               .tv_nsec = timeout_ns % PR_NS_PER_SECOND};
    const struct timespec at_once = {0};
    siginfo_t info;
    int taken = timeout_ns < 0 ? sigwaitinfo(&self->signals, &info)
                               : sigtimedwait(&self->signals, &info, &timeout);
    if (taken < 0)
        return errno == EINTR ? -EINTR : 0;
    int error = 0;
    pthread_mutex_lock(&self->interests.lock);
    for (int i = 0; taken > 0 && error == 0 && i < SIGNALS_PER_WAIT_MAX; i++) {
        if (taken == SIGIO)
            self->all = true;
        else if (info.si_code != SI_QUEUE)
            error = propose_locked(self, info.si_fd);
        taken = sigtimedwait(&self->signals, &info, &at_once);
    }
    if (taken > 0) /* one more than we wanted */
        self->all = true;
    pthread_mutex_unlock(&self->interests.lock);
    return error;
}

static int sigio_wait(struct pr_demux *demux, struct pr_ready_event *events, int capacity,
                      int64_t timeout_ns)
{
    struct sigio_demux *self = of(demux);
    int error = become_receiver(self);
    if (error < 0)
        return error;
    if (!pr_wakeup_begin_sleep(&demux->wakeup))
        timeout_ns = 0;
    /* First what has been signalled: candidates that are always ready must not hide the others. */
    error = take_signals(self, 0);
    int count = error < 0 ? 0 : look(self, events, capacity);
    if (count == 0 && error == 0 && timeout_ns != 0)
        error = take_signals(self, timeout_ns);
    pr_wakeup_end_sleep(&demux->wakeup);
    if (count == 0 && error == 0)
        count = look(self, events, capacity);
    return error < 0 ? error : count;
}

const struct pr_demux_ops pr_demux_sigio_ops = {
    .name = "sigio",
    .size = sizeof(struct sigio_demux),
    .add = sigio_add,
    .modify = sigio_modify,
    .remove = sigio_remove,
    .wait = sigio_wait,
    .wake = sigio_wake,
    .init = sigio_init,
    .deinit = sigio_deinit,
};
