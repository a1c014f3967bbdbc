"""Proactors: dispatchers whose workers get finished reads and writes.

    class                        waits        accepts, reads, writes   handlers run in
    Proactor                     main         the kernel (io_uring)    workers
    SimulatedProactor            main         main                     workers

Both have the same operations, the same handlers and the same results; POSA2's Proactor, and ACE's
way to have one where the system has no asynchronous I/O.  aio_read() and the others return at once;
what has become of the operation is told to the handler, in the worker that select_worker chooses.

Workers and other threads never touch the ring, which serves one thread: they hand operations to the
main thread, and wake it where it sleeps.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, ClassVar

from pyreactor import _dispatch, _proactor
from pyreactor._demux import DemultiplexerCore
from pyreactor._proactor import Operation, Timer
from pyreactor.backend import io_uring_refusal
from pyreactor.buffer_pool import BufferPool
from pyreactor.completion_acceptor import CompletionAcceptor
from pyreactor.demultiplexers import Demultiplexer, EpollDemultiplexer
from pyreactor.dispatchers import _Dispatcher, _refuse_asynchronous, _worker_count
from pyreactor.handle_set import ErrorHook, log_error
from pyreactor.handlers import READ, AcceptHandler, CompletionHandler, EventHandler

__all__ = ["Operation", "Proactor", "SimulatedProactor", "new_proactor"]

_BUFFERS = 1024
_BUFFER_BYTES = 16 * 1024
_log = logging.getLogger("pyreactor")


class _Proactor(_Dispatcher):
    """What both have: operations, registered handles, timers, workers and their end."""

    _engine: ClassVar[str]

    def __init__(
        self,
        demultiplexer: DemultiplexerCore | None,
        workers: int | None,
        select_worker: str,
        buffers: int | BufferPool,
        buffer_bytes: int,
        strict: bool,
        affinity: bool | list[int] | None,
        on_error: ErrorHook,
    ) -> None:
        super().__init__([], affinity=affinity)
        self.workers = _worker_count(workers)
        self.select_worker = select_worker
        self.strict = strict
        self.on_error = on_error
        self.trace_core = _dispatch.TraceCore()
        self.pool = (
            buffers if isinstance(buffers, BufferPool) else BufferPool(buffers, buffer_bytes)
        )
        self._core = _proactor.ProactorCore(
            self._engine,
            demultiplexer,
            self.pool,
            self.trace_core,
            self.workers,
            select_worker,
            strict,
            on_error,
        )
        self._acceptors: dict[int, CompletionAcceptor] = {}
        self._last_stats: dict[str, int] = {}

    # Operations

    def aio_read(
        self,
        handle: Any,
        buffer: Any = None,
        handler: CompletionHandler | None = None,
        *,
        offset: int | None = None,
        notify: str = "cqe",
    ) -> Operation:
        """Start to read from a socket, a pipe or, at `offset`, a file.  Any thread.

        `buffer` is where to: a writable buffer (one of pool.acquire(), a bytearray ...), which
        stays as it is until the operation is done; or a number of bytes at most, or None, for a
        buffer of the pool, which is chosen when there are bytes (with `strict` now) and given back
        when the bytes have been copied out for the handler.  Where the pool has none left, the
        operation waits for one.

        handler.handle_read() is told, by the worker that is chosen.  `notify` says how the
        application learns of it: "cqe", the main thread sees the completion; "eventfd", the
        proactor's eventfd is written first; "signal", the main thread is sent a real-time signal
        first.  On io_uring the kernel does so by itself.

        Returns the operation, which can be cancelled and waited for.  Raises ValueError for a
        number of bytes that no buffer has, RuntimeError once the proactor has stopped.
        """
        return self._core._aio_read(handle, buffer, handler, offset, notify)

    def aio_write(
        self,
        handle: Any,
        data: Any,
        handler: CompletionHandler | None = None,
        *,
        offset: int | None = None,
        notify: str = "cqe",
    ) -> Operation:
        """Start to write all of `data`, which is not copied and must not change.  Any thread.

        handler.handle_write() is told; the rest is as with aio_read().
        """
        return self._core._aio_write(handle, data, handler, offset, notify)

    def aio_accept(
        self, handle: Any, handler: CompletionHandler | None = None, *, notify: str = "cqe"
    ) -> Operation:
        """Start to accept a connection from a listening socket.  Any thread.

        handler.handle_accept() is told, with the socket, which is its own from there on.
        """
        return self._core._aio_accept(handle, handler, notify)

    def aio_connect(
        self,
        handle: socket.socket,
        address: Any,
        handler: CompletionHandler | None = None,
        *,
        notify: str = "cqe",
    ) -> Operation:
        """Start to connect a socket, which will not block from here on.  Any thread.

        `address` is as for socket.connect(), but numeric: names are not looked up.
        handler.handle_connect() is told.  Raises ValueError for another address.
        """
        return self._core._aio_connect(handle, address, handler, notify)

    def aio_sendfile(
        self,
        handle: socket.socket,
        file: Any,
        handler: CompletionHandler | None = None,
        *,
        offset: int = 0,
        count: int | None = None,
        notify: str = "cqe",
    ) -> Operation:
        """Start to send `count` bytes of a file, by default all after `offset`.  Any thread.

        handler.handle_write() is told how many were sent: fewer where the file ended before.
        """
        return self._core._aio_sendfile(handle, file, handler, offset, count, notify)

    @property
    def eventfd(self) -> int:
        """The eventfd of notify="eventfd", for the application to wait for and to read.

        Each such operation that is done adds one to it.
        """
        return self._core._event_fd()

    # Registered handles

    def register_handle(self, handle: Any, event_handler: Any, mask: int | None = None) -> None:
        """Bind a CompletionHandler to a connected socket, pipe or terminal.  Any thread.

        It is read for the handler again and again.  `mask` is READ, by default the handler's own;
        with WRITE its handle_write() is called first, and without READ nothing is read before
        that; 0 reads nothing until resume().  An AcceptHandler is bound to its listener:
        connections are accepted for it, and its factory called, in a worker.  Raises KeyError where
        the handle is registered already, TypeError for a handler of readiness, and RuntimeError
        once the proactor has stopped.
        """
        if isinstance(event_handler, AcceptHandler):
            self._register_acceptor(event_handler)
            return
        if isinstance(event_handler, EventHandler):
            raise TypeError(
                f"{type(event_handler).__name__} reads and writes itself when a handle is ready;"
                f" {type(self).__name__} does that for its handlers: give a CompletionHandler, or"
                " use a Reactor"
            )
        if not isinstance(event_handler, CompletionHandler):
            raise TypeError(f"a CompletionHandler was expected, got {event_handler!r}")
        event_handler._bind(self)  # type: ignore[arg-type]
        try:
            self._core._register(
                handle, event_handler, event_handler.mask if mask is None else mask
            )
        except BaseException:
            event_handler._unbind(self)  # type: ignore[arg-type]
            raise

    def remove_handle(self, handle: Any) -> None:
        """Unbind a handle; what is under way of it is cut short, what is unwritten is dropped.

        Its handler's handle_close() is called once, now or when nothing is under way any more.
        Raises KeyError where it is not registered.  Any thread.
        """
        fd = _descriptor(handle)
        acceptor = self._acceptors.get(fd)
        if acceptor is not None:
            acceptor.remove()
        else:
            self._core._channel(fd).remove()

    def modify_handle(self, handle: Any, mask: int) -> None:
        """Read from a handle, or not.  Any thread."""
        if mask & READ:
            self.resume(handle)
        else:
            self.suspend(handle)

    def suspend(self, handle: Any) -> None:
        """Read nothing from a handle, accept nothing from a listener, until resume().

        Any thread.
        """
        fd = _descriptor(handle)
        acceptor = self._acceptors.get(fd)
        if acceptor is not None:
            acceptor.suspend()
        else:
            self._core._channel(fd).suspend()

    def resume(self, handle: Any) -> None:
        """End suspend().  Any thread."""
        fd = _descriptor(handle)
        acceptor = self._acceptors.get(fd)
        if acceptor is not None:
            acceptor.resume()
        else:
            self._core._channel(fd).resume()

    def write(self, handle: Any, data: bytes) -> int:
        """Have bytes written to a registered handle.  Returns how many are unsent.  Any thread."""
        return self._core._channel(_descriptor(handle)).write(bytes(data))

    def report_written(self, handle: Any, *, reading: bool = True) -> None:
        """Have handle_write() called, once, when all is written to a registered handle.

        That may be at once.  Without `reading` nothing is read before it.  Any thread.
        """
        self._core._channel(_descriptor(handle)).report_written(reading)

    def handles(self) -> list[int]:
        """Return the descriptors that are registered."""
        return [*self._core._registered(), *self._acceptors]

    def stop_accepting(self) -> None:
        """Remove every AcceptHandler: nobody can connect any more.  Any thread."""
        for acceptor in list(self._acceptors.values()):
            acceptor.remove()

    @property
    def reads_for_handlers(self) -> bool:
        """Whether handlers get finished reads: they do."""
        return True

    @property
    def _port(self) -> _dispatch.Port:
        return self._core

    def _is_strict(self) -> bool:
        return self.strict

    def _bind_connection(
        self, sock: socket.socket, factory: Callable[[socket.socket], Any]
    ) -> None:
        """Register a connection that an AcceptHandler has accepted."""
        handler: Any = factory
        try:
            handler = factory(sock)
            self.register_handle(sock, handler)
        except BaseException as exc:
            sock.close()
            self.on_error(handler, exc)

    def _register_acceptor(self, handler: AcceptHandler) -> None:
        fd = handler.fileno()
        with self._counts:
            if fd in self._acceptors:
                raise KeyError(f"descriptor {fd} is already registered")
            handler._bind(self)  # type: ignore[arg-type]
            acceptor = self._acceptors[fd] = CompletionAcceptor(
                self, handler, self._forget_acceptor
            )
        acceptor.resume()

    def _forget_acceptor(self, handler: AcceptHandler) -> None:
        fd = handler.fileno()
        self._acceptors.pop(fd, None)
        try:
            handler.handle_close(fd)
        except BaseException as exc:
            self.on_error(handler, exc)
        handler._unbind(self)  # type: ignore[arg-type]

    # Timers

    def schedule_timer(  # type: ignore[override]
        self, handler: Any, delay: float, interval: float | None = None, data: Any = None
    ) -> Timer:
        """Have handler.handle_timeout() called in a worker; see HandleSet.schedule_timer().

        Any thread.  Raises RuntimeError once the proactor has stopped.
        """
        return self._core._schedule(handler, delay, interval, data)

    def cancel_timer(self, timer: Timer) -> bool:  # type: ignore[override]
        """Cancel a timer; see HandleSet.cancel_timer().  Any thread."""
        return self._core._cancel_timer(timer)

    def register_signal(self, number: int, handler: Any) -> None:
        """Not there: raises NotImplementedError.  Use Python's signal module, or a Reactor."""
        raise NotImplementedError(
            f"{type(self).__name__} has no signals: use the signal module, or a Reactor"
        )

    def remove_signal(self, number: int) -> None:
        """Not there: raises KeyError, since no signal is registered."""
        raise KeyError(f"signal {number} is not registered")

    # Threads

    def _start_others(self) -> None:
        for index in range(self.workers):
            self._start_thread(self._core._work, index, "worker", f"worker-{index}")

    def _main(self, index: int) -> None:
        _dispatch.set_role("main")
        try:
            self._core._run()
        except BaseException:
            # The ring serves this thread alone: what is under way ends here or never.
            self._core._stop(False)
            self._core._run()
            raise
        finally:
            self._core._close_workers()

    def stop(self, drain: bool = True, timeout: float | None = None) -> None:
        """Stop: no more accepts and reads; handlers that run go on to their end.

        With `drain` results that have come are handled and what was asked to be written is written;
        where a peer does not read that lasts until the `timeout`, or a second call without `drain`.
        Without it every operation is cut short.  Each operation's handler has been called once.
        Any thread that is none of the proactor's.  Raises TimeoutError after `timeout` seconds.
        """
        super().stop(drain, timeout)

    def _stop(self, drain: bool, deadline: Any) -> None:
        super()._stop(drain, deadline)
        self._last_stats = self._core._stats()
        self._core._close()
        for acceptor in list(self._acceptors.values()):
            acceptor.remove()

    def _end_waits(self) -> None:
        self._core._stop(True)

    def _stop_events(self, drain: bool, deadline: Any) -> None:
        if not drain:
            self._core._stop(False)

    def _interrupt(self, ident: int) -> None:
        if self._runner is not None and self._runner.ident != ident:
            self._core._interrupt()

    # What is to be seen

    def stats(self) -> dict[str, int]:
        """Return the counters.

        submitted, completed, cancelled   operations
        live                              operations that are not handled yet
        silent                            writes that ended well and that nobody had to be told of
        postponed                         how often an operation waited for a buffer
        waits                             turns of the main thread
        handles, queue_depth              registered; results that wait for a worker, or are handled
        taken_over                        results that went from a busy worker to a free one
        buffers_taken, buffers_in_use     buffers of the pool that reads took, and still have
        buffers_exhausted                 how often a read found none
        voluntary, nonvoluntary           context switches of the threads
        """
        return {**(self._core._stats() or self._last_stats), **super().stats()}

    @property
    def stopping(self) -> bool:
        """Whether stop() was called."""
        return bool(self._core._is_stopping())

    def _trace_cores(self) -> list[Any]:
        return [self.trace_core]

    def _queue_depth(self) -> int:
        return int((self._core._stats() or {"queue_depth": 0})["queue_depth"])


class Proactor(_Proactor):
    """The kernel accepts, reads and writes; the main thread submits, waits and chooses workers."""

    _engine = "io_uring"
    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("submit", 1): "P1",
        ("complete", 1): "P3",
        ("select", 1): "P4",
        ("handle", 1): "P4",
        ("submit", 2): "P4",
        ("complete", 2): "P6",
        ("select", 2): "P7",
        ("handle", 2): "P7",
    }

    def __init__(
        self,
        io: Any = None,
        *,
        workers: int | None = None,
        select_worker: str = "least_loaded",
        buffers: int | BufferPool = _BUFFERS,
        buffer_bytes: int = _BUFFER_BYTES,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make a proactor on io_uring; start() or run() starts it.

        `workers` is how many threads handle results. `select_worker` is "round_robin",
        "least_loaded" (the fewest results that wait or are being handled) or "connection" (always
        the same one for a descriptor); what the first two choose a busy worker for, one that has
        nothing to do takes over. `buffers` is a pool, or how many of `buffer_bytes` one is
        made of now: for reads that bring none; nothing is allocated later. `strict` names a buffer
        when a read is started, and reports each write. `on_error(handler, exception)` is told what
        handlers raise.

        Raises TypeError where `io` waits for readiness: that is a Reactor's, or a
        SimulatedProactor's.  Raises OSError, with the reason, where io_uring cannot be had.
        """
        if io is not None:
            _refuse_synchronous(io, type(self).__name__)
        try:
            super().__init__(
                None, workers, select_worker, buffers, buffer_bytes, strict, affinity, on_error
            )
        except OSError as exc:
            if exc.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOMEM):
                raise
            raise type(exc)(
                exc.errno,
                f"there is no Proactor on this machine, because {io_uring_refusal(exc.errno)};"
                " SimulatedProactor has the same interface without io_uring",
            ) from exc


class SimulatedProactor(_Proactor):
    """The main thread accepts, reads and writes, and workers get finished reads."""

    _engine = "readiness"
    _own_demultiplexer: Demultiplexer | None = None
    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("register", 1): "S1",
        ("wait", 1): "S2",
        ("read", 1): "S3",
        ("select", 1): "S3",
        ("handle", 1): "S4",
        ("register", 2): "S4",
        ("wait", 2): "S5",
        ("write", 2): "S6",
    }

    def __init__(
        self,
        demultiplexer: DemultiplexerCore | type[Demultiplexer] | None = None,
        *,
        workers: int | None = None,
        select_worker: str = "least_loaded",
        buffers: int | BufferPool = _BUFFERS,
        buffer_bytes: int = _BUFFER_BYTES,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make one that waits with `demultiplexer`, by default epoll; the rest as Proactor.

        A demultiplexer stays the caller's; of a class it makes one, and closes it in the end.

        With `strict` the thread that asks for a write has it waited for, nothing is tried before
        the handle is ready, and reads go on until nothing is left or the buffer is full.

        Regular files have no readiness: the main thread reads and writes them, and waits for the
        disk.  Raises TypeError for asynchronous I/O.
        """
        _refuse_asynchronous(demultiplexer, type(self).__name__)
        if demultiplexer is None:
            demultiplexer = EpollDemultiplexer
        if isinstance(demultiplexer, type) and issubclass(demultiplexer, Demultiplexer):
            demultiplexer = self._own_demultiplexer = demultiplexer()
        if not isinstance(demultiplexer, DemultiplexerCore):
            raise TypeError(f"a demultiplexer was expected, got {demultiplexer!r}")
        super().__init__(
            demultiplexer, workers, select_worker, buffers, buffer_bytes, strict, affinity, on_error
        )

    def _stop(self, drain: bool, deadline: Any) -> None:
        super()._stop(drain, deadline)
        if self._own_demultiplexer is not None:
            self._own_demultiplexer.close()


def new_proactor(**arguments: Any) -> Proactor | SimulatedProactor:
    """Make a Proactor, or where there is no io_uring a SimulatedProactor, and log which and why.

    The arguments are those that both have.
    """
    try:
        return Proactor(**arguments)
    except OSError as exc:
        _log.warning("%s: using that", exc.strerror)
        return SimulatedProactor(**arguments)


def _refuse_synchronous(io: Any, name: str) -> None:
    if isinstance(io, DemultiplexerCore) or getattr(io, "synchronous", None) is True:
        raise TypeError(
            f"{name} has the kernel do the I/O, and {type(io).__name__} only tells when it can be"
            f" done: use SimulatedProactor({type(io).__name__}()), or a Reactor"
        )
    if getattr(io, "synchronous", None) is not False:
        raise TypeError(f"asynchronous I/O was expected, got {io!r}")


def _descriptor(handle: Any) -> int:
    return handle if isinstance(handle, int) else int(handle.fileno())
