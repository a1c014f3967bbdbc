"""Which backend a loop gets, and what is said where it cannot be had."""

import errno
import os
import subprocess
import sys

import pytest

import pyreactor
from pyreactor import backend

# Runs the code given as argument where a seccomp filter lets io_uring_setup(2) fail.
WITHOUT_IO_URING = """
import ctypes, struct, sys
number, error = 425, int(sys.argv[1])
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error),
        (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *line) for line in code)
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0
exec(sys.argv[2])
"""


def run_without_io_uring(error, code):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_IO_URING, str(error), code],
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
