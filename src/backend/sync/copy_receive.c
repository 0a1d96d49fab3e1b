/*
 * copy_receive.c
 *		COPY's data on its way from the connection to COPY FROM, and the session that
 *		sends it.
 *
 * Whatever is received is counted in shared memory, for krahodb.copy_progress, and
 * paid for with the subscription's meter if krahodb.copy_rate_limit is set.  It is
 * paid for in pieces, not row by row: a piece is what the limit allows in a tenth
 * of a second, but not more than PIECE_BYTES.  While the process waits the
 * publisher does too, as soon as the socket's buffers are full.
 *
 * A change of the limit takes effect at once, also for who is waiting: what was
 * to be paid at the old rate is forgotten (see copy_shared.c).
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/walreceiver.h"
#include "storage/latch.h"
#include "utils/guc.h"

#include "krahodb/copy_shared.h"
#include "krahodb/stream.h"

#include "sync_private.h"

#define PIECE_BYTES		65536

/* Of COPY's binary format: what it begins with, in front of the first row, and ends with. */
static const char binary_signature[11] = "PGCOPY\n\377\r\n";
#define BINARY_HEADER_SIZE	(sizeof(binary_signature) + 4 + 4)	/* flags, extension's length */
static const char binary_trailer[2] = {'\377', '\377'};

/* What has been received and not yet read; belongs to the connection. */
static struct
{
	char	   *data;
	int			len;
	bool		ended;			/* nothing more comes */
} received;

static KdbSharedCopy *counted_in = NULL;
static int64 unpaid = 0;

/*
 * Limits that the publisher has for sessions of users.  A copy takes as long as it takes, waits
 * for who alters the table, and is idle while rows are looked at here, others copy ranges, or the apply
 * worker is busy.  Each time it would begin anew, for nothing.
 */
void
KdbCopyRemoteTimeouts(void)
{
	(void) KdbStreamQuery(LogRepWorkerWalRcvConn,
						  "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings"
						  " WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY['statement_timeout', 'lock_timeout',"
						  " 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout'])",
						  1, "settings");
}

/* Count what is received from here on in that entry. */
void
KdbCopyReceiveCount(KdbSharedCopy *copy)
{
	counted_in = copy;
}

/* A COPY has been started on LogRepWorkerWalRcvConn. */
void
KdbCopyReceiveStart(void)
{
	received.len = 0;
	received.ended = false;
}

/* In the middle of COPY the configuration is only read here. */
static void
process_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Wait for that many microseconds, or until the limit is another one. */
static void
wait_for_rate(int64 usecs)
{
	int			rate = KdbCopyRateLimit;
	int64		until = KdbCopyMeterNow() + usecs;

	while (KdbCopyRateLimit == rate)
	{
		/* a long wait is looked at again */
		long		ms = (long) Min((until - KdbCopyMeterNow() + 999) / 1000, INT_MAX);

		if (ms <= 0)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		process_interrupts();
	}
}

/*
 * There is one message for each row, and in binary format one more, for the trailer.  A row
 * is not like that: it has no negative number of fields, and ends in a newline as text.
 */
static bool
is_row(const char *data, int len)
{
	if (len == BINARY_HEADER_SIZE + sizeof(binary_trailer) &&
		memcmp(data, binary_signature, sizeof(binary_signature)) == 0)
	{
		data += BINARY_HEADER_SIZE;
		len -= BINARY_HEADER_SIZE;
	}
	return len != sizeof(binary_trailer) || memcmp(data, binary_trailer, len) != 0;
}

static void
account(const char *data, int bytes)
{
	if (counted_in != NULL)
	{
		if (is_row(data, bytes))
			pg_atomic_fetch_add_u64(&counted_in->rows, 1);
		pg_atomic_fetch_add_u64(&counted_in->bytes, bytes);
	}

	unpaid = KdbCopyRateLimit == 0 ? 0 : unpaid + bytes;
	if (unpaid >= Min(PIECE_BYTES, (int64) KdbCopyRateLimit * 1024 / 10) && unpaid > 0)
	{
		int64		wait = KdbCopyMeterPay(MySubscription->oid, unpaid);

		unpaid = 0;
		if (wait > 0)
			wait_for_rate(wait);
	}
}

/*
 * Receive the next piece; false at the end of the copy.  Waits without limit
 * as long as the connection holds, as any reader of a COPY does: how long the
 * publisher takes for a row depends on the filter.
 */
static bool
receive_more(void)
{
	while (!received.ended)
	{
		pgsocket	fd = PGINVALID_SOCKET;
		int			len;

		len = walrcv_receive(LogRepWorkerWalRcvConn, &received.data, &fd);
		process_interrupts();
		if (len > 0)
		{
			received.len = len;
			account(received.data, len);
			return true;
		}
		if (len < 0)
		{
			received.ended = true;
			break;
		}

		(void) WaitLatchOrSocket(MyLatch,
								 WL_SOCKET_READABLE | WL_LATCH_SET |
									 WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 fd, KDB_SYNC_WAIT_MS,
								 WAIT_EVENT_LOGICAL_SYNC_DATA);
		ResetLatch(MyLatch);
	}
	return false;
}

/* Move what is there, but not more than size bytes, to out. */
static int
take_received(char *out, int size)
{
	int			len = Min(received.len, size);

	memcpy(out, received.data, len);
	received.data += len;
	received.len -= len;
	return len;
}

/* COPY FROM's data source. */
int
KdbCopyReceive(void *outbuf, int minread, int maxread)
{
	int			nread = 0;

	do
	{
		if (received.len == 0 && !receive_more())
			break;
		nread += take_received((char *) outbuf + nread, maxread - nread);
	} while (nread < minread);

	return nread;
}

/* Read to the end what nobody wants any more. */
void
KdbCopyReceiveSkip(void)
{
	while (receive_more())
		continue;
}
