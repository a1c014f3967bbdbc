/*
 * Making a transition table: sorted by cell, so that a step is one look-up.
 */
#include "pyreactor/transition_table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Whether all numbers are in range; else `*offender` says which transition's are not. */
static bool is_in_range(uint32_t states, uint32_t events, const struct pr_transition *transitions,
                        size_t count, size_t *offender)
{
    *offender = 0;
    if (states == 0 || events == 0 || (uint64_t)states * events > PR_TRANSITION_CELLS_MAX ||
        count > PR_TRANSITION_CELLS_MAX)
        return false;
    for (size_t i = 0; i < count; i++) {
        *offender = i;
        if (transitions[i].source >= states || transitions[i].target >= states ||
            transitions[i].event >= events)
            return false;
    }
    return true;
}

static size_t cell_of(const struct pr_transition_table *table,
                      const struct pr_transition *transition)
{
    return (size_t)transition->source * table->events + transition->event;
}

/* Whether one without a guard stands before another of its cell; then `*offender` is the other.
 * Until the sort, `first` is free to note in which cells there is one. */
static bool has_shadowed(struct pr_transition_table *table, const struct pr_transition *transitions,
                         size_t count, size_t *offender)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t *always = &table->first[cell_of(table, &transitions[i])];
        *offender = i;
        if (*always)
            return true;
        *always = !transitions[i].guarded;
    }
    memset(table->first, 0, (size_t)table->states * table->events * sizeof *table->first);
    return false;
}

int pr_transition_table_init(struct pr_transition_table *table, uint32_t states, uint32_t events,
                             const struct pr_transition *transitions, size_t count,
                             size_t *offender)
{
    *table = (struct pr_transition_table){.states = states, .events = events};
    if (!is_in_range(states, events, transitions, count, offender))
        return -EINVAL;
    size_t cells = (size_t)states * events;
    table->first = calloc(cells + 1, sizeof *table->first);
    table->transitions = malloc((count ? count : 1) * sizeof *table->transitions);
    if (!table->first || !table->transitions) {
        pr_transition_table_deinit(table);
        return -ENOMEM;
    }

    if (has_shadowed(table, transitions, count, offender)) {
        pr_transition_table_deinit(table);
        return -EEXIST;
    }

    /* A counting sort.  Each cell's end, then backwards, which leaves each cell's beginning. */
    for (size_t i = 0; i < count; i++)
        table->first[cell_of(table, &transitions[i])]++;
    for (size_t cell = 1; cell <= cells; cell++)
        table->first[cell] += table->first[cell - 1];
    for (size_t i = count; i-- > 0;)
        table->transitions[--table->first[cell_of(table, &transitions[i])]] = transitions[i];
    return 0;
}

void pr_transition_table_deinit(struct pr_transition_table *table)
{
    free(table->first);
    free(table->transitions);
    table->first = NULL;
    table->transitions = NULL;
}

int pr_transition_table_reach(const struct pr_transition_table *table, uint32_t initial,
                              bool *reached)
{
    uint32_t *found = malloc(table->states * sizeof *found); /* each state once */
    if (!found)
        return -ENOMEM;
    memset(reached, 0, table->states * sizeof *reached);
    size_t count = 0;
    found[count++] = initial;
    reached[initial] = true;
    for (size_t next = 0; next < count; next++) {
        size_t cell = (size_t)found[next] * table->events;
        for (uint32_t i = table->first[cell]; i < table->first[cell + table->events]; i++) {
            uint32_t target = table->transitions[i].target;
            if (!reached[target]) {
                reached[target] = true;
                found[count++] = target;
            }
        }
    }
    free(found);
    return 0;
}
