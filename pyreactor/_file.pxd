# A file's descriptor and the operations on it.


cdef class Descriptor:
    cdef readonly int fd  # -1 once it is closed, or another's to close
    cdef readonly bint owned
    cdef public object status  # what fstat(2) said of it, where it has been asked; or None
    cdef int in_use  # operations that work on it
    cdef bint abandoned  # by its file: it ends with the last of them
    cdef object idle  # future of whoever waits for none to do so

    cdef void end(self) noexcept
