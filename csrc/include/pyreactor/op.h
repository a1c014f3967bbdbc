/*
 * An operation: one system call that the kernel carries out by itself, and reports when it is done.
 * It is embedded in its owner.  From pr_loop_submit() on it is the backend's, and it and all that
 * it points to stay where they are until on_complete().
 */
#ifndef PYREACTOR_OP_H
#define PYREACTOR_OP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pr_op_kind {
    PR_OP_READ,     /* up to `size` bytes from `position` to `buffer`; the result is how many */
    PR_OP_WRITE,    /* up to `size` bytes of `buffer` to `position`; the result is how many */
    PR_OP_FSYNC,    /* `flags`: PR_OP_DATA_ONLY, or 0 */
    PR_OP_TRUNCATE, /* to `position` bytes; from Linux 6.9 on */
    PR_OP_STATX,    /* `path` from `fd` on, to `buffer`; `flags`: AT_...; `size`: which fields */
    PR_OP_OPEN,     /* `path` from `fd` on; `flags` and `mode` of open(2); the result is its fd */
    PR_OP_CLOSE,
    PR_OP_RENAME, /* `path` from `fd` on to `other_path` from `other_fd` on */
    PR_OP_UNLINK, /* `path` from `fd` on; `flags`: AT_REMOVEDIR, or 0 */
    PR_OP_MKDIR,  /* `path` from `fd` on, with `mode` */
    PR_OP_KINDS
};

#define PR_OP_DATA_ONLY 1u

struct pr_op {
    enum pr_op_kind kind;
    int fd; /* borrowed: open until on_complete(), but for PR_OP_CLOSE */
    int other_fd;
    uint32_t size;
    void *buffer;     /* borrowed */
    int64_t position; /* -1: the descriptor's own */
    const char *path; /* borrowed, as the next */
    const char *other_path;
    uint32_t flags;
    uint32_t mode;
    void *owner;

    /* Called by the loop, or at its end: the kernel is done with it.  `result` is what the system
     * call returns, or a negative errno: -ECANCELED where it was cut short, or the loop has ended,
     * before it had any effect.  Returns 0, or non-zero to end the turn here. */
    int (*on_complete)(struct pr_op *op, int32_t result);

    /* The backend's: */
    struct pr_op *prev, *next; /* NULL, NULL while it is its owner's */
    int32_t result;
    bool under_way; /* the kernel has it */
    bool cancelled; /* by its owner */
    bool asked;     /* the kernel has been asked to cut it short */
};

/* An empty list of operations.  Any thread. */
static inline void pr_op_list_init(struct pr_op *list)
{
    list->prev = list->next = list;
}

/* Whether a list is empty.  The list's thread. */
static inline bool pr_op_list_is_empty(const struct pr_op *list)
{
    return list->next == list;
}

/* Takes `op` out of the list that it is in, if any.  The list's thread. */
static inline void pr_op_unlink(struct pr_op *op)
{
    if (!op->next)
        return;
    op->prev->next = op->next;
    op->next->prev = op->prev;
    op->prev = op->next = NULL;
}

/* Puts `op` at the end of `list`, from wherever it was.  The list's thread. */
static inline void pr_op_move(struct pr_op *op, struct pr_op *list)
{
    pr_op_unlink(op);
    op->prev = list->prev;
    op->next = list;
    list->prev->next = op;
    list->prev = op;
}

#endif
