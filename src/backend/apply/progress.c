/*
 * progress.c
 *		How far an apply worker has come, for the retention horizon.
 *
 * The horizon worker must know whether everything that a publisher had written
 * before some LSN is applied and flushed here.  The origin's progress does not
 * say: it moves with applied transactions only, and nothing may come for hours
 * because the publisher is idle or leaves out what it wrote.  The stream itself
 * does say, by the position that keepalives carry, once all that was received
 * before is applied and flushed.  Only the worker knows that position, and
 * whether tables are being synchronised beside the stream.
 *
 * The entry is at the place of the worker's slot in the engine's array and stays
 * after the worker: what it says remains true.  The position belongs to one
 * stream, so it carries a hash of what makes the stream.
 *
 * An apply that hands transactions to others must report what all of them have
 * finished.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "common/hashfn.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "krahodb/horizon_shared.h"
#include "krahodb/seen_state.h"
#include "krahodb/stream.h"
#include "apply_private.h"

/* Between reports while the stream does not pause, ms. */
#define REPORT_INTERVAL		1000

static KdbSharedProgress *my_progress = NULL;
static TimestampTz reported_at = 0;

/* See apply.h. */
uint32
KdbStreamHash(const char *conninfo, const char *slotname)
{
	uint32		hash = hash_bytes((const unsigned char *) conninfo, strlen(conninfo));

	if (slotname != NULL)
		hash = hash_combine(hash, hash_bytes((const unsigned char *) slotname, strlen(slotname)));
	return hash;
}

static void
forget_others(Oid subid)
{
	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];

		SpinLockAcquire(&progress->mutex);
		if (progress->subid == subid)
			progress->subid = InvalidOid;
		SpinLockRelease(&progress->mutex);
	}
}

/* See apply_private.h. */
void
KdbProgressClear(int slot)
{
	KdbSharedProgress *progress = &KdbHorizon->progress[slot];

	SpinLockAcquire(&progress->mutex);
	progress->node = 0;
	SpinLockRelease(&progress->mutex);
}

/* Does another worker that is running get the stream of a twin of the publisher? */
static Oid
find_twin(const KdbPublisher *publisher)
{
	KdbLauncherShared *shared = KdbLauncherAttach();
	Oid			found = InvalidOid;

	if (publisher->node == 0)
		return InvalidOid;
	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];

		if (shared->workers[i].proc == NULL || &shared->workers[i] == MyLogicalRepWorker)
			continue;
		SpinLockAcquire(&progress->mutex);
		if (progress->subid == shared->workers[i].subid && !OidIsValid(shared->workers[i].relid) &&
			progress->node == publisher->node && progress->incarnation != publisher->incarnation)
			found = progress->subid;
		SpinLockRelease(&progress->mutex);
	}
	LWLockRelease(LogicalRepWorkerLock);
	return found;
}

/*
 * Two servers that write versions of one node cannot be told apart, so what comes
 * from one would be taken for the other's.  After a restart of the publisher, the
 * other worker may not have noticed yet that it has lost its connection: then the
 * next attempt succeeds.
 */
static void
refuse_twins(const KdbPublisher *publisher)
{
	Oid			other;

	if (!KdbResolversActive(&KdbMyOptions->resolvers))
		return;
	other = find_twin(publisher);
	if (!OidIsValid(other))
		return;
	StartTransactionCommand();
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the publishers of subscriptions \"%s\" and \"%s\" are two servers with the same node identity",
					MySubscription->name, get_subscription_name(other, true)),
			 errdetail("One of them is a copy of the other one, made in a way that cannot be noticed, such as a storage snapshot."),
			 errhint("Call krahodb.reset_node_identity() in the copy and restart it.")));
}

/* The origin is set up; nothing has been received. */
void
KdbProgressStart(void)
{
	KdbPublisher publisher;
	KdbSharedProgress *progress =
		&KdbHorizon->progress[MyLogicalRepWorker - KdbLauncherAttach()->workers];
	uint32		stream = KdbStreamHash(MySubscription->conninfo, MySubscription->slotname);
	XLogRecPtr	started;

	/* Commits of the worker before us may not have been flushed yet. */
	started = replorigin_session_get_progress(true);

	KdbStreamIdentify(LogRepWorkerWalRcvConn, &publisher);
	forget_others(MySubscription->oid);
	SpinLockAcquire(&progress->mutex);
	progress->subid = MySubscription->oid;
	progress->stream = stream;
	progress->origin = KdbApply.origin;
	progress->node = publisher.node;
	progress->incarnation = publisher.incarnation;
	progress->tables_ready = false;
	progress->started = started;
	progress->durable = InvalidXLogRecPtr;
	progress->wanted = InvalidXLogRecPtr;
	progress->seen_until = 0;
	SpinLockRelease(&progress->mutex);
	my_progress = progress;
	refuse_twins(&publisher);
	KdbHorizonWake();
}

/* See apply_private.h. */
void
KdbProgressInLane(int slot)
{
	my_progress = &KdbHorizon->progress[slot];
}

/* Everything before received has been received; between remote transactions. */
void
KdbProgressReport(XLogRecPtr received)
{
	XLogRecPtr	durable;
	bool		ready;
	bool		wanted;
	bool		moved;

	if (my_progress == NULL)
		return;					/* synchronises a table */
	reported_at = GetCurrentTimestamp();
	durable = KdbFeedbackDurable(received, reported_at);
	ready = KdbSync->tables_ready();

	SpinLockAcquire(&my_progress->mutex);
	wanted = my_progress->wanted != InvalidXLogRecPtr && my_progress->wanted <= durable &&
		ready;
	if (wanted)
		my_progress->wanted = InvalidXLogRecPtr;
	moved = durable > my_progress->durable;
	my_progress->durable = Max(my_progress->durable, durable);
	my_progress->tables_ready = ready;
	SpinLockRelease(&my_progress->mutex);

	if (wanted)
		KdbHorizonWake();
	if (moved)
		KdbSeenMoved();
}

/* The same, while more is there to be received. */
void
KdbProgressReportIfDue(XLogRecPtr received, TimestampTz now)
{
	if (TimestampDifferenceExceeds(reported_at, now, REPORT_INTERVAL))
		KdbProgressReport(received);
}

/* See apply_private.h. */
XLogRecPtr
KdbStreamDurable(Oid subid)
{
	XLogRecPtr	durable = InvalidXLogRecPtr;

	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];

		SpinLockAcquire(&progress->mutex);
		if (progress->subid == subid)
			durable = Max(durable, progress->durable);
		SpinLockRelease(&progress->mutex);
	}
	return durable;
}

/* See apply.h. */
bool
KdbGetStreamProgress(Oid subid, XLogRecPtr wanted, KdbStreamProgress *result)
{
	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];
		bool		found;

		SpinLockAcquire(&progress->mutex);
		found = progress->subid == subid;
		if (found)
		{
			result->stream = progress->stream;
			result->origin = progress->origin;
			result->node = progress->node;
			result->incarnation = progress->incarnation;
			result->tables_ready = progress->tables_ready;
			result->durable = progress->durable;
			progress->wanted = wanted;
		}
		SpinLockRelease(&progress->mutex);
		if (found)
			return true;
	}
	return false;
}

/* See apply.h. */
void
KdbSetStreamSeenUntil(Oid subid, uint32 stream, TimestampTz seen_until)
{
	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];

		SpinLockAcquire(&progress->mutex);
		if (progress->subid == subid && progress->stream == stream)
			progress->seen_until = seen_until;
		SpinLockRelease(&progress->mutex);
	}
}

/* See apply_private.h. */
TimestampTz
KdbProgressSeenUntil(void)
{
	TimestampTz result;

	if (my_progress == NULL)
		return 0;
	SpinLockAcquire(&my_progress->mutex);
	result = my_progress->seen_until;
	SpinLockRelease(&my_progress->mutex);
	return result;
}
