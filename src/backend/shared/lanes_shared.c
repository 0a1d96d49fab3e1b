/*
 * lanes_shared.c
 *		Shared memory that shows the lanes; see lanes_shared.h.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "krahodb/lanes_shared.h"

#define TRANCHE		"KrahoDB lanes"

StaticAssertDecl(sizeof(KdbLaneSlot) <= sizeof(KdbLanePadded), "a lane's slot is too large");

KdbLanesShared *KdbLanes = NULL;

static Size
lanes_size(void)
{
	return MAXALIGN(add_size(offsetof(KdbLanesShared, slots),
							 mul_size(max_worker_processes, sizeof(KdbLanePadded))));
}

void
KdbLanesRequestShared(void)
{
	RequestAddinShmemSpace(lanes_size());
	RequestNamedLWLockTranche(TRANCHE, 1);
}

void
KdbLanesStartShared(void)
{
	bool		found;

	KdbLanes = ShmemInitStruct(TRANCHE, lanes_size(), &found);
	if (found)
		return;
	memset(KdbLanes, 0, lanes_size());
	KdbLanes->lock = &GetNamedLWLockTranche(TRANCHE)->lock;
	KdbLanes->tranche = KdbLanes->lock->tranche;
	KdbLanes->nslots = max_worker_processes;
	for (int i = 0; i < KdbLanes->nslots; i++)
	{
		KdbLaneSlot *slot = &KdbLanes->slots[i].slot;

		pg_atomic_init_u32(&slot->state, KDB_LANE_FREE);
		pg_atomic_init_u64(&slot->seq, 0);
		pg_atomic_init_u64(&slot->waits_for, 0);
		pg_atomic_init_u32(&slot->idle, 0);
	}
}
