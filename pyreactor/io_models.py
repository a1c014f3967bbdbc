"""The I/O models, to be told apart: who waits, who copies the bytes, and what is reported.

    class            waits in                  reported        copies the bytes
    BlockingIO       recv()                    readiness       the application
    NonBlockingIO    nowhere                   readiness       the application
    MultiplexedIO    a demultiplexer           readiness       the application
    SignalDrivenIO   sigtimedwait() for SIGIO  readiness       the application
    AsyncIO          io_uring_enter()          completion      the kernel

All but the last are synchronous I/O: the application itself moves the bytes, once it may.  It is
asynchronous I/O where the kernel moves them, and reports the completion: a Proactor's.  A server
that stands on the first kind is a Reactor, whatever it waits with.

(W. R. Stevens, UNIX Network Programming, volume 1, 6.2, has the same distinction.)
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pyreactor.demultiplexers import (
    EVENT_READ,
    Demultiplexer,
    EpollDemultiplexer,
    SignalDemultiplexer,
)

if TYPE_CHECKING:
    from pyreactor._proactor import Operation
    from pyreactor.handlers import CompletionHandler

__all__ = [
    "AsyncIO",
    "BlockingIO",
    "IOModel",
    "MultiplexedIO",
    "NonBlockingIO",
    "SignalDrivenIO",
]


class IOModel:
    """A way of receiving bytes from sockets, with what it is called by."""

    synchronous: ClassVar[bool] = True  # whoever asks for the bytes also moves them
    notifies: ClassVar[Literal["readiness", "completion"]] = "readiness"
    io_by: ClassVar[Literal["application", "kernel"]] = "application"


class _SingleModel(IOModel, ABC):
    """What needs nothing but the socket."""

    @abstractmethod
    def receive(self, sock: socket.socket, size: int) -> bytes | None:
        """Receive up to `size` bytes; b"" when the peer sends no more.  Any thread."""


class BlockingIO(_SingleModel):
    """The call sleeps in the kernel until there are bytes, and then copies them."""

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """Wait for bytes as long as it takes, and return up to `size`.  Any thread.

        The socket becomes a blocking one.  Raises OSError for a broken connection.
        """
        sock.setblocking(True)
        return sock.recv(size)


class NonBlockingIO(_SingleModel):
    """The call returns at once, with what there is."""

    def receive(self, sock: socket.socket, size: int) -> bytes | None:
        """Return up to `size` bytes, or None where there are none now.  Any thread.

        The socket becomes a non-blocking one.  Raises OSError for a broken connection.
        """
        sock.setblocking(False)
        try:
            return sock.recv(size)
        except BlockingIOError:
            return None


class MultiplexedIO(IOModel):
    """One call waits for many sockets; then those that are ready are read without blocking."""

    def __init__(self, demultiplexer: Demultiplexer | None = None) -> None:
        """Wait with a demultiplexer, which is this object's from here on; by default epoll."""
        self._demultiplexer = EpollDemultiplexer() if demultiplexer is None else demultiplexer
        self._reads = NonBlockingIO()

    def register(self, sock: socket.socket) -> None:
        """Wait for a socket, too.  Any thread.  Raises KeyError where it is registered already."""
        sock.setblocking(False)
        self._demultiplexer.register(sock, EVENT_READ, sock)

    def unregister(self, sock: socket.socket) -> None:
        """Wait for it no more.  Any thread.  Raises KeyError where it is not registered."""
        self._demultiplexer.unregister(sock)

    def receive(
        self, size: int, timeout: float | None = None
    ) -> list[tuple[socket.socket, bytes, bool]]:
        """Wait for sockets to become ready, and read each until nothing is left.

        Returns (socket, bytes, whether the peer sends no more) for each that was ready; an empty
        list when `timeout` seconds are over.  Each read takes up to `size` bytes.  One thread at a
        time.  Raises OSError for a broken connection.
        """
        ready = [key.data for key, _ in self._demultiplexer.select(timeout)]
        return [(sock, *self._drain(sock, size)) for sock in ready]

    def _drain(self, sock: socket.socket, size: int) -> tuple[bytes, bool]:
        read = bytearray()
        while data := self._reads.receive(sock, size):
            read += data
        return bytes(read), data == b""

    def close(self) -> None:
        """Forget all sockets, which stay open."""
        self._demultiplexer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class SignalDrivenIO(MultiplexedIO):
    """The kernel signals the thread that owns the sockets when one becomes ready.

    The owner is the thread that calls receive(); the signals are blocked there and taken one by
    one, so that what happens upon a signal is not bound by the rules of signal handlers.
    """

    def __init__(self) -> None:
        """Raises OSError where the kernel has no such signals."""
        super().__init__(SignalDemultiplexer())


class AsyncIO(IOModel):
    """Asynchronous I/O on io_uring: the kernel fills the buffer, and then says so.

    What a Proactor is made of, in one thread: the one that calls wait() first, and it alone.

    POSIX's aio_read(3) is not used in its place, since it only looks alike: the C library has
    threads of this process read (aio(7)).  A write to a socket waits there for the read before it,
    and a read that waits for its peer cannot be cut short.  Without io_uring a SimulatedProactor
    has these operations, and says that the application does them.
    """

    synchronous = False
    notifies = "completion"
    io_by = "kernel"

    def __init__(self) -> None:
        """Raises OSError, with the reason, where there is no io_uring."""
        from pyreactor import _dispatch, _proactor
        from pyreactor.backend import io_uring_refusal
        from pyreactor.buffer_pool import BufferPool
        from pyreactor.handle_set import log_error

        try:
            self._core = _proactor.ProactorCore(
                "io_uring",
                None,
                BufferPool(16, 16 * 1024),
                _dispatch.TraceCore(),
                1,
                "round_robin",
                False,
                log_error,
            )
        except OSError as exc:
            raise type(exc)(
                exc.errno,
                "there is no asynchronous I/O on this machine, because"
                f" {io_uring_refusal(exc.errno or 0)}; SimulatedProactor has the same operations",
            ) from exc

    def aio_read(
        self,
        handle: Any,
        buffer: Any,
        handler: CompletionHandler | None = None,
        *,
        offset: int | None = None,
        notify: str = "cqe",
    ) -> Operation:
        """Start to read into `buffer`, which stays as it is until the operation is done.

        Returns at once; see Proactor.aio_read().  Any thread.
        """
        return self._core._aio_read(handle, buffer, handler, offset, notify)

    def wait(self, timeout: float = 0) -> int:
        """Have the kernel start what was asked for, wait `timeout` seconds at most for something
        to be done, and call the handlers; returns how many operations were.

        One thread.
        """
        self._core._run(max(0, int(timeout * 1e9)))
        return self._core._handle_waiting()

    @property
    def eventfd(self) -> int:
        """The eventfd of notify="eventfd"."""
        return self._core._event_fd()

    def close(self) -> None:
        """Cut short what is under way; the thread of wait()."""
        self._core._stop(False)
        while not self._core._run(0):
            self._core._handle_waiting()
        self._core._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
