"""How a file's system calls are made without keeping the loop: by a thread, or by the ring.

Both kinds have the same methods.  Each begins its call at once and returns an operation: something
to await, by one task at a time.  A task that is cancelled while it awaits one abandons it and no
more: the operation goes on, keeps the memory and the descriptor that it works on, and may be
awaited again.  `cut_short()` is for those that may never end by themselves.

All: the loop's thread only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Any, Literal, Protocol, TypeVar

from pyreactor._file import Descriptor, ring_calls

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
Buffer = bytes | bytearray | memoryview
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# Linux transfers no more than this in one call.
BYTES_PER_CALL_MAX = 0x7FFFF000


class Operation(Protocol[_T_co]):
    """A system call that is under way, or done."""

    def __await__(self) -> Generator[Any, Any, _T_co]:
        """Return the call's result, or raise its OSError."""

    def cut_short(self) -> object:
        """End it early, if that can be done: with ECANCELED, unless it is done by then."""

    def done(self) -> bool:
        """Return True once it has ended."""


class Calls(Protocol):
    """The system calls.  A descriptor stays open, and memory where it is, until they end.

    Reads and writes take a position in the file in bytes, or -1 for the descriptor's own, and may
    be short.  `waits` says that a call may have to wait for another process, as at a pipe.  All
    raise OSError, with the paths in it that they were given.
    """

    def open(
        self, path: str | bytes, flags: int, mode: int = 0o666, *, dir_fd: int | None = None
    ) -> Operation[Descriptor]: ...
    def close(self, descriptor: Descriptor) -> Operation[None]: ...
    def read(
        self, descriptor: Descriptor, size: int, position: int, waits: bool = False
    ) -> Operation[bytes]: ...
    def readinto(
        self, descriptor: Descriptor, buffer: Buffer, position: int, waits: bool = False
    ) -> Operation[int]: ...
    def write(
        self, descriptor: Descriptor, data: Buffer, position: int, waits: bool = False
    ) -> Operation[int]: ...
    def fsync(self, descriptor: Descriptor, data_only: bool) -> Operation[None]: ...
    def truncate(self, descriptor: Descriptor, size: int) -> Operation[None]: ...
    def status(self, descriptor: Descriptor) -> Operation[os.stat_result]: ...
    def stat(
        self, path: Path | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> Operation[os.stat_result]: ...
    def rename(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> Operation[None]: ...
    def unlink(self, path: Path, *, dir_fd: int | None = None) -> Operation[None]: ...
    def rmdir(self, path: Path, *, dir_fd: int | None = None) -> Operation[None]: ...
    def mkdir(
        self, path: Path, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> Operation[None]: ...
    def run(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> Operation[_T]:
        """Call what else may block, in the thread pool."""


def calls_on(loop: asyncio.AbstractEventLoop, executor: Executor | None = None) -> Calls:
    """Return how calls are made on `loop`; an `executor` that is given is the one to make them."""
    threads = ThreadCalls(loop, executor)
    ring: Calls | None = ring_calls(loop, threads) if executor is None else None
    return threads if ring is None else ring


class ThreadOperation:
    """A function that a thread of the pool runs, once its descriptor is ready where it waits."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: Executor | None,
        descriptor: Descriptor | None,
        waits_for: Literal["", "reader", "writer"],
        function: Callable[[], Any],
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._descriptor = descriptor
        self._waits_for = waits_for
        self._function = function
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        if descriptor is not None:
            descriptor.hold()
        try:
            self._begin()
        except BaseException:
            if descriptor is not None:
                descriptor.let_go()
            raise

    def _begin(self) -> None:
        if self._waits_for:
            assert self._descriptor is not None
            add = getattr(self._loop, f"add_{self._waits_for}")
            try:
                add(self._descriptor.fd, self._when_ready)
                return
            except PermissionError:  # a device that is always ready
                self._waits_for = ""
        self._run()

    def _when_ready(self) -> None:
        self._stop_waiting()
        try:
            self._run()
        except BaseException as error:  # the pool takes nothing any more
            self._end(None, error)

    def _stop_waiting(self) -> None:
        assert self._descriptor is not None
        remove = getattr(self._loop, f"remove_{self._waits_for}")
        remove(self._descriptor.fd)
        self._waits_for = ""

    def _run(self) -> None:
        self._loop.run_in_executor(self._pool, self._function).add_done_callback(self._take)

    def _take(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self._end(None, OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))
        elif (error := future.exception()) is not None:
            self._end(None, error)
        else:
            self._end(future.result(), None)

    def _end(self, value: Any, error: BaseException | None) -> None:
        self._done = True
        self._value = value
        self._error = error
        if self._descriptor is not None:
            self._descriptor.let_go()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._done:
            self._waiter = self._loop.create_future()
            yield from self._waiter
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # not a part of its own error's traceback
        return self._value

    def done(self) -> bool:
        """Return True once it has ended."""
        return self._done

    def cut_short(self) -> None:
        """End the wait for the descriptor; a thread that has begun cannot be stopped."""
        if self._waits_for and not self._done:
            self._stop_waiting()
            self._end(None, OSError(errno.ECANCELED, os.strerror(errno.ECANCELED)))


def _open(path: str | bytes, flags: int, mode: int, dir_fd: int | None) -> Descriptor:
    descriptor = Descriptor(os.open(path, flags, mode, dir_fd=dir_fd))
    descriptor.status = os.fstat(descriptor.fd)  # saves the way to a thread that it would take
    return descriptor


class ThreadCalls:
    """System calls made by the loop's thread pool, or by an executor of the program's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Executor | None = None) -> None:
        self._loop = loop
        self._pool = pool

    def run(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> Operation[_T]:
        """Call `function` in a thread."""
        return ThreadOperation(self._loop, self._pool, None, "", lambda: function(*args, **kwargs))

    def _run_on(
        self,
        descriptor: Descriptor,
        function: Callable[[], _T],
        waits_for: Literal["", "reader", "writer"] = "",
    ) -> Operation[_T]:
        return ThreadOperation(self._loop, self._pool, descriptor, waits_for, function)

    def open(
        self, path: str | bytes, flags: int, mode: int = 0o666, *, dir_fd: int | None = None
    ) -> Operation[Descriptor]:
        """open(2)."""
        return self.run(_open, path, flags, mode, dir_fd)

    def close(self, descriptor: Descriptor) -> Operation[None]:
        """close(2).  The number is nobody's as soon as this is called."""
        fd = descriptor.take()
        try:
            return self.run(os.close, fd)
        except RuntimeError:  # the loop or the pool has been closed
            os.close(fd)
            raise

    def read(
        self, descriptor: Descriptor, size: int, position: int, waits: bool = False
    ) -> Operation[bytes]:
        """pread(2) or read(2): up to `size` bytes."""
        fd = descriptor.fd
        size = min(size, BYTES_PER_CALL_MAX)
        if position < 0:
            return self._run_on(descriptor, lambda: os.read(fd, size), "reader" if waits else "")
        return self._run_on(descriptor, lambda: os.pread(fd, size, position))

    def readinto(
        self, descriptor: Descriptor, buffer: Buffer, position: int, waits: bool = False
    ) -> Operation[int]:
        """preadv(2) or readv(2): how many bytes were read."""
        fd = descriptor.fd
        into = [memoryview(buffer)[:BYTES_PER_CALL_MAX]]
        if position < 0:
            return self._run_on(descriptor, lambda: os.readv(fd, into), "reader" if waits else "")
        return self._run_on(descriptor, lambda: os.preadv(fd, into, position))

    def write(
        self, descriptor: Descriptor, data: Buffer, position: int, waits: bool = False
    ) -> Operation[int]:
        """pwrite(2) or write(2): how many bytes were written."""
        fd = descriptor.fd
        if waits:  # so much finds room, or the descriptor is not ready: no thread gets stuck
            some = memoryview(data)[: select.PIPE_BUF]
            return self._run_on(descriptor, lambda: os.write(fd, some), "writer")
        some = memoryview(data)[:BYTES_PER_CALL_MAX]
        if position < 0:
            return self._run_on(descriptor, lambda: os.write(fd, some))
        return self._run_on(descriptor, lambda: os.pwrite(fd, some, position))

    def fsync(self, descriptor: Descriptor, data_only: bool) -> Operation[None]:
        """fsync(2) or fdatasync(2)."""
        fd = descriptor.fd
        return self._run_on(descriptor, lambda: (os.fdatasync if data_only else os.fsync)(fd))

    def truncate(self, descriptor: Descriptor, size: int) -> Operation[None]:
        """ftruncate(2)."""
        fd = descriptor.fd
        return self._run_on(descriptor, lambda: os.ftruncate(fd, size))

    def status(self, descriptor: Descriptor) -> Operation[os.stat_result]:
        """fstat(2)."""
        fd = descriptor.fd
        return self._run_on(descriptor, lambda: os.fstat(fd))

    def stat(
        self, path: Path | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> Operation[os.stat_result]:
        """stat(2), lstat(2) or fstatat(2)."""
        return self.run(os.stat, path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def rename(
        self,
        src: Path,
        dst: Path,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> Operation[None]:
        """rename(2)."""
        return self.run(os.rename, src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def unlink(self, path: Path, *, dir_fd: int | None = None) -> Operation[None]:
        """unlink(2)."""
        return self.run(os.unlink, path, dir_fd=dir_fd)

    def rmdir(self, path: Path, *, dir_fd: int | None = None) -> Operation[None]:
        """rmdir(2)."""
        return self.run(os.rmdir, path, dir_fd=dir_fd)

    def mkdir(self, path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> Operation[None]:
        """mkdir(2)."""
        return self.run(os.mkdir, path, mode, dir_fd=dir_fd)
