"""Waiting for a descriptor on whichever asyncio loop runs: for what tries first, and then waits."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["settle", "wait_until_ready"]


def settle(waiter: asyncio.Future[None]) -> None:
    """End a wait, if it has not ended."""
    if not waiter.done():
        waiter.set_result(None)


async def wait_until_ready(sock: Any, *, writable: bool) -> None:
    """Wait until a socket or a pipe can be read or written, as far as anybody can tell.

    For whoever has tried and found nothing, and tries again after it.  Cancelled, it leaves nothing
    registered.
    """
    loop = asyncio.get_running_loop()
    wait = getattr(loop, "_wait_writable" if writable else "_wait_readable", None)
    if wait is not None:  # keeps what the kernel was told from one wait to the next
        await wait(sock)
        return
    waiter = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    )
    descriptor = sock.fileno()
    add(descriptor, settle, waiter)
    try:
        await waiter
    finally:
        remove(descriptor)
