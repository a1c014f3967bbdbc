"""The connection pools: who gets which connection, and what becomes of bad ones."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from accepting import accepting, is_alive

from pyreactor.pools import AsyncConnectionPool, ConnectionPool, PoolClosed

PATIENCE = 15  # seconds, after which a wake-up was lost


class Connection:
    """Something that is opened, used by one at a time, and closed."""

    opened: list

    def __init__(self):
        self.open = True
        self.users = 0
        self.good = True

    def close(self):
        assert self.open, "closed twice"
        self.open = False


@pytest.fixture
def made():
    """The connections that connect() has made."""
    return []


@pytest.fixture
def connect(made):
    """A function that makes connections, until it is told to fail."""

    def connect():
        if connect.failing:
            raise ConnectionRefusedError("nobody there")
        made.append(Connection())
        return made[-1]

    connect.failing = False
    return connect


# Threads


def test_connections_are_there_before_the_first_is_wanted(connect, made):
    with ConnectionPool(connect, min_size=3, max_size=5) as pool:
        assert len(made) == 3
        with pool.connection() as one, pool.connection() as two:
            assert one is not two
        assert pool.acquire() in made[:3]
        assert len(made) == 3


def test_the_one_used_last_is_lent_next(connect):
    pool = ConnectionPool(connect, min_size=2)
    one, two = pool.acquire(), pool.acquire()
    pool.release(two)
    pool.release(one)
    assert pool.acquire() is one


def test_more_are_opened_up_to_the_limit_and_then_one_waits(connect, made):
    pool = ConnectionPool(connect, min_size=1, max_size=2)
    lent = [pool.acquire(), pool.acquire()]
    assert len(made) == 2
    with pytest.raises(TimeoutError, match="no connection of 2"):
        pool.acquire(timeout=0.01)
    got = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire(PATIENCE)))
    thread.start()
    pool.release(lent[0])
    thread.join(PATIENCE)
    assert got == [lent[0]]
    stats = pool.stats()
    assert (stats["lent"], stats["idle"], stats["timeouts"]) == (2, 0, 1)


def test_a_dead_connection_is_found_by_the_check_and_replaced(connect, made):
    def check(connection):
        if connection.good is None:
            raise OSError("it is gone")
        return connection.good

    pool = ConnectionPool(connect, min_size=3, check=check)
    made[2].good, made[1].good = False, None
    assert pool.acquire() is made[0]
    assert [connection.open for connection in made[:3]] == [True, False, False]
    pool.maintain()
    assert len(made) == 5
    assert pool.stats()["idle"] == 2


def test_what_was_used_a_moment_ago_is_not_checked(connect):
    checks = []
    pool = ConnectionPool(connect, check=lambda c: checks.append(c) or True, check_after=3600)
    pool.release(pool.acquire())
    pool.acquire()
    assert checks == []


def test_a_connection_lives_only_so_long(connect, made):
    pool = ConnectionPool(connect, min_size=1, lifetime=0.01)
    time.sleep(0.02)
    connection = pool.acquire()
    assert connection is made[1]
    assert not made[0].open
    time.sleep(0.02)
    pool.release(connection)
    assert not connection.open
    assert len(made) == 3


def test_a_connection_in_whose_use_something_raised_is_closed(connect, made):
    pool = ConnectionPool(connect, min_size=1)
    with pytest.raises(KeyError), pool.connection() as connection:
        raise KeyError
    assert not connection.open
    assert pool.stats()["idle"] == 1
    assert len(made) == 2


def test_what_connect_raises_is_told_and_its_place_is_free_again(connect, made):
    connect.failing = True
    with pytest.raises(ConnectionRefusedError):
        ConnectionPool(connect)
    connect.failing = False
    pool = ConnectionPool(connect, min_size=1, max_size=2)
    first = pool.acquire()
    connect.failing = True
    with pytest.raises(ConnectionRefusedError):
        pool.acquire()
    pool.release(first, broken=True)
    with pytest.raises(ConnectionRefusedError):
        pool.acquire()
    connect.failing = False
    assert pool.acquire().open
    assert pool.stats()["opening"] == 0


def test_closing_closes_what_is_idle_now_and_what_is_lent_later(connect, made):
    pool = ConnectionPool(connect, min_size=2)
    lent = pool.acquire()
    outcome = []

    def wait():
        pool.acquire()
        try:
            pool.acquire(PATIENCE)
        except PoolClosed as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while pool.stats()["waits"] == 0:
        time.sleep(0.001)
    pool.close()
    pool.close()
    thread.join(PATIENCE)
    assert len(outcome) == 1
    assert lent.open
    pool.release(lent)
    assert not lent.open
    with pytest.raises(PoolClosed):
        pool.acquire()


@pytest.mark.parametrize(
    "sizes", [{"min_size": -1}, {"max_size": 0}, {"min_size": 3, "max_size": 2}, {"lifetime": 0}]
)
def test_sizes_that_make_no_sense_are_refused(connect, sizes):
    with pytest.raises(ValueError):
        ConnectionPool(connect, **sizes)
    with pytest.raises(ValueError):
        AsyncConnectionPool(connect, **sizes)


def test_only_what_is_lent_is_taken_back(connect):
    pool = ConnectionPool(connect)
    connection = pool.acquire()
    pool.release(connection)
    for stranger in (connection, Connection()):
        with pytest.raises(ValueError, match="lent"):
            pool.release(stranger)


def test_threads_never_share_a_connection(connect, made):
    pool = ConnectionPool(connect, min_size=1, max_size=3, lifetime=0.005, check=lambda c: c.open)
    shared = []

    def work():
        for n in range(100):
            with contextlib.suppress(KeyError), pool.connection(PATIENCE) as connection:
                connection.users += 1
                time.sleep(0)
                if connection.users != 1:
                    shared.append(connection)
                connection.users -= 1
                if n % 20 == 0:
                    raise KeyError

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert shared == []
    pool.close()
    assert not any(connection.open for connection in made)


def test_sockets_whose_peer_is_gone_are_replaced():
    with (
        accepting() as (address, accepted),
        ConnectionPool(
            lambda: socket.create_connection(address), min_size=2, check=is_alive
        ) as pool,
    ):
        while len(accepted) < 2:
            time.sleep(0.001)
        accepted[1].close()
        with pool.connection() as one, pool.connection() as two:
            assert is_alive(one) and is_alive(two)
            one.send(b"x")
        assert pool.stats()["opened"] == 3


# Tasks


@pytest.fixture
def connect_async(connect):
    """The same as a coroutine."""

    async def connect_async():
        await asyncio.sleep(0)
        return connect()

    return connect_async


async def test_tasks_get_connections_in_the_order_they_came(loop, connect_async, made):
    order = []
    async with AsyncConnectionPool(connect_async, min_size=2) as pool:
        assert len(made) == 2

        async def use(name):
            async with pool.connection() as connection:
                order.append(name)
                connection.users += 1
                await asyncio.sleep(0)
                assert connection.users == 1
                connection.users -= 1

        await asyncio.wait_for(asyncio.gather(*map(use, range(20))), PATIENCE)
        assert len(made) == 2
    assert order == list(range(20))
    assert not any(connection.open for connection in made)


async def test_a_cancelled_task_leaves_its_turn_to_the_next(loop, connect_async):
    async with AsyncConnectionPool(connect_async) as pool:
        lent = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await pool.release(lent)
        waiting[1].cancel()
        assert await asyncio.wait_for(waiting[2], PATIENCE) is lent
        await pool.release(lent)
        assert pool.stats()["idle"] == 1


async def test_tasks_find_dead_and_old_connections_replaced(loop, connect_async, made):
    async def check(connection):
        await asyncio.sleep(0)
        return connection.good

    pool = await AsyncConnectionPool(connect_async, min_size=2, check=check).open()
    made[1].good = False
    assert await pool.acquire() is made[0]
    assert not made[1].open
    await pool.maintain()
    assert len(made) == 3
    with pytest.raises(KeyError):
        async with pool.connection() as connection:
            raise KeyError
    assert not connection.open
    assert pool.stats()["idle"] == 1
    await pool.close()


async def test_what_an_asynchronous_connect_raises_is_told(loop, connect, connect_async, made):
    connect.failing = True
    with pytest.raises(ConnectionRefusedError):
        async with AsyncConnectionPool(connect_async):
            pass
    connect.failing = False
    pool = AsyncConnectionPool(connect_async, min_size=0, max_size=1)
    connect.failing = True
    with pytest.raises(ConnectionRefusedError):
        await pool.acquire()
    connect.failing = False
    connection = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(PoolClosed):
        await waiting
    await pool.release(connection)
    assert not connection.open
    with pytest.raises(PoolClosed):
        await pool.acquire()


async def test_streams_are_connections_too(loop, connect):
    async def echo(reader, writer):
        while data := await reader.readline():
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()

    async def close(streams):
        streams[1].close()
        await streams[1].wait_closed()

    async with AsyncConnectionPool(
        lambda: asyncio.open_connection(*address),
        min_size=2,
        check=lambda streams: not streams[0].at_eof(),
        close=close,
    ) as pool:
        for _ in range(10):
            async with pool.connection() as (reader, writer):
                writer.write(b"hello\n")
                assert await reader.readline() == b"hello\n"
        assert pool.stats()["opened"] == 2
    server.close()
    await server.wait_closed()
