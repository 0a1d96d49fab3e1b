/*
 * seen_positions.c
 *		Where does a local row version stand in its node's stream?
 *
 * A version is (timestamp, node), the stream's positions are LSNs, and neither order
 * follows from the other: commit timestamps are not monotone in the log.  So the
 * question is answered by transaction: a tuple names the local transaction that
 * wrote it.  Answers may be too high, never too low.
 *
 * EXACT, for the last POSITIONS transactions: a table in shared memory, indexed by
 * transaction id.  The commit callback enters the transaction and its
 * subtransactions with the end of the commit record, for an applied transaction
 * with the end at its origin.  An entry answers only for the same transaction id,
 * timestamp and node; so neither an id that comes round again nor an origin id that
 * stands for another node now, nor a version that is not its transaction's, gets a
 * wrong answer.
 *
 * The callback runs after the transaction has become visible, but before it
 * releases its lock on its transaction id.  Who sees a row in between does not find
 * the entry yet; so a recent one that is missing is waited for by that lock and
 * looked for again.  What is missing then was not entered, and is not known.
 *
 * BOUNDS, for older ones: marks (xid, lsn) per origin and for local transactions:
 * every transaction before xid has ended, and those of that origin stand at lsn or
 * before.  A mark is made by reading the oldest running transaction id first and
 * the progress (or this server's own insert position) second; a transaction moves
 * the progress before it ends.  Prepared transactions count as running.  What was
 * copied or caught up by a synchronisation worker moves no progress and may be
 * ahead of it, but is noted in seen_ahead.c before it commits.  Marks are made by apply
 * workers, one a second at most, by local commits when many transaction ids have
 * passed since the last one, and for a question that has no answer without.  They are
 * thinned out with age: they are for rows at which nobody has been for a while, and
 * it is enough if they are not much later than the row.
 *
 * Nothing of this is durable.  After a restart the first mark of a worker covers
 * all that was there.
 *
 * COST.  Nothing unless a subscription resolves conflicts; else one spinlock of
 * LOCKS, few instructions long, per transaction that wrote.
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"

#define POSITIONS		32768	/* transactions; a power of two */
#define LOCKS			64
#define MAX_CHILDREN	4096	/* subtransactions that are entered */
#define MARKS			64		/* per origin */
#define MARK_EVERY_MS	1000
#define MARK_EVERY_XIDS (POSITIONS / 8)
#define MARK_MAX_AGE	(1 << 30)	/* in transaction ids */
#define ENDING_XIDS		256		/* so many back, a transaction's callbacks may still run */

typedef struct Position
{
	XLogRecPtr	lsn;
	TimestampTz ts;
	uint64		node;			/* 0: written here */
	TransactionId xid;
	RepOriginId origin;
} Position;

typedef struct PaddedLock
{
	slock_t		mutex;
	char		padding[PG_CACHE_LINE_SIZE - sizeof(slock_t)];
} PaddedLock;

typedef struct Mark
{
	TransactionId xid;			/* all before it have ended */
	XLogRecPtr	lsn;			/* and end here or before */
} Mark;

typedef struct OriginMarks
{
	slock_t		mutex;
	bool		used;
	RepOriginId origin;			/* 0: local transactions */
	uint64		node;			/* at the time of the marks */
	TimestampTz last_time;		/* these two are hints: without the mutex */
	TransactionId last_xid;
	int			nmarks;
	Mark		marks[MARKS];	/* both members ascending */
} OriginMarks;

typedef struct SeenPositions
{
	PaddedLock	locks[LOCKS];
	Position	positions[POSITIONS];
	slock_t		origins_mutex;	/* of used and origin */
	int			norigins;
	OriginMarks origins[FLEXIBLE_ARRAY_MEMBER];
} SeenPositions;

static SeenPositions *seen = NULL;

static void mark_if_late(TransactionId xid);

static int
max_origins(void)
{
	return max_replication_slots + 1;
}

Size
KdbSeenPositionsSize(void)
{
	return MAXALIGN(add_size(offsetof(SeenPositions, origins),
							 mul_size(max_origins(), sizeof(OriginMarks))));
}

void
KdbSeenPositionsStart(void)
{
	bool		found;

	seen = ShmemInitStruct("KrahoDB seen positions", KdbSeenPositionsSize(), &found);
	if (found)
		return;
	memset(seen, 0, KdbSeenPositionsSize());
	for (int i = 0; i < LOCKS; i++)
		SpinLockInit(&seen->locks[i].mutex);
	SpinLockInit(&seen->origins_mutex);
	seen->norigins = max_origins();
	for (int i = 0; i < seen->norigins; i++)
		SpinLockInit(&seen->origins[i].mutex);
}

/* ---- the table ---- */

static void
enter(TransactionId xid, const Position *values)
{
	uint32		slot = xid % POSITIONS;
	slock_t    *mutex = &seen->locks[slot % LOCKS].mutex;

	SpinLockAcquire(mutex);
	seen->positions[slot] = *values;
	seen->positions[slot].xid = xid;
	SpinLockRelease(mutex);
}

static bool
look_up(TransactionId xid, Position *result)
{
	uint32		slot = xid % POSITIONS;
	slock_t    *mutex = &seen->locks[slot % LOCKS].mutex;

	SpinLockAcquire(mutex);
	*result = seen->positions[slot];
	SpinLockRelease(mutex);
	return result->xid == xid;
}

static bool
recording(void)
{
	return track_commit_timestamp && seen != NULL &&
		KdbClockHolds();
}

/*
 * This transaction has committed.  RecordTransactionCommit has left its timestamp
 * in the session's origin state, also for a local one.
 */
static void
enter_committed(TransactionId xid)
{
	TransactionId *children;
	int			nchildren = Min(xactGetCommittedChildren(&children), MAX_CHILDREN);
	Position	values = {0};

	values.origin = replorigin_session_origin;
	values.ts = replorigin_session_origin_timestamp;
	if (values.origin == InvalidRepOriginId)
		values.lsn = XactLastCommitEnd;
	else
	{
		values.lsn = replorigin_session_origin_lsn;
		values.node = KdbOriginNode(values.origin);
	}
	if (values.lsn == InvalidXLogRecPtr || values.origin == DoNotReplicateId)
		return;
	enter(xid, &values);
	for (int i = 0; i < nchildren; i++)
		enter(children[i], &values);
}

/* See seen_state.h. */
void
KdbSeenMoved(void)
{
	ConditionVariableBroadcast(&KdbShared->seen_moved);
}

static void
positions_xact_callback(XactEvent event, void *arg)
{
	TransactionId xid;

	if (event != XACT_EVENT_COMMIT || !recording())
		return;
	xid = GetTopTransactionIdIfAny();
	if (!TransactionIdIsValid(xid))
		return;
	enter_committed(xid);
	if (replorigin_session_origin == InvalidRepOriginId)
		mark_if_late(xid);
	else
		KdbSeenMoved();
}

void
KdbSeenPositionsInit(void)
{
	RegisterXactCallback(positions_xact_callback, NULL);
}

void
KdbSeenCommittedPrepared(TransactionId xid, XLogRecPtr lsn)
{
	Position	values = {0};

	if (!TransactionIdIsNormal(xid) || lsn == InvalidXLogRecPtr || !recording() ||
		!TransactionIdGetCommitTsData(xid, &values.ts, &values.origin))
		return;
	values.lsn = lsn;
	if (values.origin != InvalidRepOriginId)
		values.node = KdbOriginNode(values.origin);
	enter(xid, &values);
}

TransactionId
KdbPreparedTransactionId(const char *gid)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(gid)};
	TransactionId xid = InvalidTransactionId;

	if (!recording())
		return xid;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute_with_args("SELECT transaction FROM pg_catalog.pg_prepared_xact()"
							  " WHERE gid OPERATOR(pg_catalog.=) $1",
							  1, types, values, NULL, true, 1) == SPI_OK_SELECT &&
		SPI_processed == 1)
	{
		bool		isnull;

		xid = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1, &isnull));
	}
	PopActiveSnapshot();
	SPI_finish();
	return xid;
}

/* ---- marks ---- */

/* The marks of an origin, or NULL if there is no room for more. */
static OriginMarks *
find_marks(RepOriginId origin)
{
	OriginMarks *result = NULL;

	SpinLockAcquire(&seen->origins_mutex);
	for (int i = 0; i < seen->norigins; i++)
	{
		OriginMarks *marks = &seen->origins[i];

		if (marks->used && marks->origin != origin)
			continue;
		marks->used = true;
		marks->origin = origin;
		result = marks;
		break;
	}
	SpinLockRelease(&seen->origins_mutex);
	return result;
}

/* Every other one of the older half; of two bounds the later one is kept. */
static void
thin_out(OriginMarks *marks)
{
	int			kept = 0;

	for (int i = 0; i < marks->nmarks; i++)
	{
		if (i >= MARKS / 2 || i % 2 == 1)
			marks->marks[kept++] = marks->marks[i];
	}
	marks->nmarks = kept;
}

static void
drop_ancient(OriginMarks *marks, TransactionId now)
{
	int			ancient = 0;

	while (ancient < marks->nmarks && (int32) (now - marks->marks[ancient].xid) > MARK_MAX_AGE)
		ancient++;
	marks->nmarks -= ancient;
	memmove(marks->marks, marks->marks + ancient, marks->nmarks * sizeof(Mark));
}

/* Mutex held.  A mark that says less than the last one is none. */
static void
add_mark(OriginMarks *marks, Mark mark)
{
	Mark	   *last = marks->nmarks > 0 ? &marks->marks[marks->nmarks - 1] : NULL;

	drop_ancient(marks, mark.xid);
	if (last && !TransactionIdPrecedes(last->xid, mark.xid))
		return;
	if (last && last->lsn >= mark.lsn)
	{
		last->xid = mark.xid;
		return;
	}
	if (marks->nmarks == MARKS)
		thin_out(marks);
	marks->marks[marks->nmarks++] = mark;
}

static void
mark_origin(OriginMarks *marks, RepOriginId origin)
{
	uint64		node = KdbOriginNode(origin);
	Mark		mark;

	mark.xid = GetOldestActiveTransactionId();
	if (origin == InvalidRepOriginId)
		mark.lsn = GetXLogInsertRecPtr();
	else
		mark.lsn = Max(replorigin_get_progress(origin, false), KdbSeenAheadOrigin(origin));

	SpinLockAcquire(&marks->mutex);
	if (marks->node != node)
		marks->nmarks = 0;
	marks->node = node;
	if (mark.lsn != InvalidXLogRecPtr)
		add_mark(marks, mark);
	SpinLockRelease(&marks->mutex);
}

static void
mark_if_due(RepOriginId origin, TimestampTz now)
{
	OriginMarks *marks = find_marks(origin);

	if (marks == NULL ||
		(marks->last_time <= now && marks->last_time + MARK_EVERY_MS * INT64CONST(1000) > now))
		return;
	marks->last_time = now;
	mark_origin(marks, origin);
}

/* A local transaction has committed. */
static void
mark_if_late(TransactionId xid)
{
	OriginMarks *marks = find_marks(InvalidRepOriginId);

	if (marks == NULL || (int32) (xid - marks->last_xid) < MARK_EVERY_XIDS)
		return;
	marks->last_xid = xid;
	mark_origin(marks, InvalidRepOriginId);
}

void
KdbSeenMark(RepOriginId origin, TimestampTz now)
{
	if (!recording())
		return;
	mark_if_due(InvalidRepOriginId, now);
	mark_if_due(origin, now);
}

/* The least marked position that is a bound for xid, or UINT64_MAX. */
static uint64
search_marks(OriginMarks *marks, TransactionId xid, uint64 node)
{
	uint64		bound = UINT64_MAX;

	SpinLockAcquire(&marks->mutex);
	for (int i = marks->nmarks - 1; i >= 0 && marks->node == node; i--)
	{
		if (!TransactionIdPrecedes(xid, marks->marks[i].xid))
			break;
		bound = marks->marks[i].lsn;
	}
	SpinLockRelease(&marks->mutex);
	return bound;
}

/* If there is none yet, as of now. */
static uint64
marked_bound(TransactionId xid, RepOriginId origin, uint64 node)
{
	OriginMarks *marks = find_marks(origin);
	uint64		bound;

	if (marks == NULL)
		return UINT64_MAX;
	bound = search_marks(marks, xid, node);
	if (bound == UINT64_MAX)
	{
		mark_origin(marks, origin);
		bound = search_marks(marks, xid, node);
	}
	return bound;
}

/* ---- the question ---- */

/* Is the row's version that of the transaction that its tuple names? */
static bool
version_is_transactions(const KdbLocalRow *row)
{
	TimestampTz ts;
	RepOriginId origin;

	return TransactionIdGetCommitTsData(row->xid, &ts, &origin) &&
		ts == row->version.ts && origin == row->origin;
}

static bool
is_recent(TransactionId xid)
{
	return (int32) (ReadNextTransactionId() - xid) < POSITIONS;
}

uint64
KdbSeenPosition(const KdbLocalRow *row)
{
	uint64		node = row->origin == InvalidRepOriginId ? 0 : KdbOriginNode(row->origin);
	Position	found;

	if (!row->version_known || row->same_transaction || seen == NULL ||
		!TransactionIdIsNormal(row->xid) || !version_is_transactions(row) ||
		(row->origin != InvalidRepOriginId && node != row->version.node))
		return UINT64_MAX;

	if (!look_up(row->xid, &found) && is_recent(row->xid))
	{
		/* its callback may still be running */
		XactLockTableWait(row->xid, NULL, NULL, XLTW_None);
		(void) look_up(row->xid, &found);
	}
	if (found.xid == row->xid && found.ts == row->version.ts &&
		found.origin == row->origin && found.node == node)
		return found.lsn;
	return marked_bound(row->xid, row->origin, node);
}

/* Those that the snapshot shows may have become visible just before it was taken. */
static void
wait_for_callbacks(Snapshot snapshot)
{
	TransactionId xid = snapshot->xmax;

	for (int i = 0; i < ENDING_XIDS; i++)
	{
		TransactionIdRetreat(xid);
		/* not ourselves, if somebody asks in a transaction that has written */
		if (!XidInMVCCSnapshot(xid, snapshot) && !TransactionIdIsCurrentTransactionId(xid))
			XactLockTableWait(xid, NULL, NULL, XLTW_None);
	}
}

/* See seen_state.h. */
XLogRecPtr
KdbSeenLastPosition(RepOriginId origin, uint64 node, Snapshot snapshot)
{
	XLogRecPtr	last = InvalidXLogRecPtr;

	wait_for_callbacks(snapshot);
	for (uint32 slot = 0; slot < POSITIONS; slot++)
	{
		slock_t    *mutex = &seen->locks[slot % LOCKS].mutex;
		Position	found;

		SpinLockAcquire(mutex);
		found = seen->positions[slot];
		SpinLockRelease(mutex);
		if (found.origin == origin && found.node == node && found.lsn > last &&
			!XidInMVCCSnapshot(found.xid, snapshot))
			last = found.lsn;
	}
	return last;
}
