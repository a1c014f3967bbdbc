# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""What all transports have in common: whom they serve, in which context, and how they end.

All methods: the loop's thread only.
"""

import warnings
from asyncio import futures
from asyncio.log import logger

cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from pyreactor._context cimport call_method_in_context, raise_pending, release
from pyreactor._native cimport pr_now_ns


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    void PyErr_Fetch(PyObject **kind, PyObject **exception, PyObject **traceback)
    void PyErr_Restore(PyObject *kind, PyObject *exception, PyObject *traceback)


@cython.auto_pickle(False)
cdef class Receiver:
    """Takes received bytes in C, in place of a protocol's data_received()."""

    cdef bint receive(self, bytes data) except -1:
        """Takes them; returns False where data_received() is to be called after all."""
        raise NotImplementedError


@cython.auto_pickle(False)
@cython.no_gc_clear  # what it embeds refers to the loop until the very end
cdef class BaseTransport:
    """The part of a transport that does not depend on what it carries."""

    def __del__(self):
        if self.file is not None:
            warnings.warn(f'unclosed transport {self!r}', ResourceWarning, source=self)
            self.stop()
            self.file.close()
            self._protocol = None  # ends a cycle: the collector does not clear this object

    # What each kind of transport does in its own way

    cdef int send_held(self) except -1:
        """Sends what waits for the end of the running callback."""
        return 0

    cdef int stop(self) except -1:
        """Ends all watching and drops what is still to be sent."""
        return 0

    cdef int set_reading(self, bint reading) except -1:
        """Starts or stops receiving."""
        return 0

    cdef bint is_expected(self, object exception) except -1:
        """True for the peer's errors, which are no news to the user."""
        return isinstance(exception, OSError)

    cdef int receive(self, const char *data, size_t size) except -1:
        """For a transport that stands on another: what that received, lent until the return."""
        raise NotImplementedError

    # The protocol

    cdef PyObject *call(self, str method, PyObject *argument) noexcept:
        """Calls a method of the protocol; a slow one is reported.  Or NULL, raising."""
        return self.call_with_two(method, argument, NULL)

    cdef PyObject *call_with_two(self, str method, PyObject *first, PyObject *second) noexcept:
        cdef int64_t started_ns = pr_now_ns() if self._loop.measures() else 0
        cdef PyObject *result = call_method_in_context(
            <PyObject *>self.context, <PyObject *>self._protocol, <PyObject *>method,
            first, second)
        if started_ns:
            self.report_if_slow(method, pr_now_ns() - started_ns)
        return result

    cdef int report_if_slow(self, str method, int64_t duration_ns) noexcept:
        """After a call of the protocol, whose exception stays set where it has failed."""
        cdef PyObject *kind
        cdef PyObject *exception
        cdef PyObject *traceback
        if duration_ns < self._loop.slow_ns:
            return 0
        PyErr_Fetch(&kind, &exception, &traceback)
        self._loop.report_slow(
            duration_ns, f'{type(self._protocol).__name__}.{method}() for {self!r}')
        PyErr_Restore(kind, exception, traceback)
        return 0

    cdef int advise_protocol(self, str method) noexcept:
        """pause_writing() or resume_writing(); an error in them is reported and no more."""
        return self.conclude(method, self.call(method, NULL))

    cdef int conclude(self, str method, PyObject *result) noexcept:
        """What a call of the protocol returned goes; where it failed, that is reported."""
        if result != NULL:
            release(result)
            return 0
        try:
            raise_pending()
        except (SystemExit, KeyboardInterrupt) as exc:
            return self._loop.escape(exc)
        except BaseException as exc:
            return self._loop.report({
                'message': f'protocol.{method}() failed',
                'exception': exc,
                'transport': self,
                'protocol': self._protocol,
            })
        return 0

    def set_protocol(self, protocol):
        """Give what comes from now on to `protocol`."""
        self._protocol = protocol

    def get_protocol(self):
        """Return the protocol in use."""
        return self._protocol

    cdef int begin(self, object waiter) except -1:
        """connection_made(), then the first read; `waiter` is set last."""
        try:
            self._protocol.connection_made(self)
        finally:
            if not self._closing and not self._paused:
                self.set_reading(True)
            if waiter is not None:
                futures._set_result_unless_cancelled(waiter, None)
        return 0

    cdef int pause(self) except -1:
        self.check_thread()
        if self._closing or self._paused:
            return 0
        self._paused = True
        self.set_reading(False)
        if self._loop._debug:
            logger.debug('%r pauses reading', self)
        return 0

    cdef int resume(self) except -1:
        self.check_thread()
        if self._closing or not self._paused:
            return 0
        self._paused = False
        self.set_reading(True)
        if self._loop._debug:
            logger.debug('%r resumes reading', self)
        return 0

    # The end

    def is_closing(self):
        """Return True after close() or abort(), or when the connection was lost."""
        return self._closing

    def _force_close(self, exc):
        self.force_close(exc)

    cdef int force_close(self, object exception) except -1:
        # What was written earlier in this callback is dropped only if the kernel has no room.
        if not self._conn_lost:
            self.send_held()
        if self._conn_lost:
            return 0
        self._closing = True
        return self.lose_connection(exception)

    cdef int lose_connection(self, object exception) except -1:
        if self._conn_lost:  # what fails while it ends finds it lost already
            return 0
        self._conn_lost += 1
        self.stop()
        self._loop.call_soon(self._call_connection_lost, exception, context=self.context)
        return 0

    def _call_connection_lost(self, exc):
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._loop.open_transports.discard(self)
            self.file.close()
            self.file = None
            self._protocol = None

    # Failure

    cdef int check_thread(self) except -1:
        cdef unsigned long ident = self._loop.thread_ident
        if ident != 0 and ident != PyThread_get_thread_ident():
            self._loop.check_usable()
        return 0

    cdef int fail(self, object exception, str message) except -1:
        """Ends the connection because of an error."""
        if self.is_expected(exception):
            if self._loop._debug:
                logger.debug('%r: %s', self, message, exc_info=exception)
        else:
            self._loop.call_exception_handler({
                'message': message,
                'exception': exception,
                'transport': self,
                'protocol': self._protocol,
            })
        return self.force_close(exception)

    cdef int give_up(self, object exception, str message) noexcept:
        """fail(), from a place that cannot raise."""
        if isinstance(exception, (SystemExit, KeyboardInterrupt)):
            return self._loop.escape(exception)
        try:
            self.fail(exception, message)
        except BaseException as exc:
            return self._loop.escape(exc)
        return 0

    cdef int fail_with_pending(self, str message) noexcept:
        """give_up() with the exception that is set."""
        try:
            raise_pending()
        except BaseException as exc:
            return self.give_up(exc, message)
        return 0

    # Information

    def get_extra_info(self, name, default=None):
        """Return what is known of the connection under `name`, such as 'sockname', or `default`."""
        return self.extra.get(name, default)

    @property
    def _extra(self):
        return self.extra
