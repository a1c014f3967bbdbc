# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""A file's descriptor, and the system calls on it that a ring carries out."""

cimport cython
from posix.unistd cimport close


@cython.final
@cython.auto_pickle(False)
cdef class Descriptor:
    """A file's descriptor, which has one owner: this, or, where not `owned`, whoever opened it.

    Loop thread only, but for its end, at which it closes what it owns without a word.
    """

    def __cinit__(self, int fd, bint owned=True):
        self.fd = fd
        self.owned = owned

    def __dealloc__(self):
        self.end()

    cdef void end(self) noexcept:
        if self.owned and self.fd >= 0:
            close(self.fd)
        self.fd = -1

    def abandon(self):
        """Close what it owns, as soon as no operation works on it.  Any thread."""
        self.abandoned = True
        if self.in_use == 0:
            self.end()

    def hold(self):
        """Note that an operation works on it."""
        self.in_use += 1

    def let_go(self):
        """Note that the operation is over."""
        self.in_use -= 1
        if self.in_use == 0 and self.abandoned:
            self.end()
        if self.in_use == 0 and self.idle is not None:
            idle, self.idle = self.idle, None
            if not idle.done():
                idle.set_result(None)

    async def when_idle(self, loop):
        """Return once no operation works on it."""
        while self.in_use:
            if self.idle is None or self.idle.done():
                self.idle = loop.create_future()
            await self.idle

    def take(self):
        """Return the number, which is the caller's to close from here on; -1 where it is gone."""
        fd, self.fd = self.fd, -1
        return fd


def ring_calls(loop, threads):
    """Return the calls of the ring that `loop` runs on, or None where it runs on none."""
    return None
