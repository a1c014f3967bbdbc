"""ProcessPool: calls in other processes, and what happens when these die."""

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import waiting

from pyreactor.pools import BrokenProcessPool, ProcessPool, WorkerDied
from pyreactor.shm import SharedRequestQueue

PATIENCE = 30  # seconds: a process has to start
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)


# What the workers do; a fork server's children import this module.


def add(a, b=0):
    return a + b


def fail(text):
    raise LookupError(text)


def die_by(number):
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE)


def leave():
    os._exit(3)


def die_once(path):
    """Dies where nobody has before; the file says so."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.getpid()
    die_by(signal.SIGKILL)


def sleep_and_tell(seconds):
    time.sleep(seconds)
    return os.getpid()


def return_what_cannot_be_pickled():
    return threading.Lock()


class CannotBeLoaded:
    def __reduce__(self):
        return fail, ("unpickling",)


class RaisesOddly(Exception):
    def __init__(self, one, two):
        super().__init__("odd")


def raise_oddly():
    raise RaisesOddly(1, 2)


number = 0


def set_number(value):
    global number
    number = value


def get_number():
    return number


def fail_to_start():
    raise RuntimeError("no start")


def fail_to_start_and_tell(path):
    def tell():
        time.sleep(0.1)
        with path.open("a") as file:
            file.write("ended\n")

    multiprocessing.util.Finalize(None, tell, exitpriority=0)
    fail_to_start()


@pytest.fixture(scope="module")
def pool():
    """A pool of two processes, which the tests that kill none share."""
    with ProcessPool(2) as pool:
        yield pool


def test_a_call_is_made_in_another_process(pool):
    assert pool.submit(add, 2, b=3).result(PATIENCE) == 5
    pids = {pool.submit(sleep_and_tell, 0.02).result(PATIENCE) for _ in range(4)}
    assert os.getpid() not in pids
    assert pids <= set(pool.pids())
    assert len(pool.pids()) == 2


def test_what_a_call_raises_comes_with_its_traceback(pool):
    future = pool.submit(fail, "it")
    with pytest.raises(LookupError, match="it") as caught:
        future.result(PATIENCE)
    assert "def fail" not in str(caught.value)
    assert "raise LookupError(text)" in str(caught.value.__cause__)


@pytest.mark.parametrize("size", [0, 200, 5000, 1 << 20])
def test_arguments_and_results_of_every_size(pool, size):
    data = os.urandom(size)
    assert pool.submit(add, data, data).result(PATIENCE) == data + data


def test_many_calls_at_once(pool):
    futures = [pool.submit(add, n, n) for n in range(500)]
    done = concurrent.futures.as_completed(futures, PATIENCE)
    assert sorted(future.result() for future in done) == [2 * n for n in range(500)]
    assert list(pool.map(add, range(100), range(100), chunksize=7)) == [2 * n for n in range(100)]
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(add, [1], chunksize=0)


def test_what_cannot_travel_fails_its_own_call_only(pool):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pool.submit(add, lambda: None).result(PATIENCE)
    with pytest.raises(TypeError, match="pickle"):
        pool.submit(return_what_cannot_be_pickled).result(PATIENCE)
    with pytest.raises(LookupError, match="unpickling"):
        pool.submit(add, CannotBeLoaded()).result(PATIENCE)
    with pytest.raises(RuntimeError, match="RaisesOddly"):
        pool.submit(raise_oddly).result(PATIENCE)
    assert pool.submit(add, 1).result(PATIENCE) == 1


def test_what_can_never_fit_fails_its_own_call_only():
    with ProcessPool(1, bulk_bytes=1 << 16) as pool:
        with pytest.raises(ValueError, match="bulk_bytes"):
            pool.submit(add, bytes(1 << 17)).result(PATIENCE)
        with pytest.raises(ValueError, match="bulk_bytes"):
            pool.submit(bytes, 1 << 17).result(PATIENCE)
        # More than fits at once waits its turn.
        calls = [pool.submit(add, bytes(40_000), b"x") for _ in range(10)]
        assert all(len(call.result(PATIENCE)) == 40_001 for call in calls)


def test_its_queue_is_a_shared_request_queue(pool):
    assert isinstance(pool.queue, SharedRequestQueue)
    assert pool.queue.semantics == "at_least_once"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": 5000}, ValueError),
        ({"initializer": "init"}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": "one"}, TypeError),
        ({"retries": -1}, ValueError),
        (
            {"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("fork")},
            ValueError,
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        ProcessPool(**options)


# Deaths


@pytest.mark.time_limit(120)
def test_a_killed_worker_fails_its_call_and_is_replaced():
    with ProcessPool(2) as pool:
        before = set(pool.pids())
        other = pool.submit(sleep_and_tell, 0.5)
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            pool.submit(die_by, signal.SIGKILL).result(PATIENCE)
        assert issubclass(WorkerDied, BrokenProcessPool)
        assert other.result(PATIENCE) in before
        with pytest.raises(WorkerDied, match="ended with status 3"):
            pool.submit(leave).result(PATIENCE)
        assert pool.submit(add, 1, 2).result(PATIENCE) == 3
        wait_until(lambda: len(pool.pids()) == 2)
        assert set(pool.pids()) != before


@pytest.mark.time_limit(120)
def test_an_idle_worker_that_is_killed_takes_no_call_along():
    with ProcessPool(1) as pool:
        (pid,) = pool.pids()
        assert pool.submit(add, 1).result(PATIENCE) == 1
        os.kill(pid, signal.SIGKILL)
        assert [pool.submit(add, n).result(PATIENCE) for n in range(5)] == list(range(5))
        assert pool.pids() != [pid]


@pytest.mark.time_limit(120)
def test_a_call_is_made_again_where_the_policy_says_so(tmp_path):
    with ProcessPool(2, retries=1) as pool:
        assert pool.submit(die_once, tmp_path / "died").result(PATIENCE) != 0
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            pool.submit(die_by, signal.SIGSEGV).result(PATIENCE)
        assert pool.submit(add, 1).result(PATIENCE) == 1


@pytest.mark.time_limit(180)
def test_killing_workers_at_random_loses_no_call():
    with ProcessPool(3, retries=1000) as pool:
        futures = [pool.submit(sleep_and_tell, 0.004) for _ in range(300)]
        for _ in range(6):
            time.sleep(0.05)
            for pid in pool.pids()[:1]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        assert all(future.result(PATIENCE) > 0 for future in futures)


@pytest.mark.time_limit(120)
def test_a_death_breaks_the_pool_where_that_is_wanted():
    with ProcessPool(2, break_on_death=True) as pool:
        dying = pool.submit(die_by, signal.SIGKILL)
        waiting = [pool.submit(time.sleep, 1) for _ in range(30)]
        for future in (dying, waiting[-1]):
            with pytest.raises(BrokenProcessPool):
                future.result(PATIENCE)
        with pytest.raises(BrokenProcessPool):
            pool.submit(add, 1)


@pytest.mark.time_limit(120)
def test_workers_end_with_their_parent():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import sys, time
                from pyreactor.pools import ProcessPool
                if __name__ == "__main__":
                    pool = ProcessPool(2)
                    pool.submit(abs, 1).result()
                    print(*pool.pids(), flush=True)
                    time.sleep(60)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        parent.kill()
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Start and end


@pytest.mark.time_limit(120)
def test_all_processes_are_there_from_the_start_and_initialized():
    with ProcessPool(3, initializer=set_number, initargs=(7,)) as pool:
        assert len(pool.pids()) == 3
        assert {pool.submit(get_number).result(PATIENCE) for _ in range(9)} == {7}


@pytest.mark.time_limit(120)
def test_an_initializer_that_raises_breaks_the_pool():
    pool = ProcessPool(1, initializer=fail_to_start)
    with pytest.raises(BrokenProcessPool, match="initializer"):
        pool.submit(add, 1).result(PATIENCE)
    with pytest.raises(BrokenProcessPool, match="no start"):
        pool.submit(add, 1)
    pool.shutdown()


@pytest.mark.time_limit(120)
def test_a_worker_whose_initializer_raises_ends_in_peace(tmp_path):
    """What it still does at its end, such as to write a log, is done when the pool breaks."""
    path = tmp_path / "log"
    with ProcessPool(1, initializer=fail_to_start_and_tell, initargs=(path,)) as pool:
        with pytest.raises(BrokenProcessPool, match="no start"):
            pool.submit(add, 1).result(PATIENCE)
        assert path.read_text() == "ended\n"


@pytest.mark.time_limit(60)
def test_a_pool_that_breaks_while_a_worker_is_replaced_ends(monkeypatch):
    """Or the new worker makes a call that is still in the queue, and that nobody waits for."""
    pool = ProcessPool(1, break_on_death=True)
    replace = pool._state._replace

    def replace_late(worker):
        wait_until(lambda: pool._broken)
        replace(worker)

    monkeypatch.setattr(pool._state, "_replace", replace_late)
    running, waiting = (pool.submit(time.sleep, 1e6) for _ in range(2))
    wait_until(running.running)
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    for future in (running, waiting):
        with pytest.raises(BrokenProcessPool):
            future.result(PATIENCE)
    pool.shutdown()
    assert pool.pids() == []


@pytest.mark.time_limit(120)
@pytest.mark.parametrize(("end", "number"), [("terminate_workers", 15), ("kill_workers", 9)])
def test_workers_can_be_ended_at_once(end, number):
    with ProcessPool(2) as pool:
        processes = list(pool._processes.values())
        running = [pool.submit(time.sleep, PATIENCE) for _ in range(2)]
        waiting = pool.submit(add, 1)
        wait_until(lambda: all(future.running() for future in running))
        getattr(pool, end)()
        for future in (*running, waiting):
            with pytest.raises(BrokenProcessPool, match="workers were"):
                future.result(PATIENCE)
        with pytest.raises(BrokenProcessPool, match="workers were"):
            pool.submit(add, 1)
    assert [process.exitcode for process in processes] == [-number] * 2
    assert pool.pids() == []


@pytest.mark.time_limit(120)
def test_processes_that_never_get_ready_break_the_pool():
    with ProcessPool(1, initializer=leave) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(add, 1).result(PATIENCE)
        pool.submit(add, 1).result(PATIENCE)


@pytest.mark.time_limit(120)
def test_a_process_may_end_after_so_many_calls():
    with ProcessPool(1, max_tasks_per_child=2) as pool:
        pids = [pool.submit(os.getpid).result(PATIENCE) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


@pytest.mark.time_limit(120)
def test_shutdown_makes_the_calls_that_wait_or_cancels_them():
    pool = ProcessPool(1)
    futures = [pool.submit(add, n) for n in range(20)]
    pool.shutdown()
    assert [future.result(0) for future in futures] == list(range(20))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(add, 1)
    pool = ProcessPool(1)
    futures = [pool.submit(time.sleep, 0.05) for _ in range(20)]
    assert futures[-1].cancel()
    pool.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in futures) >= 15
    assert all(future.done() for future in futures)


@pytest.mark.time_limit(120)
def test_a_forgotten_pool_ends_after_its_calls(open_descriptors):
    before = open_descriptors()
    pool = ProcessPool(1)
    future = pool.submit(add, 1)
    state = pool._state
    del pool
    assert future.result(PATIENCE) == 1
    state.join()
    del state, future
    wait_until(lambda: open_descriptors() == before)


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_start_method_is_the_programs_choice(method):
    program = f"""
        import multiprocessing, os
        from pyreactor.pools import ProcessPool
        if __name__ == "__main__":
            pool = ProcessPool(2, mp_context=multiprocessing.get_context({method!r}))
            print(pool.submit(os.getpid).result() in pool.pids())
            pool.submit(print, "made", flush=True)
        """
    outcome = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert outcome.stdout.splitlines() == ["True", "made"]
    assert (outcome.returncode, outcome.stderr) == (0, "")
