/*
 * horizon_shared.h
 *		The retention horizon in shared memory.
 *
 * THE HORIZON is a point in time: every change that any node committed at or
 * before it has been applied here and by all peers, before they wrote what is still
 * to come.  So what is known of rows only to compare such changes with may be
 * forgotten.  See horizon/worker.c.
 */
#ifndef KRAHODB_HORIZON_SHARED_H
#define KRAHODB_HORIZON_SHARED_H

#include "postgres.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"

/* What a peer keeps the horizon waiting for.  Names are in horizon/status.c. */
typedef enum KdbPeerState
{
	KDB_PEER_STARTING,			/* nothing is known yet */
	KDB_PEER_OK,				/* nothing: it was asked, and its changes came, just now */
	KDB_PEER_APPLYING,			/* its changes are on the way, or are being applied */
	KDB_PEER_COPYING,			/* tables are being synchronised */
	KDB_PEER_TRANSACTION,		/* a transaction is running there */
	KDB_PEER_FORWARDING,		/* what it passes on is not complete there */
	KDB_PEER_RECEIVING,			/* it has not applied what others have written */
	KDB_PEER_NOT_APPLYING,		/* the subscription's worker does not run */
	KDB_PEER_UNREACHABLE,		/* it does not answer */
	KDB_PEER_DISABLED,			/* the subscription is disabled */
	KDB_PEER_STALE				/* it was away too long; the horizon does not wait for it */
} KdbPeerState;

#define KDB_PEER_STATES		(KDB_PEER_STALE + 1)

/*
 * How far the stream of a subscription has come; written by its apply worker,
 * see apply/progress.c.  What it says stays true when the worker has gone.
 */
typedef struct KdbSharedProgress
{
	slock_t		mutex;			/* of all below */
	Oid			subid;			/* InvalidOid: never used */
	uint32		stream;			/* which stream the positions are of, see KdbStreamHash */
	RepOriginId origin;			/* local origin that changes are marked with */
	uint64		node;			/* the publisher's identity, and its server's run; 0: stock */
	uint64		incarnation;
	bool		tables_ready;	/* no table is being synchronised */
	XLogRecPtr	started;		/* the same, by the origin, when the worker started */
	XLogRecPtr	durable;		/* all before it is applied and flushed; invalid: not reported yet */
	XLogRecPtr	wanted;			/* wake the horizon worker when durable gets there */
	TimestampTz seen_until;		/* set by the horizon worker: the publisher had applied all
								 * of that before it wrote what comes now; 0: unknown */
} KdbSharedProgress;

/* What the horizon worker knows of a peer: a subscription that resolves conflicts. */
typedef struct KdbSharedPeer
{
	Oid			subid;
	RepOriginId origin;			/* local origin of its changes, if known */
	KdbPeerState state;
	bool		excluded;		/* stale, and nothing of it is applied any more */
	TimestampTz since;			/* in this state */
	TimestampTz alive;			/* when it came any further for the last time */
	TimestampTz frontier;		/* all that it committed until then is applied; 0: unknown */
	TimestampTz streamed;		/* the same for tables that are not being synchronised; not
								 * before the horizon if it counted there, also after a restart */
	TimestampTz received;		/* and all that it wrote before it had applied the changes
								 * of all others until then; 0: unknown */
	char		reason[256];	/* for people; may be empty */
} KdbSharedPeer;

typedef struct KdbHorizonShared
{
	pg_atomic_uint64 time;		/* the horizon, a TimestampTz; 0 until first known */
	pg_atomic_uint64 asked_at;	/* when a peer wanted to know how far we are, TimestampTz */
	pg_atomic_uint32 holders;	/* sessions that keep it where it is */
	pg_atomic_uint32 moving;	/* the worker is moving it and the slot */
	Latch	   *latch;			/* of the horizon worker, NULL if none runs */

	LWLock	   *lock;			/* of what follows */
	TransactionId xid;			/* what the slot holds back vacuum with, if there is one */
	int			max_peers;
	int			npeers;
	bool		published;		/* since the server started */
	bool		incomplete;		/* there are more */
	KdbSharedPeer *peers;

	/* each has its own lock; one per worker slot of the engine's array */
	int			nprogress;
	KdbSharedProgress *progress;
} KdbHorizonShared;

extern KdbHorizonShared *KdbHorizon;

/* For shared.c; the second one under AddinShmemInitLock. */
extern void KdbHorizonRequestShared(void);
extern void KdbHorizonStartShared(void);

/* A subscription whose stream has been applied until the horizon, and its publisher; 0: stock. */
typedef struct KdbHorizonCounted
{
	Oid			subid;
	uint64		node;
} KdbHorizonCounted;

/*
 * Have the server start with this horizon next time; durable when it returns.  counted: of
 * KdbHorizonCounted *.
 */
extern void KdbHorizonStore(TimestampTz horizon, const List *counted);

/* What was stored last; 0 and none if nothing was, or by another node. */
extern TimestampTz KdbHorizonStored(List **counted);

/*
 * Does a setting let vacuum and pruning pass what slots hold back?  The engine's old_snapshot_threshold
 * (before 17) does.
 */
extern bool KdbHorizonIsOverridden(void);

/* Have the horizon worker look at everything again, if one runs. */
extern void KdbHorizonWake(void);

/*
 * Keep the horizon, and what vacuum keeps for it, where they are, until Release or
 * the end of the session; returns it.  0: it is not known, or the horizon worker has not
 * looked yet, since the server started, which peers there are.
 */
extern TimestampTz KdbHorizonHold(void);
extern void KdbHorizonRelease(void);

/*
 * The horizon.  Versions with a timestamp at or before it can be forgotten.  0
 * if it has never been known.  Never goes back, also not by a restart or a crash.  Any
 * process, no locks.
 */
static inline TimestampTz
KdbHorizonTimestamp(void)
{
	return (TimestampTz) pg_atomic_read_u64(&KdbHorizon->time);
}

#endif							/* KRAHODB_HORIZON_SHARED_H */
