# The proactors: their pool, their operations and the connections that they keep going.

cimport cython
from libc.stdint cimport int64_t

from pyreactor._buffer cimport BufferPoolCore
from pyreactor._demux cimport DemultiplexerCore
from pyreactor._dispatch cimport Completion, Port, TraceCore
from pyreactor._native cimport pr_aio, pr_proactor, pr_strand


cdef class Operation:
    cdef pr_aio core
    cdef ProactorCore proactor
    cdef Channel channel  # whose it is; None: of nobody but itself

    cdef readonly object handler
    cdef readonly object handle
    cdef object other    # the file of a sendfile
    cdef object memory   # where the bytes are: kept until it is done
    cdef Py_buffer view  # of `memory`
    cdef bint has_view

    # How it ended
    cdef cython.pymutex lock
    cdef bint ended
    cdef object data     # what was read, where the pool had the buffer
    cdef object sock     # that was accepted or connected
    cdef object waiter   # a threading.Event, made by the first that waits

    cdef int take_view(self, object memory, bint writable) except -1
    cdef int drop_view(self) except -1
    cdef int end(self) except -1
    cdef Completion completion(self)


cdef class Timer(Operation):
    cdef readonly object data
    cdef object interval_ns  # None: once
    cdef bint cancelled


cdef class Channel:
    cdef ProactorCore proactor
    cdef readonly object handler
    cdef readonly object handle
    cdef readonly int fd
    cdef pr_strand strand
    cdef Operation reader
    cdef Operation writer

    # Under the lock:
    cdef cython.pymutex lock
    cdef bint reading    # the reader is under way, or its result
    cdef bint writing    # the writer is; a silent one may have ended meanwhile
    cdef bint suspended
    cdef bint holding    # nothing is read until all is written
    cdef bint reporting  # handle_write() is to be called when all is written
    cdef bint closing    # once all is written
    cdef bint aborted    # what is not written is dropped
    cdef bint closed
    cdef list unsent     # bytes that wait for the writer
    cdef size_t unsent_bytes
    cdef size_t written      # since handle_write() was called, as far as the ends were reported

    cdef bint loud       # each write is reported

    cdef size_t unsent_now(self)
    cdef int64_t put(self, object data) except? -1
    cdef bint is_writing(self)
    cdef int start_read(self) except -1
    cdef int start_write(self, object data, bint silent) except -1
    cdef int start_unsent(self) except -1
    cdef int send(self, object data) except -1
    cdef int abort(self) except -1
    cdef int answer(self, object answer, bint last) except -1
    cdef int settle(self) except -1
    cdef int close(self) except -1
    cdef int on_read(self) except -1
    cdef int on_written(self) except -1


cdef class ProactorCore(Port):
    cdef pr_proactor *core  # owned; NULL once closed
    cdef readonly BufferPoolCore pool
    cdef TraceCore trace
    cdef DemultiplexerCore demultiplexer
    cdef readonly bint strict
    cdef readonly object on_error
    cdef object changes    # a lock over `channels` and the end
    cdef dict channels     # by descriptor
    cdef dict files        # listeners and the like that have operations of their own, by descriptor
    cdef bint interrupted  # the main thread is to look for signals
    cdef bint over         # there are no turns any more

    cdef int check(self) except -1
    cdef Channel find(self, int fd)
    cdef int submit(self, Operation operation) except -1
    cdef Operation prepare(self, object handle, object handler, object notify, bint is_socket)
    cdef int handle(self, Operation operation) except -1
    cdef int handle_timer(self, Timer timer) except -1
    cdef int handle_operation(self, Operation operation) except -1
    cdef int close_handle(self, Operation operation) except -1
    cdef int complete(self, Operation operation) except -1
