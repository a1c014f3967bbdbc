"""Pipes, terminals and what else is a file to asyncio, as transports."""

import asyncio
import contextvars
import fcntl
import gc
import os
import random
import socket
import stat
import tempfile
import tty
from unittest import mock

import pytest

MIB = 1 << 20


class Recorder:
    """Keeps the names of its calls."""

    def __init__(self):
        self.events = []
        self.transport = None
        self.lost_with = "not lost"
        self.ended = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    def record(self, event):
        self.events.append(event)
        self._changed.set()

    async def until(self, condition):
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_event(self, event):
        await self.until(lambda: event in self.events)

    def connection_made(self, transport):
        self.transport = transport
        self.record("connection_made")

    def connection_lost(self, exc):
        self.lost_with = exc
        self.record("connection_lost")
        self.ended.set_result(exc)


class Reader(Recorder, asyncio.Protocol):
    def __init__(self):
        super().__init__()
        self.received = bytearray()

    async def until_received(self, count):
        await self.until(lambda: len(self.received) >= count)

    def data_received(self, data):
        assert type(data) is bytes
        self.received += data
        self.record("data_received")

    def eof_received(self):
        self.record("eof_received")
        return True  # of no effect: a pipe has one direction


class Writer(Recorder, asyncio.BaseProtocol):
    def pause_writing(self):
        self.record("pause_writing")

    def resume_writing(self):
        self.record("resume_writing")


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def write_until_full(transport):
    """Returns how many bytes were written."""
    written = 0
    while not transport.get_write_buffer_size():
        transport.write(b"x" * 16384)
        written += 16384
    return written


def read_exactly(file, count):
    data = b""
    while len(data) < count:
        data += file.read(count - len(data))
    return data


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


# Reading


async def test_data_arrives_as_it_is_written(loop):
    source, target = made_pipe()
    transport, reader = await loop.connect_read_pipe(Reader, source)
    with target:
        for data in (b"1", b"2345", b"6"):
            target.write(data)
            await reader.until_received(len(reader.received) + len(data))
        assert reader.received == b"123456"
    assert await reader.ended is None
    assert reader.events[0] == "connection_made"
    assert reader.events[-2:] == ["eof_received", "connection_lost"]
    await turns()
    assert source.closed
    assert transport.is_closing()


@pytest.mark.parametrize("capacity", [4096, 65536, MIB])
async def test_mibs_arrive_unchanged(loop, capacity):
    source, target = made_pipe()
    fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, capacity)
    _, reader = await loop.connect_read_pipe(Reader, source)
    _, writer = await loop.connect_write_pipe(Writer, target)
    rng = random.Random(9)
    parts = [rng.randbytes(rng.choice([1, 100, 5000, 70_000, 300_000])) for _ in range(60)]
    for number, part in enumerate(parts):
        writer.transport.write(part)
        if number % 7 == 0:
            await reader.until_received(sum(map(len, parts[: number + 1])))
    writer.transport.close()
    await reader.ended
    assert reader.received == b"".join(parts)


async def test_what_was_written_before_the_writer_left_is_read(loop):
    source, target = made_pipe()
    with target:
        target.write(b"data")
    _, reader = await loop.connect_read_pipe(Reader, source)
    assert await reader.ended is None
    assert reader.received == b"data"


async def test_pausing_keeps_the_data_in_the_pipe(loop):
    source, target = made_pipe()
    transport, reader = await loop.connect_read_pipe(Reader, source)
    assert transport.is_reading()
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    with target:
        target.write(b"data")
        await turns(5)
        assert not reader.received
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await reader.until_received(4)
        transport.pause_reading()
    await turns(5)
    assert "eof_received" not in reader.events
    transport.resume_reading()
    await reader.ended
    assert not transport.is_reading()


async def test_a_pause_in_connection_made_holds(loop):
    class Paused(Reader):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    source, target = made_pipe()
    with target:
        target.write(b"data")
        transport, reader = await loop.connect_read_pipe(Paused, source)
        await turns(5)
        assert not reader.received
        transport.resume_reading()
        await reader.until_received(4)
        transport.close()
        await reader.ended


async def test_nothing_is_received_after_close(loop):
    source, target = made_pipe()
    transport, reader = await loop.connect_read_pipe(Reader, source)
    with target:
        target.write(b"data")
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        assert await reader.ended is None
        await turns()
        assert source.closed
    assert reader.events == ["connection_made", "connection_lost"]
    assert transport.is_closing()


async def test_an_exception_of_data_received_is_reported(loop, reported_errors):
    class Failing(Reader):
        def data_received(self, data):
            super().data_received(data)
            if len(self.received) == 1:
                raise ZeroDivisionError

    source, target = made_pipe()
    _, reader = await loop.connect_read_pipe(Failing, source)
    with target:
        target.write(b"1")
        await reader.until(lambda: reported_errors)
        target.write(b"2")
        await reader.until_received(2)
    assert await reader.ended is None
    (report,) = reported_errors
    assert isinstance(report["exception"], ZeroDivisionError)


async def test_a_fifo_by_name(loop, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0)
    target = os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb", 0)
    _, reader = await loop.connect_read_pipe(Reader, source)
    _, writer = await loop.connect_write_pipe(Writer, target)
    writer.transport.write(b"through a name")
    await reader.until_received(14)
    writer.transport.close()
    assert await reader.ended is None
    assert await writer.ended is None


async def test_sockets_are_pipes_too(loop):
    near, far = socket.socketpair()
    _, reader = await loop.connect_read_pipe(Reader, near)
    _, writer = await loop.connect_write_pipe(Writer, far)
    data = random.Random(3).randbytes(MIB)
    writer.transport.write(data)
    writer.transport.write_eof()
    await reader.ended
    await writer.ended
    assert reader.received == data


async def test_the_descriptor_becomes_non_blocking(loop):
    source, target = made_pipe()
    _, reader = await loop.connect_read_pipe(Reader, source)
    _, writer = await loop.connect_write_pipe(Writer, target)
    assert not os.get_blocking(source.fileno())
    assert not os.get_blocking(target.fileno())
    writer.transport.close()
    await reader.ended
    await writer.ended


# Writing


async def test_the_kinds_of_data(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    with source:
        buffer = bytearray(b"buffer ")
        transport.write(b"bytes ")
        transport.write(buffer)
        buffer[:] = b"changed"
        transport.write(memoryview(b"view "))
        transport.write(b"")
        transport.writelines([b"some ", bytearray(b"lines"), memoryview(b"")])
        transport.close()
        await writer.ended
        assert source.read(100) == b"bytes buffer view some lines"


@pytest.mark.parametrize("data", ["text", 1, None])
async def test_wrong_types_are_refused(loop, data):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    with source:
        with pytest.raises((TypeError, AssertionError)):
            transport.write(data)
        transport.close()
        with pytest.raises((TypeError, AssertionError)):
            transport.write(data)
        await writer.ended


async def test_a_writer_is_paused_and_resumed(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    transport.set_write_buffer_limits(high=100_000, low=10_000)
    assert transport.get_write_buffer_limits() == (10_000, 100_000)
    with source:
        written = write_until_full(transport)
        assert "pause_writing" not in writer.events
        transport.write(b"x" * 100_001)
        assert writer.events == ["connection_made", "pause_writing"]
        written += 100_001
        assert len(await asyncio.to_thread(read_exactly, source, written)) == written
        await writer.until_event("resume_writing")
        assert transport.get_write_buffer_size() == 0
        transport.close()
        assert await writer.ended is None


@pytest.mark.parametrize("method", ["close", "write_eof"])
async def test_the_end_waits_until_all_is_written(loop, method):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    assert transport.can_write_eof()
    with source:
        written = write_until_full(transport)
        getattr(transport, method)()
        getattr(transport, method)()
        assert transport.is_closing()
        transport.write(b"too late")
        transport.writelines([b"too", b"late"])
        await turns()
        assert not writer.ended.done()
        assert await asyncio.to_thread(read_exactly, source, written) == b"x" * written
        assert await writer.ended is None
        await turns()
        assert source.read(10) == b""
        assert target.closed


async def test_abort_drops_what_is_left(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    with source:
        written = write_until_full(transport)
        transport.abort()
        assert await writer.ended is None
        await turns()
        data = b""
        while part := source.read(MIB):
            data += part
        assert 0 < len(data) < written


async def test_abort_works_after_close_and_dropped_writes(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    with source:
        write_until_full(transport)
        transport.close()
        transport.write(b"dropped")
        transport.abort()
        assert await writer.ended is None


async def test_many_dropped_writes_are_logged(loop, caplog):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    with source:
        transport.close()
        for _ in range(10):
            transport.write(b"dropped")
        await writer.ended
    assert "pipe closed by peer or os.write(pipe, data) raised exception." in caplog.text


async def test_a_reader_that_leaves_amid_a_write_breaks_the_pipe(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    write_until_full(transport)
    source.close()
    assert isinstance(await writer.ended, BrokenPipeError)
    assert transport.is_closing()
    transport.write(b"dropped")


async def test_a_reader_that_leaves_a_closing_pipe_ends_it(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    write_until_full(transport)
    transport.close()
    transport.write(b"dropped")
    source.close()
    assert isinstance(await writer.ended, BrokenPipeError)


async def test_writing_to_a_pipe_without_reader_is_no_news_to_the_handler(loop):
    source, target = made_pipe()
    transport, writer = await loop.connect_write_pipe(Writer, target)
    source.close()
    transport.write(b"data")
    assert isinstance(await writer.ended, BrokenPipeError)
    assert transport.is_closing()


# Terminals and other devices


async def test_one_terminal_is_read_and_written_at_once(loop):
    master, slave = os.openpty()
    tty.setraw(slave)
    second = os.dup(slave)
    with os.fdopen(master, "r+b", 0) as master:
        _, reader = await loop.connect_read_pipe(Reader, os.fdopen(slave, "rb", 0))
        _, writer = await loop.connect_write_pipe(Writer, os.fdopen(second, "wb", 0))
        master.write(b"question")
        await reader.until_received(8)
        writer.transport.write(b"answer")
        assert await asyncio.to_thread(read_exactly, master, 6) == b"answer"
        writer.transport.close()
        reader.transport.close()
        await writer.ended
        await reader.ended


@pytest.mark.parametrize("first", ["reader", "writer"])
async def test_one_file_is_read_and_written_at_once(loop, first):
    master, slave = os.openpty()
    tty.setraw(slave)
    with os.fdopen(master, "r+b", 0) as master:
        file = os.fdopen(slave, "r+b", 0)
        if first == "reader":
            _, reader = await loop.connect_read_pipe(Reader, file)
            _, writer = await loop.connect_write_pipe(Writer, file)
        else:
            _, writer = await loop.connect_write_pipe(Writer, file)
            _, reader = await loop.connect_read_pipe(Reader, file)
        assert reader.transport.get_extra_info("pipe") is file
        assert writer.transport.get_extra_info("pipe") is file
        master.write(b"question")
        await reader.until_received(8)
        writer.transport.write(b"answer")
        assert await asyncio.to_thread(read_exactly, master, 6) == b"answer"
        writer.transport.close()
        reader.transport.close()
        await writer.ended
        await reader.ended
        await turns()
        assert file.closed


async def test_the_other_side_of_a_terminal_that_leaves_is_the_end(loop):
    master, slave = os.openpty()
    _, reader = await loop.connect_read_pipe(Reader, os.fdopen(master, "rb", 0))
    os.write(slave, b"last words")
    await reader.until_received(10)
    os.close(slave)
    error = await reader.ended
    assert error is None or isinstance(error, OSError)


async def test_writing_to_a_device_that_cannot_be_waited_for(loop):
    device = os.fdopen(os.open("/dev/null", os.O_WRONLY), "wb", 0)
    transport, writer = await loop.connect_write_pipe(Writer, device)
    transport.write(b"x" * MIB)
    assert transport.get_write_buffer_size() == 0
    transport.close()
    assert await writer.ended is None


# The transport as an object


@pytest.mark.parametrize("method", ["connect_read_pipe", "connect_write_pipe"])
async def test_the_transport_tells_about_itself(loop, method):
    source, target = made_pipe()
    pipe, other = (source, target) if method == "connect_read_pipe" else (target, source)
    made = Reader if method == "connect_read_pipe" else Writer
    kind = asyncio.ReadTransport if method == "connect_read_pipe" else asyncio.WriteTransport
    transport, protocol = await getattr(loop, method)(made, pipe)
    with other:
        assert isinstance(transport, kind)
        assert isinstance(transport, asyncio.Transport) == (kind is asyncio.WriteTransport)
        assert transport.get_extra_info("pipe") is pipe
        assert transport.get_extra_info("nothing", 1) == 1
        assert transport.get_protocol() is protocol
        assert f"fd={pipe.fileno()}" in repr(transport)
        assert "closing" not in repr(transport)
        transport.is_closing = mock.Mock(return_value="mocked")
        assert transport.is_closing() == "mocked"
        transport.close()
        assert "closing" in repr(transport)
        await protocol.ended
        await turns()
        assert "closed" in repr(transport)
        assert pipe.closed


@pytest.mark.parametrize("method", ["connect_read_pipe", "connect_write_pipe"])
def test_a_transport_left_open_warns_and_closes_its_file(loop, method):
    source, target = made_pipe()
    pipe, other = (source, target) if method == "connect_read_pipe" else (target, source)

    async def connect():
        return await getattr(loop, method)(asyncio.Protocol, pipe)

    with other:
        transport, protocol = loop.run_until_complete(connect())
        loop.close()
        assert "open" in repr(transport)
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            del transport, protocol
            gc.collect()
        assert pipe.closed


@pytest.mark.parametrize("method", ["connect_read_pipe", "connect_write_pipe"])
async def test_a_refused_file_stays_the_callers(loop, method):
    with tempfile.TemporaryFile() as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        with pytest.raises(ValueError):
            await getattr(loop, method)(asyncio.Protocol, file)
        assert not file.closed
        assert os.get_blocking(file.fileno())


async def test_callbacks_run_in_the_context_of_creation(loop):
    variable = contextvars.ContextVar("variable", default="default")

    class InContext(Reader):
        def record(self, event):
            self.seen = {**getattr(self, "seen", {}), event: variable.get()}
            super().record(event)

    async def create():
        variable.set("of the creator")
        return await loop.connect_read_pipe(InContext, source)

    source, target = made_pipe()
    _, reader = await asyncio.create_task(create())
    with target:
        target.write(b"data")
        await reader.until_received(4)
    await reader.ended
    assert set(reader.seen.values()) == {"of the creator"}


@pytest.mark.pyreactor_only
async def test_what_one_callback_writes_leaves_in_one_call(loop):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    transport, writer = await loop.connect_write_pipe(Writer, near)
    with far:
        transport.write(b"one ")
        transport.write(b"record")
        await turns()
        assert far.recv(100) == b"one record"
        transport.close()
        await writer.ended


async def test_descriptors_used_again_hear_nothing_of_the_old(loop):
    for number in range(30):
        source, target = made_pipe()
        _, reader = await loop.connect_read_pipe(Reader, source)
        _, writer = await loop.connect_write_pipe(Writer, target)
        writer.transport.write(b"%d" % number)
        await reader.until_received(len(b"%d" % number))
        writer.transport.write(b"late")
        (reader if number % 2 else writer).transport.close()
        await asyncio.gather(reader.ended, writer.ended)
        assert bytes(reader.received).startswith(b"%d" % number)


async def test_a_process_is_talked_to_through_pipes(loop):
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    data = random.Random(6).randbytes(2 * MIB)
    out, _ = await process.communicate(data)
    assert out == data
    assert process.returncode == 0
