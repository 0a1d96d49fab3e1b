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
 * changed otherwise.  Until the horizon has passed the command, such a row counts as one whose
 * version is not known, which is older than any change; but it is no row to take values from that were
 * not sent, as nobody knows whose it is.
 * (What its versions really were could be kept for those that the horizon has not passed.  Then a
 * change that is older than the row would lose to it as it does elsewhere; now it wins.)
 *
 * CLUSTER and VACUUM FULL keep what a row says of its transactions, and SET TABLESPACE
 * copies whole blocks.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/conflict.h"
#include "krahodb/version_record.h"

/*
 * A record is kept at least so long, and until the horizon has passed that time.  It must outlive
 * the moment when the horizon passes the commit, which may come long after the command if
 * the transaction goes on.
 */
#define KEEP_US		(3600 * USECS_PER_SEC)

/* See conflict.h. */
void
KdbNoteRewrite(Oid relid, CommandId first, CommandId last)
{
	KdbRecordedKey none = {0};
	KdbVersionRecord record = {KDB_RECORD_REWRITTEN};

	record.version.ts = GetCurrentTimestamp() + KEEP_US;
	record.shown.ts = (TimestampTz) GetCurrentTransactionId();
	record.shown.node = (uint64) first << 32 | last;
	KdbVersionRecordAdd(relid, &record, &none, InvalidOid, NULL);
}

static void
take_rewrite(void *arg, const KdbVersionRecord *record)
{
	KdbRewrites *rewrites = arg;
	KdbRewrite *rewrite;

	if (record->kind != KDB_RECORD_REWRITTEN)
		return;
	if (rewrites->list == NULL)
		rewrites->list = palloc_array(KdbRewrite, 1);
	else
		rewrites->list = repalloc(rewrites->list, (rewrites->n + 1) * sizeof(KdbRewrite));
	rewrite = &rewrites->list[rewrites->n++];
	rewrite->xid = (TransactionId) record->shown.ts;
	rewrite->first = (CommandId) (record->shown.node >> 32);
	rewrite->last = (CommandId) record->shown.node;
}

/* Was the row written by these commands?  Once somebody was to end it, that is not known. */
static bool
is_of_command(TupleTableSlot *slot, const KdbRewrite *rewrite)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple;
	CommandId	command;
	bool		ended;

	if (slot == NULL || !TTS_IS_BUFFERTUPLE(slot) || !BufferIsValid(heap->buffer))
		return true;
	tuple = heap->base.tuple->t_data;
	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	ended = TransactionIdIsValid(HeapTupleHeaderGetRawXmax(tuple)) ||
		(tuple->t_infomask & HEAP_COMBOCID) != 0;
	command = HeapTupleHeaderGetRawCommandId(tuple);
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);
	return ended || (command >= rewrite->first && command <= rewrite->last);
}

/* See conflict.h. */
bool
KdbIsRewritten(Oid relid, KdbRewrites *rewrites, KdbVersionRecordsKnown *known,
			   MemoryContext context, TupleTableSlot *slot, TransactionId xmin)
{
	if (!KdbVersionRecordsAny(relid, known))
		return false;
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
	for (int i = 0; i < rewrites->n; i++)
	{
		if (rewrites->list[i].xid == xmin && is_of_command(slot, &rewrites->list[i]))
			return true;
	}
	return false;
}
