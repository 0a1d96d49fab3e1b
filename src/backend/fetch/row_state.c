/*
 * row_state.c
 *		The state that a key has at this node, for a subscriber that fetches it.
 *
 * krahodb.row_state(...) answers what a subscriber's apply worker asks when a change did
 * not contain all of its row (apply/fetch.c): the key's row here with its true
 * version, or the version at which the key died.
 *
 *	live		there is a row
 *	filtered	there is one, but the subscriber's publications do not let it through
 *	dead		there is none; the version is that of its newest death
 *	absent		nothing is known of the key
 *
 * TRUNCATE leaves no dead rows.  But it gives the key's index new storage, and nothing else that is done
 * often does.  So if nothing is known of a key that the writer has written, or what is known is older than that (a record of
 * an earlier death, or a change that came by another stream, made before the writer's and after TRUNCATE here), and its index got new storage
 * afterwards, the key died with that: it is dead, as if the writer had left it so.  TRUNCATE has no version; it comes by the
 * stream, behind the writer.
 *
 * ONE SNAPSHOT.  Row and version records are read with the snapshot of the caller's query,
 * deaths of transactions that it sees.  Nobody is waited for, not even writers of
 * version records: two nodes that fetch from each other would wait in a circle.
 *
 * THE WRITER.  The subscriber says which transaction of this server it is applying.  Its
 * commit record may have been sent before others see the transaction: a
 * moment at each commit, for long if it waits for a synchronous standby, which
 * may be that very subscriber; and a prepared one is sent before it is committed.
 * Then the snapshot does not see the row as it was written.  But such a transaction
 * still has its rows locked, so what it has made of the key is found among all tuples of
 * the key, and cannot change meanwhile.
 *
 * PRIVILEGES.  The caller needs SELECT on the columns that he asks for and on those of
 * the key, and no row level security may apply to him, as for an initial copy.  The caller is often
 * a superuser, the table anybody's: constraints of the key's domains and expressions of the
 * partition key are evaluated with the rights of the table's owner (find_key).
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/subtrans.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/tupconvert.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "krahodb/compat.h"
#include "krahodb/conflict.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/node.h"
#include "krahodb/output.h"
#include "krahodb/stream.h"
#include "krahodb/version_record.h"

KDB_SQL_FUNCTION(krahodb_row_state);

/* A key that is asked for. */
typedef struct Asked
{
	Relation	named;			/* as the subscriber names it */
	Relation	rel;			/* the same, or the partition of the key */
	Relation	index;			/* rel's replica identity */
	int			nkeys;
	ScanKeyData scan_keys[INDEX_MAX_KEYS];
	KdbRecordedKey key;
	KdbVersionRecordsKnown records;
	KdbRewrites rewrites;
	TransactionId writer;
	Snapshot	snapshot;
	TupleTableSlot *search;		/* virtual, rel's format: the key */
	TupleTableSlot *slot;		/* the row, if there is one */
} Asked;

/* What is known of it. */
typedef struct Found
{
	const char *state;
	bool		own;			/* by the writer */
	KdbLocalRow row;
} Found;

/* ---- the question ---------------------------------------------------------- */

static List *
text_list(ArrayType *array)
{
	List	   *result = NIL;
	Datum	   *elements;
	bool	   *isnull;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &isnull, &n);
	for (int i = 0; i < n; i++)
	{
		if (isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("names and key values must not be null")));
		result = lappend(result, TextDatumGetCString(elements[i]));
	}
	return result;
}

static AttrNumber
column_number(Relation rel, const char *name)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(rel))));
	return attnum;
}

static void
check_privileges(Relation rel, List *columns)
{
	Oid			relid = RelationGetRelid(rel);
	ListCell   *lc;

	if (check_enable_rls(relid, InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("rows of table \"%s\" cannot be fetched by role \"%s\" because of row-level security",
						RelationGetRelationName(rel), GetUserNameFromId(GetUserId(), false))));
	if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK)
		return;
	foreach(lc, columns)
	{
		AclResult	result = pg_attribute_aclcheck(relid, column_number(rel, lfirst(lc)),
												   GetUserId(), ACL_SELECT);

		if (result != ACLCHECK_OK)
			aclcheck_error(result, OBJECT_TABLE, RelationGetRelationName(rel));
	}
}

static Relation
open_named(const char *nspname, const char *relname)
{
	RangeVar   *name = makeRangeVar(pstrdup(nspname), pstrdup(relname), -1);
	Relation	rel = table_openrv(name, AccessShareLock);
	char		relkind = rel->rd_rel->relkind;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", relname)));
	return rel;
}

/* A slot that no resource owner knows of. */
static TupleTableSlot *
virtual_slot(Relation rel)
{
	return MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(rel)), &TTSOpsVirtual);
}

/* The key's values in a row that has nothing else.  What a domain allows was asked when they were written. */
static TupleTableSlot *
read_key(Relation rel, List *names, List *values)
{
	TupleDesc	desc = RelationGetDescr(rel);
	TupleTableSlot *slot = virtual_slot(rel);
	ListCell   *name;
	ListCell   *value;

	if (list_length(names) != list_length(values))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there must be as many key values as key columns")));
	memset(slot->tts_isnull, true, desc->natts * sizeof(bool));
	forboth(name, names, value, values)
	{
		AttrNumber	attnum = column_number(rel, lfirst(name));
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);
		int32		typmod = att->atttypmod;
		Oid			function;
		Oid			ioparam;

		getTypeInputInfo(getBaseTypeAndTypmod(att->atttypid, &typmod), &function, &ioparam);
		slot->tts_values[attnum - 1] = OidInputFunctionCall(function, lfirst(value), ioparam, typmod);
		slot->tts_isnull[attnum - 1] = false;
	}
	return ExecStoreVirtualTuple(slot);
}

/* ---- partitions ------------------------------------------------------------ */

/* The partition that the key belongs to, by the engine's tuple routing. */
static Oid
route_key(Relation root, TupleTableSlot *slot)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	ResultRelInfo *result = makeNode(ResultRelInfo);
	ModifyTableState *mtstate = makeNode(ModifyTableState);
	PartitionTupleRouting *routing;
	Oid			relid;

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(root);
	rte->relkind = RELKIND_PARTITIONED_TABLE;
	rte->rellockmode = AccessShareLock;
	ExecInitRangeTable(estate, list_make1(rte));
	InitResultRelInfo(result, root, 1, NULL, 0);
	mtstate->ps.state = estate;
	mtstate->operation = CMD_INSERT;
	mtstate->resultRelInfo = result;
	routing = ExecSetupPartitionTupleRouting(estate, root);
	relid = RelationGetRelid(ExecFindPartition(mtstate, result, routing, slot, estate)->ri_RelationDesc);
	LockRelationOid(relid, AccessShareLock);
	ExecCleanupTupleRouting(mtstate, routing);
	ExecResetTupleTable(estate->es_tupleTable, false);
	MemoryContextSwitchTo(old);
	FreeExecutorState(estate);
	return relid;
}

/* A row of one relation of a partition tree in the format of another. */
static TupleTableSlot *
reformat(TupleTableSlot *slot, Relation from, Relation to)
{
	AttrMap    *map = build_attrmap_by_name_if_req(RelationGetDescr(from), RelationGetDescr(to));

	if (map == NULL)
		return slot;
	return execute_attr_map_slot(map, slot, virtual_slot(to));
}

/* Read the key, and find the partition that it belongs to. */
static void
find_key(Asked *asked, List *names, List *values)
{
	Relation	named = asked->named;
	Oid			partition = InvalidOid;
	Oid			user;
	int			security;
	int			level;

	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(named->rd_rel->relowner, security | SECURITY_RESTRICTED_OPERATION);
	level = NewGUCNestLevel();
	asked->search = read_key(named, names, values);
	if (named->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		partition = route_key(named, asked->search);
	AtEOXact_GUC(false, level);
	SetUserIdAndSecContext(user, security);

	asked->rel = named;
	if (!OidIsValid(partition))
		return;
	asked->rel = table_open(partition, NoLock);
	if (asked->rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", RelationGetRelationName(asked->rel))));
	asked->search = reformat(asked->search, asked->named, asked->rel);
}

/* ---- the index ------------------------------------------------------------- */

static void
set_key(Asked *asked, int i)
{
	Relation	index = asked->index;
	AttrNumber	attnum = index->rd_index->indkey.values[i];

	if (asked->search->tts_isnull[attnum - 1])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the key does not contain column \"%s\" of the replica identity of table \"%s\"",
						get_attname(RelationGetRelid(asked->rel), attnum, false),
						RelationGetRelationName(asked->rel))));
	ScanKeyEntryInitialize(&asked->scan_keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
						   index->rd_indcollation[i],
						   KdbIndexOperatorFunction(index, i, BTEqualStrategyNumber),
						   asked->search->tts_values[attnum - 1]);
	asked->key.values[i] = asked->search->tts_values[attnum - 1];
	asked->key.isnull[i] = false;
	asked->key.types[i] = TupleDescAttr(RelationGetDescr(asked->rel), attnum - 1)->atttypid;
	asked->key.collations[i] = index->rd_indcollation[i];
	asked->key.columns[i] = attnum;
}

static void
open_index(Asked *asked)
{
	Oid			relid = RelationGetReplicaIndex(asked->rel);

	if (!OidIsValid(relid))
		relid = RelationGetPrimaryKeyIndex(asked->rel);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" has no replica identity index",
						RelationGetRelationName(asked->rel))));
	asked->index = index_open(relid, AccessShareLock);
	asked->nkeys = asked->key.n = IndexRelationGetNumberOfKeyAttributes(asked->index);
	for (int i = 0; i < asked->nkeys; i++)
		set_key(asked, i);
	if (KdbIndexHasOwnEquality(asked->index, &asked->key))
		asked->key.operators = asked->scan_keys;
}

/* ---- what is here ---------------------------------------------------------- */

/* Records of the key that apply to what a transaction of version "shown" did. */
typedef struct Truth
{
	const Asked *asked;
	KdbVersionRecordKind kind;	/* TRUTH or KILLED */
	bool		applies;
	KdbVersion	shown;
	KdbVersion	version;		/* the greatest of those that apply */
	bool		dead;			/* DEAD records exist; the greatest of their versions: */
	KdbVersion	death;
} Truth;

static void
collect_truth(void *arg, const KdbVersionRecord *record)
{
	Truth	   *truth = arg;

	if (record->kind == KDB_RECORD_DEAD)
	{
		if (!truth->dead || KdbVersionCompare(record->version, truth->death) > 0)
			truth->death = record->version;
		truth->dead = true;
	}
	if (record->kind != truth->kind || KdbVersionCompare(record->shown, truth->shown) != 0)
		return;
	if (!truth->applies || KdbVersionCompare(record->version, truth->version) > 0)
		truth->version = record->version;
	truth->applies = true;
}

static void
look_at_records(Truth *truth)
{
	const Asked *asked = truth->asked;

	if (asked->records.any)
		KdbVersionRecordsOfKeyIn(RelationGetRelid(asked->rel), &asked->key, asked->snapshot,
								 collect_truth, truth);
}

/* Does another version count for what the heap shows in row? */
static bool
correct_version(const Asked *asked, KdbVersionRecordKind kind, KdbVersion shown, KdbLocalRow *row)
{
	Truth		truth = {.asked = asked, .kind = kind, .shown = shown};

	if (row->version_known)
		look_at_records(&truth);
	if (truth.applies)
		row->version = truth.version;
	return truth.applies;
}

/*
 * The version of the live row; false if it is the writer's.
 *
 * A row that ALTER TABLE has written anew is not as new as the command.  What it was before is in a
 * record if that was newer than the horizon.  Else nobody knows (somebody who is not waited for may
 * still be behind the horizon); but the change that is applied came before the command, or the row
 * would be its, so the row has that or something later.  As that change's it is merged: whatever
 * is later than that comes by its own node's stream, or has come.
 */
static bool
find_version(Asked *asked, KdbLocalRow *row)
{
	const KdbRewrite *rewrite = KdbFindRewrite(RelationGetRelid(asked->rel), &asked->rewrites,
											   &asked->records, CurrentMemoryContext,
											   asked->slot, row->xid);
	KdbVersion	shown = rewrite ? KdbRewriteShown(rewrite) : row->version;

	return correct_version(asked, KDB_RECORD_TRUTH, shown, row) ||
		(rewrite == NULL && row->xid != asked->writer);
}

static bool
find_live(Asked *asked, Found *found)
{
	IndexScanDesc scan = index_beginscan(asked->rel, asked->index, asked->snapshot, asked->nkeys, 0);
	bool		live;

	index_rescan(scan, asked->scan_keys, asked->nkeys, NULL, 0);
	live = index_getnext_slot(scan, ForwardScanDirection, asked->slot);
	index_endscan(scan);		/* the slot keeps its pin */
	if (!live)
		return false;
	found->state = "live";
	KdbLocalRowVersion(asked->slot, InvalidRepOriginId, 0, &found->row);
	found->own = !find_version(asked, &found->row);
	return true;
}

/* A deletion that the heap shows; the snapshot must see it. */
static void
true_end(void *arg, KdbLocalRow *candidate)
{
	const Asked *asked = arg;

	candidate->same_transaction = false;
	if (XidInMVCCSnapshot(candidate->xid, asked->snapshot))
		candidate->version_known = false;
	else
		(void) correct_version(asked, KDB_RECORD_KILLED, candidate->version, candidate);
}

static KdbLeftOut *
left_out(const Asked *asked)
{
	TransactionId before = KdbIndexLacksBefore(asked->index);

	return TransactionIdIsValid(before) ? KdbLeftOutCollect(asked->rel, asked->index, before) : NULL;
}

/* Has the index got new storage since the writer wrote?  Changes of pg_class that are no new storage are rare. */
static bool
was_emptied(const Asked *asked)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(RelationGetRelid(asked->index)));
	KdbLocalRow emptied = {0};
	KdbLocalRow written = {0};
	TimestampTz horizon;
	TransactionId xid;

	if (!HeapTupleIsValid(tuple))
		return false;
	xid = HeapTupleHeaderGetXmin(tuple->t_data);
	ReleaseSysCache(tuple);
	if (!TransactionIdIsNormal(xid) || !TransactionIdIsNormal(asked->writer))
		return false;
	if (TransactionIdFollowsOrEquals(xid, asked->writer))
		return true;

	/* It may have begun before the writer did. */
	KdbTransactionVersion(xid, InvalidRepOriginId, 0, &emptied);
	KdbTransactionVersion(asked->writer, InvalidRepOriginId, 0, &written);
	if (!written.version_known)
		return false;
	if (emptied.version_known && emptied.version.ts >= written.version.ts)
		return true;

	/*
	 * If it was applied here, its version may be an older one.  But nothing else takes
	 * the traces of what is newer than the horizon.
	 */
	horizon = KdbHorizonTimestamp();
	return horizon != 0 && written.version.ts > horizon && KdbIndexStillLacks(xid);
}

static void
find_death(Asked *asked, Found *found)
{
	Truth		truth = {.asked = asked, .kind = KDB_RECORD_DEAD};
	TupleTableSlot *scratch = table_slot_create(asked->rel, NULL);
	bool		dead = KdbFindDeadRow(asked->rel, asked->index, asked->scan_keys, asked->nkeys,
									  scratch, left_out(asked), InvalidRepOriginId, 0, &found->row, true_end, asked);

	ExecDropSingleTupleTableSlot(scratch);
	look_at_records(&truth);
	found->state = dead || truth.dead ? "dead" : "absent";
	if (truth.dead && (!dead || KdbVersionCompare(truth.death, found->row.version) > 0))
	{
		found->row.version = truth.death;
		found->row.version_known = true;
	}
}

/* ---- what a transaction has made of it that is not over -------------------- */

static bool
by_writer(const Asked *asked, TransactionId xid)
{
	if (!TransactionIdIsNormal(xid) || TransactionIdDidAbort(xid))
		return false;
	return xid == asked->writer ||
		(TransactionIdFollowsOrEquals(xid, TransactionXmin) &&
		 SubTransGetTopmostTransaction(xid) == asked->writer);
}

/* The transactions that wrote and ended the tuple in the slot. */
static void
tuple_transactions(TupleTableSlot *slot, TransactionId *xmin, TransactionId *xmax)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	*xmin = HeapTupleHeaderXminInvalid(tuple) ? InvalidTransactionId : HeapTupleHeaderGetXmin(tuple);
	*xmax = InvalidTransactionId;
	if (!(tuple->t_infomask & HEAP_XMAX_INVALID) && !HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask))
		*xmax = HeapTupleHeaderGetUpdateXid(tuple);
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);
}

/* False if it has done nothing to the key. */
static bool
find_of_writer(Asked *asked, Found *found)
{
	IndexScanDesc scan = index_beginscan(asked->rel, asked->index, SnapshotAny, asked->nkeys, 0);
	ItemPointerData live;
	bool		ended = false;

	ItemPointerSetInvalid(&live);
	scan->ignore_killed_tuples = false;
	index_rescan(scan, asked->scan_keys, asked->nkeys, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, asked->slot))
	{
		TransactionId xmin;
		TransactionId xmax;

		tuple_transactions(asked->slot, &xmin, &xmax);
		if (by_writer(asked, xmax))
			ended = true;
		else if (by_writer(asked, xmin))
			live = asked->slot->tts_tid;
	}
	ExecClearTuple(asked->slot);
	index_endscan(scan);
	found->own = ended || ItemPointerIsValid(&live);
	found->state = ItemPointerIsValid(&live) ? "live" : "dead";
	if (ItemPointerIsValid(&live) &&
		!table_tuple_fetch_row_version(asked->rel, &live, SnapshotAny, asked->slot))
		elog(ERROR, "could not read the row again");
	return found->own;
}

/* Is it not what the writer has left, nor anything later? */
static bool
is_from_before(const Asked *asked, const Found *found)
{
	KdbLocalRow written = {0};

	if (found->own || !TransactionIdIsNormal(asked->writer))
		return false;
	if (strcmp(found->state, "absent") == 0)
		return true;
	KdbTransactionVersion(asked->writer, InvalidRepOriginId, 0, &written);
	return written.version_known && found->row.version_known &&
		KdbVersionCompare(found->row.version, written.version) < 0;
}

static void
find_state(Asked *asked, Found *found)
{
	if (TransactionIdIsNormal(asked->writer) && TTS_IS_BUFFERTUPLE(asked->slot) &&
		XidInMVCCSnapshot(asked->writer, asked->snapshot) &&
		find_of_writer(asked, found))
		return;
	if (!find_live(asked, found))
		find_death(asked, found);
	if (is_from_before(asked, found) && was_emptied(asked))
	{
		found->state = "dead";
		found->own = true;
	}
}

/* ---- the answer ------------------------------------------------------------ */

static Datum
row_values(Asked *asked, List *columns)
{
	int			n = list_length(columns);
	Datum	   *values = palloc0_array(Datum, n + 1);
	bool	   *isnull = palloc0_array(bool, n + 1);
	int			lower = 1;
	ListCell   *lc;

	foreach(lc, columns)
	{
		int			i = foreach_current_index(lc);
		AttrNumber	attnum = column_number(asked->rel, lfirst(lc));
		Datum		value = slot_getattr(asked->slot, attnum, &isnull[i]);
		Oid			function;
		bool		is_varlena;

		if (isnull[i])
			continue;
		getTypeOutputInfo(TupleDescAttr(RelationGetDescr(asked->rel), attnum - 1)->atttypid,
						  &function, &is_varlena);
		values[i] = CStringGetTextDatum(OidOutputFunctionCall(function, value));
	}
	return PointerGetDatum(construct_md_array(values, isnull, 1, &n, &lower,
											  TEXTOID, -1, false, TYPALIGN_INT));
}

/* Columns of the result. */
enum
{
	RESULT_NODE,
	RESULT_STATE,
	RESULT_OWN,
	RESULT_TS,
	RESULT_WRITER,
	RESULT_VALUES,
	RESULT_COLUMNS
};

static Datum
answer(FunctionCallInfo fcinfo, Asked *asked, Found *found, List *columns, List *publications)
{
	TupleDesc	desc;
	Datum		values[RESULT_COLUMNS] = {0};
	bool		nulls[RESULT_COLUMNS] = {false};
	bool		live = strcmp(found->state, "live") == 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (live && !KdbRowIsPublished(publications, RelationGetRelid(asked->named), reformat(asked->slot, asked->rel, asked->named)))
		found->state = "filtered";
	values[RESULT_NODE] = Int64GetDatum((int64) KdbLocalNodeIdentity());
	values[RESULT_STATE] = CStringGetTextDatum(found->state);
	values[RESULT_OWN] = BoolGetDatum(found->own);
	values[RESULT_TS] = Int64GetDatum(found->row.version.ts);
	values[RESULT_WRITER] = Int64GetDatum((int64) found->row.version.node);
	nulls[RESULT_TS] = nulls[RESULT_WRITER] = !found->row.version_known;
	nulls[RESULT_VALUES] = !live;
	if (live)
		values[RESULT_VALUES] = row_values(asked, columns);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

Datum
krahodb_row_state(PG_FUNCTION_ARGS)
{
	List	   *key_columns = text_list(PG_GETARG_ARRAYTYPE_P(2));
	List	   *key_values = text_list(PG_GETARG_ARRAYTYPE_P(3));
	List	   *columns = text_list(PG_GETARG_ARRAYTYPE_P(4));
	List	   *publications = text_list(PG_GETARG_ARRAYTYPE_P(5));
	Asked		asked = {0};
	Found		found = {0};
	Datum		result;
	int			level;

	KdbTransactionVersionForget();
	asked.named = open_named(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	check_privileges(asked.named, list_concat_copy(columns, key_columns));
	level = KdbStreamRowFormats();
	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	asked.writer = DatumGetTransactionId(PG_GETARG_DATUM(6));
	asked.snapshot = GetActiveSnapshot();
	find_key(&asked, key_columns, key_values);
	open_index(&asked);
	(void) KdbVersionRecordsAny(RelationGetRelid(asked.rel), &asked.records);
	asked.rewrites.snapshot = asked.snapshot;
	asked.slot = table_slot_create(asked.rel, NULL);

	find_state(&asked, &found);
	result = answer(fcinfo, &asked, &found, columns, publications);

	ExecDropSingleTupleTableSlot(asked.slot);
	index_close(asked.index, NoLock);
	if (asked.rel != asked.named)
		table_close(asked.rel, NoLock);
	table_close(asked.named, NoLock);
	AtEOXact_GUC(true, level);
	PG_RETURN_DATUM(result);
}
