"""Services: what is done with a request, whoever does the input and output.

    class Upper(Service):
        framing = Lines()

        def handle(self, request):
            return request.upper()

    Server(Upper(), ("127.0.0.1", 8000)).run()

A service says how the client's bytes are cut into requests, and answers each.  A Server
(service_server.py) runs it, under any of the dispatchers, and the service does not know which.

Requests of one connection are handled one after the other and answered in that order, also where
the client sends many at once.  Those of different connections are handled in several threads at the
same time: what a service keeps for all of them needs a lock; what it keeps for one connection, its
state, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyreactor._service import CloseConnection, Connection, RequestTimeout
from pyreactor.framing import FramingError, Lines

__all__ = [
    "CloseConnection",
    "Connection",
    "CustomFraming",
    "FramingError",
    "RequestTimeout",
    "Service",
]


class CustomFramer(Protocol):
    """Cuts one connection's bytes into requests, as pyreactor.framing.Framer does."""

    @property
    def pending(self) -> int:
        """Bytes held of a request that is not complete."""

    def feed(self, data: bytes, /) -> list[Any]:
        """Return the requests that are now complete.

        Raises FramingError for what cannot be one; its `frames` are those before that.
        """

    def eof(self) -> list[Any]:
        """Return what the client's end makes of the rest.  Raises FramingError if it is cut off."""


class CustomFraming(Protocol):
    """What Service.framing is, beside the framings of pyreactor.framing."""

    def framer(self) -> CustomFramer:
        """Return a framer for a new connection."""

    def encode(self, payload: Any, /) -> bytes:
        """Return what is sent for an answer."""


class Service:
    """Answers requests.  Subclass it and define handle(), or give it a function.

    The attributes may be set in a subclass, or by name when it is made:

    framing            how requests are cut out of the client's bytes, and answers marked off; one
                       of pyreactor.framing, or a CustomFraming
    state              called with the Connection when a client has connected; what it returns is
                       the second argument of handle() for that client.  None: handle() takes the
                       request alone
    idle_timeout       seconds: a client that sends nothing for so long, or does not read what it is
                       sent, is disconnected.  None: never
    request_timeout    seconds that one request may take from its first byte to the end of handle().
                       None: any time.  A handle() that takes longer is not interrupted, but its
                       client is disconnected at once
    max_request_bytes  the largest request, where it is to be less than the framing allows
    """

    framing: CustomFraming = Lines()
    state: Callable[[Connection], Any] | None = None
    idle_timeout: float | None = 60.0
    request_timeout: float | None = 60.0
    max_request_bytes: int | None = None

    def __init__(
        self,
        handle: Callable[..., Any] | None = None,
        **attributes: Any,
    ) -> None:
        """Make a service; `handle` is for one that is no subclass.

        Raises TypeError where nothing handles requests, and for an unknown attribute.
        """
        known = {"framing", "state", "idle_timeout", "request_timeout", "max_request_bytes"}
        for name, value in attributes.items():
            if name not in known:
                raise TypeError(f"a service has no {name!r}; it has {', '.join(sorted(known))}")
            setattr(self, name, value)
        if handle is not None:
            self.handle = handle  # type: ignore[method-assign]
        elif type(self).handle is Service.handle:
            raise TypeError("define handle() in a subclass, or give a function: Service(function)")

    def handle(self, request: Any, *state: Any) -> Any:
        """Return the answer to a request: bytes, which the framing makes ready to be sent, or None.

        It may block: other connections are handled meanwhile, as far as the server has threads.
        What it raises is reported, and ends the connection with the answers so far; CloseConnection
        ends it without being an error.
        """
        raise NotImplementedError

    def encode(self, response: Any) -> bytes:
        """Return the bytes to be sent for an answer; by default, what the framing makes of it."""
        return self.framing.encode(response)

    def connection_made(self, connection: Connection) -> Any:
        """A client has connected.  What it returns is sent first, if not None.

        Called after `state`, in a thread that handles requests, before the first of them.
        """

    def connection_lost(self, connection: Connection, exception: BaseException | None) -> None:
        """It is over, and closed: the client has ended it, or the server, or an exception.

        Called once for each connection_made() that has returned.
        """

    def _own(self, name: str) -> Any:
        """The method of that name, or None where a subclass has not defined it."""
        return None if getattr(type(self), name) is getattr(Service, name) else getattr(self, name)

    def _check(self) -> None:
        """Raise TypeError or ValueError for attributes that make no sense."""
        for method in ("framer", "encode"):
            if not callable(getattr(self.framing, method, None)):
                raise TypeError(
                    f"the framing {self.framing!r} has no {method}():"
                    " take one of pyreactor.framing, or define framer() and encode()"
                )
        for name in ("idle_timeout", "request_timeout", "max_request_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is more than 0, or None; not {value!r}")
