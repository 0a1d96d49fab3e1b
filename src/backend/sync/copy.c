/*
 * copy.c
 *		Rows of the initial copy: COPY TO there into COPY FROM here.
 *
 * They come in text format, which any two versions and schemas agree on as far as
 * the table's types do.  Ranges of large tables come in binary format if each
 * column has the same type on both sides, and one whose binary form means the same
 * on every server; that saves parsing.
 *
 * A plain subscription fails if a row is there already, as in the engine.  One
 * that resolves conflicts does not stop for that: the other node may be written
 * to while it is copied to, or both sides may have rows from the start.  COPY
 * cannot resolve anything, so it is tried first, in a subtransaction, and if a
 * unique index or an exclusion constraint objects, all rows come once more, from the
 * same snapshot, one by one like streamed INSERTs.  A deferrable constraint does not
 * object: its check is a trigger, which does not fire for a worker's changes.  So
 * with one of these, rows come one by one at once.  So they do if something was deleted here
 * that may be newer (copy_deaths.c).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/copy.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "replication/walreceiver.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "sync_private.h"

/*
 * Types whose binary form is the same, and means the same, on each server: none
 * that has OIDs, depends on settings or on the length in an encoding, or belongs to an extension.
 */
static const Oid binary_types[] = {
	BOOLOID, BYTEAOID, CHAROID, INT8OID, INT2OID, INT4OID, TEXTOID,
	FLOAT4OID, FLOAT8OID, BPCHAROID, VARCHAROID, DATEOID, TIMEOID, TIMETZOID,
	TIMESTAMPOID, TIMESTAMPTZOID, INTERVALOID, NUMERICOID, UUIDOID, INETOID,
	CIDROID, MACADDROID, JSONOID, JSONBOID, BITOID, VARBITOID, POINTOID
};

/* Every column that comes must have a place here that can be written. */
void
KdbSyncCheckColumns(const KdbRemoteTable *table, Relation rel)
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

static bool
binary_type(Oid type)
{
	for (int i = 0; i < (int) lengthof(binary_types); i++)
	{
		if (binary_types[i] == type)
			return true;
	}
	return false;
}

/* May rows come in binary format? */
bool
KdbSyncBinarySafe(const KdbRemoteTable *table, Relation rel)
{
	ListCell   *name;
	ListCell   *type;

	forboth(name, table->columns, type, table->types)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel), strVal(lfirst(name)));

		if (!binary_type(lfirst_oid(type)) ||
			TupleDescAttr(RelationGetDescr(rel), attnum - 1)->atttypid != lfirst_oid(type))
			return false;
	}
	return true;
}

static void
start_remote_copy(const KdbRemoteTable *table, const KdbCopySource *source)
{
	WalRcvExecResult *res;

	res = walrcv_exec(LogRepWorkerWalRcvConn, KdbSyncCopyCommand(table, source), 0, NULL);
	if (res->status != WALRCV_OK_COPY_OUT)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not start initial contents copy for table \"%s.%s\": %s",
						table->nspname, table->relname, res->err)));
	walrcv_clear_result(res);
	KdbCopyReceiveStart();
}

static CopyFromState
begin_copy(Relation rel, const KdbRemoteTable *table, bool binary, ParseState *pstate)
{
	List	   *options = NIL;

	if (binary)
		options = list_make1(makeDefElem("format", (Node *) makeString("binary"), -1));
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock,
										 NULL, false, false);
	return BeginCopyFrom(pstate, rel, NULL, NULL, false, KdbCopyReceive,
						 table->columns, options);
}

/* All rows by COPY. */
static void
copy_rows(Relation rel, const KdbRemoteTable *table, const KdbCopySource *source,
		  KdbCopyResult *result)
{
	ParseState *pstate = make_parsestate(NULL);
	CopyFromState cstate;

	result->xid = GetCurrentTransactionId();
	start_remote_copy(table, source);
	cstate = begin_copy(rel, table, source->binary, pstate);
	result->rows = CopyFrom(cstate);
	EndCopyFrom(cstate);
	free_parsestate(pstate);
}

/* See sync_private.h. */
bool
KdbSyncRowsInTheWay(int sqlstate)
{
	return sqlstate == ERRCODE_UNIQUE_VIOLATION || sqlstate == ERRCODE_EXCLUSION_VIOLATION;
}

/*
 * The same in a subtransaction.  Returns false if rows were in the way: nothing
 * is copied then, and the remote copy has been read to its end.
 */
static bool
try_copy_rows(Relation rel, const KdbRemoteTable *table, const KdbCopySource *source,
			  KdbCopyResult *result)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool copied = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		copy_rows(rel, table, source, result);
		ReleaseCurrentSubTransaction();
		copied = true;
	}
	PG_CATCH();
	{
		if (!KdbSyncRowsInTheWay(geterrcode()))
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (!copied)
		KdbCopyReceiveSkip();
	return copied;
}

/*
 * A row that is not copied for the first time is later than one that was: where
 * that was taken away because the publisher's has changed, it comes in its place.
 */
static TimestampTz
row_time(const char *field, bool again)
{
	return Max(field ? strtoll(field, NULL, 10) : 0,
			   KdbCopiedRowTime + (again ? 1 : 0));
}

/*
 * All rows, one by one, with conflict resolution.  The publisher says when each
 * was written: that decides between it and the one that is here.
 */
static void
resolve_rows(Relation rel, const KdbRemoteTable *table, const KdbCopySource *source,
			 KdbCopyResult *result)
{
	KdbCopySource with_times = *source;
	int			ncolumns = list_length(table->columns);
	ParseState *pstate = make_parsestate(NULL);
	ErrorContextCallback errcallback;
	CopyFromState cstate;
	char	  **fields;
	int			nfields;

	result->xid = GetCurrentTransactionId();
	result->rows = 0;
	result->resolved = true;

	with_times.with_times = true;
	start_remote_copy(table, &with_times);
	cstate = begin_copy(rel, table, false, pstate);
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
		KdbApplyCopiedRow(fields, row_time(fields[ncolumns], source->again));
		result->rows++;
	}
	KdbApplyCopyEnd();

	error_context_stack = errcallback.previous;
	EndCopyFrom(cstate);
	free_parsestate(pstate);
}

static bool
has_deferrable_key(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	bool		found = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		found = found || !index->rd_index->indimmediate;
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

/* See sync_private.h. */
bool
KdbSyncTakenUnnoticed(Relation rel)
{
	bool		found = false;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), RowExclusiveLock, NULL))
	{
		Relation	child = relation_open(lfirst_oid(lc), NoLock);

		if (child == rel || child->rd_rel->relispartition)
			found = found || has_deferrable_key(child);
		relation_close(child, NoLock);
	}
	return found;
}

/* Does the subscription say what to do with a row that is there already? */
bool
KdbSyncExistingRowsResolved(void)
{
	KdbResolver resolver =
		(KdbResolver) KdbMyOptions->resolvers.by_type[KDB_CONFLICT_INSERT_EXISTS];

	return resolver != KDB_RESOLVER_ENGINE && resolver != KDB_RESOLVER_ERROR;
}

/* Copy rows of the publisher's table into rel, as the current user. */
KdbCopyResult
KdbSyncCopyRows(Relation rel, const KdbRemoteTable *table, const KdbCopySource *source,
				KdbCopyConflicts conflicts)
{
	KdbCopyResult result = {0};

	if (conflicts == KDB_COPY_RESOLVE && KdbSyncTakenUnnoticed(rel))
		conflicts = KDB_COPY_MERGE;
	if (conflicts == KDB_COPY_FAIL)
		copy_rows(rel, table, source, &result);
	else if (conflicts == KDB_COPY_MERGE)
		resolve_rows(rel, table, source, &result);
	else if (!try_copy_rows(rel, table, source, &result))
	{
		ereport(LOG,
				(errmsg("table \"%s.%s\" has rows already, resolving each one of the initial copy",
						table->nspname, table->relname)));
		resolve_rows(rel, table, source, &result);
	}
	return result;
}
