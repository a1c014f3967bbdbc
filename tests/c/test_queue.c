/*
 * The request queue, each kind by the same rules: what blocks, what wakes whom, and what closing
 * does.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/request_queue.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long asleep a wake-up was lost */

static const char *kind;
static struct pr_request_queue *queue;

static void begin(size_t capacity)
{
    REQUIRE_EQUAL(pr_request_queue_new(&queue, kind, capacity, 0), 0);
}

static void end(void)
{
    queue->ops->free(queue);
    queue = NULL;
}

static int64_t soon(void)
{
    return pr_now_ns() + PATIENCE_NS;
}

/* As pr_request_queue_put() and its like, but for signals, of which there are none here. */
static int put_all(const struct pr_request *requests, int count, int64_t deadline_ns)
{
    int done = 0;
    while (done < count) {
        int result =
            pr_request_queue_put(queue, requests + done, (size_t)(count - done), deadline_ns);
        if (result < 0 && result != -EINTR)
            return done > 0 ? done : result;
        done += result > 0 ? result : 0;
    }
    return done;
}

static int get_some(struct pr_request *requests, size_t max, int64_t deadline_ns)
{
    int result;
    do
        result = pr_request_queue_get(queue, requests, max, deadline_ns);
    while (result == -EINTR);
    return result;
}

static int put_one(int number, int64_t deadline_ns)
{
    struct pr_request request = {.fd = number};
    return put_all(&request, 1, deadline_ns);
}

/* The number of the oldest request, or the negative errno. */
static int get_one(int64_t deadline_ns)
{
    struct pr_request request;
    int result = get_some(&request, 1, deadline_ns);
    return result < 0 ? result : request.fd;
}

static struct pr_request_queue_stats stats(void)
{
    struct pr_request_queue_stats result;
    queue->ops->read_stats(queue, &result);
    return result;
}

static void wait_for_get_sleeps(uint64_t count)
{
    int64_t end_ns = soon();
    while (stats().get_sleeps < count && pr_now_ns() < end_ns)
        sched_yield();
    REQUIRE(stats().get_sleeps >= count);
}

static void wait_for_put_sleeps(uint64_t count)
{
    int64_t end_ns = soon();
    while (stats().put_sleeps < count && pr_now_ns() < end_ns)
        sched_yield();
    REQUIRE(stats().put_sleeps >= count);
}

static void a_kind_or_a_capacity_that_does_not_exist_is_refused(void)
{
    CHECK_EQUAL(pr_request_queue_new(&queue, "stack", 4, 0), -ENOTSUP);
    CHECK_EQUAL(pr_request_queue_new(&queue, kind, 0, 0), -EINVAL);
    CHECK_EQUAL(pr_request_queue_new(&queue, kind, (size_t)1 << 31, 0), -EINVAL);
}

static void requests_come_out_in_order_up_to_the_capacity(void)
{
    begin(3);
    CHECK_EQUAL(queue->capacity, 4);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(put_one(i, 0), 1);
    CHECK_EQUAL(queue->ops->depth(queue), 4);
    CHECK_EQUAL(put_one(4, 0), -ETIMEDOUT);
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(get_one(0), i);
    CHECK_EQUAL(get_one(0), -ETIMEDOUT);
    CHECK_EQUAL(stats().puts, 4);
    CHECK_EQUAL(stats().gets, 4);
    CHECK_EQUAL(stats().depth_max, 4);
    end();
}

static void batches_are_cut_to_the_room_and_to_what_there_is(void)
{
    struct pr_request in[5] = {{.fd = 0}, {.fd = 1}, {.fd = 2}, {.fd = 3}, {.fd = 4}}, out[5];
    begin(4);
    CHECK_EQUAL(queue->ops->try_put(queue, in, 5), 4);
    CHECK_EQUAL(queue->ops->try_put(queue, in, 5), -EAGAIN);
    CHECK_EQUAL(pr_request_queue_put(queue, in, 5, 0), -ETIMEDOUT);
    CHECK_EQUAL(queue->ops->try_get(queue, out, 1), 1);
    CHECK_EQUAL(pr_request_queue_put(queue, in, 5, 0), 1);
    CHECK_EQUAL(pr_request_queue_get(queue, out, 5, 0), 4);
    CHECK_EQUAL(out[3].fd, 0);
    CHECK_EQUAL(queue->ops->try_get(queue, out, 5), -EAGAIN);
    CHECK_EQUAL(queue->ops->try_put(queue, in, 0), 0);
    CHECK_EQUAL(queue->ops->try_get(queue, out, 0), 0);
    end();
}

static void closing_refuses_puts_and_lets_gets_drain(void)
{
    begin(4);
    put_one(1, 0);
    CHECK(!queue->ops->is_closed(queue));
    queue->ops->close(queue);
    queue->ops->close(queue);
    CHECK(queue->ops->is_closed(queue));
    CHECK_EQUAL(put_one(2, soon()), -ESHUTDOWN);
    CHECK_EQUAL(get_one(soon()), 1);
    CHECK_EQUAL(get_one(soon()), -ESHUTDOWN);
    CHECK_EQUAL(get_one(0), -ESHUTDOWN);
    end();
}

static void *get_in_thread(void *result)
{
    *(int *)result = get_one(soon());
    return NULL;
}

static void a_consumer_sleeps_until_a_request_comes(void)
{
    pthread_t thread;
    int got;
    begin(4);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, get_in_thread, &got), 0);
    wait_for_get_sleeps(1);
    CHECK_EQUAL(put_one(5, 0), 1);
    pthread_join(thread, NULL);
    CHECK_EQUAL(got, 5);
    CHECK_EQUAL(stats().get_wakes, 1);
    end();
}

static void *put_in_thread(void *result)
{
    struct pr_request requests[3] = {{.fd = 10}, {.fd = 11}, {.fd = 12}};
    *(int *)result = put_all(requests, 3, soon());
    return NULL;
}

static void a_producer_sleeps_until_there_is_room_for_all(void)
{
    pthread_t thread;
    int put;
    begin(2);
    REQUIRE_EQUAL(pthread_create(&thread, NULL, put_in_thread, &put), 0);
    wait_for_put_sleeps(1);
    CHECK_EQUAL(get_one(0), 10);
    CHECK_EQUAL(get_one(0), 11);
    CHECK_EQUAL(get_one(soon()), 12);
    pthread_join(thread, NULL);
    CHECK_EQUAL(put, 3);
    end();
}

static void closing_wakes_everybody(void)
{
    pthread_t producer, consumer;
    int put, got;
    begin(2);
    REQUIRE_EQUAL(pthread_create(&consumer, NULL, get_in_thread, &got), 0);
    wait_for_get_sleeps(1);
    queue->ops->close(queue);
    pthread_join(consumer, NULL);
    CHECK_EQUAL(got, -ESHUTDOWN);
    end();

    begin(2);
    REQUIRE_EQUAL(pthread_create(&producer, NULL, put_in_thread, &put), 0);
    wait_for_put_sleeps(1);
    queue->ops->close(queue);
    pthread_join(producer, NULL);
    CHECK_EQUAL(put, 2);
    CHECK_EQUAL(get_one(0), 10);
    CHECK_EQUAL(get_one(0), 11);
    CHECK_EQUAL(get_one(0), -ESHUTDOWN);
    end();
}

static void one_request_wakes_one_consumer(void)
{
    pthread_t threads[3];
    int got[3];
    if (strcmp(kind, "spsc") == 0)
        return; /* has one consumer anyway */
    begin(8);
    for (int i = 0; i < 3; i++)
        REQUIRE_EQUAL(pthread_create(&threads[i], NULL, get_in_thread, &got[i]), 0);
    wait_for_get_sleeps(3);
    for (uint64_t i = 1; i <= 3; i++) {
        put_one((int)i, 0);
        CHECK_EQUAL(stats().get_wakes, i);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(got[0] + got[1] + got[2], 6);
    put_one(4, 0);
    CHECK_EQUAL(stats().get_wakes, 3); /* nobody sleeps */
    end();
}

struct counted_bell {
    struct pr_bell bell;
    int rings;
};

static void count_ring(struct pr_bell *bell)
{
    ((struct counted_bell *)bell)->rings++;
}

static void an_armed_bell_rings_once_when_its_side_can_go_on(void)
{
    struct counted_bell got = {.bell.ring = count_ring}, room = {.bell.ring = count_ring};
    struct pr_bell_list *consumers, *producers;
    begin(1);
    consumers = queue->ops->bells(queue, PR_QUEUE_CONSUMERS);
    producers = queue->ops->bells(queue, PR_QUEUE_PRODUCERS);
    pr_bell_arm(consumers, &got.bell);
    put_one(1, 0);
    CHECK_EQUAL(got.rings, 1);
    pr_bell_arm(producers, &room.bell);
    get_one(0);
    CHECK_EQUAL(room.rings, 1);
    put_one(2, 0);
    CHECK_EQUAL(got.rings, 1); /* was not armed again */
    pr_bell_arm(consumers, &got.bell);
    queue->ops->pass_on(queue, PR_QUEUE_CONSUMERS);
    CHECK_EQUAL(got.rings, 2);
    pr_bell_arm(consumers, &got.bell);
    pr_bell_arm(producers, &room.bell);
    queue->ops->close(queue);
    CHECK_EQUAL(got.rings, 3);
    CHECK_EQUAL(room.rings, 2);
    CHECK(!pr_bell_disarm(consumers, &got.bell));
    end();
}

static int releases;

static void count_release(struct pr_request *request)
{
    (void)request;
    releases++;
}

static int count_visit(struct pr_request *request, void *argument)
{
    (void)request;
    ++*(int *)argument;
    return 0;
}

static void what_is_left_is_released_with_the_queue(void)
{
    struct pr_request requests[3];
    int visits = 0;
    for (int i = 0; i < 3; i++)
        requests[i] = (struct pr_request){.release = count_release};
    begin(4);
    queue->ops->try_put(queue, requests, 3);
    queue->ops->try_get(queue, requests, 1);
    CHECK_EQUAL(queue->ops->visit(queue, count_visit, &visits), 0);
    CHECK_EQUAL(visits, 2);
    releases = 0;
    end();
    CHECK_EQUAL(releases, 2);
}

/* Threads that sleep on both sides all the time: the queue has two slots. */

#define PRODUCERS_MAX 3
#define CONSUMERS_MAX 3
#define PUTS_PER_PRODUCER 20000

static _Atomic(long long) sum;

static void *produce(void *argument)
{
    int producer = *(int *)argument;
    for (int i = 0; i < PUTS_PER_PRODUCER; i++) {
        struct pr_request request = {.fd = producer, .events = (uint32_t)i};
        REQUIRE_EQUAL(put_all(&request, 1, soon()), 1);
    }
    return NULL;
}

static void *consume(void *argument)
{
    int next[PRODUCERS_MAX] = {0};
    (void)argument;
    for (;;) {
        struct pr_request requests[2];
        int count = get_some(requests, 2, soon());
        if (count == -ESHUTDOWN)
            return NULL;
        REQUIRE(count >= 1);
        for (int i = 0; i < count; i++) {
            REQUIRE((int)requests[i].events >= next[requests[i].fd]);
            next[requests[i].fd] = (int)requests[i].events + 1;
            atomic_fetch_add(&sum, requests[i].events);
        }
    }
}

static void threads_that_sleep_on_both_sides_lose_nothing(void)
{
    int producer_count = strcmp(kind, "spsc") == 0 ? 1 : PRODUCERS_MAX;
    int consumer_count = strcmp(kind, "spsc") == 0 ? 1 : CONSUMERS_MAX;
    pthread_t producers[PRODUCERS_MAX], consumers[CONSUMERS_MAX];
    int names[PRODUCERS_MAX];
    begin(2);
    atomic_store(&sum, 0);
    for (int i = 0; i < consumer_count; i++)
        REQUIRE_EQUAL(pthread_create(&consumers[i], NULL, consume, NULL), 0);
    for (int i = 0; i < producer_count; i++) {
        names[i] = i;
        REQUIRE_EQUAL(pthread_create(&producers[i], NULL, produce, &names[i]), 0);
    }
    for (int i = 0; i < producer_count; i++)
        pthread_join(producers[i], NULL);
    queue->ops->close(queue);
    for (int i = 0; i < consumer_count; i++)
        pthread_join(consumers[i], NULL);
    CHECK_EQUAL(stats().puts, producer_count * PUTS_PER_PRODUCER);
    CHECK_EQUAL(stats().gets, producer_count * PUTS_PER_PRODUCER);
    CHECK_EQUAL(atomic_load(&sum),
                (long long)producer_count * PUTS_PER_PRODUCER * (PUTS_PER_PRODUCER - 1) / 2);
    CHECK_AT_MOST(stats().depth_max, 2);
    end();
}

int main(void)
{
    const char *const kinds[] = {"mpmc", "spsc", "mutex"};
    for (int i = 0; i < 3; i++) {
        kind = kinds[i];
        RUN(a_kind_or_a_capacity_that_does_not_exist_is_refused);
        RUN(requests_come_out_in_order_up_to_the_capacity);
        RUN(batches_are_cut_to_the_room_and_to_what_there_is);
        RUN(closing_refuses_puts_and_lets_gets_drain);
        RUN(a_consumer_sleeps_until_a_request_comes);
        RUN(a_producer_sleeps_until_there_is_room_for_all);
        RUN(closing_wakes_everybody);
        RUN(one_request_wakes_one_consumer);
        RUN(an_armed_bell_rings_once_when_its_side_can_go_on);
        RUN(what_is_left_is_released_with_the_queue);
        RUN(threads_that_sleep_on_both_sides_lose_nothing);
    }
    return check_status();
}
