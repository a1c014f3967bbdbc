# The C core as the Cython modules see it, in the order of csrc/include/pyreactor.  Declarations
# only.  Who may call what from which thread stands in the headers.

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t


cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"


cdef extern from "pyreactor/error.h" nogil:
    const char *pr_strerror(int error)
    const char *pr_error_hint(int error)


cdef extern from "pyreactor/clock.h" nogil:
    int64_t pr_now_ns()


cdef extern from "pyreactor/callback.h":
    ctypedef struct pr_callback "struct pr_callback":
        int (*run)(pr_callback *callback) noexcept
        void *owner


cdef extern from "pyreactor/ready_queue.h":
    ctypedef struct pr_ready_queue "struct pr_ready_queue":
        pass
    size_t pr_ready_queue_count(const pr_ready_queue *queue)


cdef extern from "pyreactor/timer_heap.h":
    size_t PR_TIMER_IDLE
    ctypedef struct pr_timer "struct pr_timer":
        pr_callback callback
        int64_t deadline_ns
        size_t heap_index
    ctypedef struct pr_timer_heap "struct pr_timer_heap":
        size_t count


cdef extern from "pyreactor/op.h":
    uint32_t PR_OP_DATA_ONLY
    ctypedef enum pr_op_kind "enum pr_op_kind":
        PR_OP_READ
        PR_OP_WRITE
        PR_OP_FSYNC
        PR_OP_TRUNCATE
        PR_OP_STATX
        PR_OP_OPEN
        PR_OP_CLOSE
        PR_OP_RENAME
        PR_OP_UNLINK
        PR_OP_MKDIR
        PR_OP_KINDS
    ctypedef struct pr_op "struct pr_op":
        pr_op_kind kind
        int fd
        int other_fd
        uint32_t size
        void *buffer
        int64_t position
        const char *path
        const char *other_path
        uint32_t flags
        uint32_t mode
        void *owner
        int (*on_complete)(pr_op *op, int32_t result) noexcept


cdef extern from "pyreactor/backend.h":
    uint32_t PR_READABLE
    uint32_t PR_WRITABLE
    uint32_t PR_EDGE
    ctypedef struct pr_backend_ops "struct pr_backend_ops":
        const char *name
        bint has_edges
    ctypedef struct pr_backend "struct pr_backend":
        const pr_backend_ops *ops
        int fd


cdef extern from "pyreactor/backend.h" nogil:
    ctypedef struct pr_ready_event "struct pr_ready_event":
        int fd
        uint32_t generation
        uint32_t events
        int32_t result
        const char *data


cdef extern from "pyreactor/demux.h" nogil:
    uint32_t PR_EXCEPTIONAL
    uint32_t PR_ONE_SHOT
    uint32_t PR_EDGE_TRIGGERED
    uint32_t PR_EXCLUSIVE
    ctypedef struct pr_demux_ops "struct pr_demux_ops":
        const char *name
        int (*add)(pr_demux *demux, int fd, uint32_t generation, uint32_t events)
        int (*modify)(pr_demux *demux, int fd, uint32_t generation, uint32_t events)
        int (*remove)(pr_demux *demux, int fd)
        void (*wake)(pr_demux *demux)
    ctypedef struct pr_demux "struct pr_demux":
        const pr_demux_ops *ops
        bint waiting
    const pr_demux_ops *pr_demux_find(const char *name)
    int pr_demux_new(const pr_demux_ops *ops, pr_demux **demux)
    void pr_demux_free(pr_demux *demux)
    int pr_demux_wait(pr_demux *demux, pr_ready_event *events, int capacity, int64_t timeout_ns)
    int pr_demux_fileno(const pr_demux *demux)


cdef extern from "pyreactor/watch.h":
    ctypedef struct pr_watch "struct pr_watch":
        int fd
        uint32_t generation
        uint32_t wanted
        uint32_t registered
        int (*on_ready)(pr_watch *watch, uint32_t events) noexcept
        c_bool (*gives_way)(pr_watch *watch) noexcept
        void *owner
    ctypedef struct pr_watch_table "struct pr_watch_table":
        size_t count
    pr_watch *pr_watch_find(const pr_watch_table *table, int fd)
    void pr_watch_init(
        pr_watch *watch, int (*on_ready)(pr_watch *, uint32_t) noexcept, void *owner)
    bint pr_watch_is_active(const pr_watch *watch)
    int pr_watch_start(pr_watch_table *table, pr_watch *watch, int fd, uint32_t events)
    int pr_watch_want(pr_watch_table *table, pr_watch *watch, uint32_t events)
    int pr_watch_renew(pr_watch_table *table, pr_watch *watch, uint32_t events)
    void pr_watch_stop(pr_watch_table *table, pr_watch *watch)


cdef extern from "pyreactor/stats.h" nogil:
    ctypedef struct pr_counter:
        pass
    ctypedef struct pr_stopwatch:
        pass
    ctypedef struct pr_histogram "struct pr_histogram":
        pr_counter *buckets
    int PR_HISTOGRAM_BUCKETS
    ctypedef struct pr_loop_stats "struct pr_loop_stats":
        pr_counter callbacks
        pr_counter posts
        pr_counter wakeups
        pr_counter polls
        pr_counter empty_polls
        pr_counter events
        pr_counter stale_events
        pr_counter ready
        pr_counter ready_max
        pr_counter turn_max_ns
        pr_histogram turns_ns
        pr_counter timers_started
        pr_counter timers_fired
        pr_counter timers_cancelled
        pr_histogram timer_lateness_ns
        pr_counter accepted
        pr_counter bytes_received
        pr_counter bytes_sent
    uint64_t pr_counter_read(const pr_counter *counter)
    void pr_counter_add(pr_counter *counter, uint64_t amount)
    void pr_counter_set(pr_counter *counter, uint64_t value)
    void pr_stats_read_times(const pr_loop_stats *stats, int64_t *busy_ns, int64_t *idle_ns)


cdef extern from "pyreactor/alarm.h" nogil:
    ctypedef struct pr_alarm "struct pr_alarm":
        int fd


cdef extern from "pyreactor/loop.h" nogil:
    size_t PR_RECEIVE_BUFFER_BYTES
    ctypedef struct pr_flush "struct pr_flush":
        pr_flush *next
        int (*run)(pr_flush *flush) noexcept
    ctypedef struct pr_loop "struct pr_loop":
        pr_backend backend
        pr_watch_table watches
        pr_ready_queue ready
        pr_timer_heap timers
        bint dispatching
        bint in_event
        bint exposed
        pr_alarm alarm
        char *receive_buffer
        pr_loop_stats stats
    int pr_loop_init(pr_loop *loop, const char *backend_name)
    void pr_loop_deinit(pr_loop *loop)
    void pr_loop_abandon_after_fork(pr_loop *loop)
    void pr_loop_show_time(pr_loop *loop, int64_t now_ns)
    void pr_loop_show_usual_time(pr_loop *loop)
    int64_t pr_loop_prepare(pr_loop *loop)
    int pr_loop_wait(pr_loop *loop, int64_t timeout_ns)
    int pr_loop_dispatch(pr_loop *loop)
    void pr_loop_end_run(pr_loop *loop)
    int pr_loop_pollable_fd(pr_loop *loop)
    void pr_loop_post(pr_loop *loop, pr_callback *callback)
    void pr_loop_wakeup(pr_loop *loop)
    void pr_loop_take_inbox(pr_loop *loop)
    pr_callback *pr_loop_take_ready(pr_loop *loop)
    int pr_loop_call_soon(pr_loop *loop, pr_callback *callback)
    int pr_loop_start_timer(pr_loop *loop, pr_timer *timer)
    bint pr_loop_cancel_timer(pr_loop *loop, pr_timer *timer)
    pr_timer *pr_loop_take_timer(pr_loop *loop)
    void pr_loop_add_flush(pr_loop *loop, pr_flush *flush)
    void pr_loop_remove_flush(pr_flush *flush)
    bint pr_loop_supports(const pr_loop *loop, pr_op_kind kind)
    void pr_loop_submit(pr_loop *loop, pr_op *op)
    void pr_loop_cancel(pr_loop *loop, pr_op *op)


cdef extern from "pyreactor/loop.h":
    int pr_loop_visit_ops(
        const pr_loop *loop, int (*visit)(pr_op *op, void *argument) noexcept, void *argument)
    int pr_loop_visit_scheduled(
        const pr_loop *loop, int (*visit)(pr_callback *callback, void *argument) noexcept,
        void *argument)


cdef extern from "pyreactor/write_queue.h":
    ctypedef struct pr_write_queue "struct pr_write_queue":
        size_t bytes
        size_t count


cdef extern from "pyreactor/stream.h":
    size_t PR_STREAM_HELD_BYTES_MAX
    ctypedef struct pr_stream "struct pr_stream":
        pr_watch watch
        const pr_stream_handler *handler
        pr_write_queue writes
        size_t high_water_bytes
        size_t low_water_bytes
        bint is_file
        bint reading
        bint over_high_water
        bint wants_drained
        pr_ready_event unread
    ctypedef struct pr_stream_handler "struct pr_stream_handler":
        int (*acquire_buffer)(pr_stream *stream, char **buffer, size_t *size) noexcept
        int (*on_received)(pr_stream *stream, const char *data, size_t size) noexcept
        int (*on_end)(pr_stream *stream) noexcept
        int (*on_error)(pr_stream *stream, int error, c_bool sending) noexcept
        int (*on_high_water)(pr_stream *stream) noexcept
        int (*on_low_water)(pr_stream *stream) noexcept
        int (*on_drained)(pr_stream *stream) noexcept
    void pr_stream_init(
        pr_stream *stream, pr_loop *loop, const pr_stream_handler *handler, void *owner,
        void (*release)(void *owner) noexcept)
    void pr_stream_deinit(pr_stream *stream)
    int pr_stream_start(pr_stream *stream, int fd)
    void pr_stream_stop(pr_stream *stream)
    int pr_stream_lend(pr_stream *stream)
    int pr_stream_take_back(pr_stream *stream, int fd)
    void pr_stream_drop_unread(pr_stream *stream)
    int pr_stream_set_reading(pr_stream *stream, bint reading)
    int pr_stream_queue(pr_stream *stream, const char *data, size_t size, void *owner)
    int pr_stream_send_soon(pr_stream *stream)
    ssize_t pr_stream_send_now(pr_stream *stream, const char *data, size_t size)
    int pr_stream_flush(pr_stream *stream)
    int pr_stream_settle(pr_stream *stream)
    int pr_stream_set_water(pr_stream *stream, size_t high_bytes, size_t low_bytes)
    bint pr_stream_is_holding(const pr_stream *stream)
    size_t pr_stream_queued_bytes(const pr_stream *stream)


cdef extern from "pyreactor/address.h" nogil:
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        PR_HOST_TEXT_BYTES_MAX
    uint16_t ntohs(uint16_t value)
    uint32_t ntohl(uint32_t value)
    uint32_t htonl(uint32_t value)
    ctypedef unsigned int socklen_t
    ctypedef struct sockaddr "struct sockaddr":
        unsigned short sa_family
    ctypedef struct sockaddr_in "struct sockaddr_in":
        uint16_t sin_port
    ctypedef struct sockaddr_in6 "struct sockaddr_in6":
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        uint32_t sin6_scope_id
    ctypedef struct pr_address "struct pr_address":
        socklen_t size
        sockaddr any
        sockaddr_in ip4
        sockaddr_in6 ip6
    size_t pr_address_format_host(const pr_address *address, char *text)
    int pr_address_parse_host(pr_address *address, int family, const char *host, uint16_t port)
    int pr_address_set_path(pr_address *address, const char *path, size_t size)
    size_t pr_address_path(const pr_address *address, const char **path)
    int pr_address_of_peer(pr_address *address, int fd)
    bint pr_address_equal(const pr_address *one, const pr_address *other)
    void pr_address_copy(pr_address *target, const pr_address *source)


cdef extern from "pyreactor/datagram.h":
    ctypedef struct pr_datagram_endpoint "struct pr_datagram_endpoint":
        pr_watch watch
        const pr_datagram_handler *handler
        size_t count
        size_t bytes
        size_t overhead_bytes
        size_t high_water_bytes
        size_t low_water_bytes
        size_t datagram_bytes_max
        size_t segment_bytes_max
        bint reading
        bint over_high_water
        bint wants_drained
    ctypedef struct pr_datagram_handler "struct pr_datagram_handler":
        int (*on_received)(
            pr_datagram_endpoint *endpoint, const char *data, size_t size,
            const pr_address *source) noexcept
        int (*on_error)(pr_datagram_endpoint *endpoint, int error, c_bool sending) noexcept
        int (*send_by_owner)(pr_datagram_endpoint *endpoint, void *owner) noexcept
        int (*on_high_water)(pr_datagram_endpoint *endpoint) noexcept
        int (*on_low_water)(pr_datagram_endpoint *endpoint) noexcept
        int (*on_drained)(pr_datagram_endpoint *endpoint) noexcept
    void pr_datagram_init(
        pr_datagram_endpoint *endpoint, pr_loop *loop, const pr_datagram_handler *handler,
        void *owner, void (*release)(void *owner) noexcept)
    void pr_datagram_deinit(pr_datagram_endpoint *endpoint)
    int pr_datagram_start(pr_datagram_endpoint *endpoint, int fd)
    void pr_datagram_stop(pr_datagram_endpoint *endpoint)
    int pr_datagram_set_reading(pr_datagram_endpoint *endpoint, bint reading)
    int pr_datagram_queue(
        pr_datagram_endpoint *endpoint, const char *data, size_t size, void *owner,
        const pr_address *target)
    int pr_datagram_queue_by_owner(pr_datagram_endpoint *endpoint, size_t size, void *owner)
    int pr_datagram_send_soon(pr_datagram_endpoint *endpoint)
    int pr_datagram_flush(pr_datagram_endpoint *endpoint)
    int pr_datagram_set_water(
        pr_datagram_endpoint *endpoint, size_t high_bytes, size_t low_bytes)


cdef extern from "pyreactor/listener.h":
    ctypedef struct pr_listener "struct pr_listener":
        pr_watch watch
    ctypedef struct pr_listener_handler "struct pr_listener_handler":
        int (*on_accepted)(
            pr_listener *listener, int fd, const sockaddr *peer, socklen_t peer_size) noexcept
        int (*on_error)(pr_listener *listener, int error) noexcept
    int pr_listener_start(
        pr_listener *listener, pr_loop *loop, int fd, int accepts_per_turn_max,
        const pr_listener_handler *handler, void *owner)
    void pr_listener_stop(pr_listener *listener)
    int pr_listener_resume(pr_listener *listener)
    bint pr_listener_is_exhaustion(int error)


cdef extern from "pyreactor/request.h" nogil:
    ctypedef struct pr_request "struct pr_request":
        void (*release)(pr_request *request) noexcept nogil
        void *owner
        int32_t fd
        uint32_t events
    void pr_request_release(pr_request *request)


cdef extern from "pyreactor/bell.h" nogil:
    ctypedef struct pr_bell "struct pr_bell":
        void (*ring)(pr_bell *bell) noexcept nogil
    ctypedef struct pr_bell_list "struct pr_bell_list":
        pass
    void pr_bell_arm(pr_bell_list *list, pr_bell *bell)
    bint pr_bell_disarm(pr_bell_list *list, pr_bell *bell)


cdef extern from "pyreactor/latch.h" nogil:
    ctypedef struct pr_latch "struct pr_latch":
        pass
    void pr_latch_init(pr_latch *latch)
    bint pr_latch_is_open(pr_latch *latch)
    void pr_latch_open_quietly(pr_latch *latch)
    void pr_latch_wake(pr_latch *latch)
    void pr_latch_open(pr_latch *latch)
    int pr_latch_wait(pr_latch *latch, int64_t deadline_ns)


cdef extern from "pyreactor/buffer_pool.h" nogil:
    size_t PR_BUFFER_ALIGNMENT
    uint32_t PR_BUFFER_NONE
    ctypedef struct pr_buffer_pool "struct pr_buffer_pool":
        char *memory
        size_t buffer_bytes
        uint32_t count
        uint32_t lent_count
        uint32_t lent_max
        uint64_t exhausted
        pr_bell_list bells
    int pr_buffer_pool_init(pr_buffer_pool *pool, size_t buffer_bytes, uint32_t count)
    void pr_buffer_pool_deinit(pr_buffer_pool *pool)
    int pr_buffer_pool_acquire(pr_buffer_pool *pool)
    int pr_buffer_pool_wait(pr_buffer_pool *pool, int64_t deadline_ns)
    int pr_buffer_pool_release(pr_buffer_pool *pool, uint32_t index)
    void pr_buffer_pool_pass_on(pr_buffer_pool *pool)
    char *pr_buffer_pool_data(pr_buffer_pool *pool, uint32_t index)
    uint32_t pr_buffer_pool_index(pr_buffer_pool *pool, const char *address)
    bint pr_buffer_pool_has_free(pr_buffer_pool *pool)


cdef extern from "pyreactor/request_queue.h" nogil:
    ctypedef enum pr_queue_side "enum pr_queue_side":
        PR_QUEUE_PRODUCERS
        PR_QUEUE_CONSUMERS
    ctypedef struct pr_request_queue_stats "struct pr_request_queue_stats":
        uint64_t puts
        uint64_t gets
        uint64_t depth_max
        uint64_t put_sleeps
        uint64_t get_sleeps
        uint64_t put_wakes
        uint64_t get_wakes
    ctypedef struct pr_request_queue_ops "struct pr_request_queue_ops":
        const char *name
        void (*free)(pr_request_queue *queue) noexcept nogil
        int (*try_put)(
            pr_request_queue *queue, const pr_request *requests, size_t count) noexcept nogil
        int (*try_get)(pr_request_queue *queue, pr_request *requests, size_t max) noexcept nogil
        int (*wait_room)(pr_request_queue *queue, int64_t deadline_ns) noexcept nogil
        int (*wait_request)(pr_request_queue *queue, int64_t deadline_ns) noexcept nogil
        void (*close)(pr_request_queue *queue) noexcept nogil
        c_bool (*is_closed)(pr_request_queue *queue) noexcept nogil
        size_t (*depth)(pr_request_queue *queue) noexcept nogil
        pr_bell_list *(*bells)(pr_request_queue *queue, pr_queue_side side) noexcept nogil
        void (*pass_on)(pr_request_queue *queue, pr_queue_side side) noexcept nogil
        void (*read_stats)(pr_request_queue *queue, pr_request_queue_stats *stats) noexcept nogil
        int (*visit)(
            pr_request_queue *queue,
            int (*visit)(pr_request *request, void *argument) noexcept, void *argument) noexcept
    ctypedef struct pr_request_queue "struct pr_request_queue":
        const pr_request_queue_ops *ops
        size_t capacity
    int pr_request_queue_new(
        pr_request_queue **queue, const char *kind, size_t capacity, int64_t spin_ns)
    int pr_request_queue_put(
        pr_request_queue *queue, const pr_request *requests, size_t count, int64_t deadline_ns)
    int pr_request_queue_get(
        pr_request_queue *queue, pr_request *requests, size_t max, int64_t deadline_ns)


cdef extern from "pyreactor/segment.h" nogil:
    ctypedef struct pr_segment "struct pr_segment":
        int fd
        void *memory
        size_t size
    int pr_segment_create(pr_segment *segment, const char *name, size_t size)
    int pr_segment_attach(pr_segment *segment, int fd)
    void pr_segment_detach(pr_segment *segment)


cdef extern from "pyreactor/shared_queue.h" nogil:
    ctypedef enum pr_shared_policy "enum pr_shared_policy":
        PR_AT_MOST_ONCE
        PR_AT_LEAST_ONCE
    ctypedef struct pr_shared_options "struct pr_shared_options":
        uint32_t capacity
        uint32_t item_bytes
        uint32_t block_bytes
        uint32_t blocks
        uint32_t participants
        pr_shared_policy policy
        int64_t spin_ns
        int64_t recheck_ns
    ctypedef struct pr_shared_header "struct pr_shared_header":
        uint32_t capacity
        uint32_t item_bytes
        uint32_t policy
    ctypedef struct pr_shared_queue "struct pr_shared_queue":
        pr_segment segment
        pr_shared_header *header
        uint32_t block_bytes
        uint32_t block_count
        uint32_t self
    ctypedef struct pr_shared_item "struct pr_shared_item":
        uint64_t position
        uint64_t size
        const char *data
        uint16_t kind
        uint16_t deliveries
    ctypedef struct pr_shared_stats "struct pr_shared_stats":
        uint64_t puts
        uint64_t gets
        uint64_t returned
        uint64_t lost
        uint64_t void_puts
        uint64_t deaths
        uint64_t put_sleeps
        uint64_t get_sleeps
        uint64_t put_wakes
        uint64_t get_wakes
    ctypedef struct pr_shared_stop "struct pr_shared_stop":
        pass
    ctypedef struct pr_shared_part "struct pr_shared_part":
        const void *data
        size_t size
    int pr_shared_queue_create(pr_shared_queue *queue, const pr_shared_options *options)
    int pr_shared_queue_attach(pr_shared_queue *queue, int fd)
    void pr_shared_queue_detach(pr_shared_queue *queue)
    int pr_shared_queue_rejoin_after_fork(pr_shared_queue *queue)
    int pr_shared_queue_put(
        pr_shared_queue *queue, const pr_shared_part *parts, size_t count, uint16_t kind,
        int64_t deadline_ns)
    int pr_shared_queue_get(pr_shared_queue *queue, pr_shared_item *item, int64_t deadline_ns)
    int pr_shared_queue_wait(
        pr_shared_queue *queue, pr_shared_stop *stop, int64_t deadline_ns)
    void pr_shared_queue_stop_wait(pr_shared_queue *queue, pr_shared_stop *stop)
    void pr_shared_queue_settle(pr_shared_queue *queue, const pr_shared_item *item)
    void pr_shared_queue_give_back(pr_shared_queue *queue, const pr_shared_item *item)
    void pr_shared_queue_close(pr_shared_queue *queue)
    c_bool pr_shared_queue_is_closed(pr_shared_queue *queue)
    size_t pr_shared_queue_depth(pr_shared_queue *queue)
    int pr_shared_queue_clear(pr_shared_queue *queue)
    void pr_shared_queue_read_stats(pr_shared_queue *queue, pr_shared_stats *stats)


cdef extern from "pyreactor/trace.h" nogil:
    ctypedef enum pr_role "enum pr_role":
        pass
    ctypedef enum pr_action "enum pr_action":
        PR_ACTION_HANDLE
    ctypedef struct pr_step "struct pr_step":
        int64_t time_ns
        int32_t thread_id
        int32_t fd
        uint32_t events
        uint16_t action
        uint16_t role
    ctypedef struct pr_trace "struct pr_trace":
        bint on
        uint64_t lost
    void pr_trace_init(pr_trace *trace)
    void pr_trace_deinit(pr_trace *trace)
    void pr_trace_set_role(pr_role role)
    void pr_trace_note(pr_trace *trace, pr_action action, int fd, uint32_t events)
    size_t pr_trace_read(pr_trace *trace, pr_step *steps, size_t max)


cdef extern from "pyreactor/handle_set.h" nogil:
    uint32_t PR_HANDLE_INLINE
    uint32_t PR_HANDLE_CHANNEL
    uint32_t PR_HANDLE_SPREAD
    ctypedef struct pr_event "struct pr_event":
        int fd
        uint32_t generation
        uint32_t events
        uint32_t flags
        uint64_t timer_id
    ctypedef struct pr_handle_set_stats "struct pr_handle_set_stats":
        uint64_t waits
        uint64_t events
        uint64_t stale_events
        uint64_t timers
        uint64_t handles
    ctypedef struct pr_handle_set "struct pr_handle_set":
        pass
    void pr_handle_set_init(
        pr_handle_set *set, pr_demux *demux, pr_trace *trace, int events_per_wait)
    void pr_handle_set_close(pr_handle_set *set)
    void pr_handle_set_deinit(pr_handle_set *set)
    void pr_handle_set_let_waiter_add(pr_handle_set *set)
    int pr_handle_set_register(
        pr_handle_set *set, int fd, uint32_t wanted, uint32_t flags, uint32_t *generation)
    int pr_handle_set_remove(pr_handle_set *set, int fd, uint32_t *generation)
    void pr_handle_set_drop(pr_handle_set *set, const pr_event *event)
    bint pr_handle_set_has(pr_handle_set *set, int fd)
    int pr_handle_set_modify(pr_handle_set *set, int fd, uint32_t wanted)
    int pr_handle_set_suspend(pr_handle_set *set, int fd)
    int pr_handle_set_resume(pr_handle_set *set, int fd)
    int pr_handle_set_wait(pr_handle_set *set, pr_event *event, int64_t timeout_ns)
    bint pr_handle_set_is_wanted(pr_handle_set *set, const pr_event *event)
    bint pr_handle_set_is_busy(pr_handle_set *set, int fd)
    int pr_handle_set_complete(pr_handle_set *set, const pr_event *event)
    int64_t pr_handle_set_write(pr_handle_set *set, int fd, const char *data, size_t size)
    int pr_handle_set_report_written(pr_handle_set *set, int fd, bint reading)
    bint pr_handle_set_close_when_written(pr_handle_set *set, int fd)
    void pr_handle_set_wake(pr_handle_set *set)
    int pr_handle_set_start_timer(pr_handle_set *set, pr_timer *timer)
    bint pr_handle_set_cancel_timer(pr_handle_set *set, pr_timer *timer)
    void pr_handle_set_read_stats(pr_handle_set *set, pr_handle_set_stats *stats)


cdef extern from "pyreactor/thread_set.h" nogil:
    ctypedef struct pr_member "struct pr_member":
        uint32_t state
        uint64_t led
        uint64_t handled
    ctypedef struct pr_thread_set "struct pr_thread_set":
        pr_member *leader
        uint64_t promotions
        uint64_t delegations
        uint64_t violations
    void pr_thread_set_init(pr_thread_set *set, pr_trace *trace, bint delegating)
    void pr_thread_set_deinit(pr_thread_set *set)
    void pr_member_init(pr_member *member)
    int pr_thread_set_join(
        pr_thread_set *set, pr_member *member, pr_event *event, int64_t timeout_ns)
    int pr_thread_set_promote(pr_thread_set *set, pr_member *member)
    int pr_thread_set_delegate(
        pr_thread_set *set, pr_member *member, const pr_event *event, pr_member *follower)
    int pr_thread_set_next(
        pr_thread_set *set, pr_handle_set *handles, pr_member *member, pr_event *event)
    void pr_thread_set_interrupt(pr_thread_set *set, pr_member *member)
    void pr_thread_set_leave(pr_thread_set *set, pr_member *member)
    void pr_thread_set_close(pr_thread_set *set)


cdef extern from "pyreactor/pump.h" nogil:
    ctypedef struct pr_transfer "struct pr_transfer":
        int error
        bint ended
        size_t size
        char *data
    ctypedef struct pr_loop_place "struct pr_loop_place":
        pr_request_queue *connections
        pr_handle_set *set
    ctypedef struct pr_pump "struct pr_pump":
        pr_handle_set *set
        pr_request_queue *queue
        pr_trace *trace
        unsigned index
        bint stopping
        pr_loop_place *places
        unsigned place_count
        uint64_t handed_over
    ctypedef struct pr_work "struct pr_work":
        pr_event event
        unsigned pump_index
        pr_transfer *transfer
    int pr_pump_next(pr_pump *pump, pr_event *event)
    void pr_pump_deinit(pr_pump *pump)
    void pr_pump_stop(pr_pump *pump)
    int pr_pump_take(pr_request_queue *queue, pr_request *request)
    c_bool pr_pump_read(const pr_request *request, pr_trace *trace, pr_work *work)
    void pr_pump_handled(pr_pump *pump)
    size_t pr_pump_unhandled(const pr_pump *pump)


cdef extern from "pyreactor/signal_source.h" nogil:
    ctypedef struct pr_signal_source "struct pr_signal_source":
        int fd
    int pr_signal_source_init(pr_signal_source *source)
    void pr_signal_source_deinit(pr_signal_source *source)
    int pr_signal_source_add(pr_signal_source *source, int signal_number)
    int pr_signal_source_remove(pr_signal_source *source, int signal_number)
    int pr_signal_source_read(pr_signal_source *source, int *signal_numbers, int max)


cdef extern from "pyreactor/buffer_group.h" nogil:
    ctypedef struct pr_buffer_group "struct pr_buffer_group":
        uint64_t taken
        uint64_t released
        uint64_t exhaustions


cdef extern from "pyreactor/completion_queue.h" nogil:
    ctypedef struct pr_strand "struct pr_strand":
        unsigned delivered


cdef extern from "pyreactor/aio.h" nogil:
    int PR_NO_OFFSET
    uint32_t PR_ANY_BUFFER
    ctypedef enum pr_aio_kind "enum pr_aio_kind":
        PR_AIO_READ
        PR_AIO_WRITE
        PR_AIO_ACCEPT
        PR_AIO_CONNECT
        PR_AIO_SENDFILE
        PR_AIO_TIMER
    ctypedef enum pr_notify "enum pr_notify":
        PR_NOTIFY_CQE
        PR_NOTIFY_EVENTFD
        PR_NOTIFY_SIGNAL
    int PR_LOUD
    int PR_SILENT
    int PR_ENDED
    ctypedef struct pr_aio "struct pr_aio":
        pr_strand *strand
        void *owner
        pr_aio_kind kind
        pr_notify notify
        bint is_socket
        int fd
        int source_fd
        int64_t offset
        char *data
        size_t size
        uint32_t buffer
        pr_address address
        pr_timer timer
        size_t done
        int32_t result
        unsigned worker
        int silence
    void pr_aio_init(pr_aio *aio, void *owner)


cdef extern from "pyreactor/completion_queue.h" nogil:
    ctypedef enum pr_worker_policy "enum pr_worker_policy":
        PR_ROUND_ROBIN
        PR_LEAST_LOADED
        PR_BY_CONNECTION
    ctypedef struct pr_completion_queues "struct pr_completion_queues":
        unsigned count
        uint64_t taken_over
    int pr_completion_queues_take(
        pr_completion_queues *queues, unsigned worker, pr_aio **aio, int64_t deadline_ns)
    uint64_t pr_completion_queues_depth(pr_completion_queues *queues)
    void pr_completion_queues_close(pr_completion_queues *queues)


cdef extern from "pyreactor/proactor.h" nogil:
    ctypedef struct pr_notifier "struct pr_notifier":
        int event_fd
        int signal_number
    ctypedef struct pr_proactor_ops "struct pr_proactor_ops":
        const char *name
    ctypedef enum pr_proactor_stop "enum pr_proactor_stop":
        PR_GO_ON
        PR_DRAIN
        PR_ABORT
    ctypedef struct pr_proactor_stats "struct pr_proactor_stats":
        uint64_t submitted
        uint64_t completed
        uint64_t cancelled
        uint64_t postponed
        uint64_t silent
        uint64_t waits
        uint64_t live
    ctypedef struct pr_proactor "struct pr_proactor":
        pr_buffer_group buffers
        pr_notifier notifier
        pr_completion_queues workers
        int stop
        uint64_t live
    const pr_proactor_ops pr_proactor_uring_ops
    const pr_proactor_ops pr_proactor_readiness_ops
    int pr_proactor_new(
        pr_proactor **proactor, const pr_proactor_ops *ops, pr_buffer_pool *pool, pr_demux *demux,
        pr_trace *trace, unsigned workers, pr_worker_policy policy, bint strict)
    void pr_proactor_free(pr_proactor *proactor)
    void pr_proactor_submit(pr_proactor *proactor, pr_aio *aio)
    bint pr_proactor_cancel(pr_proactor *proactor, pr_aio *aio)
    bint pr_aio_make_loud(pr_aio *aio)
    int pr_proactor_run_once(pr_proactor *proactor, int64_t timeout_ns)
    void pr_proactor_handled(pr_proactor *proactor, unsigned worker, pr_strand *strand)
    void pr_proactor_end_rest(pr_proactor *proactor)
    void pr_proactor_release_buffer(pr_proactor *proactor, uint32_t index)
    void pr_proactor_forget(pr_proactor *proactor, int fd)
    void pr_proactor_stop_turns "pr_proactor_stop"(pr_proactor *proactor, pr_proactor_stop how)
    void pr_proactor_wake(pr_proactor *proactor)
    void pr_proactor_read_stats(pr_proactor *proactor, pr_proactor_stats *stats)


cdef extern from "pyreactor/openssl.h":
    ctypedef struct SSL:
        pass
    ctypedef struct BIO:
        pass
    ctypedef struct pr_openssl_table "struct pr_openssl":
        void (*clear_error)()
        long (*bio_ctrl)(BIO *bio, int command, long number, void *pointer)
        BIO *(*ssl_get_rbio)(const SSL *ssl)
        BIO *(*ssl_get_wbio)(const SSL *ssl)
        void *(*ssl_get_ex_data)(const SSL *ssl, int index)
    pr_openssl_table pr_openssl
    int pr_openssl_load(const void *inside)
    bint pr_openssl_is_mapped(const void *address)


cdef extern from "pyreactor/tls.h":
    int PR_TLS_RECORD_BYTES_MAX
    ctypedef struct pr_tls "struct pr_tls":
        bint failed
        char *output
        size_t output_size
    int pr_tls_load()
    int pr_tls_init(pr_tls *tls, SSL *ssl)
    void pr_tls_deinit(pr_tls *tls)
    int pr_tls_feed(pr_tls *tls, const char *data, size_t size)
    int pr_tls_keep(pr_tls *tls)
    bint pr_tls_has_input(const pr_tls *tls)
    size_t pr_tls_readable_max(const pr_tls *tls)
    ssize_t pr_tls_read(pr_tls *tls, char *buffer, size_t size)
    int pr_tls_write(pr_tls *tls, const char *data, size_t size)
    char *pr_tls_take_output(pr_tls *tls)
    void pr_tls_clear_output(pr_tls *tls)


cdef extern from "pyreactor/http1.h" nogil:
    ctypedef enum pr_line "enum pr_line":
        PR_LINE_OPEN
        PR_LINE_OK
        PR_LINE_BAD
    ctypedef struct pr_http1_limits "struct pr_http1_limits":
        size_t line_bytes_max
        size_t headers_max
        size_t head_bytes_max
    ctypedef struct pr_range "struct pr_range":
        uint32_t begin
        uint32_t bytes
    ctypedef struct pr_http1_header "struct pr_http1_header":
        pr_range name
        pr_range value
    ctypedef struct pr_http1_head "struct pr_http1_head":
        pr_range method
        pr_range target
        int minor_version
        size_t header_count
        size_t bytes
        int64_t content_length
        c_bool chunked
        c_bool keep_alive
        const char *reason
        int status
    pr_line pr_http1_find_line(const char *data, size_t size, size_t *scanned)
    int pr_http1_head_init(
        pr_http1_head *head, const pr_http1_limits *limits, pr_http1_header *headers)
    pr_line pr_http1_head_feed(pr_http1_head *head, const char *data, size_t size)


cdef extern from "pyreactor/framer.h" nogil:
    int PR_DELIMITER_BYTES_MAX
    size_t PR_FRAME_BYTES_MAX
    ctypedef enum pr_framing_kind "enum pr_framing_kind":
        PR_FRAMING_LINES
        PR_FRAMING_DELIMITER
        PR_FRAMING_FIXED
        PR_FRAMING_LENGTH_PREFIXED
        PR_FRAMING_HTTP_HEAD
    ctypedef struct pr_framing "struct pr_framing":
        pr_framing_kind kind
        size_t max_bytes
        bint keep_ends
        bint little_endian
        size_t prefix_bytes
        size_t delimiter_bytes
        char *delimiter
        pr_http1_limits http
    ctypedef struct pr_frame "struct pr_frame":
        const char *data
        size_t size
    ctypedef struct pr_framer "struct pr_framer":
        const pr_framing *framing
        const char *reason
    int pr_framing_check(const pr_framing *framing)
    void pr_framer_init(pr_framer *framer, const pr_framing *framing)
    void pr_framer_deinit(pr_framer *framer)
    int pr_framer_feed(pr_framer *framer, const char **data, size_t *size, pr_frame *frame)
    int pr_framer_end(pr_framer *framer, pr_frame *frame)
    size_t pr_framer_pending(const pr_framer *framer)


cdef extern from "pyreactor/transition_table.h":
    ctypedef struct pr_transition "struct pr_transition":
        uint32_t source
        uint32_t event
        uint32_t target
        uint32_t id
        bint guarded
    ctypedef struct pr_transition_table "struct pr_transition_table":
        uint32_t states
        uint32_t events
        pr_transition *transitions
    int pr_transition_table_init(
        pr_transition_table *table, uint32_t states, uint32_t events,
        const pr_transition *transitions, size_t count, size_t *offender)
    void pr_transition_table_deinit(pr_transition_table *table)
    int pr_transition_table_reach(
        const pr_transition_table *table, uint32_t initial, c_bool *reached)
    const pr_transition *pr_transition_table_cell(
        const pr_transition_table *table, uint32_t state, uint32_t event,
        const pr_transition **end)
    # Its callback is Python's: -1 means that an exception is set.
    int pr_transition_table_find(
        const pr_transition_table *table, uint32_t state, uint32_t event,
        int (*allows)(void *context, uint32_t id) except -1, void *context,
        const pr_transition **taken) except -1
