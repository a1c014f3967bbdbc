/*
 * The least that an echo server costs on this machine: epoll, recv and send, and nothing around
 * them.  What an event loop's server takes beyond it is the price of the loop and of Python.
 *
 * usage: floor_epoll          prints the port it listens on, then serves until it is killed
 *
 * The common case is one recv and one send per wake-up.  Bytes that the socket does not take wait
 * in the connection's own memory, and the connection is not read again before they are gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_PER_WAIT 256
#define RECEIVE_BYTES (256 * 1024) /* what the peers ask for in one recv */

struct connection {
    int fd;       /* owned */
    char *unsent; /* owned; NULL unless a send was cut short */
    size_t unsent_at;
    size_t unsent_end;
};

/*
 * One for all connections, for nothing stays in it between two events.  Aligned, because the
 * kernel's copy to an address that is not can take twice the time.
 */
static _Alignas(4096) char received[RECEIVE_BYTES];

static void fail(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static void watch(int epoll_fd, int operation, struct connection *connection, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};

    if (epoll_ctl(epoll_fd, operation, connection->fd, &event) < 0)
        fail("epoll_ctl");
}

static void drop(struct connection *connection)
{
    close(connection->fd);
    free(connection->unsent);
    free(connection);
}

/* Send what fits; returns the number of bytes sent, or -1 if the connection is lost. */
static ssize_t send_some(int fd, const char *data, size_t length)
{
    ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);

    if (sent < 0 && errno == EAGAIN)
        return 0;
    return sent;
}

/* Keep the bytes that the socket did not take, and wait for it to take more. */
static int keep_unsent(int epoll_fd, struct connection *connection, const char *data, size_t length)
{
    connection->unsent = malloc(length);
    if (connection->unsent == NULL)
        return -1;
    memcpy(connection->unsent, data, length);
    connection->unsent_at = 0;
    connection->unsent_end = length;
    watch(epoll_fd, EPOLL_CTL_MOD, connection, EPOLLOUT);
    return 0;
}

static int on_readable(int epoll_fd, struct connection *connection)
{
    ssize_t length = recv(connection->fd, received, sizeof received, 0);
    ssize_t sent;

    if (length <= 0)
        return length < 0 && errno == EAGAIN ? 0 : -1;
    sent = send_some(connection->fd, received, (size_t)length);
    if (sent < 0)
        return -1;
    if (sent < length)
        return keep_unsent(epoll_fd, connection, received + sent, (size_t)(length - sent));
    return 0;
}

static int on_writable(int epoll_fd, struct connection *connection)
{
    ssize_t sent = send_some(connection->fd, connection->unsent + connection->unsent_at,
                             connection->unsent_end - connection->unsent_at);

    if (sent < 0)
        return -1;
    connection->unsent_at += (size_t)sent;
    if (connection->unsent_at == connection->unsent_end) {
        free(connection->unsent);
        connection->unsent = NULL;
        watch(epoll_fd, EPOLL_CTL_MOD, connection, EPOLLIN);
    }
    return 0;
}

static void accept_all(int epoll_fd, int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        int one = 1;
        struct connection *connection;

        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection = calloc(1, sizeof *connection);
        if (connection == NULL)
            fail("calloc");
        connection->fd = fd;
        watch(epoll_fd, EPOLL_CTL_ADD, connection, EPOLLIN);
    }
}

/* Listen on a free loopback port and announce it. */
static int listen_and_announce(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t address_length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, SOMAXCONN) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &address_length) < 0)
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(void)
{
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct connection listener = {.fd = listen_and_announce()};

    if (epoll_fd < 0)
        fail("epoll_create1");
    watch(epoll_fd, EPOLL_CTL_ADD, &listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS_PER_WAIT];
        int count = epoll_wait(epoll_fd, events, EVENTS_PER_WAIT, -1);

        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            int status;

            if (connection == &listener) {
                accept_all(epoll_fd, listener.fd);
                continue;
            }
            status = connection->unsent != NULL ? on_writable(epoll_fd, connection)
                                                : on_readable(epoll_fd, connection);
            if (status < 0)
                drop(connection);
        }
    }
}
