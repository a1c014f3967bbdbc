# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False, cdivision=True
"""The request queue on the C core: all of it but waiting in an event loop.

Any thread may call any method, but for queues of kind "spsc".  A call that has to wait does so
without the GIL, and lets signal handlers run.
"""

import queue
import types
from typing import NamedTuple

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINVAL, EOPNOTSUPP, ESHUTDOWN
from libc.stdint cimport int64_t

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    PR_QUEUE_CONSUMERS,
    PR_QUEUE_PRODUCERS,
    pr_queue_side,
    pr_request,
    pr_request_queue_new,
    pr_request_queue_stats,
    pr_request_release,
)
from pyreactor._waiting cimport deadline_after, has_ended


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    ctypedef int (*visitproc)(PyObject *object, void *argument) noexcept
    ctypedef int (*traverseproc)(PyObject *self, visitproc visit, void *argument) noexcept
    ctypedef int (*inquiry)(PyObject *self) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear


cdef double SPIN_US_MAX = 1e6
cdef enum:
    BATCH = 64  # requests that one call of the C core moves


class QueueClosed(getattr(queue, 'ShutDown', Exception)):
    """The queue was closed; for get(), it is empty, too.

    From Python 3.13 on it is a queue.ShutDown.
    """


class QueueStats(NamedTuple):
    """What a queue has counted since it was made."""

    puts: int
    gets: int
    depth_max: int  # the most requests that waited at one time
    put_sleeps: int  # how often a thread went to sleep because the queue was full
    get_sleeps: int  # ... because it was empty
    put_wakes: int  # how often sleeping producers were woken, one or several at once
    get_wakes: int  # ... consumers


cdef void release_object(pr_request *request) noexcept with gil:
    Py_DECREF(<object>request.owner)


cdef pr_request object_request(object item) except *:
    cdef pr_request request
    if isinstance(item, NativeRequest):
        return (<NativeRequest>item).move()
    Py_INCREF(item)
    request.release = release_object
    request.owner = <void *>item
    request.fd = -1
    request.events = 0
    return request


cdef bint is_object_request(const pr_request *request) noexcept nogil:
    return request.release == release_object


cdef object item_of(QueueCore source, pr_request *request):
    cdef NativeRequest native
    if is_object_request(request):
        item = <object>request.owner
        Py_DECREF(item)  # the request's, which `item` keeps alive for the caller
        return item
    native = NativeRequest.__new__(NativeRequest)
    native.request = request[0]
    native.handler = source.native_handler
    return native


@cython.auto_pickle(False)
cdef class NativeHandler:
    """Whose requests C code puts into a queue: a dispatcher's."""

    cdef int handle_native(self, pr_request *request) except -1:
        raise NotImplementedError('the kind of handler says how')

    cdef void release_native(self, pr_request *request) noexcept:
        pr_request_release(request)


@cython.no_gc_clear  # the handler is needed to the end
cdef class NativeRequest:
    """A request that C code has put into a queue and Python code has taken out of it.

    It is called to be handled, as a thread of its maker would; or it can be put into a queue again.
    After that it is empty.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError('native requests are made by C code')

    def __cinit__(self):
        self.request.release = NULL

    def __dealloc__(self):
        if self.moved:
            return
        if self.handler is None:
            pr_request_release(&self.request)
        else:
            self.handler.release_native(&self.request)

    cdef pr_request move(self) except *:
        if self.moved:
            raise ValueError('this request has been put into a queue, or handled, already')
        self.moved = True
        return self.request

    def __call__(self):
        """Handle the request.  Any thread.

        Raises RuntimeError where it was taken out of a queue that no dispatcher uses, and
        ValueError where it is empty.
        """
        cdef pr_request request
        if self.handler is None:
            raise RuntimeError('no dispatcher uses the queue that this request was taken from')
        request = self.move()
        self.handler.handle_native(&request)

    @property
    def fd(self):
        """The descriptor that the request is about, or -1."""
        return self.request.fd

    @property
    def events(self):
        """What its maker says is ready there."""
        return self.request.events


cdef class QueueCore:
    """The C queue as a Python object."""

    def __cinit__(self, capacity, *, kind='mpmc', spin_us=0):
        cdef bytes name = str(kind).encode()
        cdef const char *c_name = name
        cdef double spin = spin_us
        cdef Py_ssize_t size = capacity
        self.attendants = {}
        if size < 1:
            raise ValueError('capacity must be at least 1')
        if not 0 <= spin <= SPIN_US_MAX:
            raise ValueError('spin_us must be between 0 and 1000000')
        error = pr_request_queue_new(&self.core, c_name, <size_t>size, <int64_t>(spin * 1000))
        if error == -EOPNOTSUPP:
            raise ValueError(f"there is no kind {kind!r}: choose 'mpmc', 'spsc' or 'mutex'")
        if error == -EINVAL:
            raise ValueError('capacity must be at most 2**30')
        if error < 0:
            raise_errno(error)
        self.single = kind == 'spsc'

    def __dealloc__(self):
        if self.core != NULL:
            self.core.ops.free(self.core)

    cdef int set_native_handler(self, NativeHandler handler) except -1:
        """Binds the queue to the one dispatcher that puts requests; None ends that."""
        if handler is not None and self.native_handler is not None:
            raise ValueError('another dispatcher uses this queue: give each its own')
        self.native_handler = handler
        return 0

    cdef int check_thread(self, unsigned long *ident, str what) except -1:
        """Kind "spsc": binds one side to the first thread that uses it."""
        cdef unsigned long current = PyThread_get_thread_ident()
        if ident[0] == 0:
            ident[0] = current
        elif ident[0] != current:
            raise RuntimeError(
                f"a queue of kind 'spsc' has one {what}, and it is another thread: "
                f"use kind 'mpmc'")
        return 0

    cdef int wait(self, pr_queue_side side, int64_t deadline_ns) except -1:
        """Returns when it is worth trying again; raises TimeoutError, or what a signal raises."""
        cdef int result
        while True:
            with nogil:
                if side == PR_QUEUE_PRODUCERS:
                    result = self.core.ops.wait_room(self.core, deadline_ns)
                else:
                    result = self.core.ops.wait_request(self.core, deadline_ns)
            if has_ended(
                result, 'the queue stayed full' if side == PR_QUEUE_PRODUCERS
                else 'the queue stayed empty'
            ):
                return 0

    cdef int put_request(self, pr_request *request, object timeout) except -1:
        cdef int64_t deadline_ns = -1
        cdef int result
        if self.single:
            self.check_thread(&self.producer_ident, 'producer')
        while True:
            result = self.core.ops.try_put(self.core, request, 1)
            if result == 1:
                return 0
            if result == -ESHUTDOWN:
                raise QueueClosed('the queue is closed')
            if deadline_ns == -1:
                deadline_ns = deadline_after(timeout)
            self.wait(PR_QUEUE_PRODUCERS, deadline_ns)

    cdef int get_requests(self, pr_request *requests, size_t max, object timeout) except -1:
        """Takes up to `max` requests; returns how many, at least one."""
        cdef int64_t deadline_ns = -1
        cdef int result
        if self.single:
            self.check_thread(&self.consumer_ident, 'consumer')
        while True:
            result = self.core.ops.try_get(self.core, requests, max)
            if result >= 0:
                return result
            if result == -ESHUTDOWN:
                raise QueueClosed('the queue is closed and empty')
            if deadline_ns == -1:
                deadline_ns = deadline_after(timeout)
            self.wait(PR_QUEUE_CONSUMERS, deadline_ns)

    # Putting

    def put(self, item, timeout=None):
        """Put an item; wait for room at most `timeout` seconds, for ever if it is None.

        Raises TimeoutError, or QueueClosed.
        """
        cdef pr_request request = object_request(item)
        try:
            self.put_request(&request, timeout)
        except BaseException:
            give_back(item, &request)
            raise

    def try_put(self, item):
        """Put an item if there is room; return whether it was put.  Raises QueueClosed."""
        cdef pr_request request
        cdef int result
        if self.single:
            self.check_thread(&self.producer_ident, 'producer')
        request = object_request(item)
        result = self.core.ops.try_put(self.core, &request, 1)
        if result != 1:
            give_back(item, &request)
            if result == -ESHUTDOWN:
                raise QueueClosed('the queue is closed')
        return result == 1

    def put_many(self, items, timeout=None):
        """Put all items of an iterable, in order; wait for room `timeout` seconds in all at most.

        Returns how many were put, which is fewer than all only where the time was over or the queue
        was closed in between.  Where none was, it raises TimeoutError or QueueClosed.
        """
        cdef list sequence = list(items)
        cdef size_t count = <size_t>len(sequence)
        cdef size_t done = 0
        cdef size_t made = 0
        cdef int64_t deadline_ns = deadline_after(timeout)
        cdef int result
        cdef pr_request *requests
        if self.single:
            self.check_thread(&self.producer_ident, 'producer')
        if count == 0:
            return 0
        requests = <pr_request *>PyMem_Malloc(count * sizeof(pr_request))
        if requests == NULL:
            raise MemoryError
        try:
            while made < count:
                requests[made] = object_request(sequence[made])
                made += 1
            while done < count:
                result = self.core.ops.try_put(self.core, requests + done, count - done)
                if result > 0:
                    done += <size_t>result
                elif result == -ESHUTDOWN:
                    raise QueueClosed('the queue is closed')
                else:
                    self.wait(PR_QUEUE_PRODUCERS, deadline_ns)
        except (TimeoutError, QueueClosed):
            if done == 0:
                raise
        finally:
            for i in range(done, made):
                give_back(sequence[i], &requests[i])
            PyMem_Free(requests)
        return done

    # Getting

    def get(self, timeout=None):
        """Take the oldest item; wait for one at most `timeout` seconds, for ever if it is None.

        Raises TimeoutError, or QueueClosed when the queue is closed and empty.
        """
        cdef pr_request request
        self.get_requests(&request, 1, timeout)
        return item_of(self, &request)

    def try_get(self, default=None):
        """Take the oldest item, or return `default` where there is none.

        Raises QueueClosed when the queue is closed and empty.
        """
        cdef pr_request request
        cdef int result
        if self.single:
            self.check_thread(&self.consumer_ident, 'consumer')
        result = self.core.ops.try_get(self.core, &request, 1)
        if result == 1:
            return item_of(self, &request)
        if result == -ESHUTDOWN:
            raise QueueClosed('the queue is closed and empty')
        return default

    def get_many(self, max, timeout=None):
        """Take up to `max` of the oldest items, as many as there are, at least one.

        It waits for the first as get() does, and for no other.
        """
        cdef pr_request requests[BATCH]
        cdef Py_ssize_t left = max
        cdef list items = []
        cdef int count
        if left < 1:
            raise ValueError('max must be at least 1')
        count = self.get_requests(requests, <size_t>min(left, BATCH), timeout)
        while count > 0:
            for i in range(count):
                items.append(item_of(self, &requests[i]))
            left -= count
            if left == 0 or count < BATCH:
                break
            count = self.core.ops.try_get(self.core, requests, <size_t>min(left, BATCH))
        return items

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.get()
        except QueueClosed:
            raise StopIteration from None

    # Its state

    def close(self):
        """Let puts fail from now on; gets take what is left and then raise QueueClosed.

        Everybody who waits is woken.  Does nothing the second time.
        """
        with nogil:
            self.core.ops.close(self.core)

    @property
    def closed(self):
        """True after close()."""
        return self.core.ops.is_closed(self.core)

    @property
    def capacity(self):
        """How many items fit: what was asked for, rounded up to a power of two."""
        return self.core.capacity

    @property
    def kind(self):
        """'mpmc', 'spsc' or 'mutex'."""
        return self.core.ops.name.decode()

    def __len__(self):
        """Return how many items wait; while others put and get, how many did a moment ago."""
        return <Py_ssize_t>self.core.ops.depth(self.core)

    def __bool__(self):
        return True  # a queue that is empty is still a queue

    def stats(self):
        """Return what the queue has counted, as QueueStats."""
        cdef pr_request_queue_stats stats
        self.core.ops.read_stats(self.core, &stats)
        return QueueStats(
            stats.puts, stats.gets, stats.depth_max, stats.put_sleeps, stats.get_sleeps,
            stats.put_wakes, stats.get_wakes)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    __class_getitem__ = classmethod(types.GenericAlias)

    def __repr__(self):
        state = ' closed' if self.closed else ''
        return f'<{type(self).__name__} {self.kind} {len(self)}/{self.capacity}{state}>'


cdef int give_back(object item, pr_request *request) except -1:
    """Undoes object_request() for a request that was not put."""
    if is_object_request(request):
        Py_DECREF(item)
    else:
        (<NativeRequest>item).moved = False
    return 0


# The garbage collector looks into the queue: an item may refer back to it.

ctypedef struct Visit:
    visitproc visit
    void *argument


cdef traverseproc traverse_fields = (<PyTypeObject *>QueueCore).tp_traverse
cdef inquiry clear_fields = (<PyTypeObject *>QueueCore).tp_clear


cdef int visit_request(pr_request *request, void *argument) noexcept:
    cdef Visit *visit = <Visit *>argument
    if not is_object_request(request):
        return 0
    return visit.visit(<PyObject *>request.owner, visit.argument)


cdef int traverse_queue(PyObject *self, visitproc visit, void *argument) noexcept:
    cdef Visit waiting
    cdef QueueCore queue_core = <QueueCore>self
    cdef int result = traverse_fields(self, visit, argument)
    waiting.visit = visit
    waiting.argument = argument
    if result == 0 and queue_core.core != NULL:
        result = queue_core.core.ops.visit(queue_core.core, visit_request, &waiting)
    return result


cdef int clear_queue(PyObject *self) noexcept:
    cdef QueueCore queue_core = <QueueCore>self
    cdef pr_request request
    cdef int result = clear_fields(self)
    while queue_core.core != NULL and queue_core.core.ops.try_get(
            queue_core.core, &request, 1) == 1:
        pr_request_release(&request)
    return result


(<PyTypeObject *>QueueCore).tp_traverse = traverse_queue
(<PyTypeObject *>QueueCore).tp_clear = clear_queue
