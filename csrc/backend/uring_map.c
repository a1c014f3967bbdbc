/*
 * Mapping and memory order of the kernel's rings.  liburing does the same; this is the part of it
 * that we need, so that a wheel neither carries it nor depends on the version of a machine's.
 */
#include "pyreactor/uring_map.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyreactor/clock.h"

/* One number on every architecture that we run on. */
#define SETUP 425
#define ENTER 426
#define REGISTER 427

#define OFFSET_RINGS 0
#define OFFSET_SQES 0x10000000

#define ENTER_GETEVENTS (1u << 0)
#define ENTER_EXT_ARG (1u << 3)
#define ENTER_NO_IOWAIT (1u << 7)

#define SQ_CQ_OVERFLOW (1u << 1)
#define SQ_TASKRUN (1u << 2)

#define REGISTER_EVENTFD 4
#define UNREGISTER_EVENTFD 5
#define REGISTER_PROBE 8
#define REGISTER_ENABLE_RINGS 12
#define REGISTER_PBUF_RING 22

#define FEATURES_NEEDED                                                                            \
    (PR_URING_FEATURE_SINGLE_MAP | PR_URING_FEATURE_NO_DROP | PR_URING_FEATURE_EXT_ARG)

struct sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved1;
    uint64_t user_address;
};

struct cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved1;
    uint64_t user_address;
};

struct setup {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    uint32_t reserved[3];
    struct sq_offsets sq;
    struct cq_offsets cq;
};

struct wait_argument {
    uint64_t signal_mask;
    uint32_t signal_mask_size;
    uint32_t min_wait_us;
    uint64_t timeout;
};

struct timeout {
    int64_t seconds;
    int64_t nanoseconds;
};

struct buffer_registration {
    uint64_t address;
    uint32_t entries;
    uint16_t group, flags;
    uint64_t reserved[3];
};

#define PROBED_OPERATIONS 64
#define PROBE_SUPPORTED 1u

struct probe {
    uint8_t last_operation, count;
    uint16_t reserved1;
    uint32_t reserved2[3];
    struct {
        uint8_t operation, reserved1;
        uint16_t flags;
        uint32_t reserved2;
    } operations[PROBED_OPERATIONS];
};

static_assert(sizeof(struct probe) == 16 + 8 * PROBED_OPERATIONS, "struct io_uring_probe");
static_assert(sizeof(struct pr_uring_sqe) == 64, "the kernel's struct io_uring_sqe");
static_assert(sizeof(struct pr_uring_cqe) == 16, "the kernel's struct io_uring_cqe");
static_assert(sizeof(struct pr_uring_buffer) == 16, "the kernel's struct io_uring_buf");
static_assert(sizeof(struct setup) == 120, "the kernel's struct io_uring_params");

int pr_uring_map_init(struct pr_uring_map *map, uint32_t entries, uint32_t cq_entries,
                      uint32_t flags)
{
    struct setup setup = {.flags = flags | (cq_entries ? PR_URING_SETUP_CQSIZE : 0),
                          .cq_entries = cq_entries};
    int error;
    *map = (struct pr_uring_map){.fd = -1};
    map->fd = (int)syscall(SETUP, entries, &setup);
    if (map->fd < 0)
        return -errno;
    if ((setup.features & FEATURES_NEEDED) != FEATURES_NEEDED) {
        error = -ENOSYS;
        goto close_fd;
    }
    size_t sq_size = setup.sq.array + setup.sq_entries * sizeof(uint32_t);
    size_t cq_size = setup.cq.cqes + setup.cq_entries * sizeof(struct pr_uring_cqe);
    map->features = setup.features;
    map->rings_size = sq_size > cq_size ? sq_size : cq_size;
    map->rings = mmap(NULL, map->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                      map->fd, OFFSET_RINGS);
    if (map->rings == MAP_FAILED) {
        error = -errno;
        goto close_fd;
    }
    map->sqes_size = setup.sq_entries * sizeof(struct pr_uring_sqe);
    map->sqes = mmap(NULL, map->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                     map->fd, OFFSET_SQES);
    if (map->sqes == MAP_FAILED) {
        error = -errno;
        goto unmap_rings;
    }
    /* A forked child must not touch the parent's rings. */
    (void)madvise(map->rings, map->rings_size, MADV_DONTFORK);
    (void)madvise(map->sqes, map->sqes_size, MADV_DONTFORK);

    char *rings = map->rings;
    map->sq_head = (_Atomic(uint32_t) *)(void *)(rings + setup.sq.head);
    map->sq_tail = (_Atomic(uint32_t) *)(void *)(rings + setup.sq.tail);
    map->sq_flags = (_Atomic(uint32_t) *)(void *)(rings + setup.sq.flags);
    map->sq_mask = *(uint32_t *)(void *)(rings + setup.sq.ring_mask);
    map->cq_head = (_Atomic(uint32_t) *)(void *)(rings + setup.cq.head);
    map->cq_tail = (_Atomic(uint32_t) *)(void *)(rings + setup.cq.tail);
    map->cq_mask = *(uint32_t *)(void *)(rings + setup.cq.ring_mask);
    map->cqes = (const struct pr_uring_cqe *)(void *)(rings + setup.cq.cqes);
    /* The kernel reads submissions through an array of indexes; ours stay in their order. */
    uint32_t *array = (uint32_t *)(void *)(rings + setup.sq.array);
    for (uint32_t i = 0; i < setup.sq_entries; i++)
        array[i] = i;
    return 0;

unmap_rings:
    munmap(map->rings, map->rings_size);
close_fd:
    close(map->fd);
    map->fd = -1;
    return error;
}

void pr_uring_map_deinit(struct pr_uring_map *map)
{
    munmap(map->sqes, map->sqes_size);
    munmap(map->rings, map->rings_size);
    close(map->fd);
    map->fd = -1;
}

int pr_uring_map_probe(struct pr_uring_map *map, uint64_t *supported)
{
    struct probe probe = {0};
    if (syscall(REGISTER, map->fd, REGISTER_PROBE, &probe, PROBED_OPERATIONS) < 0)
        return -errno;
    *supported = 0;
    for (unsigned i = 0; i < probe.count && i < PROBED_OPERATIONS; i++) {
        if (probe.operations[i].flags & PROBE_SUPPORTED)
            *supported |= UINT64_C(1) << probe.operations[i].operation;
    }
    return 0;
}

int pr_uring_map_enable(struct pr_uring_map *map)
{
    return syscall(REGISTER, map->fd, REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno : 0;
}

int pr_uring_map_register_buffers(struct pr_uring_map *map, struct pr_uring_buffer *buffers,
                                  uint32_t count, uint16_t group)
{
    struct buffer_registration registration = {
        .address = (uint64_t)(uintptr_t)buffers, .entries = count, .group = group};
    return syscall(REGISTER, map->fd, REGISTER_PBUF_RING, &registration, 1) < 0 ? -errno : 0;
}

int pr_uring_map_register_eventfd(struct pr_uring_map *map, int fd)
{
    return syscall(REGISTER, map->fd, REGISTER_EVENTFD, &fd, 1) < 0 ? -errno : 0;
}

int pr_uring_map_unregister_eventfd(struct pr_uring_map *map)
{
    return syscall(REGISTER, map->fd, UNREGISTER_EVENTFD, NULL, 0) < 0 ? -errno : 0;
}

struct pr_uring_sqe *pr_uring_map_next_sqe(struct pr_uring_map *map)
{
    /* Pairs with the kernel's release of what it has read. */
    uint32_t head = atomic_load_explicit(map->sq_head, memory_order_acquire);
    if (map->sq_next - head > map->sq_mask)
        return NULL;
    struct pr_uring_sqe *sqe = &map->sqes[map->sq_next++ & map->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

int pr_uring_map_submit(struct pr_uring_map *map)
{
    /* Pairs with the kernel's acquire: publishes the submissions. */
    atomic_store_explicit(map->sq_tail, map->sq_next, memory_order_release);
    for (;;) {
        uint32_t left = map->sq_next - atomic_load_explicit(map->sq_head, memory_order_acquire);
        if (left == 0)
            return 0;
        if (syscall(ENTER, map->fd, left, 0, 0, NULL, (size_t)0) < 0 && errno != EINTR)
            return -errno;
    }
}

/* Enters the kernel with `submissions` to take and waits. */
static int enter(struct pr_uring_map *map, uint32_t submissions, int64_t timeout_ns)
{
    struct timeout timeout = {.seconds = timeout_ns / PR_NS_PER_SECOND,
                              .nanoseconds = timeout_ns % PR_NS_PER_SECOND};
    struct wait_argument argument = {.timeout = timeout_ns < 0 ? 0 : (uint64_t)(uintptr_t)&timeout};
    /* Without it a loop that sleeps shows as a processor that waits for a disk all the time. */
    unsigned no_iowait = map->features & PR_URING_FEATURE_NO_IOWAIT ? ENTER_NO_IOWAIT : 0;
    long done = syscall(ENTER, map->fd, submissions, timeout_ns == 0 ? 0 : 1,
                        ENTER_GETEVENTS | ENTER_EXT_ARG | no_iowait, &argument, sizeof argument);
    return done < 0 && errno != ETIME ? -errno : 0;
}

int pr_uring_map_wait(struct pr_uring_map *map, int64_t timeout_ns)
{
    return enter(map, 0, timeout_ns);
}

int pr_uring_map_enter(struct pr_uring_map *map, int64_t timeout_ns)
{
    /* Pairs with the kernel's acquire: publishes the submissions. */
    atomic_store_explicit(map->sq_tail, map->sq_next, memory_order_release);
    return enter(map, pr_uring_map_prepared(map), timeout_ns);
}

bool pr_uring_map_has_work(const struct pr_uring_map *map)
{
    return atomic_load_explicit(map->sq_flags, memory_order_relaxed) &
           (SQ_CQ_OVERFLOW | SQ_TASKRUN);
}

bool pr_uring_map_has_overflow(const struct pr_uring_map *map)
{
    return atomic_load_explicit(map->sq_flags, memory_order_relaxed) & SQ_CQ_OVERFLOW;
}

bool pr_uring_map_pop(struct pr_uring_map *map, struct pr_uring_cqe *cqe)
{
    const struct pr_uring_cqe *oldest = pr_uring_map_peek(map);
    if (!oldest)
        return false;
    *cqe = *oldest;
    pr_uring_map_advance(map);
    return true;
}
