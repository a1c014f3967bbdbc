# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The buffer pool on the C core: all of it but waiting in an event loop.

Any thread may call any method.  A call that has to wait does so without the GIL, and lets signal
handlers run.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EINVAL, ENOBUFS, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    PR_BUFFER_ALIGNMENT,
    pr_bell,
    pr_bell_arm,
    pr_bell_disarm,
    pr_buffer_pool,
    pr_buffer_pool_acquire,
    pr_buffer_pool_data,
    pr_buffer_pool_deinit,
    pr_buffer_pool_has_free,
    pr_buffer_pool_init,
    pr_buffer_pool_pass_on,
    pr_buffer_pool_release,
    pr_buffer_pool_wait,
)
from pyreactor._waiting cimport deadline_after, has_ended


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef extern from "sys/eventfd.h" nogil:
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t *value)


cdef extern from "unistd.h" nogil:
    int close(int fd)


cdef class BufferPoolCore:
    """The C pool as a Python object."""

    def __cinit__(self, count, buffer_bytes=65536):
        cdef Py_ssize_t buffers = count
        cdef Py_ssize_t size = buffer_bytes
        cdef size_t pool_bytes = sizeof(pr_buffer_pool)
        cdef int error
        if buffers < 1 or size < 1:
            raise ValueError('a pool has at least one buffer of at least one byte')
        pool_bytes += (PR_BUFFER_ALIGNMENT - pool_bytes % PR_BUFFER_ALIGNMENT) % PR_BUFFER_ALIGNMENT
        core = <pr_buffer_pool *>aligned_alloc(PR_BUFFER_ALIGNMENT, pool_bytes)
        if core == NULL:
            raise MemoryError
        error = pr_buffer_pool_init(core, <size_t>size, <uint32_t>min(buffers, 0xffffffff))
        if error < 0:
            free(core)
            if error == -EINVAL:
                raise ValueError(
                    'a pool has at most 2**24 buffers, and a buffer fewer than 2**31 bytes')
            raise_errno(error)
        self.core = core

    def __dealloc__(self):
        if self.core != NULL:
            pr_buffer_pool_deinit(self.core)
            free(self.core)

    cdef Buffer lend(self, int index):
        cdef Buffer buffer
        try:
            buffer = Buffer.__new__(Buffer)
        except MemoryError:
            pr_buffer_pool_release(self.core, <uint32_t>index)
            raise
        buffer.pool = self
        buffer.index = <uint32_t>index
        buffer.lent = True
        return buffer

    def acquire(self, timeout=None):
        """Borrow a buffer; wait for one at most `timeout` seconds, for ever if it is None.

        Raises TimeoutError.
        """
        cdef int64_t deadline_ns
        cdef int index = pr_buffer_pool_acquire(self.core)
        if index >= 0:
            return self.lend(index)
        deadline_ns = deadline_after(timeout)
        while True:
            with nogil:
                index = pr_buffer_pool_wait(self.core, deadline_ns)
            if has_ended(index, 'no buffer was given back in time'):
                return self.lend(index)

    def try_acquire(self):
        """Borrow a buffer if there is one; else return None."""
        cdef int index = pr_buffer_pool_acquire(self.core)
        if index == -ENOBUFS:
            return None
        return self.lend(index)

    @property
    def count(self):
        """How many buffers there are."""
        return self.core.count

    @property
    def buffer_bytes(self):
        """The size of one, rounded up to whole cache lines."""
        return self.core.buffer_bytes

    def stats(self):
        """Return what is lent now, the most that was at one time, and how often there was none."""
        return {
            'lent': self.core.lent_count,
            'lent_max': self.core.lent_max,
            'exhausted': self.core.exhausted,
        }

    def __repr__(self):
        return (f'<{type(self).__name__} {self.core.lent_count}/{self.core.count} lent, '
                f'{self.core.buffer_bytes} bytes each>')


@cython.final
@cython.freelist(64)
cdef class Buffer:
    """A borrowed buffer: writable memory for whatever takes a memoryview.

    It goes back with release(), at the end of a with block, or when it is forgotten.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError('buffers are lent by a BufferPool')

    def __dealloc__(self):
        if self.lent:
            # Not without the GIL: a collection may be running.  Ringing a bell writes an eventfd.
            pr_buffer_pool_release(self.pool.core, self.index)

    def release(self):
        """Give it back.  Does nothing the second time.

        Raises BufferError while a memoryview of it exists.
        """
        cdef bint lent
        with cython.critical_section(self):
            lent = self.lent
            if self.exports:
                raise BufferError('a memoryview of this buffer exists: release it first')
            self.lent = False
        if lent:
            with nogil:
                pr_buffer_pool_release(self.pool.core, self.index)

    @property
    def released(self):
        """Whether it was given back."""
        return not self.lent

    @property
    def address(self):
        """Where its memory begins."""
        return <size_t>pr_buffer_pool_data(self.pool.core, self.index)

    def __len__(self):
        return <Py_ssize_t>self.pool.core.buffer_bytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        with cython.critical_section(self):
            if not self.lent:
                raise BufferError('this buffer was given back')
            PyBuffer_FillInfo(
                view, self, pr_buffer_pool_data(self.pool.core, self.index),
                <Py_ssize_t>self.pool.core.buffer_bytes, 0, flags)
            self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        with cython.critical_section(self):
            self.exports -= 1

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()

    def __repr__(self):
        state = '' if self.lent else ' given back'
        return f'<Buffer {self.index}, {len(self)} bytes{state}>'


cdef void write_eventfd(pr_bell *bell) noexcept nogil:
    eventfd_write((<Bell><void *>(<char *>bell - bell_offset)).fd, 1)


cdef size_t bell_offset = <size_t>&(<Bell>NULL).core


cdef class Bell:
    """How an event loop waits for a buffer: a descriptor that is readable once one came back."""

    def __cinit__(self, BufferPoolCore pool not None):
        self.fd = -1
        self.pool = pool
        self.core.ring = write_eventfd
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            raise_errno(-errno)

    def __dealloc__(self):
        self.close()

    def fileno(self):
        """Return the descriptor."""
        return self.fd

    def arm(self):
        """Ring at the next return of a buffer; return whether one is free already."""
        with nogil:
            pr_bell_arm(&self.pool.core.bells, &self.core)
        return pr_buffer_pool_has_free(self.pool.core)

    def clear(self):
        """Make the descriptor unreadable again, and the bell unarmed."""
        cdef uint64_t value
        with nogil:
            pr_bell_disarm(&self.pool.core.bells, &self.core)
            eventfd_read(self.fd, &value)

    def close(self):
        """Close the descriptor.  A buffer that it rang for is passed on to others who wait."""
        if self.fd < 0:
            return
        with nogil:
            if not pr_bell_disarm(&self.pool.core.bells, &self.core):
                pr_buffer_pool_pass_on(self.pool.core)
            close(self.fd)
        self.fd = -1
