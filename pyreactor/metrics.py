"""What a loop tells about itself: the figures that its core always counts."""

from __future__ import annotations

from typing import NamedTuple

# The kinds of transports, by the names of their classes, and the fields that count them.
OPEN_TRANSPORTS = {
    "StreamTransport": "open_streams",
    "DatagramTransport": "open_datagrams",
    "ReadPipeTransport": "open_read_pipes",
    "WritePipeTransport": "open_write_pipes",
}


class LoopMetrics(NamedTuple):
    """The figures of one loop at one moment, since it was made.

    What ends in `_ns` is nanoseconds of the monotonic clock.  What is not said to be a state only
    grows.  `_asdict()` gives plain values for json and the like.

    Read from the loop's own thread the figures belong together.  Read from another, each is right
    by itself, but the loop goes on counting while they are read.
    """

    backend: str
    """The kernel interface in use: 'epoll'."""

    turns: int
    """Turns that have ended: a poll or a sleep, then the callbacks of what it brought."""

    callbacks: int
    """Handles run: call_soon()'s, call_soon_threadsafe()'s and timers'.  What runs because of a
    descriptor's event (readers, protocols) is counted by `events`."""

    threadsafe_callbacks: int
    """Callbacks that came from other threads, by call_soon_threadsafe()."""

    wakeups: int
    """Sleeps that another thread or a signal had to end."""

    polls: int
    """Waits that reached the kernel; the loop leaves some out while it is busy."""

    empty_polls: int
    """Of these, the ones that brought no event."""

    events: int
    """Descriptors' events that the kernel reported."""

    stale_events: int
    """Of these, the ones that came for a descriptor nobody watched any more; no harm."""

    ready: int
    """State: how many callbacks the latest turn found ready or due when it began."""

    ready_max: int
    """The most that any turn has found."""

    busy_ns: int
    """How long the loop has run callbacks, or looked for work without sleeping.  Up to now."""

    idle_ns: int
    """How long it has slept in the kernel.  Up to now.  `busy_ns + idle_ns` is how long it has
    run; the time between two runs is in neither."""

    turn_max_ns: int
    """The longest turn, without its sleep."""

    turns_by_log2_ns: tuple[int, ...]
    """How long turns took, without their sleep.  The number at index i is of the turns that took
    2**i ns or more, but less than 2**(i + 1); the last has no upper end.  What became ready during
    a turn has waited for at most this long."""

    timers_pending: int
    """State: timers that are neither due nor cancelled."""

    timers_fired: int
    """Timers that came due."""

    timers_cancelled: int
    """Timers cancelled before, or given up when the loop was closed."""

    timers_by_log2_lateness_ns: tuple[int, ...]
    """How long after its deadline a turn found each timer due; buckets as in
    `turns_by_log2_ns`."""

    connections_accepted: int
    """Connections that the loop's servers have accepted."""

    bytes_received: int
    """Bytes that transports have received, as they came: with TLS, the encrypted ones."""

    bytes_sent: int
    """Bytes that the kernel has taken from transports; without those of sendfile()."""

    open_streams: int
    """State: TCP and Unix connections whose connection_lost() is still to come."""

    open_datagrams: int
    """State: datagram endpoints whose connection_lost() is still to come."""

    open_read_pipes: int
    """State: reading ends of pipes, and other files read, whose connection_lost() is to come."""

    open_write_pipes: int
    """State: writing ends of pipes, and other files written, whose connection_lost() is to come."""

    open_listeners: int
    """State: sockets on which servers accept."""
