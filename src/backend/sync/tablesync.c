/*
 * tablesync.c
 *		A synchronisation worker from its start until it may stream.
 *
 * The states, and what a worker does that finds one of them, are described in
 * sync_private.h.  One connection serves for everything: the slot, the copy
 * under the slot's snapshot, the stream.  Its application_name is the slot's
 * name, so that synchronous replication at the publisher does not take it for
 * the apply worker.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_subscription_rel.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/snapmgr.h"

#include "krahodb/fault.h"

#include "sync_private.h"

static void
connect_publisher(const char *slotname)
{
	char	   *err;

	LogRepWorkerWalRcvConn = walrcv_connect(MySubscription->conninfo, true,
											slotname, &err);
	if (LogRepWorkerWalRcvConn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not connect to the publisher: %s", err)));
}

/* Run a command without result on the publisher; failure is errmsg's "%s". */
static void
remote_command(const char *command, const char *failure)
{
	WalRcvExecResult *res = walrcv_exec(LogRepWorkerWalRcvConn, command, 0, NULL);

	if (res->status != WALRCV_OK_COMMAND)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("%s: %s", failure, res->err)));
	walrcv_clear_result(res);
}

/*
 * DATASYNC, for all to see, and the worker's origin exists.  Flushed, because
 * the slot that comes next survives a crash: only a worker that finds DATASYNC
 * expects one.
 */
static void
begin_datasync(const char *slotname, char state)
{
	/* a former attempt to copy may have left its slot behind */
	if (state == SUBREL_STATE_DATASYNC)
		ReplicationSlotDropAtPubNode(LogRepWorkerWalRcvConn,
									 (char *) slotname, true);

	KdbSyncSetShared(SUBREL_STATE_DATASYNC, InvalidXLogRecPtr);

	StartTransactionCommand();
	UpdateSubscriptionRelState(MySubscription->oid, MyLogicalRepWorker->relid,
							   SUBREL_STATE_DATASYNC, InvalidXLogRecPtr);
	KdbSyncOriginCreate();
	CommitTransactionCommand();
	XLogFlush(XactLastCommitEnd);
	pgstat_report_stat(true);
}

/*
 * Make the slot, and copy what its snapshot shows, in one transaction there;
 * rows and FINISHEDCOPY are one transaction here.  The table is only locked
 * against schema changes: the apply worker opens it too.
 */
static XLogRecPtr
copy_phase(const char *slotname)
{
	Relation	rel;
	XLogRecPtr	startpos;
	KdbUserContext user;

	StartTransactionCommand();
	rel = table_open(MyLogicalRepWorker->relid, RowExclusiveLock);
	KdbSwitchToTableOwner(rel, &user);
	KdbCheckTargetPrivileges(rel, ACL_INSERT);

	remote_command("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ",
				   "table copy could not start transaction on publisher");
	(void) walrcv_create_slot(LogRepWorkerWalRcvConn, slotname,
							  false /* permanent */, false /* two_phase */,
							  CRS_USE_SNAPSHOT, &startpos);
	KDB_FAULT_POINT("sync_after_slot");
	KdbSyncOriginBegin(startpos);

	KDB_FAULT_POINT("sync_before_copy");
	PushActiveSnapshot(GetTransactionSnapshot());
	KdbSyncCopyTable(rel);
	PopActiveSnapshot();

	remote_command("COMMIT",
				   "table copy could not finish transaction on publisher");
	KdbSyncNoteCopied(startpos);
	KdbRestoreUser(&user);
	table_close(rel, NoLock);

	CommandCounterIncrement();
	UpdateSubscriptionRelState(MySubscription->oid, MyLogicalRepWorker->relid,
							   SUBREL_STATE_FINISHEDCOPY, InvalidXLogRecPtr);
	KDB_FAULT_POINT("sync_after_copy");
	KdbSyncStampCopy();
	CommitTransactionCommand();
	KDB_FAULT_POINT("sync_after_finishedcopy");
	return startpos;
}

/*
 * The rows are there already.  Returns where to go on streaming, unless
 * nothing but the slot is left.
 */
static XLogRecPtr
resume(XLogRecPtr lsn)
{
	XLogRecPtr	startpos = InvalidXLogRecPtr;
	bool		slot_only;

	StartTransactionCommand();
	slot_only = KdbSyncSlotOnlyLeft(MyLogicalRepWorker->relid,
									SUBREL_STATE_FINISHEDCOPY, lsn);
	if (!slot_only)
		startpos = KdbSyncOriginResume(lsn);
	CommitTransactionCommand();

	if (slot_only)
		KdbSyncDropSlotAndExit(lsn, true);
	return startpos;
}

/*
 * Wait until the apply worker says how far to catch up, or is gone (then
 * streaming goes on without a goal; a new one sets it).
 */
static void
wait_for_catchup(void)
{
	while (MyLogicalRepWorker->relstate != SUBREL_STATE_CATCHUP)
	{
		LogicalRepWorker *apply;

		CHECK_FOR_INTERRUPTS();

		LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
		apply = logicalrep_worker_find(MySubscription->oid, InvalidOid, false);
		if (apply && apply->proc)
			logicalrep_worker_wakeup_ptr(apply);
		LWLockRelease(LogicalRepWorkerLock);
		if (!apply)
			return;

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 KDB_SYNC_WAIT_MS, WAIT_EVENT_LOGICAL_SYNC_STATE_CHANGE);
		ResetLatch(MyLatch);
	}
}

/* The start_table_sync callback of apply.h. */
char *
KdbSyncStart(XLogRecPtr *origin_startpos)
{
	char	   *slotname;
	char		state;
	XLogRecPtr	lsn;

	StartTransactionCommand();
	state = GetSubscriptionRelState(MySubscription->oid,
									MyLogicalRepWorker->relid, &lsn);
	CommitTransactionCommand();
	KdbSyncSetShared(state, lsn);

	if (state == SUBREL_STATE_SYNCDONE || state == SUBREL_STATE_READY ||
		state == SUBREL_STATE_UNKNOWN)
		KdbSyncExit();

	slotname = palloc(NAMEDATALEN);
	ReplicationSlotNameForTablesync(MySubscription->oid,
									MyLogicalRepWorker->relid,
									slotname, NAMEDATALEN);
	connect_publisher(slotname);

	if (state == SUBREL_STATE_FINISHEDCOPY)
		*origin_startpos = resume(lsn);
	else
	{
		begin_datasync(slotname, state);
		*origin_startpos = copy_phase(slotname);
	}

	ereport(DEBUG1,
			(errmsg_internal("synchronization of table %u goes on streaming at %X/%X",
							 MyLogicalRepWorker->relid,
							 LSN_FORMAT_ARGS(*origin_startpos))));

	KDB_FAULT_POINT("sync_before_syncwait");
	KdbSyncSetShared(SUBREL_STATE_SYNCWAIT, *origin_startpos);
	wait_for_catchup();
	return slotname;
}
