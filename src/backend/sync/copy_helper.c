/*
 * copy_helper.c
 *		A process that helps a synchronisation worker to copy a table.
 *
 * It is no logical replication worker of the engine's: it has no place in the
 * engine's array, and lives only as long as the worker that started it (the
 * leader, copy_ranges.c) and has ranges left.  What it is to do stands in the
 * leader's entry in shared memory, the plan in its marks.
 *
 * It reads under the leader's snapshot, but asks the catalogs there itself, and
 * these are always shown as they are now.  If what it would copy is not what the
 * plan was made for, it leaves the rest to the leader.
 *
 * Rows that are in the way are the leader's to resolve: the range is given back.
 * Any other error ends the helper, and the leader does what it had begun.
 *
 * LOCKS.  Who wants a lock on the table that conflicts with the copy (CREATE INDEX,
 * TRUNCATE) waits for the leader, who holds it until the copy is complete; in the end the
 * leader waits for its helpers.  A helper that waited for the table would wait behind the
 * former, and all three for good: the deadlock detector does not know what the leader
 * waits for.  So a helper takes the lock when it can have it at once, and keeps it for its
 * session; if it cannot, it leaves the ranges to the leader.  For other locks (a key that
 * somebody is inserting) it does not wait longer than HELPER_LOCK_TIMEOUT: the leader then
 * copies the range, and its waiting can be seen.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/origin.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "replication/worker_internal.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "krahodb/copy_shared.h"
#include "krahodb/fault.h"
#include "krahodb/init.h"
#include "krahodb/stream.h"

#include "sync_private.h"

#define HELPER_LOCK_TIMEOUT	"10s"

static KdbCopyHelperRequest request;
static KdbSharedCopy *copy;

/* What the code that works for a subscription asks for. */
static LogicalRepWorker stand_in;

/* Does the session hold the table and its partitions? */
static bool locked = false;

static void
count_workers(int change)
{
	SpinLockAcquire(&copy->mutex);
	if (copy->generation == request.generation)
		copy->nworkers += change;
	SpinLockRelease(&copy->mutex);
}

static void
leave(int code, Datum arg)
{
	replorigin_session_origin = InvalidRepOriginId;
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	KdbCopyUnlockAtExit();
	count_workers(-1);
}

/* Read what is to be done; false if the copy has ended. */
static bool
read_request(void)
{
	bool		wanted;

	memcpy(&request, MyBgworkerEntry->bgw_extra, sizeof(request));
	copy = &KdbCopies->copies[request.entry];
	KdbCopiedRowTime = copy->row_time;

	SpinLockAcquire(&copy->mutex);
	wanted = OidIsValid(copy->subid) && copy->generation == request.generation;
	stand_in.subid = copy->subid;
	stand_in.relid = copy->relid;
	stand_in.dbid = copy->dbid;
	stand_in.userid = copy->userid;
	SpinLockRelease(&copy->mutex);

	MyLogicalRepWorker = &stand_in;
	return wanted;
}

static void
connect_to_database(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	load_file("libpqwalreceiver", false);
	KdbWorkerConnectToDatabase(stand_in.dbid, stand_in.userid);
	if (LockTimeout == 0)
		SetConfigOption("lock_timeout", HELPER_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);

	ApplyContext = AllocSetContextCreate(TopMemoryContext, "ApplyContext",
										 ALLOCSET_DEFAULT_SIZES);
	StartTransactionCommand();
	KdbSubscriptionLoad();
	CommitTransactionCommand();
}

static void
remote_command(const char *command)
{
	WalRcvExecResult *res = walrcv_exec(LogRepWorkerWalRcvConn, command, 0, NULL);

	if (res->status != WALRCV_OK_COMMAND)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not use the snapshot of the initial copy on the publisher: %s",
						res->err)));
	walrcv_clear_result(res);
}

static void
connect_to_publisher(void)
{
	char		slotname[NAMEDATALEN];
	char	   *err;

	ReplicationSlotNameForTablesync(MySubscription->oid, stand_in.relid,
									slotname, sizeof(slotname));
	LogRepWorkerWalRcvConn = walrcv_connect(MySubscription->conninfo, true, slotname, &err);
	if (LogRepWorkerWalRcvConn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not connect to the publisher: %s", err)));
	KdbCopyRemoteTimeouts();
	remote_command("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ");
	remote_command(psprintf("SET TRANSACTION SNAPSHOT %s", quote_literal_cstr(copy->snapshot)));
}

static uint64
snapshot_xmin(void)
{
	char	  **row = KdbStreamQueryRow(LogRepWorkerWalRcvConn,
										"SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())",
										1, "snapshot");

	return strtou64(row[0], NULL, 10);
}

/* The table and its partitions, for the session; false if somebody is in the way. */
static bool
lock_table(void)
{
	ListCell   *lc;

	if (locked)
		return true;
	StartTransactionCommand();
	locked = true;
	foreach(lc, find_all_inheritors(stand_in.relid, NoLock, NULL))
	{
		LockRelId	lock = {.dbId = MyDatabaseId, .relId = lfirst_oid(lc)};

		locked = locked && ConditionalLockRelationOid(lock.relId, RowExclusiveLock);
		if (locked)
			LockRelationIdForSession(&lock, RowExclusiveLock);
	}
	CommitTransactionCommand();
	return locked;
}

/* NULL if the table there is not what the plan was made for any more. */
static KdbCopyJob *
make_job(void)
{
	KdbCopyJob *job;
	MemoryContext oldcontext;
	Relation	rel;
	Oid			subid;
	bool		same;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	oldcontext = MemoryContextSwitchTo(ApplyContext);

	rel = table_open(stand_in.relid, RowExclusiveLock);
	job = palloc0(sizeof(KdbCopyJob));
	job->relid = stand_in.relid;
	job->plan = KdbCopyMarkedPlan(job->relid, &subid);
	job->table = KdbSyncFetchRemoteTable(get_namespace_name(RelationGetNamespace(rel)),
										 pstrdup(RelationGetRelationName(rel)));
	KdbSyncCheckColumns(job->table, rel);
	job->binary = KdbSyncBinarySafe(job->table, rel);
	job->resolving = KdbSyncExistingRowsResolved();
	job->xmin = snapshot_xmin();
	same = job->plan != NULL && subid == MySubscription->oid &&
		job->plan->nranges == copy->nranges &&
		job->plan->shape == KdbCopyShape(job->table, rel);
	table_close(rel, NoLock);

	MemoryContextSwitchTo(oldcontext);
	PopActiveSnapshot();
	job->startpos = copy->startpos;
	KdbSyncHelperOriginUse(request.number);
	CommitTransactionCommand();
	return same ? job : NULL;
}

static void
give_back(int range)
{
	SpinLockAcquire(&copy->mutex);
	copy->state[range] = KDB_RANGE_LEFT;
	SpinLockRelease(&copy->mutex);
}

/* Copy a range, or give it back because rows are in the way. */
static void
copy_or_give_back(const KdbCopyJob *job, int range)
{
	PG_TRY();
	{
		KdbCopyOneRange(job, copy, range, KDB_COPY_FAIL);
	}
	PG_CATCH();
	{
		if (!job->resolving || !KdbSyncRowsInTheWay(geterrcode()))
			PG_RE_THROW();
		HOLD_INTERRUPTS();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		locked = false;			/* the engine lets go of the session's locks, too */
		RESUME_INTERRUPTS();
		KdbCopyReceiveSkip();
		give_back(range);
	}
	PG_END_TRY();
}

void
KdbCopyHelperMain(Datum main_arg)
{
	KdbCopyJob *job;
	int			range;

	if (!read_request())
		proc_exit(0);
	connect_to_database();
	before_shmem_exit(leave, (Datum) 0);
	count_workers(1);
	if (!lock_table())
		proc_exit(0);
	connect_to_publisher();
	job = make_job();
	KDB_FAULT_POINT("copy_helper_started");

	KdbCopyReceiveCount(copy);
	while (job != NULL && lock_table() &&
		   KdbCopyTakeRange(copy, KDB_RANGE_TODO, request.number, &range))
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		copy_or_give_back(job, range);
	}
	proc_exit(0);
}
