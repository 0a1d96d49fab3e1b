/*
 * wal_writer.c
 *		The WAL writer is woken a few hundred times a second, not at each commit.
 *
 * With synchronous_commit = off, PostgreSQL 15 and 16 wake the WAL writer at each commit
 * that finds a page of WAL full and not flushed.  That is nearly always: it writes at once,
 * but flushes only after wal_writer_delay or wal_writer_flush_after.  For who applies
 * transactions as fast as they come, the signal is a sixth of the time, and the WAL writer
 * runs for each of them.
 *
 * The commit finds the WAL writer's latch in the header of all processes, which it finds by a
 * variable of its own process, ProcGlobal.  While the commit record is written (the callbacks
 * of the commit enclose that) this is a copy of the header without the latch.  So
 * only this process's own wake-up is left out, and others notice nothing.  All else in the
 * header that a commit uses is pointers to what is shared, but for the two lists of
 * processes whose commits are put into clog and taken out of the process array together: those
 * of the copy are empty, so this process does both for itself.
 *
 * The WAL writer is woken by the first commit after WAKE_INTERVAL.  What has not been written by then is
 * this process's own, the publisher is not told that it is flushed, and a worker that has nothing to
 * do flushes it itself (feedback.c).  So nothing is lost that would not be sent again.
 *
 * From 17 on the engine wakes it once for wal_writer_flush_after; nothing is done there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "apply_private.h"

#if KDB_ASYNC_COMMIT_WAKES_WAL_WRITER

#define WAKE_INTERVAL	(5 * (TimestampTz) 1000)	/* us */

static PROC_HDR *shared_header = NULL;	/* what ProcGlobal was, while it is the copy */
static PROC_HDR copy;
static TimestampTz woken_at = 0;

static void
hide_latch(void)
{
	TimestampTz now = GetCurrentTimestamp();

	/* a clock that was set back counts as if the interval had passed */
	if (now < woken_at || now >= woken_at + WAKE_INTERVAL)
	{
		woken_at = now;
		return;
	}
	shared_header = ProcGlobal;
	memcpy(&copy, ProcGlobal, sizeof(copy));
	copy.walwriterLatch = NULL;
	pg_atomic_init_u32(&copy.procArrayGroupFirst, INVALID_PGPROCNO);
	pg_atomic_init_u32(&copy.clogGroupFirst, INVALID_PGPROCNO);
	ProcGlobal = &copy;
}

static void
restore_header(void)
{
	if (shared_header)
		ProcGlobal = shared_header;
	shared_header = NULL;
}

static void
wal_writer_xact_callback(XactEvent event, void *arg)
{
	restore_header();
	if (event == XACT_EVENT_PRE_COMMIT && synchronous_commit == SYNCHRONOUS_COMMIT_OFF &&
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		hide_latch();
}

static void
restore_on_exit(int code, Datum arg)
{
	restore_header();
}

/* See apply_private.h. */
void
KdbWalWriterSpare(void)
{
	RegisterXactCallback(wal_writer_xact_callback, NULL);
	before_shmem_exit(restore_on_exit, (Datum) 0);
}

#else

void
KdbWalWriterSpare(void)
{
}

#endif
