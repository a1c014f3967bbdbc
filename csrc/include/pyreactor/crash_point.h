/*
 * Crash points: the steps at which a process may die and leave what it shares with others half
 * done.  They are nothing but marks, except in the crash test's program, which defines
 * PR_CRASH_POINTS and pr_crash_point(), and kills itself at each of them in turn.
 */
#ifndef PYREACTOR_CRASH_POINT_H
#define PYREACTOR_CRASH_POINT_H

#ifdef PR_CRASH_POINTS
/* Called at each step; `name` tells which.  Any thread. */
void pr_crash_point(const char *name);
#define PR_CRASH_POINT(name) pr_crash_point(name)
#else
#define PR_CRASH_POINT(name) ((void)0)
#endif

#endif
