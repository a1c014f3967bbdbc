/*
 * Interests: which descriptors a demultiplexer waits for, where the kernel does not keep that set
 * itself.  A lock guards it, so that any thread may change it; a version tells a thread that waits
 * with a copy of the set that the copy is old.
 *
 * All functions: any thread; those that are named _locked, with the lock held.
 */
#ifndef PYREACTOR_INTERESTS_H
#define PYREACTOR_INTERESTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/demux.h"

struct pr_interest {
    bool used;
    uint32_t generation;
    uint32_t events;  /* as add() was told */
    uint32_t armed;   /* the PR_EVENTS_MASK part that is to be reported now */
    uint32_t token;   /* the demultiplexer's own, 0 at first */
    uint64_t changed; /* the version in which it got what it has */
};

struct pr_interests {
    pthread_mutex_t lock;
    struct pr_interest *items; /* owned; by descriptor */
    int capacity;
    int limit; /* above the largest descriptor in use */
    uint64_t version;
};

/* Makes an empty set; allocates nothing yet. */
void pr_interests_init(struct pr_interests *interests);

/* Frees the set. */
void pr_interests_deinit(struct pr_interests *interests);

/* As pr_demux_ops.add, without the kernel; PR_EDGE_TRIGGERED and PR_EXCLUSIVE give -EOPNOTSUPP. */
int pr_interests_add_locked(struct pr_interests *interests, int fd, uint32_t generation,
                            uint32_t events);

/* As pr_demux_ops.modify, without the kernel. */
int pr_interests_modify_locked(struct pr_interests *interests, int fd, uint32_t generation,
                               uint32_t events);

/* As pr_demux_ops.remove, without the kernel. */
int pr_interests_remove_locked(struct pr_interests *interests, int fd);

/* add(), modify() and remove() for a demultiplexer that copies the set for each wait: they change
 * it and nudge the one that waits, which says that it sleeps before it copies. */
int pr_interests_add(struct pr_interests *interests, struct pr_demux *demux, int fd,
                     uint32_t generation, uint32_t events);
int pr_interests_modify(struct pr_interests *interests, struct pr_demux *demux, int fd,
                        uint32_t generation, uint32_t events);
int pr_interests_remove(struct pr_interests *interests, struct pr_demux *demux, int fd);

/*
 * Fills `event` with what of `found` is armed for `fd`, disarms a one-shot interest, and returns
 * true; or returns false where nothing is.
 */
bool pr_interests_report_locked(struct pr_interests *interests, int fd, uint32_t found,
                                struct pr_ready_event *event);

/* What poll() says in our words: a hang-up or an error concerns reader and writer alike. */
uint32_t pr_events_of_poll(uint32_t poll_events);

/* What poll() is asked for. */
uint32_t pr_poll_of_events(uint32_t events);

/* The interest of `fd`, or NULL. */
static inline struct pr_interest *pr_interests_find_locked(struct pr_interests *interests, int fd)
{
    return fd >= 0 && fd < interests->limit && interests->items[fd].used ? &interests->items[fd]
                                                                         : NULL;
}

#endif
