"""Event handlers: what a dispatcher calls.

    EventHandler        handle_event(): a handle is ready; the handler itself reads and writes
    CompletionHandler   handle_read(): the bytes have been read; what it returns is written

A handler is bound to a handle (a socket or descriptor) by register_handle() of a handle set or a
dispatcher; one handler may be bound to several handles of one set.  Each method is called for one
event of a handle at a time, in any of the dispatcher's threads.  What it raises is reported, and
the handle is removed and closed; so is a handle whose handler returns CLOSE.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyreactor._dispatch import CLOSE, EXCEPTION, KEEP, READ, WRITE, Completion

if TYPE_CHECKING:
    from pyreactor._dispatch import Timer
    from pyreactor.handle_set import HandleSet

__all__ = [
    "CLOSE",
    "EXCEPTION",
    "KEEP",
    "READ",
    "WRITE",
    "AcceptHandler",
    "Completion",
    "CompletionHandler",
    "EchoHandler",
    "EchoService",
    "EventHandler",
    "ReadyHandler",
    "SignalHandler",
    "TimerHandler",
    "UnboundHandlerError",
]

_RECEIVE_BYTES = 64 * 1024
_REST_SECONDS = 0.1
_log = logging.getLogger("pyreactor")


class UnboundHandlerError(RuntimeError):
    """A handler was used that is bound to no handle."""


class _Bindable:
    """A handler's tie to the set that its handles, timers and signals are registered with."""

    _handle_set: HandleSet | None = None
    _bindings = 0
    _is_channel = False
    _binding_lock = threading.Lock()

    @property
    def handle_set(self) -> HandleSet:
        """The set it is bound in.  Raises UnboundHandlerError where it is bound to nothing."""
        bound = self._handle_set
        if bound is None:
            raise UnboundHandlerError(f"{self!r} is not bound to a handle")
        return bound

    def _bind(self, handle_set: HandleSet) -> None:
        with self._binding_lock:
            if self._handle_set not in (None, handle_set):
                raise ValueError(f"{self!r} is bound in another handle set")
            self._handle_set = handle_set
            self._bindings += 1

    def _unbind(self, handle_set: HandleSet) -> None:
        with self._binding_lock:
            self._bindings -= 1
            if self._bindings == 0:
                self._handle_set = None

    def handle_timeout(self, timer: Timer) -> Any:
        """A timer of schedule_timer() is due; its `timer.data` is what was given there."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_timeout()")

    def handle_signal(self, number: int) -> Any:
        """A signal of register_signal() has come; called once for each."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_signal()")

    def handle_close(self, handle: int) -> None:
        """The handle is out of the set, and nothing more is called for it: close it here.

        The default closes the file object or descriptor that was registered.
        """
        _close_descriptor(handle)


class EventHandler(_Bindable, ABC):
    """Handles readiness.  A concrete handler implements handle_event()."""

    mask = READ  # what is waited for first

    @abstractmethod
    def handle_event(self, handle: int, event_type: int) -> Any:
        """The handle (a descriptor) is ready for `event_type`: READ, WRITE, EXCEPTION or several.

        A hang-up or an error counts as ready for whatever was waited for.  Returns CLOSE to have
        the handle removed and closed; anything else keeps it.
        """


class ReadyHandler(EventHandler):
    """An EventHandler with a method for each kind of readiness."""

    def handle_event(self, handle: int, event_type: int) -> Any:
        """Call handle_exception(), handle_input() and handle_output(), until one says CLOSE."""
        for kind, method in (
            (EXCEPTION, self.handle_exception),
            (READ, self.handle_input),
            (WRITE, self.handle_output),
        ):
            if event_type & kind and method(handle) == CLOSE:
                return CLOSE
        return None

    def handle_input(self, handle: int) -> Any:
        """The handle can be read."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_input()")

    def handle_output(self, handle: int) -> Any:
        """The handle can be written."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_output()")

    def handle_exception(self, handle: int) -> Any:
        """The handle has urgent data."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_exception()")


class CompletionHandler(_Bindable, ABC):
    """Handles what is finished: another thread, or the kernel, reads and writes the bytes.

    Registered with register_handle(), a handle is read for it again and again, and what
    handle_read() answers is written.  Its methods are called one at a time for one handle.  Under a
    proactor it may be given to single operations, too: aio_read() and the others.
    """

    mask = READ
    every_write = False  # whether handle_write() is called for each answer that was written
    _is_channel = True

    @abstractmethod
    def handle_read(self, completion: Completion) -> bytes | int | None:
        """The bytes `completion.data` of `completion.handle` have been read.

        `completion.error` is the OSError that ended the connection, or None; `completion.eof` says
        that the peer sends no more.  After either the handle is closed, once all is written.
        Returns bytes to be written, CLOSE, None, or KEEP: it is not to be closed, though the peer
        sends no more, and the handler has asked the set to report_written(reading=False).
        """

    def handle_write(self, completion: Completion) -> bytes | int | None:
        """`completion.count` bytes have been written, or `completion.error` says why not.

        Of a registered handle with `every_write`, or which report_written() was called for: all is
        written.  Returns what handle_read() does.
        """
        return None

    def handle_accept(self, completion: Completion) -> Any:
        """aio_accept() has accepted `completion.sock`, from `completion.address`.

        Or `completion.error` says why not.  Returns CLOSE to have it closed again.
        """
        raise NotImplementedError(f"{type(self).__name__} has no handle_accept()")

    def handle_connect(self, completion: Completion) -> Any:
        """aio_connect() has connected `completion.sock`, or `completion.error` says why not.

        Returns CLOSE to have it closed, or bytes to be written.
        """
        raise NotImplementedError(f"{type(self).__name__} has no handle_connect()")


class EchoHandler(ReadyHandler):
    """Sends back what it receives, over one connected socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._unsent = bytearray()
        self._ended = False

    def handle_input(self, handle: int) -> Any:
        """Read until nothing is left, then wait until it can be written."""
        while True:
            try:
                data = self.sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                return CLOSE
            if not data:
                self._ended = True
                break
            self._unsent += data
        if not self._unsent:
            return CLOSE if self._ended else None
        if self.handle_set.strict:
            # A write waits for its own readiness event.
            self.handle_set.modify_handle(handle, WRITE)
            return None
        return self.handle_output(handle)

    def handle_output(self, handle: int) -> Any:
        """Write what the socket takes, then wait for more, or for room."""
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except BlockingIOError:
            self.handle_set.modify_handle(handle, WRITE)
            return None
        except ConnectionError:
            return CLOSE
        if self._ended:
            return CLOSE
        self.handle_set.modify_handle(handle, READ)
        return None

    def handle_close(self, handle: int) -> None:
        """Close the socket."""
        self.sock.close()


class EchoService(CompletionHandler):
    """Answers what was read with the same bytes; it owns the socket, but does not read it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    def handle_read(self, completion: Completion) -> bytes | int | None:
        """Return the bytes."""
        data: bytes = completion.data
        return data

    def handle_close(self, handle: int) -> None:
        """Close the socket."""
        self.sock.close()


class AcceptHandler(EventHandler):
    """Accepts connections, and has a handler made for each.

    Where the process or the system has no descriptor left it rests for a moment, and says so once;
    those who want to connect wait in the backlog meanwhile.
    """

    paused = False  # whether to accept no more in this event; for who suspends the handle meanwhile
    _rests = 0  # without a connection between them

    def __init__(
        self,
        address: Any,
        factory: Callable[[socket.socket], EventHandler | CompletionHandler],
        *,
        sock: socket.socket | None = None,
        shared: bool = False,
        family: int = socket.AF_INET,
        backlog: int = 128,
        reuse_port: bool = False,
    ) -> None:
        """Listen at `address`; `factory` makes a handler of each connected socket.

        With `sock` it accepts from that socket, which listens already and is the handler's from
        here on; `address` is of no account then.  Where it is `shared` with another process, it is
        closed in the end, but goes on listening there.  The factory is called in the thread that
        registers the connection.  Raises OSError where the address cannot be had.
        """
        self.factory = factory
        self.backlog = backlog
        self._shared = shared
        self.sock = sock or socket.create_server(
            address, family=family, backlog=backlog, reuse_port=reuse_port
        )
        self.sock.setblocking(False)
        self.reuse_port = reuse_port

    @property
    def address(self) -> Any:
        """Where it listens."""
        return self.sock.getsockname()

    def fileno(self) -> int:
        """Return the listening descriptor."""
        return self.sock.fileno()

    def handle_event(self, handle: int, event_type: int) -> Any:
        """Accept until nobody waits; the dispatcher decides where each connection goes.

        Without descriptors it rests for a second, and then tries again.
        """
        for _ in range(self.backlog):
            if self.paused:
                return
            try:
                sock, _ = self.sock.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                self._rest(handle, error)
                return
            self._rests = 0
            self.handle_set._adopt(sock, self.factory)

    def _rest(self, handle: int, error: OSError) -> None:
        """Try again after a moment: the listener stays ready, and it would be a busy loop."""
        if self._rests == 0:
            _log.error("cannot accept a connection, and tries again until it can: %s", error)
        self._rests += 1
        handle_set = self.handle_set
        handle_set.suspend(handle)

        def resume(timer: Timer) -> None:
            try:
                handle_set.resume(handle)
            except (KeyError, ValueError):
                pass  # it was removed, or the set is closed

        handle_set.schedule_timer(TimerHandler(resume), _REST_SECONDS)

    def handle_close(self, handle: int) -> None:
        """Stop listening, and close the socket."""
        if not self._shared:
            # At once, also where the kernel still holds the file for a demultiplexer's operation.
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class TimerHandler(_Bindable):
    """Calls a function when a timer is due."""

    def __init__(self, function: Callable[[Timer], Any]) -> None:
        self._function = function

    def handle_timeout(self, timer: Timer) -> Any:
        """Call the function with the timer."""
        return self._function(timer)


class SignalHandler(_Bindable):
    """Calls a function when a signal has come."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function = function

    def handle_signal(self, number: int) -> Any:
        """Call the function with the signal's number."""
        return self._function(number)


def _close_descriptor(fd: int) -> None:
    os.close(fd)
