"""Proactor and its simulation: in which thread, or in none, each step is done.

Each is looked at by strace once, in its strict profile; the rows share the recordings.
"""

import time

import pytest
import witness
from witness import ACCEPTS, READS, WRITES

from pyreactor.io_models import AsyncIO
from pyreactor.proactor import Proactor

REQUESTS = 4
NOTIFICATIONS = ("cqe", "eventfd", "signal")
pytestmark = pytest.mark.time_limit(120)


def need_io_uring():
    try:
        Proactor(workers=1).stop()
    except OSError as exc:
        pytest.skip(str(exc))


def play(kind):
    if kind == "proactor":
        need_io_uring()
    with witness.record("proactor_stage.py", kind, "strict=True", "workers=2") as scene:
        scene.settle("idle")
        with scene.connect() as client:
            scene.settle("connected")
            scene.stats = scene.tell("stats")
            for number in range(REQUESTS):
                scene.mark(f"request/{number}")
                scene.exchange(client, b"hello")
            scene.settle("end")
        scene.settle("closed")
        if kind != "reactor":
            scene.told = scene.tell("read", notify="signal")
            scene.settle("over")
    return scene


@pytest.fixture(scope="module")
def reactor():
    return play("reactor")


@pytest.fixture(scope="module")
def proactor():
    return play("proactor")


@pytest.fixture(scope="module")
def simulated():
    return play("simulated")


@pytest.fixture(scope="module", params=["proactor", "simulated"])
def busy(request):
    """Two connections, one of which lets its operations last."""
    if request.param == "proactor":
        need_io_uring()
    with witness.record("proactor_stage.py", request.param, "strict=True", "workers=2") as scene:
        with scene.connect() as lasting, scene.connect() as other:
            for client in (lasting, other):
                scene.exchange(client, b"hello")
            scene.settle("a read lasts")
            scene.exchange(other, b"meanwhile")
            scene.settle("it has lasted")
            sent = fill(lasting)
            scene.settle("a write lasts")
            scene.exchange(other, b"meanwhile")
            scene.settle("that has lasted")
            lasting.settimeout(witness.PATIENCE)
            while sent > 0:
                sent -= len(lasting.recv(1 << 20))
            assert sent == 0
    return scene


def fill(client):
    """Send until nobody takes it any more: the echo is not read.  How many bytes that was."""
    client.setblocking(False)
    sent = refused = 0
    while refused < 20:
        try:
            sent += client.send(bytes(65536))
            refused = 0
        except BlockingIOError:
            refused += 1
            time.sleep(0.02)
    return sent


@pytest.fixture(scope="module")
def asynchronous():
    """AsyncIO in the one thread that asks for it, told in each way."""
    need_io_uring()
    with witness.record("proactor_stage.py", "proactor", "workers=1") as scene:
        scene.told = {
            notify: scene.tell("read_asynchronously", notify=notify) for notify in NOTIFICATIONS
        }
    return scene


def doers(scene, names, after="idle", before="end"):
    """The roles of those that did it with success on a connection."""
    return {
        call.role
        for call in scene.calls(*names, after=after, before=before)
        if call.result is not None and call.result > 0
    }


def connection_of(scene):
    """The descriptor that the handlers were called for."""
    return int(scene.marks("handle/")[0].arguments.split("/")[1])


def test_who_accepts_reads_and_writes_in_each_pattern(reactor, proactor, simulated):
    """The reader is a worker, the main thread, or none; so are the one who accepts and the
    writer."""
    for names in (ACCEPTS, READS, WRITES):
        assert doers(reactor, names) == {"worker"}
        assert doers(simulated, names) == {"main"}
        assert doers(proactor, names) == set()


# --- Asynchronous I/O, the model that a proactor is made of ---------------------------------------


@pytest.mark.parametrize("notify", NOTIFICATIONS)
def test_I10_I11_the_kernel_fills_the_buffer_after_the_call_has_returned(asynchronous, notify):
    told = asynchronous.told[notify]
    assert told["received"] == "later\0\0\0"
    assert not told["early"]
    span = {"after": f"{notify} started", "before": f"{notify} done"}
    mine = asynchronous.calls(*READS, "read", **span)
    assert [call for call in mine if call.fd == told["fd"]] == []
    assert asynchronous.calls("io_uring_enter", role="application", **span)
    signals = [c for c in asynchronous.calls("rt_sigtimedwait", **span) if (c.result or 0) > 0]
    assert len(signals) == (notify == "signal")


def test_I12_asynchronous_io_is_done_by_the_kernel(asynchronous):
    assert (AsyncIO.synchronous, AsyncIO.notifies, AsyncIO.io_by) == (False, "completion", "kernel")
    fds = {told["fd"] for told in asynchronous.told.values()}
    assert [call for call in asynchronous.calls(*READS, "read") if call.fd in fds] == []


# --- Proactor -------------------------------------------------------------------------------------


def test_P0_workers_make_no_call_of_the_network(proactor):
    assert proactor.calls(*READS, *WRITES, *ACCEPTS, role="worker") == []
    assert proactor.calls("io_uring_enter", role="worker") == []


def test_P1_the_main_thread_submits_with_a_buffer_of_the_pool(proactor):
    assert proactor.stats["buffers_in_use"] == 1  # nothing has come yet
    enters = proactor.calls("io_uring_enter", after="connected", before="end")
    assert {call.role for call in enters} == {"main"}
    submitted = sum(int(call.arguments.split(", ")[1]) for call in enters)
    assert submitted >= 2 * REQUESTS  # a read and a write of each
    # And waits for nothing else.
    assert {call.role for call in proactor.calls("epoll_wait", "epoll_pwait2")} <= {"application"}


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param("a read lasts", "it has lasted", id="P2"),
        pytest.param("a write lasts", "that has lasted", id="P5"),
    ],
)
def test_P2_P5_the_main_thread_serves_others_meanwhile(busy, begin, end):
    lasting, other = dict.fromkeys(mark.arguments for mark in busy.marks("handle/"))
    handled = {
        call.arguments
        for call in busy.calls("mark", after=begin, before=end)
        if call.arguments.startswith("handle/")
    }
    assert handled == {other} != {lasting}
    waits = busy.calls("io_uring_enter", "epoll_wait", "epoll_pwait2", after=begin, before=end)
    assert "main" in {call.role for call in waits}


def test_P3_the_kernel_notifies_by_a_signal_after_the_bytes_are_there(proactor):
    assert proactor.told["received"] == "told"
    fd = proactor.told["fd"]
    assert [c for c in proactor.calls(*READS, after="asked", before="told") if c.fd == fd] == []
    taken = [
        call
        for call in proactor.calls("rt_sigtimedwait", after="asked", before="told")
        if call.result is not None and call.result > 0
    ]
    assert len(taken) == 1 and taken[0].role == "main"
    # The byte that the signal was sent for was written by no thread of the program.
    setsig = proactor.calls("fcntl", role="main", after="closed", before="told")
    (pipe,) = [call.fd for call in setsig if "F_SETSIG" in call.arguments]
    # As strace writes a siginfo of a signal that it does not know: POLL_IN, and the descriptor.
    assert "si_code=0x1" in taken[0].arguments or "POLL_IN" in taken[0].arguments
    assert f"={pipe}," in taken[0].arguments
    assert proactor.calls("write", role="main", after="asked", before="told") == []


def test_P4_P7_workers_process_and_decide(proactor):
    assert {mark.role for mark in proactor.marks("handle/")} == {"worker"}
    fd = connection_of(proactor)
    closes = [c for c in proactor.calls("close", after="end", before="closed") if c.fd == fd]
    assert [call.role for call in closes] == ["worker"]


def test_P6_no_thread_writes_the_answer(proactor):
    fd = connection_of(proactor)
    assert [call for call in proactor.calls(*WRITES, "write") if call.fd == fd] == []


# --- The simulation -------------------------------------------------------------------------------


def test_S0_workers_neither_read_nor_write(simulated):
    assert simulated.calls(*READS, *WRITES, *ACCEPTS, role="worker") == []


def test_S1_S2_the_main_thread_waits_for_the_socket_to_be_readable(simulated):
    fd = connection_of(simulated)
    arms = [call for call in simulated.calls("epoll_ctl") if call.target == fd]
    reads = [call for call in arms if "EPOLLIN" in call.arguments]
    assert reads and {call.role for call in reads} == {"main"}
    assert "EPOLL_CTL_ADD" in arms[0].arguments
    waits = [c for c in simulated.calls("epoll_wait", "epoll_pwait2") if c.role != "application"]
    assert {call.role for call in waits} == {"main"}


def test_S3_it_reads_until_nothing_is_left(simulated):
    fd = connection_of(simulated)
    reads = simulated.calls(*READS, fd=fd, after="connected", before="end")
    assert {call.role for call in reads} == {"main"}
    assert [call.result for call in reads if call.result and call.result > 0] == [5] * REQUESTS
    assert sum(call.error == "EAGAIN" for call in reads) == REQUESTS


def test_S4_a_worker_processes_and_registers_write_readiness(simulated):
    fd = connection_of(simulated)
    assert {mark.role for mark in simulated.marks("handle/")} == {"worker"}
    arms = [
        call
        for call in simulated.calls("epoll_ctl", after="connected", before="end")
        if call.target == fd and "EPOLLOUT" in call.arguments
    ]
    assert len(arms) == REQUESTS
    assert {call.role for call in arms} == {"worker"}


def test_S5_S6_the_main_thread_waits_until_it_can_be_written_and_writes(simulated):
    fd = connection_of(simulated)
    writes = simulated.calls(*WRITES, fd=fd)
    assert len(writes) == REQUESTS and {call.role for call in writes} == {"main"}
    for write in writes:
        waited = [
            call
            for call in simulated.calls("epoll_wait", "epoll_pwait2", role="main")
            if call.end < write.start and "EPOLLOUT" in call.arguments
        ]
        assert waited
