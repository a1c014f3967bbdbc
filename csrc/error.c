/*
 * Errno values in words, with what a user can do about the unusual ones.
 */
#include "pyreactor/error.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

const char *pr_strerror(int error)
{
    return strerror(error < 0 ? -error : error);
}

const char *pr_error_hint(int error)
{
    switch (error < 0 ? -error : error) {
    case EMFILE:
        return "this process has no file descriptor left: raise `ulimit -n` or close some";
    case ENFILE:
        return "the system has no file descriptor left: raise the sysctl fs.file-max";
    case ENOSPC:
        return "too many descriptors are watched: raise the sysctl fs.epoll.max_user_watches";
    case EPERM:
        return "the kernel cannot wait for this kind of descriptor (a regular file or a "
               "directory is always ready): read it in an executor";
    case ENOMEM:
        return "the kernel or the process is out of memory";
    default:
        return NULL;
    }
}
