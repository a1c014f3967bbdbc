"""The tests of this folder run programs in processes of their own, under an injector of faults."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture
def run_under_faults():
    """A function that runs a program of this folder and returns its output if it succeeds."""
    if shutil.which("cc") is None:
        message = "no C compiler for the injector of faults (Debian package: gcc)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)

    def run(program, *arguments):
        command = [sys.executable, HERE / program, *arguments]
        done = subprocess.run(
            command,
            # The faults are in the C library's calls, and io_uring makes none.
            env=dict(os.environ, PYREACTOR_BACKEND="epoll"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}"
        return done.stdout

    return run
