"""Units: what a server is composed of, beside its input and output.

    I/O unit        Server, which turns bytes into requests          service_server.py
    request queue   RequestQueue between threads, SharedRequestQueue between processes
    logic unit      LogicUnit: threads or processes that handle requests
    storage unit    SQLiteStorage, FileStorage, CacheStorage, or a StorageUnit of one's own

    logic = LogicUnit(handle, kind="process", workers=4, storage=SQLiteStorage("data.db"))
    Server(Service(logic.call), address).run()

Each is replaced by changing how it is made, and nothing else: a handler does not know whether it
runs in a thread or in a process, which queue brought its request, or what keeps its data.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, Protocol, Self

from pyreactor.process_pool import ProcessPool, WorkerDied
from pyreactor.request_queue import QueueClosed, RequestQueue
from pyreactor.shm import SharedRequestQueue
from pyreactor.storage import CacheStorage, FileStorage, SQLiteStorage, StorageUnit
from pyreactor.thread_pool import PoolFuture, ThreadPool

__all__ = [
    "CacheStorage",
    "FileStorage",
    "LogicUnit",
    "RequestQueueLike",
    "SQLiteStorage",
    "StorageUnit",
]

_QUEUE_CAPACITY = 1024
_RETRIES = 2**31 - 1  # a worker that dies is replaced, however often

log = logging.getLogger("pyreactor.units")


class RequestQueueLike(Protocol):
    """What a logic unit asks of a queue.

    `semantics` tells what becomes of a request whose worker dies: "at_most_once" or
    "at_least_once".  take() gives a delivery: a context manager whose value is the item, and which
    is acknowledged at the end of its block; its `deliveries` tells how many times that item has
    been taken.
    """

    @property
    def semantics(self) -> str: ...

    def put(self, item: Any, timeout: float | None = None) -> None: ...

    def take(self, timeout: float | None = None) -> Any: ...

    def close(self) -> None: ...

    @property
    def closed(self) -> bool: ...


def _serve(
    handler: Callable[..., Any], requests: Any, replies: Any, storage: Any, max_deliveries: int
) -> int:
    """What a worker of a logic unit does, thread or process: returns how many it has handled."""
    handled = 0
    more = () if storage is None else (storage,)
    while True:
        try:
            delivery = requests.take()
        except QueueClosed:
            return handled
        with delivery as (number, request):
            try:
                if delivery.deliveries > max_deliveries:
                    raise WorkerDied(
                        f"the request was given up: {max_deliveries} workers, one after the other, "
                        "have ended while they handled it"
                    )
                reply = (number, True, handler(request, *more))
            except Exception as exc:
                if not number:  # whoever waits for the answer is told instead
                    log.exception("a request without an answer has failed: %.200r", request)
                reply = (number, False, exc)
            handled += 1
            if number:
                _answer(replies, reply)


def _answer(replies: Any, reply: tuple[int, bool, Any]) -> None:
    try:
        replies.put(reply)
    except QueueClosed:
        pass  # nobody waits any more
    except Exception as exc:
        # It cannot be pickled, or is too large: whoever waits is told so.
        replies.put((reply[0], False, RuntimeError(f"the answer cannot be sent: {exc}")))


_here: tuple[Any, ...] = ()  # in a worker process: what its pool was made with


def _adopt(*arguments: Any) -> None:
    global _here
    _here = arguments


def _serve_here() -> int:
    return _serve(*_here)


class LogicUnit:
    """Workers that take requests out of a queue and handle them.

    `handler(request)` returns the answer, or `handler(request, storage)` where there is a storage
    unit.  `kind` is "thread" or "process"; a handler for processes is one that can be imported
    there.  `queue` is the request queue, by default a RequestQueue for threads, and for processes a
    SharedRequestQueue that delivers at least once.  A worker process that dies is replaced; what
    becomes of its request is the queue's to say.  One that is delivered again and again, because
    each worker dies of it, is given up after `max_deliveries`: whoever waits for the answer gets
    WorkerDied.

    Requests come by call(), submit() and put(), from any thread.  stop() closes the queue.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        queue: Any = None,
        *,
        kind: Literal["thread", "process"] = "thread",
        workers: int | None = None,
        storage: StorageUnit | None = None,
        max_deliveries: int = 3,
        mp_context: Any = None,
    ) -> None:
        if kind not in ("thread", "process"):
            raise ValueError(f"the kind is 'thread' or 'process', not {kind!r}")
        if not callable(handler):
            raise TypeError("the handler is a function that takes a request")
        if max_deliveries < 1:
            raise ValueError("max_deliveries is how often a request is tried: at least once")
        self.kind = kind
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.queue: Any
        self._replies: Any
        if kind == "thread":
            self.queue = RequestQueue(_QUEUE_CAPACITY) if queue is None else queue
            self._replies = RequestQueue(_QUEUE_CAPACITY)
        else:
            if queue is None:
                queue = SharedRequestQueue(_QUEUE_CAPACITY, policy="at_least_once")
            self._check_queue(kind, queue)
            self.queue = queue
            self._replies = SharedRequestQueue(_QUEUE_CAPACITY)
        self._pool: ThreadPool | ProcessPool
        arguments = (handler, self.queue, self._replies, storage, max_deliveries)
        serve: Callable[[], int]
        if kind == "thread":
            self._pool = ThreadPool(workers, "logic-unit")
            serve = functools.partial(_serve, *arguments)
        else:
            # Queues reach a process only when it is started, and each time that it is.
            self._pool = ProcessPool(workers, mp_context, _adopt, arguments, retries=_RETRIES)
            serve = _serve_here
        for _ in range(self._pool._max_workers):
            self._pool.submit(serve)
        self._receiver = threading.Thread(target=self._receive, name="logic-unit-replies")
        self._receiver.start()

    @staticmethod
    def _check_queue(kind: str, queue: Any) -> None:
        """Raise TypeError for a queue that does not reach the workers; None is the unit's own."""
        if kind == "process" and queue is not None and not isinstance(queue, SharedRequestQueue):
            raise TypeError(
                f"a {type(queue).__name__} does not reach other processes: use a SharedRequestQueue"
            )

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return self._pool._max_workers

    @property
    def semantics(self) -> str:
        """The queue's: 'at_most_once' or 'at_least_once'."""
        return str(self.queue.semantics)

    def submit(self, request: Any, timeout: float | None = None) -> Future[Any]:
        """Put a request into the queue, and return the future of its answer.

        Waits for room at most `timeout` seconds.  Raises TimeoutError or QueueClosed.
        """
        return self._submit(request, timeout)[1]

    def _submit(self, request: Any, timeout: float | None) -> tuple[int, Future[Any]]:
        future: PoolFuture[Any] = PoolFuture()
        future.set_running_or_notify_cancel()
        number = next(self._numbers)
        self._waiting[number] = future
        try:
            self.queue.put((number, request), timeout)
        except BaseException:
            del self._waiting[number]
            raise
        return number, future

    def call(self, request: Any, timeout: float | None = None) -> Any:
        """Have a request handled, and return the answer, or raise what the handler raised.

        Raises TimeoutError where there is none after `timeout` seconds, or QueueClosed.  Without a
        timeout it waits for ever where the request was lost: the process that handled it has died,
        and the queue delivers at most once.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        number, future = self._submit(request, timeout)
        try:
            return future.result(None if deadline is None else deadline - time.monotonic())
        except TimeoutError:
            if future.done():
                raise  # the handler's own
            self._waiting.pop(number, None)
            raise TimeoutError(f"the logic unit has not answered within {timeout} s") from None

    def put(self, request: Any, timeout: float | None = None) -> None:
        """Put a request whose answer nobody waits for."""
        self.queue.put((0, request), timeout)

    def _receive(self) -> None:
        while True:
            try:
                number, good, value = self._replies.get()
            except QueueClosed:
                break
            # None: it was delivered twice, and this is the second answer.
            future = self._waiting.pop(number, None)
            if future is not None:
                if good:
                    future.set_result(value)
                else:
                    future.set_exception(value)
        for future in list(self._waiting.values()):
            future.set_exception(QueueClosed("the logic unit was stopped before it answered"))
        self._waiting.clear()

    def stop(self) -> None:
        """Close the queue, let the workers handle what is in it, and wait for their end."""
        if not self._receiver.is_alive():
            return
        self.queue.close()
        self._pool.shutdown()
        self._replies.close()
        self._receiver.join()

    def stats(self) -> dict[str, int]:
        """Return how many requests wait in the queue, and how many answers are waited for."""
        return {"queue_depth": len(self.queue), "waiting": len(self._waiting)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
