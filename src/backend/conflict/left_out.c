/*
 * left_out.c
 *		Dead tuples that an index lacks because it was built beside writers.
 *
 * Dead tuples are found by the table's indexes, and an index that is built in the ordinary
 * way has all that vacuum must still keep.  One that is built CONCURRENTLY (CREATE INDEX,
 * REINDEX) has not: it gets what is alive when it is built, and whatever is written from
 * then on.  What had been deleted or overwritten before is in the heap, kept by the
 * horizon's slot, and in no index.
 *
 * WHICH INDEX.  Such a build ends with a change of the index's row in pg_index, in a
 * transaction after the one that made the index, which is the one that made its columns.
 * All that the index lacks was ended by transactions before that change, so nothing
 * matters any more once the slots hold back vacuum from a later transaction on: seconds
 * after the build, if all peers are up.  Other changes of that row (CLUSTER ON, REPLICA IDENTITY USING
 * INDEX) look the same, and cost the same for as long.
 *
 * WHAT IT COSTS.  One scan of the table by each worker that needs such an index, and for each tuple
 * that is left out its place and the hash of its values.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_attribute.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "krahodb/conflict.h"
#include "krahodb/version_record.h"

#include "conflict_private.h"

typedef struct Place
{
	uint64		hash;			/* of the values in the index */
	ItemPointerData tid;
} Place;

struct KdbLeftOut
{
	TransactionId until;		/* all of them were ended before */
	IndexInfo  *info;
	EState	   *estate;			/* for the index's expressions */
	KdbRecordedKey key;			/* values of the tuple at hand */
	int			nplaces;
	int			max;
	Place	   *places;			/* sorted by hash */
};

/* What slots hold back vacuum with; all that ended before may have been removed. */
static TransactionId
kept_from(void)
{
	TransactionId xmin;
	TransactionId catalog_xmin;

	ProcArrayGetReplicationSlotXmin(&xmin, &catalog_xmin);
	return xmin;
}

/* The transaction that made the index, as its first column tells. */
static TransactionId
made_by(Relation index)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(RelationGetRelid(index)),
										Int16GetDatum(1));
	TransactionId xmin = InvalidTransactionId;

	if (HeapTupleIsValid(tuple))
	{
		xmin = HeapTupleHeaderGetXmin(tuple->t_data);
		ReleaseSysCache(tuple);
	}
	return xmin;
}

/* See conflict.h. */
TransactionId
KdbIndexLacksBefore(Relation index)
{
	TransactionId changed = HeapTupleHeaderGetXmin(index->rd_indextuple->t_data);

	if (!TransactionIdIsNormal(changed) || !KdbIndexStillLacks(changed) ||
		made_by(index) == changed)
		return InvalidTransactionId;
	return changed;
}

/* See conflict.h. */
bool
KdbIndexStillLacks(TransactionId until)
{
	TransactionId kept = kept_from();

	return TransactionIdIsValid(until) && TransactionIdIsValid(kept) &&
		!TransactionIdPrecedes(until, kept);
}

/* ---- the values of a tuple -------------------------------------------------- */

static KdbLeftOut *
prepare(Relation rel, Relation index)
{
	static const ScanKeyData by_operators;
	KdbLeftOut *result = palloc0(sizeof(KdbLeftOut));
	KdbRecordedKey *key = &result->key;

	result->info = BuildIndexInfo(index);
	result->estate = CreateExecutorState();
	KdbIndexedTypes(index, result->info, RelationGetDescr(rel), key);
	if (result->info->ii_ExclusionOps || KdbIndexHasOwnEquality(index, key))
		key->operators = &by_operators;
	return result;
}

/* See conflict.h. */
bool
KdbFormIndexValues(IndexInfo *info, TupleTableSlot *slot, EState *estate, Datum *values, bool *isnull)
{
	GetPerTupleExprContext(estate)->ecxt_scantuple = slot;
	if (info->ii_Predicate != NIL)
	{
		if (info->ii_PredicateState == NULL)
			info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, estate);
		if (!ExecQual(info->ii_PredicateState, GetPerTupleExprContext(estate)))
			return false;
	}
	FormIndexDatum(info, slot, estate, values, isnull);
	for (int i = 0; i < info->ii_NumIndexKeyAttrs; i++)
	{
		if (isnull[i] && !info->ii_NullsNotDistinct)
			return false;
	}
	return true;
}

/* Into left_out->key; false if it is not in the index, or not with a value. */
static bool
form_values(KdbLeftOut *left_out, TupleTableSlot *slot)
{
	IndexInfo  *info = left_out->info;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (!KdbFormIndexValues(info, slot, left_out->estate, values, isnull))
		return false;
	for (int i = 0; i < left_out->key.n; i++)
	{
		left_out->key.values[i] = values[i];
		left_out->key.isnull[i] = isnull[i];
	}
	return true;
}

/* ---- collecting --------------------------------------------------------------- */

static bool
ended_between(TupleTableSlot *slot, TransactionId from, TransactionId until)
{
	TransactionId xmax = KdbTupleEndedBy(slot);

	return TransactionIdIsNormal(xmax) && !TransactionIdIsCurrentTransactionId(xmax) &&
		!TransactionIdPrecedes(xmax, from) && TransactionIdPrecedes(xmax, until);
}

static void
add_place(KdbLeftOut *left_out, TupleTableSlot *slot)
{
	if (left_out->nplaces == left_out->max)
	{
		left_out->max = Max(left_out->max * 2, 64);
		if (left_out->places == NULL)
			left_out->places = palloc_array(Place, left_out->max);
		else
			left_out->places = repalloc_huge(left_out->places,
											 mul_size(left_out->max, sizeof(Place)));
	}
	left_out->places[left_out->nplaces].hash = KdbRecordedKeyHash(&left_out->key);
	left_out->places[left_out->nplaces++].tid = slot->tts_tid;
}

static int
compare_places(const void *a, const void *b)
{
	const Place *x = a;
	const Place *y = b;

	return (x->hash > y->hash) - (x->hash < y->hash);
}

static void
collect(KdbLeftOut *left_out, Relation rel)
{
	TransactionId from = kept_from();
	MemoryContext context = CurrentMemoryContext;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);

	while (TTS_IS_BUFFERTUPLE(slot) && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (!ended_between(slot, from, left_out->until))
			continue;
		MemoryContextSwitchTo(GetPerTupleMemoryContext(left_out->estate));
		KdbReadLeftOutValues(rel, slot, NULL);
		if (form_values(left_out, slot))
		{
			MemoryContextSwitchTo(context);
			add_place(left_out, slot);
		}
		MemoryContextSwitchTo(context);
		ResetPerTupleExprContext(left_out->estate);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	if (left_out->nplaces > 0)
		qsort(left_out->places, left_out->nplaces, sizeof(Place), compare_places);
}

/* See conflict.h. */
KdbLeftOut *
KdbLeftOutCollect(Relation rel, Relation index, TransactionId until)
{
	KdbLeftOut *left_out = prepare(rel, index);

	left_out->until = until;
	collect(left_out, rel);
	elog(DEBUG1, "index \"%s\" was built without %d dead tuples",
		 RelationGetRelationName(index), left_out->nplaces);
	return left_out;
}

/* ---- looking for tuples --------------------------------------------------------- */

static int
first_place(const KdbLeftOut *left_out, uint64 hash)
{
	int			low = 0;
	int			high = left_out->nplaces;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (left_out->places[middle].hash < hash)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* See conflict.h. */
void
KdbTupleScanBegin(KdbTupleScan *scan, Relation rel, Relation index, const ScanKeyData *key,
				  int nkeys, TupleTableSlot *slot, KdbLeftOut *left_out)
{
	memset(scan, 0, sizeof(*scan));
	scan->rel = rel;
	scan->slot = slot;
	scan->key = key;
	scan->scan = index_beginscan(rel, index, SnapshotAny, nkeys, 0);

	/*
	 * A search for a live row may just have marked entries of rows that are dead to
	 * everybody; the rows are there all the same.
	 */
	scan->scan->ignore_killed_tuples = false;
	index_rescan(scan->scan, (ScanKey) key, nkeys, NULL, 0);
	scan->left_out = left_out && left_out->nplaces > 0 ? left_out : NULL;
	if (scan->left_out == NULL)
		return;
	Assert(nkeys == left_out->key.n);
	for (int i = 0; i < nkeys; i++)
	{
		left_out->key.values[i] = key[i].sk_argument;
		left_out->key.isnull[i] = (key[i].sk_flags & SK_ISNULL) != 0;
	}
	scan->hash = KdbRecordedKeyHash(&left_out->key);
	scan->next = first_place(left_out, scan->hash);
}

/*
 * The tuple at such a place may be another one by now, or one that vacuum may remove: then
 * its out-of-line values may be gone.
 */
static bool
has_key(KdbTupleScan *scan)
{
	KdbLeftOut *left_out = scan->left_out;
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(left_out->estate));
	bool		result = form_values(left_out, scan->slot);

	for (int i = 0; i < left_out->key.n && result; i++)
	{
		const ScanKeyData *key = &scan->key[i];
		bool		isnull = (key->sk_flags & SK_ISNULL) != 0;

		if (isnull || left_out->key.isnull[i])
			result = isnull && left_out->key.isnull[i];
		else
			result = DatumGetBool(FunctionCall2Coll(unconstify(FmgrInfo *, &key->sk_func),
													key->sk_collation,
													left_out->key.values[i], key->sk_argument));
	}
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(left_out->estate);
	return result;
}

/* See conflict.h. */
bool
KdbTupleScanNext(KdbTupleScan *scan)
{
	KdbLeftOut *left_out = scan->left_out;

	if (!scan->behind_index)
	{
		if (index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
		{
			scan->recheck = scan->scan->xs_recheck;
			KdbReadLeftOutValues(scan->rel, scan->slot, NULL);
			return true;
		}
		scan->behind_index = true;
		scan->recheck = false;
	}
	while (left_out && scan->next < left_out->nplaces &&
		   left_out->places[scan->next].hash == scan->hash)
	{
		ItemPointerData tid = left_out->places[scan->next++].tid;

		if (!table_tuple_fetch_row_version(scan->rel, &tid, SnapshotAny, scan->slot) ||
			!ended_between(scan->slot, kept_from(), left_out->until))
			continue;
		KdbReadLeftOutValues(scan->rel, scan->slot, NULL);
		if (has_key(scan))
			return true;
	}
	return false;
}

/* See conflict.h. */
void
KdbTupleScanEnd(KdbTupleScan *scan)
{
	ExecClearTuple(scan->slot);
	index_endscan(scan->scan);
}
