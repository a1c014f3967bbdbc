"""Binary files: a buffer of ours over reads and writes at positions that we keep.

The file's position is a number here, not the kernel's, and moves only when an operation succeeds.
What is under way with the kernel belongs to the file, not to the task that waits for it: a read
that its task abandons is the next reader's read-ahead, and a write goes on to its end.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
import warnings
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, NoReturn, Self

from pyreactor._file import Descriptor
from pyreactor.files.calls import Buffer, Calls, Operation
from pyreactor.files.turn import Turn

BUFFER_BYTES = 64 * 1024  # where the program names no size
_AHEAD_BYTES_MIN = 8 * 1024  # the first read at a new place; then twice as much each time
_CLOSED = "I/O operation on closed file."


class Answer(int):
    """Yes or no, at once or to be awaited: of aiofiles' files some want the one, some the other."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, bool]:
        return bool(self)
        yield  # what makes this a generator

    def __repr__(self) -> str:
        return repr(bool(self))


class BinaryFile:
    """A file of bytes; `files.open()` makes it.  Used by the tasks of one loop.

    Operations on its position take effect one after the other, in the order in which they were
    begun.  pread() and pwrite() have positions of their own, and any number of them may be under
    way.  All raise ValueError once the file is closed, io.UnsupportedOperation for what its mode
    excludes, and the OSError of the system call that failed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        calls: Calls,
        descriptor: Descriptor,
        status: os.stat_result,
        name: Any,
        flags: int,
        mode: str,
        buffer_bytes: int,
    ) -> None:
        self.name = name
        self.mode = mode
        self._loop = loop
        self._calls = calls
        self._descriptor = descriptor
        self._status = status
        self._can_read = flags & os.O_ACCMODE != os.O_WRONLY
        self._can_write = flags & os.O_ACCMODE != os.O_RDONLY
        self._appends = bool(flags & os.O_APPEND)
        self._capacity = buffer_bytes
        self._turn = Turn()
        self._closing = False
        self._closed = False
        self._goes_on: asyncio.Task[None] | None = None  # a close() that was cancelled
        self._keeper: Any = None  # whose descriptor it is, where that closes with the file

        # What was read of the file and not asked for yet is _data[_start:], and the file goes on at
        # _offset; or else _unwritten was written and belongs there.  Without positions, as in a
        # pipe, _offset means nothing, and both may be the case.
        self._data = b""
        self._start = 0
        self._unwritten: bytearray | memoryview = bytearray()
        self._offset = 0
        self._ahead = self._ahead_min = min(_AHEAD_BYTES_MIN, max(buffer_bytes, 1))
        self._reading: Operation[bytes] | None = None  # what comes behind _data
        self._writing: Operation[int] | None = None  # the start of _unwritten
        self._pwrites: set[Operation[int]] = set()  # under way, or abandoned: _data may be stale
        self._stale = False  # one of them has made it so
        self._seekable = True
        if isinstance(name, int) or not stat.S_ISREG(status.st_mode):
            try:
                self._offset = os.lseek(descriptor.fd, 0, os.SEEK_CUR)
            except OSError:
                self._seekable = False
        if self._appends and self._seekable:
            self._offset = status.st_size
        self._waits = not self._seekable

    # What it is

    def __repr__(self) -> str:
        state = " closed" if self._closing else ""
        return f"<{type(self).__name__}{state} name={self.name!r} mode={self.mode!r}>"

    @property
    def closed(self) -> bool:
        """True from the beginning of close() on."""
        return self._closing

    def fileno(self) -> int:
        """Return the descriptor's number.

        Its own position is the file's after flush(), and only then.
        """
        self._check_open()
        return self._descriptor.fd

    def readable(self) -> Answer:
        """Return whether it may be read; may be awaited, too, as the next three."""
        self._check_open()
        return Answer(self._can_read)

    def writable(self) -> Answer:
        """Return whether it may be written."""
        self._check_open()
        return Answer(self._can_write)

    def seekable(self) -> Answer:
        """Return whether it has positions."""
        self._check_open()
        return Answer(self._seekable)

    def isatty(self) -> Answer:
        """Return whether it is a terminal."""
        self._check_open()
        return Answer(stat.S_ISCHR(self._status.st_mode) and os.isatty(self._descriptor.fd))

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError(_CLOSED)

    def _check_reads(self) -> None:
        if self._closing:
            raise ValueError(_CLOSED)
        if not self._can_read:
            raise io.UnsupportedOperation("not readable")

    def _check_writes(self) -> None:
        if self._closing:
            raise ValueError(_CLOSED)
        if not self._can_write:
            raise io.UnsupportedOperation("not writable")

    def _check_seeks(self) -> None:
        if not self._seekable:
            raise io.UnsupportedOperation("File or stream is not seekable.")

    # Reading

    async def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes, fewer only at the end; all up to the end for -1 or None."""
        self._check_reads()
        size = _checked_size(size)
        await self._take_turn()
        try:
            await self._fill_up(size)
            available = len(self._data) - self._start
            return self._consume(available if size < 0 else min(size, available))
        finally:
            self._pass_on()

    async def read1(self, size: int = -1, /) -> bytes:
        """Return what there is, up to `size` bytes, after one read where there is nothing."""
        self._check_reads()
        await self._take_turn()
        try:
            if size == 0:
                return b""
            if self._start == len(self._data):
                await self._fill(max(size, self._ahead) if size > 0 else BUFFER_BYTES)
            available = len(self._data) - self._start
            return self._consume(available if size < 0 else min(size, available))
        finally:
            self._pass_on()

    async def peek(self, size: int = 0, /) -> bytes:
        """Return what read1() would, and leave it to be read."""
        self._check_reads()
        await self._take_turn()
        try:
            if self._start == len(self._data):
                await self._fill(max(size, self._ahead))
            return self._data[self._start :]
        finally:
            self._pass_on()

    async def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """Fill `buffer`, less of it only at the end; return how many bytes.

        Large reads go straight into it: where the task is cancelled meanwhile, the buffer cannot be
        resized until the kernel has finished, and what is in it by then is undefined.
        """
        self._check_reads()
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise TypeError("readinto() wants a buffer that can be written to")
        await self._take_turn()
        try:
            if not self._seekable or len(view) < self._capacity:
                await self._fill_up(len(view))
                data = self._consume(min(len(view), len(self._data) - self._start))
                view[: len(data)] = data
                return len(data)
            return await self._read_straight(view)
        finally:
            self._pass_on()

    async def readline(self, size: int | None = -1, /) -> bytes:
        """Return a line with its b"\\n", or up to `size` bytes of it; b"" at the end."""
        self._check_reads()
        size = _checked_size(size)
        if not self._turn.taken and not self._pwrites:
            end = self._data.find(b"\n", self._start) + 1
            if end and size < 0:
                start, self._start = self._start, end
                return self._data[start:end]
        await self._take_turn()
        try:
            return await self._read_line(size)
        finally:
            self._pass_on()

    async def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """Return all lines; no more once they have more than `hint` bytes."""
        lines = []
        total = 0
        while line := await self.readline():
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    def __aiter__(self) -> Self:
        self._check_open()
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def pread(self, size: int, position: int, /) -> bytes:
        """Return `size` bytes from `position` on, fewer only at the end.

        The file's own position plays no part.  What write() has gathered is written first.
        """
        self._check_reads()
        self._check_seeks()
        if size < 0 or position < 0:
            raise ValueError("size and position must not be negative")
        if self._unwritten:
            await self.flush()
        data = await self._calls.read(self._descriptor, size, position)
        if len(data) == size or not data:
            return data
        parts = [data]
        read = len(data)
        while read < size:
            self._check_not_closed()
            more = await self._calls.read(self._descriptor, size - read, position + read)
            if not more:
                break
            parts.append(more)
            read += len(more)
        return b"".join(parts)

    # Writing

    async def write(self, data: Buffer, /) -> int:
        """Write all of `data`; return how many bytes that is.

        Little is gathered, and written by a later write(), flush() or close().  Where the task is
        cancelled, either all of it counts as written, and the file sees to that, or nothing; tell()
        says which.
        """
        self._check_writes()
        view = memoryview(data).cast("B")
        await self._take_turn()
        try:
            await self._write(view)
        finally:
            self._pass_on()
        return len(view)

    async def writelines(self, lines: Iterable[Buffer], /) -> None:
        """Write each of `lines`, as write() does."""
        self._check_writes()
        await self._take_turn()
        try:
            for line in lines:
                await self._write(memoryview(line).cast("B"))
        finally:
            self._pass_on()

    async def pwrite(self, data: Buffer, position: int, /) -> int:
        """Write all of `data` at `position`; return how many bytes that is.

        The file's own position plays no part.  What write() has gathered is written first.  In a
        file opened to append Linux appends, whatever the position.
        """
        self._check_writes()
        self._check_seeks()
        if position < 0:
            raise ValueError("position must not be negative")
        view = memoryview(data).cast("B")
        if self._unwritten:
            await self.flush()
        written = 0
        while written < len(view):
            self._check_not_closed()
            writing = self._calls.write(self._descriptor, view[written:], position + written)
            self._pwrites.add(writing)
            written += _some(await writing)
            self._pwrites.discard(writing)
            self._stale = True
            if not self._turn.taken:
                self._drop_stale()
        return written

    async def flush(self) -> None:
        """Give the kernel what was gathered, and its descriptor the file's position."""
        self._check_open()
        await self._take_turn()
        try:
            await self._write_out()
            self._tell_kernel()
        finally:
            self._pass_on()

    async def fsync(self) -> None:
        """Flush, and wait until it is on the disk, with all that is known about the file."""
        await self._sync(data_only=False)

    async def fdatasync(self) -> None:
        """Flush, and wait until the data is on the disk."""
        await self._sync(data_only=True)

    async def _sync(self, data_only: bool) -> None:
        await self.flush()
        self._check_not_closed()
        await self._calls.fsync(self._descriptor, data_only)

    # The position

    async def tell(self) -> int:
        """Return the position in bytes."""
        self._check_open()
        self._check_seeks()
        await self._take_turn()
        try:
            return self._position()
        finally:
            self._pass_on()

    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to `offset`, from the start, the position or the end; return the new position.

        Within what was read ahead that costs nothing.
        """
        self._check_open()
        self._check_seeks()
        await self._take_turn()
        try:
            return await self._seek(offset, whence)
        finally:
            self._pass_on()

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, or as long as the position; return that.

        The position stays.
        """
        self._check_open()
        if not self._can_write:
            raise io.UnsupportedOperation("truncate")
        await self._take_turn()
        try:
            await self._write_out()
            if size is None:
                self._check_seeks()
                size = self._position()
            await self._calls.truncate(self._descriptor, size)
            self._drop_ahead()
            return size
        finally:
            self._pass_on()

    # The end

    async def close(self) -> None:
        """Write what was gathered, and close, after all that was begun before.

        A read that waits at a pipe ends with ValueError.  Where writing fails the file is closed
        all the same.  Where the task is cancelled, closing goes on without it.
        """
        if self._closed:
            return
        self._closing = True
        if self._waits and self._reading is not None:
            self._reading.cut_short()
        try:
            await self._close()
        except asyncio.CancelledError:
            if not self._closed:
                self._goes_on = self._loop.create_task(self._close())
            raise

    async def _close(self) -> None:
        await self._turn.wait()
        try:
            if self._closed:
                return
            try:
                await self._write_out()
            except OSError:
                await self._give_back()
                raise
            await self._give_back()
        finally:
            self._turn.pass_on()

    async def _give_back(self) -> None:
        """Part with the descriptor, which nothing may be under way on by then."""
        if self._reading is not None:
            self._reading.cut_short()
        await self._descriptor.when_idle(self._loop)
        self._closed = True
        self._unwritten = bytearray()
        if self._descriptor.owned:
            await self._calls.close(self._descriptor)
        else:
            self._tell_kernel()
            self._descriptor.take()
            if self._keeper is not None:
                await self._calls.run(self._keeper.close)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        try:
            closed = self._closed
        except AttributeError:  # it was never opened
            return
        if not closed:
            self._forsake(self)

    def _forsake(self, shown: object) -> None:
        """Nobody has closed it: says so, of what the program knows as `shown`, and does it."""
        self._closing = self._closed = True
        if self._descriptor.owned:
            warnings.warn(f"unclosed file {shown!r}", ResourceWarning, stacklevel=3, source=shown)
        if self._reading is not None and not self._reading.done() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reading.cut_short)
        if self._writing is None:
            self._write_out_at_end()
        self._descriptor.abandon()

    def _write_out_at_end(self) -> None:
        """Write what was gathered and nobody has flushed, as the built-in files do."""
        written = 0
        try:
            while written < len(self._unwritten):
                some = self._unwritten[written:]
                if self._appends or not self._seekable:
                    written += os.write(self._descriptor.fd, some)
                else:
                    written += os.pwrite(self._descriptor.fd, some, self._offset + written)
        except OSError:
            left = len(self._unwritten) - written
            warnings.warn(
                f"{left} bytes of {self!r} could not be written",
                ResourceWarning,
                stacklevel=3,
            )

    # The buffer; whoever calls these has the turn

    async def _take_turn(self) -> None:
        if self._pwrites:
            self._stale = True
            self._pwrites = {writing for writing in self._pwrites if not writing.done()}
        if self._turn.taken:
            await self._turn.wait()
            if self._closed:
                self._turn.pass_on()
                raise ValueError(_CLOSED)
        else:
            self._turn.taken = True
        if self._stale:
            self._drop_stale()

    def _pass_on(self) -> None:
        self._turn.pass_on()

    def _drop_stale(self) -> None:
        self._stale = False
        self._drop_ahead()

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError(_CLOSED)

    def _position(self) -> int:
        return self._offset - (len(self._data) - self._start) + len(self._unwritten)

    def _consume(self, size: int) -> bytes:
        """Take `size` bytes that are there."""
        start = self._start
        if start == 0 and size == len(self._data):
            data, self._data = self._data, b""
            return data
        self._start = start + size
        return self._data[start : self._start]

    def _drop_ahead(self) -> None:
        """Forget what was read ahead: it may not be so any more."""
        if self._seekable:
            self._offset -= len(self._data) - self._start
            self._data = b""
            self._start = 0
            self._reading = None  # it keeps itself

    async def _fill(self, size: int) -> int:
        """Read up to `size` bytes more; return how many, 0 at the end."""
        if self._unwritten and self._seekable:
            await self._write_out()
        if self._reading is None:
            if self._closing and self._waits:
                raise ValueError(_CLOSED)
            position = self._offset if self._seekable else -1
            self._reading = self._calls.read(self._descriptor, size, position, self._waits)
        try:
            data = await self._reading
        except OSError as error:
            self._reading = None
            self._reraise(error)
        self._reading = None
        rest = self._data[self._start :]
        self._data = rest + data if rest else data
        self._start = 0
        self._offset += len(data)
        self._ahead = min(self._ahead * 2, max(self._capacity, 1))
        return len(data)

    def _reraise(self, error: OSError) -> NoReturn:
        if error.errno == errno.ECANCELED and self._closing:
            raise ValueError(_CLOSED) from None
        raise error

    async def _fill_up(self, size: int) -> None:
        """Have `size` bytes, or all up to the end for -1, as far as the file has them."""
        have = len(self._data) - self._start
        if 0 <= size <= have:
            return
        # One byte more than the file had when it was opened: mostly that is the end, too.
        more = max(self._status.st_size - self._offset + 1, BUFFER_BYTES)
        parts = [self._data[self._start :]]
        self._data, self._start = b"", 0
        try:
            while size < 0 or have < size:
                if size >= 0:
                    more = max(size - have, self._ahead)
                count = await self._fill(more)
                if not count:
                    break
                parts.append(self._data)
                if count < more and self._is_at_end():
                    break
                self._data = b""
                have += count
                more = max(BUFFER_BYTES, 2 * count if count == more else 0)
        finally:
            parts = [part for part in parts if part]
            self._data = b"".join(parts)  # one alone is not copied

    def _is_at_end(self) -> bool:
        """Whether a read that was short says so, and no other has to: not so in /proc."""
        size = self._status.st_size
        return stat.S_ISREG(self._status.st_mode) and 0 < size <= self._offset

    async def _read_straight(self, view: memoryview) -> int:
        if self._unwritten:
            await self._write_out()
        available = len(self._data) - self._start
        filled = min(available, len(view))
        view[:filled] = self._data[self._start : self._start + filled]
        more = 0
        while filled + more < len(view):
            count = await self._calls.readinto(
                self._descriptor, view[filled + more :], self._offset + more
            )
            if not count:
                break
            more += count
        self._consume(filled)
        if more:
            self._data, self._start = b"", 0
            self._reading = None
            self._offset += more
        return filled + more

    async def _read_line(self, size: int) -> bytes:
        searched = 0
        while True:
            end = self._data.find(b"\n", self._start + searched) + 1
            available = len(self._data) - self._start
            length = end - self._start if end else available
            if 0 <= size <= length:
                return self._consume(size)
            if end:
                return self._consume(length)
            searched = available
            if not await self._fill(self._size_for_line(available)):
                return self._consume(available)

    def _size_for_line(self, available: int) -> int:
        return max(self._ahead, available)  # twice as much each time, for a line without an end

    async def _write(self, view: memoryview) -> None:
        if self._seekable and (self._data or self._reading is not None):
            self._drop_ahead()
        if self._writing is not None or not isinstance(self._unwritten, bytearray):
            await self._write_out()  # what a cancelled task has left
            assert isinstance(self._unwritten, bytearray)
        if len(view) < self._capacity:
            self._unwritten += view
            if len(self._unwritten) >= self._capacity:
                await self._write_out()
            return
        await self._write_out()
        self._unwritten = view
        await self._write_out()

    async def _write_out(self) -> None:
        """Write all that is unwritten."""
        while self._unwritten or self._writing is not None:
            if self._writing is None:
                position = -1 if self._appends or not self._seekable else self._offset
                self._writing = self._calls.write(
                    self._descriptor, self._unwritten, position, self._waits
                )
            try:
                count = _some(await self._writing)
            except OSError:
                self._writing = None
                # What was gathered is kept; a write()'s own memory is not: that write has failed.
                kept = self._unwritten if isinstance(self._unwritten, bytearray) else b""
                self._unwritten = bytearray(kept)
                raise
            self._writing = None
            self._unwritten = self._unwritten[count:]  # anew: a thread may still hold the old one
            if self._appends and self._seekable:
                self._offset = os.lseek(self._descriptor.fd, 0, os.SEEK_CUR)
            else:
                self._offset += count
        if not isinstance(self._unwritten, bytearray):
            self._unwritten = bytearray()

    async def _seek(self, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            if self._appends:
                await self._write_out()  # where that is shows then only
            offset += self._position()
        elif whence == os.SEEK_END:
            await self._write_out()
            if stat.S_ISREG(self._status.st_mode):
                offset += (await self._calls.status(self._descriptor)).st_size
            else:
                offset = await self._calls.run(os.lseek, self._descriptor.fd, offset, whence)
        elif whence in (os.SEEK_DATA, os.SEEK_HOLE):
            await self._write_out()
            offset = await self._calls.run(os.lseek, self._descriptor.fd, offset, whence)
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence value {whence} unsupported")
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._unwritten:
            await self._write_out()
        start = self._start + offset - self._position()
        if 0 <= start <= len(self._data):
            self._start = start
        else:
            self._drop_ahead()
            self._offset = offset
            self._ahead = self._ahead_min
        return offset

    def _tell_kernel(self) -> None:
        """Set the descriptor's own position, for whoever else uses it."""
        if self._seekable and not self._appends:
            os.lseek(self._descriptor.fd, self._position(), os.SEEK_SET)


class RawFile(BinaryFile):
    """A file of bytes without a buffer, `buffering=0`: every operation goes to the kernel.

    Reads and writes are completed where the file has positions; at a pipe read() returns what there
    is.
    """

    async def readall(self) -> bytes:
        """Return all up to the end."""
        return await self.read()

    async def _fill_up(self, size: int) -> None:
        if self._seekable or size < 0:
            await super()._fill_up(size)
        elif size and self._start == len(self._data):
            await self._fill(size)

    def _size_for_line(self, available: int) -> int:
        return _AHEAD_BYTES_MIN if self._seekable else 1

    def _pass_on(self) -> None:
        self._drop_ahead()
        if not self._closed:
            self._tell_kernel()
        super()._pass_on()


def _checked_size(size: int | None) -> int:
    if size is None:
        return -1
    if not hasattr(size, "__index__"):
        raise TypeError(f"argument should be integer or None, not {type(size).__name__!r}")
    size = size.__index__()
    if size < -1:
        raise ValueError("read length must be non-negative or -1")
    return size


def _some(count: int) -> int:
    if count == 0:
        raise OSError(errno.EIO, "the device takes nothing and names no reason")
    return count
