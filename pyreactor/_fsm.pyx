# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""State machines on the core's transition table: see pyreactor.fsm."""

import types
from typing import Any, NamedTuple

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EEXIST, EINVAL
from libc.stdint cimport uint32_t

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    c_bool,
    pr_transition,
    pr_transition_table,
    pr_transition_table_cell,
    pr_transition_table_deinit,
    pr_transition_table_find,
    pr_transition_table_init,
    pr_transition_table_reach,
)


class TableError(ValueError):
    """Transitions that make no machine; `problems` lists what is wrong with them."""

    def __init__(self, *problems):
        super().__init__(*problems)
        self.problems = problems

    def __str__(self):
        return '; '.join(self.problems)


class IllegalTransition(RuntimeError):
    """An event for which the state has no transition, or none that a guard allows.

    Nothing has changed.  `state` and `event` are what met.
    """

    def __init__(self, state, event, refused=False):
        super().__init__(state, event, refused)
        self.state = state
        self.event = event
        self.refused = refused

    def __str__(self):
        if self.refused:
            return f'in state {self.state!r} no guard allows the event {self.event!r}'
        return f'in state {self.state!r} there is no transition for the event {self.event!r}'


class Transition(NamedTuple):
    """From `source`, at `event`, to `target`; None: stay, without exit and entry.

    It is taken where `guard` is None or returns a true value, else the next one for the same state
    and event is tried.  `action` runs on the way.  Both are called with the machine's context and
    what handle() was given after the event.
    """

    source: Any
    event: Any
    target: Any
    guard: Any = None
    action: Any = None


cdef str label(object name):
    return str(getattr(name, 'name', name))


cdef str quoted(list lines):
    """A string of Graphviz's language, in which line breaks are written out."""
    escaped = [line.replace('\\', '\\\\').replace('"', '\\"') for line in lines]
    return '"{}"'.format('\\n'.join(escaped))


cdef str function_name(object function):
    return getattr(function, '__name__', None) or repr(function)


cdef class TransitionTable:
    """States, events and the transitions between them, checked when it is made.

    `transitions` are Transition objects or tuples of their fields.  `initial` is the state in which
    machines begin; those in `final` are left by no transition.  `entry` and `exit` map states to
    functions that are called, like actions, when the state is entered or left.  With `complete`,
    every state that is not final must have a transition for every event, the last one unguarded.

    Raises TableError, with all of its problems, for states that cannot be reached, or are
    not final and have no transitions, for transitions that can never be taken, and for what is
    missing.  A table never changes:
    machines and threads share it.
    """

    cdef pr_transition_table table
    cdef readonly tuple transitions
    cdef readonly tuple states  # in the order in which they were named, `initial` first
    cdef readonly tuple events
    cdef readonly object initial
    cdef readonly frozenset final
    cdef readonly object entry  # mappings that cannot be changed
    cdef readonly object exit
    cdef dict state_numbers
    cdef dict event_numbers
    cdef tuple entry_functions  # by the state's number; None: none
    cdef tuple exit_functions

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def __cinit__(self, transitions, *, initial, final=(), entry=None, exit=None, complete=False):
        self.transitions = tuple([Transition(*fields) for fields in transitions])
        self.initial = initial
        self.final = frozenset(final)
        self.entry = types.MappingProxyType(dict(entry or {}))
        self.exit = types.MappingProxyType(dict(exit or {}))
        names = [initial]
        for transition in self.transitions:
            names += [transition.source, self.target_of(transition)]
        self.states = tuple(dict.fromkeys(names))
        self.events = tuple(dict.fromkeys([t.event for t in self.transitions]))
        self.state_numbers = {state: number for number, state in enumerate(self.states)}
        self.event_numbers = {event: number for number, event in enumerate(self.events)}
        self.fill()
        problems = [*self.find_unknown(), *self.find_unreachable(), *self.find_bad_ends()]
        if complete:
            problems += self.find_missing()
        if problems:
            raise TableError(*problems)
        self.entry_functions = tuple([self.entry.get(state) for state in self.states])
        self.exit_functions = tuple([self.exit.get(state) for state in self.states])

    def __dealloc__(self):
        pr_transition_table_deinit(&self.table)

    cdef object target_of(self, object transition):
        return transition.source if transition.target is None else transition.target

    cdef int fill(self) except -1:
        """Makes the C table; a transition's id is its place in the list."""
        cdef size_t count = len(self.transitions), i, offender
        cdef pr_transition *rows
        cdef int error
        if not count:
            raise TableError('there are no transitions')
        rows = <pr_transition *>PyMem_Malloc(count * sizeof(pr_transition))
        if rows == NULL:
            raise MemoryError
        try:
            for i in range(count):
                transition = self.transitions[i]
                rows[i].source = self.state_numbers[transition.source]
                rows[i].event = self.event_numbers[transition.event]
                rows[i].target = self.state_numbers[self.target_of(transition)]
                rows[i].id = <uint32_t>i
                rows[i].guarded = transition.guard is not None
            error = pr_transition_table_init(
                &self.table, <uint32_t>len(self.states), <uint32_t>len(self.events), rows, count,
                &offender)
        finally:
            PyMem_Free(rows)
        if error == -EEXIST:
            source, event, *_ = self.transitions[offender]
            raise TableError(
                f'a transition from {source!r} at {event!r} can never be taken, because one before '
                'it has no guard')
        if error == -EINVAL:
            raise TableError(
                f'{len(self.states)} states and {len(self.events)} events are too many')
        if error < 0:
            raise_errno(error)
        return 0

    # What is wrong with it

    cdef list find_unknown(self):
        named = [*self.final, *self.entry, *self.exit]
        return [f'no transition leads to or from {state!r}, which is named elsewhere'
                for state in dict.fromkeys(named) if state not in self.state_numbers]

    cdef list find_unreachable(self):
        cdef size_t count = len(self.states), i
        cdef c_bool *reached = <c_bool *>PyMem_Malloc(count * sizeof(c_bool))
        cdef int error
        if reached == NULL:
            raise MemoryError
        try:
            error = pr_transition_table_reach(&self.table, 0, reached)
            if error < 0:
                raise_errno(error)
            return [f'{self.states[i]!r} cannot be reached from {self.initial!r}'
                    for i in range(count) if not reached[i]]
        finally:
            PyMem_Free(reached)

    cdef list find_bad_ends(self):
        left = {transition.source for transition in self.transitions}
        return [f'{state!r} is final but has transitions'
                for state in self.states if state in self.final and state in left] + [
                f'{state!r} is not final but has no transitions'
                for state in self.states if state not in self.final and state not in left]

    cdef list find_missing(self):
        cdef const pr_transition *first
        cdef const pr_transition *end
        cdef uint32_t number, event
        problems = []
        for number in range(self.table.states):
            if self.states[number] in self.final:
                continue
            for event in range(self.table.events):
                first = pr_transition_table_cell(&self.table, number, event, &end)
                if first == end:
                    problems.append(f'{self.states[number]!r} has no transition for the event '
                                    f'{self.events[event]!r}')
                elif (end - 1).guarded:
                    problems.append(f'in {self.states[number]!r} every transition for the event '
                                    f'{self.events[event]!r} has a guard')
        return problems

    def to_dot(self):
        """Return a drawing of the table in the language of Graphviz.

        Transitions are labelled "event [guard] / action", states with what they do on entry and
        exit.
        """
        lines = ['digraph {', '    rankdir = LR;', '    node [shape = box, style = rounded];',
                 '    "" [shape = point];']
        for state in self.states:
            texts = [label(state)]
            for word, functions in (('entry', self.entry), ('exit', self.exit)):
                if state in functions:
                    texts.append(f'{word} / {function_name(functions[state])}')
            shape = ', peripheries = 2' if state in self.final else ''
            lines.append(f'    {quoted([label(state)])} [label = {quoted(texts)}{shape}];')
        lines.append(f'    "" -> {quoted([label(self.initial)])};')
        for transition in self.transitions:
            text = label(transition.event)
            if transition.guard is not None:
                text += f' [{function_name(transition.guard)}]'
            if transition.action is not None:
                text += f' / {function_name(transition.action)}'
            lines.append(
                f'    {quoted([label(transition.source)])} -> '
                f'{quoted([label(self.target_of(transition))])} [label = {quoted([text])}];')
        return '\n'.join([*lines, '}', ''])


cdef int ask(void *context, uint32_t number) except -1:
    """Whether a transition's guard allows it."""
    cdef StateMachine machine = <StateMachine>context
    return bool(machine.table.transitions[number].guard(machine.context, *machine.arguments))


@cython.auto_pickle(False)
cdef class StateMachine:
    """A machine in one of the states of `table`, at first in its initial one, not entered.

    `context` is what its functions get as their first argument, the machine itself by default.
    One thread at a time.
    """

    cdef readonly TransitionTable table
    cdef readonly object context
    cdef uint32_t number  # of the state
    cdef bint stepping
    cdef tuple arguments  # of the event at hand

    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def __init__(self, TransitionTable table not None, context=None):
        if self.stepping:
            raise RuntimeError('a machine in the midst of a transition cannot begin again')
        self.table = table
        self.context = self if context is None else context
        self.number = 0
        self.arguments = ()

    @property
    def state(self):
        """The state it is in."""
        return self.table.states[self.number]

    @property
    def finished(self):
        """Whether that is a final one."""
        return self.state in self.table.final

    @property
    def events(self):
        """The events for which the state has transitions, guards aside."""
        cdef const pr_transition *end
        cdef uint32_t event
        found = []
        for event in range(self.table.table.events):
            if pr_transition_table_cell(&self.table.table, self.number, event, &end) != end:
                found.append(self.table.events[event])
        return tuple(found)

    cdef const pr_transition *find(self, object event, tuple arguments) except? NULL:
        """The transition to take, or NULL."""
        cdef const pr_transition *taken = NULL
        cdef object number = self.table.event_numbers.get(event)
        if number is None:
            raise ValueError(f'{event!r} is none of the events {list(self.table.events)}')
        self.arguments = arguments
        try:
            pr_transition_table_find(
                &self.table.table, self.number, number, ask, <void *>self, &taken)
        finally:
            self.arguments = ()
        return taken

    cdef int begin_step(self) except -1:
        if self.table is None:
            raise RuntimeError('StateMachine.__init__() was not called')
        if self.stepping:
            raise RuntimeError(
                'the machine is in the midst of a transition: what its functions find out is '
                'handled after it')
        self.stepping = True
        return 0

    def allows(self, event, *arguments):
        """Return whether handle() would take a transition now.  Guards are asked.

        Raises ValueError for an event that the table does not know.
        """
        self.begin_step()
        try:
            return self.find(event, arguments) != NULL
        finally:
            self.stepping = False

    def handle(self, event, *arguments):
        """Take the transition for `event` and return the state that the machine is in then.

        In this order: guards, the state's exit, the transition's action, the new state, its entry.
        What one of them raises comes out; the state is the old one, unless it was the entry.
        Raises IllegalTransition where there is none, ValueError for an event that the table does
        not know, RuntimeError where a function of a transition calls this.
        """
        self.begin_step()
        try:
            return self.step(event, arguments)
        finally:
            self.stepping = False

    cdef object step(self, object event, tuple arguments):
        cdef const pr_transition *taken = self.find(event, arguments)
        cdef const pr_transition *end
        cdef uint32_t target
        if taken == NULL:
            number = self.table.event_numbers[event]
            refused = pr_transition_table_cell(
                &self.table.table, self.number, number, &end) != end
            raise IllegalTransition(self.state, event, refused)
        transition = self.table.transitions[taken.id]
        target = taken.target
        if transition.target is not None:
            self.run(self.table.exit_functions[self.number], arguments)
        self.run(transition.action, arguments)
        self.number = target
        if transition.target is not None:
            self.run(self.table.entry_functions[target], arguments)
        return self.table.states[target]

    cdef int run(self, object function, tuple arguments) except -1:
        if function is not None:
            function(self.context, *arguments)
        return 0

    def __repr__(self):
        return f'<{type(self).__name__} in state {self.state!r}>'
