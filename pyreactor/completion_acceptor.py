"""What accepts connections for a proactor, whose operations end and have to be started again."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyreactor._proactor import Operation
from pyreactor.handlers import AcceptHandler, CompletionHandler, TimerHandler

if TYPE_CHECKING:
    from pyreactor.proactor import _Proactor

__all__ = ["CompletionAcceptor"]

_UNDER_WAY_MAX = 16  # of one listener, so that accepting goes on while workers register
_REST_SECONDS = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("pyreactor")


class CompletionAcceptor(CompletionHandler):
    """Has the connections of one AcceptHandler accepted, by several operations at a time."""

    def __init__(
        self,
        proactor: _Proactor,
        handler: AcceptHandler,
        forget: Callable[[AcceptHandler], None],
    ) -> None:
        """Accept nothing before resume().  `forget(handler)` is called once it has been removed
        and nothing is under way any more, by the thread that sees that."""
        self._proactor = proactor
        self._handler = handler
        self._forget = forget
        self._changes = threading.Lock()
        self._operations: set[Operation] = set()
        self._suspended = False
        self._removed = False
        self._closed = False
        self._resting = False
        self._rests = 0  # without a connection between them

    def resume(self) -> None:
        """Have as many operations under way as there should be.  Any thread."""
        with self._changes:
            self._suspended = False
            self._start()

    def _start(self) -> None:
        while not self._suspended and not self._removed and not self._resting:
            wanted = 1 if self._rests else min(_UNDER_WAY_MAX, self._handler.backlog)
            if len(self._operations) >= wanted:
                return
            self._operations.add(self._proactor.aio_accept(self._handler.sock, self))

    def suspend(self) -> None:
        """Have none.  Any thread."""
        with self._changes:
            self._suspended = True
            for operation in self._operations:
                operation.cancel()

    def remove(self) -> None:
        """End; it is forgotten when no operation is under way.  Any thread."""
        with self._changes:
            self._removed = True
            for operation in self._operations:
                operation.cancel()
        self._close_if_done()

    def handle_read(self, completion: Any) -> None:
        """There are no reads."""

    def handle_accept(self, completion: Any) -> None:
        """Register the connection, and accept the next."""
        error = completion.error
        if error is None:
            self._rests = 0
            self._proactor._bind_connection(completion.sock, self._handler.factory)
        with self._changes:
            self._operations.discard(completion.operation)
            if error is not None and error.errno == errno.ECANCELED:
                if self._proactor.stopping:
                    self._removed = True
            elif error is not None and error.errno in _EXHAUSTED:
                self._rest(error)
            if not self._removed:
                self._start()
        self._close_if_done()

    def _rest(self, error: OSError) -> None:
        """Try again after a moment: the listener stays ready, and it would be a busy loop."""
        if not self._resting:
            if self._rests == 0:
                _log.error("cannot accept a connection, and tries again until it can: %s", error)
            self._rests += 1
            self._resting = True
            self._proactor.schedule_timer(TimerHandler(self._rise), _REST_SECONDS)

    def _rise(self, timer: Any) -> None:
        with self._changes:
            self._resting = False
            self._start()

    def _close_if_done(self) -> None:
        with self._changes:
            if self._closed or not self._removed or self._operations:
                return
            self._closed = True
        self._forget(self._handler)
