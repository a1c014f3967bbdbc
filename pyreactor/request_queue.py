"""RequestQueue: how the units of a server pass requests to each other.

The queue itself is compiled, `_queue.QueueCore`; this adds the waiting in an event loop.
"""

from __future__ import annotations

from typing import TypeVar

from pyreactor._queue import QueueClosed, QueueCore, QueueStats

__all__ = ["QueueClosed", "QueueStats", "RequestQueue"]

_T = TypeVar("_T")


class RequestQueue(QueueCore[_T]):
    """A bounded queue between threads, first in, first out.

    `capacity` is rounded up to a power of two.  `kind` is "mpmc" (a lock-free ring), "spsc" (the
    same for one producing and one consuming thread) or "mutex" (a lock and conditions, to compare
    with).  `spin_us` is how long a thread that has to wait looks again and again before it sleeps,
    in microseconds.
    """
