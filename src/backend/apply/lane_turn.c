/*
 * lane_turn.c
 *		When may this lane go on?
 *
 * Transactions are applied side by side and committed in the origin's order.  A
 * lane with transaction s may commit when s - 1 has ("its turn"), and its
 * transaction then looks as if it had been applied behind it, because of two rules:
 *
 * THE PLAIN PATH.  Before its turn a lane only does what it would do at its turn as
 * well: it writes over a live row that its change follows without any conflict, or
 * inserts where nothing is in the way.  If an earlier transaction touches such a row
 * later than this one, the heap or the unique index makes it wait for this lane.
 * Whenever a lane meets anything else (a missing row, a row or dead row in the way,
 * a conflict, triggers), it waits for its turn and looks again (KdbLaneSettle).
 * Errors count as that: what fails before its turn is rolled back, and repeated at
 * its turn.
 *
 * GIVING WAY.  So an earlier transaction may wait for a later one, which waits for
 * its turn:
 *
 *		A (earlier)		->	B's row lock
 *		B				->	its turn, that is A
 *
 * or with a local session L in between, A -> L -> B.  The engine's deadlock detector
 * does not see turns.  It need not: every such circle goes through an earlier lane
 * that waits for a lock, and comes into one that waits for its turn by a lock of
 * that.  So a lane that waits for its turn looks from time to time whether both are
 * the case; if so it rolls back, and repeats its transaction at its turn.  Circles
 * without a turn in them are the detector's.
 *
 * ORIGIN.  In 15 a replication origin is held by one process.  Commits are one after
 * the other, so a lane takes the subscription's origin when its turn has come and
 * lets go of it when it has committed.  The origin's progress is so moved by the
 * very commits, between their records and their end, as without lanes: checkpoints
 * and crashes find it exact.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "krahodb/fault.h"
#include "krahodb/shared.h"
#include "lanes_private.h"

/* Looks before going to sleep: many where they help, as the engine's spinlocks do. */
#define FEWEST_SPINS	10
#define MOST_SPINS		400
#define MORE_SPINS		20		/* after a wait that ended with them */
#define FIRST_NAP		2L		/* ms; between looks for a circle */
#define LONGEST_NAP		20L

KdbLaneTurn KdbMyTurn;

/* Called with the slot of this process. */
void
KdbLaneSetState(KdbLaneSlot *slot, KdbLaneState state)
{
	if (pg_atomic_read_u32(&slot->state) == (uint32) state)
		return;
	slot->since = GetCurrentTimestamp();
	pg_atomic_write_u32(&slot->state, state);
}

/* ---- giving way ---- */

/* Does a lane with an earlier transaction wait for a lock? */
static bool
earlier_lane_is_blocked(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = pg_atomic_read_u32(&group->nlanes);

	for (int i = 0; i < n; i++)
	{
		KdbLaneSlot *slot = KdbLaneOf(group, i);
		uint64		seq = pg_atomic_read_u64(&slot->seq);
		PGPROC	   *proc = slot->proc;

		if (seq != 0 && seq < KdbMyTurn.seq && proc != NULL &&
			*(LOCK *volatile *) &proc->waitLock != NULL)
			return true;
	}
	return false;
}

static bool
is_waited_for(int partition)
{
	LWLock	   *lock = LockHashPartitionLockByIndex(partition);
	SHM_QUEUE  *queue = &MyProc->myProcLocks[partition];
	PROCLOCK   *held;
	bool		found = false;

	LWLockAcquire(lock, LW_SHARED);
	held = (PROCLOCK *) SHMQueueNext(queue, queue, offsetof(PROCLOCK, procLink));
	while (held != NULL && !found)
	{
		found = held->holdMask != 0 && held->tag.myLock->waitMask != 0;
		held = (PROCLOCK *) SHMQueueNext(queue, &held->procLink, offsetof(PROCLOCK, procLink));
	}
	LWLockRelease(lock);
	return found;
}

/* See lanes_private.h. */
bool
KdbSomebodyWaitsForMe(void)
{
	for (int i = 0; i < NUM_LOCK_PARTITIONS; i++)
	{
		if (is_waited_for(i))
			return true;
	}
	return false;
}

static void
give_way_if_needed(void)
{
	if (!IsTransactionState() || !earlier_lane_is_blocked() || !KdbSomebodyWaitsForMe())
		return;
	KDB_FAULT_POINT("lane_gives_way");
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg_internal("transaction %u gives way to an earlier one", KdbApply.remote_xid)));
}

/* ---- waiting ---- */

/* See lanes_private.h. */
void
KdbLaneStopIfAsked(void)
{
	if (pg_atomic_read_u32(&KdbMyLaneGroup->stopping))
		proc_exit(0);
	CHECK_FOR_INTERRUPTS();
}

static void
sleep_until_committed(uint64 seq)
{
	long		nap = FIRST_NAP;

	while (!KdbLaneIsCommitted(KdbMyLaneGroup, seq))
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   nap, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		KdbLaneStopIfAsked();
		if (rc & WL_TIMEOUT)
		{
			give_way_if_needed();
			nap = Min(nap * 2, LONGEST_NAP);
		}
	}
}

static bool
spin_until_committed(uint64 seq)
{
	static int	spins = FEWEST_SPINS;

	if (KdbLaneIsCommitted(KdbMyLaneGroup, seq))
		return true;
	for (int i = 0; i < spins; i++)
	{
		pg_spin_delay();
		if (KdbLaneIsCommitted(KdbMyLaneGroup, seq))
		{
			spins = Min(spins + MORE_SPINS, MOST_SPINS);
			return true;
		}
	}
	spins = Max(spins - 1, FEWEST_SPINS);
	return false;
}

/* See lanes_private.h. */
void
KdbLaneWaitFor(uint64 seq, KdbLaneState state)
{
	KdbLaneSlot *slot = KdbMyTurn.slot;

	if (spin_until_committed(seq))
		return;
	KdbLaneSetState(slot, state);
	pg_atomic_write_u64(&slot->waits_for, seq);
	pg_memory_barrier();
	sleep_until_committed(seq);
	pg_atomic_write_u64(&slot->waits_for, 0);
	KdbLaneSetState(slot, KDB_LANE_APPLYING);
}

/*
 * Triggers, and functions of defaults, are to see what earlier transactions have written.  Where
 * "default_transaction_isolation" has them see what there was at the first change, that is to be made again.
 */
static void
require_fresh_snapshot(void)
{
	if (IsolationUsesXactSnapshot() && !KdbMyTurn.began_first)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg_internal("snapshot of transaction %u is older than earlier ones", KdbApply.remote_xid)));
}

/* See apply_private.h. */
bool
KdbLaneSettle(void)
{
	if (!KdbInLane || KdbMyTurn.first)
		return false;
	if (KdbInEarly())
		KdbEarlyGiveUp("a change needs all earlier transactions to be applied");
	KdbLaneWaitFor(KdbMyTurn.seq - 1, KDB_LANE_WAITING);
	require_fresh_snapshot();
	KdbMyTurn.first = true;
	return true;
}

/* See apply_private.h. */
void
KdbLaneMustBeFirst(void)
{
	if (KdbLaneSettle())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg_internal("transaction %u was ahead of earlier ones", KdbApply.remote_xid)));
}

/* See apply_private.h.  It would be counted here and there, and by its code it passes. */
void
KdbLaneLeaveError(void)
{
	if (KdbInLane)
		ereport(ERROR,
				(errcode(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION),
				 errmsg_internal("a conflict is resolved by an error")));
}

/* See apply_private.h. */
void
KdbLaneReleaseSessionLocks(void)
{
	if (KdbMyOptions->apply_workers > 1)
		LockReleaseSession(USER_LOCKMETHOD);
}

/* ---- the turn ---- */

/* See apply_private.h. */
void
KdbLaneBeforeCommit(void)
{
	if (!KdbInLane)
		return;
	if (KdbInEarly())
	{
		KdbEarlyTakeOrigin();
		return;
	}
	KDB_FAULT_POINT("lane_before_turn");
	KdbLaneWaitFor(KdbMyTurn.seq - 1, KDB_LANE_WAITING_TO_COMMIT);
	KdbMyTurn.first = true;
	replorigin_session_setup(KdbApply.origin);
	KdbMyTurn.holds_origin = true;
	KDB_FAULT_POINT("lane_at_turn");
}

/* See apply_private.h. */
bool
KdbLaneHoldsOrigin(void)
{
	return KdbInEarly() ? KdbEarlyHoldsOrigin() : KdbMyTurn.holds_origin;
}

static void
let_go_of_origin(void)
{
	if (!KdbMyTurn.holds_origin)
		return;
	KdbMyTurn.holds_origin = false;
	replorigin_session_reset();
}

/* Those who wait for this or an earlier transaction. */
static void
wake_waiting(uint64 seq)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = pg_atomic_read_u32(&group->nlanes);
	uint64		wanted = pg_atomic_read_u64(&group->leader_waits_for);

	for (int i = 0; i < n; i++)
	{
		KdbLaneSlot *slot = KdbLaneOf(group, i);
		uint64		waits_for = pg_atomic_read_u64(&slot->waits_for);

		PGPROC	   *proc = slot->proc;

		if (proc != NULL && waits_for != 0 && waits_for <= seq)
			SetLatch(&proc->procLatch);
	}
	if (wanted != 0 && wanted <= seq)
		SetLatch(group->leader);
}

/* See lanes_private.h.  Called in a transaction that has committed: raises no error. */
void
KdbLanePassTurn(XLogRecPtr local_end)
{
	KdbLaneGroup *group = KdbMyLaneGroup;

	Assert(!KdbMyTurn.passed);
	Assert(pg_atomic_read_u64(&group->committed) == KdbMyTurn.seq - 1);
	KDB_FAULT_POINT("lane_committed");
	let_go_of_origin();
	KdbLaneTransactionOf(group, KdbMyTurn.seq)->local_end = local_end;
	pg_write_barrier();
	pg_atomic_write_u64(&group->committed, KdbMyTurn.seq);
	pg_memory_barrier();
	KdbMyTurn.passed = true;
	wake_waiting(KdbMyTurn.seq);
}

/*
 * The transaction is visible and its record is written; releasing what it holds can go
 * on beside the next commit.
 */
static void
turn_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && KdbMyTurn.holds_origin)
		KdbLanePassTurn(XactLastCommitEnd);
}

/* See lanes_private.h. */
void
KdbLaneTurnInit(KdbLaneSlot *slot)
{
	KdbMyTurn.slot = slot;
	RegisterXactCallback(turn_xact_callback, NULL);
}

/* See lanes_private.h. */
void
KdbLaneTurnBegin(uint64 seq)
{
	Assert(!KdbMyTurn.holds_origin);
	KdbMyTurn.seq = seq;
	KdbMyTurn.first = false;
	KdbMyTurn.began_first = KdbLaneIsCommitted(KdbMyLaneGroup, seq - 1);
	KdbMyTurn.passed = false;
}

/* See lanes_private.h. */
void
KdbLaneTurnAbandon(void)
{
	pg_atomic_write_u64(&KdbMyTurn.slot->waits_for, 0);
	let_go_of_origin();
}

/*
 * See apply_private.h.  All lanes of a subscription count as one: their transactions
 * come from one node, and a later one that meets what an earlier one did has the
 * greater version.
 */
void
KdbCountMerging(bool begin)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			change = begin ? 1 : -1;

	if (!KdbInLane)
	{
		pg_atomic_fetch_add_u32(&KdbShared->merging, change);
		return;
	}
	SpinLockAcquire(&group->merge_mutex);
	if (begin ? group->nmerging++ == 0 : --group->nmerging == 0)
		pg_atomic_fetch_add_u32(&KdbShared->merging, change);
	SpinLockRelease(&group->merge_mutex);
}
