/*
 * The loop.  pr_loop_run_once() is its table of contents.
 */
#include "pyreactor/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pyreactor/clock.h"

static int on_wakeup(struct pr_watch *watch, uint32_t events)
{
    (void)events;
    struct pr_loop *loop = watch->owner;
    pr_wakeup_drain(&loop->wakeup);
    pr_counter_add(&loop->stats.wakeups, 1);
    return 0;
}

int pr_loop_init(struct pr_loop *loop, const char *backend_name)
{
    *loop = (struct pr_loop){.flushes = {.prev = &loop->flushes, .next = &loop->flushes},
                             .alarm = {.fd = -1}};
    loop->backend.ops = pr_backend_find(backend_name);
    if (!loop->backend.ops)
        return -ENOTSUP;
    loop->watches.backend = &loop->backend;
    pr_timer_heap_init(&loop->timers);
    int error = -ENOMEM;
    /* Aligned: the kernel copies to a page's start about twice as fast as to 16 bytes behind it,
     * which is where malloc puts large blocks. */
    loop->receive_buffer = aligned_alloc(PR_PAGE_BYTES, PR_RECEIVE_BUFFER_BYTES);
    if (!loop->receive_buffer)
        return error;
    error = pr_ready_queue_init(&loop->ready);
    if (error < 0)
        goto free_receive_buffer;
    error = loop->backend.ops->init(&loop->backend);
    if (error < 0)
        goto deinit_ready;
    error = pr_wakeup_init(&loop->wakeup);
    if (error < 0)
        goto deinit_backend;
    pr_watch_init(&loop->wakeup_watch, on_wakeup, loop);
    error = pr_watch_start(&loop->watches, &loop->wakeup_watch, loop->wakeup.fd, PR_READABLE);
    if (error == 0)
        return 0;

    free(loop->watches.slots);
    pr_wakeup_deinit(&loop->wakeup);
deinit_backend:
    loop->backend.ops->deinit(&loop->backend);
deinit_ready:
    pr_ready_queue_deinit(&loop->ready);
free_receive_buffer:
    free(loop->receive_buffer);
    return error;
}

void pr_loop_deinit(struct pr_loop *loop)
{
    while (loop->event_next < loop->event_count) { /* what a last turn left over */
        const struct pr_ready_event *event = &loop->events[loop->event_next++];
        if (event->events & PR_SENT)
            (void)event->send->on_sent(event->send, event->result);
        else if (event->events & PR_COMPLETED)
            (void)event->op->on_complete(event->op, event->result);
    }
    pr_watch_stop(&loop->watches, &loop->wakeup_watch);
    pr_wakeup_deinit(&loop->wakeup);
    if (loop->alarm.fd >= 0) {
        pr_watch_stop(&loop->watches, &loop->alarm_watch);
        pr_alarm_deinit(&loop->alarm);
    }
    loop->backend.ops->deinit(&loop->backend);
    free(loop->watches.slots);
    loop->watches = (struct pr_watch_table){.backend = &loop->backend};
    pr_timer_heap_deinit(&loop->timers);
    pr_ready_queue_deinit(&loop->ready);
    free(loop->receive_buffer);
    loop->receive_buffer = NULL;
}

void pr_loop_abandon_after_fork(struct pr_loop *loop)
{
    /* Closing is safe: it drops the child's references and leaves the parent's set alone.  What is
     * still asked of the backend afterwards fails with EBADF, which watches ignore. */
    loop->backend.ops->deinit(&loop->backend);
    pr_wakeup_deinit(&loop->wakeup);
    if (loop->alarm.fd >= 0)
        pr_watch_stop(&loop->watches, &loop->alarm_watch);
    pr_alarm_deinit(&loop->alarm);
}

void pr_loop_take_inbox(struct pr_loop *loop)
{
    struct pr_callback *callback = pr_wakeup_take_inbox(&loop->wakeup);
    while (callback) {
        struct pr_callback *next = callback->next;
        pr_counter_add(&loop->stats.posts, 1);
        if (pr_ready_queue_push(&loop->ready, callback) < 0)
            abort(); /* a pointer's worth of memory is not to be had: nothing can go on */
        callback = next;
    }
}

/* The turn that began at now_ns is over. */
static void count_turn(struct pr_loop *loop, int64_t end_ns)
{
    uint64_t duration_ns = (uint64_t)(end_ns - loop->now_ns);
    pr_histogram_add(&loop->stats.turns_ns, duration_ns);
    pr_counter_raise(&loop->stats.turn_max_ns, duration_ns);
}

/* What the clock of the timers shows. */
static inline int64_t timers_now_ns(const struct pr_loop *loop)
{
    return loop->is_shown_time ? loop->shown_ns : loop->now_ns;
}

/* How long until a timer is due: 0, nanoseconds, or -1 where there is none. */
static int64_t time_to_next_timer(const struct pr_loop *loop)
{
    if (!loop->timers.count)
        return -1;
    int64_t deadline_ns = loop->timers.entries[0].deadline_ns;
    int64_t timers_ns = timers_now_ns(loop);
    if (deadline_ns <= timers_ns)
        return 0;
    uint64_t left_ns = (uint64_t)deadline_ns - (uint64_t)timers_ns;
    return left_ns < INT64_MAX ? (int64_t)left_ns : INT64_MAX;
}

/* --- Between two runs, while others poll its descriptor -----------------------------------------
 */

static int on_alarm(struct pr_watch *watch, uint32_t events)
{
    (void)watch; /* the turn that it asked for has begun */
    (void)events;
    return 0;
}

static void expose(struct pr_loop *loop)
{
    bool has_work = pr_ready_queue_count(&loop->ready) || loop->event_next < loop->event_count;
    if (!pr_wakeup_begin_sleep(&loop->wakeup)) /* something was posted */
        has_work = true;
    loop->now_ns = pr_now_ns();
    pr_alarm_set(&loop->alarm, has_work ? 0 : time_to_next_timer(loop));
    loop->backend.ops->expose(&loop->backend);
    loop->exposed = true;
}

static void conceal(struct pr_loop *loop)
{
    pr_wakeup_end_sleep(&loop->wakeup);
    pr_alarm_set(&loop->alarm, -1);
    loop->empty_polls = 0; /* what was seen has to be looked for */
    loop->exposed = false;
}

int pr_loop_pollable_fd(struct pr_loop *loop)
{
    if (!loop->backend.ops->pollable_fd)
        return -ENOTSUP;
    int fd = loop->backend.ops->pollable_fd(&loop->backend);
    if (fd < 0 || loop->alarm.fd >= 0)
        return fd;
    int error = pr_alarm_init(&loop->alarm);
    if (error < 0)
        return error;
    pr_watch_init(&loop->alarm_watch, on_alarm, loop);
    error = pr_watch_start(&loop->watches, &loop->alarm_watch, loop->alarm.fd, PR_READABLE);
    if (error < 0) {
        pr_alarm_deinit(&loop->alarm);
        return error;
    }
    if (!loop->running)
        expose(loop);
    return fd;
}

int64_t pr_loop_prepare(struct pr_loop *loop)
{
    if (loop->exposed)
        conceal(loop);
    pr_loop_take_inbox(loop);
    int64_t now_ns = pr_now_ns();
    if (loop->running) {
        count_turn(loop, now_ns);
    } else {
        loop->running = true;
        pr_stopwatch_start(&loop->stats.running, now_ns);
    }
    loop->now_ns = now_ns;
    return pr_ready_queue_count(&loop->ready) ? 0 : time_to_next_timer(loop);
}

/* While the loop is busy and the kernel has had nothing to say, most polls are left out. */
static bool may_skip_poll(const struct pr_loop *loop)
{
    return loop->empty_polls >= PR_EMPTY_POLLS_MAX &&
           loop->now_ns - loop->polled_ns < PR_POLL_INTERVAL_NS;
}

int pr_loop_wait(struct pr_loop *loop, int64_t timeout_ns)
{
    if (loop->event_next < loop->event_count) /* a callback has ended the last turn */
        return 0;
    loop->event_next = loop->event_count = 0;
    if (timeout_ns == 0 && may_skip_poll(loop))
        return 0;
    bool sleeps = timeout_ns != 0 && pr_wakeup_begin_sleep(&loop->wakeup);
    if (sleeps)
        pr_stopwatch_start(&loop->stats.idle, loop->now_ns);
    int count = loop->backend.ops->wait(&loop->backend, loop->events, PR_EVENTS_PER_TURN_MAX,
                                        sleeps ? timeout_ns : 0);
    if (sleeps) {
        pr_wakeup_end_sleep(&loop->wakeup);
        loop->now_ns = pr_now_ns();
        pr_stopwatch_stop(&loop->stats.idle, loop->now_ns);
    }
    pr_counter_add(&loop->stats.polls, 1);
    loop->polled_ns = loop->now_ns;
    if (count < 0)
        return count == -EINTR ? 0 : count;
    loop->event_count = count;
    if (count) {
        loop->empty_polls = 0;
    } else {
        loop->empty_polls++;
        pr_counter_add(&loop->stats.empty_polls, 1);
    }
    return 0;
}

/* Makes due timers ready, behind what is ready now.  Returns how many. */
static size_t take_due_timers(struct pr_loop *loop)
{
    size_t count = 0;
    int64_t now_ns = timers_now_ns(loop);
    while (pr_timer_heap_has_due(&loop->timers, now_ns)) {
        struct pr_timer *timer = loop->timers.entries[0].timer;
        if (pr_ready_queue_push(&loop->ready, &timer->callback) < 0)
            break; /* it stays in the heap: the next turn tries again */
        pr_timer_heap_remove(&loop->timers, timer);
        pr_histogram_add(&loop->stats.timer_lateness_ns,
                         (uint64_t)now_ns - (uint64_t)timer->deadline_ns);
        count++;
    }
    if (count)
        pr_counter_add(&loop->stats.timers_fired, count);
    return count;
}

static int run_flushes(struct pr_loop *loop)
{
    int result = 0;
    while (loop->flushes.next != &loop->flushes) {
        struct pr_flush *flush = loop->flushes.next;
        pr_loop_remove_flush(flush);
        int stop = flush->run(flush);
        result = result ? result : stop;
    }
    return result;
}

/* After each callback: what it wrote leaves before anything else runs. */
static inline int after_callback(struct pr_loop *loop, int result)
{
    if (loop->flushes.next == &loop->flushes)
        return result;
    int stop = run_flushes(loop);
    return result ? result : stop;
}

static int run_ready(struct pr_loop *loop, size_t count)
{
    int result = 0;
    size_t run = 0;
    while (run < count && !result) {
        struct pr_callback *callback = pr_ready_queue_pop(&loop->ready);
        if (!callback)
            break;
        run++;
        result = after_callback(loop, callback->run(callback));
    }
    pr_counter_add(&loop->stats.callbacks, run);
    return result;
}

/* An event has come that nobody wants: what to tell the kernel to report from now on. */
static uint32_t events_to_keep(const struct pr_watch *watch, uint32_t wanted)
{
    if (!(watch->registered & PR_EDGE))
        return watch->wanted;
    /* It does not come again by itself, but room to write does, with every byte the peer reads. */
    return wanted ? watch->registered : PR_READABLE | PR_EDGE;
}

static int dispatch_event(struct pr_loop *loop, const struct pr_ready_event *event)
{
    struct pr_watch *watch = pr_watch_find(&loop->watches, event->fd);
    if (!watch || watch->generation != event->generation) {
        pr_counter_add(&loop->stats.stale_events, 1);
        return 0;
    }
    uint32_t wanted = event->events & watch->wanted;
    const struct pr_completion_ops *completion = loop->backend.ops->completion;
    if (wanted & PR_READABLE && completion && completion->holds_older(&loop->backend, event))
        wanted &= ~PR_READABLE;         /* what is held is read first; then this comes again */
    if (event->events & ~watch->wanted) /* less is wanted than was registered: catch up */
        (void)pr_watch_register(&loop->watches, watch, events_to_keep(watch, wanted));
    return wanted ? after_callback(loop, watch->on_ready(watch, wanted)) : 0;
}

static int dispatch_received(struct pr_loop *loop, const struct pr_ready_event *event)
{
    const struct pr_completion_ops *completion = loop->backend.ops->completion;
    struct pr_watch *watch = pr_watch_find(&loop->watches, event->fd);
    int result = 0;
    if (!watch || watch->generation != event->generation) {
        pr_counter_add(&loop->stats.stale_events, 1);
    } else if (watch->wanted & (PR_RECEIVED | PR_READABLE) &&
               !completion->holds_older(&loop->backend, event)) {
        result = after_callback(loop, watch->on_received(watch, event->data, event->result));
    } else {
        (void)pr_watch_register(&loop->watches, watch, watch->wanted);
        completion->hold_data(&loop->backend, event);
    }
    completion->return_data(&loop->backend, event);
    return result;
}

static int dispatch_events(struct pr_loop *loop)
{
    int result = 0;
    loop->in_event = true;
    while (loop->event_next < loop->event_count && !result) {
        const struct pr_ready_event *event = &loop->events[loop->event_next++];
        pr_counter_add(&loop->stats.events, 1);
        if (event->events & PR_RECEIVED)
            result = dispatch_received(loop, event);
        else if (event->events & PR_SENT)
            result = after_callback(loop, event->send->on_sent(event->send, event->result));
        else if (event->events & PR_COMPLETED)
            result = after_callback(loop, event->op->on_complete(event->op, event->result));
        else
            result = dispatch_event(loop, event);
    }
    loop->in_event = false;
    return result;
}

int pr_loop_dispatch(struct pr_loop *loop)
{
    size_t ready = pr_ready_queue_count(&loop->ready);
    size_t due = take_due_timers(loop);
    pr_counter_set(&loop->stats.ready, ready + due);
    pr_counter_raise(&loop->stats.ready_max, ready + due);
    loop->dispatching = true;
    int result = run_ready(loop, ready);
    if (!result)
        result = dispatch_events(loop);
    if (!result)
        result = run_ready(loop, due);
    loop->dispatching = false;
    return result;
}

void pr_loop_end_run(struct pr_loop *loop)
{
    if (loop->alarm.fd < 0 && loop->backend.ops->completion)
        loop->backend.ops->completion->quiesce(&loop->backend);
    if (!loop->running)
        return;
    int64_t now_ns = pr_now_ns();
    count_turn(loop, now_ns);
    pr_stopwatch_stop(&loop->stats.running, now_ns);
    loop->running = false;
    if (loop->alarm.fd >= 0)
        expose(loop);
}

int pr_loop_run_once(struct pr_loop *loop, int64_t timeout_ns)
{
    int64_t prepared_ns = pr_loop_prepare(loop);
    if (timeout_ns >= 0 && (prepared_ns < 0 || prepared_ns > timeout_ns))
        prepared_ns = timeout_ns;
    int error = pr_loop_wait(loop, prepared_ns);
    return error < 0 ? error : pr_loop_dispatch(loop);
}

void pr_loop_post(struct pr_loop *loop, struct pr_callback *callback)
{
    pr_wakeup_post(&loop->wakeup, callback);
}

void pr_loop_wakeup(struct pr_loop *loop)
{
    pr_wakeup_wake(&loop->wakeup);
}

struct pr_callback *pr_loop_take_ready(struct pr_loop *loop)
{
    pr_loop_take_inbox(loop);
    return pr_ready_queue_pop(&loop->ready);
}

struct pr_timer *pr_loop_take_timer(struct pr_loop *loop)
{
    struct pr_timer *timer = pr_timer_heap_pop(&loop->timers);
    if (timer)
        pr_counter_add(&loop->stats.timers_cancelled, 1);
    return timer;
}

int pr_loop_visit_scheduled(const struct pr_loop *loop,
                            int (*visit)(struct pr_callback *callback, void *argument),
                            void *argument)
{
    int result = 0;
    const struct pr_ready_queue *ready = &loop->ready;
    for (size_t i = ready->head; i != ready->tail && !result; i++)
        result = visit(ready->slots[i & (ready->capacity - 1)], argument);
    for (size_t i = 0; i < loop->timers.count && !result; i++)
        result = visit(&loop->timers.entries[i].timer->callback, argument);
    struct pr_callback *posted = atomic_load(&loop->wakeup.inbox);
    for (; posted && !result; posted = posted->next)
        result = visit(posted, argument);
    return result;
}

int pr_loop_visit_ops(const struct pr_loop *loop, int (*visit)(struct pr_op *op, void *argument),
                      void *argument)
{
    int result = 0;
    for (int i = loop->event_next; i < loop->event_count && !result; i++) {
        if (loop->events[i].events & PR_COMPLETED)
            result = visit(loop->events[i].op, argument);
    }
    const struct pr_completion_ops *completion = loop->backend.ops->completion;
    if (completion && !result)
        result = completion->visit(&loop->backend, visit, argument);
    return result;
}
