/*
 * merged_rewritten.c
 *		What merged columns consist of, over an ALTER TABLE that writes the table anew.
 *
 * Such a command puts one tuple in the place of each chain of row versions, and nothing in that of a dead
 * row.  It is as if the node copied the table from itself: the histories of keys that something newer than
 * the retention horizon was done to are read while the old rows are still there, and become a
 * SEALED record of each key.  The row that was written anew has KdbRewriteShown as its version, and the record names that
 * as shown: its contributions count instead of that version (merged_history.c).
 *
 * The record names all whose records it contains, which are still there; rows are not.  What the
 * command's own transaction has done before is of a version that its readers will know (KdbVersionOfRecord).
 *
 *	here                          history
 *	----------------------------  ------------------------------------------
 *	INSERT n = 1 at 1             1@1
 *	n = n + 5 at 10               1@1, +5@10
 *	ALTER TABLE ... at 12         the row is 6; SEALED: 1@1, +5@10
 *	INSERT n = 2 of 4 arrives     1@1, 2@4, +5@10; the row is 7, as elsewhere
 *
 * OTHER TYPES.  Contributions to a column that gets another type become such of the new one:
 *
 * -	of a delta, changes are of a type without bounds anyway; assigned values get that, too.  They are not rounded, only
 *		their sum is.  So a number stays one, and an interval one; what the command does to the values must be
 *		nothing but a cast.  (Money is counted in other units than numbers, and has no cast for changes.)
 * -	of a maximum or minimum, all are values of the column, and are converted as those of the rows.
 *
 * Where that cannot be done, and of a column that becomes merged by the same command, the histories of the table are
 * forgotten: its rows are as old as can be, and so is what they consist of.  Of a single key that is so if a value of its history has
 * no counterpart.  The record says so, as older ones must not count any more.
 *
 * A worker that applies changes does not come here: ALTER TABLE in a trigger, of a table that the same
 * transaction may have written to, forgets.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "replication/logicalworker.h"
#include "replication/origin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "krahodb/conflict.h"

#include "merged_private.h"

/* What becomes of the contributions to a column. */
typedef enum Conversion
{
	STAYS,
	WIDENED,					/* values, as they are added up */
	CONVERTED
} Conversion;

typedef struct Rewriting
{
	MemoryContext context;
	KdbApplyTarget before;
	KdbApplyTarget now;			/* its merged columns only */
	KdbCarried *carried;
	KdbMergedChange old_change; /* columns that are merged before and after it, as before ... */
	KdbMergedChange new_change; /* ... and as they will be */
	Conversion *conversions;	/* of these */
	bool		forgets;
	TimestampTz since;
} Rewriting;

/* ---- reading ---- */

/* Does the row, if it is one that nothing newer than the horizon was done to, say all there is? */
static bool
is_known(const Rewriting *rewriting, const KdbMergedChange *change)
{
	for (int i = 0; i < change->nhistory; i++)
	{
		if (change->history[i].own || change->history[i].version.ts > rewriting->since)
			return false;
	}
	return change->live && change->nearlier == 0;
}

/*
 * What is not the transaction's own is over when the record is written, and the horizon has passed it
 * if it has passed that moment.
 */
static KdbVersion
needed_until(const KdbMergedChange *change, const KdbMergedKey *key)
{
	KdbVersion	greatest = {0, 0};
	ListCell   *lc;

	foreach(lc, key->versions)
	{
		const KdbRowVersion *version = lfirst(lc);

		if (version->own || TransactionIdIsCurrentTransactionId(version->ender))
			return KdbVersionOfRecord();
	}
	for (int i = 0; i < change->nhistory; i++)
	{
		if (KdbVersionCompare(change->history[i].version, greatest) > 0)
			greatest = change->history[i].version;
	}
	return KdbIsVersionOfRecord(greatest) ? KdbVersionOfRecord() : greatest;
}

static void
keep_history(void *arg, KdbMergedKey *key)
{
	Rewriting  *rewriting = arg;
	KdbApplyTarget *target = &rewriting->before;
	KdbMergeContext context = {.version = KdbVersionOfRecord()};
	KdbMergedChange change = rewriting->old_change;
	KdbConverge c = {.operation = KDB_UPDATE, .merged = &change, .context = &context};
	KdbRecordedKey recorded;

	change.rows_read = true;
	change.rows = key->versions;
	change.key_locked = true;	/* so is the table */
	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	c.sides[KDB_KEY_NEW].key = c.sides[KDB_KEY_OLD].key = KdbMergedRowOfKey(target, key);
	KdbMergedReadHistory(&c);
	if (change.nhistory == 0 || is_known(rewriting, &change))
		return;
	for (int i = 0; i < change.nhistory; i++)
		change.history[i].own = false;
	KdbKeyOfRow(target, target->search, &recorded);
	KdbCarriedHistory(rewriting->carried, &recorded, needed_until(&change, key), KdbMergedEncodeSeal(&change, change.live));
}

static void
read_histories(void *state, KdbCarried *carried, Relation rel, TimestampTz since)
{
	Rewriting  *rewriting = state;
	KdbMergeContext context = {.version = KdbVersionOfRecord()};
	KdbConverge reader = {.operation = KDB_UPDATE, .merged = &rewriting->old_change, .context = &context};
	KdbMergedKeys keys = {&rewriting->before, since, true};
	MemoryContext old;

	rewriting->carried = carried;
	rewriting->since = since;
	rewriting->before.rel = rel;
	keys.context = AllocSetContextCreate(rewriting->context, "KrahoDB merged histories", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(keys.context);
	rewriting->before.context = keys.context;
	reader.sides[KDB_KEY_NEW].target = reader.sides[KDB_KEY_OLD].target = &rewriting->before;
	KdbMergedKeysFind(&keys);
	KdbMergedKeysReadRows(&keys, &reader);
	KdbMergedKeysEach(&keys, keep_history, rewriting);
	ExecClearTuple(rewriting->before.search);
	rewriting->before.rel = NULL;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(keys.context);
}

/* ---- converting ---- */

static bool
is_number(const KdbMergedColumn *column)
{
	switch (column->base_type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
			return true;
		default:
			return false;
	}
}

static bool
choose_conversion(const KdbCarried *carried, const KdbMergedColumn *old, const KdbMergedColumn *new,
				  Conversion *conversion)
{
	*conversion = STAYS;
	if (KdbCarriedIsSame(carried, new->attnum))
		return true;
	*conversion = new->kind == KDB_MERGE_DELTA ? WIDENED : CONVERTED;
	return new->kind != KDB_MERGE_DELTA ||
		(KdbCarriedIsCast(carried, new->attnum) &&
		 ((is_number(old) && is_number(new)) || old->base_type == new->base_type));
}

static const KdbMergedColumn *
find_column(const KdbApplyTarget *target, const KdbMergedColumn *like)
{
	for (int i = 0; i < target->nmerged; i++)
	{
		const KdbMergedColumn *column = &target->merged_columns[i];

		if (column->attnum == like->attnum && column->kind == like->kind)
			return column;
	}
	return NULL;
}

/* Pair the columns; true if conversions of values may raise errors. */
static bool
begin_converting(void *state, KdbCarried *carried, Relation rel)
{
	Rewriting  *rewriting = state;
	MemoryContext old = MemoryContextSwitchTo(rewriting->context);
	KdbApplyTarget *now = &rewriting->now;
	bool		careful = false;

	now->relid = RelationGetRelid(rel);
	now->tupdesc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	KdbTargetBuildMerged(now);
	rewriting->old_change.n = rewriting->new_change.n = now->nmerged;
	rewriting->old_change.columns = palloc_array(const KdbMergedColumn *, now->nmerged + 1);
	rewriting->new_change.columns = palloc_array(const KdbMergedColumn *, now->nmerged + 1);
	rewriting->conversions = palloc0_array(Conversion, now->nmerged + 1);
	rewriting->forgets = now->nmerged == 0;
	for (int i = 0; i < now->nmerged && !rewriting->forgets; i++)
	{
		const KdbMergedColumn *new = &now->merged_columns[i];
		const KdbMergedColumn *before = find_column(&rewriting->before, new);

		rewriting->new_change.columns[i] = new;
		rewriting->old_change.columns[i] = before;
		rewriting->forgets = before == NULL || !choose_conversion(carried, before, new, &rewriting->conversions[i]);
		careful |= rewriting->conversions[i] == CONVERTED;
	}
	MemoryContextSwitchTo(old);
	return careful && !rewriting->forgets;
}

static void
decode(const Rewriting *rewriting, bytea *image, KdbMergedSeal *seal)
{
	KdbVersionRecord record = {KDB_RECORD_SEALED, KdbVersionOfRecord(), .merged = image};

	KdbMergedDecodeSeal(&rewriting->old_change, &record, seal);
}

/* Whom it names, and nothing that counts. */
static bytea *
forget_history(void *state, bytea *image)
{
	KdbVersionRecord record = {KDB_RECORD_SEALED, .merged = image};
	KdbMergedChange change = {0};
	KdbMergedSeal seal;

	KdbMergedSealNames(&record, &seal);
	change.earlier = seal.versions;
	change.nearlier = seal.n;
	return seal.n > 0 ? KdbMergedEncodeSeal(&change, false) : NULL;
}

/* False if nobody can tell what becomes of it. */
static bool
convert_contribution(const Rewriting *rewriting, int i, KdbColumnContribution *contribution)
{
	const KdbMergedColumn *column = rewriting->old_change.columns[i];

	if (contribution->kind == KDB_CONTRIBUTES_NOTHING)
		return true;
	switch (rewriting->conversions[i])
	{
		case STAYS:
			break;
		case WIDENED:
			if (contribution->kind == KDB_CONTRIBUTES_VALUE)
				KdbMergedWiden(column, contribution);
			break;
		case CONVERTED:
			return KdbCarriedConvert(rewriting->carried, column->attnum, &contribution->value, &contribution->isnull);
	}
	return true;
}

static bytea *
convert_history(void *state, bytea *image)
{
	Rewriting  *rewriting = state;
	KdbMergedChange change = rewriting->new_change;
	KdbMergedSeal seal;
	ListCell   *lc;

	if (rewriting->forgets)
		return forget_history(state, image);
	decode(rewriting, image, &seal);
	change.earlier = seal.versions;
	change.nearlier = seal.n;
	change.history = palloc_array(KdbContributed, list_length(seal.contributed) + 1);
	foreach(lc, seal.contributed)
	{
		KdbContributed *contributed = lfirst(lc);

		for (int i = 0; i < change.n; i++)
		{
			if (!convert_contribution(rewriting, i, &contributed->columns[i]))
				return forget_history(state, image);
		}
		change.history[change.nhistory++] = *contributed;
	}
	return KdbMergedEncodeSeal(&change, change.nhistory > 0 && change.history[0].has_row);
}

/* ---- the table ---- */

static void
note_columns(Rewriting *rewriting, Bitmapset **columns)
{
	KdbApplyTarget *target = &rewriting->before;
	KdbMergedChange *change = &rewriting->old_change;

	change->n = target->nmerged;
	change->columns = palloc_array(const KdbMergedColumn *, target->nmerged);
	for (int i = 0; i < target->nmerged; i++)
	{
		change->columns[i] = &target->merged_columns[i];
		*columns = bms_add_member(*columns, target->merged_columns[i].attnum);
	}
}

/* See apply.h. */
void
KdbMergedCarry(KdbCarried *carried, Relation rel)
{
	KdbCarriedHistories histories = {
		.read = read_histories,
		.begin = begin_converting,
		.convert = convert_history,
		.forget = forget_history
	};
	Rewriting  *rewriting;

	if (IsLogicalWorker() || replorigin_session_origin != InvalidRepOriginId || KdbMergedColumns(RelationGetRelid(rel)) == NIL)
		return;
	rewriting = palloc0(sizeof(Rewriting));
	rewriting->context = CurrentMemoryContext;
	if (!KdbTargetOpenToRead(&rewriting->before, rel))
		return;
	KdbTargetCloseRead(&rewriting->before);
	rewriting->before.rel = NULL;
	note_columns(rewriting, &histories.columns);
	histories.state = rewriting;
	KdbCarriedSetHistories(carried, &histories);
}
