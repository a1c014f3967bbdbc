"""Storage units: where the logic units of a server keep what outlives a request.

A storage unit is used by at most `capacity` workers at one time.  acquire() lends a session, from a
ConnectionPool; a worker that finds all of them lent waits.

    with storage.acquire() as session:
        session.update("visits", lambda visits: (visits or 0) + 1)

SQLiteStorage, FileStorage and CacheStorage keep keys (text) and values (whatever JSON can say) in a
database, in files, and in memory; their sessions have one interface, so that a handler works with
any of them.  StorageUnit itself lends what a function of the program's returns: a driver's
connection to a database server, for example.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import sqlite3
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

from pyreactor.connection_pool import ConnectionPool

__all__ = ["CacheStorage", "FileStorage", "SQLiteStorage", "Session", "StorageUnit"]

_BUSY_SECONDS = 60.0  # how long sqlite waits for other processes' transactions


class Session(Protocol):
    """What acquire() lends, of the three storages below."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""

    def set(self, key: str, value: Any) -> None:
        """Change it."""

    def delete(self, key: str) -> bool:
        """Remove it; return whether it was there."""

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Set the value to change(value), in one step; None stands for no value.  Returns it."""


class StorageUnit:
    """Lends at most `capacity` sessions, made by `connect()`, all of them at start.

    `close(session)` closes one.  A session in whose use something was raised is closed and
    replaced.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        capacity: int = 1,
        check: Callable[[Any], object] | None = None,
        close: Callable[[Any], object] | None = None,
    ) -> None:
        options: dict[str, Any] = {} if close is None else {"close": close}
        self.capacity = capacity
        self._sessions: ConnectionPool[Any] = ConnectionPool(
            connect, min_size=capacity, max_size=capacity, check=check, **options
        )

    def acquire(self, timeout: float | None = None) -> contextlib.AbstractContextManager[Any]:
        """Lend a session for a with block, waiting for one at most `timeout` seconds.

        Raises TimeoutError, or PoolClosed after close().
        """
        return self._sessions.connection(timeout)

    def close(self) -> None:
        """Close the sessions that are not lent now, and the others when they come back."""
        self._sessions.close()

    def stats(self) -> dict[str, int]:
        """Return what ConnectionPool.stats() tells of the sessions."""
        return self._sessions.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _SQLiteSession:
    """A connection to the database."""

    def __init__(self, path: str) -> None:
        # Lent to one thread at a time, which is what sqlite asks for.
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS store (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )

    def get(self, key: str, default: Any = None) -> Any:
        row = self._connection.execute("SELECT value FROM store WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set(self, key: str, value: Any) -> None:
        self._connection.execute(
            "INSERT INTO store VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(value)),
        )

    def delete(self, key: str) -> bool:
        return self._connection.execute("DELETE FROM store WHERE key = ?", (key,)).rowcount > 0

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            value = change(self.get(key))
            self.set(key, value)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
        return value

    def close(self) -> None:
        self._connection.close()


class SQLiteStorage(StorageUnit):
    """A table in an SQLite database, which processes may share; each has sessions of its own."""

    def __init__(self, path: str | os.PathLike[str], *, capacity: int = 1) -> None:
        self.path = os.fspath(path)
        super().__init__(lambda: _SQLiteSession(self.path), capacity=capacity)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), (self.path,), {"capacity": self.capacity})


class _FileSession:
    """A folder with a file for each key."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._number = f"{os.getpid()}-{id(self)}"

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / (urllib.parse.quote(key, safe="") + ".json")

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Be alone with a key, among all threads and processes."""
        name = urllib.parse.quote(key, safe="") + ".lock"
        fd = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return json.loads(self._path(key).read_text())
        except FileNotFoundError:
            return default

    def _write(self, key: str, value: Any) -> None:
        # Whole or not at all, whoever reads meanwhile.
        new = self._folder / f"{self._number}.new"
        new.write_text(json.dumps(value))
        os.replace(new, self._path(key))

    def set(self, key: str, value: Any) -> None:
        with self._locked(key):
            self._write(key, value)

    def delete(self, key: str) -> bool:
        with self._locked(key):
            try:
                self._path(key).unlink()
            except FileNotFoundError:
                return False
            return True

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        with self._locked(key):
            value = change(self.get(key))
            self._write(key, value)
        return value

    def close(self) -> None:
        pass


class FileStorage(StorageUnit):
    """A folder with a file for each key, which processes may share."""

    def __init__(self, folder: str | os.PathLike[str], *, capacity: int = 1) -> None:
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(lambda: _FileSession(self.folder), capacity=capacity)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (type(self), (self.folder,), {"capacity": self.capacity})


class _CacheSession:
    """The whole cache: sessions differ in who has them only."""

    def __init__(self, storage: CacheStorage) -> None:
        self._storage = storage

    def get(self, key: str, default: Any = None) -> Any:
        with self._storage._lock:
            if key not in self._storage._items:
                return default
            self._storage._items.move_to_end(key)
            return self._storage._items[key]

    def set(self, key: str, value: Any) -> None:
        with self._storage._lock:
            self._storage._items[key] = value
            self._storage._items.move_to_end(key)
            while len(self._storage._items) > self._storage.max_items:
                self._storage._items.popitem(last=False)

    def delete(self, key: str) -> bool:
        with self._storage._lock:
            nothing = self
            return self._storage._items.pop(key, nothing) is not nothing

    def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        with self._storage._lock:
            value = change(self.get(key))
            self.set(key, value)
        return value

    def close(self) -> None:
        pass


class CacheStorage(StorageUnit):
    """A dictionary of at most `max_items`; what was not used for the longest time goes first."""

    def __init__(self, max_items: int = 1024, *, capacity: int = 1) -> None:
        if max_items < 1:
            raise ValueError("a cache has at least one item")
        self.max_items = max_items
        self._items: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.RLock()
        super().__init__(lambda: _CacheSession(self), capacity=capacity)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a cache is in the memory of one process: for logic units of kind 'process' use "
            "SQLiteStorage or FileStorage"
        )


def _make(kind: type[Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return kind(*arguments, **options)
