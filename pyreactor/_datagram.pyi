import asyncio
from contextvars import Context
from socket import socket
from typing import Any

from typing_extensions import disjoint_base

from pyreactor._base_transport import BaseTransport
from pyreactor._loop import LoopCore

@disjoint_base
class DatagramTransport(BaseTransport, asyncio.DatagramTransport):
    families: frozenset[int]
    max_size: int
    def __init__(
        self,
        loop: LoopCore,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None: ...
    def sendto(
        self, data: bytes | bytearray | memoryview[Any], addr: Any | None = None
    ) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_write_buffer_limits(self) -> tuple[int, int]: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def is_reading(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
