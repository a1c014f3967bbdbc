"""`os.path`, asynchronously: the functions that ask the file system.

On a loop whose backend is io_uring the ring answers them, but for ismount() and abspath(), for
which it has nothing; see os.py.
"""

from __future__ import annotations

import asyncio
import os
import stat as modes
from collections.abc import Callable
from typing import Any

from pyreactor.files.calls import Path, calls_on

__all__ = [
    "abspath",
    "exists",
    "getatime",
    "getctime",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "lexists",
    "realpath",
    "samefile",
    "sameopenfile",
]


async def _stat(path: Path | int, follow_symlinks: bool = True) -> os.stat_result:
    calls = calls_on(asyncio.get_running_loop())
    return await calls.stat(path, follow_symlinks=follow_symlinks)


async def _is(
    path: Path | int, kind: Callable[[int], bool] | None, follow_symlinks: bool = True
) -> bool:
    """Whether there is such a thing, of that kind; what cannot be asked about is not there."""
    try:
        status = await _stat(path, follow_symlinks)
    except (OSError, ValueError):
        return False
    return kind is None or kind(status.st_mode)


async def exists(path: Path | int) -> bool:
    """Return whether there is something at `path`, which a broken symbolic link is not."""
    return await _is(path, None)


async def lexists(path: Path) -> bool:
    """Return whether there is something at `path`, be it a broken symbolic link."""
    return await _is(path, None, follow_symlinks=False)


async def isfile(path: Path | int) -> bool:
    """Return whether it is a regular file."""
    return await _is(path, modes.S_ISREG)


async def isdir(path: Path | int) -> bool:
    """Return whether it is a folder."""
    return await _is(path, modes.S_ISDIR)


async def islink(path: Path) -> bool:
    """Return whether it is a symbolic link."""
    return await _is(path, modes.S_ISLNK, follow_symlinks=False)


async def getsize(filename: Path | int) -> int:
    """Return the size in bytes."""
    return (await _stat(filename)).st_size


async def getmtime(filename: Path | int) -> float:
    """Return when its content was changed last, in seconds."""
    return (await _stat(filename)).st_mtime


async def getatime(filename: Path | int) -> float:
    """Return when it was read last, in seconds."""
    return (await _stat(filename)).st_atime


async def getctime(filename: Path | int) -> float:
    """Return when it was changed last, be it its name or mode, in seconds."""
    return (await _stat(filename)).st_ctime


async def samefile(f1: Path | int, f2: Path | int) -> bool:
    """Return whether two paths lead to one file."""
    return os.path.samestat(await _stat(f1), await _stat(f2))


async def sameopenfile(fp1: int, fp2: int) -> bool:
    """Return whether two descriptors are of one file."""
    return os.path.samestat(await _stat(fp1), await _stat(fp2))


async def _run(function: Callable[..., Any], path: Path | int) -> Any:
    return await calls_on(asyncio.get_running_loop()).run(function, path)


async def ismount(path: Path) -> bool:
    """Return whether another file system begins there."""
    mounted: bool = await _run(os.path.ismount, path)
    return mounted


async def abspath(path: Path) -> Any:
    """Return the path from the root on."""
    return await _run(os.path.abspath, path)


async def realpath(path: Path) -> Any:
    """Return the path from the root on, without symbolic links."""
    return await _run(os.path.realpath, path)
