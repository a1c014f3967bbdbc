"""Rows D1, D2 and D4: bytes that the program does not look at, or looks at where they lie."""

import asyncio
import ctypes
import hashlib
import os
import socket
import threading
import tracemalloc

import pytest
import witness

import pyreactor
from pyreactor import zerocopy
from pyreactor.pools import BufferPool

GIB = 1 << 30
MIB = 1 << 20
CHUNK = bytes(MIB)
# What moves bytes through a program.
LOOKS = (*witness.READS, "read", "write", "sendto", "sendmsg", "writev")


def discard(sock):
    """Take all that comes, without copying it; return how much it was."""
    taken = 0
    nowhere = bytearray(MIB)
    while size := sock.recv_into(nowhere, MIB, socket.MSG_TRUNC):
        taken += size
    return taken


def start(function, *arguments):
    """Run in a thread; the result is in the list once it is joined."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments)))
    thread.start()
    return thread, result


@pytest.fixture(scope="module")
def huge_file(tmp_path_factory):
    """4 GiB that take no room on the disk."""
    path = tmp_path_factory.mktemp("huge") / "file"
    with path.open("wb") as file:
        file.truncate(4 * GIB)
    yield path
    path.unlink()


@pytest.mark.time_limit(300)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_D1_a_file_is_sent_without_being_read(huge_file, asynchronous):
    size = huge_file.stat().st_size
    with witness.record("mover.py") as scene:
        with scene.connect() as client:
            thread, taken = start(discard, client)
            sent = scene.tell("send", path=str(huge_file), asynchronous=asynchronous)
            thread.join()
    assert sent["moved"] == size and taken == [size]
    assert sent["grown_bytes"] < 4 * MIB

    within = {"after": "begin", "before": "end"}
    moves = [call for call in scene.calls("sendfile", **within) if not call.error]
    assert sum(call.result for call in moves) == size
    looked_at = scene.calls(
        *witness.READS, "read", "write", "sendto", "sendmsg", "writev", **within
    )
    assert sum(call.result or 0 for call in looked_at if not call.error) < 4096  # the loop's own


@pytest.mark.time_limit(120)
def test_D2_relayed_bytes_stay_in_the_kernel():
    with socket.create_server(("127.0.0.1", 0)) as listening, witness.record("mover.py") as scene:
        with scene.connect() as client:
            telling, relayed = start(
                lambda: scene.tell("relay", host="127.0.0.1", port=listening.getsockname()[1])
            )
            server, _ = listening.accept()
            with server:
                thread, taken = start(discard, server)
                for _ in range(GIB // MIB):
                    client.sendall(CHUNK)
                client.shutdown(socket.SHUT_WR)
                thread.join()
                server.sendall(b"thanks")
                server.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b"thanks"
                telling.join()
    assert taken == [GIB]
    (answer,) = relayed
    assert answer["moved"] == [GIB, 6]
    assert answer["grown_bytes"] < 4 * MIB

    within = {"after": "begin", "before": "end"}
    moves = [call for call in scene.calls("splice", **within) if not call.error]
    assert sum(call.result for call in moves) == 2 * (GIB + 6)  # into the pipe, and out of it
    looked_at = scene.calls(
        *witness.READS, "read", "write", "sendto", "sendmsg", "writev", **within
    )
    assert sum(call.result or 0 for call in looked_at if not call.error) < 4096
    # About nothing: what a gigabyte costs in user mode where it passes through a program.
    assert answer["user_seconds"] < 0.5


@pytest.mark.pyreactor_only
async def test_D4_a_received_byte_is_copied_once_and_looked_at_where_it_lies(loop):
    """The one copy is the kernel's, into the pool's memory."""
    data = os.urandom(16 * MIB)
    pool = BufferPool(4, 256 * 1024)
    with pool.acquire() as first, pool.acquire() as second:
        low, stride = min(first.address, second.address), abs(first.address - second.address)
    low -= pool.count * stride
    high = low + 2 * pool.count * stride
    digest = hashlib.sha256()
    finished = loop.create_future()

    class Reader(zerocopy.LeasedProtocol):
        received = 0

        def lease_received(self, lease):
            with lease as view:
                assert low <= lease.address < high
                assert ctypes.addressof(ctypes.c_char.from_buffer(view)) == lease.address
                digest.update(view)
                self.received += len(view)
            if self.received == len(data):
                finished.set_result(None)

    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        near.setblocking(False)
        transport, _ = await loop.create_connection(lambda: Reader(pool), sock=far)
        sending = asyncio.ensure_future(loop.sock_sendall(near, data))
        tracemalloc.start()
        try:
            await finished
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await sending
        transport.close()
        await asyncio.sleep(0)
    assert digest.digest() == hashlib.sha256(data).digest()
    assert peak < 64 * 1024  # no object has held the bytes
    assert pyreactor.Loop is type(loop) and pool.stats()["lent"] == 0
