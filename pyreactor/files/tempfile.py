"""Temporary files and folders, asynchronously: those of the module `tempfile`, in its thread pool.

Making and removing them takes a thread, reading and writing them what the loop has.
SpooledTemporaryFile does not exist here: what the kernel has not written out yet is in memory, too.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any

from pyreactor.files.calls import ThreadCalls
from pyreactor.files.opening import AnyFile, Opening
from pyreactor.files.opening import open as open_file
from pyreactor.files.text import TextFile

__all__ = ["NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"]


def TemporaryFile(
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
    *,
    errors: str | None = None,
) -> Opening[Any]:
    """Open a file without a name, gone when it is closed: `await` this, or `async with` it."""

    def make() -> Any:
        return tempfile.TemporaryFile(buffering=0, suffix=suffix, prefix=prefix, dir=dir)

    return Opening(_open(make, mode, buffering, encoding, errors, newline, loop, executor))


def NamedTemporaryFile(
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: Any = None,
    delete: bool = True,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
    *,
    errors: str | None = None,
) -> Opening[Any]:
    """Open a file whose `name` is new; where `delete` is true, closing it removes it."""

    def make() -> Any:
        return tempfile.NamedTemporaryFile(
            buffering=0, suffix=suffix, prefix=prefix, dir=dir, delete=delete
        )

    return Opening(_open(make, mode, buffering, encoding, errors, newline, loop, executor))


async def _open(
    make: Callable[[], Any],
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    loop: asyncio.AbstractEventLoop | None,
    executor: Executor | None,
) -> AnyFile:
    # The library's own file closes and removes it; dropped unseen, it still does.
    keeper = await ThreadCalls(asyncio.get_running_loop(), executor).run(make)
    file: AnyFile = await open_file(
        keeper.fileno(),
        mode,
        buffering,
        encoding,
        errors,
        newline,
        closefd=False,
        loop=loop,
        executor=executor,
    )
    binary = file.buffer if isinstance(file, TextFile) else file
    binary.name = keeper.name
    binary._keeper = keeper
    return file


class TemporaryDirectory:
    """A folder that goes with all that is in it: `async with` it for its path."""

    def __init__(
        self,
        suffix: str | None = None,
        prefix: str | None = None,
        dir: Any = None,
        loop: asyncio.AbstractEventLoop | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._arguments = (suffix, prefix, dir)
        self._executor = executor
        self._folder: Any = None

    async def __aenter__(self) -> Any:
        calls = ThreadCalls(asyncio.get_running_loop(), self._executor)
        self._folder = await calls.run(tempfile.TemporaryDirectory, *self._arguments)
        return self._folder.name

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.cleanup()

    async def cleanup(self) -> None:
        """Remove it, and all that is in it."""
        calls = ThreadCalls(asyncio.get_running_loop(), self._executor)
        await calls.run(self._folder.cleanup)
