"""Echo servers, one per way of writing one with asyncio.

    python -m echo.server LOOP MODE [CERTIFICATE]

LOOP is one of loops.py, MODE one of protocol, buffered, streams, readline, sock.  CERTIFICATE, a
PEM file with its key, puts TLS below protocol, buffered or streams.  The port it listens on is
printed; then it serves until it is killed.
"""

import asyncio
import functools
import socket
import ssl
import sys

import loops

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


def tls_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def serve(mode, listener, context=None):
    loop = asyncio.get_running_loop()
    if mode == "protocol":
        server = await loop.create_server(Echo, sock=listener, ssl=context)
    elif mode == "buffered":
        server = await loop.create_server(BufferedEcho, sock=listener, ssl=context)
    elif mode == "streams":
        server = await asyncio.start_server(stream_echo, sock=listener, ssl=context)
    elif mode == "readline":
        server = await asyncio.start_server(line_echo, sock=listener, ssl=context)
    elif mode == "sock":
        await serve_sock(listener)
        return
    else:
        raise SystemExit(f"unknown mode: {mode}")
    await server.serve_forever()


def main(loop_name, mode, certificate=None):
    context = None if certificate is None else tls_context(certificate)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    factory = functools.partial(loops.new_event_loop, loop_name)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(mode, listener, context))


if __name__ == "__main__":
    main(*sys.argv[1:])
