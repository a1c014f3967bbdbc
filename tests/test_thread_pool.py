"""ThreadPool: an executor, its queue, and what happens at its ends."""

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest
import waiting

from pyreactor import RequestQueue
from pyreactor.pools import BrokenThreadPool, ThreadPool

PATIENCE = 15  # seconds, after which a wake-up was lost
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)


@pytest.fixture
def pool():
    """A pool of two threads."""
    with ThreadPool(2) as pool:
        yield pool


# Futures


def test_a_call_returns_its_result(pool):
    future = pool.submit(divmod, 7, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(PATIENCE) == (3, 1)
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled()
    assert "finished" in repr(future)


def test_a_call_that_raises_hands_its_exception_over(pool):
    def fail():
        raise LookupError("it")

    future = pool.submit(fail)
    with pytest.raises(LookupError, match="it") as caught:
        future.result(PATIENCE)
    assert future.exception() is caught.value
    assert caught.traceback[-1].name == "fail"
    assert isinstance(pool.submit(sys.exit, 3).exception(PATIENCE), SystemExit)
    assert pool.submit(int).result(PATIENCE) == 0


def test_a_result_that_does_not_come_in_time(pool):
    go_on = threading.Event()
    future = pool.submit(go_on.wait, PATIENCE)
    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)
    assert not future.done()
    go_on.set()
    assert future.result(PATIENCE) is True


def test_a_waiting_call_can_be_cancelled_and_a_running_one_cannot():
    with ThreadPool(1) as pool:
        go_on = threading.Event()
        running = pool.submit(go_on.wait, PATIENCE)
        wait_until(running.running)
        waiting = pool.submit(int)
        assert not running.cancel()
        assert waiting.cancel() and waiting.cancelled() and waiting.done()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.result()
        with pytest.raises(concurrent.futures.CancelledError):
            waiting.exception()
        go_on.set()
        assert running.result(PATIENCE)
    with pytest.raises(concurrent.futures.InvalidStateError):
        running.set_result(1)


def test_callbacks_are_called_once_in_order_with_the_future(pool):
    go_on = threading.Event()
    future = pool.submit(go_on.wait, PATIENCE)
    called = []
    future.add_done_callback(lambda f: called.append((1, f)))
    future.add_done_callback(lambda f: called.append((2, f)))
    assert called == []
    go_on.set()
    future.result(PATIENCE)
    wait_until(lambda: len(called) == 2)
    future.add_done_callback(lambda f: called.append((3, f)))
    assert called == [(1, future), (2, future), (3, future)]


def test_a_callback_that_raises_is_logged(pool, caplog):
    future = pool.submit(int)
    future.result(PATIENCE)
    future.add_done_callback(lambda f: 1 / 0)
    assert "ZeroDivisionError" in caplog.text
    assert pool.submit(int).result(PATIENCE) == 0


def test_wait_and_as_completed_take_the_futures(pool):
    futures = [pool.submit(pow, 2, n) for n in range(20)]
    done, not_done = concurrent.futures.wait(futures, PATIENCE)
    assert (len(done), not_done) == (20, set())
    mixed = [pool.submit(int), concurrent.futures.Future()]
    mixed[1].set_result(5)
    assert {f.result() for f in concurrent.futures.as_completed(mixed, PATIENCE)} == {0, 5}
    assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]


def test_many_threads_may_wait_for_one_future(pool):
    go_on = threading.Event()
    future = pool.submit(go_on.wait, PATIENCE)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(future.result(PATIENCE))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [True] * 5


def test_waiting_for_a_result_lets_signal_handlers_run(pool):
    go_on = threading.Event()
    previous = signal.signal(signal.SIGUSR1, lambda *_: go_on.set())
    try:
        future = pool.submit(go_on.wait, PATIENCE)
        pool.submit(lambda: (time.sleep(0.05), os.kill(os.getpid(), signal.SIGUSR1)))
        assert future.result(PATIENCE) is True
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_nothing_keeps_a_call_or_its_result_alive(pool):
    class Thing:
        def call(self):
            return Thing()

    thing = Thing()
    seen = weakref.ref(thing)
    result = weakref.ref(pool.submit(thing.call).result(PATIENCE))
    del thing
    pool.submit(int).result(PATIENCE)
    pool.submit(int).result(PATIENCE)
    gc.collect()
    wait_until(lambda: seen() is None and result() is None)


# The pool


def test_all_threads_are_there_from_the_start():
    before = set(threading.enumerate())
    with ThreadPool(5, "work") as pool:
        made = set(threading.enumerate()) - before
        assert {thread.name for thread in made} == {f"work_{n}" for n in range(5)}
        barrier = threading.Barrier(5)
        futures = [pool.submit(barrier.wait, PATIENCE) for _ in range(5)]
        assert {f.result(PATIENCE) for f in futures} == set(range(5))
        assert set(threading.enumerate()) - before == made
    assert set(threading.enumerate()) - before == set()


@pytest.mark.parametrize("workers", [0, -1])
def test_a_pool_has_threads(workers):
    with pytest.raises(ValueError, match="max_workers"):
        ThreadPool(workers)


def test_an_initializer_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="initializer"):
        ThreadPool(1, initializer="init")


def test_the_initializer_runs_in_every_thread():
    local = threading.local()
    with ThreadPool(3, initializer=lambda n: setattr(local, "n", n), initargs=(7,)) as pool:
        assert {pool.submit(lambda: local.n).result(PATIENCE) for _ in range(20)} == {7}


def test_an_initializer_that_raises_breaks_the_pool(caplog):
    go_on = threading.Event()

    def fail():
        go_on.wait(PATIENCE)
        raise RuntimeError("no start")

    pool = ThreadPool(1, initializer=fail)
    waiting = pool.submit(int)
    go_on.set()
    with pytest.raises(BrokenThreadPool):
        waiting.result(PATIENCE)
    with pytest.raises(BrokenThreadPool):
        pool.submit(int)
    pool.shutdown()
    assert "no start" in caplog.text


def test_shutdown_makes_the_calls_that_wait():
    pool = ThreadPool(1)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(20)]
    pool.shutdown()
    assert all(future.done() and not future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    pool.shutdown()


def test_shutdown_may_cancel_the_calls_that_wait():
    pool = ThreadPool(1)
    go_on = threading.Event()
    running = pool.submit(go_on.wait, PATIENCE)
    wait_until(running.running)
    waiting = [pool.submit(int) for _ in range(10)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    done, _ = concurrent.futures.wait(waiting, PATIENCE)
    assert len(done) == 10
    go_on.set()
    assert running.result(PATIENCE)
    pool.shutdown()


def test_a_forgotten_pool_ends_its_threads_after_their_work():
    pool = ThreadPool(2)
    threads = list(pool._threads)
    futures = [pool.submit(time.sleep, 0.001) for _ in range(10)]
    del pool
    gc.collect()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert all(future.done() for future in futures)


def run_program(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )


def test_the_interpreter_ends_after_the_calls():
    outcome = run_program(
        """
        import atexit, time
        from pyreactor.pools import ThreadPool
        pool = ThreadPool(2)
        pool.submit(lambda: (time.sleep(0.2), print("made")))
        def late():
            try:
                pool.submit(int)
            except RuntimeError as error:
                print(error)
        atexit.register(late)
        """
    )
    assert outcome.stdout.splitlines() == [
        "made",
        "cannot schedule new futures after interpreter shutdown",
    ]
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_forked_child_is_told_that_the_threads_are_its_parents():
    outcome = run_program(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        from pyreactor.pools import ThreadPool
        pool = ThreadPool(1)
        pool.submit(int).result()
        child = os.fork()
        if child == 0:
            try:
                pool.submit(int)
            except RuntimeError as error:
                print(error, flush=True)
            with ThreadPool(1) as own:
                print(own.submit(int).result(), flush=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(pool.submit(int).result())
        """
    )
    assert outcome.stderr == ""
    refused, *rest = outcome.stdout.splitlines()
    assert "make a pool in the child" in refused
    assert rest == ["0", "0"]


# Its queue


def test_a_full_queue_makes_submit_wait():
    go_on = threading.Event()
    with ThreadPool(1, queue=RequestQueue(1)) as pool:
        first = pool.submit(go_on.wait, PATIENCE)
        wait_until(first.running)
        pool.submit(int)
        late = []
        thread = threading.Thread(target=lambda: late.append(pool.submit(int)))
        thread.start()
        wait_until(lambda: pool.queue.stats().put_sleeps > 0)
        go_on.set()
        thread.join(PATIENCE)
        assert late[0].result(PATIENCE) == 0


def test_a_full_queue_is_said_where_nobody_is_to_wait():
    go_on = threading.Event()
    with ThreadPool(1, queue=RequestQueue(1), wait=False) as pool:
        wait_until(pool.submit(go_on.wait, PATIENCE).running)
        pool.submit(int)
        with pytest.raises(queue.Full, match="1 calls wait already"):
            pool.submit(int)
        go_on.set()


def test_a_worker_that_finds_the_queue_full_works_instead_of_waiting():
    with ThreadPool(1, queue=RequestQueue(2)) as pool:

        def spread(depth):
            return [pool.submit(spread, depth - 1) for _ in range(3 if depth else 0)]

        def count(futures):
            return 1 + sum(count(future.result(PATIENCE)) for future in futures)

        assert count(pool.submit(spread, 4).result(PATIENCE)) == sum(3**n for n in range(5))


def test_others_may_put_callables_into_the_queue(caplog):
    requests = RequestQueue(8)
    with ThreadPool(1, queue=requests) as pool:
        assert pool.queue is requests
        done = threading.Event()
        requests.put("no callable")
        requests.put(done.set)
        assert done.wait(PATIENCE)
    assert "'str' object is not callable" in caplog.text


# asyncio


def test_the_pool_is_an_event_loops_default_executor(new_loop):
    loop = new_loop()
    pool = ThreadPool(2, "pool")
    loop.set_default_executor(pool)
    variable = contextvars.ContextVar("variable")

    async def main():
        variable.set(5)
        names = await asyncio.gather(
            *(asyncio.to_thread(lambda: threading.current_thread().name) for _ in range(20))
        )
        assert set(names) <= {"pool_0", "pool_1"}
        assert await asyncio.to_thread(variable.get) == 5
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        waiting = asyncio.wrap_future(pool.submit(time.sleep, 0.001))
        assert await waiting is None

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)


def test_cancelling_a_task_cancels_the_call_that_waits(new_loop):
    loop = new_loop()
    go_on = threading.Event()

    async def main():
        with ThreadPool(1) as pool:
            running = loop.run_in_executor(pool, go_on.wait, PATIENCE)
            waiting = loop.run_in_executor(pool, int)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            go_on.set()
            assert await running

    loop.run_until_complete(main())
