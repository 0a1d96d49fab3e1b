/*
 * lane_worker.c
 *		A lane: a process that applies transactions which the leader hands over.
 *
 *		take		the next transaction, in their order: whoever is free takes it
 *		wait		until the one that it depends on has committed, if there is one;
 *					changes before the first dependent one are made already
 *		apply		through KdbApplyDispatch, as the apply worker does
 *		turn		commit when all earlier ones have (lane_turn.c)
 *
 * REPEATING.  Whatever fails before all earlier transactions have committed may have
 * failed because they had not, or had to give way: it is rolled back without a word,
 * and applied again at its turn.  The bytes stay in the ring until then.  At its turn
 * an error that only says that others were at the same rows (a deadlock with a local
 * session) is repeated too, for REPEATS times.  Any other error is one that the
 * worker alone would have had.  It is not raised here: the lane says what it was, the
 * leader ends all lanes and starts anew, and applies that transaction by itself, so
 * that errors, disable_on_error and SKIP are what they are without lanes.
 *
 * A lane ends when the leader says so, and never on its own but by an error that
 * leaves no choice (FATAL); the leader starts anew then too.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "krahodb/fault.h"
#include "fetch_private.h"
#include "lanes_private.h"

#define REPEATS		5			/* of a transaction at its turn */
#define SPINS		200			/* looks for a transaction before going to sleep */
#define IDLE_MS		1000L		/* then statistics are sent, once */

bool		KdbInLane = false;

/* A copy of the transaction: converting its values writes to it for a moment. */
static char *copy = NULL;
static size_t copy_size = 0;

/* How many relations are known, and the last of them. */
static uint64 known_relations = 0;
static dsa_area *area = NULL;
static dsa_pointer last_relation = InvalidDsaPointer;

/* ---- beginning and end ---- */

/* The leader is to look; the segment is still there. */
static void
tell_leader(void)
{
	pg_atomic_write_u32(&KdbMyLaneGroup->trouble, 1);
	SetLatch(KdbMyLaneGroup->leader);
}

static void
tell_leader_on_exit(int code, Datum arg)
{
	tell_leader();
}

static void
free_slot(int code, Datum arg)
{
	KdbLaneSlot *slot = (KdbLaneSlot *) DatumGetPointer(arg);

	LWLockAcquire(KdbLanes->lock, LW_EXCLUSIVE);
	slot->proc = NULL;
	slot->pid = 0;
	pg_atomic_write_u64(&slot->seq, 0);
	pg_atomic_write_u64(&slot->waits_for, 0);
	pg_atomic_write_u32(&slot->idle, 0);
	pg_atomic_write_u32(&slot->state, KDB_LANE_FREE);
	LWLockRelease(KdbLanes->lock);
}

/* See lanes_private.h. */
KdbLaneSlot *
KdbLaneSlotTake(int index)
{
	KdbLaneSlot *slot = &KdbLanes->slots[index].slot;

	on_shmem_exit(free_slot, PointerGetDatum(slot));
	slot->proc = MyProc;
	slot->pid = MyProcPid;
	return slot;
}

static KdbLaneSlot *
attach(int index)
{
	KdbLaneSlot *slot = KdbLaneSlotTake(index);
	dsm_handle	handle;
	dsm_segment *segment;

	memcpy(&handle, MyBgworkerEntry->bgw_extra, sizeof(handle));
	segment = dsm_attach(handle);
	if (segment == NULL)		/* the leader has ended meanwhile */
		proc_exit(0);
	dsm_pin_mapping(segment);
	KdbMyLaneGroup = dsm_segment_address(segment);
	before_shmem_exit(tell_leader_on_exit, (Datum) 0);
	area = dsa_attach(KdbMyLaneGroup->area);
	dsa_pin_mapping(area);
	return slot;
}

/* See lanes_private.h. */
void
KdbBecomeLane(const KdbLaneIdentity *identity)
{
	static LogicalRepWorker worker;
	char	   *name;

	worker = identity->worker;
	worker.proc = MyProc;
	MyLogicalRepWorker = &worker;
	KdbInLane = true;

	KdbWorkerConnect();
	KdbWorkerLoadSubscription();
	KdbApply.origin = identity->origin;
	KdbApply.krahodb_stream = identity->krahodb_stream;
	KdbApply.remote_node = identity->remote_node;
	KdbApply.remote_text = identity->remote_text;
	replorigin_session_origin = KdbApply.origin;
	KdbApplySeenReset();
	KdbProgressInLane(identity->worker_slot);
	KdbDispatchInLane();
	name = psprintf("pg_%u", MySubscription->oid);
	KdbApplyErrorContext.origin_name = MemoryContextStrdup(ApplyContext, name);
}

/* ---- relations ---- */

static void
learn_relations(uint64 wanted)
{
	while (known_relations < wanted)
	{
		KdbLaneRelation *relation;

		if (last_relation == InvalidDsaPointer)
			last_relation = KdbMyLaneGroup->first_relation;
		else
		{
			relation = dsa_get_address(area, last_relation);
			last_relation = relation->next;
		}
		relation = dsa_get_address(area, last_relation);
		KdbApplyDispatch(relation->message, relation->length);
		known_relations++;
	}
}

/* ---- one transaction ---- */

static void
copy_bytes(const KdbLaneTransaction *transaction)
{
	if (copy_size < transaction->length)
	{
		if (copy)
			pfree(copy);
		copy = NULL;
		copy = MemoryContextAlloc(ApplyContext, transaction->length);
		copy_size = transaction->length;
	}
	memcpy(copy, KdbMyLaneGroup->ring + transaction->offset, transaction->length);
}

static bool
is_change(char type)
{
	return type == KDB_WIRE_INSERT || type == KDB_WIRE_UPDATE || type == KDB_WIRE_DELETE;
}

/*
 * Apply it up to its end; it is committed when this returns, unless it was empty.  Once it
 * is, its entry and its bytes are the leader's again, and may be another one's.
 */
static void
apply(const KdbLaneTransaction *transaction, bool first)
{
	size_t		position;
	size_t		end = transaction->length;
	uint32		changes = 0;

	learn_relations(transaction->relations);
	copy_bytes(transaction);
	KdbApplySeenSet((const KdbSeenEntry *) copy, transaction->nseen);
	position = transaction->nseen * sizeof(KdbSeenEntry);
	while (position < end)
	{
		const char *message = copy + position + sizeof(uint32);
		uint32		len;

		memcpy(&len, copy + position, sizeof(uint32));
		if (transaction->after != 0 && !first && is_change(*message) &&
			changes++ == transaction->after_change)
			KdbLaneWaitFor(transaction->after, KDB_LANE_WAITING);
		CHECK_FOR_INTERRUPTS();
		KdbApplyDispatch(message, len);
		position += KDB_LANE_MESSAGE_SIZE(len);
	}
}

/* Does the error in flight pass by itself? */
static bool
passes(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED ||
		sqlerrcode == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
}

/* See lanes_private.h. */
void
KdbLaneAbandon(void (*let_go_of_origin) (void))
{
	HOLD_INTERRUPTS();
	KdbResetOriginState();
	AbortOutOfAnyTransaction();
	KdbLaneReleaseSessionLocks();
	let_go_of_origin();
	KdbApplyRelationsAbandon();
	KdbConvergeEnd();
	KdbApplyErrorReset();
	in_remote_transaction = false;
	replorigin_session_origin = KdbApply.origin;
	MemoryContextReset(KdbApplyMessageContext);
	RESUME_INTERRUPTS();
}

/* The worker is to apply it.  Never comes back. */
static void
hand_back(const ErrorData *error)
{
	KdbLaneGroup *group = KdbMyLaneGroup;

	snprintf(group->failure, sizeof(group->failure), "%s", error->message);
	pg_write_barrier();
	KdbLaneSetState(KdbMyTurn.slot, KDB_LANE_FAILED);
	tell_leader();
	for (;;)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1L, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		KdbLaneStopIfAsked();
	}
}

/* After an error: what now?  Returns when it is the transaction's turn to be repeated. */
static void
prepare_to_repeat(const ErrorData *error, int *repeats)
{
	if (KdbMyTurn.first)
	{
		if (!passes(error->sqlerrcode) || ++*repeats > REPEATS)
			hand_back(error);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("subscription \"%s\" could not go on and tries again %s: %s",
						MySubscription->name, "at once", error->message)));
		return;
	}
	elog(DEBUG1, "transaction is repeated at its turn: %s", error->message);
	KdbLaneWaitFor(KdbMyTurn.seq - 1, KDB_LANE_WAITING_TO_REPEAT);
	KdbMyTurn.first = true;
}

/* Apply until it is done; true if it was. */
static bool
try_to_apply(const KdbLaneTransaction *transaction, ErrorData **error)
{
	volatile bool done = false;

	PG_TRY();
	{
		apply(transaction, KdbMyTurn.first);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(ApplyContext);
		*error = CopyErrorData();
		FlushErrorState();
		KdbLaneAbandon(KdbLaneTurnAbandon);
		KdbLaneStopIfAsked();
	}
	PG_END_TRY();
	return done;
}

static void
work_on(uint64 seq)
{
	KdbLaneTransaction *transaction = KdbLaneTransactionOf(KdbMyLaneGroup, seq);
	KdbLaneSlot *slot = KdbMyTurn.slot;
	int			repeats = 0;
	ErrorData  *error;

	KdbLaneTurnBegin(seq);
	slot->remote_xid = transaction->xid;
	KdbLaneSetState(slot, KDB_LANE_APPLYING);
	KDB_FAULT_POINT("lane_begin");
	while (!try_to_apply(transaction, &error))
	{
		/* It has committed; what failed behind that concerns this process. */
		if (KdbMyTurn.passed)
			ReThrowError(error);
		slot->repeated++;
		prepare_to_repeat(error, &repeats);
		FreeErrorData(error);
	}
	if (!KdbMyTurn.passed)
	{
		KdbLaneWaitFor(seq - 1, KDB_LANE_WAITING_TO_COMMIT);
		KdbLanePassTurn(InvalidXLogRecPtr);
	}
	slot->applied++;
	pg_atomic_write_u64(&slot->seq, 0);
	KDB_FAULT_POINT("lane_end");
}

/* ---- the queue ---- */

/* Does this lane take transactions now?  See lane_pace.c. */
static bool
is_wanted(void)
{
	return (uint32) KdbMyTurn.slot->number <= pg_atomic_read_u32(&KdbMyLaneGroup->working);
}

static bool
may_take(void)
{
	return is_wanted() && pg_atomic_read_u64(&KdbMyLaneGroup->taken) <
		pg_atomic_read_u64(&KdbMyLaneGroup->appended);
}

/*
 * The number of the next transaction, now this lane's; 0 if there is none.  The slot
 * tells it before it is this lane's: who looks for earlier ones must see it.
 */
static uint64
take(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	KdbLaneSlot *slot = KdbMyTurn.slot;
	uint64		taken = pg_atomic_read_u64(&group->taken);

	while (is_wanted() && taken < pg_atomic_read_u64(&group->appended))
	{
		pg_atomic_write_u64(&slot->seq, taken + 1);
		if (pg_atomic_compare_exchange_u64(&group->taken, &taken, taken + 1))
			return taken + 1;
	}
	pg_atomic_write_u64(&slot->seq, 0);
	return 0;
}

static void
look_up(void)
{
	KdbLaneStopIfAsked();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Sleep until there may be something to take. */
static void
wait_for_work(bool *reported)
{
	KdbLaneSlot *slot = KdbMyTurn.slot;
	long		nap = *reported ? KdbFetchKeptFor() : IDLE_MS;
	int			rc;

	for (int i = 0; i < SPINS && is_wanted(); i++)
	{
		if (may_take())
			return;
		pg_spin_delay();
	}
	KdbLaneSetState(slot, KDB_LANE_IDLE);
	pg_atomic_write_u32(&slot->idle, 1);
	pg_memory_barrier();
	if (!may_take())
	{
		rc = WaitLatch(MyLatch,
					   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (nap < 0 ? 0 : WL_TIMEOUT),
					   nap, PG_WAIT_EXTENSION);
		if ((rc & WL_TIMEOUT) && !*reported)
		{
			pgstat_report_stat(true);
			*reported = true;
		}
		KdbFetchCloseUnused();
		ResetLatch(MyLatch);
	}
	pg_atomic_write_u32(&slot->idle, 0);
}

static void
lane_loop(void)
{
	bool		reported = false;

	for (;;)
	{
		uint64		seq;

		look_up();
		seq = take();
		if (seq != 0)
		{
			work_on(seq);
			reported = false;
		}
		else
			wait_for_work(&reported);
	}
}

/* The leader may end meanwhile, and have us cancelled: that is no error. */
static void
become_lane(void)
{
	PG_TRY();
	{
		KdbBecomeLane(&KdbMyLaneGroup->identity);
	}
	PG_CATCH();
	{
		if (pg_atomic_read_u32(&KdbMyLaneGroup->stopping))
			proc_exit(0);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* Entry function; main_arg is the index of the slot, bgw_extra the segment's handle. */
void
KdbLaneMain(Datum main_arg)
{
	KdbLaneSlot *slot = attach(DatumGetInt32(main_arg));
	ErrorContextCallback callback;

	become_lane();
	KdbLaneTurnInit(slot);
	callback.callback = KdbApplyErrorCallback;
	callback.arg = NULL;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	lane_loop();
}
