/*
 * copy_ranges.c
 *		Copying a table in ranges: the leader.
 *
 * The synchronisation worker is the leader.  It has made the slot, in a transaction at
 * the publisher that shows the table as of the slot's starting point, and exported
 * that transaction's snapshot.  Up to krahodb.copy_workers_per_table - 1 helpers, dynamic
 * background workers, read under the same snapshot.  All of them, the leader as well,
 * take ranges from shared memory until none is left:
 *
 *	TODO -> TAKEN -> DONE
 *			   \-> LEFT -> (the leader) -> DONE
 *
 * A range is one transaction here: its rows, and the mark that it is done
 * (copy_marks.c).  So after a crash it is there and known to be, or neither.  Its rows
 * can be seen from then on, and written to, before the rest of the table is there.
 *
 * A HELPER THAT FAILS does not fail the copy: the snapshot is the leader's.  What it
 * had taken is left to the leader, which copies it under the same snapshot, and
 * fails if that fails too, with the same error and whatever the subscription does
 * about errors.  The helper is started again, HELPER_STARTS times in all.  Helpers that
 * cannot be started (no free worker, no connection to the publisher, no place for an
 * origin) are done without.  Rows that are in the way, of a subscription that
 * resolves conflicts, are the leader's to resolve too.
 *
 * THE LEADER FAILS: it takes its helpers with it.  A helper that was about to commit
 * has committed or not when the next leader looks.
 *
 * LOCKS.  Between two ranges no transaction holds the table.  As with a copy in one
 * transaction, nobody is to truncate, alter or drop it before the copy is complete,
 * so the leader's session locks it, and the partitions that there are.  It does so before
 * the transaction ends that has looked at what is here from an earlier attempt: who
 * waits for the table to truncate it would come in between.  Helpers: see
 * copy_helper.c.  At the publisher it is the leader's transaction that holds the table and
 * all partitions, from before it looks at their files on (copy_plan.c).
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/copy_marks.h"
#include "krahodb/copy_shared.h"
#include "krahodb/fault.h"
#include "krahodb/init.h"

#include "sync_private.h"

#define HELPER_STARTS	3

#define LEADER			0		/* taken_by */

typedef struct Helper
{
	BackgroundWorkerHandle *handle; /* NULL: does not run */
	int			starts;
} Helper;

static Helper helpers[KDB_COPY_MAX_WORKERS];
static int	nhelpers = 0;
static KdbSharedCopy *announced = NULL;
static List *session_locks = NIL;	/* of relations */

/* ---- shared memory ---------------------------------------------------------- */

/* Of range i, in pages; the last of a relation as far as is known. */
static uint64
range_pages(const KdbCopyPlan *plan, int i)
{
	const KdbCopyRange *range = &plan->ranges[i];
	uint64		others = 0;

	if (range->end != InvalidBlockNumber)
		return range->end - range->start;
	/* what is left of the whole, among the ranges without end */
	for (int j = 0; j < plan->nranges; j++)
	{
		if (plan->ranges[j].end != InvalidBlockNumber)
			others += plan->ranges[j].end - plan->ranges[j].start;
		else if (j < i)
			return 0;
	}
	return plan->pages > others ? plan->pages - others : 0;
}

static void
announce_ranges(KdbSharedCopy *copy, const KdbCopyJob *job)
{
	strlcpy(copy->snapshot, job->snapshot, sizeof(copy->snapshot));
	copy->startpos = job->startpos;
	copy->nranges = job->plan->nranges;
	copy->pages = job->plan->pages;
	for (int i = 0; i < copy->nranges; i++)
	{
		/* those to be merged are the leader's */
		copy->state[i] = job->done[i] ? KDB_RANGE_DONE :
			job->merge[i] ? KDB_RANGE_LEFT : KDB_RANGE_TODO;
		copy->taken_by[i] = LEADER;
		if (!job->done[i])
			continue;
		copy->nranges_done++;
		copy->pages_done += range_pages(job->plan, i);
	}
	copy->pages_kept = copy->pages_done;
}

/* Nothing is copied any more. */
void
KdbCopyEnd(void)
{
	if (announced == NULL)
		return;
	KdbCopyReceiveCount(NULL);
	SpinLockAcquire(&announced->mutex);
	announced->subid = InvalidOid;
	SpinLockRelease(&announced->mutex);
	announced = NULL;
}

/*
 * The engine lets go of a session's locks when a transaction is aborted, but not when a
 * process ends outside of one: they would stay until the server is restarted.
 */
void
KdbCopyUnlockAtExit(void)
{
	AbortOutOfAnyTransaction();
	LockReleaseAll(DEFAULT_LOCKMETHOD, true);
}

/* When the leader ends, however. */
static void
end_copy(int code, Datum arg)
{
	for (int i = 1; i <= nhelpers; i++)
	{
		if (helpers[i].handle != NULL)
			TerminateBackgroundWorker(helpers[i].handle);
	}
	for (int i = 1; i <= nhelpers; i++)
	{
		if (helpers[i].handle != NULL)
			(void) WaitForBackgroundWorkerShutdown(helpers[i].handle);
	}
	KdbCopyEnd();
	KdbCopyUnlockAtExit();
}

/*
 * Once in the life of a synchronisation worker.  Nobody looks at the entry before it
 * has a subscription.
 */
void
KdbCopyAnnounce(Oid relid, const KdbCopyJob *job)
{
	KdbSharedCopy *copy = &KdbCopies->copies[MyLogicalRepWorker - KdbLauncherAttach()->workers];

	if (session_locks == NIL)
		before_shmem_exit(end_copy, (Datum) 0);
	Assert(copy->subid == InvalidOid);
	copy->dbid = MyDatabaseId;
	copy->userid = MyLogicalRepWorker->userid;
	copy->relid = relid;
	copy->generation++;
	copy->started = GetCurrentTimestamp();
	copy->row_time = KdbCopiedRowTime;
	copy->nworkers = 1;
	copy->rows_expected = 0;
	copy->pages = copy->pages_done = copy->pages_kept = 0;
	copy->nranges = copy->nranges_done = 0;
	pg_atomic_write_u64(&copy->rows, 0);
	pg_atomic_write_u64(&copy->bytes, 0);
	if (job != NULL)
		announce_ranges(copy, job);

	SpinLockAcquire(&copy->mutex);
	copy->subid = MySubscription->oid;
	SpinLockRelease(&copy->mutex);
	announced = copy;
	KdbCopyReceiveCount(copy);
}

/* See sync_private.h. */
void
KdbCopyExpectRows(uint64 rows)
{
	SpinLockAcquire(&announced->mutex);
	announced->rows_expected = rows;
	SpinLockRelease(&announced->mutex);
}

bool
KdbCopyTakeRange(KdbSharedCopy *copy, uint8 state, uint8 taker, int *range)
{
	uint8	   *found;

	SpinLockAcquire(&copy->mutex);
	found = memchr(copy->state, state, copy->nranges);
	if (found != NULL)
	{
		*found = KDB_RANGE_TAKEN;
		*range = found - copy->state;
		copy->taken_by[*range] = taker;
	}
	SpinLockRelease(&copy->mutex);
	return found != NULL;
}

static void
note_done(KdbSharedCopy *copy, int range, uint64 pages)
{
	SpinLockAcquire(&copy->mutex);
	copy->state[range] = KDB_RANGE_DONE;
	copy->nranges_done++;
	copy->pages_done += pages;
	SpinLockRelease(&copy->mutex);
}

/* ---- a range ------------------------------------------------------------------ */

static void
mark_done(const KdbCopyJob *job, int range, const KdbCopyResult *result)
{
	FullTransactionId top = GetTopFullTransactionId();
	KdbCopyMark mark = {
		.range = range,
		.xmin = job->xmin,
		.lsn = job->startpos,
		.rows = result->rows,
		.resolved = result->resolved,
	};

	/* the rows' may be a subtransaction's, which is a little later */
	mark.xid = FullTransactionIdFromU64(U64FromFullTransactionId(top) +
										(result->xid - XidFromFullTransactionId(top)));
	KdbCopyMarkDone(job->relid, &mark);
}

/* One range that was taken, in a transaction.  For leader and helpers. */
void
KdbCopyOneRange(const KdbCopyJob *job, KdbSharedCopy *copy, int range, KdbCopyConflicts conflicts)
{
	KdbCopySource source = {.range = &job->plan->ranges[range], .binary = job->binary,
		.again = job->resumed};
	KdbCopyResult result;
	KdbUserContext user;
	Relation	rel;

	StartTransactionCommand();
	rel = table_open(job->relid, RowExclusiveLock);
	KdbSwitchToTableOwner(rel, &user);
	KdbCheckTargetPrivileges(rel, ACL_INSERT);
	source.relation = KdbCopyRangeRelation(source.range);

	PushActiveSnapshot(GetTransactionSnapshot());
	result = KdbSyncCopyRows(rel, job->table, &source, conflicts);
	PopActiveSnapshot();
	KdbRestoreUser(&user);
	table_close(rel, NoLock);

	mark_done(job, range, &result);
	KDB_FAULT_POINT("copy_range_before_commit");
	KdbSyncStampCopy();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	KDB_FAULT_POINT("copy_range_after_commit");
	note_done(copy, range, range_pages(job->plan, range));
}

/* ---- helpers ------------------------------------------------------------------ */

static void
start_helper(int number)
{
	Helper	   *helper = &helpers[number];
	KdbCopyHelperRequest request = {
		.entry = announced - KdbCopies->copies,
		.number = number,
		.generation = announced->generation,
	};
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, KRAHODB_LIBRARY, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "KdbCopyHelperMain", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_type, "krahodb copy worker", sizeof(worker.bgw_type));
	snprintf(worker.bgw_name, BGW_MAXLEN, "krahodb copy worker %d for subscription %u table %u",
			 number, MySubscription->oid, MyLogicalRepWorker->relid);
	memcpy(worker.bgw_extra, &request, sizeof(request));
	StaticAssertStmt(sizeof(request) <= BGW_EXTRALEN, "a request must fit into bgw_extra");

	helper->starts++;
	helper->handle = NULL;
	if (!RegisterDynamicBackgroundWorker(&worker, &helper->handle))
		ereport(DEBUG1,
				(errmsg_internal("no background worker is free to help copying table %u",
								 MyLogicalRepWorker->relid)));
}

/* Ranges that a helper had taken and will not finish are the leader's. */
static bool
leave_ranges_of(int number)
{
	bool		any_left = false;

	SpinLockAcquire(&announced->mutex);
	for (int i = 0; i < announced->nranges; i++)
	{
		if (announced->state[i] == KDB_RANGE_TAKEN && announced->taken_by[i] == number)
			announced->state[i] = KDB_RANGE_LEFT;
		any_left = any_left || announced->state[i] == KDB_RANGE_TODO;
	}
	SpinLockRelease(&announced->mutex);
	return any_left;
}

/* See who has ended; returns whether any helper runs. */
static bool
look_after_helpers(void)
{
	bool		any = false;

	for (int i = 1; i <= nhelpers; i++)
	{
		pid_t		pid;

		if (helpers[i].handle == NULL)
			continue;
		if (GetBackgroundWorkerPid(helpers[i].handle, &pid) != BGWH_STOPPED)
		{
			any = true;
			continue;
		}
		pfree(helpers[i].handle);
		helpers[i].handle = NULL;
		if (leave_ranges_of(i) && helpers[i].starts < HELPER_STARTS)
		{
			start_helper(i);
			any = any || helpers[i].handle != NULL;
		}
	}
	return any;
}

static void
start_helpers(const KdbCopyJob *job)
{
	int			todo = 0;
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

	for (int i = 0; i < job->plan->nranges; i++)
		todo += announced->state[i] == KDB_RANGE_TODO;
	nhelpers = Max(Min(KdbCopyWorkersPerTable, todo) - 1, 0);
	memset(helpers, 0, sizeof(helpers));

	StartTransactionCommand();
	KdbSyncHelperOriginsCreate(nhelpers);
	CommitTransactionCommand();

	MemoryContextSwitchTo(TopMemoryContext);
	for (int i = 1; i <= nhelpers; i++)
		start_helper(i);
	MemoryContextSwitchTo(oldcontext);
}

static void
wait_for_helpers(void)
{
	while (look_after_helpers())
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 KDB_SYNC_WAIT_MS, WAIT_EVENT_BGWORKER_SHUTDOWN);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* ---- the leader ------------------------------------------------------------------ */

static KdbCopyConflicts
leader_conflicts(const KdbCopyJob *job, int range)
{
	if (job->merge[range])
		return KDB_COPY_MERGE;
	return job->resolving ? KDB_COPY_RESOLVE : KDB_COPY_FAIL;
}

static void
copy_todo(const KdbCopyJob *job)
{
	int			range;

	while (KdbCopyTakeRange(announced, KDB_RANGE_TODO, LEADER, &range))
	{
		KdbCopyOneRange(job, announced, range, leader_conflicts(job, range));
		(void) look_after_helpers();
	}
}

static bool
is_marked(Oid relid, int range)
{
	bool		marked;

	StartTransactionCommand();
	marked = KdbCopyIsMarked(relid, range);
	CommitTransactionCommand();
	return marked;
}

/* No helper runs any more.  One may have ended between its commit and saying so. */
static void
copy_left(const KdbCopyJob *job)
{
	int			range;

	while (KdbCopyTakeRange(announced, KDB_RANGE_LEFT, LEADER, &range))
	{
		if (is_marked(job->relid, range))
			note_done(announced, range, range_pages(job->plan, range));
		else
			KdbCopyOneRange(job, announced, range, leader_conflicts(job, range));
	}
}

/* Until the copy is complete or the session ends.  See sync_private.h. */
void
KdbCopyLockForSession(Oid relid)
{
	MemoryContext oldcontext;
	ListCell   *lc;

	before_shmem_exit(end_copy, (Datum) 0);
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	session_locks = find_all_inheritors(relid, RowExclusiveLock, NULL);
	MemoryContextSwitchTo(oldcontext);
	foreach(lc, session_locks)
	{
		LockRelId	lock = {.dbId = MyDatabaseId, .relId = lfirst_oid(lc)};

		LockRelationIdForSession(&lock, RowExclusiveLock);
	}
}

static void
unlock_for_session(void)
{
	ListCell   *lc;

	foreach(lc, session_locks)
	{
		LockRelId	lock = {.dbId = MyDatabaseId, .relId = lfirst_oid(lc)};

		UnlockRelationIdForSession(&lock, RowExclusiveLock);
	}
	list_free(session_locks);
	session_locks = NIL;
}

/*
 * Copy what is not done.  When this returns, all of it is, each range in a
 * transaction that is committed, and no helper runs.
 */
void
KdbCopyRunRanges(KdbCopyJob *job)
{
	Assert(session_locks != NIL);
	KdbCopyAnnounce(job->relid, job);

	ereport(LOG,
			(errmsg("table \"%s.%s\" is copied in %d ranges, %d of which are here from an earlier attempt",
					job->table->nspname, job->table->relname, announced->nranges,
					announced->nranges_done)));
	start_helpers(job);
	copy_todo(job);
	wait_for_helpers();
	copy_left(job);
	Assert(announced->nranges_done == announced->nranges);

	StartTransactionCommand();
	KdbSyncHelperOriginsDrop();
	CommitTransactionCommand();
	unlock_for_session();
	nhelpers = 0;
}
