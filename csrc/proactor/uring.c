/*
 * io_uring: the kernel reads, writes, accepts and connects, and the main thread submits and takes
 * completions, both in one system call.  The ring serves that thread alone
 * (PR_URING_SETUP_SINGLE_ISSUER); it becomes so with the first turn.
 *
 * Reads that name no buffer get one of the kernel's group when there are bytes.  With `strict` each
 * read has its own from the beginning.
 *
 * A sendfile is a read and a send in turn, through a buffer of the pool: a splice would keep a
 * thread of the kernel for as long as the peer is slow.
 */
#include "pyreactor/proactor.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "pyreactor/uring_map.h"

#define SQ_ENTRIES 1024 /* more in one turn: entered once more */
#define CQ_ENTRIES 8192 /* the kernel keeps what has no room */
/* All there from Linux 6.1 on; an older kernel refuses them with EINVAL. */
#define RING_FLAGS                                                                                 \
    (PR_URING_SETUP_R_DISABLED | PR_URING_SETUP_SUBMIT_ALL | PR_URING_SETUP_TASKRUN_FLAG |         \
     PR_URING_SETUP_SINGLE_ISSUER | PR_URING_SETUP_DEFER_TASKRUN)
#define BUFFER_GROUP 0

/* What a completion belongs to: an address, and in its free bits which part of the operation. */
#define PART_MASK 7u
#define PART_ITSELF 0u
#define PART_ANNOUNCEMENT 1u
#define PART_POLL 2u /* for a descriptor that does not wait by itself */
/* Of no operation: */
#define IGNORED 8u
#define WAKEUP 16u
#define SIGNAL 24u
#define LAST_OF_NONE 32u

static_assert(_Alignof(struct pr_aio) > PART_MASK, "its address has room for the part");

struct uring_proactor {
    struct pr_proactor base;
    struct pr_wakeup wakeup;
    struct pr_uring_map map;
    bool enabled;
    bool wakeup_polled;
    bool signal_polled;
    struct pr_uring_buffer *buffer_ring; /* owned; NULL with `strict` */
};

static struct uring_proactor *of(struct pr_proactor *proactor)
{
    return (struct uring_proactor *)proactor;
}

/* --- Submissions ------------------------------------------------------------------------------
 */

/* Makes room for `count` submissions that stand together. */
static bool reserve(struct uring_proactor *self, uint32_t count)
{
    if (pr_uring_map_prepared(&self->map) + count <= self->map.sq_mask + 1)
        return true;
    (void)pr_uring_map_enter(&self->map, 0);
    return pr_uring_map_prepared(&self->map) + count <= self->map.sq_mask + 1;
}

static void set_bytes(struct pr_uring_sqe *sqe, const char *data, size_t size)
{
    sqe->address = (uint64_t)(uintptr_t)data;
    sqe->length = size < INT32_MAX ? (uint32_t)size : (uint32_t)INT32_MAX;
}

static void prepare_read(struct pr_aio *aio, struct pr_uring_sqe *sqe)
{
    if (aio->is_socket) {
        sqe->opcode = PR_URING_RECV;
    } else {
        sqe->opcode = PR_URING_READ;
        sqe->offset = (uint64_t)aio->offset;
    }
    if (aio->buffer == PR_ANY_BUFFER) {
        sqe->flags = PR_URING_SQE_BUFFER_SELECT;
        sqe->buffer_group = BUFFER_GROUP;
        sqe->length = (uint32_t)aio->size; /* 0: as much as the buffer takes */
    } else {
        set_bytes(sqe, aio->data, aio->size);
    }
}

static void prepare_write(struct pr_aio *aio, struct pr_uring_sqe *sqe)
{
    set_bytes(sqe, aio->data + aio->done, aio->size - aio->done);
    if (aio->is_socket) {
        sqe->opcode = PR_URING_SEND;
        sqe->operation_flags = MSG_NOSIGNAL | MSG_WAITALL;
    } else {
        sqe->opcode = PR_URING_WRITE;
        sqe->offset = aio->offset == PR_NO_OFFSET ? (uint64_t)PR_NO_OFFSET
                                                  : (uint64_t)aio->offset + aio->done;
    }
}

static void prepare_sendfile(const struct pr_proactor *proactor, struct pr_aio *aio,
                             struct pr_uring_sqe *sqe)
{
    if (aio->chunk_begin < aio->chunk_end) {
        sqe->opcode = PR_URING_SEND;
        sqe->operation_flags = MSG_NOSIGNAL | MSG_WAITALL;
        set_bytes(sqe, aio->data + aio->chunk_begin, aio->chunk_end - aio->chunk_begin);
        return;
    }
    size_t left = aio->size - aio->done;
    sqe->opcode = PR_URING_READ;
    sqe->fd = aio->source_fd;
    sqe->offset = (uint64_t)aio->offset + aio->done;
    set_bytes(sqe, aio->data,
              left < proactor->buffers.pool->buffer_bytes ? left
                                                          : proactor->buffers.pool->buffer_bytes);
}

static void prepare(const struct pr_proactor *proactor, struct pr_aio *aio,
                    struct pr_uring_sqe *sqe)
{
    sqe->fd = aio->fd;
    sqe->user_data = (uint64_t)(uintptr_t)aio | PART_ITSELF;
    switch (aio->kind) {
    case PR_AIO_READ:
        prepare_read(aio, sqe);
        break;
    case PR_AIO_WRITE:
        prepare_write(aio, sqe);
        break;
    case PR_AIO_ACCEPT:
        aio->address.size = sizeof aio->address - offsetof(struct pr_address, any);
        sqe->opcode = PR_URING_ACCEPT;
        sqe->operation_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
        sqe->address = (uint64_t)(uintptr_t)&aio->address.any;
        sqe->offset = (uint64_t)(uintptr_t)&aio->address.size;
        break;
    case PR_AIO_CONNECT:
        sqe->opcode = PR_URING_CONNECT;
        sqe->address = (uint64_t)(uintptr_t)&aio->address.any;
        sqe->offset = aio->address.size;
        break;
    default:
        prepare_sendfile(proactor, aio, sqe);
    }
}

/* Has the kernel write the announcement itself, when the operation before it is done. */
static void prepare_announcement(const struct pr_proactor *proactor, struct pr_aio *aio,
                                 struct pr_uring_sqe *sqe)
{
    sqe->opcode = PR_URING_WRITE;
    sqe->fd = pr_notifier_fd(&proactor->notifier, aio->notify);
    sqe->offset = (uint64_t)PR_NO_OFFSET;
    set_bytes(sqe, (const char *)&pr_notifier_one, pr_notifier_bytes(aio->notify));
    sqe->user_data = (uint64_t)(uintptr_t)aio | PART_ANNOUNCEMENT;
}

static void prepare_poll(struct pr_aio *aio, struct pr_uring_sqe *sqe)
{
    sqe->opcode = PR_URING_POLL_ADD;
    sqe->fd = aio->fd;
    sqe->operation_flags =
        aio->kind == PR_AIO_READ || aio->kind == PR_AIO_ACCEPT ? POLLIN : POLLOUT;
    sqe->user_data = (uint64_t)(uintptr_t)aio | PART_POLL;
}

/* The ring serves the first thread that needs it. */
static int serve_this_thread(struct uring_proactor *self)
{
    int error = self->enabled ? 0 : pr_uring_map_enable(&self->map);
    self->enabled = error == 0;
    return error;
}

static void uring_start(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct uring_proactor *self = of(proactor);
    /* Of a sendfile no part is the last one before its result is known: it is announced later. */
    bool announces = aio->notify != PR_NOTIFY_CQE && aio->kind != PR_AIO_SENDFILE &&
                     !aio->announced && !aio->poll_first;
    /* What is announced must not be started twice, as for want of a buffer. */
    bool needs_buffer = aio->kind == PR_AIO_SENDFILE || announces || !self->buffer_ring;
    if (aio->buffer == PR_ANY_BUFFER && needs_buffer && !pr_proactor_give_buffer(proactor, aio))
        return;
    int error = serve_this_thread(self);
    if (error < 0 || !reserve(self, 1 + announces)) {
        pr_proactor_finish(proactor, aio, error < 0 ? error : -EAGAIN, false);
        return;
    }
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&self->map);
    if (aio->poll_first)
        prepare_poll(aio, sqe);
    else
        prepare(proactor, aio, sqe);
    aio->poll_first = false;
    aio->kernel_parts = 1;
    if (announces) {
        sqe->flags |= PR_URING_SQE_HARD_LINK;
        prepare_announcement(proactor, aio, pr_uring_map_next_sqe(&self->map));
        aio->kernel_parts = 2;
    }
}

static void prepare_cancel(struct uring_proactor *self, uint64_t user_data)
{
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&self->map);
    sqe->opcode = PR_URING_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->address = user_data;
    sqe->user_data = IGNORED;
}

static void uring_cancel(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct uring_proactor *self = of(proactor);
    if (pr_proactor_unpostpone(proactor, aio)) {
        pr_proactor_finish(proactor, aio, -ECANCELED, false);
        return;
    }
    if (!reserve(self, 2))
        return; /* the operation goes on to its end */
    prepare_cancel(self, (uint64_t)(uintptr_t)aio | PART_ITSELF);
    if (!aio->is_socket)
        prepare_cancel(self, (uint64_t)(uintptr_t)aio | PART_POLL);
}

/* --- Completions ------------------------------------------------------------------------------
 */

/* What the kernel says of a sendfile's part.  Returns whether there is another. */
static bool continue_sendfile(struct pr_aio *aio, int32_t *result)
{
    if (*result < 0)
        return false;
    if (aio->chunk_begin == aio->chunk_end) { /* it was a read */
        aio->chunk_begin = 0;
        aio->chunk_end = (size_t)*result;
        *result = 0;
        return aio->chunk_end > 0; /* if not, the file ends here */
    }
    aio->chunk_begin += (size_t)*result;
    aio->done += (size_t)*result;
    *result = 0;
    return aio->chunk_begin < aio->chunk_end || aio->done < aio->size;
}

/* What the kernel says of an operation.  Returns whether there is more of it to be done. */
static bool continue_operation(struct pr_aio *aio, int32_t *result)
{
    switch (aio->kind) {
    case PR_AIO_READ:
        if (*result >= 0) {
            aio->done = (size_t)*result;
            *result = 0;
        }
        return false;
    case PR_AIO_WRITE:
        if (*result < 0)
            return false;
        aio->done += (size_t)*result;
        if (*result == 0 && aio->done < aio->size) {
            *result = -EIO; /* it would not end */
            return false;
        }
        *result = 0;
        return aio->done < aio->size;
    case PR_AIO_SENDFILE:
        return continue_sendfile(aio, result);
    default:
        return false;
    }
}

static void finish_part(struct pr_proactor *proactor, struct pr_aio *aio)
{
    if (--aio->kernel_parts > 0)
        return;
    bool is_cut_short = atomic_load(&aio->cancel) == PR_CANCEL_SEEN || proactor->abort_seen;
    if (!aio->unfinished) {
        pr_proactor_finish(proactor, aio, aio->result, aio->announced);
    } else if (is_cut_short) {
        pr_proactor_finish(proactor, aio, -ECANCELED, aio->announced);
    } else {
        aio->unfinished = false;
        uring_start(proactor, aio);
    }
}

/* None of the kernel's buffers was left. */
static void await_buffer(struct pr_proactor *proactor, struct pr_aio *aio)
{
    atomic_fetch_add_explicit(&proactor->buffers.exhaustions, 1, memory_order_relaxed);
    if (atomic_load(&aio->cancel) == PR_CANCEL_SEEN || proactor->stop_seen)
        pr_proactor_finish(proactor, aio, -ECANCELED, false);
    else
        pr_proactor_postpone(proactor, aio);
}

static void complete(struct pr_proactor *proactor, struct pr_aio *aio,
                     const struct pr_uring_cqe *cqe)
{
    int32_t result = cqe->result;
    if (cqe->flags & PR_URING_CQE_BUFFER) {
        aio->buffer =
            pr_buffer_group_taken(&proactor->buffers, cqe->flags >> PR_URING_CQE_BUFFER_SHIFT);
        aio->data = pr_buffer_pool_data(proactor->buffers.pool, aio->buffer);
    } else if (aio->buffer == PR_ANY_BUFFER && result == -ENOBUFS) {
        aio->kernel_parts = 0;
        await_buffer(proactor, aio);
        return;
    }
    aio->poll_first = result == -EAGAIN;
    aio->unfinished = result == -EINTR || result == -EAGAIN || continue_operation(aio, &result);
    aio->result = result;
    finish_part(proactor, aio);
}

static void complete_poll(struct pr_proactor *proactor, struct pr_aio *aio, int32_t result)
{
    aio->unfinished = result >= 0;
    aio->result = result;
    finish_part(proactor, aio);
}

/* The announcement is written, after the operation itself was done. */
static void complete_announcement(struct pr_proactor *proactor, struct pr_aio *aio, int32_t result)
{
    aio->announced = result > 0;
    finish_part(proactor, aio);
}

static void take(struct uring_proactor *self, const struct pr_uring_cqe *cqe)
{
    struct pr_proactor *proactor = &self->base;
    if (cqe->user_data <= LAST_OF_NONE) {
        bool ended = !(cqe->flags & PR_URING_CQE_MORE);
        if (cqe->user_data == WAKEUP) {
            self->wakeup_polled &= !ended;
            pr_wakeup_drain(&self->wakeup);
        } else if (cqe->user_data == SIGNAL) {
            self->signal_polled &= !ended;
            pr_proactor_take_signals(proactor);
        }
        return;
    }
    struct pr_aio *aio = (struct pr_aio *)(uintptr_t)(cqe->user_data & ~(uint64_t)PART_MASK);
    switch (cqe->user_data & PART_MASK) {
    case PART_ANNOUNCEMENT:
        complete_announcement(proactor, aio, cqe->result);
        break;
    case PART_POLL:
        complete_poll(proactor, aio, cqe->result);
        break;
    default:
        complete(proactor, aio, cqe);
    }
}

/* --- The main thread's wait -------------------------------------------------------------------
 */

static void poll_descriptor(struct uring_proactor *self, int fd, uint64_t user_data, bool *polled)
{
    if (*polled || fd < 0 || !reserve(self, 1))
        return;
    struct pr_uring_sqe *sqe = pr_uring_map_next_sqe(&self->map);
    sqe->opcode = PR_URING_POLL_ADD;
    sqe->fd = fd;
    sqe->length = PR_URING_POLL_MULTISHOT;
    sqe->operation_flags = POLLIN;
    sqe->user_data = user_data;
    *polled = true;
}

static int uring_wait(struct pr_proactor *proactor, int64_t timeout_ns)
{
    struct uring_proactor *self = of(proactor);
    struct pr_uring_cqe cqe;
    int error = serve_this_thread(self);
    if (error < 0)
        return error;
    poll_descriptor(self, self->wakeup.fd, WAKEUP, &self->wakeup_polled);
    poll_descriptor(self, proactor->notifier.signal_fd, SIGNAL, &self->signal_polled);
    if (pr_uring_map_peek(&self->map) || !pr_wakeup_begin_sleep(&self->wakeup))
        timeout_ns = 0;
    error = pr_uring_map_enter(&self->map, timeout_ns);
    pr_wakeup_end_sleep(&self->wakeup);
    while (pr_uring_map_pop(&self->map, &cqe))
        take(self, &cqe);
    /* The kernel has no room for more completions, or no memory: these have just been taken. */
    return error == -EBUSY || error == -EAGAIN ? 0 : error;
}

/* --- The engine's life ------------------------------------------------------------------------
 */

static void uring_submit(struct pr_proactor *proactor, struct pr_aio *aio)
{
    pr_wakeup_post(&of(proactor)->wakeup, &aio->submission);
}

static void uring_wake(struct pr_proactor *proactor)
{
    pr_wakeup_wake(&of(proactor)->wakeup);
}

/* Makes the kernel's ring of buffers: three quarters of what is free, the rest is for those who
 * name theirs. */
static int provide_buffers(struct uring_proactor *self)
{
    const struct pr_buffer_pool *pool = self->base.buffers.pool;
    uint32_t available = pool->count - atomic_load(&pool->lent_count);
    uint32_t count = available - available / 4;
    uint32_t entries = 1;
    if (count > PR_GROUP_BUFFERS_MAX)
        count = PR_GROUP_BUFFERS_MAX;
    while (entries < count)
        entries *= 2;
    size_t bytes = entries * sizeof *self->buffer_ring;
    bytes += -bytes % PR_URING_PAGE_BYTES;
    self->buffer_ring = aligned_alloc(PR_URING_PAGE_BYTES, bytes);
    if (!self->buffer_ring)
        return -ENOMEM;
    for (uint32_t i = 0; i < entries; i++)
        self->buffer_ring[i] = (struct pr_uring_buffer){0};
    int error = pr_uring_map_register_buffers(&self->map, self->buffer_ring, entries, BUFFER_GROUP);
    if (error == 0)
        error = pr_buffer_group_provide(&self->base.buffers, self->buffer_ring, entries, count);
    if (error < 0) {
        pr_uring_map_deinit(&self->map); /* before its buffers */
        free(self->buffer_ring);
    }
    return error;
}

static int uring_init(struct pr_proactor *proactor)
{
    struct uring_proactor *self = of(proactor);
    int error = pr_uring_map_init(&self->map, SQ_ENTRIES, CQ_ENTRIES, RING_FLAGS);
    if (error < 0)
        return error;
    error = pr_wakeup_init(&self->wakeup);
    if (error < 0)
        goto unmap;
    proactor->wakeup = &self->wakeup;
    if (!proactor->strict)
        error = provide_buffers(self); /* unmaps it where that fails */
    if (error < 0)
        pr_wakeup_deinit(&self->wakeup);
    return error;

unmap:
    pr_uring_map_deinit(&self->map);
    return error;
}

static void uring_deinit(struct pr_proactor *proactor)
{
    struct uring_proactor *self = of(proactor);
    pr_uring_map_deinit(&self->map);
    free(self->buffer_ring);
    pr_wakeup_deinit(&self->wakeup);
}

const struct pr_proactor_ops pr_proactor_uring_ops = {
    .name = "io_uring",
    .size = sizeof(struct uring_proactor),
    .init = uring_init,
    .deinit = uring_deinit,
    .submit = uring_submit,
    .start = uring_start,
    .cancel = uring_cancel,
    .wait = uring_wait,
    .wake = uring_wake,
};
