/*
 * Operations as io_uring has them.
 *
 * All functions: any thread; they touch nothing but their arguments.
 */
#ifndef PYREACTOR_URING_OP_H
#define PYREACTOR_URING_OP_H

#include "pyreactor/op.h"
#include "pyreactor/uring_map.h"

/* Which of the kernel's operations a kind is. */
uint8_t pr_uring_opcode(enum pr_op_kind kind);

/* Fills a zeroed submission, all but its user_data. */
void pr_uring_op_prepare(const struct pr_op *op, struct pr_uring_sqe *sqe);

#endif
