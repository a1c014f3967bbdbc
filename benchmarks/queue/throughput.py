"""What a queue costs: CPU time and futex calls per item, for each kind of queue and topology.

    python benchmarks/queue/throughput.py [--items N] [--rounds N] [--update docs/design/queue.md]

The queues are RequestQueue's lock-free ring and its twin with a lock, `queue.SimpleQueue`, and
`multiprocessing.Queue` (between threads here as well, so that nothing but the queue differs).  Each
figure comes from a fresh process; the queues take turns within a round, and the median is printed.
The futex calls are counted by strace in a run of their own, of a tenth of the items; in Python they
contain those of the interpreter's lock, which is why there are rows in which it plays no part: of
the C program tests/stress/queue_history.c, built by `make stress` or `make test-c`.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import platform
import queue
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

from pyreactor.request_queue import RequestQueue

ROOT = pathlib.Path(__file__).resolve().parents[2]
HISTORY = ROOT / "build/c/plain/tests/stress/queue_history"
CAPACITY = 1024
TOPOLOGIES = ["1x1", "2x2", "8x8"]
MARKERS = re.compile(r"(?<=<!-- queue -->).*(?=<!-- /queue -->)", re.DOTALL)


QUEUES = {
    "RequestQueue": lambda: RequestQueue(CAPACITY),
    "RequestQueue, mutex": lambda: RequestQueue(CAPACITY, kind="mutex"),
    "queue.SimpleQueue": queue.SimpleQueue,
    "multiprocessing.Queue": lambda: multiprocessing.Queue(CAPACITY),
}
IN_C = {"in C, lock-free": "mpmc", "in C, mutex": "mutex"}


def measure(name, topology, items):
    """In this process: CPU and wall seconds of passing the items."""
    producers, consumers = map(int, topology.split("x"))
    passing = QUEUES[name]()
    share = items // producers

    def produce():
        for number in range(share):
            passing.put(number)

    def consume(count):
        for _ in range(count):
            passing.get()

    threads = [threading.Thread(target=produce) for _ in range(producers)]
    each = share * producers // consumers
    threads += [threading.Thread(target=consume, args=[each]) for _ in range(consumers)]
    begin, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - begin}
    return {name: value / (share * producers) for name, value in seconds.items()}


def command(name, topology, items):
    if name in IN_C:
        options = ["--kind", IN_C[name], "--threads", topology, "--items", str(items)]
        return [HISTORY, *options, "--capacity", str(CAPACITY)]
    return [sys.executable, __file__, "--one", name, topology, str(items)]


def run(name, topology, items):
    """CPU and wall microseconds per item, of a fresh process."""
    before = os.times()
    begin = time.perf_counter()
    done = subprocess.run(
        command(name, topology, items), capture_output=True, text=True, check=True
    )
    wall = time.perf_counter() - begin
    after = os.times()
    if name not in IN_C:
        seconds = json.loads(done.stdout)
        return seconds["cpu"] * 1e6, seconds["wall"] * 1e6
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return cpu / items * 1e6, wall / items * 1e6


def futexes(name, topology, items):
    """The futex calls per item, by strace; None where it is missing.

    Of the C program it is what that itself counts: strace makes each call slow, and so many threads
    sleep that would not have.  What a lock's contention adds is not in that.
    """
    if name in IN_C:
        program = command(name, topology, 200 * items)
        told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        sleeps, wakes = re.search(r"([\d.]+) sleeps and ([\d.]+) wakes", told).groups()
        return float(sleeps) + float(wakes)
    if shutil.which("strace") is None:
        return None
    counting = ["strace", "-f", "--seccomp-bpf", "-c", "-e", "trace=futex"]
    done = subprocess.run(
        [*counting, *command(name, topology, items)], capture_output=True, text=True, check=True
    )
    found = re.search(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(\s+\d+)?\s+futex$", done.stderr, re.M)
    return int(found[1]) / items if found else 0.0


def table(options):
    names = [*QUEUES, *(IN_C if HISTORY.exists() else ())]
    taken = {(name, topology): [] for name in names for topology in TOPOLOGIES}
    for _ in range(options.rounds):
        for name, topology in taken:
            items = options.items * (20 if name in IN_C else 1)
            taken[name, topology].append(run(name, topology, items))
    lines = [
        "| queue | " + " | ".join(f"{topology}" for topology in TOPOLOGIES) + " |",
        "| --- |" + " ---: |" * len(TOPOLOGIES),
    ]
    for name in names:
        cells = []
        for topology in TOPOLOGIES:
            cpu, wall = (
                statistics.median(part) for part in zip(*taken[name, topology], strict=True)
            )
            calls = futexes(name, topology, options.items // 10)
            counted = "" if calls is None else f", {calls:.3g} futex"
            cells.append(f"{cpu:.2f} µs, {1 / wall:.2f} M/s{counted}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    now = datetime.datetime.now(datetime.UTC)
    cpu_name = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    lines += [
        "",
        f"{now:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} x {cpu_name[1] if cpu_name else 'CPU'},"
        f" Linux {platform.release()}, CPython {platform.python_version()}; medians of"
        f" {options.rounds} rounds of `python benchmarks/queue/throughput.py --items"
        f" {options.items}`; load average at the end {os.getloadavg()[0]:.2f}.",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--update", type=pathlib.Path, help="write the table into this page")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, topology, items = options.one
        print(json.dumps(measure(name, topology, int(items))))
        return
    text = table(options)
    print(text)
    if options.update:
        page = options.update.read_text()
        if len(MARKERS.findall(page)) != 1:
            raise SystemExit(f"{options.update} needs <!-- queue --> and <!-- /queue -->, once")
        options.update.write_text(MARKERS.sub(lambda match: f"\n\n{text}\n\n", page))


if __name__ == "__main__":
    main()
