# The stream transport's field sheet.

from cpython.buffer cimport Py_buffer
from cpython.object cimport PyObject

from pyreactor._loop cimport LoopCore
from pyreactor._native cimport pr_stream


cdef class StreamTransport:
    # Whom it serves and what it owns
    cdef readonly LoopCore _loop
    cdef readonly object _protocol
    cdef readonly object _sock  # owns the descriptor; None once closed
    cdef readonly object _server  # told when the connection is gone; None for a client's
    cdef readonly int _sock_fd
    cdef object context  # in which the protocol is called
    cdef dict extra  # for get_extra_info()

    # Reading and sending, in C
    cdef pr_stream stream
    cdef Py_buffer lent  # a BufferedProtocol's buffer, held from get_buffer() to the receive
    cdef bint lending

    # Where in its life it is.  close() sets `_closing`; once all is sent, connection_lost() is
    # scheduled and `_conn_lost` counts, that and every write dropped since; then the socket closes.
    cdef readonly bint _closing
    cdef readonly int _conn_lost
    cdef readonly bint _eof  # write_eof() was called
    cdef readonly bint _paused  # pause_reading() was called
    cdef readonly object _empty_waiter  # sendfile() waits for all to be sent

    # Attributes that a user sets, such as transport.write = mock
    cdef dict __dict__
    cdef object __weakref__

    cdef int open(
        self, LoopCore loop, object sock, object protocol, object context, dict extra,
        object server) except -1
    cdef int connect(self) except -1
    cdef int check_thread(self) except -1
    cdef PyObject *call(self, str method, PyObject *argument) noexcept
    cdef int advise_protocol(self, str method) noexcept
    cdef int fail_with_pending(self, str message) noexcept
    cdef int give_up(self, object exception, str message) noexcept
    cdef int fail(self, object exception, str message) except -1
    cdef int force_close(self, object exception) except -1
    cdef int lose_connection(self, object exception) except -1
    cdef int finish_sending(self) except -1
    cdef int settle(self, int result) except -1
    cdef int queue(self, object data) except -1
    cdef object offer(self, object data)
    cdef flush(self)
    cdef count_dropped_write(self)
    cdef take_back_buffer(self)
