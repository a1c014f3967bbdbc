"""The loop's sock_*() methods, for programs that keep their sockets themselves.

Each tries first and waits only where that would have blocked; then it tries again.  Nothing is
received or sent but by the call that hands it over, so that a call that is cancelled has lost
nothing.  Several calls may wait for one socket, for reading and for writing: each is served.

The caller owns the socket.  What the kernel was told about it stays from one wait to the next, for
as long as it is the same socket (see DescriptorWatch in _loop.pyx), and goes when it is closed.
"""

import errno
import socket

from pyreactor._sock import (
    attempt,
    check_sock,
    numeric_family,
    try_recv,
    try_recv_into,
    try_send,
)

_INTERNET = {socket.AF_INET, socket.AF_INET6}
_ANY_OR_TCP = {0, socket.IPPROTO_TCP}


class SockMethods:
    """A part of the loop."""

    async def sock_recv(self, sock, n):
        """Receive up to `n` bytes; b"" at the end of the stream."""
        while (data := try_recv(self, sock, n)) is None:
            await self._wait_readable(sock)
        return data

    async def sock_recv_into(self, sock, buf):
        """Receive into a writable buffer; return how many bytes, 0 at the end of the stream."""
        while (count := try_recv_into(self, sock, buf)) is None:
            await self._wait_readable(sock)
        return count

    async def sock_recvfrom(self, sock, bufsize):
        """Receive a datagram of up to `bufsize` bytes; return it and its sender's address."""
        while (received := attempt(self, sock, sock.recvfrom, bufsize)) is None:
            await self._wait_readable(sock)
        return received

    async def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """Receive a datagram into a writable buffer; return its size and its sender's address."""
        nbytes = nbytes or len(buf)
        while (received := attempt(self, sock, sock.recvfrom_into, buf, nbytes)) is None:
            await self._wait_readable(sock)
        return received

    async def sock_sendall(self, sock, data):
        """Send all of `data`, which must not change meanwhile."""
        sent = 0
        while (sent := try_send(self, sock, data, sent)) is not None:
            await self._wait_writable(sock)

    async def sock_sendto(self, sock, data, address):
        """Send a datagram to `address`; return how many bytes."""
        while (sent := attempt(self, sock, sock.sendto, data, address)) is None:
            await self._wait_writable(sock)
        return sent

    async def sock_accept(self, sock):
        """Accept a connection; return a non-blocking socket and the peer's address."""
        while (accepted := attempt(self, sock, sock.accept)) is None:
            await self._wait_readable(sock)
        accepted[0].setblocking(False)
        return accepted

    async def _ensure_resolved(
        self, address, *, family=0, type=socket.SOCK_STREAM, proto=0, flags=0, loop
    ):
        # As asyncio's, without so much Python where an address is a number already.
        if type is socket.SOCK_STREAM and proto in _ANY_OR_TCP:
            found = numeric_family(address)
            if found is not None and family in (0, found):
                host, port = address[:2]
                rest = (*address[2:], 0, 0)[:2] if found is socket.AF_INET6 else ()
                return [(found, type, socket.IPPROTO_TCP, "", (host, port, *rest))]
        return await super()._ensure_resolved(
            address, family=family, type=type, proto=proto, flags=flags, loop=loop
        )

    async def sock_connect(self, sock, address):
        """Connect to `address`, whose host is looked up where it is a name."""
        check_sock(self, sock)
        if numeric_family(address) is None and sock.family in _INTERNET:
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
        except (BlockingIOError, InterruptedError) as exc:
            if exc.errno == errno.EAGAIN:  # a Unix socket's backlog is full: nothing has begun
                raise
        else:
            return
        self._forget_registration(sock)  # it had hung up as long as it was not connecting
        await self._wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"Connect call failed {address}")
