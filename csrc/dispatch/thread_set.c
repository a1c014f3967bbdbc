/*
 * Who leads, who follows, and how the lead is handed over.  The lock is held for a few loads and
 * stores; nobody sleeps with it, and the system call that wakes a follower comes after it.
 */
#include "pyreactor/thread_set.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyreactor/clock.h"

void pr_thread_set_init(struct pr_thread_set *set, struct pr_trace *trace, bool delegating)
{
    *set = (struct pr_thread_set){.trace = trace, .delegating = delegating};
    pthread_mutex_init(&set->lock, NULL); /* cannot fail on Linux */
}

void pr_thread_set_deinit(struct pr_thread_set *set)
{
    pthread_mutex_destroy(&set->lock);
}

void pr_member_init(struct pr_member *member)
{
    *member = (struct pr_member){0}; /* a follower */
}

/* The one place where a state changes; it asserts where the change comes from. */
static void change_locked(struct pr_thread_set *set, struct pr_member *member,
                          enum pr_thread_state to)
{
    static const bool allowed[3][3] = {
        [PR_FOLLOWER] = {[PR_LEADER] = true, [PR_PROCESSING] = true},
        [PR_LEADER] = {[PR_FOLLOWER] = true, [PR_PROCESSING] = true},
        [PR_PROCESSING] = {[PR_FOLLOWER] = true, [PR_LEADER] = true},
    };
    uint32_t from = atomic_load_explicit(&member->state, memory_order_relaxed);
    bool leads = atomic_load(&set->leader) == member;
    if (!allowed[from][to] || leads != (from == PR_LEADER) ||
        (to == PR_LEADER && atomic_load(&set->leader)) ||
        !atomic_compare_exchange_strong(&member->state, &from, to))
        atomic_fetch_add(&set->violations, 1);
    if (from == PR_LEADER)
        atomic_store(&set->leader, NULL);
    if (to == PR_LEADER)
        atomic_store(&set->leader, member);
}

static void ring_locked(struct pr_member *member)
{
    atomic_fetch_add(&member->bell, 1);
}

static void push_follower_locked(struct pr_thread_set *set, struct pr_member *member)
{
    member->next = set->followers;
    member->sleeping = true;
    set->followers = member;
}

/* Takes `wanted`, or the latest where that is NULL, from the sleepers.  Returns it, or NULL. */
static struct pr_member *take_follower_locked(struct pr_thread_set *set, struct pr_member *wanted)
{
    for (struct pr_member **link = &set->followers; *link; link = &(*link)->next) {
        struct pr_member *member = *link;
        if (wanted && member != wanted)
            continue;
        *link = member->next;
        member->next = NULL;
        member->sleeping = false;
        return member;
    }
    return NULL;
}

/* Ends the sleep of a member that was rung, or about to begin.  Its memory may be gone already,
 * where something else had woken it; the kernel only looks for sleepers at the address. */
static void wake(struct pr_member *member)
{
    (void)syscall(SYS_futex, &member->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static int sleep_until_rung(struct pr_member *member, uint32_t heard, int64_t deadline_ns)
{
    while (atomic_load(&member->bell) == heard) {
        struct timespec deadline = {.tv_sec = deadline_ns / PR_NS_PER_SECOND,
                                    .tv_nsec = deadline_ns % PR_NS_PER_SECOND};
        /* An absolute time on the monotonic clock, which is what FUTEX_WAIT_BITSET takes. */
        long result = syscall(SYS_futex, &member->bell, FUTEX_WAIT_BITSET_PRIVATE, heard,
                              deadline_ns < 0 ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
        if (result < 0 && (errno == ETIMEDOUT || errno == EINTR))
            return -errno;
    }
    return 0;
}

int pr_thread_set_join(struct pr_thread_set *set, struct pr_member *member, struct pr_event *event,
                       int64_t timeout_ns)
{
    int64_t deadline_ns = timeout_ns < 0 ? -1 : pr_now_ns() + timeout_ns;
    int error = 0;
    pthread_mutex_lock(&set->lock);
    bool joins = atomic_load_explicit(&member->state, memory_order_relaxed) != PR_LEADER;
    if (joins)
        pr_trace_note(set->trace, PR_ACTION_JOIN, -1, 0);
    for (;;) {
        uint32_t state = atomic_load_explicit(&member->state, memory_order_relaxed);
        if (member->has_task) {
            member->has_task = false;
            *event = member->task;
            error = 1;
            break;
        }
        if (set->closed) {
            error = -ESHUTDOWN;
            break;
        }
        if (state == PR_LEADER)
            break;
        if (!atomic_load(&set->leader)) {
            change_locked(set, member, PR_LEADER);
            break;
        }
        if (state == PR_PROCESSING)
            change_locked(set, member, PR_FOLLOWER);
        if (member->interrupted)
            error = -EINTR;
        if (error < 0)
            break;
        push_follower_locked(set, member);
        uint32_t heard = atomic_load(&member->bell);
        pthread_mutex_unlock(&set->lock);
        error = sleep_until_rung(member, heard, deadline_ns);
        pthread_mutex_lock(&set->lock);
        if (member->sleeping)
            (void)take_follower_locked(set, member);
        else
            error = 0; /* rung after all: it is promoted, has a task, or the set is closed */
    }
    member->interrupted = false;
    pthread_mutex_unlock(&set->lock);
    if (error == 0 && joins)
        pr_trace_note(set->trace, PR_ACTION_LEAD, -1, 0);
    return error;
}

/* Makes a sleeping follower the leader, where there is none.  Returns it, to be woken. */
static struct pr_member *elect_locked(struct pr_thread_set *set)
{
    struct pr_member *follower = set->closed ? NULL : take_follower_locked(set, NULL);
    if (follower) {
        change_locked(set, follower, PR_LEADER);
        ring_locked(follower);
    }
    return follower;
}

int pr_thread_set_promote(struct pr_thread_set *set, struct pr_member *member)
{
    pthread_mutex_lock(&set->lock);
    if (atomic_load(&set->leader) != member) {
        pthread_mutex_unlock(&set->lock);
        return -EPERM;
    }
    change_locked(set, member, PR_PROCESSING);
    struct pr_member *elected = elect_locked(set);
    pthread_mutex_unlock(&set->lock);
    pr_trace_note(set->trace, PR_ACTION_PROMOTE, -1, 0);
    atomic_fetch_add_explicit(&set->promotions, 1, memory_order_relaxed);
    if (elected)
        wake(elected);
    return 0;
}

int pr_thread_set_delegate(struct pr_thread_set *set, struct pr_member *member,
                           const struct pr_event *event, struct pr_member *follower)
{
    pthread_mutex_lock(&set->lock);
    if (atomic_load(&set->leader) != member) {
        pthread_mutex_unlock(&set->lock);
        return -EPERM;
    }
    struct pr_member *chosen = set->closed ? NULL : take_follower_locked(set, follower);
    if (chosen) {
        change_locked(set, chosen, PR_PROCESSING);
        chosen->task = *event;
        chosen->has_task = true;
        ring_locked(chosen);
    }
    pthread_mutex_unlock(&set->lock);
    if (!chosen)
        return -EAGAIN;
    pr_trace_note(set->trace, PR_ACTION_DELEGATE, event->fd, event->events);
    atomic_fetch_add_explicit(&set->delegations, 1, memory_order_relaxed);
    wake(chosen);
    return 0;
}

int pr_thread_set_next(struct pr_thread_set *set, struct pr_handle_set *handles,
                       struct pr_member *member, struct pr_event *event)
{
    for (;;) {
        int result = pr_thread_set_join(set, member, event, -1);
        if (result < 0)
            return result;
        if (result == 0) { /* the leader */
            result = pr_handle_set_wait(handles, event, -1);
            if (result < 0)
                return result;
            if (result == 0)
                continue; /* woken, perhaps because the set is closed */
            atomic_fetch_add_explicit(&member->led, 1, memory_order_relaxed);
            if (set->delegating && pr_thread_set_delegate(set, member, event, NULL) == 0)
                continue;
            (void)pr_thread_set_promote(set, member);
        }
        atomic_fetch_add_explicit(&member->handled, 1, memory_order_relaxed);
        return 1;
    }
}

void pr_thread_set_interrupt(struct pr_thread_set *set, struct pr_member *member)
{
    pthread_mutex_lock(&set->lock);
    member->interrupted = true;
    bool sleeps = take_follower_locked(set, member) != NULL;
    if (sleeps)
        ring_locked(member);
    pthread_mutex_unlock(&set->lock);
    if (sleeps)
        wake(member);
}

void pr_thread_set_leave(struct pr_thread_set *set, struct pr_member *member)
{
    struct pr_member *elected = NULL;
    pthread_mutex_lock(&set->lock);
    bool led = atomic_load(&set->leader) == member;
    if (atomic_load_explicit(&member->state, memory_order_relaxed) != PR_FOLLOWER)
        change_locked(set, member, PR_FOLLOWER);
    if (led)
        elected = elect_locked(set);
    pthread_mutex_unlock(&set->lock);
    if (elected)
        wake(elected);
}

void pr_thread_set_close(struct pr_thread_set *set)
{
    pthread_mutex_lock(&set->lock);
    set->closed = true;
    for (struct pr_member *member; (member = take_follower_locked(set, NULL));) {
        ring_locked(member);
        wake(member);
    }
    pthread_mutex_unlock(&set->lock);
}
