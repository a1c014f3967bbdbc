"""The programs in examples/ run, and end as they say."""

import http.client
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
PATIENCE = 15


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


# Programs that print an address in their first line and end by a signal


@pytest.fixture
def start_listening(start_example):
    def start(name, *arguments):
        """Start an example; return its process and its port."""
        process = start_example(name, "--port", "0", *arguments)
        first = process.stdout.readline()
        assert first, process.communicate()[1]
        return process, int(re.search(r"127\.0\.0\.1:(\d+)", first)[1])

    return start


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def end(process, last_line):
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE) == (last_line, "")
    assert process.returncode == 0


def test_chat_members_hear_each_other(start_listening):
    process, port = start_listening("chat.py")
    with connect(port) as ann, connect(port) as bob:
        with ann.makefile("rw") as to_ann, bob.makefile("rw") as to_bob:

            def say(member, text):
                member.write(text + "\n")
                member.flush()

            assert to_ann.readline() == to_bob.readline() == "Welcome. What is your name?\n"
            say(to_ann, "Ann")
            assert to_ann.readline() == "Hello Ann. Here is nobody else.\n"
            say(to_bob, "Bob")
            assert to_bob.readline() == "Hello Bob. Here is Ann.\n"
            assert to_ann.readline() == "Bob comes in.\n"
            say(to_bob, "hi")
            assert to_ann.readline() == "Bob: hi\n"
            say(to_bob, "x" * 501)
            assert to_bob.readline() == "That line is too long. Good bye.\n"
            assert to_bob.readline() == ""
            assert to_ann.readline() == "Bob leaves.\n"
            process.send_signal(signal.SIGTERM)
            assert to_ann.readline() == "The room closes.\n"
            assert to_ann.readline() == ""
    assert process.communicate(timeout=PATIENCE) == ("Closed.\n", "")


@pytest.fixture
def served_folder(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>Hello</h1>")
    (folder / "large").write_bytes(os.urandom(3 << 20))
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    return folder


def test_static_files_are_served_and_nothing_else(start_listening, served_folder):
    process, port = start_listening("static_files.py", str(served_folder))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def fetch(target, method="GET"):
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read()

    large = (served_folder / "large").read_bytes()
    assert fetch("/") == (200, b"<h1>Hello</h1>")
    assert fetch("/large?x") == (200, large)
    assert fetch("/large", "HEAD") == (200, b"")
    assert fetch("/%69ndex.html") == (200, b"<h1>Hello</h1>")
    assert fetch("/", "POST")[0] == 405
    for nothing in (
        "/none",
        "/../secret",
        "/%2e%2e/secret",
        "/link",
        "/pipe",
        "//etc/passwd",
        "/%00",
    ):
        assert fetch(nothing)[0] == 404, nothing
    connection.close()
    with connect(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\nHost: a\n\n")
        received = b""
        while more := sock.recv(65536):
            received += more
        assert received.count(b"200 OK") == received.count(b"400 Bad Request") == 1
    end(process, "Stopped.\n")


def test_tcp_proxy_joins_clients_with_its_target(start_listening, served_folder):
    server, server_port = start_listening("static_files.py", str(served_folder))
    proxy, port = start_listening("tcp_proxy.py", f"localhost:{server_port}")
    url = f"http://127.0.0.1:{port}/large"
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        assert response.read() == (served_folder / "large").read_bytes()
    idle = connect(port)
    end(server, "Stopped.\n")
    with connect(port) as refused:  # nobody is there any more
        assert refused.recv(10) == b""
    end(proxy, "Stopped.\n")
    idle.close()


def test_mesh_goes_on_when_one_is_killed():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "mesh.py"],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count(" got hello\n") == 20
    assert done.stdout.count("'accepted': 4, 'initiated': 4") == 5
    assert done.stdout.count(" got still there?\n") == 12


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("logic", ["thread", "process"])
def test_visits_are_counted_by_threads_and_processes(start_example, tmp_path, logic):
    process = start_example("visits.py", "--port=0", f"--logic={logic}", f"--folder={tmp_path}")
    port = int(re.search(r"port (\d+)", process.stdout.readline())[1])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"ann\nbob\nann\n")
        lines = client.makefile("rb")
        assert [lines.readline() for _ in range(3)] == [b"1\n", b"1\n", b"2\n"]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE) == ("Stopped.\n", "")
    assert process.returncode == 0
