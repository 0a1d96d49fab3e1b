/*
 * lane_pace.c
 *		How many lanes shall work?
 *
 * More lanes are not always faster.  Commits are one after the other, and each hands
 * the turn to another process: where processors are busy with other things, or
 * transactions wait for each other's rows, these switches cost more than what is done
 * side by side.  Nobody can tell in advance, so the leader measures: as long as there
 * is a backlog, it times slices of it, from time to time makes one with a lane more or
 * fewer, and keeps to that if it was better.  Lanes beyond that number take nothing
 * ("rest") until they are wanted again.
 *
 * "Better" is a matter of the clock alone, and slices of one stream differ from each
 * other.  A wrong choice costs little and does not last: the next trial is never far.
 *
 * Without a backlog there is nothing to measure, and all lanes may work: then the
 * first that sleeps is woken, and what matters is that a transaction that waits for a
 * lock has others beside it.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "krahodb/fault.h"
#include "lanes_private.h"

#define BACKLOG			64		/* transactions on their way */
#define SLICE			256		/* transactions at least */
#define SLICE_US		40000	/* at least */
#define LONGEST_REST	16		/* slices between trials, after trials that failed */
#define GAIN			0.95	/* what one more lane must come down to */

static int	chosen = 0;			/* lanes; 0: all, as nothing has been measured */
static double chosen_cost;		/* of its last slice, us per transaction */
static int	direction = -1;		/* of the next trial */
static int	rest = 1;			/* slices between trials now */
static int	slices;				/* since the last trial */

static uint64 slice_begin;
static TimestampTz slice_began = 0; /* 0: no slice */

static int
working(void)
{
	return pg_atomic_read_u32(&KdbMyLaneGroup->working);
}

/* See lanes_private.h. */
bool
KdbLaneWake(KdbLaneSlot *slot)
{
	PGPROC	   *proc = slot->proc;

	if (proc == NULL || pg_atomic_read_u32(&slot->idle) == 0 ||
		pg_atomic_exchange_u32(&slot->idle, 0) == 0)
		return false;
	SetLatch(&proc->procLatch);
	return true;
}

static void
set_working(int n)
{
	int			before = working();
	int			last = Min(n, KdbLanesStarted());

	if (n == before)
		return;
	pg_atomic_write_u32(&KdbMyLaneGroup->working, n);
	pg_memory_barrier();
	for (int i = before; i < last; i++)
		(void) KdbLaneWake(KdbLaneOf(KdbMyLaneGroup, i));
	elog(DEBUG2, "%d of %d lanes work", last, KdbLanesStarted());
}

/* A slice with another number of lanes than the chosen one has ended. */
static void
judge_trial(int n, double cost)
{
	if (cost <= chosen_cost * (n > chosen ? GAIN : 1.0))
	{
		chosen = n;
		chosen_cost = cost;
		rest = 1;
	}
	else
	{
		direction = -direction;
		rest = Min(rest * 2, LONGEST_REST);
	}
	slices = 0;
	set_working(chosen);
}

static void
maybe_begin_trial(int started)
{
	if (++slices < rest || started == 1)
		return;
	if (chosen + direction < 1 || chosen + direction > started)
		direction = -direction;
	set_working(chosen + direction);
}

static void
end_slice(double cost)
{
	int			started = KdbLanesStarted();

	if (KdbLanesReady() < started)
		return;					/* what it takes to start one counts for nobody */
	if (chosen == 0 || chosen > started)
		chosen = started;
	else if (working() <= started && working() != chosen)
	{
		judge_trial(working(), cost);
		return;
	}
	set_working(chosen);
	chosen_cost = cost;
	maybe_begin_trial(started);
}

static void
begin_slice(uint64 committed, TimestampTz now)
{
	slice_begin = committed;
	slice_began = now;
}

/* See lanes_private.h. */
void
KdbLanePace(uint64 committed, uint64 appended)
{
	bool		at_once = KDB_FAULT_SKIPS("lane_slices");
	TimestampTz now;

	if (appended - committed < (at_once ? 2 : BACKLOG))
	{
		slice_began = 0;
		set_working(KDB_MAX_APPLY_WORKERS);
		return;
	}
	if (slice_began != 0 && committed - slice_begin < (at_once ? 1 : SLICE))
		return;
	now = GetCurrentTimestamp();
	if (slice_began == 0)
	{
		if (chosen != 0)
			set_working(chosen);
		begin_slice(committed, now);
	}
	else if (at_once || now - slice_began >= SLICE_US)
	{
		end_slice((double) (now - slice_began) / (committed - slice_begin));
		begin_slice(committed, now);
	}
}

/* See lanes_private.h. */
void
KdbLanePaceReset(void)
{
	slice_began = 0;
	chosen = 0;
}
