/*
 * The shared queue while its processes are killed, again and again, at random and at each of their
 * steps.  Writers put numbered items, readers get them and mark each in a table of their own; a
 * parent kills, and starts others in the place of the dead.
 *
 *     shared_crash POLICY KILLS SEED [POINT]
 *
 * POLICY is at-most-once or at-least-once.  Half of the kills are SIGKILL after a random time, and
 * half are deaths at a step: the process kills itself at the N-th crash point it comes to, or the
 * N-th of those named POINT.  All points that were died at are listed at the end.
 *
 * It fails where the queue wedges (nothing moves for PATIENCE seconds), an item arrives damaged,
 * and where more items are missing or come twice than the policy allows: one for each kill of a
 * reader.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/queue/parker.c"
#include "../../csrc/shm/blocks.c"
#include "../../csrc/shm/clearing.c"
#include "../../csrc/shm/participants.c"
#include "../../csrc/shm/segment.c"
#include "../../csrc/shm/shared_queue.c"

#define WRITERS 8
#define READERS 8
#define PROCESSES (WRITERS + READERS)
#define ITEMS_MAX 4000000 /* of one writer */
#define POINTS_MAX 64
#define PATIENCE_S 30
#define STEPS_BEFORE_DEATH_MAX 400
#define PAYLOAD_MAX 700

/* What the processes tell the parent; everything in it survives them. */
struct point {
    char name[32];
    _Atomic(uint64_t) passed;
    _Atomic(uint64_t) deaths;
};

struct record {
    _Atomic(uint32_t) begun[WRITERS]; /* the number of the item being put */
    _Atomic(uint32_t) done[WRITERS];  /* ... of the last one that was */
    _Atomic(uint32_t) point_count;
    struct point points[POINTS_MAX];
    _Atomic(uint64_t) got;
    _Atomic(uint64_t) damaged;
    _Atomic(int) stop;      /* writers put no more */
    _Atomic(int) no_deaths; /* nobody kills itself any more */
    _Atomic(uint8_t) seen[WRITERS][ITEMS_MAX];
};

struct item {
    uint32_t writer;
    uint32_t number;
    uint32_t checksum;
    uint32_t size;
    unsigned char payload[PAYLOAD_MAX];
};

static struct record *record;
static struct pr_shared_queue queue;
static enum pr_shared_policy policy;
static const char *only_point;
static uint64_t random_state;
static long steps_left = -1; /* until this process dies by itself */

static uint32_t random_number(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static struct point *find_point(const char *name)
{
    for (;;) {
        uint32_t count = atomic_load(&record->point_count);
        for (uint32_t i = 0; i < count && i < POINTS_MAX; i++)
            if (strcmp(record->points[i].name, name) == 0)
                return &record->points[i];
        /* Two may write the same name at once, and then there are two of it: no harm. */
        uint32_t index = atomic_fetch_add(&record->point_count, 1);
        if (index >= POINTS_MAX)
            abort();
        snprintf(record->points[index].name, sizeof record->points[index].name, "%s", name);
    }
}

void pr_crash_point(const char *name)
{
    struct point *point = find_point(name);
    atomic_fetch_add_explicit(&point->passed, 1, memory_order_relaxed);
    if (steps_left < 0 || atomic_load(&record->no_deaths) ||
        (only_point && strcmp(only_point, name) != 0))
        return;
    if (steps_left-- == 0) {
        atomic_fetch_add(&point->deaths, 1);
        kill(getpid(), SIGKILL);
        pause();
    }
}

static uint32_t checksum_of(const struct item *item)
{
    uint32_t sum = item->writer * 31 + item->number * 17 + item->size;
    for (uint32_t i = 0; i < item->size; i++)
        sum = sum * 33 + item->payload[i];
    return sum;
}

static void write_items(uint32_t writer)
{
    uint32_t number = atomic_load(&record->begun[writer]);
    while (!atomic_load(&record->stop) && ++number < ITEMS_MAX) {
        struct item item = {.writer = writer, .number = number};
        /* Some fit into a slot, some take one block, some several. */
        item.size = number % 3 == 0 ? random_number() % PAYLOAD_MAX : random_number() % 24;
        for (uint32_t i = 0; i < item.size; i++)
            item.payload[i] = (unsigned char)(number + i);
        item.checksum = checksum_of(&item);
        struct pr_shared_part parts[2] = {{&item, offsetof(struct item, payload)},
                                          {item.payload, item.size}};
        atomic_store(&record->begun[writer], number);
        int result = pr_shared_queue_put(&queue, parts, 2, 0, INT64_MAX);
        if (result == -ESHUTDOWN)
            return;
        if (result < 0)
            exit(3);
        atomic_store(&record->done[writer], number);
    }
}

static void read_items(void)
{
    for (;;) {
        struct pr_shared_item got;
        struct item item;
        int result = pr_shared_queue_get(&queue, &got, INT64_MAX);
        if (result == -ESHUTDOWN)
            return;
        if (result < 0)
            exit(3);
        memset(&item, 0, sizeof item);
        if (got.size <= sizeof item)
            memcpy(&item, got.data, got.size);
        if (got.size > sizeof item || item.size != got.size - offsetof(struct item, payload) ||
            item.checksum != checksum_of(&item) || item.writer >= WRITERS ||
            item.number >= ITEMS_MAX) {
            atomic_fetch_add(&record->damaged, 1);
            exit(4);
        }
        if (policy == PR_AT_MOST_ONCE)
            pr_shared_queue_settle(&queue, &got);
        PR_CRASH_POINT("reader: between");
        atomic_fetch_add(&record->seen[item.writer][item.number], 1);
        atomic_fetch_add(&record->got, 1);
        PR_CRASH_POINT("reader: marked");
        if (policy == PR_AT_LEAST_ONCE)
            pr_shared_queue_settle(&queue, &got);
    }
}

static pid_t start(uint32_t process, bool dies)
{
    uint64_t seed = random_number();
    long steps = (long)(random_number() % STEPS_BEFORE_DEATH_MAX);
    if (only_point)
        steps %= 3;
    pid_t child = fork();
    if (child != 0)
        return child;
    random_state = seed;
    steps_left = dies ? steps : -1;
    if (pr_shared_queue_rejoin_after_fork(&queue) < 0)
        exit(5);
    if (process < WRITERS)
        write_items(process);
    else
        read_items();
    pr_shared_queue_detach(&queue);
    exit(0);
}

static void sleep_us(long microseconds)
{
    struct timespec duration = {0, microseconds * 1000};
    nanosleep(&duration, NULL);
}

static bool fail(const char *what)
{
    fprintf(stderr, "FAILED: %s\n", what);
    return false;
}

/* Waits for a child to end; where it does not in time, the queue is wedged. */
static bool reap(pid_t child, int *status)
{
    for (int64_t end_ns = pr_now_ns() + PATIENCE_S * PR_NS_PER_SECOND; pr_now_ns() < end_ns;) {
        if (waitpid(child, status, WNOHANG) == child)
            return true;
        sleep_us(200);
    }
    return false;
}

struct tally {
    uint64_t kills;
    uint64_t reader_kills;
    uint64_t unsure; /* items that a writer was putting when it died, and that nobody has got */
};

/* Which those are; only the parent looks at it. */
static uint32_t unsure[WRITERS][ITEMS_MAX / 32 + 1];

static void note_death(uint32_t process, struct tally *tally)
{
    tally->kills++;
    if (process >= WRITERS) {
        tally->reader_kills++;
        return;
    }
    uint32_t begun = atomic_load(&record->begun[process]);
    if (begun != atomic_load(&record->done[process]))
        unsure[process][begun / 32] |= 1u << begun % 32;
}

/* Kills one child, or lets it die at its step, and starts another in its place. */
static bool kill_one(pid_t *children, bool *dies, struct tally *tally)
{
    int status;
    pid_t dead = 0;
    uint32_t process = random_number() % PROCESSES;
    /* One that was to die by itself goes first; others are killed. */
    for (uint32_t i = 0; i < PROCESSES && dead == 0; i++) {
        if (dies[i] && waitpid(children[i], &status, WNOHANG) == children[i]) {
            dead = children[i];
            process = i;
        }
    }
    if (dead == 0) {
        sleep_us(random_number() % 300);
        kill(children[process], SIGKILL);
        if (!reap(children[process], &status))
            return fail("a killed process does not end");
    }
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
        fprintf(stderr, "process %u ended with status %x\n", process, (unsigned)status);
        return fail("a process ended by itself");
    }
    note_death(process, tally);
    /* Every other time nobody says that it died: those who sleep have to find out. */
    if (random_number() % 2)
        pr_shared_queue_clear(&queue);
    dies[process] = random_number() % 2 || only_point;
    children[process] = start(process, dies[process]);
    return children[process] > 0;
}

static bool still_moves(uint64_t *got, int64_t *since_ns)
{
    uint64_t now = atomic_load(&record->got);
    if (now != *got) {
        *got = now;
        *since_ns = pr_now_ns();
    }
    return pr_now_ns() - *since_ns < PATIENCE_S * PR_NS_PER_SECOND;
}

/* Lets the processes come to their ends: no more deaths, writers stop, readers drain. */
static bool finish(pid_t *children, struct tally *tally)
{
    int status;
    atomic_store(&record->no_deaths, 1);
    atomic_store(&record->stop, 1);
    for (uint32_t i = 0; i < PROCESSES; i++) {
        if (i == WRITERS)
            pr_shared_queue_close(&queue);
        /* In the place of those who died before we said no, so that somebody drains. */
        while (reap(children[i], &status) && WIFSIGNALED(status)) {
            note_death(i, tally);
            children[i] = start(i, false);
        }
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            return fail(i < WRITERS ? "a writer is stuck" : "a reader is stuck");
    }
    pr_shared_queue_clear(&queue);
    return true;
}

static bool check_items(struct tally *tally)
{
    uint64_t missing = 0, twice = 0, total = 0, invented = 0;
    for (uint32_t writer = 0; writer < WRITERS; writer++) {
        uint32_t last = atomic_load(&record->begun[writer]);
        total += last;
        for (uint32_t number = 1; number <= last; number++) {
            uint32_t seen = record->seen[writer][number];
            bool is_unsure = unsure[writer][number / 32] >> number % 32 & 1;
            twice += seen > 1 ? seen - 1 : 0;
            missing += seen == 0 && !is_unsure;
            tally->unsure += seen == 0 && is_unsure;
        }
        for (uint32_t number = last + 1; number < last + 100 && number < ITEMS_MAX; number++)
            invented += record->seen[writer][number];
    }
    uint32_t used = 0;
    for (uint32_t i = 0; i < queue.block_count; i++)
        used += queue.block_words[i] != 0;
    printf("%llu items: %llu of writers that died never came, %llu others are missing, "
           "%llu came twice\n",
           (unsigned long long)total, (unsigned long long)tally->unsure,
           (unsigned long long)missing, (unsigned long long)twice);
    if (record->damaged || invented)
        return fail("an item arrived damaged");
    if (used)
        return fail("blocks are left that nobody has");
    if (pr_shared_queue_depth(&queue) != 0)
        return fail("items are left in the queue");
    if (missing > (policy == PR_AT_MOST_ONCE ? tally->reader_kills : 0))
        return fail("more items are missing than readers were killed");
    if (twice > (policy == PR_AT_LEAST_ONCE ? tally->reader_kills : 0))
        return fail("more items came twice than readers were killed");
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s at-most-once|at-least-once KILLS SEED [POINT]\n", argv[0]);
        return 2;
    }
    policy = strcmp(argv[1], "at-least-once") == 0 ? PR_AT_LEAST_ONCE : PR_AT_MOST_ONCE;
    uint64_t kills = strtoull(argv[2], NULL, 10);
    random_state = strtoull(argv[3], NULL, 10);
    only_point = argc > 4 ? argv[4] : NULL;
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (record == MAP_FAILED)
        return 2;
    struct pr_shared_options options = {
        .capacity = 16,
        .item_bytes = 64,
        .block_bytes = 128,
        .blocks = 24,
        .participants = PROCESSES + 8,
        .policy = policy,
        .recheck_ns = 2 * PR_NS_PER_MS,
    };
    if (pr_shared_queue_create(&queue, &options) < 0)
        return 2;

    pid_t children[PROCESSES];
    bool dies[PROCESSES];
    struct tally tally = {0, 0, 0};
    for (uint32_t i = 0; i < PROCESSES; i++) {
        dies[i] = random_number() % 2;
        children[i] = start(i, dies[i]);
    }
    uint64_t got = 0;
    int64_t since_ns = pr_now_ns();
    bool good = true;
    while (good && tally.kills < kills) {
        good = kill_one(children, dies, &tally);
        if (good && !still_moves(&got, &since_ns))
            good = fail("nothing moves: the queue is wedged");
    }
    good = good && finish(children, &tally) && check_items(&tally);
    for (uint32_t i = 0; i < PROCESSES && !good; i++)
        kill(children[i], SIGKILL);
    printf("%llu kills (%llu of readers), %llu items got\n", (unsigned long long)tally.kills,
           (unsigned long long)tally.reader_kills, (unsigned long long)atomic_load(&record->got));
    for (uint32_t i = 0; i < atomic_load(&record->point_count); i++)
        printf("  %-28s passed %10llu, died %6llu\n", record->points[i].name,
               (unsigned long long)record->points[i].passed,
               (unsigned long long)record->points[i].deaths);
    return good ? 0 : 1;
}
