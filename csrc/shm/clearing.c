/*
 * Clearing up after participants that died.  One does it at a time, under a robust lock; who dies
 * while doing it is among the dead of the next.  Every step is a compare-and-exchange from what the
 * dead left to what it should be, so that doing it twice does nothing.
 */
#include <errno.h>
#include <stdlib.h>

#include "pyreactor/crash_point.h"
#include "pyreactor/shared_words.h"

void pr_shared_lock(struct pr_shared_queue *queue)
{
    /* Whatever its dead holder had begun is what those who clear find, and finish. */
    if (pthread_mutex_lock(&queue->header->clearing) == EOWNERDEAD)
        pthread_mutex_consistent(&queue->header->clearing);
}

/* Frees the place of an item that its consumer, who died, had or was about to end. */
static bool clear_item(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t word)
{
    pr_slot_free_blocks(queue, slot);
    PR_CRASH_POINT("clear: blocks freed");
    return pr_change_word(&slot->word, word,
                          pr_slot_word(pr_word_position(word) + queue->mask + 1, PR_SLOT_EMPTY, 0));
}

/* Clears a slot that the dead held.  Only who clears touches it now. */
static void clear_slot(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t word)
{
    struct pr_shared_header *header = queue->header;
    uint64_t position = pr_word_position(word);
    switch (pr_word_state(word)) {
    case PR_SLOT_WRITING:
        if (pr_change_word(&slot->word, word, pr_slot_word(position, PR_SLOT_VOID, 0)))
            atomic_fetch_add_explicit(&header->void_puts, 1, memory_order_relaxed);
        break;
    case PR_SLOT_READING:
        if (header->policy == PR_AT_LEAST_ONCE)
            pr_change_word(&slot->word, word, pr_slot_word(position, PR_SLOT_RETURNED, 0));
        else if (clear_item(queue, slot, word))
            atomic_fetch_add_explicit(&header->lost, 1, memory_order_relaxed);
        break;
    case PR_SLOT_SETTLING:
        clear_item(queue, slot, word);
        break;
    default:
        break; /* no owner: what stands there is 0 */
    }
}

static void clear_slots(struct pr_shared_queue *queue, uint32_t participant)
{
    struct pr_shared_header *header = queue->header;
    bool returned = false;
    for (uint64_t i = 0; i <= queue->mask; i++) {
        struct pr_shared_slot *slot = pr_slot_at(queue, i);
        uint64_t word = pr_load_word(&slot->word);
        if (pr_word_owner(word) == participant)
            clear_slot(queue, slot, word);
        PR_CRASH_POINT("clear: one slot");
        returned |= pr_word_state(pr_load_word(&slot->word)) == PR_SLOT_RETURNED;
    }
    /* Those of one who died before saying so, too. */
    if (returned)
        atomic_fetch_add_explicit(&header->returned, 1, memory_order_seq_cst);
}

/* Whether an item that is in the queue, or being read, lies in the blocks of that claim. */
static bool is_referred_to(struct pr_shared_queue *queue, uint64_t block_word)
{
    for (uint64_t i = 0; i <= queue->mask; i++) {
        struct pr_shared_slot *slot = pr_slot_at(queue, i);
        uint64_t word = pr_load_word(&slot->word);
        enum pr_shared_state state = pr_word_state(word);
        if (state != PR_SLOT_FULL && state != PR_SLOT_READING && state != PR_SLOT_RETURNED)
            continue;
        /* The stamp in the word is of one claim: where it is the same, so is the item. */
        if (atomic_load_explicit(&slot->blocks, memory_order_relaxed) == block_word)
            return true;
    }
    return false;
}

static void clear_blocks(struct pr_shared_queue *queue, uint32_t participant)
{
    for (uint32_t block = 0; block < queue->block_count; block++) {
        uint64_t word = pr_load_word(&queue->block_words[block]);
        if (word == 0 || pr_word_owner(word) != participant || is_referred_to(queue, word))
            continue;
        pr_change_word(&queue->block_words[block], word, 0);
        PR_CRASH_POINT("clear: one block");
    }
}

void pr_shared_clear_one(struct pr_shared_queue *queue, uint32_t participant)
{
    struct pr_shared_header *header = queue->header;
    clear_slots(queue, participant);
    PR_CRASH_POINT("clear: slots done");
    clear_blocks(queue, participant);
    PR_CRASH_POINT("clear: blocks done");
    /* Among others for those who should have been woken by the dead, or in their place. */
    pr_unpark(&header->producers, PR_UNPARK_ALL);
    pr_unpark(&header->consumers, PR_UNPARK_ALL);
    pr_unpark(&header->borrowers, PR_UNPARK_ALL);
}

static int clear_dead(struct pr_shared_queue *queue)
{
    int dead = 0;
    for (uint32_t i = 0; i < queue->participant_count; i++) {
        if (i == queue->self || !pr_participant_is_dead(queue->participants, i, queue->segment.fd))
            continue;
        pr_shared_clear_one(queue, i);
        atomic_fetch_add_explicit(&queue->header->deaths, 1, memory_order_relaxed);
        PR_CRASH_POINT("clear: cleared");
        pr_participants_leave(queue->participants, i, queue->segment.fd);
        dead++;
    }
    return dead;
}

int pr_shared_queue_clear(struct pr_shared_queue *queue)
{
    pr_shared_lock(queue);
    int dead = clear_dead(queue);
    pthread_mutex_unlock(&queue->header->clearing);
    return dead;
}

int pr_shared_try_clear(struct pr_shared_queue *queue)
{
    int error = pthread_mutex_trylock(&queue->header->clearing);
    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(&queue->header->clearing);
    if (error != 0)
        return 0;
    int dead = clear_dead(queue);
    pthread_mutex_unlock(&queue->header->clearing);
    return dead;
}
