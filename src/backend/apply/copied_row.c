/*
 * copied_row.c
 *		Rows of an initial copy, applied one by one as streamed INSERTs are.
 *
 * Table synchronisation copies with COPY as long as nothing is in the way.  If
 * rows are, and the subscription resolves conflicts, its rows come through here:
 * the same lookups, decisions, records and routing as for a streamed change.
 */
#include "postgres.h"

#include "nodes/value.h"
#include "replication/origin.h"

#include "apply_private.h"

static KdbWireMessage insert;

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
	KdbApply.remote_node = 0;
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

/* See apply.h. */
void
KdbApplyCopyEnd(void)
{
	KdbApplyRelationsClose();
	KdbApply.remote_commit_time = 0;
	pfree(insert.u.row.new_row.columns);
	insert.u.row.new_row.columns = NULL;
}
