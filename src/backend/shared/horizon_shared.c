/*
 * horizon_shared.c
 *		Shared memory of the retention horizon.
 *
 * Below apply/, which reports its progress there, and horizon/, which computes
 * the horizon.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/logicallauncher.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "krahodb/horizon_shared.h"

KdbHorizonShared *KdbHorizon = NULL;

/* A subscription that replicates has a worker, or at least an origin with a state. */
static int
max_peers(void)
{
	return max_logical_replication_workers + max_replication_slots;
}

static Size
peers_offset(void)
{
	return MAXALIGN(sizeof(KdbHorizonShared));
}

static Size
progress_offset(void)
{
	return MAXALIGN(add_size(peers_offset(), mul_size(max_peers(), sizeof(KdbSharedPeer))));
}

static Size
total_size(void)
{
	return MAXALIGN(add_size(progress_offset(),
							 mul_size(max_logical_replication_workers, sizeof(KdbSharedProgress))));
}

/* See horizon_shared.h. */
void
KdbHorizonRequestShared(void)
{
	RequestAddinShmemSpace(total_size());
	RequestNamedLWLockTranche("KrahoDB horizon", 1);
}

/* See horizon_shared.h. */
void
KdbHorizonStartShared(void)
{
	bool		found;

	KdbHorizon = ShmemInitStruct("KrahoDB horizon", total_size(), &found);
	if (found)
		return;
	memset(KdbHorizon, 0, total_size());
	pg_atomic_init_u64(&KdbHorizon->time, 0);
	pg_atomic_init_u64(&KdbHorizon->asked_at, 0);
	KdbHorizon->lock = &GetNamedLWLockTranche("KrahoDB horizon")->lock;
	KdbHorizon->max_peers = max_peers();
	KdbHorizon->peers = (KdbSharedPeer *) ((char *) KdbHorizon + peers_offset());
	KdbHorizon->nprogress = max_logical_replication_workers;
	KdbHorizon->progress = (KdbSharedProgress *) ((char *) KdbHorizon + progress_offset());
	for (int i = 0; i < KdbHorizon->nprogress; i++)
		SpinLockInit(&KdbHorizon->progress[i].mutex);
}

/* See horizon_shared.h. */
void
KdbHorizonWake(void)
{
	Latch	   *latch = *(Latch *volatile *) &KdbHorizon->latch;

	if (latch != NULL)
		SetLatch(latch);
}
