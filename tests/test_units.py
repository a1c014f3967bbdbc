"""Logic units and storage units: the same handler in every place, with every storage."""

import os
import pickle
import signal
import threading
import time

import pytest

from pyreactor import QueueClosed, RequestQueue
from pyreactor.pools import PoolClosed, WorkerDied
from pyreactor.shm import SharedRequestQueue
from pyreactor.units import CacheStorage, FileStorage, LogicUnit, SQLiteStorage, StorageUnit

PATIENCE = 30  # seconds: a process has to start


# Handlers; worker processes import this module.


def upper(request):
    return request.upper()


def fail(request):
    raise LookupError(request)


def answer_with_a_lock(request):
    return threading.Lock()


def count(request, storage):
    with storage.acquire() as session:
        return session.update(request, lambda value: (value or 0) + 1)


def die_once(path):
    """Dies at the first delivery of a request, and answers at the second."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def die_of_a_path(path):
    if not path:
        return "alive"
    with open(path, "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=["thread", "process"])
def kind(request):
    """Each kind of logic unit."""
    return request.param


@pytest.fixture(params=["sqlite", "file", "cache"])
def storage(request, tmp_path):
    """Each storage, with room for four."""
    storage = {
        "sqlite": lambda: SQLiteStorage(tmp_path / "data.db", capacity=4),
        "file": lambda: FileStorage(tmp_path / "data", capacity=4),
        "cache": lambda: CacheStorage(100, capacity=4),
    }[request.param]()
    with storage:
        yield storage


@pytest.mark.time_limit(120)
def test_a_logic_unit_answers(kind):
    with LogicUnit(upper, kind=kind, workers=2) as logic:
        assert logic.workers == 2
        assert logic.call("request", PATIENCE) == "REQUEST"
        futures = [logic.submit(f"r{n}") for n in range(200)]
        assert [future.result(PATIENCE) for future in futures] == [f"R{n}" for n in range(200)]
        logic.put("nobody waits")
    with pytest.raises(QueueClosed):
        logic.call("late")
    logic.stop()


@pytest.mark.time_limit(120)
def test_what_a_handler_raises_is_the_answer(kind, caplog):
    with LogicUnit(fail, kind=kind, workers=1) as logic:
        for text in ("one", "two"):
            with pytest.raises(LookupError, match=text):
                logic.call(text, PATIENCE)


@pytest.mark.time_limit(120)
def test_an_answer_that_cannot_be_sent_is_told():
    with (
        LogicUnit(answer_with_a_lock, kind="process", workers=1) as logic,
        pytest.raises(RuntimeError, match="cannot be sent"),
    ):
        logic.call("request", PATIENCE)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="kind"):
        LogicUnit(upper, kind="coroutine")
    with pytest.raises(TypeError, match="handler"):
        LogicUnit("upper")
    with pytest.raises(TypeError, match="SharedRequestQueue"):
        LogicUnit(upper, RequestQueue(4), kind="process")
    with CacheStorage() as cache, pytest.raises(TypeError, match="SQLiteStorage"):
        pickle.dumps(cache)


@pytest.mark.time_limit(120)
def test_a_request_whose_worker_dies_is_delivered_again(tmp_path):
    with LogicUnit(die_once, kind="process", workers=2) as logic:
        assert logic.semantics == "at_least_once"
        assert logic.call(str(tmp_path / "died"), PATIENCE) > 0
        assert logic.call(str(tmp_path / "died"), PATIENCE) > 0


@pytest.mark.time_limit(120)
def test_a_request_that_its_workers_die_of_is_given_up(tmp_path):
    path = tmp_path / "deliveries"
    with LogicUnit(die_of_a_path, kind="process", workers=2, max_deliveries=2) as logic:
        deadly = logic.submit(str(path))
        with pytest.raises(WorkerDied, match="given up"):
            deadly.result(PATIENCE)
        assert path.read_text() == "xx"
        assert logic.call("", PATIENCE) == "alive"
    with pytest.raises(ValueError, match="at least once"):
        LogicUnit(upper, max_deliveries=0)


@pytest.mark.time_limit(120)
def test_at_most_once_it_is_not(tmp_path):
    queue = SharedRequestQueue(16, policy="at_most_once")
    with LogicUnit(die_once, queue, kind="process", workers=1) as logic:
        assert logic.semantics == "at_most_once"
        lost = logic.submit(str(tmp_path / "died"))
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "died").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert logic.call(str(tmp_path / "died"), PATIENCE) > 0
        assert not lost.done()
    with pytest.raises(QueueClosed, match="before it answered"):
        lost.result(PATIENCE)


# Storage


def test_a_session_keeps_what_it_is_given(storage):
    with storage.acquire() as session:
        assert session.get("a") is None
        assert session.get("a", "nothing") == "nothing"
        session.set("a", {"b": [1, None, "ü"]})
        session.set("a/../b", 2)
        assert session.get("a") == {"b": [1, None, "ü"]}
        assert session.update("n", lambda n: (n or 0) + 1) == 1
        assert session.update("n", lambda n: n + 1) == 2
        assert session.delete("a") is True
        assert session.delete("a") is False
    with storage.acquire() as session:
        assert (session.get("a"), session.get("a/../b"), session.get("n")) == (None, 2, 2)


def test_a_change_that_raises_changes_nothing(storage):
    with storage.acquire() as session:
        session.set("n", 1)
        with pytest.raises(ZeroDivisionError):
            session.update("n", lambda n: n / 0)
        assert session.get("n") == 1
        assert session.update("n", lambda n: n + 1) == 2


def test_at_most_so_many_use_a_storage_unit():
    with StorageUnit(object, capacity=2, close=lambda session: None) as storage:
        assert storage.stats()["idle"] == 2
        with storage.acquire(), storage.acquire():
            with pytest.raises(TimeoutError), storage.acquire(timeout=0.01):
                pass
        with storage.acquire(timeout=0.01):
            pass
    with pytest.raises(PoolClosed), storage.acquire():
        pass


def test_a_cache_forgets_what_was_not_used():
    with CacheStorage(2) as storage, storage.acquire() as session:
        session.set("a", 1)
        session.set("b", 2)
        assert session.get("a") == 1
        session.set("c", 3)
        assert [session.get(key) for key in "abc"] == [1, None, 3]
    with pytest.raises(ValueError):
        CacheStorage(0)


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("storage_type", [SQLiteStorage, FileStorage])
def test_processes_share_a_storage(storage_type, tmp_path):
    with (
        storage_type(tmp_path / "data", capacity=2) as storage,
        LogicUnit(count, kind="process", workers=3, storage=storage) as logic,
    ):
        futures = [logic.submit("hits") for _ in range(60)]
        assert sorted(future.result(PATIENCE) for future in futures) == list(range(1, 61))
        assert logic.call("hits", PATIENCE) == 61
