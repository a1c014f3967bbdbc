"""BufferPool: memory for receiving and sending that is made once, lent, and given back.

The pool itself is compiled, `_buffer.BufferPoolCore`; this adds the waiting in an event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from pyreactor._buffer import Bell, Buffer, BufferPoolCore

__all__ = ["Buffer", "BufferPool"]


class _Attendant:
    """The tasks of one event loop that wait for a buffer, and the bell that wakes them."""

    def __init__(self, pool: BufferPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._waiters: deque[asyncio.Future[Buffer]] = deque()
        self._bell = Bell(pool)
        loop.add_reader(self._bell.fileno(), self._serve)

    async def wait(self) -> Buffer:
        waiter: asyncio.Future[Buffer] = self._loop.create_future()
        self._waiters.append(waiter)
        if self._bell.arm():
            self._serve()
        try:
            return await waiter
        finally:
            # A buffer that was given to a cancelled task goes back when it is forgotten.
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if not self._waiters:
                self._close()

    def _serve(self) -> None:
        """Give buffers to those who wait, longest first, while there are any."""
        self._bell.clear()
        while self._waiters:
            buffer = self._pool.try_acquire()
            if buffer is None:
                if not self._bell.arm():
                    return
                continue
            waiter = self._waiters.popleft()
            if waiter.done():
                buffer.release()
            else:
                waiter.set_result(buffer)
        self._close()

    def _close(self) -> None:
        if self._pool._attendants.get(self._loop) is self:
            del self._pool._attendants[self._loop]
            self._loop.remove_reader(self._bell.fileno())
            self._bell.close()


class BufferPool(BufferPoolCore):
    """`count` buffers of `buffer_bytes` bytes each, mapped and touched when the pool is made.

    acquire() lends one as a `Buffer`, which is writable memory for anything that takes a
    memoryview; release() or the end of a with block gives it back.  No call allocates memory from
    the system or makes a system call, but where a thread has to sleep.  A pool that has lent all
    its buffers makes those who want one wait, which is how it slows down whoever fills them
    (back-pressure); it never grows.
    """

    _attendants: dict[asyncio.AbstractEventLoop, _Attendant]

    def __init__(self, count: int, buffer_bytes: int = 65536) -> None:
        self._attendants = {}

    async def acquire_async(self) -> Buffer:
        """Borrow a buffer, waiting for one in the running event loop.

        Give it a time limit with asyncio.timeout().
        """
        buffer = self.try_acquire()
        if buffer is not None:
            return buffer
        loop = asyncio.get_running_loop()
        attendant = self._attendants.get(loop)
        if attendant is None:
            attendant = self._attendants[loop] = _Attendant(self, loop)
        return await attendant.wait()
