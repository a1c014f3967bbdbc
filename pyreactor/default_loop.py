"""Makes pyreactor the loop that asyncio gives to a program that does not name one.

Only the command line does this, to a process that it starts for one program; importing pyreactor
never does.  asyncio has three doors to its default loop, and all three must lead here:

- the policy, behind asyncio.run(), Runner(), new_event_loop() and get_event_loop();
- from Python 3.16 on, where policies are gone, events.new_event_loop() itself;
- the class names asyncio.SelectorEventLoop and asyncio.EventLoop, which frameworks name when they
  mean "asyncio's own" (uvicorn does).
"""

from __future__ import annotations

import asyncio
from asyncio import events
from typing import Any

from pyreactor import policy
from pyreactor.policy import new_event_loop


def replace() -> None:
    """Let asyncio's default loop be pyreactor's, for the rest of this process."""
    selector_loop = asyncio.SelectorEventLoop
    stand_in = _stand_in_for(selector_loop)
    for name in ("SelectorEventLoop", "EventLoop"):  # EventLoop: from 3.13 on
        if getattr(asyncio, name, None) is selector_loop:
            setattr(asyncio, name, stand_in)
    if policy.HAS_POLICIES:
        policy.set_policy()
    else:
        events.new_event_loop = asyncio.new_event_loop = new_event_loop


def _stand_in_for(selector_loop: type) -> type:
    """A class that makes pyreactor loops when called plainly.

    With arguments, as the base of another class, and in isinstance() it is still `selector_loop`:
    whoever passes a selector or inherits wants that loop's inside, not just a loop.
    """

    class StandIn(type(selector_loop)):  # type: ignore[misc]  # the metaclass is not known here
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is stand_in and not args and not kwargs:
                return new_event_loop()
            return super().__call__(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            if cls is stand_in:
                return isinstance(instance, selector_loop)
            return bool(super().__instancecheck__(instance))

        def __subclasscheck__(cls, subclass: type) -> bool:
            if cls is stand_in:
                return issubclass(subclass, selector_loop)
            return bool(super().__subclasscheck__(subclass))

    stand_in = StandIn(selector_loop.__name__, (selector_loop,), {"__module__": "asyncio"})
    return stand_in
