"""The program that the witness looks at for the I/O models.  See witness.py.

It is told to "begin" a model, in a thread of its own whose id it answers; to "send" to it, and to
"end" it, which answers what was received.
"""

from __future__ import annotations

import socket
import threading

import witness

from pyreactor.demultiplexers import EpollDemultiplexer, PollDemultiplexer, SelectDemultiplexer
from pyreactor.io_models import BlockingIO, IOModel, MultiplexedIO, NonBlockingIO, SignalDrivenIO

SOCKETS = 3
MODELS = {
    "blocking": BlockingIO,
    "non-blocking": NonBlockingIO,
    "select": lambda: MultiplexedIO(SelectDemultiplexer()),
    "poll": lambda: MultiplexedIO(PollDemultiplexer()),
    "epoll": lambda: MultiplexedIO(EpollDemultiplexer()),
    "signal-driven": SignalDrivenIO,
}


class Scene:
    """One model at work."""

    def begin(self, model: str) -> dict[str, int]:
        """Start to receive, in a new thread."""
        self.pairs = [socket.socketpair() for _ in range(SOCKETS)]
        self.received: list[str] = []
        self.thread = threading.Thread(target=self.run, args=[MODELS[model]()])
        self.thread.start()
        return {"tid": self.thread.native_id or 0, "fd": self.pairs[0][0].fileno()}

    def run(self, model: IOModel) -> None:
        """In the thread."""
        first = self.pairs[0][0]
        if isinstance(model, MultiplexedIO):
            with model:
                for ours, _ in self.pairs:
                    model.register(ours)
                got: list[bytes] = []
                while len(got) < SOCKETS:
                    got += [data for _, data, _ in model.receive(100)]
        else:
            data = model.receive(first, 100)  # type: ignore[attr-defined]
            got = [] if data is None else [data]
        self.received = [data.decode() for data in got]

    def send(self, count: int) -> None:
        """Send a few bytes to the first `count` sockets."""
        for _, theirs in self.pairs[:count]:
            theirs.send(b"hello")

    def end(self) -> list[str]:
        """Wait for the thread's end."""
        self.thread.join()
        for pair in self.pairs:
            for sock in pair:
                sock.close()
        return self.received


if __name__ == "__main__":
    scene = Scene()
    witness.obey(
        {"address": [], "roles": {}}, {"begin": scene.begin, "send": scene.send, "end": scene.end}
    )
