# The datagram transport's field sheet.

from cpython.object cimport PyObject

from pyreactor._base_transport cimport BaseTransport
from pyreactor._native cimport pr_address, pr_datagram_endpoint


# Addresses, for whoever has sockets
cdef object address_object(const pr_address *address)
cdef bint read_address(object value, int family, pr_address *address) except -1


cdef class DatagramTransport(BaseTransport):
    cdef readonly object _address  # of remote_addr, the only one to send to; None without
    cdef bint connected  # the kernel knows the peer, and refuses others

    # Receiving and sending, in C
    cdef pr_datagram_endpoint endpoint
    cdef int family

    # Received, but not wanted yet: reading was paused while a batch was handed over
    cdef list kept  # (data, address)
    cdef bint delivering_kept  # that is scheduled

    # The last address in each direction, as the kernel has it and as Python's object: most
    # programs talk to the same peer many times
    cdef pr_address source
    cdef object source_object
    cdef pr_address target
    cdef object target_object

    cdef object source_address(self, const pr_address *source)
    cdef const pr_address *find_target(self, object address) except? NULL
    cdef bint is_peer(self, object address) except -1
    cdef int deliver(self, PyObject *data, PyObject *address) noexcept
    cdef int schedule_kept(self) except -1
    cdef int keep(self, object data, object address) noexcept
    cdef int send_now(self, object data, object address) noexcept
    cdef int tell_error(self, object exception) noexcept
    cdef int queue(self, bytes data, object address) except -1
    cdef int settle(self, int result) except -1
