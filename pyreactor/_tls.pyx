# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""The TLS transport: a transport to the protocol above it, a protocol to the transport below.

One object plays both parts.  Below it is a StreamTransport, with which it exchanges bytes in C, or
any other asyncio transport (TLS inside TLS), whose methods it calls.  The watermarks are the lower
transport's, which counts what it could not send; what is written leaves it, encrypted, when the
running callback ends.  All methods: the loop's thread only.
"""

import asyncio
from asyncio import constants, exceptions, sslproto
from asyncio.log import logger
import ssl

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.string cimport memcpy

from pyreactor._base_transport cimport BaseTransport
from pyreactor._context cimport PyContext_CopyCurrent, raise_pending, release
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    PR_STREAM_HELD_BYTES_MAX,
    pr_flush,
    pr_loop_add_flush,
    pr_loop_remove_flush,
)
from pyreactor._streams cimport adopt
from pyreactor._tls_engine cimport new_engine
from pyreactor._transport cimport StreamTransport


cdef object asyncio_transport = sslproto._SSLProtocolTransport
cdef object asyncio_buffered_protocol = asyncio.BufferedProtocol
cdef object fallback_sendfile = constants._SendfileMode.FALLBACK
cdef object any_size = -1  # get_buffer()'s size hint: none
cdef int DROPPED_WRITES_LOGGED = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
cdef object HIGH_WATER_BYTES = constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE * 1024
cdef Py_ssize_t COPIED_BYTES_MAX = 4 * 1024  # more is encrypted at once rather than copied
# After close() a peer may be in the middle of sending: what was on its way is dropped, and the
# wait for its close_notify is over where more than that comes.
cdef size_t DROPPED_BYTES_MAX = 256 * 1024

cdef str DATA_FAILED = 'Fatal error on SSL protocol'


cdef int run_flush(pr_flush *flush) noexcept:
    cdef TLSTransport self = <TLSTransport>(<OwnedFlush *>flush).owner
    try:
        self.flush_writes()
    except BaseException as exc:
        return self._loop.escape(exc)
    return 0


cdef object positive_seconds(object seconds, str name, object default):
    if seconds is None:
        return default
    if seconds <= 0:
        raise ValueError(f'{name} should be a positive number, got {seconds}')
    return seconds


@cython.auto_pickle(False)
@cython.no_gc_clear  # its flush refers to the loop until the very end
cdef class TLSTransport(BaseTransport):
    """TLS over another transport; an asyncio.Transport.

    isinstance(transport, asyncio.Transport) holds: `__class__` says so.  After close() what was
    written is sent, then TLS's own end, and the peer's is waited for no longer than
    `ssl_shutdown_timeout` seconds.  write_eof() is not supported: TLS ends both ways at once.
    """

    _start_tls_compatible = True
    _sendfile_compatible = fallback_sendfile

    @property
    def __class__(self):
        return asyncio_transport

    def __init__(
        self, LoopCore loop not None, protocol, sslcontext, waiter=None, server_side=False,
        server_hostname=None, call_connection_made=True, ssl_handshake_timeout=None,
        ssl_shutdown_timeout=None, context=None, engine='auto'
    ):
        """Prepare TLS; the lower transport's connection_made() starts the handshake.

        `sslcontext` None means a client's default.  `waiter` is a future for the handshake's end:
        False where the program has closed the transport below, which was its own, before that.
        `engine` is 'auto', 'openssl' or 'memorybio'.
        """
        self._ssl_handshake_timeout = positive_seconds(
            ssl_handshake_timeout, 'ssl_handshake_timeout', constants.SSL_HANDSHAKE_TIMEOUT)
        self._ssl_shutdown_timeout = positive_seconds(
            ssl_shutdown_timeout, 'ssl_shutdown_timeout', constants.SSL_SHUTDOWN_TIMEOUT)
        if not sslcontext:
            sslcontext = sslproto._create_transport_context(server_side, server_hostname)
        self.engine = new_engine(
            engine, sslcontext, server_side,
            server_hostname if server_hostname and not server_side else None)
        self._loop = loop
        self.context = PyContext_CopyCurrent() if context is None else context
        self.waiter = waiter
        self.made = not call_connection_made
        self.flush.base.run = run_flush
        self.flush.owner = <void *>self
        self.writes = []
        self.extra = {'sslcontext': sslcontext}
        self.set_protocol(protocol)

    def __dealloc__(self):
        pr_loop_remove_flush(&self.flush.base)

    def __del__(self):
        # The lower transport warns if it was not closed.  This ends a cycle, which the collector
        # cannot: it does not clear this object.
        self._protocol = self.lower = self.stream = None

    # The lower transport's protocol

    def connection_made(self, transport):
        """Start the handshake."""
        if self.state != WAITING:
            return
        self.lower = transport
        if type(transport) is StreamTransport:
            self.stream = transport
        self.set_write_buffer_limits()
        if self._loop._debug:
            logger.debug('%r starts SSL handshake', self)
            self.handshake_started = self._loop.time()
        self.state = HANDSHAKE
        self.start_timer(self._ssl_handshake_timeout, self._handshake_timed_out)
        self.step_handshake()

    def data_received(self, data):
        """Take ciphertext from a lower transport that is not ours."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.receive(<const char *>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def _take_over(self, reader):
        """Make what a StreamReader has received the first ciphertext."""
        if reader is not None and reader._buffer:
            self.data_received(reader._buffer)
            reader._buffer.clear()

    cdef int receive(self, const char *data, size_t size) except -1:
        self.engine.feed(data, size)
        try:
            if self.state == OPEN:
                self.deliver()
            elif self.state == HANDSHAKE:
                self.step_handshake()
            elif self.state == SHUTDOWN:
                self.drop_input(size)
        finally:
            self.engine.keep()
        return 0

    def eof_received(self):
        """Take the end of the connection; True keeps the lower transport open until close()."""
        if self._loop._debug:
            logger.debug('%r received EOF', self)
        if self.state == HANDSHAKE:
            self.fail_handshake(ConnectionResetError())
        elif self.state == OPEN:
            if self._paused:
                self.end_waits = True
            else:
                self.peer_ended(False)
        elif self.state == SHUTDOWN:
            self.end()
        return True

    def pause_writing(self):
        """Hand on that the lower transport has more to send than it should."""
        self._protocol_paused = True
        self.advise('pause_writing')

    def resume_writing(self):
        """Hand on that the lower transport has sent enough."""
        self._protocol_paused = False
        self.advise('resume_writing')

    cdef int advise(self, str method) except -1:
        if self.made and self.advise_protocol(method):
            self._loop.raise_escaping()
        return 0

    def connection_lost(self, exc):
        """Tell the protocol, and whoever waits for the handshake, that all is over."""
        self.stop_timer()
        handshaking = self.state <= HANDSHAKE
        self.state = ENDING
        self._closing = True
        self._conn_lost += 1
        self.writes.clear()
        self.writes_bytes = 0
        pr_loop_remove_flush(&self.flush.base)
        try:
            if handshaking:
                if exc is None and not self.made:
                    exc = ConnectionAbortedError('SSL handshake was aborted')
                self.wake_waiter(exc, False)
            if self.made:
                self.made = False
                self.tell('connection_lost', <PyObject *>exc)
        finally:
            self._protocol = None
            self.lower = self.stream = None

    # The protocol

    cdef int tell(self, str method, PyObject *argument) except -1:
        """Calls a method of the protocol that returns nothing of interest."""
        cdef PyObject *result = self.call(method, argument)
        if result == NULL:
            return raise_pending()
        release(result)
        return 0

    def set_protocol(self, protocol):
        """Give what comes from now on to `protocol`, a Protocol or a BufferedProtocol."""
        self.receiver = adopt(protocol)
        self._protocol = protocol
        self.buffered = isinstance(protocol, asyncio_buffered_protocol)

    @property
    def _ssl_protocol(self):
        return self

    @property
    def _sslcontext(self):
        return self.extra['sslcontext']

    # The handshake

    cdef int step_handshake(self) except -1:
        try:
            made = self.engine.handshake()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            return self.fail_handshake(exc)
        self.send_output()
        if made and self.state == HANDSHAKE:
            self.open()
        return 0

    cdef int fail_handshake(self, object exception) except -1:
        self.send_output()  # an alert tells the peer why
        self.wake_waiter(exception)
        return self.fail(
            exception,
            'SSL handshake failed on verifying the certificate'
            if isinstance(exception, ssl.CertificateError) else 'SSL handshake failed')

    def _handshake_timed_out(self):
        exception = ConnectionAbortedError(
            f'SSL handshake is taking longer than {self._ssl_handshake_timeout} seconds: '
            f'aborting the connection')
        self.wake_waiter(exception)
        self.fail(exception, 'Fatal error on transport')

    cdef int open(self) except -1:
        self.stop_timer()
        if self.handshake_started is not None:
            logger.debug(
                '%r: SSL handshake took %.1f ms', self,
                (self._loop.time() - self.handshake_started) * 1e3)
        self.state = OPEN
        if not self.made:
            self.made = True
            try:
                self.tell('connection_made', <PyObject *>self)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self.wake_waiter(exc)
                return self.fail(exc, 'Fatal error: protocol.connection_made() call failed.')
        self.wake_waiter(None)
        if self.state == OPEN:
            if self._paused:
                self.lower.pause_reading()
            self.flush_soon()
            self.deliver()
        return 0

    cdef int wake_waiter(self, object exception, bint done=True) except -1:
        waiter = self.waiter
        self.waiter = None
        if waiter is None or waiter.done():
            return 0
        if exception is None:
            waiter.set_result(done)
        else:
            waiter.set_exception(exception)
        return 0

    # Reading

    cdef int deliver(self) except -1:
        """Gives the protocol what has come, for as long as it wants it."""
        try:
            while self.state == OPEN and not self._paused and self.engine.has_input():
                if self.buffered:
                    if not self.deliver_buffered():
                        break
                    continue
                data = self.engine.read()
                if data is None:
                    break
                if not PyBytes_GET_SIZE(data):
                    self.peer_ended(True)
                    break
                if self.receiver is None or not self.receiver.receive(data):
                    self.tell('data_received', <PyObject *>data)
            self.send_output()  # an answer to a key update, for instance
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.send_output()
            self.fail(exc, DATA_FAILED)
        return 0

    cdef int deliver_buffered(self) except -1:
        """Fills the protocol's buffer once.  Returns 0 where there is nothing more to come."""
        cdef Py_buffer view
        cdef Py_ssize_t count
        cdef object updated
        cdef PyObject *result = self.call('get_buffer', <PyObject *>any_size)
        if result == NULL:
            return raise_pending()
        lent = <object>result
        release(result)
        if self.state != OPEN or self._paused:
            return 0
        if not len(lent):
            raise RuntimeError('get_buffer() returned an empty buffer')
        PyObject_GetBuffer(lent, &view, PyBUF_WRITABLE)
        try:
            count = self.engine.read_into(<char *>view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)
        if count < 0:
            return 0
        if count == 0:
            self.peer_ended(True)
            return 0
        updated = count
        self.tell('buffer_updated', <PyObject *>updated)
        return 1

    cdef int peer_ended(self, bint said) except -1:
        """The peer has sent its last byte.  TLS does not stay half open.

        One that has not `said` so, with close_notify, is not told so either, as on asyncio.
        """
        cdef PyObject *result
        if not self.ended:
            self.ended = True
            try:
                result = self.call('eof_received', NULL)
                if result == NULL:
                    raise_pending()
                stays_open = <object>result
                release(result)
                if stays_open:
                    logger.warning(
                        'returning true from eof_received() has no effect when using ssl')
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                return self.fail(exc, 'Error calling eof_received()')
        if self.state == OPEN:
            self._closing = True
            self.begin_shutdown(said, False)
        return 0

    def is_reading(self):
        """Return True while data may come: neither paused nor closing."""
        return not self._closing and not self._paused

    def pause_reading(self):
        """Keep data_received() from being called until resume_reading()."""
        self.check_thread()
        if self._closing or self._paused:
            return
        self._paused = True
        if self.state == OPEN:
            self.lower.pause_reading()

    def resume_reading(self):
        """Undo pause_reading()."""
        self.check_thread()
        if self._closing or not self._paused:
            return
        self._paused = False
        if self.state == OPEN:
            if self.end_waits or self.engine.has_input():
                self._loop.call_soon(self._deliver_rest, context=self.context)
            self.lower.resume_reading()

    def _deliver_rest(self):
        if self.state == OPEN and not self._paused:
            self.deliver()
            if self.end_waits and self.state == OPEN and not self._paused:
                self.peer_ended(False)

    # Writing

    def write(self, data):
        """Encrypt and send `data` (bytes, bytearray or memoryview), in order and without blocking.

        What the caller may change is copied or encrypted at once.  Raises TypeError for other
        types; after close() data is dropped.
        """
        self.check_thread()
        if not PyBytes_CheckExact(data):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(
                    f'data: expecting a bytes-like instance, got {type(data).__name__}')
            if isinstance(data, memoryview):
                data = data.cast('B') if data.c_contiguous else bytes(data)
        if self.state > OPEN:
            self.count_dropped_write()
            return
        cdef Py_ssize_t size = len(data)
        if size == 0:
            return
        if not PyBytes_CheckExact(data):
            if size > COPIED_BYTES_MAX and self.write_now(data):
                return
            data = bytes(data)
        self.writes.append(data)
        self.writes_bytes += <size_t>size
        self.flush_soon()

    def writelines(self, list_of_data):
        """Send several buffers at once, as write() does with one."""
        self.check_thread()
        parts = [
            part if PyBytes_CheckExact(part) else bytes(memoryview(part)) for part in list_of_data]
        if self.state > OPEN:
            self.count_dropped_write()
            return
        for part in parts:
            if PyBytes_GET_SIZE(part):
                self.writes.append(part)
                self.writes_bytes += <size_t>PyBytes_GET_SIZE(part)
        self.flush_soon()

    cdef int count_dropped_write(self) except -1:
        if self._conn_lost >= DROPPED_WRITES_LOGGED:
            logger.warning('SSL connection is closed')
        self._conn_lost += 1
        return 0

    cdef int write_now(self, object data) except -1:
        """Encrypts a large buffer that its owner may change.  Returns 0 where that must wait."""
        cdef Py_buffer view
        if self.state != OPEN:
            return 0
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.encrypt_writes()
            if self.writes or not self.engine.write(<const char *>view.buf, <size_t>view.len):
                return 0
        except ssl.SSLError as exc:
            self.fail(exc, DATA_FAILED)
            return 1
        finally:
            PyBuffer_Release(&view)
        self.flush_soon()
        return 1

    cdef int flush_soon(self) except -1:
        """Lets what is written leave when the running callback ends, or at once if it is much."""
        if self.state != OPEN:
            return 0
        if self._loop.core.dispatching and self.writes_bytes <= PR_STREAM_HELD_BYTES_MAX:
            pr_loop_add_flush(&self._loop.core, &self.flush.base)
            return 0
        return self.flush_writes()

    cdef int flush_writes(self) except -1:
        pr_loop_remove_flush(&self.flush.base)
        if self.state != OPEN:
            return 0
        try:
            self.encrypt_writes()
        except ssl.SSLError as exc:
            self.send_output()
            return self.fail(exc, DATA_FAILED)
        return self.send_output()

    cdef int encrypt_writes(self) except -1:
        """Encrypts what is written, small pieces together in one record."""
        cdef char record[16384]  # as much as one record carries
        cdef size_t filled
        cdef size_t size
        cdef Py_ssize_t count = len(self.writes)
        cdef Py_ssize_t first = 0
        cdef Py_ssize_t last
        cdef bytes data
        while first < count:
            data = self.writes[first]
            last = first + 1
            filled = <size_t>PyBytes_GET_SIZE(data)
            if last == count or filled >= sizeof(record):
                if not self.engine.write(PyBytes_AS_STRING(data), filled):
                    break
            else:
                filled = 0
                last = first
                while last < count:
                    data = self.writes[last]
                    size = <size_t>PyBytes_GET_SIZE(data)
                    if filled + size > sizeof(record):
                        break
                    memcpy(record + filled, PyBytes_AS_STRING(data), size)
                    filled += size
                    last += 1
                if not self.engine.write(record, filled):
                    break
            self.writes_bytes -= filled
            first = last
        if first == count:
            self.writes.clear()
        elif first:
            del self.writes[:first]
        return 0

    cdef int send_output(self) except -1:
        """Gives the lower transport what OpenSSL has to send."""
        if self.stream is not None:
            return self.engine.send(self.stream)
        if self.lower is not None:
            data = self.engine.take_output()
            if PyBytes_GET_SIZE(data):
                self.lower.write(data)
        return 0

    def can_write_eof(self):
        """Return False: TLS ends both ways at once."""
        return False

    def write_eof(self):
        """Raise NotImplementedError, as asyncio's TLS does: TLS ends both ways at once."""
        raise NotImplementedError

    def get_write_buffer_size(self):
        """Return how many bytes wait here and below, encrypted or not."""
        self.check_thread()
        if self.lower is None:
            return 0
        if self.flush.base.next != NULL:
            self.flush_writes()
        return self.writes_bytes + self.lower.get_write_buffer_size()

    def get_write_buffer_limits(self):
        """Return (low, high), the marks for resume_writing() and pause_writing(), in bytes."""
        return self.lower.get_write_buffer_limits()

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks, in bytes; by default high is 512 KiB, or 4 * low, and low is high / 4.

        Raises ValueError unless high >= low >= 0.
        """
        self.check_thread()
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f'high ({high!r}) must be >= low ({low!r}) must be >= 0')
        self.lower.set_write_buffer_limits(high, low)

    # The end

    def close(self):
        """Send what is written and TLS's own end, then call connection_lost(None).

        No more data is received.
        """
        self.check_thread()
        if self._closing:
            return
        self._closing = True
        if self.state == OPEN:
            self.begin_shutdown(True, True)
        else:
            self.force_close(None)

    cdef int begin_shutdown(self, bint says, bint waits) except -1:
        """Ends TLS after what was written: `says` so, and `waits` for the peer to say it."""
        self.flush_writes()
        if self.state != OPEN:
            return 0
        self.state = SHUTDOWN
        self.start_timer(self._ssl_shutdown_timeout, self._shutdown_timed_out)
        try:
            while waits and self.engine.has_input() and self.engine.read():
                pass  # the engine would refuse to say it while there is data to be read
            if says:
                waits = not self.engine.shutdown() and waits
        except ssl.SSLError:
            waits = False
        self.send_output()
        if self.state != SHUTDOWN:
            return 0
        if not waits:
            return self.end()
        if self._paused:
            self.lower.resume_reading()
        return 0

    cdef int drop_input(self, size_t size) except -1:
        """Looks for the peer's end in what comes after ours."""
        self.dropped_bytes += size
        try:
            while self.engine.has_input():
                data = self.engine.read()
                if data is None:
                    break
                if not data:
                    return self.end()
        except ssl.SSLError:
            return self.end()
        return self.end() if self.dropped_bytes > DROPPED_BYTES_MAX else 0

    cdef int end(self) except -1:
        """TLS is over; the lower transport closes after what it has to send, in the time left."""
        self.state = ENDING
        if self.lower is not None:
            self.lower.close()
        return 0

    def _shutdown_timed_out(self):
        self.force_close(exceptions.TimeoutError('SSL shutdown timed out'))

    def abort(self):
        """Close the connection at once; what is not sent is dropped."""
        self.check_thread()
        self.force_close(None)

    cdef int force_close(self, object exception) except -1:
        self._closing = True
        if self.state >= OPEN:
            self.state = ENDING
        pr_loop_remove_flush(&self.flush.base)
        if self.lower is None:
            return 0
        if exception is None or not hasattr(self.lower, '_force_close'):
            self.lower.abort()
        else:
            self.lower._force_close(exception)
        return 0

    cdef int start_timer(self, object seconds, object callback) except -1:
        self.stop_timer()
        self.timer = self._loop.call_later(seconds, callback)
        return 0

    cdef int stop_timer(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    cdef bint is_expected(self, object exception) except -1:
        return isinstance(exception, (OSError, exceptions.CancelledError))

    # Information

    def get_extra_info(self, name, default=None):
        """Return 'ssl_object', 'sslcontext', 'peercert', 'cipher', 'compression', or what the
        lower transport knows of the connection.
        """
        if name in self.extra:
            return self.extra[name]
        if self.state > HANDSHAKE:
            if name == 'ssl_object':
                return self.engine.ssl_object
            if name == 'peercert':
                return self.remember(name, self.engine.ssl_object.getpeercert())
            if name == 'cipher':
                return self.remember(name, self.engine.ssl_object.cipher())
            if name == 'compression':
                return self.remember(name, self.engine.ssl_object.compression())
        return default if self.lower is None else self.lower.get_extra_info(name, default)

    cdef object remember(self, object name, object value):
        self.extra[name] = value
        return value

    @property
    def _engine_name(self):
        return type(self.engine).name

    def __repr__(self):
        states = ('waiting', 'handshake', 'open', 'closing', 'closing')
        state = 'closed' if self.state == ENDING and self.lower is None else states[self.state]
        over = '' if self.lower is None else f' over {self.lower!r}'
        return f'<TLSTransport {state}{over}>'
