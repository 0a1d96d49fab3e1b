/*
 * launcher.c
 *		The process that keeps one apply worker running per enabled subscription.
 *
 * It takes the place of the engine's launcher.  The postmaster registers the
 * engine's launcher before it loads preloaded libraries, so _PG_init finds the
 * entry in BackgroundWorkerList and rewrites its library and function; the
 * engine's own code for it never starts.  Everything the engine does with "the
 * launcher" goes through shared memory and keeps working:
 *
 *	launcher_pid	ours while we run.  ALTER SUBSCRIPTION and exiting workers
 *					signal it (SIGUSR1 sets our latch); the engine also looks
 *					at it to let the launcher exit quietly on shutdown.
 *	workers[]		the slots that pg_stat_subscription, ALTER and DROP
 *					SUBSCRIPTION read; see apply/launch.c.
 *
 * It reads only pg_subscription, a shared catalog, so it is connected to no
 * database.
 *
 * PG_UPGRADE notes the next transaction id of the old cluster before it starts it to
 * look into it.  Whatever is applied there then is lost in the new one, and damages it:
 * its transaction ids are given out once more.  So nothing is, as from version 17 of
 * the engine on.
 *
 * PACE.  A worker is started no sooner than wal_retrieve_retry_interval after the
 * last start for its subscription, so that one that ends at once is not started in a
 * busy loop; what others do does not matter to it.  One that has failed has a pace of
 * its own (apply/retry.c).  Otherwise the launcher sleeps until signalled, or for
 * KDB_LAUNCHER_NAPTIME in case that a signal was lost.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/bgworker_internals.h"
#include "postmaster/interrupt.h"
#include "replication/logicallauncher.h"
#include "replication/walreceiver.h"
#include "replication/worker_internal.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "krahodb/apply.h"
#include "krahodb/clock.h"
#include "krahodb/fault.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/init.h"
#include "krahodb/node.h"

#define KDB_LAUNCHER_NAME		"logical replication launcher"
#define KDB_LAUNCHER_NAPTIME	180000L /* ms; longest sleep without a signal */

/* When a worker was started for a subscription, if that is not long ago. */
typedef struct StartTime
{
	Oid			subid;
	TimestampTz time;
} StartTime;

static KdbLauncherShared *shared = NULL;
static HTAB *starts = NULL;

/*
 * Rewrite the engine's entry, or take it out for pg_upgrade's servers; called once, from
 * _PG_init in the postmaster.
 */
void
KdbLauncherInit(void)
{
	slist_mutable_iter iter;

	/* Single-user mode registers no launcher, and 0 workers, of either kind, means none either. */
	if (!IsPostmasterEnvironment || max_logical_replication_workers == 0 || max_worker_processes == 0)
		return;

	slist_foreach_modify(iter, &BackgroundWorkerList)
	{
		RegisteredBgWorker *entry = slist_container(RegisteredBgWorker, rw_lnode, iter.cur);
		BackgroundWorker *worker = &entry->rw_worker;

		if (strcmp(worker->bgw_name, KDB_LAUNCHER_NAME) != 0)
			continue;
		if (IsBinaryUpgrade)
		{
			slist_delete_current(&iter);
			return;
		}
		strlcpy(worker->bgw_library_name, KRAHODB_LIBRARY,
				sizeof(worker->bgw_library_name));
		strlcpy(worker->bgw_function_name, "KdbLauncherMain",
				sizeof(worker->bgw_function_name));
		return;
	}

	ereport(FATAL,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("could not replace the server's logical replication launcher"),
			 errdetail("No background worker \"%s\" is registered.", KDB_LAUNCHER_NAME),
			 errhint("This server is not one that this version of KrahoDB knows.")));
}

static void
forget_launcher(int code, Datum arg)
{
	shared->launcher_pid = 0;
}

/*
 * All subscriptions of all databases, palloc'd in the current context.  Only
 * what starting a worker needs is filled in.  *resolving: does any of them
 * resolve conflicts?  One whose options cannot be read here may do so; its worker says
 * what is wrong with them, if anything is.
 */
static List *
read_subscriptions(bool *resolving)
{
	MemoryContext resultcxt = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	rel = table_open(SubscriptionRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_subscription form = (Form_pg_subscription) GETSTRUCT(tuple);
		MemoryContext oldcxt = MemoryContextSwitchTo(resultcxt);
		Subscription *sub = palloc0(sizeof(Subscription));
		KdbSubscriptionOptions *options = KdbTryGetSubscriptionOptions(form->oid);

		sub->oid = form->oid;
		sub->dbid = form->subdbid;
		sub->owner = form->subowner;
		sub->enabled = form->subenabled;
		sub->name = pstrdup(NameStr(form->subname));
		result = lappend(result, sub);
		MemoryContextSwitchTo(oldcxt);

		if (options == NULL || KdbResolversActive(&options->resolvers))
			*resolving = true;
	}

	table_endscan(scan);
	table_close(rel, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(resultcxt);

	return result;
}

static bool
has_apply_worker(Oid subid)
{
	bool		found;

	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	found = logicalrep_worker_find(subid, InvalidOid, false) != NULL;
	LWLockRelease(LogicalRepWorkerLock);
	return found;
}

static HTAB *
make_starts(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(StartTime)};

	return hash_create("KrahoDB apply worker start times", 16, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* Start times that do not matter any more, or were by a clock that has been set back. */
static void
forget_starts(TimestampTz now)
{
	HASH_SEQ_STATUS status;
	StartTime  *start;

	hash_seq_init(&status, starts);
	while ((start = hash_seq_search(&status)) != NULL)
	{
		if (start->time > now ||
			TimestampDifferenceExceeds(start->time, now, wal_retrieve_retry_interval))
			hash_search(starts, &start->subid, HASH_REMOVE, NULL);
	}
}

/* Is it time to start a worker?  If not, *wait says in how many milliseconds it will be. */
static bool
may_start(Oid subid, TimestampTz now, long *wait)
{
	StartTime  *start;

	switch (KdbRetryAsk(subid, wait))
	{
		case KDB_RETRY_NOW:
			return true;
		case KDB_RETRY_LATER:
			return false;
		case KDB_RETRY_NONE:
			break;
	}
	start = hash_search(starts, &subid, HASH_FIND, NULL);
	if (start == NULL)
		return true;
	*wait = TimestampDifferenceMilliseconds(now, TimestampTzPlusMilliseconds(start->time,
																			 wal_retrieve_retry_interval));
	return false;
}

static void
start_worker(const Subscription *sub, TimestampTz now)
{
	StartTime  *start = hash_search(starts, &sub->oid, HASH_ENTER, NULL);

	start->time = now;
	KdbWorkerLaunch(sub->dbid, sub->oid, sub->name, sub->owner, InvalidOid);
}

/* Start the missing workers.  Returns for how long there is nothing more to do. */
static long
start_missing_workers(void)
{
	MemoryContext passcxt = AllocSetContextCreate(TopMemoryContext,
												  "KrahoDB launcher pass",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(passcxt);
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = KDB_LAUNCHER_NAPTIME;
	uint32		clock = KdbClockState();
	bool		resolving = false;
	List	   *subscriptions = read_subscriptions(&resolving);
	ListCell   *lc;

	/*
	 * One that resolves conflicts since a moment ago says so itself when its worker starts or looks at
	 * it again, perhaps behind our reading.
	 */
	KDB_FAULT_POINT("launcher_read");
	if (resolving)
		KdbClockEnforce(KDB_CLOCK_SUBSCRIPTIONS);
	else
		KdbClockRelax(KDB_CLOCK_SUBSCRIPTIONS, clock);
	KdbHorizonWake();
	forget_starts(now);
	foreach(lc, subscriptions)
	{
		Subscription *sub = lfirst(lc);
		long		wait;

		if (!sub->enabled || has_apply_worker(sub->oid))
			continue;
		if (may_start(sub->oid, now, &wait))
		{
			start_worker(sub, now);
			wait = wal_retrieve_retry_interval;
		}
		timeout = Min(timeout, Max(wait, 1));
	}

	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(passcxt);
	return timeout;
}

static void
wait_for_work(long timeout)
{
	int			rc = WaitLatch(MyLatch,
							   WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							   timeout, WAIT_EVENT_LOGICAL_LAUNCHER_MAIN);

	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}

	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

void
KdbLauncherMain(Datum main_arg)
{
	ereport(DEBUG1,
			(errmsg_internal("logical replication launcher started")));

	shared = KdbLauncherAttach();
	before_shmem_exit(forget_launcher, (Datum) 0);
	Assert(shared->launcher_pid == 0);
	shared->launcher_pid = MyProcPid;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	(void) KdbNodeSalt();		/* a standby that was promoted goes on as that node */

	starts = make_starts();
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		wait_for_work(start_missing_workers());
	}
}
