"""Sending memory without copying it: MSG_ZEROCOPY.

The kernel sends from the caller's pages, and says when it is done with them.  That costs page
tables and notifications instead of a copy.  Where packets do not leave the machine, or go through
a device that cannot do it, the kernel copies all the same: over loopback it always does, at about
twice the price (docs/zerocopy.md).  So nobody gets this without asking for it.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import struct
from types import TracebackType
from typing import Self

from pyreactor.readiness import settle, wait_until_ready

__all__ = ["PinnedSender"]

# <asm-generic/socket.h>, <linux/socket.h>, <linux/errqueue.h>; the socket module lacks them.
_SO_ZEROCOPY = 60
_MSG_ZEROCOPY = 0x4000000
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBxII")
_ORIGIN_ZEROCOPY = 5
_CODE_COPIED = 1
_NOTIFICATION_BYTES = 512
_SEQUENCE_MAX = 0xFFFFFFFF  # then it begins at 0 again


class PinnedSender:
    """Sends on a TCP socket from the caller's memory, where the kernel can.

    `sock` is connected and non-blocking, and the caller's; nobody else may send on it meanwhile.
    What is smaller than `pinned_bytes_min` is sent in the usual way.  Runs on any asyncio loop.
    Raises OSError where the kernel (before 4.14) or the socket knows no MSG_ZEROCOPY.
    """

    def __init__(self, sock: socket.socket, pinned_bytes_min: int = 16 * 1024) -> None:
        if sock.gettimeout() != 0:
            raise ValueError("the socket blocks: call setblocking(False)")
        sock.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        self.pinned_bytes_min = pinned_bytes_min
        self.sends = 0  # calls of the kernel with MSG_ZEROCOPY
        self.copied = 0  # those of them for which the kernel has copied after all
        self._sock = sock
        self._unfinished = 0
        # Readable when a notification has come; the socket's own readiness is others' affair.
        self._errors = select.epoll()
        self._errors.register(sock, select.EPOLLET)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; it may be changed once this returns, and not before.

        Raises OSError.  After an error, or where this is cancelled, the kernel may still look at
        `data`: it must not change until the socket is closed.
        """
        view = memoryview(data).cast("B")
        if len(view) < self.pinned_bytes_min:
            await asyncio.get_running_loop().sock_sendall(self._sock, view)
            return
        while view:
            view = view[await self._send_some(view) :]
        while self._unfinished:
            if not self._take_notifications():
                await self._wait_for_notification()

    async def _send_some(self, view: memoryview) -> int:
        while True:
            try:
                sent = self._sock.send(view, _MSG_ZEROCOPY)
            except BlockingIOError:
                self._take_notifications()
                await wait_until_ready(self._sock, writable=True)
            except OSError as error:
                # Too many pages are pinned, or notifications unread: net.core.optmem_max.
                if error.errno != errno.ENOBUFS or not self._unfinished:
                    raise
                if not self._take_notifications():
                    await self._wait_for_notification()
            else:
                self.sends += 1
                self._unfinished += 1
                return sent

    def _take_notifications(self) -> bool:
        """Hear which sends the kernel is done with; false where there was nothing to hear."""
        heard = False
        while True:
            try:
                _, ancillary, _, _ = self._sock.recvmsg(0, _NOTIFICATION_BYTES, _MSG_ERRQUEUE)
            except BlockingIOError:
                return heard
            for _level, _type, payload in ancillary:
                _, origin, _, code, first, last = _EXTENDED_ERROR.unpack_from(payload)
                if origin == _ORIGIN_ZEROCOPY:
                    count = ((last - first) & _SEQUENCE_MAX) + 1
                    self._unfinished -= count
                    self.copied += count if code & _CODE_COPIED else 0
                    heard = True

    async def _wait_for_notification(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._errors, settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._errors)
            self._errors.poll(0)  # until the next one
        if self._sock.fileno() < 0:
            raise OSError(errno.EBADF, "the socket was closed")

    def close(self) -> None:
        """Give the descriptor back that it waits with; the socket stays open."""
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
