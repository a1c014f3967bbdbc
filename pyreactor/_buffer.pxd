# The buffer pool's field sheet.
#
# A C program or another compiled module uses `core` as csrc/include/pyreactor/buffer_pool.h says,
# from any thread and without the GIL: a provided-buffer ring, for example, that acquires buffers
# for the kernel to receive into, and releases them when their data has been handled.

from libc.stdint cimport uint32_t

from pyreactor._native cimport pr_bell, pr_buffer_pool


cdef class BufferPoolCore:
    cdef pr_buffer_pool *core  # owned

    cdef Buffer lend(self, int index)


cdef class Buffer:
    cdef BufferPoolCore pool
    cdef readonly uint32_t index
    cdef bint lent
    cdef Py_ssize_t exports  # memoryviews of it, while it may not be given back


cdef class Bell:
    cdef pr_bell core
    cdef BufferPoolCore pool  # in whose list it is while it is armed
    cdef int fd  # owned: an eventfd, which ringing makes readable
