/*
 * Transition tables: what is found in them, what is no table, and what can be reached.
 */
#include <errno.h>

#include "check.h"
#include "pyreactor/transition_table.h"

enum { IDLE, RUNNING, DONE, LOST, STATES };
enum { START, STOP, EVENTS };

static const struct pr_transition transitions[] = {
    {.source = RUNNING, .event = STOP, .target = RUNNING, .id = 10, .guarded = true},
    {.source = IDLE, .event = START, .target = RUNNING, .id = 11},
    {.source = RUNNING, .event = STOP, .target = IDLE, .id = 12, .guarded = true},
    {.source = RUNNING, .event = STOP, .target = DONE, .id = 13},
    {.source = LOST, .event = STOP, .target = DONE, .id = 14},
};
#define COUNT (sizeof transitions / sizeof *transitions)

static struct pr_transition_table table;
static size_t offender;

/* Allows the transition whose id is at `context`, and notes whom it was asked about. */
static uint32_t asked[COUNT];
static size_t asked_count;

static int allows(void *context, uint32_t id)
{
    asked[asked_count++] = id;
    return *(int *)context < 0 ? *(int *)context : (uint32_t)*(int *)context == id;
}

static int find(uint32_t state, uint32_t event, int allowed)
{
    const struct pr_transition *taken = NULL;
    asked_count = 0;
    int result = pr_transition_table_find(&table, state, event, allows, &allowed, &taken);
    return result > 0 ? (int)taken->id : result;
}

static void transitions_are_tried_in_the_order_given(void)
{
    REQUIRE_EQUAL(pr_transition_table_init(&table, STATES, EVENTS, transitions, COUNT, &offender),
                  0);
    CHECK_EQUAL(find(IDLE, START, 0), 11);
    CHECK_EQUAL(asked_count, 0);
    CHECK_EQUAL(find(RUNNING, STOP, 10), 10);
    CHECK_EQUAL(asked_count, 1);
    CHECK_EQUAL(find(RUNNING, STOP, 12), 12);
    CHECK_EQUAL(find(RUNNING, STOP, 0), 13);
    CHECK_EQUAL(asked_count, 2);
    CHECK_EQUAL(asked[0], 10);
    CHECK_EQUAL(asked[1], 12);
    pr_transition_table_deinit(&table);
}

static void where_nothing_fits_nothing_is_found(void)
{
    REQUIRE_EQUAL(
        pr_transition_table_init(&table, STATES, EVENTS, transitions, COUNT - 2, &offender), 0);
    CHECK_EQUAL(find(IDLE, STOP, 0), 0);
    CHECK_EQUAL(find(DONE, START, 0), 0);
    CHECK_EQUAL(find(RUNNING, STOP, 0), 0);
    CHECK_EQUAL(find(RUNNING, STOP, -EIO), -EIO);
    CHECK_EQUAL(asked_count, 1);
    pr_transition_table_deinit(&table);
}

static void reaching_follows_every_transition(void)
{
    bool reached[STATES];
    REQUIRE_EQUAL(pr_transition_table_init(&table, STATES, EVENTS, transitions, COUNT, &offender),
                  0);
    REQUIRE_EQUAL(pr_transition_table_reach(&table, IDLE, reached), 0);
    CHECK(reached[IDLE] && reached[RUNNING] && reached[DONE] && !reached[LOST]);
    REQUIRE_EQUAL(pr_transition_table_reach(&table, LOST, reached), 0);
    CHECK(!reached[IDLE] && !reached[RUNNING] && reached[DONE] && reached[LOST]);
    pr_transition_table_deinit(&table);
}

static void what_is_no_table_is_refused_and_named(void)
{
    struct pr_transition wrong[] = {transitions[1], transitions[1]};
    CHECK_EQUAL(pr_transition_table_init(&table, STATES, EVENTS, wrong, 2, &offender), -EEXIST);
    CHECK_EQUAL(offender, 1);
    wrong[1].guarded = true;
    CHECK_EQUAL(pr_transition_table_init(&table, STATES, EVENTS, wrong, 2, &offender), -EEXIST);
    wrong[1].event = EVENTS;
    CHECK_EQUAL(pr_transition_table_init(&table, STATES, EVENTS, wrong, 2, &offender), -EINVAL);
    CHECK_EQUAL(offender, 1);
    CHECK_EQUAL(pr_transition_table_init(&table, 0, EVENTS, wrong, 1, &offender), -EINVAL);
    CHECK_EQUAL(pr_transition_table_init(&table, 1 << 16, 1 << 16, wrong, 1, &offender), -EINVAL);
    REQUIRE_EQUAL(pr_transition_table_init(&table, 1, 1, NULL, 0, &offender), 0);
    CHECK_EQUAL(find(0, 0, 0), 0);
    pr_transition_table_deinit(&table);
}

int main(void)
{
    RUN(transitions_are_tried_in_the_order_given);
    RUN(where_nothing_fits_nothing_is_found);
    RUN(reaching_follows_every_transition);
    RUN(what_is_no_table_is_refused_and_named);
    return check_status();
}
