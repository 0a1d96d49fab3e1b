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
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "krahodb/copy_marks.h"
#include "krahodb/fault.h"
#include "krahodb/stream.h"

#include "sync_private.h"

/* The publisher that we are connected to. */
static uint64 remote_sysid;
static TimeLineID remote_timeline;

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
	remote_sysid = strtou64(walrcv_identify_system(LogRepWorkerWalRcvConn, &remote_timeline),
							NULL, 10);
	KdbCopyRemoteTimeouts();
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

/* Is the slot of a former attempt, and its origin's position, to be kept? */
static bool
slot_is_kept(const char *slotname, char state)
{
	Relation	rel;
	bool		kept;

	if (state != SUBREL_STATE_DATASYNC)
		return false;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	rel = table_open(MyLogicalRepWorker->relid, RowExclusiveLock);
	kept = KdbCopyKeepsSlot(rel, KdbStreamSlotIsUsable(LogRepWorkerWalRcvConn, slotname) ?
							KdbSyncOriginProgress() : InvalidXLogRecPtr);
	table_close(rel, NoLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return kept;
}

/*
 * DATASYNC, for all to see, and the worker's origin exists.  Flushed, because
 * the slot that comes next survives a crash: only a worker that finds DATASYNC
 * expects one.
 */
static void
begin_datasync(const char *slotname, char state, bool kept_slot)
{
	/* a former attempt to copy may have left its slot behind */
	if (state == SUBREL_STATE_DATASYNC && !kept_slot)
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
 * Begin a transaction at the publisher that shows the table as of a new slot, or as
 * of now if there is a slot already, from which the stream will begin earlier then.
 * It has nothing to do while rows are looked at here, or others copy ranges.
 */
static XLogRecPtr
begin_remote_transaction(const char *slotname, bool kept_slot)
{
	XLogRecPtr	startpos;

	KdbCopiedRowNewTime();
	KdbSyncVersionsPrepare();
	KDB_FAULT_POINT("copy_horizon_held");
	remote_command("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ",
				   "table copy could not start transaction on publisher");
	if (kept_slot)
		return KdbSyncOriginResume(InvalidXLogRecPtr);

	(void) walrcv_create_slot(LogRepWorkerWalRcvConn, slotname,
							  false /* permanent */, false /* two_phase */,
							  CRS_USE_SNAPSHOT, &startpos);
	KDB_FAULT_POINT("sync_after_slot");
	KdbSyncOriginBegin(startpos);
	return startpos;
}

/* All that the transaction there shows was written before. */
static XLogRecPtr
remote_position(void)
{
	char	  **row = KdbStreamQueryRow(LogRepWorkerWalRcvConn, "SELECT pg_catalog.pg_current_wal_insert_lsn()",
										1, "position");

	return DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(row[0])));
}

static KdbRemoteTable *
look_at_table(Relation rel)
{
	KdbRemoteTable *table;

	table = KdbSyncFetchRemoteTable(get_namespace_name(RelationGetNamespace(rel)),
									pstrdup(RelationGetRelationName(rel)));
	CheckSubscriptionRelkind(rel->rd_rel->relkind, table->nspname, table->relname);
	KdbSyncCheckColumns(table, rel);
	return table;
}

/* The rows are there, and about to be committed with FINISHEDCOPY. */
static void
finish_copy(bool in_ranges)
{
	remote_command("COMMIT",
				   "table copy could not finish transaction on publisher");
	CommandCounterIncrement();
	if (in_ranges)
		KdbCopyUnmarkAll(MyLogicalRepWorker->relid);
	UpdateSubscriptionRelState(MySubscription->oid, MyLogicalRepWorker->relid,
							   SUBREL_STATE_FINISHEDCOPY, InvalidXLogRecPtr);
	KDB_FAULT_POINT("sync_after_copy");
	KdbSyncStampCopy();
	CommitTransactionCommand();
	KdbCopyEnd();
	KDB_FAULT_POINT("sync_after_finishedcopy");
}

static void
copy_whole(Relation rel, const KdbRemoteTable *table, bool kept_slot)
{
	KdbCopySource source = {.again = kept_slot};
	KdbCopyConflicts conflicts = KDB_COPY_FAIL;

	if (kept_slot)
		conflicts = KDB_COPY_MERGE;
	else if (KdbSyncExistingRowsResolved())
		conflicts = KdbSyncDeletedHere(rel, false) ? KDB_COPY_MERGE : KDB_COPY_RESOLVE;
	KdbCopyAnnounce(RelationGetRelid(rel), NULL);
	KdbCopyExpectRows(KdbCopyEstimateRows(table));
	(void) KdbSyncCopyRows(rel, table, &source, conflicts);
}

/*
 * Copy what the slot's snapshot shows, in one transaction there.  Here, a table that
 * is copied as a whole is one transaction with FINISHEDCOPY; one that is copied in
 * ranges is prepared in this transaction, and the ranges have their own.  The table
 * is only locked against schema changes: the apply worker opens it too.
 */
static XLogRecPtr
copy_phase(const char *slotname, bool kept_slot)
{
	Relation	rel;
	XLogRecPtr	startpos;
	XLogRecPtr	shown;			/* all that is copied was written before */
	KdbUserContext user;
	KdbRemoteTable *table;
	KdbCopyJob *job;
	MemoryContext oldcontext;

	StartTransactionCommand();
	rel = table_open(MyLogicalRepWorker->relid, RowExclusiveLock);
	KdbSwitchToTableOwner(rel, &user);
	KdbCheckTargetPrivileges(rel, ACL_INSERT);
	startpos = begin_remote_transaction(slotname, kept_slot);

	KDB_FAULT_POINT("sync_before_copy");
	PushActiveSnapshot(GetTransactionSnapshot());
	oldcontext = MemoryContextSwitchTo(ApplyContext);
	table = look_at_table(rel);
	job = KdbCopyPrepare(rel, table, remote_sysid, remote_timeline, startpos, kept_slot);
	MemoryContextSwitchTo(oldcontext);
	KDB_FAULT_POINT("copy_prepared");
	KdbSyncVersionsCopy(table, rel);
	shown = kept_slot ? remote_position() : startpos;
	if (kept_slot)
		KdbSyncNoteAgain(rel, shown);
	if (job == NULL)
		copy_whole(rel, table, kept_slot);
	PopActiveSnapshot();
	KdbRestoreUser(&user);
	table_close(rel, NoLock);

	/* before anybody can see rows */
	KdbSyncNoteCopied(shown);
	if (job != NULL)
	{
		KdbCopyLockForSession(job->relid);
		KdbSyncStampCopy();
		CommitTransactionCommand();
		KdbCopyRunRanges(job);
		StartTransactionCommand();
	}
	finish_copy(job != NULL);
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
		bool		kept_slot = slot_is_kept(slotname, state);

		begin_datasync(slotname, state, kept_slot);
		*origin_startpos = copy_phase(slotname, kept_slot);
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
