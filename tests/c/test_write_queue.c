/*
 * The write queue, against the string of bytes that it stands for.
 */
#include "check.h"
#include "pyreactor/write_queue.h"

#define STEPS 50000
#define WRITE_BYTES_MAX 300
#define VECTORS_MAX 16

/* Byte `position` of all that is ever written. */
static char byte_at(size_t position)
{
    return (char)(position * 31 + position / 251);
}

/* What a write keeps alive: freed at its release, so that a sanitizer sees a late use. */
struct piece {
    size_t number;
    size_t end; /* the position behind its last byte */
    char data[];
};

static struct {
    size_t pushed_bytes, consumed_bytes;
    size_t pushed, released;
    void (*on_release)(void); /* what else a release sets off */
} model;

static void release(void *owner)
{
    struct piece *piece = owner;
    CHECK_EQUAL(piece->number, model.released);
    CHECK_AT_MOST(piece->end, model.consumed_bytes);
    model.released++;
    free(piece);
    if (model.on_release)
        model.on_release();
}

static void begin(struct pr_write_queue *queue)
{
    memset(&model, 0, sizeof model);
    pr_write_queue_init(queue, release);
}

static void push(struct pr_write_queue *queue, size_t size)
{
    struct piece *piece = malloc(sizeof *piece + size);
    REQUIRE(piece);
    for (size_t i = 0; i < size; i++)
        piece->data[i] = byte_at(model.pushed_bytes + i);
    piece->number = model.pushed++;
    model.pushed_bytes += size;
    piece->end = model.pushed_bytes;
    REQUIRE_EQUAL(pr_write_queue_push(queue, piece->data, size, piece), 0);
}

static void consume(struct pr_write_queue *queue, size_t size)
{
    model.consumed_bytes += size;
    pr_write_queue_consume(queue, size);
}

/* What the queue would send next is what was written next. */
static void require_agreement(const struct pr_write_queue *queue, int most)
{
    struct iovec vectors[VECTORS_MAX];
    REQUIRE_EQUAL(queue->bytes, model.pushed_bytes - model.consumed_bytes);
    REQUIRE_EQUAL(queue->count, model.pushed - model.released);
    int count = pr_write_queue_peek(queue, vectors, most);
    REQUIRE_EQUAL(count, queue->count < (size_t)most ? queue->count : (size_t)most);
    size_t position = model.consumed_bytes;
    for (int i = 0; i < count; i++) {
        REQUIRE(vectors[i].iov_len > 0);
        for (size_t j = 0; j < vectors[i].iov_len; j++, position++)
            if (((const char *)vectors[i].iov_base)[j] != byte_at(position))
                REQUIRE_EQUAL(position, SIZE_MAX);
    }
    if ((size_t)count == queue->count)
        REQUIRE_EQUAL(position, model.pushed_bytes);
}

static void end(struct pr_write_queue *queue)
{
    model.consumed_bytes = model.pushed_bytes;
    pr_write_queue_deinit(queue);
    CHECK_EQUAL(model.released, model.pushed);
}

static void an_empty_queue_has_nothing_to_send(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    require_agreement(&queue, VECTORS_MAX);
    pr_write_queue_consume(&queue, 0);
    pr_write_queue_clear(&queue);
    CHECK_EQUAL(model.released, 0);
    end(&queue);
}

static void an_owner_is_released_with_its_last_byte(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    push(&queue, 10);
    push(&queue, 20);
    consume(&queue, 9);
    CHECK_EQUAL(model.released, 0);
    consume(&queue, 1);
    CHECK_EQUAL(model.released, 1);
    consume(&queue, 19);
    CHECK_EQUAL(model.released, 1);
    require_agreement(&queue, VECTORS_MAX);
    consume(&queue, 1);
    CHECK_EQUAL(model.released, 2);
    end(&queue);
}

static void one_consume_may_end_several_writes_and_cut_the_next(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    for (int i = 0; i < 8; i++)
        push(&queue, 10);
    consume(&queue, 35);
    CHECK_EQUAL(model.released, 3);
    require_agreement(&queue, VECTORS_MAX);
    end(&queue);
}

static void clearing_releases_the_rest_in_order(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    for (int i = 0; i < 100; i++)
        push(&queue, 3);
    consume(&queue, 100);
    model.consumed_bytes = model.pushed_bytes;
    pr_write_queue_clear(&queue);
    CHECK_EQUAL(model.released, 100);
    require_agreement(&queue, VECTORS_MAX);
    push(&queue, 5); /* it can be used again */
    require_agreement(&queue, VECTORS_MAX);
    end(&queue);
}

static void a_short_queue_stays_in_its_inline_memory(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    push(&queue, 7);
    for (int i = 0; i < 1000; i++) { /* never empty: the window wanders */
        push(&queue, 7);
        consume(&queue, 7);
        require_agreement(&queue, VECTORS_MAX);
    }
    CHECK_EQUAL(queue.capacity, PR_WRITES_INLINE);
    CHECK_SAME(queue.writes, queue.inline_writes);
    end(&queue);
}

static void a_queue_that_wanders_does_not_grow_without_bound(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    for (int i = 0; i < 100; i++)
        push(&queue, 1);
    for (int i = 0; i < 10000; i++) {
        push(&queue, 1);
        consume(&queue, 1);
    }
    CHECK_AT_MOST(queue.capacity, 256);
    require_agreement(&queue, VECTORS_MAX);
    end(&queue);
}

static void any_sequence_of_pushes_peeks_and_consumes_agrees_with_the_bytes(void)
{
    struct pr_write_queue queue;
    uint64_t seed = 7;
    begin(&queue);
    for (int step = 0; step < STEPS; step++) {
        uint32_t choice = check_random(&seed) % 100;
        uint32_t pushes_of_hundred = step / 2000 % 2 ? 35 : 65;
        if (choice < pushes_of_hundred)
            push(&queue, 1 + check_random(&seed) % WRITE_BYTES_MAX);
        else if (choice < 99 && queue.bytes)
            consume(&queue, 1 + check_random(&seed) % (queue.bytes < 900 ? queue.bytes : 900));
        else if (choice == 99 && step % 20 == 0)
            consume(&queue, queue.bytes);
        require_agreement(&queue, 1 + (int)(check_random(&seed) % VECTORS_MAX));
    }
    end(&queue);
}

static struct pr_write_queue *released_from;

static void look_at_the_queue(void)
{
    struct iovec vectors[VECTORS_MAX];
    int count = pr_write_queue_peek(released_from, vectors, VECTORS_MAX);
    const char *next = NULL; /* the byte to go first */
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        if (!next && vectors[i].iov_len)
            next = vectors[i].iov_base;
        size += vectors[i].iov_len;
    }
    CHECK_EQUAL(size, released_from->bytes);
    if (next)
        CHECK_EQUAL(*next, byte_at(model.consumed_bytes));
}

/* An owner's end may set off anything, another send on the same stream, too. */
static void while_an_owner_is_released_the_queue_holds_what_has_not_left(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    released_from = &queue;
    model.on_release = look_at_the_queue;
    push(&queue, 10);
    push(&queue, 10);
    push(&queue, 10);
    consume(&queue, 15);
    consume(&queue, 15);
    model.on_release = NULL;
    end(&queue);
}

static void push_one_more(void)
{
    if (model.pushed < 10)
        push(released_from, 10);
}

static void a_release_may_push(void)
{
    struct pr_write_queue queue;
    begin(&queue);
    released_from = &queue;
    model.on_release = push_one_more;
    push(&queue, 10);
    for (int i = 0; i < 10; i++) {
        consume(&queue, 10);
        require_agreement(&queue, VECTORS_MAX);
    }
    end(&queue);
}

int main(void)
{
    RUN(an_empty_queue_has_nothing_to_send);
    RUN(an_owner_is_released_with_its_last_byte);
    RUN(one_consume_may_end_several_writes_and_cut_the_next);
    RUN(clearing_releases_the_rest_in_order);
    RUN(a_short_queue_stays_in_its_inline_memory);
    RUN(a_queue_that_wanders_does_not_grow_without_bound);
    RUN(any_sequence_of_pushes_peeks_and_consumes_agrees_with_the_bytes);
    RUN(while_an_owner_is_released_the_queue_holds_what_has_not_left);
    RUN(a_release_may_push);
    return check_status();
}
