"""The loop's sock_*() methods: what they leave registered, and that their futures always settle."""

import asyncio
import errno
import socket

import pytest

HOST = "127.0.0.1"


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


@pytest.fixture
def listening():
    with socket.create_server((HOST, 0)) as server:
        server.setblocking(False)
        yield server


def fill(sock):
    """Write until the kernel takes no more."""
    try:
        while True:
            sock.send(b"x" * 65536)
    except BlockingIOError:
        pass


async def test_what_is_sent_arrives_and_what_arrives_is_received(loop, pair):
    near, far = pair
    data = bytes(range(256)) * 8192
    sending = asyncio.create_task(loop.sock_sendall(near, data))
    received = bytearray()
    while len(received) < len(data):
        received += await loop.sock_recv(far, 65536)
    await sending
    assert received == data


@pytest.mark.parametrize("operation", ["sock_recv", "sock_recv_into", "sock_recvfrom"])
async def test_a_cancelled_receive_leaves_nothing_registered(loop, pair, operation):
    near, far = pair
    argument = bytearray(10) if operation == "sock_recv_into" else 10
    receiving = asyncio.create_task(getattr(loop, operation)(near, argument))
    await turns()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert loop.remove_reader(near) is False
    far.send(b"later")
    assert await loop.sock_recv(near, 10) == b"later"


async def test_a_cancelled_send_leaves_nothing_registered(loop, pair):
    near, _ = pair
    fill(near)
    sending = asyncio.create_task(loop.sock_sendall(near, b"more"))
    await turns()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert loop.remove_writer(near) is False


async def test_a_cancelled_accept_leaves_nothing_registered_and_loses_no_client(loop, listening):
    accepting = asyncio.create_task(loop.sock_accept(listening))
    await turns()
    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    assert loop.remove_reader(listening) is False
    with socket.create_connection(listening.getsockname()) as client:
        accepted, address = await loop.sock_accept(listening)
        with accepted:
            assert address == client.getsockname()


async def test_a_refused_connection_is_reported_and_leaves_nothing_registered(loop):
    with socket.create_server((HOST, 0)) as server:
        address = server.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(sock, address)
        assert loop.remove_writer(sock) is False


async def test_a_connection_settles_where_its_error_cannot_be_read(loop, listening):
    class Unreadable(socket.socket):
        def getsockopt(self, *args):
            raise OSError(errno.EIO, "cannot be read")

    with Unreadable() as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="cannot be read"):
            await asyncio.wait_for(loop.sock_connect(sock, listening.getsockname()), 5)
        assert loop.remove_writer(sock) is False


async def test_an_address_of_four_parts_is_not_resolved_again(loop):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as exc:
        pytest.skip(f"this machine has no IPv6 loopback: {exc}")
    with server, socket.socket(socket.AF_INET6) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, server.getsockname())
        assert sock.getpeername() == server.getsockname()


async def test_operations_cancelled_in_a_race_lose_no_data(loop, pair):
    near, far = pair
    received = b""
    for number in range(50):
        first = asyncio.create_task(loop.sock_recv(near, 100))
        await turns(number % 3)
        first.cancel()
        far.send(b"x")
        try:
            received += await first
        except asyncio.CancelledError:
            received += await loop.sock_recv(near, 100)
    assert received == b"x" * 50


async def test_a_blocking_socket_is_refused_in_debug_mode(loop, pair):
    near, _ = pair
    near.setblocking(True)
    loop.set_debug(True)
    with pytest.raises(ValueError, match="must be non-blocking"):
        await loop.sock_recv(near, 10)
