"""Paths, asynchronously: functions of the module `os` that ask the file system, and `path`.

They take what `os`'s take and raise what those raise.  stat, rename, replace, unlink, remove, rmdir
and mkdir are the ring's on a loop whose backend is io_uring, and so are the questions of `path`;
the others run in the thread pool on every loop, the kernel having no operation for them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, Self, TypeVar

from pyreactor.files import ospath as path
from pyreactor.files.calls import Path, calls_on

_P = ParamSpec("_P")
_T = TypeVar("_T")

__all__ = [
    "access",
    "chmod",
    "chown",
    "getcwd",
    "link",
    "listdir",
    "lstat",
    "makedirs",
    "mkdir",
    "path",
    "readlink",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "wrap",
]


def wrap(function: Callable[_P, _T]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Return a coroutine function that calls `function` in the thread pool.

    It takes `loop` and `executor`, too, as in aiofiles.
    """

    async def call(
        *args: Any,
        loop: asyncio.AbstractEventLoop | None = None,
        executor: Executor | None = None,
        **kwargs: Any,
    ) -> _T:
        running = loop or asyncio.get_running_loop()
        return await calls_on(running, executor).run(function, *args, **kwargs)

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = f"{function.__name__}() of the module os, in the thread pool."
    return call  # type: ignore[return-value]  # it takes two arguments more


async def stat(
    path: Path | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
) -> os.stat_result:
    """Return what is known about a path, or a descriptor."""
    calls = calls_on(asyncio.get_running_loop())
    return await calls.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)


async def lstat(path: Path, *, dir_fd: int | None = None) -> os.stat_result:
    """Like stat(), but of a symbolic link itself."""
    return await stat(path, dir_fd=dir_fd, follow_symlinks=False)


async def rename(
    src: Path, dst: Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """Give `src` the name `dst`, in place of what had it before."""
    calls = calls_on(asyncio.get_running_loop())
    await calls.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


replace = rename  # on Linux


async def unlink(path: Path, *, dir_fd: int | None = None) -> None:
    """Remove a file's name, and the file where it was its last."""
    await calls_on(asyncio.get_running_loop()).unlink(path, dir_fd=dir_fd)


remove = unlink


async def rmdir(path: Path, *, dir_fd: int | None = None) -> None:
    """Remove an empty folder."""
    await calls_on(asyncio.get_running_loop()).rmdir(path, dir_fd=dir_fd)


async def mkdir(path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """Make a folder."""
    await calls_on(asyncio.get_running_loop()).mkdir(path, mode, dir_fd=dir_fd)


async def makedirs(name: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
    """Make a folder and those that it lies in, where they are missing, as os.makedirs() does."""
    head, tail = os.path.split(os.fspath(name))
    if not tail:
        head, tail = os.path.split(head)
    if head and tail and not await path.exists(head):
        try:
            await makedirs(head, exist_ok=exist_ok)
        except FileExistsError:
            pass  # somebody else was faster
        if tail in (os.curdir, os.fsencode(os.curdir)):
            return
    try:
        await mkdir(name, mode)
    except OSError:
        if not exist_ok or not await path.isdir(name):
            raise


async def removedirs(name: Path) -> None:
    """Remove an empty folder, and then those it lay in for as long as they are empty."""
    await rmdir(name)
    head, tail = os.path.split(os.fspath(name))
    if not tail:
        head, tail = os.path.split(head)
    while head and tail:
        try:
            await rmdir(head)
        except OSError:
            break
        head, tail = os.path.split(head)


async def renames(old: Path, new: Path) -> None:
    """rename(), after making the folders of `new`, and before removing those of `old` if empty."""
    head, tail = os.path.split(os.fspath(new))
    if head and tail and not await path.exists(head):
        await makedirs(head)
    await rename(old, new)
    head, tail = os.path.split(os.fspath(old))
    if head and tail:
        try:
            await removedirs(head)
        except OSError:
            pass  # not empty


access = wrap(os.access)
chmod = wrap(os.chmod)
chown = wrap(os.chown)
getcwd = wrap(os.getcwd)
link = wrap(os.link)
listdir = wrap(os.listdir)
readlink = wrap(os.readlink)
sendfile = wrap(os.sendfile)
statvfs = wrap(os.statvfs)
symlink = wrap(os.symlink)
truncate = wrap(os.truncate)
utime = wrap(os.utime)


class Entries:
    """What scandir() has found: an iterator, and a context manager, as os.scandir()'s."""

    def __init__(self, entries: list[os.DirEntry[Any]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the rest."""
        self._entries = iter(())


def _read_folder(path: Any) -> list[os.DirEntry[Any]]:
    with os.scandir(path) as entries:
        return list(entries)


async def scandir(path: Any = None) -> Entries:
    """Return an iterator over the entries of a folder, all read."""
    calls = calls_on(asyncio.get_running_loop())
    return Entries(await calls.run(_read_folder, "." if path is None else path))
