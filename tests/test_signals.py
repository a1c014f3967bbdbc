"""Signal handlers of the loop, and what a signal does to a loop that has none."""

import asyncio
import contextlib
import contextvars
import functools
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

NEVER = 3600.0

needs_a_wakeup_for_every_signal = pytest.mark.asyncio_differs(
    "a signal that comes just before the wait is not seen until something else ends the wait"
)


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


def run_turns_after_signal(loop):
    """Let the loop see the signals that have come and run their handlers."""
    run_turns(loop, 3)


@pytest.fixture(autouse=True)
def _signals_put_back(loop):
    """Handlers and wakeup descriptor have to be as before when the loop is closed."""
    watched = (signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}
    yield
    if not loop.is_closed():
        loop.close()
    after = {number: signal.getsignal(number) for number in watched}
    for number in watched:
        signal.signal(number, before[number])
    wakeup_fd = signal.set_wakeup_fd(-1)
    assert wakeup_fd == -1
    assert after == before


class SignalOnceIdle:
    """A thread that sends the main thread a signal when the loop has nothing left to do."""

    def __init__(self, loop, number):
        self.number = number
        self.idle = threading.Event()
        self.thread = threading.Thread(target=self.run)
        loop.call_soon(self.idle.set)

    def run(self):
        self.idle.wait()
        signal.pthread_kill(threading.main_thread().ident, self.number)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *exc_info):
        self.thread.join()


# Adding and removing


def test_a_handler_is_called_with_its_arguments(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, lambda *arguments: calls.append(arguments), 1, "two")
    signal.raise_signal(signal.SIGUSR1)
    assert calls == []
    run_turns_after_signal(loop)
    assert calls == [(1, "two")]
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_wakes_an_idle_loop(loop):
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    with SignalOnceIdle(loop, signal.SIGUSR1):
        loop.run_forever()
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_from_another_process_is_handled(loop):
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    loop.run_forever()
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_that_comes_between_runs_is_handled_in_the_next_one(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "handled")
    run_turns(loop)
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == ["handled"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_new_handler_replaces_the_old_one(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "old")
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "new")
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == ["new"]
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert not loop.remove_signal_handler(signal.SIGUSR1)


def test_removing_tells_whether_there_was_a_handler(loop):
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, print)
    assert loop.remove_signal_handler(signal.SIGUSR2) is False
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_removing_one_handler_leaves_the_others(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "first")
    loop.add_signal_handler(signal.SIGUSR2, calls.append, "second")
    loop.remove_signal_handler(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    run_turns_after_signal(loop)
    assert calls == ["second"]
    loop.remove_signal_handler(signal.SIGUSR2)


def test_a_handler_removed_before_its_turn_is_not_called(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "removed")
    signal.raise_signal(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == []


def test_a_handler_can_remove_itself(loop):
    calls = []

    def once():
        calls.append(loop.remove_signal_handler(signal.SIGUSR1))

    loop.add_signal_handler(signal.SIGUSR1, once)
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == [True]


def test_sigchld_can_be_handled(loop):
    loop.add_signal_handler(signal.SIGCHLD, loop.stop)
    pid = os.posix_spawn("/bin/true", ["true"], {})
    loop.run_forever()
    assert loop.remove_signal_handler(signal.SIGCHLD)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_many_signals_are_all_handled(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "first")
    loop.add_signal_handler(signal.SIGUSR2, calls.append, "second")
    for _ in range(100):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
    run_turns_after_signal(loop)
    assert calls == ["first", "second"] * 100
    loop.remove_signal_handler(signal.SIGUSR1)
    loop.remove_signal_handler(signal.SIGUSR2)


def test_more_signals_than_the_kernel_keeps_do_not_stop_the_loop(loop, monkeypatch):
    # The interpreter may complain of every signal it has no room for.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "handled")
    for _ in range(70_000):
        signal.raise_signal(signal.SIGUSR1)
    run_turns(loop, 100)
    assert 100 < len(calls) <= 70_000
    calls.clear()
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == ["handled"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_an_exception_in_a_handler_is_reported(loop, reported_errors):
    def fail():
        raise ZeroDivisionError

    loop.add_signal_handler(signal.SIGUSR1, fail)
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    (context,) = reported_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_handler_runs_in_the_context_in_which_it_was_added(loop):
    variable = contextvars.ContextVar("variable", default="default")
    seen = []
    context = contextvars.copy_context()
    context.run(variable.set, "of the adding")
    add = functools.partial(loop.add_signal_handler, signal.SIGUSR1)
    context.run(add, lambda: seen.append(variable.get()))
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert seen == ["of the adding"]
    loop.remove_signal_handler(signal.SIGUSR1)


# What is refused


@pytest.mark.parametrize("number", ["SIGUSR1", None, 1.5])
def test_a_signal_has_to_be_a_number(loop, number):
    with pytest.raises(TypeError, match="sig must be an int"):
        loop.add_signal_handler(number, print)
    with pytest.raises(TypeError, match="sig must be an int"):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [-1, 0, signal.NSIG, 1000])
def test_a_signal_that_does_not_exist_is_a_value_error(loop, number):
    with pytest.raises(ValueError, match="invalid signal number"):
        loop.add_signal_handler(number, print)
    with pytest.raises(ValueError, match="invalid signal number"):
        loop.remove_signal_handler(number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signal_that_cannot_be_caught_is_a_runtime_error(loop, number):
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"sig {number:d} cannot be caught"):
            loop.add_signal_handler(number, print)
    assert loop.remove_signal_handler(number) is False


def test_a_coroutine_is_no_handler(loop):
    async def coroutine_function():
        pass

    coroutine = coroutine_function()
    for callback in (coroutine_function, coroutine):
        with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
            loop.add_signal_handler(signal.SIGUSR1, callback)
    coroutine.close()


def test_a_closed_loop_takes_no_handler(loop):
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_signal_handler(signal.SIGUSR1, print)


def test_handlers_can_be_added_in_the_main_thread_only(loop):
    def add():
        with pytest.raises(RuntimeError, match="main thread"):
            loop.add_signal_handler(signal.SIGUSR1, print)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(add).result()


# Handlers and descriptors of others


def test_closing_the_loop_puts_the_default_action_back(loop):
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGTERM, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_removing_the_handler_of_ctrl_c_puts_keyboardinterrupt_back(loop):
    loop.add_signal_handler(signal.SIGINT, print)
    loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.asyncio_differs("it puts the default action in its place")
@pytest.mark.parametrize("end", ["remove", "close"])
def test_the_handler_of_before_is_put_back(loop, end):
    def handler(signum, frame):
        pass

    signal.signal(signal.SIGUSR1, handler)
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGUSR1, print)
    if end == "remove":
        loop.remove_signal_handler(signal.SIGUSR1)
    else:
        loop.close()
    assert signal.getsignal(signal.SIGUSR1) is handler
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.fixture
def wakeup():
    """A descriptor that signals may wake."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        yield near.fileno()


@pytest.mark.asyncio_differs("it leaves no wakeup descriptor")
@pytest.mark.parametrize("end", ["remove", "close"])
def test_the_wakeup_descriptor_of_before_is_put_back(loop, wakeup, end):
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    loop.add_signal_handler(signal.SIGUSR1, print)
    run_turns(loop)
    if end == "remove":
        loop.remove_signal_handler(signal.SIGUSR1)
        run_turns(loop)
    else:
        loop.close()
    assert signal.set_wakeup_fd(-1) == wakeup


@pytest.mark.asyncio_differs("it leaves no wakeup descriptor")
@pytest.mark.parametrize("end", ["remove", "close"])
def test_a_wakeup_descriptor_set_meanwhile_stays(loop, wakeup, end):
    loop.add_signal_handler(signal.SIGUSR1, print)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    if end == "remove":
        loop.remove_signal_handler(signal.SIGUSR1)
    else:
        loop.close()
    assert signal.set_wakeup_fd(-1) == wakeup


def test_a_run_without_handlers_leaves_the_wakeup_descriptor_alone(loop, wakeup):
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    run_turns(loop)
    assert signal.set_wakeup_fd(-1) == wakeup


@pytest.mark.asyncio_differs("the last loop with a handler takes the wakeup descriptor along")
@pytest.mark.parametrize("end", ["remove", "close"])
def test_another_loop_that_comes_and_goes_takes_no_signals_along(loop, new_loop, end):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "handled")
    other = new_loop()
    other.add_signal_handler(signal.SIGUSR2, calls.append, "other")
    run_turns(other)
    if end == "remove":
        other.remove_signal_handler(signal.SIGUSR2)
    other.close()
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == ["handled"]
    with SignalOnceIdle(loop, signal.SIGUSR1):
        loop.call_soon(lambda: None)
        while len(calls) < 2:
            run_turns(loop)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_the_pipe_of_a_loop_closed_earlier_is_not_put_back(loop, new_loop):
    other = new_loop()
    loop.add_signal_handler(signal.SIGUSR1, print)
    other.add_signal_handler(signal.SIGUSR2, print)
    loop.close()
    with contextlib.ExitStack() as stack:
        for _ in range(10):  # the numbers of its descriptors are somebody else's now
            for sock in socket.socketpair():
                stack.enter_context(sock).setblocking(False)
        other.close()
        assert signal.set_wakeup_fd(-1) == -1


def test_a_loop_without_handlers_does_not_take_the_signals_of_another(loop, new_loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "handled")
    other = new_loop()
    run_turns(other)
    other.close()
    signal.raise_signal(signal.SIGUSR1)
    run_turns_after_signal(loop)
    assert calls == ["handled"]
    loop.remove_signal_handler(signal.SIGUSR1)


# Handlers of the interpreter


@needs_a_wakeup_for_every_signal
def test_a_handler_of_the_interpreter_runs_while_the_loop_is_idle(loop):
    def handler(signum, frame):
        loop.call_soon_threadsafe(loop.stop)

    previous = signal.signal(signal.SIGUSR1, handler)
    with SignalOnceIdle(loop, signal.SIGUSR1):
        loop.run_forever()
    signal.signal(signal.SIGUSR1, previous)


@needs_a_wakeup_for_every_signal
def test_an_exception_of_the_interpreters_handler_escapes_from_the_idle_loop(loop):
    class Signalled(KeyboardInterrupt):
        pass

    def handler(signum, frame):
        raise Signalled

    previous = signal.signal(signal.SIGUSR1, handler)
    timer = loop.call_later(NEVER, print)
    with SignalOnceIdle(loop, signal.SIGUSR1):
        with pytest.raises(Signalled):
            loop.run_forever()
    timer.cancel()
    signal.signal(signal.SIGUSR1, previous)
    run_turns(loop)


def test_a_signal_does_not_end_a_sleep_early(loop):
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))

    async def main():
        before = loop.time()
        await asyncio.sleep(0.02)
        return loop.time() - before

    with SignalOnceIdle(loop, signal.SIGUSR1):
        assert loop.run_until_complete(main()) >= 0.02
    assert seen == [signal.SIGUSR1]
    signal.signal(signal.SIGUSR1, previous)


# Ctrl-C


@needs_a_wakeup_for_every_signal
def test_ctrl_c_interrupts_an_idle_loop(loop):
    for _ in range(3):
        with SignalOnceIdle(loop, signal.SIGINT):
            with pytest.raises(KeyboardInterrupt):
                loop.run_forever()
        assert not loop.is_running()
    run_turns(loop)


def test_ctrl_c_interrupts_a_busy_loop(loop):
    def again():
        loop.call_soon(again)

    again()
    with SignalOnceIdle(loop, signal.SIGINT):
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()


@needs_a_wakeup_for_every_signal
def test_ctrl_c_cancels_the_main_task_of_a_runner(loop_type, loop):
    seen = []

    async def main():
        try:
            with SignalOnceIdle(asyncio.get_running_loop(), signal.SIGINT):
                await asyncio.sleep(NEVER)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    with asyncio.Runner(loop_factory=loop_type) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(main())
        assert seen == ["cancelled", "cleaned up"]
        assert runner.run(asyncio.sleep(0, "usable")) == "usable"


async def sleep_for_ever():
    await asyncio.sleep(NEVER)


async def sleep_a_little_again_and_again():
    while True:
        await asyncio.sleep(0.0001)


async def go_to_a_thread_and_back():
    while True:
        await asyncio.to_thread(int)


@needs_a_wakeup_for_every_signal
@pytest.mark.parametrize(
    "main", [sleep_for_ever, sleep_a_little_again_and_again, go_to_a_thread_and_back]
)
def test_ctrl_c_ends_a_runner_whenever_it_comes(loop_type, loop, main):
    async def begun():
        begun_event.set()
        await main()

    def interrupt(delay):
        begun_event.wait()
        time.sleep(delay)
        signal.raise_signal(signal.SIGINT)  # in this thread, not in that of the loop

    for microseconds in range(0, 1500, 30):
        begun_event = threading.Event()
        thread = threading.Thread(target=interrupt, args=(microseconds / 1e6,))
        with asyncio.Runner(loop_factory=loop_type) as runner:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                runner.run(begun())
            thread.join()


@needs_a_wakeup_for_every_signal
def test_a_main_task_may_survive_ctrl_c(loop_type, loop):
    async def main():
        try:
            with SignalOnceIdle(asyncio.get_running_loop(), signal.SIGINT):
                await asyncio.sleep(NEVER)
        except asyncio.CancelledError:
            return "survived"

    with asyncio.Runner(loop_factory=loop_type) as runner:
        assert runner.run(main()) == "survived"


def test_a_handler_for_ctrl_c_takes_the_place_of_keyboardinterrupt(loop):
    loop.add_signal_handler(signal.SIGINT, loop.stop)
    with SignalOnceIdle(loop, signal.SIGINT):
        loop.run_forever()
    loop.remove_signal_handler(signal.SIGINT)
