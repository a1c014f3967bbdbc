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

#define PR_URING_PAGE_BYTES 4096 /* how a ring of buffers is aligned */

/* Operations. */
#define PR_URING_NOP 0
#define PR_URING_POLL_ADD 6
#define PR_URING_POLL_REMOVE 7
#define PR_URING_SENDMSG 9
#define PR_URING_ACCEPT 13
#define PR_URING_ASYNC_CANCEL 14
#define PR_URING_CONNECT 16
#define PR_URING_READ 22
#define PR_URING_WRITE 23
#define PR_URING_SEND 26
#define PR_URING_RECV 27

#define PR_URING_SQE_HARD_LINK (1u << 3)     /* flags: the next one starts when this one is done */
#define PR_URING_SQE_ASYNC (1u << 4)         /* flags: by a thread of the kernel's, at once */
#define PR_URING_SQE_BUFFER_SELECT (1u << 5) /* flags: the kernel takes a buffer of the group */
#define PR_URING_POLL_FIRST (1u << 0)        /* ioprio of RECV: expect to wait */
#define PR_URING_POLL_MULTISHOT (1u << 0)    /* length of POLL_ADD: stays in force */
#define PR_URING_RECV_MULTISHOT (1u << 1)    /* ioprio of RECV: stays in force */

#define PR_URING_CQE_BUFFER (1u << 0) /* the upper half of the flags is a buffer's id */
#define PR_URING_CQE_MORE (1u << 1)   /* the submission is still in force */
#define PR_URING_CQE_BUFFER_SHIFT 16

/* Flags of a ring. */
#define PR_URING_SETUP_CQSIZE (1u << 3)
#define PR_URING_SETUP_R_DISABLED (1u << 6) /* until pr_uring_map_enable() */
#define PR_URING_SETUP_SUBMIT_ALL (1u << 7)
#define PR_URING_SETUP_TASKRUN_FLAG (1u << 9)
#define PR_URING_SETUP_SINGLE_ISSUER (1u << 12)
#define PR_URING_SETUP_DEFER_TASKRUN (1u << 13)

#define PR_URING_FEATURE_SINGLE_MAP (1u << 0) /* 5.4 */
#define PR_URING_FEATURE_NO_DROP (1u << 1)    /* 5.5 */
#define PR_URING_FEATURE_EXT_ARG (1u << 8)    /* 5.11: a wait takes a timeout */
#define PR_URING_FEATURE_NO_IOWAIT (1u << 17) /* 6.15: a wait need not count as one for a disk */

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
    uint16_t buffer_group;
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

/* A place in a ring of buffers that the kernel chooses from. */
struct pr_uring_buffer {
    uint64_t address;
    uint32_t length;
    uint16_t id;
    uint16_t tail; /* meaningful in the first place only: the ring's tail */
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
 * Makes a ring of `entries` submissions (a power of two) with the PR_URING_SETUP_ `flags`, and room
 * for `cq_entries` completions (0: twice the entries).  Returns 0 or a negative errno: -ENOSYS
 * where the kernel has none or is older than 5.11, -EPERM where a sysctl or a seccomp filter
 * forbids it, -EINVAL for a flag that this kernel lacks.  Any thread.
 */
int pr_uring_map_init(struct pr_uring_map *map, uint32_t entries, uint32_t cq_entries,
                      uint32_t flags);

/* Finds out which operations the kernel has: bit N of `supported` stands for the operation N (there
 * are no more than 64).  Returns 0 or a negative errno. */
int pr_uring_map_probe(struct pr_uring_map *map, uint64_t *supported);

/* Makes a ring usable that has PR_URING_SETUP_R_DISABLED, by the calling thread.  Returns 0 or a
 * negative errno. */
int pr_uring_map_enable(struct pr_uring_map *map);

/* Hands a ring of `count` buffers (a power of two; page-aligned; to stay as long as the map) to the
 * kernel as group `group`.  Returns 0 or a negative errno. */
int pr_uring_map_register_buffers(struct pr_uring_map *map, struct pr_uring_buffer *buffers,
                                  uint32_t count, uint16_t group);

/*
 * Has the kernel write the eventfd `fd` for each completion, and where it has to be entered before
 * it can complete something.  Count on the first time only: what an eventfd that somebody writes
 * completes is told once for each registration (tried on 6.18).  Returns 0 or a negative errno.
 */
int pr_uring_map_register_eventfd(struct pr_uring_map *map, int fd);

/* Ends that.  Returns 0 or a negative errno. */
int pr_uring_map_unregister_eventfd(struct pr_uring_map *map);

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

/* Both in one call, for a thread that does both: submits, then waits as pr_uring_map_wait(). */
int pr_uring_map_enter(struct pr_uring_map *map, int64_t timeout_ns);

/* Submissions that were filled and not yet taken by the kernel. */
static inline uint32_t pr_uring_map_prepared(const struct pr_uring_map *map)
{
    return map->sq_next - atomic_load_explicit(map->sq_head, memory_order_acquire);
}

/* Whether the kernel has to be entered before it can complete something; with
 * PR_URING_SETUP_TASKRUN_FLAG. */
bool pr_uring_map_has_work(const struct pr_uring_map *map);

/* Whether there are completions that the ring had no room for; a wait moves them there. */
bool pr_uring_map_has_overflow(const struct pr_uring_map *map);

/* The oldest completion, in its place in the ring; NULL where there is none. */
static inline const struct pr_uring_cqe *pr_uring_map_peek(const struct pr_uring_map *map)
{
    uint32_t head = atomic_load_explicit(map->cq_head, memory_order_relaxed);
    /* Pairs with the kernel's release of the completion. */
    if (head == atomic_load_explicit(map->cq_tail, memory_order_acquire))
        return NULL;
    return &map->cqes[head & map->cq_mask];
}

/* Gives back the place that pr_uring_map_peek() has shown. */
static inline void pr_uring_map_advance(struct pr_uring_map *map)
{
    uint32_t head = atomic_load_explicit(map->cq_head, memory_order_relaxed);
    /* Pairs with the kernel's acquire: the place is free. */
    atomic_store_explicit(map->cq_head, head + 1, memory_order_release);
}

/* Takes the oldest completion.  Returns false where there is none. */
bool pr_uring_map_pop(struct pr_uring_map *map, struct pr_uring_cqe *cqe);

#endif
