/*
 * node.h
 *		The identity of this node: a database of this cluster.
 */
#ifndef KRAHODB_NODE_H
#define KRAHODB_NODE_H

#include "postgres.h"

/*
 * A 64-bit number that stays the same for the life of the database and is the
 * second component of each version that is written here.  Never 0.  Needs a
 * database connection.
 */
extern uint64 KdbLocalNodeIdentity(void);

#endif							/* KRAHODB_NODE_H */
