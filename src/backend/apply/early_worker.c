/*
 * early_worker.c
 *		The process that applies a streamed transaction while it arrives.
 *
 * One per subscription.  The leader writes the transaction to a file (spool.c) as it
 * would without this process, and says how many records of it have arrived; this
 * process applies them behind it, in a transaction that it keeps open, until it is told
 * to commit or to stop.  STATES of an attempt:
 *
 *	applying	records up to "arrived"
 *	waiting		for more of them, or for the order
 *	committed	told to, at the transaction's turn
 *	given up	rolled back; nothing of it is left here
 *
 * GIVING UP costs the work that was done, and nothing else: the leader has the file, and
 * applies it at the transaction's turn.  So whatever is not certain is given up, and this
 * process decides nothing:
 *
 * - It takes the plain path only (lane_turn.c): a live row that an UPDATE or DELETE
 *	 finds, an INSERT with nothing in its way.  Anything else may be different when
 *	 the earlier transactions have been applied that it has overtaken.
 * - Tables with resolvers: which version wins depends on the commit time, which is
 *	 not known.  TRUNCATE, tables that are not ready, triggers: likewise not here.
 * - Any error: it may come from not having waited.  One that does not is raised again by
 *	 the leader, at the right place.
 * - Somebody waits for a lock that this process holds, while the leader or a lane of this
 *	 subscription waits for a lock: it may be that earlier transactions wait for this one,
 *	 which waits for its turn behind them.  The engine's deadlock detector does not see
 *	 that.  Circles of locks alone are the detector's.
 * - It waits itself for a lock, for longer than LOCK_WAIT_MS: then it does not look, and an
 *	 earlier transaction that waits for it would wait for a local session that has nothing
 *	 to do with it.
 *
 * COMMIT.  The leader has finished all earlier transactions and has let go of the
 * subscription's replication origin.  This process takes it, and commits with position
 * and time as the leader would; so the progress is exact after any crash.  "over" is set
 * when the origin is free again.  If this process ends in between, the leader does not
 * guess: it ends too, and the next one reads the origin's progress.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "krahodb/fault.h"
#include "early_private.h"

#define LOOK_EVERY	256			/* records between looks at orders and at who waits */
#define NAP			20L			/* ms; while waiting for records */
#define LOCK_WAIT_MS	3000	/* then an attempt that waits for a lock is given up */
#define IDLE_MS		1000L		/* then statistics are sent, once */

KdbEarlyShared *KdbMyEarly = NULL;

static KdbLaneSlot *my_slot = NULL;
static bool holds_origin = false;
static bool committed = false;	/* the attempt has, whatever comes after */

/* See apply_private.h. */
bool
KdbInEarly(void)
{
	return KdbMyEarly != NULL;
}

/* ---- giving up ---- */

/* See apply_private.h. */
void
KdbEarlyGiveUp(const char *reason)
{
	Assert(KdbMyEarly != NULL);
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg_internal("%s", reason)));
}

/* Does the leader or a lane of the subscription wait for a lock? */
static bool
one_of_ours_is_blocked(void)
{
	if (*(LOCK *volatile *) &KdbMyEarly->leader->waitLock != NULL)
		return true;
	for (int i = 0; i < KdbLanes->nslots; i++)
	{
		KdbLaneSlot *slot = &KdbLanes->slots[i].slot;
		PGPROC	   *proc = slot->proc;

		if (slot->subid == my_slot->subid && proc != NULL && proc != MyProc &&
			*(LOCK *volatile *) &proc->waitLock != NULL)
			return true;
	}
	return false;
}

static void
give_way_if_needed(void)
{
	if (one_of_ours_is_blocked() && KdbSomebodyWaitsForMe())
		KdbEarlyGiveUp("an earlier transaction waits for it");
}

/* ---- orders ---- */

static void
stop_if_asked(void)
{
	if (pg_atomic_read_u32(&KdbMyEarly->stopping))
		proc_exit(0);
	CHECK_FOR_INTERRUPTS();
}

static KdbEarlyOrder
read_order(uint64 *arrived)
{
	KdbEarlyOrder order;

	SpinLockAcquire(&KdbMyEarly->mutex);
	order = KdbMyEarly->order;
	*arrived = KdbMyEarly->arrived;
	SpinLockRelease(&KdbMyEarly->mutex);
	return order;
}

/* The order as it is now; unless it is to commit, others go first. */
static KdbEarlyOrder
look(uint64 *arrived)
{
	KdbEarlyOrder order;

	stop_if_asked();
	order = read_order(arrived);
	if (order == KDB_EARLY_STOP)
		KdbEarlyGiveUp("the apply worker has stopped it");
	if (order == KDB_EARLY_GO_ON)
		give_way_if_needed();
	return order;
}

static void
wait_for_records(void)
{
	KdbLaneSetState(my_slot, KDB_LANE_WAITING_FOR_STREAM);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, NAP,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/* ---- one attempt ---- */

/* See apply_private.h. */
void
KdbEarlyTakeOrigin(void)
{
	replorigin_session_setup(KdbApply.origin);
	holds_origin = true;
}

/* See apply_private.h. */
bool
KdbEarlyHoldsOrigin(void)
{
	return holds_origin;
}

static void
let_go_of_origin(void)
{
	if (holds_origin)
		replorigin_session_reset();
	holds_origin = false;
}

static void
early_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && holds_origin)
		committed = true;
}

static void
begin(void)
{
	KdbApply.remote_xid = KdbMyEarly->xid;
	KdbApply.remote_final_lsn = InvalidXLogRecPtr;
	KdbApply.remote_commit_time = 0;
	KdbApplyErrorSetTransaction(KdbMyEarly->xid, InvalidXLogRecPtr);
	in_remote_transaction = true;
	KdbApplyBeginStep();
	KdbApplyEndStep();
}

/* Apply what has arrived, up to LOOK_EVERY records of it. */
static void
apply_some(KdbSpoolReader *reader, uint64 arrived)
{
	uint64		end = Min(arrived, KdbSpoolReaderCount(reader) + LOOK_EVERY);

	KdbLaneSetState(my_slot, KDB_LANE_APPLYING);
	while (KdbSpoolReaderCount(reader) < end)
	{
		KDB_FAULT_POINT("early_change");
		if (!KdbSpoolReaderApply(reader))
			elog(ERROR, "file of a streamed transaction is shorter than what has arrived");
	}
}

static void
commit(void)
{
	KDB_FAULT_POINT("early_before_commit");
	KdbLaneSetState(my_slot, KDB_LANE_APPLYING);
	KdbApplyCommitEarly(KdbMyEarly->end_lsn, KdbMyEarly->commit_time);
	KDB_FAULT_POINT("early_committed");
}

static void
apply(void)
{
	KdbSpoolReader *reader = NULL;

	KDB_FAULT_POINT("early_begin");
	begin();
	for (;;)
	{
		uint64		arrived;
		KdbEarlyOrder order = look(&arrived);

		if (reader == NULL && arrived > 0)
			reader = KdbSpoolReaderOpen(KdbMyEarly->xid);
		if (reader != NULL && KdbSpoolReaderCount(reader) < arrived)
			apply_some(reader, arrived);
		else if (order == KDB_EARLY_COMMIT)
			break;
		else
			wait_for_records();
	}
	if (reader != NULL)
		KdbSpoolReaderClose(reader);
	commit();
}

/*
 * True: committed.  False: rolled back, for the reason in *error.  Only here the process
 * can be cancelled: one that comes late is for nobody.
 */
static bool
try_to_apply(ErrorData **error)
{
	volatile bool done = false;

	PG_TRY();
	{
		RESUME_CANCEL_INTERRUPTS();
		apply();
		HOLD_CANCEL_INTERRUPTS();
		done = true;
	}
	PG_CATCH();
	{
		/* What failed behind the commit concerns this process. */
		if (committed)
			PG_RE_THROW();
		HOLD_CANCEL_INTERRUPTS();
		MemoryContextSwitchTo(ApplyContext);
		*error = CopyErrorData();
		FlushErrorState();
		KdbLaneAbandon(let_go_of_origin);
		stop_if_asked();
	}
	PG_END_TRY();
	return done;
}

static void
report(uint64 attempt, bool done, const char *reason)
{
	SpinLockAcquire(&KdbMyEarly->mutex);
	KdbMyEarly->over = attempt;
	KdbMyEarly->committed = done;
	KdbMyEarly->local_end = done ? XactLastCommitEnd : InvalidXLogRecPtr;
	strlcpy(KdbMyEarly->reason, reason, sizeof(KdbMyEarly->reason));
	SpinLockRelease(&KdbMyEarly->mutex);
	SetLatch(&KdbMyEarly->leader->procLatch);
}

static void
work_on(uint64 attempt)
{
	ErrorData  *error = NULL;
	bool		done;

	my_slot->remote_xid = KdbMyEarly->xid;
	pg_atomic_write_u64(&my_slot->seq, PG_UINT64_MAX);
	QueryCancelPending = false; /* of an attempt before */
	committed = false;
	done = try_to_apply(&error);
	let_go_of_origin();
	pg_atomic_write_u64(&my_slot->seq, 0);
	if (done)
		my_slot->applied++;
	else
		my_slot->repeated++;
	KdbLaneSetState(my_slot, KDB_LANE_IDLE);
	report(attempt, done, done ? "" : error->message);
	if (error != NULL)
		FreeErrorData(error);
}

/* ---- the process ---- */

static void
wake_leader_on_exit(int code, Datum arg)
{
	SetLatch(&KdbMyEarly->leader->procLatch);
}

static void
attach(dsm_handle handle)
{
	dsm_segment *segment = dsm_attach(handle);

	if (segment == NULL)		/* the leader has ended meanwhile */
		proc_exit(0);
	dsm_pin_mapping(segment);
	KdbMyEarly = dsm_segment_address(segment);
	before_shmem_exit(wake_leader_on_exit, (Datum) 0);
}

/* Whatever lock_timeout says elsewhere, if it is not less. */
static void
limit_lock_waits(void)
{
	char		limit[12];

	if (LockTimeout > 0 && LockTimeout < LOCK_WAIT_MS)
		return;
	snprintf(limit, sizeof(limit), "%d", LOCK_WAIT_MS);
	SetConfigOption("lock_timeout", limit, PGC_USERSET, PGC_S_OVERRIDE);
}

static void
become_early(void)
{
	KdbLaneIdentity identity = KdbMyEarly->identity;

	identity.worker.stream_fileset = &KdbMyEarly->files;
	KdbBecomeLane(&identity);
	limit_lock_waits();
	RegisterXactCallback(early_xact_callback, NULL);
}

/* Sleep until the leader has something. */
static void
wait_for_attempt(bool *reported)
{
	int			rc = WaitLatch(MyLatch,
							   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (*reported ? 0 : WL_TIMEOUT),
							   *reported ? -1L : IDLE_MS, PG_WAIT_EXTENSION);

	ResetLatch(MyLatch);
	if (rc & WL_TIMEOUT)
	{
		pgstat_report_stat(true);
		*reported = true;
	}
}

static uint64
next_attempt(void)
{
	uint64		attempt;

	SpinLockAcquire(&KdbMyEarly->mutex);
	attempt = KdbMyEarly->attempt > KdbMyEarly->over ? KdbMyEarly->attempt : 0;
	SpinLockRelease(&KdbMyEarly->mutex);
	return attempt;
}

static void
early_loop(void)
{
	bool		reported = false;

	KdbLaneSetState(my_slot, KDB_LANE_IDLE);
	for (;;)
	{
		uint64		attempt;

		stop_if_asked();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		attempt = next_attempt();
		if (attempt != 0)
		{
			work_on(attempt);
			reported = false;
		}
		else
			wait_for_attempt(&reported);
	}
}

/* Entry function; main_arg is the index of the slot, bgw_extra the segment's handle. */
void
KdbEarlyMain(Datum main_arg)
{
	ErrorContextCallback callback;
	dsm_handle	handle;

	HOLD_CANCEL_INTERRUPTS();	/* see try_to_apply */
	my_slot = KdbLaneSlotTake(DatumGetInt32(main_arg));
	memcpy(&handle, MyBgworkerEntry->bgw_extra, sizeof(handle));
	attach(handle);
	become_early();
	callback.callback = KdbApplyErrorCallback;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	early_loop();
}
