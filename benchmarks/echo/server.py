"""Echo servers, one per way of writing one with asyncio.

    python server.py LOOP MODE

LOOP is `asyncio` or any module with `new_event_loop()`. MODE is one of protocol, buffered,
streams, readline, sock. The port it listens on is printed; then it serves until it is killed.
"""

import asyncio
import importlib
import socket
import sys

READ_BYTES = 64 * 1024


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport = transport
        self.buffer = memoryview(bytearray(READ_BYTES))

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        # A copy, for the buffer is filled again while a transport may still hold what it was given.
        self.transport.write(bytes(self.buffer[:nbytes]))


async def stream_echo(reader, writer):
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


async def line_echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def sock_echo(connection):
    loop = asyncio.get_running_loop()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := await loop.sock_recv(connection, READ_BYTES):
            await loop.sock_sendall(connection, data)


async def serve_sock(listener):
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as connections:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            connections.create_task(sock_echo(connection))


async def serve(mode, listener):
    loop = asyncio.get_running_loop()
    if mode == "protocol":
        server = await loop.create_server(Echo, sock=listener)
    elif mode == "buffered":
        server = await loop.create_server(BufferedEcho, sock=listener)
    elif mode == "streams":
        server = await asyncio.start_server(stream_echo, sock=listener)
    elif mode == "readline":
        server = await asyncio.start_server(line_echo, sock=listener)
    elif mode == "sock":
        await serve_sock(listener)
        return
    else:
        raise SystemExit(f"unknown mode: {mode}")
    await server.serve_forever()


def main(loop_name, mode):
    new_event_loop = importlib.import_module(loop_name).new_event_loop
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(mode, listener))


if __name__ == "__main__":
    main(*sys.argv[1:])
