# The request queue's field sheet.
#
# A C program or another compiled module uses `core` as csrc/include/pyreactor/request_queue.h says,
# from any thread and without the GIL, for requests of its own.  Requests that are Python objects
# (is_object_request()) are put and taken only by a thread that is attached to the interpreter: the
# garbage collector looks into the queue, and nothing may move meanwhile.

from libc.stdint cimport int64_t

from pyreactor._native cimport pr_queue_side, pr_request, pr_request_queue


cdef class QueueCore:
    cdef pr_request_queue *core  # owned

    # Kind "spsc": the threads that put and get, 0 while there has been none
    cdef bint single  # is it of that kind?
    cdef unsigned long producer_ident
    cdef unsigned long consumer_ident

    # Event loop -> what waits there for this queue, see request_queue.py
    cdef dict attendants

    # Handles what C code has put, where a Python thread takes it; None: nobody does
    cdef NativeHandler native_handler

    cdef int set_native_handler(self, NativeHandler handler) except -1
    cdef int check_thread(self, unsigned long *ident, str what) except -1
    cdef int wait(self, pr_queue_side side, int64_t deadline_ns) except -1
    cdef int put_request(self, pr_request *request, object timeout) except -1
    cdef int get_requests(self, pr_request *requests, size_t max, object timeout) except -1


# Wraps a Python object, whose reference the request owns from here on.
cdef pr_request object_request(object item) except *

# Tells whether a request is a Python object.
cdef bint is_object_request(const pr_request *request) noexcept nogil

# The item of a request that was taken, which takes over what the request owned: the Python object,
# or a NativeRequest for one that C code has put.
cdef object item_of(QueueCore source, pr_request *request)


# Whose requests C code puts into a queue.  Both take over what the request owns; any thread.
cdef class NativeHandler:
    cdef int handle_native(self, pr_request *request) except -1
    cdef void release_native(self, pr_request *request) noexcept


cdef class NativeRequest:
    cdef pr_request request  # owned
    cdef NativeHandler handler  # of the queue it was taken from
    cdef bint moved  # into a queue, or to its handler: nothing is owned any more

    cdef pr_request move(self) except *
