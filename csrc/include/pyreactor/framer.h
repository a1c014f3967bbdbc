/*
 * Framing: where one message ends and the next begins in a stream of bytes.  A `pr_framing` says by
 * which rule and up to which size; it never changes, and connections share it.  A `pr_framer` is
 * one connection's machine: bytes go in as they come, frames come out.
 *
 * What comes out depends on the bytes alone, not on how they were cut.  A byte is looked at once
 * and, where its frame came in pieces, copied once; what is held never exceeds one frame of the
 * allowed size and its marks, and grows with what came, not with what was announced.
 */
#ifndef PYREACTOR_FRAMER_H
#define PYREACTOR_FRAMER_H

#include <stdbool.h>
#include <stddef.h>

#include "pyreactor/http1.h"

#define PR_DELIMITER_BYTES_MAX 64
#define PR_FRAME_BYTES_MAX ((size_t)1 << 40) /* any size, but sums cannot overflow */

enum pr_framing_kind {
    PR_FRAMING_LINES,           /* up to LF or CR LF, which is left out unless `keep_ends` */
    PR_FRAMING_DELIMITER,       /* up to `delimiter`, which is left out */
    PR_FRAMING_FIXED,           /* `max_bytes` each */
    PR_FRAMING_LENGTH_PREFIXED, /* after their size, a number of `prefix_bytes` */
    PR_FRAMING_HTTP_HEAD,       /* an HTTP/1 request's head, and `max_bytes` of body at most */
};

struct pr_framing {
    enum pr_framing_kind kind;
    size_t max_bytes; /* of a frame, without its marks */
    bool keep_ends;
    bool little_endian; /* the prefix */
    size_t prefix_bytes;
    size_t delimiter_bytes;
    char delimiter[PR_DELIMITER_BYTES_MAX];
    struct pr_http1_limits http;
};

struct pr_frame {
    const char *data; /* lent until the next call */
    size_t size;
};

struct pr_framer {
    const struct pr_framing *framing; /* borrowed */

    /* The frame that is open, as far as it has come, where that was not all in one piece */
    char *held; /* owned */
    size_t held_bytes;
    size_t capacity;
    bool lends_held; /* the last frame lies there */

    /* What is known of the open frame */
    size_t scanned; /* up to here it does not end */
    size_t needed;  /* its bytes with its marks; 0: not known yet */
    size_t begin;   /* where, in it, the payload begins */
    size_t payload; /* how long that is, once it is complete */
    struct pr_http1_head head;

    int error;          /* a negative errno once the bytes broke the rule: it is over */
    const char *reason; /* then: how they did, and what to do */
};

/* Returns 0, or -EINVAL where the framing's sizes are 0 or too large.  Any thread. */
int pr_framing_check(const struct pr_framing *framing);

/* Makes a framer of a checked framing, at the beginning of a frame.  Any thread. */
void pr_framer_init(struct pr_framer *framer, const struct pr_framing *framing);

/* Frees what is held.  Any thread, one at a time. */
void pr_framer_deinit(struct pr_framer *framer);

/*
 * Takes from `*size` bytes at `*data`, moving both, up to the end of the next frame.  Returns 1 and
 * the frame, lent until the next call and as long as the bytes given here live; or 0 where all
 * was taken and none is complete; or a negative errno, with a reason:
 * -EMSGSIZE for a frame that is too large, -EPROTO for bytes against the rule, -ENOMEM.
 * Any thread, one at a time.
 */
int pr_framer_feed(struct pr_framer *framer, const char **data, size_t *size,
                   struct pr_frame *frame);

/* The peer has sent its last byte.  Returns 1 and the frame that this ends (a last line), 0 where
 * nothing is open, or -EPROTO with a reason where a frame is cut off.  Any thread, one at a time.
 */
int pr_framer_end(struct pr_framer *framer, struct pr_frame *frame);

/* Bytes held of a frame that is open.  Any thread, one at a time. */
static inline size_t pr_framer_pending(const struct pr_framer *framer)
{
    return framer->lends_held ? 0 : framer->held_bytes;
}

#endif
