/*
 * Alarm: readable at its time, not before, and only as long as that time counts.
 */
#include <fcntl.h>
#include <poll.h>

#include "check.h"
#include "pyreactor/alarm.h"
#include "pyreactor/clock.h"

#define PATIENCE_MS 20000

static struct pr_alarm alarm;

static int is_readable(int timeout_ms)
{
    struct pollfd poll_fd = {.fd = alarm.fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms);
}

static void it_is_never_early_and_stays_readable_until_it_is_set_again(void)
{
    static const int64_t delays_ns[] = {0, 1, 999, PR_NS_PER_MS, 20 * PR_NS_PER_MS};
    REQUIRE_EQUAL(pr_alarm_init(&alarm), 0);
    CHECK_EQUAL(is_readable(0), 0);
    for (size_t i = 0; i < sizeof delays_ns / sizeof *delays_ns; i++) {
        int64_t start_ns = pr_now_ns();
        pr_alarm_set(&alarm, delays_ns[i]);
        CHECK_EQUAL(is_readable(PATIENCE_MS), 1);
        CHECK_AT_LEAST(pr_now_ns() - start_ns, delays_ns[i]);
        CHECK_EQUAL(is_readable(0), 1);
        pr_alarm_set(&alarm, -1);
        CHECK_EQUAL(is_readable(0), 0);
    }
    pr_alarm_deinit(&alarm);
}

static void the_farthest_time_is_far(void)
{
    REQUIRE_EQUAL(pr_alarm_init(&alarm), 0);
    pr_alarm_set(&alarm, INT64_MAX);
    CHECK_EQUAL(is_readable(0), 0);
    pr_alarm_set(&alarm, 0);
    CHECK_EQUAL(is_readable(PATIENCE_MS), 1);
    pr_alarm_deinit(&alarm);
}

static void it_is_closed_on_exec_and_only_once(void)
{
    REQUIRE_EQUAL(pr_alarm_init(&alarm), 0);
    int fd = alarm.fd;
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    pr_alarm_deinit(&alarm);
    CHECK_EQUAL(fcntl(fd, F_GETFD), -1);
    CHECK_EQUAL(alarm.fd, -1);
    pr_alarm_deinit(&alarm);
}

int main(void)
{
    RUN(it_is_never_early_and_stays_readable_until_it_is_set_again);
    RUN(the_farthest_time_is_far);
    RUN(it_is_closed_on_exec_and_only_once);
    return check_status();
}
