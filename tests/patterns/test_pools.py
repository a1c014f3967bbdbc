"""Pools and shared memory: what is made at start, and what the kernel sees after that."""

import asyncio
import concurrent.futures
import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc

import pytest
import waiting
from accepting import accepting, is_alive

import pyreactor
from pyreactor.dispatchers import HalfSyncHalfReactive, Reactor
from pyreactor.handlers import AcceptHandler, EchoHandler
from pyreactor.pools import BufferPool, ConnectionPool, ProcessPool, ThreadPool, WorkerDied
from pyreactor.shm import SharedRequestQueue

STAGE = pathlib.Path(__file__).with_name("pools_stage.py")
PATIENCE = 30
wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)
GROWING = "mmap,mremap,brk,clone,clone3,fork,vfork,connect,accept4,socket,open,openat,memfd_create"
WRITING = "write,writev,pwrite64,sendto,sendmsg,sendmmsg,splice,vmsplice,tee,sendfile"


def window(tmp_path, calls, *arguments):
    """Run a program of the stage under strace: the calls between its marks, and its output."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: make deps")
    recording = tmp_path / "strace"
    command = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-o",
        recording,
        "-e",
        f"trace=access,{calls}",
    ]
    command += [sys.executable, STAGE, *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert outcome.returncode == 0, outcome.stderr
    lines = recording.read_text().splitlines()
    marks = [index for index, line in enumerate(lines) if "/witness/" in line]
    assert len(marks) == 2
    return [line for line in lines[marks[0] + 1 : marks[1]] if "(" in line], outcome.stdout


@pytest.mark.time_limit(180)
def test_Q1_nothing_is_made_after_the_start(tmp_path):
    calls, output = window(tmp_path, GROWING, "requests_through_pools", "100000")
    assert calls == []
    assert output.split() == ["2", "0"]


def test_Q2_buffers_are_lent_and_not_allocated():
    pool = BufferPool(2, 4096)

    def use():
        for _ in range(1000):
            with pool.acquire() as one, memoryview(one) as memory:
                memory[:4] = b"data"

    use()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        use()
        assert tracemalloc.get_traced_memory()[0] - before < 1000
    finally:
        tracemalloc.stop()
    first, second = pool.acquire(), pool.acquire()
    assert pool.try_acquire() is None  # which is back-pressure, not a failure
    with pytest.raises(TimeoutError):
        pool.acquire(timeout=0.01)
    first.release()
    assert pool.acquire(timeout=PATIENCE).address == first.address
    second.release()


@pytest.mark.time_limit(120)
def test_Q3_a_killed_process_is_replaced_and_its_request_fails_or_is_retried(tmp_path):
    for retries in (0, 1):
        with ProcessPool(3, retries=retries) as pool:
            pids = pool.pids()
            assert len(pids) == 3
            assert all(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)
            path = tmp_path / f"pid-{retries}"
            future = pool.submit(tell_pid_and_wait_once, path)
            wait_until(lambda path=path: path.exists() and path.read_text())
            killed = int(path.read_text())
            os.kill(killed, signal.SIGKILL)
            if retries:
                assert future.result(PATIENCE) != killed
            else:
                with pytest.raises(WorkerDied, match="SIGKILL"):
                    future.result(PATIENCE)
            wait_until(lambda killed=killed: len(pool.pids()) == 3 and killed not in pool.pids())


def tell_pid_and_wait_once(path):
    """Waits to be killed the first time."""
    first = not path.exists()
    if first:
        path.write_text(str(os.getpid()))
        time.sleep(PATIENCE)
    return os.getpid()


def test_Q4_the_thread_pool_is_an_executor_for_threads_and_loops():
    async def main():
        return await asyncio.gather(*(asyncio.to_thread(pow, 2, n) for n in range(50)))

    with ThreadPool(2) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        assert list(pool.map(pow, [2] * 5, range(5))) == [1, 2, 4, 8, 16]
    for loop in (asyncio.SelectorEventLoop(), pyreactor.new_event_loop()):
        loop.set_default_executor(ThreadPool(2))
        try:
            assert loop.run_until_complete(main()) == [2**n for n in range(50)]
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


def test_Q5_connections_are_there_before_the_first_use_and_dead_ones_replaced():
    def use(connection):
        """Ask the other end, which is the one that has been accepted from this port."""
        port = connection.getsockname()[1]
        (end,) = [one for one in accepted if one.fileno() >= 0 and one.getpeername()[1] == port]
        connection.sendall(b"question")
        assert end.recv(8) == b"question"
        end.sendall(b"answer")
        assert connection.recv(6) == b"answer"

    with (
        accepting() as (address, accepted),
        ConnectionPool(
            lambda: socket.create_connection(address), min_size=4, check=is_alive
        ) as pool,
    ):
        wait_until(lambda: len(accepted) == 4)
        for _ in range(1000):
            with pool.connection() as connection:
                use(connection)
        assert len(accepted) == pool.stats()["opened"] == 4
        accepted[0].close()
        accepted[3].close()
        lent = [pool.acquire(PATIENCE) for _ in range(4)]
        wait_until(lambda: len(accepted) == 6)
        for connection in lent:
            use(connection)
            pool.release(connection)
        assert pool.stats()["opened"] == 6


@pytest.mark.time_limit(180)
@pytest.mark.parametrize(
    ("program", "mebibytes"), [("bytes_between_processes", 1024), ("bytes_through_a_pool", 64)]
)
def test_D3_bulk_data_goes_through_shared_memory(tmp_path, program, mebibytes):
    calls, output = window(tmp_path, WRITING, program, str(mebibytes))
    assert output == "True\n"
    written = sum(int(match[1]) for line in calls if (match := re.search(r"= (\d+)", line)))
    assert written < 1 << 20


def serve_and_compute(dispatcher, pool):
    """What an echo service of the dispatcher's, and calls of the pool's, answer."""
    acceptor = AcceptHandler(("127.0.0.1", 0), EchoHandler)
    dispatcher.register_handle(acceptor, acceptor)
    answers = []
    with dispatcher, socket.create_connection(acceptor.address, timeout=PATIENCE) as client:
        for number in range(50):
            call = pool.submit(pow, 2, number)
            client.sendall(b"%8d" % number)
            answers.append((client.recv(8, socket.MSG_WAITALL), call.result(PATIENCE)))
    return answers


@pytest.mark.parametrize("kind", [Reactor, HalfSyncHalfReactive])
def test_U6_the_queue_of_a_pool_is_the_dispatchers(kind):
    expected = [(b"%8d" % number, 2**number) for number in range(50)]
    for queue in (None, pyreactor.RequestQueue(4), pyreactor.RequestQueue(64, kind="mutex")):
        with ThreadPool(2, queue=queue) as pool:
            dispatcher = kind(workers=1, queue=pool.queue)
            assert pool.queue is dispatcher.queue
            assert serve_and_compute(dispatcher, pool) == expected


def test_U6_the_pools_queues_are_request_queues():
    queue = pyreactor.RequestQueue(64)
    with ThreadPool(2, queue=queue) as pool:
        assert pool.queue is queue
        replaced = [pool.submit(pow, 2, n).result(PATIENCE) for n in range(10)]
    for kind in ("mpmc", "mutex"):
        with ThreadPool(2, queue=pyreactor.RequestQueue(4, kind=kind)) as pool:
            assert [pool.submit(pow, 2, n).result(PATIENCE) for n in range(10)] == replaced
    with ProcessPool(1) as pool:
        assert isinstance(pool.queue, SharedRequestQueue)
