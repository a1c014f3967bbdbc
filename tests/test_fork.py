"""What a forked child can and cannot do with the loop of its parent."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver, resource_tracker

import pytest

# Python 3.12 warns of forking beside threads, which a test may have left in an executor.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def in_child(function):
    """What the function returned in a forked child, or the exception it raised there, as text."""
    source, target = os.pipe()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            answer = str(function())
        except BaseException as exc:
            answer = f"{type(exc).__name__}: {exc}"
        os.write(target, answer.encode())
        os._exit(0)
    os.close(target)
    with open(source) as file:
        answer = file.read()
    assert os.waitpid(pid, 0) == (pid, 0)
    return answer


def run_turns(loop, turns=1):
    """Run exactly that many turns."""
    for _ in range(turns):
        loop.call_soon(loop.stop)
        loop.run_forever()


USES = {
    "call_soon": lambda loop: loop.call_soon(print),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(print),
    "call_later": lambda loop: loop.call_later(1, print),
    "call_at": lambda loop: loop.call_at(1, print),
    "add_reader": lambda loop: loop.add_reader(0, print),
    "add_writer": lambda loop: loop.add_writer(0, print),
    "run_forever": lambda loop: loop.run_forever(),
    "run_until_complete": lambda loop: loop.run_until_complete(loop.create_future()),
}


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("use", USES)
def test_a_child_that_uses_the_loop_of_its_parent_is_told_so(loop, use):
    answer = in_child(lambda: USES[use](loop))
    assert answer.startswith("RuntimeError: ")
    assert "fork" in answer
    run_turns(loop)


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("use", [name for name in USES if not name.startswith("run")])
async def test_a_child_forked_by_a_callback_is_told_so(loop, use):
    answer = in_child(lambda: USES[use](loop))
    assert answer.startswith("RuntimeError: ")
    assert "fork" in answer
    await asyncio.sleep(0)


WAITED_FOR = {
    "create_server": lambda loop: loop.create_server(asyncio.Protocol, "127.0.0.1", 0),
    "create_unix_server": lambda loop: loop.create_unix_server(asyncio.Protocol, "\0pyreactor"),
    "create_connection": lambda loop: loop.create_connection(
        asyncio.Protocol, sock=socket.socketpair()[0]
    ),
    "create_datagram_endpoint": lambda loop: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, ("127.0.0.1", 0)
    ),
    "subprocess_exec": lambda loop: loop.subprocess_exec(asyncio.SubprocessProtocol, "true"),
    "getaddrinfo": lambda loop: loop.getaddrinfo("127.0.0.1", 80),
}


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("use", WAITED_FOR)
def test_a_child_that_awaits_the_loop_of_its_parent_is_told_so(loop, loop_type, use):
    def child():
        with asyncio.Runner(loop_factory=loop_type) as runner:
            runner.run(wait_for())

    async def wait_for():
        await WAITED_FOR[use](loop)

    answer = in_child(child)
    assert answer.startswith("RuntimeError: ")
    assert "fork" in answer
    run_turns(loop)


@pytest.mark.pyreactor_only
def test_metrics_of_the_parent_are_not_the_childs(loop):
    answer = in_child(loop.metrics)
    assert answer.startswith("RuntimeError: ")
    assert "fork" in answer


OWN_LOOP = """
import asyncio, pyreactor
assert pyreactor.run(asyncio.sleep(0.001, "done")) == "done"
"""


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
async def test_processes_of_multiprocessing_have_loops_of_their_own(loop, method):
    def work():
        process = multiprocessing.get_context(method).Process(target=exec, args=(OWN_LOOP, {}))
        process.start()
        process.join()
        status = process.exitcode
        process.close()
        return status

    def stop_helpers():  # which would hold on to descriptors
        if method == "forkserver":
            forkserver._forkserver._stop()
        resource_tracker._resource_tracker._stop()

    assert await asyncio.to_thread(work) == 0
    stop_helpers()
    await asyncio.sleep(0.001)


@pytest.mark.pyreactor_only
@pytest.mark.parametrize(
    "use",
    [
        lambda loop, near: loop.remove_reader(near),
        lambda loop, near: loop.add_reader(near, print),
        lambda loop, near: loop.add_writer(near, print),
        lambda loop, near: loop.close(),
        lambda loop, near: loop.stop(),
        lambda loop, near: loop.call_soon_threadsafe(print),
    ],
    ids=["remove_reader", "add_reader", "add_writer", "close", "stop", "call_soon_threadsafe"],
)
def test_whatever_the_child_does_the_parent_keeps_its_events(loop, use):
    near, far = socket.socketpair()
    near.setblocking(False)
    received = []

    def read():
        received.append(near.recv(100))
        loop.stop()

    def child():
        with contextlib.suppress(RuntimeError):
            use(loop, near)
        return "done"

    with near, far:
        loop.add_reader(near, read)
        run_turns(loop)
        assert in_child(child) == "done"
        far.send(b"for the parent")
        loop.run_forever()
        assert received == [b"for the parent"]
        assert loop.remove_reader(near)


@pytest.mark.pyreactor_only
def test_a_child_does_not_hear_of_the_events_of_its_parent(loop, loop_type):
    near, far = socket.socketpair()
    calls = []

    def child():
        own = loop_type()
        far.send(b"x")
        run_turns(own, 5)
        own.close()
        return calls

    with near, far:
        loop.add_reader(near, calls.append, "called")
        assert in_child(child) == "[]"
        run_turns(loop, 3)
        assert calls
        loop.remove_reader(near)


@pytest.mark.pyreactor_only
async def test_a_transport_of_the_parent_survives_its_use_by_the_child(loop):
    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            received.set_result(data)

        def connection_lost(self, exc):
            lost.set_result(exc)

    received, lost = loop.create_future(), loop.create_future()
    near, far = socket.socketpair()
    transport, _ = await loop.create_connection(Protocol, sock=near)

    def child():
        for method in (transport.pause_reading, transport.resume_reading, transport.abort):
            with contextlib.suppress(RuntimeError):
                method()
        return "done"

    assert in_child(child) == "done"
    far.sendall(b"for the parent")
    assert await received == b"for the parent"
    transport.close()
    assert await lost is None
    far.close()


def use_of_own_loop(loop_type):
    async def main():
        near, far = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        far.sendall(b"hello")
        answer = await reader.readexactly(5)
        await asyncio.sleep(0.001)
        result = await asyncio.to_thread(lambda: "thread")
        writer.close()
        far.close()
        return answer, result

    with asyncio.Runner(loop_factory=loop_type) as runner:
        return runner.run(main())


def test_a_child_can_have_a_loop_of_its_own(loop, loop_type):
    run_turns(loop)
    assert in_child(lambda: use_of_own_loop(loop_type)) == "(b'hello', 'thread')"
    run_turns(loop)


async def test_a_child_forked_by_a_callback_can_have_a_loop_of_its_own(loop, loop_type):
    answer = in_child(lambda: use_of_own_loop(loop_type))
    assert answer == "(b'hello', 'thread')"
    await asyncio.sleep(0.001)


@pytest.mark.pyreactor_only
def test_a_child_with_signal_handlers_of_its_parent_wakes_only_itself(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, "signalled")

    def child():
        signal.raise_signal(signal.SIGUSR1)
        return "done"

    assert in_child(child) == "done"
    run_turns(loop, 3)
    assert calls == []
    signal.raise_signal(signal.SIGUSR1)
    run_turns(loop, 3)
    assert calls == ["signalled"]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_many_children_leave_the_loop_alone(loop):
    async def main():
        for _ in range(10):
            assert in_child(lambda: "done") == "done"
            await asyncio.sleep(0)

    loop.run_until_complete(main())


async def test_descriptors_of_the_loop_are_not_inherited_by_programs(loop):
    before = await asyncio.to_thread(descriptors_of_a_program)
    near, far = socket.socketpair()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    loop.add_signal_handler(signal.SIGUSR1, print)
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    assert await asyncio.to_thread(descriptors_of_a_program) == before
    server.close()
    await server.wait_closed()
    loop.remove_signal_handler(signal.SIGUSR1)
    transport.close()
    await asyncio.sleep(0)
    far.close()


def descriptors_of_a_program():
    program = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, check=True, close_fds=False).stdout
