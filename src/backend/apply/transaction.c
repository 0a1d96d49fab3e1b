/*
 * transaction.c
 *		Remote transactions become local ones.
 *
 * STATES of a remote transaction, as this worker sees it:
 *
 *	none		in_remote_transaction false, no local transaction
 *	begun		BEGIN came; the local transaction starts with the first change,
 *				so that an empty remote transaction costs nothing here
 *	working		a local transaction is open (IsTransactionState), one snapshot
 *				is active
 *	ended		COMMIT or PREPARE came; back to none
 *
 * A streamed transaction is spooled to a file first (spool.c), and goes through
 * the same states when STREAM COMMIT or STREAM PREPARE replays it.
 *
 * PROGRESS is durable in the local commit, prepare, commit prepared or rollback
 * prepared record itself: that record carries the origin, the end LSN of the
 * remote transaction there, and its time.  So after a crash either both the
 * changes and the progress are there or neither is, and the publisher is asked
 * to start exactly behind what is.
 *
 * ORIGIN POSITION.  replorigin_session_origin_lsn and _timestamp are set only
 * between the last change and the record that makes it durable.  From 16 on an
 * abort (of a subtransaction too) advances the origin to that LSN, so a value
 * that stands there while changes are being applied loses data when one of them
 * fails.  The timestamp must be set for every transaction, as it is what the
 * commit timestamps of the rows become; left over, it would date another
 * transaction.  A process that is ended between the two may still commit: the engine drops
 * what temporary tables a session has (those of triggers) before any callback of ours at its exit can run.  So
 * whenever a transaction is aborted, the position goes with it; and what is committed without
 * the origin (a lane has it at its turn only) is local.
 *
 * LANES (lane_worker.c) come through here too, with ordinary transactions; what is
 * different for them is at KdbInLane.
 *
 * SNAPSHOT.  One is pushed at the first change and stays; after each change its
 * command id follows.  All changes are made by key, on the rows' newest
 * versions, so an older snapshot decides nothing.  Triggers may see it: before they
 * fire it is taken anew.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"
#include "krahodb/fault.h"
#include "krahodb/seen_state.h"
#include "krahodb/version_record.h"
#include "apply_private.h"

/*
 * PREPARE names the local transaction after the subscription and the remote
 * xid, not after the publisher's GID: with two subscriptions to one publisher
 * the same GID would be prepared twice.  Lives in shared state of the server
 * across restarts of the worker, so its form is fixed.
 */
static void
prepared_gid(TransactionId xid, char gid[GIDSIZE])
{
	if (!TransactionIdIsValid(xid))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("invalid two-phase transaction ID")));
	snprintf(gid, GIDSIZE, "pg_gid_%u_%u", MySubscription->oid, xid);
}

void
KdbApplyBeginStep(void)
{
	if (!IsTransactionState())
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		KdbSubscriptionReread();
	}
	else if (!ActiveSnapshotSet())
		PushActiveSnapshot(GetTransactionSnapshot());

	MemoryContextSwitchTo(KdbApplyMessageContext);
}

void
KdbApplyEndStep(void)
{
	CommandCounterIncrement();
	if (GetActiveSnapshot()->curcid != GetCurrentCommandId(false))
		UpdateActiveSnapshotCommandId();
}

/* See apply_private.h. */
void
KdbApplyFreshSnapshot(void)
{
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
KdbResetOriginState(void)
{
	replorigin_session_origin = InvalidRepOriginId;
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
}

static void
set_origin_position(XLogRecPtr end_lsn, TimestampTz when)
{
	replorigin_session_origin_lsn = end_lsn;
	replorigin_session_origin_timestamp = when;
}

/* Changes go on being marked with the origin, but have no position. */
static void
clear_origin_position(void)
{
	replorigin_session_origin = KdbApply.origin;
	set_origin_position(InvalidXLogRecPtr, 0);
}

/* See ORIGIN POSITION. */
static void
origin_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT)
		set_origin_position(InvalidXLogRecPtr, 0);
	else if (event == XACT_EVENT_PRE_COMMIT && KdbInLane && !KdbLaneHoldsOrigin() &&
			 TransactionIdIsValid(GetTopTransactionIdIfAny()))
		replorigin_session_origin = InvalidRepOriginId;
}

/* See apply_private.h. */
void
KdbOriginPositionWatch(void)
{
	RegisterXactCallback(origin_xact_callback, NULL);
}

static void
begin_remote(TransactionId xid, XLogRecPtr finish_lsn, TimestampTz when)
{
	if (in_remote_transaction || KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("remote transaction %u begins inside another one", xid)));
	Assert(!IsTransactionState());

	KdbApplyErrorSetTransaction(xid, finish_lsn);
	KdbApply.remote_xid = xid;
	KdbApply.remote_final_lsn = finish_lsn;
	KdbApply.remote_commit_time = when;
	KdbClockBeforeApply(when, KdbFeedbackWhileBusy);
	KdbTransactionVersionForget();
	KdbSeenMark(KdbApply.origin, GetCurrentTimestamp());
	if (!KdbInLane)
		KdbSkipMaybeStart(finish_lsn);

	in_remote_transaction = true;
	pgstat_report_activity(STATE_RUNNING, NULL);
	KDB_FAULT_POINT("apply_begin");
}

/* Everything of it is done; end_lsn is where the next one starts. */
static void
end_remote(XLogRecPtr end_lsn)
{
	in_remote_transaction = false;
	KdbApply.remote_xid = InvalidTransactionId;
	KdbApply.remote_final_lsn = InvalidXLogRecPtr;
	KdbApply.remote_commit_time = 0;

	KdbConvergeEnd();
	KdbRetrySucceeded(end_lsn);
	KdbConflictLogMaintain();
	KdbVersionRecordsMaintain();
	KdbApply.applied_end = end_lsn;
	KdbEarlyLook();
	if (!KdbInLane)
		KdbSync->process_syncing_tables(end_lsn);
	KdbLaneReleaseSessionLocks();
	pgstat_report_activity(STATE_IDLE, NULL);
}

static void
check_finish(const char *what, XLogRecPtr lsn)
{
	if (!in_remote_transaction || KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("%s message outside a remote transaction", what)));
	if (lsn != KdbApply.remote_final_lsn)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("incorrect %s LSN %X/%X in %s message (expected %X/%X)",
								 what, LSN_FORMAT_ARGS(lsn), what,
								 LSN_FORMAT_ARGS(KdbApply.remote_final_lsn))));
}

/* Synchronisation asks for its slot without two_phase. */
static void
refuse_in_tablesync(const char *what)
{
	if (am_tablesync_worker())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("tablesync worker received a %s message", what)));
}

/* The local transaction holds nothing of ours any more. */
static void
release_snapshot(void)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
}

static void
commit_local(XLogRecPtr end_lsn, TimestampTz commit_time)
{
	KdbConvergeBeforeEnd();
	KdbApplyRelationsClose();
	KDB_FAULT_POINT("apply_before_commit");

	KdbLaneBeforeCommit();
	set_origin_position(end_lsn, commit_time);
	if (am_tablesync_worker())
		KdbSync->before_commit(end_lsn);
	release_snapshot();
	CommitTransactionCommand();
	clear_origin_position();

	KDB_FAULT_POINT("apply_after_commit");
	pgstat_report_stat(false);
	if (!KdbInLane)
		KdbFeedbackCommitted(end_lsn, XactLastCommitEnd);
}

/* COMMIT and STREAM COMMIT */
static void
commit_remote(const KdbWireMessage *message)
{
	if (KdbApply.skipping)
	{
		KdbSkipStop();

		/* a transaction to clear the skip LSN and record the progress in */
		if (!IsTransactionState())
			StartTransactionCommand();
	}

	if (IsTransactionState())
	{
		if (!KdbInLane)
			KdbSkipClear(message->u.commit.commit_lsn);
		commit_local(message->u.commit.end_lsn, message->u.commit.commit_time);
	}
	else
	{
		/* empty: no opportunity yet to notice what other sessions changed */
		AcceptInvalidationMessages();
		KdbSubscriptionReread();
	}
}

/* See apply_private.h. */
void
KdbApplyCommitEarly(XLogRecPtr end_lsn, TimestampTz commit_time)
{
	Assert(KdbInEarly() && IsTransactionState());
	KdbApply.remote_commit_time = commit_time;
	commit_local(end_lsn, commit_time);
	in_remote_transaction = false;
	KdbApplyErrorReset();
}

static void
prepare_local(const KdbWireMessage *message)
{
	char		gid[GIDSIZE];

	prepared_gid(message->u.prepare.xid, gid);

	/* PrepareTransactionBlock wants to be inside a transaction block. */
	BeginTransactionBlock();
	CommitTransactionCommand();

	KdbConvergeBeforeEnd();
	KdbApplyRelationsClose();
	KDB_FAULT_POINT("apply_before_prepare");

	set_origin_position(message->u.prepare.end_lsn, message->u.prepare.prepare_time);
	release_snapshot();
	PrepareTransactionBlock(gid);
	CommitTransactionCommand();
	clear_origin_position();

	KDB_FAULT_POINT("apply_after_prepare");
	pgstat_report_stat(false);

	/* PREPARE has flushed its record. */
	KdbFeedbackCommitted(message->u.prepare.end_lsn, InvalidXLogRecPtr);
}

/*
 * After a PREPARE.  A crash between it and clearing the skip LSN leaves that
 * standing, though the transaction is not sent again; the next one clears it.
 */
static void
end_prepare(const KdbWireMessage *message)
{
	end_remote(message->u.prepare.end_lsn);
	KdbSkipStop();
	KdbSkipClear(message->u.prepare.prepare_lsn);
	KdbApplyErrorReset();
}

/* COMMIT PREPARED and ROLLBACK PREPARED of a local prepared transaction. */
static void
finish_prepared(const char *gid, bool commit, XLogRecPtr end_lsn, TimestampTz when)
{
	TransactionId xid;

	KdbApplyBeginStep();
	xid = commit ? KdbPreparedTransactionId(gid) : InvalidTransactionId;
	KDB_FAULT_POINT("apply_before_commit");

	set_origin_position(end_lsn, when);
	FinishPreparedTransaction(gid, commit);
	clear_origin_position();
	KdbSeenCommittedPrepared(xid, end_lsn);

	KDB_FAULT_POINT("apply_after_commit");
	release_snapshot();
	CommitTransactionCommand();
}

static void
refuse_in_remote_transaction(const char *what)
{
	if (in_remote_transaction || KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("%s message inside a remote transaction", what)));
}

/*
 * Message functions.
 */

void
KdbApplyBegin(const KdbWireMessage *message)
{
	begin_remote(message->u.begin.xid, message->u.begin.final_lsn,
				 message->u.begin.commit_time);
}

void
KdbApplyCommit(const KdbWireMessage *message)
{
	check_finish("commit", message->u.commit.commit_lsn);
	commit_remote(message);
	end_remote(message->u.commit.end_lsn);
	KdbApplyErrorReset();
}

void
KdbApplyBeginPrepare(const KdbWireMessage *message)
{
	refuse_in_tablesync("BEGIN PREPARE");
	begin_remote(message->u.prepare.xid, message->u.prepare.prepare_lsn,
				 message->u.prepare.prepare_time);
}

/*
 * An empty or skipped transaction is prepared as well: at COMMIT PREPARED
 * nobody knows any more that it was.
 */
void
KdbApplyPrepare(const KdbWireMessage *message)
{
	check_finish("prepare", message->u.prepare.prepare_lsn);
	KdbApplyBeginStep();
	prepare_local(message);
	end_prepare(message);
}

void
KdbApplyCommitPrepared(const KdbWireMessage *message)
{
	XLogRecPtr	end_lsn = message->u.commit_prepared.end_lsn;
	char		gid[GIDSIZE];

	refuse_in_remote_transaction("COMMIT PREPARED");
	KdbClockBeforeApply(message->u.commit_prepared.commit_time, KdbFeedbackWhileBusy);
	KdbApplyErrorSetTransaction(message->u.commit_prepared.xid,
								message->u.commit_prepared.commit_lsn);
	prepared_gid(message->u.commit_prepared.xid, gid);

	finish_prepared(gid, true, end_lsn, message->u.commit_prepared.commit_time);
	pgstat_report_stat(false);

	/* It has flushed its record. */
	KdbFeedbackCommitted(end_lsn, InvalidXLogRecPtr);
	end_remote(end_lsn);
	KdbSkipClear(end_lsn);
	KdbApplyErrorReset();
}

/*
 * The prepared transaction may be unknown here: it was prepared before the slot
 * had a consistent point or before two_phase was enabled, so it was not sent.
 */
void
KdbApplyRollbackPrepared(const KdbWireMessage *message)
{
	XLogRecPtr	end_lsn = message->u.rollback_prepared.rollback_end_lsn;
	char		gid[GIDSIZE];

	refuse_in_remote_transaction("ROLLBACK PREPARED");
	KdbApplyErrorSetTransaction(message->u.rollback_prepared.xid, end_lsn);
	prepared_gid(message->u.rollback_prepared.xid, gid);

	if (LookupGXact(gid, message->u.rollback_prepared.prepare_end_lsn,
					message->u.rollback_prepared.prepare_time))
	{
		finish_prepared(gid, false, end_lsn, message->u.rollback_prepared.rollback_time);
		KdbSkipClear(end_lsn);
	}
	pgstat_report_stat(false);

	KdbFeedbackCommitted(end_lsn, InvalidXLogRecPtr);
	end_remote(end_lsn);
	KdbApplyErrorReset();
}

void
KdbApplyStreamCommit(const KdbWireMessage *message)
{
	TransactionId xid = message->u.commit.xid;

	if (KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("STREAM COMMIT message without STREAM STOP")));

	elog(DEBUG1, "received commit for streamed transaction %u", xid);

	begin_remote(xid, message->u.commit.commit_lsn, message->u.commit.commit_time);
	if (!KdbEarlyCommit(xid, message->u.commit.end_lsn, message->u.commit.commit_time))
	{
		KdbSpoolReplay(xid);
		commit_remote(message);
	}
	KdbSpoolForget(xid);
	end_remote(message->u.commit.end_lsn);
	KdbApplyErrorReset();
}

void
KdbApplyStreamPrepare(const KdbWireMessage *message)
{
	TransactionId xid = message->u.prepare.xid;

	if (KdbSpoolActive())
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("STREAM PREPARE message without STREAM STOP")));
	refuse_in_tablesync("STREAM PREPARE");

	elog(DEBUG1, "received prepare for streamed transaction %u", xid);

	KdbEarlyStop(xid);
	begin_remote(xid, message->u.prepare.prepare_lsn, message->u.prepare.prepare_time);
	KdbSpoolReplay(xid);
	prepare_local(message);
	KdbSpoolForget(xid);
	end_prepare(message);
}

/*
 * Where the publisher had the transaction from.  It comes before the first
 * change; there is nothing to do with it.
 */
void
KdbApplyOrigin(const KdbWireMessage *message)
{
	if (!KdbSpoolActive() &&
		(!in_remote_transaction ||
		 (IsTransactionState() && !am_tablesync_worker())))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("ORIGIN message sent out of order")));
}
