"""Listening sockets: from what a server is told to listen at, to sockets that listen.

("127.0.0.1", 8000)    TCP; "" or None as the host: all interfaces; port 0: a free one
"/run/echo.sock"       Unix, by its path; "\\0name": by a name without a file
a socket               one that somebody else has made
a list                 several of these
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any, NamedTuple

__all__ = ["Listener", "listen"]

_PORT_ATTEMPTS = 20


class Listener(NamedTuple):
    """A socket that listens."""

    sock: socket.socket  # owned by whoever called listen()
    handed_in: bool  # somebody else has made it, and other processes may have it, too
    path: str | None = None  # of the file that was made for it
    inode: int = 0  # of that file

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, if it is still this one's."""
        if self.path is None:
            return
        try:
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody else has done it


def listen(address: Any, *, backlog: int = 1024, reuse_port: bool = False) -> list[Listener]:
    """Return sockets that listen at `address`: one of the kinds above.

    Raises TypeError for what is no address, and OSError where it cannot be had.
    """
    if isinstance(address, list):
        listeners: list[Listener] = []
        try:
            for one in address:
                listeners += listen(one, backlog=backlog, reuse_port=reuse_port)
        except BaseException:
            _close(listeners)
            raise
        return listeners
    if isinstance(address, socket.socket):
        return [_handed_in(address, backlog)]
    if isinstance(address, (str, os.PathLike)):
        return [_unix(os.fspath(address), backlog)]
    if isinstance(address, tuple) and len(address) == 2 and isinstance(address[1], int):
        return _tcp(address[0], address[1], backlog, reuse_port)
    raise TypeError(
        f"a (host, port), the path of a Unix socket or a socket was expected, not {address!r}"
    )


def _close(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.sock.close()
        listener.remove_file()


def _handed_in(sock: socket.socket, backlog: int) -> Listener:
    if sock.type != socket.SOCK_STREAM:
        raise TypeError(f"a stream socket was expected, not {sock!r}")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(backlog)
    return Listener(sock, handed_in=True)


def _unix(path: str, backlog: int) -> Listener:
    if not path.startswith("\0"):
        _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen at {path!r}: {error.strerror}") from None
    if path.startswith("\0"):
        return Listener(sock, handed_in=False)
    return Listener(sock, False, os.path.abspath(path), os.stat(path).st_ino)


def _remove_stale(path: str) -> None:
    """Remove what a server has left that did not end as it should: a socket nobody listens at."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() says that the path is in use
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # bind() says what is wrong


def _tcp(host: str | None, port: int, backlog: int, reuse_port: bool) -> list[Listener]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
    for attempt in range(_PORT_ATTEMPTS):
        listeners: list[Listener] = []
        taken = port
        try:
            for family, (name, _, *rest) in places:
                sock = socket.socket(family, socket.SOCK_STREAM)
                listeners.append(Listener(sock, handed_in=False))
                _bind(sock, (name, taken, *rest), backlog, reuse_port)
                taken = sock.getsockname()[1]  # the same one for all addresses of the host
        except OSError as error:
            _close(listeners)
            is_last = attempt == _PORT_ATTEMPTS - 1
            if port == 0 and error.errno == errno.EADDRINUSE and not is_last:
                continue  # free at the first address, and not at another
            place = f"{host or 'all interfaces'}, port {port}"
            raise OSError(error.errno, f"cannot listen at {place}: {error.strerror}") from None
        return listeners
    raise AssertionError("unreachable")


def _bind(sock: socket.socket, address: Any, backlog: int, reuse_port: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    sock.listen(backlog)
