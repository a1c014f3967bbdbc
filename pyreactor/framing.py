"""Framings: where one message ends and the next begins in a stream of bytes.

    class            a frame is
    Lines            a line of text, up to LF or CR LF
    LengthPrefixed   what follows its own size
    Fixed            so and so many bytes
    Delimiter        what comes before a mark
    HttpHead         an HTTP/1 request's head, with its body where it has a length

A framing never changes and is shared by all connections; framer() makes the machine of one:

    framer = Lines(max_bytes=1000).framer()
    framer.feed(b"one\\ntw")    # [b"one"]
    framer.feed(b"o\\n")        # [b"two"]

The frames depend on the bytes alone, not on how they were cut.  A framer holds one unfinished frame
of the allowed size at most, however hostile the peer, and a frame of n bytes that comes byte by
byte takes time proportional to n.
"""

from pyreactor._framing import (
    Delimiter,
    Fixed,
    Framer,
    Framing,
    FramingError,
    HttpHead,
    LengthPrefixed,
    Lines,
)

__all__ = [
    "Delimiter",
    "Fixed",
    "Framer",
    "Framing",
    "FramingError",
    "HttpHead",
    "LengthPrefixed",
    "Lines",
]
