/*
 * early_private.h
 *		Applying a streamed transaction before it has ended.
 *
 *	early_leader.c	the apply worker's side: what has arrived, then commit or stop
 *	early_worker.c	the process that applies
 *
 * doc/internals/lanes.md, "Large transactions", has the whole of it.
 */
#ifndef EARLY_PRIVATE_H
#define EARLY_PRIVATE_H

#include "lanes_private.h"

#include "port/atomics.h"
#include "storage/fileset.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/s_lock.h"

typedef enum KdbEarlyOrder
{
	KDB_EARLY_GO_ON,			/* apply what has arrived, wait for more */
	KDB_EARLY_COMMIT,			/* everything has arrived, and it is its turn */
	KDB_EARLY_STOP				/* roll back */
} KdbEarlyOrder;

typedef struct KdbEarlyShared
{
	/* fixed when the segment is made */
	KdbLaneIdentity identity;
	PGPROC	   *leader;
	int			lane_slot;		/* in KdbLanes->slots */
	FileSet		files;			/* where spool.c has the transaction */

	pg_atomic_uint32 stopping;	/* the process is to end */

	slock_t		mutex;			/* of all below */

	/* by the leader; attempts are numbered from 1 on */
	uint64		attempt;
	TransactionId xid;
	uint64		arrived;		/* records of the file */
	KdbEarlyOrder order;
	XLogRecPtr	end_lsn;		/* with KDB_EARLY_COMMIT */
	TimestampTz commit_time;

	/* by the process: the last attempt that is over, and how it ended */
	uint64		over;
	bool		committed;		/* else it was rolled back */
	XLogRecPtr	local_end;
	char		reason[256];	/* why it was rolled back */
} KdbEarlyShared;

/* What this process applies early; NULL in all others. */
extern KdbEarlyShared *KdbMyEarly;

#endif							/* EARLY_PRIVATE_H */
