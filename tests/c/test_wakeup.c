/*
 * Wakeup: the eventfd is written while the loop sleeps and at no other time, and nothing that
 * another thread posts is lost or overtaken.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/wakeup.h"

#define PRODUCERS 8
#define POSTS_PER_PRODUCER 50000
#define PATIENCE_MS 20000 /* after this long asleep a wake-up was lost */

static struct pr_wakeup wakeup;

static void begin(void)
{
    REQUIRE_EQUAL(pr_wakeup_init(&wakeup), 0);
}

static void end(void)
{
    pr_wakeup_deinit(&wakeup);
}

/* How often the eventfd was written since the last look. */
static uint64_t writes_seen(void)
{
    uint64_t count = 0;
    ssize_t got = read(wakeup.fd, &count, sizeof count);
    if (got < 0)
        REQUIRE_EQUAL(errno, EAGAIN);
    return count;
}

static void an_empty_inbox_holds_nothing(void)
{
    begin();
    CHECK_SAME(pr_wakeup_take_inbox(&wakeup), NULL);
    CHECK_EQUAL(writes_seen(), 0);
    end();
}

static void the_inbox_is_taken_whole_and_oldest_first(void)
{
    struct pr_callback callbacks[5] = {{0}};
    begin();
    for (int i = 0; i < 5; i++)
        pr_wakeup_post(&wakeup, &callbacks[i]);
    struct pr_callback *callback = pr_wakeup_take_inbox(&wakeup);
    for (int i = 0; i < 5; i++, callback = callback->next)
        REQUIRE(callback == &callbacks[i]);
    CHECK_SAME(callback, NULL);
    CHECK_SAME(pr_wakeup_take_inbox(&wakeup), NULL);
    end();
}

static void posting_to_a_loop_that_is_awake_makes_no_system_call(void)
{
    struct pr_callback callbacks[3] = {{0}};
    begin();
    for (int i = 0; i < 3; i++)
        pr_wakeup_post(&wakeup, &callbacks[i]);
    CHECK_EQUAL(writes_seen(), 0);
    pr_wakeup_take_inbox(&wakeup);
    REQUIRE(pr_wakeup_begin_sleep(&wakeup));
    pr_wakeup_end_sleep(&wakeup);
    pr_wakeup_post(&wakeup, &callbacks[0]);
    CHECK_EQUAL(writes_seen(), 0);
    end();
}

static void only_the_first_to_find_the_loop_asleep_writes(void)
{
    struct pr_callback callbacks[3] = {{0}};
    begin();
    REQUIRE(pr_wakeup_begin_sleep(&wakeup));
    for (int i = 0; i < 3; i++)
        pr_wakeup_post(&wakeup, &callbacks[i]);
    pr_wakeup_wake(&wakeup);
    CHECK_EQUAL(writes_seen(), 1);
    pr_wakeup_end_sleep(&wakeup);
    end();
}

static void a_loop_with_something_in_its_inbox_must_not_sleep(void)
{
    struct pr_callback callback = {0};
    begin();
    pr_wakeup_post(&wakeup, &callback);
    CHECK(!pr_wakeup_begin_sleep(&wakeup));
    CHECK_EQUAL(atomic_load(&wakeup.state), PR_AWAKE);
    CHECK_EQUAL(writes_seen(), 0);
    pr_wakeup_take_inbox(&wakeup);
    CHECK(pr_wakeup_begin_sleep(&wakeup));
    pr_wakeup_end_sleep(&wakeup);
    end();
}

static void draining_empties_the_eventfd_and_may_be_repeated(void)
{
    begin();
    REQUIRE(pr_wakeup_begin_sleep(&wakeup));
    pr_wakeup_wake(&wakeup);
    pr_wakeup_end_sleep(&wakeup);
    pr_wakeup_drain(&wakeup);
    CHECK_EQUAL(writes_seen(), 0);
    pr_wakeup_drain(&wakeup); /* does not block */
    end();
}

static void waking_leaves_errno_alone(void)
{
    begin();
    close(wakeup.fd);
    wakeup.fd = -1; /* the write fails */
    REQUIRE(pr_wakeup_begin_sleep(&wakeup));
    errno = ENOENT;
    pr_wakeup_wake(&wakeup);
    CHECK_EQUAL(errno, ENOENT);
    end();
}

static void wake_from_a_signal(int signal_number)
{
    (void)signal_number;
    pr_wakeup_wake(&wakeup);
}

static void a_signal_handler_may_wake_the_loop(void)
{
    struct sigaction action = {.sa_handler = wake_from_a_signal}, old_action;
    begin();
    REQUIRE_EQUAL(sigaction(SIGUSR1, &action, &old_action), 0);
    REQUIRE(pr_wakeup_begin_sleep(&wakeup));
    raise(SIGUSR1);
    struct pollfd waited = {.fd = wakeup.fd, .events = POLLIN};
    CHECK_EQUAL(poll(&waited, 1, PATIENCE_MS), 1);
    pr_wakeup_end_sleep(&wakeup);
    sigaction(SIGUSR1, &old_action, NULL);
    end();
}

struct post {
    struct pr_callback callback;
    int producer;
    int number;
};

struct producer {
    pthread_t thread;
    struct post *posts;
    int number;
};

static void *produce(void *argument)
{
    struct producer *producer = argument;
    for (int i = 0; i < POSTS_PER_PRODUCER; i++) {
        producer->posts[i] = (struct post){.producer = producer->number, .number = i};
        producer->posts[i].callback.owner = &producer->posts[i];
        pr_wakeup_post(&wakeup, &producer->posts[i].callback);
        if (i % 64 == 0)
            sched_yield(); /* lets the loop fall asleep now and then */
    }
    return NULL;
}

static void start_producers(struct producer *producers)
{
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i].number = i;
        producers[i].posts = calloc(POSTS_PER_PRODUCER, sizeof *producers[i].posts);
        REQUIRE(producers[i].posts);
        REQUIRE_EQUAL(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    }
}

static void end_producers(struct producer *producers)
{
    for (int i = 0; i < PRODUCERS; i++) {
        pthread_join(producers[i].thread, NULL);
        free(producers[i].posts);
    }
}

/* Takes what there is; returns how many came.  Those of one producer come in their order. */
static int take_posts(int *next)
{
    int count = 0;
    struct pr_callback *callback = pr_wakeup_take_inbox(&wakeup);
    while (callback) {
        struct pr_callback *after = callback->next;
        struct post *post = callback->owner;
        REQUIRE_EQUAL(post->number, next[post->producer]);
        next[post->producer]++;
        count++;
        callback = after;
    }
    return count;
}

static void no_post_of_many_threads_is_lost_or_overtaken(void)
{
    static struct producer producers[PRODUCERS];
    int next[PRODUCERS] = {0};
    int taken = 0;
    uint64_t tries = 0, writes = 0;
    begin();
    start_producers(producers);
    while (taken < PRODUCERS * POSTS_PER_PRODUCER) {
        tries++;
        if (pr_wakeup_begin_sleep(&wakeup)) {
            struct pollfd waited = {.fd = wakeup.fd, .events = POLLIN};
            REQUIRE_EQUAL(poll(&waited, 1, PATIENCE_MS), 1);
            pr_wakeup_end_sleep(&wakeup);
        }
        writes += writes_seen();
        taken += take_posts(next);
    }
    end_producers(producers);
    writes += writes_seen();
    CHECK_EQUAL(taken, PRODUCERS * POSTS_PER_PRODUCER);
    CHECK_AT_MOST(writes, tries); /* one for each try to sleep, however many post */
    end();
}

int main(void)
{
    RUN(an_empty_inbox_holds_nothing);
    RUN(the_inbox_is_taken_whole_and_oldest_first);
    RUN(posting_to_a_loop_that_is_awake_makes_no_system_call);
    RUN(only_the_first_to_find_the_loop_asleep_writes);
    RUN(a_loop_with_something_in_its_inbox_must_not_sleep);
    RUN(draining_empties_the_eventfd_and_may_be_repeated);
    RUN(waking_leaves_errno_alone);
    RUN(a_signal_handler_may_wake_the_loop);
    RUN(no_post_of_many_threads_is_lost_or_overtaken);
    return check_status();
}
