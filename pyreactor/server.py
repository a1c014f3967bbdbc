"""The server: listening sockets and the connections that they brought.

The semantics are those of CPython 3.13 on every earlier version, too: wait_closed() waits for the
connections, closing ends serve_forever(), and close_clients() and abort_clients() exist.
"""

import sys
from asyncio import base_events, exceptions

_CLOSES_CLIENTS = sys.version_info >= (3, 14)  # when serve_forever() ends, as asyncio does


class Server(base_events.Server):
    """What create_server() returns: an asyncio.Server.  The loop's thread only."""

    def __init__(self, *args):
        super().__init__(*args)
        # The loop keeps open transports alive; they leave when connection_lost() has returned.
        self._clients = set()
        self._waiters = []

    def _attach(self, transport):
        self._clients.add(transport)

    def _detach(self, transport):
        self._clients.discard(transport)
        self._wake_if_done()

    def _wake_if_done(self):
        """Wake wait_closed() once the server is closed and its last connection is gone."""
        if self._sockets is not None or self._clients or self._waiters is None:
            return
        waiters, self._waiters = self._waiters, None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self):
        """Stop listening and end serve_forever(); connections stay open.  Twice is allowed."""
        sockets = self._sockets
        if sockets is None:
            return
        self._sockets = None
        self._serving = False
        for sock in sockets:
            self._loop._stop_serving(sock)
        serving = self._serving_forever_fut
        if serving is not None and not serving.done():
            serving.cancel()
            self._serving_forever_fut = None
        self._wake_if_done()

    def close_clients(self):
        """Close every connection after what was written to it is sent."""
        for transport in list(self._clients):
            transport.close()

    def abort_clients(self):
        """Close every connection now."""
        for transport in list(self._clients):
            transport.abort()

    async def serve_forever(self):
        """Serve until the server is closed or this call is cancelled, which closes it.

        Ends with CancelledError either way, once the last connection is gone; from Python 3.14 on
        they are closed.  Raises RuntimeError where the server is closed or serves already.
        """
        if self._serving_forever_fut is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._start_serving()
        self._serving_forever_fut = self._loop.create_future()
        try:
            await self._serving_forever_fut
        except exceptions.CancelledError:
            self.close()
            if _CLOSES_CLIENTS:
                self.close_clients()
            await self.wait_closed()
            raise
        finally:
            self._serving_forever_fut = None

    async def wait_closed(self):
        """Wait until the server is closed and its last connection is gone, in either order."""
        if self._waiters is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter
