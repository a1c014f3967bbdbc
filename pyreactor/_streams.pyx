# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""asyncio's streams, with the methods that run often in C.

A program calls asyncio.start_server() or open_connection() and gets asyncio's own objects.  When a
transport is given their protocol, adopt() makes them instances of the subclasses defined here.
What runs seldom stays asyncio's own, inherited or called.  The loop's thread only.
"""

import asyncio
import functools
import inspect
import sys
import types
import warnings

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_CheckExact, PyByteArray_GET_SIZE
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from pyreactor._base_transport cimport BaseTransport, Receiver
from pyreactor._context cimport raise_pending, release
from pyreactor._loop cimport LoopCore


cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(PyObject *iterator, PyObject *value, PyObject **result)
    PyObject *Py_None
    Py_ssize_t PY_SSIZE_T_MAX
    ctypedef PySendResult (*sendfunc)(
        PyObject *self, PyObject *value, PyObject **result) except PYGEN_ERROR
    ctypedef struct PyAsyncMethods:
        sendfunc am_send
    ctypedef struct PyTypeObject:
        PyAsyncMethods *tp_as_async
        unsigned int tp_version_tag


cdef extern from "<string.h>" nogil:
    void *memchr(const void *text, int character, size_t size)
    void *memmem(const void *text, size_t size, const void *part, size_t part_size)


cdef object asyncio_reader = asyncio.StreamReader
cdef object asyncio_writer = asyncio.StreamWriter
cdef object asyncio_protocol = asyncio.StreamReaderProtocol
cdef object coroutine_type = types.CoroutineType
cdef object IncompleteReadError = asyncio.IncompleteReadError
cdef object InvalidStateError = asyncio.InvalidStateError
cdef object LimitOverrunError = asyncio.LimitOverrunError

cdef bytes NEWLINE = b'\n'
cdef Py_ssize_t LIMIT_MAX = PY_SSIZE_T_MAX // 2  # of which the double is still a size


# --- The state of a reader ------------------------------------------------------------------------

@cython.auto_pickle(False)
cdef class ReaderState(Receiver):
    """What asyncio keeps in a StreamReader's attributes, under their names without `_`."""

    @property
    def limit(self):
        return self.any_limit

    @limit.setter
    def limit(self, limit):
        self.any_limit = limit
        self.limit_bytes = limit if type(limit) is int and 0 < limit <= LIMIT_MAX else -1
        self.is_odd = self.limit_bytes < 0 or not PyByteArray_CheckExact(self.any_buffer)

    @property
    def buffer(self):
        self.unfold()
        self.is_shown = True
        return self.any_buffer

    @buffer.setter
    def buffer(self, buffer):
        self.chunk = None
        self.is_shown = True
        self.any_buffer = buffer
        self.limit = self.any_limit

    cdef Py_ssize_t size(self) noexcept:
        """How many bytes can be read."""
        if self.chunk is not None:
            return PyBytes_GET_SIZE(self.chunk) - self.chunk_start
        return PyByteArray_GET_SIZE(self.any_buffer)

    cdef const char *start(self) noexcept:
        """Where they are."""
        if self.chunk is not None:
            return PyBytes_AS_STRING(self.chunk) + self.chunk_start
        return PyByteArray_AS_STRING(self.any_buffer)

    cdef Py_ssize_t find(self, bytes separator, Py_ssize_t offset) noexcept:
        """Where the separator begins, at `offset` or later, or -1."""
        cdef const char *start = self.start()
        cdef const char *found
        if PyBytes_GET_SIZE(separator) == 1:
            found = <const char *>memchr(
                start + offset, PyBytes_AS_STRING(separator)[0], <size_t>(self.size() - offset))
        else:
            found = <const char *>memmem(
                start + offset, <size_t>(self.size() - offset),
                PyBytes_AS_STRING(separator), <size_t>PyBytes_GET_SIZE(separator))
        return -1 if found == NULL else found - start

    cdef int feed(self, object data) except -1:
        """StreamReader.feed_data()."""
        assert not self.eof, 'feed_data after feed_eof'
        if not data:
            return 0
        self.append(data)
        self.wake(False)
        return self.pause_if_full()

    cdef bint receive(self, bytes data) except -1:
        """What a transport has received: as feed(), but the task that waits goes on at once."""
        if self.replaced is not None or self.is_odd:
            return False
        if self.reference() is None:
            return True  # as asyncio: nobody will ever read it
        assert not self.eof, 'feed_data after feed_eof'
        self.append(data)
        self.pause_if_full()  # before the task looks: it may wait for more than the limit
        self.wake(True)
        return True

    cdef int pause_if_full(self) except -1:
        if (self.size() > 2 * self.limit_bytes and not self.paused
                and self.transport is not None):
            try:
                self.transport.pause_reading()
            except NotImplementedError:
                self.transport = None  # it cannot be paused; not tried again
            else:
                self.paused = True
        return 0

    cdef int append(self, object data) except -1:
        if self.size() == 0 and PyBytes_CheckExact(data) and not self.is_shown:
            self.chunk = data
            self.chunk_start = 0
            return 0
        self.unfold()
        (<bytearray>self.any_buffer).extend(data)
        return 0

    cdef int unfold(self) except -1:
        """Moves the chunk into the buffer."""
        if self.chunk is not None:
            chunk, self.chunk = self.chunk, None
            (<bytearray>self.any_buffer).extend(memoryview(chunk)[self.chunk_start:])
        return 0

    cdef bytes take(self, Py_ssize_t size):
        """Removes and returns the first `size` bytes, or what there is."""
        cdef bytes data
        size = min(size, self.size())
        if self.chunk is None:
            data = PyBytes_FromStringAndSize(self.start(), size)
            if size:
                del (<bytearray>self.any_buffer)[:size]
            return data
        if size == PyBytes_GET_SIZE(self.chunk):
            data = self.chunk
        else:
            data = PyBytes_FromStringAndSize(self.start(), size)
        self.chunk_start += size
        if self.chunk_start == PyBytes_GET_SIZE(self.chunk):
            self.chunk = None
        return data

    cdef int wake(self, bint at_once) except -1:
        """Ends the wait for data."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            try:
                if at_once and isinstance(self.loop, LoopCore):
                    (<LoopCore>self.loop).end_wait(waiter)
                else:
                    waiter.set_result(None)
            except InvalidStateError:
                if not waiter.cancelled():
                    raise
        return 0

    cdef int resume_if_room(self) except -1:
        if self.paused and self.size() <= self.limit_bytes:
            self.paused = False
            self.transport.resume_reading()
        return 0


# --- The state of a writer ------------------------------------------------------------------------

@cython.auto_pickle(False)
cdef class WriterState:
    """What asyncio keeps in a StreamWriter's attributes, under their names without `_`."""

    @property
    def transport(self):
        return self.any_transport

    @transport.setter
    def transport(self, transport):
        self.any_transport = transport
        self.native_transport = transport if isinstance(transport, BaseTransport) else None

    @property
    def protocol(self):
        return self.any_protocol

    @protocol.setter
    def protocol(self, protocol):
        self.any_protocol = protocol
        self.protocol_state = protocol._native if type(protocol) is native_protocol else None

    @property
    def reader(self):
        return self.any_reader

    @reader.setter
    def reader(self, reader):
        self.any_reader = reader
        self.reader_state = reader._native if type(reader) is native_reader else None


# --- What the methods return ----------------------------------------------------------------------

cdef enum:
    READ
    READ_ALL
    READLINE
    READUNTIL
    READEXACTLY
    ANEXT
    DRAIN

cdef tuple METHODS = (  # asyncio's own, by kind
    asyncio_reader.read,
    asyncio_reader.read,
    asyncio_reader.readline,
    asyncio_reader.readuntil,
    asyncio_reader.readexactly,
    asyncio_reader.__anext__,
    asyncio_writer.drain,
)


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
@cython.no_gc_clear  # its end needs its state; a cycle is broken elsewhere
cdef class StreamCoroutine:
    """One call of a stream's method, to be awaited: a coroutine that lives in C.

    isinstance(coroutine, types.CoroutineType) holds: `__class__` says so.  It has no frame.
    """

    cr_frame = None
    cr_origin = None

    @property
    def __class__(self):
        return coroutine_type

    @property
    def __name__(self):
        return METHODS[self.kind].__name__

    @property
    def __qualname__(self):
        return METHODS[self.kind].__qualname__

    @property
    def cr_running(self):
        return self.running

    @property
    def cr_suspended(self):
        return self.awaited is not None and not self.running

    def __repr__(self):
        return f'<coroutine object {self.__qualname__} at {<size_t><void *>self:#x}>'

    def __dealloc__(self):
        if self.awaited is not None:
            self.stop_waiting()
        elif not self.started and self.stream is not None:
            warnings.warn(f"coroutine '{self.__qualname__}' was never awaited", RuntimeWarning)

    def __await__(self):
        if self.awaited is not None:
            raise RuntimeError('coroutine is being awaited already')
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """Begin, or go on; see types.CoroutineType.  `await` comes by a shorter way."""
        return deliver(self, <PyObject *>value, None)

    def throw(self, *exception):
        """Raise an exception where the coroutine waits; see types.CoroutineType."""
        return deliver(self, Py_None, exception)

    def close(self):
        """End the coroutine where it waits; see types.CoroutineType."""
        if self.finished:
            return
        if not self.started:
            self.started = True
            self.finish()
            return
        try:
            self.throw(GeneratorExit)
        except (GeneratorExit, StopIteration):
            return
        raise RuntimeError('coroutine ignored GeneratorExit')

    cdef int resume(self, PyObject *value, tuple thrown, PyObject **result) except -1:
        """Runs it until it has to wait, PYGEN_NEXT, or to its end, PYGEN_RETURN."""
        cdef int status
        if self.running:
            raise ValueError('coroutine already executing')
        if self.finished:
            raise RuntimeError('cannot reuse already awaited coroutine')
        if not self.started and value != Py_None:
            raise TypeError("can't send non-None value to a just-started coroutine")
        self.started = self.running = True
        try:
            status = self.go_on(value, thrown, result)
        except BaseException as exc:
            status = self.fail(exc)
        self.running = False
        if status == PYGEN_RETURN:
            self.finish()
            if self.kind == ANEXT and self.result == b'':
                raise StopAsyncIteration
            Py_INCREF(self.result)
            result[0] = <PyObject *>self.result
        return status

    cdef int go_on(self, PyObject *value, tuple thrown, PyObject **result) except -1:
        cdef int status
        if thrown is not None:
            status = self.throw_in(thrown, result)
        elif self.awaited is not None:
            status = PyIter_Send(<PyObject *>self.awaited, value, result)
        elif self.advance():
            return PYGEN_RETURN
        else:
            status = PyIter_Send(<PyObject *>self.awaited, Py_None, result)
        while status == PYGEN_RETURN:
            self.result = <object>result[0]
            release(result[0])
            result[0] = NULL
            if self.is_delegated:
                if self.blocks:
                    self.result = b''.join([*self.blocks, self.result])
                return PYGEN_RETURN
            self.stop_waiting()
            self.waited = True
            if self.advance():
                return PYGEN_RETURN
            status = PyIter_Send(<PyObject *>self.awaited, Py_None, result)
        if status == PYGEN_ERROR:
            raise_pending()
        return status

    cdef int throw_in(self, tuple thrown, PyObject **result) except -1:
        if self.awaited is None:
            self.delegate()  # an exception before the start is an exception at the start
        try:
            outcome = self.awaited.throw(*thrown)
        except StopIteration as stop:
            outcome = stop.value
            Py_INCREF(outcome)
            result[0] = <PyObject *>outcome
            return PYGEN_RETURN
        Py_INCREF(outcome)
        result[0] = <PyObject *>outcome
        return PYGEN_NEXT

    cdef int fail(self, object exception) except -1:
        """Ends it with an exception, or with what readline() makes of one."""
        self.stop_waiting()
        try:
            if (self.kind != READLINE and self.kind != ANEXT) or self.is_delegated:
                raise exception
            self.rescue_line(exception)
        except BaseException:
            self.running = False
            self.finish()
            raise
        return PYGEN_RETURN

    cdef int finish(self) except -1:
        self.finished = True
        self.awaited = self.stream = self.state = self.writer = None
        self.argument = self.blocks = None
        return 0

    cdef int stop_waiting(self) except -1:
        if self.awaited is not None:
            self.awaited = None
            if not self.is_delegated:
                self.state.waiter = None
        return 0

    cdef int delegate(self) except -1:
        """Leaves the rest to asyncio's own coroutine.  Returns 0, as advance() does."""
        method = METHODS[self.kind]
        if self.kind == READLINE or self.kind == ANEXT or self.kind == DRAIN:
            coroutine = method(self.stream)
        else:
            coroutine = method(self.stream, self.argument)
        self.awaited = coroutine.__await__()
        self.is_delegated = True
        return 0

    cdef int advance(self) except -1:
        """Does what can be done now: 1 where that is all, 0 where something must be awaited."""
        if self.kind == DRAIN:
            return self.drain()
        if self.state.is_odd:
            return self.delegate()
        if self.kind == READ:
            return self.read()
        if self.kind == READ_ALL:
            return self.read_all()
        if self.kind == READEXACTLY:
            return self.read_exactly()
        return self.read_until(self.argument)

    cdef int wait_for_data(self, str caller) except -1:
        cdef ReaderState state = self.state
        if state.waiter is not None:
            raise RuntimeError(
                f'{caller}() called while another coroutine is already waiting for incoming data')
        assert not state.eof, '_wait_for_data after EOF'
        if state.paused:  # it may be asked for more than the limit
            state.paused = False
            state.transport.resume_reading()
        state.waiter = state.loop.create_future()
        self.awaited = iter(state.waiter)
        return 0

    cdef int read(self) except -1:
        cdef ReaderState state = self.state
        if not self.waited and state.exception is not None:
            raise state.exception
        if self.size == 0:
            self.result = b''
            return 1
        if not self.waited and not state.eof and state.size() == 0:
            return self.wait_for_data('read')
        self.result = state.take(self.size)
        state.resume_if_room()
        return 1

    cdef int read_all(self) except -1:
        """Reads up to the limit again and again, so that the transport never has to stay paused."""
        if self.blocks is None:
            self.blocks = []
        while True:
            if not self.waited:
                self.size = self.state.limit_bytes
            if not self.read():
                return 0
            self.waited = False
            if not self.result:
                self.result = b''.join(self.blocks)
                return 1
            self.blocks.append(self.result)

    cdef int read_until(self, bytes separator) except -1:
        cdef ReaderState state = self.state
        cdef Py_ssize_t length = PyBytes_GET_SIZE(separator)
        cdef Py_ssize_t size = state.size()
        cdef Py_ssize_t found
        if length == 0:
            raise ValueError('Separator should be at least one-byte string')
        if not self.waited and state.exception is not None:
            raise state.exception
        if size - self.searched >= length:
            found = state.find(separator, self.searched)
            if found > state.limit_bytes:
                raise LimitOverrunError(
                    'Separator is found, but chunk is longer than limit', found)
            if found >= 0:
                self.result = state.take(found + length)
                state.resume_if_room()
                return 1
            self.searched = size + 1 - length
            if self.searched > state.limit_bytes:
                raise LimitOverrunError(
                    'Separator is not found, and chunk exceed the limit', self.searched)
        if state.eof:
            raise IncompleteReadError(state.take(size), None)
        return self.wait_for_data('readuntil')

    cdef int rescue_line(self, object exception) except -1:
        """What readline() makes of an error of readuntil()."""
        cdef ReaderState state = self.state
        if isinstance(exception, IncompleteReadError):
            self.result = exception.partial
            return 0
        if not isinstance(exception, LimitOverrunError):
            raise exception
        buffer = state.buffer
        if buffer.startswith(NEWLINE, exception.consumed):
            del buffer[:exception.consumed + 1]
        else:
            buffer.clear()
        if not state.is_odd:
            state.resume_if_room()
        raise ValueError(exception.args[0])

    cdef int read_exactly(self) except -1:
        cdef ReaderState state = self.state
        if self.size < 0:
            raise ValueError('readexactly size can not be less than zero')
        if not self.waited and state.exception is not None:
            raise state.exception
        if self.size == 0:
            self.result = b''
            return 1
        if state.size() < self.size:
            if state.eof:
                raise IncompleteReadError(state.take(state.size()), self.size)
            return self.wait_for_data('readexactly')
        self.result = state.take(self.size)
        state.resume_if_room()
        return 1

    cdef int drain(self) except -1:
        """drain(), where nothing is in its way; any error and any waiting is asyncio's."""
        cdef WriterState writer = self.writer
        if (writer.native_transport is not None and not writer.native_transport._closing
                and writer.reader_state is not None and writer.reader_state.exception is None
                and writer.protocol_state is not None
                and not writer.protocol_state.writing_paused
                and not writer.protocol_state.connection_lost):
            return 1
        return self.delegate()


cdef PySendResult send(
    PyObject *self, PyObject *value, PyObject **result
) except PYGEN_ERROR:
    result[0] = NULL
    return <PySendResult>(<StreamCoroutine>self).resume(value, None, result)


# `await` and tasks go on with it through this slot, for which Cython has no name.
(<PyTypeObject *>StreamCoroutine).tp_as_async.am_send = send


cdef object deliver(StreamCoroutine coroutine, PyObject *value, tuple thrown):
    """Goes on with it as a method does: what it returns in the end is a StopIteration."""
    cdef PyObject *result = NULL
    cdef int status = coroutine.resume(value, thrown, &result)
    outcome = <object>result
    release(result)
    if status == PYGEN_RETURN:
        raise StopIteration(outcome)
    return outcome


cdef StreamCoroutine call_reader(object reader, int kind, object argument, Py_ssize_t size):
    cdef StreamCoroutine coroutine = StreamCoroutine.__new__(StreamCoroutine)
    coroutine.kind = kind
    coroutine.stream = reader
    coroutine.state = reader._native
    coroutine.argument = argument
    coroutine.size = size
    return coroutine


cdef bint get_size(object n, Py_ssize_t *size) noexcept:
    """False where `n` is no int, or a larger one than memory: asyncio knows what that means."""
    cdef int overflow = 0
    if not PyLong_CheckExact(n):
        return False
    size[0] = <Py_ssize_t>PyLong_AsLongAndOverflow(n, &overflow)
    return overflow == 0


# --- The classes ----------------------------------------------------------------------------------

@cython.auto_pickle(False)
cdef class StateAttribute:
    """An attribute that is kept in the state in C, `_native`."""
    cdef str name

    def __init__(self, name):
        self.name = name

    def __get__(self, instance, owner):
        return self if instance is None else getattr(instance._native, self.name)

    def __set__(self, instance, value):
        setattr(instance._native, self.name, value)


@cython.auto_pickle(False)
cdef class ReceivingMethod:
    """A method that brings data, and which a transport calls only where it was replaced.

    That is: where a user has put another function into an instance's attribute.
    """
    cdef str name
    cdef object function

    def __init__(self, function):
        self.name = function.__name__
        self.function = function

    def __get__(self, instance, owner):
        cdef ReaderState state
        if instance is None:
            return self.function
        state = instance._native
        if state.replaced is not None and self.name in state.replaced:
            return state.replaced[self.name]
        return types.MethodType(self.function, instance)

    def __set__(self, instance, value):
        cdef ReaderState state = instance._native
        state.replaced = {**(state.replaced or {}), self.name: value}

    def __delete__(self, instance):
        cdef ReaderState state = instance._native
        if state.replaced is None or self.name not in state.replaced:
            raise AttributeError(self.name)
        del state.replaced[self.name]
        state.replaced = state.replaced or None


class StreamReader(asyncio.StreamReader):
    """An asyncio.StreamReader whose data a transport of pyreactor brings."""

    _loop = StateAttribute('loop')
    _limit = StateAttribute('limit')
    _buffer = StateAttribute('buffer')
    _eof = StateAttribute('eof')
    _waiter = StateAttribute('waiter')
    _exception = StateAttribute('exception')
    _transport = StateAttribute('transport')
    _paused = StateAttribute('paused')

    def exception(self):
        return (<ReaderState>self._native).exception

    def at_eof(self):
        cdef ReaderState state = self._native
        if state.is_odd:
            return asyncio_reader.at_eof(self)
        return state.eof and state.size() == 0

    def feed_data(self, data):
        cdef ReaderState state = self._native
        if state.is_odd:
            asyncio_reader.feed_data(self, data)
        else:
            state.feed(data)

    def read(self, n=-1):
        cdef Py_ssize_t size
        if not get_size(n, &size):
            return asyncio_reader.read(self, n)
        return call_reader(self, READ if size >= 0 else READ_ALL, n, size)

    def readline(self):
        return call_reader(self, READLINE, NEWLINE, 0)

    def readuntil(self, separator=NEWLINE):
        if not PyBytes_CheckExact(separator):
            return asyncio_reader.readuntil(self, separator)
        return call_reader(self, READUNTIL, separator, 0)

    def readexactly(self, n):
        cdef Py_ssize_t size
        if not get_size(n, &size):
            return asyncio_reader.readexactly(self, n)
        return call_reader(self, READEXACTLY, n, size)

    def __anext__(self):
        return call_reader(self, ANEXT, NEWLINE, 0)


class StreamWriter(asyncio.StreamWriter):
    """An asyncio.StreamWriter on a transport of pyreactor."""

    _transport = StateAttribute('transport')
    _protocol = StateAttribute('protocol')
    _reader = StateAttribute('reader')

    def write(self, data):
        cdef WriterState state = self._native
        state.any_transport.write(data)

    def drain(self):
        cdef StreamCoroutine coroutine = StreamCoroutine.__new__(StreamCoroutine)
        coroutine.kind = DRAIN
        coroutine.stream = self
        coroutine.writer = self._native
        return coroutine


class StreamReaderProtocol(asyncio.StreamReaderProtocol):
    """asyncio's protocol between a transport of pyreactor and a StreamReader."""

    _paused = StateAttribute('writing_paused')
    _connection_lost = StateAttribute('connection_lost')

    def connection_made(self, transport):
        callback = self._client_connected_cb
        if callback is None:
            asyncio_protocol.connection_made(self, transport)
            return
        self._client_connected_cb = functools.partial(call_with_native_writer, callback)
        try:
            asyncio_protocol.connection_made(self, transport)
        finally:
            self._client_connected_cb = callback

    def data_received(self, data):
        reference = self._stream_reader_wr
        if reference is not None:
            reader = reference()
            if reader is not None:
                reader.feed_data(data)


cdef object native_reader = StreamReader
cdef object native_writer = StreamWriter
cdef object native_protocol = StreamReaderProtocol


def call_with_native_writer(callback, reader, writer):
    """Call a server's client_connected_cb with the writer that its protocol has just made."""
    cdef WriterState state
    cdef dict attributes
    if type(writer) is asyncio_writer:
        attributes = writer.__dict__
        state = WriterState.__new__(WriterState)
        state.transport = attributes.pop('_transport')
        state.protocol = attributes.pop('_protocol')
        state.reader = attributes.pop('_reader')
        writer._native = state
        writer.__class__ = native_writer
    return callback(reader, writer)


# The methods above, and those of asyncio that they do not call though asyncio's would.
cdef dict REPLACED = {
    asyncio_reader: (
        'exception', 'at_eof', 'feed_data', 'read', 'readline', 'readuntil', 'readexactly',
        '__anext__', '_wait_for_data', '_wakeup_waiter', '_maybe_resume_transport'),
    asyncio_writer: ('write', 'drain'),
    asyncio_protocol: ('connection_made', 'data_received', '_drain_helper'),
}
cdef list ORIGINALS = [
    (owner, name, getattr(owner, name)) for owner, names in REPLACED.items() for name in names]


def _finish_classes():
    """Give the methods asyncio's docstrings, and say which are coroutine functions."""
    for native in (StreamReader, StreamWriter, StreamReaderProtocol):
        for name, method in vars(native).items():
            original = getattr(native.__mro__[1], name, None)
            if not isinstance(original, types.FunctionType):
                continue
            method.__doc__ = original.__doc__
            if inspect.iscoroutinefunction(original) and sys.version_info >= (3, 12):
                inspect.markcoroutinefunction(method)


_finish_classes()
StreamReader.feed_data = ReceivingMethod(StreamReader.feed_data)
StreamReaderProtocol.data_received = ReceivingMethod(StreamReaderProtocol.data_received)


cdef unsigned int[3] checked_versions  # of asyncio's classes, as they were when they were looked at


cdef bint is_patched() except -1:
    """True where somebody has put methods of their own into asyncio's classes."""
    cdef unsigned int *versions = checked_versions
    cdef unsigned int reader = (<PyTypeObject *>asyncio_reader).tp_version_tag
    cdef unsigned int writer = (<PyTypeObject *>asyncio_writer).tp_version_tag
    cdef unsigned int protocol = (<PyTypeObject *>asyncio_protocol).tp_version_tag
    if (reader and writer and protocol and reader == versions[0] and writer == versions[1]
            and protocol == versions[2]):
        return False  # every change of a class changes its version
    for owner, name, original in ORIGINALS:
        if getattr(owner, name) is not original:
            return True
    versions[0] = (<PyTypeObject *>asyncio_reader).tp_version_tag
    versions[1] = (<PyTypeObject *>asyncio_writer).tp_version_tag
    versions[2] = (<PyTypeObject *>asyncio_protocol).tp_version_tag
    return False


cpdef Receiver adopt(object protocol):
    """Give a stream protocol and its reader the native methods, before connection_made().

    Returns what takes the reader's data, or None: nothing is done unless both are exactly asyncio's
    own, and what a program derives from these or changes in them stays as it is.
    """
    cdef ReaderState state
    cdef dict attributes
    if type(protocol) is not asyncio_protocol:
        return None
    reader = protocol._stream_reader
    if type(reader) is not asyncio_reader or is_patched():
        return None
    attributes = reader.__dict__
    state = ReaderState.__new__(ReaderState)
    state.loop = attributes.pop('_loop')
    state.any_limit = attributes.pop('_limit')
    state.any_buffer = attributes.pop('_buffer')
    state.limit = state.any_limit
    state.eof = attributes.pop('_eof')
    state.waiter = attributes.pop('_waiter')
    state.exception = attributes.pop('_exception')
    state.transport = attributes.pop('_transport')
    state.paused = attributes.pop('_paused')
    state.reference = protocol._stream_reader_wr
    attributes = protocol.__dict__
    state.writing_paused = attributes.pop('_paused')
    state.connection_lost = attributes.pop('_connection_lost')
    reader._native = protocol._native = state
    reader.__class__ = native_reader
    protocol.__class__ = native_protocol
    return state
