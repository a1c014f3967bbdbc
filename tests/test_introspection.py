"""asyncio's own tools see the tasks of our loop: from inside, and from another process."""

import asyncio
import os
import subprocess
import sys

import pytest

since_314 = pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")

PROGRAM = """
import asyncio, sys
import pyreactor

async def inner():
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

async def outer():
    async with asyncio.TaskGroup() as group:
        group.create_task(inner(), name="the inner task")

async def main():
    asyncio.current_task().set_name("the main task")
    await outer()

pyreactor.run(main())
"""


async def test_a_task_is_current_and_among_all(loop):
    started = asyncio.Event()

    async def wait():
        assert asyncio.current_task().get_name() == "waiting"
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(wait(), name="waiting")
    await started.wait()
    assert asyncio.all_tasks() == {task, asyncio.current_task()}
    assert asyncio.all_tasks(loop) == {task, asyncio.current_task()}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


@since_314
async def test_the_call_graph_shows_who_awaits_whom(loop):
    async def inner():
        await asyncio.sleep(0)
        return asyncio.format_call_graph(outer_task)

    async def outer():
        return await asyncio.create_task(inner(), name="inner")

    outer_task = asyncio.create_task(outer(), name="outer")
    graph = await outer_task
    assert "outer" in graph
    assert "test_the_call_graph_shows_who_awaits_whom" in graph


@since_314
@pytest.mark.pyreactor_only
@pytest.mark.parametrize("tool", ["ps", "pstree"])
def test_another_process_sees_the_tasks(tool, tmp_path):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert program.stdout.readline() == "ready\n"
        seen = subprocess.run(
            [sys.executable, "-m", "asyncio", tool, str(program.pid)],
            capture_output=True,
            text=True,
            timeout=15,
        )
    finally:
        program.communicate("")
    if "ermission" in seen.stderr:
        pytest.skip("reading another process's memory is not permitted here (ptrace)")
    assert seen.returncode == 0, seen.stderr
    assert "the main task" in seen.stdout
    assert "the inner task" in seen.stdout
    assert program.returncode == 0
