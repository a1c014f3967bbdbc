/*
 * The history check of the request queue: threads put and get as fast as they can, and what they
 * saw is held against what a queue may do.
 *
 *     queue_history [--kind KIND] [--threads PxC] [--items N] [--capacity N] [--batch N]
 *                   [--log] [--seconds N]
 *
 * Always: every item comes out exactly once (a bit for each), each consumer sees the items of one
 * producer in their order, and after the close nothing is left.
 *
 * With --log: each operation notes the time at which it began and ended on one clock, a counter
 * that all threads advance.  From these follows whether the history is that of a queue:
 *
 *   - no item is taken before it is put;
 *   - where one put ended before another began, the second item is not taken, from begin to end,
 *     before the taking of the first begins (first in, first out, over all threads);
 *   - a get that said "empty" did not do so while an item was there all the time.
 *
 * With --seconds: rounds of that until the time is over.  Without arguments: a short round of every
 * kind and several topologies, with the log.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pyreactor/clock.h"
#include "pyreactor/request_queue.h"

#define THREADS_MAX 64
#define BATCH_MAX 64
#define EMPTIES_MAX 100000                  /* notes of "empty" per consumer; more are not kept */
#define PATIENCE_NS (60 * PR_NS_PER_SECOND) /* after this long asleep a wake-up was lost */

struct options {
    const char *kind;
    int producers, consumers;
    uint64_t items; /* in all */
    size_t capacity;
    int batch;
    bool log;
    int64_t seconds;
};

/* When an operation began and ended. */
struct span {
    uint64_t begin, end;
};

struct record {
    struct span put, get;
};

struct thread {
    pthread_t handle;
    const struct options *options;
    int number;
    uint64_t count; /* a producer's: to put; a consumer's: taken */
    uint64_t first; /* a producer's: its first item's number among all */
    struct span *empties;
    size_t empty_count;
};

static struct pr_request_queue *queue;
static _Atomic(uint64_t) *taken; /* a bit for each item */
static struct record *records;   /* one for each item, with --log */
static _Atomic(uint64_t) the_time;

static void fail(const char *what)
{
    fprintf(stderr, "queue_history: %s\n", what);
    exit(1);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        fail("out of memory");
    return memory;
}

static uint64_t now(void)
{
    return atomic_fetch_add(&the_time, 1);
}

static void *produce(void *argument)
{
    struct thread *self = argument;
    const struct options *options = self->options;
    struct pr_request requests[BATCH_MAX];
    for (uint64_t done = 0; done < self->count;) {
        int count = 0;
        for (; count < options->batch && done + (uint64_t)count < self->count; count++)
            requests[count] = (struct pr_request){
                .owner = (void *)(uintptr_t)(self->first + done + (uint64_t)count),
                .fd = self->number,
            };
        uint64_t begin = options->log ? now() : 0;
        int put = 0;
        while (put < count) { /* kind "mutex" stops now and then to let signals be handled */
            int result = pr_request_queue_put(queue, requests + put, (size_t)(count - put),
                                              pr_now_ns() + PATIENCE_NS);
            if (result < 0 && result != -EINTR)
                fail(result == -ETIMEDOUT ? "a put was not woken" : "a put failed");
            put += result > 0 ? result : 0;
        }
        uint64_t end = options->log ? now() : 0;
        for (int i = 0; options->log && i < count; i++)
            records[self->first + done + (uint64_t)i].put = (struct span){begin, end};
        done += (uint64_t)count;
    }
    return NULL;
}

/* Takes some items; returns how many, or -ESHUTDOWN. */
static int get(struct thread *self, struct pr_request *requests, struct span *span)
{
    const struct options *options = self->options;
    size_t max = (size_t)options->batch;
    while (!options->log) {
        int count = pr_request_queue_get(queue, requests, max, pr_now_ns() + PATIENCE_NS);
        if (count != -EINTR)
            return count;
    }
    for (;;) {
        span->begin = now();
        int count = queue->ops->try_get(queue, requests, max);
        span->end = now();
        if (count != -EAGAIN)
            return count;
        if (self->empty_count < EMPTIES_MAX)
            self->empties[self->empty_count++] = *span;
        int error = queue->ops->wait_request(queue, pr_now_ns() + PATIENCE_NS);
        if (error < 0 && error != -EINTR)
            return error;
    }
}

static void *consume(void *argument)
{
    struct thread *self = argument;
    uint64_t next[THREADS_MAX] = {0};
    struct pr_request requests[BATCH_MAX];
    struct span span = {0, 0};
    for (;;) {
        int count = get(self, requests, &span);
        if (count == -ESHUTDOWN)
            return NULL;
        if (count < 0)
            fail(count == -ETIMEDOUT ? "a get was not woken" : "a get failed");
        for (int i = 0; i < count; i++) {
            uint64_t item = (uint64_t)(uintptr_t)requests[i].owner;
            if (item < next[requests[i].fd])
                fail("a consumer saw the items of one producer out of order");
            next[requests[i].fd] = item + 1;
            uint64_t bit = UINT64_C(1) << (item % 64);
            if (atomic_fetch_or_explicit(&taken[item / 64], bit, memory_order_relaxed) & bit)
                fail("an item came out twice");
            if (self->options->log)
                records[item].get = span;
        }
        self->count += (uint64_t)count;
    }
}

static int by_put_begin(const void *left, const void *right)
{
    uint64_t a = ((const struct record *)left)->put.begin;
    uint64_t b = ((const struct record *)right)->put.begin;
    return a < b ? -1 : a > b;
}

static int by_put_end(const void *left, const void *right)
{
    uint64_t a = ((const struct record *)left)->put.end;
    uint64_t b = ((const struct record *)right)->put.end;
    return a < b ? -1 : a > b;
}

static int by_begin(const void *left, const void *right)
{
    uint64_t a = ((const struct span *)left)->begin, b = ((const struct span *)right)->begin;
    return a < b ? -1 : a > b;
}

/* Holds what was logged against what a queue may do. */
static void check_log(uint64_t items, struct thread *consumers, int consumer_count)
{
    struct record *ended = allocate(items, sizeof *ended);
    memcpy(ended, records, items * sizeof *ended);
    qsort(records, items, sizeof *records, by_put_begin);
    qsort(ended, items, sizeof *ended, by_put_end);
    uint64_t latest = 0; /* of the items put so far: the last moment at which a get began */
    uint64_t before = 0;
    for (uint64_t i = 0; i < items; i++) {
        struct record *record = &records[i];
        if (record->get.end < record->put.begin)
            fail("an item was taken before it was put");
        for (; before < items && ended[before].put.end < record->put.begin; before++)
            if (ended[before].get.begin > latest)
                latest = ended[before].get.begin;
        if (record->get.end < latest)
            fail("an item overtook one that had been put before it");
    }
    for (int i = 0; i < consumer_count; i++) {
        struct thread *consumer = &consumers[i];
        qsort(consumer->empties, consumer->empty_count, sizeof *consumer->empties, by_begin);
        latest = before = 0;
        for (size_t j = 0; j < consumer->empty_count; j++) {
            struct span *empty = &consumer->empties[j];
            for (; before < items && ended[before].put.end < empty->begin; before++)
                if (ended[before].get.begin > latest)
                    latest = ended[before].get.begin;
            if (latest > empty->end)
                fail("the queue said that it was empty while it was not");
        }
    }
    free(ended);
}

static void start(struct thread *thread, void *(*function)(void *))
{
    if (pthread_create(&thread->handle, NULL, function, thread) != 0)
        fail("no more threads");
}

static void run_round(const struct options *options, bool quiet)
{
    static struct thread producers[THREADS_MAX], consumers[THREADS_MAX];
    struct pr_request_queue_stats stats;
    uint64_t first = 0, got = 0, empties = 0;
    if (pr_request_queue_new(&queue, options->kind, options->capacity, 0) < 0)
        fail("no such queue");
    taken = allocate(options->items / 64 + 1, sizeof *taken);
    records = options->log ? allocate(options->items, sizeof *records) : NULL;
    int64_t began_ns = pr_now_ns();
    for (int i = 0; i < options->consumers; i++) {
        consumers[i] = (struct thread){.options = options, .number = i};
        consumers[i].empties = options->log ? allocate(EMPTIES_MAX, sizeof(struct span)) : NULL;
        start(&consumers[i], consume);
    }
    for (int i = 0; i < options->producers; i++) {
        uint64_t last = options->items * (uint64_t)(i + 1) / (uint64_t)options->producers;
        producers[i] =
            (struct thread){.options = options, .number = i, .first = first, .count = last - first};
        first = last;
        start(&producers[i], produce);
    }
    for (int i = 0; i < options->producers; i++)
        pthread_join(producers[i].handle, NULL);
    queue->ops->close(queue);
    for (int i = 0; i < options->consumers; i++) {
        pthread_join(consumers[i].handle, NULL);
        got += consumers[i].count;
        empties += consumers[i].empty_count;
    }
    int64_t took_ns = pr_now_ns() - began_ns;
    queue->ops->read_stats(queue, &stats);
    if (got != options->items || stats.puts != got || stats.gets != got)
        fail("an item was lost");
    if (options->log)
        check_log(options->items, consumers, options->consumers);
    if (!quiet) {
        printf("%-5s %dx%d  %llu items  %.2f M/s  %.5f sleeps and %.5f wakes per item",
               options->kind, options->producers, options->consumers, (unsigned long long)got,
               (double)got * 1e3 / (double)took_ns,
               (double)(stats.put_sleeps + stats.get_sleeps) / (double)got,
               (double)(stats.put_wakes + stats.get_wakes) / (double)got);
        if (options->log)
            printf("  logged, %llu times empty", (unsigned long long)empties);
        putchar('\n');
        fflush(stdout);
    }
    for (int i = 0; i < options->consumers; i++)
        free(consumers[i].empties);
    queue->ops->free(queue);
    free(taken);
    free(records);
}

static void run_short(void)
{
    static const int topologies[][3] = {{1, 1, 2}, {2, 2, 2}, {4, 4, 8}, {3, 1, 1}, {1, 3, 64}};
    static const char *const kinds[] = {"mpmc", "mutex", "spsc"};
    for (size_t kind = 0; kind < 3; kind++)
        for (size_t i = 0; i < (kind == 2 ? 1 : sizeof topologies / sizeof *topologies); i++)
            for (int batch = 1; batch <= 3; batch += 2)
                run_round(&(struct options){.kind = kinds[kind],
                                            .producers = topologies[i][0],
                                            .consumers = topologies[i][1],
                                            .capacity = (size_t)topologies[i][2],
                                            .items = 20000,
                                            .batch = batch,
                                            .log = true},
                          true);
}

static int64_t number_of(const char *text, int64_t max)
{
    char *end;
    long long number = strtoll(text, &end, 10);
    if (*end || number < 1 || number > max)
        fail("an argument is no number, or out of bounds");
    return number;
}

static void read_options(struct options *options, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--log") == 0) {
            options->log = true;
            continue;
        }
        if (++i == argc)
            fail("an argument is missing");
        if (strcmp(name, "--kind") == 0)
            options->kind = argv[i];
        else if (strcmp(name, "--threads") == 0)
            sscanf(argv[i], "%dx%d", &options->producers, &options->consumers);
        else if (strcmp(name, "--items") == 0)
            options->items = (uint64_t)number_of(argv[i], INT64_C(1) << 40);
        else if (strcmp(name, "--capacity") == 0)
            options->capacity = (size_t)number_of(argv[i], 1 << 30);
        else if (strcmp(name, "--batch") == 0)
            options->batch = (int)number_of(argv[i], BATCH_MAX);
        else if (strcmp(name, "--seconds") == 0)
            options->seconds = number_of(argv[i], 1000000);
        else
            fail("there is no such option");
    }
    if (options->producers < 1 || options->producers > THREADS_MAX || options->consumers < 1 ||
        options->consumers > THREADS_MAX)
        fail("too few threads, or too many");
}

int main(int argc, char **argv)
{
    struct options options = {.kind = "mpmc",
                              .producers = 1,
                              .consumers = 1,
                              .items = 1000000,
                              .capacity = 1024,
                              .batch = 1};
    if (argc == 1) {
        run_short();
        return 0;
    }
    read_options(&options, argc, argv);
    if (!options.seconds) {
        run_round(&options, false);
        return 0;
    }
    int64_t end_ns = pr_now_ns() + options.seconds * PR_NS_PER_SECOND;
    uint64_t rounds = 0;
    for (; pr_now_ns() < end_ns; rounds++)
        run_round(&options, true);
    printf("%-5s %dx%d  %llu rounds of %llu items in %lld s\n", options.kind, options.producers,
           options.consumers, (unsigned long long)rounds, (unsigned long long)options.items,
           (long long)options.seconds);
    return 0;
}
