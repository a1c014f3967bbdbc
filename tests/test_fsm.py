"""State machines: steps, what is refused, and the same walks as a model in plain Python."""

import enum
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyreactor.fsm import (
    IllegalTransition,
    StateMachine,
    TableError,
    Transition,
    TransitionTable,
)


class Door(enum.Enum):
    CLOSED = 1
    OPENED = 2
    GONE = 3


def locked(log, key=None):
    return key is not None


def unlock(log, key=None):
    log.append(f"unlock {key}")


def creak(log, key=None):
    log.append("creak")


def slam(log, key=None):
    log.append("slam")


def door_table(**options):
    return TransitionTable(
        [
            Transition(Door.CLOSED, "open", Door.OPENED, guard=locked, action=unlock),
            (Door.CLOSED, "knock", None, None, lambda log: log.append("knock")),
            (Door.OPENED, "close", Door.CLOSED),
            (Door.OPENED, "remove", Door.GONE),
        ],
        initial=Door.CLOSED,
        final=[Door.GONE],
        entry={Door.OPENED: creak},
        exit={Door.OPENED: slam},
        **options,
    )


def test_a_step_runs_exit_action_and_entry_in_this_order():
    log = []
    door = StateMachine(door_table(), log)
    assert door.state is Door.CLOSED
    assert door.handle("open", "key") is Door.OPENED
    assert log == ["unlock key", "creak"]
    assert door.handle("close") is Door.CLOSED
    assert log[2:] == ["slam"]


def test_a_transition_without_target_stays_without_exit_and_entry():
    log = []
    table = TransitionTable(
        [("a", "stay", None, None, lambda log: log.append("stay")), ("a", "again", "a")],
        initial="a",
        entry={"a": lambda log: log.append("in")},
        exit={"a": lambda log: log.append("out")},
    )
    machine = StateMachine(table, log)
    machine.handle("stay")
    assert log == ["stay"]
    machine.handle("again")
    assert log == ["stay", "out", "in"]


def test_an_illegal_transition_is_refused_and_changes_nothing():
    log = []
    door = StateMachine(door_table(), log)
    with pytest.raises(IllegalTransition, match=r"CLOSED.*no transition.*'close'") as caught:
        door.handle("close")
    assert (caught.value.state, caught.value.event) == (Door.CLOSED, "close")
    with pytest.raises(IllegalTransition, match=r"no guard allows the event 'open'"):
        door.handle("open")
    assert door.state is Door.CLOSED and not log
    with pytest.raises(ValueError, match=r"'fly' is none of the events \['open', 'knock'"):
        door.handle("fly")


def test_a_machine_tells_what_it_would_do():
    door = StateMachine(door_table(), [])
    assert door.events == ("open", "knock")
    assert door.allows("open", "key") and not door.allows("open") and not door.allows("close")
    assert not door.finished
    door.handle("open", "key")
    door.handle("remove")
    assert door.finished and door.events == ()
    assert repr(door) == f"<StateMachine in state {Door.GONE!r}>"


def test_machines_of_one_table_are_apart():
    table = door_table()
    first, second = StateMachine(table, []), StateMachine(table, [])
    first.handle("open", "key")
    assert second.state is Door.CLOSED
    assert first.table is second.table is table


@pytest.mark.parametrize(
    ("failing", "state"),
    [("guard", "a"), ("exit", "a"), ("action", "a"), ("entry", "b")],
)
def test_what_a_function_raises_comes_out(failing, state):
    def fail(machine):
        raise ZeroDivisionError

    table = TransitionTable(
        [
            Transition(
                "a",
                "go",
                "b",
                guard=fail if failing == "guard" else None,
                action=fail if failing == "action" else None,
            ),
            ("b", "go", "b"),
        ],
        initial="a",
        entry={"b": fail} if failing == "entry" else None,
        exit={"a": fail} if failing == "exit" else None,
    )
    machine = StateMachine(table)
    with pytest.raises(ZeroDivisionError):
        machine.handle("go")
    assert machine.state == state
    if failing == "guard":
        with pytest.raises(ZeroDivisionError):
            machine.allows("go")


@pytest.mark.parametrize("place", ["guard", "action"])
def test_a_function_of_a_transition_cannot_take_another(place):
    def nested(machine):
        with pytest.raises(RuntimeError, match="in the midst"):
            machine.handle("go")
        with pytest.raises(RuntimeError, match="in the midst"):
            machine.allows("go")
        with pytest.raises(RuntimeError, match="in the midst"):
            machine.__init__(table)
        return True

    table = TransitionTable([Transition("a", "go", "a", **{place: nested})], initial="a")
    machine = StateMachine(table)
    assert machine.handle("go") == "a"
    assert machine.handle("go") == "a"


# What is no table


@pytest.mark.parametrize(
    ("transitions", "options", "problem"),
    [
        ([], {}, "no transitions"),
        ([("a", 1, "b"), ("b", 1, "a"), ("c", 1, "a")], {}, "'c' cannot be reached from 'a'"),
        ([("a", 1, "b")], {}, "'b' is not final but has no transitions"),
        ([("a", 1, "b"), ("b", 1, "a")], {"final": ["b"]}, "'b' is final but has transitions"),
        ([("a", 1, "a"), ("a", 1, "a")], {}, "'a' at 1 can never be taken"),
        ([("a", 1, "a"), ("a", 1, "a", bool)], {}, "'a' at 1 can never be taken"),
        ([("a", 1, "a")], {"entry": {"b": print}}, "no transition leads to or from 'b'"),
        ([("a", 1, "a")], {"final": ["b"]}, "no transition leads to or from 'b'"),
        ([("a", 1, "b"), ("b", 2, "a")], {"complete": True}, "'a' has no transition for the ev"),
        ([("a", 1, "a", bool)], {"complete": True}, "in 'a' every transition for .* 1 has a gu"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_when_it_is_made(transitions, options, problem):
    with pytest.raises(TableError, match=problem):
        TransitionTable(transitions, initial="a", **options)


def test_all_problems_are_named_at_once():
    with pytest.raises(TableError) as caught:
        TransitionTable([("a", 1, "b"), ("c", 1, "d")], initial="a")
    assert caught.value.problems == (
        "'c' cannot be reached from 'a'",
        "'d' cannot be reached from 'a'",
        "'b' is not final but has no transitions",
        "'d' is not final but has no transitions",
    )


def test_a_complete_table_is_one():
    table = TransitionTable(
        [("a", 1, "b", bool), ("a", 1, "a"), ("a", 2, "b")],
        initial="a",
        final=["b"],
        complete=True,
    )
    assert table.states == ("a", "b") and table.events == (1, 2)
    assert table.transitions[0] == Transition("a", 1, "b", bool)
    with pytest.raises(TypeError):
        table.entry["a"] = print


def test_a_machine_needs_a_table():
    with pytest.raises(TypeError):
        StateMachine(None)
    with pytest.raises(RuntimeError, match="__init__"):
        StateMachine.__new__(StateMachine).handle("go")


def test_a_table_is_drawn():
    table = TransitionTable(
        [
            Transition("off", "press", "on", guard=locked, action=creak),
            Transition("on", 'say "x"', "off"),
        ],
        initial="off",
        entry={"on": slam},
    )
    assert (
        table.to_dot()
        == r"""digraph {
    rankdir = LR;
    node [shape = box, style = rounded];
    "" [shape = point];
    "off" [label = "off"];
    "on" [label = "on\nentry / slam"];
    "" -> "off";
    "off" -> "on" [label = "press [locked] / creak"];
    "on" -> "off" [label = "say \"x\""];
}
"""
    )
    assert '"GONE" [label = "GONE", peripheries = 2];' in door_table().to_dot()


# Against a model

GUARDS = [None, lambda log, n: n % 2 == 0, lambda log, n: n % 3 == 0, lambda log, n: n > 50]


def noter(text):
    return lambda log, n: log.append((text, n))


STATES = st.integers(0, 4)
ROWS = st.lists(
    st.tuples(
        STATES,
        st.integers(0, 3),
        st.none() | STATES,
        st.sampled_from(GUARDS),
        st.none() | st.text("xyz", min_size=1, max_size=2).map(noter),
    ),
    min_size=1,
    max_size=12,
)


def reachable(rows):
    reached = {0}
    while True:
        more = {row[0] if row[2] is None else row[2] for row in rows if row[0] in reached}
        if more <= reached:
            return reached
        reached |= more


def pruned(rows):
    """Those rows that can be taken."""
    kept = []
    for row in rows:
        if not any(row[:2] == other[:2] and other[3] is None for other in kept):
            kept.append(row)
    reached = reachable(kept)
    return [row for row in kept if row[0] in reached]


def model_accepts(rows):
    """Whether these rows make a table, in plain Python."""
    reached = reachable(rows)
    sources = {row[0] for row in rows}
    for at, row in enumerate(rows):
        if any(row[:2] == other[:2] and other[3] is None for other in rows[:at]):
            return False
    return sources <= reached


def model_step(rows, hooks, state, event, log, n):
    """The state after the event, or None where the transition is illegal."""
    for source, when, target, guard, action in rows:
        if (source, when) == (state, event) and (guard is None or guard(log, n)):
            if target is not None and ("exit", state) in hooks:
                log.append(("exit", state))
            if action is not None:
                action(log, n)
            if target is None:
                return state
            if ("entry", target) in hooks:
                log.append(("entry", target))
            return target
    return None


def hooks_of(kind, hooks):
    return {state: lambda log, n, s=state: log.append((kind, s)) for k, state in hooks if k == kind}


def make_table(rows, hooks=()):
    final = {row[2] for row in rows if row[2] is not None} | {0}
    return TransitionTable(
        rows,
        initial=0,
        final=final - {row[0] for row in rows},
        entry=hooks_of("entry", hooks),
        exit=hooks_of("exit", hooks),
    )


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_a_table_is_refused_where_the_model_refuses_it(rows):
    if model_accepts(rows):
        make_table(rows)
    else:
        with pytest.raises(TableError):
            make_table(rows)


WALKS_PER_TABLE = 50


# 10,000 walks
@settings(deadline=None, max_examples=200)
@given(
    ROWS.map(lambda rows: pruned([(0, *rows[0][1:]), *rows[1:]])),
    st.sets(st.tuples(st.sampled_from(["entry", "exit"]), STATES)),
    st.integers(0, 1 << 32),
)
def test_random_walks_go_where_the_model_goes(rows, hooks, seed):
    hooks = {(kind, state) for kind, state in hooks if state in reachable(rows)}
    table = make_table(rows, hooks)
    numbers = random.Random(seed)
    for _ in range(WALKS_PER_TABLE):
        log, expected_log, state = [], [], 0
        machine = StateMachine(table, log)
        for _ in range(numbers.randrange(20)):
            event, n = numbers.choice(table.events), numbers.randrange(100)
            after = model_step(rows, hooks, state, event, expected_log, n)
            assert machine.allows(event, n) == (after is not None)
            if after is None:
                with pytest.raises(IllegalTransition):
                    machine.handle(event, n)
            else:
                state = after
                assert machine.handle(event, n) == state
            assert machine.state == state
        assert log == expected_log
