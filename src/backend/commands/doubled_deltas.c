/*
 * doubled_deltas.c
 *		Warning about deltas that come from one node by two subscriptions.
 *
 * Each change must come by one way only where columns are added up.  That a table comes from a node by two
 * subscriptions may be right all the same: their publications' row filters may divide its rows.  Nobody can
 * tell that of filters, so it is no error.  What comes by way of a third node is not seen from here.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "krahodb/origin_nodes.h"

#include "commands_private.h"

#define MAX_NAMES	10			/* of tables in one warning */

/* The subscriptions of this database that resolve conflicts; a List of Subscription. */
static List *
resolving_subscriptions(void)
{
	Relation	rel = table_open(SubscriptionRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	List	   *result = NIL;
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_subscription form = (Form_pg_subscription) GETSTRUCT(tuple);

		KdbSubscriptionOptions *options;

		if (form->subdbid != MyDatabaseId)
			continue;
		options = KdbTryGetSubscriptionOptions(form->oid);
		if (options != NULL && KdbResolversActive(&options->resolvers))
			result = lappend(result, GetSubscription(form->oid, false));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* The node of its publisher, as far as that has told. */
static uint64
node_of(const Subscription *subscription)
{
	char		name[NAMEDATALEN];
	RepOriginId origin;

	snprintf(name, sizeof(name), "pg_%u", subscription->oid);
	origin = replorigin_by_name(name, true);
	return origin != InvalidRepOriginId ? KdbOriginNode(origin) : 0;
}

/* node: of a, if it is known. */
static bool
have_one_publisher(const Subscription *a, uint64 node, const Subscription *b)
{
	if (node != 0 && node_of(b) != 0)
		return node == node_of(b);
	return strcmp(a->conninfo, b->conninfo) == 0;
}

static bool
has_deltas(Oid relid)
{
	ListCell   *lc;

	foreach(lc, KdbMergedColumns(relid))
	{
		if (((KdbColumnMerge *) lfirst(lc))->kind == KDB_MERGE_DELTA)
			return true;
	}
	return false;
}

/* Those of its tables that have deltas; only: among these, if it is not NIL. */
static List *
tables_with_deltas(Oid subid, List *only)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, GetSubscriptionRelations(subid))
	{
		Oid			relid = ((SubscriptionRelState *) lfirst(lc))->relid;

		if ((only == NIL || list_member_oid(only, relid)) && has_deltas(relid))
			result = lappend_oid(result, relid);
	}
	return result;
}

static char *
table_names(List *tables)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, tables)
	{
		Oid			relid = lfirst_oid(lc);

		if (foreach_current_index(lc) == MAX_NAMES)
		{
			appendStringInfoString(&names, ", ...");
			break;
		}
		appendStringInfo(&names, "%s\"%s.%s\"", names.len > 0 ? ", " : "",
						 get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
	}
	return names.data;
}

static void
warn(const Subscription *a, const Subscription *b, List *tables)
{
	if (tables == NIL)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subscriptions \"%s\" and \"%s\" receive the same merged columns from one publisher",
					a->name, b->name),
			 errdetail("Each change counts twice in columns that are merged by \"%s\": of %s.",
					   KdbMergeKindName(KDB_MERGE_DELTA), table_names(tables)),
			 errhint("Take them out of the publications of one of the subscriptions, unless row filters divide their rows.")));
}

/* See commands_private.h. */
void
KdbWarnAboutDoubledDeltas(Oid subid, uint64 node)
{
	Subscription *own = GetSubscription(subid, false);
	List	   *tables = tables_with_deltas(subid, NIL);
	ListCell   *lc;

	if (tables == NIL)
		return;
	foreach(lc, resolving_subscriptions())
	{
		Subscription *other = lfirst(lc);

		if (other->oid != subid && have_one_publisher(own, node, other))
			warn(own, other, tables_with_deltas(other->oid, tables));
	}
}

/* See commands_private.h. */
void
KdbWarnAboutDoubledTable(Oid relid)
{
	List	   *having = NIL;
	ListCell   *lc;
	ListCell   *before;

	if (!has_deltas(relid))
		return;
	foreach(lc, resolving_subscriptions())
	{
		Subscription *subscription = lfirst(lc);
		List	   *tables = tables_with_deltas(subscription->oid, list_make1_oid(relid));

		if (tables == NIL)
			continue;
		foreach(before, having)
		{
			if (have_one_publisher(subscription, node_of(subscription), lfirst(before)))
				warn(lfirst(before), subscription, tables);
		}
		having = lappend(having, subscription);
	}
}
