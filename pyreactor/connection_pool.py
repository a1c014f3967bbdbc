"""ConnectionPool and AsyncConnectionPool: connections that are opened once, and used again.

Both work with whatever `connect()` returns: a socket, a driver's connection, a stream pair.  What
they have in common, which connection to lend next and which to give up, is in `_Register`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, Self, TypeVar

__all__ = ["AsyncConnectionPool", "ConnectionPool", "PoolClosed"]

_C = TypeVar("_C")


class PoolClosed(RuntimeError):
    """The pool was closed."""


class _Entry(Generic[_C]):
    """A connection, and how old it is."""

    __slots__ = ("born", "connection", "used")

    def __init__(self, connection: _C) -> None:
        self.connection = connection
        self.born = self.used = time.monotonic()


class _Register(Generic[_C]):
    """Which connections there are; who changes it holds the pool's lock."""

    def __init__(
        self,
        min_size: int,
        max_size: int | None,
        lifetime: float | None,
        check_after: float,
    ) -> None:
        max_size = max(min_size, 1) if max_size is None else max_size
        if min_size < 0 or max_size < 1 or min_size > max_size:
            raise ValueError("a pool has 0 <= min_size <= max_size connections, and at least one")
        if lifetime is not None and lifetime <= 0:
            raise ValueError("lifetime must be greater than 0")
        if check_after < 0:
            raise ValueError("check_after must be at least 0")
        self.min_size = min_size
        self.max_size = max_size
        self.lifetime = lifetime
        self.check_after = check_after
        self.idle: list[_Entry[_C]] = []  # the one used last at the end: it is lent next
        self.lent: dict[int, _Entry[_C]] = {}  # by the connection's id()
        self.opening = 0  # places of connections that are being opened, or checked
        self.closed = False
        self.counts = dict.fromkeys(("opened", "discarded", "acquired", "waits", "timeouts"), 0)

    def size(self) -> int:
        return len(self.idle) + len(self.lent) + self.opening

    def is_old(self, entry: _Entry[_C]) -> bool:
        return self.lifetime is not None and time.monotonic() - entry.born >= self.lifetime

    def wants_check(self, entry: _Entry[_C]) -> bool:
        return time.monotonic() - entry.used >= self.check_after

    def lend(self, entry: _Entry[_C]) -> _C:
        self.lent[id(entry.connection)] = entry
        self.counts["acquired"] += 1
        return entry.connection

    def take_back(self, connection: _C) -> _Entry[_C]:
        entry = self.lent.pop(id(connection), None)
        if entry is None or entry.connection is not connection:
            raise ValueError("this connection is not one that the pool has lent")
        entry.used = time.monotonic()
        return entry

    def stats(self) -> dict[str, int]:
        return {
            "idle": len(self.idle),
            "lent": len(self.lent),
            "opening": self.opening,
            **self.counts,
        }


def _close_connection(connection: Any) -> Any:
    return connection.close()


class ConnectionPool(Generic[_C]):
    """Connections for threads.

    `connect()` opens one.  `min_size` of them are opened by the constructor, which raises what
    connect() raises; more, up to `max_size`, when all are lent and one more is wanted.  Who wants
    one when there are no more waits.

    `check(connection)` tells whether one that was idle for `check_after` seconds may still be used;
    what it raises means that it may not.  A connection older than `lifetime` seconds is not lent
    again.  `close(connection)` closes one, by default by its method close().  What is given up is
    replaced by the thread that finds out, so that `min_size` remain.
    """

    def __init__(
        self,
        connect: Callable[[], _C],
        *,
        min_size: int = 1,
        max_size: int | None = None,
        check: Callable[[_C], object] | None = None,
        check_after: float = 0,
        lifetime: float | None = None,
        close: Callable[[_C], object] = _close_connection,
    ) -> None:
        self._register: _Register[_C] = _Register(min_size, max_size, lifetime, check_after)
        self._connect = connect
        self._check = check
        self._close = close
        self._changed = threading.Condition()
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def acquire(self, timeout: float | None = None) -> _C:
        """Borrow a connection; wait for one at most `timeout` seconds, for ever if it is None.

        Raises TimeoutError, PoolClosed, or what connect() raises.  Any thread.
        """
        register = self._register
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            entry = self._next_entry(deadline)
            if entry is None:
                return self._lend_new()
            if self._is_good(entry):
                with self._changed:
                    if not register.closed:
                        register.opening -= 1
                        return register.lend(entry)
            self._discard(entry)

    def _next_entry(self, deadline: float | None) -> _Entry[_C] | None:
        """An idle connection, or None: one may be opened.  Its place is counted as opening."""
        register = self._register
        with self._changed:
            while True:
                if register.closed:
                    raise PoolClosed("the connection pool is closed")
                if register.idle:
                    register.opening += 1
                    return register.idle.pop()
                if register.size() < register.max_size:
                    register.opening += 1
                    return None
                register.counts["waits"] += 1
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    if register.idle or register.size() < register.max_size or register.closed:
                        continue
                    register.counts["timeouts"] += 1
                    raise TimeoutError(f"no connection of {register.max_size} was free in time")

    def _is_good(self, entry: _Entry[_C]) -> bool:
        if self._register.is_old(entry):
            return False
        if self._check is None or not self._register.wants_check(entry):
            return True
        try:
            return bool(self._check(entry.connection))
        except Exception:
            return False

    def _open(self) -> _Entry[_C]:
        """Open a connection in a place that is counted as opening, and remains so."""
        try:
            entry = _Entry(self._connect())
        except BaseException:
            with self._changed:
                self._register.opening -= 1
                self._changed.notify()
            raise
        self._register.counts["opened"] += 1
        return entry

    def _lend_new(self) -> _C:
        entry = self._open()
        with self._changed:
            self._register.opening -= 1
            if not self._register.closed:
                return self._register.lend(entry)
        self._close_quietly(entry)
        raise PoolClosed("the connection pool is closed")

    def _discard(self, entry: _Entry[_C]) -> None:
        """Close a connection whose place is counted as opening, and give the place up."""
        self._close_quietly(entry)
        with self._changed:
            self._register.counts["discarded"] += 1
            self._register.opening -= 1
            self._changed.notify()

    def _close_quietly(self, entry: _Entry[_C]) -> None:
        with contextlib.suppress(Exception):
            self._close(entry.connection)

    def release(self, connection: _C, *, broken: bool = False) -> None:
        """Give a connection back; with `broken` it is closed and replaced.  Any thread.

        Raises ValueError where it is not lent.
        """
        register = self._register
        with self._changed:
            entry = register.take_back(connection)
            keep = not (broken or register.closed or register.is_old(entry))
            if keep:
                register.idle.append(entry)
                self._changed.notify()
            else:
                register.counts["discarded"] += 1
                self._changed.notify()
        if not keep:
            self._close_quietly(entry)
            with contextlib.suppress(Exception):
                self._fill()  # else the next acquire() tries, and says why not

    def _fill(self) -> None:
        """Open connections until there are min_size."""
        register = self._register
        while True:
            with self._changed:
                if register.closed or register.size() >= register.min_size:
                    return
                register.opening += 1
            entry = self._open()
            with self._changed:
                register.opening -= 1
                closed = register.closed
                if not closed:
                    register.idle.append(entry)
                    self._changed.notify()
            if closed:
                self._close_quietly(entry)

    def maintain(self) -> None:
        """Check all that are idle now, and replace those that are dead or old.

        For a thread or timer of the program's, where connections should be found dead before they
        are needed.  Raises what connect() raises.
        """
        register = self._register
        with self._changed:
            entries, register.idle = register.idle, []
            register.opening += len(entries)
        for entry in entries:
            if self._is_good(entry):
                with self._changed:
                    register.opening -= 1
                    closed = register.closed
                    if not closed:
                        register.idle.insert(0, entry)
                        self._changed.notify()
                if closed:
                    self._close_quietly(entry)
            else:
                self._discard(entry)
        self._fill()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[_C]:
        """Borrow a connection for a with block.  One in whose block something raises is closed."""
        connection = self.acquire(timeout)
        try:
            yield connection
        except BaseException:
            self.release(connection, broken=True)
            raise
        self.release(connection)

    def close(self) -> None:
        """Close the idle connections now, and each that is lent when it is given back.

        Everybody who waits gets PoolClosed.  Does nothing the second time.  Any thread.
        """
        register = self._register
        with self._changed:
            register.closed = True
            entries, register.idle = register.idle, []
            self._changed.notify_all()
        for entry in entries:
            self._close_quietly(entry)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._register.closed

    def stats(self) -> dict[str, int]:
        """Return how many connections are idle, lent and being opened, and what was counted.

        opened, discarded      connections, ever
        acquired               how often one was lent
        waits, timeouts        how often somebody had to wait, and waited in vain
        """
        with self._changed:
            return self._register.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncConnectionPool(Generic[_C]):
    """The same for the tasks of one event loop: connect(), check() and close() may be coroutines.

    `async with AsyncConnectionPool(connect, ...) as pool:` opens the first `min_size`, and so does
    `await pool.open()`.  Time limits are asyncio.timeout()'s to set; those who wait are served in
    the order in which they came.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[_C]],
        *,
        min_size: int = 1,
        max_size: int | None = None,
        check: Callable[[_C], Any] | None = None,
        check_after: float = 0,
        lifetime: float | None = None,
        close: Callable[[_C], Any] = _close_connection,
    ) -> None:
        self._register: _Register[_C] = _Register(min_size, max_size, lifetime, check_after)
        self._connect = connect
        self._check = check
        self._close = close
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def open(self) -> Self:
        """Open connections until there are min_size, at the same time."""
        register = self._register
        missing = register.min_size - register.size()
        if missing > 0:
            register.opening += missing
            results = await asyncio.gather(
                *(self._open() for _ in range(missing)), return_exceptions=True
            )
            errors = []
            for result in results:
                if isinstance(result, BaseException):
                    errors.append(result)
                else:
                    register.opening -= 1
                    await self._keep(result)
            if errors:
                raise errors[0]
        return self

    async def _keep(self, entry: _Entry[_C]) -> None:
        if self._register.closed:
            await self._close_quietly(entry)
        else:
            self._register.idle.append(entry)
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def acquire(self) -> _C:
        """Borrow a connection, waiting for one.  Raises PoolClosed, or what connect() raises."""
        register = self._register
        while True:
            await self._wait_for_place()
            if register.idle:
                entry = register.idle.pop()
                register.opening += 1
                try:
                    good = await self._is_good(entry)
                except BaseException:
                    await self._give_up(entry)
                    raise
                if good and not register.closed:
                    register.opening -= 1
                    return register.lend(entry)
                await self._give_up(entry)
                continue
            register.opening += 1
            entry = await self._open()
            register.opening -= 1
            if not register.closed:
                return register.lend(entry)
            await self._close_quietly(entry)

    async def _wait_for_place(self) -> None:
        """Return when a connection is idle or may be opened."""
        register = self._register
        first = not self._waiters  # nobody came before
        while True:
            if register.closed:
                raise PoolClosed("the connection pool is closed")
            if first and (register.idle or register.size() < register.max_size):
                return
            register.counts["waits"] += 1
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # it was woken for a connection that another may have
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
                raise
            first = True

    async def _is_good(self, entry: _Entry[_C]) -> bool:
        if self._register.is_old(entry):
            return False
        if self._check is None or not self._register.wants_check(entry):
            return True
        try:
            return bool(await _result_of(self._check(entry.connection)))
        except Exception:
            return False

    async def _open(self) -> _Entry[_C]:
        try:
            entry = _Entry(await self._connect())
        except BaseException:
            self._register.opening -= 1
            self._wake()
            raise
        self._register.counts["opened"] += 1
        return entry

    async def _give_up(self, entry: _Entry[_C]) -> None:
        self._register.opening -= 1
        self._register.counts["discarded"] += 1
        self._wake()
        await self._close_quietly(entry)

    async def _close_quietly(self, entry: _Entry[_C]) -> None:
        with contextlib.suppress(Exception):
            await _result_of(self._close(entry.connection))

    async def release(self, connection: _C, *, broken: bool = False) -> None:
        """Give a connection back; with `broken` it is closed and replaced.

        Raises ValueError where it is not lent.
        """
        register = self._register
        entry = register.take_back(connection)
        if not (broken or register.closed or register.is_old(entry)):
            register.idle.append(entry)
            self._wake()
            return
        register.counts["discarded"] += 1
        self._wake()
        await self._close_quietly(entry)
        if not register.closed:
            with contextlib.suppress(Exception):
                await self.open()  # else the next acquire() tries, and says why not

    async def maintain(self) -> None:
        """Check all that are idle now, and replace those that are dead or old."""
        register = self._register
        entries, register.idle = register.idle, []
        register.opening += len(entries)
        for entry in entries:
            if await self._is_good(entry):
                register.opening -= 1
                await self._keep(entry)
            else:
                await self._give_up(entry)
        if not register.closed:
            await self.open()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[_C]:
        """Borrow a connection for a block.  One in whose block something raises is closed."""
        connection = await self.acquire()
        try:
            yield connection
        except BaseException:
            await self.release(connection, broken=True)
            raise
        await self.release(connection)

    async def close(self) -> None:
        """Close the idle connections now, and each that is lent when it is given back."""
        register = self._register
        register.closed = True
        entries, register.idle = register.idle, []
        while self._waiters:
            self._wake()
        for entry in entries:
            await self._close_quietly(entry)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._register.closed

    def stats(self) -> dict[str, int]:
        """Return what ConnectionPool.stats() does."""
        return self._register.stats()

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def _result_of(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value
