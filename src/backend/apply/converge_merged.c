/*
 * converge_merged.c
 *		Merged columns on their way through the convergence rules.
 *
 * The rules (merge_columns.c) ask for the history of a key, say what is to be added
 * up, and order rows to be put whose merged columns are as written, combined with the
 * local ones, or what the sum has given.
 *
 * THE COMMON CASE, an update that is newer than a live row, is combined with the local
 * value and needs no history; nor is anything recorded if the heap will
 * show by itself what it has contributed, which it does unless its writer had not seen
 * that value and something else than adding has happened.
 *
 * TWO WORKERS.  A contribution to a live row goes with a new version of that row, so
 * the row's lock orders them.  One to a dead key is a record only: who writes it looks
 * for a live row of the key afterwards, and who inserts looks for new records
 * (KdbMergedOvertaken), as it is with deletions (converge_actions.c).
 */
#include "postgres.h"

#include "access/xact.h"

#include "utils/datum.h"

#include "krahodb/fault.h"

#include "merged_private.h"

/* ---- the change --------------------------------------------------------------- */

static void
check_prerequisites(KdbConverge *c)
{
	if (!KdbVersionRecordsPresent())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("columns of table \"%s.%s\" are merged, but versions cannot be recorded in this database",
						c->rel->nspname, c->rel->relname),
				 errhint("Use CREATE EXTENSION krahodb.")));
	if (c->operation == KDB_UPDATE && !c->old_is_full)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publisher did not send the old values of merged columns of table \"%s.%s\"",
						c->rel->nspname, c->rel->relname),
				 errdetail("What an update has contributed to a merged column is the difference between the new value and the old one."),
				 errhint("Use ALTER TABLE ... REPLICA IDENTITY FULL on the publisher and skip this transaction, or ALTER TABLE ... ALTER COLUMN ... RESET (krahodb.merge) here.")));
}

static KdbColumnContribution
value_in(TupleTableSlot *slot, const KdbMergedColumn *column)
{
	KdbColumnContribution value = {KDB_CONTRIBUTES_VALUE};

	value.value = slot_getattr(slot, column->attnum, &value.isnull);
	if (!value.isnull)
		value.value = datumCopy(value.value, column->typbyval, column->typlen);
	return value;
}

/* What is contributed to column number i. */
static void
fill_column(KdbConverge *c, int i)
{
	KdbMergedChange *change = c->merged;
	const KdbMergedColumn *column = change->columns[i];
	KdbColumnContribution new = value_in(c->row->slot, column);

	change->written[i] = new.value;
	change->written_null[i] = new.isnull;
	change->own[i] = new;
	if (c->operation == KDB_INSERT || c->key_changed)
		return;
	change->before[i] = value_in(KdbSideOf(c, KDB_KEY_OLD)->key, column);
	KdbMergedContribution(column, change->before[i].value, change->before[i].isnull,
						  new.value, new.isnull, &change->own[i]);
}

/* See converge_private.h. */
void
KdbMergedBegin(KdbConverge *c)
{
	KdbApplyTarget *target = KdbSideOf(c, KDB_KEY_NEW)->target;
	KdbMergedChange *change = palloc0(sizeof(KdbMergedChange));
	int			n = target->nmerged;

	change->columns = palloc_array(const KdbMergedColumn *, n);
	for (int i = 0; i < n; i++)
	{
		if (target->compared[target->merged_columns[i].attnum - 1])
			change->columns[change->n++] = &target->merged_columns[i];
	}
	if (change->n == 0)
		return;
	check_prerequisites(c);
	change->before = palloc0_array(KdbColumnContribution, n);
	change->own = palloc0_array(KdbColumnContribution, n);
	change->folded = palloc0_array(KdbColumnContribution, n);
	change->written = palloc0_array(Datum, n);
	change->written_null = palloc0_array(bool, n);
	c->merged = change;
	for (int i = 0; i < change->n; i++)
		fill_column(c, i);
}

/* See converge_private.h. */
int
KdbMergedCount(const KdbConverge *c)
{
	return c->merged ? c->merged->n : 0;
}

/* See converge_private.h. */
void
KdbMergedForget(KdbConverge *c)
{
	if (c->merged)
		c->merged->history_known = false;
}

/* ---- what the rules ask for ----------------------------------------------------- */

static const KdbContributed *
history_of(KdbConverge *c, int i)
{
	if (!c->merged->history_known)
		KdbMergedReadHistory(c);
	return i < c->merged->nhistory ? &c->merged->history[i] : NULL;
}

/* See merge.h. */
bool
KdbMergedHistory(void *arg, int column, int i, KdbContribution *contribution)
{
	const KdbContributed *contributed = history_of(arg, i);

	if (contributed == NULL)
		return false;
	contribution->version = contributed->version;
	contribution->kind = contributed->columns[column].kind;
	return true;
}

/* See merge.h. */
KdbContributionKind
KdbMergedOwn(void *arg, int column)
{
	return ((KdbConverge *) arg)->merged->own[column].kind;
}

static const KdbColumnContribution *
contributed_by(KdbConverge *c, int column, int i)
{
	return i < 0 ? &c->merged->own[column] : &history_of(c, i)->columns[column];
}

/* See merge.h. */
void
KdbMergedFoldStart(void *arg, int column, int i)
{
	KdbConverge *c = arg;
	KdbColumnContribution *folded = &c->merged->folded[column];

	*folded = *contributed_by(c, column, i);
	Assert(folded->kind == KDB_CONTRIBUTES_VALUE);
	KdbMergedWiden(c->merged->columns[column], folded);
}

/* See merge.h. */
void
KdbMergedFoldChange(void *arg, int column, int i)
{
	KdbConverge *c = arg;

	KdbMergedCombine(c->merged->columns[column], &c->merged->folded[column],
					 contributed_by(c, column, i));
}

/* ---- recording ------------------------------------------------------------------- */

static void
record(KdbConverge *c, KdbVersion version, const KdbColumnContribution *columns, bool has_row)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	KdbKeyOfRow(side->target, side->key, &key);
	KdbAddRecord(c, side->target, &key, KDB_RECORD_MERGED, version,
				 KdbMergedEncode(c->merged, columns, has_row));
}

/*
 * From now on this transaction's contributions to the key are recorded; so are those
 * that the heap has shown so far.  If the row may be taken back, nothing else need
 * follow, and an empty record says that it does not count.
 */
static void
begin_recording(KdbConverge *c, bool taken_back)
{
	KdbMergedChange *change = c->merged;
	bool		any = false;

	if (KdbMergedRecording(c))
		return;
	(void) history_of(c, 0);
	for (int i = 0; i < change->nhistory; i++)
	{
		if (!change->history[i].own)
			continue;
		record(c, change->history[i].version, change->history[i].columns, true);
		any = true;
	}
	if (!any && taken_back)
		record(c, c->context->version, palloc0_array(KdbColumnContribution, change->n), true);
	change->recording = true;
}

/*
 * The row is gone, or a new one has begun with what others have contributed: this
 * transaction records all of that, see merged_history.c.
 */
static void
seal(KdbConverge *c, bool has_row)
{
	KdbMergedChange *change = c->merged;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	if (!change->others_count)
		return;
	KdbKeyOfRow(side->target, side->key, &key);
	KdbAddRecord(c, side->target, &key, KDB_RECORD_SEALED, c->context->version,
				 KdbMergedEncodeSeal(change, has_row));
}

/* See merge.h. */
void
KdbMergedContribute(void *arg, bool with_base)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);

	begin_recording(c, false);
	if (!c->merged->put)
	{
		KDB_FAULT_POINT("converge_contribute");
		if (!c->merged->key_locked)
			KdbMergedForget(c);
		(void) history_of(c, 0);
		if (c->merged->unsealed)
			seal(c, false);
	}
	if (with_base)
		record(c, (KdbVersion) {0, 0}, c->merged->before, c->merged->put);
	record(c, c->context->version, c->merged->own, c->merged->put);
	if (c->merged->put)
		return;
	KdbMergeEvent();
	KDB_FAULT_POINT("converge_contributed");

	/* What this change has deleted is not to be seen. */
	CommandCounterIncrement();
	if (KdbFindRow(side->target, side->key))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not merge a change into table \"%s.%s\" because its row was inserted at the same time",
						c->rel->nspname, c->rel->relname),
				 errhint("The transaction is applied again.")));
}

/* ---- rows ------------------------------------------------------------------------- */

/* The value of a merged column as it is put. */
static void
merged_value(KdbConverge *c, KdbMergedPart part, int i, TupleTableSlot *local,
			 Datum *value, bool *isnull)
{
	KdbMergedChange *change = c->merged;
	const KdbMergedColumn *column = change->columns[i];
	KdbColumnContribution result = {KDB_CONTRIBUTES_VALUE};

	switch (part)
	{
		case KDB_MERGED_WRITTEN:
			*value = change->written[i];
			*isnull = change->written_null[i];
			return;
		case KDB_MERGED_FOLDED:
			result = change->folded[i];
			break;
		case KDB_MERGED_COMBINE:
			if (change->own[i].kind == KDB_CONTRIBUTES_VALUE)
			{
				*value = change->written[i];
				*isnull = change->written_null[i];
				return;
			}
			result.value = slot_getattr(local, column->attnum, &result.isnull);
			if (change->own[i].kind == KDB_CONTRIBUTES_CHANGE)
			{
				KdbMergedWiden(column, &result);
				KdbMergedCombine(column, &result, &change->own[i]);
				break;
			}
			*value = result.value;
			*isnull = result.isnull;
			return;
	}
	*value = result.value;
	*isnull = result.isnull;
	KdbMergedNarrow(column, KdbSideOf(c, KDB_KEY_NEW)->target->rel, value, isnull);
}

/* Will the heap show for column i what the write has contributed? */
static bool
is_shown(KdbConverge *c, int i, TupleTableSlot *local, Datum value, bool isnull)
{
	const KdbMergedColumn *column = c->merged->columns[i];
	KdbColumnContribution shown;
	bool		local_null;
	Datum		local_value = slot_getattr(local, column->attnum, &local_null);

	KdbMergedContribution(column, local_value, local_null, value, isnull, &shown);
	return shown.kind == c->merged->own[i].kind;
}

/* See converge_private.h. */
void
KdbMergedBeforePut(KdbConverge *c, const KdbMergePut *put, TupleTableSlot *row,
				   TupleTableSlot *local)
{
	KdbMergedChange *change = c->merged;
	bool		insert = c->operation == KDB_INSERT || c->key_changed;
	bool		counts = put->chosen == KDB_PART_WRITTEN &&
		(put->merged == KDB_MERGED_COMBINE || (put->merged == KDB_MERGED_WRITTEN && insert));
	bool		shown = counts && (local == NULL || put->merged == KDB_MERGED_COMBINE);

	if (c->revived && put->chosen == KDB_PART_FETCHED)
		KdbMergedRevivedRow(c, row);
	if (change == NULL)
		return;
	for (int i = 0; i < change->n; i++)
	{
		int			att = change->columns[i]->attnum - 1;

		/* What triggers have made of an inserted row stays. */
		if (c->triggers_fired && put->merged == KDB_MERGED_WRITTEN)
			continue;
		merged_value(c, put->merged, i, local, &row->tts_values[att], &row->tts_isnull[att]);
		if (put->merged == KDB_MERGED_COMBINE)
			shown &= is_shown(c, i, local, row->tts_values[att], row->tts_isnull[att]);
	}
	if (!shown)
		begin_recording(c, local == NULL);
	change->begins_anew = local == NULL && put->merged == KDB_MERGED_FOLDED;
	change->record_after = counts && KdbMergedRecording(c);
}

/* See converge_private.h. */
void
KdbMergedAfterPut(KdbConverge *c)
{
	KdbMergedChange *change = c->merged;

	if (change == NULL)
		return;
	change->put = true;
	if (change->begins_anew)
		seal(c, true);
	if (change->record_after)
		record(c, c->context->version, change->own, true);
}

/* See converge_private.h. */
bool
KdbMergedOvertaken(KdbConverge *c)
{
	if (c->revived)
		return KdbMergedRevivalOvertaken(c);
	return c->merged && c->merged->history_known &&
		KdbMergedForeignRecords(c) != c->merged->foreign_records;
}
