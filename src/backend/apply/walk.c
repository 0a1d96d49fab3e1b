/*
 * walk.c
 *		Looking up keys that come in ascending order, by walking along the index.
 *
 * Large transactions mostly change rows in the order of their keys.  A descent of the
 * index for each one is then most of what a lookup costs, although the next entry is
 * the one right behind.  So once some keys in a row were ascending, the identity index
 * is scanned from there on, and each following key is looked for a few entries ahead.
 *
 * A WALK IS ONLY A HINT.  What it finds is a row that the dirty snapshot sees, with
 * the very key that is asked for, and that nobody is changing: the same that a descent
 * would find.  In every other case (no such entry, somebody at the row, too many
 * entries between) it says that it does not know, and the descent decides.  The
 * entries of a page are read when the walk comes to it; what is inserted there
 * afterwards is such a case, too.  A dirty snapshot is not an MVCC one, so the scan
 * keeps its page pinned, and VACUUM does not take away what it has read.
 *
 * STATES.  Waiting: "ascending" keys in a row are counted, after "pause" lookups.
 * Walking: the scan stands at an entry (at_entry) or behind the last one that was
 * used.  Some misses in a row end the walk, and the next one waits for longer.
 *
 * AMONG LIVE ROWS.  Where each key's entry was the very next one for longer than a page of the index,
 * there are no entries of dead versions here: the walk would have passed them.  (Those that are marked
 * as dead are not shown to it; they are removed without any search.)  So it is known that looking for
 * dead versions before a page is split is in vain (entries.c).
 *
 * Only for btrees in ascending order whose columns are passed by value, so that the
 * last key needs no copy.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "utils/memutils.h"

#include "relation_private.h"

#define KDB_WALK_ASCENDING	8	/* keys in a row before a walk begins */
#define KDB_WALK_STEPS		32	/* entries passed in search of one key */
#define KDB_WALK_MISSES		4	/* keys in a row that were not found */
#define KDB_WALK_MAX_PAUSE	65536	/* lookups */
#define KDB_WALK_LIVE	512		/* next entries in a row that tell of live rows: more than a page has */

static bool
is_possible(KdbApplyTarget *target, Relation index)
{
	if (index->rd_rel->relam != BTREE_AM_OID)
		return false;
	for (int i = 0; i < target->nkeys; i++)
	{
		if (!TupleDescAttr(target->tupdesc, target->key_attnum[i] - 1)->attbyval ||
			(index->rd_indoption[i] & INDOPTION_DESC))
			return false;
	}
	return true;
}

/* Functions that the walk needs; they live as long as the target. */
static void
prepare(KdbApplyTarget *target, Relation index)
{
	KdbWalk    *walk = &target->walk;

	walk->prepared = true;
	walk->possible = is_possible(target, index);
	if (!walk->possible)
		return;
	for (int i = 0; i < target->nkeys; i++)
		fmgr_info_copy(&walk->order[i], index_getprocinfo(index, i + 1, BTORDER_PROC),
					   target->context);
	fmgr_info_cxt(KdbIndexOperatorFunction(index, 0, BTGreaterEqualStrategyNumber),
				  &walk->greater_equal, target->context);
}

static int
compare(KdbApplyTarget *target, int i, Datum a, Datum b)
{
	return DatumGetInt32(FunctionCall2Coll(&target->walk.order[i],
										   target->key_template[i].sk_collation, a, b));
}

/* Count ascending keys; true: begin. */
static bool
is_time_to_begin(KdbApplyTarget *target, const ScanKeyData *key)
{
	KdbWalk    *walk = &target->walk;
	int			order = 0;

	if (walk->pause > 0)
	{
		walk->pause--;
		walk->ascending = 0;
		return false;
	}
	for (int i = 0; i < target->nkeys && order == 0 && walk->ascending > 0; i++)
		order = compare(target, i, walk->last[i], key[i].sk_argument);
	for (int i = 0; i < target->nkeys; i++)
		walk->last[i] = key[i].sk_argument;
	walk->ascending = order < 0 ? walk->ascending + 1 : 1;
	return walk->ascending > KDB_WALK_ASCENDING;
}

/* From this key on; or, for one of several columns, from its first column's value on. */
static void
begin_walk(KdbApplyTarget *target, Relation index, const ScanKeyData *key)
{
	KdbWalk    *walk = &target->walk;
	ScanKeyData from;
	MemoryContext old;

	if (walk->context == NULL)
		walk->context = AllocSetContextCreate(target->context, "KrahoDB key walk",
											  ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(walk->context);
	ScanKeyEntryInitializeWithInfo(&from, 0, 1, BTGreaterEqualStrategyNumber, InvalidOid,
								   index->rd_indcollation[0], &walk->greater_equal,
								   key[0].sk_argument);
	InitDirtySnapshot(walk->dirty);
	walk->scan = index_beginscan(target->rel, index, &walk->dirty, 1, 0);
	walk->scan->xs_want_itup = true;
	index_rescan(walk->scan, &from, 1, NULL, 0);
	walk->at_entry = false;
	walk->misses = 0;
	walk->rows = 0;
	walk->next_ones = 0;
	MemoryContextSwitchTo(old);
}

/* See relation_private.h. */
void
KdbWalkEnd(KdbApplyTarget *target)
{
	KdbWalk    *walk = &target->walk;

	if (walk->scan == NULL)
		return;
	index_endscan(walk->scan);
	walk->scan = NULL;
	walk->ascending = 0;
	MemoryContextReset(walk->context);
}

/* It was of no use: the next one waits, for longer if it was of very little use. */
static void
give_up(KdbApplyTarget *target)
{
	KdbWalk    *walk = &target->walk;

	if (walk->rows > KDB_WALK_STEPS)
		walk->last_pause = 0;
	else
		walk->last_pause = Min(Max(walk->last_pause * 2, KDB_WALK_STEPS), KDB_WALK_MAX_PAUSE);
	walk->pause = walk->last_pause;
	KdbWalkEnd(target);
}

/* How the entry that the scan stands at compares with the key. */
static int
compare_entry(KdbApplyTarget *target, IndexScanDesc scan, const ScanKeyData *key)
{
	int			order = 0;

	for (int i = 0; i < target->nkeys && order == 0; i++)
	{
		bool		isnull;
		Datum		value = index_getattr(scan->xs_itup, i + 1,
										  RelationGetDescr(scan->indexRelation), &isnull);

		order = isnull ? 1 : compare(target, i, value, key[i].sk_argument);
	}
	return order;
}

/* Is the row of this entry there, and nobody at it?  In target->local then. */
static bool
row_is_settled(KdbApplyTarget *target)
{
	KdbWalk    *walk = &target->walk;

	if (!index_fetch_heap(walk->scan, target->local))
		return false;
	if (TransactionIdIsValid(walk->dirty.xmin) || TransactionIdIsValid(walk->dirty.xmax))
	{
		ExecClearTuple(target->local);
		return false;
	}
	return true;
}

typedef enum WalkResult
{
	WALK_FOUND,
	WALK_MISSED,
	WALK_AT_END					/* or so far that a descent is cheaper */
} WalkResult;

static WalkResult
walk_to(KdbApplyTarget *target, const ScanKeyData *key)
{
	KdbWalk    *walk = &target->walk;

	for (int steps = 0; steps < KDB_WALK_STEPS; steps++)
	{
		int			order;

		if (!walk->at_entry &&
			index_getnext_tid(walk->scan, ForwardScanDirection) == NULL)
			return WALK_AT_END;
		walk->at_entry = true;
		order = compare_entry(target, walk->scan, key);
		if (order > 0)
			return WALK_MISSED;
		walk->at_entry = false;
		if (order == 0 && row_is_settled(target))
		{
			walk->next_ones++;
			return WALK_FOUND;
		}
		walk->next_ones = -1;
	}
	return WALK_AT_END;
}

/* What the index keeps for the scan must live as long as the scan. */
static WalkResult
walk_in_context(KdbApplyTarget *target, const ScanKeyData *key)
{
	MemoryContext old = MemoryContextSwitchTo(target->walk.context);
	WalkResult	result = walk_to(target, key);

	MemoryContextSwitchTo(old);
	return result;
}

/* See relation_private.h. */
bool
KdbWalkFind(KdbApplyTarget *target, Relation index, const ScanKeyData *key)
{
	KdbWalk    *walk = &target->walk;

	if (!walk->prepared)
		prepare(target, index);
	if (!walk->possible)
		return false;
	if (walk->scan == NULL)
	{
		if (!is_time_to_begin(target, key))
			return false;
		begin_walk(target, index, key);
	}
	switch (walk_in_context(target, key))
	{
		case WALK_FOUND:
			walk->misses = 0;
			walk->rows++;
			walk->among_live = walk->next_ones > KDB_WALK_LIVE;
			return true;
		case WALK_MISSED:
			if (++walk->misses >= KDB_WALK_MISSES)
				give_up(target);
			return false;
		case WALK_AT_END:
			give_up(target);
			return false;
	}
	return false;
}
