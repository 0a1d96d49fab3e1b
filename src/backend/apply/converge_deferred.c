/*
 * converge_deferred.c
 *		Deferrable keys: who has kept a value that somebody else took.
 *
 * A transaction may exchange values of a deferrable key: k1 takes what k2 has, then k2 takes
 * another one.  When the first of these is applied, k2 has the value, by an older write that the
 * writer had seen.  The rules would remove it, and bring it back with the second: two
 * conflicts to be reported where there is none, and a row that may have to be fetched.  So it is
 * left alone, as the engine would at the writer.  (Not a row that the writer had not seen: for that the
 * value is taken even if it is given back at once, since it is at the writer, too.)
 *
 * Mostly the same transaction writes it again.  But it need not: at the writer another node's change may
 * have taken the value from k2 before, and that is still on its way here.  Until it comes there would be two
 * rows with one value; and somebody here who changes one of them then would make that last.  So the new rows
 * that were written beside such a holder are noted, and claim their values once more at the
 * end of the transaction, as they are then: what still holds one and is older goes, as it would have with
 * any other key.  And if somebody has changed the holder meanwhile, which keeps its value, that is newer, and
 * the row that was written beside it goes.
 *
 * A write that loses on its own key claims the values of its row likewise, but there is no such row in the end,
 * and the holder lives on.  It is going to be written, by whoever has taken its value away.  Until then it has
 * a value that was claimed, so who writes over it looks for claims (KdbMergeWrite.deferrable).
 *
 * What is noted lasts for the transaction: the keys of these rows, as the engine notes them for its own check.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "converge_private.h"

/* A row that was written while an older one had a value of it. */
typedef struct Claimant
{
	uint32		remoteid;		/* the publisher's relation */
	Oid			relid;			/* the table, or the partition */
	Datum	   *key;			/* values of its identity */
} Claimant;

static MemoryContext claimants_context = NULL;
static List *claimants = NIL;

/* See converge_private.h. */
void
KdbForgetKeptHolders(void)
{
	claimants = NIL;
	if (claimants_context)
		MemoryContextReset(claimants_context);
}

/* See converge_private.h. */
void
KdbNoteKeptHolder(KdbConverge *c)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	MemoryContext old;
	Claimant   *claimant;

	if (c->kept_holder)
		return;
	c->kept_holder = true;
	if (claimants_context == NULL)
		claimants_context = AllocSetContextCreate(ApplyContext, "KrahoDB apply deferred keys",
												  ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(claimants_context);
	claimant = palloc(sizeof(Claimant));
	claimant->remoteid = c->rel->remoteid;
	claimant->relid = target->relid;
	claimant->key = palloc_array(Datum, target->nkeys);
	for (int i = 0; i < target->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(target->tupdesc, target->key_attnum[i] - 1);
		bool		isnull;

		claimant->key[i] = datumCopy(slot_getattr(side->key, target->key_attnum[i], &isnull),
									 att->attbyval, att->attlen);
	}
	claimants = lappend(claimants, claimant);
	MemoryContextSwitchTo(old);
}

/* Its key, in the target's format. */
static TupleTableSlot *
key_of(const Claimant *claimant, KdbApplyTarget *target)
{
	TupleTableSlot *slot = ExecClearTuple(target->search);

	memset(slot->tts_isnull, true, target->tupdesc->natts * sizeof(bool));
	for (int i = 0; i < target->nkeys; i++)
	{
		slot->tts_values[target->key_attnum[i] - 1] = claimant->key[i];
		slot->tts_isnull[target->key_attnum[i] - 1] = false;
	}
	return ExecStoreVirtualTuple(slot);
}

/* The row that is here, as if all of it had been sent. */
static KdbRemoteRow *
row_here(KdbApplyTarget *target)
{
	KdbRemoteRow *row = palloc(sizeof(KdbRemoteRow));

	row->slot = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
	ExecCopySlot(row->slot, target->local);
	row->sent = palloc(target->tupdesc->natts * sizeof(bool));
	memset(row->sent, true, target->tupdesc->natts * sizeof(bool));
	return row;
}

static void
claim_again(const Claimant *claimant)
{
	KdbApplyRelation *rel = KdbApplyRelationOpen(claimant->remoteid, RowExclusiveLock);
	KdbApplyTarget *target = KdbTargetOpen(claimant->relid, RowExclusiveLock, rel);
	KdbConverge c = {.rel = rel, .operation = KDB_UPDATE};
	KdbUserContext user;

	KdbSwitchToTableOwner(rel->rel, &user);
	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	c.sides[KDB_KEY_NEW].key = c.sides[KDB_KEY_OLD].key = key_of(claimant, target);
	if (KdbFindRow(target, c.sides[KDB_KEY_NEW].key))
	{
		c.row = row_here(target);
		KdbConvergeClaimAtEnd(&c);
	}
	ExecClearTuple(target->local);
	KdbRestoreUser(&user);
}

/* See apply_private.h. */
void
KdbConvergeBeforeEnd(void)
{
	MemoryContext old = CurrentMemoryContext;
	MemoryContext context;
	ListCell   *lc;

	KdbBatchFlush();
	if (claimants == NIL)
		return;
	(void) KdbLaneSettle();		/* who comes before may take its value away */
	KdbApplyBeginStep();
	context = AllocSetContextCreate(KdbApplyMessageContext, "KrahoDB apply claimant",
									ALLOCSET_DEFAULT_SIZES);
	foreach(lc, claimants)
	{
		MemoryContextSwitchTo(context);
		claim_again(lfirst(lc));
		KdbApplyEndStep();
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	KdbForgetKeptHolders();
}
