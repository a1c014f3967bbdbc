/*
 * The ready queue: order, growth and counters that wrap.
 */
#include "check.h"
#include "pyreactor/ready_queue.h"

#define CALLBACKS_MAX 1000

static struct pr_callback callbacks[CALLBACKS_MAX];

static void an_empty_queue_pops_nothing(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    CHECK_EQUAL(pr_ready_queue_count(&queue), 0);
    CHECK_SAME(pr_ready_queue_pop(&queue), NULL);
    CHECK_EQUAL(pr_ready_queue_count(&queue), 0);
    pr_ready_queue_deinit(&queue);
}

static void callbacks_leave_in_the_order_in_which_they_came(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    for (int i = 0; i < CALLBACKS_MAX; i++)
        REQUIRE_EQUAL(pr_ready_queue_push(&queue, &callbacks[i]), 0);
    CHECK_EQUAL(pr_ready_queue_count(&queue), CALLBACKS_MAX);
    for (int i = 0; i < CALLBACKS_MAX; i++)
        CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[i]);
    CHECK_SAME(pr_ready_queue_pop(&queue), NULL);
    pr_ready_queue_deinit(&queue);
}

static void the_same_callback_may_wait_twice(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    pr_ready_queue_push(&queue, &callbacks[0]);
    pr_ready_queue_push(&queue, &callbacks[0]);
    CHECK_EQUAL(pr_ready_queue_count(&queue), 2);
    CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[0]);
    CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[0]);
    pr_ready_queue_deinit(&queue);
}

static void pushes_and_pops_at_random_keep_the_order(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    uint64_t seed = 1;
    size_t pushed = 0, popped = 0;
    for (int step = 0; step < 100000; step++) {
        bool pushes = check_random(&seed) % 2;
        if (pushes && pushed - popped < CALLBACKS_MAX) {
            REQUIRE_EQUAL(pr_ready_queue_push(&queue, &callbacks[pushed++ % CALLBACKS_MAX]), 0);
        } else if (pushed == popped) {
            CHECK_SAME(pr_ready_queue_pop(&queue), NULL);
        } else if (!CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[popped % CALLBACKS_MAX])) {
            break;
        } else {
            popped++;
        }
        REQUIRE_EQUAL(pr_ready_queue_count(&queue), pushed - popped);
        REQUIRE_EQUAL(queue.capacity & (queue.capacity - 1), 0);
    }
    pr_ready_queue_deinit(&queue);
}

static void a_queue_that_stays_short_does_not_grow(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    size_t capacity = queue.capacity;
    for (int i = 0; i < 10000; i++) {
        pr_ready_queue_push(&queue, &callbacks[0]);
        pr_ready_queue_pop(&queue);
    }
    CHECK_EQUAL(queue.capacity, capacity);
    pr_ready_queue_deinit(&queue);
}

/* A head and a tail that count up for ever come to their end some day. */
static void counters_that_wrap_keep_the_order(void)
{
    struct pr_ready_queue queue;
    REQUIRE_EQUAL(pr_ready_queue_init(&queue), 0);
    queue.head = queue.tail = SIZE_MAX - 10;
    for (int i = 0; i < 200; i++) /* grows twice, across the end */
        REQUIRE_EQUAL(pr_ready_queue_push(&queue, &callbacks[i]), 0);
    CHECK_EQUAL(pr_ready_queue_count(&queue), 200);
    for (int i = 0; i < 200; i++)
        CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[i]);
    queue.head = queue.tail = SIZE_MAX - 10;
    for (int i = 0; i < 20; i++)
        REQUIRE_EQUAL(pr_ready_queue_push(&queue, &callbacks[i]), 0);
    for (int i = 0; i < 20; i++)
        CHECK_SAME(pr_ready_queue_pop(&queue), &callbacks[i]);
    CHECK_SAME(pr_ready_queue_pop(&queue), NULL);
    pr_ready_queue_deinit(&queue);
}

int main(void)
{
    RUN(an_empty_queue_pops_nothing);
    RUN(callbacks_leave_in_the_order_in_which_they_came);
    RUN(the_same_callback_may_wait_twice);
    RUN(pushes_and_pops_at_random_keep_the_order);
    RUN(a_queue_that_stays_short_does_not_grow);
    RUN(counters_that_wrap_keep_the_order);
    return check_status();
}
