"""BufferPool: one borrower for each buffer, waiting for one, and no memory that grows."""

import asyncio
import gc
import socket
import threading

import pytest

from pyreactor.pools import Buffer, BufferPool

PATIENCE = 15  # seconds, after which a wake-up was lost


def test_a_buffer_is_writable_memory():
    pool = BufferPool(2, 100)
    assert (pool.count, pool.buffer_bytes) == (2, 128)
    with pool.acquire() as buffer:
        assert len(buffer) == 128
        with memoryview(buffer) as view:
            view[:5] = b"hello"
        assert bytes(buffer)[:5] == b"hello"
        assert pool.stats()["lent"] == 1
    assert buffer.released
    assert pool.stats()["lent"] == 0


def test_a_socket_receives_into_a_buffer_at_the_pools_address():
    pool = BufferPool(1, 64)
    address = pool.acquire().address
    a, b = socket.socketpair()
    with a, b, pool.acquire() as buffer:
        a.send(b"bytes")
        assert b.recv_into(buffer) == 5
        assert buffer.address == address
        assert bytes(buffer)[:5] == b"bytes"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), ValueError),
        ((-1,), ValueError),
        ((1, 0), ValueError),
        ((2**24 + 1, 64), ValueError),
        ((2**40, 64), ValueError),
        ((1, 2**31), ValueError),
        (("many",), TypeError),
        ((), TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error):
        BufferPool(*arguments)


def test_a_buffer_in_use_is_not_given_back():
    pool = BufferPool(1, 64)
    buffer = pool.acquire()
    view = memoryview(buffer)
    with pytest.raises(BufferError, match="release it first"):
        buffer.release()
    assert pool.try_acquire() is None
    view.release()
    buffer.release()
    buffer.release()
    with pytest.raises(BufferError, match="given back"):
        memoryview(buffer)
    assert pool.try_acquire() is not None


def test_a_forgotten_buffer_goes_back_with_the_last_view_of_it():
    pool = BufferPool(1, 64)
    view = memoryview(pool.acquire())
    gc.collect()
    assert pool.try_acquire() is None
    view.release()
    del view
    gc.collect()
    assert isinstance(pool.try_acquire(), Buffer)


def test_an_exhausted_pool_makes_threads_wait():
    pool = BufferPool(1, 64)
    buffer = pool.acquire()
    with pytest.raises(TimeoutError, match="no buffer"):
        pool.acquire(timeout=0)
    got = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire(timeout=PATIENCE)))
    thread.start()
    buffer.release()
    thread.join(PATIENCE)
    assert len(got) == 1
    assert pool.stats()["exhausted"] >= 2


def test_an_exhausted_pool_makes_tasks_wait_in_turn(new_loop):
    pool = BufferPool(1, 64)
    order = []

    async def use(name):
        with await pool.acquire_async():
            order.append(name)
            await asyncio.sleep(0)

    async def main():
        with pool.acquire():
            tasks = [asyncio.create_task(use(name)) for name in range(5)]
            cancelled = asyncio.create_task(use("never"))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.sleep(0)
            assert order == []
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    new_loop().run_until_complete(main())
    assert order == list(range(5))
    assert pool.stats()["lent"] == 0


def test_a_task_waits_for_what_a_thread_gives_back(new_loop):
    pool = BufferPool(1, 64)
    buffer = pool.acquire()
    threading.Timer(0.01, buffer.release).start()

    async def main():
        return await asyncio.wait_for(pool.acquire_async(), PATIENCE)

    assert len(new_loop().run_until_complete(main())) == 64


def test_a_cancelled_task_leaves_its_buffer_to_the_next(new_loop):
    pool = BufferPool(1, 64)

    async def main():
        first = await pool.acquire_async()
        waiting = [asyncio.create_task(pool.acquire_async()) for _ in range(2)]
        await asyncio.sleep(0)
        first.release()
        await asyncio.sleep(0)
        waiting[0].cancel()
        return await asyncio.wait_for(waiting[1], PATIENCE)

    assert not new_loop().run_until_complete(main()).released


def test_threads_and_loops_share_a_pool(new_loop):
    pool = BufferPool(2, 64)
    counts = [0, 0]

    def count(buffer):
        counts[buffer.index] += 1

    def work():
        for _ in range(300):
            with pool.acquire(timeout=PATIENCE) as buffer:
                count(buffer)

    async def work_async():
        for _ in range(300):
            with await asyncio.wait_for(pool.acquire_async(), PATIENCE) as buffer:
                count(buffer)
                await asyncio.sleep(0)

    async def main():
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        await asyncio.gather(work_async(), work_async())
        for thread in threads:
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    new_loop().run_until_complete(main())
    assert sum(counts) == 1200
    assert pool.stats()["lent"] == 0
    assert pool.stats()["lent_max"] <= 2
