# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""A demultiplexer of the C core: `pyreactor.demultiplexers` gives each its public class."""

from libc.math cimport ceil
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, realloc

from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._native cimport (
    PR_EDGE_TRIGGERED,
    PR_EXCEPTIONAL,
    PR_EXCLUSIVE,
    PR_ONE_SHOT,
    pr_demux_fileno,
    pr_demux_find,
    pr_demux_free,
    pr_demux_new,
    pr_demux_ops,
    pr_demux_wait,
    pr_now_ns,
    pr_ready_event,
)

import errno

EXCEPTIONAL = PR_EXCEPTIONAL
ONE_SHOT = PR_ONE_SHOT
EDGE = PR_EDGE_TRIGGERED
EXCLUSIVE = PR_EXCLUSIVE


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef int64_t timeout_ns_of(object timeout) except? -2:
    """Seconds, or None for no limit, as the core takes them: rounded up, never early."""
    cdef double seconds
    if timeout is None:
        return -1
    seconds = timeout
    if seconds != seconds:
        raise ValueError('the timeout is not a number')
    if seconds <= 0:
        return 0
    return <int64_t>ceil(seconds * 1e9) if seconds < 9e9 else INT64_MAX


cdef class DemultiplexerCore:
    """A demultiplexer by its name: "select", "poll", "epoll", "io_uring" or "sigio"."""

    def __cinit__(self):
        self.demux = NULL

    def _open(self, str name):
        cdef const pr_demux_ops *ops = pr_demux_find(name.encode())
        cdef int error
        if ops == NULL:
            raise ValueError(f'there is no demultiplexer named {name!r}')
        error = pr_demux_new(ops, &self.demux)
        if error < 0:
            exception = errno_exception(error)
            if error in (-errno.ENOSYS, -errno.EPERM):
                raise type(exception)(
                    -error, f'this machine has no {name}: {exception.strerror}') from None
            raise exception

    def __dealloc__(self):
        pr_demux_free(self.demux)
        free(self.events)

    def _close(self):
        """Free it; the descriptors stay open."""
        if self.demux != NULL and self.demux.waiting:
            raise RuntimeError('a thread waits on this demultiplexer')
        if self.lent_to is not None:
            raise RuntimeError(f'this demultiplexer belongs to {self.lent_to!r}')
        pr_demux_free(self.demux)
        self.demux = NULL

    cdef int check(self) except -1:
        if self.demux == NULL:
            raise ValueError('the demultiplexer is closed')
        if self.lent_to is not None:
            raise RuntimeError(f'this demultiplexer belongs to {self.lent_to!r}')
        return 0

    def _add(self, int fd, uint32_t generation, uint32_t events):
        """Add a descriptor.  Any thread."""
        self.check()
        cdef int error = self.demux.ops.add(self.demux, fd, generation, events)
        if error < 0:
            raise_errno(error)

    def _modify(self, int fd, uint32_t generation, uint32_t events):
        """Change what is wanted of it.  Any thread."""
        self.check()
        cdef int error = self.demux.ops.modify(self.demux, fd, generation, events)
        if error < 0:
            raise_errno(error)

    def _remove(self, int fd):
        """Take it out; what is not in the set, or was closed, is no error.  Any thread."""
        self.check()
        self.demux.ops.remove(self.demux, fd)

    def _wait(self, int capacity, timeout):
        """Return a list of (descriptor, generation, events), empty when the time is over.

        One thread at a time.  A signal is handled and the wait goes on.
        """
        cdef int64_t timeout_ns = timeout_ns_of(timeout)
        cdef int64_t deadline_ns = INT64_MAX
        cdef int64_t now_ns
        cdef int count, i
        self.check()
        if capacity > self.capacity:
            self.reserve(capacity)
        if timeout_ns > 0:
            now_ns = pr_now_ns()
            deadline_ns = now_ns + timeout_ns if timeout_ns < INT64_MAX - now_ns else INT64_MAX
        while True:
            with nogil:
                count = pr_demux_wait(self.demux, self.events, self.capacity, timeout_ns)
            if count > 0 or (count == 0 and timeout_ns == 0):
                break
            if count < 0 and count != -errno.EINTR:
                if count == -errno.EBUSY:
                    raise RuntimeError('another thread waits on this demultiplexer')
                raise_errno(count)
            if count < 0:
                PyErr_CheckSignals()
            if timeout_ns > 0:
                timeout_ns = max(<int64_t>0, deadline_ns - pr_now_ns())
        return [
            (self.events[i].fd, self.events[i].generation, self.events[i].events)
            for i in range(count)
        ]

    cdef int reserve(self, int capacity) except -1:
        cdef pr_ready_event *events
        if self.demux.waiting:
            raise RuntimeError('another thread waits on this demultiplexer')
        events = <pr_ready_event *>realloc(self.events, capacity * sizeof(pr_ready_event))
        if events == NULL:
            raise MemoryError
        self.events = events
        self.capacity = capacity
        return 0

    def _fileno(self):
        """The epoll set's descriptor; -1 where there is none."""
        self.check()
        return pr_demux_fileno(self.demux)
