/*
 * A datagram endpoint: messages in and out of one socket.  It takes several from the kernel in one
 * call, sends what one callback wrote in as few calls as possible, and tells its owner, through a
 * table of functions, what happened.
 *
 * Lifetimes: the endpoint is embedded in its owner, which must live until the endpoint is stopped
 * and the callback that stopped it has returned.  It never closes the descriptor: that is its
 * owner's.  All functions: loop thread only.
 */
#ifndef PYREACTOR_DATAGRAM_H
#define PYREACTOR_DATAGRAM_H

#include <stdbool.h>
#include <stddef.h>

#include "pyreactor/address.h"
#include "pyreactor/loop.h"

/* What one socket may bring a turn: the others must not starve. */
#define PR_DATAGRAMS_PER_TURN_MAX 32

/* Datagrams written in one callback wait for its end, up to so many and so much. */
#define PR_DATAGRAMS_HELD_MAX 64
#define PR_DATAGRAM_HELD_BYTES_MAX (64 * 1024)

#define PR_DATAGRAM_HIGH_WATER_BYTES (64 * 1024)

/* The largest of IP, rounded up: what a UDP socket is given to receive into.  A Unix datagram may
 * be larger; PR_RECEIVE_BUFFER_BYTES bounds it. */
#define PR_DATAGRAM_IP_BYTES_MAX (64 * 1024)

struct pr_datagram_endpoint;

/* What the owner hears.  Each returns 0, or a positive number to end the turn here. */
struct pr_datagram_handler {
    /*
     * One came; `data` and `source` (size 0: nameless) are lent until the return.  Some more may
     * follow even where reading was stopped or the turn ends: they had left the kernel already, and
     * the owner keeps them.  None follows once the endpoint is stopped.
     */
    int (*on_received)(struct pr_datagram_endpoint *endpoint, const char *data, size_t size,
                       const struct pr_address *source);
    /*
     * Receiving failed, or sending the first datagram of the queue, which is dropped.  `error` is a
     * negative errno; -EMSGSIZE from receiving: one came that was larger than the buffer, and is
     * lost.  The endpoint goes on.
     */
    int (*on_error)(struct pr_datagram_endpoint *endpoint, int error, bool sending);
    /* Sends a datagram of pr_datagram_queue_by_owner() now.  Also returns -EAGAIN: the kernel has
     * no room; try again later. */
    int (*send_by_owner)(struct pr_datagram_endpoint *endpoint, void *owner);
    /* More than the high water mark is queued / no more than the low water mark is left. */
    int (*on_high_water)(struct pr_datagram_endpoint *endpoint);
    int (*on_low_water)(struct pr_datagram_endpoint *endpoint);
    /* The last queued datagram has left; asked for with `wants_drained`. */
    int (*on_drained)(struct pr_datagram_endpoint *endpoint);
};

struct pr_datagram {
    const char *data; /* borrowed from `owner` */
    size_t size;
    void *owner;              /* held until released */
    bool by_owner;            /* the owner sends it itself */
    struct pr_address target; /* size 0: the connected peer */
};

struct pr_datagram_endpoint {
    struct pr_watch watch;
    struct pr_loop *loop; /* borrowed */
    const struct pr_datagram_handler *handler;
    struct pr_flush flush;

    /* What is to be sent: a circular array */
    struct pr_datagram *slots; /* owned; NULL until the first */
    size_t capacity;           /* a power of two */
    size_t head;
    size_t count;
    size_t bytes;          /* queued, with overhead_bytes for each datagram */
    size_t overhead_bytes; /* how much a datagram counts beyond its data */
    void (*release)(void *owner);

    size_t high_water_bytes;
    size_t low_water_bytes;
    size_t datagram_bytes_max; /* the room for one that comes; divides PR_RECEIVE_BUFFER_BYTES */
    size_t segment_bytes_max;  /* UDP: larger ones are not sent as parts of one large packet */
    bool reading;
    bool sending;         /* in a call of the flush: what is written meanwhile waits for a turn */
    bool over_high_water; /* on_high_water was called, on_low_water not yet */
    bool wants_drained;
};

/* Prepares an endpoint; `release` gives back the owners of queued datagrams. */
void pr_datagram_init(struct pr_datagram_endpoint *endpoint, struct pr_loop *loop,
                      const struct pr_datagram_handler *handler, void *owner,
                      void (*release)(void *owner));

/* Stops it and releases what is still queued. */
void pr_datagram_deinit(struct pr_datagram_endpoint *endpoint);

/*
 * Begins on a non-blocking socket, not reading yet.  Set `datagram_bytes_max` and, for a socket
 * that is not UDP, `segment_bytes_max` (to 0) before it.  Returns 0 or a negative errno.
 */
int pr_datagram_start(struct pr_datagram_endpoint *endpoint, int fd);

/* Ends all watching and drops what is queued; the descriptor may be closed after it. */
void pr_datagram_stop(struct pr_datagram_endpoint *endpoint);

/* Starts or stops reading.  Returns 0 or a negative errno. */
int pr_datagram_set_reading(struct pr_datagram_endpoint *endpoint, bool reading);

/*
 * Queues a datagram (of 0 bytes, too) for `target`, or NULL for the connected peer, and takes over
 * `owner` where it succeeds; pr_datagram_send_soon() sends it.  Returns 0 or -ENOMEM.
 */
int pr_datagram_queue(struct pr_datagram_endpoint *endpoint, const char *data, size_t size,
                      void *owner, const struct pr_address *target);

/* The same for a datagram of `size` bytes whose address only the owner can tell: when its turn has
 * come, send_by_owner() is called. */
int pr_datagram_queue_by_owner(struct pr_datagram_endpoint *endpoint, size_t size, void *owner);

/*
 * Lets what is queued leave: when the running callback returns, or at once outside of one or where
 * much is queued.  Returns 0, what a handler returned, or a negative errno: stop the endpoint.
 */
int pr_datagram_send_soon(struct pr_datagram_endpoint *endpoint);

/* Sends as much as the kernel takes now, unless it has refused and no room was reported since.
 * Returns as pr_datagram_send_soon(). */
int pr_datagram_flush(struct pr_datagram_endpoint *endpoint);

/* Sets the water marks, in bytes, and holds the queue against them.  Returns as
 * pr_datagram_send_soon(). */
int pr_datagram_set_water(struct pr_datagram_endpoint *endpoint, size_t high_bytes,
                          size_t low_bytes);

#endif
