# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""Pipe transports: asyncio.ReadTransport and WriteTransport on a stream of the C core.

For pipes, FIFOs, terminals and other character devices, and sockets.  The transport owns the file
object and closes it.  The protocol is called in the context in which the transport was made.  All
methods: the loop's thread only.
"""

import asyncio
import errno
import fcntl
import io
import os
import stat
from asyncio import constants
from asyncio.log import logger

cimport cython
from cpython.object cimport PyObject

from pyreactor._context cimport PyContext_CopyCurrent, release
from pyreactor._errors cimport errno_exception
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    PR_WRITABLE,
    c_bool,
    pr_stream,
    pr_stream_handler,
    pr_stream_queued_bytes,
    pr_watch_is_active,
)
from pyreactor._transport cimport ByteTransport, WritingTransport


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *bytes)
    int resize_bytes "_PyBytes_Resize" (PyObject **bytes, Py_ssize_t size)


cdef object asyncio_read_transport = asyncio.ReadTransport
cdef object asyncio_write_transport = asyncio.Transport  # as asyncio's, for its flow control
cdef int DROPPED_WRITES_LOGGED = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
cdef int EIO = errno.EIO

cdef str READ_FAILED = 'Fatal read error on pipe transport'
cdef str WRITE_FAILED = 'Fatal write error on pipe transport'


# What the stream tells its transport.  Exceptions stay inside: 1 ends the turn, and the loop keeps
# what must leave it.

cdef int acquire_buffer(pr_stream *stream, char **buffer, size_t *size) noexcept:
    """Where the last read brought much: the next payload itself, instead of the loop's buffer."""
    cdef ReadPipeTransport self = <ReadPipeTransport>stream.watch.owner
    if self.capacity_bytes == 0 or self.last_bytes < self.capacity_bytes // 2:
        return 0
    self.lent = new_bytes(NULL, self.capacity_bytes)
    if self.lent == NULL:
        return self.fail_with_pending(READ_FAILED)
    buffer[0] = bytes_data(self.lent)
    size[0] = <size_t>self.capacity_bytes
    return 0


cdef int on_received(pr_stream *stream, const char *data, size_t size) noexcept:
    cdef ReadPipeTransport self = <ReadPipeTransport>stream.watch.owner
    cdef PyObject *payload = self.take_payload(data, size)
    cdef int result
    if payload == NULL:
        return 0 if size == 0 else self.fail_with_pending(READ_FAILED)
    result = self.conclude('data_received', self.call('data_received', payload))
    release(payload)
    return result


cdef int on_read_end(pr_stream *stream) noexcept:
    cdef ReadPipeTransport self = <ReadPipeTransport>stream.watch.owner
    try:
        self.end()
    except BaseException as exc:
        return self.give_up(exc, READ_FAILED)
    return 0


cdef int on_write_end(pr_stream *stream) noexcept:
    cdef WritePipeTransport self = <WritePipeTransport>stream.watch.owner
    try:
        self.end()
    except BaseException as exc:
        return self.give_up(exc, WRITE_FAILED)
    return 0


cdef int on_error(pr_stream *stream, int error, c_bool sending) noexcept:
    cdef ByteTransport self = <ByteTransport>stream.watch.owner
    return self.give_up(errno_exception(error), self.failure_text)


cdef int on_high_water(pr_stream *stream) noexcept:
    return (<ByteTransport>stream.watch.owner).advise_protocol('pause_writing')


cdef int on_low_water(pr_stream *stream) noexcept:
    return (<ByteTransport>stream.watch.owner).advise_protocol('resume_writing')


cdef int on_drained(pr_stream *stream) noexcept:
    cdef ByteTransport self = <ByteTransport>stream.watch.owner
    try:
        self.lose_connection(None)
    except BaseException as exc:
        return self._loop.escape(exc)
    return 0


cdef pr_stream_handler reading_handler
reading_handler.acquire_buffer = acquire_buffer
reading_handler.on_received = on_received
reading_handler.on_end = on_read_end
reading_handler.on_error = on_error

cdef pr_stream_handler writing_handler
writing_handler.acquire_buffer = NULL
writing_handler.on_received = NULL
writing_handler.on_end = on_write_end
writing_handler.on_error = on_error
writing_handler.on_high_water = on_high_water
writing_handler.on_low_water = on_low_water
writing_handler.on_drained = on_drained


cdef object open_pipe(
    ByteTransport self, LoopCore loop, object pipe, object protocol, object context, object extra,
    const pr_stream_handler *handler, str refusal
):
    """Takes over the file `pipe` and returns its mode; ValueError(refusal) for a regular file."""
    mode = os.fstat(pipe.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(refusal)
    os.set_blocking(pipe.fileno(), False)
    arguments = {} if extra is None else dict(extra)
    arguments['pipe'] = pipe
    if context is None:
        context = PyContext_CopyCurrent()
    file = pipe
    try:
        loop._ensure_fd_no_transport(pipe.fileno())
    except RuntimeError:
        # The other direction of a terminal or a socket: that transport has the descriptor, and
        # closes the file, this one a duplicate of its own.
        file = io.FileIO(os.dup(pipe.fileno()), 'r+')
    self.open_stream(loop, file, protocol, context, arguments, handler, not stat.S_ISSOCK(mode))
    return mode


cdef list state_of(ByteTransport self, name, unsigned int event):
    """The parts of a repr() that both kinds share."""
    info = [name]
    if self.file is None:
        info.append('closed')
    elif self._closing:
        info.append('closing')
    info.append(f'fd={self.fd}')
    if pr_watch_is_active(&self.stream.watch):
        info.append('polling' if self.stream.watch.wanted & event else 'idle')
    elif self.file is not None:
        info.append('open')
    return info


@cython.no_gc_clear  # its stream refers to the loop until the very end
cdef class ReadPipeTransport(ByteTransport):
    """The reading end of a pipe, or another file to be read; an asyncio.ReadTransport.

    isinstance(transport, asyncio.ReadTransport) holds: `__class__` says so.
    """

    max_size = 256 * 1024  # what one read may bring, in bytes

    @property
    def __class__(self):
        return asyncio_read_transport

    def __init__(
        self, LoopCore loop not None, pipe, protocol, waiter=None, extra=None, context=None
    ):
        """Take over the file object `pipe`; connection_made() follows in the next turn.

        `waiter` is a future to be set after it; `context` the one to call the protocol in, by
        default a copy of the current one.  Raises ValueError for a regular file and OSError; then
        the file stays the caller's.
        """
        self.failure_text = READ_FAILED
        mode = open_pipe(
            self, loop, pipe, protocol, context, extra, &reading_handler,
            'Pipe transport is for pipes/sockets only.')
        if stat.S_ISFIFO(mode):
            self.capacity_bytes = min(
                fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ), self.max_size)
        loop.call_soon(self._connect, waiter, context=self.context)

    def _connect(self, waiter):
        self.begin(waiter)

    @property
    def _pipe(self):
        return self.file

    @_pipe.setter
    def _pipe(self, pipe):
        self.file = pipe

    @property
    def _fileno(self):
        return self.fd

    def is_reading(self):
        """Return True while data may come: neither paused nor closing."""
        return not self._closing and not self._paused

    def pause_reading(self):
        """Keep data_received() from being called until resume_reading()."""
        self.pause()

    def resume_reading(self):
        """Undo pause_reading()."""
        self.resume()

    def close(self):
        """Read no more, then call connection_lost(None)."""
        self.check_thread()
        if not self._closing:
            self.force_close(None)

    cdef PyObject *take_payload(self, const char *data, size_t size) noexcept:
        """What was read, as bytes; NULL where that is nothing, or with an exception set."""
        cdef PyObject *payload = self.lent
        self.lent = NULL
        self.last_bytes = <Py_ssize_t>size
        if payload == NULL:
            return new_bytes(data, <Py_ssize_t>size) if size else NULL
        if size == 0:
            release(payload)
            return NULL
        resize_bytes(&payload, <Py_ssize_t>size)  # NULL where it fails
        return payload

    cdef int end(self) except -1:
        """The last writer is gone: eof_received() and connection_lost(None) follow."""
        if self._loop._debug:
            logger.info('%r was closed by peer', self)
        self._closing = True
        self._loop.call_soon(self._protocol.eof_received, context=self.context)
        return self.lose_connection(None)

    cdef bint is_expected(self, object exception) except -1:
        # The other side of a terminal is gone.
        return isinstance(exception, OSError) and exception.errno == EIO

    def __repr__(self):
        return '<{}>'.format(' '.join(state_of(self, 'ReadPipeTransport', 1)))


@cython.no_gc_clear  # its stream refers to the loop until the very end
cdef class WritePipeTransport(WritingTransport):
    """The writing end of a pipe, or another file to be written; an asyncio.WriteTransport.

    isinstance(transport, asyncio.WriteTransport) holds: `__class__` says so.  What is written in
    one callback leaves together when that callback returns, in one system call.
    """

    @property
    def __class__(self):
        return asyncio_write_transport

    def __init__(
        self, LoopCore loop not None, pipe, protocol, waiter=None, extra=None, context=None
    ):
        """Take over the file object `pipe`; see ReadPipeTransport."""
        self.failure_text = WRITE_FAILED
        mode = open_pipe(
            self, loop, pipe, protocol, context, extra, &writing_handler,
            'Pipe transport is only for pipes, sockets and character devices')
        self.hears_reader = not stat.S_ISCHR(mode)
        loop.call_soon(self._connect, waiter, context=self.context)

    def _connect(self, waiter):
        self.begin(waiter)

    @property
    def _pipe(self):
        return self.file

    @_pipe.setter
    def _pipe(self, pipe):
        self.file = pipe

    @property
    def _fileno(self):
        return self.fd

    cdef int set_reading(self, bint reading) except -1:
        # To read from it is to wait for its reader's end.
        return WritingTransport.set_reading(self, reading) if self.hears_reader else 0

    def write(self, data):
        """Write `data` (bytes, bytearray or memoryview), in order and without blocking.

        What the caller may change is copied.  Raises TypeError for other types; after close(),
        write_eof() or the reader's end data is dropped.
        """
        self.check_thread()
        if self._closing and isinstance(data, (bytes, bytearray, memoryview)):
            if len(data):
                self.count_dropped_write()
            return
        WritingTransport.write(self, data)

    def writelines(self, list_of_data):
        """Write several buffers at once, as write() does with one, without joining them."""
        if not self._closing:
            WritingTransport.writelines(self, list_of_data)
        else:
            self.write(b''.join(list_of_data))

    cdef count_dropped_write(self):
        if self.dropped_writes >= DROPPED_WRITES_LOGGED:
            logger.warning('pipe closed by peer or os.write(pipe, data) raised exception.')
        self.dropped_writes += 1

    def can_write_eof(self):
        """Return True: to close a pipe tells its reader the end."""
        return True

    def write_eof(self):
        """Close it once all that was written has left."""
        self.close()

    cdef int end(self) except -1:
        """The reader is gone."""
        if self._loop._debug:
            logger.info('%r was closed by peer', self)
        self._closing = True
        return self.lose_connection(
            BrokenPipeError() if pr_stream_queued_bytes(&self.stream) else None)

    def __repr__(self):
        info = state_of(self, 'WritePipeTransport', PR_WRITABLE)
        if pr_watch_is_active(&self.stream.watch):
            info.append(f'bufsize={pr_stream_queued_bytes(&self.stream)}')
        return '<{}>'.format(' '.join(info))
