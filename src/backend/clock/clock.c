/*
 * clock.c
 *		The clock rule: later by causality is later by version.
 *
 * A row's version starts with the commit timestamp of its transaction, from the
 * clock of the node that wrote it.  If a writer has seen a row version, its own
 * version must be the greater one, or "last update wins" would drop an update
 * in favour of what that very update replaced.  Clocks of several nodes differ,
 * and any clock may step back.  Two waits make it hold all the same:
 *
 *	APPLY	A remote transaction with timestamp ts is applied only when the local
 *			clock has passed ts.  So whoever can see its rows here lives later
 *			than ts, by the local clock.
 *	COMMIT	A local transaction that writes does not commit before the clock has
 *			passed every timestamp that was committed here before, local or
 *			applied.  This is for a clock that steps back.
 *
 * Both waits are as long as the clocks are wrong, and nothing if they are right:
 * the commit side compares with one shared number.  Both have a limit,
 * krahodb.max_clock_skew; beyond it there is an error, since a clock that far off
 * needs an administrator.
 *
 * THE NUMBER.  KdbShared->clock_max is the greatest timestamp committed here
 * under the rule.  A committer moves it to its own reading of the clock before it
 * commits (so two transactions never get the same one), and to the timestamp that
 * the engine then took.  After a restart it is not known (0), and whoever needs it first
 * takes the time for it, as all that is here was committed before.  If the clock has
 * been set back meanwhile, the engine's commit timestamps say more: by the rule the
 * newest local transaction was later than everything before it, so it is enough to
 * look at the transactions back to that one.  Which one that is, ids do not tell exactly: one
 * that was running for long has an older id.  So some more are looked at.
 *
 * WHO LOOKS (KdbClockMark) must not take the number for complete
 * while a transaction is visible whose timestamp is not in it yet.  So local
 * committers count themselves in (clock_committing) before they read the clock, and
 * out when the number has their timestamp.  Remote transactions do not count: those
 * who merge know of each other (apply/converge.c).
 *
 * WHERE IT HOLDS.  Only in a server with a subscription that resolves conflicts
 * (KdbClockEnforce): a plain server is not to wait for its clock.  From start-up
 * until the launcher has read the subscriptions it holds.  When it begins to hold, the number is
 * raised to the time, since it has not been kept.  A transaction that is committing at that moment has
 * not counted itself in, and may take its timestamp later.  So the number does not count as
 * complete (clock_unsettled) until all have ended that had an id then; it is raised once more then.
 *
 * The launcher says that it need not hold from what it has read a moment ago.  A worker that starts
 * meanwhile may know better.  So clock_enforced also counts how often somebody said that it holds, in
 * the bits above the reasons, and the launcher takes the reason away only if nobody has.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/commit_ts.h"
#include "access/slru.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"
#include "krahodb/compat.h"

/* How many transactions to look at after a restart, at most. */
#define CLOCK_LOOK_BACK		1000000

/* And behind the newest local one. */
#define CLOCK_LOOK_BEHIND	10000

/* Of them the engine keeps so many timestamps, with origins, in one page. */
#define XIDS_OF_PAGE	(BLCKSZ / (sizeof(TimestampTz) + sizeof(RepOriginId)))

/* Shorter waits are not worth a latch or a count. */
#define SHORT_WAIT_US		1000

/* Between looks at the clock, which may be set meanwhile. */
#define LOOK_AGAIN_MS		200

int			KdbMaxClockSkew = 10000;

/* This transaction wrote. */
static bool committing = false;

/* It is in clock_committing. */
static bool counted = false;

/* See clock.h.  Whoever sees that it holds finds it unsettled. */
void
KdbClockEnforce(uint32 reason)
{
	uint32		state = pg_atomic_read_u32(&KdbShared->clock_enforced);
	bool		begins = false;

	do
	{
		if ((state & KDB_CLOCK_REASONS) == 0)
		{
			pg_atomic_write_u64(&KdbShared->clock_unsettled, PG_UINT64_MAX);
			begins = true;
		}
	} while (!pg_atomic_compare_exchange_u32(&KdbShared->clock_enforced, &state,
											 (state | reason) + KDB_CLOCK_REASONS + 1));
	if (!begins)
		return;
	KdbClockReached();
	pg_atomic_write_u64(&KdbShared->clock_unsettled,
						U64FromFullTransactionId(ReadNextFullTransactionId()));
}

/* See clock.h. */
uint32
KdbClockState(void)
{
	uint32		state = pg_atomic_read_u32(&KdbShared->clock_enforced);

	pg_memory_barrier();
	return state;
}

/* See clock.h. */
void
KdbClockRelax(uint32 reason, uint32 state)
{
	(void) pg_atomic_compare_exchange_u32(&KdbShared->clock_enforced, &state, state & ~reason);
}

static bool
rule_holds(void)
{
	return track_commit_timestamp && KdbShared != NULL && KdbClockHolds();
}

/* Raise the number to ts. */
static void
advance_max(TimestampTz ts)
{
	uint64		max = pg_atomic_read_u64(&KdbShared->clock_max);

	while ((TimestampTz) max < ts &&
		   !pg_atomic_compare_exchange_u64(&KdbShared->clock_max, &max, (uint64) ts))
		;
}

/*
 * Are there timestamps of these transactions?  The engine takes it that there are all between the oldest
 * and the newest one, and looking for another is an error; but pg_resetwal -x leaves a gap.
 */
static bool
has_page(uint32 number)
{
	char		path[MAXPGPATH];
	struct stat st;

	snprintf(path, sizeof(path), "pg_commit_ts/%04X", number / SLRU_PAGES_PER_SEGMENT);
	if (stat(path, &st) != 0)
		return errno != ENOENT;
	return st.st_size > (off_t) (number % SLRU_PAGES_PER_SEGMENT) * BLCKSZ;
}

/* Before it all is in files, and there may be a gap; later ones have pages, but maybe only in memory. */
static TransactionId
next_at_checkpoint(void)
{
	ControlFileData *control;
	TransactionId next = InvalidTransactionId;
	bool		valid;

	LWLockAcquire(ControlFileLock, LW_SHARED);
	control = get_controlfile(DataDir, &valid);
	LWLockRelease(ControlFileLock);
	if (valid)
		next = XidFromFullTransactionId(control->checkPointCopy.nextXid);
	pfree(control);
	return next;
}

/*
 * The time, or the greatest timestamp of the transactions back to the newest local one
 * and somewhat further, if that is later.
 */
static TimestampTz
find_max(void)
{
	TransactionId xid = ReadNextTransactionId();
	TimestampTz max = GetCurrentTimestamp();
	TransactionId checkpoint = next_at_checkpoint();
	uint32		page = PG_UINT32_MAX;
	int			left = CLOCK_LOOK_BACK;

	while (left-- > 0)
	{
		TimestampTz ts;
		RepOriginId origin;

		TransactionIdRetreat(xid);
		if (xid / XIDS_OF_PAGE != page && TransactionIdPrecedes(xid, checkpoint) && !has_page(xid / XIDS_OF_PAGE))
			break;
		page = xid / XIDS_OF_PAGE;
		if (!TransactionIdGetCommitTsData(xid, &ts, &origin))
		{
			if (!TransactionIdIsNormal(xid) ||
				TransactionIdPrecedes(xid, ShmemVariableCache->oldestCommitTsXid))
				break;
			continue;			/* aborted, or still running */
		}
		max = Max(max, ts);
		if (origin == InvalidRepOriginId)
			left = Min(left, CLOCK_LOOK_BEHIND);
	}
	return max;
}

/* Wait about that long at most, so that the caller can look at the clock again. */
static void
wait_for_clock(TimestampTz us)
{
	if (us < SHORT_WAIT_US)
		return;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 Min(us / 1000 + 1, LOOK_AGAIN_MS), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static void
count_wait(pg_atomic_uint64 *waits, pg_atomic_uint64 *wait_us, TimestampTz us)
{
	pg_atomic_fetch_add_u64(waits, 1);
	pg_atomic_fetch_add_u64(wait_us, us);
}

/* Two commits in one microsecond are not two clocks that differ, whatever the limit is. */
static bool
is_too_far(TimestampTz us)
{
	return us > Max(KdbMaxClockSkew * INT64CONST(1000), SHORT_WAIT_US);
}

static void
refuse_local_clock(TimestampTz behind)
{
	if (!is_too_far(behind))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("cannot commit because this server's clock is %lld ms behind the newest committed change",
					(long long) (behind / 1000)),
			 errdetail("Changes that were made later must have later timestamps; \"%s\" is %d ms.",
					   "krahodb.max_clock_skew", KdbMaxClockSkew),
			 errhint("The clock has been set back, or a peer's clock was ahead. Set the clock right, and see view krahodb.clock.")));
}

static void
count_in(void)
{
	if (!counted)
		pg_atomic_fetch_add_u32(&KdbShared->clock_committing, 1);
	counted = true;
}

static void
count_out(void)
{
	if (counted)
		pg_atomic_fetch_sub_u32(&KdbShared->clock_committing, 1);
	counted = false;
}

/* See clock.h. */
void
KdbClockBeforeCommit(void)
{
	TimestampTz waited = 0;

	if (!rule_holds())
		return;
	count_in();
	if (pg_atomic_read_u64(&KdbShared->clock_max) == 0)
		advance_max(find_max());

	for (;;)
	{
		uint64		max = pg_atomic_read_u64(&KdbShared->clock_max);
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz behind = (TimestampTz) max - now + 1;

		if (behind <= 0)
		{
			if (pg_atomic_compare_exchange_u64(&KdbShared->clock_max, &max, (uint64) now))
				break;
			continue;
		}
		refuse_local_clock(behind);
		wait_for_clock(behind);
		if (behind >= SHORT_WAIT_US)
			waited = Max(waited, behind);
	}
	if (waited > 0)
		count_wait(&KdbShared->clock_commit_waits, &KdbShared->clock_commit_wait_us, waited);
}

/* See clock.h. */
void
KdbClockCommitted(void)
{
	if (rule_holds())
		advance_max(GetCurrentTimestamp());
}

/* See clock.h. */
void
KdbClockReached(void)
{
	if (!rule_holds())
		return;
	if (pg_atomic_read_u64(&KdbShared->clock_max) == 0)
		advance_max(find_max());
	advance_max(GetCurrentTimestamp());
}

/* See clock.h. */
TimestampTz
KdbTimeHere(void)
{
	if (rule_holds() && pg_atomic_read_u64(&KdbShared->clock_max) == 0)
		advance_max(find_max());
	return Max(GetCurrentTimestamp(), (TimestampTz) pg_atomic_read_u64(&KdbShared->clock_max));
}

/* See clock.h. */
void
KdbClockBeforeApply(TimestampTz ts, void (*waiting)(void))
{
	TimestampTz ahead = ts - GetCurrentTimestamp();
	TimestampTz first = ahead;

	if (ahead < 0 || !rule_holds())
		return;
	while (ahead >= 0)
	{
		if (is_too_far(ahead))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot apply a transaction whose timestamp is %lld ms ahead of this server's clock",
							(long long) (ahead / 1000)),
					 errdetail("The transaction was committed at %s by its origin's clock; \"%s\" is %d ms.",
							   timestamptz_to_str(ts), "krahodb.max_clock_skew", KdbMaxClockSkew),
					 errhint("Set the clocks of both servers right. The transaction is tried again and nothing is lost.")));
		wait_for_clock(ahead + 1);
		if (waiting)
			waiting();
		ahead = ts - GetCurrentTimestamp();
	}
	count_wait(&KdbShared->clock_apply_waits, &KdbShared->clock_apply_wait_us, first);
}

/* Have all transactions ended that had an id when the rule began to hold? */
static bool
is_settled(void)
{
	uint64		bound;
	uint64		next;
	TransactionId oldest;

	pg_read_barrier();			/* behind the look at whether it holds */
	bound = pg_atomic_read_u64(&KdbShared->clock_unsettled);
	if (likely(bound == 0))
		return true;
	if (bound == PG_UINT64_MAX)
		return false;
	oldest = GetOldestActiveTransactionId();
	next = U64FromFullTransactionId(ReadNextFullTransactionId());
	if (next - (uint32) ((uint32) next - oldest) < bound)
		return false;

	/* They are visible, but may not have come to their callback. */
	advance_max(GetCurrentTimestamp());
	return pg_atomic_compare_exchange_u64(&KdbShared->clock_unsettled, &bound, 0);
}

/* See clock.h. */
uint64
KdbClockMark(void)
{
	uint64		mark;

	if (!rule_holds() || !is_settled())
		return 0;
	if (pg_atomic_read_u64(&KdbShared->clock_max) == 0)
		advance_max(find_max());
	pg_read_barrier();
	if (pg_atomic_read_u32(&KdbShared->clock_committing) != 0)
		return 0;
	pg_read_barrier();
	mark = pg_atomic_read_u64(&KdbShared->clock_max);
	pg_read_barrier();
	return mark;
}

/* Is this transaction's timestamp that of a remote one? */
static bool
applies_remote(void)
{
	return replorigin_session_origin != InvalidRepOriginId &&
		replorigin_session_origin_timestamp != 0;
}

static void
clock_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			committing = TransactionIdIsValid(GetTopTransactionIdIfAny());
			if (committing && !applies_remote())
				KdbClockBeforeCommit();
			break;
		case XACT_EVENT_COMMIT:
			/* RecordTransactionCommit has set the origin's timestamp in either case */
			committing = committing && rule_holds();
			if (committing && replorigin_session_origin_timestamp != 0 && applies_remote())
				advance_max(replorigin_session_origin_timestamp);
			else if (committing)
				advance_max(GetCurrentTransactionStopTimestamp());
			committing = false;
			count_out();
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			committing = false;
			count_out();
			break;
		default:
			break;
	}
}

void
KdbClockInit(void)
{
	RegisterXactCallback(clock_xact_callback, NULL);
}

#ifdef KRAHODB_FAULT_POINTS

/* For tests: KdbClockMark. */
KDB_SQL_FUNCTION(krahodb_test_clock_mark);

Datum
krahodb_test_clock_mark(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) KdbClockMark());
}

#endif							/* KRAHODB_FAULT_POINTS */
