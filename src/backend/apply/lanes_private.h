/*
 * lanes_private.h
 *		Applying in parallel: what the leader and its lanes share.
 *
 *	lane_leader.c		collects transactions and hands them over
 *	lane_depend.c		which of them depend on earlier ones
 *	lane_pace.c			how many lanes work
 *	lane_group.c		the segment that both sides see, and starting and ending lanes
 *	lane_turn.c			waiting for earlier transactions, and giving way to them
 *	lane_worker.c		a lane: takes transactions, applies and repeats them
 *
 * doc/internals/lanes.md has the whole of it.
 */
#ifndef LANES_PRIVATE_H
#define LANES_PRIVATE_H

#include "apply_private.h"

#include "port/atomics.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/s_lock.h"
#include "utils/dsa.h"

#include "krahodb/lanes_shared.h"

/*
 * LIMITS of a subscription with lanes: so many transactions are on their way, in so
 * many bytes.  One that needs more than KDB_LANES_LARGE is applied by the leader.
 */
#define KDB_LANES_TRANSACTIONS	1024	/* a power of two */
#define KDB_LANES_RING			(4 * 1024 * 1024)
#define KDB_LANES_LARGE			(KDB_LANES_RING / 8)

/* A transaction on its way. */
typedef struct KdbLaneTransaction
{
	/* by the leader, before it counts as appended */
	uint32		offset;			/* of its bytes in the ring */
	uint32		length;
	uint32		nseen;			/* entries of the seen vector that go before the messages */
	TransactionId xid;
	XLogRecPtr	end_lsn;
	uint64		after;			/* it depends on this one; 0: on none that was on its way */
	uint32		after_change;	/* the first of its changes that does */
	uint64		relations;		/* how many relations must be known for it */

	/* by the lane, before it counts as committed */
	XLogRecPtr	local_end;		/* InvalidXLogRecPtr if it wrote nothing here */
} KdbLaneTransaction;

/* A RELATION message; they make a list that only grows, until the lanes are begun anew. */
typedef struct KdbLaneRelation
{
	dsa_pointer next;
	uint32		length;
	char		message[FLEXIBLE_ARRAY_MEMBER];
} KdbLaneRelation;

/* What a lane must know of its leader. */
typedef struct KdbLaneIdentity
{
	LogicalRepWorker worker;	/* of the leader, as a lane needs it */
	int			worker_slot;	/* in the engine's array */
	RepOriginId origin;
	bool		krahodb_stream;
	uint64		remote_node;
	KdbTextSettings remote_text;
} KdbLaneIdentity;

typedef struct KdbLaneGroup
{
	/* fixed when the segment is made */
	KdbLaneIdentity identity;
	Latch	   *leader;
	dsa_handle	area;

	/* relations: by the leader, a new one behind all that is in */
	pg_atomic_uint64 nrelations;
	dsa_pointer first_relation;

	/* converging tables: lanes that are merging, see KdbCountMerging */
	slock_t		merge_mutex;
	int			nmerging;

	/* a lane has ended, or cannot go on: the leader is to look */
	pg_atomic_uint32 trouble;
	pg_atomic_uint32 stopping;	/* no lane is to begin anything */
	char		failure[512];	/* what the lane in state FAILED says */

	/*
	 * Numbers of transactions, from 1 on: the last that was appended, taken by a
	 * lane, and committed.  Those up to "committed" are the leader's again.
	 */
	pg_atomic_uint64 appended;
	pg_atomic_uint32 working;	/* lanes of greater numbers take nothing */
	char		pad1[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 taken;
	char		pad2[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 committed;
	pg_atomic_uint64 leader_waits_for;	/* 0: it does not wait */
	char		pad3[PG_CACHE_LINE_SIZE];

	/* the lanes that were started, as indexes of KdbLanes->slots */
	pg_atomic_uint32 nlanes;
	int			lanes[KDB_MAX_APPLY_WORKERS];

	KdbLaneTransaction transactions[KDB_LANES_TRANSACTIONS];
	char		ring[KDB_LANES_RING];
} KdbLaneGroup;

/* Of the leader or of this lane; NULL if it has none. */
extern KdbLaneGroup *KdbMyLaneGroup;

static inline KdbLaneTransaction *
KdbLaneTransactionOf(KdbLaneGroup *group, uint64 seq)
{
	return &group->transactions[seq & (KDB_LANES_TRANSACTIONS - 1)];
}

static inline KdbLaneSlot *
KdbLaneOf(KdbLaneGroup *group, int i)
{
	return &KdbLanes->slots[group->lanes[i]].slot;
}

static inline bool
KdbLaneIsCommitted(KdbLaneGroup *group, uint64 seq)
{
	return pg_atomic_read_u64(&group->committed) >= seq;
}

/* A message in the ring: its length, its bytes, one byte that converting may use. */
#define KDB_LANE_MESSAGE_SIZE(len)	(sizeof(uint32) + (len) + 1)

/* ---- lane_group.c; all of it for the leader, but the last ---- */

/*
 * Shared memory for a process and those that work for it, with an area that grows if asked for;
 * pinned.  NULL if the server has no room: *why says so, in KdbApplyMessageContext.  Not in a
 * transaction.
 */
extern dsm_segment *KdbLaneMemory(Size size, dsa_area **with_area, char **why);

/*
 * Make the segment, for the subscription as it is now; no lane is started.  False if there is
 * no room for it, as above.
 */
extern bool KdbLaneGroupCreate(char **why);

/* End all lanes, and the segment with them. */
extern void KdbLaneGroupEnd(void);

/* Start one more; false if the server has no room for it. */
extern bool KdbLaneStart(void);

/* How many lanes take transactions, or are about to? */
extern int	KdbLanesStarted(void);
extern int	KdbLanesReady(void);

/* Has one of them ended? */
extern bool KdbLaneHasStopped(void);

/* A relation is to be known to all lanes.  False if there is no room for it, as above. */
extern bool KdbLaneShareRelation(const char *message, size_t len, char **why);

extern void KdbLaneSetState(KdbLaneSlot *slot, KdbLaneState state);

/*
 * Slots of KdbLanes: reserved by the leader (returns an index, or -1); taken by the
 * process, which gives it back when it exits; given back by the leader if that has
 * never come.
 */
extern int	KdbLaneSlotReserve(int number);
extern void KdbLaneSlotGiveBack(int index, int number);
extern KdbLaneSlot *KdbLaneSlotTake(int index);

/* What the leader is and knows at this moment. */
extern void KdbLaneIdentify(KdbLaneIdentity *identity);

/* lane_worker.c: connect, and be as the apply worker is, but for the stream. */
extern void KdbBecomeLane(const KdbLaneIdentity *identity);

/*
 * The attempt has failed: nothing of it is left, in this process or in the database.  The
 * replication origin, if it was taken, is let go of behind the rollback.
 */
extern void KdbLaneAbandon(void (*let_go_of_origin) (void));

/* lane_turn.c: does anybody wait for a lock that this process holds? */
extern bool KdbSomebodyWaitsForMe(void);

/* ---- lane_depend.c; of the leader ---- */

/* What the publisher's table looks like. */
extern void KdbLaneDependRelation(const KdbWireMessage *message);

/* Another one has its name. */
extern void KdbLaneDependForget(uint32 relid);

/* The change belongs to transaction seq; returns the earlier one that it depends on, or 0. */
extern uint64 KdbLaneDependChange(const KdbWireMessage *message, uint64 seq);

/* The numbers of transactions begin anew. */
extern void KdbLaneDependReset(void);

/* ---- lane_pace.c; of the leader ---- */

/* If it sleeps because there was nothing to take; else returns false. */
extern bool KdbLaneWake(KdbLaneSlot *slot);

/* Called often, with the numbers of transactions as they are now. */
extern void KdbLanePace(uint64 committed, uint64 appended);

/* The numbers begin anew, and so do the lanes. */
extern void KdbLanePaceReset(void);

/* ---- lane_turn.c; of a lane ---- */

typedef struct KdbLaneTurn
{
	KdbLaneSlot *slot;
	uint64		seq;			/* in work, 0 if none */
	bool		first;			/* all earlier ones have committed */
	bool		began_first;	/* they had before the first attempt began */
	bool		holds_origin;
	bool		passed;			/* this one counts as committed */
} KdbLaneTurn;

extern KdbLaneTurn KdbMyTurn;

/* End this process if the leader wants it; other interrupts too. */
extern void KdbLaneStopIfAsked(void);

extern void KdbLaneTurnInit(KdbLaneSlot *slot);
extern void KdbLaneTurnBegin(uint64 seq);

/*
 * Wait until a transaction has committed.  An error, which makes the lane begin
 * again, if somebody waits for this lane while an earlier one waits for a lock.
 */
extern void KdbLaneWaitFor(uint64 seq, KdbLaneState state);

/* It counts as committed from now on. */
extern void KdbLanePassTurn(XLogRecPtr local_end);

/* Leave behind what an aborted transaction has left. */
extern void KdbLaneTurnAbandon(void);

#endif							/* LANES_PRIVATE_H */
