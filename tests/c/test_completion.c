/*
 * What a loop and its streams make of completions, in every order that a kernel may report them:
 * a scripted backend that receives and sends by itself.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/stream.h"

static struct pr_loop loop;
static struct fake_backend fake;
static struct pr_backend_ops ops;
static struct pr_stream streams[2];
static int pairs[2][2];

static struct {
    struct pr_send *sends[4]; /* under way, in the order of their beginning */
    int send_count, cancelled;
    int32_t taken; /* what a send that is looked after has come to; 0: it is under way */
    int lent;      /* data events that were not returned */
    char held[64];
} kernel;

static char heard[256];
static int released;
static void (*at_received)(struct pr_stream *stream);

static int fake_send(struct pr_backend *backend, struct pr_send *send)
{
    (void)backend;
    REQUIRE(kernel.send_count < 4);
    kernel.sends[kernel.send_count++] = send;
    return 0;
}

static bool fake_settle_send(struct pr_backend *backend, struct pr_send *send)
{
    (void)backend;
    send->result = kernel.taken;
    return kernel.taken != 0;
}

static void fake_cancel_send(struct pr_backend *backend, struct pr_send *send)
{
    (void)backend;
    for (int i = 0; i < kernel.send_count; i++)
        kernel.cancelled += kernel.sends[i] == send;
}

static void fake_return_data(struct pr_backend *backend, const struct pr_ready_event *event)
{
    (void)backend;
    (void)event;
    kernel.lent--;
}

static void fake_hold_data(struct pr_backend *backend, const struct pr_ready_event *event)
{
    (void)backend;
    if (event->result > 0)
        strncat(kernel.held, event->data, (size_t)event->result);
    else
        strcat(kernel.held, "|");
}

static bool fake_holds_older(const struct pr_backend *backend, const struct pr_ready_event *event)
{
    (void)backend;
    return event->fd == pairs[0][0] && kernel.held[0];
}

static int fake_end_receive(struct pr_backend *backend, int fd, struct pr_ready_event *event)
{
    (void)backend;
    static char text[sizeof kernel.held];
    strcpy(text, kernel.held);
    kernel.held[0] = '\0';
    *event = (struct pr_ready_event){.fd = fd, .events = PR_RECEIVED, .result = (int)strlen(text)};
    event->data = text[0] ? text : NULL;
    kernel.lent += text[0] != '\0';
    return 0;
}

static void fake_quiesce(struct pr_backend *backend)
{
    (void)backend;
}

static const struct pr_completion_ops completion = {
    .send = fake_send,
    .settle_send = fake_settle_send,
    .cancel_send = fake_cancel_send,
    .return_data = fake_return_data,
    .hold_data = fake_hold_data,
    .holds_older = fake_holds_older,
    .end_receive = fake_end_receive,
    .quiesce = fake_quiesce,
};

static int on_received(struct pr_stream *stream, const char *data, size_t size)
{
    strncat(heard, data, size);
    if (at_received)
        at_received(stream);
    return 0;
}

static int on_end(struct pr_stream *stream)
{
    (void)stream;
    strcat(heard, "|");
    return 0;
}

static int on_error(struct pr_stream *stream, int error, bool sending)
{
    (void)error;
    strcat(heard, sending ? "!send" : "!receive");
    pr_stream_stop(stream);
    return 0;
}

static int on_level(struct pr_stream *stream)
{
    (void)stream;
    return 0;
}

static const struct pr_stream_handler handler = {
    .on_received = on_received,
    .on_end = on_end,
    .on_error = on_error,
    .on_high_water = on_level,
    .on_low_water = on_level,
    .on_drained = on_level,
};

static void release(void *owner)
{
    (void)owner;
    released++;
}

static void set_up(void)
{
    memset(&kernel, 0, sizeof kernel);
    heard[0] = '\0';
    released = 0;
    at_received = NULL;
    REQUIRE_EQUAL(pr_loop_init(&loop, "epoll"), 0);
    fake_backend_install(&fake, &loop);
    ops = *loop.backend.ops;
    ops.completion = &completion;
    ops.has_edges = false;
    loop.backend.ops = &ops;
    loop.backend.receives = true;
    for (int i = 0; i < 2; i++) {
        REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pairs[i]), 0);
        pr_stream_init(&streams[i], &loop, &handler, NULL, release);
        REQUIRE_EQUAL(pr_stream_start(&streams[i], pairs[i][0]), 0);
        REQUIRE_EQUAL(pr_stream_set_reading(&streams[i], true), 0);
    }
}

static void tear_down(void)
{
    for (int i = 0; i < 2; i++)
        pr_stream_deinit(&streams[i]);
    pr_loop_deinit(&loop);
    for (int i = 0; i < 2; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
    CHECK_EQUAL(kernel.lent, 0);
}

/* Lets the next wait report an event of a stream's watch. */
static void report(int which, uint32_t events, const char *data)
{
    REQUIRE(fake.event_count < FAKE_EVENTS_MAX);
    fake_backend_report(&fake, &streams[which].watch, events);
    struct pr_ready_event *event = &fake.events[fake.event_count - 1];
    event->data = data;
    event->result = data ? (int32_t)strlen(data) : 0;
    kernel.lent += events & PR_RECEIVED ? 1 : 0;
}

static void report_sent(int which, int32_t result)
{
    fake.events[fake.event_count++] =
        (struct pr_ready_event){.events = PR_SENT, .result = result, .send = kernel.sends[which]};
}

static void turn(void)
{
    REQUIRE_EQUAL(pr_loop_run_once(&loop, 0), 0);
}

/* Writes as a callback does, so that the backend sends it. */
static void write_to(struct pr_stream *stream, const char *text)
{
    loop.dispatching = true;
    REQUIRE_EQUAL(pr_stream_queue(stream, text, strlen(text), stream), 0);
    REQUIRE_EQUAL(pr_stream_send_soon(stream), 0);
    loop.dispatching = false;
    REQUIRE_EQUAL(stream->flush.run(&stream->flush), 0);
    pr_loop_remove_flush(&stream->flush);
}

static void pause_first(struct pr_stream *stream)
{
    bool is_first = stream == &streams[0];
    REQUIRE_EQUAL(pr_stream_set_reading(&streams[0], !is_first), 0);
}

/* Paused by its own first bytes and resumed by its neighbour, all in one turn. */
static void bytes_that_follow_held_ones_are_held_too(void)
{
    set_up();
    at_received = pause_first;
    report(0, PR_RECEIVED, "a");
    report(0, PR_RECEIVED, "b");
    report(1, PR_RECEIVED, "-");
    report(0, PR_RECEIVED, "c");
    report(0, PR_RECEIVED, NULL);
    turn();
    CHECK_TEXT(heard, "a-");
    CHECK_TEXT(kernel.held, "bc|");
    tear_down();
}

static void bytes_in_the_socket_wait_for_those_that_are_held(void)
{
    set_up();
    at_received = pause_first;
    REQUIRE_EQUAL(write(pairs[0][1], "c", 1), 1);
    report(0, PR_RECEIVED, "a");
    report(0, PR_RECEIVED, "b");
    report(1, PR_RECEIVED, "-");
    streams[0].watch.registered |= PR_READABLE;
    streams[0].full_receives = 9; /* it reads by itself, as after large receives */
    report(0, PR_READABLE, NULL);
    turn();
    CHECK_TEXT(heard, "a-");
    CHECK_TEXT(kernel.held, "b");
    tear_down();
}

static void what_a_former_life_received_is_nobodys(void)
{
    set_up();
    report(0, PR_RECEIVED, "old");
    pr_stream_stop(&streams[0]);
    REQUIRE_EQUAL(pr_stream_start(&streams[0], pairs[0][0]), 0);
    REQUIRE_EQUAL(pr_stream_set_reading(&streams[0], true), 0);
    report(0, PR_RECEIVED, "new");
    turn();
    CHECK_TEXT(heard, "new");
    CHECK_TEXT(kernel.held, "");
    tear_down();
}

/* Held before, and still on its way: in that order, when the stream has its descriptor back. */
static void what_came_before_a_loan_is_kept_for_its_end(void)
{
    set_up();
    strcpy(kernel.held, "a");
    loop.event_count = 2;
    for (int i = 0; i < 2; i++) {
        report(0, PR_RECEIVED, i ? "c" : "b");
        loop.events[i] = fake.events[i];
    }
    fake.event_count = 0;
    REQUIRE_EQUAL(pr_stream_lend(&streams[0]), 0);
    CHECK(!pr_watch_is_active(&streams[0].watch));
    CHECK_TEXT(streams[0].unread.data, "abc");
    turn(); /* the two events are nobody's now */
    CHECK_TEXT(heard, "");
    REQUIRE_EQUAL(pr_stream_take_back(&streams[0], pairs[0][0]), 0);
    CHECK_TEXT(kernel.held, "abc");
    CHECK(!streams[0].unread.data);
    REQUIRE_EQUAL(pr_stream_lend(&streams[0]), 0);
    CHECK_TEXT(streams[0].unread.data, "abc");
    tear_down(); /* and returned where it has an end meanwhile */
}

static void stop_first(struct pr_stream *stream)
{
    if (stream == &streams[0])
        pr_stream_stop(stream);
}

static void a_stop_in_mid_turn_leaves_the_rest_to_nobody(void)
{
    set_up();
    at_received = stop_first;
    report(0, PR_RECEIVED, "a");
    report(0, PR_RECEIVED, "b");
    report(0, PR_RECEIVED, NULL);
    turn();
    CHECK_TEXT(heard, "a");
    CHECK_TEXT(kernel.held, "");
    tear_down();
}

static void what_is_sent_is_released_at_its_own_end(void)
{
    set_up();
    write_to(&streams[0], "abc");
    REQUIRE_EQUAL(kernel.send_count, 1);
    CHECK_EQUAL(released, 0);
    report_sent(0, 3);
    turn();
    CHECK_EQUAL(released, 1);
    CHECK_EQUAL(kernel.cancelled, 0);
    tear_down();
}

static void look_at_queue(struct pr_stream *stream)
{
    CHECK_EQUAL(pr_stream_queued_bytes(stream), 3);
    CHECK_EQUAL(pr_stream_settle(stream), 0);
    CHECK_EQUAL(pr_stream_queued_bytes(stream), 0);
}

/* The end of the send, and another's behind it, are on their way when somebody looks. */
static void what_the_kernel_took_is_known_before_the_turn_comes_to_it(void)
{
    set_up();
    at_received = look_at_queue;
    write_to(&streams[0], "abc");
    write_to(&streams[1], "de");
    report(0, PR_RECEIVED, "x");
    report_sent(0, 3);
    report_sent(1, 2);
    turn();
    CHECK_EQUAL(released, 2);
    CHECK_EQUAL(pr_stream_queued_bytes(&streams[1]), 0);
    tear_down();
}

static void what_the_kernel_took_is_asked_for(void)
{
    set_up();
    write_to(&streams[0], "abc");
    CHECK_EQUAL(pr_stream_settle(&streams[0]), 0);
    CHECK_EQUAL(pr_stream_queued_bytes(&streams[0]), 3);
    kernel.taken = 1;
    CHECK_EQUAL(pr_stream_settle(&streams[0]), 0); /* and the rest leaves at once */
    CHECK_EQUAL(pr_stream_queued_bytes(&streams[0]), 0);
    CHECK_EQUAL(released, 1);
    write_to(&streams[0], "abc");
    kernel.taken = -EPIPE;
    CHECK_EQUAL(pr_stream_settle(&streams[0]), -EPIPE);
    turn();
    CHECK_TEXT(heard, "");
    tear_down();
}

/* Every result that a send may have that is cut short, or was not to be. */
static void a_stopped_stream_leaves_its_bytes_to_the_send(void)
{
    static const int32_t results[] = {3, 1, -ECANCELED, -EPIPE, -EINTR, -EAGAIN};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        set_up();
        write_to(&streams[0], "abc");
        pr_stream_stop(&streams[0]);
        CHECK_EQUAL(kernel.cancelled, 1);
        CHECK_EQUAL(released, 0);
        turn(); /* its owner may go meanwhile: the descriptor's next life has its own send */
        REQUIRE_EQUAL(pr_stream_start(&streams[0], pairs[0][0]), 0);
        write_to(&streams[0], "de");
        CHECK_EQUAL(kernel.send_count, 2);
        report_sent(1, 2);
        report_sent(0, results[i]);
        turn();
        CHECK_EQUAL(released, 2);
        CHECK_TEXT(heard, "");
        tear_down();
    }
}

/* The end is on its way, already reported, when its stream stops. */
static void a_send_that_has_ended_when_its_stream_stops_ends_once(void)
{
    set_up();
    at_received = stop_first;
    write_to(&streams[0], "abc");
    report(0, PR_RECEIVED, "x");
    report_sent(0, 3);
    turn();
    CHECK_EQUAL(released, 1);
    CHECK_EQUAL(kernel.cancelled, 1);
    tear_down();
}

static void a_short_send_is_followed_by_the_rest(void)
{
    char text[8] = "";
    set_up();
    write_to(&streams[0], "abcd");
    report_sent(0, 1);
    turn();
    CHECK_EQUAL(read(pairs[0][1], text, sizeof text), 3);
    CHECK_TEXT(text, "bcd");
    CHECK_EQUAL(released, 1);
    tear_down();
}

static void a_failed_send_is_told_once_and_releases_what_is_queued(void)
{
    set_up();
    write_to(&streams[0], "abcd");
    write_to(&streams[0], "ef"); /* waits behind it */
    CHECK_EQUAL(kernel.send_count, 1);
    report_sent(0, -ECONNRESET);
    turn();
    CHECK_TEXT(heard, "!send");
    CHECK_EQUAL(released, 2);
    tear_down();
}

static void the_end_of_the_loop_ends_what_a_turn_left_over(void)
{
    set_up();
    write_to(&streams[0], "abc");
    pr_stream_stop(&streams[0]);
    report_sent(0, -ECANCELED);
    REQUIRE_EQUAL(pr_loop_wait(&loop, 0), 0);
    CHECK_EQUAL(released, 0);
    pr_loop_deinit(&loop);
    CHECK_EQUAL(released, 1);
    for (int i = 0; i < 2; i++) {
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
}

int main(void)
{
    RUN(bytes_that_follow_held_ones_are_held_too);
    RUN(bytes_in_the_socket_wait_for_those_that_are_held);
    RUN(what_a_former_life_received_is_nobodys);
    RUN(what_came_before_a_loan_is_kept_for_its_end);
    RUN(a_stop_in_mid_turn_leaves_the_rest_to_nobody);
    RUN(what_is_sent_is_released_at_its_own_end);
    RUN(what_the_kernel_took_is_known_before_the_turn_comes_to_it);
    RUN(what_the_kernel_took_is_asked_for);
    RUN(a_stopped_stream_leaves_its_bytes_to_the_send);
    RUN(a_send_that_has_ended_when_its_stream_stops_ends_once);
    RUN(a_short_send_is_followed_by_the_rest);
    RUN(a_failed_send_is_told_once_and_releases_what_is_queued);
    RUN(the_end_of_the_loop_ends_what_a_turn_left_over);
    return check_status();
}
