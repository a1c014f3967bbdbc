"""Received bytes where they lie: in memory of a pool, lent until they are given back.

The kernel writes into the pool's memory, and nothing copies the bytes from there.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType

from pyreactor.buffer_pool import Buffer, BufferPool
from pyreactor.readiness import wait_until_ready

__all__ = ["Lease", "LeasedProtocol", "receive"]


class Lease:
    """`size` received bytes at the beginning of a buffer that a pool has lent.

    It ends with release(), at the end of a with block, or when it is forgotten; then the buffer is
    the pool's again, and `view` raises ValueError.
    """

    __slots__ = ("_buffer", "_view")

    def __init__(self, buffer: Buffer, size: int) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)[:size]

    @property
    def view(self) -> memoryview:
        """The bytes, in the pool's memory, which may be written to as well."""
        if self._buffer.released:
            raise ValueError("this lease has ended: its memory is the pool's again")
        return self._view

    @property
    def address(self) -> int:
        """Where they lie.  Raises ValueError after the end."""
        _ = self.view
        return self._buffer.address

    @property
    def released(self) -> bool:
        """Whether it has ended."""
        return self._buffer.released

    def __len__(self) -> int:
        return len(self.view)

    def release(self) -> None:
        """Give the memory back.  Does nothing the second time.

        Raises BufferError, and does nothing, while something else refers to it: a slice of `view`,
        or what was made of it without copying.
        """
        if self._buffer.released:
            return
        size = len(self._view)
        self._view.release()
        try:
            self._buffer.release()
        except BufferError as error:
            self._view = memoryview(self._buffer)[:size]
            raise BufferError("a slice of this lease's view exists: release it first") from error

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return "<Lease, ended>" if self.released else f"<Lease of {len(self)} bytes>"


async def receive(sock: socket.socket, pool: BufferPool) -> Lease | None:
    """Receive into a buffer of the pool; return its lease, or None at the end of the stream.

    `sock` is a non-blocking stream socket.  No buffer is held while nothing has come; where the
    pool has lent all, this waits for one and leaves the bytes in the kernel.  Runs on any loop.
    """
    while True:
        buffer = await pool.acquire_async()
        try:
            size = sock.recv_into(buffer)
        except BlockingIOError:
            buffer.release()
            await wait_until_ready(sock, writable=False)
            continue
        except BaseException:
            buffer.release()
            raise
        if not size:
            buffer.release()
            return None
        return Lease(buffer, size)


class LeasedProtocol(asyncio.BufferedProtocol):
    """A protocol whose bytes lie in a pool's memory: derive from it, and override lease_received().

    On a loop of pyreactor.  While the pool has lent all its buffers, the connection is not read.
    """

    def __init__(self, pool: BufferPool) -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self._buffer: Buffer | None = None
        self._waiting: asyncio.Task[None] | None = None

    def lease_received(self, lease: Lease) -> None:
        """Bytes have come, and are lent: release the lease once they are done with."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport.  Called first by a protocol that overrides it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up waiting for a buffer.  Called by a protocol that overrides it."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._buffer = None

    def get_buffer(self, sizehint: int) -> Buffer:
        """Lend the transport a buffer; where there is none, stop reading until there is."""
        if self._buffer is None:
            self._buffer = self.pool.try_acquire()
        if self._buffer is None:
            assert self.transport is not None
            self.transport.pause_reading()
            self._waiting = asyncio.ensure_future(self._wait_for_buffer())
            return b""  # type: ignore[return-value]  # not looked at, as nothing is read
        return self._buffer

    async def _wait_for_buffer(self) -> None:
        self._buffer = await self.pool.acquire_async()
        self._waiting = None
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def buffer_updated(self, nbytes: int) -> None:
        """Hand over the lease of what has come."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        self.lease_received(Lease(buffer, nbytes))
