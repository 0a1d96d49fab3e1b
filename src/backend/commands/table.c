/*
 * table.c
 *		KrahoDB's parameters in CREATE TABLE and ALTER TABLE.
 *
 * The grammar takes parameters of any name space in WITH (...), SET (...) and
 * RESET (...); the engine refuses those that it does not know.  What is in name
 * space "krahodb" is taken out before.  A subcommand of ALTER TABLE that has
 * nothing left is removed; an ALTER TABLE that has no subcommand left still
 * runs, for its lock, its checks and its event triggers.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/tablecmds.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "krahodb/conflict.h"
#include "krahodb/version_record.h"

#include "commands_private.h"

static bool
is_ours(DefElem *def)
{
	return def->defnamespace != NULL && strcmp(def->defnamespace, KDB_LABEL_PROVIDER) == 0;
}

/* See commands_private.h. */
bool
KdbHasParameters(List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		if (is_ours(lfirst_node(DefElem, lc)))
			return true;
	}
	return false;
}

/* See commands_private.h. */
List *
KdbTakeParameters(List **list)
{
	List	   *ours = NIL;
	ListCell   *lc;

	foreach(lc, *list)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (is_ours(def))
		{
			ours = lappend(ours, def);
			*list = foreach_delete_current(*list, lc);
		}
	}
	return ours;
}

/* Was the relation's row written by this transaction? */
static bool
created_here(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	ReleaseSysCache(tuple);
	return result;
}

/*
 * Run a command that creates a table, and give the table its parameters.  With
 * IF NOT EXISTS there may be a table before, or another session may be faster:
 * then nothing was created, and nothing is changed.
 */
static void
create_with_parameters(const KdbUtilityCall *call, RangeVar *relation, List *ours)
{
	Oid			namespace;
	Oid			relid;

	KdbPreventIfReadOnly(call->pstmt->utilityStmt);
	ours = KdbMergeOptions(NIL, KdbNormaliseTableOptions(ours, false));
	namespace = RangeVarGetCreationNamespace(relation);
	relid = get_relname_relid(relation->relname, namespace);
	if (OidIsValid(relid))
	{
		KdbRunUtility(call);
		return;
	}

	KdbRunUtility(call);
	CommandCounterIncrement();
	relid = get_relname_relid(relation->relname, namespace);
	if (!OidIsValid(relid) || !created_here(relid))
		return;
	KdbCheckTableForOptions(relid);
	KdbStoreTableOptions(relid, ours);
}

void
KdbCreateTable(const KdbUtilityCall *call)
{
	KdbUtilityCall copy;
	CreateStmt *stmt = castNode(CreateStmt, call->pstmt->utilityStmt);
	bool		partition = stmt->partbound != NULL;
	RangeVar   *relation = copyObject(stmt->relation);
	List	   *ours;

	if (!KdbHasParameters(stmt->options))
		KdbRunUtility(call);
	else
	{
		KdbCopyUtilityCall(call, &copy);
		stmt = castNode(CreateStmt, copy.pstmt->utilityStmt);
		ours = KdbTakeParameters(&stmt->options);
		create_with_parameters(&copy, copyObject(stmt->relation), ours);
	}
	if (partition)
		KdbPartitionCreated(call, relation);
}

void
KdbCreateTableAs(const KdbUtilityCall *call)
{
	KdbUtilityCall copy;
	CreateTableAsStmt *stmt = castNode(CreateTableAsStmt, call->pstmt->utilityStmt);
	List	   *ours;

	if (!KdbHasParameters(stmt->into->options))
	{
		KdbRunUtility(call);
		return;
	}
	KdbCopyUtilityCall(call, &copy);
	stmt = castNode(CreateTableAsStmt, copy.pstmt->utilityStmt);
	ours = KdbTakeParameters(&stmt->into->options);
	create_with_parameters(&copy, copyObject(stmt->into->rel), ours);
}

static bool
sets_parameters(AlterTableCmd *cmd)
{
	return cmd->subtype == AT_SetRelOptions || cmd->subtype == AT_ResetRelOptions;
}

static bool
alters_ours(AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (sets_parameters(cmd) && KdbHasParameters((List *) cmd->def))
			return true;
	}
	return false;
}

/* Take out all that is ours; returns it as one list of changes, checked. */
static List *
take_changes(AlterTableStmt *stmt)
{
	List	   *changes = NIL;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		List	   *rest;
		List	   *ours;
		ListCell   *one;

		if (!sets_parameters(cmd))
			continue;
		rest = (List *) cmd->def;
		ours = KdbTakeParameters(&rest);
		if (ours == NIL)
			continue;

		/* A later subcommand goes over an earlier one, as in the engine. */
		foreach(one, KdbNormaliseTableOptions(ours, cmd->subtype == AT_ResetRelOptions))
			changes = lappend(changes, lfirst(one));
		cmd->def = (Node *) rest;
		if (rest == NIL)
			stmt->cmds = foreach_delete_current(stmt->cmds, lc);
	}
	return changes;
}

static void
alter_table(const KdbUtilityCall *call)
{
	KdbUtilityCall copy;
	AlterTableStmt *stmt = castNode(AlterTableStmt, call->pstmt->utilityStmt);
	RangeVar   *relation;
	List	   *options;
	List	   *changes;
	List	   *columns;
	ListCell   *lc;
	Oid			relid;

	if (!alters_ours(stmt) && !KdbAltersColumns(stmt))
	{
		relation = copyObject(stmt->relation);
		KdbRunUtility(call);
		KdbCheckAltered(relation);
		return;
	}
	KdbCopyUtilityCall(call, &copy);
	stmt = castNode(AlterTableStmt, copy.pstmt->utilityStmt);
	KdbPreventIfReadOnly((Node *) stmt);
	changes = take_changes(stmt);
	columns = KdbTakeColumnChanges(stmt);

	/* The lock that the engine is going to take. */
	relid = RangeVarGetRelidExtended(stmt->relation, AlterTableGetLockLevel(stmt->cmds),
									 stmt->missing_ok ? RVR_MISSING_OK : 0,
									 RangeVarCallbackOwnsRelation, NULL);
	if (!OidIsValid(relid))
	{
		KdbRunUtility(&copy);
		return;
	}
	KdbCheckTableForOptions(relid);
	options = KdbNormaliseTableOptions(KdbReadOptions(RelationRelationId, relid), false);
	foreach(lc, changes)
		options = KdbMergeOptions(options, list_make1(lfirst(lc)));

	KdbRunUtility(&copy);
	KdbStoreTableOptions(relid, options);
	KdbStoreColumnChanges(relid, columns);
}

/* A table of those that the command is about, and its storage. */
typedef struct Storage
{
	Oid			relid;
	Oid			node;
} Storage;

static Oid
storage_of(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Form_pg_class form;
	Oid			node = InvalidOid;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	form = (Form_pg_class) GETSTRUCT(tuple);
	if (form->relkind == RELKIND_RELATION && form->relpersistence != RELPERSISTENCE_TEMP)
		node = form->relfilenode;
	ReleaseSysCache(tuple);
	return node;
}

/* The table, its partitions and children. */
static List *
storage_before(const AlterTableStmt *stmt)
{
	Oid			relid = InvalidOid;
	List	   *result = NIL;
	ListCell   *lc;

	if (stmt->objtype == OBJECT_TABLE && KdbVersionRecordsPresent())
		relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(relid))
		return NIL;
	foreach(lc, find_all_inheritors(relid, NoLock, NULL))
	{
		Storage    *storage = palloc(sizeof(Storage));

		storage->relid = lfirst_oid(lc);
		storage->node = storage_of(storage->relid);
		result = lappend(result, storage);
	}
	return result;
}

/* Rows that the command has written anew are no newer than they were; see conflict/rewritten.c. */
static void
note_rewrites(List *before, CommandId first)
{
	CommandId	last = GetCurrentCommandId(false);
	ListCell   *lc;

	foreach(lc, before)
	{
		const Storage *storage = lfirst(lc);
		Oid			now = storage_of(storage->relid);

		if (OidIsValid(storage->node) && OidIsValid(now) && storage->node != now)
			KdbNoteRewrite(storage->relid, first, last);
	}
}

void
KdbAlterTable(const KdbUtilityCall *call)
{
	List	   *before = storage_before(castNode(AlterTableStmt, call->pstmt->utilityStmt));
	CommandId	first = GetCurrentCommandId(false);

	alter_table(call);
	note_rewrites(before, first);
}
