/*
 * conflict_counters.h
 *		How many conflicts there were: counters in shared memory.
 *
 * Per database, subscription, table and conflict type, since the server was
 * started.  At most KDB_CONFLICT_COUNTERS of them; what finds no room is counted
 * in one counter per type for all the rest, whose dbid, subid and relid are
 * InvalidOid.
 */
#ifndef KRAHODB_CONFLICT_COUNTERS_H
#define KRAHODB_CONFLICT_COUNTERS_H

#include "postgres.h"
#include "datatype/timestamp.h"
#include "krahodb/conflict_rules.h"

#define KDB_CONFLICT_COUNTERS	4096

typedef enum KdbConflictOutcome
{
	KDB_OUTCOME_APPLIED,		/* the remote change was written */
	KDB_OUTCOME_SKIPPED,		/* it was dropped */
	KDB_OUTCOME_ERROR			/* an error was raised */
} KdbConflictOutcome;

#define KDB_CONFLICT_OUTCOMES	3

typedef struct KdbConflictKey
{
	Oid			dbid;
	Oid			subid;
	Oid			relid;
	uint32		type;			/* KdbConflictType */
} KdbConflictKey;

typedef struct KdbConflictCounter
{
	KdbConflictKey key;
	uint64		counts[KDB_CONFLICT_OUTCOMES];
	TimestampTz last_time;		/* of the last count */
} KdbConflictCounter;

/* Add to a counter, or to the one for the rest.  Raises no error. */
extern void KdbConflictCountersAdd(const KdbConflictKey *key, const uint64 *counts,
								   TimestampTz when);

/* Is there no room for further counters? */
extern bool KdbConflictCountersFull(void);

/*
 * A copy of all counters of a database (InvalidOid: of all databases) and those
 * for the rest; palloc'd.  Returns how many.
 */
extern int	KdbConflictCountersList(Oid dbid, KdbConflictCounter **counters);

/* Forget one; those of a database and for the rest. */
extern void KdbConflictCountersRemove(const KdbConflictKey *key);
extern void KdbConflictCountersReset(Oid dbid);

/* For shared.c: size and initialisation. */
extern Size KdbConflictCountersSize(void);
extern void KdbConflictCountersStart(void);

#endif							/* KRAHODB_CONFLICT_COUNTERS_H */
