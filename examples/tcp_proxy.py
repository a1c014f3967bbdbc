"""A TCP proxy: who connects is joined with another address, and the bytes stay in the kernel."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket

import pyreactor
from pyreactor.zerocopy import relay

CONNECT_SECONDS_MAX = 10


async def join(client: socket.socket, target: tuple[str, int]) -> None:
    """Connect to the target and relay, until both sides have ended or one fails."""
    loop = asyncio.get_running_loop()
    with client:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                server = await connect(target)
            with server:
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await relay(client, server)
        except OSError as error:  # the other side learns of it by the end of its connection
            if loop.get_debug():
                print(f"{target}: {error}")


async def connect(target: tuple[str, int]) -> socket.socket:
    """Try the target's addresses, one after the other."""
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(f"{target} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        *target, type=socket.SOCK_STREAM
    ):
        server = socket.socket(family, kind, protocol)
        server.setblocking(False)
        try:
            await loop.sock_connect(server, address)
        except OSError as error:
            failure = error
            server.close()
        except BaseException:
            server.close()
            raise
        else:
            return server
    raise failure


async def accept(listening: socket.socket, target: tuple[str, int]) -> None:
    """Join each client with the target; cancelling this ends them all."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as clients:
        while True:
            client, _ = await loop.sock_accept(listening)
            clients.create_task(join(client, target))


async def main(host: str, port: int, target: tuple[str, int]) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((host, port)) as listening:
        listening.setblocking(False)
        accepting = asyncio.create_task(accept(listening, target))
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, accepting.cancel)
        host, port = listening.getsockname()[:2]
        print(f"Joining {host}:{port} with {target[0]}:{target[1]}; Ctrl-C stops it.", flush=True)
        await asyncio.wait([accepting])
        if not accepting.cancelled():
            accepting.result()
    print("Stopped.")


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=address, help="HOST:PORT to join clients with")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8082)
    options = parser.parse_args()
    pyreactor.run(main(options.host, options.port, options.target))
