# The loop's field sheet.

from libc.stdint cimport int64_t, uint32_t

from pyreactor._native cimport pr_loop, pr_timer, pr_watch


cdef class Handle:
    # What asyncio.Handle has, under the same names
    cdef readonly object _callback  # None once cancelled
    cdef readonly object _args  # a tuple; None once cancelled
    cdef readonly object _context
    cdef readonly object _source_traceback  # in debug mode
    cdef readonly LoopCore _loop
    cdef readonly bint _cancelled
    cdef object frozen_repr  # as it was when it was cancelled, in debug mode

    # Its place in the ready queue, the inbox or the timer heap, which hold a reference for each
    # time it is in.  Here for timers, too: one size for all, one free list.
    cdef pr_timer timer
    cdef double when_seconds  # on the loop's clock
    cdef object __weakref__

    cdef int run(self) noexcept
    cdef int run_measured(self) noexcept
    cdef int report_failure(self) noexcept
    cdef int forget(self) except -1


cdef class ThreadSafeHandle(Handle):
    cdef int settle(self, bint cancelling) except -1


cdef class TimerHandle(Handle):
    pass


cdef class Waiter:
    # A task's wait until one socket can be read or written
    cdef LoopCore loop
    cdef object sock
    cdef DescriptorWatch watch  # None once it is over
    cdef Waiter next  # who waits for the same
    cdef bint cancelled
    cdef object cancel_message

    # The task's side: whom to call, in which context; None where nobody has asked
    cdef object callback
    cdef object context
    cdef bint yielded  # to the task, which it does once
    cdef bint blocking  # asyncio's mark of what a task may wait for

    cdef int resume(self) noexcept
    cdef int end_soon(self) except -1
    cdef int abandon(self) except -1


cdef class DescriptorWatch:
    # One descriptor's reader and writer, for add_reader() and add_writer()
    cdef pr_watch watch
    cdef LoopCore loop
    cdef Handle reader  # None: not wanted
    cdef Handle writer

    # Who waits in sock_recv() and its kind; the first of each list
    cdef Waiter receivers
    cdef Waiter senders
    # Whose descriptor it was when it was registered for them: a weak reference, or None.  While
    # that very socket still has it, the registration holds from one wait to the next.
    cdef object socket

    cdef int notify(self, uint32_t events) noexcept
    cdef int call(self, Handle handle, uint32_t event) noexcept
    cdef Handle exchange(self, uint32_t event, Handle handle)
    cdef uint32_t wanted(self) noexcept
    cdef list waiters(self)
    cdef bint is_registered_for(self, object sock) except -1
    cdef int register_for(self, object sock, uint32_t event) except -1
    cdef int end_waits_of_closed(self) except -1
    cdef int add(self, Waiter waiter, uint32_t event) except -1
    cdef int remove(self, Waiter waiter) except -1
    cdef int unlink(self, Waiter waiter) except -1
    cdef int resume(self, Waiter first) noexcept
    cdef int update(self) except -1
    cdef int stop(self) except -1


cdef class LoopCore:
    # The C loop, from __cinit__ to close_core()
    cdef pr_loop core
    cdef bint alive
    cdef bint forked  # this is the copy in a forked child
    cdef unsigned long thread_ident  # of the thread that runs the loop; 0: none
    cdef unsigned long polling_ident  # of the one that has asked for fileno(); 0: none

    # The program has put a time() of its own in place of the loop's: in the instance, or anywhere
    cdef bint time_is_set
    cdef bint has_own_clock

    # asyncio's names for the loop's state, which BaseEventLoop's methods use
    cdef public bint _closed
    cdef public bint _stopping
    cdef public bint _debug
    cdef public object _task_factory
    cdef public object _current_handle  # what runs now, in debug mode

    cdef dict future_arguments  # what makes a future this loop's; made with the first
    # A callback on its way into call_soon() that end_wait() wants: (callback, args, context)
    cdef bint catching
    cdef tuple caught

    # From when on a callback is slow, and who hears of it besides debug mode's log
    cdef object slow_seconds  # slow_callback_duration as it was set
    cdef int64_t slow_ns
    cdef object slow_hook  # or None

    # What metrics() has shown before, and must not go back behind
    cdef int64_t busy_shown_ns
    cdef int64_t idle_shown_ns

    # What the core's pointers refer to, where the garbage collector can see it
    cdef dict descriptor_watches  # descriptor -> DescriptorWatch
    cdef set open_transports  # each until its connection_lost() has returned
    cdef dict listeners  # descriptor -> Listener
    cdef size_t operations  # that the kernel carries out; the core holds a reference to each
    cdef list retired  # stopped in this turn: the core may look at them until it ends

    cdef Py_ssize_t hidden_handles  # from the collector: scheduled while the loop runs

    # An exception that must leave run_forever(): SystemExit, KeyboardInterrupt
    cdef object escaping

    # The thread-safe callback that runs now (compared, never used), and those who wait for its end
    cdef void *running_threadsafe
    cdef list waiting_threads  # threading.Event

    cdef int check_usable(self) except -1
    cdef int explain_unusable(self) except -1
    cdef int check_polling_thread(self) except -1
    cdef int look_for_clock(self) except -1
    cdef int read_own_clock(self) except -1
    cdef TimerHandle start_timer(
        self, object when, object callback, tuple args, object context, str method)
    cdef int queue(self, Handle handle) except -1
    cdef int call_now(self, object callback, object argument, object context) noexcept
    cdef int end_wait(self, object future) except -1
    cdef int escape(self, object exception) noexcept
    cdef int raise_escaping(self) except -1
    cdef bint measures(self) noexcept
    cdef int report_slow(self, int64_t duration_ns, object what) noexcept
    cdef int report(self, dict context) noexcept
    cdef int run_turns(self) except -1
    cdef int forget_scheduled(self) except -1
    cdef DescriptorWatch find_watch(self, int fd)
    cdef Handle watch_descriptor(
        self, object fd, uint32_t event, object callback, tuple args, object context)
    cdef bint unwatch_descriptor(self, object fd, uint32_t event) except -1
    cdef DescriptorWatch start_watch(self, int fd, uint32_t events)
    cdef int end_waits(self, int fd) except -1
    cdef Waiter wait_for(self, object sock, uint32_t event)
