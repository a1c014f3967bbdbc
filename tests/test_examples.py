"""The programs in examples/ run, and end as they say."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def start_example():
    processes = []

    def start(name, *arguments):
        process = subprocess.Popen(
            [sys.executable, ROOT / "examples" / name, *arguments],
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def address(line):
    backends = r"\((?:epoll|io_uring)\)"
    return re.search(rf"Serving on (http://127\.0\.0\.1:(\d+)/) with pyreactor\S+ {backends}", line)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_web_serves_pages_and_ends_cleanly(start_example, signum):
    process = start_example("web.py", "--port", "0")
    url = address(process.stdout.readline())[1]
    with urllib.request.urlopen(url, timeout=10) as response:
        assert b"Served by pyreactor" in response.read()
    with urllib.request.urlopen(f"{url}status", timeout=10) as response:
        assert b'"backend"' in response.read()
    process.send_signal(signum)
    assert process.communicate(timeout=10) == ("Stopped.\n", "")
    assert process.returncode == 0


def test_web_takes_another_port_if_its_own_is_in_use(start_example):
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        process = start_example("web.py", "--port", str(port))
        assert process.stdout.readline() == f"Port {port} is in use; taking a free one.\n"
        assert address(process.stdout.readline())[2] != str(port)


@pytest.mark.time_limit(120)
def test_jobs_are_done_by_processes_that_may_be_killed(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, ROOT / "examples" / "jobs.py", "--port=0", "--workers=2"),
            f"--database={tmp_path / 'jobs.db'}",
        ],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(
            re.search(r"Jobs on 127\.0\.0\.1:(\d+), 2 processes", process.stdout.readline())[1]
        )

        def client():
            return socket.create_connection(("127.0.0.1", port), timeout=30)

        with client() as one, client() as two, one.makefile() as first, two.makefile() as second:
            one.sendall(b"factor 600851475143\nfactor x\nnothing 1\n")
            assert first.readline() == "71 839 1471 6857\n"
            assert first.readline() == "error: factor wants a whole number\n"
            assert first.readline().startswith("error: there are")
            two.sendall(b"slow 0\n")
            pid = int(re.match(r"process (\d+) has slept", second.readline())[1])
            assert pid != process.pid
            os.kill(pid, signal.SIGKILL)
            for sock, file in ((one, first), (two, second)):
                sock.sendall(b"factor 12\n")
                assert file.readline() == "2 2 3\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("Stopped.\n", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("dispatcher", ["leader-followers", "half-sync-half-async"])
def test_echo_answers_lines_and_ends_cleanly(start_example, dispatcher):
    process = start_example("echo.py", "--port", "0", "--dispatcher", dispatcher)
    port = int(process.stdout.readline().split()[-1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"hello\nworld\n")
        lines = client.makefile("rb")
        assert [lines.readline(), lines.readline()] == [b"hello\n", b"world\n"]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("Stopped.\n", "")
    assert process.returncode == 0
