/*
 * count.c
 *		Counting conflicts when their transaction commits.
 *
 * A transaction that fails is applied again and meets the same conflicts, so its
 * counts wait here for the commit (of a two-phase transaction: for PREPARE).  An
 * error is counted at once, since its transaction does not commit; each attempt
 * counts, as in pg_stat_subscription_stats.
 *
 * Counters of what was dropped are hidden by the view, and removed here when
 * there is no room left, at most once in SWEEP_INTERVAL_MS.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "replication/worker_internal.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "conflict_private.h"

#define SWEEP_INTERVAL_MS	60000

typedef struct PendingCount
{
	KdbConflictKey key;
	uint64		counts[KDB_CONFLICT_OUTCOMES];
} PendingCount;

/* Of this transaction; NULL outside of one with conflicts. */
static HTAB *pending = NULL;

/* See conflict_private.h. */
KdbConflictOutcome
KdbConflictOutcomeOf(KdbAction action)
{
	switch (action)
	{
		case KDB_ACTION_INSERT:
		case KDB_ACTION_UPDATE:
		case KDB_ACTION_DELETE:
			return KDB_OUTCOME_APPLIED;
		case KDB_ACTION_SKIP:
			return KDB_OUTCOME_SKIPPED;
		case KDB_ACTION_ERROR:
			break;
	}
	return KDB_OUTCOME_ERROR;
}

static void
add_pending(void)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	PendingCount *count;

	hash_seq_init(&seq, pending);
	while ((count = hash_seq_search(&seq)) != NULL)
		KdbConflictCountersAdd(&count->key, count->counts, now);
}

static void
count_xact_callback(XactEvent event, void *arg)
{
	if (pending == NULL)
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			add_pending();
			break;
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	hash_destroy(pending);
	pending = NULL;
}

static void
start_pending(void)
{
	static bool registered = false;
	HASHCTL		info = {0};

	if (!registered)
		RegisterXactCallback(count_xact_callback, NULL);
	registered = true;

	info.keysize = sizeof(KdbConflictKey);
	info.entrysize = sizeof(PendingCount);
	info.hcxt = TopMemoryContext;
	pending = hash_create("KrahoDB conflict counts", 16, &info,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Is what it counts for gone?  What is in other databases cannot be seen. */
static bool
is_dropped(const KdbConflictKey *key)
{
	if (!OidIsValid(key->dbid))
		return false;
	if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(key->dbid)) ||
		!SearchSysCacheExists1(SUBSCRIPTIONOID, ObjectIdGetDatum(key->subid)))
		return true;
	return key->dbid == MyDatabaseId &&
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(key->relid));
}

static void
sweep_if_full(void)
{
	static TimestampTz last_sweep = 0;
	TimestampTz now = GetCurrentTimestamp();
	KdbConflictCounter *all;
	int			n;

	if (!TimestampDifferenceExceeds(last_sweep, now, SWEEP_INTERVAL_MS) ||
		!KdbConflictCountersFull())
		return;
	last_sweep = now;
	n = KdbConflictCountersList(InvalidOid, &all);
	for (int i = 0; i < n; i++)
	{
		if (is_dropped(&all[i].key))
			KdbConflictCountersRemove(&all[i].key);
	}
	pfree(all);
}

/* See conflict_private.h. */
void
KdbCountConflict(Oid relid, KdbConflictType type, KdbConflictOutcome outcome)
{
	KdbConflictKey key = {MyDatabaseId, MySubscription->oid, relid, type};
	PendingCount *count;
	bool		found;

	sweep_if_full();
	if (outcome == KDB_OUTCOME_ERROR)
	{
		uint64		counts[KDB_CONFLICT_OUTCOMES] = {[KDB_OUTCOME_ERROR] = 1};

		KdbConflictCountersAdd(&key, counts, GetCurrentTimestamp());
		return;
	}
	if (pending == NULL)
		start_pending();
	count = hash_search(pending, &key, HASH_ENTER, &found);
	if (!found)
		memset(count->counts, 0, sizeof(count->counts));
	count->counts[outcome]++;
}
