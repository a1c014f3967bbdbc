"""Soak test: everything at once, for as long as asked, while system calls fail now and then.

    python tests/stress/soak.py --seconds 600 --seed 7
    python tests/stress/soak.py --seconds 60 --python-loop asyncio --processes 2

Connections of every kind are opened, used, half closed, cancelled, reset and opened again.  Each
byte tells where it belongs (pattern.py), each connection has a plan by which it has to end
(exchange.py), and what made a connection end otherwise has to be a fault that was injected
(faults.c).  After each round nothing may be left: no descriptor, no task, no memory.

The seed determines what each worker does and, call by call, what fails; which worker comes first is
the kernel's choice.  Exit status 0: nothing was wrong.
"""

import argparse
import asyncio
import collections
import contextlib
import errno
import faulthandler
import gc
import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from asyncio.constants import ACCEPT_RETRY_DELAY

from exchange import End, Exchange
from faults import Faults, build, environment
from traffic import Clients, Servers

import pyreactor

SEVERE = [
    *(errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENETUNREACH),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC),
    *(errno.EPERM, errno.EADDRNOTAVAIL),
]
ROUND_SECONDS = 10
ACTIVITY_SECONDS_MAX = 60  # of one thing done; it takes a fraction of a second
SILENCE_SECONDS_MAX = 90  # without a turn of the loop, after which all threads are shown
SETTLE_SECONDS_MAX = 30
FAILURES_MAX = 10
# Arenas of CPython's allocator, which a lucky round can do with a few less of. Ten minutes are some
# 200,000 connections, so that a leak of 100 bytes each is more than this.
RESIDENT_SLACK_KIB = 12 * 1024
ROUNDS_TO_COMPARE_MIN = 6


def resident_kib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def open_descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir() itself used
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


class Soak:
    """One process of the test: its loop, what it has seen, and what was wrong."""

    def __init__(self, options):
        self.options = options
        self.faults = Faults()
        self.is_asyncio = options.python_loop == "asyncio"
        self.loop = asyncio.SelectorEventLoop() if self.is_asyncio else pyreactor.Loop()
        self.loop.set_exception_handler(self.on_report)
        if self.is_asyncio:
            for end in (self.loop._ssock, self.loop._csock):
                self.faults.spare(end.fileno())
        self.random = random.Random(options.seed)
        self.counts = collections.Counter()
        self.failures = []
        self.exchanges = {}
        self.unattached = set()
        self.datagram_addresses = {}
        self.resident = []

    # What is wrong, and what an injected fault explains

    def fail(self, text):
        print("FAILED:", text, file=sys.stderr, flush=True)
        self.failures.append(text)

    def severe_faults(self):
        return sum(map(self.faults.count, SEVERE))

    def is_explained(self, exc, since=0):
        """True where the exception can come from a fault injected after `since` were."""
        known = isinstance(exc, (OSError, asyncio.IncompleteReadError))
        return known and self.severe_faults() > since

    def note(self, exc, since=0):
        """An exception that only a fault may have brought about."""
        if isinstance(exc, asyncio.CancelledError):
            return
        if self.is_explained(exc, since):
            self.counts[f"faults seen as {type(exc).__name__}"] += 1
            return
        self.fail("".join(traceback.format_exception(exc)))

    def blame(self, end, text):
        self.blame_exchange(end.exchange, f"{end!r}: {text}")

    def blame_exchange(self, exchange, text):
        """An exchange that went wrong, which a fault in one of its ends explains."""
        if exchange.is_broken(self.faults):
            self.counts["exchanges broken by a fault"] += 1
        elif self.other_end_unknown(exchange) and self.severe_faults() > exchange.faults_before:
            self.counts["exchanges broken out of sight"] += 1
        else:
            self.fail(f"{exchange!r}: {text}")

    def other_end_unknown(self, exchange):
        """True where a fault in the other end would not be known here."""
        return self.options.processes > 1 or exchange.server is None

    def on_report(self, loop, context):
        exc = context.get("exception")
        if exc is not None and self.is_explained(exc):
            self.counts["faults reported to the exception handler"] += 1
            return
        text = f"exception handler: {context}"
        if exc is not None:
            text += "\n" + "".join(traceback.format_exception(exc))
        self.fail(text)

    # Exchanges

    def begin(self, exchange):
        self.exchanges[exchange.key] = exchange
        exchange.faults_before = self.severe_faults()
        return exchange

    def attach(self, end, header):
        """The exchange whose header has come to a server."""
        exchange = self.exchanges.get(header[0])
        if exchange is None:  # begun in another process, or given up by its client
            exchange = Exchange(*header)
            exchange.faults_before = 0
        elif exchange.header() != Exchange(*header).header() or exchange.server is not None:
            self.fail(f"a header came that was not sent: {header} for {exchange!r}")
        exchange.server = end or True
        return exchange

    def lost_early(self, inode):
        if not self.faults.of(inode):
            self.counts["connections lost before their header"] += 1

    async def finish(self, exchange):
        """Wait for the server's end."""
        while exchange.server is None and self.options.processes == 1:
            if exchange.is_broken(self.faults) or self.severe_faults() > exchange.faults_before:
                break
            if exchange.strike:
                break
            await asyncio.sleep(0.005)
        done = getattr(exchange.server, "done", None)
        if done is not None:
            await asyncio.shield(done)
        self.counts[f"ended: {exchange.plan.name}"] += 1

    def forget(self, key):
        """Drop an exchange, unless its server may still hear of it."""
        exchange = self.exchanges.get(key)
        if exchange is not None and exchange.server is not None:
            del self.exchanges[key]

    def send_if_possible(self, sock):
        with contextlib.suppress(OSError):
            sock.send(b"hello")

    # Running

    async def guard(self, coroutine):
        """Await something whose failure is a failure of the test, and whose hanging, too."""
        before = self.severe_faults()
        watch = self.loop.call_later(ACTIVITY_SECONDS_MAX, self.give_up, asyncio.current_task())
        try:
            await coroutine
        except asyncio.CancelledError:
            if watch.when() > self.loop.time():
                raise
        except Exception as exc:
            self.note(exc, before)
        finally:
            watch.cancel()

    def give_up(self, task):
        self.fail(f"no end after {ACTIVITY_SECONDS_MAX} s: {task!r}")
        self.show_tasks()  # while it still hangs
        task.cancel()

    def show_tasks(self):
        shown = io.StringIO()
        for task in asyncio.all_tasks(self.loop):
            print(task.get_coro(), "in", file=shown)
            awaited = task.get_coro()
            while awaited is not None:
                frame = getattr(awaited, "cr_frame", None)
                if frame is not None:
                    print(f"    {frame.f_code.co_name}:{frame.f_lineno}", file=shown)
                awaited = getattr(awaited, "cr_await", None)
        for exchange in self.exchanges.values():
            for end in (exchange.client, exchange.server):
                if isinstance(end, End) and not end.done.done():
                    print(end, file=shown)
        print(shown.getvalue(), *self.unattached, file=sys.stderr, flush=True)

    async def work(self, clients, worker, until):
        """Do one thing after the other."""
        rng = self.workers_random[worker]
        kinds = clients.kinds()
        weights = list(kinds.values())
        while time.monotonic() < until and len(self.failures) < FAILURES_MAX:
            self.key = key = self.key + 1
            activity = rng.choices(list(kinds), weights)[0]
            await self.guard(activity(key, rng))
            self.counts[activity.__name__] += 1
            self.forget(key)

    async def settle(self):
        """Wait until what the peers of aborted connections have to say is heard."""
        until = time.monotonic() + SETTLE_SECONDS_MAX
        while self.unattached or len(asyncio.all_tasks()) > 1:
            if time.monotonic() > until:
                self.fail(f"left behind: {self.unattached} {asyncio.all_tasks()}")
                self.show_tasks()
                return
            await asyncio.sleep(0.01)

    def keep_watch(self):
        faulthandler.dump_traceback_later(SILENCE_SECONDS_MAX, exit=True)
        self.watch = self.loop.call_later(1, self.keep_watch)

    async def run_rounds(self, clients):
        """Rounds of traffic, and what they leave behind."""
        seconds = min(ROUND_SECONDS, self.options.seconds / 3)
        end = time.monotonic() + self.options.seconds
        self.key = self.options.seed << 32
        self.workers_random = [
            random.Random(f"{self.options.seed}/{worker}") for worker in range(self.options.workers)
        ]
        before = open_descriptors()
        while time.monotonic() < end and not self.failures:
            self.faults.enable()
            until = time.monotonic() + seconds
            async with asyncio.TaskGroup() as group:
                for worker in range(self.options.workers):
                    group.create_task(self.work(clients, worker, until))
            await self.settle()
            self.faults.enable(False)
            # A listener that was out of descriptors accepts what has waited meanwhile.
            await asyncio.sleep(ACCEPT_RETRY_DELAY * 1.1 if self.options.severe else 0)
            await self.settle()
            self.datagram_addresses.clear()
            self.exchanges.clear()
            gc.collect()
            self.resident.append(resident_kib())
            after = open_descriptors()
            if after != before:
                gone, more = before.items() - after.items(), after.items() - before.items()
                self.fail(f"descriptors before and after differ: {gone} and {more}")
        self.descriptors = (len(before), len(open_descriptors()))

    async def serve(self, servers):
        """Be the server until standard input ends."""
        servers.tell()
        before = open_descriptors()
        self.faults.enable()
        print("ready", flush=True)
        await self.loop.run_in_executor(None, sys.stdin.read)
        self.faults.enable(False)
        await asyncio.sleep(ACCEPT_RETRY_DELAY * 1.1 if self.options.severe else 0)
        await self.settle()
        gc.collect()
        self.resident.append(resident_kib())
        self.descriptors = (len(before), len(open_descriptors()))
        if self.descriptors[0] != self.descriptors[1]:
            self.fail(f"descriptors of the server: {before} and {open_descriptors()}")

    async def main(self, folder):
        self.keep_watch()
        options = self.options
        servers = Servers(self, folder)
        if options.role != "client":
            await servers.start()
        if options.role == "server":
            await self.serve(servers)
        else:
            await self.run_rounds(Clients(self, servers.addresses, servers.certificate, folder))
        await servers.stop()
        self.watch.cancel()

    def run(self, folder):
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self.main(folder))
        finally:
            self.faults.enable(False)
            faulthandler.cancel_dump_traceback_later()
        gc.collect()
        if not self.is_asyncio and any(self.loop._live_counts().values()):
            self.fail(f"alive after close(): {self.loop._live_counts()}")
        if self.options.mild and not self.faults.report():
            self.fail("no system call was made to fail")
        self.check_memory()

    def check_memory(self):
        first, last = self.resident_by_third()
        is_long = len(self.resident) >= ROUNDS_TO_COMPARE_MIN
        if is_long and last - first > RESIDENT_SLACK_KIB and not self.options.no_memory_check:
            self.fail(f"{last - first} KiB more are resident at the end than at the beginning")

    def resident_by_third(self):
        """The least after a round of the first third, and of the last."""
        third = max(1, len(self.resident) // 3)
        return min(self.resident[:third]), min(self.resident[-third:])

    def on_unraisable(self, unraisable):
        self.fail(
            f"unraisable: {unraisable.err_msg} {unraisable.object!r}\n"
            + "".join(traceback.format_exception(unraisable.exc_value))
        )

    def summary(self):
        return {
            "loop": f"{type(self.loop).__module__}.{type(self.loop).__name__}",
            "python": platform.python_version() + getattr(sys, "abiflags", ""),
            "role": self.options.role,
            "seconds": self.options.seconds,
            "seed": self.options.seed,
            "counts": dict(sorted(self.counts.items())),
            "faults": dict(sorted(self.faults.report().items())),
            "faults in all": sum(self.faults.report().values()),
            "descriptors before and after": self.descriptors,
            "resident KiB, first and last third": self.resident_by_third(),
            "failures": len(self.failures),
        }


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--python-loop", choices=["asyncio", "pyreactor"], default="pyreactor")
    parser.add_argument("--processes", type=int, choices=[1, 2], default=1)
    parser.add_argument("--workers", type=int, default=24, help="things done at a time")
    parser.add_argument("--mild", type=int, default=20_000, help="per million system calls")
    parser.add_argument("--severe", type=int, default=200, help="per million system calls")
    parser.add_argument("--only", nargs="*", metavar="THING", help="do these things alone")
    parser.add_argument("--no-memory-check", action="store_true", help="for sanitizers")
    parser.add_argument("--role", choices=["both", "client", "server"], default="both")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_with_faults(options, arguments):
    """Start this program once more, under the library, or twice: as the server and the client."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        library = build(folder)

        def command(role, **more):
            faults = environment(
                library,
                seed=options.seed + (role == "server"),
                mild_ppm=options.mild,
                severe_ppm=options.severe,
            )
            return {
                "args": [sys.executable, __file__, *arguments, "--role", role, "--folder", folder],
                "env": dict(os.environ, **faults),
                **more,
            }

        if options.processes == 1:
            return subprocess.run(**command("both")).returncode
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(**command("server", **pipes)) as server:
            server.stdout.readline()
            status = subprocess.run(**command("client")).returncode
            output, _ = server.communicate()
        print(output, end="")
        return status or server.returncode


def main(arguments):
    options = parse(arguments)
    if options.folder is None:
        return run_with_faults(options, arguments)
    warnings.simplefilter("error", ResourceWarning)
    soak = Soak(options)
    sys.unraisablehook = soak.on_unraisable
    soak.run(options.folder)
    print(json.dumps(soak.summary(), indent=2))
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
