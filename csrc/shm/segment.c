/*
 * Memory between processes, by memfd.
 */
#include "pyreactor/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

static int map(struct pr_segment *segment)
{
    segment->memory = mmap(NULL, segment->size, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0);
    return segment->memory == MAP_FAILED ? -errno : 0;
}

int pr_segment_create(struct pr_segment *segment, const char *name, size_t size)
{
    int error;
    segment->size = size;
    segment->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (segment->fd < 0)
        return -errno;
    do
        error = posix_fallocate(segment->fd, 0, (off_t)size);
    while (error == EINTR);
    if (error > 0) {
        error = -error;
        goto close_fd;
    }
    if (fcntl(segment->fd, F_ADD_SEALS, SEALS) < 0) {
        error = -errno;
        goto close_fd;
    }
    error = map(segment);
    if (error < 0)
        goto close_fd;
    return 0;

close_fd:
    close(segment->fd);
    return error;
}

int pr_segment_attach(struct pr_segment *segment, int fd)
{
    char path[64];
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS)
        return errno == EBADF ? -EBADF : -EINVAL;
    /* Not dup(): that would share the open file, and with it the locks. */
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    segment->fd = open(path, O_RDWR | O_CLOEXEC);
    if (segment->fd < 0)
        return -errno;
    int error = 0;
    if (fstat(segment->fd, &status) < 0)
        error = -errno;
    segment->size = (size_t)status.st_size;
    if (error == 0)
        error = map(segment);
    if (error < 0)
        close(segment->fd);
    return error;
}

void pr_segment_detach(struct pr_segment *segment)
{
    munmap(segment->memory, segment->size);
    close(segment->fd);
    segment->memory = NULL;
    segment->fd = -1;
}
