"""How a program gets the pyreactor loop: run, new_event_loop, and asyncio's policies.

Python 3.14 deprecates asyncio's policies and 3.16 removes them; on 3.14 merely naming
asyncio.DefaultEventLoopPolicy warns.  Therefore EventLoopPolicy is made when it is first used,
and neither it nor install() exists where asyncio has no policies.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import warnings
from asyncio import events, unix_events
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from pyreactor.event_loop import Loop

_T = TypeVar("_T")

HAS_POLICIES = hasattr(events, "set_event_loop_policy")


def new_event_loop() -> Loop:
    """Return a new pyreactor loop; fits every `loop_factory` argument."""
    return Loop()


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run the coroutine `main` on a new pyreactor loop, as asyncio.run() does on its own."""
    if events._get_running_loop() is not None:
        # The runner would find out too, with a longer traceback.
        raise RuntimeError("pyreactor.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


if HAS_POLICIES:

    def install() -> None:
        """Make pyreactor's policy the policy of this process (deprecated from Python 3.14)."""
        _warn_deprecated("pyreactor.install()")
        set_policy()


if TYPE_CHECKING:

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        """asyncio's default policy, making pyreactor loops."""

else:

    def __getattr__(name: str) -> object:
        if name not in ("EventLoopPolicy", "install"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if not HAS_POLICIES:
            raise AttributeError(
                f"pyreactor.{name} does not exist on this Python, whose asyncio has no policies; "
                "use pyreactor.run(main()) or loop_factory=pyreactor.new_event_loop"
            )
        _warn_deprecated("pyreactor.EventLoopPolicy")
        return _policy_class()


def set_policy() -> None:
    """Set pyreactor's policy without a warning, for callers that have given theirs."""
    # From 3.14 on the public name warns and the work is done by this one.
    silent = getattr(events, "_set_event_loop_policy", None)
    (silent or asyncio.set_event_loop_policy)(_policy_class()())


@functools.cache
def _policy_class() -> Callable[[], asyncio.AbstractEventLoopPolicy]:
    # From 3.14 on the public name warns; before, the private one does not exist.
    base: Any = getattr(unix_events, "_DefaultEventLoopPolicy", None)
    if base is None:
        base = asyncio.DefaultEventLoopPolicy

    class EventLoopPolicy(base):  # type: ignore[misc]  # a base chosen at run time
        """asyncio's default policy, making pyreactor loops."""

        _loop_factory = Loop

    EventLoopPolicy.__module__ = "pyreactor"
    EventLoopPolicy.__qualname__ = "EventLoopPolicy"
    return EventLoopPolicy


def _warn_deprecated(what: str) -> None:
    if sys.version_info >= (3, 14):
        warnings.warn(
            f"{what} is deprecated: asyncio's policies end with Python 3.16; "
            "use pyreactor.run(main()) or loop_factory=pyreactor.new_event_loop",
            DeprecationWarning,
            # The line to blame is the user's, whichever module of ours it came through.
            skip_file_prefixes=(os.path.dirname(__file__),),
            stacklevel=2,
        )
