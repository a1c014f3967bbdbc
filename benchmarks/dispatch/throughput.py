"""What a dispatcher makes of its threads: handlers that block, and handlers that compute.

    python benchmarks/dispatch/throughput.py blocking    50 ms of sleep in each of 64 threads
    python benchmarks/dispatch/throughput.py computing   a handler that computes, on 1 and 2 threads
    python benchmarks/dispatch/throughput.py backlog     context switches by the number of workers

blocking    requests per second against the ideal, threads / 50 ms.  HalfSyncHalfReactive, Reactor,
            LeaderFollowers; a loop of EfficientHalfSyncHalfAsync handles one request at a time.
computing   requests per second on two threads against one: where there is no GIL, twice as many at
            best; with one, no more.
backlog     voluntary and involuntary switches for each request, with 4 to 256 workers.

Only a quiet machine gives figures that mean something.
"""

import argparse
import os
import platform
import select
import socket
import sys
import time

from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handlers import CLOSE, EventHandler

SLEEP_SECONDS = 0.05
MAKERS = {
    "Reactor": lambda threads: Reactor(workers=threads),
    "HalfSyncHalfReactive": lambda threads: HalfSyncHalfReactive(workers=threads),
    "LeaderFollowers": lambda threads: LeaderFollowers(threads=threads),
    "EfficientHalfSyncHalfAsync": EfficientHalfSyncHalfAsync,
}


class Answering(EventHandler):
    """Answers each byte after some work."""

    def __init__(self, sock, work):
        self.sock, self.work = sock, work

    def handle_event(self, handle, event_type):
        try:
            data = self.sock.recv(1)
            if not data:
                return CLOSE
            self.work()
            self.sock.send(data)
        except OSError:
            return CLOSE  # the measurement is over
        return None

    def handle_close(self, handle):
        self.sock.close()


def block():
    time.sleep(SLEEP_SECONDS)


def compute():
    """Some 5 ms of Python code."""
    total = 0
    for number in range(100_000):
        total += number * number
    return total


def drive(kind, threads, connections, seconds, work):
    """Requests per second, and switches per request, over connections with one in flight each."""
    done = 0
    with MAKERS[kind](threads) as dispatcher:
        pairs = [socket.socketpair() for _ in range(connections)]
        for ours, _ in pairs:
            dispatcher.register_handle(ours, Answering(ours, work))
        peers = {theirs.fileno(): theirs for _, theirs in pairs}
        poll = select.epoll()
        for fd, peer in peers.items():
            poll.register(fd, select.EPOLLIN)
            peer.send(b"x")
        before, begin = dispatcher.stats(), time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            for fd, _ in poll.poll(begin + seconds - now):
                peers[fd].recv(1)
                peers[fd].send(b"x")
                done += 1
        took, after = time.monotonic() - begin, dispatcher.stats()
        poll.close()
        for peer in peers.values():
            peer.close()
    switches = [
        (after[name] - before[name]) / max(1, done) for name in ("voluntary", "nonvoluntary")
    ]
    return done / took, *switches


def blocking(options):
    ideal = options.threads / SLEEP_SECONDS
    for kind in ("Reactor", "HalfSyncHalfReactive", "LeaderFollowers"):
        # The one that leads does not handle: it takes one thread more.
        threads = options.threads + (kind == "LeaderFollowers")
        rate, *_ = drive(kind, threads, options.threads, options.seconds, block)
        print(f"{kind:28} {rate:8.0f}/s of {ideal:.0f}/s: {100 * rate / ideal:5.1f} %")


def computing(options):
    for kind in MAKERS:
        extra = kind == "LeaderFollowers"  # the leader
        one, two = (
            drive(kind, threads + extra, 8, options.seconds, compute)[0] for threads in (1, 2)
        )
        print(f"{kind:28} {one:6.1f}/s on one, {two:6.1f}/s on two: {two / one:4.2f} x")


def backlog(options):
    for workers in (4, 16, 64, 256):
        rate, voluntary, nonvoluntary = drive(
            "HalfSyncHalfReactive", workers, 256, options.seconds, lambda: time.sleep(0.001)
        )
        print(
            f"{workers:4} workers {rate:8.0f}/s, switches per request: {voluntary:.2f} voluntary,"
            f" {nonvoluntary:.3f} involuntary"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["blocking", "computing", "backlog"])
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(
        f"CPython {platform.python_version()} {'with' if gil else 'without'} a GIL,"
        f" {os.cpu_count()} processors, load average {os.getloadavg()[0]:.2f}"
    )
    {"blocking": blocking, "computing": computing, "backlog": backlog}[options.what](options)


if __name__ == "__main__":
    main()
