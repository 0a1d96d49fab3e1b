/*
 * dead_row.c
 *		Rows that were deleted, as far as the heap still holds them.
 *
 * A deleted or superseded tuple stays in the heap until vacuum may remove it,
 * and its xmax tells the transaction that ended it.  An index scan with
 * SnapshotAny returns all of them (but for those of left_out.c).  The newest of those transactions is the one
 * that made the key vanish: each other tuple of the key was ended by an update
 * whose successor is among the tuples too.
 *
 * Only for a key without live row, and after the caller has waited for
 * transactions in progress on it.
 *
 * Who only wants to know if anything of a table is dead looks at all of its tuples.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/snapmgr.h"

#include "krahodb/conflict.h"

/* The transaction that has ended a tuple, or tries to. */
static TransactionId
update_xid(TupleTableSlot *slot)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	TransactionId xmax = InvalidTransactionId;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	if (!HeapTupleHeaderXminInvalid(tuple) &&
		!(tuple->t_infomask & HEAP_XMAX_INVALID) &&
		!HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask))
		xmax = HeapTupleHeaderGetUpdateXid(tuple);
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);
	return xmax;
}

/* See conflict.h. */
TransactionId
KdbTupleEndedBy(TupleTableSlot *slot)
{
	TransactionId xmax = update_xid(slot);

	if (!TransactionIdIsValid(xmax) || TransactionIdIsCurrentTransactionId(xmax))
		return xmax;
	if (TransactionIdIsInProgress(xmax) || !TransactionIdDidCommit(xmax))
		return InvalidTransactionId;
	return xmax;
}

/* Without versions of its own, what the current transaction did is the latest. */
static bool
is_later(const KdbLocalRow *a, const KdbLocalRow *b, bool by_version)
{
	if (!by_version && a->same_transaction)
		return true;
	if (!by_version && b->same_transaction)
		return false;
	return KdbVersionCompare(a->version, b->version) > 0;
}

/* See conflict.h. */
bool
KdbFindDeadRow(Relation rel, Relation index, ScanKeyData *skey, int nkeys,
			   TupleTableSlot *scratch, KdbLeftOut *left_out, RepOriginId remote_origin,
			   uint64 remote_node, KdbLocalRow *row, KdbDeathTruth truth, void *arg)
{
	KdbTupleScan scan;
	bool		found = false;

	/* Other table access methods have no tuples to look at so. */
	if (!TTS_IS_BUFFERTUPLE(scratch))
		return false;

	KdbTupleScanBegin(&scan, rel, index, skey, nkeys, scratch, left_out);
	while (KdbTupleScanNext(&scan))
	{
		KdbLocalRow candidate = {0};
		TransactionId xmax = KdbTupleEndedBy(scratch);

		if (!TransactionIdIsValid(xmax))
			continue;
		KdbTransactionVersion(xmax, remote_origin, remote_node, &candidate);
		candidate.state = KDB_ROW_DEAD;
		if (truth)
			truth(arg, &candidate);
		if (!candidate.version_known && !candidate.same_transaction)
			continue;
		if (!found || is_later(&candidate, row, truth != NULL))
			*row = candidate;
		found = true;
	}
	KdbTupleScanEnd(&scan);
	return found;
}

static bool
has_ended_since(TupleTableSlot *slot, TimestampTz since, TimestampTz own_since)
{
	TransactionId xmax = update_xid(slot);
	KdbLocalRow row = {0};

	if (!TransactionIdIsValid(xmax) || TransactionIdIsCurrentTransactionId(xmax))
		return false;
	if (TransactionIdIsInProgress(xmax))
		return true;
	if (!TransactionIdDidCommit(xmax))
		return false;
	KdbTransactionVersion(xmax, InvalidRepOriginId, 0, &row);
	return row.version_known && row.version.ts > since &&
		(row.origin != InvalidRepOriginId || row.version.ts > own_since);
}

/* See conflict.h. */
bool
KdbTableHasDeaths(Relation rel, TimestampTz since, TimestampTz own_since)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);
	bool		found = false;

	while (!found && TTS_IS_BUFFERTUPLE(slot) &&
		   table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		found = has_ended_since(slot, since, own_since);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return found;
}
