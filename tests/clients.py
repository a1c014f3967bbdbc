"""Clients of a server that tests drive by hand, and the service that most of them ask."""

import contextlib
import functools
import socket

import waiting

from pyreactor.service import Service

PATIENCE = 15.0
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)


class Upper(Service):
    """Answers with the same in upper case."""

    def handle(self, request):
        return request.upper()


def connect(address):
    """A connected socket: the family is that of the address."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    if isinstance(address, tuple) and len(address) == 4:
        family = socket.AF_INET6
    sock = socket.socket(family)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock, size):
    """So many bytes, and no more."""
    received = bytearray()
    while len(received) < size:
        data = sock.recv(size - len(received))
        assert data, f"the connection ended after {len(received)} of {size} bytes"
        received += data
    return bytes(received)


def receive_all(sock):
    """What comes until the end; a reset counts as one."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            received += data
    return bytes(received)


def ask(address, request=b"hello\n"):
    """Send, and say that it was all; what comes until the end."""
    with connect(address) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)
