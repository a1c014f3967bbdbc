"""A server's life: where it listens, how it stops, what it tells, and its limits."""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from clients import PATIENCE, Upper, ask, connect, receive, receive_all, wait_until

import pyreactor
from pyreactor import proactor as proactor_module
from pyreactor.dispatchers import LeaderFollowers
from pyreactor.framing import Fixed, Lines
from pyreactor.models import MODELS
from pyreactor.proactor import Proactor, SimulatedProactor
from pyreactor.service import Service
from pyreactor.service_server import Server

ROOT = pathlib.Path(__file__).resolve().parents[1]
VARIANTS = {name: {} for name in MODELS} | {
    "half-sync-half-reactive, simulated": {"mode": "simulated_proactor"},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    """A dispatcher's name and its options, as keyword arguments of Server."""
    return {"dispatcher": request.param.partition(",")[0], **VARIANTS[request.param]}


@pytest.fixture
def reported():
    """What the servers reported: exceptions."""
    return []


@pytest.fixture
def make(reported):
    """Make servers, which are stopped at the end; `start=False` leaves starting to the test."""
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def make(service, address=("127.0.0.1", 0), start=True, **options):
            server = Server(
                service,
                address,
                on_error=lambda source, exc: reported.append(exc),
                **{"workers": 3, **options},
            )
            stack.callback(server.stop, drain=False, timeout=PATIENCE)
            if start:
                server.start()
            return server

        yield make
    assert set(threading.enumerate()) == threads


class Gate(Service):
    """Answers "wait" when it is let, and everything else at once."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.waiting = threading.Semaphore(0)
        self.opened = threading.Event()

    def handle(self, request):
        if request == b"wait":
            self.waiting.release()
            assert self.opened.wait(PATIENCE)
        return request


# --- Where it listens -----------------------------------------------------------------------------


def test_it_listens_at_unix_sockets(make, tmp_path, model):
    path = tmp_path / "service"
    server = make(Upper(), path, **model)
    assert ask(str(path)) == b"HELLO\n"
    server.stop(timeout=PATIENCE)
    assert not path.exists()


def test_a_unix_socket_that_nobody_listens_at_is_replaced(make, tmp_path):
    path = str(tmp_path / "service")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    make(Upper(), path)
    assert ask(path) == b"HELLO\n"
    with pytest.raises(OSError, match="cannot listen at"):
        make(Upper(), path)
    assert ask(path) == b"HELLO\n"


def test_it_listens_at_names_without_a_file(make):
    name = f"\0pyreactor-test-{os.getpid()}"
    make(Upper(), name)
    assert ask(name) == b"HELLO\n"


def test_it_listens_at_sockets_of_others_and_at_several(make, tmp_path, model):
    theirs = socket.create_server(("127.0.0.1", 0))
    copy = theirs.dup()  # as another process may have it
    with copy:
        server = make(Upper(), [theirs, ("127.0.0.1", 0), str(tmp_path / "s")], **model)
        assert len(server.addresses) == 3
        for address in server.addresses:
            assert ask(address) == b"HELLO\n"
        server.stop(timeout=PATIENCE)
        with connect(copy.getsockname()):  # it is not the server's to shut down
            copy.accept()[0].close()


def test_a_host_has_the_same_port_at_all_its_addresses(make):
    server = make(Upper(), ("localhost", 0))
    assert len({address[1] for address in server.addresses}) == 1
    for address in server.addresses:
        assert ask(address) == b"HELLO\n"


def test_loops_that_listen_for_themselves(make):
    server = make(
        Upper(), dispatcher="efficient-half-sync-half-async", workers=2, handoff="reuseport"
    )
    assert {ask(server.addresses[0]) for _ in range(10)} == {b"HELLO\n"}
    server.stop(timeout=PATIENCE)
    with pytest.raises(ConnectionRefusedError):
        connect(server.addresses[0])


def test_bad_addresses_are_refused(make):
    for address in ("/nowhere/at/all", ("127.0.0.1", 0, 0), 8000, ("127.0.0.1", "http")):
        with pytest.raises((TypeError, OSError)):
            make(Upper(), address)
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1, port {port}"):
            make(Upper(), ("127.0.0.1", port))


def test_bad_arguments_are_refused():
    address = ("127.0.0.1", 0)
    for arguments, error, match in [
        ({"dispatcher": "rector"}, ValueError, "there are reactor, half"),
        ({"dispatcher": 5}, TypeError, "model's name"),
        ({"queue": "mutex"}, TypeError, "has no request queue"),
        ({"dispatcher": "reactor", "queue": "fast"}, ValueError, "the queue is"),
        ({"demultiplexer": "kqueue"}, ValueError, "there are epoll"),
        ({"workers": 0}, ValueError, "there must be a thread"),
        ({"max_connections": 0}, ValueError, "max_connections"),
        ({"color": "red"}, TypeError, "color"),
        ({"proactor": "posix"}, ValueError, "kernel, simulated, auto"),
        ({"proactor": "auto", "dispatcher": "reactor"}, TypeError, "dispatcher 'proactor'"),
        ({"proactor": "auto", "queue": "mutex"}, TypeError, "has no request queue"),
        ({"proactor": "kernel", "demultiplexer": "epoll"}, TypeError, '"simulated-proactor"'),
    ]:
        with pytest.raises(error, match=match):
            Server(Upper(), address, **arguments)
    for arguments in ({"workers": 2}, {"proactor": "auto"}):
        with pytest.raises(TypeError, match="made already|is for the dispatcher"):
            Server(Upper(), address, LeaderFollowers(threads=1), **arguments)


def test_more_workers_than_pay_are_warned_of(model):
    with pytest.warns(RuntimeWarning, match="threads on"):
        workers = 64 * len(os.sched_getaffinity(0)) + 1
        Server(Upper(), ("127.0.0.1", 0), workers=workers, **model).stop()


def test_a_proactor_of_each_kind(make):
    for kind, types in [
        ("kernel", (Proactor,)),
        ("simulated", (SimulatedProactor,)),
        ("auto", (Proactor, SimulatedProactor)),
    ]:
        for dispatcher in (None, "proactor"):
            server = make(Upper(), dispatcher=dispatcher, proactor=kind)
            assert isinstance(server.dispatcher, types)
            assert ask(server.addresses[0]) == b"HELLO\n"
            server.stop(timeout=PATIENCE)


def test_without_io_uring_a_proactor_is_simulated_where_that_may_be(make, monkeypatch, caplog):
    real = proactor_module._proactor.ProactorCore

    def refuse(engine, *arguments):
        if engine == "io_uring":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return real(engine, *arguments)

    monkeypatch.setattr(proactor_module._proactor, "ProactorCore", refuse)
    for arguments in ({"dispatcher": "proactor"}, {"proactor": "kernel"}):
        with pytest.raises(OSError, match=r"no io_uring .*; SimulatedProactor has the same"):
            Server(Upper(), ("127.0.0.1", 0), **arguments)
    assert caplog.text == ""
    server = make(Upper(), proactor="auto")
    assert type(server.dispatcher) is SimulatedProactor
    assert "the kernel has no io_uring" in caplog.text
    assert ask(server.addresses[0]) == b"HELLO\n"


def test_a_dispatcher_may_be_made_before(reported):
    dispatcher = LeaderFollowers(threads=2)
    with Server(Upper(), ("127.0.0.1", 0), dispatcher) as server:
        assert ask(server.addresses[0]) == b"HELLO\n"


# --- Stopping -------------------------------------------------------------------------------------


def test_stop_answers_what_was_sent_before_it(make, model, reported):
    service = Gate()
    server = make(service, **model)
    (address,) = server.addresses
    idle, slow, half, pipelining = clients = [connect(address) for _ in range(4)]
    idle.sendall(b"x\n")
    assert idle.recv(2) == b"x\n"
    half.sendall(b"half a requ")
    slow.sendall(b"wait\n")
    assert service.waiting.acquire(timeout=PATIENCE)
    pipelining.sendall(b"one\n" * 1000)
    slow.sendall(b"after it\n")
    stopping = threading.Thread(target=server.stop, kwargs={"timeout": PATIENCE})
    stopping.start()
    if model["dispatcher"] != "efficient-half-sync-half-async":  # loops wait for their handler
        assert receive_all(idle) == b""
        assert receive_all(half) == b""
        assert receive_all(pipelining) == b"one\n" * 1000
    assert stopping.is_alive()
    service.opened.set()
    assert receive_all(slow) == b"wait\nafter it\n"
    for client in clients:
        receive_all(client)
        client.close()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    assert server.stats()["connections"] == 0
    assert reported == []


def test_stop_answers_what_is_more_than_one_read(make, model, reported):
    service = Gate(framing=Fixed(4))
    server = make(service, **model)
    with connect(server.addresses[0]) as client:
        client.sendall(b"xxxx")
        assert receive(client, 4) == b"xxxx"
        client.sendall(b"more" * 10_000)  # the buffers of a proactor have 16 KiB
        stopping = threading.Thread(target=server.stop, kwargs={"timeout": PATIENCE})
        stopping.start()
        assert receive_all(client) == b"more" * 10_000
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
    assert reported == []


def test_stop_without_draining_ends_after_the_request_in_hand(make, model, reported):
    service = Gate()
    server = make(service, **model)
    with connect(server.addresses[0]) as client, connect(server.addresses[0]) as idle:
        client.sendall(b"wait\nnever\n")
        assert service.waiting.acquire(timeout=PATIENCE)
        stopping = threading.Thread(target=server.stop, kwargs={"drain": False})
        stopping.start()
        wait_until(lambda: server._connections.stopping)
        service.opened.set()
        # What is written by another thread than the handling one may be lost with it.
        assert receive_all(client) in (b"wait\n", b"")
        assert receive_all(idle) == b""
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
    assert reported == []


def test_stop_gives_up_on_clients_that_do_not_read(make, model):
    server = make(Service(lambda request: b"x" * 60_000), **model)
    with connect(server.addresses[0]) as client:
        client.sendall(b"?\n" * 3000)
        wait_until(lambda: server.stats()["requests"] >= 10)
        before = time.monotonic()
        server.stop(timeout=0.3)
        assert time.monotonic() - before < PATIENCE
    assert server.stats()["connections"] == 0


def test_stop_says_so_when_a_handler_still_runs(make, model):
    service = Gate()
    server = make(service, **model)
    with connect(server.addresses[0]) as client:
        client.sendall(b"wait\n")
        assert service.waiting.acquire(timeout=PATIENCE)
        with pytest.raises(TimeoutError):
            server.stop(timeout=0.05)
        service.opened.set()
        server.stop(timeout=PATIENCE)
        assert receive_all(client) in (b"wait\n", b"")
    server.stop()  # nothing is left to be done


def test_clients_that_go_on_asking_do_not_keep_it_from_stopping(make, model):
    server = make(Upper(), **model)
    ended = threading.Semaphore(0)

    def ask_for_ever():
        with contextlib.suppress(OSError), connect(server.addresses[0]) as client:
            while True:
                client.sendall(b"x\n" * 10)
                if not client.recv(1000):
                    break
        ended.release()

    clients = [threading.Thread(target=ask_for_ever) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: server.stats()["requests"] > 100)
    server.stop(timeout=PATIENCE)
    for client in clients:
        client.join(PATIENCE)
        assert not client.is_alive()


def test_a_handler_cannot_wait_for_the_end_but_ask_for_it(make):
    answers = []

    def handle(request):
        try:
            server.stop()
        except RuntimeError as exc:
            answers.append(str(exc))
        server.ask_to_stop()
        return request

    server = make(Service(handle), start=False)
    server.start()
    running = threading.Thread(target=server.run)
    running.start()
    assert ask(server.addresses[0]) == b"hello\n"
    running.join(PATIENCE)
    assert not running.is_alive()
    assert "ask_to_stop" in answers[0]


def test_a_server_is_started_once(make):
    server = make(Upper())
    with pytest.raises(RuntimeError, match="only once"):
        server.start()
    server.stop()
    with pytest.raises(RuntimeError, match="only once"):
        server.start()
    never_started = make(Upper(), start=False)
    never_started.stop()
    with pytest.raises(RuntimeError, match="only once"):
        never_started.start()


PROGRAM = """
import sys, time
import pyreactor

def handle(request):
    if request == b"slow":
        print("handling", flush=True)
        time.sleep(float(sys.argv[2]))
    return request

server = pyreactor.Server(pyreactor.Service(handle), ("127.0.0.1", 0), sys.argv[1], workers=2)
server.run(ready=lambda server: print(server.addresses[0][1], flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_a_signal_and_answers_what_was_sent(number):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "leader-followers", "0.3"],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    ) as process:
        address = ("127.0.0.1", int(process.stdout.readline()))
        with connect(address) as client, connect(address):
            client.sendall(b"slow\nnext\n")
            assert process.stdout.readline() == "handling\n"
            process.send_signal(number)
            assert receive_all(client) == b"slow\nnext\n"
        assert process.communicate(timeout=PATIENCE)[0] == "ended\n"
    assert process.returncode == 0


def test_a_second_signal_cuts_the_draining_short():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "reactor", "1"],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    ) as process:
        address = ("127.0.0.1", int(process.stdout.readline()))
        with connect(address) as client:
            client.sendall(b"slow\n" * 100)  # a hundred seconds
            assert process.stdout.readline() == "handling\n"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionRefusedError):
                for _ in range(int(PATIENCE / 0.01)):
                    with contextlib.suppress(ConnectionResetError):  # closed while in its backlog
                        connect(address).close()
                    time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
    assert process.returncode == 0


# --- Limits ---------------------------------------------------------------------------------------


def test_no_more_connections_than_allowed(make, model):
    server = make(Upper(), max_connections=2, **model)
    (address,) = server.addresses
    first = [connect(address) for _ in range(2)]
    for client in first:
        client.sendall(b"x\n")
        assert client.recv(2) == b"X\n"
    with connect(address) as third:  # in the backlog
        third.sendall(b"third\n")
        third.settimeout(0.1)
        with pytest.raises(TimeoutError):
            third.recv(6)
        assert server.stats()["connections"] == 2
        first[0].close()
        third.settimeout(PATIENCE)
        assert third.recv(6) == b"THIRD\n"
    first[1].close()


def test_without_a_descriptor_left_it_waits_for_one(make, model, caplog):
    server = make(Upper(), **model)
    (address,) = server.addresses
    clients = [connect(address) for _ in range(2)]
    for client in clients:
        client.sendall(b"x\n")
        assert client.recv(2) == b"X\n"
    late = socket.socket()
    late.settimeout(PATIENCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with late:
        used = max(map(int, os.listdir("/proc/self/fd")))
        spare = [os.open("/dev/null", os.O_RDONLY)]
        while spare[-1] < used:  # no gap is left below it
            spare.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1], hard))
        try:
            late.connect(address)
            late.sendall(b"late\n")
            wait_until(lambda: "cannot accept" in caplog.text)
            waits = server.dispatcher.stats()["waits"]
            time.sleep(0.5)
            assert server.dispatcher.stats()["waits"] - waits < 50  # no busy loop
            clients[0].sendall(b"y\n")
            assert clients[0].recv(2) == b"Y\n"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in spare:
                os.close(fd)
        assert late.recv(5) == b"LATE\n"
    assert caplog.text.count("cannot accept") == 1
    for client in clients:
        client.close()


def test_connections_cost_no_thread(make, model):
    server = make(Service(lambda request: request, framing=Fixed(4)), **model)
    (address,) = server.addresses
    before = server.threads()
    clients = [connect(address) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(struct.pack("I", number))
    for number, client in enumerate(clients):
        assert struct.unpack("I", client.recv(4)) == (number,)
    assert server.stats()["connections"] == 200
    assert server.threads() == before
    for client in clients:
        client.close()
    wait_until(lambda: server.stats()["connections"] == 0)


def test_blocking_handlers_overlap(make, model):
    together = threading.Barrier(3)

    def handle(request):
        together.wait(PATIENCE)
        return request

    server = make(Service(handle), **model)
    clients = [connect(server.addresses[0]) for _ in range(3)]
    if model["dispatcher"] == "efficient-half-sync-half-async":
        assert sorted(server.dispatcher.connections()) is not None  # one for each loop, in turn
    for client in clients:
        client.sendall(b"x\n")
    for client in clients:
        assert client.recv(2) == b"x\n"
        client.close()


# --- What it tells --------------------------------------------------------------------------------


def test_stats(make, model):
    server = make(Upper(framing=Lines(max_bytes=10)), **model)
    assert ask(server.addresses[0]) == b"HELLO\n"
    assert ask(server.addresses[0], b"x" * 20) == b""
    wait_until(lambda: server.stats()["connections"] == server.stats()["lingering"] == 0)
    stats = server.stats()
    assert stats["accepted"] == 2
    assert stats["requests"] == 1
    assert stats["bytes_received"] == 26
    assert stats["bytes_sent"] == 6
    assert stats["framing_errors"] == 1
    assert {"queue_depth", "voluntary", "nonvoluntary", "waits"} <= set(stats)
    assert any("keeper" in name for name in server.threads().values())
    server.stop()
    assert server.stats()["requests"] == 1
    assert server.threads() == {}


def test_a_broken_error_hook_is_logged(caplog):
    def fail(source, exception):
        raise RuntimeError("the hook is broken")

    with Server(Service(lambda request: 1 / 0), ("127.0.0.1", 0), on_error=fail) as server:
        assert ask(server.addresses[0]) == b""
    assert "the hook is broken" in caplog.text


def test_errors_are_logged_by_default(caplog):
    with Server(Service(lambda request: 1 / 0), ("127.0.0.1", 0)) as server:
        assert ask(server.addresses[0]) == b""
    with Server(Upper(framing=Lines(max_bytes=1)), ("127.0.0.1", 0)) as server:
        assert ask(server.addresses[0]) == b""
    assert "ZeroDivisionError" in caplog.text
    assert "longer than" in caplog.text
    assert caplog.text.count("Traceback") == 1


def test_the_package_has_them():
    assert pyreactor.Server is Server
    assert pyreactor.Service is Service
