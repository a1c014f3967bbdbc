"""The transfer workloads: both ends of a connection on one loop, so that nothing else differs.

Each is a coroutine that does `count` operations on the running loop; an operation is a round trip,
a MiB, a connection or a process, as its name says.  measure.py runs them.
"""

import asyncio
import contextlib
import tempfile

from registry import Registry

WORKLOADS = Registry()
workload = WORKLOADS.workload  # some 50 to 500 ms on asyncio's own loop
HOST = "127.0.0.1"
MIB = 1 << 20
BLOCK = bytes(range(256)) * (MIB // 256)
DATAGRAM = b"x" * 512
DATAGRAMS_IN_FLIGHT = 16
PATIENCE_SECONDS = 60


class Sink(asyncio.Protocol):
    """Counts bytes, and says when all have come."""

    def __init__(self, expected):
        self.left = expected
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.left -= len(data)
        if self.left <= 0:
            self.done.set_result(None)


class BufferedSink(asyncio.BufferedProtocol):
    """The same, into a buffer of its own."""

    def __init__(self, expected):
        self.left = expected
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = bytearray(MIB // 4)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.left -= nbytes
        if self.left <= 0:
            self.done.set_result(None)


class Source(asyncio.Protocol):
    """Lets its program wait until more may be written."""

    def __init__(self):
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()


@contextlib.asynccontextmanager
async def connected(sink):
    """A transport whose other end is `sink`, and its protocol, a Source."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: sink, HOST, 0)
    address = server.sockets[0].getsockname()
    transport, source = await loop.create_connection(Source, *address)
    try:
        yield transport, source
    finally:
        transport.close()
        server.close()


@workload(20_000)
async def udp_round_trip(count):
    """Datagrams of 512 bytes, 16 in flight, there and back."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.transport.sendto(data, address)

    class Client(asyncio.DatagramProtocol):
        left = count

        def connection_made(self, transport):
            self.transport = transport
            for _ in range(DATAGRAMS_IN_FLIGHT):
                transport.sendto(DATAGRAM)

        def datagram_received(self, data, address):
            self.left -= 1
            if self.left == 0:
                done.set_result(None)
            elif self.left >= DATAGRAMS_IN_FLIGHT:
                self.transport.sendto(data)

    server, _ = await loop.create_datagram_endpoint(Server, local_addr=(HOST, 0))
    address = server.get_extra_info("sockname")
    client, _ = await loop.create_datagram_endpoint(Client, remote_addr=address)
    await asyncio.wait_for(done, PATIENCE_SECONDS)
    client.close()
    server.close()


@workload(300)
async def bulk_mib(count):
    """MiB in one direction, a MiB to each write()."""
    sink = Sink(count * MIB)
    async with connected(sink) as (transport, source):
        for _ in range(count):
            await source.writable.wait()
            transport.write(BLOCK)
        await sink.done


@workload(300)
async def sendfile_mib(count):
    """Files of a MiB through loop.sendfile()."""
    loop = asyncio.get_running_loop()
    sink = BufferedSink(count * MIB)
    with tempfile.TemporaryFile() as file:
        file.write(BLOCK)
        file.flush()
        async with connected(sink) as (transport, _):
            for _ in range(count):
                await loop.sendfile(transport, file)
            await sink.done


@workload(1_000)
async def connection(count):
    """Streams: connect, a byte each way, close."""

    async def serve(reader, writer):
        writer.write(await reader.read(1))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0, backlog=1024)
    address = server.sockets[0].getsockname()
    for _ in range(count):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"x")
        await reader.read(1)
        writer.close()
        await writer.wait_closed()
    server.close()


@workload(100)
async def subprocess_spawn(count):
    """A process that ends at once, one after the other."""
    for _ in range(count):
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()


@workload(100)
async def subprocess_pipe_mib(count):
    """MiB through the two pipes of `cat`, whose own time counts, too."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)

    async def feed():
        for _ in range(count):
            process.stdin.write(BLOCK)
            await process.stdin.drain()
        process.stdin.close()

    feeding = asyncio.create_task(feed())
    received = 0
    while data := await process.stdout.read(MIB):
        received += len(data)
    await feeding
    await process.wait()
    assert received == count * MIB
