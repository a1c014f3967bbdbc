"""Shared memory: the queue between processes, item by item, and what a death leaves behind.

That no death at any step wedges it is what test_shared_crash.py shows.
"""

import asyncio
import functools
import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time

import pytest
import waiting

from pyreactor import QueueClosed
from pyreactor.shm import Delivery, Segment, SharedRequestQueue

# Python 3.12 warns of forking beside threads, which a test may have left in an executor.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

PATIENCE = 15  # seconds, after which a wake-up was lost
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)
POLICIES = ("at_most_once", "at_least_once")


@pytest.fixture(params=POLICIES)
def policy(request):
    """Each policy in turn."""
    return request.param


def in_child(function, *args):
    """Run a function in a forked child and return its pid."""
    child = os.fork()
    if child == 0:
        try:
            function(*args)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def join_child(child):
    """Wait for a child and assert that all went well there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child still runs")


# The interface, which is RequestQueue's


def test_items_come_out_in_the_order_they_were_put(policy):
    requests = SharedRequestQueue(8, policy=policy)
    assert requests.put(1) is None
    assert requests.try_put({"two": 2}) is True
    assert requests.put_many(iter([b"3", memoryview(b"four")])) == 2
    assert len(requests) == 4
    assert [requests.get(), requests.try_get(), *requests.get_many(5)] == [
        1,
        {"two": 2},
        b"3",
        b"four",
    ]
    assert len(requests) == 0
    missing = object()
    assert requests.try_get(missing) is missing
    requests.put(None)
    assert requests.try_get(missing) is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"capacity": 2**25}, ValueError),
        ({"capacity": "many"}, TypeError),
        ({}, TypeError),
        ({"capacity": 1, "policy": "exactly_once"}, ValueError),
        ({"capacity": 1, "item_bytes": -1}, ValueError),
        ({"capacity": 1, "participants": 5000}, ValueError),
        ({"capacity": 1, "recheck_seconds": 0}, ValueError),
        ({"capacity": 1, "spin_us": float("nan")}, ValueError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        SharedRequestQueue(**options)


def test_full_empty_and_closed_are_said(policy):
    requests = SharedRequestQueue(2, policy=policy)
    assert requests.capacity == 2
    assert requests.put_many("abc", timeout=0) == 2
    assert requests.try_put("c") is False
    with pytest.raises(TimeoutError, match="stayed full"):
        requests.put("c", timeout=0.01)
    requests.close()
    requests.close()
    assert requests.closed
    with pytest.raises(QueueClosed):
        requests.put("c")
    assert list(requests) == ["a", "b"]
    with pytest.raises(QueueClosed):
        requests.try_get()
    with pytest.raises(TimeoutError, match="stayed empty"):
        SharedRequestQueue(1).get(timeout=0.01)
    with pytest.raises(ValueError):
        SharedRequestQueue(1).get(timeout=float("nan"))


@pytest.mark.parametrize("size", [0, 1, 224, 225, 4096, 4097, 100_000, 1 << 20])
def test_items_of_every_size_arrive_whole(size):
    requests = SharedRequestQueue(4)
    data = os.urandom(size)
    for item in (data, [data, "and more"]):
        requests.put(item)
        assert requests.get() == item


def test_an_item_that_can_never_fit_is_refused():
    requests = SharedRequestQueue(4, bulk_bytes=8192)
    with pytest.raises(ValueError, match="bulk_bytes"):
        requests.put(bytes(10_000))
    with pytest.raises(ValueError):
        SharedRequestQueue(4, bulk_bytes=0).put(bytes(225))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        requests.put(lambda: None)
    assert len(requests) == 0


def test_what_cannot_be_unpickled_is_gone_from_the_queue(policy):
    class Vanishes:
        def __reduce__(self):
            return int, ("no number",)

    requests = SharedRequestQueue(2, policy=policy)
    requests.put(Vanishes())
    requests.put("next")
    with pytest.raises(ValueError):
        requests.take()
    assert requests.get() == "next"
    assert len(requests) == 0


# Acknowledging


def test_a_delivery_stays_until_it_is_acknowledged():
    requests = SharedRequestQueue(2, policy="at_least_once")
    requests.put_many("ab")
    first, second = requests.take(), requests.take()
    assert isinstance(first, Delivery) and first.item == "a"
    assert requests.try_put("c") is False
    assert first.nack() is True
    assert first.nack() is False
    assert requests.take(0).item == "a"  # and is forgotten, which gives it back
    gc.collect()
    with requests.take(0) as item:
        assert item == "a"
    with pytest.raises(KeyError), second as item:
        raise KeyError(item)
    third = requests.take(0)
    assert third.item == "b"
    assert (second.deliveries, third.deliveries) == (1, 2)
    third.ack()
    third.ack()
    assert third.nack() is False
    assert requests.try_get() is None
    assert requests.stats().returned == 3


def test_at_most_once_a_delivery_is_acknowledged_by_receiving_it():
    requests = SharedRequestQueue(1)
    requests.put("a")
    delivery = requests.take()
    assert requests.try_put("b") is True
    delivery.ack()
    assert delivery.nack() is False
    assert delivery.deliveries == 1
    assert requests.get() == "b"


# Between processes


def test_a_forked_child_takes_part(policy):
    requests = SharedRequestQueue(4, policy=policy)
    answers = SharedRequestQueue(4, policy=policy)

    def answer():
        for item in requests:
            answers.put((item * 2, answers.participant))

    child = in_child(answer)
    for n in range(50):
        requests.put(n)
        doubled, participant = answers.get(PATIENCE)
        assert doubled == 2 * n
        assert participant != answers.participant
    requests.close()
    join_child(child)


def work_elsewhere(requests, answers, segment):
    """What a spawned process does."""
    for item in requests:
        answers.put(hashlib.sha256(item).hexdigest())
    memoryview(segment)[:3] = b"yes"
    answers.close()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.time_limit(120)
def test_a_started_process_is_given_the_queue_by_pickle(method):
    context = multiprocessing.get_context(method)
    requests, answers, segment = SharedRequestQueue(4), SharedRequestQueue(4), Segment(3)
    process = context.Process(target=work_elsewhere, args=(requests, answers, segment))
    process.start()
    data = [os.urandom(size) for size in (1, 5000, 1 << 20)]
    requests.put_many(data, PATIENCE)
    requests.close()
    assert [answers.get(60) for _ in data] == [hashlib.sha256(item).hexdigest() for item in data]
    with pytest.raises(QueueClosed):
        answers.get(60)
    process.join(60)
    assert process.exitcode == 0
    assert bytes(segment) == b"yes"


def test_a_queue_is_attached_to_by_descriptor():
    requests = SharedRequestQueue(4, policy="at_least_once")
    requests.put("here")
    other = SharedRequestQueue.attach(requests.fileno())
    assert other.semantics == "at_least_once"
    assert other.participant != requests.participant
    assert other.get(PATIENCE) == "here"
    with Segment(10) as segment, pytest.raises(ValueError, match="shared queue"):
        SharedRequestQueue.attach(segment.fileno())
    with pytest.raises(OSError):
        SharedRequestQueue.attach(10_000)
    with open(os.devnull) as file, pytest.raises(ValueError, match="shared queue"):
        SharedRequestQueue.attach(file.fileno())


def test_only_so_many_take_part_and_leaving_makes_room():
    requests = SharedRequestQueue(1, participants=2)
    second = SharedRequestQueue.attach(requests.fileno())
    with pytest.raises(RuntimeError, match="participants"):
        SharedRequestQueue.attach(requests.fileno())
    del second
    gc.collect()
    SharedRequestQueue.attach(requests.fileno())


def test_what_a_killed_consumer_had_comes_to_another_or_is_lost(policy):
    requests = SharedRequestQueue(2, policy=policy, recheck_seconds=0.05)
    taken = SharedRequestQueue(1)
    requests.put_many("ab")

    def hold():
        delivery = requests.take()
        taken.put(delivery.item)
        signal.pause()

    child = in_child(hold)
    assert taken.get(PATIENCE) == "a"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if policy == "at_least_once":
        # A thread that sleeps finds out by itself; otherwise somebody may say so.
        assert sorted([requests.get(PATIENCE), requests.get(PATIENCE)]) == ["a", "b"]
    else:
        assert requests.get(PATIENCE) == "b"
    assert requests.try_get() is None
    requests.clear()
    assert requests.stats().deaths == 1


def test_a_death_that_somebody_learnt_of_is_cleared_away_at_once():
    requests = SharedRequestQueue(2, policy="at_least_once", recheck_seconds=3600)
    taken = SharedRequestQueue(1)
    requests.put("a")

    def hold():
        delivery = requests.take()
        taken.put(delivery.item)
        signal.pause()

    child = in_child(hold)
    taken.get(PATIENCE)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert requests.try_get() is None
    assert requests.clear() == 1
    assert requests.clear() == 0
    assert requests.try_get() == "a"


# Waiting


def test_a_thread_waits_for_another_process_without_the_gil(policy):
    requests = SharedRequestQueue(1, policy=policy)
    got = []
    thread = threading.Thread(target=lambda: got.append(requests.get(PATIENCE)))
    thread.start()
    wait_until(lambda: requests.stats().get_sleeps > 0)
    join_child(in_child(requests.put, "woken"))
    thread.join(PATIENCE)
    assert got == ["woken"]


def test_a_signal_handler_runs_while_a_thread_waits():
    requests = SharedRequestQueue(1)

    def interrupt(signum, frame):
        raise InterruptedError

    previous = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(InterruptedError):
            requests.get(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, previous)
        timer.join()


def test_tasks_wait_in_the_loop(new_loop):
    requests = SharedRequestQueue(8)
    done = []

    async def work():
        try:
            while True:
                done.append(await requests.get_async())
        except QueueClosed:
            pass

    async def main():
        workers = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for n in range(50):
            while not requests.try_put(n):
                await asyncio.sleep(0)
        cancelled = asyncio.create_task(requests.get_async())
        await asyncio.sleep(0)
        cancelled.cancel()
        requests.close()
        await asyncio.wait_for(asyncio.gather(*workers), PATIENCE)
        try:
            done.append(await cancelled)
        except (asyncio.CancelledError, QueueClosed):
            pass

    new_loop().run_until_complete(main())
    assert sorted(done) == list(range(50))


def test_a_cancelled_task_takes_nothing_along(new_loop):
    requests = SharedRequestQueue(8)

    async def main():
        waiting = asyncio.create_task(requests.get_async())
        await asyncio.sleep(0.01)
        requests.put("item")
        while not waiting.done():
            waiting.cancel()
            await asyncio.sleep(0)
        if waiting.cancelled():
            assert await asyncio.wait_for(requests.get_async(), PATIENCE) == "item"
        else:
            assert waiting.result() == "item"

    new_loop().run_until_complete(main())


# Segments


def test_a_segment_is_memory_that_processes_share():
    segment = Segment(1 << 16)
    assert len(segment) == 1 << 16
    assert bytes(segment) == bytes(1 << 16)
    other = Segment.attach(segment.fileno())
    with memoryview(segment) as view:
        view[5:8] = b"abc"
        with pytest.raises(BufferError):
            segment.close()

    def change():
        memoryview(other)[0] = 65

    join_child(in_child(change))
    assert bytes(other)[:8] == b"A\0\0\0\0abc"
    segment.close()
    segment.close()
    assert segment.closed
    with pytest.raises(BufferError, match="closed"):
        memoryview(segment)
    with pytest.raises(ValueError, match="closed"):
        segment.fileno()
    assert bytes(other)[5:8] == b"abc"
    with pytest.raises(OSError):
        os.ftruncate(other.fileno(), 0)
    other.close()


@pytest.mark.parametrize("size", [0, -1])
def test_a_segment_has_a_size(size):
    with pytest.raises(ValueError):
        Segment(size)
