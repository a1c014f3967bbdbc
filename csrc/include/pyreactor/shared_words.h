/*
 * The words in a shared queue's segment: what they say, and the steps that change them.  Only the
 * files of csrc/shm/ include this.
 *
 * A slot's word for position p goes
 *
 *     EMPTY p -> WRITING p -> FULL p -> READING p -> EMPTY p + capacity
 *
 * and, where somebody dies or gives back, WRITING p -> VOID p -> EMPTY p + capacity, and
 * READING p -> RETURNED p -> READING p.  An item that has blocks is SETTLING p between READING p
 * and EMPTY p + capacity: it is not to be delivered again once the first of them is free.  CLOSED p
 * is put in the place of EMPTY p by the consumer that is the first to find nothing in a closed
 * queue: nothing comes after it.
 */
#ifndef PYREACTOR_SHARED_WORDS_H
#define PYREACTOR_SHARED_WORDS_H

#include "pyreactor/shared_queue.h"

enum pr_shared_state {
    PR_SLOT_EMPTY,
    PR_SLOT_WRITING,
    PR_SLOT_FULL,
    PR_SLOT_READING,
    PR_SLOT_RETURNED,
    PR_SLOT_VOID,
    PR_SLOT_CLOSED,
    PR_SLOT_SETTLING,
};

#define PR_WORD_STATE_BITS 3
#define PR_WORD_OWNER_BITS 12
#define PR_WORD_POSITION_SHIFT (PR_WORD_STATE_BITS + PR_WORD_OWNER_BITS)
#define PR_WORD_POSITIONS                                                                          \
    ((uint64_t)1 << (64 - PR_WORD_POSITION_SHIFT)) /* then they begin anew                         \
                                                    */
#define PR_BLOCK_STAMPS ((uint64_t)1 << (64 - PR_WORD_POSITION_SHIFT))

static_assert(PR_PARTICIPANTS_MAX <= 1 << PR_WORD_OWNER_BITS, "a word can name every participant");

/* A slot's word.  Any thread. */
static inline uint64_t pr_slot_word(uint64_t position, enum pr_shared_state state, uint32_t owner)
{
    return position % PR_WORD_POSITIONS << PR_WORD_POSITION_SHIFT |
           (uint64_t)owner << PR_WORD_STATE_BITS | (uint64_t)state;
}

/* What a word says.  Any thread. */
static inline enum pr_shared_state pr_word_state(uint64_t word)
{
    return (enum pr_shared_state)(word & ((1u << PR_WORD_STATE_BITS) - 1));
}
static inline uint32_t pr_word_owner(uint64_t word)
{
    return (uint32_t)(word >> PR_WORD_STATE_BITS) & ((1u << PR_WORD_OWNER_BITS) - 1);
}
static inline uint64_t pr_word_position(uint64_t word)
{
    return word >> PR_WORD_POSITION_SHIFT;
}

/* How far a word is ahead of a position: 0, or a capacity more or less.  Any thread. */
static inline int64_t pr_word_ahead(uint64_t word, uint64_t position)
{
    /* Both to the upper bits, so that the sign is right where positions begin anew. */
    uint64_t difference = (pr_word_position(word) - position) << PR_WORD_POSITION_SHIFT;
    return (int64_t)difference >> PR_WORD_POSITION_SHIFT;
}

/* The word of the blocks of one claim.  0 is a block that is free.  Any thread. */
static inline uint64_t pr_block_word(uint64_t stamp, uint32_t owner)
{
    return stamp % PR_BLOCK_STAMPS << PR_WORD_POSITION_SHIFT |
           (uint64_t)owner << PR_WORD_STATE_BITS | 1;
}

/* The slot of a position.  Any thread. */
static inline struct pr_shared_slot *pr_slot_at(struct pr_shared_queue *queue, uint64_t position)
{
    size_t offset = (size_t)(position & queue->mask) * queue->slot_bytes;
    return (struct pr_shared_slot *)(void *)(queue->slots + offset);
}

/* Loads a word in the order in which sleepers and wakers look.  Any thread. */
static inline uint64_t pr_load_word(_Atomic(uint64_t) *word)
{
    return atomic_load_explicit(word, memory_order_seq_cst);
}

/* Changes a word if it is still what was seen; a release, and in one order for all.  Any thread. */
static inline bool pr_change_word(_Atomic(uint64_t) *word, uint64_t seen, uint64_t next)
{
    return atomic_compare_exchange_strong_explicit(word, &seen, next, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

/* Moves a cursor on from a position that is done with, unless somebody has.  Any thread. */
static inline void pr_move_on(_Atomic(uint64_t) *cursor, uint64_t position)
{
    atomic_compare_exchange_strong_explicit(cursor, &position, position + 1, memory_order_seq_cst,
                                            memory_order_relaxed);
}

/*
 * Claims `count` blocks in a row.  Returns their word, and the first in `first`, or 0 where there
 * are not as many free ones in a row.  Any thread.
 */
uint64_t pr_blocks_claim(struct pr_shared_queue *queue, uint32_t count, uint32_t *first);

/* Whether as many are free in a row.  Any thread. */
bool pr_blocks_has_run(struct pr_shared_queue *queue, uint32_t count);

/* Frees those of `count` blocks that still belong to that claim; wakes who waits.  Any thread. */
void pr_blocks_free(struct pr_shared_queue *queue, uint32_t first, uint32_t count, uint64_t word);

/* How many blocks an item of that size takes.  Any thread. */
static inline uint32_t pr_blocks_for(struct pr_shared_queue *queue, uint64_t size)
{
    return (uint32_t)((size + queue->block_bytes - 1) / queue->block_bytes);
}

/* Whether an item's blocks lie in the arena: a slot may hold nonsense.  Any thread. */
static inline bool pr_blocks_are_sound(struct pr_shared_queue *queue, uint64_t first, uint64_t size)
{
    return first < queue->block_count &&
           size <= (queue->block_count - first) * (uint64_t)queue->block_bytes;
}

/*
 * Frees the blocks of the item that lies in a slot, if it has any.  Any thread of the one who holds
 * the slot.
 */
static inline void pr_slot_free_blocks(struct pr_shared_queue *queue, struct pr_shared_slot *slot)
{
    uint64_t word = atomic_load_explicit(&slot->blocks, memory_order_relaxed);
    uint32_t first = atomic_load_explicit(&slot->first_block, memory_order_relaxed);
    if (word != 0 && pr_blocks_are_sound(queue, first, slot->size))
        pr_blocks_free(queue, first, pr_blocks_for(queue, slot->size), word);
}

/* Locks what joining, leaving and clearing change, whoever died with it.  Any thread. */
void pr_shared_lock(struct pr_shared_queue *queue);

/*
 * Clears away what the dead left, unless somebody does already, who may be stopped: whoever sleeps
 * must not wait for that.  Returns how many were dead.  Any thread.
 */
int pr_shared_try_clear(struct pr_shared_queue *queue);

/* Clears one participant's things away, with the lock held.  Any thread. */
void pr_shared_clear_one(struct pr_shared_queue *queue, uint32_t participant);

#endif
