/*
 * The io_uring backend where it does more than tell readiness: it receives and sends by itself, and
 * moves from thread to thread.  What all backends have in common is in test_backend.c.
 *
 * An argument names how many steps the random test makes.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "backend_under_test.h"

static const struct pr_completion_ops *completion;
static unsigned random_steps = 60000;

/* What the test sends, and how it ended. */
struct sending {
    struct pr_send send;
    struct iovec vectors[2];
    int ends;
    int32_t result;
};

static int on_sent(struct pr_send *send, int32_t result)
{
    struct sending *sending = (struct sending *)send;
    sending->ends++;
    sending->result = result;
    return 0;
}

static void start_sending(struct sending *sending, int fd, const char *first, const char *second)
{
    *sending = (struct sending){.send = {.fd = fd, .on_sent = on_sent}};
    sending->vectors[0] = (struct iovec){.iov_base = (void *)first, .iov_len = strlen(first)};
    sending->vectors[1] = (struct iovec){.iov_base = (void *)second, .iov_len = strlen(second)};
    sending->send.message =
        (struct msghdr){.msg_iov = sending->vectors, .msg_iovlen = *second ? 2 : 1};
    REQUIRE_EQUAL(completion->send(&backend, &sending->send), 0);
}

/* Waits once and tells sends that they have ended, as the loop does.  Returns the other events. */
static int wait_and_tell(int64_t timeout_ns)
{
    int count = wait_for(timeout_ns), others = 0;
    REQUIRE(count >= 0);
    for (int i = 0; i < count; i++)
        if (events[i].events & PR_SENT)
            events[i].send->on_sent(events[i].send, events[i].result);
        else
            events[others++] = events[i];
    return others;
}

/* Waits until something other than a send's end has come: one event. */
static void expect_event(void)
{
    int count = 0;
    for (int i = 0; i < 10 && !count; i++)
        count = wait_and_tell(PR_NS_PER_SECOND);
    REQUIRE_EQUAL(count, 1);
}

static void expect_data(int fd, uint32_t generation, const char *expected)
{
    expect_event();
    CHECK_EQUAL(events[0].fd, fd);
    CHECK_EQUAL(events[0].generation, generation);
    CHECK_EQUAL(events[0].events, PR_RECEIVED);
    REQUIRE_EQUAL(events[0].result, (int)strlen(expected));
    CHECK(memcmp(events[0].data, expected, strlen(expected)) == 0);
    completion->return_data(&backend, &events[0]);
}

static void write_text(int fd, const char *text)
{
    REQUIRE_EQUAL(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void bytes_come_without_being_asked_for_again(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 5, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    for (int i = 0; i < 1000; i++) { /* more than there are buffers */
        write_text(pair[1], "some bytes");
        expect_data(pair[0], 5, "some bytes");
    }
    close(pair[1]);
    expect_event();
    CHECK_EQUAL(events[0].result, 0);
    close(pair[0]);
    close_backend();
}

/* Appends what PR_RECEIVED events bring to `text` until it is `size` bytes long. */
static void collect(char *text, size_t size)
{
    size_t length = strlen(text);
    while (length < size) {
        int count = wait_for(PR_NS_PER_SECOND);
        REQUIRE(count > 0);
        for (int i = 0; i < count; i++) {
            REQUIRE(events[i].result > 0 && length + (size_t)events[i].result <= size);
            memcpy(text + length, events[i].data, (size_t)events[i].result);
            length += (size_t)events[i].result;
            completion->return_data(&backend, &events[i]);
        }
    }
    text[length] = 0;
}

static void what_comes_when_nobody_wants_it_is_held_in_order(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    write_text(pair[1], "one ");
    REQUIRE_EQUAL(wait_for(PR_NS_PER_SECOND), 1);
    completion->hold_data(&backend, &events[0]);
    completion->return_data(&backend, &events[0]);
    write_text(pair[1], "two ");
    REQUIRE_EQUAL(update(pair[0], 1, PR_RECEIVED, 0), 0);
    write_text(pair[1], "three");
    CHECK_EQUAL(wait_for(0), 0);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    char text[32] = "";
    collect(text, strlen("one two three"));
    CHECK_TEXT(text, "one two three");
    close_pair(pair);
    close_backend();
}

/* What a wait has reported is older than what the kernel brought while something else was ended,
 * although it may be dealt with later. */
static void what_was_reported_comes_before_what_was_settled_since(void)
{
    struct pr_ready_event event;
    int pair[2], other[2];
    open_backend();
    open_pair(pair);
    open_pair(other);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    REQUIRE_EQUAL(update(other[0], 2, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    write_text(pair[1], "one ");
    REQUIRE_EQUAL(wait_for(PR_NS_PER_SECOND), 1);
    struct pr_ready_event reported = events[0];
    write_text(pair[1], "two ");
    REQUIRE_EQUAL(completion->end_receive(&backend, other[0], &event), 0);
    char text[32] = "";
    if (completion->holds_older(&backend, &reported))
        completion->hold_data(&backend, &reported);
    else
        memcpy(text, reported.data, (size_t)reported.result);
    completion->return_data(&backend, &reported);
    write_text(pair[1], "three");
    collect(text, strlen("one two three"));
    CHECK_TEXT(text, "one two three");
    close_pair(pair);
    close_pair(other);
    close_backend();
}

static bool memory_is_out;

void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);

void *__wrap_realloc(void *memory, size_t size)
{
    return memory_is_out ? NULL : __real_realloc(memory, size);
}

static void without_memory_the_held_stream_ends_with_an_error(void)
{
    for (int had = 0; had < 2; had++) { /* without and with bytes held before */
        int pair[2];
        open_backend();
        open_pair(pair);
        REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
        CHECK_EQUAL(wait_for(0), 0);
        write_text(pair[1], "text");
        REQUIRE_EQUAL(wait_for(PR_NS_PER_SECOND), 1);
        struct pr_ready_event event = events[0];
        if (had)
            completion->hold_data(&backend, &event);
        memory_is_out = true;
        completion->hold_data(&backend, &event);
        memory_is_out = false;
        completion->hold_data(&backend, &event); /* after the gap: nobody may have it */
        completion->return_data(&backend, &event);
        REQUIRE_EQUAL(wait_for(PR_NS_PER_SECOND), had + 1);
        if (had) {
            CHECK_EQUAL(events[0].result, 4);
            CHECK(!memcmp(events[0].data, "text", 4));
            completion->return_data(&backend, &events[0]);
        }
        CHECK_EQUAL(events[had].result, -ENOMEM);
        close_pair(pair);
        close_backend();
    }
}

static void an_ended_receive_has_brought_all_or_left_it_to_others(void)
{
    struct pr_ready_event event;
    char rest[32];
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(completion->end_receive(&backend, 1 << 20, &event), 0); /* never heard of */
    CHECK_EQUAL(event.result, 0);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    write_text(pair[1], "one ");
    write_text(pair[1], "two ");
    REQUIRE_EQUAL(completion->end_receive(&backend, pair[0], &event), 0);
    REQUIRE(event.result >= 0);
    write_text(pair[1], "three");
    ssize_t size = recv(pair[0], rest, sizeof rest, MSG_DONTWAIT);
    CHECK_EQUAL(event.result + size, (int)strlen("one two three"));
    if (event.data)
        CHECK(memcmp(event.data, "one two three", (size_t)event.result) == 0);
    completion->return_data(&backend, &event);

    /* The end is told to whoever receives next, as well. */
    REQUIRE_EQUAL(update(pair[0], 1, PR_RECEIVED, 0), 0);
    REQUIRE_EQUAL(update(pair[0], 2, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    close(pair[1]);
    REQUIRE_EQUAL(completion->end_receive(&backend, pair[0], &event), 0);
    CHECK_EQUAL(event.result, 0);
    CHECK_EQUAL(recv(pair[0], rest, sizeof rest, MSG_DONTWAIT), 0);
    close(pair[0]);
    close_backend();
}

/* Readiness is not reported before the bytes that a receive has taken out of the socket. */
static void held_bytes_come_before_readiness(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    write_text(pair[1], "first");
    REQUIRE_EQUAL(update(pair[0], 1, PR_RECEIVED, PR_READABLE), 0);
    expect_event();
    if (events[0].events == PR_RECEIVED) { /* the receive was faster than its end */
        CHECK_EQUAL(events[0].result, 5);
        completion->return_data(&backend, &events[0]);
        write_text(pair[1], "second");
        expect_event();
    }
    CHECK_EQUAL(events[0].events & ~(uint32_t)PR_WRITABLE, PR_READABLE);
    close_pair(pair);
    close_backend();
}

static void a_new_life_of_a_descriptor_hears_nothing_of_the_old(void)
{
    int pair[2];
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    CHECK_EQUAL(wait_for(0), 0);
    write_text(pair[1], "old");
    REQUIRE_EQUAL(update(pair[0], 1, PR_RECEIVED, 0), 0);
    int number = pair[0];
    close_pair(pair);
    open_pair(pair);
    REQUIRE_EQUAL(pair[0], number);
    REQUIRE_EQUAL(update(pair[0], 2, 0, PR_RECEIVED), 0);
    write_text(pair[1], "new");
    expect_data(pair[0], 2, "new");
    close_pair(pair);
    close_backend();
}

/* The peer sees the end at once, although a receive held the file a moment ago. */
static void a_close_after_the_end_of_interest_is_a_close(void)
{
    static const uint32_t interests[] = {PR_RECEIVED, PR_READABLE, PR_READABLE | PR_WRITABLE};
    for (size_t i = 0; i < sizeof interests / sizeof *interests; i++) {
        int pair[2];
        char byte;
        open_backend();
        open_pair(pair);
        REQUIRE_EQUAL(update(pair[0], 1, 0, interests[i]), 0);
        (void)wait_for(0);
        (void)wait_for(0);
        REQUIRE_EQUAL(update(pair[0], 1, interests[i], 0), 0);
        close(pair[0]);
        CHECK_EQUAL(read(pair[1], &byte, 1), 0);
        close(pair[1]);
        close_backend();
    }
}

static void a_send_leaves_with_the_wait(void)
{
    int pair[2];
    char text[32] = "";
    struct sending sending;
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(wait_for(0), 0);
    start_sending(&sending, pair[0], "head ", "and body");
    CHECK_EQUAL(read(pair[1], text, sizeof text), -1);
    CHECK_EQUAL(wait_and_tell(0), 0);
    CHECK_EQUAL(sending.ends, 1);
    CHECK_EQUAL(sending.result, 13);
    CHECK_EQUAL(read(pair[1], text, sizeof text), 13);
    CHECK_TEXT(text, "head and body");
    close_pair(pair);
    close_backend();
}

static void fill(int fd)
{
    static char block[65536];
    while (write(fd, block, sizeof block) > 0)
        ;
}

static void a_send_that_is_settled_is_not_reported(void)
{
    struct sending sending = {0};
    char text[16];
    int pair[2];
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(wait_for(0), 0);
    start_sending(&sending, pair[0], "abc", "");
    CHECK(completion->settle_send(&backend, &sending.send));
    CHECK_EQUAL(sending.send.result, 3);
    CHECK_EQUAL(recv(pair[1], text, sizeof text, MSG_DONTWAIT), 3);
    fill(pair[0]);
    start_sending(&sending, pair[0], "abc", "");
    CHECK(!completion->settle_send(&backend, &sending.send));
    close(pair[1]);
    CHECK(completion->settle_send(&backend, &sending.send));
    CHECK_EQUAL(sending.send.result, -EPIPE);
    CHECK_EQUAL(wait_for(0), 0);
    close(pair[0]);
    close_backend();
}

static void a_send_to_nobody_ends_with_an_error_and_no_signal(void)
{
    int pair[2];
    struct sending sending;
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(wait_for(0), 0);
    close(pair[1]);
    start_sending(&sending, pair[0], "lost", "");
    CHECK_EQUAL(wait_and_tell(0), 0);
    CHECK_EQUAL(sending.ends, 1);
    CHECK_EQUAL(sending.result, -EPIPE);
    close(pair[0]);
    close_backend();
}

/* Fills the socket, so that a further send stays under way. */
static void a_send_that_is_cancelled_ends_once(void)
{
    int pair[2];
    struct sending sending;
    open_backend();
    open_pair(pair);
    fill(pair[0]);
    CHECK_EQUAL(wait_for(0), 0);
    start_sending(&sending, pair[0], "stuck", "");
    CHECK_EQUAL(wait_and_tell(0), 0);
    CHECK_EQUAL(sending.ends, 0);
    completion->cancel_send(&backend, &sending.send);
    close_pair(pair);
    for (int i = 0; i < 10 && !sending.ends; i++)
        wait_and_tell(PR_NS_PER_MS);
    CHECK_EQUAL(sending.ends, 1);
    CHECK(sending.result < 0);
    CHECK_EQUAL(wait_and_tell(0), 0);
    CHECK_EQUAL(sending.ends, 1);
    close_backend();
}

static void the_end_of_the_backend_ends_every_send_once(void)
{
    int pair[2];
    struct sending sendings[3];
    open_backend();
    open_pair(pair);
    fill(pair[0]);
    CHECK_EQUAL(wait_for(0), 0);
    for (int i = 0; i < 3; i++)
        start_sending(&sendings[i], pair[0], "stuck", "");
    CHECK_EQUAL(wait_and_tell(0), 0);
    close_backend();
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(sendings[i].ends, 1);
    close_pair(pair);
}

struct run {
    int fd;
    uint32_t generation;
    const char *expected;
};

static void *run_in_thread(void *argument)
{
    struct run *run = argument;
    expect_data(run->fd, run->generation, run->expected);
    completion->quiesce(&backend);
    return NULL;
}

static void one_thread_after_the_other_may_wait(void)
{
    int pair[2];
    struct sending sending;
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 9, 0, PR_RECEIVED), 0);
    write_text(pair[1], "here");
    expect_data(pair[0], 9, "here");
    fill(pair[0]);
    start_sending(&sending, pair[0], "under way", "");
    CHECK_EQUAL(wait_and_tell(0), 0);
    completion->quiesce(&backend); /* as at the end of a run */
    write_text(pair[1], "there");
    pthread_t thread;
    struct run run = {pair[0], 9, "there"};
    REQUIRE_EQUAL(pthread_create(&thread, NULL, run_in_thread, &run), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(sending.ends, 1);
    CHECK(sending.result < 0);
    write_text(pair[1], "and back");
    expect_data(pair[0], 9, "and back");
    close_pair(pair);
    close_backend();
}

/* More sends under way than the completion ring has places. */
static void sends_that_wait_for_room_are_reported_once_each(void)
{
    enum { COUNT = 6000 };
    static struct sending sendings[COUNT];
    int pair[2];
    char bytes[COUNT];
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(wait_for(0), 0);
    for (int i = 0; i < COUNT; i++)
        start_sending(&sendings[i], pair[0], "x", "");
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    write_text(pair[1], "also");
    int others = 0, ended = 0;
    for (int round = 0; round < 10 * COUNT && (ended < COUNT || !others); round++) {
        if (wait_and_tell(0)) {
            others++;
            CHECK_EQUAL(events[0].result, 4);
            completion->return_data(&backend, &events[0]);
        }
        if (round % 50 == 0) /* a socket holds some hundred messages: the others wait for room */
            while (read(pair[1], bytes, sizeof bytes) > 0)
                ;
        for (ended = 0; ended < COUNT && sendings[ended].ends; ended++)
            ;
    }
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQUAL(sendings[i].ends, 1);
        CHECK_EQUAL(sendings[i].result, 1);
    }
    CHECK_EQUAL(others, 1);
    close_pair(pair);
    close_backend();
}

/* They end as they are begun, before anybody waits: the ring overflows, and has to be emptied. */
static void sends_that_end_at_once_overflow_the_ring_and_are_reported_once_each(void)
{
    enum { COUNT = 6000 };
    static struct sending sendings[COUNT];
    int pair[2];
    open_backend();
    open_pair(pair);
    CHECK_EQUAL(wait_for(0), 0);
    close(pair[1]);
    for (int i = 0; i < COUNT; i++)
        start_sending(&sendings[i], pair[0], "x", "");
    int ended = 0;
    for (int round = 0; round < COUNT && ended < COUNT; round++) {
        CHECK_EQUAL(wait_and_tell(0), 0);
        for (; ended < COUNT && sendings[ended].ends; ended++)
            ;
    }
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQUAL(sendings[i].ends, 1);
        CHECK_EQUAL(sendings[i].result, -EPIPE);
    }
    close(pair[0]);
    close_backend();
}

/* All of the kernel's buffers are lent: receiving pauses, and loses nothing. */
static void without_buffers_receiving_waits_for_their_return(void)
{
    enum { BYTES = 3 << 20, KEPT_MAX = 1000 };
    static char block[65536];
    static struct pr_ready_event kept[KEPT_MAX];
    int pair[2], keeping = 0;
    size_t written = 0, received = 0;
    open_backend();
    open_pair(pair);
    REQUIRE_EQUAL(update(pair[0], 1, 0, PR_RECEIVED), 0);
    for (int round = 0; round < 100000 && received < BYTES; round++) {
        ssize_t done = written < BYTES ? write(pair[1], block, sizeof block) : 0;
        written += done > 0 ? (size_t)done : 0;
        int count = wait_and_tell(0);
        for (int i = 0; i < count; i++) {
            REQUIRE(events[i].result > 0 && keeping < KEPT_MAX);
            received += (size_t)events[i].result;
            kept[keeping++] = events[i];
        }
        if (!count && done <= 0) /* the ring has no buffers, the socket no room */
            while (keeping)
                completion->return_data(&backend, &kept[--keeping]);
    }
    CHECK_EQUAL(received, written);
    CHECK_AT_LEAST(received, BYTES);
    while (keeping)
        completion->return_data(&backend, &kept[--keeping]);
    close_pair(pair);
    close_backend();
}

/* For the random test: a connection whose peer sends a sequence of bytes, so that what is lost,
 * doubled, out of order or another connection's shows. */
struct line {
    int pair[2];
    uint32_t generation;
    uint32_t wanted;
    unsigned char next_written, next_read;
    struct random_send *sends[2];
};

/* Freed by its end, with what it sends. */
struct random_send {
    struct pr_send send;
    struct iovec vectors[2];
    struct random_send **place; /* where its line knows it; NULL once that has gone */
    char bytes[3000];
};

enum { LINES = 24 };
static struct line lines[LINES];
static uint32_t last_generation;
static unsigned sends_begun, sends_ended;

static int on_random_sent(struct pr_send *send, int32_t result)
{
    struct random_send *random = (struct random_send *)send;
    CHECK(result > 0 || result == -EPIPE || result == -ECANCELED || result == -EAGAIN ||
          result == -EINTR);
    if (random->place)
        *random->place = NULL;
    free(random);
    sends_ended++;
    return 0;
}

static void open_line(struct line *line)
{
    *line = (struct line){.generation = ++last_generation, .next_written = last_generation % 251u};
    line->next_read = line->next_written;
    open_pair(line->pair);
}

static void close_line(struct line *line)
{
    REQUIRE_EQUAL(update(line->pair[0], line->generation, line->wanted, 0), 0);
    for (int i = 0; i < 2; i++) {
        if (!line->sends[i])
            continue;
        line->sends[i]->place = NULL;
        completion->cancel_send(&backend, &line->sends[i]->send);
    }
    close(line->pair[0]);
    char bytes[4096]; /* nothing that is under way holds the file: the peer sees the end */
    ssize_t count;
    while ((count = read(line->pair[1], bytes, sizeof bytes)) > 0)
        ;
    CHECK(count == 0 || errno == ECONNRESET);
    close(line->pair[1]);
}

static void begin_random_send(struct line *line, uint32_t random)
{
    struct random_send **place = &line->sends[random % 2];
    if (*place)
        return;
    struct random_send *send = calloc(1, sizeof *send);
    REQUIRE(send);
    send->place = place;
    send->send.fd = line->pair[0];
    send->send.on_sent = on_random_sent;
    send->vectors[0] = (struct iovec){.iov_base = send->bytes, .iov_len = 1 + random % 2000};
    send->vectors[1] = (struct iovec){.iov_base = send->bytes + 2000, .iov_len = 1000};
    send->send.message =
        (struct msghdr){.msg_iov = send->vectors, .msg_iovlen = 1 + random / 2 % 2};
    REQUIRE_EQUAL(completion->send(&backend, &send->send), 0);
    *place = send;
    sends_begun++;
}

static void check_sequence(struct line *line, const char *data, ssize_t size)
{
    for (ssize_t i = 0; i < size; i++)
        REQUIRE_EQUAL((unsigned char)data[i], line->next_read++);
}

static void take_random_event(const struct pr_ready_event *event, uint32_t random)
{
    if (event->events & PR_SENT) {
        event->send->on_sent(event->send, event->result);
        return;
    }
    struct line *line = lines;
    while (line < lines + LINES &&
           (line->pair[0] != event->fd || line->generation != event->generation))
        line++;
    bool is_stale = line == lines + LINES;
    if (event->events & PR_RECEIVED) {
        if (!is_stale && (random % 4 == 0 || !(line->wanted & (PR_RECEIVED | PR_READABLE)) ||
                          completion->holds_older(&backend, event))) {
            completion->hold_data(&backend, event);
        } else if (!is_stale) {
            CHECK_AT_LEAST(event->result, 1);
            check_sequence(line, event->data, event->result);
        }
        completion->return_data(&backend, event);
    } else if (!is_stale && event->events & line->wanted & PR_READABLE &&
               !completion->holds_older(&backend, event)) {
        char data[512];
        check_sequence(line, data, read(event->fd, data, sizeof data));
    }
}

static void write_to_line(struct line *line, uint32_t random)
{
    char bytes[5000];
    for (uint32_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(line->next_written + i);
    ssize_t written = write(line->pair[1], bytes, random % 8 ? 1 + random % 50 : sizeof bytes);
    line->next_written += (unsigned char)(written > 0 ? written : 0);
}

static void settle_random_send(struct line *line, uint32_t random)
{
    struct random_send *send = line->sends[random % 2];
    if (send && send->send.next && completion->settle_send(&backend, &send->send))
        (void)on_random_sent(&send->send, send->send.result);
}

/* What is done about one event may make the kernel tell what is newer than the next. */
static void take_random_events(int count, uint64_t *state)
{
    for (int i = 0; i < count; i++) {
        uint32_t random = check_random(state);
        if (random % 4 == 0)
            write_to_line(&lines[check_random(state) % LINES], random / 4);
        if (random % 4 < 2)
            settle_random_send(&lines[check_random(state) % LINES], random / 4);
        take_random_event(&events[i], check_random(state));
    }
}

static void take_random_step(uint64_t *state)
{
    static const uint32_t interests[] = {PR_RECEIVED, PR_RECEIVED, PR_RECEIVED | PR_WRITABLE,
                                         PR_READABLE, PR_WRITABLE, 0};
    struct line *line = &lines[check_random(state) % LINES];
    uint32_t random = check_random(state);
    char bytes[5000];
    switch (check_random(state) % 16) {
    case 0:
    case 1:
    case 2:
    case 3: {
        uint32_t wanted = interests[random % 6];
        REQUIRE_EQUAL(update(line->pair[0], line->generation, line->wanted, wanted), 0);
        line->wanted = wanted;
        break;
    }
    case 4:
    case 5:
    case 6:
        begin_random_send(line, random);
        break;
    case 7:
        if (line->sends[random % 2])
            completion->cancel_send(&backend, &line->sends[random % 2]->send);
        break;
    case 8:
        close_line(line);
        open_line(line);
        break;
    case 9:
    case 10:
        write_to_line(line, random);
        break;
    case 11:
        (void)!read(line->pair[1], bytes, sizeof bytes);
        break;
    case 12:
        if (random % 64 == 0)
            completion->quiesce(&backend);
        break;
    default: {
        int count = wait_for(0);
        REQUIRE(count >= 0);
        take_random_events(count, state);
    }
    }
}

/* The end of the backend among them: in mid-flight, with everything under way. */
static void any_order_of_wanting_sending_cancelling_and_closing_keeps_every_byte(void)
{
    uint64_t state = 11;
    while (random_steps) {
        unsigned steps = random_steps < 50000 ? random_steps : 50000;
        sends_begun = sends_ended = 0;
        open_backend();
        for (int i = 0; i < LINES; i++)
            open_line(&lines[i]);
        for (unsigned i = 0; i < steps; i++)
            take_random_step(&state);
        random_steps -= steps;
        close_backend();
        CHECK_EQUAL(sends_ended, sends_begun);
        CHECK_AT_LEAST(sends_begun, steps / 100);
        for (int i = 0; i < LINES; i++)
            close_pair(lines[i].pair);
    }
}

int main(int count, char **arguments)
{
    if (count > 1)
        random_steps = (unsigned)strtoul(arguments[1], NULL, 10);
    ops_under_test = &pr_uring_ops;
    completion = ops_under_test->completion;
    backend = (struct pr_backend){.ops = ops_under_test};
    int error = ops_under_test->init(&backend);
    if (error < 0) {
        printf("no io_uring here: %s\n", strerror(-error));
        return CHECK_SKIPPED;
    }
    close_backend();
    RUN(bytes_come_without_being_asked_for_again);
    RUN(what_comes_when_nobody_wants_it_is_held_in_order);
    RUN(what_was_reported_comes_before_what_was_settled_since);
    RUN(without_memory_the_held_stream_ends_with_an_error);
    RUN(an_ended_receive_has_brought_all_or_left_it_to_others);
    RUN(held_bytes_come_before_readiness);
    RUN(a_new_life_of_a_descriptor_hears_nothing_of_the_old);
    RUN(a_close_after_the_end_of_interest_is_a_close);
    RUN(a_send_leaves_with_the_wait);
    RUN(a_send_that_is_settled_is_not_reported);
    RUN(a_send_to_nobody_ends_with_an_error_and_no_signal);
    RUN(a_send_that_is_cancelled_ends_once);
    RUN(the_end_of_the_backend_ends_every_send_once);
    RUN(one_thread_after_the_other_may_wait);
    RUN(sends_that_wait_for_room_are_reported_once_each);
    RUN(sends_that_end_at_once_overflow_the_ring_and_are_reported_once_each);
    RUN(without_buffers_receiving_waits_for_their_return);
    RUN(any_order_of_wanting_sending_cancelling_and_closing_keeps_every_byte);
    return check_status();
}
