/*
 * rotate.c
 *		The ages of generations, and emptying the old ones.
 *
 * Ages are looked at with SnapshotAny: a record of a transaction that is not over,
 * or was aborted, counts as one.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "record_private.h"

/* No free generation: look again after 1/RETRY_PARTS of the time it is current. */
#define RETRY_PARTS		10

typedef struct Age
{
	bool		empty;
	TimestampTz oldest;
	TimestampTz youngest;
} Age;

static bool
stamp_at_end(Relation rel, Relation index, ScanDirection end, TimestampTz *stamp)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = index_beginscan(rel, index, SnapshotAny, 0, 0);
	bool		found;
	bool		isnull;

	index_rescan(scan, NULL, 0, NULL, 0);
	found = index_getnext_slot(scan, end, slot);
	if (found)
		*stamp = DatumGetTimestampTz(slot_getattr(slot, STAMP_COLUMN, &isnull));
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}

static Age
age_of(Relation rel)
{
	AttrNumber	stamp = STAMP_COLUMN;
	Age			age = {true, 0, 0};
	Relation	index;

	if (RelationGetNumberOfBlocks(rel) == 0)
		return age;
	index = KdbRecordOpenIndex(rel, &stamp, 1, AccessShareLock);
	if (index == NULL)
	{
		/* Somebody has dropped the index: never empty, never expired. */
		age.empty = false;
		age.oldest = age.youngest = GetCurrentTimestamp();
		return age;
	}
	age.empty = !stamp_at_end(rel, index, ForwardScanDirection, &age.oldest) ||
		!stamp_at_end(rel, index, BackwardScanDirection, &age.youngest);
	index_close(index, AccessShareLock);
	return age;
}

/* Empty also if the relation is gone. */
static Age
age_of_generation(const KdbRecordStore *store, int generation)
{
	Relation	rel = try_table_open(store->relids[generation], AccessShareLock);
	Age			age = {true, 0, 0};

	if (rel)
	{
		age = age_of(rel);
		table_close(rel, AccessShareLock);
	}
	return age;
}

/* See record_private.h. */
void
KdbRecordChooseCurrent(KdbRecordStore *store)
{
	TimestampTz youngest = 0;
	int			current = 0;
	TimestampTz since = 0;

	if (store->current_known)
		return;

	/* Before looking: what changes meanwhile makes it unknown again. */
	store->current_known = true;
	for (int i = 0; i < KDB_RECORD_GENERATIONS; i++)
	{
		Age			age = age_of_generation(store, i);

		if (!age.empty && (since == 0 || age.youngest > youngest))
		{
			current = i;
			youngest = age.youngest;
			since = age.oldest;
		}
	}
	store->current = current;
	store->current_since = since;
}

/* For how long a generation is current. */
static int64
period(int64 keep_us)
{
	return keep_us / (KDB_RECORD_GENERATIONS - 1);
}

/* See record.h. */
bool
KdbRecordRotationDue(const KdbRecordStore *store, int64 keep_us)
{
	TimestampTz now;

	if (!store->current_known || store->current_since == 0)
		return false;
	now = GetCurrentTimestamp();
	return now - store->current_since >= period(keep_us) && now >= store->retry_at;
}

/*
 * New storage, in the current transaction; rel is locked exclusively.  The
 * relation of its out-of-line values is locked as well, if that is free.
 */
static bool
give_empty_storage(Relation rel)
{
	Oid			toast = rel->rd_rel->reltoastrelid;
	ReindexParams params = {0};

	if (OidIsValid(toast) && !ConditionalLockRelationOid(toast, AccessExclusiveLock))
		return false;
	RelationSetNewRelfilenode(rel, rel->rd_rel->relpersistence);
	if (OidIsValid(toast))
	{
		Relation	toastrel = relation_open(toast, NoLock);

		RelationSetNewRelfilenode(toastrel, toastrel->rd_rel->relpersistence);
		relation_close(toastrel, NoLock);
	}
	reindex_relation(RelationGetRelid(rel), REINDEX_REL_PROCESS_TOAST, &params);
	pgstat_count_truncate(rel);
	return true;
}

typedef enum Emptied
{
	EMPTIED,
	WAS_EMPTY,
	TOO_YOUNG,
	IN_USE
} Emptied;

/* Empty one generation if all in it is older than "before". */
static Emptied
empty_generation(const KdbRecordStore *store, int generation, TimestampTz before)
{
	Oid			relid = store->relids[generation];
	Emptied		result = EMPTIED;
	Relation	rel;
	Age			age = age_of_generation(store, generation);

	if (age.empty)
		return WAS_EMPTY;
	if (age.youngest >= before)
		return TOO_YOUNG;
	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return IN_USE;
	rel = try_table_open(relid, NoLock);
	if (rel == NULL)
		return WAS_EMPTY;

	/*
	 * Our own locks do not keep us out: a query or cursor of this session may be reading
	 * it.  Somebody may have appended to it, or emptied it, before the lock.
	 */
	age = age_of(rel);
	if (rel->rd_refcnt != 1)
		result = IN_USE;
	else if (age.empty)
		result = WAS_EMPTY;
	else if (age.youngest >= before)
		result = TOO_YOUNG;
	else if (!give_empty_storage(rel))
		result = IN_USE;
	table_close(rel, NoLock);
	return result;
}

/* See record.h. */
void
KdbRecordRotate(KdbRecordStore *store, int64 keep_us)
{
	TimestampTz now = GetCurrentTimestamp();
	int			free_generation = -1;
	int			current;

	if (!KdbRecordLookUp(store))
		return;
	KdbRecordForgetCurrent(store);
	KdbRecordChooseCurrent(store);

	/* Emptying makes this process forget which one is current. */
	current = store->current;
	for (int i = 1; i < KDB_RECORD_GENERATIONS; i++)
	{
		int			generation = (current + i) % KDB_RECORD_GENERATIONS;
		Emptied		result = empty_generation(store, generation, now - keep_us);

		if (free_generation < 0 && (result == EMPTIED || result == WAS_EMPTY))
			free_generation = generation;
	}
	CommandCounterIncrement();
	if (!KdbRecordLookUp(store))
		return;
	KdbRecordForgetCurrent(store);
	KdbRecordChooseCurrent(store);
	if (!KdbRecordRotationDue(store, keep_us))
		return;
	if (free_generation >= 0)
	{
		store->current = free_generation;
		store->current_since = 0;
	}
	else
		store->retry_at = now + period(keep_us) / RETRY_PARTS;
}

/* See record.h. */
int
KdbRecordPrune(KdbRecordStore *store, TimestampTz before, int *busy)
{
	int			emptied = 0;

	if (!KdbRecordLookUp(store))
		return 0;
	for (int i = 0; i < KDB_RECORD_GENERATIONS; i++)
	{
		switch (empty_generation(store, i, before))
		{
			case EMPTIED:
				emptied++;
				break;
			case IN_USE:
				(*busy)++;
				break;
			case WAS_EMPTY:
			case TOO_YOUNG:
				break;
		}
	}
	return emptied;
}
