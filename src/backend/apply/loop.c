/*
 * loop.c
 *		Receiving the stream until the publisher ends it.
 *
 * Outer round: take all that has arrived, report what is flushed, look at what
 * other sessions changed (subscription, table synchronisation), wait for more.
 * Every wait has a limit:
 *
 *	data pending flush		KDB_LOOP_FLUSH_NAP, then the pairs of feedback.c are
 *							looked at again
 *	lanes have work			KDB_LOOP_LANES_NAP, then what they have done is noted
 *	else					KDB_LOOP_NAP
 *	silent publisher		pinged after half of wal_receiver_timeout, given up
 *							after all of it, also while lanes have work
 *
 * While data keeps arriving the inner round does not end, so it reports from
 * time to time and takes a changed configuration between transactions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/walreceiver.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "apply_private.h"
#include "fetch_private.h"

#define KDB_LOOP_NAP		1000L	/* ms */
#define KDB_LOOP_FLUSH_NAP	3L	/* ms */
#define KDB_LOOP_LANES_NAP	10L /* ms */
#define KDB_LOOP_LOOK_EVERY	16	/* messages of a frame, which may take long each */

typedef struct ReceiveState
{
	XLogRecPtr	last_received;
	TimestampTz last_recv_time;
	TimestampTz last_wait;		/* for data ended then */
	TimestampTz silent_since;	/* nothing has come since, and it was looked for */
	bool		ping_sent;
} ReceiveState;

/* For pg_stat_subscription; last_recv_time is now. */
static void
update_worker_stats(const ReceiveState *state, TimestampTz send_time, bool reply)
{
	MyLogicalRepWorker->last_lsn = state->last_received;
	MyLogicalRepWorker->last_send_time = send_time;
	MyLogicalRepWorker->last_recv_time = state->last_recv_time;
	if (reply)
	{
		MyLogicalRepWorker->reply_lsn = state->last_received;
		MyLogicalRepWorker->reply_time = send_time;
	}
}

static void
take_message(const char *data, size_t len)
{
	if (!KdbLeaderTake(data, len))
		KdbApplyDispatch(data, len);
}

/* A payload of a KrahoDB stream: many messages, see wire.h. */
static void
apply_frame(const char *data, size_t len)
{
	KdbWireError error = {0, NULL};
	size_t		position = 0;
	const char *frame;
	size_t		frame_len;
	const char *message;
	size_t		message_len;
	int			nmessages = 0;

	if (KdbApplyFrameOpen(data, len, &frame, &frame_len, &error))
	{
		while (KdbWireFrameNext(frame, frame_len, &position,
								&message, &message_len, &error))
		{
			CHECK_FOR_INTERRUPTS();
			take_message(message, message_len);
			if (++nmessages % KDB_LOOP_LOOK_EVERY == 0)
				KdbFeedbackWhileBusy();
		}
	}

	if (error.what != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid frame from the publisher: %s", error.what),
				 errdetail("At byte %zu of %zu.", error.offset, len)));
}

/* 'w': data of the output plugin. */
static void
receive_data(ReceiveState *state, StringInfo s)
{
	XLogRecPtr	start_lsn = pq_getmsgint64(s);
	XLogRecPtr	end_lsn = pq_getmsgint64(s);
	TimestampTz send_time = pq_getmsgint64(s);

	state->last_received = Max(state->last_received, Max(start_lsn, end_lsn));
	update_worker_stats(state, send_time, false);

	if (KdbApply.krahodb_stream)
		apply_frame(s->data + s->cursor, s->len - s->cursor);
	else
		take_message(s->data + s->cursor, s->len - s->cursor);
}

/* 'k': the publisher is alive and has read up to end_lsn. */
static void
receive_keepalive(ReceiveState *state, StringInfo s)
{
	XLogRecPtr	end_lsn = pq_getmsgint64(s);
	TimestampTz send_time = pq_getmsgint64(s);
	bool		reply_requested = pq_getmsgbyte(s);

	state->last_received = Max(state->last_received, end_lsn);
	KdbFeedbackSend(state->last_received, state->last_recv_time,
					reply_requested, false);
	update_worker_stats(state, send_time, true);
}

static void
receive_payload(ReceiveState *state, char *data, int len)
{
	StringInfoData s;

	state->last_recv_time = state->silent_since = GetCurrentTimestamp();
	state->ping_sent = false;

	s.data = data;
	s.len = len;
	s.cursor = 0;
	s.maxlen = -1;

	switch (pq_getmsgbyte(&s))
	{
		case 'w':
			receive_data(state, &s);
			break;
		case 'k':
			receive_keepalive(state, &s);
			break;
		default:
			/* other kinds are for other clients */
			break;
	}

	if (KdbFeedbackDue(state->last_recv_time))
		KdbLeaderLook();
	if (KdbFeedbackDue(state->last_recv_time))
		KdbFeedbackSend(state->last_received, state->last_recv_time, false, false);
	if (!in_remote_transaction && !KdbSpoolActive())
		KdbProgressReportIfDue(state->last_received, state->last_recv_time);
}

static void
reload_configuration(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Take all that has arrived.  False: the publisher has ended the stream. */
static bool
receive_available(ReceiveState *state, pgsocket *fd)
{
	for (;;)
	{
		char	   *data = NULL;
		int			len;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(KdbApplyMessageContext);

		len = walrcv_receive(LogRepWorkerWalRcvConn, &data, fd);
		if (len == 0)
			return true;
		if (len < 0)
		{
			ereport(LOG,
					(errmsg("data stream from publisher has ended")));
			return false;
		}

		receive_payload(state, data, len);
		if (!IsTransactionState())
			reload_configuration();
	}
}

/*
 * The stream has paused outside a remote transaction: no BEGIN may come for a
 * while, so notice now what other sessions changed.
 */
static void
between_transactions(XLogRecPtr last_received)
{
	if (in_remote_transaction || KdbSpoolActive())
		return;

	AcceptInvalidationMessages();
	KdbSubscriptionReread();
	KdbEarlyLook();
	if (!KdbLeaderBusy())
	{
		KdbSync->process_syncing_tables(last_received);
		KdbApplyRelationsLook();
	}
	KdbProgressReport(last_received);
	KdbFetchCloseUnused();
}

/* Nothing came for a nap: is the publisher still there? */
static void
check_publisher(ReceiveState *state)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		ping = false;

	if (wal_receiver_timeout > 0)
	{
		if (now >= TimestampTzPlusMilliseconds(state->silent_since, wal_receiver_timeout))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("terminating logical replication worker due to timeout")));

		ping = !state->ping_sent &&
			now >= TimestampTzPlusMilliseconds(state->silent_since, wal_receiver_timeout / 2);
		if (ping)
			state->ping_sent = true;
	}

	KdbFeedbackSend(state->last_received, now, ping, ping);
}

/*
 * What the worker has spent with other things than looking for data is no silence of the publisher,
 * which had been told meanwhile that there is somebody, and so did not ask.
 */
static void
forgive_own_silence(ReceiveState *state)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(state->last_wait, now, KDB_LOOP_NAP))
		return;
	state->silent_since = now;
	state->ping_sent = false;
}

static void
wait_for_data(ReceiveState *state, pgsocket fd)
{
	long		nap = KdbFeedbackPending() ? KDB_LOOP_FLUSH_NAP :
		KdbLeaderBusy() ? KDB_LOOP_LANES_NAP : KDB_LOOP_NAP;
	int			rc;

	forgive_own_silence(state);
	KdbLeaderBeforeWait();
	rc = WaitLatchOrSocket(MyLatch,
						   WL_SOCKET_READABLE | WL_LATCH_SET |
						   WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   fd, nap, WAIT_EVENT_LOGICAL_APPLY_MAIN);
	state->last_wait = GetCurrentTimestamp();
	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	reload_configuration();
	if ((rc & WL_TIMEOUT) && nap != KDB_LOOP_FLUSH_NAP)
		check_publisher(state);

	/* Statistics may wait for long otherwise; they need to be outside a transaction. */
	if ((rc & WL_TIMEOUT) && nap == KDB_LOOP_NAP && !IsTransactionState())
		pgstat_report_stat(true);
}

void
KdbApplyLoop(XLogRecPtr last_received)
{
	TimestampTz start = GetCurrentTimestamp();
	ReceiveState state = {last_received, start, start, start, false};
	ErrorContextCallback callback;
	TimeLineID	tli;
	bool		streaming;

	pgstat_report_activity(STATE_IDLE, NULL);

	callback.callback = KdbApplyErrorCallback;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	do
	{
		pgsocket	fd = PGINVALID_SOCKET;
		TimestampTz now;

		streaming = receive_available(&state, &fd);

		KdbLeaderLook();
		now = GetCurrentTimestamp();
		KdbFeedbackFlushIfDue(now);
		KdbFeedbackSend(state.last_received, now, false, false);

		between_transactions(state.last_received);

		MemoryContextReset(KdbApplyMessageContext);
		MemoryContextSwitchTo(TopMemoryContext);

		if (streaming)
			wait_for_data(&state, fd);
	} while (streaming);

	error_context_stack = callback.previous;
	walrcv_endstreaming(LogRepWorkerWalRcvConn, &tli);
}
