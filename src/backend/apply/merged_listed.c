/*
 * merged_listed.c
 *		What has been contributed to the merged columns of a table's keys, for whoever copies it.
 *
 * A row that is copied is one version, in which all contributions have been added up.  A change that
 * comes late to the copy, and is older than some of these (an INSERT of the key, a value
 * to or from NULL, a maximum that was lowered), must be followed by the newer ones;
 * and an update that revives a deleted row must find what had been added until then.
 * So a copy also gets the histories (merged_history.c) of the keys that something newer than
 * the retention horizon was done to, as of the snapshot that is copied:
 *
 *	key, live			number of the key in the list; has it a row in this snapshot?
 *	columns, values		the key
 *	time, node			version of the contribution
 *	contributed			for each merged column: name, how it is merged, kind, value
 *
 * of which kind is n (nothing), v (a value), w (a value of the type in which is added up) or
 * c (a change).  Contributions of one key follow each other, in the order in which they combine.
 * Rows that the list lacks consist of what is behind the horizon: one assignment.
 *
 * The horizon is held by the session, as for the versions of rows (conflict/table_versions.c).
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "krahodb/compat.h"

#include "merged_private.h"

KDB_SQL_FUNCTION(krahodb_merged_history);

#define COLUMNS		7
#define FIELDS		4			/* of a contribution to one column */

/* A table or partition whose histories are listed. */
typedef struct Listing
{
	ReturnSetInfo *result;
	int64	   *number;			/* of the key at hand, over all partitions */
	KdbApplyTarget target;
} Listing;

/* ---- histories ---- */

static Datum
text_of(Oid type, Datum value)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	return CStringGetTextDatum(OidOutputFunctionCall(function, value));
}

static Datum
text_array(Datum *values, bool *isnull, int n)
{
	int			dims[1] = {n};
	int			bounds[1] = {1};

	return PointerGetDatum(construct_md_array(values, isnull, 1, dims, bounds,
											  TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
names_of_key(const KdbApplyTarget *target)
{
	Datum		names[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS] = {false};

	for (int i = 0; i < target->nkeys; i++)
		names[i] = CStringGetTextDatum(NameStr(TupleDescAttr(target->tupdesc,
															 target->key_attnum[i] - 1)
												   ->attname));
	return text_array(names, isnull, target->nkeys);
}

static Datum
values_of_key(const KdbRecordedKey *key)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS] = {false};

	for (int i = 0; i < key->n; i++)
		values[i] = text_of(key->types[i], key->values[i]);
	return text_array(values, isnull, key->n);
}

static const char *
kind_of(const KdbColumnContribution *contribution)
{
	switch (contribution->kind)
	{
		case KDB_CONTRIBUTES_VALUE:
			return contribution->wide ? "w" : "v";
		case KDB_CONTRIBUTES_CHANGE:
			return "c";
		case KDB_CONTRIBUTES_NOTHING:
			break;
	}
	return "n";
}

static Datum
contributed_fields(const Listing *listing, const KdbMergedChange *change, const KdbContributed *contributed)
{
	Datum	   *values = palloc0_array(Datum, change->n * FIELDS);
	bool	   *isnull = palloc0_array(bool, change->n *FIELDS);

	for (int i = 0; i < change->n; i++)
	{
		const KdbMergedColumn *column = change->columns[i];
		const KdbColumnContribution *contribution = &contributed->columns[i];
		int			field = i * FIELDS;

		values[field] = CStringGetTextDatum(NameStr(TupleDescAttr(listing->target.tupdesc,
																  column->attnum - 1)
														->attname));
		values[field + 1] = CStringGetTextDatum(KdbMergeKindName(column->kind));
		values[field + 2] = CStringGetTextDatum(kind_of(contribution));
		isnull[field + 3] = contribution->isnull || contribution->kind == KDB_CONTRIBUTES_NOTHING;
		if (!isnull[field + 3])
			values[field + 3] = text_of(KdbMergedContributionType(column, contribution),
										contribution->value);
	}
	return text_array(values, isnull, change->n * FIELDS);
}

static void
put_history(Listing *listing, const KdbRecordedKey *key, const KdbMergedChange *change)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};

	values[0] = Int64GetDatum(++*listing->number);
	values[1] = BoolGetDatum(change->live);
	values[2] = names_of_key(&listing->target);
	values[3] = values_of_key(key);
	for (int i = 0; i < change->nhistory; i++)
	{
		const KdbContributed *contributed = &change->history[i];

		values[4] = Int64GetDatum(contributed->version.ts);
		values[5] = CStringGetTextDatum(psprintf(UINT64_FORMAT, contributed->version.node));
		values[6] = contributed_fields(listing, change, contributed);
		tuplestore_putvalues(listing->result->setResult, listing->result->setDesc, values, nulls);
	}
}

static void
list_key(void *arg, KdbMergedKey *key)
{
	Listing    *listing = arg;
	KdbApplyTarget *target = &listing->target;
	KdbMergedChange change = {.n = target->nmerged, .as_of = GetActiveSnapshot()};
	KdbConverge c = {.operation = KDB_UPDATE, .merged = &change};
	KdbRecordedKey recorded;

	change.columns = palloc_array(const KdbMergedColumn *, target->nmerged);
	for (int i = 0; i < target->nmerged; i++)
		change.columns[i] = &target->merged_columns[i];
	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	c.sides[KDB_KEY_NEW].key = c.sides[KDB_KEY_OLD].key = KdbMergedRowOfKey(target, key);
	KdbMergedReadHistory(&c);
	KdbKeyOfRow(target, target->search, &recorded);
	put_history(listing, &recorded, &change);
}

/* ---- the table ---- */

static void
list_table(ReturnSetInfo *result, int64 *number, Oid relid, TimestampTz since)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	MemoryContext old = CurrentMemoryContext;
	Listing		listing = {.result = result, .number = number};
	KdbMergedKeys keys = {&listing.target, since};

	if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind) && KdbMergedColumns(relid) != NIL)
	{
		keys.context = AllocSetContextCreate(old, "KrahoDB merged histories", ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(keys.context);
		if (KdbTargetOpenToRead(&listing.target, rel))
		{
			KdbMergedKeysFind(&keys);
			KdbMergedKeysEach(&keys, list_key, &listing);
			KdbTargetCloseRead(&listing.target);
		}
		MemoryContextSwitchTo(old);
		MemoryContextDelete(keys.context);
	}
	relation_close(rel, NoLock);
}

/* krahodb.merged_history(regclass, bigint) */
Datum
krahodb_merged_history(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	TimestampTz since = PG_GETARG_INT64(1);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		hidden = KdbRowsAreHidden(relid);
	int64		number = 0;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (hidden)
		return (Datum) 0;
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		if (lfirst_oid(lc) == relid || get_rel_relispartition(lfirst_oid(lc)))
			list_table(result, &number, lfirst_oid(lc), since);
	}
	return (Datum) 0;
}
