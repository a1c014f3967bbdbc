"""Scheduling, timers, running and stopping, threads, tasks and reports of the loop itself."""

import asyncio
import contextlib
import contextvars
import fcntl
import gc
import logging
import math
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from unittest import mock

import pytest

import pyreactor
import pyreactor.files

NEVER = 3600.0


nested_run_breaks_the_running_loop = pytest.mark.asyncio_differs(
    "a refused run_forever() clears the state of the running loop",
    when=(3, 13) <= sys.version_info < (3, 13, 3),
)


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


def run_in_thread(function):
    """The result of the function in another thread, or the exception it raised."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def scheduled_timers(loop):
    if isinstance(loop, pyreactor.Loop):
        return loop._live_counts()["timers"]
    return len(loop._scheduled)


# Callbacks


def test_callbacks_run_in_the_order_they_were_scheduled(loop):
    order = []
    for number in range(1000):
        loop.call_soon(order.append, number)
    run_turns(loop)
    assert order == list(range(1000))


def test_callbacks_scheduled_within_a_turn_run_in_the_next_one(loop):
    order = []

    def first():
        order.append("first")
        loop.call_soon(order.append, "nested")

    loop.call_soon(first)
    loop.call_soon(order.append, "second")
    run_turns(loop)
    assert order == ["first", "second"]
    run_turns(loop)
    assert order == ["first", "second", "nested"]


def test_stop_finishes_the_turn_and_leaves_later_callbacks(loop):
    order = []

    def stop_and_go_on():
        loop.stop()
        loop.call_soon(order.append, "next run")

    loop.call_soon(stop_and_go_on)
    loop.call_soon(order.append, "same turn")
    loop.run_forever()
    assert order == ["same turn"]
    run_turns(loop)
    assert order == ["same turn", "next run"]


def test_stop_before_running_lets_one_turn_run(loop):
    order = []
    loop.call_soon(order.append, "callback")
    loop.stop()
    loop.run_forever()
    assert order == ["callback"]


def test_stop_before_running_stops_only_once(loop):
    loop.stop()
    loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "ran")) == "ran"


def test_many_stops_in_one_turn_count_as_one(loop):
    for _ in range(3):
        loop.call_soon(loop.stop)
    loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0, "ran")) == "ran"


def test_an_exception_in_a_callback_is_reported_and_the_others_still_run(loop, reported_errors):
    order = []

    def fail():
        raise ZeroDivisionError("from the callback")

    loop.call_soon(order.append, 1)
    handle = loop.call_soon(fail)
    loop.call_soon(order.append, 2)
    run_turns(loop)
    assert order == [1, 2]
    (context,) = reported_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["handle"] is handle
    assert context["message"].startswith("Exception in callback")
    assert "fail" in context["message"]


def test_a_base_exception_that_is_no_exit_is_reported_too(loop, reported_errors):
    class Unusual(BaseException):
        pass

    def fail():
        raise Unusual

    loop.call_soon(fail)
    run_turns(loop)
    (context,) = reported_errors
    assert isinstance(context["exception"], Unusual)


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_run_forever_and_lose_no_callback(loop, exit_type):
    order = []

    def leave():
        raise exit_type("leaving")

    loop.call_soon(order.append, "before")
    loop.call_soon(leave)
    loop.call_soon(order.append, "after")
    with pytest.raises(exit_type, match="leaving"):
        loop.run_forever()
    assert order == ["before"]
    assert not loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    run_turns(loop)
    assert order == ["before", "after"]


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_from_timers_and_readers(loop, exit_type):
    def leave():
        raise exit_type

    loop.call_later(0, leave)
    with pytest.raises(exit_type):
        loop.run_forever()
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        loop.add_reader(near, leave)
        with pytest.raises(exit_type):
            loop.run_forever()
        loop.remove_reader(near)
    run_turns(loop)


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_from_a_coroutine_and_the_loop_stays_usable(loop, exit_type):
    async def leave():
        raise exit_type

    with pytest.raises(exit_type):
        loop.run_until_complete(leave())
    assert loop.run_until_complete(asyncio.sleep(0, "ran")) == "ran"


def test_many_callbacks_that_schedule_each_other_all_run(loop):
    def count_down(number):
        if number:
            loop.call_soon(count_down, number - 1)
        else:
            loop.stop()

    loop.call_soon(count_down, 20_000)
    loop.run_forever()


# Contexts


@pytest.mark.parametrize("schedule", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_a_callback_runs_in_the_context_of_its_scheduling(loop, schedule):
    variable = contextvars.ContextVar("variable", default="default")
    method = getattr(loop, schedule)
    method = {"call_later": partial(method, 0), "call_at": partial(method, 0)}.get(schedule, method)
    seen = []

    def look():
        seen.append(variable.get())
        variable.set("changed by the callback")

    variable.set("current")
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    method(look)
    method(look, context=given)
    variable.set("changed after scheduling")
    run_turns(loop, 2)
    assert sorted(seen) == ["current", "given"]
    assert variable.get() == "changed after scheduling"
    assert given[variable] == "changed by the callback"


def test_a_context_is_accepted_by_keyword_only(loop):
    seen = []
    loop.call_soon(seen.append, None)
    with pytest.raises(TypeError):
        loop.call_soon(seen.append, 1, no_such_argument=2)
    run_turns(loop)
    assert seen == [None]


# Handles


def test_handles_are_handles_of_asyncio(loop):
    soon = loop.call_soon(print)
    threadsafe = loop.call_soon_threadsafe(print)
    timers = [loop.call_later(0, print), loop.call_later(NEVER, print), loop.call_at(0, print)]
    for handle in [soon, threadsafe, *timers]:
        assert isinstance(handle, asyncio.Handle)
        assert not handle.cancelled()
        handle.cancel()
    if sys.version_info >= (3, 14):
        assert isinstance(threadsafe, asyncio.events._ThreadSafeHandle)
        assert not isinstance(soon, asyncio.events._ThreadSafeHandle)
    assert not isinstance(soon, asyncio.TimerHandle)
    assert all(isinstance(handle, asyncio.TimerHandle) for handle in timers)


def test_a_cancelled_callback_does_not_run(loop):
    order = []
    cancelled = loop.call_soon(order.append, "cancelled")
    loop.call_soon(order.append, "kept")
    cancelled.cancel()
    cancelled.cancel()
    assert cancelled.cancelled()
    run_turns(loop)
    assert order == ["kept"]


def test_a_callback_cancelled_by_an_earlier_one_of_the_same_turn_does_not_run(loop):
    order = []
    loop.call_soon(lambda: later.cancel())
    later = loop.call_soon(order.append, "cancelled")
    loop.call_soon(order.append, "kept")
    run_turns(loop)
    assert order == ["kept"]


def test_a_handle_can_be_cancelled_after_it_ran(loop):
    handle = loop.call_soon(len, "")
    timer = loop.call_later(0, len, "")
    run_turns(loop, 2)
    handle.cancel()
    timer.cancel()
    assert handle.cancelled() and timer.cancelled()
    run_turns(loop)


def test_the_repr_of_a_handle_names_its_callback(loop):
    def a_callback():
        pass

    handle = loop.call_soon(a_callback)
    timer = loop.call_later(NEVER, a_callback)
    assert repr(handle).startswith("<Handle ") and "a_callback" in repr(handle)
    assert repr(timer).startswith("<TimerHandle when=") and "a_callback" in repr(timer)
    handle.cancel()
    timer.cancel()
    assert repr(handle) == "<Handle cancelled>"
    assert repr(timer).startswith("<TimerHandle cancelled when=")


@pytest.mark.parametrize("schedule", ["call_soon", "call_later"])
def test_a_callback_that_cancels_itself_keeps_its_arguments(loop, schedule):
    # Only the handle holds the default: getattr(), in C, works on the references it was given.
    alive = []

    class Argument:
        def __getattr__(self, name):
            handle.cancel()
            gc.collect()
            alive.append(held() is not None)
            raise AttributeError

    default = Argument()
    held = weakref.ref(default)
    delay = () if schedule == "call_soon" else (0,)
    handle = getattr(loop, schedule)(*delay, getattr, Argument(), "missing", default)
    del default
    run_turns(loop, 2)
    assert alive == [True]
    assert held() is None


@pytest.mark.parametrize("schedule", ["call_soon", "call_later"])
def test_a_callback_that_cancels_itself_is_not_freed_while_it_runs(loop, schedule):
    # Only the handle holds the partial object, and no frame does while it is called.
    alive = []

    def look(argument):
        handle.cancel()
        alive.append(held() is not None)

    callback = partial(look, "argument")
    held = weakref.ref(callback)
    delay = () if schedule == "call_soon" else (0,)
    handle = getattr(loop, schedule)(*delay, callback)
    del callback
    run_turns(loop, 2)
    assert alive == [True]
    assert held() is None


@pytest.mark.parametrize("schedule", ["call_soon", "call_later"])
def test_cancelling_lets_go_of_callback_and_arguments(loop, schedule):
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    delay = () if schedule == "call_soon" else (NEVER,)
    handle = getattr(loop, schedule)(*delay, lambda _: None, argument)
    del argument
    gc.collect()
    assert gone() is not None
    handle.cancel()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_soon_threadsafe"])
def test_running_lets_go_of_callback_and_arguments(loop, schedule):
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    delay = (0,) if schedule == "call_later" else ()
    getattr(loop, schedule)(*delay, lambda _: None, argument)
    del argument
    run_turns(loop, 2)
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_soon_threadsafe"])
@pytest.mark.parametrize("end", ["run", "cancel", "end the run", "close"])
def test_a_kept_handle_is_no_leak(loop, schedule, end):
    class Owner:
        def __init__(self):
            delay = (NEVER if end == "end the run" else 0,) if schedule == "call_later" else ()
            self.handle = getattr(loop, schedule)(*delay, self.callback)

        def callback(self):
            pass

    kept = []
    loop.call_soon(lambda: kept.append(Owner()))  # while the loop runs
    if end != "run":
        loop.call_soon(loop.stop)
        loop.run_forever()
    else:
        run_turns(loop, 4)
    gone = weakref.ref(kept[0])
    if end == "cancel":
        kept[0].handle.cancel()
    if end in ("close", "end the run"):
        loop.close()
    kept.clear()
    if end == "cancel":
        run_turns(loop, 2)
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Handle.get_context() is new in 3.12")
def test_a_handle_tells_its_context(loop):
    context = contextvars.copy_context()
    assert loop.call_soon(print, context=context).get_context() is context
    timer = loop.call_later(NEVER, print, context=context)
    assert timer.get_context() is context
    timer.cancel()
    loop.close()


# Threads


def test_a_thread_wakes_an_idle_loop(loop):
    idle = threading.Event()
    order = []

    def wake():
        idle.wait()
        loop.call_soon_threadsafe(order.append, "woken")
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=wake)
    thread.start()
    loop.call_soon(idle.set)
    loop.run_forever()
    thread.join()
    assert order == ["woken"]


def test_a_thread_wakes_a_loop_that_waits_for_a_timer_again_and_again(loop):
    rounds = 300
    asked = threading.Semaphore(0)

    def answer():
        for _ in range(rounds):
            asked.acquire()
            loop.call_soon_threadsafe(step)

    def step():
        nonlocal rounds_done
        rounds_done += 1
        if rounds_done == rounds:
            loop.stop()
        else:
            loop.call_soon(asked.release)

    rounds_done = 0
    timer = loop.call_later(NEVER, print)
    thread = threading.Thread(target=answer)
    thread.start()
    loop.call_soon(asked.release)
    loop.run_forever()
    thread.join()
    timer.cancel()
    assert rounds_done == rounds


def test_every_producer_thread_keeps_its_order(loop):
    producers, each = 8, 2000
    seen = [[] for _ in range(producers)]
    ready = threading.Barrier(producers)
    remaining = producers

    def produce(producer):
        ready.wait()
        for number in range(each):
            loop.call_soon_threadsafe(seen[producer].append, number)
        loop.call_soon_threadsafe(done)

    def done():
        nonlocal remaining
        remaining -= 1
        if not remaining:
            loop.stop()

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(producers)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert seen == [list(range(each))] * producers


def test_threadsafe_callbacks_of_the_loop_thread_keep_their_place(loop):
    order = []
    loop.call_soon(order.append, 1)
    loop.call_soon_threadsafe(order.append, 2)
    loop.call_soon(order.append, 3)
    loop.call_soon_threadsafe(order.append, 4)
    run_turns(loop)
    assert order == [1, 2, 3, 4]


def test_a_threadsafe_callback_is_run_by_the_thread_of_the_loop(loop):
    threads = []
    run_in_thread(lambda: loop.call_soon_threadsafe(lambda: threads.append(threading.get_ident())))
    run_turns(loop)
    assert threads == [threading.get_ident()]


def test_a_threadsafe_callback_can_be_cancelled(loop):
    order = []
    loop.call_soon_threadsafe(order.append, "cancelled").cancel()
    loop.call_soon_threadsafe(order.append, "kept")
    run_turns(loop, 2)
    assert order == ["kept"]


@pytest.mark.asyncio_differs("does not wait before 3.14", when=sys.version_info < (3, 14))
@pytest.mark.parametrize("method", ["cancel", "cancelled"])
def test_another_thread_waits_for_the_callback_whose_handle_it_asks(loop, method):
    running, answered = threading.Event(), threading.Event()
    order = []

    def callback():
        running.set()
        answered.wait(0.05)
        order.append("callback ended")
        loop.stop()

    def ask():
        running.wait()
        assert not getattr(handle, method)()
        answered.set()
        order.append("answered")

    handle = loop.call_soon_threadsafe(callback)
    thread = threading.Thread(target=ask)
    thread.start()
    loop.run_forever()
    thread.join()
    assert order == ["callback ended", "answered"]


def test_a_threadsafe_callback_can_cancel_itself(loop):
    order = []

    def callback():
        handle.cancel()
        order.append("still running")

    handle = loop.call_soon_threadsafe(callback)
    run_turns(loop)
    assert order == ["still running"]


def call_from_wrong_thread(loop, method):
    arguments = {"call_soon": (print,), "call_later": (NEVER, print), "call_at": (NEVER, print)}

    async def main():
        call = partial(getattr(loop, method), *arguments[method])
        with pytest.raises(RuntimeError, match="[Nn]on-thread-safe operation|thread"):
            await loop.run_in_executor(None, call)

    loop.run_until_complete(main())


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_scheduling_from_the_wrong_thread_is_an_error_in_debug_mode(loop, method):
    loop.set_debug(True)
    call_from_wrong_thread(loop, method)


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_scheduling_from_the_wrong_thread_is_an_error(loop, method):
    call_from_wrong_thread(loop, method)


def test_any_thread_may_schedule_while_the_loop_is_not_running(loop):
    order = []
    run_in_thread(lambda: loop.call_soon(order.append, "scheduled"))
    run_turns(loop)
    assert order == ["scheduled"]


def test_other_threads_see_whether_the_loop_is_running(loop):
    async def main():
        return await loop.run_in_executor(None, loop.is_running)

    assert not run_in_thread(loop.is_running)
    assert loop.run_until_complete(main())
    assert not run_in_thread(loop.is_running)


def test_a_loop_cannot_run_in_two_threads_at_once(loop):
    async def main():
        with pytest.raises(RuntimeError, match="already running"):
            await loop.run_in_executor(None, loop.run_forever)

    loop.run_until_complete(main())


# Timers


def test_a_timer_never_fires_early(loop):
    early = []
    remaining = 0

    def check(timer):
        nonlocal remaining
        early.append(loop.time() < timer[0].when())
        remaining -= 1
        if not remaining:
            loop.stop()

    for step in range(60):
        timer = []
        timer.append(loop.call_later(0.0001 + step * 0.00093, check, timer))
        remaining += 1
    loop.run_forever()
    assert early == [False] * 60


async def test_sleep_never_ends_early(loop):
    for delay in (0.0004, 0.001, 0.0011, 0.0029):
        before = loop.time()
        await asyncio.sleep(delay)
        assert loop.time() - before >= delay


def test_timers_fire_in_the_order_of_their_deadlines(loop):
    order = []
    start = loop.time()
    for number in (3, 1, 4, 0, 2):
        loop.call_at(start + 0.001 * number, order.append, number)
    loop.call_at(start + 0.006, loop.stop)
    loop.run_forever()
    assert order == [0, 1, 2, 3, 4]


def test_past_deadlines_are_served_in_their_order(loop):
    order = []
    loop.call_later(-1, order.append, "a second ago")
    loop.call_later(0, order.append, "now")
    loop.call_later(-2, order.append, "two seconds ago")
    loop.call_at(-math.inf, order.append, "always")
    run_turns(loop, 2)
    assert order == ["always", "two seconds ago", "a second ago", "now"]


def test_a_due_timer_fires_within_the_next_turn_and_not_before(loop):
    order = []
    timer = loop.call_later(0, order.append, "timer")
    assert order == [] and timer.when() <= loop.time()
    while loop.time() <= timer.when():
        pass
    run_turns(loop)
    assert order == ["timer"]


@pytest.mark.parametrize("delay", [math.inf, 1e300, 1e19, 10**12])
def test_a_timer_for_the_far_future_neither_fires_nor_disturbs(loop, delay):
    order = []
    timer = loop.call_later(delay, order.append, "never")
    assert timer.when() >= delay
    loop.call_later(0.002, order.append, "soon")
    loop.call_later(0.003, loop.stop)
    loop.run_forever()
    assert order == ["soon"]
    timer.cancel()


def test_a_nan_deadline_is_due_at_once(loop):
    order = []
    loop.call_later(math.nan, order.append, "timer")
    run_turns(loop, 2)
    assert order == ["timer"]


@pytest.mark.parametrize("value", [None, "1", [], object()])
def test_a_delay_that_is_no_number_is_a_type_error(loop, value):
    with pytest.raises(TypeError):
        loop.call_later(value, print)


@pytest.mark.asyncio_differs("call_at() takes anything but None, and the next turn fails")
@pytest.mark.parametrize("value", ["1", [], object()])
def test_a_deadline_that_is_no_number_is_a_type_error(loop, value):
    with pytest.raises(TypeError):
        loop.call_at(value, print)


def test_a_deadline_of_none_is_a_type_error(loop):
    with pytest.raises(TypeError):
        loop.call_at(None, print)


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at", "call_soon_threadsafe"])
def test_missing_arguments_are_a_type_error(loop, method):
    with pytest.raises(TypeError):
        getattr(loop, method)()


def test_a_delay_too_large_for_a_float_is_an_overflow_error(loop):
    with pytest.raises(OverflowError):
        loop.call_later(10**400, print)


def test_a_timer_tells_the_deadline_it_was_given(loop):
    deadline = loop.time() + NEVER
    timer = loop.call_at(deadline, print)
    assert timer.when() == deadline
    timer.cancel()
    assert timer.when() == deadline
    before = loop.time()
    timer = loop.call_later(NEVER, print)
    assert before + NEVER <= timer.when() <= loop.time() + NEVER
    timer.cancel()


def test_a_timer_is_marked_scheduled_until_it_fires(loop):
    timer = loop.call_later(0.001, loop.stop)
    assert timer._scheduled
    loop.run_forever()
    assert not timer._scheduled


def test_a_cancelled_timer_has_no_callback_left(loop):
    timer = loop.call_later(NEVER, print, "argument")
    assert timer._callback is print and tuple(timer._args) == ("argument",)
    timer.cancel()
    assert timer.cancelled()
    assert timer._callback is None and timer._args is None


def test_timers_compare_by_deadline(loop):
    early, late = loop.call_at(1e9, print), loop.call_at(2e9, print)
    same = loop.call_at(1e9, print)
    assert early < late and early <= late and late > early and late >= early
    assert early != late
    assert hash(early) == hash(1e9)
    assert early == same
    for timer in (early, late, same):
        timer.cancel()


def test_a_timer_cancelled_by_another_of_the_same_turn_does_not_fire(loop):
    order = []
    loop.call_later(-2, lambda: later.cancel())
    later = loop.call_later(-1, order.append, "cancelled")
    loop.call_later(-0.5, order.append, "kept")
    run_turns(loop, 2)
    assert order == ["kept"]


def test_cancelled_timers_do_not_pile_up(loop):
    kept = loop.call_later(NEVER, print)
    for _ in range(100_000):
        loop.call_later(NEVER, print).cancel()
    run_turns(loop)
    assert scheduled_timers(loop) < 200
    timers = [loop.call_later(NEVER + number, print) for number in range(100_000)]
    for timer in timers:
        timer.cancel()
    run_turns(loop)
    assert scheduled_timers(loop) < 200
    kept.cancel()


def test_timers_cancelled_from_the_middle_leave_the_order_of_the_others(loop):
    order = []
    now = loop.time()
    timers = [loop.call_at(now - 1000 + number, order.append, number) for number in range(1000)]
    for number in range(1000):
        if number % 3:
            timers[number].cancel()
    run_turns(loop, 2)
    assert order == list(range(0, 1000, 3))


def test_a_timer_can_set_the_next_one(loop):
    remaining = 20

    def again():
        nonlocal remaining
        remaining -= 1
        if remaining:
            loop.call_later(0.0002, again)
        else:
            loop.stop()

    loop.call_later(0, again)
    loop.run_forever()
    assert remaining == 0


def test_callbacks_that_never_end_do_not_starve_timers(loop):
    def again():
        loop.call_soon(again)

    again()
    loop.call_later(0.002, loop.stop)
    loop.run_forever()


def test_time_is_the_monotonic_clock_with_its_resolution(loop):
    before = time.monotonic()
    now = loop.time()
    after = time.monotonic()
    assert isinstance(now, float)
    assert before <= now <= after
    times = [loop.time() for _ in range(1000)]
    assert times == sorted(times)
    assert len(set(times)) > 100


def test_time_goes_on_within_a_callback(loop):
    times = []

    def look():
        times.append(loop.time())
        time.sleep(0.001)
        times.append(loop.time())

    loop.call_soon(look)
    run_turns(loop)
    assert times[1] - times[0] >= 0.001


@contextlib.contextmanager
def clock_in_the_instance(loop, clock):
    with mock.patch.object(loop, "time", clock):
        yield loop


@contextlib.contextmanager
def clock_in_a_subclass(loop, clock):
    class Clocked(type(loop)):
        def time(self):
            return clock()

    with contextlib.closing(Clocked()) as clocked:
        yield clocked


@pytest.mark.parametrize("place", [clock_in_the_instance, clock_in_a_subclass])
def test_timers_go_by_a_clock_of_the_program(loop, place):
    fired = []
    clock = mock.Mock(return_value=1000.0)
    with place(loop, clock) as clocked:
        timers = [clocked.call_later(NEVER, fired.append, "late")]
        timers.append(clocked.call_at(1000.0 + NEVER / 2, fired.append, "early"))
        assert timers[0].when() == 1000.0 + NEVER
        run_turns(clocked, 3)
        assert fired == []
        clock.return_value += NEVER / 2
        run_turns(clocked, 3)
        assert fired == ["early"]
        clock.return_value += NEVER / 2
        run_turns(clocked, 3)
        assert fired == ["early", "late"]


def test_timers_go_by_the_loops_clock_again_when_the_programs_is_taken_away(loop):
    fired = []
    with mock.patch.object(loop, "time", return_value=loop.time() + NEVER):
        loop.call_later(NEVER, fired.append, "in two hours")
        run_turns(loop)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    run_turns(loop)
    assert fired == []


def test_what_the_programs_clock_raises_leaves_the_loop_and_loses_nothing(loop):
    called = []
    loop.call_soon(called.append, "called")
    with mock.patch.object(loop, "time", side_effect=ZeroDivisionError):
        with pytest.raises(ZeroDivisionError):
            loop.run_forever()
    run_turns(loop)
    assert called == ["called"]


# Running and closing


def test_run_until_complete_gives_the_result_or_raises_the_exception(loop):
    async def fail():
        raise ZeroDivisionError

    future = loop.create_future()
    loop.call_soon(future.set_result, "of a future")
    assert loop.run_until_complete(future) == "of a future"
    assert loop.run_until_complete(asyncio.sleep(0, "of a coroutine")) == "of a coroutine"
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(fail())


def test_run_until_complete_takes_any_awaitable(loop):
    class Awaitable:
        def __await__(self):
            yield
            return "awaited"

    assert loop.run_until_complete(Awaitable()) == "awaited"


def test_run_until_complete_needs_an_awaitable(loop):
    with pytest.raises(TypeError, match="a coroutine or an awaitable is required"):
        loop.run_until_complete("no awaitable")


def test_run_until_complete_refuses_a_future_of_another_loop(loop, new_loop):
    future = new_loop().create_future()
    with pytest.raises(ValueError, match="belongs to a different loop"):
        loop.run_until_complete(future)


def test_run_until_complete_says_when_the_loop_was_stopped_first(loop):
    async def main():
        loop.stop()
        await asyncio.sleep(NEVER)

    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(main())


def test_run_until_complete_can_go_on_after_a_stop(loop):
    async def main():
        loop.stop()
        await asyncio.sleep(0)
        return "went on"

    task = loop.create_task(main())
    with pytest.raises(RuntimeError):
        loop.run_until_complete(task)
    assert loop.run_until_complete(task) == "went on"


@nested_run_breaks_the_running_loop
async def test_a_running_loop_cannot_be_run_again(loop):
    with pytest.raises(RuntimeError, match="^This event loop is already running$"):
        loop.run_forever()
    future = loop.create_future()
    with pytest.raises(RuntimeError, match="^This event loop is already running$"):
        loop.run_until_complete(future)
    assert loop.is_running()


@nested_run_breaks_the_running_loop
async def test_another_loop_cannot_run_within_a_running_one(loop, new_loop):
    other = new_loop()
    message = "^Cannot run the event loop while another loop is running$"
    with pytest.raises(RuntimeError, match=message):
        other.run_forever()
    with pytest.raises(RuntimeError, match=message):
        other.run_until_complete(other.create_future())
    assert not other.is_running()
    assert asyncio.get_running_loop() is loop


async def test_a_running_loop_cannot_be_closed(loop):
    with pytest.raises(RuntimeError, match="^Cannot close a running event loop$"):
        loop.close()
    await asyncio.sleep(0)


def test_the_running_loop_is_known_while_it_runs(loop):
    async def main():
        return asyncio.get_running_loop()

    assert loop.run_until_complete(main()) is loop
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_loop_can_be_closed_twice(loop):
    assert not loop.is_closed()
    loop.close()
    assert loop.is_closed()
    loop.close()
    assert loop.is_closed() and not loop.is_running()


def test_closing_lets_go_of_what_was_scheduled(loop):
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    loop.call_soon(print, argument)
    loop.call_later(NEVER, print, argument)
    loop.call_soon_threadsafe(print, argument)
    del argument
    loop.close()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("call_soon", (print,)),
        ("call_soon_threadsafe", (print,)),
        ("call_later", (NEVER, print)),
        ("call_at", (NEVER, print)),
        ("run_in_executor", (None, print)),
        ("add_reader", (0, print)),
        ("add_writer", (0, print)),
        ("run_forever", ()),
    ],
)
def test_a_closed_loop_says_so(loop, method, arguments):
    loop.close()
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        getattr(loop, method)(*arguments)


@pytest.mark.parametrize("method", ["run_until_complete", "create_task"])
def test_a_closed_loop_takes_no_coroutine(loop, method):
    loop.close()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="^Event loop is closed$"):
        getattr(loop, method)(coroutine)
    coroutine.close()


def test_timers_of_a_closed_loop_can_still_be_cancelled(loop):
    timer = loop.call_later(NEVER, print)
    handle = loop.call_soon(print)
    loop.close()
    timer.cancel()
    handle.cancel()
    assert timer.cancelled() and handle.cancelled()


def test_a_loop_left_unclosed_warns_and_frees_its_descriptors(loop_type, open_descriptors):
    before = open_descriptors()
    loop = loop_type()
    loop.call_soon(print)
    loop.call_later(NEVER, print)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()
    assert open_descriptors() == before


def test_loops_can_be_made_and_closed_many_times(new_loop):
    for _ in range(100):
        loop = new_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_the_repr_of_a_loop_tells_its_state(loop):
    assert "running=False closed=False debug=False" in repr(loop)
    loop.set_debug(True)
    loop.close()
    assert "running=False closed=True debug=True" in repr(loop)


def test_a_loop_can_be_referenced_weakly_and_compared(loop, new_loop):
    assert weakref.ref(loop)() is loop
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert loop == loop and loop != new_loop()
    assert len({loop, loop}) == 1


@pytest.mark.pyreactor_only
def test_internal_descriptors_that_reach_their_end_do_not_make_the_loop_spin(
    new_loop, open_descriptors
):
    before = open_descriptors()
    loop = new_loop()
    loop.add_signal_handler(signal.SIGUSR1, print)
    ended = 0
    with open(os.devnull, "wb") as devnull:
        for fd in set(open_descriptors()) - set(before) - {devnull.fileno()}:
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_WRONLY:
                os.dup2(devnull.fileno(), fd)
                ended += 1
            elif stat.S_ISSOCK(mode):
                with socket.socket(fileno=os.dup(fd)) as internal:
                    internal.shutdown(socket.SHUT_RDWR)
                ended += 1
    assert ended, "the loop has neither pipe nor socket: end its descriptors in another way"
    before = loop.metrics().turns
    loop.run_until_complete(asyncio.sleep(0.5))
    assert loop.metrics().turns - before < 50
    loop.remove_signal_handler(signal.SIGUSR1)
    loop.close()


# Debug mode


def test_debug_mode_follows_the_interpreter(loop_type):
    name = f"{loop_type.__module__}.{loop_type.__qualname__}"
    program = (
        "import asyncio, importlib, sys; module, _, name = sys.argv[1].rpartition('.');"
        "loop = getattr(importlib.import_module(module), name)();"
        "print(loop.get_debug()); loop.close()"
    )
    for options, expected in (((), "False"), (("-X", "dev"), "True")):
        command = [sys.executable, *options, "-c", program, name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_debug_mode_can_be_changed_while_running(loop):
    async def main():
        assert not loop.get_debug()
        loop.set_debug(True)
        await asyncio.sleep(0)
        assert loop.get_debug()
        loop.set_debug(False)

    loop.run_until_complete(main())
    assert not loop.get_debug()


def slow_reports(caplog):
    return [record.getMessage() for record in caplog.records if " took " in record.getMessage()]


def test_a_slow_callback_is_logged_by_name_in_debug_mode(loop, caplog):
    def a_slow_callback():
        time.sleep(0.01)

    caplog.set_level(logging.WARNING, "asyncio")
    loop.slow_callback_duration = 0.005
    loop.call_soon(a_slow_callback)
    run_turns(loop)
    assert slow_reports(caplog) == []
    loop.set_debug(True)
    loop.call_soon(a_slow_callback)
    loop.call_later(0, a_slow_callback)
    run_turns(loop, 2)
    reports = slow_reports(caplog)
    assert len(reports) == 2
    for report in reports:
        assert report.startswith("Executing <") and "a_slow_callback" in report


def test_a_slow_task_is_logged_by_name_in_debug_mode(loop, caplog):
    async def a_slow_coroutine():
        time.sleep(0.01)

    caplog.set_level(logging.WARNING, "asyncio")
    loop.slow_callback_duration = 0.005
    loop.set_debug(True)
    loop.run_until_complete(a_slow_coroutine())
    assert any("a_slow_coroutine" in report for report in slow_reports(caplog))


def test_slow_callback_duration_is_a_tenth_of_a_second_unless_set(loop):
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 5
    assert loop.slow_callback_duration == 5


def test_debug_mode_remembers_where_a_handle_was_made(loop):
    loop.set_debug(True)
    for handle in (loop.call_soon(print), loop.call_later(NEVER, print)):
        assert handle._source_traceback[-1].filename == __file__
        assert f"created at {__file__}" in repr(handle)
        handle.cancel()


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_debug_mode_refuses_coroutines_and_what_cannot_be_called(loop, method):
    async def coroutine_function():
        pass

    loop.set_debug(True)
    time_argument = () if "soon" in method else (0,)
    with pytest.raises(TypeError, match="coroutines cannot be used with"):
        getattr(loop, method)(*time_argument, coroutine_function)
    with pytest.raises(TypeError, match="a callable object was expected"):
        getattr(loop, method)(*time_argument, 1)


# Async generators


def test_shutdown_asyncgens_closes_the_generators_left_open(loop):
    closed = []

    async def numbers(name):
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(name)

    generators = [numbers("first"), numbers("second")]

    async def main():
        for generator in generators:
            await generator.__anext__()

    loop.run_until_complete(main())
    assert closed == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert sorted(closed) == ["first", "second"]


def test_a_generator_nobody_holds_any_more_is_closed_by_the_loop(loop):
    closed = loop.create_future()

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set_result("closed")

    async def main():
        async for _ in numbers():
            break
        gc.collect()
        return await closed

    assert loop.run_until_complete(main()) == "closed"


def test_an_error_while_closing_a_generator_is_reported(loop, reported_errors):
    async def numbers():
        try:
            yield 1
        finally:
            raise ZeroDivisionError

    generator = numbers()

    async def main():
        await generator.__anext__()

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    (context,) = reported_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    assert "an error occurred during closing of asynchronous generator" in context["message"]
    assert context["asyncgen"] is generator


def test_a_generator_started_after_the_shutdown_warns(loop):
    async def numbers():
        yield 1

    async def main():
        await loop.shutdown_asyncgens()
        with pytest.warns(ResourceWarning, match="was scheduled after loop.shutdown_asyncgens"):
            async for _ in numbers():
                pass

    loop.run_until_complete(main())


def test_the_hooks_of_generators_are_put_back_after_a_run(loop):
    before = sys.get_asyncgen_hooks()

    async def main():
        return sys.get_asyncgen_hooks()

    assert loop.run_until_complete(main()) != before
    assert sys.get_asyncgen_hooks() == before

    def leave():
        raise SystemExit

    loop.call_soon(leave)
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert sys.get_asyncgen_hooks() == before


# Futures and tasks


def test_futures_and_tasks_are_those_of_asyncio(loop):
    async def main():
        return asyncio.current_task()

    future = loop.create_future()
    assert type(future) is asyncio.Future and future.get_loop() is loop
    task = loop.create_task(main())
    assert type(task) is asyncio.Task and task.get_loop() is loop
    assert loop.run_until_complete(task) is task


def test_create_task_takes_a_name_and_a_context(loop):
    variable = contextvars.ContextVar("variable", default="default")
    context = contextvars.copy_context()
    context.run(variable.set, "of the context")

    async def main():
        return variable.get()

    task = loop.create_task(main(), name="a name", context=context)
    assert task.get_name() == "a name"
    assert loop.run_until_complete(task) == "of the context"
    assert loop.run_until_complete(loop.create_task(main())) == "default"


def test_create_task_needs_a_coroutine(loop):
    with pytest.raises(TypeError, match="a coroutine was expected"):
        loop.create_task("no coroutine")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="eager_start is new in 3.14")
async def test_create_task_can_start_eagerly(loop):
    started = []

    async def main():
        started.append(True)
        await asyncio.sleep(0)

    task = loop.create_task(main(), eager_start=True, name="eager")
    assert started == [True] and task.get_name() == "eager"
    await task


def test_a_task_factory_makes_the_tasks(loop):
    made = []

    class MyTask(asyncio.Task):
        pass

    def factory(loop, coroutine, **options):
        made.append(options)
        return MyTask(coroutine, loop=loop, **options)

    async def main():
        return await asyncio.create_task(asyncio.sleep(0, "result"), name="inner")

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    task = loop.create_task(main(), name="outer")
    assert isinstance(task, MyTask) and task.get_name() == "outer"
    assert loop.run_until_complete(task) == "result"
    context = contextvars.copy_context()
    loop.run_until_complete(loop.create_task(main(), context=context))
    assert len(made) == 4
    assert made[2]["context"] is context
    loop.set_task_factory(None)
    assert type(loop.create_task(asyncio.sleep(0))) is asyncio.Task


def test_a_task_factory_that_takes_no_options_gets_none_unasked(loop):
    def factory(loop, coroutine):
        return asyncio.Task(coroutine, loop=loop)

    loop.set_task_factory(factory)
    assert loop.run_until_complete(asyncio.sleep(0, "result")) == "result"
    assert loop.run_until_complete(loop.create_task(asyncio.sleep(0, 1))) == 1


def test_a_task_factory_has_to_be_callable(loop):
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory("no factory")
    assert loop.get_task_factory() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
def test_the_eager_task_factory_starts_tasks_at_once(loop):
    async def inner(started):
        started.append(True)
        await asyncio.sleep(0)
        return "result"

    async def main():
        started = []
        task = asyncio.create_task(inner(started), name="inner")
        assert started == [True] and task.get_name() == "inner"
        return await task

    loop.set_task_factory(asyncio.eager_task_factory)
    assert loop.run_until_complete(main()) == "result"


def test_all_tasks_and_current_task_know_the_loop(loop):
    async def main():
        other = loop.create_task(asyncio.sleep(0))
        assert asyncio.all_tasks() == {asyncio.current_task(), other}
        await other

    loop.run_until_complete(main())
    assert asyncio.all_tasks(loop) == set()


async def test_timeouts_and_groups_of_asyncio_work(loop):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.sleep(NEVER)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.001)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0.001, number)) for number in range(10)]
    assert [task.result() for task in tasks] == list(range(10))


async def test_a_task_can_be_cancelled_while_it_sleeps(loop):
    task = asyncio.create_task(asyncio.sleep(NEVER))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_run_coroutine_threadsafe_gives_the_result_to_the_thread(loop):
    async def main():
        def in_thread():
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "result"), loop).result()

        return await loop.run_in_executor(None, in_thread)

    assert loop.run_until_complete(main()) == "result"


def test_a_runner_uses_the_loop(loop_type):
    async def main():
        return type(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_type) as runner:
        assert runner.run(main()) is loop_type
        assert runner.run(asyncio.sleep(0, "again")) == "again"


# Reports


def test_an_exception_handler_gets_the_loop_and_the_context(loop):
    calls = []
    context = {"message": "a message", "exception": ZeroDivisionError()}

    def handler(*arguments):
        calls.append(arguments)

    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.call_exception_handler(context)
    assert calls == [(loop, context)]
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None


def test_an_exception_handler_has_to_be_callable(loop):
    with pytest.raises(TypeError, match="A callable object or None is expected"):
        loop.set_exception_handler("no handler")


def test_without_a_handler_reports_are_logged(loop, caplog):
    def fail():
        raise ZeroDivisionError("from the callback")

    loop.set_exception_handler(None)
    loop.call_soon(fail)
    run_turns(loop)
    (record,) = caplog.records
    assert record.name == "asyncio" and record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError
    assert record.getMessage().startswith("Exception in callback")


def test_the_default_handler_can_be_called_by_another(loop, caplog):
    loop.set_exception_handler(lambda loop, context: loop.default_exception_handler(context))
    loop.call_exception_handler({"message": "a message", "detail": "a detail"})
    (record,) = caplog.records
    assert record.getMessage() == "a message\ndetail: 'a detail'"


def test_a_handler_that_raises_is_logged_with_what_it_was_to_handle(loop, caplog):
    order = []

    def fail():
        raise ZeroDivisionError("from the callback")

    def handler(loop, context):
        raise LookupError("from the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    loop.call_soon(order.append, "went on")
    run_turns(loop)
    assert order == ["went on"]
    (record,) = caplog.records
    assert record.getMessage().startswith("Unhandled error in exception handler")
    assert "from the callback" in record.getMessage()
    assert record.exc_info[0] is LookupError


@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_from_an_exception_handler(loop, exit_type):
    def handler(loop, context):
        raise exit_type

    def fail():
        raise ZeroDivisionError

    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    with pytest.raises(exit_type):
        loop.run_forever()
    run_turns(loop)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the handler's context is new in 3.12")
def test_a_handler_runs_in_the_context_of_what_failed(loop):
    variable = contextvars.ContextVar("variable", default="default")
    seen = []

    def fail():
        variable.set("of the callback")
        raise ZeroDivisionError

    loop.set_exception_handler(lambda loop, context: seen.append(variable.get()))
    loop.call_soon(fail)
    run_turns(loop)
    assert seen == ["of the callback"]


def test_a_task_whose_exception_nobody_saw_is_reported(loop, reported_errors):
    async def fail():
        raise ZeroDivisionError

    task = loop.create_task(fail())
    run_turns(loop, 2)
    del task
    gc.collect()
    (context,) = reported_errors
    assert context["message"] == "Task exception was never retrieved"


# Executors


async def test_run_in_executor_gives_results_and_exceptions(loop):
    def fail():
        raise ZeroDivisionError

    thread = await loop.run_in_executor(None, threading.get_ident)
    assert thread != threading.get_ident()
    assert await loop.run_in_executor(None, divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, fail)


async def test_run_in_executor_uses_the_executor_it_is_given(loop):
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        thread = await loop.run_in_executor(executor, threading.current_thread)
        assert thread.name.startswith("mine")


async def test_threads_of_the_default_executor_are_named_after_asyncio(loop):
    thread = await loop.run_in_executor(None, threading.current_thread)
    assert thread.name.startswith("asyncio_")


async def test_the_default_executor_can_be_replaced(loop):
    loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
    thread = await asyncio.to_thread(threading.current_thread)
    assert thread.name.startswith("mine")


def test_the_default_executor_has_to_run_threads(loop):
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(Executor())


async def test_many_calls_in_threads_all_come_back(loop):
    calls = (loop.run_in_executor(None, int, number) for number in range(500))
    assert await asyncio.gather(*calls) == list(range(500))


async def test_debug_mode_refuses_coroutines_in_an_executor(loop):
    async def coroutine_function():
        pass

    loop.set_debug(True)
    with pytest.raises(TypeError, match="coroutines cannot be used with run_in_executor"):
        loop.run_in_executor(None, coroutine_function)


async def test_a_shut_down_executor_takes_no_more_calls(loop):
    thread = await loop.run_in_executor(None, threading.current_thread)
    await loop.shutdown_default_executor()
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


async def test_shutting_down_an_executor_that_was_never_used_is_harmless(loop):
    await loop.shutdown_default_executor()
    await loop.shutdown_default_executor()


@pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="no timeout in 3.11, and the first releases of 3.12 wait for ever",
)
async def test_shutting_down_the_executor_can_time_out(loop):
    release, running = threading.Event(), threading.Event()

    def job():
        running.set()
        release.wait()
        return "done"

    future = loop.run_in_executor(None, job)
    await asyncio.to_thread(running.wait)
    try:
        with pytest.warns(RuntimeWarning, match="did not finishing joining its threads within"):
            await loop.shutdown_default_executor(timeout=0.01)
    finally:
        release.set()
    assert await future == "done"


def test_closing_the_loop_does_not_wait_for_the_executor(loop):
    release, running = threading.Event(), threading.Event()

    def job():
        running.set()
        release.wait()

    async def main():
        loop.run_in_executor(None, job)
        await asyncio.to_thread(running.wait)

    loop.run_until_complete(main())
    loop.close()
    release.set()


# --- Polled by another loop -----------------------------------------------------------------------

PATIENCE = 15


def has_work(loop, seconds=0):
    return bool(select.select([loop], [], [], seconds)[0])


def make_turns_until(loop, condition):
    """Do what a foreign loop does that polls this one's descriptor, until `condition()` holds.

    When it has no more to do it must not ask for turns.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert has_work(loop, max(deadline - time.monotonic(), 0))
        loop.stop()
        loop.run_forever()
    for _ in range(5):  # what the last callbacks have left behind
        if has_work(loop):
            loop.stop()
            loop.run_forever()
    assert not has_work(loop)


@pytest.mark.pyreactor_only
def test_a_foreign_select_sees_that_the_loop_has_work(loop):
    seen = []
    assert loop.fileno() == loop.fileno()
    make_turns_until(loop, lambda: True)

    loop.call_soon(seen.append, "soon")
    make_turns_until(loop, lambda: seen)

    due = loop.time() + 0.01
    loop.call_at(due, seen.append, "timer")
    make_turns_until(loop, lambda: len(seen) == 2)
    assert loop.time() >= due

    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, "thread"))
    thread.start()
    make_turns_until(loop, lambda: len(seen) == 3)
    thread.join()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours, lambda: seen.append(ours.recv(1)))
        make_turns_until(loop, lambda: not has_work(loop))
        for count in (4, 5, 6):  # an event like the one before is seen, too
            theirs.send(b"x")
            make_turns_until(loop, lambda count=count: len(seen) == count)
        loop.remove_reader(ours)
    counter = os.eventfd(0)
    loop.add_reader(counter, lambda: seen.append(os.eventfd_read(counter)))
    for count in (7, 8, 9):
        os.eventfd_write(counter, 1)
        make_turns_until(loop, lambda count=count: len(seen) == count)
    loop.remove_reader(counter)
    os.close(counter)
    assert seen == ["soon", "timer", "thread", b"x", b"x", b"x", 1, 1, 1]


@pytest.mark.pyreactor_only
def test_a_server_lives_in_a_foreign_select(loop):
    """What is begun in one turn goes on between the turns, and ends with the loop."""

    async def echo(reader, writer):
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def ask(port, size):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * size)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return len(answer)

    loop.fileno()
    starting = loop.create_task(asyncio.start_server(echo, "127.0.0.1", 0))
    make_turns_until(loop, starting.done)
    server = starting.result()
    port = server.sockets[0].getsockname()[1]
    sizes = (1, 5000, 300_000)
    asking = asyncio.gather(*(loop.create_task(ask(port, size)) for size in sizes))
    make_turns_until(loop, asking.done)
    assert asking.result() == list(sizes)
    server.close()
    closing = loop.create_task(server.wait_closed())
    make_turns_until(loop, closing.done)


@pytest.mark.pyreactor_only
def test_a_file_is_read_between_the_turns(loop, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content" * 10_000)
    read_end, write_end = os.pipe()

    async def read_file():
        async with pyreactor.files.open(path, "rb") as file:
            return await file.read()

    async def read_pipe():
        async with pyreactor.files.open(read_end, "rb", buffering=0) as file:
            return await file.read(100)

    loop.fileno()
    reading = loop.create_task(read_file())
    make_turns_until(loop, reading.done)
    assert reading.result() == b"content" * 10_000
    waiting = loop.create_task(read_pipe())
    make_turns_until(loop, lambda: not has_work(loop))
    assert not waiting.done()
    os.write(write_end, b"at last")
    make_turns_until(loop, waiting.done)
    assert waiting.result() == b"at last"
    os.close(write_end)
    loop.run_until_complete(loop.shutdown_default_executor())


@pytest.mark.pyreactor_only
def test_a_loop_that_is_polled_is_run_by_that_thread_alone(loop):
    loop.fileno()
    for method in (loop.fileno, loop.run_forever):
        with pytest.raises(RuntimeError, match=r"fileno\(\)"):
            run_in_thread(method)
    loop.run_until_complete(asyncio.sleep(0))


@pytest.mark.pyreactor_only
async def test_a_running_loop_can_be_asked_for_its_descriptor(loop):
    fd = loop.fileno()
    await asyncio.sleep(0.001)
    assert loop.fileno() == fd
    assert not os.get_inheritable(fd)


@pytest.mark.pyreactor_only
def test_a_closed_loop_has_no_descriptor(loop):
    loop.fileno()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.fileno()
