/*
 * subscription.c
 *		What this worker works for: MySubscription and KdbMyOptions.
 *
 * Both are read together, into one memory context, and replaced together.  A
 * syscache callback notes that pg_subscription changed; the worker looks again
 * at the start of the next transaction and whenever the stream pauses.  Storing
 * KrahoDB's options invalidates the subscription's catalog cache entry as well
 * (options/label.c), so one callback serves both.
 *
 * What a change does:
 *
 *	removed, disabled				the worker exits
 *	marked as stale					the worker fails, and so does each new one
 *	connection, slot, publications,	the worker exits; the launcher starts one
 *	binary, streaming, owner,		with the new settings
 *	origin, filter_origins,
 *	apply_workers
 *	the rest						takes effect with the next transaction
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "miscadmin.h"
#include "nodes/nodes.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"

#include "apply_private.h"

KdbSubscriptionOptions *KdbMyOptions = NULL;

static bool subscription_valid = false;
static MemoryContext subscription_context = NULL;	/* of MySubscription, KdbMyOptions */

static void
note_subscription_change(Datum arg, int cacheid, uint32 hashvalue)
{
	subscription_valid = false;
	KdbEarlySettingsChanged();
}

/*
 * Old changes of a stale publisher may meet rows that were deleted here later,
 * and nothing here knows that any more.
 */
static void
refuse_stale(const char *subname, const KdbSubscriptionOptions *options)
{
	if (options->stale_since == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subscription \"%s\" is stale and does not take changes", subname),
			 errdetail("Its publisher was away for longer than \"%s\" or \"%s\" allows: since %s no deleted rows are kept here for comparing its changes with.",
					   "krahodb.max_retention", "krahodb.max_retention_size",
					   timestamptz_to_str(options->stale_since)),
			 errhint("Drop the subscription, empty its tables (without publishing that) or make them equal to the publisher's, and create it again; or call krahodb.accept_stale_peer() if rows that were deleted meanwhile may come back.")));
}

/*
 * Read both into a new context.  NULL if the subscription does not exist.
 * Needs a transaction and an active snapshot.
 */
static MemoryContext
read_subscription(Subscription **subscription, KdbSubscriptionOptions **options)
{
	MemoryContext context = AllocSetContextCreate(ApplyContext,
												  "KrahoDB subscription",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(context);

	/* Before reading: a change that comes while we read is not to be lost. */
	subscription_valid = true;

	*subscription = GetSubscription(MyLogicalRepWorker->subid, true);
	*options = NULL;
	if (*subscription != NULL)
		*options = KdbGetSubscriptionOptions(MyLogicalRepWorker->subid);

	if (*options != NULL && KdbResolversActive(&(*options)->resolvers))
		KdbClockEnforce(KDB_CLOCK_SUBSCRIPTIONS);

	MemoryContextSwitchTo(oldcxt);
	return context;
}

static void
use_synchronous_commit(void)
{
	SetConfigOption("synchronous_commit", MySubscription->synccommit,
					PGC_BACKEND, PGC_S_OVERRIDE);
}

/*
 * At start-up: read the subscription, or exit if there is nothing to work for.
 * In a transaction, which holds the lock that keeps the subscription in being (but not in a lane).
 */
void
KdbSubscriptionLoad(void)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	CacheRegisterSyscacheCallback(SUBSCRIPTIONOID, note_subscription_change, (Datum) 0);

	/* A lane lives no longer than its leader, which must not wait for who alters the subscription. */
	if (!KdbInLane)
		LockSharedObject(SubscriptionRelationId, MyLogicalRepWorker->subid, 0,
						 AccessShareLock);
	subscription_context = read_subscription(&MySubscription, &KdbMyOptions);

	if (KdbInLane && (MySubscription == NULL || !MySubscription->enabled))
		proc_exit(0);
	if (MySubscription == NULL)
	{
		ereport(LOG,
				(errmsg("logical replication apply worker for subscription %u will not "
						"start because the subscription was removed during startup",
						MyLogicalRepWorker->subid)));
		proc_exit(0);
	}
	if (!MySubscription->enabled)
	{
		ereport(LOG,
				(errmsg("logical replication apply worker for subscription \"%s\" will not "
						"start because the subscription was disabled during startup",
						MySubscription->name)));
		proc_exit(0);
	}

	refuse_stale(MySubscription->name, KdbMyOptions);
	use_synchronous_commit();
	PopActiveSnapshot();
}

static bool
same_origin_filter(const KdbSubscriptionOptions *a, const KdbSubscriptionOptions *b)
{
	return a->origin == b->origin &&
		a->nfilter_origins == b->nfilter_origins &&
		(a->nfilter_origins == 0 ||
		 memcmp(a->filter_origins, b->filter_origins,
				a->nfilter_origins * sizeof(RepOriginId)) == 0) &&
		a->replication_origin_id == b->replication_origin_id;
}

/* Can the stream that we have go on with the new settings? */
static bool
same_connection(const Subscription *a, const KdbSubscriptionOptions *aopts,
				const Subscription *b, const KdbSubscriptionOptions *bopts)
{
	return strcmp(a->conninfo, b->conninfo) == 0 &&
		strcmp(a->name, b->name) == 0 &&
		strcmp(a->slotname, b->slotname) == 0 &&
		a->binary == b->binary &&
		a->stream == b->stream &&
		a->owner == b->owner &&
		equal(a->publications, b->publications) &&
		aopts->apply_workers == bopts->apply_workers &&
		aopts->compression == bopts->compression &&
		same_origin_filter(aopts, bopts);
}

/* Exit if the new settings say so. */
static void
check_new_subscription(const Subscription *newsub, const KdbSubscriptionOptions *newopts)
{
	const char *reason;

	/* Normally DROP SUBSCRIPTION has stopped us before. */
	if (newsub == NULL)
		reason = "will stop because the subscription was removed";
	else if (!newsub->enabled)
		reason = "will stop because the subscription was disabled";
	else if (!same_connection(newsub, newopts, MySubscription, KdbMyOptions))
		reason = "will restart because of a parameter change";
	else
	{
		if (newsub->dbid != MySubscription->dbid)
			elog(ERROR, "subscription %u changed unexpectedly",
				 MyLogicalRepWorker->subid);
		return;
	}

	/* The leader notices too, and says it. */
	if (!KdbInLane)
		ereport(LOG,
				(errmsg("logical replication apply worker for subscription \"%s\" %s",
						MySubscription->name, reason)));
	proc_exit(0);
}

static void
replace_subscription(void)
{
	Subscription *newsub;
	KdbSubscriptionOptions *newopts;
	MemoryContext oldcontext = subscription_context;
	MemoryContext newcontext = read_subscription(&newsub, &newopts);
	bool		options_changed;

	check_new_subscription(newsub, newopts);
	refuse_stale(newsub->name, newopts);
	options_changed = !KdbSubscriptionOptionsEqual(newopts, KdbMyOptions);

	subscription_context = newcontext;
	MySubscription = newsub;
	KdbMyOptions = newopts;
	MemoryContextDelete(oldcontext);

	use_synchronous_commit();
	if (options_changed)
		KdbApplyRelationsForgetOptions();
}

/*
 * Look whether anything of the subscription changed; in the current transaction
 * (with an active snapshot), or in one of its own if there is none.
 */
void
KdbSubscriptionReread(void)
{
	if (likely(subscription_valid))
		return;

	if (IsTransactionState())
		replace_subscription();
	else
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		replace_subscription();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
}
