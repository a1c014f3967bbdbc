"""The scheduling workloads under pytest-benchmark, for looking at one path while working on it.

    pytest benchmarks/micro                       every workload on every loop installed
    pytest benchmarks/micro -k "sleep0 and pyreactor"
    pytest benchmarks/micro --benchmark-compare   against the last saved run

pytest-benchmark prints wall-clock time for the whole workload; run.py has CPU time per operation.
"""

import asyncio
import importlib
import importlib.util
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from workloads import WORKLOADS

LOOPS = ["asyncio", "pyreactor", "uvloop", "rloop", "rsloop", "zuvloop"]
INSTALLED = [name for name in LOOPS if importlib.util.find_spec(name) is not None]
ROUNDS = 5

# What a peer leaves unclosed is not judged here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=INSTALLED)
def runner(request):
    new_event_loop = importlib.import_module(request.param).new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        yield runner


@pytest.mark.parametrize("name", WORKLOADS)
def test_scheduling(benchmark, runner, name):
    function, count = WORKLOADS[name]
    benchmark.group = name
    benchmark.extra_info["operations"] = count
    benchmark.pedantic(lambda: runner.run(function(count)), rounds=ROUNDS, warmup_rounds=1)
