# What the dispatchers are made of; see dispatchers.py for how they are put together.

from libc.stdint cimport int64_t, uint32_t

from pyreactor._demux cimport DemultiplexerCore
from pyreactor._native cimport (
    pr_event,
    pr_handle_set,
    pr_loop_place,
    pr_member,
    pr_pump,
    pr_signal_source,
    pr_thread_set,
    pr_timer,
    pr_trace,
    pr_transfer,
    pr_work,
)
from pyreactor._queue cimport NativeHandler, QueueCore


cdef class Completion:
    cdef readonly int handle
    cdef readonly object data
    cdef readonly object error
    cdef readonly bint eof
    cdef readonly size_t count
    cdef readonly object operation
    cdef readonly object sock
    cdef readonly object address


cdef class TraceCore:
    cdef pr_trace core


cdef class Timer:
    cdef pr_timer core
    cdef object number     # the timer_id of its events
    cdef object handler    # None once it is over
    cdef readonly object data
    cdef int64_t interval_ns  # 0: once


cdef class Port:
    cdef int64_t write(self, int fd, object data) except? -1
    cdef int64_t unsent(self, int fd) except -1
    cdef int report_written(self, int fd, bint reading) except -1
    cdef bint reads_rest(self, int fd, bint unread) except -1
    cdef bint is_busy(self, int fd)


cdef class HandleSetCore(Port):
    cdef pr_handle_set core
    cdef bint made  # the core is to be freed
    cdef bint open

    # What the set refers to
    cdef DemultiplexerCore demultiplexer
    cdef TraceCore trace_core

    # Generation -> (descriptor, handler, file object); timer number -> Timer
    cdef object changes  # a lock: what is bound and what the core knows change together
    cdef dict bindings
    cdef dict timers
    cdef object last_timer

    # Signals: number -> handler; the source is made with the first
    cdef dict signal_handlers
    cdef pr_signal_source signals
    cdef bint has_signals

    cdef readonly object on_error  # (handler, exception) of a handler that raised

    cdef int check(self) except -1
    cdef int check_result(self, int64_t result, object fd) except -1
    cdef object report(self, handler, BaseException exc)
    cdef int modify(self, int fd, uint32_t wanted) except -1
    cdef int handle(self, pr_event *event, pr_transfer *transfer) except -1
    cdef int handle_timer(self, pr_event *event) except -1
    cdef int handle_descriptor(
        self, pr_event *event, tuple binding, pr_transfer *transfer) except -1
    cdef tuple binding(self, generation)
    cdef object end_timer(self, Timer timer)
    cdef bint receive(self, int fd, object handler, pr_transfer *transfer) except -1
    cdef bint reply(self, int fd, object answer, bint last) except -1
    cdef int handle_signals(self, pr_event *event) except -1
    cdef object unbind(self, object generation)


cdef class Member:
    cdef pr_member core
    cdef readonly unsigned long ident
    cdef readonly int native_id


cdef class ThreadSetCore:
    cdef pr_thread_set core
    cdef TraceCore trace_core
    cdef dict members  # thread ident -> Member

    cdef Member this_member(self)


cdef class Worker(NativeHandler):
    cdef QueueCore queue
    cdef TraceCore trace
    cdef list pumps
    cdef dict guests  # thread ident -> how many requests it handles, one in another
    cdef object guest_left  # threading.Condition: a guest has handled its request

    cdef int handle(self, pr_work *work) except -1


cdef class Pump:
    cdef pr_pump core
    cdef HandleSetCore handle_set
    cdef QueueCore queue
    cdef list loops  # those the places point to
    cdef pr_loop_place *places  # owned
