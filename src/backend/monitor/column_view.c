/*
 * column_view.c
 *		The function behind view krahodb.columns: which columns are merged.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_seclabel.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "krahodb/compat.h"
#include "krahodb/options.h"

KDB_SQL_FUNCTION(krahodb_column_options);

#define COLUMNS		4

/* Tables that have labels on columns, and the partitions below them. */
static List *
tables_with_labels(void)
{
	Relation	rel = table_open(SecLabelRelationId, AccessShareLock);
	List	   *result = NIL;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_seclabel_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationRelationId));
	ScanKeyInit(&keys[1], Anum_pg_seclabel_provider, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(KDB_LABEL_PROVIDER));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		FormData_pg_seclabel *label = (FormData_pg_seclabel *) GETSTRUCT(tuple);

		if (label->objsubid == 0)
			continue;
		result = list_append_unique_oid(result, label->objoid);
		if (get_rel_relkind(label->objoid) == RELKIND_PARTITIONED_TABLE)
			result = list_concat_unique_oid(result, find_all_inheritors(label->objoid, NoLock, NULL));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

static void
put_column(ReturnSetInfo *rsinfo, Oid relid, const KdbColumnMerge *merge)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};

	values[0] = ObjectIdGetDatum(relid);
	values[1] = Int16GetDatum(merge->attnum);
	values[2] = CStringGetTextDatum(KdbMergeKindName(merge->kind));
	values[3] = ObjectIdGetDatum(merge->source);
	nulls[3] = merge->source == relid;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* One row for each merged column. */
Datum
krahodb_column_options(PG_FUNCTION_ARGS)
{
	ListCell   *table;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(table, tables_with_labels())
	{
		foreach(lc, KdbMergedColumns(lfirst_oid(table)))
			put_column((ReturnSetInfo *) fcinfo->resultinfo, lfirst_oid(table), lfirst(lc));
	}
	return (Datum) 0;
}
