"""The I/O models: where the application waits, and who moves the bytes.

Each model is looked at by strace, in a thread of its own, before and after there is something.
"""

import os
import resource
import socket
import time
import types
import unittest

import pytest
import witness
from witness import READS, WAITS

from pyreactor.demultiplexers import (
    EVENT_READ,
    EpollDemultiplexer,
    PollDemultiplexer,
    SelectDemultiplexer,
    SignalDemultiplexer,
    UringDemultiplexer,
)
from pyreactor.io_models import (
    BlockingIO,
    MultiplexedIO,
    NonBlockingIO,
    SignalDrivenIO,
)

MODELS = ["blocking", "non-blocking", "select", "poll", "epoll", "signal-driven"]
CLASSES = {"blocking": BlockingIO, "non-blocking": NonBlockingIO, "signal-driven": SignalDrivenIO}
SLEEPS_IN = {
    "blocking": {"recvfrom"},
    "select": {"select", "pselect6"},
    "poll": {"poll", "ppoll"},
    "epoll": {"epoll_wait", "epoll_pwait", "epoll_pwait2"},
    "signal-driven": {"rt_sigtimedwait"},
}


@pytest.fixture(scope="module")
def recording():
    """The scene, and of each model its thread, its first descriptor, and what it received."""
    found = {}
    with witness.record("io_stage.py") as scene:
        for model in MODELS:
            begun = scene.tell("begin", model=model)
            scene.settle(f"{model} waits")
            if model != "non-blocking":
                scene.tell("send", count=3 if "block" not in model else 1)
            received = scene.tell("end")
            scene.settle(f"{model} ends")
            found[model] = types.SimpleNamespace(
                tid=begun["tid"], fd=begun["fd"], received=received
            )
    return scene, found


def slept_in(recording, model):
    """The call that the model's thread slept in before there was anything to read."""
    scene, found = recording
    mark = scene.time_of(f"{model} waits")
    return [call for call in scene.calls(tid=found[model].tid) if call.start < mark < call.end]


def reads(recording, model):
    scene, found = recording
    return scene.calls(*READS, tid=found[model].tid)


def test_I1_blocking_io_sits_in_recv_until_there_is_data(recording):
    (call,) = slept_in(recording, "blocking")
    assert (call.name, call.result) == ("recvfrom", 5)
    assert recording[1]["blocking"].received == ["hello"]


def test_I2_non_blocking_io_returns_at_once(recording):
    assert slept_in(recording, "non-blocking") == []
    (call,) = reads(recording, "non-blocking")
    assert call.error == "EAGAIN" and recording[1]["non-blocking"].received == []


def check_multiplexing(recording, model):
    """It slept in its call, and then read each of three sockets until EAGAIN."""
    (call,) = slept_in(recording, model)
    assert call.name in SLEEPS_IN[model]
    mine = reads(recording, model)
    assert [call.error for call in mine] == ["", "EAGAIN"] * 3
    assert all(later.start > call.end for later in mine)
    assert recording[1][model].received == ["hello"] * 3


def test_I3_select(recording):
    check_multiplexing(recording, "select")


def test_I3_select_refuses_what_it_has_no_room_for():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("the limit of descriptors is below 2000")
    with socket.socket() as sock, raised_limit(2000), SelectDemultiplexer() as demultiplexer:
        high = os.dup2(sock.fileno(), 1024)
        try:
            with pytest.raises(ValueError, match="FD_SETSIZE is 1024"):
                demultiplexer.register(high, EVENT_READ)
            low = os.dup2(sock.fileno(), 1023)
            demultiplexer.register(low, EVENT_READ)
            os.close(low)
        finally:
            os.close(high)


class raised_limit:
    """As many descriptors, for the length of a with statement."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft, hard = (max(self.count, limit) for limit in self.limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def __exit__(self, *exc_info):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)


def test_I4_poll(recording):
    check_multiplexing(recording, "poll")


def test_I4_poll_takes_five_thousand_descriptors():
    with raised_limit(6000), PollDemultiplexer() as demultiplexer:
        ours, theirs = socket.socketpair()
        copies = [os.dup(ours.fileno()) for _ in range(5000)]
        for fd in copies:
            demultiplexer.register(fd, EVENT_READ)
        assert demultiplexer.wait(0) == []
        theirs.send(b"x")
        assert sorted(demultiplexer.wait(witness.PATIENCE)) == [
            (fd, EVENT_READ) for fd in sorted(copies)
        ]
        for fd in copies:
            demultiplexer.unregister(fd)
            os.close(fd)
        ours.close()
        theirs.close()


def test_I5_epoll(recording):
    check_multiplexing(recording, "epoll")


def test_I5_the_ways_of_epoll():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for options, reports in [
            ({}, [True, True]),
            ({"trigger": "edge"}, [True, False]),
            ({"one_shot": True}, [True, False]),
            ({"exclusive": True}, [True, True]),
        ]:
            with EpollDemultiplexer(**options) as demultiplexer:
                demultiplexer.register(ours, EVENT_READ)
                assert demultiplexer.wait(0) == []
                theirs.send(b"x")
                assert [bool(demultiplexer.wait(0)) for _ in reports] == reports, options
                theirs.send(b"x")  # a new edge; but one that has shot is silent until armed
                assert bool(demultiplexer.wait(0)) is not options.get("one_shot", False)
                if "one_shot" in options:
                    demultiplexer.modify(ours, EVENT_READ)
                    assert demultiplexer.wait(0)
                ours.recv(10)


def cpu_of_waits(demultiplexer_class, idle):
    """The CPU seconds of waits with one active descriptor among idle ones; the best of a few."""
    with raised_limit(idle + 100), demultiplexer_class() as demultiplexer:
        ours, theirs = socket.socketpair()
        quiet, other = socket.socketpair()
        copies = [os.dup(quiet.fileno()) for _ in range(idle)]
        for fd in copies:
            demultiplexer.register(fd, EVENT_READ)
        demultiplexer.register(ours, EVENT_READ)
        theirs.send(b"x")
        best = float("inf")
        for _ in range(7):
            begin = time.thread_time()
            for _ in range(300):
                demultiplexer._wait(64, 0)
            best = min(best, time.thread_time() - begin)
        for fd in copies:
            os.close(fd)
        for sock in (ours, theirs, quiet, other):
            sock.close()
        return best


def test_I5_an_event_costs_the_same_among_10_and_10_000():
    """CPU time, not wall clock; poll() in its place costs a hundred times more."""
    few, many = (cpu_of_waits(EpollDemultiplexer, idle) for idle in (10, 10_000))
    assert many < 3 * few, (few, many)  # measured: 1.0
    assert cpu_of_waits(PollDemultiplexer, 10_000) > 20 * many


# --- I6: CPython's own tests of selectors ---------------------------------------------------------

SELECTORS = {
    "SelectSelector": SelectDemultiplexer,
    "PollSelector": PollDemultiplexer,
    "EpollSelector": EpollDemultiplexer,
    "UringSelector": UringDemultiplexer,
}


def cpython_tests():
    try:
        from test import test_selectors
    except ImportError:
        pytest.skip("this Python comes without its tests")
    return test_selectors


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("name", SELECTORS)
def test_I6_a_demultiplexer_passes_cpythons_test_selectors(name):
    tests = cpython_tests()
    try:
        SELECTORS[name]().close()
    except OSError as error:
        pytest.skip(str(error))
    bases = [tests.BaseSelectorTestCase, unittest.TestCase]
    if name != "SelectSelector":
        bases.insert(0, tests.ScalableSelectorMixIn)
    case = type(name, tuple(bases), {"SELECTOR": SELECTORS[name]})
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    count = suite.countTestCases()
    result = unittest.TestResult()
    suite.run(result)
    assert [text for _, text in result.failures + result.errors] == []
    assert result.testsRun == count > 15
    assert len(result.skipped) <= 2, result.skipped


# --- Waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["select", "poll", "epoll"])
def test_I7_the_multiplexer_itself_sleeps(recording, model):
    """One call, from before there was anything until there was: no time is spent meanwhile."""
    scene, found = recording
    (call,) = slept_in(recording, model)
    assert scene.calls(*WAITS, tid=found[model].tid)[0] == call
    assert len(scene.calls(*WAITS, tid=found[model].tid)) <= 3  # sockets


@pytest.mark.parametrize(
    "demultiplexer_class", [SelectDemultiplexer, PollDemultiplexer, EpollDemultiplexer]
)
def test_I7_one_wait_reports_many(demultiplexer_class):
    with demultiplexer_class() as demultiplexer:
        pairs = [socket.socketpair() for _ in range(100)]
        for ours, theirs in pairs:
            demultiplexer.register(ours, EVENT_READ)
            theirs.send(b"x")
        assert len(demultiplexer.wait(witness.PATIENCE)) == 100
        for pair in pairs:
            for sock in pair:
                sock.close()


# --- Signal-driven I/O ----------------------------------------------------------------------------


def test_I8_sigio_names_an_owner_and_the_signal_the_descriptor(recording):
    scene, found = recording
    tid = found["signal-driven"].tid
    changes = [
        call for call in scene.calls("fcntl", tid=tid) if call.fd == found["signal-driven"].fd
    ]
    asked = " ".join(call.arguments for call in changes)
    assert f"F_SETOWN_EX, {{type=F_OWNER_TID, pid={tid}}}" in asked
    assert "F_SETSIG" in asked and "FASYNC" in asked  # O_ASYNC's older name
    (call,) = slept_in(recording, "signal-driven")
    assert call.name == "rt_sigtimedwait"
    # strace reads the kernel's si_band and si_fd as another kind of signal would have them.
    assert f"si_pid={0x41}, si_uid=0, si_int={found['signal-driven'].fd}," in call.arguments


def test_I8_nothing_is_lost_when_the_kernels_queue_of_signals_overflows():
    limits = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (3, limits[1]))
    try:
        with SignalDemultiplexer() as demultiplexer:
            pairs = [socket.socketpair() for _ in range(50)]
            for ours, _ in pairs:
                demultiplexer.register(ours, EVENT_READ)
            assert demultiplexer.wait(0) == []
            for _, theirs in pairs:
                theirs.send(b"x")
            ready = set()
            while len(ready) < len(pairs):
                found = demultiplexer.wait(witness.PATIENCE)
                assert found
                ready |= {fd for fd, _ in found}
            for pair in pairs:
                for sock in pair:
                    sock.close()
    finally:
        resource.setrlimit(resource.RLIMIT_SIGPENDING, limits)


def test_I9_upon_the_signal_the_application_reads_without_blocking(recording):
    scene, found = recording
    tid = found["signal-driven"].tid
    (signalled,) = slept_in(recording, "signal-driven")
    setsig = [call for call in scene.calls("fcntl", tid=tid) if "F_SETSIG, SIG" in call.arguments]
    mine = reads(recording, "signal-driven")
    assert setsig[0].end < signalled.start < signalled.end < mine[0].start
    assert [call.error for call in mine] == ["", "EAGAIN"] * 3
    assert found["signal-driven"].received == ["hello"] * 3


@pytest.mark.parametrize("model", MODELS)
def test_I12_classification_is_what_the_kernel_saw(recording, model):
    """Synchronous: the application's own thread moved the bytes, and after it could."""
    scene, found = recording
    cls = CLASSES.get(model, MultiplexedIO)
    assert (cls.synchronous, cls.notifies, cls.io_by) == (True, "readiness", "application")
    moved = [call for call in reads(recording, model) if call.result]
    assert sum(call.result for call in moved if call.result > 0) == sum(
        map(len, found[model].received)
    )
    if model != "non-blocking":
        assert all(call.end > scene.time_of(f"{model} waits") for call in moved)
