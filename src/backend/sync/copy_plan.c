/*
 * copy_plan.c
 *		How a table is divided into ranges.
 *
 * A range is some pages of the publisher's table, of about krahodb.copy_range_size,
 * read by a TID range scan.  Of a partitioned table, each partition has its own
 * ranges.  The last range of a relation has no end, so that every row that any
 * snapshot shows is in exactly one range, however the relation grows.
 *
 * WHEN NOT.  A table is copied as a whole, in one transaction, if
 * - it is smaller than two ranges;
 * - the publisher has no TID range scans (before 14), or keeps rows of it in
 *	 something else than a heap: foreign partitions, other access methods;
 * - the role that we are there may not read each relation as a whole (some columns
 *	 only, or a partitioned table without its partitions), or policies hide rows of it:
 *	 a range asks the partitions, and for system columns;
 * - triggers fire for the copied rows here: they would see the ranges as separate
 *	 commands, and their effects could not be taken back with the rows of a range;
 * - it is no heap here, or a publication here sends its deletes but it has nothing
 *	 to identify rows by: then rows could not be taken back for who subscribes here.
 *
 * The plan outlives the attempt that made it, so it says what it was made for: which
 * server (system identifier and timeline), which relation files, which columns
 * and filters.  Its text, one line for the plan and one for each range, is kept in
 * a security label (copy_marks.c).
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "replication/walreceiver.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "krahodb/copy_shared.h"
#include "krahodb/stream.h"

#include "sync_private.h"

#define PLAN_VERSION			1
#define TID_RANGE_SCAN_VERSION	140000

/* A relation at the publisher that has rows. */
typedef struct Leaf
{
	Oid			relid;
	Oid			filenode;
	BlockNumber pages;
	bool		ranges;			/* can be read in ranges of its pages, by us */
} Leaf;

static List *
fetch_leaves(const KdbRemoteTable *table)
{
	const char *which = table->relkind == RELKIND_PARTITIONED_TABLE ?
		"c.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(%u) t WHERE t.isleaf)" :
		"c.oid = %u";
	StringInfoData query;
	List	   *leaves = NIL;
	ListCell   *lc;

	initStringInfo(&query);
	appendStringInfoString(&query,
						   "SELECT c.oid, pg_catalog.pg_relation_filenode(c.oid),"
						   " pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::pg_catalog.int8,"
						   " c.relkind = 'r' AND a.amname = 'heap'"
						   " AND pg_catalog.has_table_privilege(c.oid, 'SELECT')"
						   " AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')"
						   " AND NOT pg_catalog.row_security_active(c.oid)");
	appendStringInfo(&query, " AND NOT pg_catalog.row_security_active(%u::pg_catalog.oid)", table->relid);
	appendStringInfoString(&query,
						   " FROM pg_catalog.pg_class c"
						   " LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam WHERE ");
	appendStringInfo(&query, which, table->relid);
	appendStringInfoString(&query, " ORDER BY c.oid");
	foreach(lc, KdbStreamQuery(LogRepWorkerWalRcvConn, query.data, 4, "sizes of tables"))
	{
		char	  **row = lfirst(lc);
		Leaf	   *leaf = palloc(sizeof(Leaf));

		leaf->relid = row[0] ? strtoul(row[0], NULL, 10) : InvalidOid;
		leaf->filenode = row[1] ? strtoul(row[1], NULL, 10) : 0;
		leaf->pages = row[2] ? strtoul(row[2], NULL, 10) : 0;
		leaf->ranges = row[3] != NULL && row[3][0] == 't';
		leaves = lappend(leaves, leaf);
	}
	return leaves;
}

/*
 * From here on nobody rewrites the table until the transaction there ends.  Who is doing
 * so is waited for: its file and its rows would be those of before and of after.
 * (pg_partition_tree() locks partitions, and is called before we look at one.)  By a query,
 * as LOCK TABLE wants a privilege for the table where one for columns does for COPY.
 */
static void
lock_remote_table(const KdbRemoteTable *table)
{
	char	   *name = quote_qualified_identifier(table->nspname, table->relname);
	WalRcvExecResult *res;

	res = walrcv_exec(LogRepWorkerWalRcvConn, psprintf("SELECT FROM ONLY %s LIMIT 0", name), 0, NULL);
	if (res->status != WALRCV_OK_TUPLES)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not lock table \"%s.%s\" on the publisher: %s",
						table->nspname, table->relname, res->err)));
	walrcv_clear_result(res);
}

/* May the rows of a relation here come, and be taken back, bit by bit? */
static bool
relation_allows_ranges(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;
	PublicationDesc publications;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (triggers->triggers[i].tgenabled == TRIGGER_FIRES_ALWAYS ||
			triggers->triggers[i].tgenabled == TRIGGER_FIRES_ON_REPLICA)
			return false;
	}
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		return true;
	if (rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		return false;
	if (!is_publishable_relation(rel))
		return true;
	RelationBuildPublicationDesc(rel, &publications);
	return !publications.pubactions.pubdelete ||
		rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL ||
		OidIsValid(RelationGetReplicaIndex(rel));
}

static bool
target_allows_ranges(Relation rel)
{
	bool		allowed = true;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), RowExclusiveLock, NULL))
	{
		Relation	child = relation_open(lfirst_oid(lc), NoLock);

		/* tables that inherit, but are no partitions, get no rows */
		if (child == rel || child->rd_rel->relispartition)
			allowed = allowed && relation_allows_ranges(child);
		relation_close(child, NoLock);
	}
	return allowed;
}

/* Hash of what is copied, and to which columns. */
uint64
KdbCopyShape(const KdbRemoteTable *table, Relation rel)
{
	StringInfoData shape;
	ListCell   *name;
	ListCell   *attnum;
	ListCell   *type;
	ListCell   *filter;

	initStringInfo(&shape);
	appendStringInfo(&shape, "%u", table->relid);
	forthree(name, table->columns, attnum, table->attnums, type, table->types)
		appendStringInfo(&shape, "\n%s\t%d\t%u\t%d", strVal(lfirst(name)),
						 lfirst_int(attnum), lfirst_oid(type),
						 get_attnum(RelationGetRelid(rel), strVal(lfirst(name))));
	foreach(filter, table->filters)
		appendStringInfo(&shape, "\n\n%s", strVal(lfirst(filter)));
	return hash_bytes_extended((unsigned char *) shape.data, shape.len, 0);
}

/* Divide; false if there is nothing to gain by it. */
static bool
divide(KdbCopyPlan *plan, List *leaves)
{
	BlockNumber size = Max(KdbCopyRangeSize / (BLCKSZ / 1024), 1);
	ListCell   *lc;

	foreach(lc, leaves)
		plan->pages += ((Leaf *) lfirst(lc))->pages;
	/* half of the ranges at most are the rests of relations */
	if (list_length(leaves) > KDB_COPY_MAX_RANGES / 2)
		return false;
	size = Max(size, plan->pages / (KDB_COPY_MAX_RANGES / 2) + 1);

	plan->ranges = palloc0_array(KdbCopyRange, KDB_COPY_MAX_RANGES);
	foreach(lc, leaves)
	{
		Leaf	   *leaf = lfirst(lc);
		BlockNumber start = 0;

		do
		{
			KdbCopyRange *range = &plan->ranges[plan->nranges++];

			Assert(plan->nranges <= KDB_COPY_MAX_RANGES);
			range->relid = leaf->relid;
			range->filenode = leaf->filenode;
			range->start = start;
			start += size;
			range->end = start < leaf->pages ? start : InvalidBlockNumber;
		} while (start < leaf->pages);
	}
	return plan->nranges >= 2 && plan->pages >= 2 * (uint64) size;
}

KdbCopyPlan *
KdbCopyPlanMake(const KdbRemoteTable *table, Relation rel, uint64 sysid, TimeLineID timeline)
{
	KdbCopyPlan *plan = palloc0(sizeof(KdbCopyPlan));
	List	   *leaves;
	ListCell   *lc;

	if (KdbCopyWorkersPerTable == 0 || !table->readable ||
		walrcv_server_version(LogRepWorkerWalRcvConn) < TID_RANGE_SCAN_VERSION ||
		!target_allows_ranges(rel))
		return NULL;

	lock_remote_table(table);
	leaves = fetch_leaves(table);
	foreach(lc, leaves)
	{
		if (!((Leaf *) lfirst(lc))->ranges)
			return NULL;
	}
	plan->sysid = sysid;
	plan->timeline = timeline;
	plan->shape = KdbCopyShape(table, rel);
	return divide(plan, leaves) ? plan : NULL;
}

/* The next range of another relation than the one of i, or nranges. */
static int
next_relation(const KdbCopyPlan *plan, int i)
{
	Oid			relid = plan->ranges[i].relid;

	while (i < plan->nranges && plan->ranges[i].relid == relid)
		i++;
	return i;
}

/*
 * Do the ranges of a plan still divide the same rows in the same way?  now is what
 * would be planned today.
 */
bool
KdbCopyPlanStillRight(const KdbCopyPlan *plan, const KdbCopyPlan *now)
{
	int			i = 0;
	int			j = 0;

	if (plan->sysid != now->sysid || plan->timeline != now->timeline ||
		plan->shape != now->shape)
		return false;
	while (i < plan->nranges && j < now->nranges)
	{
		if (plan->ranges[i].relid != now->ranges[j].relid ||
			plan->ranges[i].filenode != now->ranges[j].filenode)
			return false;
		i = next_relation(plan, i);
		j = next_relation(now, j);
	}
	return i == plan->nranges && j == now->nranges;
}

char *
KdbCopyPlanToText(const KdbCopyPlan *plan)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%d " UINT64_FORMAT " %u " UINT64_FORMAT " " UINT64_FORMAT " %d",
					 PLAN_VERSION, plan->sysid, plan->timeline, plan->shape,
					 plan->pages, plan->nranges);
	for (int i = 0; i < plan->nranges; i++)
		appendStringInfo(&text, "\n%u %u %u %u", plan->ranges[i].relid,
						 plan->ranges[i].filenode, plan->ranges[i].start,
						 plan->ranges[i].end);
	return text.data;
}

/* NULL if it is not one of this version's. */
KdbCopyPlan *
KdbCopyPlanFromText(const char *text)
{
	KdbCopyPlan *plan = palloc0(sizeof(KdbCopyPlan));
	int			version;

	if (sscanf(text, "%d " UINT64_FORMAT " %u " UINT64_FORMAT " " UINT64_FORMAT " %d",
			   &version, &plan->sysid, &plan->timeline, &plan->shape,
			   &plan->pages, &plan->nranges) != 6 ||
		version != PLAN_VERSION || plan->nranges < 0 || plan->nranges > KDB_COPY_MAX_RANGES)
		return NULL;

	plan->ranges = palloc0_array(KdbCopyRange, Max(plan->nranges, 1));
	for (int i = 0; i < plan->nranges; i++)
	{
		KdbCopyRange *range = &plan->ranges[i];

		text = strchr(text, '\n');
		if (text == NULL ||
			sscanf(++text, "%u %u %u %u", &range->relid, &range->filenode,
				   &range->start, &range->end) != 4)
			return NULL;
	}
	return plan;
}

/* Its relation's quoted name, as of now. */
char *
KdbCopyRangeRelation(const KdbCopyRange *range)
{
	List	   *rows;

	rows = KdbStreamQueryNotNull(LogRepWorkerWalRcvConn,
						  psprintf("SELECT pg_catalog.quote_ident(n.nspname) OPERATOR(pg_catalog.||) '.' OPERATOR(pg_catalog.||) pg_catalog.quote_ident(c.relname)"
								   " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
								   " WHERE c.oid = %u", range->relid),
						  1, "name of a table");
	if (rows == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("a partition that is being copied was dropped on the publisher")));
	return ((char **) linitial(rows))[0];
}
