"""Peer: a node among equals, which serves requests and makes them, on one event loop.

A client/server system has a server that only answers and clients that only ask.  Here each node
does both: it listens, and connects to the others.  A connection that fails leaves all others as
they are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple, Self

from pyreactor.framing import Framing, FramingError, LengthPrefixed

__all__ = ["Peer", "PeerStats"]

Address = tuple[str, int]
Handler = Callable[[bytes], bytes | Awaitable[bytes]]

_RECEIVE_BYTES = 64 * 1024


class PeerStats(NamedTuple):
    """What a peer does at the moment, and what it has done."""

    accepted: int  # connections open that others have made
    initiated: int  # connections open that it has made itself
    served: int  # requests of others that it has answered
    answered: int  # requests of its own that were answered


class Peer:
    """A node that serves `handle(request) -> response`, and asks others.

    `handle` takes and returns bytes, and may be a coroutine function; it runs on the loop, one
    request of a connection after the other.  An exception in it is reported to the loop's exception
    handler and ends that connection.  `framing` cuts the streams, in both directions and on all
    peers the same.  Runs on any asyncio loop; loop thread only.
    """

    def __init__(self, handle: Handler, framing: Framing | None = None) -> None:
        self._handle = handle
        self._framing = LengthPrefixed() if framing is None else framing
        self._server: asyncio.Server | None = None
        self._accepted: set[asyncio.Task[None]] = set()
        self._links: dict[Address, _Link] = {}
        self._connecting: dict[Address, asyncio.Lock] = {}
        self._served = 0
        self._answered = 0
        self._closed = False

    # Serving

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> Address:
        """Begin to serve; return the address.  A `port` of 0 takes a free one.

        Raises OSError where the address cannot be had, RuntimeError where it listens or is closed.
        """
        self._check_open()
        if self._server is not None:
            raise RuntimeError("this peer listens already")
        self._server = await asyncio.start_server(self._serve, host, port)
        return self.address

    @property
    def address(self) -> Address:
        """Where it listens.  Raises RuntimeError where it does not."""
        if self._server is None or not self._server.sockets:
            raise RuntimeError("this peer does not listen")
        host, port, *_ = self._server.sockets[0].getsockname()
        return host, port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._accepted.add(task)
        try:
            await self._answer_all(reader, writer)
        except (OSError, FramingError):
            pass  # the other has gone, or does not speak as agreed: this connection is over
        except asyncio.CancelledError:
            if not self._closed:
                raise
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a peer's handler has failed", "exception": error}
            )
        finally:
            self._accepted.discard(task)
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = self._framing.framer()
        broken = None
        while broken is None and (data := await reader.read(_RECEIVE_BYTES)):
            try:
                requests = framer.feed(data)
            except FramingError as error:
                requests, broken = error.frames, error
            for request in requests:
                response = self._handle(request)
                if inspect.isawaitable(response):
                    response = await response
                writer.write(self._framing.encode(response))
                self._served += 1
            await writer.drain()
        if broken is not None:
            raise broken

    # Asking

    async def connect(self, address: Address) -> None:
        """Connect to another peer, unless it is connected to it already.

        Raises OSError where that fails, RuntimeError where this peer is closed.
        """
        await self._link_to(address)

    async def request(self, address: Address, payload: bytes) -> bytes:
        """Ask another peer, connecting first where needed, and return its response.

        Several requests may be on their way to one peer; they are answered in their order.  Raises
        OSError where it cannot be reached or the connection ends before the response: then the
        request may have been handled or not.  Raises FramingError for a payload that the framing
        does not take.
        """
        encoded = self._framing.encode(payload)
        link = await self._link_to(address)
        response = await link.ask(encoded)
        self._answered += 1
        return response

    async def _link_to(self, address: Address) -> _Link:
        self._check_open()
        address = (address[0], address[1])
        async with self._connecting.setdefault(address, asyncio.Lock()):
            link = self._links.get(address)
            if link is None or link.ended:
                reader, writer = await asyncio.open_connection(*address)
                if self._closed:
                    writer.close()
                self._check_open()
                link = self._links[address] = _Link(self._framing, reader, writer)
            return link

    # The whole

    def stats(self) -> PeerStats:
        """Return what it does and has done."""
        return PeerStats(
            accepted=len(self._accepted),
            initiated=sum(not link.ended for link in self._links.values()),
            served=self._served,
            answered=self._answered,
        )

    async def close(self) -> None:
        """Stop listening and end all connections.  Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        ending = [*self._accepted, *(link.end() for link in self._links.values())]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this peer is closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class _Link:
    """A connection that this peer has made: requests leave on it, responses come in their order."""

    def __init__(
        self, framing: Framing, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._framer = framing.framer()
        self._reader = reader
        self._writer = writer
        self._waiting: deque[asyncio.Future[bytes]] = deque()  # cancelled ones keep their place
        self._task = asyncio.create_task(self._receive())
        self.ended = False

    async def ask(self, encoded: bytes) -> bytes:
        if self.ended:
            raise ConnectionResetError("the peer has closed the connection")
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(response)
        self._writer.write(encoded)
        try:
            await self._writer.drain()
        except BaseException:
            response.cancel()  # nobody will ask it what became of it
            raise
        return await response

    async def _receive(self) -> None:
        error: Exception = ConnectionResetError("the peer has closed the connection")
        try:
            while data := await self._reader.read(_RECEIVE_BYTES):
                for frame in self._framer.feed(data):
                    self._settle(frame)
        except OSError as exc:
            error = exc
        except FramingError as exc:
            for frame in exc.frames:
                self._settle(frame)
            error = ConnectionAbortedError(f"the peer does not speak as agreed: {exc}")
        finally:
            self.ended = True
            self._writer.close()
            for response in self._waiting:
                if not response.done():
                    response.set_exception(error)

    def _settle(self, frame: bytes) -> None:
        if not self._waiting:
            raise FramingError("a response came that nobody has asked for")
        response = self._waiting.popleft()
        if not response.done():
            response.set_result(frame)

    def end(self) -> asyncio.Task[None]:
        """What is to be cancelled and waited for."""
        return self._task
