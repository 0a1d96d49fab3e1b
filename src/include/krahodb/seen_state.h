/*
 * seen_state.h
 *		Seen vectors in the server: what nodes had seen of each other.
 *
 * doc/internals/seen.md has the whole of it.  Three parts:
 *
 * - what the writer of the transaction that is being applied had seen
 *	 (apply/seen.c, from the stream);
 * - where a local row version stands in its node's stream (shared/seen_positions.c);
 * - what this node has seen ahead of the streams (shared/seen_ahead.c), which its
 *	 own publisher side must tell to others.
 *
 * Positions are LSNs of the node's own log: ends of its transactions.
 */
#ifndef KRAHODB_SEEN_STATE_H
#define KRAHODB_SEEN_STATE_H

#include "postgres.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "replication/origin.h"
#include "utils/snapshot.h"
#include "krahodb/conflict_rules.h"
#include "krahodb/seen.h"

/* ---- of the remote transaction that is being applied; apply/seen.c ---- */

/*
 * Its vector; valid until the next message.  A stock publisher tells none: that
 * reads as having seen nobody.
 */
extern const KdbSeen *KdbSeenOfTransaction(void);

/*
 * How far this node has applied the node's stream: every transaction that ends up
 * to there, of each table that is subscribed to.  UINT64_MAX for this node itself;
 * 0 if nothing is known: no subscription, or tables still being synchronised.
 * Needs a transaction.
 */
extern uint64 KdbSeenProgress(uint64 node);

/* ---- positions; shared/seen_positions.c ---- */

/*
 * An upper bound of where the row's version stands in its node's stream: not less
 * than the end of the transaction that wrote it.  UINT64_MAX if nothing is known.
 * row is as KdbLocalRowVersion and the like have filled it; if a version record has
 * replaced its version, nothing is known.  May wait for the end of a committing
 * transaction's callbacks; hold no buffer lock.
 */
extern uint64 KdbSeenPosition(const KdbLocalRow *row);

/*
 * The last position of an origin, whose stream is that of the node, among recent
 * transactions that the snapshot shows; 0 if there is none.  Waits for callbacks as
 * KdbSeenPosition does.  For a snapshot that was taken lately.
 */
extern XLogRecPtr KdbSeenLastPosition(RepOriginId origin, uint64 node, Snapshot snapshot);

/*
 * A prepared transaction xid has been committed, and its commit ends at lsn: of
 * this server's log, or of its origin's stream if it was applied.
 */
extern void KdbSeenCommittedPrepared(TransactionId xid, XLogRecPtr lsn);

/* The id of a prepared transaction, or InvalidTransactionId; needs a transaction. */
extern TransactionId KdbPreparedTransactionId(const char *gid);

/*
 * Note from time to time how far the streams are that this origin and this server
 * have; cheap.  Called by apply workers between transactions.
 */
extern void KdbSeenMark(RepOriginId origin, TimestampTz now);

/* ---- ahead of the streams; shared/seen_ahead.c ---- */

/*
 * Rows of the publisher of an origin, as they stood at lsn of its stream, are about to be
 * written here although its stream has not been applied so far.  To be called before
 * they are committed; durable when it returns.  Cheap if it is known already.  The
 * identity of the publisher may not be known.
 */
extern void KdbSeenAheadOfOrigin(RepOriginId origin, XLogRecPtr lsn);

/* The origin is about to be dropped or to stand for another node. */
extern void KdbSeenKeepProgress(RepOriginId origin);

/*
 * All that this database has seen, itself included, as text for others
 * ("node/lsn node/lsn", decimal numbers); what SHOW krahodb.seen says.  palloc'd.
 */
extern char *KdbSeenText(uint64 own_node);

/*
 * What another node that rows are fetched or copied from had seen, as its SHOW
 * krahodb.seen says after they were read: noted in the same way.  own_node is left out.
 */
extern void KdbSeenAheadFromText(const char *text, uint64 own_node);

/* The greatest lsn of the origin or its node that was noted; 0 if none. */
extern XLogRecPtr KdbSeenAheadOrigin(RepOriginId origin);

/* A counter that changes with what was noted. */
extern uint64 KdbSeenAheadGeneration(void);

typedef struct KdbSeenAheadEntry
{
	uint64		node;			/* 0: see origin */
	XLogRecPtr	lsn;
	uint32		origin;			/* or 0 */
	Oid			database;		/* whose rows it is about */
} KdbSeenAheadEntry;

#define KDB_SEEN_AHEAD_MAX	1024
#define KDB_SEEN_AHEAD_DEPARTED	(KDB_SEEN_AHEAD_MAX / 2)	/* of nodes that are not subscribed to any more */

/* All that was noted of this database, palloc'd; returns the number. */
extern int	KdbSeenAheadList(KdbSeenAheadEntry **result);

/* ---- for shared.c and _PG_init ---- */
extern Size KdbSeenAheadSize(void);
extern void KdbSeenAheadStart(void);
extern Size KdbSeenPositionsSize(void);
extern void KdbSeenPositionsStart(void);
extern void KdbSeenPositionsInit(void);

/*
 * A stream has been applied further than before: whoever waits for that looks again.  Called at
 * each commit of a remote transaction.
 */
extern void KdbSeenMoved(void);

#endif							/* KRAHODB_SEEN_STATE_H */
