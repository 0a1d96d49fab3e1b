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
 * PACE.  After a pass that started any worker no other pass is made for
 * wal_retrieve_retry_interval, so that a worker that fails at once is not
 * restarted in a busy loop.  A worker that is to try again after a deadlock and
 * the like has a pace of its own (apply/retry.c).  Otherwise it sleeps until
 * signalled, or for KDB_LAUNCHER_NAPTIME in case that a signal was lost.
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
#include "krahodb/horizon_shared.h"
#include "krahodb/init.h"
#include "krahodb/node.h"

#define KDB_LAUNCHER_NAME		"logical replication launcher"
#define KDB_LAUNCHER_NAPTIME	180000L /* ms; longest sleep without a signal */

static KdbLauncherShared *shared = NULL;

/* Rewrite the engine's entry; called once, from _PG_init in the postmaster. */
void
KdbLauncherInit(void)
{
	slist_iter	iter;

	/* Single-user mode registers no launcher, and 0 workers means none either. */
	if (!IsPostmasterEnvironment || max_logical_replication_workers == 0)
		return;

	slist_foreach(iter, &BackgroundWorkerList)
	{
		RegisteredBgWorker *entry = slist_container(RegisteredBgWorker, rw_lnode, iter.cur);
		BackgroundWorker *worker = &entry->rw_worker;

		if (strcmp(worker->bgw_name, KDB_LAUNCHER_NAME) != 0)
			continue;
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
 * resolve conflicts?
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

		sub->oid = form->oid;
		sub->dbid = form->subdbid;
		sub->owner = form->subowner;
		sub->enabled = form->subenabled;
		sub->name = pstrdup(NameStr(form->subname));
		result = lappend(result, sub);
		MemoryContextSwitchTo(oldcxt);

		if (KdbResolversActive(&KdbGetSubscriptionOptions(form->oid)->resolvers))
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

/*
 * Start the missing workers: those that retry if it is their time, the others
 * only if the interval has passed.  Did it have to start any?  *timeout is
 * shortened to when the next one will be due.
 */
static bool
start_missing_workers(bool interval_passed, long *timeout)
{
	MemoryContext passcxt = AllocSetContextCreate(TopMemoryContext,
												  "KrahoDB launcher pass",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(passcxt);
	bool		started = false;
	bool		resolving = false;
	List	   *subscriptions = read_subscriptions(&resolving);
	ListCell   *lc;

	KdbClockEnforce(KDB_CLOCK_SUBSCRIPTIONS, resolving);
	KdbHorizonWake();
	foreach(lc, subscriptions)
	{
		Subscription *sub = lfirst(lc);
		KdbRetryState retry;
		long		wait;

		if (!sub->enabled || has_apply_worker(sub->oid))
			continue;
		retry = KdbRetryAsk(sub->oid, &wait);
		if (retry == KDB_RETRY_LATER)
			*timeout = Min(*timeout, wait);
		if (retry == KDB_RETRY_LATER || (retry == KDB_RETRY_NONE && !interval_passed))
			continue;
		started = true;
		KdbWorkerLaunch(sub->dbid, sub->oid, sub->name, sub->owner, InvalidOid);
	}

	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(passcxt);
	return started;
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
	TimestampTz last_start = 0;

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

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		interval_passed = TimestampDifferenceExceeds(last_start, now,
																 wal_retrieve_retry_interval);
		long		timeout = interval_passed ? KDB_LAUNCHER_NAPTIME : wal_retrieve_retry_interval;

		CHECK_FOR_INTERRUPTS();

		if (start_missing_workers(interval_passed, &timeout))
		{
			last_start = now;
			timeout = Min(timeout, wal_retrieve_retry_interval);
		}

		wait_for_work(timeout);
	}
}
