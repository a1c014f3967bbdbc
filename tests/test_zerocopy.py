"""send_file() and relay(): what arrives, how it ends, and that nothing is left behind."""

import asyncio
import io
import os
import socket
import ssl
import threading

import pytest

from pyreactor import zerocopy
from pyreactor.pools import BufferPool

DATA = os.urandom(1 << 20) * 3
PATIENCE = 15


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.settimeout(PATIENCE)
    far.settimeout(PATIENCE)
    return near, far


@pytest.fixture
def pairs():
    """A function that makes connected sockets, which are closed after the test."""
    made = []

    def pair(kind="tcp", blocking=True):
        ends = tcp_pair() if kind == "tcp" else socket.socketpair()
        made.extend(ends)
        for end in ends:
            end.settimeout(PATIENCE if blocking else 0)
        return ends

    yield pair
    for end in made:
        end.close()


def read_all(sock):
    received = bytearray()
    while more := sock.recv(1 << 20):
        received += more
    return bytes(received)


def reading_thread(sock):
    """Read `sock` to its end in a thread; the result is in the list once it is joined."""
    result = []
    thread = threading.Thread(target=lambda: result.append(read_all(sock)))
    thread.start()
    return thread, result


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        yield file


# send_file()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize(
    ("offset", "count", "sent"),
    [(0, None, DATA), (5, None, DATA[5:]), (7, 1000, DATA[7:1007]), (0, 0, b"")],
)
def test_a_file_is_sent(pairs, file, kind, offset, count, sent):
    near, far = pairs(kind)
    thread, received = reading_thread(far)
    assert zerocopy.send_file(near, file, offset, count) == len(sent)
    near.close()
    thread.join()
    assert received == [sent]
    assert file.tell() == (offset + len(sent) if sent else 0)


def test_more_than_there_is_sends_what_there_is(pairs, file):
    near, far = pairs()
    thread, received = reading_thread(far)
    assert zerocopy.send_file(near, file, len(DATA) - 3, 100) == 3
    near.close()
    thread.join()
    assert received == [DATA[-3:]]


def test_a_pipe_is_sent(pairs):
    near, far = pairs()
    taken, given = os.pipe()
    thread, received = reading_thread(far)
    feeder = threading.Thread(target=lambda: (os.write(given, DATA), os.close(given)))
    feeder.start()
    with os.fdopen(taken, "rb") as pipe:
        assert zerocopy.send_file(near, pipe, count=1 << 20) == 1 << 20
        assert zerocopy.send_file(near, pipe) == len(DATA) - (1 << 20)
        with pytest.raises(ValueError, match="beginning"):
            zerocopy.send_file(near, pipe, offset=1)
    near.close()
    feeder.join()
    thread.join()
    assert received == [DATA]


def test_what_the_kernel_does_not_see_is_read_and_sent(pairs):
    near, far = pairs()
    thread, received = reading_thread(far)
    assert zerocopy.send_file(near, io.BytesIO(DATA), 5) == len(DATA) - 5
    near.close()
    thread.join()
    assert received == [DATA[5:]]


def test_tls_is_read_and_sent(pairs, file):
    """By anonymous key exchange, which asks for no certificate."""
    near, far = pairs()
    contexts = [
        ssl.SSLContext(protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
    ]
    for context in contexts:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH:@SECLEVEL=0")

    def receive():
        with contexts[1].wrap_socket(far, server_side=True) as tls:
            return read_all(tls)

    received = []
    thread = threading.Thread(target=lambda: received.append(receive()))
    thread.start()
    with contexts[0].wrap_socket(near) as tls:
        assert zerocopy.send_file(tls, file, 5) == len(DATA) - 5
    thread.join()
    assert received == [DATA[5:]]
    assert file.tell() == len(DATA)


def test_a_socket_that_does_not_block_or_a_wrong_range_is_refused(pairs, file):
    near, _ = pairs()
    with pytest.raises(ValueError, match="must not be negative"):
        zerocopy.send_file(near, file, -1)
    with pytest.raises(ValueError, match="must not be negative"):
        zerocopy.send_file(near, file, 0, -1)
    near.setblocking(False)
    with pytest.raises(ValueError, match="send_file_async"):
        zerocopy.send_file(near, file)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="stream socket"):
            zerocopy.send_file(datagrams, file)


def test_a_peer_that_does_not_read_times_out(pairs, tmp_path):
    near, _ = pairs()
    near.settimeout(0.05)
    with (tmp_path / "long").open("w+b") as long_file:
        long_file.truncate(1 << 30)
        with pytest.raises(TimeoutError):
            zerocopy.send_file(near, long_file)
        assert 0 < long_file.tell() < 1 << 30


def test_a_peer_that_is_gone_is_an_error(pairs, file):
    near, far = pairs("unix")
    far.close()
    with pytest.raises(BrokenPipeError):
        zerocopy.send_file(near, file)
    assert file.tell() == 0


# send_file_async()


async def read_all_async(sock):
    received = bytearray()
    while more := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
        received += more
    return bytes(received)


async def test_a_file_is_sent_by_a_loop(loop, pairs, file):
    near, far = pairs(blocking=False)
    reading = asyncio.ensure_future(read_all_async(far))
    assert await zerocopy.send_file_async(near, file, 5, 100) == 100
    assert await zerocopy.send_file_async(near, file, 0, 0) == 0
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    transport.write(b"before")
    assert await zerocopy.send_file_async(transport, file) == len(DATA)
    transport.close()
    assert await reading == DATA[5:105] + b"before" + DATA


async def test_a_pipe_or_a_socket_is_sent_by_a_loop(loop, pairs):
    near, far = pairs(blocking=False)
    source, feeding = pairs(blocking=False)
    reading = asyncio.ensure_future(read_all_async(far))
    feeder = asyncio.ensure_future(loop.sock_sendall(feeding, DATA))
    assert await zerocopy.send_file_async(near, source, count=1000) == 1000
    with pytest.raises(ValueError, match="offset must be 0"):
        await zerocopy.send_file_async(near, source, 1)
    sending = asyncio.ensure_future(zerocopy.send_file_async(near, source))
    await feeder
    feeding.close()
    assert await sending == len(DATA) - 1000
    taken, given = os.pipe()
    with os.fdopen(taken, "rb") as pipe:
        os.write(given, b"the end")
        os.close(given)
        assert await zerocopy.send_file_async(near, pipe) == 7
    near.close()
    assert await reading == DATA + b"the end"


# relay()


@pytest.fixture
def joined(pairs):
    """Two clients and the two sockets between them, which are to be joined."""

    def joined(kind="tcp"):
        left, a = pairs(kind, blocking=False)
        right, b = pairs(kind, blocking=False)
        return left, a, b, right

    return joined


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_bytes_go_both_ways_and_each_end_is_passed_on(loop, joined, kind):
    left, a, b, right = joined(kind)
    relaying = asyncio.ensure_future(zerocopy.relay(a, b))
    await loop.sock_sendall(left, b"question")
    left.shutdown(socket.SHUT_WR)
    assert await read_all_async(right) == b"question"  # its end as well
    assert not relaying.done()
    await loop.sock_sendall(right, b"a longer answer")  # after the other half has closed
    right.shutdown(socket.SHUT_WR)
    assert await read_all_async(left) == b"a longer answer"
    assert await relaying == zerocopy.Relayed(a_to_b=8, b_to_a=15)


async def test_much_goes_both_ways_at_once(loop, joined):
    left, a, b, right = joined()
    relaying = asyncio.ensure_future(zerocopy.relay(a, b))

    async def send(sock, data):
        await loop.sock_sendall(sock, data)
        sock.shutdown(socket.SHUT_WR)

    *_, from_left, from_right = await asyncio.gather(
        send(left, DATA), send(right, DATA[::-1]), read_all_async(right), read_all_async(left)
    )
    assert from_left == DATA and from_right == DATA[::-1]
    assert await relaying == (len(DATA), len(DATA))


def counts(loop):
    return loop._live_counts() if hasattr(loop, "_live_counts") else None


async def test_cancelling_leaves_nothing_behind(loop, joined, open_descriptors):
    left, a, b, _right = joined()
    before = set(open_descriptors())
    for size in (0, 64 << 20):  # nothing is on its way; the peer does not read
        relaying = asyncio.ensure_future(zerocopy.relay(a, b))
        sending = asyncio.ensure_future(loop.sock_sendall(left, bytes(size)))
        while len(set(open_descriptors()) - before) < 4:
            await asyncio.sleep(0)
        relaying.cancel()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relaying
        await asyncio.wait([sending])
        assert set(open_descriptors()) == before
        for sock in (a, b):
            assert not loop.remove_reader(sock) and not loop.remove_writer(sock)


async def test_an_error_ends_both_ways_and_is_raised(loop, joined, open_descriptors):
    left, a, b, right = joined()
    before = set(open_descriptors())
    relaying = asyncio.ensure_future(zerocopy.relay(a, b))
    await loop.sock_sendall(left, b"hello")
    assert await loop.sock_recv(right, 100) == b"hello"
    # An RST instead of an end.
    right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    before.remove(right.fileno())
    right.close()
    with pytest.raises(ConnectionResetError) as caught:
        await relaying
    assert caught.value.__notes__ == ["relay: 5 bytes had gone from a to b, 0 back"]
    assert set(open_descriptors()) == before


async def test_a_side_that_was_closed_is_an_error(loop, joined):
    _left, a, b, _right = joined()
    a.close()
    with pytest.raises(OSError):
        await zerocopy.relay(a, b)


@pytest.mark.pyreactor_only
async def test_transports_lend_their_sockets(loop, joined):
    left, a, b, right = joined()
    near, _ = await loop.create_connection(asyncio.Protocol, sock=a)
    far, _ = await loop.create_connection(asyncio.Protocol, sock=b)
    near.write(b"first,")
    relaying = asyncio.ensure_future(zerocopy.relay(near, far))
    await loop.sock_sendall(right, b"then")
    right.shutdown(socket.SHUT_WR)
    assert await read_all_async(left) == b"first,then"
    left.shutdown(socket.SHUT_WR)
    assert await relaying == (0, 4)
    near.close()
    far.close()
    assert await read_all_async(right) == b""


async def test_what_cannot_be_joined_is_refused(loop, joined):
    _left, a, b, _right = joined()
    with pytest.raises(TypeError, match="neither a socket nor"):
        await zerocopy.relay(a, "b")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="no stream socket"):
            await zerocopy.relay(a, datagrams)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(socket.socket(), do_handshake_on_connect=False) as tls:
        with pytest.raises(TypeError, match="TLS"):
            await zerocopy.relay(a, tls)
    b.setblocking(True)
    with pytest.raises(ValueError, match="setblocking"):
        await zerocopy.relay(a, b)


# Leases


async def test_received_bytes_are_lent(loop, pairs):
    near, far = pairs(blocking=False)
    pool = BufferPool(1, 4096)
    receiving = asyncio.ensure_future(zerocopy.receive(far, pool))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert pool.stats()["lent"] == 0  # none is held while nothing comes
    await loop.sock_sendall(near, b"hello")
    lease = await receiving
    assert lease.view == b"hello" and len(lease) == 5 and pool.stats()["lent"] == 1
    assert repr(lease) == "<Lease of 5 bytes>"

    # The next bytes wait until the pool has its buffer back.
    receiving = asyncio.ensure_future(zerocopy.receive(far, pool))
    await loop.sock_sendall(near, b"again")
    done, _ = await asyncio.wait([receiving], timeout=0.05)
    assert not done
    lease.release()
    with await receiving as view:
        assert view == b"again"
    near.close()
    assert await zerocopy.receive(far, pool) is None
    assert pool.stats()["lent"] == 0


async def test_a_lease_ends_once_and_for_all(loop, pairs):
    near, far = pairs(blocking=False)
    pool = BufferPool(1, 4096)
    await loop.sock_sendall(near, b"hello")
    lease = await zerocopy.receive(far, pool)
    view = lease.view
    part = view[1:3]
    with pytest.raises(BufferError, match="slice"):
        lease.release()
    assert lease.view == b"hello" and not lease.released
    part.release()
    view = lease.view
    lease.release()
    lease.release()
    assert lease.released and repr(lease) == "<Lease, ended>"
    for use in (lambda: lease.view, lambda: lease.address, lambda: len(lease), lambda: view[0]):
        with pytest.raises(ValueError):
            use()
    assert pool.stats()["lent"] == 0


async def test_a_forgotten_lease_ends(loop, pairs):
    near, far = pairs(blocking=False)
    pool = BufferPool(1, 4096)
    await loop.sock_sendall(near, b"hello")
    lease = await zerocopy.receive(far, pool)
    assert lease is not None
    del lease
    assert pool.stats()["lent"] == 0


class Keeper(zerocopy.LeasedProtocol):
    def __init__(self, pool):
        super().__init__(pool)
        self.leases = []
        self.changed = asyncio.Event()
        self.lost = asyncio.get_running_loop().create_future()

    def lease_received(self, lease):
        self.leases.append(lease)
        self.changed.set()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self.lost.set_result(exc)


@pytest.mark.pyreactor_only
async def test_a_transport_receives_into_the_pool_and_waits_for_it(loop, pairs):
    near, far = pairs(blocking=False)
    pool = BufferPool(2, 4096)
    transport, protocol = await loop.create_connection(lambda: Keeper(pool), sock=far)
    sending = asyncio.ensure_future(loop.sock_sendall(near, DATA))
    while not protocol.leases or transport.is_reading():
        await asyncio.sleep(0)
    assert len(protocol.leases) == 2
    received = b""
    while len(received) < len(DATA):
        await asyncio.wait_for(protocol.changed.wait(), PATIENCE)
        protocol.changed.clear()
        assert len(protocol.leases) <= 2
        for lease in protocol.leases:
            with lease as view:
                received += view
        protocol.leases.clear()
    await sending
    assert received == DATA
    assert pool.stats()["exhausted"] > 0  # it was slowed down
    transport.close()
    await protocol.lost
    assert pool.stats()["lent"] == 0


@pytest.mark.pyreactor_only
async def test_a_connection_that_ends_while_it_waits_leaves_the_pool_alone(loop, pairs):
    near, far = pairs(blocking=False)
    pool = BufferPool(1, 4096)
    transport, protocol = await loop.create_connection(lambda: Keeper(pool), sock=far)
    await loop.sock_sendall(near, bytes(10_000))
    await protocol.changed.wait()
    while transport.is_reading():
        await asyncio.sleep(0)
    transport.abort()
    await protocol.lost
    (lease,) = protocol.leases
    lease.release()
    await asyncio.sleep(0)
    assert pool.stats()["lent"] == 0
