"""The components of leader/followers, which the other dispatchers are made of, too.

HandleSet     the one source of events: handles, timers and signals behind one wait
ThreadSet     the threads that take turns at it
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from pyreactor import _dispatch
from pyreactor._demux import DemultiplexerCore
from pyreactor._dispatch import Completion, NotLeaderError, Timer
from pyreactor.demultiplexers import EpollDemultiplexer
from pyreactor.handlers import CompletionHandler, EventHandler

if TYPE_CHECKING:
    import socket

__all__ = [
    "Completion",
    "Event",
    "HandleSet",
    "NotLeaderError",
    "ThreadSet",
    "ThreadState",
    "Timer",
]

_EVENTS_PER_WAIT = 64
_log = logging.getLogger("pyreactor")

ErrorHook = Callable[[Any, BaseException], object]


def log_error(handler: Any, exception: BaseException) -> None:
    """The default hook for what a handler raises: logs it with its traceback."""
    _log.error("%r raised; its handle is closed", handler, exc_info=exception)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """What wait_for_event() returns; it unpacks as (handle, events)."""

    handle: int  # the descriptor; -1: of a timer
    events: int  # READ, WRITE, EXCEPTION
    generation: int = 0  # of the registration
    timer_id: int = 0

    def __iter__(self) -> Iterator[int]:
        return iter((self.handle, self.events))

    def _core(self) -> tuple[int, int, int, int]:
        return self.handle, self.generation, self.events, self.timer_id


class HandleSet(_dispatch.HandleSetCore):
    """Handles with their handlers, timers and signals, and one wait for all of them.

    Everything but wait_for_event() and handle_events() may be called from any thread, also while
    another thread waits.  A handle whose event was returned is not reported again until its handler
    has returned, so that no handle is handled in two threads at once.
    """

    def __init__(
        self,
        demultiplexer: DemultiplexerCore | None = None,
        *,
        strict: bool = False,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make an empty set over a demultiplexer of its own, by default epoll.

        `strict` fetches one event with each wait, and has handlers wait for a write-ready event
        before each write.  `on_error(handler, exception)` is told what handlers raise.

        Raises TypeError for what is no demultiplexer, RuntimeError for one that is in use.
        """
        if demultiplexer is None:
            demultiplexer = EpollDemultiplexer()
        if not isinstance(demultiplexer, DemultiplexerCore):
            raise TypeError(
                f"a handle set waits for readiness on a demultiplexer, not {demultiplexer!r}"
            )
        self.strict = strict
        self.trace_core = _dispatch.TraceCore()
        self._thread_set: ThreadSet | None = None
        self._place: Callable[[socket.socket, Any], None] | None = None
        super().__init__(
            demultiplexer, self.trace_core, 1 if strict else _EVENTS_PER_WAIT, on_error
        )

    # Handles

    def register_handle(
        self, handle: Any, event_handler: EventHandler | CompletionHandler, mask: int | None = None
    ) -> None:
        """Bind a handler to a handle (a file object or descriptor), and wait for `mask`.

        `mask` is READ, WRITE, EXCEPTION or several of them; by default the handler's own.  Raises
        KeyError where the handle is registered already, TypeError for what is no handler, and
        OSError where the demultiplexer refuses the handle.
        """
        self._register_flags(handle, event_handler, mask, 0)

    def _register_flags(self, handle: Any, handler: Any, mask: int | None, flags: int) -> None:
        if not isinstance(handler, (EventHandler, CompletionHandler)):
            raise TypeError(f"an EventHandler was expected, got {handler!r}")
        if isinstance(handler, CompletionHandler):
            if not self._reads_for_handlers:
                raise TypeError(
                    f"{type(handler).__name__} handles finished reads, and nobody reads for it"
                    " here: use SimulatedProactor mode, HalfSyncHalfAsync or a Proactor"
                )
            flags |= _dispatch.CHANNEL
        handler._bind(self)
        try:
            self._register(
                _descriptor(handle), handler, handle, handler.mask if mask is None else mask, flags
            )
        except BaseException:
            handler._unbind(self)
            raise

    _reads_for_handlers = False

    def remove_handle(self, handle: Any) -> None:
        """Unbind a handle.  Its handler's handle_close() is called once, now or, where one of its
        methods is running, after that.  Raises KeyError where it is not registered."""
        self._remove(_descriptor(handle))

    def modify_handle(self, handle: Any, mask: int) -> None:
        """Change what is waited for.  From inside its handler it takes effect when that returns."""
        self._modify(_descriptor(handle), mask)

    def suspend(self, handle: Any) -> None:
        """Wait for nothing of the handle until resume(); a handler that runs goes on."""
        self._suspend(_descriptor(handle))

    def resume(self, handle: Any) -> None:
        """End suspend(): what has happened meanwhile is reported now."""
        self._resume(_descriptor(handle))

    def write(self, handle: Any, data: bytes) -> int:
        """Have bytes written to a handle that is bound to a CompletionHandler.

        Returns how many bytes are unsent.  A handle with more than 256 KiB of them is not read
        until all are written: its peer sends, and does not read.
        """
        return self._write(_descriptor(handle), data)

    def report_written(self, handle: Any, *, reading: bool = True) -> None:
        """Have a CompletionHandler's handle_write() called, once, when all is written.

        That may be at once.  Where something is read before, handle_read() is called instead;
        without `reading` nothing is read before it.
        """
        self._report_written(_descriptor(handle), reading)

    def handles(self) -> list[int]:
        """Return the descriptors that are registered."""
        return [handle for handle, _ in self._bound()]

    def _adopt(self, sock: socket.socket, factory: Callable[[socket.socket], Any]) -> None:
        """Register an accepted connection, here or where the dispatcher wants it."""
        if self._place is not None:
            self._place(sock, factory)
            return
        self._bind_connection(sock, factory)

    def _bind_connection(
        self, sock: socket.socket, factory: Callable[[socket.socket], Any]
    ) -> None:
        try:
            handler = factory(sock)
        except BaseException as exc:
            sock.close()
            self._report(factory, exc)
            return
        try:
            self.register_handle(sock, handler)
        except BaseException as exc:
            sock.close()
            self._report(handler, exc)

    # Timers and signals

    def schedule_timer(
        self, handler: Any, delay: float, interval: float | None = None, data: Any = None
    ) -> Timer:
        """Have handler.handle_timeout(timer) called after `delay` seconds, then every `interval`.

        It is never early.  The next of an interval waits until the handler has returned, and ends
        when that returns CLOSE or raises.  Raises TypeError and ValueError for what is no time, and
        for an interval of 0, which would leave no time for anything else.
        """
        return self._schedule(handler, delay, interval, data)

    def cancel_timer(self, timer: Timer) -> bool:
        """Cancel a timer; after it the handler is not called any more.  Returns False where it
        has run already.  One that is running in another thread runs to its end."""
        return self._cancel(timer)

    def register_signal(self, number: int, handler: Any) -> None:
        """Have handler.handle_signal(number) called for each signal of that number.

        The signal is blocked in the calling thread; do it, and undo it, in the main thread.
        """
        self._add_signal(number, handler)

    def remove_signal(self, number: int) -> None:
        """Give the signal back to who had it before.  In the thread that registered it."""
        self._remove_signal(number)

    # Events

    def wait_for_event(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; None when the `timeout`, in seconds, is over.

        The event is to be given to dispatch(), by this thread or another one.  Raises
        NotLeaderError where another thread waits, or leads the thread set.
        """
        if self._thread_set is not None and not self._thread_set._is_leader():
            raise NotLeaderError("only the leader of the thread set may wait for events")
        event = self._wait(timeout)
        return None if event is None else Event(event[0], event[2], event[1], event[3])

    def dispatch(self, event: Event) -> None:
        """Call the handler of an event, then wait for its handle again."""
        self._handle(event._core())

    def handle_events(self, timeout: float | None = None) -> int:
        """Wait for an event and handle it and all others that came with it; returns how many.

        One wait serves handles, timers and signals.
        """
        event = self.wait_for_event(timeout)
        count = 0
        while event is not None:
            self.dispatch(event)
            count += 1
            if count >= _EVENTS_PER_WAIT or self.strict:
                break
            event = self.wait_for_event(0)
        return count

    def stats(self) -> dict[str, int]:
        """Return the counters: waits, events, stale_events, timers, handles."""
        return self._stats()

    def close(self) -> None:
        """Remove what is registered, with handle_close(), and free the set.

        When no thread waits or handles events any more.
        """
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ThreadState(enum.Enum):
    """What a thread of a thread set is doing."""

    FOLLOWER = "FOLLOWER"  # sleeps until it is promoted or given an event
    LEADER = "LEADER"  # waits for events; one at most
    PROCESSING = "PROCESSING"  # handles an event


class ThreadSet(_dispatch.ThreadSetCore):
    """The threads that take turns at a handle set.

    A thread belongs to it from its first join() until leave().
    """

    def __new__(cls, handle_set: HandleSet, *, delegate: bool = False) -> Self:
        return super().__new__(cls, handle_set.trace_core, delegate)

    def __init__(self, handle_set: HandleSet, *, delegate: bool = False) -> None:
        """Make the set without threads.

        `delegate` says what the leader does with an event: gives it to a follower and goes on
        leading, or, by default, promotes a new leader and handles it.
        """
        if handle_set._thread_set is not None:
            raise ValueError("the handle set has a thread set already")
        handle_set._thread_set = self
        self.handle_set = handle_set

    @property
    def leader(self) -> int | None:
        """The native id of the leader's thread; None where nobody leads."""
        for member in self._members():
            if member.state == "LEADER":
                return int(member.native_id)
        return None

    def states(self) -> dict[int, ThreadState]:
        """Return the state of each thread, by native id."""
        return {member.native_id: ThreadState(member.state) for member in self._members()}

    def join(self, timeout: float | None = None) -> Event | None:
        """Follow, until this thread is the leader, or was given an event.

        Returns None as the leader, or the event, to be dispatched by this thread.  Raises
        TimeoutError when `timeout` seconds are over, RuntimeError where the set is closed.
        """
        event = self._join(timeout)
        return None if event is None else Event(event[0], event[2], event[1], event[3])

    def promote_new_leader(self) -> None:
        """Make a follower the leader; this thread is processing from here on.

        Raises NotLeaderError where it is not the leader.
        """
        self._promote()

    def delegate(self, event: Event, follower: int | None = None) -> bool:
        """Give an event to a follower, by native id, or to any; this thread stays the leader.

        Returns False where there is no such follower.  Raises NotLeaderError where this thread is
        not the leader.
        """
        if follower is None:
            return self._delegate(event._core(), None)
        for member in self._members():
            if member.native_id == follower:
                return self._delegate(event._core(), member)
        return False

    def leave(self) -> None:
        """Take this thread out; a leader makes room for a follower."""
        self._leave()

    def run(self) -> None:
        """Take turns until the set is closed: follow, lead, promote, handle."""
        self._run_member(self.handle_set)

    def close(self) -> None:
        """Make every thread leave."""
        self._close()
        self.handle_set._wake()


def _descriptor(handle: Any) -> int:
    return handle if isinstance(handle, int) else int(handle.fileno())
