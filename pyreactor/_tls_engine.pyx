# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""TLS engines: ciphertext to plaintext and back, for one connection, without any I/O.

Both make the stdlib's `ssl.SSLObject` from the user's `ssl.SSLContext`, which makes the handshake
and the shutdown: certificates, host names, callbacks and exceptions are the stdlib's.  They differ
in the data path.  `OpenSSLEngine` hands received bytes to OpenSSL where they lie, by the functions
of the library that `_ssl` itself uses; `MemoryBIOEngine` goes through `ssl.MemoryBIO`, on any
Python.  docs/design/tls.md tells how the first is reached and when the second steps in.
"""

import os
import ssl
import sys

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_READ, PyBUF_WRITE
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, ENOENT, EPROTO
from libc.stdlib cimport free

from pyreactor._native cimport (
    SSL,
    pr_openssl,
    pr_openssl_is_mapped,
    pr_openssl_load,
    pr_tls_clear_output,
    pr_tls_deinit,
    pr_tls_feed,
    pr_tls_has_input,
    pr_tls_init,
    pr_tls_keep,
    pr_tls_load,
    pr_tls_read,
    pr_tls_readable_max,
    pr_tls_take_output,
    pr_tls_write,
)
from pyreactor._transport cimport StreamTransport


cdef extern from *:
    """
    /* The beginning of _ssl._SSLSocket and _ssl.MemoryBIO, in CPython 3.11 to 3.15. */
    struct pr_ssl_socket {
        PyObject_HEAD
        PyObject *socket;
        void *ssl;
        PyObject *context;
    };

    struct pr_memory_bio {
        PyObject_HEAD
        void *bio;
    };

    static inline int pr_has_size(PyObject *object, size_t size)
    {
        return (size_t)Py_TYPE(object)->tp_basicsize >= size;
    }

    /* The SSL of an object over memory BIOs; NULL where its fields are not what they should be. */
    static inline void *pr_ssl_of(PyObject *object, PyObject *context)
    {
        struct pr_ssl_socket *fields = (struct pr_ssl_socket *)object;
        if (!pr_has_size(object, sizeof *fields))
            return NULL;
        if (fields->socket != NULL || fields->context != context)
            return NULL;
        return (size_t)fields->ssl % sizeof(void *) == 0 ? fields->ssl : NULL;
    }

    static inline void *pr_bio_of(PyObject *object)
    {
        return pr_has_size(object, sizeof(struct pr_memory_bio))
            ? ((struct pr_memory_bio *)object)->bio : NULL;
    }

    /* Where a builtin function of an extension module has its code. */
    static inline const void *pr_code_of(PyObject *function)
    {
        return PyCFunction_Check(function) ? (const void *)PyCFunction_GetFunction(function) : NULL;
    }
    """
    SSL *ssl_of "pr_ssl_of" (PyObject *object, PyObject *context)
    void *bio_of "pr_bio_of" (PyObject *object)
    const void *code_of "pr_code_of" (PyObject *function)

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *data, Py_ssize_t size) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *bytes)
    void release "Py_DECREF" (PyObject *object)


cdef int BIO_CTRL_PENDING = 10
cdef object needs_more = (ssl.SSLWantReadError, ssl.SSLSyscallError)
cdef Py_ssize_t READ_BYTES_MAX = 256 * 1024  # what MemoryBIOEngine reads at once


@cython.auto_pickle(False)
@cython.final
cdef class Block:
    """Owns a buffer that C has allocated, while the kernel has not taken it."""
    cdef char *memory

    def __dealloc__(self):
        free(self.memory)


@cython.auto_pickle(False)
cdef class Engine:
    """One connection's TLS.

    Ciphertext is fed and lent until keep(); plaintext is read until there is no more.  What OpenSSL
    wants to send waits inside, for send() or take_output().
    """

    cdef int handshake(self) except -1:
        """1 once the handshake is made, 0 while it needs more from the peer."""
        try:
            self.ssl_object.do_handshake()
        except needs_more:
            return 0
        return 1

    cdef int shutdown(self) except -1:
        """Says that no more comes.  1 where the peer has said so, too, else 0."""
        try:
            self.ssl_object.unwrap()
        except needs_more:
            return 0
        return 1

    cdef int feed(self, const char *data, size_t size) except -1:
        """Adds ciphertext, lent until keep()."""
        raise NotImplementedError

    cdef int keep(self) except -1:
        """Ends the loan."""
        return 0

    cdef bint has_input(self) noexcept:
        """Whether another read may bring something without more ciphertext."""
        return False

    cdef object read(self):
        """Plaintext; b'' at the peer's end, None where more ciphertext is needed."""
        raise NotImplementedError

    cdef Py_ssize_t read_into(self, char *buffer, size_t size) except -2:
        """As read(), into a buffer: 0 at the end, -1 where more is needed."""
        raise NotImplementedError

    cdef int write(self, const char *data, size_t size) except -1:
        """Encrypts.  1, or 0 where nothing was taken because more ciphertext must come first."""
        raise NotImplementedError

    cdef int send(self, StreamTransport stream) except -1:
        """Sends what is to be sent."""
        raise NotImplementedError

    cdef bytes take_output(self):
        """What is to be sent."""
        raise NotImplementedError


@cython.auto_pickle(False)
@cython.final
cdef class OpenSSLEngine(Engine):
    """Hands bytes to the OpenSSL functions themselves."""

    name = 'openssl'

    def __init__(self, ssl_object):
        cdef SSL *pointer
        inner = ssl_object._sslobj
        context = inner.context
        pointer = ssl_of(<PyObject *>inner, <PyObject *>context)
        if pointer == NULL or pr_openssl.ssl_get_ex_data(pointer, 0) != <void *>inner:
            raise RuntimeError('the SSL object is not laid out as expected')
        if pr_tls_init(&self.tls, pointer) < 0:
            raise MemoryError
        self.ssl_object = ssl_object
        self.lock = inner

    def __dealloc__(self):
        pr_tls_deinit(&self.tls)

    cdef int feed(self, const char *data, size_t size) except -1:
        if pr_tls_feed(&self.tls, data, size) < 0:
            raise MemoryError
        return 0

    cdef int keep(self) except -1:
        if pr_tls_keep(&self.tls) < 0:
            raise MemoryError
        return 0

    cdef bint has_input(self) noexcept:
        return pr_tls_has_input(&self.tls)

    cdef object read(self):
        cdef size_t size = pr_tls_readable_max(&self.tls)
        cdef ssize_t count
        cdef PyObject *data
        if size == 0:
            size = 1  # only an end can come
        data = new_bytes(NULL, <Py_ssize_t>size)
        with cython.critical_section(self.lock):
            count = pr_tls_read(&self.tls, bytes_data(data), size)
        if count > 0:
            if self.tls.failed:
                self.failure = self.explain(False)
            if <size_t>count < size:
                _PyBytes_Resize(&data, count)
            result = <object>data
            release(data)
            return result
        release(data)
        if count == -EAGAIN:
            return None
        if count == 0:
            return b''
        if self.failure is None:
            self.failure = self.explain(False)
        raise self.failure

    cdef Py_ssize_t read_into(self, char *buffer, size_t size) except -2:
        cdef ssize_t count
        with cython.critical_section(self.lock):
            count = pr_tls_read(&self.tls, buffer, size)
        if count >= 0:
            if count and self.tls.failed:
                self.failure = self.explain(False)
            return count
        if count == -EAGAIN:
            return -1
        if self.failure is None:
            self.failure = self.explain(False)
        raise self.failure

    cdef int write(self, const char *data, size_t size) except -1:
        cdef int result
        with cython.critical_section(self.lock):
            result = pr_tls_write(&self.tls, data, size)
        if result == 0:
            return 1
        if result == -EAGAIN:
            return 0
        if result == -EPROTO:
            raise self.explain(True)
        raise MemoryError

    cdef int send(self, StreamTransport stream) except -1:
        cdef size_t size = self.tls.output_size
        cdef size_t sent
        cdef Block block
        if size == 0:
            return 0
        sent = stream.send_now(self.tls.output, size)
        if sent == size:
            pr_tls_clear_output(&self.tls)
            return 0
        block = Block.__new__(Block)
        block.memory = pr_tls_take_output(&self.tls)
        return stream.send_rest(block.memory + sent, size - sent, block)

    cdef bytes take_output(self):
        cdef bytes output = PyBytes_FromStringAndSize(
            self.tls.output, <Py_ssize_t>self.tls.output_size)
        pr_tls_clear_output(&self.tls)
        return output

    cdef object explain(self, bint sending):
        """The exception for what is in OpenSSL's error queue, as the stdlib makes it.

        A failed connection fails again at once, and leaves the queue as it was: the stdlib finds
        the same error there.
        """
        try:
            if sending:
                self.ssl_object.write(b'?')
            else:
                self.ssl_object.read(1)
        except needs_more:
            pass
        except ssl.SSLError as exc:
            return exc
        pr_openssl.clear_error()
        return ssl.SSLError(ssl.SSL_ERROR_SSL, 'the TLS connection has failed')


@cython.auto_pickle(False)
@cython.final
cdef class MemoryBIOEngine(Engine):
    """Goes through the stdlib's SSLObject and MemoryBIO."""

    name = 'memorybio'

    def __init__(self, ssl_object, incoming, outgoing):
        self.ssl_object = ssl_object
        self.incoming = incoming
        self.outgoing = outgoing
        self.starved = True

    cdef int feed(self, const char *data, size_t size) except -1:
        self.incoming.write(PyMemoryView_FromMemory(<char *>data, <Py_ssize_t>size, PyBUF_READ))
        self.starved = False
        return 0

    cdef bint has_input(self) noexcept:
        return not self.starved

    cdef object read(self):
        cdef list parts = []
        data = None
        if self.failure is not None:
            raise self.failure
        while not self.starved:
            try:
                data = self.ssl_object.read(READ_BYTES_MAX)
            except needs_more:
                self.starved = True
            except ssl.SSLError as exc:
                self.failure = exc
                break
            else:
                if not data:
                    break
                parts.append(data)
        if parts:
            return parts[0] if len(parts) == 1 else b''.join(parts)
        if self.failure is not None:
            raise self.failure
        return data  # b'' or None

    cdef Py_ssize_t read_into(self, char *buffer, size_t size) except -2:
        cdef size_t filled = 0
        cdef Py_ssize_t count
        if self.failure is not None:
            raise self.failure
        while filled < size:
            try:
                count = self.ssl_object.read(
                    size - filled,
                    PyMemoryView_FromMemory(
                        buffer + filled, <Py_ssize_t>(size - filled), PyBUF_WRITE))
            except needs_more:
                self.starved = True
                return <Py_ssize_t>filled if filled else -1
            except ssl.SSLError as exc:
                self.failure = exc
                if not filled:
                    raise
                break
            if not count:
                break
            filled += <size_t>count
        return <Py_ssize_t>filled

    cdef int write(self, const char *data, size_t size) except -1:
        cdef size_t written = 0
        view = PyMemoryView_FromMemory(<char *>data, <Py_ssize_t>size, PyBUF_READ)
        try:
            while written < size:
                written += <size_t>self.ssl_object.write(view[written:])
        except needs_more:
            if written:
                raise RuntimeError('a TLS record was written in part')
            return 0
        return 1

    cdef int send(self, StreamTransport stream) except -1:
        cdef bytes data
        cdef size_t size
        cdef size_t sent
        if not self.outgoing.pending:
            return 0
        data = self.take_output()
        size = <size_t>PyBytes_GET_SIZE(data)
        sent = stream.send_now(PyBytes_AS_STRING(data), size)
        if sent == size:
            return 0
        return stream.send_rest(PyBytes_AS_STRING(data) + sent, size - sent, data)

    cdef bytes take_output(self):
        return self.outgoing.read()


# Which one


cdef tuple CHOICES = ('auto', 'openssl', 'memorybio')
# Whose `_ssl` has the layout above.
cdef tuple VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14), (3, 15))


cdef str load():
    """Reach the OpenSSL that `_ssl` uses, and try it.  Returns why that cannot be, or ''."""
    if sys.implementation.name != 'cpython' or sys.version_info[:2] not in VERSIONS:
        return f'{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]} is not known'
    if not ssl.OPENSSL_VERSION.startswith('OpenSSL ') or ssl.OPENSSL_VERSION_INFO < (1, 1, 1):
        return f'{ssl.OPENSSL_VERSION} is not known'
    cdef const void *code = code_of(<PyObject *>ssl.RAND_status)
    if code == NULL:
        return 'ssl.RAND_status is not builtin'
    cdef int error = pr_openssl_load(code)
    if error == -ENOENT:
        return 'the module _ssl cannot be opened'
    if error < 0:
        return 'the module _ssl hides its OpenSSL'
    if pr_tls_load() < 0:
        raise MemoryError
    try:
        return rehearse()
    except Exception as exc:  # whatever it is, the other engine does without
        return f'{type(exc).__name__} in its rehearsal: {exc}'


cdef str rehearse():
    """A client's first words, and its answer to nonsense, with a look at every pointer before.

    Each check makes the next one safe.  Returns what is wrong, or ''.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming = ssl.MemoryBIO()
    outgoing = ssl.MemoryBIO()
    ssl_object = context.wrap_bio(incoming, outgoing, server_hostname='localhost')
    inner = ssl_object._sslobj
    cdef SSL *pointer = ssl_of(<PyObject *>inner, <PyObject *>context)
    if pointer == NULL or not pr_openssl_is_mapped(pointer):
        return '_ssl._SSLSocket is laid out in another way'
    if pr_openssl.ssl_get_ex_data(pointer, 0) != <void *>inner:
        return "the SSL object does not name its owner"
    if (<void *>pr_openssl.ssl_get_rbio(pointer) != bio_of(<PyObject *>incoming)
            or <void *>pr_openssl.ssl_get_wbio(pointer) != bio_of(<PyObject *>outgoing)):
        return "the SSL object does not name its BIOs"
    incoming.write(b'three')
    if pr_openssl.bio_ctrl(pr_openssl.ssl_get_rbio(pointer), BIO_CTRL_PENDING, 0, NULL) != 5:
        return "the BIO does not hold what the stdlib wrote"

    cdef OpenSSLEngine engine = OpenSSLEngine(ssl_object)
    if engine.handshake():
        return 'a handshake without a peer'
    if not engine.take_output().startswith(b'\x16\x03') or outgoing.pending:
        return 'no greeting'
    cdef bytes nonsense = b'HTTP/1.1 400 Bad Request\r\n\r\n'
    engine.feed(PyBytes_AS_STRING(nonsense), <size_t>PyBytes_GET_SIZE(nonsense))
    try:
        engine.handshake()
    except ssl.SSLError:
        return ''
    return 'nonsense was taken for a greeting'


cdef str openssl_lacks = load()


def explain_choice():
    """Return the engine that 'auto' means here, and why the other is not used."""
    if openssl_lacks:
        return 'memorybio', openssl_lacks
    return 'openssl', ''


def configured_choice():
    """Return what the environment variable PYREACTOR_TLS asks for; 'auto' where it is not set.

    Raises ValueError for anything but 'auto', 'openssl' and 'memorybio', and RuntimeError for
    'openssl' where that cannot be reached.
    """
    choice = os.environ.get('PYREACTOR_TLS', 'auto')
    if choice not in CHOICES:
        raise ValueError(f"PYREACTOR_TLS must be one of {', '.join(CHOICES)}, not {choice!r}")
    if choice == 'openssl' and openssl_lacks:
        raise RuntimeError(f'PYREACTOR_TLS=openssl cannot be had: {openssl_lacks}')
    return choice


cdef bint is_plain(object context, object ssl_object):
    """Whether the data path has no Python code of the user's in it."""
    cls = type(ssl_object)
    return (
        context._msg_callback is None
        and cls.read is ssl.SSLObject.read
        and cls.write is ssl.SSLObject.write)


cdef Engine new_engine(
    str choice, object context, bint server_side, object server_hostname
):
    """The engine for one connection, by `choice` and by what the context allows."""
    incoming = ssl.MemoryBIO()
    outgoing = ssl.MemoryBIO()
    ssl_object = context.wrap_bio(
        incoming, outgoing, server_side=server_side, server_hostname=server_hostname)
    if choice != 'memorybio' and not openssl_lacks and is_plain(context, ssl_object):
        return OpenSSLEngine(ssl_object)
    return MemoryBIOEngine(ssl_object, incoming, outgoing)
