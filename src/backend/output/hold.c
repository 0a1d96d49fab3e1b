/*
 * hold.c
 *		Frames that wait for company while there is more to decode.
 *
 * A write per transaction costs more than decoding a small one.  So a frame that
 * ends with a whole transaction is held back as long as the walsender has more
 * of the log to decode, and the next transactions are put behind it.  Nobody may
 * notice:
 *
 * 1. NOTHING OVERTAKES A HELD FRAME.  A keepalive carries how far the walsender has
 *    decoded, and the subscriber confirms that; with a transaction still held here
 *    it would be confirmed without ever having been sent, and be lost with the
 *    connection.  Keepalives are sent from many places of the walsender, without
 *    asking the plugin.  They all go through the functions in PqCommMethods, which
 *    we wrap: in front of any other message goes the held frame.
 *
 * 2. NOTHING IS HELD WHILE THE WALSENDER WAITS.  It waits for WAL at two places:
 *	- when a page of the log is asked for that is not flushed so far: we wrap the
 *	  reader's page_read callback, and give the frame out before;
 *	- in its main loop, behind a record at which the flushed log ends.  The loop
 *	  flushes the connection behind each record and before each wait; we wrap that
 *	  function, and look whether the log goes on behind the record.
 *	When the log grows just behind our look, whoever flushed it wakes the walsender,
 *	so it decodes on and comes here again.
 *
 * 3. THE WAIT IS SHORT.  The frame is given out when it is full, when HOLD_LOG bytes
 *    of the log have been decoded since its first transaction ended (whoever wrote
 *    them: other databases, tables that are not published), and before a transaction
 *    of more than HOLD_CHANGES changes is replayed, which may send nothing for long.
 *
 * "Given out" is: put into the buffer of the connection, as a message of the
 * replication protocol; that the buffer is then sent is the walsender's business
 * (it does so before each wait).  A full frame goes the engine's way instead, which
 * waits until the subscriber takes it: so what is put into the buffer without
 * waiting is less than one frame.
 *
 * 4. THE WALSENDER IS SEEN TO HAVE CAUGHT UP.  Its loop calls itself "streaming", which is
 *    what releases commits that wait for a synchronous subscriber, in a turn that finds
 *    the log decoded and the connection's buffer empty.  The engine has always sent what
 *    it has decoded by then; a frame that is given out at the end of the log may still be
 *    in the buffer.  The loop then waits until it is sent, and goes on to wait for more
 *    of the log without another look, for as long as nobody writes.  So the look is ours,
 *    whenever the buffer has been flushed.
 *
 * The position of a frame is the greatest of its messages': all that ended before
 * it has been sent when it has been read.
 *
 * None of this is done for the SQL functions, which have no loop that would come by
 * again; there each transaction is written when it ends.
 */
#include "postgres.h"

/* libpq.h would want GSSAPI's headers, for a member of a structure not used here. */
#undef ENABLE_GSS

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "lib/ilist.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/timestamp.h"

#include "krahodb/fault.h"
#include "output_private.h"

#define HOLD_LOG		(128 * 1024)
#define HOLD_CHANGES	100

/* The session of this process whose frames may be held; NULL if there is none. */
static LogicalDecodingContext *session = NULL;

static XLogPageReadCB engine_page_read;
static const PQcommMethods *engine_comm;
static XLogRecPtr known_flushed;	/* the log was flushed up to here, at least */
static MemoryContextCallback session_reset;

static KdbFrame *
held_frame(void)
{
	KdbFrame   *frame;

	if (session == NULL)
		return NULL;
	frame = &KdbOutputOf(session)->frame;
	return frame->held ? frame : NULL;
}

static bool
is_flushed(XLogRecPtr position)
{
	if (position >= known_flushed)
		known_flushed = GetFlushRecPtr(NULL);
	return position < known_flushed;
}

/* Put the held frame into the connection's buffer, as the walsender would. */
static void
give_out(KdbFrame *frame)
{
	StringInfo	out = &frame->message;
	MemoryContext old = MemoryContextSwitchTo(session->context);

	resetStringInfo(out);
	pq_sendbyte(out, 'w');
	pq_sendint64(out, frame->lsn);
	pq_sendint64(out, frame->lsn);
	pq_sendint64(out, GetCurrentTimestamp());
	KdbFrameTake(session, frame, out);
	engine_comm->putmessage_noblock('d', out->data, out->len);
	MemoryContextSwitchTo(old);
}

static void
put_behind_held_frame(char type, const char *data, size_t len)
{
	KdbFrame   *frame = type == 'd' || type == 'c' ? held_frame() : NULL;

	if (frame != NULL)
		give_out(frame);
	engine_comm->putmessage_noblock(type, data, len);
}

/* The walsender's state, if all that it has decoded is sent and there is no more of the log. */
static void
note_caught_up(void)
{
	XLogRecPtr	position = session->reader->EndRecPtr;

	/* Only this process changes its state and position. */
	if (MyWalSnd->state == WALSNDSTATE_CATCHUP && MyWalSnd->sentPtr == position &&
		!engine_comm->is_send_pending() && !is_flushed(position))
		WalSndSetState(WALSNDSTATE_STREAMING);
}

static int
flush_with_held_frame(void)
{
	KdbFrame   *frame = held_frame();
	int			result;

	if (frame != NULL)
	{
		XLogRecPtr	position = session->reader->EndRecPtr;

		if ((position >= frame->held_since + HOLD_LOG || !is_flushed(position)) &&
			!KDB_FAULT_SKIPS("output_hold"))
			give_out(frame);
	}
	result = engine_comm->flush_if_writable();
	if (result == 0 && session != NULL && held_frame() == NULL)
		note_caught_up();
	return result;
}

static int
read_page(XLogReaderState *reader, XLogRecPtr page, int length, XLogRecPtr record, char *buffer)
{
	KdbFrame   *frame = held_frame();

	if (frame != NULL && !is_flushed(page + length - 1) && !KDB_FAULT_SKIPS("output_hold"))
		give_out(frame);
	return engine_page_read(reader, page, length, record, buffer);
}

static void
wrap_connection(void)
{
	static PQcommMethods wrapped;

	if (PqCommMethods == &wrapped)
		return;
	engine_comm = PqCommMethods;
	wrapped = *engine_comm;
	wrapped.putmessage_noblock = put_behind_held_frame;
	wrapped.flush_if_writable = flush_with_held_frame;
	PqCommMethods = &wrapped;
}

static void
session_gone(void *arg)
{
	if (session == arg)
		session = NULL;
}

/* At the start of a framed session: may its frames be held? */
void
KdbHoldInit(LogicalDecodingContext *ctx, KdbFrame *frame)
{
	if (!am_walsender || ctx->reader->routine.page_read == read_local_xlog_page)
		return;
	initStringInfo(&frame->message);
	engine_page_read = ctx->reader->routine.page_read;
	ctx->reader->routine.page_read = read_page;
	known_flushed = InvalidXLogRecPtr;
	wrap_connection();

	session = ctx;
	session_reset.func = session_gone;
	session_reset.arg = ctx;
	MemoryContextRegisterResetCallback(ctx->context, &session_reset);
}

/*
 * The frame ends with a whole transaction or part of one.  True if it is held,
 * false if it is to be written now.
 */
bool
KdbHoldFrame(LogicalDecodingContext *ctx, KdbFrame *frame)
{
	if (session != ctx)
		return false;
	if (!frame->held)
		frame->held_since = ctx->reader->EndRecPtr;
	frame->held = true;
	KDB_FAULT_POINT("output_held");
	return true;
}

static bool
is_large(ReorderBufferTXN *txn)
{
	uint64		nchanges = txn->nentries;
	dlist_iter	iter;

	dlist_foreach(iter, &txn->subtxns)
	{
		if (nchanges > HOLD_CHANGES)
			break;
		nchanges += dlist_container(ReorderBufferTXN, node, iter.cur)->nentries;
	}
	return nchanges > HOLD_CHANGES;
}

/* A transaction is about to be replayed. */
void
KdbHoldBeforeTransaction(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	KdbFrame   *frame = held_frame();

	if (frame != NULL && session == ctx && is_large(txn))
	{
		give_out(frame);
		(void) engine_comm->flush_if_writable();
	}
}
