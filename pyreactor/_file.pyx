# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""A file's descriptor, and the system calls on it that a ring carries out."""

import os
import sys
from asyncio import exceptions

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.unistd cimport close

from pyreactor._context cimport (
    PyContext_CopyCurrent,
    call_in_context,
    raise_pending,
    release,
)
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    PR_OP_CLOSE,
    PR_OP_DATA_ONLY,
    PR_OP_FSYNC,
    PR_OP_KINDS,
    PR_OP_MKDIR,
    PR_OP_OPEN,
    PR_OP_READ,
    PR_OP_RENAME,
    PR_OP_STATX,
    PR_OP_TRUNCATE,
    PR_OP_UNLINK,
    PR_OP_WRITE,
    pr_loop_cancel,
    pr_loop_submit,
    pr_loop_supports,
    pr_op,
    pr_op_kind,
)


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size)
    char *bytes_data "PyBytes_AS_STRING" (PyObject *bytes)
    int resize_bytes "_PyBytes_Resize" (PyObject **bytes, Py_ssize_t size) except -1
    ctypedef PyObject *(*iternextfunc)(PyObject *self) except? NULL
    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext


cdef extern from "<errno.h>" nogil:
    int ECANCELED


cdef extern from "<fcntl.h>" nogil:
    int AT_EMPTY_PATH
    int AT_FDCWD
    int AT_REMOVEDIR
    int AT_SYMLINK_NOFOLLOW


cdef extern from "<sys/sysmacros.h>" nogil:
    uint64_t makedev(unsigned int major, unsigned int minor)


cdef extern from "<sys/stat.h>" nogil:
    uint32_t STATX_BASIC_STATS
    ctypedef struct statx_timestamp "struct statx_timestamp":
        int64_t tv_sec
        uint32_t tv_nsec
    ctypedef struct statx_t "struct statx":
        uint32_t stx_blksize
        uint32_t stx_nlink
        uint32_t stx_uid
        uint32_t stx_gid
        uint32_t stx_mode
        uint64_t stx_ino
        uint64_t stx_size
        uint64_t stx_blocks
        statx_timestamp stx_atime
        statx_timestamp stx_ctime
        statx_timestamp stx_mtime
        uint32_t stx_rdev_major
        uint32_t stx_rdev_minor
        uint32_t stx_dev_major
        uint32_t stx_dev_minor


# Linux transfers no more than this in one call.
cdef Py_ssize_t BYTES_PER_CALL_MAX = 0x7ffff000


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
        self.drop()

    cdef void drop(self) noexcept:
        self.in_use -= 1
        if self.in_use == 0 and self.abandoned:
            self.end()
        if self.in_use == 0 and self.idle is not None:
            idle, self.idle = self.idle, None
            try:
                if not idle.done():
                    idle.set_result(None)
            except RuntimeError:
                pass  # the loop has been closed, and nobody waits

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


cdef object result_of_statx(const statx_t *status):
    """The os.stat_result of it."""
    times = {}
    cdef int64_t seconds, ns
    whole = []
    for letter in "amc":
        if letter == "a":
            seconds, ns = status.stx_atime.tv_sec, status.stx_atime.tv_nsec
        elif letter == "m":
            seconds, ns = status.stx_mtime.tv_sec, status.stx_mtime.tv_nsec
        else:
            seconds, ns = status.stx_ctime.tv_sec, status.stx_ctime.tv_nsec
        whole.append(seconds)
        times[f"st_{letter}time"] = seconds + 1e-9 * ns
        times[f"st_{letter}time_ns"] = seconds * 1_000_000_000 + ns
    return os.stat_result(
        (
            status.stx_mode,
            status.stx_ino,
            makedev(status.stx_dev_major, status.stx_dev_minor),
            status.stx_nlink,
            status.stx_uid,
            status.stx_gid,
            status.stx_size,
            *whole,
        ),
        {
            **times,
            "st_blksize": status.stx_blksize,
            "st_blocks": status.stx_blocks,
            "st_rdev": makedev(status.stx_rdev_major, status.stx_rdev_minor),
        },
    )


cdef int on_complete(pr_op *op, int32_t result) noexcept:
    """The kernel is done with it: so is the core, whose reference goes."""
    cdef RingOperation self = <RingOperation>op.owner
    cdef LoopCore loop = self.loop
    cdef int stop = 0
    Py_DECREF(self)
    try:
        self.keep_result(result)
    except BaseException as exc:  # no memory
        self.value = exc
    PyBuffer_Release(&self.memory.view)
    self.finished = True
    if self.descriptor is not None:
        self.descriptor.drop()
        self.descriptor = None
    if loop is not None:
        loop.operations -= 1
        if not loop._closed and not loop.forked:
            stop = self.resume()
    return stop


@cython.final
@cython.freelist(128)
@cython.auto_pickle(False)
cdef class RingOperation:
    """A system call that the loop's ring carries out, and what a task awaits until it is done.

    Awaited by one task at a time; see files/calls.py.  To the task it is a future, and the
    completion resumes the task at once.  The memory that the kernel works on is this object's, or
    held by it, so that it cannot move: the core has a reference until the kernel is done.
    """

    def __dealloc__(self):
        PyBuffer_Release(&self.memory.view)
        Py_XDECREF(self.memory.data)
        Py_XDECREF(self.memory.path)
        Py_XDECREF(self.memory.other_path)

    cdef int submit(self) except -1:
        cdef LoopCore loop = self.loop
        loop.check_usable()
        self.op.owner = <void *>self
        self.op.on_complete = on_complete
        if self.descriptor is not None:
            self.descriptor.in_use += 1
        Py_INCREF(self)  # the core's
        loop.operations += 1
        pr_loop_submit(&loop.core, &self.op)
        return 0

    cdef int keep_result(self, int result) except -1:
        """Makes of the kernel's number what the call returns."""
        if result < 0:
            if self.op.kind == PR_OP_CLOSE and result == -ECANCELED:  # the loop has ended before
                close(self.op.fd)
            number = -result
            self.value = (
                OSError(number, os.strerror(number)) if self.name is None
                else OSError(number, os.strerror(number), self.name) if self.other_name is None
                else OSError(number, os.strerror(number), self.name, None, self.other_name))
        elif self.op.kind == PR_OP_READ and self.memory.data != NULL:
            resize_bytes(&self.memory.data, result)
            self.value = <object>self.memory.data
            Py_XDECREF(self.memory.data)
            self.memory.data = NULL
        elif self.op.kind == PR_OP_READ or self.op.kind == PR_OP_WRITE:
            self.value = result
        elif self.op.kind == PR_OP_OPEN:
            self.value = Descriptor(result)
        elif self.op.kind == PR_OP_STATX:
            self.value = result_of_statx(<statx_t *>bytes_data(self.memory.data))
        return 0

    cdef object take_result(self):
        if isinstance(self.value, BaseException):
            error, self.value = self.value, None
            raise error
        return self.value

    cdef int resume(self) noexcept:
        """Runs the task that waits."""
        cdef object callback = self.callback
        cdef PyObject *argument = <PyObject *>self
        cdef PyObject *result
        if callback is None:
            return 0
        self.callback = None
        try:
            if self.loop._debug:  # measured, and named when it is slow
                self.loop.call_soon(callback, self, context=self.context)
                return 0
            result = call_in_context(
                <PyObject *>self.context, <PyObject *>callback, &argument, 1)
            if result == NULL:
                raise_pending()
            release(result)
        except (SystemExit, KeyboardInterrupt) as exc:
            return self.loop.escape(exc)
        except BaseException as exc:
            return self.loop.report({
                'message': f'Exception in callback {callback!r}', 'exception': exc})
        return 0

    def cut_short(self):
        """End it early, if that can be done: with ECANCELED, unless it is done by then."""
        if not self.finished and self.loop.alive:
            pr_loop_cancel(&self.loop.core, &self.op)

    # Awaiting it

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def throw(self, exception, value=None, traceback=None):
        """Stop waiting and raise `exception`; the operation goes on."""
        self.callback = None
        self.yielded = self.cancelled = False
        if value is None:
            value = exception() if isinstance(exception, type) else exception
        raise value

    def close(self):
        """Stop waiting."""
        self.callback = None
        self.yielded = self.cancelled = False

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
        """Call `callback(self)` when it is done.  One at a time: RuntimeError."""
        if self.callback is not None:
            raise RuntimeError('one task at a time can wait for this')
        self.context = PyContext_CopyCurrent() if context is None else context
        if self.finished or self.cancelled:
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
        cdef object callback = self.callback
        if self.finished or self.cancelled or callback is None:
            return False
        self.callback = None
        self.cancelled = True
        self.cancel_message = msg
        self.loop.call_soon(callback, self, context=self.context)
        return True

    cdef int raise_cancelled(self) except -1:
        if self.cancel_message is None:
            raise exceptions.CancelledError
        raise exceptions.CancelledError(self.cancel_message)

    def done(self):
        """Return True once it is done."""
        return self.finished

    def result(self):
        """Return None once the wait is over; raises CancelledError where it was cancelled."""
        if self.cancelled:
            self.raise_cancelled()
        if not self.finished:
            raise exceptions.InvalidStateError('Result is not set.')

    def __repr__(self):
        return f'<RingOperation {"done" if self.finished else "pending"} kind={self.op.kind}>'


cdef PyObject *next_step(PyObject *object) except? NULL:
    """RingOperation.__next__: itself, to be waited for; then the end, with the result."""
    cdef RingOperation self = <RingOperation>object
    if self.cancelled:
        self.yielded = self.cancelled = False
        self.raise_cancelled()
    if self.finished:
        raise StopIteration(self.take_result())
    if self.yielded:
        raise RuntimeError("await wasn't used with future")
    self.yielded = self.blocking = True
    Py_INCREF(self)
    return object


(<PyTypeObject *>RingOperation).tp_iternext = next_step


cdef RingOperation operation(LoopCore loop, pr_op_kind kind, Descriptor descriptor):
    cdef RingOperation self = RingOperation.__new__(RingOperation)
    self.loop = loop
    self.op.kind = kind
    self.descriptor = descriptor
    if descriptor is not None:
        self.op.fd = descriptor.fd
    return self


cdef object bytes_of_path(object path):
    """The path as the kernel reads it."""
    encoded = os.fsencode(path)
    if b'\0' in encoded:
        raise ValueError('embedded null byte')
    return encoded


cdef RingOperation operation_on_path(LoopCore loop, pr_op_kind kind, object path, object dir_fd):
    cdef RingOperation self = operation(loop, kind, None)
    self.name = os.fspath(path)
    encoded = bytes_of_path(self.name)
    Py_INCREF(encoded)
    self.memory.path = <PyObject *>encoded
    self.op.path = PyBytes_AS_STRING(encoded)
    self.op.fd = AT_FDCWD if dir_fd is None else dir_fd
    return self


cdef int take_view(RingOperation self, object buffer, int flags) except -1:
    PyObject_GetBuffer(buffer, &self.memory.view, flags)
    self.op.buffer = self.memory.view.buf
    self.op.size = <uint32_t>min(self.memory.view.len, BYTES_PER_CALL_MAX)
    return 0


cdef int take_memory(RingOperation self, Py_ssize_t size) except -1:
    """Memory of its own, that nobody else knows."""
    self.memory.data = new_bytes(NULL, size)
    if self.memory.data == NULL:
        raise_pending()
    self.op.buffer = bytes_data(self.memory.data)
    self.op.size = <uint32_t>size
    return 0


cdef int audited_fd(object dir_fd) except? -2:
    return -1 if dir_fd is None else dir_fd


@cython.final
@cython.auto_pickle(False)
cdef class RingCalls:
    """System calls made by the ring that the loop runs on; see files/calls.py."""

    cdef LoopCore loop
    cdef object threads  # for what the ring cannot do

    def __cinit__(self, LoopCore loop not None, threads):
        self.loop = loop
        self.threads = threads

    def run(self, function, *args, **kwargs):
        """Call what else may block, in the thread pool."""
        return self.threads.run(function, *args, **kwargs)

    def open(self, path, uint32_t flags, uint32_t mode=0o666, *, dir_fd=None):
        """open(2): the Descriptor."""
        cdef RingOperation opening = operation_on_path(self.loop, PR_OP_OPEN, path, dir_fd)
        opening.op.flags = flags
        opening.op.mode = mode
        opening.submit()
        return opening

    def close(self, Descriptor descriptor not None):
        """close(2).  The number is nobody's as soon as this is called."""
        cdef RingOperation closing = operation(self.loop, PR_OP_CLOSE, None)
        self.loop.check_usable()
        closing.op.fd = descriptor.take()
        closing.submit()
        return closing

    def read(self, Descriptor descriptor not None, Py_ssize_t size, int64_t position,
             bint waits=False):
        """pread(2) or read(2): up to `size` bytes."""
        cdef RingOperation reading = operation(self.loop, PR_OP_READ, descriptor)
        take_memory(reading, min(size, BYTES_PER_CALL_MAX))
        reading.op.position = position
        reading.submit()
        return reading

    def readinto(self, Descriptor descriptor not None, buffer, int64_t position, bint waits=False):
        """preadv(2) or readv(2): how many bytes were read."""
        cdef RingOperation reading = operation(self.loop, PR_OP_READ, descriptor)
        take_view(reading, buffer, PyBUF_WRITABLE)
        reading.op.position = position
        reading.submit()
        return reading

    def write(self, Descriptor descriptor not None, data, int64_t position, bint waits=False):
        """pwrite(2) or write(2): how many bytes were written."""
        cdef RingOperation writing = operation(self.loop, PR_OP_WRITE, descriptor)
        take_view(writing, data, PyBUF_SIMPLE)
        writing.op.position = position
        writing.submit()
        return writing

    def fsync(self, Descriptor descriptor not None, bint data_only):
        """fsync(2) or fdatasync(2)."""
        cdef RingOperation syncing = operation(self.loop, PR_OP_FSYNC, descriptor)
        syncing.op.flags = PR_OP_DATA_ONLY if data_only else 0
        syncing.submit()
        return syncing

    def truncate(self, Descriptor descriptor not None, int64_t size):
        """ftruncate(2); before Linux 6.9 in the thread pool."""
        cdef RingOperation truncating
        if size < 0 or not pr_loop_supports(&self.loop.core, PR_OP_TRUNCATE):
            return self.threads.truncate(descriptor, size)
        truncating = operation(self.loop, PR_OP_TRUNCATE, descriptor)
        truncating.op.position = size
        truncating.submit()
        return truncating

    def status(self, Descriptor descriptor not None):
        """fstat(2)."""
        cdef RingOperation asking = operation(self.loop, PR_OP_STATX, descriptor)
        asking.op.path = b''
        asking.op.flags = AT_EMPTY_PATH
        return self.ask(asking)

    def stat(self, path, *, dir_fd=None, bint follow_symlinks=True):
        """stat(2), lstat(2) or fstatat(2)."""
        cdef RingOperation asking
        if isinstance(path, int):
            if dir_fd is not None:
                raise ValueError("stat: can't specify dir_fd without matching path")
            if not follow_symlinks:
                raise ValueError('stat: cannot use fd and follow_symlinks together')
            asking = operation(self.loop, PR_OP_STATX, None)
            asking.name = path
            asking.op.fd = path
            asking.op.path = b''
            asking.op.flags = AT_EMPTY_PATH
        else:
            asking = operation_on_path(self.loop, PR_OP_STATX, path, dir_fd)
            asking.op.flags = 0 if follow_symlinks else AT_SYMLINK_NOFOLLOW
        return self.ask(asking)

    cdef RingOperation ask(self, RingOperation asking):
        take_memory(asking, sizeof(statx_t))
        asking.op.size = STATX_BASIC_STATS
        asking.submit()
        return asking

    def rename(self, src, dst, *, src_dir_fd=None, dst_dir_fd=None):
        """rename(2)."""
        cdef RingOperation renaming = operation_on_path(self.loop, PR_OP_RENAME, src, src_dir_fd)
        renaming.other_name = os.fspath(dst)
        encoded = bytes_of_path(renaming.other_name)
        Py_INCREF(encoded)
        renaming.memory.other_path = <PyObject *>encoded
        renaming.op.other_path = PyBytes_AS_STRING(encoded)
        renaming.op.other_fd = AT_FDCWD if dst_dir_fd is None else dst_dir_fd
        sys.audit('os.rename', src, dst, audited_fd(src_dir_fd), audited_fd(dst_dir_fd))
        renaming.submit()
        return renaming

    def unlink(self, path, *, dir_fd=None):
        """unlink(2)."""
        cdef RingOperation removing = operation_on_path(self.loop, PR_OP_UNLINK, path, dir_fd)
        sys.audit('os.remove', path, audited_fd(dir_fd))
        removing.submit()
        return removing

    def rmdir(self, path, *, dir_fd=None):
        """rmdir(2)."""
        cdef RingOperation removing = operation_on_path(self.loop, PR_OP_UNLINK, path, dir_fd)
        removing.op.flags = AT_REMOVEDIR
        sys.audit('os.rmdir', path, audited_fd(dir_fd))
        removing.submit()
        return removing

    def mkdir(self, path, uint32_t mode=0o777, *, dir_fd=None):
        """mkdir(2)."""
        cdef RingOperation making = operation_on_path(self.loop, PR_OP_MKDIR, path, dir_fd)
        making.op.mode = mode
        sys.audit('os.mkdir', path, mode, audited_fd(dir_fd))
        making.submit()
        return making


def ring_calls(loop, threads):
    """Return the calls of the ring that `loop` runs on, or None where it has none for files.

    `threads` makes those that the ring cannot.
    """
    cdef LoopCore core
    cdef unsigned int kind
    if not isinstance(loop, LoopCore):
        return None
    core = loop
    if core._closed:
        return None
    for kind in range(PR_OP_KINDS):
        if kind != PR_OP_TRUNCATE and not pr_loop_supports(&core.core, <pr_op_kind>kind):
            return None
    return RingCalls(core, threads)
