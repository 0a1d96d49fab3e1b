/*
 * copy_origin.c
 *		Warning about copied data of other origins, as PostgreSQL 16 gives it.
 *
 * With origin = none the stream holds only what was written on the publisher
 * itself, but the initial copy cannot tell rows apart: it takes all that is in
 * the table.  If the publisher subscribes to that table from elsewhere, rows of
 * other nodes may arrive twice.  So they may if it subscribes to a partition of the
 * table, which has some of its rows, or to a table that it is a partition of.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "catalog/pg_subscription_rel.h"

#include "commands_private.h"

static char *
overlap_query(List *publications, List *relations)
{
	StringInfoData query;
	ListCell   *lc;

	initStringInfo(&query);
	appendStringInfoString(&query,
						   "SELECT DISTINCT p.pubname::pg_catalog.text"
						   " FROM pg_catalog.pg_publication p"
						   " CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t"
						   " JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.relid"
						   " JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace"
						   " WHERE EXISTS (SELECT FROM pg_catalog.pg_subscription_rel r"
						   " WHERE r.srrelid OPERATOR(pg_catalog.=) t.relid"
						   " OR r.srrelid OPERATOR(pg_catalog.=) ANY (SELECT a.relid FROM pg_catalog.pg_partition_ancestors(t.relid) a)"
						   " OR r.srrelid OPERATOR(pg_catalog.=) ANY (SELECT b.relid FROM pg_catalog.pg_partition_tree(t.relid) b))"
						   " AND p.pubname IN (");
	foreach(lc, publications)
		appendStringInfo(&query, "%s%s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_literal_cstr(strVal(lfirst(lc))));
	appendStringInfoChar(&query, ')');
	foreach(lc, relations)
	{
		Oid			relid = ((SubscriptionRelState *) lfirst(lc))->relid;
		char	   *name = get_rel_name(relid);

		if (name)
			appendStringInfo(&query, " AND NOT (n.nspname OPERATOR(pg_catalog.=) %s AND c.relname OPERATOR(pg_catalog.=) %s)",
							 quote_literal_cstr(get_namespace_name(get_rel_namespace(relid))),
							 quote_literal_cstr(name));
	}
	return query.data;
}

void
KdbWarnAboutCopiedOrigins(WalReceiverConn *conn, const char *subname,
						  List *publications, List *relations)
{
	StringInfoData names;
	List	   *rows;
	ListCell   *lc;

	rows = KdbStreamQuery(conn, overlap_query(publications, relations), 1,
						  "list of replicated tables");
	if (rows == NIL)
		return;

	initStringInfo(&names);
	foreach(lc, rows)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "", ((char **) lfirst(lc))[0]);
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subscription \"%s\" requested copy_data with origin = NONE but might copy data that had a different origin",
					subname),
			 errdetail_plural("The subscription being created subscribes to a publication (%s) that contains tables that are written to by other subscriptions.",
							  "The subscription being created subscribes to publications (%s) that contain tables that are written to by other subscriptions.",
							  list_length(rows), names.data),
			 errhint("Verify that initial data copied from the publisher tables did not come from other origins.")));
}
