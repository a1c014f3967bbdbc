"""The machine for the head of an HTTP/1 request, beside h11's reader and a model."""

import pathlib
import random
import re
import runpy
import types

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyreactor.framing import HttpHead
from pyreactor.fsm import http1
from pyreactor.fsm.http1 import LINE_BAD, LINE_OK, LINE_OPEN, BadRequest, HeadMachine

HERE = pathlib.Path(__file__).resolve().parent
model = types.SimpleNamespace(**runpy.run_path(str(HERE / "fuzz" / "framing_model.py")))

HEAD = (
    b"POST /a?b HTTP/1.1\r\nHost: example.org\r\nX-Empty:\r\nX-Text: \t\xe9t\xe9 1999 \r\n"
    b"Content-Length: 12\r\nx-text: 2\r\n\r\n"
)


def feed(pieces, **limits):
    machine = HeadMachine(**limits)
    for piece in pieces:
        status = machine.feed(piece)
        if status != LINE_OPEN:
            return status, machine
    return LINE_OPEN, machine


def one_by_one(data):
    return [data[at : at + 1] for at in range(len(data))]


def test_a_head_is_taken_apart():
    head = http1.parse(HEAD + b"body")
    assert (head.method, head.target, head.version) == ("POST", "/a?b", "1.1")
    assert head.headers == (
        ("Host", b"example.org"),
        ("X-Empty", b""),
        ("X-Text", b"\xe9t\xe9 1999"),
        ("Content-Length", b"12"),
        ("x-text", b"2"),
    )
    assert head.size == len(HEAD)
    assert head.content_length == 12 and not head.chunked and head.keep_alive
    assert head.get("HOST") == b"example.org" and head.get("x-text") == b"\xe9t\xe9 1999"
    assert head.get("x-none") is None and head.get("x-none", 5) == 5
    assert repr(head) == "<RequestHead POST /a?b HTTP/1.1>"


def test_a_head_is_open_until_its_empty_line_however_it_is_cut():
    expected = http1.parse(HEAD).headers
    for at in range(len(HEAD)):
        machine = HeadMachine()
        assert machine.feed(HEAD[:at]) is LINE_OPEN
        assert machine.head is None
        assert machine.feed(memoryview(HEAD)[at:]) is LINE_OK
        assert machine.head.headers == expected
        assert machine.rest == b"" and machine.error is None
    status, machine = feed(one_by_one(HEAD))
    assert status is LINE_OK and machine.head.headers == expected


def test_what_follows_a_head_is_left_to_the_caller():
    machine = HeadMachine()
    machine.feed(b"GET / HTTP/1.0\r\n\r")
    assert machine.feed(b"\nthe rest") is LINE_OK
    assert machine.rest == b"the rest"
    with pytest.raises(RuntimeError, match="complete"):
        machine.feed(b"more")
    long_rest = b"x" * 10_000
    assert feed([b"GET / HTTP/1.0\r\n\r\n" + long_rest])[1].rest == long_rest


def test_a_bad_head_has_an_error_for_good():
    status, machine = feed([b"GET / HTTP/1.1\r\nHost : a\r\n"])
    assert status is LINE_BAD
    assert isinstance(machine.error, BadRequest)
    assert machine.error.status == 400
    assert "name and a colon" in str(machine.error)
    assert machine.feed(b"\r\n") is LINE_BAD
    assert machine.head is None
    with pytest.raises(BadRequest, match="neither HTTP/1"):
        http1.parse(b"GET / HTTP/3.0\r\n\r\n")
    with pytest.raises(ValueError, match="more bytes must come"):
        http1.parse(b"GET / HTTP/1.0\r\n")


def test_sizes_are_limited():
    head = b"G / HTTP/1.0\r\na: 1\r\nb: 2\r\n\r\n"
    for name, most in (("max_line_bytes", 12), ("max_headers", 2), ("max_bytes", len(head) - 2)):
        for pieces in ([head], one_by_one(head)):
            assert feed(pieces, **{name: most})[0] is LINE_OK
            status, machine = feed(pieces, **{name: most - 1})
            assert status is LINE_BAD and machine.error.status in (414, 431)
    status, machine = feed([b"GET /" + b"a" * 1000], max_line_bytes=100)
    assert status is LINE_BAD and machine.error.status == 414
    for wrong in ({"max_line_bytes": 0}, {"max_headers": 0}, {"max_bytes": 1 << 31}):
        with pytest.raises(ValueError):
            HeadMachine(**wrong)


def test_what_is_refused_early_is_not_held():
    status, machine = feed([b"GET / HTTP/1.1\n" + b"x" * (1 << 20)])
    assert status is LINE_BAD and machine.rest == b""


def test_lines_are_found_by_a_machine_of_their_own():
    assert http1.find_line(b"GET / HTTP/1.1\r\nHo") == (LINE_OK, 16)
    assert http1.find_line(b"GET / HTTP/1.1\r\nHo", 16) == (LINE_OPEN, 18)
    assert http1.find_line(b"GET /\r") == (LINE_OPEN, 5)
    assert http1.find_line(b"GET /\n") == (LINE_BAD, 5)
    assert http1.find_line(b"GET /\rx") == (LINE_BAD, 5)
    with pytest.raises(ValueError):
        http1.find_line(b"abc", 4)


def test_only_machines_make_heads():
    with pytest.raises(TypeError, match="parse"):
        http1.RequestHead()


# Beside others

NAMES = [b"Host", b"host", b"X-a", b"Content-Length", b"Transfer-Encoding", b"Connection", b"A b"]
VALUES = [
    *(b"a", b"", b"5", b"05", b"5, 5", b"+5", b"chunked", b"Chunked", b"gzip, chunked", b"close"),
    *(b"a\tb", b"\xe9\xff", b"a\x01b", b"a\x7f", b"a\x00", b"a\x0bb", b"a\rb", b"a\nb", b"\x85"),
]
METHODS = [b"GET", b"get", b"P-1", b"G(T", b"", b"G\xe9"]
TARGETS = [b"/", b"*", b"http://a/?b#c", b"/a\tb", b"/\x7f", b"/\xe9", b""]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1", b""]
SEPARATORS = [b": ", b": ", b":", b":\t", b" :", b""]
ENDS = [*[b"\r\n"] * 12, b"\n", b"\r", b"\r\n ", b"\r\n\t", b" \r\n"]


def random_head(numbers):
    """A head that is good, or nearly so."""
    pick = numbers.choice
    risky = numbers.random() < 0.6

    def one_of(choices):
        return pick(choices) if risky and numbers.random() < 0.3 else choices[0]

    lines = [b" ".join((one_of(METHODS), one_of(TARGETS), one_of(VERSIONS)))]
    for _ in range(numbers.randrange(4)):
        lines.append(pick(NAMES) + one_of(SEPARATORS) + pick(VALUES))
    if numbers.random() < 0.7:
        lines.insert(numbers.randrange(1, len(lines) + 1), b"Host: a")
    head = b"".join(line + one_of(ENDS) for line in lines) + one_of(ENDS)
    return numbers.choice([b"\r\n", b"\n"]) + head if numbers.random() < 0.02 else head


def read_by_h11(data):
    """The request as h11 reads it, None where it waits for more, or its error."""
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return error
    return event if isinstance(event, h11.Request) else None


# What h11 takes and this does not; docs/fsm.md says why.
STRICTER = [
    re.compile(rb"(?<!\r)\n"),  # lines that end in LF alone
    re.compile(rb"\r\n[ \t]"),  # folded fields
    re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]"),  # control characters in values
    re.compile(rb"(?is)\ncontent-length:.*\ncontent-length:"),
    re.compile(rb"(?i)\ncontent-length:[^\n]*,"),
    re.compile(rb"(?i)\ntransfer-encoding:(?s:.*)\ncontent-length:"),
    re.compile(rb"(?i)\ncontent-length:(?s:.*)\ntransfer-encoding:"),
    re.compile(rb"(?i) HTTP/1\.0\r(?=\n)(?s:.*)\ntransfer-encoding:"),
    re.compile(rb" HTTP/[^1]\.[0-9]\r\n| HTTP/1\.[^01]\r\n"),
]
# What this takes and h11 does not.
LAXER = [re.compile(rb"\A\r\n")]  # one empty line before a request


def test_a_head_means_what_h11_reads():
    numbers = random.Random(5)
    both = only_h11 = only_here = 0
    for _ in range(10_000):
        data = random_head(numbers)
        status, machine = feed([data])
        theirs = read_by_h11(data)
        if status is LINE_OK and isinstance(theirs, h11.Request):
            both += 1
            head = machine.head
            assert head.method.encode() == theirs.method
            assert head.target.encode() == theirs.target
            assert head.version.encode() == theirs.http_version
            ours = [(name.lower().encode(), value) for name, value in head.headers]
            lowered = {b"transfer-encoding": bytes.lower}
            assert [(n, lowered.get(n, bytes)(v)) for n, v in ours] == list(theirs.headers)
        elif status is LINE_OK:
            only_here += 1
            assert any(known.search(data) for known in LAXER), (data, theirs)
        elif isinstance(theirs, h11.Request):
            only_h11 += 1
            assert any(known.search(data) for known in STRICTER), (data, machine.error)
    assert both > 1000 and only_h11 > 100 and only_here > 5, (both, only_h11, only_here)


@settings(deadline=None, max_examples=500)
@given(st.randoms(use_true_random=False), st.data())
def test_a_head_means_what_the_model_says_however_it_is_cut(numbers, data):
    head = random_head(numbers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(head)), max_size=4)))
    pieces = [head[a:b] for a, b in zip([0, *cuts], [*cuts, len(head)], strict=True)]
    framing = HttpHead(max_body_bytes=1 << 40)
    expected = None
    for way in ([head], pieces, one_by_one(head)):
        status, machine = feed(way)
        found = (
            (machine.head.size, machine.head.headers)
            if machine.head
            else str(machine.error)
            if machine.error
            else None
        )
        assert expected is None or (status, found) == expected
        expected = status, found
    if machine.head and (machine.head.chunked or machine.head.content_length):
        return  # the model frames whole requests
    frames, _, refused = model.cut(framing, head[: machine.head.size] if machine.head else head)
    assert (status is LINE_BAD) == refused
    assert (status is LINE_OK) == bool(frames)
