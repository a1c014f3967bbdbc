"""CPython's own tests of concurrent.futures, on ThreadPool and ProcessPool.

They are run where this Python's installation has them: from 3.13 on, or where the distribution
packs its test suite.  What of them does not apply stands below, with the reason.
"""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

# What asks for something that our pools do otherwise, on purpose, or looks inside the stdlib's.
THREADS_DIFFER = {
    "test_idle_thread_reuse": "threads are made at start, not when they are needed",
    "test_threads_terminate": "the same: it counts the threads that calls have made",
    "ThreadPoolFailingInitializerTest.test_initializer": "threads may have failed, and logged it, "
    "before the test listens",
    "test_cancel_futures": "submit() does not wait until a thread runs: all 50 may be cancelled",
}
PROCESSES_DIFFER = {
    "test_idle_process_reuse_one": "processes are made at start, not when they are needed",
    "test_idle_process_reuse_multiple": "the same",
    "test_processes_terminate": "the same",
    "test_max_tasks_per_child_defaults_to_spawn_context": "a fork server is the default",
    "test_del_shutdown": "it joins a thread and a queue of the stdlib's pool",
    "test_shutdown_no_wait": "the same",
    "test_python_finalization_error": "it lets the start of a thread of the stdlib's pool fail",
    # From 3.14 on:
    "test_shutdown_no_wait_max_tasks_gh119592": "a forgotten pool still makes the calls it has",
    "test_gc_during_max_tasks_worker_exit_gh152967": "the same",
    "test_terminate_workers": "it asks for a method within the stdlib's pool",
    "test_kill_workers": "the same",
    "test_force_shutdown_workers_invalid_op": "the same",
    "test_force_shutdown_workers_not_started_yet": "processes are made at start",
    "test_force_shutdown_during_max_tasks_worker_exit": "it changes the stdlib's pool from within",
    "test_failed_worker_replacement_breaks_pool": "the same",
}
CRASHES_DIFFER = dict.fromkeys(
    (
        "test_error_at_task_unpickle",
        "test_exit_at_task_unpickle",
        "test_error_during_result_unpickle_in_result_handler",
        "test_exit_during_result_unpickle_in_result_handler",
    ),
    "an error while unpickling fails that call with itself, and breaks no pool",
)
# Module, class, and what does not apply.  The processes' other modules, and their other start
# methods, take minutes: make futures.
RUNS = [
    *(
        ("ThreadPool", f"test_{name}", "Thread", THREADS_DIFFER)
        for name in ("as_completed", "init", "shutdown", "thread_pool", "wait")
    ),
    ("ProcessPool", "test_init", "Forkserver", PROCESSES_DIFFER),
]
if os.environ.get("PYREACTOR_ALL_FUTURES"):
    RUNS += [
        ("ProcessPool", f"test_{name}", "ProcessPool", PROCESSES_DIFFER)
        for name in ("as_completed", "process_pool", "shutdown", "wait")
    ] + [("ProcessPool", "test_deadlock", "Forkserver", CRASHES_DIFFER)]

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
@pytest.mark.parametrize(("pool", "module", "word", "differs"), RUNS)
@pytest.mark.time_limit(900)
def test_concurrent_futures_on_our_pools(pool, module, word, differs):
    outcome = subprocess.run(
        [sys.executable, RUNNER, pool, module, word, *differs],
        capture_output=True,
        text=True,
        timeout=890,
    )
    print(outcome.stdout, outcome.stderr)
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert "Ran 0 tests" not in outcome.stderr
