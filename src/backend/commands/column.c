/*
 * column.c
 *		KrahoDB's parameter of columns in ALTER TABLE ... ALTER COLUMN, and what
 *		other commands must not do to merged columns.
 *
 * What a command leaves behind is checked when it has run, with all that else it
 * has done to the table (so REPLICA IDENTITY FULL may come in the same command);
 * an error takes everything back.  CREATE UNIQUE INDEX is looked at before, as
 * CONCURRENTLY cannot be taken back.
 *
 * A partition that is created for a table with merged columns gets the replica
 * identity that they need.  One that is attached must have it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/value.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "krahodb/version_record.h"

#include "commands_private.h"

static bool
sets_column(AlterTableCmd *cmd)
{
	return cmd->subtype == AT_SetOptions || cmd->subtype == AT_ResetOptions;
}

/* See commands_private.h. */
bool
KdbAltersColumns(AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (sets_column(cmd) && KdbHasParameters((List *) cmd->def))
			return true;
	}
	return false;
}

/* See commands_private.h. */
List *
KdbTakeColumnChanges(AlterTableStmt *stmt)
{
	List	   *changes = NIL;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		KdbColumnChange *change;
		List	   *rest;
		List	   *ours;

		if (!sets_column(cmd))
			continue;
		rest = (List *) cmd->def;
		ours = KdbTakeParameters(&rest);
		if (ours == NIL)
			continue;
		change = palloc(sizeof(KdbColumnChange));
		change->column = cmd->name;
		change->options = KdbNormaliseColumnOptions(ours, cmd->subtype == AT_ResetOptions);
		changes = lappend(changes, change);
		cmd->def = (Node *) rest;
		if (rest == NIL)
			stmt->cmds = foreach_delete_current(stmt->cmds, lc);
	}
	return changes;
}

/* Contributions that leave no trace in the table need a place. */
static void
check_extension(void)
{
	if (!KdbVersionRecordsPresent())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("columns cannot be merged in this database"),
				 errdetail("Extension krahodb, which records versions, is not installed in it."),
				 errhint("Use CREATE EXTENSION krahodb first, on all nodes.")));
}

/* See commands_private.h. */
void
KdbStoreColumnChanges(Oid relid, List *changes)
{
	bool		sets = false;
	ListCell   *lc;

	CommandCounterIncrement();
	foreach(lc, changes)
	{
		KdbColumnChange *change = lfirst(lc);
		AttrNumber	attnum = get_attnum(relid, change->column);

		if (attnum == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							change->column, get_rel_name(relid))));
		if (attnum < 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot alter system column \"%s\"", change->column)));
		KdbStoreColumnOptions(relid, attnum, change->options);
		sets |= linitial_node(DefElem, change->options)->arg != NULL;
	}
	CommandCounterIncrement();
	if (sets)
		check_extension();
	KdbCheckMergedColumns(relid, sets);
	if (sets)
		KdbWarnAboutDoubledTable(relid);
}

/* See commands_private.h. */
void
KdbCheckAltered(RangeVar *relation)
{
	Oid			relid;

	CommandCounterIncrement();
	relid = RangeVarGetRelid(relation, NoLock, true);
	if (OidIsValid(relid))
		KdbCheckMergedColumns(relid, false);
}

/* ALTER TABLE ... REPLICA IDENTITY FULL, as a part of the command in "call". */
static void
set_identity_full(const KdbUtilityCall *call, RangeVar *relation)
{
	AlterTableStmt *stmt = makeNode(AlterTableStmt);
	AlterTableCmd *cmd = makeNode(AlterTableCmd);
	ReplicaIdentityStmt *identity = makeNode(ReplicaIdentityStmt);
	PlannedStmt *wrapper = makeNode(PlannedStmt);
	KdbUtilityCall alter = *call;

	identity->identity_type = REPLICA_IDENTITY_FULL;
	cmd->subtype = AT_ReplicaIdentity;
	cmd->def = (Node *) identity;
	stmt->relation = relation;
	stmt->cmds = list_make1(cmd);
	stmt->objtype = OBJECT_TABLE;
	wrapper->commandType = CMD_UTILITY;
	wrapper->utilityStmt = (Node *) stmt;
	wrapper->stmt_location = call->pstmt->stmt_location;
	wrapper->stmt_len = call->pstmt->stmt_len;
	alter.pstmt = wrapper;
	alter.read_only_tree = false;
	alter.context = PROCESS_UTILITY_SUBCOMMAND;
	alter.dest = None_Receiver;
	alter.completion = NULL;
	KdbRunUtility(&alter);
}

/* See commands_private.h. */
void
KdbPartitionCreated(const KdbUtilityCall *call, RangeVar *relation)
{
	Oid			relid;

	CommandCounterIncrement();
	relid = RangeVarGetRelid(relation, NoLock, true);
	if (!OidIsValid(relid) || !get_rel_relispartition(relid) ||
		get_rel_relkind(relid) == RELKIND_FOREIGN_TABLE || KdbMergedColumns(relid) == NIL)
		return;
	set_identity_full(call, relation);
	CommandCounterIncrement();
	KdbCheckMergedColumns(relid, false);
}

/* ---- unique indexes ---------------------------------------------------------- */

/* Names of the columns that an expression, which is not analysed yet, refers to. */
static bool
collect_names(Node *node, List **names)
{
	if (node == NULL)
		return false;
	if (IsA(node, ColumnRef))
	{
		Node	   *last = llast(((ColumnRef *) node)->fields);

		if (IsA(last, String))
			*names = lappend(*names, last);
		return false;
	}
	if (IsA(node, IndexElem) && ((IndexElem *) node)->name != NULL)
	{
		*names = lappend(*names, makeString(((IndexElem *) node)->name));
		return false;
	}
	return raw_expression_tree_walker(node, collect_names, names);
}

static void
check_unique_index(Oid relid, List *names)
{
	ListCell   *lc;

	foreach(lc, KdbMergedColumns(relid))
	{
		KdbColumnMerge *merge = lfirst(lc);
		char	   *column = get_attname(relid, merge->attnum, false);

		if (list_member(names, makeString(column)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
					 errmsg("cannot create a unique index on merged column \"%s\"", column),
					 errdetail("It is merged by \"%s\": a merged value may be taken elsewhere.",
							   KdbMergeKindName(merge->kind)),
					 errhint("Use ALTER TABLE ... ALTER COLUMN %s RESET (krahodb.merge) first.", column)));
	}
}

/*
 * See commands_private.h.  The indexes that CREATE TABLE ... LIKE copies come analysed,
 * for a table that has no options yet: they are only looked at afterwards.
 */
void
KdbCreateIndex(const KdbUtilityCall *call)
{
	IndexStmt  *stmt = castNode(IndexStmt, call->pstmt->utilityStmt);
	RangeVar   *relation;
	List	   *names = NIL;
	Oid			relid;

	if (stmt->unique && stmt->relation && !stmt->transformed)
	{
		relid = RangeVarGetRelid(stmt->relation, NoLock, true);
		collect_names((Node *) stmt->indexParams, &names);
		collect_names(stmt->whereClause, &names);
		if (OidIsValid(relid))
			check_unique_index(relid, names);
	}
	relation = stmt->unique && !stmt->concurrent ? copyObject(stmt->relation) : NULL;
	KdbRunUtility(call);

	/* It may depend on a merged column by way of a generated one. */
	if (relation)
		KdbCheckAltered(relation);
}
