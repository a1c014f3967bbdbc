/*
 * Sleeping and waking with one futex.  The kernel puts a thread to sleep only while the word is
 * what the thread has seen, without a permit; so a permit that comes between the look and the
 * sleep keeps it awake.
 */
#include "pyreactor/parker.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyreactor/clock.h"
#include "pyreactor/crash_point.h"

#define SPINS_PER_CLOCK_READ 32 /* the clock costs as much as a few looks */

void pr_parker_init(struct pr_parker *parker, int64_t spin_ns)
{
    atomic_init(&parker->state, 0);
    parker->futex_flags = FUTEX_PRIVATE_FLAG;
    parker->spin_ns = spin_ns;
    atomic_init(&parker->sleeps, 0);
    atomic_init(&parker->wakes, 0);
}

void pr_parker_init_shared(struct pr_parker *parker, int64_t spin_ns)
{
    pr_parker_init(parker, spin_ns);
    parker->futex_flags = 0;
}

static uint32_t permits_of(uint32_t state)
{
    return state & (PR_PARKER_SLEEPER - 1);
}

static uint32_t sleepers_of(uint32_t state)
{
    return state / PR_PARKER_SLEEPER;
}

/* Sleeps while the word is `state`.  Returns 0 where it was woken or need not sleep. */
static int futex_wait(struct pr_parker *parker, uint32_t state, int64_t deadline_ns)
{
    struct timespec deadline = {
        .tv_sec = (time_t)(deadline_ns / PR_NS_PER_SECOND),
        .tv_nsec = (long)(deadline_ns % PR_NS_PER_SECOND),
    };
    atomic_fetch_add_explicit(&parker->sleeps, 1, memory_order_relaxed);
    long result =
        syscall(SYS_futex, &parker->state, FUTEX_WAIT_BITSET | parker->futex_flags, state,
                deadline_ns == INT64_MAX ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    return result < 0 && errno != EAGAIN ? -errno : 0;
}

static void futex_wake(struct pr_parker *parker, uint32_t count)
{
    atomic_fetch_add_explicit(&parker->wakes, 1, memory_order_relaxed);
    syscall(SYS_futex, &parker->state, FUTEX_WAKE | parker->futex_flags, (int)count, NULL, NULL, 0);
}

/* Counts the thread among the sleepers.  Returns 0 or -EUSERS. */
static int announce(struct pr_parker *parker)
{
    uint32_t state = atomic_load_explicit(&parker->state, memory_order_relaxed);
    do {
        if (sleepers_of(state) + permits_of(state) >= PR_PARKER_SLEEPERS_MAX)
            return -EUSERS;
        /* Pairs with the load in pr_unpark(). */
    } while (!atomic_compare_exchange_weak_explicit(&parker->state, &state,
                                                    state + PR_PARKER_SLEEPER, memory_order_seq_cst,
                                                    memory_order_relaxed));
    return 0;
}

/*
 * Ends an announcement without having slept.  Where no sleeper is left, all that are announced have
 * been given a permit, the caller too, which takes it along.
 */
static void withdraw(struct pr_parker *parker)
{
    uint32_t state = atomic_load_explicit(&parker->state, memory_order_relaxed);
    uint32_t less;
    do {
        less = sleepers_of(state) ? PR_PARKER_SLEEPER : PR_PARKER_PERMIT;
    } while (!atomic_compare_exchange_weak_explicit(&parker->state, &state, state - less,
                                                    memory_order_acquire, memory_order_relaxed));
}

/*
 * Ends an announcement by a permit, for which it sleeps.  A permit comes before any other reason to
 * wake: whoever gives one relies on it being taken.  Returns 0, or, withdrawn, -ETIMEDOUT or
 * -EINTR.
 */
static int take_permit(struct pr_parker *parker, int64_t deadline_ns)
{
    int error = 0;
    uint32_t state = atomic_load_explicit(&parker->state, memory_order_relaxed);
    for (;;) {
        if (permits_of(state) > 0) {
            /* The acquire pairs with the release in pr_unpark_sleepers(). */
            if (atomic_compare_exchange_weak_explicit(&parker->state, &state,
                                                      state - PR_PARKER_PERMIT,
                                                      memory_order_acquire, memory_order_relaxed))
                return 0;
        } else if (error < 0) {
            if (atomic_compare_exchange_weak_explicit(&parker->state, &state,
                                                      state - PR_PARKER_SLEEPER,
                                                      memory_order_relaxed, memory_order_relaxed))
                return error;
        } else {
            error = futex_wait(parker, state, deadline_ns);
            state = atomic_load_explicit(&parker->state, memory_order_relaxed);
        }
    }
}

static bool spin(struct pr_parker *parker, pr_parker_look *look, void *argument)
{
    int64_t end_ns = pr_now_ns() + parker->spin_ns;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK_READ; i++) {
            if (look(argument))
                return true;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        }
    } while (pr_now_ns() < end_ns);
    return false;
}

int pr_park(struct pr_parker *parker, pr_parker_look *look, void *argument, int64_t deadline_ns)
{
    if (parker->spin_ns > 0 && spin(parker, look, argument))
        return 0;
    for (;;) {
        int error = announce(parker);
        if (error < 0)
            return error;
        PR_CRASH_POINT("park: announced");
        if (look(argument)) {
            withdraw(parker);
            return 0;
        }
        error = take_permit(parker, deadline_ns);
        PR_CRASH_POINT("park: awake");
        if (error < 0)
            return error;
        if (look(argument))
            return 0;
    }
}

uint32_t pr_unpark_sleepers(struct pr_parker *parker, uint32_t state, uint32_t count)
{
    uint32_t woken;
    do {
        woken = sleepers_of(state) < count ? sleepers_of(state) : count;
        if (woken == 0)
            return 0;
        /* Pairs with the acquire in take_permit(). */
    } while (!atomic_compare_exchange_weak_explicit(
        &parker->state, &state, state - woken * PR_PARKER_SLEEPER + woken * PR_PARKER_PERMIT,
        memory_order_acq_rel, memory_order_relaxed));
    PR_CRASH_POINT("unpark: permits given");
    futex_wake(parker, woken);
    return woken;
}
