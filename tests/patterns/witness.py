"""What the kernel saw: the system calls of a program, thread by thread, from strace.

A dispatcher's trace must not vouch for itself.  A test that says which thread does what has a
program of this folder run under strace, and asks the recording:

    with witness.record("stage.py", "reactor") as scene:
        with scene.connect() as client:
            ...
    assert {call.role for call in scene.calls("recvfrom")} == {"worker"}

The program is told what to do by lines of JSON on its standard input, and answers each of them with
one on its output; when its input ends, so does it.  Its first line tells its address and what its
threads are.  It can put marks between its system calls: see mark().
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import pytest

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 15.0
_SETTLE_SECONDS = 0.005  # between two looks whether all threads sleep
MARKS = "/witness/"  # there is no such folder: a look at a file in it does nothing but be seen

WAITS = frozenset(
    {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"}
    | {"rt_sigtimedwait", "io_uring_enter"}
)
READS = frozenset({"recvfrom", "recvmsg", "recvmmsg", "readv", "preadv"})
WRITES = frozenset({"sendto", "sendmsg", "sendmmsg", "writev", "pwritev", "sendfile", "splice"})
ACCEPTS = frozenset({"accept", "accept4"})
OTHERS = frozenset(
    {"access", "faccessat", "faccessat2", "bind", "clone", "clone3", "close", "connect"}
    | {"epoll_create1", "epoll_ctl", "fcntl", "futex", "io_uring_register", "io_uring_setup"}
    | {"io_submit", "listen", "read", "rt_sigaction", "shutdown", "signalfd4", "socket", "write"}
)
TRACED = WAITS | READS | WRITES | ACCEPTS | OTHERS

_CALL = re.compile(
    r"(?P<start>\d+\.\d+) (?P<name>\w+)\((?P<arguments>.*?)"
    r"(?:\)\s+= (?P<result>\?|-?\d+|0x[0-9a-f]+)(?: (?P<error>E[A-Z0-9]+)\b)?[^<]*"
    r"(?:<(?P<seconds>[\d.]+)>)?|\)?\s*<unfinished \.\.\.>.*)$",
    re.DOTALL,
)
_SIGNAL = re.compile(r"(?P<start>\d+\.\d+) --- (?P<name>\w+) (?P<arguments>.*) ---$")


class Call(NamedTuple):
    """A system call, or a signal that came, as strace writes it."""

    start: float  # seconds, of the clock of time.time()
    end: float  # infinite for one that never returned
    tid: int
    role: str  # of its thread
    name: str  # "recvfrom"; of a signal "SIGIO"; "mark" of a mark
    arguments: str  # of a mark, its text
    result: int | None  # None: it did not return
    error: str  # "EAGAIN", or ""

    @property
    def fd(self) -> int:
        """Its first argument, where that is a number."""
        number = re.match(r"-?\d+", self.arguments)
        return int(number[0]) if number else -1

    @property
    def target(self) -> int:
        """The descriptor that an epoll_ctl() is about."""
        return int(self.arguments.split(", ")[2])

    @property
    def ready(self) -> dict[int, str]:
        """The events that an epoll wait has told, as "EPOLLIN|EPOLLHUP", by their descriptors.

        We keep the descriptor in the lower half of the word, which strace writes as it likes.
        """
        told = re.findall(r"events=([A-Z|]+), data=(?:\{u32=(\d+)|0x([0-9a-f]+))", self.arguments)
        return {
            int(half) if half else int(word, 16) & 0xFFFFFFFF: events for events, half, word in told
        }


class Scene:
    """A program that runs under strace, and what was seen of it."""

    def __init__(self, process: subprocess.Popen[str], folder: pathlib.Path) -> None:
        self._process = process
        self._folder = folder
        self._recorded: list[Call] = []
        first = self._answer()
        self.address = tuple(first["address"])
        self.roles = {int(tid): role for tid, role in first["roles"].items()}
        self.facts = first
        self.pid = int(first["pid"])

    def tell(self, do: str, **arguments: object) -> dict[str, object]:
        """Have the program do something, and return its answer."""
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def mark(self, text: str) -> None:
        """Have the program put a mark between its system calls."""
        self.tell("mark", text=text)

    def connect(self) -> socket.socket:
        """Return a socket that is connected to the program's address."""
        return socket.create_connection(self.address, timeout=PATIENCE)

    def exchange(self, client: socket.socket, data: bytes) -> None:
        """Send bytes, and see them come back."""
        client.sendall(data)
        received = b""
        while len(received) < len(data):
            more = client.recv(len(data) - len(received))
            assert more, f"the connection ended after {received!r}"
            received += more
        assert received == data

    def settle(self, mark: str | None = None) -> None:
        """Wait until every thread of the program sleeps; then have it put a mark."""
        deadline = time.monotonic() + PATIENCE
        seen: list[str] | None = None
        while (found := self._sleeping()) is None or found != seen:
            assert time.monotonic() < deadline, f"it does not come to rest: {found}"
            time.sleep(_SETTLE_SECONDS)
            seen = found
        if mark is not None:
            self.mark(mark)

    def _sleeping(self) -> list[str] | None:
        """How often each thread has gone to sleep; None where one is awake."""
        sleeps = []
        for task in sorted(pathlib.Path(f"/proc/{self.pid}/task").iterdir()):
            status = (task / "status").read_text()
            if "\nState:\tS" not in status:
                return None
            sleeps.append(f"{task.name} {status[status.index('voluntary_ctxt') :]}")
        return sleeps

    def release_at(self, mark: str, held: int = 1) -> None:
        """Wait until calls are held, and everything sleeps; mark it, and release them."""
        self.tell("held", count=held)
        self.settle(mark)
        self.tell("release")

    def tids(self, role: str) -> set[int]:
        """Return the threads of a role."""
        return {tid for tid, name in self.roles.items() if name == role}

    def calls(
        self,
        *names: str,
        role: str | None = None,
        fd: int | None = None,
        tid: int | None = None,
        after: str | None = None,
        before: str | None = None,
    ) -> list[Call]:
        """Return the calls of these names, in the order in which they began; none means all.

        `after` and `before` are marks.  Only after the scene's end.
        """
        begin = self.time_of(after) if after else 0.0
        end = self.time_of(before) if before else float("inf")
        return [
            call
            for call in self._recorded
            if (not names or call.name in names)
            and (role is None or call.role == role)
            and (fd is None or call.fd == fd)
            and (tid is None or call.tid == tid)
            and begin <= call.start <= end
        ]

    def accepted(self) -> list[Call]:
        """Return the calls that accepted a connection."""
        return [
            call for call in self.calls(*ACCEPTS) if call.result is not None and call.result >= 0
        ]

    def waiting(self, at: str) -> list[Call]:
        """Return the calls that threads of the dispatcher slept in at the time of a mark."""
        time_ = self.time_of(at)
        return [call for call in self._recorded if call.start < time_ < call.end and call.role]

    def marks(self, prefix: str = "") -> list[Call]:
        """Return the marks that begin with a text."""
        return [call for call in self.calls("mark") if call.arguments.startswith(prefix)]

    def time_of(self, text: str) -> float:
        """Return when a mark was put first."""
        for call in self._recorded:
            if call.name == "mark" and call.arguments == text:
                return call.start
        raise AssertionError(f"there is no mark {text!r}")

    def _answer(self) -> dict[str, object]:
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the program has ended: {self._end()}")
        return json.loads(line)

    def _end(self) -> str:
        try:
            _, errors = self._process.communicate(timeout=2 * PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, errors = self._process.communicate()
            errors += "\nit did not end"
        return errors

    def _finish(self) -> None:
        errors = self._end()
        assert self._process.returncode == 0, f"status {self._process.returncode}: {errors}"
        self._recorded = _read(self._folder, self.roles)


@contextlib.contextmanager
def record(program: str, *arguments: str):
    """Run a program of this folder under strace; yields its Scene, which is complete afterwards."""
    strace = shutil.which("strace")
    if strace is None:
        message = "no witness of system calls (Debian package: strace)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(strace, "--follow-forks", "--output-separately", "--seccomp-bpf"),
            *("--timestamps=unix,ns", "--syscall-times=ns", "--quiet=all", "--string-limit=32"),
            f"--trace={','.join('?' + name for name in sorted(TRACED))}",
            f"--output={folder}/calls",
            *(sys.executable, str(HERE / program), *arguments),
        ]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                scene = Scene(process, pathlib.Path(folder))
                yield scene
                scene._finish()
            finally:
                process.kill()


def _read(folder: pathlib.Path, roles: dict[int, str]) -> list[Call]:
    """Read what strace has written, one file for each thread."""
    calls = []
    for path in folder.iterdir():
        tid = int(path.suffix[1:])
        role = roles.get(tid, "")
        for line in path.read_text(errors="replace").splitlines():
            found = _CALL.match(line) or _SIGNAL.match(line)
            if found is None:
                assert "+++" in line or "---" in line, f"strace wrote what was not expected: {line}"
                continue
            calls.append(_call(tid, role, found.groupdict()))
    return sorted(calls)


def _call(tid: int, role: str, found: dict[str, str | None]) -> Call:
    start = float(found["start"])
    seconds = found.get("seconds")
    name, arguments = found["name"], found["arguments"]
    marked = re.search(rf'"{MARKS}([^"]*)"', arguments)
    if marked:
        name, arguments = "mark", marked[1]
    result = found.get("result")
    return Call(
        start=start,
        end=start + float(seconds) if seconds else float("inf"),
        tid=tid,
        role=role,
        name=name,
        arguments=arguments,
        result=None if result in (None, "?") else int(result, 0),
        error=found.get("error") or "",
    )


# --- In the program that is looked at -------------------------------------------------------------


def mark(text: str) -> None:
    """Put a mark between the system calls of the calling thread: one that does nothing.  At most
    23 characters, which is how much of a text strace writes."""
    os.access(MARKS + text, os.F_OK)


def obey(facts: dict[str, object], actions: dict[str, object]) -> None:
    """Tell the first line, then do as told, until the input ends.

    `facts` has "address" and "roles", by native thread id; `actions` are functions by name, which
    take the arguments of tell() and return what is to be answered, or None.
    """
    print(json.dumps({"pid": os.getpid(), **facts}), flush=True)
    actions = {"mark": mark, **actions}
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = actions[arguments.pop("do")](**arguments)
        print(json.dumps(answer), flush=True)
