"""The program that the witness looks at: one dispatcher, which echoes.  See witness.py.

usage: stage.py KIND [OPTION=VALUE ...]

Each call of a handler is between two marks, "handle/FD" and "handled/FD".  Beside "mark" it can be
told to "hold" the next calls, to tell when they are "held", to "release" them, to set a "timer", to
send itself a "signal", to tell when these have "happened", and for "stats".
"""

from __future__ import annotations

import ast
import os
import signal
import sys
import threading
from typing import Any

import witness

from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handle_set import HandleSet
from pyreactor.handlers import (
    AcceptHandler,
    EchoHandler,
    EchoService,
    SignalHandler,
    TimerHandler,
)

SIGNAL = signal.SIGRTMIN + 7

# How each is made; the options are those of the command line.
KINDS = {
    "reactor": Reactor,
    "half-reactive": HalfSyncHalfReactive,
    "half-async": HalfSyncHalfAsync,
    "efficient": EfficientHalfSyncHalfAsync,
    "leader-followers": lambda strict=False, **options: LeaderFollowers(
        HandleSet(strict=strict), **options
    ),
}


class Gate:
    """Where calls of handlers are held, if they are to be."""

    def __init__(self) -> None:
        self._to_hold = 0
        self._held = threading.Semaphore(0)
        self._open = threading.Event()

    def hold(self, count: int = 1) -> None:
        """Hold the next `count` calls."""
        self._open.clear()
        self._to_hold = count

    def held(self, count: int = 1) -> bool:
        """Wait until that many calls are held."""
        return all(self._held.acquire(timeout=witness.PATIENCE) for _ in range(count))

    def release(self) -> None:
        """Let them go on."""
        self._open.set()

    def pass_through(self) -> None:
        """Called in a handler."""
        if self._to_hold > 0:
            self._to_hold -= 1
            self._held.release()
            self._open.wait()


gate = Gate()


class Marked:
    """Marks what a handler does, in whichever thread it does it."""

    def handle_event(self, handle: int, event_type: int) -> Any:
        """Between two marks."""
        witness.mark(f"handle/{handle}")
        gate.pass_through()
        try:
            return super().handle_event(handle, event_type)  # type: ignore[misc]
        finally:
            witness.mark(f"handled/{handle}")

    def handle_read(self, completion: Any) -> Any:
        """Between two marks."""
        witness.mark(f"handle/{completion.handle}")
        gate.pass_through()
        try:
            return super().handle_read(completion)  # type: ignore[misc]
        finally:
            witness.mark(f"handled/{completion.handle}")


class MarkedEcho(Marked, EchoHandler):
    """Reads and writes itself."""


class MarkedService(Marked, EchoService):
    """Has it done."""


def serve(kind: str, options: dict[str, Any]) -> None:
    """Run the dispatcher in this thread, and obey in another."""
    dispatcher = KINDS[kind](**options)
    reads = any(handle_set._reads_for_handlers for handle_set in dispatcher._handle_sets)
    acceptor = AcceptHandler(("127.0.0.1", 0), MarkedService if reads else MarkedEcho)
    dispatcher.register_handle(acceptor, acceptor)
    failed: list[BaseException] = []
    running = threading.Event()
    dispatcher.schedule_timer(TimerHandler(lambda timer: running.set()), 0)

    happened = threading.Semaphore(0)
    note = TimerHandler(lambda timer: happened.release())
    dispatcher.register_signal(SIGNAL, SignalHandler(lambda number: happened.release()))

    def set_timer(seconds: float) -> None:
        dispatcher.schedule_timer(note, seconds)

    def send_signal() -> None:
        os.kill(os.getpid(), SIGNAL)

    def await_happened(count: int) -> None:
        for _ in range(count):
            assert happened.acquire(timeout=witness.PATIENCE)

    def direct() -> None:
        try:
            assert running.wait(witness.PATIENCE)
            with dispatcher._starting:  # the first thread may be there before the last
                pass
            roles = {tid: role_of(name) for tid, name in dispatcher.threads().items()}
            roles[os.getpid()] = role_of(f"-{dispatcher._main_name}")
            facts = {"address": acceptor.address, "roles": roles, "listener": acceptor.fileno()}
            actions: dict[str, Any] = {
                "hold": gate.hold,
                "held": gate.held,
                "release": gate.release,
                "timer": set_timer,
                "signal": send_signal,
                "happened": await_happened,
                "stats": dispatcher.stats,
            }
            witness.obey(facts, actions)
        except BaseException as exc:
            failed.append(exc)
            raise
        finally:
            gate.release()
            dispatcher.stop()

    threading.Thread(target=direct, name="director").start()
    dispatcher.run()
    sys.exit(bool(failed))


def role_of(name: str) -> str:
    """The role in a thread's name: "worker" of "Reactor-worker-0"."""
    return name.split("-")[1]


def value_of(text: str) -> Any:
    """What an option says: a literal, or else a text."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


if __name__ == "__main__":
    options = (argument.split("=", 1) for argument in sys.argv[2:])
    serve(sys.argv[1], {name: value_of(value) for name, value in options})
