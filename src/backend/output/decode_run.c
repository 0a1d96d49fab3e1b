/*
 * decode_run.c
 *		Several log records for each turn of the walsender's loop.
 *
 * The loop decodes one record a turn, and each turn looks for a message of the
 * subscriber first: a system call per record, which costs as much as decoding it.
 * There is no seam in the loop, but there is one below it: a record is decoded by
 * the function that RmgrTable has for its kind, and that table is each process's
 * own.  So in a walsender that speaks for this plugin, those functions are ours:
 * they call the engine's, and then read and decode the records behind it in the
 * same way, up to RUN_RECORDS.
 *
 * What must be as it was:
 *
 * 1. ONLY IN THE WALSENDER'S LOOP.  Others decode up to a position of theirs (the SQL
 *	functions) or until they can start (creating a slot), and would be led past it.
 *	The loop is known by its context, which was noted at the plugin's startup, and
 *	by the walsender's state.
 * 2. NO RUN WAITS LONG.  A run goes on only where the log is flushed.  The next record
 *	may be flushed in part; then the engine's page_read waits for the rest, which is
 *	being written: WAL is flushed by pages only in front of more.
 * 3. NO RUN GOES PAST WHAT THE LOOP MUST SEE.  It ends behind a record that may have sent
 *	something (the end of a transaction, a message; output that the connection has not
 *	taken yet), and when an interrupt is pending.  sent_lsn moves once per run, so it
 *	stops at each of these as before.
 *
 * The records that a run may begin with, or have in it, are those that change data
 * or indexes; transactions, snapshots and messages keep the engine's functions.
 *
 * The loop keeps nothing of a record behind its decoding but the reader's position.
 */
#include "postgres.h"

/* libpq.h would want GSSAPI's headers, for a member of a structure not used here. */
#undef ENABLE_GSS

#include "access/rmgr.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "libpq/libpq.h"
#include "miscadmin.h"
#include "replication/decode.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"

#include "output_private.h"

#define RUN_RECORDS		256

typedef void (*DecodeFunction) (LogicalDecodingContext *ctx, XLogRecordBuffer *buf);

/* The engine's functions, by kind of record; NULL where it has none. */
static DecodeFunction engine_decode[RM_MAX_ID + 1];

/* The session of this process; NULL if there is none. */
static LogicalDecodingContext *session = NULL;
static bool in_run = false;
static MemoryContextCallback session_reset;

/* May records of this kind be in a run? */
static bool
is_data(RmgrId kind)
{
	switch (kind)
	{
		case RM_XACT_ID:
		case RM_STANDBY_ID:
		case RM_LOGICALMSG_ID:
			return false;
		default:
			return true;
	}
}

static bool
in_walsender_loop(LogicalDecodingContext *ctx)
{
	return ctx == session && MyWalSnd != NULL &&
		(MyWalSnd->state == WALSNDSTATE_CATCHUP || MyWalSnd->state == WALSNDSTATE_STREAMING);
}

/* The records behind the one that was decoded.  An error leaves the run. */
static void
decode_run(LogicalDecodingContext *ctx)
{
	XLogReaderState *reader = ctx->reader;
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);
	int			nrecords;

	for (nrecords = 1; nrecords < RUN_RECORDS; nrecords++)
	{
		XLogRecord *record;
		char	   *message;

		if (reader->EndRecPtr >= flushed || InterruptPending || pq_is_send_pending())
			break;
		record = XLogReadRecord(reader, &message);
		if (message != NULL)
			elog(ERROR, "could not find record while sending logically-decoded data: %s", message);
		if (record == NULL)
			break;				/* the server shuts down */
		LogicalDecodingProcessRecord(ctx, reader);
		if (!is_data(record->xl_rmid))
			break;
	}
}

/* In RmgrTable, for all kinds of data. */
static void
decode_record(LogicalDecodingContext *ctx, XLogRecordBuffer *buf)
{
	RmgrId		kind = XLogRecGetRmid(buf->record);

	if (engine_decode[kind] != NULL)
		engine_decode[kind] (ctx, buf);
	else
		ReorderBufferProcessXid(ctx->reorder, XLogRecGetXid(buf->record), buf->origptr);

	if (in_run || !in_walsender_loop(ctx))
		return;
	in_run = true;
	PG_TRY();
	{
		decode_run(ctx);
	}
	PG_FINALLY();
	{
		in_run = false;
	}
	PG_END_TRY();
}

static void
replace_decode_functions(void)
{
	static bool done = false;

	if (done)
		return;
	done = true;
	for (int kind = 0; kind <= RM_MAX_ID; kind++)
	{
		if (!RmgrIdExists(kind) || !is_data(kind))
			continue;
		engine_decode[kind] = RmgrTable[kind].rm_decode;
		RmgrTable[kind].rm_decode = decode_record;
	}
}

static void
session_gone(void *arg)
{
	if (session == arg)
		session = NULL;
}

/* At the start of a session. */
void
KdbDecodeRunInit(LogicalDecodingContext *ctx)
{
	if (!am_walsender || ctx->reader->routine.page_read == read_local_xlog_page)
		return;
	replace_decode_functions();
	session = ctx;
	session_reset.func = session_gone;
	session_reset.arg = ctx;
	MemoryContextRegisterResetCallback(ctx->context, &session_reset);
}
