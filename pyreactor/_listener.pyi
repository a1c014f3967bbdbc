from collections.abc import Callable
from contextvars import Context
from socket import socket
from typing import Any

from typing_extensions import disjoint_base

from pyreactor._loop import LoopCore

@disjoint_base
class Listener:
    def __init__(
        self,
        loop: LoopCore,
        sock: socket,
        protocol_factory: Callable[[], Any],
        server: Any,
        ssl_arguments: dict[str, Any] | None,
        backlog: int,
        context: Context | None = None,
    ) -> None: ...
    @property
    def sock(self) -> socket: ...
    def stop(self) -> None: ...
