/*
 * A finite state machine's transitions as a table: for a state and an event, where to go.  States
 * and events are numbers from 0; names, guards and actions belong to whoever has the table, which
 * tells its transitions apart by `id`.  A table never changes: machines and threads share it.
 */
#ifndef PYREACTOR_TRANSITION_TABLE_H
#define PYREACTOR_TRANSITION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PR_TRANSITION_CELLS_MAX (1u << 24) /* states times events */

struct pr_transition {
    uint32_t source;
    uint32_t event;
    uint32_t target;
    uint32_t id;  /* the caller's */
    bool guarded; /* taken only where a guard allows it; else the next one is asked */
};

struct pr_transition_table {
    uint32_t states;
    uint32_t events;
    uint32_t *first;                   /* owned; by cell: where its transitions begin */
    struct pr_transition *transitions; /* owned; by cell, within it in the order given */
};

/*
 * Makes a table of `count` transitions, in the order in which those of one state and event are
 * tried.  Returns 0; -EINVAL for numbers out of range; -EEXIST where a transition can never be
 * taken because one before it always is; -ENOMEM.  `*offender` is then its place in the list.
 * Any thread.
 */
int pr_transition_table_init(struct pr_transition_table *table, uint32_t states, uint32_t events,
                             const struct pr_transition *transitions, size_t count,
                             size_t *offender);

/* Frees the table.  Any thread, once nobody walks it. */
void pr_transition_table_deinit(struct pr_transition_table *table);

/* Marks in `reached`, one for each state, those that can be reached from `initial`, guards aside.
 * Returns 0 or -ENOMEM.  Any thread. */
int pr_transition_table_reach(const struct pr_transition_table *table, uint32_t initial,
                              bool *reached);

/* The transitions of a state at an event, up to `*end`; the two are equal where there are none.
 * Any thread. */
static inline const struct pr_transition *
pr_transition_table_cell(const struct pr_transition_table *table, uint32_t state, uint32_t event,
                         const struct pr_transition **end)
{
    size_t cell = (size_t)state * table->events + event;
    *end = table->transitions + table->first[cell + 1];
    return table->transitions + table->first[cell];
}

/*
 * Finds the transition to take.  `allows` is asked about those that are guarded, and returns 1, 0
 * or a negative number, which is returned.  Returns 1 with `*taken`, or 0 where there is none.
 * Any thread.
 */
static inline int pr_transition_table_find(const struct pr_transition_table *table, uint32_t state,
                                           uint32_t event,
                                           int (*allows)(void *context, uint32_t id), void *context,
                                           const struct pr_transition **taken)
{
    const struct pr_transition *end,
        *transition = pr_transition_table_cell(table, state, event, &end);
    for (; transition != end; transition++) {
        int allowed = transition->guarded ? allows(context, transition->id) : 1;
        if (allowed) {
            *taken = transition;
            return allowed;
        }
    }
    return 0;
}

#endif
