"""What a loop tells a developer: slow callbacks, debug mode, and asyncio's own tools."""

import asyncio
import gc
import socket
import sys
import time
import warnings

import pytest


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


NEVER = 1000


def dawdle(*args):
    """Be slow, in the sense of the tests below."""
    time.sleep(0.01)


@pytest.fixture
def slow(loop):
    """What the loop's slow callback hook was called with."""
    calls = []
    loop.slow_callback_duration = 0.005
    loop.set_slow_callback_hook(lambda description, seconds: calls.append((description, seconds)))
    return calls


# Slow callbacks.  On a busy machine any callback can be one of them, so each test asks for its own.


def named(name, calls):
    return [call for call in calls if name in call[0]]


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("debug", [False, True])
def test_the_hook_hears_of_slow_callbacks_and_of_no_others(loop, slow, debug):
    loop.set_debug(debug)
    loop.call_soon(dawdle, "an argument")
    loop.call_later(0, dawdle)
    run_turns(loop, 2)
    calls = named("dawdle", slow)
    assert len(calls) == 2
    for description, seconds in calls:
        assert description.startswith("<")
        assert seconds >= 0.01
    if debug:  # as of 3.13 asyncio names arguments in debug mode only
        assert "'an argument'" in calls[0][0]
    slow.clear()
    loop.slow_callback_duration = NEVER
    loop.call_soon(dawdle)
    run_turns(loop)
    assert slow == []


@pytest.mark.pyreactor_only
def test_the_hook_hears_which_task_was_slow(loop, slow):
    async def a_slow_coroutine():
        dawdle()

    async def main():
        await asyncio.create_task(a_slow_coroutine(), name="a slow task")

    loop.run_until_complete(main())
    ((description, seconds),) = named("a slow task", slow)
    assert description.startswith("<Task ")
    assert "a_slow_coroutine" in description
    assert seconds >= 0.01


@pytest.mark.pyreactor_only
def test_the_hook_hears_of_slow_readers(loop, slow):
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        loop.add_reader(near, dawdle)
        run_turns(loop)
        loop.remove_reader(near)
    assert len(named("dawdle", slow)) == 1


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("fails", [False, True])
async def test_the_hook_hears_of_slow_protocols(loop, slow, reported_errors, fails):
    class SlowProtocol(asyncio.Protocol):
        def data_received(self, data):
            dawdle()
            received.set_result(data)
            if fails:
                raise ZeroDivisionError

        def connection_lost(self, exc):
            lost.set_result(exc)

    received, lost = loop.create_future(), loop.create_future()
    near, far = socket.socketpair()
    transport, _ = await loop.create_connection(SlowProtocol, sock=near)
    with far:
        far.send(b"x")
        assert await received == b"x"
        ((description, seconds),) = named("data_received", slow)
        assert description.startswith("SlowProtocol.data_received() for <StreamTransport fd=")
        assert seconds >= 0.01
        transport.close()
        assert isinstance(await lost, ZeroDivisionError if fails else type(None))
    assert [context["exception"].__class__ for context in reported_errors] == (
        [ZeroDivisionError] if fails else []
    )


@pytest.mark.pyreactor_only
def test_a_hook_can_be_asked_for_replaced_and_removed(loop, slow):
    hook = loop.get_slow_callback_hook()
    assert callable(hook)
    with pytest.raises(TypeError, match="callable"):
        loop.set_slow_callback_hook(5)
    assert loop.get_slow_callback_hook() is hook
    loop.set_slow_callback_hook(None)
    assert loop.get_slow_callback_hook() is None
    loop.call_soon(dawdle)
    run_turns(loop)
    assert slow == []


@pytest.mark.pyreactor_only
def test_a_hook_that_raises_is_reported(loop, reported_errors):
    def hook(description, seconds):
        raise ZeroDivisionError

    loop.slow_callback_duration = 0
    loop.set_slow_callback_hook(hook)
    loop.call_soon(str)
    run_turns(loop)
    loop.set_slow_callback_hook(None)
    assert len(reported_errors) == 2  # that of loop.stop, too
    assert isinstance(reported_errors[0]["exception"], ZeroDivisionError)
    assert "slow callback hook" in reported_errors[0]["message"]


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("exit_type", [SystemExit, KeyboardInterrupt])
def test_exits_escape_from_a_hook(loop, exit_type):
    def hook(description, seconds):
        raise exit_type

    ran = []
    loop.slow_callback_duration = 0
    loop.set_slow_callback_hook(hook)
    loop.call_soon(str)
    loop.call_soon(ran.append, 1)
    with pytest.raises(exit_type):
        loop.run_forever()
    loop.set_slow_callback_hook(None)
    run_turns(loop)
    assert ran == [1]


@pytest.mark.pyreactor_only
async def test_a_protocol_is_named_for_slow_callbacks_only(loop):
    class Naming(type):
        @property
        def __name__(cls):
            named.append(cls)
            return "Protocol"

    class Protocol(asyncio.Protocol, metaclass=Naming):
        def data_received(self, data):
            received.set_result(data)

    named = []
    received = loop.create_future()
    near, far = socket.socketpair()
    loop.slow_callback_duration = NEVER
    loop.set_debug(True)
    transport, _ = await loop.create_connection(Protocol, sock=near)
    with far:
        far.send(b"x")
        await received
    assert named == []
    transport.abort()
    await asyncio.sleep(0)


# Debug mode


def test_a_coroutine_nobody_awaited_says_where_it_was_made(loop):
    async def forgotten():
        pass

    async def main():
        forgotten()
        gc.collect()

    loop.set_debug(True)
    with pytest.warns(RuntimeWarning, match="was never awaited") as caught:
        loop.run_until_complete(main())
    text = str(caught[0].message)
    assert "forgotten" in text
    assert f'File "{__file__}"' in text and "forgotten()" in text


# `source` is what lets `-X tracemalloc` say where the object was made.


def test_a_loop_nobody_closed_warns_with_its_source(loop_type):
    loop = loop_type()
    with pytest.warns(ResourceWarning, match="unclosed event loop") as caught:
        del loop
        gc.collect()
    assert isinstance(caught[0].source, loop_type)


def test_a_transport_nobody_closed_warns_with_its_source(loop):
    async def main():
        near, far = socket.socketpair()
        await loop.create_connection(asyncio.Protocol, sock=near)
        far.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run_until_complete(main())
        loop.close()
        gc.collect()
    unclosed = [one for one in caught if "unclosed transport" in str(one.message)]
    assert isinstance(unclosed[0].source, asyncio.Transport)


def here():
    return sys._getframe(1).f_lineno


async def test_a_never_retrieved_exception_says_where_its_task_was_made(loop, reported_errors):
    async def fail():
        raise ZeroDivisionError

    loop.set_debug(True)
    line = here() + 1
    task = loop.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
    (context,) = reported_errors
    assert context["message"] == "Task exception was never retrieved"
    assert isinstance(context["exception"], ZeroDivisionError)
    made = [(frame.filename, frame.lineno) for frame in context["source_traceback"]]
    assert (__file__, line) in made


async def test_an_error_in_a_callback_says_where_it_was_scheduled(loop, reported_errors):
    loop.set_debug(True)
    line = here() + 1
    loop.call_soon(lambda: 1 // 0)
    await asyncio.sleep(0)
    (context,) = reported_errors
    made = context["source_traceback"][-1]
    assert (made.filename, made.lineno) == (__file__, line)


WRONG_THREAD = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_later": lambda loop: loop.call_later(1, print),
    "call_at": lambda loop: loop.call_at(1, print),
}


@pytest.mark.parametrize("use", WRONG_THREAD)
async def test_a_call_from_a_wrong_thread_is_refused_in_debug_mode(loop, use):
    loop.set_debug(True)
    with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
        await asyncio.to_thread(WRONG_THREAD[use], loop)
