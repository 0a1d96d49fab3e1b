/*
 * column_options.c
 *		KrahoDB's option of a column: krahodb.merge.
 *
 * Kept as the label of the column, {"merge": "delta"}, which goes with the column:
 * it is renamed, dropped, dumped and restored with it.  The default, last_update, is
 * no label.  A partition's column without a label has that of the column of
 * the same name in the nearest partitioned table above it that has one, as it is
 * with the options of tables.
 *
 * What a label may be set on is column_checks.c.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_seclabel.h"
#include "commands/seclabel.h"
#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "options_private.h"

#define COLUMN_MERGE		"merge"
#define COLUMN_MERGE_SQL	"krahodb." COLUMN_MERGE
#define LAST_UPDATE			"last_update"

static const char *const kind_names[] = {
	[KDB_MERGE_DELTA] = "delta",
	[KDB_MERGE_MAX] = "max",
	[KDB_MERGE_MIN] = "min"
};

const char *
KdbMergeKindName(KdbMergeKind kind)
{
	return kind_names[kind];
}

static bool
find_kind(const char *value, KdbMergeKind *kind)
{
	for (int i = 0; i < lengthof(kind_names); i++)
	{
		if (pg_strcasecmp(value, kind_names[i]) != 0)
			continue;
		*kind = (KdbMergeKind) i;
		return true;
	}
	return false;
}

/* The value in normal form; NULL if it asks for the default. */
static const char *
normal_value(const char *value)
{
	KdbMergeKind kind;

	if (KdbIsDefaultValue(value) || pg_strcasecmp(value, LAST_UPDATE) == 0)
		return NULL;
	if (!find_kind(value, &kind))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\": \"%s\"", COLUMN_MERGE_SQL, value),
				 errhint("Valid values are: %s, delta, max, min, default.", LAST_UPDATE)));
	return kind_names[kind];
}

/* See options.h. */
List *
KdbNormaliseColumnOptions(List *defs, bool reset)
{
	return KdbNormaliseParameters(defs, reset, COLUMN_MERGE, normal_value);
}

static KdbColumnMerge *
make_merge(AttrNumber attnum, KdbMergeKind kind, Oid source)
{
	KdbColumnMerge *merge = palloc(sizeof(KdbColumnMerge));

	merge->attnum = attnum;
	merge->kind = kind;
	merge->source = source;
	return merge;
}

/* What the column's label says, if it has one. */
static KdbColumnMerge *
read_column(Oid relid, AttrNumber attnum, const char *label)
{
	List	   *options = KdbNormaliseColumnOptions(KdbLabelToOptions(label), false);
	DefElem    *option = options ? linitial_node(DefElem, options) : NULL;
	KdbMergeKind kind;

	if (option == NULL || option->arg == NULL || !find_kind(strVal(option->arg), &kind))
		return NULL;
	return make_merge(attnum, kind, relid);
}

/* See options_private.h.  A dump sets labels before there are keys. */
void
KdbCheckColumnLabel(Oid relid, AttrNumber attnum, const char *label)
{
	KdbColumnMerge *merge = read_column(relid, attnum, label);

	if (attnum < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot alter system column \"%s\"", get_attname(relid, attnum, false))));
	if (merge)
		KdbCheckMergedType(relid, merge);
}

/* The columns of a table that have labels of their own: by one look at the catalog. */
static List *
own_columns(Oid relid)
{
	Relation	rel = table_open(SecLabelRelationId, AccessShareLock);
	List	   *result = NIL;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_seclabel_objoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[1], Anum_pg_seclabel_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationRelationId));
	scan = systable_beginscan(rel, SecLabelObjectIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		AttrNumber	attnum = ((FormData_pg_seclabel *) GETSTRUCT(tuple))->objsubid;
		char	   *provider = TextDatumGetCString(heap_getattr(tuple, Anum_pg_seclabel_provider,
																RelationGetDescr(rel), &isnull));
		KdbColumnMerge *merge;

		if (attnum <= 0 || strcmp(provider, KDB_LABEL_PROVIDER) != 0)
			continue;
		merge = read_column(relid, attnum,
							TextDatumGetCString(heap_getattr(tuple, Anum_pg_seclabel_label,
															 RelationGetDescr(rel), &isnull)));
		if (merge)
			result = lappend(result, merge);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

static bool
has_column(List *columns, AttrNumber attnum)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		if (((KdbColumnMerge *) lfirst(lc))->attnum == attnum)
			return true;
	}
	return false;
}

/* Add what the table has from a partitioned table above it. */
static List *
inherit_columns(List *columns, Oid relid, Oid ancestor)
{
	ListCell   *lc;

	foreach(lc, own_columns(ancestor))
	{
		KdbColumnMerge *merge = lfirst(lc);
		AttrNumber	attnum = get_attnum(relid, get_attname(ancestor, merge->attnum, false));

		if (attnum != InvalidAttrNumber && !has_column(columns, attnum))
			columns = lappend(columns, make_merge(attnum, merge->kind, ancestor));
	}
	return columns;
}

static int
by_attnum(const ListCell *a, const ListCell *b)
{
	return ((KdbColumnMerge *) lfirst(a))->attnum - ((KdbColumnMerge *) lfirst(b))->attnum;
}

/* See options.h. */
List *
KdbMergedColumns(Oid relid)
{
	List	   *result = own_columns(relid);
	ListCell   *lc;

	if (get_rel_relispartition(relid))
	{
		foreach(lc, get_partition_ancestors(relid))
			result = inherit_columns(result, relid, lfirst_oid(lc));
	}
	list_sort(result, by_attnum);
	return result;
}

/* See options.h. */
void
KdbStoreColumnOptions(Oid relid, AttrNumber attnum, List *options)
{
	ObjectAddress object;

	CommandCounterIncrement();
	ObjectAddressSubSet(object, RelationRelationId, relid, attnum);
	SetSecurityLabel(&object, KDB_LABEL_PROVIDER,
					 KdbOptionsToLabel(KdbMergeOptions(NIL, options)));
	KdbTableOptionsChanged(relid);
}
