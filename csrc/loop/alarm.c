/*
 * A timerfd(2) on the monotonic clock.
 */
#include "pyreactor/alarm.h"

#include <errno.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "pyreactor/clock.h"

int pr_alarm_init(struct pr_alarm *alarm)
{
    alarm->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return alarm->fd < 0 ? -errno : 0;
}

void pr_alarm_deinit(struct pr_alarm *alarm)
{
    if (alarm->fd >= 0)
        close(alarm->fd);
    alarm->fd = -1;
}

void pr_alarm_set(const struct pr_alarm *alarm, int64_t delay_ns)
{
    struct itimerspec time = {{0}, {0}}; /* zeroes: never; setting it drains it, too */
    if (delay_ns == 0)
        time.it_value.tv_nsec = 1;
    else if (delay_ns > 0)
        time.it_value = (struct timespec){.tv_sec = delay_ns / PR_NS_PER_SECOND,
                                          .tv_nsec = delay_ns % PR_NS_PER_SECOND};
    (void)timerfd_settime(alarm->fd, 0, &time, NULL); /* fails for wrong arguments only */
}
