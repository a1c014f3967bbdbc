/*
 * The arena of a shared queue: blocks for items that are larger than a slot.  A block is free where
 * its word is 0; whoever claims it writes a word that names it and this one claim, so that a late
 * second attempt to free it, by one who clears up after a consumer that died while freeing, finds
 * another word and does nothing.
 */
#include "pyreactor/crash_point.h"
#include "pyreactor/shared_words.h"

static bool claim_block(struct pr_shared_queue *queue, uint32_t index, uint64_t word)
{
    return atomic_load_explicit(&queue->block_words[index], memory_order_relaxed) == 0 &&
           pr_change_word(&queue->block_words[index], 0, word);
}

uint64_t pr_blocks_claim(struct pr_shared_queue *queue, uint32_t count, uint32_t *first)
{
    uint64_t stamp = atomic_fetch_add_explicit(&queue->header->next_stamp, 1, memory_order_relaxed);
    uint64_t word = pr_block_word(stamp, queue->self);
    uint32_t start =
        atomic_load_explicit(&queue->header->next_block, memory_order_relaxed) % queue->block_count;
    uint32_t run = 0;
    /* Once around, and as far beyond the start as a row that began before it may reach. */
    for (uint32_t seen = 0; seen < queue->block_count + count; seen++) {
        uint32_t index = (uint32_t)(((uint64_t)start + seen) % queue->block_count);
        if (index == 0 && run > 0) {
            pr_blocks_free(queue, queue->block_count - run, run, word);
            run = 0;
        }
        if (!claim_block(queue, index, word)) {
            if (run > 0)
                pr_blocks_free(queue, index - run, run, word);
            run = 0;
            continue;
        }
        PR_CRASH_POINT("claim: one block");
        if (++run == count) {
            *first = index - run + 1;
            atomic_store_explicit(&queue->header->next_block, index + 1, memory_order_relaxed);
            return word;
        }
    }
    if (run > 0) {
        uint32_t end = (start + queue->block_count + count - 1) % queue->block_count + 1;
        pr_blocks_free(queue, end - run, run, word);
    }
    return 0;
}

bool pr_blocks_has_run(struct pr_shared_queue *queue, uint32_t count)
{
    uint32_t run = 0;
    for (uint32_t index = 0; index < queue->block_count && run < count; index++)
        run = pr_load_word(&queue->block_words[index]) == 0 ? run + 1 : 0;
    return run >= count;
}

void pr_blocks_free(struct pr_shared_queue *queue, uint32_t first, uint32_t count, uint64_t word)
{
    for (uint32_t i = 0; i < count; i++) {
        pr_change_word(&queue->block_words[first + i], word, 0);
        PR_CRASH_POINT("free: one block");
    }
    /* All: nobody knows how many of them this is enough for. */
    pr_unpark(&queue->header->borrowers, PR_UNPARK_ALL);
}
