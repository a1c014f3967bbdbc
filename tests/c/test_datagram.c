/*
 * The datagram endpoint, over real sockets: a Unix pair, whose peer sees each datagram, or UDP on
 * the loopback interface.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/datagram.h"

#ifndef UDP_GRO /* younger than the headers of some systems */
#define UDP_GRO 104
#endif

#define LOG_BYTES 8192
#define DATA_BYTES (512 * 1024)
#define OWNERS_MAX 4096

static struct pr_loop loop;
static struct fake_backend fake;
static struct pr_datagram_endpoint endpoint;
static int pair[2]; /* the endpoint's descriptor, and its peer */
static bool ends_closed[2];
static char data[DATA_BYTES]; /* what is sent; byte n tells its place */

static char heard[LOG_BYTES]; /* what the handler was told, one word each */
static int last_error;
static struct pr_address last_source;

/* What the handler does besides; reset for each test. */
static struct {
    int received, error, high; /* results */
    int by_owner;              /* the result of the owner's own sending */
    void (*on_received)(void);
    void (*on_error)(void);
    void (*on_release)(void);
    void (*on_low_water)(void);
    bool keeps_data_out_of_log;
} script;

static int received_count;
static int owners_queued, owners_released;

static void hear(const char *word)
{
    REQUIRE(strlen(heard) + strlen(word) + 2 < LOG_BYTES);
    if (heard[0])
        strcat(heard, " ");
    strcat(heard, word);
}

static int on_received(struct pr_datagram_endpoint *from, const char *bytes, size_t size,
                       const struct pr_address *source)
{
    CHECK_SAME(from, &endpoint);
    if (!script.keeps_data_out_of_log) {
        char word[64];
        snprintf(word, sizeof word, "received:%.*s", (int)(size < 40 ? size : 40), bytes);
        hear(word);
    }
    received_count++;
    pr_address_copy(&last_source, source);
    if (script.on_received)
        script.on_received();
    return script.received;
}

static int on_error(struct pr_datagram_endpoint *from, int error, bool sending)
{
    CHECK_SAME(from, &endpoint);
    hear(sending ? "send-error" : "receive-error");
    last_error = error;
    if (script.on_error)
        script.on_error();
    return script.error;
}

static int send_by_owner(struct pr_datagram_endpoint *from, void *owner)
{
    char word[64];
    CHECK_SAME(from, &endpoint);
    snprintf(word, sizeof word, "by-owner:%d", (int)(intptr_t)owner);
    hear(word);
    if (script.by_owner == 0)
        REQUIRE_EQUAL(send(pair[0], "by owner", 8, 0), 8);
    return script.by_owner;
}

static int on_high_water(struct pr_datagram_endpoint *from)
{
    CHECK_SAME(from, &endpoint);
    hear("high");
    return script.high;
}

static int on_low_water(struct pr_datagram_endpoint *from)
{
    CHECK_SAME(from, &endpoint);
    hear("low");
    if (script.on_low_water)
        script.on_low_water();
    return 0;
}

static int on_drained(struct pr_datagram_endpoint *from)
{
    CHECK_SAME(from, &endpoint);
    hear("drained");
    return 0;
}

static const struct pr_datagram_handler handler = {
    .on_received = on_received,
    .on_error = on_error,
    .send_by_owner = send_by_owner,
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
    last_error = 0;
    received_count = 0;
}

static void prepare(void)
{
    memset(&script, 0, sizeof script);
    owners_queued = owners_released = 0;
    ends_closed[0] = ends_closed[1] = false;
    forget();
    REQUIRE_EQUAL(pr_loop_init(&loop, "auto"), 0);
    pr_datagram_init(&endpoint, &loop, &handler, NULL, release);
}

/* On a connected Unix pair. */
static void begin(void)
{
    prepare();
    endpoint.segment_bytes_max = 0;
    endpoint.datagram_bytes_max = PR_RECEIVE_BUFFER_BYTES;
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    REQUIRE_EQUAL(pr_datagram_start(&endpoint, pair[0]), 0);
}

static struct pr_address own_address(int fd)
{
    struct pr_address address = {.size = sizeof address.ip4};
    REQUIRE_EQUAL(getsockname(fd, &address.any, &address.size), 0);
    return address;
}

/* On two UDP sockets, each connected to the other. */
static void begin_on_udp(void)
{
    prepare();
    struct pr_address loopback;
    REQUIRE_EQUAL(pr_address_parse_host(&loopback, AF_INET, "127.0.0.1", 0), 0);
    for (int i = 0; i < 2; i++) {
        pair[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        REQUIRE_EQUAL(bind(pair[i], &loopback.any, loopback.size), 0);
    }
    for (int i = 0; i < 2; i++) {
        struct pr_address peer = own_address(pair[1 - i]);
        REQUIRE_EQUAL(connect(pair[i], &peer.any, peer.size), 0);
    }
    REQUIRE_EQUAL(pr_datagram_start(&endpoint, pair[0]), 0);
}

static void close_end(int which)
{
    if (!ends_closed[which])
        close(pair[which]);
    ends_closed[which] = true;
}

static void end(void)
{
    pr_datagram_deinit(&endpoint);
    CHECK_EQUAL(owners_released, owners_queued); /* exactly once, whatever happened */
    CHECK_EQUAL(endpoint.bytes, 0);
    CHECK(!pr_watch_is_active(&endpoint.watch));
    close_end(0);
    close_end(1);
    pr_loop_deinit(&loop);
}

static void queue(size_t size)
{
    REQUIRE(owners_queued < OWNERS_MAX && size <= DATA_BYTES);
    void *owner = (void *)(intptr_t)++owners_queued;
    REQUIRE_EQUAL(pr_datagram_queue(&endpoint, data, size, owner, NULL), 0);
}

static void queue_text(const char *text)
{
    void *owner = (void *)(intptr_t)++owners_queued;
    REQUIRE_EQUAL(pr_datagram_queue(&endpoint, text, strlen(text), owner, NULL), 0);
}

static int send_soon(void)
{
    return pr_datagram_send_soon(&endpoint);
}

static void start_reading(void)
{
    REQUIRE_EQUAL(pr_datagram_set_reading(&endpoint, true), 0);
}

static int turn(void)
{
    return pr_loop_run_once(&loop, 5 * PR_NS_PER_SECOND);
}

static int idle_turn(void)
{
    return pr_loop_run_once(&loop, PR_NS_PER_MS);
}

static void peer_sends(const char *text)
{
    REQUIRE_EQUAL(send(pair[1], text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void check_peer_receives(const char *expected)
{
    static char buffer[65536];
    ssize_t got = recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT);
    REQUIRE(got >= 0);
    CHECK_BYTES(buffer, (size_t)got, expected, strlen(expected));
}

static void check_peer_receives_size(size_t size)
{
    static char buffer[65536];
    ssize_t got = recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT);
    CHECK_EQUAL(got, size);
    if (got > 0)
        CHECK_BYTES(buffer, (size_t)got, data, (size_t)got);
}

static void check_peer_receives_nothing(void)
{
    char buffer[16];
    CHECK_EQUAL(recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT), -1);
}

/* Queues until the kernel is full; returns how many the kernel took. */
static int fill(size_t size)
{
    for (int taken = 0;; taken++) {
        queue(size);
        REQUIRE_EQUAL(send_soon(), 0);
        if (endpoint.count)
            return taken;
    }
}

/* Runs `function` as a callback of the loop, in one turn. */
static void (*in_loop)(void);

static int run_in_loop_callback(struct pr_callback *callback)
{
    (void)callback;
    in_loop();
    return 0;
}

static int run_in_loop(void (*function)(void))
{
    struct pr_callback callback = {.run = run_in_loop_callback};
    in_loop = function;
    REQUIRE_EQUAL(pr_loop_call_soon(&loop, &callback), 0);
    return turn();
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
    CHECK_EQUAL(last_source.size, 0); /* a pair's ends have no names */
    end();
}

static void what_waits_is_received_in_order_and_with_its_source(void)
{
    begin_on_udp();
    start_reading();
    peer_sends("one");
    peer_sends("two");
    peer_sends("");
    peer_sends("three");
    peer_sends("four");
    peer_sends("five");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:one received:two received: received:three received:four "
                      "received:five");
    struct pr_address peer = own_address(pair[1]);
    CHECK(pr_address_equal(&last_source, &peer));
    end();
}

static void a_turn_brings_a_bounded_number(void)
{
    begin_on_udp();
    script.keeps_data_out_of_log = true;
    start_reading();
    for (int i = 0; i < PR_DATAGRAMS_PER_TURN_MAX + 5; i++)
        peer_sends("x");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_count, PR_DATAGRAMS_PER_TURN_MAX);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_count, PR_DATAGRAMS_PER_TURN_MAX + 5);
    end();
}

static void pause_reading(void)
{
    REQUIRE_EQUAL(pr_datagram_set_reading(&endpoint, false), 0);
}

static void a_pause_holds_after_what_the_kernel_gave(void)
{
    begin_on_udp();
    script.keeps_data_out_of_log = true;
    start_reading();
    script.on_received = pause_reading;
    for (int i = 0; i < 20; i++)
        peer_sends("x");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(received_count, PR_RECEIVE_BUFFER_BYTES / PR_DATAGRAM_IP_BYTES_MAX);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(received_count, PR_RECEIVE_BUFFER_BYTES / PR_DATAGRAM_IP_BYTES_MAX);
    end();
}

static void stop(void)
{
    pr_datagram_stop(&endpoint);
}

static void nothing_is_told_after_a_stop(void)
{
    begin_on_udp();
    start_reading();
    script.on_received = stop;
    peer_sends("one");
    peer_sends("two");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:one");
    end();
}

static void a_result_of_receiving_ends_the_turn_after_the_batch(void)
{
    begin_on_udp();
    script.keeps_data_out_of_log = true;
    script.received = 7;
    start_reading();
    for (int i = 0; i < 20; i++)
        peer_sends("x");
    CHECK_EQUAL(turn(), 7);
    CHECK_EQUAL(received_count, PR_RECEIVE_BUFFER_BYTES / PR_DATAGRAM_IP_BYTES_MAX);
    end();
}

static void one_that_is_too_large_is_told_as_an_error(void)
{
    begin();
    endpoint.datagram_bytes_max = PR_DATAGRAM_IP_BYTES_MAX;
    int size = DATA_BYTES;
    REQUIRE_EQUAL(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    start_reading();
    REQUIRE_EQUAL(send(pair[1], data, PR_DATAGRAM_IP_BYTES_MAX + 1, 0),
                  PR_DATAGRAM_IP_BYTES_MAX + 1);
    peer_sends("next");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "receive-error received:next");
    CHECK_EQUAL(last_error, -EMSGSIZE);
    end();
}

static void a_refusal_is_told_as_an_error_of_receiving(void)
{
    begin_on_udp();
    close_end(1);
    start_reading();
    queue_text("to nobody");
    CHECK_EQUAL(send_soon(), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "receive-error");
    CHECK_EQUAL(last_error, -ECONNREFUSED);
    CHECK(pr_watch_is_active(&endpoint.watch));
    end();
}

static void pausing_and_resuming_asks_the_kernel_nothing(void)
{
    begin();
    fake_backend_install(&fake, &loop);
    fake_backend_forget(&fake);
    start_reading();
    CHECK_EQUAL(fake.update_count, 1);
    pause_reading();
    start_reading();
    CHECK_EQUAL(fake.update_count, 1);
    fake.update_error = -ENOMEM;
    pause_reading();
    CHECK_EQUAL(endpoint.watch.wanted, 0);
    end();
}

static void reading_that_could_not_start_can_be_tried_again(void)
{
    begin();
    fake_backend_install(&fake, &loop);
    fake.update_error = -ENOMEM;
    CHECK_EQUAL(pr_datagram_set_reading(&endpoint, true), -ENOMEM);
    CHECK(!endpoint.reading);
    fake.update_error = 0;
    CHECK_EQUAL(pr_datagram_set_reading(&endpoint, true), 0);
    end();
}

/* --- Sending ---------------------------------------------------------------------------------- */

static void outside_of_callbacks_a_datagram_leaves_at_once(void)
{
    begin();
    queue_text("one");
    CHECK_EQUAL(send_soon(), 0);
    check_peer_receives("one");
    CHECK_EQUAL(endpoint.count, 0);
    end();
}

static void queue_three(void)
{
    queue_text("one");
    CHECK_EQUAL(send_soon(), 0);
    queue_text("");
    CHECK_EQUAL(send_soon(), 0);
    queue_text("three");
    CHECK_EQUAL(send_soon(), 0);
    CHECK_EQUAL(endpoint.count, 3);
    check_peer_receives_nothing();
}

static void those_of_one_callback_leave_at_its_end(void)
{
    begin();
    CHECK_EQUAL(run_in_loop(queue_three), 0);
    CHECK_EQUAL(endpoint.count, 0);
    check_peer_receives("one");
    check_peer_receives("");
    check_peer_receives("three");
    end();
}

static void queue_many(void)
{
    for (int i = 0; i < 2 * PR_DATAGRAMS_HELD_MAX; i++) {
        queue(10);
        CHECK_EQUAL(send_soon(), 0);
        CHECK_AT_MOST(endpoint.count, PR_DATAGRAMS_HELD_MAX);
    }
}

static void many_do_not_wait_for_the_callbacks_end(void)
{
    begin_on_udp();
    CHECK_EQUAL(run_in_loop(queue_many), 0);
    for (int i = 0; i < 2 * PR_DATAGRAMS_HELD_MAX; i++)
        check_peer_receives_size(10);
    check_peer_receives_nothing();
    end();
}

/* Sends datagrams of these sizes together, and looks at what comes. */
static void check_sizes(const size_t *sizes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        queue(sizes[i]);
    CHECK_EQUAL(send_soon(), 0);
    for (size_t i = 0; i < count; i++)
        check_peer_receives_size(sizes[i]);
    check_peer_receives_nothing();
}

static void neighbours_of_any_size_arrive_as_they_were(void)
{
    begin_on_udp();
    check_sizes((size_t[]){10, 10, 10}, 3);
    check_sizes((size_t[]){10, 10, 9, 9, 10, 0, 10, 10, 0, 0}, 10);
    check_sizes((size_t[]){1, 2, 3, 3, 2, 1}, 6);
    check_sizes((size_t[]){1472, 1472, 1472, 1}, 4);
    check_sizes((size_t[]){20000, 20000, 20000, 20000}, 4);
    check_sizes((size_t[]){65507, 10, 10}, 3);
    end();
}

static void neighbours_leave_as_one_packet(void)
{
    begin_on_udp();
    int on = 1;
    if (setsockopt(pair[1], SOL_UDP, UDP_GRO, &on, sizeof on) < 0) {
        end();
        SKIP("the kernel cannot show it: no UDP_GRO before 5.0");
    }
    for (int i = 0; i < 5; i++)
        queue(100);
    queue(50);
    queue(7);
    CHECK_EQUAL(send_soon(), 0);
    char buffer[1024];
    CHECK_EQUAL(recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT), 550);
    CHECK_EQUAL(recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT), 7);
    end();
}

static void neighbours_that_cannot_leave_as_one_packet_leave_alone(void)
{
    begin_on_udp();
    int on = 1; /* a socket without checksums has no segmentation */
    REQUIRE_EQUAL(setsockopt(pair[0], SOL_SOCKET, SO_NO_CHECK, &on, sizeof on), 0);
    check_sizes((size_t[]){100, 100, 100, 50, 50}, 5);
    CHECK_AT_MOST(endpoint.segment_bytes_max, 49);
    CHECK_TEXT(heard, "");
    end();
}

static void neighbours_to_different_targets_are_kept_apart(void)
{
    begin_on_udp();
    int sockets[2];
    struct pr_address targets[2];
    for (int i = 0; i < 2; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        REQUIRE_EQUAL(pr_address_parse_host(&targets[i], AF_INET, "127.0.0.1", 0), 0);
        REQUIRE_EQUAL(bind(sockets[i], &targets[i].any, targets[i].size), 0);
        targets[i] = own_address(sockets[i]);
    }
    static const int order[] = {0, 1, 1, 0, 0, 0, 1};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        void *owner = (void *)(intptr_t)++owners_queued;
        REQUIRE_EQUAL(pr_datagram_queue(&endpoint, data + i, 1, owner, &targets[order[i]]), 0);
    }
    CHECK_EQUAL(send_soon(), 0);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        char byte = '\0';
        CHECK_EQUAL(recv(sockets[order[i]], &byte, 1, MSG_DONTWAIT), 1);
        CHECK_EQUAL(byte, data[i]);
    }
    close(sockets[0]);
    close(sockets[1]);
    end();
}

static void a_full_kernel_gets_the_rest_when_it_has_room(void)
{
    begin();
    int taken = fill(1000);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(endpoint.count, 1);
    queue_text("after");
    CHECK_EQUAL(send_soon(), 0);
    for (int i = 0; i < taken; i++)
        check_peer_receives_size(1000);
    CHECK_EQUAL(turn(), 0);
    check_peer_receives_size(1000);
    check_peer_receives("after");
    CHECK_EQUAL(endpoint.count, 0);
    CHECK_EQUAL(endpoint.watch.wanted, 0);
    end();
}

static void an_error_is_told_for_its_datagram_alone(void)
{
    begin_on_udp();
    queue_text("before");
    queue(DATA_BYTES);
    queue_text("after");
    CHECK_EQUAL(send_soon(), 0);
    CHECK_TEXT(heard, "send-error");
    CHECK_EQUAL(last_error, -EMSGSIZE);
    check_peer_receives("before");
    check_peer_receives("after");
    end();
}

static void queue_too_large(void)
{
    queue(DATA_BYTES);
    CHECK_EQUAL(send_soon(), 0);
}

static void an_error_answered_with_another_waits_for_a_turn(void)
{
    begin_on_udp();
    REQUIRE_EQUAL(pr_datagram_set_water(&endpoint, 2 * DATA_BYTES, 0), 0);
    script.on_error = queue_too_large;
    queue_too_large();
    CHECK_TEXT(heard, "send-error");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "send-error send-error");
    script.on_error = NULL;
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "send-error send-error send-error");
    CHECK_EQUAL(endpoint.count, 0);
    end();
}

static void an_endpoint_stopped_at_an_error_tells_nothing_more(void)
{
    begin_on_udp();
    script.on_error = stop;
    queue(DATA_BYTES);
    queue(DATA_BYTES);
    queue_text("after");
    CHECK_EQUAL(send_soon(), 0);
    CHECK_TEXT(heard, "send-error");
    check_peer_receives_nothing();
    end();
}

static void a_result_of_an_error_ends_the_turn_and_keeps_the_rest(void)
{
    begin_on_udp();
    script.error = 5;
    queue(DATA_BYTES);
    queue_text("after");
    CHECK_EQUAL(send_soon(), 5);
    check_peer_receives_nothing();
    CHECK_EQUAL(turn(), 0);
    check_peer_receives("after");
    end();
}

static void what_only_the_owner_can_send_keeps_its_place(void)
{
    begin();
    queue_text("one");
    void *owner = (void *)(intptr_t)++owners_queued;
    REQUIRE_EQUAL(pr_datagram_queue_by_owner(&endpoint, 8, owner), 0);
    CHECK_EQUAL(endpoint.bytes, 3 + 8);
    queue_text("three");
    CHECK_EQUAL(send_soon(), 0);
    CHECK_TEXT(heard, "by-owner:2");
    check_peer_receives("one");
    check_peer_receives("by owner");
    check_peer_receives("three");
    end();
}

static void an_owner_that_finds_the_kernel_full_is_asked_again(void)
{
    begin();
    script.by_owner = -EAGAIN;
    void *owner = (void *)(intptr_t)++owners_queued;
    REQUIRE_EQUAL(pr_datagram_queue_by_owner(&endpoint, 8, owner), 0);
    CHECK_EQUAL(send_soon(), 0);
    CHECK_EQUAL(endpoint.count, 1);
    script.by_owner = 0;
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "by-owner:1 by-owner:1");
    check_peer_receives("by owner");
    end();
}

/* --- Water marks ------------------------------------------------------------------------------ */

static void drain_peer(void)
{
    static char buffer[65536];
    while (recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT) >= 0)
        continue;
}

static void the_marks_are_told_in_turn_and_once_each(void)
{
    begin();
    endpoint.overhead_bytes = 8;
    REQUIRE_EQUAL(pr_datagram_set_water(&endpoint, 4 * 1008, 1008), 0);
    fill(1000);
    CHECK_EQUAL(endpoint.bytes, 1008);
    for (int i = 0; i < 3; i++) {
        queue(1000);
        CHECK_EQUAL(send_soon(), 0);
    }
    CHECK_TEXT(heard, ""); /* exactly the mark is not too much */
    queue(0);
    CHECK_EQUAL(send_soon(), 0);
    queue(0);
    CHECK_EQUAL(send_soon(), 0);
    CHECK_TEXT(heard, "high");
    drain_peer();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "high low");
    CHECK_EQUAL(endpoint.bytes, 0);
    end();
}

static void drained_is_told_after_the_low_mark(void)
{
    begin();
    REQUIRE_EQUAL(pr_datagram_set_water(&endpoint, 10, 5), 0);
    fill(1000);
    endpoint.wants_drained = true;
    drain_peer();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "high low drained");
    CHECK(!endpoint.wants_drained);
    end();
}

static void an_endpoint_stopped_at_its_low_mark_is_not_told_that_it_drained(void)
{
    begin();
    REQUIRE_EQUAL(pr_datagram_set_water(&endpoint, 10, 5), 0);
    fill(1000);
    endpoint.wants_drained = true;
    script.on_low_water = stop;
    drain_peer();
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "high low");
    end();
}

/* --- The end ---------------------------------------------------------------------------------- */

static void stopping_drops_what_is_queued_and_may_be_repeated(void)
{
    begin();
    fill(1000);
    pr_datagram_stop(&endpoint);
    CHECK_EQUAL(endpoint.count, 0);
    CHECK_EQUAL(owners_released, owners_queued);
    pr_datagram_stop(&endpoint);
    CHECK_EQUAL(pr_datagram_flush(&endpoint), 0);
    end();
}

static void queue_and_stop(void)
{
    queue_text("one");
    CHECK_EQUAL(send_soon(), 0);
    pr_datagram_stop(&endpoint);
}

static void an_endpoint_stopped_in_the_callback_that_wrote_sends_nothing(void)
{
    begin();
    CHECK_EQUAL(run_in_loop(queue_and_stop), 0);
    check_peer_receives_nothing();
    end();
}

static void an_endpoint_stopped_while_an_owner_is_released_tells_nothing(void)
{
    begin();
    script.on_release = stop;
    queue_text("one");
    queue_text("two");
    endpoint.wants_drained = true;
    CHECK_EQUAL(send_soon(), 0);
    CHECK_TEXT(heard, "");
    end();
}

static void a_stopped_endpoint_can_start_again(void)
{
    begin();
    pr_datagram_stop(&endpoint);
    REQUIRE_EQUAL(pr_datagram_start(&endpoint, pair[0]), 0);
    start_reading();
    peer_sends("hello");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(heard, "received:hello");
    end();
}

int main(void)
{
    for (size_t i = 0; i < DATA_BYTES; i++)
        data[i] = (char)(i * 7 + i / 251);
    RUN(nothing_is_received_before_reading_is_asked_for);
    RUN(what_waits_is_received_in_order_and_with_its_source);
    RUN(a_turn_brings_a_bounded_number);
    RUN(a_pause_holds_after_what_the_kernel_gave);
    RUN(nothing_is_told_after_a_stop);
    RUN(a_result_of_receiving_ends_the_turn_after_the_batch);
    RUN(one_that_is_too_large_is_told_as_an_error);
    RUN(a_refusal_is_told_as_an_error_of_receiving);
    RUN(pausing_and_resuming_asks_the_kernel_nothing);
    RUN(reading_that_could_not_start_can_be_tried_again);

    RUN(outside_of_callbacks_a_datagram_leaves_at_once);
    RUN(those_of_one_callback_leave_at_its_end);
    RUN(many_do_not_wait_for_the_callbacks_end);
    RUN(neighbours_of_any_size_arrive_as_they_were);
    RUN(neighbours_leave_as_one_packet);
    RUN(neighbours_that_cannot_leave_as_one_packet_leave_alone);
    RUN(neighbours_to_different_targets_are_kept_apart);
    RUN(a_full_kernel_gets_the_rest_when_it_has_room);
    RUN(an_error_is_told_for_its_datagram_alone);
    RUN(an_error_answered_with_another_waits_for_a_turn);
    RUN(an_endpoint_stopped_at_an_error_tells_nothing_more);
    RUN(a_result_of_an_error_ends_the_turn_and_keeps_the_rest);
    RUN(what_only_the_owner_can_send_keeps_its_place);
    RUN(an_owner_that_finds_the_kernel_full_is_asked_again);

    RUN(the_marks_are_told_in_turn_and_once_each);
    RUN(drained_is_told_after_the_low_mark);
    RUN(an_endpoint_stopped_at_its_low_mark_is_not_told_that_it_drained);

    RUN(stopping_drops_what_is_queued_and_may_be_repeated);
    RUN(an_endpoint_stopped_in_the_callback_that_wrote_sends_nothing);
    RUN(an_endpoint_stopped_while_an_owner_is_released_tells_nothing);
    RUN(a_stopped_endpoint_can_start_again);
    return check_status();
}
