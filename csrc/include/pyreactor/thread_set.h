/*
 * A thread set: the threads that take turns at a handle set.  At any time one of them at most is
 * the leader, which waits; the others handle events, or follow: they sleep, each on a word of its
 * own, so that one wakes exactly the one that is meant.
 *
 * A thread is in one of three states, which change along these lines only:
 *
 *     FOLLOWER   -> LEADER      promoted, or there was no leader when it joined
 *     FOLLOWER   -> PROCESSING  the leader gave it an event
 *     LEADER     -> PROCESSING  it has an event and has promoted a new leader
 *     LEADER     -> FOLLOWER    it gives up, at the end
 *     PROCESSING -> LEADER      done, and there is no leader
 *     PROCESSING -> FOLLOWER    done, and there is one
 */
#ifndef PYREACTOR_THREAD_SET_H
#define PYREACTOR_THREAD_SET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/handle_set.h"
#include "pyreactor/trace.h"

enum pr_thread_state { PR_FOLLOWER, PR_LEADER, PR_PROCESSING };

/* A thread of the set; embedded in its owner. */
struct pr_member {
    _Atomic(uint32_t) state; /* enum pr_thread_state; changes under the set's lock */
    _Atomic(uint32_t) bell;  /* the futex: counts what it is to wake up for */
    struct pr_member *next;  /* in the list of those who sleep */
    bool sleeping;           /* it is in that list */
    bool has_task;
    bool interrupted;          /* pr_thread_set_join() is to return */
    struct pr_event task;      /* what the leader gave it */
    _Atomic(uint64_t) led;     /* events that it waited for as the leader */
    _Atomic(uint64_t) handled; /* events that it handled */
};

struct pr_thread_set {
    pthread_mutex_t lock;
    struct pr_trace *trace; /* borrowed; NULL: none */
    bool delegating;        /* pr_thread_set_next() gives events to followers, if there are any */
    /* Under the lock: */
    struct pr_member *_Atomic leader;
    struct pr_member *followers; /* those who sleep, latest first: its cache is warm */
    bool closed;
    _Atomic(uint64_t) promotions;
    _Atomic(uint64_t) delegations;
    _Atomic(uint64_t) violations; /* state changes that are not in the list above: always 0 */
};

/* Makes an empty set.  Any thread. */
void pr_thread_set_init(struct pr_thread_set *set, struct pr_trace *trace, bool delegating);

/* Frees it.  Any thread, when no other uses it. */
void pr_thread_set_deinit(struct pr_thread_set *set);

/* Prepares a member, which begins as a follower.  Its own thread. */
void pr_member_init(struct pr_member *member);

/*
 * Joins the set as a follower, from PROCESSING or for the first time, and waits until the caller is
 * the leader (returns 0), or was given an event (returns 1), which it is PROCESSING then.  A leader
 * stays the leader.  Otherwise -ETIMEDOUT after `timeout_ns` (-1: no limit), -EINTR when a signal
 * or pr_thread_set_interrupt() ended the wait, -ESHUTDOWN where the set is closed.  The member's
 * thread.
 */
int pr_thread_set_join(struct pr_thread_set *set, struct pr_member *member, struct pr_event *event,
                       int64_t timeout_ns);

/*
 * Makes the follower that came last the leader, or leaves the set without one, and the caller
 * PROCESSING.  Returns 0, or -EPERM where the caller is not the leader.  The member's thread.
 */
int pr_thread_set_promote(struct pr_thread_set *set, struct pr_member *member);

/*
 * Gives an event to `follower`, or to any where that is NULL; the caller stays the leader.  Returns
 * 0, -EPERM where the caller is not the leader, or -EAGAIN where there is no such follower asleep.
 * The member's thread.
 */
int pr_thread_set_delegate(struct pr_thread_set *set, struct pr_member *member,
                           const struct pr_event *event, struct pr_member *follower);

/*
 * Waits for the next event to be handled by the caller: follows, leads, promotes.  Returns 1 with
 * the event, or a negative errno as join() and pr_handle_set_wait() do; the caller calls again
 * after -EINTR and leaves after the others.  The member's thread.
 */
int pr_thread_set_next(struct pr_thread_set *set, struct pr_handle_set *handles,
                       struct pr_member *member, struct pr_event *event);

/* Makes the member's join() return -EINTR, or its next one.  Any thread, while the member lives. */
void pr_thread_set_interrupt(struct pr_thread_set *set, struct pr_member *member);

/* Takes the caller out; a leader makes room for a follower.  The member's thread. */
void pr_thread_set_leave(struct pr_thread_set *set, struct pr_member *member);

/* Makes everybody leave; pr_handle_set_wake() is needed for the leader.  Any thread. */
void pr_thread_set_close(struct pr_thread_set *set);

#endif
