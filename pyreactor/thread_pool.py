"""ThreadPool: a concurrent.futures executor whose queue is a RequestQueue."""

from __future__ import annotations

import itertools
import os
import queue as queue_module
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, _base
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, ParamSpec, TypeVar

from pyreactor._thread_pool import FutureCore, run_item, run_worker, submit_call
from pyreactor.request_queue import QueueClosed, RequestQueue

__all__ = ["BrokenThreadPool", "PoolFuture", "ThreadPool"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_QUEUE_CAPACITY = 2**16  # calls; a slot has 32 bytes
_WORKERS_MAX = 32

_numbers = itertools.count()


class PoolFuture(FutureCore, Future[_T]):
    """The future that ThreadPool.submit() returns: a concurrent.futures.Future."""

    _condition: Any  # FutureCore's

    __init__ = object.__init__  # FutureCore has made all that Future's would


class _Pools:
    """All pools of the process: what has to happen to them at its end, and in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: weakref.WeakSet[_State] | None = None
        self.ended = False

    def add(self, state: _State) -> None:
        with self._lock:
            if self._states is None:
                # Before the interpreter waits for the threads that are left, as the stdlib does.
                threading._register_atexit(self._end)  # type: ignore[attr-defined]
                os.register_at_fork(after_in_child=self._disown)
                self._states = weakref.WeakSet()
            self._states.add(state)

    def _end(self) -> None:
        self.ended = True
        states = list(self._states or ())
        for state in states:
            state.queue.close()
        for state in states:
            state.join()

    def _disown(self) -> None:
        self._lock = threading.Lock()
        for state in list(self._states or ()):
            state.forked = True
            state.queue.close()


_pools = _Pools()


class _State:
    """What the workers share with their pool, which they outlive where it is forgotten."""

    def __init__(
        self,
        queue: RequestQueue[Any],
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self.queue = queue
        self.threads: set[threading.Thread] = set()
        self.broken: str | None = None
        self.forked = False
        self._initializer = initializer
        self._initargs = initargs

    def work(self) -> None:
        """What a worker does from its start to its end."""
        if self._initializer is not None:
            try:
                self._initializer(*self._initargs)
            except BaseException:
                _base.LOGGER.critical("Exception in initializer:", exc_info=True)
                self._break("A thread initializer failed, the thread pool is not usable anymore")
                return
        run_worker(self.queue)

    def _break(self, reason: str) -> None:
        self.broken = reason
        self.queue.close()
        for item in self.drain():
            item.set_exception(BrokenThreadPool(reason))

    def drain(self) -> list[FutureCore]:
        """Take the calls that nobody has taken yet out of the closed queue.

        What others have put there cannot be cancelled, and is handled.
        """
        left: list[FutureCore] = []
        try:
            while True:
                item = self.queue.try_get(self)
                if item is self:
                    return left
                if isinstance(item, FutureCore):
                    left.append(item)
                else:
                    run_item(item)
        except QueueClosed:
            return left

    def join(self) -> None:
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join()


class ThreadPool(ThreadPoolExecutor):
    """Threads that are all started with the pool, and take calls out of a request queue.

    It is a `concurrent.futures.Executor`, and an instance of ThreadPoolExecutor, as which asyncio
    wants its default executor: `loop.set_default_executor(pool)`.  `max_workers` is how many
    threads there are, by default a few more than processors.  `initializer(*initargs)` runs first
    in each; should it raise, the pool is broken.

    `queue` takes the calls: a RequestQueue.  Others may put callables without arguments into it,
    and a dispatcher may share it: the pool's threads handle its requests then, too.  shutdown()
    closes it.  It is bounded.  Where it is full, submit() waits, so that who submits faster than
    the threads work is slowed down (back-pressure); with `wait=False` it raises `queue.Full`
    instead.  One of the pool's own threads never waits for room but makes the oldest call itself.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        queue: RequestQueue[Any] | None = None,
        wait: bool = True,
    ) -> None:
        if max_workers is None:
            max_workers = min(_WORKERS_MAX, _usable_processors() + 4)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._queue: RequestQueue[Any] = RequestQueue(_QUEUE_CAPACITY) if queue is None else queue
        self._wait = wait
        self._state = _State(self._queue, initializer, initargs)
        self._closer = weakref.finalize(self, self._queue.close)
        self._closer.atexit = False  # _Pools does that, and waits
        _pools.add(self._state)
        prefix = thread_name_prefix or f"{type(self).__name__}-{next(_numbers)}"
        try:
            for index in range(max_workers):
                thread = threading.Thread(target=self._state.work, name=f"{prefix}_{index}")
                thread.start()
                self._state.threads.add(thread)
        except BaseException:
            self._queue.close()
            raise

    @property
    def queue(self) -> RequestQueue[Any]:
        """The request queue between those who submit and the threads."""
        return self._queue

    @property
    def _threads(self) -> set[threading.Thread]:  # type: ignore[override]
        return self._state.threads

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        return self._state.broken or False

    @property
    def _shutdown(self) -> bool:  # type: ignore[override]
        return self._queue.closed

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have fn(*args, **kwargs) called by a thread, and return its future.  Any thread.

        Raises RuntimeError after shutdown(), BrokenThreadPool where an initializer failed, and,
        for a pool made with `wait=False`, queue.Full.
        """
        future: PoolFuture[_T] = PoolFuture()
        try:
            if not submit_call(self._queue, future, fn, args, kwargs):
                self._put_into_full_queue(future)
        except QueueClosed:
            raise self._why_closed() from None
        return future

    def _put_into_full_queue(self, future: FutureCore) -> None:
        if threading.current_thread() in self._state.threads:
            while not self._queue.try_put(future):
                item = self._queue.try_get(self)
                if item is not self:
                    run_item(item)
        elif self._wait:
            self._queue.put(future)
        else:
            raise queue_module.Full(
                f"{self._queue.capacity} calls wait already: submit fewer, or make the pool with "
                "wait=True"
            )

    def _why_closed(self) -> RuntimeError:
        if self._state.broken:
            return BrokenThreadPool(self._state.broken)
        if self._state.forked:
            return RuntimeError(
                "cannot schedule new futures in a forked child: the pool's threads are the "
                "parent's; make a pool in the child"
            )
        if _pools.ended:
            return RuntimeError("cannot schedule new futures after interpreter shutdown")
        return RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse calls from now on; those that wait in the queue are still made.

        With `cancel_futures` they are cancelled instead.  With `wait` it returns when the threads
        have ended.  Any thread; may be called again.
        """
        self._queue.close()
        if cancel_futures:
            for future in self._state.drain():
                future.cancel()  # type: ignore[attr-defined]
                future.set_running_or_notify_cancel()
        if wait:
            self._state.join()


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0))
