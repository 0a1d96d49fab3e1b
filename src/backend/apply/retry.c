/*
 * retry.c
 *		Apply workers that are to be started again at once.
 *
 * A deadlock with a local session, a serialization failure or a lock timeout is
 * nobody's fault and passes: the remote transaction is applied again, by a new
 * process, since a new process is the one clean state there is.  The launcher
 * waits for wal_retrieve_retry_interval before it starts a worker again; this
 * table tells it which ones need not wait.
 *
 * An entry belongs to a subscription's apply worker:
 *
 *	free		subid is InvalidOid
 *	due			waiting; the launcher starts the worker once not_before has come,
 *				and not earlier
 *	started		attempts is what counts; freed by the first remote transaction
 *				that the worker finishes
 *
 * The worker makes its entry due when it gives up, and again while it starts
 * (KdbRetryStarting), until it streams: its predecessor may still hold the
 * origin here or the slot at the publisher for a moment.  The first retry comes at
 * once, each further one after a longer pause, up to KDB_RETRY_MAX_DELAY.
 *
 * The table is lost when the server restarts, which does no harm.  A subscription
 * that was dropped leaves its entry, which is reused when there is no free one.
 * Entries are read and written under LogicalRepWorkerLock.
 */
#include "postgres.h"

#include "replication/worker_internal.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#include "krahodb/shared.h"
#include "apply_private.h"

#define KDB_RETRY_FIRST_DELAY	100 /* ms; before the second retry */
#define KDB_RETRY_MAX_DELAY		10000	/* ms */

static bool retrying = false;	/* this worker has an entry */

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

static int
delay_before(int attempt)
{
	int			delay = KDB_RETRY_FIRST_DELAY;

	if (attempt <= 1)
		return 0;
	for (int i = 2; i < attempt && delay < KDB_RETRY_MAX_DELAY; i++)
		delay *= 2;
	return Min(delay, KDB_RETRY_MAX_DELAY);
}

static int
make_due(KdbRetryEntry *entry)
{
	int			delay = delay_before(++entry->attempts);

	entry->due = true;
	entry->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
	return delay;
}

/* See apply_private.h. */
int
KdbRetrySchedule(void)
{
	KdbRetryEntry *entry;
	int			delay;

	LWLockAcquire(LogicalRepWorkerLock, LW_EXCLUSIVE);
	entry = find_entry(MyLogicalRepWorker->subid);
	if (entry == NULL)
		entry = take_entry(MyLogicalRepWorker->subid);
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
	if (retrying)
		(void) make_due(entry);
	LWLockRelease(LogicalRepWorkerLock);
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
	if (entry)
	{
		entry->due = false;
		entry->attempts--;		/* the start was no attempt of its own */
	}
	LWLockRelease(LogicalRepWorkerLock);
}

/* See apply_private.h. */
void
KdbRetrySucceeded(void)
{
	KdbRetryEntry *entry;

	if (!retrying)
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
		state = *wait > 0 ? KDB_RETRY_LATER : KDB_RETRY_NOW;
		if (state == KDB_RETRY_NOW)
			entry->due = false;
	}
	LWLockRelease(LogicalRepWorkerLock);
	return state;
}
