"""Several loops in several threads."""

import asyncio
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

THREADS = 8


def in_threads(function, *arguments, threads=THREADS):
    """Call the function once per thread, all starting together; the results in order."""
    barrier = threading.Barrier(threads)

    def run(number):
        barrier.wait()
        return function(number, *arguments)

    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(run, range(threads)))


async def talk_to_oneself(rounds):
    """Serve, connect, and send each number forth and back."""

    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line)
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    total = 0
    for number in range(rounds):
        writer.write(b"%d\n" % number)
        total += int(await reader.readline())
    writer.close()
    await writer.wait_closed()
    await served.wait()
    server.close()
    await server.wait_closed()
    return total


@pytest.mark.parametrize(("threads", "rounds"), [(THREADS, 200), (50, 20)])
def test_every_thread_can_have_a_loop(new_loop, threads, rounds):
    def work(number):
        loop = new_loop()
        total = loop.run_until_complete(talk_to_oneself(rounds))
        loop.close()
        return total

    assert in_threads(work, threads=threads) == [sum(range(rounds))] * threads


def test_loops_made_in_one_thread_can_run_in_others(new_loop):
    loops = [new_loop() for _ in range(THREADS)]

    def work(number):
        loop = loops[number]
        loop.call_soon(lambda: None)
        assert loop.run_until_complete(talk_to_oneself(20)) == sum(range(20))

    in_threads(work)
    for loop in loops:
        loop.close()


def test_a_loop_can_move_from_thread_to_thread_between_runs(loop):
    for _ in range(3):
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(loop.run_until_complete, talk_to_oneself(5)).result() == 10
    assert loop.run_until_complete(talk_to_oneself(5)) == 10


def test_loops_can_be_made_and_closed_in_many_threads(new_loop):
    def work(number):
        for _ in range(50):
            loop = new_loop()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    in_threads(work)


def test_loops_wake_each_other_in_a_ring(new_loop):
    loops = [new_loop() for _ in range(THREADS)]
    rounds = 100
    passed = []

    def work(number):
        loops[number].run_forever()

    def receive(number, round_number):
        passed.append((round_number, number))
        following = (number + 1) % THREADS
        if not following:
            round_number += 1
        if round_number == rounds:
            for loop in loops:
                loop.call_soon_threadsafe(loop.stop)
        else:
            loops[following].call_soon_threadsafe(receive, following, round_number)

    loops[0].call_soon(receive, 0, 0)
    in_threads(work)
    expected = [(turn, number) for turn in range(rounds) for number in range(THREADS)]
    assert passed == expected
    for loop in loops:
        loop.close()


def test_all_loops_can_call_one(loop):
    counts = [0] * THREADS
    each = 300

    def called(number):
        counts[number] += 1
        if sum(counts) == THREADS * each:
            loop.stop()

    def work(number):
        for _ in range(each):
            loop.call_soon_threadsafe(called, number)

    calling = threading.Thread(target=in_threads, args=(work,))
    calling.start()
    loop.run_forever()
    calling.join()
    assert counts == [each] * THREADS


def test_every_thread_has_its_own_running_loop(new_loop):
    async def who():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    def work(number):
        loop = new_loop()
        assert loop.run_until_complete(who()) is loop
        loop.close()
        return loop

    assert len(set(in_threads(work))) == THREADS


def test_a_coroutine_can_be_sent_to_the_loop_of_another_thread(loop, new_loop):
    other = new_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    async def main():
        future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001, "result"), other)
        return await asyncio.wrap_future(future)

    assert loop.run_until_complete(main()) == "result"
    other.call_soon_threadsafe(other.stop)
    thread.join()
    other.close()


def test_a_loop_in_a_thread_leaves_signals_to_the_main_thread(new_loop):
    loop = new_loop()
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    signal.raise_signal(signal.SIGUSR1)
    assert seen == [signal.SIGUSR1]
    assert signal.set_wakeup_fd(-1) == -1
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    signal.signal(signal.SIGUSR1, previous)


def test_a_thread_may_end_with_its_loop_still_watching(new_loop):
    near, far = socket.socketpair()
    loop = new_loop()

    def work():
        loop.add_reader(near, loop.stop)
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    far.send(b"x")
    loop.run_forever()
    assert loop.remove_reader(near)
    loop.close()
    near.close()
    far.close()
