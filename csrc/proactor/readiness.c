/*
 * Readiness: the main thread imitates what io_uring does.  A demultiplexer says what can be read or
 * written, the main thread does it, and the worker gets a finished result.
 *
 * An interest is armed when an operation begins to wait, and disarmed when it is reported and
 * nothing waits any more: a connection that is read again and again costs no call of its own for
 * that.  It relies on pr_proactor_forget(); for an operation without a strand, whose descriptor may
 * have been closed since and be another one now, the demultiplexer is told each time.  With
 * `strict` each step is a step: an interest is one-shot, the thread that asks for an operation arms
 * it, nothing is tried before it was reported, and reads go on until nothing is left or the buffer
 * is full.
 *
 * A regular file cannot be waited for: the main thread reads and writes it at once, and is kept
 * from everything else for as long as the disk takes.
 */
#include "pyreactor/proactor.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_PER_WAIT_MAX 256
#define INITIAL_CAPACITY 64

/* The operations that wait for one descriptor, each side in the order in which they came. */
struct interest {
    struct pr_aio *first_reader, *last_reader;
    struct pr_aio *first_writer, *last_writer;
    uint32_t generation;
    uint32_t armed; /* what the demultiplexer has been told */
    bool added;     /* ... once at least; it may have been closed since */
};

struct readiness_proactor {
    struct pr_proactor base;
    pthread_mutex_t lock;       /* over `interests`: other threads arm them with `strict` */
    struct interest *interests; /* owned; by descriptor */
    int capacity;
    uint32_t last_generation;
    bool signal_added;
    bool notices_close; /* the demultiplexer knows when a descriptor has become another one */
    struct pr_ready_event events[EVENTS_PER_WAIT_MAX]; /* the main thread's */
};

enum outcome { DONE, WOULD_BLOCK, STARVED };

static struct readiness_proactor *of(struct pr_proactor *proactor)
{
    return (struct readiness_proactor *)proactor;
}

static bool is_reader(const struct pr_aio *aio)
{
    return aio->kind == PR_AIO_READ || aio->kind == PR_AIO_ACCEPT;
}

/* --- Doing it: main thread --------------------------------------------------------------------
 */

static ssize_t read_some(const struct pr_aio *aio)
{
    char *data = aio->data + aio->done;
    size_t left = aio->size - aio->done;
    if (aio->is_socket)
        return recv(aio->fd, data, left, MSG_DONTWAIT);
    if (aio->offset != PR_NO_OFFSET)
        return pread(aio->fd, data, left, (off_t)(aio->offset + (int64_t)aio->done));
    return read(aio->fd, data, left);
}

static ssize_t write_some(struct pr_aio *aio)
{
    const char *data = aio->data + aio->done;
    size_t left = aio->size - aio->done;
    if (aio->kind == PR_AIO_SENDFILE) {
        off_t offset = (off_t)(aio->offset + (int64_t)aio->done);
        return sendfile(aio->fd, aio->source_fd, &offset, left);
    }
    if (aio->is_socket)
        return send(aio->fd, data, left, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (aio->offset != PR_NO_OFFSET)
        return pwrite(aio->fd, data, left, (off_t)(aio->offset + (int64_t)aio->done));
    return write(aio->fd, data, left);
}

static enum outcome try_read(struct pr_proactor *proactor, struct pr_aio *aio)
{
    if (aio->buffer == PR_ANY_BUFFER && !pr_proactor_give_buffer(proactor, aio))
        return STARVED;
    for (;;) {
        ssize_t got = read_some(aio);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN && aio->done == 0)
            return WOULD_BLOCK;
        if (got < 0 && aio->done == 0)
            aio->result = -errno;
        if (got > 0)
            aio->done += (size_t)got;
        /* The end or an error after some bytes is the next read's. */
        if (got <= 0 || aio->done == aio->size || !proactor->strict || !aio->is_socket)
            return DONE;
    }
}

static enum outcome try_write(struct pr_aio *aio)
{
    while (aio->done < aio->size) {
        ssize_t sent = write_some(aio);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return WOULD_BLOCK;
        if (sent == 0) /* of a sendfile: the file ends here */
            return DONE;
        if (sent < 0) {
            aio->result = -errno;
            return DONE;
        }
        aio->done += (size_t)sent;
    }
    return DONE;
}

static enum outcome try_accept(struct pr_aio *aio)
{
    for (;;) {
        aio->address.size = sizeof aio->address - offsetof(struct pr_address, any);
        int fd =
            accept4(aio->fd, &aio->address.any, &aio->address.size, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0 && errno == EAGAIN)
            return WOULD_BLOCK;
        aio->result = fd < 0 ? -errno : fd;
        return DONE;
    }
}

static enum outcome try_connect(struct pr_aio *aio)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (!aio->unfinished) {
        aio->unfinished = true;
        if (connect(aio->fd, &aio->address.any, aio->address.size) == 0)
            return DONE;
        if (errno == EINPROGRESS || errno == EINTR)
            return WOULD_BLOCK;
        aio->result = -errno;
    } else if (getsockopt(aio->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error) {
        aio->result = error ? -error : -errno;
    }
    return DONE;
}

static enum outcome try_operation(struct pr_proactor *proactor, struct pr_aio *aio)
{
    enum outcome outcome;
    switch (aio->kind) {
    case PR_AIO_READ:
        outcome = try_read(proactor, aio);
        break;
    case PR_AIO_ACCEPT:
        outcome = try_accept(aio);
        break;
    case PR_AIO_CONNECT:
        outcome = try_connect(aio);
        break;
    default:
        outcome = try_write(aio);
    }
    if (outcome == DONE || aio->done > 0)
        pr_trace_note(proactor->trace, is_reader(aio) ? PR_ACTION_READ : PR_ACTION_WRITE, aio->fd,
                      is_reader(aio) ? PR_READABLE : PR_WRITABLE);
    return outcome;
}

/* --- Waiting for it: under the lock ------------------------------------------------------------
 */

static int reserve_locked(struct readiness_proactor *self, int fd)
{
    if (fd < self->capacity)
        return 0;
    int capacity = self->capacity ? self->capacity : INITIAL_CAPACITY;
    while (capacity <= fd)
        capacity *= 2;
    struct interest *interests = realloc(self->interests, (size_t)capacity * sizeof *interests);
    if (!interests)
        return -ENOMEM;
    memset(interests + self->capacity, 0, (size_t)(capacity - self->capacity) * sizeof *interests);
    self->interests = interests;
    self->capacity = capacity;
    return 0;
}

static void append_locked(struct interest *interest, struct pr_aio *aio)
{
    struct pr_aio **first = is_reader(aio) ? &interest->first_reader : &interest->first_writer;
    struct pr_aio **last = is_reader(aio) ? &interest->last_reader : &interest->last_writer;
    aio->next = NULL;
    if (*first)
        (*last)->next = aio;
    else
        *first = aio;
    *last = aio;
}

static struct pr_aio *pop_locked(struct interest *interest, bool reader)
{
    struct pr_aio **first = reader ? &interest->first_reader : &interest->first_writer;
    struct pr_aio *aio = *first;
    if (aio)
        *first = aio->next;
    return aio;
}

/* Returns whether it was there. */
static bool remove_locked(struct interest *interest, struct pr_aio *aio)
{
    struct pr_aio **first = is_reader(aio) ? &interest->first_reader : &interest->first_writer;
    struct pr_aio **last = is_reader(aio) ? &interest->last_reader : &interest->last_writer;
    struct pr_aio *before = NULL;
    struct pr_aio *other = *first;
    for (; other && other != aio; other = other->next)
        before = other;
    if (!other)
        return false;
    if (before)
        before->next = aio->next;
    else
        *first = aio->next;
    if (*last == aio)
        *last = before;
    return true;
}

static int tell_demux_locked(struct readiness_proactor *self, int fd, uint32_t wanted)
{
    struct pr_demux *demux = self->base.demux;
    struct interest *interest = &self->interests[fd];
    uint32_t how = wanted | (self->base.strict ? PR_ONE_SHOT : 0u);
    int error = -ENOENT;
    if (interest->added)
        error = demux->ops->modify(demux, fd, interest->generation, how);
    if (error == -ENOENT && wanted) { /* new, or another file under the same number */
        interest->generation = ++self->last_generation;
        error = demux->ops->add(demux, fd, interest->generation, how);
    }
    interest->added = error == 0;
    interest->armed = error == 0 ? wanted : 0;
    return error;
}

static uint32_t wanted_locked(const struct interest *interest)
{
    return (interest->first_reader ? PR_READABLE : 0u) |
           (interest->first_writer ? PR_WRITABLE : 0u);
}

/* Has the demultiplexer wait for what operations wait for. */
static int arm_locked(struct readiness_proactor *self, int fd)
{
    struct interest *interest = &self->interests[fd];
    uint32_t wanted = wanted_locked(interest);
    if ((wanted & ~interest->armed) == 0)
        return 0;
    pr_trace_note(self->base.trace, PR_ACTION_REGISTER, fd, wanted & ~interest->armed);
    return tell_demux_locked(self, fd, wanted);
}

/* A descriptor without a strand, of which nothing was under way, may be another one by now. */
static void doubt_locked(struct readiness_proactor *self, const struct pr_aio *aio)
{
    struct interest *interest = &self->interests[aio->fd];
    if (aio->strand || !interest->added || wanted_locked(interest))
        return;
    interest->armed = 0;
    if (self->notices_close)
        return;
    (void)self->base.demux->ops->remove(self->base.demux, aio->fd);
    interest->added = false;
}

/* Puts an operation among those that wait.  Returns 0 or a negative errno: it is not there then. */
static int await_readiness_locked(struct readiness_proactor *self, struct pr_aio *aio)
{
    int error = aio->fd < 0 ? -EBADF : reserve_locked(self, aio->fd);
    if (error < 0)
        return error;
    doubt_locked(self, aio);
    append_locked(&self->interests[aio->fd], aio);
    error = arm_locked(self, aio->fd);
    if (error < 0)
        (void)remove_locked(&self->interests[aio->fd], aio);
    return error;
}

static bool has_others_before(struct readiness_proactor *self, const struct pr_aio *aio)
{
    pthread_mutex_lock(&self->lock);
    const struct interest *interest =
        aio->fd >= 0 && aio->fd < self->capacity ? &self->interests[aio->fd] : NULL;
    bool has = interest && (is_reader(aio) ? interest->first_reader : interest->first_writer);
    pthread_mutex_unlock(&self->lock);
    return has;
}

/* --- The main thread --------------------------------------------------------------------------
 */

static bool is_file(const struct pr_aio *aio)
{
    return aio->offset != PR_NO_OFFSET && aio->kind != PR_AIO_SENDFILE;
}

/* Does an operation without waiting.  Returns whether it has to wait. */
static bool start_at_once(struct pr_proactor *proactor, struct pr_aio *aio)
{
    enum outcome outcome = try_operation(proactor, aio);
    if (outcome == DONE)
        pr_proactor_finish(proactor, aio, aio->result, false);
    return outcome == WOULD_BLOCK;
}

static void readiness_start(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct readiness_proactor *self = of(proactor);
    /* A file has no readiness; what is written can mostly be written at once; a connect has to
     * begin.  A read mostly has to wait: it is not tried. */
    bool at_once = is_file(aio) || aio->kind == PR_AIO_CONNECT ||
                   (!proactor->strict && !is_reader(aio) && !has_others_before(self, aio));
    if (aio->waits || (at_once && !start_at_once(proactor, aio)))
        return;
    pthread_mutex_lock(&self->lock);
    int error = await_readiness_locked(self, aio);
    pthread_mutex_unlock(&self->lock);
    if (error == -EPERM && !start_at_once(proactor, aio)) /* a file, at its current position */
        return;
    if (error < 0)
        pr_proactor_finish(proactor, aio, error, false);
}

static void readiness_cancel(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct readiness_proactor *self = of(proactor);
    bool waited = pr_proactor_unpostpone(proactor, aio);
    pthread_mutex_lock(&self->lock);
    if (!waited && aio->fd >= 0 && aio->fd < self->capacity)
        waited = remove_locked(&self->interests[aio->fd], aio);
    pthread_mutex_unlock(&self->lock);
    if (waited)
        pr_proactor_finish(proactor, aio, -ECANCELED, false);
}

/* The one that was taken, first again. */
static void push_back(struct readiness_proactor *self, struct pr_aio *aio)
{
    pthread_mutex_lock(&self->lock);
    struct interest *interest = &self->interests[aio->fd];
    struct pr_aio **first = is_reader(aio) ? &interest->first_reader : &interest->first_writer;
    struct pr_aio **last = is_reader(aio) ? &interest->last_reader : &interest->last_writer;
    if (!*first)
        *last = aio;
    aio->next = *first;
    *first = aio;
    pthread_mutex_unlock(&self->lock);
}

/* Does what one side of a descriptor is ready for. */
static void serve_side(struct readiness_proactor *self, int fd, bool reader)
{
    struct pr_proactor *proactor = &self->base;
    struct pr_aio *aio;
    do { /* accepts until there is no more connection, or nobody to accept it */
        pthread_mutex_lock(&self->lock);
        aio = pop_locked(&self->interests[fd], reader);
        pthread_mutex_unlock(&self->lock);
        if (!aio)
            return;
        if (!aio->newer) /* another thread has just asked for it */
            pr_proactor_take_inbox(proactor);
        enum outcome outcome = try_operation(proactor, aio);
        if (outcome == WOULD_BLOCK)
            push_back(self, aio);
        if (outcome != DONE)
            return;
        reader = aio->kind == PR_AIO_ACCEPT;
        pr_proactor_finish(proactor, aio, aio->result, false);
    } while (reader);
}

/* After an event: waits for what is still wanted, and not for what nobody wanted, which would be
 * reported for ever. */
static void adjust_locked(struct readiness_proactor *self, const struct pr_ready_event *event,
                          bool had_reader, bool had_writer)
{
    struct interest *interest = &self->interests[event->fd];
    uint32_t unwanted = (event->events & PR_READABLE && !had_reader ? PR_READABLE : 0u) |
                        (event->events & PR_WRITABLE && !had_writer ? PR_WRITABLE : 0u) |
                        (interest->first_writer ? 0u : PR_WRITABLE);
    if (interest->first_reader)
        unwanted &= ~PR_READABLE;
    if (!self->base.strict && interest->armed & unwanted)
        (void)tell_demux_locked(self, event->fd, interest->armed & ~unwanted);
    (void)arm_locked(self, event->fd);
}

static void serve(struct readiness_proactor *self, const struct pr_ready_event *event)
{
    int fd = event->fd;
    if (fd == self->base.notifier.signal_fd) {
        pr_proactor_take_signals(&self->base);
        return;
    }
    struct interest *interest = &self->interests[fd];
    pthread_mutex_lock(&self->lock);
    bool is_current = interest->generation == event->generation;
    bool has_reader = interest->first_reader != NULL;
    bool has_writer = interest->first_writer != NULL;
    if (is_current && self->base.strict)
        interest->armed = 0; /* it was one-shot */
    pthread_mutex_unlock(&self->lock);
    if (!is_current)
        return;
    pr_trace_note(self->base.trace, PR_ACTION_WAIT, fd, event->events);
    if (event->events & PR_READABLE)
        serve_side(self, fd, true);
    if (event->events & PR_WRITABLE)
        serve_side(self, fd, false);
    pthread_mutex_lock(&self->lock);
    /* The descriptor may be closed by now, if the last operation on it has just ended. */
    if (wanted_locked(&self->interests[fd]) || !(has_reader || has_writer))
        adjust_locked(self, event, has_reader, has_writer);
    pthread_mutex_unlock(&self->lock);
}

static int watch_signals(struct readiness_proactor *self)
{
    struct pr_demux *demux = self->base.demux;
    int fd = self->base.notifier.signal_fd;
    if (self->signal_added || fd < 0)
        return 0;
    int error = demux->ops->add(demux, fd, ++self->last_generation, PR_READABLE);
    self->signal_added = error == 0;
    return error;
}

static int readiness_wait(struct pr_proactor *proactor, int64_t timeout_ns)
{
    struct readiness_proactor *self = of(proactor);
    int error = watch_signals(self);
    if (error < 0)
        return error;
    int count = pr_demux_wait(proactor->demux, self->events,
                              proactor->strict ? 1 : EVENTS_PER_WAIT_MAX, timeout_ns);
    for (int i = 0; i < count; i++)
        serve(self, &self->events[i]);
    return count < 0 ? count : 0;
}

/* --- Any thread -------------------------------------------------------------------------------
 */

static void readiness_wake(struct pr_proactor *proactor)
{
    proactor->demux->ops->wake(proactor->demux);
}

static void readiness_submit(struct pr_proactor *proactor, struct pr_aio *aio)
{
    struct readiness_proactor *self = of(proactor);
    bool is_write = aio->kind == PR_AIO_SENDFILE || (aio->kind == PR_AIO_WRITE && !is_file(aio));
    if (proactor->strict && is_write && aio->size > 0) {
        /* One step: whoever gets it from the list finds it in the inbox. */
        pthread_mutex_lock(&self->lock);
        aio->waits = await_readiness_locked(self, aio) == 0;
        pr_wakeup_push(proactor->wakeup, &aio->submission);
        pthread_mutex_unlock(&self->lock);
    } else {
        pr_wakeup_push(proactor->wakeup, &aio->submission);
    }
    pr_proactor_wake(proactor);
}

static void readiness_forget(struct pr_proactor *proactor, int fd)
{
    struct readiness_proactor *self = of(proactor);
    pthread_mutex_lock(&self->lock);
    if (fd >= 0 && fd < self->capacity && self->interests[fd].added) {
        (void)proactor->demux->ops->remove(proactor->demux, fd);
        self->interests[fd].added = false;
        self->interests[fd].armed = 0;
        self->interests[fd].generation = 0;
    }
    pthread_mutex_unlock(&self->lock);
}

static int readiness_init(struct pr_proactor *proactor)
{
    pthread_mutex_init(&of(proactor)->lock, NULL); /* cannot fail on Linux */
    proactor->wakeup = &proactor->demux->wakeup;
    of(proactor)->notices_close = strcmp(proactor->demux->ops->name, "epoll") == 0;
    return 0;
}

static void readiness_deinit(struct pr_proactor *proactor)
{
    struct readiness_proactor *self = of(proactor);
    struct pr_demux *demux = proactor->demux;
    for (int fd = 0; fd < self->capacity; fd++)
        if (self->interests[fd].added)
            (void)demux->ops->remove(demux, fd);
    if (self->signal_added)
        (void)demux->ops->remove(demux, proactor->notifier.signal_fd);
    free(self->interests);
    pthread_mutex_destroy(&self->lock);
}

const struct pr_proactor_ops pr_proactor_readiness_ops = {
    .name = "readiness",
    .size = sizeof(struct readiness_proactor),
    .init = readiness_init,
    .deinit = readiness_deinit,
    .submit = readiness_submit,
    .start = readiness_start,
    .cancel = readiness_cancel,
    .wait = readiness_wait,
    .wake = readiness_wake,
    .forget = readiness_forget,
};
