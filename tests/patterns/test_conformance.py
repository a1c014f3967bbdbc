"""What every dispatcher does alike, over every demultiplexer, strict and not."""

import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from pyreactor.demultiplexers import (
    EpollDemultiplexer,
    PollDemultiplexer,
    SelectDemultiplexer,
    UringDemultiplexer,
)
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.handle_set import HandleSet
from pyreactor.handlers import (
    AcceptHandler,
    EchoHandler,
    EchoService,
    SignalHandler,
    TimerHandler,
)

DEMULTIPLEXERS = [SelectDemultiplexer, PollDemultiplexer, EpollDemultiplexer, UringDemultiplexer]
DISPATCHERS = {
    "reactor": lambda demux, **options: Reactor(demux(), workers=3, **options),
    "half-reactive": lambda demux, **options: HalfSyncHalfReactive(
        "reactor", "mutex", demux(), workers=3, **options
    ),
    "simulated-proactor": lambda demux, **options: HalfSyncHalfReactive(
        "simulated_proactor", "lockfree", demux(), workers=3, **options
    ),
    "half-async": lambda demux, **options: HalfSyncHalfAsync(
        demux, async_threads=2, sync_threads=3, **options
    ),
    "efficient-ring": lambda demux, **options: EfficientHalfSyncHalfAsync(
        3, "ring", demux, **options
    ),
    "efficient-reuseport": lambda demux, **options: EfficientHalfSyncHalfAsync(
        3, "reuseport", demux, **options
    ),
    "leader-followers": lambda demux, **options: LeaderFollowers(
        HandleSet(demux(), **options), threads=4
    ),
    "leader-delegates": lambda demux, **options: LeaderFollowers(
        HandleSet(demux(), **options), threads=4, delegate=True
    ),
}
READING = {"simulated-proactor", "half-async"}  # their handlers get finished reads
PATIENCE = 15.0
CLIENTS = 20


@pytest.fixture(params=DEMULTIPLEXERS, ids=lambda cls: cls.__name__.removesuffix("Demultiplexer"))
def demultiplexer(request):
    try:
        request.param().close()
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return request.param


@pytest.fixture(params=[False, True], ids=["fast", "strict"])
def strict(request):
    return request.param


@pytest.fixture(params=DISPATCHERS)
def kind(request):
    return request.param


@pytest.fixture
def reported():
    return []


@pytest.fixture
def echo(kind):
    """The class of the handler that sends back what it gets."""
    return EchoService if kind in READING else EchoHandler


@pytest.fixture
def dispatcher(kind, demultiplexer, strict, reported, open_descriptors):
    before = open_descriptors()
    threads = set(threading.enumerate())
    dispatcher = DISPATCHERS[kind](
        demultiplexer, strict=strict, on_error=lambda handler, exc: reported.append(exc)
    )
    yield dispatcher
    dispatcher.stop(timeout=PATIENCE)
    assert set(threading.enumerate()) == threads
    left = {fd: name for fd, name in open_descriptors().items() if before.get(fd) != name}
    assert not any("socket" in name for name in left.values()), left


def listen(dispatcher, factory):
    acceptor = AcceptHandler(("127.0.0.1", 0), factory, reuse_port=True)
    dispatcher.register_handle(acceptor, acceptor)
    return acceptor.address


def connect(address):
    return socket.create_connection(address, timeout=PATIENCE)


def wait_until_refused(address):
    for _ in range(int(PATIENCE / 0.01)):
        try:
            connect(address).close()  # before the listener's handler has returned
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("it still listens")


def receive(sock, size):
    received = b""
    while len(received) < size:
        data = sock.recv(size - len(received))
        assert data, f"the connection ended after {len(received)} of {size} bytes"
        received += data
    return received


def test_many_connections_get_their_own_bytes_back(dispatcher, echo):
    chance = random.Random(7)
    address = listen(dispatcher, echo)
    dispatcher.start()
    clients = [connect(address) for _ in range(CLIENTS)]
    for _ in range(5):
        sent = [chance.randbytes(chance.randrange(1, 20000)) for _ in clients]
        for client, data in zip(clients, sent, strict=True):
            cut = chance.randrange(len(data))
            client.sendall(data[:cut])
            client.sendall(data[cut:])
        for client, data in zip(clients, sent, strict=True):
            assert receive(client, len(data)) == data
    for client in clients:
        client.close()


def test_a_half_closed_peer_gets_the_rest(dispatcher, echo):
    address = listen(dispatcher, echo)
    dispatcher.start()
    with connect(address) as client:
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 100_000) == b"x" * 100_000
        assert client.recv(1) == b""


def test_a_reset_ends_one_connection_only(dispatcher, echo, reported):
    address = listen(dispatcher, echo)
    dispatcher.start()
    with connect(address) as other:
        rude = connect(address)
        rude.sendall(b"hello")
        receive(rude, 5)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.close()
        other.sendall(b"hello")
        assert receive(other, 5) == b"hello"
    assert reported == []


def test_a_handler_that_raises_is_reported_and_closed(dispatcher, echo, reported):
    closed = threading.Event()
    made = []

    class Failing(echo):
        def handle_event(self, handle, event_type):
            raise RuntimeError("as it should")

        def handle_read(self, completion):
            raise RuntimeError("as it should")

        def handle_close(self, handle):
            super().handle_close(handle)
            closed.set()

    def factory(sock):
        made.append(sock)
        return Failing(sock) if len(made) == 1 else echo(sock)

    address = listen(dispatcher, factory)
    dispatcher.start()
    with connect(address) as client:
        client.sendall(b"x")
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass  # it was closed with the byte unread
    assert closed.wait(PATIENCE)
    assert [str(exc) for exc in reported] == ["as it should"]
    with connect(address) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"


def test_a_handler_may_remove_itself(dispatcher, echo, reported):
    closed = threading.Semaphore(0)

    class Leaving(echo):
        def handle_event(self, handle, event_type):
            self.sock.recv(1)
            self.handle_set.remove_handle(handle)
            assert self.sock.fileno() == handle  # it is closed afterwards

        def handle_read(self, completion):
            self.handle_set.remove_handle(completion.handle)

        def handle_close(self, handle):
            super().handle_close(handle)
            closed.release()

    address = listen(dispatcher, Leaving)
    dispatcher.start()
    for _ in range(3):
        with connect(address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b""
        assert closed.acquire(timeout=PATIENCE)
    assert not closed.acquire(blocking=False)
    assert reported == []


def test_timers_run_and_can_be_cancelled(dispatcher):
    seen = []
    done = threading.Event()

    def note(timer):
        seen.append(timer.data)
        if seen.count("tick") >= 3:
            done.set()

    dispatcher.start()
    cancelled = dispatcher.schedule_timer(TimerHandler(note), 3600, data="never")
    assert dispatcher.cancel_timer(cancelled)
    assert not dispatcher.cancel_timer(cancelled)
    once = dispatcher.schedule_timer(TimerHandler(note), 0, data="once")
    ticks = dispatcher.schedule_timer(TimerHandler(note), 0.001, 0.001, data="tick")
    assert done.wait(PATIENCE)
    dispatcher.cancel_timer(ticks)
    assert seen.count("once") == 1 and "never" not in seen
    assert not once.active and not ticks.active


def test_signals_are_events(dispatcher):
    number = signal.SIGRTMIN + 5
    counted = threading.Semaphore(0)
    dispatcher.register_signal(number, SignalHandler(lambda number: counted.release()))
    dispatcher.start()
    for _ in range(50):
        os.kill(os.getpid(), number)
    for _ in range(50):
        assert counted.acquire(timeout=PATIENCE)
    dispatcher.remove_signal(number)


def test_a_blocked_handler_does_not_stop_the_others(dispatcher, echo, kind):
    if kind.startswith("efficient"):
        pytest.skip("a loop handles its connections one after the other")
    blocked, go_on = threading.Event(), threading.Event()
    made = []

    class Blocking(echo):
        def block(self):
            blocked.set()
            assert go_on.wait(PATIENCE)

        def handle_event(self, handle, event_type):
            self.block()
            return super().handle_event(handle, event_type)

        def handle_read(self, completion):
            self.block()
            return super().handle_read(completion)

    def factory(sock):
        made.append(sock)
        return Blocking(sock) if len(made) == 1 else echo(sock)

    address = listen(dispatcher, factory)
    dispatcher.start()
    with connect(address) as slow:
        slow.sendall(b"slow")
        assert blocked.wait(PATIENCE)
        with connect(address) as quick:
            quick.sendall(b"quick")
            assert receive(quick, 5) == b"quick"
        go_on.set()
        assert receive(slow, 4) == b"slow"


def test_stop_lets_handlers_end_and_closes_everything(dispatcher, echo):
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(echo):
        def slow(self):
            started.set()
            go_on.wait(PATIENCE)
            ended.set()

        def handle_event(self, handle, event_type):
            self.sock.recv(1)
            self.slow()

        def handle_read(self, completion):
            self.slow()

    address = listen(dispatcher, Slow)
    dispatcher.start()
    with connect(address) as client:
        client.sendall(b"x")
        assert started.wait(PATIENCE)
        with pytest.raises(TimeoutError):
            dispatcher.stop(timeout=0.01)
        go_on.set()
        dispatcher.stop(timeout=PATIENCE)
        assert ended.is_set()
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_finished_reads_are_not_for_those_whose_handlers_read(dispatcher, kind):
    if kind in READING:
        pytest.skip("this one reads for its handlers")
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TypeError, match="nobody reads for it"):
        dispatcher.register_handle(ours, EchoService(ours))


def test_what_a_peer_does_not_read_is_not_read_from_it_either(dispatcher, kind, reported):
    if kind not in READING:
        pytest.skip("its handlers decide for themselves what they read")
    asked, written = [], threading.Event()
    answer = b"x" * 1_000_000

    class Generous(EchoService):
        def handle_read(self, completion):
            if completion.eof:
                return None
            asked.append(completion.data)
            self.handle_set.report_written(completion.handle)
            return answer

        def handle_write(self, completion):
            written.set()
            return b"."

    address = listen(dispatcher, Generous)
    dispatcher.start()
    with connect(address) as client:
        client.sendall(b"1")
        assert receive(client, 1) == b"x"
        client.sendall(b"2")
        assert receive(client, len(answer) - 1) == answer[1:]
        assert written.wait(PATIENCE)
        assert receive(client, 1) == b"."
        assert asked[0] == b"1" and b"".join(asked) in (b"1", b"12")
        assert receive(client, len(answer)) == answer
    assert reported == []


def test_several_listeners(dispatcher, echo):
    addresses = [listen(dispatcher, echo), listen(dispatcher, echo)]
    dispatcher.start()
    for address in addresses:
        with connect(address) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
    dispatcher.stop_accepting()
    for address in addresses:
        wait_until_refused(address)


def test_run_returns_after_stop(dispatcher, echo):
    address = listen(dispatcher, echo)
    running = threading.Thread(target=dispatcher.run)
    running.start()
    with connect(address) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
    dispatcher.stop(timeout=PATIENCE)
    running.join(PATIENCE)
    assert not running.is_alive()
    with pytest.raises(RuntimeError, match="only once"):
        dispatcher.start()
