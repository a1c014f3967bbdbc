# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The proactors' operations, and the connections that are read and written by them.

The main thread never needs the GIL: it submits, waits and chooses workers in C.  What is here runs
in the workers, and in whatever thread asks for an operation.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from pyreactor._buffer cimport BufferPoolCore
from pyreactor._datagram cimport address_object, read_address
from pyreactor._demux cimport DemultiplexerCore, timeout_ns_of
from pyreactor._dispatch cimport Completion, Port, TraceCore
from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._native cimport (
    PR_ABORT,
    PR_ACTION_HANDLE,
    PR_AIO_ACCEPT,
    PR_AIO_CONNECT,
    PR_AIO_READ,
    PR_AIO_SENDFILE,
    PR_AIO_TIMER,
    PR_AIO_WRITE,
    PR_ANY_BUFFER,
    PR_BUFFER_NONE,
    PR_BY_CONNECTION,
    PR_DRAIN,
    PR_ENDED,
    PR_GO_ON,
    PR_LEAST_LOADED,
    PR_LOUD,
    PR_NOTIFY_CQE,
    PR_NOTIFY_EVENTFD,
    PR_NOTIFY_SIGNAL,
    PR_READABLE,
    PR_ROUND_ROBIN,
    PR_SILENT,
    PR_WRITABLE,
    pr_aio,
    pr_aio_init,
    pr_aio_make_loud,
    pr_completion_queues_close,
    pr_completion_queues_depth,
    pr_completion_queues_take,
    pr_now_ns,
    pr_proactor_cancel,
    pr_proactor_end_rest,
    pr_proactor_forget,
    pr_proactor_free,
    pr_proactor_handled,
    pr_proactor_new,
    pr_proactor_read_stats,
    pr_proactor_readiness_ops,
    pr_proactor_release_buffer,
    pr_proactor_run_once,
    pr_proactor_stats,
    pr_proactor_stop_turns,
    pr_proactor_submit,
    pr_proactor_uring_ops,
    pr_proactor_wake,
    pr_strand,
    pr_trace_note,
)

import errno
import os
import socket
import stat
import threading

from pyreactor._dispatch import CLOSE, KEEP


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cdef extern from "<poll.h>" nogil:
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef enum:
    WRITE_BYTES_MAX = 256 * 1024  # of a connection at one time, so that its progress is seen

POLICIES = {
    'round_robin': PR_ROUND_ROBIN, 'least_loaded': PR_LEAST_LOADED, 'connection': PR_BY_CONNECTION,
}
NOTIFICATIONS = {
    'cqe': PR_NOTIFY_CQE, 'eventfd': PR_NOTIFY_EVENTFD, 'signal': PR_NOTIFY_SIGNAL,
}
KINDS = ('read', 'write', 'accept', 'connect', 'sendfile', 'timer')


@cython.freelist(64)
cdef class Operation:
    """What aio_read() and the others return: one operation, under way or done."""

    def __init__(self, *args, **kwargs):
        raise TypeError('operations are made by a proactor')

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def __repr__(self):
        state = 'done' if self.ended else 'under way'
        return f'<{type(self).__name__} {self.kind} of {self.core.fd}, {state}>'

    @property
    def kind(self):
        """"read", "write", "accept", "connect", "sendfile" or "timer"."""
        return KINDS[<int>self.core.kind]

    @property
    def notify(self):
        """How the application is told: "cqe", "eventfd" or "signal"."""
        return ('cqe', 'eventfd', 'signal')[<int>self.core.notify]

    @property
    def buffer(self):
        """What was given to be read into or to be written; None where the pool chooses."""
        return self.memory

    @property
    def done(self):
        """Whether it has ended, and its handler has returned."""
        return bool(self.ended)

    def result(self):
        """Return its Completion.  Raises RuntimeError while it is not done."""
        if not self.ended:
            raise RuntimeError(f'{self!r} is not done: wait() for it')
        return self.completion()

    def wait(self, timeout=None):
        """Wait until it is done, `timeout` seconds at most; returns whether it is.

        Any thread but the proactor's own.
        """
        with self.lock:
            waiter = self.waiter
        if waiter is None:
            fresh = threading.Event()
            with self.lock:
                if self.waiter is None:
                    self.waiter = fresh
                waiter = self.waiter
        if self.ended:
            return True
        waiter.wait(timeout)
        return bool(self.ended)

    def cancel(self):
        """Ask for it to be cut short; returns False where it has ended already.  Any thread.

        Its handler is called all the same: with an OSError of ECANCELED, or with the result where
        that came first.
        """
        if self.ended or self.proactor is None or self.proactor.core == NULL:
            return False
        return bool(pr_proactor_cancel(self.proactor.core, &self.core))

    cdef int take_view(self, object memory, bint writable) except -1:
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        self.has_view = True
        self.memory = memory
        self.core.data = <char *>self.view.buf
        self.core.size = <size_t>self.view.len
        self.core.buffer = PR_BUFFER_NONE
        return 0

    cdef int drop_view(self) except -1:
        if self.has_view:
            self.has_view = False
            PyBuffer_Release(&self.view)
        return 0

    cdef Completion completion(self):
        """Its result; made each time, since it refers to the operation."""
        cdef pr_aio *aio = &self.core
        cdef Completion completion = Completion.__new__(Completion)
        completion.handle = aio.fd
        completion.data = self.data
        completion.count = aio.done
        completion.operation = self
        completion.sock = self.sock
        if aio.result < 0:
            completion.error = errno_exception(aio.result)
        if aio.kind == PR_AIO_READ:
            completion.eof = aio.done == 0 and aio.result == 0
            if self.memory is not None:
                completion.data = memoryview(self.memory)[:aio.done]
        elif self.sock is not None:
            completion.address = address_object(&aio.address)
        return completion

    cdef int end(self) except -1:
        self.drop_view()
        with self.lock:
            self.ended = True
            waiter = self.waiter
        if waiter is not None:
            waiter.set()
        return 0


cdef class Timer(Operation):
    """What a proactor's schedule_timer() returns."""

    @property
    def active(self):
        """Whether it has not been cancelled, and not run for the last time."""
        return not self.ended and not self.cancelled


cdef class Channel:
    """A registered connection: it is read, its handler answers, the answer is written.

    At most one read and one write of it are under way.  Its results are handled one after the
    other.  Silent writes are those whose end nobody asks for: no worker is woken for them.
    """

    def __cinit__(self, ProactorCore proactor not None, int fd, bint is_socket, handle, handler):
        cdef Operation operation
        self.proactor = proactor
        self.fd = fd
        self.handle = handle
        self.handler = handler
        self.unsent = []
        self.loud = proactor.strict or bool(handler.every_write)
        self.reader = Operation.__new__(Operation)
        self.writer = Operation.__new__(Operation)
        for operation in (self.reader, self.writer):
            pr_aio_init(&operation.core, <void *>operation)
            operation.proactor = proactor
            operation.channel = self
            operation.core.fd = fd
            operation.core.is_socket = is_socket
            operation.core.strand = &self.strand
        self.reader.core.kind = PR_AIO_READ
        self.writer.core.kind = PR_AIO_WRITE

    # What follows is called with the lock, up to the next mark.

    cdef bint is_writing(self):
        """Whether the writer is under way, and then its end is reported."""
        if self.writing and not pr_aio_make_loud(&self.writer.core):
            self.writing = False
        return self.writing

    cdef int start_read(self) except -1:
        if (
            self.reading or self.suspended or self.holding or self.closing or self.closed
            or self.unsent or (self.writing and self.proactor.strict)
        ):
            return 0
        self.reading = True
        self.reader.core.buffer = PR_ANY_BUFFER
        self.reader.core.size = 0
        pr_proactor_submit(self.proactor.core, &self.reader.core)
        return 0

    cdef int start_write(self, object data, bint silent) except -1:
        self.writer.drop_view()
        self.writer.take_view(data, False)
        self.writing = True
        self.writer.core.silence = PR_SILENT if silent else PR_LOUD
        pr_proactor_submit(self.proactor.core, &self.writer.core)
        return 0

    cdef int send(self, object data) except -1:
        if self.aborted or self.closed:
            return 0
        if self.is_writing():
            self.unsent.append(data)
            self.unsent_bytes += <size_t>len(data)
            return 0
        if len(data) <= WRITE_BYTES_MAX:
            return self.start_write(data, not (self.loud or self.reporting or self.closing))
        self.unsent.append(data)
        self.unsent_bytes += <size_t>len(data)
        return self.start_unsent()

    cdef int start_unsent(self) except -1:
        """Starts to write what waits for the writer, or the first of it where that is much."""
        if self.unsent_bytes <= WRITE_BYTES_MAX:
            data = b''.join(self.unsent)
            self.unsent = []
        else:
            data = memoryview(self.unsent[0])
            if len(data) > WRITE_BYTES_MAX:
                self.unsent[0] = data[WRITE_BYTES_MAX:]
                data = data[:WRITE_BYTES_MAX]
            else:
                del self.unsent[0]
        self.unsent_bytes -= <size_t>len(data)
        return self.start_write(
            data, not (self.loud or self.reporting or self.closing or self.unsent))

    cdef int abort(self) except -1:
        """What is under way is cut short."""
        self.closing = self.aborted = True
        self.unsent = []
        self.unsent_bytes = 0
        if self.is_writing():
            pr_proactor_cancel(self.proactor.core, &self.writer.core)
        return 0

    cdef size_t unsent_now(self):
        """How many bytes are unsent, those of the write under way among them."""
        if self.writing and self.writer.core.silence == PR_ENDED:
            self.writing = False
        return self.unsent_bytes + (self.writer.core.size if self.writing else 0)

    # Without the lock:

    def write(self, data):
        """Have bytes written; returns how many are unsent."""
        return max(0, self.put(data))

    cdef int64_t put(self, object data) except? -1:
        """The same; a negative errno where it is about to be closed."""
        with self.lock:
            if self.aborted or self.closed:
                return -errno.ENOENT
            self.send(data)
            return <int64_t>self.unsent_now()

    def report_written(self, bint reading):
        """Have handle_write() called once all is written."""
        with self.lock:
            self.reporting = True
            self.holding = not reading
            if not self.is_writing() and not self.aborted and not self.closed:
                self.start_write(b'', False)  # nothing; its end is reported

    def suspend(self):
        """Read nothing until resume()."""
        with self.lock:
            self.suspended = True
            if self.reading:
                pr_proactor_cancel(self.proactor.core, &self.reader.core)

    def resume(self):
        """End suspend()."""
        with self.lock:
            self.suspended = False
            self.start_read()

    def begin(self, unsigned mask):
        """Start reading, report that it can be written, or both: what `mask` says."""
        if mask & PR_WRITABLE:
            self.report_written(mask & PR_READABLE != 0)
        with self.lock:
            self.suspended = not mask & (PR_READABLE | PR_WRITABLE)
            self.start_read()

    def remove(self):
        """Close it as soon as nothing of it is under way."""
        with self.lock:
            self.abort()
        self.settle()

    cdef int answer(self, object answer, bint last) except -1:
        """Does what a handler answers."""
        cdef bint keep = False
        if answer is None:
            pass
        elif isinstance(answer, int):
            keep = answer == KEEP
            last = answer == CLOSE or (last and not keep)
        elif not isinstance(answer, bytes):
            answer = bytes(answer)
        with self.lock:
            if last:
                self.closing = True
            elif keep:  # of bytes that came when it had said CLOSE already
                self.closing = self.aborted
            if isinstance(answer, bytes) and answer:
                self.send(answer)
        return 0

    cdef int settle(self) except -1:
        """Goes on after a change: reads, or closes it where it is to be and can be."""
        cdef bint close = False
        with self.lock:
            if self.closed:
                return 0
            if not self.closing:
                self.start_read()
            elif not self.is_writing():
                if self.reading:
                    pr_proactor_cancel(self.proactor.core, &self.reader.core)
                else:
                    close = self.closed = True
        if close:
            self.close()
        return 0

    cdef int close(self) except -1:
        handler = self.handler
        with self.proactor.changes:
            if self.proactor.channels.get(self.fd) is self:
                del self.proactor.channels[self.fd]
        pr_proactor_forget(self.proactor.core, self.fd)
        self.writer.drop_view()
        self.writer.channel = self.reader.channel = None  # the circle
        try:
            handler.handle_close(self.fd)
        except BaseException as exc:
            self.proactor.on_error(handler, exc)
        handler._unbind(self.proactor)
        return 0

    cdef int on_read(self) except -1:
        """A worker has the result of a read."""
        cdef pr_aio *aio = &self.reader.core
        cdef bint cancelled = aio.result == -errno.ECANCELED
        cdef bint last = False
        cdef bint wanted
        data = PyBytes_FromStringAndSize(aio.data, aio.done) if aio.done else b''
        if aio.buffer < PR_ANY_BUFFER:  # before the handler, which may take its time
            pr_proactor_release_buffer(self.proactor.core, aio.buffer)
        with self.lock:
            wanted = not self.aborted and not (self.closing and not aio.done)
        answer = None
        if cancelled:
            last = self.proactor.core.stop != PR_GO_ON
        elif wanted and self.proactor.core.stop != PR_ABORT:
            error = errno_exception(aio.result) if aio.result else None
            last = aio.result != 0 or aio.done == 0
            try:
                answer = self.handler.handle_read(
                    Completion(self.fd, data, error, aio.result == 0 and aio.done == 0))
            except BaseException as exc:
                self.proactor.on_error(self.handler, exc)
                answer = CLOSE
        else:
            last = True
        self.answer(answer, last)
        with self.lock:
            self.reading = False
            if aio.result and not cancelled:
                self.abort()
        return self.settle()

    cdef int on_written(self) except -1:
        """A worker has the result of a write."""
        cdef pr_aio *aio = &self.writer.core
        cdef bint report = False
        cdef size_t count
        cdef int result = aio.result
        self.writer.drop_view()
        with self.lock:
            self.writing = False
            self.written += aio.done
            count = self.written
            if result:
                self.abort()
            elif self.unsent:
                self.start_unsent()
            else:
                report = not self.closing and (self.reporting or self.handler.every_write)
                self.reporting = self.holding = False
                self.written = 0
        if report:
            try:
                answer = self.handler.handle_write(
                    Completion(self.fd, b'', None, False, count))
            except BaseException as exc:
                self.proactor.on_error(self.handler, exc)
                answer = CLOSE
            self.answer(answer, False)
        return self.settle()


cdef class ProactorCore(Port):
    """A proactor of the C core; `pyreactor.proactor` gives it its threads."""

    def __init__(
        self, str engine, DemultiplexerCore demultiplexer, BufferPoolCore pool not None,
        TraceCore trace not None, unsigned workers, str policy, bint strict, on_error
    ):
        cdef int error
        self.pool = pool
        self.trace = trace
        self.strict = strict
        self.on_error = on_error
        self.changes = threading.RLock()
        self.channels = {}
        self.files = {}
        if policy not in POLICIES:
            raise ValueError(
                f"a worker is selected by 'round_robin', 'least_loaded' or 'connection',"
                f" not {policy!r}")
        if demultiplexer is not None:
            demultiplexer.check()
        error = pr_proactor_new(
            &self.core,
            &pr_proactor_uring_ops if engine == 'io_uring' else &pr_proactor_readiness_ops,
            pool.core, demultiplexer.demux if demultiplexer is not None else NULL,
            &trace.core, workers, POLICIES[policy], strict)
        if error < 0:
            raise_errno(error)
        if demultiplexer is not None:
            self.demultiplexer = demultiplexer
            demultiplexer.lent_to = self

    def __dealloc__(self):
        if self.core != NULL and self.core.live == 0:
            pr_proactor_free(self.core)

    cdef int check(self) except -1:
        if self.over or self.core == NULL:
            raise RuntimeError('the proactor has stopped')
        return 0

    # --- Operations -------------------------------------------------------------------------------

    cdef Operation prepare(self, object handle, object handler, object notify, bint is_socket):
        cdef Operation operation = Operation.__new__(Operation)
        self.check()
        if notify not in NOTIFICATIONS:
            raise ValueError(
                f"an operation notifies by 'cqe', 'eventfd' or 'signal', not {notify!r}")
        pr_aio_init(&operation.core, <void *>operation)
        operation.proactor = self
        operation.handle = handle
        operation.handler = handler
        operation.core.notify = NOTIFICATIONS[notify]
        operation.core.is_socket = is_socket
        operation.core.fd = descriptor(handle)
        return operation

    cdef int submit(self, Operation operation) except -1:
        self.check()
        Py_INCREF(operation)  # the core's, until it is handled
        pr_proactor_submit(self.core, &operation.core)
        return 0

    def _aio_read(self, handle, buffer, handler, offset, notify):
        cdef Operation operation = self.prepare(handle, handler, notify, offset is None)
        operation.core.kind = PR_AIO_READ
        operation.core.is_socket = offset is None and is_socket(handle)
        if offset is not None:
            operation.core.offset = file_offset(offset)
        elif not operation.core.is_socket and self.demultiplexer is not None:
            os.set_blocking(operation.core.fd, False)
        if buffer is None or isinstance(buffer, int):
            size = 0 if buffer is None else buffer
            if not 0 <= size <= self.pool.buffer_bytes:
                raise ValueError(
                    f'a buffer of the pool has {self.pool.buffer_bytes} bytes, and {size} are'
                    ' wanted: give a buffer of your own, or make a pool of larger ones')
            operation.core.size = size
            operation.core.buffer = PR_ANY_BUFFER
        else:
            operation.take_view(buffer, True)
        self.submit(operation)
        return operation

    def _aio_write(self, handle, data, handler, offset, notify):
        cdef Operation operation = self.prepare(handle, handler, notify, True)
        operation.core.kind = PR_AIO_WRITE
        operation.core.is_socket = offset is None and is_socket(handle)
        if offset is not None:
            operation.core.offset = file_offset(offset)
        elif not operation.core.is_socket and self.demultiplexer is not None:
            os.set_blocking(operation.core.fd, False)
        operation.take_view(data, False)
        self.submit(operation)
        return operation

    def _aio_accept(self, handle, handler, notify):
        cdef Operation operation = self.prepare(handle, handler, notify, True)
        operation.core.kind = PR_AIO_ACCEPT
        os.set_blocking(operation.core.fd, False)
        self.submit(operation)
        return operation

    def _aio_connect(self, handle, address, handler, notify):
        cdef Operation operation = self.prepare(handle, handler, notify, True)
        operation.core.kind = PR_AIO_CONNECT
        if not read_address(address, handle.family, &operation.core.address):
            raise ValueError(
                f'{address!r} is no numeric address of the family {handle.family!r}: look the name'
                ' up first, as with socket.getaddrinfo()')
        os.set_blocking(operation.core.fd, False)
        self.submit(operation)
        return operation

    def _aio_sendfile(self, handle, file, handler, offset, count, notify):
        cdef Operation operation = self.prepare(handle, handler, notify, True)
        operation.core.kind = PR_AIO_SENDFILE
        operation.other = file
        operation.core.source_fd = descriptor(file)
        operation.core.offset = file_offset(offset)
        if count is None:
            count = max(0, os.fstat(operation.core.source_fd).st_size - offset)
        operation.core.size = count
        operation.core.buffer = PR_ANY_BUFFER
        if self.demultiplexer is not None:
            operation.core.buffer = PR_BUFFER_NONE
            os.set_blocking(operation.core.fd, False)
        if not count:
            operation.core.kind = PR_AIO_WRITE
        self.submit(operation)
        return operation

    def _schedule(self, handler, delay, interval, data):
        cdef Timer timer = Timer.__new__(Timer)
        self.check()
        pr_aio_init(&timer.core, <void *>timer)
        timer.proactor = self
        timer.handler = handler
        timer.data = data
        timer.interval_ns = None if interval is None else max(1, timeout_ns_of(interval))
        timer.core.kind = PR_AIO_TIMER
        timer.core.timer.deadline_ns = pr_now_ns() + max(0, timeout_ns_of(delay))
        self.submit(timer)
        return timer

    def _cancel_timer(self, Timer timer not None):
        """Cancel a timer.  Returns whether its handler would have been called."""
        with timer.lock:
            active = not timer.ended and not timer.cancelled
            timer.cancelled = True
            pr_proactor_cancel(self.core, &timer.core)
        return active

    # --- Registered handles -----------------------------------------------------------------------

    def _register(self, handle, handler, unsigned mask):
        cdef int fd = descriptor(handle)
        cdef bint is_sock = is_socket(handle)
        cdef Channel channel
        if self.demultiplexer is not None and not is_sock:
            os.set_blocking(fd, False)
        with self.changes:
            self.check()
            if fd in self.channels:
                raise KeyError(f'descriptor {fd} is already registered')
            channel = Channel(self, fd, is_sock, handle, handler)
            self.channels[fd] = channel
        channel.begin(mask)

    def _channel(self, int fd):
        """The registered connection of a descriptor.  Raises KeyError where there is none."""
        cdef Channel channel = self.find(fd)
        if channel is None:
            raise KeyError(f'descriptor {fd} is not registered')
        return channel

    cdef Channel find(self, int fd):
        with self.changes:
            return self.channels.get(fd)

    def _registered(self):
        with self.changes:
            return list(self.channels)

    # --- For the connections of a server ----------------------------------------------------------

    def _remove(self, int fd):
        (<Channel>self._channel(fd)).remove()

    cdef int64_t write(self, int fd, object data) except? -1:
        cdef Channel channel = self.find(fd)
        return -errno.ENOENT if channel is None else channel.put(data)

    cdef int64_t unsent(self, int fd) except -1:
        cdef Channel channel = self._channel(fd)
        with channel.lock:
            return <int64_t>channel.unsent_now()

    cdef int report_written(self, int fd, bint reading) except -1:
        (<Channel>self._channel(fd)).report_written(reading)
        return 0

    cdef bint reads_rest(self, int fd, bint unread) except -1:
        # What has been read is handled in any case; the kernel may hold more than that.
        cdef pollfd polled
        polled.fd = fd
        polled.events = POLLIN
        return poll(&polled, 1, 0) == 1

    cdef bint is_busy(self, int fd):
        cdef Channel channel = self.find(fd)
        return channel is not None and channel.strand.delivered > 0

    # --- The threads ------------------------------------------------------------------------------

    def _run(self, int64_t timeout_ns=-1):
        """Take turns until everything has ended after a stop.  The main thread.

        With a timeout: one turn; returns whether it has ended.
        """
        cdef int result = 0
        if self.core == NULL:
            return True
        while True:
            with nogil:
                result = pr_proactor_run_once(self.core, timeout_ns)
                while result == 0 and timeout_ns < 0 and not self.interrupted:
                    result = pr_proactor_run_once(self.core, -1)
            if result == 1:
                return True
            self.interrupted = False
            if result == 0 or result == -errno.EINTR:
                PyErr_CheckSignals()
            else:
                raise_errno(result)
            if timeout_ns >= 0:
                return False

    def _work(self, unsigned index):
        """Handle results until the queues are closed.  The worker's thread."""
        cdef pr_aio *aio = NULL
        cdef int result
        while True:
            result = pr_completion_queues_take(&self.core.workers, index, &aio, 0)
            if result != 0:  # nothing yet: others may run meanwhile
                with nogil:
                    result = pr_completion_queues_take(
                        &self.core.workers, index, &aio, INT64_MAX)
            if result == 0:
                self.handle(<Operation>aio.owner)
            elif result == -errno.EINTR:
                PyErr_CheckSignals()
            elif result == -errno.ESHUTDOWN:
                return
            else:
                raise_errno(result)

    def _handle_waiting(self):
        """Handle what waits for the workers, in this thread, where there are none.  Returns how
        many."""
        cdef pr_aio *aio = NULL
        cdef unsigned index
        count = 0
        for index in range(self.core.workers.count):
            while pr_completion_queues_take(&self.core.workers, index, &aio, 0) == 0:
                self.handle(<Operation>aio.owner)
                count += 1
        return count

    cdef int handle(self, Operation operation) except -1:
        """A result, in the thread of its worker."""
        cdef unsigned worker = operation.core.worker
        cdef pr_strand *strand = operation.core.strand
        cdef Channel channel = operation.channel
        cdef uint32_t events = 0
        if operation.core.kind == PR_AIO_READ or operation.core.kind == PR_AIO_ACCEPT:
            events = PR_READABLE
        elif operation.core.kind != PR_AIO_TIMER:
            events = PR_WRITABLE
        pr_trace_note(&self.trace.core, PR_ACTION_HANDLE, operation.core.fd, events)
        try:
            if channel is not None:
                if events == PR_READABLE:
                    channel.on_read()
                else:
                    channel.on_written()
            elif operation.core.kind == PR_AIO_TIMER:
                self.handle_timer(<Timer>operation)
            else:
                self.handle_operation(operation)
        except BaseException as exc:  # not the handler's, which are reported before
            self.on_error(operation.handler, exc)
        # From the strand on `channel` keeps alive what is closed.
        pr_proactor_handled(self.core, worker, strand)
        return 0

    cdef int handle_timer(self, Timer timer) except -1:
        cdef int64_t deadline_ns
        cdef bint again = timer.interval_ns is not None
        answer = None
        if timer.core.result != 0 or timer.cancelled:
            again = False
        else:
            if not again:
                timer.end()
            try:
                answer = timer.handler.handle_timeout(timer)
            except BaseException as exc:
                self.on_error(timer.handler, exc)
                again = False
            if answer == CLOSE:
                again = False
        if again:
            # From when it was due, so that it does not drift; a time that is over is left out.
            deadline_ns = max(
                pr_now_ns(), timer.core.timer.deadline_ns + <int64_t>timer.interval_ns)
            with timer.lock:
                again = not timer.cancelled
                if again:
                    timer.core.timer.deadline_ns = deadline_ns
                    pr_proactor_submit(self.core, &timer.core)
        if not again:
            timer.end()
            Py_DECREF(timer)
        return 0

    cdef int handle_operation(self, Operation operation) except -1:
        try:
            self.complete(operation)
            completion = operation.completion() if operation.handler is not None else None
            answer = None
            handler = operation.handler
            try:
                if handler is None:
                    pass
                elif operation.core.kind == PR_AIO_READ:
                    answer = handler.handle_read(completion)
                elif operation.core.kind == PR_AIO_ACCEPT:
                    answer = handler.handle_accept(completion)
                elif operation.core.kind == PR_AIO_CONNECT:
                    answer = handler.handle_connect(completion)
                else:
                    answer = handler.handle_write(completion)
            except BaseException as exc:
                self.on_error(handler, exc)
                answer = CLOSE
            operation.end()
            if answer is None or handler is None:
                pass
            elif isinstance(answer, int):
                if answer == CLOSE:
                    self.close_handle(operation)
            elif answer:
                self._aio_write(operation.handle, answer, handler, None, 'cqe')
        finally:
            Py_DECREF(operation)
        return 0

    cdef int close_handle(self, Operation operation) except -1:
        """The answer CLOSE to an operation of a handle that is not registered."""
        handler = operation.handler
        if operation.core.kind == PR_AIO_ACCEPT and operation.sock is not None:
            operation.sock.close()
            return 0
        try:
            handler.handle_close(operation.core.fd)
        except BaseException as exc:
            self.on_error(handler, exc)
        return 0

    cdef int complete(self, Operation operation) except -1:
        """Takes over what the core brought: bytes out of the pool, a descriptor."""
        cdef pr_aio *aio = &operation.core
        operation.data = b''
        if aio.kind == PR_AIO_READ and aio.done and operation.memory is None:
            operation.data = PyBytes_FromStringAndSize(aio.data, <Py_ssize_t>aio.done)
        elif aio.kind == PR_AIO_ACCEPT and aio.result >= 0:
            listener = operation.handle
            if isinstance(listener, socket.socket):
                operation.sock = socket.socket(
                    listener.family, listener.type, listener.proto, fileno=aio.result)
            else:
                operation.sock = socket.socket(fileno=aio.result)
        elif aio.kind == PR_AIO_CONNECT:
            operation.sock = operation.handle
        if aio.buffer < PR_ANY_BUFFER:
            pr_proactor_release_buffer(self.core, aio.buffer)
            aio.buffer = PR_BUFFER_NONE
        return 0

    # --- Its end ----------------------------------------------------------------------------------

    def _stop(self, bint drain):
        """Make the turns end.  Any thread."""
        if self.core != NULL:
            pr_proactor_stop_turns(self.core, PR_DRAIN if drain else PR_ABORT)

    def _close_workers(self):
        """Make the workers end when they have handled what there is.  Any thread."""
        if self.core != NULL:
            pr_completion_queues_close(&self.core.workers)

    def _close(self):
        """Free it, when its threads have ended.  What was asked for too late ends here."""
        with self.changes:
            if self.core == NULL:
                return
            self.over = True
            channels = list(self.channels.values())
        for channel in channels:
            channel.remove()
        while self.core.live:
            pr_proactor_end_rest(self.core)
            if not self._handle_waiting() and self.core.live:
                raise RuntimeError(f'{self.core.live} operations do not end')
        pr_proactor_free(self.core)
        self.core = NULL
        if self.demultiplexer is not None:
            self.demultiplexer.lent_to = None

    def _is_stopping(self):
        return self.core == NULL or self.core.stop != PR_GO_ON

    def _is_open(self):
        return self.core != NULL

    def _interrupt(self):
        """Have the main thread look for signals.  Any thread."""
        self.interrupted = True
        if self.core != NULL:
            pr_proactor_wake(self.core)

    def _stats(self):
        cdef pr_proactor_stats stats
        if self.core == NULL:
            return {}
        pr_proactor_read_stats(self.core, &stats)
        taken = self.core.buffers.taken
        return {
            **stats,
            'taken_over': self.core.workers.taken_over,
            'queue_depth': pr_completion_queues_depth(&self.core.workers),
            'handles': len(self.channels),
            'buffers_taken': taken,
            'buffers_in_use': taken - min(taken, self.core.buffers.released),
            'buffers_exhausted': self.core.buffers.exhaustions,
        }

    def _event_fd(self):
        self.check()
        return self.core.notifier.event_fd


cdef int descriptor(object handle) except -1:
    cdef int fd = handle if isinstance(handle, int) else handle.fileno()
    if fd < 0:
        raise ValueError(f'{handle!r} is closed')
    return fd


cdef bint is_socket(object handle) except -1:
    return isinstance(handle, socket.socket) or stat.S_ISSOCK(os.fstat(descriptor(handle)).st_mode)


cdef int64_t file_offset(object offset) except -1:
    if offset < 0:
        raise ValueError(f'an offset in a file is 0 or more, not {offset!r}')
    return offset
