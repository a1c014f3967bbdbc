"""ProcessPool: a concurrent.futures executor whose calls and results go through shared memory.

    submit() -> requests -> worker process -> results -> the manager thread -> future

Both queues are SharedRequestQueues.  A worker that dies is replaced, and its call fails or is made
again; the others do not notice.  Two threads of the parent look after the pool: the manager takes
results, and the supervisor sleeps until a worker's pidfd says that it has ended.

For each call that is on its way there is a place in a table, in shared memory as well.  The parent
writes a ticket there, a number that is used once, and the worker that begins the call writes the
ticket and its own number beside it.  So when a worker dies the parent knows which call it was
making; and a call that comes to a second worker, because the first died before it had said that it
took it over, is made there, or dropped, if it was begun.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import select
import signal
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, _base
from concurrent.futures.process import BrokenProcessPool, _ExceptionWithTraceback
from functools import partial
from typing import Any, ParamSpec, TypeVar

from pyreactor.shm import QueueClosed, Segment, SharedRequestQueue
from pyreactor.thread_pool import PoolFuture

__all__ = ["BrokenProcessPool", "ProcessPool", "WorkerDied"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PREFETCH = 1  # calls beside those that run, so that no worker waits for the manager
_BULK_BYTES = 64 << 20
_ORPHAN_SECONDS = 2.0  # how long a worker may wait without looking whether its parent lives
_STARTS_MAX = 3  # in a row that end before the worker was ready: then it never will be

_CALL = struct.Struct("<QQ")  # ticket, place in the table
_RESULT = struct.Struct("<BQQ")  # what it is, ticket or worker, place in the table or its death

# What a result is.
_RETURNED, _RAISED, _INITIALIZER_FAILED, _WORKER_ENDED = range(4)

_STARTING, _READY, _USELESS = range(3)  # a worker's word in the table

_ENTRY_WORDS = 2  # of a place: the ticket, and the ticket and worker that has begun it
_WORKER_BITS = 16  # of a word that names a ticket and a worker


class WorkerDied(BrokenProcessPool):
    """The process that was making this call has died; the pool goes on with another."""


# In the worker


def _work(
    index: int,
    serial: int,
    requests: SharedRequestQueue,
    results: SharedRequestQueue,
    table: Segment,
    workers: int,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    calls_max: int | None,
) -> None:
    """What a worker process does from its start to its end."""
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as exc:
            _base.LOGGER.critical("Exception in initializer:", exc_info=True)
            results._put_parts(_RESULT.pack(_INITIALIZER_FAILED, index, 0), repr(exc).encode())
            with memoryview(table) as memory, memory.cast("Q") as words:
                words[index] = _USELESS
            return
    with memoryview(table) as memory, memory.cast("Q") as words:
        words[index] = _READY
        calls = 0
        while calls_max is None or calls < calls_max:
            try:
                call = _take_call(serial, requests, words, workers)
            except QueueClosed:
                return
            except TimeoutError:
                if not _parent_lives():
                    return
                continue
            if call is not None:
                ticket, place, function, arguments, keywords, error = call
                del call
                _make_call(results, ticket, place, function, arguments, keywords, error)
                del function, arguments, keywords, error
                calls += 1


def _parent_lives() -> bool:
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def _take_call(serial: int, requests: SharedRequestQueue, words: Any, workers: int) -> Any:
    """Take a call over, so that it is known to be ours; None for one that was begun already."""
    delivery = requests._take_view(_ORPHAN_SECONDS)
    try:
        ticket, place = _CALL.unpack_from(delivery.item)
        entry = workers + place * _ENTRY_WORDS
        if words[entry] != ticket or words[entry + 1] >> _WORKER_BITS == ticket:
            return None
        words[entry + 1] = ticket << _WORKER_BITS | serial
        try:
            function, arguments, keywords = pickle.loads(delivery.item[_CALL.size :])
        except BaseException as exc:
            return ticket, place, None, (), {}, exc
        return ticket, place, function, arguments, keywords, None
    finally:
        delivery.item.release()
        delivery.ack()


def _make_call(
    results: SharedRequestQueue,
    ticket: int,
    place: int,
    function: Any,
    arguments: Any,
    keywords: Any,
    error: BaseException | None,
) -> None:
    """Make the call and put what comes of it."""
    kind, body = _RAISED, b""
    try:
        if error is not None:
            raise error
        result = function(*arguments, **keywords)
        kind, body = _RETURNED, pickle.dumps(result, 5)
        results._put_parts(_RESULT.pack(kind, ticket, place), body)
    except QueueClosed:
        pass  # nobody is interested any more
    except BaseException as exc:
        body = _dump_exception(exc)
        results._put_parts(_RESULT.pack(_RAISED, ticket, place), body)
    finally:
        del error


def _dump_exception(exc: BaseException) -> bytes:
    traceback: Any = exc.__traceback__
    try:
        dumped = pickle.dumps(_ExceptionWithTraceback(exc, traceback), 5)
        pickle.loads(dumped)
        return dumped
    except BaseException:
        # What cannot travel is told of in words.
        instead = RuntimeError(f"the call raised what cannot be pickled: {exc!r}")
        return pickle.dumps(_ExceptionWithTraceback(instead, traceback), 5)


# In the parent


class _Call:
    """A call from submit() to its end."""

    __slots__ = ("attempts", "body", "future", "ticket")

    def __init__(self, future: Future[Any], body: bytes) -> None:
        self.future = future
        self.body = body  # kept as long as it may have to be made again
        self.ticket = 0
        self.attempts = 0


class _Worker:
    """A place for a worker process, and the process that has it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Any = None
        self.serial = 0  # of the process: no other of late has had it
        self.pidfd = -1
        self.failed_starts = 0


class _State:
    """The pool without its executor, which may be forgotten while calls are still made."""

    def __init__(
        self,
        workers: int,
        context: Any,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        calls_max: int | None,
        retries: int,
        break_on_death: bool,
        bulk_bytes: int,
    ) -> None:
        self.context = context
        self.retries = retries
        self.break_on_death = break_on_death
        self.owner = os.getpid()
        places = workers * (1 + _PREFETCH)
        capacity = 2 * places + workers
        self.requests = SharedRequestQueue(
            capacity, policy="at_least_once", bulk_bytes=bulk_bytes, participants=2 * workers + 66
        )
        self.results = SharedRequestQueue(
            capacity, policy="at_least_once", bulk_bytes=bulk_bytes, participants=2 * workers + 66
        )
        self.table = Segment(8 * (workers + places * _ENTRY_WORDS))
        self._words = memoryview(self.table).cast("Q")
        self._first_entry = workers
        self.worker_arguments = (workers, initializer, initargs, calls_max)

        self.lock = threading.Lock()  # all below
        self.free_places = list(range(places))
        self.under_way: dict[int, _Call] = {}  # by place
        self.backlog: deque[_Call] = deque()
        self.tickets = itertools.count(1)
        self.broken: str | None = None
        self.breaks_with: str | None = None  # why, once a worker has ended that has found it out
        self.closing = False
        self.serials = itertools.count(1)
        self.workers = [_Worker(index) for index in range(workers)]
        self.processes: dict[int, Any] = {}

        self.wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.manager = threading.Thread(target=self._manage, name="process-pool-manager")
        self.supervisor = threading.Thread(target=self._supervise, name="process-pool-supervisor")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.wakeup)  # by then the interpreter's end may have taken the name

    # Workers

    def start(self) -> None:
        """Start the processes, then the threads: a process that is forked has only the others."""
        for worker in self.workers:
            self._start_worker(worker)
        self.manager.start()
        self.supervisor.start()

    def _start_worker(self, worker: _Worker) -> None:
        self._words[worker.index] = _STARTING
        worker.serial = next(self.serials) % (1 << _WORKER_BITS)
        process = self.context.Process(
            target=_work,
            args=(
                worker.index,
                worker.serial,
                self.requests,
                self.results,
                self.table,
                *self.worker_arguments,
            ),
        )
        process.start()
        worker.process = process
        try:
            worker.pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            worker.pidfd = -1  # it has ended already; its sentinel says so
        with self.lock:
            self.processes[process.pid] = process
            broken = self.broken is not None
        if broken:
            process.kill()  # meanwhile: it was not among those that were killed

    def _supervise(self) -> None:
        """The supervisor: replaces workers that end, until the pool closes and all have."""
        try:
            while True:
                ended = self._wait_for_ends()
                for worker in ended:
                    self._bury(worker)
                with self.lock:
                    ending = self.closing and not self.under_way and not self.backlog
                    ending = ending or self.broken is not None
                if ending:
                    self.requests.close()
                alive = any(worker.process is not None for worker in self.workers)
                if ending and not alive:
                    return
                if not ending:
                    for worker in ended:
                        self._replace(worker)
        except BaseException as exc:
            self._break(f"the pool's supervisor failed: {exc!r}")
            raise
        finally:
            self.results.close()

    def _wait_for_ends(self) -> list[_Worker]:
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        by_descriptor = {}
        for worker in self.workers:
            if worker.process is not None:
                descriptor = worker.pidfd if worker.pidfd >= 0 else worker.process.sentinel
                by_descriptor[descriptor] = worker
                poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll()]
        if self.wakeup in ready:
            os.eventfd_read(self.wakeup)
        return [by_descriptor[descriptor] for descriptor in ready if descriptor != self.wakeup]

    def _bury(self, worker: _Worker) -> None:
        """See to what a worker leaves behind that has ended."""
        process = worker.process
        process.join()
        exit_code = process.exitcode
        if worker.pidfd >= 0:
            os.close(worker.pidfd)
        worker.process, worker.pidfd = None, -1
        with self.lock:
            self.processes.pop(process.pid, None)
        if self._words[worker.index] == _STARTING:
            worker.failed_starts += 1
        else:
            worker.failed_starts = 0
        # What it had not begun comes to another; what it has put is whole, or never was.  The
        # manager hears of its end behind all its results.
        self.requests.clear()
        self.results.clear()
        try:
            self.results._put_parts(
                _RESULT.pack(_WORKER_ENDED, worker.serial, exit_code != 0),
                _how_it_ended(exit_code).encode(),
            )
        except QueueClosed:
            pass

    def _replace(self, worker: _Worker) -> None:
        if self._words[worker.index] == _USELESS:
            return  # the pool is about to break
        if worker.failed_starts >= _STARTS_MAX:
            self._break(f"a worker process ended {_STARTS_MAX} times before it was ready")
            return
        try:
            self._start_worker(worker)
        except BaseException as exc:
            self._break(f"a worker process could not be started: {exc!r}")

    def wake_supervisor(self) -> None:
        """Make it look whether the pool is to end.  Any thread."""
        os.eventfd_write(self.wakeup, 1)

    # Calls

    def submit(self, future: Future[Any], call: tuple[Any, ...]) -> None:
        """Have a call made; raises where the pool takes none."""
        self._check_open()
        try:
            body = pickle.dumps(call, 5)
        except BaseException as exc:
            future.set_running_or_notify_cancel()
            future.set_exception(exc)
            return
        with self.lock:
            self._check_open()
            self.backlog.append(_Call(future, body))
            too_large = self._feed()
        _fail_all(too_large)

    def _check_open(self) -> None:
        if self.broken is not None:
            raise BrokenProcessPool(self.broken)
        if _pools.ended:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if os.getpid() != self.owner:
            raise RuntimeError(
                "cannot schedule new futures in a forked child: the pool is the parent's; make a "
                "pool in the child"
            )

    def _feed(self) -> list[tuple[_Call, BaseException]]:
        """Put calls of the backlog as long as there are places; return those that cannot be.

        With the lock held.
        """
        failed: list[tuple[_Call, BaseException]] = []
        while self.backlog and self.free_places:
            call = self.backlog[0]
            if call.attempts == 0 and not call.future.set_running_or_notify_cancel():
                self.backlog.popleft()
                continue
            call.attempts = call.attempts or 1
            place = self.free_places[-1]
            call.ticket = next(self.tickets)
            entry = self._first_entry + place * _ENTRY_WORDS
            self._words[entry] = call.ticket
            try:
                put = self.requests._put_parts(_CALL.pack(call.ticket, place), call.body, 0)
            except QueueClosed:
                return failed
            except Exception as exc:
                self.backlog.popleft()
                failed.append((call, exc))
                continue
            if not put:
                return failed  # the arena is full of calls under way: one's end makes room
            self.free_places.pop()
            self.backlog.popleft()
            self.under_way[place] = call
        return failed

    def _manage(self) -> None:
        """The manager: takes results, until the supervisor says that there will be no more."""
        while True:
            try:
                delivery = self.results._take_view()
            except QueueClosed:
                break
            try:
                kind, number, place = _RESULT.unpack_from(delivery.item)
                body = delivery.item[_RESULT.size :]
                if kind in (_RETURNED, _RAISED):
                    self._end_call(kind, number, place, body)
                elif kind == _WORKER_ENDED:
                    self._end_calls_of(number, bool(place), bytes(body).decode())
                elif kind == _INITIALIZER_FAILED:
                    # When that worker has ended, with what it still has to log.
                    self.breaks_with = (
                        "A process initializer failed, the process pool is not usable anymore: "
                        + bytes(body).decode()
                    )
                body.release()
            finally:
                delivery.item.release()
                delivery.ack()
        self._fail_everything(self.broken or "the pool has ended")

    def _end_call(self, kind: int, ticket: int, place: int, body: Any) -> None:
        result, error = None, None
        try:
            loaded = pickle.loads(body)
        except BaseException as exc:
            kind, loaded = _RAISED, exc
        finally:
            body.release()
        if kind == _RETURNED:
            result = loaded
        else:
            error = loaded
        with self.lock:
            call = self.under_way.get(place)
            if call is None or call.ticket != ticket:
                return  # it was made twice: only what it was waited for counts
            self._release(place)
            failed = self._feed()
        self._look_for_end()
        if error is not None:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)
        _fail_all(failed)

    def _release(self, place: int) -> _Call:
        self._words[self._first_entry + place * _ENTRY_WORDS] = 0
        self.free_places.append(place)
        return self.under_way.pop(place)

    def _look_for_end(self) -> None:
        if self.closing:
            self.wake_supervisor()

    def _end_calls_of(self, serial: int, died: bool, how: str) -> None:
        """A worker has ended: see to the call that it was making."""
        failed: list[tuple[_Call, BaseException]] = []
        with self.lock:
            for place, call in list(self.under_way.items()):
                begun = self._words[self._first_entry + place * _ENTRY_WORDS + 1]
                if begun != call.ticket << _WORKER_BITS | serial:
                    continue
                self._release(place)
                if call.attempts <= self.retries:
                    call.attempts += 1
                    self.backlog.appendleft(call)
                else:
                    failed.append((call, WorkerDied(f"the worker process {how} during this call")))
            broken = died and self.break_on_death and self.broken is None
            failed += self._feed()
        if self.breaks_with is not None:
            self._break(self.breaks_with)
        elif broken:
            self._break(
                f"A process in the process pool was terminated abruptly while the future was "
                f"running or pending: it {how}"
            )
        self._look_for_end()
        _fail_all(failed)

    # The end

    def _break(self, reason: str, *, gently: bool = False) -> None:
        """Make the pool useless: kill the workers, and fail all calls.  Any thread."""
        with self.lock:
            if self.broken is None:
                self.broken = reason
            processes = list(self.processes.values())
        for process in processes:
            if gently:
                process.terminate()
            else:
                process.kill()
        self.requests.close()
        self._fail_everything(self.broken)
        self.wake_supervisor()

    def _fail_everything(self, reason: str) -> None:
        with self.lock:
            calls = [*self.under_way.values(), *self.backlog]
            self.under_way.clear()
            self.backlog.clear()
        for call in calls:
            if call.attempts > 0 or call.future.set_running_or_notify_cancel():
                call.future.set_exception(BrokenProcessPool(reason))

    def shut_down(self, cancel_futures: bool = False) -> None:
        """Refuse calls from now on, and end when all that there are have.  Any thread."""
        if os.getpid() != self.owner:
            return  # a forked child's copy
        cancelled = []
        with self.lock:
            self.closing = True
            if cancel_futures:
                waiting = [call for call in self.backlog if call.attempts == 0]
                self.backlog = deque(call for call in self.backlog if call.attempts > 0)
                cancelled = waiting
            failed = self._feed()  # which drops what was cancelled
        for call in cancelled:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        _fail_all(failed)
        self.wake_supervisor()

    def join(self) -> None:
        """Wait until the workers and the threads have ended."""
        if os.getpid() != self.owner:
            return
        for thread in (self.supervisor, self.manager):
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with status {code}"


def _fail_all(failed: Iterable[tuple[_Call, BaseException]]) -> None:
    for call, error in failed:
        call.future.set_exception(error)


class _Pools:
    """All pools of the process: what has to happen to them at its end."""

    def __init__(self) -> None:
        self._states: weakref.WeakSet[_State] | None = None
        self._lock = threading.Lock()
        self.ended = False

    def add(self, state: _State) -> None:
        with self._lock:
            if self._states is None:
                threading._register_atexit(self._end)  # type: ignore[attr-defined]
                self._states = weakref.WeakSet()
            self._states.add(state)

    def _end(self) -> None:
        self.ended = True
        states = list(self._states or ())
        for state in states:
            state.shut_down()
        for state in states:
            state.join()


_pools = _Pools()


class ProcessPool(Executor):
    """Worker processes, all started with the pool, that take calls from shared memory.

    It is a `concurrent.futures.Executor`.  Functions, arguments and results are pickled into shared
    memory; no pipe carries them.  A worker that dies is replaced.  The call that it was making is
    made again up to `retries` times, and fails with WorkerDied after that; with `break_on_death`
    the whole pool breaks instead, as the stdlib's does.

    `max_workers` is how many processes there are, by default as many as processors.  `mp_context`
    says how they are started, by default by a fork server, which is itself started afresh and has
    no threads.  `initializer(*initargs)` runs first in each; should it raise, the pool is broken.
    With `max_tasks_per_child` a worker ends after so many calls, and another takes its place.
    `bulk_bytes` is the shared memory for calls, and as much again for results, that are larger than
    224 bytes; a call or a result for which it can never be enough fails.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
        break_on_death: bool = False,
        bulk_bytes: int = _BULK_BYTES,
    ) -> None:
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0))
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_workers >= 1 << _WORKER_BITS - 5:
            raise ValueError(f"max_workers must be less than {1 << _WORKER_BITS - 5}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None and not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child is not None and max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if retries < 0:
            raise ValueError("retries must be >= 0")
        if mp_context is None:
            mp_context = multiprocessing.get_context("forkserver")
        if max_tasks_per_child and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child would fork later, when there are threads: use 'forkserver' or "
                "'spawn'"
            )
        self._max_workers = max_workers
        self._mp_context = mp_context
        self._state = _State(
            max_workers,
            mp_context,
            initializer,
            initargs,
            max_tasks_per_child,
            retries,
            break_on_death,
            bulk_bytes,
        )
        self._closer = weakref.finalize(self, self._state.shut_down)
        self._closer.atexit = False  # _Pools does that, and waits
        _pools.add(self._state)
        try:
            self._state.start()
        except BaseException:
            self._state._break("the pool could not be started")
            raise

    @property
    def queue(self) -> SharedRequestQueue:
        """The request queue between the pool and its processes."""
        return self._state.requests

    @property
    def _broken(self) -> str | bool:
        return self._state.broken or False

    @property
    def _processes(self) -> dict[int, Any]:
        return self._state.processes

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are there now."""
        return list(self._state.processes)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have fn(*args, **kwargs) called by a process, and return its future.  Any thread.

        Never waits: what the workers cannot take yet waits in the parent, where it can be
        cancelled.  Raises RuntimeError after shutdown(), and BrokenProcessPool.
        """
        future: PoolFuture[_T] = PoolFuture()
        self._state.submit(future, (fn, args, kwargs))
        return future

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[_T]:
        """Call fn for the items of the iterables, `chunksize` of them in one request."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        results = super().map(partial(_call_chunk, fn), chunks, timeout=timeout, **options)
        return _flatten(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse calls from now on; those that wait are still made.

        With `cancel_futures` those that no worker has yet are cancelled instead.  With `wait` it
        returns when the processes have ended.  Any thread; may be called again.
        """
        self._state.shut_down(cancel_futures)
        if wait:
            self._state.join()

    def terminate_workers(self) -> None:
        """Send all workers SIGTERM.  Calls that have not ended fail: the pool is broken after it.

        Does not wait for them to end.  Any thread.
        """
        self._state._break("the pool's workers were terminated", gently=True)

    def kill_workers(self) -> None:
        """Do what terminate_workers() does, with SIGKILL."""
        self._state._break("the pool's workers were killed")


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _call_chunk(fn: Callable[..., _T], chunk: tuple[tuple[Any, ...], ...]) -> list[_T]:
    return [fn(*arguments) for arguments in chunk]


def _flatten(results: Iterator[list[_T]]) -> Iterator[_T]:
    for chunk in results:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
