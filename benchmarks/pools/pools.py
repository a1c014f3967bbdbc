"""What a call or an item costs, through our pools and queues and through the standard library's.

    python benchmarks/pools/pools.py [--quick]

Each case runs in a process of its own, a few times, the competitors in turn; the table gives the
medians: CPU of all processes and threads together, and wall time, in microseconds for each
operation.  Wall time means something on an idle machine only.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time

ROUNDS = 3
MIB = 1 << 20


def nothing():
    return None


def same(data):
    return data


def cpu_seconds():
    """Of all threads of the process group: this process, and those that it has started."""
    nanoseconds = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getpgid(int(pid)) != os.getpgrp():
                continue
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                    nanoseconds += int(file.read().split()[0])
        except (OSError, ValueError):
            continue  # it has ended
    return nanoseconds / 1e9


def measure(operation, count):
    """Run operation(count) and return microseconds of CPU and of wall time for each."""
    operation(max(count // 10, 1))
    cpu, wall = cpu_seconds(), time.perf_counter()
    operation(count)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return cpu / count * 1e6, wall / count * 1e6


def round_trips(pool, function, *arguments):
    def run(count):
        for _ in range(count):
            pool.submit(function, *arguments).result()

    return run


def batches(pool, function, *arguments):
    def run(count):
        for _ in range(count // 100 or 1):
            futures = [pool.submit(function, *arguments) for _ in range(100)]
            for future in futures:
                future.result()

    return run


def echo(requests, answers):
    while (item := requests.get()) is not None:
        answers.put(item)


def queue_echo(make_queue, item):
    """Items to a forked process and back, one at a time."""
    requests, answers = make_queue(), make_queue()
    process = multiprocessing.get_context("fork").Process(target=echo, args=(requests, answers))
    process.start()

    def run(count):
        for _ in range(count):
            requests.put(item)
            answers.get()

    return run, lambda: (requests.put(None), process.join())


def thread_pool(ours, workers):
    from pyreactor.pools import ThreadPool

    kind = ThreadPool if ours else concurrent.futures.ThreadPoolExecutor
    pool = kind(workers)
    # The stdlib starts its threads as they are needed: have them all.
    for future in [pool.submit(time.sleep, 0.05) for _ in range(workers)]:
        future.result()
    return pool


def process_pool(ours, workers):
    from pyreactor.pools import ProcessPool

    kind = ProcessPool if ours else concurrent.futures.ProcessPoolExecutor
    pool = kind(workers, mp_context=multiprocessing.get_context("forkserver"))
    for future in [pool.submit(time.sleep, 0.1) for _ in range(workers)]:
        future.result()
    return pool


def shared_queue(ours):
    from pyreactor.shm import SharedRequestQueue

    return SharedRequestQueue(64, bulk_bytes=16 * MIB) if ours else multiprocessing.Queue(64)


# Name -> what it is, how often, and what runs it.
CASES = {
    "thread_submit_1": ("ThreadPool(1).submit().result()", 20000),
    "thread_submit_4": ("ThreadPool(4).submit().result()", 20000),
    "thread_batch_4": ("ThreadPool(4), 100 calls at a time", 20000),
    "process_submit": ("ProcessPool(1).submit().result()", 4000),
    "process_batch": ("ProcessPool(2), 100 calls at a time", 10000),
    "process_submit_1m": ("ProcessPool(1), 1 MiB there and back", 400),
    "queue_small": ("SharedRequestQueue, 32 bytes there and back", 20000),
    "queue_1m": ("SharedRequestQueue, 1 MiB there and back", 600),
}


def run_case(name, ours, count):
    end = nothing
    if name.startswith("thread"):
        pool = thread_pool(ours, int(name[-1]))
        run = (batches if "batch" in name else round_trips)(pool, nothing)
    elif name == "process_batch":
        pool = process_pool(ours, 2)
        run, end = batches(pool, nothing), pool.shutdown
    elif name == "process_submit":
        pool = process_pool(ours, 1)
        run, end = round_trips(pool, nothing), pool.shutdown
    elif name == "process_submit_1m":
        pool = process_pool(ours, 1)
        run, end = round_trips(pool, same, os.urandom(MIB)), pool.shutdown
    else:
        item = os.urandom(MIB if name == "queue_1m" else 32)
        run, end = queue_echo(lambda: shared_queue(ours), item)
    print(json.dumps(measure(run, count)), flush=True)
    end()
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the operations")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, ours, count = options.case
        os.setpgrp()  # by which the children are known
        run_case(name, ours == "ours", int(count))
    print("| case | pyreactor CPU | wall | stdlib CPU | wall | CPU, pyreactor / stdlib |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (what, count) in CASES.items():
        figures = {"ours": [], "stdlib": []}
        for _ in range(ROUNDS):
            for side, results in figures.items():
                command = [sys.executable, __file__, "--case", name, side]
                command.append(str(count // 10 if options.quick else count))
                outcome = subprocess.run(command, capture_output=True, text=True, check=True)
                results.append(json.loads(outcome.stdout))
        medians = {
            side: [statistics.median(column) for column in zip(*results, strict=True)]
            for side, results in figures.items()
        }
        ours, theirs = medians["ours"], medians["stdlib"]
        print(
            f"| {what} | {ours[0]:.1f} | {ours[1]:.1f} | {theirs[0]:.1f} | {theirs[1]:.1f} "
            f"| {ours[0] / theirs[0]:.2f} x |",
            flush=True,
        )
    print(
        f"\n{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} processors, "
        f"Linux {platform.release()}, CPython {platform.python_version()}; medians of {ROUNDS} "
        f"rounds, µs per operation; load average {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    main()
