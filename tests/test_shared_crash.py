"""The shared queue while its processes are killed: tests/stress/shared_crash.c, in its short form.

`make crash` is the long one, with 10,000 kills for each policy.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = [
    "-std=c11",
    "-O1",
    "-g",
    "-D_GNU_SOURCE",
    "-DPR_CRASH_POINTS",
    "-Wall",
    "-Wextra",
    "-Werror",
]
POLICIES = ("at-most-once", "at-least-once")
KILLS = 250
KILLS_AT_POINT = 20

# Every step of the sources that is marked.
POINTS = {
    point
    for source in [*(ROOT / "csrc" / "shm").glob("*.c"), ROOT / "csrc" / "queue" / "parker.c"]
    for point in re.findall(r'PR_CRASH_POINT\("([^"]+)"\)', source.read_text())
}
NOT_TAKEN = {"give back: returned"}  # the program's readers give nothing back while they live


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile the program."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("needs a C compiler: install gcc")
    path = tmp_path_factory.mktemp("crash") / "shared_crash"
    source = ROOT / "tests" / "stress" / "shared_crash.c"
    command = [compiler, *FLAGS, f"-I{ROOT}/csrc/include", source, "-pthread", "-o", path]
    subprocess.run(command, check=True)
    return path


def run(program, *arguments):
    outcome = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=180
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return {
        name: (int(passed), int(died))
        for name, passed, died in re.findall(
            r"^  (.+?) +passed +(\d+), died +(\d+)$", outcome.stdout, re.MULTILINE
        )
    }


@pytest.mark.time_limit(200)
def test_processes_that_are_killed_leave_the_queue_whole(program):
    passed = set()
    for policy in POLICIES:
        steps = run(program, policy, KILLS, os.getpid())
        assert sum(died for _, died in steps.values()) > KILLS / 4
        passed |= {name for name, (times, _) in steps.items() if times}
    assert passed >= POINTS - NOT_TAKEN, "a step that no run takes is not tested"


@pytest.mark.parametrize("point", sorted(POINTS - NOT_TAKEN))
@pytest.mark.time_limit(200)
def test_processes_may_die_at_every_step(program, point):
    for policy in POLICIES:
        run(program, policy, KILLS_AT_POINT, os.getpid(), point)
