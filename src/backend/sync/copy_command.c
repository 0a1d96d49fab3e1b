/*
 * copy_command.c
 *		How the publisher is asked for a table's rows.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "replication/walreceiver.h"
#include "utils/builtins.h"

#include "sync_private.h"

/* Servers from this version on extract epochs exactly. */
#define EXACT_EPOCH_VERSION		140000

/* "a, b, c", quoted. */
static void
append_columns(StringInfo command, const KdbRemoteTable *table)
{
	ListCell   *lc;

	foreach(lc, table->columns)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(command, ", ");
		appendStringInfoString(command, quote_identifier(strVal(lfirst(lc))));
	}
}

static void
append_filters(StringInfo command, const KdbRemoteTable *table)
{
	ListCell   *lc;

	foreach(lc, table->filters)
		appendStringInfo(command, "%s (%s)",
						 foreach_current_index(lc) == 0 ? " WHERE" : " OR",
						 strVal(lfirst(lc)));
}

/*
 * When the row's transaction was committed where it was written.  NULL where
 * the publisher does not keep that, or no longer.
 */
static void
append_time(StringInfo command)
{
	if (walrcv_server_version(LogRepWorkerWalRcvConn) < EXACT_EPOCH_VERSION)
		appendStringInfoString(command, "NULL");
	else
		appendStringInfoString(command,
							   "CASE WHEN pg_catalog.current_setting('track_commit_timestamp')::pg_catalog.bool"
							   " THEN (extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(xmin)"
							   " - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz)"
							   " * 1000000)::pg_catalog.int8 END");
}

/*
 * A plain table without filters is copied as such; what COPY does not take
 * (partitioned tables) or does not do (filters) goes through a query.  ONLY:
 * tables that inherit from a published one are copied for themselves.
 */
char *
KdbSyncCopyCommand(const KdbRemoteTable *table, bool with_times)
{
	char	   *name = quote_qualified_identifier(table->nspname, table->relname);
	bool		plain = table->relkind == RELKIND_RELATION;
	StringInfoData command;

	initStringInfo(&command);
	if (plain && table->filters == NIL && !with_times)
	{
		appendStringInfo(&command, "COPY %s", name);
		if (table->columns != NIL)
		{
			appendStringInfoString(&command, " (");
			append_columns(&command, table);
			appendStringInfoChar(&command, ')');
		}
		appendStringInfoString(&command, " TO STDOUT");
		return command.data;
	}

	appendStringInfoString(&command, "COPY (SELECT ");
	append_columns(&command, table);
	if (with_times)
	{
		if (table->columns != NIL)
			appendStringInfoString(&command, ", ");
		append_time(&command);
	}
	appendStringInfo(&command, " FROM %s%s", plain ? "ONLY " : "", name);
	append_filters(&command, table);
	appendStringInfoString(&command, ") TO STDOUT");
	return command.data;
}
