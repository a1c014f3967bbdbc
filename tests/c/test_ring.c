/*
 * The rings, by one thread and by many: each request comes out once, those of one producer in their
 * order, and "full", "empty" and "closed" are said where they are true.
 */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "pyreactor/ring.h"

static struct pr_ring ring;
static struct pr_spsc_ring spsc;

static struct pr_request numbered(int number)
{
    return (struct pr_request){.fd = number};
}

static int push_one(int number)
{
    struct pr_request request = numbered(number);
    return pr_ring_push(&ring, &request, 1);
}

/* The number of the oldest request, or the negative errno. */
static int pop_one(void)
{
    struct pr_request request;
    int result = pr_ring_pop(&ring, &request, 1);
    return result < 0 ? result : request.fd;
}

static void a_capacity_is_rounded_up_and_has_bounds(void)
{
    CHECK_EQUAL(pr_ring_init(&ring, 0), -EINVAL);
    CHECK_EQUAL(pr_ring_init(&ring, PR_RING_CAPACITY_MAX + 1), -EINVAL);
    REQUIRE_EQUAL(pr_ring_init(&ring, 5), 0);
    for (int i = 0; i < 8; i++)
        CHECK_EQUAL(push_one(i), 1);
    CHECK_EQUAL(push_one(8), -EAGAIN);
    CHECK_EQUAL(pr_ring_depth(&ring), 8);
    pr_ring_deinit(&ring);
    CHECK_EQUAL(pr_spsc_ring_init(&spsc, 0), -EINVAL);
    CHECK_EQUAL(pr_spsc_ring_init(&spsc, PR_RING_CAPACITY_MAX + 1), -EINVAL);
}

static void requests_come_out_in_order_lap_after_lap(void)
{
    for (size_t capacity = 1; capacity <= 4; capacity *= 2) {
        REQUIRE_EQUAL(pr_ring_init(&ring, capacity), 0);
        CHECK_EQUAL(pop_one(), -EAGAIN);
        for (int lap = 0; lap < 5; lap++) {
            for (int i = 0; i < (int)capacity; i++)
                CHECK_EQUAL(push_one(lap * 10 + i), 1);
            CHECK_EQUAL(push_one(99), -EAGAIN);
            for (int i = 0; i < (int)capacity; i++)
                CHECK_EQUAL(pop_one(), lap * 10 + i);
            CHECK_EQUAL(pop_one(), -EAGAIN);
        }
        pr_ring_deinit(&ring);
    }
}

static void a_batch_takes_what_fits_and_gives_what_there_is(void)
{
    struct pr_request in[6], out[6];
    for (int i = 0; i < 6; i++)
        in[i] = numbered(i);
    REQUIRE_EQUAL(pr_ring_init(&ring, 4), 0);
    CHECK_EQUAL(pr_ring_push(&ring, in, 3), 3);
    CHECK_EQUAL(pr_ring_pop(&ring, out, 2), 2);
    CHECK_EQUAL(out[1].fd, 1);
    CHECK_EQUAL(pr_ring_push(&ring, in, 6), 3);
    CHECK_EQUAL(pr_ring_push(&ring, in, 6), -EAGAIN);
    CHECK_EQUAL(pr_ring_pop(&ring, out, 6), 4);
    CHECK_EQUAL(out[0].fd, 2);
    CHECK_EQUAL(out[3].fd, 2);
    CHECK_EQUAL(pr_ring_pop(&ring, out, 6), -EAGAIN);
    pr_ring_deinit(&ring);
}

static void a_closed_ring_takes_nothing_and_gives_what_is_left(void)
{
    REQUIRE_EQUAL(pr_ring_init(&ring, 4), 0);
    CHECK_EQUAL(push_one(1), 1);
    CHECK_EQUAL(push_one(2), 1);
    CHECK(!pr_ring_is_closed(&ring));
    pr_ring_close(&ring);
    pr_ring_close(&ring);
    CHECK(pr_ring_is_closed(&ring));
    CHECK_EQUAL(push_one(3), -ESHUTDOWN);
    CHECK_EQUAL(pr_ring_depth(&ring), 2);
    CHECK_EQUAL(pop_one(), 1);
    CHECK_EQUAL(pop_one(), 2);
    CHECK_EQUAL(pop_one(), -ESHUTDOWN);
    CHECK_EQUAL(pop_one(), -ESHUTDOWN);
    pr_ring_deinit(&ring);
}

static void the_ring_for_two_threads_keeps_the_same_rules(void)
{
    struct pr_request in[6], out[6];
    for (int i = 0; i < 6; i++)
        in[i] = numbered(i);
    for (size_t capacity = 1; capacity <= 4; capacity *= 2) {
        int size = (int)capacity;
        REQUIRE_EQUAL(pr_spsc_ring_init(&spsc, capacity), 0);
        CHECK_EQUAL(pr_spsc_ring_pop(&spsc, out, 6), -EAGAIN);
        for (int lap = 0; lap < 3; lap++) {
            CHECK_EQUAL(pr_spsc_ring_push(&spsc, in, 1), 1);
            CHECK_EQUAL(pr_spsc_ring_pop(&spsc, out, 1), 1);
            CHECK_EQUAL(pr_spsc_ring_push(&spsc, in, 6), size);
            CHECK_EQUAL(pr_spsc_ring_push(&spsc, in, 6), -EAGAIN);
            CHECK_EQUAL(pr_spsc_ring_depth(&spsc), size);
            CHECK_EQUAL(pr_spsc_ring_pop(&spsc, out, 6), size);
            CHECK_EQUAL(out[size - 1].fd, size - 1);
        }
        CHECK_EQUAL(pr_spsc_ring_push(&spsc, in, 1), 1);
        pr_spsc_ring_close(&spsc);
        CHECK(pr_spsc_ring_is_closed(&spsc));
        CHECK_EQUAL(pr_spsc_ring_push(&spsc, in, 1), -ESHUTDOWN);
        CHECK_EQUAL(pr_spsc_ring_pop(&spsc, out, 6), 1);
        CHECK_EQUAL(pr_spsc_ring_pop(&spsc, out, 6), -ESHUTDOWN);
        pr_spsc_ring_deinit(&spsc);
    }
}

static int releases;

static void count_release(struct pr_request *request)
{
    CHECK_EQUAL(request->fd, 7);
    releases++;
}

static int stop_at_second(struct pr_request *request, void *argument)
{
    CHECK_EQUAL(request->fd, 7);
    return ++*(int *)argument == 2 ? 42 : 0;
}

static void what_is_left_is_visited_and_released(void)
{
    struct pr_request requests[3], out;
    for (int i = 0; i < 3; i++)
        requests[i] = (struct pr_request){.release = count_release, .fd = 7};
    int visited = 0;
    REQUIRE_EQUAL(pr_ring_init(&ring, 4), 0);
    CHECK_EQUAL(pr_ring_push(&ring, requests, 3), 3);
    CHECK_EQUAL(pr_ring_pop(&ring, &out, 1), 1);
    CHECK_EQUAL(pr_ring_visit(&ring, stop_at_second, &visited), 42);
    releases = 0;
    pr_ring_deinit(&ring);
    CHECK_EQUAL(releases, 2);

    visited = 0;
    REQUIRE_EQUAL(pr_spsc_ring_init(&spsc, 4), 0);
    CHECK_EQUAL(pr_spsc_ring_push(&spsc, requests, 3), 3);
    CHECK_EQUAL(pr_spsc_ring_pop(&spsc, &out, 1), 1);
    CHECK_EQUAL(pr_spsc_ring_visit(&spsc, stop_at_second, &visited), 42);
    releases = 0;
    pr_spsc_ring_deinit(&spsc);
    CHECK_EQUAL(releases, 2);
}

static void a_thread_in_the_midst_of_a_push_holds_up_only_what_is_behind_it(void)
{
    /* As if a producer had claimed the first position and not come to its slot yet. */
    REQUIRE_EQUAL(pr_ring_init(&ring, 4), 0);
    atomic_store(&ring.tail, 1);
    int visited = 0;
    CHECK_EQUAL(push_one(7), 1);
    CHECK_EQUAL(pr_ring_depth(&ring), 2);
    CHECK_EQUAL(pr_ring_visit(&ring, stop_at_second, &visited), 0);
    CHECK_EQUAL(visited, 1);
    ring.slots[0].request = numbered(6);
    atomic_store(&ring.slots[0].sequence, pr_ring_holds(0));
    CHECK_EQUAL(pop_one(), 6);
    CHECK_EQUAL(pop_one(), 7);
    pr_ring_deinit(&ring);
}

/* Many threads; 2 producers and 2 consumers on two slots meet each other all the time. */

#define THREADS 2
#define PUSHES_PER_PRODUCER 40000

static _Atomic(int) taken[THREADS][PUSHES_PER_PRODUCER];

static void *produce(void *argument)
{
    int producer = *(int *)argument;
    for (int i = 0; i < PUSHES_PER_PRODUCER;) {
        struct pr_request requests[3];
        int count = i % 3 + 1;
        if (count > PUSHES_PER_PRODUCER - i)
            count = PUSHES_PER_PRODUCER - i;
        for (int j = 0; j < count; j++)
            requests[j] = (struct pr_request){.fd = producer, .events = (uint32_t)(i + j)};
        int pushed = pr_ring_push(&ring, requests, (size_t)count);
        if (pushed < 0) {
            REQUIRE_EQUAL(pushed, -EAGAIN);
            sched_yield();
        } else {
            i += pushed;
        }
    }
    return NULL;
}

static void *consume(void *argument)
{
    int next[THREADS] = {0};
    (void)argument;
    for (;;) {
        struct pr_request requests[2];
        int popped = pr_ring_pop(&ring, requests, 2);
        if (popped == -ESHUTDOWN)
            return NULL;
        if (popped == -EAGAIN)
            sched_yield();
        for (int i = 0; i < popped; i++) {
            int producer = requests[i].fd, number = (int)requests[i].events;
            REQUIRE(number >= next[producer]);
            next[producer] = number + 1;
            REQUIRE_EQUAL(atomic_fetch_add(&taken[producer][number], 1), 0);
        }
    }
}

static void threads_lose_nothing_and_keep_each_producers_order(void)
{
    pthread_t producers[THREADS], consumers[THREADS];
    int names[THREADS];
    REQUIRE_EQUAL(pr_ring_init(&ring, 2), 0);
    for (int i = 0; i < THREADS; i++) {
        names[i] = i;
        REQUIRE_EQUAL(pthread_create(&consumers[i], NULL, consume, NULL), 0);
        REQUIRE_EQUAL(pthread_create(&producers[i], NULL, produce, &names[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(producers[i], NULL);
    pr_ring_close(&ring);
    for (int i = 0; i < THREADS; i++)
        pthread_join(consumers[i], NULL);
    for (int i = 0; i < THREADS; i++)
        for (int j = 0; j < PUSHES_PER_PRODUCER; j++)
            REQUIRE_EQUAL(atomic_load(&taken[i][j]), 1);
    pr_ring_deinit(&ring);
}

static void *produce_alone(void *argument)
{
    (void)argument;
    for (int i = 0; i < PUSHES_PER_PRODUCER;) {
        struct pr_request request = numbered(i);
        int pushed = pr_spsc_ring_push(&spsc, &request, 1);
        if (pushed == 1)
            i++;
        else
            sched_yield();
    }
    pr_spsc_ring_close(&spsc);
    return NULL;
}

static void two_threads_share_the_ring_that_is_for_two(void)
{
    pthread_t producer;
    int next = 0;
    REQUIRE_EQUAL(pr_spsc_ring_init(&spsc, 2), 0);
    REQUIRE_EQUAL(pthread_create(&producer, NULL, produce_alone, NULL), 0);
    for (;;) {
        struct pr_request requests[2];
        int popped = pr_spsc_ring_pop(&spsc, requests, 2);
        if (popped == -ESHUTDOWN)
            break;
        if (popped == -EAGAIN)
            sched_yield();
        for (int i = 0; i < popped; i++)
            REQUIRE_EQUAL(requests[i].fd, next++);
    }
    CHECK_EQUAL(next, PUSHES_PER_PRODUCER);
    pthread_join(producer, NULL);
    pr_spsc_ring_deinit(&spsc);
}

int main(void)
{
    RUN(a_capacity_is_rounded_up_and_has_bounds);
    RUN(requests_come_out_in_order_lap_after_lap);
    RUN(a_batch_takes_what_fits_and_gives_what_there_is);
    RUN(a_closed_ring_takes_nothing_and_gives_what_is_left);
    RUN(the_ring_for_two_threads_keeps_the_same_rules);
    RUN(what_is_left_is_visited_and_released);
    RUN(a_thread_in_the_midst_of_a_push_holds_up_only_what_is_behind_it);
    RUN(threads_lose_nothing_and_keep_each_producers_order);
    RUN(two_threads_share_the_ring_that_is_for_two);
    return check_status();
}
