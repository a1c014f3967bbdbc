"""Finite state machines.

A TransitionTable lists transitions and is checked when it is made; each StateMachine is in one of
its states and takes one transition at a time.  The table is looked up in C, guards and actions are
functions of Python.

    table = TransitionTable(
        [
            Transition("closed", "open", "opened", guard=is_unlocked),
            Transition("opened", "close", "closed", action=ring),
        ],
        initial="closed",
    )
    door = StateMachine(table)
    door.handle("open")     # "opened"
    door.handle("open")     # raises IllegalTransition

pyreactor.fsm.http1 is the machine for the head of an HTTP/1 request, in C altogether.
"""

from pyreactor._fsm import (
    IllegalTransition,
    StateMachine,
    TableError,
    Transition,
    TransitionTable,
)

__all__ = ["IllegalTransition", "StateMachine", "TableError", "Transition", "TransitionTable"]
