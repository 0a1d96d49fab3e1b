/*
 * slot.c
 *		The replication slot whose xmin holds back vacuum.
 *
 * A physical slot that nobody streams from: it has an xmin, and no restart_lsn,
 * so it keeps no WAL.  As long as it exists, rows that were deleted by a
 * transaction at or after its xmin stay in the heap of every table, and their
 * commit timestamps stay readable.  The horizon worker holds it (only whoever
 * has acquired a slot may write it, and nobody else can drop it then).
 *
 * DURABILITY.  The slot is on disk before this returns from creating it.  While
 * the server runs the xmin in memory is what counts, and only moves forward; the
 * one on disk follows with each checkpoint.  So what a crash leaves is older than
 * what was in effect, never newer.
 *
 * CREATION.  The xmin is that of a snapshot which is registered until the slot
 * is in effect, so at no time is there nothing to hold back vacuum.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/snapmgr.h"

#include "horizon_private.h"

/* Pauses after a failed attempt, ms. */
#define FIRST_PAUSE		5000
#define LONGEST_PAUSE	600000

static KdbTicks retry_at = 0;
static int	retry_pause = 0;

static void
failed(KdbTicks now)
{
	retry_pause = retry_pause == 0 ? FIRST_PAUSE : Min(retry_pause * 2, LONGEST_PAUSE);
	retry_at = now + retry_pause;
}

static bool
have_free_slot(void)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots && !found; i++)
		found = !ReplicationSlotCtl->replication_slots[i].in_use;
	LWLockRelease(ReplicationSlotControlLock);
	return found;
}

/* Can a slot be created? */
static bool
may_create(void)
{
	if (wal_level < WAL_LEVEL_REPLICA)
	{
		ereport(LOG,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deleted rows are not kept for resolving conflicts because \"%s\" is \"minimal\"", "wal_level"),
				 errhint("Set \"%s\" to \"replica\" or \"logical\" and restart the server.", "wal_level")));
		return false;
	}
	if (!have_free_slot())
	{
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("deleted rows are not kept for resolving conflicts because all replication slots are in use"),
				 errdetail("The slot \"%s\" is needed for that while there are subscriptions that resolve conflicts.", KDB_HORIZON_SLOT),
				 errhint("Free a slot or increase \"%s\", currently %d.", "max_replication_slots", max_replication_slots)));
		return false;
	}
	return true;
}

/* Is it not a slot of that name which somebody else made for something else? */
static bool
is_ours(const ReplicationSlot *slot)
{
	return !SlotIsLogical(slot) && slot->data.persistency == RS_PERSISTENT &&
		XLogRecPtrIsInvalid(slot->data.restart_lsn);
}

static bool
may_acquire(const ReplicationSlot *slot)
{
	if (is_ours(slot))
		return true;
	ereport(LOG,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("deleted rows are not kept for resolving conflicts because replication slot \"%s\" is used for something else", KDB_HORIZON_SLOT),
			 errhint("Drop that replication slot; KrahoDB creates its own one.")));
	return false;
}

static void
set_xmin(TransactionId xid)
{
	ReplicationSlot *slot = MyReplicationSlot;

	SpinLockAcquire(&slot->mutex);
	slot->data.xmin = xid;
	slot->effective_xmin = xid;
	SpinLockRelease(&slot->mutex);
	ReplicationSlotMarkDirty();
	ReplicationSlotsComputeRequiredXmin(false);

	LWLockAcquire(KdbHorizon->lock, LW_EXCLUSIVE);
	KdbHorizon->xid = xid;
	LWLockRelease(KdbHorizon->lock);
}

/* Hold back vacuum from now on with the slot that we have acquired. */
static void
start_holding(void)
{
	Snapshot	snapshot;

	StartTransactionCommand();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	set_xmin(MyProc->xmin);
	ReplicationSlotSave();
	UnregisterSnapshot(snapshot);
	CommitTransactionCommand();

	ereport(LOG,
			(errmsg("deleted rows are kept from transaction %u on for resolving conflicts",
					MyReplicationSlot->data.xmin)));
}

/* We hold the slot; is that enough? */
static void
warn_if_overridden(void)
{
	if (KdbHorizonIsOverridden())
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deleted rows are not kept for resolving conflicts because \"%s\" is set", "old_snapshot_threshold"),
				 errdetail("It lets vacuum remove rows that replication slots hold back."),
				 errhint("Set \"%s\" to -1 and restart the server.", "old_snapshot_threshold")));
}

/* See horizon_private.h. */
bool
KdbHorizonSlotHold(KdbTicks now)
{
	ReplicationSlot *slot;

	if (MyReplicationSlot != NULL)
		return true;
	if (now < retry_at)
		return false;

	slot = SearchNamedReplicationSlot(KDB_HORIZON_SLOT, true);
	if (slot == NULL ? !may_create() : !may_acquire(slot))
	{
		failed(now);
		return false;
	}

	if (slot == NULL)
		ReplicationSlotCreate(KDB_HORIZON_SLOT, false, RS_PERSISTENT, false);
	else
		ReplicationSlotAcquire(KDB_HORIZON_SLOT, true);

	/* If it has none, a crash came between its creation and this. */
	if (TransactionIdIsValid(MyReplicationSlot->data.xmin))
		set_xmin(MyReplicationSlot->data.xmin);
	else
		start_holding();
	warn_if_overridden();
	retry_at = 0;
	retry_pause = 0;
	return true;
}

/* See horizon_private.h. */
void
KdbHorizonSlotDrop(void)
{
	ReplicationSlot *slot;

	LWLockAcquire(KdbHorizon->lock, LW_EXCLUSIVE);
	KdbHorizon->xid = InvalidTransactionId;
	LWLockRelease(KdbHorizon->lock);

	slot = SearchNamedReplicationSlot(KDB_HORIZON_SLOT, true);
	if (slot == NULL || !is_ours(slot))
		return;
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	ReplicationSlotDrop(KDB_HORIZON_SLOT, true);
	ereport(LOG,
			(errmsg("deleted rows are no longer kept because no subscription resolves conflicts")));
}

/* See horizon_private.h. */
void
KdbHorizonSlotAdvance(TransactionId xid)
{
	if (MyReplicationSlot != NULL &&
		TransactionIdFollows(xid, MyReplicationSlot->data.xmin))
		set_xmin(xid);
}
