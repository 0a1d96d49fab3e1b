/*
 * launch.c
 *		Starting a logical replication worker of KrahoDB.
 *
 * Workers live in the engine's shared array, so that the engine's commands and
 * views see them as its own.  The engine's launch function names the engine's
 * worker function; this one does the same with KrahoDB's.
 *
 * A slot goes through
 *
 *	free		in_use false
 *	launching	in_use true, proc NULL; filled by whoever launches
 *	attached	in_use true, proc set; done by the worker, which also frees it
 *				when it exits (both in the engine's logicalrep_worker_attach)
 *
 * and generation goes up each time it leaves "free".  If the worker dies before
 * it attaches, the launching process frees the slot; if that process died as
 * well, the next launch that is short of slots does, after wal_receiver_timeout.
 *
 * All fields are read and written under LogicalRepWorkerLock.
 */
#include "postgres.h"

#include "catalog/pg_subscription_rel.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "replication/logicallauncher.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "replication/worker_internal.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "krahodb/apply.h"
#include "krahodb/fault.h"
#include "krahodb/init.h"

#define KDB_ATTACH_POLL		10L /* ms; attaching sends no notification */

/* What happened to the search for a slot. */
typedef enum SlotSearch
{
	SLOT_TAKEN,
	SLOT_NONE_FREE,
	SLOT_SYNC_LIMIT				/* enough synchronisation workers already */
} SlotSearch;

/*
 * The engine's shared memory; it exists since the server started.  Same
 * address every time.
 */
KdbLauncherShared *
KdbLauncherAttach(void)
{
	static KdbLauncherShared *shared = NULL;

	if (shared == NULL)
	{
		bool		found;

		shared = ShmemInitStruct("Logical Replication Launcher Data",
								 ApplyLauncherShmemSize(), &found);
		if (!found)
			elog(FATAL, "shared memory of the logical replication launcher does not exist");
	}
	return shared;
}

static void
free_slot(LogicalRepWorker *worker)
{
	Assert(LWLockHeldByMeInMode(LogicalRepWorkerLock, LW_EXCLUSIVE));

	worker->in_use = false;
	worker->proc = NULL;
	worker->dbid = InvalidOid;
	worker->userid = InvalidOid;
	worker->subid = InvalidOid;
	worker->relid = InvalidOid;
}

static void
free_slot_of_generation(LogicalRepWorker *worker, uint16 generation)
{
	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	if (worker->generation == generation)
		free_slot(worker);
	LWLockRelease(LogicalRepWorkerLock);
}

static LogicalRepWorker *
find_free_slot(void)
{
	KdbLauncherShared *shared = KdbLauncherAttach();

	for (int i = 0; i < max_logical_replication_workers; i++)
	{
		if (!shared->workers[i].in_use)
			return &shared->workers[i];
	}
	return NULL;
}

/* Free slots whose worker never attached; were there any? */
static bool
free_abandoned_slots(TimestampTz now)
{
	KdbLauncherShared *shared = KdbLauncherAttach();
	bool		any = false;

	for (int i = 0; i < max_logical_replication_workers; i++)
	{
		LogicalRepWorker *worker = &shared->workers[i];

		if (!worker->in_use || worker->proc != NULL ||
			!TimestampDifferenceExceeds(worker->launch_time, now, wal_receiver_timeout))
			continue;
		elog(WARNING,
			 "logical replication worker for subscription %u took too long to start; canceled",
			 worker->subid);
		free_slot(worker);
		any = true;
	}
	return any;
}

static void
fill_slot(LogicalRepWorker *worker, TimestampTz now,
		  Oid dbid, Oid subid, Oid userid, Oid relid)
{
	worker->launch_time = now;
	worker->in_use = true;
	worker->generation++;
	worker->proc = NULL;
	worker->dbid = dbid;
	worker->userid = userid;
	worker->subid = subid;
	worker->relid = relid;
	worker->relstate = SUBREL_STATE_UNKNOWN;
	worker->relstate_lsn = InvalidXLogRecPtr;
	worker->stream_fileset = NULL;
	worker->last_lsn = InvalidXLogRecPtr;
	TIMESTAMP_NOBEGIN(worker->last_send_time);
	TIMESTAMP_NOBEGIN(worker->last_recv_time);
	worker->reply_lsn = InvalidXLogRecPtr;
	TIMESTAMP_NOBEGIN(worker->reply_time);
}

static SlotSearch
take_slot(Oid dbid, Oid subid, Oid userid, Oid relid,
		  LogicalRepWorker **worker, uint16 *generation)
{
	TimestampTz now = GetCurrentTimestamp();
	SlotSearch	result = SLOT_TAKEN;
	int			nsync;

	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);

	*worker = find_free_slot();
	nsync = logicalrep_sync_worker_count(subid);
	if ((*worker == NULL || nsync >= max_sync_workers_per_subscription) &&
		free_abandoned_slots(now))
	{
		*worker = find_free_slot();
		nsync = logicalrep_sync_worker_count(subid);
	}

	if (OidIsValid(relid) && nsync >= max_sync_workers_per_subscription)
		result = SLOT_SYNC_LIMIT;
	else if (*worker == NULL)
		result = SLOT_NONE_FREE;
	else
	{
		fill_slot(*worker, now, dbid, subid, userid, relid);
		*generation = (*worker)->generation;
	}

	LWLockRelease(LogicalRepWorkerLock);
	return result;
}

static void
describe_worker(BackgroundWorker *bgw, int slot, Oid subid, Oid relid)
{
	memset(bgw, 0, sizeof(*bgw));
	bgw->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw->bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw->bgw_restart_time = BGW_NEVER_RESTART;
	bgw->bgw_notify_pid = MyProcPid;
	bgw->bgw_main_arg = Int32GetDatum(slot);
	strlcpy(bgw->bgw_library_name, KRAHODB_LIBRARY, sizeof(bgw->bgw_library_name));
	strlcpy(bgw->bgw_function_name, "KdbApplyWorkerMain", sizeof(bgw->bgw_function_name));
	strlcpy(bgw->bgw_type, "logical replication worker", sizeof(bgw->bgw_type));
	if (OidIsValid(relid))
		snprintf(bgw->bgw_name, sizeof(bgw->bgw_name),
				 "logical replication worker for subscription %u sync %u", subid, relid);
	else
		snprintf(bgw->bgw_name, sizeof(bgw->bgw_name),
				 "logical replication worker for subscription %u", subid);
}

/* Wait until the worker has attached to its slot, or has died. */
static void
wait_for_attach(LogicalRepWorker *worker, uint16 generation,
				BackgroundWorkerHandle *handle)
{
	for (;;)
	{
		bool		settled;
		pid_t		pid;
		int			rc;

		CHECK_FOR_INTERRUPTS();

		LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
		settled = !worker->in_use || worker->proc != NULL ||
			worker->generation != generation;
		LWLockRelease(LogicalRepWorkerLock);
		if (settled)
			return;

		if (GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED)
		{
			free_slot_of_generation(worker, generation);
			return;
		}

		rc = WaitLatch(MyLatch,
					   WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					   KDB_ATTACH_POLL, WAIT_EVENT_BGWORKER_STARTUP);
		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
}

void
KdbWorkerLaunch(Oid dbid, Oid subid, const char *subname, Oid userid, Oid relid)
{
	LogicalRepWorker *worker;
	uint16		generation = 0;
	BackgroundWorker bgw;
	BackgroundWorkerHandle *handle;

	ereport(DEBUG1,
			(errmsg_internal("starting logical replication worker for subscription \"%s\"",
							 subname)));

	/* Each worker needs a replication origin, and these live in that many places. */
	if (max_replication_slots == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("cannot start logical replication workers when max_replication_slots = 0")));

	KDB_FAULT_POINT("launcher_launch");

	switch (take_slot(dbid, subid, userid, relid, &worker, &generation))
	{
		case SLOT_TAKEN:
			break;
		case SLOT_SYNC_LIMIT:
			/* a harmless race with another launch; it is tried again later */
			return;
		case SLOT_NONE_FREE:
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("out of logical replication worker slots"),
					 errhint("You might need to increase max_logical_replication_workers.")));
			return;
	}

	describe_worker(&bgw, worker - KdbLauncherAttach()->workers, subid, relid);
	if (!RegisterDynamicBackgroundWorker(&bgw, &handle))
	{
		free_slot_of_generation(worker, generation);
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("out of background worker slots"),
				 errhint("You might need to increase max_worker_processes.")));
		return;
	}

	wait_for_attach(worker, generation, handle);
}
