/*
 * run_inserts.c
 *		A run of inserts where conflicts are resolved, written together.
 *
 * Whose keys and unique values were never here, in no tuple, no resolver has anything to
 * say about.  So a run (batch.c) is looked for first, as far as possible all at once
 * (gaps.c).  If all of it is new it is written as that of a plain subscription is; if any
 * row is not, each goes its own way.  Where the last update wins there is more to a
 * row than its tuple: converge_inserts.c.
 *
 * OTHERS AT THE SAME TIME.  A key that somebody takes between the look and the write, or two
 * rows of the run with one value, cannot be noticed without an error.  It is one that
 * passes: the transaction is applied again (retry.c), row by row then, until it is done.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "relation_private.h"

static void
key_was_taken(KdbApplyTarget *target, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("a key of table \"%s\" was taken while rows were inserted",
					RelationGetRelationName(target->rel)),
			 detail ? errdetail_internal("%s", detail) : 0));
}

/* See relation_private.h.  A deferrable key may be taken for a while, too. */
void
KdbWriteNewRows(KdbApplyTarget *target, TupleTableSlot **slots, int n)
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

/* See relation_private.h. */
bool *
KdbSentInRun(KdbApplyRelation *rel, KdbApplyTarget *target)
{
	AttrMap    *map = rel->partitioned ? KdbRouteMap(rel, target) : NULL;
	bool	   *sent = palloc_array(bool, target->tupdesc->natts + 1);

	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		int			attnum = map ? map->attnums[i] : i + 1;

		sent[i] = attnum > 0 && rel->inputs[attnum - 1].remote >= 0;
	}
	return sent;
}

/* See relation_private.h. */
void
KdbInsertEach(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB apply run",
												  ALLOCSET_DEFAULT_SIZES);
	KdbRemoteRow row = {NULL, KdbSentInRun(rel, target)};
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		row.slot = slots[i];
		if (target->converging)
			KdbConvergeInsert(rel, target, &row);
		else
			KdbRowInsert(rel, target, slots[i], &row);
		ExecClearTuple(target->local);
		KdbApplyEndStep();
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* See relation_private.h. */
void
KdbResolveInserts(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	if (KdbRunIsNew(target, slots, n))
		KdbWriteNewRows(target, slots, n);
	else
		KdbInsertEach(rel, target, slots, n);
}
