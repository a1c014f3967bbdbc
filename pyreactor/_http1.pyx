# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The machine for the head of an HTTP/1 request: see pyreactor.fsm.http1."""

import enum

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.string cimport memcpy

from pyreactor._native cimport (
    PR_LINE_BAD,
    PR_LINE_OK,
    PR_LINE_OPEN,
    pr_http1_find_line,
    pr_http1_head,
    pr_http1_head_feed,
    pr_http1_head_init,
    pr_http1_header,
    pr_http1_limits,
    pr_line,
    pr_range,
)


class LineStatus(enum.IntEnum):
    """What the bytes so far are."""

    LINE_OPEN = PR_LINE_OPEN  # more must come
    LINE_OK = PR_LINE_OK  # complete
    LINE_BAD = PR_LINE_BAD  # no line, or no head


cdef tuple STATUSES = tuple(LineStatus)
cdef size_t HELD_BYTES_MIN = 512


class BadRequest(ValueError):
    """Bytes that are no head of a request; `status` is what a server would answer with."""

    def __init__(self, status, reason):
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self):
        return f'{self.reason} (status {self.status})'


cdef str text_at(const char *data, pr_range place):
    return PyUnicode_DecodeASCII(data + place.begin, place.bytes, NULL)


@cython.final
@cython.auto_pickle(False)
cdef class RequestHead:
    """What a request line and the fields after it say."""

    cdef readonly str method
    cdef readonly str target
    cdef readonly str version  # "1.0" or "1.1"
    cdef readonly tuple headers  # of (name, value): str as it was sent, and bytes
    cdef readonly Py_ssize_t size  # bytes of the head: the body begins there
    cdef readonly object content_length  # None where none was given
    cdef readonly bint chunked
    cdef readonly bint keep_alive

    def __init__(self):
        raise TypeError('parse() and HeadMachine make these')

    def get(self, str name not None, default=None):
        """Return the value, in bytes, of the first field of that name, in any case of letters."""
        wanted = name.lower()
        for found, value in self.headers:
            if found.lower() == wanted:
                return value
        return default

    def __repr__(self):
        return f'<RequestHead {self.method} {self.target} HTTP/{self.version}>'


cdef RequestHead new_head(
    const pr_http1_head *head, const pr_http1_header *headers, const char *data
):
    cdef RequestHead made = RequestHead.__new__(RequestHead)
    cdef size_t i
    fields = []
    for i in range(head.header_count):
        fields.append((text_at(data, headers[i].name), PyBytes_FromStringAndSize(
            data + headers[i].value.begin, headers[i].value.bytes)))
    made.method = text_at(data, head.method)
    made.target = text_at(data, head.target)
    made.version = '1.1' if head.minor_version else '1.0'
    made.headers = tuple(fields)
    made.size = <Py_ssize_t>head.bytes
    made.content_length = None if head.content_length < 0 else head.content_length
    made.chunked = head.chunked
    made.keep_alive = head.keep_alive
    return made


cdef class HeadMachine:
    """The machine for one head, fed with bytes as they come.

    It keeps at most `max_bytes` of them, or a little more.  The limits are those of
    pyreactor.framing.HttpHead.  One thread at a time.
    """

    cdef pr_http1_head machine
    cdef pr_http1_header *fields
    cdef char *held
    cdef size_t held_bytes
    cdef size_t capacity
    cdef readonly object head  # a RequestHead, once it is complete
    cdef readonly bytes rest  # what came with its last bytes and follows it
    cdef readonly object error  # a BadRequest, once it cannot be one

    def __cinit__(self, Py_ssize_t max_line_bytes=8192, Py_ssize_t max_headers=100,
                  Py_ssize_t max_bytes=65536):
        cdef pr_http1_limits limits
        if max_line_bytes < 1 or not 1 <= max_headers <= 1 << 20 or max_bytes < 1:
            raise ValueError('max_line_bytes, max_headers and max_bytes are at least 1')
        limits.line_bytes_max = <size_t>max_line_bytes
        limits.headers_max = <size_t>max_headers
        limits.head_bytes_max = <size_t>max_bytes
        self.fields = <pr_http1_header *>PyMem_Malloc(max_headers * sizeof(pr_http1_header))
        if self.fields == NULL:
            raise MemoryError
        if pr_http1_head_init(&self.machine, &limits, self.fields) < 0:
            raise ValueError(f'max_bytes={max_bytes} is out of range')
        self.rest = b''

    def __dealloc__(self):
        PyMem_Free(self.fields)
        PyMem_Free(self.held)

    cdef int hold(self, const char *data, size_t size) except -1:
        cdef size_t capacity
        cdef char *held
        if self.held_bytes + size > self.capacity:
            capacity = max(self.capacity * 2, self.held_bytes + size, HELD_BYTES_MIN)
            held = <char *>PyMem_Realloc(self.held, capacity)
            if held == NULL:
                raise MemoryError
            self.held = held
            self.capacity = capacity
        if size:
            memcpy(self.held + self.held_bytes, data, size)
            self.held_bytes += size
        return 0

    def feed(self, data):
        """Take in `data` (a buffer) and return the LineStatus of the head.

        After LINE_OK, `head` is there, and `rest`, what came behind it; after LINE_BAD, `error`.
        Raises RuntimeError where the head was complete before.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with cython.critical_section(self):
                return STATUSES[self.take(<const char *>view.buf, <size_t>view.len)]
        finally:
            PyBuffer_Release(&view)

    cdef pr_line take(self, const char *data, size_t size) except *:
        cdef pr_line line
        cdef size_t piece, at = 0
        if self.error is not None:
            return PR_LINE_BAD
        if self.head is not None:
            raise RuntimeError('the head is complete: what follows is not for this machine')
        # In pieces, so that what is refused early is not held whole.
        while True:
            piece = min(size - at, max(self.held_bytes, HELD_BYTES_MIN))
            self.hold(data + at, piece)
            at += piece
            line = pr_http1_head_feed(&self.machine, self.held, self.held_bytes)
            if line == PR_LINE_BAD:
                self.error = BadRequest(self.machine.status, self.machine.reason.decode())
                return line
            if line == PR_LINE_OK:
                self.head = new_head(&self.machine, self.fields, self.held)
                at -= self.held_bytes - self.machine.bytes
                self.rest = data[at:size]
                return line
            if at == size:
                return line

    def __repr__(self):
        state = 'open' if self.error is None else f'bad: {self.error}'
        return f'<HeadMachine {self.head if self.head is not None else state}>'


def parse(data, Py_ssize_t max_line_bytes=8192, Py_ssize_t max_headers=100,
          Py_ssize_t max_bytes=65536):
    """Return the RequestHead at the beginning of `data` (a buffer), such as a frame of HttpHead.

    Raises BadRequest where it is none, ValueError where it is not complete.  The body, if any,
    begins at the head's `size`.
    """
    machine = HeadMachine(max_line_bytes, max_headers, max_bytes)
    status = machine.feed(data)
    if status == PR_LINE_BAD:
        raise machine.error
    if status == PR_LINE_OPEN:
        raise ValueError('the head of the request is not complete: more bytes must come')
    return machine.head


def find_line(data, Py_ssize_t start=0):
    """Look for the end of the line that begins at `start` of `data` (a buffer).

    Return the LineStatus and a place in `data`: behind the line for LINE_OK, of the byte in
    question for LINE_BAD (a CR without LF, or an LF without CR), and for LINE_OPEN where to look
    on once more has come.
    """
    cdef Py_buffer view
    cdef size_t scanned
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= view.len:
            raise ValueError(f'start={start} is outside of the {view.len} bytes of data')
        scanned = <size_t>start
        line = pr_http1_find_line(<const char *>view.buf, <size_t>view.len, &scanned)
    finally:
        PyBuffer_Release(&view)
    return STATUSES[line], scanned
