/*
 * Who takes part, and who is dead.
 */
#include "pyreactor/participants.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pyreactor/crash_point.h"

#define STAT_BYTES_MAX 1024
#define SPACES_BEFORE_START_TIME 20 /* in /proc/PID/stat, after the name */

/* The start time of a process in clock ticks since boot, or 0 where there is none of that number.
 */
static uint64_t start_time_of(int32_t pid)
{
    char path[64];
    char text[STAT_BYTES_MAX];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return 0;
    text[size] = '\0';
    char *field = strrchr(text, ')'); /* the name may hold anything, parentheses too */
    for (int i = 0; field && i < SPACES_BEFORE_START_TIME; i++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field, NULL, 10) : 0;
}

static uint64_t pid_namespace(void)
{
    struct stat status;
    return stat("/proc/self/ns/pid", &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static int lock_byte(int fd, uint32_t index, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = index, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int pr_participants_join(struct pr_participant *table, uint32_t count, int fd)
{
    for (uint32_t index = 0; index < count; index++) {
        struct pr_participant *place = &table[index];
        if (atomic_load_explicit(&place->used, memory_order_acquire) ||
            lock_byte(fd, index, F_WRLCK) < 0)
            continue;
        PR_CRASH_POINT("join: locked");
        place->generation++;
        place->pid = getpid();
        place->start_time = start_time_of(place->pid);
        place->pid_namespace = pid_namespace();
        PR_CRASH_POINT("join: written");
        atomic_store_explicit(&place->used, 1, memory_order_release);
        PR_CRASH_POINT("join: joined");
        return (int)index;
    }
    return -EUSERS;
}

void pr_participants_leave(struct pr_participant *table, uint32_t index, int fd)
{
    atomic_store_explicit(&table[index].used, 0, memory_order_release);
    PR_CRASH_POINT("leave: left");
    lock_byte(fd, index, F_UNLCK);
}

bool pr_participant_is_dead(struct pr_participant *table, uint32_t index, int fd)
{
    struct pr_participant *place = &table[index];
    if (!atomic_load_explicit(&place->used, memory_order_acquire))
        return false;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = index, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return false;
    if (lock.l_type == F_UNLCK)
        return true;
    if (place->pid_namespace == 0 || place->pid_namespace != pid_namespace())
        return false;
    return place->start_time != 0 && start_time_of(place->pid) != place->start_time;
}
