"""Random streams through the framers of csrc/, under sanitizers, against framing_model.py.

    python tests/fuzz/framing.py --cases 10000000

prints how many cases were the same, or the first that was not.  The same seed gives the same cases.
"""

import argparse
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
from typing import NamedTuple

import framing_model as model

HERE = pathlib.Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = ["framing/framer.c", "fsm/http1.c"]
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{CSRC / 'include'}"),
]
PROGRESS_CASES = 500_000
REFUSED = OPEN = 0xFFFFFFFF

# The model takes any objects with the framings' attributes and class names.


class Lines(NamedTuple):
    max_bytes: int
    keep_ends: bool


class Delimiter(NamedTuple):
    delimiter: bytes
    max_bytes: int


class Fixed(NamedTuple):
    size: int


class LengthPrefixed(NamedTuple):
    prefix_bytes: int
    byteorder: str
    max_bytes: int


class HttpHead(NamedTuple):
    max_line_bytes: int
    max_headers: int
    max_bytes: int
    max_body_bytes: int


TEXT = [b"a", b"b", b"ab", b"aab", b"\r", b"\n", b"\r\n", b"\n\n", b"x" * 9, b"\0", b"\xff"]
NUMBERS = [bytes([n]) for n in range(5)] + [b"\0\0", b"\0\0\0", b"abc", b"\xff", b"x" * 5]
HTTP = [
    *(b"GET / HTTP/1.1\r\n", b"P-1 *?x HTTP/1.0\r\n", b"GET", b" / ", b"HTTP/1.", b"0", b"1"),
    *(b"Host: a\r\n", b"hOST:\r\n", b"X-y:\t\xe9 z \r\n", b"A: b\r\n c\r\n", b"X : y\r\n"),
    *(b"Content-Length: 2\r\n", b"content-length:0\r\n", b"Content-Length: 99\r\n", b"hi"),
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n"),
    *(b"Connection: close\r\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b":", b"\x7f"),
]
REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"P /b HTTP/1.0\r\nContent-Length: 3\r\nA: b\r\n\r\nabc",
    b"\r\nPUT /c HTTP/1.1\r\nX-Long: abcdefghijklmnopqrstuvwxyz\r\nHost:b\r\n\r\n",
]


def random_case(numbers):
    """A framing and a stream, of words that matter to it."""
    pick, below = numbers.choice, numbers.randrange
    match below(8):
        case 0 | 1:
            return Lines(1 + below(12), below(2) == 1), words(numbers, TEXT)
        case 2:
            delimiter = pick([b"\n", b"aab", b"aa", b"abab", b"\r\n"])
            return Delimiter(delimiter, 1 + below(12)), words(numbers, TEXT)
        case 3:
            return Fixed(1 + below(12)), words(numbers, TEXT)
        case 4:
            framing = LengthPrefixed(1 + below(3), pick(["big", "little"]), 1 + below(12))
            return framing, words(numbers, NUMBERS)
        case _:
            framing = HttpHead(10 + below(40), 1 + below(4), 16 + below(100), below(4))
            return framing, requests(numbers)


def words(numbers, choices):
    return b"".join(numbers.choices(choices, k=numbers.randrange(12)))


def requests(numbers):
    """Words of HTTP, or requests of which some bytes are others."""
    if numbers.random() < 0.5:
        return words(numbers, HTTP)
    stream = bytearray(b"".join(numbers.choices(REQUESTS, k=numbers.randrange(1, 4))))
    for _ in range(numbers.randrange(3)):
        at = numbers.randrange(len(stream))
        match numbers.randrange(3):
            case 0:
                stream[at] = numbers.choice(b"\r\n\t :\x00\x7f\xe9aA09/")
            case 1:
                del stream[at]
            case 2:
                stream[at:at] = numbers.choice(HTTP)
    return bytes(stream)


def described(framing):
    """The framing as check_frames.c reads it."""
    kind = ["Lines", "Delimiter", "Fixed", "LengthPrefixed", "HttpHead"].index(
        type(framing).__name__
    )
    has = framing._asdict().get
    delimiter = has("delimiter", b"")
    http = [has(name, 0) for name in ("max_line_bytes", "max_headers", "max_bytes")]
    return struct.pack(
        "=5B4I64s",
        kind,
        has("keep_ends", False),
        has("byteorder") == "little",
        has("prefix_bytes", 0),
        len(delimiter),
        has("max_body_bytes", has("size", has("max_bytes"))),
        *http,
        delimiter,
    )


def sized(data):
    return struct.pack("=I", len(data)) + data


def encoded_case(framing, stream):
    frames, rest, refused = model.cut(framing, stream)
    outcome = b"".join(map(sized, frames))
    outcome += struct.pack("=II", OPEN, REFUSED if refused else len(rest))
    return described(framing) + sized(stream) + sized(outcome), len(frames), refused


def build(folder, sources):
    checker = pathlib.Path(folder) / "check_frames"
    files = [HERE / "check_frames.c", *(sources / name for name in SOURCES)]
    subprocess.run(["cc", *FLAGS, *map(str, files), "-o", str(checker)], check=True)
    return checker


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sources", type=pathlib.Path, default=CSRC, help="another csrc/")
    options = parser.parse_args()
    numbers = random.Random(options.seed)
    frames = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        checker = subprocess.Popen([build(folder, options.sources)], stdin=subprocess.PIPE)
        try:
            for number in range(1, options.cases + 1):
                case, case_frames, case_refused = encoded_case(*random_case(numbers))
                checker.stdin.write(case)
                frames += case_frames
                refused += case_refused
                if number % PROGRESS_CASES == 0:
                    print(f"{number} cases, {frames} frames, {refused} refused", flush=True)
            checker.stdin.close()
        except BrokenPipeError:
            pass  # it says why
        status = checker.wait()
    print(f"{frames} frames came out, {refused} streams were refused")
    return status


if __name__ == "__main__":
    sys.exit(main())
