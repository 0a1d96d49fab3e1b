/*
 * copy.c
 *		The initial copy of a table: COPY TO there into COPY FROM here.
 *
 * The rows come in text format, which any two versions and schemas agree on as
 * far as the table's types do.
 *
 * A plain subscription fails if a row is there already, as in the engine.  One
 * that resolves conflicts does not stop for that: the other node may be written
 * to while it is copied to, or both sides may have rows from the start.  COPY
 * cannot resolve anything, so it is tried first, in a subtransaction, and if a
 * unique index objects, all rows come once more, from the same snapshot, one by
 * one like streamed INSERTs.
 */
#include "postgres.h"

#include "access/xact.h"
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
#include "utils/resowner.h"

#include "sync_private.h"

/* What has been received and not yet read; belongs to the connection. */
static struct
{
	char	   *data;
	int			len;
	bool		ended;			/* nothing more comes */
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
	while (!received.ended)
	{
		pgsocket	fd = PGINVALID_SOCKET;
		int			len;

		len = walrcv_receive(LogRepWorkerWalRcvConn, &received.data, &fd);
		CHECK_FOR_INTERRUPTS();
		if (len > 0)
		{
			received.len = len;
			return true;
		}
		if (len < 0)
		{
			received.ended = true;
			break;
		}

		(void) WaitLatchOrSocket(MyLatch,
								 WL_SOCKET_READABLE | WL_LATCH_SET |
									 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 fd, KDB_SYNC_WAIT_MS,
								 WAIT_EVENT_LOGICAL_SYNC_DATA);
		ResetLatch(MyLatch);
	}
	return false;
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
start_remote_copy(const KdbRemoteTable *table, bool with_times)
{
	WalRcvExecResult *res;

	res = walrcv_exec(LogRepWorkerWalRcvConn,
					  KdbSyncCopyCommand(table, with_times), 0, NULL);
	if (res->status != WALRCV_OK_COPY_OUT)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not start initial contents copy for table \"%s.%s\": %s",
						table->nspname, table->relname, res->err)));
	walrcv_clear_result(res);
	received.len = 0;
	received.ended = false;
}

static CopyFromState
begin_copy(Relation rel, const KdbRemoteTable *table, ParseState *pstate)
{
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock,
										 NULL, false, false);
	return BeginCopyFrom(pstate, rel, NULL, NULL, false, read_remote,
						 table->columns, NIL);
}

/* All rows by COPY. */
static void
copy_rows(Relation rel, const KdbRemoteTable *table)
{
	ParseState *pstate = make_parsestate(NULL);
	CopyFromState cstate;

	start_remote_copy(table, false);
	cstate = begin_copy(rel, table, pstate);
	(void) CopyFrom(cstate);
	EndCopyFrom(cstate);
	free_parsestate(pstate);
}

/*
 * The same in a subtransaction.  Returns false if rows were in the way: nothing
 * is copied then, and the remote copy has been read to its end.
 */
static bool
try_copy_rows(Relation rel, const KdbRemoteTable *table)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool copied = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		copy_rows(rel, table);
		ReleaseCurrentSubTransaction();
		copied = true;
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_UNIQUE_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	while (!copied && receive_more())
		continue;
	return copied;
}

static TimestampTz
row_time(const char *field)
{
	return field ? Max(strtoll(field, NULL, 10), KDB_COPIED_ROW_TIMESTAMP) :
				   KDB_COPIED_ROW_TIMESTAMP;
}

/*
 * All rows, one by one, with conflict resolution.  The publisher says when each
 * was written: that decides between it and the one that is here.
 */
static void
resolve_rows(Relation rel, const KdbRemoteTable *table)
{
	int			ncolumns = list_length(table->columns);
	ParseState *pstate = make_parsestate(NULL);
	ErrorContextCallback errcallback;
	CopyFromState cstate;
	char	  **fields;
	int			nfields;

	start_remote_copy(table, true);
	cstate = begin_copy(rel, table, pstate);
	errcallback.callback = CopyFromErrorCallback;
	errcallback.arg = cstate;
	errcallback.previous = error_context_stack;
	error_context_stack = &errcallback;

	KdbApplyCopyBegin(table->relid, table->nspname, table->relname,
					  table->columns);
	while (NextCopyFromRawFields(cstate, &fields, &nfields))
	{
		CHECK_FOR_INTERRUPTS();
		if (nfields != ncolumns + 1)
			ereport(ERROR,
					(errcode(ERRCODE_BAD_COPY_FILE_FORMAT),
					 errmsg("initial copy of table \"%s.%s\" sent a row of %d columns, %d expected",
							table->nspname, table->relname, nfields, ncolumns + 1)));
		KdbApplyCopiedRow(fields, row_time(fields[ncolumns]));
	}
	KdbApplyCopyEnd();

	error_context_stack = errcallback.previous;
	EndCopyFrom(cstate);
	free_parsestate(pstate);
}

/* Does the subscription say what to do with a row that is there already? */
static bool
existing_rows_resolved(void)
{
	KdbResolver resolver =
		(KdbResolver) KdbMyOptions->resolvers.by_type[KDB_CONFLICT_INSERT_EXISTS];

	return resolver != KDB_RESOLVER_ENGINE && resolver != KDB_RESOLVER_ERROR;
}

/*
 * Copy the rows of the publisher's table of the same name into rel, as the
 * current user.
 */
void
KdbSyncCopyTable(Relation rel)
{
	KdbRemoteTable *table;

	table = KdbSyncFetchRemoteTable(get_namespace_name(RelationGetNamespace(rel)),
									RelationGetRelationName(rel));
	CheckSubscriptionRelkind(rel->rd_rel->relkind, table->nspname,
							 table->relname);
	check_columns(table, rel);

	if (!existing_rows_resolved())
		copy_rows(rel, table);
	else if (!try_copy_rows(rel, table))
	{
		ereport(LOG,
				(errmsg("table \"%s.%s\" has rows already, resolving each one of the initial copy",
						table->nspname, table->relname)));
		resolve_rows(rel, table);
	}
}
