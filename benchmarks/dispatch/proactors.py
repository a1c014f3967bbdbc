"""What does a request cost under Proactor, its simulation, Reactor and leader/followers?

    python benchmarks/dispatch/proactors.py [--connections 10000] [--requests 100000] [--rounds 3]

An echo of 1 KiB through worker threads, with every connection having a message in flight.  A fresh
server process for each figure, the kinds in turn; the figure is the median of the server's CPU
time per request, user and system, of all its threads.  Prints a table, and what is taken out of
the pool for each request.  In a last round, whose time does not count, strace counts how often the
process gets memory from the system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("proactor", "simulated", "half-reactive", "reactor", "leader-followers")
POOLED = ("proactor", "simulated")
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
        counters = (
            {"buffers": pool.count, "buffer_bytes": pool.buffer_bytes, **pool.stats()}
            if pool
            else {}
        )
        print(json.dumps({**dispatcher.stats(), **counters}), flush=True)


@contextlib.contextmanager
def memory_witness(pid: int) -> Iterator[list[int]]:
    """Fills the list with the sizes that a process gets from the system meanwhile; 0: by brk."""
    sizes: list[int] = []
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["strace", "-f", "-qq", "-e", "trace=mmap,mremap,brk", "-o", log.name]
        with subprocess.Popen([*command, "-p", str(pid)]) as strace:
            status = pathlib.Path(f"/proc/{pid}/status")
            while "TracerPid:\t0\n" in status.read_text():
                if strace.poll() is not None:
                    raise SystemExit("strace could not attach to the server")
                time.sleep(0.01)
            yield sizes
            strace.terminate()
        for line in log:
            call = re.search(r" (mmap|mremap|brk)\((.*)", line)
            if call and call[1] == "mmap":
                sizes.append(int(call[2].split(", ")[1]))
            elif call:
                sizes.append(0)


def measure(
    loadgen: pathlib.Path, kind: str, options: argparse.Namespace, *, witnessed: bool = False
) -> dict[str, Any]:
    """One server, one load."""
    command = [sys.executable, __file__, "--serve", kind, "--workers", str(options.workers)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        port = server.stdout.readline().strip()
        witness = memory_witness(server.pid) if witnessed else contextlib.nullcontext([])
        with witness as sizes:
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
    return {**json.loads(stats), **json.loads(load.stdout), "sizes": sizes}


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
        sizes = {}
        for kind in POOLED if shutil.which("strace") else ():
            sizes[kind] = measure(loadgen, kind, options, witnessed=True)["sizes"]
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
    requests = options.requests * 1.1 + options.connections  # with those that warm up
    for kind in POOLED:
        last = found[kind][-1]
        pool_bytes = last["buffers"] * last["buffer_bytes"]
        print(
            f"\n{kind}: {last['buffers_taken'] / requests:.2f} buffers taken for each request out"
            f" of a pool of {last['buffers']}, mapped at its start ({pool_bytes >> 20} MiB);"
            f" {last['buffers_exhausted']} times there was none and a read waited;"
            f" {last['waits'] / requests:.3f} turns of the main thread for each request"
        )
        if kind not in sizes:
            print("install strace to have calls for memory counted")
            continue
        got = sizes[kind]
        print(
            f"calls for memory in {requests:.0f} requests and {options.connections} connections:"
            f" {len(got)}, the largest of {max(got, default=0) >> 10} KiB;"
            f" {sum(size >= pool_bytes for size in got)} as large as the pool"
        )


if __name__ == "__main__":
    main()
