"""Pools: things that are made at start and used again and again.

ThreadPool           thread_pool.py      threads, as a concurrent.futures executor
ProcessPool          process_pool.py     processes, as another; calls go through shared memory
ConnectionPool       connection_pool.py  connections for threads
AsyncConnectionPool  connection_pool.py  connections for the tasks of a loop
BufferPool           buffer_pool.py      memory for receiving and sending
"""

from __future__ import annotations

from pyreactor.buffer_pool import Buffer, BufferPool
from pyreactor.connection_pool import AsyncConnectionPool, ConnectionPool, PoolClosed
from pyreactor.process_pool import BrokenProcessPool, ProcessPool, WorkerDied
from pyreactor.thread_pool import BrokenThreadPool, PoolFuture, ThreadPool

__all__ = [
    "AsyncConnectionPool",
    "BrokenProcessPool",
    "BrokenThreadPool",
    "Buffer",
    "BufferPool",
    "ConnectionPool",
    "PoolClosed",
    "PoolFuture",
    "ProcessPool",
    "ThreadPool",
    "WorkerDied",
]
