"""Bytes that the program does not look at, moved without passing through it.

    send_file(sock, file)            a file into a socket; blocks
    send_file_async(target, file)    the same on an event loop, also into a transport
    relay(a, b)                      two sockets joined in both directions, by an event loop
    PinnedSender(sock)               memory that the kernel sends from where it lies (MSG_ZEROCOPY)

The kernel does the moving: sendfile(2) for files, splice(2) for what is no file.  Where bytes are
to be looked at, they are received into pooled memory and lent:

    receive(sock, pool)              what has come, as a Lease
    LeasedProtocol                   the same for transports
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import io
import os
import select
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple, Protocol

from pyreactor.lease import Lease, LeasedProtocol, receive
from pyreactor.pinned import PinnedSender
from pyreactor.readiness import wait_until_ready
from pyreactor.sendfile import lent_socket, little_unsent

__all__ = [
    "Lease",
    "LeasedProtocol",
    "PinnedSender",
    "Relayed",
    "receive",
    "relay",
    "send_file",
    "send_file_async",
]

# What one splice() moves at most, and the size of a pipe once much has come at one time: at half
# the CPU of the kernel's 64 KiB.  A user's pipes have a limit in all (fs.pipe-user-pages-soft).
_PIPE_BYTES = 1 << 20
_BYTES_PER_TURN_MAX = 4 * 1024 * 1024  # after this much the others have their turn
_SENDFILE_BYTES_MAX = 1 << 30  # the kernel takes no more than 2 GiB at once
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # for files of this kind


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


class Relayed(NamedTuple):
    """How many bytes relay(a, b) has moved."""

    a_to_b: int
    b_to_a: int


# --- Files into sockets ---------------------------------------------------------------------------


def send_file(sock: socket.socket, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Send `count` bytes of `file` from `offset` on, or all up to its end; return how many.

    `sock` is a connected stream socket that blocks, or has a timeout for each wait.  A regular file
    stands behind what was sent after it, however it ends, and goes by sendfile(2); a pipe goes by
    splice(2), from its beginning.  What the kernel cannot send so - an object without a descriptor,
    a file of some pseudo file system, a TLS socket - is read and sent, as socket.sendfile() does.
    Any thread.  Raises ValueError for a socket that does not block, TimeoutError, and OSError.
    """
    _check(sock, offset, count)
    timeout = sock.gettimeout()
    if timeout == 0:
        raise ValueError("the socket does not block: await send_file_async()")
    mode = _mode(file)
    if isinstance(sock, ssl.SSLSocket) or not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        return sock.sendfile(file, offset, count)
    if stat.S_ISFIFO(mode):
        return _send_pipe(sock, file, offset, count)
    source = file.fileno()
    sent = 0
    try:
        with little_unsent(sock):
            while count is None or sent < count:
                left = _SENDFILE_BYTES_MAX if count is None else count - sent
                try:
                    more = os.sendfile(
                        sock.fileno(), source, offset + sent, min(left, _SENDFILE_BYTES_MAX)
                    )
                except BlockingIOError:
                    _wait(sock, select.POLLOUT, timeout)
                    continue
                if not more:
                    break
                sent += more
    except OSError as exc:
        if sent or exc.errno not in _NO_SENDFILE:
            raise
        return sock.sendfile(file, offset, count)
    finally:
        if sent:
            os.lseek(source, offset + sent, os.SEEK_SET)
    return sent


def _check(sock: object, offset: int, count: int | None) -> None:
    if isinstance(sock, socket.socket) and sock.type != socket.SOCK_STREAM:
        raise ValueError("only a stream socket can be sent a file")
    if offset < 0 or (count is not None and count < 0):
        raise ValueError(f"offset ({offset}) and count ({count}) must not be negative")


def _mode(file: Any) -> int:
    """The kind of file that the kernel sees; 0 where it sees none."""
    try:
        return os.fstat(file.fileno()).st_mode
    except (AttributeError, io.UnsupportedOperation):
        return 0


def _wait(file: _HasDescriptor, event: int, timeout: float | None) -> None:
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("timed out")


def _send_pipe(sock: socket.socket, pipe: Any, offset: int, count: int | None) -> int:
    if offset:
        raise ValueError("a pipe is sent from its beginning: offset must be 0")
    timeout = sock.gettimeout()
    sent = 0
    while count is None or sent < count:
        left = _PIPE_BYTES if count is None else min(count - sent, _PIPE_BYTES)
        try:
            more = os.splice(pipe.fileno(), sock.fileno(), left, flags=_SPLICE_FLAGS)
        except BlockingIOError:  # on which side?
            _wait(pipe, select.POLLIN, timeout)
            _wait(sock, select.POLLOUT, timeout)
            continue
        if not more:
            break
        sent += more
    return sent


async def send_file_async(
    target: socket.socket | asyncio.WriteTransport,
    file: Any,
    offset: int = 0,
    count: int | None = None,
) -> int:
    """Send as send_file() does, on the running loop; return how many bytes.

    `target` is a non-blocking stream socket, or a transport, which sends what was written to it
    before.  A regular file goes by the loop's own sendfile(); a pipe or a socket in place of the
    file goes by splice(2), up to its end, into a socket or into a transport of pyreactor.  TLS and
    what has no descriptor is read and sent.
    """
    _check(target, offset, count)
    mode = _mode(file)
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        if offset:
            raise ValueError("a pipe or a socket is sent from its beginning: offset must be 0")
        async with _socket_of(target) as sock:
            way = _Way(file, sock, count)
            await way.carry()
            return way.moved
    if count == 0:
        return 0
    loop = asyncio.get_running_loop()
    if isinstance(target, socket.socket):
        return await loop.sock_sendfile(target, file, offset, count)
    return await loop.sendfile(target, file, offset, count)


# --- Sockets into sockets -------------------------------------------------------------------------


async def relay(
    a: socket.socket | asyncio.Transport, b: socket.socket | asyncio.Transport
) -> Relayed:
    """Move what comes from either to the other, until both have ended; return how much.

    `a` and `b` are connected non-blocking stream sockets, on any loop, or transports of pyreactor,
    whose protocols keep what they received before.  The bytes go from socket to pipe to socket and
    never into the program.  Where one side sends its end, so does the other, and the opposite
    direction goes on.  Neither is closed: they are the caller's.

    An error on either ends both directions and is raised, with a note of how far they came; so does
    cancelling.  Then bytes on their way are lost, and close both.  Raises TypeError for TLS, whose
    bytes the kernel cannot read, and ValueError for a blocking socket.
    """
    # Both at once: what comes while the first is made ready is relayed, not the protocol's.
    with _paused(a), _paused(b):
        return await _relay(a, b)


async def _relay(a: Any, b: Any) -> Relayed:
    async with _socket_of(a) as left, _socket_of(b) as right:
        there, back = _Way(left, right), _Way(right, left)
        tasks = [
            asyncio.create_task(way.carry_to_the_end(_received_before(end)))
            for way, end in ((there, a), (back, b))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        except BaseException as error:
            error.add_note(f"relay: {there.moved} bytes had gone from a to b, {back.moved} back")
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return Relayed(there.moved, back.moved)


@contextlib.contextmanager
def _paused(end: Any) -> Iterator[None]:
    """Keep a transport from reading; a socket reads nothing by itself."""
    resume_reading = hasattr(end, "_lend_descriptor") and end.is_reading()
    if resume_reading:
        end.pause_reading()
    try:
        yield
    finally:
        if resume_reading:
            end.resume_reading()


@contextlib.asynccontextmanager
async def _socket_of(end: Any) -> AsyncIterator[socket.socket]:
    """The socket itself, or that of a transport for as long as the transport lends it."""
    if isinstance(end, socket.socket):
        if isinstance(end, ssl.SSLSocket):
            raise TypeError("the bytes of a TLS socket have to be decrypted: read and write them")
        if end.type != socket.SOCK_STREAM:
            raise ValueError(f"{end!r} is no stream socket")
        if end.gettimeout() != 0:
            raise ValueError(f"{end!r} blocks: call setblocking(False)")
        yield end
    elif hasattr(end, "_lend_descriptor"):
        async with lent_socket(end) as sock:
            yield sock
    else:
        raise TypeError(
            f"{end!r} is neither a socket nor a plain stream transport of pyreactor: read and "
            "write its bytes"
        )


def _received_before(end: Any) -> bytes:
    """What a backend has received for a lent transport that nobody was told of."""
    return b"" if isinstance(end, socket.socket) else end._take_unread()


class _Way:
    """One direction: from `source` through a pipe, unless it is one, into `target`."""

    def __init__(self, source: Any, target: socket.socket, count: int | None = None) -> None:
        self.moved = 0
        self._source = source
        self._target = target
        self._count = count

    async def carry_to_the_end(self, first: bytes) -> None:
        """Move all, behind `first`, and then tell the target that no more comes."""
        if first:
            await asyncio.get_running_loop().sock_sendall(self._target, first)
            self.moved += len(first)
        await self.carry()
        with contextlib.suppress(OSError):  # it is gone already
            self._target.shutdown(socket.SHUT_WR)

    async def carry(self) -> None:
        """Move up to the source's end, or `count` bytes."""
        taken, given = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            room = fcntl.fcntl(given, fcntl.F_GETPIPE_SZ)
            turn = 0
            while self._count is None or self.moved < self._count:
                size = await self._fill(given)
                if not size:
                    break
                await self._empty(taken, size)
                if room < _PIPE_BYTES and size >= room // 2:
                    room = _PIPE_BYTES  # tried once: a small one does, too
                    with contextlib.suppress(OSError):
                        fcntl.fcntl(given, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                turn += size
                if turn >= _BYTES_PER_TURN_MAX:
                    turn = 0
                    await asyncio.sleep(0)
        finally:
            os.close(taken)
            os.close(given)

    async def _fill(self, pipe: int) -> int:
        """Move what there is into the pipe, which is empty; 0 at the end."""
        left = _PIPE_BYTES if self._count is None else min(self._count - self.moved, _PIPE_BYTES)
        while True:
            try:
                return os.splice(self._source.fileno(), pipe, left, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                await wait_until_ready(self._source, writable=False)

    async def _empty(self, pipe: int, size: int) -> None:
        while size:
            try:
                more = os.splice(pipe, self._target.fileno(), size, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                await wait_until_ready(self._target, writable=True)
                continue
            size -= more
            self.moved += more
