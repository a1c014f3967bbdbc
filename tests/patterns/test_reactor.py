"""Reactor: the main thread waits and tells, the workers do everything else.

A strict reactor is looked at by strace, over a connection, a request, and its end.
"""

import random
import socket
import threading

import pytest
import witness
from witness import ACCEPTS, READS, WAITS, WRITES

from pyreactor.dispatchers import Reactor
from pyreactor.handlers import EchoHandler


@pytest.fixture(scope="module")
def scene():
    with witness.record("stage.py", "reactor", "strict=True", "workers=3") as scene:
        scene.settle("connect")
        with scene.connect() as client:
            scene.settle("request")
            scene.exchange(client, b"hello")
            scene.settle("close")
        scene.settle("end")
    return scene


@pytest.fixture(scope="module")
def connection(scene):
    """The descriptor of the connection."""
    (accepted,) = scene.accepted()
    return accepted.result


def woken(scene, tid, after, before):
    """Whether the thread slept in a futex when the mark was put, until shortly before a time."""
    mark = scene.time_of(after)
    calls = scene.calls("futex", tid=tid)
    return any(call.start < mark < call.end < before for call in calls)


def test_R0_main_only_waits_and_tells(scene):
    names = {call.name for call in scene.calls(role="main", after="connect", before="end")}
    assert names & WAITS
    assert names <= {*WAITS, "epoll_ctl", "futex", "read"}
    # The one thing it reads is the eventfd by which other threads end its wait.
    reads = scene.calls("read", role="main", after="connect", before="end")
    assert {call.arguments[-3:] for call in reads} <= {", 8"}


def test_R0b_workers_accept_read_write_and_handle(scene):
    names = (*ACCEPTS, *READS, *WRITES, "close")
    work = scene.calls(*names, after="connect", before="end")
    work += scene.marks("handle")
    assert {call.role for call in work} == {"worker"}
    assert {"accept4", "recvfrom", "sendto", "close", "mark"} <= {call.name for call in work}


def test_R1_main_registers_read_ready(scene, connection):
    (add,) = [
        call for call in scene.calls("epoll_ctl") if "CTL_ADD, " + str(connection) in call.arguments
    ]
    assert add.role == "main"
    assert "EPOLLIN" in add.arguments and "EPOLLOUT" not in add.arguments


def test_R2_main_waits_for_readable(scene, connection):
    wait = next(
        call for call in scene.calls(*WAITS, role="main") if call.end > scene.time_of("request")
    )
    assert wait.start < scene.time_of("request")
    assert wait.ready[connection] == "EPOLLIN"


def test_R3_main_puts_the_readable_event_and_no_data():
    with Reactor(workers=1, strict=True) as reactor, reactor.trace() as trace:
        ours, theirs = socket.socketpair()
        with theirs:
            reactor.register_handle(ours, EchoHandler(ours))
            theirs.send(b"x" * 10)
            assert theirs.recv(10) == b"x" * 10
            steps = [step for step in trace.read() if step.fd == ours.fileno()]
    put = next(step for step in steps if step.step == "R3")
    assert (put.name, put.role) == ("put", "main")
    read_by_dispatcher = [step for step in steps if step.name == "read"]
    assert read_by_dispatcher == []  # nothing was there to be put but that it is readable


def test_R4_worker_reads(scene, connection):
    (read, end) = scene.calls(*READS, fd=connection, before="close")
    assert (read.role, read.result, end.error) == ("worker", 5, "EAGAIN")
    assert end.tid == read.tid
    assert woken(scene, read.tid, "request", read.start)
    rearm = next(
        call
        for call in scene.calls("epoll_ctl", tid=read.tid, after="request", before="close")
        if call.start > end.end
    )
    assert rearm.target == connection
    assert "EPOLL_CTL_MOD" in rearm.arguments and "EPOLLOUT" in rearm.arguments


def test_R5_main_waits_for_writable(scene, connection):
    waits = scene.calls(*WAITS, role="main", after="request", before="close")
    assert any(call.ready.get(connection) == "EPOLLOUT" for call in waits)


def test_R6_main_puts_the_writable_event(scene, connection):
    """It wakes a worker between its wait and the worker's write."""
    writable = next(
        call
        for call in scene.calls(*WAITS, role="main", after="request")
        if call.ready.get(connection) == "EPOLLOUT"
    )
    (write,) = scene.calls(*WRITES, fd=connection)
    calls = scene.calls(role="main", after="request")
    between = [call.name for call in calls if writable.start < call.start < write.start]
    assert set(between) <= {"futex", *WAITS}


def test_R7_worker_writes(scene, connection):
    (write,) = scene.calls(*WRITES, fd=connection)
    assert (write.role, write.result) == ("worker", 5)
    handled = [call for call in scene.marks(f"handle/{connection}") if call.tid == write.tid]
    assert any(call.start < write.start for call in handled)


def test_R8_no_handle_is_in_two_workers_at_once():
    """One hot descriptor, many workers, a million bytes in their order."""
    chance = random.Random(8)
    sent = chance.randbytes(1_000_000)
    received = bytearray()
    inside = 0
    most = 0
    done = threading.Event()

    class Counting(EchoHandler):
        def handle_input(self, handle):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                received.extend(self.sock.recv(1000))
            finally:
                inside -= 1
            if len(received) == len(sent):
                done.set()

    with Reactor(workers=64) as reactor:
        ours, theirs = socket.socketpair()
        with theirs:
            reactor.register_handle(ours, Counting(ours))
            for begin in range(0, len(sent), 500):
                theirs.sendall(sent[begin : begin + 500])
            assert done.wait(witness.PATIENCE)
    assert received == sent and most == 1
