"""The program that the witness looks at: it moves bytes that it does not look at.  See witness.py.

It listens at the address that its first line tells, and is told to "send" a file to whoever
connects, or to "relay" whoever connects to another address.  Both answer with what was moved, the
seconds of CPU in user mode that it took, and how many bytes the process grew by.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from typing import Any

import witness

import pyreactor
from pyreactor import zerocopy

listening = socket.create_server(("127.0.0.1", 0))


def measured(function: Any, *arguments: Any) -> dict[str, Any]:
    """What a function returned, and what it has cost."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    witness.mark("begin")
    moved = function(*arguments)
    witness.mark("end")
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "moved": moved,
        "user_seconds": after.ru_utime - before.ru_utime,
        "grown_bytes": (after.ru_maxrss - before.ru_maxrss) * 1024,
    }


def send(path: str, asynchronous: bool) -> dict[str, Any]:
    """Send a whole file, by a blocking socket or by a loop."""
    client, _ = listening.accept()
    with client, open(path, "rb") as file:
        if not asynchronous:
            return measured(zerocopy.send_file, client, file)
        client.setblocking(False)
        return measured(pyreactor.run, zerocopy.send_file_async(client, file))


def relay(host: str, port: int) -> dict[str, Any]:
    """Join a client and a server."""
    client, _ = listening.accept()
    with client, socket.create_connection((host, port)) as server:
        client.setblocking(False)
        server.setblocking(False)
        return measured(pyreactor.run, zerocopy.relay(client, server))


if __name__ == "__main__":
    asyncio.run(asyncio.sleep(0))  # what is imported when first used
    pyreactor.run(asyncio.sleep(0))
    witness.obey(
        {
            "address": listening.getsockname(),
            "roles": {str(threading.get_native_id()): "main"},
        },
        {"send": send, "relay": relay},
    )
