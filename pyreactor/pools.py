"""Pools: things that are made at start and used again and again.

ThreadPool      thread_pool.py      threads, as a concurrent.futures executor
BufferPool      buffer_pool.py      memory for receiving and sending
"""

from __future__ import annotations

from pyreactor.buffer_pool import Buffer, BufferPool
from pyreactor.thread_pool import BrokenThreadPool, PoolFuture, ThreadPool

__all__ = ["BrokenThreadPool", "Buffer", "BufferPool", "PoolFuture", "ThreadPool"]
