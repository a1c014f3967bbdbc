"""`python -m pyreactor models`: one service under every concurrency model, with the same load.

Each model serves in a fresh process; this one makes the load, on a pyreactor loop: every connection
has one request in flight.  There are two rounds: one of quick requests alone, and one in which one
request of a hundred sleeps.  What the models differ in shows in the second: how long do quick
requests wait while others block?
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyreactor.policy import run

__all__ = ["main", "report"]

SLOW_SHARE = 0.01
SLOW_SECONDS = 0.02
_WARM_UP = 0.2  # of each round, uncounted
_CONNECTS_AT_A_TIME = 100
_SAMPLE_SECONDS = 0.005
_SPARE_DESCRIPTORS = 200
_START_SECONDS = 60
_SIMILAR = 1.15  # measurements that are nearer than that are alike
_HELD_UP = 3.0  # times the best: quick requests wait for slow ones

QUICK, SLOW = b"quick", b"slow"


class Variant(NamedTuple):
    """A model as it is compared, with its own options."""

    name: str
    dispatcher: str
    options: dict[str, Any]


class _Refused(Exception):
    """This machine has not what a model needs."""


def variants() -> list[Variant]:
    """Return what is compared: every model, and its modes."""
    from pyreactor.models import MODELS

    found = []
    for name in MODELS:
        found.append(Variant(name, name, {}))
        if name == "half-sync-half-reactive":
            found.append(
                Variant(f"{name}, simulated Proactor", name, {"mode": "simulated_proactor"})
            )
    return found


# --- The server's process -------------------------------------------------------------------------


def serve(setup: str) -> None:
    """Serve one model, as the other process says on standard input, until its end."""
    from pyreactor.service import Service
    from pyreactor.service_server import Server

    def handle(request: bytes) -> bytes:
        if request == SLOW:
            time.sleep(SLOW_SECONDS)
        return request

    options = json.loads(setup)
    _allow_descriptors(options.pop("descriptors"))
    service = Service(handle, idle_timeout=None)
    try:
        made = Server(service, ("127.0.0.1", 0), **options)
    except OSError as exc:
        print(json.dumps({"refused": exc.strerror}), flush=True)
        return
    with made as server:
        depths = [0]
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(_SAMPLE_SECONDS):
                depths.append(server.dispatcher._queue_depth())

        sampler = threading.Thread(target=sample)
        sampler.start()
        print(json.dumps({"port": server.addresses[0][1]}), flush=True)
        for line in sys.stdin:
            if line.strip() != "measure":
                break
            stats = server.stats()
            counts = {
                "cpu_seconds": time.process_time(),
                "requests": stats["requests"],
                "switches": stats["voluntary"] + stats["nonvoluntary"],
                "threads": len(server.threads()),
                "depth_max": max(depths) if hasattr(server.dispatcher, "queue") else None,
            }
            del depths[1:]
            print(json.dumps(counts), flush=True)
        ended.set()
        sampler.join()
        server.stop(drain=False)


def _allow_descriptors(count: int) -> None:
    """Have the process hold that many descriptors.  Raises OSError where it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, OSError):
        raise OSError(
            f"{count} descriptors are needed and {hard} allowed: raise `ulimit -n`, or take fewer"
            " --connections"
        ) from None


# --- The load -------------------------------------------------------------------------------------


class _Load:
    """What all clients share: whether they go on, and how long answers took."""

    def __init__(self, slow_share: float) -> None:
        self.slow_share = slow_share
        self.chance = random.Random(1)
        self.counting = False
        self.going_on = True
        self.quick = array.array("d")
        self.slow = array.array("d")
        self.lost: BaseException | None = None


class _Client(asyncio.Protocol):
    """One connection with one request in flight."""

    transport: asyncio.Transport
    _sent = 0.0
    _size = 0

    def __init__(self, load: _Load) -> None:
        self._load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self) -> None:
        """Send the next request."""
        load = self._load
        is_slow = load.slow_share > 0 and load.chance.random() < load.slow_share
        self._request = (SLOW if is_slow else QUICK) + b"\n"
        self._left = len(self._request)
        self._sent = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left > 0:
            return
        load = self._load
        if load.counting:
            taken = load.quick if len(self._request) == len(QUICK) + 1 else load.slow
            taken.append(time.perf_counter() - self._sent)
        if load.going_on:
            self.ask()

    def connection_lost(self, exception: Exception | None) -> None:
        if self._load.going_on:
            self._load.lost = exception or ConnectionError("the server closed a connection")


async def _connect(load: _Load, port: int, count: int) -> list[_Client]:
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    for begin in range(0, count, _CONNECTS_AT_A_TIME):
        made = await asyncio.gather(
            *(
                loop.create_connection(lambda: _Client(load), "127.0.0.1", port)
                for _ in range(begin, min(count, begin + _CONNECTS_AT_A_TIME))
            )
        )
        clients += [protocol for _, protocol in made]
    return clients


async def _round(
    process: subprocess.Popen[str], port: int, connections: int, seconds: float, share: float
) -> dict[str, Any]:
    """Load the server for a time; returns the figures."""
    load = _Load(share)
    clients = await _connect(load, port, connections)
    for client in clients:
        client.ask()
    await asyncio.sleep(seconds * _WARM_UP)
    before = _measure(process)
    load.counting = True
    began = time.perf_counter()
    await asyncio.sleep(seconds * (1 - _WARM_UP))
    load.counting = False
    elapsed = time.perf_counter() - began
    after = _measure(process)
    load.going_on = False
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0)
    if load.lost is not None:
        raise load.lost
    requests = max(1, after["requests"] - before["requests"])
    latencies = sorted([*load.quick, *load.slow])
    quick = sorted(load.quick)
    return {
        "requests": requests,
        "per_second": len(latencies) / elapsed,
        "p50_ms": _percentile(latencies, 0.5),
        "p99_ms": _percentile(latencies, 0.99),
        "quick_p99_ms": _percentile(quick, 0.99),
        "cpu_us": (after["cpu_seconds"] - before["cpu_seconds"]) / requests * 1e6,
        "switches": (after["switches"] - before["switches"]) / requests,
        "depth_max": after["depth_max"],
        "threads": after["threads"],
        "threads_before": before["threads"],
    }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)] * 1e3 if ordered else float("nan")


def _measure(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("measure\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the server has ended with status {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextlib.contextmanager
def _server(variant: Variant, workers: int | None, descriptors: int) -> Iterator[Any]:
    setup = {
        "dispatcher": variant.dispatcher,
        "workers": workers,
        "descriptors": descriptors,
        **variant.options,
    }
    code = "import sys; from pyreactor.model_comparison import serve; serve(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(setup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            answer = _answer(process)
            if "refused" in answer:
                raise _Refused(answer["refused"])
            yield process, answer["port"]
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_START_SECONDS)
        finally:
            process.kill()


def compare(
    connections: int, seconds: float, workers: int | None, names: list[str] | None = None
) -> dict[str, Any]:
    """Measure the models, with progress on standard error; returns what report() makes a table of.

    `seconds` is the length of each of the two rounds of a model.
    """
    descriptors = connections + _SPARE_DESCRIPTORS
    _allow_descriptors(descriptors)
    chosen = [variant for variant in variants() if names is None or variant.name in names]
    load_average = round(os.getloadavg()[0], 2)
    models = []
    left_out = {}
    for number, variant in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {variant.name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            with _server(variant, workers, descriptors) as (process, port):
                rounds = [
                    run(_round(process, port, connections, seconds, share))
                    for share in (0.0, SLOW_SHARE)
                ]
        except _Refused as exc:
            left_out[variant.name] = str(exc)
            print(f"left out: {exc}", file=sys.stderr, flush=True)
            continue
        said = f"{rounds[0]['per_second']:,.0f} requests/s"
        print(f"{said}, {rounds[0]['cpu_us']:.1f} µs of CPU each", file=sys.stderr, flush=True)
        models.append({"name": variant.name, "quick": rounds[0], "mixed": rounds[1]})
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": load_average,
        "connections": connections,
        "seconds": seconds,
        "workers": workers,
        "models": models,
        "left_out": left_out,
    }


# --- The report -----------------------------------------------------------------------------------

_COLUMNS = [
    ("requests/s", "quick", "per_second", "{:,.0f}"),
    ("CPU µs", "quick", "cpu_us", "{:.1f}"),
    ("switches", "quick", "switches", "{:.2f}"),
    ("p50 ms", "quick", "p50_ms", "{:.2f}"),
    ("p99 ms", "quick", "p99_ms", "{:.2f}"),
    ("1 % slow: requests/s", "mixed", "per_second", "{:,.0f}"),
    ("p99 of the quick, ms", "mixed", "quick_p99_ms", "{:.2f}"),
    ("queue", "mixed", "depth_max", "{}"),
    ("threads", "mixed", "threads", "{}"),
]


def report(result: dict[str, Any]) -> str:
    """Return the result of compare() as Markdown: what was done, the table, and what fits."""
    header = ["", *(title for title, _, _, _ in _COLUMNS)]
    lines = [header, ["---", *["---:"] * len(_COLUMNS)]]
    for model in result["models"]:
        figures = [(form, model[part][key]) for _, part, key, form in _COLUMNS]
        cells = ["-" if figure is None else form.format(figure) for form, figure in figures]
        lines.append([model["name"], *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    workers = result["workers"] or "the default number of"
    gil = "" if result["gil"] else ", without a GIL"
    return (
        f"One service under each model: {result['connections']:,} connections with one request in"
        f" flight each, {workers} threads that handle.  CPU time and context switches are the"
        " server's, per request.  Then the same with one request of a hundred sleeping"
        f" {SLOW_SECONDS * 1000:.0f} ms in its handler; `queue` is the most requests that waited"
        " for a thread at one time.\n\n"
        f"{table}\n\n"
        f"{what_fits(result)}\n\n"
        f"{result['date']}, {result['cpus']} processors, which the load shares with the server,"
        f" Linux {result['kernel']}, CPython {result['python']}{gil}; `python -m pyreactor models`"
        f" with {result['seconds']:g} s for each round; load average at the start"
        f" {result['load_average']}."
    )


def what_fits(result: dict[str, Any]) -> str:
    """Say which model is for which service, by these figures."""
    models = result["models"]
    cpu = {model["name"]: model["quick"]["cpu_us"] for model in models}
    tail = {model["name"]: model["mixed"]["quick_p99_ms"] for model in models}
    held_up = [name for name in tail if tail[name] > _HELD_UP * min(tail.values())]
    parts = [
        f"For requests that never block, the least CPU time: {_listed(_best(cpu))}.",
        f"For handlers that sometimes block, quick requests wait least under"
        f" {_listed(_best(tail))}.",
    ]
    if held_up:
        parts.append(
            f"Under {_listed(held_up)} they wait {_HELD_UP:g} times as long or more: not for"
            " handlers that block."
        )
    threads = [
        model["name"]
        for model in models
        if model["mixed"]["threads"] > model["quick"]["threads_before"]
    ]
    if threads:
        parts.append(f"The number of threads has grown under {_listed(threads)}.")
    parts += [
        f"Left out: {name}, since {reason}." for name, reason in result.get("left_out", {}).items()
    ]
    if result["load_average"] > result["cpus"]:
        parts.append("The machine was busy with other things: measure again.")
    return "  ".join(parts)


def _best(figures: dict[str, float]) -> list[str]:
    least = min(figures.values())
    return sorted(
        (name for name in figures if figures[name] <= least * _SIMILAR), key=lambda n: figures[n]
    )


def _listed(names: list[str]) -> str:
    return "; ".join(names)


def main(args: list[str]) -> int:
    """Run the command with the arguments that come after `models`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pyreactor models",
        description="Run one service under every concurrency model, with a load, and compare them.",
    )
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="length of each of the two rounds of a model; default: 2",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads that handle requests")
    parser.add_argument(
        "--only", action="append", metavar="MODEL", help="compare this one; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(args)
    known = [variant.name for variant in variants()]
    if options.connections < 1 or options.seconds <= 0:
        parser.error("there is at least one connection, and more than no time")
    if options.workers is not None and options.workers < 1:
        parser.error("there must be a thread to handle requests")
    for name in options.only or []:
        if name not in known:
            parser.error(f"there is no model {name!r}; there are: {'; '.join(known)}")
    try:
        result = compare(options.connections, options.seconds, options.workers, options.only)
    except OSError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if options.json else f"\n{report(result)}")
    return 0
