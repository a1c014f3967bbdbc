from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, Self, TypeVar

from typing_extensions import disjoint_base

_S = TypeVar("_S", bound=Hashable)
_E = TypeVar("_E", bound=Hashable)

class TableError(ValueError):
    problems: tuple[str, ...]
    def __init__(self, *problems: str) -> None: ...

class IllegalTransition(RuntimeError):
    state: Any
    event: Any
    refused: bool
    def __init__(self, state: Any, event: Any, refused: bool = False) -> None: ...

class Transition(NamedTuple):
    source: Any
    event: Any
    target: Any
    guard: Callable[..., object] | None = None
    action: Callable[..., object] | None = None

@disjoint_base
class TransitionTable(Generic[_S, _E]):
    def __new__(
        cls,
        transitions: Iterable[
            Transition
            | tuple[_S, _E, _S | None]
            | tuple[_S, _E, _S | None, Callable[..., object] | None]
            | tuple[
                _S,
                _E,
                _S | None,
                Callable[..., object] | None,
                Callable[..., object] | None,
            ]
        ],
        *,
        initial: _S,
        final: Iterable[_S] = (),
        entry: Mapping[_S, Callable[..., object]] | None = None,
        exit: Mapping[_S, Callable[..., object]] | None = None,
        complete: bool = False,
    ) -> Self: ...
    def __class_getitem__(cls, item: Any) -> Any: ...
    @property
    def transitions(self) -> tuple[Transition, ...]: ...
    @property
    def states(self) -> tuple[_S, ...]: ...
    @property
    def events(self) -> tuple[_E, ...]: ...
    @property
    def initial(self) -> _S: ...
    @property
    def final(self) -> frozenset[_S]: ...
    @property
    def entry(self) -> Mapping[_S, Callable[..., object]]: ...
    @property
    def exit(self) -> Mapping[_S, Callable[..., object]]: ...
    def to_dot(self) -> str: ...

@disjoint_base
class StateMachine(Generic[_S, _E]):
    def __init__(self, table: TransitionTable[_S, _E], context: Any = None) -> None: ...
    def __class_getitem__(cls, item: Any) -> Any: ...
    @property
    def table(self) -> TransitionTable[_S, _E]: ...
    @property
    def context(self) -> Any: ...
    @property
    def state(self) -> _S: ...
    @property
    def finished(self) -> bool: ...
    @property
    def events(self) -> tuple[_E, ...]: ...
    def allows(self, event: _E, *arguments: Any) -> bool: ...
    def handle(self, event: _E, *arguments: Any) -> _S: ...
