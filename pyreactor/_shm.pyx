# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""Shared memory on the C core: the queue between processes, and segments for bulk data.

Any thread may call any method.  A call that has to wait does so without the GIL, and lets signal
handlers run; large items are copied without it.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_READ,
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.errno cimport EBADMSG, EINTR, EINVAL, EMSGSIZE, EPROTO, ESHUTDOWN, ETIMEDOUT, EUSERS
from libc.stdint cimport INT64_MAX, int64_t, uint16_t
from libc.string cimport memcpy

import os
import pickle
import weakref
from typing import NamedTuple

from pyreactor._errors cimport raise_errno
from pyreactor._native cimport (
    PR_AT_LEAST_ONCE,
    PR_AT_MOST_ONCE,
    pr_now_ns,
    pr_segment_attach,
    pr_segment_create,
    pr_segment_detach,
    pr_shared_item,
    pr_shared_options,
    pr_shared_part,
    pr_shared_queue_attach,
    pr_shared_queue_clear,
    pr_shared_queue_close,
    pr_shared_queue_create,
    pr_shared_queue_depth,
    pr_shared_queue_detach,
    pr_shared_queue_get,
    pr_shared_queue_give_back,
    pr_shared_queue_is_closed,
    pr_shared_queue_put,
    pr_shared_queue_read_stats,
    pr_shared_queue_rejoin_after_fork,
    pr_shared_queue_settle,
    pr_shared_queue_stop_wait,
    pr_shared_queue_wait,
    pr_shared_stats,
)
from pyreactor._waiting cimport NS_PER_SECOND, PyErr_CheckSignals, deadline_after

from pyreactor._queue import QueueClosed


cdef enum:
    KIND_BYTES = 0
    KIND_PICKLE = 1
    LARGE_BYTES = 32768  # copying more takes longer than another thread should wait for the GIL
    BLOCK_BYTES = 4096

POLICIES = {'at_most_once': PR_AT_MOST_ONCE, 'at_least_once': PR_AT_LEAST_ONCE}


class SharedQueueStats(NamedTuple):
    """What a shared queue has counted since it was made, in all processes together."""

    puts: int
    gets: int
    returned: int  # items that were given back, by their consumers or because these died
    lost: int  # items whose consumer died, where the policy is at_most_once
    void_puts: int  # puts that never ended, because the producer died
    deaths: int  # participants that died
    put_sleeps: int  # how often a thread went to sleep because the queue was full
    get_sleeps: int  # ... because it was empty
    put_wakes: int
    get_wakes: int


cdef bint was_in_time(int result, str closed) except -1:
    """What came of a put or a get; raises QueueClosed with `closed`, or OSError."""
    if result == -ESHUTDOWN:
        raise QueueClosed(closed)
    if result < 0 and result != -ETIMEDOUT and result != -EINTR:
        raise_errno(result)
    return result == 0


attachments = None  # those of this process, for its forked children


def rejoin_all():
    """In a forked child: be a participant of one's own, at each queue."""
    for core in list(attachments):
        (<SharedQueueCore>core).broken = pr_shared_queue_rejoin_after_fork(
            &(<SharedQueueCore>core).core)


cdef int note_attachment(SharedQueueCore core) except -1:
    global attachments
    if attachments is None:
        attachments = weakref.WeakSet()
        os.register_at_fork(after_in_child=rejoin_all)
    attachments.add(core)
    return 0


cdef class SharedQueueCore:
    """The C queue as a Python object: one attachment to a queue between processes."""

    def __cinit__(
        self, capacity=None, *, item_bytes=224, bulk_bytes=16 << 20, policy='at_most_once',
        participants=256, spin_us=0, recheck_seconds=0.2, attach_to=-1
    ):
        cdef pr_shared_options options
        cdef int error
        cdef int fd = attach_to
        self.core.segment.fd = -1
        if fd >= 0:
            error = pr_shared_queue_attach(&self.core, fd)
        else:
            if policy not in POLICIES:
                raise ValueError(
                    f"there is no policy {policy!r}: choose 'at_most_once' or 'at_least_once'")
            if capacity is None:
                raise TypeError('a shared queue needs a capacity: how many items fit')
            for name, value, low, high in (
                ('capacity', capacity, 1, 1 << 24), ('item_bytes', item_bytes, 0, 1 << 20),
                ('bulk_bytes', bulk_bytes, 0, 1 << 32), ('participants', participants, 2, 4096),
                ('spin_us', spin_us, 0, 1000000), ('recheck_seconds', recheck_seconds, 0.001, 3600),
            ):
                if not low <= value <= high:
                    raise ValueError(f'{name} must be between {low} and {high}')
            options.capacity = capacity
            options.item_bytes = item_bytes
            options.block_bytes = BLOCK_BYTES
            options.blocks = (bulk_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES
            options.participants = participants
            options.policy = POLICIES[policy]
            options.spin_ns = <int64_t>(spin_us * 1000)
            options.recheck_ns = <int64_t>(recheck_seconds * NS_PER_SECOND)
            error = pr_shared_queue_create(&self.core, &options)
        if error == -EINVAL:
            raise ValueError('this descriptor is not that of a shared queue')
        if error == -EPROTO:
            raise ValueError('this shared queue was made by another version of pyreactor')
        if error == -EUSERS:
            raise RuntimeError(
                'as many processes as the queue allows take part: make it with more participants')
        if error < 0:
            raise_errno(error)
        self.open = True
        note_attachment(self)

    def __dealloc__(self):
        if self.open:
            pr_shared_queue_detach(&self.core)

    cdef int check(self) except -1:
        if self.broken < 0:
            raise_errno(self.broken)
        return 0

    # Putting

    cdef int put_parts(
        self, const pr_shared_part *parts, size_t count, size_t size, uint16_t kind,
        object timeout
    ) except -1:
        """Puts an item; returns whether it was put in time."""
        cdef int64_t deadline_ns
        cdef int result
        self.check()
        if size < LARGE_BYTES:
            result = pr_shared_queue_put(&self.core, parts, count, kind, 0)
        else:
            with nogil:
                result = pr_shared_queue_put(&self.core, parts, count, kind, 0)
        if result == -ETIMEDOUT or result == -EINTR:
            deadline_ns = deadline_after(timeout)
            while deadline_ns != 0:
                with nogil:
                    result = pr_shared_queue_put(&self.core, parts, count, kind, deadline_ns)
                if result != -EINTR:
                    break
                PyErr_CheckSignals()
        if result == -EMSGSIZE:
            raise ValueError(
                f'an item of {size} bytes does not fit: make the queue with more bulk_bytes '
                f'(now {<size_t>self.core.block_count * self.core.block_bytes}), or put a Segment')
        return was_in_time(result, 'the queue is closed')

    cdef int put_item(self, object item, object timeout) except -1:
        cdef pr_shared_part part
        cdef Py_buffer view
        cdef uint16_t kind = KIND_BYTES
        if not isinstance(item, (bytes, memoryview)):
            item = pickle.dumps(item, 5)
            kind = KIND_PICKLE
        PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
        try:
            part.data = view.buf
            part.size = <size_t>view.len
            return self.put_parts(&part, 1, part.size, kind, timeout)
        finally:
            PyBuffer_Release(&view)

    def put(self, item, timeout=None):
        """Put an item; wait for room at most `timeout` seconds, for ever if it is None.

        An item is anything that can be pickled; bytes are copied as they are, and so is what a
        memoryview shows, which arrives as bytes.  Raises TimeoutError, QueueClosed, or ValueError
        for an item that is too large ever to fit.
        """
        if not self.put_item(item, timeout):
            raise TimeoutError('the queue stayed full')

    def try_put(self, item):
        """Put an item if there is room; return whether it was put.  Raises as put() does."""
        return self.put_item(item, 0) != 0

    def put_many(self, items, timeout=None):
        """Put all items of an iterable, in order; wait for room `timeout` seconds in all at most.

        Returns how many were put, which is fewer than all only where the time was over or the queue
        was closed in between.  Where none was, it raises TimeoutError or QueueClosed.
        """
        cdef int64_t deadline_ns = deadline_after(timeout)
        done = 0
        for item in items:
            try:
                left = (None if deadline_ns == INT64_MAX
                        else max(0, deadline_ns - pr_now_ns()) / NS_PER_SECOND)
                self.put(item, left)
            except (TimeoutError, QueueClosed):
                if done == 0:
                    raise
                break
            done += 1
        return done

    def _put_parts(self, head, body, timeout=None):
        """Put two buffers as one item of bytes; return whether there was room in time."""
        cdef pr_shared_part parts[2]
        cdef Py_buffer head_view, body_view
        PyObject_GetBuffer(head, &head_view, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(body, &body_view, PyBUF_SIMPLE)
            try:
                parts[0].data = head_view.buf
                parts[0].size = <size_t>head_view.len
                parts[1].data = body_view.buf
                parts[1].size = <size_t>body_view.len
                return self.put_parts(
                    parts, 2, parts[0].size + parts[1].size, KIND_BYTES, timeout) != 0
            finally:
                PyBuffer_Release(&body_view)
        finally:
            PyBuffer_Release(&head_view)

    # Getting

    cdef int get_item(self, pr_shared_item *item, object timeout) except -1:
        """Gets an item, which is then ours to settle; returns whether there was one in time."""
        cdef int64_t deadline_ns
        cdef int result
        self.check()
        result = pr_shared_queue_get(&self.core, item, 0)
        if result == -ETIMEDOUT or result == -EINTR:
            deadline_ns = deadline_after(timeout)
            while deadline_ns != 0:
                with nogil:
                    result = pr_shared_queue_get(&self.core, item, deadline_ns)
                if result != -EINTR:
                    break
                PyErr_CheckSignals()
        if result == -EBADMSG:
            raise RuntimeError('a participant has damaged an item of the queue; it was dropped')
        return was_in_time(result, 'the queue is closed and empty')

    cdef object load(self, const pr_shared_item *item):
        """Makes the Python object."""
        cdef Py_ssize_t size = <Py_ssize_t>item.size
        cdef char *target
        if item.kind == KIND_PICKLE:
            view = PyMemoryView_FromMemory(<char *>item.data, size, PyBUF_READ)
            try:
                return pickle.loads(view)
            finally:
                view.release()
        data = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AS_STRING(data)
        if size < LARGE_BYTES:
            memcpy(target, item.data, <size_t>size)
        else:
            with nogil:
                memcpy(target, item.data, <size_t>size)
        return data

    cdef object receive(self, pr_shared_item *item):
        """The Python object; the item is settled, whatever happens."""
        try:
            return self.load(item)
        finally:
            pr_shared_queue_settle(&self.core, item)

    def get(self, timeout=None):
        """Take the oldest item; wait for one at most `timeout` seconds, for ever if it is None.

        Raises TimeoutError, or QueueClosed when the queue is closed and empty.  The item is
        acknowledged by receiving it: see take().
        """
        cdef pr_shared_item item
        if not self.get_item(&item, timeout):
            raise TimeoutError('the queue stayed empty')
        return self.receive(&item)

    def try_get(self, default=None):
        """Take the oldest item, or return `default` where there is none.

        Raises QueueClosed when the queue is closed and empty.
        """
        cdef pr_shared_item item
        if not self.get_item(&item, 0):
            return default
        return self.receive(&item)

    def get_many(self, max, timeout=None):
        """Take up to `max` of the oldest items, as many as there are, at least one.

        It waits for the first as get() does, and for no other.
        """
        cdef pr_shared_item item
        cdef Py_ssize_t left = max
        if left < 1:
            raise ValueError('max must be at least 1')
        items = [self.get(timeout)]
        try:
            while len(items) < left and self.get_item(&item, 0):
                items.append(self.receive(&item))
        except QueueClosed:
            pass
        return items

    def take(self, timeout=None):
        """Take the oldest item as a Delivery, to be acknowledged when it has been worked on.

        Waits and raises as get() does.  Where the policy is "at_least_once" the item stays in the
        queue until then, and is delivered to another should this process die.
        """
        cdef Delivery delivery = Delivery.__new__(Delivery)
        if not self.get_item(&delivery.place, timeout):
            raise TimeoutError('the queue stayed empty')
        delivery.queue = self
        if self.core.header.policy == PR_AT_MOST_ONCE:
            delivery.item = self.receive(&delivery.place)
            return delivery
        try:
            delivery.item = self.load(&delivery.place)
        except BaseException:
            # Nobody could ever load it.
            pr_shared_queue_settle(&self.core, &delivery.place)
            raise
        delivery.held = True
        return delivery

    def _take_view(self, timeout=None):
        """Take an item as take() does, whatever the policy, as a view of the memory it lies in.

        The view is released before ack() or nack(), and nothing of it is used afterwards.
        """
        cdef Delivery delivery = Delivery.__new__(Delivery)
        if not self.get_item(&delivery.place, timeout):
            raise TimeoutError('the queue stayed empty')
        delivery.queue = self
        delivery.held = True
        delivery.item = PyMemoryView_FromMemory(
            <char *>delivery.place.data, <Py_ssize_t>delivery.place.size, PyBUF_READ)
        return delivery

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.get()
        except QueueClosed:
            raise StopIteration from None

    # Its state

    def close(self):
        """Let puts fail from now on, in every process; gets take what is left.

        Everybody who waits is woken.  Does nothing the second time.
        """
        with nogil:
            pr_shared_queue_close(&self.core)

    @property
    def closed(self):
        """True after close(), whoever called it."""
        return pr_shared_queue_is_closed(&self.core)

    @property
    def capacity(self):
        """How many items fit: what was asked for, rounded up to a power of two."""
        return self.core.header.capacity

    @property
    def kind(self):
        """'shared'."""
        return 'shared'

    @property
    def semantics(self):
        """The policy: 'at_most_once' or 'at_least_once'."""
        return 'at_least_once' if self.core.header.policy == PR_AT_LEAST_ONCE else 'at_most_once'

    def __len__(self):
        """Return how many items wait; while others put and get, how many did a moment ago."""
        return <Py_ssize_t>pr_shared_queue_depth(&self.core)

    def __bool__(self):
        return True  # a queue that is empty is still a queue

    def fileno(self):
        """Return the descriptor of the queue's memory, with which others can attach to it."""
        return self.core.segment.fd

    @property
    def participant(self):
        """The number of this attachment among those who take part."""
        return self.core.self

    def clear(self):
        """Clear away what participants that died have left; return how many had.

        Threads that wait at the queue do this by themselves now and then.  This is for who learns
        of a death, and does not want others to wait for it.
        """
        cdef int dead
        self.check()
        with nogil:
            dead = pr_shared_queue_clear(&self.core)
        return dead

    def stats(self):
        """Return what the queue has counted, as SharedQueueStats."""
        cdef pr_shared_stats stats
        pr_shared_queue_read_stats(&self.core, &stats)
        return SharedQueueStats(
            stats.puts, stats.gets, stats.returned, stats.lost, stats.void_puts, stats.deaths,
            stats.put_sleeps, stats.get_sleeps, stats.put_wakes, stats.get_wakes)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = ' closed' if self.closed else ''
        return f'<{type(self).__name__} {self.semantics} {len(self)}/{self.capacity}{state}>'


cdef class Delivery:
    """An item that was taken, until it is acknowledged.

    As a context manager it gives the item, acknowledges it at the end of the block, and gives it
    back if the block raises.  One that is forgotten is given back.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError('deliveries are made by take()')

    def __dealloc__(self):
        if self.held:
            pr_shared_queue_give_back(&self.queue.core, &self.place)

    @property
    def deliveries(self):
        """How many times the item has been taken, this one included: more than once where it was
        given back, or who had it died."""
        return self.place.deliveries

    def ack(self):
        """Say that the item has been worked on: it leaves the queue.

        Does nothing the second time, or where taking it was its end.
        """
        if self.held:
            self.held = False
            pr_shared_queue_settle(&self.queue.core, &self.place)

    def nack(self):
        """Give the item back for another to take; return whether that was possible.

        It is not where the policy is at_most_once, or after ack().
        """
        if not self.held:
            return False
        self.held = False
        pr_shared_queue_give_back(&self.queue.core, &self.place)
        return True

    def __enter__(self):
        return self.item

    def __exit__(self, kind, value, traceback):
        if kind is None:
            self.ack()
        else:
            self.nack()

    def __repr__(self):
        return f'<Delivery {self.item!r}{" held" if self.held else ""}>'


cdef class Sleeper:
    """One thread's wait for an item that others, a loop's tasks, will take."""

    def __cinit__(self, SharedQueueCore queue not None):
        self.queue = queue

    def wait(self):
        """Wait until there may be an item to get, or the queue has ended; False after stop()."""
        cdef int result = -EINTR
        while result == -EINTR:
            with nogil:
                result = pr_shared_queue_wait(&self.queue.core, &self.core, INT64_MAX)
        return result == 0

    def stop(self):
        """End the wait, and those to come."""
        with nogil:
            pr_shared_queue_stop_wait(&self.queue.core, &self.core)


cdef class SegmentCore:
    """Memory that processes share, as a writable buffer."""

    def __cinit__(self, size=None, *, attach_to=-1):
        cdef int error
        cdef int fd = attach_to
        if fd >= 0:
            error = pr_segment_attach(&self.core, fd)
            if error == -EINVAL:
                raise ValueError('this descriptor is not that of a segment')
        else:
            if size < 1:
                raise ValueError('a segment has at least one byte')
            error = pr_segment_create(&self.core, 'pyreactor-segment', <size_t>size)
        if error < 0:
            raise_errno(error)
        self.open = True

    def __dealloc__(self):
        if self.open:
            pr_segment_detach(&self.core)

    def close(self):
        """Unmap the memory here; it lives on in other processes.  Does nothing the second time.

        Raises BufferError while a memoryview of it exists.
        """
        cdef bint was_open
        with cython.critical_section(self):
            if self.exports:
                raise BufferError('a memoryview of this segment exists: release it first')
            was_open = self.open
            self.open = False
        if was_open:
            pr_segment_detach(&self.core)

    @property
    def closed(self):
        """True after close()."""
        return not self.open

    def fileno(self):
        """Return the descriptor, with which others can attach to it.  Raises ValueError."""
        if not self.open:
            raise ValueError('the segment is closed')
        return self.core.fd

    def __len__(self):
        return <Py_ssize_t>self.core.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        with cython.critical_section(self):
            if not self.open:
                raise BufferError('the segment is closed')
            PyBuffer_FillInfo(view, self, self.core.memory, <Py_ssize_t>self.core.size, 0, flags)
            self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        with cython.critical_section(self):
            self.exports -= 1

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return f'<{type(self).__name__} {len(self)} bytes{"" if self.open else " closed"}>'
