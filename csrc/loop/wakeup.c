/*
 * The eventfd and the inbox, and the protocol that keeps a wake-up from being lost: the loop says
 * "sleeping", then looks at the inbox once more; the other thread pushes, then looks whether the
 * loop sleeps.  Both steps are sequentially consistent, so one of the two sees the other.
 */
#include "pyreactor/wakeup.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

int pr_wakeup_init(struct pr_wakeup *wakeup)
{
    atomic_init(&wakeup->state, PR_AWAKE);
    atomic_init(&wakeup->inbox, NULL);
    wakeup->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return wakeup->fd < 0 ? -errno : 0;
}

void pr_wakeup_deinit(struct pr_wakeup *wakeup)
{
    if (wakeup->fd >= 0)
        close(wakeup->fd);
    wakeup->fd = -1;
}

static void write_eventfd(struct pr_wakeup *wakeup)
{
    int saved_errno = errno; /* a signal handler may be calling */
    uint64_t one = 1;
    /* Fails only where the counter is full, and then the loop is woken anyway. */
    ssize_t written = write(wakeup->fd, &one, sizeof one);
    (void)written;
    errno = saved_errno;
}

void pr_wakeup_wake(struct pr_wakeup *wakeup)
{
    if (atomic_exchange(&wakeup->state, PR_WOKEN) == PR_SLEEPING)
        write_eventfd(wakeup);
}

void pr_wakeup_push(struct pr_wakeup *wakeup, struct pr_callback *callback)
{
    struct pr_callback *newest = atomic_load_explicit(&wakeup->inbox, memory_order_relaxed);
    do {
        callback->next = newest;
        /* Pairs with the exchange in pr_wakeup_take_inbox(): publishes the callback. */
    } while (!atomic_compare_exchange_weak(&wakeup->inbox, &newest, callback));
}

void pr_wakeup_post(struct pr_wakeup *wakeup, struct pr_callback *callback)
{
    pr_wakeup_push(wakeup, callback);
    int expected = PR_SLEEPING;
    if (atomic_compare_exchange_strong(&wakeup->state, &expected, PR_WOKEN))
        write_eventfd(wakeup);
}

bool pr_wakeup_begin_sleep(struct pr_wakeup *wakeup)
{
    int expected = PR_AWAKE;
    if (atomic_compare_exchange_strong(&wakeup->state, &expected, PR_SLEEPING) &&
        !atomic_load(&wakeup->inbox))
        return true;
    atomic_store(&wakeup->state, PR_AWAKE);
    return false;
}

void pr_wakeup_end_sleep(struct pr_wakeup *wakeup)
{
    atomic_store(&wakeup->state, PR_AWAKE);
}

void pr_wakeup_drain(struct pr_wakeup *wakeup)
{
    uint64_t count;
    ssize_t got = read(wakeup->fd, &count, sizeof count);
    (void)got; /* -EAGAIN: drained already */
}

struct pr_callback *pr_wakeup_take_inbox(struct pr_wakeup *wakeup)
{
    if (!atomic_load_explicit(&wakeup->inbox, memory_order_relaxed))
        return NULL;
    struct pr_callback *newest = atomic_exchange(&wakeup->inbox, NULL);
    struct pr_callback *oldest = NULL;
    while (newest) {
        struct pr_callback *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}
