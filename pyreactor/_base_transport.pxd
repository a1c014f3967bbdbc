# The field sheet of what all transports share.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from pyreactor._loop cimport LoopCore


cdef class Receiver:
    # Takes received bytes in C, in place of a protocol's data_received()
    cdef bint receive(self, bytes data) except -1


cdef class BaseTransport:
    # Whom it serves and what it owns
    cdef readonly LoopCore _loop
    cdef readonly object _protocol  # None after connection_lost()
    cdef Receiver receiver  # of the protocol's data, or None
    cdef object context  # in which the protocol is called
    cdef dict extra  # for get_extra_info()
    cdef object file  # owns the descriptor, a socket or a file; None once closed
    cdef int fd

    # Where in its life it is.  close() sets `_closing`; once all is sent, connection_lost() is
    # scheduled and `_conn_lost` counts, that and every write dropped since; then the file closes.
    cdef readonly bint _closing
    cdef readonly int _conn_lost
    cdef readonly bint _paused  # pause_reading() was called

    # Attributes that a user sets, such as transport.write = mock
    cdef dict __dict__
    cdef object __weakref__

    # What each kind of transport does in its own way
    cdef int send_held(self) except -1
    cdef int stop(self) except -1
    cdef int set_reading(self, bint reading) except -1
    cdef bint is_expected(self, object exception) except -1
    cdef int receive(self, const char *data, size_t size) except -1

    # The protocol
    cdef PyObject *call(self, str method, PyObject *argument) noexcept
    cdef PyObject *call_with_two(
        self, str method, PyObject *first, PyObject *second) noexcept
    cdef int conclude(self, str method, PyObject *result) noexcept
    cdef int report_if_slow(self, str method, int64_t duration_ns) noexcept
    cdef int advise_protocol(self, str method) noexcept
    cdef int begin(self, object waiter) except -1
    cdef int pause(self) except -1
    cdef int resume(self) except -1

    # The end
    cdef int fail(self, object exception, str message) except -1
    cdef int force_close(self, object exception) except -1
    cdef int lose_connection(self, object exception) except -1
    cdef int give_up(self, object exception, str message) noexcept
    cdef int fail_with_pending(self, str message) noexcept
    cdef int check_thread(self) except -1
