/*
 * feedback.c
 *		Which part of the stream is durable here, and telling the publisher.
 *
 * The publisher keeps WAL, and may count us as a synchronous standby, by the
 * positions that we report.  "Flushed" must never be ahead of what a crash of
 * this server would leave.  With synchronous_commit = off (the default of a
 * subscription) a commit returns before its WAL is flushed, so we keep pairs
 *
 *		(remote_end, local_end)		the remote transaction that ends at
 *									remote_end is durable once the local WAL is
 *									flushed up to local_end
 *
 * in order; both only grow.  The flushed position is the remote_end of the last
 * pair whose local_end is flushed.  With no pair left, everything received is
 * durable or has no effect here, and the received position is reported.
 *
 * The pairs are bounded: when the array is full every second one is merged into
 * its successor, which reports those transactions a little later.
 *
 * When the worker runs dry it flushes WAL itself once the oldest pair has waited
 * KDB_FEEDBACK_FLUSH_DELAY; the WAL writer would take up to two rounds of
 * wal_writer_delay.  Under load it never gets there, so bulk applying has the
 * full benefit of asynchronous commit.
 *
 * While the worker is busy with what has arrived, it does not read: a transaction from a
 * file, a wait for lanes, for the clock or for a table that catches up.  A publisher that
 * asks whether it is still there would get no answer for as long, and end the connection
 * after wal_sender_timeout.  So it is told without having asked, every
 * KDB_FEEDBACK_BUSY_INTERVAL.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "libpq/pqformat.h"
#include "replication/walreceiver.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/fault.h"
#include "apply_private.h"

#define KDB_FEEDBACK_PAIRS			1024	/* even */
#define KDB_FEEDBACK_FLUSH_DELAY	3	/* ms */
#define KDB_FEEDBACK_INTERVAL		1000	/* ms, while the stream does not pause */
#define KDB_FEEDBACK_BUSY_INTERVAL	250 /* ms, while nothing is read of it */

typedef struct FlushPair
{
	XLogRecPtr	remote_end;
	XLogRecPtr	local_end;
} FlushPair;

static FlushPair pairs[KDB_FEEDBACK_PAIRS];
static int	npairs = 0;
static TimestampTz pending_since = 0;	/* of pairs[0], at the latest */
static XLogRecPtr last_flushed = InvalidXLogRecPtr; /* remote_end of the last pair taken out */

/* What was reported last; none of them ever goes back. */
static XLogRecPtr reported_received = InvalidXLogRecPtr;
static XLogRecPtr reported_applied = InvalidXLogRecPtr;
static XLogRecPtr reported_flushed = InvalidXLogRecPtr;
static TimestampTz reported_at = 0;

bool
KdbFeedbackPending(void)
{
	return npairs > 0;
}

static void
merge_pairs(void)
{
	for (int i = 0; i < KDB_FEEDBACK_PAIRS / 2; i++)
		pairs[i] = pairs[2 * i + 1];
	npairs = KDB_FEEDBACK_PAIRS / 2;
}

void
KdbFeedbackCommitted(XLogRecPtr remote_end, XLogRecPtr local_end)
{
	if (npairs == 0)
	{
		if (XLogRecPtrIsInvalid(local_end))
			return;
		pending_since = GetCurrentTimestamp();
	}
	else if (local_end <= pairs[npairs - 1].local_end)
	{
		/* it wrote nothing of its own behind the one before */
		pairs[npairs - 1].remote_end = remote_end;
		return;
	}

	if (npairs == KDB_FEEDBACK_PAIRS)
		merge_pairs();
	pairs[npairs].remote_end = remote_end;
	pairs[npairs].local_end = local_end;
	npairs++;
}

/* Take out the pairs that are flushed. */
static void
take_flushed(TimestampTz now)
{
	XLogRecPtr	flushed;
	int			n = 0;

	if (npairs == 0)
		return;

	flushed = GetFlushRecPtr(NULL);
	while (n < npairs && pairs[n].local_end <= flushed)
		n++;
	if (n == 0)
		return;

	last_flushed = pairs[n - 1].remote_end;
	npairs -= n;
	memmove(pairs, pairs + n, npairs * sizeof(FlushPair));
	pending_since = now;
}

/*
 * Up to where is all that was received applied and flushed?  Between remote
 * transactions.
 */
XLogRecPtr
KdbFeedbackDurable(XLogRecPtr received, TimestampTz now)
{
	take_flushed(now);
	return npairs > 0 || KdbLeaderBusy() || KdbEarlyFinishing() ? last_flushed : received;
}

/* Nothing more to apply just now: flush what has waited long enough. */
void
KdbFeedbackFlushIfDue(TimestampTz now)
{
	if (npairs > 0 &&
		TimestampDifferenceExceeds(pending_since, now, KDB_FEEDBACK_FLUSH_DELAY))
		XLogFlush(pairs[npairs - 1].local_end);
}

/* Is it time for a report although the stream does not pause? */
bool
KdbFeedbackDue(TimestampTz now)
{
	return TimestampDifferenceExceeds(reported_at, now, KDB_FEEDBACK_INTERVAL);
}

static void
send_report(XLogRecPtr received, XLogRecPtr flushed, XLogRecPtr applied,
			TimestampTz now, bool request_reply)
{
	static StringInfo message = NULL;

	if (message == NULL)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(ApplyContext);

		message = makeStringInfo();
		MemoryContextSwitchTo(oldcxt);
	}

	resetStringInfo(message);
	pq_sendbyte(message, 'r');
	pq_sendint64(message, received);	/* "write" */
	pq_sendint64(message, flushed); /* "flush" */
	pq_sendint64(message, applied); /* "apply" */
	pq_sendint64(message, now);
	pq_sendbyte(message, request_reply);

	KDB_FAULT_POINT("apply_before_feedback");
	walrcv_send(LogRepWorkerWalRcvConn, message->data, message->len);
}

/*
 * Report, if there is anything new, if wal_receiver_status_interval has passed
 * since the last time, or if force.
 */
void
KdbFeedbackSend(XLogRecPtr received, TimestampTz now, bool force,
				bool request_reply)
{
	XLogRecPtr	flushed;
	XLogRecPtr	applied;

	if (!force && wal_receiver_status_interval <= 0)
		return;

	received = Max(received, reported_received);
	take_flushed(now);
	flushed = last_flushed;
	if (npairs > 0)
		applied = pairs[npairs - 1].remote_end;
	else if (KdbLeaderBusy() || KdbEarlyFinishing())
		applied = last_flushed;
	else
		flushed = applied = received;
	flushed = Max(flushed, reported_flushed);
	applied = Max(applied, reported_applied);

	if (!force && applied == reported_applied && flushed == reported_flushed &&
		!TimestampDifferenceExceeds(reported_at, now,
									wal_receiver_status_interval * 1000))
		return;

	elog(DEBUG2, "sending feedback (force %d) to recv %X/%X, write %X/%X, flush %X/%X",
		 force, LSN_FORMAT_ARGS(received), LSN_FORMAT_ARGS(applied),
		 LSN_FORMAT_ARGS(flushed));
	send_report(received, flushed, applied, now, request_reply);

	reported_at = now;
	reported_received = received;
	reported_applied = applied;
	reported_flushed = flushed;
}

/*
 * See apply.h.  Forced, because the publisher may have asked for an answer behind
 * what has not been read yet.  What was reported as received has been applied or is in
 * the file of a transaction that has not been committed: no position is ahead of that.
 *
 * A lost connection is not noticed here, but where it is read from: a transaction that
 * has arrived whole is applied before.
 */
void
KdbFeedbackWhileBusy(void)
{
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext context = CurrentMemoryContext;

	if (KdbInLane || !TimestampDifferenceExceeds(reported_at, now, KDB_FEEDBACK_BUSY_INTERVAL))
		return;
	PG_TRY();
	{
		KdbFeedbackSend(InvalidXLogRecPtr, now, true, false);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_CONNECTION_FAILURE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		reported_at = now;
	}
	PG_END_TRY();
}
