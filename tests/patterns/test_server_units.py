"""A server composed of its units: input and output, request queue, logic unit, storage unit."""

import os
import selectors
import signal
import socket
import threading
import time

import pytest

from pyreactor.demultiplexers import UringDemultiplexer
from pyreactor.models import MODELS
from pyreactor.request_queue import RequestQueue
from pyreactor.service import CloseConnection, Service
from pyreactor.service_server import Server
from pyreactor.shm import SharedRequestQueue
from pyreactor.units import CacheStorage, FileStorage, LogicUnit, SQLiteStorage

PATIENCE = 30
ADDRESS = ("127.0.0.1", 0)
CLIENTS = 1000
MESSAGES = 10


# Handlers; worker processes import this module.


def who(request):
    if request == b"bye":
        raise CloseConnection(b"bye")
    if request == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    return b"%d %d" % (os.getpid(), threading.get_native_id())


def visit(request, storage):
    with storage.acquire() as session:
        return b"%d" % session.update(request.decode(), lambda visits: (visits or 0) + 1)


def ask(address, *requests):
    """Send lines over one connection, and return the line that answers each."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        lines = client.makefile("rb")
        answers = []
        for request in requests:
            client.sendall(request + b"\n")
            answers.append(lines.readline().rstrip(b"\n"))
        return answers


class Crowd:
    """Clients that are all connected before the first of them asks."""

    def __init__(self, address, count):
        self.selector = selectors.DefaultSelector()
        self.asked = {}
        self.received = {}
        for number in range(count):
            client = socket.create_connection(address, timeout=PATIENCE)
            self.asked[client], self.received[client] = 0, b""
            self.selector.register(client, selectors.EVENT_READ, number)

    def say(self, client, number):
        client.sendall(b"%d from %d\n" % (self.asked[client], number))
        self.asked[client] += 1

    def talk(self, messages):
        """Each says the next thing when it has the answer; returns what each has received."""
        for key in self.selector.get_map().values():
            self.say(key.fileobj, key.data)
        left = len(self.asked)
        while left:
            ready = self.selector.select(PATIENCE)
            assert ready, f"{left} clients are not answered"
            for key, _ in ready:
                client = key.fileobj
                data = client.recv(4096)
                assert data
                self.received[client] += data
                if self.received[client].count(b"\n") < self.asked[client]:
                    continue
                if self.asked[client] < messages:
                    self.say(client, key.data)
                else:
                    left -= 1
        return {
            key.data: self.received[key.fileobj].decode().splitlines()
            for key in self.selector.get_map().values()
        }

    def close(self):
        for client in self.asked:
            client.close()
        self.selector.close()


@pytest.mark.time_limit(120)
def test_M1_a_server_and_a_thousand_clients():
    with Server(Service(lambda request: request), ADDRESS, "reactor", workers=4) as server:
        crowd = Crowd(server.addresses[0], CLIENTS)
        try:
            received = crowd.talk(MESSAGES)
            # Every connection is one between the server and a client.
            assert server.stats()["connections"] == server.stats()["accepted"] == CLIENTS
            peers = {client.getpeername() for client in crowd.asked}
            assert peers == {server.addresses[0]}
        finally:
            crowd.close()
        assert server.stats()["requests"] == CLIENTS * MESSAGES
    assert received == {
        number: [f"{message} from {number}" for message in range(MESSAGES)]
        for number in range(CLIENTS)
    }


def composed(kind, folder, **io_unit):
    """The same request queue, logic unit and storage unit behind any I/O unit."""
    queue = RequestQueue(64) if kind == "thread" else SharedRequestQueue(64)
    storage = SQLiteStorage(folder / "visits.db", capacity=2)
    server = Server(Service(visit), ADDRESS, logic=kind, queue=queue, storage=storage, **io_unit)
    return server, storage


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("demultiplexer", ["epoll", "io_uring", "poll"])
def test_U1_the_io_unit_is_swapped_and_nothing_else(kind, demultiplexer, tmp_path):
    if demultiplexer == "io_uring":
        try:
            UringDemultiplexer().close()
        except OSError as exc:
            pytest.skip(f"no io_uring here: {exc}")
    server, storage = composed(kind, tmp_path, demultiplexer=demultiplexer, workers=2)
    with storage, server:
        assert ask(server.addresses[0], b"a", b"a", b"b") == [b"1", b"2", b"1"]
        assert ask(server.addresses[0], b"a") == [b"3"]


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("dispatcher", MODELS)
def test_U1_under_every_dispatcher(dispatcher, tmp_path):
    server, storage = composed("thread", tmp_path, dispatcher=dispatcher, workers=2)
    with storage, server:
        assert ask(server.addresses[0], b"a", b"a") == [b"1", b"2"]


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_U8_a_servers_logic_unit_is_threads_or_processes(kind):
    with Server(Service(who), ADDRESS, logic=kind) as server:
        before = set(server.threads())
        pid, tid = map(int, ask(server.addresses[0], b"who")[0].split())
        assert (pid == os.getpid()) == (kind == "thread")
        assert tid not in before  # the I/O unit's own threads handle nothing
        assert ask(server.addresses[0], b"bye", b"late")[0] == b"bye"


@pytest.mark.time_limit(120)
def test_U8_a_request_that_dies_with_its_process_costs_no_more_than_its_connection():
    reported = []
    service = Service(who, request_timeout=1)
    queue = SharedRequestQueue(64)  # at most once
    with Server(
        service,
        ADDRESS,
        "reactor",
        logic="process",
        queue=queue,
        workers=1,
        on_error=lambda source, exception: reported.append(exception),
    ) as server:
        with socket.create_connection(server.addresses[0], timeout=PATIENCE) as client:
            client.sendall(b"die\n")
            assert client.recv(1) == b""
        # The only thread waits no more, and a process takes the place of the dead one, in a while.
        end = time.monotonic() + PATIENCE
        while not (answer := ask(server.addresses[0], b"who")[0]):
            assert time.monotonic() < end
        assert int(answer.split()[0]) != os.getpid()
    assert reported and all(isinstance(exception, TimeoutError) for exception in reported)


@pytest.mark.parametrize("storage_type", [SQLiteStorage, FileStorage, CacheStorage])
def test_U10_the_storage_unit_is_swapped_and_nothing_else(storage_type, tmp_path):
    arguments = () if storage_type is CacheStorage else (tmp_path / "data",)
    with (
        storage_type(*arguments) as storage,
        Server(Service(visit), ADDRESS, storage=storage) as server,
    ):
        assert ask(server.addresses[0], b"a", b"a", b"b") == [b"1", b"2", b"1"]


@pytest.mark.time_limit(120)
def test_U3_a_logic_unit_of_the_callers_stays_the_callers():
    with LogicUnit(who, kind="thread", workers=1) as logic:
        with Server(Service(who), ADDRESS, logic=logic) as server:
            (answer,) = ask(server.addresses[0], b"who")
        assert logic.call(b"who", PATIENCE) == answer  # after the server's end, too


def test_units_that_do_not_fit_are_refused():
    service = Service(who)
    with LogicUnit(who, workers=1) as unit, CacheStorage() as storage:
        for arguments, match in [
            ({"logic": "coroutine"}, "'thread', 'process' or a LogicUnit"),
            ({"logic": "thread", "queue": "mutex"}, "the one before the logic unit"),
            ({"logic": "process", "queue": RequestQueue(4)}, "SharedRequestQueue"),
            ({"logic": unit, "storage": storage}, "give them to it"),
            ({"logic": unit, "queue": RequestQueue(4)}, "give them to it"),
        ]:
            with pytest.raises(TypeError, match=match):
                Server(service, ADDRESS, **arguments)
        stateful = Service(visit, state=lambda connection: 0)
        with pytest.raises(TypeError, match="without `state`"):
            Server(stateful, ADDRESS, logic="thread")
        failing = Server(Service(visit), ADDRESS, logic="process", storage=storage)
        with pytest.raises(TypeError, match="SQLiteStorage"):
            failing.start()
        failing.stop()
