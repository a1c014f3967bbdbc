"""Server: a service at an address, under a dispatcher.

    the units of a server     here
    I/O unit                  listeners, connections and the threads of the dispatcher that wait
    request queue             `queue=`: before the logic unit, or the dispatcher's own
    logic unit                `logic=`: threads or processes; else the dispatcher's threads
    storage unit              `storage=`, which handle() is given

A thread of the server's own, the keeper, ends what takes too long: it does so also while every
other thread is in a handler.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from pyreactor._service import (
    CompletedConnection,
    ConnectionSet,
    ReadyConnection,
    RequestTimeout,
)
from pyreactor.dispatchers import _Dispatcher
from pyreactor.framing import FramingError
from pyreactor.handlers import AcceptHandler, CompletionHandler, EventHandler
from pyreactor.listeners import Listener, listen
from pyreactor.models import Setup, make_dispatcher
from pyreactor.service import Service

if TYPE_CHECKING:
    import socket

    from pyreactor.storage import StorageUnit

__all__ = ["Server"]

_KEEPER_SECONDS_MIN = 0.02
_KEEPER_SECONDS_MAX = 1.0
_DRAINING_SECONDS = 0.1
_GRACE_SECONDS = 5.0  # for threads that are in no handle() to end, on a busy machine
_CHECKS_PER_TIMEOUT = 10  # a timeout is up to a tenth late
_log = logging.getLogger("pyreactor")


class _ReadyConnection(ReadyConnection, EventHandler):
    """A client, for dispatchers whose handlers receive and send."""


class _CompletedConnection(CompletedConnection, CompletionHandler):
    """A client, for dispatchers that receive and send for their handlers."""


class _Logic:
    """Where a server's requests are handled, beside the dispatcher: its logic unit and storage."""

    def __init__(self, service: Service, logic: Any, queue: Any, storage: Any) -> None:
        self._make: Callable[[], Any] | None = None
        self._unit: Any = None
        self._timeout = service.request_timeout
        self.handler: Callable[..., Any] | None = None  # None: the service's own
        if logic is None:
            if storage is not None:
                self.handler = lambda *arguments: service.handle(*arguments, storage)
            return
        from pyreactor.units import LogicUnit  # with the pools, which other servers do without

        if service.state is not None:
            raise TypeError(
                "a logic unit is not given the connection's state, which another process could"
                " not see: make the service without `state`, or the server without `logic`"
            )
        if isinstance(logic, LogicUnit):
            if queue is not None or storage is not None:
                raise TypeError("a LogicUnit has a queue and a storage: give them to it")
            self._unit = logic
        elif logic not in ("thread", "process"):
            raise TypeError(f"logic is 'thread', 'process' or a LogicUnit, not {logic!r}")
        elif queue is not None and not hasattr(queue, "take"):
            raise TypeError(
                "with logic=, queue= is the one before the logic unit: a RequestQueue or a"
                f" SharedRequestQueue, not {queue!r}"
            )
        else:
            LogicUnit._check_queue(logic, queue)
            self._make = lambda: LogicUnit(service.handle, queue, kind=logic, storage=storage)
        self.handler = self._ask

    def _ask(self, request: Any) -> Any:
        # By then the client is disconnected: a request that is lost must not cost a thread.
        return self._unit.call(request, self._timeout)

    def start(self) -> None:
        """Start the unit, where it is the server's."""
        if self._make is not None:
            self._unit = self._make()

    def stop(self) -> None:
        """End it, where it is the server's."""
        if self._make is not None and self._unit is not None:
            self._unit.stop()


def log_error(source: Any, exception: BaseException) -> None:
    """The default of `on_error`: logs it, with a traceback where it is no fault of the client's."""
    if isinstance(exception, (FramingError, RequestTimeout)):
        _log.warning("%r is ended: %s", source, exception)
    else:
        _log.error("%r is ended by an error", source, exc_info=exception)


class Server:
    """Serves a Service: start() and stop(), or run(), or `with server:`.  Once.

    Every connection costs memory, and none a thread.
    """

    def __init__(
        self,
        service: Service,
        address: Any,
        dispatcher: str | _Dispatcher | None = None,
        *,
        proactor: str | None = None,
        workers: int | None = None,
        demultiplexer: Any = None,
        queue: Any = None,
        logic: Any = None,
        storage: StorageUnit | None = None,
        strict: bool = False,
        affinity: bool | list[int] | None = None,
        backlog: int = 1024,
        max_connections: int | None = None,
        on_error: Callable[[Any, BaseException], object] = log_error,
        **options: Any,
    ) -> None:
        """Make a server; start() or run() has it listen.

        address          (host, port), a Unix socket's path, a listening socket, which is the
                         server's from here on, or a list of these
        dispatcher       a model's name, see pyreactor.models.MODELS, or a dispatcher that has not
                         been started; the following arguments are for a name.  None:
                         "leader-followers", or what `proactor` says
        proactor         "kernel", "simulated" or "auto": the model "proactor", of that kind; "auto"
                         is the kernel's where io_uring can be had, else simulated, and logs why
        workers          threads that handle requests; by default as many as the dispatcher advises
        demultiplexer    "epoll", "io_uring", "poll", "select", a class, or an object where the
                         model waits in one place
        queue            "lockfree", "mutex" or a RequestQueue, for models that have one; with
                         `logic` the queue before the logic unit: a RequestQueue, for threads, or
                         a SharedRequestQueue
        logic            "thread" or "process": handle() runs in a logic unit that the server
                         starts and stops, with as many workers as its pool makes by itself; or a
                         LogicUnit, which stays the caller's, with its own handler, queue and
                         storage.  A thread of the dispatcher waits for each answer, so that at
                         most `workers` requests are under way.  None: the dispatcher's threads
        storage          a StorageUnit, the last argument of handle(); it stays the caller's
        strict           exactly the steps of the pattern, as the dispatchers say
        affinity         pins the threads to processors, all or those of a list, in turn
        backlog          connections that the kernel holds until they are accepted
        max_connections  with more, nobody is accepted until one has left; others wait in the
                         backlog.  A few more may be accepted at the same moment.  None: no limit
        on_error         on_error(connection, exception) is told what went wrong: what handle()
                         raised, a FramingError, a RequestTimeout.  It may be called in any thread
        options          those of the model, such as mode=, async_threads=, handoff=, delegate=

        Raises TypeError or ValueError for arguments that make no sense, and OSError, with the
        reason, for "proactor" where io_uring cannot be had.
        """
        if not isinstance(service, Service):
            raise TypeError(f"a Service was expected, not {service!r}: try Service(function)")
        service._check()
        self._logic = _Logic(service, logic, queue, storage)
        if logic is not None:
            queue = None  # it is the logic unit's
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections is at least 1, or None; not {max_connections!r}")
        self.service = service
        self._address = address
        self._backlog = backlog
        self._max_connections = max_connections
        self._on_error = on_error
        if dispatcher is None:
            dispatcher = "leader-followers" if proactor is None else "proactor"
        if proactor is not None:
            if dispatcher != "proactor":
                raise TypeError(f"proactor= is for the dispatcher 'proactor', not {dispatcher!r}")
            options["proactor"] = proactor
        if isinstance(dispatcher, str):
            setup = Setup(
                workers, demultiplexer, queue, strict, affinity, self._report, dict(options)
            )
            self.dispatcher = make_dispatcher(dispatcher, setup)
        elif not isinstance(dispatcher, _Dispatcher):
            raise TypeError(f"a dispatcher or a model's name was expected, not {dispatcher!r}")
        elif options or not (workers is demultiplexer is queue is affinity is None):
            raise TypeError("a dispatcher that is made already takes no more arguments")
        else:
            self.dispatcher = dispatcher
            strict = dispatcher._is_strict()
        self._reuse_port = str(getattr(self.dispatcher, "handoff", "")).startswith("reuseport")
        self._connections = ConnectionSet(
            service, strict=strict, report=self._report, handle=self._logic.handler
        )
        self._connection_type = (
            _CompletedConnection if self.dispatcher.reads_for_handlers else _ReadyConnection
        )
        self._factory = self._connect  # one and the same for all listeners
        self._listeners: list[Listener] = []
        self._acceptors: list[AcceptHandler] = []
        self._addresses: list[Any] = []
        self._full = False
        self._keeper = threading.Thread(target=self._keep, name="Server-keeper")
        self._keeper_ends = False
        self._asked_to_stop = threading.Event()
        self._in_a_hurry = False
        self._ending = threading.RLock()  # one stop() at a time
        self._ended = False

    # Life

    @property
    def addresses(self) -> list[Any]:
        """Where it listens, or has listened, as socket.getsockname() says; empty before start()."""
        return list(self._addresses)

    def start(self) -> None:
        """Listen, start the threads and return.

        Raises RuntimeError where it was started before, and OSError where the address cannot be
        had.
        """
        if self._addresses or self._ended:
            raise RuntimeError("a server can be started only once")
        self._listeners = listen(self._address, backlog=self._backlog, reuse_port=self._reuse_port)
        self._addresses = [listener.sock.getsockname() for listener in self._listeners]
        try:
            self._logic.start()
            for listener in self._listeners:
                self._accept_from(listener)
            self.dispatcher.start()
        except BaseException:
            self._ended = True
            self.dispatcher.stop()
            self._logic.stop()
            for listener in self._listeners:
                listener.sock.close()
                listener.remove_file()
            raise
        self._keeper.start()

    def _accept_from(self, listener: Listener) -> None:
        acceptor = AcceptHandler(
            None,
            self._factory,
            sock=listener.sock,
            shared=listener.handed_in,
            family=listener.sock.family,
            backlog=self._backlog,
            reuse_port=self._reuse_port,
        )
        self.dispatcher.register_handle(acceptor, acceptor)
        self._acceptors.append(acceptor)

    def run(
        self,
        *,
        ready: Callable[[Server], object] | None = None,
        drain: bool = True,
        timeout: float | None = 30.0,
    ) -> None:
        """Serve until SIGTERM, SIGINT, ask_to_stop() or stop(), and stop then; start() if need be.

        `ready(server)` is called when it listens.  `drain` and `timeout` are those of stop().  A
        second signal cuts the draining short.  Signals are handled where this is the main thread;
        in another one they are the program's.
        """
        with self._signals():
            if not self._addresses:
                self.start()
            try:
                if ready is not None:
                    ready(self)
                # Not for ever: a signal that comes just before it sleeps would not wake it.
                while not self._asked_to_stop.wait(_KEEPER_SECONDS_MAX):
                    pass
            finally:
                self.stop(drain=drain, timeout=timeout)

    def ask_to_stop(self) -> None:
        """Make run() stop the server and return.  Any thread, also from handle()."""
        self._asked_to_stop.set()

    def stop(self, drain: bool = True, timeout: float | None = None) -> None:
        """Listen no more, end every connection and every thread.

        With `drain`, what clients have sent until now is answered, first; without it, only the
        requests that are being handled.  After `timeout` seconds the connections that are left are
        closed as they are.  Any thread but the server's own; a second call does nothing.

        Raises RuntimeError from handle(), and TimeoutError where a handle() still runs then; stop()
        may be called again.
        """
        if threading.current_thread() in self.dispatcher._threads:
            raise RuntimeError("handle() cannot stop its server and wait: use ask_to_stop()")
        deadline = None if timeout is None else time.monotonic() + timeout
        self._asked_to_stop.set()
        with self._ending:
            if self._ended:
                return
            if self._addresses:
                self._stop(drain, deadline)
            else:
                self.dispatcher.stop()
            self._ended = True

    def _stop(self, drain: bool, deadline: float | None) -> None:
        self.dispatcher.stop_accepting()
        if drain and not self._connections.stopping:
            self._connections.drain()
            self._wait_until_drained(deadline)
        self._connections.stop()
        self._stop_threads(deadline)
        self._keeper_ends = True
        with self._connections.changed:
            self._connections.changed.notify_all()
        self._keeper.join()
        self._connections.close_lingering()
        self._logic.stop()  # nobody waits for it any more
        for listener in self._listeners:
            listener.remove_file()

    def _wait_until_drained(self, deadline: float | None) -> None:
        changed = self._connections.changed
        with changed:
            while len(self._connections) or self._connections.lingers:
                left = _KEEPER_SECONDS_MAX if deadline is None else deadline - time.monotonic()
                if left <= 0 or self._in_a_hurry:
                    return
                changed.wait(min(left, _DRAINING_SECONDS))

    def _stop_threads(self, deadline: float | None) -> None:
        """Have the dispatcher end; TimeoutError where a handle() runs beyond the deadline."""
        if deadline is None:
            self.dispatcher.stop(drain=False)
            return
        last = max(deadline, time.monotonic()) + _GRACE_SECONDS
        while True:
            try:
                self.dispatcher.stop(drain=False, timeout=_DRAINING_SECONDS)
                return
            except TimeoutError:
                now = time.monotonic()
                if now > last or (now > deadline and self._connections.handling()):
                    raise

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask for the end, where the program may say so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._in_a_hurry = self._asked_to_stop.is_set()
            self._asked_to_stop.set()

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Connections

    def _connect(self, sock: socket.socket) -> EventHandler | CompletionHandler:
        """Make the handler of a connection that was accepted."""
        connection = self._connection_type(self._connections, sock)
        most = self._max_connections
        if most is not None and len(self._connections) >= most:
            self._full = True
            for acceptor in self._acceptors:
                acceptor.paused = True
                self._change_acceptor(self.dispatcher.suspend, acceptor)
            with self._connections.changed:
                self._connections.changed.notify_all()  # the keeper looks more often from here on
        return connection

    def _change_acceptor(self, change: Callable[[Any], None], acceptor: AcceptHandler) -> None:
        try:
            change(acceptor)
        except (KeyError, ValueError):
            pass  # it does not listen any more

    def _report(self, source: Any, exception: BaseException) -> None:
        try:
            self._on_error(source, exception)
        except BaseException:
            _log.exception("on_error(%r, %r) raised", source, exception)

    # The keeper

    def _keep(self) -> None:
        while not self._keeper_ends:
            with self._connections.changed:
                self._connections.changed.wait(self._keeper_seconds())
            try:
                self._connections.sweep()
                if self._full and len(self._connections) < (self._max_connections or 0):
                    self._full = False
                    for acceptor in self._acceptors:
                        acceptor.paused = False
                        self._change_acceptor(self.dispatcher.resume, acceptor)
            except BaseException as exc:
                self._report(self, exc)

    def _keeper_seconds(self) -> float:
        """How long it may sleep."""
        if self._connections.lingers or self._full:
            return _KEEPER_SECONDS_MIN
        if self._connections.draining:
            return _DRAINING_SECONDS
        timeouts = (self.service.idle_timeout, self.service.request_timeout)
        shortest = min((seconds for seconds in timeouts if seconds is not None), default=None)
        if shortest is None:
            return _KEEPER_SECONDS_MAX
        wished = shortest / _CHECKS_PER_TIMEOUT
        return min(max(wished, _KEEPER_SECONDS_MIN), _KEEPER_SECONDS_MAX)

    # What is to be seen

    def stats(self) -> dict[str, int]:
        """Return the counters.  Any thread.

        connections, lingering         open now; closed, and waiting for the client to stop sending
        accepted, requests             since the start
        bytes_received, bytes_sent     of connections
        errors                         that handle() or a hook raised
        framing_errors, timeouts       that ended a connection; see on_error
        idle_closed                    connections that were closed because nothing came
        queue_depth and others         the dispatcher's, see dispatchers.py
        """
        return {
            **self.dispatcher.stats(),
            **self._connections.stats(),
            "lingering": self._connections.lingers,
        }

    def threads(self) -> dict[int, str]:
        """Return the names of the server's running threads by native id."""
        threads = self.dispatcher.threads()
        if self._keeper.is_alive() and self._keeper.native_id is not None:
            threads[self._keeper.native_id] = self._keeper.name
        return threads
