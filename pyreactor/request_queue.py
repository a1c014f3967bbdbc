"""RequestQueue: how the units of a server pass requests to each other.

The queue itself is compiled, `_queue.QueueCore`; this adds the waiting in an event loop.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pyreactor._queue import QueueClosed, QueueCore, QueueStats

__all__ = ["QueueClosed", "QueueStats", "Receipt", "RequestQueue"]

_T = TypeVar("_T")


class Receipt(Generic[_T]):
    """An item that was taken out of a queue between threads, which is the end of it there.

    It has the interface of a shared queue's Delivery, for workers that are to work with both.
    """

    __slots__ = ("item",)
    deliveries = 1  # how many times it has been taken

    def __init__(self, item: _T) -> None:
        self.item = item

    def ack(self) -> None:
        """Do nothing: taking the item has acknowledged it."""

    def nack(self) -> Literal[False]:
        """Return False: the item cannot be given back."""
        return False

    def __enter__(self) -> _T:
        return self.item

    def __exit__(self, *exc_info: object) -> None:
        pass


class RequestQueue(QueueCore[_T]):
    """A bounded queue between threads, first in, first out.

    `capacity` is rounded up to a power of two.  `kind` is "mpmc" (a lock-free ring), "spsc" (the
    same for one producing and one consuming thread) or "mutex" (a lock and conditions, to compare
    with).  `spin_us` is how long a thread that has to wait looks again and again before it sleeps,
    in microseconds.
    """

    semantics = "at_most_once"  # what becomes of an item whose consumer dies: it dies with it

    def take(self, timeout: float | None = None) -> Receipt[_T]:
        """Take the oldest item as get() does, in the form that a shared queue's take() has."""
        return Receipt(self.get(timeout))
