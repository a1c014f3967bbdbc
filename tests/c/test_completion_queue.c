/*
 * Completion queues: who gets which result, that nobody sleeps while one waits, and that those of a
 * strand come one after the other.
 */
#include "pyreactor/completion_queue.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>

#include "check.h"
#include "pyreactor/clock.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long something was lost */
#define WORKERS 4
#define STRANDS 16
#define RESULTS_PER_STRAND 5
#define RESULTS (STRANDS * RESULTS_PER_STRAND)
#define ROUNDS 300

static struct pr_completion_queues queues;
static struct pr_strand strands[STRANDS];
static struct pr_aio results[RESULTS];

static void begin(unsigned workers, enum pr_worker_policy policy)
{
    REQUIRE_EQUAL(pr_completion_queues_init(&queues, workers, policy), 0);
    for (int i = 0; i < STRANDS; i++)
        strands[i] = (struct pr_strand){.delivered = 0};
    for (int i = 0; i < RESULTS; i++) {
        pr_aio_init(&results[i], NULL);
        results[i].fd = i;
    }
}

static void end(void)
{
    CHECK_EQUAL(pr_completion_queues_depth(&queues), 0);
    pr_completion_queues_deinit(&queues);
}

static void put(int first, int count)
{
    for (int i = first; i < first + count; i++)
        pr_completion_queues_put(&queues, &results[i]);
    pr_completion_queues_wake(&queues);
}

/* Returns which of the results a worker takes, or -1 where there is none for it. */
static int take(unsigned worker)
{
    struct pr_aio *aio;
    int result = pr_completion_queues_take(&queues, worker, &aio, 0);
    if (result == -ETIMEDOUT)
        return -1;
    REQUIRE_EQUAL(result, 0);
    CHECK_EQUAL(aio->worker, worker);
    return (int)(aio - results);
}

static void handle(unsigned worker, int which)
{
    CHECK_EQUAL(take(worker), which);
    pr_completion_queues_end(&queues, worker, which < 0 ? NULL : results[which].strand);
}

static void the_choice_holds_while_the_worker_is_free(void)
{
    begin(2, PR_ROUND_ROBIN);
    put(0, 2);
    CHECK_EQUAL(pr_completion_queues_depth(&queues), 2);
    handle(1, 1);
    CHECK_EQUAL(take(1), -1); /* the other has one, and nothing else to do */
    handle(0, 0);
    CHECK_EQUAL(take(0), -1);
    put(2, 2);
    handle(1, 3);
    handle(0, 2);
    CHECK_EQUAL(queues.taken_over, 0);
    end();
}

static void the_least_loaded_is_chosen(void)
{
    begin(3, PR_LEAST_LOADED);
    put(0, 3);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(take((unsigned)i), i);
    pr_completion_queues_end(&queues, 1, NULL); /* the others are busy still */
    put(3, 1);
    handle(1, 3);
    pr_completion_queues_end(&queues, 0, NULL);
    pr_completion_queues_end(&queues, 2, NULL);
    CHECK_EQUAL(queues.taken_over, 0);
    end();
}

static void what_waits_behind_a_busy_worker_is_for_the_others(void)
{
    begin(2, PR_ROUND_ROBIN);
    put(0, 8); /* the even ones for worker 0 */
    CHECK_EQUAL(take(0), 0);
    for (int i = 1; i < 8; i += 2)
        handle(1, i); /* its own come first */
    CHECK_EQUAL(take(1), 2);
    CHECK_EQUAL(pr_completion_queues_depth(&queues), 4);
    pr_completion_queues_end(&queues, 0, NULL);
    handle(0, 4); /* those that the other has taken along are for it, too */
    pr_completion_queues_end(&queues, 1, NULL);
    handle(1, 6); /* in turn */
    CHECK_EQUAL(take(1), -1);
    CHECK_EQUAL(queues.taken_over, 3 + 2 + 1);
    end();
}

static void a_connections_own_worker_is_waited_for(void)
{
    begin(2, PR_BY_CONNECTION);
    results[2].fd = 4;
    put(0, 3);
    handle(1, 1);
    CHECK_EQUAL(take(0), 0);
    CHECK_EQUAL(take(1), -1);
    pr_completion_queues_end(&queues, 0, NULL);
    handle(0, 2);
    end();
}

static void results_of_a_strand_wait_for_each_other(void)
{
    begin(2, PR_ROUND_ROBIN);
    for (int i = 0; i < 3; i++)
        results[i].strand = &strands[0];
    put(0, 4);
    CHECK_EQUAL(pr_completion_queues_depth(&queues), 4);
    CHECK_EQUAL(take(0), 0);
    handle(1, 3);
    CHECK_EQUAL(take(1), -1); /* two wait, and not for a worker */
    pr_completion_queues_end(&queues, 0, &strands[0]);
    handle(0, 1);
    handle(0, 2);
    CHECK_EQUAL(strands[0].delivered, 0);
    put(4, 1);
    put(0, 1); /* it may go to another now */
    handle(1, 0);
    handle(0, 4);
    end();
}

/* A strand follows the worker that has taken one of its results over. */
static void a_strand_stays_where_it_is(void)
{
    begin(2, PR_ROUND_ROBIN);
    results[2].strand = results[3].strand = &strands[0];
    put(0, 3);
    CHECK_EQUAL(take(0), 0);
    handle(1, 1);
    CHECK_EQUAL(take(1), 2);
    put(3, 1);
    pr_completion_queues_end(&queues, 0, NULL);
    CHECK_EQUAL(take(0), -1);
    pr_completion_queues_end(&queues, 1, &strands[0]);
    handle(1, 3);
    end();
}

static void closed_queues_are_emptied_first(void)
{
    struct pr_aio *aio;
    begin(1, PR_LEAST_LOADED);
    put(0, 1);
    pr_completion_queues_close(&queues);
    handle(0, 0);
    CHECK_EQUAL(pr_completion_queues_take(&queues, 0, &aio, INT64_MAX), -ESHUTDOWN);
    end();
}

/* --- With threads -----------------------------------------------------------------------------
 */

static bool blocks[RESULTS]; /* which are handled only when all others are */
static int handled[STRANDS]; /* of each strand */
static atomic_bool inside[STRANDS];
static _Atomic(int) done;      /* of those that do not block */
static sem_t opened, all_done; /* for those that block; for the main thread */
static int free_count;         /* of those that do not block */

static void handle_in_thread(struct pr_aio *aio)
{
    const int which = (int)(aio - results);
    const int strand = which % STRANDS;
    CHECK(!atomic_exchange(&inside[strand], true));
    CHECK_EQUAL(handled[strand]++, which / STRANDS);
    if (blocks[which])
        sem_wait(&opened);
    atomic_store(&inside[strand], false);
    if (!blocks[which] && atomic_fetch_add(&done, 1) == free_count - 1)
        sem_post(&all_done);
}

static void *work(void *argument)
{
    const unsigned worker = (unsigned)(uintptr_t)argument;
    struct pr_aio *aio;
    int result;
    while ((result = pr_completion_queues_take(&queues, worker, &aio, INT64_MAX)) == 0) {
        struct pr_strand *strand = aio->strand;
        if (queues.policy == PR_BY_CONNECTION)
            CHECK_EQUAL(aio->fd % WORKERS, worker);
        handle_in_thread(aio);
        pr_completion_queues_end(&queues, worker, strand);
    }
    CHECK_EQUAL(result, -ESHUTDOWN);
    return NULL;
}

static void wait_for(sem_t *semaphore)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PATIENCE_NS / PR_NS_PER_SECOND;
    int result;
    while ((result = sem_timedwait(semaphore, &deadline)) < 0 && errno == EINTR)
        ;
    REQUIRE_EQUAL(result, 0);
}

/*
 * Puts all results in, some turns apart, of which `blockers` block: the last of their strands, so
 * that no other has to wait for them.  Waits for the others, which whoever is left has to handle.
 */
static void take_a_round(uint64_t *seed, int blockers)
{
    memset(blocks, 0, sizeof blocks);
    memset(handled, 0, sizeof handled);
    atomic_store(&done, 0);
    free_count = RESULTS - blockers;
    for (int i = 0; i < blockers; i++)
        blocks[RESULTS - STRANDS + (int)((check_random(seed) % 4) * 4) + i] = true;
    for (int i = 0; i < RESULTS; i++) {
        pr_completion_queues_put(&queues, &results[i]);
        if (check_random(seed) % 4 == 0)
            pr_completion_queues_wake(&queues);
    }
    pr_completion_queues_wake(&queues);
    wait_for(&all_done);
    for (int i = 0; i < blockers; i++)
        sem_post(&opened);
    int64_t deadline_ns = pr_now_ns() + PATIENCE_NS;
    for (int i = 0; i < STRANDS; i++) {
        while (atomic_load(&strands[i].delivered) > 0) {
            REQUIRE(pr_now_ns() < deadline_ns);
            sched_yield();
        }
    }
}

static void run_rounds(enum pr_worker_policy policy, int blockers)
{
    pthread_t threads[WORKERS];
    uint64_t seed = policy;
    begin(WORKERS, policy);
    for (int i = 0; i < RESULTS; i++) {
        results[i].strand = &strands[i % STRANDS];
        results[i].fd = i % STRANDS;
    }
    sem_init(&opened, 0, 0);
    sem_init(&all_done, 0, 0);
    for (unsigned i = 0; i < WORKERS; i++)
        REQUIRE_EQUAL(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i), 0);
    for (int round = 0; round < ROUNDS; round++)
        take_a_round(&seed, blockers);
    pr_completion_queues_close(&queues);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    CHECK(queues.taken_over > 0 || blockers == 0);
    end();
}

static void no_result_waits_while_a_worker_sleeps(void)
{
    for (int blockers = 1; blockers < WORKERS; blockers++) {
        run_rounds(PR_ROUND_ROBIN, blockers);
        run_rounds(PR_LEAST_LOADED, blockers);
    }
}

static void connections_keep_their_workers(void)
{
    run_rounds(PR_BY_CONNECTION, 0);
    CHECK_EQUAL(queues.taken_over, 0);
}

int main(void)
{
    RUN(the_choice_holds_while_the_worker_is_free);
    RUN(the_least_loaded_is_chosen);
    RUN(what_waits_behind_a_busy_worker_is_for_the_others);
    RUN(a_connections_own_worker_is_waited_for);
    RUN(results_of_a_strand_wait_for_each_other);
    RUN(a_strand_stays_where_it_is);
    RUN(closed_queues_are_emptied_first);
    RUN(no_result_waits_while_a_worker_sleeps);
    RUN(connections_keep_their_workers);
    return check_status();
}
