"""The loop under test, and what every test has to leave behind: nothing.

A test that takes `loop` or `new_loop` runs once on asyncio's own selector loop and once on
pyreactor.  At teardown no descriptor may be left open, no error may have been reported that the
test did not ask for, and pyreactor's counters of live objects have to be zero.  An `async def`
test runs on `loop`.
"""

import asyncio
import gc
import inspect
import os
import platform
import signal
import sys

import pytest

import pyreactor

# One backend per run; `PYREACTOR_BACKEND=io_uring pytest` runs the suite on the other.
BACKEND = os.environ.setdefault("PYREACTOR_BACKEND", "epoll")
LOOP_TYPES = {"asyncio": asyncio.SelectorEventLoop, f"pyreactor-{BACKEND}": pyreactor.Loop}
TEST_SECONDS_MAX = 20

call_failed = pytest.StashKey[bool]()


class TestHangs(KeyboardInterrupt):
    """Raised in a test that does not end; a loop has to let a KeyboardInterrupt through."""


def pytest_configure(config):
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for marker in (
        "aiofiles_differs(reason): not with aiofiles, which behaves otherwise there",
        "asyncio_differs(reason, when=True): not on asyncio, which behaves otherwise there;"
        " `when` limits it to some Python versions",
        "epoll_only(reason): not with io_uring, which behaves otherwise there",
        "pyreactor_only: tests something asyncio does not have",
        f"time_limit(seconds): how long the test may take; {TEST_SECONDS_MAX} s without it",
    ):
        config.addinivalue_line("markers", marker)


def pytest_report_header():
    loop = pyreactor.Loop()
    backend = loop.backend
    loop.close()
    return f"backend: {backend}, kernel: {platform.release()}"


def pytest_collection_modifyitems(config, items):
    kept, deselected = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        on_asyncio = callspec is not None and callspec.params.get("loop_type") == "asyncio"
        if on_asyncio and item.get_closest_marker("pyreactor_only"):
            deselected.append(item)
            continue
        kept.append(item)
        for marker in item.iter_markers("epoll_only"):
            if BACKEND == "io_uring" and not on_asyncio:
                item.add_marker(pytest.mark.skip(reason=f"io_uring differs: {marker.args[0]}"))
        for marker in item.iter_markers("asyncio_differs"):
            (reason,) = marker.args
            if on_asyncio and marker.kwargs.get("when", True):
                item.add_marker(pytest.mark.skip(reason=f"asyncio differs: {reason}"))
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept


def pytest_collection_finish():
    """Keep the collector off the modules and tests, so that collecting after each test is cheap."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run the test, on `loop` if it is a coroutine, and interrupt it if it hangs."""

    hangs = False
    marker = pyfuncitem.get_closest_marker("time_limit")
    (seconds_max,) = marker.args if marker else (TEST_SECONDS_MAX,)

    def interrupt(signum, frame):
        nonlocal hangs
        hangs = True
        raise TestHangs

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds_max)
    try:
        result = pyfuncitem.obj(**arguments)
        if inspect.iscoroutine(result):
            pyfuncitem.funcargs["loop"].run_until_complete(result)
    except TestHangs:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert not hangs, f"the test still ran after {seconds_max} s"
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.stash[call_failed] = report.failed
    return report


@pytest.fixture(autouse=True, scope="module")
def _no_helpers_of_multiprocessing():
    """Each module leaves without multiprocessing's fork server and tracker, which are children."""
    yield
    if server := sys.modules.get("multiprocessing.forkserver"):
        server._forkserver._stop()
    if tracker := sys.modules.get("multiprocessing.resource_tracker"):
        tracker._resource_tracker._stop()


@pytest.fixture
def open_descriptors():
    """A function that tells what each of the process's descriptors refers to, by number."""

    def open_descriptors():
        descriptors = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                pass  # the descriptor listdir() itself used
        return descriptors

    return open_descriptors


def finish(loop):
    """Cancel what is left on the loop, let it end, and close the loop."""
    if loop.is_closed():
        return
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    if leftovers:
        loop.run_until_complete(asyncio.wait(leftovers))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(params=LOOP_TYPES)
def loop_type(request):
    """The class of the loop under test."""
    return LOOP_TYPES[request.param]


@pytest.fixture
def new_loop(request, loop_type, open_descriptors):
    """Make loops of the kind under test; those the test left open are finished for it."""
    gc.collect()
    before = open_descriptors()
    loops = []

    def make():
        loops.append(loop_type())
        return loops[-1]

    yield make
    for loop in loops:
        finish(loop)
    if request.node.stash.get(call_failed, True):
        return  # its traceback keeps objects alive
    gc.collect()
    after = open_descriptors()
    assert after == before, "descriptors leaked, or closed that belong to somebody else"
    for loop in loops:
        if isinstance(loop, pyreactor.Loop):
            assert not any(loop._live_counts().values()), loop._live_counts()


@pytest.fixture
def _reports():
    return []


@pytest.fixture
def loop(request, new_loop, _reports):
    """A loop whose reported errors fail the test unless it asked for `reported_errors`."""
    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: _reports.append(context))
    yield loop
    finish(loop)
    gc.collect()  # a future with an unseen exception reports when it goes
    unexpected = [] if "reported_errors" in request.fixturenames else list(map(repr, _reports))
    _reports.clear()
    assert not unexpected, "errors were reported to the loop's exception handler"


@pytest.fixture
def reported_errors(_reports):
    """The contexts given to the loop's exception handler so far."""
    return _reports
