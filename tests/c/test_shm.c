/*
 * The shared queue in one process, by several attachments and threads, and its segment and
 * participants.  What happens when processes are killed is tests/stress/shared_crash.c's.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/shared_words.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND)

static struct pr_shared_queue queue, other;

static int64_t soon_ns(void)
{
    return pr_now_ns() + PATIENCE_NS;
}

static void begin(uint32_t capacity, enum pr_shared_policy policy)
{
    struct pr_shared_options options = {
        .capacity = capacity,
        .item_bytes = 40,
        .block_bytes = 128,
        .blocks = 8,
        .participants = 4,
        .policy = policy,
        .recheck_ns = 20 * PR_NS_PER_MS,
    };
    REQUIRE_EQUAL(pr_shared_queue_create(&queue, &options), 0);
}

static int put_bytes(struct pr_shared_queue *to, const char *data, size_t size, int64_t deadline_ns)
{
    struct pr_shared_part part = {data, size};
    int result;
    do
        result = pr_shared_queue_put(to, &part, 1, 7, deadline_ns);
    while (result == -EINTR);
    return result;
}

static int put_text(const char *text)
{
    return put_bytes(&queue, text, strlen(text), 0);
}

static int get_from(struct pr_shared_queue *from, struct pr_shared_item *item, int64_t deadline_ns)
{
    int result;
    do
        result = pr_shared_queue_get(from, item, deadline_ns);
    while (result == -EINTR);
    return result;
}

static void check_get(struct pr_shared_queue *from, const char *text)
{
    struct pr_shared_item item;
    if (!CHECK_EQUAL(get_from(from, &item, 0), 0))
        return;
    CHECK_BYTES(item.data, item.size, text, strlen(text));
    CHECK_EQUAL(item.kind, 7);
    pr_shared_queue_settle(from, &item);
}

static uint32_t used_blocks(void)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < queue.block_count; i++)
        used += queue.block_words[i] != 0;
    return used;
}

static void options_that_make_no_sense_are_refused(void)
{
    struct pr_shared_options options = {.capacity = 4, .item_bytes = 8, .participants = 2};
    options.capacity = 0;
    CHECK_EQUAL(pr_shared_queue_create(&queue, &options), -EINVAL);
    options.capacity = PR_SHARED_CAPACITY_MAX + 1;
    CHECK_EQUAL(pr_shared_queue_create(&queue, &options), -EINVAL);
    options.capacity = 4;
    options.item_bytes = PR_SHARED_ITEM_BYTES_MAX + 1;
    CHECK_EQUAL(pr_shared_queue_create(&queue, &options), -EINVAL);
    options.item_bytes = 8;
    options.blocks = 1;
    CHECK_EQUAL(pr_shared_queue_create(&queue, &options), -EINVAL);
    options.blocks = 0;
    options.participants = PR_PARTICIPANTS_MAX + 1;
    CHECK_EQUAL(pr_shared_queue_create(&queue, &options), -EINVAL);
}

static void items_come_out_in_order_lap_after_lap(void)
{
    begin(3, PR_AT_MOST_ONCE);
    for (int lap = 0; lap < 5; lap++) {
        CHECK_EQUAL(put_text("a"), 0);
        CHECK_EQUAL(put_text("bc"), 0);
        CHECK_EQUAL(put_text(""), 0);
        CHECK_EQUAL(put_text("d"), 0);
        CHECK_EQUAL(put_text("e"), -ETIMEDOUT);
        CHECK_EQUAL(pr_shared_queue_depth(&queue), 4);
        check_get(&queue, "a");
        check_get(&queue, "bc");
        check_get(&queue, "");
        check_get(&queue, "d");
        struct pr_shared_item item;
        CHECK_EQUAL(get_from(&queue, &item, 0), -ETIMEDOUT);
        CHECK_EQUAL(pr_shared_queue_depth(&queue), 0);
    }
    struct pr_shared_stats stats;
    pr_shared_queue_read_stats(&queue, &stats);
    CHECK_EQUAL(stats.puts, 20);
    CHECK_EQUAL(stats.gets, 20);
    pr_shared_queue_detach(&queue);
}

static void positions_begin_anew_after_the_last(void)
{
    begin(4, PR_AT_MOST_ONCE);
    uint64_t start = PR_WORD_POSITIONS - 6;
    for (uint64_t i = 0; i < 4; i++)
        queue.header->tail = queue.header->head = start;
    for (uint64_t p = start; p < start + 4; p++)
        pr_slot_at(&queue, p)->word = pr_slot_word(p, PR_SLOT_EMPTY, 0);
    for (int i = 0; i < 20; i++) {
        CHECK_EQUAL(put_text("x"), 0);
        CHECK_EQUAL(put_text("y"), 0);
        check_get(&queue, "x");
        check_get(&queue, "y");
    }
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(put_text("z"), 0);
    CHECK_EQUAL(put_text("z"), -ETIMEDOUT);
    pr_shared_queue_detach(&queue);
}

static void large_items_go_into_blocks_and_give_them_back(void)
{
    char large[300], small[50];
    memset(large, 'L', sizeof large);
    memset(small, 's', sizeof small);
    begin(4, PR_AT_MOST_ONCE);
    for (int i = 0; i < 10; i++) {
        struct pr_shared_item item;
        CHECK_EQUAL(put_bytes(&queue, large, sizeof large, 0), 0);
        CHECK_EQUAL(put_bytes(&queue, small, sizeof small, 0), 0);
        CHECK_EQUAL(used_blocks(), 4);
        CHECK_EQUAL(put_bytes(&queue, large, sizeof large, 0), 0);
        CHECK_EQUAL(put_bytes(&queue, large, sizeof large, 0), -ETIMEDOUT);
        CHECK_EQUAL(used_blocks(), 7);
        REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
        CHECK_BYTES(item.data, item.size, large, sizeof large);
        pr_shared_queue_settle(&queue, &item);
        REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
        CHECK_BYTES(item.data, item.size, small, sizeof small);
        pr_shared_queue_settle(&queue, &item);
        REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
        pr_shared_queue_settle(&queue, &item);
        CHECK_EQUAL(used_blocks(), 0);
    }
    CHECK_EQUAL(put_bytes(&queue, large, 8 * 128 + 1, 0), -EMSGSIZE);
    pr_shared_queue_detach(&queue);
}

static void an_item_is_put_together_from_parts(void)
{
    struct pr_shared_part parts[] = {{"head ", 5}, {NULL, 0}, {"body", 4}};
    begin(4, PR_AT_MOST_ONCE);
    CHECK_EQUAL(pr_shared_queue_put(&queue, parts, 3, 7, 0), 0);
    check_get(&queue, "head body");
    pr_shared_queue_detach(&queue);
}

static void attachments_see_each_other(void)
{
    begin(4, PR_AT_MOST_ONCE);
    REQUIRE_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), 0);
    CHECK(other.self != queue.self);
    CHECK_EQUAL(put_text("hello"), 0);
    check_get(&other, "hello");
    uint32_t number = other.self;
    pr_shared_queue_detach(&other);
    REQUIRE_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), 0);
    CHECK_EQUAL(other.self, number);
    CHECK_EQUAL(queue.participants[number].generation, 2);
    CHECK_EQUAL(pr_shared_queue_clear(&queue), 0);
    pr_shared_queue_close(&other);
    CHECK_EQUAL(put_text("late"), -ESHUTDOWN);
    pr_shared_queue_detach(&other);
    pr_shared_queue_detach(&queue);
}

static void there_are_only_so_many_participants(void)
{
    struct pr_shared_queue more[4];
    begin(4, PR_AT_MOST_ONCE);
    for (int i = 0; i < 3; i++)
        REQUIRE_EQUAL(pr_shared_queue_attach(&more[i], queue.segment.fd), 0);
    CHECK_EQUAL(pr_shared_queue_attach(&more[3], queue.segment.fd), -EUSERS);
    for (int i = 0; i < 3; i++)
        pr_shared_queue_detach(&more[i]);
    pr_shared_queue_detach(&queue);
}

static void what_is_no_shared_queue_is_refused(void)
{
    struct pr_segment segment;
    int pipes[2];
    CHECK_EQUAL(pr_shared_queue_attach(&other, -1), -EBADF);
    REQUIRE_EQUAL(pipe(pipes), 0);
    CHECK_EQUAL(pr_shared_queue_attach(&other, pipes[0]), -EINVAL);
    close(pipes[0]);
    close(pipes[1]);
    REQUIRE_EQUAL(pr_segment_create(&segment, "test", 8192), 0);
    CHECK_EQUAL(pr_shared_queue_attach(&other, segment.fd), -EINVAL);
    CHECK_EQUAL(ftruncate(segment.fd, 100), -1);
    pr_segment_detach(&segment);
    begin(4, PR_AT_MOST_ONCE);
    queue.header->version++;
    CHECK_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), -EPROTO);
    queue.header->version--;
    queue.header->capacity = 1 << 20;
    CHECK_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), -EINVAL);
    pr_shared_queue_detach(&queue);
}

static void a_slot_with_nonsense_is_dropped(void)
{
    struct pr_shared_item item;
    begin(4, PR_AT_MOST_ONCE);
    CHECK_EQUAL(put_text("a"), 0);
    CHECK_EQUAL(put_text("b"), 0);
    pr_slot_at(&queue, 0)->size = 1 << 20;
    CHECK_EQUAL(get_from(&queue, &item, 0), -EBADMSG);
    check_get(&queue, "b");
    char large[300] = {0};
    CHECK_EQUAL(put_bytes(&queue, large, sizeof large, 0), 0);
    pr_slot_at(&queue, 2)->first_block = 7;
    CHECK_EQUAL(get_from(&queue, &item, 0), -EBADMSG);
    pr_shared_queue_detach(&queue);
}

static void closing_lets_gets_drain(void)
{
    struct pr_shared_item item;
    begin(4, PR_AT_MOST_ONCE);
    CHECK_EQUAL(put_text("a"), 0);
    pr_shared_queue_close(&queue);
    pr_shared_queue_close(&queue);
    CHECK(pr_shared_queue_is_closed(&queue));
    CHECK_EQUAL(put_text("b"), -ESHUTDOWN);
    check_get(&queue, "a");
    CHECK_EQUAL(get_from(&queue, &item, soon_ns()), -ESHUTDOWN);
    CHECK_EQUAL(get_from(&queue, &item, 0), -ESHUTDOWN);
    pr_shared_queue_detach(&queue);
}

static void what_is_given_back_comes_again_first(void)
{
    struct pr_shared_item item;
    begin(4, PR_AT_LEAST_ONCE);
    CHECK_EQUAL(put_text("a"), 0);
    CHECK_EQUAL(put_text("b"), 0);
    REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
    CHECK_BYTES(item.data, item.size, "a", 1);
    CHECK_EQUAL(item.deliveries, 1);
    pr_shared_queue_give_back(&queue, &item);
    REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
    CHECK_BYTES(item.data, item.size, "a", 1);
    CHECK_EQUAL(item.deliveries, 2);
    pr_shared_queue_settle(&queue, &item);
    REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
    CHECK_BYTES(item.data, item.size, "b", 1);
    CHECK_EQUAL(item.deliveries, 1);
    pr_shared_queue_settle(&queue, &item);
    CHECK_EQUAL(get_from(&queue, &item, 0), -ETIMEDOUT);
    pr_shared_queue_detach(&queue);
}

static void what_one_leaves_behind_another_gets_or_nobody(void)
{
    struct pr_shared_item item;
    char large[300] = {0};
    for (int policy = PR_AT_MOST_ONCE; policy <= PR_AT_LEAST_ONCE; policy++) {
        begin(4, (enum pr_shared_policy)policy);
        REQUIRE_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), 0);
        CHECK_EQUAL(put_bytes(&queue, large, sizeof large, 0), 0);
        CHECK_EQUAL(put_text("b"), 0);
        REQUIRE_EQUAL(get_from(&other, &item, 0), 0);
        pr_shared_queue_detach(&other);
        if (policy == PR_AT_LEAST_ONCE) {
            REQUIRE_EQUAL(get_from(&queue, &item, 0), 0);
            CHECK_EQUAL(item.size, sizeof large);
            pr_shared_queue_settle(&queue, &item);
        }
        CHECK_EQUAL(used_blocks(), 0);
        check_get(&queue, "b");
        struct pr_shared_stats stats;
        pr_shared_queue_read_stats(&queue, &stats);
        CHECK_EQUAL(stats.lost, policy == PR_AT_MOST_ONCE);
        pr_shared_queue_detach(&queue);
    }
}

static void a_closed_queue_ends_when_nothing_can_be_given_back(void)
{
    struct pr_shared_item item, none;
    begin(4, PR_AT_LEAST_ONCE);
    REQUIRE_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), 0);
    CHECK_EQUAL(put_text("a"), 0);
    REQUIRE_EQUAL(get_from(&other, &item, 0), 0);
    pr_shared_queue_close(&queue);
    CHECK_EQUAL(get_from(&queue, &none, 0), -ETIMEDOUT);
    CHECK_EQUAL(get_from(&other, &none, 0), -ESHUTDOWN);
    pr_shared_queue_give_back(&other, &item);
    check_get(&queue, "a");
    CHECK_EQUAL(get_from(&queue, &none, 0), -ESHUTDOWN);
    pr_shared_queue_detach(&other);
    pr_shared_queue_detach(&queue);
}

/* A child that dies by itself with what `leave` has made it hold. */
static void die_holding(void (*leave)(struct pr_shared_queue *child))
{
    pid_t child = fork();
    if (child == 0) {
        struct pr_shared_queue mine;
        if (pr_shared_queue_attach(&mine, queue.segment.fd) == 0)
            leave(&mine);
        _exit(0);
    }
    REQUIRE(child > 0);
    REQUIRE_EQUAL(waitpid(child, NULL, 0), child);
}

static void claim_and_die(struct pr_shared_queue *mine)
{
    uint64_t tail = mine->header->tail;
    struct pr_shared_slot *slot = pr_slot_at(mine, tail);
    pr_change_word(&slot->word, slot->word, pr_slot_word(tail, PR_SLOT_WRITING, mine->self));
}

static void get_and_die(struct pr_shared_queue *mine)
{
    struct pr_shared_item item;
    get_from(mine, &item, 0);
}

static void a_consumer_passes_over_what_a_dead_producer_began(void)
{
    begin(4, PR_AT_MOST_ONCE);
    die_holding(claim_and_die);
    CHECK_EQUAL(put_text("a"), 0);
    check_get(&queue, "a");
    CHECK_EQUAL(queue.header->deaths, 1);
    CHECK_EQUAL(queue.header->void_puts, 1);
    pr_shared_queue_detach(&queue);
}

static void a_sleeping_consumer_gets_what_a_dead_one_had(void)
{
    struct pr_shared_item item;
    begin(4, PR_AT_LEAST_ONCE);
    CHECK_EQUAL(put_text("a"), 0);
    die_holding(get_and_die);
    REQUIRE_EQUAL(get_from(&queue, &item, soon_ns()), 0);
    CHECK_BYTES(item.data, item.size, "a", 1);
    pr_shared_queue_settle(&queue, &item);
    pr_shared_queue_detach(&queue);
}

static void a_producer_gets_the_place_that_a_dead_consumer_held(void)
{
    begin(1, PR_AT_MOST_ONCE);
    CHECK_EQUAL(put_text("a"), 0);
    die_holding(get_and_die);
    CHECK_EQUAL(put_text("b"), 0);
    check_get(&queue, "b");
    CHECK_EQUAL(queue.header->lost, 1);
    pr_shared_queue_detach(&queue);
}

static void a_forked_child_is_a_participant_of_its_own(void)
{
    begin(4, PR_AT_MOST_ONCE);
    CHECK_EQUAL(put_text("to child"), 0);
    pid_t child = fork();
    if (child == 0) {
        uint32_t parent = queue.self;
        if (pr_shared_queue_rejoin_after_fork(&queue) < 0 || queue.self == parent)
            _exit(1);
        check_get(&queue, "to child");
        put_text("to parent");
        _exit(check_status());
    }
    int status;
    REQUIRE_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    check_get(&queue, "to parent");
    CHECK_EQUAL(pr_shared_queue_clear(&queue), 1);
    pr_shared_queue_detach(&queue);
}

/* Threads: each item once, those of one producer in order for each consumer. */

#define PRODUCERS 3
#define CONSUMERS 3
#define PUTS 4000

struct number {
    int producer;
    int sequence;
};

static _Atomic(long long) sum;
static _Atomic(int) got;

static void *produce(void *argument)
{
    struct number number = {*(int *)argument, 0};
    char bytes[200];
    for (; number.sequence < PUTS; number.sequence++) {
        /* Every fourth is too large for a slot. */
        size_t size = number.sequence % 4 == 0 ? sizeof bytes : sizeof number;
        memset(bytes, number.sequence & 0xff, sizeof bytes);
        memcpy(bytes, &number, sizeof number);
        REQUIRE_EQUAL(put_bytes(&queue, bytes, size, soon_ns()), 0);
    }
    return NULL;
}

static void *consume(void *argument)
{
    struct pr_shared_queue *from = argument;
    int next[PRODUCERS] = {0};
    for (;;) {
        struct pr_shared_item item;
        struct number number;
        int result = get_from(from, &item, soon_ns());
        if (result == -ESHUTDOWN)
            return NULL;
        REQUIRE_EQUAL(result, 0);
        memcpy(&number, item.data, sizeof number);
        for (uint64_t i = sizeof number; i < item.size; i++)
            REQUIRE_EQUAL((unsigned char)item.data[i], number.sequence & 0xff);
        pr_shared_queue_settle(from, &item);
        REQUIRE(number.sequence >= next[number.producer]);
        next[number.producer] = number.sequence + 1;
        atomic_fetch_add(&sum, number.sequence);
        atomic_fetch_add(&got, 1);
    }
}

static void threads_of_two_attachments_lose_nothing(void)
{
    pthread_t producers[PRODUCERS], consumers[CONSUMERS];
    int names[PRODUCERS];
    struct pr_shared_queue *second = &other;
    begin(2, PR_AT_MOST_ONCE);
    REQUIRE_EQUAL(pr_shared_queue_attach(&other, queue.segment.fd), 0);
#ifdef __SANITIZE_THREAD__
    second = &queue; /* it does not know that two addresses are the same memory */
#endif
    atomic_store(&sum, 0);
    atomic_store(&got, 0);
    for (int i = 0; i < CONSUMERS; i++)
        REQUIRE_EQUAL(pthread_create(&consumers[i], NULL, consume, i % 2 ? &queue : second), 0);
    for (int i = 0; i < PRODUCERS; i++) {
        names[i] = i;
        REQUIRE_EQUAL(pthread_create(&producers[i], NULL, produce, &names[i]), 0);
    }
    for (int i = 0; i < PRODUCERS; i++)
        pthread_join(producers[i], NULL);
    pr_shared_queue_close(&queue);
    for (int i = 0; i < CONSUMERS; i++)
        pthread_join(consumers[i], NULL);
    CHECK_EQUAL(atomic_load(&got), PRODUCERS * PUTS);
    CHECK_EQUAL(atomic_load(&sum), (long long)PRODUCERS * PUTS * (PUTS - 1) / 2);
    CHECK_EQUAL(used_blocks(), 0);
    pr_shared_queue_detach(&other);
    pr_shared_queue_detach(&queue);
}

int main(void)
{
    RUN(options_that_make_no_sense_are_refused);
    RUN(items_come_out_in_order_lap_after_lap);
    RUN(positions_begin_anew_after_the_last);
    RUN(large_items_go_into_blocks_and_give_them_back);
    RUN(an_item_is_put_together_from_parts);
    RUN(attachments_see_each_other);
    RUN(there_are_only_so_many_participants);
    RUN(what_is_no_shared_queue_is_refused);
    RUN(a_slot_with_nonsense_is_dropped);
    RUN(closing_lets_gets_drain);
    RUN(what_is_given_back_comes_again_first);
    RUN(what_one_leaves_behind_another_gets_or_nobody);
    RUN(a_closed_queue_ends_when_nothing_can_be_given_back);
    RUN(a_consumer_passes_over_what_a_dead_producer_began);
    RUN(a_sleeping_consumer_gets_what_a_dead_one_had);
    RUN(a_producer_gets_the_place_that_a_dead_consumer_held);
    RUN(a_forked_child_is_a_participant_of_its_own);
    RUN(threads_of_two_attachments_lose_nothing);
    return check_status();
}
