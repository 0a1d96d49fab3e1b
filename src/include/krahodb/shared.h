/*
 * shared.h
 *		KrahoDB's own shared memory: one struct, requested in one place.
 */
#ifndef KRAHODB_SHARED_H
#define KRAHODB_SHARED_H

#include "postgres.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"

/* An apply worker that is to be started again; see apply/retry.c. */
typedef struct KdbRetryEntry
{
	Oid			subid;			/* InvalidOid: free */
	bool		due;
	int			attempts;		/* of what passes, to be tried again promptly */
	int			failures;		/* of any other kind, without a transaction in between */
	TimestampTz not_before;
	XLogRecPtr	failed;			/* a remote transaction that ends behind this has failed; 0: any */
} KdbRetryEntry;

typedef struct KdbSharedState
{
	/* clock/: see clock.h */
	pg_atomic_uint64 clock_max; /* greatest TimestampTz committed here, 0 until known */
	pg_atomic_uint32 clock_enforced;	/* why the clock rule holds, and how often it was said; clock.c */
	pg_atomic_uint64 clock_unsettled;	/* older transactions may not be in clock_max; 0: all are */
	pg_atomic_uint32 clock_committing;	/* local transactions whose timestamp is not in clock_max yet */
	pg_atomic_uint64 clock_commit_waits;	/* commits that waited for the clock */
	pg_atomic_uint64 clock_commit_wait_us;	/* and how long, in microseconds */
	pg_atomic_uint64 clock_apply_waits; /* remote transactions that waited */
	pg_atomic_uint64 clock_apply_wait_us;

	/* version records and merges under way: see version_record.h, apply/converge.c */
	pg_atomic_uint64 version_records;	/* added since the server started */
	pg_atomic_uint64 floors;		/* of them, what copies contain; from 1 on */
	pg_atomic_uint64 merge_events;	/* keys that have died, values that were claimed */
	pg_atomic_uint32 merging;	/* remote transactions that are being merged */

	/* apply/fetch.c: some stream has been applied further */
	ConditionVariable seen_moved;

	/* apply/fetch.c: rows fetched from publishers since the server started */
	pg_atomic_uint64 fetched_rows;
	pg_atomic_uint64 fetch_us;	/* and how long that took, in microseconds */
	pg_atomic_uint64 fetch_failures;

	/* apply/retry.c: workers to be started again soon; LogicalRepWorkerLock */
	int			nretries;		/* length of the array */
	KdbRetryEntry retries[FLEXIBLE_ARRAY_MEMBER];
} KdbSharedState;

/* Set in every process of a server that preloads KrahoDB. */
extern KdbSharedState *KdbShared;

/* Reasons for the clock rule, in clock_enforced; see clock.h. */
#define KDB_CLOCK_SUBSCRIPTIONS	1
#define KDB_CLOCK_TABLES		2
#define KDB_CLOCK_REASONS		(KDB_CLOCK_SUBSCRIPTIONS | KDB_CLOCK_TABLES)

/* Does it hold? */
static inline bool
KdbClockHolds(void)
{
	return (pg_atomic_read_u32(&KdbShared->clock_enforced) & KDB_CLOCK_REASONS) != 0;
}

/*
 * Has the subscription workers (also of single tables) that run, or at least are to be started?
 * Takes LogicalRepWorkerLock.
 */
extern bool KdbHasWorkers(Oid subid, bool only_running);

/* Install the shared memory hooks; once, from _PG_init. */
extern void KdbSharedInit(void);

#endif							/* KRAHODB_SHARED_H */
