# cython: language_level=3, embedsignature=True, freethreading_compatible=True
# cython: boundscheck=False, wraparound=False
"""The attempts that the loop's sock_*() methods are made of.

None of them sleeps.  Receiving and sending do not even where the socket is in blocking mode, if it
is exactly a `socket.socket`; any other is asked by its own methods.
"""

import socket
from asyncio import base_events

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno

from pyreactor._loop cimport LoopCore
from pyreactor._native cimport PR_RECEIVE_BUFFER_BYTES


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)


cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)


cdef extern from "<string.h>" nogil:
    size_t strlen(const char *text)


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8(object text) except NULL


cdef object socket_type = socket.socket
cdef object socket_inet = socket.AF_INET
cdef object socket_inet6 = socket.AF_INET6
cdef ssize_t BLOCKED = -1


cdef int check(LoopCore loop, object sock) except -1:
    """asyncio's checks, in its words."""
    if type(sock) is not socket_type:
        base_events._check_ssl_socket(sock)
    if loop._debug and sock.gettimeout() != 0:
        raise ValueError('the socket must be non-blocking')
    return 0


cdef inline ssize_t receive(int fd, void *buffer, size_t size) except -2:
    cdef ssize_t count
    while True:
        count = recv(fd, buffer, size, MSG_DONTWAIT)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return BLOCKED
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
            return -2


cdef inline ssize_t transmit(int fd, const void *data, size_t size) except -2:
    cdef ssize_t count
    while True:
        count = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return BLOCKED
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
            return -2


def check_sock(LoopCore loop not None, sock):
    """Raise TypeError for a TLS socket, and in debug mode ValueError for a blocking one."""
    check(loop, sock)


def try_recv(LoopCore loop not None, sock, size):
    """Return up to `size` bytes, b'' at the end of the stream, or None."""
    cdef ssize_t received
    check(loop, sock)
    if (type(sock) is not socket_type or type(size) is not int
            or not 0 < size <= PR_RECEIVE_BUFFER_BYTES):
        try:
            return sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
    # Out of the loop's warm buffer exactly what has come is copied.
    received = receive(sock.fileno(), loop.core.receive_buffer, size)
    if received == BLOCKED:
        return None
    return PyBytes_FromStringAndSize(loop.core.receive_buffer, received)


def try_recv_into(LoopCore loop not None, sock, buffer):
    """Fill the buffer with what there is; return how many bytes, 0 at the end, or None."""
    cdef Py_buffer view
    cdef ssize_t received
    check(loop, sock)
    if type(sock) is socket_type:
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            if view.len:
                received = receive(sock.fileno(), view.buf, <size_t>view.len)
                return None if received == BLOCKED else received
        finally:
            PyBuffer_Release(&view)
    try:
        return sock.recv_into(buffer)
    except (BlockingIOError, InterruptedError):
        return None


def try_send(LoopCore loop not None, sock, data, Py_ssize_t start):
    """Send `data` from its byte `start` on.

    Return None once all of it is sent, else how many bytes are, up to now.
    """
    cdef Py_buffer view
    cdef ssize_t sent
    check(loop, sock)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        # On a partial send, too, until it would block: only then will there be an event.
        while True:
            if type(sock) is socket_type:
                sent = transmit(sock.fileno(), <char *>view.buf + start, <size_t>(view.len - start))
            else:
                try:
                    sent = sock.send(memoryview(data).cast('B')[start:])
                except (BlockingIOError, InterruptedError):
                    sent = BLOCKED
            if sent == BLOCKED:
                return start
            start += sent
            if start >= view.len:
                return None
    finally:
        PyBuffer_Release(&view)


def numeric_family(address):
    """Return AF_INET or AF_INET6 where `address` is (host, port, ...) in numbers, else None.

    None may also mean that asyncio's own code has to look: it knows more ways to write a port.
    """
    cdef char number[16]
    cdef const char *host
    if type(address) is not tuple or not 2 <= len(<tuple>address) <= 4:
        return None
    name, port = (<tuple>address)[0], (<tuple>address)[1]
    if type(name) is not str or type(port) is not int or not (<str>name).isascii():
        return None
    host = PyUnicode_AsUTF8(name)
    if strlen(host) != <size_t>len(<str>name):
        return None  # there is a NUL in it
    if inet_pton(AF_INET, host, number) == 1:
        return socket_inet
    if inet_pton(AF_INET6, host, number) == 1:
        return socket_inet6
    return None


def attempt(LoopCore loop not None, sock, method, *args):
    """Return what a method of the non-blocking `sock` returns, or None where it would block."""
    check(loop, sock)
    try:
        return method(*args)
    except (BlockingIOError, InterruptedError):
        return None
