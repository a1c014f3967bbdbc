"""Dispatchers: which thread waits, which reads and writes, and which runs the handlers.

    class                        waits        accepts, reads, writes   handlers run in
    Reactor                      main         workers                  workers
    HalfSyncHalfReactive         main         main accepts; workers    workers
      simulated_proactor         main         main                     workers
    HalfSyncHalfAsync            async (k)    async threads            sync threads (n)
    EfficientHalfSyncHalfAsync   each loop    main accepts; loops      loops
    LeaderFollowers              the leader   who handles it           all threads, in turn
    Proactor                     main         the kernel               workers
    SimulatedProactor            main         main                     workers

The last two are in pyreactor.proactor. "main" is the thread that calls run(), or one that start()
makes. A dispatcher is started once and stopped once; `with dispatcher:` does both. Handlers are
registered before or after, from any thread.

Threads do not make Python code run in parallel where there is a GIL: they overlap waiting, and
handlers that block.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

from pyreactor import _dispatch
from pyreactor._demux import DemultiplexerCore
from pyreactor._dispatch import Timer
from pyreactor.demultiplexers import EpollDemultiplexer
from pyreactor.handle_set import ErrorHook, HandleSet, ThreadSet, log_error
from pyreactor.handlers import READ, AcceptHandler, EventHandler
from pyreactor.request_queue import RequestQueue

__all__ = [
    "EfficientHalfSyncHalfAsync",
    "HalfSyncHalfAsync",
    "HalfSyncHalfReactive",
    "LeaderFollowers",
    "Reactor",
    "StepEvent",
]

_QUEUE_CAPACITY = 4096
_CONNECTIONS_CAPACITY = 1024  # accepted, and not yet taken by their loop
_WORKERS_MAX = 32  # of the default, however many processors there are
_WORKERS_PER_CPU_MAX = 64  # above it switching between threads costs more than they gain
_TRACE_POLL_SECONDS = 0.01
_SIGNALS_PER_EVENT = 4096  # bytes, of which Python writes one for each

Demultiplexers = Callable[[], DemultiplexerCore]


def default_workers() -> int:
    """How many workers a dispatcher has by itself: a few more than processors, not too many."""
    return min(_WORKERS_MAX, len(os.sched_getaffinity(0)) + 4)


class StepEvent(NamedTuple):
    """One step of a pattern, as a thread has done it."""

    pattern: str  # the dispatcher's class
    step: str  # its number in that pattern, such as "R4"; "" for what has none
    name: str  # "wait", "put", "take", "handle" ...
    role: str  # of the thread: "main", "worker", "async", "sync", "member", "loop", "application"
    thread_id: int  # native, as in the system's own tools
    fd: int  # -1: of none
    time_ns: int  # on the clock of time.monotonic_ns()


class _Trace(Iterator[StepEvent]):
    """What trace() returns: an iterator and a context manager."""

    def __init__(self, dispatcher: _Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._traces = dispatcher._trace_cores()
        self._steps: list[StepEvent] = []
        for trace in self._traces:
            trace.read()
            trace.on = True

    def __next__(self) -> StepEvent:
        while not self._steps:
            ended = self._dispatcher.stopped or not any(trace.on for trace in self._traces)
            self._steps = self.read()[::-1]
            if not self._steps:
                if ended:
                    self.close()
                    raise StopIteration
                time.sleep(_TRACE_POLL_SECONDS)
        return self._steps.pop()

    def read(self) -> list[StepEvent]:
        """Return the steps that have been done since the last call, oldest first."""
        name = type(self._dispatcher).__name__
        steps = [
            StepEvent(name, self._dispatcher._step(action, role, events), action, role, tid, fd, ns)
            for trace in self._traces
            for action, role, tid, fd, events, ns in trace.read()
        ]
        return sorted(steps, key=lambda step: step.time_ns)

    @property
    def lost(self) -> int:
        """How many steps found no room because they were not read in time."""
        return sum(trace.lost for trace in self._traces)

    def close(self) -> None:
        """Stop tracing."""
        for trace in self._traces:
            trace.on = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Dispatcher:
    """What all dispatchers have: registration, start and stop, counters and the trace."""

    _steps: ClassVar[dict[tuple[str, int], str]] = {}

    def __init__(
        self,
        handle_sets: list[HandleSet],
        *,
        affinity: bool | list[int] | None,
    ) -> None:
        self._handle_sets = handle_sets
        self._threads: list[threading.Thread] = []
        self._started = False
        self.stopped = False
        self._starting = threading.Lock()  # stop() waits until all threads are there
        self._stopping = threading.Lock()
        self._counts = threading.Lock()
        self._ended = False
        self._runner: threading.Thread | None = None  # the thread in run(), until it stops
        self._run_ended = threading.Event()
        self._switches = {"voluntary": 0, "nonvoluntary": 0}
        self._cpus = _cpus(affinity)
        for handle_set in handle_sets:
            handle_set._place = self._place

    @property
    def reads_for_handlers(self) -> bool:
        """Whether handlers get finished reads: CompletionHandlers, not EventHandlers."""
        return self._handle_sets[-1]._reads_for_handlers

    def _is_strict(self) -> bool:
        return self._handle_sets[-1].strict

    # Registration

    def register_handle(self, handle: Any, event_handler: Any, mask: int | None = None) -> None:
        """Bind a handler to a handle; see HandleSet.register_handle().  Any thread."""
        self._next_set().register_handle(handle, event_handler, mask)

    def remove_handle(self, handle: Any) -> None:
        """Unbind a handle; see HandleSet.remove_handle().  Any thread."""
        self._set_of(handle).remove_handle(handle)

    def modify_handle(self, handle: Any, mask: int) -> None:
        """Change what is waited for; see HandleSet.modify_handle().  Any thread."""
        self._set_of(handle).modify_handle(handle, mask)

    def suspend(self, handle: Any) -> None:
        """Wait for nothing of a handle until resume().  Any thread."""
        self._set_of(handle).suspend(handle)

    def resume(self, handle: Any) -> None:
        """End suspend().  Any thread."""
        self._set_of(handle).resume(handle)

    def write(self, handle: Any, data: bytes) -> int:
        """Have bytes written to a handle that is bound to a CompletionHandler; see
        HandleSet.write().  Any thread."""
        return self._set_of(handle).write(handle, data)

    def schedule_timer(
        self, handler: Any, delay: float, interval: float | None = None, data: Any = None
    ) -> Timer:
        """Have handler.handle_timeout() called; see HandleSet.schedule_timer().  Any thread."""
        return self._handle_sets[0].schedule_timer(handler, delay, interval, data)

    def cancel_timer(self, timer: Timer) -> bool:
        """Cancel a timer; see HandleSet.cancel_timer().  Any thread."""
        return self._handle_sets[0].cancel_timer(timer)

    def register_signal(self, number: int, handler: Any) -> None:
        """Have handler.handle_signal() called; see HandleSet.register_signal().

        Before start(), so that the dispatcher's threads block the signal from the beginning.
        """
        self._handle_sets[0].register_signal(number, handler)

    def remove_signal(self, number: int) -> None:
        """Give a signal back; see HandleSet.remove_signal()."""
        self._handle_sets[0].remove_signal(number)

    def stop_accepting(self) -> None:
        """Remove every AcceptHandler: nobody can connect any more, once those that are accepting
        have returned.  Any thread."""
        for handle_set in self._handle_sets:
            for handle, handler in handle_set._bound():
                if isinstance(handler, AcceptHandler):
                    try:
                        handle_set.remove_handle(handle)
                    except KeyError:
                        pass  # somebody else removed it

    def _next_set(self) -> HandleSet:
        return self._handle_sets[0]

    def _set_of(self, handle: Any) -> HandleSet:
        fd = handle if isinstance(handle, int) else handle.fileno()
        for handle_set in self._handle_sets:
            if handle_set._has(fd):
                return handle_set
        raise KeyError(f"descriptor {fd} is not registered")

    def _place(self, sock: socket.socket, factory: Callable[[socket.socket], Any]) -> None:
        """Register a connection that an AcceptHandler has accepted."""
        self._next_set()._bind_connection(sock, factory)

    # Life

    def start(self) -> None:
        """Start the threads and return.  Raises RuntimeError where it was started before."""
        with self._starting:
            self._claim()
            self._start_others()
            self._start_thread(self._main, 0, "main", self._main_name)

    def run(self) -> None:
        """Start the other threads, be the main one, and return after stop() or request_stop().

        Raises RuntimeError where it was started before; KeyboardInterrupt stops it.
        """
        with self._starting:
            self._claim()
            self._runner = threading.current_thread()
        try:
            with _Interrupts(self):
                with self._starting:
                    self._start_others()
                self._main(0)
        finally:
            self._runner = None
            self._run_ended.set()
            self.stop()

    _main_name = "main"

    def _claim(self) -> None:
        if self._started:
            raise RuntimeError("a dispatcher can be started only once")
        self._started = True

    def _start_others(self) -> None:
        """Start the threads beside the main one."""

    def _main(self, index: int) -> None:
        """What the main thread does until stop()."""
        raise NotImplementedError

    def _start_thread(
        self, target: Callable[[int], None], index: int, role: str, name: str
    ) -> None:
        def run() -> None:
            _dispatch.set_role(role)
            if self._cpus:
                os.sched_setaffinity(0, {self._cpus[len(self._threads) % len(self._cpus)]})
            try:
                target(index)
            except BaseException as exc:
                threading.excepthook(
                    threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, thread))
                )
            finally:
                usage = resource.getrusage(resource.RUSAGE_THREAD)
                self._count_switches(usage)

        thread = threading.Thread(target=run, name=f"{type(self).__name__}-{name}")
        self._threads.append(thread)
        thread.start()

    def _count_switches(self, usage: Any) -> None:
        with self._counts:
            self._switches["voluntary"] += usage.ru_nvcsw
            self._switches["nonvoluntary"] += usage.ru_nivcsw

    def request_stop(self) -> None:
        """Ask for the stop and return at once.  Any thread, also in a handler.

        run() returns then; a dispatcher that was started with start() still waits for its stop().
        """
        self._end_waits()

    def stop(self, drain: bool = True, timeout: float | None = None) -> None:
        """Stop: no more events; handlers that run go on to their end; then everything is closed.

        With `drain` the requests that wait in the queue are handled, too; without it their handles
        are closed.  Any thread that is none of the dispatcher's; RuntimeError in those, where
        request_stop() is for handlers.  Raises TimeoutError where handlers still run after
        `timeout` seconds; stop() may be called again then.
        """
        if not self._may_stop():
            raise RuntimeError(
                "a handler cannot stop its dispatcher: it would wait for itself; use request_stop()"
            )
        deadline = _Deadline(timeout)
        if not self._stopping.acquire(timeout=-1 if timeout is None else max(0, timeout)):
            raise TimeoutError(f"another thread still stops it after {timeout} s")
        try:
            if not self._ended:
                self._stop(drain, deadline)
                self._ended = True
        finally:
            self._stopping.release()

    def _may_stop(self) -> bool:
        """Return whether the calling thread can wait for the stop: it does none of the work."""
        return threading.current_thread() not in (self._runner, *self._threads)

    def _stop(self, drain: bool, deadline: _Deadline) -> None:
        with self._starting:
            self._started = True
        self._end_waits()
        self._stop_events(drain, deadline)
        self.stopped = True
        self._join_threads(deadline)
        for handle_set in self._handle_sets:
            handle_set.close()

    def _join_threads(self, deadline: _Deadline, but: str | None = None) -> None:
        """Wait until run() has returned and the threads have ended, but those of a role."""
        if self._runner is not None and not self._run_ended.wait(deadline.left()):
            raise TimeoutError(f"run() has not returned after {deadline.seconds} s")
        for thread in self._threads:
            if but is None or f"-{but}-" not in thread.name:
                _join(thread, deadline)

    def _end_waits(self) -> None:
        """Make the threads that wait for events end.  May be called again; any thread."""
        raise NotImplementedError

    def _interrupt(self, ident: int) -> None:
        """Have the thread that is in run() look for signals, if it is another one."""

    def _stop_events(self, drain: bool, deadline: _Deadline) -> None:
        """After _end_waits(): have the other threads end, too.  May be called again."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # What is to be seen

    def stats(self) -> dict[str, int]:
        """Return the counters.

        waits, events, stale_events, timers, handles   of the handle sets
        queue_depth                                    requests that wait for a worker now
        voluntary, nonvoluntary                        context switches of the threads
        """
        totals: dict[str, int] = {}
        for handle_set in self._handle_sets:
            if handle_set._is_open():
                for name, value in handle_set.stats().items():
                    totals[name] = totals.get(name, 0) + value
        totals["queue_depth"] = self._queue_depth()
        totals.update(self._switches)
        for thread in self._threads:
            for name, value in _switches_of(thread).items():
                totals[name] += value
        return totals

    def _queue_depth(self) -> int:
        return 0

    def threads(self) -> dict[int, str]:
        """Return the names of the running threads by native id."""
        return {
            thread.native_id: thread.name
            for thread in self._threads
            if thread.is_alive() and thread.native_id is not None
        }

    def trace(self) -> _Trace:
        """Start tracing, and return an iterator over the steps that threads do from now on.

        It ends when the dispatcher has stopped.  Leaving it as a context manager ends tracing.
        """
        return _Trace(self)

    def _trace_cores(self) -> list[Any]:
        return [handle_set.trace_core for handle_set in self._handle_sets]

    def _step(self, action: str, role: str, events: int) -> str:
        return self._steps.get((action, events), self._steps.get((action, 0), ""))


class _Interrupts(EventHandler):
    """Lets Python's signal handlers run while the main thread is in run(), as a context manager.

    A signal that comes just before the thread sleeps does not end that sleep; but Python writes a
    byte for each signal, and its arrival is an event.
    """

    def __init__(self, dispatcher: _Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._runner = threading.get_ident()
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._is_main:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
            self._dispatcher._handle_sets[0]._register_flags(
                self._reader, self, READ, _dispatch.INLINE
            )
            self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def handle_event(self, handle: int, event_type: int) -> None:
        """Take the bytes; the handlers run as soon as the main thread runs Python code."""
        self._reader.recv(_SIGNALS_PER_EVENT)
        self._dispatcher._interrupt(self._runner)

    def __exit__(self, *exc_info: object) -> None:
        if self._is_main:
            signal.set_wakeup_fd(self._previous)

    def handle_close(self, handle: int) -> None:
        """When the handle set is closed."""
        self._reader.close()
        self._writer.close()


class _Queued(_Dispatcher):
    """Dispatchers with a request queue between the threads that wait and those that handle."""

    _pump_role = "main"
    _worker_role = "worker"

    def __init__(
        self,
        handle_sets: list[HandleSet],
        workers: int | None,
        queue: str | RequestQueue[Any],
        affinity: bool | list[int] | None,
    ) -> None:
        super().__init__(handle_sets, affinity=affinity)
        self.workers = _worker_count(workers)
        self.queue = _make_queue(queue)
        self._pumps = [
            _dispatch.Pump(handle_set, self.queue, index)
            for index, handle_set in enumerate(handle_sets)
        ]
        self._worker = _dispatch.Worker(self.queue, handle_sets[0].trace_core, self._pumps)

    def _start_others(self) -> None:
        for index in range(self.workers):
            self._start_thread(self._work, index, self._worker_role, f"{self._worker_role}-{index}")
        for index in range(1, len(self._pumps)):
            self._start_thread(self._main, index, self._pump_role, f"{self._pump_role}-{index}")

    def _main(self, index: int) -> None:
        _dispatch.set_role(self._pump_role)
        self._pumps[index].run()

    def _work(self, index: int) -> None:
        self._worker.run()

    def _end_waits(self) -> None:
        for pump in self._pumps:
            pump.stop()

    def _stop_events(self, drain: bool, deadline: _Deadline) -> None:
        if not drain:
            self.queue.close()
        self._join_threads(deadline, but=self._worker_role)
        self.queue.close()
        if not drain:
            self._worker.drop()
        self._join_threads(deadline)
        if not self._worker.wait_for_guests(deadline.left()):
            raise TimeoutError(
                f"others that share the queue still handle requests after {deadline.seconds} s"
            )
        self._worker.leave()

    def _may_stop(self) -> bool:
        return super()._may_stop() and not self._worker.is_guest()

    def _queue_depth(self) -> int:
        return len(self.queue)


class Reactor(_Queued):
    """The main thread waits for readiness and tells workers; they accept, read, write and handle.

    POSA2's Reactor with a thread pool; libevent with workers.
    """

    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("register", 0): "R1",
        ("wait", 1): "R2",
        ("put", 1): "R3",
        ("handle", 1): "R4",
        ("rearm", 2): "R4",
        ("wait", 2): "R5",
        ("put", 2): "R6",
        ("handle", 2): "R7",
    }

    def __init__(
        self,
        demultiplexer: DemultiplexerCore | None = None,
        *,
        workers: int | None = None,
        queue: str | RequestQueue[Any] = "lockfree",
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make a reactor; start() or run() starts it.

        `demultiplexer` is what it waits with, by default epoll.  `workers` is how many threads
        handle events; with many more than processors switching costs more than it gains, which is
        warned of.  `queue` is "lockfree", "mutex" or a RequestQueue.  `affinity` pins the threads
        to processors, all or those of a list, in turn.  `on_error(handler, exception)` is told
        what handlers raise.

        Raises TypeError for asynchronous I/O: that is a Proactor's.
        """
        _refuse_asynchronous(demultiplexer, type(self).__name__)
        handle_set = HandleSet(demultiplexer, strict=strict, on_error=on_error)
        super().__init__([handle_set], workers, queue, affinity)

    @property
    def handle_set(self) -> HandleSet:
        """Its one source of events."""
        return self._handle_sets[0]

    @property
    def strict(self) -> bool:
        """Whether it does exactly the numbered steps."""
        return self.handle_set.strict

    def _start_others(self) -> None:
        if self.strict:
            self.handle_set._let_waiter_add()  # step 1 is the main thread's
        super()._start_others()


class _ReadingHandleSet(HandleSet):
    """A handle set whose pump reads and writes for CompletionHandlers."""

    _reads_for_handlers = True


class _MainAcceptsHandleSet(HandleSet):
    """A handle set whose waiting thread accepts connections itself."""

    def _register_flags(self, handle: Any, handler: Any, mask: int | None, flags: int) -> None:
        if isinstance(handler, AcceptHandler):
            flags |= _dispatch.INLINE
        super()._register_flags(handle, handler, mask, flags)


class _MainReadsHandleSet(_MainAcceptsHandleSet, _ReadingHandleSet):
    """Both."""


class HalfSyncHalfReactive(_Queued):
    """Half-sync/half-async with one asynchronous thread, the main one, which also accepts.

    With mode="reactor" the workers read and write; with "simulated_proactor" the main thread does,
    and workers get finished reads: handlers are CompletionHandlers then.
    """

    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("register", 0): "HR2",
        ("wait", 0): "HR1",
        ("put", 0): "HR3",
        ("take", 0): "HR4",
    }

    def __init__(
        self,
        mode: str = "reactor",
        queue: str | RequestQueue[Any] = "lockfree",
        demultiplexer: DemultiplexerCore | None = None,
        *,
        workers: int | None = None,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make it; the arguments are those of Reactor, and `mode`.

        Raises ValueError for an unknown mode.
        """
        if mode not in ("reactor", "simulated_proactor"):
            raise ValueError(f"the mode is 'reactor' or 'simulated_proactor', not {mode!r}")
        _refuse_asynchronous(demultiplexer, type(self).__name__)
        self.mode = mode
        kind = _MainAcceptsHandleSet if mode == "reactor" else _MainReadsHandleSet
        handle_set = kind(demultiplexer, strict=strict, on_error=on_error)
        super().__init__([handle_set], workers, queue, affinity)

    @property
    def handle_set(self) -> HandleSet:
        """Its one source of events."""
        return self._handle_sets[0]


class HalfSyncHalfAsync(_Queued):
    """Asynchronous threads do the I/O, synchronous ones handle requests; a queue lies between.

    "Asynchronous" here means driven by events from outside, "synchronous" that a thread runs its
    program from top to bottom, waiting where it has to.  (Of an I/O call the same word says who
    copies the bytes, and what is notified: see pyreactor.io_models.)
    """

    _pump_role = "async"
    _worker_role = "sync"
    _main_name = "async-0"
    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("wait", 0): "H2",
        ("read", 0): "H3",
        ("put", 0): "H3",
        ("take", 0): "H3",
        ("handle", 0): "H3",
    }

    def __init__(
        self,
        demultiplexer: Demultiplexers = EpollDemultiplexer,
        *,
        async_threads: int = 1,
        sync_threads: int | None = None,
        queue: str | RequestQueue[Any] = "lockfree",
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make it.  `demultiplexer` makes one for each of `async_threads`; the rest as Reactor.

        Connections are spread over the asynchronous threads in turn.
        """
        _refuse_shared(demultiplexer)
        if not 0 < async_threads < 256:
            raise ValueError("there are 1 to 255 asynchronous threads")
        handle_sets: list[HandleSet] = [
            _MainReadsHandleSet(demultiplexer(), strict=strict, on_error=on_error)
            for _ in range(async_threads)
        ]
        super().__init__(handle_sets, sync_threads, queue, affinity)
        self._turn = 0

    def _next_set(self) -> HandleSet:
        self._turn += 1  # a lost count between two threads only changes whose turn it is
        return self._handle_sets[self._turn % len(self._handle_sets)]

    def _start_thread(
        self, target: Callable[[int], None], index: int, role: str, name: str
    ) -> None:
        super()._start_thread(target, index, "async" if role == "main" else role, name)


class EfficientHalfSyncHalfAsync(_Dispatcher):
    """Each worker keeps an event loop of its own; a connection stays with one of them for life.

    The main thread only accepts and hands over ("one loop per thread" of muduo and Netty).  With
    handoff="reuseport" or "reuseport_cbpf" each loop accepts for itself, on a listening socket of
    its own, and the kernel distributes: by a hash of the addresses, or by the processor that the
    connection came in on.
    """

    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("wait", 0): "HE1",
        ("hand_over", 0): "HE2",
        ("handle", 0): "HE3",
    }

    def __init__(
        self,
        loops: int | None = None,
        handoff: str = "ring",
        demultiplexer: Demultiplexers = EpollDemultiplexer,
        *,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make it with that many loops, by default one for each processor.

        Raises ValueError for an unknown hand-off.
        """
        if handoff not in ("ring", "reuseport", "reuseport_cbpf"):
            raise ValueError(
                f"the hand-off is 'ring', 'reuseport' or 'reuseport_cbpf', not {handoff!r}"
            )
        _refuse_shared(demultiplexer)
        count = len(os.sched_getaffinity(0)) if loops is None else _worker_count(loops)
        self.handoff = handoff
        self._main_set = HandleSet(demultiplexer(), strict=strict, on_error=on_error)
        self._loops = [
            HandleSet(demultiplexer(), strict=strict, on_error=on_error) for _ in range(count)
        ]
        super().__init__([self._main_set, *self._loops], affinity=affinity)
        self._connections: list[RequestQueue[Any]] = [
            RequestQueue(_CONNECTIONS_CAPACITY, kind="spsc") for _ in self._loops
        ]
        self._main_pump = _dispatch.Pump(self._main_set, None, 0)
        self._main_pump.spread_over(zip(self._loops, self._connections, strict=True))
        self._loop_pumps = [_dispatch.Pump(handle_set, None, 0) for handle_set in self._loops]
        self._factory: Callable[[socket.socket], Any] | None = None
        self._turn = 0
        for handle_set in self._loops:
            handle_set._place = None  # a loop keeps what it accepts

    def register_handle(self, handle: Any, event_handler: Any, mask: int | None = None) -> None:
        """Bind a handler to a handle of one of the loops, in turn; an AcceptHandler to the main
        thread, or to all loops where they accept for themselves.  Any thread.

        With hand-off "ring" all AcceptHandlers have the same factory.  Raises ValueError for one
        with another, and for one without `reuse_port` where the loops accept.
        """
        if not isinstance(event_handler, AcceptHandler):
            self._next_set().register_handle(handle, event_handler, mask)
        elif self.handoff == "ring":
            if self._factory not in (None, event_handler.factory):
                raise ValueError("the main thread hands over connections for one factory")
            self._factory = event_handler.factory
            self._main_set._register_flags(handle, event_handler, mask, _dispatch.SPREAD)
        else:
            self._register_everywhere(event_handler)

    def _next_set(self) -> HandleSet:
        self._turn += 1  # a lost count between two threads only changes whose turn it is
        return self._loops[self._turn % len(self._loops)]

    def _register_everywhere(self, acceptor: AcceptHandler) -> None:
        if not acceptor.reuse_port:
            raise ValueError("each loop listens for itself: make the AcceptHandler reuse_port=True")
        acceptors = [acceptor]
        for _ in self._loops[1:]:
            acceptors.append(
                AcceptHandler(
                    acceptor.address,
                    acceptor.factory,
                    family=acceptor.sock.family,
                    backlog=acceptor.backlog,
                    reuse_port=True,
                )
            )
        if self.handoff == "reuseport_cbpf":
            _steer_by_processor(acceptor.sock, len(acceptors))
        for handle_set, one in zip(self._loops, acceptors, strict=True):
            handle_set.register_handle(one, one)

    def _start_others(self) -> None:
        for index in range(len(self._loops)):
            self._start_thread(self._run_loop, index, "loop", f"loop-{index}")

    def _run_loop(self, index: int) -> None:
        handle_set = self._loops[index]

        def adopt(fd: int) -> None:
            assert self._factory is not None  # nothing is handed over without a listener
            try:
                sock = socket.socket(fileno=fd)
            except OSError as error:  # it cannot be told what kind of socket it is
                os.close(fd)
                handle_set._report(self._factory, error)
            else:
                handle_set._bind_connection(sock, self._factory)

        self._loop_pumps[index].run_loop(self._connections[index], adopt)

    def _main(self, index: int) -> None:
        _dispatch.set_role("main")
        while not self._main_pump.stopping:
            self._main_pump.run()

    def _end_waits(self) -> None:
        self._main_pump.stop()

    def _stop_events(self, drain: bool, deadline: _Deadline) -> None:
        for queue in self._connections:
            queue.close()
        for pump in self._loop_pumps:
            pump.stop()
        self._join_threads(deadline)
        for queue in self._connections:
            _dispatch.drop_connections(queue)

    def _queue_depth(self) -> int:
        return sum(len(queue) for queue in self._connections)

    def connections(self) -> list[int]:
        """Return how many handles each loop has."""
        return [len(handle_set.handles()) for handle_set in self._loops]


class LeaderFollowers(_Dispatcher):
    """The threads take turns: one waits, promotes a new leader, and handles what has come."""

    _main_name = "member-0"
    _steps: ClassVar[dict[tuple[str, int], str]] = {
        ("register", 0): "L7",
        ("join", 0): "L14",
        ("lead", 0): "L10",
        ("wait", 0): "L6",
        ("promote", 0): "L4",
        ("delegate", 0): "L12",
        ("handle", 0): "L16",
    }

    def __init__(
        self,
        handle_set: HandleSet | None = None,
        *,
        threads: int | None = None,
        delegate: bool = False,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        on_error: ErrorHook = log_error,
    ) -> None:
        """Make it over a handle set, by default a new one on epoll.

        `delegate` keeps the leader leading: it gives events to followers, while there are any.
        """
        if handle_set is None:
            handle_set = HandleSet(strict=strict, on_error=on_error)
        elif not isinstance(handle_set, HandleSet):
            _refuse_asynchronous(handle_set, type(self).__name__)
            raise TypeError(f"a HandleSet was expected, got {handle_set!r}")
        super().__init__([handle_set], affinity=affinity)
        self.handle_set = handle_set
        self.thread_set = ThreadSet(handle_set, delegate=delegate)
        self.thread_count = _worker_count(threads)

    def _start_others(self) -> None:
        for index in range(1, self.thread_count):
            self._start_thread(self._main, index, "member", f"member-{index}")

    def _main(self, index: int) -> None:
        _dispatch.set_role("member")
        self.thread_set.run()

    def _end_waits(self) -> None:
        self.thread_set.close()

    def _interrupt(self, ident: int) -> None:
        self.thread_set._interrupt(ident)

    def stats(self) -> dict[str, int]:
        """Return the counters, with promotions, delegations, and violations, which are always 0:
        changes of state that the pattern does not have."""
        return {**super().stats(), **self.thread_set._counters()}


class _Deadline:
    """When a stop() is to be over."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Return the seconds that are left; None without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def _join(thread: threading.Thread, deadline: _Deadline) -> None:
    if thread.ident is None:
        return  # the system had no thread for it
    thread.join(deadline.left())
    if thread.is_alive():
        raise TimeoutError(f"{thread.name} still runs after {deadline.seconds} s")


def _worker_count(workers: int | None) -> int:
    if workers is None:
        return default_workers()
    if workers < 1:
        raise ValueError("there must be a thread to handle events")
    most = _WORKERS_PER_CPU_MAX * len(os.sched_getaffinity(0))
    if workers > most:
        warnings.warn(
            f"{workers} threads on {len(os.sched_getaffinity(0))} processors: the time goes into"
            f" switching between them; the default is {default_workers()}",
            RuntimeWarning,
            stacklevel=4,
        )
    return workers


def _make_queue(queue: str | RequestQueue[Any]) -> RequestQueue[Any]:
    if isinstance(queue, RequestQueue):
        return queue
    kinds = {"lockfree": "mpmc", "mutex": "mutex"}
    if queue not in kinds:
        raise ValueError(f"the queue is 'lockfree', 'mutex' or a RequestQueue, not {queue!r}")
    return RequestQueue(_QUEUE_CAPACITY, kind=kinds[queue])  # type: ignore[arg-type]


def _refuse_asynchronous(io: Any, name: str) -> None:
    synchronous = getattr(io, "synchronous", None)
    if synchronous is False:
        raise TypeError(
            f"{name} waits for readiness, and {type(io).__name__} does the I/O itself:"
            " asynchronous I/O is a Proactor's (pyreactor.Proactor)"
        )


def _refuse_shared(demultiplexer: Any) -> None:
    if not callable(demultiplexer):
        raise TypeError("each thread needs a demultiplexer of its own: give the class")


def _cpus(affinity: bool | list[int] | None) -> list[int]:
    if not affinity:
        return []
    return sorted(os.sched_getaffinity(0)) if affinity is True else list(affinity)


def _switches_of(thread: threading.Thread) -> dict[str, int]:
    """The context switches of a running thread."""
    found = {"voluntary": 0, "nonvoluntary": 0}
    try:
        with open(f"/proc/self/task/{thread.native_id}/status") as lines:
            for line in lines:
                name, _, value = line.partition("_ctxt_switches:")
                if value:
                    found[name] = int(value)
    except OSError:
        pass  # it has ended, and counted its switches itself; or there is no descriptor to spare
    return found


def _steer_by_processor(sock: socket.socket, count: int) -> None:
    """Have the kernel give each connection to the listener of the processor it came in on."""
    import ctypes
    import struct

    SO_ATTACH_REUSEPORT_CBPF = 51
    LOAD_CPU, MODULO, RETURN = 0x20, 0x94, 0x16
    AD_CPU = 0xFFFFF000 + 36  # SKF_AD_OFF + SKF_AD_CPU
    instructions = struct.pack(
        "HBBI" * 3, LOAD_CPU, 0, 0, AD_CPU, MODULO, 0, 0, count, RETURN, 0, 0, 0
    )
    buffer = ctypes.create_string_buffer(instructions)
    sock.setsockopt(
        socket.SOL_SOCKET,
        SO_ATTACH_REUSEPORT_CBPF,
        struct.pack("HxxxxxxP", 3, ctypes.addressof(buffer)),
    )
