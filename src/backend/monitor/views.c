/*
 * views.c
 *		The functions behind the views of extension krahodb.
 *
 * They show what is in effect, that is after defaulting, so that nobody has to
 * know the rules of defaults to read a view.  They show nothing that
 * pg_subscription and pg_seclabel do not show to everybody.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_seclabel.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "krahodb/compat.h"
#include "krahodb/options.h"

KDB_SQL_FUNCTION(krahodb_subscription_options);
KDB_SQL_FUNCTION(krahodb_table_options);

/* Columns of krahodb.subscription_options(). */
typedef enum subscription_column
{
	SUB_ID,
	SUB_ORIGIN,
	SUB_FILTER_ORIGINS,
	SUB_REPLICATION_ORIGIN_ID,
	SUB_COMPRESSION,
	SUB_RUN_AS_OWNER,
	SUB_APPLY_WORKERS,
	SUB_CONFLICT_RESOLUTION,
	SUB_FIRST_TYPE
} subscription_column;

#define SUBSCRIPTION_COLUMNS	(SUB_FIRST_TYPE + KDB_CONFLICT_TYPES)
#define TABLE_COLUMNS			3

static Datum
origin_ids_array(const KdbSubscriptionOptions *options)
{
	Datum	   *ids = palloc(Max(options->nfilter_origins, 1) * sizeof(Datum));

	for (int i = 0; i < options->nfilter_origins; i++)
		ids[i] = Int32GetDatum(options->filter_origins[i]);
	return PointerGetDatum(construct_array(ids, options->nfilter_origins, INT4OID,
										   sizeof(int32), true, TYPALIGN_INT));
}

static void
put_subscription(ReturnSetInfo *rsinfo, Oid subid)
{
	const KdbSubscriptionOptions *options = KdbGetSubscriptionOptions(subid);
	Datum		values[SUBSCRIPTION_COLUMNS];
	bool		nulls[SUBSCRIPTION_COLUMNS] = {false};
	char		name[NAMEDATALEN];
	RepOriginId id;

	values[SUB_ID] = ObjectIdGetDatum(subid);
	values[SUB_ORIGIN] = CStringGetTextDatum(options->origin == KDB_ORIGIN_NONE ? "none" : "any");
	values[SUB_FILTER_ORIGINS] = origin_ids_array(options);
	values[SUB_COMPRESSION] = CStringGetTextDatum(KdbCompressionName(options->compression));
	values[SUB_RUN_AS_OWNER] = BoolGetDatum(options->run_as_owner);
	values[SUB_APPLY_WORKERS] = Int32GetDatum(options->apply_workers);
	values[SUB_CONFLICT_RESOLUTION] = CStringGetTextDatum(KdbResolverName(options->conflict_resolution));
	for (int type = 0; type < KDB_CONFLICT_TYPES; type++)
		values[SUB_FIRST_TYPE + type] =
			CStringGetTextDatum(KdbResolverName((KdbResolver) options->resolvers.by_type[type]));

	/* The id that the origin has, whoever chose it. */
	snprintf(name, sizeof(name), "pg_%u", subid);
	id = replorigin_by_name(name, true);
	values[SUB_REPLICATION_ORIGIN_ID] = Int32GetDatum(id);
	nulls[SUB_REPLICATION_ORIGIN_ID] = id == InvalidRepOriginId;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* One row for each subscription of this database. */
Datum
krahodb_subscription_options(PG_FUNCTION_ARGS)
{
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	InitMaterializedSRF(fcinfo, 0);
	rel = table_open(SubscriptionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_subscription_subdbid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(MyDatabaseId));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		put_subscription((ReturnSetInfo *) fcinfo->resultinfo,
						 ((Form_pg_subscription) GETSTRUCT(tuple))->oid);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return (Datum) 0;
}

/* Tables that have a label, and the partitions below them. */
static List *
tables_with_options(void)
{
	Relation	rel = table_open(SecLabelRelationId, AccessShareLock);
	List	   *result = NIL;
	ScanKeyData keys[3];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_seclabel_classoid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationRelationId));
	ScanKeyInit(&keys[1], Anum_pg_seclabel_objsubid, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(0));
	ScanKeyInit(&keys[2], Anum_pg_seclabel_provider, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(KDB_LABEL_PROVIDER));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 3, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			relid = ((FormData_pg_seclabel *) GETSTRUCT(tuple))->objoid;

		result = list_append_unique_oid(result, relid);
		if (get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE)
			result = list_concat_unique_oid(result, find_all_inheritors(relid, NoLock, NULL));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* One row for each table whose parameters are not all default. */
Datum
krahodb_table_options(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, tables_with_options())
	{
		Oid			relid = lfirst_oid(lc);
		Oid			source = KdbTableOptionsSource(relid);
		KdbTableOptions options;
		Datum		values[TABLE_COLUMNS];
		bool		nulls[TABLE_COLUMNS] = {false};

		KdbGetTableOptions(relid, &options);
		if (!options.has_conflict_resolution)
			continue;
		values[0] = ObjectIdGetDatum(relid);
		values[1] = CStringGetTextDatum(KdbResolverName(options.conflict_resolution));
		values[2] = ObjectIdGetDatum(source);
		nulls[2] = source == relid;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
