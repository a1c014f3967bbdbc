"""One connection's story: what each end sends, how it ends, and whether it went that way."""

import asyncio
import enum
import os
import random
import socket
import struct

import pattern

HEADER = struct.Struct("<QQQBQ")  # key, bytes up, bytes down, plan, where the plan strikes
WRITE_BYTES_MAX = 96 * 1024
PAUSE_SECONDS_MAX = 0.005


class Plan(enum.IntEnum):
    """How a connection ends.  `up` is from the client to the server, `down` the other way."""

    CLEAN = 0  # both send all, and close once they have all
    HALF_CLOSE = 1  # the client ends its direction first; the server goes on, then closes
    CLIENT_ABORTS = 2
    CLIENT_RESETS = 3
    SERVER_ABORTS = 4
    CLIENT_CLOSES = 5  # without having read everything


ENDS_WHOLE = {Plan.CLEAN, Plan.HALF_CLOSE}


class Broken(AssertionError):
    """A connection that did not go the way it has to."""


class Exchange:
    """What both ends of a connection know of it."""

    def __init__(self, key, up, down, plan, strike):
        self.key, self.up, self.down = key, up, down
        self.plan, self.strike = Plan(plan), strike
        self.inodes = set()
        self.client = self.server = None
        self.faults_before = None

    def header(self):
        return HEADER.pack(self.key, self.up, self.down, self.plan, self.strike)

    def is_broken(self, faults):
        """True where a fault was injected into one of the ends."""
        return any(faults.of(inode) for inode in self.inodes)

    def __repr__(self):
        return (
            f"<Exchange {self.key:#x} {self.plan.name} up={self.up} down={self.down}"
            f" strike={self.strike} inodes={sorted(self.inodes)}>"
        )


class End:
    """One end of an exchange, as a protocol; see make_end().

    `done` is a future that has no result but is set when connection_lost() was called.
    """

    def __init__(self, soak, exchange, is_client):
        self.soak, self.exchange, self.is_client = soak, exchange, is_client
        self.random = random.Random(exchange.key if exchange else soak.random.random())
        self.pumps = True  # False: somebody else sends
        self.transport = None
        self.sent = self.received = 0
        self.early = bytearray()  # of a header that has not come whole
        self.paused = self.ended = self.acting = False
        self.done = soak.loop.create_future()
        self.inode = None

    # What is to come, and what is to go.

    @property
    def to_send(self):
        return self.exchange.up if self.is_client else self.exchange.down

    @property
    def to_receive(self):
        return self.exchange.down if self.is_client else self.exchange.up

    @property
    def send_key(self):
        return self.exchange.key * 2 + (not self.is_client)

    @property
    def receive_key(self):
        return self.exchange.key * 2 + self.is_client

    # The protocol's calls

    def connection_made(self, transport):
        assert self.transport is None, "connection_made() twice"
        self.transport = transport
        sock = transport.get_extra_info("socket")
        self.inode = os.fstat(sock.fileno()).st_ino
        if self.is_client:
            self.exchange.client = self
            self.exchange.inodes.add(self.inode)
            transport.write(self.exchange.header())
            self.start()
        else:
            self.soak.unattached.add(self)

    def start(self):
        if self.random.random() < 0.3:
            # asyncio's TLS with a limit of zero pauses for ever.
            limits = [1 if self.transport.get_extra_info("sslcontext") else 0, 4096, 1 << 20]
            self.transport.set_write_buffer_limits(high=self.random.choice(limits))
        if self.pumps:
            self.soak.loop.call_soon(self.pump)

    def bytes_received(self, data):
        if self.done.done():
            raise Broken("data after connection_lost()")
        if self.exchange is None:
            data = self.take_header(data)
            if data is None:
                return
        if len(data):
            pattern.check(self.receive_key, self.received, data)
            self.received += len(data)
            self.soak.counts["bytes checked"] += len(data)
            if self.received > self.to_receive:
                raise Broken(f"{self.received} bytes of {self.to_receive} came")
        self.act()
        if self.random.random() < 0.05 and not self.transport.is_closing():
            self.transport.pause_reading()
            delay = self.random.random() * PAUSE_SECONDS_MAX
            self.soak.loop.call_later(delay, self.transport.resume_reading)

    def take_header(self, data):
        self.early += data
        if len(self.early) < HEADER.size:
            return None
        self.exchange = self.soak.attach(self, HEADER.unpack_from(self.early))
        self.soak.unattached.discard(self)
        self.exchange.inodes.add(self.inode)
        data, self.early = bytes(self.early[HEADER.size :]), bytearray()
        self.start()
        return data

    def eof_received(self):
        self.ended = True
        if self.exchange is None:
            return False
        if self.exchange.plan in ENDS_WHOLE and self.received != self.to_receive:
            self.soak.blame(self, f"the end came after {self.received} of {self.to_receive} bytes")
        self.act()
        return self.exchange.plan == Plan.HALF_CLOSE and not self.is_client

    def pause_writing(self):
        assert not self.paused or not self.pumps, "pause_writing() twice"
        self.paused = True

    def resume_writing(self):
        # sendfile() without the kernel puts another protocol in our place, which may be the one to
        # hear of the pause.
        assert self.paused or not self.pumps, "resume_writing() without pause_writing()"
        self.paused = False
        if self.exchange is not None:
            self.pump()

    def connection_lost(self, exc):
        assert not self.done.done(), "connection_lost() twice"
        self.done.set_result(None)
        self.soak.unattached.discard(self)
        if self.exchange is not None:
            self.judge(exc)

    # What it does by itself

    def pump(self):
        """Write some, and go on in a later turn."""
        if not self.pumps:
            return
        for _ in range(self.random.randint(1, 4)):
            size = min(self.random.randint(1, WRITE_BYTES_MAX), self.to_send - self.sent)
            if size == 0 or self.paused or self.transport.is_closing():
                break
            data = pattern.make(self.send_key, self.sent, size)
            self.sent += size
            self.write(data)
        self.act()
        if self.sent < self.to_send and not self.paused and not self.transport.is_closing():
            self.soak.loop.call_soon(self.pump_unless_paused)

    def pump_unless_paused(self):
        if not self.paused:
            self.pump()

    def write(self, data):
        match self.random.randrange(4):
            case 0:
                cuts = sorted(self.random.randint(0, len(data)) for _ in range(3))
                parts = zip([0, *cuts], [*cuts, len(data)], strict=True)
                self.transport.writelines([data[a:b] for a, b in parts if a < b])
            case 1:
                changing = bytearray(data)
                self.transport.write(changing)
                # asyncio keeps it by reference from 3.12 on, and its user has to leave it alone.
                if not self.soak.is_asyncio:
                    changing[:] = bytes(len(changing))
            case 2:
                self.transport.write(memoryview(data))
            case _:
                self.transport.write(data)

    def act(self):
        """Do what the plan says, as far as it has come."""
        exchange, transport = self.exchange, self.transport
        if transport.is_closing() or self.acting:
            return
        self.acting = True  # closing may send, and that may call us
        struck = self.received + self.sent >= exchange.strike
        has_sent, has_all = self.sent == self.to_send, self.received == self.to_receive
        match exchange.plan:
            case Plan.CLEAN if has_sent and has_all:
                transport.close()
            case Plan.HALF_CLOSE if self.is_client and has_sent:
                if not getattr(self, "wrote_eof", False):
                    self.wrote_eof = True
                    transport.write_eof()
            case Plan.HALF_CLOSE if not self.is_client and has_sent and self.ended:
                transport.close()
            case Plan.CLIENT_ABORTS if self.is_client and struck:
                transport.abort()
            case Plan.CLIENT_RESETS if self.is_client and struck:
                linger = struct.pack("ii", 1, 0)
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                transport.abort()
            case Plan.SERVER_ABORTS if not self.is_client and struck:
                transport.abort()
            case Plan.CLIENT_CLOSES if self.is_client and struck:
                transport.close()
        self.acting = False

    def judge(self, exc):
        """Say whether the connection may end here, and so."""
        exchange = self.exchange
        if exc is not None and not isinstance(exc, (OSError, asyncio.CancelledError)):
            self.soak.blame(self, f"connection_lost({exc!r})")
        if exchange.plan in ENDS_WHOLE:
            whole = self.received == self.to_receive and self.sent == self.to_send
            if exc is not None or not whole:
                self.soak.blame(
                    self,
                    f"connection_lost({exc!r}) after {self.sent}/{self.to_send} bytes sent and"
                    f" {self.received}/{self.to_receive} received",
                )

    def __repr__(self):
        side = "client" if self.is_client else "server"
        state = f"sent={self.sent} received={self.received} paused={self.paused}"
        return f"<End {side} {state} {self.exchange!r} of {self.transport!r}>"


class StreamEnd(End, asyncio.Protocol):
    """Is given its bytes."""

    data_received = End.bytes_received


class BufferedEnd(End, asyncio.BufferedProtocol):
    """Lends a buffer for its bytes, another one each time."""

    def get_buffer(self, sizehint):
        self.buffer = bytearray(self.random.choice([1, 100, 5000, 70000]))
        return memoryview(self.buffer)  # asyncio's TLS slices it, and would fill a copy

    def buffer_updated(self, count):
        self.bytes_received(bytes(self.buffer[:count]))


def make_end(soak, exchange, is_client):
    """An end of either kind of protocol."""
    kind = soak.random.choice([StreamEnd, BufferedEnd])
    return kind(soak, exchange, is_client)
