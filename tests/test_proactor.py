"""Proactor and SimulatedProactor: one suite for both, in both profiles.

What a handler can rely on is the same whoever does the I/O; so a test that takes `make` runs four
times.
"""

import contextlib
import errno
import gc
import os
import select
import socket
import struct
import threading
import time

import pytest
from waiting import wait_until

from pyreactor import proactor as proactor_module
from pyreactor.demultiplexers import (
    EpollDemultiplexer,
    PollDemultiplexer,
    SelectDemultiplexer,
    SignalDemultiplexer,
    UringDemultiplexer,
)
from pyreactor.dispatchers import Reactor
from pyreactor.handlers import (
    CLOSE,
    KEEP,
    READ,
    WRITE,
    AcceptHandler,
    CompletionHandler,
    EchoHandler,
    EchoService,
    TimerHandler,
)
from pyreactor.io_models import AsyncIO
from pyreactor.pools import BufferPool
from pyreactor.proactor import Proactor, SimulatedProactor, new_proactor

PATIENCE = 20
pytestmark = pytest.mark.time_limit(60)


def has_io_uring():
    try:
        Proactor(workers=1).stop()
    except OSError:
        return False
    return True


needs_io_uring = pytest.mark.skipif(not has_io_uring(), reason="no io_uring on this machine")


@pytest.fixture(
    params=[
        pytest.param((kind, strict), id=f"{kind.__name__}-{'strict' if strict else 'fast'}")
        for kind in (Proactor, SimulatedProactor)
        for strict in (False, True)
    ]
)
def make(request):
    """Makes a running proactor; all are stopped at the end, and nothing is left of them."""
    kind, strict = request.param
    if kind is Proactor and not has_io_uring():
        pytest.skip("no io_uring on this machine")
    made = []
    errors = []

    def make(**options):
        options = {"workers": 2, "strict": strict, **options}
        options.setdefault("on_error", lambda handler, exc: errors.append(exc))
        made.append(kind(**options))
        made[-1].errors = errors
        made[-1].start()
        return made[-1]

    gc.collect()  # what the tests before have left
    before = set(os.listdir("/proc/self/fd"))
    yield make
    for proactor in made:
        proactor.stop(drain=False)
    for proactor in made:
        stats = proactor.stats()
        assert stats["live"] == stats["handles"] == stats["buffers_in_use"] == 0, stats
        assert stats["completed"] == stats["submitted"]
        assert proactor.pool.stats()["lent"] == 0
    assert set(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(PATIENCE)
        yield ours, theirs


def receive_exactly(sock, size):
    received = bytearray()
    while len(received) < size:
        more = sock.recv(min(65536, size - len(received)))
        assert more, f"the connection ended after {len(received)} bytes"
        received += more
    return bytes(received)


class Results(CompletionHandler):
    """Keeps what it is told."""

    def __init__(self, answer=None):
        self.answer = answer
        self.told = []
        self.threads = []
        self.closed = []
        self._more = threading.Condition()

    def _tell(self, method, completion):
        with self._more:
            self.told.append((method, completion))
            self.threads.append(threading.current_thread().name)
            self._more.notify_all()
        return self.answer

    def handle_read(self, completion):
        return self._tell("read", completion)

    def handle_write(self, completion):
        return self._tell("write", completion)

    def handle_accept(self, completion):
        return self._tell("accept", completion)

    def handle_connect(self, completion):
        return self._tell("connect", completion)

    def handle_close(self, handle):
        with self._more:
            self.closed.append(handle)
            self._more.notify_all()

    def wait_for(self, count, closed=0):
        with self._more:
            assert self._more.wait_for(
                lambda: len(self.told) >= count and len(self.closed) >= closed, PATIENCE
            ), (self.told, self.closed)
        return [completion for _, completion in self.told]


class Service(CompletionHandler):
    """Of a socket, which it owns."""

    def __init__(self, sock):
        self.sock = sock

    def handle_read(self, completion):
        return completion.data

    def handle_close(self, handle):
        self.sock.close()


def serve(proactor, factory=EchoService, **options):
    acceptor = AcceptHandler(("127.0.0.1", 0), factory, **options)
    address = acceptor.address
    proactor.register_handle(acceptor, acceptor)
    return address


def connect(address):
    return socket.create_connection(address, timeout=PATIENCE)


# --- Operations -----------------------------------------------------------------------------------


def test_a_read_returns_at_once_and_its_handler_is_told_in_a_worker(make):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs):
        operation = proactor.aio_read(ours, handler=results)
        assert not operation.done
        with pytest.raises(RuntimeError, match="is not done: wait"):
            operation.result()
        theirs.sendall(b"hello")
        (completion,) = results.wait_for(1)
        assert operation.wait(PATIENCE)
        assert (completion.data, completion.count) == (b"hello", 5)
        assert completion.error is None and not completion.eof
        assert completion.operation is operation
        assert completion.handle == ours.fileno()
        assert operation.result().data == b"hello"
        assert operation.kind == "read" and operation.notify == "cqe"
        assert "worker" in results.threads[0]


def test_the_end_of_a_stream_and_its_error_are_results(make):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs):
        theirs.shutdown(socket.SHUT_WR)
        proactor.aio_read(ours, handler=results)
        (completion,) = results.wait_for(1)
        assert completion.eof and completion.data == b"" and completion.error is None
    closed = socket.socket()
    proactor.aio_read(closed, handler=results)
    completion = results.wait_for(2)[1]
    assert completion.error.errno == errno.ENOTCONN
    closed.close()


def test_a_buffer_that_was_named_is_read_into(make):
    proactor = make()
    with pair() as (ours, theirs), proactor.pool.acquire() as buffer:
        address = buffer.address
        operation = proactor.aio_read(ours, buffer)
        assert operation.buffer is buffer
        with pytest.raises(BufferError, match="release it first"):
            buffer.release()
        theirs.sendall(b"named")
        assert operation.wait(PATIENCE)
        assert buffer.address == address
        assert bytes(operation.result().data) == b"named"
        assert bytes(memoryview(buffer)[:5]) == b"named"
        del operation
        own = bytearray(b"." * 8)
        operation = proactor.aio_read(ours, own)
        theirs.sendall(b"own")
        assert operation.wait(PATIENCE)
        assert own == b"own....."


def test_a_read_takes_no_more_than_it_asks_for(make):
    proactor = make(buffers=4, buffer_bytes=256)
    with pair() as (ours, theirs):
        theirs.sendall(b"abcdef")
        operation = proactor.aio_read(ours, 4)
        assert operation.wait(PATIENCE)
        assert operation.result().data == b"abcd"
        with pytest.raises(ValueError, match="has 256 bytes, and 257 are wanted"):
            proactor.aio_read(ours, 257)


def test_a_write_writes_all(make):
    proactor = make()
    data = os.urandom(3_000_000)
    with pair() as (ours, theirs):
        operation = proactor.aio_write(ours, data)
        assert receive_exactly(theirs, len(data)) == data
        assert operation.wait(PATIENCE)
        assert operation.result().count == len(data)


def test_writes_of_one_handle_keep_their_order(make):
    proactor = make()
    with pair() as (ours, theirs):
        operations = []
        for number in range(40):  # each waits for the one before, as a handler would
            operations.append(proactor.aio_write(ours, b"%04d" % number))
            assert operations[-1].wait(PATIENCE)
        assert receive_exactly(theirs, 160) == b"".join(b"%04d" % n for n in range(40))


def test_connect_and_accept(make):
    proactor = make()
    accepted, connected = Results(), Results()
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.socket() as client:
        proactor.aio_accept(listener, accepted)
        operation = proactor.aio_connect(client, listener.getsockname(), connected)
        (completion,) = connected.wait_for(1)
        assert completion.error is None and completion.sock is client
        (other,) = accepted.wait_for(1)
        with other.sock as server:
            assert other.address == client.getsockname()
            assert server.getpeername() == client.getsockname()
            assert operation.kind == "connect"


def test_a_connect_that_is_refused_and_an_address_that_is_none(make):
    proactor = make()
    results = Results()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as client:
        proactor.aio_connect(client, address, results)
        (completion,) = results.wait_for(1)
        assert isinstance(completion.error, ConnectionRefusedError)
        with pytest.raises(ValueError, match="no numeric address"):
            proactor.aio_connect(client, ("localhost", 80))


def test_files_are_read_and_written_at_an_offset(make, tmp_path):
    proactor = make()
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "r+b") as file:
        read = proactor.aio_read(file, 4, offset=3)
        assert read.wait(PATIENCE)
        assert read.result().data == b"3456"
        written = proactor.aio_write(file, b"XY", offset=8)
        assert written.wait(PATIENCE)
        end = proactor.aio_read(file, offset=10)
        assert end.wait(PATIENCE)
        assert end.result().eof and end.result().data == b""
        with pytest.raises(ValueError, match="offset"):
            proactor.aio_read(file, offset=-1)
    assert path.read_bytes() == b"01234567XY"


def test_pipes_are_read_and_written(make):
    proactor = make()
    reader, writer = os.pipe()
    try:
        for blocking in (True, False):
            os.set_blocking(reader, blocking)
            operation = proactor.aio_read(reader)
            assert proactor.aio_write(writer, b"through").wait(PATIENCE)
            assert operation.wait(PATIENCE)
            assert operation.result().data == b"through"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("size", [0, 1, 100_000, 1_000_000])
def test_sendfile(make, tmp_path, size):
    proactor = make()
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(b"head" + data)
    with open(path, "rb") as file, pair() as (ours, theirs):
        operation = proactor.aio_sendfile(ours, file, offset=4)
        assert receive_exactly(theirs, size) == data
        assert operation.wait(PATIENCE)
        assert operation.result().count == size
        if size == 100_000:
            operation = proactor.aio_sendfile(ours, file, offset=0, count=10**9)
            assert receive_exactly(theirs, size + 4) == b"head" + data
            assert operation.wait(PATIENCE)
            assert operation.result().count == size + 4  # the file ended before


# --- Notification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("notify", ["cqe", "eventfd", "signal"])
def test_every_kind_notifies_in_the_way_it_was_asked(make, notify, tmp_path):
    proactor = make()
    (tmp_path / "file").write_bytes(b"of a file")
    listener = socket.create_server(("127.0.0.1", 0))
    with pair() as (ours, theirs), listener, open(tmp_path / "file", "rb") as file:
        with socket.socket() as client:
            operations = [
                proactor.aio_accept(listener, notify=notify),
                proactor.aio_connect(client, listener.getsockname(), notify=notify),
                proactor.aio_read(ours, notify=notify),
                proactor.aio_read(file, offset=3, notify=notify),
                proactor.aio_write(ours, b"written", notify=notify),
            ]
            theirs.sendall(b"read")
            for operation in operations:
                assert operation.wait(PATIENCE), operation
            operations.append(proactor.aio_sendfile(ours, file, notify=notify))
            assert operations[-1].wait(PATIENCE)
            operations[0].result().sock.close()
        assert [operation.result().error for operation in operations] == [None] * 6
        assert operations[2].result().data == b"read"
        assert operations[3].result().data == b"a file"
        assert receive_exactly(theirs, 16) == b"writtenof a file"
        if notify == "eventfd":
            assert os.eventfd_read(proactor.eventfd) == len(operations)
    with pytest.raises(ValueError, match="'cqe', 'eventfd' or 'signal', not 'bell'"):
        proactor.aio_read(0, notify="bell")


def test_the_eventfd_is_written_when_the_bytes_are_there(make):
    proactor = make()
    with pair() as (ours, theirs):
        buffer = bytearray(8)
        operation = proactor.aio_read(ours, buffer, notify="eventfd")
        assert not select.select([proactor.eventfd], [], [], 0)[0]
        theirs.sendall(b"filled")
        assert select.select([proactor.eventfd], [], [], PATIENCE)[0]
        assert buffer == b"filled\0\0"
        assert operation.wait(PATIENCE)


def test_a_thousand_signals_are_all_told(make):
    proactor = make()
    with pair() as (ours, theirs):
        operations = [proactor.aio_write(ours, b".", notify="signal") for _ in range(1000)]
        assert receive_exactly(theirs, 1000) == b"." * 1000
        for operation in operations:
            assert operation.wait(PATIENCE)


# --- Cancellation ---------------------------------------------------------------------------------


def test_a_read_under_way_can_be_cancelled(make):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs):
        operation = proactor.aio_read(ours, handler=results)
        assert operation.cancel()
        (completion,) = results.wait_for(1)
        assert completion.error.errno == errno.ECANCELED
        assert operation.wait(PATIENCE)
        assert not operation.cancel()
        theirs.sendall(b"later")  # nothing was lost
        assert receive_exactly(ours, 5) == b"later"


def test_a_write_that_the_peer_does_not_take_can_be_cancelled(make):
    proactor = make()
    with pair() as (ours, theirs):
        operation = proactor.aio_write(ours, bytes(10_000_000))
        assert receive_exactly(theirs, 1) == b"\0"  # it is under way
        assert operation.cancel()
        assert operation.wait(PATIENCE)
        completion = operation.result()
        assert completion.error.errno == errno.ECANCELED
        assert completion.count < 10_000_000


def test_cancelling_races_with_the_end(make):
    proactor = make()
    with pair() as (ours, theirs):
        for number in range(200):
            operation = proactor.aio_read(ours, 1)
            theirs.sendall(b"x")
            was_under_way = operation.cancel()
            assert operation.wait(PATIENCE)
            completion = operation.result()
            if completion.error is not None:
                assert was_under_way, number
                assert completion.error.errno == errno.ECANCELED
                assert receive_exactly(ours, 1) == b"x"
            else:
                assert completion.data == b"x"


def test_accept_connect_and_timers_can_be_cancelled(make):
    proactor = make()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        operation = proactor.aio_accept(listener)
        assert operation.cancel()
        assert operation.wait(PATIENCE)
        assert operation.result().error.errno == errno.ECANCELED
    timer = proactor.schedule_timer(TimerHandler(lambda timer: None), 3600)
    assert proactor.cancel_timer(timer)
    assert not proactor.cancel_timer(timer)
    assert not timer.active


# --- Registered handles ---------------------------------------------------------------------------


def test_an_echo_server_keeps_each_connection_in_order(make):
    proactor = make(workers=3)
    address = serve(proactor)
    clients = [connect(address) for _ in range(20)]
    for index, client in enumerate(clients):
        for number in range(100):
            client.sendall(b"%02d-%04d;" % (index, number))
    for index, client in enumerate(clients):
        wanted = b"".join(b"%02d-%04d;" % (index, number) for number in range(100))
        assert receive_exactly(client, len(wanted)) == wanted
        client.close()
    assert proactor.errors == []


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "connection"])
def test_handlers_of_one_handle_never_run_at_once(make, policy):
    inside, most, names = {}, [], set()

    class Counts(Service):
        every_write = True

        def enter(self, completion):
            inside[completion.handle] = inside.get(completion.handle, 0) + 1
            most.append(inside[completion.handle])
            names.add(threading.current_thread().name)
            time.sleep(0)
            inside[completion.handle] -= 1

        def handle_read(self, completion):
            self.enter(completion)
            return completion.data

        def handle_write(self, completion):
            self.enter(completion)

    proactor = make(workers=4, select_worker=policy)
    address = serve(proactor, Counts)
    clients = [connect(address) for _ in range(8)]
    for _ in range(30):
        for client in clients:
            client.sendall(b"x" * 100)
        for client in clients:
            receive_exactly(client, 100)
    assert max(most) == 1
    if policy == "round_robin":
        assert len(names) == 4
    for client in clients:
        client.close()


def test_by_connection_each_has_one_worker(make):
    threads = {}

    class Notes(Service):
        def handle_read(self, completion):
            threads.setdefault(completion.handle, set()).add(threading.get_native_id())
            return completion.data

    proactor = make(workers=4, select_worker="connection")
    address = serve(proactor, Notes)
    clients = [connect(address) for _ in range(8)]
    for _ in range(10):
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            receive_exactly(client, 1)
    assert {len(found) for found in threads.values()} == {1}
    assert len(set.union(*threads.values())) > 1
    for client in clients:
        client.close()


def test_the_least_loaded_worker_is_chosen(make):
    proactor = make(workers=2, select_worker="least_loaded")
    held, release = threading.Event(), threading.Event()

    class Holds(Service):
        def handle_read(self, completion):
            if completion.data == b"hold":
                held.set()
                release.wait(PATIENCE)
            return completion.data

    address = serve(proactor, Holds)
    with connect(address) as slow, connect(address) as other:
        slow.sendall(b"hold")
        assert held.wait(PATIENCE)
        for _ in range(20):
            other.sendall(b"go on")
            assert receive_exactly(other, 5) == b"go on"
        release.set()
        assert receive_exactly(slow, 4) == b"hold"


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded"])
def test_results_do_not_wait_behind_handlers_that_block(make, policy):
    held, release = threading.Semaphore(0), threading.Event()

    class Holds(Service):
        def handle_read(self, completion):
            if completion.data == b"hold":
                held.release()
                release.wait(PATIENCE)
            return completion.data

    proactor = make(workers=3, select_worker=policy)
    address = serve(proactor, Holds)
    slow = [connect(address) for _ in range(2)]
    quick = [connect(address) for _ in range(6)]
    for client in slow:
        client.sendall(b"hold")
        assert held.acquire(timeout=PATIENCE)
    for number in range(20):
        for client in quick:
            client.sendall(b"%04d" % number)
        for client in quick:
            assert receive_exactly(client, 4) == b"%04d" % number
    if policy == "round_robin":
        assert proactor.stats()["taken_over"] > 0
    release.set()
    for client in slow:
        assert receive_exactly(client, 4) == b"hold"
    for client in slow + quick:
        client.close()


def test_half_close_is_answered_before_the_end(make):
    class Last(Service):
        def handle_read(self, completion):
            return b"and that was all" if completion.eof else completion.data

    address = serve(make(), Last)
    with connect(address) as client:
        client.sendall(b"x" * 200_000)
        client.shutdown(socket.SHUT_WR)
        assert receive_exactly(client, 200_016) == b"x" * 200_000 + b"and that was all"
        assert client.recv(1) == b""


def test_a_handler_closes_after_its_answer_was_written(make):
    class Once(Service):
        def handle_read(self, completion):
            self.handle_set.write(completion.handle, b"bye" * 100_000)
            return CLOSE

    address = serve(make(), Once)
    with connect(address) as client:
        client.sendall(b"?")
        assert receive_exactly(client, 300_000) == b"bye" * 100_000
        assert client.recv(1) == b""


@pytest.mark.parametrize("keep", [True, False])
def test_handle_write_decides_whether_to_close(make, keep):
    workers = []

    class Decides(Service):
        every_write = True

        def handle_write(self, completion):
            assert completion.count == 5 and completion.error is None
            workers.append(threading.current_thread().name)
            return None if keep else CLOSE

    address = serve(make(), Decides)
    with connect(address) as client:
        for _ in range(3 if keep else 1):
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
        if not keep:
            assert client.recv(1) == b""
    assert workers
    assert all("worker" in name for name in workers)


@pytest.mark.parametrize("kind", [pytest.param(Proactor, marks=needs_io_uring), SimulatedProactor])
def test_what_was_read_before_a_close_may_revoke_it(kind):
    """The bytes are on their way to the handler already when it says that it has enough."""
    entered, release = threading.Event(), threading.Event()

    class Revokes(Service):
        mask = READ | WRITE

        def handle_write(self, completion):
            if entered.is_set():
                proactor.write(completion.handle, b" and after")
            entered.set()
            release.wait(PATIENCE)
            return CLOSE

        def handle_read(self, completion):
            proactor.write(completion.handle, completion.data)
            proactor.report_written(completion.handle)
            return KEEP

    with kind(workers=2) as proactor, pair() as (ours, theirs):
        proactor.register_handle(ours, Revokes(ours))
        assert entered.wait(PATIENCE)
        theirs.sendall(b"before")
        wait_until(lambda: proactor.stats()["queue_depth"] == 2, PATIENCE)
        release.set()
        assert receive_exactly(theirs, 16) == b"before and after"
        assert theirs.recv(1) == b""


def test_report_written_tells_once_when_all_is_written(make):
    written = threading.Event()

    class Reports(Service):
        count = 0

        def handle_read(self, completion):
            if completion.data:
                self.handle_set.report_written(completion.handle, reading=False)
                return completion.data * 1000
            return None

        def handle_write(self, completion):
            Reports.count += 1
            written.set()

    address = serve(make(), Reports)
    with connect(address) as client:
        client.sendall(b"z" * 1000)
        receive_exactly(client, 1_000_000)
        assert written.wait(PATIENCE)
        client.sendall(b"y")
        receive_exactly(client, 1000)
    assert Reports.count >= 1


def test_a_reset_in_the_middle_of_a_write(make):
    closed = threading.Event()
    errors = []

    class Large(Service):
        def handle_read(self, completion):
            if completion.error is not None:
                errors.append(completion.error)
            return bytes(8_000_000) if completion.data else None

        def handle_close(self, handle):
            super().handle_close(handle)
            closed.set()

    proactor = make()
    address = serve(proactor, Large)
    client = connect(address)
    client.sendall(b"?")
    receive_exactly(client, 1000)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert closed.wait(PATIENCE)
    assert all(isinstance(error, ConnectionError) for error in errors)
    with connect(address) as other:  # the others go on
        other.sendall(b"?")
        receive_exactly(other, 1000)


def test_a_handler_that_raises_loses_its_connection_alone(make):
    class Raises(Service):
        def handle_read(self, completion):
            if completion.data == b"raise":
                raise ZeroDivisionError("as it was told")
            return completion.data

    proactor = make()
    address = serve(proactor, Raises)
    with connect(address) as bad, connect(address) as good:
        bad.sendall(b"raise")
        assert bad.recv(1) == b""
        good.sendall(b"fine")
        assert receive_exactly(good, 4) == b"fine"
    assert [str(error) for error in proactor.errors] == ["as it was told"]


def test_what_a_single_operations_handler_raises_is_reported(make):
    class Raises(Results):
        def handle_read(self, completion):
            super().handle_read(completion)
            raise ZeroDivisionError

    proactor = make()
    results = Raises()
    with pair() as (ours, theirs):
        operation = proactor.aio_read(ours, handler=results)
        theirs.sendall(b"x")
        results.wait_for(1, closed=1)
        assert operation.wait(PATIENCE)
        assert results.closed == [ours.fileno()]
    assert [type(error) for error in proactor.errors] == [ZeroDivisionError]


def test_a_slow_worker_holds_back_the_peer_and_memory_stays_flat(make):
    reading, release = threading.Event(), threading.Event()
    received = []

    class Slow(Service):
        def handle_read(self, completion):
            reading.set()
            release.wait(PATIENCE)
            received.append(len(completion.data))

    proactor = make(workers=1, buffers=8, buffer_bytes=4096)
    address = serve(proactor, Slow)
    with connect(address) as client:
        client.setblocking(False)
        sent = 0
        while True:  # until the window is closed
            try:
                sent += client.send(bytes(65536))
            except BlockingIOError:
                if not select.select([], [client], [], 0.5)[1]:
                    break
        assert reading.wait(PATIENCE)
        assert sent < 64_000_000
        stats = proactor.stats()
        assert stats["buffers_in_use"] <= 8
        assert stats["queue_depth"] <= 2
        release.set()
        client.settimeout(PATIENCE)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert sum(received) == sent


def test_a_peer_that_does_not_read_is_not_read(make):
    address = serve(make())
    with connect(address) as client:
        client.setblocking(False)
        sent = 0
        while True:
            try:
                sent += client.send(bytes(65536))
            except BlockingIOError:
                if not select.select([], [client], [], 0.5)[1]:
                    break
        assert sent < 64_000_000
        client.settimeout(PATIENCE)
        assert receive_exactly(client, sent) == bytes(sent)


def test_what_is_unsent_shrinks_while_the_peer_reads(make):
    proactor = make()
    data = os.urandom(1000) * 4000
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(PATIENCE)
        proactor.register_handle(ours, Service(ours))
        unsent = proactor.write(ours, data)
        assert 0 < unsent <= len(data)
        received = receive_exactly(theirs, len(data) // 2)
        deadline = time.monotonic() + PATIENCE
        while (left := proactor.write(ours, b"")) >= unsent:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert left > 0
        received += receive_exactly(theirs, len(data) - len(received))
        assert received == data


def test_Q2_with_no_buffer_left_connections_wait_for_one(make):
    """More connections that have something to say than there are buffers."""
    release = threading.Event()
    entered = threading.Semaphore(0)

    class Holds(Service):
        def handle_read(self, completion):
            entered.release()
            release.wait(PATIENCE)
            return completion.data

    proactor = make(workers=4, buffers=4, buffer_bytes=512)
    address = serve(proactor, Holds)
    clients = [connect(address) for _ in range(40)]
    while len(proactor.handles()) <= 40:  # they and the listener: no worker is needed for more
        time.sleep(0.001)
    for client in clients:
        client.sendall(b"all of us")
    for _ in range(4):
        assert entered.acquire(timeout=PATIENCE)
    release.set()
    if proactor.strict and isinstance(proactor, Proactor):
        for client in clients:  # each read under way keeps its buffer: they take turns as they end
            client.shutdown(socket.SHUT_WR)
    for client in clients:
        assert receive_exactly(client, 9) == b"all of us"
        client.close()
    assert proactor.stats()["buffers_exhausted"] > 0
    assert proactor.errors == []


def test_suspend_and_resume(make):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs):
        proactor.register_handle(ours, results)
        proactor.suspend(ours)
        proactor.aio_write(ours, b"sync").wait(PATIENCE)
        theirs.sendall(b"x")
        assert results.told == [] or results.told[0][1].data == b"x"
        proactor.resume(ours)
        results.wait_for(1)
        assert results.told[0][1].data == b"x"
        proactor.remove_handle(ours)
        results.wait_for(1, closed=1)


def test_the_mask_says_what_comes_first(make):
    proactor = make()
    with pair() as (ours, theirs):
        theirs.sendall(b"early")
        handler = Results()
        proactor.register_handle(ours, handler, WRITE)
        handler.wait_for(2)
        assert [method for method, _ in handler.told] == ["write", "read"]
        proactor.remove_handle(ours)
        handler.wait_for(2, closed=1)
    with pair() as (ours, theirs):
        theirs.sendall(b"early")
        handler = Results()
        proactor.register_handle(ours, handler, 0)
        other = Results()
        proactor.aio_write(theirs, b"", other)
        other.wait_for(1)
        assert handler.told == []
        proactor.resume(ours)
        (told,) = handler.wait_for(1)
        assert told.data == b"early"
        proactor.remove_handle(ours)
        handler.wait_for(1, closed=1)


def test_removing_a_handle_closes_it_once(make):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs):
        proactor.register_handle(ours, results)
        with pytest.raises(KeyError, match="already registered"):
            proactor.register_handle(ours, Results())
        assert proactor.handles() == [ours.fileno()]
        proactor.remove_handle(ours)
        results.wait_for(0, closed=1)
        assert results.closed == [ours.fileno()]
        assert proactor.handles() == []
        with pytest.raises(KeyError, match="is not registered"):
            proactor.remove_handle(ours)
        proactor.register_handle(ours, results)  # and again
        theirs.sendall(b"again")
        assert results.wait_for(1)[0].data == b"again"
        proactor.remove_handle(ours)
        results.wait_for(1, closed=2)


def test_descriptors_that_are_used_again_are_other_connections(make):
    address = serve(make())
    for number in range(50):
        with connect(address) as client:
            client.sendall(b"%d" % number)
            assert receive_exactly(client, len(str(number))) == b"%d" % number
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""


def test_single_operations_on_descriptors_that_are_used_again(make):
    proactor = make()
    for number in range(50):
        with pair() as (ours, theirs):
            operation = proactor.aio_read(ours)
            theirs.sendall(b"%d" % number)
            assert operation.wait(PATIENCE)
            assert operation.result().data == b"%d" % number


def test_the_textbook_way_with_single_operations(make):
    """accept, read, process, write, and then: close or not; nothing is registered."""

    class Session(CompletionHandler):
        def __init__(self, sock):
            self.sock = sock

        def handle_read(self, completion):
            if completion.eof:
                return CLOSE
            proactor.aio_write(self.sock, completion.data.upper(), self)
            return None

        def handle_write(self, completion):
            proactor.aio_read(self.sock, None, self)

        def handle_close(self, handle):
            self.sock.close()

    class Acceptor(CompletionHandler):
        def handle_read(self, completion):
            raise AssertionError

        def handle_accept(self, completion):
            if completion.error is None:
                session = Session(completion.sock)
                proactor.aio_read(completion.sock, None, session)
                proactor.aio_accept(listener, self)

    proactor = make()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proactor.aio_accept(listener, Acceptor())
        for _ in range(5):
            with connect(listener.getsockname()) as client:
                for _ in range(3):
                    client.sendall(b"hello")
                    assert receive_exactly(client, 5) == b"HELLO"
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
        proactor.stop()


# --- Timers and the trace -------------------------------------------------------------------------


def test_timers_run_in_workers_and_never_early(make):
    proactor = make()
    begin = time.monotonic()
    times = []
    done = threading.Event()

    def tick(timer):
        times.append(time.monotonic() - begin)
        assert "worker" in threading.current_thread().name
        if len(times) == 3:
            done.set()
            return CLOSE
        return None

    timer = proactor.schedule_timer(TimerHandler(tick), 0.05, 0.02, data="mine")
    assert timer.data == "mine" and timer.active
    assert done.wait(PATIENCE)
    assert times[0] >= 0.05 and times[2] >= 0.09
    timer.wait(PATIENCE)
    assert not timer.active and len(times) == 3


def test_the_trace_tells_the_steps(make):
    proactor = make(workers=1)
    address = serve(proactor)
    trace = proactor.trace()
    with trace, connect(address) as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        client.recv(1)
        steps = trace.read()
    prefix = "P" if isinstance(proactor, Proactor) else "S"
    numbered = {step.step for step in steps if step.step}
    roles = {step.step: step.role for step in steps}
    assert numbered and {step[0] for step in numbered} == {prefix}
    if prefix == "P":
        assert {"P1", "P3", "P4", "P6"} <= numbered
        assert roles["P1"] == roles["P3"] == roles["P6"] == "main"
    else:
        assert {"S1", "S2", "S3", "S4", "S6"} <= numbered
        assert roles["S1"] == roles["S2"] == roles["S6"] == "main"


# --- The end --------------------------------------------------------------------------------------


def test_stop_with_drain_writes_what_was_answered(make):
    entered, release = threading.Event(), threading.Event()

    class Slow(Service):
        def handle_read(self, completion):
            if completion.data:
                entered.set()
                release.wait(PATIENCE)
                return b"answer" * 50_000
            return None

    proactor = make()
    address = serve(proactor, Slow)
    with connect(address) as client:
        client.sendall(b"?")
        assert entered.wait(PATIENCE)
        stopping = threading.Thread(target=proactor.stop)
        stopping.start()
        while not proactor.stopping:
            time.sleep(0)
        release.set()
        assert receive_exactly(client, 300_000) == b"answer" * 50_000
        assert client.recv(1) == b""
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


def test_stop_without_drain_ends_everything_and_tells_every_handler(make, tmp_path):
    proactor = make()
    results = Results()
    with pair() as (ours, theirs), pair() as (full, unread):
        listener = socket.create_server(("127.0.0.1", 0))
        operations = [
            proactor.aio_read(ours, handler=results),
            proactor.aio_write(full, bytes(10_000_000), results),
            proactor.aio_accept(listener, results),
        ]
        registered = Results()
        proactor.register_handle(theirs, registered)
        receive_exactly(unread, 1)
        proactor.stop(drain=False)
        assert len(results.told) == 3
        assert {completion.error.errno for _, completion in results.told} == {errno.ECANCELED}
        assert registered.closed == [theirs.fileno()] and registered.told == []
        assert all(operation.done for operation in operations)
        listener.close()


def test_a_drain_that_a_peer_holds_up_ends_with_a_second_stop(make):
    class Large(Service):
        def handle_read(self, completion):
            return bytes(20_000_000) if completion.data else None

    proactor = make()
    address = serve(proactor, Large)
    with connect(address) as client:
        client.sendall(b"?")
        receive_exactly(client, 1000)
        with pytest.raises(TimeoutError):
            proactor.stop(timeout=0.2)
        proactor.stop(drain=False)
        assert proactor.stats()["live"] == 0


def test_after_the_end_everything_says_so(make):
    proactor = make()
    with pair() as (ours, _):
        proactor.stop()
        with pytest.raises(RuntimeError, match="has stopped"):
            proactor.aio_read(ours)
        with pytest.raises(RuntimeError, match="has stopped"):
            proactor.register_handle(ours, Results())
        with pytest.raises(RuntimeError, match="only once"):
            proactor.start()


def test_one_that_never_started_ends_what_it_was_given(make):
    kind, strict = type(make()), make().strict
    proactor = kind(workers=1, strict=strict)
    results = Results()
    with pair() as (ours, theirs):
        operation = proactor.aio_read(ours, handler=results)
        registered = Results()
        proactor.register_handle(theirs, registered)
        proactor.stop()
        assert operation.done
        assert results.told[0][1].error.errno == errno.ECANCELED
        assert registered.closed


def test_run_is_the_main_thread(make):
    kind, strict = type(make()), make().strict
    proactor = kind(workers=1, strict=strict)
    address = serve(proactor)
    thread = threading.Thread(target=proactor.run)
    thread.start()
    with connect(address) as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
    proactor.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_handler_cannot_stop_it(make):
    proactor = make()
    refused = []

    class Stops(Service):
        def handle_read(self, completion):
            try:
                proactor.stop()
            except RuntimeError as exc:
                refused.append(str(exc))
            return completion.data

    address = serve(proactor, Stops)
    with connect(address) as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
    assert "it would wait for itself" in refused[0]


# --- What is refused ------------------------------------------------------------------------------


def test_handlers_of_readiness_are_refused(make):
    proactor = make()
    with pair() as (ours, _):
        with pytest.raises(TypeError, match="use a Reactor"):
            proactor.register_handle(ours, EchoHandler(ours))
        with pytest.raises(TypeError, match="a CompletionHandler was expected"):
            proactor.register_handle(ours, print)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="'round_robin', 'least_loaded' or 'connection'"):
        SimulatedProactor(select_worker="any")
    with pytest.raises(ValueError, match="at least one buffer"):
        SimulatedProactor(buffers=0)
    with pytest.raises(ValueError, match="there must be a thread"):
        SimulatedProactor(workers=0)
    with pytest.raises(TypeError, match="a demultiplexer was expected"):
        SimulatedProactor("epoll")


def test_X1_a_proactor_over_a_demultiplexer_is_a_simulated_one():
    with EpollDemultiplexer() as demultiplexer:
        with pytest.raises(TypeError, match=r"use SimulatedProactor\(EpollDemultiplexer\(\)\)"):
            Proactor(demultiplexer)
    with pytest.raises(TypeError, match="asynchronous I/O was expected"):
        Proactor("io_uring")


@pytest.mark.parametrize(
    "demultiplexer",
    [
        EpollDemultiplexer,
        PollDemultiplexer,
        SelectDemultiplexer,
        SignalDemultiplexer,
        pytest.param(UringDemultiplexer, marks=needs_io_uring),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_the_simulation_waits_with_any_demultiplexer(demultiplexer, strict):
    with SimulatedProactor(demultiplexer(), workers=2, strict=strict) as proactor:
        address = serve(proactor)
        clients = [connect(address) for _ in range(5)]
        for _ in range(20):
            for client in clients:
                client.sendall(b"hello")
            for client in clients:
                assert receive_exactly(client, 5) == b"hello"
        for client in clients[:3]:  # the others are still open when it drains
            client.close()
        proactor.stop(timeout=PATIENCE)
        for client in clients[3:]:
            client.close()


def test_a_demultiplexer_of_its_own_is_closed_and_another_is_not():
    own = SimulatedProactor(PollDemultiplexer, workers=1)
    own.start()
    own.stop(timeout=PATIENCE)
    with PollDemultiplexer() as theirs:
        proactor = SimulatedProactor(theirs, workers=1)
        proactor.start()
        proactor.stop(timeout=PATIENCE)
        with SimulatedProactor(theirs, workers=1) as again:
            address = serve(again)
            with connect(address) as client:
                client.sendall(b"hello")
                assert receive_exactly(client, 5) == b"hello"
    assert own._own_demultiplexer._closed()


# --- Without io_uring -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSYS, "the kernel has no io_uring"),
        (errno.EINVAL, "older than 6.1"),
        (errno.ENOMEM, "ulimit -l"),
    ],
)
def test_without_io_uring_the_reason_is_said(monkeypatch, caplog, number, reason):
    real = proactor_module._proactor.ProactorCore

    def refuse(engine, *arguments):
        if engine == "io_uring":
            raise OSError(number, os.strerror(number))
        return real(engine, *arguments)

    monkeypatch.setattr(proactor_module._proactor, "ProactorCore", refuse)
    with pytest.raises(OSError, match=reason) as caught:
        Proactor(workers=1)
    assert "SimulatedProactor has the same interface" in str(caught.value)
    with pytest.raises(OSError, match=reason + ".*; SimulatedProactor has the same operations"):
        AsyncIO()
    proactor = new_proactor(workers=1)
    assert type(proactor) is SimulatedProactor
    assert reason in caplog.text
    proactor.stop()


# --- The pool -------------------------------------------------------------------------------------


def test_a_pool_may_be_shared_and_a_buffer_given_back_elsewhere_goes_on(make):
    pool = BufferPool(64, 4096)
    first, second = make(buffers=pool), make(buffers=pool)
    assert first.pool is second.pool is pool
    taken = []
    while (buffer := pool.try_acquire()) is not None:
        taken.append(buffer)
    with pair() as (ours, theirs):
        operation = first.aio_read(ours, notify="eventfd")  # has its buffer from the beginning
        theirs.sendall(b"waits")
        assert not operation.wait(0.05)
        taken.pop().release()
        assert operation.wait(PATIENCE)
        assert operation.result().data == b"waits"
    for buffer in taken:
        buffer.release()


# --- Asynchronous I/O, in one thread --------------------------------------------------------------


@needs_io_uring
@pytest.mark.parametrize("notify", ["cqe", "eventfd", "signal"])
def test_I10_I11_the_call_returns_and_the_buffer_is_filled_later(notify):
    with AsyncIO() as aio, pair() as (ours, theirs):
        buffer = bytearray(8)
        operation = aio.aio_read(ours, buffer, notify=notify)
        assert aio.wait(0) == 0
        assert not operation.done and buffer == bytes(8)
        theirs.sendall(b"later")
        done = 0
        while not done:
            done = aio.wait(PATIENCE)
        assert operation.done and operation.result().count == 5
        assert buffer == b"later\0\0\0"


@needs_io_uring
def test_I12_asynchronous_io_is_a_proactors_and_no_reactors():
    assert (AsyncIO.synchronous, AsyncIO.notifies, AsyncIO.io_by) == (False, "completion", "kernel")
    with AsyncIO() as aio, pytest.raises(TypeError, match="is a Proactor's"):
        Reactor(aio)
    Proactor(AsyncIO, workers=1).stop()
