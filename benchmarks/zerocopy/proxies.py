"""The proxies in Python that measure.py compares: `proxies.py KIND TARGET_PORT`.

"relay" joins sockets by splice(2), "streams" reads and writes with asyncio's streams, on pyreactor
or on asyncio's own loop.
"""

import asyncio
import socket
import sys

import pyreactor
from pyreactor.zerocopy import relay

HOST = "127.0.0.1"
READ_BYTES = 256 * 1024


async def join(client, port):
    """One connection of the "relay" kind."""
    server = socket.socket()
    server.setblocking(False)
    with client, server:
        await asyncio.get_running_loop().sock_connect(server, (HOST, port))
        await relay(client, server)


async def run_relay(port):
    """Accept for ever."""
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        async with asyncio.TaskGroup() as clients:
            while True:
                client, _ = await loop.sock_accept(listening)
                clients.create_task(join(client, port))


async def carry(reader, writer):
    """One direction of the "streams" kind."""
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def run_streams(port):
    """Accept for ever."""

    async def joined(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
        far_writer.close()
        writer.close()

    server = await asyncio.start_server(joined, HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


KINDS = {
    "relay": (pyreactor.run, run_relay),
    "streams": (pyreactor.run, run_streams),
    "asyncio": (asyncio.run, run_streams),
}

if __name__ == "__main__":
    run, main = KINDS[sys.argv[1]]
    run(main(int(sys.argv[2])))
