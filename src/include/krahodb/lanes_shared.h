/*
 * lanes_shared.h
 *		The processes that apply in parallel, for all to see.
 *
 * One slot for each lane of every subscription.  What lanes of a subscription
 * share besides is in a segment of their own (apply/lanes_private.h).
 */
#ifndef KRAHODB_LANES_SHARED_H
#define KRAHODB_LANES_SHARED_H

#include "postgres.h"
#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

/* What a lane does.  Names are in monitor/lanes_view.c. */
typedef enum KdbLaneState
{
	KDB_LANE_FREE,				/* the slot is nobody's */
	KDB_LANE_STARTING,
	KDB_LANE_IDLE,				/* waits for a transaction */
	KDB_LANE_APPLYING,
	KDB_LANE_WAITING,			/* for an earlier transaction that this one depends on */
	KDB_LANE_WAITING_TO_COMMIT, /* for its turn, with all changes made */
	KDB_LANE_WAITING_TO_REPEAT, /* for its turn, to apply its transaction again */
	KDB_LANE_WAITING_FOR_STREAM,	/* for more of a transaction that arrives */
	KDB_LANE_FAILED				/* its transaction is to be applied by the worker */
} KdbLaneState;

/* The lane of streamed transactions; a lane of ordinary ones has a number from 1 on. */
#define KDB_LANE_NUMBER_EARLY	0

typedef struct KdbLaneSlot
{
	/* set by the leader with the lock, as long as nobody is in the slot */
	Oid			subid;
	int			number;

	/* set by the lane */
	pid_t		pid;
	PGPROC	   *proc;
	pg_atomic_uint32 state;		/* KdbLaneState; FREE to STARTING with the lock */
	TimestampTz since;			/* in this state; for waiting and idle ones */
	TransactionId remote_xid;
	uint64		applied;		/* transactions, since it started */
	uint64		repeated;		/* times that it gave way and began again */

	/*
	 * Transactions of a subscription are numbered.  seq is the one in work, 0 if
	 * none, PG_UINT64_MAX if it has no number yet (a streamed one); waits_for the one that must have committed before it goes on, 0 if it
	 * does not wait.
	 */
	pg_atomic_uint64 seq;
	pg_atomic_uint64 waits_for;
	pg_atomic_uint32 idle;		/* sleeps until somebody has a transaction for it */
} KdbLaneSlot;

typedef union KdbLanePadded
{
	KdbLaneSlot slot;
	char		pad[2 * PG_CACHE_LINE_SIZE];
} KdbLanePadded;

typedef struct KdbLanesShared
{
	LWLock	   *lock;			/* taking and freeing slots */
	int			tranche;		/* for locks in the lanes' segments */
	int			nslots;
	KdbLanePadded slots[FLEXIBLE_ARRAY_MEMBER];
} KdbLanesShared;

extern KdbLanesShared *KdbLanes;

/* For shared.c; the second one under AddinShmemInitLock. */
extern void KdbLanesRequestShared(void);
extern void KdbLanesStartShared(void);

#endif							/* KRAHODB_LANES_SHARED_H */
