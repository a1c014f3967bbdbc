# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""Framings on the machines of csrc/framing/: see pyreactor.framing."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.string cimport memcpy

from pyreactor._native cimport (
    PR_DELIMITER_BYTES_MAX,
    PR_FRAME_BYTES_MAX,
    PR_FRAMING_DELIMITER,
    PR_FRAMING_FIXED,
    PR_FRAMING_HTTP_HEAD,
    PR_FRAMING_LENGTH_PREFIXED,
    PR_FRAMING_LINES,
    pr_frame,
    pr_framer_deinit,
    pr_framer_end,
    pr_framer_feed,
    pr_framer_init,
    pr_framer_pending,
    pr_framing_check,
)


class FramingError(ValueError):
    """Bytes that are no frame, or a payload that cannot be one.

    `frames` are those that were complete before the offending bytes.
    """

    def __init__(self, message, frames=()):
        super().__init__(message)
        self.frames = list(frames)


cdef bytes frame_bytes(const pr_frame *frame):
    return PyBytes_FromStringAndSize(frame.data, <Py_ssize_t>frame.size)


cdef bytes payload_bytes(object payload):
    """`payload` as bytes; a number of them, which bytes() would take for a size, is refused."""
    return payload if type(payload) is bytes else bytes(memoryview(payload))


cdef class Framing:
    """A rule by which messages are cut out of a stream of bytes.

    It never changes; connections and threads may share it.  Framings of the same kind with the same
    arguments are equal.
    """

    cdef int check(self, Py_ssize_t max_bytes) except -1:
        """Takes `max_bytes` over; the kind and its other fields are set already."""
        if max_bytes < 0 or <size_t>max_bytes > PR_FRAME_BYTES_MAX:
            raise ValueError(f'a limit of {max_bytes} bytes is out of range')
        self.rule.max_bytes = <size_t>max_bytes
        if pr_framing_check(&self.rule) < 0:
            raise ValueError(f'{self!r}: a size is 0 or out of range')
        return 0

    cdef tuple arguments(self):
        raise TypeError('use one of the kinds of framing: Lines, LengthPrefixed, ...')

    def __repr__(self):
        arguments = ', '.join(f'{name}={value!r}' for name, value in self.arguments())
        return f'{type(self).__name__}({arguments})'

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.arguments() == (<Framing>other).arguments()

    def __hash__(self):
        return hash((type(self), self.arguments()))

    def __reduce__(self):
        return type(self), tuple([value for _, value in self.arguments()])

    def framer(self):
        """Return a new Framer: the machine of one connection."""
        return Framer(self)

    def encode(self, payload):
        """Return the bytes to send for one message.

        Raises FramingError for a payload that the other side, with the same framing, would refuse
        or take for something else.
        """
        raise NotImplementedError


@cython.final
cdef class Lines(Framing):
    """Lines of text: up to LF or CR LF.

    `max_bytes` is the longest line, without its end.  Lines come without their ends unless
    `keep_ends` is true.  At the peer's end, what came after the last line end is the last line.
    """

    def __cinit__(self, Py_ssize_t max_bytes=65536, bint keep_ends=False):
        self.rule.kind = PR_FRAMING_LINES
        self.rule.keep_ends = keep_ends
        self.check(max_bytes)

    cdef tuple arguments(self):
        return (('max_bytes', self.max_bytes), ('keep_ends', self.keep_ends))

    @property
    def max_bytes(self):
        """The longest line, in bytes, without its end."""
        return self.rule.max_bytes

    @property
    def keep_ends(self):
        """Whether a line comes with its end."""
        return bool(self.rule.keep_ends)

    def encode(self, payload):
        """Return the line with an LF after it; with `keep_ends`, only where it has none."""
        cdef bytes line = payload_bytes(payload)
        if self.rule.keep_ends and line.endswith(b'\n'):
            content = line[:-2] if line.endswith(b'\r\n') else line[:-1]
        else:
            content = line
            line += b'\n'
        if b'\n' in content:
            raise FramingError('a line to send has a line end in it: send it as two')
        if not self.rule.keep_ends and content.endswith(b'\r'):
            raise FramingError('a line to send ends in CR, which would be taken for its end')
        if <size_t>len(content) > self.rule.max_bytes:
            raise FramingError(f'a line to send has {len(content)} bytes, more than {self!r} takes')
        return line


@cython.final
cdef class LengthPrefixed(Framing):
    """Messages after their size, a number of `prefix_bytes` (1 to 8).

    `byteorder` is "big" or "little".  `max_bytes` is the largest message, without its prefix.
    """

    def __cinit__(self, Py_ssize_t prefix_bytes=4, str byteorder='big',
                  Py_ssize_t max_bytes=1048576):
        if byteorder not in ('big', 'little'):
            raise ValueError(f"byteorder is 'big' or 'little', not {byteorder!r}")
        if not 1 <= prefix_bytes <= 8:
            raise ValueError(f'a prefix has 1 to 8 bytes, not {prefix_bytes}')
        self.rule.kind = PR_FRAMING_LENGTH_PREFIXED
        self.rule.prefix_bytes = <size_t>prefix_bytes
        self.rule.little_endian = byteorder == 'little'
        self.check(max_bytes)

    cdef tuple arguments(self):
        return (('prefix_bytes', self.prefix_bytes), ('byteorder', self.byteorder),
                ('max_bytes', self.max_bytes))

    @property
    def prefix_bytes(self):
        """How many bytes the size has."""
        return self.rule.prefix_bytes

    @property
    def byteorder(self):
        """'big' or 'little'."""
        return 'little' if self.rule.little_endian else 'big'

    @property
    def max_bytes(self):
        """The largest message, in bytes, without its prefix."""
        return self.rule.max_bytes

    def encode(self, payload):
        """Return the payload's size and the payload."""
        cdef bytes content = payload_bytes(payload)
        size = len(content)
        if <size_t>size > self.rule.max_bytes or size >> 8 * self.rule.prefix_bytes:
            raise FramingError(f'a message to send has {size} bytes, more than {self!r} takes')
        return size.to_bytes(self.rule.prefix_bytes, self.byteorder) + content


@cython.final
cdef class Fixed(Framing):
    """Messages of `size` bytes each."""

    def __cinit__(self, Py_ssize_t size):
        self.rule.kind = PR_FRAMING_FIXED
        self.check(size)

    cdef tuple arguments(self):
        return (('size', self.size),)

    @property
    def size(self):
        """Bytes of a message."""
        return self.rule.max_bytes

    def encode(self, payload):
        """Return the payload, which has to be of that size."""
        cdef bytes content = payload_bytes(payload)
        if <size_t>len(content) != self.rule.max_bytes:
            raise FramingError(f'a message to send has {len(content)} bytes, not as {self!r} says')
        return content


@cython.final
cdef class Delimiter(Framing):
    """Messages that end in `delimiter` (1 to 64 bytes), with which they come and are given without.

    `max_bytes` is the largest message, without its delimiter.
    """

    def __cinit__(self, bytes delimiter not None, Py_ssize_t max_bytes=65536):
        if not 1 <= len(delimiter) <= PR_DELIMITER_BYTES_MAX:
            raise ValueError(
                f'a delimiter has 1 to {PR_DELIMITER_BYTES_MAX} bytes, not {len(delimiter)}')
        self.rule.kind = PR_FRAMING_DELIMITER
        self.rule.delimiter_bytes = <size_t>len(delimiter)
        memcpy(self.rule.delimiter, <const char *>delimiter, <size_t>len(delimiter))
        self.check(max_bytes)

    cdef tuple arguments(self):
        return (('delimiter', self.delimiter), ('max_bytes', self.max_bytes))

    @property
    def delimiter(self):
        """What a message ends in."""
        return self.rule.delimiter[:self.rule.delimiter_bytes]

    @property
    def max_bytes(self):
        """The largest message, in bytes, without its delimiter."""
        return self.rule.max_bytes

    def encode(self, payload):
        """Return the payload and the delimiter, which the payload must not contain."""
        cdef bytes content = payload_bytes(payload)
        cdef bytes message = content + self.delimiter
        if message.find(self.delimiter) != len(content):
            raise FramingError('a message to send has the delimiter in it: it would be cut there')
        if <size_t>len(content) > self.rule.max_bytes:
            raise FramingError(
                f'a message to send has {len(content)} bytes, more than {self!r} takes')
        return message


@cython.final
cdef class HttpHead(Framing):
    """Heads of HTTP/1 requests, each with its body where that has a Content-Length.

    `max_line_bytes` is the longest line of a head and `max_headers` the number of its fields;
    `max_bytes` is the head's size and `max_body_bytes` that of a body: by default none is taken.
    What comes in chunks is refused.  pyreactor.fsm.http1 reads what a frame says.
    """

    def __cinit__(self, Py_ssize_t max_line_bytes=8192, Py_ssize_t max_headers=100,
                  Py_ssize_t max_bytes=65536, Py_ssize_t max_body_bytes=0):
        if max_line_bytes < 1 or max_headers < 1 or max_bytes < 1:
            raise ValueError('max_line_bytes, max_headers and max_bytes are at least 1')
        self.rule.kind = PR_FRAMING_HTTP_HEAD
        self.rule.http.line_bytes_max = <size_t>max_line_bytes
        self.rule.http.headers_max = <size_t>max_headers
        self.rule.http.head_bytes_max = <size_t>max_bytes
        self.check(max_body_bytes)

    cdef tuple arguments(self):
        return (('max_line_bytes', self.max_line_bytes), ('max_headers', self.max_headers),
                ('max_bytes', self.max_bytes), ('max_body_bytes', self.max_body_bytes))

    @property
    def max_line_bytes(self):
        """The longest line of a head, in bytes, without its end."""
        return self.rule.http.line_bytes_max

    @property
    def max_headers(self):
        """How many fields a head may have."""
        return self.rule.http.headers_max

    @property
    def max_bytes(self):
        """The largest head, in bytes, without the empty line at its end."""
        return self.rule.http.head_bytes_max

    @property
    def max_body_bytes(self):
        """The largest body, in bytes."""
        return self.rule.max_bytes

    def encode(self, payload):
        """Return the payload as it is: what answers a request is a response, already whole."""
        return payload_bytes(payload)


@cython.final
cdef class Framer:
    """The machine of one connection: bytes go in as they come, frames come out.

    Make it with a framing's framer().  One thread at a time.
    """

    def __cinit__(self, Framing framing not None):
        framing.arguments()  # TypeError for a Framing of no kind
        self.framing = framing
        pr_framer_init(&self.machine, &framing.rule)

    def __dealloc__(self):
        pr_framer_deinit(&self.machine)

    cdef object error(self, int code, list frames):
        if code == -ENOMEM:
            return MemoryError(self.machine.reason.decode())
        return FramingError(f'{self.machine.reason.decode()}, in {self.framing!r}', frames)

    def feed(self, data):
        """Take in `data` (a buffer) and return the frames that are now complete, as bytes.

        Raises FramingError where the bytes break the framing's rule, with the frames before that in
        `frames`; from then on every call raises it.  Raises RuntimeError after eof().
        """
        cdef Py_buffer view
        cdef const char *rest
        cdef size_t size
        cdef pr_frame frame
        cdef int result
        cdef list frames = []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with cython.critical_section(self):
                if self.ended:
                    raise RuntimeError('feed() after eof(): make another framer')
                rest = <const char *>view.buf
                size = <size_t>view.len
                while True:
                    result = pr_framer_feed(&self.machine, &rest, &size, &frame)
                    if result <= 0:
                        break
                    frames.append(frame_bytes(&frame))
                if result < 0:
                    raise self.error(result, frames)
        finally:
            PyBuffer_Release(&view)
        return frames

    def eof(self):
        """Return what the peer's end makes of the rest: a list of one frame, or of none.

        Raises FramingError where a frame is cut off.
        """
        cdef pr_frame frame
        cdef int result
        with cython.critical_section(self):
            self.ended = True
            result = pr_framer_end(&self.machine, &frame)
            if result < 0:
                raise self.error(result, [])
            return [frame_bytes(&frame)] if result else []

    @property
    def pending(self):
        """Bytes held of a frame that is not complete."""
        return pr_framer_pending(&self.machine)
