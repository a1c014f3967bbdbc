/*
 * The explorer's machine: memory, threads, decisions.  This file is compiled without the sanitizer.
 */
#include "explorer.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

#define LOCATIONS_MAX 16
#define STORES_MAX 48
#define REGIONS_MAX 8
#define WORDS_MAX 64
#define STEPS_MAX 2000 /* of one execution; more is a loop without end */
#define STACK_BYTES 65536
#define STACK_BYTES_USED                                                                           \
    4096 /* by the code under test; cleared, so that equal states look equal                       \
          */
#define NOBODY 255

enum { RELAXED, CONSUME, ACQUIRE, RELEASE, ACQ_REL, SEQ_CST }; /* as the compiler numbers them */

/* What a thread knows: the oldest value of each location it may read, and what happened before. */
struct knowledge {
    uint8_t oldest[LOCATIONS_MAX];
    uint8_t clock[EXPLORER_THREADS_MAX];
};

struct store {
    uint64_t value;
    struct knowledge released; /* what who acquires the value learns */
};

struct location {
    uintptr_t address;
    const char *name;
    int count;
    struct store stores[STORES_MAX];
};

/* Eight bytes of plain memory: when it was last written and read. */
struct word {
    uint8_t writer;
    uint8_t written;
    uint8_t read[EXPLORER_THREADS_MAX];
};

enum status { READY, YIELDS, SLEEPS, FINISHED };

struct thread {
    enum status status;
    bool may_time_out;
    int sleeps_on;   /* a location */
    int wake_reason; /* 0 or an errno */
    int stores_seen; /* in all, when it began to yield */
    struct knowledge knows;
    jmp_buf where;
    ucontext_t start;
    bool started;
    char *stack;
    char *top; /* of the stack, where it stands now: what is above is in use */
};

static struct {
    struct location locations[LOCATIONS_MAX];
    int location_count;
    struct {
        char *start;
        size_t size;
        struct word words[WORDS_MAX];
    } regions[REGIONS_MAX];
    int region_count;
    uint8_t last_seq_cst[LOCATIONS_MAX];
    int stores;
    struct thread threads[EXPLORER_THREADS_MAX];
    int thread_count;
    int timeouts, interrupts, stale_loads; /* left */
} machine;

static const struct scenario *running;
static struct thread *current; /* NULL: the explorer itself, or setup and check */
static jmp_buf scheduler;
static jmp_buf execution_end;

/* The decisions of this execution; those before `replayed` are given. */
static struct {
    uint8_t chosen, options;
} decisions[STEPS_MAX];
static int decision_count, decided;

static uint64_t executions;

/* What happened, to be printed where it went wrong. */
static struct {
    int thread;
    const char *operation, *location;
    uint64_t value;
} steps[STEPS_MAX];
static int step_count;

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash ^= value + UINT64_C(0x9e3779b97f4a7c15) + (hash << 6) + (hash >> 2);
    hash *= UINT64_C(0xbf58476d1ce4e5b9);
    return hash ^ (hash >> 31);
}

static void note(const char *operation, const char *location, uint64_t value)
{
    if (step_count == STEPS_MAX)
        explorer_fail("a loop without end");
    steps[step_count].thread = (int)(current - machine.threads);
    steps[step_count].operation = operation;
    steps[step_count].location = location;
    steps[step_count++].value = value;
}

void explorer_fail(const char *what)
{
    printf("FAILED: %s: %s, in execution %llu:\n", running->name, what,
           (unsigned long long)executions + 1);
    for (int i = 0; i < step_count; i++)
        printf("  thread %d  %-14s %-20s %llu\n", steps[i].thread, steps[i].operation,
               steps[i].location, (unsigned long long)steps[i].value);
    exit(1);
}

/* Decisions. */

static int decide(int options)
{
    if (options == 1)
        return 0;
    if (decided == STEPS_MAX)
        explorer_fail("a loop without end");
    if (decided == decision_count) {
        decisions[decision_count].chosen = 0;
        decisions[decision_count++].options = (uint8_t)options;
    }
    if (decisions[decided].options != options)
        explorer_fail("the code under test does not do the same when it sees the same");
    return decisions[decided++].chosen;
}

/* Goes on to the next execution; false where all have been. */
static bool next_decisions(void)
{
    while (decision_count > 0) {
        if (++decisions[decision_count - 1].chosen < decisions[decision_count - 1].options)
            return true;
        decision_count--;
    }
    return false;
}

/* States. */

static uint64_t mix_bytes(uint64_t hash, const void *bytes, size_t size)
{
    const char *at = bytes;
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t value;
        memcpy(&value, at, 8);
        hash = mix(hash, value);
    }
    for (; size > 0; size--, at++)
        hash = mix(hash, (uint8_t)*at);
    return hash;
}

/*
 * What all threads know already makes no difference any more: older values cannot be read, older
 * accesses cannot race.  Only what is beyond it counts, wherever in the history it stands.
 */
static struct knowledge known_to_all(void)
{
    struct knowledge known;
    memset(&known, UINT8_MAX, sizeof known);
    for (int i = 0; i < machine.thread_count; i++) {
        struct thread *thread = &machine.threads[i];
        if (thread->status == FINISHED)
            continue;
        for (int j = 0; j < LOCATIONS_MAX; j++)
            if (thread->knows.oldest[j] < known.oldest[j])
                known.oldest[j] = thread->knows.oldest[j];
        for (int j = 0; j < EXPLORER_THREADS_MAX; j++)
            if (thread->knows.clock[j] < known.clock[j])
                known.clock[j] = thread->knows.clock[j];
    }
    for (int i = 0; i < machine.location_count && machine.stale_loads == 0; i++)
        known.oldest[i] = (uint8_t)(machine.locations[i].count - 1);
    return known;
}

/* Of a thread's times, those at which it touched plain memory and that are not known to all. */
static uint64_t touched[EXPLORER_THREADS_MAX][(UINT8_MAX + 1) / 64];

static void note_touch(int thread, uint8_t clock, const struct knowledge *base)
{
    if (clock > base->clock[thread])
        touched[thread][clock / 64] |= UINT64_C(1) << (clock % 64);
}

static void find_touches(const struct knowledge *base)
{
    memset(touched, 0, sizeof touched);
    for (int i = 0; i < machine.region_count; i++)
        for (size_t j = 0; j < (machine.regions[i].size + 7) / 8; j++) {
            struct word *word = &machine.regions[i].words[j];
            if (word->writer != NOBODY)
                note_touch(word->writer, word->written, base);
            for (int k = 0; k < machine.thread_count; k++)
                note_touch(k, word->read[k], base);
        }
}

/* How many of these times a clock has passed: that is all that clocks are compared for. */
static uint8_t rank(int thread, uint8_t clock)
{
    int count = 0;
    for (int i = 0; i < clock / 64; i++)
        count += __builtin_popcountll(touched[thread][i]);
    uint64_t rest = clock % 64 == 63 ? ~UINT64_C(0) : (UINT64_C(2) << (clock % 64)) - 1;
    return (uint8_t)(count + __builtin_popcountll(touched[thread][clock / 64] & rest));
}

static uint8_t beyond(uint8_t value, uint8_t base)
{
    return value > base ? (uint8_t)(value - base) : 0;
}

static uint64_t mix_knowledge(uint64_t hash, const struct knowledge *knows,
                              const struct knowledge *base)
{
    struct knowledge more = {{0}, {0}};
    for (int i = 0; i < machine.location_count; i++)
        more.oldest[i] = beyond(knows->oldest[i], base->oldest[i]);
    for (int i = 0; i < machine.thread_count; i++)
        more.clock[i] = rank(i, knows->clock[i]);
    return mix_bytes(hash, &more, sizeof more);
}

static uint64_t mix_memory(uint64_t hash, const struct knowledge *base)
{
    for (int i = 0; i < machine.location_count; i++) {
        struct location *location = &machine.locations[i];
        hash = mix(hash, beyond(machine.last_seq_cst[i], base->oldest[i]));
        for (int j = base->oldest[i]; j < location->count; j++) {
            hash = mix(hash, location->stores[j].value);
            hash = mix_knowledge(hash, &location->stores[j].released, base);
        }
        hash = mix(hash, 0);
    }
    for (int i = 0; i < machine.region_count; i++) {
        hash = mix_bytes(hash, machine.regions[i].start, machine.regions[i].size);
        for (size_t j = 0; j < (machine.regions[i].size + 7) / 8; j++) {
            struct word *word = &machine.regions[i].words[j];
            struct word more = {.writer = NOBODY};
            if (word->writer != NOBODY && rank(word->writer, word->written) > 0) {
                more.writer = word->writer;
                more.written = rank(word->writer, word->written);
            }
            for (int k = 0; k < machine.thread_count; k++)
                more.read[k] = rank(k, word->read[k]);
            hash = mix_bytes(hash, &more, sizeof more);
        }
    }
    return hash;
}

/* A thread stands where its stack and its registers say. */
static uint64_t mix_thread(uint64_t hash, const struct thread *thread, const struct knowledge *base)
{
    hash = mix(hash, (uint64_t)thread->status * 2 + thread->started);
    if (thread->status == FINISHED)
        return hash;
    hash = mix_knowledge(hash, &thread->knows, base);
    hash = mix(hash, thread->status == SLEEPS ? (uint64_t)thread->sleeps_on + 1 : 0);
    hash = mix(hash, thread->status == YIELDS && thread->stores_seen == machine.stores);
    hash = mix(hash, (uint64_t)thread->wake_reason);
    if (!thread->started)
        return hash;
    hash = mix_bytes(hash, thread->where[0].__jmpbuf, sizeof thread->where[0].__jmpbuf);
    return mix_bytes(hash, thread->top, (size_t)(thread->stack + STACK_BYTES - thread->top));
}

static uint64_t state_hash(void)
{
    struct knowledge base = known_to_all();
    find_touches(&base);
    uint64_t hash = mix_memory(1, &base);
    for (int i = 0; i < machine.thread_count; i++)
        hash = mix_thread(hash, &machine.threads[i], &base);
    hash = mix(hash, (uint64_t)(machine.timeouts * 16 + machine.interrupts));
    return mix(hash, (uint64_t)machine.stale_loads);
}

static uint64_t *seen; /* a hash table; 0 is free */
static uint64_t seen_size, seen_count;

static bool insert(uint64_t hash)
{
    uint64_t at = hash & (seen_size - 1);
    for (; seen[at]; at = (at + 1) & (seen_size - 1))
        if (seen[at] == hash)
            return false;
    seen[at] = hash;
    seen_count++;
    return true;
}

static bool is_new(uint64_t hash)
{
    if (2 * seen_count >= seen_size) {
        uint64_t *old = seen, old_size = seen_size;
        seen_size = old_size ? 2 * old_size : 1 << 16;
        seen = calloc(seen_size, sizeof *seen);
        if (!seen)
            explorer_fail("out of memory");
        seen_count = 0;
        for (uint64_t i = 0; i < old_size; i++)
            if (old[i])
                insert(old[i]);
        free(old);
    }
    return insert(hash ? hash : 1);
}

/* Threads. */

/* Clears what earlier calls have left below, so that equal states look equal. */
__attribute__((noinline)) static void wipe_stack(void)
{
    char below[1024];
    memset(below, 0, sizeof below);
    __asm__ __volatile__("" ::"r"(below) : "memory");
}

__attribute__((noinline)) static void switch_to_scheduler(void)
{
    current->top = __builtin_frame_address(0);
    if (_setjmp(current->where) == 0)
        _longjmp(scheduler, 1);
}

static void run_thread(void)
{
    running->threads[current - machine.threads]();
    current->status = FINISHED;
    _longjmp(scheduler, 1);
}

static void resume(struct thread *thread)
{
    current = thread;
    if (_setjmp(scheduler) == 0) {
        if (thread->started)
            _longjmp(thread->where, 1);
        thread->started = true;
        setcontext(&thread->start);
    }
    current = NULL;
}

static bool can_go_on(const struct thread *thread)
{
    return thread->status == READY ||
           (thread->status == YIELDS && machine.stores > thread->stores_seen);
}

/* Lets the threads run until all have finished. */
static void schedule(void)
{
    for (;;) {
        /* A thread, and why it wakes. */
        uint8_t options[3 * EXPLORER_THREADS_MAX][2];
        int count = 0, unfinished = 0;
        for (int i = 0; i < machine.thread_count; i++) {
            struct thread *thread = &machine.threads[i];
            unfinished += thread->status != FINISHED;
            if (can_go_on(thread)) {
                options[count][0] = (uint8_t)i;
                options[count++][1] = 0;
            } else if (thread->status == SLEEPS) {
                if (thread->may_time_out && machine.timeouts > 0) {
                    options[count][0] = (uint8_t)i;
                    options[count++][1] = ETIMEDOUT;
                }
                if (machine.interrupts > 0) {
                    options[count][0] = (uint8_t)i;
                    options[count++][1] = EINTR;
                }
            }
        }
        if (!unfinished)
            return;
        bool moving = false;
        for (int i = 0; i < machine.thread_count; i++)
            moving |= can_go_on(&machine.threads[i]);
        if (!moving && count == 0)
            explorer_fail("nobody can go on");
        if (decided == decision_count && !is_new(state_hash()))
            _longjmp(execution_end, 1);
        int chosen = decide(count);
        struct thread *thread = &machine.threads[options[chosen][0]];
        if (thread->status == SLEEPS) {
            thread->wake_reason = options[chosen][1];
            machine.timeouts -= thread->wake_reason == ETIMEDOUT;
            machine.interrupts -= thread->wake_reason == EINTR;
        }
        thread->status = READY;
        resume(thread);
    }
}

/* Memory. */

static struct location *find(const volatile void *address)
{
    if (current)
        wipe_stack();
    for (int i = 0; current && i < machine.location_count; i++)
        if (machine.locations[i].address == (uintptr_t)address)
            return &machine.locations[i];
    return NULL;
}

static int index_of(const struct location *location)
{
    return (int)(location - machine.locations);
}

static void learn(struct knowledge *knows, const struct knowledge *more)
{
    for (int i = 0; i < LOCATIONS_MAX; i++)
        if (more->oldest[i] > knows->oldest[i])
            knows->oldest[i] = more->oldest[i];
    for (int i = 0; i < EXPLORER_THREADS_MAX; i++)
        if (more->clock[i] > knows->clock[i])
            knows->clock[i] = more->clock[i];
}

static bool acquires(int order)
{
    return order == ACQUIRE || order == ACQ_REL || order == SEQ_CST || order == CONSUME;
}

static bool releases(int order)
{
    return order == RELEASE || order == ACQ_REL || order == SEQ_CST;
}

static uint64_t read_store(struct location *location, int which, int order)
{
    struct store *store = &location->stores[which];
    machine.stale_loads -= which < location->count - 1;
    current->knows.oldest[index_of(location)] = (uint8_t)which;
    if (acquires(order))
        learn(&current->knows, &store->released);
    return store->value;
}

/* Appends a value; `previous` is what a read-modify-write has read, whose release goes on in it. */
static void append(struct location *location, uint64_t value, int order,
                   const struct store *previous)
{
    int index = index_of(location);
    if (location->count == STORES_MAX)
        explorer_fail("too many stores for the explorer");
    struct store *store = &location->stores[location->count];
    *store = (struct store){.value = value};
    current->knows.oldest[index] = (uint8_t)location->count;
    if (releases(order)) {
        store->released = current->knows;
        current->knows.clock[current - machine.threads]++;
    }
    if (previous)
        learn(&store->released, &previous->released);
    if (order == SEQ_CST)
        machine.last_seq_cst[index] = (uint8_t)location->count;
    location->count++;
    machine.stores++;
}

static int oldest_readable(const struct location *location, int order)
{
    int index = index_of(location);
    int oldest = current->knows.oldest[index];
    if (order == SEQ_CST && machine.last_seq_cst[index] > oldest)
        oldest = machine.last_seq_cst[index];
    return machine.stale_loads > 0 ? oldest : location->count - 1;
}

static uint64_t load(struct location *location, int order)
{
    switch_to_scheduler();
    int newest = location->count - 1;
    int which = newest - decide(location->count - oldest_readable(location, order));
    uint64_t value = read_store(location, which, order);
    note(which == newest ? "load" : "load (stale)", location->name, value);
    return value;
}

static void store(struct location *location, uint64_t value, int order)
{
    switch_to_scheduler();
    append(location, value, order, NULL);
    note("store", location->name, value);
}

static uint64_t change(struct location *location, char operation, uint64_t operand, uint64_t mask,
                       int order)
{
    switch_to_scheduler();
    struct store *last = &location->stores[location->count - 1];
    uint64_t old = read_store(location, location->count - 1, order);
    uint64_t value = operation == '+'   ? old + operand
                     : operation == '-' ? old - operand
                     : operation == '|' ? (old | operand)
                     : operation == '&' ? (old & operand)
                                        : operand;
    append(location, value & mask, order, last);
    note("change", location->name, value & mask);
    return old;
}

static bool compare_exchange(struct location *location, uint64_t *expected, uint64_t desired,
                             int order, int failure_order)
{
    switch_to_scheduler();
    int options[STORES_MAX], count = 0;
    int newest = location->count - 1;
    for (int i = newest; i >= oldest_readable(location, failure_order); i--)
        if (i == newest || location->stores[i].value != *expected)
            options[count++] = i;
    int which = options[decide(count)];
    if (location->stores[which].value == *expected) {
        read_store(location, which, order);
        append(location, desired, order, &location->stores[which]);
        note("exchange", location->name, desired);
        return true;
    }
    *expected = read_store(location, which, failure_order);
    note("exchange fails", location->name, *expected);
    return false;
}

static void touch_word(struct word *word, bool writes)
{
    int self = (int)(current - machine.threads);
    struct knowledge *knows = &current->knows;
    if (word->writer != NOBODY && word->written > knows->clock[word->writer])
        explorer_fail("a data race with a write");
    if (!writes) {
        word->read[self] = knows->clock[self];
        return;
    }
    for (int i = 0; i < machine.thread_count; i++)
        if (word->read[i] > knows->clock[i])
            explorer_fail("a data race with a read");
    word->writer = (uint8_t)self;
    word->written = knows->clock[self];
    memset(word->read, 0, sizeof word->read);
}

static void touch(const void *address, size_t size, bool writes)
{
    const char *at = address;
    for (int i = 0; current && i < machine.region_count; i++) {
        const char *start = machine.regions[i].start;
        if (at < start || at >= start + machine.regions[i].size)
            continue;
        size_t first = (size_t)(at - start) / 8, last = (size_t)(at - start + size - 1) / 8;
        for (size_t word = first; word <= last; word++)
            touch_word(&machine.regions[i].words[word], writes);
    }
}

/* What the compiled code calls. */

#define ATOMICS(bits)                                                                              \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *at, int order);       \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *at, int order)        \
    {                                                                                              \
        struct location *location = find(at);                                                      \
        return location ? (uint##bits##_t)load(location, order) : *at;                             \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *at, uint##bits##_t value,            \
                                     int order);                                                   \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *at, uint##bits##_t value, int order) \
    {                                                                                              \
        struct location *location = find(at);                                                      \
        if (location)                                                                              \
            store(location, value, order);                                                         \
        else                                                                                       \
            *at = value;                                                                           \
    }                                                                                              \
    static bool compare_exchange##bits(volatile uint##bits##_t *at, uint##bits##_t *expected,      \
                                       uint##bits##_t desired, int order, int failure_order)       \
    {                                                                                              \
        struct location *location = find(at);                                                      \
        if (location) {                                                                            \
            uint64_t wide = *expected;                                                             \
            bool done = compare_exchange(location, &wide, desired, order, failure_order);          \
            *expected = (uint##bits##_t)wide;                                                      \
            return done;                                                                           \
        }                                                                                          \
        bool same = *at == *expected;                                                              \
        if (same)                                                                                  \
            *at = desired;                                                                         \
        else                                                                                       \
            *expected = *at;                                                                       \
        return same;                                                                               \
    }                                                                                              \
    bool __tsan_atomic##bits##_compare_exchange_strong(                                            \
        volatile uint##bits##_t *at, uint##bits##_t *expected, uint##bits##_t desired, int order,  \
        int failure_order);                                                                        \
    bool __tsan_atomic##bits##_compare_exchange_strong(                                            \
        volatile uint##bits##_t *at, uint##bits##_t *expected, uint##bits##_t desired, int order,  \
        int failure_order)                                                                         \
    {                                                                                              \
        return compare_exchange##bits(at, expected, desired, order, failure_order);                \
    }                                                                                              \
    bool __tsan_atomic##bits##_compare_exchange_weak(                                              \
        volatile uint##bits##_t *at, uint##bits##_t *expected, uint##bits##_t desired, int order,  \
        int failure_order);                                                                        \
    bool __tsan_atomic##bits##_compare_exchange_weak(                                              \
        volatile uint##bits##_t *at, uint##bits##_t *expected, uint##bits##_t desired, int order,  \
        int failure_order)                                                                         \
    {                                                                                              \
        return compare_exchange##bits(at, expected, desired, order, failure_order);                \
    }                                                                                              \
    CHANGE(bits, exchange, '=', (void)old)                                                         \
    CHANGE(bits, fetch_add, '+', value = (uint##bits##_t)(old + value))                            \
    CHANGE(bits, fetch_sub, '-', value = (uint##bits##_t)(old - value))                            \
    CHANGE(bits, fetch_or, '|', value = (uint##bits##_t)(old | value))                             \
    CHANGE(bits, fetch_and, '&', value = (uint##bits##_t)(old & value))

#define CHANGE(bits, name, operation, plainly)                                                     \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t *at, uint##bits##_t value, \
                                                int order);                                        \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile uint##bits##_t *at, uint##bits##_t value, \
                                                int order)                                         \
    {                                                                                              \
        struct location *location = find(at);                                                      \
        if (location)                                                                              \
            return (uint##bits##_t)change(location, operation, value, UINT##bits##_MAX, order);    \
        uint##bits##_t old = *at;                                                                  \
        plainly;                                                                                   \
        *at = value;                                                                               \
        return old;                                                                                \
    }

ATOMICS(32)
ATOMICS(64)

#define ACCESSES(size)                                                                             \
    void __tsan_read##size(void *at);                                                              \
    void __tsan_read##size(void *at)                                                               \
    {                                                                                              \
        touch(at, size, false);                                                                    \
    }                                                                                              \
    void __tsan_write##size(void *at);                                                             \
    void __tsan_write##size(void *at)                                                              \
    {                                                                                              \
        touch(at, size, true);                                                                     \
    }

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *at, unsigned long size);
void __tsan_read_range(void *at, unsigned long size)
{
    touch(at, size, false);
}

void __tsan_write_range(void *at, unsigned long size);
void __tsan_write_range(void *at, unsigned long size)
{
    touch(at, size, true);
}

void __tsan_init(void);
void __tsan_init(void) {}
void __tsan_func_entry(void *caller);
void __tsan_func_entry(void *caller)
{
    (void)caller;
}
void __tsan_func_exit(void);
void __tsan_func_exit(void) {}

/* The system calls of the code under test. */

int sched_yield(void)
{
    wipe_stack();
    switch_to_scheduler();
    bool behind = false;
    for (int i = 0; i < machine.location_count; i++)
        behind |= current->knows.oldest[i] < machine.locations[i].count - 1;
    if (!behind) {
        current->status = YIELDS;
        current->stores_seen = machine.stores;
        switch_to_scheduler();
    }
    /* In finite time every store is seen: from here on nothing older. */
    for (int i = 0; i < machine.location_count; i++)
        current->knows.oldest[i] = (uint8_t)(machine.locations[i].count - 1);
    note("yield", "", 0);
    return 0;
}

/* After the kernel has looked at the word, the thread reads nothing older. */
static void see_newest(struct location *location)
{
    current->knows.oldest[index_of(location)] = (uint8_t)(location->count - 1);
}

static long futex_wait(struct location *location, uint32_t value, bool may_time_out)
{
    see_newest(location);
    if (location->stores[location->count - 1].value != value) {
        note("futex: no wait", location->name, value);
        errno = EAGAIN;
        return -1;
    }
    note("futex: sleep", location->name, value);
    current->status = SLEEPS;
    current->sleeps_on = index_of(location);
    current->may_time_out = may_time_out;
    current->wake_reason = 0;
    switch_to_scheduler();
    see_newest(location);
    note("futex: awake", location->name, (uint64_t)current->wake_reason);
    errno = current->wake_reason;
    current->wake_reason = 0;
    return errno ? -1 : 0;
}

static long futex_wake(struct location *location, uint32_t count)
{
    long woken = 0;
    for (; woken < count; woken++) {
        struct thread *sleepers[EXPLORER_THREADS_MAX];
        int found = 0;
        for (int i = 0; i < machine.thread_count; i++)
            if (machine.threads[i].status == SLEEPS &&
                machine.threads[i].sleeps_on == index_of(location))
                sleepers[found++] = &machine.threads[i];
        if (found == 0)
            break;
        sleepers[decide(found)]->status = READY;
    }
    note("futex: wake", location->name, (uint64_t)woken);
    return woken;
}

long syscall(long number, ...)
{
    va_list arguments;
    va_start(arguments, number);
    void *address = va_arg(arguments, void *);
    int operation = va_arg(arguments, int);
    uint32_t value = va_arg(arguments, uint32_t);
    void *timeout = va_arg(arguments, void *);
    va_end(arguments);
    struct location *location = find(address);
    if (number != SYS_futex || !location)
        explorer_fail("a system call that the explorer does not know");
    switch_to_scheduler();
    operation &= FUTEX_CMD_MASK;
    if (operation == FUTEX_WAKE)
        return futex_wake(location, value);
    return futex_wait(location, value, timeout != NULL);
}

/* Executions. */

void explorer_atomic(const void *address, const char *name)
{
    if (machine.location_count == LOCATIONS_MAX)
        abort();
    machine.locations[machine.location_count].address = (uintptr_t)address;
    machine.locations[machine.location_count++].name = name;
}

void explorer_plain(void *address, size_t size)
{
    if (machine.region_count == REGIONS_MAX || size > WORDS_MAX * 8)
        abort();
    machine.regions[machine.region_count].start = address;
    machine.regions[machine.region_count++].size = size;
}

void explorer_forget(void)
{
    machine.location_count = machine.region_count = 0;
}

/* Atomics are of 32 or 64 bits; the upper half of a 32-bit one may be anything. */
static uint64_t initial_value(const struct location *location)
{
    bool narrow = strncmp(location->name, "32:", 3) == 0;
    return narrow ? *(uint32_t *)location->address : *(uint64_t *)location->address;
}

static void begin_execution(void)
{
    step_count = decided = machine.stores = 0;
    machine.timeouts = running->timeouts;
    machine.interrupts = running->interrupts;
    machine.stale_loads = running->stale_loads;
    memset(machine.last_seq_cst, 0, sizeof machine.last_seq_cst);
    running->setup();
    for (int i = 0; i < machine.location_count; i++) {
        struct location *location = &machine.locations[i];
        location->count = 1;
        location->stores[0] = (struct store){.value = initial_value(location)};
    }
    for (int i = 0; i < machine.region_count; i++) {
        memset(machine.regions[i].words, 0, sizeof machine.regions[i].words);
        for (int j = 0; j < WORDS_MAX; j++)
            machine.regions[i].words[j].writer = NOBODY;
    }
    machine.thread_count = 0;
    for (int i = 0; i < EXPLORER_THREADS_MAX && running->threads[i]; i++) {
        struct thread *thread = &machine.threads[machine.thread_count++];
        char *stack = thread->stack ? thread->stack : malloc(STACK_BYTES);
        *thread = (struct thread){.stack = stack};
        memset(stack + STACK_BYTES - STACK_BYTES_USED, 0, STACK_BYTES_USED);
        thread->knows.clock[i] = 1;
        getcontext(&thread->start);
        thread->start.uc_stack.ss_sp = stack;
        thread->start.uc_stack.ss_size = STACK_BYTES;
        thread->start.uc_link = NULL;
        makecontext(&thread->start, run_thread, 0);
    }
}

/* What the locations hold in the end goes into memory, where check() looks for it. */
static void write_back(void)
{
    for (int i = 0; i < machine.location_count; i++) {
        struct location *location = &machine.locations[i];
        uint64_t value = location->stores[location->count - 1].value;
        if (strncmp(location->name, "32:", 3) == 0)
            *(uint32_t *)location->address = (uint32_t)value;
        else
            *(uint64_t *)location->address = value;
    }
}

static const char *selection; /* borrowed; NULL: all */

void explorer_select(const char *text)
{
    selection = text;
}

void explorer_run(const struct scenario *scenario)
{
    clock_t began = clock();
    if (selection && !strstr(scenario->name, selection))
        return;
    running = scenario;
    executions = seen_count = decision_count = 0;
    if (seen)
        memset(seen, 0, seen_size * sizeof *seen);
    do {
        current = NULL;
        begin_execution();
        if (_setjmp(execution_end) == 0) {
            schedule();
            write_back();
            scenario->check();
        }
        current = NULL;
        executions++;
    } while (next_decisions());
    printf("%-60s %2d stale loads %9llu executions %9llu states %5.1f s\n", scenario->name,
           scenario->stale_loads, (unsigned long long)executions, (unsigned long long)seen_count,
           (double)(clock() - began) / CLOCKS_PER_SEC);
    fflush(stdout);
}
