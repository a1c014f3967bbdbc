/*
 * What the dispatchers are made of: the handle set, the thread set and the way the lead is handed
 * over, the pump, the trace, and the source of signals.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "pyreactor/clock.h"
#include "pyreactor/handle_set.h"
#include "pyreactor/pump.h"
#include "pyreactor/signal_source.h"
#include "pyreactor/thread_set.h"
#include "pyreactor/trace.h"

#define PATIENCE_NS (20 * PR_NS_PER_SECOND) /* after this long something was lost */
#define THREADS 4
#define PAIRS 8
#define EVENTS 4000

static struct pr_demux *demux;
static struct pr_handle_set handles;

static void begin(int events_per_wait)
{
    REQUIRE_EQUAL(pr_demux_new(pr_demux_find("epoll"), &demux), 0);
    pr_handle_set_init(&handles, demux, NULL, events_per_wait);
}

static void end(void)
{
    pr_handle_set_deinit(&handles);
    pr_demux_free(demux);
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

static void send_byte(int fd)
{
    REQUIRE_EQUAL(write(fd, "x", 1), 1);
}

static uint32_t add(int fd, uint32_t wanted, uint32_t flags)
{
    uint32_t generation = 0;
    REQUIRE_EQUAL(pr_handle_set_register(&handles, fd, wanted, flags, &generation), 0);
    return generation;
}

static int take_out(int fd)
{
    uint32_t generation;
    return pr_handle_set_remove(&handles, fd, &generation);
}

static void check_next(struct pr_event *event, int fd)
{
    REQUIRE_EQUAL(pr_handle_set_wait(&handles, event, PATIENCE_NS), 1);
    CHECK_EQUAL(event->fd, fd);
}

static void check_nothing(void)
{
    struct pr_event event;
    CHECK_EQUAL(pr_handle_set_wait(&handles, &event, 0), 0);
}

/* --- The handle set --------------------------------------------------------------------------- */

static void a_handle_is_reported_again_only_when_it_is_complete(void)
{
    int pair[2];
    struct pr_event event;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    send_byte(pair[1]);
    check_next(&event, pair[0]);
    CHECK(pr_handle_set_is_wanted(&handles, &event));
    send_byte(pair[1]);
    check_nothing();
    CHECK_EQUAL(pr_handle_set_modify(&handles, pair[0], PR_READABLE), 0); /* busy all the same */
    check_nothing();
    CHECK(pr_handle_set_is_busy(&handles, pair[0]));
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 0);
    CHECK(!pr_handle_set_is_busy(&handles, pair[0]));
    check_next(&event, pair[0]);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 0);
    close_pair(pair);
    end();
}

static void what_is_removed_while_busy_is_out_when_it_is_complete(void)
{
    int pair[2];
    uint32_t generation;
    struct pr_event event;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    CHECK_EQUAL(take_out(pair[0]), 0);
    CHECK_EQUAL(take_out(pair[0]), -ENOENT);
    add(pair[0], PR_READABLE, 0);
    send_byte(pair[1]);
    check_next(&event, pair[0]);
    CHECK_EQUAL(take_out(pair[0]), 1);
    CHECK_EQUAL(take_out(pair[0]), -ENOENT);
    CHECK(!pr_handle_set_is_wanted(&handles, &event));
    CHECK_EQUAL(pr_handle_set_register(&handles, pair[0], PR_READABLE, 0, &generation), -EEXIST);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1);
    add(pair[0], PR_READABLE, 0);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1); /* of the registration before */
    check_next(&event, pair[0]);
    close_pair(pair);
    end();
}

static void a_number_that_comes_again_hears_nothing_of_its_former_life(void)
{
    int pairs[2][2];
    struct pr_event event, later;
    begin(8);
    for (int i = 0; i < 2; i++) {
        open_pair(pairs[i]);
        add(pairs[i][0], PR_READABLE, 0);
        send_byte(pairs[i][1]);
    }
    REQUIRE_EQUAL(pr_handle_set_wait(&handles, &event, PATIENCE_NS), 1); /* one more is fetched */
    int other = event.fd == pairs[0][0] ? 1 : 0;
    CHECK_EQUAL(take_out(pairs[other][0]), 1);
    check_next(&later, pairs[other][0]);
    CHECK(!pr_handle_set_is_wanted(&handles, &later));
    CHECK_EQUAL(pr_handle_set_complete(&handles, &later), 1);
    close_pair(pairs[0]);
    close_pair(pairs[1]);
    end();
}

static void a_suspended_handle_is_silent_until_it_is_resumed(void)
{
    int pair[2];
    struct pr_event event;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    CHECK_EQUAL(pr_handle_set_suspend(&handles, pair[0]), 0);
    send_byte(pair[1]);
    check_nothing();
    CHECK_EQUAL(pr_handle_set_resume(&handles, pair[0]), 0);
    check_next(&event, pair[0]);
    CHECK_EQUAL(pr_handle_set_suspend(&handles, pair[0]), 0);
    CHECK(!pr_handle_set_is_wanted(&handles, &event));
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 0);
    check_nothing();
    CHECK_EQUAL(pr_handle_set_resume(&handles, pair[0]), 0);
    check_next(&event, pair[0]);
    CHECK_EQUAL(pr_handle_set_suspend(&handles, 9999), -ENOENT);
    close_pair(pair);
    end();
}

static void what_nobody_wants_is_not_reported(void)
{
    int pair[2];
    struct pr_event event;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    close(pair[1]);
    REQUIRE_EQUAL(demux->ops->wait(demux, handles.found, 8, PATIENCE_NS), 1);
    CHECK_EQUAL(pr_handle_set_modify(&handles, pair[0], 0), 0);
    check_nothing();
    CHECK_EQUAL(pr_handle_set_modify(&handles, pair[0], PR_READABLE), 0);
    check_next(&event, pair[0]);
    CHECK_EQUAL(event.events, PR_READABLE);
    close(pair[0]);
    end();
}

/* A demultiplexer in whose wait another thread changes its mind: the event is on its way already.
 */
static int wait_meanwhile(struct pr_demux *unused, struct pr_ready_event *events, int capacity,
                          int64_t timeout_ns)
{
    int count = pr_demux_epoll_ops.wait(unused, events, capacity, timeout_ns);
    for (int i = 0; i < count; i++)
        REQUIRE_EQUAL(pr_handle_set_modify(&handles, events[i].fd, 0), 0);
    return count;
}

static void an_event_that_was_on_its_way_is_dropped(void)
{
    int pair[2];
    struct pr_event event;
    struct pr_demux_ops ops = pr_demux_epoll_ops;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    close(pair[1]);
    ops.wait = wait_meanwhile;
    demux->ops = &ops;
    CHECK_EQUAL(pr_handle_set_wait(&handles, &event, PATIENCE_NS), 0);
    demux->ops = &pr_demux_epoll_ops;
    CHECK_EQUAL(pr_handle_set_modify(&handles, pair[0], PR_READABLE), 0);
    check_next(&event, pair[0]);
    close(pair[0]);
    end();
}

static void a_refused_handle_is_out(void)
{
    int pair[2];
    struct pr_event event;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    send_byte(pair[1]);
    check_next(&event, pair[0]);
    close_pair(pair);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1);
    CHECK(!pr_handle_set_has(&handles, pair[0]));
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1);
    end();
}

static void an_event_drops_only_its_own_handle(void)
{
    int pair[2];
    struct pr_event event, later;
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, 0);
    send_byte(pair[1]);
    check_next(&event, pair[0]);
    pr_handle_set_drop(&handles, &event);
    pr_handle_set_drop(&handles, &event);
    CHECK(!pr_handle_set_has(&handles, pair[0]));
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1);
    add(pair[0], PR_READABLE, 0);
    pr_handle_set_drop(&handles, &event); /* of the registration before */
    check_next(&later, pair[0]);
    close_pair(pair);
    end();
}

static void the_waiter_adds_what_others_register(void)
{
    int both[2][2];
    struct pr_event event;
    begin(8);
    pr_handle_set_let_waiter_add(&handles);
    for (int i = 0; i < 2; i++) {
        open_pair(both[i]);
        add(both[i][0], PR_READABLE, 0);
        send_byte(both[i][1]);
    }
    CHECK_EQUAL(demux->ops->remove(demux, both[0][0]), -ENOENT); /* it is not told yet */
    CHECK_EQUAL(take_out(both[0][0]), 0);
    add(both[0][0], 0, 0);
    CHECK_EQUAL(pr_handle_set_modify(&handles, both[0][0], PR_READABLE), 0);
    CHECK_EQUAL(take_out(both[1][0]), 0);
    while (pr_handle_set_wait(&handles, &event, PATIENCE_NS) == 0)
        ; /* woken to add them */
    CHECK_EQUAL(event.fd, both[0][0]);
    check_nothing();
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 0);

    close_pair(both[1]);
    add(both[1][0], PR_READABLE, 0); /* which is not open: an event with nothing ready */
    while (pr_handle_set_wait(&handles, &event, PATIENCE_NS) == 1 && event.events != 0)
        CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 0);
    CHECK_EQUAL(event.fd, both[1][0]);
    CHECK_EQUAL(event.events, 0);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &event), 1);
    close_pair(both[0]);
    end();
}

static void a_closed_set_refuses_everything(void)
{
    int pair[2];
    uint32_t generation;
    struct pr_event event;
    struct pr_timer timer = {.heap_index = PR_TIMER_IDLE};
    begin(8);
    open_pair(pair);
    add(pair[0], PR_READABLE, PR_HANDLE_CHANNEL);
    REQUIRE_EQUAL(pr_handle_set_write(&handles, pair[0], "x", 1), 1);
    REQUIRE_EQUAL(pr_handle_set_start_timer(&handles, &timer), 0);
    pr_handle_set_close(&handles);
    pr_handle_set_close(&handles);
    CHECK_EQUAL(pr_handle_set_register(&handles, pair[0], 0, 0, &generation), -ESHUTDOWN);
    CHECK_EQUAL(take_out(pair[0]), -ESHUTDOWN);
    CHECK_EQUAL(pr_handle_set_modify(&handles, pair[0], 0), -ESHUTDOWN);
    CHECK_EQUAL(pr_handle_set_resume(&handles, pair[0]), -ESHUTDOWN);
    CHECK_EQUAL(pr_handle_set_write(&handles, pair[0], "x", 1), -ESHUTDOWN);
    CHECK(!pr_handle_set_cancel_timer(&handles, &timer));
    timer.heap_index = PR_TIMER_IDLE;
    CHECK_EQUAL(pr_handle_set_start_timer(&handles, &timer), -ESHUTDOWN);
    CHECK_EQUAL(pr_handle_set_wait(&handles, &event, -1), -ESHUTDOWN);
    CHECK(!pr_handle_set_has(&handles, pair[0]));
    pr_handle_set_wake(&handles);
    close_pair(pair);
    end();
}

static void timers_come_by_deadline_and_never_early(void)
{
    struct pr_timer timers[3];
    struct pr_event event;
    begin(8);
    int64_t start_ns = pr_now_ns();
    for (int i = 0; i < 3; i++) {
        timers[i] = (struct pr_timer){.deadline_ns = start_ns + (3 - i) * PR_NS_PER_MS,
                                      .heap_index = PR_TIMER_IDLE,
                                      .callback.owner = (void *)(uintptr_t)(i + 1)};
        REQUIRE_EQUAL(pr_handle_set_start_timer(&handles, &timers[i]), 0);
    }
    CHECK(pr_handle_set_cancel_timer(&handles, &timers[1]));
    CHECK(!pr_handle_set_cancel_timer(&handles, &timers[1]));
    for (int i = 2; i >= 0; i -= 2) {
        while (pr_handle_set_wait(&handles, &event, PATIENCE_NS) == 0)
            ; /* woken by the start of the timers */
        CHECK_EQUAL(event.fd, -1);
        CHECK_EQUAL(event.timer_id, i + 1);
        CHECK_AT_LEAST(pr_now_ns(), timers[i].deadline_ns);
    }
    end();
}

/* --- The thread set --------------------------------------------------------------------------- */

static struct pr_thread_set threads;
static atomic_int handled;
static atomic_int in_handler[PAIRS];
static int pairs[PAIRS][2];

static void *take_turns(void *argument)
{
    struct pr_member *member = argument;
    struct pr_event event;
    char byte;
    pr_member_init(member);
    for (;;) {
        int result = pr_thread_set_next(&threads, &handles, member, &event);
        if (result == -ESHUTDOWN)
            break;
        if (result == -EINTR)
            continue;
        REQUIRE_EQUAL(result, 1);
        CHECK_EQUAL(atomic_load(&member->state), PR_PROCESSING);
        int index = 0;
        while (pairs[index][0] != event.fd)
            index++;
        CHECK_EQUAL(atomic_fetch_add(&in_handler[index], 1), 0); /* one thread at a time */
        REQUIRE_EQUAL(read(event.fd, &byte, 1), 1);
        atomic_fetch_sub(&in_handler[index], 1);
        REQUIRE_EQUAL(pr_handle_set_complete(&handles, &event), 0);
        atomic_fetch_add(&handled, 1);
    }
    pr_thread_set_leave(&threads, member);
    return NULL;
}

/* Everything that was sent is handled once, and at any time one thread leads at most. */
static void hand_the_lead_over(bool delegating, int events_per_wait)
{
    struct pr_member members[THREADS] = {0};
    pthread_t ids[THREADS];
    uint64_t led = 0, total = 0;
    begin(events_per_wait);
    pr_thread_set_init(&threads, NULL, delegating);
    atomic_store(&handled, 0);
    for (int i = 0; i < PAIRS; i++) {
        open_pair(pairs[i]);
        add(pairs[i][0], PR_READABLE, 0);
    }
    for (int i = 0; i < THREADS; i++)
        REQUIRE_EQUAL(pthread_create(&ids[i], NULL, take_turns, &members[i]), 0);
    for (int i = 0; i < EVENTS; i++) {
        send_byte(pairs[i % PAIRS][1]);
        while (i - atomic_load(&handled) > 100) /* the sockets' buffers have an end */
            sched_yield();
    }
    int64_t deadline_ns = pr_now_ns() + PATIENCE_NS;
    while (atomic_load(&handled) < EVENTS && pr_now_ns() < deadline_ns)
        sched_yield();
    pr_thread_set_close(&threads);
    pr_handle_set_wake(&handles);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(ids[i], NULL);
        led += atomic_load(&members[i].led);
        total += atomic_load(&members[i].handled);
    }
    CHECK_EQUAL(atomic_load(&handled), EVENTS);
    CHECK_EQUAL(led, EVENTS);
    CHECK_EQUAL(total, EVENTS);
    CHECK_EQUAL(atomic_load(&threads.violations), 0);
    CHECK_EQUAL(atomic_load(&threads.promotions) + atomic_load(&threads.delegations), EVENTS);
    for (int i = 0; i < PAIRS; i++)
        close_pair(pairs[i]);
    pr_thread_set_deinit(&threads);
    end();
}

static void the_lead_goes_round(void)
{
    hand_the_lead_over(false, PR_EVENTS_PER_WAIT_MAX);
}

static void the_lead_goes_round_event_by_event(void)
{
    hand_the_lead_over(false, 1);
}

static void the_leader_stays_where_it_delegates(void)
{
    hand_the_lead_over(true, PR_EVENTS_PER_WAIT_MAX);
}

static void only_the_leader_leads(void)
{
    struct pr_member first, second;
    struct pr_event event = {.fd = -1};
    pr_thread_set_init(&threads, NULL, false);
    pr_member_init(&first);
    pr_member_init(&second);
    CHECK_EQUAL(pr_thread_set_promote(&threads, &first), -EPERM);
    CHECK_EQUAL(pr_thread_set_join(&threads, &first, &event, -1), 0);
    CHECK_EQUAL(pr_thread_set_join(&threads, &first, &event, -1), 0); /* it is already */
    CHECK_EQUAL(pr_thread_set_join(&threads, &second, &event, PR_NS_PER_MS), -ETIMEDOUT);
    CHECK_EQUAL(pr_thread_set_promote(&threads, &second), -EPERM);
    CHECK_EQUAL(pr_thread_set_delegate(&threads, &second, &event, NULL), -EPERM);
    CHECK_EQUAL(pr_thread_set_delegate(&threads, &first, &event, NULL), -EAGAIN);
    CHECK_EQUAL(pr_thread_set_promote(&threads, &first), 0);
    CHECK_EQUAL(atomic_load(&first.state), PR_PROCESSING);
    CHECK_EQUAL(pr_thread_set_join(&threads, &second, &event, -1), 0);
    CHECK_EQUAL(pr_thread_set_join(&threads, &first, &event, PR_NS_PER_MS), -ETIMEDOUT);
    CHECK_EQUAL(atomic_load(&first.state), PR_FOLLOWER);
    pr_thread_set_close(&threads);
    CHECK_EQUAL(pr_thread_set_join(&threads, &first, &event, -1), -ESHUTDOWN);
    pr_thread_set_leave(&threads, &second);
    CHECK_EQUAL(atomic_load(&threads.violations), 0);
    pr_thread_set_deinit(&threads);
}

static bool follows(const struct pr_member *member)
{
    pthread_mutex_lock(&threads.lock);
    bool sleeping = member->sleeping;
    pthread_mutex_unlock(&threads.lock);
    return sleeping;
}

static void *follow(void *argument)
{
    struct pr_event event;
    return (void *)(intptr_t)pr_thread_set_join(&threads, argument, &event, PATIENCE_NS);
}

static void a_follower_can_be_interrupted_before_it_sleeps_and_while_it_does(void)
{
    struct pr_member leader, follower;
    struct pr_event event;
    pthread_t id;
    void *result;
    pr_thread_set_init(&threads, NULL, false);
    pr_member_init(&leader);
    pr_member_init(&follower);
    CHECK_EQUAL(pr_thread_set_join(&threads, &leader, &event, -1), 0);
    pr_thread_set_interrupt(&threads, &follower);
    CHECK_EQUAL(pr_thread_set_join(&threads, &follower, &event, PATIENCE_NS), -EINTR);
    CHECK_EQUAL(pr_thread_set_join(&threads, &follower, &event, PR_NS_PER_MS), -ETIMEDOUT);
    REQUIRE_EQUAL(pthread_create(&id, NULL, follow, &follower), 0);
    while (!follows(&follower))
        sched_yield();
    pr_thread_set_interrupt(&threads, &follower);
    pthread_join(id, &result);
    CHECK_EQUAL((intptr_t)result, -EINTR);
    pr_thread_set_interrupt(&threads, &leader); /* who does not sleep here */
    CHECK_EQUAL(pr_thread_set_promote(&threads, &leader), 0);
    CHECK_EQUAL(pr_thread_set_join(&threads, &leader, &event, -1), 0);
    CHECK_EQUAL(atomic_load(&threads.violations), 0);
    pr_thread_set_deinit(&threads);
}

/* --- The pump --------------------------------------------------------------------------------- */

static void *run_pump(void *argument)
{
    struct pr_event event;
    int result;
    while ((result = pr_pump_next(argument, &event)) == -EINTR)
        ;
    CHECK_EQUAL(result, 0);
    return NULL;
}

static void take(struct pr_request_queue *queue, struct pr_work *work)
{
    struct pr_request request;
    REQUIRE_EQUAL(pr_pump_take(queue, &request), 0);
    REQUIRE(pr_pump_read(&request, NULL, work));
}

static void a_channel_is_read_to_its_end_and_written_by_the_pump(void)
{
    int pair[2];
    char reply[16];
    struct pr_pump pump = {.set = &handles, .index = 3};
    struct pr_request_queue *queue;
    struct pr_request request;
    struct pr_work work;
    pthread_t id;
    begin(8);
    REQUIRE_EQUAL(pr_request_queue_new(&queue, "mpmc", 16, 0), 0);
    pump.queue = queue;
    open_pair(pair);
    uint32_t generation = add(pair[0], PR_READABLE, PR_HANDLE_CHANNEL);
    REQUIRE_EQUAL(write(pair[1], "question", 8), 8);
    REQUIRE_EQUAL(pthread_create(&id, NULL, run_pump, &pump), 0);

    take(queue, &work);
    REQUIRE(work.transfer != NULL);
    CHECK_EQUAL(work.event.fd, pair[0]);
    CHECK_EQUAL(work.event.generation, generation);
    CHECK_EQUAL(work.pump_index, 3);
    CHECK_BYTES(work.transfer->data, work.transfer->size, "question", 8);
    CHECK(!work.transfer->ended);
    free(work.transfer);
    REQUIRE_EQUAL(pr_handle_set_write(&handles, pair[0], "answer", 6), 6);
    CHECK(pr_handle_set_close_when_written(&handles, pair[0]));
    REQUIRE_EQUAL(pr_handle_set_complete(&handles, &work.event), 0);

    take(queue, &work); /* all is written */
    CHECK_SAME(work.transfer, NULL);
    CHECK_EQUAL(work.event.events, 0);
    CHECK_EQUAL(read(pair[1], reply, sizeof reply), 6);
    CHECK_EQUAL(take_out(pair[0]), 1);
    CHECK_EQUAL(pr_handle_set_complete(&handles, &work.event), 1);

    pr_pump_stop(&pump);
    pthread_join(id, NULL);
    queue->ops->close(queue);
    CHECK_EQUAL(pr_pump_take(queue, &request), -ESHUTDOWN);
    queue->ops->free(queue);
    close_pair(pair);
    end();
}

static void a_channel_whose_peer_does_not_read_is_not_read_until_all_is_written(void)
{
    static char bulk[4 * PR_UNSENT_BYTES_MAX];
    struct pr_request_queue *queue;
    struct pr_work work;
    pthread_t id;
    int pair[2];
    begin(1);
    REQUIRE_EQUAL(pr_request_queue_new(&queue, "mpmc", 8, 0), 0);
    struct pr_pump pump = {.set = &handles, .queue = queue};
    open_pair(pair);
    add(pair[0], PR_READABLE, PR_HANDLE_CHANNEL);
    send_byte(pair[1]);
    REQUIRE_EQUAL(pthread_create(&id, NULL, run_pump, &pump), 0);

    take(queue, &work);
    free(work.transfer);
    REQUIRE_EQUAL(pr_handle_set_write(&handles, pair[0], bulk, sizeof bulk), sizeof bulk);
    REQUIRE_EQUAL(pr_handle_set_report_written(&handles, pair[0], true), 0);
    REQUIRE_EQUAL(pr_handle_set_complete(&handles, &work.event), 0);
    send_byte(pair[1]); /* more to read, and nobody took what was written */
    for (size_t left = sizeof bulk; left > 0;) {
        ssize_t got = read(pair[1], bulk, left);
        if (got > 0)
            left -= (size_t)got;
        else
            sched_yield();
    }
    take(queue, &work); /* that it is written, and not yet what there is to be read */
    CHECK_SAME(work.transfer, NULL);
    CHECK_EQUAL(work.event.events, PR_WRITABLE);
    REQUIRE_EQUAL(pr_handle_set_complete(&handles, &work.event), 0);
    take(queue, &work);
    REQUIRE(work.transfer != NULL);
    CHECK_EQUAL(work.transfer->size, 1);
    free(work.transfer);

    /* With nothing to be written it is reported at once; what can be read goes first. */
    REQUIRE_EQUAL(pr_handle_set_report_written(&handles, pair[0], false), 0);
    send_byte(pair[1]);
    REQUIRE_EQUAL(pr_handle_set_complete(&handles, &work.event), 0);
    take(queue, &work);
    CHECK_SAME(work.transfer, NULL);
    REQUIRE_EQUAL(pr_handle_set_report_written(&handles, pair[0], true), 0);
    REQUIRE_EQUAL(pr_handle_set_complete(&handles, &work.event), 0);
    take(queue, &work);
    REQUIRE(work.transfer != NULL);
    free(work.transfer);

    pr_pump_stop(&pump);
    pthread_join(id, NULL);
    queue->ops->free(queue);
    close_pair(pair);
    end();
}

static void a_full_queue_lets_signals_through_and_keeps_the_request(void)
{
    int both[2][2];
    struct pr_pump pump = {.set = &handles};
    struct pr_request_queue *queue;
    struct pr_event event;
    struct pr_work work;
    begin(8);
    REQUIRE_EQUAL(pr_request_queue_new(&queue, "mpmc", 1, 0), 0);
    pump.queue = queue;
    for (int i = 0; i < 2; i++) {
        open_pair(both[i]);
        add(both[i][0], PR_READABLE, 0);
        send_byte(both[i][1]);
    }
    CHECK_EQUAL(pr_pump_next(&pump, &event), -EINTR); /* one was put, one waits for room */
    CHECK(pump.has_pending);
    CHECK_EQUAL(pr_pump_next(&pump, &event), -EINTR);
    CHECK_EQUAL(pr_pump_unhandled(&pump), 1);
    take(queue, &work);
    int first = work.event.fd;
    pr_pump_stop(&pump);
    CHECK_EQUAL(pr_pump_next(&pump, &event), 0); /* it is put before the end */
    CHECK_EQUAL(pr_pump_unhandled(&pump), 2);
    pr_pump_handled(&pump);
    take(queue, &work);
    CHECK_EQUAL(work.event.fd, first == both[0][0] ? both[1][0] : both[0][0]);
    pr_pump_handled(&pump);
    pr_pump_deinit(&pump);
    CHECK_EQUAL(pr_pump_unhandled(&pump), 0);
    queue->ops->free(queue);
    close_pair(both[0]);
    close_pair(both[1]);
    end();
}

static void what_is_pending_is_released_with_the_queue_or_the_pump(void)
{
    for (int by_queue = 0; by_queue < 2; by_queue++) {
        int pair[2];
        struct pr_pump pump = {.set = &handles};
        struct pr_request_queue *queue;
        struct pr_event event;
        begin(8);
        REQUIRE_EQUAL(pr_request_queue_new(&queue, "mpmc", 1, 0), 0);
        REQUIRE_EQUAL(queue->ops->try_put(queue, &(struct pr_request){.fd = -1}, 1), 1);
        pump.queue = queue;
        open_pair(pair);
        add(pair[0], PR_READABLE, PR_HANDLE_CHANNEL);
        send_byte(pair[1]);
        CHECK_EQUAL(pr_pump_next(&pump, &event), -EINTR);
        CHECK(pump.has_pending);
        if (by_queue) {
            queue->ops->close(queue);
            CHECK_EQUAL(pr_pump_next(&pump, &event), -ESHUTDOWN);
            CHECK(!pump.has_pending);
        }
        pr_pump_deinit(&pump);
        queue->ops->free(queue);
        close_pair(pair);
        end();
    }
}

static int listen_somewhere(struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t size = sizeof *address;
    *address =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    REQUIRE_EQUAL(bind(fd, (struct sockaddr *)address, sizeof *address), 0);
    REQUIRE_EQUAL(getsockname(fd, (struct sockaddr *)address, &size), 0);
    REQUIRE_EQUAL(listen(fd, 16), 0);
    return fd;
}

/* A loop without room is passed over; where all are, the listener waits and other events do not. */
static void connections_go_to_the_loops_that_have_room(void)
{
    enum { LOOPS = 2, CLIENTS = 6 };
    struct sockaddr_in address;
    struct pr_loop_place places[LOOPS];
    struct pr_pump pump = {.set = &handles, .places = places, .place_count = LOOPS};
    struct pr_event event;
    struct pr_request request;
    int clients[CLIENTS], pair[2];
    begin(8);
    for (int i = 0; i < LOOPS; i++) {
        places[i] = (struct pr_loop_place){.set = &handles};
        REQUIRE_EQUAL(pr_request_queue_new(&places[i].connections, "spsc", i == 0 ? 1 : 4, 0), 0);
    }
    int listener = listen_somewhere(&address);
    add(listener, PR_READABLE, PR_HANDLE_SPREAD);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE_EQUAL(connect(clients[i], (struct sockaddr *)&address, sizeof address), 0);
    }
    open_pair(pair);
    send_byte(pair[1]);
    add(pair[0], PR_READABLE, 0);
    int result;
    while ((result = pr_pump_next(&pump, &event)) == 0)
        ; /* woken by itself: the loops' set is its own */
    REQUIRE_EQUAL(result, 1);
    CHECK_EQUAL(event.fd, pair[0]); /* although nobody takes the connections */
    while (pump.handed_over < 5)
        (void)pr_pump_next(&pump, &event);
    CHECK_EQUAL(places[0].connections->ops->depth(places[0].connections), 1);
    CHECK_EQUAL(places[1].connections->ops->depth(places[1].connections), 4);
    REQUIRE_EQUAL(places[0].connections->ops->try_get(places[0].connections, &request, 1), 1);
    pr_request_release(&request);
    while (pump.handed_over < CLIENTS)
        (void)pr_pump_next(&pump, &event);
    CHECK_EQUAL(places[0].connections->ops->depth(places[0].connections), 1);
    for (int i = 0; i < LOOPS; i++)
        places[i].connections->ops->free(places[i].connections);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    close(listener);
    close_pair(pair);
    end();
}

/* --- The trace -------------------------------------------------------------------------------- */

static struct pr_trace trace;

static void *write_steps(void *argument)
{
    (void)argument;
    pr_trace_set_role(PR_ROLE_WORKER);
    for (int i = 0; i < 2 * PR_TRACE_STEPS_MAX; i++)
        pr_trace_note(&trace, PR_ACTION_HANDLE, i, 0);
    return NULL;
}

static void steps_are_read_in_the_order_of_time_or_counted_as_lost(void)
{
    struct pr_step steps[64];
    pthread_t ids[2];
    size_t count, total = 0;
    int64_t time_ns = 0;
    pr_trace_init(&trace);
    pr_trace_note(&trace, PR_ACTION_HANDLE, 1, 0); /* it is off */
    CHECK_EQUAL(pr_trace_read(&trace, steps, 64), 0);
    atomic_store(&trace.on, true);
    for (int i = 0; i < 2; i++)
        REQUIRE_EQUAL(pthread_create(&ids[i], NULL, write_steps, NULL), 0);
    total += pr_trace_read(&trace, steps, 64); /* while they write */
    for (int i = 0; i < 2; i++)
        pthread_join(ids[i], NULL);
    while ((count = pr_trace_read(&trace, steps, 64)) > 0) {
        total += count;
        for (size_t i = 0; i < count; i++) {
            CHECK_AT_LEAST(steps[i].time_ns, time_ns);
            CHECK_EQUAL(steps[i].role, PR_ROLE_WORKER);
            time_ns = steps[i].time_ns;
        }
    }
    CHECK_EQUAL(total + atomic_load(&trace.lost), 4 * PR_TRACE_STEPS_MAX);
    pr_trace_deinit(&trace);
}

/* --- Signals ---------------------------------------------------------------------------------- */

static atomic_bool strays;

static void *be_a_stray(void *argument)
{
    sigset_t none;
    (void)argument;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    struct timespec moment = {.tv_nsec = PR_NS_PER_MS};
    while (atomic_load(&strays))
        nanosleep(&moment, NULL);
    return NULL;
}

/* ThreadSanitizer keeps no more than one signal of a number for a thread that it interrupts. */
#ifdef __SANITIZE_THREAD__
enum { SIGNALS = 500, SIGNALS_AT_ONCE = 1 };
#else
enum { SIGNALS = 500, SIGNALS_AT_ONCE = SIGNALS };
#endif

/* Real-time signals are counted, although a thread of the process does not block them. */
static void every_signal_comes_to_the_source(void)
{
    struct pr_signal_source source;
    pthread_t stray;
    int numbers[16], count, sent = 0, total = 0;
    atomic_store(&strays, true);
    REQUIRE_EQUAL(pthread_create(&stray, NULL, be_a_stray, NULL), 0);
    REQUIRE_EQUAL(pr_signal_source_init(&source), 0);
    REQUIRE_EQUAL(pr_signal_source_add(&source, SIGRTMIN + 3), 0);
    CHECK_EQUAL(pr_signal_source_add(&source, SIGRTMIN + 3), -EEXIST);
    CHECK_EQUAL(pr_signal_source_add(&source, SIGKILL), -EINVAL);
    CHECK_EQUAL(pr_signal_source_add(&source, 0), -EINVAL);
    int64_t deadline_ns = pr_now_ns() + PATIENCE_NS;
    while (total < SIGNALS && pr_now_ns() < deadline_ns) {
        for (; sent < SIGNALS && sent < total + SIGNALS_AT_ONCE; sent++) {
            union sigval value = {.sival_int = sent};
            REQUIRE_EQUAL(sigqueue(getpid(), SIGRTMIN + 3, value), 0);
        }
        count = pr_signal_source_read(&source, numbers, 16);
        REQUIRE(count >= 0);
        for (int i = 0; i < count; i++)
            CHECK_EQUAL(numbers[i], SIGRTMIN + 3);
        total += count;
    }
    CHECK_EQUAL(total, SIGNALS);
    CHECK_EQUAL(pr_signal_source_read(&source, numbers, 16), 0);
    CHECK_EQUAL(pr_signal_source_remove(&source, SIGRTMIN + 3), 0);
    CHECK_EQUAL(pr_signal_source_remove(&source, SIGRTMIN + 3), -ENOENT);
    pr_signal_source_deinit(&source);
    atomic_store(&strays, false);
    pthread_join(stray, NULL);
}

int main(void)
{
    RUN(a_handle_is_reported_again_only_when_it_is_complete);
    RUN(what_is_removed_while_busy_is_out_when_it_is_complete);
    RUN(a_number_that_comes_again_hears_nothing_of_its_former_life);
    RUN(a_suspended_handle_is_silent_until_it_is_resumed);
    RUN(what_nobody_wants_is_not_reported);
    RUN(an_event_that_was_on_its_way_is_dropped);
    RUN(a_refused_handle_is_out);
    RUN(an_event_drops_only_its_own_handle);
    RUN(the_waiter_adds_what_others_register);
    RUN(a_closed_set_refuses_everything);
    RUN(timers_come_by_deadline_and_never_early);
    RUN(only_the_leader_leads);
    RUN(a_follower_can_be_interrupted_before_it_sleeps_and_while_it_does);
    RUN(the_lead_goes_round);
    RUN(the_lead_goes_round_event_by_event);
    RUN(the_leader_stays_where_it_delegates);
    RUN(a_channel_is_read_to_its_end_and_written_by_the_pump);
    RUN(a_channel_whose_peer_does_not_read_is_not_read_until_all_is_written);
    RUN(a_full_queue_lets_signals_through_and_keeps_the_request);
    RUN(what_is_pending_is_released_with_the_queue_or_the_pump);
    RUN(connections_go_to_the_loops_that_have_room);
    RUN(steps_are_read_in_the_order_of_time_or_counted_as_lost);
    RUN(every_signal_comes_to_the_source);
    return check_status();
}
