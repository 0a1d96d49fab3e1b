/*
 * early_leader.c
 *		A streamed transaction applied while it arrives: the apply worker's side.
 *
 * A process beside this one applies the transaction behind the file that spool.c writes
 * (early_worker.c has its part).  There is one such process, and so one such transaction
 * at a time; others that are streamed meanwhile are applied at their end, as all are
 * whose attempt is given up.
 *
 *	STREAM START, first block	an attempt begins, if it may
 *	in a block					records that are in the file are told to the process
 *	STREAM ABORT				of anything in it: the attempt is stopped
 *	STREAM COMMIT				earlier transactions have been finished by now; the process
 *								commits or has given up
 *	STREAM PREPARE				stopped
 *
 * WHEN IT MAY.  Only if the subscription has streaming = on, since it holds locks here until
 * the transaction ends there; those that are streamed without (krahodb.stream_in_progress)
 * are kept in their files.  What an early attempt has read of settings and of the states of tables
 * must be what it would read at its end.  So none begins while a table is being
 * synchronised, a transaction is to be skipped, or one is tried again after an error; and
 * when the subscription or the state of a table changes meanwhile ("epoch"), the attempt
 * is stopped.  Where conflicts are resolved none begins: see early_worker.c.
 *
 * RELATION messages of the file are applied by the process, which keeps them to itself.
 * The publisher takes them as known once the transaction is committed: so they are
 * remembered here and applied then, as they are when the file is replayed.
 *
 * WAITING.  The leader waits for the process when an attempt ends: to stop, which takes
 * as long as one change (a wait for a lock is cancelled), and to commit, which takes as long as
 * the process is behind.  It holds no lock then.  It never waits when it writes to the file.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/spin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/init.h"
#include "early_private.h"

#define NAP				100L	/* ms; while waiting for it to commit */
#define PATIENCE		20L		/* ms; then what it waits for is cancelled */
#define END_MS			500L	/* then it is terminated */
#define START_AGAIN_MS	60000	/* after the server had no room for it */

/* The process, if there is one. */
static KdbEarlyShared *shared = NULL;
static dsm_segment *segment = NULL;
static BackgroundWorkerHandle *handle = NULL;
static TimestampTz no_room_since = 0;

/* The attempt, if there is one. */
static TransactionId attempt_xid = InvalidTransactionId;
static uint64 attempt_epoch;
static List *relations = NIL;	/* of RelationMessage, in order */
static MemoryContext relations_context = NULL;
static bool finishing = false;

/* Counts changes of the subscription and of the states of its tables. */
static uint64 epoch = 0;

typedef struct RelationMessage
{
	size_t		length;
	char		data[FLEXIBLE_ARRAY_MEMBER];
} RelationMessage;

/* See apply_private.h. */
void
KdbEarlySettingsChanged(void)
{
	epoch++;
}

/* See apply_private.h. */
bool
KdbEarlyFinishing(void)
{
	return finishing;
}

/* ---- the process ---- */

static bool
has_stopped(void)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
}

/* Wake it up; cancel what it does, if asked. */
static void
wake(bool cancel)
{
	KdbLaneSlot *slot = &KdbLanes->slots[shared->lane_slot].slot;

	/* The lock keeps the slot the process's. */
	LWLockAcquire(KdbLanes->lock, LW_SHARED);
	if (slot->proc != NULL && slot->pid != 0 && slot->subid == MySubscription->oid &&
		slot->number == KDB_LANE_NUMBER_EARLY)
	{
		SetLatch(&slot->proc->procLatch);
		if (cancel)
			kill(slot->pid, SIGINT);
	}
	LWLockRelease(KdbLanes->lock);
}

static void
forget_attempt(void)
{
	attempt_xid = InvalidTransactionId;
	relations = NIL;
	if (relations_context != NULL)
		MemoryContextReset(relations_context);
}

/* It ends, and whatever it has not committed with it. */
static void
end_process(void)
{
	if (shared == NULL)
		return;
	pg_atomic_write_u32(&shared->stopping, 1);
	wake(true);
	while (!has_stopped())
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   END_MS, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		if (rc & WL_TIMEOUT)
			TerminateBackgroundWorker(handle);
	}
	KdbLaneSlotGiveBack(shared->lane_slot, KDB_LANE_NUMBER_EARLY);
	pfree(handle);
	handle = NULL;
	shared = NULL;
	dsm_detach(segment);
	forget_attempt();
}

static void
end_on_exit(int code, Datum arg)
{
	end_process();
}

static void
init_shared(int lane_slot)
{
	memset(shared, 0, sizeof(*shared));
	KdbLaneIdentify(&shared->identity);
	shared->leader = MyProc;
	shared->lane_slot = lane_slot;
	shared->files = *KdbSpoolFiles();
	pg_atomic_init_u32(&shared->stopping, 0);
	SpinLockInit(&shared->mutex);
}

static bool
register_process(void)
{
	dsm_handle	dsm = dsm_segment_handle(segment);
	BackgroundWorker bgw;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	bgw.bgw_main_arg = Int32GetDatum(shared->lane_slot);
	memcpy(bgw.bgw_extra, &dsm, sizeof(dsm));
	strlcpy(bgw.bgw_library_name, KRAHODB_LIBRARY, sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, "KdbEarlyMain", sizeof(bgw.bgw_function_name));
	strlcpy(bgw.bgw_type, "logical replication lane", sizeof(bgw.bgw_type));
	snprintf(bgw.bgw_name, sizeof(bgw.bgw_name),
			 "logical replication lane for streamed transactions of subscription %u",
			 MySubscription->oid);
	return RegisterDynamicBackgroundWorker(&bgw, &handle);
}

/* *why: what has failed; NULL if the server has no room for another process. */
static bool
start_process(char **why)
{
	static bool registered = false;
	MemoryContext old;
	int			lane_slot = KdbLaneSlotReserve(KDB_LANE_NUMBER_EARLY);
	bool		started;

	*why = NULL;
	if (lane_slot < 0)
		return false;
	if (!registered)
		before_shmem_exit(end_on_exit, (Datum) 0);
	registered = true;
	segment = KdbLaneMemory(sizeof(KdbEarlyShared), NULL, why);
	if (segment == NULL)
	{
		KdbLaneSlotGiveBack(lane_slot, KDB_LANE_NUMBER_EARLY);
		return false;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	shared = dsm_segment_address(segment);
	init_shared(lane_slot);
	started = register_process();
	MemoryContextSwitchTo(old);
	if (!started)
	{
		KdbLaneSlotGiveBack(lane_slot, KDB_LANE_NUMBER_EARLY);
		shared = NULL;
		dsm_detach(segment);
	}
	return started;
}

/* Is there a process, or is one about to come? */
static bool
process_is_there(void)
{
	TimestampTz now;
	char	   *why;

	if (shared != NULL && has_stopped())
		end_process();
	if (shared != NULL)
		return true;
	now = GetCurrentTimestamp();
	if (no_room_since != 0 && !TimestampDifferenceExceeds(no_room_since, now, START_AGAIN_MS))
		return false;
	if (start_process(&why))
		return true;
	if (no_room_since == 0)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("subscription \"%s\" applies streamed transactions when they have ended",
						MySubscription->name),
				 why ? errdetail_internal("%s", why) :
				 errdetail("There are no more background worker slots."),
				 why ? errhint("Lanes need shared memory, which may be limited by the size of /dev/shm.") :
				 errhint("You might need to increase max_worker_processes.")));
	no_room_since = now;
	return false;
}

/* ---- attempts ---- */

static bool
may_begin(void)
{
	if (KdbMyOptions->apply_workers == 1 || !MySubscription->stream || am_tablesync_worker() ||
		TransactionIdIsValid(attempt_xid))
		return false;
	if (KdbResolversActive(&KdbMyOptions->resolvers) ||
		MySubscription->twophasestate != LOGICALREP_TWOPHASE_STATE_DISABLED ||
		MySubscription->skiplsn != InvalidXLogRecPtr || KdbRetrying())
		return false;
	return KdbSync->tables_ready() && process_is_there();
}

/* See apply_private.h. */
void
KdbEarlyBegin(TransactionId xid)
{
	Assert(!IsTransactionState());
	AcceptInvalidationMessages();
	KdbSubscriptionReread();
	if (!may_begin())
		return;
	attempt_xid = xid;
	attempt_epoch = epoch;
	SpinLockAcquire(&shared->mutex);
	Assert(shared->over == shared->attempt);
	shared->attempt++;
	shared->xid = xid;
	shared->arrived = 0;
	shared->order = KDB_EARLY_GO_ON;
	SpinLockRelease(&shared->mutex);
	wake(false);
}

/* See apply_private.h. */
bool
KdbEarlyApplies(TransactionId xid)
{
	return TransactionIdIsValid(xid) && attempt_xid == xid;
}

/* See apply_private.h. */
void
KdbEarlyArrived(uint64 nrecords)
{
	Assert(TransactionIdIsValid(attempt_xid));
	SpinLockAcquire(&shared->mutex);
	shared->arrived = nrecords;
	SpinLockRelease(&shared->mutex);
	wake(false);
}

static bool
is_known(const char *data, size_t len)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		RelationMessage *known = lfirst(lc);

		if (known->length == len && memcmp(known->data, data, len) == 0)
			return true;
	}
	return false;
}

/* See apply_private.h. */
void
KdbEarlyRelation(const char *data, size_t len)
{
	MemoryContext old;
	RelationMessage *message;

	if (is_known(data, len))
		return;
	if (relations_context == NULL)
		relations_context = AllocSetContextCreate(ApplyContext, "KrahoDB relations of a streamed transaction",
												  ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(relations_context);
	message = palloc(offsetof(RelationMessage, data) + len);
	message->length = len;
	memcpy(message->data, data, len);
	relations = lappend(relations, message);
	MemoryContextSwitchTo(old);
}

static bool
is_over(void)
{
	bool		over;

	SpinLockAcquire(&shared->mutex);
	over = shared->over == shared->attempt;
	SpinLockRelease(&shared->mutex);
	return over;
}

static void
give_order(KdbEarlyOrder order)
{
	SpinLockAcquire(&shared->mutex);
	shared->order = order;
	SpinLockRelease(&shared->mutex);
	wake(false);
}

/* See apply_private.h. */
void
KdbEarlyStop(TransactionId xid)
{
	if (!KdbEarlyApplies(xid))
		return;
	give_order(KDB_EARLY_STOP);
	while (!is_over() && !has_stopped())
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   PATIENCE, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (rc & WL_TIMEOUT)
			wake(true);
	}
	ereport(DEBUG1,
			(errmsg_internal("streamed transaction %u is applied when it has ended: %s", xid,
							 is_over() ? shared->reason : "the process has ended")));
	forget_attempt();
}

/* See apply_private.h. */
void
KdbEarlyLook(void)
{
	if (TransactionIdIsValid(attempt_xid) && epoch != attempt_epoch)
		KdbEarlyStop(attempt_xid);
}

/* It has ended without a word: only the origin knows whether it has committed. */
static void
restart(void)
{
	(void) KdbRetrySchedule(KdbApply.remote_final_lsn);
	ereport(LOG,
			(errmsg("logical replication apply worker for subscription \"%s\" will restart because the process that applies streamed transactions has ended",
					MySubscription->name)));
	proc_exit(0);
}

static void
wait_until_over(void)
{
	while (!is_over())
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   NAP, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if ((rc & WL_TIMEOUT) && has_stopped() && !is_over())
			restart();
		KdbFeedbackWhileBusy();
	}
}

static void
apply_relations(void)
{
	ListCell   *lc;

	foreach(lc, relations)
	{
		RelationMessage *message = lfirst(lc);

		KdbApplyDispatch(message->data, message->length);
	}
}

/* Is there any reason not to have it committed as it stands? */
static bool
may_commit(void)
{
	AcceptInvalidationMessages();
	KdbSubscriptionReread();
	return epoch == attempt_epoch && !KdbApply.skipping &&
		MySubscription->skiplsn == InvalidXLogRecPtr && !is_over() && !has_stopped();
}

/* See apply_private.h. */
bool
KdbEarlyCommit(TransactionId xid, XLogRecPtr end_lsn, TimestampTz commit_time)
{
	bool		committed;

	if (!KdbEarlyApplies(xid))
		return false;
	if (!may_commit())
	{
		KdbEarlyStop(xid);
		return false;
	}
	KdbLeaderLetGoOfOrigin();
	shared->end_lsn = end_lsn;
	shared->commit_time = commit_time;
	finishing = true;
	give_order(KDB_EARLY_COMMIT);
	wait_until_over();
	finishing = false;
	KdbLeaderTakeOrigin();

	committed = shared->committed;
	if (committed)
	{
		KdbFeedbackCommitted(end_lsn, shared->local_end);
		apply_relations();
	}
	else
		ereport(DEBUG1,
				(errmsg_internal("streamed transaction %u is applied again: %s", xid,
								 shared->reason)));
	forget_attempt();
	return committed;
}
