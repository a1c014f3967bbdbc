# The field sheets of the transports that carry bytes in order.

from cpython.buffer cimport Py_buffer

from pyreactor._base_transport cimport BaseTransport
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport pr_stream, pr_stream_handler


cdef class ByteTransport(BaseTransport):
    cdef pr_stream stream  # reading and sending, in C
    cdef str failure_text  # what the failure of a call is called

    cdef int open_stream(
        self, LoopCore loop, object file, object protocol, object context, dict extra,
        const pr_stream_handler *handler, bint is_file) except -1
    cdef int settle(self, int result) except -1


cdef class WritingTransport(ByteTransport):
    cdef readonly bint _eof  # write_eof() was called, and reading goes on
    cdef readonly object _empty_waiter  # sendfile() waits for all to be sent

    cdef int queue(self, object data) except -1
    cdef size_t send_now(self, const char *data, size_t size) except? 0
    cdef int send_rest(self, const char *data, size_t size, object owner) except -1
    cdef object offer(self, object data)
    cdef flush(self)
    cdef count_dropped_write(self)


cdef class StreamTransport(WritingTransport):
    cdef readonly object _server  # told when the connection is gone; None for a client's

    # A BufferedProtocol's buffer, held from get_buffer() to the receive
    cdef Py_buffer lent
    cdef bint lending

    cdef bint lent_descriptor  # to sendfile(), which waits on it itself

    cdef int open(
        self, LoopCore loop, object sock, object protocol, object context, dict extra,
        object server) except -1
    cdef int leave_server(self) except -1
    cdef int connect(self) except -1
    cdef int finish_sending(self) except -1
    cdef int give_receiver(self, bytes data) noexcept
    cdef take_back_buffer(self)
