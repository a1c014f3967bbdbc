/*
 * Load generator for servers that answer each message with one of known length: a fixed number of
 * round trips, the server's CPU time for them, and the latencies.
 *
 * usage: loadgen PORT PID CONNECTIONS BYTES|FOLDER ROUND_TRIPS [reconnect]
 *
 * Given a number of BYTES, it sends messages of this length and expects their echo.  A FOLDER holds
 * the files `request` and `response`, and, if a connection begins with another exchange (the
 * handshake of a WebSocket), `opening_request` and `opening_response`.  A zero byte in a response
 * stands for any byte: for a date, say.
 *
 * Each connection has one message in flight: it sends, waits for the whole answer, checks it, and
 * sends again; with `reconnect`, over a new connection each time.  A tenth of ROUND_TRIPS runs
 * first, uncounted, so that caches, adaptive buffers and the interpreter's specialised code are
 * warm.  The work, not the time, is fixed: a slow server then does the same as a fast one, and the
 * figure is CPU time per round trip.
 *
 * The CPU time is that of process PID (user and system, all its threads, those that have ended
 * too), from the kernel's clock for that process, with nanosecond resolution.  It is read by this
 * program at the first and at the last counted echo, so starting and stopping are not in it.
 *
 * Compiled with -DTLS and linked with OpenSSL it does the same over TLS, and trusts any
 * certificate.
 *
 * Prints one line of JSON.  An answer that differs, a lost connection or PATIENCE_MS without a
 * single event is an error: a message and exit status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef TLS
#include <openssl/ssl.h>
#endif

#define EVENTS_PER_WAIT 256
#define PATIENCE_MS 10000
#define PATH_BYTES 4096
#define NS_PER_US 1000
#define NS_PER_SECOND 1000000000

/*
 * Latencies are counted in buckets of which each power of two has 32, which keeps the error of a
 * percentile below 1/32 from nanoseconds to minutes with one small table.
 */
#define BUCKETS_PER_OCTAVE_LOG2 5
#define BUCKETS_PER_OCTAVE (1u << BUCKETS_PER_OCTAVE_LOG2)
#define BUCKETS ((64 - BUCKETS_PER_OCTAVE_LOG2 + 1) * BUCKETS_PER_OCTAVE)

struct connection {
    int fd; /* owned */
#ifdef TLS
    SSL *tls; /* owned */
#endif
    size_t sent_bytes;
    size_t received_bytes;
    uint64_t sent_at_ns;
    uint32_t watched_events;
};

/* What is sent, and what has to come back. */
struct exchange {
    char *request; /* owned; NULL if there is no such exchange */
    size_t request_bytes;
    char *response; /* owned, or the request itself; a zero byte stands for any */
    size_t response_bytes;
};

struct load {
    int epoll_fd;
    uint16_t port;
    int reconnects; /* each round trip has a connection of its own */
    clockid_t server_clock;
    struct connection *connections; /* owned */
    size_t connection_count;
    struct exchange opening; /* once for each connection */
    struct exchange exchange;
    char *received; /* owned; as long as the longer response */
    uint64_t warm_up_left;
    uint64_t counted_left;
    uint64_t to_start; /* round trips not yet started */
    uint64_t began_ns;
    uint64_t server_began_ns;
    uint64_t latency_counts[BUCKETS];
};

static void fail(const char *what)
{
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static void fail_because(const char *why)
{
    fprintf(stderr, "loadgen: %s\n", why);
    exit(EXIT_FAILURE);
}

static uint64_t read_clock(clockid_t clock)
{
    struct timespec now;

    if (clock_gettime(clock, &now) < 0)
        fail("clock_gettime");
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* Values below BUCKETS_PER_OCTAVE have a bucket each; above, the leading bits choose. */
static size_t bucket_of(uint64_t value)
{
    unsigned shift;

    if (value < BUCKETS_PER_OCTAVE)
        return (size_t)value;
    shift = 63u - (unsigned)__builtin_clzll(value) - BUCKETS_PER_OCTAVE_LOG2;
    return (size_t)shift * BUCKETS_PER_OCTAVE + (size_t)(value >> shift);
}

/* The least value that falls into the bucket: the inverse of bucket_of(). */
static uint64_t bucket_floor(size_t bucket)
{
    size_t shift = bucket / BUCKETS_PER_OCTAVE;

    if (shift == 0)
        return bucket;
    return (uint64_t)(bucket % BUCKETS_PER_OCTAVE + BUCKETS_PER_OCTAVE) << (shift - 1);
}

static double percentile_us(const struct load *load, uint64_t total, double share)
{
    uint64_t wanted = (uint64_t)((double)total * share);
    uint64_t seen = 0;

    for (size_t i = 0; i < BUCKETS; i++) {
        seen += load->latency_counts[i];
        if (seen > wanted)
            return (double)bucket_floor(i) / NS_PER_US;
    }
    return 0;
}

static int connect_to(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0)
        fail("socket options");
    return fd;
}

/*
 * What goes over a connection: as send() and recv(), with EAGAIN.  is_ahead() says that more was
 * received than has been taken, so that the socket may never be readable again.
 */
#ifdef TLS
static void secure(struct connection *connection)
{
    static SSL_CTX *context;

    if (context == NULL) {
        context = SSL_CTX_new(TLS_client_method());
        if (context == NULL)
            fail_because("no OpenSSL context");
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
        SSL_CTX_set_mode(context, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_read_ahead(context, 1);
    }
    connection->tls = SSL_new(context);
    if (connection->tls == NULL || SSL_set_fd(connection->tls, connection->fd) != 1 ||
        SSL_connect(connection->tls) != 1)
        fail_because("the TLS handshake failed");
}

static ssize_t tls_result(struct connection *connection, int result)
{
    if (result > 0)
        return result;
    switch (SSL_get_error(connection->tls, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        fail_because("TLS failed");
        return -1;
    }
}

static ssize_t put(struct connection *connection, const char *data, size_t size)
{
    return tls_result(connection, SSL_write(connection->tls, data, (int)size));
}

static ssize_t take(struct connection *connection, char *data, size_t size)
{
    return tls_result(connection, SSL_read(connection->tls, data, (int)size));
}

static int is_ahead(struct connection *connection)
{
    return SSL_has_pending(connection->tls);
}

static void end(struct connection *connection)
{
    SSL_free(connection->tls);
    close(connection->fd);
}
#else
static void secure(struct connection *connection)
{
    (void)connection;
}

static ssize_t put(struct connection *connection, const char *data, size_t size)
{
    return send(connection->fd, data, size, MSG_NOSIGNAL);
}

static ssize_t take(struct connection *connection, char *data, size_t size)
{
    return recv(connection->fd, data, size, 0);
}

static int is_ahead(struct connection *connection)
{
    (void)connection;
    return 0;
}

static void end(struct connection *connection)
{
    close(connection->fd);
}
#endif

/* Wait for room in the socket only while there is something left to send. */
static void watch(struct load *load, struct connection *connection, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};

    if (operation == EPOLL_CTL_MOD && connection->watched_events == events)
        return;
    if (epoll_ctl(load->epoll_fd, operation, connection->fd, &event) < 0)
        fail("epoll_ctl");
    connection->watched_events = events;
}

static void send_rest(struct load *load, struct connection *connection)
{
    const struct exchange *exchange = &load->exchange;
    size_t left = exchange->request_bytes - connection->sent_bytes;
    ssize_t sent = put(connection, exchange->request + connection->sent_bytes, left);

    if (sent < 0 && errno != EAGAIN)
        fail("send");
    if (sent > 0)
        connection->sent_bytes += (size_t)sent;
    watch(load, connection, EPOLL_CTL_MOD,
          connection->sent_bytes < exchange->request_bytes ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void check(const struct exchange *exchange, size_t at, const char *data, size_t length)
{
    const char *expected = exchange->response + at;

    if (memcmp(data, expected, length) == 0)
        return;
    for (size_t i = 0; i < length; i++) {
        if (expected[i] != 0 && expected[i] != data[i])
            fail_because("an answer differs from what is expected");
    }
}

/* The exchange that a connection begins with, while the socket still blocks. */
static void open_exchange(const struct load *load, struct connection *connection)
{
    const struct exchange *opening = &load->opening;
    size_t at = 0;

    if (opening->request == NULL)
        return;
    if (put(connection, opening->request, opening->request_bytes) !=
        (ssize_t)opening->request_bytes)
        fail("send");
    while (at < opening->response_bytes) {
        ssize_t length = take(connection, load->received, opening->response_bytes - at);

        if (length < 0)
            fail("recv");
        if (length == 0)
            fail_because("the server closed a connection that was opening");
        check(opening, at, load->received, (size_t)length);
        at += (size_t)length;
    }
}

static void open_connection(struct load *load, struct connection *connection)
{
    connection->fd = connect_to(load->port);
    secure(connection);
    open_exchange(load, connection);
    if (fcntl(connection->fd, F_SETFL, O_NONBLOCK) < 0)
        fail("fcntl");
    watch(load, connection, EPOLL_CTL_ADD, EPOLLIN);
}

static void start_round_trip(struct load *load, struct connection *connection)
{
    if (load->to_start == 0)
        return;
    load->to_start--;
    connection->sent_bytes = 0;
    connection->received_bytes = 0;
    connection->sent_at_ns = read_clock(CLOCK_MONOTONIC);
    send_rest(load, connection);
}

static void begin_counting(struct load *load)
{
    load->began_ns = read_clock(CLOCK_MONOTONIC);
    load->server_began_ns = read_clock(load->server_clock);
}

static void finish_round_trip(struct load *load, struct connection *connection)
{
    if (load->warm_up_left > 0) {
        load->warm_up_left--;
        if (load->warm_up_left == 0)
            begin_counting(load);
    } else {
        uint64_t latency_ns = read_clock(CLOCK_MONOTONIC) - connection->sent_at_ns;

        load->latency_counts[bucket_of(latency_ns)]++;
        load->counted_left--;
    }
    if (load->reconnects && load->to_start > 0) {
        end(connection);
        open_connection(load, connection);
    }
    start_round_trip(load, connection);
}

/* Returns whether more may be there without a word from epoll. */
static int receive(struct load *load, struct connection *connection)
{
    const struct exchange *exchange = &load->exchange;
    size_t at = connection->received_bytes;
    ssize_t length = take(connection, load->received, exchange->response_bytes - at);

    if (length < 0 && errno == EAGAIN)
        return 0;
    if (length < 0)
        fail("recv");
    if (length == 0)
        fail_because("the server closed a connection");
    check(exchange, at, load->received, (size_t)length);
    connection->received_bytes += (size_t)length;
    if (connection->received_bytes == exchange->response_bytes)
        finish_round_trip(load, connection);
    return is_ahead(connection);
}

static void run(struct load *load)
{
    for (size_t i = 0; i < load->connection_count; i++)
        start_round_trip(load, &load->connections[i]);
    while (load->counted_left > 0) {
        struct epoll_event events[EVENTS_PER_WAIT];
        int count = epoll_wait(load->epoll_fd, events, EVENTS_PER_WAIT, PATIENCE_MS);

        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        if (count == 0)
            fail_because("the server has stopped answering");
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;

            if (events[i].events & EPOLLOUT)
                send_rest(load, connection);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                while (receive(load, connection)) {
                }
            }
        }
    }
}

static void report(const struct load *load, uint64_t counted)
{
    uint64_t elapsed_ns = read_clock(CLOCK_MONOTONIC) - load->began_ns;
    uint64_t server_ns = read_clock(load->server_clock) - load->server_began_ns;

    printf("{\"round_trips\": %llu, \"cpu_us\": %.4f, \"per_second\": %.0f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           (unsigned long long)counted, (double)server_ns / NS_PER_US / (double)counted,
           (double)counted * NS_PER_SECOND / (double)elapsed_ns, percentile_us(load, counted, 0.5),
           percentile_us(load, counted, 0.99));
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);

    if (*text == '\0' || *end != '\0' || value < least || value > most) {
        fprintf(stderr, "loadgen: %s is not a number from %llu to %llu\n", text,
                (unsigned long long)least, (unsigned long long)most);
        exit(2);
    }
    return value;
}

/* Read a file of the folder; NULL and no bytes if it is not there. */
static char *read_file(const char *folder, const char *name, size_t *size)
{
    char path[PATH_BYTES];
    FILE *file;
    long end;
    char *data;

    *size = 0;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        fail_because("the folder's name is too long");
    file = fopen(path, "rb");
    if (file == NULL && errno == ENOENT)
        return NULL;
    if (file == NULL || fseek(file, 0, SEEK_END) < 0 || (end = ftell(file)) < 0)
        fail(path);
    rewind(file);
    data = malloc((size_t)end + 1);
    if (data == NULL || fread(data, 1, (size_t)end, file) != (size_t)end)
        fail(path);
    fclose(file);
    *size = (size_t)end;
    return data;
}

static void set_echo(struct load *load, size_t size)
{
    struct exchange *exchange = &load->exchange;

    exchange->request = malloc(size);
    if (exchange->request == NULL)
        fail("malloc");
    /* A period of 61 is coprime to buffer sizes, so bytes in the wrong place are noticed. */
    for (size_t i = 0; i < size; i++)
        exchange->request[i] = (char)('!' + i % 61);
    exchange->request[size - 1] = '\n'; /* a line, for servers that read lines */
    exchange->response = exchange->request;
    exchange->request_bytes = exchange->response_bytes = size;
}

static void set_exchanges(struct load *load, const char *folder)
{
    struct exchange *exchange = &load->exchange;
    struct exchange *opening = &load->opening;

    exchange->request = read_file(folder, "request", &exchange->request_bytes);
    exchange->response = read_file(folder, "response", &exchange->response_bytes);
    opening->request = read_file(folder, "opening_request", &opening->request_bytes);
    opening->response = read_file(folder, "opening_response", &opening->response_bytes);
    if (exchange->request_bytes == 0 || exchange->response_bytes == 0)
        fail_because("the folder needs files `request` and `response` that are not empty");
    if ((opening->request == NULL) != (opening->response == NULL))
        fail_because("the folder has half of an opening");
}

static void release(struct load *load)
{
    for (size_t i = 0; i < load->connection_count; i++)
        end(&load->connections[i]);
    close(load->epoll_fd);
    if (load->exchange.response != load->exchange.request)
        free(load->exchange.response);
    free(load->exchange.request);
    free(load->opening.response);
    free(load->opening.request);
    free(load->received);
    free(load->connections);
}

int main(int argc, char **argv)
{
    static struct load load;
    uint64_t counted;
    size_t longest;
    int err;

    load.reconnects = argc == 7 && strcmp(argv[6], "reconnect") == 0;
    if (argc != 6 + load.reconnects) {
        fprintf(stderr, "usage: %s PORT PID CONNECTIONS BYTES|FOLDER ROUND_TRIPS [reconnect]\n",
                argv[0]);
        return 2;
    }
    load.port = (uint16_t)number(argv[1], 1, UINT16_MAX);
    err = clock_getcpuclockid((pid_t)number(argv[2], 1, INT32_MAX), &load.server_clock);
    if (err != 0) {
        errno = err;
        fail("the server's CPU clock");
    }
    load.connection_count = number(argv[3], 1, 100000);
    if (strchr(argv[4], '/') != NULL)
        set_exchanges(&load, argv[4]);
    else
        set_echo(&load, number(argv[4], 1, 1u << 30));
    counted = number(argv[5], 1, UINT64_MAX / 2);
    load.counted_left = counted;
    /* Each connection is warm only after a round trip of its own. */
    load.warm_up_left = counted / 10 + load.connection_count;
    load.to_start = load.warm_up_left + load.counted_left;

    longest = load.exchange.response_bytes;
    if (longest < load.opening.response_bytes)
        longest = load.opening.response_bytes;
    load.connections = calloc(load.connection_count, sizeof *load.connections);
    load.received = malloc(longest);
    load.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (load.connections == NULL || load.received == NULL || load.epoll_fd < 0)
        fail("setup");

    for (size_t i = 0; i < load.connection_count; i++)
        open_connection(&load, &load.connections[i]);
    run(&load);
    report(&load, counted);
    release(&load);
    return 0;
}
