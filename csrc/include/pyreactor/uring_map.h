/*
 * An io_uring as the kernel gives it: its two rings mapped, with the kernel's own interface and our
 * own constants, so that what is built here runs wherever the kernel has it.  Who submits and who
 * reaps, and that they are one thread at a time each, is the caller's affair.
 *
 * All functions: one thread that submits and one that reaps at a time.
 */
#ifndef PYREACTOR_URING_MAP_H
#define PYREACTOR_URING_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PR_URING_NOP 0
#define PR_URING_POLL_ADD 6
#define PR_URING_POLL_REMOVE 7

#define PR_URING_FEATURE_SINGLE_MAP (1u << 0) /* 5.4 */
#define PR_URING_FEATURE_NO_DROP (1u << 1)    /* 5.5 */
#define PR_URING_FEATURE_EXT_ARG (1u << 8)    /* 5.11: a wait takes a timeout */

/* One operation, as the kernel reads it. */
struct pr_uring_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t offset;
    uint64_t address;
    uint32_t length;
    uint32_t operation_flags; /* poll32_events, msg_flags ... */
    uint64_t user_data;
    uint16_t buffer_index;
    uint16_t personality;
    int32_t file_index;
    uint64_t reserved[2];
};

/* One result, as the kernel writes it. */
struct pr_uring_cqe {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
};

struct pr_uring_map {
    int fd; /* owned */
    uint32_t features;

    /* The submission ring: we write the tail, the kernel the head. */
    _Atomic(uint32_t) *sq_head, *sq_tail, *sq_flags;
    uint32_t sq_mask;
    uint32_t sq_next; /* our tail, ahead of the kernel's view until the submit */
    struct pr_uring_sqe *sqes;

    /* The completion ring: the kernel writes the tail, we the head. */
    _Atomic(uint32_t) *cq_head, *cq_tail;
    uint32_t cq_mask;
    const struct pr_uring_cqe *cqes;

    void *rings; /* owned mapping */
    size_t rings_size;
    size_t sqes_size;
};

/*
 * Makes a ring of `entries` submissions (a power of two) with the IORING_SETUP_ `flags`.  Returns 0
 * or a negative errno: -ENOSYS where the kernel has none or is older than 5.11, -EPERM where a
 * sysctl or a seccomp filter forbids it.  Any thread.
 */
int pr_uring_map_init(struct pr_uring_map *map, uint32_t entries, uint32_t flags);

/* Unmaps and closes it; the kernel cancels what is in flight.  Any thread, when no other uses it.
 */
void pr_uring_map_deinit(struct pr_uring_map *map);

/* The next submission to fill, zeroed; NULL where the ring is full. */
struct pr_uring_sqe *pr_uring_map_next_sqe(struct pr_uring_map *map);

/* Gives the kernel what was filled.  Returns 0 or a negative errno; -EBUSY, -EAGAIN: what is left
 * stays for the next call. */
int pr_uring_map_submit(struct pr_uring_map *map);

/*
 * Waits up to `timeout_ns` (-1: no limit) for a completion, or until something that the kernel had
 * no room for is in the ring.  Returns 0, also when the time is over, or a negative errno.
 */
int pr_uring_map_wait(struct pr_uring_map *map, int64_t timeout_ns);

/* Whether there are completions that the ring had no room for; a wait moves them there. */
bool pr_uring_map_has_overflow(const struct pr_uring_map *map);

/* Takes the oldest completion.  Returns false where there is none. */
bool pr_uring_map_pop(struct pr_uring_map *map, struct pr_uring_cqe *cqe);

#endif
