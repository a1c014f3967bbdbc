"""Datagram endpoints over UDP and Unix sockets, and how they treat their protocol."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import os
import random
import socket
import sys
import weakref
from unittest import mock

import pytest

import pyreactor

SENDS_EMPTY_DATAGRAMS = sys.version_info >= (3, 13)


class Recorder(asyncio.DatagramProtocol):
    """Keeps the names of its calls, the datagrams that came and the errors it was told."""

    def __init__(self):
        self.events = []
        self.received = []  # (data, address)
        self.errors = []
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

    @property
    def data(self):
        return [data for data, _ in self.received]

    def connection_made(self, transport):
        self.transport = transport
        self.record("connection_made")

    def datagram_received(self, data, addr):
        self.received.append((data, addr))
        self.record("datagram_received")

    def error_received(self, exc):
        self.errors.append(exc)
        self.record("error_received")

    def pause_writing(self):
        self.record("pause_writing")

    def resume_writing(self):
        self.record("resume_writing")

    def connection_lost(self, exc):
        self.lost_with = exc
        self.record("connection_lost")


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def endpoint(loop, protocol=None, **arguments):
    """An endpoint with a Recorder, closed at the end."""
    protocol = protocol or Recorder()
    transport, made = await loop.create_datagram_endpoint(lambda: protocol, **arguments)
    assert made is protocol
    try:
        yield transport, protocol
    finally:
        if "connection_lost" not in protocol.events:
            transport.abort()
        await protocol.until_event("connection_lost")
        await turns()


def address_of(transport):
    return transport.get_extra_info("sockname")


has_ipv6 = socket.has_ipv6 and os.path.exists("/proc/net/if_inet6")


needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")


@pytest.fixture(params=["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def host(request):
    """A loopback address, as text."""
    return request.param


@pytest.fixture
def pair():
    """A Unix datagram socket for the transport, with a name, and the peer's for the test."""
    near, far = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    far.settimeout(10)
    with near, far:
        near.bind("")  # a name of the kernel's choice
        far.bind("")
        far.connect(near.getsockname())
        near.connect(far.getsockname())
        yield near, far


def fill(transport, address=None, size=4096):
    """Send until the transport keeps something back; returns how many were sent in all."""
    count = 0
    while not transport.get_write_buffer_size():
        transport.sendto(count.to_bytes(4, "big") * (size // 4), address)
        count += 1
    return count


# Receiving and sending


async def test_datagrams_go_and_come_back(loop, host):
    class Echo(Recorder):
        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)

    async with endpoint(loop, Echo(), local_addr=(host, 0)) as (server, _):
        async with endpoint(loop, remote_addr=(host, address_of(server)[1])) as (client, heard):
            client.sendto(b"hello")
            await heard.until_received(1)
            assert heard.received == [(b"hello", address_of(server))]


async def test_an_address_is_what_the_socket_module_tells(loop, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.bind((host, 0))
        async with endpoint(loop, local_addr=(host, 0)) as (transport, heard):
            peer.sendto(b"first", address_of(transport))
            peer.sendto(b"second", address_of(transport))
            await heard.until_received(2)
            assert heard.received == [
                (b"first", peer.getsockname()),
                (b"second", peer.getsockname()),
            ]
            assert all(type(part) in (str, int) for part in heard.received[0][1])


async def test_every_octet_of_an_address_is_told(loop):
    hosts = ["127.0.0.1", "127.1.22.133", "127.255.255.254", "127.10.100.200", "127.99.9.109"]
    async with endpoint(loop, local_addr=("0.0.0.0", 0)) as (transport, heard):
        for count, host in enumerate(hosts, 1):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind((host, 0))
                peer.sendto(b"", ("127.0.0.1", address_of(transport)[1]))
                await heard.until_received(count)
                assert heard.received[-1] == (b"", peer.getsockname())
        assert [address[0] for _, address in heard.received] == hosts


def link_local_addresses():
    """(host, interface) of each link-local IPv6 address of this machine."""
    if not has_ipv6:
        return
    with open("/proc/net/if_inet6") as lines:
        for line in lines:
            digits, _, _, scope, _, name = line.split()
            if scope == "20":
                yield socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), name


async def test_the_scope_of_a_link_local_address_is_kept(loop):
    for host, name in link_local_addresses():
        scope = socket.if_nametoindex(name)
        async with endpoint(loop, local_addr=(f"{host}%{name}", 0)) as (server, heard):
            assert address_of(server)[2:] == (0, scope)
            remote = (f"{host}%{name}", address_of(server)[1])
            async with endpoint(loop, remote_addr=remote) as (client, _):
                client.sendto(b"data", address_of(server))
                await heard.until_received(1)
                assert heard.received == [(b"data", address_of(client))]
                assert heard.received[0][1][3] == scope
                async with endpoint(loop, local_addr=("::", 0)) as (elsewhere, _):
                    other_link = (*address_of(server)[:3], socket.if_nametoindex("lo"))
                    elsewhere.sendto(b"to another link", other_link)
                    elsewhere.sendto(b"data", address_of(server))
                    await heard.until_received(2)
                    assert heard.data == [b"data"] * 2
                with pytest.raises(ValueError, match="Invalid address"):
                    client.sendto(b"data", (host, address_of(server)[1], 0, scope + 1))
        return
    pytest.skip("no interface has a link-local IPv6 address")


@pytest.mark.parametrize(
    "form",
    [
        lambda port: ("127.0.0.1", port),
        lambda port: ("localhost", port),
        lambda port: (b"127.0.0.1", port),
        lambda port: (bytearray(b"127.0.0.1"), port),
        lambda port: ("127.1", port),
        lambda port: ("", port),
    ],
    ids=["numeric", "name", "bytes", "bytearray", "short", "any"],
)
async def test_a_target_may_have_any_form_that_a_socket_takes(loop, form):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, family=socket.AF_INET) as (client, _):
            port = address_of(server)[1]
            client.sendto(b"first", form(port))
            client.sendto(b"second", ("127.0.0.1", port))
            client.sendto(b"third", form(port))
            await heard.until_received(3)
            assert heard.data == [b"first", b"second", b"third"]


@needs_ipv6
async def test_an_ipv6_target_may_leave_out_flow_and_scope(loop):
    async with endpoint(loop, local_addr=("::1", 0)) as (server, heard):
        async with endpoint(loop, family=socket.AF_INET6) as (client, _):
            port = address_of(server)[1]
            for address in (("::1", port), ("::1", port, 0), ("::1", port, 0, 0)):
                client.sendto(b"data", address)
            await heard.until_received(3)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        (("127.0.0.1",), TypeError),
        (["127.0.0.1", 1], TypeError),
        (("127.0.0.1", "1"), TypeError),
        (("127.0.0.1", 1, 0), TypeError),
        (("127.0.0.1", 70000), OverflowError),
        (("127.0.0.1", -1), OverflowError),
        ("127.0.0.1", TypeError),
        (("a\0b", 1), (TypeError, ValueError)),
    ],
    ids=repr,
)
async def test_a_target_that_is_none_closes_the_transport(loop, reported_errors, address, error):
    async with endpoint(loop, family=socket.AF_INET) as (transport, protocol):
        transport.sendto(b"data", address)
        await protocol.until_event("connection_lost")
        (report,) = reported_errors
        assert report["message"] == "Fatal write error on datagram transport"
        assert isinstance(report["exception"], error)
        assert report["transport"] is transport
        assert isinstance(protocol.lost_with, error)


async def test_a_name_that_cannot_be_resolved_is_an_error_of_sending(loop):
    async with endpoint(loop, family=socket.AF_INET) as (transport, protocol):
        transport.sendto(b"data", ("no-such-host.invalid", 1))
        await protocol.until_event("error_received")
        assert isinstance(protocol.errors[0], socket.gaierror)
        assert not transport.is_closing()


@needs_ipv6
async def test_an_ipv4_host_on_an_ipv6_socket_is_refused_as_by_the_socket(loop):
    async with endpoint(loop, family=socket.AF_INET6) as (transport, protocol):
        transport.sendto(b"data", ("127.0.0.1", 1))
        await protocol.until_event("error_received")
        assert isinstance(protocol.errors[0], OSError)


async def test_datagrams_keep_their_order_and_borders(loop):
    rng = random.Random(4)
    sent = [rng.randbytes(rng.choice([1, 7, 512, 512, 512, 1200, 1472, 9000])) for _ in range(300)]
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        server.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        async with endpoint(loop, remote_addr=address_of(server)) as (client, _):
            for start in range(0, len(sent), 10):
                for data in sent[start : start + 10]:
                    client.sendto(data)
                await heard.until_received(start + 10)
            assert heard.data == sent


@pytest.mark.parametrize("size", [1, 512, 1472, 1473, 20_000, 32_753, 32_754, 65_507])
async def test_many_of_one_size_arrive_as_they_were_sent(loop, size):
    count = 40 if size < 2000 else 2
    sent = [bytes([number]) * size for number in range(count)]
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, family=socket.AF_INET) as (client, _):
            for data in sent:
                client.sendto(data, address_of(server))
            client.sendto(b"the end", address_of(server))
            await heard.until(lambda: heard.data[-1:] == [b"the end"])
            assert heard.data == [*sent, b"the end"]


@pytest.mark.asyncio_differs("sends none before 3.13", when=not SENDS_EMPTY_DATAGRAMS)
async def test_an_empty_datagram_is_sent(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, remote_addr=address_of(server)) as (client, _):
            for data in (b"before", b"", b"", b"after", b""):
                client.sendto(data)
            await heard.until_received(5)
            assert heard.data == [b"before", b"", b"", b"after", b""]


async def test_one_callback_may_send_to_several(loop):
    async with (
        endpoint(loop, local_addr=("127.0.0.1", 0)) as (one, heard_one),
        endpoint(loop, local_addr=("127.0.0.1", 0)) as (other, heard_other),
        endpoint(loop, family=socket.AF_INET) as (client, _),
    ):
        for number in range(10):
            client.sendto(b"%d" % number, address_of(one if number % 3 else other))
        await heard_one.until_received(6)
        await heard_other.until_received(4)
        assert heard_one.data == [b"1", b"2", b"4", b"5", b"7", b"8"]
        assert heard_other.data == [b"0", b"3", b"6", b"9"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_what_the_caller_changes_later_is_not_sent(loop, kind):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, remote_addr=address_of(server)) as (client, _):
            original = bytearray(b"original")
            client.sendto(kind(original))
            original[:] = b"changed!"
            await heard.until_received(1)
            assert heard.received[0][0] == b"original"
            assert type(heard.received[0][0]) is bytes


@pytest.mark.parametrize("data", ["text", 1, None, [b"list"]])
async def test_wrong_types_are_refused(loop, data):
    async with endpoint(loop, remote_addr=("127.0.0.1", 9)) as (transport, _):
        text = f"data argument must be a bytes-like object, not {type(data).__name__!r}"
        with pytest.raises(TypeError, match=text):
            transport.sendto(data)


@pytest.mark.asyncio_differs("closes the transport with a BufferError")
async def test_data_in_many_pieces_is_sent_whole(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, remote_addr=address_of(server)) as (client, _):
            client.sendto(memoryview(bytes(range(200)))[::2])
            await heard.until_received(1)
            assert heard.received[0][0] == bytes(range(0, 200, 2))


# Many at once


async def test_a_busy_socket_leaves_the_others_their_turn(loop):
    async with (
        endpoint(loop, local_addr=("127.0.0.1", 0)) as (busy, heard_busy),
        endpoint(loop, local_addr=("127.0.0.1", 0)) as (calm, heard_calm),
    ):
        seen = []
        heard_calm.record = lambda event: seen.append(len(heard_busy.received))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for _ in range(100):
                peer.sendto(b"flood", address_of(busy))
            peer.sendto(b"drop", address_of(calm))
        await heard_busy.until_received(100)
        assert seen and seen[0] <= 64
        heard_calm.record = Recorder.record.__get__(heard_calm)


def test_a_callback_may_stop_the_loop_amid_a_batch(loop):
    class Stopping(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"1":
                loop.stop()

    transport, heard = loop.run_until_complete(
        loop.create_datagram_endpoint(Stopping, local_addr=("127.0.0.1", 0))
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for number in range(12):
            peer.sendto(b"%d" % number, address_of(transport))
    loop.run_forever()
    loop.run_until_complete(heard.until_received(12))
    assert heard.data == [b"%d" % number for number in range(12)]
    transport.close()
    loop.run_until_complete(heard.until_event("connection_lost"))


def test_what_follows_an_escaping_exception_is_delivered_later(loop):
    class Escaping(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if data == b"1":
                raise KeyboardInterrupt

    transport, heard = loop.run_until_complete(
        loop.create_datagram_endpoint(Escaping, local_addr=("127.0.0.1", 0))
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for number in range(8):
            peer.sendto(b"%d" % number, address_of(transport))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert heard.data == [b"0", b"1"]
    loop.run_until_complete(heard.until_received(8))
    assert heard.data == [b"%d" % number for number in range(8)]
    transport.close()
    loop.run_until_complete(heard.until_event("connection_lost"))


# Pausing


async def test_a_pause_holds_amid_a_batch(loop):
    class Pausing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    async with endpoint(loop, Pausing(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for number in range(10):
                peer.sendto(b"%d" % number, address_of(transport))
        for count in range(1, 11):
            await heard.until_received(count)
            await turns()
            assert len(heard.received) == count
            assert not transport.is_reading()
            transport.resume_reading()
            assert transport.is_reading()
        assert heard.data == [b"%d" % number for number in range(10)]


async def test_what_was_kept_goes_before_what_comes(loop):
    class PausingOnce(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 1:
                self.transport.pause_reading()

    async with endpoint(loop, PausingOnce(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for number in range(5):
                peer.sendto(b"%d" % number, address_of(transport))
            await heard.until_received(1)
            transport.resume_reading()
            transport.pause_reading()
            await turns()
            assert len(heard.received) == 1
            transport.resume_reading()
            for number in range(5, 10):
                peer.sendto(b"%d" % number, address_of(transport))
            await heard.until_received(10)
        assert heard.data == [b"%d" % number for number in range(10)]


async def test_a_pause_in_connection_made_holds(loop):
    class Pausing(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async with endpoint(loop, Pausing(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"data", address_of(transport))
        await turns()
        assert heard.received == []
        transport.resume_reading()
        await heard.until_received(1)


async def test_what_was_kept_at_the_end_is_dropped(loop):
    class Pausing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.pause_reading()

    async with endpoint(loop, Pausing(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for _ in range(3):
                peer.sendto(b"data", address_of(transport))
        await heard.until_received(1)
        transport.resume_reading()
        transport.close()
        await heard.until_event("connection_lost")
        await turns()
        assert len(heard.received) == 1


# Flow control


@pytest.mark.asyncio_differs(
    "counts headers that it never takes off", when=(3, 13) <= sys.version_info < (3, 14)
)
async def test_a_writer_is_paused_and_resumed(loop, pair):
    near, far = pair
    async with endpoint(loop, sock=near) as (transport, protocol):
        transport.set_write_buffer_limits(high=16384)
        count = fill(transport)
        assert "pause_writing" not in protocol.events
        while "pause_writing" not in protocol.events:
            transport.sendto(count.to_bytes(4, "big") * 1024)
            count += 1
        assert transport.get_write_buffer_size() > 16384
        received = []

        def read():
            while len(received) < count:
                received.append(far.recv(8192))

        await asyncio.gather(asyncio.to_thread(read), protocol.until_event("resume_writing"))
        assert transport.get_write_buffer_size() == 0
        assert [int.from_bytes(data[:4], "big") for data in received] == list(range(count))
        assert protocol.events == ["connection_made", "pause_writing", "resume_writing"]


async def test_the_buffer_size_counts_headers_as_the_running_version_does(loop, pair):
    near, far = pair
    async with endpoint(loop, sock=near) as (transport, _):
        fill(transport)
        header = transport.get_write_buffer_size() - 4096
        assert header == (8 if sys.version_info >= (3, 13) else 0)
        transport.sendto(b"12")
        assert transport.get_write_buffer_size() == 4096 + 2 + 2 * header
        far.close()


async def test_the_limits_are_checked_and_told(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, _):
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >= 0"):
            transport.set_write_buffer_limits(high=1, low=2)


# Errors


async def test_a_refused_connection_is_told_and_the_endpoint_goes_on(loop):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    async with endpoint(loop, remote_addr=address) as (transport, protocol):
        transport.sendto(b"data")
        await protocol.until_event("error_received")
        assert isinstance(protocol.errors[0], ConnectionRefusedError)
        assert not transport.is_closing()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(10)
            peer.bind(address)
            transport.sendto(b"again")
            await turns()
            data, source = await asyncio.to_thread(peer.recvfrom, 100)
            assert data == b"again"
            peer.sendto(b"answer", source)
            await protocol.until_received(1)


async def test_a_datagram_that_is_too_large_is_told_and_the_others_leave(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, remote_addr=address_of(server)) as (client, protocol):
            client.sendto(b"before")
            client.sendto(b"x" * 70_000)
            client.sendto(b"after")
            await heard.until_received(2)
            assert heard.data == [b"before", b"after"]
            assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE]


async def test_an_error_handler_that_sends_again_does_not_stop_the_loop(loop):
    class Stubborn(Recorder):
        attempts = 0

        def error_received(self, exc):
            super().error_received(exc)
            self.attempts += 1
            if self.attempts < 50:
                self.transport.sendto(b"x" * 70_000)

    protocol = Stubborn()
    async with endpoint(loop, protocol, remote_addr=("127.0.0.1", 9)) as (transport, _):
        transport.sendto(b"x" * 70_000)
        await protocol.until(lambda: protocol.attempts == 50)


async def test_an_error_handler_may_end_the_transport(loop):
    class Ending(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            self.transport.abort()

    protocol = Ending()
    async with endpoint(loop, protocol, remote_addr=("127.0.0.1", 9)) as (transport, _):
        for _ in range(3):
            transport.sendto(b"x" * 70_000)
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
        assert len(protocol.errors) == 1


def test_an_error_handler_that_closes_hears_of_each_later_error(loop):
    class Closing(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            self.transport.close()

    async def open_endpoint():
        return await loop.create_datagram_endpoint(Closing, local_addr=("127.0.0.1", 0))

    transport, protocol = loop.run_until_complete(open_endpoint())
    for _ in range(2):  # outside of the loop, so that each is sent at once
        transport.sendto(b"x" * 70_000, ("127.0.0.1", 9))
    loop.run_until_complete(protocol.until_event("connection_lost"))
    assert len(protocol.errors) == 2
    assert protocol.lost_with is None


async def test_what_is_sent_after_close_leaves_until_the_connection_is_lost(loop):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(10)
        peer.bind(("127.0.0.1", 0))
        async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, protocol):
            transport.close()
            transport.sendto(b"last", peer.getsockname())
            await protocol.until_event("connection_lost")
        assert peer.recv(100) == b"last"


async def test_broadcasting_needs_permission(loop):
    async with endpoint(loop, family=socket.AF_INET) as (transport, protocol):
        transport.sendto(b"data", ("255.255.255.255", 9))
        await protocol.until_event("error_received")
        assert isinstance(protocol.errors[0], OSError)


async def test_broadcasting_with_permission(loop):
    async with endpoint(loop, local_addr=("0.0.0.0", 0)) as (server, heard):
        port = address_of(server)[1]
        remote = ("127.255.255.255", port)
        async with endpoint(loop, remote_addr=remote, allow_broadcast=True) as (client, _):
            assert client.get_extra_info("peername") is None
            client.sendto(b"to all")
            client.sendto(b"to all, again", remote)
            await heard.until_received(2)
            assert heard.data == [b"to all", b"to all, again"]
            with pytest.raises(ValueError, match="Invalid address: must be None or"):
                client.sendto(b"to one", ("127.0.0.1", port))


async def test_an_exception_of_datagram_received_is_reported(loop, reported_errors):
    class Failing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            if len(self.received) == 2:
                raise ZeroDivisionError

    async with endpoint(loop, Failing(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for _ in range(4):
                peer.sendto(b"data", address_of(transport))
        await heard.until_received(4)
        (report,) = reported_errors
        assert isinstance(report["exception"], ZeroDivisionError)
        assert not transport.is_closing()


async def test_an_exception_of_error_received_is_reported(loop, reported_errors):
    class Failing(Recorder):
        def error_received(self, exc):
            super().error_received(exc)
            raise ZeroDivisionError

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = nobody.getsockname()
    async with endpoint(loop, Failing(), remote_addr=address) as (transport, protocol):
        transport.sendto(b"data")
        await protocol.until_event("error_received")
        await turns()
        (report,) = reported_errors
        assert isinstance(report["exception"], ZeroDivisionError)
        assert not transport.is_closing()


@pytest.mark.asyncio_differs("is cut off without a word")
async def test_a_unix_datagram_that_is_too_large_is_told(loop, pair):
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if far.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 400_000:
        pytest.skip("net.core.wmem_max is too small for such a datagram")
    async with endpoint(loop, sock=near) as (_, protocol):
        far.send(b"x" * 300_000)
        far.send(b"next")
        await protocol.until_received(1)
        assert protocol.data == [b"next"]
        assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE]


# The peer's address


async def test_a_connected_endpoint_takes_its_peers_address_and_no_other(loop, host):
    async with endpoint(loop, local_addr=(host, 0)) as (server, heard):
        peer = address_of(server)
        async with endpoint(loop, remote_addr=peer[:2]) as (client, _):
            assert client.get_extra_info("peername") == peer
            client.sendto(b"data", peer)
            await heard.until_received(1)
            for other in [(host, peer[1] ^ 1, *peer[2:]), ("192.0.2.1", 1), "text"]:
                with pytest.raises(ValueError, match="Invalid address: must be None or"):
                    client.sendto(b"data", other)


@needs_ipv6
@pytest.mark.asyncio_differs("it has to be the address as it was resolved")
async def test_the_peers_address_may_have_another_form(loop):
    async with endpoint(loop, local_addr=("::1", 0)) as (server, heard):
        port = address_of(server)[1]
        async with endpoint(loop, remote_addr=("::1", port)) as (client, _):
            for address in [("::1", port), ("::1", port, 0), ("0:0::1", port, 0, 0)]:
                client.sendto(b"data", address)
            await heard.until_received(3)
            with pytest.raises(ValueError, match="Invalid address: must be None or"):
                client.sendto(b"data", ("::1", port, 0, 1))


async def test_a_connected_socket_sends_to_its_peer_whatever_the_address(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(address_of(server))
            async with endpoint(loop, sock=sock) as (client, _):
                client.sendto(b"data", ("127.0.0.1", 1))
                await heard.until_received(1)


# Unix


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_unix_addresses(loop, tmp_path, kind):
    name = str(tmp_path / "socket") if kind == "path" else f"\0pyreactor-{os.getpid()}"
    own = str(tmp_path / "own") if kind == "path" else f"\0pyreactor-{os.getpid()}-own"
    async with endpoint(loop, local_addr=name, family=socket.AF_UNIX) as (server, heard):
        arguments = {"local_addr": own, "remote_addr": name, "family": socket.AF_UNIX}
        async with endpoint(loop, **arguments) as (client, answered):
            client.sendto(b"to none")
            client.sendto(b"to the peer", name)
            await heard.until_received(2)
            source = heard.received[0][1]
            assert source == (own if kind == "path" else own.encode())
            server.sendto(b"answer", source)
            await answered.until_received(1)
            expected = name if kind == "path" else name.encode()
            assert answered.received == [(b"answer", expected)]
            with pytest.raises(ValueError, match="Invalid address"):
                client.sendto(b"data", own)


async def test_a_nameless_peer_has_no_address(loop, tmp_path):
    name = str(tmp_path / "socket")
    async with endpoint(loop, local_addr=name, family=socket.AF_UNIX) as (_, heard):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"data", name)
            await heard.until_received(1)
        assert heard.received == [(b"data", None)]


async def test_a_unix_path_may_be_as_long_as_the_kernel_allows(loop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    longest = "x" * 107
    async with endpoint(loop, local_addr=longest, family=socket.AF_UNIX) as (_, heard):
        async with endpoint(loop, family=socket.AF_UNIX) as (client, protocol):
            client.sendto(b"data", longest)
            await heard.until_received(1)
            client.sendto(b"data", "x" * 200)
            await protocol.until_event("error_received")
            assert "AF_UNIX path too long" in str(protocol.errors[0])


async def test_a_missing_unix_target_is_an_error_of_sending(loop, tmp_path):
    async with endpoint(loop, family=socket.AF_UNIX) as (transport, protocol):
        transport.sendto(b"data", str(tmp_path / "nobody"))
        await protocol.until_event("error_received")
        assert isinstance(protocol.errors[0], FileNotFoundError)


@pytest.mark.asyncio_differs("a nameless peer counts as none")
async def test_a_socketpair_is_connected(loop):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with far:
        far.settimeout(10)
        async with endpoint(loop, sock=near) as (transport, protocol):
            transport.sendto(b"out")
            await turns()
            assert far.recv(10) == b"out"
            far.send(b"in")
            await protocol.until_received(1)
            assert protocol.received == [(b"in", None)]


async def test_a_large_unix_datagram_arrives_whole(loop, pair):
    near, far = pair
    async with endpoint(loop, sock=near) as (_, protocol):
        data = random.Random(5).randbytes(150_000)
        far.send(data)
        await protocol.until_received(1)
        assert protocol.data == [data]


# Other families


async def test_a_family_that_only_the_socket_module_knows(loop):
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
    except OSError:
        pytest.skip("the kernel or its sandbox has no netlink")
    with sock:
        sock.bind((0, 0))
        async with endpoint(loop, sock=sock) as (transport, heard):
            request = (20).to_bytes(4, sys.byteorder) + bytes([22, 0, 1, 3]) + bytes(12)
            transport.sendto(request, (0, 0))  # RTM_GETADDR
            await heard.until(lambda: heard.received or heard.errors)
            assert heard.received[0][1][0] == 0


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "unexpected address family"),
        ({"local_addr": "text"}, TypeError, "2-tuple is expected"),
        ({"local_addr": ("127.0.0.1", 0, 0)}, TypeError, "2-tuple is expected"),
        (
            {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 1)},
            ValueError,
            "can not get address information",
        ),
        ({"local_addr": 1, "family": socket.AF_UNIX}, TypeError, "string is expected"),
        ({"local_addr": ("192.0.2.1", 0)}, OSError, "Cannot assign requested address"),
    ],
    ids=repr,
)
async def test_wrong_arguments_are_refused(loop, arguments, error, text):
    with pytest.raises(error, match=text):
        await loop.create_datagram_endpoint(Recorder, **arguments)


async def test_a_stream_socket_is_refused(loop):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        with pytest.raises(ValueError, match="socket was expected, got|Socket was expected, got"):
            await loop.create_datagram_endpoint(Recorder, sock=sock)


async def test_a_socket_excludes_what_would_make_one(loop):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="socket modifier keyword arguments can not be used"):
            await loop.create_datagram_endpoint(Recorder, sock=sock, reuse_port=True)


async def test_two_endpoints_may_share_a_port(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0), reuse_port=True) as (first, _):
        async with endpoint(loop, local_addr=address_of(first), reuse_port=True) as (second, _):
            assert address_of(second) == address_of(first)


async def test_a_protocol_factory_that_raises_leaves_nothing(loop):
    def fail():
        raise ZeroDivisionError

    with pytest.warns(ResourceWarning, match="unclosed <socket"):
        with pytest.raises(ZeroDivisionError):
            await loop.create_datagram_endpoint(fail, local_addr=("127.0.0.1", 0))
        gc.collect()


async def test_a_cancelled_call_closes_the_socket(loop):
    made = []

    def factory():
        made.append(Recorder())
        return made[-1]

    creating = asyncio.create_task(loop.create_datagram_endpoint(factory, family=socket.AF_INET))
    while not made:
        await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await made[0].until_event("connection_lost")


# The end


async def test_close_sends_what_is_written(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (_, heard):
        server = heard.transport
        async with endpoint(loop, remote_addr=address_of(server)) as (client, protocol):
            for number in range(5):
                client.sendto(b"%d" % number)
            client.close()
            assert client.is_closing()
            assert not client.is_reading()
            await protocol.until_event("connection_lost")
            assert protocol.lost_with is None
            await heard.until_received(5)


async def test_close_waits_until_the_kernel_has_all(loop, pair):
    near, far = pair
    async with endpoint(loop, sock=near) as (transport, protocol):
        count = fill(transport)
        transport.close()
        await turns()
        assert "connection_lost" not in protocol.events
        for number in range(count):
            data = await asyncio.to_thread(far.recv, 8192)
            assert int.from_bytes(data[:4], "big") == number
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None


async def test_nothing_is_received_while_a_close_waits_for_the_peer(loop, pair):
    near, far = pair

    class Closing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    async with endpoint(loop, Closing(), sock=near) as (transport, protocol):
        fill(transport)
        for _ in range(3):
            far.send(b"data")
        await protocol.until_event("datagram_received")
        await turns(10)
        assert "connection_lost" not in protocol.events
        assert protocol.events.count("datagram_received") == 1
        transport.abort()
        await protocol.until_event("connection_lost")


async def test_abort_drops_what_the_kernel_has_not_taken(loop, pair):
    near, far = pair
    async with endpoint(loop, sock=near) as (transport, protocol):
        count = fill(transport)
        transport.abort()
        assert "connection_lost" not in protocol.events
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
        far.setblocking(False)
        arrived = 0
        with contextlib.suppress(BlockingIOError):
            while far.recv(8192):
                arrived += 1
        assert arrived == count - 1


async def test_nothing_is_called_after_the_end(loop):
    class Closing(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.close()

    async with endpoint(loop, Closing(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for _ in range(8):
                peer.sendto(b"data", address_of(transport))
        await heard.until_event("connection_lost")
        await turns(10)
        assert heard.events == ["connection_made", "datagram_received", "connection_lost"]


async def test_closing_twice_is_allowed(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, protocol):
        transport.close()
        transport.close()
        transport.abort()
        await protocol.until_event("connection_lost")
        await turns()
        transport.close()
        assert protocol.events.count("connection_lost") == 1


@pytest.mark.asyncio_differs("fails on an attribute of None")
async def test_sending_after_the_end_is_dropped(loop):
    async with endpoint(loop, family=socket.AF_INET) as (transport, protocol):
        transport.close()
        transport.sendto(b"data", ("127.0.0.1", 9))
        await protocol.until_event("connection_lost")
        await turns()
        transport.sendto(b"data", ("127.0.0.1", 9))
        with pytest.raises(TypeError):
            transport.sendto("text")
        assert transport.get_write_buffer_size() == 0
        assert protocol.errors == []


async def test_a_descriptor_used_again_hears_nothing_of_the_old(loop):
    for number in range(30):
        async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, heard):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.sendto(b"%d" % number, address_of(transport))
                await heard.until_received(1)
                assert heard.data == [b"%d" % number]
                for _ in range(5):
                    peer.sendto(b"late", address_of(transport))
            transport.close()


# The transport as an object


async def test_the_transport_is_a_datagram_transport(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, protocol):
        if isinstance(loop, pyreactor.Loop) or sys.version_info >= (3, 13):
            assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_protocol() is protocol
        assert transport.get_extra_info("peername") is None
        assert transport.get_extra_info("nothing", 1) == 1
        sock = transport.get_extra_info("socket")
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert sock.getsockname() == address_of(transport)
        assert f"fd={sock.fileno()}" in repr(transport)
        assert "closing" not in repr(transport)
        transport.close()
        assert "closing" in repr(transport)
        await protocol.until_event("connection_lost")
        await turns()
        assert "closed" in repr(transport)


async def test_methods_of_the_transport_can_be_replaced(loop):
    async with endpoint(loop, remote_addr=("127.0.0.1", 9)) as (transport, _):
        transport.sendto = mock.Mock()
        transport.sendto(b"data")
        transport.sendto.assert_called_once_with(b"data")


async def test_another_protocol_takes_over(loop):
    second = Recorder()
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, first):
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"data", address_of(transport))
            await second.until_received(1)
        assert first.received == []
        transport.set_protocol(first)


async def test_a_descriptor_in_use_cannot_be_watched(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, _):
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(transport.get_extra_info("socket").fileno(), print)


async def test_callbacks_run_in_the_context_of_creation(loop):
    variable = contextvars.ContextVar("variable", default="default")

    class InContext(Recorder):
        def record(self, event):
            self.seen = {**getattr(self, "seen", {}), event: variable.get()}
            super().record(event)

    async def create():
        variable.set("of the creator")
        return await loop.create_datagram_endpoint(InContext, local_addr=("127.0.0.1", 0))

    transport, heard = await asyncio.create_task(create())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"data", address_of(transport))
        await heard.until_received(1)
    assert heard.seen["connection_made"] == "of the creator"
    assert heard.seen["datagram_received"] == "of the creator"
    transport.close()
    await heard.until_event("connection_lost")
    if isinstance(loop, pyreactor.Loop):
        assert heard.seen["connection_lost"] == "of the creator"


def test_a_transport_left_open_warns_and_frees_its_descriptor(loop):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # held: it must not go before
    creating = loop.create_datagram_endpoint(Recorder, sock=sock)
    transport, protocol = loop.run_until_complete(creating)
    number = sock.fileno()
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del creating, transport, protocol
        gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)


async def test_transport_and_protocol_are_freed_after_the_end(loop):
    async def main():
        async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (transport, protocol):
            transport.sendto(b"to myself", address_of(transport))
            await protocol.until_received(1)
            return weakref.ref(transport), weakref.ref(protocol)

    references = await main()
    await turns()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


async def test_debug_mode_names_a_slow_callback(loop, caplog):
    class Slow(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            deadline = loop.time() + 0.02
            while loop.time() < deadline:
                pass

    loop.set_debug(True)
    loop.slow_callback_duration = 0.01
    async with endpoint(loop, Slow(), local_addr=("127.0.0.1", 0)) as (transport, heard):
        transport.sendto(b"to myself", address_of(transport))
        await heard.until_received(1)
        await turns()
    assert "took 0.0" in caplog.text


async def test_many_more_than_leave_together_arrive_in_order(loop):
    async with endpoint(loop, local_addr=("127.0.0.1", 0)) as (server, heard):
        async with endpoint(loop, remote_addr=address_of(server)) as (client, _):
            for _ in range(20):
                client.sendto(b"x" * 100)
            assert client.get_write_buffer_size() == 0  # sends what waits
            for number in range(200):
                client.sendto(b"%d" % number)
            await heard.until_received(220)
            assert heard.data == [b"x" * 100] * 20 + [b"%d" % number for number in range(200)]
