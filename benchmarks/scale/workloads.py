"""Workloads that grow: as many as a large server has, or one loop in each thread."""

import asyncio
import random
import socket

from registry import Registry

WORKLOADS = Registry()
workload = WORKLOADS.workload
SPREAD_SECONDS = 1.0
MESSAGE = b"x" * 1024


@workload(1_000_000)
async def timers_million(count):
    """A million timers in no order: half are cancelled while all are pending, half run."""
    loop = asyncio.get_running_loop()
    delay = random.Random(0).random
    done = loop.create_future()
    left = count - count // 2

    def callback():
        nonlocal left
        left -= 1
        if left == 0:
            done.set_result(None)

    handles = [loop.call_later(SPREAD_SECONDS * delay(), callback) for _ in range(count // 2)]
    for _ in range(left):
        loop.call_later(SPREAD_SECONDS * delay(), callback)
    for handle in handles:
        handle.cancel()
    await done


class Pong(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Ping(asyncio.Protocol):
    """Sends what comes back until it has come `count` times."""

    def __init__(self, count):
        self.left = count
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.received = 0
        transport.write(MESSAGE)

    def data_received(self, data):
        self.received += len(data)
        if self.received < len(MESSAGE):
            return
        self.received = 0
        self.left -= 1
        if self.left:
            self.transport.write(MESSAGE)
        else:
            self.done.set_result(None)


@workload(20_000)
async def round_trips(count):
    """A KiB there and back, between two transports of one loop."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    pong, _ = await loop.create_connection(Pong, sock=theirs)
    ping, protocol = await loop.create_connection(lambda: Ping(count), sock=ours)
    await protocol.done
    ping.close()
    pong.close()


@workload(20_000)
async def tasks(count):
    """Tasks that give way once and end, a hundred at a time."""
    left = count
    while left > 0:
        some = min(left, 100)
        left -= some
        await asyncio.gather(*[asyncio.sleep(0) for _ in range(some)])
