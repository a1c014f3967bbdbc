/*
 * The listener: a bound on each turn, a pause where descriptors run out, and a handler that may
 * stop it at any time.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/listener.h"

#define CONNECTIONS_MAX 16

static struct pr_loop loop;
static struct pr_listener listener;
static struct sockaddr_un address; /* an abstract one that the kernel chose */
static socklen_t address_size;
static int listening_fd;

static int clients[CONNECTIONS_MAX], client_count;
static int accepted[CONNECTIONS_MAX], accepted_count;
static int errors[CONNECTIONS_MAX], error_count;
static int accepted_result;
static bool stops_after_accepting, stops_after_error;
static struct sockaddr_storage last_peer;
static socklen_t last_peer_size;

static int on_accepted(struct pr_listener *from, int fd, const struct sockaddr *peer,
                       socklen_t peer_size)
{
    CHECK_SAME(from, &listener);
    REQUIRE(accepted_count < CONNECTIONS_MAX);
    accepted[accepted_count++] = fd;
    memcpy(&last_peer, peer, peer_size);
    last_peer_size = peer_size;
    if (stops_after_accepting) {
        pr_listener_stop(from);
        close(listening_fd);
    }
    return accepted_result;
}

static int on_error(struct pr_listener *from, int error)
{
    REQUIRE(error_count < CONNECTIONS_MAX);
    errors[error_count++] = error;
    if (stops_after_error)
        pr_listener_stop(from);
    return 0;
}

static const struct pr_listener_handler handler = {.on_accepted = on_accepted,
                                                   .on_error = on_error};

static void begin(void)
{
    client_count = accepted_count = error_count = accepted_result = 0;
    stops_after_accepting = stops_after_error = false;
    REQUIRE_EQUAL(pr_loop_init(&loop, "auto"), 0);
}

static void listen_here(int accepts_per_turn_max)
{
    address = (struct sockaddr_un){.sun_family = AF_UNIX};
    address_size = sizeof address;
    listening_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    REQUIRE(listening_fd >= 0);
    REQUIRE_EQUAL(bind(listening_fd, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
    REQUIRE_EQUAL(getsockname(listening_fd, (struct sockaddr *)&address, &address_size), 0);
    REQUIRE_EQUAL(listen(listening_fd, CONNECTIONS_MAX), 0);
    REQUIRE_EQUAL(
        pr_listener_start(&listener, &loop, listening_fd, accepts_per_turn_max, &handler, NULL), 0);
}

static void connect_clients(int count)
{
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        REQUIRE(fd >= 0 && client_count < CONNECTIONS_MAX);
        clients[client_count++] = fd;
        REQUIRE_EQUAL(connect(fd, (struct sockaddr *)&address, address_size), 0);
    }
}

static void end(void)
{
    pr_listener_stop(&listener);
    if (!stops_after_accepting)
        close(listening_fd);
    for (int i = 0; i < client_count; i++)
        close(clients[i]);
    for (int i = 0; i < accepted_count; i++)
        close(accepted[i]);
    pr_loop_deinit(&loop);
}

/* A turn in which something is to happen. */
static int turn(void)
{
    return pr_loop_run_once(&loop, PR_NS_PER_SECOND);
}

/* A turn in which nothing is to happen. */
static int idle_turn(void)
{
    return pr_loop_run_once(&loop, PR_NS_PER_MS);
}

static void a_burst_is_accepted_in_one_turn(void)
{
    begin();
    listen_here(CONNECTIONS_MAX);
    connect_clients(8);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 8);
    CHECK_EQUAL(error_count, 0);
    end();
}

static void no_more_than_the_bound_is_accepted_in_one_turn(void)
{
    begin();
    listen_here(4);
    connect_clients(10);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 4);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 8);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 10);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(accepted_count, 10);
    end();
}

static void an_accepted_descriptor_does_not_block_and_is_closed_on_exec(void)
{
    begin();
    listen_here(4);
    connect_clients(1);
    CHECK_EQUAL(turn(), 0);
    REQUIRE_EQUAL(accepted_count, 1);
    CHECK(fcntl(accepted[0], F_GETFL) & O_NONBLOCK);
    CHECK(fcntl(accepted[0], F_GETFD) & FD_CLOEXEC);
    end();
}

static void the_peers_address_is_handed_over(void)
{
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in mine;
    socklen_t size = sizeof inet;
    begin();
    listening_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(listening_fd >= 0 && client >= 0);
    REQUIRE_EQUAL(bind(listening_fd, (struct sockaddr *)&inet, sizeof inet), 0);
    REQUIRE_EQUAL(listen(listening_fd, 1), 0);
    REQUIRE_EQUAL(getsockname(listening_fd, (struct sockaddr *)&inet, &size), 0);
    REQUIRE_EQUAL(pr_listener_start(&listener, &loop, listening_fd, 4, &handler, NULL), 0);
    REQUIRE_EQUAL(connect(client, (struct sockaddr *)&inet, sizeof inet), 0);
    clients[client_count++] = client;
    CHECK_EQUAL(turn(), 0);
    REQUIRE_EQUAL(accepted_count, 1);
    size = sizeof mine;
    REQUIRE_EQUAL(getsockname(client, (struct sockaddr *)&mine, &size), 0);
    CHECK_BYTES((char *)&last_peer, last_peer_size, (char *)&mine, size);
    end();
}

static void a_handler_that_ends_the_turn_leaves_the_other_connections(void)
{
    begin();
    listen_here(8);
    connect_clients(3);
    accepted_result = 9;
    CHECK_EQUAL(turn(), 9);
    CHECK_EQUAL(accepted_count, 1);
    accepted_result = 0;
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 3);
    end();
}

static void a_handler_may_stop_the_listener_and_close_its_descriptor(void)
{
    begin();
    listen_here(8);
    connect_clients(3);
    stops_after_accepting = true;
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 1);
    CHECK_EQUAL(error_count, 0);
    CHECK(!pr_watch_is_active(&listener.watch));
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(accepted_count, 1);
    end();
}

static void without_descriptors_it_pauses_until_it_is_resumed(void)
{
    struct rlimit limit, less;
    begin();
    listen_here(8);
    connect_clients(2);
    REQUIRE_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    less = limit;
    less.rlim_cur = (rlim_t)(clients[1] + 1);
    REQUIRE_EQUAL(setrlimit(RLIMIT_NOFILE, &less), 0);
    CHECK_EQUAL(turn(), 0);
    uint64_t events = loop.stats.events;
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(idle_turn(), 0);
    REQUIRE_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQUAL(error_count, 1); /* said once */
    CHECK_EQUAL(errors[0], -EMFILE);
    CHECK_AT_MOST(loop.stats.events, events + 1); /* and it does not spin */
    CHECK_EQUAL(accepted_count, 0);

    CHECK_EQUAL(pr_listener_resume(&listener), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 2);
    CHECK_EQUAL(error_count, 1);
    end();
}

static void other_errors_are_told_and_the_owner_decides(void)
{
    begin();
    listening_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    stops_after_error = true;
    /* Not listening: it is ready with a hang-up, and accept says EINVAL. */
    REQUIRE_EQUAL(pr_listener_start(&listener, &loop, listening_fd, 8, &handler, NULL), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(error_count, 1);
    CHECK_EQUAL(errors[0], -EINVAL);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(error_count, 1);
    end();
}

static void readiness_without_a_connection_is_harmless(void)
{
    struct fake_backend fake;
    begin();
    fake_backend_install(&fake, &loop);
    listen_here(8);
    fake_backend_report(&fake, &listener.watch, PR_READABLE);
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(accepted_count, 0);
    CHECK_EQUAL(error_count, 0);
    end();
}

static void stopping_and_resuming_a_stopped_listener_do_nothing(void)
{
    begin();
    listen_here(8);
    pr_listener_stop(&listener);
    pr_listener_stop(&listener);
    CHECK_EQUAL(pr_listener_resume(&listener), 0);
    connect_clients(1);
    CHECK_EQUAL(idle_turn(), 0);
    CHECK_EQUAL(accepted_count, 0);
    struct pr_listener never_started = {0};
    pr_listener_stop(&never_started);
    end();
}

static void only_a_lack_of_resources_counts_as_exhaustion(void)
{
    static const int exhausted[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    static const int others[] = {EAGAIN, ECONNABORTED, EINVAL, EBADF, EPERM};
    for (size_t i = 0; i < sizeof exhausted / sizeof *exhausted; i++)
        CHECK(pr_listener_is_exhaustion(-exhausted[i]));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        CHECK(!pr_listener_is_exhaustion(-others[i]));
}

int main(void)
{
    RUN(a_burst_is_accepted_in_one_turn);
    RUN(no_more_than_the_bound_is_accepted_in_one_turn);
    RUN(an_accepted_descriptor_does_not_block_and_is_closed_on_exec);
    RUN(the_peers_address_is_handed_over);
    RUN(a_handler_that_ends_the_turn_leaves_the_other_connections);
    RUN(a_handler_may_stop_the_listener_and_close_its_descriptor);
    RUN(without_descriptors_it_pauses_until_it_is_resumed);
    RUN(other_errors_are_told_and_the_owner_decides);
    RUN(readiness_without_a_connection_is_harmless);
    RUN(stopping_and_resuming_a_stopped_listener_do_nothing);
    RUN(only_a_lack_of_resources_counts_as_exhaustion);
    return check_status();
}
