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
 * a row that is overtaken is taken back and merged.  A key that somebody takes in
 * between fails the transaction, which is applied again (run_inserts.c).
 */
#include "postgres.h"

#include "converge_private.h"

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
		KdbInsertEach(c->rel, target, &slots[i], 1);
	}
}

/* See relation_private.h. */
void
KdbConvergeInserts(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot **slots, int n)
{
	KdbConverge c = {.rel = rel, .operation = KDB_INSERT};
	KdbRemoteRow row = {NULL, KdbSentInRun(rel, target)};

	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	KdbConvergeStart(&c);
	if (KdbVersionRecordsAny(target->relid, &target->records) || !KdbRunIsNew(target, slots, n))
	{
		KdbInsertEach(rel, target, slots, n);
		return;
	}
	KdbWriteNewRows(target, slots, n);
	if (!KdbIsUndisturbed(&c, c.context->version))
		take_back_overtaken(&c, &row, slots, n);
}
