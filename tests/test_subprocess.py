"""Subprocesses: how they start, what they say, and how they end."""

import asyncio
import errno
import gc
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import warnings

import pytest

PIPE = asyncio.subprocess.PIPE
DEVNULL = asyncio.subprocess.DEVNULL


def python(code, *arguments, **options):
    """A Python process that runs `code`."""
    return asyncio.create_subprocess_exec(sys.executable, "-Sc", code, *arguments, **options)


async def output_of(code, *arguments, **options):
    process = await python(code, *arguments, stdout=PIPE, **options)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().strip()


class Recorder(asyncio.SubprocessProtocol):
    """What the transport says, in order."""

    def __init__(self):
        self.said = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.said.append("connection_made")

    def pipe_data_received(self, fd, data):
        self.said.append((fd, data))

    def pipe_connection_lost(self, fd, exc):
        self.said.append(f"lost {fd}")

    def process_exited(self):
        self.said.append("process_exited")

    def connection_lost(self, exc):
        self.said.append("connection_lost")
        self.lost.set_result(exc)


# Starting


async def test_standard_streams_are_pipes(loop):
    code = "import os, stat; print(*[stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (0, 1, 2)])"
    process = await python(code, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    output, _ = await process.communicate()
    assert output.split() == [b"True"] * 3


async def test_the_child_can_open_dev_stdin(loop):
    process = await python("print(open('/dev/stdin').read())", stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(b"text")
    assert output == b"text\n"


async def test_a_shell_runs_a_command(loop):
    process = await asyncio.create_subprocess_shell("echo $((6 * 7)); exit 4", stdout=PIPE)
    output, _ = await process.communicate()
    assert output == b"42\n"
    assert process.returncode == 4


async def test_a_missing_program_leaves_nothing(loop):
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec(
            "/nowhere/to/be/found", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )


async def test_a_protocol_factory_that_raises_starts_nothing(loop):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await loop.subprocess_exec(fail, sys.executable, "-c", "")


async def test_arguments_of_popen_reach_the_child(loop, tmp_path):
    assert await output_of("import os; print(os.getcwd())", cwd=tmp_path) == str(tmp_path)
    assert await output_of("import os; print(os.environ['A'])", env={"A": "b"}) == "b"
    session = "import os; print(os.getsid(0) == os.getpid())"
    assert await output_of(session, start_new_session=True) == "True"
    group = "import os; print(os.getpgid(0) == os.getpid())"
    assert await output_of(group, process_group=0) == "True"
    mask = "import os; print(oct(os.umask(0)))"
    assert await output_of(mask, umask=0o027) == "0o27"
    assert await output_of(mask, preexec_fn=lambda: os.umask(0o031) and None) == "0o31"
    size = "import fcntl; print(fcntl.fcntl(1, fcntl.F_GETPIPE_SZ))"
    assert await output_of(size, pipesize=1 << 17) == str(1 << 17)


async def test_passed_descriptors_reach_the_child_and_others_do_not(loop):
    passed, kept = os.pipe()
    os.set_inheritable(kept, True)
    try:
        code = """if True:
            import os, sys
            for fd in map(int, sys.argv[1:]):
                try:
                    os.fstat(fd)
                    print('open', end=' ')
                except OSError:
                    print('closed', end=' ')"""
        told = await output_of(code, str(passed), str(kept), pass_fds=[passed])
        assert told == "open closed"
        assert os.get_blocking(passed)
    finally:
        os.close(passed)
        os.close(kept)


async def test_passed_descriptors_keep_their_modes(loop):
    pipes = [os.pipe() for _ in range(2)]
    try:
        (waiting, _), (polled, _) = pipes
        os.set_blocking(polled, False)
        os.set_inheritable(waiting, True)
        modes = [(os.get_blocking(fd), os.get_inheritable(fd)) for fd in (waiting, polled)]
        assert modes == [(True, True), (False, False)]
        code = "import os, sys; print(*[os.get_blocking(int(fd)) for fd in sys.argv[1:]])"
        told = await output_of(code, str(waiting), str(polled), pass_fds=[waiting, polled])
        assert told == "True False"
        assert modes == [(os.get_blocking(fd), os.get_inheritable(fd)) for fd in (waiting, polled)]
    finally:
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)


async def test_an_empty_environment_is_empty(loop, monkeypatch):
    monkeypatch.setenv("OF_THE_PARENT", "set")
    code = "import os; print(os.environ.get('OF_THE_PARENT'))"
    assert await output_of(code) == "set"
    assert await output_of(code, env={}) == "None"


@pytest.mark.parametrize("part", ["program", "argument", "command", "variable", "directory"])
async def test_a_nul_is_refused(loop, part):
    with pytest.raises(ValueError, match="null byte"):
        if part == "program":
            await asyncio.create_subprocess_exec("tr\0ue")
        elif part == "argument":
            await asyncio.create_subprocess_exec("true", "an\0argument")
        elif part == "command":
            await asyncio.create_subprocess_shell("true\0")
        elif part == "variable":
            await asyncio.create_subprocess_exec("true", env={"A": "b\0c"})
        else:
            await asyncio.create_subprocess_exec("true", cwd="/\0")


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user takes root")
async def test_the_child_may_be_another_user(loop):
    process = await asyncio.create_subprocess_shell(
        "id -u; id -g; id -G", stdout=PIPE, user=65534, group=65533, extra_groups=[65532], cwd="/"
    )
    output, _ = await process.communicate()
    assert output.split() == [b"65534", b"65533", b"65533", b"65532"]


@pytest.mark.parametrize(
    "refused", [{"text": True}, {"universal_newlines": True}, {"shell": True}, {"bufsize": 4096}]
)
async def test_what_asyncio_refuses_is_refused(loop, refused):
    with pytest.raises(ValueError):  # each has a text of its own
        await loop.subprocess_exec(asyncio.SubprocessProtocol, "true", **refused)


# Talking


async def test_more_than_a_pipe_holds_goes_both_ways(loop):
    data = bytes(range(256)) * 4096
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    output, _ = await process.communicate(data)
    assert output == data
    assert process.returncode == 0


async def test_nothing_that_was_said_before_the_end_is_lost(loop):
    async def once(number):
        code = f"import os; os.write(1, b'{number}' * 30000); os._exit({number})"
        process = await python(code, stdout=PIPE)
        output, _ = await process.communicate()
        assert (output, process.returncode) == (b"%d" % number * 30000, number)

    await asyncio.gather(*map(once, range(10)))


async def test_the_protocol_hears_of_everything_in_order(loop):
    code = "import os; os.write(1, b'out'); os.write(2, b'err')"
    transport, recorder = await loop.subprocess_exec(
        Recorder, sys.executable, "-Sc", code, stdin=PIPE
    )
    assert transport.get_pid() > 0
    assert await recorder.lost is None
    assert recorder.said[0] == "connection_made"
    assert recorder.said[-1] == "connection_lost"
    assert sorted(recorder.said[1:-1], key=str) == sorted(
        [(1, b"out"), (2, b"err"), "lost 0", "lost 1", "lost 2", "process_exited"], key=str
    )
    assert recorder.said.index((1, b"out")) < recorder.said.index("lost 1")
    assert transport.get_returncode() == 0
    transport.close()


async def test_pipes_held_by_a_grandchild_delay_the_end(loop):
    code = "import os; os.fork() or os.write(1, os.read(0, 10))"
    transport, recorder = await loop.subprocess_exec(
        Recorder, sys.executable, "-Sc", code, stdin=PIPE
    )
    while "process_exited" not in recorder.said:
        await asyncio.sleep(0.01)
    assert "connection_lost" not in recorder.said
    assert transport.get_returncode() == 0
    transport.get_pipe_transport(0).write(b"late")
    await recorder.lost
    assert (1, b"late") in recorder.said
    transport.close()


async def test_writing_to_a_process_that_has_ended(loop):
    process = await python("", stdin=PIPE)
    await process.wait()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(100):
            process.stdin.write(b"x" * 100_000)
            await process.stdin.drain()
    process._transport.close()


async def test_a_pipe_transport_tells_its_pipe(loop):
    transport, recorder = await loop.subprocess_exec(Recorder, "cat", stdin=PIPE, stdout=PIPE)
    for fd in (0, 1):
        pipe = transport.get_pipe_transport(fd).get_extra_info("pipe")
        assert stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode)
    assert transport.get_pipe_transport(3) is None
    transport.get_pipe_transport(0).close()
    await recorder.lost
    transport.close()


# Ending


@pytest.mark.parametrize("code", [0, 1, 77, 255])
async def test_the_exit_code_is_told(loop, code):
    process = await asyncio.create_subprocess_shell(f"exit {code}")
    assert await process.wait() == code
    assert await process.wait() == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
async def test_the_signal_that_ended_it_is_told(loop, number):
    process = await asyncio.create_subprocess_exec("sleep", "100")
    process.send_signal(number)
    assert await process.wait() == -number


async def test_signals_after_the_end_go_to_nobody(loop, monkeypatch):
    transport, recorder = await loop.subprocess_exec(Recorder, "true")
    await recorder.lost
    monkeypatch.setattr(os, "kill", None)  # the number may be another's by now
    for send in (transport.kill, transport.terminate, lambda: transport.send_signal(10)):
        with pytest.raises(ProcessLookupError):
            send()
    transport.close()


async def test_closing_kills(loop):
    transport, recorder = await loop.subprocess_exec(Recorder, "sleep", "100", stdin=PIPE)
    assert "running" in repr(transport)
    transport.close()
    transport.close()
    assert transport.is_closing()
    await recorder.lost
    assert transport.get_returncode() == -signal.SIGKILL
    assert "returncode=-9" in repr(transport)


async def test_many_at_once(loop):
    async def once(number):
        process = await asyncio.create_subprocess_shell(f"exit {number}")
        return await process.wait()

    assert await asyncio.gather(*map(once, range(40))) == list(range(40))


@pytest.mark.parametrize("turns", range(6))
async def test_starting_may_be_cancelled(loop, turns):
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec("sleep", "100", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    )
    for _ in range(turns):
        await asyncio.sleep(0)
    if starting.done():
        process = starting.result()
        process.kill()
        await process.communicate()
        return
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.asyncio_differs("it waits for pipes that will never be closed")
async def test_pipes_that_cannot_be_connected_are_closed(loop, monkeypatch):
    async def fail(factory, pipe):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(loop, "connect_read_pipe", fail)
    with pytest.raises(OSError, match="no room"):
        await asyncio.wait_for(
            asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE), 5
        )
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.asyncio_differs("its watcher may be faster")
async def test_a_child_reaped_by_somebody_else_is_255(loop, caplog):
    process = await asyncio.create_subprocess_exec("sleep", "100")
    with caplog.at_level(logging.WARNING, "asyncio"):
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        assert await process.wait() == 255
    assert "exit status already read" in caplog.text


@pytest.mark.pyreactor_only
async def test_a_child_reaped_before_it_is_watched_is_255(loop, monkeypatch):
    class Reaped(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            os.waitpid(self.pid, 0)

    monkeypatch.setattr(subprocess, "Popen", Reaped)
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 255


@pytest.mark.asyncio_differs("its watcher finds the status gone")
async def test_a_child_that_the_program_has_polled_keeps_its_code(loop):
    process = await asyncio.create_subprocess_exec("sleep", "100")
    popen = process._transport.get_extra_info("subprocess")
    popen.kill()
    popen.wait()  # before the loop sees its end
    assert await process.wait() == -signal.SIGKILL


@pytest.mark.pyreactor_only
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSYS, errno.EPERM])
async def test_without_pidfds_a_thread_waits(loop, monkeypatch, code):
    def fail(pid, flags=0):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", fail)
    process = await asyncio.create_subprocess_shell("exit 5")
    assert await process.wait() == 5
    process = await asyncio.create_subprocess_exec("sleep", "100")
    process.kill()
    assert await process.wait() == -9


@pytest.mark.asyncio_differs("SIGCHLD may be a child watcher's", when=sys.version_info < (3, 12))
async def test_sigchld_is_the_programs_own(loop):
    heard = asyncio.Event()
    loop.add_signal_handler(signal.SIGCHLD, heard.set)
    process = await asyncio.create_subprocess_shell("exit 3")
    await heard.wait()
    assert await process.wait() == 3
    assert loop.remove_signal_handler(signal.SIGCHLD)


@pytest.mark.pyreactor_only
async def test_sigchld_ignored_loses_codes_but_nothing_else(loop):
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = await asyncio.create_subprocess_shell("exit 3")
        assert await process.wait() == 255
    finally:
        signal.signal(signal.SIGCHLD, previous)


@pytest.mark.asyncio_differs("child watchers", when=sys.version_info < (3, 12))
def test_other_threads_can_run_processes_and_nothing_warns(new_loop):
    loop = new_loop()
    codes = []

    async def run():
        process = await asyncio.create_subprocess_shell("exit 6", stdout=PIPE)
        await process.communicate()
        codes.append(process.returncode)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
        thread.start()
        thread.join()
    assert codes == [6]


@pytest.mark.pyreactor_only
def test_a_loop_closed_before_its_process_ends_leaves_no_descriptor(new_loop, open_descriptors):
    loop = new_loop()
    before = open_descriptors()

    async def start():
        return await loop.subprocess_exec(
            asyncio.SubprocessProtocol, "sleep", "100", stdin=None, stdout=None, stderr=None
        )

    transport, _ = loop.run_until_complete(start())
    popen = transport.get_extra_info("subprocess")
    transport.close()
    loop.close()
    del transport, _
    gc.collect()
    assert popen.wait() == -signal.SIGKILL
    assert not set(open_descriptors()) - set(before)
