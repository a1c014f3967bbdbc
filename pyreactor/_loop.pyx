# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False, cdivision=True
"""The loop on the C core: callbacks, timers, descriptor watches and the turns themselves.

`LoopCore` owns the C loop.  `pyreactor.Loop` adds to it what asyncio's own base classes know about
connections, executors and subprocesses.  Unless said otherwise, a method may be called only from
the thread that runs the loop, or, while nothing runs it, from one thread at a time.
"""

import asyncio
import os
import sys
import threading
import weakref
from asyncio import base_events, exceptions, format_helpers
from asyncio.log import logger
from collections import Counter

cimport cython
from cpython.object cimport PyCallable_Check, PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from pyreactor._context cimport (
    PyContext_CopyCurrent,
    call_in_context,
    raise_pending,
    release,
)
from pyreactor.backend import io_uring_refusal
from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    PR_EDGE,
    PR_HISTOGRAM_BUCKETS,
    PR_READABLE,
    PR_TIMER_IDLE,
    PR_WRITABLE,
    c_bool,
    pr_callback,
    pr_counter_read,
    pr_histogram,
    pr_loop_abandon_after_fork,
    pr_loop_call_soon,
    pr_loop_cancel_timer,
    pr_loop_deinit,
    pr_loop_dispatch,
    pr_loop_end_run,
    pr_loop_init,
    pr_loop_pollable_fd,
    pr_loop_post,
    pr_loop_prepare,
    pr_loop_show_time,
    pr_loop_show_usual_time,
    pr_loop_start_timer,
    pr_loop_stats,
    pr_loop_take_inbox,
    pr_loop_take_ready,
    pr_loop_take_timer,
    pr_loop_visit_ops,
    pr_loop_visit_scheduled,
    pr_loop_wait,
    pr_loop_wakeup,
    pr_now_ns,
    pr_op,
    pr_ready_queue_count,
    pr_stats_read_times,
    pr_timer,
    pr_watch,
    pr_watch_find,
    pr_watch_init,
    pr_watch_is_active,
    pr_watch_renew,
    pr_watch_start,
    pr_watch_stop,
    pr_watch_want,
)


cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define PR_HAS_GIL 0
    #else
    #define PR_HAS_GIL 1
    #endif
    """
    const int HAS_GIL "PR_HAS_GIL"


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    void PyObject_GC_Track(PyObject *object)
    void PyObject_GC_UnTrack(PyObject *object)
    int PyObject_GC_IsTracked(PyObject *object)
    int PyErr_CheckSignals() except -1
    int PyObject_GenericSetAttr(object owner, object name, PyObject *value) except -1
    PyObject **tuple_items "&PyTuple_GET_ITEM" (PyObject *tuple, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *tuple)
    ctypedef int (*visitproc)(PyObject *object, void *argument) noexcept
    ctypedef int (*traverseproc)(PyObject *self, visitproc visit, void *argument) noexcept
    ctypedef PyObject *(*iternextfunc)(PyObject *self) except? NULL
    ctypedef int (*initproc)(object self, object args, object kwargs) except -1
    ctypedef struct PyTypeObject
    ctypedef object (*newfunc)(PyTypeObject *type, object args, PyObject *kwargs)
    ctypedef struct PyTypeObject:
        initproc tp_init
        newfunc tp_new
        traverseproc tp_traverse
        iternextfunc tp_iternext


# Looked up once; these are asyncio's own classes, which debuggers and `asyncio ps` know.
cdef object asyncio_handle = asyncio.Handle
cdef object asyncio_timer_handle = asyncio.TimerHandle
cdef object asyncio_threadsafe_handle = getattr(  # from Python 3.14 on
    asyncio.events, '_ThreadSafeHandle', asyncio.Handle)
cdef object asyncio_task = asyncio.Task
cdef object asyncio_future = asyncio.Future

cdef tuple no_arguments = ()
cdef newfunc new_object = (<PyTypeObject *>asyncio_future).tp_new
cdef initproc initialize = (<PyTypeObject *>asyncio_future).tp_init

cdef double NS_PER_SECOND = 1e9
cdef double DEADLINE_NS_MAX = 9.2e18  # a double that surely fits into 64 bits


cdef int64_t deadline_of(double when) noexcept:
    """The first nanosecond at which the loop's clock shows `when` seconds, or more."""
    cdef double deadline = when * NS_PER_SECOND
    cdef int64_t deadline_ns
    if not deadline > -DEADLINE_NS_MAX:
        return 0  # long ago; so is what is not a number, as in asyncio
    if deadline > DEADLINE_NS_MAX:
        return INT64_MAX
    deadline_ns = <int64_t>deadline
    while deadline_ns / NS_PER_SECOND < when:
        deadline_ns += 1
    return deadline_ns


cdef int run_handle(pr_callback *node) noexcept:
    """Runs a handle that leaves the ready queue, whose reference goes with it."""
    cdef Handle handle = <Handle>node.owner
    Py_DECREF(handle)
    show_to_collector(handle)
    return 0 if handle._cancelled else handle.run()


# Handles are many and short-lived, and what a running loop has scheduled is no garbage:
# until a handle runs or the run ends, the cyclic garbage collector is spared from looking at it.

cdef int hide_from_collector(Handle handle) except -1:
    if handle._loop.thread_ident != 0:
        PyObject_GC_UnTrack(<PyObject *>handle)
        handle._loop.hidden_handles += 1
    return 0


cdef int show_to_collector(Handle handle) noexcept:
    if not PyObject_GC_IsTracked(<PyObject *>handle):
        PyObject_GC_Track(<PyObject *>handle)
        handle._loop.hidden_handles -= 1
    return 0


cdef int show_scheduled(pr_callback *callback, void *argument) noexcept:
    return show_to_collector(<Handle>callback.owner)


cdef int drop_handle(pr_callback *callback) except -1:
    """Lets go of a handle that will not run; whoever keeps it keeps an object like any other."""
    show_to_collector(<Handle>callback.owner)
    Py_DECREF(<Handle>callback.owner)
    return 0


cdef int set_up(
    Handle handle, LoopCore loop, object callback, tuple args, object context
) except -1:
    """Fills a new handle; `context` None stands for a copy of the current one."""
    if not PyCallable_Check(callback):
        raise TypeError(f'a callable object was expected, got {callback!r}')
    handle._loop = loop
    handle._callback = callback
    handle._args = args
    handle._context = PyContext_CopyCurrent() if context is None else context
    handle.timer.callback.run = run_handle
    handle.timer.callback.owner = <void *>handle
    if loop._debug:
        handle._source_traceback = format_helpers.extract_stack(sys._getframe(0))
    return 0


@cython.freelist(256)
cdef class Handle:
    """What call_soon() returns: an asyncio.Handle that lives in C.

    isinstance(handle, asyncio.Handle) holds: `__class__` says so.
    """

    @property
    def __class__(self):
        return asyncio_handle

    cdef int run(self) noexcept:
        # Both outlive the call, even where the callback cancels this very handle.
        cdef object callback = self._callback
        cdef object args = self._args
        cdef PyObject *result
        if self._loop.measures():
            return self.run_measured()
        result = call_in_context(
            <PyObject *>self._context, <PyObject *>callback,
            tuple_items(<PyObject *>args, 0), <size_t>PyTuple_GET_SIZE(<PyObject *>args))
        if result == NULL:
            return self.report_failure()
        release(result)
        return 0

    cdef int run_measured(self) noexcept:
        """Runs it where somebody wants to hear of callbacks that take long."""
        cdef LoopCore loop = self._loop
        cdef object callback = self._callback
        cdef object args = self._args
        cdef int stop = 0
        cdef int64_t started_ns = pr_now_ns()
        cdef int64_t duration_ns
        loop._current_handle = self
        result = call_in_context(
            <PyObject *>self._context, <PyObject *>callback,
            tuple_items(<PyObject *>args, 0), <size_t>PyTuple_GET_SIZE(<PyObject *>args))
        if result == NULL:
            stop = self.report_failure()
        else:
            release(result)
        duration_ns = pr_now_ns() - started_ns
        if duration_ns >= loop.slow_ns:
            stop |= loop.report_slow(duration_ns, self)
        loop._current_handle = None
        return stop

    cdef int report_failure(self) noexcept:
        """Gives the exception that is set to the loop's exception handler."""
        try:
            raise_pending()
        except (SystemExit, KeyboardInterrupt) as exc:
            return self._loop.escape(exc)
        except BaseException as exc:
            source = format_helpers._format_callback_source(self._callback, self._args or ())
            context = {
                'message': f'Exception in callback {source}',
                'exception': exc,
                'handle': self,
            }
            if self._source_traceback:
                context['source_traceback'] = self._source_traceback
            return self._loop.report(context)
        return 0

    cdef int forget(self) except -1:
        """Marks it cancelled and lets go of what it refers to."""
        self._cancelled = True
        if self._loop._debug:
            self.frozen_repr = repr(self)
        self._callback = None
        self._args = None
        return 0

    def cancel(self):
        """Keep the callback from being called.  Does nothing the second time."""
        if not self._cancelled:
            self.forget()

    def cancelled(self):
        """Return True after cancel()."""
        return self._cancelled

    def get_context(self):
        """Return the context in which the callback is called."""
        return self._context

    def _run(self):
        cdef LoopCore loop = self._loop
        if self.run() != 0:
            loop.raise_escaping()

    _repr_info = asyncio.Handle._repr_info

    def __repr__(self):
        return self.frozen_repr or '<{}>'.format(' '.join(self._repr_info()))


cdef class ThreadSafeHandle(Handle):
    """What call_soon_threadsafe() returns: cancel() works from any thread.

    As of CPython 3.14, whose class `__class__` names: another thread that cancels it while the
    callback runs, or asks whether it is cancelled, waits for the callback's end.
    """

    @property
    def __class__(self):
        return asyncio_threadsafe_handle

    cdef int run(self) noexcept:
        cdef LoopCore loop = self._loop
        cdef int stop
        cdef bint cancelled
        with cython.critical_section(loop):
            cancelled = self._cancelled
            if not cancelled:
                loop.running_threadsafe = <void *>self
        if cancelled:
            return 0
        stop = Handle.run(self)
        waiting = None
        with cython.critical_section(loop):
            loop.running_threadsafe = NULL
            if loop.waiting_threads:
                waiting = loop.waiting_threads
                loop.waiting_threads = []
        if waiting is not None:
            for ended in waiting:
                ended.set()
        return stop

    cdef int settle(self, bint cancelling) except -1:
        """Cancels it, if that is wanted; waits while another thread runs the callback."""
        cdef LoopCore loop = self._loop
        cdef bint running
        ended = None
        if loop.thread_ident != PyThread_get_thread_ident():
            ended = threading.Event()
        with cython.critical_section(loop):
            if cancelling and not self._cancelled:
                self.forget()
            running = ended is not None and loop.running_threadsafe == <void *>self
            if running:
                loop.waiting_threads.append(ended)
        if running:
            ended.wait()
        return 0

    def cancel(self):
        """Keep the callback from being called, or wait for its end.  Any thread."""
        self.settle(True)

    def cancelled(self):
        """Return True after cancel(); waits for the end of a callback that runs.  Any thread."""
        self.settle(False)
        return self._cancelled


cdef class TimerHandle(Handle):
    """What call_later() and call_at() return: an asyncio.TimerHandle that lives in C.

    A cancelled timer leaves the loop's heap at once.
    """

    @property
    def __class__(self):
        return asyncio_timer_handle

    def cancel(self):
        """Keep the callback from being called.  Does nothing the second time."""
        if self._cancelled:
            return
        self.forget()
        if pr_loop_cancel_timer(&self._loop.core, &self.timer):
            show_to_collector(self)
            Py_DECREF(self)  # the heap's

    def when(self):
        """Return the time at which the callback is due, in seconds on the loop's clock."""
        return self.when_seconds

    @property
    def _when(self):
        return self.when_seconds

    @property
    def _scheduled(self):
        return self.timer.heap_index != PR_TIMER_IDLE

    _repr_info = asyncio.TimerHandle._repr_info

    def __hash__(self):
        return hash(self.when_seconds)

    def __eq__(self, other):
        return asyncio_timer_handle.__eq__(self, other)

    def __lt__(self, other):
        return asyncio_timer_handle.__lt__(self, other)

    def __le__(self, other):
        return asyncio_timer_handle.__le__(self, other)

    def __gt__(self, other):
        return asyncio_timer_handle.__gt__(self, other)

    def __ge__(self, other):
        return asyncio_timer_handle.__ge__(self, other)


@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Waiter:
    """What a task awaits until a descriptor can be read or written.  Awaited once, by one task.

    To the task it is a future, but an event resumes the task at once, not in the next turn: what
    has come is then received by the task itself, and a task that is cancelled first loses nothing.
    """

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def throw(self, exception, value=None, traceback=None):
        """Stop waiting and raise `exception`."""
        self.abandon()
        if value is None:
            value = exception() if isinstance(exception, type) else exception
        raise value

    def close(self):
        """Stop waiting."""
        self.abandon()

    cdef int end_soon(self) except -1:
        """Ends the wait from elsewhere than the event: the task tries again in the next turn."""
        cdef object callback = self.callback
        self.watch = None
        self.next = None
        self.callback = None
        if callback is not None:
            self.loop.call_soon(callback, self, context=self.context)
        return 0

    cdef int abandon(self) except -1:
        self.callback = None
        cdef DescriptorWatch watch = self.watch  # kept alive: it forgets the waiter, who holds it
        if watch is not None:
            watch.remove(self)
        return 0

    cdef int resume(self) noexcept:
        """Runs the task that waits: the descriptor is ready, or the wait has lost its meaning."""
        cdef object callback = self.callback
        if callback is None:
            return 0
        self.callback = None
        return self.loop.call_now(callback, self, self.context)

    # A future's methods, as far as tasks use them

    @property
    def _asyncio_future_blocking(self):
        return self.blocking

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, blocking):
        self.blocking = blocking

    def get_loop(self):
        """Return the loop."""
        return self.loop

    def add_done_callback(self, callback, *, context=None):
        """Call `callback(self)` when the wait is over.  Once only: RuntimeError."""
        if self.callback is not None:
            raise RuntimeError('one task only can wait for this')
        self.context = PyContext_CopyCurrent() if context is None else context
        if self.watch is None:
            self.loop.call_soon(callback, self, context=self.context)
        else:
            self.callback = callback

    def remove_done_callback(self, callback):
        """Undo add_done_callback(); return how many were removed."""
        if self.callback != callback:
            return 0
        self.callback = None
        return 1

    def cancel(self, msg=None):
        """Stop waiting; the task hears of it in the next turn.  Returns False where it is over."""
        cdef DescriptorWatch watch = self.watch  # as in abandon()
        if watch is None:
            return False
        self.cancelled = True
        self.cancel_message = msg
        watch.remove(self)
        self.end_soon()
        return True

    def done(self):
        """Return True once the wait is over."""
        return self.watch is None

    def result(self):
        """Return None once the wait is over; raises CancelledError where it was cancelled."""
        if self.watch is not None:
            raise exceptions.InvalidStateError('Result is not set.')
        if self.cancelled:
            if self.cancel_message is None:
                raise exceptions.CancelledError
            raise exceptions.CancelledError(self.cancel_message)

    def __repr__(self):
        state = 'pending' if self.watch is not None else 'cancelled' if self.cancelled else 'ready'
        return f'<Waiter {state}>' if self.watch is None else (
            f'<Waiter {state} fd={self.watch.watch.fd}>')


cdef PyObject *next_step(PyObject *object) except? NULL:
    """Waiter.__next__: itself, to be waited for; then the end."""
    cdef Waiter self = <Waiter>object
    if not self.yielded and self.watch is not None:
        self.yielded = self.blocking = True
        Py_INCREF(self)
        return object
    if self.watch is not None:
        raise RuntimeError("await wasn't used with future")
    self.result()
    return NULL  # without an exception: the end, and no StopIteration to be made and caught


(<PyTypeObject *>Waiter).tp_iternext = next_step


cdef int notify_descriptor(pr_watch *watch, uint32_t events) noexcept:
    cdef DescriptorWatch self = <DescriptorWatch>watch.owner  # held: a callback may remove it
    return self.notify(events)


cdef c_bool give_way(pr_watch *watch) noexcept:
    """A transport takes over the descriptor: whoever waited for it finds that out by himself."""
    cdef DescriptorWatch self = <DescriptorWatch>watch.owner
    if self.reader is not None or self.writer is not None:
        return False
    try:
        self.stop()
    except BaseException as exc:
        self.loop.escape(exc)
    return not pr_watch_is_active(watch)


@cython.final
cdef class DescriptorWatch:
    """Who wants what of one descriptor that belongs to somebody else."""

    cdef int notify(self, uint32_t events) noexcept:
        cdef Handle handle = self.reader
        cdef Waiter waiters
        cdef int stop = 0
        if events & PR_READABLE:
            if handle is not None:
                stop = self.call(handle, PR_READABLE)
            if self.receivers is not None:
                waiters, self.receivers = self.receivers, None
                stop |= self.resume(waiters)
        if events & PR_WRITABLE:
            handle = self.writer  # None where the reader has just removed it
            if not stop and handle is not None:
                stop = self.call(handle, PR_WRITABLE)
            if self.senders is not None:
                waiters, self.senders = self.senders, None
                stop |= self.resume(waiters)
        return stop

    cdef int resume(self, Waiter first) noexcept:
        """Ends the wait of a whole list: each tries, and waits again if another was faster."""
        cdef Waiter waiter = first
        cdef Waiter following
        cdef int stop = 0
        while waiter is not None:  # all of them first: resumed tasks may cancel each other
            waiter.watch = None
            waiter = waiter.next
        try:
            self.update()
        except BaseException as exc:
            stop = self.loop.escape(exc)
        waiter = first
        while waiter is not None:
            following, waiter.next = waiter.next, None
            stop |= waiter.resume()
            waiter = following
        return stop

    cdef int add(self, Waiter waiter, uint32_t event) except -1:
        """Puts a waiter at the end of its list."""
        cdef Waiter last = self.receivers if event == PR_READABLE else self.senders
        waiter.watch = self
        if last is not None:
            while last.next is not None:
                last = last.next
            last.next = waiter
        elif event == PR_READABLE:
            self.receivers = waiter
        else:
            self.senders = waiter
        return 0

    cdef int remove(self, Waiter waiter) except -1:
        """Takes a waiter out of its list, before its time."""
        self.unlink(waiter)
        return self.update()

    cdef int unlink(self, Waiter waiter) except -1:
        cdef Waiter previous
        waiter.watch = None
        if self.receivers is waiter:
            self.receivers = waiter.next
        elif self.senders is waiter:
            self.senders = waiter.next
        else:
            for previous in (self.receivers, self.senders):
                while previous is not None and previous.next is not waiter:
                    previous = previous.next
                if previous is not None:
                    previous.next = waiter.next
                    break
        waiter.next = None
        return 0

    cdef list waiters(self):
        """All who wait, in order."""
        cdef Waiter waiter
        cdef list found = []
        for waiter in (self.receivers, self.senders):
            while waiter is not None:
                found.append(waiter)
                waiter = waiter.next
        return found

    cdef bint is_registered_for(self, object sock) except -1:
        return self.socket is not None and self.socket() is sock

    cdef int register_for(self, object sock, uint32_t event) except -1:
        """Registers anew, for a wait for `sock` that begins."""
        cdef bint called = self.reader is not None or self.writer is not None
        cdef int error = pr_watch_renew(
            &self.loop.core.watches, &self.watch,
            self.wanted() | event | (0 if called else PR_EDGE))
        if error < 0:
            self.update()
            raise_errno(error)
        self.end_waits_of_closed()
        self.socket = None
        if not called:
            try:
                self.socket = weakref.ref(sock)
            except TypeError:
                pass  # it is registered each time
        return 0

    cdef int end_waits_of_closed(self) except -1:
        """Lets those who wait for a socket that does not have this descriptor any more find out."""
        cdef Waiter waiter
        for waiter in self.waiters():
            if waiter.sock.fileno() != self.watch.fd:
                self.unlink(waiter)
                waiter.end_soon()
        return 0

    cdef int update(self) except -1:
        """Some have stopped to wait: asks for less, which costs no system call, or stops."""
        cdef uint32_t wanted = self.wanted()
        if not pr_watch_is_active(&self.watch):
            return 0
        if wanted or (self.socket is not None and self.loop.core.backend.ops.has_edges):
            # Only a bit in memory: what is registered already includes it.
            pr_watch_want(
                &self.loop.core.watches, &self.watch,
                wanted | (self.watch.registered & PR_EDGE))
        else:
            self.stop()
        return 0

    cdef int stop(self) except -1:
        """Ends the watch, and lets those who still wait try, and fail, once more."""
        cdef Waiter waiter
        del self.loop.descriptor_watches[self.watch.fd]
        pr_watch_stop(&self.loop.core.watches, &self.watch)
        self.loop.retired.append(self)  # the core may look at it until the turn ends
        self.socket = None
        for waiter in self.waiters():
            waiter.end_soon()
        return 0

    cdef int call(self, Handle handle, uint32_t event) noexcept:
        if not handle._cancelled:
            return handle.run()
        try:  # cancelled by hand: stop watching, as asyncio does
            self.loop.unwatch_descriptor(self.watch.fd, event)
        except BaseException as exc:
            return self.loop.escape(exc)
        return 0

    cdef Handle exchange(self, uint32_t event, Handle handle):
        """Puts `handle` in the event's place and returns the one that was there."""
        cdef Handle previous
        if event == PR_READABLE:
            previous, self.reader = self.reader, handle
        else:
            previous, self.writer = self.writer, handle
        return previous

    cdef uint32_t wanted(self) noexcept:
        cdef uint32_t events = 0
        if self.reader is not None or self.receivers is not None:
            events |= PR_READABLE
        if self.writer is not None or self.senders is not None:
            events |= PR_WRITABLE
        return events


cdef int descriptor_of(object fd) except -1:
    """The number of a descriptor given as such or as an object with fileno()."""
    number = fd
    if not isinstance(number, int):
        try:
            number = int(number.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f'Invalid file object: {fd!r}') from None
    if number < 0:
        raise ValueError(f'Invalid file descriptor: {number}')
    return number


cdef tuple read_histogram(const pr_histogram *histogram):
    return tuple([
        pr_counter_read(&histogram.buckets[index]) for index in range(PR_HISTOGRAM_BUCKETS)])


cdef class LoopCore:
    """The C loop as a Python object: all of the loop that runs often."""

    def __cinit__(self, *args, backend=None, **kwargs):
        self._closed = True  # until there is something to close
        self.descriptor_watches = {}
        self.open_transports = set()
        self.listeners = {}
        self.retired = []
        self.waiting_threads = []
        if backend is None:
            backend = os.environ.get('PYREACTOR_BACKEND') or 'auto'
        name = backend.encode()
        error = pr_loop_init(&self.core, name)
        if error < 0:
            if error == -95:  # ENOTSUP
                raise ValueError(
                    f"there is no backend {backend!r}: choose 'auto', 'epoll' or 'io_uring' "
                    f"(argument `backend` or environment variable PYREACTOR_BACKEND)")
            if backend == 'io_uring':
                raise OSError(
                    -error, f"io_uring cannot be used here, choose the backend 'auto' or 'epoll': "
                    f"{io_uring_refusal(-error)}")
            raise_errno(error)
        self.alive = True
        self._closed = False
        self.look_for_clock()

    def __dealloc__(self):
        if self.alive:
            pr_loop_deinit(&self.core)

    @property
    def backend(self):
        """The name of the kernel interface in use: 'epoll' or 'io_uring'."""
        return self.core.backend.ops.name.decode()

    # Checks

    cdef int check_usable(self) except -1:
        """Raises where the loop is closed or another thread runs it."""
        cdef unsigned long ident = self.thread_ident
        if self._closed or (ident != 0 and ident != PyThread_get_thread_ident()):
            return self.explain_unusable()
        return 0

    cdef int explain_unusable(self) except -1:
        if self.forked:
            raise RuntimeError(
                'this event loop belongs to the parent process: a forked child must make its '
                'own with pyreactor.new_event_loop()')
        if self._closed:
            raise RuntimeError('Event loop is closed')
        raise RuntimeError(
            'Non-thread-safe operation invoked on an event loop other than the current one: '
            'from another thread use loop.call_soon_threadsafe() or '
            'asyncio.run_coroutine_threadsafe()')

    def _check_closed(self):
        if self._closed:
            self.explain_unusable()

    def _check_not_forked(self):
        if self.forked:
            self.explain_unusable()

    def _check_thread(self):
        self.check_usable()

    def is_closed(self):
        """Return True after close().  Any thread."""
        return self._closed

    def is_running(self):
        """Return True while a thread runs the loop.  Any thread."""
        return self.thread_ident != 0

    @property
    def _thread_id(self):
        return self.thread_ident or None

    @_thread_id.setter
    def _thread_id(self, ident):
        self.thread_ident = 0 if ident is None else ident

    def get_debug(self):
        """Return True in debug mode.  Any thread."""
        return self._debug

    # Callbacks

    def call_soon(self, callback, *args, context=None):
        """Schedule `callback(*args)` for the next turn and return its handle.

        `context` is the contextvars.Context to call it in; by default a copy of the current one.
        Raises TypeError for what cannot be called and RuntimeError where the loop is closed or
        run by another thread.  Source: the asyncio documentation.
        """
        cdef Handle handle
        self.check_usable()
        if self._debug:
            self._check_callback(callback, 'call_soon')
        if self.catching:
            self.catching = False
            self.caught = (callback, args, context)
            return None  # to a future, which has no use for it
        handle = Handle.__new__(Handle)
        set_up(handle, self, callback, args, context)
        self.queue(handle)
        hide_from_collector(handle)
        return handle

    def call_soon_threadsafe(self, callback, *args, context=None):
        """Like call_soon(), from any thread; wakes the loop where it sleeps.

        Callbacks from one thread run in the order in which it scheduled them.
        """
        cdef ThreadSafeHandle handle
        if self._closed:
            self.explain_unusable()
        if self._debug:
            self._check_callback(callback, 'call_soon_threadsafe')
        handle = ThreadSafeHandle.__new__(ThreadSafeHandle)
        set_up(handle, self, callback, args, context)
        if self.thread_ident == PyThread_get_thread_ident():
            self.queue(handle)
        else:
            if HAS_GIL:  # which this thread has: nobody else counts now
                hide_from_collector(handle)
            Py_INCREF(handle)
            pr_loop_post(&self.core, &handle.timer.callback)
        return handle

    def call_later(self, delay, callback, *args, context=None):
        """Schedule `callback(*args)` to be called after `delay` seconds, never earlier.

        A negative delay counts as past, an infinite one as never.  Otherwise as call_soon().
        """
        if delay is None:
            raise TypeError('delay must not be None')
        cdef object when
        if self.has_own_clock:
            when = self.time() + delay
        elif type(delay) is float:
            when = pr_now_ns() / NS_PER_SECOND + <double>delay
        else:
            when = pr_now_ns() / NS_PER_SECOND + delay
        return self.start_timer(when, callback, args, context, 'call_later')

    def call_at(self, when, callback, *args, context=None):
        """Schedule `callback(*args)` for the time `when`, in seconds on the clock of time()."""
        if when is None:
            raise TypeError('when cannot be None')
        return self.start_timer(when, callback, args, context, 'call_at')

    cdef TimerHandle start_timer(
        self, object when, object callback, tuple args, object context, str method
    ):
        cdef TimerHandle handle
        self.check_usable()
        if self._debug:
            self._check_callback(callback, method)
        handle = TimerHandle.__new__(TimerHandle)
        handle.timer.heap_index = PR_TIMER_IDLE
        handle.when_seconds = when
        set_up(handle, self, callback, args, context)
        handle.timer.deadline_ns = deadline_of(handle.when_seconds)
        Py_INCREF(handle)
        if pr_loop_start_timer(&self.core, &handle.timer) < 0:
            Py_DECREF(handle)
            raise MemoryError
        if self.thread_ident == 0 and self.core.exposed:
            pr_loop_wakeup(&self.core)
        hide_from_collector(handle)
        return handle

    def time(self):
        """Return the loop's clock in seconds: time.monotonic(), to the nanosecond.  Any thread."""
        return pr_now_ns() / NS_PER_SECOND

    # A program may put its own time() in the place of the one above, in a subclass or, as tests do,
    # in the loop itself.  Timers go by that clock then; whoever does not pays nothing for it.

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, <PyObject *>value)
        if name == 'time':
            self.time_is_set = True
            self.look_for_clock()

    def __delattr__(self, name):
        PyObject_GenericSetAttr(self, name, NULL)
        if name == 'time':
            self.time_is_set = False
            self.look_for_clock()

    cdef int look_for_clock(self) except -1:
        self.has_own_clock = self.time_is_set or type(self).time is not usual_time
        if not self.has_own_clock:
            pr_loop_show_usual_time(&self.core)
        return 0

    cdef int read_own_clock(self) except -1:
        if self.has_own_clock:
            pr_loop_show_time(&self.core, deadline_of(self.time()))
        return 0

    cdef int queue(self, Handle handle) except -1:
        """Puts `handle` in the ready queue, once more where it is there already."""
        if self.thread_ident == 0:
            pr_loop_take_inbox(&self.core)  # what came before must stay before
            if self.core.exposed:
                pr_loop_wakeup(&self.core)
        Py_INCREF(handle)
        if pr_loop_call_soon(&self.core, &handle.timer.callback) < 0:
            Py_DECREF(handle)
            raise MemoryError
        return 0

    cdef int call_now(self, object callback, object argument, object context) noexcept:
        """Calls what resumes a task, in an event's callback; returns non-zero to end the turn.

        Where somebody wants to hear of slow callbacks it takes the usual way, on which each is
        measured and named.
        """
        cdef PyObject *argument_pointer = <PyObject *>argument
        cdef PyObject *result
        try:
            if self.measures():
                self.call_soon(callback, argument, context=context)
                return 0
            # No event is any concern of what the task does: another task cannot run inside of it.
            self.core.in_event = False
            result = call_in_context(
                <PyObject *>context, <PyObject *>callback, &argument_pointer, 1)
            self.core.in_event = True
            if result == NULL:
                raise_pending()
            release(result)
        except (SystemExit, KeyboardInterrupt) as exc:
            return self.escape(exc)
        except BaseException as exc:
            return self.report({
                'message': f'Exception in callback {callback!r}', 'exception': exc})
        return 0

    cdef int end_wait(self, object future) except -1:
        """Sets a future's result, None: inside of an event, the task that waits for it goes on now.

        The future schedules the task's step with call_soon(), where it is caught.  Raises
        InvalidStateError where the future has ended.
        """
        cdef tuple caught
        if not self.core.in_event:
            future.set_result(None)
            return 0
        self.catching = True
        try:
            future.set_result(None)
        finally:
            self.catching = False
        caught, self.caught = self.caught, None
        if caught is not None:
            callback, (argument,), context = caught
            return self.call_now(callback, argument, context)
        return 0

    def _new_handle(self, callback, tuple args):
        """Return a handle that is not scheduled yet."""
        cdef Handle handle = Handle.__new__(Handle)
        set_up(handle, self, callback, args, None)
        return handle

    def _requeue(self, Handle handle not None):
        """Run a handle (again) in the next turn: a signal's, which lives on."""
        self.queue(handle)

    # Tasks and futures: asyncio's own

    def create_future(self):
        """Return an asyncio.Future on this loop."""
        # As asyncio.Future(loop=self), without making the arguments each time.
        if self.future_arguments is None:
            self.future_arguments = {'loop': self}
        future = new_object(<PyTypeObject *>asyncio_future, no_arguments, NULL)
        initialize(future, no_arguments, self.future_arguments)
        return future

    def create_task(self, coro, *, name=None, context=None, **kwargs):
        """Schedule a coroutine and return its asyncio.Task.

        Takes what the running Python's asyncio takes; a task factory gets all of it.
        """
        if self._task_factory is None and not self._debug and not kwargs:
            if self._closed:
                self.explain_unusable()
            if context is None and name is None:
                return asyncio_task(coro, loop=self)
            return asyncio_task(coro, loop=self, name=name, context=context)
        if name is not None:
            kwargs['name'] = name
        if context is not None:
            kwargs['context'] = context
        return base_events.BaseEventLoop.create_task(self, coro, **kwargs)

    # Descriptors

    def add_reader(self, fd, callback, *args):
        """Call `callback(*args)` whenever `fd` can be read, has hung up or has an error.

        `fd` is a descriptor or an object with fileno(); its owner closes it after remove_reader().
        Replaces an earlier reader.  Raises ValueError for what is no descriptor, RuntimeError for
        one that a transport uses and OSError for one that cannot be waited for.
        """
        self.check_usable()
        self._ensure_fd_no_transport(fd)
        self.watch_descriptor(fd, PR_READABLE, callback, args, None)

    def remove_reader(self, fd):
        """Stop watching `fd` for reading.  Returns True where it was watched."""
        self._ensure_fd_no_transport(fd)
        return self._remove_reader(fd)

    def add_writer(self, fd, callback, *args):
        """Call `callback(*args)` whenever `fd` can be written.  Otherwise as add_reader()."""
        self.check_usable()
        self._ensure_fd_no_transport(fd)
        self.watch_descriptor(fd, PR_WRITABLE, callback, args, None)

    def remove_writer(self, fd):
        """Stop watching `fd` for writing.  Returns True where it was watched."""
        self._ensure_fd_no_transport(fd)
        return self._remove_writer(fd)

    # asyncio's own transports and sock_*() come through these.

    def _add_reader(self, fd, callback, *args, context=None):
        self.check_usable()
        return self.watch_descriptor(fd, PR_READABLE, callback, args, context)

    def _remove_reader(self, fd):
        if self._closed:
            return False
        self.check_usable()
        return self.unwatch_descriptor(fd, PR_READABLE)

    def _add_writer(self, fd, callback, *args, context=None):
        self.check_usable()
        return self.watch_descriptor(fd, PR_WRITABLE, callback, args, context)

    def _remove_writer(self, fd):
        if self._closed:
            return False
        self.check_usable()
        return self.unwatch_descriptor(fd, PR_WRITABLE)

    def _ensure_fd_no_transport(self, fd):
        cdef int number = descriptor_of(fd)
        cdef pr_watch *watch = pr_watch_find(&self.core.watches, number)
        transport = None
        if watch != NULL and watch.on_ready != notify_descriptor:
            if watch.owner == NULL or watch.owner == <void *>&self.core:
                raise RuntimeError(f'File descriptor {fd!r} is used by the event loop itself')
            transport = <object>watch.owner
        else:
            transport = self._transports.get(number)
            if transport is not None and transport.is_closing():
                transport = None
        if transport is not None:
            raise RuntimeError(f'File descriptor {fd!r} is used by transport {transport!r}')

    def _watched_events(self, fd):
        """Return (readable, writable): what `fd` is watched for."""
        cdef DescriptorWatch watch = self.find_watch(fd)
        if watch is None:
            return False, False
        return watch.reader is not None, watch.writer is not None

    def _stop_listening(self, fd):
        listener = self.listeners.pop(fd, None)
        if listener is not None:
            listener.stop()
            self.retired.append(listener)

    cdef DescriptorWatch find_watch(self, int fd):
        return self.descriptor_watches.get(fd)

    cdef Handle watch_descriptor(
        self, object fd, uint32_t event, object callback, tuple args, object context
    ):
        cdef int number = descriptor_of(fd)
        cdef DescriptorWatch watch = self.find_watch(number)
        cdef Handle handle = Handle.__new__(Handle)
        cdef Handle previous
        cdef int error
        set_up(handle, self, callback, args, context)
        if watch is None:
            watch = self.start_watch(number, event)
        else:
            error = pr_watch_renew(
                &self.core.watches, &watch.watch, watch.wanted() | event)
            if error < 0:
                raise_errno(error)
            watch.socket = None
            watch.end_waits_of_closed()  # the descriptor may be another than they wait for
        previous = watch.exchange(event, handle)
        if previous is not None:
            previous.cancel()
        return handle

    cdef bint unwatch_descriptor(self, object fd, uint32_t event) except -1:
        cdef DescriptorWatch watch = self.find_watch(descriptor_of(fd))
        cdef Handle previous
        if watch is None:
            return False
        previous = watch.exchange(event, None)
        if watch.wanted() == 0:
            watch.stop()
        else:  # where the descriptor was closed before, the kernel has forgotten it
            pr_watch_renew(&self.core.watches, &watch.watch, watch.wanted())
        if previous is None:
            return False
        previous.cancel()
        return True

    cdef DescriptorWatch start_watch(self, int fd, uint32_t events):
        """A new watch on a descriptor that has none."""
        cdef DescriptorWatch watch = DescriptorWatch.__new__(DescriptorWatch)
        cdef int error
        watch.loop = self
        pr_watch_init(&watch.watch, notify_descriptor, <void *>watch)
        watch.watch.gives_way = give_way
        error = pr_watch_start(&self.core.watches, &watch.watch, fd, events)
        if error < 0:
            raise_errno(error)
        self.descriptor_watches[fd] = watch
        return watch

    def _wait_readable(self, sock):
        """Return an awaitable: until `sock` can be read, as far as anybody can tell.

        For whoever has tried to read and found nothing, and tries again after it.  Raises
        RuntimeError where a transport uses the socket.
        """
        return self.wait_for(sock, PR_READABLE)

    def _wait_writable(self, sock):
        """Return an awaitable: until `sock` can be written.  Otherwise as _wait_readable()."""
        return self.wait_for(sock, PR_WRITABLE)

    def _forget_registration(self, sock):
        """Let the next wait for `sock` ask the kernel anew: the socket has become another."""
        cdef DescriptorWatch watch = self.find_watch(sock.fileno())
        if watch is not None:
            watch.socket = None

    cdef int end_waits(self, int fd) except -1:
        """The descriptor will be closed: lets those who wait for it find that out."""
        cdef DescriptorWatch watch = self.find_watch(fd)
        if watch is not None:
            watch.stop()
        return 0

    cdef Waiter wait_for(self, object sock, uint32_t event):
        cdef int fd = descriptor_of(sock.fileno())
        cdef pr_watch *known
        cdef DescriptorWatch watch
        cdef Waiter waiter = Waiter.__new__(Waiter)
        cdef int error
        waiter.loop = self
        waiter.sock = sock
        self.check_usable()
        known = pr_watch_find(&self.core.watches, fd)
        if (
            known != NULL and known.on_ready == notify_descriptor
            and (<DescriptorWatch>known.owner).is_registered_for(sock)
        ):
            watch = <DescriptorWatch>known.owner
            error = pr_watch_want(
                &self.core.watches, known, watch.wanted() | event | PR_EDGE)
            if error < 0:
                raise_errno(error)
        else:
            self._ensure_fd_no_transport(fd)
            if known == NULL:
                watch = self.start_watch(fd, 0)
            else:
                watch = <DescriptorWatch>known.owner
            watch.register_for(sock, event)
        watch.add(waiter, event)
        return waiter

    # Running

    def stop(self):
        """Make run_forever() return after the turn that runs now."""
        self._stopping = True

    def fileno(self):
        """Return a descriptor that is readable while nobody runs the loop and it has work to do.

        For a loop inside another one, a toolkit's for instance, which polls the descriptor and,
        when it is readable, has one turn made: `loop.stop()`, then `loop.run_forever()`.  Work is
        an event, a callback from any thread, a timer that is due.  The descriptor is the loop's,
        until close(): only poll it.  While the loop runs it tells nothing.

        From the first call on only the calling thread may run the loop: what the kernel does for
        it goes on between its turns.  Raises RuntimeError where the loop is closed, is run by
        another thread or was polled by another before, and OSError where the kernel refuses.
        """
        self.check_usable()
        self.check_polling_thread()
        cdef int fd = pr_loop_pollable_fd(&self.core)
        if fd < 0:
            raise_errno(fd)
        self.polling_ident = PyThread_get_thread_ident()
        return fd

    cdef int check_polling_thread(self) except -1:
        if self.polling_ident != 0 and self.polling_ident != PyThread_get_thread_ident():
            raise RuntimeError(
                'this event loop can be run only by the thread that called its fileno(): '
                'from another thread use loop.call_soon_threadsafe()')
        return 0

    def _run_turns(self):
        """Run turns until stop(); raises what must not be kept in the loop."""
        self.check_polling_thread()
        self.look_for_clock()
        try:
            self.run_turns()
        finally:
            pr_loop_end_run(&self.core)
            if self.hidden_handles:
                pr_loop_visit_scheduled(&self.core, show_scheduled, NULL)

    cdef int run_turns(self) except -1:
        cdef pr_loop *core = &self.core
        cdef int64_t timeout_ns
        cdef int error
        while True:
            if self.has_own_clock:
                self.read_own_clock()
            timeout_ns = pr_loop_prepare(core)
            if timeout_ns == 0 or self._stopping:
                error = pr_loop_wait(core, 0)
            else:
                with nogil:
                    error = pr_loop_wait(core, timeout_ns)
            if error < 0:
                raise_errno(error)
            PyErr_CheckSignals()
            if self.retired:
                self.retired.clear()
            if self.has_own_clock:
                self.read_own_clock()
            if pr_loop_dispatch(core) != 0 or self.escaping is not None:
                self.raise_escaping()
            if self._stopping:
                return 0

    cdef int escape(self, object exception) noexcept:
        """Keeps what must leave run_forever(), and ends the turn."""
        if self.escaping is None:
            self.escaping = exception
        return 1

    cdef int raise_escaping(self) except -1:
        exception = self.escaping
        self.escaping = None
        if exception is None:
            return 0
        raise exception

    cdef int report(self, dict context) noexcept:
        """Calls the exception handler; what that lets through leaves the loop."""
        try:
            self.call_exception_handler(context)
        except BaseException as exc:
            return self.escape(exc)
        return 0

    # Callbacks that take long

    @property
    def slow_callback_duration(self):
        """From how many seconds on a callback counts as slow; 0.1 unless set."""
        return self.slow_seconds

    @slow_callback_duration.setter
    def slow_callback_duration(self, seconds):
        self.slow_ns = deadline_of(seconds)
        self.slow_seconds = seconds

    def set_slow_callback_hook(self, hook):
        """Call `hook(description, seconds)` after each callback that was slow; None for no more.

        `description` names the callback, or the task and its coroutine, as asyncio's debug mode
        does; `seconds` is how long it kept the loop.  What is slow is slow_callback_duration's to
        say.  Works outside of debug mode, too: it then costs each callback two readings of the
        clock.  The hook runs in the loop's thread; what it raises goes to the exception handler.
        Raises TypeError for what cannot be called.
        """
        if hook is not None and not callable(hook):
            raise TypeError(f'a callable object or None was expected, got {hook!r}')
        self.slow_hook = hook

    def get_slow_callback_hook(self):
        """Return what set_slow_callback_hook() was given, or None."""
        return self.slow_hook

    cdef bint measures(self) noexcept:
        """True where somebody wants to hear of slow callbacks."""
        return self._debug or self.slow_hook is not None

    cdef int report_slow(self, int64_t duration_ns, object what) noexcept:
        """Tells who wants to hear of it: `what`, a handle or a description, was slow."""
        cdef double seconds = duration_ns / NS_PER_SECOND
        try:
            if isinstance(what, Handle):
                what = base_events._format_handle(what)
            if self._debug:
                logger.warning('Executing %s took %.3f seconds', what, seconds)
            if self.slow_hook is not None:
                self.slow_hook(what, seconds)
        except (SystemExit, KeyboardInterrupt) as exc:
            return self.escape(exc)
        except BaseException as exc:
            return self.report({
                'message': f'Exception in the slow callback hook {self.slow_hook!r}',
                'exception': exc,
            })
        return 0

    # Figures

    def _read_counters(self):
        """Return what the core has counted, under the names of LoopMetrics.  Any thread."""
        cdef const pr_loop_stats *stats = &self.core.stats
        cdef int64_t busy_ns, idle_ns
        # What leaves before what came: timers that are pending cannot be less than none.
        timers_fired = pr_counter_read(&stats.timers_fired)
        timers_cancelled = pr_counter_read(&stats.timers_cancelled)
        turns = read_histogram(&stats.turns_ns)
        with cython.critical_section(self):
            pr_stats_read_times(stats, &busy_ns, &idle_ns)
            self.busy_shown_ns = busy_ns = max(busy_ns, self.busy_shown_ns)
            self.idle_shown_ns = idle_ns = max(idle_ns, self.idle_shown_ns)
        return {
            'turns': sum(turns),
            'callbacks': pr_counter_read(&stats.callbacks),
            'threadsafe_callbacks': pr_counter_read(&stats.posts),
            'wakeups': pr_counter_read(&stats.wakeups),
            'polls': pr_counter_read(&stats.polls),
            'empty_polls': pr_counter_read(&stats.empty_polls),
            'events': pr_counter_read(&stats.events),
            'stale_events': pr_counter_read(&stats.stale_events),
            'ready': pr_counter_read(&stats.ready),
            'ready_max': pr_counter_read(&stats.ready_max),
            'busy_ns': busy_ns,
            'idle_ns': idle_ns,
            'turn_max_ns': pr_counter_read(&stats.turn_max_ns),
            'turns_by_log2_ns': turns,
            'timers_fired': timers_fired,
            'timers_cancelled': timers_cancelled,
            'timers_pending':
                pr_counter_read(&stats.timers_started) - timers_fired - timers_cancelled,
            'timers_by_log2_lateness_ns': read_histogram(&stats.timer_lateness_ns),
            'connections_accepted': pr_counter_read(&stats.accepted),
            'bytes_received': pr_counter_read(&stats.bytes_received),
            'bytes_sent': pr_counter_read(&stats.bytes_sent),
        }

    def _count_open(self):
        """Return (listeners, {type: number}): what is open on the loop.  Any thread."""
        return len(self.listeners), Counter(map(type, list(self.open_transports)))

    # The end

    cdef int forget_scheduled(self) except -1:
        """Takes back every callback and timer that will not run any more."""
        cdef pr_callback *callback
        cdef pr_timer *timer
        while True:
            callback = pr_loop_take_ready(&self.core)
            if callback == NULL:
                break
            drop_handle(callback)
        while True:
            timer = pr_loop_take_timer(&self.core)
            if timer == NULL:
                break
            drop_handle(&timer.callback)
        return 0

    def _close_core(self):
        """Let go of everything; what is still open is left to its owner."""
        cdef DescriptorWatch watch
        if not self.alive:
            return
        self._closed = True
        self.forget_scheduled()
        for watch in self.descriptor_watches.values():
            pr_watch_stop(&self.core.watches, &watch.watch)
            watch.receivers = watch.senders = None
        self.descriptor_watches.clear()
        self.retired.clear()
        for listener in list(self.listeners.values()):
            listener.stop()
        self.listeners.clear()
        for transport in list(self.open_transports):
            transport._loop_closed()
        self.open_transports.clear()
        self.future_arguments = None
        self.alive = False
        pr_loop_deinit(&self.core)

    def _abandon_after_fork(self):
        """In a forked child: refuse all use; the kernel's event set stays the parent's."""
        if not self.alive or self.forked:
            return
        self.forked = True
        self.thread_ident = 0
        pr_loop_abandon_after_fork(&self.core)
        self._close_core()

    def _live_counts(self):
        """Return how many of each kind of resource the loop holds; all 0 after close()."""
        cdef size_t watches = 0
        if self.alive:
            pr_loop_take_inbox(&self.core)
            # The wakeup's own, and the alarm's.
            watches = self.core.watches.count - 1 - (self.core.alarm.fd >= 0)
        return {
            'handles': pr_ready_queue_count(&self.core.ready) if self.alive else 0,
            'timers': self.core.timers.count,
            'watches': watches,
            'operations': self.operations,
            'streams': len(self.open_transports),
            'buffers': sum([transport._held_buffers() for transport in self.open_transports]),
        }


cdef object usual_time = LoopCore.time


# The garbage collector has to see what the C loop holds: a loop that was dropped with callbacks
# still scheduled is a cycle, loop -> handle -> loop.

cdef struct Visit:
    visitproc visit
    void *argument


cdef traverseproc traverse_fields = (<PyTypeObject *>LoopCore).tp_traverse


cdef int visit_owner(pr_callback *callback, void *argument) noexcept:
    cdef Visit *visit = <Visit *>argument
    return visit.visit(<PyObject *>callback.owner, visit.argument)


cdef int visit_operation(pr_op *op, void *argument) noexcept:
    cdef Visit *visit = <Visit *>argument
    return visit.visit(<PyObject *>op.owner, visit.argument)


cdef int traverse_loop(PyObject *self, visitproc visit, void *argument) noexcept:
    cdef Visit scheduled
    cdef int result = traverse_fields(self, visit, argument)
    scheduled.visit = visit
    scheduled.argument = argument
    # What a loop that runs has scheduled is reachable anyway.
    if result == 0 and (<LoopCore>self).alive and (<LoopCore>self).thread_ident == 0:
        result = pr_loop_visit_scheduled(&(<LoopCore>self).core, visit_owner, &scheduled)
    if result == 0 and (<LoopCore>self).operations:
        result = pr_loop_visit_ops(&(<LoopCore>self).core, visit_operation, &scheduled)
    return result


(<PyTypeObject *>LoopCore).tp_traverse = traverse_loop
