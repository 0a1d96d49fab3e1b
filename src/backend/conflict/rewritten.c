/*
 * rewritten.c
 *		Rows that ALTER TABLE has written anew.
 *
 * A command that rewrites a table (a column gets another type, or a volatile default) puts
 * all its rows into new storage as rows of its own transaction.  By that they would be newer
 * than whatever other nodes had committed until then: changes that waited for
 * the command, or were on their way, would all lose to it, here and nowhere else.
 *
 * So the command leaves a REWRITTEN record: its transaction, and its command ids, which
 * are in the rows it has written and tell them from rows that the same transaction has
 * changed otherwise.  Until the horizon has passed the command, such a row has the version that a
 * TRUTH record gives it, which names the command instead of a version.  These are of all rows that
 * were newer than the horizon (carried_versions.c).  The others are older than any change that
 * is still to come.
 *
 * Where that could not be carried over (no horizon, a key that nobody can compute) rows without such
 * a record count as older than any change, too, whatever they are; but then they are no rows to
 * take values from that were not sent, as nobody knows whose they are.
 *
 * ITS ROWS AND OTHERS.  The transaction may insert more rows afterwards.  Once somebody has locked, changed or deleted one of
 * these, its command id is gone.  But it is behind the last row that the command had written, as nothing is put
 * into the pages before that as long as the transaction goes on.  (After CLUSTER or VACUUM FULL that does not tell any more,
 * and the row counts as one of the command's.)
 *
 * CLUSTER and VACUUM FULL keep what a row says of its transactions, and SET TABLESPACE
 * copies whole blocks.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/conflict.h"
#include "krahodb/version_record.h"

/* See conflict.h.  Versions have greater times: they are of this century. */
KdbVersion
KdbRewriteShown(const KdbRewrite *rewrite)
{
	return (KdbVersion){(TimestampTz) rewrite->xid, (uint64) rewrite->first << 32 | rewrite->last};
}

/* See conflict.h. */
bool
KdbIsRewriteShown(KdbVersion shown)
{
	return shown.ts >= FirstNormalTransactionId && shown.ts <= MaxTransactionId;
}

/* The image of a record. */
typedef struct Written
{
	Oid			node;
	ItemPointerData end;
} Written;

static Oid
node_of(Oid relid)
{
	Relation	rel = RelationIdGetRelation(relid);
	Oid			node = InvalidOid;

	if (RelationIsValid(rel))
	{
		node = rel->rd_node.relNode;
		RelationClose(rel);
	}
	return node;
}

/* The last place in the table. */
static bytea *
find_end(Oid relid)
{
	Relation	rel = table_open(relid, NoLock);
	Written		written = {InvalidOid};
	bytea	   *image = palloc0(VARHDRSZ + sizeof(Written));
	BlockNumber blocks;

	if (table_slot_callbacks(rel) == &TTSOpsBufferHeapTuple)
	{
		written.node = rel->rd_node.relNode;
		blocks = RelationGetNumberOfBlocks(rel);
		ItemPointerSet(&written.end, 0, 0);
		if (blocks > 0)
		{
			Buffer		buffer = ReadBuffer(rel, blocks - 1);

			LockBuffer(buffer, BUFFER_LOCK_SHARE);
			ItemPointerSet(&written.end, blocks - 1, PageGetMaxOffsetNumber(BufferGetPage(buffer)));
			UnlockReleaseBuffer(buffer);
		}
	}
	table_close(rel, NoLock);
	memcpy(VARDATA(image), &written, sizeof(Written));
	SET_VARSIZE(image, VARHDRSZ + sizeof(Written));
	return image;
}

/* See conflict.h. */
void
KdbNoteRewrite(Oid relid, CommandId first, CommandId last, bool carried)
{
	KdbRecordedKey none = {0};
	KdbVersionRecord record = {KDB_RECORD_REWRITTEN};

	record.version.ts = GetCurrentTimestamp() + KDB_REWRITE_KEEP_US;
	record.version.node = carried ? 1 : 0;
	record.shown = KdbRewriteShown(&(KdbRewrite){GetCurrentTransactionId(), first, last});
	record.merged = find_end(relid);
	KdbVersionRecordAdd(relid, &record, &none, InvalidOid, NULL);
}

/* Of those by one transaction the last one counts: it has written the rows of the others again. */
static void
add_rewrite(KdbRewrites *rewrites, const KdbRewrite *rewrite)
{
	for (int i = 0; i < rewrites->n; i++)
	{
		KdbRewrite *other = &rewrites->list[i];

		if (other->xid != rewrite->xid)
			continue;
		if (other->last < rewrite->last)
			*other = *rewrite;
		return;
	}
	if (rewrites->list == NULL)
		rewrites->list = palloc_array(KdbRewrite, 1);
	else
		rewrites->list = repalloc(rewrites->list, (rewrites->n + 1) * sizeof(KdbRewrite));
	rewrites->list[rewrites->n++] = *rewrite;
}

static void
take_rewrite(void *arg, const KdbVersionRecord *record)
{
	KdbRewrites *rewrites = arg;
	KdbRewrite	rewrite = {0};
	Written		written;

	if (record->kind != KDB_RECORD_REWRITTEN)
		return;
	memcpy(&written, VARDATA_ANY(record->merged), sizeof(Written));
	rewrite.xid = (TransactionId) record->shown.ts;
	rewrite.first = (CommandId) (record->shown.node >> 32);
	rewrite.last = (CommandId) record->shown.node;
	rewrite.carried = record->version.node != 0;
	rewrite.node = written.node;
	rewrite.end = written.end;
	add_rewrite(rewrites, &rewrite);
}

/*
 * Was the row written by these commands?  Once somebody was to end it, or has locked it, the command that wrote it is not
 * known: then its place tells.  And what they write are no updates.
 */
static bool
is_of_command(Oid relid, TupleTableSlot *slot, const KdbRewrite *rewrite)
{
	Buffer		buffer = InvalidBuffer;
	HeapTupleHeader tuple;
	CommandId	command;
	bool		ended;
	bool		updated;

	if (slot == NULL || !(TTS_IS_BUFFERTUPLE(slot) || TTS_IS_HEAPTUPLE(slot)))
		return true;
	tuple = ((HeapTupleTableSlot *) slot)->tuple->t_data;
	if (TTS_IS_BUFFERTUPLE(slot))
		buffer = ((BufferHeapTupleTableSlot *) slot)->buffer;
	if (BufferIsValid(buffer))
		LockBuffer(buffer, BUFFER_LOCK_SHARE);
	ended = TransactionIdIsValid(HeapTupleHeaderGetRawXmax(tuple)) ||
		(tuple->t_infomask & HEAP_COMBOCID) != 0;
	updated = (tuple->t_infomask & HEAP_UPDATED) != 0;
	command = HeapTupleHeaderGetRawCommandId(tuple);
	if (BufferIsValid(buffer))
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	if (updated || !ended)
		return !updated && command >= rewrite->first && command <= rewrite->last;
	return ItemPointerCompare(&slot->tts_tid, unconstify(ItemPointerData *, &rewrite->end)) <= 0 ||
		rewrite->node != node_of(relid);
}

static const KdbRewrite *
find_rewrite(Oid relid, const KdbRewrites *rewrites, TupleTableSlot *slot, TransactionId xmin)
{
	for (int i = 0; i < rewrites->n; i++)
	{
		const KdbRewrite *rewrite = &rewrites->list[i];

		if (rewrite->xid == xmin)
			return is_of_command(relid, slot, rewrite) ? rewrite : NULL;
	}
	return NULL;
}

/* See conflict.h. */
const KdbRewrite *
KdbFindRewrite(Oid relid, KdbRewrites *rewrites, KdbVersionRecordsKnown *known,
			   MemoryContext context, TupleTableSlot *slot, TransactionId xmin)
{
	if (!KdbVersionRecordsAny(relid, known))
		return NULL;
	if (!rewrites->known)
	{
		KdbRecordedKey none = {0};
		MemoryContext old = MemoryContextSwitchTo(context);

		rewrites->n = 0;
		rewrites->list = NULL;
		KdbVersionRecordsOfKeyIn(relid, &none, rewrites->snapshot, take_rewrite, rewrites);
		rewrites->known = true;
		MemoryContextSwitchTo(old);
	}
	return find_rewrite(relid, rewrites, slot, xmin);
}
