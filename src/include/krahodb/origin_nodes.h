/*
 * origin_nodes.h
 *		Which node does an origin id of this server stand for?
 *
 * Commit timestamps name the writer of a row by the origin id that this server
 * gave it; versions name it by the node's identity, which is the same
 * everywhere.  Publishers say theirs in the handshake.
 */
#ifndef KRAHODB_ORIGIN_NODES_H
#define KRAHODB_ORIGIN_NODES_H

#include "postgres.h"
#include "replication/origin.h"

/* The identity, or 0 if it was never told. */
extern uint64 KdbOriginNode(RepOriginId origin);

/* What it stood for when a local transaction with that origin was committed. */
extern uint64 KdbOriginNodeOf(RepOriginId origin, TransactionId xid);

/*
 * Since when the id stands for that node: commit records before this position of
 * this server's log may be of another one.
 */
extern XLogRecPtr KdbOriginNodeSince(RepOriginId origin);

/* Does the id belong to a subscription of another database than this session's? */
extern bool KdbOriginIsElsewhere(RepOriginId origin);

/*
 * How far the node's stream has been applied by any subscription of the database that there
 * is; flush: and is durable.  Looks at all ids, so it is not for each change.
 */
extern XLogRecPtr KdbNodeProgress(uint64 node, Oid database, bool flush);

/*
 * Remember it, durably.  Does nothing if it is known already.  Takes a lock and
 * writes a file; errors are the file's.
 */
extern void KdbRememberOriginNode(RepOriginId origin, uint64 node);

/*
 * The same for the origin of a new subscription to that node (0: not known), with the position in the node's log from
 * which its stream brings changes (0: not known).
 */
extern void KdbRememberOriginStart(RepOriginId origin, uint64 node, XLogRecPtr start);
extern XLogRecPtr KdbOriginStart(RepOriginId origin);

/* An id after this one that stands for the node in this session's database; InvalidRepOriginId if there is none. */
extern RepOriginId KdbNextOriginOf(uint64 node, RepOriginId after);

/*
 * Whose log the origin's progress is of: a short form of that server's system identifier, which copies share; 0:
 * not known.  Remembered likewise; 0 forgets it.
 */
extern uint32 KdbOriginCluster(RepOriginId origin);
extern void KdbRememberOriginCluster(RepOriginId origin, uint32 cluster);

/* For shared.c: size, initialisation (reads the file), in the postmaster. */
extern Size KdbOriginNodesSize(void);
extern void KdbOriginNodesStart(void);

#endif							/* KRAHODB_ORIGIN_NODES_H */
