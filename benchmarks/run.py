"""Run the benchmarks: CPU time per operation, for each event loop that is installed.

    python benchmarks/run.py --quick            every row, a few minutes
    python benchmarks/run.py                    the same with more work and more rounds
    python benchmarks/run.py --only echo_protocol --loops pyreactor,uvloop

Each figure comes from a fresh process. The loops take turns within a round, so that a machine that
is slow for a minute is slow for all of them; the median over the rounds is the figure. README.md
says why CPU time, and compare.py turns the JSON into tables.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
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

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
FLOOR = "floor"
LOOPS = ["pyreactor", "asyncio", "uvloop", "rloop", "rsloop", "zuvloop"]
DISTRIBUTIONS = {"pyreactor": "pyreactor-loop"}  # where it is not the module's name
CONNECTIONS = 64
START_SECONDS = 30
CASE_SECONDS = 120  # a case takes one or two; what takes this long hangs

sys.path.insert(0, str(HERE / "micro"))
from workloads import WORKLOADS  # noqa: E402 - found by the line above


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
class MicroRow:
    workload: str

    group = "scheduling"

    @property
    def name(self):
        return self.workload

    def candidates(self, loops):
        return loops

    def measure(self, loop, effort):
        command = [HERE / "micro" / "measure.py", loop, self.workload, str(effort.repetitions)]
        return run_json([sys.executable, *command])


@dataclasses.dataclass(frozen=True)
class EchoRow:
    mode: str
    size: str
    message_bytes: int
    round_trips: int  # about a second for the slower loops

    group = "echo"

    @property
    def name(self):
        return f"echo_{self.mode}_{self.size}"

    def candidates(self, loops):
        return [FLOOR, *loops]

    def measure(self, loop, effort):
        if loop == FLOOR:
            command = [compiled("floor_epoll")]
        else:
            command = [sys.executable, HERE / "echo" / "server.py", loop, self.mode]
        server_cpu, load_cpu = cpus()
        with server(command, server_cpu) as (pid, port):
            arguments = [port, pid, CONNECTIONS, self.message_bytes]
            arguments.append(self.round_trips * effort.echo_factor)
            return run_json([compiled("loadgen"), *map(str, arguments)], cpu=load_cpu)


ROWS = [
    EchoRow("protocol", "64", 64, 30_000),
    EchoRow("protocol", "1k", 1024, 30_000),
    EchoRow("protocol", "16k", 16 * 1024, 15_000),
    EchoRow("protocol", "64k", 64 * 1024, 6_000),
    EchoRow("buffered", "1k", 1024, 30_000),
    EchoRow("streams", "1k", 1024, 30_000),
    EchoRow("readline", "1k", 1024, 30_000),
    EchoRow("sock", "1k", 1024, 30_000),
    *(MicroRow(name) for name in WORKLOADS),
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
def compiled(name):
    """Compile a C program of echo/ once per run, so that it is never older than its source."""
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler.split()[0]) is None:
        raise SystemExit(f"no C compiler: {compiler} (Debian package: gcc)")
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / name
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra"]
    source = HERE / "echo" / f"{name}.c"
    subprocess.run([*compiler.split(), *flags, "-o", program, source], check=True)
    return program


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
            command, stdout=subprocess.PIPE, stderr=errors, preexec_fn=pinned_to(cpu)
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


def versions(loops):
    found = {"python": platform.python_version()}
    for loop in loops:
        try:
            found[loop] = importlib.metadata.version(DISTRIBUTIONS.get(loop, loop))
        except importlib.metadata.PackageNotFoundError:
            module = importlib.import_module(loop)
            found[loop] = getattr(module, "__version__", found["python"])
    return found


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


def measure_rows(rows, loops, effort):
    """Measure every row; returns what goes into the JSON for each."""
    done = 0
    total = sum(len(row.candidates(loops)) for row in rows) * effort.rounds
    results = []
    for row in rows:
        figures = {loop: [] for loop in row.candidates(loops)}
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
    if names is not None:
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            raise SystemExit(f"not installed: {', '.join(missing)}")
        return names
    return [name for name in LOOPS if importlib.util.find_spec(name) is not None]


def main():
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
        help="asyncio or modules with new_event_loop(); all known ones if not given",
    )
    parser.add_argument("--output", type=pathlib.Path, default=BUILD / "latest.json")
    options = parser.parse_args()

    rows = [row for row in ROWS if options.only is None or options.only in row.name]
    if not rows:
        parser.error(f"no row has {options.only!r} in its name: {[row.name for row in ROWS]}")
    loops = chosen_loops(options.loops)
    effort = QUICK if options.quick else FULL
    if options.rounds is not None:
        effort = dataclasses.replace(effort, rounds=options.rounds)

    result = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(loops),
        "command": " ".join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "effort": dataclasses.asdict(effort),
        "connections": CONNECTIONS,
        "rows": measure_rows(rows, loops, effort),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    subprocess.run([sys.executable, HERE / "compare.py", options.output], check=True)
    print(f"written: {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
