"""What moving a gigabyte costs: CPU seconds of a proxy, and of a file server, per GiB.

    python benchmarks/zerocopy/measure.py [--gib 4] [--rounds 3]

Everything is on one machine, over loopback, so that what the kernel does for a receiver is often
paid by the sender; the other ends send from a file and discard what comes without copying it.  The
rounds are interleaved, and the table has their medians.  HAProxy and nginx are left out where they
are not installed.
"""

import argparse
import contextlib
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOST = "127.0.0.1"
GIB = 1 << 30
FILE_BYTES = 64 << 20
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PATIENCE = 30

HAPROXY = """
global
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    {option}
listen proxy
    bind {host}:{port}
    server only {host}:{target}
"""

NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    sendfile {sendfile};
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port};
        root {folder};
    }}
}}
"""

ASYNCIO_FILES = """
import asyncio, pathlib, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
asyncio.run(main(pathlib.Path(sys.argv[2]), "127.0.0.1", 0))
"""


def cpu_seconds(pid):
    """In user mode and in the kernel, of all threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND


def free_port():
    with socket.create_server((HOST, 0)) as sock:
        return sock.getsockname()[1]


def connect(port):
    """Connect, once the other side listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((HOST, port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def discard(sock, size):
    """Take `size` bytes, or all, without copying them; return how many came."""
    nowhere = bytearray(1 << 20)
    taken = 0
    while taken < size:
        more = sock.recv_into(nowhere, min(len(nowhere), size - taken), socket.MSG_TRUNC)
        if not more:
            break
        taken += more
    return taken


@contextlib.contextmanager
def running(*command):
    """A process and, where it prints one, its port."""
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.communicate()


# --- Proxies --------------------------------------------------------------------------------------


@contextlib.contextmanager
def python_proxy(kind, target, folder):
    with running(sys.executable, HERE / "proxies.py", kind, target) as process:
        yield process, int(process.stdout.readline())


@contextlib.contextmanager
def haproxy(option, target, folder):
    port = free_port()
    path = pathlib.Path(folder) / "haproxy.cfg"
    path.write_text(HAPROXY.format(host=HOST, port=port, target=target, option=option))
    with running("haproxy", "-db", "-q", "-f", path) as process:
        connect(port).close()
        yield process, port


PROXIES = {
    "pyreactor `relay()`": lambda *rest: python_proxy("relay", *rest),
    "HAProxy, splice": lambda *rest: haproxy("option splice-auto", *rest),
    "HAProxy, no splice": lambda *rest: haproxy("", *rest),
    "streams on pyreactor": lambda *rest: python_proxy("streams", *rest),
    "streams on asyncio": lambda *rest: python_proxy("asyncio", *rest),
}


def move_through_proxy(proxy, size, folder, file):
    """Send `size` bytes through a proxy; return its CPU seconds."""
    with socket.create_server((HOST, 0)) as listening:
        with proxy(listening.getsockname()[1], folder) as (process, port):
            with connect(port) as source:
                listening.settimeout(PATIENCE)
                sink, _ = listening.accept()
                while True:  # HAProxy has opened one for the connection that found it listening
                    listening.settimeout(0.2)
                    try:
                        newer, _ = listening.accept()
                    except TimeoutError:
                        break
                    sink.close()
                    sink = newer
                taken = []
                thread = threading.Thread(target=lambda: taken.append(discard(sink, size)))
                thread.start()
                before = cpu_seconds(process.pid)
                sent = 0
                while sent < size:
                    left = min(FILE_BYTES, size - sent)
                    sent += os.sendfile(source.fileno(), file.fileno(), 0, left)
                thread.join()
                after = cpu_seconds(process.pid)
                sink.close()
    assert taken == [size], f"{taken[0]} of {size} bytes arrived"
    return [b - a for a, b in zip(before, after, strict=True)]


# --- File servers ---------------------------------------------------------------------------------


@contextlib.contextmanager
def static_files(*command):
    with running(*command) as process:
        yield process, int(re.search(rf"{HOST}:(\d+)", process.stdout.readline())[1])


@contextlib.contextmanager
def nginx(sendfile, folder):
    port = free_port()
    path = pathlib.Path(folder) / "nginx.conf"
    path.write_text(NGINX.format(host=HOST, port=port, folder=folder, sendfile=sendfile))
    with running("nginx", "-c", path, "-p", folder) as process:
        connect(port).close()
        yield process, port


FILES = str(ROOT / "examples" / "static_files.py")
SERVERS = {
    "pyreactor": lambda folder: static_files(sys.executable, FILES, folder, "--port", "0"),
    "nginx, sendfile": lambda folder: nginx("on", folder),
    "nginx, no sendfile": lambda folder: nginx("off", folder),
    "asyncio": lambda folder: static_files(sys.executable, "-c", ASYNCIO_FILES, FILES, folder),
}


def fetch_files(server, size, folder, file):
    """Fetch the file until `size` bytes have come; return the server's CPU seconds."""
    name = pathlib.Path(file.name).name.encode()
    with server(folder) as (process, port), connect(port) as sock:
        before = cpu_seconds(process.pid)
        for _ in range(size // FILE_BYTES):
            sock.sendall(b"GET /" + name + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(1)
            assert b" 200 OK" in head and str(FILE_BYTES).encode() in head, head
            assert discard(sock, FILE_BYTES) == FILE_BYTES
        after = cpu_seconds(process.pid)
    return [b - a for a, b in zip(before, after, strict=True)]


# --- All of it ------------------------------------------------------------------------------------


def measure(contestants, move, options, folder, file):
    """The median CPU seconds per GiB of each: (user, kernel)."""
    size = options.gib * GIB
    results = {}
    for number in range(options.rounds):
        for name, contestant in contestants.items():
            program = name.split(",")[0].lower()
            if program in ("haproxy", "nginx") and shutil.which(program) is None:
                continue
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            results.setdefault(name, []).append(move(contestant, size, folder, file))
    return {
        name: [statistics.median(column) / options.gib for column in zip(*rounds, strict=True)]
        for name, rounds in results.items()
    }


def print_table(title, results):
    print(f"| {title} | user | kernel | together |\n| --- | ---: | ---: | ---: |")
    for name, (user, kernel) in results.items():
        print(f"| {name} | {user:.3f} | {kernel:.3f} | {user + kernel:.3f} |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=4, help="how much each moves in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with (pathlib.Path(folder) / "file").open("w+b") as file:
            for _ in range(FILE_BYTES // len(block := os.urandom(1 << 20))):
                file.write(block)
            file.flush()
            print(f"CPU seconds per GiB; Linux {platform.release()}, {os.cpu_count()} CPUs.\n")
            proxies = measure(PROXIES, move_through_proxy, options, folder, file)
            print_table("a proxy", proxies)
            servers = measure(SERVERS, fetch_files, options, folder, file)
            print_table("a file server", servers)


if __name__ == "__main__":
    main()
