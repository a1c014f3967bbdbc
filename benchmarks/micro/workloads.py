"""The scheduling workloads: each a coroutine that does `count` operations on the running loop.

They are used twice: by test_scheduling.py under pytest-benchmark, and by ../measure.py, which
run.py starts in a fresh process for each figure.
"""

import asyncio
import socket

from registry import Registry

WORKLOADS = Registry()
workload = WORKLOADS.workload  # some 20 to 200 ms on asyncio's own loop


def countdown(count):
    """A callback that completes a future when it has been called `count` times."""
    done = asyncio.get_running_loop().create_future()
    left = count

    def callback():
        nonlocal left
        left -= 1
        if left == 0:
            done.set_result(None)

    return callback, done


def nothing():
    pass


@workload(50_000)
async def call_soon_chain(count):
    """Each callback schedules the next: one per turn of the loop."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = count

    def callback():
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(callback)
        else:
            done.set_result(None)

    loop.call_soon(callback)
    await done


@workload(50_000)
async def call_soon_burst(count):
    """All callbacks are scheduled at once and run in one turn."""
    loop = asyncio.get_running_loop()
    callback, done = countdown(count)
    for _ in range(count):
        loop.call_soon(callback)
    await done


@workload(50_000)
async def call_later_cancel(count):
    """A timer that is cancelled before it is due, as most timeouts are."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        loop.call_later(10, nothing).cancel()


@workload(20_000)
async def timers_fire(count):
    """Timers, 0 to 600 microseconds ahead, that all run."""
    loop = asyncio.get_running_loop()
    callback, done = countdown(count)
    for i in range(count):
        loop.call_later(0.0001 * (i % 7), callback)
    await done


@workload(50_000)
async def sleep0(count):
    for _ in range(count):
        await asyncio.sleep(0)


@workload(20_000)
async def future_ping_pong(count):
    """A task waits for a future that a callback completes."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


@workload(20_000)
async def create_task_gather(count):
    """Tasks that end at once, a hundred at a time."""
    loop = asyncio.get_running_loop()

    async def end_at_once():
        pass

    for _ in range(count // 100):
        await asyncio.gather(*[loop.create_task(end_at_once()) for _ in range(100)])


@workload(20_000)
async def timeout(count):
    """asyncio.timeout() around a body that ends in time."""
    for _ in range(count):
        async with asyncio.timeout(10):
            pass


@workload(5_000)
async def sockpair(count):
    """sock_sendall() and sock_recv() of 100 bytes, which never have to wait."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        for _ in range(count):
            await loop.sock_sendall(ours, b"x" * 100)
            await loop.sock_recv(theirs, 1000)


@workload(2_000)
async def executor(count):
    """A round trip through a thread: the loop sleeps and is woken each time."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)


@workload(20_000)
async def call_soon_threadsafe(count):
    """Another thread schedules callbacks as fast as it can."""
    loop = asyncio.get_running_loop()
    callback, done = countdown(count)

    def schedule():
        for _ in range(count):
            loop.call_soon_threadsafe(callback)

    await asyncio.gather(loop.run_in_executor(None, schedule), done)
