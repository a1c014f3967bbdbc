"""Pipes as transports: who owns the descriptor."""

import asyncio
import os
import socket
import tempfile

import pytest


class Reader(asyncio.Protocol):
    def __init__(self):
        self.received = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.received += data

    def connection_lost(self, exc):
        self.ended.set_result(exc)


class Writer(asyncio.BaseProtocol):
    def __init__(self):
        self.ended = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc):
        self.ended.set_result(exc)


def made_pipe():
    source, target = os.pipe()
    return os.fdopen(source, "rb", 0), os.fdopen(target, "wb", 0)


async def test_what_is_written_arrives(loop):
    source, target = made_pipe()
    reading, reader = await loop.connect_read_pipe(Reader, source)
    writing, writer = await loop.connect_write_pipe(Writer, target)
    data = bytes(range(256)) * 4096
    writing.write(data)
    writing.close()
    assert await reader.ended is None
    assert await writer.ended is None
    assert reader.received == data
    assert reading.is_closing()


@pytest.mark.parametrize("method", ["connect_read_pipe", "connect_write_pipe"])
async def test_a_cancelled_connect_never_closes_somebody_elses_descriptor(loop, method):
    source, target = made_pipe()
    pipe, other = (source, target) if method == "connect_read_pipe" else (target, source)
    number = pipe.fileno()
    connecting = asyncio.create_task(getattr(loop, method)(asyncio.Protocol, pipe))
    await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    for _ in range(3):
        await asyncio.sleep(0)
    assert pipe.closed
    near, far = socket.socketpair()
    with near, far, other:
        assert number in (near.fileno(), far.fileno())
        del pipe, source, target
        for _ in range(3):
            await asyncio.sleep(0)
        near.send(b"alive")
        assert far.recv(10) == b"alive"


@pytest.mark.parametrize("method", ["connect_read_pipe", "connect_write_pipe"])
async def test_a_regular_file_is_no_pipe(loop, method):
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match="(?i)pipe transport is"):
            await getattr(loop, method)(asyncio.Protocol, file)


async def test_a_writer_hears_that_the_reader_is_gone(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    source.close()
    await writer.ended
    assert transport.is_closing()
