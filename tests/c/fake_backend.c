/*
 * The scripted backend.  It finds its script through a static pointer, because the loop owns the
 * struct pr_backend and a backend's functions are told of nothing else.
 */
#include "fake_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct fake_backend *current;

static int fake_update(struct pr_backend *backend, int fd, uint32_t generation, uint32_t old_events,
                       uint32_t new_events)
{
    (void)backend;
    if (current->update_count < FAKE_UPDATES_MAX)
        current->updates[current->update_count] = (struct fake_update){
            .fd = fd,
            .generation = generation,
            .old_events = old_events,
            .new_events = new_events,
        };
    current->update_count++;
    return current->update_error;
}

static int fake_wait(struct pr_backend *backend, struct pr_ready_event *events, int capacity,
                     int64_t timeout_ns)
{
    (void)backend;
    current->wait_count++;
    current->timeout_ns = timeout_ns;
    if (current->on_wait)
        current->on_wait(current);
    if (current->wait_error) {
        int error = current->wait_error;
        current->wait_error = 0;
        return error;
    }
    int count = current->event_count < capacity ? current->event_count : capacity;
    if (count == 0 && timeout_ns < 0) {
        fputs("the loop would sleep for ever: no event is scripted\n", stderr);
        abort();
    }
    memcpy(events, current->events, (size_t)count * sizeof *events);
    current->event_count = 0;
    return count;
}

static int fake_init(struct pr_backend *backend)
{
    backend->fd = -1;
    return 0;
}

static void fake_deinit(struct pr_backend *backend)
{
    (void)backend;
    current->deinit_count++;
}

static const struct pr_backend_ops fake_ops = {
    .name = "fake",
    .has_edges = true,
    .update = fake_update,
    .wait = fake_wait,
    .init = fake_init,
    .deinit = fake_deinit,
};

void fake_backend_init(struct fake_backend *fake, struct pr_backend *backend)
{
    *fake = (struct fake_backend){0};
    current = fake;
    *backend = (struct pr_backend){.ops = &fake_ops, .fd = -1};
}

void fake_backend_install(struct fake_backend *fake, struct pr_loop *loop)
{
    loop->backend.ops->deinit(&loop->backend);
    fake_backend_init(fake, &loop->backend);
}

void fake_backend_report(struct fake_backend *fake, const struct pr_watch *watch, uint32_t events)
{
    if (fake->event_count == FAKE_EVENTS_MAX)
        abort();
    fake->events[fake->event_count++] =
        (struct pr_ready_event){.fd = watch->fd, .generation = watch->generation, .events = events};
}

void fake_backend_forget(struct fake_backend *fake)
{
    fake->update_count = 0;
    fake->wait_count = 0;
}
