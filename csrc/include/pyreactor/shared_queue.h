/*
 * The shared queue: a bounded queue, first in first out, between processes, in one segment.  Any
 * process that takes part may be killed at any step of any operation; the queue goes on, and what
 * the dead had in hand is lost or delivered again, as its policy says.  See
 * docs/design/shared-ring.md.
 *
 *     a participant    an attachment; its number stands in the words of all that it holds
 *     a slot           a place in the ring.  Its word says which position it is for, its state, and
 *                      who put it there; whoever changes it does so with one compare-and-exchange,
 *                      so that there is no moment at which a slot is taken and nobody's
 *     tail, head       where to look first.  They may lag behind the slots, and anybody who sees
 *                      that moves them on
 *     a block          a piece of the arena, for items that do not fit into a slot; its word names
 *                      who claimed it
 *
 * An item that was got is its consumer's until pr_shared_queue_settle(), and occupies its place
 * until then.  Participants trust each other: one that writes nonsense can stop the others, though
 * not make them read outside of the segment.
 *
 * All functions: any thread, unless they say otherwise.
 */
#ifndef PYREACTOR_SHARED_QUEUE_H
#define PYREACTOR_SHARED_QUEUE_H

#include <assert.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/parker.h"
#include "pyreactor/participants.h"
#include "pyreactor/segment.h"

#define PR_SHARED_CACHE_LINE 64
#define PR_SHARED_CAPACITY_MAX (1u << 24)
#define PR_SHARED_ITEM_BYTES_MAX (1u << 20) /* in a slot; what is larger goes into blocks */
#define PR_SHARED_BLOCKS_MAX (1u << 20)
#define PR_SHARED_RECHECK_NS 200000000 /* how long a sleeper trusts that the others are alive */

/* What becomes of an item whose consumer dies before it has settled it. */
enum pr_shared_policy {
    PR_AT_MOST_ONCE,  /* it is lost */
    PR_AT_LEAST_ONCE, /* another consumer gets it */
};

struct pr_shared_options {
    uint32_t capacity;     /* items; rounded up to a power of two */
    uint32_t item_bytes;   /* of an item that lies in its slot */
    uint32_t block_bytes;  /* the size of a block */
    uint32_t blocks;       /* of all together; 0: items are no larger than item_bytes */
    uint32_t participants; /* at one time, at most */
    enum pr_shared_policy policy;
    int64_t spin_ns;    /* how long a thread looks again and again before it sleeps */
    int64_t recheck_ns; /* how long it sleeps before it looks whether somebody died */
};

struct pr_shared_slot {
    _Atomic(uint64_t) word;   /* position, participant, state */
    _Atomic(uint64_t) blocks; /* the word of the item's blocks; 0: it lies in `data` */
    _Atomic(uint32_t) first_block;
    uint16_t kind;       /* the putter's to choose */
    uint16_t deliveries; /* how many times it was got; UINT16_MAX is that or more */
    uint64_t size;
    char data[];
};

static_assert(sizeof(struct pr_shared_slot) == 32, "the layout is part of what processes agree on");

/* What the segment begins with. */
struct pr_shared_header {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes; /* its own size: another C library may have another mutex */
    uint32_t capacity;
    uint32_t item_bytes;
    uint32_t slot_bytes;
    uint32_t block_bytes;
    uint32_t blocks;
    uint32_t participants;
    uint32_t policy;
    int64_t recheck_ns;
    uint64_t segment_bytes;
    alignas(PR_SHARED_CACHE_LINE) _Atomic(uint64_t) tail; /* the next position to put at */
    alignas(PR_SHARED_CACHE_LINE) _Atomic(uint64_t) head; /* the next to get from */
    alignas(PR_SHARED_CACHE_LINE) _Atomic(uint32_t) closed;
    _Atomic(uint64_t) returned;      /* items that were given back to the queue, ever */
    _Atomic(uint64_t) returned_seen; /* how many of these have certainly been found */
    _Atomic(uint64_t) lost;          /* items whose consumer died */
    _Atomic(uint64_t) void_puts;     /* positions whose producer died */
    _Atomic(uint64_t) void_gets;     /* of these, those that the head has passed */
    _Atomic(uint64_t) deaths;        /* participants that died, and were cleared away */
    alignas(PR_SHARED_CACHE_LINE) struct pr_parker producers;   /* wait for a slot */
    alignas(PR_SHARED_CACHE_LINE) struct pr_parker consumers;   /* wait for an item */
    alignas(PR_SHARED_CACHE_LINE) struct pr_parker borrowers;   /* wait for blocks */
    alignas(PR_SHARED_CACHE_LINE) _Atomic(uint64_t) next_stamp; /* tells claims of a block apart */
    _Atomic(uint32_t) next_block;                           /* where to look first for free ones */
    alignas(PR_SHARED_CACHE_LINE) pthread_mutex_t clearing; /* robust: joining, leaving, clearing */
};

struct pr_shared_queue {
    struct pr_segment segment;
    struct pr_shared_header *header; /* in the segment, as all below */
    struct pr_participant *participants;
    char *slots;
    _Atomic(uint64_t) *block_words;
    char *blocks;
    uint64_t mask; /* the capacity less one: read from the header once, and not trusted again */
    uint32_t slot_bytes;
    uint32_t block_bytes;
    uint32_t block_count;
    uint32_t participant_count;
    uint32_t self;               /* our number among the participants */
    _Atomic(int64_t) checked_ns; /* when we last looked whether somebody died, without sleeping */
};

/* An item that was got and not settled yet. */
struct pr_shared_item {
    uint64_t position;
    uint64_t size;
    const char *data; /* lent: in the segment, until it is settled */
    uint16_t kind;
    uint16_t deliveries; /* this one included */
};

struct pr_shared_stats {
    uint64_t puts;
    uint64_t gets;
    uint64_t returned;
    uint64_t lost;
    uint64_t void_puts;
    uint64_t deaths;
    uint64_t put_sleeps;
    uint64_t get_sleeps;
    uint64_t put_wakes;
    uint64_t get_wakes;
};

/* What ends a thread's wait from within its process; zeroed at first. */
struct pr_shared_stop {
    _Atomic(bool) set;
};

/* A part of an item to be put. */
struct pr_shared_part {
    const void *data;
    size_t size;
};

/*
 * Makes an empty queue, and takes part in it.  Returns 0, -EINVAL where a number makes no sense, or
 * another negative errno.  One thread, before any other uses it.
 */
int pr_shared_queue_create(struct pr_shared_queue *queue, const struct pr_shared_options *options);

/*
 * Takes part in the queue that `fd` refers to, which stays the caller's.  Returns 0, -EINVAL where
 * it is no shared queue, -EPROTO where it is one of another version, -EUSERS where there are as
 * many participants as there can be, or another negative errno.  One thread, before any other uses
 * it.
 */
int pr_shared_queue_attach(struct pr_shared_queue *queue, int fd);

/*
 * Takes part no more.  What was got and not settled is treated as that of one who died.  One
 * thread, after all others.
 */
void pr_shared_queue_detach(struct pr_shared_queue *queue);

/*
 * In a forked child, takes part as somebody else than the parent, of whom this is a copy.  Returns
 * 0 or a negative errno; then the queue is of no use but to be detached.  The child's only thread.
 */
int pr_shared_queue_rejoin_after_fork(struct pr_shared_queue *queue);

/*
 * Puts an item made of `parts`, waiting for room until `deadline_ns` on the clock of pr_now_ns() at
 * most; INT64_MAX is for ever, 0 not at all.  Returns 0, -ETIMEDOUT, -ESHUTDOWN, -EMSGSIZE where it
 * can never fit, -EINTR where a signal handler ran, for the caller to call again, or -EUSERS where
 * too many threads sleep.
 */
int pr_shared_queue_put(struct pr_shared_queue *queue, const struct pr_shared_part *parts,
                        size_t count, uint16_t kind, int64_t deadline_ns);

/*
 * Gets the oldest item, waiting for one as pr_shared_queue_put() does for room.  Returns 0,
 * -ETIMEDOUT, -ESHUTDOWN where the queue is closed and there will be none, -EINTR, -EUSERS, or
 * -EBADMSG where what is in the slot makes no sense; that slot is dropped.
 */
int pr_shared_queue_get(struct pr_shared_queue *queue, struct pr_shared_item *item,
                        int64_t deadline_ns);

/*
 * Waits as pr_shared_queue_get() does, and takes nothing: after 0 the caller gets without waiting,
 * and may find that another was faster.  Returns -ECANCELED once `stop` is set.
 */
int pr_shared_queue_wait(struct pr_shared_queue *queue, struct pr_shared_stop *stop,
                         int64_t deadline_ns);

/* Sets it, and wakes those who wait with it. */
void pr_shared_queue_stop_wait(struct pr_shared_queue *queue, struct pr_shared_stop *stop);

/* Ends an item: its place and its blocks are free.  Once for each that was got, or give_back(). */
void pr_shared_queue_settle(struct pr_shared_queue *queue, const struct pr_shared_item *item);

/* Gives an item back to the queue: another get finds it, before all that are waiting. */
void pr_shared_queue_give_back(struct pr_shared_queue *queue, const struct pr_shared_item *item);

/* Lets no put succeed any more; what is in the queue can be got.  Does nothing the second time. */
void pr_shared_queue_close(struct pr_shared_queue *queue);

/* Whether it was closed. */
bool pr_shared_queue_is_closed(struct pr_shared_queue *queue);

/* How many items wait; while others put and get, how many did a moment ago, or nearly. */
size_t pr_shared_queue_depth(struct pr_shared_queue *queue);

/*
 * Clears away what participants that have died left.  Sleepers do it by themselves now and then;
 * this is for who learns of a death, from a pidfd for example.  Returns how many were dead.
 */
int pr_shared_queue_clear(struct pr_shared_queue *queue);

/* Reads what has been counted, by all participants together. */
void pr_shared_queue_read_stats(struct pr_shared_queue *queue, struct pr_shared_stats *stats);

#endif
