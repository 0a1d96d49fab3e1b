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
 * THE WINDOW.  The engine's wake-up is a SetLatch of the WAL writer's latch, which
 * returns at once if the latch is set.  So it is set here, without the signal, when
 * the commit record is about to be written, and reset right after: a few microseconds, as
 * deferred triggers have run by then.
 *
 * THE DEBT.  The latch is everybody's.  In the window another session's wake-up is lost as
 * well, or one that the WAL writer has not looked at yet.  So each window leaves a
 * debt: one true wake-up, with a signal, no later than pay_delay() after the first window that
 * owes it.  A timer pays, whatever this process waits for by then, and an exit of
 * the process does.  (One that is killed takes the server with it.)  That wake-up can be lost to
 * a window of another worker, if that closes before the WAL writer has looked; then that worker
 * owes it.
 *
 * So nobody's asynchronous commit is written much later than that delay after the engine would
 * have it written, whether the WAL writer hibernates or not.  That is within the 3 *
 * wal_writer_delay until it is flushed which the manual promises: the WAL writer's own part of that
 * begins when it wakes up, and takes 2 * wal_writer_delay at most.
 *
 * From 17 on the engine wakes it once for wal_writer_flush_after; nothing is done there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "postmaster/walwriter.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/timeout.h"

#include "krahodb/compat.h"
#include "apply_private.h"

#if KDB_ASYNC_COMMIT_WAKES_WAL_WRITER

/* Longest debt, ms. */
#define PAY_DELAY	5

static TimeoutId pay_timeout;
static volatile sig_atomic_t in_debt = false;
static bool window_open = false;

static int
pay_delay(void)
{
	return Max(Min(PAY_DELAY, WalWriterDelay), 1);
}

/*
 * The true wake-up.  Also in a signal handler, within a window or not.  The reset is for a
 * latch that this or another worker has set without a signal.
 */
static void
pay(void)
{
	Latch	   *latch = ProcGlobal->walwriterLatch;

	in_debt = false;
	if (latch == NULL)
		return;
	latch->is_set = false;
	SetLatch(latch);
}

static void
open_window(void)
{
	Latch	   *latch = ProcGlobal->walwriterLatch;

	if (latch == NULL || latch->is_set)
		return;
	if (!in_debt)
	{
		in_debt = true;
		enable_timeout_after(pay_timeout, pay_delay());
	}
	latch->is_set = true;
	window_open = true;
}

/* If the timer has paid within the window, what it paid may be lost by the reset here. */
static void
close_window(void)
{
	if (!window_open)
		return;
	window_open = false;
	ProcGlobal->walwriterLatch->is_set = false;
	if (!in_debt)
		pay();
}

static void
wal_writer_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_COMMIT)
	{
		if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF &&
			TransactionIdIsValid(GetTopTransactionIdIfAny()))
			open_window();
	}
	else
		close_window();
}

static void
pay_on_exit(int code, Datum arg)
{
	close_window();
	if (in_debt)
		pay();
}

/* See apply_private.h. */
void
KdbWalWriterSpare(void)
{
	pay_timeout = RegisterTimeout(USER_TIMEOUT, pay);
	RegisterXactCallback(wal_writer_xact_callback, NULL);
	before_shmem_exit(pay_on_exit, (Datum) 0);
}

#else

void
KdbWalWriterSpare(void)
{
}

#endif
