/*
 * The io_uring backend where it does more than tell readiness: it receives and sends by itself, and
 * moves from thread to thread.  What all backends have in common is in test_backend.c.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "backend_under_test.h"

static const struct pr_completion_ops *completion;

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
    size_t length = 0;
    while (length < strlen("one two three")) {
        int count = wait_for(PR_NS_PER_SECOND);
        REQUIRE(count > 0);
        for (int i = 0; i < count; i++) {
            REQUIRE(events[i].result > 0 && length + (size_t)events[i].result < sizeof text);
            memcpy(text + length, events[i].data, (size_t)events[i].result);
            length += (size_t)events[i].result;
            completion->return_data(&backend, &events[i]);
        }
    }
    CHECK_TEXT(text, "one two three");
    close_pair(pair);
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
static void fill(int fd)
{
    static char block[65536];
    while (write(fd, block, sizeof block) > 0)
        ;
}

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

int main(void)
{
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
    RUN(held_bytes_come_before_readiness);
    RUN(a_new_life_of_a_descriptor_hears_nothing_of_the_old);
    RUN(a_close_after_the_end_of_interest_is_a_close);
    RUN(a_send_leaves_with_the_wait);
    RUN(a_send_to_nobody_ends_with_an_error_and_no_signal);
    RUN(a_send_that_is_cancelled_ends_once);
    RUN(the_end_of_the_backend_ends_every_send_once);
    RUN(one_thread_after_the_other_may_wait);
    return check_status();
}
