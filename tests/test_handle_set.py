"""Handle sets: what they refuse, and what handlers may do to them."""

import math
import os
import signal
import socket
import threading

import pytest

from pyreactor.handle_set import HandleSet
from pyreactor.handlers import CLOSE, EventHandler, SignalHandler, TimerHandler

PATIENCE = 15.0


class Handler(EventHandler):
    """Calls a function."""

    def __init__(self, function):
        self.function = function
        self.closed = []

    def handle_event(self, handle, event_type):
        return self.function(handle, event_type)

    def handle_close(self, handle):
        self.closed.append(handle)


@pytest.fixture
def reported():
    return []


@pytest.fixture
def handle_set(reported):
    with HandleSet(on_error=lambda handler, exc: reported.append(exc)) as handle_set:
        yield handle_set


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


# --- Timers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1e12, math.inf, 2**62 / 1e9])
def test_a_timer_of_the_far_future_is_not_due(handle_set, delay):
    seen = []
    timer = handle_set.schedule_timer(TimerHandler(seen.append), delay)
    assert handle_set.handle_events(0.01) == 0
    assert seen == [] and timer.active
    assert handle_set.cancel_timer(timer)


def test_an_interval_may_be_endless(handle_set):
    seen = []
    timer = handle_set.schedule_timer(TimerHandler(seen.append), 0, math.inf)
    while not seen:
        handle_set.handle_events(PATIENCE)
    assert handle_set.handle_events(0.01) == 0
    assert seen == [timer]


@pytest.mark.parametrize(
    ("delay", "interval", "error"),
    [
        (None, None, TypeError),
        ("1", None, TypeError),
        (math.nan, None, ValueError),
        (0, -1, ValueError),
        (0, 0, ValueError),
        (0, math.nan, ValueError),
    ],
)
def test_a_timer_without_a_time_is_refused(handle_set, delay, interval, error):
    with pytest.raises(error):
        handle_set.schedule_timer(TimerHandler(print), delay, interval)
    assert handle_set.handle_events(0) == 0


# --- What handlers do -----------------------------------------------------------------------------


class Unequal:
    """What cannot be compared."""

    def __eq__(self, other):
        raise ArithmeticError("not to be compared")

    __hash__ = None


@pytest.mark.parametrize("answer", [Unequal(), None, True, 0, "text", 1.5])
def test_any_other_answer_keeps_the_handle(handle_set, pair, reported, answer):
    ours, theirs = pair
    calls = []

    def receive(handle, event_type):
        calls.append(ours.recv(1))
        return answer

    handle_set.register_handle(ours, Handler(receive))
    for _ in range(2):
        theirs.send(b"x")
        handle_set.handle_events(PATIENCE)
    assert calls == [b"x", b"x"] and reported == []


def test_an_error_hook_that_raises_is_survived(pair, capfd, caplog):
    ours, theirs = pair

    def hook(handler, exc):
        raise ArithmeticError("the hook failed")

    def fail(handle, event_type):
        raise RuntimeError("the handler failed")

    with HandleSet(on_error=hook) as handle_set:
        handler = Handler(fail)
        handle_set.register_handle(ours, handler)
        theirs.send(b"x")
        assert handle_set.handle_events(PATIENCE) == 1
        assert handler.closed == [ours.fileno()]
        assert handle_set.handles() == []
    assert "the hook failed" in caplog.text and "the handler failed" in caplog.text


def test_an_interrupt_goes_through_a_handler(handle_set, pair, reported):
    ours, theirs = pair

    def interrupt(handle, event_type):
        raise KeyboardInterrupt

    handler = Handler(interrupt)
    handle_set.register_handle(ours, handler)
    theirs.send(b"x")
    with pytest.raises(KeyboardInterrupt):
        handle_set.handle_events(PATIENCE)
    assert handler.closed == [ours.fileno()] and reported == []


def test_an_interrupt_goes_through_a_timer_and_a_signal(handle_set):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    handle_set.schedule_timer(TimerHandler(interrupt), 0)
    with pytest.raises(KeyboardInterrupt):
        while True:
            handle_set.handle_events(PATIENCE)
    number = signal.SIGRTMIN + 6
    handle_set.register_signal(number, SignalHandler(interrupt))
    for _ in range(2):  # the source is waited for again after the first
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            handle_set.handle_events(PATIENCE)
    handle_set.remove_signal(number)


def test_a_number_may_be_registered_again_before_it_is_closed(handle_set, pair):
    ours, theirs = pair
    calls = []
    later = Handler(lambda handle, event_type: calls.append(ours.recv(1)))

    class Again(Handler):
        def handle_close(self, handle):
            super().handle_close(handle)
            handle_set.register_handle(handle, later)

    first = Again(lambda handle, event_type: CLOSE)
    handle_set.register_handle(ours, first)
    theirs.send(b"x")
    while not calls:
        handle_set.handle_events(PATIENCE)
    assert first.closed == [ours.fileno()]
    handle_set.remove_handle(ours)
    assert later.closed == [ours.fileno()]


def test_a_handle_that_was_closed_by_somebody_else_is_forgotten(handle_set):
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    handler = Handler(lambda handle, event_type: ours.close())
    handle_set.register_handle(ours, handler)
    with theirs:
        theirs.send(b"x")
        assert handle_set.handle_events(PATIENCE) == 1
    assert handler.closed == [number] and handle_set.handles() == []


# --- Closing --------------------------------------------------------------------------------------


def test_a_closed_set_says_so(pair):
    ours, _ = pair
    handle_set = HandleSet()
    timer = handle_set.schedule_timer(TimerHandler(print), 3600)
    handle_set.close()
    handle_set.close()
    for call in (
        lambda: handle_set.register_handle(ours, Handler(print)),
        lambda: handle_set.remove_handle(ours),
        lambda: handle_set.modify_handle(ours, 1),
        lambda: handle_set.suspend(ours),
        lambda: handle_set.schedule_timer(TimerHandler(print), 0),
        lambda: handle_set.cancel_timer(timer),
        lambda: handle_set.wait_for_event(0),
        handle_set.stats,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_threads_may_use_a_set_while_it_is_closed():
    """They get ValueError from some moment on, whatever they do."""
    for _ in range(50):
        handle_set = HandleSet()
        ready = threading.Barrier(4)

        def use(handle_set=handle_set, ready=ready):
            ready.wait()
            try:
                while True:
                    timer = handle_set.schedule_timer(TimerHandler(print), 3600)
                    handle_set.cancel_timer(timer)
                    handle_set.stats()
            except ValueError:
                pass

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        handle_set.close()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
