"""The loop's sock_*() methods: what they leave registered, and that their futures always settle."""

import array
import asyncio
import contextlib
import errno
import gc
import itertools
import os
import select
import socket
import ssl
import struct
from unittest import mock

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
        with mock.patch.object(loop, "getaddrinfo", side_effect=AssertionError("resolved again")):
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


@pytest.mark.asyncio_differs("a call that is cancelled loses what it has received")
async def test_a_receive_cancelled_as_its_data_come_loses_none(loop, pair):
    near, far = pair
    for before, between in itertools.product(range(4), range(6)):
        first = asyncio.create_task(loop.sock_recv(near, 100))
        await turns(before)
        far.send(b"kept")
        await turns(between)
        first.cancel()
        try:
            received = await first
        except asyncio.CancelledError:
            received = await loop.sock_recv(near, 100)
        assert received == b"kept"


@pytest.mark.pyreactor_only
async def test_cancelled_receives_do_not_pile_up(loop, pair):
    def waiting():
        return sum(type(one).__name__ == "Waiter" for one in gc.get_objects())

    near, far = pair
    kept = asyncio.create_task(loop.sock_recv(near, 10))
    for _ in range(100):
        receiving = asyncio.create_task(loop.sock_recv(near, 10))
        await turns()
        receiving.cancel()
        await asyncio.wait([receiving])
    assert waiting() == 1
    far.send(b"kept")
    assert await kept == b"kept"


async def test_a_blocking_socket_is_refused_in_debug_mode(loop, pair):
    near, _ = pair
    near.setblocking(True)
    loop.set_debug(True)
    with pytest.raises(ValueError, match="must be non-blocking"):
        await loop.sock_recv(near, 10)


async def test_a_receive_that_waits_is_cancelled_while_its_data_are_on_their_way(loop, pair):
    near, far = pair
    first = asyncio.create_task(loop.sock_recv(near, 100))
    await turns()
    far.send(b"kept")
    loop.call_soon(first.cancel)
    try:
        received = await first
    except asyncio.CancelledError:
        received = await loop.sock_recv(near, 100)
    assert received == b"kept"


# Several calls for one socket


async def test_a_call_after_a_cancelled_one_is_served(loop, pair):
    near, far = pair
    first = asyncio.create_task(loop.sock_recv(near, 100))
    await turns()
    first.cancel()
    second = asyncio.create_task(loop.sock_recv(near, 100))
    await turns()
    far.send(b"x")
    assert await second == b"x"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_reading_and_writing_wait_at_the_same_time(loop, pair):
    near, far = pair
    fill(near)
    receiving = asyncio.create_task(loop.sock_recv(near, 100))
    sending = asyncio.create_task(loop.sock_sendall(near, b"the end"))
    await turns()
    far.send(b"ping")
    assert await receiving == b"ping"
    assert not sending.done()
    received = b""
    while not received.endswith(b"the end"):
        received = received[-10:] + await loop.sock_recv(far, 1 << 20)
    await sending


async def test_a_cancelled_receive_leaves_the_send_alone(loop, pair):
    near, far = pair
    fill(near)
    receiving = asyncio.create_task(loop.sock_recv(near, 100))
    sending = asyncio.create_task(loop.sock_sendall(near, b"the end"))
    await turns()
    receiving.cancel()
    received = b""
    while not received.endswith(b"the end"):
        received = received[-10:] + await loop.sock_recv(far, 1 << 20)
    await sending


@pytest.mark.asyncio_differs("the second call takes the first one's place, which never ends")
async def test_every_one_of_several_receivers_is_served(loop, pair):
    near, far = pair
    receiving = [asyncio.create_task(loop.sock_recv(near, 1)) for _ in range(5)]
    await turns()
    receiving[1].cancel()
    far.send(b"abcd")
    await asyncio.wait(receiving)
    assert [task.result() for task in receiving if not task.cancelled()] == [b"a", b"b", b"c", b"d"]


@pytest.mark.asyncio_differs("the second call takes the first one's place, which never ends")
async def test_every_one_of_several_acceptors_gets_a_client(loop, listening):
    accepting = [asyncio.create_task(loop.sock_accept(listening)) for _ in range(3)]
    await turns()
    clients = [socket.create_connection(listening.getsockname()) for _ in accepting]
    accepted = await asyncio.gather(*accepting)
    assert {address for _, address in accepted} == {client.getsockname() for client in clients}
    for sock in [*clients, *(sock for sock, _ in accepted)]:
        sock.close()


@pytest.mark.asyncio_differs("the reader takes the call's place, which never ends")
async def test_a_reader_and_a_receiver_of_one_socket_both_hear_of_data(loop, pair):
    near, far = pair
    heard = asyncio.Event()
    receiving = asyncio.create_task(loop.sock_recv(near, 1))
    await turns()
    loop.add_reader(near, heard.set)
    far.send(b"ab")
    assert await receiving == b"a"
    await heard.wait()
    assert loop.remove_reader(near)
    assert await loop.sock_recv(near, 10) == b"b"
    receiving = asyncio.create_task(loop.sock_recv(near, 1))
    await turns()
    far.send(b"c")
    assert await receiving == b"c"


async def test_a_writer_may_be_added_while_a_receive_waits(loop, pair):
    near, far = pair
    writable = asyncio.Event()
    receiving = asyncio.create_task(loop.sock_recv(near, 10))
    await turns()
    loop.add_writer(near, writable.set)
    await writable.wait()
    assert loop.remove_writer(near)
    far.send(b"x")
    assert await receiving == b"x"


# Sockets that go, and numbers that are used again


async def test_a_number_that_is_used_again_serves_the_new_socket(loop):
    number = None
    for _ in range(5):
        near, far = socket.socketpair()
        number = number or near.fileno()
        assert near.fileno() == number
        near.setblocking(False)
        receiving = asyncio.create_task(loop.sock_recv(near, 10))
        await turns()
        far.send(b"x")
        assert await receiving == b"x"
        near.close()
        far.close()


async def test_a_duplicate_that_lives_on_does_not_wake_the_numbers_next_socket(loop):
    old, old_far = socket.socketpair()
    old.setblocking(False)
    receiving = asyncio.create_task(loop.sock_recv(old, 10))
    await turns()
    old_far.send(b"x")
    assert await receiving == b"x"
    duplicate = old.dup()
    number = old.fileno()
    old.close()
    near, far = socket.socketpair()
    with duplicate, old_far, near, far:
        assert near.fileno() == number
        near.setblocking(False)
        receiving = asyncio.create_task(loop.sock_recv(near, 10))
        await turns()
        old_far.send(b"for the duplicate")
        await asyncio.sleep(0.01)
        assert not receiving.done()
        far.send(b"new")
        assert await receiving == b"new"
        assert duplicate.recv(100) == b"for the duplicate"


@pytest.mark.asyncio_differs("the call never ends")
@pytest.mark.parametrize("heir", ["sock_recv", "add_reader", "create_connection"])
async def test_a_call_for_a_closed_socket_fails_when_its_number_is_used_again(loop, heir):
    old, old_far = socket.socketpair()
    receiving = asyncio.create_task(loop.sock_recv(old, 10))
    old.setblocking(False)
    await turns()
    number = old.fileno()
    old.close()
    near, far = socket.socketpair()
    with old_far, near, far:
        assert near.fileno() == number
        near.setblocking(False)
        far.send(b"new")
        if heir == "sock_recv":
            assert await loop.sock_recv(near, 10) == b"new"
            waiting = asyncio.create_task(loop.sock_recv(near, 10))
            await turns()
        elif heir == "add_reader":
            heard = asyncio.Event()
            loop.add_reader(near, heard.set)
            await heard.wait()
            loop.remove_reader(near)
        else:
            reader, writer = await asyncio.open_connection(sock=near)
            assert await reader.read(10) == b"new"
            writer.close()
            await writer.wait_closed()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await asyncio.wait_for(receiving, 5)
        if heir == "sock_recv":
            far.send(b"more")
            assert await waiting == b"more"


@pytest.mark.epoll_only("a wait holds the file until it ends")
async def test_a_socket_closed_while_a_call_waits_lets_it_be_cancelled(loop, pair):
    near, far = pair
    receiving = asyncio.create_task(loop.sock_recv(near, 10))
    await turns()
    near.close()
    assert far.recv(10) == b""  # it is really closed, at once
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving


async def test_a_socket_may_become_a_transports_after_sock_calls(loop, pair):
    near, far = pair
    receiving = asyncio.create_task(loop.sock_recv(near, 10))
    await turns()
    far.send(b"first")
    assert await receiving == b"first"
    reader, writer = await asyncio.open_connection(sock=near)
    far.send(b"second")
    assert await reader.read(10) == b"second"
    with pytest.raises(RuntimeError, match="is used by transport"):
        await loop.sock_recv(writer.get_extra_info("socket")._sock, 10)
    writer.close()
    await writer.wait_closed()


async def test_a_reader_may_be_added_after_sock_calls(loop, pair):
    near, far = pair
    receiving = asyncio.create_task(loop.sock_recv(near, 10))
    await turns()
    far.send(b"x")
    await receiving
    heard = asyncio.Queue()
    loop.add_reader(near, lambda: heard.put_nowait(near.recv(1)))
    far.send(b"yz")
    assert await heard.get() + await heard.get() == b"yz"
    assert loop.remove_reader(near)
    assert not loop.remove_reader(near)


async def test_a_closed_socket_is_refused(loop, pair):
    near, _ = pair
    near.close()
    for call in (loop.sock_recv(near, 1), loop.sock_sendall(near, b"x"), loop.sock_accept(near)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            await call


# What the kernel is told


def epoll_descriptors():
    names = os.listdir("/proc/self/fd")
    links = {name: os.path.realpath(f"/proc/self/fd/{name}") for name in names}
    return [int(name) for name, link in links.items() if "eventpoll" in link]


def told_to_epoll(fd):
    """What the process's epoll sets are to report of `fd`, as the kernel shows it."""
    told = []
    for epoll in epoll_descriptors():
        with open(f"/proc/self/fdinfo/{epoll}") as info:
            lines = [line.split() for line in info if line.startswith("tfd:")]
        told += [line for line in lines if int(line[1]) == fd]
    return told


@pytest.mark.epoll_only("the kernel is told of each wait")
@pytest.mark.pyreactor_only
async def test_a_registration_stays_as_long_as_the_socket(loop, pair):
    near, far = pair
    number = near.fileno()
    assert not told_to_epoll(number)
    kept = []
    for _ in range(3):
        receiving = asyncio.create_task(loop.sock_recv(near, 10))
        await turns()
        far.send(b"x")
        await receiving
        kept.append(told_to_epoll(number))
    assert len(kept[0]) == 1
    assert kept[1:] == kept[:-1]  # its generation, too: there was no call in between
    near.close()
    assert not told_to_epoll(number)


@pytest.mark.pyreactor_only
async def test_what_nobody_waits_for_does_not_keep_the_loop_busy(loop, pair):
    near, far = pair
    near_duplicate = near.dup()  # keeps the registration alive when `near` is closed
    with near_duplicate:
        receiving = asyncio.create_task(loop.sock_recv(near, 1))
        await turns()
        far.send(b"ab")
        await receiving
        near.close()
        await turns()
        assert not select.select(epoll_descriptors(), [], [], 0)[0]


# Other sockets


async def test_a_socket_of_ones_own_is_asked_by_its_methods(loop, pair):
    near, far = pair

    class Upper(socket.socket):
        def recv(self, size):
            return super().recv(size).upper()

        def send(self, data):
            return super().send(bytes(data[:1]))

    with Upper(fileno=near.detach()) as own:
        receiving = asyncio.create_task(loop.sock_recv(own, 10))
        await turns()
        far.send(b"abc")
        assert await receiving == b"ABC"
        await loop.sock_sendall(own, memoryview(b"one by one"))
        assert far.recv(20) == b"one by one"


async def test_an_object_that_cannot_be_referred_to_weakly_is_served_each_time(loop, pair):
    near, far = pair

    class Wrapped:
        __slots__ = ("sock",)

        def __init__(self, sock):
            self.sock = sock

        def __getattr__(self, name):
            return getattr(self.sock, name)

    own = Wrapped(near)
    fill(near)
    sending = asyncio.create_task(loop.sock_sendall(own, b"end"))
    for _ in range(3):
        receiving = asyncio.create_task(loop.sock_recv(own, 10))
        await turns()
        far.send(b"x")
        assert await receiving == b"x"
    received = b""
    while not received.endswith(b"end"):
        received = received[-10:] + await loop.sock_recv(far, 1 << 20)
    await sending


@pytest.mark.parametrize("size", [0, -1, "1", 1 << 20])
async def test_sizes_are_the_sockets_affair(loop, pair, size):
    near, far = pair
    far.send(b"data")
    try:
        expected = near.recv(size, socket.MSG_PEEK)
    except (TypeError, ValueError) as exc:
        with pytest.raises(type(exc)):
            await loop.sock_recv(near, size)
    else:
        assert await loop.sock_recv(near, size) == expected


@pytest.mark.parametrize("data", ["text", None, 5])
async def test_what_is_no_bytes_cannot_be_sent(loop, pair, data):
    with pytest.raises(TypeError, match="bytes-like object"):
        await loop.sock_sendall(pair[0], data)


@pytest.mark.asyncio_differs("it counts items for bytes and waits for ever")
async def test_a_buffer_of_larger_items_is_sent_whole(loop, pair):
    near, far = pair
    await loop.sock_sendall(near, array.array("I", range(10)))
    assert far.recv(100) == array.array("I", range(10)).tobytes()


async def test_receiving_into_a_buffer_that_is_read_only_is_refused(loop, pair):
    pair[1].send(b"x")
    with pytest.raises((TypeError, BufferError)):
        await loop.sock_recv_into(pair[0], b"fixed")


async def test_the_other_ends_reset_is_an_error(loop, listening):
    client = socket.create_connection(listening.getsockname())
    sock, _ = await loop.sock_accept(listening)
    with sock:
        receiving = asyncio.create_task(loop.sock_recv(sock, 10))
        await turns()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            await receiving


async def test_datagrams_come_with_their_senders_address(loop):
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        for sock in (one, two):
            sock.bind((HOST, 0))
            sock.setblocking(False)
        receiving = asyncio.create_task(loop.sock_recvfrom(two, 100))
        await turns()
        assert await loop.sock_sendto(one, b"first", two.getsockname()) == 5
        assert await receiving == (b"first", one.getsockname())
        buffer = bytearray(10)
        receiving = asyncio.create_task(loop.sock_recvfrom_into(two, buffer))
        await turns()
        await loop.sock_sendto(one, b"second", two.getsockname())
        assert await receiving == (6, one.getsockname())
        assert buffer[:6] == b"second"


@pytest.mark.asyncio_differs("it takes a connection that was not begun for one that stands")
async def test_a_unix_socket_with_a_full_backlog_is_an_error(loop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as clients:
        server.bind(path)
        server.listen(0)
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                sock = clients.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                await loop.sock_connect(sock, path)


async def test_a_second_connect_of_one_socket_after_a_failure(loop, listening):
    with socket.create_server((HOST, 0)) as gone:
        address = gone.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(sock, address)
        with contextlib.suppress(ConnectionAbortedError):  # Linux says it once more
            await loop.sock_connect(sock, listening.getsockname())
        await loop.sock_connect(sock, listening.getsockname())
        assert sock.getpeername() == listening.getsockname()


async def test_a_tls_socket_is_refused(loop):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(socket.socket(), do_handshake_on_connect=False) as sock:
        for call in (loop.sock_recv(sock, 1), loop.sock_sendall(sock, b"x")):
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await call


def test_a_receive_left_waiting_goes_with_its_loop(new_loop, pair):
    loop = new_loop()
    coroutine = loop.sock_recv(pair[0], 10)

    async def step():
        return coroutine.send(None)

    waited = loop.run_until_complete(step())
    assert not waited.done()
    with pytest.raises(RuntimeError, match="wasn't used with future"):
        coroutine.send(None)
    loop.close()
    coroutine.close()


@pytest.mark.parametrize("debug", [False, True])
async def test_debug_mode_waits_in_the_same_way(loop, pair, debug):
    loop.set_debug(debug)
    near, far = pair
    receiving = asyncio.create_task(loop.sock_recv(near, 10))
    await turns()
    assert "wait_for=" in repr(receiving)
    far.send(b"x")
    assert await receiving == b"x"


def test_an_exit_in_a_task_that_was_waiting_leaves_the_loop(new_loop, pair):
    loop = new_loop()
    near, far = pair

    async def leave():
        await loop.sock_recv(near, 10)
        raise SystemExit(3)

    task = loop.create_task(leave())
    loop.call_later(0.001, far.send, b"x")
    with pytest.raises(SystemExit):
        loop.run_until_complete(task)
    assert isinstance(task.exception(), SystemExit)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "127.1", "", "fe80::1%lo", "::ffff:1.2.3.4", None]
)
@pytest.mark.parametrize("port", [0, 80, 70000, "80", "", None, True])
@pytest.mark.parametrize("family", [0, socket.AF_INET, socket.AF_INET6])
@pytest.mark.pyreactor_only
def test_addresses_in_numbers_resolve_as_asyncios(loop, host, port, family):
    reference = asyncio.SelectorEventLoop()
    outcomes = []
    for other in (reference, loop):
        for rest in ((), (1, 2)):
            try:
                resolving = other._ensure_resolved((host, port, *rest), family=family, loop=other)
                outcomes.append(repr(other.run_until_complete(resolving)))
            except (OSError, OverflowError, TypeError, ValueError) as exc:
                outcomes.append(repr(exc))
        other.run_until_complete(other.shutdown_default_executor())
    reference.close()
    assert outcomes[:2] == outcomes[2:]
