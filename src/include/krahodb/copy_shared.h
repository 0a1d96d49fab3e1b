/*
 * copy_shared.h
 *		Initial copies under way, in shared memory.
 *
 * One entry for each worker slot of the engine's array, as each table that is
 * copied has a synchronisation worker.  That worker (the leader) fills the entry
 * in and clears it; it and its helpers take ranges from it and count what they
 * receive.  Who wants to know how far a copy is reads it.
 *
 * METERS limit the rate of all copies of a subscription together.  A meter is
 * the time until which what was received has been paid for; one that lies in the
 * past says nothing, so it can be given to another subscription.
 */
#ifndef KRAHODB_COPY_SHARED_H
#define KRAHODB_COPY_SHARED_H

#include "postgres.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/s_lock.h"

#define KDB_COPY_MAX_RANGES		1000	/* of one table */
#define KDB_COPY_MAX_WORKERS	32	/* for one table */
#define KDB_COPY_SNAPSHOT_LEN	64

/* Settings, see init/guc.c. */
extern int	KdbCopyWorkersPerTable; /* 0: never in ranges */
extern int	KdbCopyRangeSize;	/* kB */
extern int	KdbCopyRateLimit;	/* kB/s, 0: none */

typedef enum KdbRangeState
{
	KDB_RANGE_TODO,
	KDB_RANGE_TAKEN,			/* somebody copies it */
	KDB_RANGE_LEFT,				/* a helper could not; the leader will */
	KDB_RANGE_DONE
} KdbRangeState;

typedef struct KdbSharedCopy
{
	slock_t		mutex;			/* of all below but the atomics */
	Oid			subid;			/* InvalidOid: nothing is copied */
	Oid			dbid;
	Oid			userid;			/* who the workers run as */
	Oid			relid;
	uint64		generation;		/* goes up with each copy in this entry */
	TimestampTz started;
	TimestampTz row_time;		/* that copied rows show, see KdbCopiedRowTime */
	char		snapshot[KDB_COPY_SNAPSHOT_LEN];	/* exported at the publisher */
	XLogRecPtr	startpos;		/* where the stream will begin */
	int			nworkers;		/* that copy now, the leader among them */
	uint64		rows_expected;	/* of a table that is copied as a whole; 0: unknown */
	uint64		pages;			/* of all ranges */
	uint64		pages_done;
	uint64		pages_kept;		/* of them, those that an earlier attempt had copied */
	int			nranges;
	int			nranges_done;
	uint8		state[KDB_COPY_MAX_RANGES]; /* of KdbRangeState */
	uint8		taken_by[KDB_COPY_MAX_RANGES];	/* 0: the leader; else the helper's number */

	pg_atomic_uint64 rows;		/* received since it started */
	pg_atomic_uint64 bytes;
} KdbSharedCopy;

typedef struct KdbCopyMeter
{
	Oid			subid;
	int			rate;			/* kB/s that paid_until was computed with */
	int64		paid_until;		/* KdbCopyMeterNow */
} KdbCopyMeter;

typedef struct KdbCopyShared
{
	slock_t		meter_mutex;
	int			ncopies;		/* length of both arrays */
	KdbCopyMeter *meters;
	KdbSharedCopy *copies;
} KdbCopyShared;

extern KdbCopyShared *KdbCopies;

/* For shared.c; the second one under AddinShmemInitLock. */
extern Size KdbCopySharedSize(void);
extern void KdbCopySharedStart(void);

/* Microseconds of a clock that nobody sets. */
extern int64 KdbCopyMeterNow(void);

/*
 * Account for bytes that were received for a subscription.  Returns how long to
 * wait before receiving more, in microseconds.
 */
extern int64 KdbCopyMeterPay(Oid subid, int64 bytes);

#endif							/* KRAHODB_COPY_SHARED_H */
