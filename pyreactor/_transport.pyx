# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""Transports on a stream of the C core: TCP and Unix sockets, and what pipes share with them.

    BaseTransport        whom it serves and how it ends
      ByteTransport      a stream
        ReadPipeTransport                         (in _pipe.pyx)
        WritingTransport writing, the write queue and its water marks
          StreamTransport                         asyncio.Transport
          WritePipeTransport                      (in _pipe.pyx)

The transport owns the socket; the stream reads and sends.  The protocol is called in the context in
which the connection was made.  All methods: the loop's thread only.
"""

import asyncio
import socket
from asyncio import constants, futures, trsock
from asyncio.log import logger

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from pyreactor._base_transport cimport BaseTransport
from pyreactor._context cimport (
    PyContext_CopyCurrent,
    raise_pending,
    release,
)
from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    PR_WRITABLE,
    c_bool,
    pr_stream,
    pr_stream_deinit,
    pr_stream_drop_unread,
    pr_stream_flush,
    pr_stream_handler,
    pr_stream_init,
    pr_stream_is_holding,
    pr_stream_lend,
    pr_stream_queue,
    pr_stream_queued_bytes,
    pr_stream_settle,
    pr_stream_send_now,
    pr_stream_send_soon,
    pr_stream_set_reading,
    pr_stream_set_water,
    pr_stream_start,
    pr_stream_stop,
    pr_stream_take_back,
    pr_watch_is_active,
)
from pyreactor._streams cimport adopt


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    int SOL_SOCKET
    int SO_PROTOCOL
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)


cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY


cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size)


cdef object asyncio_transport = asyncio.Transport
cdef object asyncio_buffered_protocol = asyncio.BufferedProtocol
cdef object native_sendfile = constants._SendfileMode.TRY_NATIVE
cdef object any_size = -1  # get_buffer()'s size hint: none
cdef int DROPPED_WRITES_LOGGED = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
cdef Py_ssize_t COPIED_BYTES_MAX = 16 * 1024  # more is offered to the kernel before it is copied

cdef enum:
    NOT_TAKEN = -1

cdef str READ_FAILED = 'Fatal read error on socket transport'
cdef str WRITE_FAILED = 'Fatal write error on socket transport'


cdef inline StreamTransport owner_of(pr_stream *stream):
    return <StreamTransport>stream.watch.owner


cdef void release_data(void *data) noexcept:
    """Gives back a written object, once the kernel has its last byte."""
    release(<PyObject *>data)


# What the stream tells its transport.  Exceptions stay inside: 1 ends the turn, and the loop keeps
# what must leave it.

cdef int on_received(pr_stream *stream, const char *data, size_t size) noexcept:
    cdef StreamTransport self = owner_of(stream)
    cdef PyObject *payload = new_bytes(data, <Py_ssize_t>size)
    cdef PyObject *result
    cdef int status = NOT_TAKEN
    if payload == NULL:
        return self.fail_with_pending(READ_FAILED)
    if self.receiver is not None:
        status = self.give_receiver(<bytes>payload)
    if status != NOT_TAKEN:
        release(payload)
        return status
    result = self.call('data_received', payload)
    release(payload)
    if result == NULL:
        return self.fail_with_pending('Fatal error: protocol.data_received() call failed.')
    release(result)
    return 0


cdef int acquire_buffer(pr_stream *stream, char **buffer, size_t *size) noexcept:
    """Asks a BufferedProtocol where to receive into; it may stop reading in its answer."""
    cdef StreamTransport self = owner_of(stream)
    cdef PyObject *result
    size[0] = 0
    result = self.call('get_buffer', <PyObject *>any_size)
    if result == NULL:
        return self.fail_with_pending('Fatal error: protocol.get_buffer() call failed.')
    lent = <object>result
    release(result)
    if not stream.reading:
        return 0
    try:
        if not len(lent):
            raise RuntimeError('get_buffer() returned an empty buffer')
    except BaseException as exc:
        return self.give_up(exc, 'Fatal error: protocol.get_buffer() call failed.')
    try:
        PyObject_GetBuffer(lent, &self.lent, PyBUF_WRITABLE)
    except BaseException as exc:
        return self.give_up(exc, READ_FAILED)
    self.lending = True
    buffer[0] = <char *>self.lent.buf
    size[0] = <size_t>self.lent.len
    return 0


cdef int on_buffer_received(pr_stream *stream, const char *data, size_t size) noexcept:
    cdef StreamTransport self = owner_of(stream)
    cdef PyObject *result
    cdef object count = size
    self.take_back_buffer()
    if size == 0:
        return 0
    result = self.call('buffer_updated', <PyObject *>count)
    if result == NULL:
        return self.fail_with_pending('Fatal error: protocol.buffer_updated() call failed.')
    release(result)
    return 0


cdef int on_end(pr_stream *stream) noexcept:
    """The peer has sent its last byte: half of the connection may stay open."""
    cdef StreamTransport self = owner_of(stream)
    cdef PyObject *result
    if self._loop._debug:
        logger.debug('%r received EOF', self)
    result = self.call('eof_received', NULL)
    if result == NULL:
        return self.fail_with_pending('Fatal error: protocol.eof_received() call failed.')
    stays_open = <object>result
    release(result)
    try:
        if not stays_open:
            self.close()
    except BaseException as exc:
        return self._loop.escape(exc)
    return 0


cdef int on_error(pr_stream *stream, int error, c_bool sending) noexcept:
    cdef StreamTransport self = owner_of(stream)
    return self.give_up(errno_exception(error), WRITE_FAILED if sending else READ_FAILED)


cdef int on_high_water(pr_stream *stream) noexcept:
    return owner_of(stream).advise_protocol('pause_writing')


cdef int on_low_water(pr_stream *stream) noexcept:
    return owner_of(stream).advise_protocol('resume_writing')


cdef int on_drained(pr_stream *stream) noexcept:
    cdef StreamTransport self = owner_of(stream)
    try:
        self.finish_sending()
    except BaseException as exc:
        return self._loop.escape(exc)
    return 0


cdef pr_stream_handler protocol_handler
protocol_handler.acquire_buffer = NULL
protocol_handler.on_received = on_received
protocol_handler.on_end = on_end
protocol_handler.on_error = on_error
protocol_handler.on_high_water = on_high_water
protocol_handler.on_low_water = on_low_water
protocol_handler.on_drained = on_drained

cdef pr_stream_handler buffered_protocol_handler = protocol_handler
buffered_protocol_handler.acquire_buffer = acquire_buffer
buffered_protocol_handler.on_received = on_buffer_received


cdef int on_received_for_upper(pr_stream *stream, const char *data, size_t size) noexcept:
    cdef StreamTransport self = owner_of(stream)
    cdef BaseTransport upper = self._protocol
    try:
        upper.receive(data, size)
    except BaseException as exc:
        return self.give_up(exc, 'Fatal error: protocol.data_received() call failed.')
    return 0


cdef pr_stream_handler upper_transport_handler = protocol_handler
upper_transport_handler.on_received = on_received_for_upper


@cython.no_gc_clear  # its stream refers to the loop until the very end
cdef class ByteTransport(BaseTransport):
    """Bytes in order, in, out or both, over one stream of the core."""

    cdef int open_stream(
        self, LoopCore loop, object file, object protocol, object context, dict extra,
        const pr_stream_handler *handler, bint is_file
    ) except -1:
        """Takes over a non-blocking descriptor; where this raises, it stays the caller's."""
        cdef int error
        self._loop = loop
        self.context = context
        self.fd = file.fileno()
        self._protocol = protocol
        self.extra = {} if extra is None else dict(extra)
        pr_stream_init(&self.stream, &loop.core, handler, <void *>self, release_data)
        self.stream.is_file = is_file
        error = pr_stream_start(&self.stream, self.fd)
        if error < 0:
            raise_errno(error)
        self.file = file
        loop.open_transports.add(self)
        return 0

    def __dealloc__(self):
        if self.stream.handler != NULL:
            pr_stream_deinit(&self.stream)

    cdef int set_reading(self, bint reading) except -1:
        return self.settle(pr_stream_set_reading(&self.stream, reading))

    cdef int stop(self) except -1:
        pr_stream_stop(&self.stream)
        return 0

    cdef int settle(self, int result) except -1:
        """Acts on what a call of the stream returned, in a method that the user has called."""
        if result < 0:
            self.fail(errno_exception(result), self.failure_text)
        elif result > 0:
            self._loop.raise_escaping()
        return 0

    def _loop_closed(self):
        """The loop goes; the descriptor stays until this transport is closed or collected."""
        pr_stream_stop(&self.stream)

    def _held_buffers(self):
        return self.stream.writes.count


@cython.no_gc_clear  # its stream refers to the loop until the very end
cdef class WritingTransport(ByteTransport):
    """The writing half of a transport of bytes."""

    # Writing

    def write(self, data):
        """Send `data` (bytes, bytearray or memoryview), in order and without blocking.

        What the caller may change is copied.  Raises TypeError for other types and RuntimeError
        after write_eof(); after the connection was lost data is dropped.
        """
        self.check_thread()
        if not PyBytes_CheckExact(data) and not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f'data argument must be a bytes-like object, not {type(data).__name__!r}')
        if self._eof:
            raise RuntimeError('Cannot call write() after write_eof()')
        if self._empty_waiter is not None:
            raise RuntimeError('unable to write; sendfile is in progress')
        if self._conn_lost:
            self.count_dropped_write()
            return
        if not PyBytes_CheckExact(data):
            data = self.offer(data)
        if PyBytes_GET_SIZE(data):
            self.queue(data)
            self.settle(pr_stream_send_soon(&self.stream))

    def writelines(self, list_of_data):
        """Send several buffers at once, as write() does with one, without joining them."""
        cdef bytes data
        self.check_thread()
        if self._eof:
            raise RuntimeError('Cannot call writelines() after write_eof()')
        if self._empty_waiter is not None:
            raise RuntimeError('unable to writelines; sendfile is in progress')
        buffers = [
            part if PyBytes_CheckExact(part) else bytes(memoryview(part)) for part in list_of_data]
        if not buffers:
            return
        if self._conn_lost:
            self.count_dropped_write()
            return
        for data in buffers:
            if PyBytes_GET_SIZE(data):
                self.queue(data)
        self.settle(pr_stream_send_soon(&self.stream))

    cdef count_dropped_write(self):
        if self._conn_lost >= DROPPED_WRITES_LOGGED:
            logger.warning('socket.send() raised exception.')
        self._conn_lost += 1

    cdef int queue(self, object data) except -1:
        """Queues bytes, which the queue keeps."""
        Py_INCREF(data)
        if pr_stream_queue(
                &self.stream, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data),
                <void *>data) < 0:
            Py_DECREF(data)
            raise MemoryError
        return 0

    cdef object offer(self, object data):
        """What must be queued of `data`, as bytes of our own; a large one is sent first."""
        cdef Py_buffer view
        cdef ssize_t sent
        if len(data) <= COPIED_BYTES_MAX or pr_stream_queued_bytes(&self.stream):
            return bytes(data)
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except BufferError:  # not in one piece
            return bytes(data)
        try:
            sent = pr_stream_send_now(&self.stream, <const char *>view.buf, <size_t>view.len)
            if sent < 0:
                self.settle(<int>sent)
                return b''
            return PyBytes_FromStringAndSize(<char *>view.buf + sent, view.len - sent)
        finally:
            PyBuffer_Release(&view)

    # For a transport that stands on this one: send_now(), and send_rest() what that left.

    cdef size_t send_now(self, const char *data, size_t size) except? 0:
        """Sends as much as the kernel takes, if nothing is queued before; returns how much.

        A connection that is lost, or is by this, takes everything.
        """
        cdef ssize_t sent
        if self._conn_lost:
            return size
        sent = pr_stream_send_now(&self.stream, data, size)
        if sent < 0:
            self.settle(<int>sent)
            return size
        return <size_t>sent

    cdef int send_rest(self, const char *data, size_t size, object owner) except -1:
        """Queues bytes that `owner` keeps."""
        Py_INCREF(owner)
        if pr_stream_queue(&self.stream, data, size, <void *>owner) < 0:
            Py_DECREF(owner)
            raise MemoryError
        return self.settle(pr_stream_send_soon(&self.stream))

    def get_write_buffer_size(self):
        """Return how many bytes the kernel has not taken yet."""
        self.check_thread()
        if not self.stream.watch.wanted & PR_WRITABLE:
            self.settle(pr_stream_settle(&self.stream))
        return pr_stream_queued_bytes(&self.stream)

    def get_write_buffer_limits(self):
        """Return (low, high), the marks for resume_writing() and pause_writing(), in bytes."""
        return self.stream.low_water_bytes, self.stream.high_water_bytes

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks, in bytes; by default high is 64 KiB, or 4 * low, and low is high / 4.

        Raises ValueError unless high >= low >= 0.
        """
        self.check_thread()
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f'high ({high!r}) must be >= low ({low!r}) must be >= 0')
        self.settle(pr_stream_set_water(&self.stream, high, low))

    @property
    def _protocol_paused(self):
        return self.stream.over_high_water

    cdef flush(self):
        """Sends what waits for the end of the callback."""
        if not self.stream.watch.wanted & PR_WRITABLE:
            self.settle(pr_stream_flush(&self.stream))

    # The end

    def close(self):
        """Send what is written, then call connection_lost(None).  No more data is received."""
        self.check_thread()
        if self._closing:
            return
        self._closing = True
        pr_stream_set_reading(&self.stream, False)
        self.flush()
        if self._conn_lost:  # sending has failed just now
            return
        if pr_stream_queued_bytes(&self.stream):
            self.stream.wants_drained = True
        else:
            self.lose_connection(None)

    def abort(self):
        """Drop what the kernel has not taken, then call connection_lost(None)."""
        self.check_thread()
        self.force_close(None)

    cdef int send_held(self) except -1:
        if pr_stream_is_holding(&self.stream):
            self.settle(pr_stream_flush(&self.stream))
        return 0


cdef int set_nodelay(int fd) noexcept:
    """Small writes leave at once, as asyncio has it for TCP."""
    cdef int protocol = 0
    cdef int on = 1
    cdef socklen_t size = sizeof(protocol)
    if getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 and protocol == IPPROTO_TCP:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    return 0


@cython.no_gc_clear  # its stream refers to the loop until the very end
cdef class StreamTransport(WritingTransport):
    """A connected TCP or Unix stream socket; an asyncio.Transport.

    isinstance(transport, asyncio.Transport) holds: `__class__` says so.  What is written in one
    callback leaves together when that callback returns, in one system call.
    """

    _start_tls_compatible = True
    _sendfile_compatible = native_sendfile

    @property
    def __class__(self):
        return asyncio_transport

    def __init__(
        self, LoopCore loop not None, sock, protocol, waiter=None, extra=None, server=None,
        context=None
    ):
        """Take over a connected non-blocking socket; connection_made() follows in the next turn.

        `waiter` is a future to be set after it; `server` the server that accepted the connection;
        `context` the one to call the protocol in, by default a copy of the current one.
        """
        if context is None:
            context = PyContext_CopyCurrent()
        self.open(loop, sock, protocol, context, extra, server)
        loop.call_soon(self._connect, waiter, context=self.context)

    cdef int open(
        self, LoopCore loop, object sock, object protocol, object context, dict extra,
        object server
    ) except -1:
        set_nodelay(sock.fileno())
        self.failure_text = WRITE_FAILED
        self.open_stream(loop, sock, protocol, context, extra, &protocol_handler, False)
        self.set_protocol(protocol)
        self.extra['socket'] = trsock.TransportSocket(sock)
        try:
            self.extra['sockname'] = sock.getsockname()
        except OSError:
            self.extra['sockname'] = None
        if 'peername' not in self.extra:
            try:
                self.extra['peername'] = sock.getpeername()
            except OSError:
                self.extra['peername'] = None
        if server is not None:
            self._server = server
            server._attach(self)
        return 0

    def __del__(self):
        BaseTransport.__del__(self)
        self.leave_server()

    cdef int leave_server(self) except -1:
        server = self._server
        if server is not None:
            self._server = None
            server._detach(self)
        return 0

    @property
    def _sock(self):
        return self.file

    @property
    def _sock_fd(self):
        return self.fd

    # The protocol

    def _connect(self, waiter):
        self.begin(waiter)

    cdef int connect(self) except -1:
        """connection_made() of an accepted connection, in its context, and then the first read."""
        cdef PyObject *result = self.call('connection_made', <PyObject *>self)
        try:
            if result == NULL:
                raise_pending()
            release(result)
        finally:
            if not self._closing and not self._paused:
                self.set_reading(True)
        return 0

    def set_protocol(self, protocol):
        """Give what comes from now on to `protocol`, a Protocol or a BufferedProtocol."""
        self.receiver = adopt(protocol)
        self._protocol = protocol
        if isinstance(protocol, BaseTransport):
            self.stream.handler = &upper_transport_handler
        elif isinstance(protocol, asyncio_buffered_protocol):
            self.stream.handler = &buffered_protocol_handler
        else:
            self.stream.handler = &protocol_handler

    def is_reading(self):
        """Return True while data may come: neither paused nor closing."""
        return not self._closing and not self._paused

    def pause_reading(self):
        """Keep data_received() from being called until resume_reading()."""
        self.pause()

    def resume_reading(self):
        """Undo pause_reading()."""
        self.resume()

    cdef int give_receiver(self, bytes data) noexcept:
        """Gives bytes to what takes them in C; returns as on_received(), or NOT_TAKEN."""
        try:
            if not self.receiver.receive(data):
                return NOT_TAKEN
            return self._loop.escaping is not None
        except BaseException as exc:
            return self.give_up(exc, 'Fatal error: protocol.data_received() call failed.')

    cdef take_back_buffer(self):
        if self.lending:
            self.lending = False
            PyBuffer_Release(&self.lent)

    # Writing

    def can_write_eof(self):
        """Return True: a socket can be shut down for writing."""
        return True

    def write_eof(self):
        """Tell the peer, after what was written, that no more comes.  Reading goes on."""
        self.check_thread()
        if self._closing or self._eof:
            return
        self._eof = True
        self.flush()
        if not pr_stream_queued_bytes(&self.stream):
            self.finish_sending()
        else:
            self.stream.wants_drained = True

    cdef int finish_sending(self) except -1:
        """All is sent: what waited for that comes now."""
        if self._empty_waiter is not None:
            futures._set_result_unless_cancelled(self._empty_waiter, None)
        if self._closing:
            self.lose_connection(None)
        elif self._eof:
            try:
                self.file.shutdown(socket.SHUT_WR)
            except OSError as exc:  # the peer is gone already
                self.fail(exc, WRITE_FAILED)
        return 0

    # sendfile() needs the descriptor for itself, once all that was written is sent.

    def _make_empty_waiter(self):
        if self._empty_waiter is not None:
            raise RuntimeError('Empty waiter is already set')
        self.flush()
        self._empty_waiter = self._loop.create_future()
        if pr_stream_queued_bytes(&self.stream):
            self.stream.wants_drained = True
        else:
            self._empty_waiter.set_result(None)
        return self._empty_waiter

    def _reset_empty_waiter(self):
        self._empty_waiter = None

    def _lend_descriptor(self):
        self.lent_descriptor = True
        self.settle(pr_stream_lend(&self.stream))

    def _take_unread(self):
        """What had been received when the descriptor was lent: it is the caller's from here on."""
        cdef bytes data = b''
        if self.stream.unread.data != NULL:
            data = self.stream.unread.data[:self.stream.unread.result]
            pr_stream_drop_unread(&self.stream)
        return data

    def _take_back_descriptor(self):
        self.lent_descriptor = False
        if not self._conn_lost and not self._loop._closed:
            self.settle(pr_stream_take_back(&self.stream, self.fd))

    # The end

    cdef int lose_connection(self, object exception) except -1:
        BaseTransport.lose_connection(self, exception)
        if self.lent_descriptor:
            self._loop.end_waits(self.fd)
        if self._empty_waiter is not None and not self._empty_waiter.done():
            self._empty_waiter.set_exception(
                ConnectionError('Connection is closed by peer') if exception is None
                else exception)
        return 0

    def _call_connection_lost(self, exc):
        try:
            BaseTransport._call_connection_lost(self, exc)
        finally:
            self.leave_server()

    def _loop_closed(self):
        """The loop goes; the socket stays until this transport is closed or collected."""
        self.take_back_buffer()
        WritingTransport._loop_closed(self)

    def _held_buffers(self):
        return self.stream.writes.count + self.lending

    # Information

    def __repr__(self):
        info = ['StreamTransport']
        if self.file is None:
            info.append('closed')
        elif self._closing:
            info.append('closing')
        info.append(f'fd={self.fd}')
        if pr_watch_is_active(&self.stream.watch):
            info.append('read=polling' if self.stream.reading else 'read=idle')
            state = 'polling' if self.stream.watch.wanted & PR_WRITABLE else 'idle'
            info.append(f'write=<{state}, bufsize={pr_stream_queued_bytes(&self.stream)}>')
        return '<{}>'.format(' '.join(info))
