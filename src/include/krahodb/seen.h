/*
 * seen.h
 *		What the writer of a transaction had seen of other nodes.
 *
 * For each node a lower and an upper bound of the part of its stream that was in
 * the writer's rows.  A sender that has restarted does not know exactly what had
 * been applied when: then the lower bound is too low or the upper one too high,
 * never the other way.  A node without an entry was not seen at all.
 *
 * A position is a number that grows along a node's stream, such as the LSN of a
 * commit.  The writer's own stream has no entry: it is applied in order.
 *
 * Pure C: no server calls, no allocation.
 */
#ifndef KRAHODB_SEEN_H
#define KRAHODB_SEEN_H

#include <stdbool.h>
#include <stdint.h>

typedef struct KdbSeenEntry
{
	uint64_t	node;
	uint64_t	surely;			/* all of its stream up to here was applied */
	uint64_t	maybe;			/* nothing behind this, fetched rows included */
} KdbSeenEntry;

typedef struct KdbSeen
{
	int			nentries;
	const KdbSeenEntry *entries;
} KdbSeen;

/* The entry of a node, or NULL. */
extern const KdbSeenEntry *KdbSeenFind(const KdbSeen *seen, uint64_t node);

/* Had the writer surely applied that position of the node's stream? */
extern bool KdbSeenSurely(const KdbSeen *seen, uint64_t node, uint64_t position);

#endif							/* KRAHODB_SEEN_H */
