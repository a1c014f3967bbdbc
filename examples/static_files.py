"""A server of the files in a folder, over HTTP/1.1: sendfile(2) moves them, nothing reads them.

Requests are cut out of the stream by a framing and read by a state machine; what is no plain GET or
HEAD of a file inside the folder is answered with an error.  For anything more use a web framework.
"""

from __future__ import annotations

import argparse
import asyncio
import mimetypes
import os
import pathlib
import signal
import stat
import urllib.parse
from typing import BinaryIO

import pyreactor
from pyreactor.framing import FramingError, HttpHead
from pyreactor.fsm import http1

REQUESTS = HttpHead()
IDLE_SECONDS_MAX = 60
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


def head(status: int, length: int, kind: str, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {REASONS[status]}",
        f"Content-Length: {length}",
        f"Content-Type: {kind}",
        "X-Content-Type-Options: nosniff",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def open_inside(folder: pathlib.Path, target: str) -> BinaryIO:
    """Open the file that `target` names.  Raises OSError or ValueError where there is none."""
    path = urllib.parse.unquote(urllib.parse.urlsplit(target).path)
    found = (folder / path.lstrip("/")).resolve()  # follows links, and ".." wherever it leads
    if not found.is_relative_to(folder):
        raise FileNotFoundError(target)
    if found.is_dir():
        found /= "index.html"
    # A pipe or a device would be waited for.
    file = os.fdopen(os.open(found, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileNotFoundError(target)
    return file


async def answer(
    request: http1.RequestHead, folder: pathlib.Path, writer: asyncio.StreamWriter
) -> None:
    keep = request.keep_alive
    if request.method not in ("GET", "HEAD"):
        await refuse(405, writer, keep)
        return
    try:
        file = open_inside(folder, request.target)
    except (OSError, ValueError):
        await refuse(404, writer, keep)
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        kind = mimetypes.guess_type(request.target)[0] or "application/octet-stream"
        writer.write(head(200, size, kind, keep))
        if request.method == "GET" and size:
            await asyncio.get_running_loop().sendfile(writer.transport, file, 0, size)
    await writer.drain()


async def refuse(status: int, writer: asyncio.StreamWriter, keep_alive: bool) -> None:
    text = REASONS[status].encode() + b"\n"
    writer.write(head(status, len(text), "text/plain", keep_alive) + text)
    await writer.drain()


async def serve(
    folder: pathlib.Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    framer = REQUESTS.framer()
    try:
        while data := await asyncio.wait_for(reader.read(65536), IDLE_SECONDS_MAX):
            broken = False
            try:
                frames = framer.feed(data)
            except FramingError as error:
                frames, broken = error.frames, True
            for frame in frames:
                request = http1.parse(frame)
                await answer(request, folder, writer)
                if not request.keep_alive:
                    return
            if broken:
                await refuse(400, writer, keep_alive=False)
                return
    except (OSError, TimeoutError):
        pass  # it has gone, or says nothing
    finally:
        writer.close()


async def main(folder: pathlib.Path, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    folder = folder.resolve(strict=True)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(folder, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, host, port)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"Serving {folder} at http://{host}:{port}/; Ctrl-C stops it.", flush=True)
    await stop.wait()
    server.close()
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    print("Stopped.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, nargs="?", default=pathlib.Path())
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    pyreactor.run(main(options.folder, options.host, options.port))
