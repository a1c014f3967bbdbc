/*
 * A backend under test, for the programs that ask it directly.  One at a time.
 */
#ifndef PYREACTOR_TESTS_BACKEND_UNDER_TEST_H
#define PYREACTOR_TESTS_BACKEND_UNDER_TEST_H

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/backend.h"
#include "pyreactor/clock.h"

#define EVENTS_MAX 8

static const struct pr_backend_ops *ops_under_test;
static struct pr_backend backend;
static struct pr_ready_event events[EVENTS_MAX];

static inline void open_backend(void)
{
    backend = (struct pr_backend){.ops = ops_under_test};
    REQUIRE_EQUAL(backend.ops->init(&backend), 0);
}

static inline void close_backend(void)
{
    backend.ops->deinit(&backend);
}

static inline int update(int fd, uint32_t generation, uint32_t old_events, uint32_t new_events)
{
    return backend.ops->update(&backend, fd, generation, old_events, new_events);
}

static inline int wait_for(int64_t timeout_ns)
{
    return backend.ops->wait(&backend, events, EVENTS_MAX, timeout_ns);
}

static inline void open_pair(int pair[2])
{
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

static inline void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

static inline void send_byte(int fd)
{
    REQUIRE_EQUAL(write(fd, "x", 1), 1);
}

/* Exactly one event waits, and it says this. */
static inline void check_one_event(int fd, uint32_t generation, uint32_t expected)
{
    REQUIRE_EQUAL(wait_for(0), 1);
    CHECK_EQUAL(events[0].fd, fd);
    CHECK_EQUAL(events[0].generation, generation);
    CHECK_EQUAL(events[0].events, expected);
}

static inline void check_waits_are_never_early(void)
{
    static const int64_t timeouts_ns[] = {1,
                                          999,
                                          50000,
                                          100000,
                                          999999,
                                          1000000,
                                          1000001,
                                          1500000,
                                          3 * PR_NS_PER_MS + 1,
                                          20 * PR_NS_PER_MS};
    for (size_t i = 0; i < sizeof timeouts_ns / sizeof *timeouts_ns; i++) {
        int64_t start_ns = pr_now_ns();
        CHECK_EQUAL(wait_for(timeouts_ns[i]), 0);
        CHECK_AT_LEAST(pr_now_ns() - start_ns, timeouts_ns[i]);
    }
}

#endif
