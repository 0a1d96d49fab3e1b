/*
 * copy.c
 *		The initial copy of a table: COPY TO there into COPY FROM here.
 *
 * The rows come in text format, which any two versions and schemas agree on as
 * far as the table's types do.
 */
#include "postgres.h"

#include "commands/copy.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "pgstat.h"
#include "replication/walreceiver.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "sync_private.h"

/* What has been received and not yet read; belongs to the connection. */
static struct
{
	char	   *data;
	int			len;
} received;

/* Move what is there, but not more than size bytes, to out. */
static int
take_received(char *out, int size)
{
	int			len = Min(received.len, size);

	memcpy(out, received.data, len);
	received.data += len;
	received.len -= len;
	return len;
}

/*
 * Receive the next piece; false at the end of the copy.  Waits without limit
 * as long as the connection holds, as any reader of a COPY does: how long the
 * publisher takes for a row depends on the filter.
 */
static bool
receive_more(void)
{
	for (;;)
	{
		pgsocket	fd = PGINVALID_SOCKET;
		int			len;

		len = walrcv_receive(LogRepWorkerWalRcvConn, &received.data, &fd);
		CHECK_FOR_INTERRUPTS();
		if (len != 0)
		{
			received.len = Max(len, 0);
			return len > 0;
		}

		(void) WaitLatchOrSocket(MyLatch,
								 WL_SOCKET_READABLE | WL_LATCH_SET |
								 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 fd, KDB_SYNC_WAIT_MS,
								 WAIT_EVENT_LOGICAL_SYNC_DATA);
		ResetLatch(MyLatch);
	}
}

/* COPY FROM's data source. */
static int
read_remote(void *outbuf, int minread, int maxread)
{
	int			nread = 0;

	do
	{
		if (received.len == 0 && !receive_more())
			break;
		nread += take_received((char *) outbuf + nread, maxread - nread);
	} while (nread < minread);

	return nread;
}

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
 * A plain table without filters is copied as such; what COPY does not take
 * (partitioned tables) or does not do (filters) goes through a query.  ONLY:
 * tables that inherit from a published one are copied for themselves.
 */
static char *
copy_command(const KdbRemoteTable *table)
{
	char	   *name = quote_qualified_identifier(table->nspname, table->relname);
	bool		plain = table->relkind == RELKIND_RELATION;
	StringInfoData command;

	initStringInfo(&command);
	if (plain && table->filters == NIL)
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
	appendStringInfo(&command, " FROM %s%s", plain ? "ONLY " : "", name);
	append_filters(&command, table);
	appendStringInfoString(&command, ") TO STDOUT");
	return command.data;
}

/* Every column that comes must have a place here that can be written. */
static void
check_columns(const KdbRemoteTable *table, Relation rel)
{
	StringInfoData missing;
	int			nmissing = 0;
	ListCell   *lc;

	initStringInfo(&missing);
	foreach(lc, table->columns)
	{
		char	   *name = strVal(lfirst(lc));
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

		if (attnum > 0 &&
			!TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated)
			continue;
		appendStringInfo(&missing, nmissing++ == 0 ? _("\"%s\"") : _(", \"%s\""),
						 name);
	}
	if (nmissing > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg_plural("logical replication target relation \"%s.%s\" is missing replicated column: %s",
							   "logical replication target relation \"%s.%s\" is missing replicated columns: %s",
							   nmissing, table->nspname, table->relname,
							   missing.data)));
}

static void
start_remote_copy(const KdbRemoteTable *table)
{
	WalRcvExecResult *res;

	res = walrcv_exec(LogRepWorkerWalRcvConn, copy_command(table), 0, NULL);
	if (res->status != WALRCV_OK_COPY_OUT)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not start initial contents copy for table \"%s.%s\": %s",
						table->nspname, table->relname, res->err)));
	walrcv_clear_result(res);
	received.len = 0;
}

/*
 * Copy the rows of the publisher's table of the same name into rel, as the
 * current user.
 */
void
KdbSyncCopyTable(Relation rel)
{
	KdbRemoteTable *table;
	ParseState *pstate;
	CopyFromState cstate;

	table = KdbSyncFetchRemoteTable(get_namespace_name(RelationGetNamespace(rel)),
									RelationGetRelationName(rel));
	CheckSubscriptionRelkind(rel->rd_rel->relkind, table->nspname,
							 table->relname);
	check_columns(table, rel);
	start_remote_copy(table);

	pstate = make_parsestate(NULL);
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock,
										 NULL, false, false);
	cstate = BeginCopyFrom(pstate, rel, NULL, NULL, false, read_remote,
						   table->columns, NIL);
	(void) CopyFrom(cstate);
	EndCopyFrom(cstate);
	free_parsestate(pstate);
}
