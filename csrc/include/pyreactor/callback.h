/*
 * A callback: something the loop runs once.  It is embedded in its owner (a Handle, a timer, a C
 * program's own struct), so that scheduling allocates nothing.
 *
 * While it is scheduled the loop holds it: the owner must stay alive until `run` was called or the
 * callback was taken back with pr_loop_take_ready() or pr_timer_heap_remove().
 */
#ifndef PYREACTOR_CALLBACK_H
#define PYREACTOR_CALLBACK_H

struct pr_callback {
    /* Runs it.  Returns 0, or non-zero to end the turn here; what is left runs in the next. */
    int (*run)(struct pr_callback *callback);
    void *owner;              /* borrowed: whose callback this is */
    struct pr_callback *next; /* the link while it is in the inbox */
};

#endif
