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

/* "TRUE", or "(filter) OR (filter)". */
static void
append_filters(StringInfo command, const KdbRemoteTable *table)
{
	ListCell   *lc;

	if (table->filters == NIL)
		appendStringInfoString(command, "TRUE");
	foreach(lc, table->filters)
		appendStringInfo(command, "%s(%s)",
						 foreach_current_index(lc) == 0 ? "" : " OR ",
						 strVal(lfirst(lc)));
}

/* Of a range's rows, those that are to be copied. */
static void
append_range(StringInfo command, const KdbRemoteTable *table, const KdbCopyRange *range,
			 const char *relation)
{
	appendStringInfo(command, " FROM ONLY %s WHERE ctid >= '(%u,0)'::pg_catalog.tid",
					 relation, range->start);
	if (range->end != InvalidBlockNumber)
		appendStringInfo(command, " AND ctid < '(%u,0)'::pg_catalog.tid", range->end);
	appendStringInfoString(command, " AND (");
	append_filters(command, table);
	appendStringInfoChar(command, ')');
}

/*
 * When the row's transaction was committed where it was written.  NULL where
 * the publisher does not keep that, or no longer, or we may not ask for it.
 */
static void
append_time(StringInfo command, const KdbRemoteTable *table)
{
	if (walrcv_server_version(LogRepWorkerWalRcvConn) < EXACT_EPOCH_VERSION ||
		!table->readable)
		appendStringInfoString(command, "NULL");
	else
		appendStringInfoString(command,
							   "CASE WHEN pg_catalog.current_setting('track_commit_timestamp')::pg_catalog.bool"
							   " THEN (extract(epoch FROM pg_catalog.pg_xact_commit_timestamp(xmin)"
							   " - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz)"
							   " * 1000000)::pg_catalog.int8 END");
}

static void
append_what(StringInfo command, const KdbRemoteTable *table, const KdbCopySource *source)
{
	append_columns(command, table);
	if (!source->with_times)
		return;
	if (table->columns != NIL)
		appendStringInfoString(command, ", ");
	append_time(command, table);
}

/*
 * A plain table without filters is copied as such; what COPY does not take
 * (partitioned tables) or does not do (filters) goes through a query.  ONLY:
 * tables that inherit from a published one are copied for themselves.
 */
char *
KdbSyncCopyCommand(const KdbRemoteTable *table, const KdbCopySource *source)
{
	char	   *name = quote_qualified_identifier(table->nspname, table->relname);
	bool		plain = table->relkind == RELKIND_RELATION;
	StringInfoData command;

	initStringInfo(&command);
	if (source->range == NULL && plain && table->filters == NIL && !source->with_times)
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
	append_what(&command, table, source);
	if (source->range != NULL)
		append_range(&command, table, source->range, source->relation);
	else
	{
		appendStringInfo(&command, " FROM %s%s WHERE ", plain ? "ONLY " : "", name);
		append_filters(&command, table);
	}
	appendStringInfoString(&command, ") TO STDOUT");
	if (source->binary && !source->with_times)
		appendStringInfoString(&command, " WITH (FORMAT binary)");
	return command.data;
}

/*
 * How many rows of a range there are, and how many of them some transaction wrote
 * that was not finished before xmin (see copy_resume.c).
 */
char *
KdbSyncCountCommand(const KdbRemoteTable *table, const KdbCopyRange *range,
					const char *relation, TransactionId xmin)
{
	StringInfoData command;

	initStringInfo(&command);
	appendStringInfo(&command,
					 "SELECT pg_catalog.count(*)::pg_catalog.text,"
					 " (pg_catalog.count(*) FILTER (WHERE pg_catalog.age(xmin) <= pg_catalog.age('%u'::pg_catalog.xid)))::pg_catalog.text",
					 xmin);
	append_range(&command, table, range, relation);
	return command.data;
}
