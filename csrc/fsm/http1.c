/*
 * The machine for the head of an HTTP/1 request.  Each line goes through a function of its state;
 * what the body's length depends on is checked field by field and, once more together, at the end.
 */
#include "pyreactor/http1.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

enum status {
    BAD_REQUEST = 400,
    URI_TOO_LONG = 414,
    HEADERS_TOO_LARGE = 431,
    NOT_IMPLEMENTED = 501,
    VERSION_NOT_SUPPORTED = 505,
};

/* RFC 9110, 5.6.2: what names and methods consist of. */
static bool is_token(unsigned char byte)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= 'a' && byte <= 'z') || (byte && strchr(others, byte));
}

static bool is_visible(unsigned char byte)
{
    return byte > ' ' && byte < 0x7f;
}

static bool is_space(unsigned char byte)
{
    return byte == ' ' || byte == '\t';
}

/* RFC 9110, 5.5: text of any encoding, but no control characters. */
static bool is_in_value(unsigned char byte)
{
    return byte == '\t' || (byte >= ' ' && byte != 0x7f);
}

static size_t span(const char *data, size_t size, bool (*holds)(unsigned char))
{
    size_t count = 0;
    while (count < size && holds((unsigned char)data[count]))
        count++;
    return count;
}

static bool equals(const char *data, size_t size, const char *text)
{
    return size == strlen(text) && strncasecmp(data, text, size) == 0;
}

static enum pr_line refuse(struct pr_http1_head *head, int status, const char *reason)
{
    head->state = PR_HTTP1_REFUSED;
    head->status = status;
    head->reason = reason;
    return PR_LINE_BAD;
}

enum pr_line pr_http1_find_line(const char *data, size_t size, size_t *scanned)
{
    const char *from = data + *scanned, *end = data + size;
    const char *lf = from < end ? memchr(from, '\n', (size_t)(end - from)) : NULL;
    const char *limit = lf ? lf : end;
    const char *cr = from < limit ? memchr(from, '\r', (size_t)(limit - from)) : NULL;
    if (!cr) {
        *scanned = (size_t)(limit - data);
        return lf ? PR_LINE_BAD : PR_LINE_OPEN;
    }
    if (lf && cr + 1 == lf) {
        *scanned = (size_t)(lf + 1 - data);
        return PR_LINE_OK;
    }
    *scanned = (size_t)(cr - data);
    return cr + 1 == end ? PR_LINE_OPEN : PR_LINE_BAD;
}

/* method SP target SP HTTP/1.x */
static enum pr_line take_request_line(struct pr_http1_head *head, const char *data, size_t begin,
                                      size_t end)
{
    size_t at = begin, count = span(data + at, end - at, is_token);
    head->method = (struct pr_range){(uint32_t)at, (uint32_t)count};
    at += count;
    if (count == 0 || at == end || data[at] != ' ')
        return refuse(head, BAD_REQUEST, "the request line does not begin with a method");
    at++;
    count = span(data + at, end - at, is_visible);
    head->target = (struct pr_range){(uint32_t)at, (uint32_t)count};
    at += count;
    if (count == 0 || at == end || data[at] != ' ')
        return refuse(head, BAD_REQUEST, "the request line has no target that ends in one space");
    at++;
    const char *version = data + at;
    if (end - at != 8 || memcmp(version, "HTTP/", 5) != 0 || version[6] != '.' ||
        version[5] < '0' || version[5] > '9' || version[7] < '0' || version[7] > '9')
        return refuse(head, BAD_REQUEST, "the request line does not end in a version of HTTP");
    if (version[5] != '1' || version[7] > '1')
        return refuse(head, VERSION_NOT_SUPPORTED, "the version is neither HTTP/1.0 nor HTTP/1.1");
    head->minor_version = version[7] - '0';
    head->keep_alive = head->minor_version == 1;
    head->state = PR_HTTP1_HEADERS;
    return PR_LINE_OK;
}

static enum pr_line take_content_length(struct pr_http1_head *head, const char *value, size_t size)
{
    if (head->content_length >= 0)
        return refuse(head, BAD_REQUEST, "Content-Length comes twice");
    int64_t length = 0;
    if (size == 0)
        return refuse(head, BAD_REQUEST, "Content-Length is empty");
    for (size_t i = 0; i < size; i++) {
        int digit = value[i] - '0';
        if (digit < 0 || digit > 9)
            return refuse(head, BAD_REQUEST, "Content-Length is not a number");
        if (length > (INT64_MAX - digit) / 10)
            return refuse(head, BAD_REQUEST, "Content-Length is beyond every number");
        length = length * 10 + digit;
    }
    head->content_length = length;
    return PR_LINE_OK;
}

static enum pr_line take_transfer_encoding(struct pr_http1_head *head, const char *value,
                                           size_t size)
{
    if (head->chunked)
        return refuse(head, BAD_REQUEST, "Transfer-Encoding comes twice");
    if (!equals(value, size, "chunked"))
        return refuse(head, NOT_IMPLEMENTED, "Transfer-Encoding is something else than chunked");
    head->chunked = true;
    return PR_LINE_OK;
}

/* Options of this connection, separated by commas; "close" is the last word. */
static void take_connection(struct pr_http1_head *head, const char *value, size_t size)
{
    for (size_t at = 0; at < size;) {
        const char *comma = memchr(value + at, ',', size - at);
        size_t end = comma ? (size_t)(comma - value) : size;
        size_t begin = at + span(value + at, end - at, is_space);
        size_t count = span(value + begin, end - begin, is_token);
        if (begin + count + span(value + begin + count, end - begin - count, is_space) == end) {
            if (equals(value + begin, count, "close"))
                head->closes = true;
            else if (equals(value + begin, count, "keep-alive"))
                head->keep_alive = true;
        }
        at = end + 1;
    }
}

/* name ":" value, with white space around the value that is none of it */
static enum pr_line take_header(struct pr_http1_head *head, const char *data, size_t begin,
                                size_t end)
{
    if (head->header_count == head->limits.headers_max)
        return refuse(head, HEADERS_TOO_LARGE, "there are more fields than max_headers");
    if (is_space((unsigned char)data[begin]))
        return refuse(head, BAD_REQUEST,
                      "a line begins with white space: folded fields are "
                      "obsolete");
    size_t name_bytes = span(data + begin, end - begin, is_token);
    size_t colon = begin + name_bytes;
    if (name_bytes == 0 || colon == end || data[colon] != ':')
        return refuse(head, BAD_REQUEST, "a field does not begin with a name and a colon");
    size_t from = colon + 1;
    if (span(data + from, end - from, is_in_value) != end - from)
        return refuse(head, BAD_REQUEST, "a field's value has a control character");
    from += span(data + from, end - from, is_space);
    size_t to = end;
    while (to > from && is_space((unsigned char)data[to - 1]))
        to--;
    if (head->headers)
        head->headers[head->header_count] = (struct pr_http1_header){
            {(uint32_t)begin, (uint32_t)name_bytes}, {(uint32_t)from, (uint32_t)(to - from)}};
    head->header_count++;

    const char *name = data + begin, *value = data + from;
    if (equals(name, name_bytes, "content-length"))
        return take_content_length(head, value, to - from);
    if (equals(name, name_bytes, "transfer-encoding"))
        return take_transfer_encoding(head, value, to - from);
    if (equals(name, name_bytes, "connection")) {
        take_connection(head, value, to - from);
    } else if (equals(name, name_bytes, "host")) {
        if (head->has_host)
            return refuse(head, BAD_REQUEST, "Host comes twice");
        head->has_host = true;
    }
    return PR_LINE_OK;
}

/* The empty line: what only the whole head can tell. */
static enum pr_line take_end(struct pr_http1_head *head)
{
    if (head->minor_version == 1 && !head->has_host)
        return refuse(head, BAD_REQUEST, "Host is missing");
    if (head->chunked && head->content_length >= 0)
        return refuse(head, BAD_REQUEST, "Content-Length and Transfer-Encoding exclude each other");
    if (head->chunked && head->minor_version == 0)
        return refuse(head, BAD_REQUEST, "Transfer-Encoding is not of HTTP/1.0");
    if (head->closes)
        head->keep_alive = false;
    head->state = PR_HTTP1_COMPLETE;
    head->bytes = head->line_begin;
    return PR_LINE_OK;
}

int pr_http1_head_init(struct pr_http1_head *head, const struct pr_http1_limits *limits,
                       struct pr_http1_header *headers)
{
    if (limits->line_bytes_max == 0 || limits->headers_max == 0 || limits->head_bytes_max == 0 ||
        limits->head_bytes_max > PR_HTTP1_BYTES_MAX)
        return -EINVAL;
    *head = (struct pr_http1_head){.limits = *limits, .headers = headers, .content_length = -1};
    return 0;
}

void pr_http1_head_restart(struct pr_http1_head *head)
{
    *head = (struct pr_http1_head){
        .limits = head->limits, .headers = head->headers, .content_length = -1};
}

/* The line from line_begin, of which `bytes` without an end have come: is it too long? */
static enum pr_line check_limits(struct pr_http1_head *head, size_t bytes)
{
    size_t end = head->line_begin + bytes;
    size_t line_max = head->limits.line_bytes_max, head_max = head->limits.head_bytes_max;
    if (bytes > line_max && head->line_begin + line_max <= head_max) {
        if (head->state == PR_HTTP1_REQUEST_LINE)
            return refuse(head, URI_TOO_LONG, "the request line is longer than max_line_bytes");
        return refuse(head, HEADERS_TOO_LARGE, "a field is longer than max_line_bytes");
    }
    if (end > head_max)
        return refuse(head, HEADERS_TOO_LARGE, "the head is longer than max_bytes");
    return PR_LINE_OK;
}

static enum pr_line take_line(struct pr_http1_head *head, const char *data, size_t begin,
                              size_t end)
{
    if (head->state == PR_HTTP1_HEADERS)
        return begin == end ? take_end(head) : take_header(head, data, begin, end);
    if (begin == 0 && end == 0) /* RFC 9112, 2.2: left over from a request before */
        return PR_LINE_OK;
    return take_request_line(head, data, begin, end);
}

enum pr_line pr_http1_head_feed(struct pr_http1_head *head, const char *data, size_t size)
{
    while (head->state < PR_HTTP1_COMPLETE) {
        enum pr_line line = pr_http1_find_line(data, size, &head->scanned);
        size_t end = line == PR_LINE_OK ? head->scanned - 2 : head->scanned;
        size_t begin = head->line_begin;
        if (check_limits(head, end - begin) == PR_LINE_BAD)
            break;
        if (line == PR_LINE_OPEN)
            return PR_LINE_OPEN;
        if (line == PR_LINE_BAD)
            return refuse(head, BAD_REQUEST, "a line ends in something else than CR LF");
        head->line_begin = head->scanned;
        take_line(head, data, begin, end);
    }
    return head->state == PR_HTTP1_COMPLETE ? PR_LINE_OK : PR_LINE_BAD;
}
