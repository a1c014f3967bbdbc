"""pyreactor: a drop-in asyncio event loop for Linux, with a native core.

The path of a received byte, which is also the map of the source:

    socket bytes - csrc/backend/epoll.c - csrc/loop/loop.c
                 - pyreactor._loop - pyreactor._transport - your Protocol

    run, new_event_loop     policy.py       how a program gets the loop
    Loop                    event_loop.py   asyncio's methods, over the compiled _loop
    LoopMetrics             metrics.py      what loop.metrics() returns
    RequestQueue            request_queue.py  requests between threads, over the compiled _queue
    Service                 service.py      what is done with a request
    Server                  service_server.py  a service at an address, under a dispatcher
    framing                 framing.py      messages in a stream, over the compiled _framing
    fsm                     fsm/            state machines, over the compiled _fsm and _http1
    zerocopy                zerocopy.py     bytes that the program does not look at
    Peer                    peer.py         a node that serves others and asks them
    python -m pyreactor     cli.py          runs an unchanged asyncio program

Importing this package changes nothing in the process: no policy is set, no thread is started,
nothing of asyncio is replaced.  EventLoopPolicy and install() are looked up only when named,
because asyncio's policies are deprecated from Python 3.14 and gone in 3.16; so are Service and
Server, because a program that wants the loop alone should not have to wait for the dispatchers.
"""

from __future__ import annotations

from pyreactor import policy
from pyreactor.event_loop import Loop
from pyreactor.metrics import LoopMetrics
from pyreactor.policy import new_event_loop, run
from pyreactor.request_queue import QueueClosed, QueueStats, RequestQueue

__version__ = "0.1.0"

__all__ = [
    "Loop",
    "LoopMetrics",
    "QueueClosed",
    "QueueStats",
    "RequestQueue",
    "Server",
    "Service",
    "__version__",
    "new_event_loop",
    "run",
]


def __getattr__(name: str) -> object:
    if name in ("EventLoopPolicy", "install"):
        return getattr(policy, name)
    if name == "Service":
        from pyreactor.service import Service

        return Service
    if name == "Server":
        from pyreactor.service_server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
