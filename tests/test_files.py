"""pyreactor.files: one behaviour on the ring, on the thread pool, and, where it goes, of aiofiles.

The built-in files are the model: a random series of operations has to give the same results.
"""

import asyncio
import collections
import concurrent.futures
import errno
import functools
import gc
import inspect
import io
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings
import weakref

import aiofiles
import aiofiles.os
import aiofiles.tempfile
import pytest

import pyreactor
from pyreactor import files as our_files
from pyreactor.files.calls import ThreadCalls, calls_on

LOOPS = {
    "asyncio": asyncio.SelectorEventLoop,
    "epoll": functools.partial(pyreactor.Loop, backend="epoll"),
    "io_uring": functools.partial(pyreactor.Loop, backend="io_uring"),
    "aiofiles": asyncio.SelectorEventLoop,
}
ROOT = str(pathlib.Path(__file__).resolve().parents[1])
LINES = b"".join(b"%d: %s\n" % (number, b"x" * (number % 90)) for number in range(5000))


def io_uring_is_missing():
    try:
        pyreactor.Loop(backend="io_uring").close()
    except OSError as error:
        return str(error)
    return ""


@pytest.fixture(params=LOOPS)
def loop_type(request):
    """As conftest's, but all three loops in one run, and asyncio's once more for aiofiles."""
    differs = request.node.get_closest_marker("aiofiles_differs")
    if request.param == "aiofiles" and differs:
        pytest.skip(f"aiofiles: {differs.args[0]}")
    if request.param == "io_uring" and (reason := io_uring_is_missing()):
        pytest.skip(reason)
    return LOOPS[request.param]


@pytest.fixture
def files(request, loop_type):
    """The library under test."""
    is_aiofiles = request.node.callspec.params["loop_type"] == "aiofiles"
    return aiofiles if is_aiofiles else our_files


differs = pytest.mark.aiofiles_differs


@pytest.fixture
def path(tmp_path):
    """A file of LINES."""
    path = tmp_path / "lines"
    path.write_bytes(LINES)
    return path


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


# --- The built-in files are the model -------------------------------------------------------------


def outcome_of(error):
    return type(error), getattr(error, "errno", None)


def random_bytes(dice, size_max=300):
    size = dice.choice([0, 1, 5, dice.randrange(size_max)])
    return bytes(dice.choices(b"abc\n\r\x80", k=size))


def binary_step(dice):
    """One operation on a binary file: its name and arguments."""
    size = dice.choice([-1, 0, 1, 7, 100, 5000, 100_000])
    return dice.choice(
        [
            ("read", size),
            ("readline", dice.choice([-1, -1, 1, 3, 40])),
            ("readinto", bytearray(abs(size))),
            ("write", random_bytes(dice)),
            ("write", random_bytes(dice, 30_000)),
            ("writelines", [random_bytes(dice), random_bytes(dice)]),
            ("seek", dice.randrange(30_000)),
            ("seek", -dice.randrange(300), os.SEEK_END),
            ("seek", dice.randrange(-50, 50), os.SEEK_CUR),
            ("tell",),
            ("flush",),
            ("truncate", dice.randrange(30_000)),
            ("truncate",),
            ("readlines", dice.choice([-1, 0, 200])),
        ]
    )


async def compare(steps, ours, model):
    """Do each step with both files; the results and the errors have to be the same."""
    for number, (name, *arguments) in enumerate(steps):
        copies = [bytearray(a) if isinstance(a, bytearray) else a for a in arguments]
        try:
            expected = getattr(model, name)(*arguments)
        except Exception as error:
            expected = outcome_of(error)
        try:
            result = await getattr(ours, name)(*copies)
        except Exception as error:
            result = outcome_of(error)
        assert (result, copies) == (expected, arguments), (number, steps[: number + 1][-5:])
        position = model.tell() if name not in ("readline", "readlines") else None
        if position is not None and isinstance(position, int):
            assert await ours.tell() == position, (number, steps[: number + 1][-5:])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["r+b", "w+b", "a+b", "rb", "wb", "x+b"])
async def test_binary_files_behave_as_the_built_in_ones(files, loop, tmp_path, mode, seed):
    dice = random.Random(f"{mode}{seed}")
    buffering = dice.choice([-1, -1, 0, 100, 4096])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    if "x" not in mode:
        ours.write_bytes(LINES)
        theirs.write_bytes(LINES)
    steps = [binary_step(dice) for _ in range(40)]
    with theirs.open(mode, buffering=buffering) as model:
        async with files.open(ours, mode, buffering) as file:
            assert file.mode == model.mode
            await compare(steps, file, model)
    assert ours.read_bytes() == theirs.read_bytes()


def text_step(dice):
    size = dice.choice([-1, 0, 1, 7, 100, 5000])
    text = "".join(dice.choices("ab\n\r\u00e4\u20ac", k=dice.randrange(200)))
    return dice.choice(
        [
            ("read", size),
            ("readline", dice.choice([-1, -1, 0, 3])),
            ("readlines", dice.choice([-1, 100])),
            ("write", text),
            ("writelines", [text, "\n", text]),
            ("flush",),
            ("seek", 0),
            ("seek", 0, os.SEEK_END),
        ]
    )


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32-le", "latin-1", "shift_jis", "iso2022_jp"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
async def test_text_files_behave_as_the_built_in_ones(files, loop, tmp_path, newline, seed):
    dice = random.Random(f"{newline!r}{seed}")
    encoding = dice.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"])
    buffering = dice.choice([-1, 1, 10, 4096])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    steps = []
    for _ in range(30):
        step = text_step(dice)
        if step[0].startswith("write"):
            # Where one is after reading, the built-in files leave to their reading ahead.
            steps.append(("seek", 0, os.SEEK_END))
        steps.append(step)
    options = {"encoding": encoding, "newline": newline, "buffering": buffering}
    with theirs.open("w+", **options) as model:
        async with files.open(ours, "w+", **options) as file:
            for number, (name, *arguments) in enumerate(steps):
                expected = getattr(model, name)(*arguments)
                result = await getattr(file, name)(*arguments)
                assert result == expected, (number, steps[: number + 1][-5:])
            for either in (model, file):
                either.seek(0) if either is model else await either.seek(0)
            assert await file.read() == model.read()
            assert file.newlines == model.newlines
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", [None, ""])
async def test_tell_leads_back_to_each_character(files, loop, tmp_path, encoding, newline):
    if files is aiofiles and encoding == "iso2022_jp":
        pytest.skip("aiofiles: io's tell() fails now and then, from one thread and another")
    text = (
        "eins\r\nzwei\n\u3042\u3044drei\rvier\u3046\r\n\u3048"
        if "la" not in encoding
        else "a\r\nb\n"
    )
    path = tmp_path / "text"
    path.write_bytes(text.encode(encoding))
    expected = text if newline == "" else text.replace("\r\n", "\n").replace("\r", "\n")
    async with files.open(path, encoding=encoding, newline=newline) as file:
        places = [await file.tell()]
        read = ""
        while more := await file.read(1):
            read += more
            places.append(await file.tell())
        assert read == expected
        for index in random.Random(encoding).sample(range(len(places)), len(places)):
            await file.seek(places[index])
            assert await file.read() == expected[index:]
            await file.seek(places[index])
            await file.seek(await file.tell())
            assert await file.read(3) == expected[index : index + 3]


async def test_lines_that_are_cut_by_every_read_come_whole(files, loop, tmp_path):
    path = tmp_path / "cut"
    data = "\u00e4\r\n\u20acb\r\r\n\nend".encode()
    path.write_bytes(data * 50)
    for newline in (None, "", "\n", "\r", "\r\n"):
        with path.open(encoding="utf-8", newline=newline) as model:
            expected = model.readlines()
        for buffering in (2, 3, 5, 64):
            async with files.open(path, "r", buffering, "utf-8", newline=newline) as file:
                assert [line async for line in file] == expected
                assert await file.readline() == ""


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_async_for_gives_the_lines(files, loop, path, mode):
    with path.open(mode) as model:
        expected = list(model)
    async with files.open(path, mode) as file:
        assert [line async for line in file] == expected
        with pytest.raises(StopAsyncIteration):
            await file.__anext__()


@differs("loses what it has decoded")
async def test_what_cannot_be_decoded_stays_where_it_is(files, loop, tmp_path):
    path = tmp_path / "broken"
    path.write_bytes(b"good\n" * 3 + b"\xff\xfe\n")
    async with files.open(path, encoding="utf-8", buffering=15) as file:
        assert await file.readline() == "good\n"
        await file.read(10)
        place = await file.tell()
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError):
                await file.read()
            assert await file.tell() == place
    async with files.open(path, encoding="utf-8", errors="replace") as file:
        assert (await file.read()).endswith("\ufffd\ufffd\n")


@differs("writes behind what was read ahead, as the built-in files do")
async def test_writing_after_reading_text_goes_on_where_reading_stopped(files, loop, tmp_path):
    path = tmp_path / "text"
    path.write_text("one\ntwo\nthree\n")
    async with files.open(path, "r+") as file:
        assert await file.readline() == "one\n"
        await file.write("TWO")
        assert await file.read() == "\nthree\n"
    assert path.read_text() == "one\nTWO\nthree\n"


# --- Opening --------------------------------------------------------------------------------------


WRONG_ARGUMENTS = [
    {"mode": "rw"},
    {"mode": "z"},
    {"mode": ""},
    {"mode": "+"},
    {"mode": "rr"},
    {"mode": "rbt"},
    {"mode": 3},
    {"mode": "r", "buffering": 0},
    {"mode": "rb", "encoding": "utf-8"},
    {"mode": "rb", "errors": "strict"},
    {"mode": "rb", "newline": ""},
    {"mode": "r", "newline": "x"},
    {"mode": "r", "encoding": "no such encoding"},
    {"mode": "r", "encoding": "hex"},
    {"mode": "r", "closefd": False},
]


async def test_wrong_arguments_are_refused_as_by_the_built_in_open(files, loop, path):
    for arguments in WRONG_ARGUMENTS:
        with pytest.raises(Exception) as expected, open(path, **arguments):
            pass
        with pytest.raises(type(expected.value)) as refused:
            await files.open(path, **arguments)
        assert str(refused.value) == str(expected.value), arguments


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("missing", "r"),
        ("missing/below", "w"),
        ("lines", "x"),
        ("lines/below", "r"),
        ("folder", "r"),
        ("folder", "rb"),
        ("folder", "w"),
        ("loop", "r"),
        ("x" * 300, "w"),
        ("nul\0", "r"),
    ],
)
async def test_what_cannot_be_opened_raises_what_open_raises(
    files, loop, path, name, mode, tmp_path
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for kind in (str, os.fsencode, pathlib.Path):
        target = kind(str(tmp_path / name))
        with pytest.raises((OSError, ValueError)) as expected, open(target, mode):
            pass
        with pytest.raises(type(expected.value)) as refused:
            await files.open(target, mode)
        if isinstance(expected.value, OSError):
            assert refused.value.args == expected.value.args
            assert refused.value.filename == expected.value.filename
            assert str(refused.value) == str(expected.value)


async def test_a_bad_descriptor_is_refused(files, loop, path):
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError) as refused:
        await files.open(fd)
    assert refused.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="negative file descriptor"):
        await files.open(-1)


async def test_open_may_be_awaited_entered_and_made_a_task(files, loop, path):
    file = await files.open(path, "rb")
    assert not file.closed
    assert await asyncio.create_task(file.read(5)) == LINES[:5]
    await file.close()
    await file.close()
    assert file.closed
    if files is our_files:
        async with await files.open(path, "rb") as file:
            assert await file.read(5) == LINES[:5]
        assert file.closed
        file = await asyncio.create_task(files.open(path, "rb"))
        await file.close()


async def test_a_closed_file_refuses_everything(files, loop, path):
    file = await files.open(path, "r+b")
    await file.close()
    for call in (
        file.read,
        file.readline,
        file.tell,
        file.flush,
        functools.partial(file.write, b""),
        functools.partial(file.seek, 0),
        file.truncate,
    ):
        with pytest.raises(ValueError, match=r"closed file"):
            await call()
    with pytest.raises(ValueError, match="closed file"):
        file.fileno()


async def test_what_the_mode_excludes_is_unsupported(files, loop, path):
    async with files.open(path, "rb") as file:
        assert file.readable()
        assert not await file.writable()
        assert await file.seekable()
        assert not await file.isatty()
        with pytest.raises(io.UnsupportedOperation):
            await file.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            await file.truncate()
    async with files.open(path, "a") as file:
        assert not await file.readable()
        with pytest.raises(io.UnsupportedOperation):
            await file.read()


async def test_the_descriptor_of_somebody_else_stays_open_and_has_the_position(files, loop, path):
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 10, os.SEEK_SET)
    async with files.open(fd, "rb", buffering=0, closefd=False) as file:
        assert file.fileno() == fd
        assert await file.read(5) == LINES[10:15]
    assert os.read(fd, 5) == LINES[15:20]
    os.close(fd)


@differs("leaves the descriptor behind what was read ahead")
async def test_flush_gives_the_descriptor_the_position(files, loop, path):
    async with files.open(path, "r+b") as file:
        await file.readline()
        await file.write(b"new")
        await file.flush()
        end = LINES.index(b"\n") + 4
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == end == await file.tell()


async def test_an_opener_opens(files, loop, path):
    seen = []

    def opener(name, flags):
        seen.append((name, flags & os.O_ACCMODE))
        return os.open(name, flags)

    async with files.open(path, "rb", opener=opener) as file:
        assert await file.read() == LINES
        assert not os.get_inheritable(file.fileno())
    assert seen == [(str(path), os.O_RDONLY)] or seen == [(path, os.O_RDONLY)]
    with pytest.raises(ValueError, match="opener returned -1"):
        await files.open(path, opener=lambda name, flags: -1)


async def test_a_new_file_has_the_mode_that_the_umask_leaves(files, loop, tmp_path):
    before = os.umask(0o027)
    try:
        async with files.open(tmp_path / "new", "w"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "new").st_mode) == 0o640


# --- Sizes and kinds of files ---------------------------------------------------------------------


async def test_a_large_sparse_file(files, loop, tmp_path):
    far = 5 << 30
    async with files.open(tmp_path / "sparse", "w+b") as file:
        assert await file.truncate(far + 100) == far + 100
        assert await file.seek(far) == far
        await file.write(b"here")
        assert await file.seek(-100, os.SEEK_END) == far
        assert (await file.read(10)).startswith(b"here")
        await file.seek(far - 2)
        assert await file.read(6) == b"\0\0here"
    assert os.stat(tmp_path / "sparse").st_blocks < 1000


@differs("has neither")
async def test_data_and_holes_are_found(files, loop, tmp_path):
    async with files.open(tmp_path / "sparse", "w+b") as file:
        await file.truncate(1 << 22)
        await file.seek(1 << 21)
        await file.write(b"x" * 4096)
        assert await file.seek(0, os.SEEK_DATA) == 1 << 21
        assert await file.seek(1 << 21, os.SEEK_HOLE) == (1 << 21) + 4096


@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/cpuinfo", "/sys/kernel/mm/ksm/run"])
async def test_files_of_proc_have_no_size_and_content_all_the_same(files, loop, name):
    if not os.path.exists(name):
        pytest.skip(f"this kernel has no {name}")
    assert os.stat(name).st_size in (0, 4096)
    lines_expected = len(pathlib.Path(name).read_text().splitlines())
    async with files.open(name) as file:
        assert len((await file.read()).splitlines()) == lines_expected
    async with files.open(name, "rb", 0) as file:
        assert len((await file.read()).splitlines()) == lines_expected
    async with files.open(name) as file:
        assert len([line async for line in file]) == lines_expected


async def test_a_file_that_grows_is_read_on(files, loop, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    async with files.open(path, "r") as file:
        assert await file.readline() == "one\n"
        assert await file.readline() == ""
        with path.open("ab") as log:
            log.write(b"two\nthr")
        assert await file.readline() == "two\n"
        assert await file.read() == "thr"


async def test_appending_files_append(files, loop, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"start\n")
    async with files.open(path, "ab") as one, files.open(path, "a+b") as other:
        assert await one.tell() == 6
        await one.write(b"one\n")
        await one.flush()
        await other.write(b"two\n")
        await other.flush()
        await one.seek(0)
        await one.write(b"three\n")
        await one.flush()
        assert await one.tell() == 20
        await other.seek(0)
        assert await other.read() == path.read_bytes() == b"start\none\ntwo\nthree\n"


async def test_many_bytes_go_and_come_in_one_call(files, loop, tmp_path):
    data = random.Random(1).randbytes(20 << 20)
    async with files.open(tmp_path / "much", "w+b") as file:
        assert await file.write(memoryview(data).cast("I")) == len(data)
        await file.seek(1)
        assert await file.read(len(data)) == data[1:]
        await file.seek(0)
        into = bytearray(len(data) + 10)
        assert await file.readinto(into) == len(data)
        assert into[: len(data)] == data
    async with files.open(tmp_path / "much", "rb") as file:
        assert await file.read() == data


async def test_looking_ahead_and_reading_what_is_there(files, loop, path):
    async with files.open(path, "rb", 100) as file:
        ahead = await file.peek()
        assert LINES.startswith(ahead) and ahead
        assert await file.tell() == 0
        assert await file.read1(10) == LINES[:10]
        more = await file.read1(50_000)
        assert LINES[10:].startswith(more) and more
        assert await file.read1(0) == b""
    async with files.open(path, "rb", 0) as file:
        await file.seek(100)
        assert await file.readall() == LINES[100:]


@differs("has neither")
@pytest.mark.parametrize("mode", ["w", "wb"])
async def test_what_is_synchronised_has_been_written(files, loop, tmp_path, mode):
    text = "text" if mode == "w" else b"text"
    async with files.open(tmp_path / "new", mode) as file:
        await file.write(text)
        await file.fsync()
        assert (tmp_path / "new").read_text() == "text"
        await file.write(text)
        await file.fdatasync()
        assert (tmp_path / "new").read_text() == "texttext"
    async with files.open("/dev/null", mode) as file:
        with pytest.raises(OSError) as failed:
            await file.fsync()
        assert failed.value.errno == errno.EINVAL


@differs("blocks a thread")
async def test_a_pipe_brings_what_is_written(files, loop, fifo):
    reading, writing = await asyncio.gather(files.open(fifo, "rb"), files.open(fifo, "wb", 0))
    assert not await reading.seekable()
    for call in (reading.tell, functools.partial(reading.seek, 0)):
        with pytest.raises(io.UnsupportedOperation):
            await call()
    await writing.write(b"some")
    assert await reading.read1(100) == b"some"
    much = os.urandom(300_000)

    async def write():
        assert await writing.write(b"a line\n" + much) == 7 + len(much)
        await writing.close()

    task = asyncio.create_task(write())
    assert await reading.readline() == b"a line\n"
    assert await reading.read(1000) == much[:1000]
    assert await reading.read() == much[1000:]
    assert await reading.read() == b""
    await task
    await reading.close()


@differs("takes a thread for each")
async def test_reading_pipes_takes_no_thread_for_as_long_as_nothing_comes(files, loop, tmp_path):
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        os.mkfifo(path)
    ends = [os.open(path, os.O_RDWR) for path in paths]
    reading = [await files.open(path, "rb") for path in paths]
    tasks = [asyncio.create_task(file.readline()) for file in reading]
    await turns()
    assert await loop.run_in_executor(None, int) == 0  # the pool is not exhausted
    for end in ends:
        os.write(end, b"now\n")
    assert await asyncio.gather(*tasks) == [b"now\n"] * len(paths)
    for file in reading:
        await file.close()
    for end in ends:
        os.close(end)


@differs("raises otherwise")
async def test_a_writer_whose_reader_has_gone_hears_of_it(files, loop, fifo):
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    file = await files.open(fifo, "wb", 0)
    os.close(end)
    with pytest.raises(BrokenPipeError):
        await file.write(b"x")
    await file.close()


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "wb"])
async def test_no_space_is_an_error_of_flush_and_of_close(files, loop, mode):
    data = "x" * 100 if mode == "w" else b"x" * 100
    file = await files.open("/dev/full", mode)
    await file.write(data)
    with pytest.raises(OSError) as failed:
        await file.flush()
    assert failed.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as failed:
        await file.close()
    assert failed.value.errno == errno.ENOSPC
    assert file.closed


@pytest.fixture
def small_files_only():
    """No file of this process grows beyond 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@differs("writes less without a word, with buffering=0")
@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_short_write_is_completed_or_fails(
    files, loop, tmp_path, small_files_only, buffering
):
    path = tmp_path / "small"
    file = await files.open(path, "wb", buffering)
    await file.write(b"a" * 70_000)
    with pytest.raises(OSError) as failed:
        await file.write(b"b" * 70_000)
    assert failed.value.errno == errno.EFBIG
    assert await file.tell() == small_files_only
    assert path.read_bytes() == b"a" * 70_000 + b"b" * 30_000
    await file.close()


async def test_signals_interrupt_nothing(files, loop, path):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    sender = threading.Thread(
        target=lambda: [os.kill(os.getpid(), signal.SIGUSR1) for _ in range(300)]
    )
    sender.start()
    try:
        while sender.is_alive():
            async with files.open(path, "rb") as file:
                assert await file.read() == LINES
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert seen


# --- Order, and cancelling ------------------------------------------------------------------------


@differs("leaves the order to its threads")
async def test_operations_take_effect_in_the_order_in_which_they_begin(files, loop, path, tmp_path):
    async with files.open(tmp_path / "new", "w+b", 100) as file:
        writes = [asyncio.create_task(file.write(b"%04d\n" % n * (n % 50))) for n in range(200)]
        back = asyncio.create_task(file.seek(0))
        reads = [asyncio.create_task(file.read(37)) for _ in range(300)]
        assert await back == 0
        await asyncio.gather(*writes)
        expected = b"".join(b"%04d\n" % n * (n % 50) for n in range(200))
        assert b"".join(await asyncio.gather(*reads)) == expected[: 37 * 300]


@differs("has neither")
@pytest.mark.parametrize("buffering", [0, -1])
async def test_preads_and_pwrites_at_once(files, loop, tmp_path, buffering):
    block = 4096
    async with files.open(tmp_path / "blocks", "w+b", buffering) as file:
        await file.write(b"gathered")
        numbers = random.Random(2).sample(range(200), 200)
        assert await asyncio.gather(
            *(file.pwrite(bytes([n]) * block, n * block) for n in numbers)
        ) == [block] * len(numbers)
        for n, data in zip(
            numbers,
            await asyncio.gather(*(file.pread(block, n * block) for n in numbers)),
            strict=True,
        ):
            assert data == bytes([n]) * block
        assert await file.tell() == 8
        assert await file.pread(100, 200 * block - 50) == bytes([199]) * 50
        assert await file.pread(100, 200 * block) == b""
        for arguments in ((-1, 0), (1, -1)):
            with pytest.raises(ValueError, match="negative"):
                await file.pread(*arguments)


@differs("has no pread")
async def test_thousands_of_preads_at_once(files, loop, path):
    async with files.open(path, "rb") as file:
        places = range(6000)  # more than a ring has places for
        parts = await asyncio.gather(*(file.pread(10, place) for place in places))
    assert parts == [LINES[place : place + 10] for place in places]


@differs("has neither")
async def test_what_was_read_ahead_is_forgotten_after_a_pwrite(files, loop, path):
    async with files.open(path, "r+b") as file:
        await file.read(10)
        await file.pwrite(b"new", 11)
        assert await file.read(4) == LINES[10:11] + b"new"
        writing = asyncio.create_task(file.pwrite(b"newer", 14))
        await turns(1)
        writing.cancel()
        await asyncio.wait([writing])
        for _ in range(1000):  # it goes on by itself
            if path.read_bytes()[14:19] == b"newer":
                break
            await asyncio.sleep(0.001)
        assert await file.read(5) == b"newer"


@differs("moves the position, or not")
@pytest.mark.parametrize("buffering", [0, -1, 10])
@pytest.mark.parametrize("count", range(4))
async def test_a_cancelled_read_leaves_the_position(files, loop, path, count, buffering):
    async with files.open(path, "rb", buffering) as file:
        await file.read(7)
        for call in (
            functools.partial(file.read, 50_000),
            file.readline,
            functools.partial(file.readinto, bytearray(100_000)),
            file.read,
        ):
            task = asyncio.create_task(call())
            await turns(count)
            if task.done():
                await file.seek(7)
                continue
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert await file.tell() == 7
            assert await file.read(20) == LINES[7:27]
            await file.seek(7)


@differs("loses it")
async def test_a_cancelled_read_of_a_pipe_loses_nothing(files, loop, fifo):
    end = os.open(fifo, os.O_RDWR)
    file = await files.open(fifo, "rb")
    for number in range(3):
        task = asyncio.create_task(file.read(5))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        os.write(end, b"%d" % number)
    os.write(end, b"34")
    assert await file.read(5) == b"01234"
    os.close(end)
    await file.close()


@differs("writes it, or not")
@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
@pytest.mark.parametrize("count", range(4))
async def test_a_cancelled_write_counts_whole_or_not_at_all(files, loop, tmp_path, count, size):
    path = tmp_path / "new"
    async with files.open(path, "wb") as file:
        await file.write(b"a" * 100)
        task = asyncio.create_task(file.write(b"b" * size))
        await turns(count)
        task.cancel()
        await asyncio.wait([task])
        position = await file.tell()
        assert position in (100, 100 + size)
        await file.write(b"c")
    assert path.read_bytes() == b"a" * 100 + b"b" * (position - 100) + b"c"


@differs("keeps waiting in a thread")
async def test_a_turn_that_is_cancelled_goes_to_the_next(files, loop, fifo):
    end = os.open(fifo, os.O_RDWR)
    file = await files.open(fifo, "rb")
    tasks = [asyncio.create_task(file.read(1)) for _ in range(5)]
    await turns()
    tasks[0].cancel()
    tasks[2].cancel()
    await turns()
    os.write(end, b"xyz")
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [b for b in done if isinstance(b, bytes)] == [b"x", b"y", b"z"]
    os.close(end)
    await file.close()


@differs("keeps waiting in a thread")
async def test_a_cancelled_open_leaves_no_descriptor(files, loop, fifo, open_descriptors):
    before = open_descriptors()
    task = asyncio.create_task(files.open(fifo, "rb"))
    await turns()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    del task
    # Where a thread has been sent, it comes back only when there is another end.
    end = os.open(fifo, os.O_RDWR)
    await loop.run_in_executor(None, int)
    await loop.shutdown_default_executor()
    os.close(end)
    await turns()
    gc.collect()
    after = open_descriptors()
    assert [name for fd, name in after.items() if before.get(fd) != name and "fifo" in name] == []


# --- The end --------------------------------------------------------------------------------------


@differs("has no pread")
async def test_close_waits_for_what_is_under_way(files, loop, path):
    file = await files.open(path, "r+b")
    tasks = [asyncio.create_task(file.pread(100, n)) for n in range(30)]
    tasks += [asyncio.create_task(file.read(10)) for _ in range(3)]
    await turns(1)
    await file.close()
    assert file.closed
    parts = await asyncio.gather(*tasks)
    assert parts[:30] == [LINES[n : n + 100] for n in range(30)]
    assert b"".join(parts[30:]) == LINES[:30]


@differs("blocks")
async def test_close_ends_a_read_that_waits_at_a_pipe(files, loop, fifo):
    end = os.open(fifo, os.O_RDWR)
    file = await files.open(fifo, "rb")
    tasks = [asyncio.create_task(file.read(1)) for _ in range(3)]
    await turns()
    await file.close()
    for task in tasks:
        with pytest.raises(ValueError, match="closed"):
            await task
    os.close(end)


@differs("leaves the file to its thread")
@pytest.mark.parametrize("count", range(5))
async def test_a_close_that_is_cancelled_goes_on(files, loop, tmp_path, count):
    path = tmp_path / "new"
    file = await files.open(path, "wb")
    await file.write(b"x" * 10)
    task = asyncio.create_task(file.close())
    await turns(count)
    task.cancel()
    await asyncio.wait([task])
    for _ in range(1000):
        if task.cancelled() and count == 0:  # it never began
            await file.close()
        if file.closed and path.read_bytes() == b"x" * 10:
            break
        await asyncio.sleep(0.001)
    await file.close()
    assert path.read_bytes() == b"x" * 10


@differs("has none")
@pytest.mark.parametrize("mode", ["w", "wb"])
async def test_a_forgotten_file_warns_closes_and_has_written(files, loop, tmp_path, mode):
    path = tmp_path / "forgotten"
    file = await files.open(path, mode)
    await file.write("text" if mode == "w" else b"text")
    fd = file.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed file .*forgotten.*mode='{mode}'") as seen:
        del file
        gc.collect()
    assert len(seen) == 1
    assert path.read_bytes() == b"text"
    with pytest.raises(OSError):
        os.fstat(fd)


@differs("blocks")
def test_a_loop_may_be_closed_with_files_open_and_operations_under_way(
    files, new_loop, fifo, path, open_descriptors
):
    before = open_descriptors()
    loop = new_loop()
    end = os.open(fifo, os.O_RDWR)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")

        async def main():
            pipe = await files.open(fifo, "rb")
            file = await files.open(path, "r+b")
            tasks = [asyncio.create_task(pipe.read(10))]
            tasks += [asyncio.create_task(file.pread(4096, n)) for n in range(10)]
            await turns(1)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return pipe, file

        pipe, file = loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        with pytest.raises(RuntimeError, match="closed"):
            file.read().send(None)
        del pipe, file
        gc.collect()
    os.close(end)
    after = open_descriptors()
    assert {fd: name for fd, name in after.items() if before.get(fd) != name} == {}


@differs("runs on any loop")
def test_a_file_belongs_to_the_loop_that_opened_it(files, new_loop, path):
    one, other = new_loop(), new_loop()

    async def begin():
        return await files.open(path, "rb")

    file = one.run_until_complete(begin())
    with pytest.raises(RuntimeError):
        other.run_until_complete(file.read())
    one.run_until_complete(file.close())


@pytest.mark.skipif(bool(io_uring_is_missing()), reason="no io_uring here")
def test_a_loop_that_is_dropped_with_operations_under_way_goes(fifo):
    loop = pyreactor.Loop(backend="io_uring")
    gone = weakref.ref(loop)
    end = os.open(fifo, os.O_RDWR)

    async def main():
        file = await our_files.open(fifo, "rb")
        task = asyncio.create_task(file.read(10))
        await turns(1)
        task.cancel()
        await asyncio.wait([task])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a recorded one would keep the file
        loop.run_until_complete(main())
        del loop
        gc.collect()
        gc.collect()
    assert gone() is None
    os.close(end)


PROGRAM = """
import asyncio, os, sys
import pyreactor
from pyreactor import files

async def main(folder):
    os.access("/begin", os.F_OK)
    path = os.path.join(folder, "file")
    async with files.open(path, "w+b") as file:
        await file.write(b"x" * 100_000)
        await file.fsync()
        await file.seek(0)
        assert len(await file.read()) == 100_000
        await asyncio.gather(*(file.pread(4096, n) for n in range(64)))
        await file.pwrite(b"y", 5)
        await file.fdatasync()
    async with files.open(path) as file:
        async for line in file:
            pass
    await files.os.mkdir(path + ".d")
    await files.os.rename(path, path + ".d/other")
    assert (await files.os.stat(path + ".d/other")).st_size == 100_000
    await files.os.unlink(path + ".d/other")
    await files.os.rmdir(path + ".d")
    os.access("/end", os.F_OK)

files.os  # imported before the beginning
pyreactor.Loop(backend="io_uring").run_until_complete(main(sys.argv[1]))
"""


@pytest.mark.skipif(bool(io_uring_is_missing()), reason="no io_uring here")
def test_on_the_ring_neither_a_thread_nor_another_call_does_it(tmp_path):
    if not shutil.which("strace"):
        assert os.environ.get("CI") != "true", "install strace: make deps"
        pytest.skip("install strace: make deps")
    record = tmp_path / "strace"
    command = ["strace", "-f", "-o", record, sys.executable, "-c", PROGRAM, tmp_path]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"PYTHONPATH": ROOT})
    lines = record.read_text().splitlines()
    begin, end = (n for n, line in enumerate(lines) if '"/begin"' in line or '"/end"' in line)
    calls = [re.match(r"\d+\s+(\w+)\(", line) for line in lines[begin + 1 : end]]
    names = collections.Counter(call[1] for call in calls if call)
    assert names["io_uring_enter"] > 10
    memory = {"brk", "mmap", "munmap", "mremap", "madvise"}
    # lseek() says whether a file has positions, and sets the descriptor's own: no I/O.  asyncio
    # of Python 3.11 asks for the process's number with each get_running_loop(), and interpreters
    # without the GIL yield.
    harmless = {"lseek", "getpid", "sched_yield"}
    assert set(names) - memory - harmless == {"io_uring_enter"}, names
    assert len({line.split()[0] for line in lines}) == 1  # threads


# --- The module os --------------------------------------------------------------------------------


@pytest.fixture
def aos(files):
    return aiofiles.os if files is aiofiles else our_files.os


async def test_stat_says_what_os_stat_says(aos, loop, path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    fd = os.open(tmp_path, os.O_RDONLY)
    for arguments, options in (
        ((path,), {}),
        ((os.fsencode(path),), {}),
        ((link,), {}),
        ((link,), {"follow_symlinks": False}),
        (("lines",), {"dir_fd": fd}),
        ((tmp_path,), {}),
        (("/dev/null",), {}),
        ((fd,), {}),
    ):
        found = await aos.stat(*arguments, **options)
        expected = os.stat(*arguments, **options)
        assert type(found) is os.stat_result
        assert found == expected
        for name in dir(expected):
            if name.startswith("st_"):
                assert getattr(found, name) == getattr(expected, name), name
    os.close(fd)


FAILING = [
    ("stat", ("missing",)),
    ("stat", ("lines/below",)),
    ("rename", ("missing", "other")),
    ("rename", ("lines", "folder")),
    ("replace", ("missing", "other")),
    ("unlink", ("missing",)),
    ("remove", ("folder",)),
    ("rmdir", ("full",)),
    ("rmdir", ("lines",)),
    ("mkdir", ("lines",)),
    ("mkdir", ("missing/below",)),
    ("makedirs", ("lines",)),
    ("makedirs", ("lines/below",)),
    ("link", ("missing", "other")),
    ("symlink", ("lines", "folder")),
    ("readlink", ("lines",)),
    ("listdir", ("missing",)),
    ("scandir", ("lines",)),
    ("stat", ("nul\0",)),
    ("unlink", ("nul\0",)),
]


@pytest.mark.parametrize(("name", "arguments"), FAILING)
async def test_errors_are_those_of_the_module_os(aos, loop, path, tmp_path, name, arguments):
    (tmp_path / "folder").mkdir()
    (tmp_path / "full" / "inside").mkdir(parents=True)
    paths = [str(tmp_path / argument) for argument in arguments]
    with pytest.raises((OSError, ValueError)) as expected:
        getattr(os, name)(*paths)
    with pytest.raises(type(expected.value)) as failed:
        await getattr(aos, name)(*paths)
    if isinstance(expected.value, OSError):
        for attribute in ("args", "errno", "filename", "filename2"):
            assert getattr(failed.value, attribute) == getattr(expected.value, attribute)


async def test_names_are_made_changed_and_removed(aos, loop, tmp_path):
    os.umask(os.umask(0))
    await aos.mkdir(tmp_path / "a", 0o700)
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o700
    await aos.makedirs(tmp_path / "a" / "b" / "c")
    await aos.makedirs(tmp_path / "a" / "b" / "c", exist_ok=True)
    with pytest.raises(FileExistsError):
        await aos.makedirs(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "one").write_text("one")
    await aos.rename(tmp_path / "a" / "one", tmp_path / "two")
    await aos.link(tmp_path / "two", tmp_path / "three")
    await aos.symlink("two", tmp_path / "link")
    assert await aos.readlink(tmp_path / "link") == "two"
    assert sorted(await aos.listdir(tmp_path)) == ["a", "link", "three", "two"]
    with await aos.scandir(tmp_path) as entries:
        assert sorted((entry.name, entry.is_dir()) for entry in entries) == [
            ("a", True),
            ("link", False),
            ("three", False),
            ("two", False),
        ]
    await aos.replace(tmp_path / "two", tmp_path / "three")  # one file: nothing happens
    await aos.unlink(tmp_path / "two")
    await aos.remove(tmp_path / "link")
    await aos.renames(tmp_path / "three", tmp_path / "d" / "e" / "four")
    assert (tmp_path / "d" / "e" / "four").read_text() == "one"
    await aos.removedirs(tmp_path / "a" / "b" / "c")
    assert await aos.listdir(tmp_path) == ["d"]
    await aos.unlink(tmp_path / "d" / "e" / "four")
    await aos.rmdir(tmp_path / "d" / "e")
    assert await aos.listdir(tmp_path / "d") == []
    fd = os.open(tmp_path, os.O_RDONLY)
    await aos.mkdir("by-descriptor", dir_fd=fd)
    await aos.rename("by-descriptor", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
    await aos.rmdir("renamed", dir_fd=fd)
    os.close(fd)
    assert await aos.access(tmp_path, os.R_OK)
    assert await aos.getcwd() == os.getcwd()
    assert (await aos.statvfs(tmp_path)).f_bsize


async def test_questions_about_paths(aos, loop, path, tmp_path):
    broken = tmp_path / "broken"
    broken.symlink_to("nowhere")
    for name in ("exists", "isfile", "isdir", "islink", "ismount", "abspath"):
        for target in (path, tmp_path, broken, tmp_path / "missing", path / "below", "/", "."):
            expected = getattr(os.path, name)(target)
            assert await getattr(aos.path, name)(target) == expected, (name, target)
    assert not await aos.path.exists("nul\0")
    for name in ("getsize", "getmtime", "getatime", "getctime"):
        assert await getattr(aos.path, name)(path) == getattr(os.path, name)(path)
        with pytest.raises(FileNotFoundError):
            await getattr(aos.path, name)(broken)
    assert await aos.path.samefile(path, tmp_path / "." / "lines")
    assert not await aos.path.samefile(path, tmp_path)
    with path.open() as one, path.open() as other:
        assert await aos.path.sameopenfile(one.fileno(), other.fileno())


# --- The module tempfile --------------------------------------------------------------------------


@pytest.fixture
def atempfile(files):
    return aiofiles.tempfile if files is aiofiles else our_files.tempfile


async def test_temporary_files_and_folders_go_by_themselves(atempfile, loop, tmp_path):
    async with atempfile.TemporaryDirectory(dir=tmp_path, prefix="pre") as folder:
        assert os.path.isdir(folder) and os.path.basename(folder).startswith("pre")
        async with atempfile.NamedTemporaryFile("w+", dir=folder, suffix=".txt") as file:
            assert file.name.endswith(".txt")
            await file.write("text")
            await file.seek(0)
            assert await file.read() == "text"
            assert os.path.exists(file.name)
        assert os.listdir(folder) == []
        async with atempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            await file.write(b"kept")
        assert pathlib.Path(file.name).read_bytes() == b"kept"
        async with atempfile.TemporaryFile(dir=folder) as file:
            await file.write(b"bytes")
            await file.seek(0)
            assert await file.read() == b"bytes"
            assert len(os.listdir(folder)) == 1
    assert os.listdir(tmp_path) == []


# --- The shape of aiofiles ------------------------------------------------------------------------


def test_switching_is_an_import():
    def parameters(function):
        return list(inspect.signature(function).parameters)

    assert parameters(our_files.open) == parameters(aiofiles.open)
    missing = set(aiofiles.os.__all__) - set(our_files.os.__all__)
    assert not missing
    assert not {name for name in aiofiles.os.__all__ if not hasattr(our_files.os, name)}
    assert not {name for name in aiofiles.ospath.__all__ if not hasattr(our_files.os.path, name)}
    absent = {name for name in aiofiles.tempfile.__all__ if not hasattr(our_files.tempfile, name)}
    assert absent == {"SpooledTemporaryFile"}
    absent = {name for name in aiofiles.__all__ if not hasattr(our_files, name)}
    assert absent == {
        f"std{name}{kind}" for name in ("in", "out", "err") for kind in ("", "_bytes")
    }
    with pytest.raises(AttributeError, match="connect_read_pipe"):
        _ = our_files.stdin


@pytest.mark.parametrize(("mode", "buffering"), [("r", -1), ("rb", -1), ("r+b", -1), ("rb", 0)])
async def test_files_have_the_methods_of_aiofiles(loop, path, mode, buffering):
    async with (
        aiofiles.open(path, mode, buffering) as theirs,
        our_files.open(path, mode, buffering) as ours,
    ):
        names = {name for name in dir(theirs) if not name.startswith("_")}
        assert names - set(dir(ours)) <= {"detach", "raw"}
        for name in ("read", "readline", "write", "seek", "tell", "close", "flush", "truncate"):
            assert inspect.iscoroutinefunction(getattr(ours, name)), name


async def test_an_executor_that_is_given_does_all(loop, path):
    names = set()

    class Executor(concurrent.futures.ThreadPoolExecutor):
        def submit(self, function, /, *args, **kwargs):
            names.add(threading.current_thread().name)
            return super().submit(function, *args, **kwargs)

    with Executor(1) as executor:
        assert isinstance(calls_on(loop, executor), ThreadCalls)
        async with our_files.open(path, "rb", executor=executor) as file:
            assert await file.read() == LINES
    assert names
