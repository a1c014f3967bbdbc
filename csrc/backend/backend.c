/*
 * Which backends exist, in order of preference.
 */
#include "pyreactor/backend.h"

#include <stddef.h>
#include <string.h>

static const struct pr_backend_ops *const backends[] = {&pr_epoll_ops, &pr_uring_ops};

const struct pr_backend_ops *pr_backend_find(const char *name)
{
    if (strcmp(name, "auto") == 0)
        return backends[0];
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    return NULL;
}
