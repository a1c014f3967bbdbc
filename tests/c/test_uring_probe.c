/*
 * What of io_uring is used: names to operations, and a backend that does without some of them.
 */
#include "backend_under_test.h"
#include "pyreactor/uring_probe.h"

static void names_become_operations(void)
{
    uint64_t operations = 1;
    CHECK_EQUAL(pr_uring_parse_operations("", &operations), 0);
    CHECK_EQUAL(operations, 0);
    CHECK_EQUAL(pr_uring_parse_operations("recv", &operations), 0);
    CHECK_EQUAL(operations, UINT64_C(1) << PR_URING_RECV);
    CHECK_EQUAL(pr_uring_parse_operations("poll_add,send,recv", &operations), 0);
    CHECK(pr_uring_has(operations, PR_URING_POLL_ADD));
    CHECK(pr_uring_has(operations, PR_URING_SEND));
    CHECK(pr_uring_has(operations, PR_URING_RECV));
    CHECK(!pr_uring_has(operations, PR_URING_SENDMSG));
}

static void a_name_that_is_no_operations_is_refused(void)
{
    static const char *const names[] = {"rec",        "recvmsg_", "RECV", " recv",
                                        "recv,,send", ",",        "27"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        uint64_t operations;
        CHECK_EQUAL(pr_uring_parse_operations(names[i], &operations), -EINVAL);
    }
}

/* What the backend's init says where it is told to do without these. */
static int init_without(const char *names)
{
    setenv(PR_URING_WITHOUT_VARIABLE, names, 1);
    backend = (struct pr_backend){.ops = &pr_uring_ops};
    int error = backend.ops->init(&backend);
    unsetenv(PR_URING_WITHOUT_VARIABLE);
    return error;
}

static void what_nothing_replaces_is_missed_at_once(void)
{
    CHECK_EQUAL(init_without("poll_add"), -EINVAL);
    CHECK_EQUAL(init_without("async_cancel"), -EINVAL);
    CHECK_EQUAL(init_without("no such"), -EINVAL);
}

static void a_backend_that_cannot_receive_says_so(void)
{
    REQUIRE_EQUAL(init_without("recv"), 0);
    CHECK(!backend.receives);
    close_backend();
    REQUIRE_EQUAL(init_without(""), 0);
    CHECK(backend.receives);
    close_backend();
}

static int on_sent(struct pr_send *send, int32_t result)
{
    CHECK_EQUAL(result, 2);
    send->fd = -1;
    return 0;
}

static int send_on(int fd, size_t vectors)
{
    static struct iovec halves[2] = {{.iov_base = "a", .iov_len = 1},
                                     {.iov_base = "b", .iov_len = 1}};
    static struct iovec whole = {.iov_base = "ab", .iov_len = 2};
    struct pr_send send = {.fd = fd, .on_sent = on_sent};
    send.message =
        (struct msghdr){.msg_iov = vectors == 1 ? &whole : halves, .msg_iovlen = vectors};
    int error = backend.ops->completion->send(&backend, &send);
    for (int i = 0; i < 10 && error == 0 && send.fd >= 0; i++) {
        int count = wait_for(PR_NS_PER_SECOND);
        for (int event = 0; event < count; event++)
            events[event].send->on_sent(events[event].send, events[event].result);
    }
    CHECK(error || send.fd == -1);
    return error;
}

static void a_send_that_there_is_no_operation_for_is_left_to_the_caller(void)
{
    int pair[2];
    open_pair(pair);
    REQUIRE_EQUAL(init_without("send"), 0);
    CHECK_EQUAL(send_on(pair[0], 1), -EOPNOTSUPP);
    CHECK_EQUAL(send_on(pair[0], 2), 0);
    close_backend();
    REQUIRE_EQUAL(init_without("sendmsg"), 0);
    CHECK_EQUAL(send_on(pair[0], 1), 0);
    CHECK_EQUAL(send_on(pair[0], 2), -EOPNOTSUPP);
    close_backend();
    close_pair(pair);
}

static void a_file_operation_that_is_missing_is_not_supported(void)
{
    static const struct {
        const char *name;
        enum pr_op_kind kind;
    } kinds[] = {{"read", PR_OP_READ},         {"write", PR_OP_WRITE},     {"fsync", PR_OP_FSYNC},
                 {"statx", PR_OP_STATX},       {"openat", PR_OP_OPEN},     {"close", PR_OP_CLOSE},
                 {"renameat", PR_OP_RENAME},   {"unlinkat", PR_OP_UNLINK}, {"mkdirat", PR_OP_MKDIR},
                 {"ftruncate", PR_OP_TRUNCATE}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        REQUIRE_EQUAL(init_without(kinds[i].name), 0);
        CHECK(!backend.ops->completion->supports(&backend, kinds[i].kind));
        CHECK(backend.ops->completion->supports(
            &backend, kinds[i].kind == PR_OP_READ ? PR_OP_WRITE : PR_OP_READ));
        close_backend();
    }
}

int main(void)
{
    RUN(names_become_operations);
    RUN(a_name_that_is_no_operations_is_refused);
    if (init_without("") < 0) {
        puts("no io_uring here");
        return check_status() ? check_status() : CHECK_SKIPPED;
    }
    close_backend();
    RUN(what_nothing_replaces_is_missed_at_once);
    RUN(a_backend_that_cannot_receive_says_so);
    RUN(a_send_that_there_is_no_operation_for_is_left_to_the_caller);
    RUN(a_file_operation_that_is_missing_is_not_supported);
    return check_status();
}
