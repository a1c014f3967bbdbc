"""sendfile() and sock_sendfile(): what is sent, and where the file stands after it."""

import asyncio
import io
import os
import socket

import pytest

DATA = os.urandom(1 << 20) * 3
LONG = 50 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("r+b") as file:
        yield file


@pytest.fixture
def long_file(tmp_path):
    """More than the kernel takes at once."""
    with (tmp_path / "long").open("w+b") as file:
        file.truncate(LONG)
        yield file


class Sink(asyncio.Protocol):
    """The receiving end; it may be told to stop reading."""

    def __init__(self):
        self.received = bytearray()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data

    def connection_lost(self, exc):
        self.lost.set_result(exc)


@pytest.fixture(params=["tcp", "unix"])
def connected(request, loop):
    """A sending transport and the Sink at its other end."""
    kind = request.param

    async def connect():
        if kind == "unix":
            near, far = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                near = socket.create_connection(listening.getsockname())
                far, _ = listening.accept()
        near.setblocking(False)
        far.setblocking(False)
        _, sink = await loop.create_connection(Sink, sock=far)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        return transport, sink

    transport, sink = loop.run_until_complete(connect())
    yield transport, sink

    async def close():
        transport.abort()
        sink.transport.abort()
        await sink.lost
        await asyncio.sleep(0)

    loop.run_until_complete(close())


async def until_received(sink, size):
    while len(sink.received) < size:
        await asyncio.sleep(0)


async def test_what_comes_meanwhile_is_received_after_it(loop, connected, file):
    transport, sink = connected
    asked = Sink()
    transport.set_protocol(asked)
    sink.transport.write(b"one,")
    await until_received(asked, 4)
    # Sent, and with the loop having no chance to tell anybody.
    sink.transport.write(b"two,")
    sending = asyncio.ensure_future(loop.sendfile(transport, file))
    sink.transport.write(b"three")
    assert await sending == len(DATA)
    await until_received(asked, len(b"one,two,three"))
    assert asked.received == b"one,two,three"


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [
        (0, None, DATA),
        (100, None, DATA[100:]),
        (0, 10, DATA[:10]),
        (1000, 1 << 20, DATA[1000 : 1000 + (1 << 20)]),
        (len(DATA) - 5, 100, DATA[-5:]),
    ],
)
async def test_a_part_of_a_file_arrives_and_the_file_stands_behind_it(
    loop, connected, file, offset, count, expected
):
    transport, sink = connected
    assert await loop.sendfile(transport, file, offset, count) == len(expected)
    await until_received(sink, len(expected))
    assert sink.received == expected
    assert file.tell() == offset + len(expected)


@pytest.mark.asyncio_differs("older ones leave the file where it was")
async def test_a_file_of_which_nothing_is_left_stands_where_it_was_asked_for(loop, connected, file):
    transport, _ = connected
    assert await loop.sendfile(transport, file, len(DATA) + 5) == 0
    assert file.tell() == len(DATA) + 5


@pytest.mark.asyncio_differs("some versions fail to seek in it")
async def test_a_pipe_is_no_file_for_the_kernel(loop, connected):
    transport, _ = connected
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)
    with (
        open(reading, "rb", buffering=0) as file,
        pytest.raises(asyncio.SendfileNotAvailableError, match="os.sendfile call failed"),
    ):
        await loop.sendfile(transport, file, count=5, fallback=False)


async def test_what_is_written_before_and_after_keeps_its_order(loop, connected, file):
    transport, sink = connected
    before = b"<" * 500_000
    transport.write(before)
    assert await loop.sendfile(transport, file) == len(DATA)
    transport.write(b">")
    await until_received(sink, len(before) + len(DATA) + 1)
    assert sink.received == before + DATA + b">"


@pytest.mark.asyncio_differs("a second file is a KeyError")
async def test_writing_meanwhile_is_refused_and_so_is_a_second_file(loop, connected, long_file):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, long_file))
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="sendfile is in progress"):
        transport.write(b"x")
    with pytest.raises(RuntimeError, match="Empty waiter is already set"):
        await loop.sendfile(transport, long_file)
    sink.transport.resume_reading()
    assert await sending == LONG
    transport.write(b"x")
    await until_received(sink, LONG + 1)
    assert transport.is_reading()


@pytest.mark.asyncio_differs("the file stays where it was")
async def test_a_cancelled_one_leaves_the_file_where_it_was_read_to(loop, connected, file):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, file))
    for _ in range(5):
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    sent = file.tell()
    assert 0 < sent < len(DATA)
    sink.transport.resume_reading()
    await until_received(sink, sent)
    transport.write(b"end")
    await until_received(sink, sent + 3)
    assert sink.received == DATA[:sent] + b"end"
    assert transport.is_reading()


@pytest.mark.asyncio_differs("it cannot be written to any more")
async def test_one_cancelled_before_it_began_lets_the_transport_be_used(loop, connected, file):
    transport, sink = connected
    sink.transport.pause_reading()
    transport.write(bytes(20_000_000))
    sending = asyncio.create_task(loop.sendfile(transport, file))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert file.tell() == 0
    transport.write(b"x")
    assert transport.is_reading()


async def test_a_peer_that_goes_in_the_middle_is_an_error(loop, connected, long_file):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, long_file))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not sending.done()
    sink.transport.abort()
    with pytest.raises(ConnectionError):
        await sending
    assert 0 < long_file.tell() < LONG


@pytest.mark.asyncio_differs("it waits for ever")
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_transport_closed_in_the_middle_is_an_error(loop, connected, long_file, end):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, long_file))
    for _ in range(5):
        await asyncio.sleep(0)
    getattr(transport, end)()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 5)


async def test_a_file_that_shrinks_meanwhile_ends_early(loop, connected, long_file):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, long_file))
    for _ in range(5):
        await asyncio.sleep(0)
    long_file.truncate(LONG - 1000)
    sink.transport.resume_reading()
    assert await sending == LONG - 1000
    await until_received(sink, LONG - 1000)


async def test_a_file_that_grows_meanwhile_is_sent_whole(loop, connected, long_file):
    transport, sink = connected
    sink.transport.pause_reading()
    sending = asyncio.create_task(loop.sendfile(transport, long_file))
    for _ in range(5):
        await asyncio.sleep(0)
    os.pwrite(long_file.fileno(), b"more", LONG)
    sink.transport.resume_reading()
    assert await sending == LONG + 4
    await until_received(sink, LONG + 4)


async def test_an_empty_file_sends_nothing(loop, connected, tmp_path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as empty:
        assert await loop.sendfile(connected[0], empty) == 0


async def test_what_is_no_file_of_the_systems_is_read_and_written(loop, connected):
    transport, sink = connected
    memory = io.BytesIO(DATA)
    with pytest.raises(asyncio.SendfileNotAvailableError, match="not a regular file"):
        await loop.sendfile(transport, memory, fallback=False)
    assert await loop.sendfile(transport, memory, 10) == len(DATA) - 10
    await until_received(sink, len(DATA) - 10)
    assert sink.received == DATA[10:]
    assert memory.tell() == len(DATA)


@pytest.mark.parametrize(
    ("offset", "count", "error", "text"),
    [
        (-1, None, ValueError, "offset must be a non-negative integer"),
        ("0", None, TypeError, "offset must be a non-negative integer"),
        (0, 0, ValueError, "count must be a positive integer"),
        (0, -1, ValueError, "count must be a positive integer"),
        (0, "1", TypeError, "count must be a positive integer"),
    ],
)
async def test_arguments_are_checked(loop, connected, file, offset, count, error, text):
    transport, _ = connected
    with pytest.raises(error, match=text):
        await loop.sendfile(transport, file, offset, count)
    assert transport.is_reading()
    transport.write(b"still usable")


async def test_a_text_file_is_refused(loop, connected, file):
    with open(file.name) as text, pytest.raises(ValueError, match="opened in binary mode"):
        await loop.sendfile(connected[0], text)


async def test_a_closing_transport_is_refused(loop, connected, file):
    connected[0].close()
    with pytest.raises(RuntimeError, match="Transport is closing"):
        await loop.sendfile(connected[0], file)


# sock_sendfile


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


async def received(loop, sock, size):
    data = bytearray()
    while len(data) < size and (more := await loop.sock_recv(sock, 1 << 20)):
        data += more
    return data


async def test_a_socket_sends_a_file(loop, pair, file):
    near, far = pair
    receiving = asyncio.create_task(received(loop, far, len(DATA) - 7))
    assert await loop.sock_sendfile(near, file, 7) == len(DATA) - 7
    assert await receiving == DATA[7:]
    assert file.tell() == len(DATA)
    assert not loop.remove_writer(near)


async def test_a_socket_sends_what_is_no_file_of_the_systems(loop, pair):
    near, far = pair
    memory = io.BytesIO(DATA)
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await loop.sock_sendfile(near, memory, fallback=False)
    receiving = asyncio.create_task(received(loop, far, 1000))
    assert await loop.sock_sendfile(near, memory, 5, 1000) == 1000
    assert await receiving == DATA[5:1005]
    assert memory.tell() == 1005


@pytest.mark.asyncio_differs("the file stays where it was")
async def test_a_cancelled_send_leaves_the_file_where_it_was_read_to(loop, pair, file):
    near, far = pair
    sending = asyncio.create_task(loop.sock_sendfile(near, file))
    for _ in range(3):
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    sent = file.tell()
    assert 0 < sent < len(DATA)
    assert await received(loop, far, sent) == DATA[:sent]
    assert not loop.remove_writer(near)


async def test_a_socket_of_another_kind_is_refused(loop, file):
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="only SOCK_STREAM"):
            await loop.sock_sendfile(sock, file)


async def test_a_closed_socket_is_an_error(loop, pair, file):
    near, _ = pair
    near.close()
    with pytest.raises(OSError, match=r"Bad file descriptor|call failed"):
        await loop.sock_sendfile(near, file)


async def test_the_sockets_own_limit_is_as_before(loop, file):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 12345)
        receiving = asyncio.create_task(received(loop, far, len(DATA)))
        await loop.sock_sendfile(near, file)
        assert await receiving == DATA
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 12345
