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
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/tablecmds.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "krahodb/apply.h"
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

/*
 * ---- rewritten tables ----
 *
 * A command may write all rows of a table anew, and they are no newer for that (conflict/rewritten.c).
 * Or it gives keys another type, and only the catalogs change.
 */

/* A table of those that the command is about, and its storage. */
typedef struct Storage
{
	Oid			relid;
	Oid			node;
	KdbCarried *carried;		/* NULL: its versions cannot be carried over */
} Storage;

/* The commands that run, one within the other. */
typedef struct Altering
{
	MemoryContext context;
	List	   *tables;			/* of Storage */
	struct Altering *outer;
} Altering;

static Altering *altering = NULL;

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

/* May it rewrite tables?  *children: those of the table, too. */
static bool
may_rewrite(const AlterTableStmt *stmt, bool *children)
{
	bool		result = false;
	ListCell   *lc;

	*children = false;
	foreach(lc, stmt->cmds)
	{
		switch (lfirst_node(AlterTableCmd, lc)->subtype)
		{
			case AT_AddColumn:
			case AT_AlterColumnType:
				*children |= stmt->relation->inh;
				result = true;
				break;
			case AT_SetLogged:
			case AT_SetUnLogged:
			case AT_SetAccessMethod:
				result = true;
				break;
			default:
				break;
		}
	}
	return result;
}

/* The table that the command is about; locked as the engine will do it, if it may be rewritten. */
static Oid
table_of(const AlterTableStmt *stmt, bool lock)
{
	if (!lock)
		return RangeVarGetRelid(stmt->relation, NoLock, true);
	return RangeVarGetRelidExtended(stmt->relation, AccessExclusiveLock, RVR_MISSING_OK,
									RangeVarCallbackOwnsRelation, NULL);
}

static KdbCarried *
prepare_to_carry(const AlterTableStmt *stmt, Oid relid)
{
	Relation	rel = table_open(relid, NoLock);
	KdbCarried *carried = KdbCarriedPrepare(rel, stmt->cmds);

	if (carried)
		KdbMergedCarry(carried, rel);
	table_close(rel, NoLock);
	return carried;
}

/* The table, its partitions and children. */
static List *
storage_before(const AlterTableStmt *stmt)
{
	bool		children;
	bool		rewrites = may_rewrite(stmt, &children) && !XactReadOnly && !RecoveryInProgress();
	Oid			root = InvalidOid;
	List	   *result = NIL;
	ListCell   *lc;

	if (stmt->objtype == OBJECT_TABLE)
		root = table_of(stmt, rewrites);
	if (!OidIsValid(root))
		return NIL;
	foreach(lc, find_all_inheritors(root, rewrites && children ? AccessExclusiveLock : NoLock, NULL))
	{
		Storage    *storage = palloc0(sizeof(Storage));

		storage->relid = lfirst_oid(lc);
		storage->node = storage_of(storage->relid);
		if (OidIsValid(storage->node) && rewrites && (children || storage->relid == root))
			storage->carried = prepare_to_carry(stmt, storage->relid);
		result = lappend(result, storage);
	}
	return result;
}

static void
note_rewrites(List *before, CommandId first)
{
	CommandId	last = GetCurrentCommandId(false);
	ListCell   *lc;

	if (before != NIL)
		CommandCounterIncrement();
	foreach(lc, before)
	{
		const Storage *storage = lfirst(lc);
		Oid			now = storage_of(storage->relid);

		if (!OidIsValid(storage->node) || !OidIsValid(now))
			continue;
		if (storage->node != now)
		{
			KdbCarriedFinish(storage->carried, storage->relid, first, last);
			/* a typed table may have got other types with its composite one */
			KdbCheckMergedColumns(storage->relid, false);
		}
		else if (storage->carried)
			KdbCarriedNotRewritten(storage->carried);
	}
}

/*
 * A command within another one, by an event trigger: what that has noted of tables may not be true any
 * more.
 */
static void
forget_outer(void)
{
	ListCell   *lc;

	for (Altering *outer = altering; outer; outer = outer->outer)
	{
		foreach(lc, outer->tables)
			((Storage *) lfirst(lc))->carried = NULL;
	}
}

/* The table whose rows are to be written into this one, which was just made. */
static Oid
rewritten_by(Oid relid)
{
	Relation	rel = RelationIdGetRelation(relid);
	Oid			result = InvalidOid;

	if (!RelationIsValid(rel))
		return InvalidOid;
	result = rel->rd_rel->relrewrite;
	RelationClose(rel);
	return result;
}

/* Tables of a composite type that is altered are not known before. */
static Storage *
find_storage(Oid relid)
{
	MemoryContext old;
	Storage    *storage;
	ListCell   *lc;

	foreach(lc, altering->tables)
	{
		storage = lfirst(lc);
		if (storage->relid == relid)
			return storage;
	}
	old = MemoryContextSwitchTo(altering->context);
	storage = palloc0(sizeof(Storage));
	storage->relid = relid;
	storage->node = storage_of(relid);
	altering->tables = lappend(altering->tables, storage);
	MemoryContextSwitchTo(old);
	return storage;
}

/* See commands_private.h. */
void
KdbTableCreated(Oid relid)
{
	Oid			rewritten = altering ? rewritten_by(relid) : InvalidOid;
	Storage    *storage;

	if (!OidIsValid(rewritten))
		return;
	storage = find_storage(rewritten);
	if (storage->carried)
		KdbCarriedRead(storage->carried);
}

void
KdbAlterTable(const KdbUtilityCall *call)
{
	Altering	this = {CurrentMemoryContext, NIL, altering};
	CommandId	first;

	if (!KdbVersionRecordsPresent())
	{
		alter_table(call);
		return;
	}
	forget_outer();
	this.tables = storage_before(castNode(AlterTableStmt, call->pstmt->utilityStmt));
	first = GetCurrentCommandId(false);
	PG_TRY();
	{
		altering = &this;
		alter_table(call);
	}
	PG_FINALLY();
	{
		altering = this.outer;
	}
	PG_END_TRY();
	note_rewrites(this.tables, first);
}
