/*
 * Errors in words.
 */
#include <errno.h>

#include "check.h"
#include "pyreactor/error.h"

static void an_error_has_the_systems_text_with_either_sign(void)
{
    char expected[128];
    snprintf(expected, sizeof expected, "%s", strerror(ECONNRESET));
    CHECK_TEXT(pr_strerror(-ECONNRESET), expected);
    CHECK_TEXT(pr_strerror(ECONNRESET), expected);
    CHECK(strcmp(pr_strerror(-EPIPE), expected) != 0);
}

static void an_unknown_error_has_a_text_too(void)
{
    const char *text = pr_strerror(-99999);
    REQUIRE(text);
    CHECK_AT_LEAST(strlen(text), 1);
}

static void an_error_that_the_user_can_mend_has_a_hint(void)
{
    static const struct {
        int error;
        const char *word;
    } cases[] = {
        {EMFILE, "ulimit"},      {ENFILE, "fs.file-max"}, {ENOSPC, "max_user_watches"},
        {EPERM, "regular file"}, {ENOMEM, "memory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *hint = pr_error_hint(-cases[i].error);
        REQUIRE(hint);
        CHECK(strstr(hint, cases[i].word));
        CHECK_SAME(pr_error_hint(cases[i].error), hint);
    }
}

static void an_ordinary_error_has_no_hint(void)
{
    static const int errors[] = {0, EAGAIN, ECONNRESET, EPIPE, EBADF, 99999};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        CHECK_SAME(pr_error_hint(-errors[i]), NULL);
}

static void asking_changes_no_state(void)
{
    errno = ENOENT;
    (void)pr_error_hint(-EMFILE);
    (void)pr_strerror(-EMFILE);
    CHECK_EQUAL(errno, ENOENT);
}

int main(void)
{
    RUN(an_error_has_the_systems_text_with_either_sign);
    RUN(an_unknown_error_has_a_text_too);
    RUN(an_error_that_the_user_can_mend_has_a_hint);
    RUN(an_ordinary_error_has_no_hint);
    RUN(asking_changes_no_state);
    return check_status();
}
