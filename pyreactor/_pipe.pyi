import asyncio
from collections.abc import Iterable
from contextvars import Context
from typing import IO, Any

from typing_extensions import disjoint_base

from pyreactor._loop import LoopCore
from pyreactor._transport import ByteTransport, WritingTransport

@disjoint_base
class ReadPipeTransport(ByteTransport, asyncio.ReadTransport):
    max_size: int
    def __init__(
        self,
        loop: LoopCore,
        pipe: IO[Any],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None: ...
    def is_reading(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...

@disjoint_base
class WritePipeTransport(WritingTransport):
    def __init__(
        self,
        loop: LoopCore,
        pipe: IO[Any],
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None: ...
    def write(self, data: bytes | bytearray | memoryview[Any]) -> None: ...
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
