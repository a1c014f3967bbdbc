"""How a program ends with a loop that runs, was never closed, or comes too late: never by a crash.

Each case is a program of its own, run several times, as it is, in Python's development mode and
with the allocator that notices wrong frees.
"""

import os
import subprocess
import sys
import sysconfig
import textwrap

import pytest

import pyreactor

TIMES = int(os.environ.get("EXIT_TIMES", "2"))  # what goes wrong at exit goes wrong sometimes
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # it has an allocator of its own
MODES = {
    "plain": ((), {}),
    "dev": (("-X", "dev"), {}),
    "malloc": ((), {"PYTHONMALLOC": "debug" if FREE_THREADED else "malloc_debug"}),
}

PRELUDE = """
import asyncio, atexit, os, signal, socket, sys, threading, time
import {module} as library
new_loop = library.{name}


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def connect():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return server, reader, writer
"""


@pytest.fixture(params=MODES)
def run_program(request, loop_type):
    """Run a program some times; its output, which has to be the same each time, and its status."""
    options, environment = MODES[request.param]
    root = os.path.dirname(os.path.dirname(pyreactor.__file__))
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = dict(
        os.environ, **environment, PYTHONPATH=os.pathsep.join(paths), PYTHONWARNINGS="ignore"
    )

    def run(program):
        head = PRELUDE.format(module=loop_type.__module__, name=loop_type.__qualname__)
        command = [sys.executable, "-X", "faulthandler", *options, "-c"]
        command.append(head + textwrap.dedent(program))
        # asyncio is here to test the programs.
        times = TIMES if loop_type is pyreactor.Loop else 1
        ends = {run_once(command, environment) for _ in range(times)}
        assert len(ends) == 1, ends
        return ends.pop()

    return run


def run_once(command, environment):
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode >= 0, f"ended by signal {-done.returncode}:\n{done.stderr}"
    assert "Fatal Python error" not in done.stderr, done.stderr
    return done.returncode, done.stdout


pytestmark = pytest.mark.time_limit(180)


def test_a_daemon_thread_runs_a_loop_at_exit(run_program):
    assert run_program("""
        def run():
            loop = new_loop()
            async def main():
                held.append(await connect())
                started.set()
                while True:
                    await asyncio.sleep(0)
            loop.run_until_complete(main())

        held, started = [], threading.Event()
        threading.Thread(target=run, daemon=True).start()
        started.wait()
        print("the end")
    """) == (0, "the end\n")


def test_a_daemon_thread_sleeps_in_a_loop_at_exit(run_program):
    assert run_program("""
        def run():
            loop = new_loop()
            loop.call_soon(started.set)
            loop.run_forever()

        started = threading.Event()
        threading.Thread(target=run, daemon=True).start()
        started.wait()
        print("the end")
    """) == (0, "the end\n")


def test_a_callback_exits(run_program):
    assert run_program("""
        loop = new_loop()
        loop.run_until_complete(connect())
        loop.call_soon(sys.exit, 3)
        loop.run_forever()
    """) == (3, "")


def test_a_protocol_exits(run_program):
    assert run_program("""
        class Exit(asyncio.Protocol):
            def data_received(self, data):
                sys.exit(4)

        async def main():
            near, far = socket.socketpair()
            await asyncio.get_running_loop().create_connection(Exit, sock=near)
            far.send(b"x")
            await asyncio.sleep(10)

        new_loop().run_until_complete(main())
    """) == (4, "")


def test_a_loop_is_never_closed_with_all_it_holds(run_program):
    assert run_program("""
        loop = new_loop()
        held = loop.run_until_complete(connect())
        loop.call_later(1000, print)
        loop.call_soon(print)
        loop.call_soon_threadsafe(print)
        loop.add_signal_handler(signal.SIGUSR1, print)
        near, far = socket.socketpair()
        loop.add_reader(near, print)
        print("the end")
    """) == (0, "the end\n")


def test_a_loop_is_dropped_with_all_it_holds_in_a_cycle(run_program):
    assert run_program("""
        def work():
            loop = new_loop()
            held = loop.run_until_complete(connect())
            loop.me = loop
            loop.call_later(1000, print, loop, held)

        work()
        print("the end")
    """) == (0, "the end\n")


def test_a_loop_runs_in_atexit(run_program):
    assert run_program("""
        def last():
            print(loop.run_until_complete(asyncio.sleep(0.001, "at exit")))
            loop.close()

        loop = new_loop()
        held = loop.run_until_complete(connect())
        atexit.register(last)
    """) == (0, "at exit\n")


def test_a_loop_is_made_in_atexit(run_program):
    assert run_program("""
        def last():
            loop = new_loop()
            print(loop.run_until_complete(asyncio.sleep(0.001, "at exit")))
            loop.close()

        atexit.register(last)
    """) == (0, "at exit\n")


def test_an_object_outlives_the_modules(run_program):
    assert run_program("""
        class Last:
            def __del__(self):
                self.loop.call_soon(id, self.loop)
                self.loop.close()

        last = Last()
        last.loop = new_loop()
        last.held = last.loop.run_until_complete(connect())
        sys.last_of_all = last
    """) == (0, "")


@pytest.mark.pyreactor_only
@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs interpreters with a GIL of their own")
def test_a_subinterpreter_refuses_clearly_or_works(run_program):
    status, output = run_program("""
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        number = interpreters.create()
        code = '''
        try:
            import pyreactor
        except ImportError as exc:
            print("refused:", exc)
        else:
            import asyncio
            loop = pyreactor.new_event_loop()
            print(loop.run_until_complete(asyncio.sleep(0, "works")))
            loop.close()
        '''
        import textwrap
        interpreters.run_string(number, textwrap.dedent(code))
        sys.stdout.flush()
        interpreters.destroy(number)
    """)
    assert status == 0
    assert output == "works\n" or (output.startswith("refused: ") and "interpreter" in output)
