/*
 * Which demultiplexers there are, and what they have in common.
 */
#include "pyreactor/demux.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct pr_demux_ops *const demultiplexers[] = {
    &pr_demux_epoll_ops, &pr_demux_poll_ops,  &pr_demux_select_ops,
    &pr_demux_uring_ops, &pr_demux_sigio_ops,
};

const struct pr_demux_ops *pr_demux_find(const char *name)
{
    for (size_t i = 0; i < sizeof demultiplexers / sizeof *demultiplexers; i++)
        if (strcmp(demultiplexers[i]->name, name) == 0)
            return demultiplexers[i];
    return NULL;
}

int pr_demux_new(const struct pr_demux_ops *ops, struct pr_demux **demux)
{
    struct pr_demux *made = calloc(1, ops->size);
    if (!made)
        return -ENOMEM;
    made->ops = ops;
    atomic_init(&made->waiting, false);
    int error = pr_wakeup_init(&made->wakeup);
    if (error < 0)
        goto free_made;
    error = ops->init(made);
    if (error < 0)
        goto deinit_wakeup;
    *demux = made;
    return 0;

deinit_wakeup:
    pr_wakeup_deinit(&made->wakeup);
free_made:
    free(made);
    return error;
}

void pr_demux_free(struct pr_demux *demux)
{
    if (!demux)
        return;
    demux->ops->deinit(demux);
    pr_wakeup_deinit(&demux->wakeup);
    free(demux);
}

void pr_demux_nudge(struct pr_demux *demux)
{
    /* The one that waits says so before it looks at the set: it has seen the change, or sleeps. */
    if (atomic_load(&demux->wakeup.state) == PR_SLEEPING)
        demux->ops->wake(demux);
}
