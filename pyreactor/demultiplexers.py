"""Demultiplexers: one call of the kernel that waits for many descriptors.

    class                  waits in                      and is there
    SelectDemultiplexer    select()                      for descriptors below FD_SETSIZE (1024)
    PollDemultiplexer      poll()                        always
    EpollDemultiplexer     epoll_wait()                  always; the one to use
    UringDemultiplexer     io_uring, operation POLL      from Linux 5.11, where it is not forbidden
    SignalDemultiplexer    sigtimedwait() for SIGIO      for sockets, pipes and terminals

Each is a `selectors.BaseSelector`, too.  register(), modify() and unregister() may be called from
any thread, also while another one waits, and take effect for that wait; wait() and select() by one
thread at a time.  A descriptor is unregistered before it is closed.
"""

from __future__ import annotations

import errno
import selectors
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from pyreactor import _demux

EVENT_READ = selectors.EVENT_READ
EVENT_WRITE = selectors.EVENT_WRITE
EVENT_EXCEPTION = _demux.EXCEPTIONAL  # urgent (out-of-band) data

_EVENTS = EVENT_READ | EVENT_WRITE | EVENT_EXCEPTION
_EVENTS_PER_WAIT_MIN = 64  # that there is room for, however few descriptors are registered
_GENERATIONS = 1 << 32


class Demultiplexer(_demux.DemultiplexerCore, selectors.BaseSelector):
    """What every demultiplexer is; use one of the derived classes."""

    _name = ""
    _flags = 0

    def __init__(self) -> None:
        """Make an empty set.  Raises OSError, with the reason, where the kernel has none such."""
        self._open(self._name)
        # By descriptor: the generation, which marks events of an earlier registration, and the key.
        self._registered: dict[int, tuple[int, selectors.SelectorKey]] = {}
        self._last_generation = 0
        self._changes = threading.RLock()
        self._map = _KeysByFile(self)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Add a file object or descriptor for some of the EVENT_ constants.  Any thread.

        Raises ValueError for unknown events and for what is no file, KeyError where it is
        registered already, and OSError where the kernel refuses it: PermissionError for what this
        demultiplexer cannot wait for, such as a regular file for epoll.
        """
        _check_events(events)
        key = selectors.SelectorKey(fileobj, _descriptor(fileobj), events, data)
        with self._changes:
            if key.fd in self._registered:
                raise KeyError(f"{fileobj!r} (descriptor {key.fd}) is already registered")
            generation = self._new_generation()
            # Known before the kernel knows it: an event may come at once.
            self._registered[key.fd] = (generation, key)
            try:
                self._add(key.fd, generation, events | self._flags)
            except BaseException:
                del self._registered[key.fd]
                raise
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what is wanted of it; arms a one-shot registration again.  Any thread.

        Raises ValueError and KeyError as register() does, KeyError where it is not registered.
        """
        _check_events(events)
        with self._changes:
            generation, key = self._find(fileobj)
            changed = key._replace(events=events, data=data)
            self._registered[key.fd] = (generation, changed)
            if events != key.events or self._flags & _demux.ONE_SHOT:
                try:
                    self._modify(key.fd, generation, events | self._flags)
                except BaseException:
                    self._forget(key.fd)
                    raise
        return changed

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Take it out.  Any thread.  Raises KeyError where it is not registered."""
        with self._changes:
            _, key = self._find(fileobj)
            self._forget(key.fd)
        return key

    remove = unregister

    def wait(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """Wait, and return the (descriptor, events) that are ready.

        `timeout` is in seconds: None waits without limit, 0 or less not at all.  The list is empty
        when the time is over.  Raises RuntimeError where another thread waits.
        """
        return [(key.fd, events) for key, events in self.select(timeout)]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As wait(), with the keys: what `selectors` has."""
        room = max(len(self._registered), _EVENTS_PER_WAIT_MIN)
        ready = []
        for fd, generation, events in self._wait(room, timeout):
            registered = self._registered.get(fd)
            if registered is None or registered[0] != generation:
                continue  # unregistered while the event was on its way
            key = registered[1]
            ready.append((key, events & key.events or key.events))
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return a view of the keys by file object."""
        return self._map

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return its key.  Raises KeyError where it is not registered, RuntimeError if closed."""
        if self._closed():
            raise RuntimeError("Selector is closed")
        return self._map[fileobj]

    def close(self) -> None:
        """Forget everything; the descriptors stay open.  When no other thread uses it."""
        with self._changes:
            for fd in list(self._registered):
                self._forget(fd)
            self._close()

    def _closed(self) -> bool:
        try:
            self._fileno()
        except ValueError:
            return True
        return False

    def _new_generation(self) -> int:
        self._last_generation = (self._last_generation + 1) % _GENERATIONS
        return self._last_generation

    def _forget(self, fd: int) -> None:
        del self._registered[fd]
        self._remove(fd)

    def _find(self, fileobj: Any) -> tuple[int, selectors.SelectorKey]:
        try:
            return self._registered[self._lookup(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def _lookup(self, fileobj: Any) -> int:
        """The descriptor under which it is, or would be, registered; also of a closed object."""
        try:
            return _descriptor(fileobj)
        except ValueError:
            for _, key in list(self._registered.values()):
                if key.fileobj is fileobj:
                    return key.fd
            raise


class SelectDemultiplexer(Demultiplexer):
    """select(): the oldest; it costs what is watched, and knows descriptors below 1024 only."""

    _name = "select"

    def _add(self, fd: int, generation: int, events: int) -> None:
        try:
            super()._add(fd, generation, events)
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            raise ValueError(
                f"select() has no room for descriptor {fd}: FD_SETSIZE is 1024;"
                " use PollDemultiplexer or EpollDemultiplexer"
            ) from None


class PollDemultiplexer(Demultiplexer):
    """poll(): any descriptor; it costs what is watched."""

    _name = "poll"


class EpollDemultiplexer(Demultiplexer):
    """epoll_wait(): any number of descriptors; it costs what happened."""

    _name = "epoll"

    def __init__(
        self, trigger: str = "level", *, one_shot: bool = False, exclusive: bool = False
    ) -> None:
        """Make an empty epoll set; the arguments hold for everything that is registered.

        trigger    "level" reports while a descriptor is ready, "edge" when it becomes so
        one_shot   reports once, and then not until modify()
        exclusive  one event wakes one of several epoll sets; not with `one_shot`

        Raises ValueError for an unknown trigger and for one_shot with exclusive, which the kernel
        does not have.
        """
        if trigger not in ("level", "edge"):
            raise ValueError(f"the trigger is 'level' or 'edge', not {trigger!r}")
        if one_shot and exclusive:
            raise ValueError("the kernel has no epoll entry that is both one-shot and exclusive")
        super().__init__()
        self._flags = (
            (_demux.EDGE if trigger == "edge" else 0)
            | (_demux.ONE_SHOT if one_shot else 0)
            | (_demux.EXCLUSIVE if exclusive else 0)
        )

    def fileno(self) -> int:
        """Return the descriptor of the epoll set."""
        return self._fileno()


class UringDemultiplexer(Demultiplexer):
    """io_uring's poll operations: readiness from the ring that can also do the work itself."""

    _name = "io_uring"


class SignalDemultiplexer(Demultiplexer):
    """SIGIO: the kernel signals the thread that waits.

    The signal is the real-time signal SIGRTMIN+1, with the descriptor in it; when the kernel's
    queue of signals is full it sends a plain SIGIO, and every descriptor is looked at.  wait()
    blocks both signals in its thread and takes them there: no signal handler runs.  Only sockets,
    pipes and terminals can signal; others raise PermissionError.
    """

    _name = "sigio"


class _KeysByFile(Mapping[Any, selectors.SelectorKey]):
    """The view that get_map() returns."""

    def __init__(self, demultiplexer: Demultiplexer) -> None:
        self._demultiplexer = demultiplexer

    def __len__(self) -> int:
        return len(self._demultiplexer._registered)

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self._demultiplexer._find(fileobj)[1]

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._demultiplexer._registered))


def _check_events(events: int) -> None:
    if not events or events & ~_EVENTS:
        raise ValueError(f"Invalid events: {events!r}")


def _descriptor(fileobj: Any) -> int:
    if isinstance(fileobj, int):
        fd = fileobj
    else:
        try:
            fd = int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fileobj!r}") from None
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")
    return fd
