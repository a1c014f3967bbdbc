# The TLS transport's field sheet.

from cpython.object cimport PyObject

from pyreactor._base_transport cimport BaseTransport
from pyreactor._native cimport pr_flush
from pyreactor._tls_engine cimport Engine
from pyreactor._transport cimport StreamTransport


cdef enum State:
    WAITING  # for the lower transport's connection_made()
    HANDSHAKE
    OPEN
    SHUTDOWN  # close_notify is sent; what comes is dropped until the peer has said so, too
    ENDING  # the lower transport closes, after what it has to send


ctypedef struct OwnedFlush:
    pr_flush base  # first: the loop knows only this
    void *owner  # the TLSTransport around it


cdef class TLSTransport(BaseTransport):
    # Whom it serves, above
    cdef bint buffered  # a BufferedProtocol
    cdef bint made  # connection_made() was called; connection_lost() must follow
    cdef bint ended  # eof_received() was called
    cdef object waiter  # set once the handshake is made or has failed

    # What it stands on, below
    cdef Engine engine
    cdef object lower  # the transport that brings ciphertext; None before and after
    cdef StreamTransport stream  # the same where it is ours: bytes go in C

    # Where in its life it is
    cdef State state
    cdef readonly bint _protocol_paused  # pause_writing() was called last
    cdef bint end_waits  # the peer's end came while reading was paused
    cdef size_t dropped_bytes  # ciphertext that came after close()

    # What was written and is not encrypted yet
    cdef list writes  # bytes
    cdef size_t writes_bytes
    cdef OwnedFlush flush

    # Limits, in seconds, and the timer of the one that runs
    cdef readonly object _ssl_handshake_timeout
    cdef readonly object _ssl_shutdown_timeout
    cdef object timer
    cdef object handshake_started  # on the loop's clock, in debug mode

    cdef int advise(self, str method) except -1
    cdef int tell(self, str method, PyObject *argument) except -1
    cdef int step_handshake(self) except -1
    cdef int fail_handshake(self, object exception) except -1
    cdef int open(self) except -1
    cdef int wake_waiter(self, object exception, bint done=*) except -1
    cdef int deliver(self) except -1
    cdef int deliver_buffered(self) except -1
    cdef int peer_ended(self, bint said) except -1
    cdef int flush_soon(self) except -1
    cdef int encrypt_writes(self) except -1
    cdef int flush_writes(self) except -1
    cdef int send_output(self) except -1
    cdef int write_now(self, object data) except -1
    cdef int count_dropped_write(self) except -1
    cdef int begin_shutdown(self, bint says, bint waits) except -1
    cdef int drop_input(self, size_t size) except -1
    cdef int end(self) except -1
    cdef int start_timer(self, object seconds, object callback) except -1
    cdef int stop_timer(self) except -1
    cdef object remember(self, object name, object value)
