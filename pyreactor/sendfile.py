"""sendfile(2): a file's bytes into a socket, without passing through the program.

What asyncio's loop calls a native sendfile.  The checks of its arguments, and the fallback for
files and sockets with which the kernel cannot do this, are asyncio's own.
"""

import contextlib
import errno
import io
import os
import socket
from asyncio import exceptions, tasks

# After this much the others have their turn.
_BYTES_PER_TURN_MAX = 4 * 1024 * 1024

# While a file is sent, the kernel takes only this much beyond what the peer has room for.  By
# itself it takes megabytes, and sends them on in small pieces whenever the peer has read a little,
# at three times the CPU for both ends together (docs/design/sendfile.md).
_UNSENT_BYTES_MAX = 32 * 1024

_INTERNET = {socket.AF_INET, socket.AF_INET6}


class SendfileMethods:
    """A part of the loop."""

    async def _sock_sendfile_native(self, sock, file, offset, count):
        """Send `count` bytes, or all up to the file's end; the file stands behind them after it."""
        try:
            source = file.fileno()
            size = os.fstat(source).st_size
        except (AttributeError, io.UnsupportedOperation, OSError) as exc:
            raise exceptions.SendfileNotAvailableError("not a regular file") from exc
        if not count and not size:
            return 0
        sent = 0
        waited = False
        try:
            with little_unsent(sock):
                while count is None or sent < count:
                    left = _BYTES_PER_TURN_MAX if count is None else count - sent
                    try:
                        more = os.sendfile(
                            sock.fileno(), source, offset + sent, min(left, _BYTES_PER_TURN_MAX)
                        )
                    except BlockingIOError:
                        waited = True
                        await self._wait_writable(sock)
                        continue
                    if more == 0:
                        break
                    sent += more
                    if more == _BYTES_PER_TURN_MAX:
                        await tasks.sleep(0)
        except OSError as exc:
            if not sent:  # a file, perhaps, with which the kernel cannot do this
                raise exceptions.SendfileNotAvailableError("os.sendfile call failed") from exc
            if waited and exc.errno == errno.ENOTCONN:
                raise ConnectionError("socket is not connected", errno.ENOTCONN) from exc
            raise
        finally:
            with contextlib.suppress(OSError):  # what the kernel does not send may have none
                os.lseek(source, offset + sent, os.SEEK_SET)
        return sent

    async def _sendfile_native(self, transp, file, offset, count):
        """Send as above on a transport, after what was written to it before."""
        async with lent_socket(transp) as sock:
            return await self.sock_sendfile(sock, file, offset, count, fallback=False)

    async def _sendfile_fallback(self, transp, file, offset, count):
        """Send what the kernel cannot, by reading and writing."""
        if not hasattr(transp, "_lend_descriptor"):  # TLS: through asyncio's own transport
            return await super()._sendfile_fallback(transp, file, offset, count)
        async with lent_socket(transp) as sock:
            return await self._sock_sendfile_fallback(sock, file, offset, count)


@contextlib.asynccontextmanager
async def lent_socket(transp):
    """The socket of a stream transport, for itself: nothing is left to be sent, nothing is read.

    What the kernel had received for the transport is the protocol's later, unless it is taken with
    `transp._take_unread()`.
    """
    emptied = transp._make_empty_waiter()  # RuntimeError where another sendfile is on its way
    resume_reading = transp.is_reading()
    transp.pause_reading()
    try:
        await emptied
        if transp.is_closing():
            raise ConnectionError("Connection closed by peer")
        transp._lend_descriptor()
        try:
            if transp.is_closing():
                raise ConnectionError("Connection closed by peer")
            yield transp._sock
        except OSError as exc:
            if exc.errno == errno.EBADF and transp.is_closing():
                raise ConnectionError("Transport was closed") from exc
            raise
        finally:
            transp._take_back_descriptor()
    finally:
        transp._reset_empty_waiter()
        if resume_reading:
            transp.resume_reading()


@contextlib.contextmanager
def little_unsent(sock):
    """Limit what the kernel holds unsent for a TCP socket, for as long as a file is sent."""
    if sock.family not in _INTERNET:
        yield
        return
    before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # closed meanwhile
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, before)
