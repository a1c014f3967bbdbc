"""The concurrency models by name: what `dispatcher=` of a Server may be.

One entry makes a model known to servers, to their tests and to `python -m pyreactor models`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyreactor import demultiplexers
from pyreactor._demux import DemultiplexerCore
from pyreactor.dispatchers import (
    EfficientHalfSyncHalfAsync,
    HalfSyncHalfAsync,
    HalfSyncHalfReactive,
    LeaderFollowers,
    Reactor,
    _Dispatcher,
)
from pyreactor.handle_set import ErrorHook, HandleSet
from pyreactor.proactor import Proactor, SimulatedProactor, new_proactor

__all__ = ["MODELS", "Model", "Setup", "make_dispatcher"]

_DEMULTIPLEXERS: dict[str, type[DemultiplexerCore]] = {
    "epoll": demultiplexers.EpollDemultiplexer,
    "io_uring": demultiplexers.UringDemultiplexer,
    "poll": demultiplexers.PollDemultiplexer,
    "select": demultiplexers.SelectDemultiplexer,
}


class Setup(NamedTuple):
    """What every model is told; `options` are its own."""

    workers: int | None
    demultiplexer: Any  # None, a name, a class or an object
    queue: Any  # None: the model's own
    strict: bool
    affinity: bool | list[int] | None
    on_error: ErrorHook
    options: dict[str, Any]

    def one_demultiplexer(self) -> DemultiplexerCore:
        """Return one, for a model that waits in one place."""
        if isinstance(self.demultiplexer, DemultiplexerCore):
            return self.demultiplexer
        return self.demultiplexers()()

    def demultiplexers(self) -> Callable[[], DemultiplexerCore]:
        """Return what makes them, for a model that waits in several places."""
        if self.demultiplexer is None:
            return demultiplexers.EpollDemultiplexer
        if isinstance(self.demultiplexer, str):
            if self.demultiplexer not in _DEMULTIPLEXERS:
                raise ValueError(
                    f"there is no demultiplexer {self.demultiplexer!r};"
                    f" there are {', '.join(_DEMULTIPLEXERS)}"
                )
            return _DEMULTIPLEXERS[self.demultiplexer]
        if not callable(self.demultiplexer):
            raise TypeError(
                f"a demultiplexer's name or class was expected, not {self.demultiplexer!r}"
            )
        made: Callable[[], DemultiplexerCore] = self.demultiplexer
        return made

    def common(self) -> dict[str, Any]:
        """Return the arguments that all dispatchers have."""
        return {
            "strict": self.strict,
            "affinity": self.affinity,
            "on_error": self.on_error,
            **self.options,
        }

    def queued(self) -> dict[str, Any]:
        """Return the same for those with a request queue."""
        return {**self.common(), "queue": "lockfree" if self.queue is None else self.queue}

    def refuse_queue(self, model: str) -> None:
        """Raise TypeError where a queue was given to a model without one."""
        if self.queue is not None:
            raise TypeError(f"{model} has no request queue, so that none can be chosen")


class Model(NamedTuple):
    """One way to share the work among threads."""

    make: Callable[[Setup], _Dispatcher]
    summary: str  # who waits, who reads and writes, who handles


def _reactor(setup: Setup) -> _Dispatcher:
    return Reactor(setup.one_demultiplexer(), workers=setup.workers, **setup.queued())


def _half_reactive(setup: Setup) -> _Dispatcher:
    demultiplexer = setup.one_demultiplexer()
    return HalfSyncHalfReactive(
        demultiplexer=demultiplexer, workers=setup.workers, **setup.queued()
    )


def _half_async(setup: Setup) -> _Dispatcher:
    return HalfSyncHalfAsync(setup.demultiplexers(), sync_threads=setup.workers, **setup.queued())


def _efficient(setup: Setup) -> _Dispatcher:
    setup.refuse_queue("efficient-half-sync-half-async")
    return EfficientHalfSyncHalfAsync(
        loops=setup.workers, demultiplexer=setup.demultiplexers(), **setup.common()
    )


def _leader_followers(setup: Setup) -> _Dispatcher:
    setup.refuse_queue("leader-followers")
    common = setup.common()
    handle_set = HandleSet(
        setup.one_demultiplexer(), strict=common.pop("strict"), on_error=setup.on_error
    )
    return LeaderFollowers(handle_set, threads=setup.workers, **common)


def _proactor(setup: Setup) -> _Dispatcher:
    setup.refuse_queue("proactor")
    kind = setup.options.pop("proactor", "kernel")
    if kind not in _PROACTORS:
        raise ValueError(f"proactor= is one of {', '.join(_PROACTORS)}; not {kind!r}")
    if kind == "simulated":
        return _simulated_proactor(setup)
    if setup.demultiplexer is not None:
        raise TypeError(
            "a proactor is told by the kernel what has been done, and waits with no demultiplexer:"
            ' leave it out, or take "simulated-proactor"'
        )
    return _PROACTORS[kind](workers=setup.workers, **setup.common())


def _simulated_proactor(setup: Setup) -> _Dispatcher:
    setup.refuse_queue("simulated-proactor")
    demultiplexer = setup.demultiplexer
    if not isinstance(demultiplexer, DemultiplexerCore):
        demultiplexer = setup.demultiplexers()
    return SimulatedProactor(demultiplexer, workers=setup.workers, **setup.common())


_PROACTORS: dict[str, Callable[..., _Dispatcher]] = {
    "kernel": Proactor,
    "simulated": SimulatedProactor,
    "auto": new_proactor,
}

MODELS: dict[str, Model] = {
    "reactor": Model(
        _reactor,
        "the main thread waits and tells workers through a queue; they accept, read, handle, write",
    ),
    "half-sync-half-reactive": Model(
        _half_reactive,
        "the main thread waits and accepts; workers read, handle, write (mode='simulated_proactor':"
        " the main thread reads and writes)",
    ),
    "half-sync-half-async": Model(
        _half_async,
        "asynchronous threads wait, accept, read and write; synchronous threads handle",
    ),
    "efficient-half-sync-half-async": Model(
        _efficient,
        "the main thread accepts; each worker waits, reads, handles and writes for its own"
        " connections",
    ),
    "leader-followers": Model(
        _leader_followers,
        "one thread waits, makes another the leader, then reads, handles and writes itself",
    ),
    "proactor": Model(
        _proactor,
        "the kernel accepts, reads and writes (io_uring); the main thread chooses a worker for"
        " each result, which handles (proactor='auto': simulated where there is no io_uring)",
    ),
    "simulated-proactor": Model(
        _simulated_proactor,
        "the main thread waits, accepts, reads, writes, and chooses a worker, which handles",
    ),
}


def make_dispatcher(name: str, setup: Setup) -> _Dispatcher:
    """Make the dispatcher of that name.

    Raises ValueError for an unknown name, and what the dispatcher itself raises for its arguments:
    a proactor OSError, where io_uring cannot be had.
    """
    if name not in MODELS:
        raise ValueError(f"there is no dispatcher {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name].make(setup)
