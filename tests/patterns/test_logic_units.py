"""Logic units and storage units: threads and processes, behind each queue, with each storage."""

import os
import threading
import time

import pytest

from pyreactor import RequestQueue
from pyreactor.shm import SharedRequestQueue
from pyreactor.units import CacheStorage, FileStorage, LogicUnit, SQLiteStorage

PATIENCE = 30


def who(request):
    time.sleep(0.005)  # so that the others get some
    return os.getpid(), threading.get_native_id()


def double(request):
    return 2 * request


def visit(request, storage):
    with storage.acquire() as session:
        return session.update(request, lambda visits: (visits or 0) + 1)


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_U8_a_logic_unit_is_threads_or_processes(kind):
    with LogicUnit(who, kind=kind, workers=3) as logic:
        seen = set()
        end = time.monotonic() + PATIENCE
        while len(seen) < 3 and time.monotonic() < end:
            seen |= {f.result(PATIENCE) for f in [logic.submit(n) for n in range(12)]}
    pids = {pid for pid, _ in seen}
    if kind == "thread":
        assert pids == {os.getpid()}
        assert len(seen) == 3
    else:
        assert os.getpid() not in pids
        assert len(pids) == len(seen) == 3


@pytest.mark.time_limit(120)
@pytest.mark.parametrize(
    ("kind", "make_queue"),
    [
        ("thread", lambda: RequestQueue(64)),
        ("thread", lambda: SharedRequestQueue(64)),
        ("process", lambda: SharedRequestQueue(64)),
        ("process", lambda: SharedRequestQueue(64, policy="at_least_once")),
    ],
)
def test_U3_the_queue_is_a_constructors_business(kind, make_queue):
    queue = make_queue()
    with LogicUnit(double, queue, kind=kind, workers=2) as logic:
        assert logic.semantics == queue.semantics
        answers = [future.result(PATIENCE) for future in [logic.submit(n) for n in range(100)]]
        assert answers == [2 * n for n in range(100)]


@pytest.mark.time_limit(120)
def test_U5_at_most_so_many_use_the_storage_and_no_update_is_lost():
    using, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(4)

    def use(request, storage):
        nonlocal using, most
        with storage.acquire() as session:
            with lock:
                using += 1
                most = max(most, using)
            if request < together.parties:
                together.wait(PATIENCE)
            for _ in range(100):
                session.update("counter", lambda value: (value or 0) + 1)
            with lock:
                using -= 1

    with (
        CacheStorage(capacity=4) as storage,
        LogicUnit(use, workers=16, storage=storage) as logic,
    ):
        for future in [logic.submit(n) for n in range(1000)]:
            future.result(PATIENCE)
        with storage.acquire() as session:
            assert session.get("counter") == 100_000
    assert most == 4


@pytest.mark.parametrize("storage_type", [SQLiteStorage, FileStorage, CacheStorage])
def test_U10_a_handler_works_with_each_storage(storage_type, tmp_path):
    arguments = () if storage_type is CacheStorage else (tmp_path / "data",)
    with (
        storage_type(*arguments, capacity=2) as storage,
        LogicUnit(visit, workers=4, storage=storage) as logic,
    ):
        visits = [future.result(PATIENCE) for future in [logic.submit("page") for _ in range(50)]]
        assert sorted(visits) == list(range(1, 51))
