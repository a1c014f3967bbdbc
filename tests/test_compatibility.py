"""docs/compatibility.md is true: its tables, the running Python's asyncio and pyreactor agree."""

import asyncio
import inspect
import pathlib
import re
import sys
from asyncio import base_subprocess
from typing import NamedTuple

import pytest

import pyreactor
from pyreactor._datagram import DatagramTransport
from pyreactor._loop import Handle, TimerHandle
from pyreactor._pipe import ReadPipeTransport, WritePipeTransport
from pyreactor._tls import TLSTransport
from pyreactor._transport import StreamTransport
from pyreactor.server import Server

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
HEADER = "| Method | Arguments | Done by | Differs from asyncio |"
LOOP_TABLES = "The loop's methods"
OWN_TABLE = "pyreactor's own"
# A table of the second part: whose methods it lists, asyncio's class and pyreactor's.
CLASSES = {
    "Stream transports": (asyncio.Transport, StreamTransport),
    "TLS transports": (asyncio.Transport, TLSTransport),
    "Datagram transports": (asyncio.DatagramTransport, DatagramTransport),
    "Read pipe transports": (asyncio.ReadTransport, ReadPipeTransport),
    "Write pipe transports": (asyncio.WriteTransport, WritePipeTransport),
    "Subprocess transports": (
        asyncio.SubprocessTransport,
        base_subprocess.BaseSubprocessTransport,
    ),
    "Server": (asyncio.Server, Server),
    "Handles": (asyncio.Handle, Handle),
    "Timer handles": (asyncio.TimerHandle, TimerHandle),
}


def version(text):
    return tuple(map(int, text.split("."))) if text else (0,)


class Row(NamedTuple):
    """What a table says of one method."""

    name: str
    since: tuple
    arguments: dict  # name -> the first version that has it
    every_version: bool  # pyreactor has it on versions whose asyncio has not

    def current_arguments(self):
        return {name for name, since in self.arguments.items() if since <= sys.version_info[:3]}


def parse_row(line):
    method, arguments, done_by, differs = (cell.strip() for cell in line.strip("|\n").split(" | "))
    named = r"`([^`]+)`(?: \(([\d.]+)\))?"
    name, since = re.fullmatch(named, method).groups()
    assert done_by and differs, line
    return Row(
        name,
        version(since),
        {name.lstrip("*"): version(since) for name, since in re.findall(named, arguments)},
        "every version" in differs,
    )


def read_tables():
    """The page's method tables: (part, heading) -> its rows."""
    tables = {}
    rows = part = heading = None
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            part = line[3:]
        elif line.startswith("### "):
            heading = line[4:]
        elif line == HEADER:
            rows = tables.setdefault((part, heading), [])
        elif not line.startswith("|"):
            rows = None
        elif rows is not None and not line.startswith("|---"):
            rows.append(parse_row(line))
    return tables


TABLES = read_tables()
LOOP_ROWS = {
    row.name: row
    for (part, heading), rows in TABLES.items()
    if part == LOOP_TABLES and heading != OWN_TABLE
    for row in rows
}
OWN_ROWS = {row.name: row for row in TABLES[LOOP_TABLES, OWN_TABLE]}
OBJECT_ROWS = {
    heading: {row.name: row for row in rows}
    for (part, heading), rows in TABLES.items()
    if part != LOOP_TABLES
}


def public_names(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def arguments_of(kind, name):
    """What callers of a method can pass: its parameters and, where it passes **kwargs on to the
    class that it inherits from, those of the inherited one, too."""
    found = set()
    for base in kind.__mro__:
        if name not in vars(base):
            continue
        if not callable(getattr(base, name)):
            return found
        parameters = list(inspect.signature(getattr(base, name)).parameters.values())[1:]
        found |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def test_every_table_is_read():
    assert len(LOOP_ROWS) > 50
    assert OBJECT_ROWS.keys() == CLASSES.keys()


def test_every_method_of_a_loop_is_listed_and_there(loop_type):
    listed = {row.name for row in LOOP_ROWS.values() if row.since <= sys.version_info}
    loop = loop_type()
    loop.close()
    own = OWN_ROWS.keys() if loop_type is pyreactor.Loop else set()
    assert listed | own == public_names(loop)
    assert listed >= public_names(asyncio.AbstractEventLoop)


# A method that takes **kwargs (create_task, from 3.14 on) has no names for those it knows.
@pytest.mark.parametrize("name", LOOP_ROWS)
def test_every_argument_of_a_loops_method_is_listed(name):
    known = arguments_of(asyncio.SelectorEventLoop, name)
    listed = LOOP_ROWS[name].current_arguments()
    assert known <= listed
    assert listed == known or "kwargs" in known


@pytest.mark.parametrize("name", LOOP_ROWS)
def test_every_argument_listed_is_accepted(name):
    row = LOOP_ROWS[name]
    accepted = arguments_of(pyreactor.Loop, name)
    listed = set(row.arguments) if row.every_version else row.current_arguments()
    assert listed <= accepted
    assert accepted - {"args", "kwargs"} <= listed


@pytest.mark.parametrize("heading", OBJECT_ROWS)
def test_every_method_of_what_the_loop_makes_is_listed_and_there(heading):
    theirs, ours = CLASSES[heading]
    rows = OBJECT_ROWS[heading]
    listed = {row.name for row in rows.values() if row.since <= sys.version_info}
    assert public_names(theirs) == listed
    assert {row.name for row in rows.values() if row.every_version} | listed <= public_names(ours)


@pytest.mark.parametrize(
    ("heading", "name"), [(heading, name) for heading, rows in OBJECT_ROWS.items() for name in rows]
)
def test_every_argument_of_what_the_loop_makes_is_listed_and_accepted(heading, name):
    theirs, ours = CLASSES[heading]
    row = OBJECT_ROWS[heading][name]
    if row.since <= sys.version_info:
        assert arguments_of(theirs, name) == row.current_arguments()
    if row.since <= sys.version_info or row.every_version:
        assert arguments_of(ours, name) == row.current_arguments()


def test_links_within_the_page_lead_somewhere():
    text = PAGE.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(anchors) == len(set(anchors)), "two headings with one anchor"
    assert set(re.findall(r"\(#([^)]+)\)", text)) <= set(anchors)
