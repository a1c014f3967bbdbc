/*
 * Receiving and sending datagrams.  Readiness comes from the watch; the system calls are here.
 *
 * Neighbours in the queue that go to one UDP target and are equally large leave as one packet that
 * the kernel cuts into datagrams (UDP_SEGMENT, Linux 4.18): most of a small datagram's cost is its
 * way through the network stack, which is gone once for all of them.
 */
#include "pyreactor/datagram.h"

#include <errno.h>
#include <netinet/udp.h>
#include <stdlib.h>

#ifndef UDP_SEGMENT /* younger than the headers of some systems it runs on */
#define UDP_SEGMENT 103
#endif

#define RECEIVED_PER_CALL_MAX 16
#define SENT_PER_CALL_MAX PR_DATAGRAMS_HELD_MAX
#define SEGMENTS_MAX 64            /* what every kernel with UDP_SEGMENT takes */
#define SEGMENTED_BYTES_MAX 65507u /* an IPv4 packet less its headers */
#define CAPACITY_MIN 16

static int update_interest(struct pr_datagram_endpoint *endpoint, bool sending)
{
    uint32_t wanted = (endpoint->reading ? PR_READABLE : 0) | (sending ? PR_WRITABLE : 0);
    return pr_watch_want(&endpoint->loop->watches, &endpoint->watch, wanted);
}

/* True while the kernel's buffer is full and the next send waits for room. */
static bool is_blocked(const struct pr_datagram_endpoint *endpoint)
{
    return endpoint->watch.wanted & PR_WRITABLE;
}

/* --- Receiving ---------------------------------------------------------------------------------*/

struct received {
    struct mmsghdr messages[RECEIVED_PER_CALL_MAX];
    struct iovec vectors[RECEIVED_PER_CALL_MAX];
    struct pr_address sources[RECEIVED_PER_CALL_MAX];
};

/* Returns how many came, or a negative errno. */
static int receive_some(struct pr_datagram_endpoint *endpoint, struct received *received, int most)
{
    for (int i = 0; i < most; i++) {
        received->vectors[i] = (struct iovec){
            .iov_base = endpoint->loop->receive_buffer + (size_t)i * endpoint->datagram_bytes_max,
            .iov_len = endpoint->datagram_bytes_max,
        };
        received->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &received->sources[i].any,
            .msg_namelen = sizeof received->sources[i] - offsetof(struct pr_address, any),
            .msg_iov = &received->vectors[i],
            .msg_iovlen = 1,
        };
    }
    int count =
        recvmmsg(endpoint->watch.fd, received->messages, (unsigned)most, MSG_DONTWAIT, NULL);
    return count < 0 ? -errno : count;
}

/* Hands over what came.  Returns what a handler returned first that was not 0. */
static int hand_over(struct pr_datagram_endpoint *endpoint, struct received *received, int count)
{
    const struct pr_datagram_handler *handler = endpoint->handler;
    int result = 0;
    for (int i = 0; i < count && pr_watch_is_active(&endpoint->watch); i++) {
        const struct mmsghdr *message = &received->messages[i];
        received->sources[i].size = message->msg_hdr.msg_namelen;
        pr_counter_add(&endpoint->loop->stats.bytes_received, message->msg_len);
        int stop = message->msg_hdr.msg_flags & MSG_TRUNC
                       ? handler->on_error(endpoint, -EMSGSIZE, false)
                       : handler->on_received(endpoint, received->vectors[i].iov_base,
                                              message->msg_len, &received->sources[i]);
        result = result ? result : stop;
    }
    return result;
}

static int receive(struct pr_datagram_endpoint *endpoint)
{
    struct received received;
    int most = (int)(PR_RECEIVE_BUFFER_BYTES / endpoint->datagram_bytes_max);
    if (most > RECEIVED_PER_CALL_MAX)
        most = RECEIVED_PER_CALL_MAX;
    for (int taken = 0; taken < PR_DATAGRAMS_PER_TURN_MAX; taken += most) {
        int count = receive_some(endpoint, &received, most);
        if (count == -EAGAIN || count == -EINTR)
            return 0;
        if (count < 0)
            return endpoint->handler->on_error(endpoint, count, false);
        int stop = hand_over(endpoint, &received, count);
        if (stop || count < most || !endpoint->reading)
            return stop;
    }
    return 0;
}

/* --- The queue ---------------------------------------------------------------------------------*/

static struct pr_datagram *slot_at(const struct pr_datagram_endpoint *endpoint, size_t index)
{
    return &endpoint->slots[(endpoint->head + index) & (endpoint->capacity - 1)];
}

static int grow(struct pr_datagram_endpoint *endpoint)
{
    size_t capacity = endpoint->capacity ? endpoint->capacity * 2 : CAPACITY_MIN;
    struct pr_datagram *slots = malloc(capacity * sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < endpoint->count; i++)
        slots[i] = *slot_at(endpoint, i);
    free(endpoint->slots);
    endpoint->slots = slots;
    endpoint->capacity = capacity;
    endpoint->head = 0;
    return 0;
}

/* A new slot at the end, its address still to be filled; NULL without memory. */
static struct pr_datagram *append(struct pr_datagram_endpoint *endpoint, const char *data,
                                  size_t size, void *owner)
{
    if (endpoint->count == endpoint->capacity && grow(endpoint) < 0)
        return NULL;
    struct pr_datagram *datagram = slot_at(endpoint, endpoint->count++);
    datagram->data = data;
    datagram->size = size;
    datagram->owner = owner;
    endpoint->bytes += size + endpoint->overhead_bytes;
    return datagram;
}

static void drop_first(struct pr_datagram_endpoint *endpoint)
{
    struct pr_datagram *datagram = slot_at(endpoint, 0);
    void *owner = datagram->owner;
    endpoint->bytes -= datagram->size + endpoint->overhead_bytes;
    endpoint->head++;
    endpoint->count--;
    endpoint->release(owner); /* last: the queue is whole again, whatever this sets off */
}

static void drop(struct pr_datagram_endpoint *endpoint, size_t count)
{
    while (count-- && endpoint->count)
        drop_first(endpoint);
}

/* --- Sending -----------------------------------------------------------------------------------*/

union segment_control {
    char bytes[CMSG_SPACE(sizeof(uint16_t))];
    struct cmsghdr alignment;
};

struct outgoing {
    struct mmsghdr messages[SENT_PER_CALL_MAX];
    struct iovec vectors[SENT_PER_CALL_MAX];
    union segment_control controls[SENT_PER_CALL_MAX];
    size_t datagrams[SENT_PER_CALL_MAX]; /* in each message */
    int message_count;
};

/* How many of the next `most` datagrams from `index` on can be one message: at least one. */
static size_t run_length(const struct pr_datagram_endpoint *endpoint, size_t index, size_t most)
{
    const struct pr_datagram *first = slot_at(endpoint, index);
    if (first->size == 0 || first->size > endpoint->segment_bytes_max)
        return 1;
    size_t bytes = first->size;
    size_t length = 1;
    for (; length < most && length < SEGMENTS_MAX; length++) {
        const struct pr_datagram *next = slot_at(endpoint, index + length);
        bytes += next->size;
        if (next->by_owner || next->size == 0 || next->size > first->size ||
            bytes > SEGMENTED_BYTES_MAX || !pr_address_equal(&next->target, &first->target))
            break;
        if (next->size < first->size) /* only the last one may be shorter */
            return length + 1;
    }
    return length;
}

static void set_segment_size(struct msghdr *header, union segment_control *control, size_t size)
{
    header->msg_control = control->bytes;
    header->msg_controllen = sizeof control->bytes;
    struct cmsghdr *message = CMSG_FIRSTHDR(header);
    uint16_t segment_bytes = (uint16_t)size;
    message->cmsg_level = SOL_UDP;
    message->cmsg_type = UDP_SEGMENT;
    message->cmsg_len = CMSG_LEN(sizeof segment_bytes);
    memcpy(CMSG_DATA(message), &segment_bytes, sizeof segment_bytes);
}

/* Describes up to `most` datagrams from the front, as far as it may send them itself. */
static void gather(const struct pr_datagram_endpoint *endpoint, struct outgoing *outgoing,
                   size_t most)
{
    outgoing->message_count = 0;
    for (size_t index = 0; index < most && !slot_at(endpoint, index)->by_owner;) {
        struct pr_datagram *first = slot_at(endpoint, index);
        size_t length = run_length(endpoint, index, most - index);
        for (size_t i = index; i < index + length; i++) {
            const struct pr_datagram *datagram = slot_at(endpoint, i);
            outgoing->vectors[i] =
                (struct iovec){.iov_base = (void *)datagram->data, .iov_len = datagram->size};
        }
        int number = outgoing->message_count++;
        struct msghdr *header = &outgoing->messages[number].msg_hdr;
        *header = (struct msghdr){
            .msg_name = first->target.size ? &first->target.any : NULL,
            .msg_namelen = first->target.size,
            .msg_iov = &outgoing->vectors[index],
            .msg_iovlen = length,
        };
        if (length > 1)
            set_segment_size(header, &outgoing->controls[number], first->size);
        outgoing->datagrams[number] = length;
        index += length;
    }
}

/* Errors that may be about the large packet and not about the datagrams in it: the path's MTU, a
 * device that cannot checksum, a full queue. */
static bool may_be_of_segments(int error)
{
    switch (-error) {
    case EINVAL:
    case EIO:
    case EMSGSIZE:
    case ENOBUFS:
    case ENOMEM:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
        return true;
    default:
        return false;
    }
}

/* Sends up to `most` from the front.  Returns how many left, or a negative errno for the first;
 * 0 to be called again. */
static ssize_t send_many(struct pr_datagram_endpoint *endpoint, size_t most)
{
    struct outgoing outgoing;
    gather(endpoint, &outgoing, most < SENT_PER_CALL_MAX ? most : SENT_PER_CALL_MAX);
    int count = sendmmsg(endpoint->watch.fd, outgoing.messages, (unsigned)outgoing.message_count,
                         MSG_NOSIGNAL);
    if (count < 0) {
        int error = -errno;
        if (outgoing.datagrams[0] == 1 || !may_be_of_segments(error))
            return error;
        endpoint->segment_bytes_max = outgoing.vectors[0].iov_len - 1;
        return 0;
    }
    size_t sent = 0;
    for (int i = 0; i < count; i++)
        sent += outgoing.datagrams[i];
    return (ssize_t)sent;
}

/* Counts the first `gone` as sent. */
static void count_sent(struct pr_datagram_endpoint *endpoint, size_t gone)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < gone; i++)
        bytes += slot_at(endpoint, i)->size;
    pr_counter_add(&endpoint->loop->stats.bytes_sent, bytes);
}

static ssize_t send_one(struct pr_datagram_endpoint *endpoint, const struct pr_datagram *datagram)
{
    ssize_t sent =
        sendto(endpoint->watch.fd, datagram->data, datagram->size, MSG_NOSIGNAL,
               datagram->target.size ? &datagram->target.any : NULL, datagram->target.size);
    return sent < 0 ? -errno : 1;
}

/* Sends what is in the queue now, until the kernel is full.  Returns 0, what a handler returned, or
 * a negative errno of the watch's. */
static int send_queued(struct pr_datagram_endpoint *endpoint)
{
    size_t left = endpoint->count; /* what an error's handler adds waits for the next turn */
    int stop = 0;
    while (left && !stop) {
        const struct pr_datagram *first = slot_at(endpoint, 0);
        ssize_t sent;
        if (first->by_owner) {
            stop = endpoint->handler->send_by_owner(endpoint, first->owner);
            sent = stop < 0 ? stop : 1;
            if (stop < 0)
                stop = 0;
        } else {
            sent = left == 1 ? send_one(endpoint, first) : send_many(endpoint, left);
        }
        if (!pr_watch_is_active(&endpoint->watch)) /* the owner has stopped it */
            return stop;
        if (sent == -EINTR)
            continue;
        if (sent == -EAGAIN)
            break;
        size_t gone = sent < 0 ? 1 : (size_t)sent;
        if (sent > 0)
            count_sent(endpoint, gone);
        drop(endpoint, gone);
        if (sent < 0 && pr_watch_is_active(&endpoint->watch))
            stop = endpoint->handler->on_error(endpoint, (int)sent, true);
        if (!pr_watch_is_active(&endpoint->watch))
            return stop;
        left -= gone;
    }
    int error = endpoint->count || is_blocked(endpoint)
                    ? update_interest(endpoint, endpoint->count != 0)
                    : 0;
    return stop ? stop : error;
}

/* Tells the owner what the queue's new length means. */
static int report_level(struct pr_datagram_endpoint *endpoint)
{
    int stop = 0;
    if (!endpoint->over_high_water && endpoint->bytes > endpoint->high_water_bytes) {
        endpoint->over_high_water = true;
        stop = endpoint->handler->on_high_water(endpoint);
    } else if (endpoint->over_high_water && endpoint->bytes <= endpoint->low_water_bytes) {
        endpoint->over_high_water = false;
        stop = endpoint->handler->on_low_water(endpoint);
    }
    if (!stop && endpoint->wants_drained && endpoint->count == 0 &&
        pr_watch_is_active(&endpoint->watch)) {
        endpoint->wants_drained = false;
        stop = endpoint->handler->on_drained(endpoint);
    }
    return stop;
}

static int send_and_report(struct pr_datagram_endpoint *endpoint)
{
    pr_loop_remove_flush(&endpoint->flush);
    endpoint->sending = true;
    int result = send_queued(endpoint);
    endpoint->sending = false;
    if (result || !pr_watch_is_active(&endpoint->watch))
        return result;
    return report_level(endpoint);
}

/* A flush that nobody called for directly: its error goes to the owner. */
static int send_unasked(struct pr_datagram_endpoint *endpoint)
{
    int result = send_and_report(endpoint);
    return result < 0 ? endpoint->handler->on_error(endpoint, result, true) : result;
}

static int run_flush(struct pr_flush *flush)
{
    struct pr_datagram_endpoint *endpoint =
        (struct pr_datagram_endpoint *)((char *)flush -
                                        offsetof(struct pr_datagram_endpoint, flush));
    return is_blocked(endpoint) ? 0 : send_unasked(endpoint);
}

static int on_ready(struct pr_watch *watch, uint32_t events)
{
    struct pr_datagram_endpoint *endpoint =
        (struct pr_datagram_endpoint *)((char *)watch -
                                        offsetof(struct pr_datagram_endpoint, watch));
    if (events & PR_READABLE) {
        int stop = receive(endpoint);
        if (stop)
            return stop;
    }
    /* The read's callback may have stopped the endpoint. */
    return events & watch->wanted & PR_WRITABLE ? send_unasked(endpoint) : 0;
}

/* --- Life --------------------------------------------------------------------------------------*/

void pr_datagram_init(struct pr_datagram_endpoint *endpoint, struct pr_loop *loop,
                      const struct pr_datagram_handler *handler, void *owner,
                      void (*release)(void *owner))
{
    *endpoint = (struct pr_datagram_endpoint){
        .loop = loop,
        .handler = handler,
        .flush = {.run = run_flush},
        .release = release,
        .high_water_bytes = PR_DATAGRAM_HIGH_WATER_BYTES,
        .low_water_bytes = PR_DATAGRAM_HIGH_WATER_BYTES / 4,
        .datagram_bytes_max = PR_DATAGRAM_IP_BYTES_MAX,
        .segment_bytes_max = SEGMENTED_BYTES_MAX,
    };
    pr_watch_init(&endpoint->watch, on_ready, owner);
}

void pr_datagram_deinit(struct pr_datagram_endpoint *endpoint)
{
    pr_datagram_stop(endpoint);
    free(endpoint->slots);
    endpoint->slots = NULL;
    endpoint->capacity = 0;
}

int pr_datagram_start(struct pr_datagram_endpoint *endpoint, int fd)
{
    return pr_watch_start(&endpoint->loop->watches, &endpoint->watch, fd, 0);
}

void pr_datagram_stop(struct pr_datagram_endpoint *endpoint)
{
    pr_loop_remove_flush(&endpoint->flush);
    pr_watch_stop(&endpoint->loop->watches, &endpoint->watch);
    endpoint->reading = false;
    drop(endpoint, endpoint->count);
}

int pr_datagram_set_reading(struct pr_datagram_endpoint *endpoint, bool reading)
{
    if (endpoint->reading == reading || !pr_watch_is_active(&endpoint->watch))
        return 0;
    endpoint->reading = reading;
    int error = update_interest(endpoint, is_blocked(endpoint));
    if (error < 0)
        endpoint->reading = !reading;
    return error;
}

int pr_datagram_queue(struct pr_datagram_endpoint *endpoint, const char *data, size_t size,
                      void *owner, const struct pr_address *target)
{
    struct pr_datagram *datagram = append(endpoint, data, size, owner);
    if (!datagram)
        return -ENOMEM;
    datagram->by_owner = false;
    datagram->target.size = 0;
    if (target)
        pr_address_copy(&datagram->target, target);
    return 0;
}

int pr_datagram_queue_by_owner(struct pr_datagram_endpoint *endpoint, size_t size, void *owner)
{
    struct pr_datagram *datagram = append(endpoint, NULL, size, owner);
    if (!datagram)
        return -ENOMEM;
    datagram->by_owner = true;
    return 0;
}

int pr_datagram_send_soon(struct pr_datagram_endpoint *endpoint)
{
    if (is_blocked(endpoint) || endpoint->sending)
        return report_level(endpoint);
    if (endpoint->loop->dispatching && endpoint->count < PR_DATAGRAMS_HELD_MAX &&
        endpoint->bytes <= PR_DATAGRAM_HELD_BYTES_MAX &&
        endpoint->bytes <= endpoint->high_water_bytes) {
        pr_loop_add_flush(endpoint->loop, &endpoint->flush);
        return 0;
    }
    return send_and_report(endpoint);
}

int pr_datagram_flush(struct pr_datagram_endpoint *endpoint)
{
    if (!pr_watch_is_active(&endpoint->watch) || is_blocked(endpoint) || endpoint->sending)
        return 0;
    return send_and_report(endpoint);
}

int pr_datagram_set_water(struct pr_datagram_endpoint *endpoint, size_t high_bytes,
                          size_t low_bytes)
{
    endpoint->high_water_bytes = high_bytes;
    endpoint->low_water_bytes = low_bytes;
    if (is_blocked(endpoint) || endpoint->sending)
        return report_level(endpoint);
    return send_and_report(endpoint);
}
