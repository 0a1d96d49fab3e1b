/*
 * log.c
 *		krahodb.conflict_log: one row for each conflict.
 *
 * In a database with the extension, the row is written in the transaction that
 * applies (or skips) the change, so there is one if and only if that is committed.
 * It goes to a store of records (record/), which is not replicated and keeps rows
 * for krahodb.conflict_log_retention.
 *
 * A conflict that raises an error leaves no transaction to be written in.  Its
 * row is kept in memory until the worker has left the failed transaction, and
 * gets one of its own (KdbConflictLogFailed).  The worker is started again and
 * fails again, for as long as nobody does anything about it; the row is written
 * only once.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "replication/worker_internal.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/record.h"
#include "conflict_private.h"

int			KdbConflictLogRetention = 7 * 24 * 3600;

/* The columns of type krahodb.conflict_record, in its order. */
#define LOG_COLUMNS(X) \
	X(TIME, TIMESTAMPTZOID) \
	X(SUBID, OIDOID) \
	X(SUBSCRIPTION, TEXTOID) \
	X(RELID, OIDOID) \
	X(SCHEMA, TEXTOID) \
	X(TABLE, TEXTOID) \
	X(TYPE, TEXTOID) \
	X(RESOLUTION, TEXTOID) \
	X(OUTCOME, TEXTOID) \
	X(KEY, JSONBOID) \
	X(LOCAL_ROW, JSONBOID) \
	X(REMOTE_ROW, JSONBOID) \
	X(APPLIED_ROW, JSONBOID) \
	X(LOCAL_TIME, TIMESTAMPTZOID) \
	X(LOCAL_NODE, NUMERICOID) \
	X(LOCAL_ORIGIN, TEXTOID) \
	X(LOCAL_XID, XIDOID) \
	X(REMOTE_TIME, TIMESTAMPTZOID) \
	X(REMOTE_NODE, NUMERICOID) \
	X(REMOTE_XID, XIDOID) \
	X(REMOTE_LSN, PG_LSNOID)

#define AS_INDEX(name, type)	LOG_##name,
#define AS_TYPE(name, type)		type,

typedef enum LogColumn
{
	LOG_COLUMNS(AS_INDEX)
	NCOLUMNS
} LogColumn;

static const Oid column_types[NCOLUMNS] = {LOG_COLUMNS(AS_TYPE)};

static KdbRecordStore conflict_log = {
	.name = "conflict_log",
	.ncolumns = NCOLUMNS,
	.types = column_types
};

typedef struct LogRow
{
	Datum		values[NCOLUMNS];
	bool		isnull[NCOLUMNS];
} LogRow;

/* Row of a conflict that raised an error, in a context of its own. */
static LogRow *failed = NULL;

/* The log is to be rotated once this transaction is over. */
static bool rotation_due = false;

static void
set(LogRow *row, LogColumn column, Datum value)
{
	row->values[column] = value;
	row->isnull[column] = false;
}

static void
set_text(LogRow *row, LogColumn column, const char *value)
{
	set(row, column, CStringGetTextDatum(value));
}

/* Node identities use all of 64 bits. */
static void
set_node(LogRow *row, LogColumn column, uint64 node)
{
	char		digits[32];

	if (node == 0)
		return;
	snprintf(digits, sizeof(digits), UINT64_FORMAT, node);
	set(row, column, DirectFunctionCall3(numeric_in, CStringGetDatum(digits),
										 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

static int64
retention_us(void)
{
	return (int64) KdbConflictLogRetention * USECS_PER_SEC;
}

/*
 * Columns of the replica identity, or of the primary key; NULL if the table has
 * neither.
 */
static bool *
key_columns(Relation rel)
{
	Bitmapset  *key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_IDENTITY_KEY);
	bool	   *wanted;

	if (bms_is_empty(key))
		key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	if (bms_is_empty(key))
		return NULL;
	wanted = palloc(RelationGetNumberOfAttributes(rel) * sizeof(bool));
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		wanted[i] = bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, key);
	return wanted;
}

static void
set_origin(LogRow *row, RepOriginId origin)
{
	char	   *name;

	if (origin == InvalidRepOriginId)
		return;
	if (replorigin_by_oid(origin, true, &name))
		set_text(row, LOG_LOCAL_ORIGIN, name);
	else
		set_text(row, LOG_LOCAL_ORIGIN, psprintf("%u", origin));
}

/* Several local rows: all of them, and the version of the one written last. */
static void
set_local(LogRow *row, const KdbConflictSide *local, int nlocal)
{
	Datum	   *rows = palloc(Max(nlocal, 1) * sizeof(Datum));
	const KdbConflictSide *last = NULL;
	int			nrows = 0;

	for (int i = 0; i < nlocal; i++)
	{
		if (local[i].slot)
			rows[nrows++] = KdbRowToJsonb(local[i].slot, NULL);
		if (last == NULL ||
			(local[i].has_version &&
			 (!last->has_version ||
			  KdbVersionCompare(local[i].version, last->version) > 0)))
			last = &local[i];
	}
	if (nrows > 0)
		set(row, LOG_LOCAL_ROW, nrows == 1 ? rows[0] : KdbJsonbArray(rows, nrows));
	if (last == NULL)
		return;
	if (TransactionIdIsValid(last->xid))
		set(row, LOG_LOCAL_XID, TransactionIdGetDatum(last->xid));
	if (!last->has_version)
		return;
	set(row, LOG_LOCAL_TIME, TimestampTzGetDatum(last->version.ts));
	set_node(row, LOG_LOCAL_NODE, last->version.node);
	set_origin(row, last->origin);
}

static void
set_remote(LogRow *row, const KdbConflictSide *remote)
{
	if (remote->slot)
		set(row, LOG_REMOTE_ROW, KdbRowToJsonb(remote->slot, remote->sent));
	set(row, LOG_REMOTE_TIME, TimestampTzGetDatum(remote->version.ts));
	set_node(row, LOG_REMOTE_NODE, remote->version.node);
	if (TransactionIdIsValid(remote->xid))
		set(row, LOG_REMOTE_XID, TransactionIdGetDatum(remote->xid));
	set(row, LOG_REMOTE_LSN, LSNGetDatum(remote->lsn));
}

static const char *
outcome_name(KdbConflictOutcome outcome)
{
	switch (outcome)
	{
		case KDB_OUTCOME_APPLIED:
			return "applied";
		case KDB_OUTCOME_SKIPPED:
			return "skipped";
		case KDB_OUTCOME_ERROR:
			break;
	}
	return "error";
}

/* In the current memory context. */
static LogRow *
form_row(Relation rel, const KdbDecision *decision, TupleTableSlot *search,
		 const KdbConflictSide *local, int nlocal, const KdbConflictSide *remote,
		 TupleTableSlot *applied)
{
	LogRow	   *row = palloc0(sizeof(LogRow));
	bool	   *key = search ? key_columns(rel) : NULL;

	memset(row->isnull, true, sizeof(row->isnull));
	set(row, LOG_TIME, TimestampTzGetDatum(GetCurrentTimestamp()));
	set(row, LOG_SUBID, ObjectIdGetDatum(MySubscription->oid));
	set_text(row, LOG_SUBSCRIPTION, MySubscription->name);
	set(row, LOG_RELID, ObjectIdGetDatum(RelationGetRelid(rel)));
	set_text(row, LOG_SCHEMA, get_namespace_name(RelationGetNamespace(rel)));
	set_text(row, LOG_TABLE, RelationGetRelationName(rel));
	set_text(row, LOG_TYPE, KdbConflictTypeName(decision->conflict));
	set_text(row, LOG_RESOLUTION, KdbResolverName(decision->resolver));
	set_text(row, LOG_OUTCOME, outcome_name(KdbConflictOutcomeOf(decision->action)));
	if (key)
		set(row, LOG_KEY, KdbRowToJsonb(search, key));
	set_local(row, local, nlocal);
	set_remote(row, remote);
	if (applied)
		set(row, LOG_APPLIED_ROW, KdbRowToJsonb(applied, NULL));
	return row;
}

static void
append(LogRow *row)
{
	if (KdbRecordAppend(&conflict_log, row->values, row->isnull) &&
		KdbRecordRotationDue(&conflict_log, retention_us()))
		rotation_due = true;
}

/* See conflict_private.h. */
void
KdbLogConflict(Relation rel, const KdbDecision *decision, TupleTableSlot *search,
			   const KdbConflictSide *local, int nlocal,
			   const KdbConflictSide *remote, TupleTableSlot *applied)
{
	bool		fails = decision->action == KDB_ACTION_ERROR;
	MemoryContext context;
	MemoryContext old;
	LogRow	   *row;

	if (KdbConflictLogRetention == 0 || !KdbRecordPresent(&conflict_log))
		return;
	context = AllocSetContextCreate(fails ? TopMemoryContext : CurrentMemoryContext,
									"KrahoDB conflict log row", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	row = form_row(rel, decision, search, local, nlocal, remote, applied);
	if (fails)
		failed = row;
	else
		append(row);
	MemoryContextSwitchTo(old);
	if (!fails)
		MemoryContextDelete(context);
}

static bool
same_value(const LogRow *row, LogColumn column, TupleTableSlot *slot)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column + 1, &isnull);
	bool		by_value = column == LOG_RELID;

	if (isnull || row->isnull[column])
		return isnull == row->isnull[column];
	return datum_image_eq(value, row->values[column], by_value, by_value ? sizeof(Oid) : -1);
}

/* Has an earlier attempt at the same remote transaction failed so? */
static bool
logged_before(const LogRow *row)
{
	KdbRecordScan scan = {.store = &conflict_log};
	TupleTableSlot *slot;
	bool		found = false;

	scan.snapshot = GetActiveSnapshot();
	scan.nkeys = 2;
	scan.columns[0] = LOG_SUBID + 1;
	scan.values[0] = row->values[LOG_SUBID];
	scan.columns[1] = LOG_REMOTE_LSN + 1;
	scan.values[1] = row->values[LOG_REMOTE_LSN];
	KdbRecordScanBegin(&scan);
	while (!found && (slot = KdbRecordScanNext(&scan)) != NULL)
		found = same_value(row, LOG_RELID, slot) && same_value(row, LOG_TYPE, slot) &&
			same_value(row, LOG_OUTCOME, slot) && same_value(row, LOG_KEY, slot);
	KdbRecordScanEnd(&scan);
	return found;
}

/* See conflict.h. */
void
KdbConflictLogFailed(void)
{
	LogRow	   *row = failed;

	if (row == NULL)
		return;
	failed = NULL;
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (!logged_before(row))
			append(row);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		/* The worker is on its way out because of the conflict, not of this. */
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
}

/* See conflict.h. */
void
KdbConflictLogMaintain(void)
{
	RepOriginId origin = replorigin_session_origin;
	MemoryContext old = CurrentMemoryContext;

	if (!rotation_due)
		return;
	rotation_due = false;
	Assert(!IsTransactionState());

	/* A local transaction; the engine leaves its time behind in the session. */
	replorigin_session_origin = InvalidRepOriginId;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	KdbRecordRotate(&conflict_log, retention_us());
	PopActiveSnapshot();
	CommitTransactionCommand();
	replorigin_session_origin = origin;
	replorigin_session_origin_timestamp = 0;
	MemoryContextSwitchTo(old);
}

/* See conflict.h. */
int
KdbConflictLogPrune(TimestampTz before, int *busy)
{
	return KdbRecordPrune(&conflict_log, before, busy);
}
