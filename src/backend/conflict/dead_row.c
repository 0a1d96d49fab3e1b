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
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/snapmgr.h"

#include "krahodb/conflict.h"

/* See conflict.h. */
TransactionId
KdbTupleEndedBy(TupleTableSlot *slot)
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
