"""One figure of the benchmark of files: a workload, done by one library on one loop.

    python benchmarks/files/measure.py WORKLOAD WHO FOLDER

Prints JSON: CPU µs of the whole process and its threads per operation, those of the kernel's that
work for it included, and operations per second.  compare_files.py calls it, in a fresh process each
time.
"""

import asyncio
import json
import os
import pathlib
import random
import sys
import time

import aiofiles

import pyreactor
from pyreactor import files

BLOCK = 4096
BLOCKS = (1 << 30) // BLOCK
IN_FLIGHT = 64
LINES = 200_000
SMALL_FILES = 1000

# Who does it: the library, and the loop it runs on.
CONTESTANTS = {
    "os": ("os", None),
    "pyreactor.files, io_uring": ("files", lambda: pyreactor.Loop(backend="io_uring")),
    "pyreactor.files, epoll": ("files", lambda: pyreactor.Loop(backend="epoll")),
    "pyreactor.files, asyncio": ("files", asyncio.SelectorEventLoop),
    "aiofiles, asyncio": ("aiofiles", asyncio.SelectorEventLoop),
}


def prepare(folder):
    """Make the files, of data that is really on the disk."""
    with (folder / "large").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(BLOCK * BLOCKS // 64))
        os.fsync(file.fileno())
    with (folder / "lines").open("w") as file:
        file.writelines(f"{number}: {'x' * (number % 80)}\n" for number in range(LINES))
    (folder / "small").mkdir()
    for number in range(SMALL_FILES):
        (folder / "small" / str(number)).write_bytes(os.urandom(1024))


class Watch:
    """What the work between begin() and end() has cost."""

    def begin(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self, operations):
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        return {"cpu_us": cpu / operations * 1e6, "per_second": operations / wall}


def positions(count):
    dice = random.Random(7)
    return [dice.randrange(BLOCKS) * BLOCK for _ in range(count)]


def make_cold(path):
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_warm(path):
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


# Random reads of 4 KiB, 64 in flight


def random_reads(folder, library, cold, count):
    path = folder / "large"
    places = positions(count + count // 10)
    make_cold(path) if cold else make_warm(path)
    if library == "os":
        return random_reads_in_a_row(path, places, count)
    return random_reads_at_once(path, library, places, count)


def random_reads_in_a_row(path, places, count):
    watch = Watch()
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for number, place in enumerate(places):
        if number == len(places) - count:
            watch.begin()
        assert len(os.pread(fd, BLOCK, place)) == BLOCK
    os.close(fd)
    return watch.end(count)


async def random_reads_at_once(path, library, places, count):
    watch = Watch()
    warmup = len(places) - count
    todo = iter(enumerate(places))

    async def read_ours(file):
        for number, place in todo:
            if number == warmup:
                watch.begin()
            assert len(await file.pread(BLOCK, place)) == BLOCK

    async def read_theirs(file):  # aiofiles has no pread()
        for number, place in todo:
            if number == warmup:
                watch.begin()
            await file.seek(place)
            assert len(await file.read(BLOCK)) == BLOCK

    if library == "files":
        async with files.open(path, "rb", 0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            await asyncio.gather(*(read_ours(file) for _ in range(IN_FLIGHT)))
            return watch.end(count)
    opened = [await aiofiles.open(path, "rb", 0) for _ in range(IN_FLIGHT)]
    for file in opened:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    await asyncio.gather(*(read_theirs(file) for file in opened))
    result = watch.end(count)
    for file in opened:
        await file.close()
    return result


# Lines of a text


def lines(folder, library):
    path = folder / "lines"
    make_warm(path)
    if library == "os":
        watch = Watch()
        watch.begin()
        with path.open() as file:
            assert sum(1 for _ in file) == LINES
        return watch.end(LINES)
    return lines_awaited(path, files if library == "files" else aiofiles)


async def lines_awaited(path, library):
    watch = Watch()
    watch.begin()
    count = 0
    async with library.open(path) as file:
        async for _ in file:
            count += 1
    assert count == LINES
    return watch.end(LINES)


# Small files: open, read, close


def small_files(folder, library):
    paths = [folder / "small" / str(number) for number in range(SMALL_FILES)] * 5
    if library == "os":
        watch = Watch()
        watch.begin()
        for path in paths:
            with path.open("rb") as file:
                file.read()
        return watch.end(len(paths))
    return small_files_awaited(paths, files if library == "files" else aiofiles)


async def small_files_awaited(paths, library):
    todo = iter(paths)

    async def read_some():
        for path in todo:
            async with library.open(path, "rb") as file:
                assert len(await file.read()) == 1024

    watch = Watch()
    watch.begin()
    await asyncio.gather(*(read_some() for _ in range(16)))
    return watch.end(len(paths))


WORKLOADS = {
    "random_reads_cached": lambda *where: random_reads(*where, cold=False, count=40_000),
    "random_reads_from_disk": lambda *where: random_reads(*where, cold=True, count=15_000),
    "lines": lines,
    "small_files": small_files,
}


def main():
    workload, who, folder = sys.argv[1:]
    library, new_loop = CONTESTANTS[who]
    result = WORKLOADS[workload](pathlib.Path(folder), library)
    if new_loop is not None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            result = runner.run(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
