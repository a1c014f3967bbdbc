"""The other ends of connections, for the tests of what makes them."""

import contextlib
import socket
import threading

PATIENCE = 30


@contextlib.contextmanager
def accepting():
    """A listener's address, and the list of the sockets that it has accepted so far."""
    accepted = []

    def accept():
        with contextlib.suppress(OSError):  # at the end it is shut down
            while True:
                accepted.append(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname(), accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            for connection in accepted:
                connection.close()


def is_alive(connection):
    """Whether the other end is still there."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
