"""Framings: what they cut, what they refuse, and that neither depends on how bytes arrive."""

import pathlib
import pickle
import runpy
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyreactor.framing import (
    Delimiter,
    Fixed,
    Framer,
    Framing,
    FramingError,
    HttpHead,
    LengthPrefixed,
    Lines,
)

HERE = pathlib.Path(__file__).resolve().parent
model = types.SimpleNamespace(**runpy.run_path(str(HERE / "fuzz" / "framing_model.py")))

GET = b"GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"


def cut(framing, pieces):
    """Feed the pieces; return the frames and whether the rest was refused."""
    framer = framing.framer()
    frames = []
    try:
        for piece in pieces:
            frames += framer.feed(piece)
    except FramingError as error:
        return frames + error.frames, True
    return frames, False


def one_by_one(data):
    return [data[at : at + 1] for at in range(len(data))]


# What each kind cuts


@pytest.mark.parametrize(
    ("framing", "data", "frames"),
    [
        (Lines(), b"one\ntwo\r\n\n\rx\n", [b"one", b"two", b"", b"\rx"]),
        (Lines(keep_ends=True), b"one\ntwo\r\n\n", [b"one\n", b"two\r\n", b"\n"]),
        (LengthPrefixed(), b"\0\0\0\2hi\0\0\0\0\0\0\0\1!", [b"hi", b"", b"!"]),
        (LengthPrefixed(2, "little"), b"\2\0hi", [b"hi"]),
        (LengthPrefixed(8), b"\0\0\0\0\0\0\0\1x", [b"x"]),
        (Fixed(3), b"abcdef", [b"abc", b"def"]),
        (Delimiter(b"\0"), b"a\0\0", [b"a", b""]),
        (Delimiter(b"aab"), b"aaabaab", [b"a", b""]),
        (HttpHead(max_body_bytes=9), GET + b"\r\n" + POST + GET, [GET, POST, GET]),
    ],
)
def test_messages_are_cut_out_of_the_stream(framing, data, frames):
    assert cut(framing, [data]) == (frames, False)
    assert cut(framing, one_by_one(data)) == (frames, False)
    for at in range(len(data)):
        assert cut(framing, [data[:at], memoryview(data)[at:]]) == (frames, False)


def test_frames_come_as_soon_as_they_are_complete_and_the_rest_is_pending():
    framer = Lines().framer()
    assert framer.feed(b"") == []
    assert framer.feed(b"one\ntw") == [b"one"]
    assert framer.pending == 2
    assert framer.feed(bytearray(b"o\n")) == [b"two"]
    assert framer.pending == 0


def test_the_end_makes_a_last_line_of_the_rest():
    framer = Lines().framer()
    assert framer.feed(b"a\nb\r") == [b"a"]
    assert framer.eof() == [b"b\r"]
    assert framer.eof() == []
    with pytest.raises(RuntimeError, match="make another"):
        framer.feed(b"c")


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (LengthPrefixed(), b"\0\0"),
        (LengthPrefixed(), b"\0\0\0\1"),
        (Fixed(2), b"a"),
        (Delimiter(b"--"), b"a-"),
        (HttpHead(), b"GET / HTTP/1.1\r\n"),
        (HttpHead(max_body_bytes=9), POST[:-1]),
    ],
)
def test_the_end_within_a_frame_is_an_error(framing, data):
    framer = framing.framer()
    framer.feed(data)
    with pytest.raises(FramingError, match="cut off"):
        framer.eof()


def test_an_empty_line_after_the_last_request_is_no_request():
    framer = HttpHead().framer()
    assert framer.feed(GET + b"\r\n") == [GET]
    assert framer.eof() == []


# What they refuse


@pytest.mark.parametrize(
    ("framing", "good", "bad", "reason"),
    [
        (Lines(3), b"abc\r\n", b"abcd", "longer than max_bytes"),
        (Lines(3), b"abc\n", b"abc\rd", "longer than max_bytes"),
        (Delimiter(b"--", 3), b"abc--", b"abcd-", "no delimiter"),
        (LengthPrefixed(2, max_bytes=3), b"\0\3abc", b"\0\4", "announced"),
        (HttpHead(), GET, b"GET / HTTP/1.1\n", "CR LF"),
        (HttpHead(), GET, POST, "max_body_bytes"),
        (HttpHead(max_line_bytes=20), b"", b"GET /" + b"a" * 16, "max_line_bytes"),
        (HttpHead(max_bytes=18), b"", b"GET / HTTP/1.1\r\nHos", "head is longer than max_bytes"),
    ],
)
def test_what_breaks_the_rule_is_refused_and_frames_before_it_are_not_lost(
    framing, good, bad, reason
):
    frames, refused = cut(framing, [good])
    assert not refused
    framer = framing.framer()
    with pytest.raises(FramingError, match=reason) as caught:
        framer.feed(good + bad)
    assert caught.value.frames == frames
    with pytest.raises(FramingError, match=reason) as caught:
        framer.feed(good)
    assert caught.value.frames == []
    with pytest.raises(FramingError, match=reason):
        framer.eof()
    assert cut(framing, one_by_one(good + bad)) == (frames, True)


def test_an_open_line_may_be_as_long_as_a_line_with_its_carriage_return():
    framer = Lines(3).framer()
    assert framer.feed(b"abc\r") == []
    assert framer.feed(b"\n") == [b"abc"]


def test_what_is_held_grows_with_what_came_not_with_what_was_announced():
    framing = LengthPrefixed(4, max_bytes=1 << 30)
    framers = [framing.framer() for _ in range(100)]
    for framer in framers:
        framer.feed((1 << 30).to_bytes(4, "big") + b"x")
    assert all(framer.pending == 5 for framer in framers)


def test_a_long_frame_that_comes_in_small_pieces_is_copied_a_few_times_only():
    # If every piece moved all that is held, this would be 2 * 10**12 bytes.
    size = 1 << 22
    framer = LengthPrefixed(4, max_bytes=size).framer()
    framer.feed(size.to_bytes(4, "big"))
    piece = b"x" * 8
    for _ in range(size // 8 - 1):
        framer.feed(piece)
    (frame,) = framer.feed(piece)
    assert frame == b"x" * size
    assert framer.pending == 0


# Sending


@pytest.mark.parametrize(
    ("framing", "payload", "encoded"),
    [
        (Lines(), b"a", b"a\n"),
        (Lines(keep_ends=True), b"a\r\n", b"a\r\n"),
        (Lines(keep_ends=True), b"a", b"a\n"),
        (LengthPrefixed(2), b"ab", b"\0\2ab"),
        (LengthPrefixed(3, "little"), b"ab", b"\2\0\0ab"),
        (Fixed(2), bytearray(b"ab"), b"ab"),
        (Delimiter(b"--"), memoryview(b"a-b"), b"a-b--"),
        (HttpHead(), b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
def test_a_payload_gets_its_marks(framing, payload, encoded):
    assert framing.encode(payload) == encoded


@pytest.mark.parametrize(
    ("framing", "payload"),
    [
        (Lines(), b"a\nb"),
        (Lines(), b"a\r"),
        (Lines(3), b"abcd"),
        (Lines(keep_ends=True), b"a\nb\n"),
        (LengthPrefixed(1), b"x" * 256),
        (LengthPrefixed(4, max_bytes=3), b"abcd"),
        (Fixed(2), b"a"),
        (Delimiter(b"--"), b"a--b"),
        (Delimiter(b"--"), b"a-"),
        (Delimiter(b"--", 3), b"abcd"),
    ],
)
def test_a_payload_that_would_not_arrive_as_it_is_is_refused(framing, payload):
    with pytest.raises(FramingError, match="to send"):
        framing.encode(payload)


def test_only_bytes_are_framed():
    for framing in (Lines(), LengthPrefixed(), Fixed(1), Delimiter(b"x"), HttpHead()):
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                framing.encode(wrong)
            with pytest.raises(TypeError):
                framing.framer().feed(wrong)


# Framings themselves


ALL = [
    Lines(10, True),
    LengthPrefixed(2, "little", 10),
    Fixed(7),
    Delimiter(b"\r\n.\r\n", 10),
    HttpHead(100, 10, 1000, 5),
]


@pytest.mark.parametrize("framing", ALL, ids=lambda framing: type(framing).__name__)
def test_a_framing_is_a_value(framing):
    again = pickle.loads(pickle.dumps(framing))
    assert again == framing and hash(again) == hash(framing)
    assert eval(repr(framing)) == framing
    assert framing != Lines(11)
    assert isinstance(framing, Framing)
    assert framing.framer().framing is framing


def test_a_framing_of_no_kind_frames_nothing():
    with pytest.raises(TypeError, match="use one of the kinds"):
        Framer(Framing())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lines(0),
        lambda: Lines(-1),
        lambda: Fixed(0),
        lambda: LengthPrefixed(0),
        lambda: LengthPrefixed(9),
        lambda: LengthPrefixed(4, "middle"),
        lambda: Delimiter(b""),
        lambda: Delimiter(b"x" * 65),
        lambda: HttpHead(max_headers=0),
        lambda: HttpHead(max_bytes=1 << 31),
        lambda: HttpHead(max_body_bytes=-1),
    ],
)
def test_a_size_out_of_range_is_refused(make):
    with pytest.raises(ValueError):
        make()


# Against the model

LIMIT = st.integers(1, 12)
FRAMINGS = st.one_of(
    st.builds(Lines, LIMIT, st.booleans()),
    st.builds(LengthPrefixed, st.integers(1, 3), st.sampled_from(["big", "little"]), LIMIT),
    st.builds(Fixed, LIMIT),
    st.builds(Delimiter, st.text("ab", min_size=1, max_size=4).map(str.encode), LIMIT),
    st.builds(HttpHead, st.integers(10, 40), st.integers(1, 4), st.integers(16, 99), LIMIT),
)
WORDS = [
    *(b"a", b"b", b"ab", b"\r", b"\n", b"\r\n", b"\0", b"\1", b"\2", b" ", b":", b"x" * 9),
    *(b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n\r\n", b"Content-Length: ", b"0", b"3", b"99"),
    *(b"P \x7f HTTP/1.0\r\n", b"P /\xe9 HTTP/1.0\r\n", b"Transfer-Encoding: chunked\r\n", b"\t"),
    *(b"A b HTTP/1.0\r\n", b"Content-Length: 2\r\n\r\n", b"X-y:\t\xe9 \r\n", b"X : y\r\n"),
]
STREAMS = st.lists(st.sampled_from(WORDS), max_size=16).map(b"".join)


@settings(deadline=None, max_examples=1000)
@given(FRAMINGS, STREAMS, st.data())
def test_however_it_is_cut_a_stream_means_what_the_model_says(framing, stream, data):
    frames, rest, refused = model.cut(framing, stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    for way in ([stream], pieces, one_by_one(stream)):
        assert cut(framing, way) == (frames, refused)
    if refused:
        return
    framer = framing.framer()
    framer.feed(stream)
    assert framer.pending == len(rest)
    last, refused = model.end(framing, rest)
    if refused:
        with pytest.raises(FramingError):
            framer.eof()
    else:
        assert framer.eof() == last


@settings(deadline=None, max_examples=300)
@given(FRAMINGS.filter(lambda f: not isinstance(f, HttpHead)), st.lists(STREAMS, max_size=4))
def test_what_was_encoded_comes_out_again(framing, payloads):
    sent = b""
    expected = []
    for payload in payloads:
        try:
            sent += framing.encode(payload)
        except FramingError:
            continue
        expected.append(payload)
    frames, refused = cut(framing, one_by_one(sent))
    assert not refused
    if getattr(framing, "keep_ends", False):
        expected = [line if line.endswith(b"\n") else line + b"\n" for line in expected]
    assert frames == expected
