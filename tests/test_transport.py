"""Stream transports over TCP and Unix sockets, and how they treat their protocol."""

import array
import asyncio
import contextlib
import contextvars
import gc
import hashlib
import os
import random
import socket
import struct
import sys
import threading
from unittest import mock

import pytest

MIB = 1 << 20
ASYNCIO_WRITELINES_FAULTY = (3, 12) <= sys.version_info < (3, 14, 10)
TCP_INFO_DATA_SEGS_IN = 152  # offset of tcpi_data_segs_in in struct tcp_info


class Recorder(asyncio.Protocol):
    """Keeps the names of its calls and the data it was given."""

    def __init__(self):
        self.events = []
        self.received = bytearray()
        self.transport = None
        self.lost_with = "not lost"
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

    async def until_received(self, count):
        await self.until(lambda: len(self.received) >= count)

    def connection_made(self, transport):
        self.transport = transport
        self.record("connection_made")

    def data_received(self, data):
        self.received += data
        self.record("data_received")

    def eof_received(self):
        self.record("eof_received")

    def pause_writing(self):
        self.record("pause_writing")

    def resume_writing(self):
        self.record("resume_writing")

    def connection_lost(self, exc):
        self.lost_with = exc
        self.record("connection_lost")


class HalfOpen(Recorder):
    """Goes on writing after the peer's end."""

    def eof_received(self):
        super().eof_received()
        return True


class BufferedRecorder(asyncio.BufferedProtocol):
    """A Recorder that is given its data in a buffer of its own."""

    data_received = None

    def __init__(self, size=4096):
        Recorder.__init__(self)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        self.sizehint = sizehint
        return self.buffer

    def buffer_updated(self, count):
        self.received += self.buffer[:count]
        self.record("buffer_updated")

    record = Recorder.record
    until = Recorder.until
    until_event = Recorder.until_event
    until_received = Recorder.until_received
    connection_made = Recorder.connection_made
    eof_received = Recorder.eof_received
    pause_writing = Recorder.pause_writing
    resume_writing = Recorder.resume_writing
    connection_lost = Recorder.connection_lost


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


@pytest.fixture(params=["tcp", "unix"])
def pair(request):
    """A socket for the transport, and the peer's socket for the test."""
    near, far = tcp_pair() if request.param == "tcp" else socket.socketpair()
    far.settimeout(10)
    with near, far:
        yield near, far


@pytest.fixture
def tcp():
    near, far = tcp_pair()
    far.settimeout(10)
    with near, far:
        yield near, far


@contextlib.asynccontextmanager
async def connected(loop, sock, protocol):
    """A transport for the protocol; in the end it is closed, and its life has to be in order."""
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    try:
        yield transport
    finally:
        if "connection_lost" not in protocol.events:
            transport.abort()
    await protocol.until_event("connection_lost")
    assert protocol.events.count("connection_made") == 1
    assert protocol.events.count("connection_lost") == 1
    assert protocol.events[-1] == "connection_lost"
    assert sock.fileno() == -1


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def read_exactly(sock, count):
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), MIB))
        if not part:
            break
        data += part
    return bytes(data)


def read_to_end(sock):
    parts = []
    while part := sock.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def reset(sock):
    """Close a TCP socket with a reset instead of a regular end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def write_until_full(transport):
    """Write until the transport itself has to keep data."""
    written = 0
    while transport.get_write_buffer_size() < MIB:
        transport.write(bytes(256 * 1024))
        written += 256 * 1024
    return written


# Reading


async def test_data_reach_the_protocol_in_order(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        protocol = transport.get_protocol()
        far.sendall(b"first ")
        await protocol.until_received(6)
        far.sendall(b"second")
        await protocol.until_received(12)
        assert protocol.received == b"first second"
        assert protocol.events == ["connection_made", "data_received", "data_received"]


async def test_data_are_given_as_bytes(loop, pair):
    near, far = pair
    types = []

    class Protocol(Recorder):
        def data_received(self, data):
            types.append(type(data))
            super().data_received(data)

    async with connected(loop, near, Protocol()) as transport:
        far.sendall(b"x")
        await transport.get_protocol().until_received(1)
        far.sendall(bytes(100_000))
        await transport.get_protocol().until_received(100_001)
    assert set(types) == {bytes}


@pytest.mark.parametrize("make_protocol", [Recorder, BufferedRecorder])
async def test_many_mebibytes_arrive_unchanged(loop, pair, make_protocol):
    near, far = pair
    data = random.Random(1).randbytes(8 * MIB + 12345)
    protocol = make_protocol()
    async with connected(loop, near, protocol):
        sending = asyncio.to_thread(far.sendall, data)
        await asyncio.gather(sending, protocol.until_received(len(data)))
        assert hashlib.sha256(protocol.received).digest() == hashlib.sha256(data).digest()


async def test_received_bytes_are_not_changed_by_later_data(loop, pair):
    near, far = pair
    kept = []

    class Protocol(Recorder):
        def data_received(self, data):
            kept.append(data)
            super().data_received(data)

    async with connected(loop, near, Protocol()) as transport:
        for number in range(20):
            far.sendall(bytes([number]) * 1000)
            await transport.get_protocol().until_received(1000 * (number + 1))
    assert b"".join(kept) == b"".join(bytes([number]) * 1000 for number in range(20))


async def test_reading_paused_in_connection_made_stays_paused(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    far.sendall(b"early")
    async with connected(loop, near, Protocol()) as transport:
        protocol = transport.get_protocol()
        assert not transport.is_reading()
        await turns()
        assert protocol.events == ["connection_made"]
        transport.resume_reading()
        assert transport.is_reading()
        await protocol.until_received(5)


async def test_nothing_is_received_while_reading_is_paused(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        protocol = transport.get_protocol()
        transport.pause_reading()
        transport.pause_reading()
        far.sendall(b"data")
        await turns()
        assert protocol.received == b""
        transport.resume_reading()
        transport.resume_reading()
        await protocol.until_received(4)
        transport.pause_reading()
        far.close()
        await turns()
        assert "eof_received" not in protocol.events
        transport.resume_reading()
        await protocol.until_event("connection_lost")
        assert protocol.events.count("eof_received") == 1


async def test_reading_paused_in_data_received_stops_at_once(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()

    async with connected(loop, near, Protocol()) as transport:
        protocol = transport.get_protocol()
        sending = loop.run_in_executor(None, far.sendall, b"x" * 100_000)
        calls = 0
        while len(protocol.received) < 100_000:
            calls += 1
            await protocol.until(
                lambda calls=calls: protocol.events.count("data_received") >= calls
            )
            await turns()
            assert protocol.events.count("data_received") == calls
            transport.resume_reading()
        await sending


async def test_reading_can_be_paused_and_resumed_in_one_callback(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()
            self.transport.resume_reading()

    async with connected(loop, near, Protocol()) as transport:
        for count in range(1, 4):
            far.sendall(b"x")
            await transport.get_protocol().until_received(count)


async def test_pausing_and_resuming_a_closing_transport_does_nothing(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        far.sendall(b"data")
        transport.close()
        assert not transport.is_reading()
        transport.resume_reading()
        transport.pause_reading()
        transport.resume_reading()
        assert not transport.is_reading()
        await transport.get_protocol().until_event("connection_lost")
        assert transport.get_protocol() is None or not transport.get_protocol().received
        transport.pause_reading()
        transport.resume_reading()


async def test_a_paused_transport_can_be_closed(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.pause_reading()
        far.sendall(b"data")
        transport.close()
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "connection_lost"]


async def test_closing_in_data_received_ends_the_calls(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.close()
            self.transport.resume_reading()

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.sendall(b"x" * 100_000)
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "data_received", "connection_lost"]
        assert protocol.lost_with is None


async def test_a_connection_with_endless_data_does_not_starve_the_loop(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def data_received(self, data):
            self.record("data_received")
            far.send(b"x" * 1000)

    async with connected(loop, near, Protocol()):
        far.send(b"x" * 1000)
        await turns(10)
        await asyncio.sleep(0.001)


async def test_a_connection_with_much_data_does_not_starve_another(loop, pair):
    near, far = pair
    other_near, other_far = socket.socketpair()
    other = Recorder()

    class Protocol(Recorder):
        def data_received(self, data):
            self.record("data_received")
            far.send(b"x" * 1000)

    with other_far:
        async with connected(loop, near, Protocol()), connected(loop, other_near, other):
            far.send(b"x" * 1000)
            other_far.send(b"small")
            await other.until_received(5)


# The end of the stream


async def test_the_end_of_the_stream_closes_the_transport(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        far.sendall(b"last")
        far.shutdown(socket.SHUT_WR)
        await protocol.until_event("connection_lost")
        assert protocol.received == b"last"
        assert protocol.events[-2:] == ["eof_received", "connection_lost"]
        assert protocol.lost_with is None
        assert transport.is_closing()


async def test_a_protocol_can_write_after_the_peers_end(loop, pair):
    near, far = pair
    protocol = HalfOpen()
    async with connected(loop, near, protocol) as transport:
        far.shutdown(socket.SHUT_WR)
        await protocol.until_event("eof_received")
        await turns()
        assert not transport.is_closing()
        assert protocol.events == ["connection_made", "eof_received"]
        transport.write(b"answer")
        assert await asyncio.to_thread(read_exactly, far, 6) == b"answer"
        transport.close()
        assert await asyncio.to_thread(far.recv, 1) == b""
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


async def test_a_half_open_connection_stays_quiet(loop, pair):
    near, far = pair
    protocol = HalfOpen()
    async with connected(loop, near, protocol) as transport:
        far.shutdown(socket.SHUT_WR)
        await protocol.until_event("eof_received")
        await turns(10)
        assert protocol.events == ["connection_made", "eof_received"]
        transport.pause_reading()
        transport.resume_reading()
        await turns(10)
        assert protocol.events.count("data_received") == 0
        assert protocol.events.count("eof_received") <= 2  # resuming may tell it once more
        assert not transport.is_closing()


async def test_closing_in_eof_received_wins_over_staying_half_open(loop, pair):
    near, far = pair

    class Protocol(HalfOpen):
        def eof_received(self):
            self.transport.close()
            return super().eof_received()

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.close()
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "eof_received", "connection_lost"]


async def test_what_eof_received_writes_is_sent_before_the_close(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def eof_received(self):
            super().eof_received()
            self.transport.write(b"x" * (2 * MIB))

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.shutdown(socket.SHUT_WR)
        assert len(await asyncio.to_thread(read_to_end, far)) == 2 * MIB
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


async def test_write_eof_ends_the_stream_after_what_was_written(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        assert transport.can_write_eof() is True
        transport.write(b"x" * (4 * MIB))
        transport.write_eof()
        transport.write_eof()
        assert len(await asyncio.to_thread(read_to_end, far)) == 4 * MIB
        assert not transport.is_closing()
        far.sendall(b"still read")
        await protocol.until_received(10)
        far.close()
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


async def test_write_eof_without_data_ends_the_stream(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        transport.write_eof()
        assert await asyncio.to_thread(far.recv, 1) == b""


@pytest.mark.parametrize("data", [b"data", b""])
async def test_writing_after_write_eof_is_an_error(loop, pair, data):
    near, _ = pair
    async with connected(loop, near, Recorder()) as transport:
        transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            transport.write(data)
        with pytest.raises(RuntimeError, match=r"Cannot call write(lines)?\(\) after write_eof"):
            transport.writelines([data])
        transport.close()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            transport.write(data)


async def test_write_eof_on_a_closing_transport_does_nothing(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.close()
        transport.write_eof()
        transport.write(b"dropped, not refused")
        await protocol.until_event("connection_lost")
        transport.write_eof()


# Writing


async def test_what_is_written_reaches_the_peer(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        transport.write(b"bytes ")
        transport.write(bytearray(b"bytearray "))
        transport.write(memoryview(b"memoryview "))
        transport.write(b"")
        transport.writelines([b"l", b"i", bytearray(b"n"), memoryview(b"es")])
        expected = b"bytes bytearray memoryview lines"
        assert await asyncio.to_thread(read_exactly, far, len(expected)) == expected
        await turns()
        assert transport.get_write_buffer_size() == 0


async def test_another_task_sees_what_the_kernel_has_taken(loop, pair):
    near, far = pair
    wrote, looked = asyncio.Event(), asyncio.Event()
    async with connected(loop, near, Recorder()) as transport:

        async def write():
            for _ in range(20):
                transport.write(bytes(1000))
                looked.clear()
                wrote.set()
                await looked.wait()

        writing = loop.create_task(write())
        sizes = []
        for _ in range(20):
            await wrote.wait()
            wrote.clear()
            sizes.append(transport.get_write_buffer_size())
            looked.set()
        assert sizes == [0] * 20
        await writing
        assert len(await asyncio.to_thread(read_exactly, far, 20000)) == 20000


async def test_views_of_wide_items_are_written_as_bytes(loop, pair):
    near, far = pair
    numbers = array.array("I", range(1000))
    async with connected(loop, near, Recorder()) as transport:
        transport.write(memoryview(numbers))
        assert await asyncio.to_thread(read_exactly, far, 4000) == numbers.tobytes()


async def test_a_long_row_of_writes_arrives_in_order(loop, pair):
    near, far = pair
    generator = random.Random(2)
    parts = [generator.randbytes(generator.choice([1, 7, 300, 5000])) for _ in range(3000)]
    async with connected(loop, near, Recorder()) as transport:
        for part in parts:
            transport.write(part)
        expected = b"".join(parts)
        assert await asyncio.to_thread(read_exactly, far, len(expected)) == expected


async def test_many_mebibytes_are_written_unchanged(loop, pair):
    near, far = pair
    data = random.Random(3).randbytes(16 * MIB)
    async with connected(loop, near, Recorder()) as transport:
        transport.write(data)
        assert transport.get_write_buffer_size() > 0
        received = await asyncio.to_thread(read_exactly, far, len(data))
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        await turns()
        assert transport.get_write_buffer_size() == 0


async def test_writing_goes_on_in_order_from_resume_writing(loop, pair):
    near, far = pair
    expected = bytearray()

    class Protocol(Recorder):
        def resume_writing(self):
            super().resume_writing()
            if len(expected) < 4 * MIB:
                self.write_some()

        def write_some(self):
            while not self.transport._protocol_paused:
                part = random.Random(len(expected)).randbytes(100_000)
                expected.extend(part)
                self.transport.write(part)

    async with connected(loop, near, Protocol()) as transport:
        transport.get_protocol().write_some()
        received = await asyncio.to_thread(read_exactly, far, 4 * MIB)
        rest = await asyncio.to_thread(read_exactly, far, len(expected) - 4 * MIB)
        assert received + rest == expected


async def test_writelines_takes_more_buffers_than_one_call_of_the_kernel(loop, pair):
    near, far = pair
    parts = [bytes([number % 256]) * (number % 50 + 1) for number in range(5000)]
    async with connected(loop, near, Recorder()) as transport:
        transport.writelines(parts)
        expected = b"".join(parts)
        assert await asyncio.to_thread(read_exactly, far, len(expected)) == expected


async def test_writelines_takes_any_iterable(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        transport.writelines(bytes([number]) for number in b"generator")
        transport.writelines((b" and ", b"tuple"))
        transport.writelines([])
        assert await asyncio.to_thread(read_exactly, far, 19) == b"generator and tuple"


@pytest.mark.asyncio_differs(
    "an empty part stays in the queue and is tried for ever", when=ASYNCIO_WRITELINES_FAULTY
)
async def test_writelines_with_empty_parts_leaves_nothing_behind(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        transport.writelines([b"", b"a", b"", b"b", b""])
        transport.writelines([b"", b""])
        assert await asyncio.to_thread(read_exactly, far, 2) == b"ab"
        await turns()
        assert transport.get_write_buffer_size() == 0


async def test_big_writelines_arrive_unchanged(loop, pair):
    near, far = pair
    generator = random.Random(4)
    parts = [generator.randbytes(generator.randrange(1, 10_000)) for _ in range(2500)]
    async with connected(loop, near, Recorder()) as transport:
        transport.write(b"before ")
        transport.writelines(parts)
        transport.write(b" after")
        expected = b"before " + b"".join(parts) + b" after"
        received = await asyncio.to_thread(read_exactly, far, len(expected))
        assert hashlib.sha256(received).digest() == hashlib.sha256(expected).digest()


@pytest.mark.asyncio_differs(
    "the queue holds a view of the caller's buffer", when=sys.version_info >= (3, 12)
)
@pytest.mark.parametrize("method", ["write", "writelines"])
@pytest.mark.parametrize("kind", [bytearray, lambda data: memoryview(bytearray(data))])
async def test_a_buffer_may_be_changed_after_it_was_written(loop, pair, kind, method):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        written = write_until_full(transport)
        data = kind(b"original" * 1000)
        if method == "write":
            transport.write(data)
        else:
            transport.writelines([data, data])
        data[:8] = b"modified"
        if isinstance(data, bytearray):
            data.clear()
        count = 1 if method == "write" else 2
        received = await asyncio.to_thread(read_exactly, far, written + count * 8000)
        assert received[written:] == b"original" * 1000 * count


async def test_a_short_buffer_may_be_changed_right_after_it_was_written(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        data = bytearray(b"original")
        transport.write(data)
        data[:] = b"modified"
        data.clear()
        assert await asyncio.to_thread(read_exactly, far, 8) == b"original"


@pytest.mark.parametrize("data", ["text", None, 1, [b"x"], object()], ids=repr)
async def test_only_bytes_can_be_written(loop, pair, data):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        with pytest.raises(TypeError, match="data argument must be a bytes"):
            transport.write(data)
        transport.write(b"sent")
        assert await asyncio.to_thread(read_exactly, far, 4) == b"sent"
        with pytest.raises(TypeError):
            transport.writelines(1)
        with pytest.raises(TypeError):
            transport.write()


@pytest.mark.asyncio_differs(
    "what is false is skipped, and the parts before a wrong one are sent",
    when=sys.version_info >= (3, 14),
)
@pytest.mark.parametrize("data", ["text", None, 1, [b"x"], object()], ids=repr)
async def test_a_wrong_part_keeps_writelines_from_sending_any(loop, pair, data):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        with pytest.raises(TypeError):
            transport.writelines([b"not sent", data])
        transport.write(b"sent")
        assert await asyncio.to_thread(read_exactly, far, 4) == b"sent"


async def test_wrong_types_are_refused_whatever_the_state_of_the_transport(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.write_eof()
        with pytest.raises(TypeError):
            transport.write("text")
        transport.close()
        with pytest.raises(TypeError):
            transport.write("text")
        await protocol.until_event("connection_lost")
        with pytest.raises(TypeError):
            transport.write("text")


async def test_writes_after_close_are_dropped(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.write(b"sent")
        transport.close()
        for _ in range(3):
            transport.write(b"dropped")
        await protocol.until_event("connection_lost")
        transport.write(b"dropped")
        assert await asyncio.to_thread(read_to_end, far) == b"sent"


@pytest.mark.asyncio_differs(
    "it calls a method that close() removed", when=ASYNCIO_WRITELINES_FAULTY
)
async def test_writelines_after_close_is_dropped(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.write(b"sent")
        transport.close()
        transport.writelines([b"dropped", b"too"])
        await protocol.until_event("connection_lost")
        transport.writelines([b"dropped", b"too"])
        assert await asyncio.to_thread(read_to_end, far) == b"sent"


async def test_writes_in_connection_made_are_sent(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.write(b"hello")

    async with connected(loop, near, Protocol()):
        assert await asyncio.to_thread(read_exactly, far, 5) == b"hello"


async def test_a_write_in_connection_lost_is_dropped(loop, pair):
    near, far = pair

    class Protocol(Recorder):
        def connection_lost(self, exc):
            self.transport.write(b"too late")
            super().connection_lost(exc)

    protocol = Protocol()
    async with connected(loop, near, protocol) as transport:
        transport.close()
        await protocol.until_event("connection_lost")
        assert await asyncio.to_thread(read_to_end, far) == b""


@pytest.mark.pyreactor_only
async def test_writes_of_one_callback_leave_in_one_segment(loop, tcp):
    near, far = tcp

    def segments_received():
        info = far.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        return struct.unpack_from("I", info, TCP_INFO_DATA_SEGS_IN)[0]

    async with connected(loop, near, Recorder()) as transport:
        for number in range(1, 4):
            transport.write(b"head")
            transport.write(b"body")
            transport.writelines([b"tail", b"."])
            assert await asyncio.to_thread(read_exactly, far, 13) == b"headbodytail."
            assert segments_received() == number


async def test_nagles_algorithm_is_off(loop, tcp):
    near, _ = tcp
    async with connected(loop, near, Recorder()) as transport:
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Flow control


async def test_the_limits_of_the_write_buffer_have_their_defaults(loop, pair):
    near, _ = pair
    async with connected(loop, near, Recorder()) as transport:
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        for limits, expected in [
            ({"high": 0}, (0, 0)),
            ({"high": 400}, (100, 400)),
            ({"low": 100}, (100, 400)),
            ({"high": 7, "low": 7}, (7, 7)),
            ({"high": 1 << 40, "low": 0}, (0, 1 << 40)),
            ({}, (16 * 1024, 64 * 1024)),
        ]:
            transport.set_write_buffer_limits(**limits)
            assert transport.get_write_buffer_limits() == expected
        transport.set_write_buffer_limits(20, 10)
        assert transport.get_write_buffer_limits() == (10, 20)


@pytest.mark.parametrize("limits", [(1, 2), (-1, None), (None, -1), (-1, -2), (0, 1)])
async def test_impossible_limits_are_refused(loop, pair, limits):
    near, _ = pair
    async with connected(loop, near, Recorder()) as transport:
        with pytest.raises(ValueError, match="must be >= "):
            transport.set_write_buffer_limits(*limits)
        with pytest.raises(TypeError):
            transport.set_write_buffer_limits("1", 2)
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)


async def test_a_full_buffer_pauses_the_protocol_until_it_has_drained(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        written = write_until_full(transport)
        assert protocol.events == ["connection_made", "pause_writing"]
        assert transport.get_write_buffer_size() > 64 * 1024
        reading = asyncio.to_thread(read_exactly, far, written)
        resumed = protocol.until_event("resume_writing")
        await asyncio.gather(reading, resumed)
        assert transport.get_write_buffer_size() <= 16 * 1024
        assert protocol.events == ["connection_made", "pause_writing", "resume_writing"]
        written = write_until_full(transport)
        assert protocol.events[3:] == ["pause_writing"]
        await asyncio.to_thread(read_exactly, far, written)
        await protocol.until(lambda: protocol.events[3:] == ["pause_writing", "resume_writing"])


async def test_a_limit_of_zero_pauses_until_everything_is_sent(loop, pair):
    near, far = pair
    left = []

    class Protocol(Recorder):
        def resume_writing(self):
            super().resume_writing()
            left.append(self.transport.get_write_buffer_size())

    protocol = Protocol()
    async with connected(loop, near, protocol) as transport:
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_limits() == (0, 0)
        written = write_until_full(transport)
        assert protocol.events == ["connection_made", "pause_writing"]
        await asyncio.gather(
            asyncio.to_thread(read_exactly, far, written), protocol.until_event("resume_writing")
        )
        assert left == [0]


async def test_lowering_the_limit_below_what_is_buffered_pauses_at_once(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.set_write_buffer_limits(high=64 * MIB)
        write_until_full(transport)
        assert "pause_writing" not in protocol.events
        transport.set_write_buffer_limits(high=100)
        assert protocol.events == ["connection_made", "pause_writing"]
        transport.set_write_buffer_limits(high=50)
        assert protocol.events.count("pause_writing") == 1


async def test_a_write_the_kernel_takes_whole_pauses_nothing(loop):
    near, far = socket.socketpair()
    protocol = Recorder()
    with far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        far.settimeout(10)
        async with connected(loop, near, protocol) as transport:
            transport.set_write_buffer_limits(high=10_000)
            transport.write(bytes(50_000))
            await turns()
            assert transport.get_write_buffer_size() == 0
            assert len(await asyncio.to_thread(read_exactly, far, 50_000)) == 50_000
    assert protocol.events == ["connection_made", "connection_lost"]


@pytest.mark.asyncio_differs(
    "writelines() does not look at the limits", when=ASYNCIO_WRITELINES_FAULTY
)
async def test_writelines_pauses_the_protocol_too(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.writelines([bytes(MIB) for _ in range(8)])
        assert protocol.events == ["connection_made", "pause_writing"]
        assert transport._protocol_paused


async def test_whether_the_protocol_is_paused_can_be_seen(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        assert transport._protocol_paused is False
        written = write_until_full(transport)
        assert transport._protocol_paused is True
        await asyncio.gather(
            asyncio.to_thread(read_exactly, far, written),
            transport.get_protocol().until_event("resume_writing"),
        )
        assert transport._protocol_paused is False


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_an_exception_in_flow_control_is_reported_and_the_rest_is_sent(
    loop, pair, reported_errors, method
):
    near, far = pair
    protocol = Recorder()

    def fail():
        protocol.record(method)
        raise ZeroDivisionError

    setattr(protocol, method, fail)
    async with connected(loop, near, protocol) as transport:
        written = write_until_full(transport)
        await asyncio.gather(
            asyncio.to_thread(read_exactly, far, written), protocol.until_event("resume_writing")
        )
    (context,) = reported_errors
    assert context["message"] == f"protocol.{method}() failed"
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["transport"] is transport and context["protocol"] is protocol
    reported_errors.clear()


# Closing


async def test_close_sends_what_was_written_first(loop, pair):
    near, far = pair
    protocol = Recorder()
    data = random.Random(5).randbytes(8 * MIB)
    async with connected(loop, near, protocol) as transport:
        transport.write(data)
        transport.close()
        transport.close()
        assert transport.is_closing()
        received = await asyncio.to_thread(read_exactly, far, len(data))
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


async def test_nothing_is_received_while_a_close_waits_for_the_peer(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        transport.close()
        far.sendall(b"data")
        await turns()
        transport.resume_reading()
        await turns()
        assert "connection_lost" not in protocol.events
        assert protocol.received == b""


async def test_resuming_while_a_close_waits_for_the_peer_lets_no_data_through(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.pause_reading()
        write_until_full(transport)
        transport.close()
        far.sendall(b"data")
        transport.resume_reading()
        await turns()
        assert not transport.is_reading()
        assert "connection_lost" not in protocol.events
        assert protocol.received == b""


@pytest.mark.asyncio_differs(
    "abort() after a close that had to wait is an AttributeError",
    when=sys.version_info < (3, 14, 10),
)
async def test_abort_after_a_close_that_had_to_wait_does_nothing(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        written = write_until_full(transport)
        transport.close()
        await asyncio.to_thread(read_exactly, far, written)
        await protocol.until_event("connection_lost")
        transport.abort()
        transport.close()
        await turns()


async def test_connection_lost_comes_in_a_later_turn_than_close(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        loop.call_soon(protocol.record, "before")
        transport.close()
        loop.call_soon(protocol.record, "after")
        assert protocol.events == ["connection_made"]
        await protocol.until_event("connection_lost")
        assert protocol.events[:2] == ["connection_made", "before"]
        await protocol.until_event("after")
        protocol.events.remove("after")


async def test_abort_drops_what_was_not_sent(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        written = write_until_full(transport)
        transport.abort()
        transport.abort()
        transport.close()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        assert "connection_lost" not in protocol.events
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
        with contextlib.suppress(ConnectionResetError):
            assert len(await asyncio.to_thread(read_to_end, far)) < written


@pytest.mark.parametrize("base", [asyncio.Protocol, asyncio.BufferedProtocol])
async def test_a_slow_protocol_is_named_in_debug_mode(loop, pair, caplog, base):
    near, far = pair
    received = loop.create_future()

    class Slow(base):
        def data_received(self, data):
            received.set_result(data)

        def get_buffer(self, sizehint):
            return bytearray(10)

        def buffer_updated(self, nbytes):
            received.set_result(nbytes)

    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # any callback is slow enough
    transport, _ = await loop.create_connection(Slow, sock=near)
    with caplog.at_level("WARNING", logger="asyncio"):
        far.send(b"data")
        await received
        await asyncio.sleep(0)
    transport.close()
    await asyncio.sleep(0)
    slow = [message for message in caplog.messages if message.startswith("Executing")]
    names = ("_read_ready", "Slow.data_received", "Slow.buffer_updated")
    assert any(name in message for message in slow for name in names)


async def test_what_one_callback_wrote_before_it_aborted_still_leaves(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.write(b"head ")
        transport.write(b"body")
        transport.abort()
        await protocol.until_event("connection_lost")
    assert await asyncio.to_thread(far.recv, 100) == b"head body"


async def test_abort_ends_a_close_that_waits_for_the_peer(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        transport.close()
        await turns()
        assert "connection_lost" not in protocol.events
        transport.abort()
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


@pytest.mark.parametrize("method", ["close", "abort"])
async def test_closing_in_connection_made_lets_no_data_through(loop, pair, method):
    near, far = pair

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            getattr(transport, method)()

    protocol = Protocol()
    far.sendall(b"data")
    async with connected(loop, near, protocol):
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "connection_lost"]
        assert protocol.lost_with is None


async def test_the_socket_is_closed_when_connection_lost_returned(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        sock = transport.get_extra_info("socket")
        transport.close()
        await protocol.until_event("connection_lost")
        assert sock.fileno() == -1
        assert await asyncio.to_thread(far.recv, 1) == b""


async def test_a_reset_is_given_to_connection_lost_once(loop, tcp):
    near, far = tcp
    protocol = Recorder()
    async with connected(loop, near, protocol):
        reset(far)
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ConnectionResetError)
        assert protocol.events == ["connection_made", "connection_lost"]


async def test_a_reset_is_noticed_while_writing(loop, tcp):
    near, far = tcp
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        reset(far)
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ConnectionError)
        assert transport.get_write_buffer_size() == 0


async def test_a_reset_is_noticed_by_a_closing_transport(loop, tcp):
    near, far = tcp
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        transport.close()
        reset(far)
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ConnectionError)


async def test_a_reset_with_data_still_queued_is_the_reason_given(loop, tcp):
    near, far = tcp
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        reset(far)
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, (ConnectionResetError, BrokenPipeError))
        assert transport.get_write_buffer_size() == 0


async def test_write_after_peer_reset_reports_connection_lost_once(loop, pair):
    near, far = pair
    protocol = HalfOpen()
    async with connected(loop, near, protocol) as transport:
        transport.pause_reading()
        far.close()
        while "connection_lost" not in protocol.events:
            transport.write(b"nobody reads this")
            await turns(1)
        assert isinstance(protocol.lost_with, ConnectionError)


async def test_many_writes_to_a_lost_connection_are_logged(loop, pair, caplog):
    near, far = pair
    protocol = HalfOpen()
    async with connected(loop, near, protocol) as transport:
        transport.pause_reading()
        far.close()
        while not transport.is_closing():
            transport.write(b"nobody reads this")
            await turns(1)
        for _ in range(10):
            transport.write(b"nobody reads this")
        assert "socket.send() raised exception." in caplog.text


async def test_a_writing_transport_with_a_paused_reader_notices_the_peers_end(loop, pair):
    near, far = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.pause_reading()
        write_until_full(transport)
        far.close()
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ConnectionError)


async def test_closing_from_another_callback_of_the_same_turn_lets_no_data_through(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    protocols = []

    class Protocol(Recorder):
        def data_received(self, data):
            super().data_received(data)
            for protocol in protocols:
                protocol.transport.abort()

    protocols += [Protocol(), Protocol()]
    first, second = protocols
    async with connected(loop, pairs[0][0], first), connected(loop, pairs[1][0], second):
        for _, far in pairs:
            far.sendall(b"x")
        for protocol in protocols:
            await protocol.until_event("connection_lost")
        assert len(first.received) + len(second.received) == 1
    for _, far in pairs:
        far.close()


# Exceptions of the protocol


@pytest.mark.parametrize("failing", ["data_received", "eof_received"])
async def test_an_exception_in_a_callback_for_data_ends_the_connection(
    loop, pair, reported_errors, failing
):
    near, far = pair
    protocol = Recorder()
    error = ZeroDivisionError("from the protocol")

    def fail(*arguments):
        protocol.record(failing)
        raise error

    setattr(protocol, failing, fail)
    async with connected(loop, near, protocol) as transport:
        write_until_full(transport)
        if failing == "data_received":
            far.sendall(b"x" * 100_000)
        far.shutdown(socket.SHUT_WR)
        await protocol.until_event("connection_lost")
        assert protocol.events.count(failing) == 1
        assert protocol.lost_with is error
    (context,) = reported_errors
    assert context["message"] == f"Fatal error: protocol.{failing}() call failed."
    assert context["exception"] is error
    assert context["transport"] is transport and context["protocol"] is protocol
    reported_errors.clear()


async def test_an_exception_after_abort_does_not_become_the_reason(loop, pair, reported_errors):
    near, far = pair

    class Protocol(Recorder):
        def data_received(self, data):
            self.transport.abort()
            raise ZeroDivisionError

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.sendall(b"x")
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
    assert len(reported_errors) == 1
    reported_errors.clear()


@pytest.mark.parametrize("failing", ["connection_made", "connection_lost"])
async def test_an_exception_when_a_connection_comes_or_goes_is_reported(
    loop, pair, reported_errors, failing
):
    near, far = pair
    error = ZeroDivisionError("from the protocol")

    class Protocol(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            if failing == "connection_made":
                raise error

        def connection_lost(self, exc):
            super().connection_lost(exc)
            if failing == "connection_lost":
                raise error

    protocol = Protocol()
    async with connected(loop, near, protocol) as transport:
        far.sendall(b"x")
        await protocol.until_received(1)
        transport.close()
        await protocol.until_event("connection_lost")
        assert await asyncio.to_thread(far.recv, 1) == b""
    (context,) = reported_errors
    assert context["exception"] is error
    reported_errors.clear()


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("failing", ["connection_made", "data_received", "connection_lost"])
def test_exits_escape_from_a_protocol(loop, pair, exit_type, failing):
    near, far = pair
    protocol = Recorder()
    original = getattr(protocol, failing)

    def leave(*arguments):
        original(*arguments)
        raise exit_type

    setattr(protocol, failing, leave)

    async def main():
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        await protocol.until_received(1)
        transport.close()
        await protocol.until_event("connection_lost")

    far.sendall(b"x")
    task = loop.create_task(main())
    with pytest.raises(exit_type):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    assert protocol.events == ["connection_made", "data_received", "connection_lost"]


# Protocols with a buffer of their own


@pytest.mark.parametrize("size", [1, 5, 4096, 1 << 20])
async def test_data_are_put_into_the_buffer_of_the_protocol(loop, pair, size):
    near, far = pair
    protocol = BufferedRecorder(size)
    async with connected(loop, near, protocol):
        far.sendall(b"some data")
        await protocol.until_received(9)
        assert protocol.received == b"some data"
        assert protocol.sizehint == -1
        far.close()
        await protocol.until_event("connection_lost")
        assert protocol.events[-2:] == ["eof_received", "connection_lost"]
        assert protocol.lost_with is None


@pytest.mark.parametrize(
    "make_buffer", [bytearray, lambda size: memoryview(bytearray(size)), lambda size: bytearray(1)]
)
async def test_every_call_may_give_another_buffer(loop, pair, make_buffer):
    near, far = pair

    class Protocol(BufferedRecorder):
        def get_buffer(self, sizehint):
            self.buffer = make_buffer(100)
            return self.buffer

    protocol = Protocol()
    data = random.Random(6).randbytes(5000)
    async with connected(loop, near, protocol):
        far.sendall(data)
        await protocol.until_received(5000)
        assert protocol.received == data


async def test_the_buffer_is_not_held_between_calls(loop, pair):
    near, far = pair

    class Protocol(BufferedRecorder):
        def buffer_updated(self, count):
            super().buffer_updated(count)
            self.buffer += b"resized"

    protocol = Protocol()
    async with connected(loop, near, protocol):
        for count in range(1, 4):
            far.sendall(b"x")
            await protocol.until_received(count)
            await turns()
            protocol.buffer += b"resized"


@pytest.mark.parametrize(
    ("make_buffer", "error_type"),
    [
        (lambda: bytearray(), RuntimeError),
        (lambda: memoryview(b""), RuntimeError),
        (lambda: b"read-only", (TypeError, BufferError, ValueError)),
        (lambda: memoryview(b"read-only"), (TypeError, BufferError, ValueError)),
        (lambda: "text", (TypeError, BufferError)),
        (lambda: None, TypeError),
    ],
    ids=["empty", "empty view", "bytes", "read-only view", "text", "None"],
)
async def test_an_unusable_buffer_ends_the_connection(
    loop, pair, reported_errors, make_buffer, error_type
):
    near, far = pair

    class Protocol(BufferedRecorder):
        def get_buffer(self, sizehint):
            self.record("get_buffer")
            return make_buffer()

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.sendall(b"data")
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "get_buffer", "connection_lost"]
        assert isinstance(protocol.lost_with, error_type)
    (context,) = reported_errors
    assert context["exception"] is protocol.lost_with
    reported_errors.clear()


@pytest.mark.parametrize("failing", ["get_buffer", "buffer_updated"])
async def test_an_exception_in_a_buffered_protocol_ends_the_connection(
    loop, pair, reported_errors, failing
):
    near, far = pair
    protocol = BufferedRecorder()
    error = ZeroDivisionError("from the protocol")

    def fail(argument):
        protocol.record(failing)
        raise error

    setattr(protocol, failing, fail)
    async with connected(loop, near, protocol):
        far.sendall(b"data")
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", failing, "connection_lost"]
        assert protocol.lost_with is error
    (context,) = reported_errors
    assert context["message"] == f"Fatal error: protocol.{failing}() call failed."
    assert context["exception"] is error
    reported_errors.clear()


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("failing", ["get_buffer", "buffer_updated"])
def test_exits_escape_from_a_buffered_protocol(loop, pair, exit_type, failing):
    near, far = pair

    async def connect():
        protocol = BufferedRecorder()
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        original = getattr(protocol, failing)

        def leave_once(argument):
            setattr(protocol, failing, original)
            raise exit_type

        setattr(protocol, failing, leave_once)
        return transport, protocol

    async def close(transport, protocol):
        transport.close()
        await protocol.until_event("connection_lost")

    transport, protocol = loop.run_until_complete(connect())
    far.sendall(b"data")
    with pytest.raises(exit_type):
        loop.run_forever()
    loop.run_until_complete(close(transport, protocol))
    assert protocol.lost_with is None


@pytest.mark.parametrize("method", ["close", "abort", "pause_reading"])
async def test_the_transport_can_be_stopped_in_get_buffer(loop, pair, method):
    near, far = pair

    class Protocol(BufferedRecorder):
        def get_buffer(self, sizehint):
            self.record("get_buffer")
            getattr(self.transport, method)()
            return super().get_buffer(sizehint)

    protocol = Protocol()
    async with connected(loop, near, protocol) as transport:
        far.sendall(b"data")
        await protocol.until_event("get_buffer")
        await turns()
        assert protocol.events.count("get_buffer") == 1
        if method == "pause_reading":
            transport.close()
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


@pytest.mark.asyncio_differs("receives once more")
@pytest.mark.parametrize("method", ["close", "abort", "pause_reading"])
async def test_a_stop_in_get_buffer_holds_for_this_very_buffer(loop, pair, method):
    near, far = pair

    class Protocol(BufferedRecorder):
        def get_buffer(self, sizehint):
            self.record("get_buffer")
            getattr(self.transport, method)()
            return super().get_buffer(sizehint)

    protocol = Protocol()
    async with connected(loop, near, protocol):
        far.sendall(b"data")
        await protocol.until_event("get_buffer")
        await turns()
        assert "buffer_updated" not in protocol.events


async def test_the_protocol_can_be_exchanged_for_one_of_the_other_kind(loop, pair):
    near, far = pair
    plain, buffered, last = Recorder(), BufferedRecorder(), Recorder()
    async with connected(loop, near, plain) as transport:
        assert transport.get_protocol() is plain
        far.sendall(b"plain")
        await plain.until_received(5)
        transport.set_protocol(buffered)
        assert transport.get_protocol() is buffered
        far.sendall(b"buffered")
        await buffered.until_received(8)
        transport.set_protocol(last)
        far.sendall(b"last")
        await last.until_received(4)
        assert (plain.received, buffered.received) == (b"plain", b"buffered")
        assert last.events == ["data_received"]
        transport.set_protocol(plain)


@pytest.mark.parametrize("kinds", ["plain to buffered", "buffered to plain", "plain to plain"])
async def test_the_protocol_can_be_exchanged_in_the_middle_of_the_data(loop, pair, kinds):
    near, far = pair
    second = BufferedRecorder() if kinds.endswith("buffered") else Recorder()

    class PlainFirst(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.set_protocol(second)

    class BufferedFirst(BufferedRecorder):
        def buffer_updated(self, count):
            super().buffer_updated(count)
            self.transport.set_protocol(second)

    first = PlainFirst() if kinds.startswith("plain") else BufferedFirst(100)
    data = random.Random(7).randbytes(3 * MIB)
    async with connected(loop, near, first) as transport:
        sending = asyncio.to_thread(far.sendall, data)
        await asyncio.gather(
            sending,
            second.until(lambda: len(first.received) + len(second.received) == len(data)),
        )
        assert first.received + second.received == data
        assert len(first.events) == 2 and first.received
        transport.set_protocol(first)


# What can be seen of a transport


async def test_extra_info_tells_socket_and_addresses(loop, pair):
    near, far = pair
    sockname, peername = near.getsockname(), near.getpeername()
    async with connected(loop, near, Recorder()) as transport:
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.fileno() == near.fileno()
        assert sock.family == near.family and sock.type == socket.SOCK_STREAM
        assert transport.get_extra_info("sockname") == sockname
        assert transport.get_extra_info("peername") == peername
        assert transport.get_extra_info("no such key") is None
        assert transport.get_extra_info("no such key", "default") == "default"
        assert transport.get_extra_info("sslcontext") is None
        far.getpeername()
    assert transport.get_extra_info("peername") == peername


async def test_the_transport_is_a_transport_of_asyncio(loop, pair):
    near, _ = pair
    async with connected(loop, near, Recorder()) as transport:
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.ReadTransport)
        assert isinstance(transport, asyncio.WriteTransport)
        assert not isinstance(transport, asyncio.DatagramTransport)


async def test_private_attributes_that_libraries_look_at_are_there(loop, pair):
    near, _ = pair
    async with connected(loop, near, Recorder()) as transport:
        assert transport._start_tls_compatible is True
        assert transport._sendfile_compatible.name == "TRY_NATIVE"
        assert transport._protocol_paused is False
        assert transport._extra["socket"] is transport.get_extra_info("socket")


async def test_methods_of_a_transport_can_be_replaced(loop, pair):
    near, far = pair
    async with connected(loop, near, Recorder()) as transport:
        with mock.patch.object(transport, "write") as write:
            transport.write(b"not sent")
        write.assert_called_once_with(b"not sent")
        transport.is_closing = mock.Mock(return_value="mocked")
        assert transport.is_closing() == "mocked"
        transport.an_attribute = "of the program"
        assert transport.an_attribute == "of the program"
        transport.write(b"sent")
        assert await asyncio.to_thread(read_exactly, far, 4) == b"sent"


async def test_the_repr_tells_descriptor_and_state(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        assert f"fd={near.fileno()}" in repr(transport)
        assert "closing" not in repr(transport)
        transport.close()
        assert "closing" in repr(transport)
        await protocol.until_event("connection_lost")
        await turns()
        assert "closed" in repr(transport)


async def test_two_transports_are_never_equal(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    first, second = Recorder(), Recorder()
    async with (
        connected(loop, pairs[0][0], first) as one,
        connected(loop, pairs[1][0], second) as other,
    ):
        assert one != other and one == one
        assert len({one, other}) == 2
    for _, far in pairs:
        far.close()


async def test_a_closed_transport_can_still_be_asked(loop, pair):
    near, _ = pair
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        transport.close()
        await protocol.until_event("connection_lost")
        await turns()
        assert transport.is_closing()
        assert not transport.is_reading()
        assert transport.get_write_buffer_size() == 0
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.close()
        transport.abort()
        await turns()


def test_a_transport_left_open_warns_and_frees_its_descriptor(loop, pair):
    near, far = pair

    async def main():
        return await loop.create_connection(Recorder, sock=near)

    transport, protocol = loop.run_until_complete(main())
    number = near.fileno()
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transport, protocol
        gc.collect()
    assert far.recv(1) == b""
    with pytest.raises(OSError):
        os.fstat(number)


async def test_transport_and_protocol_are_freed_after_the_connection(loop, pair):
    near, _ = pair

    class Protocol(Recorder):
        pass

    async def main():
        async with connected(loop, near, Protocol()) as transport:
            transport.write(b"data")

    await main()
    await turns()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Protocol]


async def test_a_connection_works_in_debug_mode(loop, pair):
    near, far = pair
    loop.set_debug(True)
    protocol = Recorder()
    async with connected(loop, near, protocol) as transport:
        far.sendall(b"data")
        await protocol.until_received(4)
        transport.pause_reading()
        transport.resume_reading()
        transport.write(b"x" * MIB)
        transport.write_eof()
        assert len(await asyncio.to_thread(read_to_end, far)) == MIB
        far.close()
        await protocol.until_event("connection_lost")


# Contexts


class ContextRecorder(Recorder):
    """Keeps the value of a variable at every call."""

    variable = contextvars.ContextVar("variable", default="default")

    def __init__(self):
        super().__init__()
        self.seen = {}

    def record(self, event):
        self.seen[event] = self.variable.get()
        super().record(event)


async def test_callbacks_run_in_the_context_of_the_connecting_task(loop, pair):
    near, far = pair
    protocol = ContextRecorder()

    async def client():
        ContextRecorder.variable.set("of the client")
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        return transport

    transport = await asyncio.create_task(client())
    far.sendall(b"data")
    await protocol.until_received(4)
    far.close()
    await protocol.until_event("connection_lost")
    assert transport.is_closing()
    assert set(protocol.seen) == {
        "connection_made",
        "data_received",
        "eof_received",
        "connection_lost",
    }
    assert set(protocol.seen.values()) == {"of the client"}


@pytest.mark.asyncio_differs("callbacks run in the context of whoever resumes or closes")
async def test_callbacks_stay_in_their_context_whoever_uses_the_transport(loop, pair):
    near, far = pair
    protocol = ContextRecorder()

    async def client():
        ContextRecorder.variable.set("of the client")
        transport, _ = await loop.create_connection(lambda: protocol, sock=near)
        return transport

    transport = await asyncio.create_task(client())
    transport.pause_reading()
    transport.resume_reading()
    far.sendall(b"data")
    await protocol.until_received(4)
    written = write_until_full(transport)
    await asyncio.gather(
        asyncio.to_thread(read_exactly, far, written), protocol.until_event("resume_writing")
    )
    transport.close()
    await protocol.until_event("connection_lost")
    del protocol.seen["pause_writing"]  # called by the write, like any function
    assert set(protocol.seen.values()) == {"of the client"}


async def test_what_a_callback_sets_is_not_seen_by_other_connections(loop):
    pairs = [socket.socketpair() for _ in range(2)]

    class Protocol(ContextRecorder):
        def data_received(self, data):
            super().data_received(data)
            self.variable.set(f"of {bytes(data)!r}")

    first, second = Protocol(), Protocol()
    async with connected(loop, pairs[0][0], first), connected(loop, pairs[1][0], second):
        pairs[0][1].sendall(b"first")
        await first.until_received(5)
        pairs[1][1].sendall(b"second")
        await second.until_received(6)
    assert second.seen["data_received"] == "default"
    assert ContextRecorder.variable.get() == "default"
    for _, far in pairs:
        far.close()


# Many at once


async def test_connections_come_and_go_while_others_talk(loop):
    async def talk(number):
        near, far = socket.socketpair()
        with far:
            far.settimeout(10)
            protocol = Recorder()
            async with connected(loop, near, protocol) as transport:
                for round_number in range(number % 7 + 1):
                    far.sendall(b"question")
                    await protocol.until_received(8 * (round_number + 1))
                    transport.write(bytes(protocol.received[-8:]))
                if number % 3:
                    transport.close()
                    await protocol.until_event("connection_lost")
                    assert read_to_end(far) == b"question" * (number % 7 + 1)

    await asyncio.gather(*(talk(number) for number in range(200)))


async def test_a_peer_that_reads_slowly_gets_everything(loop, pair):
    near, far = pair
    data = random.Random(8).randbytes(2 * MIB)
    received = bytearray()
    done = threading.Event()

    def read_slowly():
        while len(received) < len(data):
            received.extend(far.recv(7919))
        done.set()

    async with connected(loop, near, Recorder()) as transport:
        for start in range(0, len(data), 100_003):
            transport.write(data[start : start + 100_003])
        await asyncio.to_thread(read_slowly)
        assert done.is_set() and received == data
