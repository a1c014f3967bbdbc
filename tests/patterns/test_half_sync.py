"""The half-sync/half-async family: who does the I/O, what lies between, and who handles it.

Each dispatcher is looked at by strace once; the rows share the recordings.
"""

import os
import socket
import threading

import pytest
import witness
from witness import ACCEPTS, READS, WAITS, WRITES

from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
)
from pyreactor.handlers import AcceptHandler, EchoHandler, EchoService, TimerHandler

REQUESTS = 6


def play(*arguments, clients=1):
    """Record connections with a request each; "idle" marks when everything sleeps."""
    with witness.record("stage.py", *arguments) as scene:
        scene.settle("idle")
        connected = [scene.connect() for _ in range(clients)]
        scene.settle("connected")
        for client in connected:
            for _ in range(REQUESTS):
                scene.exchange(client, b"hello")
        scene.settle("end")
        for client in connected:
            client.close()
        scene.settle("closed")
    return scene


@pytest.fixture(scope="module")
def reactive():
    return play("half-reactive", "strict=True", "workers=3")


@pytest.fixture(scope="module")
def simulated():
    return play("half-reactive", "mode=simulated_proactor", "strict=True", "workers=3")


@pytest.fixture(scope="module")
def layered():
    return play("half-async", "async_threads=2", "sync_threads=3", clients=4)


@pytest.fixture(scope="module")
def efficient():
    return play("efficient", "loops=3", clients=9)


def sleepers(scene, role):
    """The names of the calls in which the threads of a role slept, when nothing was to be done."""
    return [call.name for call in scene.waiting("idle") if call.role == role]


# --- Half-sync/half-async -------------------------------------------------------------------------


def test_H1_the_two_senses_of_asynchronous_are_told_apart():
    told = HalfSyncHalfAsync.__doc__
    assert "driven by events from outside" in told
    assert "who copies the bytes" in told.replace("\n", " ").replace("    ", "")
    with HalfSyncHalfAsync(sync_threads=2, async_threads=2) as dispatcher:
        names = list(dispatcher.threads().values())
    assert sum("-async-" in name for name in names) == 2
    assert sum("-sync-" in name for name in names) == 2


def test_H2_asynchronous_threads_wait_for_events_and_synchronous_ones_for_requests(layered):
    waits = sleepers(layered, "async")
    assert len(waits) == 2 and set(waits) <= WAITS
    assert sleepers(layered, "sync") == ["futex"] * 3
    io = layered.calls(*READS, *WRITES, *ACCEPTS, after="idle", before="closed")
    assert {call.role for call in io} == {"async"}
    assert len({call.tid for call in layered.calls(*READS, role="async")}) == 2
    assert {call.role for call in layered.marks("handle")} == {"sync"}


def test_H3_a_request_goes_from_the_async_layer_through_the_queue_to_the_sync_layer():
    with HalfSyncHalfAsync(sync_threads=2) as dispatcher, dispatcher.trace() as trace:
        acceptor = AcceptHandler(("127.0.0.1", 0), EchoService)
        dispatcher.register_handle(acceptor, acceptor)
        with socket.create_connection(acceptor.address, timeout=witness.PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            steps = trace.read()
    (fd,) = {step.fd for step in steps if step.name == "read"}
    path = [(step.name, step.role) for step in steps if step.fd == fd and step.step == "H3"]
    order = [("read", "async"), ("put", "async"), ("take", "sync"), ("handle", "sync")]
    assert [step for step in path if step in order][:4] == order


# --- Half-sync/half-reactive ----------------------------------------------------------------------


def test_HR1_exactly_one_thread_waits_for_all_sockets(reactive, simulated):
    for scene in (reactive, simulated):
        waits = scene.calls(*WAITS, after="idle", before="closed")
        assert {call.role for call in waits} == {"main"}
        assert {call.tid for call in waits} == {scene.pid}


def test_HR2_main_accepts_and_registers_the_connection(reactive, simulated):
    for scene in (reactive, simulated):
        (accept,) = scene.accepted()
        assert accept.role == "main"
        adds = [
            call
            for call in scene.calls("epoll_ctl", after="idle")
            if f"CTL_ADD, {accept.result}," in call.arguments
        ]
        assert [call.role for call in adds] == ["main"]


def test_HR3_main_puts_the_socket_with_an_event_into_the_queue(reactive):
    """After each of its waits it wakes a worker, and does nothing else."""
    calls = reactive.calls(role="main", after="connected", before="end")
    assert {call.name for call in calls} <= {*WAITS, "futex"}
    with HalfSyncHalfReactive(workers=1) as dispatcher, dispatcher.trace() as trace:
        ours, theirs = socket.socketpair()
        with theirs:
            dispatcher.register_handle(ours, EchoHandler(ours))
            theirs.send(b"x")
            assert theirs.recv(1) == b"x"
            steps = [step for step in trace.read() if step.fd == ours.fileno()]
    names = [(step.name, step.role) for step in steps]
    assert names.index(("wait", "main")) < names.index(("put", "main"))
    assert names.index(("put", "main")) < names.index(("take", "worker"))


def test_HR4_workers_sleep_on_the_queue_and_one_wins(reactive):
    assert sleepers(reactive, "worker") == ["futex"] * 3
    # Each request was read by one of them.
    (accept,) = reactive.accepted()
    reads = [
        call for call in reactive.calls(*READS, fd=accept.result, before="end") if call.result == 5
    ]
    assert len(reads) == REQUESTS and {call.role for call in reads} == {"worker"}


def test_HR4_workers_compete_without_loss_or_duplicates():
    """Every event is handled once; so many that several workers win."""
    count = 100_000
    seen = bytearray(count)
    workers = set()
    left = threading.Semaphore(0)

    def note(timer):
        seen[timer.data] += 1
        workers.add(threading.get_ident())
        left.release()

    handler = TimerHandler(note)
    with HalfSyncHalfReactive(workers=4) as dispatcher:
        for number in range(count):
            dispatcher.schedule_timer(handler, 0, data=number)
        for _ in range(count):
            assert left.acquire(timeout=witness.PATIENCE)
    assert seen == b"\1" * count
    assert len(workers) > 1


def test_HR5_in_reactor_mode_workers_read_and_write(reactive):
    io = reactive.calls(*READS, *WRITES, after="connected", before="closed")
    assert {call.role for call in io} == {"worker"}


def test_HR6_main_may_do_the_io_instead(simulated):
    io = simulated.calls(*READS, *WRITES, after="connected", before="closed")
    assert {call.role for call in io} == {"main"}
    assert {call.role for call in simulated.marks("handle")} == {"worker"}


@pytest.mark.parametrize("queue", ["mutex", "lockfree"])
def test_HR7_the_queue_with_a_lock_is_there_to_compare(queue):
    """benchmarks/queue tells what each costs."""
    kinds = {"mutex": "mutex", "lockfree": "mpmc"}
    with HalfSyncHalfReactive(queue=queue, workers=2) as dispatcher:
        assert dispatcher.queue.kind == kinds[queue]
        acceptor = AcceptHandler(("127.0.0.1", 0), EchoHandler)
        dispatcher.register_handle(acceptor, acceptor)
        with socket.create_connection(acceptor.address, timeout=witness.PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"


def test_HR8_a_worker_has_one_request_and_the_others_wait():
    go_on = threading.Event()
    started = threading.Semaphore(0)

    def block(timer):
        started.release()
        go_on.wait(witness.PATIENCE)

    with HalfSyncHalfReactive(workers=4) as dispatcher:
        before = dispatcher.stats()
        for _ in range(20):
            dispatcher.schedule_timer(TimerHandler(block), 0)
        for _ in range(4):
            assert started.acquire(timeout=witness.PATIENCE)
        deadline = threading.Event()
        while dispatcher.stats()["queue_depth"] < 16:
            assert not deadline.wait(0.001)
        assert not started.acquire(blocking=False)
        go_on.set()
        for _ in range(16):
            assert started.acquire(timeout=witness.PATIENCE)
        after = dispatcher.stats()
    assert before["queue_depth"] == 0
    assert after["voluntary"] > before["voluntary"]


# --- Efficient half-sync/half-async ---------------------------------------------------------------


def test_HE1_each_worker_has_an_event_loop_of_its_own(efficient):
    loops = [call for call in efficient.waiting("idle") if call.role == "loop"]
    assert len(loops) == 3 and {call.name for call in loops} <= WAITS
    assert len({call.fd for call in loops}) == 3  # each its own epoll set


def test_HE2_main_accepts_and_one_loop_owns_the_socket_for_life(efficient):
    accepted = efficient.accepted()
    assert {call.role for call in accepted} == {"main"} and len(accepted) == 9
    assert efficient.calls(*READS, *WRITES, role="main", after="idle", before="closed") == []
    for accept in accepted:
        io = efficient.calls(*READS, *WRITES, "close", fd=accept.result, after="connected")
        changes = [
            call
            for call in efficient.calls("epoll_ctl", after="idle", before="closed")
            if call.target == accept.result
        ]
        owners = {call.tid for call in [*io, *changes]}
        assert len(owners) == 1 and owners <= efficient.tids("loop"), accept


def test_HE3_each_loop_handles_many_connections_at_once(efficient):
    owners = [efficient.calls(*READS, fd=accept.result)[0].tid for accept in efficient.accepted()]
    assert sorted(owners.count(tid) for tid in set(owners)) == [3, 3, 3]


@pytest.mark.parametrize("handoff", ["ring", "reuseport", "reuseport_cbpf"])
def test_HE2_every_way_of_handing_over_serves(handoff):
    loops = set()

    class Noting(EchoHandler):
        def handle_input(self, handle):
            loops.add(threading.get_ident())
            return super().handle_input(handle)

    with EfficientHalfSyncHalfAsync(2, handoff) as dispatcher:
        acceptor = AcceptHandler(("127.0.0.1", 0), Noting, reuse_port=True)
        dispatcher.register_handle(acceptor, acceptor)
        clients = [
            socket.create_connection(acceptor.address, timeout=witness.PATIENCE) for _ in range(40)
        ]
        for client in clients:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        assert sum(dispatcher.connections()) >= 40
        for client in clients:
            client.close()
    # By processor, all may have come in on one; by hash, 40 do not all fall to one side.
    assert len(loops) == 2 or handoff == "reuseport_cbpf" or os.cpu_count() == 1
