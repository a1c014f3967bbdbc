# The thread pool's field sheet: the future that a call is, from submit() to its result.

from pyreactor._native cimport pr_latch


cdef class FutureCondition:
    cdef object lock       # an RLock, as the stdlib's futures have
    cdef object acquire_lock, release_lock  # its methods
    cdef pr_latch done


cdef class FutureCore:
    # The names are those of concurrent.futures.Future, whose methods and functions use them; they
    # change under the condition's lock.
    cdef readonly FutureCondition _condition
    cdef public object _state
    cdef public object _result
    cdef public object _exception
    cdef public list _waiters
    cdef public list _done_callbacks

    # The call, until it runs
    cdef object function
    cdef tuple arguments
    cdef dict keywords

    cdef int run(self) except -1
    cdef int finish(self, object result, object exception) except -1
    cdef int wait(self, object timeout) except -1
