/*
 * transaction.c
 *		Where transactions begin and end.
 *
 * An ordinary transaction reaches the plugin when its commit was decoded.  Its
 * BEGIN is sent with the first change that is worth sending, so a transaction
 * of which nothing is published costs nothing on the wire; the engine is told
 * that it was skipped, because a synchronous publisher waits for an answer to
 * it.
 *
 *		BEGIN_PENDING --first change sent--> BEGIN_SENT --commit--> none
 *			|
 *			+--commit: nothing is sent--> none
 *
 * A prepared transaction is always sent: after a restart between PREPARE and
 * COMMIT PREPARED nobody would know that it had been skipped.
 *
 * A transaction that was applied here from elsewhere has an origin; its name
 * here goes in an ORIGIN message behind the BEGIN.
 */
#include "postgres.h"

#include "replication/logicalproto.h"

#include "output_private.h"

/* Tell the engine of progress at least once in so many changes. */
#define CHANGES_PER_PROGRESS	100

/*
 * Tell the engine how far decoding has got.  At the end of a transaction it
 * notes the time for its lag statistics, and answers for a skipped transaction
 * if somebody waits for it; in between it keeps the connection alive while we
 * walk through changes that are not sent.
 */
void
KdbOutputProgress(LogicalDecodingContext *ctx, bool skipped_transaction)
{
	KdbOutput  *output = KdbOutputOf(ctx);

	output->changes_since_progress++;
	if (ctx->end_xact || output->changes_since_progress >= CHANGES_PER_PROGRESS)
	{
		OutputPluginUpdateProgress(ctx, skipped_transaction);
		output->changes_since_progress = 0;
	}
}

/*
 * The name of an origin, palloc'd; NULL if there is none or it was dropped.
 * Needs a catalog snapshot.
 */
char *
KdbOriginName(RepOriginId origin_id)
{
	char	   *name;

	if (origin_id == InvalidRepOriginId ||
		!replorigin_by_oid(origin_id, true, &name))
		return NULL;
	return name;
}

/* Send the ORIGIN message if there is a name, and free that. */
void
KdbSendOrigin(LogicalDecodingContext *ctx, const char *name, XLogRecPtr origin_lsn)
{
	if (name == NULL)
		return;
	logicalrep_write_origin(KdbMessageStart(ctx, KDB_MESSAGE_LAST), name, origin_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_LAST);
	pfree(unconstify(char *, name));
}

/* A first message is the last for its log position unless ORIGIN follows. */
static KdbMessagePosition
first_position(const char *origin)
{
	return origin == NULL ? KDB_MESSAGE_LAST : KDB_MESSAGE_INNER;
}

/* Send the BEGIN of an ordinary transaction if it is still pending. */
void
KdbSendBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	char	   *origin;

	if (output->transaction != KDB_BEGIN_PENDING)
		return;

	origin = KdbOriginName(txn->origin_id);
	logicalrep_write_begin(KdbMessageStart(ctx, first_position(origin)), txn);
	KdbMessageEnd(ctx, first_position(origin));
	output->transaction = KDB_BEGIN_SENT;
	KdbSendSeen(ctx, txn, true);
	KdbSendOrigin(ctx, origin, txn->origin_lsn);
}

void
KdbOutputBegin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	KdbHoldBeforeTransaction(ctx, txn);
	KdbOutputOf(ctx)->transaction = KDB_BEGIN_PENDING;
}

void
KdbOutputCommit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	KdbOutput  *output = KdbOutputOf(ctx);
	bool		sent = output->transaction == KDB_BEGIN_SENT;

	Assert(output->transaction != KDB_NO_TRANSACTION);
	output->transaction = KDB_NO_TRANSACTION;
	KdbOutputProgress(ctx, !sent);
	if (!sent)
	{
		elog(DEBUG1, "skipped replication of an empty transaction with XID: %u", txn->xid);
		return;
	}
	logicalrep_write_commit(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn, commit_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
}

void
KdbOutputBeginPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	char	   *origin = KdbOriginName(txn->origin_id);

	KdbHoldBeforeTransaction(ctx, txn);
	logicalrep_write_begin_prepare(KdbMessageStart(ctx, first_position(origin)), txn);
	KdbMessageEnd(ctx, first_position(origin));
	KdbSendSeen(ctx, txn, true);
	KdbSendOrigin(ctx, origin, txn->origin_lsn);
}

void
KdbOutputPrepare(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr prepare_lsn)
{
	KdbOutputProgress(ctx, false);
	logicalrep_write_prepare(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn, prepare_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
}

void
KdbOutputCommitPrepared(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	KdbOutputProgress(ctx, false);
	logicalrep_write_commit_prepared(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn, commit_lsn);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
}

void
KdbOutputRollbackPrepared(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						  XLogRecPtr prepare_end_lsn, TimestampTz prepare_time)
{
	KdbOutputProgress(ctx, false);
	logicalrep_write_rollback_prepared(KdbMessageStart(ctx, KDB_MESSAGE_FINAL), txn,
									   prepare_end_lsn, prepare_time);
	KdbMessageEnd(ctx, KDB_MESSAGE_FINAL);
}
