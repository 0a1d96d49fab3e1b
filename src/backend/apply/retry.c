/*
 * retry.c
 *		When an apply worker that has failed is started again.
 *
 * A deadlock with a local session, a serialization failure or a lock timeout is
 * nobody's fault and passes: the remote transaction is applied again at once, by a
 * new process, since a new process is the one clean state there is.  After any
 * other error the worker is started again as the engine does it, no sooner than
 * wal_retrieve_retry_interval after its last start: the error may need somebody, who
 * then does not want to wait.  But each start makes the publisher read the log
 * from the slot's position on, so a setting of a few milliseconds must not mean
 * dozens of starts in a second: a worker that fails again and again waits for a pause that
 * grows up to KDB_FAILURE_MAX_PAUSE, where wal_retrieve_retry_interval is shorter than
 * that.  This table tells the launcher which workers wait for what; others it
 * starts by its own pace.
 *
 * An entry belongs to a subscription's apply worker:
 *
 *	free		subid is InvalidOid
 *	due			waiting; the launcher starts the worker once not_before has come,
 *				and not earlier
 *	started		attempts and failures are what counts; freed when the worker has
 *				finished the remote transaction that had failed, or a later one
 *
 * ("failed" says which that is.  Transactions before it that have changed nothing here come again with
 * it, as they have not moved the origin's progress.  In the log of another server the place means nothing.)
 *
 * The worker makes its entry due when it gives up.  What passes makes it due again
 * while the worker starts (KdbRetryStarting), until it streams: its predecessor may
 * still hold the origin here or the slot at the publisher for a moment.  The first such
 * retry comes at once, each further one after a longer pause, up to
 * KDB_RETRY_MAX_DELAY.  Other errors are seen when the process ends: a worker that
 * is to restart or to stop exits with code 0, one that has failed does not.
 *
 * The table is lost when the server restarts, which does no harm.  A subscription
 * that was dropped leaves its entry, which is reused when there is no free one.
 * Entries are read and written under LogicalRepWorkerLock.
 */
#include "postgres.h"

#include "replication/walreceiver.h"
#include "replication/worker_internal.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "krahodb/shared.h"
#include "apply_private.h"

#define KDB_RETRY_FIRST_DELAY	100 /* ms; before the second retry */
#define KDB_RETRY_MAX_DELAY		10000	/* ms */
#define KDB_FAILURE_FIRST_PAUSE 50	/* ms; before the second start after an error */
#define KDB_FAILURE_MAX_PAUSE	1000	/* ms */

static bool retrying = false;	/* this worker has an entry */
static XLogRecPtr failed = InvalidXLogRecPtr;	/* as the entry has it */

static KdbRetryEntry *
find_entry(Oid subid)
{
	for (int i = 0; i < KdbShared->nretries; i++)
	{
		if (KdbShared->retries[i].subid == subid)
			return &KdbShared->retries[i];
	}
	return NULL;
}

/* A free entry, or the one that has been waiting for the longest time. */
static KdbRetryEntry *
take_entry(Oid subid)
{
	KdbRetryEntry *entry = find_entry(InvalidOid);

	if (entry == NULL)
	{
		entry = &KdbShared->retries[0];
		for (int i = 1; i < KdbShared->nretries; i++)
		{
			if (KdbShared->retries[i].not_before < entry->not_before)
				entry = &KdbShared->retries[i];
		}
	}
	memset(entry, 0, sizeof(KdbRetryEntry));
	entry->subid = subid;
	return entry;
}

/* None before the first attempt, then the first delay, doubled for each further one. */
static int
delay_before(int attempt, int first, int longest)
{
	int			delay = first;

	if (attempt <= 1)
		return 0;
	for (int i = 2; i < attempt && delay < longest; i++)
		delay *= 2;
	return Min(delay, longest);
}

/* The transaction that has failed, if there is one, ends behind lsn. */
static void
note_failed(KdbRetryEntry *entry, XLogRecPtr lsn)
{
	if (lsn != InvalidXLogRecPtr)
		entry->failed = lsn;
}

static int
make_due(KdbRetryEntry *entry)
{
	int			delay = delay_before(++entry->attempts, KDB_RETRY_FIRST_DELAY, KDB_RETRY_MAX_DELAY);

	entry->due = true;
	entry->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
	return delay;
}

/* See apply_private.h. */
int
KdbRetrySchedule(XLogRecPtr lsn)
{
	KdbRetryEntry *entry;
	int			delay;

	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry == NULL)
		entry = take_entry(MyLogicalRepWorker->subid);
	note_failed(entry, lsn);
	delay = make_due(entry);
	LWLockRelease(LogicalRepWorkerLock);
	return delay;
}

/* See apply_private.h. */
void
KdbRetryStarting(void)
{
	KdbRetryEntry *entry;

	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	retrying = entry != NULL;
	failed = retrying ? entry->failed : InvalidXLogRecPtr;
	if (retrying && entry->attempts > 0)
		(void) make_due(entry);
	LWLockRelease(LogicalRepWorkerLock);
}

/* See apply_private.h.  Which transaction that server had is not known then: the first one counts. */
void
KdbRetryOfAnotherServer(void)
{
	KdbRetryEntry *entry;

	if (!retrying)
		return;
	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry)
		entry->failed = InvalidXLogRecPtr;
	LWLockRelease(LogicalRepWorkerLock);
	failed = InvalidXLogRecPtr;
}

/* See apply_private.h. */
void
KdbRetryStarted(void)
{
	KdbRetryEntry *entry;

	if (!retrying)
		return;
	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry && entry->attempts > 0)
	{
		entry->due = false;
		entry->attempts--;		/* the start was no attempt of its own */
	}
	LWLockRelease(LogicalRepWorkerLock);
}

/* See apply_private.h. */
void
KdbRetrySucceeded(XLogRecPtr end_lsn)
{
	KdbRetryEntry *entry;

	if (!retrying || end_lsn <= failed)
		return;
	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry)
		memset(entry, 0, sizeof(KdbRetryEntry));
	LWLockRelease(LogicalRepWorkerLock);
	retrying = false;
}

/* See apply_private.h. */
bool
KdbRetrying(void)
{
	return retrying;
}

/* See apply.h. */
int
KdbRetryPause(int failures)
{
	return delay_before(failures, KDB_FAILURE_FIRST_PAUSE, KDB_FAILURE_MAX_PAUSE);
}

/* As the engine would start it, or later if it fails again and again. */
static void
note_failure(KdbRetryEntry *entry)
{
	int			pause = KdbRetryPause(++entry->failures);

	if (pause <= wal_retrieve_retry_interval)
		entry->not_before = TimestampTzPlusMilliseconds(MyLogicalRepWorker->launch_time,
														wal_retrieve_retry_interval);
	else
		entry->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause);
	entry->due = true;
}

/* A before_shmem_exit callback. */
static void
look_at_exit(int code, Datum arg)
{
	KdbRetryEntry *entry;

	if (code == 0)
		return;
	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry == NULL)
		entry = take_entry(MyLogicalRepWorker->subid);
	if (!entry->due)
	{
		note_failed(entry, KdbApply.remote_final_lsn);
		note_failure(entry);
	}
	LWLockRelease(LogicalRepWorkerLock);
}

/*
 * See apply_private.h.  Called before the connection to the database is made, whose
 * own callback releases all locks; that one runs first then.
 */
void
KdbRetryWatch(void)
{
	before_shmem_exit(look_at_exit, (Datum) 0);
}

/* See apply.h. */
KdbRetryState
KdbRetryAsk(Oid subid, long *wait)
{
	KdbRetryState state = KDB_RETRY_NONE;
	KdbRetryEntry *entry;

	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(subid);
	if (entry && entry->due)
	{
		*wait = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												entry->not_before);
		/* A longer one means that the clock has been set back. */
		if (*wait > Max(wal_retrieve_retry_interval, KDB_RETRY_MAX_DELAY))
			*wait = 0;
		state = *wait > 0 ? KDB_RETRY_LATER : KDB_RETRY_NOW;
		if (state == KDB_RETRY_NOW)
			entry->due = false;
	}
	LWLockRelease(LogicalRepWorkerLock);
	return state;
}
