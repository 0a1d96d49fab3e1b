/*
 * conflict_counters.c
 *		Counters of conflicts: a hash table of fixed size in shared memory.
 *
 * One lock for all: it is taken once per counter that a transaction with
 * conflicts has touched, and by readers.
 */
#include "postgres.h"

#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#include "krahodb/conflict_counters.h"

/* With those for the rest. */
#define ALL_COUNTERS	(KDB_CONFLICT_COUNTERS + KDB_CONFLICT_TYPES)

typedef struct CountersLock
{
	LWLock		lock;
	int			tranche;
} CountersLock;

static CountersLock *control = NULL;
static HTAB *counters = NULL;

Size
KdbConflictCountersSize(void)
{
	return add_size(MAXALIGN(sizeof(CountersLock)),
					hash_estimate_size(ALL_COUNTERS, sizeof(KdbConflictCounter)));
}

void
KdbConflictCountersStart(void)
{
	HASHCTL		info = {0};
	bool		found;

	control = ShmemInitStruct("KrahoDB conflict counters lock", sizeof(CountersLock), &found);
	if (!found)
	{
		control->tranche = LWLockNewTrancheId();
		LWLockInitialize(&control->lock, control->tranche);
	}
	LWLockRegisterTranche(control->tranche, "KrahoDBConflictCounters");

	info.keysize = sizeof(KdbConflictKey);
	info.entrysize = sizeof(KdbConflictCounter);
	counters = ShmemInitHash("KrahoDB conflict counters", ALL_COUNTERS, ALL_COUNTERS,
							 &info, HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* The counter, made if there is room; lock held. */
static KdbConflictCounter *
find_or_make(const KdbConflictKey *key, bool room)
{
	KdbConflictCounter *counter;
	bool		found;

	counter = hash_search(counters, key, room ? HASH_ENTER_NULL : HASH_FIND, &found);
	if (counter && !found)
	{
		memset(counter->counts, 0, sizeof(counter->counts));
		counter->last_time = 0;
	}
	return counter;
}

/* See conflict_counters.h. */
void
KdbConflictCountersAdd(const KdbConflictKey *key, const uint64 *counts, TimestampTz when)
{
	KdbConflictCounter *counter;

	LWLockAcquire(&control->lock, LW_EXCLUSIVE);
	counter = find_or_make(key, hash_get_num_entries(counters) < KDB_CONFLICT_COUNTERS);
	if (counter == NULL)
	{
		KdbConflictKey rest = {InvalidOid, InvalidOid, InvalidOid, key->type};

		counter = find_or_make(&rest, true);
	}
	if (counter)
	{
		for (int i = 0; i < KDB_CONFLICT_OUTCOMES; i++)
			counter->counts[i] += counts[i];
		counter->last_time = Max(counter->last_time, when);
	}
	LWLockRelease(&control->lock);
}

/* See conflict_counters.h. */
bool
KdbConflictCountersFull(void)
{
	bool		full;

	LWLockAcquire(&control->lock, LW_SHARED);
	full = hash_get_num_entries(counters) >= KDB_CONFLICT_COUNTERS;
	LWLockRelease(&control->lock);
	return full;
}

/* See conflict_counters.h. */
int
KdbConflictCountersList(Oid dbid, KdbConflictCounter **result)
{
	KdbConflictCounter *counter;
	HASH_SEQ_STATUS seq;
	int			n = 0;

	*result = palloc(ALL_COUNTERS * sizeof(KdbConflictCounter));
	LWLockAcquire(&control->lock, LW_SHARED);
	hash_seq_init(&seq, counters);
	while ((counter = hash_seq_search(&seq)) != NULL)
	{
		if (!OidIsValid(dbid) || !OidIsValid(counter->key.dbid) || counter->key.dbid == dbid)
			(*result)[n++] = *counter;
	}
	LWLockRelease(&control->lock);
	return n;
}

/* See conflict_counters.h. */
void
KdbConflictCountersRemove(const KdbConflictKey *key)
{
	LWLockAcquire(&control->lock, LW_EXCLUSIVE);
	hash_search(counters, key, HASH_REMOVE, NULL);
	LWLockRelease(&control->lock);
}

/* See conflict_counters.h. */
void
KdbConflictCountersReset(Oid dbid)
{
	KdbConflictCounter *counter;
	HASH_SEQ_STATUS seq;

	LWLockAcquire(&control->lock, LW_EXCLUSIVE);
	hash_seq_init(&seq, counters);
	while ((counter = hash_seq_search(&seq)) != NULL)
	{
		if (!OidIsValid(counter->key.dbid) || counter->key.dbid == dbid)
			hash_search(counters, &counter->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(&control->lock);
}
