"""Dispatchers: stopping, crowding, and running out of things.  tests/patterns/ has what they do."""

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
import waiting

from pyreactor import dispatchers
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handlers import (
    AcceptHandler,
    EchoHandler,
    EchoService,
    ReadyHandler,
    SignalHandler,
    TimerHandler,
)
from pyreactor.request_queue import QueueClosed, RequestQueue
from pyreactor.thread_pool import ThreadPool

PATIENCE = 15.0
CHANCES = 2000  # for each of two threads to be the one
KINDS = {
    "reactor": lambda **options: Reactor(workers=2, **options),
    "half-reactive": lambda **options: HalfSyncHalfReactive(workers=2, **options),
    "simulated-proactor": lambda **options: HalfSyncHalfReactive(
        "simulated_proactor", workers=2, **options
    ),
    "half-async": lambda **options: HalfSyncHalfAsync(sync_threads=2, **options),
    "efficient": lambda **options: EfficientHalfSyncHalfAsync(2, **options),
    "leader-followers": lambda **options: LeaderFollowers(threads=2, **options),
}
READING = {"simulated-proactor", "half-async"}


@pytest.fixture
def reported():
    return []


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def dispatcher(kind, reported):
    dispatcher = KINDS[kind](on_error=lambda handler, exc: reported.append(exc))
    yield dispatcher
    dispatcher.stop(timeout=PATIENCE)


@pytest.fixture
def echo(kind):
    return EchoService if kind in READING else EchoHandler


def listen(dispatcher, factory, **options):
    acceptor = AcceptHandler(("127.0.0.1", 0), factory, **options)
    dispatcher.register_handle(acceptor, acceptor)
    return acceptor.address


def connect(address):
    return socket.create_connection(address, timeout=PATIENCE)


def exchange(client, data):
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        more = client.recv(len(data) - len(received))
        assert more, "the connection ended"
        received += more
    assert received == data


def is_closed(peer):
    """Whether the other side has closed the connection."""
    peer.settimeout(PATIENCE)
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True  # with a byte unread


class Blocking(ReadyHandler):
    """Blocks with its first byte, until it is let go on."""

    def __init__(self, sock, started, go_on):
        self.sock, self.started, self.go_on = sock, started, go_on

    def handle_input(self, handle):
        self.sock.recv(1)
        self.started.release()
        assert self.go_on.wait(PATIENCE)

    def handle_close(self, handle):
        self.sock.close()


# --- A queue that is full -------------------------------------------------------------------------


class Crowd:
    """A reactor whose one worker is blocked, whose queue is full, and whose main waits for room."""

    def __init__(self, start=True):
        self.started, self.go_on = threading.Semaphore(0), threading.Event()
        self.queue = RequestQueue(2)
        self.reactor = Reactor(workers=1, queue=self.queue)
        self.peers = []
        if start:
            self.reactor.start()

    def fill(self):
        for _ in range(self.queue.capacity + 2):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.peers.append(theirs)
            self.reactor.register_handle(ours, Blocking(ours, self.started, self.go_on))
            theirs.send(b"x")
        assert self.started.acquire(timeout=PATIENCE)
        while self.queue.stats().put_sleeps == 0:
            assert not self.go_on.wait(0.001)

    def close(self):
        self.go_on.set()
        self.reactor.stop(timeout=PATIENCE)
        for peer in self.peers:
            peer.close()


@pytest.mark.parametrize("drain", [True, False])
def test_stop_keeps_its_time_with_a_full_queue(drain):
    crowd = Crowd()
    crowd.fill()
    with pytest.raises(TimeoutError):
        crowd.reactor.stop(drain, timeout=0.01)
    crowd.go_on.set()
    crowd.reactor.stop(drain, timeout=PATIENCE)
    handled = 1 + sum(crowd.started.acquire(blocking=False) for _ in crowd.peers)
    assert handled == 1 if not drain else handled >= 1 + crowd.queue.capacity
    assert all(map(is_closed, crowd.peers))
    crowd.close()


class Interrupted(Exception):
    """What a signal's handler raises."""


def test_a_signal_gets_through_to_a_main_thread_that_waits_for_room():
    crowd = Crowd(start=False)

    def interrupt(number, frame):
        crowd.go_on.set()  # or run() would wait for the handler
        raise Interrupted

    def fill():
        crowd.fill()
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    filling = threading.Thread(target=fill)
    filling.start()
    try:
        with pytest.raises(Interrupted):
            crowd.reactor.run()
    finally:
        filling.join()
        signal.signal(signal.SIGUSR1, previous)
        crowd.close()


def test_a_request_that_found_no_room_is_handled_after_the_signal():
    crowd = Crowd(start=False)
    interrupted = threading.Event()

    def fill():
        crowd.fill()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupted.wait(PATIENCE)
        crowd.go_on.set()
        for _ in crowd.peers[1:]:
            assert crowd.started.acquire(timeout=PATIENCE)
        crowd.reactor.stop(timeout=PATIENCE)

    previous = signal.signal(signal.SIGUSR1, lambda number, frame: interrupted.set())
    filling = threading.Thread(target=fill)
    filling.start()
    try:
        crowd.reactor.run()
    finally:
        filling.join()
        signal.signal(signal.SIGUSR1, previous)
        crowd.close()


# --- A queue that is shared -----------------------------------------------------------------------


class Sharing:
    """A reactor and a thread pool with one queue; the reactor's worker is blocked."""

    def __init__(self, **options):
        self.started, self.go_on = threading.Semaphore(0), threading.Event()
        self.pool = ThreadPool(1, thread_name_prefix="guest")
        self.reactor = Reactor(workers=1, queue=self.pool.queue, **options)
        self.reactor.start()
        self.peers = []
        # Both threads take one, so that each blocks.
        for _ in range(2):
            self.register(lambda ours: Blocking(ours, self.started, self.go_on))
        for _ in range(2):
            assert self.started.acquire(timeout=PATIENCE)

    def register(self, factory):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(PATIENCE)
        self.peers.append(theirs)
        self.reactor.register_handle(ours, factory(ours))
        theirs.send(b"x")
        return theirs

    def close(self):
        self.go_on.set()
        self.reactor.stop(timeout=PATIENCE)
        self.pool.shutdown()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def sharing():
    sharing = Sharing()
    yield sharing
    sharing.close()


def owner_of_this_thread():
    name = threading.current_thread().name
    return next((owner for owner in ("guest", "Reactor", "MainThread") if owner in name), name)


class Naming(ReadyHandler):
    """Answers with whose thread it was handled in."""

    def __init__(self, sock):
        self.sock = sock

    def handle_input(self, handle):
        self.sock.recv(1)
        self.sock.send(owner_of_this_thread().encode())

    def handle_close(self, handle):
        self.sock.close()


def test_the_threads_of_a_pool_that_shares_the_queue_handle_requests(sharing):
    sharing.go_on.set()
    seen = set()
    for _ in range(CHANCES):
        seen.add(sharing.register(Naming).recv(100))
        if seen == {b"guest", b"Reactor"}:
            break
    assert seen == {b"guest", b"Reactor"}
    assert sharing.pool.submit(pow, 2, 5).result(PATIENCE) == 32


def test_workers_make_the_calls_of_a_pool_that_shares_the_queue(sharing):
    sharing.go_on.set()
    owners = set()
    for _ in range(CHANCES):
        owners.add(sharing.pool.submit(owner_of_this_thread).result(PATIENCE))
        if owners == {"guest", "Reactor"}:
            break
    assert owners == {"guest", "Reactor"}


def test_stop_waits_for_requests_in_the_hands_of_a_pool(sharing):
    answering = sharing.register(Naming)  # waits in the queue
    with pytest.raises(TimeoutError, match="still"):
        sharing.reactor.stop(timeout=0.05)
    sharing.go_on.set()
    sharing.reactor.stop(timeout=PATIENCE)
    assert answering.recv(100)
    assert answering.recv(100) == b""


def test_a_stop_that_does_not_drain_loses_no_call(sharing):
    calls = [sharing.pool.submit(pow, 2, n) for n in range(20)]
    unanswered = [sharing.register(Naming) for _ in range(3)]
    waiting.wait_until(lambda: len(sharing.pool.queue) == 23, seconds=PATIENCE)
    threading.Timer(0.05, sharing.go_on.set).start()
    sharing.reactor.stop(drain=False, timeout=PATIENCE)
    assert [call.result(PATIENCE) for call in calls] == [2**n for n in range(20)]
    assert all(is_closed(peer) for peer in unanswered)


def test_a_handler_in_a_pools_thread_cannot_stop_the_dispatcher(sharing):
    answers = []

    class Stopping(Naming):
        def handle_input(self, handle):
            with pytest.raises(RuntimeError, match="request_stop") as caught:
                sharing.reactor.stop()
            answers.append(caught.value)
            super().handle_input(handle)

    sharing.go_on.set()
    owners = (sharing.register(Stopping).recv(100) for _ in range(CHANCES))
    assert b"guest" in owners
    assert answers


def test_a_pool_that_cancels_its_calls_cancels_no_request(sharing):
    answering = sharing.register(Naming)
    waiting.wait_until(lambda: len(sharing.pool.queue) == 1, seconds=PATIENCE)
    call = sharing.pool.submit(pow, 2, 5)
    sharing.pool.shutdown(wait=False, cancel_futures=True)
    assert call.cancelled()
    assert answering.recv(100) == b"MainThread"


def test_a_pool_that_is_shut_down_first_is_an_error_that_says_so(sharing):
    errors = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
        sharing.go_on.set()
        sharing.pool.shutdown()
        unanswered = sharing.register(Naming)
        waiting.wait_until(lambda: errors, seconds=PATIENCE)
    assert isinstance(errors[0], QueueClosed)
    assert "stop()" in str(errors[0])
    sharing.reactor.stop(timeout=PATIENCE)
    assert is_closed(unanswered)


def test_a_queue_serves_one_dispatcher():
    queue = RequestQueue(4)
    with Reactor(workers=1, queue=queue), pytest.raises(ValueError, match="another dispatcher"):
        HalfSyncHalfReactive(workers=1, queue=queue)


def test_who_takes_a_request_out_of_the_queue_may_call_it_once(sharing):
    sharing.register(Naming)
    request = sharing.pool.queue.get(PATIENCE)
    assert request.fd >= 0
    request()
    assert sharing.peers[-1].recv(100) == b"MainThread"
    with pytest.raises(ValueError, match="handled, already"):
        request()


# --- Stopping -------------------------------------------------------------------------------------


def test_a_handler_cannot_stop_its_dispatcher(dispatcher, kind, reported):
    """Neither in a thread of the dispatcher's, nor in the one that is in run()."""
    asked = threading.Event()
    answers = []

    def stop(timer):
        with pytest.raises(RuntimeError, match="request_stop") as caught:
            dispatcher.stop()
        answers.append(caught.value)
        asked.set()

    for _ in range(20):
        dispatcher.schedule_timer(TimerHandler(stop), 0)

    def finish():
        assert asked.wait(PATIENCE)
        dispatcher.stop(timeout=PATIENCE)

    finishing = threading.Thread(target=finish)
    finishing.start()
    dispatcher.run()
    finishing.join()
    assert answers and reported == []


def test_a_handler_may_ask_for_the_stop(dispatcher, echo):
    address = listen(dispatcher, echo)
    dispatcher.schedule_timer(TimerHandler(lambda timer: dispatcher.request_stop()), 0)
    dispatcher.run()
    assert dispatcher.stopped
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_a_signal_may_ask_for_the_stop(dispatcher):
    number = signal.SIGRTMIN + 4
    dispatcher.register_signal(number, SignalHandler(lambda number: dispatcher.request_stop()))
    dispatcher.schedule_timer(TimerHandler(lambda timer: os.kill(os.getpid(), number)), 0)
    dispatcher.run()
    assert dispatcher.stopped


def test_a_stop_that_is_asked_for_before_the_start_is_not_lost(dispatcher):
    dispatcher.request_stop()
    dispatcher.run()


def test_many_may_stop_at_once(dispatcher, echo, reported):
    address = listen(dispatcher, echo)
    dispatcher.start()
    failures = []

    def stop():
        try:
            dispatcher.stop(timeout=PATIENCE)
        except BaseException as exc:
            failures.append(exc)

    with connect(address) as client:
        exchange(client, b"hello")
        threads = [threading.Thread(target=stop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        assert client.recv(1) == b""
    assert failures == [] and reported == []


def test_registering_while_it_stops_is_refused_or_closed(dispatcher, kind, echo):
    dispatcher.start()
    stopped = threading.Event()
    peers, refusals = [], []

    def register():
        try:
            while not stopped.is_set():
                ours, theirs = socket.socketpair()
                peers.append(theirs)
                try:
                    dispatcher.register_handle(ours, echo(ours))
                    dispatcher.schedule_timer(TimerHandler(print), 3600)
                except BaseException:
                    ours.close()
                    raise
                if len(peers) == 10:
                    begun.set()
        except ValueError as exc:
            refusals.append(str(exc))

    begun = threading.Event()
    registering = threading.Thread(target=register)
    registering.start()
    assert begun.wait(PATIENCE)
    dispatcher.stop(timeout=PATIENCE)
    stopped.set()
    registering.join(PATIENCE)
    assert all("closed" in text for text in refusals)
    for peer in peers:
        assert is_closed(peer)
        peer.close()


def test_an_interrupt_ends_run(dispatcher, kind, echo, reported):
    """One that comes while a handler runs in the main thread, too."""

    def interrupt(timer):
        os.kill(os.getpid(), signal.SIGINT)

    dispatcher.schedule_timer(TimerHandler(interrupt), 0)
    with pytest.raises(KeyboardInterrupt):
        dispatcher.run()
    assert dispatcher.stopped and reported == []


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["factory", "register", "event", "close", "timer", "signal"])
def test_every_callback_may_raise(kind, echo, where, caplog, capfd):
    """Nobody dies of it, even where the hook for errors raises, too."""

    def hook(handler, exc):
        raise ArithmeticError("the hook failed")

    dispatcher = KINDS[kind](on_error=hook)
    fail = threading.Event()
    failed = threading.Semaphore(0)

    def raise_once(name):
        if where == name and fail.is_set():
            fail.clear()
            failed.release()
            raise RuntimeError(f"from {name}")

    class Failing(echo):
        def __init__(self, sock):
            super().__init__(sock)
            raise_once("factory")

        @property
        def mask(self):
            raise_once("register")
            return echo.mask

        def handle_event(self, handle, event_type):
            raise_once("event")
            return super().handle_event(handle, event_type)

        def handle_read(self, completion):
            raise_once("event")
            return super().handle_read(completion)

        def handle_close(self, handle):
            super().handle_close(handle)
            raise_once("close")

    number = signal.SIGRTMIN + 4
    dispatcher.register_signal(number, SignalHandler(lambda number: raise_once("signal")))
    address = listen(dispatcher, Failing)
    dispatcher.start()
    for _ in range(3):
        fail.set()
        if where == "timer":
            dispatcher.schedule_timer(TimerHandler(lambda timer: raise_once("timer")), 0)
        elif where == "signal":
            os.kill(os.getpid(), number)
        else:
            with connect(address) as client:
                try:
                    client.sendall(b"x")
                    client.recv(1)
                except ConnectionResetError:
                    pass
        assert failed.acquire(timeout=PATIENCE)
    with connect(address) as client:
        exchange(client, b"hello")
    dispatcher.stop(timeout=PATIENCE)
    assert "hook failed" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_reply_to_nobody_is_no_error():
    reported = []
    done = threading.Event()

    class Leaving(EchoService):
        def handle_read(self, completion):
            self.handle_set.remove_handle(completion.handle)
            return b"to nobody"

        def handle_close(self, handle):
            super().handle_close(handle)
            done.set()

    with HalfSyncHalfReactive(
        "simulated_proactor", workers=2, on_error=lambda handler, exc: reported.append(exc)
    ) as dispatcher:
        address = listen(dispatcher, Leaving)
        with connect(address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b""
        assert done.wait(PATIENCE)
    assert reported == []


# --- Connections that are handed over -------------------------------------------------------------


def test_a_loop_that_is_blocked_does_not_hold_up_the_others(monkeypatch):
    """Its share goes to the others when it has no room for more."""
    monkeypatch.setattr(dispatchers, "_CONNECTIONS_CAPACITY", 2)
    started, go_on = threading.Semaphore(0), threading.Event()
    made = []

    def factory(sock):
        made.append(sock)
        return Blocking(sock, started, go_on) if len(made) == 1 else EchoHandler(sock)

    clients = []
    with EfficientHalfSyncHalfAsync(2) as dispatcher:
        address = listen(dispatcher, factory)
        try:
            clients.append(connect(address))
            clients[0].sendall(b"x")
            assert started.acquire(timeout=PATIENCE)
            served = select.poll()
            for _ in range(12):
                clients.append(connect(address))
                clients[-1].sendall(b"hello")
                served.register(clients[-1], select.POLLIN)
            for _ in range(9):  # the others are in the queue of the blocked loop
                ((fd, _),) = served.poll(PATIENCE * 1000)[:1]
                served.unregister(fd)
        finally:
            go_on.set()
    for client in clients:
        client.close()


def test_connections_that_no_loop_has_taken_are_closed_at_the_stop():
    started, go_on = threading.Semaphore(0), threading.Event()
    dispatcher = EfficientHalfSyncHalfAsync(1)
    address = listen(dispatcher, lambda sock: Blocking(sock, started, go_on))
    dispatcher.start()
    with connect(address) as first, connect(address) as second:
        first.sendall(b"x")
        assert started.acquire(timeout=PATIENCE)
        with connect(address) as third:
            while dispatcher.stats()["queue_depth"] == 0:
                assert not go_on.wait(0.001)
            with pytest.raises(TimeoutError):
                dispatcher.stop(timeout=0.01)
            go_on.set()
            dispatcher.stop(timeout=PATIENCE)
            for client in (first, second, third):
                assert client.recv(1) == b""


# --- Running out ----------------------------------------------------------------------------------

WITHOUT_DESCRIPTORS = textwrap.dedent("""
    import logging, os, resource, socket, sys, threading
    from pyreactor import dispatchers
    from pyreactor.handlers import AcceptHandler, EchoHandler, EchoService

    logging.basicConfig(stream=sys.stderr)
    kind, reading = sys.argv[1:]
    options = {"EfficientHalfSyncHalfAsync": {"loops": 2}, "LeaderFollowers": {"threads": 2}}
    with getattr(dispatchers, kind)(**options.get(kind, {})) as dispatcher:
        service = EchoService if reading == "True" else EchoHandler
        acceptor = AcceptHandler(("127.0.0.1", 0), service)
        dispatcher.register_handle(acceptor, acceptor)
        clients = [socket.socket() for _ in range(3)]
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest + 100))
        before = dispatcher.stats()["waits"]
        for client in clients:
            client.settimeout(15)
            client.connect(acceptor.address)
        threading.Event().wait(0.2)  # how long it must not spin
        waits = dispatcher.stats()["waits"] - before
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 50, lowest + 100))
        for client in clients:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
    print(waits)
""")


@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        ("Reactor", False),
        ("HalfSyncHalfReactive", False),
        ("HalfSyncHalfAsync", True),
        ("EfficientHalfSyncHalfAsync", False),
        ("LeaderFollowers", False),
    ],
)
def test_without_descriptors_a_listener_rests_and_recovers(kind, reading):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS, kind, str(reading)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("cannot accept") == 1, run.stderr
    assert int(run.stdout) < 50


def test_more_threads_than_the_system_has_leave_nothing_behind(monkeypatch):
    before = set(threading.enumerate())
    real_start = threading.Thread.start

    def start(thread):
        if thread.name.endswith("-2"):
            raise RuntimeError("can't start new thread")
        real_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    dispatcher = Reactor(workers=5)
    with pytest.raises(RuntimeError, match="new thread"):
        dispatcher.start()
    dispatcher.stop(timeout=PATIENCE)
    assert set(threading.enumerate()) == before
