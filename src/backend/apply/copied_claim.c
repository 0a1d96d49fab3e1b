/*
 * copied_claim.c
 *		Unique values that the publisher of an initial copy only knows from a record.
 *
 * Elsewhere what a key claims follows from a row.  A claim that is only recorded has no row any
 * more, but the values of one index; which of the indexes here that is its text tells
 * (KdbIndexText).  If there is none such, no row here can violate it.
 *
 * Older rows of other keys that are here already keep such values: none are in a table that is
 * copied for the first time, where all rows come behind what is said of them.
 */
#include "postgres.h"

#include "utils/lsyscache.h"

#include "converge_private.h"

/* Number of the index; -1 if there is none. */
static int
find_index(KdbApplyTarget *target, const char *wanted)
{
	KdbTargetOpenIndexes(target);
	for (int i = 0; i < target->nindexes; i++)
	{
		Relation	index = target->relinfo->ri_IndexRelationDescs[i];

		if ((index->rd_index->indisunique || index->rd_index->indisexclusion) &&
			target->index_oids[i] != target->identity_index && strcmp(KdbIndexText(index), wanted) == 0)
			return i;
	}
	return -1;
}

/* What the index here has of a row with these values; false if that is something else. */
static bool
read_values(KdbApplyTarget *target, int number, const KdbCopiedVersion *claim, KdbRecordedKey *values)
{
	static const ScanKeyData by_operators;
	const IndexInfo *info = target->relinfo->ri_IndexRelationInfo[number];

	KdbIndexedTypes(target->relinfo->ri_IndexRelationDescs[number], info, target->tupdesc, values);
	if (info->ii_ExclusionOps || target->own_equality[number])
		values->operators = &by_operators;
	for (int i = 0; i < values->n && i < claim->nclaimed; i++)
	{
		Oid			function;
		Oid			ioparam;

		getTypeInputInfo(values->types[i], &function, &ioparam);
		values->isnull[i] = claim->claimed[i] == NULL;
		if (!values->isnull[i])
			values->values[i] = OidInputFunctionCall(function, claim->claimed[i], ioparam, -1);
	}
	return values->n == claim->nclaimed;
}

/* See relation_private.h. */
void
KdbConvergeCopiedClaim(KdbApplyTarget *target, KdbRemoteRow *row,
					   const KdbCopiedVersion *claim, KdbVersion version)
{
	KdbVersionRecord record = {KDB_RECORD_CLAIM, version, {KdbCopiedRowTime, KdbApply.remote_node}};
	KdbRecordedKey values = {0};
	KdbRecordedKey key;
	int			number;

	if (!target->converging)
		return;
	number = find_index(target, claim->index);
	if (number < 0 || !read_values(target, number, claim, &values))
		return;
	KdbKeyOfRow(target, row->slot, &key);
	KdbVersionRecordAdd(target->relid, &record, &key, target->index_places[number], &values);
	KdbMergeEvent();
}
