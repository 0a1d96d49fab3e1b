/*
 * streamed.c
 *		Transactions that are sent in parts before they commit.
 *
 * A transaction that outgrows logical_decoding_work_mem is sent in blocks from
 * STREAM START to STREAM STOP, as it comes; the subscriber keeps them until
 * STREAM COMMIT or STREAM PREPARE, or throws them (or those of a
 * subtransaction) away at STREAM ABORT.  Blocks of several transactions
 * alternate, so each message inside a block carries its transaction id.
 *
 * The subscriber learns a schema that came in a streamed transaction only when
 * it applies that one, which may be never.  The relation cache therefore counts
 * such schemas per transaction; see KdbRelationCacheForgetStream.
 */
#include "postgres.h"

#include "replication/logicalproto.h"

#include "output_private.h"

void
KdbOutputStreamStart(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	bool		first_block = !rbtxn_is_streamed(txn);
	char	   *origin = first_block ? KdbOriginName(txn->origin_id) : NULL;
	KdbMessagePosition position = origin == NULL ? KDB_MESSAGE_LAST : KDB_MESSAGE_INNER;

	Assert(!output->in_stream);
	KdbHoldBeforeTransaction(ctx, txn);
	KdbOutputSeenLook(ctx, txn);
	logicalrep_write_stream_start(KdbMessageStart(ctx, position), txn->xid, first_block);
	KdbMessageEnd(ctx, position);

	/* Where the origin's transaction ended is not known before it commits. */
	KdbSendOrigin(ctx, origin, InvalidXLogRecPtr);
	output->in_stream = true;
}

void
KdbOutputStreamStop(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	KdbOutput  *output = KdbOutputOf(ctx);

	Assert(output->in_stream);
	logicalrep_write_stream_stop(KdbMessageStart(ctx, KDB_MESSAGE_FINAL));
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
	output->in_stream = false;
}

void
KdbOutputStreamAbort(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr abort_lsn)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	ReorderBufferTXN *toplevel = txn->toptxn ? txn->toptxn : txn;

	Assert(!output->in_stream);
	Assert(rbtxn_is_streamed(toplevel));
	logicalrep_write_stream_abort(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), toplevel->xid, txn->xid);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
	KdbRelationCacheForgetStream(output, toplevel->xid, false);
}

/*
 * The schemas that the transaction carried do not count as sent: it may still
 * be rolled back.
 */
void
KdbOutputStreamPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr prepare_lsn)
{
	Assert(rbtxn_is_streamed(txn));
	KdbOutputProgress(ctx, false);
	KdbSendSeen(ctx, txn, false);
	logicalrep_write_stream_prepare(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn, prepare_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
	KdbRelationCacheForgetStream(KdbOutputOf(ctx), txn->xid, false);
}

void
KdbOutputStreamCommit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	KdbOutput  *output = KdbOutputOf(ctx);

	Assert(!output->in_stream);
	Assert(rbtxn_is_streamed(txn));
	KdbOutputProgress(ctx, false);
	KdbSendSeen(ctx, txn, false);
	logicalrep_write_stream_commit(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn, commit_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
	KdbRelationCacheForgetStream(output, txn->xid, true);
}
