"""The units of a server: what lies between them, and what several of them share.

The pools have more of it: which queue is whose, and logic units that are processes.
"""

import os
import socket
import threading

import pytest
import witness
from witness import WAITS

from pyreactor.dispatchers import HalfSyncHalfReactive, LeaderFollowers, Reactor
from pyreactor.handlers import CLOSE, AcceptHandler, EchoHandler, EventHandler
from pyreactor.request_queue import RequestQueue

KINDS = ["mpmc", "mutex"]


def logic(queue, replies):
    """A logic unit: it knows its queue, and nothing of who is on the other side."""
    for request in queue:
        replies.put(request.upper())
    replies.close()


@pytest.mark.parametrize("kind", [*KINDS, "spsc"])
def test_U3_the_queue_is_all_that_two_units_know_of_each_other(kind):
    """The same units over each kind; only how the queue is made differs."""
    requests, replies = RequestQueue(8, kind=kind), RequestQueue(8, kind=kind)
    unit = threading.Thread(target=logic, args=[requests, replies])
    unit.start()
    sent = [f"request {number}" for number in range(1000)]

    def ask():
        requests.put_many(sent)
        requests.close()

    asking = threading.Thread(target=ask)
    asking.start()
    assert list(replies) == [text.upper() for text in sent]
    asking.join()
    unit.join()
    assert requests.closed and replies.closed


@pytest.mark.parametrize("kind", KINDS)
def test_U3_a_dispatcher_takes_any_queue(kind):
    queue = RequestQueue(16, kind=kind)
    with Reactor(workers=2, queue=queue) as reactor:
        assert reactor.queue is queue
        acceptor = AcceptHandler(("127.0.0.1", 0), EchoHandler)
        reactor.register_handle(acceptor, acceptor)
        with socket.create_connection(acceptor.address, timeout=witness.PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
    assert queue.stats().puts >= 2 and queue.closed


@pytest.mark.time_limit(60)
def test_U4_one_put_wakes_one_of_those_who_sleep():
    with witness.record("stage.py", "half-reactive", "workers=4") as scene:
        with scene.connect() as client:
            scene.settle("idle")
            scene.exchange(client, b"hello")
            scene.settle("end")
    idle = [call for call in scene.waiting("idle") if call.role == "worker"]
    assert [call.name for call in idle] == ["futex"] * 4
    put = next(
        call for call in scene.calls(*WAITS, role="main") if call.end > scene.time_of("idle")
    )
    wake = next(
        call
        for call in scene.calls("futex", role="main", after="idle")
        if call.start > put.end and "FUTEX_WAKE" in call.arguments
    )
    word = wake.arguments.split(",")[0]
    assert wake.result == 1
    awake = [call for call in idle if call.end < scene.time_of("end")]
    assert len(awake) == 1 and awake[0].arguments.startswith(word)


@pytest.mark.time_limit(60)
def test_U4_no_system_call_where_nobody_sleeps():
    """A put and a get are a few instructions then, counted by strace."""
    with witness.record("queue_stage.py") as scene:
        scene.tell("exchange", count=20_000)
        scene.mark("end")
    calls = scene.calls(after="busy", before="quiet", tid=scene.facts["tid"])
    assert [call.arguments for call in calls] == ["busy", "quiet"]  # the marks themselves


class Storage:
    """A storage unit for a few users at a time, and a counter that a lost update would show."""

    def __init__(self, capacity):
        self.places = RequestQueue(capacity)
        for place in range(capacity):
            self.places.put(place)
        self.using = self.most = 0
        self.counters = [0] * capacity

    def update(self):
        """Take a place, waiting for one; use it; give it back."""
        place = self.places.get(timeout=witness.PATIENCE)
        try:
            self.using += 1
            self.most = max(self.most, self.using)
            self.counters[place] += 1  # one at a time has the place
            self.using -= 1
        finally:
            self.places.put(place)


def test_U5_units_that_share_a_storage_unit_are_coordinated_by_its_queue():
    """16 workers, room for 4, and no update is lost of 100,000; pools have StorageUnit for it."""
    storage = Storage(4)
    updates = 100_000 // 16

    def work():
        for _ in range(updates):
            storage.update()

    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(storage.counters) == 16 * updates
    assert storage.most <= 4 and len(storage.places) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reactor(workers=3),
        lambda: HalfSyncHalfReactive(workers=3),
        lambda: LeaderFollowers(threads=3),
    ],
    ids=["reactor", "half-reactive", "leader-followers"],
)
def test_U8_a_logic_unit_of_threads_is_one_process(make):
    seen = set()
    everybody = threading.Barrier(3)

    class Telling(EventHandler):
        def __init__(self, sock):
            self.sock = sock

        def handle_event(self, handle, event_type):
            if not self.sock.recv(1):
                return CLOSE
            everybody.wait(witness.PATIENCE)  # each in a thread of its own
            seen.add((os.getpid(), threading.get_native_id()))
            self.sock.send(b"y")
            return None

        def handle_close(self, handle):
            self.sock.close()

    with make() as dispatcher:
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, theirs in pairs:
            dispatcher.register_handle(ours, Telling(ours))
            theirs.send(b"x")
        for _, theirs in pairs:
            assert theirs.recv(1) == b"y"
            theirs.close()
    assert {pid for pid, _ in seen} == {os.getpid()} and len(seen) == 3
