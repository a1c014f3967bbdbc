# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""A server's listening socket: accepted connections become transports.

All methods: the loop's thread only.
"""

import socket
from asyncio import constants, trsock

from pyreactor._context cimport PyContext_Copy, PyContext_CopyCurrent
from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    pr_listener,
    pr_listener_handler,
    pr_listener_is_exhaustion,
    pr_listener_resume,
    pr_listener_start,
    pr_listener_stop,
    sockaddr,
    socklen_t,
)
from pyreactor._transport cimport StreamTransport


cdef double RETRY_SECONDS = constants.ACCEPT_RETRY_DELAY
cdef int ACCEPTS_PER_TURN_MAX = 100  # asyncio's default backlog; the others must not starve


cdef int on_accepted(
    pr_listener *listener, int fd, const sockaddr *peer, socklen_t peer_size
) noexcept:
    cdef Listener self = <Listener>listener.watch.owner
    try:
        self.accept(fd)
    except (SystemExit, KeyboardInterrupt) as exc:
        return self.loop.escape(exc)
    except BaseException as exc:
        return self.loop.report({
            'message': 'Error on transport creation for incoming connection',
            'exception': exc,
            'socket': trsock.TransportSocket(self.sock),
        })
    return 0


cdef int on_error(pr_listener *listener, int error) noexcept:
    cdef Listener self = <Listener>listener.watch.owner
    try:
        self.report_error(error)
    except BaseException as exc:
        return self.loop.escape(exc)
    return 0


cdef pr_listener_handler handler
handler.on_accepted = on_accepted
handler.on_error = on_error


cdef class Listener:
    """Accepts on one listening socket for a server."""

    def __init__(
        self, LoopCore loop not None, sock, protocol_factory, server, ssl_arguments, backlog,
        context=None
    ):
        """Start accepting on a listening non-blocking socket, which stays the server's.

        `ssl_arguments` is None, or a dict of the TLS arguments that the loop's
        `_accept_connection2` takes.  `context` is the one of which each connection gets a copy, by
        default the current one.
        """
        cdef int error
        self.loop = loop
        self.sock = sock
        self.family, self.type, self.proto = sock.family, sock.type, sock.proto
        self.protocol_factory = protocol_factory
        self.server = server
        self.ssl_arguments = ssl_arguments
        self.context = PyContext_CopyCurrent() if context is None else context
        error = pr_listener_start(
            &self.listener, &loop.core, sock.fileno(),
            max(1, min(backlog, ACCEPTS_PER_TURN_MAX)), &handler, <void *>self)
        if error < 0:
            raise_errno(error)
        loop.listeners[sock.fileno()] = self

    def stop(self):
        """Stop accepting.  The socket may be closed after it."""
        pr_listener_stop(&self.listener)

    def _resume(self):
        cdef int error = pr_listener_resume(&self.listener)
        if error < 0:
            self.report_error(error)

    cdef int accept(self, int fd) except -1:
        sock = socket.socket(self.family, self.type, self.proto, fileno=fd)
        self.exhausted = False
        context = PyContext_Copy(self.context)
        if self.ssl_arguments is not None:
            self.loop.create_task(
                self.loop._accept_connection2(
                    self.protocol_factory, sock, {},
                    server=self.server, **self.ssl_arguments),
                context=context)
            return 0
        transport = None
        try:
            protocol = context.run(self.protocol_factory)
            transport = StreamTransport.__new__(StreamTransport)
            (<StreamTransport>transport).open(self.loop, sock, protocol, context, None, self.server)
        except BaseException:
            sock.close()
            raise
        (<StreamTransport>transport).connect()
        return 0

    cdef report_error(self, int error):
        exception = errno_exception(error)
        context = {
            'message': 'socket.accept() failed: this listener has stopped',
            'exception': exception,
            'socket': trsock.TransportSocket(self.sock),
        }
        if pr_listener_is_exhaustion(error):
            # The core has paused; what waits stays in the kernel's backlog until then.
            self.loop.call_later(RETRY_SECONDS, self._resume)
            if self.exhausted:
                return
            self.exhausted = True
            context['message'] = (
                f'socket.accept() out of system resource; trying again every {RETRY_SECONDS:g} s')
        else:
            self.stop()
        self.loop.call_exception_handler(context)
