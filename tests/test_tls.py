"""TLS transports: `ssl=`, start_tls(), and how a connection begins, flows and ends.

Every test runs on asyncio, and on pyreactor with each of its engines.
"""

import asyncio
import contextlib
import contextvars
import gc
import hashlib
import logging
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import warnings
import weakref

import pytest

import pyreactor
from pyreactor import _tls_engine

HOST = "127.0.0.1"
KIB = 1 << 10
MIB = 1 << 20
RECORD_BYTES_MAX = 16 * KIB
ALERT, HANDSHAKE, APPLICATION_DATA = 21, 22, 23  # record types

ENGINES = {"asyncio": None, "pyreactor-openssl": "openssl", "pyreactor-memorybio": "memorybio"}


@pytest.fixture(params=ENGINES)
def loop_type(request, monkeypatch):
    engine = ENGINES[request.param]
    if engine is None:
        return asyncio.SelectorEventLoop
    best, reason = _tls_engine.explain_choice()
    if engine == "openssl" != best:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no OpenSSL engine here: {reason}")
        pytest.skip(f"no OpenSSL engine here: {reason}")
    monkeypatch.setenv("PYREACTOR_TLS", engine)
    return pyreactor.Loop


# --- Certificates ---------------------------------------------------------------------------------


class Authority:
    """A certificate authority of its own, and what it has signed."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "ca.pem"
        self._run(
            *("req", "-x509", "-subj", "/CN=test authority", "-out", self.file),
            *self._new_key("ca"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def _run(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def _new_key(self, name):
        key = self.folder / f"{name}.key"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        return (*curve, "-nodes", "-keyout", key, "-days", "30")

    def sign(self, name, subject_name):
        """Returns the file of a certificate with its key, of `name` for `subject_name`."""
        request, signed, both = (self.folder / f"{name}.{kind}" for kind in ("csr", "crt", "pem"))
        names = self.folder / f"{name}.ext"
        names.write_text(f"subjectAltName={subject_name}\n")
        key_options = self._new_key(name)[:-2]  # a request has no days
        self._run("req", "-new", "-subj", f"/CN={name}", "-out", request, *key_options)
        self._run(
            *("x509", "-req", "-in", request, "-CA", self.file, "-days", "30"),
            *("-CAkey", self.folder / "ca.key", "-CAcreateserial"),
            *("-extfile", names, "-out", signed),
        )
        both.write_bytes(signed.read_bytes() + (self.folder / f"{name}.key").read_bytes())
        return both

    def client(self, **versions):
        context = ssl.create_default_context(cafile=str(self.file))
        return limit(context, **versions)

    def server(self, name="server", **versions):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem")
        return limit(context, **versions)


def limit(context, only=None):
    if only is not None:
        context.minimum_version = context.maximum_version = only
    return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    if not shutil.which("openssl"):
        if os.environ.get("CI") == "true":
            pytest.fail("needs the program openssl; on Debian: make deps")
        pytest.skip("needs the program openssl; on Debian: make deps")
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.sign("server", "DNS:localhost,IP:127.0.0.1")
    authority.sign("other", "DNS:other.test")
    authority.sign("visitor", "DNS:visitor.test")
    return authority


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def version(request):
    return request.param


# --- Both sides -----------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """Keeps the names of its calls and the data it was given."""

    def __init__(self):
        self.events = []
        self.received = bytearray()
        self.transport = None
        self.lost_with = "not lost"
        self._changed = asyncio.Event()

    def record(self, event):
        if self.events[-1:] != [event]:
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
        assert type(data) is bytes
        assert data
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


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """A Recorder that is given its data in a buffer of its own."""

    size = 1000

    def __init__(self):
        super().__init__()
        self.buffer = bytearray(self.size)

    def get_buffer(self, sizehint):
        return memoryview(self.buffer)  # asyncio reads into a copy of a bytearray's rest

    def buffer_updated(self, count):
        assert 0 < count <= self.size
        self.received += self.buffer[:count]
        self.record("data_received")


class EchoOnce(Recorder):
    """Sends everything back."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


class Peer:
    """The other side of a connection, byte by byte: the stdlib's TLS over a plain socket."""

    def __init__(self, loop, sock, context, server_side=False, server_hostname="localhost"):
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=None if server_side else server_hostname,
        )

    async def do(self, call, *args):
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                await self.send_raw(self.outgoing.read())
                data = await self.receive_raw()
                if not data:
                    raise EOFError from None
                self.incoming.write(data)
            finally:
                await self.send_raw(self.outgoing.read())

    async def send_raw(self, data):
        if data:
            await self.loop.sock_sendall(self.sock, data)

    async def receive_raw(self, count=64 * KIB):
        return await self.loop.sock_recv(self.sock, count)

    async def handshake(self):
        await self.do(self.tls.do_handshake)

    async def write(self, data):
        await self.do(self.tls.write, data)

    async def read(self, count=64 * KIB):
        """Plaintext; b'' at the end that TLS says, EOFError at one that it does not."""
        try:
            return await self.do(self.tls.read, count)
        except ssl.SSLZeroReturnError:
            return b""

    async def read_exactly(self, count):
        received = bytearray()
        while len(received) < count:
            data = await self.read(count - len(received))
            assert data, "the end came too early"
            received += data
        return bytes(received)

    async def read_to_end(self):
        received = bytearray()
        while data := await self.read():
            received += data
        return bytes(received)

    def encrypt(self, data):
        self.tls.write(data)
        return self.outgoing.read()

    def say_end(self):
        """Sends close_notify without waiting for the other's."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def tcp_pair():
    with socket.create_server((HOST, 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@contextlib.asynccontextmanager
async def connected(loop, authority, factory=Recorder, server_side=True, **options):
    """A transport's protocol, and the Peer it is connected with."""
    near, far = tcp_pair()
    contexts = authority.server(), authority.client()
    ours, theirs = contexts if server_side else contexts[::-1]
    ours = options.pop("context", ours)
    theirs = options.pop("peer_context", theirs)
    peer = Peer(loop, far, theirs, server_side=not server_side)
    greeting = loop.create_task(peer.handshake())
    if server_side:
        opening = loop.connect_accepted_socket(factory, near, ssl=ours, **options)
    else:
        opening = loop.create_connection(
            factory, sock=near, ssl=ours, server_hostname="localhost", **options
        )
    transport, protocol = await opening
    await greeting
    try:
        yield protocol, peer
    finally:
        transport.abort()
        await protocol.until_event("connection_lost")
        far.close()


@contextlib.asynccontextmanager
async def served(loop, context, factory=Recorder, **options):
    """A server's address; its protocols are in `made`, when they are connected."""
    server = await loop.create_server(factory, HOST, 0, ssl=context, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def both_sides(loop, authority, near_type=Recorder, far_type=Recorder, contexts=None):
    """Two protocols, connected: the client's and the server's."""
    server_context, client_context = contexts or (authority.server(), authority.client())
    made = loop.create_future()

    def factory():
        protocol = far_type()
        made.set_result(protocol)
        return protocol

    async with served(loop, server_context, factory) as address:
        _transport, near = await loop.create_connection(
            near_type, *address, ssl=client_context, server_hostname="localhost"
        )
        far = await made
        await far.until_event("connection_made")
        try:
            yield near, far
        finally:
            for protocol in (near, far):
                protocol.transport.abort()
            for protocol in (near, far):
                await protocol.until_event("connection_lost")


# --- The engines ----------------------------------------------------------------------------------


@pytest.mark.pyreactor_only
async def test_engine_is_the_one_that_was_asked_for(loop, authority, request):
    wanted = os.environ["PYREACTOR_TLS"]
    async with connected(loop, authority) as (protocol, _peer):
        assert protocol.transport._engine_name == wanted


@pytest.mark.pyreactor_only
async def test_unknown_engine_is_an_error(loop, authority, monkeypatch):
    monkeypatch.setenv("PYREACTOR_TLS", "rot13")
    near, far = tcp_pair()
    with near, far, pytest.raises(ValueError, match="PYREACTOR_TLS must be one of auto, openssl"):
        await loop.connect_accepted_socket(Recorder, near, ssl=authority.server())


@pytest.mark.pyreactor_only
async def test_callback_for_every_message_takes_the_stdlibs_way(loop, authority):
    context = authority.server()
    messages = []
    context._msg_callback = lambda *args: messages.append(args)
    async with connected(loop, authority, context=context) as (protocol, peer):
        assert protocol.transport._engine_name == "memorybio"
        await peer.write(b"x")
        await protocol.until_received(1)
    assert messages


# --- Connecting -----------------------------------------------------------------------------------


async def test_data_flows_both_ways(loop, authority, version):
    contexts = authority.server(only=version), authority.client(only=version)
    async with both_sides(loop, authority, contexts=contexts) as (near, far):
        near.transport.write(b"question")
        await far.until_received(8)
        far.transport.write(b"answer")
        await near.until_received(6)
        assert (bytes(near.received), bytes(far.received)) == (b"answer", b"question")
        assert near.transport.get_extra_info("ssl_object").version() == version.name.replace(
            "_", "."
        )


@pytest.mark.parametrize("side", ["client", "server"])
async def test_unix_sockets_have_tls(loop, authority, tmp_path, side):
    path = str(tmp_path / "socket")
    made = loop.create_future()

    def factory():
        protocol = EchoOnce()
        made.set_result(protocol)
        return protocol

    server = await loop.create_unix_server(factory, path, ssl=authority.server())
    transport, near = await loop.create_unix_connection(
        Recorder, path, ssl=authority.client(), server_hostname="localhost"
    )
    transport.write(b"echo")
    await near.until_received(4)
    (near if side == "client" else await made).transport.close()
    await near.until_event("connection_lost")
    far = await made
    await far.until_event("connection_lost")
    assert near.lost_with is far.lost_with is None
    server.close()


async def test_streams_have_tls(loop, authority):
    async def handle(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, HOST, 0, ssl=authority.server())
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(
        *address, ssl=authority.client(), server_hostname="localhost"
    )
    writer.write(b"a line\n")
    assert await reader.read() == b"a line\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
async def test_events_come_in_order_and_once(loop, authority, kind, server_side):
    async with connected(loop, authority, kind, server_side) as (protocol, peer):
        await peer.write(b"data")
        await protocol.until_received(4)
        await peer.send_raw(peer.say_end())
        await protocol.until_event("connection_lost")
        assert protocol.events == [
            "connection_made",
            "data_received",
            "eof_received",
            "connection_lost",
        ]
        assert protocol.lost_with is None
        assert await peer.read() == b""  # its close_notify


async def test_transport_is_an_asyncio_transport(loop, authority):
    async with both_sides(loop, authority) as (near, _far):
        transport = near.transport
        assert isinstance(transport, asyncio.Transport)
        assert transport._start_tls_compatible
        assert transport.get_protocol() is near
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        assert transport._ssl_protocol._sslcontext is transport.get_extra_info("sslcontext")
        assert not transport.is_closing()
        assert transport.is_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        transport.resume_reading()


async def test_extra_info_tells_of_tls_and_of_the_socket(loop, authority, version):
    contexts = authority.server(only=version), authority.client(only=version)
    async with both_sides(loop, authority, contexts=contexts) as (near, far):
        info = near.transport.get_extra_info
        assert info("sslcontext") is contexts[1]
        assert isinstance(info("ssl_object"), ssl.SSLObject)
        assert info("peercert")["subject"] == ((("commonName", "server"),),)
        assert info("cipher") == info("ssl_object").cipher()
        assert info("cipher")[0]
        assert info("compression") is None
        assert info("peername") == far.transport.get_extra_info("sockname")
        assert info("socket").fileno() >= 0
        assert info("no such key") is None
        assert info("no such key", 1) == 1
        assert far.transport.get_extra_info("peercert") is None


async def test_protocol_is_called_in_the_context_of_its_making(loop, authority):
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    class Aware(Recorder):
        def record(self, event):
            seen.append((event, variable.get()))
            super().record(event)

    variable.set("made here")
    async with connected(loop, authority, Aware) as (protocol, peer):
        variable.set("changed later")
        await peer.write(b"x")
        await protocol.until_received(1)
        await peer.send_raw(peer.say_end())
        await protocol.until_event("connection_lost")
    events = {event for event, _ in seen}
    assert {"connection_made", "data_received", "eof_received", "connection_lost"} <= events
    assert {value for _, value in seen} == {"made here"}


# --- The handshake --------------------------------------------------------------------------------


async def test_name_chooses_the_certificate(loop, authority):
    names = []
    other = authority.server("other")

    def choose(ssl_object, name, context):
        names.append(name)
        if name == "other.test":
            ssl_object.context = other

    context = authority.server()
    context.sni_callback = choose
    async with served(loop, context) as address:
        for name, subject in (("localhost", "server"), ("other.test", "other")):
            transport, protocol = await loop.create_connection(
                Recorder, *address, ssl=authority.client(), server_hostname=name
            )
            certificate = transport.get_extra_info("peercert")
            assert certificate["subject"] == ((("commonName", subject),),)
            transport.close()
            await protocol.until_event("connection_lost")
    assert names == ["localhost", "other.test"]


async def test_name_that_nobody_answers_for_is_refused(loop, authority):
    context = authority.server()
    context.sni_callback = lambda *args: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    async with served(loop, context) as address:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # asyncio sends no alert
            await loop.create_connection(
                Recorder, *address, ssl=authority.client(), server_hostname="localhost"
            )


async def test_certificate_of_another_name_is_refused(loop, authority, reported_errors):
    async with served(loop, authority.server()) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"Hostname mismatch"):
            await loop.create_connection(
                Recorder, *address, ssl=authority.client(), server_hostname="wrong.test"
            )
    assert reported_errors == []


async def test_certificate_of_an_unknown_authority_is_refused(loop, authority, reported_errors):
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    async with served(loop, authority.server()) as address:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer"):
            await loop.create_connection(
                factory, *address, ssl=ssl.create_default_context(), server_hostname="localhost"
            )
    assert reported_errors == []
    assert protocols[0].events == []


@pytest.mark.asyncio_differs("the alert is not sent")
async def test_alert_says_why_a_certificate_was_refused(loop, authority):
    near, far = tcp_pair()
    peer = Peer(loop, far, authority.server(), server_side=True)
    greeting = loop.create_task(peer.handshake())
    with pytest.raises(ssl.SSLCertVerificationError):
        await loop.create_connection(
            Recorder, sock=near, ssl=ssl.create_default_context(), server_hostname="localhost"
        )
    with far, pytest.raises(ssl.SSLError, match="unknown ca"):
        await greeting


async def test_client_shows_its_certificate(loop, authority, version):
    server_context = authority.server(only=version)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.file)
    client_context = authority.client(only=version)
    client_context.load_cert_chain(authority.folder / "visitor.pem")
    contexts = server_context, client_context
    async with both_sides(loop, authority, contexts=contexts) as (_near, far):
        certificate = far.transport.get_extra_info("peercert")
        assert certificate["subject"] == ((("commonName", "visitor"),),)


async def test_client_without_its_certificate_is_refused(loop, authority, version):
    server_context = authority.server(only=version)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(authority.file)
    client_context = authority.client(only=version)
    async with served(loop, server_context) as address:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            # TLS 1.3 lets the client believe, until it reads, that it was let in.
            _transport, protocol = await loop.create_connection(
                Recorder, *address, ssl=client_context, server_hostname="localhost"
            )
            assert version is ssl.TLSVersion.TLSv1_3
            await protocol.until_event("connection_lost")
            raise protocol.lost_with or ConnectionError


async def test_application_protocol_is_agreed_on(loop, authority):
    contexts = authority.server(), authority.client()
    contexts[0].set_alpn_protocols(["h2", "http/1.1"])
    contexts[1].set_alpn_protocols(["http/1.1"])
    async with both_sides(loop, authority, contexts=contexts) as (near, far):
        for protocol in (near, far):
            ssl_object = protocol.transport.get_extra_info("ssl_object")
            assert ssl_object.selected_alpn_protocol() == "http/1.1"


async def test_session_is_resumed(loop, authority, version):
    server_context = authority.server(only=version)
    client_context = authority.client(only=version)
    sessions = []

    class Client(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)

    async with served(loop, server_context, EchoOnce) as address:
        for _ in range(2):
            near, far_address = socket.create_connection(address), address
            near.setblocking(False)
            assert far_address
            transport, protocol = await loop.create_connection(
                Client, sock=near, ssl=client_context, server_hostname="localhost"
            )
            transport.write(b"x")
            await protocol.until_received(1)
            sessions.append(transport.get_extra_info("ssl_object").session)
            transport.close()
            await protocol.until_event("connection_lost")
    assert all(session is not None for session in sessions)
    assert all(session.has_ticket for session in sessions)


async def test_default_context_verifies(loop, authority):
    async with served(loop, authority.server()) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(Recorder, *address, ssl=True, server_hostname="localhost")


@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
async def test_garbage_is_no_handshake(loop, authority, server_side):
    near, far = tcp_pair()
    with far:
        await loop.sock_sendall(far, b"\x00" * 100)
        with pytest.raises(ssl.SSLError):
            if server_side:
                await loop.connect_accepted_socket(Recorder, near, ssl=authority.server())
            else:
                await loop.create_connection(
                    Recorder, sock=near, ssl=authority.client(), server_hostname="localhost"
                )


async def test_plain_http_at_a_tls_server(loop, authority, reported_errors):
    async with served(loop, authority.server()) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert reported_errors == []


async def test_end_instead_of_a_handshake(loop, authority):
    near, far = tcp_pair()
    far.close()
    with pytest.raises(ConnectionResetError):
        await loop.connect_accepted_socket(Recorder, near, ssl=authority.server())


async def test_reset_in_the_middle_of_a_handshake(loop, authority):
    near, far = tcp_pair()
    peer = Peer(loop, far, authority.client())
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    await peer.send_raw(peer.outgoing.read()[:50])
    opening = loop.create_task(loop.connect_accepted_socket(Recorder, near, ssl=authority.server()))
    for _ in range(5):
        await asyncio.sleep(0)
    peer.reset()
    with pytest.raises(ConnectionResetError):
        await opening


async def test_handshake_that_takes_too_long(loop, authority):
    near, far = tcp_pair()
    with far:
        with pytest.raises(
            ConnectionAbortedError,
            match=r"SSL handshake is taking longer than 0.01 seconds: aborting the connection",
        ):
            await loop.connect_accepted_socket(
                Recorder, near, ssl=authority.server(), ssl_handshake_timeout=0.01
            )
        assert await loop.sock_recv(far, 1) == b""


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
async def test_timeouts_are_positive(loop, authority, name):
    near, far = tcp_pair()
    with near, far, pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
        await loop.connect_accepted_socket(Recorder, near, ssl=authority.server(), **{name: 0})


async def test_cancelled_handshake_closes_the_connection(loop, authority):
    near, far = tcp_pair()
    opening = loop.create_task(loop.connect_accepted_socket(Recorder, near, ssl=authority.server()))
    for _ in range(5):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with far:
        assert await loop.sock_recv(far, 1) == b""


async def test_connection_made_that_raises_ends_the_connection(loop, authority, reported_errors):
    class Broken(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            raise ZeroDivisionError

    near, far = tcp_pair()
    peer = Peer(loop, far, authority.client())
    greeting = loop.create_task(peer.handshake())
    with pytest.raises(ZeroDivisionError):
        await loop.connect_accepted_socket(Broken, near, ssl=authority.server())
    with contextlib.suppress(ConnectionError, EOFError):
        await greeting
    far.close()
    assert [type(context["exception"]) for context in reported_errors] == [ZeroDivisionError]


# --- Data -----------------------------------------------------------------------------------------


def random_chunks(seed, total):
    """Chunks of all sizes that make `total` bytes, and the digest of them all."""
    numbers = random.Random(seed)
    chunks, digest = [], hashlib.sha256()
    while total:
        size = min(total, numbers.choice([1, 10, 1000, 16384, 16385, 70000, 300000]))
        chunk = numbers.randbytes(numbers.randint(1, size))
        chunks.append(chunk)
        digest.update(chunk)
        total -= len(chunk)
    return chunks, digest.digest()


class Sender(Recorder):
    """Sends chunks as the transport takes them."""

    def begin(self, chunks):
        self.chunks = iter(chunks)
        self.writing = True
        self.send()

    def send(self):
        while self.writing:
            chunk = next(self.chunks, None)
            if chunk is None:
                return
            self.transport.write(chunk)

    def pause_writing(self):
        super().pause_writing()
        self.writing = False

    def resume_writing(self):
        super().resume_writing()
        self.writing = True
        self.send()


class BufferedSender(Sender, BufferedRecorder):
    """As Sender, and a BufferedProtocol."""

    size = 40000


@pytest.mark.parametrize("kind", [Sender, BufferedSender])
@pytest.mark.parametrize("total", [1, 100 * KIB, 6 * MIB])
async def test_bytes_arrive_as_they_were_sent_both_ways(loop, authority, version, kind, total):
    contexts = authority.server(only=version), authority.client(only=version)
    async with both_sides(loop, authority, kind, kind, contexts) as (near, far):
        near_chunks, near_digest = random_chunks(1, total)
        far_chunks, far_digest = random_chunks(2, total)
        near.begin(near_chunks)
        far.begin(far_chunks)
        await near.until_received(total)
        await far.until_received(total)
        assert hashlib.sha256(far.received).digest() == near_digest
        assert hashlib.sha256(near.received).digest() == far_digest


async def test_reader_that_stops_and_goes_gets_everything(loop, authority):
    class Hesitant(Recorder):
        paused = 0

        def data_received(self, data):
            assert not self.paused % 2, "data came while reading was paused"
            super().data_received(data)
            self.paused += 1
            self.transport.pause_reading()
            loop.call_soon(self.go_on)

        def go_on(self):
            self.paused += 1
            self.transport.resume_reading()

    total = 3 * MIB
    async with both_sides(loop, authority, Sender, Hesitant) as (near, far):
        chunks, digest = random_chunks(3, total)
        near.begin(chunks)
        await far.until_received(total)
        assert hashlib.sha256(far.received).digest() == digest
        assert far.paused > 1


async def test_nothing_comes_after_pause_reading(loop, authority):
    class PausesAtOnce(BufferedRecorder):
        size = 100

        def buffer_updated(self, count):
            super().buffer_updated(count)
            self.transport.pause_reading()

    async with connected(loop, authority, PausesAtOnce) as (protocol, peer):
        await peer.write(bytes(1000))
        await protocol.until_received(100)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(protocol.received) == 100
        for expected in range(200, 1001, 100):
            protocol.transport.resume_reading()
            await protocol.until_received(expected)
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(protocol.received) == expected


async def test_end_waits_while_reading_is_paused(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.pause_reading()
        await peer.write(b"last words")
        await peer.send_raw(peer.say_end())
        for _ in range(10):
            await asyncio.sleep(0)
        assert protocol.events == ["connection_made"]
        protocol.transport.resume_reading()
        await protocol.until_event("connection_lost")
        assert bytes(protocol.received) == b"last words"
        assert protocol.lost_with is None


async def test_paused_reader_stops_the_sender(loop, authority):
    async with both_sides(loop, authority, Sender) as (near, far):
        far.transport.pause_reading()
        near.begin([bytes(64 * KIB)] * 1000)
        await near.until_event("pause_writing")
        assert near.transport.get_write_buffer_size() > near.transport.get_write_buffer_limits()[0]
        assert not far.received
        far.transport.resume_reading()
        await far.until_received(1000 * 64 * KIB)
        assert "resume_writing" in near.events


async def test_write_marks_are_kept(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        transport = protocol.transport
        assert transport.get_write_buffer_limits() == (128 * KIB, 512 * KIB)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=1000)
        assert transport.get_write_buffer_limits() == (1000, 4000)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=1, low=2)
        for _ in range(20):
            transport.write(bytes(MIB))
        assert protocol.events[-1] == "pause_writing"
        assert transport.get_write_buffer_size() > 4000
        await peer.read_exactly(20 * MIB)
        await protocol.until_event("resume_writing")


async def test_writes_of_every_kind(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        transport = protocol.transport
        changed = bytearray(b"c" * 100000)
        transport.write(b"a" * 3)
        transport.write(b"")
        transport.write(bytearray(b"b" * 5000))
        transport.write(changed)
        transport.write(memoryview(b"dddd")[1:])
        transport.writelines([b"f", b"", bytearray(b"g" * 20000), memoryview(b"h")])
        transport.writelines([])
        expected = b"".join((b"aaa", b"b" * 5000, b"c" * 100000, b"ddd", b"f", b"g" * 20000, b"h"))
        assert await peer.read_exactly(len(expected)) == expected
        for wrong in ("text", 1, None, [b"list"]):
            with pytest.raises(TypeError):
                transport.write(wrong)


@pytest.mark.asyncio_differs("BufferError, and the connection is lost")
async def test_write_of_a_buffer_in_pieces(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.write(memoryview(b"e.e.e.")[::2])
        protocol.transport.write(memoryview(bytes(range(200)) * 100)[::2])
        expected = b"eee" + bytes(range(0, 200, 2)) * 100
        assert await peer.read_exactly(len(expected)) == expected


@pytest.mark.asyncio_differs("a buffer is kept and may be sent as it is later")
async def test_buffer_may_be_changed_after_write(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        for size in (10, 10000, 100000):
            data = bytearray(b"x" * size)
            protocol.transport.write(data)
            data[:] = b"y" * size
            assert await peer.read_exactly(size) == b"x" * size


@pytest.mark.pyreactor_only
async def test_writes_of_one_callback_share_a_record(loop, authority):
    # Before TLS 1.3 nothing follows the handshake.
    context = authority.client(only=ssl.TLSVersion.TLSv1_2)
    async with connected(loop, authority, peer_context=context) as (protocol, peer):
        for part in (b"HTTP/1.1 200 OK\r\n", b"\r\n", b"body"):
            protocol.transport.write(part)
        data = await peer.receive_raw()
        record_type, _version, length = struct.unpack("!BHH", data[:5])
        assert record_type == APPLICATION_DATA
        assert length == len(data) - 5
        peer.incoming.write(data)
        assert peer.tls.read(100) == b"HTTP/1.1 200 OK\r\n\r\nbody"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
async def test_records_may_come_in_any_pieces(loop, authority, size):
    async with connected(loop, authority) as (protocol, peer):
        data = peer.encrypt(b"first") + peer.encrypt(bytes(300)) + peer.encrypt(b"last")
        for start in range(0, len(data), size):
            await peer.send_raw(data[start : start + size])
        await protocol.until_received(309)
        assert bytes(protocol.received) == b"first" + bytes(300) + b"last"


async def test_many_records_in_one_receive_are_one_call(loop, authority):
    calls = []

    class Counting(Recorder):
        def data_received(self, data):
            calls.append(len(data))
            super().data_received(data)

    async with connected(loop, authority, Counting) as (protocol, peer):
        await peer.send_raw(b"".join(peer.encrypt(b"x") for _ in range(100)))
        await protocol.until_received(100)
        assert calls == [100]


async def test_protocol_changes_between_two_records(loop, authority):
    class First(Recorder):
        def __init__(self):
            super().__init__()
            self.second = BufferedRecorder()

        def data_received(self, data):
            super().data_received(data)
            self.transport.set_protocol(self.second)

    async with connected(loop, authority, First) as (first, peer):
        await peer.write(b"one")
        await first.until_received(3)
        assert first.transport.get_protocol() is first.second
        await peer.write(b"two")
        await first.second.until_received(3)
        first.transport.set_protocol(first)
        await peer.write(b"three")
        await first.until_received(8)
        first.transport.set_protocol(first)
        assert bytes(first.received) == b"onethree"
        assert bytes(first.second.received) == b"two"


async def test_key_update_is_answered(loop, authority):
    # Nobody can ask the stdlib for one, so that the openssl program does.
    async with served(loop, authority.server(only=ssl.TLSVersion.TLSv1_3), EchoOnce) as address:
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", "-tls1_3"),
            *("-CAfile", str(authority.file), "-servername", "localhost", "-quiet"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdin.write(b"before\n")
        assert await process.stdout.readline() == b"before\n"
        process.stdin.write(b"K\n")  # a key update, and the other side shall update, too
        await process.stdin.drain()
        process.stdin.write(b"after\n")
        lines = [await process.stdout.readline() for _ in range(1)]
        while lines[-1] != b"after\n":
            lines.append(await process.stdout.readline())
        process.kill()
        await process.communicate()


async def test_error_in_data_received_ends_the_connection(loop, authority, reported_errors):
    class Broken(Recorder):
        def data_received(self, data):
            raise ZeroDivisionError

    async with connected(loop, authority, Broken) as (protocol, peer):
        await peer.write(b"x")
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ZeroDivisionError)
    (context,) = reported_errors
    assert context["message"] == "Fatal error on SSL protocol"
    assert isinstance(context["exception"], ZeroDivisionError)


async def test_error_in_eof_received_is_reported(loop, authority, reported_errors):
    class Broken(Recorder):
        def eof_received(self):
            raise ZeroDivisionError

    async with connected(loop, authority, Broken) as (protocol, peer):
        await peer.send_raw(peer.say_end())
        await protocol.until_event("connection_lost")
    assert [context["message"] for context in reported_errors] == ["Error calling eof_received()"]


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_error_in_flow_control_is_reported(loop, authority, reported_errors, method):
    def fail(self):
        Recorder.record(self, method)
        raise ZeroDivisionError

    kind = type("Broken", (Recorder,), {method: fail})
    async with connected(loop, authority, kind) as (protocol, peer):
        for _ in range(20):
            protocol.transport.write(bytes(MIB))
        await peer.read_exactly(20 * MIB)
        await protocol.until_event(method)
        protocol.transport.write(b"goes on")
        assert await peer.read_exactly(7) == b"goes on"
    messages = {context["message"] for context in reported_errors}
    assert messages == {f"protocol.{method}() failed"}


@pytest.mark.asyncio_differs("loses what came with it and was whole")
async def test_damaged_record_ends_the_connection(loop, authority, reported_errors):
    async with connected(loop, authority) as (protocol, peer):
        good = peer.encrypt(b"good")
        damaged = bytearray(peer.encrypt(b"damaged"))
        damaged[-1] ^= 1
        await peer.send_raw(good + damaged)
        await protocol.until_event("connection_lost")
        assert bytes(protocol.received) == b"good"
        assert isinstance(protocol.lost_with, ssl.SSLError)
        assert protocol.lost_with.reason in (
            "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
            "RECORD_LAYER_FAILURE",  # as OpenSSL 3.5 has it
        )
        assert protocol.lost_with.library == "SSL"
    assert reported_errors == []


async def test_alert_ends_the_connection(loop, authority):
    # What a TLS 1.3 client sends that finds no use for the server's certificate.
    near, far = tcp_pair()
    client = authority.client(only=ssl.TLSVersion.TLSv1_2)
    peer = Peer(loop, far, client)
    greeting = loop.create_task(peer.handshake())
    _transport, protocol = await loop.connect_accepted_socket(
        Recorder, near, ssl=authority.server()
    )
    await greeting
    # Nobody can make the stdlib send an alert; nonsense makes it answer with one.
    peer.incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        peer.tls.read(1)
    await peer.send_raw(peer.outgoing.read())
    await protocol.until_event("connection_lost")
    far.close()
    assert isinstance(protocol.lost_with, ssl.SSLError)
    assert "ALERT" in protocol.lost_with.reason


# --- The end --------------------------------------------------------------------------------------


async def test_close_sends_what_is_written_and_says_its_end(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        data = random.Random(4).randbytes(4 * MIB)
        protocol.transport.write(data)
        protocol.transport.close()
        assert protocol.transport.is_closing()
        protocol.transport.close()
        received = bytearray()
        while len(received) < len(data):
            received += await peer.read()
        assert received == data
        assert await peer.read() == b""  # close_notify, not only the end of the connection
        await peer.send_raw(peer.say_end())
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
        assert "data_received" not in protocol.events


async def test_close_on_both_sides_with_data_on_its_way(loop, authority):
    async with both_sides(loop, authority) as (near, far):
        near.transport.write(b"x" * 100000)
        far.transport.write(b"y" * 100000)
        near.transport.close()
        far.transport.close()
        await near.until_event("connection_lost")
        await far.until_event("connection_lost")


async def test_eof_received_cannot_keep_the_connection(loop, authority, caplog):
    class HalfOpen(Recorder):
        def eof_received(self):
            super().eof_received()
            return True

    with caplog.at_level(logging.WARNING, "asyncio"):
        async with connected(loop, authority, HalfOpen) as (protocol, peer):
            await peer.send_raw(peer.say_end())
            await protocol.until_event("connection_lost")
            assert protocol.lost_with is None
    assert "returning true from eof_received() has no effect when using ssl" in caplog.text


async def test_what_eof_received_writes_is_sent(loop, authority):
    class LastWords(Recorder):
        def eof_received(self):
            super().eof_received()
            self.transport.write(b"last words")

    async with connected(loop, authority, LastWords) as (protocol, peer):
        await peer.send_raw(peer.say_end())
        data = await peer.receive_raw()
        assert data[0] == APPLICATION_DATA
        await protocol.until_event("connection_lost")


async def test_stream_that_is_cut_ends_as_one_that_is_closed(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        await peer.write(b"data")
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.until_event("connection_lost")
        assert protocol.events == [
            "connection_made",
            "data_received",
            "eof_received",
            "connection_lost",
        ]
        assert protocol.lost_with is None


@pytest.mark.parametrize("paused", [False, True])
async def test_a_peer_that_says_no_end_is_told_none(loop, authority, paused):
    async with connected(loop, authority) as (protocol, peer):
        if paused:
            protocol.transport.pause_reading()
        await peer.write(b"data")
        peer.sock.shutdown(socket.SHUT_WR)
        if paused:
            await asyncio.sleep(0)
            protocol.transport.resume_reading()
        with pytest.raises(EOFError):
            await peer.read()
        await protocol.until_event("connection_lost")
        assert bytes(protocol.received) == b"data"


async def test_a_peer_that_says_its_end_is_told_ours(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        await peer.do(peer.tls.unwrap)
        await protocol.until_event("connection_lost")


async def test_stream_that_is_cut_in_a_record(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        await peer.send_raw(peer.encrypt(b"whole") + peer.encrypt(b"cut")[:-1])
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.until_event("connection_lost")
        assert bytes(protocol.received) == b"whole"


async def test_reset_in_a_record(loop, authority, reported_errors):
    async with connected(loop, authority) as (protocol, peer):
        await peer.send_raw(peer.encrypt(b"whole"))
        await protocol.until_received(5)
        await peer.send_raw(peer.encrypt(b"cut")[:-1])
        await asyncio.sleep(0)
        peer.reset()
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, ConnectionResetError)
        assert bytes(protocol.received) == b"whole"
    assert reported_errors == []


async def test_reset_while_writing(loop, authority, reported_errors):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.write(bytes(20 * MIB))
        peer.reset()
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, (ConnectionResetError, BrokenPipeError))
    assert reported_errors == []


async def test_abort_ends_at_once(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.write(bytes(20 * MIB))
        protocol.transport.abort()
        assert protocol.transport.is_closing()
        for _ in range(5):
            await asyncio.sleep(0)
        assert protocol.events[-1] == "connection_lost"
        assert protocol.lost_with is None
        with pytest.raises((EOFError, ConnectionError)):
            await peer.read_exactly(20 * MIB)


async def test_abort_in_connection_made(loop, authority):
    class Aborts(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.abort()

    near, far = tcp_pair()
    peer = Peer(loop, far, authority.client())
    greeting = loop.create_task(peer.handshake())
    _transport, protocol = await loop.connect_accepted_socket(Aborts, near, ssl=authority.server())
    await protocol.until_event("connection_lost")
    with contextlib.suppress(EOFError, ConnectionError):
        await greeting
    far.close()
    assert protocol.events == ["connection_made", "connection_lost"]


async def test_abort_in_data_received(loop, authority):
    class Aborts(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.abort()

    async with connected(loop, authority, Aborts) as (protocol, peer):
        await peer.send_raw(peer.encrypt(b"one"))
        await protocol.until_event("connection_lost")
        assert protocol.events == ["connection_made", "data_received", "connection_lost"]


async def test_abort_after_close(loop, authority):
    async with connected(loop, authority) as (protocol, _peer):
        protocol.transport.close()
        await asyncio.sleep(0)
        assert "connection_lost" not in protocol.events
        protocol.transport.abort()
        protocol.transport.abort()
        await protocol.until_event("connection_lost")
        protocol.transport.abort()
        assert protocol.lost_with is None


async def test_peer_that_does_not_answer_the_end(loop, authority):
    options = {"ssl_shutdown_timeout": 0.01}
    async with connected(loop, authority, **options) as (protocol, _peer):
        protocol.transport.close()
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, TimeoutError)
        assert str(protocol.lost_with) == "SSL shutdown timed out"


@pytest.mark.asyncio_differs("waits for ever before 3.14.10", when=sys.version_info < (3, 14, 10))
async def test_peer_that_does_not_read(loop, authority):
    options = {"ssl_shutdown_timeout": 0.01}
    async with connected(loop, authority, **options) as (protocol, _peer):
        protocol.transport.write(bytes(20 * MIB))
        protocol.transport.close()
        await protocol.until_event("connection_lost")
        assert isinstance(protocol.lost_with, TimeoutError)


@pytest.mark.asyncio_differs("ends with an error at the first byte after close()")
async def test_closed_connection_does_not_go_on_downloading(loop, authority):
    async with connected(loop, authority) as (protocol, peer):

        async def upload():
            sent = 0
            with contextlib.suppress(ConnectionError):
                while True:
                    await peer.send_raw(peer.encrypt(bytes(64 * KIB)))
                    sent += 64 * KIB
            return sent

        uploading = loop.create_task(upload())
        await protocol.until_received(64 * KIB)
        protocol.transport.close()
        await protocol.until_event("connection_lost")
        assert protocol.lost_with is None
        await uploading


@pytest.mark.asyncio_differs("ends with an error, and without close_notify")
async def test_data_that_is_not_wanted_does_not_hinder_the_end(loop, authority):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.pause_reading()
        await peer.write(b"not read")
        for _ in range(5):
            await asyncio.sleep(0)
        protocol.transport.close()
        assert await peer.read() == b""
        await peer.send_raw(peer.say_end())
        await protocol.until_event("connection_lost")
        assert "data_received" not in protocol.events or protocol.received == b"not read"


async def test_writes_after_the_end_are_dropped(loop, authority, caplog):
    async with connected(loop, authority) as (protocol, peer):
        protocol.transport.close()
        for _ in range(10):
            protocol.transport.write(b"dropped")
        protocol.transport.writelines([b"dropped"])
        assert await peer.read() == b""
    assert "SSL connection is closed" in caplog.text


async def test_information_stays_after_the_end(loop, authority):
    async with connected(loop, authority, server_side=False) as (protocol, _peer):
        transport = protocol.transport
        cipher = transport.get_extra_info("cipher")
        transport.abort()
        await protocol.until_event("connection_lost")
        assert transport.get_extra_info("cipher") == cipher
        assert transport.get_extra_info("sslcontext") is not None
        assert transport.get_extra_info("ssl_object").version()
        assert repr(transport)


async def test_server_waits_for_its_tls_connections(loop, authority):
    server = await loop.create_server(Recorder, HOST, 0, ssl=authority.server())
    address = server.sockets[0].getsockname()
    transport, protocol = await loop.create_connection(
        Recorder, *address, ssl=authority.client(), server_hostname="localhost"
    )
    server.close()
    transport.close()
    await protocol.until_event("connection_lost")
    await server.wait_closed()


@pytest.mark.asyncio_differs("such a connection is lost")
async def test_server_closes_between_accepting_and_the_handshake(loop, authority):
    def close_first(loop, coro, **options):
        server.close()
        return asyncio.Task(coro, loop=loop, **options)

    server = await loop.create_server(Recorder, HOST, 0, ssl=authority.server())
    address = server.sockets[0].getsockname()
    with socket.create_connection(address) as sock:
        loop.set_task_factory(close_first)
        while server.is_serving():
            await asyncio.sleep(0)
        loop.set_task_factory(None)
        await server.wait_closed()
        sock.setblocking(False)
        transport, protocol = await loop.create_connection(
            Recorder, sock=sock, ssl=authority.client(), server_hostname="localhost"
        )
        transport.close()
        await protocol.until_event("connection_lost")
        while server._clients:
            await asyncio.sleep(0)


@pytest.mark.pyreactor_only
async def test_methods_belong_to_the_loops_thread(loop, authority):
    async with connected(loop, authority) as (protocol, _peer):
        transport = protocol.transport
        for method in (
            lambda: transport.write(b"x"),
            lambda: transport.writelines([b"x"]),
            transport.close,
            transport.abort,
            transport.pause_reading,
            transport.resume_reading,
            transport.get_write_buffer_size,
        ):
            with pytest.raises(RuntimeError, match="thread"):
                await asyncio.to_thread(method)


# --- Upgrading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("server_side", [True, False], ids=["server", "client"])
async def test_start_tls_upgrades_a_connection(loop, authority, kind, server_side):
    near, far = tcp_pair()
    plain, protocol = await loop.connect_accepted_socket(kind, near)
    await loop.sock_sendall(far, b"plain")
    await protocol.until_received(5)
    contexts = authority.server(), authority.client()
    ours, theirs = contexts if server_side else contexts[::-1]
    peer = Peer(loop, far, theirs, server_side=not server_side)
    greeting = loop.create_task(peer.handshake())
    transport = await loop.start_tls(
        plain,
        protocol,
        ours,
        server_side=server_side,
        server_hostname=None if server_side else "localhost",
    )
    await greeting
    assert transport is not plain
    assert isinstance(transport, asyncio.Transport)
    assert transport.get_extra_info("ssl_object") is not None
    transport.write(b"secret")
    assert await peer.read_exactly(6) == b"secret"
    await peer.write(b"answer")
    await protocol.until_received(11)
    transport.close()
    assert await peer.read() == b""
    await peer.send_raw(peer.say_end())
    await protocol.until_event("connection_lost")
    far.close()
    events = [event for event in protocol.events if event != "eof_received"]  # asyncio has it
    assert events == ["connection_made", "data_received", "connection_lost"]


async def test_start_tls_that_fails_ends_the_connection(loop, authority):
    near, far = tcp_pair()
    plain, protocol = await loop.connect_accepted_socket(Recorder, near)
    await loop.sock_sendall(far, b"no TLS at all")
    with pytest.raises(ssl.SSLError):
        await loop.start_tls(plain, protocol, authority.server(), server_side=True)
    await protocol.until_event("connection_lost")
    assert protocol.events.count("connection_lost") == 1
    far.close()


async def test_start_tls_on_a_connection_that_the_program_has_closed_is_none(loop, authority):
    near, far = tcp_pair()
    plain, protocol = await loop.connect_accepted_socket(Recorder, near)
    plain.close()
    upgrading = loop.start_tls(plain, protocol, authority.client(), server_hostname="localhost")
    assert await upgrading is None
    far.close()


async def test_start_tls_checks_its_arguments(loop, authority):
    near, far = tcp_pair()
    plain, protocol = await loop.connect_accepted_socket(Recorder, near)
    with pytest.raises(TypeError, match="sslcontext is expected to be an instance of ssl"):
        await loop.start_tls(plain, protocol, None)
    with pytest.raises(TypeError, match="is not supported by start_tls"):
        await loop.start_tls(object(), protocol, authority.client())
    plain.close()
    await protocol.until_event("connection_lost")
    far.close()


async def test_start_tls_is_bounded(loop, authority):
    near, far = tcp_pair()
    plain, protocol = await loop.connect_accepted_socket(Recorder, near)
    with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer than 0.01"):
        await loop.start_tls(
            plain, protocol, authority.server(), server_side=True, ssl_handshake_timeout=0.01
        )
    far.close()


async def test_streams_upgrade(loop, authority):
    done = loop.create_future()

    async def handle(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go ahead\n")
        await writer.start_tls(authority.server())
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        done.set_result(None)

    server = await asyncio.start_server(handle, HOST, 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(authority.client(), server_hostname="localhost")
    assert writer.get_extra_info("cipher")
    writer.write(b"secret\n")
    assert await reader.read() == b"secret\n"
    writer.close()
    await writer.wait_closed()
    await done
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio_differs("loses it before 3.14.10", when=sys.version_info < (3, 14, 10))
async def test_what_a_stream_has_received_already_is_the_handshake(loop, authority):
    done = loop.create_future()

    async def handle(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        while len(reader._buffer) < 100:  # the peer did not wait to be asked
            await asyncio.sleep(0)
        await writer.start_tls(authority.server())
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        done.set_result(None)

    server = await asyncio.start_server(handle, HOST, 0)
    sock = socket.create_connection(server.sockets[0].getsockname())
    peer = Peer(loop, sock, authority.client())
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    await peer.send_raw(b"STARTTLS\n" + peer.outgoing.read())
    await peer.handshake()
    await peer.write(b"secret\n")
    assert await peer.read() == b"secret\n"
    assert await peer.read() == b""
    await peer.send_raw(peer.say_end())
    await done
    sock.close()
    server.close()


@pytest.mark.asyncio_differs("a client's reader keeps it, and gives it out as if it were secret")
async def test_plain_text_cannot_be_slipped_in_before_a_clients_handshake(loop, authority):
    near, far = tcp_pair()
    reader, writer = await asyncio.open_connection(sock=near)
    await loop.sock_sendall(far, b"go ahead\nand this is from somebody else\n")
    assert await reader.readline() == b"go ahead\n"
    with pytest.raises(ssl.SSLError):
        await writer.start_tls(authority.client(), server_hostname="localhost")
    far.close()


async def test_tls_inside_tls(loop, authority):
    async with both_sides(loop, authority) as (near, far):
        contexts = authority.server(), authority.client()
        outer, inner = near.transport, far.transport
        inner_near, inner_far = await asyncio.gather(
            loop.start_tls(outer, near, contexts[1], server_hostname="localhost"),
            loop.start_tls(inner, far, contexts[0], server_side=True),
        )
        data = random.Random(5).randbytes(3 * MIB)
        inner_near.write(data)
        await far.until_received(len(data))
        inner_far.write(data[::-1])
        await near.until_received(len(data))
        assert bytes(far.received) == data
        assert bytes(near.received) == data[::-1]
        assert inner_near.get_extra_info("ssl_object") is not outer.get_extra_info("ssl_object")
        assert inner_near.get_extra_info("peername") == outer.get_extra_info("peername")
        inner_near.close()
        await near.until_event("connection_lost")
        await far.until_event("connection_lost")
        assert near.lost_with is far.lost_with is None


async def test_sendfile_falls_back_to_reading(loop, authority, tmp_path):
    path = tmp_path / "file"
    data = random.Random(6).randbytes(MIB)
    path.write_bytes(data)
    async with connected(loop, authority) as (protocol, peer):
        with path.open("rb") as file:
            with pytest.raises(RuntimeError, match="fallback is disabled"):
                await loop.sendfile(protocol.transport, file, fallback=False)
            sending = loop.create_task(loop.sendfile(protocol.transport, file, 10))
            assert await peer.read_exactly(len(data) - 10) == data[10:]
            assert await sending == len(data) - 10
        assert protocol.transport.get_protocol() is protocol
        await peer.write(b"still here")
        await protocol.until_received(10)


# --- What is left ---------------------------------------------------------------------------------


async def test_thousand_connections_leave_nothing(loop, authority):
    client_context = authority.client()
    ssl_objects = weakref.WeakSet()

    def resident_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async with served(loop, authority.server(), EchoOnce) as address:

        async def visit(ends_well):
            transport, protocol = await loop.create_connection(
                Recorder, *address, ssl=client_context, server_hostname="localhost"
            )
            ssl_objects.add(transport.get_extra_info("ssl_object"))
            transport.write(b"x" * 1000)
            await protocol.until_received(1000)
            if ends_well:
                transport.close()
            else:
                transport.abort()
            await protocol.until_event("connection_lost")

        async def visit_many(count):
            for number in range(count):
                await asyncio.gather(*(visit(number % 2) for _ in range(10)))
            gc.collect()

        await visit_many(20)
        before = resident_bytes()
        await visit_many(100)
        grown = resident_bytes() - before
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert len(ssl_objects) <= 1  # the last one may be in this frame
    assert grown < 8 * MIB, f"{grown / 1000:.0f} bytes for each connection"


async def test_connection_that_is_closed_needs_no_collector(loop, authority):
    gc.disable()
    try:
        async with both_sides(loop, authority) as (near, far):
            transports = [weakref.ref(near.transport), weakref.ref(far.transport)]
            near.transport.close()
            await near.until_event("connection_lost")
            await far.until_event("connection_lost")
            near.transport = far.transport = near = far = None
            await asyncio.sleep(0)
    except AttributeError:
        pass  # both_sides() finds nothing to abort
    finally:
        gc.enable()
    if isinstance(loop, pyreactor.Loop):
        assert [transport() for transport in transports] == [None, None]


@pytest.mark.parametrize("how", ["create_connection", "start_tls"])
async def test_connection_whose_certificate_fails_needs_no_collector(loop, authority, how):
    if how == "create_connection" and sys.version_info < (3, 14, 10):
        pytest.skip("the frame of asyncio's create_connection(), which ours calls, held it then")

    async def connect(address):
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        left = weakref.ref(sock)
        tls = {"ssl": authority.client(), "server_hostname": "other"}
        with contextlib.suppress(ssl.SSLCertVerificationError):
            if how == "create_connection":
                await loop.create_connection(asyncio.Protocol, sock=sock, **tls)
            else:
                pair = await loop.create_connection(asyncio.Protocol, sock=sock)
                await loop.start_tls(*pair, tls["ssl"], server_hostname="other")
            raise AssertionError("the certificate is for another host")
        return left

    async with served(loop, authority.server()) as address:
        gc.collect()
        gc.disable()
        try:
            left = await connect(address)
            await asyncio.sleep(0)
        finally:
            gc.enable()
    if isinstance(loop, pyreactor.Loop):
        assert left() is None


def test_loop_that_is_closed_early_leaves_nothing(new_loop, authority):
    near, far = tcp_pair()

    async def main():
        loop = asyncio.get_running_loop()
        peer = Peer(loop, far, authority.client())
        greeting = loop.create_task(peer.handshake())
        transport, _protocol = await loop.connect_accepted_socket(
            Recorder, near, ssl=authority.server()
        )
        await greeting
        transport.write(b"unsent")
        return weakref.ref(transport)

    loop = new_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        transport = loop.run_until_complete(main())
        loop.close()
        far.close()
        gc.collect()
    if isinstance(loop, pyreactor.Loop):
        assert transport() is None
