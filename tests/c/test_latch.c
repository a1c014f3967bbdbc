/*
 * The latch: who waits goes on once it is open, and sees what the opener did before.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/latch.h"

#define THREADS 3
#define PATIENCE_NS (20 * PR_NS_PER_SECOND)

static struct pr_latch latch;
static int outcome;

static void a_closed_latch_makes_wait_and_an_open_one_does_not(void)
{
    pr_latch_init(&latch);
    CHECK(!pr_latch_is_open(&latch));
    CHECK_EQUAL(pr_latch_wait(&latch, 0), -ETIMEDOUT);
    pr_latch_open(&latch);
    pr_latch_open(&latch);
    CHECK(pr_latch_is_open(&latch));
    CHECK_EQUAL(pr_latch_wait(&latch, 0), 0);
    CHECK_EQUAL(latch.parker.wakes, 0);
}

static void *wait_and_read(void *argument)
{
    int result;
    do
        result = pr_latch_wait(&latch, pr_now_ns() + PATIENCE_NS);
    while (result == -EINTR);
    CHECK_EQUAL(result, 0);
    *(int *)argument = outcome;
    return NULL;
}

static void opening_wakes_all_and_publishes(void)
{
    pthread_t threads[THREADS];
    int seen[THREADS] = {0};
    pr_latch_init(&latch);
    outcome = 0;
    for (int i = 0; i < THREADS; i++)
        REQUIRE_EQUAL(pthread_create(&threads[i], NULL, wait_and_read, &seen[i]), 0);
    while (atomic_load(&latch.parker.sleeps) < THREADS)
        sched_yield();
    outcome = 42;
    pr_latch_open(&latch);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQUAL(seen[i], 42);
    }
}

int main(void)
{
    RUN(a_closed_latch_makes_wait_and_an_open_one_does_not);
    RUN(opening_wakes_all_and_publishes);
    return check_status();
}
