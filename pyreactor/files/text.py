"""Text files: characters over a BinaryFile's bytes, with the standard library's decoders.

What was decoded and not read yet is a row of pieces, each with the bytes that it was made of and
the decoder's state before them.  So a read that is cancelled has taken nothing, and tell() can say
where in the file the next character begins.
"""

from __future__ import annotations

import codecs
import io
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from pyreactor.files.binary import Answer, BinaryFile

PIECE_BYTES = 64 * 1024  # decoded at once

# How tell() packs a place that is not just a position: below, what has to be decoded from there on
# and left out, and above it the decoder's state.
_FIELD_BITS = 64
_FIELD_MASK = (1 << _FIELD_BITS) - 1


class Decoder:
    """The standard library's decoder, with its decoder of newlines, and their state as one.

    A state is (pending, flags): the bytes of a character that is not complete, and a number, which
    is 0 where there is nothing to say.  IncrementalNewlineDecoder has no room for the numbers of
    the stateful encodings of Asia.
    """

    def __init__(self, encoding: str, errors: str, newline: str | None) -> None:
        self._inner = codecs.getincrementaldecoder(encoding)(errors)
        self._outer: Any = self._inner
        self._has_newlines = not newline
        if self._has_newlines:
            self._outer = io.IncrementalNewlineDecoder(self._inner, translate=newline is None)
        flags = int(self._inner.getstate()[1])
        # The encodings that begin with a byte order mark are in state 1 or 2 before it, 0 after it.
        self._neutral = 0 if flags in (1, 2) else flags
        self.decode: Callable[..., str] = self._outer.decode
        self.reset: Callable[[], None] = self._outer.reset

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The ends of lines that were met so far, where they are looked for."""
        newlines: str | tuple[str, ...] | None = getattr(self._outer, "newlines", None)
        return newlines

    def state(self) -> tuple[bytes, int]:
        """Return the state, for restore()."""
        pending, flags = self._inner.getstate()
        flags = (int(flags) ^ self._neutral) << 1
        if self._has_newlines:
            flags |= self._outer.getstate()[1] & 1  # a "\r" whose "\n" may come
        return pending, flags

    def restore(self, state: tuple[bytes, int]) -> None:
        """Be in a state of before."""
        pending, flags = state
        if self._has_newlines:
            self._outer.setstate((b"", flags & 1))
        self._inner.setstate((pending, flags >> 1 ^ self._neutral))


class Piece(NamedTuple):
    """Decoded text and where it comes from."""

    position: int  # of its first byte
    pending: bytes  # the decoder's state before it
    flags: int
    data: bytes
    text: str


class Place(NamedTuple):
    """A place in a text: `characters` behind what begins at `position` and takes `size` bytes."""

    position: int
    size: int = 0
    characters: int = 0
    flags: int = 0

    def pack(self) -> int:
        """Return it as one number: the position, where that says it all."""
        number = self.flags
        for field in (self.characters, self.size, self.position):
            number = number << _FIELD_BITS | field
        return number

    @classmethod
    def unpack(cls, number: int) -> Place:
        """The reverse of pack()."""
        fields = []
        for _ in range(3):
            fields.append(number & _FIELD_MASK)
            number >>= _FIELD_BITS
        position, size, characters = fields
        return cls(position, size, characters, number)


class TextFile:
    """A file of text; `files.open()` makes it.  Used by the tasks of one loop.

    Operations take effect one after the other, in the order in which they were begun.  All raise
    ValueError once the file is closed, UnicodeError for what cannot be decoded or encoded, and what
    BinaryFile's raise.  `buffer` is the file of the bytes.
    """

    def __init__(
        self, buffer: BinaryFile, form: io.TextIOWrapper, newline: str | None, line_buffering: bool
    ) -> None:
        self.buffer = buffer
        self.mode = ""
        self.encoding: str = form.encoding
        self.errors: str | None = form.errors
        self.line_buffering = line_buffering
        self._newline = newline
        self._decoder = Decoder(self.encoding, self.errors or "strict", newline)
        self._encoder = codecs.getincrementalencoder(self.encoding)(self.errors or "strict")
        self._written_newline = newline if newline in ("\r", "\r\n") else "\n"
        self._pieces: deque[Piece] = deque()
        self._used = 0  # characters of the first
        self._origin = Place(0)  # where it last went
        self._has_decoded = False  # since then
        if buffer._can_write and buffer._seekable:
            self._set_encoder(buffer._position() == 0)

    # What it is

    @property
    def name(self) -> Any:
        """What it was opened with: a path or a descriptor."""
        return self.buffer.name

    @property
    def closed(self) -> bool:
        """True from the beginning of close() on."""
        return self.buffer.closed

    @property
    def newlines(self) -> str | tuple[str, ...] | None:
        """The ends of lines that were met so far, where they are translated or left alone."""
        return self._decoder.newlines

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return (
            f"<{type(self).__name__}{state} name={self.name!r} mode={self.mode!r} "
            f"encoding={self.encoding!r}>"
        )

    def fileno(self) -> int:
        """Return the descriptor's number; see BinaryFile.fileno()."""
        return self.buffer.fileno()

    def readable(self) -> Answer:
        """Return whether it may be read; may be awaited, too, as the next three."""
        return self.buffer.readable()

    def writable(self) -> Answer:
        """Return whether it may be written."""
        return self.buffer.writable()

    def seekable(self) -> Answer:
        """Return whether it has positions."""
        return self.buffer.seekable()

    def isatty(self) -> Answer:
        """Return whether it is a terminal."""
        return self.buffer.isatty()

    # Reading

    async def read(self, size: int | None = -1, /) -> str:
        """Return `size` characters, fewer only at the end; all up to the end for -1 or None."""
        buffer = self.buffer
        buffer._check_reads()
        if size is None or size < 0:
            size = -1
        await buffer._take_turn()
        try:
            if size < 0:
                await buffer._fill_up(-1)
                self._decode(len(buffer._data) - buffer._start, final=True)
                return self._consume(-1)
            have = self._characters()
            while have < size and (more := await self._decode_more()) >= 0:
                have += more
            return self._consume(size)
        finally:
            buffer._pass_on()

    async def readline(self, size: int | None = -1, /) -> str:
        """Return a line with its end, or up to `size` characters of it; "" at the file's end."""
        buffer = self.buffer
        buffer._check_reads()
        if size is None or size < 0:
            size = -1
        if size < 0 and (line := self._line_at_hand()):
            return line
        await buffer._take_turn()
        try:
            return await self._read_line(size)
        finally:
            buffer._pass_on()

    def _line_at_hand(self) -> str:
        """Return a line that is decoded already and nobody's turn; "" where there is none."""
        if not self._pieces or self.buffer._turn.taken or self.buffer._pwrites:
            return ""
        text = self._pieces[0].text
        start = self._used
        end = self._line_end(text, start)
        if not end:
            return ""
        self._used = end
        if end == len(text):
            self._pieces.popleft()
            self._used = 0
        return text[start:end]

    async def readlines(self, hint: int | None = -1, /) -> list[str]:
        """Return all lines; no more once they have more than `hint` characters."""
        lines = []
        total = 0
        while line := await self.readline():
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    def __aiter__(self) -> Self:
        self.buffer._check_open()
        return self

    async def __anext__(self) -> str:
        if not self.buffer._closing and (line := self._line_at_hand()):
            return line
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # Writing

    async def write(self, text: str, /) -> int:
        """Write all of `text`; return how many characters that is.  See BinaryFile.write()."""
        buffer = self.buffer
        buffer._check_writes()
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        await buffer._take_turn()
        try:
            await self._write(text)
        finally:
            buffer._pass_on()
        return len(text)

    async def writelines(self, lines: Iterable[str], /) -> None:
        """Write each of `lines`, as write() does."""
        buffer = self.buffer
        buffer._check_writes()
        await buffer._take_turn()
        try:
            for line in lines:
                await self._write(line)
        finally:
            buffer._pass_on()

    async def flush(self) -> None:
        """Give the kernel what was gathered, and its descriptor the file's position."""
        buffer = self.buffer
        buffer._check_open()
        await buffer._take_turn()
        try:
            await buffer._write_out()
            buffer._tell_kernel()
        finally:
            buffer._pass_on()

    async def fsync(self) -> None:
        """Flush, and wait until it is on the disk, with all that is known about the file."""
        await self.buffer.fsync()

    async def fdatasync(self) -> None:
        """Flush, and wait until the data is on the disk."""
        await self.buffer.fdatasync()

    # The position

    async def tell(self) -> int:
        """Return the place of the next character, as a number for seek().

        It is the position in bytes, but where a decoder's state belongs to it.
        """
        buffer = self.buffer
        buffer._check_open()
        buffer._check_seeks()
        await buffer._take_turn()
        try:
            return self._place().pack()
        finally:
            buffer._pass_on()

    async def seek(self, place: int, whence: int = 0, /) -> int:
        """Go to a place that tell() has returned, or to the end (0, os.SEEK_END).

        (0, os.SEEK_CUR) stays where it is.  Other ways do not exist in a text: it raises
        io.UnsupportedOperation.
        """
        buffer = self.buffer
        buffer._check_open()
        buffer._check_seeks()
        if whence in (1, 2) and place != 0:
            kind = "cur" if whence == 1 else "end"
            raise io.UnsupportedOperation(f"can't do nonzero {kind}-relative seeks")
        if whence not in (0, 1, 2):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if place < 0:
            raise ValueError(f"negative seek position {place!r}")
        await buffer._take_turn()
        try:
            if whence == 1:
                target = self._place()
            elif whence == 2:
                target = Place(await buffer._seek(0, 2))
            else:
                target = Place.unpack(place)
            await self._go_to(target)
            return target.pack()
        finally:
            buffer._pass_on()

    async def truncate(self, size: int | None = None, /) -> int:
        """Make the file `size` bytes long, or as long as the position; return that."""
        if size is None:
            size = await self.tell()
        return await self.buffer.truncate(size)

    # The end

    async def close(self) -> None:
        """Write what was gathered, and close; see BinaryFile.close()."""
        await self.buffer.close()

    async def __aenter__(self) -> Self:
        self.buffer._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        try:
            buffer = self.buffer
        except AttributeError:  # it was never opened
            return
        if not buffer._closed:
            buffer._forsake(self)

    # Text that was decoded; whoever calls these has the turn

    def _characters(self) -> int:
        return sum(len(piece.text) for piece in self._pieces) - self._used

    def _consume(self, size: int) -> str:
        """Take `size` characters that are there, or fewer; all for -1."""
        parts = []
        while self._pieces and size:
            text = self._pieces[0].text
            end = len(text) if size < 0 else min(len(text), self._used + size)
            parts.append(text[self._used : end])
            if size > 0:
                size -= end - self._used
            self._used = end
            if end == len(text):
                self._pieces.popleft()
                self._used = 0
        return "".join(parts)

    def _decode(self, size: int, final: bool) -> int:
        """Decode `size` bytes of the buffer's; return how many characters that makes.

        Where that fails they stay there.
        """
        buffer = self.buffer
        data = buffer._data[buffer._start : buffer._start + size]
        position = buffer._position() if buffer._seekable else 0
        before = self._decoder.state()
        try:
            text = self._decoder.decode(data, final)
        except UnicodeError:
            self._decoder.restore(before)
            raise
        buffer._start += size
        if buffer._start == len(buffer._data):
            buffer._data, buffer._start = b"", 0
        self._has_decoded = True
        if data or text:
            self._pieces.append(Piece(position, *before, data, text))
        return len(text)

    async def _decode_more(self) -> int:
        """Decode what comes next; return how many characters, -1 at the end."""
        buffer = self.buffer
        available = len(buffer._data) - buffer._start
        if not available:
            available = await buffer._fill(buffer._ahead)
        characters = self._decode(min(available, PIECE_BYTES), final=not available)
        return characters if available or characters else -1

    def _line_end(self, text: str, start: int) -> int:
        """Return where the line that goes on at `start` ends, 0 where it does not end in `text`."""
        newline = self._newline
        if newline is None or newline == "\n":
            return text.find("\n", start) + 1
        if newline:
            end = text.find(newline, start)
            return end + len(newline) if end >= 0 else 0
        # As they are, all three kinds.  The decoder never ends in the middle of one.
        feed = text.find("\n", start)
        carriage = text.find("\r", start, feed if feed >= 0 else len(text))
        if carriage < 0 or carriage == feed - 1:
            return feed + 1
        return carriage + 1

    async def _read_line(self, size: int) -> str:
        length = 0
        index = 0
        while True:
            if index == len(self._pieces) and await self._decode_more() < 0:
                return self._consume(length if size < 0 else min(size, length))
            while index < len(self._pieces):
                text = self._pieces[index].text
                start = self._used if index == 0 else 0
                if self._newline == "\r\n" and index and self._ends_between(index):
                    end = 1
                else:
                    end = self._line_end(text, start)
                length += (end or len(text)) - start
                index += 1
                if end or 0 <= size <= length:
                    return self._consume(length if size < 0 else min(size, length))

    def _ends_between(self, index: int) -> bool:
        """Whether the end of a line, of two characters, begins in the piece before."""
        before = self._pieces[index - 1].text
        fresh = before[self._used :] if index == 1 else before
        return fresh.endswith("\r") and self._pieces[index].text.startswith("\n")

    async def _write(self, text: str) -> None:
        buffer = self.buffer
        if buffer._seekable and self._has_decoded:
            await self._go_to(self._place())  # behind what was read, not behind what was read ahead
        ended = text.replace("\n", self._written_newline)
        await buffer._write(memoryview(self._encoder.encode(ended)))
        if self.line_buffering and ("\n" in text or "\r" in text):
            await buffer._write_out()

    # Places

    def _place(self) -> Place:
        """Where the next character comes from."""
        buffer = self.buffer
        if not self._has_decoded:
            position = buffer._position()
            return self._origin if self._origin.position == position else Place(position)
        if not self._pieces:
            pending, flags = self._decoder.state()
            return Place(buffer._position() - len(pending), flags=flags)
        piece = self._pieces[0]
        size = self._bytes_before(piece, self._used)
        if piece.position + size == 0:
            return Place(0)
        decoder = self._decoder
        state = decoder.state()
        try:
            decoder.restore((piece.pending, piece.flags))
            characters = len(decoder.decode(piece.data[:size]))
            pending, flags = decoder.state()
            if characters == self._used and not pending:
                return Place(piece.position + size, flags=flags)
        finally:
            decoder.restore(state)
        start = piece.position - len(piece.pending)
        return Place(start, len(piece.pending) + size, self._used, piece.flags)

    def _bytes_before(self, piece: Piece, characters: int) -> int:
        """How many of the piece's bytes it takes to have that many of its characters."""
        if not characters:
            return 0
        decoder = self._decoder
        state = decoder.state()
        low, high = 0, len(piece.data)
        try:
            while low < high:  # too few, and enough
                middle = (low + high) // 2
                decoder.restore((piece.pending, piece.flags))
                if len(decoder.decode(piece.data[:middle])) < characters:
                    low = middle + 1
                else:
                    high = middle
        finally:
            decoder.restore(state)
        return high

    async def _go_to(self, place: Place) -> None:
        buffer = self.buffer
        await buffer._seek(place.position, 0)
        self._pieces.clear()
        self._used = 0
        self._origin = place
        self._has_decoded = False
        if place == Place(0):
            self._decoder.reset()
        else:
            self._decoder.restore((b"", place.flags))
        if place.size:
            await buffer._fill_up(place.size)
            self._decode(min(place.size, len(buffer._data) - buffer._start), final=False)
            if self._characters() < place.characters:
                raise OSError("can't restore logical file position")
            self._consume(place.characters)
        self._set_encoder(place.position == 0 and not place.flags)

    def _set_encoder(self, at_start: bool) -> None:
        """Make it write a byte order mark, where it has one, at the start only."""
        if at_start:
            self._encoder.reset()
        else:
            self._encoder.setstate(0)
