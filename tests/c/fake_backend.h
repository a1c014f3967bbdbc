/*
 * A backend without a kernel: the test says what happens, and reads what was asked.  One at a time.
 */
#ifndef PYREACTOR_TESTS_FAKE_BACKEND_H
#define PYREACTOR_TESTS_FAKE_BACKEND_H

#include <stdint.h>

#include "pyreactor/backend.h"
#include "pyreactor/loop.h"
#include "pyreactor/watch.h"

#define FAKE_UPDATES_MAX 64
#define FAKE_EVENTS_MAX 64

struct fake_update {
    int fd;
    uint32_t generation;
    uint32_t old_events;
    uint32_t new_events;
};

struct fake_backend {
    /* What was asked. */
    struct fake_update updates[FAKE_UPDATES_MAX]; /* the first ones; all are counted */
    int update_count;
    int wait_count;
    int64_t timeout_ns; /* of the last wait */
    int deinit_count;

    /* What happens. */
    struct pr_ready_event events[FAKE_EVENTS_MAX]; /* reported by the next wait, once */
    int event_count;
    int update_error;                           /* returned by updates until it is 0 again */
    int wait_error;                             /* returned by the next wait, once */
    void (*on_wait)(struct fake_backend *fake); /* optional: called at the start of a wait */
};

/* Makes `fake` answer for `backend`. */
void fake_backend_init(struct fake_backend *fake, struct pr_backend *backend);

/* Makes `fake` answer for an initialised loop, whose own backend is given back. */
void fake_backend_install(struct fake_backend *fake, struct pr_loop *loop);

/* Lets the next wait report `events` for what `watch` is now. */
void fake_backend_report(struct fake_backend *fake, const struct pr_watch *watch, uint32_t events);

/* Forgets what was asked so far. */
void fake_backend_forget(struct fake_backend *fake);

#endif
