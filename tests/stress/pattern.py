"""Bytes that tell whose they are: the stream with a key has one right byte at each offset.

It consists of cells of 1 KiB.  Each begins with the key and its own number, so that a byte of
another stream or from another place is not only noticed but named.
"""

import random
import struct

CELL = 1024
HEAD = struct.Struct("<QQ")
_FILLER = random.Random(0).randbytes(1 << 16)
_FILLER_STARTS = len(_FILLER) - CELL


class WrongBytes(AssertionError):
    """Bytes came that were never sent there."""


def make(key, offset, size):
    """The `size` bytes at `offset` of the stream with this key."""
    first, last = offset // CELL, (offset + size - 1) // CELL
    cells = []
    for number in range(first, last + 1):
        start = (key * 7919 + number * 104729) % _FILLER_STARTS
        cells.append(HEAD.pack(key, number))
        cells.append(_FILLER[start : start + CELL - HEAD.size])
    skipped = offset - first * CELL
    return b"".join(cells)[skipped : skipped + size]


def check(key, offset, data):
    """Raise WrongBytes unless `data` is what stands at `offset` of the stream with this key."""
    expected = make(key, offset, len(data))
    if data == expected:
        return
    differs = next(i for i, (a, b) in enumerate(zip(data, expected, strict=True)) if a != b)
    found = bytes(data[differs : differs + 48])
    text = f"stream {key:#x}, offset {offset + differs}: {found.hex()} came"
    # The next head within the data tells where they belong.
    for at in range(differs, min(differs + 2 * CELL, len(data) - HEAD.size)):
        owner, number = HEAD.unpack_from(data, at)
        if number < 1 << 32 and data[at : at + CELL] == make(owner, number * CELL, CELL):
            belongs = number * CELL - (at - differs)
            text += f"; it belongs to stream {owner:#x}, offset {belongs}"
            break
    raise WrongBytes(text)
