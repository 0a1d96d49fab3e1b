/*
 * fault.h
 *		Named fault points for the branches that only a crash takes.
 *
 * Compiled in only with KRAHODB_FAULT_POINTS (test builds); otherwise
 * KDB_FAULT_POINT is nothing.  The superuser GUC krahodb.fault_point, a string
 * "name=action", arms one point per process: action is "kill" (SIGKILL to
 * itself), "crash" (abort the server as a PANIC would), "error" (raise an
 * error) or "wait" (until the GUC, re-read on SIGHUP, has another value).
 * What KDB_FAULT_SKIPS guards is left out while the point is armed with "skip".
 * "name@number=action" does it from the number-th time on.
 *
 * krahodb.test_apply_workers belongs to test builds as well: it runs any test with
 * lanes.
 */
#ifndef KRAHODB_FAULT_H
#define KRAHODB_FAULT_H

#include "postgres.h"

/* For how long fetch.c waits for other streams, ms; tests say how long. */
#define KDB_AWAIT_MS	50

#ifdef KRAHODB_FAULT_POINTS
extern char *KdbFaultPointSetting;	/* the GUC's value */
extern int	KdbTestApplyWorkers;	/* apply_workers of subscriptions that do not say it */
extern int	KdbTestAwaitSeen;	/* instead of KDB_AWAIT_MS */
extern void KdbFaultPoint(const char *name);
extern bool KdbFaultSkips(const char *name);
#define KDB_FAULT_POINT(name)	KdbFaultPoint(name)
#define KDB_DEFAULT_APPLY_WORKERS	KdbTestApplyWorkers
#define KDB_AWAIT_SEEN	KdbTestAwaitSeen
#define KDB_FAULT_SKIPS(name)	KdbFaultSkips(name)
#else
#define KDB_DEFAULT_APPLY_WORKERS	1
#define KDB_AWAIT_SEEN	KDB_AWAIT_MS
#define KDB_FAULT_POINT(name)	((void) 0)
#define KDB_FAULT_SKIPS(name)	false
#endif

#endif							/* KRAHODB_FAULT_H */
