/*
 * origin_nodes.c
 *		Which node an origin id of this server stands for, kept for good.
 *
 * Rows keep the origin id of their writer longer than the subscription lives
 * that brought them, and are compared with changes of other nodes before any
 * publisher has been connected to after a restart.  So the map is a file in the
 * data directory (krahodb/origin_nodes, see state_file.h), written anew when a
 * publisher tells something new: that is once in the life of a subscription.
 *
 * An id may be given to another subscription when its own is gone.  So each entry
 * says since when it holds, as a position in this server's log: a walsender that
 * reads older records must not take the former node's stream for the new one's.
 *
 * With it goes the database whose subscription the id belongs to.  What one database has applied of a
 * node, the others of the server have not seen.
 *
 * And whose log the positions are of: what counts for one server says nothing of another one.
 *
 * And from where the subscription's stream brings changes, as its slot was made: what the node had committed before must
 * come from elsewhere (sync/copied_versions.c).
 *
 * FORMER NODES.  The rows that were applied before keep their versions, so what an
 * id has stood for is kept too, with the first transaction id for which that is not
 * so any more.  An id changes its node when its subscription is gone, or when
 * the publisher has become another node.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"

#include "state_file.h"

#define ORIGIN_IDS			65536

/* Kept; the oldest are forgotten first. */
#define MAX_FORMER			1024

typedef struct FileEntry
{
	uint64		node;
	XLogRecPtr	since;
	uint64		until;			/* full transaction id; 0: it still is that node */
	uint32		origin;
	Oid			database;
	uint32		cluster;		/* 0: not known */
	uint32		unused;			/* 0 */
	XLogRecPtr	start;			/* 0: not known */
} FileEntry;

static const KdbStateFile state_file = {
	.name = "origin_nodes",
	.magic = 0x4b444f4e,		/* KDON */
	.version = 5,
	.max_entries = ORIGIN_IDS + MAX_FORMER,
	.entry_size = sizeof(FileEntry),
	.removal_hint = "publishers tell their identity again when they are connected to.",
};

typedef struct OriginNodes
{
	LWLock		lock;			/* of writers; readers need none */
	pg_atomic_uint64 node[ORIGIN_IDS];
	pg_atomic_uint64 since[ORIGIN_IDS]; /* set before node is */
	pg_atomic_uint64 start[ORIGIN_IDS];
	pg_atomic_uint32 database[ORIGIN_IDS];
	pg_atomic_uint32 cluster[ORIGIN_IDS];
	pg_atomic_uint32 any_former;
	int			nformer;		/* lock */
	FileEntry	former[MAX_FORMER]; /* lock; until ascends */
} OriginNodes;

static OriginNodes *map = NULL;

Size
KdbOriginNodesSize(void)
{
	return MAXALIGN(sizeof(OriginNodes));
}

static void
read_map(void)
{
	uint32		count;
	FileEntry  *entries = KdbStateFileRead(&state_file, &count);

	for (uint32 i = 0; i < count; i++)
	{
		RepOriginId origin = (RepOriginId) entries[i].origin;

		if (entries[i].until != 0)
		{
			if (map->nformer < MAX_FORMER)
				map->former[map->nformer++] = entries[i];
			continue;
		}
		pg_atomic_write_u64(&map->since[origin], entries[i].since);
		pg_atomic_write_u64(&map->start[origin], entries[i].start);
		pg_atomic_write_u32(&map->database[origin], entries[i].database);
		pg_atomic_write_u32(&map->cluster[origin], entries[i].cluster);
		pg_atomic_write_u64(&map->node[origin], entries[i].node);
	}
	pg_atomic_write_u32(&map->any_former, map->nformer > 0);
	pfree(entries);
}

void
KdbOriginNodesStart(void)
{
	bool		found;

	map = ShmemInitStruct("KrahoDB origin nodes", KdbOriginNodesSize(), &found);
	if (found)
		return;
	LWLockInitialize(&map->lock, LWLockNewTrancheId());
	pg_atomic_init_u32(&map->any_former, 0);
	map->nformer = 0;
	for (int i = 0; i < ORIGIN_IDS; i++)
	{
		pg_atomic_init_u64(&map->node[i], 0);
		pg_atomic_init_u64(&map->since[i], 0);
		pg_atomic_init_u64(&map->start[i], 0);
		pg_atomic_init_u32(&map->database[i], InvalidOid);
		pg_atomic_init_u32(&map->cluster[i], 0);
	}
	read_map();
}

/* Write the whole map, with the lock held. */
static void
write_map(void)
{
	FileEntry  *entries = palloc0((ORIGIN_IDS + MAX_FORMER) * sizeof(FileEntry));
	uint32		count = map->nformer;

	memcpy(entries, map->former, map->nformer * sizeof(FileEntry));
	for (uint32 i = 0; i < ORIGIN_IDS; i++)
	{
		uint64		node = pg_atomic_read_u64(&map->node[i]);

		if (node == 0 && KdbOriginCluster((RepOriginId) i) == 0)
			continue;
		entries[count].node = node;
		entries[count].since = pg_atomic_read_u64(&map->since[i]);
		entries[count].start = pg_atomic_read_u64(&map->start[i]);
		entries[count].database = pg_atomic_read_u32(&map->database[i]);
		entries[count].cluster = KdbOriginCluster((RepOriginId) i);
		entries[count++].origin = i;
	}
	KdbStateFileWrite(&state_file, entries, count);
	pfree(entries);
}

uint64
KdbOriginNode(RepOriginId origin)
{
	return pg_atomic_read_u64(&map->node[origin]);
}

XLogRecPtr
KdbOriginNodeSince(RepOriginId origin)
{
	return pg_atomic_read_u64(&map->since[origin]);
}

/* See origin_nodes.h. */
bool
KdbOriginIsElsewhere(RepOriginId origin)
{
	Oid			database = pg_atomic_read_u32(&map->database[origin]);

	return OidIsValid(database) && database != MyDatabaseId;
}

/* The full id of a transaction that has left something in a table. */
static uint64
full_xid(TransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return ((uint64) epoch) << 32 | xid;
}

uint64
KdbOriginNodeOf(RepOriginId origin, TransactionId xid)
{
	uint64		node = KdbOriginNode(origin);
	uint64		full;

	pg_read_barrier();
	if (pg_atomic_read_u32(&map->any_former) == 0)
		return node;
	full = full_xid(xid);
	LWLockAcquire(&map->lock, LW_SHARED);
	for (int i = map->nformer - 1; i >= 0 && full < map->former[i].until; i--)
	{
		if (map->former[i].origin == origin)
			node = map->former[i].node;
	}
	LWLockRelease(&map->lock);
	return node;
}

/* Lock held. */
static void
add_former(RepOriginId origin, uint64 node, XLogRecPtr since)
{
	FileEntry  *entry;

	if (node == 0)
		return;
	if (map->nformer == MAX_FORMER)
		memmove(map->former, map->former + 1, --map->nformer * sizeof(FileEntry));
	entry = &map->former[map->nformer++];
	memset(entry, 0, sizeof(*entry));
	entry->node = node;
	entry->since = since;
	entry->until = U64FromFullTransactionId(ReadNextFullTransactionId());
	entry->origin = origin;
	pg_atomic_write_u32(&map->any_former, 1);
	pg_write_barrier();
}

/* Lock held. */
static void
set_node(RepOriginId origin, uint64 node, XLogRecPtr since)
{
	pg_atomic_write_u64(&map->node[origin], 0);
	pg_write_barrier();
	pg_atomic_write_u64(&map->since[origin], since);
	pg_write_barrier();
	pg_atomic_write_u64(&map->node[origin], node);
}

void
KdbRememberOriginNode(RepOriginId origin, uint64 node)
{
	volatile uint64 old_node = KdbOriginNode(origin);
	Oid			old_database = pg_atomic_read_u32(&map->database[origin]);
	XLogRecPtr	old_since;
	volatile int nformer;

	if (old_node == node && old_database == MyDatabaseId)
		return;

	/* What was applied of the former node stays seen. */
	if (old_node != node)
		KdbSeenKeepProgress(origin);

	LWLockAcquire(&map->lock, LW_EXCLUSIVE);
	old_node = KdbOriginNode(origin);
	old_since = KdbOriginNodeSince(origin);
	nformer = map->nformer;
	pg_atomic_write_u32(&map->database[origin], MyDatabaseId);
	if (old_node != node)
	{
		add_former(origin, old_node, old_since);
		set_node(origin, node, GetXLogInsertRecPtr());
		pg_atomic_write_u64(&map->start[origin], InvalidXLogRecPtr);
	}
	PG_TRY();
	{
		write_map();
	}
	PG_CATCH();
	{
		set_node(origin, old_node, old_since);
		pg_atomic_write_u32(&map->database[origin], old_database);
		if (old_node != node)
			map->nformer = Min(nformer, MAX_FORMER - 1);
		PG_RE_THROW();
	}
	PG_END_TRY();
	LWLockRelease(&map->lock);
}

/* See origin_nodes.h. */
void
KdbRememberOriginStart(RepOriginId origin, uint64 node, XLogRecPtr start)
{
	KdbRememberOriginNode(origin, node);
	LWLockAcquire(&map->lock, LW_EXCLUSIVE);
	pg_atomic_write_u64(&map->start[origin], start);
	write_map();
	LWLockRelease(&map->lock);
}

/* See origin_nodes.h. */
XLogRecPtr
KdbOriginStart(RepOriginId origin)
{
	return pg_atomic_read_u64(&map->start[origin]);
}

/* See origin_nodes.h. */
RepOriginId
KdbNextOriginOf(uint64 node, RepOriginId after)
{
	for (uint32 i = (uint32) after + 1; i < ORIGIN_IDS; i++)
	{
		if (pg_atomic_read_u64(&map->node[i]) == node && pg_atomic_read_u32(&map->database[i]) == MyDatabaseId)
			return (RepOriginId) i;
	}
	return InvalidRepOriginId;
}

/* See origin_nodes.h. */
uint32
KdbOriginCluster(RepOriginId origin)
{
	return pg_atomic_read_u32(&map->cluster[origin]);
}

/* See origin_nodes.h. */
void
KdbRememberOriginCluster(RepOriginId origin, uint32 cluster)
{
	uint32		old_cluster;

	if (KdbOriginCluster(origin) == cluster)
		return;
	LWLockAcquire(&map->lock, LW_EXCLUSIVE);
	old_cluster = KdbOriginCluster(origin);
	pg_atomic_write_u32(&map->cluster[origin], cluster);
	PG_TRY();
	{
		write_map();
	}
	PG_CATCH();
	{
		pg_atomic_write_u32(&map->cluster[origin], old_cluster);
		PG_RE_THROW();
	}
	PG_END_TRY();
	LWLockRelease(&map->lock);
}

XLogRecPtr
KdbNodeProgress(uint64 node, Oid database, bool flush)
{
	XLogRecPtr	progress = InvalidXLogRecPtr;

	for (uint32 i = 1; i < ORIGIN_IDS; i++)
	{
		if (pg_atomic_read_u64(&map->node[i]) == node && pg_atomic_read_u32(&map->database[i]) == database)
			progress = Max(progress, replorigin_get_progress((RepOriginId) i, flush));
	}
	return progress;
}
