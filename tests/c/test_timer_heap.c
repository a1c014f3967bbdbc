/*
 * The timer heap, against a list that is searched from end to end.
 */
#include "check.h"
#include "pyreactor/timer_heap.h"

#define TIMERS_MAX 200
#define STEPS 100000

static struct pr_timer timers[TIMERS_MAX];

static void reset_timers(void)
{
    memset(timers, 0, sizeof timers);
    for (size_t i = 0; i < TIMERS_MAX; i++)
        timers[i].heap_index = PR_TIMER_IDLE;
}

static void push(struct pr_timer_heap *heap, struct pr_timer *timer, int64_t deadline_ns)
{
    timer->deadline_ns = deadline_ns;
    REQUIRE_EQUAL(pr_timer_heap_push(heap, timer), 0);
}

/* Every timer knows its place, and no timer stands before one that is due earlier. */
static void require_in_order(const struct pr_timer_heap *heap)
{
    for (size_t i = 0; i < heap->count; i++) {
        const struct pr_timer_entry *entry = &heap->entries[i];
        REQUIRE_EQUAL(entry->timer->heap_index, i);
        REQUIRE_EQUAL(entry->timer->deadline_ns, entry->deadline_ns);
        REQUIRE(heap->entries[0].deadline_ns <= entry->deadline_ns);
    }
}

static void an_empty_heap_pops_nothing_and_has_nothing_due(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    CHECK_SAME(pr_timer_heap_pop(&heap), NULL);
    CHECK(!pr_timer_heap_has_due(&heap, INT64_MAX));
    pr_timer_heap_deinit(&heap);
}

static void a_timer_is_due_from_its_deadline_on(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    push(&heap, &timers[0], 100);
    CHECK(!pr_timer_heap_has_due(&heap, 99));
    CHECK(pr_timer_heap_has_due(&heap, 100));
    CHECK(pr_timer_heap_has_due(&heap, 101));
    pr_timer_heap_deinit(&heap);
}

static void timers_leave_by_deadline_whatever_the_order_of_their_coming(void)
{
    static const int64_t deadlines[] = {5, INT64_MAX, -3, 0, 4, INT64_MIN, 1, -1};
    static const int64_t sorted[] = {INT64_MIN, -3, -1, 0, 1, 4, 5, INT64_MAX};
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    for (size_t i = 0; i < 8; i++)
        push(&heap, &timers[i], deadlines[i]);
    for (size_t i = 0; i < 8; i++) {
        struct pr_timer *timer = pr_timer_heap_pop(&heap);
        REQUIRE(timer);
        CHECK_EQUAL(timer->deadline_ns, sorted[i]);
        CHECK_EQUAL(timer->heap_index, PR_TIMER_IDLE);
    }
    CHECK_SAME(pr_timer_heap_pop(&heap), NULL);
    pr_timer_heap_deinit(&heap);
}

static void equal_deadlines_leave_in_the_order_of_their_coming(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    for (size_t i = 0; i < TIMERS_MAX; i++)
        push(&heap, &timers[i], 7);
    for (size_t i = 0; i < TIMERS_MAX; i += 3) /* others leaving does not shuffle them */
        pr_timer_heap_remove(&heap, &timers[i]);
    for (size_t i = 0; i < TIMERS_MAX; i++)
        if (i % 3)
            CHECK_SAME(pr_timer_heap_pop(&heap), &timers[i]);
    CHECK_EQUAL(heap.count, 0);
    pr_timer_heap_deinit(&heap);
}

static void a_cancelled_timer_leaves_at_once(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    for (size_t i = 0; i < TIMERS_MAX; i++)
        push(&heap, &timers[i], (int64_t)(i * 37 % 101));
    size_t capacity = heap.capacity;
    for (size_t i = 0; i < TIMERS_MAX; i++) {
        pr_timer_heap_remove(&heap, &timers[i]);
        CHECK_EQUAL(timers[i].heap_index, PR_TIMER_IDLE);
        CHECK_EQUAL(heap.count, TIMERS_MAX - 1 - i);
        for (size_t j = 0; j < heap.count; j++)
            REQUIRE(heap.entries[j].timer != &timers[i]);
        require_in_order(&heap);
    }
    for (int i = 0; i < 10000; i++) { /* a timeout that never fires costs no memory */
        push(&heap, &timers[i % 2], i);
        pr_timer_heap_remove(&heap, &timers[i % 2]);
    }
    CHECK_EQUAL(heap.capacity, capacity);
    pr_timer_heap_deinit(&heap);
}

static void removing_an_idle_timer_does_nothing(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    push(&heap, &timers[0], 1);
    pr_timer_heap_remove(&heap, &timers[1]);
    CHECK_EQUAL(heap.count, 1);
    pr_timer_heap_remove(&heap, &timers[0]);
    pr_timer_heap_remove(&heap, &timers[0]);
    CHECK_EQUAL(heap.count, 0);
    pr_timer_heap_deinit(&heap);
}

static void a_timer_can_be_used_again_after_it_left(void)
{
    struct pr_timer_heap heap;
    pr_timer_heap_init(&heap);
    reset_timers();
    push(&heap, &timers[0], 5);
    CHECK_SAME(pr_timer_heap_pop(&heap), &timers[0]);
    push(&heap, &timers[1], 4);
    push(&heap, &timers[0], 3);
    CHECK_SAME(pr_timer_heap_pop(&heap), &timers[0]);
    CHECK_SAME(pr_timer_heap_pop(&heap), &timers[1]);
    pr_timer_heap_deinit(&heap);
}

/* The model: timers in the order of their coming, and the earliest is looked for. */
struct model {
    struct pr_timer *timers[TIMERS_MAX];
    size_t count;
};

static size_t earliest_in(const struct model *model)
{
    size_t earliest = 0;
    for (size_t i = 1; i < model->count; i++)
        if (model->timers[i]->deadline_ns < model->timers[earliest]->deadline_ns)
            earliest = i;
    return earliest;
}

static void forget(struct model *model, size_t index)
{
    model->count--;
    memmove(&model->timers[index], &model->timers[index + 1],
            (model->count - index) * sizeof *model->timers);
}

static void any_sequence_of_pushes_removals_and_pops_agrees_with_a_list(void)
{
    struct pr_timer_heap heap;
    struct model model = {.count = 0};
    uint64_t seed = 42;
    pr_timer_heap_init(&heap);
    reset_timers();
    for (int step = 0; step < STEPS; step++) {
        /* Phases of growing and of shrinking; few deadlines, so that many are equal. */
        uint32_t pushes_of_ten = step / 5000 % 2 ? 3 : 6;
        struct pr_timer *timer = &timers[check_random(&seed) % TIMERS_MAX];
        if (check_random(&seed) % 10 < pushes_of_ten) {
            if (timer->heap_index != PR_TIMER_IDLE)
                continue;
            push(&heap, timer, (int64_t)(check_random(&seed) % 64));
            model.timers[model.count++] = timer;
        } else if (check_random(&seed) % 2) {
            for (size_t i = 0; i < model.count; i++)
                if (model.timers[i] == timer)
                    forget(&model, i);
            pr_timer_heap_remove(&heap, timer);
            REQUIRE_EQUAL(timer->heap_index, PR_TIMER_IDLE);
        } else if (model.count == 0) {
            REQUIRE(!pr_timer_heap_pop(&heap));
        } else {
            size_t earliest = earliest_in(&model);
            REQUIRE(pr_timer_heap_pop(&heap) == model.timers[earliest]);
            forget(&model, earliest);
        }
        REQUIRE_EQUAL(heap.count, model.count);
        if (step % 100 == 0)
            require_in_order(&heap);
    }
    pr_timer_heap_deinit(&heap);
}

int main(void)
{
    RUN(an_empty_heap_pops_nothing_and_has_nothing_due);
    RUN(a_timer_is_due_from_its_deadline_on);
    RUN(timers_leave_by_deadline_whatever_the_order_of_their_coming);
    RUN(equal_deadlines_leave_in_the_order_of_their_coming);
    RUN(a_cancelled_timer_leaves_at_once);
    RUN(removing_an_idle_timer_does_nothing);
    RUN(a_timer_can_be_used_again_after_it_left);
    RUN(any_sequence_of_pushes_removals_and_pops_agrees_with_a_list);
    return check_status();
}
