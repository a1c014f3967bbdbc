"""What the soak test does: servers, and clients that come and go in every way asyncio knows."""

import asyncio
import contextlib
import json
import os
import random
import socket
import ssl
import struct
import subprocess
import zlib

import pattern
from exchange import ENDS_WHOLE, HEADER, Exchange, Plan, make_end

STREAM_BYTES_MAX = 600_000
DATAGRAM_HEAD = struct.Struct("<QII")
DATAGRAM_BYTES_MAX = 8000
DATAGRAMS = 30
CLOSES_BY_TURN = [Plan.CLEAN] * 5 + [Plan.HALF_CLOSE] * 3 + list(Plan)


def make_certificate(folder):
    """A key and a certificate for localhost in one file; None where there is no openssl."""
    path = os.path.join(folder, "localhost.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-days", "2", "-keyout", path, "-out", path + ".crt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        return None
    with open(path + ".crt") as certificate, open(path, "a") as both:
        both.write(certificate.read())
    return path


class Datagrams(asyncio.DatagramProtocol):
    """Counts and checks what comes; as a server, sends it back."""

    def __init__(self, soak, echoes):
        self.soak, self.echoes = soak, echoes
        self.seen = set()
        self.lost = soak.loop.create_future()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        assert not self.lost.done(), "a datagram after connection_lost()"
        key, number, crc = DATAGRAM_HEAD.unpack_from(data)
        body = data[DATAGRAM_HEAD.size :]
        if zlib.crc32(body) != crc:
            self.soak.fail(f"datagram {number} of {key:#x} has a wrong checksum")
        if body:
            pattern.check(key, 0, body)
        self.soak.counts["datagrams checked"] += 1
        self.soak.counts["bytes checked"] += len(data)
        if self.echoes:
            self.transport.sendto(data, address)
            return
        if key != self.key:
            # Fine if it is an answer to somebody who has had our address before.
            if self.soak.datagram_addresses.get(key) != self.soak.datagram_addresses[self.key]:
                self.soak.fail(f"a datagram of {key:#x} came to {self.key:#x}")
            return
        if number in self.seen or number >= DATAGRAMS:
            self.soak.fail(f"datagram {number} of {key:#x} came twice, or was never sent")
        self.seen.add(number)

    def error_received(self, exc):
        if self.echoes and isinstance(exc, (ConnectionRefusedError, FileNotFoundError)):
            self.soak.counts["datagram answers nobody waited for"] += 1
        elif not self.soak.is_explained(exc):
            self.soak.fail(f"error_received({exc!r})")

    def connection_lost(self, exc):
        self.lost.set_result(None)
        if exc is not None and not self.soak.is_explained(exc):
            self.soak.fail(f"datagram endpoint: connection_lost({exc!r})")


class Servers:
    """The listening side."""

    def __init__(self, soak, folder):
        self.soak, self.folder = soak, folder
        self.servers, self.handlers = [], set()
        self.datagrams = []
        self.addresses = {}
        if soak.options.role == "client":
            with open(os.path.join(folder, "addresses.json")) as file:
                told = json.load(file)
            self.addresses = {
                name: tuple(address) if isinstance(address, list) else address
                for name, address in told["addresses"].items()
            }
            self.certificate = told["certificate"]
        else:
            self.certificate = make_certificate(folder)

    async def start(self):
        loop = self.soak.loop

        def server_end():
            return make_end(self.soak, None, is_client=False)

        many = {"backlog": 1000}
        local = ("127.0.0.1", 0)
        self.add("tcp", await loop.create_server(server_end, *local, **many))
        path = os.path.join(self.folder, "stream")
        self.add("unix", await loop.create_unix_server(server_end, path, **many))
        self.add("streams", await asyncio.start_server(self.handle, *local, **many))
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self.context = context
            self.add("tls", await loop.create_server(server_end, *local, ssl=context, **many))
            self.add("starttls", await asyncio.start_server(self.upgrade, *local, **many))
        for name, arguments in {
            "udp": {"local_addr": ("127.0.0.1", 0)},
            "udp unix": {
                "local_addr": os.path.join(self.folder, "datagrams"),
                "family": socket.AF_UNIX,
            },
        }.items():
            transport, protocol = await loop.create_datagram_endpoint(
                lambda: Datagrams(self.soak, echoes=True), **arguments
            )
            self.addresses[name] = transport.get_extra_info("sockname")
            self.datagrams.append((transport, protocol))

    def tell(self):
        """Let the clients of another process know where we are."""
        with open(os.path.join(self.folder, "addresses.json"), "w") as file:
            json.dump({"addresses": self.addresses, "certificate": self.certificate}, file)

    def add(self, name, server):
        self.servers.append(server)
        self.addresses[name] = server.sockets[0].getsockname()

    async def stop(self):
        for transport, protocol in self.datagrams:
            transport.close()
            await asyncio.shield(protocol.lost)
        for server in self.servers:
            server.close()
        if self.handlers:
            await asyncio.wait(self.handlers)
        for server in self.servers:
            await server.wait_closed()

    async def handle(self, reader, writer):
        task = asyncio.current_task()
        self.handlers.add(task)
        task.add_done_callback(self.handlers.discard)
        await self.soak.guard(serve_streams(self.soak, reader, writer, None))

    async def upgrade(self, reader, writer):
        task = asyncio.current_task()
        self.handlers.add(task)
        task.add_done_callback(self.handlers.discard)
        await self.soak.guard(serve_streams(self.soak, reader, writer, self.context))


async def serve_streams(soak, reader, writer, context):
    """The server's end of an exchange, with asyncio's streams."""
    inode = os.fstat(writer.get_extra_info("socket").fileno()).st_ino
    exchange = None
    try:
        header = await reader.readexactly(HEADER.size)
        exchange = soak.attach(None, HEADER.unpack(header))
        exchange.inodes.add(inode)
        if context:
            writer.write(b"ready")
            await writer.drain()
            await writer.start_tls(context)
        await talk(soak, exchange, reader, writer, is_client=False)
    except (asyncio.IncompleteReadError, OSError) as exc:
        if exchange is None:
            soak.lost_early(inode)
        elif exchange.plan in ENDS_WHOLE:
            soak.blame_exchange(exchange, f"server's stream: {exc!r}")
    finally:
        await end_stream(soak, writer)


async def end_stream(soak, writer):
    writer.close()
    try:
        await writer.wait_closed()
    except OSError as exc:
        soak.counts[f"wait_closed() raised {type(exc).__name__}"] += 1


async def talk(soak, exchange, reader, writer, is_client):
    """Send one direction and check the other, through a StreamReader and a StreamWriter."""
    send_key, receive_key = exchange.key * 2 + (not is_client), exchange.key * 2 + is_client
    to_send, to_receive = exchange.up, exchange.down
    if not is_client:
        to_send, to_receive = to_receive, to_send
    rng = random.Random(exchange.key)

    async def send():
        sent = 0
        while sent < to_send:
            size = min(rng.randint(1, 80_000), to_send - sent)
            writer.write(pattern.make(send_key, sent, size))
            sent += size
            await writer.drain()
        if exchange.plan == Plan.HALF_CLOSE and is_client and writer.can_write_eof():
            writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        received = 0
        while received < to_receive:
            size = min(rng.randint(1, 80_000), to_receive - received)
            exact = rng.random() < 0.3
            data = await (reader.readexactly(size) if exact else reader.read(size))
            if not data:
                raise asyncio.IncompleteReadError(b"", to_receive - received)
            pattern.check(receive_key, received, data)
            received += len(data)
            soak.counts["bytes checked"] += len(data)
        await sending
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled() and sending.exception() is not None:
            soak.note(sending.exception())


class Clients:
    """Each method is one thing a client may do; which, is drawn by the soak."""

    def __init__(self, soak, addresses, certificate, folder):
        self.soak, self.addresses, self.folder = soak, addresses, folder
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.load_verify_locations(certificate)
        self.names = 0

    def kinds(self):
        """The things to do, with how often."""
        kinds = {
            self.tcp: 8,
            self.unix: 5,
            self.streams: 4,
            self.cancelled_connect: 4,
            self.sock_methods: 4,
            self.cancelled_sock_methods: 3,
            self.sendfile: 3,
            self.udp: 4,
            self.pipe: 3,
            self.subprocess: 1,
            self.threads: 2,
            self.timers: 1,
        }
        if self.context:
            kinds |= {self.tls: 6, self.starttls: 3}
        only = self.soak.options.only
        return {kind: often for kind, often in kinds.items() if not only or kind.__name__ in only}

    def exchange(self, key, rng, plans=CLOSES_BY_TURN):
        plan = rng.choice(plans)
        up, down = (self.size(rng) for _ in range(2))
        strike = 0 if plan in ENDS_WHOLE else rng.randint(0, up + down)
        return self.soak.begin(Exchange(key, up, down, plan, strike))

    @staticmethod
    def size(rng):
        return int(STREAM_BYTES_MAX * rng.random() ** 4)

    async def connect(self, factory, kind):
        loop, address = self.soak.loop, self.addresses[kind]
        if kind == "unix":
            return await loop.create_unix_connection(factory, address)
        tls = {"ssl": self.context, "server_hostname": "localhost"} if kind == "tls" else {}
        return await loop.create_connection(factory, *address, **tls)

    async def converse(self, exchange, kind):
        end = make_end(self.soak, exchange, is_client=True)
        await self.connect(lambda: end, kind)
        await asyncio.shield(end.done)
        await self.soak.finish(exchange)

    async def tcp(self, key, rng):
        await self.converse(self.exchange(key, rng), "tcp")

    async def unix(self, key, rng):
        plans = [plan for plan in CLOSES_BY_TURN if plan != Plan.CLIENT_RESETS]
        await self.converse(self.exchange(key, rng, plans), "unix")

    async def tls(self, key, rng):
        plans = [plan for plan in CLOSES_BY_TURN if plan != Plan.HALF_CLOSE]
        await self.converse(self.exchange(key, rng, plans), "tls")

    async def cancelled_connect(self, key, rng):
        kind = rng.choice(["tcp", "unix", "tls"] if self.context else ["tcp", "unix"])
        exchange = self.exchange(key, rng, [Plan.CLIENT_CLOSES])
        end = make_end(self.soak, exchange, is_client=True)
        task = asyncio.create_task(self.connect(lambda: end, kind))
        for _ in range(rng.randint(0, 6)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.003)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            self.soak.counts["connects cancelled"] += 1
        else:
            task.result()
        if end.transport is not None:
            if not end.done.done() and not end.transport.is_closing():
                end.transport.abort()
            await asyncio.shield(end.done)

    async def streams(self, key, rng, kind="streams"):
        exchange = self.exchange(key, rng, [Plan.CLEAN])
        host, port = self.addresses[kind]
        reader, writer = await asyncio.open_connection(host, port, limit=rng.choice([1000, 65536]))
        try:
            exchange.inodes.add(os.fstat(writer.get_extra_info("socket").fileno()).st_ino)
            writer.write(exchange.header())
            if kind == "starttls":
                await reader.readexactly(len(b"ready"))
                await writer.start_tls(self.context, server_hostname="localhost")
            await talk(self.soak, exchange, reader, writer, is_client=True)
        except (asyncio.IncompleteReadError, OSError) as exc:
            self.soak.blame_exchange(exchange, f"client's stream: {exc!r}")
        finally:
            await end_stream(self.soak, writer)
        await self.soak.finish(exchange)

    async def starttls(self, key, rng):
        await self.streams(key, rng, "starttls")

    async def sock_methods(self, key, rng):
        loop, soak = self.soak.loop, self.soak
        exchange = self.exchange(key, rng, [Plan.CLEAN, Plan.HALF_CLOSE])
        with socket.socket() as sock, self.file(exchange) as file:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.addresses["tcp"])
            exchange.inodes.add(os.fstat(sock.fileno()).st_ino)

            async def send():
                try:
                    await send_all()
                except OSError:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)  # or we would wait for the answer
                    raise

            async def send_all():
                await loop.sock_sendall(sock, exchange.header())
                if exchange.up and rng.random() < 0.5:
                    sent = await loop.sock_sendfile(sock, file)
                    assert sent == exchange.up, f"sock_sendfile() sent {sent} of {exchange.up}"
                else:
                    data = pattern.make(exchange.key * 2, 0, exchange.up) if exchange.up else b""
                    await loop.sock_sendall(sock, data)
                if exchange.plan == Plan.HALF_CLOSE:
                    sock.shutdown(socket.SHUT_WR)

            sending = asyncio.create_task(send())
            buffer = bytearray(30_000)
            received = 0
            try:
                while received < exchange.down:
                    if rng.random() < 0.5:
                        data = await loop.sock_recv(sock, rng.randint(1, 100_000))
                    else:
                        data = buffer[: await loop.sock_recv_into(sock, buffer)]
                    if not data:
                        break
                    pattern.check(exchange.key * 2 + 1, received, data)
                    received += len(data)
                    soak.counts["bytes checked"] += len(data)
                await sending
            except OSError as exc:
                soak.blame_exchange(exchange, f"sock_* raised {exc!r}")
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                if not sending.cancelled() and sending.exception() is not None:
                    soak.note(sending.exception())
            if received < exchange.down:
                soak.blame_exchange(exchange, f"sock_recv() ended after {received} bytes")
        await soak.finish(exchange)

    async def cancelled_sock_methods(self, key, rng):
        """Give up waiting in the middle, close, and leave the number to the next one."""
        loop = self.soak.loop
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            operations = [
                lambda: loop.sock_recv(near, 10),
                lambda: loop.sock_recv_into(near, bytearray(10)),
                lambda: loop.sock_recvfrom(near, 10),
                lambda: loop.sock_sendall(near, bytes(4_000_000)),
            ]
            task = asyncio.create_task(rng.choice(operations)())
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
            if rng.random() < 0.3:
                loop.call_soon(self.soak.send_if_possible, far)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                self.soak.note(task.exception())

    def file(self, exchange):
        """What the client is to send, as a file."""
        self.names += 1
        path = os.path.join(self.folder, f"file-{self.names}")
        file = open(path, "w+b", buffering=0)  # noqa: SIM115 - the caller closes it
        os.unlink(path)
        data = pattern.make(exchange.key * 2, 0, exchange.up) if exchange.up else b""
        while data:
            data = data[file.write(data) :]
        file.seek(0)
        return file

    async def sendfile(self, key, rng):
        kind = rng.choice(["tcp", "unix", "tls"] if self.context else ["tcp", "unix"])
        exchange = self.exchange(key, rng, [Plan.CLEAN])
        exchange.up = max(exchange.up, 1)
        end = make_end(self.soak, exchange, is_client=True)
        end.pumps = False
        with self.file(exchange) as file:
            transport, _ = await self.connect(lambda: end, kind)
            try:
                while end.sent < exchange.up:
                    count = rng.randint(1, exchange.up - end.sent)
                    sent = await self.soak.loop.sendfile(transport, file, end.sent, count)
                    assert sent == count, f"sendfile() sent {sent} of {count}"
                    end.sent += sent
                    if rng.random() < 0.3 and end.sent < exchange.up:
                        size = min(5000, exchange.up - end.sent)
                        transport.write(pattern.make(end.send_key, end.sent, size))
                        end.sent += size
                end.act()
            except (OSError, RuntimeError) as exc:
                transport.abort()
                self.soak.blame(end, f"sendfile: {exc!r}")
            await asyncio.shield(end.done)
        await self.soak.finish(exchange)

    async def udp(self, key, rng):
        loop = self.soak.loop
        kind = rng.choice(["udp", "udp", "udp unix"])
        protocol = Datagrams(self.soak, echoes=False)
        protocol.key = key
        arguments, server = {}, self.addresses[kind]
        connected = kind == "udp" and rng.random() < 0.5
        if connected:
            arguments["remote_addr"] = server
        elif kind == "udp":
            arguments["local_addr"] = ("127.0.0.1", 0)
        else:
            self.names += 1
            path = os.path.join(self.folder, f"datagrams-{self.names}")
            arguments = {"local_addr": path, "family": socket.AF_UNIX}
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, **arguments)
        self.soak.datagram_addresses[key] = transport.get_extra_info("sockname")
        for number in range(DATAGRAMS):
            size = rng.randint(1, DATAGRAM_BYTES_MAX) if rng.random() < 0.8 else 0
            body = pattern.make(key, 0, size) if size else b""
            data = DATAGRAM_HEAD.pack(key, number, zlib.crc32(body)) + body
            transport.sendto(data, None if connected else server)
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        if rng.random() < 0.8:
            await asyncio.sleep(0.005)
            transport.close()
        else:
            transport.abort()
        await asyncio.shield(protocol.lost)
        self.soak.counts["datagrams sent"] += DATAGRAMS
        if kind == "udp unix" and os.path.exists(arguments["local_addr"]):
            os.unlink(arguments["local_addr"])

    async def pipe(self, key, rng):
        loop, total = self.soak.loop, self.size(rng)
        read_fd, write_fd = os.pipe()
        reading, writing = os.fdopen(read_fd, "rb", 0), os.fdopen(write_fd, "wb", 0)
        reader = asyncio.StreamReader(limit=20_000)

        async def send():
            sent = 0
            while sent < total:
                size = min(rng.randint(1, 80_000), total - sent)
                writer.write(pattern.make(key, sent, size))
                sent += size
                await writer.drain()
            writer.close()

        transports, tasks, received = [], [], 0
        try:
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(lambda: protocol, reading)
            transports.append(transport)
            protocol = asyncio.streams.FlowControlMixin()
            transport, _ = await loop.connect_write_pipe(lambda: protocol, writing)
            transports.append(transport)
            writer = asyncio.StreamWriter(transport, protocol, None, loop)
            tasks.append(asyncio.create_task(send()))
            while data := await reader.read(50_000):
                pattern.check(key, received, data)
                received += len(data)
            await tasks[0]
            if received != total:
                self.soak.fail(f"a pipe brought {received} of {total} bytes")
        finally:
            for task in tasks:
                task.cancel()
                await asyncio.wait([task])
            for transport, file in zip(transports, (reading, writing), strict=False):
                if transport.is_closing():
                    pass
                elif isinstance(transport, asyncio.WriteTransport):
                    transport.abort()
                else:
                    transport.close()
                while not file.closed:  # connection_lost() comes before
                    await asyncio.sleep(0)
            for file in (reading, writing)[len(transports) :]:
                file.close()
            self.soak.counts["bytes checked"] += received

    async def subprocess(self, key, rng):
        """A program that sends back what it gets, or is killed in the middle."""
        total, killed = self.size(rng), rng.random() < 0.3
        plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=plain
        )
        # Of either pipe: without the one that it writes to, it ends.
        inodes = set()
        for transport in (process.stdin.transport, process.stdout._transport):
            pipe = transport.get_extra_info("pipe") or transport.get_extra_info("socket")
            if pipe is not None and pipe.closed and self.soak.faults.loaded:
                killed = True  # a fault has ended it before anybody could ask which pipe it was
            elif pipe is not None:
                inodes.add(os.fstat(pipe.fileno()).st_ino)

        def is_broken():
            return killed or any(map(self.soak.faults.of, inodes))

        received = 0

        async def send():
            try:
                sent = 0
                while sent < total:
                    size = min(rng.randint(1, 60_000), total - sent)
                    process.stdin.write(pattern.make(key, sent, size))
                    sent += size
                    await process.stdin.drain()
                    if killed and sent > total // 2:
                        process.kill()
                        break
            except OSError as exc:
                if not is_broken():
                    self.soak.fail(f"stdin of a process: {exc!r}")
            process.stdin.close()

        sending = asyncio.create_task(send())
        while data := await process.stdout.read(50_000):
            pattern.check(key, received, data)
            received += len(data)
        await sending
        if killed and process.returncode is None:
            try:
                process.kill()
            except ProcessLookupError:
                pass
        status = await process.wait()
        self.soak.counts["bytes checked"] += received
        complete = status == 0 and received == total
        if not (complete or is_broken()):
            self.soak.fail(f"cat ended with {status} after {received} of {total} bytes")
        try:
            await process.stdin.wait_closed()
        except OSError as exc:
            if not killed:
                self.soak.note(exc)

    async def threads(self, key, rng):
        """Threads that call into the loop while it is busy."""
        loop, heard = self.soak.loop, []
        everything = asyncio.Event()
        count = rng.randint(1, 50)

        def hear(number):
            heard.append(number)
            if len(heard) == count:
                everything.set()

        def call():
            for number in range(count):
                loop.call_soon_threadsafe(hear, number)

        await loop.run_in_executor(None, call)
        await everything.wait()
        if heard != list(range(count)):
            self.soak.fail(f"calls of a thread came as {heard}")

    async def timers(self, key, rng):
        """None is early, and none is forgotten."""
        loop = self.soak.loop
        resolution = loop._clock_resolution if self.soak.is_asyncio else 0
        waits = []
        for _ in range(50):
            future, deadline = loop.create_future(), loop.time() + rng.random() * 0.02

            def ring(future=future, deadline=deadline):
                if loop.time() < deadline - resolution:
                    self.soak.fail(f"a timer was {deadline - loop.time()} s early")
                future.set_result(None)

            handle = loop.call_at(deadline, ring)
            if rng.random() < 0.3:
                handle.cancel()
            else:
                waits.append(future)
        await asyncio.gather(*waits)
