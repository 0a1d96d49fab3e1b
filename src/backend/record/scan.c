/*
 * scan.c
 *		Records by key, over all generations.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "record_private.h"

/* See record.h. */
void
KdbRecordScanBegin(KdbRecordScan *scan)
{
	Assert(scan->nkeys > 0 && scan->nkeys <= KDB_RECORD_MAX_KEYS);
	scan->next = 0;
	scan->rel = NULL;
	if (!KdbRecordLookUp(scan->store))
		scan->next = KDB_RECORD_GENERATIONS;
}

static void
close_generation(KdbRecordScan *scan)
{
	if (scan->rel == NULL)
		return;
	index_endscan(scan->scan);
	index_close(scan->index, AccessShareLock);
	ExecDropSingleTupleTableSlot(scan->slot);
	table_close(scan->rel, AccessShareLock);
	scan->rel = NULL;
}

static void
build_keys(const KdbRecordScan *scan, ScanKeyData *keys)
{
	Relation	index = scan->index;

	for (int i = 0; i < scan->nkeys; i++)
	{
		Oid			type = index->rd_opcintype[i];
		Oid			equality = get_opfamily_member(index->rd_opfamily[i], type, type,
												   BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&keys[i], 0, i + 1, BTEqualStrategyNumber, type,
							   index->rd_indcollation[i], get_opcode(equality),
							   scan->values[i]);
	}
}

/* Open the next generation that has anything in it; false behind the last. */
static bool
open_generation(KdbRecordScan *scan)
{
	while (scan->next < KDB_RECORD_GENERATIONS)
	{
		Relation	rel = try_table_open(scan->store->relids[scan->next++], AccessShareLock);
		ScanKeyData keys[KDB_RECORD_MAX_KEYS];

		if (rel == NULL)
			continue;
		scan->index = RelationGetNumberOfBlocks(rel) == 0 ? NULL :
			KdbRecordOpenIndex(rel, scan->columns, scan->nkeys, AccessShareLock);
		if (scan->index == NULL)
		{
			table_close(rel, AccessShareLock);
			continue;
		}
		scan->rel = rel;
		scan->slot = table_slot_create(rel, NULL);
		scan->scan = index_beginscan(rel, scan->index, scan->snapshot, scan->nkeys, 0);
		build_keys(scan, keys);
		index_rescan(scan->scan, keys, scan->nkeys, NULL, 0);
		return true;
	}
	return false;
}

/* See record.h. */
TupleTableSlot *
KdbRecordScanNext(KdbRecordScan *scan)
{
	while (scan->rel != NULL || open_generation(scan))
	{
		if (index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
			return scan->slot;
		close_generation(scan);
	}
	return NULL;
}

/* See record.h. */
void
KdbRecordScanDelete(KdbRecordScan *scan)
{
	Relation	rel = table_open(RelationGetRelid(scan->rel), RowExclusiveLock);

	simple_table_tuple_delete(rel, &scan->slot->tts_tid, scan->snapshot);
	table_close(rel, NoLock);
}

/* See record.h. */
void
KdbRecordScanEnd(KdbRecordScan *scan)
{
	close_generation(scan);
}
