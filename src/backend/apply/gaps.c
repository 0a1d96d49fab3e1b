/*
 * gaps.c
 *		Does an index have nothing of the values of a run of rows?
 *
 * Where conflicts are resolved it is asked for each row to be inserted whether its key and its
 * unique values were ever here, dead versions included.  One descent of the index for each is
 * what inserting the entry costs once more.  But rows that are inserted together mostly
 * belong together in the index as well: they are behind everything else, or between the
 * same two neighbours.
 *
 * So first it is asked whether the index has an entry between the least and the greatest
 * of them.  If it has, they are sorted, and the gaps between entries are gone through: from the
 * least row on to the next entry, on from the first row behind that one.  Where a gap has
 * room for few rows this is no better than to look for each row, and that is done
 * with the rest of them.
 *
 * An entry of the very value is looked for in the heap as well: one that VACUUM has not
 * come to yet may be left of a row that is gone.
 *
 * Gaps are for unique indexes in plain order on columns.  Of a partial one, one on
 * expressions, and an exclusion constraint, unique.c knows.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"

#include "relation_private.h"

#define KDB_GAP_ROWS	8		/* rows that a gap must have room for ... */
#define KDB_GAP_POOR	4		/* ... or that many gaps are enough */

typedef struct KdbRunIndex
{
	Relation	index;			/* while a run is looked at */
	TupleTableSlot *scratch;
	bool		on_columns;
	bool		plain_order;	/* ascending, NULLs last */
	int			nkeys;
	AttrNumber	attnum[INDEX_MAX_KEYS];
	FmgrInfo	order[INDEX_MAX_KEYS];
	ScanKeyData equal[INDEX_MAX_KEYS];	/* but for the values */
	FmgrInfo	greater_equal;	/* of the first column, as the next one */
	FmgrInfo	less_equal;
} KdbRunIndex;

/* ---- the index ------------------------------------------------------------- */

static bool
is_on_columns(Relation index, const IndexInfo *info)
{
	if (!info->ii_Unique || info->ii_ExclusionOps || info->ii_NullsNotDistinct ||
		info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
		index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < info->ii_NumIndexKeyAttrs; i++)
	{
		if (!AttrNumberIsForUserDefinedAttr(info->ii_IndexAttrNumbers[i]))
			return false;
	}
	return true;
}

static void
prepare(KdbApplyTarget *target, KdbRunIndex *run, const IndexInfo *info)
{
	Relation	index = run->index;

	run->scratch = target->scratch;
	run->on_columns = is_on_columns(index, info);
	if (!run->on_columns)
		return;
	run->nkeys = info->ii_NumIndexKeyAttrs;
	run->plain_order = true;
	for (int i = 0; i < run->nkeys; i++)
	{
		run->attnum[i] = info->ii_IndexAttrNumbers[i];
		run->plain_order = run->plain_order && index->rd_indoption[i] == 0;
		fmgr_info_copy(&run->order[i], index_getprocinfo(index, i + 1, BTORDER_PROC),
					   target->context);
		ScanKeyEntryInitialize(&run->equal[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i],
							   KdbIndexOperatorFunction(index, i, BTEqualStrategyNumber), (Datum) 0);
	}
	fmgr_info_cxt(KdbIndexOperatorFunction(index, 0, BTGreaterEqualStrategyNumber),
				  &run->greater_equal, target->context);
	fmgr_info_cxt(KdbIndexOperatorFunction(index, 0, BTLessEqualStrategyNumber),
				  &run->less_equal, target->context);
}

/* What is kept of the i-th index. */
static KdbRunIndex *
run_index(KdbApplyTarget *target, int i)
{
	KdbRunIndex *run;

	if (target->run_indexes == NULL)
		target->run_indexes = MemoryContextAllocZero(target->context,
													 sizeof(KdbRunIndex *) * target->nindexes);
	run = target->run_indexes[i];
	if (run != NULL)
	{
		run->index = target->relinfo->ri_IndexRelationDescs[i];
		return run;
	}
	run = MemoryContextAllocZero(target->context, sizeof(KdbRunIndex));
	run->index = target->relinfo->ri_IndexRelationDescs[i];
	prepare(target, run, target->relinfo->ri_IndexRelationInfo[i]);
	target->run_indexes[i] = run;
	return run;
}

/* ---- order ----------------------------------------------------------------- */

static int
compare_values(KdbRunIndex *run, int i, Datum a, Datum b)
{
	return DatumGetInt32(FunctionCall2Coll(&run->order[i], run->index->rd_indcollation[i], a, b));
}

static Datum
value_of(KdbRunIndex *run, TupleTableSlot *row, int i)
{
	return row->tts_values[run->attnum[i] - 1];
}

static int
compare_rows(KdbRunIndex *run, TupleTableSlot *a, TupleTableSlot *b)
{
	int			order = 0;

	for (int i = 0; i < run->nkeys && order == 0; i++)
		order = compare_values(run, i, value_of(run, a, i), value_of(run, b, i));
	return order;
}

static int
compare_for_sort(const void *a, const void *b, void *arg)
{
	return compare_rows(arg, *(TupleTableSlot *const *) a, *(TupleTableSlot *const *) b);
}

/* How the entry that the scan stands at compares with the row. */
static int
compare_entry(KdbRunIndex *run, IndexScanDesc scan, TupleTableSlot *row)
{
	int			order = 0;

	for (int i = 0; i < run->nkeys && order == 0; i++)
	{
		bool		isnull;
		Datum		value = index_getattr(scan->xs_itup, i + 1, RelationGetDescr(run->index),
										  &isnull);

		order = isnull ? 1 : compare_values(run, i, value, value_of(run, row, i));
	}
	return order;
}

/* ---- the run ---------------------------------------------------------------- */

/* Those that have values in the index. */
static int
rows_with_values(KdbRunIndex *run, TupleTableSlot **slots, int n, TupleTableSlot **rows)
{
	int			nrows = 0;

	for (int i = 0; i < n; i++)
	{
		bool		has_null = false;

		for (int k = 0; k < run->nkeys; k++)
			has_null = has_null || slots[i]->tts_isnull[run->attnum[k] - 1];
		if (!has_null)
			rows[nrows++] = slots[i];
	}
	return nrows;
}

/* The bounds of the rows; returns whether they are in order. */
static bool
find_bounds(KdbRunIndex *run, TupleTableSlot **rows, int n, TupleTableSlot **least,
			TupleTableSlot **greatest)
{
	bool		in_order = true;

	*least = *greatest = rows[0];
	for (int i = 1; i < n; i++)
	{
		if (compare_rows(run, rows[i], *greatest) > 0)
		{
			*greatest = rows[i];
			continue;
		}
		in_order = false;
		if (compare_rows(run, rows[i], *least) < 0)
			*least = rows[i];
	}
	return in_order;
}

/* ">= row" for all columns of the index, as one key of the scan; members is for it to use. */
static void
from_row(KdbRunIndex *run, TupleTableSlot *row, ScanKeyData *key, ScanKeyData *members)
{
	Relation	index = run->index;

	if (run->nkeys == 1)
	{
		ScanKeyEntryInitializeWithInfo(key, 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
									   index->rd_indcollation[0], &run->greater_equal,
									   value_of(run, row, 0));
		return;
	}
	for (int i = 0; i < run->nkeys; i++)
		ScanKeyEntryInitializeWithInfo(&members[i],
									   SK_ROW_MEMBER | (i == run->nkeys - 1 ? SK_ROW_END : 0),
									   i + 1, BTGreaterEqualStrategyNumber, InvalidOid,
									   index->rd_indcollation[i], &run->order[i],
									   value_of(run, row, i));
	memset(key, 0, sizeof(ScanKeyData));
	key->sk_flags = SK_ROW_HEADER;
	key->sk_attno = 1;
	key->sk_strategy = BTGreaterEqualStrategyNumber;
	key->sk_argument = PointerGetDatum(members);
}

/* Stand at the first entry from one row to another; false if there is none. */
static bool
find_entry(KdbRunIndex *run, IndexScanDesc scan, TupleTableSlot *from, TupleTableSlot *to)
{
	ScanKeyData key[2];
	ScanKeyData members[INDEX_MAX_KEYS];

	from_row(run, from, &key[0], members);
	ScanKeyEntryInitializeWithInfo(&key[1], 0, 1, BTLessEqualStrategyNumber, InvalidOid,
								   run->index->rd_indcollation[0], &run->less_equal,
								   value_of(run, to, 0));
	index_rescan(scan, key, 2, NULL, 0);
	return index_getnext_tid(scan, ForwardScanDirection) != NULL &&
		compare_entry(run, scan, to) <= 0;
}

/*
 * Go through the gaps that sorted rows are in; returns how many rows are surely in one.
 */
static int
pass_gaps(KdbRunIndex *run, IndexScanDesc scan, TupleTableSlot **rows, int n)
{
	int			done = 0;

	for (int poor = 0; done < n && poor < KDB_GAP_POOR;)
	{
		int			before = done;

		if (!find_entry(run, scan, rows[done], rows[n - 1]))
			return n;
		while (done < n && compare_entry(run, scan, rows[done]) > 0)
			done++;
		if (done < n && compare_entry(run, scan, rows[done]) == 0)
			break;
		if (done < before + KDB_GAP_ROWS)
			poor++;
	}
	return done;
}

/* Is there a tuple with the values of the row? */
static bool
has_tuple(KdbRunIndex *run, IndexScanDesc scan, TupleTableSlot *row)
{
	bool		found;

	for (int i = 0; i < run->nkeys; i++)
	{
		run->equal[i].sk_argument = value_of(run, row, i);
		run->equal[i].sk_func.fn_mcxt = CurrentMemoryContext;	/* of the scan's copy */
	}
	index_rescan(scan, run->equal, run->nkeys, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, run->scratch);
	ExecClearTuple(run->scratch);
	return found;
}

static IndexScanDesc
begin_scan(KdbApplyTarget *target, KdbRunIndex *run, int nkeys)
{
	IndexScanDesc scan = index_beginscan(target->rel, run->index, SnapshotAny, nkeys, 0);

	scan->ignore_killed_tuples = false;
	scan->xs_want_itup = true;
	return scan;
}

/* How many of the rows, which are sorted then, are surely new. */
static int
rows_in_gaps(KdbApplyTarget *target, KdbRunIndex *run, TupleTableSlot **rows, int n)
{
	IndexScanDesc scan = begin_scan(target, run, 2);
	TupleTableSlot *least;
	TupleTableSlot *greatest;
	bool		in_order = find_bounds(run, rows, n, &least, &greatest);
	int			done = n;

	if (find_entry(run, scan, least, greatest))
	{
		if (!in_order)
			qsort_arg(rows, n, sizeof(TupleTableSlot *), compare_for_sort, run);
		done = pass_gaps(run, scan, rows, n);
	}
	index_endscan(scan);
	return done;
}

static bool
rows_are_new(KdbApplyTarget *target, KdbRunIndex *run, TupleTableSlot **rows, int n)
{
	int			i = run->plain_order && n > 0 ? rows_in_gaps(target, run, rows, n) : 0;
	IndexScanDesc scan;

	if (i == n)
		return true;
	scan = begin_scan(target, run, run->nkeys);
	while (i < n && !has_tuple(run, scan, rows[i]))
		i++;
	index_endscan(scan);
	return i == n;
}

/* See relation_private.h. */
bool
KdbRunIsNew(KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	TupleTableSlot **rows = palloc(sizeof(TupleTableSlot *) * n);
	bool		others = false;
	bool		is_new = true;

	/* What generated columns are is part of what is unique. */
	for (int i = 0; i < n && target->has_unique && target->has_generated; i++)
	{
		KdbComputeGenerated(target, slots[i]);
		ResetPerTupleExprContext(target->estate);
	}
	KdbTargetOpenIndexes(target);
	for (int i = 0; i < target->nindexes && is_new; i++)
		is_new = KdbTargetLeftOut(target, target->relinfo->ri_IndexRelationDescs[i]) == NULL;
	for (int i = 0; i < target->nindexes && is_new; i++)
	{
		IndexInfo  *info = target->relinfo->ri_IndexRelationInfo[i];
		KdbRunIndex *run;

		if (!info->ii_Unique && info->ii_ExclusionOps == NULL)
			continue;
		run = run_index(target, i);
		if (!run->on_columns)
			others = true;
		else
			is_new = rows_are_new(target, run, rows, rows_with_values(run, slots, n, rows));
	}
	for (int i = 0; i < n && is_new && others; i++)
	{
		is_new = KdbHasNewValues(target, slots[i]);
		ResetPerTupleExprContext(target->estate);
	}
	pfree(rows);
	return is_new;
}
