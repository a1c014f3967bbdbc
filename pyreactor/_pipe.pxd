# The field sheets of the pipe transports.

from cpython.object cimport PyObject

from pyreactor._transport cimport ByteTransport, WritingTransport


cdef class ReadPipeTransport(ByteTransport):
    # Much at a time is read into a new bytes object, without a copy
    cdef Py_ssize_t capacity_bytes  # the most that the pipe holds; 0 for what is no pipe
    cdef Py_ssize_t last_bytes  # what the last read brought
    cdef PyObject *lent  # owned; from acquire_buffer() to on_received()

    cdef PyObject *take_payload(self, const char *data, size_t size) noexcept
    cdef int end(self) except -1


cdef class WritePipeTransport(WritingTransport):
    cdef bint hears_reader  # the kernel tells when the reading end closes: not of a terminal
    cdef int dropped_writes  # since it is closing

    cdef int end(self) except -1
