/*
 * The participants of something in shared memory, and which of them are dead.
 *
 * A participant is an attachment, usually one for each process.  Its number is its place in a table
 * in the segment.  As long as it lives it holds a lock on the byte of that number of the segment's
 * file, by an open file of its own; the kernel lets go of it when the process ends, however it
 * does. A number is used again only when what its dead holder left has been cleared away: so
 * whoever finds a number written anywhere knows whose it is, and no process id has to be trusted.
 *
 * A child that was forked and runs no handler may hold a copy of the open file, and with it the
 * lock.  Therefore process id and start time are in the table, too: a holder that is no more in
 * /proc is dead.
 */
#ifndef PYREACTOR_PARTICIPANTS_H
#define PYREACTOR_PARTICIPANTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PR_PARTICIPANTS_MAX 4096 /* what the 12 bits of a slot's word can name */

struct pr_participant {
    _Atomic(uint32_t) used; /* 0: the number is free */
    uint32_t generation;    /* how often it was used */
    uint64_t start_time;    /* of the process, in clock ticks since boot */
    uint64_t pid_namespace; /* which `pid` is to be read in */
    int32_t pid;
};

/*
 * Takes a free number of the table's `count`, and locks its byte of `fd`.  Returns it, or -EUSERS
 * where all are taken.  Any thread that holds the lock by which the caller protects the table.
 */
int pr_participants_join(struct pr_participant *table, uint32_t count, int fd);

/* Gives a number back that is the caller's, or that of one who is dead.  Any thread, as above. */
void pr_participants_leave(struct pr_participant *table, uint32_t index, int fd);

/*
 * Whether a number belongs to somebody who lives no more.  `fd` is an open file of one who does.
 * Any thread.
 */
bool pr_participant_is_dead(struct pr_participant *table, uint32_t index, int fd);

#endif
