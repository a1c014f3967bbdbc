"""Which backend a loop gets, and what is said where it cannot be had."""

import errno
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

import pyreactor
from pyreactor import backend

IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427

# Runs the code given as argument where a seccomp filter lets one system call fail.
WITHOUT_IO_URING = """
import ctypes, struct, sys
number, error = int(sys.argv[1]), int(sys.argv[2])
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error),
        (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0
exec(sys.argv[3])
"""


def run_without_io_uring(error, code, call=IO_URING_SETUP):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_IO_URING, str(call), str(error), code],
        env=dict(os.environ, PYREACTOR_BACKEND=""),
        capture_output=True,
        text=True,
    )


def has_io_uring():
    try:
        pyreactor.Loop(backend="io_uring").close()
    except OSError:
        return False
    return True


def test_auto_always_gives_a_loop():
    loop = pyreactor.Loop(backend="auto")
    assert loop.backend in ("epoll", "io_uring")
    loop.close()


@pytest.mark.parametrize("name", ["epoll", "io_uring"])
def test_a_loop_has_the_backend_that_was_asked_for(name):
    if name == "io_uring" and not has_io_uring():
        pytest.skip("no io_uring here; `python -m pyreactor --info` tells why")
    loop = pyreactor.Loop(backend=name)
    assert loop.backend == name
    loop.close()


def test_an_unknown_backend_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="choose 'auto', 'epoll' or 'io_uring'"):
        pyreactor.Loop(backend="kqueue")


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.EINVAL])
def test_auto_falls_back_where_the_kernel_refuses_a_ring(error):
    process = run_without_io_uring(
        error, "import pyreactor; loop = pyreactor.Loop(); print(loop.backend); loop.close()"
    )
    assert (process.stdout, process.stderr) == ("epoll\n", "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EPERM, "seccomp filter"),
        (errno.ENOSYS, "the kernel has no io_uring"),
        (errno.ENOMEM, "ulimit -l"),
        (errno.EINVAL, "older than 6.1"),
    ],
)
def test_an_explicit_io_uring_that_is_refused_says_why_and_what_to_do(error, reason):
    process = run_without_io_uring(
        error,
        "import pyreactor\n"
        "try: pyreactor.Loop(backend='io_uring')\n"
        "except OSError as refusal: print(refusal.errno, refusal.strerror)",
    )
    number, _, text = process.stdout.partition(" ")
    assert (int(number), process.stderr) == (error, "")
    assert reason in text
    assert "'auto' or 'epoll'" in text


@pytest.mark.parametrize("call", [IO_URING_ENTER, IO_URING_REGISTER])
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_a_ring_that_can_be_made_but_not_used_is_refused(call, error):
    if not has_io_uring():
        pytest.skip("no io_uring here; `python -m pyreactor --info` tells why")
    process = run_without_io_uring(
        error,
        "import pyreactor\n"
        "loop = pyreactor.Loop(backend='auto')\n"
        "loop.run_until_complete(__import__('asyncio').sleep(0))\n"
        "loop.close()\n"
        "try: pyreactor.Loop(backend='io_uring')\n"
        "except OSError as refusal: print(refusal.errno)",
        call,
    )
    assert (process.stdout, process.stderr) == (f"{error}\n", "")


@pytest.mark.parametrize("setting", ["0\n", None])
def test_seccomp_is_blamed_where_the_sysctl_allows_io_uring(monkeypatch, tmp_path, setting):
    path = tmp_path / "io_uring_disabled"
    if setting is not None:
        path.write_text(setting)
    monkeypatch.setattr(backend, "IO_URING_DISABLED", str(path))
    assert "seccomp" in backend.io_uring_refusal(errno.EPERM)


def test_the_sysctl_is_blamed_where_it_forbids_io_uring(monkeypatch, tmp_path):
    path = tmp_path / "io_uring_disabled"
    path.write_text("2\n")
    monkeypatch.setattr(backend, "IO_URING_DISABLED", str(path))
    assert "kernel.io_uring_disabled=2" in backend.io_uring_refusal(errno.EPERM)


# Small and large messages, a burst of them, files, and an end that the peer sees.
EVERYTHING = """
import asyncio, os, tempfile, pyreactor
from pyreactor import files

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for size in (1, 100, 5000, 300_000, 10, 10):
        writer.writelines([b"a" * size, b"b" * size])
        assert await reader.readexactly(2 * size) == b"a" * size + b"b" * size
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    server.close()
    with tempfile.TemporaryDirectory() as folder:
        async with files.open(os.path.join(folder, "file"), "wb") as file:
            await file.write(b"content")
        async with files.open(os.path.join(folder, "file"), "rb") as file:
            assert await file.read() == b"content"

with asyncio.Runner(loop_factory=lambda: pyreactor.Loop(backend="io_uring")) as runner:
    runner.run(main())
"""

OPERATIONS = (
    "accept,async_cancel,close,connect,fsync,ftruncate,mkdirat,openat,poll_add,read,recv,renameat,"
    "send,sendmsg,statx,unlinkat,write"
)
NEEDED = ("async_cancel", "poll_add")


def run_without(operations, code):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYREACTOR_URING_WITHOUT=operations),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "operations",
    [
        "",
        *(name for name in OPERATIONS.split(",") if name not in NEEDED),
        ",".join(name for name in OPERATIONS.split(",") if name not in NEEDED),
    ],
)
def test_everything_works_without_any_operation_that_something_replaces(operations):
    if not has_io_uring():
        pytest.skip("no io_uring here; `python -m pyreactor --info` tells why")
    process = run_without(operations, EVERYTHING)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("operations", [*NEEDED, "send,nothing", "SEND", " send"])
def test_what_nothing_replaces_and_what_is_unknown_is_refused_by_name(operations):
    if not has_io_uring():
        pytest.skip("no io_uring here; `python -m pyreactor --info` tells why")
    process = run_without(operations, "import pyreactor; pyreactor.Loop(backend='io_uring')")
    assert process.returncode == 1
    assert f"PYREACTOR_URING_WITHOUT={operations}" in process.stderr.splitlines()[-1]


ECHOES = 200

# Serves until its client, another process, has asked ECHOES times between two marks.
ECHO_SERVER = f"""
import asyncio, pyreactor, sys

CLIENT = '''
import os, socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
for number in range(10 + {ECHOES}):
    if number == 10:
        os.access("/begin", 0)
    sock.sendall(b"x" * 64)
    assert len(sock.recv(100)) == 64
os.access("/end", 0)
'''

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, str(port))
    assert await client.wait() == 0
    server.close()

with asyncio.Runner(loop_factory=pyreactor.Loop) as runner:
    runner.run(main())
"""


def system_calls_of_echoes(backend_name, folder):
    """The names of the server's system calls, one for each."""
    strace = shutil.which("strace")
    if strace is None:
        message = "no witness of system calls (Debian package: strace)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    record = folder / backend_name
    subprocess.run(
        [strace, "-f", "-o", record, sys.executable, "-c", ECHO_SERVER],
        env=dict(os.environ, PYREACTOR_BACKEND=backend_name),
        check=True,
    )
    lines = record.read_text().splitlines()
    server = lines[0].split()[0]
    (begin,) = (number for number, line in enumerate(lines) if '"/begin"' in line)
    (end,) = (number for number, line in enumerate(lines) if '"/end"' in line)
    calls = (line.split(maxsplit=1) for line in lines[begin:end])
    return [
        call.partition("(")[0]
        for process, call in calls
        if process == server and not call.startswith(("<...", "---", "+++"))
    ]


@pytest.mark.time_limit(60)
def test_the_kernel_receives_and_sends_by_itself_in_fewer_system_calls(tmp_path):
    if not has_io_uring():
        pytest.skip("no io_uring here; `python -m pyreactor --info` tells why")
    by_io_uring = system_calls_of_echoes("io_uring", tmp_path)
    assert set(by_io_uring) == {"io_uring_enter"}
    by_epoll = system_calls_of_echoes("epoll", tmp_path)
    assert set(by_epoll) == {"epoll_wait", "recvfrom", "sendto"}
    assert len(by_io_uring) < len(by_epoll)
    if [int(part) for part in re.findall(r"\d+", platform.release())[:2]] >= [6, 15]:
        entries = re.findall(r"io_uring_enter\(.*", (tmp_path / "io_uring").read_text())
        not_for_a_disk = re.compile(r"NO_IOWAIT|\b0x80\b")
        assert [entry for entry in entries if not not_for_a_disk.search(entry)] == []
    print(f"of {ECHOES} echoes: io_uring {len(by_io_uring)}, epoll {len(by_epoll)}")
