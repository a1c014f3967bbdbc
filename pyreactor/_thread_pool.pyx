# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The thread pool's hot half: futures that carry their call, and the loop that runs them.

A future is one object in the request queue, with one lock and one latch; waiting for it sleeps on
the latch, without a lock.  Everything else of a future is concurrent.futures' own code.
"""

from _thread import RLock
from concurrent.futures import _base

from libc.errno cimport EINTR, ESHUTDOWN, ETIMEDOUT
from libc.stdint cimport INT64_MAX, int64_t

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    pr_latch,
    pr_latch_init,
    pr_latch_is_open,
    pr_latch_open,
    pr_latch_open_quietly,
    pr_latch_wait,
    pr_latch_wake,
    pr_request,
)
from pyreactor._queue cimport QueueCore, item_of
from pyreactor._waiting cimport PyErr_CheckSignals, deadline_after


cdef object PENDING = _base.PENDING
cdef object RUNNING = _base.RUNNING
cdef object CANCELLED = _base.CANCELLED
cdef object CANCELLED_AND_NOTIFIED = _base.CANCELLED_AND_NOTIFIED
cdef object FINISHED = _base.FINISHED
cdef object CancelledError = _base.CancelledError
cdef object InvalidStateError = _base.InvalidStateError
cdef object LOGGER = _base.LOGGER


cdef class FutureCondition:
    """What a future's lock and its end are to concurrent.futures: a condition notified once."""

    def __cinit__(self):
        self.lock = RLock()
        self.acquire_lock = self.lock.acquire
        self.release_lock = self.lock.release
        pr_latch_init(&self.done)

    def acquire(self, *args, **kwargs):
        """Acquire the lock."""
        return self.acquire_lock(*args, **kwargs)

    def release(self):
        """Release the lock."""
        self.release_lock()

    def __enter__(self):
        return self.acquire_lock()

    def __exit__(self, *exc_info):
        self.release_lock()

    def notify_all(self):
        """The future is done."""
        pr_latch_open(&self.done)

    def wait(self, timeout=None):
        """Wait, without the lock, until the future is done; return whether it is."""
        self.release_lock()
        try:
            return wait_for_latch(self, timeout)
        finally:
            self.acquire_lock()


cdef bint wait_for_latch(FutureCondition condition, object timeout) except -1:
    cdef int64_t deadline_ns
    cdef int result
    if pr_latch_is_open(&condition.done):
        return True
    deadline_ns = deadline_after(timeout)
    while True:
        with nogil:
            result = pr_latch_wait(&condition.done, deadline_ns)
        if result == 0:
            return True
        if result == -ETIMEDOUT:
            return False
        if result != -EINTR:
            raise_errno(result)
        PyErr_CheckSignals()


cdef class FutureCore:
    """A call and what comes of it: what every call passes through of a Future, in C."""

    def __cinit__(self):
        self._condition = FutureCondition.__new__(FutureCondition)
        self._state = PENDING
        self._waiters = []
        self._done_callbacks = []

    cdef int wait(self, object timeout) except -1:
        if not wait_for_latch(self._condition, timeout):
            raise TimeoutError
        return 0

    def done(self):
        """Return whether the call was cancelled or has ended."""
        return bool(pr_latch_is_open(&self._condition.done))

    def result(self, timeout=None):
        """Return what the call returned, or raise what it raised; wait for its end.

        Raises TimeoutError after `timeout` seconds, and CancelledError.
        """
        self.wait(timeout)
        if self._state is not FINISHED:
            raise CancelledError
        if self._exception is None:
            return self._result
        try:
            raise self._exception
        finally:
            self = None  # the traceback's frame must not keep the future, nor so itself

    def exception(self, timeout=None):
        """Return what the call raised, or None; wait for its end as result() does."""
        self.wait(timeout)
        if self._state is not FINISHED:
            raise CancelledError
        return self._exception

    def add_done_callback(self, fn):
        """Have fn(future) called when the call has ended: at once if it has."""
        self._condition.acquire_lock()
        try:
            if not pr_latch_is_open(&self._condition.done):
                self._done_callbacks.append(fn)
                return
        finally:
            self._condition.release_lock()
        try:
            fn(self)
        except Exception:
            LOGGER.exception('exception calling callback for %r', self)

    def set_running_or_notify_cancel(self):
        """Mark the call as running; return False where it was cancelled."""
        self._condition.acquire_lock()
        try:
            if self._state is PENDING:
                self._state = RUNNING
                return True
            if self._state is CANCELLED:
                self._state = CANCELLED_AND_NOTIFIED
                for waiter in self._waiters:
                    waiter.add_cancelled(self)
                return False
            LOGGER.critical('Future %s in unexpected state: %s', id(self), self._state)
            raise RuntimeError('Future in unexpected state')
        finally:
            self._condition.release_lock()

    cdef int finish(self, object result, object exception) except -1:
        self._condition.acquire_lock()
        try:
            if self._state is not RUNNING and self._state is not PENDING:
                raise InvalidStateError(f'{self._state}: {self!r}')
            self._result = result
            self._exception = exception
            self._state = FINISHED
            for waiter in self._waiters:
                if exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            pr_latch_open_quietly(&self._condition.done)
        finally:
            self._condition.release_lock()
        for callback in self._done_callbacks:
            try:
                callback(self)
            except Exception:
                LOGGER.exception('exception calling callback for %r', self)
        return 0

    def set_result(self, result):
        """End the call with what it returned."""
        self.finish(result, None)
        pr_latch_wake(&self._condition.done)

    def set_exception(self, exception):
        """End the call with what it raised."""
        self.finish(None, exception)
        pr_latch_wake(&self._condition.done)

    cdef int run(self) except -1:
        """Makes the call, unless it was cancelled.  Whoever waits for it is yet to be woken."""
        cdef object function = self.function
        cdef tuple arguments = self.arguments
        cdef dict keywords = self.keywords
        self.function = self.arguments = self.keywords = None
        if not self.set_running_or_notify_cancel():
            return 0
        try:
            result = function(*arguments, **keywords)
        except BaseException as exc:
            self.finish(None, exc)
        else:
            self.finish(result, None)
        return 0


def submit_call(QueueCore queue not None, FutureCore future not None, function, tuple arguments,
                dict keywords):
    """Put a call into the queue if there is room; return whether it was put.

    Raises QueueClosed.
    """
    future.function = function
    future.arguments = arguments
    future.keywords = keywords
    return queue.try_put(future)


def run_worker(QueueCore queue not None):
    """Take calls out of the queue and make them, until it is closed and empty.

    What others have put there, a dispatcher included, is called without arguments; what it raises
    is logged.
    """
    cdef pr_request request
    cdef FutureCondition done = None  # of the call just made: who waits for it is not woken yet
    cdef pr_latch *latch = NULL
    cdef int result
    while True:
        result = queue.core.ops.try_get(queue.core, &request, 1)
        if done is not None and result == 1:
            pr_latch_wake(&done.done)
            done = None
        if result == 1:
            done = make_call(item_of(queue, &request))
        elif result == -ESHUTDOWN:
            if done is not None:
                pr_latch_wake(&done.done)
            return
        else:
            if done is not None:
                latch = &done.done
            with nogil:
                # Not before: the GIL is the first thing that those who wake want.
                if latch != NULL:
                    pr_latch_wake(latch)
                result = queue.core.ops.wait_request(queue.core, INT64_MAX)
            latch = NULL
            done = None
            if result < 0 and result != -EINTR:
                raise_errno(result)


cdef FutureCondition make_call(item):
    """Makes a call that was taken out of the queue; returns what its end is to be told to."""
    if isinstance(item, FutureCore):
        (<FutureCore>item).run()
        return (<FutureCore>item)._condition
    try:
        item()
    except BaseException:
        LOGGER.critical('Exception in worker', exc_info=True)
    return None


def run_item(item):
    """Make a call that was taken out of the queue."""
    cdef FutureCondition done = make_call(item)
    if done is not None:
        pr_latch_wake(&done.done)
