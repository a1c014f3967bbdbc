/*
 * The head of an HTTP/1 request - request line and header fields - by two state machines: one cuts
 * lines, the other takes a line at a time.  Strict (RFC 9110, RFC 9112): whatever two programs
 * could read as two different requests is refused, bare line feeds and folded fields among it.
 *
 * A machine keeps offsets and no bytes: whoever feeds it keeps the head in one piece, gives it from
 * its first byte each time, and nothing is looked at twice.
 */
#ifndef PYREACTOR_HTTP1_H
#define PYREACTOR_HTTP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the bytes so far are: a line that is not at its end, one that is, one that cannot be. */
enum pr_line { PR_LINE_OPEN, PR_LINE_OK, PR_LINE_BAD };

struct pr_http1_limits {
    size_t line_bytes_max; /* of one line, without its end */
    size_t headers_max;    /* fields in one head */
    size_t head_bytes_max; /* of the head, without the empty line; at most PR_HTTP1_BYTES_MAX */
};

#define PR_HTTP1_BYTES_MAX ((size_t)1 << 30) /* so that offsets fit */

/* Bytes of the head, counted from its first one. */
struct pr_range {
    uint32_t begin;
    uint32_t bytes;
};

struct pr_http1_header {
    struct pr_range name;
    struct pr_range value; /* without the white space around it */
};

enum pr_http1_state {
    PR_HTTP1_REQUEST_LINE,
    PR_HTTP1_HEADERS,
    PR_HTTP1_COMPLETE,
    PR_HTTP1_REFUSED,
};

struct pr_http1_head {
    struct pr_http1_limits limits;
    struct pr_http1_header *headers; /* lent by the owner: limits.headers_max of them, or NULL */
    enum pr_http1_state state;
    size_t line_begin; /* of the line that is open */
    size_t scanned;    /* up to here there is no end of it */

    /* What was found; of what is not complete, the part up to the last whole line. */
    struct pr_range method;
    struct pr_range target;
    int minor_version; /* of HTTP/1 */
    size_t header_count;
    size_t bytes;           /* of the complete head, with its empty line */
    int64_t content_length; /* -1: none given */
    bool chunked;           /* the body comes in chunks */
    bool keep_alive;        /* another request may follow on this connection */
    bool has_host;
    bool closes; /* "Connection: close" was among the fields */

    /* Why it was refused, and with which status a server would say so. */
    const char *reason;
    int status;
};

/* Looks for the end of a line from `*scanned` on, and moves that: behind the line where it is
 * PR_LINE_OK, to the offending byte where it is PR_LINE_BAD (a CR without LF, or an LF without CR),
 * else to where to go on.  Any thread. */
enum pr_line pr_http1_find_line(const char *data, size_t size, size_t *scanned);

/* Makes a machine at the beginning of a head; `headers` (or NULL) takes the fields found.
 * Returns 0, or -EINVAL for limits that are 0 or too large.  Any thread. */
int pr_http1_head_init(struct pr_http1_head *head, const struct pr_http1_limits *limits,
                       struct pr_http1_header *headers);

/* Puts the machine back to the beginning.  Any thread, one at a time. */
void pr_http1_head_restart(struct pr_http1_head *head);

/*
 * Goes on with the head at `data`, of which `size` bytes have come, those of earlier calls
 * included.  Returns PR_LINE_OPEN where more must come, PR_LINE_OK where it is complete: then
 * `bytes` says where it ended, or PR_LINE_BAD: then `reason` and `status` say why, for good.
 * The answer depends on the bytes alone, not on how they were cut.  Any thread, one at a time.
 */
enum pr_line pr_http1_head_feed(struct pr_http1_head *head, const char *data, size_t size);

#endif
