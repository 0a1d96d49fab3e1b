/*
 * merged_rows.c
 *		The versions of a row that vacuum has left in the heap.
 *
 * The index finds all of them.  An update links a version to the next (ctid), so they
 * form chains; a key that was deleted and inserted again has several.  What was
 * rolled back is no version; what is in progress is none yet, but for those of
 * this transaction.
 *
 * What vacuum may remove counts as removed: its out-of-line values are in another table, which
 * may have been vacuumed already.
 *
 * Who lists histories for others (merged_listed.c) reads what a snapshot shows: later transactions
 * have neither written nor ended anything.
 *
 * A version that ALTER TABLE has written anew (conflict/rewritten.c) has that as its version: records of what
 * it consists of name it so (merged_rewritten.c).
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/datum.h"
#include "utils/snapmgr.h"

#include "merged_private.h"

/* Is it over, for whoever reads? */
static bool
is_over(const KdbMergedChange *change, TransactionId xid)
{
	return change->as_of ? !XidInMVCCSnapshot(xid, change->as_of) : !TransactionIdIsInProgress(xid);
}

/* What the header says; false if the version never lived, or does not yet. */
static bool
read_header(const KdbMergedChange *change, TupleTableSlot *slot, KdbRowVersion *version)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	bool		frozen;
	bool		committed;
	bool		invalid;
	bool		ended;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	version->writer = KdbTupleWriter(tuple);
	frozen = HeapTupleHeaderXminFrozen(tuple);
	committed = HeapTupleHeaderXminCommitted(tuple);
	invalid = HeapTupleHeaderXminInvalid(tuple) && !frozen;
	ended = !(tuple->t_infomask & HEAP_XMAX_INVALID) &&
		!HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask);
	version->ender = ended ? HeapTupleHeaderGetUpdateXid(tuple) : InvalidTransactionId;
	version->update = (tuple->t_infomask & HEAP_UPDATED) != 0;
	version->combo = (tuple->t_infomask & HEAP_COMBOCID) != 0;
	version->command = HeapTupleHeaderGetRawCommandId(tuple);
	version->next = tuple->t_ctid;
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);

	version->tid = slot->tts_tid;
	if (invalid || !TransactionIdIsValid(version->writer))
		return false;
	version->own = TransactionIdIsCurrentTransactionId(version->writer);
	if (version->own || frozen || (committed && change->as_of == NULL))
		return true;
	return is_over(change, version->writer) && (committed || TransactionIdDidCommit(version->writer));
}

static bool
has_ended(const KdbMergedChange *change, TransactionId ender)
{
	return TransactionIdIsValid(ender) &&
		(TransactionIdIsCurrentTransactionId(ender) ||
		 (is_over(change, ender) && TransactionIdDidCommit(ender)));
}

/* May vacuum have removed what this version points to? */
static bool
is_removable(const KdbMergedChange *change, const KdbRowVersion *version, TransactionId oldest)
{
	return TransactionIdIsNormal(version->ender) &&
		TransactionIdPrecedes(version->ender, oldest) && has_ended(change, version->ender);
}

static void
read_writer(KdbConverge *c, TupleTableSlot *slot, KdbRowVersion *version)
{
	const KdbRewrite *rewrite = KdbTargetRewrite(KdbSideOf(c, KDB_KEY_NEW)->target, slot, version->writer);
	KdbLocalRow row = {0};

	if (rewrite)
	{
		version->version = KdbRewriteShown(rewrite);
		version->own = false;
		return;
	}
	if (version->own)
	{
		version->version = c->context->version;
		return;
	}
	KdbTransactionVersion(version->writer, KdbApply.origin, KdbApply.remote_node, &row);
	if (row.version_known)
		version->version = row.version;
}

static void
read_version(KdbConverge *c, TupleTableSlot *slot, KdbRowVersion *version)
{
	KdbMergedChange *change = c->merged;

	if (!has_ended(change, version->ender))
		version->ender = InvalidTransactionId;
	read_writer(c, slot, version);
	version->values = palloc0_array(KdbColumnContribution, change->n);
	for (int i = 0; i < change->n; i++)
	{
		const KdbMergedColumn *column = change->columns[i];
		KdbColumnContribution *value = &version->values[i];

		value->value = slot_getattr(slot, column->attnum, &value->isnull);
		if (value->isnull)
			continue;
		if (column->typlen == -1)
			value->value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value->value));
		else
			value->value = datumCopy(value->value, column->typbyval, column->typlen);
	}
}

/* See merged_private.h. */
bool
KdbMergedRowCounts(KdbConverge *c, TupleTableSlot *slot, TransactionId oldest, KdbRowVersion *version)
{
	return read_header(c->merged, slot, version) && !is_removable(c->merged, version, oldest);
}

/* See merged_private.h. */
KdbRowVersion *
KdbMergedReadRow(KdbConverge *c, TupleTableSlot *slot, const KdbRowVersion *header)
{
	KdbRowVersion *version = palloc(sizeof(KdbRowVersion));

	*version = *header;
	read_version(c, slot, version);
	return version;
}

static List *
read_versions(KdbConverge *c)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	ScanKeyData key[INDEX_MAX_KEYS];
	Relation	index;
	KdbTupleScan scan;
	TransactionId oldest = GetOldestNonRemovableTransactionId(target->rel);
	List	   *versions = NIL;

	if (!TTS_IS_BUFFERTUPLE(target->scratch) || !KdbIdentityKey(target, side->key, key))
		return NIL;
	index = KdbIdentityRelation(target);
	KdbTupleScanBegin(&scan, target->rel, index, key, target->nkeys, target->scratch,
					  KdbTargetLeftOut(target, index));
	while (KdbTupleScanNext(&scan))
	{
		KdbRowVersion version = {0};

		if (KdbMergedRowCounts(c, target->scratch, oldest, &version))
			versions = lappend(versions, KdbMergedReadRow(c, target->scratch, &version));
	}
	KdbTupleScanEnd(&scan);
	return versions;
}

static int
by_tid(const ListCell *a, const ListCell *b)
{
	return ItemPointerCompare(&((KdbRowVersion *) lfirst(a))->tid, &((KdbRowVersion *) lfirst(b))->tid);
}

/* Of those at the same place, which come one after the other, one. */
static List *
without_twins(List *versions)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, versions)
	{
		if (result == NIL || by_tid(list_tail(result), lc) != 0)
			result = lappend(result, lfirst(lc));
	}
	return result;
}

/* The version that replaced this one, if it has the same key. */
static KdbRowVersion *
find_next(List *versions, KdbRowVersion *version)
{
	int			low = 0;
	int			high = list_length(versions);

	while (low < high)
	{
		int			middle = (low + high) / 2;
		KdbRowVersion *other = list_nth(versions, middle);
		int			order = ItemPointerCompare(&other->tid, &version->next);

		if (order == 0)
			return other != version && other->writer == version->ender ? other : NULL;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

static void
link_versions(List *versions)
{
	ListCell   *lc;

	foreach(lc, versions)
	{
		KdbRowVersion *version = lfirst(lc);

		if (!TransactionIdIsValid(version->ender))
			continue;
		version->following = find_next(versions, version);
		if (version->following)
			version->following->previous = version;
	}
}

/* See merged_private.h. */
List *
KdbMergedRowVersions(KdbConverge *c)
{
	List	   *versions = c->merged->rows_read ? c->merged->rows : read_versions(c);

	/* What an index lacks of a chain may come from it all the same. */
	list_sort(versions, by_tid);
	versions = without_twins(versions);
	link_versions(versions);
	return versions;
}
