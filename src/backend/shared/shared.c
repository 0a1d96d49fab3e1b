/*
 * shared.c
 *		The only place that requests and initialises shared memory.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/logicallauncher.h"
#include "replication/worker_internal.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "krahodb/conflict_counters.h"
#include "krahodb/copy_shared.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/lanes_shared.h"
#include "krahodb/node.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"

KdbSharedState *KdbShared = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static Size
shared_size(void)
{
	return MAXALIGN(add_size(offsetof(KdbSharedState, retries),
							 mul_size(max_logical_replication_workers, sizeof(KdbRetryEntry))));
}

static void
request_shared(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(KdbNodeStateSize());
	RequestAddinShmemSpace(KdbOriginNodesSize());
	RequestAddinShmemSpace(KdbSeenAheadSize());
	RequestAddinShmemSpace(KdbSeenPositionsSize());
	RequestAddinShmemSpace(KdbConflictCountersSize());
	RequestAddinShmemSpace(KdbCopySharedSize());
	KdbHorizonRequestShared();
	KdbLanesRequestShared();
}

static void
start_shared(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	KdbShared = ShmemInitStruct("KrahoDB", shared_size(), &found);
	if (!found)
	{
		pg_atomic_init_u64(&KdbShared->clock_max, 0);
		pg_atomic_init_u32(&KdbShared->clock_enforced, KDB_CLOCK_SUBSCRIPTIONS);
		pg_atomic_init_u64(&KdbShared->clock_unsettled, 0);
		pg_atomic_init_u32(&KdbShared->clock_committing, 0);
		pg_atomic_init_u64(&KdbShared->clock_commit_waits, 0);
		pg_atomic_init_u64(&KdbShared->clock_commit_wait_us, 0);
		pg_atomic_init_u64(&KdbShared->clock_apply_waits, 0);
		pg_atomic_init_u64(&KdbShared->clock_apply_wait_us, 0);
		pg_atomic_init_u64(&KdbShared->fetched_rows, 0);
		pg_atomic_init_u64(&KdbShared->fetch_us, 0);
		pg_atomic_init_u64(&KdbShared->fetch_failures, 0);
		pg_atomic_init_u64(&KdbShared->version_records, 0);
		pg_atomic_init_u64(&KdbShared->floors, 1);
		pg_atomic_init_u64(&KdbShared->merge_events, 0);
		pg_atomic_init_u32(&KdbShared->merging, 0);
		ConditionVariableInit(&KdbShared->seen_moved);
		KdbShared->nretries = max_logical_replication_workers;
		memset(KdbShared->retries, 0, sizeof(KdbRetryEntry) * KdbShared->nretries);
	}
	KdbNodeStateStart();
	KdbOriginNodesStart();
	KdbSeenAheadStart();
	KdbSeenPositionsStart();
	KdbConflictCountersStart();
	KdbCopySharedStart();
	KdbHorizonStartShared();
	KdbLanesStartShared();
	LWLockRelease(AddinShmemInitLock);
}

/* See shared.h. */
bool
KdbHasWorkers(Oid subid, bool only_running)
{
	List	   *workers;

	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	workers = logicalrep_workers_find(subid, only_running);
	LWLockRelease(LogicalRepWorkerLock);
	return workers != NIL;
}

void
KdbSharedInit(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared;
}
