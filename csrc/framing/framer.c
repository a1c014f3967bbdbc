/*
 * Framers.  Each kind has one function, which looks at the bytes of the open frame that it has not
 * seen yet and says whether the frame ends there.  The rest is the same for all: a frame that came
 * in one piece is lent where it lies, the pieces of another are collected first.
 */
#include "pyreactor/framer.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HELD_BYTES_MIN 256
#define HELD_BYTES_KEPT (64 * 1024) /* what was larger for one frame is freed after it */

static int refuse(struct pr_framer *framer, int error, const char *reason)
{
    framer->error = error;
    framer->reason = reason;
    return error;
}

static void begin_frame(struct pr_framer *framer)
{
    framer->scanned = framer->needed = framer->begin = framer->payload = 0;
    if (framer->framing->kind == PR_FRAMING_HTTP_HEAD)
        pr_http1_head_restart(&framer->head);
}

/* The kinds.  `frame` has `size` bytes of the open frame and, perhaps, what follows it.  Returns 1
 * with `needed`, `begin` and `payload` set where it is complete, 0, or a negative errno. */

static int scan_line(struct pr_framer *framer, const char *frame, size_t size)
{
    const struct pr_framing *framing = framer->framing;
    const char *lf = memchr(frame + framer->scanned, '\n', size - framer->scanned);
    size_t end = lf ? (size_t)(lf - frame) : size;
    size_t ending = end && frame[end - 1] == '\r' ? 2 : 1; /* perhaps, where it is still open */
    framer->scanned = end;
    if (end + 1 - ending > framing->max_bytes)
        return refuse(framer, -EMSGSIZE, "a line is longer than max_bytes");
    if (!lf)
        return 0;
    framer->needed = end + 1;
    framer->payload = framing->keep_ends ? end + 1 : end + 1 - ending;
    return 1;
}

static int scan_delimiter(struct pr_framer *framer, const char *frame, size_t size)
{
    const struct pr_framing *framing = framer->framing;
    size_t marks = framing->delimiter_bytes;
    const char *found =
        memmem(frame + framer->scanned, size - framer->scanned, framing->delimiter, marks);
    /* All but its last byte may be there already. */
    size_t end = found ? (size_t)(found - frame) : size < marks ? 0 : size - marks + 1;
    framer->scanned = end;
    if (end > framing->max_bytes)
        return refuse(framer, -EMSGSIZE, "no delimiter comes within max_bytes");
    if (!found)
        return 0;
    framer->needed = end + marks;
    framer->payload = end;
    return 1;
}

static int scan_fixed(struct pr_framer *framer, const char *frame, size_t size)
{
    (void)frame;
    framer->needed = framer->payload = framer->framing->max_bytes;
    return size >= framer->needed;
}

static int scan_length_prefixed(struct pr_framer *framer, const char *frame, size_t size)
{
    const struct pr_framing *framing = framer->framing;
    if (!framer->needed) {
        uint64_t length = 0;
        size_t count = framing->prefix_bytes;
        if (size < count)
            return 0;
        for (size_t i = 0; i < count; i++)
            length = length << 8 | (uint8_t)frame[framing->little_endian ? count - 1 - i : i];
        if (length > framing->max_bytes)
            return refuse(framer, -EMSGSIZE, "a frame is announced that is longer than max_bytes");
        framer->begin = count;
        framer->payload = (size_t)length;
        framer->needed = count + (size_t)length;
    }
    return size >= framer->needed;
}

static int scan_http_head(struct pr_framer *framer, const char *frame, size_t size)
{
    struct pr_http1_head *head = &framer->head;
    if (!framer->needed) {
        enum pr_line line = pr_http1_head_feed(head, frame, size);
        if (line == PR_LINE_OPEN)
            return 0;
        if (line == PR_LINE_BAD)
            return refuse(framer, -EPROTO, head->reason);
        if (head->chunked)
            return refuse(framer, -EPROTO,
                          "a request's body comes in chunks, for which there is "
                          "no framing: use an HTTP library");
        size_t body = head->content_length > 0 ? (size_t)head->content_length : 0;
        if (body > framer->framing->max_bytes)
            return refuse(framer, -EMSGSIZE, "a request's body is longer than max_body_bytes");
        framer->begin = head->method.begin;
        framer->needed = head->bytes + body;
        framer->payload = framer->needed - framer->begin;
    }
    return size >= framer->needed;
}

static int scan(struct pr_framer *framer, const char *frame, size_t size)
{
    switch (framer->framing->kind) {
    case PR_FRAMING_LINES:
        return scan_line(framer, frame, size);
    case PR_FRAMING_DELIMITER:
        return scan_delimiter(framer, frame, size);
    case PR_FRAMING_FIXED:
        return scan_fixed(framer, frame, size);
    case PR_FRAMING_LENGTH_PREFIXED:
        return scan_length_prefixed(framer, frame, size);
    case PR_FRAMING_HTTP_HEAD:
        return scan_http_head(framer, frame, size);
    }
    return refuse(framer, -EINVAL, "there is no such kind of framing");
}

/* Adds to what is held.  Its room doubles, so that it is moved a few times only, but never goes
 * beyond what the frame needs.  Returns 0 or -ENOMEM. */
static int hold(struct pr_framer *framer, const char *data, size_t size)
{
    size_t bytes = framer->held_bytes + size;
    if (bytes > framer->capacity) {
        size_t capacity = framer->capacity ? framer->capacity * 2 : HELD_BYTES_MIN;
        if (framer->needed && capacity > framer->needed)
            capacity = framer->needed;
        if (capacity < bytes)
            capacity = bytes;
        char *held = realloc(framer->held, capacity);
        if (!held)
            return refuse(framer, -ENOMEM, "there is no memory to hold a frame");
        framer->held = held;
        framer->capacity = capacity;
    }
    if (size)
        memcpy(framer->held + framer->held_bytes, data, size);
    framer->held_bytes = bytes;
    return 0;
}

static void drop_held(struct pr_framer *framer)
{
    framer->held_bytes = 0;
    framer->lends_held = false;
    if (framer->capacity > HELD_BYTES_KEPT) {
        free(framer->held);
        framer->held = NULL;
        framer->capacity = 0;
    }
}

/* How much of `size` bytes to add to a frame that is held: what it needs, or so much that what is
 * copied beyond its end is not more than the frame itself. */
static size_t piece(const struct pr_framer *framer, size_t size)
{
    size_t most = framer->held_bytes > HELD_BYTES_MIN ? framer->held_bytes : HELD_BYTES_MIN;
    if (framer->needed)
        most = framer->needed - framer->held_bytes;
    return size < most ? size : most;
}

static void take(const char **data, size_t *size, size_t count)
{
    *data += count;
    *size -= count;
}

/* The complete frame at `bytes`, after which another begins. */
static int finish(struct pr_framer *framer, const char *bytes, struct pr_frame *frame)
{
    *frame = (struct pr_frame){bytes + framer->begin, framer->payload};
    begin_frame(framer);
    return 1;
}

int pr_framing_check(const struct pr_framing *framing)
{
    struct pr_http1_head head;
    if (framing->max_bytes > PR_FRAME_BYTES_MAX)
        return -EINVAL;
    switch (framing->kind) {
    case PR_FRAMING_LINES:
    case PR_FRAMING_FIXED:
        return framing->max_bytes ? 0 : -EINVAL;
    case PR_FRAMING_DELIMITER:
        return framing->max_bytes && framing->delimiter_bytes &&
                       framing->delimiter_bytes <= PR_DELIMITER_BYTES_MAX
                   ? 0
                   : -EINVAL;
    case PR_FRAMING_LENGTH_PREFIXED:
        return framing->max_bytes && framing->prefix_bytes && framing->prefix_bytes <= 8 ? 0
                                                                                         : -EINVAL;
    case PR_FRAMING_HTTP_HEAD:
        return pr_http1_head_init(&head, &framing->http, NULL);
    }
    return -EINVAL;
}

void pr_framer_init(struct pr_framer *framer, const struct pr_framing *framing)
{
    *framer = (struct pr_framer){.framing = framing};
    if (framing->kind == PR_FRAMING_HTTP_HEAD)
        (void)pr_http1_head_init(&framer->head, &framing->http, NULL); /* it was checked */
}

void pr_framer_deinit(struct pr_framer *framer)
{
    free(framer->held);
    framer->held = NULL;
    framer->held_bytes = framer->capacity = 0;
}

int pr_framer_feed(struct pr_framer *framer, const char **data, size_t *size,
                   struct pr_frame *frame)
{
    if (framer->error)
        return framer->error;
    if (framer->lends_held)
        drop_held(framer);
    while (*size && framer->held_bytes) {
        size_t before = framer->held_bytes, count = piece(framer, *size);
        if (hold(framer, *data, count) < 0)
            return framer->error;
        int complete = scan(framer, framer->held, framer->held_bytes);
        if (complete < 0)
            return complete;
        if (complete) {
            take(data, size, framer->needed - before);
            framer->lends_held = true;
            return finish(framer, framer->held, frame);
        }
        take(data, size, count);
    }
    if (!*size)
        return 0;
    const char *bytes = *data;
    int complete = scan(framer, bytes, *size);
    if (complete < 0)
        return complete;
    if (complete) {
        take(data, size, framer->needed);
        return finish(framer, bytes, frame);
    }
    if (hold(framer, *data, *size) < 0)
        return framer->error;
    take(data, size, *size);
    return 0;
}

/* An empty line may come before a request, and none after it. */
static bool is_between_requests(const struct pr_framer *framer)
{
    return framer->framing->kind == PR_FRAMING_HTTP_HEAD &&
           framer->head.state == PR_HTTP1_REQUEST_LINE &&
           framer->held_bytes == framer->head.line_begin;
}

int pr_framer_end(struct pr_framer *framer, struct pr_frame *frame)
{
    if (framer->error)
        return framer->error;
    if (framer->lends_held)
        drop_held(framer);
    if (!framer->held_bytes || is_between_requests(framer))
        return 0;
    if (framer->framing->kind != PR_FRAMING_LINES)
        return refuse(framer, -EPROTO, "the peer's last frame is cut off");
    if (framer->held_bytes > framer->framing->max_bytes) /* a CR that no LF followed */
        return refuse(framer, -EMSGSIZE, "a line is longer than max_bytes");
    framer->payload = framer->held_bytes;
    framer->lends_held = true;
    return finish(framer, framer->held, frame);
}
