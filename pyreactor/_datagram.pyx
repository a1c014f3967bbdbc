# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""UDP and Unix datagram transports: asyncio.DatagramTransport on an endpoint of the C core.

The transport owns the socket; the endpoint receives and sends.  The protocol is called in the
context in which the transport was made.  All methods: the loop's thread only.
"""

import asyncio
import os
import socket
import sys
from asyncio import constants, trsock
from asyncio.log import logger

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN

from pyreactor._base_transport cimport BaseTransport
from pyreactor._context cimport PyContext_CopyCurrent, release
from pyreactor._errors cimport errno_exception, raise_errno
from pyreactor._loop cimport LoopCore
from pyreactor._native cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    PR_HOST_TEXT_BYTES_MAX,
    PR_RECEIVE_BUFFER_BYTES,
    PR_WRITABLE,
    c_bool,
    htonl,
    ntohl,
    ntohs,
    pr_address,
    pr_address_copy,
    pr_address_equal,
    pr_address_format_host,
    pr_address_of_peer,
    pr_address_parse_host,
    pr_address_path,
    pr_address_set_path,
    pr_datagram_deinit,
    pr_datagram_endpoint,
    pr_datagram_flush,
    pr_datagram_handler,
    pr_datagram_init,
    pr_datagram_queue,
    pr_datagram_queue_by_owner,
    pr_datagram_send_soon,
    pr_datagram_set_reading,
    pr_datagram_set_water,
    pr_datagram_start,
    pr_datagram_stop,
    pr_watch_is_active,
)


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size)
    object PyUnicode_DecodeASCII(const char *text, Py_ssize_t size, const char *errors)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_IS_ASCII "PyUnicode_IS_COMPACT_ASCII" (object text)
    bint PyUnicode_CheckExact(object value)
    bint PyTuple_CheckExact(object value)
    bint PyLong_CheckExact(object value)


# asyncio's is both, too, from 3.13 on; before it is no DatagramTransport.
cdef object asyncio_datagram_transport = type(
    'DatagramTransport', (asyncio.Transport, asyncio.DatagramTransport), {'__slots__': ()})
cdef int DROPPED_WRITES_LOGGED = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
cdef size_t DATAGRAM_OVERHEAD_BYTES = 8 if sys.version_info >= (3, 13) else 0

cdef str READ_FAILED = 'Fatal read error on datagram transport'
cdef str WRITE_FAILED = 'Fatal write error on datagram transport'


cdef inline DatagramTransport owner_of(pr_datagram_endpoint *endpoint):
    return <DatagramTransport>endpoint.watch.owner


cdef void release_datagram(void *owner) noexcept:
    """Gives back what was queued, once the kernel has it."""
    release(<PyObject *>owner)


# Addresses: the same objects as the socket module's.

cdef object address_object(const pr_address *address):
    """What socket.recvfrom() returns for `address`."""
    cdef char text[PR_HOST_TEXT_BYTES_MAX]
    cdef const char *path
    cdef size_t size
    if address.size == 0:
        return None
    if address.any.sa_family == AF_UNIX:
        size = pr_address_path(address, &path)
        name = PyBytes_FromStringAndSize(path, size)
        return name if size and path[0] == 0 else os.fsdecode(name)
    size = pr_address_format_host(address, text)
    host = PyUnicode_DecodeASCII(text, size, NULL)
    if address.any.sa_family == AF_INET:
        return host, ntohs(address.ip4.sin_port)
    return (
        host, ntohs(address.ip6.sin6_port), ntohl(address.ip6.sin6_flowinfo),
        address.ip6.sin6_scope_id)


cdef bint read_number(object value, unsigned long long most, unsigned long long *number) except -1:
    """True where `value` is an int between 0 and `most`."""
    if not PyLong_CheckExact(value) or not 0 <= value <= most:
        return False
    number[0] = value
    return True


cdef bint read_ip_address(object value, int family, pr_address *address) except -1:
    cdef unsigned long long port, flow = 0, scope = 0
    cdef Py_ssize_t length = len(value)
    cdef Py_ssize_t size
    cdef const char *text
    if not 2 <= length <= (2 if family == AF_INET else 4):
        return False
    host = value[0]
    if not PyUnicode_CheckExact(host) or not PyUnicode_IS_ASCII(host):
        return False
    text = PyUnicode_AsUTF8AndSize(host, &size)
    if not read_number(value[1], 0xffff, &port):
        return False
    if length > 2 and not read_number(value[2], 0xfffff, &flow):
        return False
    if length > 3 and not read_number(value[3], 0xffffffff, &scope):
        return False
    if pr_address_parse_host(address, family, text, <unsigned short>port) < 0:
        return False
    if family == AF_INET6:
        address.ip6.sin6_flowinfo = htonl(<unsigned int>flow)
        address.ip6.sin6_scope_id = <unsigned int>scope
    return '\0' not in host


cdef bint read_address(object value, int family, pr_address *address) except -1:
    """True where `value` names a target that needs no look-up; then `address` is that.

    False is no judgement: the socket module decides about all the rest.
    """
    if family != AF_UNIX:
        return PyTuple_CheckExact(value) and read_ip_address(value, family, address)
    if PyUnicode_CheckExact(value):
        value = os.fsencode(value)
    if not PyBytes_CheckExact(value):
        return False
    return pr_address_set_path(address, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)) == 0


# What the endpoint tells its transport.  Exceptions stay inside: 1 ends the turn, and the loop
# keeps what must leave it.

cdef int on_received(
    pr_datagram_endpoint *endpoint, const char *data, size_t size, const pr_address *source
) noexcept:
    cdef DatagramTransport self = owner_of(endpoint)
    cdef PyObject *payload
    cdef int result
    if self._closing:
        return 0
    payload = new_bytes(data, <Py_ssize_t>size)
    if payload == NULL:
        return self.fail_with_pending(READ_FAILED)
    try:
        address = self.source_address(source)
    except BaseException as exc:
        release(payload)
        return self.give_up(exc, READ_FAILED)
    if self.kept is None and not self._paused and self._loop.escaping is None:
        result = self.deliver(payload, <PyObject *>address)
    else:
        result = self.keep(<object>payload, address)
    release(payload)
    return result


cdef int on_error(pr_datagram_endpoint *endpoint, int error, c_bool sending) noexcept:
    return owner_of(endpoint).tell_error(errno_exception(error))


cdef int send_by_owner(pr_datagram_endpoint *endpoint, void *owner) noexcept:
    """Sends to an address that only the socket module can read: a name, or a mistake."""
    data, address = <object>owner
    return owner_of(endpoint).send_now(data, address)


cdef int on_high_water(pr_datagram_endpoint *endpoint) noexcept:
    return owner_of(endpoint).advise_protocol('pause_writing')


cdef int on_low_water(pr_datagram_endpoint *endpoint) noexcept:
    return owner_of(endpoint).advise_protocol('resume_writing')


cdef int on_drained(pr_datagram_endpoint *endpoint) noexcept:
    cdef DatagramTransport self = owner_of(endpoint)
    try:
        self.lose_connection(None)
    except BaseException as exc:
        return self._loop.escape(exc)
    return 0


cdef pr_datagram_handler handler
handler.on_received = on_received
handler.on_error = on_error
handler.send_by_owner = send_by_owner
handler.on_high_water = on_high_water
handler.on_low_water = on_low_water
handler.on_drained = on_drained


@cython.no_gc_clear  # its endpoint refers to the loop until the very end
cdef class DatagramTransport(BaseTransport):
    """A UDP or Unix datagram socket; an asyncio.DatagramTransport.

    isinstance(transport, asyncio.DatagramTransport) holds: `__class__` says so.  What is sent in
    one callback leaves together when that callback returns.
    """

    families = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})
    max_size = 256 * 1024  # the largest datagram that can be received, in bytes

    @property
    def __class__(self):
        return asyncio_datagram_transport

    def __init__(
        self, LoopCore loop not None, sock, protocol, address=None, waiter=None, extra=None,
        context=None
    ):
        """Take over a non-blocking socket of one of `families`; connection_made() follows soon.

        `address` is the only one that sendto() may then send to; `waiter` a future to be set after
        connection_made(); `context` the one to call the protocol in, by default a copy of the
        current one.
        """
        cdef int error
        self._loop = loop
        self.context = PyContext_CopyCurrent() if context is None else context
        self.fd = sock.fileno()
        self.family = sock.family
        self._protocol = protocol
        self._address = address or None
        pr_datagram_init(
            &self.endpoint, &loop.core, &handler, <void *>self, release_datagram)
        self.endpoint.overhead_bytes = DATAGRAM_OVERHEAD_BYTES
        if self.family == AF_UNIX:
            self.endpoint.datagram_bytes_max = PR_RECEIVE_BUFFER_BYTES
        if (
            self.family == AF_UNIX or sock.type != socket.SOCK_DGRAM
            or sock.proto not in (0, socket.IPPROTO_UDP)
        ):
            self.endpoint.segment_bytes_max = 0
        self.extra = {} if extra is None else dict(extra)
        self.extra['socket'] = trsock.TransportSocket(sock)
        try:
            self.extra['sockname'] = sock.getsockname()
        except OSError:
            self.extra['sockname'] = None
        self.connected = pr_address_of_peer(&self.target, self.fd) == 0
        if 'peername' not in self.extra:
            self.extra['peername'] = sock.getpeername() if self.connected else None
        error = pr_datagram_start(&self.endpoint, self.fd)
        if error < 0:
            raise_errno(error)
        self.file = sock
        loop.open_transports.add(self)
        loop.call_soon(self._connect, waiter, context=self.context)

    def __dealloc__(self):
        if self.endpoint.handler != NULL:
            pr_datagram_deinit(&self.endpoint)

    @property
    def _sock(self):
        return self.file

    @property
    def _sock_fd(self):
        return self.fd

    def _connect(self, waiter):
        self.begin(waiter)

    # Receiving

    cdef object source_address(self, const pr_address *source):
        if self.source_object is None or not pr_address_equal(source, &self.source):
            self.source_object = None
            pr_address_copy(&self.source, source)
            self.source_object = address_object(source)
        return self.source_object

    cdef int deliver(self, PyObject *data, PyObject *address) noexcept:
        return self.conclude(
            'datagram_received', self.call_with_two('datagram_received', data, address))

    cdef int keep(self, object data, object address) noexcept:
        """Keeps what came in one batch with a datagram whose callback has stopped reading."""
        try:
            if self.kept is None:
                self.kept = []
            self.kept.append((data, address))
            if not self._paused:
                self.schedule_kept()
        except BaseException as exc:
            return self.give_up(exc, READ_FAILED)
        return 0

    cdef int schedule_kept(self) except -1:
        if not self.delivering_kept:
            self._loop.call_soon(self._deliver_kept, context=self.context)
            self.delivering_kept = True
        return 0

    def _deliver_kept(self):
        self.delivering_kept = False
        while self.kept and not self._paused and not self._closing:
            data, address = self.kept.pop(0)
            if self.deliver(<PyObject *>data, <PyObject *>address) != 0:
                if self.kept:
                    self.schedule_kept()
                self._loop.raise_escaping()
        if not self.kept or self._closing:
            self.kept = None

    cdef int tell_error(self, object exception) noexcept:
        """error_received()."""
        return self.conclude(
            'error_received', self.call('error_received', <PyObject *>exception))

    def is_reading(self):
        """Return True while datagrams may come: neither paused nor closing."""
        return not self._closing and not self._paused

    def pause_reading(self):
        """Keep datagram_received() from being called until resume_reading()."""
        self.pause()

    def resume_reading(self):
        """Undo pause_reading()."""
        self.resume()

    cdef int set_reading(self, bint reading) except -1:
        if reading and self.kept is not None:
            self.schedule_kept()
        return self.settle(pr_datagram_set_reading(&self.endpoint, reading))

    # Sending

    def sendto(self, data, addr=None):
        """Send `data` (bytes, bytearray or memoryview) as one datagram to `addr`.

        Without `addr` it goes to the address that the transport was made with.  What the caller may
        change is copied.  Raises TypeError for other types and ValueError for an address other than
        the transport's own; errors of sending go to error_received().  After close() or abort() a
        transport with an address of its own drops the data; the others send it until
        connection_lost(), as asyncio's do, and drop it where the kernel has no room.
        """
        cdef int result
        self.check_thread()
        if not PyBytes_CheckExact(data):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(
                    f'data argument must be a bytes-like object, not {type(data).__name__!r}')
            data = bytes(data)
        if self._address is not None:
            if addr is not None and not self.is_peer(addr):
                raise ValueError(f'Invalid address: must be None or {self._address}')
            addr = self._address
        if self._conn_lost:
            # The endpoint has stopped; the socket is open until connection_lost().
            result = (-EAGAIN if self._address is not None or self.file is None
                      else self.send_now(data, addr))
            if result != -EAGAIN:
                self.settle(result)
                return
            if self._conn_lost >= DROPPED_WRITES_LOGGED:
                logger.warning('socket.send() raised exception.')
            self._conn_lost += 1
            return
        self.queue(data, addr)
        self.settle(pr_datagram_send_soon(&self.endpoint))

    cdef int send_now(self, object data, object address) noexcept:
        """Sends by the socket module.  0, -EAGAIN, or 1 where the turn is to end."""
        try:
            self.file.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            return -EAGAIN
        except OSError as exc:
            return self.tell_error(exc)
        except BaseException as exc:
            return self.give_up(exc, WRITE_FAILED)
        return 0

    cdef bint is_peer(self, object address) except -1:
        """True where `address` is the transport's own, in whatever form."""
        cdef pr_address other
        return address == self._address or (
            self.connected and read_address(address, self.family, &other)
            and pr_address_equal(&other, &self.target))

    cdef const pr_address *find_target(self, object address) except? NULL:
        """The address as the kernel takes it; NULL where only the socket module knows."""
        if address is None:
            return NULL
        if address is self.source_object:
            return &self.source
        if address is not self.target_object:
            self.target_object = None
            if not read_address(address, self.family, &self.target):
                return NULL
            self.target_object = address
        return &self.target

    cdef int queue(self, bytes data, object address) except -1:
        """Queues a datagram; the queue keeps what it needs of the arguments."""
        cdef const pr_address *target = NULL
        cdef object owner = data
        cdef int error
        if not self.connected:
            target = self.find_target(address)
            if target == NULL:
                owner = data, address
        Py_INCREF(owner)
        if target == NULL and not self.connected:
            error = pr_datagram_queue_by_owner(
                &self.endpoint, <size_t>PyBytes_GET_SIZE(data), <void *>owner)
        else:
            error = pr_datagram_queue(
                &self.endpoint, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data),
                <void *>owner, target)
        if error < 0:
            Py_DECREF(owner)
            raise MemoryError
        return 0

    def get_write_buffer_size(self):
        """Return how many bytes the kernel has not taken yet; from Python 3.13 on, 8 more each."""
        self.check_thread()
        self.settle(pr_datagram_flush(&self.endpoint))
        return self.endpoint.bytes

    def get_write_buffer_limits(self):
        """Return (low, high), the marks for resume_writing() and pause_writing(), in bytes."""
        return self.endpoint.low_water_bytes, self.endpoint.high_water_bytes

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks, in bytes; by default high is 64 KiB, or 4 * low, and low is high / 4.

        Raises ValueError unless high >= low >= 0.
        """
        self.check_thread()
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f'high ({high!r}) must be >= low ({low!r}) must be >= 0')
        self.settle(pr_datagram_set_water(&self.endpoint, high, low))

    @property
    def _protocol_paused(self):
        return self.endpoint.over_high_water

    # The end

    def close(self):
        """Send what is written, then call connection_lost(None).  Nothing more is received."""
        self.check_thread()
        if self._closing:
            return
        self._closing = True
        pr_datagram_set_reading(&self.endpoint, False)
        self.settle(pr_datagram_flush(&self.endpoint))
        if self._conn_lost:  # sending has failed just now
            return
        if self.endpoint.count:
            self.endpoint.wants_drained = True
        else:
            self.lose_connection(None)

    def abort(self):
        """Drop what the kernel has not taken, then call connection_lost(None)."""
        self.check_thread()
        self.force_close(None)

    cdef int send_held(self) except -1:
        return self.settle(pr_datagram_flush(&self.endpoint))

    cdef int stop(self) except -1:
        pr_datagram_stop(&self.endpoint)
        self.kept = None
        return 0

    def _loop_closed(self):
        """The loop goes; the socket stays until this transport is closed or collected."""
        pr_datagram_stop(&self.endpoint)

    def _held_buffers(self):
        return self.endpoint.count

    cdef int settle(self, int result) except -1:
        """Acts on what a call of the endpoint returned, in a method that the user has called."""
        if result < 0:
            self.fail(errno_exception(result), WRITE_FAILED)
        elif result > 0:
            self._loop.raise_escaping()
        return 0

    # Information

    def __repr__(self):
        info = ['DatagramTransport']
        if self.file is None:
            info.append('closed')
        elif self._closing:
            info.append('closing')
        info.append(f'fd={self.fd}')
        if pr_watch_is_active(&self.endpoint.watch):
            info.append('read=polling' if self.endpoint.reading else 'read=idle')
            state = 'polling' if self.endpoint.watch.wanted & PR_WRITABLE else 'idle'
            info.append(f'write=<{state}, bufsize={self.endpoint.bytes}>')
        return '<{}>'.format(' '.join(info))
