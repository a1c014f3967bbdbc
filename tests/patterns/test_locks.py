"""Locks: what they cost, and where there is none.  benchmarks/ has the figures."""

import re
import shutil
import socket
import subprocess
import threading

import pytest
import witness

from pyreactor import _queue
from pyreactor.dispatchers import LeaderFollowers
from pyreactor.handlers import READ, EventHandler
from pyreactor.request_queue import RequestQueue


def test_K1_a_queue_that_is_never_empty_makes_no_system_calls():
    """Half full, with four threads that put and get: fewer than one in a hundred requests sleeps or
    wakes somebody.  test_U4_no_system_call_where_nobody_sleeps() asks strace about the same."""
    queue = RequestQueue(64)
    queue.put_many(range(32))
    count = 25_000

    def pass_on():
        for _ in range(count):
            queue.put(queue.get())

    threads = [threading.Thread(target=pass_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = queue.stats()
    calls = stats.put_sleeps + stats.get_sleeps + stats.put_wakes + stats.get_wakes
    assert stats.gets == 4 * count and calls < 0.01 * stats.gets


def lock_free_functions():
    """The functions of the compiled queue by which requests pass, with what each calls."""
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is missing (Debian package: binutils)")
    listing = subprocess.run(
        [objdump, "--disassemble", "--no-show-raw-insn", _queue.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {}
    for block in listing.split("\n\n"):
        head = re.search(r"<([\w.]+)>:$", block, re.MULTILINE)
        if head:
            found[head[1]] = set(re.findall(r"call\w?\s+.*<([\w.]+)(?:@plt)?[^>]*>", block))
    return found


def test_K1_no_lock_is_on_the_path():
    functions = lock_free_functions()
    path = re.compile(r"mpmc_(try_put|try_get|has_\w+|wait_\w+)|pr_(un)?park(_sleepers)?$")
    ours = [name for name in functions if path.match(name)]
    assert {"mpmc_try_put", "mpmc_try_get", "pr_park", "pr_unpark_sleepers"} <= set(ours)
    called = set().union(*(functions[name] for name in ours))
    assert not any("mutex" in name or "pthread" in name for name in called), called
    # And where there is one, this sees it.
    assert "pthread_mutex_lock" in functions["mutex_try_put"]


@pytest.mark.parametrize("kind", ["mpmc", "mutex"])
def test_K1_both_kinds_pass_the_same(kind):
    queue = RequestQueue(64, kind=kind)
    count = 20_000
    got = []

    def take():
        got.extend(queue)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    for number in range(count):
        queue.put(number)
    queue.close()
    for taker in takers:
        taker.join()
    assert sorted(got) == list(range(count))


def test_K3_each_handle_has_a_state_of_its_own():
    """While the handler of one is held, the others are registered, changed and handled: what is
    locked is a word, and never for the length of a handler."""
    held, go_on = threading.Event(), threading.Event()
    done = threading.Semaphore(0)

    class Holding(EventHandler):
        def __init__(self, sock):
            self.sock = sock

        def handle_event(self, handle, event_type):
            if self.sock.recv(1) == b"h":
                held.set()
                assert go_on.wait(witness.PATIENCE)
            done.release()

        def handle_close(self, handle):
            self.sock.close()

    pairs = [socket.socketpair() for _ in range(20)]
    with LeaderFollowers(threads=3) as dispatcher:
        dispatcher.register_handle(pairs[0][0], Holding(pairs[0][0]))
        pairs[0][1].send(b"h")
        assert held.wait(witness.PATIENCE)
        for ours, theirs in pairs[1:]:
            dispatcher.register_handle(ours, Holding(ours))
            theirs.send(b"x")
        for _ in pairs[1:]:
            assert done.acquire(timeout=witness.PATIENCE)
        dispatcher.modify_handle(pairs[0][0], READ)  # of the one that is held, too
        go_on.set()
        assert done.acquire(timeout=witness.PATIENCE)
    for _, theirs in pairs:
        theirs.close()
