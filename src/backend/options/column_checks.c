/*
 * column_checks.c
 *		Which columns can be merged.
 *
 * A delta must be addable in any order with the same result: exact numbers are,
 * floating point numbers are not.  A maximum needs an order.  A value that is
 * merged may be one that no node has written, so it must not be part of what
 * identifies a row, claims it for itself or says where it is stored; and what a
 * write has contributed is known only if the stream brings the old row, which is
 * what REPLICA IDENTITY FULL does.
 *
 * Checked when krahodb.merge is set, and again after whatever ALTER TABLE has done
 * to a table that has merged columns.  SECURITY LABEL, with which a dump sets it, comes before
 * keys and unique indexes: there only the column itself is checked.  So it is once more when a
 * value is going to be read, since it must not be taken for one of another type, whatever command has
 * given it that.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "options_private.h"

typedef struct Column
{
	Relation	rel;
	Form_pg_attribute att;
	KdbMergeKind kind;
} Column;

static void
refuse(const Column *column, int sqlstate, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("cannot merge column \"%s\" of table \"%s\" by \"%s\"",
					NameStr(column->att->attname), RelationGetRelationName(column->rel),
					KdbMergeKindName(column->kind)),
			 errdetail("%s", detail),
			 hint ? errhint("%s", hint) : 0));
}

static void
check_type(const Column *column)
{
	Oid			type = getBaseType(column->att->atttypid);

	if (column->kind != KDB_MERGE_DELTA)
	{
		if (!OidIsValid(lookup_type_cache(type, TYPECACHE_CMP_PROC)->cmp_proc))
			refuse(column, ERRCODE_UNDEFINED_FUNCTION,
				   psprintf("Type %s has no default btree operator class.", format_type_be(type)), NULL);
		return;
	}
	switch (type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case CASHOID:
		case INTERVALOID:
			return;
		case FLOAT4OID:
		case FLOAT8OID:
			refuse(column, ERRCODE_DATATYPE_MISMATCH,
				   "The sum of floating-point numbers depends on the order of addition, so nodes would not end with equal values.",
				   "Use type numeric.");
			break;
		default:
			refuse(column, ERRCODE_DATATYPE_MISMATCH,
				   psprintf("Values of type %s cannot be added up.", format_type_be(type)),
				   "A delta can be of type smallint, integer, bigint, numeric, money or interval.");
	}
}

/* Columns that the stored generated ones among "columns" are made of, added to them. */
static Bitmapset *
with_sources(Relation rel, Bitmapset *columns)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	Bitmapset  *result = bms_copy(columns);

	for (int i = 0; constr && i < constr->num_defval; i++)
	{
		AttrNumber	attnum = constr->defval[i].adnum;

		if (TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attgenerated &&
			bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, columns))
			pull_varattnos(stringToNode(constr->defval[i].adbin), 1, &result);
	}
	return result;
}

/* Columns whose values decide what is unique, or where it is so. */
static Bitmapset *
columns_of_index(Relation index, Relation rel)
{
	Bitmapset  *columns = NULL;

	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];

		if (attnum != 0)
			columns = bms_add_member(columns, attnum - FirstLowInvalidHeapAttributeNumber);
	}
	pull_varattnos((Node *) RelationGetIndexExpressions(index), 1, &columns);
	pull_varattnos((Node *) RelationGetIndexPredicate(index), 1, &columns);
	return with_sources(rel, columns);
}

/* An expression over the whole row depends on each of its columns. */
static bool
depends_on(const Bitmapset *columns, AttrNumber attnum)
{
	return bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, columns) ||
		bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, columns);
}

static void
check_indexes(const Column *column)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(column->rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if ((index->rd_index->indisunique || index->rd_index->indisexclusion) &&
			depends_on(columns_of_index(index, column->rel), column->att->attnum))
			refuse(column, ERRCODE_INVALID_TABLE_DEFINITION,
				   psprintf("Unique index or exclusion constraint \"%s\" depends on it: a merged value may be taken elsewhere.",
							RelationGetRelationName(index)),
				   "Drop the index, or do not merge the column.");
		index_close(index, AccessShareLock);
	}
}

/* Is the column part of the partition key of a table, its own or one above it? */
static void
check_partition_key(const Column *column, Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	AttrNumber	attnum = get_attnum(relid, NameStr(column->att->attname));

	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE &&
		has_partition_attrs(rel, bms_make_singleton(attnum - FirstLowInvalidHeapAttributeNumber), NULL))
		refuse(column, ERRCODE_INVALID_TABLE_DEFINITION,
			   psprintf("It is part of the partition key of \"%s\".", RelationGetRelationName(rel)), NULL);
	table_close(rel, AccessShareLock);
}

static void
check_identity(const Column *column, bool with_key)
{
	if (column->rel->rd_rel->relreplident != REPLICA_IDENTITY_FULL)
		refuse(column, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
			   psprintf("Table \"%s\" does not have REPLICA IDENTITY FULL, so the old values of updates are not replicated.",
						RelationGetRelationName(column->rel)),
			   psprintf("Use ALTER TABLE %s REPLICA IDENTITY FULL, on all nodes, as long as columns of the table are merged.",
						quote_qualified_identifier(get_namespace_name(RelationGetNamespace(column->rel)),
												   RelationGetRelationName(column->rel))));
	if (with_key && !OidIsValid(RelationGetPrimaryKeyIndex(column->rel)))
		refuse(column, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
			   psprintf("Table \"%s\" has no primary key.", RelationGetRelationName(column->rel)),
			   "Add a primary key: it tells which rows are the same on different nodes.");
}

static void
check_itself(const Column *column)
{
	if (column->att->attgenerated)
		refuse(column, ERRCODE_INVALID_COLUMN_DEFINITION,
			   "It is a generated column.", "Merge the columns that it is generated from.");
	check_type(column);
}

/* See options.h. */
void
KdbCheckMergedType(Oid relid, const KdbColumnMerge *merge)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Column		column = {rel, TupleDescAttr(RelationGetDescr(rel), merge->attnum - 1), merge->kind};

	check_itself(&column);
	table_close(rel, NoLock);
}

static void
check_column(const Column *column, bool with_key)
{
	Oid			relid = RelationGetRelid(column->rel);
	ListCell   *lc;

	check_itself(column);
	check_indexes(column);
	check_partition_key(column, relid);
	if (column->rel->rd_rel->relispartition)
	{
		foreach(lc, get_partition_ancestors(relid))
			check_partition_key(column, lfirst_oid(lc));
	}
	check_identity(column, with_key);
}

static void
check_table(Oid relid, bool with_key)
{
	List	   *columns = KdbMergedColumns(relid);
	Relation	rel;
	ListCell   *lc;

	if (columns == NIL)
		return;
	rel = try_table_open(relid, AccessShareLock);
	if (rel == NULL)
		return;					/* a partition that was dropped meanwhile */
	foreach(lc, columns)
	{
		KdbColumnMerge *merge = lfirst(lc);
		Column		column = {rel, TupleDescAttr(RelationGetDescr(rel), merge->attnum - 1), merge->kind};

		check_column(&column, with_key);
	}
	table_close(rel, AccessShareLock);
}

/*
 * See options.h.  Partitions of a table that is altered are not locked by every
 * ALTER TABLE, and there may be thousands of them; so only those that have merged columns
 * are locked here.  Children that are no partitions have their own options, but get another type with
 * their parent.
 */
void
KdbCheckMergedColumns(Oid relid, bool with_key)
{
	char		relkind = get_rel_relkind(relid);
	ListCell   *lc;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		return;
	foreach(lc, find_all_inheritors(relid, NoLock, NULL))
	{
		Oid			member = lfirst_oid(lc);

		if (get_rel_relkind(member) != RELKIND_FOREIGN_TABLE)
			check_table(member, with_key && (member == relid || relkind == RELKIND_PARTITIONED_TABLE));
	}
}
