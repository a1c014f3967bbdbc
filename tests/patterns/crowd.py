"""Many connections at once, between two processes.

usage: crowd.py serve KIND COUNT     tells its address, and upon a line of input what it has
       crowd.py connect PORT COUNT   connects, has all echoed once, and tells how many were; it
                                     stays connected until the end of its input
"""

import json
import os
import resource
import select
import socket
import sys

from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handlers import AcceptHandler, EchoHandler, EchoService

THREADS = 4
PATIENCE = 60.0
PER_ADDRESS = 5000  # connections from one local address; ports are not without number
MAKERS = {
    "reactor": lambda: Reactor(workers=THREADS),
    "half-reactive": lambda: HalfSyncHalfReactive(workers=THREADS),
    "half-async": lambda: HalfSyncHalfAsync(sync_threads=THREADS),
    "efficient": lambda: EfficientHalfSyncHalfAsync(THREADS),
    "leader-followers": lambda: LeaderFollowers(threads=THREADS),
}


def allow(count):
    """Have as many descriptors, and some."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200,) * 2)


def count_threads():
    return len(os.listdir("/proc/self/task"))


def serve(kind, count):
    allow(count)
    with MAKERS[kind]() as dispatcher:
        service = EchoService if kind == "half-async" else EchoHandler
        acceptor = AcceptHandler(("127.0.0.1", 0), service, backlog=1024)
        dispatcher.register_handle(acceptor, acceptor)
        before = threads = count_threads()
        print(json.dumps(acceptor.address), flush=True)
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            threads = max(threads, count_threads())
        seen = {
            "threads_before": before,
            "threads": max(threads, count_threads()),
            "handles": dispatcher.stats()["handles"],
        }
        if isinstance(dispatcher, EfficientHalfSyncHalfAsync):
            seen["connections"] = dispatcher.connections()
    print(json.dumps(seen))


def connect(port, count):
    allow(count)
    clients = []
    for number in range(count):
        client = socket.socket()
        client.settimeout(PATIENCE)
        client.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
        client.connect(("127.0.0.1", port))
        clients.append(client)
    echoed = 0
    for client in clients:
        client.sendall(b"hello")
    for client in clients:
        echoed += client.recv(5) == b"hello"
    print(echoed, "echoed", flush=True)
    sys.stdin.read()  # they stay until the server has been asked


if __name__ == "__main__":
    {"serve": serve, "connect": connect}[sys.argv[1]](
        *(int(word) if word.isdigit() else word for word in sys.argv[2:])
    )
