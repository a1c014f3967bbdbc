/*
 * Fault injection below a program: loaded with LD_PRELOAD, it makes system calls fail now and then
 * in ways the kernel may choose, too.
 *
 * Mild faults cost nothing but another try: EINTR, EAGAIN on a descriptor that does not block,
 * fewer bytes or events than there are, a connection that went away before it was accepted.  Severe
 * ones end something: a connection reset, no descriptor or memory left.  A severe fault of a
 * connected stream also shuts the socket down, so that later calls agree with it, and is remembered
 * by inode, so that the program can tell an end it has to expect from one it must not see.
 *
 * Nothing is done to descriptors that are neither sockets nor pipes, nor to pipes that would have
 * to lie about the other end.  Readiness is never withheld: a level-triggered event comes again,
 * and what is watched edge-triggered is only ever interrupted, for there the kernel, having said
 * EAGAIN or done less than asked, owes another event.
 *
 * FAULTS_SEED, FAULTS_MILD and FAULTS_SEVERE (both in faults per million calls) are read by the
 * first faults_enable(1), before which nothing happens.  One process, all of its threads.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define SHORTENED 0 /* counted in the place of an errno: less was done than was asked for */
#define ERRNOS 134
#define VECTORS_MAX 1024
#define SPARED_MAX 8
#define BROKEN_SLOTS 65536 /* a power of two; the oldest are forgotten when it is full */

/* Every call that is wrapped: its name, the type of its result, its arguments. */
#define CALLS(X)                                                                                   \
    X(accept, int, (int, struct sockaddr *, socklen_t *))                                          \
    X(accept4, int, (int, struct sockaddr *, socklen_t *, int))                                    \
    X(connect, int, (int, const struct sockaddr *, socklen_t))                                     \
    X(epoll_ctl, int, (int, int, int, struct epoll_event *))                                       \
    X(epoll_pwait2, long, (long, ...))                                                             \
    X(epoll_wait, int, (int, struct epoll_event *, int, int))                                      \
    X(pidfd_open, long, (long, ...))                                                               \
    X(pipe, int, (int *))                                                                          \
    X(pipe2, int, (int *, int))                                                                    \
    X(read, ssize_t, (int, void *, size_t))                                                        \
    X(readv, ssize_t, (int, const struct iovec *, int))                                            \
    X(recv, ssize_t, (int, void *, size_t, int))                                                   \
    X(recvfrom, ssize_t, (int, void *, size_t, int, struct sockaddr *, socklen_t *))               \
    X(recvmmsg, int, (int, struct mmsghdr *, unsigned, int, struct timespec *))                    \
    X(recvmsg, ssize_t, (int, struct msghdr *, int))                                               \
    X(send, ssize_t, (int, const void *, size_t, int))                                             \
    X(sendfile, ssize_t, (int, int, off_t *, size_t))                                              \
    X(sendfile64, ssize_t, (int, int, off_t *, size_t))                                            \
    X(sendmmsg, int, (int, struct mmsghdr *, unsigned, int))                                       \
    X(sendmsg, ssize_t, (int, const struct msghdr *, int))                                         \
    X(sendto, ssize_t, (int, const void *, size_t, int, const struct sockaddr *, socklen_t))       \
    X(socket, int, (int, int, int))                                                                \
    X(socketpair, int, (int, int, int, int *))                                                     \
    X(splice, ssize_t, (int, off_t *, int, off_t *, size_t, unsigned))                             \
    X(syscall, long, (long, ...))                                                                  \
    X(write, ssize_t, (int, const void *, size_t))                                                 \
    X(writev, ssize_t, (int, const struct iovec *, int))

#define NUMBER(name, result, arguments) CALL_##name,
enum call { CALLS(NUMBER) CALL_COUNT };

#define NAME(name, result, arguments) #name,
static const char *const names[] = {CALLS(NAME)};

#define REAL(name, result, arguments) static result(*real_##name) arguments;
CALLS(REAL)

static atomic_bool enabled;
static atomic_uint_fast64_t random_state;
static uint32_t mild_ppm, severe_ppm;
static atomic_uint counts[CALL_COUNT][ERRNOS];

static struct {
    atomic_uint_fast64_t inode;
    atomic_int error;
} broken[BROKEN_SLOTS];

/* The one call that was asked to fail, see faults_fail(). */
static atomic_int ordered_call = -1, ordered_error, ordered_countdown;

/* By inode: what some epoll set watches edge-triggered. */
static atomic_uint_fast64_t edges[BROKEN_SLOTS];

static atomic_uint_fast64_t spared[SPARED_MAX];
static atomic_uint spared_count;

/* It runs before the C library's own constructors (faults.py says why): there is no environment. */
__attribute__((constructor)) static void find_calls(void)
{
/* Through an object pointer: C has no conversion from one to a function. */
#define FIND(name, result, arguments)                                                              \
    do {                                                                                           \
        void *found = dlsym(RTLD_NEXT, #name);                                                     \
        memcpy(&real_##name, &found, sizeof found);                                                \
    } while (0);
    CALLS(FIND)
}

static void read_rates(void)
{
    const char *seed = getenv("FAULTS_SEED");
    const char *mild = getenv("FAULTS_MILD");
    const char *severe = getenv("FAULTS_SEVERE");
    atomic_store(&random_state, seed ? strtoull(seed, NULL, 10) : 1);
    mild_ppm = mild ? (uint32_t)strtoul(mild, NULL, 10) : 0;
    severe_ppm = severe ? (uint32_t)strtoul(severe, NULL, 10) : 0;
}

/* --- What the program may ask ----------------------------------------------------------------- */

/* Starts or stops injecting.  Any thread. */
void faults_enable(int on)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_rates);
    atomic_store(&enabled, on != 0);
}

/* Leaves the socket or pipe with this inode alone: both of its ends are the program's own, so that
 * nobody could break it.  Any thread. */
void faults_spare(uint64_t inode)
{
    atomic_store(&spared[atomic_fetch_add(&spared_count, 1) % SPARED_MAX], inode);
}

/* How often `error` was injected into any call; 0 stands for a shortened one.  Any thread. */
unsigned faults_count(int error)
{
    unsigned count = 0;
    for (int call = 0; call < CALL_COUNT; call++)
        count += error >= 0 && error < ERRNOS ? atomic_load(&counts[call][error]) : 0;
    return count;
}

/* The severe fault of the socket or pipe with this inode, or 0.  Any thread. */
int faults_of(uint64_t inode)
{
    size_t slot = inode & (BROKEN_SLOTS - 1);
    return atomic_load(&broken[slot].inode) == inode ? atomic_load(&broken[slot].error) : 0;
}

/* Lets the `nth` call of this name from now on fail with `error`, whatever the rates are.  Returns
 * -1 where no such call is wrapped.  Any thread. */
int faults_fail(const char *name, int error, int nth)
{
    for (int call = 0; call < CALL_COUNT; call++)
        if (strcmp(names[call], name) == 0) {
            atomic_store(&ordered_error, error);
            atomic_store(&ordered_countdown, nth);
            atomic_store(&ordered_call, call);
            return 0;
        }
    return -1;
}

/* Writes lines of call, errno and count.  Returns their length.  Any thread. */
size_t faults_report(char *text, size_t size)
{
    size_t length = 0;
    for (int call = 0; call < CALL_COUNT; call++)
        for (int error = 0; error < ERRNOS; error++) {
            unsigned count = atomic_load(&counts[call][error]);
            if (count && length < size)
                length += (size_t)snprintf(text + length, size - length, "%s %d %u\n", names[call],
                                           error, count);
        }
    return length < size ? length : size;
}

/* --- Deciding --------------------------------------------------------------------------------- */

static uint64_t random_number(void)
{
    /* splitmix64: one addition is the whole state, so that threads can share it. */
    uint64_t z = atomic_fetch_add(&random_state, 0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool chance(uint32_t ppm)
{
    return ppm && atomic_load_explicit(&enabled, memory_order_relaxed) &&
           random_number() % 1000000 < ppm;
}

static int one_of(const int *errors, size_t count)
{
    return errors[random_number() % count];
}

#define ONE_OF(...)                                                                                \
    one_of((const int[]){__VA_ARGS__}, sizeof(const int[]){__VA_ARGS__} / sizeof(int))

static void count_fault(enum call call, int error)
{
    atomic_fetch_add(&counts[call][error], 1);
}

static int inject(enum call call, int error)
{
    count_fault(call, error);
    errno = error;
    return -1;
}

/* True, with errno set, where this is the call that was asked to fail. */
static bool is_ordered(enum call call)
{
    if (atomic_load(&ordered_call) != (int)call || atomic_fetch_sub(&ordered_countdown, 1) != 1)
        return false;
    atomic_store(&ordered_call, -1);
    inject(call, atomic_load(&ordered_error));
    return true;
}

struct kind {
    bool pipe, stream, datagram, connected, internet, nonblocking, edge_triggered;
    uint64_t inode;
};

/* What a descriptor is.  Returns false where it is nothing that faults are for. */
static bool look_at(int fd, struct kind *kind)
{
    struct stat status;
    *kind = (struct kind){0};
    if (fstat(fd, &status) < 0)
        return false;
    kind->inode = status.st_ino;
    kind->pipe = S_ISFIFO(status.st_mode);
    kind->nonblocking = fcntl(fd, F_GETFL) & O_NONBLOCK;
    kind->edge_triggered = atomic_load(&edges[kind->inode & (BROKEN_SLOTS - 1)]) == kind->inode;
    for (int i = 0; i < SPARED_MAX; i++)
        if (atomic_load(&spared[i]) == kind->inode)
            return false;
    if (!S_ISSOCK(status.st_mode))
        return kind->pipe;
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    kind->stream = type == SOCK_STREAM;
    kind->datagram = type == SOCK_DGRAM;
    struct sockaddr_storage address;
    size = sizeof address;
    kind->connected = getpeername(fd, (struct sockaddr *)&address, &size) == 0;
    size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size) == 0)
        kind->internet = address.ss_family == AF_INET || address.ss_family == AF_INET6;
    return true;
}

static void remember(const struct kind *kind, int error)
{
    size_t slot = kind->inode & (BROKEN_SLOTS - 1);
    atomic_store(&broken[slot].error, error);
    atomic_store(&broken[slot].inode, kind->inode);
}

/*
 * Decides about a transfer of `*size` bytes on `fd`: returns true with errno set where it is to
 * fail, and else may make `*size` smaller.
 */
static bool disturb(enum call call, int fd, int flags, bool sends, size_t *size)
{
    int saved_errno = errno;
    struct kind kind;
    if (is_ordered(call))
        return true;
    if (chance(severe_ppm) && look_at(fd, &kind)) {
        if (kind.stream && kind.connected) {
            int error = sends ? ONE_OF(EPIPE, ECONNRESET) : ECONNRESET;
            remember(&kind, error); /* first: the peer may hear of it in another thread */
            shutdown(fd, SHUT_RDWR);
            inject(call, error);
            return true;
        }
        if (kind.datagram && sends) {
            inject(call, kind.internet ? ONE_OF(ENOBUFS, EPERM, ENETUNREACH) : ENOBUFS);
            return true;
        }
        if (kind.datagram && kind.connected && kind.internet) {
            inject(call, ECONNREFUSED);
            return true;
        }
    }
    if (chance(mild_ppm) && look_at(fd, &kind)) {
        bool nonblocking = (kind.nonblocking || flags & MSG_DONTWAIT) && !kind.edge_triggered;
        switch (random_number() % 3) {
        case 0:
            inject(call, EINTR);
            return true;
        case 1:
            if (nonblocking) {
                inject(call, EAGAIN);
                return true;
            }
            break;
        default:
            /* A datagram is whole or not at all, and so is what fits into a pipe at once. */
            if (*size > 1 && nonblocking && !kind.datagram &&
                !(kind.pipe && sends && *size <= PIPE_BUF)) {
                *size = 1 + random_number() % (*size - 1);
                count_fault(call, SHORTENED);
            }
        }
    }
    errno = saved_errno;
    return false;
}

/* The same for `*count` messages or events, of which any number above zero may come. */
static void fewer(enum call call, unsigned *count)
{
    if (*count > 1 && chance(mild_ppm)) {
        *count = 1 + (unsigned)(random_number() % (*count - 1));
        count_fault(call, SHORTENED);
    }
}

/* The first `size` bytes of what `vectors` describe, in `cut`.  Returns how many vectors. */
static int cut_vectors(const struct iovec *vectors, int count, size_t size, struct iovec *cut)
{
    int used = 0;
    for (; used < count && size > 0; used++) {
        cut[used] = vectors[used];
        if (cut[used].iov_len > size)
            cut[used].iov_len = size;
        size -= cut[used].iov_len;
    }
    return used;
}

static size_t vectors_size(const struct iovec *vectors, int count)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += vectors[i].iov_len;
    return size;
}

/* --- Receiving -------------------------------------------------------------------------------- */

ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
    if (disturb(CALL_recv, fd, flags, false, &size))
        return -1;
    return real_recv(fd, buffer, size, flags);
}

ssize_t recvfrom(int fd, void *restrict buffer, size_t size, int flags,
                 struct sockaddr *restrict address, socklen_t *restrict address_size)
{
    if (disturb(CALL_recvfrom, fd, flags, false, &size))
        return -1;
    return real_recvfrom(fd, buffer, size, flags, address, address_size);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    size_t size = 0; /* never shortened: the ancillary data belong to the whole */
    if (disturb(CALL_recvmsg, fd, flags, false, &size))
        return -1;
    return real_recvmsg(fd, message, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    size_t size = 0;
    if (disturb(CALL_recvmmsg, fd, flags, false, &size))
        return -1;
    fewer(CALL_recvmmsg, &count);
    return real_recvmmsg(fd, messages, count, flags, timeout);
}

ssize_t read(int fd, void *buffer, size_t size)
{
    if (disturb(CALL_read, fd, 0, false, &size))
        return -1;
    return real_read(fd, buffer, size);
}

ssize_t readv(int fd, const struct iovec *vectors, int count)
{
    struct iovec cut[VECTORS_MAX];
    size_t size = vectors_size(vectors, count), asked = size;
    if (disturb(CALL_readv, fd, 0, false, &size))
        return -1;
    if (size == asked || count > VECTORS_MAX)
        return real_readv(fd, vectors, count);
    return real_readv(fd, cut, cut_vectors(vectors, count, size, cut));
}

/* --- Sending ---------------------------------------------------------------------------------- */

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    if (disturb(CALL_send, fd, flags, true, &size))
        return -1;
    return real_send(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address,
               socklen_t address_size)
{
    if (disturb(CALL_sendto, fd, flags, true, &size))
        return -1;
    return real_sendto(fd, data, size, flags, address, address_size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct iovec cut[VECTORS_MAX];
    int count = (int)message->msg_iovlen;
    size_t size = vectors_size(message->msg_iov, count), asked = size;
    if (disturb(CALL_sendmsg, fd, flags, true, &size))
        return -1;
    if (size == asked || count > VECTORS_MAX || message->msg_controllen)
        return real_sendmsg(fd, message, flags);
    struct msghdr shorter = *message;
    shorter.msg_iov = cut;
    shorter.msg_iovlen = (size_t)cut_vectors(message->msg_iov, count, size, cut);
    return real_sendmsg(fd, &shorter, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    size_t size = 0;
    if (disturb(CALL_sendmmsg, fd, flags, true, &size))
        return -1;
    fewer(CALL_sendmmsg, &count);
    return real_sendmmsg(fd, messages, count, flags);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (disturb(CALL_write, fd, 0, true, &size))
        return -1;
    return real_write(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *vectors, int count)
{
    struct iovec cut[VECTORS_MAX];
    size_t size = vectors_size(vectors, count), asked = size;
    if (disturb(CALL_writev, fd, 0, true, &size))
        return -1;
    if (size == asked || count > VECTORS_MAX)
        return real_writev(fd, vectors, count);
    return real_writev(fd, cut, cut_vectors(vectors, count, size, cut));
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    if (disturb(CALL_sendfile, out, 0, true, &size))
        return -1;
    return real_sendfile(out, in, offset, size);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size)
{
    if (disturb(CALL_sendfile64, out, 0, true, &size))
        return -1;
    return real_sendfile64(out, in, offset, size);
}

ssize_t splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned flags)
{
    if (disturb(CALL_splice, out, 0, true, &size))
        return -1;
    return real_splice(in, in_offset, out, out_offset, size, flags);
}

/* --- Making descriptors and connections ------------------------------------------------------- */

static bool exhausted(enum call call)
{
    if (is_ordered(call))
        return true;
    if (!chance(severe_ppm))
        return false;
    inject(call, ONE_OF(EMFILE, ENFILE));
    return true;
}

/* Severe for a listener is to run out; its connections stay in the backlog, as they would. */
static bool refuse_accept(enum call call, int fd)
{
    struct kind kind;
    if (is_ordered(call))
        return true;
    if (chance(severe_ppm)) {
        inject(call, ONE_OF(EMFILE, ENFILE, ENOBUFS, ENOMEM));
        return true;
    }
    if (chance(mild_ppm) && look_at(fd, &kind) && kind.nonblocking) {
        inject(call, kind.edge_triggered ? ONE_OF(EINTR, ECONNABORTED)
                                         : ONE_OF(EINTR, EAGAIN, ECONNABORTED));
        return true;
    }
    return false;
}

int accept(int fd, struct sockaddr *restrict address, socklen_t *restrict size)
{
    return refuse_accept(CALL_accept, fd) ? -1 : real_accept(fd, address, size);
}

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags)
{
    return refuse_accept(CALL_accept4, fd) ? -1 : real_accept4(fd, address, size, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    bool internet = address->sa_family == AF_INET || address->sa_family == AF_INET6;
    struct kind kind;
    if (is_ordered(CALL_connect))
        return -1;
    if (chance(severe_ppm) && look_at(fd, &kind) && kind.stream)
        return inject(CALL_connect,
                      internet ? ONE_OF(ECONNREFUSED, ETIMEDOUT, ENETUNREACH, EADDRNOTAVAIL)
                               : ONE_OF(ECONNREFUSED, ENOMEM));
    int result = real_connect(fd, address, size);
    if (result < 0 && errno == EINPROGRESS) {
        /* Interrupted, the kernel goes on connecting. */
        if (chance(mild_ppm))
            return inject(CALL_connect, EINTR);
        errno = EINPROGRESS;
    }
    return result;
}

int socket(int family, int type, int protocol)
{
    if (is_ordered(CALL_socket))
        return -1;
    if (chance(severe_ppm))
        return inject(CALL_socket, ONE_OF(EMFILE, ENFILE, ENOBUFS, ENOMEM));
    return real_socket(family, type, protocol);
}

int socketpair(int family, int type, int protocol, int pair[2])
{
    return exhausted(CALL_socketpair) ? -1 : real_socketpair(family, type, protocol, pair);
}

int pipe(int ends[2])
{
    return exhausted(CALL_pipe) ? -1 : real_pipe(ends);
}

int pipe2(int ends[2], int flags)
{
    return exhausted(CALL_pipe2) ? -1 : real_pipe2(ends, flags);
}

/* --- Waiting ---------------------------------------------------------------------------------- */

int epoll_ctl(int set, int operation, int fd, struct epoll_event *event)
{
    struct kind kind;
    if (operation == EPOLL_CTL_ADD && is_ordered(CALL_epoll_ctl))
        return -1;
    if (operation == EPOLL_CTL_ADD && chance(severe_ppm) && look_at(fd, &kind)) {
        int error = ONE_OF(ENOMEM, ENOSPC);
        remember(&kind, error);
        return inject(CALL_epoll_ctl, error);
    }
    if (operation != EPOLL_CTL_DEL && look_at(fd, &kind)) /* first: what comes next may be a call */
        atomic_store(&edges[kind.inode & (BROKEN_SLOTS - 1)],
                     event->events & EPOLLET ? kind.inode : 0);
    return real_epoll_ctl(set, operation, fd, event);
}

int epoll_wait(int set, struct epoll_event *events, int count, int timeout_ms)
{
    if (is_ordered(CALL_epoll_wait))
        return -1;
    if (timeout_ms && chance(mild_ppm))
        return inject(CALL_epoll_wait, EINTR);
    unsigned shortened = (unsigned)count;
    fewer(CALL_epoll_wait, &shortened);
    return real_epoll_wait(set, events, (int)shortened, timeout_ms);
}

/* For those that the C library has no function for. */
long syscall(long number, ...)
{
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_epoll_pwait2) {
        if (is_ordered(CALL_epoll_pwait2))
            return -1;
        if (chance(mild_ppm))
            return inject(CALL_epoll_pwait2, EINTR);
        unsigned count = (unsigned)arguments[2];
        fewer(CALL_epoll_pwait2, &count);
        arguments[2] = (long)count;
    } else if (number == SYS_pidfd_open && exhausted(CALL_pidfd_open)) {
        return -1;
    }
    return real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3],
                        arguments[4], arguments[5]);
}
