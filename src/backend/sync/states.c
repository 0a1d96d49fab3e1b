/*
 * states.c
 *		States of the subscription's tables, as the workers see them.
 *
 * The list of tables that are not ready is asked for after every transaction,
 * so it is cached until pg_subscription_rel changes.  (The engine has a cache of
 * its own behind AllTablesyncsReady(), which the apply worker asks when it
 * starts to stream, and invalidates.)
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_subscription_rel.h"
#include "replication/origin.h"
#include "storage/spin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "sync_private.h"

static bool states_valid = false;
static bool has_tables = false;
static List *not_ready = NIL;
static MemoryContext states_context = NULL;

static void
states_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	states_valid = false;
}

static void
watch_states(void)
{
	states_context = AllocSetContextCreate(CacheMemoryContext,
										   "KrahoDB table states",
										   ALLOCSET_SMALL_SIZES);
	CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, states_changed, (Datum) 0);
}

/* A change that comes in while this runs leaves the cache invalid. */
static void
rebuild_states(void)
{
	List	   *tables;
	ListCell   *lc;
	MemoryContext oldcontext;

	states_valid = true;
	tables = GetSubscriptionNotReadyRelations(MySubscription->oid);
	has_tables = tables != NIL || HasSubscriptionRelations(MySubscription->oid);

	not_ready = NIL;
	MemoryContextReset(states_context);
	oldcontext = MemoryContextSwitchTo(states_context);
	foreach(lc, tables)
	{
		SubscriptionRelState *state = palloc(sizeof(SubscriptionRelState));

		*state = *(SubscriptionRelState *) lfirst(lc);
		not_ready = lappend(not_ready, state);
	}
	MemoryContextSwitchTo(oldcontext);
	list_free_deep(tables);
}

List *
KdbSyncNotReadyTables(bool *started_tx)
{
	*started_tx = false;
	if (states_context == NULL)
		watch_states();

	if (!states_valid)
	{
		if (!IsTransactionState())
		{
			StartTransactionCommand();
			*started_tx = true;
		}
		rebuild_states();
	}
	return not_ready;
}

/*
 * Has the subscription tables, and are all of them ready?  As of the last
 * KdbSyncNotReadyTables.
 */
bool
KdbSyncAllReady(void)
{
	return has_tables && not_ready == NIL;
}

/* The tables_ready callback of apply.h. */
bool
KdbSyncNoneLeft(void)
{
	return states_context != NULL && states_valid && not_ready == NIL;
}

/*
 * Is all applied up to lsn and only the slot at the publisher still to be
 * dropped?  See sync_private.h.  Needs a transaction.
 */
bool
KdbSyncSlotOnlyLeft(Oid relid, char state, XLogRecPtr lsn)
{
	char		originname[NAMEDATALEN];

	if (state != SUBREL_STATE_FINISHEDCOPY || XLogRecPtrIsInvalid(lsn))
		return false;

	ReplicationOriginNameForTablesync(MySubscription->oid, relid,
									  originname, sizeof(originname));
	return replorigin_by_name(originname, true) == InvalidRepOriginId;
}

/* The relation_state callback of apply.h. */
char
KdbSyncRelationState(Oid relid, XLogRecPtr *lsn)
{
	char		state = GetSubscriptionRelState(MySubscription->oid, relid, lsn);

	if (!am_tablesync_worker() && KdbSyncSlotOnlyLeft(relid, state, *lsn))
		return SUBREL_STATE_SYNCDONE;
	return state;
}

/* Set this synchronisation worker's state in shared memory. */
void
KdbSyncSetShared(char state, XLogRecPtr lsn)
{
	SpinLockAcquire(&MyLogicalRepWorker->relmutex);
	MyLogicalRepWorker->relstate = state;
	MyLogicalRepWorker->relstate_lsn = lsn;
	SpinLockRelease(&MyLogicalRepWorker->relmutex);
}
