/*
 * target.c
 *		Local tables that rows are written to, with the executor's state.
 *
 * The engine builds an executor state, opens every index and looks up every
 * function for each row it applies.  Here they are built when a table is first
 * written, and kept until it changes (relation_private.h says what is kept and
 * what is opened in each transaction).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_index.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/optimizer.h"
#include "utils/acl.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "krahodb/clock.h"

#include "relation_private.h"

static HTAB *targets = NULL;
static long sweep_size = KDB_MIN_SWEEP_SIZE;	/* number of entries to sweep at */
static dlist_head open_targets = DLIST_STATIC_INIT(open_targets);
static uint64 roles = 0;		/* changes of roles that were heard of */

/* Those that may have pages pinned, and how many there may be between two changes. */
#define MAX_LOOKED_IN	8
static dlist_head looked_in = DLIST_STATIC_INIT(looked_in);
static int	nlooked_in = 0;

static void
target_invalidated(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	KdbApplyTarget *target;

	if (relid != InvalidOid)
	{
		target = hash_search(targets, &relid, HASH_FIND, NULL);
		if (target)
			target->valid = false;
		return;
	}
	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
		target->valid = false;
}

/* A function has changed: any of what we look up once may be about it. */
static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	target_invalidated((Datum) 0, InvalidOid);
}

/* A type has changed: it may be a domain, see domains.c. */
static void
type_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS status;
	KdbApplyTarget *target;

	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
	{
		if (target->domains)
			target->valid = false;
	}
}

static void
role_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	roles++;
}

static void
targets_init(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(KdbApplyTarget);
	ctl.hcxt = ApplyContext;
	targets = hash_create("KrahoDB apply targets", 128, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(target_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, type_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, role_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, role_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(DATABASEOID, role_changed, (Datum) 0);
}

/*
 * Options of the subscription or of tables have changed.  Rebuilding is the
 * simple way, and happens when the entry is next opened.
 */
void
KdbTargetsForgetOptions(void)
{
	if (targets)
		target_invalidated((Datum) 0, InvalidOid);
}

/*
 * Functions of the triggers that fire in replica role, and whether rows are locked
 * first.  The engine would look a function up when it first calls it, in the memory
 * context of the time, which here lasts for one message.  A table where none fires
 * (those of foreign keys do not) is one without triggers.
 */
static void
prepare_triggers(KdbApplyTarget *target)
{
	TriggerDesc *desc = target->relinfo->ri_TrigDesc;
	bool		fires = false;

	if (desc == NULL)
		return;
	for (int i = 0; i < desc->numtriggers; i++)
	{
		Trigger    *trigger = &desc->triggers[i];

		if (trigger->tgenabled == TRIGGER_FIRES_ALWAYS ||
			trigger->tgenabled == TRIGGER_FIRES_ON_REPLICA)
		{
			fmgr_info_cxt(trigger->tgfoid, &target->relinfo->ri_TrigFunctions[i],
						  target->context);
			fires = true;
		}
	}
	if (!fires)
	{
		target->relinfo->ri_TrigDesc = NULL;
		return;
	}
	target->fires = true;
	target->insert_triggers = desc->trig_insert_before_row || desc->trig_insert_after_row;
	target->row_triggers = desc->trig_insert_before_row ||
		desc->trig_update_before_row || desc->trig_delete_before_row;
}

/*
 * Expressions of generated columns.  For an UPDATE the engine would leave out those
 * that it does not affect, but this state serves every change to the table; so they are
 * prepared as for an INSERT, which needs all, also those of no column at all.
 */
static void
prepare_generated(KdbApplyTarget *target)
{
	TupleConstr *constr = RelationGetDescr(target->rel)->constr;

	target->has_generated = constr && constr->has_generated_stored;
	if (target->has_generated)
		ExecInitStoredGenerated(target->relinfo, target->estate, CMD_INSERT);
}

/* What PostgreSQL asks users not to do, and some do. */
static bool
checks_read_tables(Relation rel)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;

	for (int i = 0; constr != NULL && i < constr->num_check; i++)
	{
		Node	   *check = stringToNode(constr->check[i].ccbin);

		if (KdbMayReadTables((Node *) expression_planner((Expr *) check)))
			return true;
	}
	return false;
}

/* An executor state with the table as its only range table entry. */
static void
build_executor_state(KdbApplyTarget *target)
{
	EState	   *estate = CreateExecutorState();
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_RELATION;
	rte->relid = target->relid;
	rte->relkind = target->rel->rd_rel->relkind;
	rte->rellockmode = AccessShareLock;
	ExecInitRangeTable(estate, list_make1(rte));

	target->estate = estate;
	target->rte = rte;
	target->relinfo = makeNode(ResultRelInfo);
	InitResultRelInfo(target->relinfo, target->rel, 1, NULL, 0);

	/* This is where ExecGetTriggerResultRel finds it. */
	estate->es_opened_result_relations =
		lappend(estate->es_opened_result_relations, target->relinfo);
	prepare_triggers(target);
	prepare_generated(target);
}

/* Columns that an index depends on; NULL if it has expressions over others. */
static Bitmapset *
columns_of_index(IndexInfo *info)
{
	Bitmapset  *columns = NULL;

	for (int i = 0; i < info->ii_NumIndexKeyAttrs; i++)
	{
		if (info->ii_IndexAttrNumbers[i] != 0)
			columns = bms_add_member(columns, info->ii_IndexAttrNumbers[i] -
									 FirstLowInvalidHeapAttributeNumber);
	}
	pull_varattnos((Node *) info->ii_Expressions, 1, &columns);
	pull_varattnos((Node *) info->ii_Predicate, 1, &columns);
	return columns;
}

/*
 * Index infos by the engine's own ExecOpenIndices, the first time; in later
 * transactions only the indexes themselves are opened.
 */
static void
build_indexes(KdbApplyTarget *target)
{
	ResultRelInfo *relinfo = target->relinfo;

	ExecOpenIndices(relinfo, true);
	target->indexes_open = true;
	target->nindexes = relinfo->ri_NumIndices;
	target->index_oids = palloc_array(Oid, target->nindexes + 1);
	target->index_places = palloc0_array(Oid, target->nindexes + 1);
	target->index_columns = palloc0_array(Bitmapset *, target->nindexes + 1);
	target->lacks_before = palloc0_array(TransactionId, target->nindexes + 1);
	target->left_out = palloc0_array(KdbLeftOut *, target->nindexes + 1);
	target->own_equality = palloc0_array(bool, target->nindexes + 1);
	target->has_unique = false;
	target->has_deferrable = false;
	target->has_exclusion = false;
	for (int i = 0; i < target->nindexes; i++)
	{
		IndexInfo  *info = relinfo->ri_IndexRelationInfo[i];
		Relation	index = relinfo->ri_IndexRelationDescs[i];

		target->index_oids[i] = RelationGetRelid(index);
		target->index_columns[i] = columns_of_index(info);
		if ((info->ii_Unique || info->ii_ExclusionOps) &&
			target->index_oids[i] != target->identity_index)
			target->has_unique = true;
		if ((info->ii_Unique || info->ii_ExclusionOps) && !index->rd_index->indimmediate)
			target->has_deferrable = true;
		if (info->ii_ExclusionOps)
			target->has_exclusion = true;
		if (info->ii_Unique || info->ii_ExclusionOps)
		{
			target->index_places[i] = KdbIndexPlace(index);
			target->lacks_before[i] = KdbIndexLacksBefore(index);
		}
		target->lacks_tuples |= TransactionIdIsValid(target->lacks_before[i]);
		if (info->ii_Unique)
		{
			KdbRecordedKey key = {0};

			KdbIndexedTypes(index, info, target->tupdesc, &key);
			target->own_equality[i] = KdbIndexHasOwnEquality(index, &key);
		}
	}
}

/* Scan keys on the identity index, but for the values. */
static void
build_key(KdbApplyTarget *target, LOCKMODE lockmode)
{
	KdbRecordedKey types = {0};
	Relation	index;

	target->identity_index = RelationGetReplicaIndex(target->rel);
	if (!OidIsValid(target->identity_index))
		target->identity_index = RelationGetPrimaryKeyIndex(target->rel);
	if (!OidIsValid(target->identity_index))
		return;

	index = index_open(target->identity_index, lockmode);
	target->nkeys = types.n = IndexRelationGetNumberOfKeyAttributes(index);
	for (int i = 0; i < target->nkeys; i++)
	{
		ScanKeyEntryInitialize(&target->key_template[i], 0, i + 1,
							   BTEqualStrategyNumber, InvalidOid,
							   index->rd_indcollation[i],
							   KdbIndexOperatorFunction(index, i, BTEqualStrategyNumber), (Datum) 0);
		target->key_attnum[i] = index->rd_index->indkey.values[i];
		types.types[i] = AttrNumberIsForUserDefinedAttr(target->key_attnum[i]) ?
			TupleDescAttr(RelationGetDescr(target->rel), target->key_attnum[i] - 1)->atttypid : index->rd_opcintype[i];
	}
	target->own_key_equality = KdbIndexHasOwnEquality(index, &types);
	index_close(index, NoLock);
}

static void
build_options(KdbApplyTarget *target)
{
	KdbTableOptions options;
	KdbResolvers last_update;

	KdbGetTableOptions(target->relid, &options);
	KdbTableResolvers(KdbMyOptions, &options, &target->resolvers);
	target->resolving = KdbResolversActive(&target->resolvers);
	KdbResolversSetAll(&last_update, KDB_RESOLVER_LAST_UPDATE_WINS);
	target->converging = OidIsValid(target->identity_index) &&
		memcmp(&last_update, &target->resolvers, sizeof(KdbResolvers)) == 0;
	KdbTargetBuildMerged(target);
	if (target->nmerged > 0 && target->resolving && !target->converging)
		ereport(WARNING,
				(errmsg("columns of table \"%s\" are not merged by subscription \"%s\"",
						RelationGetRelationName(target->rel), MySubscription->name),
				 errdetail("Values are merged where every type of conflict is resolved by last_update_wins and the table has a primary key.")));
	if (target->resolving && !KdbResolversActive(&KdbMyOptions->resolvers))
		KdbClockEnforce(KDB_CLOCK_TABLES);
}

/* Slots over copies of the descriptor, which no resource owner tracks. */
static void
build_slots(KdbApplyTarget *target)
{
	const TupleTableSlotOps *ops = table_slot_callbacks(target->rel);

	target->tupdesc = CreateTupleDescCopyConstr(RelationGetDescr(target->rel));
	target->local = MakeSingleTupleTableSlot(target->tupdesc, ops);
	target->scratch = MakeSingleTupleTableSlot(target->tupdesc, ops);
	target->search = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
	target->merged = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
	target->remote.slot = MakeSingleTupleTableSlot(target->tupdesc, &TTSOpsVirtual);
	target->remote.sent = palloc0_array(bool, target->tupdesc->natts + 1);
	target->equality = palloc0_array(TypeCacheEntry *, target->tupdesc->natts + 1);
	target->compared = palloc0_array(bool, target->tupdesc->natts + 1);
}

static void
free_target(KdbApplyTarget *target)
{
	if (target->context)
	{
		FreeExecutorState(target->estate);
		MemoryContextDelete(target->context);
	}
	target->context = NULL;
}

/* Build all of it; target->rel is open. */
static void
build_target(KdbApplyTarget *target)
{
	Relation	rel = target->rel;
	Oid			relid = target->relid;
	dlist_node	link = target->open_link;
	MemoryContext old;
	KdbUserContext user;

	free_target(target);
	memset(target, 0, sizeof(KdbApplyTarget));
	target->relid = relid;
	target->rel = rel;
	target->open_link = link;
	target->valid = true;
	target->context = AllocSetContextCreate(ApplyContext, "KrahoDB apply target",
											ALLOCSET_SMALL_SIZES);
	target->scan_context = AllocSetContextCreate(target->context, "KrahoDB key lookup",
												 ALLOCSET_DEFAULT_SIZES);
	KdbSwitchToPrepare(rel, &user);
	old = MemoryContextSwitchTo(target->context);
	build_executor_state(target);
	build_slots(target);
	build_key(target, RowExclusiveLock);
	MemoryContextSwitchTo(target->estate->es_query_cxt);
	build_indexes(target);
	MemoryContextSwitchTo(target->context);
	build_options(target);
	MemoryContextSwitchTo(old);
	target->domains = KdbTargetConvertsToDomain(target);
	target->reading_checks = checks_read_tables(rel);
	KdbRestoreUser(&user);
}

/*
 * Open the indexes for this transaction.  What an index method cached in its
 * IndexInfo may point into the relcache, so it is not kept.
 */
void
KdbTargetOpenIndexes(KdbApplyTarget *target)
{
	ResultRelInfo *relinfo = target->relinfo;

	if (target->indexes_open)
		return;
	for (int i = 0; i < target->nindexes; i++)
	{
		IndexInfo  *info = relinfo->ri_IndexRelationInfo[i];

		relinfo->ri_IndexRelationDescs[i] = index_open(target->index_oids[i],
													   RowExclusiveLock);
		info->ii_AmCache = NULL;
		info->ii_Context = TopTransactionContext;
	}
	target->indexes_open = true;
}

/*
 * The mapping to the publisher's relation: which columns are sent, and whether
 * every column of the local identity is part of the identity that is sent.
 */
static void
bind_remote(KdbApplyTarget *target, KdbApplyRelation *rel)
{
	target->bound_to = rel->generation;
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(target->tupdesc, i);

		target->compared[i] = !att->attisdropped && !att->attgenerated &&
			KdbRemoteColumn(rel, NameStr(att->attname)) >= 0;
	}

	target->updatable = true;
	if (!OidIsValid(target->identity_index))
		target->updatable = rel->replident == REPLICA_IDENTITY_FULL;
	for (int i = 0; i < target->nkeys; i++)
	{
		AttrNumber	attnum = target->key_attnum[i];
		int			remote;

		if (!AttrNumberIsForUserDefinedAttr(attnum))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("logical replication target relation \"%s.%s\" uses system columns in REPLICA IDENTITY index",
							rel->nspname, rel->relname)));
		remote = KdbRemoteColumn(rel, NameStr(TupleDescAttr(target->tupdesc, attnum - 1)->attname));
		if (remote < 0 || !rel->attkeys[remote])
			target->updatable = false;
	}
}

/* See relation_private.h. */
void
KdbTargetCheckUpdatable(KdbApplyTarget *target, KdbApplyRelation *rel)
{
	if (target->updatable)
		return;
	if (OidIsValid(target->identity_index))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("publisher did not send replica identity column expected by the logical replication target relation \"%s.%s\"",
						rel->nspname, rel->relname)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("logical replication target relation \"%s.%s\" has neither REPLICA IDENTITY index nor PRIMARY KEY and published relation does not have REPLICA IDENTITY FULL",
					rel->nspname, rel->relname)));
}

/* Forget tables that were dropped, or have changed and are not written to any more. */
static void
sweep(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyTarget *target;

	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
	{
		if (target->valid || target->rel != NULL)
			continue;
		free_target(target);
		(void) hash_search(targets, &target->relid, HASH_REMOVE, NULL);
	}
	sweep_size = Max(KDB_MIN_SWEEP_SIZE, 2 * hash_get_num_entries(targets));
}

static KdbApplyTarget *
find_or_add(Oid relid)
{
	KdbApplyTarget *target = hash_search(targets, &relid, HASH_FIND, NULL);

	if (target != NULL)
		return target;
	if (hash_get_num_entries(targets) >= sweep_size)
		sweep();
	target = hash_search(targets, &relid, HASH_ENTER, NULL);
	memset(target, 0, sizeof(KdbApplyTarget));
	target->relid = relid;
	return target;
}

/*
 * The table with everything that writing to it needs, open and locked until
 * the transaction ends.  "remote" is what its columns are mapped to.
 */
KdbApplyTarget *
KdbTargetOpen(Oid relid, LOCKMODE lockmode, KdbApplyRelation *remote)
{
	KdbApplyTarget *target;

	if (targets == NULL)
		targets_init();
	target = find_or_add(relid);
	if (target->rel == NULL)
	{
		target->rel = table_open(relid, lockmode);
		dlist_push_tail(&open_targets, &target->open_link);
		if (target->valid)
			target->relinfo->ri_RelationDesc = target->rel;
		else
		{
			dlist_delete(&target->open_link);
			build_target(target);
			dlist_push_tail(&open_targets, &target->open_link);
		}
	}
	if (target->bound_to != remote->generation)
		bind_remote(target, remote);
	if (target->resolving && KdbInEarly())
		KdbEarlyGiveUp("a table has resolvers");
	if (target->fires || target->reading_checks)
		(void) KdbLaneSettle(); /* they may read what earlier transactions write */
	return target;
}

/* See relation_private.h. */
bool
KdbTargetOpenToRead(KdbApplyTarget *target, Relation rel)
{
	memset(target, 0, sizeof(KdbApplyTarget));
	target->relid = RelationGetRelid(rel);
	target->rel = rel;
	target->context = CurrentMemoryContext;
	build_slots(target);
	build_key(target, AccessShareLock);
	if (!OidIsValid(target->identity_index))
		return false;
	KdbTargetBuildMerged(target);
	target->relinfo = makeNode(ResultRelInfo);
	target->relinfo->ri_IndexRelationDescs = palloc_array(Relation, 1);
	target->relinfo->ri_IndexRelationDescs[0] = index_open(target->identity_index, AccessShareLock);
	target->nindexes = 1;
	target->index_oids = palloc_array(Oid, 1);
	target->index_oids[0] = target->identity_index;
	target->left_out = palloc0_array(KdbLeftOut *, 1);
	target->lacks_before = palloc_array(TransactionId, 1);
	target->lacks_before[0] = KdbIndexLacksBefore(target->relinfo->ri_IndexRelationDescs[0]);
	target->lacks_tuples = TransactionIdIsValid(target->lacks_before[0]);
	target->indexes_open = true;
	return true;
}

/* See relation_private.h. */
void
KdbTargetCloseRead(KdbApplyTarget *target)
{
	ExecClearTuple(target->scratch);
	index_close(target->relinfo->ri_IndexRelationDescs[0], NoLock);
}

/* See relation_private.h. */
void
KdbTargetDropTriggerSlots(KdbApplyTarget *target)
{
	ExecResetTupleTable(target->estate->es_tupleTable, true);
	target->estate->es_tupleTable = NIL;
	target->relinfo->ri_TrigOldSlot = NULL;
	target->relinfo->ri_TrigNewSlot = NULL;
	target->relinfo->ri_ReturningSlot = NULL;
}

/* See relation_private.h. */
void
KdbTargetLookedIn(KdbApplyTarget *target)
{
	if (target->looked_in)
		return;
	target->looked_in = true;
	dlist_push_tail(&looked_in, &target->looked_in_link);
	nlooked_in++;
}

/* End scans, and let go of the row that was found last. */
static void
let_go(KdbApplyTarget *target)
{
	if (target->scan)
	{
		index_endscan(target->scan);
		target->scan = NULL;
		MemoryContextReset(target->scan_context);
	}
	KdbWalkEnd(target);
	ExecClearTuple(target->local);
	if (!target->looked_in)
		return;
	target->looked_in = false;
	dlist_delete(&target->looked_in_link);
	nlooked_in--;
}

/*
 * See relation_private.h.  Each holds two or three pages: a transaction that changes ten
 * thousand partitions would have all buffers of the server.
 */
void
KdbTargetsLetGo(void)
{
	if (nlooked_in <= MAX_LOOKED_IN)
		return;
	while (!dlist_is_empty(&looked_in))
		let_go(dlist_head_element(KdbApplyTarget, looked_in_link, &looked_in));
}

static void
close_target(KdbApplyTarget *target)
{
	Assert(target->part == NULL);
	let_go(target);
	ExecClearTuple(target->scratch);
	ExecClearTuple(target->search);
	ExecClearTuple(target->merged);
	ExecClearTuple(target->remote.slot);

	KdbTargetDropTriggerSlots(target);
	ResetPerTupleExprContext(target->estate);
	if (target->indexes_open)
	{
		for (int i = 0; i < target->nindexes; i++)
		{
			index_close(target->relinfo->ri_IndexRelationDescs[i], NoLock);
			target->relinfo->ri_IndexRelationDescs[i] = NULL;
		}
		target->indexes_open = false;
	}
	table_close(target->rel, NoLock);
	target->rel = NULL;
	target->relinfo->ri_RelationDesc = NULL;
	target->recall.blocks = 0;
	dlist_delete(&target->open_link);
}

/* Close all of them; locks stay until the transaction ends. */
void
KdbTargetsClose(void)
{
	while (!dlist_is_empty(&open_targets))
		close_target(dlist_head_element(KdbApplyTarget, open_link, &open_targets));
}

/* See relation_private.h. */
void
KdbTargetsCloseOthers(KdbApplyTarget *target, KdbApplyTarget *from)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &open_targets)
	{
		KdbApplyTarget *other = dlist_container(KdbApplyTarget, open_link, iter.cur);

		if (other != target && other != from)
			close_target(other);
	}
}

/* See relation_private.h. */
void
KdbTargetsAbandon(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyTarget *target;

	dlist_init(&open_targets);
	dlist_init(&looked_in);
	nlooked_in = 0;
	if (targets == NULL)
		return;
	hash_seq_init(&status, targets);
	while ((target = hash_seq_search(&status)) != NULL)
	{
		if (target->context)
			MemoryContextDelete(target->context);
		(void) hash_search(targets, &target->relid, HASH_REMOVE, NULL);
	}
}

/*
 * Privileges, verified again when the table has changed (what is granted on it is a part of
 * it), and when any role, membership or database's owner has.
 */
void
KdbTargetCheck(KdbApplyTarget *target, AclMode mode)
{
	Oid			role = GetUserId();

	if (target->checked_role != role || target->checked_roles != roles)
		target->checked = 0;
	if ((target->checked & mode) == mode)
		return;
	target->checked_role = role;
	target->checked_roles = roles;	/* a change from here on counts */
	KdbCheckTargetPrivileges(target->rel, mode);
	target->checked |= mode;
}
