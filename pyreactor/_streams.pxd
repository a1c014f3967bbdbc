# The native streams' field sheet.  A transport calls adopt() with each protocol it is given.

from cpython.object cimport PyObject

from pyreactor._base_transport cimport BaseTransport, Receiver


cdef class ReaderState(Receiver):
    # What asyncio has in the reader's attributes of these names
    cdef public object loop
    cdef public object waiter  # the future of the one who waits for data, or None
    cdef public object exception
    cdef public object transport  # None where there is nothing to pause
    cdef public bint eof
    cdef public bint paused
    cdef object any_limit  # `_limit` as it was set
    cdef object any_buffer  # what `_buffer` shows, a bytearray

    cdef Py_ssize_t limit_bytes
    cdef bint is_odd  # a limit or buffer of another type: asyncio's methods know what it means

    # Bytes that came while the buffer was empty stay the object that came, until somebody has
    # looked at the buffer.
    cdef bytes chunk  # or None
    cdef Py_ssize_t chunk_start  # what is before has been read
    cdef bint is_shown

    # Of the reader's protocol: what it has of these names, `writing_paused` as `_paused`
    cdef public bint writing_paused
    cdef public bint connection_lost
    cdef object reference  # a weak one to the reader
    cdef dict replaced  # methods that bring data, by name; None: none

    cdef Py_ssize_t size(self) noexcept
    cdef const char *start(self) noexcept
    cdef Py_ssize_t find(self, bytes separator, Py_ssize_t offset) noexcept
    cdef int feed(self, object data) except -1
    cdef int pause_if_full(self) except -1
    cdef int append(self, object data) except -1
    cdef int unfold(self) except -1
    cdef bytes take(self, Py_ssize_t size)
    cdef int wake(self, bint at_once) except -1
    cdef int resume_if_room(self) except -1


cdef class WriterState:
    # What asyncio has in the writer's attributes of these names
    cdef object any_transport
    cdef object any_protocol
    cdef object any_reader

    # The same where they are of pyreactor's kind, or None
    cdef BaseTransport native_transport
    cdef ReaderState protocol_state
    cdef ReaderState reader_state


cdef class StreamCoroutine:
    # Which call it is
    cdef int kind
    cdef object stream  # the reader or writer, held until the end as a frame would
    cdef ReaderState state  # the reader's
    cdef WriterState writer  # the writer's
    cdef object argument  # as it was given
    cdef Py_ssize_t size  # of read() and readexactly()

    # How far it has come
    cdef bint started
    cdef bint running
    cdef bint finished
    cdef bint waited  # for data, since it last looked for an exception
    cdef bint is_delegated  # `awaited` is asyncio's own coroutine, which does the rest
    cdef object awaited  # the iterator of what it waits for, or None
    cdef Py_ssize_t searched  # no separator begins before this offset
    cdef list blocks  # of read(-1)
    cdef object result

    cdef int resume(self, PyObject *value, tuple thrown, PyObject **result) except -1
    cdef int go_on(self, PyObject *value, tuple thrown, PyObject **result) except -1
    cdef int throw_in(self, tuple thrown, PyObject **result) except -1
    cdef int advance(self) except -1
    cdef int fail(self, object exception) except -1
    cdef int finish(self) except -1
    cdef int stop_waiting(self) except -1
    cdef int delegate(self) except -1
    cdef int wait_for_data(self, str caller) except -1
    cdef int read(self) except -1
    cdef int read_all(self) except -1
    cdef int read_until(self, bytes separator) except -1
    cdef int read_exactly(self) except -1
    cdef int rescue_line(self, object exception) except -1
    cdef int drain(self) except -1


cpdef Receiver adopt(object protocol)
