# cython: language_level=3, embedsignature=True, freethreading_compatible=True
"""The connections of a service: from bytes to requests, from answers to bytes.

A connection is an event handler.  Its dispatcher lets one thread handle it at a time; that thread
receives, frames, calls handle() and sends, all under one hold of the GIL, because none of these
calls sleeps but handle().  Only what other threads may do says so: those that read the counters,
and the keeper (service_server.py), which ends what takes too long.
"""

import socket
import threading

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from pyreactor._dispatch cimport HandleSetCore, Port
from pyreactor._errors cimport errno_exception
from pyreactor._native cimport (
    PR_READABLE,
    PR_WRITABLE,
    pr_counter_add,
    pr_counter_read,
    pr_counter_set,
    pr_now_ns,
)

from pyreactor._dispatch import CLOSE, KEEP
from pyreactor.framing import FramingError


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *data, size_t size, int flags)


cdef extern from "<poll.h>" nogil:
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
    short POLLIN
    short POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, int *value)


cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCOUTQ  # asks how many bytes the peer has not taken yet: tcp(7), unix(7)


cdef enum:
    RECEIVE_BYTES = 64 * 1024
    SEND_BYTES = 64 * 1024           # answers are sent when there are as many, or no more requests
    UNSENT_BYTES_MAX = 64 * 1024     # with more no request is handled: the client does not read
    FRAME_OVERHEAD_BYTES = 1024      # what a framing holds beside the request, at most
    DRAIN_BYTES_MAX = 1024 * 1024    # what was sent before the server's end, and is answered
    REQUESTS_PER_TURN_MAX = 64       # one busy client must not starve the others
    TURN_NS_MAX = 10 * 1000 * 1000   # neither must one with slow requests
    SLOW_NS = 100 * 1000             # an answer that took longer does not wait for the next one
    LINGER_NS = 1000 * 1000 * 1000
    LINGER_BYTES_MAX = 1024 * 1024   # thrown away at one time

# What a connection waits for, and how long it may; a deadline and a phase share a word, so that
# the keeper never sees one of them without the other.
cdef enum:
    IDLE       # for a request
    RECEIVING  # for the rest of one
    HANDLING   # for handle()
    SENDING    # for the client to read

cdef enum:
    ANSWERED   # every request that is complete
    MORE       # there is more to do, after the others
    BLOCKED    # the client does not read

cdef uint64_t NEVER = UINT64_MAX >> 2
cdef uint64_t UNSEEN = UINT64_MAX


cdef inline uint64_t due_of(uint64_t now_ns, uint64_t limit_ns, int phase) noexcept:
    return (NEVER if limit_ns == NEVER else now_ns + limit_ns) << 2 | <uint64_t>phase


cdef uint64_t limit_of(seconds):
    return NEVER if seconds is None else <uint64_t>(seconds * 1e9)


class CloseConnection(Exception):
    """Raised by handle() to answer with `response`, if any, and close the connection then.

    It is no error.  Requests that the client had sent after this one are not handled.
    """

    def __init__(self, response=None):
        super().__init__(response)
        self.response = response


@cython.auto_pickle(False)
cdef class ConnectionSet:
    """The open connections of a server, and what its service has told for all of them."""

    def __init__(self, service, *, strict, report, handle=None):
        """Take over what `service`, a Service, says; `report(connection, exception)` is told what
        goes wrong.  `strict` sends nothing before the socket was reported writable.  `handle` is
        called in the place of the service's own, if given."""
        self.framing = service.framing
        self.handle = service.handle if handle is None else handle
        self.encode = service._own('encode') or service.framing.encode
        self.make_state = service.state
        self.made = service._own('connection_made')
        self.lost = service._own('connection_lost')
        self.idle_ns = limit_of(service.idle_timeout)
        self.request_ns = limit_of(service.request_timeout)
        limit = service.max_request_bytes
        self.request_bytes_max = -1 if limit is None else limit
        self.report = report
        self.strict = strict
        self.lock = threading.RLock()  # the keeper ends connections with it
        self.changed = threading.Condition()
        self.connections = set()
        self.lingering = []
        self.totals = dict.fromkeys((
            'accepted', 'requests', 'bytes_received', 'bytes_sent', 'errors', 'framing_errors',
            'timeouts', 'idle_closed'), 0)

    # What other threads may ask for

    def __len__(self):
        return len(self.connections)

    @property
    def lingers(self):
        """How many closed connections wait for their client to stop sending."""
        return len(self.lingering)

    def handling(self):
        """Return how many connections are in handle().  Any thread."""
        cdef Connection connection
        cdef int count = 0
        for connection in self.snapshot():
            count += pr_counter_read(&connection.due) & 3 == HANDLING
        return count

    def stats(self):
        """Return the counters.  Any thread."""
        cdef Connection connection
        with self.lock:
            counts = dict(self.totals, connections=len(self.connections))
            for connection in self.connections:
                counts['requests'] += pr_counter_read(&connection.requests)
                counts['bytes_received'] += pr_counter_read(&connection.bytes_received)
                counts['bytes_sent'] += pr_counter_read(&connection.bytes_sent)
        return counts

    def drain(self):
        """Answer what has been sent until now, and close all.  Any thread, once."""
        self.draining = True  # before any of them is looked at
        self.poke_all()

    def stop(self):
        """Let the request that is handled be the last of its connection.  Any thread."""
        self.stopping = True

    def sweep(self):
        """End what has taken too long; while it drains, remind who has come late.  The keeper's
        thread."""
        cdef Connection connection
        cdef uint64_t now_ns = <uint64_t>pr_now_ns()
        cdef uint64_t due
        for connection in self.snapshot():
            due = pr_counter_read(&connection.due)
            if due >> 2 < now_ns:
                self.expire(connection, <int>(due & 3), now_ns)
        self.drop_lingering(now_ns)
        if self.draining:
            self.poke_all()

    def close_lingering(self):
        """Wait for no client any more.  Any thread."""
        self.drop_lingering(NEVER)

    def snapshot(self):
        """Return the open connections, as a list."""
        with self.lock:
            return list(self.connections)

    # What connections and the keeper do

    cdef int add(self, Connection connection) except -1:
        with self.lock:
            self.totals['accepted'] += 1
            self.connections.add(connection)
        return 0

    cdef int forget(self, Connection connection, bint linger) except -1:
        """Takes a connection out, before its socket is closed."""
        cdef bint tell = False
        with self.lock:
            self.connections.discard(connection)
            self.totals['requests'] += pr_counter_read(&connection.requests)
            self.totals['bytes_received'] += pr_counter_read(&connection.bytes_received)
            self.totals['bytes_sent'] += pr_counter_read(&connection.bytes_sent)
            if linger:
                self.lingering.append(
                    (connection.socket, <uint64_t>pr_now_ns() + <uint64_t>LINGER_NS))
            tell = linger or not self.connections
        if tell:
            with self.changed:
                self.changed.notify_all()
        return 0

    cdef int poke_all(self) except -1:
        """Has every connection handled soon, so that it sees what is to become of it."""
        cdef Connection connection
        for connection in self.snapshot():
            with self.lock:
                if connection in self.connections and connection.port is not None:
                    try:
                        connection.poke()
                    except (KeyError, ValueError):
                        pass  # it is about to be closed, or not registered yet: see sweep()
        return 0

    cdef int count(self, str name) except -1:
        with self.lock:
            self.totals[name] += 1
        return 0

    cdef int note(self, Connection connection, str kind, exception) except -1:
        """Counts what went wrong, and reports it."""
        self.count(kind)
        self.report(connection, exception)
        return 0

    cdef int expire(self, Connection connection, int phase, uint64_t now_ns) except -1:
        cdef int64_t unsent
        cdef uint64_t limit_ns
        if phase == HANDLING:
            # The thread cannot be interrupted, but the client can be told.
            pr_counter_set(&connection.due, NEVER << 2 | <uint64_t>phase)
            self.note(connection, 'timeouts', RequestTimeout(
                'handle() takes longer than request_timeout; its connection ends now'))
            return self.hang_up(connection)
        if self.is_kept_waiting(connection, phase):
            limit_ns = self.request_ns if phase == RECEIVING else self.idle_ns
            pr_counter_set(&connection.due, due_of(now_ns, limit_ns, phase))
            return 0
        unsent = connection.unsent()
        if unsent > 0 and connection.takes_more():  # it reads, if slowly
            pr_counter_set(&connection.due, due_of(now_ns, self.idle_ns, phase))
            return 0
        if phase == RECEIVING:
            self.note(connection, 'timeouts', RequestTimeout(
                'a request was not complete within request_timeout'))
        elif phase == SENDING or unsent > 0:
            self.note(connection, 'timeouts', RequestTimeout(
                'the client has not read for idle_timeout'))
        else:
            self.count('idle_closed')
        pr_counter_set(&connection.due, NEVER << 2 | <uint64_t>phase)  # a proactor ends it later
        return self.cut(connection)

    cdef bint is_kept_waiting(self, Connection connection, int phase) except -1:
        """Whether it is the server that is late: no thread has come to the connection yet."""
        cdef pollfd polled
        with self.lock:
            if connection not in self.connections or connection.port is None:
                return True
            if connection.port.is_busy(connection.fd):
                return True
            polled.fd = connection.fd
            polled.events = POLLOUT if phase == SENDING else POLLIN
            if connection.sent_by_others and phase == SENDING:
                return False  # how much is unsent says more
            return poll(&polled, 1, 0) == 1

    cdef int hang_up(self, Connection connection) except -1:
        with self.lock:
            if connection in self.connections:  # its descriptor is still its own
                try:
                    connection.socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client was faster
        return 0

    cdef int cut(self, Connection connection) except -1:
        """Ends a connection: now, or when its handler has returned."""
        with self.lock:
            if connection not in self.connections or connection.port is None:
                return 0
            connection.held = True
            try:
                connection.port._remove(connection.fd)
            except (KeyError, ValueError):
                pass  # it is about to be closed
            connection.held = False
        if connection.end_is_due:
            connection.end()
        return 0

    cdef int drop_lingering(self, uint64_t now_ns) except -1:
        """Throws away what clients still send, and closes what they have closed or is overdue."""
        cdef char *scratch
        cdef ssize_t got
        cdef size_t dropped
        cdef bint tell = False
        cdef int fd
        if not self.lingering:
            return 0
        with self.lock:
            lingering, self.lingering = self.lingering, []
        buffer = bytearray(RECEIVE_BYTES)
        scratch = buffer
        left = []
        for sock, deadline_ns in lingering:
            fd = sock.fileno()
            got, dropped = 1, 0
            while got > 0 and dropped < LINGER_BYTES_MAX:
                got = recv(fd, scratch, RECEIVE_BYTES, MSG_DONTWAIT)
                dropped += <size_t>got if got > 0 else 0
            if deadline_ns > now_ns and (got > 0 or (got < 0 and errno == EAGAIN)):
                left.append((sock, deadline_ns))
            else:
                sock.close()
        with self.lock:
            self.lingering += left
            tell = not self.lingering
        if tell:
            with self.changed:
                self.changed.notify_all()
        return 0


class RequestTimeout(TimeoutError):
    """A client, or handle(), took longer than the service allows."""


cdef class Connection:
    """One client of a service.  handle() does not need it; `state` and the hooks are given it."""

    def __init__(self, ConnectionSet owner not None, sock):
        self.owner = owner
        self.socket = sock
        self.fd = sock.fileno()
        self.framer = owner.framing.framer()
        self.feed = self.framer.feed
        self.frames = []
        self.answers = []
        self.greeted = owner.make_state is None and owner.made is None
        self.introduced = self.greeted
        self.draining = owner.draining
        pr_counter_set(&self.taken_seen, UNSEEN)
        pr_counter_set(&self.due, due_of(<uint64_t>pr_now_ns(), owner.idle_ns, IDLE))
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        owner.add(self)

    def __repr__(self):
        return f'<connection from {self.peername() or "a client that has left"}>'

    def peername(self):
        """Return the client's address, as socket.getpeername() does; None where it has left."""
        if self.peer is None:
            try:
                self.peer = self.socket.getpeername()
            except OSError:
                pass
        return self.peer

    # The dispatcher's calls

    @property
    def mask(self):
        """What is waited for first.  What is writable is reported at once, to a handling thread:
        that is where hooks run, never where connections are accepted."""
        if self.owner.draining:
            return PR_READABLE | PR_WRITABLE
        return PR_READABLE if self.greeted else PR_WRITABLE

    def _bind(self, handle_set):
        self.port = <Port?>handle_set._port

    def _unbind(self, handle_set):
        self.port = None
        if not self.over and not self.end_is_due:  # it could not be registered
            self.owner.forget(self, False)

    def handle_close(self, int handle):
        """Close the socket, and tell connection_lost().  Once, in any thread."""
        with self.owner.lock:
            if self.held:
                self.end_is_due = True
                return
        self.end()

    cdef int end(self) except -1:
        cdef bint linger = self.linger and not self.ended and not self.gone
        self.over = True
        if linger:
            try:
                self.socket.shutdown(socket.SHUT_WR)  # what was answered, and the end of it
            except OSError:
                linger = False
        self.owner.forget(self, linger)
        if not linger:
            self.socket.close()
        if self.introduced and self.owner.lost is not None:
            try:
                self.owner.lost(self, self.error)
            except BaseException as exc:
                self.owner.note(self, 'errors', exc)
        self.state = None
        return 0

    # Requests

    cdef int greet(self) except -1:
        """Calls the hooks that come before the first request, in a handling thread."""
        cdef ConnectionSet owner = self.owner
        self.greeted = True
        try:
            if owner.make_state is not None:
                self.state = owner.make_state(self)
            if owner.made is not None:
                greeting = owner.made(self)
                if greeting is not None:
                    self.push(owner.encode(greeting))
            self.introduced = True
        except CloseConnection as exc:
            self.closing = True
            self.linger = True
            if exc.response is not None:
                self.push(owner.encode(exc.response))
        except BaseException as exc:
            self.fail('errors', exc)
        return 0

    cdef int take(self, object data) except -1:
        """Makes requests of bytes."""
        cdef Py_ssize_t limit = self.owner.request_bytes_max
        cdef list frames
        pr_counter_add(&self.bytes_received, <uint64_t>len(data))
        try:
            frames = self.feed(data)
            if limit >= 0 and self.framer.pending > limit + FRAME_OVERHEAD_BYTES:
                self.broken = FramingError(f'a request has more than {limit} bytes')
        except FramingError as exc:
            frames = exc.frames
            self.broken = exc
        except BaseException as exc:  # of somebody's own framer
            frames = []
            self.broken = exc
        if self.next < len(self.frames):
            self.frames = self.frames[self.next:] + frames
        else:
            self.frames = frames
        self.next = 0
        return 0

    cdef int take_end(self) except -1:
        """The client sends no more."""
        self.ended = True
        if self.broken is not None:
            return 0
        try:
            self.frames = self.frames[self.next:] + self.framer.eof()
            self.next = 0
        except BaseException as exc:
            self.broken = exc
        return 0

    cdef int fail(self, str kind, object exception) except -1:
        """Reports it, and lets the connection end with the answers so far."""
        self.error = exception
        self.closing = True
        self.linger = True
        self.frames = []
        self.next = 0
        self.broken = None
        return self.owner.note(self, kind, exception)

    cdef int answer(self) except -1:
        """Handles the requests that are there: ANSWERED, MORE or BLOCKED."""
        cdef ConnectionSet owner = self.owner
        cdef uint64_t begun_ns, now_ns, previous_ns, due
        cdef int handled = 0
        cdef bint is_slow
        if self.next >= len(self.frames) or self.closing:
            return ANSWERED
        begun_ns = now_ns = <uint64_t>pr_now_ns()
        due = pr_counter_read(&self.due)
        while self.next < len(self.frames) and not self.closing:
            if owner.stopping:
                self.closing = True
                self.linger = True
                break
            if handled >= REQUESTS_PER_TURN_MAX or now_ns - begun_ns > TURN_NS_MAX:
                return MORE
            # The time of a request counts from its first byte, or from the answer before it.
            if due & 3 == RECEIVING:
                due = due & ~<uint64_t>3 | HANDLING
            else:
                due = due_of(now_ns, owner.request_ns, HANDLING)
            pr_counter_set(&self.due, due)
            frame = self.frames[self.next]
            self.next += 1
            handled += 1
            self.push(self.handle_frame(frame))
            previous_ns, now_ns = now_ns, <uint64_t>pr_now_ns()
            is_slow = now_ns - previous_ns > SLOW_NS
            if is_slow or self.answer_bytes >= SEND_BYTES:
                if not self.flush():
                    return BLOCKED
                if is_slow and self.sent_by_others and self.next < len(self.frames):
                    return MORE  # they send when this thread has returned
        if self.next >= len(self.frames) and self.frames:
            self.frames = []
            self.next = 0
        return ANSWERED

    cdef object handle_frame(self, object frame):
        """The encoded answer to a request, or None."""
        cdef ConnectionSet owner = self.owner
        try:
            if owner.request_bytes_max >= 0 and len(frame) > owner.request_bytes_max:
                self.fail('framing_errors', FramingError(
                    f'a request has {len(frame)} bytes, and may have {owner.request_bytes_max}'))
                return None
            pr_counter_add(&self.requests, 1)
            try:
                if owner.make_state is None:
                    response = owner.handle(frame)
                else:
                    response = owner.handle(frame, self.state)
            except CloseConnection as exc:
                self.closing = True
                self.linger = True
                response = exc.response
            return None if response is None else owner.encode(response)
        except BaseException as exc:
            self.fail('errors', exc)
            return None

    cdef int push(self, object data) except -1:
        if data is not None and len(data):
            self.answers.append(data)
            self.answer_bytes += len(data)
        return 0

    cdef int await_more(self, bint blocked) except -1:
        """Says what the connection waits for from here on, and how long it may."""
        cdef ConnectionSet owner = self.owner
        cdef uint64_t now_ns = <uint64_t>pr_now_ns()
        pr_counter_set(&self.taken_seen, self.taken() if blocked else UNSEEN)
        if blocked or self.closing or self.ended or self.next < len(self.frames):
            pr_counter_set(&self.due, due_of(now_ns, owner.idle_ns, SENDING))
        elif self.framer.pending == 0:
            pr_counter_set(&self.due, due_of(now_ns, owner.idle_ns, IDLE))
        elif pr_counter_read(&self.due) & 3 != RECEIVING:
            pr_counter_set(&self.due, due_of(now_ns, owner.request_ns, RECEIVING))
        return 0

    # For the two ways of input and output

    cdef int flush(self) except -1:
        """Sends the answers.  Returns whether requests may be handled."""
        raise NotImplementedError

    cdef int poke(self) except -1:
        """Has the connection handled soon, whatever the client does.  Any thread."""
        raise NotImplementedError

    cdef int64_t unsent(self) except -1:
        """How many of the bytes that were sent the client has not taken.  Any thread."""
        cdef int unsent = 0
        with self.owner.lock:
            if self in self.owner.connections:  # its descriptor is still its own
                ioctl(self.fd, SIOCOUTQ, &unsent)  # leaves 0 where the socket cannot tell
        return unsent

    cdef uint64_t taken(self) except? 0:
        """A number that changes when it has taken some, or was sent some.  Any thread."""
        cdef uint64_t unsent = <uint64_t>self.unsent()  # of a Unix socket more than its bytes
        return pr_counter_read(&self.bytes_sent) - unsent

    cdef bint takes_more(self) except -1:
        """Whether it has taken some since the last look; after the first it may have."""
        cdef uint64_t seen = pr_counter_read(&self.taken_seen)
        cdef uint64_t taken = self.taken()
        pr_counter_set(&self.taken_seen, taken)
        return taken != seen


cdef class ReadyConnection(Connection):
    """A connection that is told when it can receive and send, and does."""

    def __init__(self, ConnectionSet owner not None, sock):
        Connection.__init__(self, owner, sock)
        self.mask_now = self.mask
        self.may_send = True

    def handle_event(self, int handle, unsigned event_type):
        """Receive, handle and send, until there is something to wait for."""
        self.may_send = not self.owner.strict or event_type & PR_WRITABLE
        return self.turn()

    cdef object turn(self):
        cdef Py_ssize_t got, total = 0
        cdef int status
        if not self.greeted:
            self.greet()
        while True:
            if not self.flush():
                status = BLOCKED
            else:
                status = self.answer()
                if status == ANSWERED and self.broken is not None:
                    self.fail(
                        'framing_errors' if isinstance(self.broken, FramingError) else 'errors',
                        self.broken)
                if not self.flush():
                    status = BLOCKED
            if self.gone:
                return CLOSE
            if status != ANSWERED:
                if self.rest(PR_WRITABLE):
                    continue
                return None
            if self.closing or self.ended:
                return CLOSE
            if total > 0 and not self.draining:
                if self.rest(PR_READABLE):
                    continue
                return None
            got = self.receive() if total < DRAIN_BYTES_MAX else -1
            if got > 0:
                total += got
            elif got < 0 and self.draining:
                self.linger = True
                return CLOSE
            elif got < 0:
                if self.rest(PR_READABLE):
                    continue
                return None
            elif self.gone:
                return CLOSE

    cdef bint rest(self, unsigned mask) except -1:
        """Waits for `mask`.  Returns whether there is something to do before."""
        cdef bint draining = self.draining
        self.await_more(self.unsent_data is not None or len(self.answers) > 0)
        if mask != self.mask_now or draining:
            self.mask_now = mask
            try:
                (<HandleSetCore>self.port).modify(self.fd, mask)
            except (KeyError, ValueError):
                return False  # it was removed meanwhile, and is closed after this
        # drain() says so before it has connections wait for both, and this may have undone that.
        self.draining = self.owner.draining
        return self.draining and not draining

    cdef int receive(self) except -2:
        """Returns how many bytes were received; 0 at the end, -1 where there are none now."""
        cdef char buffer[RECEIVE_BYTES]
        cdef ssize_t got = recv(self.fd, buffer, RECEIVE_BYTES, MSG_DONTWAIT)
        if got > 0:
            self.take(PyBytes_FromStringAndSize(buffer, got))
            return <int>got
        if got == 0:
            self.take_end()
            return 0
        if errno == EAGAIN or errno == EINTR:
            return -1
        self.error = errno_exception(-errno)
        self.gone = True
        return 0

    cdef int flush(self) except -1:
        while self.unsent_data is not None or self.answers:
            if not self.may_send:
                return 0
            if self.unsent_data is None:
                self.unsent_data = (
                    bytes(self.answers[0]) if len(self.answers) == 1 else b''.join(self.answers))
                self.unsent_from = 0
                self.answers = []
                self.answer_bytes = 0
            if not self.send():
                return 0
        return 1

    cdef int send(self) except -1:
        """Sends what it can of `unsent_data`.  Returns whether that was all."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(self.unsent_data)
        cdef ssize_t sent
        while self.unsent_from < size:
            sent = c_send(
                self.fd, PyBytes_AS_STRING(self.unsent_data) + self.unsent_from,
                <size_t>(size - self.unsent_from), MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                self.unsent_from += sent
                pr_counter_add(&self.bytes_sent, <uint64_t>sent)
            elif errno == EAGAIN:
                return 0
            elif errno != EINTR:
                self.error = errno_exception(-errno)
                self.gone = True
                return 0
        self.unsent_data = None
        if self.owner.strict:
            self.may_send = False  # the next one waits to be told again
        return 1

    cdef int poke(self) except -1:
        (<HandleSetCore>self.port).modify(self.fd, PR_READABLE | PR_WRITABLE)
        return 0


cdef class CompletedConnection(Connection):
    """A connection whose bytes another thread receives and sends."""

    def __init__(self, ConnectionSet owner not None, sock):
        Connection.__init__(self, owner, sock)
        self.sent_by_others = True
        self.unread = not self.mask & PR_READABLE

    def handle_read(self, completion):
        """Handle what has been received."""
        if completion.error is not None:
            self.error = completion.error
            self.gone = True
            return CLOSE
        self.unread = len(completion.data) >= DRAIN_BYTES_MAX
        if completion.data:
            self.take(completion.data)
            self.drained += <size_t>len(completion.data) if self.draining else 0
        if completion.eof and not self.ended:
            self.take_end()
        self.draining = self.draining or self.owner.draining
        return self.turn()

    def handle_write(self, completion):
        """Go on: what there was to be sent is sent."""
        self.draining = self.draining or self.owner.draining
        return self.turn()

    cdef object turn(self):
        cdef int status
        if not self.greeted:
            self.greet()
        status = self.answer()
        if status == ANSWERED and self.broken is not None:
            self.fail(
                    'framing_errors' if isinstance(self.broken, FramingError) else 'errors',
                    self.broken)
        self.flush()
        self.await_more(status == BLOCKED)
        if self.gone:
            return CLOSE
        if self.closing or (self.ended and status == ANSWERED):
            return CLOSE
        if status != ANSWERED:
            self.unread = True
            self.go_on_when_written(False)
            return KEEP
        if self.draining:
            if not self.reads_rest():
                self.linger = True
                return CLOSE
            return KEEP  # also where it said CLOSE while these bytes were on their way
        return None

    cdef bint reads_rest(self) except -1:
        """Whether there is more to be read of what the peer sent before the server's end."""
        cdef bint unread = self.unread
        self.unread = False
        if self.drained >= DRAIN_BYTES_MAX:
            return False
        try:
            return self.port.reads_rest(self.fd, unread)
        except (KeyError, ValueError):
            return True  # it was removed meanwhile, and is closed after this

    cdef int flush(self) except -1:
        cdef bytes data
        cdef int64_t unsent
        if not self.answers:
            return 1
        data = bytes(self.answers[0]) if len(self.answers) == 1 else b''.join(self.answers)
        self.answers = []
        self.answer_bytes = 0
        unsent = self.port.write(self.fd, data)
        if unsent < 0:  # it was removed meanwhile, and is closed after this
            self.gone = True
            return 0
        pr_counter_add(&self.bytes_sent, <uint64_t>PyBytes_GET_SIZE(data))
        return unsent <= UNSENT_BYTES_MAX

    cdef int go_on_when_written(self, bint reading) except -1:
        try:
            self.port.report_written(self.fd, reading)
        except (KeyError, ValueError):
            pass  # it was removed meanwhile, and is closed after this
        return 0

    cdef int poke(self) except -1:
        return self.port.report_written(self.fd, True)

    cdef int64_t unsent(self) except -1:
        with self.owner.lock:
            if self not in self.owner.connections or self.port is None:
                return 0
            try:
                return self.port.unsent(self.fd) + Connection.unsent(self)
            except (KeyError, ValueError):
                return 0  # it is about to be closed
