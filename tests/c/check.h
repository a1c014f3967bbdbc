/*
 * Assertions for the C tests.  A test is a function whose name is a sentence; RUN() calls it, and a
 * check that fails prints that sentence and both operands.  CHECK... goes on after a failure,
 * REQUIRE... ends the program: what follows would make no sense.
 *
 * main() ends with `return check_status();`: 0, 1 where a check failed, or 77 where all was
 * skipped.
 */
#ifndef PYREACTOR_TESTS_CHECK_H
#define PYREACTOR_TESTS_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK_SKIPPED 77       /* the exit status that says "this machine cannot run it" */
#define CHECK_SHOWN_MAX 200    /* bytes of one operand */
#define CHECK_FAILURES_MAX 100 /* in one program */

struct check_results {
    const char *test; /* the one that runs now */
    const char *failed_test;
    int failures;
    int tests;
    int skips;
};

static struct check_results check_results;

static inline void check_print_sentence(FILE *out, const char *name)
{
    for (; *name; name++)
        fputc(*name == '_' ? ' ' : *name, out);
}

/* Starts the report of a failure: the test's sentence, once, and where it failed. */
static inline void check_begin_failure(const char *file, int line)
{
    if (++check_results.failures > CHECK_FAILURES_MAX) {
        fputs("too many failures: the rest is left out\n", stderr);
        exit(1);
    }
    if (check_results.failed_test != check_results.test) {
        check_results.failed_test = check_results.test;
        fputs("FAILED: ", stderr);
        check_print_sentence(stderr, check_results.test ? check_results.test : "main");
        fputc('\n', stderr);
    }
    fprintf(stderr, "  %s:%d: ", file, line);
}

static inline bool check_true(bool holds, const char *text, const char *file, int line)
{
    if (!holds) {
        check_begin_failure(file, line);
        fprintf(stderr, "%s does not hold\n", text);
    }
    return holds;
}

/* One comparison of whole numbers; `relation` is "==", ">=" or "<=". */
static inline bool check_numbers(long long left, const char *relation, long long right,
                                 const char *left_text, const char *right_text, const char *file,
                                 int line)
{
    bool holds = (left == right) || (left > right ? relation[0] == '>' : relation[0] == '<');
    if (!holds) {
        check_begin_failure(file, line);
        fprintf(stderr, "%s %s %s, but these are %lld and %lld\n", left_text, relation, right_text,
                left, right);
    }
    return holds;
}

static inline bool check_pointers(const void *left, const void *right, const char *left_text,
                                  const char *right_text, const char *file, int line)
{
    if (left != right) {
        check_begin_failure(file, line);
        fprintf(stderr, "%s == %s, but these are %p and %p\n", left_text, right_text, left, right);
    }
    return left == right;
}

static inline void check_print_bytes(const char *data, size_t size)
{
    fputc('"', stderr);
    for (size_t i = 0; i < size && i < CHECK_SHOWN_MAX; i++) {
        unsigned char byte = (unsigned char)data[i];
        if (byte >= ' ' && byte < 127)
            fputc(byte, stderr);
        else
            fprintf(stderr, "\\x%02x", byte);
    }
    fprintf(stderr, size > CHECK_SHOWN_MAX ? "\"... (%zu bytes)" : "\"", size);
}

static inline bool check_bytes(const char *left, size_t left_size, const char *right,
                               size_t right_size, const char *text, const char *file, int line)
{
    if (left_size == right_size && (left_size == 0 || memcmp(left, right, left_size) == 0))
        return true;
    check_begin_failure(file, line);
    fprintf(stderr, "%s, but these are ", text);
    check_print_bytes(left, left_size);
    fputs(" and ", stderr);
    check_print_bytes(right, right_size);
    fputc('\n', stderr);
    return false;
}

static inline void check_run(void (*test)(void), const char *name)
{
    check_results.test = name;
    check_results.tests++;
    test();
    check_results.test = NULL;
}

static inline int check_status(void)
{
    if (check_results.failures)
        return 1;
    return check_results.tests && check_results.tests == check_results.skips ? CHECK_SKIPPED : 0;
}

/* A number from a seed, the same in every run. */
static inline uint32_t check_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

#define CHECK(condition) check_true((condition), #condition, __FILE__, __LINE__)

#define CHECK_NUMBERS(left, relation, right)                                                       \
    check_numbers((long long)(left), relation, (long long)(right), #left, #right, __FILE__,        \
                  __LINE__)
#define CHECK_EQUAL(left, right) CHECK_NUMBERS(left, "==", right)
#define CHECK_AT_LEAST(left, right) CHECK_NUMBERS(left, ">=", right)
#define CHECK_AT_MOST(left, right) CHECK_NUMBERS(left, "<=", right)

#define CHECK_SAME(left, right) check_pointers((left), (right), #left, #right, __FILE__, __LINE__)
#define CHECK_BYTES(left, left_size, right, right_size)                                            \
    check_bytes((left), (left_size), (right), (right_size), #left " == " #right, __FILE__, __LINE__)
#define CHECK_TEXT(left, right)                                                                    \
    check_bytes((left), strlen(left), (right), strlen(right), #left " == " #right, __FILE__,       \
                __LINE__)

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!CHECK(condition))                                                                     \
            exit(1);                                                                               \
    } while (0)
#define REQUIRE_EQUAL(left, right)                                                                 \
    do {                                                                                           \
        if (!CHECK_EQUAL(left, right))                                                             \
            exit(1);                                                                               \
    } while (0)

/* Leaves the running test, which this machine cannot run. */
#define SKIP(reason)                                                                               \
    do {                                                                                           \
        check_results.skips++;                                                                     \
        fputs("skipped: ", stderr);                                                                \
        check_print_sentence(stderr, check_results.test);                                          \
        fprintf(stderr, ": %s\n", (reason));                                                       \
        return;                                                                                    \
    } while (0)

#define RUN(test) check_run(test, #test)

#endif
