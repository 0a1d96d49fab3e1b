/*
 * table_options.c
 *		KrahoDB's options of a table.
 *
 * In SQL they have the name space "krahodb" (krahodb.conflict_resolution); in
 * the label they are without it.  A partition without options of its own has
 * those of the nearest partitioned table above it that has some: changes are
 * applied to partitions, whatever the subscription names.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/seclabel.h"
#include "nodes/value.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "options_private.h"

#define TABLE_RESOLUTION	"conflict_resolution"
#define TABLE_RESOLUTION_SQL	"krahodb." TABLE_RESOLUTION

/* The value in normal form; NULL if it asks for the default. */
static const char *
normal_value(const char *value)
{
	if (KdbIsDefaultValue(value))
		return NULL;
	return KdbResolverName(KdbReadGeneralResolver(TABLE_RESOLUTION_SQL, value));
}

List *
KdbNormaliseTableOptions(List *defs, bool reset)
{
	return KdbNormaliseParameters(defs, reset, TABLE_RESOLUTION, normal_value);
}

void
KdbCheckTableForOptions(Oid relid)
{
	char		relkind = get_rel_relkind(relid);

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot set KrahoDB parameters of relation \"%s\"", get_rel_name(relid)),
				 errdetail_relkind_not_supported(relkind)));
	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("cannot set KrahoDB parameters of relation \"%s\"", get_rel_name(relid)),
				 errdetail("Temporary tables are not replicated.")));
}

Oid
KdbTableOptionsSource(Oid relid)
{
	ListCell   *lc;

	if (KdbReadOptions(RelationRelationId, relid) != NIL)
		return relid;
	if (!get_rel_relispartition(relid))
		return InvalidOid;
	foreach(lc, get_partition_ancestors(relid))
	{
		if (KdbReadOptions(RelationRelationId, lfirst_oid(lc)) != NIL)
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

void
KdbGetTableOptions(Oid relid, KdbTableOptions *options)
{
	Oid			source = KdbTableOptionsSource(relid);
	ListCell   *lc;

	memset(options, 0, sizeof(*options));
	if (!OidIsValid(source))
		return;
	foreach(lc, KdbNormaliseTableOptions(KdbReadOptions(RelationRelationId, source), false))
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (option->arg == NULL)
			continue;
		options->has_conflict_resolution = true;
		options->conflict_resolution =
			KdbReadGeneralResolver(TABLE_RESOLUTION_SQL, strVal(option->arg));
	}
}

/* The table's resolver replaces all that the subscription says: it is the nearer one. */
void
KdbTableResolvers(const KdbSubscriptionOptions *subscription,
				  const KdbTableOptions *table,
				  KdbResolvers *resolvers)
{
	if (table->has_conflict_resolution)
		KdbResolversSetAll(resolvers, table->conflict_resolution);
	else
		*resolvers = subscription->resolvers;
}

void
KdbTableOptionsChanged(Oid relid)
{
	ListCell   *lc;

	if (get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
	{
		CacheInvalidateRelcacheByRelid(relid);
		return;
	}
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

void
KdbStoreTableOptions(Oid relid, List *options)
{
	ObjectAddress object;

	/* The table may have been created by this command. */
	CommandCounterIncrement();
	ObjectAddressSet(object, RelationRelationId, relid);
	SetSecurityLabel(&object, KDB_LABEL_PROVIDER, KdbOptionsToLabel(options));
	KdbTableOptionsChanged(relid);
}
