/*
 * A segment: memory that processes share, an anonymous file (memfd) that each of them maps.  It has
 * no name in any file system: whoever has its descriptor can attach to it, and it ends with the
 * last descriptor and mapping.  Its size is sealed, so that nobody can take away memory that others
 * use, and all of it is reserved when it is made: a machine that is out of memory says so then.
 */
#ifndef PYREACTOR_SEGMENT_H
#define PYREACTOR_SEGMENT_H

#include <stddef.h>

struct pr_segment {
    int fd;       /* owned; close-on-exec */
    void *memory; /* owned: the mapping */
    size_t size;
};

/*
 * Makes a segment of `size` bytes, all zero; `name` is what /proc/PID/maps shows.  Returns 0 or a
 * negative errno.  Any thread.
 */
int pr_segment_create(struct pr_segment *segment, const char *name, size_t size);

/*
 * Attaches to the segment that `fd` refers to, which stays the caller's; `segment->fd` is an open
 * file of its own, so that locks on it are nobody else's.  Returns 0, -EINVAL where it is not a
 * segment, or another negative errno.  Any thread.
 */
int pr_segment_attach(struct pr_segment *segment, int fd);

/* Unmaps it and closes the descriptor.  One thread, after all others. */
void pr_segment_detach(struct pr_segment *segment);

#endif
