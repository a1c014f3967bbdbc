/*
 * What both engines have in common: the way of an operation from any thread to the main one, from
 * there to a worker, and the end of all of them.
 */
#include "pyreactor/proactor.h"

#include <errno.h>
#include <stdlib.h>

#include "pyreactor/clock.h"

static void wake_for_buffer(struct pr_buffer_group *group)
{
    struct pr_proactor *proactor =
        (struct pr_proactor *)(void *)((char *)group - offsetof(struct pr_proactor, buffers));
    proactor->ops->wake(proactor);
}

int pr_proactor_new(struct pr_proactor **proactor, const struct pr_proactor_ops *ops,
                    struct pr_buffer_pool *pool, struct pr_demux *demux, struct pr_trace *trace,
                    unsigned workers, enum pr_worker_policy policy, bool strict)
{
    struct pr_proactor *made = calloc(1, ops->size);
    if (!made)
        return -ENOMEM;
    made->ops = ops;
    pr_buffer_group_init(&made->buffers, pool, wake_for_buffer);
    made->demux = demux;
    made->trace = trace;
    made->strict = strict;
    pr_timer_heap_init(&made->timers);
    made->in_flight.newer = made->in_flight.older = &made->in_flight;
    int error = pr_completion_queues_init(&made->workers, workers, policy);
    if (error == 0)
        error = pr_notifier_init(&made->notifier);
    if (error < 0)
        goto free_memory;
    error = ops->init(made);
    if (error < 0)
        goto close_notifier;
    *proactor = made;
    return 0;

close_notifier:
    pr_notifier_deinit(&made->notifier);
free_memory:
    pr_buffer_group_deinit(&made->buffers);
    pr_completion_queues_deinit(&made->workers);
    free(made);
    return error;
}

void pr_proactor_free(struct pr_proactor *proactor)
{
    if (!proactor)
        return;
    proactor->ops->deinit(proactor);
    pr_buffer_group_deinit(&proactor->buffers);
    pr_timer_heap_deinit(&proactor->timers);
    pr_notifier_deinit(&proactor->notifier);
    pr_completion_queues_deinit(&proactor->workers);
    free(proactor);
}

/* --- Any thread -------------------------------------------------------------------------------
 */

static int start_submitted(struct pr_callback *callback);
static int see_cancellation(struct pr_callback *callback);

void pr_proactor_submit(struct pr_proactor *proactor, struct pr_aio *aio)
{
    aio->proactor = proactor;
    aio->submission.run = start_submitted;
    aio->cancellation.run = see_cancellation;
    aio->next = NULL;
    aio->done = 0;
    aio->result = 0;
    aio->newer = aio->older = NULL;
    aio->finished = aio->announced = aio->postponed = aio->wants_pool = aio->waits = false;
    aio->kernel_parts = 0;
    aio->unfinished = false;
    /* A pipe that does not block would fail at once, and be announced. */
    aio->poll_first = aio->notify != PR_NOTIFY_CQE && !aio->is_socket &&
                      aio->offset == PR_NO_OFFSET &&
                      (aio->kind == PR_AIO_READ || aio->kind == PR_AIO_WRITE);
    aio->chunk_begin = aio->chunk_end = 0;
    atomic_store_explicit(&aio->cancel, PR_CANCEL_NONE, memory_order_relaxed);
    atomic_fetch_add(&proactor->live, 1);
    atomic_fetch_add_explicit(&proactor->submitted, 1, memory_order_relaxed);
    proactor->ops->submit(proactor, aio);
}

bool pr_proactor_cancel(struct pr_proactor *proactor, struct pr_aio *aio)
{
    int expected = PR_CANCEL_NONE;
    if (!atomic_compare_exchange_strong(&aio->cancel, &expected, PR_CANCEL_POSTED))
        return expected != PR_CANCEL_LATE;
    pr_wakeup_push(proactor->wakeup, &aio->cancellation);
    pr_proactor_wake(proactor);
    return true;
}

bool pr_aio_make_loud(struct pr_aio *aio)
{
    int expected = PR_SILENT;
    return atomic_compare_exchange_strong(&aio->silence, &expected, PR_LOUD) || expected == PR_LOUD;
}

void pr_proactor_wake(struct pr_proactor *proactor)
{
    /* What the wait is ended for was brought before, and the one who waits says that it sleeps
     * before it looks: one of the two sees the other. */
    if (atomic_load(&proactor->wakeup->state) == PR_SLEEPING)
        proactor->ops->wake(proactor);
}

void pr_proactor_release_buffer(struct pr_proactor *proactor, uint32_t index)
{
    pr_buffer_group_release(&proactor->buffers, index);
}

void pr_proactor_forget(struct pr_proactor *proactor, int fd)
{
    if (proactor->ops->forget)
        proactor->ops->forget(proactor, fd);
}

void pr_proactor_stop(struct pr_proactor *proactor, enum pr_proactor_stop how)
{
    int before = atomic_load(&proactor->stop);
    while (before < (int)how && !atomic_compare_exchange_weak(&proactor->stop, &before, how))
        ; /* an abort stays one */
    proactor->ops->wake(proactor);
}

static void end_one(struct pr_proactor *proactor)
{
    if (atomic_fetch_sub(&proactor->live, 1) == 1 && atomic_load(&proactor->stop) != PR_GO_ON)
        proactor->ops->wake(proactor); /* it was the last */
}

void pr_proactor_handled(struct pr_proactor *proactor, unsigned worker, struct pr_strand *strand)
{
    pr_completion_queues_end(&proactor->workers, worker, strand);
    end_one(proactor);
}

void pr_proactor_read_stats(struct pr_proactor *proactor, struct pr_proactor_stats *stats)
{
    *stats = (struct pr_proactor_stats){
        .submitted = atomic_load(&proactor->submitted),
        .completed = atomic_load(&proactor->completed),
        .cancelled = atomic_load(&proactor->cancelled),
        .postponed = atomic_load(&proactor->postponements),
        .silent = atomic_load(&proactor->silent),
        .waits = atomic_load(&proactor->waits),
        .live = atomic_load(&proactor->live),
    };
}

/* --- To a worker ------------------------------------------------------------------------------
 */

static uint32_t events_of(const struct pr_aio *aio)
{
    if (aio->kind == PR_AIO_TIMER)
        return 0;
    return aio->kind == PR_AIO_READ || aio->kind == PR_AIO_ACCEPT ? PR_READABLE : PR_WRITABLE;
}

static void deliver(struct pr_proactor *proactor, struct pr_aio *aio)
{
    int expected = PR_SILENT;
    if (aio->result == 0 && aio->done == aio->size &&
        atomic_load_explicit(&aio->silence, memory_order_relaxed) == PR_SILENT) {
        uint32_t buffer = aio->buffer;
        aio->buffer = PR_BUFFER_NONE;
        if (atomic_compare_exchange_strong(&aio->silence, &expected, PR_ENDED)) {
            /* From here on it is its owner's again. */
            if (buffer < PR_ANY_BUFFER)
                pr_buffer_group_release(&proactor->buffers, buffer);
            atomic_fetch_add_explicit(&proactor->silent, 1, memory_order_relaxed);
            end_one(proactor);
            return;
        }
        aio->buffer = buffer;
    }
    pr_trace_note(proactor->trace, PR_ACTION_SELECT, aio->fd, events_of(aio));
    pr_completion_queues_put(&proactor->workers, aio);
}

void pr_proactor_take_signals(struct pr_proactor *proactor)
{
    struct pr_aio *aio = pr_notifier_take(&proactor->notifier);
    while (aio) {
        struct pr_aio *next = aio->next;
        deliver(proactor, aio);
        aio = next;
    }
}

/* Tells the application in the way it asked for, where the kernel has not, and then a worker. */
static void announce(struct pr_proactor *proactor, struct pr_aio *aio)
{
    if (aio->notify != PR_NOTIFY_CQE && !aio->announced)
        aio->announced = pr_notifier_write(&proactor->notifier, aio->notify) == 0;
    if (aio->notify != PR_NOTIFY_SIGNAL || !aio->announced ||
        !pr_notifier_await(&proactor->notifier, aio))
        deliver(proactor, aio);
}

void pr_proactor_finish(struct pr_proactor *proactor, struct pr_aio *aio, int32_t result,
                        bool announced)
{
    aio->newer->older = aio->older;
    aio->older->newer = aio->newer;
    aio->result = result;
    aio->announced = announced;
    atomic_fetch_add_explicit(&proactor->completed, 1, memory_order_relaxed);
    if (result == -ECANCELED)
        atomic_fetch_add_explicit(&proactor->cancelled, 1, memory_order_relaxed);
    pr_trace_note(proactor->trace, PR_ACTION_COMPLETE, aio->fd, events_of(aio));
    if (atomic_exchange(&aio->cancel, PR_CANCEL_LATE) == PR_CANCEL_POSTED) {
        aio->finished = true; /* it is in the inbox still: see_cancellation() goes on */
        return;
    }
    announce(proactor, aio);
}

/* --- The main thread --------------------------------------------------------------------------
 */

static void enlist(struct pr_proactor *proactor, struct pr_aio *aio)
{
    aio->newer = &proactor->in_flight;
    aio->older = proactor->in_flight.older;
    aio->older->newer = aio;
    proactor->in_flight.older = aio;
}

static bool is_stopped(const struct pr_proactor *proactor, const struct pr_aio *aio)
{
    /* A drain lets go on what an answer may be made of: files are read. */
    return proactor->abort_seen ||
           (proactor->stop_seen && events_of(aio) != PR_WRITABLE && aio->offset == PR_NO_OFFSET);
}

static int start_submitted(struct pr_callback *callback)
{
    struct pr_aio *aio = callback->owner;
    struct pr_proactor *proactor = aio->proactor;
    enlist(proactor, aio);
    int error = is_stopped(proactor, aio) ? -ECANCELED : 0;
    if (error == 0 && aio->notify == PR_NOTIFY_SIGNAL)
        error = pr_notifier_prepare_signal(&proactor->notifier);
    if (error < 0) {
        if (aio->waits)
            proactor->ops->cancel(proactor, aio);
        else
            pr_proactor_finish(proactor, aio, error, false);
        return 0;
    }
    pr_trace_note(proactor->trace, PR_ACTION_SUBMIT, aio->fd, events_of(aio));
    if (aio->kind == PR_AIO_TIMER)
        error = pr_timer_heap_push(&proactor->timers, &aio->timer);
    else if (aio->kind != PR_AIO_WRITE || aio->size > 0)
        proactor->ops->start(proactor, aio);
    if (error < 0 || (aio->kind == PR_AIO_WRITE && aio->size == 0))
        pr_proactor_finish(proactor, aio, error, false);
    return 0;
}

static void cut_short(struct pr_proactor *proactor, struct pr_aio *aio)
{
    if (aio->kind != PR_AIO_TIMER) {
        proactor->ops->cancel(proactor, aio);
        return;
    }
    pr_timer_heap_remove(&proactor->timers, &aio->timer);
    pr_proactor_finish(proactor, aio, -ECANCELED, false);
}

static int see_cancellation(struct pr_callback *callback)
{
    struct pr_aio *aio = callback->owner;
    if (aio->finished) {
        announce(aio->proactor, aio);
    } else {
        atomic_store(&aio->cancel, PR_CANCEL_SEEN);
        cut_short(aio->proactor, aio);
    }
    return 0;
}

void pr_proactor_postpone(struct pr_proactor *proactor, struct pr_aio *aio)
{
    aio->postponed = true;
    aio->next = NULL;
    if (proactor->first_postponed)
        proactor->last_postponed->next = aio;
    else
        proactor->first_postponed = aio;
    proactor->last_postponed = aio;
    proactor->pool_wanters += aio->wants_pool;
    pr_buffer_group_want(&proactor->buffers, aio->wants_pool);
    atomic_fetch_add_explicit(&proactor->postponements, 1, memory_order_relaxed);
}

bool pr_proactor_unpostpone(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct pr_aio *before = NULL;
    if (!aio->postponed)
        return false;
    for (struct pr_aio *other = proactor->first_postponed; other != aio; other = other->next)
        before = other;
    if (before)
        before->next = aio->next;
    else
        proactor->first_postponed = aio->next;
    if (proactor->last_postponed == aio)
        proactor->last_postponed = before;
    aio->postponed = false;
    proactor->pool_wanters -= aio->wants_pool;
    aio->wants_pool = false;
    return true;
}

bool pr_proactor_give_buffer(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct pr_buffer_pool *pool = proactor->buffers.pool;
    uint32_t index = pr_buffer_group_acquire(&proactor->buffers);
    if (index == PR_BUFFER_NONE) {
        aio->wants_pool = true;
        pr_proactor_postpone(proactor, aio);
        return false;
    }
    aio->buffer = index;
    aio->data = pr_buffer_pool_data(pool, index);
    if (aio->kind == PR_AIO_READ && (aio->size == 0 || aio->size > pool->buffer_bytes))
        aio->size = pool->buffer_bytes;
    return true;
}

/* Whether a buffer is free of the kind that the first one waits for. */
static bool can_start_postponed(const struct pr_proactor *proactor)
{
    const struct pr_aio *aio = proactor->first_postponed;
    if (!aio)
        return false;
    return aio->wants_pool ? pr_buffer_pool_has_free(proactor->buffers.pool)
                           : atomic_load(&proactor->buffers.kernel_free) > 0;
}

/*
 * Starts as many again as there are free buffers: more would only find none.  One for which nothing
 * has come yet holds no buffer while it waits, so that the next turn may find as many free again,
 * for the ones behind it.
 */
static void start_postponed(struct pr_proactor *proactor)
{
    uint32_t budget = proactor->buffers.pool->count;
    uint32_t kernel_free = atomic_load(&proactor->buffers.kernel_free);
    if (kernel_free > 0 && kernel_free < budget)
        budget = kernel_free;
    for (; budget > 0 && can_start_postponed(proactor); budget--) {
        struct pr_aio *aio = proactor->first_postponed;
        (void)pr_proactor_unpostpone(proactor, aio);
        proactor->ops->start(proactor, aio);
    }
    if (proactor->first_postponed)
        pr_buffer_group_want(&proactor->buffers, proactor->pool_wanters > 0);
}

/* Cuts short what is not to go on. */
static void see_stop(struct pr_proactor *proactor, int stop)
{
    proactor->stop_seen = stop != PR_GO_ON;
    proactor->abort_seen = stop == PR_ABORT;
    struct pr_aio *aio = proactor->in_flight.newer;
    while (aio != &proactor->in_flight) {
        struct pr_aio *newer = aio->newer;
        if (is_stopped(proactor, aio))
            cut_short(proactor, aio);
        aio = newer;
    }
}

void pr_proactor_take_inbox(struct pr_proactor *proactor)
{
    struct pr_callback *callback = pr_wakeup_take_inbox(proactor->wakeup);
    while (callback) {
        struct pr_callback *next = callback->next;
        (void)callback->run(callback);
        callback = next;
    }
}

static void take_timers(struct pr_proactor *proactor)
{
    if (proactor->timers.count == 0)
        return;
    int64_t now_ns = pr_now_ns();
    while (pr_timer_heap_has_due(&proactor->timers, now_ns)) {
        struct pr_timer *timer = pr_timer_heap_pop(&proactor->timers);
        pr_proactor_finish(proactor, timer->callback.owner, 0, false);
    }
}

/* How long the wait may last: `timeout_ns`, or less. */
static int64_t sleep_ns(const struct pr_proactor *proactor, int64_t timeout_ns)
{
    if (can_start_postponed(proactor))
        return 0;
    if (proactor->timers.count == 0 || timeout_ns == 0)
        return timeout_ns;
    int64_t left_ns = proactor->timers.entries[0].deadline_ns - pr_now_ns();
    if (left_ns < 0)
        left_ns = 0;
    return timeout_ns < 0 || left_ns < timeout_ns ? left_ns : timeout_ns;
}

static enum pr_proactor_stop stop_seen(const struct pr_proactor *proactor)
{
    return proactor->abort_seen ? PR_ABORT : proactor->stop_seen ? PR_DRAIN : PR_GO_ON;
}

int pr_proactor_run_once(struct pr_proactor *proactor, int64_t timeout_ns)
{
    int stop = atomic_load(&proactor->stop);
    if (stop != (int)stop_seen(proactor))
        see_stop(proactor, stop);
    pr_proactor_take_inbox(proactor);
    take_timers(proactor);
    start_postponed(proactor);
    pr_completion_queues_wake(&proactor->workers);
    if (proactor->stop_seen && atomic_load(&proactor->live) == 0) {
        pr_notifier_end(&proactor->notifier);
        return 1;
    }
    atomic_fetch_add_explicit(&proactor->waits, 1, memory_order_relaxed);
    int error = proactor->ops->wait(proactor, sleep_ns(proactor, timeout_ns));
    take_timers(proactor);
    pr_completion_queues_wake(&proactor->workers);
    return error;
}

void pr_proactor_end_rest(struct pr_proactor *proactor)
{
    proactor->stop_seen = proactor->abort_seen = true;
    pr_proactor_take_inbox(proactor);
    pr_completion_queues_wake(&proactor->workers);
}
