/*
 * Accepting connections.  All that wait are taken, up to a bound a turn, so that a burst costs one
 * wait and the connections that are there already do not starve.
 */
#include "pyreactor/listener.h"

#include <errno.h>

bool pr_listener_is_exhaustion(int error)
{
    switch (-error) {
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case ENOSPC: /* of the watches a user may have */
        return true;
    default:
        return false;
    }
}

/* Errors of the one connection that was about to be accepted: the next may be fine. */
static bool is_of_one_connection(int error)
{
    switch (-error) {
    case ECONNABORTED:
    case EINTR:
    case EPERM: /* a firewall */
    case ENETDOWN:
    case EPROTO:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
        return true; /* accept(2) passes on the new socket's pending network errors */
    default:
        return false;
    }
}

static int on_ready(struct pr_watch *watch, uint32_t events)
{
    (void)events;
    struct pr_listener *listener =
        (struct pr_listener *)((char *)watch - offsetof(struct pr_listener, watch));
    int stop = 0;
    for (int i = 0; i < listener->accepts_per_turn_max && !stop; i++) {
        struct sockaddr_storage peer;
        socklen_t peer_size = sizeof peer;
        int fd =
            accept4(watch->fd, (struct sockaddr *)&peer, &peer_size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            pr_counter_add(&listener->loop->stats.accepted, 1);
            stop =
                listener->handler->on_accepted(listener, fd, (struct sockaddr *)&peer, peer_size);
        } else {
            int error = -errno;
            if (error == -EAGAIN)
                break;
            if (is_of_one_connection(error))
                continue;
            if (pr_listener_is_exhaustion(error))
                (void)pr_watch_want(&listener->loop->watches, watch, 0);
            return listener->handler->on_error(listener, error);
        }
        if (!(watch->wanted & PR_READABLE)) /* the handler stopped or paused it */
            break;
    }
    return stop;
}

int pr_listener_start(struct pr_listener *listener, struct pr_loop *loop, int fd,
                      int accepts_per_turn_max, const struct pr_listener_handler *handler,
                      void *owner)
{
    *listener = (struct pr_listener){
        .loop = loop, .handler = handler, .accepts_per_turn_max = accepts_per_turn_max};
    pr_watch_init(&listener->watch, on_ready, owner);
    return pr_watch_start(&loop->watches, &listener->watch, fd, PR_READABLE);
}

void pr_listener_stop(struct pr_listener *listener)
{
    if (listener->loop)
        pr_watch_stop(&listener->loop->watches, &listener->watch);
}

int pr_listener_resume(struct pr_listener *listener)
{
    if (!pr_watch_is_active(&listener->watch))
        return 0;
    return pr_watch_want(&listener->loop->watches, &listener->watch, PR_READABLE);
}
