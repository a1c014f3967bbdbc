"""Clients of databases, which run on the loop; the database is a process of its own.

run.py starts it, pins it to another CPU and says in the environment where it is.
"""

import asyncio
import contextlib
import os

from registry import Registry

WORKLOADS = Registry()
workload = WORKLOADS.workload  # some 100 to 500 ms on asyncio's own loop
CONNECTIONS = 8  # of asyncpg; a query is in flight on each
COMMANDS = 16  # of Redis in a pipeline, half of them SET, half GET
QUERY = "SELECT $1::int AS id, 'Hello, world' AS message"


@contextlib.asynccontextmanager
async def postgresql_statements():
    import asyncpg

    connections = [await asyncpg.connect() for _ in range(CONNECTIONS)]
    yield [await connection.prepare(QUERY) for connection in connections]
    for connection in connections:
        await connection.close()


@workload(4_000, within=postgresql_statements)
async def asyncpg_select(count, statements):
    """A prepared SELECT of one row."""
    left = count

    async def query(statement):
        nonlocal left
        while left > 0:
            left -= 1
            number = left
            row = await statement.fetchrow(number)
            assert row["id"] == number

    await asyncio.gather(*map(query, statements))


@contextlib.asynccontextmanager
async def redis_client():
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(os.environ["REDIS_URL"])
    await client.ping()
    yield client
    await client.aclose()


@workload(500, within=redis_client)
async def redis_pipeline(count, client):
    """A pipeline of 16 commands, and their answers."""
    for number in range(count):
        async with client.pipeline(transaction=False) as pipeline:
            for key in range(COMMANDS // 2):
                pipeline.set(f"key{key}", number)
                pipeline.get(f"key{key}")
            answers = await pipeline.execute()
        assert answers == [True, b"%d" % number] * (COMMANDS // 2)
