"""Threads cost something to switch between: how many there are, and where they run."""

import functools
import json
import os
import resource
import subprocess
import sys
import warnings

import pytest
import witness

from pyreactor import dispatchers
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)

MAKERS = {
    "reactor": lambda threads: Reactor(workers=threads),
    "half-reactive": lambda threads: HalfSyncHalfReactive(workers=threads),
    "half-async": lambda threads: HalfSyncHalfAsync(sync_threads=threads),
    "efficient": lambda threads: EfficientHalfSyncHalfAsync(threads),
    "leader-followers": lambda threads: LeaderFollowers(threads=threads),
}
OTHERS = {"reactor": 1, "half-reactive": 1, "half-async": 1, "efficient": 1, "leader-followers": 0}


@pytest.mark.parametrize("kind", MAKERS)
def test_C1_many_more_threads_than_processors_are_warned_of(kind, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.warns(RuntimeWarning, match="200 threads on 2 processors") as caught:
        MAKERS[kind](200)
    assert caught[0].filename == __file__  # where the mistake is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MAKERS[kind](8)
        MAKERS[kind](None)


def test_C1_the_default_is_a_few_more_than_processors(monkeypatch):
    for processors, workers in [(1, 5), (8, 12), (512, 32)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=processors: set(range(n)))
        assert dispatchers.default_workers() == workers


@pytest.mark.parametrize("kind", MAKERS)
def test_C1_stats_tell_how_often_threads_were_switched(kind):
    with MAKERS[kind](2) as dispatcher:
        counters = dispatcher.stats()
        assert counters["voluntary"] >= 0 and counters["nonvoluntary"] >= 0
    assert dispatcher.stats()["voluntary"] > 0  # of threads that have ended, too


MANY, FEW = 10_000, 1_000
THREADS = 4  # of crowd.py
FULL = {"efficient"}  # the others get fewer, for time's sake; with PYREACTOR_CROWDS=all none does


def connections_for(kind):
    return MANY if kind in FULL or os.environ.get("PYREACTOR_CROWDS") == "all" else FEW


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("kind", MAKERS)
def test_C2_threads_do_not_grow_with_connections(kind):
    """Neither in the dispatcher nor beside it; all connections are open at once, and all work."""
    serve_many(kind)


@pytest.mark.time_limit(120)
def test_C3_one_thread_serves_many_connections():
    loops = serve_many("efficient")["connections"]
    assert len(loops) == 4
    # In turn, but for a loop that has no room for more just then.
    share = connections_for("efficient") / 4
    assert all(share / 2 < count < share * 2 for count in loops), loops


@functools.cache  # two rows look at one run
def serve_many(kind):
    count = connections_for(kind)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200:
        message = f"no {count} descriptors for a process (ulimit -Hn)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    program = witness.HERE / "crowd.py"
    with talking([sys.executable, program, "serve", kind, str(count)]) as server:
        address = json.loads(server.stdout.readline())
        with talking([sys.executable, program, "connect", str(address[1]), str(count)]) as clients:
            assert clients.stdout.readline().split() == [str(count), "echoed"]
            seen = json.loads(server.communicate("\n")[0])
    assert seen["handles"] >= count
    assert seen["threads"] == seen["threads_before"]
    assert seen["threads"] == THREADS + OTHERS[kind] + 1  # and the program's own
    return seen


def talking(command):
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_C4_threads_may_be_pinned_to_processors():
    processors = sorted(os.sched_getaffinity(0))
    with Reactor(workers=2, affinity=True) as reactor:
        places = [os.sched_getaffinity(tid) for tid in reactor.threads()]
    assert all(len(place) == 1 for place in places)
    assert set.union(*places) == set(processors[:3])
    with EfficientHalfSyncHalfAsync(2, affinity=processors[:1]) as dispatcher:
        places = [os.sched_getaffinity(tid) for tid in dispatcher.threads()]
    assert places == [set(processors[:1])] * 3
    assert sorted(os.sched_getaffinity(0)) == processors
