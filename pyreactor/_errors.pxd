# Errors: an exception is set when raise_errno() returns, which it does only by raising.

cdef object errno_exception(int error)
cdef int raise_errno(int error) except -1
