/*
 * A stream: bytes in and out of one connected socket, or of a pipe or a terminal.  It reads into
 * the loop's warm buffer (or one that the owner lends), sends what was written in as few calls as
 * possible, and tells its owner, through a table of functions, what happened.
 *
 * Lifetimes: the stream is embedded in its owner, which must live until the stream is stopped and
 * the callback that stopped it has returned.  The stream never closes the descriptor: that is its
 * owner's.  All functions: loop thread only.
 */
#ifndef PYREACTOR_STREAM_H
#define PYREACTOR_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "pyreactor/loop.h"
#include "pyreactor/write_queue.h"

/* Bytes written in one callback wait for its end up to this many, then they leave at once. */
#define PR_STREAM_HELD_BYTES_MAX (64 * 1024)
#define PR_STREAM_HIGH_WATER_BYTES (64 * 1024)

struct pr_stream;

/* What the owner hears.  Each returns 0, or a positive number to end the turn here. */
struct pr_stream_handler {
    /* Optional: lends a buffer to receive into, or leaves the loop's; a `*size` of 0 skips this
     * read.  on_received() follows in any other case, with 0 bytes where nothing came: then the
     * loan is over. */
    int (*acquire_buffer)(struct pr_stream *stream, char **buffer, size_t *size);
    /* `size` bytes came; `data` is lent until the return.  NULL: nothing is read, and that
     * something could be means that the peer is gone, which on_end() hears (the writing end of a
     * pipe). */
    int (*on_received)(struct pr_stream *stream, const char *data, size_t size);
    /* The peer has sent its last byte; reading has stopped. */
    int (*on_end)(struct pr_stream *stream);
    /* Reading or sending failed with `error` (a negative errno): stop the stream. */
    int (*on_error)(struct pr_stream *stream, int error, bool sending);
    /* More than the high water mark is queued / no more than the low water mark is left. */
    int (*on_high_water)(struct pr_stream *stream);
    int (*on_low_water)(struct pr_stream *stream);
    /* The last queued byte has left; asked for with `wants_drained`. */
    int (*on_drained)(struct pr_stream *stream);
};

struct pr_stream {
    struct pr_watch watch;
    struct pr_loop *loop; /* borrowed */
    const struct pr_stream_handler *handler;
    struct pr_write_queue writes;
    struct pr_flush flush;
    struct pr_stream_send *send; /* owned; NULL until the backend sends for the stream */
    bool is_sending;             /* `send` is under way: what it sends is still queued */
    unsigned full_receives;      /* see receives_in_bulk() */
    size_t high_water_bytes;
    size_t low_water_bytes;
    size_t held_bytes_max; /* the smaller of the high water mark and PR_STREAM_HELD_BYTES_MAX */
    bool is_file; /* no socket: read() and write() it, on which SIGPIPE must not kill the process */
    bool reading;
    bool over_high_water; /* on_high_water was called, on_low_water not yet */
    bool wants_drained;
    struct pr_ready_event unread; /* what the backend had received when the descriptor was lent */
};

/* Prepares a stream; `release` gives back the owners of written data. */
void pr_stream_init(struct pr_stream *stream, struct pr_loop *loop,
                    const struct pr_stream_handler *handler, void *owner,
                    void (*release)(void *owner));

/* Stops it and releases what is still queued. */
void pr_stream_deinit(struct pr_stream *stream);

/* Begins on a connected non-blocking socket, or where `is_file` was set on another descriptor, not
 * reading yet.  Returns 0 or a negative errno. */
int pr_stream_start(struct pr_stream *stream, int fd);

/* Ends all watching and drops what is queued; the descriptor may be closed after it. */
void pr_stream_stop(struct pr_stream *stream);

/* Leaves the descriptor to others, who receive and send; nothing is queued or read now.  What had
 * been received is in `unread`.  Returns 0, or the negative errno that came behind that. */
int pr_stream_lend(struct pr_stream *stream);

/* Has it back.  What is still in `unread` comes before anything newer, once the stream reads.
 * Returns 0 or a negative errno. */
int pr_stream_take_back(struct pr_stream *stream, int fd);

/* The bytes in `unread` are dealt with. */
void pr_stream_drop_unread(struct pr_stream *stream);

/* Starts or stops reading.  Returns 0 or a negative errno. */
int pr_stream_set_reading(struct pr_stream *stream, bool reading);

/* Queues `size` bytes (not 0), which pr_stream_send_soon() sends, and takes over `owner` where it
 * succeeds.  Returns 0 or -ENOMEM. */
int pr_stream_queue(struct pr_stream *stream, const char *data, size_t size, void *owner);

/*
 * Lets what is queued leave: when the running callback returns, or at once outside of one or where
 * more than the high water mark (or PR_STREAM_HELD_BYTES_MAX) is queued.
 * Returns 0, what a handler returned, or a negative errno where sending failed: stop the stream.
 */
int pr_stream_send_soon(struct pr_stream *stream);

/*
 * Sends `size` bytes now without queueing them, if nothing is queued before them.  Returns how many
 * left (0 where they must wait) or a negative errno: stop the stream.
 */
ssize_t pr_stream_send_now(struct pr_stream *stream, const char *data, size_t size);

/* Sends as much as the kernel takes now.  Returns as pr_stream_send_soon(). */
int pr_stream_flush(struct pr_stream *stream);

/* The same, and counts what the kernel has taken of what it is sending by itself, of which the loop
 * has not been told yet.  Returns as pr_stream_send_soon(). */
int pr_stream_settle(struct pr_stream *stream);

/* Sets the water marks, in bytes, and holds the queue against them.  Returns as
 * pr_stream_send_soon(). */
int pr_stream_set_water(struct pr_stream *stream, size_t high_bytes, size_t low_bytes);

/* True while bytes are held back for the end of the running callback. */
static inline bool pr_stream_is_holding(const struct pr_stream *stream)
{
    return stream->flush.next != NULL;
}

/* Bytes queued. */
static inline size_t pr_stream_queued_bytes(const struct pr_stream *stream)
{
    return stream->writes.bytes;
}

#endif
