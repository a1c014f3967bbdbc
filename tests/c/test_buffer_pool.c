/*
 * The buffer pool: each buffer is lent to one at a time, none is lost, and who waits for one gets
 * it.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "pyreactor/buffer_pool.h"
#include "pyreactor/clock.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND)
#define THREADS 4
#define ROUNDS 20000

static struct pr_buffer_pool pool;

static void numbers_that_make_no_sense_are_refused(void)
{
    CHECK_EQUAL(pr_buffer_pool_init(&pool, 0, 1), -EINVAL);
    CHECK_EQUAL(pr_buffer_pool_init(&pool, 1, 0), -EINVAL);
    CHECK_EQUAL(pr_buffer_pool_init(&pool, 64, PR_BUFFERS_MAX + 1), -EINVAL);
    CHECK_EQUAL(pr_buffer_pool_init(&pool, (size_t)1 << 40, 1), -EINVAL);
}

static void buffers_lie_side_by_side_and_are_found_by_address(void)
{
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 100, 3), 0);
    CHECK_EQUAL(pool.buffer_bytes, 128);
    for (uint32_t i = 0; i < 3; i++) {
        char *data = pr_buffer_pool_data(&pool, i);
        CHECK_EQUAL(data - pool.memory, (int)i * 128);
        CHECK_EQUAL(pr_buffer_pool_index(&pool, data), i);
        CHECK_EQUAL(pr_buffer_pool_index(&pool, data + 127), i);
        memset(data, (int)i, 128);
    }
    CHECK_EQUAL(pr_buffer_pool_index(&pool, pool.memory - 1), PR_BUFFER_NONE);
    CHECK_EQUAL(pr_buffer_pool_index(&pool, pool.memory + 3 * 128), PR_BUFFER_NONE);
    pr_buffer_pool_deinit(&pool);
}

static void the_buffer_given_back_last_is_lent_next(void)
{
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 3), 0);
    int first = pr_buffer_pool_acquire(&pool);
    int second = pr_buffer_pool_acquire(&pool);
    CHECK(first != second);
    CHECK_EQUAL(pool.lent_count, 2);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, (uint32_t)first), 0);
    CHECK_EQUAL(pr_buffer_pool_acquire(&pool), first);
    CHECK_EQUAL(pool.lent_max, 2);
    pr_buffer_pool_deinit(&pool);
}

static void an_exhausted_pool_says_so_and_goes_on(void)
{
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 2), 0);
    int one = pr_buffer_pool_acquire(&pool);
    CHECK_AT_LEAST(pr_buffer_pool_acquire(&pool), 0);
    CHECK(!pr_buffer_pool_has_free(&pool));
    CHECK_EQUAL(pr_buffer_pool_acquire(&pool), -ENOBUFS);
    CHECK_EQUAL(pr_buffer_pool_wait(&pool, 0), -ETIMEDOUT);
    CHECK_EQUAL(pool.exhausted, 2);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, (uint32_t)one), 0);
    CHECK_EQUAL(pr_buffer_pool_wait(&pool, 0), one);
    pr_buffer_pool_deinit(&pool);
}

static void what_is_not_lent_is_not_taken_back(void)
{
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 2), 0);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, 0), -EINVAL);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, 2), -EINVAL);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, PR_BUFFER_NONE), -EINVAL);
    int index = pr_buffer_pool_acquire(&pool);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, (uint32_t)index), 0);
    CHECK_EQUAL(pr_buffer_pool_release(&pool, (uint32_t)index), -EINVAL);
    CHECK_EQUAL(pool.lent_count, 0);
    pr_buffer_pool_deinit(&pool);
}

static int rung;

static void ring(struct pr_bell *bell)
{
    (void)bell;
    rung++;
}

static void a_bell_rings_when_a_buffer_is_given_back(void)
{
    struct pr_bell bell = {.ring = ring};
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 1), 0);
    int index = pr_buffer_pool_acquire(&pool);
    rung = 0;
    pr_bell_arm(&pool.bells, &bell);
    CHECK_EQUAL(rung, 0);
    pr_buffer_pool_release(&pool, (uint32_t)index);
    CHECK_EQUAL(rung, 1);
    pr_bell_arm(&pool.bells, &bell);
    pr_buffer_pool_pass_on(&pool);
    CHECK_EQUAL(rung, 2);
    pr_buffer_pool_deinit(&pool);
}

static int wait_for_one(void)
{
    int index;
    do
        index = pr_buffer_pool_wait(&pool, pr_now_ns() + PATIENCE_NS);
    while (index == -EINTR);
    return index;
}

static void *wait_in_thread(void *argument)
{
    *(int *)argument = wait_for_one();
    return NULL;
}

static void a_thread_sleeps_until_a_buffer_is_given_back(void)
{
    pthread_t thread;
    int found = -1;
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 1), 0);
    int index = pr_buffer_pool_acquire(&pool);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, wait_in_thread, &found), 0);
    while (atomic_load(&pool.parker.sleeps) == 0)
        sched_yield();
    pr_buffer_pool_release(&pool, (uint32_t)index);
    pthread_join(thread, NULL);
    CHECK_EQUAL(found, index);
    pr_buffer_pool_deinit(&pool);
}

/* Writes to the buffer as its only owner would; the sanitizer sees where it is not. */
static void *borrow_again_and_again(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        int index = wait_for_one();
        REQUIRE(index >= 0);
        (*(int *)pr_buffer_pool_data(&pool, (uint32_t)index))++;
        REQUIRE_EQUAL(pr_buffer_pool_release(&pool, (uint32_t)index), 0);
    }
    return NULL;
}

static void threads_that_share_too_few_buffers_never_share_one(void)
{
    pthread_t threads[THREADS];
    REQUIRE_EQUAL(pr_buffer_pool_init(&pool, 64, 2), 0);
    for (int i = 0; i < THREADS; i++)
        REQUIRE_EQUAL(pthread_create(&threads[i], NULL, borrow_again_and_again, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    int borrowed = *(int *)pr_buffer_pool_data(&pool, 0) + *(int *)pr_buffer_pool_data(&pool, 1);
    CHECK_EQUAL(borrowed, THREADS * ROUNDS);
    CHECK_EQUAL(pool.lent_count, 0);
    CHECK_AT_MOST(pool.lent_max, 2);
    pr_buffer_pool_deinit(&pool);
}

int main(void)
{
    RUN(numbers_that_make_no_sense_are_refused);
    RUN(buffers_lie_side_by_side_and_are_found_by_address);
    RUN(the_buffer_given_back_last_is_lent_next);
    RUN(an_exhausted_pool_says_so_and_goes_on);
    RUN(what_is_not_lent_is_not_taken_back);
    RUN(a_bell_rings_when_a_buffer_is_given_back);
    RUN(a_thread_sleeps_until_a_buffer_is_given_back);
    RUN(threads_that_share_too_few_buffers_never_share_one);
    return check_status();
}
