/*
 * shared.c
 *		The only place that requests and initialises shared memory.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "krahodb/shared.h"

KdbSharedState *KdbShared = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

static void
request_shared(void)
{
	if (previous_request_hook)
		previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(sizeof(KdbSharedState)));
}

static void
start_shared(void)
{
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	KdbShared = ShmemInitStruct("KrahoDB", sizeof(KdbSharedState), &found);
	if (!found)
	{
		pg_atomic_init_u64(&KdbShared->clock_max, 0);
		pg_atomic_init_u32(&KdbShared->clock_enforced, 1);
		pg_atomic_init_u64(&KdbShared->clock_commit_waits, 0);
		pg_atomic_init_u64(&KdbShared->clock_commit_wait_us, 0);
		pg_atomic_init_u64(&KdbShared->clock_apply_waits, 0);
		pg_atomic_init_u64(&KdbShared->clock_apply_wait_us, 0);
		pg_atomic_init_u32(&KdbShared->restart_now, 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
KdbSharedInit(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared;
}
