"""A short round of what threads may do to a dispatcher at once; `make stress` has the long one."""

import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.mark.time_limit(120)
def test_threads_may_do_to_a_dispatcher_what_they_may_all_at_once():
    run = subprocess.run(
        [sys.executable, HERE / "dispatch.py", "--seconds", "6", "--seed", "1"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "calls of handlers" in run.stdout
