/*
 * append.c
 *		One more record.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "record_private.h"

/* Are its columns those that this library writes? */
static bool
fits(const KdbRecordStore *store, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	static bool warned = false;
	bool		same = desc->natts == store->ncolumns;

	for (int i = 0; same && i < desc->natts; i++)
		same = TupleDescAttr(desc, i)->atttypid == store->types[i] &&
			!TupleDescAttr(desc, i)->attisdropped;
	if (!same && !warned)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"krahodb\" of this database does not fit the server's version of KrahoDB"),
				 errdetail("Relation \"%s\" has other columns, nothing is recorded in it.",
						   RelationGetRelationName(rel)),
				 errhint("Run ALTER EXTENSION krahodb UPDATE.")));
	warned = warned || !same;
	return same;
}

/*
 * The values of the row's entry; false if it does not get one.  The extension's indexes are on
 * plain columns, but an administrator may have made others, to search the log.
 */
static bool
form_entry(IndexInfo *info, TupleTableSlot *slot, EState **estate, Datum *values, bool *isnull)
{
	/* one that is being made CONCURRENTLY, or is left of such a command that failed */
	if (!info->ii_ReadyForInserts)
		return false;
	if (info->ii_Expressions != NIL || info->ii_Predicate != NIL)
	{
		if (*estate == NULL)
			*estate = CreateExecutorState();
		GetPerTupleExprContext(*estate)->ecxt_scantuple = slot;
		if (!ExecQual(ExecPrepareQual(info->ii_Predicate, *estate), GetPerTupleExprContext(*estate)))
			return false;
	}
	FormIndexDatum(info, slot, *estate, values, isnull);
	return true;
}

static void
insert_index_entries(Relation rel, TupleTableSlot *slot)
{
	List	   *indexes = RelationGetIndexList(rel);
	EState	   *estate = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), RowExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		if (form_entry(info, slot, &estate, values, isnull))
			index_insert(index, values, isnull, &slot->tts_tid, rel,
						 UNIQUE_CHECK_NO, false, info);
		index_close(index, RowExclusiveLock);
		pfree(info);
	}
	if (estate != NULL)
		FreeExecutorState(estate);
	list_free(indexes);
}

/* See record.h. */
bool
KdbRecordAppend(KdbRecordStore *store, Datum *values, bool *isnull)
{
	Relation	rel;
	TupleTableSlot *slot;

	Assert(!isnull[STAMP_COLUMN - 1]);
	if (!KdbRecordLookUp(store))
		return false;
	KdbRecordChooseCurrent(store);

	rel = try_table_open(store->relids[store->current], RowExclusiveLock);
	if (rel == NULL)			/* the extension is being dropped */
		return false;
	if (!fits(store, rel))
	{
		table_close(rel, NoLock);
		return false;
	}

	slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsVirtual);
	memcpy(slot->tts_values, values, sizeof(Datum) * store->ncolumns);
	memcpy(slot->tts_isnull, isnull, sizeof(bool) * store->ncolumns);
	ExecStoreVirtualTuple(slot);
	table_tuple_insert(rel, slot, GetCurrentCommandId(true),
					   TABLE_INSERT_NO_LOGICAL, NULL);
	insert_index_entries(rel, slot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);

	if (store->current_since == 0)
		store->current_since = DatumGetTimestampTz(values[STAMP_COLUMN - 1]);
	return true;
}
