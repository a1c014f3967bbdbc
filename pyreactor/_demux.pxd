# For the dispatchers, which wait on the same demultiplexer from C.

from libc.stdint cimport int64_t, uint32_t

from pyreactor._native cimport pr_demux, pr_ready_event


cdef int64_t timeout_ns_of(object timeout) except? -2


cdef class DemultiplexerCore:
    cdef pr_demux *demux  # owned; NULL once closed
    cdef object lent_to   # the handle set that it belongs to, or None

    # What the waiting thread fills.
    cdef pr_ready_event *events  # owned
    cdef int capacity

    cdef int check(self) except -1
    cdef int reserve(self, int capacity) except -1
