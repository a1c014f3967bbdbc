/*
 * Watches: one for a descriptor, generations that keep stale events away, and lazy interest.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/loop.h"

static struct pr_loop loop;
static struct fake_backend fake;

/* A watch that remembers what it heard. */
struct ear {
    struct pr_watch watch;
    int calls;
    uint32_t heard;
    int result;
    void (*then)(struct ear *ear); /* optional: what else it does */
};

static int on_ready(struct pr_watch *watch, uint32_t events)
{
    struct ear *ear = watch->owner;
    ear->calls++;
    ear->heard = events;
    if (ear->then)
        ear->then(ear);
    return ear->result;
}

static void init_ear(struct ear *ear)
{
    *ear = (struct ear){0};
    pr_watch_init(&ear->watch, on_ready, ear);
}

static void begin(void)
{
    REQUIRE_EQUAL(pr_loop_init(&loop, "epoll"), 0);
}

static void begin_with_fake(void)
{
    begin();
    fake_backend_install(&fake, &loop);
}

static void end(void)
{
    pr_loop_deinit(&loop);
}

/* Starts a watch on a descriptor that the fake backend does not look at. */
static void start(struct ear *ear, int fd, uint32_t events)
{
    init_ear(ear);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &ear->watch, fd, events), 0);
    fake_backend_forget(&fake);
}

static void turn(void)
{
    REQUIRE_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_SECOND), 0);
}

static void open_pair(int pair[2])
{
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

static void starting_tells_the_backend_once(void)
{
    struct ear ear;
    begin_with_fake();
    init_ear(&ear);
    CHECK(!pr_watch_is_active(&ear.watch));
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &ear.watch, 500, PR_READABLE), 0);
    CHECK(pr_watch_is_active(&ear.watch));
    CHECK_SAME(pr_watch_find(&loop.watches, 500), &ear.watch);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].fd, 500);
    CHECK_EQUAL(fake.updates[0].generation, ear.watch.generation);
    CHECK_EQUAL(fake.updates[0].old_events, 0);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE);
    end();
}

static void starting_for_nothing_yet_asks_nothing(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, 0);
    CHECK_EQUAL(fake.update_count, 0);
    pr_watch_stop(&loop.watches, &ear.watch);
    CHECK_EQUAL(fake.update_count, 0);
    end();
}

static void a_descriptor_has_one_watch_at_a_time(void)
{
    struct ear first, second;
    begin_with_fake();
    start(&first, 20, PR_READABLE);
    size_t count = loop.watches.count;
    init_ear(&second);
    CHECK_EQUAL(pr_watch_start(&loop.watches, &second.watch, 20, PR_READABLE), -EEXIST);
    CHECK(!pr_watch_is_active(&second.watch));
    CHECK_SAME(pr_watch_find(&loop.watches, 20), &first.watch);
    CHECK_EQUAL(fake.update_count, 0);
    CHECK_EQUAL(loop.watches.count, count);
    end();
}

static void a_negative_descriptor_is_refused(void)
{
    struct ear ear;
    begin_with_fake();
    init_ear(&ear);
    fake_backend_forget(&fake);
    CHECK_EQUAL(pr_watch_start(&loop.watches, &ear.watch, -1, PR_READABLE), -EBADF);
    CHECK_EQUAL(fake.update_count, 0);
    CHECK_SAME(pr_watch_find(&loop.watches, -1), NULL);
    CHECK_SAME(pr_watch_find(&loop.watches, 1 << 30), NULL);
    end();
}

static void a_start_that_fails_leaves_the_watch_stopped(void)
{
    struct ear ear;
    begin_with_fake();
    init_ear(&ear);
    size_t count = loop.watches.count;
    fake.update_error = -EPERM;
    CHECK_EQUAL(pr_watch_start(&loop.watches, &ear.watch, 20, PR_READABLE), -EPERM);
    CHECK(!pr_watch_is_active(&ear.watch));
    CHECK_SAME(pr_watch_find(&loop.watches, 20), NULL);
    CHECK_EQUAL(loop.watches.count, count);
    fake.update_error = 0;
    CHECK_EQUAL(pr_watch_start(&loop.watches, &ear.watch, 20, PR_READABLE), 0);
    end();
}

static void stopping_tells_the_backend_once_and_may_be_repeated(void)
{
    struct ear ear;
    begin_with_fake();
    size_t count = loop.watches.count;
    start(&ear, 20, PR_READABLE);
    CHECK_EQUAL(loop.watches.count, count + 1);
    pr_watch_stop(&loop.watches, &ear.watch);
    pr_watch_stop(&loop.watches, &ear.watch);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].new_events, 0);
    CHECK_EQUAL(loop.watches.count, count);
    CHECK_SAME(pr_watch_find(&loop.watches, 20), NULL);
    end();
}

static void stopping_after_the_descriptor_was_closed_is_harmless(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    fake.update_error = -EBADF;
    pr_watch_stop(&loop.watches, &ear.watch);
    CHECK(!pr_watch_is_active(&ear.watch));
    fake.update_error = 0;
    end();
}

static void the_table_grows_and_keeps_its_watches(void)
{
    static struct ear ears[300];
    begin_with_fake();
    for (int i = 0; i < 300; i++)
        start(&ears[i], 1000 + i * 7, PR_READABLE);
    for (int i = 0; i < 300; i++) {
        CHECK_SAME(pr_watch_find(&loop.watches, 1000 + i * 7), &ears[i].watch);
        CHECK_SAME(pr_watch_find(&loop.watches, 1001 + i * 7), NULL);
    }
    end();
}

static void only_wanted_events_are_heard(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    fake_backend_report(&fake, &ear.watch, PR_READABLE | PR_WRITABLE); /* a hang-up */
    turn();
    CHECK_EQUAL(ear.calls, 1);
    CHECK_EQUAL(ear.heard, PR_READABLE);
    CHECK_EQUAL(fake.update_count, 0); /* nothing to unregister */
    end();
}

static void pausing_and_resuming_asks_the_backend_nothing(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    for (int i = 0; i < 10; i++) {
        CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, 0), 0);
        CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_READABLE), 0);
    }
    CHECK_EQUAL(fake.update_count, 0);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 1);
    end();
}

static void wanting_more_tells_the_backend_at_once(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_READABLE | PR_WRITABLE), 0);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].old_events, PR_READABLE);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE | PR_WRITABLE);
    end();
}

static void a_want_that_fails_changes_nothing(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    fake.update_error = -ENOSPC;
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_WRITABLE), -ENOSPC);
    uint32_t generation = ear.watch.generation;
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_WRITABLE), -ENOSPC);
    CHECK_EQUAL(ear.watch.generation, generation);
    CHECK_EQUAL(ear.watch.wanted, PR_READABLE);
    CHECK_EQUAL(ear.watch.registered, PR_READABLE);
    fake.update_error = 0;
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_WRITABLE), 0);
    CHECK_EQUAL(ear.watch.wanted, PR_WRITABLE);
    end();
}

static void an_unwanted_event_leads_to_one_update_and_no_call(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    pr_watch_want(&loop.watches, &ear.watch, 0);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 0);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].old_events, PR_READABLE);
    CHECK_EQUAL(fake.updates[0].new_events, 0);
    pr_watch_want(&loop.watches, &ear.watch, PR_READABLE);
    CHECK_EQUAL(fake.update_count, 2); /* and it is asked for again when it is wanted again */
    CHECK_EQUAL(fake.updates[1].new_events, PR_READABLE);
    end();
}

static void an_event_that_is_half_wanted_is_heard_by_half(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE | PR_WRITABLE);
    pr_watch_want(&loop.watches, &ear.watch, PR_READABLE);
    CHECK_EQUAL(fake.update_count, 0);
    fake_backend_report(&fake, &ear.watch, PR_READABLE | PR_WRITABLE);
    turn();
    CHECK_EQUAL(ear.calls, 1);
    CHECK_EQUAL(ear.heard, PR_READABLE);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE);
    end();
}

static void an_edge_that_nobody_wants_stays_registered(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE | PR_EDGE);
    pr_watch_want(&loop.watches, &ear.watch, PR_EDGE);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 0);
    CHECK_EQUAL(fake.update_count, 0);
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_READABLE | PR_EDGE), 0);
    CHECK_EQUAL(fake.update_count, 0);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 1);
    CHECK_EQUAL(ear.heard, PR_READABLE);
    end();
}

static void edges_of_both_directions_stay_registered_together(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE | PR_EDGE);
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_WRITABLE | PR_EDGE), 0);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE | PR_WRITABLE | PR_EDGE);
    fake_backend_report(&fake, &ear.watch, PR_READABLE | PR_WRITABLE);
    turn();
    CHECK_EQUAL(ear.heard, PR_WRITABLE);
    CHECK_EQUAL(pr_watch_want(&loop.watches, &ear.watch, PR_READABLE | PR_EDGE), 0);
    CHECK_EQUAL(fake.update_count, 1);
    end();
}

static void room_to_write_that_nobody_wants_is_unregistered(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE | PR_WRITABLE | PR_EDGE);
    pr_watch_want(&loop.watches, &ear.watch, PR_READABLE | PR_EDGE);
    fake_backend_report(&fake, &ear.watch, PR_WRITABLE);
    turn();
    CHECK_EQUAL(ear.calls, 0);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE | PR_EDGE);
    end();
}

static bool step_aside(struct pr_watch *watch)
{
    struct ear *ear = watch->owner;
    ear->calls++;
    if (ear->result)
        return false;
    pr_watch_stop(&loop.watches, watch);
    return true;
}

static void a_watch_may_give_way_to_another(void)
{
    struct ear first, second;
    begin_with_fake();
    start(&first, 20, PR_READABLE | PR_EDGE);
    first.watch.gives_way = step_aside;
    size_t count = loop.watches.count;
    init_ear(&second);
    CHECK_EQUAL(pr_watch_start(&loop.watches, &second.watch, 20, PR_READABLE), 0);
    CHECK_EQUAL(first.calls, 1);
    CHECK(!pr_watch_is_active(&first.watch));
    CHECK_SAME(pr_watch_find(&loop.watches, 20), &second.watch);
    CHECK_EQUAL(loop.watches.count, count);
    end();
}

static void a_watch_may_refuse_to_give_way(void)
{
    struct ear first, second;
    begin_with_fake();
    start(&first, 20, PR_READABLE);
    first.watch.gives_way = step_aside;
    first.result = 1;
    init_ear(&second);
    CHECK_EQUAL(pr_watch_start(&loop.watches, &second.watch, 20, PR_READABLE), -EEXIST);
    CHECK_EQUAL(first.calls, 1);
    CHECK_SAME(pr_watch_find(&loop.watches, 20), &first.watch);
    end();
}

static void renewing_tells_the_backend_at_once_of_a_new_generation(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE | PR_WRITABLE);
    uint32_t generation = ear.watch.generation;
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_READABLE), 0);
    CHECK_EQUAL(fake.update_count, 1);
    CHECK_EQUAL(fake.updates[0].generation, generation + 1);
    CHECK_EQUAL(fake.updates[0].old_events, PR_READABLE | PR_WRITABLE);
    CHECK_EQUAL(fake.updates[0].new_events, PR_READABLE);
    CHECK_EQUAL(ear.watch.generation, generation + 1);
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_READABLE), 0);
    CHECK_EQUAL(fake.update_count, 2); /* even where nothing else changes */
    end();
}

static void renewing_what_the_kernel_does_not_know_asks_it_for_nothing(void)
{
    struct ear ear;
    begin();
    int pair[2];
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    start(&ear, pair[0], 0);
    uint32_t generation = ear.watch.generation;
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, 0), 0);
    CHECK_EQUAL(ear.watch.generation, generation + 1);
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_READABLE), 0);
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, 0), 0);
    CHECK_EQUAL(ear.watch.registered, 0);
    pr_watch_stop(&loop.watches, &ear.watch);
    close(pair[0]);
    close(pair[1]);
    end();
}

static void an_event_from_before_a_renewal_is_stale(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_READABLE), 0);
    turn();
    CHECK_EQUAL(ear.calls, 0);
    CHECK_EQUAL(loop.stats.stale_events, 1);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 1);
    end();
}

static void renewing_finds_a_descriptor_closed_and_reused_meanwhile(void)
{
    int first[2], second[2];
    struct ear ear;
    begin();
    open_pair(first);
    open_pair(second);
    init_ear(&ear);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &ear.watch, first[0], PR_READABLE), 0);
    REQUIRE_EQUAL(dup2(second[0], first[0]), first[0]); /* closes and reuses in one */
    CHECK_EQUAL(pr_watch_renew(&loop.watches, &ear.watch, PR_READABLE), 0);
    REQUIRE_EQUAL(write(second[1], "x", 1), 1);
    turn();
    CHECK_EQUAL(ear.calls, 1);
    CHECK_EQUAL(ear.heard, PR_READABLE);
    end();
    for (int i = 0; i < 2; i++) {
        close(first[i]);
        close(second[i]);
    }
}

static void a_hang_up_while_paused_does_not_spin(void)
{
    int pair[2];
    struct ear ear;
    begin();
    open_pair(pair);
    init_ear(&ear);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &ear.watch, pair[0], PR_READABLE), 0);
    pr_watch_want(&loop.watches, &ear.watch, 0);
    close(pair[1]);
    turn(); /* the event that nobody wants */
    CHECK_EQUAL(loop.stats.events, 1);
    for (int i = 0; i < 3; i++)
        REQUIRE_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_MS), 0);
    CHECK_EQUAL(loop.stats.events, 1);
    CHECK_EQUAL(ear.calls, 0);
    pr_watch_want(&loop.watches, &ear.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(ear.calls, 1); /* and is not forgotten */
    pr_watch_stop(&loop.watches, &ear.watch);
    close(pair[0]);
    end();
}

static struct ear *victim, *successor;

static void replace_victim(struct ear *ear)
{
    (void)ear;
    int fd = victim->watch.fd;
    pr_watch_stop(&loop.watches, &victim->watch);
    init_ear(successor);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &successor->watch, fd, PR_READABLE), 0);
}

static void a_stale_event_of_the_same_batch_never_reaches_the_new_watch(void)
{
    struct ear killer, old_watch, new_watch;
    begin_with_fake();
    start(&killer, 20, PR_READABLE);
    start(&old_watch, 21, PR_READABLE);
    victim = &old_watch;
    successor = &new_watch;
    killer.then = replace_victim;
    fake_backend_report(&fake, &killer.watch, PR_READABLE);
    fake_backend_report(&fake, &old_watch.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(killer.calls, 1);
    CHECK_EQUAL(old_watch.calls, 0);
    CHECK_EQUAL(new_watch.calls, 0);
    CHECK_EQUAL(loop.stats.stale_events, 1);
    fake_backend_report(&fake, &new_watch.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(new_watch.calls, 1);
    end();
}

static void stop_victim(struct ear *ear)
{
    (void)ear;
    pr_watch_stop(&loop.watches, &victim->watch);
}

static void a_stale_event_of_a_stopped_watch_is_dropped(void)
{
    struct ear killer, old_watch;
    begin_with_fake();
    start(&killer, 20, PR_READABLE);
    start(&old_watch, 21, PR_READABLE);
    victim = &old_watch;
    killer.then = stop_victim;
    fake_backend_report(&fake, &killer.watch, PR_READABLE);
    fake_backend_report(&fake, &old_watch.watch, PR_READABLE);
    turn();
    CHECK_EQUAL(old_watch.calls, 0);
    CHECK_EQUAL(loop.stats.stale_events, 1);
    end();
}

static void the_same_watch_started_again_is_a_new_generation(void)
{
    struct ear ear;
    begin_with_fake();
    start(&ear, 20, PR_READABLE);
    fake_backend_report(&fake, &ear.watch, PR_READABLE);
    uint32_t generation = ear.watch.generation;
    pr_watch_stop(&loop.watches, &ear.watch);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &ear.watch, 20, PR_READABLE), 0);
    CHECK(ear.watch.generation != generation);
    turn();
    CHECK_EQUAL(ear.calls, 0);
    end();
}

/* The same with the kernel: both descriptors are ready, and the first to hear kills the other. */
static int real_pairs[2][2], third_pair[2];
static struct ear real_ears[2], real_new;

static void close_the_other_and_reuse_its_number(struct ear *ear)
{
    int other = ear == &real_ears[0];
    int fd = real_ears[other].watch.fd;
    pr_watch_stop(&loop.watches, &real_ears[other].watch);
    REQUIRE_EQUAL(dup2(third_pair[0], fd), fd); /* closes and reuses in one */
    init_ear(&real_new);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &real_new.watch, fd, PR_READABLE), 0);
    ear->then = NULL;
}

static void a_descriptor_number_reused_in_its_batch_hears_of_itself_only(void)
{
    begin();
    open_pair(third_pair);
    for (int i = 0; i < 2; i++) {
        open_pair(real_pairs[i]);
        init_ear(&real_ears[i]);
        real_ears[i].then = close_the_other_and_reuse_its_number;
        REQUIRE_EQUAL(
            pr_watch_start(&loop.watches, &real_ears[i].watch, real_pairs[i][0], PR_READABLE), 0);
        REQUIRE_EQUAL(write(real_pairs[i][1], "x", 1), 1);
    }
    turn();
    CHECK_EQUAL(real_ears[0].calls + real_ears[1].calls, 1);
    CHECK_EQUAL(real_new.calls, 0);
    CHECK_EQUAL(loop.stats.stale_events, 1);
    REQUIRE_EQUAL(write(third_pair[1], "x", 1), 1);
    turn();
    CHECK_EQUAL(real_new.calls, 1);
    end();
    for (int i = 0; i < 2; i++) {
        close(real_pairs[i][0]);
        close(real_pairs[i][1]);
        close(third_pair[i]);
    }
}

static void an_event_for_a_descriptor_never_watched_is_dropped(void)
{
    begin_with_fake();
    fake.events[0] = (struct pr_ready_event){.fd = 9999, .generation = 0, .events = PR_READABLE};
    fake.events[1] = (struct pr_ready_event){.fd = 21, .generation = 0, .events = PR_READABLE};
    fake.event_count = 2;
    turn();
    CHECK_EQUAL(loop.stats.stale_events, 2);
    end();
}

int main(void)
{
    RUN(starting_tells_the_backend_once);
    RUN(starting_for_nothing_yet_asks_nothing);
    RUN(a_descriptor_has_one_watch_at_a_time);
    RUN(a_negative_descriptor_is_refused);
    RUN(a_start_that_fails_leaves_the_watch_stopped);
    RUN(stopping_tells_the_backend_once_and_may_be_repeated);
    RUN(stopping_after_the_descriptor_was_closed_is_harmless);
    RUN(the_table_grows_and_keeps_its_watches);
    RUN(only_wanted_events_are_heard);
    RUN(pausing_and_resuming_asks_the_backend_nothing);
    RUN(wanting_more_tells_the_backend_at_once);
    RUN(a_want_that_fails_changes_nothing);
    RUN(an_unwanted_event_leads_to_one_update_and_no_call);
    RUN(an_event_that_is_half_wanted_is_heard_by_half);
    RUN(an_edge_that_nobody_wants_stays_registered);
    RUN(edges_of_both_directions_stay_registered_together);
    RUN(room_to_write_that_nobody_wants_is_unregistered);
    RUN(a_watch_may_give_way_to_another);
    RUN(a_watch_may_refuse_to_give_way);
    RUN(renewing_tells_the_backend_at_once_of_a_new_generation);
    RUN(renewing_what_the_kernel_does_not_know_asks_it_for_nothing);
    RUN(an_event_from_before_a_renewal_is_stale);
    RUN(renewing_finds_a_descriptor_closed_and_reused_meanwhile);
    RUN(a_hang_up_while_paused_does_not_spin);
    RUN(a_stale_event_of_the_same_batch_never_reaches_the_new_watch);
    RUN(a_stale_event_of_a_stopped_watch_is_dropped);
    RUN(the_same_watch_started_again_is_a_new_generation);
    RUN(a_descriptor_number_reused_in_its_batch_hears_of_itself_only);
    RUN(an_event_for_a_descriptor_never_watched_is_dropped);
    return check_status();
}
