"""Run the benchmarks: CPU time per operation, for each event loop that is installed.

    python benchmarks/run.py --quick            every row, a few minutes
    python benchmarks/run.py                    the same with more work and more rounds
    python benchmarks/run.py --only echo_protocol --loops pyreactor,uvloop
    python -m pyreactor bench --quick           the same, where pyreactor is installed

Each figure comes from a fresh process. The loops take turns within a round, so that a machine that
is slow for a minute is slow for all of them; the median over the rounds is the figure. README.md
says why CPU time, and compare.py turns the JSON into tables.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile

import loops

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path("build", "benchmarks").resolve()  # of the folder that it is run in
FLOOR = "floor"
KIB = 1024
CONNECTIONS = 64
START_SECONDS = 30
CASE_SECONDS = 120  # a case takes one or two; what takes this long hangs


@dataclasses.dataclass(frozen=True)
class Effort:
    rounds: int
    echo_factor: int  # multiplies the round trips of the echo rows
    repetitions: int  # of a scheduling workload in its process


QUICK = Effort(rounds=3, echo_factor=1, repetitions=3)
FULL = Effort(rounds=5, echo_factor=5, repetitions=7)


class CaseError(Exception):
    """This loop cannot do this row."""


@dataclasses.dataclass(frozen=True)
class WorkloadRow:
    """A coroutine of micro/ or transfers/, in a process of its own."""

    group: str  # its folder
    name: str
    target: float  # at most this multiple of the best other loop's cost

    def candidates(self, names):
        return names

    def measure(self, loop, effort):
        command = [HERE / "measure.py", loop, self.group, self.name, str(effort.repetitions)]
        return run_json([sys.executable, *command])


@dataclasses.dataclass(frozen=True)
class EchoRow:
    """A server, and the load generator."""

    mode: str
    message_bytes: int
    round_trips: int  # about a second for the slower loops
    target: float  # at most this multiple of the floor's cost; over TLS, of the best other loop's
    tls: bool = False

    group = "echo"

    @property
    def name(self):
        size = self.message_bytes
        text = f"{size // KIB}k" if size >= KIB else f"{size}"
        return f"{'tls' if self.tls else 'echo'}_{self.mode}_{text}"

    def candidates(self, names):
        return names if self.tls else [FLOOR, *names]

    def measure(self, loop, effort):
        if loop == FLOOR:
            command = [compiled("floor_epoll")]
        else:
            command = [sys.executable, "-m", "echo.server", loop, self.mode]
            command += [certificate()] if self.tls else []
        load = compiled("loadgen", self.tls)
        server_cpu, load_cpu = cpus()
        with server(command, server_cpu) as (pid, port):
            arguments = [port, pid, CONNECTIONS, self.message_bytes]
            arguments.append(self.round_trips * effort.echo_factor)
            return run_json([load, *map(str, arguments)], cpu=load_cpu)


ROWS = [
    EchoRow("protocol", 64, 30_000, 1.03),
    EchoRow("protocol", KIB, 30_000, 1.03),
    EchoRow("protocol", 16 * KIB, 15_000, 1.05),
    EchoRow("protocol", 64 * KIB, 6_000, 1.05),
    EchoRow("buffered", KIB, 30_000, 1.05),
    EchoRow("streams", KIB, 30_000, 1.3),
    EchoRow("readline", KIB, 30_000, 1.4),
    EchoRow("sock", KIB, 30_000, 1.4),
    EchoRow("protocol", KIB, 20_000, 0.8, tls=True),
    EchoRow("protocol", 64 * KIB, 3_000, 0.85, tls=True),
    EchoRow("streams", KIB, 20_000, 0.6, tls=True),
    EchoRow("streams", 64 * KIB, 3_000, 0.8, tls=True),
    WorkloadRow("transfers", "udp_round_trip", 0.75),
    WorkloadRow("transfers", "bulk_mib", 0.9),
    WorkloadRow("transfers", "sendfile_mib", 0.85),
    WorkloadRow("transfers", "connection", 0.75),
    WorkloadRow("transfers", "subprocess_spawn", 0.8),
    WorkloadRow("transfers", "subprocess_pipe_mib", 0.85),
    WorkloadRow("micro", "call_soon_chain", 0.9),
    WorkloadRow("micro", "call_soon_burst", 0.9),
    WorkloadRow("micro", "call_later_cancel", 0.9),
    WorkloadRow("micro", "timers_fire", 0.8),
    WorkloadRow("micro", "sleep0", 0.9),
    WorkloadRow("micro", "future_ping_pong", 0.9),
    WorkloadRow("micro", "create_task_gather", 0.9),
    WorkloadRow("micro", "timeout", 0.9),
    WorkloadRow("micro", "sockpair", 0.8),
    WorkloadRow("micro", "executor", 0.8),
    WorkloadRow("micro", "call_soon_threadsafe", 0.9),
]


@functools.cache
def cpus():
    """One CPU for the server and another for the load, or no choice if there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def pinned_to(cpu):
    """For Popen: what the child does before it becomes the program."""
    return None if cpu is None else functools.partial(os.sched_setaffinity, 0, {cpu})


@functools.cache
def compiled(name, tls=False):
    """Compile a C program of echo/ once per run, so that it is never older than its source."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        raise SystemExit(f"no C compiler: {compiler} (Debian package: gcc)")
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / (f"{name}_tls" if tls else name)
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", *(["-DTLS"] if tls else [])]
    libraries = ["-lssl", "-lcrypto"] if tls else []
    command = [*compiler.split(), *flags, "-o", program, HERE / "echo" / f"{name}.c", *libraries]
    if subprocess.run(command, check=False).returncode != 0:
        package = "libssl-dev" if tls else "libc6-dev"
        raise CaseError(f"{name}.c does not compile (Debian package: {package})")
    return program


@functools.cache
def certificate():
    """A self-signed certificate with its key, as a PEM file, made once per run."""
    if shutil.which("openssl") is None:
        raise CaseError("no openssl (Debian package: openssl)")
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "certificate.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-"]
    command = ["openssl", "req", "-x509", *key, "-subj", "/CN=localhost", "-days", "2"]
    path.touch(0o600)
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return path


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def run_json(command, cpu=None):
    """Run a program that prints one line of JSON."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=CASE_SECONDS,
            preexec_fn=pinned_to(cpu),
        )
    except subprocess.TimeoutExpired:
        raise CaseError(f"not done after {CASE_SECONDS} s") from None
    if done.returncode != 0:
        raise CaseError(last_line(done.stderr))
    return json.loads(done.stdout)


@contextlib.contextmanager
def server(command, cpu):
    """Start an echo server; gives its process id and the port it announces."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, preexec_fn=pinned_to(cpu), cwd=HERE
        )
        try:
            with process.stdout as output:
                ready, _, _ = select.select([output], [], [], START_SECONDS)
                line = output.readline() if ready else b""
                if not line:
                    errors.seek(0)
                    raise CaseError(f"the server did not start: {last_line(errors.read())}")
                try:
                    yield process.pid, int(line)
                except CaseError as error:
                    # The server's own last words say more than the load generator's; one that is
                    # about to fail gets the time to say them.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                    errors.seek(0)
                    raise CaseError(last_line(errors.read() or str(error))) from None
        finally:
            process.kill()
            process.wait()


def versions(names):
    return {"python": platform.python_version()} | {name: loops.version(name) for name in names}


def machine():
    cpu = platform.processor()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def measure_rows(rows, names, effort):
    """Measure every row; returns what goes into the JSON for each."""
    done = 0
    total = sum(len(row.candidates(names)) for row in rows) * effort.rounds
    results = []
    for row in rows:
        figures = {loop: [] for loop in row.candidates(names)}
        failed = {}
        for _ in range(effort.rounds):
            for loop in figures:
                done += 1
                if loop in failed:
                    continue
                try:
                    figures[loop].append(row.measure(loop, effort))
                    said = f"{figures[loop][-1]['cpu_us']:.2f} µs"
                except CaseError as error:
                    failed[loop] = str(error)
                    said = f"fails: {error}"
                print(f"[{done:4}/{total}] {row.name:24} {loop:10} {said}", file=sys.stderr)
        results.append(
            {
                "name": row.name,
                "group": row.group,
                "target": row.target,
                "results": {
                    loop: {"error": failed[loop]} if loop in failed else summary(taken)
                    for loop, taken in figures.items()
                },
            }
        )
    return results


def summary(figures):
    """Medians over the rounds, and the CPU time of each round, to show how far they spread."""
    medians = {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}
    return {**medians, "rounds_cpu_us": [figure["cpu_us"] for figure in figures]}


def chosen_loops(names):
    if names is None:
        return [name for name in loops.NAMES if loops.is_installed(name)]
    missing = [name for name in names if not loops.is_installed(name)]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    return names


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less work, three rounds")
    parser.add_argument("--rounds", type=int, help="rounds, instead of the default number")
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name has it")
    parser.add_argument(
        "--loops",
        metavar="NAME,NAME",
        type=lambda text: text.split(","),
        help=f"of {', '.join(loops.NAMES)}, or modules with new_event_loop(); "
        "those installed if not given",
    )
    parser.add_argument("--output", type=pathlib.Path, default=BUILD / "latest.json")
    options = parser.parse_args(arguments)

    rows = [row for row in ROWS if options.only is None or options.only in row.name]
    if not rows:
        parser.error(f"no row has {options.only!r} in its name: {[row.name for row in ROWS]}")
    names = chosen_loops(options.loops)
    effort = QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = dataclasses.replace(effort, rounds=options.rounds)

    result = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(names),
        "command": " ".join(
            [os.environ.get("BENCH_COMMAND", "python benchmarks/run.py"), *arguments]
        ),
        "effort": dataclasses.asdict(effort),
        "connections": CONNECTIONS,
        "rows": measure_rows(rows, names, effort),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    subprocess.run([sys.executable, HERE / "compare.py", options.output], check=True)
    print(f"written: {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
