"""Pools: things that are made at start and used again and again.

BufferPool      buffer_pool.py      memory for receiving and sending
"""

from __future__ import annotations

from pyreactor.buffer_pool import Buffer, BufferPool

__all__ = ["Buffer", "BufferPool"]
