/*
 * converge_row.c
 *		The rows that the convergence rules order to be written.
 *
 * A row consists of what was sent, and for the rest of one of:
 *
 *	the live row of the key		an UPDATE of a row that is provably the one which its
 *								writer overwrote
 *	the row of the old key		the same where the key has changed; that row is deleted
 *								by then, so a copy was kept
 *	the row at the publisher	fetch.c; then also as a whole, if it is a later one
 *
 * The rules say which (KdbMergePut), and nothing is taken from elsewhere.  Columns that
 * the publisher does not have are this node's own business: they stay as they are.
 *
 * Unique columns are always sent, so KdbNewRow, which the rules need for unique values,
 * may take what is missing from the live row before that is decided.
 */
#include "postgres.h"

#include "converge_private.h"

/* See converge_private.h. */
KdbRemoteRow *
KdbRowOfPart(KdbConverge *c, KdbRowPart part)
{
	Assert(part != KDB_PART_FETCHED || c->fetched.slot);
	return part == KDB_PART_FETCHED ? &c->fetched : c->row;
}

/* See converge_private.h. */
bool
KdbRowIsIncomplete(KdbConverge *c)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;

	for (int i = 0; c->row && i < target->tupdesc->natts; i++)
	{
		if (target->compared[i] && !c->row->sent[i])
			return true;
	}
	return false;
}

/* See converge_private.h. */
TupleTableSlot *
KdbNewRow(KdbConverge *c, KdbRowPart part)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRemoteRow *source = KdbRowOfPart(c, part);
	TupleTableSlot *row = side->target->merged;

	if (!side->live || !KdbSideIsLocal(side))
		row = source->slot;
	else
		KdbMergeRow(row, side->target->local, source);
	KdbComputeGenerated(side->target, row);
	return row;
}

/* Partitions may have their columns in another order. */
static AttrNumber
column_of(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped &&
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return i + 1;
	}
	return 0;
}

/* A column's value in the row that the old key had, if that has the column. */
static bool
take_from_old_row(KdbConverge *c, TupleTableSlot *slot, int column)
{
	AttrNumber	attnum = 0;

	if (c->old_row)
		attnum = column_of(c->old_row->tts_tupleDescriptor,
						   NameStr(TupleDescAttr(slot->tts_tupleDescriptor, column)->attname));
	if (attnum == 0)
		return false;
	slot->tts_values[column] = slot_getattr(c->old_row, attnum, &slot->tts_isnull[column]);
	return true;
}

static bool
take_unsent(KdbConverge *c, KdbRowPart unsent, int column)
{
	TupleTableSlot *slot = c->row->slot;

	if (unsent == KDB_PART_OLD_KEY)
		return take_from_old_row(c, slot, column);
	if (unsent != KDB_PART_FETCHED)
		return false;
	slot->tts_values[column] = c->fetched.slot->tts_values[column];
	slot->tts_isnull[column] = c->fetched.slot->tts_isnull[column];
	return true;
}

/* See converge_private.h. */
void
KdbCompleteRow(KdbConverge *c, KdbRowPart unsent)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;

	if (unsent == KDB_PART_NONE || unsent == KDB_PART_LOCAL)
		return;
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (!target->compared[i] || c->row->sent[i])
			continue;
		if (!take_unsent(c, unsent, i))
			elog(ERROR, "no value for column \"%s\", which was not sent",
				 NameStr(TupleDescAttr(target->tupdesc, i)->attname));
		c->row->sent[i] = true;
	}
}

/* See converge_private.h: as they were, or defaults. */
void
KdbCompleteLocalColumns(KdbConverge *c, KdbRemoteRow *row)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	TupleTableSlot *routed;
	TupleTableSlot *root;
	bool		old = false;

	if (c->local_completed)
		return;
	c->local_completed = true;
	for (int i = 0; i < side->target->tupdesc->natts; i++)
	{
		if (!side->target->compared[i] &&
			!TupleDescAttr(side->target->tupdesc, i)->attisdropped &&
			!TupleDescAttr(side->target->tupdesc, i)->attgenerated)
			old |= take_from_old_row(c, row->slot, i);
	}
	if (old || c->rel->ndefaults == 0)
		return;
	if (!c->rel->partitioned)
	{
		KdbFillDefaults(c->rel, row->slot);
		return;
	}
	root = KdbRouteBack(c->rel, side->target, row->slot);
	KdbFillDefaults(c->rel, root);
	(void) KdbRoute(c->rel, root, &routed);
	ExecCopySlot(row->slot, routed);
}
