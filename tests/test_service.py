"""A service answers alike under every dispatcher, and whatever its clients do."""

import contextlib
import itertools
import random
import socket
import struct
import threading
import time

import pytest
from clients import PATIENCE, Upper, connect, receive, receive_all, wait_until

from pyreactor.framing import Delimiter, Fixed, FramingError, LengthPrefixed, Lines
from pyreactor.models import MODELS
from pyreactor.service import CloseConnection, RequestTimeout, Service
from pyreactor.service_server import Server

VARIANTS = {name: {} for name in MODELS} | {
    "half-sync-half-reactive, simulated": {"mode": "simulated_proactor"},
    "leader-followers, delegating": {"delegate": True},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    """A dispatcher's name and its options, as keyword arguments of Server."""
    return {"dispatcher": request.param.partition(",")[0], **VARIANTS[request.param]}


@pytest.fixture
def reported():
    """What the server reported: pairs of a connection and an exception."""
    return []


@pytest.fixture
def serve(model, reported, open_descriptors):
    """Start servers; each is (server, address)."""
    before, threads = open_descriptors(), set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def serve(service, address=("127.0.0.1", 0), **options):
            server = Server(
                service,
                address,
                on_error=lambda source, exc: reported.append((source, exc)),
                **{"workers": 3, **model, **options},
            )
            stack.callback(server.stop, timeout=PATIENCE)
            server.start()
            return server, server.addresses[0]

        yield serve
    assert set(threading.enumerate()) == threads
    left = {fd: name for fd, name in open_descriptors().items() if before.get(fd) != name}
    assert not any("socket" in name for name in left.values()), left


def exceptions(reported):
    return [exception for _, exception in reported]


# --- Requests and answers -------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True], ids=["fast", "strict"])
@pytest.mark.parametrize("demultiplexer", ["epoll", "poll"])
def test_requests_are_answered(serve, model, reported, strict, demultiplexer):
    options = {} if model["dispatcher"] == "proactor" else {"demultiplexer": demultiplexer}
    server, address = serve(Upper(), strict=strict, **options)
    with connect(address) as one, connect(address) as other:
        for number in range(3):
            one.sendall(b"hello %d\n" % number)
            other.sendall(b"world")
            assert receive(one, 8) == b"HELLO %d\n" % number
        other.sendall(b"\n")
        assert receive(other, 16) == b"WORLDWORLDWORLD\n"
        stats = server.stats()
        assert stats["connections"] == 2
        assert stats["requests"] == 4
        assert stats["bytes_received"] == 3 * 8 + 16
    assert reported == []


def test_a_function_is_enough(serve):
    _, address = serve(Service(lambda request: request[::-1], framing=Fixed(4)))
    with connect(address) as client:
        client.sendall(b"abcdefgh")
        assert receive(client, 8) == b"dcbahgfe"


def test_pipelined_requests_are_answered_in_order(serve):
    _, address = serve(Upper())
    requests = [b"request %d" % number for number in range(2000)]
    with connect(address) as client:
        sender = threading.Thread(target=client.sendall, args=(b"\n".join(requests) + b"\n",))
        sender.start()
        answers = client.makefile("rb")
        assert [answers.readline() for _ in requests] == [
            request.upper() + b"\n" for request in requests
        ]
        sender.join()


def test_an_answer_does_not_wait_for_a_slow_request_behind_it(serve):
    go_on = threading.Event()

    class Slow(Upper):
        def handle(self, request):
            time.sleep(0.001)  # so long that it is not worth to wait for more
            if request == b"slow":
                assert go_on.wait(PATIENCE)
            return super().handle(request)

    _, address = serve(Slow())
    with connect(address) as client:
        client.sendall(b"quick\nslow\n")
        assert receive(client, 6) == b"QUICK\n"
        go_on.set()
        assert receive(client, 5) == b"SLOW\n"


FRAMINGS = [
    (Lines(), [b"", b"a", b"lines", b"x" * 3000]),
    (LengthPrefixed(2), [b"", b"\0\n", b"bytes" * 400]),
    (Fixed(7), [b"1234567", b"abcdefg", b"\0\0\0\0\0\0\0"]),
    (Delimiter(b"\r\n\r\n"), [b"", b"head\r\nfield", b"\n\r\n\n"]),
]


@pytest.mark.parametrize(("framing", "payloads"), FRAMINGS, ids=lambda value: type(value).__name__)
def test_requests_may_be_cut_anywhere(serve, framing, payloads):
    chance = random.Random(5)
    _, address = serve(Service(lambda request: request, framing=framing))
    stream = b"".join(map(framing.encode, payloads)) * 20
    with connect(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size_max in (1, 7, 100, 5000):
            answers = bytearray()
            rest = stream if size_max > 1 else stream[:400]
            expected, sent = len(rest), rest
            while rest:
                size = chance.randint(1, size_max)
                client.sendall(rest[:size])
                rest = rest[size:]
            if size_max == 1:  # the frame that was cut off by us is finished
                client.sendall(stream[400:])
                expected, sent = len(stream), stream
            answers += receive(client, expected)
            assert answers == sent


def test_a_framing_of_ones_own(serve, reported):
    class Framer:
        """Frames are runs of one letter."""

        def __init__(self):
            self.held = b""

        @property
        def pending(self):
            return len(self.held)

        def feed(self, data):
            if b"!" in data:
                raise FramingError("no exclamation marks", frames=[b"last"])
            groups = [bytes(group) for _, group in itertools.groupby(self.held + data)]
            *frames, self.held = groups
            return frames

        def eof(self):
            return [self.held] if self.held else []

    class Framing:
        def framer(self):
            return Framer()

        def encode(self, answer):
            return b"%d" % answer

    server, address = serve(Service(len, framing=Framing()))
    with connect(address) as client:
        client.sendall(b"aaabb")
        assert receive(client, 1) == b"3"
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"2"
    with connect(address) as client:
        client.sendall(b"aa!")
        assert receive_all(client) == b"4"
    (error,) = exceptions(reported)
    assert str(error) == "no exclamation marks"
    assert server.stats()["framing_errors"] == 1


def test_no_answer_to_a_request_that_wants_none(serve):
    _, address = serve(Service(lambda request: request if request != b"quiet" else None))
    with connect(address) as client:
        client.sendall(b"quiet\nloud\n")
        assert receive(client, 5) == b"loud\n"


def test_answers_may_be_encoded_in_another_way(serve):
    class Numbers(Service):
        def handle(self, request):
            return int(request) + 1

        def encode(self, response):
            return b"<%d>" % response

    _, address = serve(Numbers())
    with connect(address) as client:
        client.sendall(b"41\n")
        assert receive(client, 4) == b"<42>"


# --- State and hooks ------------------------------------------------------------------------------


def test_each_connection_has_its_state(serve, reported):
    class Counting(Service):
        def state(self, connection):
            return [connection.peername()]

        def handle(self, request, state):
            state.append(request)
            return b"%d %d" % (len(state) - 1, state[0][1])

    _, address = serve(Counting())
    with connect(address) as one, connect(address) as other:
        for count in (1, 2, 3):
            one.sendall(b"x\n")
            port = one.getsockname()[1]
            assert one.recv(100) == b"%d %d\n" % (count, port)
        other.sendall(b"x\n")
        assert other.recv(100).startswith(b"1 ")
    assert reported == []


def test_hooks_are_called_once_and_the_greeting_comes_first(serve, reported):
    events = []
    lost = threading.Semaphore(0)
    handling = set()

    class Greeting(Upper):
        def connection_made(self, connection):
            handling.add(threading.current_thread().name)
            events.append(("made", connection))
            connection.state = "mine"
            return b"hello"

        def connection_lost(self, connection, exception):
            events.append(("lost", connection, exception, connection.state))
            lost.release()

    _, address = serve(Greeting())
    with connect(address) as client:
        assert receive(client, 6) == b"hello\n"
        client.sendall(b"x\n")
        assert receive(client, 2) == b"X\n"
    assert lost.acquire(timeout=PATIENCE)
    (_, made), (_, left, exception, state) = events
    assert (made, exception, state) == (left, None, "mine")
    assert not any("main" in name or "async" in name for name in handling), "hooks may block"
    assert reported == []


def test_a_state_that_cannot_be_made_ends_that_connection_only(serve, reported):
    class Choosy(Upper):
        made = 0

        def connection_made(self, connection):
            self.made += 1
            if self.made == 1:
                raise RuntimeError("not this one")

        def connection_lost(self, connection, exception):
            reported.append(("lost", exception))

    server, address = serve(Choosy())
    with connect(address) as client:
        assert receive_all(client) == b""
    assert [str(exc) for exc in exceptions(reported)] == ["not this one"]
    with connect(address) as client:
        client.sendall(b"x\n")
        assert receive(client, 2) == b"X\n"
    wait_until(lambda: server.stats()["connections"] == 0)
    wait_until(lambda: len(reported) == 2)
    assert reported[1] == ("lost", None)


# --- The end of a connection ----------------------------------------------------------------------


def test_a_handler_that_raises_ends_its_connection_only(serve, reported):
    class Failing(Upper):
        def handle(self, request):
            if request == b"fail":
                raise RuntimeError("as it should")
            return super().handle(request)

    server, address = serve(Failing())
    with connect(address) as other:
        with connect(address) as client:
            client.sendall(b"one\ntwo\nfail\nnever\n" + b"more\n" * 1000)
            assert receive_all(client) == b"ONE\nTWO\n"
        other.sendall(b"x\n")
        assert receive(other, 2) == b"X\n"
    assert [str(exc) for exc in exceptions(reported)] == ["as it should"]
    assert server.stats()["errors"] == 1


def test_an_answer_that_is_none_is_an_error_of_the_handler(serve, reported):
    _, address = serve(Service(lambda request: 5))
    with connect(address) as client:
        client.sendall(b"x\n")
        assert receive_all(client) == b""
    (error,) = exceptions(reported)
    assert isinstance(error, TypeError)


def test_a_service_may_close_a_connection(serve, reported):
    def handle(request):
        if request == b"quit":
            raise CloseConnection(b"bye")
        return request

    _, address = serve(Service(handle))
    with connect(address) as client:
        client.sendall(b"x\nquit\nnever\n")
        assert receive_all(client) == b"x\nbye\n"
    assert reported == []


def test_a_client_that_has_said_all_gets_all_answers(serve, reported):
    _, address = serve(Upper())
    with connect(address) as client:
        client.sendall(b"one\ntwo\nwithout an end")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"ONE\nTWO\nWITHOUT AN END\n"
    assert reported == []


def test_a_half_closed_client_that_reads_slowly_gets_all_answers(serve, reported):
    answer = b"x" * 50_000
    _, address = serve(Service(lambda request: answer))
    with connect(address) as client:
        client.sendall(b"?\n" * 100)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        assert receive_all(client) == (answer + b"\n") * 100
    assert reported == []


def test_a_request_that_is_cut_off_is_reported(serve, reported):
    _, address = serve(Service(lambda request: request, framing=LengthPrefixed()))
    with connect(address) as client:
        client.sendall(LengthPrefixed().encode(b"whole") + b"\0\0\0\5ha")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"\0\0\0\5whole"
    (error,) = exceptions(reported)
    assert isinstance(error, FramingError)


def test_a_reset_is_nothing_to_report(serve, reported):
    lost = []

    class Watching(Upper):
        def connection_lost(self, connection, exception):
            lost.append(exception)

    server, address = serve(Watching())
    client = connect(address)
    client.sendall(b"x\n")
    receive(client, 2)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    (error,) = wait_until(lambda: lost)
    assert isinstance(error, ConnectionResetError)
    assert reported == []
    assert server.stats()["errors"] == 0


# --- Hostile clients ------------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_reported_and_ends_the_connection(serve, reported):
    server, address = serve(Upper(framing=Lines(max_bytes=10)))
    with connect(address) as client:
        client.sendall(b"short\n" + b"x" * 100_000)
        assert receive_all(client) == b"SHORT\n"
    (error,) = exceptions(reported)
    assert isinstance(error, FramingError)
    assert server.stats()["framing_errors"] == 1


@pytest.mark.parametrize("request_", [b"x" * 101 + b"\n", b"x" * 200_000], ids=["whole", "endless"])
def test_a_service_may_allow_less_than_its_framing(serve, reported, request_):
    _, address = serve(Upper(framing=Lines(max_bytes=1_000_000), max_request_bytes=100))
    with connect(address) as client:
        client.sendall(b"x" * 100 + b"\n")
        assert receive(client, 101) == b"X" * 100 + b"\n"
        with contextlib.suppress(ConnectionError):
            client.sendall(request_)
        assert receive_all(client) == b""
    (error,) = exceptions(reported)
    assert isinstance(error, FramingError) and "100" in str(error)


def test_idle_clients_are_disconnected(serve, reported):
    server, address = serve(Upper(idle_timeout=0.2))
    with connect(address) as quiet, connect(address) as client:
        client.sendall(b"x\n")
        assert receive(client, 2) == b"X\n"
        assert quiet.recv(1) == b""
        assert client.recv(1) == b""
    wait_until(lambda: server.stats()["idle_closed"] == 2)
    assert server.stats()["timeouts"] == 0
    assert reported == []


def test_a_client_that_sends_byte_by_byte_has_the_time_of_one_request(serve, reported):
    server, address = serve(Upper(idle_timeout=60, request_timeout=0.3))
    with connect(address) as slow, connect(address) as other:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slow.settimeout(0.02)
        ended = None
        for _ in range(int(PATIENCE / 0.02)):
            try:
                slow.sendall(b"x")
                ended = slow.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                ended = True
            if ended:
                break
        assert ended
        other.sendall(b"x\n")
        assert receive(other, 2) == b"X\n"
    (error,) = exceptions(reported)
    assert isinstance(error, RequestTimeout)
    assert server.stats()["timeouts"] == 1


def test_the_client_of_a_handler_that_takes_too_long_is_told(serve, reported):
    go_on = threading.Event()

    def handle(request):
        assert go_on.wait(PATIENCE)
        return request

    server, address = serve(Service(handle, request_timeout=0.1), workers=2)
    with connect(address) as client:
        client.sendall(b"x\n")
        assert client.recv(1) == b""  # while handle() still runs
    assert [type(exc) for exc in exceptions(reported)] == [RequestTimeout]
    go_on.set()
    wait_until(lambda: server.stats()["connections"] == 0)


def test_a_client_that_does_not_read_is_not_read(serve, reported):
    answer = b"x" * 60_000
    handled = []

    def handle(request):
        handled.append(request)
        return answer

    _, address = serve(Service(handle))
    with connect(address) as greedy, connect(address) as other:
        greedy.setblocking(False)
        sent = 0
        quiet = time.monotonic() + 0.3
        while time.monotonic() < quiet:
            try:
                sent += greedy.send(b"?\n" * 1000)
                quiet = time.monotonic() + 0.3
            except BlockingIOError:
                time.sleep(0.01)
            assert sent < 100_000_000, "the server reads what it cannot answer"
        # What the kernel holds for it, at most, and a few answers that the server holds.
        assert len(handled) * len(answer) < 20_000_000
        other.sendall(b"?\n")
        receive(other, len(answer) + 1)
        # When it reads in the end, nothing was lost.
        greedy.setblocking(True)
        greedy.shutdown(socket.SHUT_WR)
        for _ in range(50):
            assert receive(greedy, len(answer) + 1) == answer + b"\n"
    assert reported == []


def test_a_client_that_never_reads_is_disconnected(serve, reported):
    server, address = serve(Service(lambda request: b"x" * 60_000, idle_timeout=0.3))
    with connect(address) as client:
        client.sendall(b"?\n" * 300)
        (error,) = wait_until(lambda: exceptions(reported))
        assert isinstance(error, RequestTimeout) and "not read" in str(error)
        wait_until(lambda: server.stats()["connections"] == 0)


def read_slowly(client, seconds, size, pause):
    """Read again and again; returns how much, and the longest time between two reads."""
    received, longest = 0, 0.0
    begin = before = time.monotonic()
    while before < begin + seconds and (data := client.recv(size)):
        received += len(data)
        time.sleep(pause)
        now = time.monotonic()
        before, longest = now, max(longest, now - before)
    return received, longest


def test_a_client_that_reads_slowly_is_not_disconnected(serve, reported):
    # So much that it waits at the server for long; the kernel says that there is room again only
    # when a third of its own is free, which takes longer than idle_timeout.
    answer = b"x" * 8_000_000
    framing = Lines(max_bytes=len(answer))
    _, address = serve(Service(lambda request: answer, framing=framing, idle_timeout=0.5))
    for _ in range(10):
        with socket.socket() as client:
            client.settimeout(PATIENCE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            client.connect(address)
            client.sendall(b"?\n")
            received, longest = read_slowly(client, 1.2, 8 * 1024, 0.01)
            client.shutdown(socket.SHUT_WR)
            received += len(receive_all(client))
            if received == len(answer) + 1:
                assert reported == []
                return
            assert longest > 0.1, f"it was disconnected after {received} bytes, and had always read"
            reported.clear()
    raise AssertionError("this machine is too busy for a client that reads steadily")


def test_a_client_is_not_idle_because_the_server_is_late(serve, reported):
    go_on = threading.Event()

    def handle(request):
        if request == b"block":
            assert go_on.wait(PATIENCE)
        return request

    service = Service(handle, idle_timeout=0.1, request_timeout=None)
    server, address = serve(service, workers=1)
    with connect(address) as slow, connect(address) as other:
        slow.sendall(b"block\n")
        other.sendall(b"x\n")
        time.sleep(0.5)
        assert server.stats()["idle_closed"] == 0
        go_on.set()
        assert receive(slow, 6) == b"block\n"
        assert receive(other, 2) == b"x\n"
    assert reported == []


def test_a_busy_client_does_not_starve_another(serve):
    _, address = serve(Upper(), workers=1)
    ended = threading.Event()

    def flood(client):
        with contextlib.suppress(OSError):
            while not ended.is_set():
                client.sendall(b"x\n" * 10_000)

    def swallow(client):
        with contextlib.suppress(OSError):
            while client.recv(65536):
                pass

    with connect(address) as busy, connect(address) as other:
        threads = [threading.Thread(target=run, args=(busy,)) for run in (flood, swallow)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            other.sendall(b"hello\n")
            assert receive(other, 6) == b"HELLO\n"
        ended.set()
        busy.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def test_many_clients_and_every_kind_of_end(serve, reported):
    chance = random.Random(11)
    server, address = serve(Upper())
    left = []
    for number in range(60):
        client = connect(address)
        match number % 4:
            case 0:
                client.close()
            case 1:
                client.sendall(b"half a request")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            case 2:
                client.sendall(b"unread\n" * chance.randint(1, 1000))
                client.close()
            case 3:
                left.append(client)
    for number, client in enumerate(left):
        client.sendall(b"%d\n" % number)
    for number, client in enumerate(left):
        assert client.recv(10) == b"%d\n" % number
        client.close()
    wait_until(lambda: server.stats()["connections"] == 0)
    assert server.stats()["accepted"] == 60
    assert reported == []


# --- What makes no service ------------------------------------------------------------------------


def test_bad_services_are_refused():
    with pytest.raises(TypeError, match="define handle"):
        Service()
    with pytest.raises(TypeError, match="has no 'farming'"):
        Upper(farming=Lines())
    with pytest.raises(TypeError, match="has no framer"):
        Server(Upper(framing=b"\n"), ("127.0.0.1", 0))
    with pytest.raises(ValueError, match="idle_timeout"):
        Server(Upper(idle_timeout=0), ("127.0.0.1", 0))
    with pytest.raises(TypeError, match=r"try Service\(function\)"):
        Server(len, ("127.0.0.1", 0))
