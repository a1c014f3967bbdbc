/*
 * The eventfd, the pipe and its signal.
 */
#include "pyreactor/notifier.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

const uint64_t pr_notifier_one = 1; /* an eventfd takes all of it, the pipe one byte */

int pr_notifier_init(struct pr_notifier *notifier)
{
    *notifier = (struct pr_notifier){.pipe_read_fd = -1, .pipe_write_fd = -1, .signal_fd = -1};
    notifier->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return notifier->event_fd < 0 ? -errno : 0;
}

static void close_signal(struct pr_notifier *notifier)
{
    if (notifier->signal_fd >= 0)
        close(notifier->signal_fd);
    if (notifier->pipe_read_fd >= 0) {
        close(notifier->pipe_read_fd);
        close(notifier->pipe_write_fd);
    }
    notifier->signal_fd = notifier->pipe_read_fd = notifier->pipe_write_fd = -1;
}

void pr_notifier_deinit(struct pr_notifier *notifier)
{
    close_signal(notifier);
    close(notifier->event_fd);
}

int pr_notifier_prepare_signal(struct pr_notifier *notifier)
{
    int ends[2];
    struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = gettid()};
    if (notifier->signal_fd >= 0)
        return 0;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    notifier->pipe_read_fd = ends[0];
    notifier->pipe_write_fd = ends[1];
    notifier->signal_number = SIGRTMIN + 2;
    sigemptyset(&notifier->signals);
    sigaddset(&notifier->signals, notifier->signal_number);
    sigaddset(&notifier->signals, SIGIO);
    notifier->signal_fd = signalfd(-1, &notifier->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    /* Blocked first: unblocked it would end the process. */
    pthread_sigmask(SIG_BLOCK, &notifier->signals, &notifier->mask_before);
    notifier->has_mask = true;
    if (notifier->signal_fd < 0 || fcntl(ends[0], F_SETOWN_EX, &owner) < 0 ||
        fcntl(ends[0], F_SETSIG, notifier->signal_number) < 0 ||
        fcntl(ends[0], F_SETFL, O_NONBLOCK | O_ASYNC) < 0) {
        int error = -errno;
        pr_notifier_end(notifier);
        close_signal(notifier);
        return error;
    }
    return 0;
}

static int take_signals(const struct pr_notifier *notifier)
{
    const struct timespec at_once = {0};
    siginfo_t info;
    int count = 0;
    while (sigtimedwait(&notifier->signals, &info, &at_once) > 0)
        count++;
    return count;
}

void pr_notifier_end(struct pr_notifier *notifier)
{
    if (!notifier->has_mask)
        return;
    notifier->has_mask = false;
    if (notifier->pipe_read_fd >= 0) /* no more of them from here on */
        (void)fcntl(notifier->pipe_read_fd, F_SETFL, O_NONBLOCK);
    (void)take_signals(notifier);
    pthread_sigmask(SIG_SETMASK, &notifier->mask_before, NULL);
}

int pr_notifier_write(const struct pr_notifier *notifier, enum pr_notify notify)
{
    ssize_t written =
        write(pr_notifier_fd(notifier, notify), &pr_notifier_one, pr_notifier_bytes(notify));
    return written < 0 ? -errno : 0;
}

bool pr_notifier_await(struct pr_notifier *notifier, struct pr_aio *aio)
{
    if (notifier->early > 0) {
        notifier->early--;
        return false;
    }
    aio->next = NULL;
    if (notifier->oldest)
        notifier->newest->next = aio;
    else
        notifier->oldest = aio;
    notifier->newest = aio;
    return true;
}

struct pr_aio *pr_notifier_take(struct pr_notifier *notifier)
{
    char bytes[256];
    struct pr_aio *first = notifier->oldest;
    struct pr_aio *last = NULL;
    if (take_signals(notifier) == 0)
        return NULL;
    /* A byte for each operation; several signals may have become one where the kernel's queue was
     * full. */
    ssize_t count;
    while ((count = read(notifier->pipe_read_fd, bytes, sizeof bytes)) > 0) {
        for (; count > 0 && notifier->oldest; count--) {
            last = notifier->oldest;
            notifier->oldest = last->next;
        }
        notifier->early += (size_t)count;
    }
    if (!last)
        return NULL;
    last->next = NULL;
    return first;
}
