/*
 * A request: a unit of work on its way from the thread that learned of it to the one that handles
 * it.  It is small and copied; what it refers to moves with it, so that a request has one owner:
 * the thread that made it, then the queue, then the thread that took it.
 */
#ifndef PYREACTOR_REQUEST_H
#define PYREACTOR_REQUEST_H

#include <stddef.h>
#include <stdint.h>

struct pr_request {
    /*
     * Gives back what the request owns, where nobody took it before the queue ended; NULL where it
     * owns nothing.  It also tells requests of one kind from those of another.
     */
    void (*release)(struct pr_request *request);
    void *owner;     /* what it is about: a connection, an object; its maker says what */
    int32_t fd;      /* borrowed descriptor, or -1 */
    uint32_t events; /* what is ready there: PR_READABLE | PR_WRITABLE, or the maker's own */
};

/* Releases a request that nobody will handle.  Any thread that its maker allows. */
static inline void pr_request_release(struct pr_request *request)
{
    if (request->release)
        request->release(request);
}

#endif
