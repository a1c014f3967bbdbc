# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""What the dispatchers are made of: handle sets, thread sets, pumps and the trace.

Waiting, queueing and handing over happen in C without the GIL; handlers are called with it.
"""

import errno
import logging
import threading

cimport cython

from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport calloc, free

from pyreactor._demux cimport DemultiplexerCore, timeout_ns_of
from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._native cimport (
    PR_ACTION_HANDLE,
    PR_EXCEPTIONAL,
    PR_HANDLE_CHANNEL,
    PR_HANDLE_INLINE,
    PR_HANDLE_SPREAD,
    PR_READABLE,
    PR_TIMER_IDLE,
    PR_WRITABLE,
    pr_event,
    pr_handle_set_cancel_timer,
    pr_handle_set_close,
    pr_handle_set_close_when_written,
    pr_handle_set_complete,
    pr_handle_set_deinit,
    pr_handle_set_drop,
    pr_handle_set_has,
    pr_handle_set_init,
    pr_handle_set_is_busy,
    pr_handle_set_is_wanted,
    pr_handle_set_let_waiter_add,
    pr_handle_set_modify,
    pr_handle_set_read_stats,
    pr_handle_set_register,
    pr_handle_set_remove,
    pr_handle_set_report_written,
    pr_handle_set_resume,
    pr_handle_set_start_timer,
    pr_handle_set_stats,
    pr_handle_set_suspend,
    pr_handle_set_wait,
    pr_handle_set_wake,
    pr_handle_set_write,
    pr_loop_place,
    pr_member_init,
    pr_now_ns,
    pr_pump_deinit,
    pr_pump_handled,
    pr_pump_next,
    pr_pump_read,
    pr_pump_stop,
    pr_pump_take,
    pr_pump_unhandled,
    pr_request,
    pr_request_release,
    pr_role,
    pr_signal_source_add,
    pr_signal_source_deinit,
    pr_signal_source_init,
    pr_signal_source_read,
    pr_signal_source_remove,
    pr_step,
    pr_thread_set_close,
    pr_thread_set_deinit,
    pr_thread_set_delegate,
    pr_thread_set_init,
    pr_thread_set_interrupt,
    pr_thread_set_join,
    pr_thread_set_leave,
    pr_thread_set_next,
    pr_thread_set_promote,
    pr_trace_deinit,
    pr_trace_init,
    pr_trace_note,
    pr_trace_read,
    pr_trace_set_role,
    pr_transfer,
    pr_work,
)
from pyreactor._queue cimport NativeHandler, QueueCore, is_object_request, item_of

from pyreactor._queue import QueueClosed
from pyreactor._thread_pool import run_item

READ = PR_READABLE
WRITE = PR_WRITABLE
EXCEPTION = PR_EXCEPTIONAL
INLINE = PR_HANDLE_INLINE
CHANNEL = PR_HANDLE_CHANNEL
SPREAD = PR_HANDLE_SPREAD

CLOSE = -1  # a handler's answer: remove the handle and close it
KEEP = -2  # a CompletionHandler's: keep the handle, though the peer sends no more

# In the order of the enumerations in csrc/include/pyreactor/trace.h.
ACTIONS = (
    'register', 'rearm', 'remove', 'wait', 'put', 'take', 'handle', 'read', 'write', 'join',
    'lead', 'promote', 'delegate', 'hand_over', 'submit', 'complete', 'select',
)
ROLES = ('application', 'main', 'worker', 'async', 'sync', 'member', 'loop')
STATES = ('FOLLOWER', 'LEADER', 'PROCESSING')

cdef object log = logging.getLogger('pyreactor')


cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() nogil
    int PyErr_CheckSignals() except -1


cdef enum:
    SIGNALS_PER_READ = 64
    STEPS_PER_READ = 256


@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Completion:
    """The result of an operation, as its handler is told."""

    def __init__(
        self, int handle, data=b'', error=None, bint eof=False, size_t count=0, operation=None,
        sock=None, address=None
    ):
        """Make one; its attributes have the names of the arguments.

        handle      the descriptor
        data        what was read: bytes, or a view of the buffer that was given
        error       the OSError that it ended with, or None
        eof         whether the peer sends no more; of a file, whether there is no more
        count       how many bytes were read or written
        operation   what aio_read() or another call has returned; None for registered handles
        sock        the socket that was accepted or connected
        address     its peer's address
        """
        self.handle = handle
        self.data = data
        self.error = error
        self.eof = eof
        self.count = count
        self.operation = operation
        self.sock = sock
        self.address = address

    def __repr__(self):
        return (
            f'Completion(handle={self.handle}, data={self.data!r}, error={self.error!r},'
            f' eof={bool(self.eof)}, count={self.count})')


cdef int64_t after(int64_t time_ns, int64_t delay_ns) noexcept:
    """The time that is so much later, or the end of time."""
    return time_ns + delay_ns if delay_ns < INT64_MAX - time_ns else INT64_MAX


cdef int64_t delay_ns_of(object seconds) except -1:
    if seconds is None:
        raise TypeError('a delay in seconds was expected, got None')
    return timeout_ns_of(seconds)


class NotLeaderError(RuntimeError):
    """Only the leader may do this."""


def set_role(str role):
    """Say what the calling thread is, for the trace.  Any thread."""
    pr_trace_set_role(<pr_role><int>ROLES.index(role))


cdef bint is_answer(given, wanted) except -1:
    """Whether a handler has answered so; what it may answer besides need not be comparable."""
    return isinstance(given, int) and int.__eq__(given, wanted) is True


cdef int raise_if(object exception) except -1:
    if exception is not None:
        raise exception
    return 0


cdef class TraceCore:
    """The steps that threads have done, while it is on."""

    def __cinit__(self):
        pr_trace_init(&self.core)

    def __dealloc__(self):
        pr_trace_deinit(&self.core)

    @property
    def on(self):
        """Whether steps are written."""
        return bool(self.core.on)

    @on.setter
    def on(self, bint on):
        self.core.on = on

    @property
    def lost(self):
        """How many steps found no room."""
        return self.core.lost

    def read(self):
        """Return the unread steps, oldest first: (action, role, thread_id, fd, events, time_ns)."""
        cdef pr_step steps[STEPS_PER_READ]
        cdef size_t count, i
        read = []
        while True:
            count = pr_trace_read(&self.core, steps, STEPS_PER_READ)
            for i in range(count):
                read.append((
                    ACTIONS[steps[i].action], ROLES[steps[i].role], steps[i].thread_id,
                    steps[i].fd, steps[i].events, steps[i].time_ns))
            if count < STEPS_PER_READ:
                return read


cdef class Timer:
    """What schedule_timer() returns."""

    @property
    def active(self):
        """Whether it has not been cancelled, and not run for the last time."""
        return self.handler is not None


@cython.auto_pickle(False)
cdef class Port:
    """What a server's connections ask of whom they are registered with: a handle set or a proactor.

    Any thread; KeyError where the descriptor is not registered.
    """

    cdef int64_t write(self, int fd, object data) except? -1:
        """Has bytes written.  Returns how many are unsent, or a negative errno: it is removed."""
        raise NotImplementedError

    cdef int64_t unsent(self, int fd) except -1:
        """How many bytes are unsent."""
        raise NotImplementedError

    cdef int report_written(self, int fd, bint reading) except -1:
        """Has handle_write() called when all is written; see HandleSet.report_written()."""
        raise NotImplementedError

    cdef bint reads_rest(self, int fd, bint unread) except -1:
        """Has its handler called again, after what the peer has sent until now was read.  Returns
        False where nothing of that is left.  `unread`: the last read was as large as one can be.
        In its handler."""
        raise NotImplementedError

    cdef bint is_busy(self, int fd):
        """Whether its handler runs, or is about to."""
        raise NotImplementedError


cdef class HandleSetCore(Port):
    """Handles, timers and signals, and the handlers that they are bound to."""

    def __init__(
        self, DemultiplexerCore demultiplexer not None, TraceCore trace, int events_per_wait,
        on_error
    ):
        demultiplexer.check()
        self.trace_core = trace
        self.on_error = on_error
        self.changes = threading.RLock()
        self.bindings = {}
        self.timers = {}
        self.last_timer = 0
        self.signal_handlers = {}
        pr_handle_set_init(&self.core, demultiplexer.demux, &trace.core, events_per_wait)
        self.made = self.open = True
        self.demultiplexer = demultiplexer
        demultiplexer.lent_to = self

    def __dealloc__(self):
        if self.has_signals:
            pr_signal_source_deinit(&self.signals)
        if self.made:
            pr_handle_set_deinit(&self.core)

    cdef int check(self) except -1:
        if not self.open:
            raise ValueError('the handle set is closed')
        return 0

    cdef int check_result(self, int64_t result, object fd) except -1:
        """Raises what a function of the core has returned."""
        if result >= 0:
            return 0
        if result == -errno.ESHUTDOWN:
            raise ValueError('the handle set is closed')
        if result == -errno.ENOENT:
            raise KeyError(f'descriptor {fd} is not registered')
        if result == -errno.EEXIST:
            raise KeyError(f'descriptor {fd} is already registered')
        return raise_errno(<int>result)

    cdef object report(self, handler, BaseException exc):
        """Tells the hook what a handler has raised.  Returns what is to be raised, once the event
        is over: an interrupt of the main thread, or None."""
        cdef bint is_main = PyThread_get_thread_ident() == threading.main_thread().ident
        if is_main and isinstance(exc, (KeyboardInterrupt, SystemExit)):
            return exc
        try:
            self.on_error(handler, exc)
        except BaseException as failure:
            if is_main and isinstance(failure, (KeyboardInterrupt, SystemExit)):
                return failure
            failure.__context__ = exc
            log.error('on_error() raised, told of %r', handler, exc_info=failure)
        return None

    @property
    def _port(self):
        return self

    def _report(self, handler, BaseException exc):
        """Tell the hook of an error; raises an interrupt of the main thread."""
        raise_if(self.report(handler, exc))

    def _register(self, int fd, handler, fileobj, uint32_t wanted, uint32_t flags):
        cdef uint32_t generation = 0
        # Whoever has the first event finds the binding, with the lock.
        with self.changes:
            self.check()
            self.check_result(
                pr_handle_set_register(&self.core, fd, wanted, flags, &generation), fd)
            self.bindings[generation] = (fd, handler, fileobj)

    def _remove(self, int fd):
        """Remove a handle; its handler's handle_close() is called, now or when it has returned."""
        cdef uint32_t generation = 0
        cdef int result = pr_handle_set_remove(&self.core, fd, &generation)
        self.check_result(result, fd)
        if result == 0:
            raise_if(self.unbind(generation))

    cdef tuple binding(self, generation):
        with self.changes:
            return self.bindings.get(generation)

    def _has(self, int fd):
        return pr_handle_set_has(&self.core, fd)

    def _bound(self):
        with self.changes:
            return [binding[:2] for binding in self.bindings.values()]

    def _let_waiter_add(self):
        pr_handle_set_let_waiter_add(&self.core)

    def _modify(self, int fd, uint32_t wanted):
        self.modify(fd, wanted)

    cdef int modify(self, int fd, uint32_t wanted) except -1:
        return self.check_result(pr_handle_set_modify(&self.core, fd, wanted), fd)

    def _suspend(self, int fd):
        self.check_result(pr_handle_set_suspend(&self.core, fd), fd)

    def _resume(self, int fd):
        self.check_result(pr_handle_set_resume(&self.core, fd), fd)

    def _write(self, int fd, data not None):
        cdef int64_t unsent = self.write(fd, data)
        self.check_result(unsent, fd)
        return unsent

    cdef int64_t write(self, int fd, object data) except? -1:
        cdef const unsigned char[::1] view
        if type(data) is bytes:  # which costs less
            return pr_handle_set_write(
                &self.core, fd, <const char *><bytes>data, <size_t>len(<bytes>data))
        view = data
        return pr_handle_set_write(
            &self.core, fd, <const char *>&view[0] if view.shape[0] else NULL,
            <size_t>view.shape[0])

    def _report_written(self, int fd, bint reading):
        self.report_written(fd, reading)

    cdef int report_written(self, int fd, bint reading) except -1:
        return self.check_result(pr_handle_set_report_written(&self.core, fd, reading), fd)

    cdef int64_t unsent(self, int fd) except -1:
        cdef int64_t unsent = pr_handle_set_write(&self.core, fd, NULL, 0)
        self.check_result(unsent, fd)
        return unsent

    cdef bint reads_rest(self, int fd, bint unread) except -1:
        # All that can be read is, before what is written is reported.
        if unread:
            self.report_written(fd, True)
        return unread

    cdef bint is_busy(self, int fd):
        return pr_handle_set_is_busy(&self.core, fd)

    cdef object unbind(self, object generation):
        """Forgets the binding of a handle that is out of the set, and has its handler close it.
        Returns what is to be raised, or None."""
        interrupt = None
        with self.changes:
            binding = self.bindings.pop(generation, None)
        if binding is None:
            return None
        fd, handler, _ = binding
        try:
            handler.handle_close(fd)
        except BaseException as exc:
            interrupt = self.report(handler, exc)
        handler._unbind(self)
        return interrupt

    # --- Timers -----------------------------------------------------------------------------------

    def _schedule(self, handler, delay, interval, data):
        cdef Timer timer = Timer()
        cdef int64_t delay_ns = delay_ns_of(delay)
        cdef int64_t interval_ns = 0 if interval is None else delay_ns_of(interval)
        if interval is not None and interval_ns == 0:
            raise ValueError('an interval is longer than nothing')
        timer.handler = handler
        timer.data = data
        timer.interval_ns = interval_ns
        timer.core.heap_index = PR_TIMER_IDLE
        timer.core.deadline_ns = after(pr_now_ns(), delay_ns)
        with self.changes:
            self.last_timer += 1
            timer.number = self.last_timer
            timer.core.callback.owner = <void *><size_t>timer.number
            self.check_result(pr_handle_set_start_timer(&self.core, &timer.core), None)
            self.timers[timer.number] = timer
        return timer

    def _cancel(self, Timer timer not None):
        """Cancel a timer.  Returns whether its handler would have been called."""
        self.check()
        with self.changes:
            if self.timers.get(timer.number) is not timer:
                return False
            pr_handle_set_cancel_timer(&self.core, &timer.core)
            self.end_timer(timer)
        return True

    cdef object end_timer(self, Timer timer):
        """Forgets a timer that is in no heap.  With the lock."""
        timer.handler = None
        del self.timers[timer.number]

    cdef int handle_timer(self, pr_event *event) except -1:
        cdef Timer timer
        interrupt = None
        with self.changes:
            timer = self.timers.get(event.timer_id)
            if timer is None:
                return 0  # cancelled
            handler = timer.handler
            if timer.interval_ns == 0:
                self.end_timer(timer)
        try:
            closes = is_answer(handler.handle_timeout(timer), CLOSE)
        except BaseException as exc:
            interrupt = self.report(handler, exc)
            closes = True
        if timer.interval_ns != 0:
            with self.changes:
                if timer.number in self.timers and closes:
                    self.end_timer(timer)
                elif timer.number in self.timers:
                    # From when it was due, so that it does not drift; what is over is left out.
                    timer.core.deadline_ns = max(
                        pr_now_ns(), after(timer.core.deadline_ns, timer.interval_ns))
                    if pr_handle_set_start_timer(&self.core, &timer.core) < 0:
                        self.end_timer(timer)
        raise_if(interrupt)
        return 0

    # --- Signals ----------------------------------------------------------------------------------

    def _add_signal(self, int number, handler):
        cdef int error = 0
        cdef uint32_t generation = 0
        self.check()
        with self.changes:
            if not self.has_signals:
                error = pr_signal_source_init(&self.signals)
                if error < 0:
                    raise_errno(error)
                self.has_signals = True
                error = pr_handle_set_register(
                    &self.core, self.signals.fd, PR_READABLE, 0, &generation)
                if error < 0:
                    pr_signal_source_deinit(&self.signals)
                    self.has_signals = False
                    raise_errno(error)
            error = pr_signal_source_add(&self.signals, number)
            if error == -errno.EEXIST:
                raise KeyError(f'signal {number} is already registered')
            if error < 0:
                raise_errno(error)
            self.signal_handlers[number] = handler

    def _remove_signal(self, int number):
        self.check()
        with self.changes:
            handler = self.signal_handlers.pop(number, None)
            if handler is None:
                raise KeyError(f'signal {number} is not registered')
            pr_signal_source_remove(&self.signals, number)
        return handler

    cdef int handle_signals(self, pr_event *event) except -1:
        cdef int numbers[SIGNALS_PER_READ]
        cdef int count, i
        interrupt = None
        while True:
            count = pr_signal_source_read(&self.signals, numbers, SIGNALS_PER_READ)
            for i in range(count):
                handler = self.signal_handlers.get(numbers[i])
                if handler is None:
                    continue
                try:
                    handler.handle_signal(numbers[i])
                except BaseException as exc:
                    interrupt = self.report(handler, exc) or interrupt
            if count < SIGNALS_PER_READ:
                break
        pr_handle_set_complete(&self.core, event)
        raise_if(interrupt)
        return 0

    # --- Events -----------------------------------------------------------------------------------

    cdef int handle(self, pr_event *event, pr_transfer *transfer) except -1:
        """Calls the handler of an event, and lets the handle be waited for again."""
        if event.fd < 0:
            pr_trace_note(&self.trace_core.core, PR_ACTION_HANDLE, -1, 0)
            return self.handle_timer(event)
        if self.has_signals and event.fd == self.signals.fd:
            pr_trace_note(&self.trace_core.core, PR_ACTION_HANDLE, event.fd, event.events)
            return self.handle_signals(event)
        binding = self.binding(event.generation)
        if binding is not None:
            return self.handle_descriptor(event, binding, transfer)
        pr_handle_set_complete(&self.core, event)
        return 0

    cdef int handle_descriptor(
        self, pr_event *event, tuple binding, pr_transfer *transfer
    ) except -1:
        handler = binding[1]
        closes = False
        interrupt = None
        if pr_handle_set_is_wanted(&self.core, event):
            pr_trace_note(&self.trace_core.core, PR_ACTION_HANDLE, event.fd, event.events)
            try:
                if transfer != NULL:
                    closes = self.receive(event.fd, handler, transfer)
                elif event.events == 0:
                    closes = True  # all is written, or the handle cannot be waited for
                elif handler._is_channel:
                    closes = self.reply(event.fd, handler.handle_write(Completion(event.fd)), False)
                else:
                    closes = is_answer(handler.handle_event(event.fd, event.events), CLOSE)
            except BaseException as exc:
                interrupt = self.report(handler, exc)
                closes = True
            if closes:
                pr_handle_set_drop(&self.core, event)
        if pr_handle_set_complete(&self.core, event) != 0:
            interrupt = self.unbind(event.generation) or interrupt
        raise_if(interrupt)
        return 0

    cdef bint receive(self, int fd, object handler, pr_transfer *transfer) except -1:
        """Gives a finished read to its handler, and writes what that answers.  Returns whether the
        handle is to be closed."""
        error = errno_exception(transfer.error) if transfer.error else None
        data = transfer.data[:transfer.size]
        answer = handler.handle_read(Completion(fd, data, error, bool(transfer.ended)))
        closes = self.reply(fd, answer, transfer.ended and not is_answer(answer, KEEP))
        return closes or transfer.error

    cdef bint reply(self, int fd, object answer, bint last) except -1:
        """Writes what the handler of a channel answers.  Returns whether the handle is to be
        closed now; after the `last` answer it is closed when all is written."""
        cdef int64_t unsent
        if answer is not None and not isinstance(answer, int):
            unsent = self.write(fd, answer)
            if unsent != -errno.ENOENT:  # removed meanwhile: nobody is there to be answered
                self.check_result(unsent, fd)
        if last or is_answer(answer, CLOSE):
            return not pr_handle_set_close_when_written(&self.core, fd)
        return False

    def _wait(self, timeout):
        """Wait for one event: (fd, generation, events, timer number), or None."""
        cdef pr_event event
        cdef int64_t timeout_ns = timeout_ns_of(timeout)
        cdef int64_t deadline_ns = pr_now_ns() + timeout_ns
        cdef int result
        self.check()
        while True:
            with nogil:
                result = pr_handle_set_wait(&self.core, &event, timeout_ns)
            if result == 1:
                return event.fd, event.generation, event.events, event.timer_id
            if result == -errno.EBUSY:
                raise NotLeaderError('another thread waits on this handle set')
            if result != -errno.EINTR:
                self.check_result(result, None)
            PyErr_CheckSignals()
            if timeout_ns >= 0:
                timeout_ns = max(<int64_t>0, deadline_ns - pr_now_ns())
                if timeout_ns == 0 and pr_now_ns() >= deadline_ns:
                    return None

    def _handle(self, event):
        """Call the handler of an event that _wait() has returned."""
        cdef pr_event copy
        copy.fd, copy.generation, copy.events, copy.timer_id = event
        self.handle(&copy, NULL)

    def _stats(self):
        cdef pr_handle_set_stats stats
        self.check()
        pr_handle_set_read_stats(&self.core, &stats)
        return stats

    def _is_open(self):
        return bool(self.open)

    def _wake(self):
        pr_handle_set_wake(&self.core)

    def _close(self):
        """Remove what is registered, also where nobody came for its event, and free the set; when
        no thread waits or handles events any more."""
        cdef uint32_t removed
        interrupt = None
        with self.changes:
            if not self.open:
                return
            self.open = False  # nothing is registered from here on
            bindings = list(self.bindings.items())
        for generation, binding in bindings:
            pr_handle_set_remove(&self.core, binding[0], &removed)
            interrupt = self.unbind(generation) or interrupt
        if self.has_signals:
            self.has_signals = False
            pr_handle_set_remove(&self.core, self.signals.fd, &removed)
            pr_signal_source_deinit(&self.signals)
        pr_handle_set_close(&self.core)
        self.demultiplexer.lent_to = None
        raise_if(interrupt)


cdef class Member:
    """A thread of a thread set."""

    def __cinit__(self):
        pr_member_init(&self.core)
        self.ident = PyThread_get_thread_ident()
        self.native_id = threading.get_native_id()

    @property
    def state(self):
        """The name of its state."""
        return STATES[self.core.state]

    @property
    def led(self):
        """How many events it has waited for as the leader."""
        return self.core.led

    @property
    def handled(self):
        """How many events it has handled."""
        return self.core.handled


cdef class ThreadSetCore:
    """The threads that take turns at a handle set."""

    def __cinit__(self, TraceCore trace not None, bint delegating):
        self.trace_core = trace
        self.members = {}
        pr_thread_set_init(&self.core, &trace.core, delegating)

    def __dealloc__(self):
        pr_thread_set_deinit(&self.core)

    cdef Member this_member(self):
        """The member that the calling thread is; it becomes one with the first call."""
        member = self.members.get(PyThread_get_thread_ident())
        if member is None:
            member = Member()
            self.members[member.ident] = member
        return member

    def _members(self):
        return list(self.members.values())

    def _is_leader(self):
        member = self.members.get(PyThread_get_thread_ident())
        return member is not None and (<Member>member).core.state == 1

    def _join(self, timeout):
        """None as the leader; a (fd, generation, events, timer number) that was delegated."""
        cdef Member member = self.this_member()
        cdef pr_event event
        cdef int64_t timeout_ns = timeout_ns_of(timeout)
        cdef int result
        while True:
            with nogil:
                result = pr_thread_set_join(&self.core, &member.core, &event, timeout_ns)
            if result != -errno.EINTR:
                break
            PyErr_CheckSignals()
        if result == 1:
            return event.fd, event.generation, event.events, event.timer_id
        if result == -errno.ETIMEDOUT:
            raise TimeoutError('there was a leader all the time')
        if result < 0:
            raise RuntimeError('the thread set is closed')
        return None

    def _promote(self):
        cdef Member member = self.this_member()
        if pr_thread_set_promote(&self.core, &member.core) < 0:
            raise NotLeaderError('only the leader may promote a new one')

    def _delegate(self, event, Member follower):
        cdef Member member = self.this_member()
        cdef pr_event copy
        cdef int result
        copy.fd, copy.generation, copy.events, copy.timer_id = event
        result = pr_thread_set_delegate(
            &self.core, &member.core, &copy, &follower.core if follower is not None else NULL)
        if result == -errno.EPERM:
            raise NotLeaderError('only the leader may delegate an event')
        return result == 0

    def _interrupt(self, ident):
        """Have the thread of that identity look for signals.  Any thread."""
        cdef Member member = self.members.get(ident)
        if member is not None:
            pr_thread_set_interrupt(&self.core, &member.core)

    def _leave(self):
        cdef Member member = self.members.pop(PyThread_get_thread_ident(), None)
        if member is not None:
            pr_thread_set_leave(&self.core, &member.core)

    def _run_member(self, HandleSetCore handle_set not None):
        """Take turns at the handle set until the set is closed."""
        cdef Member member = self.this_member()
        cdef pr_event event
        cdef int result
        try:
            while True:
                with nogil:
                    result = pr_thread_set_next(
                        &self.core, &handle_set.core, &member.core, &event)
                if result == 1:
                    handle_set.handle(&event, NULL)
                elif result == -errno.EINTR:
                    PyErr_CheckSignals()
                elif result == -errno.ESHUTDOWN:
                    return
                else:
                    raise_errno(result)
        finally:
            self._leave()

    def _close(self):
        pr_thread_set_close(&self.core)

    def _counters(self):
        return {
            'promotions': self.core.promotions,
            'delegations': self.core.delegations,
            'violations': self.core.violations,
        }


cdef class Pump:
    """The asynchronous side of a dispatcher: one thread's wait on one handle set."""

    def __init__(self, HandleSetCore handle_set not None, QueueCore queue, unsigned index):
        self.handle_set = handle_set
        self.queue = queue
        self.core.set = &handle_set.core
        self.core.queue = queue.core if queue is not None else NULL
        self.core.trace = &handle_set.trace_core.core
        self.core.index = index

    def __dealloc__(self):
        pr_pump_deinit(&self.core)
        free(self.places)

    def spread_over(self, loops):
        """Give the connections of SPREAD listeners to `loops`, (handle set, queue) pairs."""
        cdef Py_ssize_t i
        self.loops = list(loops)
        self.places = <pr_loop_place *>calloc(len(self.loops), sizeof(pr_loop_place))
        if self.places == NULL:
            raise MemoryError
        for i, (handle_set, queue) in enumerate(self.loops):
            self.places[i].set = &(<HandleSetCore>handle_set).core
            self.places[i].connections = (<QueueCore>queue).core
        self.core.places = self.places
        self.core.place_count = <unsigned>len(self.loops)

    @property
    def stopping(self):
        """Whether stop() was called."""
        return bool(self.core.stopping)

    @property
    def handed_over(self):
        """How many connections were given to loops."""
        return self.core.handed_over

    def run(self):
        """Wait and put requests until stop(); handle what is INLINE.  The pump's thread."""
        cdef pr_event event
        cdef int result
        while True:
            with nogil:
                result = pr_pump_next(&self.core, &event)
            if result == 1:
                self.handle_set.handle(&event, NULL)
            elif result == 0:
                return
            elif result == -errno.ESHUTDOWN:
                if self.core.stopping:
                    return
                raise QueueClosed(
                    'the request queue of a running dispatcher was closed, so that requests have '
                    'nowhere to go: call its stop(), before what shares the queue is shut down')
            elif result == -errno.EINTR:
                PyErr_CheckSignals()
            else:
                raise_errno(result)

    def run_loop(self, QueueCore connections not None, adopt):
        """Handle events, and call adopt(fd) for connections that arrive, until stop()."""
        cdef pr_event event
        cdef pr_request request
        cdef int result
        while True:
            # Each time: a wait that was ended for a connection may have found events as well.
            while (not self.core.stopping and
                   connections.core.ops.try_get(connections.core, &request, 1) == 1):
                adopt(request.fd)
            with nogil:
                result = pr_pump_next(&self.core, &event)
            if result == 1:
                self.handle_set.handle(&event, NULL)
            elif result == -errno.EINTR:
                PyErr_CheckSignals()
            elif result < 0:
                raise_errno(result)
            elif self.core.stopping:
                return

    def stop(self):
        """Make run() return.  Any thread."""
        pr_pump_stop(&self.core)


@cython.auto_pickle(False)
cdef class Worker(NativeHandler):
    """The synchronous side of a dispatcher: handles what its pumps put into its queue.

    Its own threads take requests in run().  Others that take things out of the queue are guests:
    they call the NativeRequest that they get.
    """

    def __init__(self, QueueCore queue not None, TraceCore trace not None, pumps):
        self.queue = queue
        self.trace = trace
        self.pumps = list(pumps)
        self.guests = {}
        self.guest_left = threading.Condition()
        queue.set_native_handler(self)

    def run(self):
        """Take requests out of the queue, and handle them, until it is closed and empty."""
        cdef pr_request request
        cdef pr_work work
        cdef int result
        while True:
            with nogil:
                result = pr_pump_take(self.queue.core, &request)
            if result == 0:
                if pr_pump_read(&request, &self.trace.core, &work):
                    self.handle(&work)
                else:
                    run_item(item_of(self.queue, &request))
            elif result == -errno.ESHUTDOWN:
                return
            elif result == -errno.EINTR:
                PyErr_CheckSignals()
            else:
                raise_errno(result)

    cdef int handle(self, pr_work *work) except -1:
        cdef Pump pump = self.pumps[work.pump_index]
        try:
            pump.handle_set.handle(&work.event, work.transfer)
        finally:
            free(work.transfer)
            pr_pump_handled(&pump.core)
        return 0

    cdef int handle_native(self, pr_request *request) except -1:
        cdef pr_work work
        cdef object ident = threading.get_ident()
        if not pr_pump_read(request, &self.trace.core, &work):
            pr_request_release(request)
            raise RuntimeError('the request is of another kind than the dispatcher puts')
        self.guests[ident] = self.guests.get(ident, 0) + 1
        try:
            self.handle(&work)
        finally:
            self.guests[ident] -= 1
            if not self.guests[ident]:
                del self.guests[ident]
            with self.guest_left:
                self.guest_left.notify_all()
        return 0

    cdef void release_native(self, pr_request *request) noexcept:
        cdef pr_work work
        cdef Pump pump
        if pr_pump_read(request, NULL, &work):
            pump = self.pumps[work.pump_index]
            pr_pump_handled(&pump.core)
        pr_request_release(request)
        with self.guest_left:
            self.guest_left.notify_all()

    def is_guest(self):
        """Return whether the calling thread handles a request, and is not one of the own."""
        return threading.get_ident() in self.guests

    def drop(self):
        """Release what is left in the closed queue.  Its handles stay busy, and are to be closed.

        What others have put there is no request, and is called.
        """
        cdef pr_request request
        while self.queue.core.ops.try_get(self.queue.core, &request, 1) == 1:
            if is_object_request(&request):
                run_item(item_of(self.queue, &request))
            else:
                self.release_native(&request)

    def wait_for_guests(self, timeout):
        """Wait until no request is in the queue or being handled; return whether that is so.

        Before it the queue is closed, and the pumps and the own threads have ended.
        """
        with self.guest_left:
            return self.guest_left.wait_for(self.is_idle, timeout)

    def is_idle(self):
        """Return whether no request is in the queue or being handled."""
        cdef Pump pump
        for pump in self.pumps:
            if pr_pump_unhandled(&pump.core):
                return False
        return True

    def leave(self):
        """Let the queue go; another dispatcher may use it if it is not closed."""
        self.queue.set_native_handler(None)


def drop_connections(QueueCore queue not None):
    """Close the connections that are left in a loop's closed queue."""
    cdef pr_request request
    while queue.core.ops.try_get(queue.core, &request, 1) == 1:
        pr_request_release(&request)
