/*
 * The loop: what one turn does and in which order, how it sleeps and wakes, how it ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "fake_backend.h"
#include "pyreactor/clock.h"
#include "pyreactor/loop.h"

#define LOG_MAX 64

static struct pr_loop loop;
static struct fake_backend fake;
static char what_ran[LOG_MAX]; /* a letter for each thing that ran, in order */

static void note(char letter)
{
    size_t length = strlen(what_ran);
    REQUIRE(length + 1 < LOG_MAX);
    what_ran[length] = letter;
}

static void forget_what_ran(void)
{
    memset(what_ran, 0, sizeof what_ran);
}

static void begin(void)
{
    REQUIRE_EQUAL(pr_loop_init(&loop, "auto"), 0);
    forget_what_ran();
}

static void begin_with_fake(void)
{
    begin();
    fake_backend_install(&fake, &loop);
    fake_backend_forget(&fake);
}

static void end(void)
{
    pr_loop_deinit(&loop);
}

/* A callback, a timer and a watch that leave a letter, do something more and return `result`. */
struct actor {
    struct pr_timer timer;
    struct pr_watch watch;
    struct pr_flush flush;
    char letter;
    int result;
    void (*then)(struct actor *actor);
    struct actor *next; /* for `then` */
};

static int act(struct actor *actor)
{
    note(actor->letter);
    if (actor->then)
        actor->then(actor);
    return actor->result;
}

static int run_actor(struct pr_callback *callback)
{
    return act(callback->owner);
}

static int actor_on_ready(struct pr_watch *watch, uint32_t events)
{
    (void)events;
    return act(watch->owner);
}

static int run_actor_flush(struct pr_flush *flush)
{
    return act((struct actor *)((char *)flush - offsetof(struct actor, flush)));
}

static struct actor new_actor(char letter)
{
    return (struct actor){.letter = letter,
                          .timer = {.heap_index = PR_TIMER_IDLE, .callback.run = run_actor},
                          .flush.run = run_actor_flush};
}

static struct pr_callback *callback_of(struct actor *actor)
{
    actor->timer.callback.owner = actor;
    return &actor->timer.callback;
}

static void call_soon(struct actor *actor)
{
    REQUIRE_EQUAL(pr_loop_call_soon(&loop, callback_of(actor)), 0);
}

static void call_at(struct actor *actor, int64_t deadline_ns)
{
    (void)callback_of(actor);
    actor->timer.deadline_ns = deadline_ns;
    REQUIRE_EQUAL(pr_loop_start_timer(&loop, &actor->timer), 0);
}

static void watch(struct actor *actor, int fd)
{
    pr_watch_init(&actor->watch, actor_on_ready, actor);
    REQUIRE_EQUAL(pr_watch_start(&loop.watches, &actor->watch, fd, PR_READABLE), 0);
}

static void then_call_next(struct actor *actor)
{
    call_soon(actor->next);
}

static void then_add_flush(struct actor *actor)
{
    pr_loop_add_flush(&loop, &actor->next->flush);
}

static void then_again(struct actor *actor)
{
    call_soon(actor);
}

static int turn(void)
{
    return pr_loop_run_once(&loop, 0);
}

static void open_pair(int pair[2])
{
    REQUIRE_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

static void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

/* --- Order ------------------------------------------------------------------------------------ */

static void callbacks_run_in_the_order_of_their_scheduling(void)
{
    struct actor actors[3] = {new_actor('a'), new_actor('b'), new_actor('c')};
    begin();
    for (int i = 0; i < 3; i++)
        call_soon(&actors[i]);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "abc");
    CHECK_EQUAL(loop.stats.callbacks, 3);
    end();
}

static void a_turn_runs_what_was_ready_then_events_then_timers(void)
{
    struct actor ready = new_actor('r'), event = new_actor('e'), timer = new_actor('t');
    int pair[2];
    begin();
    open_pair(pair);
    watch(&event, pair[0]);
    REQUIRE_EQUAL(write(pair[1], "x", 1), 1);
    call_at(&timer, pr_now_ns());
    call_soon(&ready);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "ret");
    end();
    close_pair(pair);
}

static void what_is_scheduled_meanwhile_runs_in_the_next_turn(void)
{
    struct actor late[3] = {new_actor('1'), new_actor('2'), new_actor('3')};
    struct actor ready = new_actor('r'), event = new_actor('e'), timer = new_actor('t');
    struct actor *actors[3] = {&ready, &event, &timer};
    begin_with_fake();
    for (int i = 0; i < 3; i++) {
        actors[i]->then = then_call_next;
        actors[i]->next = &late[i];
    }
    watch(&event, 20);
    fake_backend_report(&fake, &event.watch, PR_READABLE);
    call_at(&timer, pr_now_ns());
    call_soon(&ready);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "ret");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "ret123");
    end();
}

static void then_start_a_due_timer(struct actor *actor)
{
    call_at(actor->next, pr_now_ns() - PR_NS_PER_SECOND);
}

static void a_timer_due_at_its_start_runs_in_the_next_turn(void)
{
    struct actor first = new_actor('a'), timer = new_actor('t');
    begin();
    first.then = then_start_a_due_timer;
    first.next = &timer;
    call_soon(&first);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "a");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "at");
    end();
}

static void due_timers_run_by_deadline_and_then_by_their_coming(void)
{
    struct actor actors[4] = {new_actor('c'), new_actor('a'), new_actor('d'), new_actor('b')};
    int64_t now_ns = pr_now_ns();
    begin();
    call_at(&actors[0], now_ns);
    call_at(&actors[1], now_ns - 2);
    call_at(&actors[2], now_ns);
    call_at(&actors[3], now_ns - 1);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "abcd");
    CHECK_EQUAL(loop.timers.count, 0);
    end();
}

/* --- The end of a turn ------------------------------------------------------------------------ */

static void a_result_that_is_not_zero_ends_the_turn_and_leaves_the_rest(void)
{
    struct actor actors[4] = {new_actor('a'), new_actor('b'), new_actor('c'), new_actor('d')};
    begin();
    actors[1].result = 7;
    for (int i = 0; i < 4; i++)
        call_soon(&actors[i]);
    CHECK_EQUAL(turn(), 7);
    CHECK_TEXT(what_ran, "ab");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "abcd");
    end();
}

static void a_turn_that_ended_early_loses_no_event_and_no_timer(void)
{
    struct actor ready = new_actor('r'), event = new_actor('e'), timer = new_actor('t');
    int pair[2];
    begin();
    open_pair(pair);
    watch(&event, pair[0]);
    REQUIRE_EQUAL(write(pair[1], "x", 1), 1);
    call_at(&timer, pr_now_ns());
    ready.result = 1;
    call_soon(&ready);
    CHECK_EQUAL(turn(), 1);
    CHECK_TEXT(what_ran, "r");
    CHECK_EQUAL(turn(), 0);
    CHECK_EQUAL(strlen(what_ran), 3);
    CHECK(strchr(what_ran, 'e') && strchr(what_ran, 't'));
    end();
    close_pair(pair);
}

static void an_event_that_ends_the_turn_leaves_the_other_events(void)
{
    struct actor events[2] = {new_actor('e'), new_actor('e')};
    struct actor timer = new_actor('t');
    int pairs[2][2];
    begin();
    for (int i = 0; i < 2; i++) {
        open_pair(pairs[i]);
        events[i].result = 3;
        watch(&events[i], pairs[i][0]);
        REQUIRE_EQUAL(write(pairs[i][1], "x", 1), 1);
    }
    call_at(&timer, pr_now_ns());
    CHECK_EQUAL(turn(), 3);
    CHECK_TEXT(what_ran, "e");
    events[0].result = events[1].result = 0;
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "ete"); /* each event once, before anything new is asked for */
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "eteee"); /* nobody has read */
    end();
    close_pair(pairs[0]);
    close_pair(pairs[1]);
}

static void a_failing_wait_is_reported_and_runs_nothing(void)
{
    struct actor ready = new_actor('r');
    begin_with_fake();
    call_soon(&ready);
    fake.wait_error = -EBADF;
    CHECK_EQUAL(turn(), -EBADF);
    CHECK_TEXT(what_ran, "");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "r");
    end();
}

/* --- Flushes ---------------------------------------------------------------------------------- */

static void a_flush_runs_before_the_next_callback(void)
{
    struct actor first = new_actor('a'), second = new_actor('b'), flushed = new_actor('f');
    begin();
    first.then = then_add_flush;
    first.next = &flushed;
    call_soon(&first);
    call_soon(&second);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "afb");
    end();
}

static void a_flush_runs_after_a_callback_that_ended_the_turn(void)
{
    struct actor first = new_actor('a'), second = new_actor('b'), flushed = new_actor('f');
    begin();
    first.then = then_add_flush;
    first.next = &flushed;
    first.result = 5;
    flushed.result = 6;
    call_soon(&first);
    call_soon(&second);
    CHECK_EQUAL(turn(), 5); /* the callback's own result counts */
    CHECK_TEXT(what_ran, "af");
    end();
}

static void a_flush_runs_after_events_and_timers_too(void)
{
    struct actor event = new_actor('e'), timer = new_actor('t'), flushed = new_actor('f');
    begin_with_fake();
    event.then = timer.then = then_add_flush;
    event.next = timer.next = &flushed;
    watch(&event, 20);
    fake_backend_report(&fake, &event.watch, PR_READABLE);
    call_at(&timer, pr_now_ns());
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "eftf");
    end();
}

static struct actor *flushes_to_add;

static void then_add_three_flushes(struct actor *actor)
{
    (void)actor;
    for (int i = 0; i < 3; i++) {
        pr_loop_add_flush(&loop, &flushes_to_add[i].flush);
        pr_loop_add_flush(&loop, &flushes_to_add[i].flush); /* twice is once */
    }
}

static void a_flush_that_ends_the_turn_does_not_hold_back_the_others(void)
{
    struct actor first = new_actor('a'), second = new_actor('b');
    struct actor flushes[3] = {new_actor('1'), new_actor('2'), new_actor('3')};
    begin();
    flushes_to_add = flushes;
    flushes[0].result = 4;
    first.then = then_add_three_flushes;
    call_soon(&first);
    call_soon(&second);
    CHECK_EQUAL(turn(), 4);
    CHECK_TEXT(what_ran, "a123");
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "a123b");
    end();
}

static void a_flush_may_ask_for_another(void)
{
    struct actor first = new_actor('a'), flushed = new_actor('f'), more = new_actor('g');
    begin();
    first.then = flushed.then = then_add_flush;
    first.next = &flushed;
    flushed.next = &more;
    call_soon(&first);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "afg");
    end();
}

static void then_take_back_the_second_flush(struct actor *actor)
{
    then_add_three_flushes(actor);
    pr_loop_remove_flush(&flushes_to_add[1].flush);
    pr_loop_remove_flush(&flushes_to_add[1].flush);
}

static void a_flush_that_was_removed_does_not_run(void)
{
    struct actor first = new_actor('a');
    struct actor flushes[3] = {new_actor('1'), new_actor('2'), new_actor('3')};
    begin();
    flushes_to_add = flushes;
    first.then = then_take_back_the_second_flush;
    call_soon(&first);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "a13");
    end();
}

/* --- Sleeping --------------------------------------------------------------------------------- */

static void preparing_says_how_long_the_loop_may_sleep(void)
{
    struct actor timer = new_actor('t'), ready = new_actor('r');
    begin();
    CHECK_EQUAL(pr_loop_prepare(&loop), -1);
    call_at(&timer, pr_now_ns() + PR_NS_PER_SECOND);
    int64_t sleep_ns = pr_loop_prepare(&loop);
    CHECK_AT_LEAST(sleep_ns, 1);
    CHECK_AT_MOST(sleep_ns, PR_NS_PER_SECOND);
    call_soon(&ready);
    CHECK_EQUAL(pr_loop_prepare(&loop), 0);
    pr_loop_take_ready(&loop);
    pr_timer_heap_remove(&loop.timers, &timer.timer);
    CHECK_EQUAL(pr_loop_prepare(&loop), -1);
    call_at(&timer, pr_now_ns());
    CHECK_EQUAL(pr_loop_prepare(&loop), 0);
    end();
}

static void a_limit_caps_the_sleep(void)
{
    struct actor timer = new_actor('t');
    begin_with_fake();
    CHECK_EQUAL(pr_loop_run_once(&loop, 12345), 0);
    CHECK_EQUAL(fake.timeout_ns, 12345);
    call_at(&timer, pr_now_ns() + PR_NS_PER_SECOND);
    CHECK_EQUAL(pr_loop_run_once(&loop, 12345), 0);
    CHECK_EQUAL(fake.timeout_ns, 12345);
    CHECK_EQUAL(pr_loop_run_once(&loop, -1), 0);
    CHECK_AT_LEAST(fake.timeout_ns, 12346);
    CHECK_AT_MOST(fake.timeout_ns, PR_NS_PER_SECOND);
    end();
}

static void a_timer_is_never_early_and_needs_one_turn(void)
{
    static const int64_t delays_ns[] = {1, 30000, PR_NS_PER_MS, 3 * PR_NS_PER_MS + 1};
    begin();
    for (int i = 0; i < 8; i++) {
        struct actor timer = new_actor('t');
        int64_t deadline_ns = pr_now_ns() + delays_ns[i % 4];
        loop.backend.no_nanosecond_wait = i >= 4;
        forget_what_ran();
        call_at(&timer, deadline_ns);
        CHECK_EQUAL(pr_loop_run_once(&loop, -1), 0);
        CHECK_TEXT(what_ran, "t");
        CHECK_AT_LEAST(pr_now_ns(), deadline_ns);
    }
    end();
}

static void the_farthest_deadlines_are_far_and_near(void)
{
    struct actor never = new_actor('n'), at_once = new_actor('o');
    begin();
    call_at(&never, INT64_MAX);
    CHECK_AT_LEAST(pr_loop_prepare(&loop), PR_NS_PER_SECOND);
    call_at(&at_once, INT64_MIN);
    CHECK_EQUAL(pr_loop_prepare(&loop), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "o");
    end();
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void a_signal_ends_the_sleep_and_is_no_error(void)
{
    struct sigaction action = {.sa_handler = on_alarm}, old_action;
    struct itimerval often = {.it_value = {.tv_usec = 5000}, .it_interval = {.tv_usec = 5000}};
    struct itimerval never = {.it_value = {.tv_sec = 0}};
    begin();
    REQUIRE_EQUAL(sigaction(SIGALRM, &action, &old_action), 0);
    REQUIRE_EQUAL(setitimer(ITIMER_REAL, &often, NULL), 0);
    CHECK_EQUAL(pr_loop_run_once(&loop, -1), 0);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old_action, NULL);
    end();
}

static void polls_that_find_nothing_are_left_out_while_the_loop_is_busy(void)
{
    struct actor busy = new_actor('b');
    begin_with_fake();
    busy.then = then_again;
    call_soon(&busy);
    for (int i = 0; i < PR_EMPTY_POLLS_MAX; i++) {
        forget_what_ran();
        CHECK_EQUAL(turn(), 0);
        CHECK_EQUAL(fake.wait_count, i + 1);
    }
    int64_t last_ns = loop.polled_ns;
    int left_out = 0, polls = fake.wait_count;
    while (polls < PR_EMPTY_POLLS_MAX + 20) {
        forget_what_ran();
        CHECK_EQUAL(turn(), 0);
        CHECK_TEXT(what_ran, "b"); /* the turn itself is never left out */
        if (fake.wait_count == polls) {
            left_out++;
            REQUIRE(loop.now_ns - last_ns < PR_POLL_INTERVAL_NS);
        } else {
            REQUIRE(loop.polled_ns - last_ns >= PR_POLL_INTERVAL_NS);
            last_ns = loop.polled_ns;
            polls = fake.wait_count;
        }
    }
    CHECK_AT_LEAST(left_out, 1);
    CHECK_EQUAL(loop.stats.polls, polls);
    end();
}

static void a_poll_that_finds_something_makes_every_turn_poll_again(void)
{
    struct actor busy = new_actor('b'), event = new_actor('e');
    begin_with_fake();
    watch(&event, 20);
    busy.then = then_again;
    call_soon(&busy);
    while (fake.wait_count < PR_EMPTY_POLLS_MAX + 1) {
        forget_what_ran();
        CHECK_EQUAL(turn(), 0);
    }
    fake_backend_report(&fake, &event.watch, PR_READABLE);
    for (forget_what_ran(); !strchr(what_ran, 'e'); CHECK_EQUAL(turn(), 0))
        forget_what_ran();
    fake_backend_forget(&fake);
    for (int i = 0; i < PR_EMPTY_POLLS_MAX; i++) {
        forget_what_ran();
        CHECK_EQUAL(turn(), 0);
        CHECK_EQUAL(fake.wait_count, i + 1);
    }
    end();
}

static void a_wait_that_may_sleep_is_never_left_out(void)
{
    begin_with_fake();
    loop.empty_polls = PR_EMPTY_POLLS_MAX + 1;
    loop.polled_ns = pr_now_ns() + PR_NS_PER_SECOND;
    CHECK_EQUAL(pr_loop_run_once(&loop, 1), 0);
    CHECK_EQUAL(fake.wait_count, 1);
    end();
}

/* --- Other threads ---------------------------------------------------------------------------- */

static void what_was_posted_runs_in_the_next_turn(void)
{
    struct actor posted = new_actor('p'), ready = new_actor('r');
    begin_with_fake();
    call_soon(&ready);
    pr_loop_post(&loop, callback_of(&posted));
    CHECK_EQUAL(pr_loop_run_once(&loop, -1), 0);
    CHECK_EQUAL(fake.timeout_ns, 0);
    CHECK_TEXT(what_ran, "rp");
    end();
}

static void *post_from_a_thread(void *argument)
{
    pr_loop_post(&loop, argument);
    return NULL;
}

static void a_post_wakes_a_loop_that_sleeps(void)
{
    begin();
    for (int i = 0; i < 20; i++) {
        struct actor posted = new_actor('p');
        pthread_t thread;
        forget_what_ran();
        REQUIRE_EQUAL(pthread_create(&thread, NULL, post_from_a_thread, callback_of(&posted)), 0);
        while (!what_ran[0])
            REQUIRE_EQUAL(pr_loop_run_once(&loop, -1), 0);
        CHECK_TEXT(what_ran, "p");
        pthread_join(thread, NULL);
    }
    end();
}

/* Between prepare and wait the loop has looked at its inbox already. */
static void a_post_between_prepare_and_wait_keeps_the_loop_awake(void)
{
    struct actor posted = new_actor('p');
    begin_with_fake();
    CHECK_EQUAL(pr_loop_prepare(&loop), -1);
    pr_loop_post(&loop, callback_of(&posted));
    CHECK_EQUAL(pr_loop_wait(&loop, PR_NS_PER_SECOND), 0);
    CHECK_EQUAL(fake.timeout_ns, 0);
    CHECK_EQUAL(pr_loop_dispatch(&loop), 0);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "p");
    end();
}

static void wake_while_it_waits(struct fake_backend *backend)
{
    (void)backend;
    pr_loop_wakeup(&loop);
}

static bool eventfd_is_written(void)
{
    uint64_t count;
    return read(loop.wakeup.fd, &count, sizeof count) > 0;
}

static void a_wakeup_while_the_loop_waits_ends_the_wait(void)
{
    begin_with_fake();
    fake.on_wait = wake_while_it_waits;
    CHECK_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_SECOND), 0);
    CHECK(eventfd_is_written());
    end();
}

/* A signal handler may run there, and nobody else ends the wait. */
static void a_wakeup_between_prepare_and_wait_is_not_lost(void)
{
    begin_with_fake();
    CHECK_EQUAL(pr_loop_prepare(&loop), -1);
    pr_loop_wakeup(&loop);
    CHECK_EQUAL(pr_loop_wait(&loop, PR_NS_PER_SECOND), 0);
    CHECK(fake.timeout_ns == 0 || eventfd_is_written());
    CHECK_EQUAL(pr_loop_dispatch(&loop), 0);
    end();
}

static void scheduled_callbacks_can_be_taken_back(void)
{
    struct actor ready = new_actor('r'), posted = new_actor('p');
    begin();
    pr_loop_post(&loop, callback_of(&posted));
    call_soon(&ready);
    CHECK_SAME(pr_loop_take_ready(&loop), callback_of(&ready));
    CHECK_SAME(pr_loop_take_ready(&loop), callback_of(&posted));
    CHECK_SAME(pr_loop_take_ready(&loop), NULL);
    CHECK_EQUAL(turn(), 0);
    CHECK_TEXT(what_ran, "");
    end();
}

struct visits {
    char letters[LOG_MAX];
    int left; /* before it has seen enough */
};

static int visit(struct pr_callback *callback, void *argument)
{
    struct visits *visits = argument;
    const struct actor *actor = callback->owner;
    visits->letters[strlen(visits->letters)] = actor->letter;
    return --visits->left == 0 ? 9 : 0;
}

static void a_visitor_sees_everything_that_is_scheduled(void)
{
    struct actor ready = new_actor('r'), timer = new_actor('t'), posted = new_actor('p');
    struct visits all = {.left = LOG_MAX}, some = {.left = 2};
    begin();
    for (int i = 0; i < 60; i++) /* so that the queue has come around */
        call_soon(&ready);
    while (pr_loop_take_ready(&loop))
        continue;
    for (int i = 0; i < 10; i++)
        call_soon(&ready);
    call_at(&timer, INT64_MAX);
    pr_loop_post(&loop, callback_of(&posted));
    CHECK_EQUAL(pr_loop_visit_scheduled(&loop, visit, &all), 0);
    CHECK_TEXT(all.letters, "rrrrrrrrrrtp");
    CHECK_EQUAL(pr_loop_visit_scheduled(&loop, visit, &some), 9);
    CHECK_TEXT(some.letters, "rr");
    CHECK_EQUAL(pr_ready_queue_count(&loop.ready), 10); /* it only looks */
    end();
}

/* --- The loop's own life ---------------------------------------------------------------------- */

static int lowest_free_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    close(fd);
    return fd;
}

static void an_unknown_backend_is_refused(void)
{
    int fd = lowest_free_descriptor();
    CHECK_EQUAL(pr_loop_init(&loop, "nonsense"), -ENOTSUP);
    CHECK_EQUAL(lowest_free_descriptor(), fd);
}

static void an_init_that_fails_leaks_nothing(void)
{
    struct rlimit limit, less;
    int lowest = lowest_free_descriptor();
    REQUIRE_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int room = 0; room < 2; room++) { /* the epoll set fails; the eventfd fails */
        less = limit;
        less.rlim_cur = (rlim_t)(lowest + room);
        REQUIRE_EQUAL(setrlimit(RLIMIT_NOFILE, &less), 0);
        int error = pr_loop_init(&loop, "epoll");
        REQUIRE_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
        CHECK_EQUAL(error, -EMFILE);
        CHECK_EQUAL(lowest_free_descriptor(), lowest);
    }
    begin();
    CHECK_EQUAL(turn(), 0);
    end();
}

static void a_loop_gives_its_descriptors_back(void)
{
    int lowest = lowest_free_descriptor();
    begin();
    CHECK(fcntl(loop.wakeup.fd, F_GETFD) & FD_CLOEXEC);
    end();
    CHECK_EQUAL(lowest_free_descriptor(), lowest);
}

/* What the child does with its copy; its exit status. */
static int abandon(struct actor *event)
{
    int set_fd = loop.backend.fd, wakeup_fd = loop.wakeup.fd;
    pr_loop_abandon_after_fork(&loop);
    bool closed = fcntl(set_fd, F_GETFD) < 0 && fcntl(wakeup_fd, F_GETFD) < 0;
    pr_watch_stop(&loop.watches, &event->watch); /* what an owner's end does by itself */
    pr_loop_deinit(&loop);
    return closed ? 0 : 1;
}

static void a_child_that_abandons_the_loop_leaves_the_parents_intact(void)
{
    struct actor event = new_actor('e'), posted = new_actor('p');
    int pair[2], status = -1;
    begin();
    open_pair(pair);
    watch(&event, pair[0]);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        _exit(abandon(&event));
    REQUIRE_EQUAL(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    REQUIRE_EQUAL(write(pair[1], "x", 1), 1);
    CHECK_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_SECOND), 0);
    CHECK_TEXT(what_ran, "e");
    pr_watch_stop(&loop.watches, &event.watch);
    pthread_t thread;
    REQUIRE_EQUAL(pthread_create(&thread, NULL, post_from_a_thread, callback_of(&posted)), 0);
    for (int i = 0; i < 10 && !strchr(what_ran, 'p'); i++)
        CHECK_EQUAL(pr_loop_run_once(&loop, PR_NS_PER_SECOND), 0);
    CHECK_TEXT(what_ran, "ep");
    pthread_join(thread, NULL);
    end();
    close_pair(pair);
}

/* --- Polled by others --------------------------------------------------------------------------
 */

#define PATIENCE_MS 20000

/* Waits for the descriptor as a foreign loop does; then that one turn is made. */
static bool is_readable(int timeout_ms)
{
    struct pollfd poll_fd = {.fd = pr_loop_pollable_fd(&loop), .events = POLLIN};
    REQUIRE(poll_fd.fd >= 0);
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static int pumped_turn(void)
{
    int result = pr_loop_run_once(&loop, 0);
    pr_loop_end_run(&loop);
    return result;
}

/* Turns, each when the descriptor asks for it, until `letters` things ran; then it asks no more. */
static void pump_until(const char *letters)
{
    while (strlen(what_ran) < strlen(letters)) {
        REQUIRE(is_readable(PATIENCE_MS));
        CHECK_EQUAL(pumped_turn(), 0);
    }
    CHECK_TEXT(what_ran, letters);
    for (int i = 0; i < 3 && is_readable(0); i++) /* what a callback has asked for */
        CHECK_EQUAL(pumped_turn(), 0);
    CHECK(!is_readable(0));
}

static int read_and_note(struct pr_watch *watch, uint32_t events)
{
    char byte;
    REQUIRE_EQUAL(read(watch->fd, &byte, 1), 1);
    return actor_on_ready(watch, events);
}

static bool begin_polled(const char *backend)
{
    if (pr_loop_init(&loop, backend) < 0)
        return false;
    forget_what_ran();
    CHECK(!is_readable(0));
    return true;
}

static void its_descriptor_shows_what_there_is_to_do(const char *backend)
{
    struct actor event = new_actor('e'), timer = new_actor('t'), posted = new_actor('p');
    struct actor soon = new_actor('s');
    int pair[2];
    if (!begin_polled(backend))
        SKIP("no such backend here");
    open_pair(pair);
    watch(&event, pair[0]);
    event.watch.on_ready = read_and_note;
    for (int i = 0; i < 3 && is_readable(0); i++) /* the watch may have to be submitted */
        CHECK_EQUAL(pumped_turn(), 0);
    CHECK(!is_readable(0));
    REQUIRE_EQUAL(write(pair[1], "xy", 2), 2);
    pump_until("ee");

    int64_t deadline_ns = pr_now_ns() + 5 * PR_NS_PER_MS;
    call_at(&timer, deadline_ns);
    pr_loop_wakeup(&loop);
    pump_until("eet");
    CHECK_AT_LEAST(pr_now_ns(), deadline_ns);

    pthread_t thread;
    REQUIRE_EQUAL(pthread_create(&thread, NULL, post_from_a_thread, callback_of(&posted)), 0);
    pump_until("eetp");
    pthread_join(thread, NULL);

    call_soon(&soon);
    pr_loop_wakeup(&loop);
    pump_until("eetps");
    pr_watch_stop(&loop.watches, &event.watch);
    end();
    close_pair(pair);
}

static void what_a_turn_leaves_over_keeps_it_readable(const char *backend)
{
    struct actor first = new_actor('1'), second = new_actor('2'), posted = new_actor('p');
    if (!begin_polled(backend))
        SKIP("no such backend here");
    first.result = 9; /* ends the turn */
    call_soon(&first);
    call_soon(&second);
    CHECK_EQUAL(pumped_turn(), 9);
    pump_until("12");
    CHECK_EQUAL(pr_loop_prepare(&loop), -1);
    pr_loop_post(&loop, callback_of(&posted)); /* between a run's turns: nobody is woken */
    pr_loop_end_run(&loop);
    pump_until("12p");
    end();
}

static void its_descriptor_shows_what_there_is_to_do_with_epoll(void)
{
    its_descriptor_shows_what_there_is_to_do("epoll");
}

static void its_descriptor_shows_what_there_is_to_do_with_io_uring(void)
{
    its_descriptor_shows_what_there_is_to_do("io_uring");
}

static void what_a_turn_leaves_over_keeps_it_readable_with_epoll(void)
{
    what_a_turn_leaves_over_keeps_it_readable("epoll");
}

static void what_a_turn_leaves_over_keeps_it_readable_with_io_uring(void)
{
    what_a_turn_leaves_over_keeps_it_readable("io_uring");
}

static void a_backend_without_such_a_descriptor_says_so(void)
{
    begin_with_fake();
    CHECK_EQUAL(pr_loop_pollable_fd(&loop), -ENOTSUP);
    end();
}

int main(void)
{
    RUN(callbacks_run_in_the_order_of_their_scheduling);
    RUN(a_turn_runs_what_was_ready_then_events_then_timers);
    RUN(what_is_scheduled_meanwhile_runs_in_the_next_turn);
    RUN(a_timer_due_at_its_start_runs_in_the_next_turn);
    RUN(due_timers_run_by_deadline_and_then_by_their_coming);

    RUN(a_result_that_is_not_zero_ends_the_turn_and_leaves_the_rest);
    RUN(a_turn_that_ended_early_loses_no_event_and_no_timer);
    RUN(an_event_that_ends_the_turn_leaves_the_other_events);
    RUN(a_failing_wait_is_reported_and_runs_nothing);

    RUN(a_flush_runs_before_the_next_callback);
    RUN(a_flush_runs_after_a_callback_that_ended_the_turn);
    RUN(a_flush_runs_after_events_and_timers_too);
    RUN(a_flush_that_ends_the_turn_does_not_hold_back_the_others);
    RUN(a_flush_may_ask_for_another);
    RUN(a_flush_that_was_removed_does_not_run);

    RUN(preparing_says_how_long_the_loop_may_sleep);
    RUN(a_limit_caps_the_sleep);
    RUN(a_timer_is_never_early_and_needs_one_turn);
    RUN(a_signal_ends_the_sleep_and_is_no_error);
    RUN(polls_that_find_nothing_are_left_out_while_the_loop_is_busy);
    RUN(a_poll_that_finds_something_makes_every_turn_poll_again);
    RUN(a_wait_that_may_sleep_is_never_left_out);

    RUN(what_was_posted_runs_in_the_next_turn);
    RUN(a_post_wakes_a_loop_that_sleeps);
    RUN(a_post_between_prepare_and_wait_keeps_the_loop_awake);
    RUN(a_wakeup_while_the_loop_waits_ends_the_wait);
    RUN(a_wakeup_between_prepare_and_wait_is_not_lost);
    RUN(scheduled_callbacks_can_be_taken_back);
    RUN(a_visitor_sees_everything_that_is_scheduled);

    RUN(an_unknown_backend_is_refused);
    RUN(an_init_that_fails_leaks_nothing);
    RUN(a_loop_gives_its_descriptors_back);
    RUN(a_child_that_abandons_the_loop_leaves_the_parents_intact);
    RUN(the_farthest_deadlines_are_far_and_near);

    RUN(its_descriptor_shows_what_there_is_to_do_with_epoll);
    RUN(its_descriptor_shows_what_there_is_to_do_with_io_uring);
    RUN(what_a_turn_leaves_over_keeps_it_readable_with_epoll);
    RUN(what_a_turn_leaves_over_keeps_it_readable_with_io_uring);
    RUN(a_backend_without_such_a_descriptor_says_so);
    return check_status();
}
