/*
 * report.c
 *		The record of a conflict: one line in the server's log.
 *
 * Wording is PostgreSQL 18's ("conflict detected on relation ...: conflict=..."),
 * so that what people grep for there finds the same here; how it was resolved
 * follows in the same line.
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/detoast.h"
#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "conflict_private.h"

/* What goes into the log at most, so that a line stays one that can be read. */
#define VALUE_LIMIT		64		/* bytes of a value */
#define ROW_LIMIT		1024	/* bytes of a row, after which values are left out */
#define ROWS_LIMIT		4		/* rows that stood in the way */
#define DETOAST_LIMIT	65536	/* bytes; longer values are not even looked at */

static bool raised_error = false;	/* never unset: the error ends the process */

/* See conflict.h. */
bool
KdbConflictRaisedError(void)
{
	return raised_error;
}

static int
error_code(KdbConflictType type)
{
	switch (type)
	{
		case KDB_CONFLICT_INSERT_EXISTS:
		case KDB_CONFLICT_UPDATE_EXISTS:
		case KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS:
			return ERRCODE_UNIQUE_VIOLATION;
		default:
			return ERRCODE_T_R_SERIALIZATION_FAILURE;
	}
}

/* "modified by origin "x" in transaction 7 at ...", or locally */
static void
append_writer(StringInfo buf, const KdbConflictSide *side, const char *verb)
{
	char	   *origin_name;

	appendStringInfoString(buf, verb);
	if (!side->has_version)
	{
		appendStringInfo(buf, " in transaction %u", side->xid);
		return;
	}
	if (side->origin == InvalidRepOriginId)
		appendStringInfoString(buf, " locally");
	else if (replorigin_by_oid(side->origin, true, &origin_name))
		appendStringInfo(buf, " by origin \"%s\"", origin_name);
	else
		appendStringInfoString(buf, " by a non-existent origin");
	appendStringInfo(buf, " in transaction %u at %s", side->xid,
					 timestamptz_to_str(side->version.ts));
}

/* First sentence of the detail, by type, as PostgreSQL 18 and 19 say it. */
static void
append_cause(StringInfo buf, KdbOperation operation, KdbConflictType type,
			 const KdbConflictSide *local, int nlocal)
{
	switch (type)
	{
		case KDB_CONFLICT_INSERT_EXISTS:
		case KDB_CONFLICT_UPDATE_EXISTS:
		case KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS:
			for (int i = 0; i < Min(nlocal, ROWS_LIMIT); i++)
			{
				if (i > 0)
					appendStringInfoChar(buf, ' ');
				appendStringInfo(buf, "Key already exists in unique index \"%s\", ",
								 get_rel_name(local[i].index));
				append_writer(buf, &local[i], "modified");
				appendStringInfoChar(buf, '.');
			}
			break;
		case KDB_CONFLICT_UPDATE_ORIGIN_DIFFERS:
			append_writer(buf, local, "Updating the row that was modified");
			appendStringInfoChar(buf, '.');
			break;
		case KDB_CONFLICT_DELETE_ORIGIN_DIFFERS:
			append_writer(buf, local, "Deleting the row that was modified");
			appendStringInfoChar(buf, '.');
			break;
		case KDB_CONFLICT_UPDATE_DELETED:
			append_writer(buf, local, operation == KDB_INSERT ?
						  "The row to be inserted was deleted" :
						  "The row to be updated was deleted");
			appendStringInfoChar(buf, '.');
			break;
		case KDB_CONFLICT_UPDATE_MISSING:
			appendStringInfoString(buf, "Could not find the row to be updated.");
			break;
		case KDB_CONFLICT_DELETE_MISSING:
			appendStringInfoString(buf, "Could not find the row to be deleted.");
			break;
		case KDB_CONFLICT_NONE:
			break;
	}
}

static void
append_value(StringInfo buf, Oid type, bool varlena, Datum datum)
{
	Oid			function;
	bool		is_varlena;
	char	   *value;
	int			len;

	if (varlena && toast_raw_datum_size(datum) > DETOAST_LIMIT)
	{
		appendStringInfo(buf, "<%zu bytes>", (size_t) toast_raw_datum_size(datum) - VARHDRSZ);
		return;
	}
	getTypeOutputInfo(type, &function, &is_varlena);
	value = OidOutputFunctionCall(function, datum);
	len = strlen(value);
	if (len <= VALUE_LIMIT)
		appendBinaryStringInfo(buf, value, len);
	else
	{
		appendBinaryStringInfo(buf, value, pg_mbcliplen(value, len, VALUE_LIMIT));
		appendStringInfoString(buf, "...");
	}
	pfree(value);
}

/*
 * A row as "(1, abc, null)"; unlike ExecBuildSlotValueDescription all columns,
 * since the log belongs to the administrator.
 */
static void
append_row(StringInfo buf, TupleTableSlot *slot)
{
	TupleDesc	desc = slot->tts_tupleDescriptor;
	int			start = buf->len;
	bool		first = true;

	slot_getallattrs(slot);
	appendStringInfoChar(buf, '(');
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		if (!first)
			appendStringInfoString(buf, ", ");
		first = false;
		if (buf->len - start > ROW_LIMIT)
		{
			appendStringInfoString(buf, "...");
			break;
		}
		if (slot->tts_isnull[i])
			appendStringInfoString(buf, "null");
		else
			append_value(buf, att->atttypid, att->attlen == -1, slot->tts_values[i]);
	}
	appendStringInfoChar(buf, ')');
}

/* "Key (id)=(1)" of the replica identity, if the table has one. */
static void
append_key(StringInfo buf, EState *estate, ResultRelInfo *relinfo, TupleTableSlot *search)
{
	Relation	rel = relinfo->ri_RelationDesc;
	Oid			identity = RelationGetReplicaIndex(rel);

	if (!OidIsValid(identity))
		identity = RelationGetPrimaryKeyIndex(rel);
	if (search == NULL || relinfo->ri_IndexRelationDescs == NULL)
		return;
	for (int i = 0; i < relinfo->ri_NumIndices; i++)
	{
		Relation	index = relinfo->ri_IndexRelationDescs[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		char	   *description;

		if (index == NULL || RelationGetRelid(index) != identity)
			continue;
		FormIndexDatum(relinfo->ri_IndexRelationInfo[i], search, estate, values, isnull);
		description = BuildIndexValueDescription(index, values, isnull);
		if (description)
			appendStringInfo(buf, "Key %s; ", description);
	}
}

static void
append_rows(StringInfo buf, const KdbConflictSide *local, int nlocal,
			const KdbConflictSide *remote)
{
	const char *separator = "";

	for (int i = 0; i < Min(nlocal, ROWS_LIMIT); i++)
	{
		if (local[i].slot == NULL)
			continue;
		appendStringInfo(buf, "%sexisting local row ", separator);
		append_row(buf, local[i].slot);
		separator = "; ";
	}
	if (nlocal > ROWS_LIMIT)
		appendStringInfo(buf, "%s%d more", separator, nlocal - ROWS_LIMIT);
	if (remote->slot)
	{
		appendStringInfo(buf, "%sremote row ", separator);
		append_row(buf, remote->slot);
		separator = "; ";
	}
	appendStringInfo(buf, "%sremote version %s, node " UINT64_FORMAT, separator,
					 timestamptz_to_str(remote->version.ts), remote->version.node);
	for (int i = 0; i < Min(nlocal, ROWS_LIMIT); i++)
	{
		if (local[i].has_version)
			appendStringInfo(buf, "; local version %s, node " UINT64_FORMAT,
							 timestamptz_to_str(local[i].version.ts),
							 local[i].version.node);
	}
	appendStringInfoChar(buf, '.');
}

static const char *
outcome(KdbAction action)
{
	switch (KdbConflictOutcomeOf(action))
	{
		case KDB_OUTCOME_APPLIED:
			return "remote change applied";
		case KDB_OUTCOME_SKIPPED:
			return "remote change skipped";
		case KDB_OUTCOME_ERROR:
			break;
	}
	return "error raised";
}

/* See conflict.h. */
void
KdbReportConflict(EState *estate, ResultRelInfo *relinfo, KdbOperation operation,
				  const KdbDecision *decision, TupleTableSlot *searchslot,
				  const KdbConflictSide *local, int nlocal,
				  const KdbConflictSide *remote, TupleTableSlot *applied)
{
	Relation	rel = relinfo->ri_RelationDesc;
	StringInfoData detail;
	bool		fails = decision->action == KDB_ACTION_ERROR;

	initStringInfo(&detail);
	append_cause(&detail, operation, decision->conflict, local, nlocal);
	appendStringInfoChar(&detail, ' ');
	append_key(&detail, estate, relinfo, searchslot);
	append_rows(&detail, local, nlocal, remote);
	raised_error = fails;
	KdbCountConflict(RelationGetRelid(rel), decision->conflict,
					 KdbConflictOutcomeOf(decision->action));
	KdbLogConflict(rel, decision, searchslot, local, nlocal, remote, applied);

	ereport(fails ? ERROR : LOG,
			(errcode(error_code(decision->conflict)),
			 errmsg("conflict detected on relation \"%s.%s\": conflict=%s, resolution=%s, %s",
					get_namespace_name(RelationGetNamespace(rel)),
					RelationGetRelationName(rel),
					KdbConflictTypeName(decision->conflict),
					KdbResolverName(decision->resolver),
					outcome(decision->action)),
			 errdetail_internal("%s", detail.data)));
	pfree(detail.data);
}
