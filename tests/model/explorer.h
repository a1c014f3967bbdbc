/*
 * The explorer: runs a few threads of real code in every order, and with every value that C11's
 * memory model lets a load return, and says whether something can go wrong.
 *
 * The code under test is compiled unchanged, with -fsanitize=thread, but linked with explorer.c in
 * the place of ThreadSanitizer's library: so every atomic operation and every access to memory
 * comes here.  The threads are coroutines of one thread of the system.  Before each atomic
 * operation on a registered location, and each futex call, the explorer decides who goes on; it
 * takes one decision after the other until all have been tried.
 *
 * Memory: each location keeps all values ever stored to it, in order.  Each thread has a view: for
 * each location, the oldest value it may still read.  A load may return any value from there on; an
 * acquire load of a release store takes over the storing thread's view.  A read-modify-write reads
 * the last value.  Sequentially consistent loads read no value older than the last sequentially
 * consistent store to the location.  Not modelled: stores that take effect before earlier stores of
 * other threads to the same location (there are no two such stores here that are not ordered), and
 * loads of values that are stored later (RC11 forbids these as well).
 *
 * Plain memory: two accesses, one of them a write, that no happens-before orders are a data race,
 * and reported.
 *
 * States met before are not explored again.  A state is what is in memory, the views, and each
 * thread's stack and registers; what the threads write elsewhere has to be named to the explorer.
 */
#ifndef PYREACTOR_TESTS_EXPLORER_H
#define PYREACTOR_TESTS_EXPLORER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPLORER_THREADS_MAX 4

struct scenario {
    const char *name;                            /* a sentence with underscores */
    void (*setup)(void);                         /* before each execution: memory as new */
    void (*threads[EXPLORER_THREADS_MAX])(void); /* run in every order */
    void (*check)(void);                         /* after each execution */
    int timeouts;    /* how many sleeps may end by their deadline in one execution */
    int interrupts;  /* how many by a signal */
    int stale_loads; /* how many loads may return an older value; 0: sequential consistency */
};

/* Says what is shared, once, before the first scenario that uses it. */
void explorer_atomic(const void *address, const char *name);
void explorer_plain(void *address, size_t size);

/* Forgets what is shared. */
void explorer_forget(void);

/* Fails the execution that runs, and prints how it came about. */
void explorer_fail(const char *what);

#define EXPLORER_CHECK(condition)                                                                  \
    do {                                                                                           \
        if (!(condition))                                                                          \
            explorer_fail(#condition " does not hold");                                            \
    } while (0)

/* From here on only scenarios with `text` in their names are run. */
void explorer_select(const char *text);

/* Runs all executions of a scenario, and prints how many there were.  Ends the program at the first
 * that fails. */
void explorer_run(const struct scenario *scenario);

#endif
