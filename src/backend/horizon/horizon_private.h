/*
 * horizon_private.h
 *		What the files of horizon/ share.  Nobody else includes this.
 *
 *	worker.c		the process: rounds, candidates, moving the horizon
 *	peers.c			which peers there are, and what each keeps the horizon waiting for
 *	connection.c	asking one peer, without ever waiting for it
 *	slot.c			the slot that holds back vacuum
 *	stale.c			peers that were away for too long
 *	status.c		what others can see
 */
#ifndef HORIZON_PRIVATE_H
#define HORIZON_PRIVATE_H

#include "postgres.h"

#include "libpq-fe.h"
#include "nodes/pg_list.h"
#include "postmaster/bgworker.h"
#include "replication/origin.h"
#include "storage/latch.h"

#include "krahodb/horizon.h"
#include "krahodb/options.h"

/* Milliseconds of a clock that nobody sets; for limits and pauses. */
typedef int64 KdbTicks;

extern KdbTicks KdbTicksNow(void);	/* worker.c */

/* Longest text of krahodb.frontiers, with its end: 150 peers and more. */
#define KDB_FRONTIERS_LENGTH	16384

/* ---- connection.c ---------------------------------------------------------- */

typedef enum PeerPhase
{
	PHASE_CLOSED,				/* until connect_at */
	PHASE_CONNECTING,			/* until deadline */
	PHASE_IDLE,
	PHASE_ASKING				/* until deadline */
} PeerPhase;

/* What a peer answers: all of one moment, in this order. */
typedef struct PeerAnswer
{
	TimestampTz now;			/* its clock, before the snapshot */
	char		frontiers[KDB_FRONTIERS_LENGTH];	/* krahodb.frontiers there; empty: none, or not KrahoDB */
	bool		frontiers_cut;	/* it was longer */
	bool		is_krahodb;
	char		server[48];		/* krahodb.node there: which database, and which run of its server */
	uint64		snapshot_xmin;
	uint64		next_xid;		/* not given out yet, at the snapshot */
	XLogRecPtr	insert_lsn;		/* behind all that was committed in the snapshot */
} PeerAnswer;

typedef struct PeerConnection
{
	PeerPhase	phase;
	PGconn	   *conn;
	PostgresPollingStatusType polling;	/* while connecting: what to wait for */
	KdbTicks	deadline;
	KdbTicks	connect_at;
	KdbTicks	connected_at;
	int			failures;		/* in a row; for the pause until the next attempt */
	bool		urge;			/* ask in a way that has it look how far it is itself */
	PeerAnswer	answer;			/* while asking: what has come of it */
	char		error[192];		/* of the last failure, empty after a success */
} PeerConnection;

/*
 * Do what can be done now.  ask: send the question as soon as possible.  True:
 * an answer has come.
 */
extern bool KdbPeerConnectionStep(PeerConnection *connection, const char *conninfo,
								  bool ask, KdbTicks now, PeerAnswer *answer);
extern void KdbPeerConnectionClose(PeerConnection *connection);

/* What to wait for on its socket (0: nothing), and until when at most. */
extern int	KdbPeerConnectionEvents(const PeerConnection *connection, pgsocket *socket,
									KdbTicks *until);

/* ---- peers.c --------------------------------------------------------------- */

typedef struct KdbPeer
{
	/* the subscription; strings are palloc'd in the peer's context */
	Oid			subid;
	Oid			dbid;
	bool		enabled;
	TimestampTz stale_since;
	char	   *name;
	char	   *conninfo;
	const char *unreadable;		/* what of it cannot be read here, for people; NULL: nothing */
	uint32		stream;
	KdbSubscriptionOptions *options;
	MemoryContext context;
	bool		found;			/* by the last look at the catalog */

	/* asking it */
	PeerConnection connection;
	KdbTicks	ask_at;

	/* one measurement at a time */
	TimestampTz measured;		/* time that is to become the frontier; 0: none in progress */
	char		measured_server[48];	/* who has answered */
	bool		other_server;	/* somebody else than who sends the stream */
	uint64		wait_xid;		/* until no older transaction runs there */
	XLogRecPtr	target;			/* until the stream has passed; invalid: not there yet */
	bool		held_by_forwarded;	/* the time is that of something it passes on */
	TimestampTz measured_received;	/* that is to become received with it */
	TimestampTz measured_seen;	/* and seen_until */

	/* what is known, and of which publisher */
	uint64		node;			/* 0: not known, or a stock server */
	bool		unconfirmed;	/* the connection is another one; nobody knows yet to whom */
	TimestampTz frontier;
	TimestampTz streamed;		/* the same for tables that are not being synchronised; known
								 * after a restart, as far as the horizon was */
	TimestampTz received;
	TimestampTz seen_until;		/* received, if it is known to receive what is written here */
	RepOriginId origin;
	KdbPeerState state;
	TimestampTz since;
	bool		excluded;		/* stale, and no worker applies its changes any more */
	List	   *old_workers;	/* that may: place and generation in the engine's array */

	/* signs of life: the last time that it came any further */
	XLogRecPtr	durable;
	KdbTicks	alive_at;
	TimestampTz alive_time;
	XLogRecPtr	alive_lsn;		/* local WAL then */
	KdbTicks	mark_at;		/* not before: have it marked as stale */
	BackgroundWorkerHandle *marking;	/* who was started for that last */
} KdbPeer;

extern List *KdbPeers;			/* of KdbPeer *; in TopMemoryContext */

/* Take over what was known when the horizon was stored last, which is returned; for the start of the process. */
extern TimestampTz KdbRecallPeers(void);

/* Store a horizon, with those whose streams have been applied until then. */
extern void KdbPeersStore(TimestampTz horizon);

/* Bring KdbPeers up to date with the catalogs.  Starts a transaction of its own. */
extern void KdbReadPeers(void);

/*
 * Ask, look how far it is, judge.  wanted: a frontier or a received time before it
 * is not enough; asked: nor is a frontier before that.
 */
extern void KdbPeerStep(KdbPeer *peer, TimestampTz wanted, TimestampTz asked, KdbTicks now);

/* ---- slot.c ---------------------------------------------------------------- */

/* Hold the slot, creating it if need be.  False if that is not possible now. */
extern bool KdbHorizonSlotHold(KdbTicks now);
extern void KdbHorizonSlotDrop(void);

/* Let vacuum remove what was deleted by transactions before xid. */
extern void KdbHorizonSlotAdvance(TransactionId xid);

/* ---- stale.c --------------------------------------------------------------- */

/* Has it been away too long? */
extern bool KdbPeerIsAwayTooLong(const KdbPeer *peer, KdbTicks now);

/* Start a process that marks it, and says so in the log. */
extern void KdbPeerStartMarking(KdbPeer *peer);

/* ---- status.c -------------------------------------------------------------- */

/* Show everybody what is known of all peers. */
extern void KdbPublishPeers(void);

#endif							/* HORIZON_PRIVATE_H */
