/*
 * relation.c
 *		The publisher's relations and the local tables of the same name.
 *
 * A RELATION message says what the publisher's table looks like; it comes
 * before the first change of the table in a connection and whenever the table
 * has changed there.  The local table is found by name when the first change
 * comes, and the mapping of columns is kept until either side changes.
 *
 * A relation that is dropped there says nothing.  If another one gets its name it is forgotten: it was
 * dropped, or renamed, and then it would be sent again before its next change.  Of others, the table
 * is dropped here as well, sooner or later.  When there are many whose table is gone, the worker
 * starts anew, and the publisher with it, who sends again what is still needed.
 *
 * Relations are opened and locked at their first change in a transaction, and
 * all closed together when it ends (KdbApplyRelationsClose).  Locks stay to
 * the end of the transaction, as the engine's worker holds them.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_subscription_rel.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "storage/ipc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "relation_private.h"

static HTAB *relations = NULL;
static long sweep_size = KDB_MIN_SWEEP_SIZE;	/* number of entries to sweep at */
static bool swept = false;		/* and have not been counted since */
static uint64 last_generation = 0;
static dlist_head open_relations = DLIST_STATIC_INIT(open_relations);

static void
relation_invalidated(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;

	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || rel->localreloid == relid)
			rel->valid = false;
	}
}

/*
 * A function has changed: it may be an input function or part of a default.  Or a schema:
 * when it is renamed, its tables have another name.
 */
static void
function_or_schema_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	relation_invalidated((Datum) 0, InvalidOid);
}

/* A type has changed: it may be a domain, see domains.c. */
static void
type_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;

	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
	{
		if (rel->domains)
			rel->valid = false;
	}
}

static void
relations_init(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(uint32);
	ctl.entrysize = sizeof(KdbApplyRelation);
	ctl.hcxt = ApplyContext;
	relations = hash_create("KrahoDB apply relations", 128, &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(relation_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, function_or_schema_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, function_or_schema_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(TYPEOID, type_changed, (Datum) 0);
}

/* Forget what was derived from the local table. */
static void
forget_local(KdbApplyRelation *rel)
{
	Assert(rel->rel == NULL);
	if (rel->context)
		MemoryContextDelete(rel->context);
	rel->context = NULL;
	rel->inputs = NULL;
	rel->search = NULL;
	rel->remote.slot = NULL;
	rel->valid = false;
}

static void
close_relation(KdbApplyRelation *rel)
{
	if (rel->search)
		ExecClearTuple(rel->search);
	if (rel->remote.slot)
		ExecClearTuple(rel->remote.slot);
	if (rel->routing)
		KdbRoutingClose(rel);
	rel->target = NULL;
	table_close(rel->rel, NoLock);
	rel->rel = NULL;
	dlist_delete(&rel->open_link);
}

/* See apply_private.h. */
void
KdbApplyRelationsClose(void)
{
	KdbBatchFlush();
	while (!dlist_is_empty(&open_relations))
		close_relation(dlist_head_element(KdbApplyRelation, open_link, &open_relations));
	KdbTargetsClose();
}

static void
close_others(KdbApplyRelation *rel, KdbApplyTarget *target, KdbApplyTarget *from)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &open_relations)
	{
		KdbApplyRelation *other = dlist_container(KdbApplyRelation, open_link, iter.cur);

		if (other != rel)
			close_relation(other);
	}
	if (rel->routing)
		KdbRoutingClose(rel);
	KdbTargetsCloseOthers(target, from);
}

/* See relation_private.h. */
void
KdbReadyToRead(KdbApplyRelation *rel, KdbApplyTarget *target, KdbApplyTarget *from)
{
	if (target->fires)
		close_others(rel, target, from);
	if (target->fires || target->reading_checks)
		KdbApplyFreshSnapshot();
}

/*
 * See apply_private.h.  Slots, scans and executor states may refer to buffers and
 * relations that the abort has released; so they are not closed, but forgotten with the
 * memory that they are in.
 */
void
KdbApplyRelationsAbandon(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;

	dlist_init(&open_relations);
	KdbBatchAbandon();
	KdbTargetsAbandon();
	if (relations == NULL)
		return;
	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
	{
		KdbRoutingAbandon(rel);
		rel->rel = NULL;
		rel->message = NULL;
		rel->target = NULL;
		forget_local(rel);
	}
}

void
KdbApplyRelationsForgetStates(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;

	if (relations == NULL)
		return;
	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
		rel->state_known = false;
}

void
KdbApplyRelationsForgetOptions(void)
{
	KdbTargetsForgetOptions();
}

/*
 * Forget what was derived from tables that were dropped, or have changed and are not
 * written to any more.  What the publisher said of them stays: it says it once.
 */
static void
sweep(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;

	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
	{
		if (rel->rel != NULL)
			continue;
		if (!rel->valid || rel->superseded)
			forget_local(rel);
		if (!rel->superseded)
			continue;
		MemoryContextDelete(rel->remote_context);
		(void) hash_search(relations, &rel->remoteid, HASH_REMOVE, NULL);
	}
	sweep_size = Max(KDB_MIN_SWEEP_SIZE, 2 * hash_get_num_entries(relations));
	swept = true;
}

/* Its name is that of another one no more.  (That may still be needed in this transaction.) */
static void
supersede(const KdbApplyRelation *rel)
{
	static HTAB *names = NULL;
	uint32		before = KdbTakeName(&names, rel->nspname, rel->relname, rel->remoteid);
	KdbApplyRelation *other = before == rel->remoteid ? NULL : hash_search(relations, &before, HASH_FIND, NULL);

	if (other == NULL || strcmp(other->relname, rel->relname) != 0 || strcmp(other->nspname, rel->nspname) != 0)
		return;
	other->superseded = true;
	if (other->rel == NULL)
		forget_local(other);
}

/* Relations whose table does not exist here. */
static long
count_gone(void)
{
	HASH_SEQ_STATUS status;
	KdbApplyRelation *rel;
	long		gone = 0;

	hash_seq_init(&status, relations);
	while ((rel = hash_seq_search(&status)) != NULL)
	{
		Oid			namespace = get_namespace_oid(rel->nspname, true);

		if (!OidIsValid(namespace) || !OidIsValid(get_relname_relid(rel->relname, namespace)))
			gone++;
	}
	return gone;
}

/* See apply_private.h. */
void
KdbApplyRelationsLook(void)
{
	long		gone;

	if (!swept || am_tablesync_worker())
		return;
	swept = false;
	StartTransactionCommand();
	gone = count_gone();
	CommitTransactionCommand();
	if (gone < KDB_MIN_SWEEP_SIZE || gone < hash_get_num_entries(relations) / 2)
		return;
	(void) KdbRetrySchedule(InvalidXLogRecPtr);
	ereport(LOG,
			(errmsg("logical replication apply worker for subscription \"%s\" will restart to forget %ld tables that do not exist any more",
					MySubscription->name, gone)));
	proc_exit(0);
}

/* A RELATION message: what the publisher's table looks like from now on. */
void
KdbApplyHandleRelation(const KdbWireMessage *message)
{
	KdbApplyRelation *rel;
	MemoryContext old;
	uint32		remoteid = message->u.relation.relid;
	bool		found;

	KdbBatchFlush();
	if (relations == NULL)
		relations_init();

	if (hash_get_num_entries(relations) >= sweep_size)
		sweep();
	rel = hash_search(relations, &remoteid, HASH_ENTER, &found);
	if (found)
	{
		if (rel->rel)
			close_relation(rel);
		forget_local(rel);
		MemoryContextDelete(rel->remote_context);
	}
	memset(rel, 0, sizeof(KdbApplyRelation));
	rel->remoteid = remoteid;
	rel->generation = ++last_generation;
	rel->remote_context = AllocSetContextCreate(ApplyContext, "KrahoDB remote relation",
												ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(rel->remote_context);
	rel->nspname = pstrdup(message->u.relation.nspname[0] ?
						   message->u.relation.nspname : "pg_catalog");
	rel->relname = pstrdup(message->u.relation.relname);
	rel->replident = message->u.relation.replident;
	rel->natts = message->u.relation.natts;
	rel->attnames = palloc_array(char *, rel->natts + 1);
	rel->atttypes = palloc_array(Oid, rel->natts + 1);
	rel->attkeys = palloc_array(bool, rel->natts + 1);
	for (int i = 0; i < rel->natts; i++)
	{
		const KdbWireAttribute *att = &message->u.relation.atts[i];

		rel->attnames[i] = pstrdup(att->name);
		rel->atttypes[i] = att->type;
		rel->attkeys[i] = att->key || rel->replident == REPLICA_IDENTITY_FULL;
	}
	MemoryContextSwitchTo(old);
	supersede(rel);
}

/* See relation_private.h. */
int
KdbRemoteColumn(KdbApplyRelation *rel, const char *name)
{
	for (int i = 0; i < rel->natts; i++)
	{
		if (strcmp(rel->attnames[i], name) == 0)
			return i;
	}
	return -1;
}

/* All columns that are sent must exist here. */
static void
report_missing_columns(KdbApplyRelation *rel, const bool *mapped)
{
	StringInfoData names;
	int			missing = 0;

	initStringInfo(&names);
	for (int i = 0; i < rel->natts; i++)
	{
		if (mapped[i])
			continue;
		appendStringInfo(&names, missing++ == 0 ? _("\"%s\"") : _(", \"%s\""),
						 rel->attnames[i]);
	}
	if (missing > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg_plural("logical replication target relation \"%s.%s\" is missing replicated column: %s",
							   "logical replication target relation \"%s.%s\" is missing replicated columns: %s",
							   missing, rel->nspname, rel->relname, names.data)));
}

static void
map_columns(KdbApplyRelation *rel)
{
	TupleDesc	desc = rel->tupdesc;
	bool	   *mapped = palloc0_array(bool, rel->natts + 1);

	rel->nlocal = desc->natts;
	rel->inputs = palloc0_array(KdbColumnInput, desc->natts + 1);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		int			remote = -1;

		if (!att->attisdropped && !att->attgenerated)
			remote = KdbRemoteColumn(rel, NameStr(att->attname));
		rel->inputs[i].remote = remote;
		if (remote >= 0)
		{
			rel->inputs[i].remote_type = rel->atttypes[remote];
			mapped[remote] = true;
		}
	}
	report_missing_columns(rel, mapped);
	pfree(mapped);
}

/* Functions of users, also those that are STABLE. */
static bool
is_reader(Oid function, void *context)
{
	return function >= FirstNormalObjectId && func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

static bool
calls_reader(Node *node, void *context)
{
	if (node == NULL)
		return false;
	return check_functions_in_node(node, is_reader, context) ||
		expression_tree_walker(node, calls_reader, context);
}

/* See relation_private.h. */
bool
KdbMayReadTables(Node *planned)
{
	return calls_reader(planned, NULL);
}

/* Local columns that the publisher does not have get their defaults. */
static void
prepare_defaults(KdbApplyRelation *rel)
{
	rel->default_attnums = palloc_array(AttrNumber, rel->nlocal + 1);
	rel->default_exprs = palloc_array(ExprState *, rel->nlocal + 1);
	for (int i = 0; i < rel->nlocal; i++)
	{
		Form_pg_attribute att = TupleDescAttr(rel->tupdesc, i);
		Expr	   *expr;
		bool		reads;

		if (att->attisdropped || att->attgenerated || rel->inputs[i].remote >= 0)
			continue;
		expr = (Expr *) build_column_default(rel->rel, i + 1);
		if (expr == NULL)
			continue;
		expr = expression_planner(expr);
		reads = KdbMayReadTables((Node *) expr);
		rel->volatile_defaults |= reads || contain_volatile_functions_not_nextval((Node *) expr);
		rel->ordered_defaults |= reads || contain_volatile_functions((Node *) expr);
		rel->domains |= KdbConvertsToDomain((Node *) expr);
		rel->default_attnums[rel->ndefaults] = i;
		rel->default_exprs[rel->ndefaults++] = ExecInitExpr(expr, NULL);
	}
}

/* Build everything that depends on the local table; rel->rel is open. */
static void
build_local(KdbApplyRelation *rel)
{
	MemoryContext context = AllocSetContextCreate(ApplyContext, "KrahoDB apply relation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KdbUserContext user;

	rel->context = context;
	rel->tupdesc = CreateTupleDescCopyConstr(RelationGetDescr(rel->rel));
	rel->partitioned = rel->rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	rel->ndefaults = 0;
	rel->volatile_defaults = false;
	rel->ordered_defaults = false;
	rel->domains = false;
	map_columns(rel);
	KdbSwitchToPrepare(rel->rel, &user);
	prepare_defaults(rel);
	KdbRestoreUser(&user);
	rel->search = MakeSingleTupleTableSlot(rel->tupdesc, &TTSOpsVirtual);
	rel->remote.slot = MakeSingleTupleTableSlot(rel->tupdesc, &TTSOpsVirtual);
	rel->remote.sent = palloc0_array(bool, rel->nlocal + 1);
	MemoryContextSwitchTo(old);
}

/* Lock the table by name and build the mapping; leaves rel->rel open. */
static void
open_by_name(KdbApplyRelation *rel, LOCKMODE lockmode)
{
	Oid			relid;

	forget_local(rel);
	relid = RangeVarGetRelid(makeRangeVar(rel->nspname, rel->relname, -1),
							 lockmode, true);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("logical replication target relation \"%s.%s\" does not exist",
						rel->nspname, rel->relname)));
	rel->localreloid = relid;
	rel->valid = true;			/* an invalidation from here on counts */
	rel->rel = table_open(relid, NoLock);
	dlist_push_tail(&open_relations, &rel->open_link);
	CheckSubscriptionRelkind(rel->rel->rd_rel->relkind, rel->nspname, rel->relname);
	build_local(rel);
	rel->state_known = false;
}

/* Lock the table by OID; false if it is not what we know any more. */
static bool
open_by_oid(KdbApplyRelation *rel, LOCKMODE lockmode)
{
	Relation	local = try_table_open(rel->localreloid, lockmode);

	if (local == NULL)
	{
		rel->valid = false;
		return false;
	}
	if (!rel->valid)			/* the lock brought an invalidation */
	{
		table_close(local, lockmode);
		return false;
	}
	rel->rel = local;
	dlist_push_tail(&open_relations, &rel->open_link);
	return true;
}

/* See apply_private.h. */
KdbApplyRelation *
KdbApplyRelationOpen(uint32 remoteid, LOCKMODE lockmode)
{
	KdbApplyRelation *rel = NULL;

	if (relations)
		rel = hash_search(relations, &remoteid, HASH_FIND, NULL);
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("no relation map entry for remote relation ID %u",
								 remoteid)));

	rel->superseded = false;

	/* A stronger lock than we hold (TRUNCATE after INSERT) is taken anew. */
	if (rel->rel && rel->lockmode < lockmode)
		KdbApplyRelationsClose();
	if (rel->rel == NULL)
	{
		if (!(rel->valid && open_by_oid(rel, lockmode)))
			open_by_name(rel, lockmode);
		rel->lockmode = lockmode;
		if (!rel->state_known || rel->state != SUBREL_STATE_READY)
		{
			rel->state = KdbSync->relation_state(rel->localreloid, &rel->statelsn);
			rel->state_known = true;
		}
	}
	return rel;
}

Relation
KdbApplyRelationLocal(KdbApplyRelation *rel)
{
	return rel->rel;
}

/*
 * Whose turn is it?  A sync worker takes only its own table; the apply worker
 * takes tables that are ready, or synchronised up to a point before the end
 * of this transaction (<=: that point may be the start of this commit record).
 */
bool
KdbApplyRelationWanted(KdbApplyRelation *rel)
{
	if (OidIsValid(MyLogicalRepWorker->relid))
		return MyLogicalRepWorker->relid == rel->localreloid;
	if (rel->state != SUBREL_STATE_READY && KdbInEarly())
		KdbEarlyGiveUp("a table is not ready");
	return rel->state == SUBREL_STATE_READY ||
		(rel->state == SUBREL_STATE_SYNCDONE &&
		 rel->statelsn <= KdbApply.remote_final_lsn);
}
