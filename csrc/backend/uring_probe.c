/*
 * Which operations of io_uring the backend may use.  It is asked once for each ring; what is
 * missing goes the way it goes with epoll, or, if it is a file's, by a thread.
 */
#include "pyreactor/uring_probe.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Without these there are no watches, and no end to them. */
#define NEEDED (UINT64_C(1) << PR_URING_POLL_ADD | UINT64_C(1) << PR_URING_ASYNC_CANCEL)

/* Those that we use, by their numbers. */
static const char *const names_of_operations[] = {
    [3] = "fsync",         [6] = "poll_add",  [9] = "sendmsg", [13] = "accept",   [16] = "connect",
    [14] = "async_cancel", [18] = "openat",   [19] = "close",  [21] = "statx",    [22] = "read",
    [23] = "write",        [26] = "send",     [27] = "recv",   [35] = "renameat", [36] = "unlinkat",
    [37] = "mkdirat",      [55] = "ftruncate"};

#define OPERATIONS (sizeof names_of_operations / sizeof *names_of_operations)

static bool find_operation(const char *name, size_t length, uint64_t *bit)
{
    for (size_t number = 0; number < OPERATIONS; number++) {
        const char *known = names_of_operations[number];
        if (known && strlen(known) == length && memcmp(known, name, length) == 0) {
            *bit = UINT64_C(1) << number;
            return true;
        }
    }
    return false;
}

int pr_uring_parse_operations(const char *names, uint64_t *operations)
{
    *operations = 0;
    while (*names) {
        size_t length = strcspn(names, ",");
        uint64_t bit;
        if (!find_operation(names, length, &bit))
            return -EINVAL;
        *operations |= bit;
        names += length;
        if (*names == ',')
            names++;
    }
    return 0;
}

int pr_uring_probe(struct pr_uring_map *map, uint64_t *operations)
{
    int error = pr_uring_map_probe(map, operations);
    if (error < 0)
        return error;
    const char *names = getenv(PR_URING_WITHOUT_VARIABLE);
    if (names) {
        uint64_t without;
        error = pr_uring_parse_operations(names, &without);
        if (error < 0)
            return error;
        *operations &= ~without;
    }
    if ((*operations & NEEDED) != NEEDED)
        return -EINVAL;
    /* A ring that is disabled refuses with EBADFD, unless something refuses before it. */
    error = pr_uring_map_enter(map, 0);
    return error == -EBADFD ? 0 : error;
}
