"""PinnedSender: MSG_ZEROCOPY and its notifications."""

import asyncio
import os
import socket

import pytest

from pyreactor.pinned import PinnedSender

DATA = os.urandom(1 << 20) * 5


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


async def read_exactly(loop, sock, size):
    received = b""
    while len(received) < size:
        more = await loop.sock_recv(sock, 1 << 20)
        assert more
        received += more
    return received


async def test_memory_may_be_changed_once_it_is_sent(loop, ends):
    near, far = ends
    memory = bytearray(DATA)
    with PinnedSender(near) as sender:
        for _ in range(3):
            expected = bytes(memory)
            reading = asyncio.ensure_future(read_exactly(loop, far, len(memory)))
            await sender.send(memory)
            memory[:] = bytes(len(memory))  # what is in flight is not touched by this
            assert await reading == expected
            memory[:] = os.urandom(len(memory))
        assert sender.sends > 0
        assert sender.copied == sender.sends  # as it is over loopback
        sends = sender.sends
        await sender.send(b"small")
        assert sender.sends == sends
        assert await read_exactly(loop, far, 5) == b"small"


async def test_unread_data_does_not_keep_it_busy(loop, ends):
    near, far = ends
    far.send(b"unread")
    with PinnedSender(near) as sender:
        reading = asyncio.ensure_future(read_exactly(loop, far, len(DATA)))
        await sender.send(DATA)
        assert await reading == DATA
    assert near.recv(100) == b"unread"


async def test_a_peer_that_is_gone_is_an_error(loop, ends):
    near, far = ends
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    with PinnedSender(near) as sender:
        with pytest.raises(OSError):
            for _ in range(3):
                await sender.send(DATA)


async def test_cancelling_leaves_nothing_registered(loop, ends):
    near, _ = ends
    with PinnedSender(near) as sender:
        sending = asyncio.ensure_future(sender.send(bytes(64 << 20)))
        while not sender.sends:
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not loop.remove_reader(sender._errors) and not loop.remove_writer(near)


def test_a_blocking_socket_is_refused(ends):
    near, _ = ends
    near.setblocking(True)
    with pytest.raises(ValueError, match="setblocking"):
        PinnedSender(near)
    left, right = socket.socketpair()  # of the family that knows no such thing
    with left, right:
        left.setblocking(False)
        with pytest.raises(OSError):
            PinnedSender(left)
