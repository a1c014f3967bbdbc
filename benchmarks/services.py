"""Databases from the distribution, on a free loopback port, with data that is gone afterwards.

Each is a context manager that gives the environment variables by which a client finds it.
"""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
import time

from programs import START_SECONDS, CaseError, pinned_to

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
STOP_SECONDS = 15


def free_port():
    with socket.create_server((HOST, 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, port, cpu):
    """Start the server and wait until it accepts; SIGINT ends either database at once."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=pinned_to(cpu),
        start_new_session=True,  # Ctrl-C is for run.py, which then ends it
        cwd="/",
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CaseError(f"{command[0]} does not serve port {port}") from None
                time.sleep(POLL_SECONDS)
        yield
    finally:
        process.send_signal(2)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def postgresql_programs():
    """The folder of the newest version's programs, or None."""
    folders = pathlib.Path("/usr/lib/postgresql").glob("*/bin")
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


@contextlib.contextmanager
def postgresql(cpu):
    programs = postgresql_programs()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-postgresql-") as folder:
        become = []
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = f"{folder}/data"
        options = ["--no-sync", "--auth=trust", "--username=postgres", "--locale=C.UTF-8"]
        made = subprocess.run(
            [*become, programs / "initdb", *options, "-D", data],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        if made.returncode != 0:
            raise CaseError(f"initdb: {made.stderr.strip()}")
        settings = [f"listen_addresses={HOST}", f"unix_socket_directories={folder}", "fsync=off"]
        command = [*become, programs / "postgres", "-D", data, "-p", port]
        for setting in settings:
            command += ["-c", setting]
        with running(command, port, cpu):
            yield {
                "PGHOST": HOST,
                "PGPORT": str(port),
                "PGUSER": "postgres",
                "PGDATABASE": "postgres",
                "PGSSLMODE": "disable",
            }


@contextlib.contextmanager
def redis(cpu):
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as folder:
        command = ["redis-server", "--bind", HOST, "--port", port, "--dir", folder]
        with running([*command, "--save", "", "--appendonly", "no"], port, cpu):
            yield {"REDIS_URL": f"redis://{HOST}:{port}"}


SERVICES = {"postgresql": postgresql, "redis": redis}


def missing(name):
    """The Debian package that the service needs and that is not installed, or None."""
    if name == "postgresql":
        return "postgresql" if postgresql_programs() is None else None
    return "redis-server" if shutil.which("redis-server") is None else None
