/*
 * The parker: where threads sleep until another thread has something for them.  Waking makes no
 * system call where nobody sleeps, and wakes as many threads as it was asked to, not more.
 *
 * One word holds two counts: the sleepers, and the permits to go on.  A thread that finds nothing
 * announces itself as a sleeper, looks once more, and waits until it gets a permit.  pr_unpark()
 * turns sleepers into permits and wakes as many; a permit belongs to no thread in particular.  So
 * sleepers and permits together are the threads that are announced, and a thread that was given a
 * permit is not counted again, however long it takes to run.
 *
 * No wake-up is lost: the one who brings something does so first and looks for sleepers then; the
 * one who waits announces itself first and looks for something then.  All four are sequentially
 * consistent, so one of the two sees the other.  Who gets a permit looks again before it sleeps
 * again, whatever the permit was for.
 */
#ifndef PYREACTOR_PARKER_H
#define PYREACTOR_PARKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PR_PARKER_PERMIT 1u
#define PR_PARKER_SLEEPER 0x10000u /* permits below, sleepers above */
#define PR_PARKER_SLEEPERS_MAX 0xffffu
#define PR_UNPARK_ALL UINT32_MAX

struct pr_parker {
    _Atomic(uint32_t) state; /* the futex: sleepers and permits */
    int32_t futex_flags;     /* FUTEX_PRIVATE_FLAG, or 0 where it lies in shared memory */
    int64_t spin_ns;         /* how long a thread looks again and again before it sleeps */
    _Atomic(uint64_t) sleeps;
    _Atomic(uint64_t) wakes; /* system calls, each for one thread or several */
};

/*
 * Makes one for the threads of several processes, in memory that they share.  What a process that
 * dies asleep leaves behind costs one system call in vain, and one look of a thread that is about
 * to sleep; but one that dies after it was woken takes its wake-up along.  One thread, as above.
 */
void pr_parker_init_shared(struct pr_parker *parker, int64_t spin_ns);

/* Says whether what the thread waits for is there.  It must look with seq_cst loads. */
typedef bool pr_parker_look(void *argument);

/* Makes a parker with nobody in it.  One thread, before any other uses it. */
void pr_parker_init(struct pr_parker *parker, int64_t spin_ns);

/*
 * Waits until `look` returns true: spins for `spin_ns`, then sleeps.  `deadline_ns` is on the clock
 * of pr_now_ns(), INT64_MAX for none.  Returns 0, -ETIMEDOUT, -EINTR where a signal handler ran, or
 * -EUSERS where more than PR_PARKER_SLEEPERS_MAX would sleep.
 *
 * After 0 the caller takes what it saw, or calls again: another thread may have been faster, and
 * nobody else is woken for it.  Any thread.
 */
int pr_park(struct pr_parker *parker, pr_parker_look *look, void *argument, int64_t deadline_ns);

/*
 * Wakes up to `count` of the sleepers counted in `state`, an earlier value of the parker's.
 * Returns how many.  Any thread.
 */
uint32_t pr_unpark_sleepers(struct pr_parker *parker, uint32_t state, uint32_t count);

/*
 * Wakes up to `count` threads; the caller has brought what they wait for already, with a seq_cst
 * operation.  Returns how many were asleep.  Any thread.
 */
static inline uint32_t pr_unpark(struct pr_parker *parker, uint32_t count)
{
    uint32_t state = atomic_load_explicit(&parker->state, memory_order_seq_cst);
    return state < PR_PARKER_SLEEPER ? 0 : pr_unpark_sleepers(parker, state, count);
}

#endif
