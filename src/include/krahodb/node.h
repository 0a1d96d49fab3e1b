/*
 * node.h
 *		The identity of this node: a database of this cluster.
 */
#ifndef KRAHODB_NODE_H
#define KRAHODB_NODE_H

#include "postgres.h"
#include "datatype/timestamp.h"

/*
 * A 64-bit number that stays the same for the life of the database and is the
 * second component of each version that is written here.  Never 0.  Needs a
 * database connection.
 */
extern uint64 KdbLocalNodeIdentity(void);

/* That of any database of the server; needs no connection. */
extern uint64 KdbNodeIdentityOf(Oid dbid);

/*
 * The identity that a transaction without origin was written under that was
 * committed at that time: another one if this server began as a copy of a node.
 */
extern uint64 KdbLocalNodeAt(TimestampTz when);

/*
 * Show hook of krahodb.node: "identity/incarnation", decimal; empty without a database.
 * The incarnation is a number for this run of the server: two servers never have the same.
 */
extern const char *KdbShowNode(void);

/* ---- the cluster's part, shared/node_state.c ---- */

/*
 * What distinguishes this cluster from copies of it, now and at that time; 0 for a
 * cluster that is no copy.
 */
extern uint64 KdbNodeSalt(void);
extern uint64 KdbNodeSaltAt(TimestampTz when);

/* From the next start of the server on, all of its databases are other nodes. */
extern void KdbNodeReset(void);

/* For shared.c: size, initialisation in the postmaster. */
extern Size KdbNodeStateSize(void);
extern void KdbNodeStateStart(void);

#endif							/* KRAHODB_NODE_H */
