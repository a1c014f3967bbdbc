# The listener's field sheet.

from pyreactor._loop cimport LoopCore
from pyreactor._native cimport pr_listener


cdef class Listener:
    cdef LoopCore loop
    cdef pr_listener listener
    cdef readonly object sock  # the server's; it closes it
    cdef object family, type, proto  # the socket's
    cdef object protocol_factory
    cdef object server
    cdef object ssl_arguments  # None: plain; else what _accept_connection2() takes for TLS
    cdef object context  # of start_serving(): each connection gets a copy
    cdef bint exhausted  # no descriptors left, and that has been reported

    cdef int accept(self, int fd) except -1
    cdef report_error(self, int error)
