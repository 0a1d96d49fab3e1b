/*
 * lane_group.c
 *		The segment that a leader shares with its lanes, and the lanes' lives.
 *
 * SEGMENT.  One per leader, made when the first lane is started.  Transactions are in
 * a table and their bytes in a ring, both of fixed size, in the order of the stream.
 * Relations are in an area that grows with their number.
 *
 * LANES are background workers of our own, not in the engine's array of replication
 * workers: the engine's commands deal with the leader, and nothing of a subscription
 * may be written after its leader is gone.  So the leader ends its lanes on every way
 * out, before it frees its slot in that array, and waits for them.  If it cannot
 * (it was killed), the server restarts.
 *
 * WITHOUT ROOM for the segment or the area (a container's /dev/shm is small, and parallel queries use it
 * too) the leader applies by itself, and tries again from time to time.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "krahodb/fault.h"
#include "krahodb/init.h"
#include "lanes_private.h"

#define KDB_LANE_END_MS	500L	/* then it is terminated */

KdbLaneGroup *KdbMyLaneGroup = NULL;

static dsm_segment *segment = NULL;
static dsa_area *area = NULL;
static BackgroundWorkerHandle *handles[KDB_MAX_APPLY_WORKERS];
static dsa_pointer last_relation = InvalidDsaPointer;

/* See lanes_private.h. */
void
KdbLaneSlotGiveBack(int index, int number)
{
	KdbLaneSlot *slot = &KdbLanes->slots[index].slot;

	LWLockAcquire(KdbLanes->lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u32(&slot->state) == KDB_LANE_STARTING && slot->pid == 0 &&
		slot->subid == MySubscription->oid && slot->number == number)
		pg_atomic_write_u32(&slot->state, KDB_LANE_FREE);
	LWLockRelease(KdbLanes->lock);
}

static void
end_on_exit(int code, Datum arg)
{
	KdbLaneGroupEnd();
}

/* See lanes_private.h. */
void
KdbLaneIdentify(KdbLaneIdentity *identity)
{
	identity->worker = *MyLogicalRepWorker;
	identity->worker_slot = MyLogicalRepWorker - KdbLauncherAttach()->workers;
	identity->origin = KdbApply.origin;
	identity->krahodb_stream = KdbApply.krahodb_stream;
	identity->remote_node = KdbApply.remote_node;
	identity->remote_text = KdbApply.remote_text;
}

static void
init_group(KdbLaneGroup *group)
{
	memset(group, 0, offsetof(KdbLaneGroup, transactions));
	KdbLaneIdentify(&group->identity);
	group->leader = MyLatch;
	group->area = dsa_get_handle(area);
	group->first_relation = InvalidDsaPointer;
	SpinLockInit(&group->merge_mutex);
	pg_atomic_init_u64(&group->nrelations, 0);
	pg_atomic_init_u32(&group->trouble, 0);
	pg_atomic_init_u32(&group->stopping, 0);
	pg_atomic_init_u64(&group->appended, 0);
	pg_atomic_init_u32(&group->working, KDB_MAX_APPLY_WORKERS);
	pg_atomic_init_u64(&group->taken, 0);
	pg_atomic_init_u64(&group->committed, 0);
	pg_atomic_init_u64(&group->leader_waits_for, 0);
	pg_atomic_init_u32(&group->nlanes, 0);
}

/* What is to be made for lanes, and what of it is there. */
typedef struct Memory
{
	Size		size;
	dsm_segment *segment;
	bool		with_area;
	dsa_area   *area;
	dsa_pointer pointer;
} Memory;

static void
make_segment(Memory *memory)
{
	dsm_segment *made = dsm_create(memory->size, 0);

	KDB_FAULT_POINT("lane_memory");
	if (memory->with_area)
	{
		memory->area = dsa_create(KdbLanes->tranche);
		dsa_pin_mapping(memory->area);
	}
	dsm_pin_mapping(made);
	memory->segment = made;
}

static void
make_room(Memory *memory)
{
	KDB_FAULT_POINT("lane_relation");
	memory->pointer = dsa_allocate(memory->area, memory->size);
}

/*
 * What is made belongs to a resource owner until all is made: so an error leaves
 * nothing behind, not even the engine's descriptor of a segment that was not made.  Whoever
 * calls holds no LWLock.  False: *why says what has failed.
 */
static bool
try_to_make(void (*make) (Memory *memory), Memory *memory, char **why)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	ResourceOwner old_owner = CurrentResourceOwner;
	ResourceOwner owner = ResourceOwnerCreate(NULL, "KrahoDB lane memory");
	volatile bool made = false;

	CurrentResourceOwner = owner;
	PG_TRY();
	{
		make(memory);
		made = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		LWLockReleaseAll();
		MemoryContextSwitchTo(KdbApplyMessageContext);
		error = CopyErrorData();
		FlushErrorState();
		*why = error->message;
	}
	PG_END_TRY();
	CurrentResourceOwner = old_owner;
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerDelete(owner);
	MemoryContextSwitchTo(old);
	return made;
}

/* See lanes_private.h. */
dsm_segment *
KdbLaneMemory(Size size, dsa_area **with_area, char **why)
{
	Memory		memory = {.size = size, .with_area = with_area != NULL};

	Assert(!IsTransactionState());
	if (!try_to_make(make_segment, &memory, why))
		return NULL;
	if (with_area != NULL)
		*with_area = memory.area;
	return memory.segment;
}

/* See lanes_private.h. */
bool
KdbLaneGroupCreate(char **why)
{
	static bool registered = false;

	Assert(KdbMyLaneGroup == NULL);
	if (!registered)
		before_shmem_exit(end_on_exit, (Datum) 0);
	registered = true;

	segment = KdbLaneMemory(sizeof(KdbLaneGroup), &area, why);
	if (segment == NULL)
		return false;
	init_group(dsm_segment_address(segment));
	last_relation = InvalidDsaPointer;
	KdbMyLaneGroup = dsm_segment_address(segment);
	return true;
}

/*
 * Have it end without a word: what it does is cancelled, and it finds that it is to
 * stop.  One that has not come so far is ended by the postmaster.
 */
static void
ask_to_end(KdbLaneSlot *slot, int number, BackgroundWorkerHandle *handle)
{
	bool		there;

	/* The lock keeps the slot the lane's: it may have ended, and another one come. */
	LWLockAcquire(KdbLanes->lock, LW_SHARED);
	there = slot->proc != NULL && slot->pid != 0 &&
		slot->subid == MySubscription->oid && slot->number == number;
	if (there)
	{
		SetLatch(&slot->proc->procLatch);
		kill(slot->pid, SIGINT);
	}
	LWLockRelease(KdbLanes->lock);
	if (!there)
		TerminateBackgroundWorker(handle);
}

static void
wait_until_ended(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		int			rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								   KDB_LANE_END_MS, PG_WAIT_EXTENSION);

		ResetLatch(MyLatch);
		if (rc & WL_TIMEOUT)
			TerminateBackgroundWorker(handle);
	}
}

/* See lanes_private.h. */
void
KdbLaneGroupEnd(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n;

	if (group == NULL)
		return;
	KdbMyLaneGroup = NULL;
	pg_atomic_write_u32(&group->stopping, 1);
	n = pg_atomic_read_u32(&group->nlanes);
	for (int i = 0; i < n; i++)
		ask_to_end(KdbLaneOf(group, i), i + 1, handles[i]);
	for (int i = 0; i < n; i++)
	{
		wait_until_ended(handles[i]);
		KdbLaneSlotGiveBack(group->lanes[i], i + 1);
		pfree(handles[i]);
	}
	dsa_detach(area);
	dsm_detach(segment);
}

/* ---- starting ---- */

/* See lanes_private.h. */
int
KdbLaneSlotReserve(int number)
{
	int			result = -1;

	LWLockAcquire(KdbLanes->lock, LW_EXCLUSIVE);
	for (int i = 0; i < KdbLanes->nslots && result < 0; i++)
	{
		KdbLaneSlot *slot = &KdbLanes->slots[i].slot;

		if (pg_atomic_read_u32(&slot->state) != KDB_LANE_FREE)
			continue;
		result = i;
		slot->subid = MySubscription->oid;
		slot->number = number;
		slot->pid = 0;
		slot->proc = NULL;
		slot->remote_xid = InvalidTransactionId;
		slot->applied = 0;
		slot->repeated = 0;
		slot->since = GetCurrentTimestamp();
		pg_atomic_write_u32(&slot->state, KDB_LANE_STARTING);
	}
	LWLockRelease(KdbLanes->lock);
	return result;
}

static void
describe_lane(BackgroundWorker *bgw, int index, int number)
{
	dsm_handle	handle = dsm_segment_handle(segment);

	memset(bgw, 0, sizeof(*bgw));
	bgw->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw->bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw->bgw_restart_time = BGW_NEVER_RESTART;
	bgw->bgw_notify_pid = MyProcPid;
	bgw->bgw_main_arg = Int32GetDatum(index);
	memcpy(bgw->bgw_extra, &handle, sizeof(handle));
	strlcpy(bgw->bgw_library_name, KRAHODB_LIBRARY, sizeof(bgw->bgw_library_name));
	strlcpy(bgw->bgw_function_name, "KdbLaneMain", sizeof(bgw->bgw_function_name));
	strlcpy(bgw->bgw_type, "logical replication lane", sizeof(bgw->bgw_type));
	snprintf(bgw->bgw_name, sizeof(bgw->bgw_name),
			 "logical replication lane %d for subscription %u", number, MySubscription->oid);
}

/* See lanes_private.h. */
bool
KdbLaneStart(void)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	int			n = pg_atomic_read_u32(&group->nlanes);
	int			index = KdbLaneSlotReserve(n + 1);
	BackgroundWorker bgw;
	MemoryContext old;
	bool		started;

	if (index < 0)
		return false;
	describe_lane(&bgw, index, n + 1);
	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&bgw, &handles[n]);
	MemoryContextSwitchTo(old);
	if (!started)
	{
		KdbLaneSlotGiveBack(index, n + 1);
		return false;
	}
	group->lanes[n] = index;
	pg_write_barrier();
	pg_atomic_write_u32(&group->nlanes, n + 1);
	return true;
}

/* See lanes_private.h. */
int
KdbLanesStarted(void)
{
	return KdbMyLaneGroup ? pg_atomic_read_u32(&KdbMyLaneGroup->nlanes) : 0;
}

/* See lanes_private.h. */
int
KdbLanesReady(void)
{
	int			n = KdbLanesStarted();
	int			ready = 0;

	for (int i = 0; i < n; i++)
	{
		uint32		state = pg_atomic_read_u32(&KdbLaneOf(KdbMyLaneGroup, i)->state);

		if (state != KDB_LANE_STARTING && state != KDB_LANE_FREE && state != KDB_LANE_FAILED)
			ready++;
	}
	return ready;
}

/* See lanes_private.h. */
bool
KdbLaneHasStopped(void)
{
	int			n = KdbLanesStarted();

	for (int i = 0; i < n; i++)
	{
		pid_t		pid;

		if (GetBackgroundWorkerPid(handles[i], &pid) == BGWH_STOPPED)
			return true;
	}
	return false;
}

/* ---- relations ---- */

/* See lanes_private.h. */
bool
KdbLaneShareRelation(const char *message, size_t len, char **why)
{
	KdbLaneGroup *group = KdbMyLaneGroup;
	Memory		memory = {.size = offsetof(KdbLaneRelation, message) + len, .area = area};
	dsa_pointer pointer;
	KdbLaneRelation *relation;

	if (!try_to_make(make_room, &memory, why))
		return false;
	pointer = memory.pointer;
	relation = dsa_get_address(area, pointer);
	relation->next = InvalidDsaPointer;
	relation->length = len;
	memcpy(relation->message, message, len);
	if (last_relation == InvalidDsaPointer)
		group->first_relation = pointer;
	else
		((KdbLaneRelation *) dsa_get_address(area, last_relation))->next = pointer;
	last_relation = pointer;
	pg_write_barrier();
	pg_atomic_fetch_add_u64(&group->nrelations, 1);
	return true;
}
