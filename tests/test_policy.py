"""run(), new_event_loop(), EventLoopPolicy and install(): the ways a program gets the loop."""

import asyncio
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import pytest

import pyreactor

PACKAGE_PARENT = str(pathlib.Path(pyreactor.__file__).parents[1])

needs_policies = pytest.mark.skipif(
    not hasattr(asyncio, "set_event_loop_policy"), reason="asyncio has no policies from 3.16 on"
)


def in_new_process(program, *python_options):
    """Run what would change this process for good; return what it prints."""
    process = subprocess.run(
        [sys.executable, *python_options, "-c", program],
        env=dict(os.environ, PYTHONPATH=PACKAGE_PARENT),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.splitlines()


def asyncio_run(main, **options):
    """asyncio.run() on its own loop, so that both can be asked the same."""
    return asyncio.run(main, **options)


both = pytest.mark.parametrize("run", [asyncio_run, pyreactor.run])


# --- run() ----------------------------------------------------------------------------------------


def test_run_uses_a_pyreactor_loop_and_closes_it():
    async def main():
        return asyncio.get_running_loop()

    loop = pyreactor.run(main())
    assert type(loop) is pyreactor.Loop
    assert loop.is_closed()


@both
def test_run_returns_the_result(run):
    async def main():
        await asyncio.sleep(0)
        return 42

    assert run(main()) == 42


@both
def test_run_raises_what_the_coroutine_raises(run):
    async def main():
        raise LookupError("missing")

    with pytest.raises(LookupError, match="missing"):
        run(main())


@both
@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_the_debug_flag(run, debug):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert run(main(), debug=debug) is debug


@pytest.mark.parametrize("wrong", [None, 3, print, asyncio.sleep])
def test_run_refuses_what_is_no_coroutine_as_asyncio_does(wrong):
    with pytest.raises((TypeError, ValueError)) as expected:
        asyncio.run(wrong)
    with pytest.raises(expected.type) as got:
        pyreactor.run(wrong)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("arguments", [(), (None, True)])
def test_run_takes_the_arguments_asyncio_takes(arguments):
    with pytest.raises(TypeError):
        asyncio.run(*arguments)
    with pytest.raises(TypeError):
        pyreactor.run(*arguments)


@both
def test_run_inside_a_running_loop_is_refused(run):
    async def main():
        inner = asyncio.sleep(0)
        try:
            with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
                run(inner)
        finally:
            inner.close()

    run(main())


@both
def test_run_cancels_what_is_left_and_ends_generators_and_executor(run):
    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def generator():
        try:
            yield
        finally:
            ended.append("generator")

    async def main():
        task = asyncio.create_task(forever())
        iterator = generator()
        await anext(iterator)
        await asyncio.get_running_loop().run_in_executor(None, ended.append, "executor")
        return task, iterator

    task, _iterator = run(main())
    assert task.cancelled()
    assert ended == ["executor", "task", "generator"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]


@both
def test_interrupt_cancels_the_main_task_and_comes_out(run):
    ended = []

    async def main():
        try:
            os.kill(os.getpid(), 2)
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert ended == ["cancelled"]


@both
def test_run_in_another_thread(run):
    results = []

    async def main():
        return threading.current_thread().name

    thread = threading.Thread(target=lambda: results.append(run(main())), name="other")
    thread.start()
    thread.join()
    assert results == ["other"]


def test_runner_and_run_take_new_event_loop_as_factory():
    async def main():
        return type(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=pyreactor.new_event_loop) as runner:
        assert runner.run(main()) is pyreactor.Loop
    if sys.version_info >= (3, 12):
        assert asyncio.run(main(), loop_factory=pyreactor.new_event_loop) is pyreactor.Loop


# --- Importing ------------------------------------------------------------------------------------


def test_import_changes_nothing():
    seen = in_new_process(
        "import asyncio, signal, sys, threading\n"
        "def state():\n"
        "    return (asyncio.events.__dict__.get('_event_loop_policy'), asyncio.new_event_loop,\n"
        "            asyncio.SelectorEventLoop, signal.getsignal(signal.SIGINT), sys.excepthook,\n"
        "            threading.active_count(), sorted(vars(asyncio)))\n"
        "before = state()\n"
        "import pyreactor\n"
        "print(before == state())\n",
        "-W",
        "error",
    )
    assert seen == ["True"]


def test_unknown_name_is_an_ordinary_attribute_error():
    with pytest.raises(AttributeError, match="module 'pyreactor' has no attribute 'frobnicate'"):
        pyreactor.frobnicate  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'frobnicate' from 'pyreactor'"):
        from pyreactor import frobnicate  # noqa: F401


def test_star_import_takes_the_public_names_without_a_warning():
    seen = in_new_process(
        "from pyreactor import *\n"
        "print(sorted(n for n in dir() if n == '__version__' or not n.startswith('_')))\n",
        "-W",
        "error",
    )
    assert seen == [str(sorted(pyreactor.__all__))]


# --- Policies -------------------------------------------------------------------------------------


@needs_policies
def test_policy_is_asyncios_default_policy_with_our_loop():
    seen = in_new_process(
        "import asyncio, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import pyreactor\n"
        "policy = pyreactor.EventLoopPolicy()\n"
        "print(isinstance(policy, asyncio.DefaultEventLoopPolicy))\n"
        "print(pyreactor.EventLoopPolicy is type(policy), pyreactor.EventLoopPolicy)\n"
        "asyncio.set_event_loop_policy(policy)\n"
        "loop = asyncio.new_event_loop()\n"
        "print(type(loop) is pyreactor.Loop)\n"
        "loop.close()\n"
    )
    assert seen == ["True", "True <class 'pyreactor.EventLoopPolicy'>", "True"]


@needs_policies
def test_install_makes_every_new_loop_ours():
    seen = in_new_process(
        "import asyncio, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "import pyreactor\n"
        "pyreactor.install()\n"
        "async def main():\n"
        "    return type(asyncio.get_running_loop()) is pyreactor.Loop\n"
        "print(asyncio.run(main()))\n"
        "with asyncio.Runner() as runner:\n"
        "    print(runner.run(main()))\n"
    )
    assert seen == ["True", "True"]


@needs_policies
def test_deprecated_names_warn_once_and_blame_their_user():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy_class = pyreactor.EventLoopPolicy
        previous = asyncio.events._event_loop_policy
        try:
            pyreactor.install()
            assert type(asyncio.events._event_loop_policy) is policy_class
        finally:
            asyncio.events._event_loop_policy = previous
    if sys.version_info < (3, 14):
        assert caught == []
    else:
        assert [(w.category, w.filename) for w in caught] == [(DeprecationWarning, __file__)] * 2


@pytest.mark.parametrize("name", ["EventLoopPolicy", "install"])
def test_deprecated_names_are_absent_where_asyncio_has_no_policies(name):
    # As on Python 3.16.
    seen = in_new_process(
        "import asyncio.events; del asyncio.events.set_event_loop_policy\n"
        "import pyreactor\n"
        f"print(hasattr(pyreactor, {name!r}))\n"
        f"try:\n    pyreactor.{name}\nexcept AttributeError as error:\n    print(error)\n"
    )
    assert seen[0] == "False"
    assert seen[1].startswith(f"pyreactor.{name} does not exist on this Python")
    assert seen[1].endswith("use pyreactor.run(main()) or loop_factory=pyreactor.new_event_loop")
