/*
 * worker.c
 *		The retention horizon, and the process that moves it.
 *
 * To decide a conflict, a change is compared with what happened to its row here,
 * deletions included.  A deleted row stays in the heap until vacuum removes it.
 * If vacuum removes it, and then an older update of the row arrives from a peer
 * that was slow, that update brings the row back, and the nodes differ for good.
 * So vacuum is held back until nothing older can arrive any more: until the
 * horizon has passed.
 *
 * TWO LEVELS.  The first one is a point in time until which all that any peer
 * committed has been applied here: the least of the peers' frontiers (peers.c).
 * Nothing older can arrive any more.  That is not enough to forget:
 *
 * - a peer that lags may fetch a row which was deleted and forgotten here;
 * - a peer that has not received the deletion may update the row later than that;
 * - what is older than that point had not been seen by whoever lags.
 *
 * So each peer tells its own first level (krahodb.frontiers), and that counts as
 * "received" once all that it had written by then has been applied here.  THE
 * HORIZON T is the least of what all peers have received, and of the first level
 * here.  Whatever arrives later has a timestamp after T, and was written by
 * somebody who had applied all until T.  To forget what was deleted at or before T
 * changes no decision, anywhere.  (Each time is by its peer's clock.  That is right:
 * timestamps are compared as they are, whatever the clocks are.)
 *
 * A first level needs nobody's second one, so nodes do not wait for each other in a
 * circle: of all that have a candidate (below) the one with the oldest gets it, as
 * all others have measured at least that.  Who has none is urged to measure, by a
 * question that says that somebody waits (krahodb.frontiers_now).
 *
 * CANDIDATES.  Vacuum knows transaction ids, not times.  So from time to time the
 * worker notes a pair
 *
 *		x	the oldest transaction that is running here
 *		c	the time after that, not before any timestamp committed here
 *
 * What was deleted by a transaction before x was deleted at or before c, since
 * the clock rule keeps timestamps of applied transactions behind the local clock.
 * When T has reached c, the slot's xmin moves to x (slot.c), and the next
 * candidate is noted.
 *
 *	time  here                          a peer
 *	----  ----------------------------  ------------------------------------
 *	1     DELETE k, commit (xid 700)
 *	2     candidate x = 701, c = 2
 *	3                                   asked: its clock 3, WAL up to L
 *	4     its stream has passed L       any older UPDATE of k is before L
 *	      frontier 3 >= c
 *	5                                   the DELETE has come, frontier of here 2.5
 *	6                                   asked: received 2.5, WAL up to L'
 *	7     its stream has passed L'      any UPDATE of k by who had not seen the DELETE
 *	      T = 2.5 >= c                  is before L'
 *	      xmin = 701: k may go
 *
 * ROUNDS.  Each round: note a candidate if there is none; read which peers there
 * are; let each of them do what it can; move the horizon; show it; wait for an
 * answer, for a worker that has come far enough, or for ROUND_PAUSE.  The list of
 * peers is read after the candidate is noted, and a CREATE SUBSCRIPTION that is
 * running holds x back by its own transaction; so a new peer counts before
 * anything that was deleted in its time is given up.  While nothing is written
 * here a new candidate is noted only every IDLE_PAUSE, and peers are asked as
 * often.
 *
 * A SERVER WITHOUT SUBSCRIPTIONS THAT RESOLVE CONFLICTS has no slot, and this
 * process sleeps.  There nothing needs to be remembered, so the horizon is now.
 *
 * STEPS OF T.  A new T is written to disk first (horizon_shared.c), then everybody
 * sees it, then the slot moves.  So wherever a crash comes, nothing has been forgotten
 * by a T that is not known afterwards.  That costs a file's write with its fsyncs, so
 * T is moved when a candidate is reached, or once per ROUND_PAUSE: once a second
 * while something is written, seldom else.
 *
 * AFTER A RESTART the horizon is the one before, until all peers have been asked, and
 * the slot's xmin is the one of the last checkpoint or older.  Whose streams have been
 * applied until that horizon is known from the same file, so who copies a table from here
 * has to wait for nobody: neither for a peer that is away, nor for one that copies from here
 * itself.  The same holds when this process has failed.  A standby that is
 * promoted has no slot and begins anew; what was deleted shortly before is not
 * protected.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/logicallauncher.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"
#include "krahodb/fault.h"
#include "krahodb/init.h"
#include "horizon_private.h"

#define ROUND_PAUSE		1000	/* ms; the longest while there are peers */
#define IDLE_PAUSE		10000	/* ms; between candidates while nothing is written */
#define NO_PEERS_PAUSE	60000	/* ms; the launcher wakes us for new subscriptions */

typedef struct Candidate
{
	bool		valid;
	TransactionId xid;
	TimestampTz time;
	TransactionId next_xid;		/* when it was noted */
	KdbTicks	noted_at;
} Candidate;

static Candidate candidate;

/* Has the horizon been moved by the clock alone, as there was no peer? */
static bool without_peers = false;

static KdbTicks moved_at = 0;

/* See horizon_private.h. */
KdbTicks
KdbTicksNow(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (KdbTicks) INSTR_TIME_GET_MILLISEC(now);
}

/* See horizon.h. */
void
KdbHorizonInit(void)
{
	BackgroundWorker worker = {0};

	/* Without workers nothing is applied; pg_upgrade's servers must not be touched. */
	if (!IsPostmasterEnvironment || IsBinaryUpgrade || max_logical_replication_workers == 0 ||
		max_worker_processes == 0)
		return;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 5;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), KRAHODB_LIBRARY);
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "KdbHorizonMain");
	snprintf(worker.bgw_name, BGW_MAXLEN, "krahodb horizon");
	snprintf(worker.bgw_type, BGW_MAXLEN, "krahodb horizon");
	RegisterBackgroundWorker(&worker);
}

static void
publish_horizon(TimestampTz horizon)
{
	if (horizon > KdbHorizonTimestamp())
		pg_atomic_write_u64(&KdbHorizon->time, (uint64) horizon);
}

static void
note_candidate(KdbTicks now)
{
	TransactionId next = XidFromFullTransactionId(ReadNextFullTransactionId());

	if (candidate.valid)
		return;
	if (candidate.noted_at != 0 &&
		now < candidate.noted_at + (next == candidate.next_xid ? IDLE_PAUSE : ROUND_PAUSE))
		return;
	candidate.xid = GetOldestActiveTransactionId();
	candidate.time = KdbTimeHere();
	candidate.next_xid = next;
	candidate.noted_at = now;
	candidate.valid = true;
}

/*
 * The least frontier and the least received time; 0 if one is not known.  The
 * candidate's time if nobody counts.
 */
static TimestampTz
least_horizon(void)
{
	TimestampTz least = DT_NOEND;
	ListCell   *lc;

	foreach(lc, KdbPeers)
	{
		KdbPeer    *peer = lfirst(lc);

		if (!peer->excluded)
			least = Min(least, peer->unconfirmed ? 0 : Min(peer->frontier, peer->received));
	}
	if (least == DT_NOEND)
		return candidate.time;
	return least;
}

/* The order matters: see the top of this file. */
static void
move_to(TimestampTz horizon, KdbTicks now)
{
	bool		reached = candidate.valid && horizon >= candidate.time;

	if (!reached && now < moved_at + ROUND_PAUSE)
		return;
	if (horizon > KdbHorizonTimestamp())
	{
		KdbPeersStore(horizon);
		KDB_FAULT_POINT("horizon_stored");
		publish_horizon(horizon);
		moved_at = now;
	}
	if (reached)
	{
		KdbHorizonSlotAdvance(candidate.xid);
		candidate.valid = false;
	}
}

/*
 * The first peer: what was said without peers must not be taken back later either.  But
 * if the clock has been set back since, that is a time that is still to come: nothing has
 * been forgotten by it that is not older than now, and must not be from now on.
 */
static void
begin_with_peers(void)
{
	if (without_peers)
	{
		List	   *counted;
		TimestampTz stored = KdbHorizonStored(&counted);
		TimestampTz horizon = Max(stored, Min(KdbHorizonTimestamp(), KdbTimeHere()));

		KdbPeersStore(horizon);
		pg_atomic_write_u64(&KdbHorizon->time, (uint64) horizon);
	}
	without_peers = false;
}

/* Unless somebody holds it: either sees the other. */
static void
move_horizon(TimestampTz horizon, KdbTicks now)
{
	if (horizon == 0)
		return;
	(void) pg_atomic_exchange_u32(&KdbHorizon->moving, 1);
	if (pg_atomic_read_u32(&KdbHorizon->holders) == 0)
		move_to(horizon, now);
	(void) pg_atomic_exchange_u32(&KdbHorizon->moving, 0);
}

static void
step_peers(KdbTicks now)
{
	TimestampTz wanted = candidate.valid ? candidate.time : 0;
	TimestampTz asked = (TimestampTz) pg_atomic_read_u64(&KdbHorizon->asked_at);
	ListCell   *lc;

	foreach(lc, KdbPeers)
		KdbPeerStep(lfirst(lc), wanted, asked, now);
}

/* Wait for anything that a peer may be waiting for; no longer than until. */
static void
wait_for_peers(KdbTicks until)
{
	WaitEventSet *set = CreateWaitEventSet(CurrentMemoryContext, 2 + list_length(KdbPeers));
	WaitEvent	event;
	KdbTicks	now;
	ListCell   *lc;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	foreach(lc, KdbPeers)
	{
		KdbPeer    *peer = lfirst(lc);
		pgsocket	socket;
		KdbTicks	limit;
		int			events = KdbPeerConnectionEvents(&peer->connection, &socket, &limit);

		if (events != 0)
		{
			AddWaitEventToSet(set, events, socket, NULL, NULL);
			until = Min(until, limit);
		}
	}
	now = KdbTicksNow();
	(void) WaitEventSetWait(set, Max(until - now, 0), &event, 1, PG_WAIT_EXTENSION);
	FreeWaitEventSet(set);
}

static void
take_signals(void)
{
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	/* With another exit code the postmaster would not start us again. */
	if (ShutdownRequestPending)
		proc_exit(1);
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* One round; returns how long to wait for the next one at most. */
static int
make_round(void)
{
	KdbTicks	now = KdbTicksNow();
	TimestampTz horizon;

	note_candidate(now);
	KdbReadPeers();
	if (KdbPeers == NIL)
	{
		KdbHorizonSlotDrop();
		KdbPublishPeers();
		publish_horizon(GetCurrentTimestamp());
		without_peers = true;
		candidate.valid = false;
		return NO_PEERS_PAUSE;
	}

	begin_with_peers();

	/* A candidate from before the slot was there would be right as well. */
	(void) KdbHorizonSlotHold(now);
	step_peers(now);
	horizon = least_horizon();
	move_horizon(horizon, now);
	KdbPublishPeers();
	return ROUND_PAUSE;
}

static void
forget_latch(int code, Datum arg)
{
	KdbHorizon->latch = NULL;
}

/* The process. */
void
KdbHorizonMain(Datum main_arg)
{
	MemoryContext round;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	before_shmem_exit(forget_latch, (Datum) 0);
	(void) pg_atomic_exchange_u32(&KdbHorizon->moving, 0);	/* one that failed may have left it */
	KdbHorizon->latch = MyLatch;
	/* with peers it is stored before it is said */
	without_peers = KdbHorizonTimestamp() > KdbRecallPeers();
	round = AllocSetContextCreate(TopMemoryContext, "KrahoDB horizon round",
								  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		int			pause;

		MemoryContextSwitchTo(round);
		take_signals();
		pause = make_round();
		MemoryContextSwitchTo(round);
		wait_for_peers(KdbTicksNow() + pause);
		MemoryContextReset(round);
	}
}
