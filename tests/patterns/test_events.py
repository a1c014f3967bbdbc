"""I/O, signals and timers: one source of events for all three."""

import os
import random
import signal
import socket
import threading
import time

import pytest
import witness
from witness import WAITS

from pyreactor.dispatchers import LeaderFollowers, Reactor
from pyreactor.handle_set import HandleSet
from pyreactor.handlers import EchoHandler, ReadyHandler, SignalHandler, TimerHandler

SIGNAL = signal.SIGRTMIN + 7


def test_E1_io_events_go_to_the_method_of_their_kind():
    seen = []

    class Noting(ReadyHandler):
        def handle_input(self, handle):
            seen.append(("input", sock.recv(10)))
            self.handle_set.modify_handle(handle, 2)

        def handle_output(self, handle):
            seen.append(("output", None))
            self.handle_set.modify_handle(handle, 1 | 8)

        def handle_exception(self, handle):
            seen.append(("exception", sock.recv(1, socket.MSG_OOB)))

        def handle_close(self, handle):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener, HandleSet() as handle_set:
        with socket.create_connection(listener.getsockname()) as peer:
            sock, _ = listener.accept()
            with sock:
                handle_set.register_handle(sock, Noting())
                peer.send(b"data")
                while len(seen) < 2:
                    handle_set.handle_events(witness.PATIENCE)
                peer.send(b"!", socket.MSG_OOB)
                while len(seen) < 3:
                    handle_set.handle_events(witness.PATIENCE)
                handle_set.remove_handle(sock)
    assert seen == [("input", b"data"), ("output", None), ("exception", b"!")]


def test_E2_every_signal_of_a_burst_is_counted_while_sockets_are_busy():
    """In threads that block them; so no call is interrupted, and no handler runs in between."""
    count = 1000
    counted = threading.Semaphore(0)
    threads = set()
    stop = threading.Event()

    def note(number):
        threads.add(threading.get_native_id())
        counted.release()

    reactor = Reactor(workers=2)
    reactor.register_signal(SIGNAL, SignalHandler(note))
    reported = []
    with reactor:
        pairs = [socket.socketpair() for _ in range(100)]
        for ours, _ in pairs:
            reactor.register_handle(ours, EchoHandler(ours))

        def exchange():
            chance = random.Random(2)
            while not stop.is_set():
                _, peer = chance.choice(pairs)
                peer.sendall(b"hello")
                received = peer.recv(5)
                if received != b"hello":
                    reported.append(received)

        busy = threading.Thread(target=exchange)
        busy.start()
        for _ in range(count):
            os.kill(os.getpid(), SIGNAL)
        for _ in range(count):
            assert counted.acquire(timeout=witness.PATIENCE)
        stop.set()
        busy.join()
        assert not counted.acquire(blocking=False)
        workers = {tid for tid, name in reactor.threads().items() if "-worker-" in name}
        reactor.remove_signal(SIGNAL)
        for _, peer in pairs:
            peer.close()
    assert threads <= workers and reported == []


def test_E3_a_hundred_thousand_timers():
    """None early, none lost, cancelled ones never; each costs as little among many as among few."""
    count = 100_000
    chance = random.Random(3)
    early = 0
    due = set()

    def note(timer):
        nonlocal early
        begin, delay, number = timer.data
        early += time.monotonic() < begin + delay
        due.add(number)

    with HandleSet() as handle_set:
        handler = TimerHandler(note)
        timers = []
        for number in range(count):
            delay = chance.random() * 0.2
            data = (time.monotonic(), delay, number)
            timers.append(handle_set.schedule_timer(handler, delay, data=data))
        cancelled = {
            number for number in range(0, count, 2) if handle_set.cancel_timer(timers[number])
        }
        while len(due) < count - len(cancelled):
            handle_set.handle_events(witness.PATIENCE)
        assert not any(timer.active for timer in timers)
    assert early == 0
    assert due == set(range(count)) - cancelled


def cpu_of_timer(handle_set, count):
    """The CPU seconds of a timer's insertion and cancellation, among so many."""
    handler = TimerHandler(print)
    chance = random.Random(count)
    waiting = [handle_set.schedule_timer(handler, 1000 + chance.random()) for _ in range(count)]
    best = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        for _ in range(500):
            handle_set.cancel_timer(handle_set.schedule_timer(handler, 1000 + chance.random()))
        best = min(best, time.thread_time() - begin)
    for timer in waiting:
        handle_set.cancel_timer(timer)
    return best


def test_E3_a_timer_costs_no_more_among_many():
    with HandleSet() as handle_set:
        few, many = (cpu_of_timer(handle_set, count) for count in (10, 100_000))
    assert many < 5 * few, (few, many)  # a list to be searched would be 10,000 times


@pytest.fixture(scope="module")
def scene():
    with witness.record("stage.py", "leader-followers", "threads=1", "strict=True") as scene:
        scene.settle("idle")
        scene.tell("timer", seconds=0.05)
        scene.tell("signal")
        with scene.connect() as client:
            scene.exchange(client, b"hello")
        scene.tell("happened", count=2)
        scene.settle("end")
    return scene


def test_E4_one_wait_serves_sockets_signals_and_timers(scene):
    calls = scene.calls(*WAITS, role="member", after="idle", before="end")
    assert {call.tid for call in scene.calls(*WAITS, after="idle", before="end")} == {scene.pid}
    assert len({call.fd for call in calls}) == 1  # one epoll set
    # One of them ended by the clock, others with a descriptor; the signalfd is one of these, of
    # which a structure of 128 bytes was read.
    timeouts = [call for call in calls if call.result == 0]
    assert timeouts and any(call.result == 1 for call in calls)
    (signals,) = {call.fd for call in scene.calls("read", role="member") if call.result == 128}
    assert any(signals in call.ready for call in calls)


def test_E4_handle_events_returns_for_each():
    happened = []
    with HandleSet() as handle_set:
        ours, theirs = socket.socketpair()
        with theirs:
            handle_set.register_handle(ours, EchoHandler(ours))
            handle_set.register_signal(SIGNAL, SignalHandler(happened.append))
            handle_set.schedule_timer(TimerHandler(lambda timer: happened.append("timer")), 0)
            os.kill(os.getpid(), SIGNAL)
            theirs.send(b"x")
            while len(happened) < 2 or not handle_set.stats()["events"] >= 2:
                assert handle_set.handle_events(witness.PATIENCE) > 0
            assert theirs.recv(1) == b"x"
            handle_set.remove_signal(SIGNAL)
    assert set(happened) == {"timer", SIGNAL}


def test_E4_leader_followers_serve_all_three():
    done = threading.Semaphore(0)
    dispatcher = LeaderFollowers(threads=2)
    dispatcher.register_signal(SIGNAL, SignalHandler(lambda number: done.release()))
    with dispatcher:
        dispatcher.schedule_timer(TimerHandler(lambda timer: done.release()), 0.001, 0.001)
        os.kill(os.getpid(), SIGNAL)
        for _ in range(5):
            assert done.acquire(timeout=witness.PATIENCE)
        dispatcher.remove_signal(SIGNAL)
