/*
 * entries.c
 *		Index entries of an updated row.
 *
 * An update that is not HOT gives the new version of the row an entry in each index.  The
 * engine's ExecInsertIndexTuples takes the columns that a statement has set for those that
 * change; a replicated row comes as a whole, so all of them would.  Here the old row is
 * compared with the new one, for two things:
 *
 * NO SEARCH FOR WHOM NOBODY CAN BE.  An entry of a unique index is preceded by a look at
 * all entries of that value and their rows.  Where the value is that of the old row, which
 * this transaction has just superseded, no other row can have it: whoever wants to insert it
 * finds the old row's entry, and waits for us.  The look would find dead versions only, as
 * many as there are, and that is a lot where the retention horizon keeps them.  Only for
 * indexes that are valid, immediate, and on columns: of a half-built one, a deferrable one
 * or one on a function that is not as immutable as it says, nothing like that is known.
 *
 * ENTRIES OF VERSIONS GO FIRST.  The index is told that the entry is of another version of a
 * row that is there already, and tries to remove entries of dead versions before it
 * splits a page, as on the publisher.  It is not told so of the identity index where the row was found
 * among others that have no dead versions (walk.c): a large transaction that changes each row once would
 * have all of the index searched for nothing, and the rows' pages with it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "executor/executor.h"
#include "utils/datum.h"

#include "relation_private.h"

/* Has a column of the index another value than in target->local?  System columns may. */
static bool
is_unchanged(KdbApplyTarget *target, int i, TupleTableSlot *slot)
{
	int			member = -1;

	while ((member = bms_next_member(target->index_columns[i], member)) >= 0)
	{
		AttrNumber	attnum = member + FirstLowInvalidHeapAttributeNumber;
		Form_pg_attribute att;
		Datum		old;
		bool		isnull;

		if (attnum <= 0)
			return false;
		att = TupleDescAttr(target->tupdesc, attnum - 1);
		old = slot_getattr(target->local, attnum, &isnull);
		if (isnull != slot->tts_isnull[attnum - 1] ||
			(!isnull && !datum_image_eq(old, slot->tts_values[attnum - 1],
										att->attbyval, att->attlen)))
			return false;
	}
	return true;
}

/* Does the index have the row at all? */
static bool
is_in_index(KdbApplyTarget *target, IndexInfo *info)
{
	if (info->ii_Predicate == NIL)
		return true;
	if (info->ii_PredicateState == NULL)
		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, target->estate);
	return ExecQual(info->ii_PredicateState, GetPerTupleExprContext(target->estate));
}

static IndexUniqueCheck
check_of(Relation index, const IndexInfo *info, bool unchanged)
{
	bool		surely_unique = unchanged && index->rd_index->indisvalid &&
		info->ii_Expressions == NIL && info->ii_Predicate == NIL;

	return info->ii_Unique && !surely_unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO;
}

/* Is it worth to look for dead versions? */
static bool
may_have_dead(KdbApplyTarget *target, int i)
{
	return target->index_oids[i] != target->identity_index || !target->walk.among_live;
}

static void
insert_entry(KdbApplyTarget *target, int i, TupleTableSlot *slot)
{
	Relation	index = target->relinfo->ri_IndexRelationDescs[i];
	IndexInfo  *info = target->relinfo->ri_IndexRelationInfo[i];
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	bool		unchanged;

	if (!info->ii_ReadyForInserts || !is_in_index(target, info))
		return;
	unchanged = is_unchanged(target, i, slot);
	FormIndexDatum(info, slot, target->estate, values, isnull);
	index_insert(index, values, isnull, &slot->tts_tid, target->rel,
				 check_of(index, info, unchanged),
				 unchanged && may_have_dead(target, i), info);
}

/* See relation_private.h. */
List *
KdbInsertUpdatedEntries(KdbApplyTarget *target, TupleTableSlot *slot)
{
	/* Keys that are looked at later, or by operators, are the engine's. */
	if (target->has_deferrable || target->has_exclusion)
		return ExecInsertIndexTuples(target->relinfo, slot, target->estate, true, false,
									 NULL, NIL);

	GetPerTupleExprContext(target->estate)->ecxt_scantuple = slot;
	for (int i = 0; i < target->nindexes; i++)
		insert_entry(target, i, slot);
	return NIL;
}
