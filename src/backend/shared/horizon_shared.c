/*
 * horizon_shared.c
 *		Shared memory of the retention horizon.
 *
 * Below apply/, which reports its progress there, and horizon/, which computes
 * the horizon.
 *
 * THE HORIZON OUTLIVES THE SERVER.  Once it has been said, others have forgotten
 * things by it: vacuum rows, the store of version records generations, and a merged
 * column's history is cut by it.  Were it unknown or earlier after a crash, what is left
 * would be taken for all there was.  So it is in a file, krahodb/horizon, before
 * anybody can read it in shared memory, and is known from the server's start.  That it
 * is true of what the server has after a crash is so because changes are counted only
 * once they are flushed.
 *
 * WHAT IT CONSISTS OF is in the file too: the subscriptions that counted when it moved, for
 * all that their publishers had committed until then has been applied and flushed here.
 * Who copies a table from here has to know which these are, and after a restart their
 * publishers may not answer for long.  With each is the node that its publisher was: the
 * subscription may be altered to lead to another one.
 *
 * It belongs to a node: a copy of the data directory that becomes another one begins
 * without.  A promoted standby goes on with the one of its base backup, which is true
 * of what it has replayed, and early.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "replication/logicallauncher.h"
#include "replication/slot.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "krahodb/horizon_shared.h"
#include "krahodb/node.h"

#include "state_file.h"

typedef struct FileEntry
{
	uint64		salt;			/* of the node */
	uint64		value;			/* the first one: the horizon; others: the publisher's node */
	Oid			subid;			/* has all until the horizon; invalid in the first one */
	uint32		unused;			/* 0 */
} FileEntry;

static const KdbStateFile state_file = {
	.name = "horizon",
	.magic = 0x4b44485a,		/* KDHZ */
	.version = 2,
	.max_entries = 1 << 20,
	.entry_size = sizeof(FileEntry),
	.removal_hint = "the retention horizon is then unknown until all peers have answered.",
};

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

static uint64
current_salt(void)
{
	return KdbNodeSaltAt(DT_NOEND);
}

/* See horizon_shared.h. */
TimestampTz
KdbHorizonStored(List **counted)
{
	uint32		count;
	FileEntry  *entries = KdbStateFileRead(&state_file, &count);
	TimestampTz horizon = 0;

	*counted = NIL;
	if (count > 0 && entries[0].salt == current_salt())
	{
		horizon = (TimestampTz) entries[0].value;
		for (uint32 i = 1; i < count; i++)
		{
			KdbHorizonCounted *peer = palloc(sizeof(KdbHorizonCounted));

			peer->subid = entries[i].subid;
			peer->node = entries[i].value;
			*counted = lappend(*counted, peer);
		}
	}
	pfree(entries);
	return horizon;
}

/* See horizon_shared.h. */
void
KdbHorizonStore(TimestampTz horizon, const List *counted)
{
	FileEntry  *entries = palloc0((1 + list_length(counted)) * sizeof(FileEntry));
	uint32		count = 1;
	ListCell   *lc;

	entries[0].value = (uint64) horizon;
	foreach(lc, counted)
	{
		const KdbHorizonCounted *peer = lfirst(lc);

		entries[count].subid = peer->subid;
		entries[count++].value = peer->node;
	}
	for (uint32 i = 0; i < count; i++)
		entries[i].salt = current_salt();
	KdbStateFileWrite(&state_file, entries, count);
	pfree(entries);
}

/* See horizon_shared.h. */
void
KdbHorizonStartShared(void)
{
	List	   *counted;
	bool		found;

	KdbHorizon = ShmemInitStruct("KrahoDB horizon", total_size(), &found);
	if (found)
		return;
	memset(KdbHorizon, 0, total_size());
	pg_atomic_init_u64(&KdbHorizon->time, (uint64) KdbHorizonStored(&counted));
	pg_atomic_init_u64(&KdbHorizon->asked_at, 0);
	pg_atomic_init_u32(&KdbHorizon->holders, 0);
	pg_atomic_init_u32(&KdbHorizon->moving, 0);
	KdbHorizon->lock = &GetNamedLWLockTranche("KrahoDB horizon")->lock;
	KdbHorizon->max_peers = max_peers();
	KdbHorizon->peers = (KdbSharedPeer *) ((char *) KdbHorizon + peers_offset());
	KdbHorizon->nprogress = max_logical_replication_workers;
	KdbHorizon->progress = (KdbSharedProgress *) ((char *) KdbHorizon + progress_offset());
	for (int i = 0; i < KdbHorizon->nprogress; i++)
		SpinLockInit(&KdbHorizon->progress[i].mutex);
}

/* See horizon_shared.h. */
bool
KdbHorizonIsOverridden(void)
{
	const char *threshold = GetConfigOption("old_snapshot_threshold", true, false);

	return threshold != NULL && strcmp(threshold, "-1") != 0;
}

/* See horizon_shared.h. */
void
KdbHorizonWake(void)
{
	Latch	   *latch = *(Latch *volatile *) &KdbHorizon->latch;

	if (latch != NULL)
		SetLatch(latch);
}

/* ---- holding it ---- */

#define LOOK_AGAIN_MS	10

static bool holding = false;

static void
release_at_exit(int code, Datum arg)
{
	KdbHorizonRelease();
}

/* See horizon_shared.h. */
void
KdbHorizonRelease(void)
{
	if (holding)
		pg_atomic_fetch_sub_u32(&KdbHorizon->holders, 1);
	holding = false;
}

/* How many peers are shown; -1 if nobody has looked since the server started, or there are more. */
static int
peers_shown(void)
{
	int			n;

	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	n = KdbHorizon->published && !KdbHorizon->incomplete ? KdbHorizon->npeers : -1;
	LWLockRelease(KdbHorizon->lock);
	return n;
}

/* See horizon_shared.h. */
TimestampTz
KdbHorizonHold(void)
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(release_at_exit, (Datum) 0);
	registered = true;
	if (!holding)
		pg_atomic_fetch_add_u32(&KdbHorizon->holders, 1);	/* a full barrier */
	holding = true;
	while (pg_atomic_read_u32(&KdbHorizon->moving) != 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_AGAIN_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	switch (peers_shown())
	{
		case -1:
			return 0;
		case 0:
			/* Nobody's changes come here: nothing is older than now. */
			return GetCurrentTimestamp();
		default:
			return KdbHorizonTimestamp();
	}
}
