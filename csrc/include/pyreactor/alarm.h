/*
 * Alarm: a descriptor that becomes readable at a time of the loop's clock, for those who wait for
 * descriptors alone.
 */
#ifndef PYREACTOR_ALARM_H
#define PYREACTOR_ALARM_H

#include <stdint.h>

struct pr_alarm {
    int fd; /* owned timerfd */
};

/* Makes it, with no time set.  Returns 0 or a negative errno.  Any thread. */
int pr_alarm_init(struct pr_alarm *alarm);

/* Closes it.  Any thread. */
void pr_alarm_deinit(struct pr_alarm *alarm);

/*
 * Makes it readable `delay_ns` from now on and not before: at once where that is 0, never where it
 * is negative.  What was set before does not count any more.  Any thread.
 */
void pr_alarm_set(const struct pr_alarm *alarm, int64_t delay_ns);

#endif
