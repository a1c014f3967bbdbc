/*
 * Putting and getting.  A position is claimed in its slot, by the exchange that also says who did;
 * the cursors follow.  So a claim needs no second step to be known, and one that dies is found.
 */
#include "pyreactor/shared_queue.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pyreactor/clock.h"
#include "pyreactor/crash_point.h"
#include "pyreactor/shared_words.h"

#define MAGIC 0x7570727175657565u
#define VERSION 2
#define TURNS_MAX                                                                                  \
    64 /* yields to one who is in the midst of a step, before asking if it is dead                 \
        */

static size_t round_up(size_t size, size_t unit)
{
    return (size + unit - 1) / unit * unit;
}

/* Where the parts of a segment begin; the sizes in `header` are sound. */
struct layout {
    size_t participants;
    size_t slots;
    size_t block_words;
    size_t blocks;
    size_t end;
};

static struct layout layout_of(const struct pr_shared_header *header)
{
    struct layout layout;
    layout.participants = round_up(sizeof *header, PR_SHARED_CACHE_LINE);
    layout.slots =
        round_up(layout.participants + header->participants * sizeof(struct pr_participant),
                 PR_SHARED_CACHE_LINE);
    layout.block_words = layout.slots + (size_t)header->capacity * header->slot_bytes;
    layout.blocks = round_up(layout.block_words + header->blocks * sizeof(uint64_t), 4096);
    layout.end = layout.blocks + (size_t)header->blocks * header->block_bytes;
    return layout;
}

/* Where two processes that have a header in common would disagree, or one was not made by us. */
static int check_header(const struct pr_shared_header *header, size_t segment_bytes)
{
    if (segment_bytes < sizeof *header || header->magic != MAGIC)
        return -EINVAL;
    if (header->version != VERSION || header->header_bytes != sizeof *header)
        return -EPROTO;
    if (header->capacity == 0 || header->capacity > PR_SHARED_CAPACITY_MAX ||
        (header->capacity & (header->capacity - 1)) != 0 ||
        header->item_bytes > PR_SHARED_ITEM_BYTES_MAX ||
        header->slot_bytes < sizeof(struct pr_shared_slot) + header->item_bytes ||
        header->slot_bytes % PR_SHARED_CACHE_LINE != 0 || header->participants == 0 ||
        header->participants > PR_PARTICIPANTS_MAX || header->blocks > PR_SHARED_BLOCKS_MAX ||
        (header->blocks > 0 && header->block_bytes == 0) ||
        header->segment_bytes != segment_bytes || layout_of(header).end > segment_bytes)
        return -EINVAL;
    return 0;
}

/* Fills in our view of a segment whose header is sound. */
static void look_into(struct pr_shared_queue *queue)
{
    char *memory = queue->segment.memory;
    struct pr_shared_header *header = queue->segment.memory;
    struct layout layout = layout_of(header);
    queue->header = header;
    queue->participants = (struct pr_participant *)(void *)(memory + layout.participants);
    queue->slots = memory + layout.slots;
    queue->block_words = (_Atomic(uint64_t) *)(void *)(memory + layout.block_words);
    queue->blocks = memory + layout.blocks;
    queue->mask = header->capacity - 1;
    queue->slot_bytes = header->slot_bytes;
    queue->block_bytes = header->block_bytes;
    queue->block_count = header->blocks;
    queue->participant_count = header->participants;
    atomic_init(&queue->checked_ns, pr_now_ns());
}

/* Takes part: with a number whose former holder, if it died, has been cleared away. */
static int join(struct pr_shared_queue *queue)
{
    queue->self = PR_PARTICIPANTS_MAX; /* nobody, while the dead are cleared away */
    pr_shared_queue_clear(queue);
    pr_shared_lock(queue);
    int index =
        pr_participants_join(queue->participants, queue->participant_count, queue->segment.fd);
    pthread_mutex_unlock(&queue->header->clearing);
    if (index < 0)
        return index;
    queue->self = (uint32_t)index;
    return 0;
}

static int init_clearing(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int error = pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return -error;
}

static int fill_header(struct pr_shared_header *header, const struct pr_shared_options *options)
{
    if (options->capacity == 0 || options->capacity > PR_SHARED_CAPACITY_MAX ||
        options->item_bytes > PR_SHARED_ITEM_BYTES_MAX)
        return -EINVAL;
    *header = (struct pr_shared_header){
        .magic = MAGIC,
        .version = VERSION,
        .header_bytes = sizeof *header,
        .capacity = 1,
        .item_bytes = options->item_bytes,
        .slot_bytes = (uint32_t)round_up(sizeof(struct pr_shared_slot) + options->item_bytes,
                                         PR_SHARED_CACHE_LINE),
        .block_bytes = options->block_bytes,
        .blocks = options->blocks,
        .participants = options->participants,
        .policy = options->policy,
        .recheck_ns = options->recheck_ns > 0 ? options->recheck_ns : PR_SHARED_RECHECK_NS,
    };
    while (header->capacity < options->capacity)
        header->capacity *= 2;
    if (header->participants == 0 || header->participants > PR_PARTICIPANTS_MAX)
        return -EINVAL;
    header->segment_bytes = layout_of(header).end;
    return check_header(header, header->segment_bytes);
}

int pr_shared_queue_create(struct pr_shared_queue *queue, const struct pr_shared_options *options)
{
    struct pr_shared_header header;
    int error = fill_header(&header, options);
    if (error < 0)
        return error;
    error = pr_segment_create(&queue->segment, "pyreactor-queue", header.segment_bytes);
    if (error < 0)
        return error;
    memcpy(queue->segment.memory, &header, sizeof header);
    look_into(queue);
    pr_parker_init_shared(&queue->header->producers, options->spin_ns);
    pr_parker_init_shared(&queue->header->consumers, options->spin_ns);
    pr_parker_init_shared(&queue->header->borrowers, 0);
    for (uint64_t position = 0; position <= queue->mask; position++)
        atomic_init(&pr_slot_at(queue, position)->word, pr_slot_word(position, PR_SLOT_EMPTY, 0));
    error = init_clearing(&queue->header->clearing);
    if (error == 0)
        error = join(queue);
    if (error < 0)
        pr_segment_detach(&queue->segment);
    return error;
}

int pr_shared_queue_attach(struct pr_shared_queue *queue, int fd)
{
    int error = pr_segment_attach(&queue->segment, fd);
    if (error < 0)
        return error;
    error = check_header(queue->segment.memory, queue->segment.size);
    if (error == 0) {
        look_into(queue);
        error = join(queue);
    }
    if (error < 0)
        pr_segment_detach(&queue->segment);
    return error;
}

void pr_shared_queue_detach(struct pr_shared_queue *queue)
{
    if (queue->self < queue->participant_count) {
        pr_shared_lock(queue);
        pr_shared_clear_one(queue, queue->self);
        pr_participants_leave(queue->participants, queue->self, queue->segment.fd);
        pthread_mutex_unlock(&queue->header->clearing);
    }
    pr_segment_detach(&queue->segment);
}

int pr_shared_queue_rejoin_after_fork(struct pr_shared_queue *queue)
{
    struct pr_segment own;
    int parents_fd = queue->segment.fd;
    queue->self = PR_PARTICIPANTS_MAX;
    /* The mapping is the child's already; only the open file, and with it the lock, is not. */
    int error = pr_segment_attach(&own, parents_fd);
    if (error < 0)
        return error;
    close(parents_fd);
    munmap(own.memory, own.size);
    queue->segment.fd = own.fd;
    return join(queue);
}

/* Clears up if the one who has a slot in that word is dead.  Returns whether to look again. */
static bool clear_if_dead(struct pr_shared_queue *queue, uint64_t word)
{
    uint32_t owner = pr_word_owner(word);
    return owner != queue->self && owner < queue->participant_count &&
           pr_participant_is_dead(queue->participants, owner, queue->segment.fd) &&
           pr_shared_try_clear(queue) > 0;
}

/* Claims the next position.  Returns its slot and the position, or NULL and an error. */
static struct pr_shared_slot *claim_slot(struct pr_shared_queue *queue, uint64_t *claimed,
                                         int *error)
{
    struct pr_shared_header *header = queue->header;
    for (;;) {
        if (pr_shared_queue_is_closed(queue)) {
            *error = -ESHUTDOWN;
            return NULL;
        }
        uint64_t tail = atomic_load_explicit(&header->tail, memory_order_seq_cst);
        struct pr_shared_slot *slot = pr_slot_at(queue, tail);
        uint64_t word = pr_load_word(&slot->word);
        int64_t ahead = pr_word_ahead(word, tail);
        if (ahead < 0) {
            /* An item of the lap before is still there. */
            bool held =
                pr_word_state(word) == PR_SLOT_READING || pr_word_state(word) == PR_SLOT_SETTLING;
            if (held && clear_if_dead(queue, word))
                continue;
            /* Where the tail has moved on meanwhile, what was seen was another's position. */
            if (atomic_load_explicit(&header->tail, memory_order_seq_cst) != tail)
                continue;
            *error = -EAGAIN;
            return NULL;
        }
        if (ahead == 0 && pr_word_state(word) == PR_SLOT_CLOSED) {
            *error = -ESHUTDOWN;
            return NULL;
        }
        if (ahead == 0 && pr_word_state(word) == PR_SLOT_EMPTY) {
            if (!pr_change_word(&slot->word, word,
                                pr_slot_word(tail, PR_SLOT_WRITING, queue->self)))
                continue;
            PR_CRASH_POINT("put: slot claimed");
            pr_move_on(&header->tail, tail);
            *claimed = tail;
            return slot;
        }
        pr_move_on(&header->tail, tail);
    }
}

static void copy_parts(char *to, const struct pr_shared_part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (parts[i].size > 0)
            memcpy(to, parts[i].data, parts[i].size);
        to += parts[i].size;
        PR_CRASH_POINT("put: part copied");
    }
}

/* Whether a position can be claimed, or the queue is closed. */
static bool has_room(void *argument)
{
    struct pr_shared_queue *queue = argument;
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_seq_cst);
    return pr_word_ahead(pr_load_word(&pr_slot_at(queue, tail)->word), tail) >= 0 ||
           pr_shared_queue_is_closed(queue);
}

/* Whether others have items that they may still give back. */
static bool others_are_reading(struct pr_shared_queue *queue)
{
    for (uint64_t i = 0; i <= queue->mask; i++) {
        uint64_t word = pr_load_word(&pr_slot_at(queue, i)->word);
        if (pr_word_state(word) == PR_SLOT_RETURNED ||
            (pr_word_state(word) == PR_SLOT_READING && pr_word_owner(word) != queue->self))
            return true;
    }
    return false;
}

/* Whether nothing will come any more, where the head's slot is free. */
static bool has_ended(struct pr_shared_queue *queue)
{
    return pr_shared_queue_is_closed(queue) &&
           (queue->header->policy == PR_AT_MOST_ONCE || !others_are_reading(queue));
}

static bool has_item(void *argument)
{
    struct pr_shared_queue *queue = argument;
    struct pr_shared_header *header = queue->header;
    uint64_t head = atomic_load_explicit(&header->head, memory_order_seq_cst);
    uint64_t word = pr_load_word(&pr_slot_at(queue, head)->word);
    int64_t ahead = pr_word_ahead(word, head);
    enum pr_shared_state state = pr_word_state(word);
    if (atomic_load_explicit(&header->returned, memory_order_seq_cst) !=
        atomic_load_explicit(&header->returned_seen, memory_order_seq_cst))
        return true;
    if (ahead != 0)
        return ahead > 0;
    if (state == PR_SLOT_EMPTY || state == PR_SLOT_CLOSED)
        return has_ended(queue);
    return state != PR_SLOT_WRITING;
}

struct block_wish {
    struct pr_shared_queue *queue;
    uint32_t count;
};

static bool has_blocks(void *argument)
{
    struct block_wish *wish = argument;
    return pr_blocks_has_run(wish->queue, wish->count) || pr_shared_queue_is_closed(wish->queue);
}

/*
 * Sleeps until `look` is true, but never longer than the queue's recheck time without looking
 * whether somebody died: a wake-up may have died with the one it was meant for.
 */
static int wait_for(struct pr_shared_queue *queue, struct pr_parker *parker, pr_parker_look *look,
                    void *argument, int64_t deadline_ns)
{
    for (;;) {
        int64_t recheck_ns = pr_now_ns() + queue->header->recheck_ns;
        bool last = deadline_ns <= recheck_ns;
        int result = pr_park(parker, look, argument, last ? deadline_ns : recheck_ns);
        if (result != -ETIMEDOUT)
            return result;
        pr_shared_try_clear(queue);
        if (look(argument))
            return 0;
        if (last)
            return -ETIMEDOUT;
    }
}

/* The same for those who never sleep: returns -ETIMEDOUT, or 0 to try again. */
static int look_for_the_dead(struct pr_shared_queue *queue)
{
    int64_t now_ns = pr_now_ns();
    int64_t checked_ns = atomic_load_explicit(&queue->checked_ns, memory_order_relaxed);
    if (now_ns - checked_ns < queue->header->recheck_ns)
        return -ETIMEDOUT;
    atomic_store_explicit(&queue->checked_ns, now_ns, memory_order_relaxed);
    return pr_shared_try_clear(queue) > 0 ? 0 : -ETIMEDOUT;
}

/* Blocks for an item, waiting for them. */
static int claim_blocks(struct pr_shared_queue *queue, uint64_t size, int64_t deadline_ns,
                        uint32_t *first, uint64_t *word)
{
    if (queue->block_count == 0 || size > (uint64_t)queue->block_count * queue->block_bytes)
        return -EMSGSIZE;
    struct block_wish wish = {queue, pr_blocks_for(queue, size)};
    for (;;) {
        if (pr_shared_queue_is_closed(queue))
            return -ESHUTDOWN;
        *word = pr_blocks_claim(queue, wish.count, first);
        if (*word != 0)
            return 0;
        int result = wait_for(queue, &queue->header->borrowers, has_blocks, &wish, deadline_ns);
        if (result < 0)
            return result;
    }
}

/* Makes a claimed slot's item whole, and wakes those who can go on. */
static void publish(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t position)
{
    PR_CRASH_POINT("put: written");
    pr_change_word(&slot->word, pr_slot_word(position, PR_SLOT_WRITING, queue->self),
                   pr_slot_word(position, PR_SLOT_FULL, 0));
    PR_CRASH_POINT("put: published");
    pr_unpark(&queue->header->consumers, 1);
    /* One who was woken for a place further on may have gone back to sleep before this one. */
    uint64_t next = pr_load_word(&pr_slot_at(queue, position + 1)->word);
    if (pr_word_ahead(next, position + 1) == 0 && pr_word_state(next) == PR_SLOT_EMPTY)
        pr_unpark(&queue->header->producers, 1);
}

int pr_shared_queue_put(struct pr_shared_queue *queue, const struct pr_shared_part *parts,
                        size_t count, uint16_t kind, int64_t deadline_ns)
{
    uint64_t size = 0;
    uint64_t blocks = 0;
    uint32_t first = 0;
    uint64_t position;
    int result = 0;
    for (size_t i = 0; i < count; i++)
        size += parts[i].size;
    if (size > queue->header->item_bytes) {
        result = claim_blocks(queue, size, deadline_ns, &first, &blocks);
        if (result < 0)
            return result;
        /* Before the slot, so that those behind it do not wait for the copy. */
        copy_parts(queue->blocks + (size_t)first * queue->block_bytes, parts, count);
    }
    struct pr_shared_slot *slot = claim_slot(queue, &position, &result);
    while (!slot) {
        if (result == -EAGAIN)
            result = deadline_ns == 0
                         ? look_for_the_dead(queue)
                         : wait_for(queue, &queue->header->producers, has_room, queue, deadline_ns);
        if (result < 0) {
            if (blocks != 0)
                pr_blocks_free(queue, first, pr_blocks_for(queue, size), blocks);
            return result;
        }
        slot = claim_slot(queue, &position, &result);
    }
    PR_CRASH_POINT("put: tail moved");
    slot->size = size;
    slot->kind = kind;
    slot->deliveries = 0;
    atomic_store_explicit(&slot->blocks, blocks, memory_order_relaxed);
    atomic_store_explicit(&slot->first_block, first, memory_order_relaxed);
    if (blocks == 0)
        copy_parts(slot->data, parts, count);
    publish(queue, slot, position);
    return 0;
}

/* Describes the item of a slot that we read.  Returns 0, or -EBADMSG. */
static int describe(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t position,
                    struct pr_shared_item *item)
{
    uint64_t blocks = atomic_load_explicit(&slot->blocks, memory_order_relaxed);
    uint32_t first = atomic_load_explicit(&slot->first_block, memory_order_relaxed);
    item->position = position;
    item->size = slot->size;
    item->kind = slot->kind;
    if (slot->deliveries < UINT16_MAX)
        slot->deliveries++;
    item->deliveries = slot->deliveries;
    item->data = blocks ? queue->blocks + (size_t)first * queue->block_bytes : slot->data;
    if (blocks ? pr_blocks_are_sound(queue, first, item->size)
               : item->size <= queue->slot_bytes - sizeof *slot)
        return 0;
    pr_shared_queue_settle(queue, item);
    return -EBADMSG;
}

/* Takes an item that was given back, if there is one.  Returns 1, 0 or an error. */
static int get_returned(struct pr_shared_queue *queue, struct pr_shared_item *item)
{
    struct pr_shared_header *header = queue->header;
    uint64_t returned = atomic_load_explicit(&header->returned, memory_order_seq_cst);
    uint64_t seen = atomic_load_explicit(&header->returned_seen, memory_order_seq_cst);
    if (returned == seen)
        return 0;
    for (uint64_t i = 0; i <= queue->mask; i++) {
        struct pr_shared_slot *slot = pr_slot_at(queue, i);
        uint64_t word = pr_load_word(&slot->word);
        uint64_t position = pr_word_position(word);
        if (pr_word_state(word) == PR_SLOT_RETURNED &&
            pr_change_word(&slot->word, word,
                           pr_slot_word(position, PR_SLOT_READING, queue->self))) {
            PR_CRASH_POINT("get: returned item claimed");
            int error = describe(queue, slot, position, item);
            return error < 0 ? error : 1;
        }
    }
    /* None is left of those counted so far; one that was given back since is counted after. */
    while (seen < returned &&
           !atomic_compare_exchange_weak_explicit(&header->returned_seen, &seen, returned,
                                                  memory_order_seq_cst, memory_order_seq_cst))
        ;
    return 0;
}

/* Where the head's slot is free: says so, and after it was closed, that nothing will come. */
static int say_empty(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t word,
                     uint64_t head)
{
    if (!pr_shared_queue_is_closed(queue))
        return -EAGAIN;
    if (pr_word_state(word) == PR_SLOT_EMPTY &&
        !pr_change_word(&slot->word, word, pr_slot_word(head, PR_SLOT_CLOSED, 0)))
        return 0; /* a put that began before the close */
    return has_ended(queue) ? -ESHUTDOWN : -EAGAIN;
}

/* Drops a position whose producer died. */
static void skip_void(struct pr_shared_queue *queue, struct pr_shared_slot *slot, uint64_t word,
                      uint64_t head)
{
    if (!pr_change_word(&slot->word, word, pr_slot_word(head + queue->mask + 1, PR_SLOT_EMPTY, 0)))
        return;
    atomic_fetch_add_explicit(&queue->header->void_gets, 1, memory_order_relaxed);
    PR_CRASH_POINT("get: void skipped");
    pr_move_on(&queue->header->head, head);
    pr_unpark(&queue->header->producers, 1);
}

/* What to do about one who is in the midst of writing.  Returns 0 to look again, or -EAGAIN. */
static int wait_turn(struct pr_shared_queue *queue, uint64_t word, unsigned *turns)
{
    if (++*turns <= TURNS_MAX) {
        sched_yield();
        return 0;
    }
    return clear_if_dead(queue, word) ? 0 : -EAGAIN;
}

static int try_get(struct pr_shared_queue *queue, struct pr_shared_item *item)
{
    struct pr_shared_header *header = queue->header;
    unsigned turns = 0;
    int result = get_returned(queue, item);
    if (result != 0)
        return result < 0 ? result : 0;
    for (;;) {
        uint64_t head = atomic_load_explicit(&header->head, memory_order_seq_cst);
        struct pr_shared_slot *slot = pr_slot_at(queue, head);
        uint64_t word = pr_load_word(&slot->word);
        int64_t ahead = pr_word_ahead(word, head);
        enum pr_shared_state state = ahead == 0 ? pr_word_state(word) : PR_SLOT_READING;
        if (ahead < 0) {
            /* The slot's item of the lap before is not settled: nothing was put after it. */
            if (atomic_load_explicit(&header->head, memory_order_seq_cst) != head)
                continue;
            return -EAGAIN;
        }
        result = 0;
        if (state == PR_SLOT_FULL) {
            if (!pr_change_word(&slot->word, word,
                                pr_slot_word(head, PR_SLOT_READING, queue->self)))
                continue;
            PR_CRASH_POINT("get: claimed");
            pr_move_on(&header->head, head);
            PR_CRASH_POINT("get: head moved");
            /* One who was woken for the next item may have found this one unwritten, and slept. */
            uint64_t next = pr_load_word(&pr_slot_at(queue, head + 1)->word);
            if (next == pr_slot_word(head + 1, PR_SLOT_FULL, 0))
                pr_unpark(&header->consumers, 1);
            return describe(queue, slot, head, item);
        }
        if (state == PR_SLOT_EMPTY || state == PR_SLOT_CLOSED)
            result = say_empty(queue, slot, word, head);
        else if (state == PR_SLOT_WRITING)
            result = wait_turn(queue, word, &turns);
        else if (state == PR_SLOT_VOID)
            skip_void(queue, slot, word, head);
        else
            pr_move_on(&header->head, head);
        if (result < 0)
            return result;
    }
}

int pr_shared_queue_get(struct pr_shared_queue *queue, struct pr_shared_item *item,
                        int64_t deadline_ns)
{
    for (;;) {
        int result = try_get(queue, item);
        if (result != -EAGAIN)
            return result;
        result = deadline_ns == 0
                     ? look_for_the_dead(queue)
                     : wait_for(queue, &queue->header->consumers, has_item, queue, deadline_ns);
        if (result < 0)
            return result;
    }
}

struct stoppable {
    struct pr_shared_queue *queue;
    struct pr_shared_stop *stop;
};

static bool has_item_or_stop(void *argument)
{
    struct stoppable *stoppable = argument;
    return atomic_load_explicit(&stoppable->stop->set, memory_order_seq_cst) ||
           has_item(stoppable->queue);
}

int pr_shared_queue_wait(struct pr_shared_queue *queue, struct pr_shared_stop *stop,
                         int64_t deadline_ns)
{
    struct stoppable stoppable = {queue, stop};
    int result =
        wait_for(queue, &queue->header->consumers, has_item_or_stop, &stoppable, deadline_ns);
    return result == 0 && atomic_load_explicit(&stop->set, memory_order_seq_cst) ? -ECANCELED
                                                                                 : result;
}

void pr_shared_queue_stop_wait(struct pr_shared_queue *queue, struct pr_shared_stop *stop)
{
    atomic_store_explicit(&stop->set, true, memory_order_seq_cst);
    pr_unpark(&queue->header->consumers, PR_UNPARK_ALL);
}

void pr_shared_queue_settle(struct pr_shared_queue *queue, const struct pr_shared_item *item)
{
    struct pr_shared_slot *slot = pr_slot_at(queue, item->position);
    uint64_t word = pr_slot_word(item->position, PR_SLOT_READING, queue->self);
    if (atomic_load_explicit(&slot->blocks, memory_order_relaxed) != 0) {
        uint64_t settling = pr_slot_word(item->position, PR_SLOT_SETTLING, queue->self);
        if (!pr_change_word(&slot->word, word, settling))
            return;
        PR_CRASH_POINT("settle: settling");
        word = settling;
        pr_slot_free_blocks(queue, slot);
        PR_CRASH_POINT("settle: blocks freed");
    }
    pr_change_word(&slot->word, word,
                   pr_slot_word(item->position + queue->mask + 1, PR_SLOT_EMPTY, 0));
    PR_CRASH_POINT("settle: settled");
    pr_unpark(&queue->header->producers, 1);
    if (pr_shared_queue_is_closed(queue))
        pr_unpark(&queue->header->consumers, PR_UNPARK_ALL); /* it may have been the last */
}

void pr_shared_queue_give_back(struct pr_shared_queue *queue, const struct pr_shared_item *item)
{
    struct pr_shared_slot *slot = pr_slot_at(queue, item->position);
    pr_change_word(&slot->word, pr_slot_word(item->position, PR_SLOT_READING, queue->self),
                   pr_slot_word(item->position, PR_SLOT_RETURNED, 0));
    PR_CRASH_POINT("give back: returned");
    atomic_fetch_add_explicit(&queue->header->returned, 1, memory_order_seq_cst);
    pr_unpark(&queue->header->consumers, 1);
}

void pr_shared_queue_close(struct pr_shared_queue *queue)
{
    atomic_store_explicit(&queue->header->closed, 1, memory_order_seq_cst);
    PR_CRASH_POINT("close: closed");
    pr_unpark(&queue->header->producers, PR_UNPARK_ALL);
    pr_unpark(&queue->header->consumers, PR_UNPARK_ALL);
    pr_unpark(&queue->header->borrowers, PR_UNPARK_ALL);
}

bool pr_shared_queue_is_closed(struct pr_shared_queue *queue)
{
    return atomic_load_explicit(&queue->header->closed, memory_order_seq_cst) != 0;
}

size_t pr_shared_queue_depth(struct pr_shared_queue *queue)
{
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_seq_cst);
    uint64_t depth = tail > head ? tail - head : 0;
    return (size_t)(depth > queue->mask ? queue->mask + 1 : depth);
}

void pr_shared_queue_read_stats(struct pr_shared_queue *queue, struct pr_shared_stats *stats)
{
    struct pr_shared_header *header = queue->header;
    uint64_t voids = atomic_load_explicit(&header->void_puts, memory_order_relaxed);
    *stats = (struct pr_shared_stats){
        .puts = atomic_load(&header->tail) - voids,
        .gets = atomic_load(&header->head) -
                atomic_load_explicit(&header->void_gets, memory_order_relaxed),
        .returned = atomic_load_explicit(&header->returned, memory_order_relaxed),
        .lost = atomic_load_explicit(&header->lost, memory_order_relaxed),
        .void_puts = voids,
        .deaths = atomic_load_explicit(&header->deaths, memory_order_relaxed),
        .put_sleeps = atomic_load_explicit(&header->producers.sleeps, memory_order_relaxed),
        .get_sleeps = atomic_load_explicit(&header->consumers.sleeps, memory_order_relaxed),
        .put_wakes = atomic_load_explicit(&header->producers.wakes, memory_order_relaxed),
        .get_wakes = atomic_load_explicit(&header->consumers.wakes, memory_order_relaxed),
    };
}
