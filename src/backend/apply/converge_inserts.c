/*
 * converge_inserts.c
 *		A run of inserts by the convergence rules, written together.
 *
 * Most rows that are inserted have keys and unique values that were never here, in
 * no tuple and no version record.  Then the rules say one thing only: insert it, and
 * there is no conflict.  So the values of a run (batch.c) are looked for first, as far as
 * possible all at once (gaps.c).  If all are new, the rows are written as those of a plain
 * subscription are; if any is not, each row goes its own way through the rules.
 *
 * OTHERS AT THE SAME TIME.  As for a single row (TWO WORKERS in converge_actions.c):
 * what may have been buried or claimed since the look is looked for afterwards, and
 * a row that is overtaken is taken back and merged.  Only a key that somebody takes in
 * between cannot be noticed without an error.  It is one that passes: the transaction
 * is applied again (retry.c), row by row then, until it is done.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "converge_private.h"

static bool
all_new(KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	if (KdbVersionRecordsAny(target->relid, &target->records))
		return false;

	/* What generated columns are is part of what is unique. */
	for (int i = 0; i < n && target->has_unique && target->has_generated; i++)
	{
		KdbComputeGenerated(target, slots[i]);
		ResetPerTupleExprContext(target->estate);
	}
	return KdbRunIsNew(target, slots, n);
}

static void
key_was_taken(KdbApplyTarget *target, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("a key of table \"%s\" was taken while rows were inserted",
					RelationGetRelationName(target->rel)),
			 detail ? errdetail_internal("%s", detail) : 0));
}

/*
 * Write them; a key that is taken now was not when it was looked for.  Or two rows of
 * the run have the same value for a while, in a deferrable key.
 */
static void
write_rows(KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool taken = false;

	PG_TRY();
	{
		taken = KdbWriteInserts(target, slots, n);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION &&
			error->sqlerrcode != ERRCODE_EXCLUSION_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
		key_was_taken(target, error->detail ? error->detail : error->message);
	}
	PG_END_TRY();
	if (taken)
		key_was_taken(target, NULL);
}

static void
insert_each(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row,
			TupleTableSlot **slots, int n)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB apply run",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		row->slot = slots[i];
		KdbConvergeInsert(rel, target, row);
		ExecClearTuple(target->local);
		KdbApplyEndStep();
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
take_back_overtaken(KdbConverge *c, KdbRemoteRow *row, TupleTableSlot **slots, int n)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	KdbMergePut put = {KDB_PART_WRITTEN, KDB_PART_NONE, KDB_MERGED_WRITTEN, c->context->version, false};

	c->row = row;
	for (int i = 0; i < n; i++)
	{
		row->slot = slots[i];
		c->sides[KDB_KEY_NEW].key = c->sides[KDB_KEY_OLD].key = slots[i];
		if (!KdbIsOvertaken(c, &put))
			continue;
		KdbTakeBack(c, target, &slots[i]->tts_tid);
		insert_each(c->rel, target, row, &slots[i], 1);
	}
}

/* See relation_private.h. */
void
KdbConvergeInserts(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	KdbConverge c = {.rel = rel, .operation = KDB_INSERT};
	bool	   *sent = palloc(sizeof(bool) * rel->nlocal);
	KdbRemoteRow row = {NULL, sent};

	/* Rows of a run are whole. */
	for (int i = 0; i < rel->nlocal; i++)
		sent[i] = rel->inputs[i].remote >= 0;
	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	KdbConvergeStart(&c);
	if (!all_new(target, slots, n))
	{
		insert_each(rel, target, &row, slots, n);
		return;
	}
	write_rows(target, slots, n);
	if (!KdbIsUndisturbed(&c, c.context->version))
		take_back_overtaken(&c, &row, slots, n);
}
