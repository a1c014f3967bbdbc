/*
 * Which backends exist, and whether each keeps the contract of struct pr_backend_ops.
 */
#include "check.h"
#include "pyreactor/backend.h"

static void auto_names_the_best_backend(void)
{
    CHECK_SAME(pr_backend_find("auto"), &pr_epoll_ops);
}

static void a_backend_is_found_by_its_own_name(void)
{
    const struct pr_backend_ops *ops = pr_backend_find("epoll");
    REQUIRE(ops);
    CHECK_SAME(ops, &pr_epoll_ops);
    CHECK_TEXT(ops->name, "epoll");
}

static void a_name_that_no_backend_has_finds_nothing(void)
{
    static const char *const names[] = {"", "EPOLL", "epoll ", "epol", "select", "automatic"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        CHECK_SAME(pr_backend_find(names[i]), NULL);
}

static void a_backend_has_every_function(void)
{
    const struct pr_backend_ops *ops = pr_backend_find("auto");
    REQUIRE(ops);
    CHECK(ops->name && ops->update && ops->wait && ops->init && ops->deinit);
}

static void a_backend_can_be_given_back_twice(void)
{
    struct pr_backend backend = {.ops = pr_backend_find("auto")};
    REQUIRE_EQUAL(backend.ops->init(&backend), 0);
    CHECK_AT_LEAST(backend.fd, 0);
    backend.ops->deinit(&backend);
    CHECK_EQUAL(backend.fd, -1);
    backend.ops->deinit(&backend);
    CHECK_EQUAL(backend.fd, -1);
}

int main(void)
{
    RUN(auto_names_the_best_backend);
    RUN(a_backend_is_found_by_its_own_name);
    RUN(a_name_that_no_backend_has_finds_nothing);
    RUN(a_backend_has_every_function);
    RUN(a_backend_can_be_given_back_twice);
    return check_status();
}
