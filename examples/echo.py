"""A service that sends back every line it is sent, under any of the concurrency models.

    python examples/echo.py --port 7000 --dispatcher half-sync-half-async

and, in another terminal, `nc 127.0.0.1 7000`.
"""

from __future__ import annotations

import argparse

import pyreactor
from pyreactor.framing import Lines
from pyreactor.models import MODELS


class Echo(pyreactor.Service):
    """Answers a line with the same line."""

    framing = Lines(max_bytes=1000)
    idle_timeout = 300.0

    def handle(self, request: bytes) -> bytes:
        return request


def say(server: pyreactor.Server) -> None:
    for host, port, *_ in server.addresses:
        print(f"Echoing at {host}, port {port}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7000)
    parser.add_argument("--dispatcher", choices=MODELS, default="leader-followers")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    address = options.host, options.port
    server = pyreactor.Server(Echo(), address, options.dispatcher, workers=options.workers)
    server.run(ready=say)  # until Ctrl-C or SIGTERM; lines that were sent before are answered
    print("Stopped.")


if __name__ == "__main__":
    main()
