/*
 * The loop's clock: CLOCK_MONOTONIC in nanoseconds, the clock of Python's time.monotonic().
 */
#ifndef PYREACTOR_CLOCK_H
#define PYREACTOR_CLOCK_H

#include <stdint.h>
#include <time.h>

#define PR_NS_PER_SECOND 1000000000LL
#define PR_NS_PER_MS 1000000LL

/* Nanoseconds since an arbitrary start; never goes back.  Any thread. */
static inline int64_t pr_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * PR_NS_PER_SECOND + now.tv_nsec;
}

#endif
