"""The memory that a server keeps for a connection on which nothing happens.

    python -m scale.idle PORT PID CONNECTIONS

Each connection has had one message echoed, so that what is made at the first use is there.  The
first tenth is not counted: allocators take memory in large pieces, and tables have a first size.
Prints one line of JSON: KiB per connection of the process's own (anonymous) memory.  What the
kernel keeps for a socket is not in it.
"""

import json
import pathlib
import re
import socket
import sys

MESSAGE = b"x" * 1023 + b"\n"
PATIENCE_SECONDS = 30


def own_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1])


def open_idle(port):
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    connection.sendall(MESSAGE)
    received = 0
    while received < len(MESSAGE):
        data = connection.recv(len(MESSAGE))
        if not data:
            raise SystemExit("the server closed a connection")
        received += len(data)
    return connection


def main(port, pid, count):
    port, count = int(port), int(count)
    connections = [open_idle(port) for _ in range(max(1, count // 10))]
    before_kib = own_kib(pid)
    connections += [open_idle(port) for _ in range(count)]
    after_kib = own_kib(pid)
    print(json.dumps({"kib": (after_kib - before_kib) / count}))
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
