/*
 * The machine for the head of a request: what it finds, where it is strict, and that it says the
 * same however the bytes are cut.
 */
#include <errno.h>

#include "check.h"
#include "pyreactor/http1.h"

#define HEADERS_MAX 4

static const struct pr_http1_limits limits = {60, HEADERS_MAX, 200};
static struct pr_http1_header headers[HEADERS_MAX];
static struct pr_http1_head head;

/* Feeds growing parts of the text, first `first` bytes and then `step` more each time. */
static enum pr_line feed(const char *text, size_t first, size_t step)
{
    size_t size = strlen(text);
    enum pr_line line = PR_LINE_OPEN;
    REQUIRE_EQUAL(pr_http1_head_init(&head, &limits, headers), 0);
    for (size_t at = first; line == PR_LINE_OPEN; at += step) {
        if (at > size)
            at = size;
        char *part = malloc(at + 1); /* a block of its own, so that a byte too many is seen */
        REQUIRE(part);
        memcpy(part, text, at);
        line = pr_http1_head_feed(&head, part, at);
        free(part);
        if (at == size)
            break;
    }
    return line;
}

static void check_range(const char *text, struct pr_range range, const char *expected)
{
    CHECK_BYTES(text + range.begin, range.bytes, expected, strlen(expected));
}

static void a_line_is_open_complete_or_bad(void)
{
    size_t scanned = 0;
    CHECK_EQUAL(pr_http1_find_line("ab", 2, &scanned), PR_LINE_OPEN);
    CHECK_EQUAL(scanned, 2);
    CHECK_EQUAL(pr_http1_find_line("ab\r", 3, &scanned), PR_LINE_OPEN);
    CHECK_EQUAL(scanned, 2);
    CHECK_EQUAL(pr_http1_find_line("ab\r\nc", 5, &scanned), PR_LINE_OK);
    CHECK_EQUAL(scanned, 4);
    CHECK_EQUAL(pr_http1_find_line("ab\r\nc\rd", 7, &scanned), PR_LINE_BAD);
    CHECK_EQUAL(scanned, 5);
    scanned = 0;
    CHECK_EQUAL(pr_http1_find_line("a\n\r\n", 4, &scanned), PR_LINE_BAD);
    CHECK_EQUAL(scanned, 1);
    CHECK_EQUAL(pr_http1_find_line(NULL, 0, &(size_t){0}), PR_LINE_OPEN);
}

static void a_head_is_taken_apart_however_it_is_cut(void)
{
    const char text[] = "\r\nPOST /a?b HTTP/1.1\r\nHost:x\r\nContent-Length:\t 12 \r\nX-Y: "
                        "a\xe9 b\t\r\n\r\nmore";
    for (size_t first = 0; first < sizeof text; first++) {
        for (size_t step = 1; step < sizeof text; step += sizeof text - 2) {
            REQUIRE_EQUAL(feed(text, first, step), PR_LINE_OK);
            check_range(text, head.method, "POST");
            check_range(text, head.target, "/a?b");
            CHECK_EQUAL(head.minor_version, 1);
            CHECK_EQUAL(head.header_count, 3);
            check_range(text, headers[0].name, "Host");
            check_range(text, headers[0].value, "x");
            check_range(text, headers[1].value, "12");
            check_range(text, headers[2].name, "X-Y");
            check_range(text, headers[2].value, "a\xe9 b");
            CHECK_EQUAL(head.content_length, 12);
            CHECK_EQUAL(head.bytes, sizeof text - 1 - 4);
            CHECK(head.keep_alive && !head.chunked);
        }
    }
}

static void what_follows_on_the_connection_depends_on_version_and_fields(void)
{
    CHECK_EQUAL(feed("G / HTTP/1.0\r\n\r\n", 0, 99), PR_LINE_OK);
    CHECK(!head.keep_alive);
    CHECK_EQUAL(head.content_length, -1);
    CHECK_EQUAL(feed("G / HTTP/1.0\r\nConnection: x , Keep-Alive\r\n\r\n", 0, 99), PR_LINE_OK);
    CHECK(head.keep_alive);
    CHECK_EQUAL(feed("G / HTTP/1.1\r\nHost: a\r\nConnection: close, keep-alive\r\n\r\n", 0, 99),
                PR_LINE_OK);
    CHECK(!head.keep_alive);
    CHECK_EQUAL(feed("G / HTTP/1.1\r\nHost: a\r\nConnection: closed, not close\r\n\r\n", 0, 99),
                PR_LINE_OK);
    CHECK(head.keep_alive);
    CHECK_EQUAL(feed("G / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", 0, 99),
                PR_LINE_OK);
    CHECK(head.chunked);
}

static void what_could_be_read_in_two_ways_is_refused(void)
{
#define HEAD "G / HTTP/1.1\r\nHost: a\r\n"
    static const struct {
        int status;
        const char *text;
    } refused[] = {
        {400, "G / HTTP/1.1\nHost: a\r\n\r\n"},
        {400, HEAD "A: b\n\r\n"},
        {400, HEAD "A: b\rc\r\n\r\n"},
        {400, HEAD " A: b\r\n"},
        {400, HEAD "A: b\r\n\tc\r\n"},
        {400, HEAD "A : b\r\n"},
        {400, HEAD ": b\r\n"},
        {400, HEAD "A\r\n"},
        {400, HEAD "A: \x7f\r\n"},
        {400, HEAD "A: \x01\r\n"},
        {400, HEAD "Content-Length: 1\r\nContent-Length: 1\r\n"},
        {400, HEAD "Content-Length: +1\r\n"},
        {400, HEAD "Content-Length: 1, 1\r\n"},
        {400, HEAD "Content-Length:\r\n"},
        {400, HEAD "Content-Length: 9223372036854775808\r\n"},
        {400, HEAD "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {400, HEAD "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"},
        {501, HEAD "Transfer-Encoding: gzip, chunked\r\n"},
        {400, "G / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {400, HEAD "host: a\r\n"},
        {400, "G / HTTP/1.1\r\n\r\n"},
        {400, "\r\n\r\n"},
        {400, "G  / HTTP/1.1\r\n"},
        {400, "G /  HTTP/1.1\r\n"},
        {400, "G / HTTP/1.1 \r\n"},
        {400, " G / HTTP/1.1\r\n"},
        {400, "G /\r\n"},
        {400, "G\r\n"},
        {400, "G / http/1.1\r\n"},
        {400, "G / HTTP/1.10\r\n"},
        {400, "G /\xe9 HTTP/1.1\r\n"},
        {505, "G / HTTP/2.0\r\n"},
        {505, "G / HTTP/1.2\r\n"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *text = refused[i].text;
        CHECK_EQUAL(feed(text, strlen(text), 1), PR_LINE_BAD);
        const char *reason = head.reason;
        CHECK_EQUAL(head.status, refused[i].status);
        REQUIRE(reason);
        CHECK_EQUAL(feed(text, 0, 1), PR_LINE_BAD);
        CHECK_EQUAL(head.status, refused[i].status);
        CHECK_TEXT(head.reason, reason);
        CHECK_EQUAL(pr_http1_head_feed(&head, text, strlen(text)), PR_LINE_BAD);
    }
}

static void a_largest_length_is_taken(void)
{
    CHECK_EQUAL(feed(HEAD "Content-Length: 9223372036854775807\r\n\r\n", 0, 99), PR_LINE_OK);
    CHECK_EQUAL(head.content_length, INT64_MAX);
    CHECK_EQUAL(feed(HEAD "Content-Length: 000\r\n\r\n", 0, 99), PR_LINE_OK);
    CHECK_EQUAL(head.content_length, 0);
}

/* A head of `lines` fields of `bytes` bytes each. */
static const char *sized(size_t target_bytes, int lines, size_t bytes)
{
    static char text[2048];
    int at =
        snprintf(text, sizeof text, "G /%.*s HTTP/1.0\r\n", (int)target_bytes - 1,
                 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    for (int i = 0; i < lines; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, "A:%*s\r\n", (int)bytes - 2, "b");
    snprintf(text + at, sizeof text - (size_t)at, "\r\n");
    return text;
}

static void each_size_is_limited(void)
{
    static const struct {
        int target_bytes, lines, bytes, status;
        const char *reason;
    } cases[] = {
        {60 - 11, 0, 0, 0, NULL},
        {61 - 11, 0, 0, 414, "the request line is longer than max_line_bytes"},
        {1, HEADERS_MAX, 10, 0, NULL},
        {1, HEADERS_MAX + 1, 10, 431, "there are more fields than max_headers"},
        {1, 1, 60, 0, NULL},
        {1, 1, 61, 431, "a field is longer than max_line_bytes"},
        {1 + 24, 3, 52, 0, NULL}, /* 38 + 3 * 54 = 200 */
        {1 + 25, 3, 52, 431, "the head is longer than max_bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *text =
            sized((size_t)cases[i].target_bytes, cases[i].lines, (size_t)cases[i].bytes);
        for (size_t step = 1; step < 2000; step += 1998) {
            enum pr_line line = feed(text, 0, step);
            CHECK_EQUAL(line, cases[i].status ? PR_LINE_BAD : PR_LINE_OK);
            CHECK_EQUAL(head.status, cases[i].status);
            if (line == PR_LINE_BAD && cases[i].reason)
                CHECK_TEXT(head.reason, cases[i].reason);
        }
    }
}

static void a_machine_begins_again(void)
{
    CHECK_EQUAL(feed("G / HTTP/1.1\r\n\r\n", 0, 99), PR_LINE_BAD);
    pr_http1_head_restart(&head);
    CHECK_EQUAL(pr_http1_head_feed(&head, HEAD "\r\n", strlen(HEAD "\r\n")), PR_LINE_OK);
    CHECK_EQUAL(head.header_count, 1);
    struct pr_http1_limits none = {0, 1, 1};
    CHECK_EQUAL(pr_http1_head_init(&head, &none, NULL), -EINVAL);
    none = (struct pr_http1_limits){1, 1, PR_HTTP1_BYTES_MAX + 1};
    CHECK_EQUAL(pr_http1_head_init(&head, &none, NULL), -EINVAL);
}

int main(void)
{
    RUN(a_line_is_open_complete_or_bad);
    RUN(a_head_is_taken_apart_however_it_is_cut);
    RUN(what_follows_on_the_connection_depends_on_version_and_fields);
    RUN(what_could_be_read_in_two_ways_is_refused);
    RUN(a_largest_length_is_taken);
    RUN(each_size_is_limited);
    RUN(a_machine_begins_again);
    return check_status();
}
