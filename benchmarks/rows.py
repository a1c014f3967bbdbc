"""The rows: what each measures, with which loops, and what it is to cost at most."""

import contextlib
import dataclasses
import importlib.util
import os
import resource
import sys
import sysconfig

import services
from frameworks import exchanges
from programs import (
    BUILD,
    CaseError,
    certificate,
    compiled,
    cpus,
    run_json,
    server,
)

FLOOR = "floor"
KIB = 1024
CONNECTIONS = 64
DESCRIPTORS_BESIDE = 100  # what a process has open beside its connections


@dataclasses.dataclass(frozen=True)
class Effort:
    rounds: int
    work: float  # multiplies the operations of the rows that are measured once in a process
    repetitions: int  # of a workload in its process
    count: float = 1  # multiplies the operations of a workload
    connections_most: int = sys.maxsize


QUICK = Effort(rounds=3, work=1, repetitions=3)
FULL = Effort(rounds=5, work=5, repetitions=7)
# Whether the rows run at all; the figures mean nothing.
SMOKE = Effort(rounds=1, work=0.01, repetitions=1, count=0.01, connections_most=200)


@dataclasses.dataclass(frozen=True)
class Target:
    """The most that a row is to cost: `value` times, or more than, something of the same run.

    Of what: "best" is the floor, or where there is none the best other loop; "asyncio" that loop;
    "over asyncio" allows `value` more than it; "limit" is `value` itself; and the name of a row
    stands for our own cost there.
    """

    value: float
    of: str = "best"


class Row:
    """What the rows have in common; a row has a `group`, a `name` and a `target`, too."""

    figure = "cpu_us"  # the one of what measure() returns that is the row's cost
    unit = "µs"

    def candidates(self, names):
        """Those of the loops, and perhaps the floor, that it is measured with."""
        return names

    def missing(self):
        """What the machine lacks to measure it with any loop, and how to get it; or None."""
        return None

    @contextlib.contextmanager
    def surroundings(self):
        """What has to run while it is measured; gives what measure() gets as `environment`."""
        yield {}


def python(module, *arguments):
    """The command for a module of this folder."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def not_installed(modules):
    """How to install those of the modules that are not there, or None."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(missing)}" if missing else None


@dataclasses.dataclass(frozen=True)
class WorkloadRow(Row):
    """A coroutine of a folder's workloads.py, in a process of its own."""

    group: str  # its folder
    name: str
    target: Target
    modules: tuple[str, ...] = ()  # what it needs beside a loop
    service: str | None = None  # one of services.py, on the other CPU
    repeated: bool = True  # or so long that once is enough

    def missing(self):
        package = services.missing(self.service) if self.service else None
        return f"Debian package: {package}" if package else not_installed(self.modules)

    @contextlib.contextmanager
    def surroundings(self):
        if self.service is None:
            yield {}
            return
        with services.SERVICES[self.service](cpus()[1]) as environment:
            yield environment

    def measure(self, loop, effort, environment):
        repetitions = effort.repetitions if self.repeated else 1
        arguments = [loop, self.group, self.name, repetitions, effort.count]
        cpu = None if self.service is None else cpus()[0]
        return run_json(python("measure", *arguments), cpu, environment)


@dataclasses.dataclass(frozen=True)
class EchoRow(Row):
    """A server, and the load generator."""

    mode: str
    message_bytes: int
    round_trips: int  # about a second for the slower loops
    target: Target
    tls: bool = False
    connections: int = CONNECTIONS
    reconnects: bool = False
    alias: str | None = None  # the name, where mode and size do not say what it is about
    group: str = "echo"

    @property
    def name(self):
        size = self.message_bytes
        text = f"{size // KIB}k" if size >= KIB else f"{size}"
        return self.alias or f"{'tls' if self.tls else 'echo'}_{self.mode}_{text}"

    def candidates(self, names):
        return names if self.tls else [FLOOR, *names]

    def command(self, loop):
        if loop == FLOOR:
            return [compiled("floor_epoll")]
        return python("echo.server", loop, self.mode, *([certificate()] if self.tls else []))

    def measure(self, loop, effort, environment):
        load = compiled("loadgen", self.tls)
        server_cpu, load_cpu = cpus()
        connections = min(self.connections, effort.connections_most)
        ensure_descriptors(connections)
        with server(self.command(loop), server_cpu) as (pid, port):
            arguments = [port, pid, connections, self.message_bytes]
            arguments.append(max(1, round(self.round_trips * effort.work)))
            arguments += ["reconnect"] if self.reconnects else []
            return run_json([load, *map(str, arguments)], cpu=load_cpu)


@dataclasses.dataclass(frozen=True)
class FrameworkRow(Row):
    """A web server of frameworks/server.py, and the load generator."""

    name: str
    exchange: object  # a function of frameworks/exchanges.py
    round_trips: int
    modules: tuple[str, ...]
    target: Target = Target(0.95)

    group = "frameworks"

    def missing(self):
        return not_installed(self.modules)

    def measure(self, loop, effort, environment):
        load = compiled("loadgen")
        server_cpu, load_cpu = cpus()
        with server(python("frameworks.server", loop, self.name), server_cpu) as (pid, port):
            try:
                exchange = self.exchange(port)
            except (OSError, ValueError) as error:
                raise CaseError(f"the server's first answer: {error}") from None
            folder = exchanges.write(exchange, BUILD / "exchanges" / self.name)
            round_trips = max(1, round(self.round_trips * effort.work))
            arguments = [port, pid, CONNECTIONS, f"{folder}/", round_trips]
            return run_json([load, *map(str, arguments)], cpu=load_cpu)


@dataclasses.dataclass(frozen=True)
class IdleRow(Row):
    """The memory of an echo server, and many connections on which nothing happens."""

    name: str
    mode: str
    target: Target
    connections: int = 8_000

    group = "scale"
    figure = "kib"
    unit = "KiB"

    def measure(self, loop, effort, environment):
        server_cpu, load_cpu = cpus()
        connections = min(self.connections, effort.connections_most)
        ensure_descriptors(connections + connections // 10)
        with server(python("echo.server", loop, self.mode), server_cpu) as (pid, port):
            return run_json(python("scale.idle", port, pid, connections), load_cpu)


@dataclasses.dataclass(frozen=True)
class StartRow(Row):
    """A program that does nothing but run one coroutine."""

    name: str = "start_up"
    target: Target = Target(30, "over asyncio")

    group = "scale"
    figure = "cpu_ms"
    unit = "ms"

    def measure(self, loop, effort, environment):
        return run_json(python("scale.start_up", loop, effort.repetitions))


@dataclasses.dataclass(frozen=True)
class ThreadsRow(Row):
    """A loop in each thread, as many as there are CPUs."""

    name: str
    workload: str
    target: Target = Target(1, "asyncio")

    group = "threads"
    figure = "times"
    unit = "x"

    def missing(self):
        if not sysconfig.get_config_var("Py_GIL_DISABLED"):
            return "a Python without the GIL, such as python3.13t"
        return None if cpus()[1] is not None else "a second CPU"

    def measure(self, loop, effort, environment):
        threads = len(os.sched_getaffinity(0))
        arguments = [loop, self.workload, threads, effort.repetitions, effort.count]
        return run_json(python("scale.threads", *arguments))


def ensure_descriptors(connections):
    """Allow this process, and so those it starts, as many descriptors as the system lets it."""
    needed = connections + DESCRIPTORS_BESIDE
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < needed:
        if most < needed:
            raise CaseError(f"needs {needed} descriptors, {most} are allowed (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def connections_row(connections, target):
    name = f"echo_{connections}_connections"
    count = 15_000 if connections == 1 else 30_000
    return EchoRow(
        "protocol", KIB, count, target, connections=connections, alias=name, group="scale"
    )


FLAT = Target(1.3, "echo_64_connections")

ROWS = [
    EchoRow("protocol", 64, 30_000, Target(1.03)),
    EchoRow("protocol", KIB, 30_000, Target(1.03)),
    EchoRow("protocol", 16 * KIB, 15_000, Target(1.05)),
    EchoRow("protocol", 64 * KIB, 6_000, Target(1.05)),
    EchoRow("buffered", KIB, 30_000, Target(1.05)),
    EchoRow("streams", KIB, 30_000, Target(1.3)),
    EchoRow("readline", KIB, 30_000, Target(1.4)),
    EchoRow("sock", KIB, 30_000, Target(1.4)),
    EchoRow("protocol", KIB, 20_000, Target(0.8), tls=True),
    EchoRow("protocol", 64 * KIB, 3_000, Target(0.85), tls=True),
    EchoRow("streams", KIB, 20_000, Target(0.6), tls=True),
    EchoRow("streams", 64 * KIB, 3_000, Target(0.8), tls=True),
    WorkloadRow("transfers", "udp_round_trip", Target(0.75)),
    WorkloadRow("transfers", "bulk_mib", Target(0.9)),
    WorkloadRow("transfers", "sendfile_mib", Target(0.85)),
    WorkloadRow("transfers", "connection", Target(0.75)),
    WorkloadRow("transfers", "subprocess_spawn", Target(0.8)),
    WorkloadRow("transfers", "subprocess_pipe_mib", Target(0.85)),
    WorkloadRow("micro", "call_soon_chain", Target(0.9)),
    WorkloadRow("micro", "call_soon_burst", Target(0.9)),
    WorkloadRow("micro", "call_later_cancel", Target(0.9)),
    WorkloadRow("micro", "timers_fire", Target(0.8)),
    WorkloadRow("micro", "sleep0", Target(0.9)),
    WorkloadRow("micro", "future_ping_pong", Target(0.9)),
    WorkloadRow("micro", "create_task_gather", Target(0.9)),
    WorkloadRow("micro", "timeout", Target(0.9)),
    WorkloadRow("micro", "sockpair", Target(0.8)),
    WorkloadRow("micro", "executor", Target(0.8)),
    WorkloadRow("micro", "call_soon_threadsafe", Target(0.9)),
    FrameworkRow("uvicorn_plain", exchanges.http, 8_000, ("uvicorn", "httptools")),
    FrameworkRow("aiohttp_hello", exchanges.http, 8_000, ("aiohttp",)),
    FrameworkRow("fastapi_json", exchanges.http, 4_000, ("fastapi", "uvicorn", "httptools")),
    FrameworkRow("websockets_echo", exchanges.websocket, 8_000, ("websockets",)),
    WorkloadRow("frameworks", "asyncpg_select", Target(0.95), ("asyncpg",), "postgresql"),
    WorkloadRow("frameworks", "redis_pipeline", Target(0.95), ("redis",), "redis"),
    connections_row(1, Target(1.03)),
    connections_row(64, Target(1.03)),
    connections_row(1_000, FLAT),
    connections_row(10_000, FLAT),
    EchoRow(
        "protocol",
        64,
        5_000,
        Target(0.75),
        reconnects=True,
        alias="connection_storm",
        group="scale",
    ),
    IdleRow("idle_protocol", "protocol", Target(2, "limit")),
    IdleRow("idle_streams", "streams", Target(1)),
    WorkloadRow("scale", "timers_million", Target(0.8), repeated=False),
    StartRow(),
    ThreadsRow("threads_round_trips", "round_trips"),
    ThreadsRow("threads_tasks", "tasks"),
]
