"""Programs for test_pools.py, which strace looks at: python pools_stage.py NAME [number].

Each marks the part of its work that is looked at by two accesses to files that do not exist.
"""

import os
import pathlib
import socket
import sys
import threading
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from pyreactor.pools import BufferPool, ConnectionPool, ProcessPool, ThreadPool
from pyreactor.shm import Segment, SharedRequestQueue


def mark(name):
    os.access(f"/witness/{name}", os.F_OK)


def requests_through_pools(count):
    """Each request borrows a connection and a buffer in a thread of the pool, and is echoed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection):
        with connection:
            while data := connection.recv(64):
                connection.send(data)

    def serve():
        for _ in range(2):
            connection = listener.accept()[0]
            threading.Thread(target=echo, args=(connection,)).start()

    acceptor = threading.Thread(target=serve)
    acceptor.start()
    buffers = BufferPool(2, 4096)
    connections = ConnectionPool(
        lambda: socket.create_connection(listener.getsockname()), min_size=2
    )
    acceptor.join()
    listener.close()

    def handle(number):
        with connections.connection() as connection, buffers.acquire() as buffer:
            connection.send(b"%d" % number)
            size = connection.recv_into(buffer)
            return int(bytes(memoryview(buffer)[:size]))

    with ThreadPool(2) as threads, connections:

        def run(begin, end):
            for start in range(begin, end, 20):
                futures = [threads.submit(handle, number) for number in range(start, start + 20)]
                total = sum(future.result() for future in futures)
                assert total == sum(range(start, start + 20))

        run(0, 2000)  # Python's own allocator grows to what it needs
        mark("begin")
        run(0, count)
        mark("end")
    print(connections.stats()["opened"], buffers.stats()["lent"])


def bytes_between_processes(count):
    """`count` MiB through a queue to a forked process, and through a segment back."""
    requests = SharedRequestQueue(8)
    answers = SharedRequestQueue(8)
    segment = Segment(1 << 20)
    mark("begin")
    child = os.fork()
    if child == 0:
        checksum = 0
        with memoryview(segment) as memory:
            for item in requests:
                checksum = zlib.crc32(item, checksum)
            memory[:] = item
        answers.put(checksum)
        os._exit(0)
    checksum = 0
    data = bytearray(os.urandom(1 << 20))
    for number in range(count):
        data[:8] = number.to_bytes(8, "little")
        checksum = zlib.crc32(data, checksum)
        requests.put(memoryview(data))
    requests.close()
    equal = answers.get() == checksum and bytes(segment) == data
    os.waitpid(child, 0)
    mark("end")
    print(equal)


def bytes_through_a_pool(count):
    """`count` MiB to worker processes, and as many back: the whole life of the pool."""
    data = os.urandom(1 << 20)
    checksum = zlib.crc32(data)
    mark("begin")
    with ProcessPool(2) as pool:
        there = list(pool.map(zlib.crc32, [data] * count))
        back = list(pool.map(bytes, [1 << 20] * count))
    mark("end")
    print(there == [checksum] * count and back == [bytes(1 << 20)] * count)


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
