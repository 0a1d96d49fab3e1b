/*
 * copied_versions.c
 *		The true versions of the rows of an initial copy.
 *
 * All rows of a copy are written by one transaction here, dated to the beginning of
 * 2000: any change that meets them wins.  That is right for what is older than the
 * publisher's retention horizon: whatever may still arrive is newer.  Of the rest the
 * publisher says the truth (conflict/table_versions.c there): live rows,
 * deaths and claims of unique values that are newer become version records here, as if
 * they had been applied.  They are committed before the rows are visible, or with
 * them.
 *
 * LIVE ROWS FIRST.  The publisher also says "dead" of a tuple that an update of some
 * unique column has superseded; its key is alive then, at that version or a later one, which
 * has to be known before.
 *
 * MERGED COLUMNS.  Of the same rows the publisher also says what their merged columns consist
 * of (apply/merged_listed.c there), as a copied row is one value.
 *
 * FLOORS.  This node may have streams of others that began before the copy.  Their
 * changes until the horizon have been applied by the publisher, so what they have done
 * is in the copy, or has been superseded and forgotten there; they must not be
 * applied again.  The publisher names those nodes, and a FLOOR record for
 * each says until when changes are to be left out, and those of merged columns until
 * which position of the node's stream; not if a row filter or a column
 * list leaves a part of the table out of the copy.  (What came by such a stream before
 * the copy, and is older than the horizon, is not taken back: subscribe to the
 * others with enabled = false first, and enable that when the copy is finished.)
 *
 * HOLES.  What another node had committed before the slot of the subscription to it was made comes by no stream, so
 * it must be in the copy.  The publisher may not have applied it yet: then there is no
 * copy.  Its floors tell, the start of our own streams is remembered (shared/origin_nodes.c).
 *
 * THE HORIZON of the publisher is held from before the snapshot until its versions have
 * been listed.  That it is not known there, for a moment after its start or before all
 * peers of a new node have answered, is an error that passes: the copy is tried again,
 * with disable_on_error too.
 *
 * A stock publisher, and a database there or here without the extension, cannot
 * do that; then copied rows count as older than any change, as they did.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_subscription_rel.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/walreceiver.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "krahodb/clock.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/stream.h"
#include "krahodb/version_record.h"

#include "sync_private.h"

enum
{
	KIND,
	TIME,
	NODE,
	NAMES,
	VALUES,
	NCOLUMNS
};

/* Of the histories of merged columns. */
enum
{
	HISTORY_KEY,
	HISTORY_LIVE,
	HISTORY_NAMES,
	HISTORY_VALUES,
	HISTORY_TIME,
	HISTORY_NODE,
	HISTORY_CONTRIBUTED,
	HISTORY_COLUMNS
};

/* The publisher's horizon, held there; 0: versions are not asked for. */
static TimestampTz held = 0;

/* Without the extension, a function of that name may be anybody's. */
static bool
has_function(void)
{
	List	   *rows = KdbStreamQuery(LogRepWorkerWalRcvConn,
									  "SELECT pg_catalog.to_regprocedure('krahodb.table_versions(regclass,bigint)')"
									  " FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'krahodb'",
									  1, "functions of the extension");

	return rows != NIL && ((char **) linitial(rows))[0] != NULL;
}

static char **
strings_of(const char *array, int *n)
{
	Datum		value = OidInputFunctionCall(F_ARRAY_IN, (char *) array, TEXTOID, -1);
	Datum	   *elements;
	bool	   *isnull;
	char	  **result;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &isnull, n);
	result = palloc((*n + 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		result[i] = isnull[i] ? NULL : TextDatumGetCString(elements[i]);
	return result;
}

/* The position of a floor; 0: none was told. */
static XLogRecPtr
position_of(char **values, int nvalues)
{
	return nvalues > 0 && values[0] ? strtou64(values[0], NULL, 10) : InvalidXLogRecPtr;
}

/* The subscription here that the origin is of, if it streams changes of the table; else InvalidOid. */
static Oid
subscription_of(RepOriginId origin, Oid relid)
{
	char	   *name;
	Oid			subid;
	XLogRecPtr	lsn;

	if (!replorigin_by_oid(origin, true, &name) || strncmp(name, "pg_", 3) != 0)
		return InvalidOid;
	subid = (Oid) strtoul(name + 3, NULL, 10);
	return GetSubscriptionRelState(subid, relid, &lsn) == SUBREL_STATE_READY ? subid : InvalidOid;
}

/* The publisher has all of a node's changes until the position; do others come by our own subscriptions to that node? */
static void
require_no_hole(Oid relid, uint64 node, XLogRecPtr position)
{
	RepOriginId origin = InvalidRepOriginId;

	while ((origin = KdbNextOriginOf(node, origin)) != InvalidRepOriginId)
	{
		XLogRecPtr	start = KdbOriginStart(origin);
		Oid			subid;

		if (start <= position)
			continue;
		subid = subscription_of(origin, relid);
		if (OidIsValid(subid) && subid != MySubscription->oid)
			ereport(ERROR,
					(errcode(ERRCODE_LOCK_NOT_AVAILABLE),	/* passes by itself */
					 errmsg("the publisher has not applied changes of another node yet that will not come by subscription \"%s\"",
							get_subscription_name(subid, false)),
					 errdetail("It has applied that node's changes until %X/%X, and the subscription's stream begins at %X/%X.",
							   LSN_FORMAT_ARGS(position), LSN_FORMAT_ARGS(start)),
					 errhint("If this lasts, see view krahodb.horizon on the publisher.")));
	}
}

/*
 * Before there is a slot: it would be left, and those of many tables are soon all that there are.  What the publisher
 * has applied now it has applied in the snapshot as well.
 */
static void
look_for_holes(void)
{
	Oid			relid = MyLogicalRepWorker->relid;
	char	   *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
	List	   *rows = KdbStreamQueryNotNull(LogRepWorkerWalRcvConn,
									  psprintf("SELECT node, \"values\" FROM krahodb.table_versions(pg_catalog.to_regclass(%s), %lld)",
											   quote_literal_cstr(name), (long long) PG_INT64_MAX),
									  2, "what has been applied of other nodes");
	ListCell   *lc;

	foreach(lc, rows)
	{
		char	  **row = lfirst(lc);
		int			nvalues;
		char	  **values = strings_of(row[1], &nvalues);

		require_no_hole(relid, strtou64(row[0], NULL, 10), position_of(values, nvalues));
	}
}

/* See sync_private.h. */
void
KdbSyncVersionsPrepare(void)
{
	KdbPublisher publisher;
	char	  **row;

	held = 0;
	KdbCopiedVersionsFrom = PG_INT64_MAX;
	KdbStreamIdentify(LogRepWorkerWalRcvConn, &publisher);
	if (publisher.krahodb_version == 0 || !publisher.plugin_allowed ||
		!KdbOptionsCompareTimes(KdbMyOptions) || !KdbVersionRecordsPresent())
		return;
	if (!has_function())
	{
		ereport(LOG,
				(errmsg("copied rows of subscription \"%s\" count as older than any change because the publisher's database does not have extension krahodb",
						MySubscription->name)));
		return;
	}
	row = KdbStreamQueryRow(LogRepWorkerWalRcvConn, "SELECT krahodb.hold_horizon()", 1,
							"the retention horizon");
	held = strtoll(row[0], NULL, 10);
	if (held == 0)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),	/* passes by itself */
				 errmsg("the publisher's retention horizon is not known yet"),
				 errdetail("It is needed for the versions of the rows that are copied. If this lasts, see view krahodb.horizon on the publisher.")));
	look_for_holes();
}

/* The same, of names of columns. */
static char **
names_of(const char *array, int *n)
{
	char	  **result = strings_of(array, n);

	for (int i = 0; i < *n; i++)
	{
		if (result[i] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg_internal("publisher sent a version of a column without a name")));
	}
	return result;
}

/* Of the kinds of versions, those that a publisher may tell of. */
static char
kind_of(const char *kind)
{
	switch (kind[0])
	{
		case KDB_RECORD_TRUTH:
		case KDB_RECORD_DEAD:
		case KDB_RECORD_CLAIM:
		case KDB_RECORD_FLOOR:
		case 'i':
			return kind[0];
	}
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg_internal("publisher sent a version of unknown kind \"%s\"", kind)));
}

/* Tables that rows are written to. */
static void
add_to_tables(Relation rel, const KdbVersionRecord *record)
{
	KdbRecordedKey none = {0};
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), AccessShareLock, NULL))
	{
		if (lfirst_oid(lc) == RelationGetRelid(rel) || get_rel_relispartition(lfirst_oid(lc)))
			KdbVersionRecordAdd(lfirst_oid(lc), record, &none, InvalidOid, NULL);
	}
}

static void
add_floor(Relation rel, TimestampTz until, uint64 node, uint64 position)
{
	KdbVersionRecord record = {KDB_RECORD_FLOOR, {until, node}, {(TimestampTz) position, node}, true};

	add_to_tables(rel, &record);
}

/* Behind the columns of the key comes what is claimed of one index. */
static void
take_index(KdbCopiedVersion *version)
{
	if (version->kind != 'i')
		return;
	if (version->ncolumns == 0 || version->values[version->ncolumns - 1] == NULL)
		elog(ERROR, "publisher sent a claim without values");
	version->ncolumns--;
	version->index = version->names[version->ncolumns];
	version->claimed = strings_of(version->values[version->ncolumns], &version->nclaimed);
}

/* Until when, and up to where, the publisher had applied all of a node. */
static void
take_floor(const KdbRemoteTable *table, Relation rel, const KdbCopiedVersion *floor)
{
	uint64		position = position_of(floor->values, floor->ncolumns);

	require_no_hole(RelationGetRelid(rel), floor->node, position);
	if (!table->partial)
		add_floor(rel, floor->time, floor->node, position);
}

static TimestampTz
apply_versions(const KdbRemoteTable *table, Relation rel, List *rows)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB copied version",
												  ALLOCSET_SMALL_SIZES);
	TimestampTz newest = 0;
	ListCell   *lc;

	foreach(lc, rows)
	{
		char	  **row = lfirst(lc);
		MemoryContext old = MemoryContextSwitchTo(context);
		KdbCopiedVersion version = {0};
		int			nvalues;

		version.kind = kind_of(row[KIND]);
		version.time = strtoll(row[TIME], NULL, 10);
		version.node = strtou64(row[NODE], NULL, 10);
		newest = Max(newest, version.time);
		version.names = names_of(row[NAMES], &version.ncolumns);
		version.values = strings_of(row[VALUES], &nvalues);
		if (nvalues != version.ncolumns)
			elog(ERROR, "publisher sent a version of %d columns with %d values",
				 version.ncolumns, nvalues);
		take_index(&version);
		if (version.kind != KDB_RECORD_FLOOR)
			KdbApplyCopiedVersion(table->columns, &version);
		else
			take_floor(table, rel, &version);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
	return newest;
}

static bool
same_history(char **row, char **other)
{
	return strcmp(row[HISTORY_KEY], other[HISTORY_KEY]) == 0;
}

static KdbCopiedContribution *
read_contribution(char **row)
{
	KdbCopiedContribution *contribution = palloc(sizeof(KdbCopiedContribution));

	contribution->time = strtoll(row[HISTORY_TIME], NULL, 10);
	contribution->node = strtou64(row[HISTORY_NODE], NULL, 10);
	contribution->fields = strings_of(row[HISTORY_CONTRIBUTED], &contribution->nfields);
	return contribution;
}

/* The history that begins with row number i; returns the number of the next one. */
static int
apply_history(const KdbRemoteTable *table, List *rows, int i, TimestampTz *newest)
{
	char	  **first = list_nth(rows, i);
	KdbCopiedVersion key = {0};
	List	   *contributions = NIL;
	int			nvalues;

	key.names = names_of(first[HISTORY_NAMES], &key.ncolumns);
	key.values = strings_of(first[HISTORY_VALUES], &nvalues);
	if (nvalues != key.ncolumns)
		elog(ERROR, "publisher sent a key of %d columns with %d values", key.ncolumns, nvalues);
	for (; i < list_length(rows) && same_history(first, list_nth(rows, i)); i++)
	{
		KdbCopiedContribution *contribution = read_contribution(list_nth(rows, i));

		*newest = Max(*newest, contribution->time);
		contributions = lappend(contributions, contribution);
	}
	KdbApplyCopiedHistory(table->columns, &key, first[HISTORY_LIVE][0] == 't', contributions, held);
	return i;
}

static TimestampTz
apply_histories(const KdbRemoteTable *table, List *rows)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB copied history",
												  ALLOCSET_SMALL_SIZES);
	TimestampTz newest = 0;

	for (int i = 0; i < list_length(rows);)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		i = apply_history(table, rows, i, &newest);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
	return newest;
}

/* Versions are told of keys. */
static bool
has_key(const KdbRemoteTable *table)
{
	return KdbStreamQuery(LogRepWorkerWalRcvConn,
						  psprintf("SELECT 1 FROM pg_catalog.pg_index WHERE indrelid OPERATOR(pg_catalog.=) %u"
								   " AND (indisprimary OR indisreplident)", table->relid),
						  1, "key of the table") != NIL;
}

static void
release_horizon(void)
{
	(void) KdbStreamQuery(LogRepWorkerWalRcvConn, "SELECT krahodb.release_horizon()", 1,
						  "the retention horizon");
}

/* See sync_private.h. */
void
KdbSyncNoteAgain(Relation rel, XLogRecPtr position)
{
	const char *snapshot = KdbStreamQueryRow(LogRepWorkerWalRcvConn, "SELECT pg_catalog.pg_current_snapshot()",
											 1, "snapshot")[0];
	KdbVersionRecord record = {KDB_RECORD_AGAIN, {KdbCopiedRowTime, MySubscription->oid}, {(TimestampTz) position, 0}};

	record.merged = DatumGetByteaP(PointerGetDatum(cstring_to_text(snapshot)));
	add_to_tables(rel, &record);
}

/* See sync_private.h. */
void
KdbSyncVersionsCopy(const KdbRemoteTable *table, Relation rel)
{
	KdbPublisher publisher;
	MemoryContext context;
	MemoryContext old;
	TimestampTz newest;
	TimestampTz contributed;
	List	   *rows;
	List	   *histories;

	if (held == 0)
		return;
	if (table->as_ancestor)
	{
		release_horizon();
		held = 0;
		return;
	}
	context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB copied versions",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	rows = KdbStreamQueryNotNull(LogRepWorkerWalRcvConn,
						  psprintf("SELECT kind, \"time\", node, columns, \"values\""
								   " FROM krahodb.table_versions(%u, %lld)"
								   " ORDER BY kind OPERATOR(pg_catalog.=) 't' DESC",
								   table->relid, (long long) held),
						  NCOLUMNS, "versions of rows");
	histories = KdbStreamQueryNotNull(LogRepWorkerWalRcvConn,
							   psprintf("SELECT key, live, columns, \"values\", \"time\", node, contributed"
										" FROM krahodb.merged_history(%u, %lld)",
										table->relid, (long long) held),
							   HISTORY_COLUMNS, "histories of merged columns");
	release_horizon();

	/* The copied rows show this node in their versions. */
	KdbStreamIdentify(LogRepWorkerWalRcvConn, &publisher);
	KdbRememberOriginNode(replorigin_session_origin, publisher.node);
	KdbApplyCopyBegin(table->relid, table->nspname, table->relname, table->columns);
	newest = apply_versions(table, rel, rows);
	contributed = apply_histories(table, histories);
	KdbClockBeforeApply(Max(newest, contributed), NULL);
	KdbApplyCopyEnd();
	KdbClockReached();
	if (has_key(table))
		KdbCopiedVersionsFrom = held;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	held = 0;
}
