import sys

from pyreactor.event_loop import Loop as Loop
from pyreactor.metrics import LoopMetrics as LoopMetrics
from pyreactor.policy import new_event_loop as new_event_loop
from pyreactor.policy import run as run
from pyreactor.request_queue import QueueClosed as QueueClosed
from pyreactor.request_queue import QueueStats as QueueStats
from pyreactor.request_queue import RequestQueue as RequestQueue
from pyreactor.service import Service as Service
from pyreactor.service_server import Server as Server

if sys.version_info < (3, 16):
    from pyreactor.policy import EventLoopPolicy as EventLoopPolicy
    from pyreactor.policy import install as install

__version__: str

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
