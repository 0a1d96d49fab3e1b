/*
 * merged_copied.c
 *		Histories of merged columns that come with an initial copy.
 *
 * What the publisher has listed (merged_listed.c) becomes a SEALED record of the copy, for each key:
 * its contributions count instead of the copied row's version; for a dead key there is
 * nothing but them.
 *
 * Something of the key may be here already: rows and records of an attempt to copy
 * that has failed, or changes of other nodes.  What is newer than the publisher's horizon and
 * not in its list is added to that, and all that was here is named by the seal.  Not if there
 * is a row: which of the two stays is decided when the rows come, and each has the
 * history that it has here.
 *
 * Where a key is dead here, and the row that comes is later and brings it back, that row has the value that its
 * key's history gives, with what was added to it here before it was deleted: the deletion has lost,
 * and these changes are on their way to the publisher.  It is made up when the row is put: a change
 * may come to the dead key until then (TWO WORKERS in converge_merged.c).
 */
#include "postgres.h"

#include "utils/lsyscache.h"

#include "merged_private.h"

#define FIELDS		4			/* of a contribution to one column */

static void
read_value(const KdbMergedColumn *column, const char *text, KdbColumnContribution *result)
{
	Oid			type = KdbMergedContributionType(column, result);
	Oid			function;
	Oid			ioparam;

	result->isnull = text == NULL;
	getTypeInputInfo(type, &function, &ioparam);
	if (text)
		result->value = OidInputFunctionCall(function, (char *) text, ioparam, -1);
}

static KdbContributionKind
kind_of(char kind)
{
	if (kind == 'n')
		return KDB_CONTRIBUTES_NOTHING;
	return kind == 'c' ? KDB_CONTRIBUTES_CHANGE : KDB_CONTRIBUTES_VALUE;
}

/* The fields of that column, if it is merged in the same way there; else NULL. */
static char **
find_fields(const KdbConverge *c, const KdbMergedColumn *column, const KdbCopiedContribution *copied)
{
	const KdbConvergeSide *side = &c->sides[KDB_KEY_NEW];
	const char *name = NameStr(TupleDescAttr(side->target->tupdesc, column->attnum - 1)->attname);

	for (int i = 0; i + FIELDS <= copied->nfields; i += FIELDS)
	{
		if (copied->fields[i] == NULL || copied->fields[i + 1] == NULL || copied->fields[i + 2] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg_internal("publisher sent a contribution to a merged column without its kind")));
		if (strcmp(copied->fields[i], name) == 0)
			return strcmp(copied->fields[i + 1], KdbMergeKindName(column->kind)) == 0 ?
				&copied->fields[i] :
				NULL;
	}
	return NULL;
}

/* False if the nodes do not agree about merged columns. */
static bool
read_contribution(const KdbConverge *c, const KdbCopiedContribution *copied, KdbContributed *result)
{
	const KdbMergedChange *change = c->merged;

	memset(result, 0, sizeof(KdbContributed));
	result->version.ts = copied->time;
	result->version.node = copied->node;
	result->columns = palloc0_array(KdbColumnContribution, change->n);
	for (int i = 0; i < change->n; i++)
	{
		char	  **fields = find_fields(c, change->columns[i], copied);

		if (fields == NULL)
			return false;
		result->columns[i].kind = kind_of(fields[2][0]);
		result->columns[i].wide = fields[2][0] == 'w';
		read_value(change->columns[i], fields[3], &result->columns[i]);
	}
	return true;
}

static bool
is_listed(const KdbContributed *list, int n, KdbVersion version)
{
	for (int i = 0; i < n; i++)
	{
		if (KdbVersionCompare(list[i].version, version) == 0)
			return true;
	}
	return false;
}

/* The change's history becomes what was listed, with what is only known here. */
static bool
take_list(KdbConverge *c, List *contributions, TimestampTz since)
{
	KdbMergedChange *change = c->merged;
	int			n = list_length(contributions);
	KdbContributed *list = palloc_array(KdbContributed, n + change->nhistory);
	int			total = n;
	ListCell   *lc;

	foreach(lc, contributions)
	{
		if (!read_contribution(c, lfirst(lc), &list[foreach_current_index(lc)]))
			return false;
	}
	for (int i = 0; i < change->nhistory; i++)
	{
		const KdbContributed *here = &change->history[i];

		if (!here->own && here->version.ts > since && !is_listed(list, n, here->version))
			list[total++] = *here;
	}
	change->history = list;
	change->nhistory = total;
	return true;
}

static KdbVersion
greatest_version(const KdbMergedChange *change)
{
	KdbVersion	greatest = {0, 0};

	for (int i = 0; i < change->nhistory; i++)
	{
		if (KdbVersionCompare(change->history[i].version, greatest) > 0)
			greatest = change->history[i].version;
	}
	return greatest;
}

static KdbMergedChange *
begin_change(const KdbApplyTarget *target)
{
	KdbMergedChange *change = palloc0(sizeof(KdbMergedChange));

	change->columns = palloc_array(const KdbMergedColumn *, target->nmerged);
	for (int i = 0; i < target->nmerged; i++)
	{
		if (target->compared[target->merged_columns[i].attnum - 1])
			change->columns[change->n++] = &target->merged_columns[i];
	}
	return change;
}

/* See converge_private.h. */
void
KdbMergedCopied(KdbConverge *c, bool has_row, List *contributions, TimestampTz since)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	KdbMergedChange *change = begin_change(target);
	KdbRecordedKey key;

	c->merged = change;
	if (change->n == 0 || KdbFindRow(target, side->key))
		return;
	change->key_locked = true;	/* of many keys that would be too many locks */
	KdbMergedReadHistory(c);
	if (!take_list(c, contributions, since))
		return;
	KdbKeyOfRow(target, side->key, &key);
	KdbAddRecord(c, target, &key, KDB_RECORD_SEALED, greatest_version(change),
				 KdbMergedEncodeSeal(change, has_row));
}

/* ---- the row ------------------------------------------------------------------------ */

static bool
has_list(const KdbConverge *c)
{
	const KdbMergedChange *change = c->merged;

	for (int i = 0; i < change->nhistory; i++)
	{
		if (change->history[i].recorded &&
			KdbVersionCompare(change->history[i].shown, c->context->version) == 0)
			return true;
	}
	return false;
}

/* The value of column number i by the history, which is in the order of versions. */
static void
fold_column(KdbConverge *c, int i, TupleTableSlot *row)
{
	KdbMergedChange *change = c->merged;
	const KdbMergedColumn *column = change->columns[i];
	int			att = column->attnum - 1;
	int			last = -1;

	for (int j = 0; j < change->nhistory; j++)
	{
		if (change->history[j].columns[i].kind == KDB_CONTRIBUTES_VALUE)
			last = j;
	}
	if (last < 0)
		return;
	KdbMergedFoldStart(c, i, last);
	for (int j = last + 1; j < change->nhistory; j++)
	{
		if (change->history[j].columns[i].kind == KDB_CONTRIBUTES_CHANGE)
			KdbMergedFoldChange(c, i, j);
	}
	row->tts_values[att] = change->folded[i].value;
	row->tts_isnull[att] = change->folded[i].isnull;
	KdbMergedNarrow(column, KdbSideOf(c, KDB_KEY_NEW)->target->rel, &row->tts_values[att], &row->tts_isnull[att]);
}

/* See converge_private.h. */
void
KdbMergedRevive(KdbConverge *c)
{
	KdbMergedChange *change = begin_change(KdbSideOf(c, KDB_KEY_NEW)->target);

	if (change->n == 0)
		return;
	change->folded = palloc0_array(KdbColumnContribution, change->n);
	change->row_comes = true;
	change->key_locked = true;	/* likewise */
	c->revived = change;
}

/* See merged_private.h. */
void
KdbMergedRevivedRow(KdbConverge *c, TupleTableSlot *row)
{
	c->merged = c->revived;
	KdbMergedReadHistory(c);
	for (int i = 0; i < c->merged->n && has_list(c); i++)
		fold_column(c, i, row);
	c->merged = NULL;
}

/* See merged_private.h. */
bool
KdbMergedRevivalOvertaken(KdbConverge *c)
{
	int			foreign_records;

	c->merged = c->revived;
	foreign_records = KdbMergedForeignRecords(c);
	c->merged = NULL;
	return c->revived->history_known && foreign_records != c->revived->foreign_records;
}
