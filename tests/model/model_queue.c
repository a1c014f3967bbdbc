/*
 * The ring, the parker and the queue made of them, in every order: the sources themselves, not a
 * model of them.
 */
#include "../../csrc/queue/ring_queue.c"

#include <stdio.h>

#include "explorer.h"

/* The ring. */

static struct pr_ring ring;
static int results[4][4]; /* of each thread: the numbers it popped, or errors */

static int push(int number)
{
    struct pr_request request = {.fd = number};
    return pr_ring_push(&ring, &request, 1);
}

static int pop(void)
{
    struct pr_request request;
    int result = pr_ring_pop(&ring, &request, 1);
    return result < 0 ? result : request.fd;
}

static size_t ring_capacity;
static uint64_t ring_position; /* where the ring begins: laps are all the same */

static void set_up_ring(void)
{
    memset(results, 0, sizeof results);
    for (size_t i = 0; i < ring_capacity; i++)
        ring.slots[i] = (struct pr_ring_slot){.sequence = pr_ring_free_for(i)};
    atomic_init(&ring.tail, ring_position);
    atomic_init(&ring.head, ring_position);
}

static void share_ring(size_t capacity)
{
    static const char *const names[] = {"slot 0", "slot 1"};
    ring_capacity = capacity;
    explorer_forget();
    if (pr_ring_init(&ring, capacity) < 0)
        abort();
    explorer_atomic(&ring.tail, "tail");
    explorer_atomic(&ring.head, "head");
    for (size_t i = 0; i < capacity; i++)
        explorer_atomic(&ring.slots[i].sequence, names[i]);
    explorer_plain(ring.slots, capacity * sizeof *ring.slots);
    explorer_plain(results, sizeof results);
}

static void push_3(void)
{
    results[1][0] = push(3);
}

static void pop_c(void)
{
    results[2][0] = pop();
}

static void pop_d(void)
{
    results[3][0] = pop();
}

/* Pushed and popped once each; what nobody popped is still there, and nothing was made up. */
static void check_once(void)
{
    int pushed[5] = {0}, popped[5] = {0};
    for (int producer = 0; producer < 2; producer++)
        for (int i = 0; i < 2; i++) {
            int result = results[producer][i]; /* 0: was not tried */
            EXPLORER_CHECK(result == 1 || result == -EAGAIN || result == 0);
            pushed[2 * producer + i + 1] = results[producer][i] == 1;
        }
    for (int consumer = 2; consumer < 4; consumer++) {
        int *got = results[consumer];
        for (int i = 0; i < 2; i++) {
            EXPLORER_CHECK((got[i] >= 0 && got[i] <= 4) || got[i] == -EAGAIN);
            if (got[i] > 0)
                popped[got[i]]++;
        }
        EXPLORER_CHECK(!(got[0] == 2 && got[1] == 1));
        EXPLORER_CHECK(!(got[0] == 4 && got[1] == 3));
    }
    int last[2] = {0};
    for (int number = pop(); number != -EAGAIN; number = pop()) {
        EXPLORER_CHECK(number >= 1 && number <= 4);
        popped[number]++;
        EXPLORER_CHECK(number > last[(number - 1) / 2]);
        last[(number - 1) / 2] = number;
    }
    for (int i = 1; i <= 4; i++)
        EXPLORER_CHECK(popped[i] == pushed[i]);
}

static void push_1(void)
{
    results[0][0] = push(1);
}

static void push_2_and_pop(void)
{
    results[1][0] = push(2);
    results[1][1] = pop();
}

/* Who has pushed, and is alone in popping, is never told that the ring is empty. */
static void check_not_empty(void)
{
    EXPLORER_CHECK(results[0][0] == 1);
    EXPLORER_CHECK(results[1][0] == 1);
    EXPLORER_CHECK(results[1][1] == 1 || results[1][1] == 2);
    EXPLORER_CHECK(pop() == 3 - results[1][1]);
}

static void set_up_full_ring(void)
{
    set_up_ring();
    push(3);
    push(4);
}

static void pop_and_push_5(void)
{
    results[3][0] = pop();
    results[3][1] = push(5);
}

/* Who has popped, and is alone in pushing, is never told that the ring is full. */
static void check_not_full(void)
{
    EXPLORER_CHECK(results[2][0] + results[3][0] == 7);
    EXPLORER_CHECK(results[3][1] == 1);
    EXPLORER_CHECK(pop() == 5);
    EXPLORER_CHECK(pop() == -EAGAIN);
}

static void close_ring(void)
{
    pr_ring_close(&ring);
}

static void push_2(void)
{
    results[1][0] = push(2);
}

/* A consumer that is told "closed" leaves nothing behind. */
static void drain(void)
{
    int got;
    do {
        got = pop();
        if (got > 0)
            results[3][0]++;
        if (got == -EAGAIN)
            sched_yield();
    } while (got != -ESHUTDOWN);
}

static void check_drained(void)
{
    EXPLORER_CHECK(results[3][0] == (results[0][0] == 1) + (results[1][0] == 1));
    EXPLORER_CHECK(pop() == -ESHUTDOWN);
    EXPLORER_CHECK(push(9) == -ESHUTDOWN);
}

static void push_batch(void)
{
    struct pr_request requests[2] = {{.fd = 1}, {.fd = 2}};
    results[0][0] = pr_ring_push(&ring, requests, 2);
}

static void pop_batch(void)
{
    struct pr_request requests[2];
    int count = pr_ring_pop(&ring, requests, 2);
    results[2][0] = count > 0 ? requests[0].fd : count;
    results[2][1] = count > 1 ? requests[1].fd : -EAGAIN;
}

static void check_batch(void)
{
    int next = 1;
    EXPLORER_CHECK(results[0][0] == 2 || results[1][0] == 1);
    if (results[0][0] == 2 && results[1][0] < 0 && results[2][0] > 0) {
        EXPLORER_CHECK(results[2][0] == next++);
        if (results[2][1] > 0)
            EXPLORER_CHECK(results[2][1] == next++);
        if (next == 2)
            EXPLORER_CHECK(pop() == 2);
        EXPLORER_CHECK(pop() == -EAGAIN);
    }
}

static void explore_ring(void)
{
    share_ring(2);
    explorer_run(&(struct scenario){
        .name = "ring, 2 slots: 2 producers, 2 consumers",
        .setup = set_up_ring,
        .threads = {push_1, push_3, pop_c, pop_d},
        .check = check_once,
        .stale_loads = 2,
    });
    explorer_run(&(struct scenario){
        .name = "ring, 2 slots: a producer is never told that it is empty",
        .setup = set_up_ring,
        .threads = {push_1, push_2_and_pop},
        .check = check_not_empty,
        .stale_loads = 30,
    });
    explorer_run(&(struct scenario){
        .name = "ring, 2 slots: a consumer is never told that it is full",
        .setup = set_up_full_ring,
        .threads = {pop_c, pop_and_push_5},
        .check = check_not_full,
        .stale_loads = 30,
    });
    explorer_run(&(struct scenario){
        .name = "ring, 2 slots: batches",
        .setup = set_up_ring,
        .threads = {push_batch, push_2, pop_batch},
        .check = check_batch,
        .stale_loads = 30,
    });
    explorer_run(&(struct scenario){
        .name = "ring, 2 slots: closed among 2 producers and a consumer",
        .setup = set_up_ring,
        .threads = {push_1, push_2, close_ring, drain},
        .check = check_drained,
        .stale_loads = 30,
    });
    share_ring(1);
    explorer_run(&(struct scenario){
        .name = "ring, 1 slot: 2 producers, 2 consumers",
        .setup = set_up_ring,
        .threads = {push_1, push_3, pop_c, pop_d},
        .check = check_once,
        .stale_loads = 30,
    });
}

/* The parker. */

static struct pr_parker parker;
static _Atomic(uint64_t) things;
static int64_t taken[2];

static void set_up_parker(void)
{
    pr_parker_init(&parker, 0);
    atomic_init(&things, 0);
    taken[0] = taken[1] = 0;
}

static bool look(void *argument)
{
    (void)argument;
    return atomic_load_explicit(&things, memory_order_seq_cst) > 0;
}

static int take(int64_t deadline_ns)
{
    for (;;) {
        uint64_t count = atomic_load_explicit(&things, memory_order_relaxed);
        while (count > 0)
            if (atomic_compare_exchange_weak(&things, &count, count - 1))
                return 1;
        int error = pr_park(&parker, look, NULL, deadline_ns);
        if (error == -ETIMEDOUT)
            return error;
    }
}

static void take_a(void)
{
    taken[0] = take(INT64_MAX);
}

static void take_b(void)
{
    taken[1] = take(INT64_MAX);
}

static void take_b_or_time_out(void)
{
    taken[1] = take(1);
}

static void bring(void)
{
    atomic_fetch_add_explicit(&things, 1, memory_order_seq_cst);
    pr_unpark(&parker, 1);
}

static void bring_two(void)
{
    atomic_fetch_add_explicit(&things, 2, memory_order_seq_cst);
    pr_unpark(&parker, 2);
}

static void check_taken(void)
{
    EXPLORER_CHECK(taken[0] == 1);
    EXPLORER_CHECK(taken[1] == 1 || taken[1] == -ETIMEDOUT);
    EXPLORER_CHECK(atomic_load(&things) == (taken[1] == 1 ? 0u : 1u));
    EXPLORER_CHECK(atomic_load(&parker.state) == 0);
}

static void check_both_taken(void)
{
    EXPLORER_CHECK(taken[1] == 1);
    check_taken();
}

static void explore_parker(void)
{
    explorer_forget();
    explorer_atomic(&parker.state, "32:parker");
    explorer_atomic(&things, "things");
    explorer_plain(taken, sizeof taken);
    explorer_run(&(struct scenario){
        .name = "parker: 2 sleepers, 2 that wake one",
        .setup = set_up_parker,
        .threads = {take_a, take_b, bring, bring},
        .check = check_both_taken,
    });
    explorer_run(&(struct scenario){
        .name = "parker: 2 sleepers, one that wakes two",
        .setup = set_up_parker,
        .threads = {take_a, take_b, bring_two},
        .check = check_both_taken,
        .stale_loads = 30,
    });
    explorer_run(&(struct scenario){
        .name = "parker: 2 sleepers, 2 that wake one, signals",
        .setup = set_up_parker,
        .threads = {take_a, take_b, bring, bring},
        .check = check_both_taken,
        .interrupts = 1,
    });
    explorer_run(&(struct scenario){
        .name = "parker: 2 sleepers of which one has a deadline",
        .setup = set_up_parker,
        .threads = {take_a, take_b_or_time_out, bring, bring},
        .check = check_taken,
        .timeouts = 1,
    });
}

/* The queue. */

static struct pr_request_queue *queue;
static struct ring_queue *self;
static struct ring_queue image; /* as it was made */
static char slots_image[2 * sizeof(struct pr_ring_slot)];

static void put(int thread, int number)
{
    struct pr_request request = {.fd = number};
    int result;
    do
        result = pr_request_queue_put(queue, &request, 1, INT64_MAX);
    while (result == -EINTR);
    results[thread][number % 2] = result;
}

static int get(void)
{
    struct pr_request request;
    int result;
    do
        result = pr_request_queue_get(queue, &request, 1, INT64_MAX);
    while (result == -EINTR);
    return result < 0 ? result : request.fd;
}

static size_t slots_bytes(void)
{
    return queue->ops == &pr_spsc_queue_ops ? queue->capacity * sizeof(struct pr_request)
                                            : queue->capacity * sizeof(struct pr_ring_slot);
}

static void *slots(void)
{
    return queue->ops == &pr_spsc_queue_ops ? (void *)self->spsc.slots : (void *)self->mpmc.slots;
}

static void set_up_queue(void)
{
    memset(results, 0, sizeof results);
    memcpy(self, &image, sizeof image);
    memcpy(slots(), slots_image, slots_bytes());
}

static void share_queue(const char *kind, size_t capacity)
{
    explorer_forget();
    if (pr_request_queue_new(&queue, kind, capacity, 0) < 0)
        abort();
    self = ring_queue_of(queue);
    memcpy(&image, self, sizeof image);
    memcpy(slots_image, slots(), slots_bytes());
    /* The counters and the bells' counts, which are 0, are left out: nothing depends on them. */
    explorer_atomic(&self->producers.parker.state, "32:producers");
    explorer_atomic(&self->consumers.parker.state, "32:consumers");
    if (queue->ops == &pr_spsc_queue_ops) {
        explorer_atomic(&self->spsc.tail, "tail");
        explorer_atomic(&self->spsc.head, "head");
        explorer_plain(&self->spsc.head_seen, sizeof self->spsc.head_seen);
        explorer_plain(&self->spsc.tail_seen, sizeof self->spsc.tail_seen);
    } else {
        explorer_atomic(&self->mpmc.tail, "tail");
        explorer_atomic(&self->mpmc.head, "head");
        for (size_t i = 0; i < capacity; i++)
            explorer_atomic(&self->mpmc.slots[i].sequence, i ? "slot 1" : "slot 0");
    }
    explorer_plain(slots(), slots_bytes());
    explorer_plain(results, sizeof results);
}

static void put_1(void)
{
    put(0, 1);
}

static void put_2(void)
{
    put(1, 2);
}

static void put_1_2(void)
{
    put(0, 1);
    put(0, 2);
}

static void get_c(void)
{
    results[2][0] = get();
}

static void get_d(void)
{
    results[3][0] = get();
}

static void get_c_twice(void)
{
    results[2][0] = get();
    results[2][1] = get();
}

static void get_b_twice(void)
{
    results[1][0] = get();
    results[1][1] = get();
}

static void check_parkers(void)
{
    EXPLORER_CHECK(atomic_load(&self->producers.parker.state) == 0);
    EXPLORER_CHECK(atomic_load(&self->consumers.parker.state) == 0);
}

static void check_two_gets(void)
{
    EXPLORER_CHECK(results[2][0] + results[3][0] == 3);
    EXPLORER_CHECK(results[2][0] * results[3][0] == 2);
    check_parkers();
}

static void check_two_in_a_row(void)
{
    EXPLORER_CHECK(results[2][0] + results[2][1] == 3);
    EXPLORER_CHECK(results[2][0] * results[2][1] == 2);
    check_parkers();
}

static void check_in_order(void)
{
    EXPLORER_CHECK(results[1][0] == 1 && results[1][1] == 2);
    check_parkers();
}

static void close_queue(void)
{
    queue->ops->close(queue);
}

static void get_until_closed(void)
{
    int got;
    while ((got = get()) > 0)
        results[3][0]++;
    results[3][1] = got;
}

static void check_closed(void)
{
    EXPLORER_CHECK(results[3][0] == (results[0][0] == 1) + (results[0][1] == 1));
    EXPLORER_CHECK(results[3][1] == -ESHUTDOWN);
    check_parkers();
}

static void explore_queue(void)
{
    share_queue("mpmc", 1);
    explorer_run(&(struct scenario){
        .name = "queue, 1 slot: a producer that puts twice, 2 consumers",
        .setup = set_up_queue,
        .threads = {put_1_2, get_d, get_c},
        .check = check_two_gets,
    });
    explorer_run(&(struct scenario){
        .name = "queue, 1 slot: 2 producers, a consumer that gets twice",
        .setup = set_up_queue,
        .threads = {put_1, put_2, get_c_twice},
        .check = check_two_in_a_row,
    });
    explorer_run(&(struct scenario){
        .name = "queue, 1 slot: closed among a producer and a consumer",
        .setup = set_up_queue,
        .threads = {put_1_2, close_queue, get_until_closed},
        .check = check_closed,
    });
    share_queue("spsc", 1);
    explorer_run(&(struct scenario){
        .name = "queue for two, 1 slot: 2 items, signals",
        .setup = set_up_queue,
        .threads = {put_1_2, get_b_twice},
        .check = check_in_order,
        .interrupts = 1,
        .stale_loads = 30,
    });
    explorer_run(&(struct scenario){
        .name = "queue for two, 1 slot: closed meanwhile",
        .setup = set_up_queue,
        .threads = {put_1_2, close_queue, get_until_closed},
        .check = check_closed,
    });
}

int main(int argc, char **argv)
{
    if (argc > 1)
        explorer_select(argv[1]);
    explore_ring();
    explore_parker();
    explore_queue();
    return 0;
}
