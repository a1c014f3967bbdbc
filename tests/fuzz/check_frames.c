/*
 * Reads cases from standard input, each a framing, a stream and what a model makes of it, and feeds
 * the stream to a framer: whole, byte by byte, and in pieces of sizes drawn from a fixed seed.  The
 * first case that comes out otherwise is printed, and the exit status is 1.  Built with sanitizers.
 *
 * A case: kind, keep_ends, little_endian, prefix_bytes, delimiter_bytes (a byte each), max_bytes
 * and three limits of HTTP (32 bits each), 64 bytes of delimiter; the stream after its size; what
 * comes out after its size: each frame after its own, then 2^32 - 1 and how many bytes are pending,
 * or 2^32 - 1 where the stream is refused.  Numbers have 32 bits and this machine's byte order.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyreactor/framer.h"

#define STREAM_BYTES_MAX 4096
#define EXPECTED_BYTES_MAX (4 * STREAM_BYTES_MAX)

static char stream[STREAM_BYTES_MAX], expected[EXPECTED_BYTES_MAX], found[EXPECTED_BYTES_MAX];
static uint32_t stream_bytes, expected_bytes;
static uint64_t seed = 1;

static uint32_t next_random(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static _Noreturn void give_up(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static void get(void *to, size_t size)
{
    if (fread(to, 1, size, stdin) != size)
        give_up("the input ends within a case");
}

static uint32_t get_number(void)
{
    uint32_t number;
    get(&number, sizeof number);
    return number;
}

/* Reads a case; false at the end of the input. */
static int get_case(struct pr_framing *framing)
{
    uint8_t bytes[5];
    if (fread(bytes, 1, sizeof bytes, stdin) != sizeof bytes)
        return 0;
    *framing = (struct pr_framing){
        .kind = bytes[0],
        .keep_ends = bytes[1],
        .little_endian = bytes[2],
        .prefix_bytes = bytes[3],
        .delimiter_bytes = bytes[4],
    };
    framing->max_bytes = get_number();
    framing->http.line_bytes_max = get_number();
    framing->http.headers_max = get_number();
    framing->http.head_bytes_max = get_number();
    get(framing->delimiter, sizeof framing->delimiter);
    stream_bytes = get_number();
    if (stream_bytes > sizeof stream)
        give_up("a stream is too long");
    get(stream, stream_bytes);
    expected_bytes = get_number();
    if (expected_bytes > sizeof expected)
        give_up("the model's answer is too long");
    get(expected, expected_bytes);
    return 1;
}

static size_t put(size_t at, const void *bytes, size_t size)
{
    if (at + size > sizeof found)
        give_up("more came out than went in");
    memcpy(found + at, bytes, size);
    return at + size;
}

/* How large the next piece is: all of `left`, one byte, or some. */
static size_t piece(int way, size_t left)
{
    if (way == 0 || left == 0)
        return left;
    return way == 1 ? 1 : 1 + next_random() % left;
}

/* What a framer makes of the stream, in `found`; returns its size. */
static size_t run(const struct pr_framing *framing, int way)
{
    struct pr_framer framer;
    struct pr_frame frame;
    size_t at = 0;
    int result = 0;
    pr_framer_init(&framer, framing);
    for (size_t fed = 0; result == 0 && fed < stream_bytes;) {
        size_t size = piece(way, stream_bytes - fed);
        char *copy = malloc(size); /* of its own, so that a byte too many is seen */
        if (!copy)
            give_up("no memory");
        memcpy(copy, stream + fed, size);
        const char *rest = copy;
        fed += size;
        while ((result = pr_framer_feed(&framer, &rest, &size, &frame)) > 0) {
            uint32_t frame_size = (uint32_t)frame.size;
            at = put(at, &frame_size, sizeof frame_size);
            at = put(at, frame.data, frame.size);
        }
        free(copy);
    }
    uint32_t end[2] = {UINT32_MAX, result < 0 ? UINT32_MAX : (uint32_t)pr_framer_pending(&framer)};
    at = put(at, end, sizeof end);
    pr_framer_deinit(&framer);
    return at;
}

static void print_bytes(const char *name, const char *bytes, size_t size)
{
    printf("%s: ", name);
    for (size_t i = 0; i < size; i++)
        printf("%02x", (uint8_t)bytes[i]);
    printf("\n");
}

int main(void)
{
    static const char *const ways[] = {"whole", "byte by byte", "in pieces"};
    struct pr_framing framing;
    unsigned long cases = 0;
    while (get_case(&framing)) {
        if (pr_framing_check(&framing) < 0)
            give_up("a framing is out of range");
        for (int way = 0; way < 3; way++) {
            size_t size = run(&framing, way);
            if (size == expected_bytes && memcmp(found, expected, size) == 0)
                continue;
            printf("case %lu (kind %d, max_bytes %zu), fed %s, is not what the model says\n", cases,
                   framing.kind, framing.max_bytes, ways[way]);
            print_bytes("stream", stream, stream_bytes);
            print_bytes("model", expected, expected_bytes);
            print_bytes("framer", found, size);
            return 1;
        }
        cases++;
    }
    printf("%lu cases\n", cases);
    return 0;
}
