"""Shared memory: a request queue between processes, and segments for bulk data.

Both live in anonymous files (memfd): they have no name, and end with the last process that uses
them.  A process gets them by inheritance when it is forked, by pickling them to it in
multiprocessing's way, or by their descriptor, passed however one likes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from pyreactor._queue import QueueClosed
from pyreactor._shm import (
    Delivery,
    SegmentCore,
    SharedQueueCore,
    SharedQueueStats,
    Sleeper,
)

__all__ = ["Delivery", "QueueClosed", "Segment", "SharedQueueStats", "SharedRequestQueue"]


class _Attendant:
    """The tasks of one event loop that wait at a queue, and the thread that sleeps for them.

    The thread is there as long as tasks are; between two of a loop's waits for the next item it is
    idle.
    """

    def __init__(self, queue: SharedRequestQueue, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._loop = loop
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._tasks = 0  # in wait(), told to look or not
        self._sleeper = Sleeper(queue)
        self._wanted = threading.Semaphore(0)  # how often the loop wants to hear of an item
        self._ended = False
        self._thread = threading.Thread(
            target=self._sleep, name="shared-queue-attendant", daemon=True
        )
        self._thread.start()

    async def wait(self) -> Any:
        nothing = self
        self._tasks += 1
        try:
            while True:
                # Only told to look, and not given an item: a cancelled task has nothing to lose.
                waiter: asyncio.Future[None] = self._loop.create_future()
                self._waiters.append(waiter)
                self._wanted.release()
                try:
                    await waiter
                finally:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
                item = self._queue.try_get(nothing)
                if item is not nothing:
                    return item
        finally:
            self._tasks -= 1
            self._wake_next()
            if self._tasks == 0:
                self._end()

    def _end(self) -> None:
        del self._queue._attendants[self._loop]
        self._ended = True
        self._sleeper.stop()
        self._wanted.release()
        self._thread.join()

    def _sleep(self) -> None:
        """The thread: waits for an item whenever a task wants to hear of one."""
        while True:
            self._wanted.acquire()
            if self._ended or not self._sleeper.wait():
                return
            try:
                self._loop.call_soon_threadsafe(self._wake_next)
            except RuntimeError:
                return  # the loop is closed

    def _wake_next(self) -> None:
        """Tell the one that has waited longest to look; it tells the next one when it has."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class SharedRequestQueue(SharedQueueCore):
    """A bounded queue between processes, first in, first out, with RequestQueue's interface.

    Processes that take part may be killed at any moment: the queue goes on, and what the dead were
    putting never was.  What becomes of an item whose consumer dies is the `policy`'s to say:

    "at_most_once"   it is lost; an item is never delivered twice
    "at_least_once"  take() delivers it again, to another, until it is acknowledged

    `capacity` is how many items fit, rounded up to a power of two.  Those of up to `item_bytes`
    lie in the ring itself; larger ones in an arena of `bulk_bytes` that all of them share.  At most
    `participants` attachments may exist at one time.  `spin_us` is how long a thread that has to
    wait looks again and again before it sleeps, in microseconds, and `recheck_seconds` how long it
    sleeps before it looks whether somebody died with what it waits for.
    """

    _attendants: dict[asyncio.AbstractEventLoop, _Attendant]

    def __init__(self, capacity: int | None = None, **options: Any) -> None:
        self._attendants = {}

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Take part in the queue that `fd` refers to, which remains the caller's to close.

        Raises ValueError where it is no shared queue, and RuntimeError where too many take part.
        """
        return cls(attach_to=fd)

    async def get_async(self) -> Any:
        """Take the oldest item, waiting for one in the running event loop.

        Raises QueueClosed when the queue is closed and empty.  A thread of the loop's own sleeps
        for it: a loop cannot wait on memory.
        """
        loop = asyncio.get_running_loop()
        attendant = self._attendants.get(loop)
        if attendant is None:
            item = self.try_get(self)
            if item is not self:
                return item
            attendant = self._attendants[loop] = _Attendant(self, loop)
        return await attendant.wait()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _attach_duplicate, (type(self), _duplicate(self.fileno()))


class Segment(SegmentCore):
    """`size` bytes of memory that processes share: a writable buffer, all zero at first.

    A segment put into a SharedRequestQueue or sent by multiprocessing carries its descriptor, not
    its bytes.  Nobody can change its size; access to it is the processes' to agree on.
    """

    def __init__(self, size: int | None = None, *, attach_to: int = -1) -> None:
        pass

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the segment that `fd` refers to, which remains the caller's to close."""
        return cls(attach_to=fd)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _attach_duplicate, (type(self), _duplicate(self.fileno()))


def _duplicate(fd: int) -> Any:
    """A descriptor in a form that multiprocessing can take to another process."""
    from multiprocessing.reduction import DupFd  # type: ignore[attr-defined,unused-ignore]

    return DupFd(fd)  # type: ignore[no-untyped-call,unused-ignore]


def _attach_duplicate(kind: type[Any], duplicate: Any) -> Any:
    fd = duplicate.detach()
    try:
        return kind.attach(fd)
    finally:
        os.close(fd)
