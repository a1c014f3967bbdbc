"""Asynchronous files, in the shape of `aiofiles`: switching is an import.

    from pyreactor import files

    async with files.open("access.log") as file:
        async for line in file:
            ...

On a loop whose backend is io_uring the kernel carries out the operations by itself; on any other
loop, asyncio's own among them, its thread pool does.  What a program sees is the same.

    open            opening.py   modes and arguments, as of the built-in open()
    BinaryFile      binary.py    read-ahead and writes gathered, over positional reads and writes
    RawFile         binary.py    the same without a buffer
    TextFile        text.py      decoding and encoding over a BinaryFile
    files.os        os.py        stat, rename, unlink, mkdir ...; os.path in ospath.py
    files.tempfile  tempfile.py  files and folders that go by themselves
    calls           calls.py     how a system call is made: by a ring or by a thread

docs/files.md is the guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyreactor.files.binary import BinaryFile, RawFile
from pyreactor.files.opening import open
from pyreactor.files.text import TextFile

if TYPE_CHECKING:
    from pyreactor.files import os, tempfile  # which are imported when they are named

__all__ = ["BinaryFile", "RawFile", "TextFile", "open", "os", "tempfile"]

_STANDARD_STREAMS = {
    *("stdin", "stdout", "stderr"),
    *("stdin_bytes", "stdout_bytes", "stderr_bytes"),
}


def __getattr__(name: str) -> object:
    if name in ("os", "tempfile"):
        import importlib

        return importlib.import_module(f"pyreactor.files.{name}")
    if name in _STANDARD_STREAMS:
        raise AttributeError(
            f"pyreactor.files has no {name!r}: use the loop's connect_read_pipe() and "
            f"connect_write_pipe()"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
