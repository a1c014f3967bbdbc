"""CPython's own tests of concurrent.futures, on ThreadPool.

They are run where this Python's installation has them: from 3.13 on, or where the distribution
packs its test suite.  What of them does not apply stands below, with the reason.
"""

import importlib
import pathlib
import subprocess
import sys

import pytest

# The modules, and what of them asks for something that our pools do otherwise, on purpose.
THREAD_MODULES = (
    "test_as_completed",
    "test_init",
    "test_shutdown",
    "test_thread_pool",
    "test_wait",
)
THREAD_CLASSES = "Thread"
NOT_APPLICABLE = {
    "test_idle_thread_reuse": "threads are made at start, not when they are needed",
    "test_threads_terminate": "the same: it counts the threads that calls have made",
}

RUNNER = pathlib.Path(__file__).with_name("futures_runner.py")


def has_suite():
    try:
        importlib.import_module("test.test_concurrent_futures.util")
    except ImportError:
        return False
    return True


@pytest.mark.skipif(
    not has_suite(), reason="this Python comes without test.test_concurrent_futures, as 3.11.7 does"
)
@pytest.mark.parametrize("module", THREAD_MODULES)
@pytest.mark.time_limit(240)
def test_threads_of_concurrent_futures_on_thread_pool(module):
    outcome = subprocess.run(
        [sys.executable, RUNNER, "ThreadPool", module, THREAD_CLASSES, *NOT_APPLICABLE],
        capture_output=True,
        text=True,
        timeout=230,
    )
    print(outcome.stdout, outcome.stderr)
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert "Ran 0 tests" not in outcome.stderr
