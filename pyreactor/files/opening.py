"""files.open(): the arguments and modes of the built-in open()."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Generic, TypeVar

from pyreactor._file import Descriptor
from pyreactor.files.binary import BUFFER_BYTES, BinaryFile, RawFile
from pyreactor.files.calls import Calls, Path, ThreadCalls, calls_on
from pyreactor.files.text import TextFile

AnyFile = TextFile | BinaryFile | RawFile
_FileT = TypeVar("_FileT")

_KINDS = {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT}


class Opening(Coroutine[Any, Any, _FileT], Generic[_FileT]):
    """What open() returns: `await` it for the file, or `async with` it to have it closed, too."""

    __slots__ = ("_coroutine", "_file")

    def __init__(self, coroutine: Coroutine[Any, Any, _FileT]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, _FileT]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> _FileT:
        self._file = await self._coroutine
        return self._file

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._file.close()  # type: ignore[attr-defined]  # every file has it

    def send(self, value: Any) -> Any:
        """Go on, for a task that this is the coroutine of."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Go on with an exception."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Give up."""
        self._coroutine.close()


def open(
    file: Path | int,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[[str | bytes, int], int] | None = None,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
) -> Opening[Any]:
    """Open a file: `await` this, or `async with` it.

    The arguments mean what they do for the built-in open(), and so do the errors.  `opener` runs in
    the thread pool.  With an `executor` all is done by its threads, whatever the loop; `loop` may
    only name the one that runs.
    """
    if encoding is None and "b" not in str(mode):
        encoding = io.text_encoding(encoding)
    return Opening(
        _open(file, mode, buffering, encoding, errors, newline, closefd, opener, loop, executor)
    )


def _flags(mode: str) -> int:
    """Return the flags of open(2) for a mode; ValueError for what is none."""
    if not isinstance(mode, str):
        raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
    letters = set(mode)
    if letters - set("rwxabt+") or len(letters) < len(mode):
        raise ValueError(f"invalid mode: {mode!r}")
    if {"t", "b"} <= letters:
        raise ValueError("can't have text and binary mode at once")
    kinds = letters & set(_KINDS)
    if len(kinds) > 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    if not kinds:
        raise ValueError(
            "Must have exactly one of create/read/write/append mode and at most one plus"
        )
    (kind,) = kinds
    access = os.O_RDWR if "+" in letters else os.O_RDONLY if kind == "r" else os.O_WRONLY
    return access | _KINDS[kind] | (os.O_APPEND if kind == "a" else 0) | os.O_CLOEXEC


def _form_of(
    mode: str, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> io.TextIOWrapper | None:
    """Return an empty text file with that encoding, as Python's own; None for a binary mode."""
    if "b" not in mode:
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        return io.TextIOWrapper(io.BytesIO(), encoding, errors, newline)
    for argument, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
        if value is not None:
            article = "an" if argument[0] == "e" else "a"
            raise ValueError(f"binary mode doesn't take {article} {argument} argument")
    if buffering == 1:
        warnings.warn(
            "line buffering (buffering=1) isn't supported in binary mode, the default buffer size "
            "will be used",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


async def _open(
    file: Path | int,
    mode: str,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    closefd: bool,
    opener: Callable[[str | bytes, int], int] | None,
    loop: asyncio.AbstractEventLoop | None,
    executor: Executor | None,
) -> AnyFile:
    flags = _flags(mode)
    form = _form_of(mode, buffering, encoding, errors, newline)
    name = file if isinstance(file, int) else os.fspath(file)
    running = asyncio.get_running_loop()
    if loop is not None and loop is not running:
        raise RuntimeError(
            f"a file belongs to the loop that opens it, {running!r}, not to {loop!r}"
        )
    calls = calls_on(running, executor)
    descriptor, status = await _descriptor_of(calls, name, mode, flags, closefd, opener)
    size = BUFFER_BYTES if buffering < 0 or buffering == 1 else buffering
    if not stat.S_ISREG(status.st_mode) and not os.get_blocking(descriptor.fd):
        calls = ThreadCalls(running, executor)  # a ring does not wait for it
    access = flags & os.O_ACCMODE
    # As io.FileIO has it, which before 3.15 calls "w+" "r+".
    truncates = flags & os.O_TRUNC and (access == os.O_WRONLY or sys.version_info >= (3, 15))
    kind = "a" if flags & os.O_APPEND else "x" if flags & os.O_EXCL else "w" if truncates else "r"
    binary_mode = f"{kind}b{'+' if access == os.O_RDWR else ''}"
    binary = (BinaryFile if size else RawFile)(
        running, calls, descriptor, status, name, flags, binary_mode, size
    )
    try:
        if size and access == os.O_RDWR:
            binary._check_seeks()
        if form is None:
            return binary
        lines = buffering == 1 or (buffering < 0 and bool(binary.isatty()))
        text = TextFile(binary, form, newline, lines)
        text.mode = mode
        return text
    except BaseException:
        await binary.close()
        raise


async def _descriptor_of(
    calls: Calls,
    name: str | bytes | int,
    mode: str,
    flags: int,
    closefd: bool,
    opener: Callable[[str | bytes, int], int] | None,
) -> tuple[Descriptor, os.stat_result]:
    """Open it, where it is not open, and look what it is."""
    sys.audit("open", name, mode, flags)
    if isinstance(name, int):
        if name < 0:
            raise ValueError("negative file descriptor")
        descriptor = Descriptor(name, closefd)
    elif not closefd:
        raise ValueError("Cannot use closefd=False with file name")
    elif opener is not None:
        descriptor = Descriptor(await calls.run(_call_opener, opener, name, flags))
    else:
        opening = calls.open(name, flags)
        try:
            descriptor = await opening
        except asyncio.CancelledError:
            opening.cut_short()  # at a pipe that has no other end it would wait for ever
            raise
    try:
        status = descriptor.status or await calls.status(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    except BaseException:
        if isinstance(name, int):
            descriptor.take()  # it stays the caller's
        raise
    return descriptor, status


def _call_opener(opener: Callable[[str | bytes, int], int], name: str | bytes, flags: int) -> int:
    fd = opener(name, flags)
    if not isinstance(fd, int):
        raise TypeError("expected integer from opener")
    if fd < 0:
        raise ValueError(f"opener returned {fd}")
    os.set_inheritable(fd, False)
    return fd
