/*
 * The stream, over real sockets.  Where the number of sends matters the socket is a SOCK_SEQPACKET
 * one: it keeps one record for each.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/stream.h"

#define LOG_BYTES 4096
#define PATTERN_BYTES (1024 * 1024)
#define OWNERS_MAX 4096

static struct pr_loop loop;
static struct fake_backend fake;
static struct pr_stream stream;
static int pair[2]; /* the stream's descriptor, and its peer */
static bool ends_closed[2];

static char heard[LOG_BYTES]; /* what the handler was told, one word each */
static size_t received_bytes;
static int last_error;
static bool keeps_data_out_of_log;

/* What the handler does besides; reset for each test. */
static struct {
    int received, end, error, high, low; /* results */
    void (*on_received)(size_t size);
    void (*on_high_water)(void);
    void (*on_low_water)(void);
    void (*on_release)(void);
    void (*on_acquire)(char **buffer, size_t *size);
    bool stops_on_error;
} script;

static char pattern[PATTERN_BYTES]; /* what is sent; byte n tells its place */
static size_t queued_bytes;
static int owners_queued, owners_released;

static void hear(const char *word)
{
    REQUIRE(strlen(heard) + strlen(word) + 2 < LOG_BYTES);
    if (heard[0])
        strcat(heard, " ");
    strcat(heard, word);
}

static int on_received(struct pr_stream *from, const char *data, size_t size)
{
    CHECK_SAME(from, &stream);
    if (!keeps_data_out_of_log) {
        char word[64];
        snprintf(word, sizeof word, "received:%.*s", (int)(size < 40 ? size : 40), data);
        hear(word);
    }
    received_bytes += size;
    if (script.on_received)
        script.on_received(size);
    return script.received;
}

static int on_end(struct pr_stream *from)
{
    CHECK_SAME(from, &stream);
    hear("end");
    return script.end;
}

static int on_error(struct pr_stream *from, int error, bool sending)
{
    hear(sending ? "send-error" : "receive-error");
    last_error = error;
    if (script.stops_on_error)
        pr_stream_stop(from);
    return script.error;
}

static int on_high_water(struct pr_stream *from)
{
    CHECK_SAME(from, &stream);
    hear("high");
    if (script.on_high_water)
        script.on_high_water();
    return script.high;
}

static int on_low_water(struct pr_stream *from)
{
    CHECK_SAME(from, &stream);
    hear("low");
    if (script.on_low_water)
        script.on_low_water();
    return script.low;
}

static int on_drained(struct pr_stream *from)
{
    CHECK_SAME(from, &stream);
    hear("drained");
    return 0;
}

static int acquire_buffer(struct pr_stream *from, char **buffer, size_t *size)
{
    CHECK_SAME(from, &stream);
    hear("acquire");
    script.on_acquire(buffer, size);
    return 0;
}

static const struct pr_stream_handler handler = {
    .on_received = on_received,
    .on_end = on_end,
    .on_error = on_error,
    .on_high_water = on_high_water,
    .on_low_water = on_low_water,
    .on_drained = on_drained,
};

static const struct pr_stream_handler lending_handler = {
    .acquire_buffer = acquire_buffer,
    .on_received = on_received,
    .on_end = on_end,
    .on_error = on_error,
    .on_high_water = on_high_water,
    .on_low_water = on_low_water,
    .on_drained = on_drained,
};

/* Owners are numbers, counted from 1 in the order of their queueing. */
static void release(void *owner)
{
    CHECK_EQUAL((intptr_t)owner, owners_released + 1);
    owners_released++;
    if (script.on_release)
        script.on_release();
}

static void forget(void)
{
    memset(heard, 0, sizeof heard);
    received_bytes = 0;
    last_error = 0;
}

static void begin_on(int type)
{
    memset(&script, 0, sizeof script);
    keeps_data_out_of_log = false;
    queued_bytes = 0;
    owners_queued = owners_released = 0;
    ends_closed[0] = ends_closed[1] = false;
    forget();
    REQUIRE_EQUAL(pr_loop_init(&loop, "auto"), 0);
    REQUIRE_EQUAL(socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    pr_stream_init(&stream, &loop, &handler, NULL, release);
    REQUIRE_EQUAL(pr_stream_start(&stream, pair[0]), 0);
}

static void begin(void)
{
    begin_on(SOCK_STREAM);
}

static void close_end(int which)
{
    if (!ends_closed[which])
        close(pair[which]);
    ends_closed[which] = true;
}

static void end(void)
{
    pr_stream_deinit(&stream);
    CHECK_EQUAL(owners_released, owners_queued); /* exactly once, whatever happened */
    CHECK(!pr_watch_is_active(&stream.watch));
    close_end(0);
    close_end(1);
    pr_loop_deinit(&loop);
}

static void use_fake_backend(void)
{
    fake_backend_install(&fake, &loop);
    fake_backend_forget(&fake);
}

static void shrink_send_buffer(void)
{
    int size = 1; /* the kernel makes it the smallest there is */
    REQUIRE_EQUAL(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
}

/* Queues the next `size` bytes of the pattern. */
static void queue(size_t size)
{
    REQUIRE(queued_bytes + size <= PATTERN_BYTES && owners_queued < OWNERS_MAX);
    void *owner = (void *)(intptr_t)++owners_queued;
    REQUIRE_EQUAL(pr_stream_queue(&stream, pattern + queued_bytes, size, owner), 0);
    queued_bytes += size;
}

static int queue_and_send(size_t size)
{
    queue(size);
    return pr_stream_send_soon(&stream);
}

static void start_reading(void)
{
    REQUIRE_EQUAL(pr_stream_set_reading(&stream, true), 0);
}

/* A turn in which something is to happen. */
static int turn(void)
{
    return pr_loop_run_once(&loop, 5 * PR_NS_PER_SECOND);
}

/* A turn in which nothing is to happen. */
static int idle_turn(void)
{
    return pr_loop_run_once(&loop, PR_NS_PER_MS);
}

static void peer_sends(const char *text)
{
    REQUIRE_EQUAL(send(pair[1], text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

/* One receive at the peer; the size, or -1 where nothing waits. */
static ssize_t peer_receives(char *buffer, size_t size)
{
    return recv(pair[1], buffer, size, MSG_DONTWAIT);
}

/* Everything that waits at the peer is the pattern from `*position` on. */
static void check_peer_receives_pattern(size_t *position)
{
    static char buffer[65536];
    ssize_t got;
    while ((got = peer_receives(buffer, sizeof buffer)) > 0) {
        REQUIRE(*position + (size_t)got <= PATTERN_BYTES);
        CHECK_BYTES(buffer, (size_t)got, pattern + *position, (size_t)got);
        *position += (size_t)got;
    }
}

/* Runs `function` as a callback of the loop, in one turn. */
struct call {
    struct pr_callback callback;
    void (*function)(void);
    int result;
};

static int run_call(struct pr_callback *callback)
{
    struct call *call = callback->owner;
    call->function();
    return call->result;
}

static int run_in_loop(void (*first)(void), int first_result, void (*second)(void))
{
    struct call calls[2] = {{.function = first, .result = first_result}, {.function = second}};
    for (int i = 0; i < 2 && calls[i].function; i++) {
        calls[i].callback = (struct pr_callback){.run = run_call, .owner = &calls[i]};
        REQUIRE_EQUAL(pr_loop_call_soon(&loop, &calls[i].callback), 0);
    }
    int result = turn();
    while (pr_loop_take_ready(&loop))
        continue;
    return result;
}

/* --- Receiving -------------------------------------------------------------------------------- */

static void nothing_is_received_before_reading_is_asked_for(void)
{
    begin();
    peer_sends("hello");
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "");
    start_reading();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:hello");
    end();
}

static void bytes_are_received_once_and_in_order(void)
{
    begin();
    start_reading();
    peer_sends("one");
    CHECK_EQUAL(turn(), 0);
    peer_sends("two");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "received:one received:two");
    end();
}

static void pausing_and_resuming_asks_the_kernel_nothing(void)
{
    begin();
    use_fake_backend();
    start_reading();
    CHECK_EQUAL(fake.update_count, 1);
    for (int i = 0; i < 5; i++) {
        CHECK_EQUAL(pr_stream_set_reading(&stream, false), 0);
        CHECK_EQUAL(pr_stream_set_reading(&stream, true), 0);
    }
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(pr_stream_set_reading(&stream, false), 0);
    fake_backend_report(&fake, &stream.watch, PR_READABLE);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(fake.update_count, 2); /* an event came that nobody wanted */
    CHECK_TEXT(heard, "");
    end();
}

static void a_peer_that_goes_while_reading_is_paused_does_not_make_it_spin(void)
{
    begin();
    start_reading();
    REQUIRE_EQUAL(pr_stream_set_reading(&stream, false), 0);
    peer_sends("last words");
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(loop.stats.events, 1);
    CHECK_TEXT(heard, "");
    start_reading();
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:last words end");
    end();
}

static void reading_that_could_not_start_can_be_tried_again(void)
{
    begin();
    use_fake_backend();
    fake.update_error = -ENOSPC;
    CHECK_EQUAL(pr_stream_set_reading(&stream, true), -ENOSPC);
    CHECK(!stream.reading);
    fake.update_error = 0;
    CHECK_EQUAL(pr_stream_set_reading(&stream, true), 0);
    CHECK(stream.reading);
    CHECK_EQUAL(stream.watch.wanted, PR_READABLE);
    end();
}

static void the_end_is_told_once_and_writing_goes_on(void)
{
    char buffer[16];
    begin();
    start_reading();
    REQUIRE_EQUAL(shutdown(pair[1], SHUT_WR), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "end");
    CHECK(!stream.reading);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "end");
    CHECK_EQUAL(queue_and_send(5), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), 5);
    end();
}

/* A Unix socket closed with unread data resets the connection. */
static void reset_by_peer(void)
{
    REQUIRE_EQUAL(send(pair[0], "unread", 6, MSG_NOSIGNAL), 6);
    close_end(1);
}

static void a_reset_is_told_as_an_error_of_reading(void)
{
    begin();
    script.stops_on_error = true;
    start_reading();
    reset_by_peer();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "receive-error");
    CHECK_EQUAL(last_error, -ECONNRESET);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "receive-error");
    end();
}

static void stop_when_received(size_t size)
{
    (void)size;
    pr_stream_stop(&stream);
}

static void stopping_while_receiving_ends_everything(void)
{
    begin();
    start_reading();
    script.on_received = stop_when_received;
    peer_sends("one");
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:one");
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "received:one");
    end();
}

static void write_stop_and_close(size_t size)
{
    (void)size;
    queue_and_send(100);
    pr_stream_stop(&stream);
    close_end(0);
}

static void what_was_written_before_a_stop_is_dropped(void)
{
    char buffer[128];
    begin();
    start_reading();
    script.on_received = write_stop_and_close;
    peer_sends("one");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(owners_released, 1);
    CHECK_TEXT(heard, "received:one");
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), 0); /* the end, and nothing before it */
    end();
}

static void stopping_while_receiving_keeps_the_writable_event_away(void)
{
    begin();
    use_fake_backend();
    shrink_send_buffer();
    start_reading();
    CHECK_EQUAL(queue_and_send(60000), 0);
    CHECK_EQUAL(stream.watch.wanted, PR_READABLE | PR_WRITABLE);
    script.on_received = stop_when_received;
    peer_sends("one");
    fake_backend_report(&fake, &stream.watch, PR_READABLE | PR_WRITABLE);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:one");
    end();
}

static void a_result_of_receiving_ends_the_turn(void)
{
    begin();
    start_reading();
    script.received = 3;
    peer_sends("one");
    CHECK_EQUAL(turn(), 3);
    script.received = 0;
    peer_sends("two");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:one received:two");
    end();
}

/* --- Lent buffers ----------------------------------------------------------------------------- */

static char lent[8];

static void begin_lending(void (*on_acquire)(char **buffer, size_t *size))
{
    begin();
    script.on_acquire = on_acquire;
    stream.handler = &lending_handler;
}

static void lend(char **buffer, size_t *size)
{
    *buffer = lent;
    *size = sizeof lent;
}

static void lend_nothing(char **buffer, size_t *size)
{
    (void)buffer;
    *size = 0;
}

static void a_lent_buffer_is_filled_up_to_its_size(void)
{
    begin_lending(lend);
    start_reading();
    peer_sends("0123456789");
    while (received_bytes < 10)
        CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire received:01234567 acquire received:89");
    CHECK_BYTES(lent, sizeof lent, "89234567", 8);
    end();
}

/* A machine that stops this process for long enough makes a turn end early; not every time. */
static void a_stream_that_is_alone_is_received_from_until_it_is_empty(void)
{
    bool in_one_turn = false;
    for (int i = 0; i < 1000 && !in_one_turn; i++) {
        begin_lending(lend);
        start_reading();
        peer_sends("0123456789abcdefghij");
        CHECK_EQUAL(turn(), 0);
        in_one_turn = received_bytes == 20;
        end();
    }
    CHECK(in_one_turn);
}

static void take_long(size_t size)
{
    (void)size;
    int64_t end_ns = pr_now_ns() + 2 * PR_NS_PER_MS;
    while (pr_now_ns() < end_ns)
        continue;
}

static void a_stream_that_takes_long_gives_others_their_turn(void)
{
    begin_lending(lend);
    start_reading();
    script.on_received = take_long;
    peer_sends("0123456789abcdefghij");
    CHECK_EQUAL(turn(), 0);
    CHECK_AT_MOST(received_bytes, 16);
    end();
}

static int do_nothing(struct pr_callback *callback)
{
    (void)callback;
    return 0;
}

static struct pr_callback waiting = {.run = do_nothing};

static void schedule(size_t size)
{
    (void)size;
    script.on_received = NULL;
    REQUIRE_EQUAL(pr_loop_call_soon(&loop, &waiting), 0);
}

static void what_is_ready_does_not_wait_until_the_socket_is_empty(void)
{
    begin_lending(lend);
    start_reading();
    script.on_received = schedule;
    peer_sends("0123456789abcdefghij");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_bytes, 8);
    while (received_bytes < 20)
        CHECK_EQUAL(turn(), 0);
    end();
}

static void pause_reading(size_t size)
{
    (void)size;
    CHECK_EQUAL(pr_stream_set_reading(&stream, false), 0);
}

static void a_stream_paused_while_receiving_is_left_alone(void)
{
    begin_lending(lend);
    start_reading();
    script.on_received = pause_reading;
    peer_sends("0123456789abcdefghij");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_bytes, 8);
    CHECK_TEXT(heard, "acquire received:01234567");
    end();
}

static void a_buffer_of_no_size_skips_the_read_and_keeps_the_data(void)
{
    begin_lending(lend_nothing);
    start_reading();
    peer_sends("hello");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire");
    script.on_acquire = lend;
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire acquire received:hello");
    end();
}

static void a_lent_buffer_comes_back_where_nothing_was_there_to_read(void)
{
    begin_lending(lend);
    use_fake_backend();
    start_reading();
    fake_backend_report(&fake, &stream.watch, PR_READABLE);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire received:");
    end();
}

static void a_lent_buffer_comes_back_before_the_end_is_told(void)
{
    begin_lending(lend);
    start_reading();
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire received: end");
    end();
}

static void a_lent_buffer_comes_back_before_an_error_is_told(void)
{
    begin_lending(lend);
    script.stops_on_error = true;
    start_reading();
    reset_by_peer();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire received: receive-error");
    CHECK_EQUAL(last_error, -ECONNRESET);
    end();
}

static void a_stream_stopped_when_its_buffer_comes_back_hears_nothing_more(void)
{
    begin_lending(lend);
    start_reading();
    script.on_received = stop_when_received;
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "acquire received:");
    end();
}

static void stop_and_lend(char **buffer, size_t *size)
{
    pr_stream_stop(&stream);
    lend(buffer, size);
}

static void a_stream_stopped_while_it_asks_for_a_buffer_reports_no_error(void)
{
    begin_lending(stop_and_lend);
    start_reading();
    peer_sends("hello");
    CHECK_EQUAL(turn(), 0);
    CHECK(!strstr(heard, "error"));
    CHECK_EQUAL(received_bytes, 0);
    end();
}

static void an_error_outlives_a_turn_that_the_buffers_return_ended(void)
{
    begin_lending(lend);
    script.stops_on_error = true;
    start_reading();
    reset_by_peer();
    script.received = 1;
    CHECK_EQUAL(turn(), 1);
    script.received = 0;
    if (!strstr(heard, "error"))
        CHECK_EQUAL(turn(), 0);
    CHECK(strstr(heard, "receive-error"));
    CHECK_EQUAL(last_error, -ECONNRESET);
    end();
}

/* --- Sending ---------------------------------------------------------------------------------- */

static void writes_outside_of_callbacks_leave_at_once(void)
{
    char buffer[64];
    begin_on(SOCK_SEQPACKET);
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), 10);
    CHECK_EQUAL(queue_and_send(20), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), 20);
    CHECK_EQUAL(owners_released, 2);
    end();
}

static void write_three_times(void)
{
    char buffer[64];
    for (size_t i = 1; i <= 3; i++)
        CHECK_EQUAL(queue_and_send(i * 10), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), -1); /* not before the callback's end */
}

static void expect_sixty_bytes_in_one(void)
{
    char buffer[128];
    ssize_t got = peer_receives(buffer, sizeof buffer);
    REQUIRE_EQUAL(got, 60);
    CHECK_BYTES(buffer, 60, pattern, 60);
    hear("arrived");
}

static void writes_of_one_callback_leave_in_one_call_before_the_next_callback(void)
{
    begin_on(SOCK_SEQPACKET);
    CHECK_EQUAL(run_in_loop(write_three_times, 0, expect_sixty_bytes_in_one), 0);
    CHECK_TEXT(heard, "arrived");
    CHECK_EQUAL(owners_released, 3);
    end();
}

static void writes_of_a_callback_that_ends_the_turn_leave_too(void)
{
    begin_on(SOCK_SEQPACKET);
    CHECK_EQUAL(run_in_loop(write_three_times, 8, expect_sixty_bytes_in_one), 8);
    CHECK_TEXT(heard, ""); /* the second callback did not run */
    expect_sixty_bytes_in_one();
    end();
}

static void write_when_received(size_t size)
{
    (void)size;
    write_three_times();
}

static void an_answer_written_while_receiving_leaves_in_the_same_turn(void)
{
    begin_on(SOCK_SEQPACKET);
    start_reading();
    script.on_received = write_when_received;
    peer_sends("question");
    CHECK_EQUAL(turn(), 0);
    expect_sixty_bytes_in_one();
    end();
}

static void an_answer_does_not_wait_until_the_socket_is_empty(void)
{
    begin_lending(lend);
    start_reading();
    script.on_received = write_when_received;
    peer_sends("0123456789abcdefghij");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_bytes, 8);
    end();
}

static void write_a_hundred_times(void)
{
    for (int i = 0; i < 100; i++)
        CHECK_EQUAL(queue_and_send(3), 0);
}

static void more_writes_than_one_call_takes_leave_in_few(void)
{
    static char buffer[1024];
    size_t position = 0;
    int calls = 0;
    ssize_t got;
    begin_on(SOCK_SEQPACKET);
    CHECK_EQUAL(run_in_loop(write_a_hundred_times, 0, NULL), 0);
    for (; (got = peer_receives(buffer, sizeof buffer)) > 0; position += (size_t)got, calls++)
        CHECK_BYTES(buffer, (size_t)got, pattern + position, (size_t)got);
    CHECK_EQUAL(position, 300);
    CHECK_AT_MOST(calls, 2);
    end();
}

static void write_more_than_is_held(void)
{
    static char buffer[2 * PR_STREAM_HELD_BYTES_MAX];
    CHECK_EQUAL(queue_and_send(PR_STREAM_HELD_BYTES_MAX), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), -1);
    CHECK_EQUAL(queue_and_send(1), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), PR_STREAM_HELD_BYTES_MAX + 1);
}

static void much_leaves_before_the_callback_ends(void)
{
    begin_on(SOCK_SEQPACKET);
    CHECK_EQUAL(run_in_loop(write_more_than_is_held, 0, NULL), 0);
    CHECK_TEXT(heard, "");
    end();
}

static void a_full_kernel_gets_the_rest_when_it_has_room(void)
{
    uint64_t seed = 3;
    size_t position = 0;
    begin();
    shrink_send_buffer();
    while (queued_bytes < 300000)
        CHECK_EQUAL(queue_and_send(1 + check_random(&seed) % 2000), 0);
    CHECK_AT_LEAST(pr_stream_queued_bytes(&stream), 1);
    CHECK_EQUAL(stream.watch.wanted, PR_WRITABLE);
    while (position < queued_bytes) {
        check_peer_receives_pattern(&position);
        if (pr_stream_queued_bytes(&stream))
            REQUIRE_EQUAL(turn(), 0);
    }
    CHECK_EQUAL(position, queued_bytes);
    CHECK_EQUAL(owners_released, owners_queued);
    CHECK_EQUAL(stream.watch.wanted, 0);
    CHECK_TEXT(heard, "high low");
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(loop.stats.stale_events, 0);
    end();
}

static void sending_and_receiving_go_on_side_by_side(void)
{
    size_t position = 0, answered_bytes = 0;
    begin();
    keeps_data_out_of_log = true;
    shrink_send_buffer();
    start_reading();
    CHECK_EQUAL(queue_and_send(50000), 0);
    while (position < 50000) {
        peer_sends("x");
        answered_bytes++;
        REQUIRE_EQUAL(turn(), 0);
        check_peer_receives_pattern(&position);
    }
    CHECK_EQUAL(position, 50000);
    CHECK_AT_LEAST(answered_bytes, 2);
    CHECK_EQUAL(received_bytes, answered_bytes);
    CHECK_EQUAL(stream.watch.wanted, PR_READABLE);
    end();
}

static void a_blocked_stream_does_not_try_again_before_there_is_room(void)
{
    begin();
    use_fake_backend();
    shrink_send_buffer();
    CHECK_EQUAL(queue_and_send(30000), 0);
    size_t left = pr_stream_queued_bytes(&stream);
    CHECK_EQUAL(stream.watch.wanted, PR_WRITABLE);
    size_t position = 0;
    check_peer_receives_pattern(&position); /* now there is room, but no event has said so */
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK_EQUAL(pr_stream_queued_bytes(&stream), left + 10);
    fake_backend_report(&fake, &stream.watch, PR_WRITABLE);
    CHECK_EQUAL(turn(), 0);
    CHECK_AT_MOST(pr_stream_queued_bytes(&stream), left + 9);
    end();
}

static void send_now_bypasses_an_empty_queue(void)
{
    char buffer[16];
    begin();
    CHECK_EQUAL(pr_stream_send_now(&stream, "hello", 5), 5);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), 5);
    CHECK_BYTES(buffer, 5, "hello", 5);
    end();
}

static void send_now_waits_behind_what_is_queued(void)
{
    begin();
    queue(10);
    CHECK_EQUAL(pr_stream_send_now(&stream, "hello", 5), 0);
    CHECK_EQUAL(pr_stream_flush(&stream), 0);
    CHECK_EQUAL(pr_stream_send_now(&stream, "hello", 5), 5);
    end();
}

static void send_now_says_how_much_a_full_kernel_took(void)
{
    size_t sent = 0;
    ssize_t count;
    begin();
    shrink_send_buffer();
    while ((count = pr_stream_send_now(&stream, pattern + sent, PATTERN_BYTES - sent)) > 0)
        sent += (size_t)count;
    CHECK_EQUAL(count, 0);
    CHECK_AT_LEAST(sent, 1);
    CHECK_AT_MOST(sent, PATTERN_BYTES - 1);
    size_t position = 0;
    check_peer_receives_pattern(&position);
    CHECK_EQUAL(position, sent);
    end();
}

static void a_broken_pipe_is_returned_to_who_sends(void)
{
    begin();
    close_end(1);
    CHECK_EQUAL(pr_stream_send_now(&stream, "hello", 5), -EPIPE);
    CHECK_EQUAL(queue_and_send(10), -EPIPE);
    CHECK_TEXT(heard, "");
    end();
}

static void write_once(void)
{
    CHECK_EQUAL(queue_and_send(10), 0);
}

static void a_broken_pipe_at_the_end_of_a_callback_is_told_once(void)
{
    begin();
    script.stops_on_error = true;
    close_end(1);
    CHECK_EQUAL(run_in_loop(write_once, 0, NULL), 0);
    CHECK_TEXT(heard, "send-error");
    CHECK_EQUAL(last_error, -EPIPE);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "send-error");
    CHECK_EQUAL(owners_released, 1);
    end();
}

static void an_error_told_at_the_end_of_a_callback_may_end_the_turn(void)
{
    begin();
    script.stops_on_error = true;
    script.error = 5;
    close_end(1);
    CHECK_EQUAL(run_in_loop(write_once, 0, NULL), 5);
    end();
}

static void a_peer_that_goes_while_the_kernel_is_full_is_told_as_an_error_of_sending(void)
{
    begin();
    script.stops_on_error = true;
    shrink_send_buffer();
    CHECK_EQUAL(queue_and_send(60000), 0);
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "send-error");
    CHECK(last_error == -EPIPE || last_error == -ECONNRESET);
    CHECK_EQUAL(owners_released, 1);
    end();
}

/* --- Water marks ------------------------------------------------------------------------------ */

/* Fills the kernel and leaves something in the queue; nothing is heard of it. */
static void block(void)
{
    shrink_send_buffer();
    REQUIRE_EQUAL(pr_stream_set_water(&stream, PATTERN_BYTES, PATTERN_BYTES / 2), 0);
    REQUIRE_EQUAL(queue_and_send(60000), 0);
    REQUIRE(pr_stream_queued_bytes(&stream) > 30000);
    CHECK_TEXT(heard, "");
}

static void peer_reads_all(void)
{
    static char buffer[65536];
    while (peer_receives(buffer, sizeof buffer) > 0)
        continue;
}

/* Lets the peer read until the queue is empty, and the kernel's buffer with it. */
static void drain(void)
{
    while (pr_stream_queued_bytes(&stream)) {
        peer_reads_all();
        REQUIRE_EQUAL(turn(), 0);
    }
    peer_reads_all();
}

static void the_marks_are_told_in_turn_and_once_each(void)
{
    begin();
    block();
    REQUIRE_EQUAL(pr_stream_set_water(&stream, 70000, 10), 0);
    for (int i = 0; i < 6; i++)
        CHECK_EQUAL(queue_and_send(10000), 0);
    CHECK_TEXT(heard, "high");
    drain();
    CHECK_TEXT(heard, "high low");
    CHECK_EQUAL(queue_and_send(200000), 0);
    CHECK_TEXT(heard, "high low high");
    drain();
    CHECK_TEXT(heard, "high low high low");
    end();
}

static void exactly_the_high_mark_is_not_too_much(void)
{
    begin();
    block();
    size_t queued = pr_stream_queued_bytes(&stream);
    REQUIRE_EQUAL(pr_stream_set_water(&stream, queued + 10, queued), 0);
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK_TEXT(heard, "");
    CHECK_EQUAL(queue_and_send(1), 0);
    CHECK_TEXT(heard, "high");
    end();
}

static void new_marks_are_held_against_the_queue_at_once(void)
{
    begin();
    block();
    size_t queued = pr_stream_queued_bytes(&stream);
    CHECK_EQUAL(pr_stream_set_water(&stream, queued - 1, 0), 0);
    CHECK_TEXT(heard, "high");
    CHECK_EQUAL(pr_stream_set_water(&stream, PATTERN_BYTES, queued), 0);
    CHECK_TEXT(heard, "high low");
    end();
}

static void drained_is_told_once_and_after_the_low_mark(void)
{
    begin();
    block();
    REQUIRE_EQUAL(pr_stream_set_water(&stream, 100, 0), 0);
    stream.wants_drained = true;
    drain();
    CHECK_TEXT(heard, "high low drained");
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK_TEXT(heard, "high low drained");
    peer_reads_all();
    stream.wants_drained = true;
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK_TEXT(heard, "high low drained drained");
    end();
}

static void a_result_of_a_mark_ends_the_turn(void)
{
    int result = 0;
    begin();
    block();
    script.high = 2;
    CHECK_EQUAL(pr_stream_set_water(&stream, 100, 50), 2);
    script.low = 6;
    while (result == 0 && pr_stream_queued_bytes(&stream)) {
        peer_reads_all();
        result = turn();
    }
    CHECK_EQUAL(result, 6);
    CHECK_TEXT(heard, "high low");
    end();
}

static void write_a_little(void)
{
    if (queued_bytes < PATTERN_BYTES - 10)
        CHECK_EQUAL(queue_and_send(10), 0);
    script.on_low_water = NULL;
}

static void a_low_mark_may_be_answered_with_more(void)
{
    size_t position = 0;
    begin();
    block();
    REQUIRE_EQUAL(pr_stream_set_water(&stream, 100, 50), 0);
    script.on_low_water = write_a_little;
    stream.wants_drained = true;
    while (position < queued_bytes) {
        check_peer_receives_pattern(&position);
        if (pr_stream_queued_bytes(&stream))
            REQUIRE_EQUAL(turn(), 0);
    }
    CHECK_EQUAL(position, 60010);
    CHECK_TEXT(heard, "high low drained");
    end();
}

static void stop_the_stream(void)
{
    pr_stream_stop(&stream);
}

static void a_stream_stopped_at_its_high_mark_is_not_told_that_it_drained(void)
{
    begin();
    block();
    stream.wants_drained = true;
    script.on_high_water = stop_the_stream;
    CHECK_EQUAL(pr_stream_set_water(&stream, 100, 50), 0);
    CHECK_TEXT(heard, "high");
    end();
}

static void stopping_forgets_the_level_and_what_was_waited_for(void)
{
    begin();
    block();
    stream.wants_drained = true;
    REQUIRE_EQUAL(pr_stream_set_water(&stream, 100, 50), 0);
    CHECK(stream.over_high_water);
    pr_stream_stop(&stream);
    CHECK(!stream.over_high_water);
    CHECK(!stream.wants_drained);
    forget();
    REQUIRE_EQUAL(pr_stream_start(&stream, pair[0]), 0); /* a new life hears nothing of the old */
    CHECK_EQUAL(pr_stream_flush(&stream), 0);
    CHECK_TEXT(heard, "");
    end();
}

static void a_stream_stopped_at_its_low_mark_is_not_told_that_it_drained(void)
{
    begin();
    block();
    REQUIRE_EQUAL(pr_stream_set_water(&stream, 100, pr_stream_queued_bytes(&stream) - 1), 0);
    stream.wants_drained = true;
    script.on_low_water = stop_the_stream;
    peer_reads_all();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "high low");
    end();
}

/* --- Stopping --------------------------------------------------------------------------------- */

static void stopping_drops_what_is_queued_and_may_be_repeated(void)
{
    begin();
    block();
    queue(10);
    queue(20);
    pr_stream_stop(&stream);
    CHECK_EQUAL(owners_released, 3);
    CHECK_EQUAL(pr_stream_queued_bytes(&stream), 0);
    pr_stream_stop(&stream);
    CHECK_EQUAL(pr_stream_set_reading(&stream, true), 0);
    CHECK_EQUAL(pr_stream_flush(&stream), 0);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "");
    end();
}

static void write_and_stop(void)
{
    CHECK_EQUAL(queue_and_send(10), 0);
    CHECK(stream.flush.next);
    pr_stream_stop(&stream);
    CHECK_SAME(stream.flush.next, NULL); /* the loop holds nothing of it */
}

static void a_stream_stopped_in_the_callback_that_wrote_sends_nothing(void)
{
    char buffer[16];
    begin();
    CHECK_EQUAL(run_in_loop(write_and_stop, 0, NULL), 0);
    CHECK_EQUAL(peer_receives(buffer, sizeof buffer), -1);
    CHECK_TEXT(heard, "");
    end();
}

static void a_stopped_stream_can_start_again_on_the_same_descriptor(void)
{
    begin();
    start_reading();
    pr_stream_stop(&stream);
    CHECK_EQUAL(pr_stream_start(&stream, pair[0]), 0);
    CHECK_EQUAL(pr_stream_start(&stream, pair[0]), -EEXIST);
    start_reading();
    peer_sends("again");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:again");
    end();
}

static void stop_once(void)
{
    script.on_release = NULL;
    pr_stream_stop(&stream);
}

/* An owner's end may set off anything, also the end of its stream. */
static void a_stream_stopped_while_an_owner_is_released_reports_no_error(void)
{
    begin();
    shrink_send_buffer();
    queue(10);
    queue(60000);
    script.on_release = stop_once;
    CHECK_EQUAL(pr_stream_flush(&stream), 0);
    CHECK_TEXT(heard, "");
    CHECK_EQUAL(owners_released, 2);
    end();
}

static void fill_pattern(void)
{
    for (size_t i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (char)(i * 31 + i / 251);
}

/* --- Pipes ------------------------------------------------------------------------------------ */

static const struct pr_stream_handler writing_handler = {
    .on_end = on_end,
    .on_error = on_error,
    .on_high_water = on_high_water,
    .on_low_water = on_low_water,
    .on_drained = on_drained,
};

/* A pipe's reading (0) or writing (1) end is the stream's. */
static void begin_on_pipe(int own_end)
{
    begin();
    pr_stream_stop(&stream);
    close(pair[0]);
    close(pair[1]);
    int ends[2];
    REQUIRE_EQUAL(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    pair[0] = ends[own_end];
    pair[1] = ends[1 - own_end];
    stream.is_file = true;
    if (own_end == 1)
        stream.handler = &writing_handler;
    REQUIRE_EQUAL(pr_stream_start(&stream, pair[0]), 0);
}

static void a_pipe_is_read_to_its_end(void)
{
    begin_on_pipe(0);
    start_reading();
    REQUIRE_EQUAL(write(pair[1], "hello", 5), 5);
    CHECK_EQUAL(turn(), 0);
    REQUIRE_EQUAL(write(pair[1], "last", 4), 4);
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:hello received:last end");
    CHECK(!stream.reading);
    end();
}

static void what_is_written_to_a_pipe_arrives_in_order(void)
{
    static char buffer[65536];
    begin_on_pipe(1);
    for (size_t size = 1; size < 40000; size *= 3)
        queue(size);
    CHECK_EQUAL(pr_stream_send_soon(&stream), 0);
    CHECK_EQUAL(read(pair[1], buffer, sizeof buffer), queued_bytes);
    CHECK_BYTES(buffer, queued_bytes, pattern, queued_bytes);
    CHECK_EQUAL(pr_stream_send_now(&stream, "now", 3), 3);
    CHECK_EQUAL(read(pair[1], buffer, sizeof buffer), 3);
    end();
}

static void a_full_pipe_gets_the_rest_when_it_has_room(void)
{
    static char buffer[PATTERN_BYTES];
    size_t got = 0;
    begin_on_pipe(1);
    CHECK_EQUAL(queue_and_send(300000), 0);
    CHECK(pr_stream_queued_bytes(&stream) > 0);
    while (got < queued_bytes) {
        ssize_t count = read(pair[1], buffer + got, sizeof buffer - got);
        if (count > 0)
            got += (size_t)count;
        else
            CHECK_EQUAL(turn(), 0);
    }
    CHECK_BYTES(buffer, got, pattern, queued_bytes);
    end();
}

static void the_writing_end_hears_that_the_reader_is_gone(void)
{
    begin_on_pipe(1);
    start_reading();
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "");
    close_end(1);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_TEXT(heard, "end");
    end();
}

static void a_pipe_without_reader_is_an_error_of_sending(void)
{
    begin_on_pipe(1);
    close_end(1);
    CHECK_EQUAL(queue_and_send(10), -EPIPE);
    CHECK_EQUAL(pr_stream_send_now(&stream, "now", 3), 0); /* behind what is queued */
    end();
}

static void run_pipe_tests(void)
{
    signal(SIGPIPE, SIG_IGN);
    RUN(a_pipe_is_read_to_its_end);
    RUN(what_is_written_to_a_pipe_arrives_in_order);
    RUN(a_full_pipe_gets_the_rest_when_it_has_room);
    RUN(the_writing_end_hears_that_the_reader_is_gone);
    RUN(a_pipe_without_reader_is_an_error_of_sending);
}

static void run_receiving_tests(void)
{
    RUN(nothing_is_received_before_reading_is_asked_for);
    RUN(bytes_are_received_once_and_in_order);
    RUN(pausing_and_resuming_asks_the_kernel_nothing);
    RUN(a_peer_that_goes_while_reading_is_paused_does_not_make_it_spin);
    RUN(reading_that_could_not_start_can_be_tried_again);
    RUN(the_end_is_told_once_and_writing_goes_on);
    RUN(a_reset_is_told_as_an_error_of_reading);
    RUN(stopping_while_receiving_ends_everything);
    RUN(what_was_written_before_a_stop_is_dropped);
    RUN(stopping_while_receiving_keeps_the_writable_event_away);
    RUN(a_result_of_receiving_ends_the_turn);

    RUN(a_lent_buffer_is_filled_up_to_its_size);
    RUN(a_stream_that_is_alone_is_received_from_until_it_is_empty);
    RUN(a_stream_that_takes_long_gives_others_their_turn);
    RUN(what_is_ready_does_not_wait_until_the_socket_is_empty);
    RUN(a_stream_paused_while_receiving_is_left_alone);
    RUN(a_buffer_of_no_size_skips_the_read_and_keeps_the_data);
    RUN(a_lent_buffer_comes_back_where_nothing_was_there_to_read);
    RUN(a_lent_buffer_comes_back_before_the_end_is_told);
    RUN(a_lent_buffer_comes_back_before_an_error_is_told);
    RUN(a_stream_stopped_when_its_buffer_comes_back_hears_nothing_more);
    RUN(a_stream_stopped_while_it_asks_for_a_buffer_reports_no_error);
    RUN(an_error_outlives_a_turn_that_the_buffers_return_ended);
}

static void run_sending_tests(void)
{
    RUN(writes_outside_of_callbacks_leave_at_once);
    RUN(writes_of_one_callback_leave_in_one_call_before_the_next_callback);
    RUN(writes_of_a_callback_that_ends_the_turn_leave_too);
    RUN(an_answer_written_while_receiving_leaves_in_the_same_turn);
    RUN(an_answer_does_not_wait_until_the_socket_is_empty);
    RUN(more_writes_than_one_call_takes_leave_in_few);
    RUN(much_leaves_before_the_callback_ends);
    RUN(a_full_kernel_gets_the_rest_when_it_has_room);
    RUN(sending_and_receiving_go_on_side_by_side);
    RUN(a_blocked_stream_does_not_try_again_before_there_is_room);
    RUN(send_now_bypasses_an_empty_queue);
    RUN(send_now_waits_behind_what_is_queued);
    RUN(send_now_says_how_much_a_full_kernel_took);
    RUN(a_broken_pipe_is_returned_to_who_sends);
    RUN(a_broken_pipe_at_the_end_of_a_callback_is_told_once);
    RUN(an_error_told_at_the_end_of_a_callback_may_end_the_turn);
    RUN(a_peer_that_goes_while_the_kernel_is_full_is_told_as_an_error_of_sending);

    RUN(the_marks_are_told_in_turn_and_once_each);
    RUN(exactly_the_high_mark_is_not_too_much);
    RUN(new_marks_are_held_against_the_queue_at_once);
    RUN(drained_is_told_once_and_after_the_low_mark);
    RUN(a_result_of_a_mark_ends_the_turn);
    RUN(a_low_mark_may_be_answered_with_more);
    RUN(a_stream_stopped_at_its_high_mark_is_not_told_that_it_drained);
    RUN(stopping_forgets_the_level_and_what_was_waited_for);
    RUN(a_stream_stopped_at_its_low_mark_is_not_told_that_it_drained);
}

int main(void)
{
    fill_pattern();
    run_receiving_tests();
    run_sending_tests();
    run_pipe_tests();
    RUN(stopping_drops_what_is_queued_and_may_be_repeated);
    RUN(a_stream_stopped_in_the_callback_that_wrote_sends_nothing);
    RUN(a_stopped_stream_can_start_again_on_the_same_descriptor);
    RUN(a_stream_stopped_while_an_owner_is_released_reports_no_error);
    return check_status();
}
