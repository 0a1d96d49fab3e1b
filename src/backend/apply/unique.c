/*
 * unique.c
 *		Rows that stand in the way of a write, on unique and exclusion indexes.
 *
 * The engine reports the first violated index and raises an error.  To resolve
 * a conflict all rows in the way must be known, with their versions, before
 * anything is written.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/datum.h"
#include "utils/snapmgr.h"

#include "relation_private.h"

typedef struct UniqueProbe
{
	KdbApplyTarget *target;
	Relation	index;
	IndexInfo  *info;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	ScanKeyData key[INDEX_MAX_KEYS];
	int			nkeys;
	KdbHolderFilter filter;
	void	   *arg;
} UniqueProbe;

static bool
is_constraint(const IndexInfo *info)
{
	return (info->ii_Unique || info->ii_ExclusionOps != NULL) && info->ii_ReadyForInserts;
}

/*
 * Set the probe up for the values of the row in the executor's scan tuple;
 * false if the row cannot violate this index: it is outside a partial index,
 * or has NULLs that are distinct.
 */
static bool
prepare_probe(UniqueProbe *probe, TupleTableSlot *slot)
{
	KdbApplyTarget *target = probe->target;
	IndexInfo  *info = probe->info;
	Oid		   *procs = info->ii_ExclusionOps ? info->ii_ExclusionProcs : info->ii_UniqueProcs;
	uint16	   *strategies = info->ii_ExclusionOps ? info->ii_ExclusionStrats : info->ii_UniqueStrats;

	if (!KdbFormIndexValues(info, slot, target->estate, probe->values, probe->isnull))
		return false;
	probe->nkeys = info->ii_NumIndexKeyAttrs;
	for (int i = 0; i < probe->nkeys; i++)
	{
		ScanKeyEntryInitialize(&probe->key[i],
							   probe->isnull[i] ? SK_ISNULL | SK_SEARCHNULL : 0,
							   i + 1, strategies[i], InvalidOid,
							   probe->index->rd_indcollation[i],
							   procs[i], probe->values[i]);
	}
	return true;
}

/* A lossy index scan (GiST) must be checked against the row itself. */
static bool
really_conflicts(UniqueProbe *probe, TupleTableSlot *existing)
{
	IndexInfo  *info = probe->info;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	GetPerTupleExprContext(probe->target->estate)->ecxt_scantuple = existing;
	FormIndexDatum(info, existing, probe->target->estate, values, isnull);
	for (int i = 0; i < probe->nkeys; i++)
	{
		if (isnull[i] ||
			!DatumGetBool(FunctionCall2Coll(&probe->key[i].sk_func,
											probe->key[i].sk_collation,
											values[i], probe->values[i])))
			return false;
	}
	return true;
}

/* Wait for whoever is at that row; false if nobody is. */
static bool
wait_for_row(UniqueProbe *probe, SnapshotData *dirty, TupleTableSlot *existing)
{
	TransactionId xwait = TransactionIdIsValid(dirty->xmin) ? dirty->xmin : dirty->xmax;
	ItemPointerData tid = existing->tts_tid;

	if (!TransactionIdIsValid(xwait))
		return false;
	ExecClearTuple(existing);
	if (dirty->speculativeToken)
		SpeculativeInsertionWait(dirty->xmin, dirty->speculativeToken);
	else
		XactLockTableWait(xwait, probe->target->rel, &tid, XLTW_InsertIndex);
	return true;
}

/* May the row at "existing" have the key for a while, as it is deferrable? */
static bool
is_tolerated(UniqueProbe *probe, TupleTableSlot *existing)
{
	KdbLocalRow row;

	if (probe->index->rd_index->indimmediate)
		return false;
	(void) KdbTargetRowVersion(probe->target, existing, &row);
	return row.same_origin || row.same_transaction;
}

static bool
is_in_the_way(UniqueProbe *probe, TupleTableSlot *existing)
{
	if (probe->filter)
		return probe->filter(probe->arg, probe->index, existing);
	return !is_tolerated(probe, existing);
}

static bool
already_known(const KdbHolder *holders, int n, ItemPointer tid)
{
	for (int i = 0; i < n; i++)
	{
		if (ItemPointerEquals((ItemPointer) &holders[i].tid, tid))
			return true;
	}
	return false;
}

static void
remember_holder(UniqueProbe *probe, TupleTableSlot *existing, KdbHolder *holder)
{
	holder->tid = existing->tts_tid;
	holder->index = RelationGetRelid(probe->index);
	(void) KdbTargetRowVersion(probe->target, existing, &holder->row);
	holder->copy = MakeSingleTupleTableSlot(probe->target->tupdesc, &TTSOpsHeapTuple);
	ExecCopySlot(holder->copy, existing);
	holder->copy->tts_tid = existing->tts_tid;
}

/*
 * Add the rows that one index finds; returns the new count, or -1 if it waited
 * for another transaction, so that all is to be looked at again.
 */
static int
probe_index(UniqueProbe *probe, ItemPointer self, KdbHolder *holders, int n, int max)
{
	TupleTableSlot *existing = probe->target->scratch;
	SnapshotData dirty;
	IndexScanDesc scan;

	InitDirtySnapshot(dirty);
	scan = index_beginscan(probe->target->rel, probe->index, &dirty, probe->nkeys, 0);
	index_rescan(scan, probe->key, probe->nkeys, NULL, 0);
	while (n >= 0 && n < max && index_getnext_slot(scan, ForwardScanDirection, existing))
	{
		if ((self && ItemPointerEquals(self, &existing->tts_tid)) ||
			already_known(holders, n, &existing->tts_tid))
			continue;
		if (scan->xs_recheck && !really_conflicts(probe, existing))
			continue;
		if (wait_for_row(probe, &dirty, existing))
			n = -1;
		else if (is_in_the_way(probe, existing))
			remember_holder(probe, existing, &holders[n++]);
	}
	ExecClearTuple(existing);
	index_endscan(scan);
	return n;
}

static int
probe_all(KdbApplyTarget *target, TupleTableSlot *slot, ItemPointer self,
		  const Bitmapset *changed, KdbHolderFilter filter, void *arg,
		  KdbHolder *holders, int max)
{
	ResultRelInfo *relinfo = target->relinfo;
	int			n = 0;

	for (int i = 0; i < target->nindexes && n >= 0; i++)
	{
		UniqueProbe probe;

		probe.target = target;
		probe.filter = filter;
		probe.arg = arg;
		probe.index = relinfo->ri_IndexRelationDescs[i];
		probe.info = relinfo->ri_IndexRelationInfo[i];
		if (!is_constraint(probe.info))
			continue;
		if (changed && !bms_overlap(changed, target->index_columns[i]))
			continue;
		if (prepare_probe(&probe, slot))
			n = probe_index(&probe, self, holders, n, max);
	}
	return n;
}

/* See relation_private.h. */
int
KdbFindHolders(KdbApplyTarget *target, TupleTableSlot *slot, ItemPointer self,
			   const Bitmapset *changed, KdbHolderFilter filter, void *arg,
			   KdbHolder *holders, int max)
{
	int			n;

	KdbTargetOpenIndexes(target);
	do
	{
		CHECK_FOR_INTERRUPTS();
		n = probe_all(target, slot, self, changed, filter, arg, holders, max);
	} while (n < 0);
	return n;
}

/* See relation_private.h. */
bool
KdbUniqueDependsOn(KdbApplyTarget *target, const Bitmapset *columns)
{
	KdbTargetOpenIndexes(target);
	for (int i = 0; i < target->nindexes; i++)
	{
		if (is_constraint(target->relinfo->ri_IndexRelationInfo[i]) &&
			bms_overlap(columns, target->index_columns[i]))
			return true;
	}
	return false;
}

/* See relation_private.h. */
Bitmapset *
KdbChangedColumns(TupleDesc tupdesc, TupleTableSlot *a, TupleTableSlot *b)
{
	Bitmapset  *changed = NULL;

	slot_getallattrs(a);
	slot_getallattrs(b);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped)
			continue;
		if (a->tts_isnull[i] == b->tts_isnull[i] &&
			(a->tts_isnull[i] ||
			 datum_image_eq(a->tts_values[i], b->tts_values[i],
							att->attbyval, att->attlen)))
			continue;
		changed = bms_add_member(changed, i + 1 - FirstLowInvalidHeapAttributeNumber);
	}
	/* An expression may be over the whole row. */
	if (changed)
		changed = bms_add_member(changed, 0 - FirstLowInvalidHeapAttributeNumber);
	return changed;
}

/* See relation_private.h. */
bool
KdbUniqueMatches(KdbApplyTarget *target, const KdbUniqueValues *unique,
				 TupleTableSlot *existing)
{
	UniqueProbe probe;

	probe.target = target;
	probe.index = unique->index;
	probe.info = unique->info;
	probe.nkeys = unique->nkeys;
	memcpy(probe.key, unique->key, sizeof(ScanKeyData) * unique->nkeys);
	memcpy(probe.values, unique->values.values, sizeof(Datum) * unique->nkeys);
	return really_conflicts(&probe, existing);
}

static void
values_of_probe(const UniqueProbe *probe, bool own_equality, KdbUniqueValues *unique)
{
	unique->index = probe->index;
	unique->info = probe->info;
	unique->nkeys = probe->nkeys;
	memcpy(unique->key, probe->key, sizeof(ScanKeyData) * probe->nkeys);
	KdbIndexedTypes(probe->index, probe->info, probe->target->tupdesc, &unique->values);
	unique->values.operators = probe->info->ii_ExclusionOps || own_equality ? unique->key : NULL;
	for (int i = 0; i < probe->nkeys; i++)
	{
		unique->values.values[i] = probe->values[i];
		unique->values.isnull[i] = probe->isnull[i];
	}
}

/* See relation_private.h. */
bool
KdbForEachUnique(KdbApplyTarget *target, TupleTableSlot *slot,
				 KdbUniqueCallback callback, void *arg)
{
	bool		stop = false;

	KdbTargetOpenIndexes(target);
	for (int i = 0; i < target->nindexes && !stop; i++)
	{
		UniqueProbe probe;
		KdbUniqueValues unique;

		probe.target = target;
		probe.index = target->relinfo->ri_IndexRelationDescs[i];
		probe.info = target->relinfo->ri_IndexRelationInfo[i];
		if (!is_constraint(probe.info) || target->index_oids[i] == target->identity_index)
			continue;
		if (!prepare_probe(&probe, slot))
			continue;
		unique.place = target->index_places[i];
		values_of_probe(&probe, target->own_equality[i], &unique);
		stop = callback(arg, &unique);
	}
	return stop;
}

static bool
has_tuples(void *arg, const KdbUniqueValues *unique)
{
	return KdbIndexHasTuples(arg, unique->index, unique->key, unique->nkeys);
}

/* See relation_private.h. */
bool
KdbHasNewValues(KdbApplyTarget *target, TupleTableSlot *row)
{
	return !KdbForEachUnique(target, row, has_tuples, target);
}
