"""The program that the witness looks at: a proactor, or a reactor beside it, which echoes.

usage: proactor_stage.py KIND [OPTION=VALUE ...]

Each call of a handler is between two marks, "handle/FD" and "handled/FD".  It can be told to
"read", by a single operation that is told by a signal, from a pair of sockets, and so by AsyncIO,
without a proactor, and to tell its "stats": see witness.py.
"""

from __future__ import annotations

import ast
import os
import socket
import sys
from typing import Any

import witness

from pyreactor.dispatchers import Reactor
from pyreactor.handlers import AcceptHandler, EchoHandler, EchoService
from pyreactor.io_models import AsyncIO
from pyreactor.proactor import Proactor, SimulatedProactor

KINDS = {"reactor": Reactor, "proactor": Proactor, "simulated": SimulatedProactor}


class MarkedEcho(EchoHandler):
    """Reads and writes itself."""


class MarkedService(EchoService):
    """Has it done."""

    def handle_read(self, completion: Any) -> Any:
        """Between two marks."""
        witness.mark(f"handle/{completion.handle}")
        try:
            return super().handle_read(completion)
        finally:
            witness.mark(f"handled/{completion.handle}")


def serve(kind: str, options: dict[str, Any]) -> None:
    """Run it, and obey."""
    dispatcher = KINDS[kind](**options)
    acceptor = AcceptHandler(("127.0.0.1", 0), MarkedEcho if kind == "reactor" else MarkedService)
    dispatcher.register_handle(acceptor, acceptor)
    pair = socket.socketpair()

    def read(notify: str) -> dict[str, Any]:
        """Start a read, see that it returned, and only then send to it."""
        buffer = bytearray(8)
        operation = dispatcher.aio_read(pair[0], buffer, notify=notify)
        witness.mark("asked")
        assert not operation.done
        pair[1].sendall(b"told")
        assert operation.wait(witness.PATIENCE)
        witness.mark("told")
        return {"received": bytes(buffer[:4]).decode(), "fd": pair[0].fileno()}

    def read_asynchronously(notify: str) -> dict[str, Any]:
        """The same in this thread alone, between marks of the way it is told."""
        buffer = bytearray(8)
        with AsyncIO() as aio:
            operation = aio.aio_read(pair[0], buffer, notify=notify)
            witness.mark(f"{notify} started")
            early = aio.wait(0) or operation.done or any(buffer)
            pair[1].sendall(b"later")
            witness.mark(f"{notify} sent")
            while not operation.done:
                aio.wait(witness.PATIENCE)
            witness.mark(f"{notify} done")
        return {"received": bytes(buffer).decode(), "early": early, "fd": pair[0].fileno()}

    with dispatcher:
        roles = {tid: name.split("-")[1] for tid, name in dispatcher.threads().items()}
        roles[os.getpid()] = "application"
        facts = {"address": acceptor.address, "roles": roles, "listener": acceptor.fileno()}
        actions = {"read": read, "read_asynchronously": read_asynchronously}
        witness.obey(facts, {**actions, "stats": dispatcher.stats})
    for sock in pair:
        sock.close()


if __name__ == "__main__":
    serve(
        sys.argv[1],
        {
            name: ast.literal_eval(value)
            for name, value in (argument.split("=", 1) for argument in sys.argv[2:])
        },
    )
