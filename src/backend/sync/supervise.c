/*
 * supervise.c
 *		The apply worker's part in table synchronisation.
 *
 * Between transactions the apply worker looks at each table that is not ready:
 *
 *	its worker waits (w)	tell it how far to catch up (c), and wait until it
 *							has, so that no change to the table falls between
 *							the two streams
 *	no worker, not done		start one, if the limits allow
 *	SYNCDONE and passed		make it ready, an ordinary table from here on
 *
 * A time-line with the worker behind:		and with the worker in front:
 *
 *	worker at 8: w							worker at 10: w
 *	apply at 10: c up to 10, waits			apply at 8: c up to 10, waits
 *	worker streams 8 to 10: s at 10			worker: s at 10
 *	apply goes on, applies from 10			apply goes on, leaves the table's
 *	at 11: r								changes out until 10, then r
 *
 * The worker in shared memory is looked at under LogicalRepWorkerLock, its
 * state under its relmutex.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/logicallauncher.h"
#include "replication/origin.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "sync_private.h"

/* While a table catches up: then the publisher is to hear of us. */
#define ANSWER_MS	200L

/* When a worker was last started for a table: failing ones restart slowly. */
typedef struct StartTime
{
	Oid			relid;			/* hash key */
	TimestampTz started;
	int			starts;
} StartTime;

static HTAB *start_times = NULL;

static bool
may_start(Oid relid)
{
	TimestampTz now = GetCurrentTimestamp();
	StartTime  *entry;
	bool		found;

	if (start_times == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(StartTime)};

		start_times = hash_create("KrahoDB table synchronisation start times",
								  64, &ctl, HASH_ELEM | HASH_BLOBS);
	}

	entry = hash_search(start_times, &relid, HASH_ENTER, &found);
	if (!found)
		entry->starts = 0;
	else if (!TimestampDifferenceExceeds(entry->started, now,
										 Max(wal_retrieve_retry_interval, KdbRetryPause(entry->starts))))
		return false;
	entry->started = now;
	entry->starts++;
	return true;
}

static void
forget_start_times(void)
{
	if (start_times != NULL)
		hash_destroy(start_times);
	start_times = NULL;
}

/*
 * Two-phase commit can only be enabled when no table is synchronised any more,
 * and only by starting the stream anew.  A subscription without tables stays
 * pending, so that REFRESH PUBLICATION may still add some.
 */
static void
restart_for_two_phase(void)
{
	if (MySubscription->twophasestate != LOGICALREP_TWOPHASE_STATE_PENDING ||
		!KdbSyncAllReady())
		return;

	ereport(LOG,
			(errmsg("logical replication apply worker for subscription \"%s\" will restart so that two_phase can be enabled",
					MySubscription->name)));
	proc_exit(0);
}

static void
ensure_transaction(bool *started_tx)
{
	if (!*started_tx)
		StartTransactionCommand();
	*started_tx = true;
}

static void
end_transaction(bool *started_tx, bool force_stats)
{
	if (*started_tx)
	{
		CommitTransactionCommand();
		pgstat_report_stat(force_stats);
	}
	*started_tx = false;
}

/*
 * The origin is dropped here only if the worker was the engine's own (or an
 * older KrahoDB's): ours drops it itself.  The order of locks is that of the
 * SUBSCRIPTION commands: subscription, pg_subscription_rel, origins.
 */
static void
make_ready(SubscriptionRelState *table, XLogRecPtr current_lsn)
{
	char		originname[NAMEDATALEN];
	Relation	rel;

	table->state = SUBREL_STATE_READY;
	table->lsn = current_lsn;

	LockSharedObject(SubscriptionRelationId, MySubscription->oid, 0,
					 AccessShareLock);
	rel = table_open(SubscriptionRelRelationId, RowExclusiveLock);
	ReplicationOriginNameForTablesync(MySubscription->oid, table->relid,
									  originname, sizeof(originname));
	replorigin_drop_by_name(originname, true, false);
	UpdateSubscriptionRelStateEx(MySubscription->oid, table->relid,
								 table->state, table->lsn, true);
	table_close(rel, NoLock);
}

/*
 * Wait until the table is SYNCDONE, or will not be: its worker is gone, or the
 * table is no longer the subscription's.  Needs a transaction, but no locks:
 * the deadlock detector does not know what we wait for.
 */
static void
wait_for_syncdone(Oid relid)
{
	for (;;)
	{
		XLogRecPtr	lsn;
		char		state;
		bool		running;

		CHECK_FOR_INTERRUPTS();

		InvalidateCatalogSnapshot();
		state = GetSubscriptionRelState(MySubscription->oid, relid, &lsn);
		if (state == SUBREL_STATE_UNKNOWN || state == SUBREL_STATE_SYNCDONE)
			return;

		LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
		running = logicalrep_worker_find(MySubscription->oid, relid, false) != NULL;
		LWLockRelease(LogicalRepWorkerLock);
		if (!running)
			return;

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ANSWER_MS, WAIT_EVENT_LOGICAL_SYNC_STATE_CHANGE);
		ResetLatch(MyLatch);
		KdbFeedbackWhileBusy();
	}
}

/*
 * Take over the worker's state, and let it catch up if that is what it waits
 * for; returns whether it was.  LogicalRepWorkerLock is held.
 */
static bool
let_catch_up(LogicalRepWorker *worker, SubscriptionRelState *table,
			 XLogRecPtr current_lsn)
{
	bool		waiting;

	SpinLockAcquire(&worker->relmutex);
	table->state = worker->relstate;
	table->lsn = worker->relstate_lsn;
	waiting = worker->relstate == SUBREL_STATE_SYNCWAIT;
	if (waiting)
	{
		worker->relstate = SUBREL_STATE_CATCHUP;
		worker->relstate_lsn = Max(worker->relstate_lsn, current_lsn);
	}
	SpinLockRelease(&worker->relmutex);

	if (waiting && worker->proc)
		logicalrep_worker_wakeup_ptr(worker);
	return waiting;
}

/* A table that is not SYNCDONE: see to its worker. */
static void
attend(SubscriptionRelState *table, XLogRecPtr current_lsn, bool *started_tx)
{
	LogicalRepWorker *worker;
	bool		wait = false;
	bool		start = false;

	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	worker = logicalrep_worker_find(MySubscription->oid, table->relid, false);
	if (worker != NULL)
		wait = let_catch_up(worker, table, current_lsn);
	else
		start = logicalrep_sync_worker_count(MySubscription->oid) <
			max_sync_workers_per_subscription;
	LWLockRelease(LogicalRepWorkerLock);

	if (wait)
	{
		end_transaction(started_tx, false);
		ensure_transaction(started_tx);
		wait_for_syncdone(table->relid);
	}
	else if (start && may_start(table->relid))
		KdbWorkerLaunch(MyLogicalRepWorker->dbid, MySubscription->oid,
						MySubscription->name, MyLogicalRepWorker->userid,
						table->relid);
}

/*
 * Called between transactions.  current_lsn: all before it has been applied,
 * but for tables that are not ready.
 */
void
KdbSyncSupervise(XLogRecPtr current_lsn)
{
	bool		started_tx;
	List	   *tables;
	ListCell   *lc;

	Assert(!IsTransactionState());

	tables = KdbSyncNotReadyTables(&started_tx);
	restart_for_two_phase();
	if (tables == NIL)
		forget_start_times();

	foreach(lc, tables)
	{
		SubscriptionRelState *table = lfirst(lc);

		if (table->state != SUBREL_STATE_SYNCDONE)
			attend(table, current_lsn, &started_tx);
		else if (current_lsn >= table->lsn)
		{
			ensure_transaction(&started_tx);
			make_ready(table, current_lsn);
		}
	}
	end_transaction(&started_tx, true);
}
