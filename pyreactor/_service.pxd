# The connections of a service; see service.py for what a service is.

from libc.stdint cimport int64_t, uint64_t

from pyreactor._dispatch cimport Port
from pyreactor._native cimport pr_counter


cdef class ConnectionSet:
    # The service, read once
    cdef object framing
    cdef object handle
    cdef object encode
    cdef object make_state    # None: handle() takes the request alone
    cdef object made          # connection_made(), or None
    cdef object lost          # connection_lost(), or None
    cdef object report        # (connection, exception)
    cdef uint64_t idle_ns     # NEVER: no limit
    cdef uint64_t request_ns
    cdef Py_ssize_t request_bytes_max
    cdef bint strict

    # How far the server's end is
    cdef readonly bint draining  # what has been sent until now is answered, then all are closed
    cdef readonly bint stopping  # the request in hand is the last

    # Under the lock
    cdef object lock
    cdef set connections      # open
    cdef list lingering       # (socket, deadline_ns) of closed ones whose peer is still sending
    cdef dict totals          # of those that are closed
    cdef readonly object changed  # a Condition: nothing is open or lingering any more, or lingers

    cdef int add(self, Connection connection) except -1
    cdef int forget(self, Connection connection, bint linger) except -1
    cdef int poke_all(self) except -1
    cdef int count(self, str name) except -1
    cdef int note(self, Connection connection, str kind, exception) except -1
    cdef int expire(self, Connection connection, int phase, uint64_t now_ns) except -1
    cdef bint is_kept_waiting(self, Connection connection, int phase) except -1
    cdef int hang_up(self, Connection connection) except -1
    cdef int cut(self, Connection connection) except -1
    cdef int drop_lingering(self, uint64_t now_ns) except -1


cdef class Connection:
    cdef ConnectionSet owner
    cdef Port port        # whom it is registered with; None: nobody
    cdef readonly object socket    # owned
    cdef object peer
    cdef public object state
    cdef int fd

    # What the peer sent: one thread's at a time, the one that handles the connection
    cdef object framer
    cdef object feed
    cdef list frames      # complete, those before `next` answered
    cdef Py_ssize_t next
    cdef bint greeted     # connection_made() has been called
    cdef bint introduced  # and has returned
    cdef object broken    # the error after the last of the frames; None: no
    cdef bint ended       # the peer sends no more
    cdef bint closing     # nothing more is handled
    cdef bint draining    # as the owner says, seen by the handling thread
    cdef bint gone        # nothing more can be sent
    cdef bint linger      # the peer may still be sending when it is closed
    cdef object error     # why it ends, for connection_lost(); None: as it should

    # What it will be sent
    cdef list answers     # encoded
    cdef Py_ssize_t answer_bytes
    cdef bint sent_by_others   # the dispatcher sends

    # Read by the keeper, and for the counters, too
    cdef pr_counter due        # a deadline and a phase in one word, see due_of()
    cdef pr_counter requests
    cdef pr_counter bytes_received
    cdef pr_counter bytes_sent
    cdef pr_counter taken_seen  # what the client had taken when last looked at, or UNSEEN
    cdef bint held             # under the owner's lock: its end waits for the lock
    cdef bint end_is_due
    cdef bint over             # end() was called

    cdef int greet(self) except -1
    cdef int push(self, object data) except -1
    cdef int take(self, object data) except -1
    cdef int take_end(self) except -1
    cdef int fail(self, str kind, object exception) except -1
    cdef int answer(self) except -1
    cdef object handle_frame(self, object frame)
    cdef int flush(self) except -1
    cdef int await_more(self, bint blocked) except -1
    cdef int end(self) except -1
    cdef int poke(self) except -1
    cdef int64_t unsent(self) except -1
    cdef uint64_t taken(self) except? 0
    cdef bint takes_more(self) except -1


cdef class ReadyConnection(Connection):
    cdef bytes unsent_data     # None: nothing
    cdef Py_ssize_t unsent_from
    cdef unsigned mask_now
    cdef bint may_send

    cdef int send(self) except -1
    cdef int receive(self) except -2
    cdef bint rest(self, unsigned mask) except -1
    cdef object turn(self)


cdef class CompletedConnection(Connection):
    cdef bint unread           # there may be something to be read
    cdef size_t drained        # bytes that were read since it drains

    cdef bint reads_rest(self) except -1
    cdef int go_on_when_written(self, bint reading) except -1
    cdef object turn(self)
