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
def start_web():
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, ROOT / "examples" / "web.py", *arguments],
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
def test_web_serves_pages_and_ends_cleanly(start_web, signum):
    process = start_web("--port", "0")
    url = address(process.stdout.readline())[1]
    with urllib.request.urlopen(url, timeout=10) as response:
        assert b"Served by pyreactor" in response.read()
    with urllib.request.urlopen(f"{url}status", timeout=10) as response:
        assert b'"backend"' in response.read()
    process.send_signal(signum)
    assert process.communicate(timeout=10) == ("Stopped.\n", "")
    assert process.returncode == 0


def test_web_takes_another_port_if_its_own_is_in_use(start_web):
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        process = start_web("--port", str(port))
        assert process.stdout.readline() == f"Port {port} is in use; taking a free one.\n"
        assert address(process.stdout.readline())[2] != str(port)
