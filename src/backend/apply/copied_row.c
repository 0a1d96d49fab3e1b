/*
 * copied_row.c
 *		Rows of an initial copy, applied one by one as streamed INSERTs are.
 *
 * Table synchronisation copies with COPY as long as nothing is in the way.  If
 * rows are, and the subscription resolves conflicts, its rows come through here:
 * the same lookups, decisions, records and routing as for a streamed change.
 *
 * What the publisher says of the versions of its rows (sync/copied_versions.c) comes
 * through here too.
 */
#include "postgres.h"

#include "nodes/value.h"
#include "replication/origin.h"
#include "utils/timestamp.h"

#include "krahodb/origin_nodes.h"

#include "relation_private.h"

/* Copies of a table are not made faster than that one after the other. */
#define COPY_DISTANCE_US	10000

TimestampTz KdbCopiedRowTime = 1;
TimestampTz KdbCopiedVersionsFrom = PG_INT64_MAX;

static KdbWireMessage insert;

/* See apply.h. */
void
KdbCopiedRowNewTime(void)
{
	KdbCopiedRowTime = 1 + Max(GetCurrentTimestamp(), 0) / COPY_DISTANCE_US;
}

/* See apply.h. */
void
KdbApplyCopyBegin(Oid remoteid, const char *nspname, const char *relname,
				  List *columns)
{
	KdbWireMessage relation = {.type = KDB_WIRE_RELATION};
	ListCell   *lc;

	relation.u.relation.relid = remoteid;
	relation.u.relation.nspname = nspname;
	relation.u.relation.relname = relname;
	relation.u.relation.replident = REPLICA_IDENTITY_DEFAULT;
	relation.u.relation.natts = list_length(columns);
	relation.u.relation.atts = palloc0_array(KdbWireAttribute,
											 Max(list_length(columns), 1));
	foreach(lc, columns)
		relation.u.relation.atts[foreach_current_index(lc)].name =
			strVal(lfirst(lc));
	KdbApplyHandleRelation(&relation);

	memset(&insert, 0, sizeof(insert));
	insert.type = KDB_WIRE_INSERT;
	insert.u.row.relid = remoteid;
	insert.u.row.new_row.ncolumns = list_length(columns);
	insert.u.row.new_row.columns =
		MemoryContextAllocZero(ApplyContext,
							   sizeof(KdbWireColumn) * Max(list_length(columns), 1));

	KdbApply.origin = replorigin_session_origin;
	KdbApply.remote_node = KdbOriginNode(KdbApply.origin);
	KdbApply.remote_commit_time = KdbCopiedRowTime;
}

/* See apply.h. */
void
KdbApplyCopiedRow(char **fields, TimestampTz written)
{
	KdbWireTuple *tuple = &insert.u.row.new_row;

	for (int i = 0; i < tuple->ncolumns; i++)
	{
		KdbWireColumn *column = &tuple->columns[i];

		column->kind = fields[i] ? 't' : 'n';
		column->data = fields[i];
		column->length = fields[i] ? strlen(fields[i]) : 0;
	}
	KdbApply.remote_commit_time = written;
	KdbApplyInsert(&insert);
	MemoryContextReset(KdbApplyMessageContext);
}

/* The message's column of that name; NULL if the subscription does not have it. */
static KdbWireColumn *
column_named(List *columns, const char *name)
{
	ListCell   *lc;

	foreach(lc, columns)
	{
		if (strcmp(strVal(lfirst(lc)), name) == 0)
			return &insert.u.row.new_row.columns[foreach_current_index(lc)];
	}
	return NULL;
}

static void
take_columns(List *columns, const KdbCopiedVersion *version)
{
	KdbWireTuple *tuple = &insert.u.row.new_row;

	for (int i = 0; i < tuple->ncolumns; i++)
		tuple->columns[i].kind = 'u';
	for (int i = 0; i < version->ncolumns; i++)
	{
		KdbWireColumn *column = column_named(columns, version->names[i]);
		const char *value = version->values[i];

		if (column == NULL)
			continue;
		column->kind = value ? 't' : 'n';
		column->data = value;
		column->length = value ? strlen(value) : 0;
	}
}

/* Begin with what is said of a key: the row with its columns, and the table that it belongs to. */
static KdbApplyTarget *
begin_version(List *columns, const KdbCopiedVersion *version, KdbApplyRelation **rel, KdbRemoteRow **row)
{
	KdbApplyTarget *target;
	TupleTableSlot *routed;

	KdbApplyBeginStep();
	take_columns(columns, version);
	*rel = KdbApplyRelationOpen(insert.u.row.relid, RowExclusiveLock);
	KdbConvertTuple(*rel, &insert.u.row.new_row, (*rel)->remote.slot, (*rel)->remote.sent);
	*row = &(*rel)->remote;
	if ((*rel)->partitioned)
	{
		target = KdbRoute(*rel, (*row)->slot, &routed);
		*row = KdbRouteRow(*rel, target, *row);
		return target;
	}
	if ((*rel)->target == NULL)
		(*rel)->target = KdbTargetOpen((*rel)->localreloid, RowExclusiveLock, *rel);
	return (*rel)->target;
}

static void
end_version(KdbApplyTarget *target)
{
	ExecClearTuple(target->local);
	KdbApplyEndStep();
	MemoryContextReset(KdbApplyMessageContext);
}

/* See apply.h. */
void
KdbApplyCopiedVersion(List *columns, const KdbCopiedVersion *version)
{
	KdbVersion	true_version = {version->time, version->node};
	KdbApplyRelation *rel;
	KdbRemoteRow *row;
	KdbApplyTarget *target = begin_version(columns, version, &rel, &row);

	if (version->kind == 'i')
		KdbConvergeCopiedClaim(target, row, version, true_version);
	else
		KdbConvergeCopied(rel, target, row, (KdbVersionRecordKind) version->kind, true_version);
	end_version(target);
}

/* See apply.h. */
void
KdbApplyCopiedHistory(List *columns, const KdbCopiedVersion *key, bool live,
					  List *contributions, TimestampTz since)
{
	KdbApplyRelation *rel;
	KdbRemoteRow *row;
	KdbApplyTarget *target = begin_version(columns, key, &rel, &row);

	KdbConvergeCopiedHistory(rel, target, row, live, contributions, since);
	end_version(target);
}

/* See apply.h. */
void
KdbApplyCopyEnd(void)
{
	KdbConvergeEnd();
	KdbApplyRelationsClose();
	KdbApply.remote_commit_time = 0;
	pfree(insert.u.row.new_row.columns);
	insert.u.row.new_row.columns = NULL;
}
