/*
 * version_lookup.c
 *		The version of a local row: when it was written, and by which node.
 *
 * The engine keeps both per transaction: a transaction that applies a remote
 * one commits with the origin's timestamp and its own id of that origin.
 * Freezing leaves xmin in the tuple, so a frozen row still has its version as
 * long as commit timestamps of that age are kept.
 *
 * ROUNDS.  Transaction ids are of 32 bits and come round again.  The engine asks nothing of
 * a frozen xmin, so it may be that of a transaction 2^32 or more before, and a recent one has
 * the same id now.  A row must not be taken for that one's: then it would seem newer than
 * changes that are on their way.  But nothing freezes rows of transactions that slots hold
 * back vacuum for.  So a frozen xmin from there on is of an earlier round, once
 * there was one.  (Or the rows were written by COPY FREEZE, into a table that was made or emptied in
 * the same transaction: then their version is not known until the horizon has passed
 * it.)  One before that counts as what it says; if that is wrong it is still older than
 * the horizon.
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "storage/procarray.h"

#include "krahodb/conflict.h"
#include "krahodb/node.h"
#include "krahodb/origin_nodes.h"

/*
 * The node that the origin id of a transaction stood for.  A stock publisher has
 * told no identity; its id here stands in for it.
 */
static uint64
node_of(TransactionId xid, TimestampTz ts, RepOriginId origin,
		RepOriginId remote_origin, uint64 remote_node)
{
	uint64		node;

	if (origin == InvalidRepOriginId)
		return KdbLocalNodeAt(ts);
	node = KdbOriginNodeOf(origin, xid);
	if (node == 0 && origin == remote_origin)
		return remote_node;
	return node != 0 ? node : origin;
}

/*
 * What was found last: rows of one transaction mostly come together.  Only for
 * transactions that have ended, so it stays true as long as the id means that one.
 */
static KdbLocalRow last;
static RepOriginId last_remote_origin;
static uint64 last_remote_node;

/*
 * Where transaction ids are, and from where on vacuum is held back.  An older answer is as
 * good: of what was frozen since, the version is not needed.
 */
static bool rounds_known = false;
static FullTransactionId next_xid;
static TransactionId kept_from;

/* See conflict.h. */
void
KdbTransactionVersionForget(void)
{
	last.xid = InvalidTransactionId;
	rounds_known = false;
}

static bool
is_of_earlier_round(TransactionId frozen)
{
	TransactionId catalog_xmin;
	uint32		round;

	if (!rounds_known)
	{
		ProcArrayGetReplicationSlotXmin(&kept_from, &catalog_xmin);
		next_xid = ReadNextFullTransactionId();
		rounds_known = true;
	}
	round = EpochFromFullTransactionId(next_xid);
	if (round == 0 || (round == 1 && frozen >= XidFromFullTransactionId(next_xid)))
		return false;
	return TransactionIdIsNormal(frozen) && TransactionIdIsValid(kept_from) &&
		!TransactionIdPrecedes(frozen, kept_from);
}

/* See conflict.h. */
TransactionId
KdbTupleWriter(HeapTupleHeader tuple)
{
	TransactionId xmin = HeapTupleHeaderGetRawXmin(tuple);

	return HeapTupleHeaderXminFrozen(tuple) && is_of_earlier_round(xmin) ? FrozenTransactionId : xmin;
}

static void
look_up_version(TransactionId xid, RepOriginId remote_origin, uint64 remote_node,
				KdbLocalRow *row)
{
	TimestampTz ts = 0;
	RepOriginId origin = InvalidRepOriginId;

	row->same_transaction = TransactionIdIsCurrentTransactionId(xid);
	row->version_known = !row->same_transaction && track_commit_timestamp &&
		TransactionIdIsNormal(xid) &&
		TransactionIdGetCommitTsData(xid, &ts, &origin);
	row->version.ts = ts;
	row->version.node = node_of(xid, ts, origin, remote_origin, remote_node);
	row->origin = origin;
	row->xid = xid;
	row->same_origin = row->version_known && origin == remote_origin &&
		origin != InvalidRepOriginId;
}

/* See conflict.h. */
void
KdbTransactionVersion(TransactionId xid, RepOriginId remote_origin,
					  uint64 remote_node, KdbLocalRow *row)
{
	if (xid != last.xid || !TransactionIdIsValid(xid) ||
		remote_origin != last_remote_origin || remote_node != last_remote_node)
	{
		look_up_version(xid, remote_origin, remote_node, row);
		if (row->version_known)
		{
			last = *row;
			last_remote_origin = remote_origin;
			last_remote_node = remote_node;
		}
		return;
	}
	row->same_transaction = last.same_transaction;
	row->version_known = last.version_known;
	row->version = last.version;
	row->origin = last.origin;
	row->xid = last.xid;
	row->same_origin = last.same_origin;
}

/* See conflict.h. */
void
KdbLocalRowVersion(TupleTableSlot *slot, RepOriginId remote_origin,
				   uint64 remote_node, KdbLocalRow *row)
{
	TransactionId writer;

	if (TTS_IS_BUFFERTUPLE(slot) || TTS_IS_HEAPTUPLE(slot))
		writer = KdbTupleWriter(((HeapTupleTableSlot *) slot)->tuple->t_data);
	else
	{
		bool		isnull;
		Datum		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber, &isnull);

		Assert(!isnull);
		writer = DatumGetTransactionId(xmin);
	}
	row->state = KDB_ROW_LIVE;
	KdbTransactionVersion(writer, remote_origin, remote_node, row);
}
