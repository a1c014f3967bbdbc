"""Reactor: the main thread waits and tells, the workers do everything else.

One strict reactor is looked at by strace: a connection, a request, its end.
"""

import pytest
import witness
from witness import ACCEPTS, READS, WAITS, WRITES


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
    (accepted,) = [call for call in scene.calls(*ACCEPTS) if call.result >= 0]
    return accepted.result


def test_R0_main_only_waits_and_tells(scene):
    names = {call.name for call in scene.calls(role="main", after="connect", before="end")}
    assert names & WAITS
    assert names <= {*WAITS, "epoll_ctl", "futex", "read"}
    # The one thing it reads is the eventfd by which other threads end its wait.
    assert {call.arguments[-3:] for call in scene.calls("read", role="main", after="connect")} <= {
        ", 8"
    }


def test_R0b_workers_accept_read_write_and_handle(scene):
    work = scene.calls(*ACCEPTS, *READS, *WRITES, "mark", "close", after="connect", before="end")
    work = [call for call in work if "/" in call.arguments or call.name != "mark"]
    assert {call.role for call in work} == {"worker"}
    assert {"accept4", "recvfrom", "sendto", "close", "mark"} <= {call.name for call in work}


def test_R4_worker_reads(scene, connection):
    (read, end) = scene.calls(*READS, fd=connection, before="close")
    assert (read.role, read.result, end.error) == ("worker", 5, "EAGAIN")
    # It slept, in a futex, from before the request.
    woken = [call for call in scene.calls("futex", tid=read.tid) if call.start < read.start]
    assert any(call.start < scene.time_of("request") < call.end < read.start for call in woken)
    (rearm,) = [
        call
        for call in scene.calls("epoll_ctl", tid=read.tid, after="request", before="close")
        if call.start > end.end and call.target == connection and "EPOLLOUT" in call.arguments
    ]
    assert "EPOLL_CTL_MOD" in rearm.arguments


def test_R7_worker_writes(scene, connection):
    (write,) = scene.calls(*WRITES, fd=connection)
    assert (write.role, write.result) == ("worker", 5)
