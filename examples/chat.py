"""A chat room: every line that one says, all others hear.  Try it with several `nc HOST PORT`.

The lines are cut out of the stream by a framing; who sends lines that are too long is put out, and
so is who does not read what the others say.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import pyreactor
from pyreactor.framing import FramingError, Lines

LINES = Lines(max_bytes=500)
UNREAD_BYTES_MAX = 256 * 1024


class Member(asyncio.Protocol):
    """One connection.  Its first line is its name."""

    def __init__(self, room: set[Member]) -> None:
        self.room = room
        self.name = ""
        self.framer = LINES.framer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.hear("Welcome. What is your name?")

    def data_received(self, data: bytes) -> None:
        try:
            lines = self.framer.feed(data)
        except FramingError as error:
            lines = error.frames
            self.hear("That line is too long. Good bye.")
            self.transport.close()
        for line in lines:
            self.line_received(line.decode(errors="replace").strip())

    def line_received(self, line: str) -> None:
        if self.name:
            self.say_to_others(f"{self.name}: {line}")
        elif line:
            self.name = line
            present = ", ".join(sorted(member.name for member in self.room)) or "nobody else"
            self.hear(f"Hello {self.name}. Here is {present}.")
            self.say_to_others(f"{self.name} comes in.")
            self.room.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.room:
            self.room.remove(self)
            self.say_to_others(f"{self.name} leaves.")

    def say_to_others(self, text: str) -> None:
        for member in list(self.room):
            if member is not self:
                member.hear(text)

    def hear(self, text: str) -> None:
        if self.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.transport.abort()  # it does not read
        else:
            self.transport.write(text.encode() + b"\n")


async def main(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    room: set[Member] = set()
    server = await loop.create_server(lambda: Member(room), host, port)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"The room is at {host}:{port}; Ctrl-C closes it.", flush=True)
    await stop.wait()
    server.close()
    for member in list(room):
        member.hear("The room closes.")
        member.transport.close()
    print("Closed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    options = parser.parse_args()
    pyreactor.run(main(options.host, options.port))
