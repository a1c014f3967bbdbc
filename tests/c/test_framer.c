/*
 * Framers: each kind fed whole, byte by byte and cut in two at every place, and what they hold.
 */
#include <errno.h>

#include "check.h"
#include "pyreactor/framer.h"

static struct pr_framing lines = {.kind = PR_FRAMING_LINES, .max_bytes = 8};
static struct pr_framing delimited = {
    .kind = PR_FRAMING_DELIMITER, .max_bytes = 8, .delimiter_bytes = 3, .delimiter = "aab"};
static struct pr_framing fixed = {.kind = PR_FRAMING_FIXED, .max_bytes = 3};
static struct pr_framing prefixed = {
    .kind = PR_FRAMING_LENGTH_PREFIXED, .max_bytes = 1 << 30, .prefix_bytes = 4};
static struct pr_framing requests = {
    .kind = PR_FRAMING_HTTP_HEAD, .max_bytes = 5, .http = {100, 10, 1000}};

/* What came out, with a '|' after each frame. */
static char out[4096];
static size_t out_bytes;

static void note(const struct pr_frame *frame)
{
    REQUIRE(out_bytes + frame->size + 1 <= sizeof out);
    memcpy(out + out_bytes, frame->data, frame->size);
    out_bytes += frame->size;
    out[out_bytes++] = '|';
}

static int feed(struct pr_framer *framer, const char *data, size_t size)
{
    struct pr_frame frame;
    int result;
    /* A block of its own, so that a byte too many is seen. */
    char *copy = malloc(size ? size : 1);
    const char *rest = copy;
    REQUIRE(copy);
    memcpy(copy, data, size);
    while ((result = pr_framer_feed(framer, &rest, &size, &frame)) > 0)
        note(&frame);
    if (result == 0)
        CHECK_EQUAL(size, 0);
    free(copy);
    return result;
}

/* Feeds `data` in pieces that end at `first` and then every `step` bytes. */
static int feed_cut(const struct pr_framing *framing, const char *data, size_t size, size_t first,
                    size_t step)
{
    struct pr_framer framer;
    struct pr_frame frame;
    pr_framer_init(&framer, framing);
    out_bytes = 0;
    int result = feed(&framer, data, first);
    for (size_t at = first; result == 0 && at < size; at += step)
        result = feed(&framer, data + at, size - at < step ? size - at : step);
    if (result == 0 && (result = pr_framer_end(&framer, &frame)) > 0) {
        note(&frame);
        result = pr_framer_end(&framer, &frame);
    }
    pr_framer_deinit(&framer);
    return result;
}

static void check_cuts(const struct pr_framing *framing, const char *data, size_t size,
                       const char *expected, int expected_result)
{
    REQUIRE_EQUAL(pr_framing_check(framing), 0);
    CHECK_EQUAL(feed_cut(framing, data, size, 0, 1), expected_result);
    CHECK_BYTES(out, out_bytes, expected, strlen(expected));
    for (size_t first = 0; first <= size; first++) {
        CHECK_EQUAL(feed_cut(framing, data, size, first, size), expected_result);
        CHECK_BYTES(out, out_bytes, expected, strlen(expected));
    }
}

#define CHECK_CUTS(framing, data, expected, result)                                                \
    check_cuts(framing, data, sizeof data - 1, expected, result)

static void frames_come_out_however_the_bytes_are_cut(void)
{
    CHECK_CUTS(&lines, "one\ntwo\r\n\nlast", "one|two||last|", 0);
    CHECK_CUTS(&delimited, "aaabxaabaab", "a|x||", 0);
    CHECK_CUTS(&fixed, "abcdef", "abc|def|", 0);
    CHECK_CUTS(&prefixed, "\0\0\0\2hi\0\0\0\0\0\0\0\1!", "hi||!|", 0);
    CHECK_CUTS(&requests, "GET / HTTP/1.0\r\n\r\n\r\nP / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
               "GET / HTTP/1.0\r\n\r\n|P / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi|", 0);
}

static void what_breaks_the_rule_is_refused_after_the_frames_before_it(void)
{
    CHECK_CUTS(&lines, "one\n123456789", "one|", -EMSGSIZE);
    CHECK_CUTS(&lines, "12345678\r", "", -EMSGSIZE); /* at the end the CR counts */
    CHECK_CUTS(&delimited, "aab123456789aab", "|", -EMSGSIZE);
    CHECK_CUTS(&delimited, "aa", "", -EPROTO);
    CHECK_CUTS(&fixed, "abcd", "abc|", -EPROTO);
    CHECK_CUTS(&prefixed, "\0\0\0\0\x40\0\0\1", "|", -EMSGSIZE);
    CHECK_CUTS(&requests, "P / HTTP/1.0\r\nContent-Length: 6\r\n\r\n", "", -EMSGSIZE);
    CHECK_CUTS(&requests, "P / HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n", "",
               -EPROTO);
    CHECK_CUTS(&requests, "GET / HTTP/1.0\n", "", -EPROTO);
}

static void a_refusal_has_a_reason_and_is_for_good(void)
{
    struct pr_framer framer;
    pr_framer_init(&framer, &lines);
    CHECK_EQUAL(feed(&framer, "123456789", 9), -EMSGSIZE);
    CHECK_TEXT(framer.reason, "a line is longer than max_bytes");
    CHECK_EQUAL(feed(&framer, "\n", 1), -EMSGSIZE);
    CHECK_EQUAL(pr_framer_end(&framer, NULL), -EMSGSIZE);
    pr_framer_deinit(&framer);
}

static void a_frame_in_one_piece_is_lent_where_it_lies(void)
{
    struct pr_framer framer;
    struct pr_frame frame;
    const char data[] = "one\ntw", *rest = data;
    size_t size = sizeof data - 1;
    pr_framer_init(&framer, &lines);
    CHECK_EQUAL(pr_framer_feed(&framer, &rest, &size, &frame), 1);
    CHECK_SAME(frame.data, data);
    CHECK_EQUAL(frame.size, 3);
    CHECK_SAME(rest, data + 4);
    CHECK_EQUAL(size, 2);
    CHECK_EQUAL(framer.capacity, 0);
    CHECK_EQUAL(pr_framer_feed(&framer, &rest, &size, &frame), 0);
    CHECK_EQUAL(pr_framer_pending(&framer), 2);
    pr_framer_deinit(&framer);
}

static void memory_grows_with_what_came_and_not_beyond_the_frame(void)
{
    static char megabyte[1 << 20];
    struct pr_framer framer;
    pr_framer_init(&framer, &prefixed);
    CHECK_EQUAL(feed(&framer, "\x40\0\0\0x", 5), 0); /* announces 1 GiB */
    CHECK_AT_MOST(framer.capacity, 4096);
    pr_framer_deinit(&framer);

    pr_framer_init(&framer, &prefixed);
    CHECK_EQUAL(feed(&framer, "\0\x10\0\0", 4), 0); /* 1 MiB */
    CHECK_EQUAL(feed(&framer, megabyte, sizeof megabyte - 1), 0);
    CHECK_EQUAL(framer.capacity, sizeof megabyte + 4 - 1);
    CHECK_EQUAL(pr_framer_pending(&framer), sizeof megabyte + 4 - 1);
    struct pr_frame frame;
    const char *rest = megabyte;
    size_t size = 3; /* one byte of it, and two of the next frame's prefix */
    CHECK_EQUAL(pr_framer_feed(&framer, &rest, &size, &frame), 1);
    CHECK_EQUAL(frame.size, sizeof megabyte);
    CHECK_EQUAL(framer.capacity, sizeof megabyte + 4);
    CHECK_EQUAL(pr_framer_pending(&framer), 0);
    CHECK_EQUAL(pr_framer_feed(&framer, &rest, &size, &frame), 0);
    CHECK_EQUAL(pr_framer_pending(&framer), 2);
    CHECK_AT_MOST(framer.capacity, 4096); /* that of the large frame is given back */
    pr_framer_deinit(&framer);
}

static void what_follows_a_held_frame_is_not_copied_with_it(void)
{
    static char many[1 << 20];
    struct pr_framer framer;
    struct pr_frame frame;
    const char *rest = many;
    size_t size = sizeof many;
    memset(many, '\n', sizeof many);
    pr_framer_init(&framer, &lines);
    CHECK_EQUAL(feed(&framer, "one", 3), 0);
    CHECK_EQUAL(pr_framer_feed(&framer, &rest, &size, &frame), 1);
    CHECK_BYTES(frame.data, frame.size, "one", 3);
    CHECK_EQUAL(size, sizeof many - 1);
    CHECK_AT_MOST(framer.capacity, 4096);
    pr_framer_deinit(&framer);
}

static void a_framing_without_sizes_is_refused(void)
{
    struct pr_framing framing = {.kind = PR_FRAMING_LINES};
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
    framing.max_bytes = PR_FRAME_BYTES_MAX + 1;
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
    framing.max_bytes = 1;
    CHECK_EQUAL(pr_framing_check(&framing), 0);
    framing.kind = PR_FRAMING_DELIMITER;
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
    framing.kind = PR_FRAMING_LENGTH_PREFIXED;
    framing.prefix_bytes = 9;
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
    framing.kind = PR_FRAMING_HTTP_HEAD;
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
    framing.kind = (enum pr_framing_kind)99;
    CHECK_EQUAL(pr_framing_check(&framing), -EINVAL);
}

int main(void)
{
    RUN(frames_come_out_however_the_bytes_are_cut);
    RUN(what_breaks_the_rule_is_refused_after_the_frames_before_it);
    RUN(a_refusal_has_a_reason_and_is_for_good);
    RUN(a_frame_in_one_piece_is_lent_where_it_lies);
    RUN(memory_grows_with_what_came_and_not_beyond_the_frame);
    RUN(what_follows_a_held_frame_is_not_copied_with_it);
    RUN(a_framing_without_sizes_is_refused);
    return check_status();
}
