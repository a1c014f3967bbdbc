/*
 * Handles, timers and the wait for both.  Every interest is one-shot in the demultiplexer, and a
 * flag of our own says the same in user space: another thread may arm a handle again between the
 * kernel's report and the handler's call.
 */
#include "pyreactor/handle_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pyreactor/clock.h"

#define INITIAL_CAPACITY 64
#define READY_MAX (PR_EVENTS_PER_WAIT_MAX + PR_TIMERS_PER_WAIT_MAX)

void pr_handle_set_init(struct pr_handle_set *set, struct pr_demux *demux, struct pr_trace *trace,
                        int events_per_wait)
{
    *set = (struct pr_handle_set){.demux = demux, .trace = trace};
    set->events_per_wait =
        events_per_wait < PR_EVENTS_PER_WAIT_MAX ? events_per_wait : PR_EVENTS_PER_WAIT_MAX;
    pthread_mutex_init(&set->lock, NULL); /* cannot fail on Linux */
    pr_timer_heap_init(&set->timers);
}

void pr_handle_set_close(struct pr_handle_set *set)
{
    pthread_mutex_lock(&set->lock);
    if (!set->closed)
        pr_timer_heap_deinit(&set->timers);
    set->closed = true;
    for (int fd = 0; fd < set->capacity; fd++)
        free(set->handles[fd].channel.data);
    free(set->handles);
    free(set->unasked);
    set->handles = NULL;
    set->unasked = NULL;
    set->capacity = set->unasked_count = set->unasked_capacity = set->ready_count = 0;
    pthread_mutex_unlock(&set->lock);
}

void pr_handle_set_deinit(struct pr_handle_set *set)
{
    pr_handle_set_close(set);
    pthread_mutex_destroy(&set->lock);
}

void pr_handle_set_let_waiter_add(struct pr_handle_set *set)
{
    pthread_mutex_lock(&set->lock);
    set->waiter_adds = true;
    pthread_mutex_unlock(&set->lock);
}

/* 0 where a handle was found; otherwise why there is none. */
static int missing_locked(const struct pr_handle_set *set, const struct pr_handle *handle)
{
    if (set->closed)
        return -ESHUTDOWN;
    return handle && !handle->removed ? 0 : -ENOENT;
}

static struct pr_handle *find_locked(struct pr_handle_set *set, int fd)
{
    return fd >= 0 && fd < set->capacity && set->handles[fd].used ? &set->handles[fd] : NULL;
}

/* The handle of an event, or NULL where the event is of an earlier registration. */
static struct pr_handle *find_current_locked(struct pr_handle_set *set, int fd, uint32_t generation)
{
    struct pr_handle *handle = find_locked(set, fd);
    return handle && handle->generation == generation ? handle : NULL;
}

static int reserve_locked(struct pr_handle_set *set, int fd)
{
    if (fd < set->capacity)
        return 0;
    int capacity = set->capacity ? set->capacity : INITIAL_CAPACITY;
    while (capacity <= fd)
        capacity *= 2;
    struct pr_handle *handles = realloc(set->handles, (size_t)capacity * sizeof *handles);
    if (!handles)
        return -ENOMEM;
    memset(handles + set->capacity, 0, (size_t)(capacity - set->capacity) * sizeof *handles);
    set->handles = handles;
    set->capacity = capacity;
    return 0;
}

static void free_locked(struct pr_handle *handle)
{
    free(handle->channel.data);
    *handle = (struct pr_handle){0};
}

static uint32_t armed_for(const struct pr_handle *handle)
{
    return (handle->suspended ? 0 : handle->wanted) | PR_ONE_SHOT;
}

static int arm_locked(struct pr_handle_set *set, int fd, const struct pr_handle *handle)
{
    if (handle->busy || handle->unasked)
        return 0; /* later: what it wants then is what counts */
    return set->demux->ops->modify(set->demux, fd, handle->generation, armed_for(handle));
}

/* Leaves it to the waiting thread to tell the demultiplexer. */
static int postpone_locked(struct pr_handle_set *set, int fd)
{
    if (set->unasked_count == set->unasked_capacity) {
        int capacity = set->unasked_capacity ? 2 * set->unasked_capacity : INITIAL_CAPACITY;
        int *unasked = realloc(set->unasked, (size_t)capacity * sizeof *unasked);
        if (!unasked)
            return -ENOMEM;
        set->unasked = unasked;
        set->unasked_capacity = capacity;
    }
    set->unasked[set->unasked_count++] = fd;
    set->handles[fd].unasked = true;
    return 0;
}

int pr_handle_set_register(struct pr_handle_set *set, int fd, uint32_t wanted, uint32_t flags,
                           uint32_t *generation)
{
    bool postponed = false;
    pthread_mutex_lock(&set->lock);
    int error = set->closed            ? -ESHUTDOWN
                : fd < 0               ? -EBADF
                : find_locked(set, fd) ? -EEXIST
                                       : reserve_locked(set, fd);
    if (error == 0) {
        *generation = ++set->last_generation;
        /* Known before the demultiplexer knows it: its first event may come at once. */
        struct pr_handle *handle = &set->handles[fd];
        *handle = (struct pr_handle){
            .used = true, .generation = *generation, .wanted = wanted, .flags = flags};
        if ((flags & PR_HANDLE_CHANNEL) && (wanted & PR_WRITABLE))
            handle->channel =
                (struct pr_channel){.report_written = true, .unread = !(wanted & PR_READABLE)};
        pr_trace_note(set->trace, PR_ACTION_REGISTER, fd, wanted);
        postponed = set->waiter_adds;
        error = postponed ? postpone_locked(set, fd)
                          : set->demux->ops->add(set->demux, fd, *generation, armed_for(handle));
        if (error < 0)
            handle->used = false;
        else
            set->stats.handles++;
    }
    pthread_mutex_unlock(&set->lock);
    if (postponed)
        pr_handle_set_wake(set);
    return error;
}

static void remove_locked(struct pr_handle_set *set, int fd, struct pr_handle *handle)
{
    pr_trace_note(set->trace, PR_ACTION_REMOVE, fd, 0);
    if (!handle->unasked)
        (void)set->demux->ops->remove(set->demux, fd); /* fails only where it is gone already */
    set->stats.handles--;
    if (handle->busy)
        handle->removed = true;
    else
        free_locked(handle);
}

int pr_handle_set_remove(struct pr_handle_set *set, int fd, uint32_t *generation)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_locked(set, fd);
    int result = missing_locked(set, handle);
    if (result == 0) {
        result = handle->busy;
        *generation = handle->generation;
        remove_locked(set, fd, handle);
    }
    pthread_mutex_unlock(&set->lock);
    return result;
}

void pr_handle_set_drop(struct pr_handle_set *set, const struct pr_event *event)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_current_locked(set, event->fd, event->generation);
    if (handle && !handle->removed)
        remove_locked(set, event->fd, handle);
    pthread_mutex_unlock(&set->lock);
}

bool pr_handle_set_has(struct pr_handle_set *set, int fd)
{
    pthread_mutex_lock(&set->lock);
    bool has = missing_locked(set, find_locked(set, fd)) == 0;
    pthread_mutex_unlock(&set->lock);
    return has;
}

int pr_handle_set_modify(struct pr_handle_set *set, int fd, uint32_t wanted)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_locked(set, fd);
    int error = missing_locked(set, handle);
    if (error == 0) {
        handle->wanted = wanted;
        error = arm_locked(set, fd, handle);
    }
    pthread_mutex_unlock(&set->lock);
    return error;
}

static int set_suspended(struct pr_handle_set *set, int fd, bool suspended)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_locked(set, fd);
    int error = missing_locked(set, handle);
    if (error == 0 && handle->suspended != suspended) {
        handle->suspended = suspended;
        error = arm_locked(set, fd, handle);
    }
    pthread_mutex_unlock(&set->lock);
    return error;
}

int pr_handle_set_suspend(struct pr_handle_set *set, int fd)
{
    return set_suspended(set, fd, true);
}

int pr_handle_set_resume(struct pr_handle_set *set, int fd)
{
    return set_suspended(set, fd, false);
}

static bool pop_locked(struct pr_handle_set *set, struct pr_event *event)
{
    if (set->ready_count == 0)
        return false;
    *event = set->ready[set->ready_first];
    set->ready_first = (set->ready_first + 1) % READY_MAX;
    set->ready_count--;
    return true;
}

static void push_locked(struct pr_handle_set *set, struct pr_event event)
{
    set->ready[(set->ready_first + set->ready_count++) % READY_MAX] = event;
}

static void take_timers_locked(struct pr_handle_set *set)
{
    int64_t now_ns = pr_now_ns();
    for (int i = 0; i < PR_TIMERS_PER_WAIT_MAX && pr_timer_heap_has_due(&set->timers, now_ns);
         i++) {
        const struct pr_timer *timer = pr_timer_heap_pop(&set->timers);
        push_locked(set, (struct pr_event){.fd = -1,
                                           .timer_id = (uint64_t)(uintptr_t)timer->callback.owner});
        set->stats.timers++;
    }
}

static void take_handles_locked(struct pr_handle_set *set, int count)
{
    for (int i = 0; i < count; i++) {
        const struct pr_ready_event *found = &set->found[i];
        struct pr_handle *handle = find_current_locked(set, found->fd, found->generation);
        if (!handle || handle->busy) {
            set->stats.stale_events++;
            continue;
        }
        if (handle->suspended || handle->wanted == 0)
            continue; /* it is armed again when it is resumed, or wants something */
        uint32_t events = found->events & handle->wanted;
        handle->busy = true;
        push_locked(set, (struct pr_event){.fd = found->fd,
                                           .generation = found->generation,
                                           .events = events ? events : handle->wanted,
                                           .flags = handle->flags});
        set->stats.events++;
    }
}

/* How long the demultiplexer may sleep: `timeout_ns`, or less where a timer is due before. */
static int64_t sleep_ns_locked(const struct pr_handle_set *set, int64_t timeout_ns)
{
    if (set->timers.count == 0 || timeout_ns == 0)
        return timeout_ns;
    int64_t left_ns = set->timers.entries[0].deadline_ns - pr_now_ns();
    if (left_ns < 0)
        left_ns = 0;
    return timeout_ns < 0 || left_ns < timeout_ns ? left_ns : timeout_ns;
}

/* Tells the demultiplexer of what others have registered. */
static void add_unasked_locked(struct pr_handle_set *set)
{
    while (set->unasked_count > 0 && set->ready_count < READY_MAX) {
        int fd = set->unasked[--set->unasked_count];
        struct pr_handle *handle = find_locked(set, fd);
        if (!handle || !handle->unasked)
            continue; /* it was removed, and perhaps registered and added again */
        handle->unasked = false;
        if (set->demux->ops->add(set->demux, fd, handle->generation, armed_for(handle)) < 0) {
            handle->busy = true;
            push_locked(set, (struct pr_event){.fd = fd,
                                               .generation = handle->generation,
                                               .flags = handle->flags & ~PR_HANDLE_SPREAD});
        }
    }
}

int pr_handle_set_wait(struct pr_handle_set *set, struct pr_event *event, int64_t timeout_ns)
{
    pthread_mutex_lock(&set->lock);
    if (set->closed) {
        pthread_mutex_unlock(&set->lock);
        return -ESHUTDOWN;
    }
    add_unasked_locked(set);
    bool got = pop_locked(set, event);
    if (!got) {
        int64_t sleep_ns = sleep_ns_locked(set, timeout_ns);
        set->stats.waits++;
        pthread_mutex_unlock(&set->lock);
        int count = pr_demux_wait(set->demux, set->found, set->events_per_wait, sleep_ns);
        if (count < 0 && count != -EINTR)
            return count;
        pthread_mutex_lock(&set->lock);
        take_timers_locked(set);
        take_handles_locked(set, count);
        got = pop_locked(set, event);
        if (!got && count < 0) {
            pthread_mutex_unlock(&set->lock);
            return count;
        }
    }
    pthread_mutex_unlock(&set->lock);
    if (got)
        pr_trace_note(set->trace, PR_ACTION_WAIT, event->fd, event->events);
    return got;
}

bool pr_handle_set_is_wanted(struct pr_handle_set *set, const struct pr_event *event)
{
    if (event->fd < 0)
        return true;
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_current_locked(set, event->fd, event->generation);
    bool wanted = handle && !handle->removed && !handle->suspended;
    pthread_mutex_unlock(&set->lock);
    return wanted;
}

bool pr_handle_set_is_busy(struct pr_handle_set *set, int fd)
{
    pthread_mutex_lock(&set->lock);
    const struct pr_handle *handle = find_locked(set, fd);
    bool busy = handle && handle->busy;
    pthread_mutex_unlock(&set->lock);
    return busy;
}

int pr_handle_set_complete(struct pr_handle_set *set, const struct pr_event *event)
{
    if (event->fd < 0)
        return 0;
    int result = 1; /* removed, and completed, before */
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_current_locked(set, event->fd, event->generation);
    if (handle) {
        handle->busy = false;
        if (handle->removed) {
            free_locked(handle);
        } else {
            pr_trace_note(set->trace, PR_ACTION_REARM, event->fd, handle->wanted);
            if (arm_locked(set, event->fd, handle) < 0)
                remove_locked(set, event->fd, handle);
            else
                result = 0;
        }
    }
    pthread_mutex_unlock(&set->lock);
    return result;
}

static int append_locked(struct pr_channel *channel, const char *data, size_t size)
{
    if (channel->begin == channel->end)
        channel->begin = channel->end = 0;
    if (channel->end + size > channel->capacity) {
        size_t capacity = (channel->end + size) * 2;
        char *grown = realloc(channel->data, capacity);
        if (!grown)
            return -ENOMEM;
        channel->data = grown;
        channel->capacity = capacity;
    }
    memcpy(channel->data + channel->end, data, size);
    channel->end += size;
    return 0;
}

static struct pr_handle *find_channel_locked(struct pr_handle_set *set, int fd)
{
    struct pr_handle *handle = find_locked(set, fd);
    return handle && !handle->removed && (handle->flags & PR_HANDLE_CHANNEL) ? handle : NULL;
}

/* Waits for a channel to become writable, and with `unread` for nothing else. */
static int want_writable_locked(struct pr_handle_set *set, int fd, bool unread)
{
    struct pr_handle *handle = &set->handles[fd];
    uint32_t wanted = handle->wanted | PR_WRITABLE;
    if (unread && (wanted & PR_READABLE)) {
        handle->channel.unread = true;
        wanted &= ~PR_READABLE;
    }
    if (wanted == handle->wanted)
        return 0;
    handle->wanted = wanted;
    return arm_locked(set, fd, handle);
}

int64_t pr_handle_set_write(struct pr_handle_set *set, int fd, const char *data, size_t size)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_channel_locked(set, fd);
    int64_t result = missing_locked(set, handle);
    if (result == 0 && size > 0)
        result = append_locked(&handle->channel, data, size);
    if (result == 0) {
        size_t unsent = handle->channel.end - handle->channel.begin;
        if (size > 0)
            result = want_writable_locked(set, fd, unsent > PR_UNSENT_BYTES_MAX);
        if (result == 0)
            result = (int64_t)unsent;
    }
    pthread_mutex_unlock(&set->lock);
    return result;
}

int pr_handle_set_report_written(struct pr_handle_set *set, int fd, bool reading)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_channel_locked(set, fd);
    int error = missing_locked(set, handle);
    if (error == 0) {
        handle->channel.report_written = true;
        error = want_writable_locked(set, fd, !reading);
    }
    pthread_mutex_unlock(&set->lock);
    return error;
}

bool pr_handle_set_close_when_written(struct pr_handle_set *set, int fd)
{
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = find_locked(set, fd);
    bool left = handle && !handle->removed && handle->channel.begin < handle->channel.end;
    if (left) {
        handle->channel.close_when_written = true;
        handle->wanted &= ~PR_READABLE;
        (void)arm_locked(set, fd, handle); /* fails only where the handle is gone */
    }
    pthread_mutex_unlock(&set->lock);
    return left;
}

void pr_handle_set_wake(struct pr_handle_set *set)
{
    pthread_mutex_lock(&set->lock);
    if (!set->closed)
        set->demux->ops->wake(set->demux);
    pthread_mutex_unlock(&set->lock);
}

int pr_handle_set_start_timer(struct pr_handle_set *set, struct pr_timer *timer)
{
    pthread_mutex_lock(&set->lock);
    int error = set->closed ? -ESHUTDOWN : pr_timer_heap_push(&set->timers, timer);
    bool is_first = error == 0 && timer->heap_index == 0;
    pthread_mutex_unlock(&set->lock);
    if (is_first) /* the wait under way does not know of it */
        pr_handle_set_wake(set);
    return error;
}

bool pr_handle_set_cancel_timer(struct pr_handle_set *set, struct pr_timer *timer)
{
    pthread_mutex_lock(&set->lock);
    bool cancelled = !set->closed && timer->heap_index != PR_TIMER_IDLE;
    if (cancelled)
        pr_timer_heap_remove(&set->timers, timer);
    pthread_mutex_unlock(&set->lock);
    return cancelled;
}

void pr_handle_set_read_stats(struct pr_handle_set *set, struct pr_handle_set_stats *stats)
{
    pthread_mutex_lock(&set->lock);
    *stats = set->stats;
    pthread_mutex_unlock(&set->lock);
}
