"""The scheduling workloads under pytest-benchmark, for looking at one path while working on it.

    pytest benchmarks/micro                       every workload on every loop installed
    pytest benchmarks/micro -k "sleep0 and pyreactor"
    pytest benchmarks/micro --benchmark-compare   against the last saved run

pytest-benchmark prints wall-clock time for the whole workload; run.py has CPU time per operation.
"""

import asyncio
import functools
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import loops
from micro.workloads import WORKLOADS

ROUNDS = 5

# What a peer leaves unclosed is not judged here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=filter(loops.is_installed, loops.NAMES))
def runner(request):
    factory = functools.partial(loops.new_event_loop, request.param)
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.mark.parametrize("name", WORKLOADS)
def test_scheduling(benchmark, runner, name):
    function, count = WORKLOADS[name]
    benchmark.group = name
    benchmark.extra_info["operations"] = count
    benchmark.pedantic(lambda: runner.run(function(count)), rounds=ROUNDS, warmup_rounds=1)
