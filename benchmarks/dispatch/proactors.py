"""What does a request cost under Proactor, its simulation, Reactor and leader/followers?

    python benchmarks/dispatch/proactors.py [--connections 10000] [--requests 100000] [--rounds 3]

An echo of 1 KiB through worker threads, with every connection having a message in flight.  A fresh
server process for each figure, the kinds in turn; the figure is the median of the server's CPU time
per request, user and system, of all its threads.  Prints a table, and what is taken out of the pool
for each request.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("proactor", "simulated", "half-reactive", "reactor", "leader-followers")
BYTES = 1024


def serve(kind: str, workers: int) -> None:
    """Be the server: print the port, then serve until the input ends, then print the counters."""
    from pyreactor.dispatchers import HalfSyncHalfReactive, LeaderFollowers, Reactor
    from pyreactor.handlers import AcceptHandler, EchoHandler, EchoService
    from pyreactor.proactor import Proactor, SimulatedProactor

    dispatcher = {
        "proactor": lambda: Proactor(workers=workers),
        "simulated": lambda: SimulatedProactor(workers=workers),
        "half-reactive": lambda: HalfSyncHalfReactive("simulated_proactor", workers=workers),
        "reactor": lambda: Reactor(workers=workers),
        "leader-followers": lambda: LeaderFollowers(threads=workers),
    }[kind]()
    reads = kind in ("proactor", "simulated", "half-reactive")
    acceptor = AcceptHandler(("127.0.0.1", 0), EchoService if reads else EchoHandler, backlog=4096)
    dispatcher.register_handle(acceptor, acceptor)
    with dispatcher:
        print(acceptor.address[1], flush=True)
        sys.stdin.read()
        pool = getattr(dispatcher, "pool", None)
        counters = {"buffers": pool.count, **pool.stats()} if pool else {}
        print(json.dumps({**dispatcher.stats(), **counters}), flush=True)


def measure(loadgen: pathlib.Path, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """One server, one load."""
    command = [sys.executable, __file__, "--serve", kind, "--workers", str(options.workers)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        port = server.stdout.readline().strip()
        load = subprocess.run(
            [
                *(str(loadgen), port, str(server.pid), str(options.connections), str(BYTES)),
                str(options.requests),
            ],
            capture_output=True,
            text=True,
        )
        stats, _ = server.communicate("")
    if load.returncode:
        raise SystemExit(f"{kind}: {load.stderr}")
    return {**json.loads(stats), **json.loads(load.stdout)}


def main() -> None:
    """Measure all kinds in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        loadgen = pathlib.Path(folder) / "loadgen"
        source = HERE.parent / "echo" / "loadgen.c"
        subprocess.run(["cc", "-O2", str(source), "-o", str(loadgen)], check=True)
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                found[kind].append(measure(loadgen, kind, options))
    print(
        f"{options.connections} connections, {BYTES} bytes, {options.workers} workers, median of"
        f" {options.rounds}; Python {platform.python_version()}, Linux {platform.release()},"
        f" {time.strftime('%Y-%m-%d')}\n"
    )
    print("| dispatcher | CPU µs per request | rounds | p50 ms | p99 ms |")
    print("|---|---|---|---|---|")
    for kind, rounds in found.items():
        cpu = sorted(one["cpu_us"] for one in rounds)
        middle = sorted(rounds, key=lambda one: one["cpu_us"])[len(rounds) // 2]
        print(
            f"| {kind} | {statistics.median(cpu):.2f} | {cpu[0]:.2f} to {cpu[-1]:.2f}"
            f" | {middle['p50_us'] / 1000:.1f} | {middle['p99_us'] / 1000:.1f} |"
        )
    for kind in ("proactor", "simulated"):
        last = found[kind][-1]
        requests = options.requests * 1.1 + options.connections  # with those that warm up
        print(
            f"\n{kind}: {last['buffers_taken'] / requests:.2f} buffers taken for each request out"
            f" of a pool of {last['buffers']}, which is mapped once;"
            f" {last['buffers_exhausted']} times there was none and a read waited;"
            f" {last['waits'] / requests:.3f} turns of the main thread for each request"
        )


if __name__ == "__main__":
    main()
