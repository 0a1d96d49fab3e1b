/*
 * lookup.c
 *		Finding the local row that a change is about.
 *
 * By the replica identity index or primary key (recall.c and walk.c first: rows
 * that were written lately, and keys in ascending order, need no descent); without one, by comparing full rows.  Both with a dirty snapshot, so that rows which other transactions are
 * changing are seen and waited for.
 *
 * A dirty scan is no consistent snapshot: a row that a concurrent update moves
 * to a place that the scan has passed is seen neither in its old nor in its new
 * version.  So "not found" is believed only after a second look with a fresh
 * MVCC snapshot; if that finds the row, the dirty scan is done again.
 *
 * Rows are not locked here.  Whoever writes learns from the heap if the row has
 * changed meanwhile (KDB_WRITE_CHANGED) and looks again; a lock would cost a WAL
 * record per row.  Only rows of tables with BEFORE ROW triggers are locked
 * first, since such a trigger must see the row that it will change.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "krahodb/horizon_shared.h"

#include "relation_private.h"

#define KDB_SCAN_ROWS	256		/* looked up before a scan is begun anew */

/* Another transaction is at the row: wait for it; then the scan starts again. */
static bool
wait_for_other(KdbApplyTarget *target, const SnapshotData *snapshot)
{
	TransactionId xwait = TransactionIdIsValid(snapshot->xmin) ?
		snapshot->xmin : snapshot->xmax;

	if (!TransactionIdIsValid(xwait))
		return false;
	KdbWalkEnd(target);
	XactLockTableWait(xwait, NULL, NULL, XLTW_None);
	return true;
}

/*
 * Each search has its own functions: what they keep is not shared (who replaces it frees it), and is
 * kept in that memory context.
 */
static void
keep_in(ScanKeyData *key, int nkeys, MemoryContext context)
{
	for (int i = 0; i < nkeys; i++)
	{
		key[i].sk_func.fn_extra = NULL;
		key[i].sk_func.fn_mcxt = context;
	}
}

/* See relation_private.h. */
bool
KdbIdentityKey(KdbApplyTarget *target, TupleTableSlot *search, ScanKeyData *key)
{
	memcpy(key, target->key_template, sizeof(ScanKeyData) * target->nkeys);
	keep_in(key, target->nkeys, CurrentMemoryContext);
	for (int i = 0; i < target->nkeys; i++)
	{
		AttrNumber	attnum = target->key_attnum[i];

		if (search->tts_isnull[attnum - 1])
			return false;
		key[i].sk_argument = search->tts_values[attnum - 1];
	}
	return true;
}

/* See relation_private.h. */
Relation
KdbIdentityRelation(KdbApplyTarget *target)
{
	KdbTargetOpenIndexes(target);
	for (int i = 0; i < target->nindexes; i++)
	{
		if (target->index_oids[i] == target->identity_index)
			return target->relinfo->ri_IndexRelationDescs[i];
	}
	elog(ERROR, "replica identity index %u of relation %u is not among its indexes",
		 target->identity_index, target->relid);
	return NULL;
}

/* One MVCC look: is there a row of that key at all? */
static bool
visible_by_index(KdbApplyTarget *target, ScanKeyData *key)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc scan = index_beginscan(target->rel, KdbIdentityRelation(target),
										 snapshot, target->nkeys, 0);
	bool		found;

	index_rescan(scan, key, target->nkeys, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, target->local);
	ExecClearTuple(target->local);
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

/*
 * The scan is begun once in a transaction and restarted for each row.  What the
 * index's functions allocate on the way is partly kept by the scan and partly
 * forgotten by comparison functions, so it gets a context of its own, and a new
 * start from time to time.
 */
static void
restart_scan(KdbApplyTarget *target, ScanKeyData *key)
{
	if (target->scan != NULL && target->scan_rows >= KDB_SCAN_ROWS)
	{
		index_endscan(target->scan);
		target->scan = NULL;
		MemoryContextReset(CurrentMemoryContext);
	}
	if (target->scan == NULL)
	{
		InitDirtySnapshot(target->dirty);
		target->scan = index_beginscan(target->rel, KdbIdentityRelation(target),
									   &target->dirty, target->nkeys, 0);
		target->scan_rows = 0;
	}
	target->scan_rows++;
	keep_in(key, target->nkeys, CurrentMemoryContext);
	index_rescan(target->scan, key, target->nkeys, NULL, 0);
}

static bool
look_up_key(KdbApplyTarget *target, ScanKeyData *key)
{
	MemoryContext old = MemoryContextSwitchTo(target->scan_context);
	bool		found;

	restart_scan(target, key);
	found = index_getnext_slot(target->scan, ForwardScanDirection, target->local);
	MemoryContextSwitchTo(old);
	return found;
}

static bool
find_by_index(KdbApplyTarget *target, TupleTableSlot *search)
{
	ScanKeyData key[INDEX_MAX_KEYS];

	target->walk.among_live = false;
	if (!KdbIdentityKey(target, search, key))
		return false;
	if (KdbRecallFind(target, search))
		return true;
	if (KdbWalkFind(target, KdbIdentityRelation(target), key))
		return true;
	for (;;)
	{
		if (look_up_key(target, key))
		{
			if (!wait_for_other(target, &target->dirty))
				return true;
		}
		else if (!visible_by_index(target, key))
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}

static TypeCacheEntry *
equality_of(KdbApplyTarget *target, int i)
{
	if (target->equality[i] == NULL)
	{
		Oid			type = TupleDescAttr(target->tupdesc, i)->atttypid;
		TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR_FINFO);

		if (!OidIsValid(entry->eq_opr_finfo.fn_oid))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("could not identify an equality operator for type %s",
							format_type_be(type))));
		target->equality[i] = entry;
	}
	return target->equality[i];
}

/* Equal in all columns that the publisher sends? */
static bool
rows_equal(KdbApplyTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	slot_getallattrs(a);
	slot_getallattrs(b);
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (!target->compared[i])
			continue;
		if (a->tts_isnull[i] != b->tts_isnull[i])
			return false;
		if (a->tts_isnull[i])
			continue;
		if (!DatumGetBool(FunctionCall2Coll(&equality_of(target, i)->eq_opr_finfo,
											TupleDescAttr(target->tupdesc, i)->attcollation,
											a->tts_values[i], b->tts_values[i])))
			return false;
	}
	return true;
}

/*
 * The row of a scan that is about to end stays in the slot.  The pin is the slot's own, but
 * what it says of the tuple is a part of the scan (not so with an index, where it is the slot's).
 */
static void
keep_row(TupleTableSlot *slot)
{
	HeapTupleTableSlot *heap = (HeapTupleTableSlot *) slot;

	if (!TTS_IS_BUFFERTUPLE(slot))
		ExecMaterializeSlot(slot);
	else if (!TTS_SHOULDFREE(slot))
	{
		heap->tupdata = *heap->tuple;
		heap->tuple = &heap->tupdata;
	}
}

/*
 * Full scan with the snapshot, up to the first equal row.  One that another transaction is at is passed
 * over, as any other equal row is as good; *busy is the first of these transactions.
 */
static bool
scan_for_row(KdbApplyTarget *target, TupleTableSlot *search, Snapshot snapshot, TransactionId *busy)
{
	TableScanDesc scan = table_beginscan(target->rel, snapshot, 0, NULL);
	bool		dirty = snapshot->snapshot_type == SNAPSHOT_DIRTY;
	bool		found = false;

	*busy = InvalidTransactionId;
	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, target->local))
	{
		TransactionId at = !dirty ? InvalidTransactionId :
			TransactionIdIsValid(snapshot->xmin) ? snapshot->xmin : snapshot->xmax;

		CHECK_FOR_INTERRUPTS();
		if (!rows_equal(target, target->local, search))
			continue;
		if (!TransactionIdIsValid(at))
			found = true;
		else if (!TransactionIdIsValid(*busy))
			*busy = at;
	}
	if (found)
		keep_row(target->local);
	table_endscan(scan);
	return found;
}

/*
 * If all equal rows are busy, one of their transactions is waited for.  Not otherwise: it may be a
 * prepared one of this very stream, which is ended by what comes behind this change.
 */
static bool
find_by_scan(KdbApplyTarget *target, TupleTableSlot *search)
{
	(void) KdbLaneSettle();		/* equal rows are not told apart */
	for (;;)
	{
		SnapshotData dirty;
		Snapshot	snapshot;
		TransactionId busy;
		bool		found;

		InitDirtySnapshot(dirty);
		if (scan_for_row(target, search, &dirty, &busy))
			return true;
		ExecClearTuple(target->local);
		if (TransactionIdIsValid(busy))
		{
			XactLockTableWait(busy, NULL, NULL, XLTW_None);
			continue;
		}
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		found = scan_for_row(target, search, snapshot, &busy);
		ExecClearTuple(target->local);
		UnregisterSnapshot(snapshot);
		if (!found)
			return false;
	}
}

/* See relation_private.h. */
bool
KdbFindRow(KdbApplyTarget *target, TupleTableSlot *search)
{
	KdbTargetLookedIn(target);
	if (OidIsValid(target->identity_index))
		return find_by_index(target, search);
	return find_by_scan(target, search);
}

/* See relation_private.h. */
bool
KdbLockRow(KdbApplyTarget *target, LockTupleMode mode)
{
	TM_FailureData failure;
	TM_Result	result;
	ItemPointerData tid = target->local->tts_tid;

	PushActiveSnapshot(GetLatestSnapshot());
	result = table_tuple_lock(target->rel, &tid, GetActiveSnapshot(), target->local,
							  GetCurrentCommandId(false), mode, LockWaitBlock,
							  0, &failure);
	PopActiveSnapshot();
	switch (result)
	{
		case TM_Ok:
			return true;
		case TM_Updated:
			ereport(LOG,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 ItemPointerIndicatesMovedPartitions(&failure.ctid) ?
					 errmsg("tuple to be locked was already moved to another partition due to concurrent update, retrying") :
					 errmsg("concurrent update, retrying")));
			return false;
		case TM_Deleted:
			ereport(LOG,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("concurrent delete, retrying")));
			return false;
		default:
			elog(ERROR, "unexpected table_tuple_lock status: %u", result);
	}
	return false;
}

/* See relation_private.h. */
const KdbRewrite *
KdbTargetRewrite(KdbApplyTarget *target, TupleTableSlot *slot, TransactionId xmin)
{
	return KdbFindRewrite(target->relid, &target->rewrites, &target->records, target->context,
						  slot, xmin);
}

/* See relation_private.h. */
KdbVersion
KdbTargetRowVersion(KdbApplyTarget *target, TupleTableSlot *slot, KdbLocalRow *row)
{
	const KdbRewrite *rewrite = NULL;

	KdbLocalRowVersion(slot, KdbApply.origin, KdbApply.remote_node, row);
	row->rewritten = false;
	if (!row->version_known)
		return (KdbVersion){0, 0};
	/* What comes is newer than the horizon, and by one who had seen what is older. */
	if (row->version.ts > KdbHorizonTimestamp())
		rewrite = KdbTargetRewrite(target, slot, row->xid);
	if (rewrite == NULL)
		return row->version;
	row->version_known = row->same_origin = false;
	memset(&row->version, 0, sizeof(row->version));
	/* Where nothing can be fetched there is no other row to take values from. */
	row->rewritten = !rewrite->carried && KdbApply.krahodb_stream;
	return KdbRewriteShown(rewrite);
}

static KdbLeftOut *
collect_left_out(KdbApplyTarget *target, int i, Relation index)
{
	MemoryContext old = MemoryContextSwitchTo(target->context);

	if (target->left_out[i] == NULL)
		target->left_out[i] = KdbLeftOutCollect(target->rel, index, target->lacks_before[i]);
	MemoryContextSwitchTo(old);
	return target->left_out[i];
}

/* See relation_private.h. */
KdbLeftOut *
KdbTargetLeftOut(KdbApplyTarget *target, Relation index)
{
	if (!target->lacks_tuples)
		return NULL;
	for (int i = 0; i < target->nindexes; i++)
	{
		if (target->index_oids[i] != RelationGetRelid(index))
			continue;
		if (!KdbIndexStillLacks(target->lacks_before[i]))
			return NULL;
		return collect_left_out(target, i, index);
	}
	return NULL;
}

/* See relation_private.h. */
bool
KdbFindDead(KdbApplyTarget *target, TupleTableSlot *search, KdbLocalRow *row)
{
	ScanKeyData key[INDEX_MAX_KEYS];

	if (!OidIsValid(target->identity_index) || !KdbIdentityKey(target, search, key))
		return false;
	return KdbFindDeadRow(target->rel, KdbIdentityRelation(target), key, target->nkeys,
						  target->scratch,
						  KdbTargetLeftOut(target, KdbIdentityRelation(target)),
						  KdbApply.origin, KdbApply.remote_node, row,
						  NULL, NULL);
}

/* See relation_private.h. */
bool
KdbFindTrueDeath(KdbApplyTarget *target, TupleTableSlot *search, KdbLocalRow *row,
				 KdbDeathTruth truth, void *arg)
{
	ScanKeyData key[INDEX_MAX_KEYS];

	if (!KdbIdentityKey(target, search, key))
		return false;
	return KdbFindDeadRow(target->rel, KdbIdentityRelation(target), key, target->nkeys,
						  target->scratch,
						  KdbTargetLeftOut(target, KdbIdentityRelation(target)),
						  KdbApply.origin, KdbApply.remote_node, row,
						  truth, arg);
}

/* See relation_private.h. */
bool
KdbIndexHasTuples(KdbApplyTarget *target, Relation index, const ScanKeyData *key, int nkeys)
{
	KdbTupleScan scan;
	bool		found;

	KdbTupleScanBegin(&scan, target->rel, index, key, nkeys, target->scratch,
					  KdbTargetLeftOut(target, index));
	found = KdbTupleScanNext(&scan);
	KdbTupleScanEnd(&scan);
	return found;
}

/* See relation_private.h. */
bool
KdbKeyHasTuples(KdbApplyTarget *target, TupleTableSlot *search)
{
	ScanKeyData key[INDEX_MAX_KEYS];

	return KdbIdentityKey(target, search, key) &&
		KdbIndexHasTuples(target, KdbIdentityRelation(target), key, target->nkeys);
}
