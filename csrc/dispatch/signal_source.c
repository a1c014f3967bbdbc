/*
 * signalfd, and the handler that brings astray signals to it.
 */
#include "pyreactor/signal_source.h"

#include <errno.h>
#include <pthread.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SIGNALS_PER_READ_MAX 64

/* Runs in a thread that does not block the signal: blocks it there and sends it again, to whoever
 * reads the source. */
static void defer(int signal_number, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    ucontext_t *interrupted = context;
    siginfo_t again = *info;
    sigaddset(&interrupted->uc_sigmask, signal_number); /* in force from the handler's return */
    if (syscall(SYS_rt_sigqueueinfo, getpid(), signal_number, &again) < 0) {
        again.si_code = SI_QUEUE; /* only the main thread may say that another process sent it */
        (void)syscall(SYS_rt_sigqueueinfo, getpid(), signal_number, &again);
    }
    errno = saved_errno;
}

int pr_signal_source_init(struct pr_signal_source *source)
{
    sigemptyset(&source->signals);
    source->fd = signalfd(-1, &source->signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return source->fd < 0 ? -errno : 0;
}

int pr_signal_source_add(struct pr_signal_source *source, int signal_number)
{
    struct sigaction action = {.sa_sigaction = defer, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t one;
    if (signal_number <= 0 || signal_number >= _NSIG)
        return -EINVAL;
    if (sigismember(&source->signals, signal_number))
        return -EEXIST;
    sigfillset(&action.sa_mask);
    if (sigaction(signal_number, &action, &source->old_actions[signal_number]) < 0)
        return -errno;
    sigemptyset(&one);
    sigaddset(&one, signal_number);
    pthread_sigmask(SIG_BLOCK, &one, NULL);
    sigaddset(&source->signals, signal_number);
    return signalfd(source->fd, &source->signals, 0) < 0 ? -errno : 0;
}

int pr_signal_source_remove(struct pr_signal_source *source, int signal_number)
{
    sigset_t one;
    if (signal_number <= 0 || signal_number >= _NSIG ||
        !sigismember(&source->signals, signal_number))
        return -ENOENT;
    sigdelset(&source->signals, signal_number);
    (void)signalfd(source->fd, &source->signals, 0);
    (void)sigaction(signal_number, &source->old_actions[signal_number], NULL);
    sigemptyset(&one);
    sigaddset(&one, signal_number);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    return 0;
}

void pr_signal_source_deinit(struct pr_signal_source *source)
{
    for (int number = 1; number < _NSIG; number++)
        (void)pr_signal_source_remove(source, number);
    close(source->fd);
    source->fd = -1;
}

int pr_signal_source_read(struct pr_signal_source *source, int *signal_numbers, int max)
{
    struct signalfd_siginfo found[SIGNALS_PER_READ_MAX];
    size_t room = (size_t)(max < SIGNALS_PER_READ_MAX ? max : SIGNALS_PER_READ_MAX);
    ssize_t got = read(source->fd, found, room * sizeof *found);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    int count = (int)((size_t)got / sizeof *found);
    for (int i = 0; i < count; i++)
        signal_numbers[i] = (int)found[i].ssi_signo;
    return count;
}
