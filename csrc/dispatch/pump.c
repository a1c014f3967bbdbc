/*
 * From events to requests.  A request is a copy of the event, or carries what was read; the handle
 * stays busy until the thread that took the request completes it, so that there is never more than
 * one request of a handle under way.
 */
#include "pyreactor/pump.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pyreactor/clock.h"

#define INITIAL_TRANSFER_BYTES 4096
#define INDEX_SHIFT 24 /* in a request's events */
/* How long a signal may go unseen that came just before the wait for room; a wait for events ends
 * with a signal, as that is an event as well. */
#define SIGNAL_LOOK_NS (100 * PR_NS_PER_MS)
#define CROWDED_REST_NS (10 * PR_NS_PER_MS)

/* Nothing is owned; the functions tell the two kinds of requests from all others. */
static void release_event(struct pr_request *request)
{
    request->owner = NULL;
}

static void release_transfer(struct pr_request *request)
{
    free(request->owner);
    request->owner = NULL;
}

/* An accepted connection that no loop came to take. */
static void release_connection(struct pr_request *request)
{
    close(request->fd);
}

/* Puts what is pending, and sleeps while there is no room.  Returns 0, -EINTR, after which it is
 * still pending, or -ESHUTDOWN, after which it is released. */
static int put_pending(struct pr_pump *pump)
{
    struct pr_request_queue *queue = pump->queue;
    int64_t begin_ns;
    for (;;) {
        begin_ns = pr_trace_begin(pump->trace);
        atomic_fetch_add_explicit(&pump->unhandled, 1, memory_order_relaxed);
        int result = queue->ops->try_put(queue, &pump->pending, 1);
        if (result == 1)
            break;
        pr_pump_handled(pump);
        if (result == -EAGAIN)
            result = queue->ops->wait_room(queue, pr_now_ns() + SIGNAL_LOOK_NS);
        if (result == -EINTR || result == -ETIMEDOUT)
            return -EINTR;
        if (result < 0) {
            pr_pump_deinit(pump);
            return result;
        }
    }
    pump->has_pending = false;
    pr_trace_note_at(pump->trace, PR_ACTION_PUT, pump->pending.fd,
                     pump->pending.events & PR_EVENTS_MASK, begin_ns);
    return 0;
}

/* Puts a request, which it takes; see put_pending(). */
static int put_request(struct pr_pump *pump, const struct pr_request *request)
{
    pump->pending = *request;
    pump->has_pending = true;
    return put_pending(pump);
}

void pr_pump_deinit(struct pr_pump *pump)
{
    if (pump->has_pending)
        pr_request_release(&pump->pending);
    pump->has_pending = false;
}

static int put_event(struct pr_pump *pump, const struct pr_event *event)
{
    uint64_t identity = event->fd < 0 ? event->timer_id : event->generation;
    struct pr_request request = {
        .release = release_event,
        .owner = (void *)(uintptr_t)identity,
        .fd = event->fd,
        .events = event->events | pump->index << INDEX_SHIFT,
    };
    return put_request(pump, &request);
}

/* Returns a transfer with room for more, or NULL; the old one is gone then, too. */
static struct pr_transfer *grow(struct pr_transfer *transfer)
{
    size_t capacity = transfer ? transfer->capacity * 4 : INITIAL_TRANSFER_BYTES;
    struct pr_transfer *grown = realloc(transfer, sizeof *grown + capacity);
    if (!grown)
        free(transfer);
    else if (!transfer)
        *grown = (struct pr_transfer){.capacity = capacity};
    else
        grown->capacity = capacity;
    return grown;
}

/* Reads until nothing is left.  Returns 0 and the transfer, or -ENOMEM. */
static int read_all(struct pr_pump *pump, const struct pr_event *event,
                    struct pr_transfer **transfer)
{
    struct pr_transfer *read = grow(NULL);
    while (read && !read->ended && !read->error && read->size < PR_TRANSFER_BYTES_MAX) {
        if (read->size == read->capacity && !(read = grow(read)))
            break;
        ssize_t got =
            recv(event->fd, read->data + read->size, read->capacity - read->size, MSG_DONTWAIT);
        if (got > 0)
            read->size += (size_t)got;
        else if (got == 0)
            read->ended = true;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            read->error = -errno;
    }
    if (!read)
        return -ENOMEM;
    pr_trace_note(pump->trace, PR_ACTION_READ, event->fd, PR_READABLE);
    read->generation = event->generation;
    *transfer = read;
    return 0;
}

enum written {
    WRITTEN = 0,    /* the handle is to be waited for again */
    WRITTEN_REPORT, /* all of it, and its handler wants to know */
    WRITTEN_CLOSE,  /* all of it, and the handle is to be closed */
};

/* Writes what there is room for.  Returns what follows, or a negative errno of the connection. */
static int write_all(struct pr_pump *pump, const struct pr_event *event)
{
    struct pr_handle_set *set = pump->set;
    int result = WRITTEN;
    pthread_mutex_lock(&set->lock);
    struct pr_handle *handle = &set->handles[event->fd]; /* busy, and ours */
    struct pr_channel *channel = &handle->channel;
    while (result >= 0 && channel->begin < channel->end) {
        ssize_t sent = send(event->fd, channel->data + channel->begin,
                            channel->end - channel->begin, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0)
            channel->begin += (size_t)sent;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            result = -errno;
    }
    if (result >= 0 && channel->begin == channel->end) {
        handle->wanted &= ~PR_WRITABLE;
        if (channel->unread)
            handle->wanted |= PR_READABLE;
        result = channel->close_when_written ? WRITTEN_CLOSE
                 : channel->report_written   ? WRITTEN_REPORT
                                             : WRITTEN;
        channel->unread = channel->report_written = false;
    }
    pthread_mutex_unlock(&set->lock);
    pr_trace_note(pump->trace, PR_ACTION_WRITE, event->fd, PR_WRITABLE);
    return result;
}

/* Does the I/O of a channel, and puts what its handler is to know. */
static int transfer_channel(struct pr_pump *pump, const struct pr_event *event)
{
    struct pr_transfer *transfer = NULL;
    struct pr_event reported = *event;
    int result = event->events & PR_WRITABLE ? write_all(pump, event) : WRITTEN;
    if (result == WRITTEN_CLOSE) { /* an event with nothing ready says so */
        reported.events = 0;
        return put_event(pump, &reported);
    }
    if (result == WRITTEN_REPORT && !(event->events & PR_READABLE)) {
        reported.events = PR_WRITABLE;
        return put_event(pump, &reported);
    }
    if (result == WRITTEN && !(event->events & PR_READABLE)) {
        reported.events = 0; /* removed meanwhile, or refused: for its handler to see */
        return pr_handle_set_complete(pump->set, event) == 0 ? 0 : put_event(pump, &reported);
    }
    int error = result < 0 ? -ENOMEM : read_all(pump, event, &transfer);
    if (error < 0) {
        transfer = grow(NULL);
        if (!transfer)
            return -ENOMEM;
        transfer->generation = event->generation;
        transfer->error = result < 0 ? result : error;
    }
    struct pr_request request = {
        .release = release_transfer,
        .owner = transfer,
        .fd = event->fd,
        .events = PR_READABLE | pump->index << INDEX_SHIFT,
    };
    return put_request(pump, &request);
}

/* The next loop with room for a connection, or NULL; only this thread puts into their queues. */
static struct pr_loop_place *find_place(const struct pr_pump *pump)
{
    for (unsigned i = 0; i < pump->place_count; i++) {
        struct pr_loop_place *place = &pump->places[(pump->next_place + i) % pump->place_count];
        const struct pr_request_queue *queue = place->connections;
        if (queue->ops->depth(place->connections) < queue->capacity)
            return place;
    }
    return NULL;
}

/* Whether it stays so until something is closed: trying again at once would be a busy loop. */
static bool is_exhausted(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

/*
 * Accepts what waits and gives each connection to the next loop that has room.  Returns 0, -EINTR,
 * or 1 where the event is the caller's: the listener was removed, or nothing can be accepted, about
 * which its handler knows what to do.
 */
static int spread_connections(struct pr_pump *pump, const struct pr_event *event)
{
    int result = 0;
    for (int i = 0; i < PR_ACCEPTS_PER_EVENT_MAX; i++) {
        struct pr_loop_place *place = find_place(pump);
        if (!place) {
            /* All loops are behind: rest, and look again, at other events as well. */
            place = &pump->places[pump->next_place % pump->place_count];
            result = place->connections->ops->wait_room(place->connections,
                                                        pr_now_ns() + CROWDED_REST_NS);
            break;
        }
        int fd = accept4(event->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && is_exhausted(errno))
            return 1;
        if (fd < 0)
            break; /* no more, or one that went away */
        struct pr_request request = {.release = release_connection, .fd = fd};
        pump->next_place = (unsigned)(place - pump->places) + 1;
        if (place->connections->ops->try_put(place->connections, &request, 1) != 1) {
            close(fd); /* the loop has ended */
            continue;
        }
        pr_trace_note(pump->trace, PR_ACTION_HAND_OVER, fd, 0);
        atomic_fetch_add_explicit(&pump->handed_over, 1, memory_order_relaxed);
        pr_handle_set_wake(place->set);
    }
    if (pr_handle_set_complete(pump->set, event) != 0)
        return 1;
    return result == -EINTR ? result : 0;
}

int pr_pump_next(struct pr_pump *pump, struct pr_event *event)
{
    int result = 0;
    for (;;) {
        if (pump->has_pending && (result = put_pending(pump)) < 0)
            return result;
        if (atomic_load(&pump->stopping))
            return 0;
        result = pr_handle_set_wait(pump->set, event, -1);
        if (result < 0)
            return result;
        if (result == 0 && !pump->queue)
            return 0; /* woken: there may be connections for this loop */
        if (result == 0)
            continue;
        if (event->fd >= 0 && (event->flags & PR_HANDLE_SPREAD) && pump->place_count)
            result = spread_connections(pump, event);
        else if (!pump->queue || (event->flags & PR_HANDLE_INLINE))
            return 1;
        else if (event->fd >= 0 && (event->flags & PR_HANDLE_CHANNEL))
            result = transfer_channel(pump, event);
        else
            result = put_event(pump, event);
        if (result != 0)
            return result;
    }
}

void pr_pump_stop(struct pr_pump *pump)
{
    atomic_store(&pump->stopping, true);
    pr_handle_set_wake(pump->set);
}

int pr_pump_take(struct pr_request_queue *queue, struct pr_request *request)
{
    for (;;) {
        int result = queue->ops->try_get(queue, request, 1);
        if (result == 1)
            return 0;
        if (result != -EAGAIN)
            return result;
        result = queue->ops->wait_request(queue, INT64_MAX);
        if (result < 0)
            return result;
    }
}

bool pr_pump_read(const struct pr_request *request, struct pr_trace *trace, struct pr_work *work)
{
    *work = (struct pr_work){.pump_index = request->events >> INDEX_SHIFT};
    work->event.fd = request->fd;
    work->event.events = request->events & PR_EVENTS_MASK;
    if (request->release == release_transfer) {
        work->transfer = request->owner;
        work->event.generation = work->transfer->generation;
    } else if (request->release == release_event) {
        work->event.generation = (uint32_t)(uintptr_t)request->owner;
        work->event.timer_id = (uint64_t)(uintptr_t)request->owner;
    } else {
        return false;
    }
    pr_trace_note(trace, PR_ACTION_TAKE, request->fd, work->event.events);
    return true;
}

void pr_pump_handled(struct pr_pump *pump)
{
    atomic_fetch_sub_explicit(&pump->unhandled, 1, memory_order_release);
}

size_t pr_pump_unhandled(const struct pr_pump *pump)
{
    return atomic_load_explicit(&pump->unhandled, memory_order_acquire);
}
