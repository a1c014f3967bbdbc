"""Watching descriptors: add_reader(), add_writer() and their removal."""

import asyncio
import contextvars
import os
import socket
import subprocess
import sys

import pytest


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


def run_turns_after_events(loop):
    """Let the loop see what is ready now and run the callbacks for it."""
    run_turns(loop, 3)


def fill(sock):
    """Write until the kernel takes no more."""
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


@pytest.fixture
def pipe():
    """The two ends of a pipe, as unbuffered files: what to read from, what to write to."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    with open(read_fd, "rb", 0) as source, open(write_fd, "wb", 0) as target:
        yield source, target


# Adding


def test_a_reader_is_called_with_its_arguments_when_data_arrive(loop, pair):
    near, far = pair
    calls = []
    loop.add_reader(near, lambda *arguments: calls.append(arguments), 1, "two")
    run_turns(loop, 3)
    assert calls == []
    far.send(b"x")
    run_turns_after_events(loop)
    assert calls and set(calls) == {(1, "two")}
    loop.remove_reader(near)


def test_a_reader_is_called_again_while_data_remain(loop, pair):
    near, far = pair
    received = []

    def read_a_byte():
        received.append(near.recv(1))
        if len(received) == 3:
            loop.stop()

    loop.add_reader(near, read_a_byte)
    far.send(b"abc")
    loop.run_forever()
    assert received == [b"a", b"b", b"c"]
    run_turns(loop, 3)
    assert len(received) == 3
    loop.remove_reader(near)


def test_a_writer_is_called_when_there_is_room(loop, pair):
    near, far = pair
    calls = []
    fill(near)
    loop.add_writer(near, lambda *arguments: calls.append(arguments), 1, "two")
    run_turns(loop, 3)
    assert calls == []
    while True:
        try:
            far.recv(1 << 20)
        except BlockingIOError:
            break
    run_turns_after_events(loop)
    assert calls and set(calls) == {(1, "two")}
    loop.remove_writer(near)


def test_one_descriptor_can_have_a_reader_and_a_writer(loop, pair):
    near, far = pair
    calls = set()
    loop.add_reader(near, calls.add, "reader")
    loop.add_writer(near, calls.add, "writer")
    run_turns_after_events(loop)
    assert calls == {"writer"}
    far.send(b"x")
    run_turns_after_events(loop)
    assert calls == {"reader", "writer"}
    assert loop.remove_writer(near)
    calls.clear()
    run_turns_after_events(loop)
    assert calls == {"reader"}
    assert loop.remove_reader(near)
    calls.clear()
    run_turns_after_events(loop)
    assert calls == set()


@pytest.mark.parametrize("kind", ["number", "socket", "file object"])
def test_a_descriptor_is_a_number_or_has_a_fileno(loop, pair, kind):
    class WithFileno:
        def fileno(self):
            return near.fileno()

    near, far = pair
    fd = {"number": near.fileno(), "socket": near, "file object": WithFileno()}[kind]
    calls = set()
    loop.add_reader(fd, calls.add, "reader")
    loop.add_writer(fd, calls.add, "writer")
    far.send(b"x")
    run_turns_after_events(loop)
    assert calls == {"reader", "writer"}
    assert loop.remove_reader(fd) and loop.remove_writer(fd)


def test_a_watch_made_by_object_can_be_removed_by_number(loop, pair):
    near, _ = pair
    loop.add_reader(near, print)
    assert loop.remove_reader(near.fileno())
    assert not loop.remove_reader(near)


def test_a_new_reader_replaces_the_old_one(loop, pair):
    near, far = pair
    calls = []
    loop.add_reader(near, calls.append, "old")
    loop.add_reader(near, calls.append, "new")
    far.send(b"x")
    run_turns_after_events(loop)
    assert set(calls) == {"new"}
    assert loop.remove_reader(near)
    assert not loop.remove_reader(near)


def test_a_new_writer_replaces_the_old_one(loop, pair):
    near, _ = pair
    calls = []
    loop.add_writer(near, calls.append, "old")
    loop.add_writer(near, calls.append, "new")
    run_turns_after_events(loop)
    assert set(calls) == {"new"}
    assert loop.remove_writer(near)
    assert not loop.remove_writer(near)


def test_a_reader_that_replaces_itself_loses_no_event(loop, pair):
    near, far = pair
    received = []

    def first():
        loop.add_reader(near, second)

    def second():
        received.append(near.recv(10))
        loop.stop()

    loop.add_reader(near, first)
    far.send(b"data")
    loop.run_forever()
    assert received == [b"data"]
    loop.remove_reader(near)


def test_a_reader_that_replaces_another_of_the_same_turn_loses_no_event(loop):
    calls = []
    pairs = [socket.socketpair() for _ in range(2)]

    def replace_the_other(number):
        calls.append(("old", number))
        loop.remove_reader(pairs[number][0])
        other = 1 - number
        loop.add_reader(pairs[other][0], replaced, other)

    def replaced(number):
        calls.append(("new", number))
        loop.remove_reader(pairs[number][0])
        loop.stop()

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, replace_the_other, number)
        far.send(b"x")
    loop.run_forever()
    (_, first), *rest = calls
    assert rest == [("new", 1 - first)]
    for sockets in pairs:
        for sock in sockets:
            sock.close()


def test_a_watch_runs_in_the_context_in_which_it_was_added(loop, pair):
    near, far = pair
    variable = contextvars.ContextVar("variable", default="default")
    seen = []

    def look():
        seen.append(variable.get())
        loop.remove_reader(near)

    context = contextvars.copy_context()
    context.run(variable.set, "of the adding")
    context.run(loop.add_reader, near, look)
    far.send(b"x")
    run_turns_after_events(loop)
    assert seen == ["of the adding"]


def test_an_exception_in_a_reader_is_reported_and_the_watch_stays(loop, pair, reported_errors):
    near, far = pair
    received = []

    def read():
        if not reported_errors:
            raise ZeroDivisionError
        received.append(near.recv(10))
        loop.stop()

    loop.add_reader(near, read)
    far.send(b"data")
    loop.run_forever()
    (context,) = reported_errors
    assert isinstance(context["exception"], ZeroDivisionError)
    assert received == [b"data"]
    loop.remove_reader(near)


def test_many_ready_descriptors_are_all_served(loop):
    pairs = [socket.socketpair() for _ in range(300)]
    served = set()

    def serve(number):
        pairs[number][0].recv(1)
        served.add(number)
        if len(served) == len(pairs):
            loop.stop()

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, serve, number)
        far.send(b"x")
    loop.run_forever()
    for near, far in pairs:
        assert loop.remove_reader(near)
        near.close()
        far.close()


def test_a_descriptor_that_is_always_ready_starves_neither_timers_nor_callbacks(loop, pair):
    near, far = pair
    order = []
    far.send(b"never read")
    loop.add_reader(near, lambda: None)
    loop.call_soon(order.append, "callback")
    loop.call_later(0.002, order.append, "timer")
    loop.call_later(0.003, loop.stop)
    loop.run_forever()
    assert order == ["callback", "timer"]
    loop.remove_reader(near)


def test_a_callback_of_the_turn_is_run_before_the_descriptors_of_the_next(loop, pair):
    near, far = pair
    order = []
    far.send(b"x")
    loop.call_soon(loop.add_reader, near, lambda: order.append("reader") or loop.stop())
    loop.call_soon(order.append, "callback")
    loop.run_forever()
    assert order == ["callback", "reader"]
    loop.remove_reader(near)


def test_two_numbers_of_one_socket_are_watched_apart(loop, pair):
    near, far = pair
    calls = set()
    with socket.socket(fileno=os.dup(near.fileno())) as twin:
        loop.add_reader(near, calls.add, "near")
        loop.add_reader(twin, calls.add, "twin")
        far.send(b"x")
        run_turns_after_events(loop)
        assert calls == {"near", "twin"}
        assert loop.remove_reader(near)
        calls.clear()
        run_turns_after_events(loop)
        assert calls == {"twin"}
        assert loop.remove_reader(twin)


# Removing


def test_removing_tells_whether_there_was_something_to_remove(loop, pair):
    near, _ = pair
    assert loop.remove_reader(near) is False
    assert loop.remove_writer(near) is False
    loop.add_reader(near, print)
    assert loop.remove_writer(near) is False
    assert loop.remove_reader(near) is True
    assert loop.remove_reader(near) is False
    loop.add_writer(near, print)
    assert loop.remove_reader(near) is False
    assert loop.remove_writer(near) is True
    assert loop.remove_writer(near) is False


def test_a_reader_can_remove_itself(loop, pair):
    near, far = pair
    calls = []

    def once():
        calls.append(loop.remove_reader(near))

    loop.add_reader(near, once)
    far.send(b"x")
    run_turns_after_events(loop)
    assert calls == [True]


def test_a_reader_removed_by_another_of_the_same_turn_is_not_called(loop):
    pairs = [socket.socketpair() for _ in range(8)]
    calls = []

    def remove_the_others(number):
        calls.append(number)
        for near, _ in pairs:
            assert loop.remove_reader(near)

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, remove_the_others, number)
        far.send(b"x")
    run_turns_after_events(loop)
    assert len(calls) == 1
    for near, far in pairs:
        near.close()
        far.close()


def test_a_writer_removed_by_the_reader_of_the_same_descriptor_is_not_called(loop, pair):
    near, far = pair
    calls = []

    def call(name, remove_other):
        calls.append(name)
        remove_other(near)

    far.send(b"x")
    loop.add_reader(near, call, "reader", loop.remove_writer)
    loop.add_writer(near, call, "writer", loop.remove_reader)
    run_turns(loop, 2)
    assert set(calls) in ({"reader"}, {"writer"})
    loop.remove_reader(near)
    loop.remove_writer(near)


def test_removed_and_added_again_within_a_turn_a_reader_still_gets_its_event(loop, pair):
    near, far = pair
    calls = []

    def again():
        calls.append("first")
        loop.remove_reader(near)
        loop.add_reader(near, second)

    def second():
        calls.append("second")
        loop.stop()

    loop.add_reader(near, again)
    far.send(b"x")
    loop.run_forever()
    assert calls == ["first", "second"]
    loop.remove_reader(near)


def test_closing_the_loop_lets_go_of_its_watches(loop, pair):
    near, far = pair
    far.send(b"x")
    loop.add_reader(near, print)
    loop.add_writer(near, print)
    loop.close()
    assert near.recv(10) == b"x"


# Ends and errors


def test_the_end_of_a_stream_calls_the_reader(loop, pair):
    near, far = pair
    received = []

    def read():
        received.append(near.recv(10))
        loop.remove_reader(near)
        loop.stop()

    loop.add_reader(near, read)
    far.close()
    loop.run_forever()
    assert received == [b""]


def test_a_hangup_calls_reader_and_writer(loop, pair):
    near, far = pair
    fill(near)
    calls = set()
    loop.add_reader(near, calls.add, "reader")
    loop.add_writer(near, calls.add, "writer")
    run_turns(loop, 2)
    assert calls == set()
    far.close()
    run_turns_after_events(loop)
    assert calls == {"reader", "writer"}
    loop.remove_reader(near)
    loop.remove_writer(near)


def test_a_hangup_calls_a_writer_that_is_alone(loop, pair):
    near, far = pair
    fill(near)
    loop.add_writer(near, loop.stop)
    far.close()
    loop.run_forever()
    assert loop.remove_writer(near)


def test_a_connection_refused_calls_reader_and_writer(loop):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with socket.socket() as client:
            client.setblocking(False)
            calls = set()
            assert client.connect_ex(bound.getsockname()) != 0
            loop.add_reader(client, calls.add, "reader")
            loop.add_writer(client, calls.add, "writer")
            run_turns_after_events(loop)
            assert calls == {"reader", "writer"}
            loop.remove_reader(client)
            loop.remove_writer(client)


def test_the_end_of_a_pipe_calls_the_reader(loop, pipe):
    source, target = pipe
    received = []

    def read():
        received.append(source.read(10))
        loop.stop()

    target.close()
    loop.add_reader(source, read)
    loop.run_forever()
    assert received == [b""]
    assert loop.remove_reader(source)


def test_a_broken_pipe_calls_the_writer(loop, pipe):
    source, target = pipe
    while target.write(bytes(65536)):
        pass

    def write():
        with pytest.raises(BrokenPipeError):
            target.write(b"x")
        loop.stop()

    loop.add_writer(target, write)
    loop.call_soon(source.close)
    loop.run_forever()
    assert loop.remove_writer(target)


def test_a_broken_pipe_calls_a_reader_of_its_writing_end(loop, pipe):
    source, target = pipe
    loop.add_reader(target, loop.stop)
    loop.call_soon(source.close)
    loop.run_forever()
    assert loop.remove_reader(target)


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_regular_file_is_refused_and_the_loop_goes_on(loop, pair, tmp_path, method):
    near, far = pair
    with open(tmp_path / "file", "w+b") as file:
        for _ in range(2):
            with pytest.raises(PermissionError):
                getattr(loop, method)(file, print)
        assert loop.remove_reader(file) is False
        assert loop.remove_writer(file) is False
    far.send(b"x")
    loop.add_reader(near, loop.stop)
    loop.run_forever()
    loop.remove_reader(near)


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_number_that_is_not_open_is_refused(loop, pair, method):
    number = os.dup(0)
    os.close(number)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor"):
            getattr(loop, method)(number, print)
    # The number is free for its next owner.
    near, far = pair
    far.send(b"x")
    os.dup2(near.fileno(), number)
    try:
        getattr(loop, method)(number, loop.stop)
        loop.run_forever()
        assert getattr(loop, method.replace("add", "remove"))(number) is True
    finally:
        os.close(number)


class BrokenFileno:
    def __init__(self, result):
        self.result = result

    def fileno(self):
        return self.result


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
@pytest.mark.parametrize(
    "fd",
    [-1, "0", None, 1.5, object(), BrokenFileno("x"), BrokenFileno(None), BrokenFileno(-1)],
    ids=repr,
)
def test_what_is_no_descriptor_is_a_value_error(loop, method, fd):
    with pytest.raises(ValueError):
        getattr(loop, method)(fd, print)


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_closed_socket_is_a_value_error(loop, pair, method):
    pair[0].close()
    with pytest.raises(ValueError):
        getattr(loop, method)(pair[0], print)


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_callback_is_required(loop, pair, method):
    with pytest.raises(TypeError):
        getattr(loop, method)(pair[0])
    with pytest.raises(TypeError):
        getattr(loop, method)()


# Numbers that are used again


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "not removed"])
def test_an_event_of_a_closed_descriptor_never_reaches_the_next_owner_of_its_number(loop, removed):
    quiet_pairs = [socket.socketpair() for _ in range(2)]
    ready_pairs = [socket.socketpair() for _ in range(2)]
    numbers = [near.detach() for near, _ in ready_pairs]
    order = []

    def replace_the_other(index):
        order.append(f"ready {index}")
        loop.remove_reader(numbers[index])
        other = 1 - index
        if removed:
            loop.remove_reader(numbers[other])
        os.close(numbers[other])
        os.dup2(quiet_pairs[other][0].fileno(), numbers[other])
        loop.add_reader(numbers[other], order.append, "the next owner")

    for index, (_, far) in enumerate(ready_pairs):
        loop.add_reader(numbers[index], replace_the_other, index)
        far.send(b"x")
    run_turns_after_events(loop)
    assert order in (["ready 0"], ["ready 1"])
    for number in numbers:
        loop.remove_reader(number)
        os.close(number)
    for pair in quiet_pairs + ready_pairs:
        for sock in pair:
            sock.close()


def test_a_number_used_again_is_watched_for_its_new_owner(loop, pair):
    near, far = pair
    old, old_far = socket.socketpair()
    number = old.fileno()
    calls = []
    with old_far:
        loop.add_reader(number, calls.append, "old")
        loop.remove_reader(number)
        old.close()
        os.dup2(near.fileno(), number)
        loop.add_reader(number, lambda: calls.append("new") or loop.stop())
        far.send(b"x")
        loop.run_forever()
        assert calls == ["new"]
        assert loop.remove_reader(number)
        os.close(number)


@pytest.mark.asyncio_differs("the selector takes the number for the closed descriptor")
@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_number_used_again_is_watched_although_nobody_removed_the_old_watch(loop, pair, method):
    near, far = pair
    old, old_far = socket.socketpair()
    number = old.fileno()
    calls = []
    with old_far:
        getattr(loop, method)(number, calls.append, "old")
        old.close()
        os.dup2(near.fileno(), number)
        getattr(loop, method)(number, lambda: calls.append("new") or loop.stop())
        far.send(b"x")
        loop.run_forever()
        assert calls == ["new"]
        assert getattr(loop, method.replace("add", "remove"))(number)
        os.close(number)


def test_a_watched_descriptor_may_be_closed_before_its_watch_is_removed(loop, pair):
    near, far = pair
    number = os.dup(near.fileno())
    calls = []
    loop.add_reader(number, calls.append, "closed")
    near.close()
    os.close(number)
    run_turns(loop, 2)
    assert loop.remove_reader(number) is True
    assert loop.remove_reader(number) is False
    far.close()
    run_turns(loop, 2)
    assert calls == []


# Descriptors of transports


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("add_reader", (print,)),
        ("add_writer", (print,)),
        ("remove_reader", ()),
        ("remove_writer", ()),
    ],
)
async def test_the_descriptor_of_a_transport_is_not_to_be_watched(loop, pair, method, arguments):
    near, far = pair
    lost = loop.create_future()

    class Protocol(asyncio.Protocol):
        def connection_lost(self, exc):
            lost.set_result(exc)

    transport, _ = await loop.create_connection(Protocol, sock=near)
    number = transport.get_extra_info("socket").fileno()
    for fd in (number, transport.get_extra_info("socket")):
        with pytest.raises(RuntimeError, match="File descriptor .* is used by transport"):
            getattr(loop, method)(fd, *arguments)
    transport.close()
    assert await lost is None
    # The number belongs to the program again.
    os.dup2(far.fileno(), number)
    loop.add_writer(number, print)
    assert loop.remove_writer(number)
    os.close(number)


def test_standard_input_can_be_watched(loop_type):
    name = f"{loop_type.__module__}.{loop_type.__qualname__}"
    program = """
import importlib, os, sys
module, _, name = sys.argv[1].rpartition(".")
loop = getattr(importlib.import_module(module), name)()
def read():
    print(os.read(0, 100).decode())
    loop.remove_reader(sys.stdin)
    loop.stop()
loop.add_reader(sys.stdin, read)
loop.run_forever()
loop.close()
"""
    command = [sys.executable, "-c", program, name]
    done = subprocess.run(command, input="typed", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "typed"
