/*
 * Operations to submissions: which of a submission's fields means what differs from one of the
 * kernel's operations to the next.
 */
#include "pyreactor/uring_op.h"

static const uint8_t opcodes[PR_OP_KINDS] = {
    [PR_OP_READ] = 22,   [PR_OP_WRITE] = 23, [PR_OP_FSYNC] = 3,  [PR_OP_TRUNCATE] = 55,
    [PR_OP_STATX] = 21,  [PR_OP_OPEN] = 18,  [PR_OP_CLOSE] = 19, [PR_OP_RENAME] = 35,
    [PR_OP_UNLINK] = 36, [PR_OP_MKDIR] = 37,
};

uint8_t pr_uring_opcode(enum pr_op_kind kind)
{
    return opcodes[kind];
}

static uint64_t address_of(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

void pr_uring_op_prepare(const struct pr_op *op, struct pr_uring_sqe *sqe)
{
    sqe->opcode = opcodes[op->kind];
    sqe->fd = op->fd;
    switch (op->kind) {
    case PR_OP_READ:
    case PR_OP_WRITE:
        sqe->offset = (uint64_t)op->position;
        sqe->address = address_of(op->buffer);
        sqe->length = op->size;
        break;
    case PR_OP_FSYNC:
        sqe->operation_flags = op->flags;
        break;
    case PR_OP_TRUNCATE:
        sqe->offset = (uint64_t)op->position;
        break;
    case PR_OP_STATX:
        sqe->address = address_of(op->path);
        sqe->offset = address_of(op->buffer);
        sqe->length = op->size;
        sqe->operation_flags = op->flags;
        break;
    case PR_OP_OPEN:
        /* The kernel would try with O_NONBLOCK first, and that opens a FIFO without its other end,
         * or fails with ENXIO. */
        sqe->flags = PR_URING_SQE_ASYNC;
        /* fallthrough */
    case PR_OP_UNLINK:
    case PR_OP_MKDIR:
        sqe->address = address_of(op->path);
        sqe->length = op->mode;
        sqe->operation_flags = op->flags;
        break;
    case PR_OP_RENAME:
        sqe->address = address_of(op->path);
        sqe->offset = address_of(op->other_path);
        sqe->length = (uint32_t)op->other_fd;
        break;
    case PR_OP_CLOSE:
    case PR_OP_KINDS:
        break;
    }
}
