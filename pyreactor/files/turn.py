"""Whose turn it is at a file: one operation after the other, in the order in which they began."""

from __future__ import annotations

import asyncio
from collections import deque


class Turn:
    """Handed from one operation to the next, so that nobody overtakes.  Loop thread only.

    Where it is not `taken`, `turn.taken = True` takes it; otherwise `await turn.wait()`.
    """

    __slots__ = ("_waiting", "taken")

    def __init__(self) -> None:
        self.taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Take the turn after all who have it or wait for it."""
        if not self.taken:
            self.taken = True
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.pass_on()  # it had come, and nobody takes it
            raise

    def pass_on(self) -> None:
        """Give the turn to the next, or to nobody."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.taken = False
