"""Everything at once on one dispatcher, by chance, for a while: what threads may do to it, they do.

usage: dispatch.py [--seconds N] [--seed N] [--kind KIND]

Threads register and remove handles (so that their numbers come again), suspend, resume, modify,
start and cancel timers, send signals and stop the dispatcher at some moment; handlers remove
themselves, answer CLOSE and raise.  What has to hold: each handler is closed once, is never called
in two threads at once nor after its close, no descriptor is left, and nothing hangs.  A crash is
what a program for a Python without a GIL looks for.
"""

import argparse
import faulthandler
import os
import random
import signal
import socket
import sys
import threading
import time

from pyreactor.demultiplexers import (
    EpollDemultiplexer,
    PollDemultiplexer,
    SelectDemultiplexer,
    UringDemultiplexer,
)
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handle_set import HandleSet
from pyreactor.handlers import (
    CLOSE,
    AcceptHandler,
    CompletionHandler,
    EventHandler,
    SignalHandler,
    TimerHandler,
    UnboundHandlerError,
)
from pyreactor.request_queue import RequestQueue

HANG_SECONDS = 60
HANDLES_MAX = 100  # of one set; those that rest hear of no hang-up
SIGNAL = signal.SIGRTMIN + 8
KINDS = {
    "reactor": lambda demux, **o: Reactor(demux(), workers=4, queue=RequestQueue(4), **o),
    "half-reactive": lambda demux, **o: HalfSyncHalfReactive(
        "reactor", "mutex", demux(), workers=4, **o
    ),
    "simulated": lambda demux, **o: HalfSyncHalfReactive(
        "simulated_proactor", RequestQueue(4), demux(), workers=4, **o
    ),
    "half-async": lambda demux, **o: HalfSyncHalfAsync(demux, async_threads=2, sync_threads=4, **o),
    "efficient": lambda demux, **o: EfficientHalfSyncHalfAsync(3, "ring", demux, **o),
    "leader-followers": lambda demux, **o: LeaderFollowers(HandleSet(demux(), **o), threads=4),
    "delegating": lambda demux, **o: LeaderFollowers(
        HandleSet(demux(), **o), threads=4, delegate=True
    ),
}
READING = {"simulated", "half-async"}
DEMULTIPLEXERS = [EpollDemultiplexer, PollDemultiplexer, SelectDemultiplexer, UringDemultiplexer]


class Failure(Exception):
    """What may not be."""


class Checked:
    """What every handler here is: it counts its calls, and behaves by chance."""

    def __init__(self, run, sock):
        self.run = run
        self.sock = sock
        self.inside = threading.Lock()
        self.closes = 0

    def act(self, handle):
        if not self.inside.acquire(blocking=False):
            self.run.fail("a handler is called in two threads at once")
            return None
        try:
            if self.closes:
                self.run.fail("a handler is called after its close")
            chance = self.run.chance
            self.run.calls += 1
            kind = chance.randrange(40)
            if kind == 0:
                return CLOSE
            if kind == 1:
                raise RuntimeError("by chance")
            if kind == 2:
                self.handle_set.remove_handle(handle)
            elif kind == 3:
                self.handle_set.suspend(handle)
                self.handle_set.schedule_timer(TimerHandler(self.resume), 0.001, data=handle)
            elif kind == 4:
                time.sleep(0.001)
            elif kind == 5:
                self.handle_set.schedule_timer(TimerHandler(lambda timer: None), 0.0005, 0.0005)
            return None
        except KeyError:
            return None  # somebody else has removed it
        finally:
            self.inside.release()

    def resume(self, timer):
        try:
            self.handle_set.resume(timer.data)
        except (KeyError, RuntimeError, ValueError):
            pass  # it is gone

    def handle_close(self, handle):
        self.closes += 1
        if self.closes != 1:
            self.run.fail("a handler is closed twice")
        if self.sock.fileno() != handle:
            self.run.fail(f"{handle} is to be closed, which is {self.sock.fileno()}")
        self.sock.close()
        self.run.closed.release()


class Ready(Checked, EventHandler):
    def handle_event(self, handle, event_type):
        try:
            data = self.sock.recv(100)
        except BlockingIOError:
            data = b"none"
        except OSError:
            return CLOSE
        return self.act(handle) if data else CLOSE


class Completed(Checked, CompletionHandler):
    def handle_read(self, completion):
        answer = self.act(completion.handle)
        return completion.data if answer is None else answer


class Run:
    """One dispatcher's life."""

    def __init__(self, kind, demux, chance, seconds):
        self.kind, self.demux, self.chance = kind, demux, chance
        self.seconds = seconds
        self.failures = []
        self.calls = 0
        self.made = 0
        self.closed = threading.Semaphore(0)
        self.over = threading.Event()
        self.peers = []
        self.peers_lock = threading.Lock()

    def fail(self, text):
        self.failures.append(text)

    def on_error(self, handler, exc):
        if str(exc) != "by chance":
            self.fail(f"{handler!r} raised {exc!r}")

    def make(self, sock):
        """A handler; refused sockets are closed by whoever wanted to register them."""
        sock.setblocking(False)
        return (Completed if self.kind in READING else Ready)(self, sock)

    def go(self):
        strict = self.chance.random() < 0.5
        dispatcher = KINDS[self.kind](self.demux, strict=strict, on_error=self.on_error)
        dispatcher.register_signal(SIGNAL, SignalHandler(lambda number: None))
        acceptor = AcceptHandler(("127.0.0.1", 0), self.accepted)
        dispatcher.register_handle(acceptor, acceptor)
        self.address = acceptor.address
        dispatcher.start()
        work = [self.churn, self.churn, self.feed, self.time, self.disturb, self.connect]
        threads = [threading.Thread(target=self.guard, args=[one, dispatcher]) for one in work]
        for thread in threads:
            thread.start()
        time.sleep(self.seconds * self.chance.random())
        if self.chance.random() < 0.5:
            self.over.set()
        dispatcher.stop(self.chance.random() < 0.5, timeout=HANG_SECONDS)
        self.over.set()
        for thread in threads:
            thread.join(HANG_SECONDS)
            if thread.is_alive():
                raise Failure(f"{thread.name} hangs")
        for _ in range(self.made):
            if not self.closed.acquire(blocking=False):
                raise Failure("; ".join(["a handler was not closed", *self.failures[:5]]))
        for peer in self.peers:
            peer.close()
        if dispatcher.stats().get("violations"):
            raise Failure("a state changed as it may not")
        if self.failures:
            raise Failure("; ".join(self.failures[:5]))

    def accepted(self, sock):
        handler = self.make(sock)
        with self.peers_lock:
            self.made += 1
        return handler

    def guard(self, work, dispatcher):
        chance = random.Random(self.chance.random())
        try:
            while not self.over.is_set():
                work(dispatcher, chance)
        except ValueError as exc:
            if "closed" not in str(exc):
                self.fail(f"{work.__name__}: {exc!r}")
        except BaseException as exc:
            self.fail(f"{work.__name__}: {exc!r}")

    def churn(self, dispatcher, chance):
        """Register a handle, and perhaps remove it again."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        handler = self.make(ours)
        number = ours.fileno()
        try:
            dispatcher.register_handle(ours, handler)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        with self.peers_lock:
            self.made += 1
            self.peers.append(theirs)
            old = self.peers.pop(0) if len(self.peers) > 30 else None
        if old is not None:
            old.close()
        if chance.random() < 0.3:
            try:
                self.remove(handler.handle_set, number)
            except UnboundHandlerError:
                pass  # it has removed itself

        for handle_set in dispatcher._handle_sets:
            handles = handle_set.handles()
            for fd in chance.sample(handles, max(0, len(handles) - HANDLES_MAX)):
                self.remove(handle_set, fd)
                time.sleep(0.001)  # they are out when their thread comes to them

    def remove(self, handle_set, number):
        try:
            handle_set.remove_handle(number)
        except KeyError:
            pass  # it was removed already, and perhaps it is closed later

    def feed(self, dispatcher, chance):
        """Send to some of them."""
        with self.peers_lock:
            peers = chance.sample(self.peers, min(5, len(self.peers)))
        for peer in peers:
            try:
                peer.send(b"x" * chance.randrange(1, 200))
                if chance.random() < 0.3:
                    peer.recv(1000)
            except OSError:
                pass
        time.sleep(0)

    def time(self, dispatcher, chance):
        """Timers whose only reference is the dispatcher's, cancelled when they are due."""
        timers = [
            dispatcher.schedule_timer(
                TimerHandler(lambda timer: chance.random() < 0.1 and CLOSE),
                chance.random() * 0.001,
                0.0002 if chance.random() < 0.5 else None,
            )
            for _ in range(10)
        ]
        time.sleep(chance.random() * 0.001)
        for timer in timers:
            dispatcher.cancel_timer(timer)

    def disturb(self, dispatcher, chance):
        """Do something to a handle of any number, whoever has it now."""
        handles = [fd for handle_set in dispatcher._handle_sets for fd in handle_set.handles()]
        for number in chance.sample(handles, min(3, len(handles))):
            try:
                chance.choice(
                    [
                        lambda number=number: dispatcher.suspend(number),
                        lambda number=number: dispatcher.resume(number),
                        lambda number=number: dispatcher.resume(number),
                        lambda number=number: dispatcher.modify_handle(number, 1),
                        lambda number=number: dispatcher.modify_handle(number, 0),
                        dispatcher.stats,
                    ]
                )()
            except (KeyError, OSError):
                pass
        if chance.random() < 0.1:
            os.kill(os.getpid(), SIGNAL)

    def connect(self, dispatcher, chance):
        """Come and go through the listener."""
        try:
            with socket.create_connection(self.address, timeout=0.05) as client:
                client.sendall(b"hello")
                if chance.random() < 0.5:
                    client.recv(5)
        except OSError:
            pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    # The thread that waits for the stop has to stay; those of the tests block it.
    signal.signal(SIGNAL, signal.SIG_IGN)
    deadline = time.monotonic() + options.seconds
    seed, runs, calls = options.seed, 0, 0
    while time.monotonic() < deadline or runs == 0:
        chance = random.Random(seed)
        kind = options.kind or chance.choice(list(KINDS))
        demux = chance.choice(DEMULTIPLEXERS)
        faulthandler.dump_traceback_later(3 * HANG_SECONDS, exit=True)
        before = len(os.listdir("/proc/self/fd"))
        run = Run(kind, demux, chance, min(1.0, options.seconds))
        try:
            run.go()
        except Failure as failure:
            print(f"seed {seed}, {kind} on {demux.__name__}: {failure}", file=sys.stderr)
            sys.exit(1)
        del run.peers
        left = len(os.listdir("/proc/self/fd")) - before
        # An acceptor and a demultiplexer that wait for the collector are no leak.
        if left > 10:
            print(f"seed {seed}, {kind}: {left} descriptors are left", file=sys.stderr)
            sys.exit(1)
        calls += run.calls
        seed += 1
        runs += 1
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"{runs} dispatchers, {calls} calls of handlers; {'with' if gil else 'without'} a GIL")


if __name__ == "__main__":
    main()
