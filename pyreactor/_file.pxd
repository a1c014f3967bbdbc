# A file's descriptor, and the operations on it that a ring carries out.

from cpython.buffer cimport Py_buffer
from cpython.object cimport PyObject

from pyreactor._loop cimport LoopCore
from pyreactor._native cimport pr_op, pr_op_kind


cdef class Descriptor:
    cdef readonly int fd  # -1 once it is closed, or another's to close
    cdef readonly bint owned
    cdef public object status  # what fstat(2) said of it, where it has been asked; or None
    cdef int in_use  # operations that work on it
    cdef bint abandoned  # by its file: it ends with the last of them
    cdef object idle  # future of whoever waits for none to do so

    cdef void end(self) noexcept
    cdef void drop(self) noexcept


# What the kernel reads and writes while an operation is under way.  Not Python's fields: the
# garbage collector must not clear them.
cdef struct Memory:
    PyObject *data  # owned; bytes that nobody else knows yet
    Py_buffer view  # held, where there is one
    PyObject *path  # owned
    PyObject *other_path  # owned


cdef class RingOperation:
    cdef pr_op op
    cdef Memory memory
    cdef LoopCore loop
    cdef Descriptor descriptor  # which it works on; or None
    cdef bint finished
    cdef object value  # the result, where it is not just a number
    cdef object name  # what an error of it names: paths as they were given
    cdef object other_name

    # The task's side, as in _loop.Waiter
    cdef object callback
    cdef object context
    cdef bint yielded
    cdef bint blocking
    cdef bint cancelled  # the wait, not the operation
    cdef object cancel_message

    cdef int submit(self) except -1
    cdef int keep_result(self, int result) except -1
    cdef object take_result(self)
    cdef int resume(self) noexcept
    cdef int raise_cancelled(self) except -1
