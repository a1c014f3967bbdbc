# TLS between ciphertext and plaintext, for one connection, in two ways.

from pyreactor._native cimport pr_tls
from pyreactor._transport cimport StreamTransport


cdef class Engine:
    cdef readonly object ssl_object  # the stdlib's, which makes the handshake and the shutdown
    cdef object failure  # reading has failed with this, after what was read before

    cdef int handshake(self) except -1
    cdef int shutdown(self) except -1
    cdef int feed(self, const char *data, size_t size) except -1
    cdef int keep(self) except -1
    cdef bint has_input(self) noexcept
    cdef object read(self)
    cdef Py_ssize_t read_into(self, char *buffer, size_t size) except -2
    cdef int write(self, const char *data, size_t size) except -1
    cdef int send(self, StreamTransport stream) except -1
    cdef bytes take_output(self)


cdef class OpenSSLEngine(Engine):
    cdef pr_tls tls
    cdef object lock  # the stdlib's inner object: what it locks without a GIL

    cdef object explain(self, bint sending)


cdef class MemoryBIOEngine(Engine):
    cdef object incoming
    cdef object outgoing
    cdef bint starved  # the last read took everything in


cdef Engine new_engine(
    str choice, object context, bint server_side, object server_hostname)
