/*
 * Receiving and sending on one stream.  Readiness comes from the watch; the system calls are here.
 */
#include "pyreactor/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pyreactor/clock.h"

/* The kernel takes at most IOV_MAX (1024) vectors; fewer keep the array on the stack small. */
#define VECTORS_PER_SEND_MAX 64
#define VECTORS_PER_SUBMITTED_SEND_MAX 8 /* these stay in memory; what is left follows */

/* More is sent while it is in the caches, not when the loop waits. */
#define SUBMITTED_SEND_BYTES_MAX 8192

/* How many receives in a row have to be small before the backend receives again. */
#define SMALL_RECEIVES_BEFORE_COMPLETION 16

/* How long the streams that became readable together are received from, before others, who may have
 * come meanwhile, have their turn. */
#define RECEIVE_ALL_NS_MAX (1 * PR_NS_PER_MS)

/* What a backend sends by itself for a stream. */
struct pr_stream_send {
    struct pr_send send;
    struct iovec vectors[VECTORS_PER_SUBMITTED_SEND_MAX];
    struct pr_stream *stream; /* borrowed; NULL once that has stopped */
    /* What was queued when it stopped; released when the kernel is done. */
    struct pr_write_queue abandoned;
};

/* Backends complete operations on sockets alone. */
static const struct pr_completion_ops *completion_of(const struct pr_stream *stream)
{
    return stream->is_file ? NULL : stream->loop->backend.ops->completion;
}

/* Large receives are cheaper when the stream makes them itself, into the loop's one warm buffer:
 * the backend's buffers are many, small and cold. */
static bool receives_in_bulk(const struct pr_stream *stream)
{
    return stream->full_receives != 0;
}

static int update_interest(struct pr_stream *stream, bool waits_for_room)
{
    const struct pr_stream_handler *handler = stream->handler;
    bool completes = completion_of(stream) && stream->loop->backend.receives &&
                     handler->on_received && !handler->acquire_buffer && !receives_in_bulk(stream);
    uint32_t reading = completes ? PR_RECEIVED : PR_READABLE;
    uint32_t wanted = (stream->reading ? reading : 0) | (waits_for_room ? PR_WRITABLE : 0);
    return pr_watch_want(&stream->loop->watches, &stream->watch, wanted);
}

/* True while the kernel's buffer is full and the next send waits for room. */
static bool waits_for_room(const struct pr_stream *stream)
{
    return stream->watch.wanted & PR_WRITABLE;
}

/* True while what is queued leaves by itself, sooner or later. */
static bool is_blocked(const struct pr_stream *stream)
{
    return stream->is_sending || waits_for_room(stream);
}

static ssize_t read_some(const struct pr_stream *stream, char *buffer, size_t size)
{
    return stream->is_file ? read(stream->watch.fd, buffer, size)
                           : recv(stream->watch.fd, buffer, size, 0);
}

static ssize_t write_some(const struct pr_stream *stream, const char *data, size_t size)
{
    return stream->is_file ? write(stream->watch.fd, data, size)
                           : send(stream->watch.fd, data, size, MSG_NOSIGNAL);
}

static ssize_t write_vectors(const struct pr_stream *stream, struct iovec *vectors, int count)
{
    if (stream->is_file)
        return writev(stream->watch.fd, vectors, count);
    struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
    return sendmsg(stream->watch.fd, &message, MSG_NOSIGNAL);
}

static int end_or_error(struct pr_stream *stream, int error)
{
    if (error < 0)
        return stream->handler->on_error(stream, error, false);
    (void)pr_stream_set_reading(stream, false);
    return stream->handler->on_end(stream);
}

/* Chooses who makes the next receive, by the size of this one. */
static void note_receive(struct pr_stream *stream, size_t size)
{
    bool was_in_bulk = receives_in_bulk(stream);
    if (size >= PR_RECEIVED_BYTES_MAX)
        stream->full_receives = SMALL_RECEIVES_BEFORE_COMPLETION;
    else if (was_in_bulk)
        stream->full_receives--;
    if (receives_in_bulk(stream) != was_in_bulk)
        (void)update_interest(stream, waits_for_room(stream));
}

/* One receive.  Sets `*is_full` where there may be more than the buffer could take. */
static int receive(struct pr_stream *stream, bool *is_full)
{
    char *buffer = stream->loop->receive_buffer;
    size_t size = PR_RECEIVE_BUFFER_BYTES;
    const struct pr_stream_handler *handler = stream->handler;
    *is_full = false;
    if (!handler->on_received)
        return end_or_error(stream, 0);
    if (handler->acquire_buffer) {
        int stop = handler->acquire_buffer(stream, &buffer, &size);
        if (stop || size == 0)
            return stop;
        if (!pr_watch_is_active(&stream->watch))
            return handler->on_received(stream, buffer, 0);
    }
    ssize_t count = read_some(stream, buffer, size);
    if (count > 0) {
        pr_counter_add(&stream->loop->stats.bytes_received, (uint64_t)count);
        if (receives_in_bulk(stream))
            note_receive(stream, (size_t)count);
        *is_full = (size_t)count == size;
        return handler->on_received(stream, buffer, (size_t)count);
    }
    int error = count < 0 ? -errno : 0;
    int stop = 0;
    if (handler->acquire_buffer) /* gives the lent buffer back */
        stop = handler->on_received(stream, buffer, 0);
    if (error == -EAGAIN || error == -EINTR || !pr_watch_is_active(&stream->watch))
        return stop;
    int result = end_or_error(stream, error);
    return stop ? stop : result;
}

/*
 * Receives until the socket is empty, for this stream's share of the time and as long as no
 * callback and no answer waits.  Otherwise the sender fills it up again after each receive:
 * megabytes stand in the kernel all the time, and each byte has left the processor's caches when it
 * is copied out, which costs three times as much.
 */
static int receive_all(struct pr_stream *stream)
{
    uint32_t generation = stream->watch.generation;
    int64_t end_ns = 0;
    for (;;) {
        bool is_full;
        int stop = receive(stream, &is_full);
        if (stop || !is_full || stream->watch.generation != generation ||
            !(stream->watch.wanted & PR_READABLE) || !pr_loop_is_quiet(stream->loop))
            return stop;
        int64_t now_ns = pr_now_ns();
        if (end_ns == 0)
            end_ns = now_ns + RECEIVE_ALL_NS_MAX / stream->loop->event_count;
        else if (now_ns >= end_ns)
            return 0;
    }
}

/* Copies what the backend has received into the buffers that the owner lends. */
static int hand_over(struct pr_stream *stream, const char *data, size_t left)
{
    int stop = 0;
    while (left && !stop && stream->reading && stream->handler->acquire_buffer) {
        char *buffer = NULL;
        size_t size = 0;
        stop = stream->handler->acquire_buffer(stream, &buffer, &size);
        if (stop || size == 0)
            break;
        if (!pr_watch_is_active(&stream->watch))
            return stream->handler->on_received(stream, buffer, 0);
        if (size > left)
            size = left;
        memcpy(buffer, data, size);
        data += size;
        left -= size;
        stop = stream->handler->on_received(stream, buffer, size);
    }
    if (!left || !pr_watch_is_active(&stream->watch))
        return stop;
    if (!stop && stream->reading && !stream->handler->acquire_buffer) /* it has just changed */
        return stream->handler->on_received(stream, data, left);
    struct pr_ready_event rest = {.fd = stream->watch.fd,
                                  .generation = stream->watch.generation,
                                  .events = PR_RECEIVED,
                                  .result = (int32_t)left,
                                  .data = data};
    completion_of(stream)->hold_data(&stream->loop->backend, &rest);
    return stop;
}

static int on_received(struct pr_watch *watch, const char *data, int32_t result)
{
    struct pr_stream *stream =
        (struct pr_stream *)((char *)watch - offsetof(struct pr_stream, watch));
    if (result <= 0)
        return end_or_error(stream, result);
    pr_counter_add(&stream->loop->stats.bytes_received, (uint64_t)result);
    note_receive(stream, (size_t)result);
    if (stream->handler->acquire_buffer)
        return hand_over(stream, data, (size_t)result);
    return stream->handler->on_received(stream, data, (size_t)result);
}

/* One send.  Returns what left, or a negative errno; `*offered` is what was tried. */
static ssize_t send_some(struct pr_stream *stream, size_t *offered)
{
    struct iovec vectors[VECTORS_PER_SEND_MAX];
    int count = pr_write_queue_peek(&stream->writes, vectors, VECTORS_PER_SEND_MAX);
    ssize_t sent;
    if (count == 1) {
        *offered = vectors[0].iov_len;
        sent = write_some(stream, vectors[0].iov_base, vectors[0].iov_len);
    } else {
        *offered = 0;
        for (int i = 0; i < count; i++)
            *offered += vectors[i].iov_len;
        sent = write_vectors(stream, vectors, count);
    }
    return sent < 0 ? -errno : sent;
}

/* Sends until the queue is empty or the kernel is full.  Returns 0 or a negative errno. */
static int send_queued(struct pr_stream *stream)
{
    while (stream->writes.bytes) {
        size_t offered;
        ssize_t sent = send_some(stream, &offered);
        if (sent == -EINTR)
            continue;
        if (sent == -EAGAIN)
            return update_interest(stream, true);
        if (sent < 0)
            return (int)sent;
        pr_counter_add(&stream->loop->stats.bytes_sent, (uint64_t)sent);
        pr_write_queue_consume(&stream->writes, (size_t)sent);
        if (!pr_watch_is_active(&stream->watch))
            return 0;
        if ((size_t)sent < offered) /* full: another try would only say so */
            return update_interest(stream, true);
    }
    return waits_for_room(stream) ? update_interest(stream, false) : 0;
}

/* Tells the owner what the queue's new length means. */
static int report_level(struct pr_stream *stream)
{
    int stop = 0;
    if (!stream->over_high_water && stream->writes.bytes > stream->high_water_bytes) {
        stream->over_high_water = true;
        stop = stream->handler->on_high_water(stream);
    } else if (stream->over_high_water && stream->writes.bytes <= stream->low_water_bytes) {
        stream->over_high_water = false;
        stop = stream->handler->on_low_water(stream);
    }
    if (!stop && stream->wants_drained && stream->writes.bytes == 0 &&
        pr_watch_is_active(&stream->watch)) {
        stream->wants_drained = false;
        stop = stream->handler->on_drained(stream);
    }
    return stop;
}

int pr_stream_flush(struct pr_stream *stream)
{
    pr_loop_remove_flush(&stream->flush);
    if (!pr_watch_is_active(&stream->watch))
        return 0;
    int error = stream->is_sending ? 0 : send_queued(stream);
    return error < 0 ? error : report_level(stream);
}

/* A flush that nobody called for directly: its error goes to the owner. */
static int flush_or_report(struct pr_stream *stream)
{
    int result = pr_stream_flush(stream);
    return result < 0 ? stream->handler->on_error(stream, result, true) : result;
}

/* What the backend's send came to.  Returns 0 or a negative errno. */
static int take_sent(struct pr_stream *stream, int32_t result)
{
    stream->is_sending = false;
    if (result < 0 && result != -EAGAIN && result != -EINTR && result != -ECANCELED)
        return result;
    if (result > 0) {
        pr_counter_add(&stream->loop->stats.bytes_sent, (uint64_t)result);
        pr_write_queue_consume(&stream->writes, (size_t)result);
    }
    return 0;
}

static int on_sent(struct pr_send *send, int32_t result)
{
    struct pr_stream_send *stream_send =
        (struct pr_stream_send *)((char *)send - offsetof(struct pr_stream_send, send));
    struct pr_stream *stream = stream_send->stream;
    if (!stream) {
        pr_write_queue_deinit(&stream_send->abandoned);
        free(stream_send);
        return 0;
    }
    int error = take_sent(stream, result);
    return error < 0 ? stream->handler->on_error(stream, error, true) : flush_or_report(stream);
}

int pr_stream_settle(struct pr_stream *stream)
{
    if (stream->is_sending && pr_loop_settle_send(stream->loop, &stream->send->send)) {
        int error = take_sent(stream, stream->send->send.result);
        if (error < 0)
            return error;
    }
    return pr_stream_flush(stream);
}

/* Has the backend send what is queued, with its next wait.  Returns false where it cannot. */
static bool submit(struct pr_stream *stream)
{
    struct pr_stream_send *send = stream->send;
    if (!send) {
        send = stream->send = calloc(1, sizeof *send);
        if (!send)
            return false;
        send->stream = stream;
        send->send.on_sent = on_sent;
    }
    int count = pr_write_queue_peek(&stream->writes, send->vectors, VECTORS_PER_SUBMITTED_SEND_MAX);
    send->send.fd = stream->watch.fd;
    send->send.message = (struct msghdr){.msg_iov = send->vectors, .msg_iovlen = (size_t)count};
    stream->is_sending = completion_of(stream)->send(&stream->loop->backend, &send->send) == 0;
    return stream->is_sending;
}

/* The stream stops while the kernel may still read what is queued. */
static void abandon_send(struct pr_stream *stream)
{
    struct pr_stream_send *send = stream->send;
    stream->send = NULL;
    stream->is_sending = false;
    send->stream = NULL;
    pr_write_queue_move(&send->abandoned, &stream->writes);
    completion_of(stream)->cancel_send(&stream->loop->backend, &send->send);
}

static int run_flush(struct pr_flush *flush)
{
    struct pr_stream *stream =
        (struct pr_stream *)((char *)flush - offsetof(struct pr_stream, flush));
    if (is_blocked(stream))
        return 0;
    if (completion_of(stream) && stream->writes.bytes <= SUBMITTED_SEND_BYTES_MAX && submit(stream))
        return report_level(stream);
    return flush_or_report(stream);
}

static int on_ready(struct pr_watch *watch, uint32_t events)
{
    struct pr_stream *stream =
        (struct pr_stream *)((char *)watch - offsetof(struct pr_stream, watch));
    if (events & PR_READABLE) {
        int stop = receive_all(stream);
        if (stop)
            return stop;
    }
    /* The read's callback may have stopped the stream. */
    if (events & watch->wanted & PR_WRITABLE)
        return flush_or_report(stream);
    return 0;
}

static void set_marks(struct pr_stream *stream, size_t high_bytes, size_t low_bytes)
{
    stream->high_water_bytes = high_bytes;
    stream->low_water_bytes = low_bytes;
    stream->held_bytes_max =
        high_bytes < PR_STREAM_HELD_BYTES_MAX ? high_bytes : PR_STREAM_HELD_BYTES_MAX;
}

void pr_stream_init(struct pr_stream *stream, struct pr_loop *loop,
                    const struct pr_stream_handler *handler, void *owner,
                    void (*release)(void *owner))
{
    *stream = (struct pr_stream){.loop = loop, .handler = handler, .flush = {.run = run_flush}};
    pr_watch_init(&stream->watch, on_ready, owner);
    stream->watch.on_received = on_received;
    pr_write_queue_init(&stream->writes, release);
    set_marks(stream, PR_STREAM_HIGH_WATER_BYTES, PR_STREAM_HIGH_WATER_BYTES / 4);
}

void pr_stream_deinit(struct pr_stream *stream)
{
    pr_stream_stop(stream);
    pr_write_queue_deinit(&stream->writes);
    free(stream->send);
    stream->send = NULL;
}

int pr_stream_start(struct pr_stream *stream, int fd)
{
    return pr_watch_start(&stream->loop->watches, &stream->watch, fd, 0);
}

int pr_stream_lend(struct pr_stream *stream)
{
    struct pr_loop *loop = stream->loop;
    const struct pr_completion_ops *completion = completion_of(stream);
    int error = 0;
    if (completion) {
        for (int i = loop->event_next; i < loop->event_count; i++) {
            const struct pr_ready_event *event = &loop->events[i];
            if (event->events & PR_RECEIVED && event->fd == stream->watch.fd &&
                event->generation == stream->watch.generation)
                completion->hold_data(&loop->backend, event);
        }
        error = completion->end_receive(&loop->backend, stream->watch.fd, &stream->unread);
    }
    pr_watch_stop(&loop->watches, &stream->watch);
    return error;
}

int pr_stream_take_back(struct pr_stream *stream, int fd)
{
    struct pr_backend *backend = &stream->loop->backend;
    int error = pr_stream_start(stream, fd);
    if (error < 0 || !stream->unread.data)
        return error;
    stream->unread.generation = stream->watch.generation;
    error = backend->ops->update(backend, fd, stream->watch.generation, 0, 0);
    if (error == 0)
        completion_of(stream)->hold_data(backend, &stream->unread);
    pr_stream_drop_unread(stream);
    return error;
}

void pr_stream_drop_unread(struct pr_stream *stream)
{
    if (stream->unread.data)
        completion_of(stream)->return_data(&stream->loop->backend, &stream->unread);
    stream->unread = (struct pr_ready_event){0};
}

void pr_stream_stop(struct pr_stream *stream)
{
    pr_stream_drop_unread(stream);
    pr_loop_remove_flush(&stream->flush);
    if (stream->is_sending)
        abandon_send(stream);
    pr_watch_stop(&stream->loop->watches, &stream->watch);
    stream->reading = stream->over_high_water = stream->wants_drained = false;
    pr_write_queue_clear(&stream->writes);
}

int pr_stream_set_reading(struct pr_stream *stream, bool reading)
{
    if (stream->reading == reading || !pr_watch_is_active(&stream->watch))
        return 0;
    stream->reading = reading;
    int error = update_interest(stream, waits_for_room(stream));
    if (error < 0)
        stream->reading = !reading;
    return error;
}

int pr_stream_queue(struct pr_stream *stream, const char *data, size_t size, void *owner)
{
    return pr_write_queue_push(&stream->writes, data, size, owner);
}

int pr_stream_send_soon(struct pr_stream *stream)
{
    if (is_blocked(stream))
        return report_level(stream);
    if (stream->loop->dispatching && stream->writes.bytes <= stream->held_bytes_max) {
        pr_loop_add_flush(stream->loop, &stream->flush);
        return 0;
    }
    return pr_stream_flush(stream);
}

ssize_t pr_stream_send_now(struct pr_stream *stream, const char *data, size_t size)
{
    if (stream->writes.bytes)
        return 0;
    ssize_t sent;
    do
        sent = write_some(stream, data, size);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == EAGAIN ? 0 : -errno;
    pr_counter_add(&stream->loop->stats.bytes_sent, (uint64_t)sent);
    return sent;
}

int pr_stream_set_water(struct pr_stream *stream, size_t high_bytes, size_t low_bytes)
{
    set_marks(stream, high_bytes, low_bytes);
    return is_blocked(stream) ? report_level(stream) : pr_stream_flush(stream);
}
