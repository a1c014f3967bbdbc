/*
 * Receiving and sending on one stream.  Readiness comes from the watch; the system calls are here.
 */
#include "pyreactor/stream.h"

#include <errno.h>
#include <sys/socket.h>

/* The kernel takes at most IOV_MAX (1024) vectors; fewer keep the array on the stack small. */
#define VECTORS_PER_SEND_MAX 64

static int update_interest(struct pr_stream *stream, bool sending)
{
    uint32_t wanted = (stream->reading ? PR_READABLE : 0) | (sending ? PR_WRITABLE : 0);
    return pr_watch_want(&stream->loop->watches, &stream->watch, wanted);
}

/* True while the kernel's buffer is full and the next send waits for room. */
static bool is_blocked(const struct pr_stream *stream)
{
    return stream->watch.wanted & PR_WRITABLE;
}

static int receive(struct pr_stream *stream)
{
    char *buffer = stream->loop->receive_buffer;
    size_t size = PR_RECEIVE_BUFFER_BYTES;
    const struct pr_stream_handler *handler = stream->handler;
    if (handler->acquire_buffer) {
        int stop = handler->acquire_buffer(stream, &buffer, &size);
        if (stop || size == 0)
            return stop;
        if (!pr_watch_is_active(&stream->watch))
            return handler->on_received(stream, buffer, 0);
    }
    ssize_t count = recv(stream->watch.fd, buffer, size, 0);
    if (count > 0) {
        pr_counter_add(&stream->loop->stats.bytes_received, (uint64_t)count);
        return handler->on_received(stream, buffer, (size_t)count);
    }
    int error = count < 0 ? -errno : 0;
    int stop = 0;
    if (handler->acquire_buffer) /* gives the lent buffer back */
        stop = handler->on_received(stream, buffer, 0);
    if (error == -EAGAIN || error == -EINTR || !pr_watch_is_active(&stream->watch))
        return stop;
    int result;
    if (error < 0) {
        result = handler->on_error(stream, error, false);
    } else {
        (void)pr_stream_set_reading(stream, false);
        result = handler->on_end(stream);
    }
    return stop ? stop : result;
}

/* One send.  Returns what left, or a negative errno; `*offered` is what was tried. */
static ssize_t send_some(struct pr_stream *stream, size_t *offered)
{
    struct iovec vectors[VECTORS_PER_SEND_MAX];
    int count = pr_write_queue_peek(&stream->writes, vectors, VECTORS_PER_SEND_MAX);
    ssize_t sent;
    if (count == 1) {
        *offered = vectors[0].iov_len;
        sent = send(stream->watch.fd, vectors[0].iov_base, vectors[0].iov_len, MSG_NOSIGNAL);
    } else {
        *offered = 0;
        for (int i = 0; i < count; i++)
            *offered += vectors[i].iov_len;
        struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)count};
        sent = sendmsg(stream->watch.fd, &message, MSG_NOSIGNAL);
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
    return is_blocked(stream) ? update_interest(stream, false) : 0;
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
    int error = send_queued(stream);
    return error < 0 ? error : report_level(stream);
}

/* A flush that nobody called for directly: its error goes to the owner. */
static int flush_or_report(struct pr_stream *stream)
{
    int result = pr_stream_flush(stream);
    return result < 0 ? stream->handler->on_error(stream, result, true) : result;
}

static int run_flush(struct pr_flush *flush)
{
    struct pr_stream *stream =
        (struct pr_stream *)((char *)flush - offsetof(struct pr_stream, flush));
    return is_blocked(stream) ? 0 : flush_or_report(stream);
}

static int on_ready(struct pr_watch *watch, uint32_t events)
{
    struct pr_stream *stream =
        (struct pr_stream *)((char *)watch - offsetof(struct pr_stream, watch));
    if (events & PR_READABLE) {
        int stop = receive(stream);
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
    pr_write_queue_init(&stream->writes, release);
    set_marks(stream, PR_STREAM_HIGH_WATER_BYTES, PR_STREAM_HIGH_WATER_BYTES / 4);
}

void pr_stream_deinit(struct pr_stream *stream)
{
    pr_stream_stop(stream);
    pr_write_queue_deinit(&stream->writes);
}

int pr_stream_start(struct pr_stream *stream, int fd)
{
    return pr_watch_start(&stream->loop->watches, &stream->watch, fd, 0);
}

void pr_stream_stop(struct pr_stream *stream)
{
    pr_loop_remove_flush(&stream->flush);
    pr_watch_stop(&stream->loop->watches, &stream->watch);
    stream->reading = false;
    pr_write_queue_clear(&stream->writes);
}

int pr_stream_set_reading(struct pr_stream *stream, bool reading)
{
    if (stream->reading == reading || !pr_watch_is_active(&stream->watch))
        return 0;
    stream->reading = reading;
    int error = update_interest(stream, is_blocked(stream));
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
        sent = send(stream->watch.fd, data, size, MSG_NOSIGNAL);
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
