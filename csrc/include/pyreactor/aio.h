/*
 * An operation: one asynchronous read, write, accept, connect or sendfile, on its way from the
 * thread that asked for it to the main thread of a proactor, through the kernel, and to the worker
 * that handles its result.  It is embedded in its owner, so that nothing is allocated for it.
 *
 * It belongs to the proactor from pr_proactor_submit() until a worker takes it out of its queue, or
 * until a silent one is done; where its bytes are does so, too.
 */
#ifndef PYREACTOR_AIO_H
#define PYREACTOR_AIO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pyreactor/address.h"
#include "pyreactor/buffer_pool.h"
#include "pyreactor/callback.h"
#include "pyreactor/timer_heap.h"

#define PR_NO_OFFSET (-1)
#define PR_ANY_BUFFER (PR_BUFFER_NONE - 1) /* one that is chosen when it is needed */

struct pr_proactor;
struct pr_strand;

enum pr_aio_kind {
    PR_AIO_READ,
    PR_AIO_WRITE, /* all of it */
    PR_AIO_ACCEPT,
    PR_AIO_CONNECT,
    PR_AIO_SENDFILE,
    PR_AIO_TIMER, /* done when its time has come */
};

/* How the application is told that an operation is done. */
enum pr_notify {
    PR_NOTIFY_CQE,     /* the main thread sees the completion itself */
    PR_NOTIFY_EVENTFD, /* an eventfd is written first */
    PR_NOTIFY_SIGNAL,  /* a real-time signal is sent to the main thread first */
};

/* How far an attempt to cancel it has come. */
enum pr_aio_cancel {
    PR_CANCEL_NONE,
    PR_CANCEL_POSTED, /* on its way to the main thread */
    PR_CANCEL_SEEN,   /* it has got there */
    PR_CANCEL_LATE,   /* the operation is done: there is nothing to cancel */
};

enum pr_aio_silence {
    PR_LOUD,   /* a worker is told of its end */
    PR_SILENT, /* no worker is, if it ends well */
    PR_ENDED,  /* it has done so: it is its owner's again */
};

struct pr_aio {
    struct pr_callback submission; /* the way to the main thread */
    struct pr_callback cancellation;
    struct pr_aio *next;          /* in the one list or queue it waits in */
    struct pr_aio *newer, *older; /* among those in flight; the main thread's */
    struct pr_strand *strand;     /* borrowed; NULL: none */
    void *owner;                  /* what embeds it */

    /* What is wanted: */
    enum pr_aio_kind kind;
    enum pr_notify notify;
    bool is_socket;
    int fd;                    /* borrowed: it stays open until the operation is done */
    int source_fd;             /* borrowed; of a sendfile */
    int64_t offset;            /* in a file, or PR_NO_OFFSET */
    char *data;                /* borrowed; of a pool's buffer once that is known */
    size_t size;               /* bytes wanted */
    uint32_t buffer;           /* index in the pool, PR_BUFFER_NONE or PR_ANY_BUFFER */
    struct pr_address address; /* to connect to; of the peer that was accepted */
    struct pr_timer timer;     /* its deadline */

    /* What has become of it: */
    size_t done;     /* bytes */
    int32_t result;  /* 0, an accepted descriptor, or a negative errno */
    unsigned worker; /* which is to handle it */

    /* The proactor's: */
    struct pr_proactor *proactor;
    _Atomic(int) cancel;           /* enum pr_aio_cancel */
    _Atomic(int) silence;          /* enum pr_aio_silence */
    bool finished;                 /* done, and waits for its cancellation to arrive */
    bool announced;                /* the application was told in the way it asked for */
    bool postponed;                /* waits for a buffer */
    bool wants_pool;               /* ... and not for one of the kernel's */
    bool waits;                    /* for readiness, before the main thread has heard of it */
    bool unfinished;               /* there is more to be done than the kernel did */
    bool poll_first;               /* its descriptor is to be waited for before it is tried */
    uint8_t kernel_parts;          /* what the kernel has of it: itself, its announcement */
    size_t chunk_begin, chunk_end; /* of a sendfile: what is in its buffer */
};

/* Sets everything to "nothing": the owner fills in what it wants.  Any thread. */
static inline void pr_aio_init(struct pr_aio *aio, void *owner)
{
    *aio = (struct pr_aio){.owner = owner,
                           .fd = -1,
                           .source_fd = -1,
                           .offset = PR_NO_OFFSET,
                           .buffer = PR_BUFFER_NONE};
    aio->submission.owner = aio;
    aio->cancellation.owner = aio;
    aio->timer.callback.owner = aio;
    aio->timer.heap_index = PR_TIMER_IDLE;
}

#endif
