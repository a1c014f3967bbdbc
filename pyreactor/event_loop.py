"""The event loop that programs see: asyncio's methods on the C core.

`Loop` is made of two parts.  `LoopCore` (compiled) has what runs often: callbacks, timers,
descriptor watches, the turns.  asyncio's own `SelectorEventLoop` has what runs seldom and differs
from one Python version to the next: name resolution, connecting, executors, asynchronous
generators, the exception handler.  Whatever it asks of a selector is answered by the core, and
connections get the core's transports.
"""

import functools
import os
import selectors
import ssl
import sys
import threading
import weakref
from asyncio import events, selector_events, streams, tasks, unix_events
from contextlib import contextmanager

from pyreactor._datagram import DatagramTransport
from pyreactor._listener import Listener
from pyreactor._loop import LoopCore
from pyreactor._pipe import ReadPipeTransport, WritePipeTransport
from pyreactor._transport import StreamTransport
from pyreactor.metrics import OPEN_TRANSPORTS, LoopMetrics
from pyreactor.process import SubprocessMethods
from pyreactor.sendfile import SendfileMethods
from pyreactor.server import Server
from pyreactor.signals import SignalHandlers
from pyreactor.sock import SockMethods

_loops = weakref.WeakSet()  # which a fork must disown in the child


def _disown_after_fork():
    for loop in list(_loops):
        loop._disown()


@functools.cache  # once is enough: a hook cannot be taken back
def _register_fork_hook():
    os.register_at_fork(after_in_child=_disown_after_fork)


# Of families whose addresses only the socket module can read, such as netlink's.
_SocketDatagrams = selector_events._SelectorDatagramTransport


class WatchedDescriptors:
    """The little that asyncio's classes ask of a selector: what is watched for what."""

    def __init__(self, loop):
        self._loop = weakref.proxy(loop)

    def get_key(self, fd):
        """Return what `fd` is watched for; KeyError where it is not."""
        readable, writable = self._loop._watched_events(fd)
        if not readable and not writable:
            raise KeyError(fd)
        mask = selectors.EVENT_READ * readable | selectors.EVENT_WRITE * writable
        return selectors.SelectorKey(fd, fd, mask, None)

    def close(self):
        """Do nothing: the core closes itself."""


class Loop(
    SockMethods, SendfileMethods, SubprocessMethods, LoopCore, unix_events.SelectorEventLoop
):
    """An asyncio event loop on the C core.

    `backend` is 'auto' (the default), 'epoll' or 'io_uring'; the environment variable
    PYREACTOR_BACKEND is asked where it is not given.  Raises ValueError for any other, and OSError
    where the kernel gives no descriptors or refuses io_uring.
    """

    def __init__(self, *, backend=None):
        super().__init__(WatchedDescriptors(self))
        self._signals = SignalHandlers(self)
        _register_fork_hook()
        _loops.add(self)

    # Running

    def run_forever(self):
        """Run until stop() is called.

        Raises RuntimeError where the loop is closed or a loop runs in this thread already.  While
        it runs in the main thread, signals wake it.
        """
        self._check_closed()
        self._check_running()
        with self._signals.waking(), self._running():
            self._run_turns()

    @contextmanager
    def _running(self):
        """Be this thread's running loop, with asyncio's hooks in place."""
        previous_hooks = sys.get_asyncgen_hooks()
        try:  # from here on: Ctrl-C may raise anywhere
            self._set_coroutine_origin_tracking(self._debug)
            self._thread_id = threading.get_ident()
            events._set_running_loop(self)
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            yield
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*previous_hooks)

    def close(self):
        """Let go of everything.  The loop must not be running; closing twice is allowed."""
        super().close()
        self._signals.close()
        self._close_core()
        _loops.discard(self)

    def _disown(self):
        self._abandon_after_fork()  # first: the kernel's event set is the parent's
        self._signals.abandon_after_fork()

    # asyncio's loop wakes itself through a socket pair; the core has an eventfd for that.

    def _make_self_pipe(self):
        pass

    def _close_self_pipe(self):
        pass

    def _write_to_self(self):
        self.call_soon_threadsafe(lambda: None)

    # Signals

    def add_signal_handler(self, sig, callback, *args):
        """Call `callback(*args)` in the loop when the signal `sig` comes.  Main thread only.

        Raises TypeError or ValueError for what is no signal, RuntimeError for one that cannot be
        caught and outside of the main thread.
        """
        self._check_signal(sig)
        self._check_closed()
        self._signals.add(sig, callback, args)

    def remove_signal_handler(self, sig):
        """Put the handler back that was there before.  Returns False where none was added."""
        self._check_signal(sig)
        return self._signals.remove(sig)

    # Figures

    def metrics(self):
        """Return a LoopMetrics: what the loop has counted so far.  Any thread, at any time.

        Counting is always on.  Reading takes some microseconds, and a little more for each open
        transport.  Raises RuntimeError in a forked child.
        """
        self._check_not_forked()
        listeners, transports = self._count_open()
        return LoopMetrics(
            backend=self.backend,
            open_listeners=listeners,
            **dict.fromkeys(OPEN_TRANSPORTS.values(), 0)
            | {OPEN_TRANSPORTS[kind.__name__]: count for kind, count in transports.items()},
            **self._read_counters(),
        )

    # Connections

    def _make_socket_transport(
        self, sock, protocol, waiter=None, *, extra=None, server=None, context=None
    ):
        return StreamTransport(self, sock, protocol, waiter, extra, server, context)

    def _make_datagram_transport(self, sock, protocol, address=None, waiter=None, extra=None):
        make = DatagramTransport if sock.family in DatagramTransport.families else _SocketDatagrams
        return make(self, sock, protocol, address, waiter, extra)

    @functools.cached_property
    def _new_tls_transport(self):
        # OpenSSL is looked for when the first connection asks for TLS, not at import.
        from pyreactor._tls import TLSTransport
        from pyreactor._tls_engine import configured_choice

        return functools.partial(TLSTransport, engine=configured_choice())

    def _make_ssl_transport(
        self,
        rawsock,
        protocol,
        sslcontext,
        waiter=None,
        *,
        server_side=False,
        server_hostname=None,
        extra=None,
        server=None,
        context=None,
        **timeouts,
    ):
        transport = self._new_tls_transport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            context=context,
            **timeouts,
        )
        StreamTransport(self, rawsock, transport, None, extra, server, context)
        return transport

    async def start_tls(
        self,
        transport,
        protocol,
        sslcontext,
        *,
        server_side=False,
        server_hostname=None,
        ssl_handshake_timeout=None,
        ssl_shutdown_timeout=None,
    ):
        """Put TLS between `transport` and `protocol`; returns the transport to use from then on.

        What a StreamReader has received already belongs to TLS: on both sides, so that a peer
        cannot slip plain text in before the handshake.  Returns None where the program has closed
        `transport` before the end of the handshake.  Raises TypeError for a context or a transport
        that does not fit, and what the handshake raises.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter = self.create_future()
        upgraded = self._new_tls_transport(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=False,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        transport.pause_reading()
        if isinstance(protocol, streams.StreamReaderProtocol):
            upgraded._take_over(protocol._stream_reader)
        transport.set_protocol(upgraded)
        begin = self.call_soon(upgraded.connection_made, transport)
        resume = self.call_soon(transport.resume_reading)
        try:
            done = await waiter
        except BaseException:
            transport.close()
            begin.cancel()
            resume.cancel()
            raise
        finally:
            waiter = None  # its exception must not keep this frame alive
        return upgraded if done else None

    # Pipes

    def _make_read_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return WritePipeTransport(self, pipe, protocol, waiter, extra)

    # Servers

    async def create_server(self, *args, start_serving=True, **kwargs):
        """Listen on TCP; see asyncio's create_server() for the arguments."""
        self._check_closed()
        made = await super().create_server(*args, start_serving=False, **kwargs)
        return await self._adopt_server(made, start_serving)

    async def create_unix_server(self, *args, start_serving=True, **kwargs):
        """Listen on a Unix socket; see asyncio's create_unix_server() for the arguments."""
        self._check_closed()
        made = await super().create_unix_server(*args, start_serving=False, **kwargs)
        return await self._adopt_server(made, start_serving)

    async def _adopt_server(self, made, start_serving):
        server = Server(
            self,
            made._sockets,
            made._protocol_factory,
            made._ssl_context,
            made._backlog,
            made._ssl_handshake_timeout,
            made._ssl_shutdown_timeout,
        )
        if start_serving:
            server._start_serving()
            await tasks.sleep(0)  # asyncio's callers rely on this turn
        return server

    def _start_serving(
        self,
        protocol_factory,
        sock,
        sslcontext=None,
        server=None,
        backlog=100,
        ssl_handshake_timeout=None,
        ssl_shutdown_timeout=None,
        context=None,  # from 3.15 on
    ):
        ssl_arguments = None
        if sslcontext is not None:
            ssl_arguments = {
                "sslcontext": sslcontext,
                "ssl_handshake_timeout": ssl_handshake_timeout,
                "ssl_shutdown_timeout": ssl_shutdown_timeout,
            }
        Listener(self, sock, protocol_factory, server, ssl_arguments, backlog, context)

    def _stop_serving(self, sock):
        self._stop_listening(sock.fileno())
        super()._stop_serving(sock)
