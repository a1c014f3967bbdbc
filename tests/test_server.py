"""Servers and clients: listening, accepting, connecting, and asyncio's streams on top."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
import time
from unittest import mock

import pytest

import pyreactor

HOST = "127.0.0.1"
before_3_12 = sys.version_info < (3, 12)
before_3_13 = sys.version_info < (3, 13)


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Client(asyncio.Protocol):
    """Keeps what it got and how its connection ended."""

    def __init__(self):
        self.received = asyncio.Queue()
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.received.put_nowait(data)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class Serving:
    """A factory of echo protocols that knows the transports of its connections."""

    def __init__(self):
        self.transports = []
        self.connected = asyncio.Event()
        self.lost = asyncio.Event()

    def __call__(self):
        serving = self

        class Protocol(Echo):
            def connection_made(self, transport):
                super().connection_made(transport)
                serving.transports.append(transport)
                serving.connected.set()

            def connection_lost(self, exc):
                serving.transports.remove(self.transport)
                if not serving.transports:
                    serving.lost.set()

        return Protocol()

    async def until_connected(self, count):
        while len(self.transports) < count:
            self.connected.clear()
            await self.connected.wait()


async def connect(loop, server):
    return await loop.create_connection(Client, *server.sockets[0].getsockname()[:2])


async def ask(transport, client, question=b"question"):
    transport.write(question)
    answer = b""
    while len(answer) < len(question):
        answer += await client.received.get()
    assert answer == question


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def end(transport):
    """Close the client's transport and wait for its end."""
    client = transport.get_protocol()
    transport.close()
    if client is not None:
        await client.lost


def unused_port():
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


# Servers


async def test_a_server_serves_until_it_is_closed(loop):
    server = await loop.create_server(Echo, HOST, 0)
    assert server.is_serving() and server.get_loop() is loop
    address = server.sockets[0].getsockname()
    transport, client = await connect(loop, server)
    await ask(transport, client)
    server.close()
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Client, *address)
    await ask(transport, client)
    await end(transport)
    await server.wait_closed()


async def test_a_server_is_a_server_of_asyncio(loop):
    server = await loop.create_server(Echo, HOST, 0)
    assert isinstance(server, asyncio.AbstractServer)
    assert isinstance(server.sockets, tuple)
    (sock,) = server.sockets
    assert isinstance(sock, asyncio.trsock.TransportSocket)
    assert repr(server).startswith("<Server sockets=")
    server.close()
    assert server.sockets == ()
    await server.wait_closed()


async def test_private_attributes_that_libraries_look_at_are_there(loop):
    server = await loop.create_server(Echo, HOST, 0)
    assert server._waiters == []
    server.close()
    await server.wait_closed()
    assert server._waiters is None


async def test_a_server_can_be_closed_again_and_again(loop):
    server = await loop.create_server(Echo, HOST, 0)
    for _ in range(3):
        server.close()
        await server.wait_closed()


async def test_a_server_that_does_not_serve_yet_refuses_connections(loop):
    server = await loop.create_server(Echo, HOST, 0, start_serving=False)
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        await connect(loop, server)
    for _ in range(2):
        await server.start_serving()
        assert server.is_serving()
    transport, client = await connect(loop, server)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_server_that_never_served_can_be_closed(loop):
    server = await loop.create_server(Echo, HOST, 0, start_serving=False)
    server.close()
    await server.wait_closed()


async def test_serve_forever_starts_serving_and_ends_with_close(loop):
    server = await loop.create_server(Echo, HOST, 0, start_serving=False)
    serving = asyncio.create_task(server.serve_forever())
    await turns()
    assert server.is_serving()
    transport, client = await connect(loop, server)
    await ask(transport, client)
    await end(transport)
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_serve_forever_can_be_awaited_once_only(loop):
    server = await loop.create_server(Echo, HOST, 0)
    serving = asyncio.create_task(server.serve_forever())
    await turns()
    with pytest.raises(RuntimeError, match=r"is already being awaited on serve_forever\(\)"):
        await server.serve_forever()
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


@pytest.mark.skipif(sys.version_info < (3, 14), reason="clients are kept before 3.14")
async def test_cancelling_serve_forever_closes_the_server_and_its_clients(loop):
    server = await loop.create_server(Echo, HOST, 0)
    serving = asyncio.create_task(server.serve_forever())
    transport, client = await connect(loop, server)
    await ask(transport, client)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving() and server.sockets == ()
    await end(transport)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="3.14 closes the clients")
async def test_cancelling_serve_forever_closes_the_server_and_keeps_the_clients(loop):
    server = await loop.create_server(Echo, HOST, 0)
    serving = asyncio.create_task(server.serve_forever())
    transport, client = await connect(loop, server)
    await ask(transport, client)
    serving.cancel()
    await turns()
    assert not server.is_serving() and server.sockets == ()
    await ask(transport, client)
    await end(transport)
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.mark.asyncio_differs("does not wait before 3.12.1", when=before_3_12)
async def test_wait_closed_waits_for_the_clients(loop):
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0)
    clients = [await connect(loop, server) for _ in range(3)]
    await serving.until_connected(3)
    waiting = [asyncio.create_task(server.wait_closed()) for _ in range(2)]
    server.close()
    for transport, client in clients:
        await turns()
        assert not any(task.done() for task in waiting)
        await ask(transport, client)
        await end(transport)
    await asyncio.gather(*waiting)
    assert not serving.transports
    await server.wait_closed()


@pytest.mark.asyncio_differs("does not wait before 3.12.1", when=before_3_12)
async def test_wait_closed_waits_for_the_close(loop):
    server = await loop.create_server(Echo, HOST, 0)
    waiting = asyncio.create_task(server.wait_closed())
    await turns()
    assert not waiting.done()
    transport, _ = await connect(loop, server)
    await end(transport)
    await turns()
    assert not waiting.done()
    server.close()
    await waiting


async def test_a_server_is_closed_at_the_end_of_its_block(loop):
    async with await loop.create_server(Echo, HOST, 0) as server:
        transport, client = await connect(loop, server)
        await ask(transport, client)
        await end(transport)
    assert not server.is_serving() and server.sockets == ()


@pytest.mark.asyncio_differs("new in 3.13", when=before_3_13)
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
async def test_a_server_can_end_its_connections(loop, method):
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0)
    clients = [await connect(loop, server) for _ in range(3)]
    await serving.until_connected(3)
    server.close()
    getattr(server, method)()
    await server.wait_closed()
    for transport, client in clients:
        exc = await client.lost
        assert exc is None or isinstance(exc, ConnectionError)
        assert transport.is_closing()
    getattr(server, method)()


@pytest.mark.asyncio_differs("new in 3.13", when=before_3_13)
async def test_close_clients_sends_what_was_written_and_abort_clients_does_not(loop):
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0)
    received = {}
    for method in ("close_clients", "abort_clients"):
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            await serving.until_connected(1)
            serving.lost.clear()
            (transport,) = serving.transports
            transport.write(bytes(16 << 20))
            assert transport.get_write_buffer_size() > 0
            getattr(server, method)()
            reading = asyncio.to_thread(count_to_end, peer)
            received[method], _ = await asyncio.gather(reading, serving.lost.wait())
    assert received["close_clients"] == 16 << 20
    assert received["abort_clients"] < 16 << 20
    server.close()
    await server.wait_closed()


def count_to_end(sock):
    sock.settimeout(10)
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 20):
            count += len(data)
    return count


async def test_a_server_listens_on_every_host_it_is_given(loop):
    server = await loop.create_server(Echo, [HOST, "127.0.0.2"], 0)
    hosts = {sock.getsockname()[0] for sock in server.sockets}
    assert hosts == {HOST, "127.0.0.2"}
    for sock in server.sockets:
        transport, client = await loop.create_connection(Client, *sock.getsockname())
        await ask(transport, client)
        await end(transport)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("host", [None, ""])
async def test_a_server_without_a_host_listens_everywhere(loop, host):
    server = await loop.create_server(Echo, host, unused_port(), family=socket.AF_INET)
    (sock,) = server.sockets
    assert sock.getsockname()[0] == "0.0.0.0"
    transport, client = await loop.create_connection(Client, HOST, sock.getsockname()[1])
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_server_takes_a_bound_socket(loop):
    sock = socket.socket()
    sock.bind((HOST, 0))
    server = await loop.create_server(Echo, sock=sock)
    transport, client = await connect(loop, server)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()
    assert sock.fileno() == -1


async def test_addresses_are_reused_after_a_server_was_closed(loop):
    server = await loop.create_server(Echo, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    transport, client = await connect(loop, server)
    await ask(transport, client)
    server.close()
    await end(transport)
    await server.wait_closed()
    server = await loop.create_server(Echo, HOST, port)
    server.close()
    await server.wait_closed()


async def test_two_servers_can_share_a_port(loop):
    first = await loop.create_server(Echo, HOST, 0, reuse_port=True)
    port = first.sockets[0].getsockname()[1]
    second = await loop.create_server(Echo, HOST, port, reuse_port=True)
    for _ in range(10):
        transport, client = await connect(loop, first)
        await ask(transport, client)
        await end(transport)
    for server in (first, second):
        server.close()
        await server.wait_closed()


@pytest.mark.skipif(before_3_13, reason="new in 3.13")
async def test_a_server_can_keep_connections_alive(loop):
    server = await loop.create_server(Echo, HOST, 0, keep_alive=True)
    assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    server.close()
    await server.wait_closed()


async def test_an_address_in_use_is_named_in_the_error(loop):
    with socket.create_server((HOST, 0)) as taken:
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            await loop.create_server(Echo, *taken.getsockname())
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("port", [-1, 65536, 70000, 1 << 40])
async def test_a_port_out_of_range_is_an_overflow_error(loop, port):
    with pytest.raises(OverflowError):
        await loop.create_server(Echo, HOST, port)
    with pytest.raises(OverflowError):
        await loop.create_connection(Client, HOST, port)


async def test_contradicting_arguments_of_a_server_are_refused(loop):
    with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        message = "host/port and sock can not be specified at the same time"
        with pytest.raises(ValueError, match=message):
            await loop.create_server(Echo, HOST, 0, sock=sock)
        with pytest.raises(ValueError, match="Neither host/port nor sock were specified"):
            await loop.create_server(Echo)
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.create_server(Echo, sock=datagram)
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            await loop.create_server(Echo, HOST, 0, ssl=True)


# Accepting


async def test_many_clients_at_once_are_all_accepted(loop):
    server = await loop.create_server(Echo, HOST, 0, backlog=300)

    async def client(number):
        transport, client = await connect(loop, server)
        await ask(transport, client, b"%d" % number)
        await end(transport)

    await asyncio.gather(*(client(number) for number in range(200)))
    server.close()
    await server.wait_closed()


async def test_a_server_closed_by_its_first_connection_accepts_no_more(loop):
    connections = []

    class Closing(asyncio.Protocol):
        def connection_made(self, transport):
            connections.append(transport)
            server.close()
            transport.close()

    server = await loop.create_server(Closing, HOST, 0)
    address = server.sockets[0].getsockname()
    peers = [socket.create_connection(address) for _ in range(5)]
    while not connections:
        await turns(1)
    await turns()
    for peer in peers:
        peer.settimeout(10)
        assert await asyncio.to_thread(count_to_end, peer) == 0
        peer.close()
    await server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Client, *address)


class Starvation:
    """Takes every descriptor the process may have, until told to give them back."""

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, self.limits[1]))
        self.descriptors = []
        with contextlib.suppress(OSError):
            while True:
                self.descriptors.append(os.dup(0))
        return self

    def __exit__(self, *exc_info):
        for descriptor in self.descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)


def turns_of(loop):
    return loop.metrics().turns if isinstance(loop, pyreactor.Loop) else 0


async def test_a_server_out_of_descriptors_waits_without_spinning_and_recovers(
    loop, reported_errors
):
    server = await loop.create_server(Echo, HOST, 0, backlog=4)
    with socket.socket() as peer:
        peer.settimeout(10)
        with Starvation():
            peer.connect(server.sockets[0].getsockname())
            before = time.thread_time(), turns_of(loop)
            await asyncio.sleep(0.3)
            assert time.thread_time() - before[0] < 0.15
            assert turns_of(loop) - before[1] < 20
            assert reported_errors
            for context in reported_errors:
                assert context["message"].startswith("socket.accept() out of system resource")
                assert context["exception"].errno == errno.EMFILE
                assert isinstance(context["socket"], asyncio.trsock.TransportSocket)
        peer.sendall(b"x")
        assert await asyncio.to_thread(peer.recv, 1) == b"x"
    reported_errors.clear()
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio_differs("it reports once for every place of the backlog")
async def test_a_server_out_of_descriptors_reports_it_once(loop, reported_errors):
    retries = []
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0, backlog=100)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.socket()) for _ in range(3)]
        with Starvation():
            for peer in peers:
                peer.connect(server.sockets[0].getsockname())
            with mock.patch.object(loop, "call_later", lambda _, again: retries.append(again)):
                for _ in range(4):
                    while not retries:
                        await turns(1)
                    retries.pop()()
                while not retries:
                    await turns(1)
            assert len(reported_errors) == 1
        retries.pop()()
        await serving.until_connected(3)
    reported_errors.clear()
    server.close()
    await server.wait_closed()


async def test_a_server_closed_while_out_of_descriptors_stays_closed(loop, reported_errors):
    server = await loop.create_server(Echo, HOST, 0, backlog=1)
    address = server.sockets[0].getsockname()
    with socket.socket() as peer:
        with Starvation():
            peer.connect(address)
            await asyncio.sleep(0.01)
            assert reported_errors
            server.close()
        await server.wait_closed()
    reported_errors.clear()
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Client, *address)


@pytest.mark.asyncio_differs("the accepted socket stays open")
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
async def test_a_factory_that_raises_costs_its_connection_only(loop, reported_errors, debug):
    error = ZeroDivisionError("from the factory")
    failing = True

    def factory():
        if failing:
            raise error
        return Echo()

    loop.set_debug(debug)
    server = await loop.create_server(factory, HOST, 0)
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        peer.settimeout(10)
        assert await asyncio.to_thread(peer.recv, 1) == b""
    failing = False
    transport, client = await connect(loop, server)
    await ask(transport, client)
    await end(transport)
    if debug:
        (context,) = reported_errors
        assert context["message"] == "Error on transport creation for incoming connection"
        assert context["exception"] is error
    reported_errors.clear()
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio_differs("the accepted socket stays open")
@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_from_a_factory_and_the_server_goes_on(loop, exit_type):
    failing = True

    def factory():
        nonlocal failing
        if failing:
            failing = False
            raise exit_type
        return Echo()

    async def close():
        transport, client = await connect(loop, server)
        await ask(transport, client)
        await end(transport)
        server.close()
        await server.wait_closed()

    server = loop.run_until_complete(loop.create_server(factory, HOST, 0))
    with socket.create_connection(server.sockets[0].getsockname()):
        with pytest.raises(exit_type):
            loop.run_forever()
        loop.run_until_complete(close())


async def test_an_accepted_connection_paused_in_connection_made_stays_paused(loop):
    accepted = loop.create_future()
    received = []

    class Paused(asyncio.Protocol):
        def connection_made(self, transport):
            transport.pause_reading()
            accepted.set_result(transport)

        def data_received(self, data):
            received.append(data)
            done.set()

    done = asyncio.Event()
    server = await loop.create_server(Paused, HOST, 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(b"data")
        transport = await accepted
        await turns(5)
        assert received == []
        transport.resume_reading()
        await done.wait()
        assert received == [b"data"]
        transport.close()
        await turns()
    server.close()
    await server.wait_closed()


async def test_accepted_connections_know_their_addresses(loop):
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0)
    transport, client = await connect(loop, server)
    await serving.until_connected(1)
    (accepted,) = serving.transports
    assert accepted.get_extra_info("sockname") == server.sockets[0].getsockname()
    assert accepted.get_extra_info("peername") == transport.get_extra_info("sockname")
    assert transport.get_extra_info("peername") == accepted.get_extra_info("sockname")
    sock = accepted.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not os.get_inheritable(sock.fileno())
    assert not os.get_blocking(sock.fileno())
    assert sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_an_accepted_socket_can_be_handed_over(loop):
    with socket.create_server((HOST, 0)) as listener:
        with socket.create_connection(listener.getsockname()) as peer:
            accepted, _ = listener.accept()
            transport, protocol = await loop.connect_accepted_socket(Echo, accepted)
            assert isinstance(protocol, Echo) and isinstance(transport, asyncio.Transport)
            peer.sendall(b"x")
            peer.settimeout(10)
            assert await asyncio.to_thread(peer.recv, 1) == b"x"
            transport.close()
            assert await asyncio.to_thread(peer.recv, 1) == b""
    assert accepted.fileno() == -1


async def test_only_a_stream_socket_can_be_handed_over(loop):
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.connect_accepted_socket(Echo, datagram)
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.create_connection(Client, sock=datagram)


# Connecting


async def test_a_name_is_resolved(loop):
    server = await loop.create_server(Echo, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    transport, client = await loop.create_connection(
        Client, "localhost", port, family=socket.AF_INET
    )
    assert transport.get_extra_info("peername") == (HOST, port)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("delay", [None, 0.25])
async def test_happy_eyeballs_and_interleaving_can_be_asked_for(loop, delay):
    server = await loop.create_server(Echo, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    transport, client = await loop.create_connection(
        Client, "localhost", port, happy_eyeballs_delay=delay, interleave=1
    )
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_refused_connection_is_an_error(loop):
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(Client, HOST, unused_port())


@pytest.mark.skipif(before_3_12, reason="all_errors is new in 3.12")
async def test_all_errors_of_connecting_can_be_had(loop):
    port = unused_port()
    with pytest.raises(ExceptionGroup, match="create_connection failed") as caught:
        await loop.create_connection(Client, HOST, port, all_errors=True)
    assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError]


async def test_the_local_address_can_be_chosen(loop):
    serving = Serving()
    server = await loop.create_server(serving, HOST, 0)
    port = unused_port()
    transport, client = await loop.create_connection(
        Client, *server.sockets[0].getsockname(), local_addr=("127.0.0.3", port)
    )
    assert transport.get_extra_info("sockname") == ("127.0.0.3", port)
    await ask(transport, client)
    transport.abort()
    await client.lost
    server.close()
    await server.wait_closed()


async def test_a_local_address_in_use_is_named_in_the_error(loop):
    server = await loop.create_server(Echo, HOST, 0)
    address = server.sockets[0].getsockname()
    with pytest.raises(OSError, match="error while attempting to bind on address"):
        await loop.create_connection(Client, *address, local_addr=address)
    server.close()
    await server.wait_closed()


async def test_contradicting_arguments_of_a_client_are_refused(loop):
    with socket.socket() as sock:
        for arguments, message in [
            ({"host": HOST, "port": 1, "sock": sock}, "host/port and sock can not be specified"),
            ({}, "host and port was not specified and no sock specified"),
            ({"host": HOST, "port": 1, "server_hostname": "x"}, "server_hostname is only meaning"),
            ({"host": HOST, "port": 1, "ssl_handshake_timeout": 1}, "ssl_handshake_timeout is"),
            ({"host": HOST, "port": 1, "ssl_shutdown_timeout": 1}, "ssl_shutdown_timeout is"),
        ]:
            with pytest.raises(ValueError, match=message):
                await loop.create_connection(Client, **arguments)
        assert sock.fileno() != -1


async def test_a_client_factory_that_raises_closes_the_socket(loop):
    def factory():
        raise ZeroDivisionError

    server = await loop.create_server(Echo, HOST, 0)
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        with pytest.raises(ZeroDivisionError):
            await loop.create_connection(factory, sock=sock)
    server.close()
    await server.wait_closed()


async def test_create_connection_returns_after_connection_made(loop):
    order = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            order.append("connection_made")

    near, far = socket.socketpair()
    with far:
        transport, protocol = await loop.create_connection(Protocol, sock=near)
        assert order == ["connection_made"] and isinstance(protocol, Protocol)
        assert transport.get_protocol() is protocol
        transport.close()
        await turns()


@pytest.mark.parametrize("wait", range(6))
async def test_a_cancelled_create_connection_never_closes_somebody_elses_descriptor(loop, wait):
    near, far = socket.socketpair()
    number = near.fileno()
    task = asyncio.create_task(loop.create_connection(asyncio.Protocol, sock=near))
    await turns(wait)
    task.cancel()
    try:
        transport, _ = await task
    except asyncio.CancelledError:
        pass
    else:
        transport.close()
    await turns()
    # Whoever gets the number now must keep it when the socket object is closed.
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(open(os.devnull)) for _ in range(10)]
        before = {other.fileno(): os.fstat(other.fileno()).st_ino for other in others}
        near.close()
        await turns()
        for descriptor, inode in before.items():
            assert os.fstat(descriptor).st_ino == inode
        assert near.fileno() == -1
    with pytest.raises(OSError):
        os.fstat(number)
    far.close()


@pytest.mark.parametrize("wait", range(8))
async def test_a_cancelled_create_connection_leaves_nothing_behind(loop, wait):
    server = await loop.create_server(Echo, HOST, 0)
    task = asyncio.create_task(connect(loop, server))
    await turns(wait)
    task.cancel()
    try:
        transport, _ = await task
    except asyncio.CancelledError:
        pass
    else:
        await end(transport)
    await turns(20)  # for the server to see the end of what it accepted
    server.close()
    await server.wait_closed()


async def test_connections_cancelled_at_random_leave_the_others_alone(loop):
    server = await loop.create_server(Echo, HOST, 0, backlog=300)

    async def client(number):
        transport, client = await connect(loop, server)
        try:
            for round_number in range(5):
                await ask(transport, client, b"%d of %d" % (round_number, number))
        finally:
            transport.close()

    tasks = [asyncio.create_task(client(number)) for number in range(150)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            loop.call_later(number * 0.0001, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None for result in results[1::3] + results[2::3])
    await turns(20)
    server.close()
    await server.wait_closed()


# Unix sockets


async def test_a_unix_server_serves(loop, tmp_path):
    path = tmp_path / "socket"
    serving = Serving()
    server = await loop.create_unix_server(serving, path)
    (sock,) = server.sockets
    assert sock.family == socket.AF_UNIX and sock.getsockname() == str(path)
    transport, client = await loop.create_unix_connection(Client, str(path))
    assert transport.get_extra_info("peername") == str(path)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await loop.create_unix_connection(Client, path)


async def test_a_unix_server_takes_an_abstract_name(loop):
    name = f"\0pyreactor test {os.getpid()}"
    serving = Serving()
    server = await loop.create_unix_server(serving, name)
    assert server.sockets[0].getsockname() == name.encode()
    transport, client = await loop.create_unix_connection(Client, name)
    assert transport.get_extra_info("peername") == name.encode()
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_unix_server_replaces_a_stale_socket(loop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    server = await loop.create_unix_server(Echo, path)
    transport, client = await loop.create_unix_connection(Client, path)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_unix_server_replaces_no_other_file(loop, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="is already in use") as caught:
        await loop.create_unix_server(Echo, path)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


@pytest.mark.skipif(before_3_13, reason="cleanup_socket is new in 3.13")
@pytest.mark.parametrize("cleanup", [None, True, False])
async def test_a_unix_server_removes_its_socket(loop, tmp_path, cleanup):
    path = tmp_path / "socket"
    options = {} if cleanup is None else {"cleanup_socket": cleanup}
    server = await loop.create_unix_server(Echo, path, **options)
    assert path.exists()
    server.close()
    await server.wait_closed()
    assert path.exists() == (cleanup is False)


@pytest.mark.skipif(before_3_13, reason="cleanup_socket is new in 3.13")
async def test_a_unix_server_does_not_remove_the_socket_of_another(loop, tmp_path):
    path = tmp_path / "socket"
    server = await loop.create_unix_server(Echo, path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        server.close()
        await server.wait_closed()
        assert path.exists()


async def test_a_unix_server_takes_a_bound_socket(loop, tmp_path):
    path = str(tmp_path / "socket")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    server = await loop.create_unix_server(Echo, sock=sock)
    transport, client = await loop.create_unix_connection(Client, path)
    await ask(transport, client)
    await end(transport)
    server.close()
    await server.wait_closed()


async def test_a_connected_unix_socket_can_be_used(loop):
    near, far = socket.socketpair()
    transport, _ = await loop.create_unix_connection(Client, sock=near)
    server_transport, _ = await loop.connect_accepted_socket(Echo, far)
    await ask(transport, transport.get_protocol())
    await end(transport)
    server_transport.abort()
    await turns()


async def test_contradicting_arguments_of_unix_sockets_are_refused(loop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as unix:
        for method, factory in [
            (loop.create_unix_server, Echo),
            (loop.create_unix_connection, Client),
        ]:
            with pytest.raises(ValueError, match="path and sock can not be specified at the same"):
                await method(factory, path, sock=unix)
            with pytest.raises(
                ValueError, match=r"path was not specified, and no sock|no path and"
            ):
                await method(factory)
            with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
                await method(factory, sock=inet)


async def test_a_unix_path_nobody_listens_on_is_an_error(loop, tmp_path):
    with pytest.raises(FileNotFoundError):
        await loop.create_unix_connection(Client, tmp_path / "nothing")


# Names


async def test_getaddrinfo_gives_what_the_socket_module_gives(loop):
    for arguments, options in [
        ((HOST, 80), {}),
        ((HOST, 80), {"type": socket.SOCK_STREAM}),
        ((HOST, "80"), {"type": socket.SOCK_DGRAM}),
        ((b"127.0.0.1", 80), {"family": socket.AF_INET}),
        (("::1", 80), {"type": socket.SOCK_STREAM}),
        (("localhost", 80), {"family": socket.AF_INET}),
        ((None, 80), {"flags": socket.AI_PASSIVE, "type": socket.SOCK_STREAM}),
        (("fe80::1%lo", 80), {"type": socket.SOCK_STREAM}),
    ]:
        expected = socket.getaddrinfo(*arguments, **options)
        assert await loop.getaddrinfo(*arguments, **options) == expected


async def test_names_that_cannot_be_resolved_are_a_gaierror(loop):
    with pytest.raises(socket.gaierror) as caught:
        await loop.getaddrinfo("no address", 80, flags=socket.AI_NUMERICHOST)
    assert caught.value.errno == socket.EAI_NONAME
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Client, HOST, "no such service")


async def test_getnameinfo_gives_what_the_socket_module_gives(loop):
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    for address, flags in [((HOST, 80), numeric), ((HOST, 80), 0), (("::1", 80, 0, 0), numeric)]:
        assert await loop.getnameinfo(address, flags) == socket.getnameinfo(address, flags)


# Streams


async def test_streams_talk(loop):
    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for line in (b"first\n", b"second\n"):
        writer.write(line)
        await writer.drain()
        assert await reader.readline() == line.upper()
    writer.writelines([b"th", b"ird\n"])
    writer.write_eof()
    assert await reader.read() == b"THIRD\n"
    assert reader.at_eof()
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_streams_carry_more_than_the_kernel_buffers(loop, tmp_path):
    path = str(tmp_path / "socket")
    block = bytes(range(256)) * 256

    async def serve(reader, writer):
        for _ in range(100):
            writer.write(await reader.readexactly(len(block)))
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    reader, writer = await asyncio.open_unix_connection(path)

    async def send():
        for _ in range(100):
            writer.write(block)
            await writer.drain()

    async def receive():
        for _ in range(100):
            assert await reader.readexactly(len(block)) == block
        assert await reader.read() == b""

    await asyncio.gather(send(), receive())
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_drain_waits_for_a_slow_reader(loop):
    near, far = socket.socketpair()
    with far:
        far.settimeout(10)
        _, writer = await asyncio.open_connection(sock=near)
        writer.write(bytes(4 << 20))
        draining = asyncio.create_task(writer.drain())
        await turns()
        assert not draining.done()
        assert await asyncio.to_thread(read_count, far, 4 << 20) == 4 << 20
        await draining
        writer.close()
        await writer.wait_closed()


def read_count(sock, count):
    received = 0
    while received < count:
        received += len(sock.recv(min(count - received, 1 << 20)))
    return received


async def test_drain_raises_when_the_connection_is_lost(loop):
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    writer.write(bytes(4 << 20))
    draining = asyncio.create_task(writer.drain())
    await turns()
    far.close()
    with pytest.raises(ConnectionError):
        await draining
    writer.close()
    with pytest.raises(ConnectionError):
        await writer.wait_closed()


async def test_a_reader_pauses_the_transport_at_its_limit(loop):
    near, far = socket.socketpair()
    with far:
        far.settimeout(10)
        reader, writer = await asyncio.open_connection(sock=near, limit=1000)
        sending = loop.run_in_executor(None, far.sendall, b"x" * 300_000)
        received = 0
        while received < 300_000:
            received += len(await reader.read(777))
        await sending
        assert received == 300_000
        writer.close()
        await writer.wait_closed()


@pytest.mark.skipif(before_3_12, reason="not reported before 3.12")
async def test_an_exception_in_a_client_callback_is_reported(loop, reported_errors):
    async def serve(reader, writer):
        raise ZeroDivisionError

    server = await asyncio.start_server(serve, HOST, 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    (context,) = reported_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    reported_errors.clear()
    server.close()
    await server.wait_closed()
