/*
 * Errors: every function of the core returns 0 (or a count) or a negative errno.
 * This header turns such a code into words; nothing here keeps state.
 */
#ifndef PYREACTOR_ERROR_H
#define PYREACTOR_ERROR_H

/* The system's text for `error` (a negative errno).  Any thread. */
const char *pr_strerror(int error);

/* What the user can do about `error`, or NULL where there is nothing to add.  Any thread. */
const char *pr_error_hint(int error);

#endif
