"""Leader/followers: one thread waits, promotes the next, and handles what has come.

A strict dispatcher of four threads is looked at by strace while handlers are held; the others rows
are about the handle set, the thread set and the handlers themselves.
"""

import itertools
import socket
import threading
import time

import pytest
import witness
from witness import WAITS

from pyreactor.dispatchers import LeaderFollowers
from pyreactor.handle_set import HandleSet, NotLeaderError, ThreadSet, ThreadState
from pyreactor.handlers import (
    AcceptHandler,
    EchoHandler,
    EventHandler,
    SignalHandler,
    TimerHandler,
    UnboundHandlerError,
)

THREADS = 4


def play(*arguments):
    """Record three requests of which the first is held, then four that are held all at once."""
    with witness.record("stage.py", "leader-followers", f"threads={THREADS}", *arguments) as scene:
        scene.settle("idle")
        clients = [scene.connect() for _ in range(THREADS)]
        scene.settle("connected")
        scene.tell("hold", count=1)
        clients[0].sendall(b"hello")
        scene.tell("held", count=1)
        scene.settle("one held")
        for client in clients[1:]:
            scene.exchange(client, b"hello")
            scene.settle()  # whoever has answered follows again
        scene.release_at("release one", held=0)
        assert clients[0].recv(5) == b"hello"
        scene.settle("all free")
        scene.tell("hold", count=THREADS - 1)
        for client in clients[1:]:
            client.sendall(b"hello")
        scene.release_at("release all", held=THREADS - 1)
        for client in clients[1:]:
            assert client.recv(5) == b"hello"
        scene.settle("end")
        for client in clients:
            client.close()
        scene.settle("closed")
    return scene


@pytest.fixture(scope="module")
def scene():
    return play("strict=True")


@pytest.fixture(scope="module")
def delegating():
    return play("strict=True", "delegate=True")


def waits(scene, at):
    """The calls of the waiting kind in which threads are at the time of a mark."""
    return [call for call in scene.waiting(at) if call.name in WAITS]


class Nothing(EventHandler):
    """Handles nothing."""

    def handle_event(self, handle, event_type):
        return None

    def handle_close(self, handle):
        pass


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def handle_set():
    with HandleSet() as handle_set:
        yield handle_set


# --- The threads ----------------------------------------------------------------------------------


def test_L1_threads_take_turns():
    """Each of them leads, and handles."""
    count = 10_000
    left = threading.Semaphore(0)
    with LeaderFollowers(threads=THREADS) as dispatcher:
        ours, theirs = zip(*(socket.socketpair() for _ in range(8)), strict=True)

        class Counting(EventHandler):
            def __init__(self, sock):
                self.sock = sock

            def handle_event(self, handle, event_type):
                self.sock.recv(1)
                left.release()

            def handle_close(self, handle):
                self.sock.close()

        for sock in ours:
            dispatcher.register_handle(sock, Counting(sock))
        done = 0
        while done < count or not all(
            member.led and member.handled for member in dispatcher.thread_set._members()
        ):
            for peer in theirs:
                peer.send(b"x")
            for _ in theirs:
                assert left.acquire(timeout=witness.PATIENCE)
            done += len(theirs)
        counters = dispatcher.stats()
        for peer in theirs:
            peer.close()
    assert counters["violations"] == 0 and counters["promotions"] >= count


@pytest.mark.parametrize("mode", ["scene", "delegating"])
def test_L2_at_most_one_thread_waits_for_events(mode, request):
    """Over the whole run, by what the kernel saw: the waits of the threads do not overlap."""
    scene = request.getfixturevalue(mode)
    calls = scene.calls(*WAITS, after="idle", before="closed")
    assert len({call.tid for call in calls}) > 1 or mode == "delegating"
    for earlier, later in itertools.pairwise(calls):
        assert earlier.end <= later.start + 1e-5, (earlier, later)  # as exact as strace is


def test_L3_the_others_sleep(scene):
    sleeping = scene.waiting("idle")
    assert [call.name for call in sleeping if call.name not in WAITS] == ["futex"] * (THREADS - 1)
    assert len(sleeping) == THREADS


def test_L4_a_new_leader_waits_while_the_old_one_still_handles(scene):
    """And was promoted before: its wait began before the handler."""
    (wait,) = waits(scene, "one held")
    held = next(
        call
        for call in scene.marks("handle/")
        if scene.time_of("connected") < call.start < scene.time_of("one held")
    )
    assert wait.tid != held.tid
    promoted = [call for call in scene.calls("futex", tid=held.tid) if "WAKE" in call.arguments]
    assert any(scene.time_of("connected") < call.start < held.start for call in promoted)


def test_L4_promotion_comes_before_the_handler():
    with LeaderFollowers(threads=2) as dispatcher, dispatcher.trace() as trace:
        ours, theirs = socket.socketpair()
        with theirs:
            dispatcher.register_handle(ours, EchoHandler(ours))
            for _ in range(50):
                theirs.send(b"x")
                assert theirs.recv(1) == b"x"
            steps = trace.read()
    handled = [index for index, step in enumerate(steps) if step.name == "handle"]
    assert len(handled) >= 50
    for index in handled:
        own = [step for step in steps[:index] if step.thread_id == steps[index].thread_id]
        assert own[-1].name == "promote"


def test_L5_leading_and_handling_overlap(scene):
    """All but one are in a handler at once, and one waits for more."""
    assert len(waits(scene, "release all")) == 1
    assert len(scene.waiting("release all")) == THREADS
    begun = [
        call
        for call in scene.marks("handle/")
        if scene.time_of("all free") < call.start < scene.time_of("release all")
    ]
    assert len({call.tid for call in begun}) == THREADS - 1


# --- The handle set -------------------------------------------------------------------------------


def test_L6_wait_for_event_informs_the_leader_only(handle_set, pair):
    ours, theirs = pair
    thread_set = ThreadSet(handle_set)
    handle_set.register_handle(ours, Nothing())
    with pytest.raises(NotLeaderError):
        handle_set.wait_for_event(0)
    assert thread_set.join() is None
    theirs.send(b"x")
    event = handle_set.wait_for_event(witness.PATIENCE)
    handle, events = event
    assert (handle, events) == (ours.fileno(), EventHandler.mask)
    refused = []

    def wait():
        try:
            handle_set.wait_for_event(0)
        except NotLeaderError as error:
            refused.append(error)

    other = threading.Thread(target=wait)
    other.start()
    other.join()
    assert len(refused) == 1
    thread_set.leave()


def test_L7_register_handle_binds_a_handler_once(handle_set, pair):
    ours, theirs = pair
    handler = Nothing()
    theirs.send(b"x")
    assert handle_set.wait_for_event(0) is None  # an event of what is not registered cannot be
    handle_set.register_handle(ours, handler)
    assert handler.handle_set is handle_set
    with pytest.raises(KeyError, match="already registered"):
        handle_set.register_handle(ours, Nothing())
    with HandleSet() as another, pytest.raises(ValueError, match="another handle set"):
        another.register_handle(theirs, handler)
    assert handle_set.wait_for_event(0).handle == ours.fileno()


# --- The thread set -------------------------------------------------------------------------------


class Members:
    """Threads that run a thread set, and can be added and taken away."""

    def __init__(self, handle_set):
        self.thread_set = ThreadSet(handle_set)
        self.threads = []

    def add(self):
        thread = threading.Thread(target=self.thread_set.run)
        self.threads.append(thread)
        before = len(self.thread_set.states())
        thread.start()
        while len(self.thread_set.states()) == before:
            time.sleep(0.001)

    def close(self):
        self.thread_set.close()
        for thread in self.threads:
            thread.join(witness.PATIENCE)
            assert not thread.is_alive()


def test_L8_the_thread_set_manages_its_threads(handle_set):
    members = Members(handle_set)
    for count in range(1, 4):
        members.add()
        assert len(members.thread_set.states()) == count
    assert members.thread_set.leader in {thread.native_id for thread in members.threads}
    # The caller joins for a while, cannot lead as there is a leader, and leaves.
    with pytest.raises(TimeoutError):
        members.thread_set.join(0.001)
    assert len(members.thread_set.states()) == 4
    members.thread_set.leave()
    assert len(members.thread_set.states()) == 3
    members.close()
    assert members.thread_set.states() == {} and members.thread_set.leader is None
    with pytest.raises(RuntimeError, match="closed"):
        members.thread_set.join(0)


def test_L9_every_thread_is_in_one_of_three_states():
    """Looked at all the time, while events are handled."""
    seen = dict.fromkeys(ThreadState, 0)
    stop = threading.Event()
    with LeaderFollowers(threads=THREADS) as dispatcher:
        acceptor = AcceptHandler(("127.0.0.1", 0), EchoHandler)
        dispatcher.register_handle(acceptor, acceptor)

        def exchange():
            with socket.create_connection(acceptor.address, timeout=witness.PATIENCE) as client:
                while not stop.is_set():
                    client.sendall(b"hello")
                    assert client.recv(5) == b"hello"

        clients = [threading.Thread(target=exchange) for _ in range(2)]
        for client in clients:
            client.start()
        samples = 0
        while samples < 20_000 or not all(seen.values()):
            states = list(dispatcher.thread_set.states().values())
            for state in states:  # ThreadState() refuses any other
                seen[state] += 1
            samples += len(states)
        stop.set()
        for client in clients:
            client.join(witness.PATIENCE)
        assert dispatcher.stats()["violations"] == 0  # counted at every change, in C


def test_L10_the_leader_waits_on_the_handle_set(handle_set, pair):
    ours, theirs = pair
    handle_set.register_handle(ours, Nothing())
    thread_set = ThreadSet(handle_set)
    thread_set.join()
    assert thread_set.states() == {threading.get_native_id(): ThreadState.LEADER}
    assert thread_set.leader == threading.get_native_id()
    theirs.send(b"x")
    assert handle_set.wait_for_event(witness.PATIENCE) is not None
    assert thread_set.states() == {threading.get_native_id(): ThreadState.LEADER}
    thread_set.leave()


def test_L11_only_the_leader_promotes(handle_set):
    thread_set = ThreadSet(handle_set)
    with pytest.raises(NotLeaderError):
        thread_set.promote_new_leader()
    thread_set.join()
    thread_set.promote_new_leader()
    assert thread_set.states() == {threading.get_native_id(): ThreadState.PROCESSING}
    assert thread_set.leader is None  # nobody follows
    with pytest.raises(NotLeaderError):
        thread_set.promote_new_leader()
    thread_set.leave()


def test_L12_a_follower_handles_and_the_leader_stays(delegating):
    leaders = {call.tid for call in delegating.calls(*WAITS, after="connected", before="end")}
    handled = [
        call
        for call in delegating.marks("handle/")
        if delegating.time_of("connected") < call.start < delegating.time_of("release all")
    ]
    assert len(handled) >= 2 * THREADS - 1
    # Only where nobody follows has the leader to handle by itself, and so to promote.
    first = [call for call in handled if call.start < delegating.time_of("all free")]
    (leader,) = {call.tid for call in waits(delegating, "one held")}
    assert leader in leaders
    assert leader not in {call.tid for call in first}


def test_L12_delegate_gives_an_event_to_the_follower_that_is_meant(handle_set, pair):
    ours, theirs = pair
    thread_set = ThreadSet(handle_set)
    given = []
    thread_set.join()

    def follow():
        try:
            event = thread_set.join(witness.PATIENCE)
            given.append((threading.get_native_id(), event))
            handle_set.dispatch(event)
        finally:
            thread_set.leave()

    followers = [threading.Thread(target=follow) for _ in range(2)]
    for follower in followers:
        follower.start()
    while list(thread_set.states().values()).count(ThreadState.FOLLOWER) < 2:
        time.sleep(0.001)
    handled = []

    class Noting(Nothing):
        def handle_event(self, handle, event_type):
            handled.append(threading.get_native_id())
            ours.recv(1)

    handle_set.register_handle(ours, Noting())
    for follower in followers:
        theirs.send(b"x")
        event = handle_set.wait_for_event(witness.PATIENCE)
        while not thread_set.delegate(event, follower.native_id):
            time.sleep(0.001)  # it is on its way to sleep
        assert thread_set.leader == threading.get_native_id()
        follower.join(witness.PATIENCE)
    assert handled == [follower.native_id for follower in followers]
    assert not thread_set.delegate(event, 0)  # there is no such follower
    thread_set.leave()


def test_L13_after_processing_a_thread_leads_or_follows():
    """Alone it leads again; where another one leads, it follows."""
    with LeaderFollowers(threads=1) as dispatcher, dispatcher.trace() as trace:
        done = threading.Event()
        for _ in range(3):
            dispatcher.schedule_timer(TimerHandler(lambda timer: None), 0)
        dispatcher.schedule_timer(TimerHandler(lambda timer: done.set()), 0)
        assert done.wait(witness.PATIENCE)
        dispatcher.stop()
        names = [step.name for step in trace.read()]
    assert "promote handle join lead" in " ".join(names)
    with LeaderFollowers(threads=2) as dispatcher:
        go_on, done = threading.Event(), threading.Event()
        states = {}

        def slow(timer):
            assert go_on.wait(witness.PATIENCE)

        def quick(timer):
            states.update(dispatcher.thread_set.states())
            go_on.set()
            done.set()

        dispatcher.schedule_timer(TimerHandler(slow), 0)
        dispatcher.schedule_timer(TimerHandler(quick), 0)
        assert done.wait(witness.PATIENCE)
        while ThreadState.PROCESSING in dispatcher.thread_set.states().values():
            time.sleep(0.001)
        after = sorted(state.value for state in dispatcher.thread_set.states().values())
    assert list(states.values()) == [ThreadState.PROCESSING] * 2
    assert after == ["FOLLOWER", "LEADER"]


def test_L14_join_waits_to_become_the_leader(handle_set):
    thread_set = ThreadSet(handle_set)
    joined = []
    thread_set.join()

    def follow():
        joined.append(thread_set.join(witness.PATIENCE))
        joined.append(thread_set.leader == threading.get_native_id())
        thread_set.leave()

    follower = threading.Thread(target=follow)
    follower.start()
    while ThreadState.FOLLOWER not in thread_set.states().values():
        time.sleep(0.001)
    assert joined == []
    thread_set.promote_new_leader()
    follower.join(witness.PATIENCE)
    assert joined == [None, True]
    thread_set.leave()


def test_L15_a_follower_is_given_a_task(delegating):
    """The threads that handled had slept in a futex until then, and none of them waited."""
    held = next(
        call
        for call in delegating.marks("handle/")
        if delegating.time_of("connected") < call.start < delegating.time_of("one held")
    )
    slept = delegating.calls("futex", tid=held.tid)
    mark = delegating.time_of("connected")
    assert any(call.start < mark < call.end < held.start for call in slept)
    between = delegating.calls(*WAITS, tid=held.tid, after="connected", before="one held")
    assert between == []


# --- Handlers -------------------------------------------------------------------------------------


def test_L16_a_handler_has_handle_event(handle_set, pair):
    ours, theirs = pair
    called = []

    class Noting(Nothing):
        def handle_event(self, handle, event_type):
            called.append((handle, event_type))

    handle_set.register_handle(ours, Noting())
    theirs.send(b"x")
    assert handle_set.handle_events(witness.PATIENCE) >= 1
    assert called[0] == (ours.fileno(), EventHandler.mask)


def test_L17_an_unbound_handler_cannot_be_used(handle_set, pair):
    ours, _ = pair
    handler = Nothing()
    with pytest.raises(UnboundHandlerError, match="not bound"):
        handler.handle_set  # noqa: B018 - it raises
    with pytest.raises(TypeError, match="EventHandler"):
        handle_set.register_handle(ours, lambda handle, event_type: None)
    handle_set.register_handle(ours, handler)
    assert handler.handle_set is handle_set
    handle_set.remove_handle(ours)
    with pytest.raises(UnboundHandlerError):
        handler.handle_set  # noqa: B018


def test_L18_concrete_handlers_implement_handle_event(handle_set):
    class Lacking(EventHandler):
        pass

    with pytest.raises(TypeError, match="handle_event"):
        Lacking()
    for supplied in (AcceptHandler, EchoHandler):
        assert issubclass(supplied, EventHandler)
    called = []
    handle_set.schedule_timer(TimerHandler(called.append), 0)
    while not called:
        handle_set.handle_events(witness.PATIENCE)
    assert SignalHandler(called.append).handle_signal(1) is None and called[1:] == [1]


def test_L19_a_handle_is_not_dispatched_twice_at_once():
    inside = most = 0
    left = threading.Semaphore(0)

    class Counting(EchoHandler):
        def handle_input(self, handle):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                self.sock.recv(1)
            finally:
                inside -= 1
            left.release()

    with LeaderFollowers(threads=8) as dispatcher:
        ours, theirs = socket.socketpair()
        with theirs:
            dispatcher.register_handle(ours, Counting(ours))
            for _ in range(2000):
                theirs.send(b"x")
            for _ in range(2000):
                assert left.acquire(timeout=witness.PATIENCE)
    assert most == 1
