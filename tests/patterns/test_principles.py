"""What follows from the patterns: which I/O belongs to which, and who does it in each of them."""

import pathlib
from typing import NamedTuple

import pytest
import witness
from witness import ACCEPTS, READS, WRITES

from pyreactor.demultiplexers import EpollDemultiplexer
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
)
from pyreactor.io_models import MultiplexedIO

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Roles(NamedTuple):
    """Which thread does it; "kernel": none of them."""

    arguments: list[str]
    accepts: str
    reads: str
    writes: str
    handles: str


PATTERNS = {
    "Reactor": Roles(["reactor", "workers=3"], "worker", "worker", "worker", "worker"),
    "HalfSyncHalfReactive": Roles(
        ["half-reactive", "workers=3"], "main", "worker", "worker", "worker"
    ),
    "simulated Proactor": Roles(
        ["half-reactive", "mode=simulated_proactor", "workers=3"], "main", "main", "main", "worker"
    ),
    "HalfSyncHalfAsync": Roles(["half-async", "sync_threads=3"], "async", "async", "async", "sync"),
    "EfficientHalfSyncHalfAsync": Roles(["efficient", "loops=3"], "main", "loop", "loop", "loop"),
    "LeaderFollowers": Roles(
        ["leader-followers", "threads=3"], "member", "member", "member", "member"
    ),
}


@pytest.mark.time_limit(60)  # strace on a busy machine
@pytest.mark.parametrize("name", PATTERNS)
def test_who_accepts_reads_writes_and_handles(name):
    """The patterns side by side: what tells them apart, by what the kernel saw."""
    expected = PATTERNS[name]
    with witness.record("stage.py", *expected.arguments, "strict=True") as scene:
        scene.settle("begin")
        with scene.connect() as client:
            for _ in range(3):
                scene.exchange(client, b"hello")
        scene.settle("end")
    seen = {
        "accepts": scene.calls(*ACCEPTS, after="begin", before="end"),
        "reads": scene.calls(*READS, after="begin", before="end"),
        "writes": scene.calls(*WRITES, after="begin", before="end"),
        "handles": scene.marks("handle/"),
    }
    for what, calls in seen.items():
        wanted = getattr(expected, what)
        assert {call.role for call in calls} == (set() if wanted == "kernel" else {wanted}), what


class CompletingIO:
    """I/O that the kernel does."""

    synchronous = False


@pytest.mark.parametrize(
    "make",
    [
        Reactor,
        LeaderFollowers,
        lambda io: HalfSyncHalfReactive("reactor", "lockfree", io),
    ],
    ids=["Reactor", "LeaderFollowers", "HalfSyncHalfReactive"],
)
def test_X1_asynchronous_io_is_no_reactors(make):
    with pytest.raises(TypeError, match=r"asynchronous I/O is a Proactor's"):
        make(CompletingIO())


def test_X1_what_is_no_demultiplexer_is_refused():
    for wrong in (object(), MultiplexedIO):
        with pytest.raises(TypeError, match="demultiplexer"):
            Reactor(wrong)
    with pytest.raises(TypeError, match="give the class"):
        EfficientHalfSyncHalfAsync(2, "ring", EpollDemultiplexer())
    assert MultiplexedIO.synchronous


def test_X2_the_names_of_other_reactors_are_mapped():
    """What libevent and ACE call it, and that its core is a reactor over a multiplexer."""
    text = (ROOT / "docs/patterns.md").read_text()
    assert "libevent" in text and "ACE" in text
    for name in ("HandleSet", "EventHandler", "register_handle", "handle_events", "event_base"):
        assert name in text
