# Waiting in the C core, without the GIL: until when, and what the result of a wait means.

from libc.errno cimport EINTR, ETIMEDOUT
from libc.stdint cimport INT64_MAX, int64_t

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport pr_now_ns


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef enum:
    NS_PER_SECOND = 1000000000


# When a wait of `timeout` seconds that begins now ends: on the clock of pr_now_ns(), INT64_MAX for
# never, 0 for one that does not wait.  Raises ValueError for what is not a number.
cdef inline int64_t deadline_after(object timeout) except? -2:
    cdef double seconds
    if timeout is None:
        return INT64_MAX
    seconds = timeout
    if seconds != seconds:
        raise ValueError('timeout is not a number')
    if seconds > 4e9:  # a century; what is longer is for ever
        return INT64_MAX
    if seconds <= 0:
        return 0
    return pr_now_ns() + <int64_t>(seconds * NS_PER_SECOND) + 1


# Tells whether a wait has ended well.  If not, a signal has interrupted it, was handled, and the
# wait is to be made again.  Raises TimeoutError with `timed_out`, OSError, and what the signal's
# handler raises.
cdef inline bint has_ended(int result, str timed_out) except -1:
    if result >= 0:
        return True
    if result == -ETIMEDOUT:
        raise TimeoutError(timed_out)
    if result != -EINTR:
        raise_errno(result)
    PyErr_CheckSignals()
    return False
