"""A job server: one loop for the clients, processes for the jobs, a database for what they found.

    python examples/jobs.py [--port 8100] [--workers 2] [--database jobs.db]

A client sends lines such as `factor 600851475143` or `slow 2`, and gets a line for each, in order.
A worker that is killed is replaced, and its job is done again by another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time

import pyreactor
from pyreactor.storage import Session
from pyreactor.units import LogicUnit, SQLiteStorage, StorageUnit


def factor(number: int) -> list[int]:
    """Return the prime factors of a number, by trial division."""
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors + [number] * (number > 1)


def do_job(job: str, storage: StorageUnit) -> str:
    """Do one job, in a worker process."""
    name, _, argument = job.partition(" ")
    try:
        number = int(argument)
    except ValueError:
        return f"error: {name} wants a whole number"
    session: Session
    if name == "factor" and number > 0:
        with storage.acquire() as session:
            known = session.get(job)
        if known is None:
            known = factor(number)
            with storage.acquire() as session:
                session.set(job, known)
        return " ".join(map(str, known))
    if name == "slow" and 0 <= number <= 60:
        time.sleep(number)
        return f"process {os.getpid()} has slept"
    return "error: there are `factor N` and `slow SECONDS`"


async def serve(port: int, logic: LogicUnit) -> None:
    """Serve clients until a signal comes."""

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            future = logic.submit(line.decode(errors="replace").strip())
            writer.write(f"{await asyncio.wrap_future(future)}\n".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(attend, "127.0.0.1", port)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    host, actual_port = server.sockets[0].getsockname()
    print(f"Jobs on {host}:{actual_port}, {logic.workers} processes.", flush=True)
    async with server:
        await stopped.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--database", default="jobs.db")
    arguments = parser.parse_args()
    with (
        SQLiteStorage(arguments.database) as storage,
        LogicUnit(do_job, kind="process", workers=arguments.workers, storage=storage) as logic,
    ):
        pyreactor.run(serve(arguments.port, logic))
    print("Stopped.")


if __name__ == "__main__":
    main()
