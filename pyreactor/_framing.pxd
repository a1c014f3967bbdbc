# A framing and its framers, for modules that frame without Python objects.

from pyreactor._native cimport pr_framer, pr_framing


cdef class Framing:
    cdef pr_framing rule  # never changes once the object is made

    cdef int check(self, Py_ssize_t max_bytes) except -1
    cdef tuple arguments(self)


cdef class Framer:
    cdef readonly Framing framing  # which the C framer refers to
    cdef pr_framer machine
    cdef bint ended

    cdef object error(self, int code, list frames)
