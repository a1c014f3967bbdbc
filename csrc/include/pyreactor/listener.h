/*
 * A listener: accepts connections on one listening socket and hands each over.  All functions: loop
 * thread only.  The listening descriptor stays its owner's.
 */
#ifndef PYREACTOR_LISTENER_H
#define PYREACTOR_LISTENER_H

#include <stdbool.h>
#include <sys/socket.h>

#include "pyreactor/loop.h"

struct pr_listener;

struct pr_listener_handler {
    /* A connection: `fd` (non-blocking, close-on-exec) is the owner's from here on.  Returns 0, or
     * non-zero to end the turn here. */
    int (*on_accepted)(struct pr_listener *listener, int fd, const struct sockaddr *peer,
                       socklen_t peer_size);
    /*
     * Accepting failed with `error` (a negative errno).  The listener is paused where trying again
     * at once would fail again (no descriptors or memory left): see pr_listener_resume().
     */
    int (*on_error)(struct pr_listener *listener, int error);
};

struct pr_listener {
    struct pr_watch watch;
    struct pr_loop *loop; /* borrowed */
    const struct pr_listener_handler *handler;
    int accepts_per_turn_max;
};

/* Starts accepting on a listening non-blocking socket.  Returns 0 or a negative errno. */
int pr_listener_start(struct pr_listener *listener, struct pr_loop *loop, int fd,
                      int accepts_per_turn_max, const struct pr_listener_handler *handler,
                      void *owner);

/* Stops; the descriptor may be closed after it. */
void pr_listener_stop(struct pr_listener *listener);

/* Goes on after a pause.  Returns 0 or a negative errno. */
int pr_listener_resume(struct pr_listener *listener);

/* True for errors of accept that mean "no resources": it pauses on these. */
bool pr_listener_is_exhaustion(int error);

#endif
