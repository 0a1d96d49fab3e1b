/*
 * version.h
 *		Row versions and their total order.
 *
 * A row version is (ts, node): the commit timestamp of the transaction that
 * wrote the row *at its origin*, and the identity of that node.  Ordered by ts,
 * then by node; so two nodes never disagree about which of two versions is the
 * greater one, whatever order they arrive in.
 *
 * Pure C: no server calls, no allocation.
 */
#ifndef KRAHODB_VERSION_H
#define KRAHODB_VERSION_H

#include <stdbool.h>
#include <stdint.h>

typedef struct KdbVersion
{
	int64_t		ts;				/* microseconds since 2000-01-01 UTC, as TimestampTz */
	uint64_t	node;			/* node identity; 0 is unknown and the least */
} KdbVersion;

/* <0, 0 or >0 as a is less than, equal to or greater than b. */
static inline int
KdbVersionCompare(KdbVersion a, KdbVersion b)
{
	if (a.ts != b.ts)
		return a.ts < b.ts ? -1 : 1;
	if (a.node != b.node)
		return a.node < b.node ? -1 : 1;
	return 0;
}

#endif							/* KRAHODB_VERSION_H */
