/*
 * finish.c
 *		The end of a synchronisation worker: from CATCHUP to SYNCDONE, and out.
 *
 * The steps, each durable before the next one:
 *	1. FINISHEDCOPY with the LSN that has been reached.
 *	2. The worker's origin is dropped.  From here on the table counts as
 *	   SYNCDONE at that LSN (sync_private.h); a worker that starts anew goes on
 *	   at 3.
 *	3. The slot at the publisher is dropped, in a transaction that then commits
 *	   SYNCDONE.
 * 1 and 2 are two transactions because dropping an origin takes effect at once:
 * its progress must already be stored elsewhere.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_subscription_rel.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/spin.h"
#include "utils/lsyscache.h"

#include "krahodb/fault.h"

#include "sync_private.h"

static void
store_state(char state, XLogRecPtr lsn)
{
	UpdateSubscriptionRelState(MySubscription->oid, MyLogicalRepWorker->relid,
							   state, lsn);
}

static void
commit_and_flush(void)
{
	CommitTransactionCommand();
	XLogFlush(XactLastCommitEnd);
}

/* Steps 1 and 2. */
static void
store_reached(XLogRecPtr lsn)
{
	replorigin_session_origin = InvalidRepOriginId;

	StartTransactionCommand();
	store_state(SUBREL_STATE_FINISHEDCOPY, lsn);
	commit_and_flush();

	/* once more, so that those who have cached the state look at it again */
	StartTransactionCommand();
	store_state(SUBREL_STATE_FINISHEDCOPY, lsn);
	KdbSyncOriginDrop();
	commit_and_flush();
}

/*
 * Step 3.  The connection is up and not streaming.  Shared memory is told last:
 * the apply worker may make the table ready as soon as it knows, which updates
 * the same catalog row.
 */
void
KdbSyncDropSlotAndExit(XLogRecPtr lsn, bool slot_missing_ok)
{
	char		slotname[NAMEDATALEN];

	ReplicationSlotNameForTablesync(MySubscription->oid,
									MyLogicalRepWorker->relid,
									slotname, sizeof(slotname));
	StartTransactionCommand();
	store_state(SUBREL_STATE_SYNCDONE, lsn);
	ReplicationSlotDropAtPubNode(LogRepWorkerWalRcvConn, slotname,
								 slot_missing_ok);
	KDB_FAULT_POINT("sync_after_slot_drop");
	commit_and_flush();
	KDB_FAULT_POINT("sync_after_syncdone");

	KdbSyncSetShared(SUBREL_STATE_SYNCDONE, lsn);
	KdbSyncExit();
}

/* Leave; all is stored.  Not in a transaction. */
void
KdbSyncExit(void)
{
	pgstat_report_stat(true);

	StartTransactionCommand();
	ereport(LOG,
			(errmsg("logical replication table synchronization worker for subscription \"%s\", table \"%s\" has finished",
					MySubscription->name,
					get_rel_name(MyLogicalRepWorker->relid))));
	CommitTransactionCommand();

	logicalrep_worker_wakeup(MySubscription->oid, InvalidOid);
	proc_exit(0);
}

/*
 * Called between transactions while streaming; current_lsn has been reached.
 * Does not return if that is far enough.
 */
void
KdbSyncCatchup(XLogRecPtr current_lsn)
{
	TimeLineID	tli;
	bool		caught_up;

	SpinLockAcquire(&MyLogicalRepWorker->relmutex);
	caught_up = MyLogicalRepWorker->relstate == SUBREL_STATE_CATCHUP &&
		current_lsn >= MyLogicalRepWorker->relstate_lsn;
	SpinLockRelease(&MyLogicalRepWorker->relmutex);
	if (!caught_up)
		return;

	if (IsTransactionState())
		CommitTransactionCommand();

	KDB_FAULT_POINT("sync_before_syncdone");
	store_reached(current_lsn);
	KDB_FAULT_POINT("sync_before_slot_drop");
	walrcv_endstreaming(LogRepWorkerWalRcvConn, &tli);
	KdbSyncDropSlotAndExit(current_lsn, false);
}
