/*
 * What of io_uring there is to use: what the kernel has, and is allowed to do, less what somebody
 * who looks for a fault has told us to do without.
 */
#ifndef PYREACTOR_URING_PROBE_H
#define PYREACTOR_URING_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "pyreactor/uring_map.h"

/* Names of operations as the kernel spells them, in lower case, with commas between: "recv,send".
 * Those are treated as if the kernel had none. */
#define PR_URING_WITHOUT_VARIABLE "PYREACTOR_URING_WITHOUT"

/* Whether `operations`, as pr_uring_probe() tells them, has `opcode`.  Any thread. */
static inline bool pr_uring_has(uint64_t operations, uint8_t opcode)
{
    return operations >> opcode & 1;
}

/*
 * Asks the kernel for the operations it has, and whether the ring, which may still be disabled, can
 * be entered: bit N of `*operations` stands for the operation N.
 * Returns 0 or a negative errno: -EINVAL where one is missing that nothing replaces, or where
 * PYREACTOR_URING_WITHOUT has a name that is no operation's; -EPERM or -ENOSYS where a seccomp
 * filter lets rings be made and not used.  The ring's thread.
 */
int pr_uring_probe(struct pr_uring_map *map, uint64_t *operations);

/* Turns the list `names` into bits.  Returns 0, or -EINVAL for an unknown name.  Any thread. */
int pr_uring_parse_operations(const char *names, uint64_t *operations);

#endif
