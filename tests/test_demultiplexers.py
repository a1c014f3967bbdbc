"""The demultiplexers: drop-in selectors, and what they add to these."""

import os
import resource
import selectors
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from pyreactor.demultiplexers import (
    EVENT_EXCEPTION,
    EVENT_READ,
    EVENT_WRITE,
    EpollDemultiplexer,
    PollDemultiplexer,
    SelectDemultiplexer,
    SignalDemultiplexer,
    UringDemultiplexer,
)

CLASSES = [
    SelectDemultiplexer,
    PollDemultiplexer,
    EpollDemultiplexer,
    UringDemultiplexer,
    SignalDemultiplexer,
]
PATIENCE = 15.0


def make(cls, **options):
    try:
        return cls(**options)
    except OSError as error:
        if cls is not UringDemultiplexer or os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture(params=CLASSES)
def demultiplexer(request):
    with make(request.param) as demultiplexer:
        yield demultiplexer


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


CPYTHONS_TESTS = """
    import sys, unittest
    from test import test_selectors
    from pyreactor import demultiplexers

    cls = getattr(demultiplexers, sys.argv.pop(1))
    bases = [test_selectors.BaseSelectorTestCase]
    if cls.__name__ in ("PollDemultiplexer", "EpollDemultiplexer", "UringDemultiplexer"):
        bases.append(test_selectors.ScalableSelectorMixIn)
    test_case = type(cls.__name__, (*bases, unittest.TestCase), {"SELECTOR": cls})
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(test_case)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(not (result.wasSuccessful() and result.testsRun > 15))
"""


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_passes_cpythons_test_selectors(cls):
    pytest.importorskip("test.test_selectors", reason="this Python has no test package")
    make(cls).close()
    program = textwrap.dedent(CPYTHONS_TESTS)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program, cls.__name__],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_is_a_selector(demultiplexer):
    assert isinstance(demultiplexer, selectors.BaseSelector)


def test_wait_returns_descriptors(demultiplexer, pair):
    ours, theirs = pair
    demultiplexer.register(ours, EVENT_READ)
    assert demultiplexer.wait(0) == []
    theirs.send(b"x")
    assert demultiplexer.wait(PATIENCE) == [(ours.fileno(), EVENT_READ)]
    demultiplexer.modify(ours, EVENT_READ | EVENT_WRITE)
    assert demultiplexer.wait(PATIENCE) == [(ours.fileno(), EVENT_READ | EVENT_WRITE)]
    demultiplexer.remove(ours)
    assert demultiplexer.wait(0) == []


def test_urgent_data_is_an_event(demultiplexer):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            with server:
                demultiplexer.register(server, EVENT_EXCEPTION)
                client.send(b"!", socket.MSG_OOB)
                assert demultiplexer.wait(PATIENCE) == [(server.fileno(), EVENT_EXCEPTION)]
                demultiplexer.unregister(server)


def test_changes_from_another_thread_end_a_wait(demultiplexer, pair):
    ours, theirs = pair
    theirs.send(b"x")
    found = []
    waiter = threading.Thread(target=lambda: found.extend(demultiplexer.wait(PATIENCE)))
    waiter.start()
    demultiplexer.register(ours, EVENT_READ)
    waiter.join()
    assert found == [(ours.fileno(), EVENT_READ)]


def test_a_second_thread_may_not_wait(demultiplexer, pair):
    ours, theirs = pair
    demultiplexer.register(ours, EVENT_READ)

    def wait():
        found = []
        while not found:
            try:
                found = demultiplexer.wait(PATIENCE)
            except RuntimeError:
                pass  # the other thread was first, this time

    waiter = threading.Thread(target=wait)
    waiter.start()
    try:
        with pytest.raises(RuntimeError, match="another thread waits"):
            while True:
                demultiplexer.wait(0)
    finally:
        theirs.send(b"x")
        waiter.join()


def test_closed_is_closed(demultiplexer, pair):
    demultiplexer.register(pair[0], EVENT_READ)
    demultiplexer.close()
    demultiplexer.close()
    with pytest.raises(ValueError, match="closed"):
        demultiplexer.wait(0)
    with pytest.raises(ValueError, match="closed"):
        demultiplexer.register(pair[0], EVENT_READ)


def test_five_thousand_descriptors_are_no_matter_to_poll_and_epoll():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5100:
        pytest.skip(f"only {hard} descriptors are allowed here: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5100), hard))
    ours, theirs = socket.socketpair()
    copies = [os.dup(ours.fileno()) for _ in range(5000)]
    try:
        for cls in (PollDemultiplexer, EpollDemultiplexer):
            with cls() as demultiplexer:
                for fd in copies:
                    demultiplexer.register(fd, EVENT_READ)
                assert demultiplexer.wait(0) == []
                theirs.send(b"x")
                assert sorted(demultiplexer.wait(PATIENCE)) == [(fd, EVENT_READ) for fd in copies]
                ours.recv(1)
    finally:
        for fd in copies:
            os.close(fd)
        ours.close()
        theirs.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_select_says_what_it_has_no_room_for():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    low = os.dup(0)
    try:
        os.dup2(low, 1024)
        with SelectDemultiplexer() as demultiplexer:
            with pytest.raises(ValueError, match=r"descriptor 1024: FD_SETSIZE is 1024; use Poll"):
                demultiplexer.register(1024, EVENT_READ)
            assert 1024 not in demultiplexer.get_map()
        os.close(1024)
    finally:
        os.close(low)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_epoll_reports_an_edge_once(pair):
    ours, theirs = pair
    with EpollDemultiplexer("edge") as demultiplexer:
        demultiplexer.register(ours, EVENT_READ)
        theirs.send(b"x")
        assert demultiplexer.wait(PATIENCE)
        assert demultiplexer.wait(0) == []


def test_epoll_reports_once_until_modified(pair):
    ours, theirs = pair
    with EpollDemultiplexer(one_shot=True) as demultiplexer:
        demultiplexer.register(ours, EVENT_READ)
        theirs.send(b"x")
        assert demultiplexer.wait(PATIENCE)
        assert demultiplexer.wait(0) == []
        demultiplexer.modify(ours, EVENT_READ)
        assert demultiplexer.wait(PATIENCE)


def test_an_exclusive_set_is_woken_alone(pair):
    ours, theirs = pair
    with EpollDemultiplexer(exclusive=True) as one, EpollDemultiplexer(exclusive=True) as other:
        for demultiplexer in (one, other):
            demultiplexer.register(ours, EVENT_READ)
        theirs.send(b"x")
        assert one.wait(PATIENCE) == other.wait(PATIENCE) == [(ours.fileno(), EVENT_READ)]
        one.modify(ours, EVENT_WRITE)
        assert one.wait(PATIENCE) == [(ours.fileno(), EVENT_WRITE)]


def test_epoll_refuses_what_the_kernel_does_not_have():
    with pytest.raises(ValueError, match="both one-shot and exclusive"):
        EpollDemultiplexer(one_shot=True, exclusive=True)
    with pytest.raises(ValueError, match="'level' or 'edge'"):
        EpollDemultiplexer("none")


def test_epoll_has_a_descriptor():
    with EpollDemultiplexer() as demultiplexer:
        assert os.readlink(f"/proc/self/fd/{demultiplexer.fileno()}") == "anon_inode:[eventpoll]"


def test_sigio_refuses_what_cannot_signal():
    with SignalDemultiplexer() as demultiplexer:
        fd = os.eventfd(0)
        try:
            with pytest.raises(PermissionError):
                demultiplexer.register(fd, EVENT_READ)
            assert len(demultiplexer.get_map()) == 0
        finally:
            os.close(fd)


WITHOUT_IO_URING = """
    import ctypes, errno, struct
    from pyreactor.demultiplexers import UringDemultiplexer

    FORBID_425 = struct.pack(
        "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x50000 | errno.EPERM,
        0x06, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(FORBID_425)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0) == 0
    try:
        UringDemultiplexer()
    except PermissionError as error:
        print(error)
"""


def test_a_missing_io_uring_is_named():
    program = textwrap.dedent(WITHOUT_IO_URING)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "this machine has no io_uring: Operation not permitted" in done.stdout, done.stderr
