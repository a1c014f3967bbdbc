# Shared memory's field sheet.

from libc.stdint cimport uint16_t

from pyreactor._native cimport (
    pr_segment,
    pr_shared_item,
    pr_shared_part,
    pr_shared_queue,
    pr_shared_stop,
)


cdef class SharedQueueCore:
    cdef object __weakref__
    cdef pr_shared_queue core
    cdef bint open
    cdef int broken  # why it cannot be used in this forked child: a negative errno

    cdef int check(self) except -1
    cdef int put_parts(
        self, const pr_shared_part *parts, size_t count, size_t size, uint16_t kind,
        object timeout) except -1
    cdef int put_item(self, object item, object timeout) except -1
    cdef int get_item(self, pr_shared_item *item, object timeout) except -1
    cdef object load(self, const pr_shared_item *item)
    cdef object receive(self, pr_shared_item *item)


cdef class Delivery:
    cdef SharedQueueCore queue
    cdef pr_shared_item place
    cdef bint held  # not acknowledged, nor given back
    cdef readonly object item


cdef class SegmentCore:
    cdef pr_segment core
    cdef bint open
    cdef Py_ssize_t exports


cdef class Sleeper:
    cdef SharedQueueCore queue
    cdef pr_shared_stop core
