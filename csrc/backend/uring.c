/*
 * io_uring backend: what is wanted of a descriptor is submitted together with the wait, so that a
 * turn of the loop is one system call however much it changed.
 *
 * Readiness: a one-shot poll, submitted again by the next wait for as long as it is wanted.  The
 * kernel looks at the descriptor when it takes a poll, so that what was not dealt with is reported
 * again: level-triggered, as the contract says, which a multishot poll is not.
 *
 * Receiving: a multishot receive, which stays in force, into buffers that the kernel chooses.  What
 * it brings when nobody wants it is held and reported later, before anything newer.
 *
 * Operations: submitted by the next wait, in the order in which they came.
 *
 * What is under way holds the file: ending it enters the kernel at once, or the close that follows
 * would be no close to the peer.
 *
 * The ring serves one thread (PR_URING_SETUP_SINGLE_ISSUER).  A loop may be run by one thread after
 * the other: the first wait of another thread makes a new ring and submits everything again.
 *
 * A ring's own descriptor cannot be polled (with DEFER_TASKRUN it never becomes readable), so that
 * others get an eventfd, which the kernel writes while nobody waits.
 */
#include "pyreactor/backend.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pyreactor/uring_map.h"
#include "pyreactor/uring_op.h"
#include "pyreactor/uring_probe.h"

#define SQ_ENTRIES 256 /* more in one turn: entered once more */
#define CQ_ENTRIES 4096
/* All there from Linux 6.1 on; an older kernel refuses them with EINVAL. */
#define RING_FLAGS                                                                                 \
    (PR_URING_SETUP_R_DISABLED | PR_URING_SETUP_SUBMIT_ALL | PR_URING_SETUP_TASKRUN_FLAG |         \
     PR_URING_SETUP_SINGLE_ISSUER | PR_URING_SETUP_DEFER_TASKRUN)

/* 1 MiB in all: small enough for the caches to keep.  With none left, receiving pauses a turn. */
#define BUFFERS 256
#define BUFFER_GROUP 0

/* What a completion belongs to: the kind in the two upper bits, the arm in the next 30 and the
 * descriptor below.  Each submission for a descriptor has an arm of its own, so that what an ended
 * one still reports is recognised. */
#define KIND_SHIFT 62
#define KIND_CANCEL 0u /* nobody waits for it */
#define KIND_POLL 1u
#define KIND_RECEIVE 2u
#define KIND_SEND 3u /* the rest is the address of the pr_send, or, with OP_MARK, of the pr_op */
#define OP_MARK 1u
#define ARM_SHIFT 32
#define ARM_MASK 0x3fffffffu

/* Received while nobody wanted it. */
struct held {
    size_t bytes;
    size_t reported_bytes; /* the first of them: an event brought them back; older than the rest */
    bool has_end;          /* the end or an error came after the bytes */
    int32_t end;
    char data[];
};

struct interest {
    uint32_t generation; /* of the watch */
    uint32_t wanted;     /* PR_READABLE or PR_RECEIVED, PR_WRITABLE */

    uint32_t polled; /* what the poll under way asks for; 0: there is none */
    uint32_t poll_arm;
    bool receiving; /* a receive is under way */
    bool ending;    /* it has been cancelled; what it brings until it says so counts */
    uint32_t receive_arm;
    struct held *held; /* owned, unless it is `no_memory` */

    bool pending; /* the next wait has to compare what is wanted with what is under way */
};

struct pr_uring_state {
    struct pr_uring_map map;
    pid_t process;   /* which made the ring; its child has no mapping of it */
    uint64_t thread; /* which it serves; 0 until it is enabled */
    int eventfd;     /* owned: for others to poll; -1 until somebody asks for it */
    bool exposed;    /* it tells of completions, and of what waits for the next submission */

    struct interest *interests; /* owned; by descriptor */
    size_t interest_capacity;
    int *pending; /* owned; a queue of descriptors; has room for all */
    size_t pending_head, pending_count;

    struct pr_uring_buffer *buffer_ring; /* owned; where the kernel takes buffers from */
    char *buffers;                       /* owned; BUFFERS times PR_RECEIVED_BYTES_MAX */
    uint16_t buffer_tail;

    struct pr_send under_way; /* list head */
    struct pr_send done;      /* list head: to be reported by the next wait */

    uint64_t operations;        /* that there are, by bit: see pr_uring_probe() */
    struct pr_op queued_ops;    /* list head: to be submitted by the next wait */
    struct pr_op under_way_ops; /* list head: the kernel has them */
    struct pr_op done_ops;      /* list head: to be reported by the next wait */
    bool cut_later;             /* some under way are to be cancelled, and there was no room */
};

/* A number for the calling thread that no other thread ever gets, without a system call. */
static uint64_t current_thread(void)
{
    static _Atomic uint64_t threads;
    static _Thread_local uint64_t thread;
    if (!thread)
        thread = atomic_fetch_add(&threads, 1) + 1;
    return thread;
}

static uint64_t tag(uint32_t kind, uint32_t arm, int fd)
{
    return (uint64_t)kind << KIND_SHIFT | (uint64_t)arm << ARM_SHIFT | (uint32_t)fd;
}

static uint64_t send_tag(const struct pr_send *send)
{
    return (uint64_t)KIND_SEND << KIND_SHIFT | (uint64_t)(uintptr_t)send;
}

static struct pr_send *send_of(uint64_t user_data)
{
    return (struct pr_send *)(uintptr_t)(user_data & ~((uint64_t)KIND_SEND << KIND_SHIFT));
}

static void move_send(struct pr_send *send, struct pr_send *list)
{
    if (send->next) {
        send->prev->next = send->next;
        send->next->prev = send->prev;
    }
    send->prev = list->prev;
    send->next = list;
    list->prev->next = send;
    list->prev = send;
}

static uint64_t op_tag(const struct pr_op *op)
{
    return (uint64_t)KIND_SEND << KIND_SHIFT | (uint64_t)(uintptr_t)op | OP_MARK;
}

static struct pr_op *op_of(uint64_t user_data)
{
    return (struct pr_op *)(uintptr_t)(user_data & ~((uint64_t)KIND_SEND << KIND_SHIFT | OP_MARK));
}

static void unlink_send(struct pr_send *send)
{
    send->prev->next = send->next;
    send->next->prev = send->prev;
    send->prev = send->next = NULL;
}

static struct pr_send *take_done(struct pr_uring_state *state)
{
    struct pr_send *send = state->done.next;
    if (send == &state->done)
        return NULL;
    unlink_send(send);
    return send;
}

/* --- Buffers ------------------------------------------------------------------------------------
 */

static void give_buffer(struct pr_uring_state *state, uint16_t id)
{
    struct pr_uring_buffer *place = &state->buffer_ring[state->buffer_tail & (BUFFERS - 1)];
    place->address = (uint64_t)(uintptr_t)(state->buffers + (size_t)id * PR_RECEIVED_BYTES_MAX);
    place->length = PR_RECEIVED_BYTES_MAX;
    place->id = id;
    /* Pairs with the kernel's acquire of the tail: publishes the buffer. */
    atomic_store_explicit((_Atomic uint16_t *)&state->buffer_ring->tail, ++state->buffer_tail,
                          memory_order_release);
}

static bool is_in_buffers(const struct pr_uring_state *state, const char *data)
{
    return (uintptr_t)data - (uintptr_t)state->buffers < (size_t)BUFFERS * PR_RECEIVED_BYTES_MAX;
}

static const char *received_data(const struct pr_uring_state *state,
                                 const struct pr_uring_cqe *completion)
{
    if (!(completion->flags & PR_URING_CQE_BUFFER))
        return NULL;
    return state->buffers +
           (size_t)(completion->flags >> PR_URING_CQE_BUFFER_SHIFT) * PR_RECEIVED_BYTES_MAX;
}

static void return_data(struct pr_uring_state *state, const char *data)
{
    if (!data)
        return;
    if (is_in_buffers(state, data))
        give_buffer(state, (uint16_t)((data - state->buffers) / PR_RECEIVED_BYTES_MAX));
    else
        free((char *)data - offsetof(struct held, data));
}

/* What is held where there was no memory to hold anything. */
static struct held no_memory = {.has_end = true, .end = -ENOMEM};

static void free_held(struct held *held)
{
    if (held != &no_memory)
        free(held);
}

/* Adds to what is held: behind all of it, or, where an event brings it back, behind what such have
 * brought back before; what the kernel told without an event meanwhile is newer.  Without memory
 * the stream ends here, with that error: a gap would be worse. */
static void hold(struct interest *interest, const char *data, int32_t result, bool was_reported)
{
    struct held *held = interest->held;
    if (held && held->has_end && held->end == -ENOMEM)
        return;
    size_t bytes = held ? held->bytes : 0;
    size_t more = result > 0 ? (size_t)result : 0;
    size_t place = was_reported ? (held ? held->reported_bytes : 0) : bytes;
    held = realloc(held, sizeof *held + bytes + more);
    if (!held && !interest->held) {
        interest->held = &no_memory;
        return;
    }
    if (!held) {
        held = interest->held;
        held->bytes = place;
        held->has_end = true;
        held->end = -ENOMEM;
        return;
    }
    if (!interest->held)
        *held = (struct held){0};
    interest->held = held;
    if (result > 0) {
        memmove(held->data + place + more, held->data + place, bytes - place);
        memcpy(held->data + place, data, more);
        held->bytes += more;
        if (was_reported)
            held->reported_bytes += more;
    } else {
        held->has_end = true;
        held->end = result;
    }
}

static int make_ring(struct pr_uring_state *state)
{
    int error = pr_uring_map_init(&state->map, SQ_ENTRIES, CQ_ENTRIES, RING_FLAGS);
    if (error < 0)
        return error;
    error = pr_uring_probe(&state->map, &state->operations);
    if (error < 0)
        goto deinit_map;
    memset(state->buffer_ring, 0, BUFFERS * sizeof *state->buffer_ring);
    error = pr_uring_map_register_buffers(&state->map, state->buffer_ring, BUFFERS, BUFFER_GROUP);
    if (error < 0)
        goto deinit_map;
    state->thread = 0;
    state->buffer_tail = 0;
    for (uint16_t id = 0; id < BUFFERS; id++)
        give_buffer(state, id);
    return 0;

deinit_map:
    pr_uring_map_deinit(&state->map);
    return error;
}

/* --- Completions --------------------------------------------------------------------------------
 */

/* Something has to be submitted or reported by a wait, and nobody waits. */
static void ask_for_wait(const struct pr_uring_state *state)
{
    if (state->exposed)
        (void)eventfd_write(state->eventfd, 1);
}

static void look_later(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    if (interest->pending)
        return;
    ask_for_wait(state);
    interest->pending = true;
    size_t place = state->pending_head + state->pending_count++;
    state->pending[place & (state->interest_capacity - 1)] = fd;
}

static int take_pending(struct pr_uring_state *state)
{
    int fd = state->pending[state->pending_head++ & (state->interest_capacity - 1)];
    state->pending_count--;
    state->interests[fd].pending = false;
    return fd;
}

static bool take_poll(struct pr_uring_state *state, const struct pr_uring_cqe *completion,
                      struct pr_ready_event *event)
{
    int fd = (int)(uint32_t)completion->user_data;
    struct interest *interest = &state->interests[fd];
    if (!interest->polled ||
        interest->poll_arm != ((completion->user_data >> ARM_SHIFT) & ARM_MASK))
        return false;
    interest->polled = 0;
    if (interest->wanted)
        look_later(state, fd);
    if (completion->result == -ECANCELED) /* the thread that submitted it has ended */
        return false;
    /* A hang-up or an error concerns reader and writer alike. */
    uint32_t ready = completion->result < 0 ? POLLERR : (uint32_t)completion->result;
    uint32_t both = ready & (POLLERR | POLLHUP | POLLNVAL) ? PR_READABLE | PR_WRITABLE : 0;
    *event = (struct pr_ready_event){
        .fd = fd,
        .generation = interest->generation,
        .events = both | (ready & POLLIN ? PR_READABLE : 0) | (ready & POLLOUT ? PR_WRITABLE : 0),
    };
    return true;
}

static bool take_receive(struct pr_uring_state *state, const struct pr_uring_cqe *completion,
                         struct pr_ready_event *event)
{
    int fd = (int)(uint32_t)completion->user_data;
    struct interest *interest = &state->interests[fd];
    const char *data = received_data(state, completion);
    if (!interest->receiving ||
        interest->receive_arm != ((completion->user_data >> ARM_SHIFT) & ARM_MASK)) {
        return_data(state, data);
        return false;
    }
    if (!(completion->flags & PR_URING_CQE_MORE)) {
        interest->receiving = interest->ending = false;
        look_later(state, fd);
    }
    int32_t result = completion->result;
    if (result == -ECANCELED || result == -ENOBUFS || result == -EINTR || result == -EAGAIN) {
        return_data(state, data);
        return false;
    }
    if (event && interest->wanted & (PR_RECEIVED | PR_READABLE) && !interest->held) {
        *event = (struct pr_ready_event){.fd = fd,
                                         .generation = interest->generation,
                                         .events = PR_RECEIVED,
                                         .result = result,
                                         .data = data};
        return true;
    }
    hold(interest, data, result, false);
    return_data(state, data);
    look_later(state, fd);
    return false;
}

/* Cut short without an effect.  Some operations show what the kernel keeps to itself elsewhere:
 * that the system call should be made again (ERESTARTSYS, 512, and its kind). */
static bool is_cut_short(int32_t result)
{
    return result == -ECANCELED || result == -EINTR || (result <= -512 && result >= -516);
}

/* The kernel is done with an operation.  Returns true where it makes an event. */
static bool take_op(struct pr_uring_state *state, struct pr_op *op, int32_t result,
                    struct pr_ready_event *event)
{
    op->under_way = op->asked = false;
    if (op->kind == PR_OP_CLOSE && is_cut_short(result) && result != -ECANCELED)
        result = 0; /* it is closed all the same */
    if (is_cut_short(result) && !op->cancelled) {
        pr_op_move(op, &state->queued_ops); /* put off by quiesce(), without an effect */
        return false;
    }
    op->result = is_cut_short(result) ? -ECANCELED : result;
    if (!event) {
        pr_op_move(op, &state->done_ops);
        return false;
    }
    pr_op_unlink(op);
    *event = (struct pr_ready_event){.events = PR_COMPLETED, .result = op->result, .op = op};
    return true;
}

/* Takes the oldest completion.  Returns true where it makes an event. */
static bool take(struct pr_uring_state *state, const struct pr_uring_cqe *completion,
                 struct pr_ready_event *event)
{
    switch (completion->user_data >> KIND_SHIFT) {
    case KIND_POLL:
        return take_poll(state, completion, event);
    case KIND_RECEIVE:
        return take_receive(state, completion, event);
    case KIND_SEND: {
        if (completion->user_data & OP_MARK)
            return take_op(state, op_of(completion->user_data), completion->result, event);
        struct pr_send *send = send_of(completion->user_data);
        send->result = completion->result;
        move_send(send, &state->done);
        return false;
    }
    default:
        return false;
    }
}

/* Takes all completions without reporting: what they brought is held for later. */
static void settle(struct pr_uring_state *state)
{
    const struct pr_uring_cqe *completion;
    while ((completion = pr_uring_map_peek(&state->map))) {
        struct pr_ready_event unreported;
        uint64_t kind = completion->user_data >> KIND_SHIFT;
        (void)take(state, completion, kind == KIND_POLL ? &unreported : NULL);
        pr_uring_map_advance(&state->map);
    }
}

/* --- Submissions --------------------------------------------------------------------------------
 */

/* A new ring that serves no thread yet, and everything that is wanted to be submitted to it. */
static int renew_ring(struct pr_uring_state *state)
{
    pr_uring_map_deinit(&state->map);
    for (size_t fd = 0; fd < state->interest_capacity; fd++) {
        struct interest *interest = &state->interests[fd];
        interest->polled = 0;
        interest->receiving = interest->ending = false;
        if (interest->wanted)
            look_later(state, (int)fd);
    }
    return make_ring(state);
}

static bool is_anything_under_way(const struct pr_uring_state *state)
{
    return state->under_way.next != &state->under_way ||
           !pr_op_list_is_empty(&state->under_way_ops);
}

/* The first thread that needs the kernel is the one that the ring serves. */
static int serve_this_thread(struct pr_uring_state *state)
{
    uint64_t thread = current_thread();
    if (state->thread == thread)
        return 0;
    if (state->thread) {
        settle(state); /* what that thread's end has cancelled */
        if (is_anything_under_way(state))
            return -EXDEV; /* not quiesced: the kernel works on it, and obeys that thread only */
        int error = renew_ring(state);
        if (error < 0)
            return error;
    }
    int error = pr_uring_map_enable(&state->map);
    if (error == 0)
        state->thread = thread;
    return error;
}

/* The next submission to fill, where need be after submitting the others; NULL where the kernel
 * does not take those. */
static struct pr_uring_sqe *prepare(struct pr_uring_state *state)
{
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&state->map);
    if (sqe)
        return sqe;
    if (pr_uring_map_enter(&state->map, 0) == -EBUSY) {
        settle(state); /* room for what the completion ring could not hold */
        (void)pr_uring_map_enter(&state->map, 0);
    }
    return pr_uring_map_next_sqe(&state->map);
}

/* Returns false where there is no room. */
static bool prepare_cancel(struct pr_uring_state *state, uint64_t user_data)
{
    struct pr_uring_sqe *sqe = prepare(state);
    if (!sqe)
        return false;
    sqe->opcode = PR_URING_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->address = user_data;
    sqe->user_data = tag(KIND_CANCEL, 0, 0);
    return true;
}

static void begin_poll(struct pr_uring_state *state, int fd, uint32_t events)
{
    struct interest *interest = &state->interests[fd];
    struct pr_uring_sqe *sqe = prepare(state);
    if (!sqe)
        return look_later(state, fd);
    interest->poll_arm = (interest->poll_arm + 1) & ARM_MASK;
    interest->polled = events;
    sqe->opcode = PR_URING_POLL_ADD;
    sqe->fd = fd;
    sqe->operation_flags =
        (events & PR_READABLE ? POLLIN : 0u) | (events & PR_WRITABLE ? POLLOUT : 0u);
    sqe->user_data = tag(KIND_POLL, interest->poll_arm, fd);
}

static void end_poll(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    interest->polled = 0;
    (void)prepare_cancel(state, tag(KIND_POLL, interest->poll_arm, fd));
}

static void begin_receive(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    struct pr_uring_sqe *sqe = prepare(state);
    if (!sqe)
        return look_later(state, fd);
    interest->receive_arm = (interest->receive_arm + 1) & ARM_MASK;
    interest->receiving = true;
    sqe->opcode = PR_URING_RECV;
    sqe->fd = fd;
    sqe->flags = PR_URING_SQE_BUFFER_SELECT;
    sqe->ioprio = PR_URING_RECV_MULTISHOT;
    sqe->buffer_group = BUFFER_GROUP;
    sqe->user_data = tag(KIND_RECEIVE, interest->receive_arm, fd);
}

static void end_receive(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    interest->ending = true;
    (void)prepare_cancel(state, tag(KIND_RECEIVE, interest->receive_arm, fd));
}

/* Makes what is under way for `fd` what is wanted of it. */
static void adjust(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    uint32_t wanted = interest->wanted;
    uint32_t polled = wanted & PR_WRITABLE;
    /* Bytes on their way to a receive come before those that a reader would find. */
    if (wanted & PR_READABLE && !interest->receiving && !interest->held)
        polled |= PR_READABLE;
    if (interest->polled && interest->polled != polled)
        end_poll(state, fd);
    if (polled && !interest->polled)
        begin_poll(state, fd, polled);
    if (!interest->receiving && wanted & PR_RECEIVED && !interest->held)
        begin_receive(state, fd);
    else if (interest->receiving && !interest->ending && !(wanted & PR_RECEIVED))
        end_receive(state, fd);
}

static int reserve(struct pr_uring_state *state, int fd)
{
    if ((size_t)fd < state->interest_capacity)
        return 0;
    size_t capacity = state->interest_capacity ? state->interest_capacity : 64;
    while (capacity <= (size_t)fd)
        capacity *= 2;
    int *pending = malloc(capacity * sizeof *pending);
    if (!pending)
        return -ENOMEM;
    struct interest *interests = realloc(state->interests, capacity * sizeof *interests);
    if (!interests) {
        free(pending);
        return -ENOMEM;
    }
    for (size_t i = 0; i < state->pending_count; i++)
        pending[i] = state->pending[(state->pending_head + i) & (state->interest_capacity - 1)];
    free(state->pending);
    state->pending = pending;
    state->pending_head = 0;
    memset(interests + state->interest_capacity, 0,
           (capacity - state->interest_capacity) * sizeof *interests);
    state->interests = interests;
    state->interest_capacity = capacity;
    return 0;
}

/* A regular file is always ready for a poll; the contract is that it cannot be waited for. */
static int check_can_be_waited_for(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    return S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) ? -EPERM : 0;
}

/* The descriptor may be closed next: nothing may be under way for it when this returns. */
static int end_everything(struct pr_uring_state *state, int fd)
{
    struct interest *interest = &state->interests[fd];
    if (!interest->polled && (!interest->receiving || interest->ending))
        return 0;
    int error = serve_this_thread(state);
    if (error < 0)
        return error;
    if (interest->polled)
        end_poll(state, fd);
    if (interest->receiving && !interest->ending)
        end_receive(state, fd);
    (void)pr_uring_map_enter(&state->map, 0);
    return 0;
}

static int uring_update(struct pr_backend *backend, int fd, uint32_t generation,
                        uint32_t old_events, uint32_t new_events)
{
    struct pr_uring_state *state = backend->state;
    if (!state) /* given back, or a forked child's */
        return -EBADF;
    int error = reserve(state, fd);
    if (error < 0)
        return error;
    struct interest *interest = &state->interests[fd];
    bool is_new = interest->generation != generation;
    if (new_events & (PR_READABLE | PR_WRITABLE) && (is_new || !old_events)) {
        error = check_can_be_waited_for(fd);
        if (error < 0)
            return error;
    }
    if (is_new || !new_events) {
        error = end_everything(state, fd);
        if (error < 0)
            return error;
    }
    if (is_new) { /* what a former life still brings is nobody's */
        interest->receiving = interest->ending = false;
        interest->receive_arm = (interest->receive_arm + 1) & ARM_MASK;
        free_held(interest->held);
        interest->held = NULL;
    }
    interest->generation = generation;
    interest->wanted = new_events;
    if (new_events)
        look_later(state, fd);
    return 0;
}

/* Reports what was held for `fd`.  Returns the number of events. */
static int report_held(struct interest *interest, int fd, struct pr_ready_event *events)
{
    struct held *held = interest->held;
    int count = 0;
    interest->held = NULL;
    struct pr_ready_event event = {
        .fd = fd, .generation = interest->generation, .events = PR_RECEIVED};
    if (held->has_end) {
        event.result = held->end;
        events[held->bytes ? 1 : 0] = event;
        count++;
    }
    if (held->bytes) {
        event.result = (int32_t)held->bytes;
        event.data = held->data; /* return_data() frees it */
        events[0] = event;
        count++;
    } else {
        free_held(held);
    }
    return count;
}

/* Goes through the descriptors that something has changed for.  Returns the number of events. */
static int adjust_pending(struct pr_uring_state *state, struct pr_ready_event *events, int capacity)
{
    int count = 0;
    size_t pending = state->pending_count; /* what is put in again is for the next time */
    for (size_t i = 0; i < pending; i++) {
        int fd = take_pending(state);
        struct interest *interest = &state->interests[fd];
        if (interest->held && interest->wanted & (PR_RECEIVED | PR_READABLE)) {
            if (capacity - count < 2) {
                look_later(state, fd);
                continue;
            }
            count += report_held(interest, fd, events + count);
        }
        adjust(state, fd);
    }
    return count;
}

/* Asks the kernel to cut operations short: those that their owners have cancelled, or `all`. */
static void cut_ops_short(struct pr_uring_state *state, bool all)
{
    state->cut_later = false;
    struct pr_op *op = state->under_way_ops.next;
    for (; op != &state->under_way_ops; op = op->next) {
        if ((all || op->cancelled) && !op->asked) {
            op->asked = prepare_cancel(state, op_tag(op));
            state->cut_later |= !op->asked;
        }
    }
}

/* Submits the operations that were queued, as far as there is room. */
static void submit_queued_ops(struct pr_uring_state *state)
{
    struct pr_uring_sqe *sqe;
    while (!pr_op_list_is_empty(&state->queued_ops) && (sqe = prepare(state))) {
        struct pr_op *op = state->queued_ops.next;
        pr_uring_op_prepare(op, sqe);
        sqe->user_data = op_tag(op);
        op->under_way = true;
        pr_op_move(op, &state->under_way_ops);
    }
}

static int report_done_ops(struct pr_uring_state *state, struct pr_ready_event *events,
                           int capacity)
{
    int count = 0;
    for (; count < capacity && !pr_op_list_is_empty(&state->done_ops); count++) {
        struct pr_op *op = state->done_ops.next;
        pr_op_unlink(op);
        events[count] =
            (struct pr_ready_event){.events = PR_COMPLETED, .result = op->result, .op = op};
    }
    return count;
}

static int uring_pollable_fd(struct pr_backend *backend)
{
    struct pr_uring_state *state = backend->state;
    if (!state)
        return -EBADF;
    if (state->eventfd >= 0)
        return state->eventfd;
    int error = serve_this_thread(state);
    if (error < 0)
        return error;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    error = pr_uring_map_register_eventfd(&state->map, fd); /* refused: better now than later */
    if (error < 0) {
        close(fd);
        return error;
    }
    (void)pr_uring_map_unregister_eventfd(&state->map);
    state->eventfd = fd;
    return fd;
}

/* Submits what the next wait would have submitted.  Registering first and entering then leaves no
 * gap: what comes before is completed by entering, and seen in the ring. */
static void uring_expose(struct pr_backend *backend)
{
    struct pr_uring_state *state = backend->state;
    state->exposed = true;
    if (serve_this_thread(state) < 0)
        return ask_for_wait(state);
    (void)adjust_pending(state, NULL, 0);
    if (state->cut_later)
        cut_ops_short(state, false);
    submit_queued_ops(state);
    if (pr_uring_map_register_eventfd(&state->map, state->eventfd) < 0 ||
        pr_uring_map_enter(&state->map, 0) < 0 || pr_uring_map_peek(&state->map) ||
        state->pending_count || state->cut_later || state->done.next != &state->done ||
        !pr_op_list_is_empty(&state->queued_ops) || !pr_op_list_is_empty(&state->done_ops))
        ask_for_wait(state);
}

static void conceal(struct pr_uring_state *state)
{
    state->exposed = false;
    (void)pr_uring_map_unregister_eventfd(&state->map);
    eventfd_t count;
    (void)eventfd_read(state->eventfd, &count);
}

static int uring_wait(struct pr_backend *backend, struct pr_ready_event *events, int capacity,
                      int64_t timeout_ns)
{
    struct pr_uring_state *state = backend->state;
    struct pr_uring_map *map = &state->map;
    int error = serve_this_thread(state);
    if (error < 0)
        return error;
    if (state->exposed)
        conceal(state);
    int count = adjust_pending(state, events, capacity);
    if (state->cut_later)
        cut_ops_short(state, false);
    submit_queued_ops(state);
    count += report_done_ops(state, events + count, capacity - count);
    if (count || pr_uring_map_peek(map) || state->done.next != &state->done)
        timeout_ns = 0;
    if (timeout_ns != 0 || pr_uring_map_prepared(map) || pr_uring_map_has_work(map)) {
        error = pr_uring_map_enter(map, timeout_ns);
        if (error < 0 && error != -EBUSY && error != -EAGAIN && !count && !pr_uring_map_peek(map))
            return error;
    }
    const struct pr_uring_cqe *completion;
    while (count < capacity && (completion = pr_uring_map_peek(map))) {
        count += take(state, completion, &events[count]);
        pr_uring_map_advance(map);
    }
    struct pr_send *send;
    while (count < capacity && (send = take_done(state)))
        events[count++] =
            (struct pr_ready_event){.events = PR_SENT, .result = send->result, .send = send};
    return count;
}

/* --- Operations that the kernel completes -------------------------------------------------------
 */

static int uring_send(struct pr_backend *backend, struct pr_send *send)
{
    struct pr_uring_state *state = backend->state;
    const struct iovec *vector = send->message.msg_iov;
    bool is_one = send->message.msg_iovlen == 1;
    uint8_t opcode = is_one ? PR_URING_SEND : PR_URING_SENDMSG;
    if (!pr_uring_has(state->operations, opcode))
        return -EOPNOTSUPP;
    struct pr_uring_sqe *sqe = prepare(state);
    if (!sqe)
        return -EBUSY;
    sqe->opcode = opcode;
    sqe->fd = send->fd;
    sqe->address = (uint64_t)(uintptr_t)(is_one ? vector->iov_base : &send->message);
    sqe->length = is_one ? (uint32_t)vector->iov_len : 1;
    sqe->operation_flags = MSG_NOSIGNAL;
    sqe->user_data = send_tag(send);
    send->result = -EINPROGRESS;
    move_send(send, &state->under_way);
    return 0;
}

static bool uring_settle_send(struct pr_backend *backend, struct pr_send *send)
{
    struct pr_uring_state *state = backend->state;
    if (!state || state->thread != current_thread())
        return false;
    (void)pr_uring_map_enter(&state->map, 0);
    settle(state);
    if (send->result == -EINPROGRESS)
        return false;
    unlink_send(send);
    return true;
}

static void uring_cancel_send(struct pr_backend *backend, struct pr_send *send)
{
    struct pr_uring_state *state = backend->state;
    if (!state || serve_this_thread(state) < 0)
        return;
    (void)prepare_cancel(state, send_tag(send));
    (void)pr_uring_map_enter(&state->map, 0);
}

static void uring_return_data(struct pr_backend *backend, const struct pr_ready_event *event)
{
    return_data(backend->state, event->data);
}

static void uring_hold_data(struct pr_backend *backend, const struct pr_ready_event *event)
{
    struct pr_uring_state *state = backend->state;
    hold(&state->interests[event->fd], event->data, event->result, true);
    look_later(state, event->fd);
}

static bool uring_holds_older(const struct pr_backend *backend, const struct pr_ready_event *event)
{
    return backend->state->interests[event->fd].held;
}

static int uring_end_receive(struct pr_backend *backend, int fd, struct pr_ready_event *event)
{
    struct pr_uring_state *state = backend->state;
    *event = (struct pr_ready_event){.fd = fd, .events = PR_RECEIVED};
    if (!state || (size_t)fd >= state->interest_capacity)
        return 0;
    int error = serve_this_thread(state);
    if (error < 0)
        return error;
    struct interest *interest = &state->interests[fd];
    interest->ending = interest->receiving;
    while (interest->receiving) {
        (void)prepare_cancel(state, tag(KIND_RECEIVE, interest->receive_arm, fd));
        error = pr_uring_map_enter(&state->map, -1);
        settle(state);
        if (error < 0 && error != -EINTR && error != -EBUSY && error != -EAGAIN)
            return error;
    }
    struct pr_ready_event held[2];
    int count = interest->held ? report_held(interest, fd, held) : 0;
    error = 0;
    for (int i = 0; i < count; i++) {
        if (held[i].data)
            *event = held[i];
        else
            error = held[i].result;
    }
    return error;
}

static bool uring_supports(const struct pr_backend *backend, enum pr_op_kind kind)
{
    return backend->state && pr_uring_has(backend->state->operations, pr_uring_opcode(kind));
}

static void uring_submit(struct pr_backend *backend, struct pr_op *op)
{
    op->under_way = op->cancelled = op->asked = false;
    op->prev = op->next = NULL;
    pr_op_move(op, &backend->state->queued_ops);
    ask_for_wait(backend->state);
}

static void uring_cancel(struct pr_backend *backend, struct pr_op *op)
{
    struct pr_uring_state *state = backend->state;
    if (!op->next || op->cancelled) /* it is complete, and about to be reported */
        return;
    op->cancelled = true;
    if (op->under_way) {
        op->asked = prepare_cancel(state, op_tag(op));
        state->cut_later |= !op->asked;
    } else {
        op->result = -ECANCELED;
        pr_op_move(op, &state->done_ops);
    }
    ask_for_wait(state);
}

static int uring_visit(const struct pr_backend *backend,
                       int (*visit)(struct pr_op *op, void *argument), void *argument)
{
    const struct pr_uring_state *state = backend->state;
    if (!state)
        return 0;
    const struct pr_op *lists[] = {&state->queued_ops, &state->under_way_ops, &state->done_ops};
    int result = 0;
    for (int i = 0; i < 3; i++) {
        for (struct pr_op *op = lists[i]->next; op != lists[i] && !result; op = op->next)
            result = visit(op, argument);
    }
    return result;
}

static void uring_quiesce(struct pr_backend *backend)
{
    struct pr_uring_state *state = backend->state;
    if (!state || state->thread != current_thread())
        return;
    struct pr_send *send = state->under_way.next;
    for (; send != &state->under_way; send = send->next)
        (void)prepare_cancel(state, send_tag(send));
    while (state->under_way.next != &state->under_way ||
           !pr_op_list_is_empty(&state->under_way_ops)) {
        cut_ops_short(state, true);
        int error = pr_uring_map_enter(&state->map, -1);
        settle(state);
        if (error < 0 && error != -EINTR && error != -EBUSY && error != -EAGAIN)
            return;
    }
}

/* --- The ring's life ----------------------------------------------------------------------------
 */

static void free_state(struct pr_uring_state *state)
{
    for (size_t fd = 0; fd < state->interest_capacity; fd++)
        free_held(state->interests[fd].held);
    free(state->interests);
    free(state->pending);
    free(state->buffer_ring);
    free(state->buffers);
    if (state->eventfd >= 0)
        close(state->eventfd);
    free(state);
}

static int uring_init(struct pr_backend *backend)
{
    struct pr_uring_state *state = calloc(1, sizeof *state);
    if (!state)
        return -ENOMEM;
    state->process = getpid();
    state->eventfd = -1;
    state->under_way.prev = state->under_way.next = &state->under_way;
    state->done.prev = state->done.next = &state->done;
    pr_op_list_init(&state->queued_ops);
    pr_op_list_init(&state->under_way_ops);
    pr_op_list_init(&state->done_ops);
    state->buffer_ring = aligned_alloc(PR_URING_PAGE_BYTES, BUFFERS * sizeof *state->buffer_ring);
    state->buffers = aligned_alloc(PR_URING_PAGE_BYTES, (size_t)BUFFERS * PR_RECEIVED_BYTES_MAX);
    int error = state->buffer_ring && state->buffers ? make_ring(state) : -ENOMEM;
    if (error < 0) {
        free_state(state);
        return error;
    }
    backend->state = state;
    backend->fd = state->map.fd;
    backend->receives = pr_uring_has(state->operations, PR_URING_RECV);
    return 0;
}

/* Tells the owners of a list's operations; an `error` takes the place of their results. */
static void end_ops(struct pr_op *list, int32_t error)
{
    while (!pr_op_list_is_empty(list)) {
        struct pr_op *op = list->next;
        pr_op_unlink(op);
        (void)op->on_complete(op, error ? error : op->result);
    }
}

static void uring_deinit(struct pr_backend *backend)
{
    struct pr_uring_state *state = backend->state;
    backend->fd = -1;
    if (!state)
        return;
    bool is_left_behind = false;
    if (state->process == getpid()) {
        uring_quiesce(backend);
        settle(state);
        is_left_behind = state->thread && state->thread != current_thread();
        pr_uring_map_deinit(&state->map);
    } else {
        close(state->map.fd); /* the parent's ring goes on */
    }
    backend->state = NULL;
    if (is_left_behind) { /* only that thread can end it: better a leak than memory used twice */
        state->under_way.prev = state->under_way.next = &state->under_way;
        pr_op_list_init(&state->under_way_ops);
    }
    /* Without a ring nothing is under way any more. */
    while (state->under_way.next != &state->under_way) {
        state->under_way.next->result = -ECANCELED;
        move_send(state->under_way.next, &state->done);
    }
    struct pr_send *send;
    while ((send = take_done(state)))
        (void)send->on_sent(send, send->result);
    end_ops(&state->done_ops, 0);
    end_ops(&state->queued_ops, -ECANCELED);
    end_ops(&state->under_way_ops, -ECANCELED);
    free_state(state);
}

static const struct pr_completion_ops completion_ops = {
    .send = uring_send,
    .settle_send = uring_settle_send,
    .cancel_send = uring_cancel_send,
    .return_data = uring_return_data,
    .hold_data = uring_hold_data,
    .holds_older = uring_holds_older,
    .end_receive = uring_end_receive,
    .supports = uring_supports,
    .submit = uring_submit,
    .cancel = uring_cancel,
    .visit = uring_visit,
    .quiesce = uring_quiesce,
};

const struct pr_backend_ops pr_uring_ops = {
    .name = "io_uring",
    .completion = &completion_ops,
    .update = uring_update,
    .wait = uring_wait,
    .pollable_fd = uring_pollable_fd,
    .expose = uring_expose,
    .init = uring_init,
    .deinit = uring_deinit,
};
