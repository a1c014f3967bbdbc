"""RequestQueue between threads: order, waiting, closing, and who owns an item when."""

import contextlib
import functools
import gc
import queue
import signal
import sys
import threading
import time
import weakref

import pytest
import waiting

import pyreactor
from pyreactor import QueueClosed, RequestQueue

KINDS = ("mpmc", "spsc", "mutex")
PATIENCE = 10  # seconds, after which a wake-up was lost
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)


@pytest.fixture(params=KINDS)
def kind(request):
    """Each kind of queue in turn."""
    return request.param


class Thing:
    """Something a weak reference can be made to."""


def run_thread(function, *args):
    """Start a thread whose result or exception join_thread() returns."""
    outcome = []

    def run():
        try:
            outcome.append((function(*args), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.outcome = outcome
    thread.start()
    return thread


def join_thread(thread):
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the thread still waits"
    ((result, error),) = thread.outcome
    if error is not None:
        raise error
    return result


# Order and room


def test_items_come_out_in_the_order_they_were_put(kind):
    requests = RequestQueue(8, kind=kind)
    assert requests.put(1) is None
    assert requests.try_put(2) is True
    assert requests.put_many(iter([3, 4])) == 2
    assert len(requests) == 4
    assert [requests.get(), requests.try_get(), *requests.get_many(5)] == [1, 2, 3, 4]
    assert len(requests) == 0


def test_none_is_an_item_like_any_other(kind):
    requests = RequestQueue(2, kind=kind)
    requests.put(None)
    missing = object()
    assert requests.try_get(missing) is None
    assert requests.try_get(missing) is missing
    assert requests.try_get() is None


def test_capacity_is_rounded_up_to_a_power_of_two(kind):
    assert [RequestQueue(n, kind=kind).capacity for n in (1, 2, 3, 5, 1000)] == [1, 2, 4, 8, 1024]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"capacity": 0}, ValueError),
        ({"capacity": -1}, ValueError),
        ({"capacity": 2**30 + 1}, ValueError),
        ({"capacity": "many"}, TypeError),
        ({"capacity": 1, "kind": "stack"}, ValueError),
        ({"capacity": 1, "spin_us": -1}, ValueError),
        ({"capacity": 1, "spin_us": float("nan")}, ValueError),
        ({}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error):
        RequestQueue(**arguments)


def test_a_full_queue_says_so(kind):
    requests = RequestQueue(2, kind=kind)
    assert requests.put_many("abc", timeout=0) == 2
    assert requests.try_put("c") is False
    with pytest.raises(TimeoutError, match="stayed full"):
        requests.put("c", timeout=0)
    with pytest.raises(TimeoutError, match="stayed full"):
        requests.put_many("c", timeout=0.01)
    assert requests.get_many(9) == ["a", "b"]


def test_an_empty_queue_says_so(kind):
    requests = RequestQueue(2, kind=kind)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="stayed empty"):
        requests.get(timeout=0.02)
    assert time.monotonic() - began >= 0.02
    with pytest.raises(TimeoutError):
        requests.get_many(3, timeout=0)
    with pytest.raises(ValueError):
        requests.get_many(0)
    with pytest.raises(ValueError):
        requests.get(timeout=float("nan"))
    with pytest.raises(TypeError):
        requests.get(timeout="long")


def test_large_batches_go_through_in_order(kind):
    requests = RequestQueue(1024, kind=kind)
    assert requests.put_many(range(1000)) == 1000
    assert requests.get_many(150) == list(range(150))
    assert requests.get_many(2000) == list(range(150, 1000))
    assert requests.put_many([]) == 0


def test_an_empty_queue_is_true(kind):
    assert RequestQueue(1, kind=kind)


def test_repr_and_stats_tell_the_state(kind):
    requests = RequestQueue(4, kind=kind)
    requests.put_many("abc")
    requests.get()
    requests.close()
    assert repr(requests) == f"<RequestQueue {kind} 2/4 closed>"
    assert requests.kind == kind
    stats = requests.stats()
    assert (stats.puts, stats.gets, stats.depth_max) == (3, 1, 3)
    assert stats.get_sleeps == stats.put_sleeps == stats.get_wakes == stats.put_wakes == 0


# Waiting


def test_a_get_waits_for_a_put(kind):
    requests = RequestQueue(2, kind=kind)
    getter = run_thread(requests.get)
    wait_until(lambda: requests.stats().get_sleeps)
    requests.put("late")
    assert join_thread(getter) == "late"
    assert requests.stats().get_wakes == 1


def test_a_put_waits_for_a_get(kind):
    requests = RequestQueue(1, kind=kind)
    putter = run_thread(requests.put_many, "abc")
    wait_until(lambda: requests.stats().put_sleeps)
    assert [requests.get(PATIENCE) for _ in range(3)] == ["a", "b", "c"]
    assert join_thread(putter) == 3


def test_one_put_wakes_one_of_many():
    requests = RequestQueue(8)
    getters = [run_thread(requests.get) for _ in range(4)]
    wait_until(lambda: requests.stats().get_sleeps == 4)
    for number in range(1, 5):
        requests.put(number)
        assert requests.stats().get_wakes == number
    assert sorted(map(join_thread, getters)) == [1, 2, 3, 4]
    assert requests.stats().get_sleeps == 4


def test_nobody_is_woken_where_nobody_sleeps(kind):
    requests = RequestQueue(64, kind=kind)
    for _ in range(100):
        requests.put_many(range(50))
        requests.get_many(50)
    stats = requests.stats()
    assert stats.puts == 5000
    assert stats.get_wakes == stats.put_wakes == 0


def test_spinning_does_without_sleep():
    requests = RequestQueue(2, spin_us=PATIENCE * 1e5)
    getter = run_thread(requests.get)
    requests.put("quick")
    assert join_thread(getter) == "quick"
    assert requests.stats().get_sleeps == 0


def test_the_queue_between_two_threads_refuses_a_third():
    requests = RequestQueue(4, kind="spsc")
    requests.put(1)
    requests.get()
    for use in (requests.get, requests.try_get, lambda: requests.get_many(1)):
        with pytest.raises(RuntimeError, match="one consumer"):
            join_thread(run_thread(use))
    for use in (requests.put, requests.try_put, lambda item: requests.put_many([item])):
        with pytest.raises(RuntimeError, match="one producer"):
            join_thread(run_thread(use, "item"))
    requests.put(2)
    assert requests.get() == 2


@pytest.mark.parametrize("side", ["get", "put"])
def test_a_signal_handler_runs_while_the_main_thread_waits(kind, side):
    requests = RequestQueue(1, kind=kind)
    requests.put("item")
    if side == "get":
        requests.get()
    handled = threading.Event()

    def handle(signum, frame):
        handled.set()
        raise KeyboardInterrupt

    def send():
        wait_until(lambda: requests.stats().get_sleeps or requests.stats().put_sleeps)
        while not handled.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    try:
        with pytest.raises(KeyboardInterrupt):
            sender.start()
            requests.get() if side == "get" else requests.put("more")
    finally:
        handled.set()
        sender.join()
        signal.signal(signal.SIGUSR1, previous)
    # Nothing is left of the interrupted call.
    if side == "get":
        requests.put("next")
        assert requests.get() == "next"
    else:
        assert requests.get() == "item"
        assert requests.try_get() is None


def test_a_handler_that_does_not_raise_lets_the_wait_go_on(kind):
    requests = RequestQueue(1, kind=kind)
    calls = []
    previous = signal.signal(signal.SIGUSR1, lambda signum, frame: calls.append(signum))

    def send():
        wait_until(lambda: requests.stats().get_sleeps)
        while not calls:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.001)
        requests.put("after the signal")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert requests.get(PATIENCE) == "after the signal"
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)


# Closing


def test_a_closed_queue_gives_what_is_left(kind):
    requests = RequestQueue(4, kind=kind)
    requests.put_many("ab")
    assert not requests.closed
    requests.close()
    requests.close()
    assert requests.closed
    for put in (requests.put, requests.try_put, lambda item: requests.put_many([item])):
        with pytest.raises(QueueClosed, match="is closed$"):
            put("c")
    assert requests.get() == "a"
    assert requests.try_get() == "b"
    for get in (requests.get, requests.try_get, lambda: requests.get_many(2)):
        with pytest.raises(QueueClosed, match="closed and empty"):
            get()


def test_closing_wakes_everybody_who_waits():
    requests = RequestQueue(1)
    getters = [run_thread(requests.get) for _ in range(3)]
    wait_until(lambda: requests.stats().get_sleeps == 3)
    requests.close()
    for getter in getters:
        with pytest.raises(QueueClosed):
            join_thread(getter)

    requests = RequestQueue(1)
    requests.put("first")
    putters = [run_thread(requests.put, "second") for _ in range(3)]
    wait_until(lambda: requests.stats().put_sleeps == 3)
    requests.close()
    for putter in putters:
        with pytest.raises(QueueClosed):
            join_thread(putter)
    assert list(requests) == ["first"]


def test_a_batch_that_closing_cuts_short_tells_how_far_it_came(kind):
    requests = RequestQueue(2, kind=kind)
    putter = run_thread(requests.put_many, "abcd")
    wait_until(lambda: requests.stats().put_sleeps)
    requests.close()
    assert join_thread(putter) == 2
    assert list(requests) == ["a", "b"]


def test_iteration_ends_when_the_queue_is_closed_and_empty(kind):
    requests = RequestQueue(2, kind=kind)
    consumer = run_thread(list, requests)
    with requests:
        for number in range(100):
            requests.put(number)
    assert requests.closed
    assert join_thread(consumer) == list(range(100))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queue.ShutDown is new in Python 3.13")
def test_queue_closed_is_the_standard_librarys_shutdown():
    assert issubclass(QueueClosed, queue.ShutDown)


# Ownership


def test_the_queue_owns_what_is_in_it_and_nothing_else(kind):
    requests = RequestQueue(2, kind=kind)
    things = [Thing(), Thing(), Thing()]
    references = [weakref.ref(thing) for thing in things]
    counts = [sys.getrefcount(thing) for thing in things]
    assert requests.put_many(things, timeout=0) == 2
    assert requests.try_put(things[2]) is False
    with pytest.raises(TimeoutError):
        requests.put(things[2], timeout=0)
    taken = requests.get()
    requests.close()
    with pytest.raises(QueueClosed):
        requests.put(things[2])
    with pytest.raises(QueueClosed):
        requests.put_many(things)
    del taken
    now = [sys.getrefcount(thing) for thing in things]
    assert now == [counts[0], counts[1] + 1, counts[2]]
    del things, requests
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_an_item_that_refers_to_its_queue_is_collected(kind):
    requests = RequestQueue(2, kind=kind)
    thing = Thing()
    thing.requests = requests
    requests.put(thing)
    requests.put((requests,))  # a tuple cannot be cleared: the queue has to let go of it
    reference = weakref.ref(thing)
    del requests, thing
    gc.collect()
    assert reference() is None


def test_the_collector_leaves_alone_what_waits(kind):
    requests = RequestQueue(4, kind=kind)
    requests.put([Thing()])
    gc.collect()
    ((thing,),) = requests.get_many(1)
    assert type(thing) is Thing
    fresh = Thing()
    assert sys.getrefcount(thing) == sys.getrefcount(fresh)


@pytest.mark.parametrize("producers", [1, 4])
@pytest.mark.parametrize("kind", ["mpmc", "mutex"])
def test_threads_lose_nothing_and_keep_each_producers_order(kind, producers):
    requests = RequestQueue(4, kind=kind)
    count = 2000

    def produce(name):
        for number in range(0, count, 2):
            requests.put((name, number))
            assert requests.put_many([(name, number + 1)]) == 1

    def consume():
        taken = []
        for item in requests:
            taken.append(item)
            with contextlib.suppress(TimeoutError, QueueClosed):
                taken += requests.get_many(3, timeout=0)
        return taken

    consumers = [run_thread(consume) for _ in range(4)]
    for thread in [run_thread(produce, name) for name in range(producers)]:
        join_thread(thread)
    requests.close()
    taken = [join_thread(consumer) for consumer in consumers]
    for items in taken:
        for name in range(producers):
            numbers = [number for producer, number in items if producer == name]
            assert numbers == sorted(numbers)
    everything = sorted(item for items in taken for item in items)
    assert everything == [(name, number) for name in range(producers) for number in range(count)]
    stats = requests.stats()
    assert stats.puts == stats.gets == producers * count
    assert stats.depth_max <= requests.capacity


def test_the_package_exports_it():
    assert pyreactor.RequestQueue is RequestQueue
    assert RequestQueue[int](3).capacity == 4
