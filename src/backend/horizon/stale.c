/*
 * stale.c
 *		Peers that were away for too long.
 *
 * A peer that stays away keeps deleted rows from being removed, in all tables of
 * all databases.  krahodb.max_retention (time) and krahodb.max_retention_size
 * (WAL written here meanwhile, as a measure of what piles up) say for how long.
 * Away means: it has not come any further.  A peer whose stream moves on, however
 * slowly, is not away, nor is one that is asked and whose changes all are here.
 *
 *	away too long	the horizon worker starts a process in the subscription's
 *					database, for it cannot write catalogs itself
 *	marked			that process has put the mark into the subscription's label,
 *					durably, and said so in the log
 *	excluded		no worker applies the peer's changes any more, and none will:
 *					workers look at the mark when they start and between
 *					transactions (apply/subscription.c).  Only now the horizon
 *					moves on without the peer.
 *
 * NOT IF IT IS BACK.  A process takes its time to start, and somebody may have the subscription
 * locked.  That is not waited for: the apply worker of a peer that is back would have to wait
 * behind us.  It is tried again later, if the peer is still away.
 *
 * krahodb.accept_stale_peer() removes the mark.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_subscription.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/compat.h"
#include "krahodb/init.h"
#include "horizon_private.h"

/* Before another attempt to mark the same peer, ms. */
#define MARK_PAUSE		10000

int			KdbMaxRetention = 12 * 3600;
int			KdbMaxRetentionSize = -1;

/* What the marking process is told, in bgw_extra. */
typedef struct MarkRequest
{
	Oid			dbid;
	Oid			subid;
	TimestampTz since;
} MarkRequest;

StaticAssertDecl(sizeof(MarkRequest) <= BGW_EXTRALEN, "a mark request must fit into bgw_extra");

/* See horizon_private.h. */
bool
KdbPeerIsAwayTooLong(const KdbPeer *peer, KdbTicks now)
{
	uint64		written = GetXLogInsertRecPtr() - peer->alive_lsn;

	if (KdbMaxRetention >= 0 && now - peer->alive_at > KdbMaxRetention * INT64CONST(1000))
		return true;
	return KdbMaxRetentionSize >= 0 && written / (1024 * 1024) > KdbMaxRetentionSize;
}

/* See horizon_private.h. */
void
KdbPeerStartMarking(KdbPeer *peer)
{
	MarkRequest request = {peer->dbid, peer->subid, peer->alive_time};
	BackgroundWorker worker = {0};
	MemoryContext old;
	pid_t		pid;
	bool		started;

	/* It may take long to start. */
	if (peer->marking != NULL && GetBackgroundWorkerPid(peer->marking, &pid) != BGWH_STOPPED)
		return;
	if (peer->marking != NULL)
		pfree(peer->marking);
	peer->marking = NULL;

	peer->mark_at = KdbTicksNow() + MARK_PAUSE;
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), KRAHODB_LIBRARY);
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "KdbStaleMarkMain");
	snprintf(worker.bgw_name, BGW_MAXLEN, "krahodb stale mark for subscription %u", peer->subid);
	snprintf(worker.bgw_type, BGW_MAXLEN, "krahodb stale mark");
	memcpy(worker.bgw_extra, &request, sizeof(request));
	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &peer->marking);
	MemoryContextSwitchTo(old);
	if (!started)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not mark subscription \"%s\" as stale: out of background worker slots", peer->name),
				 errhint("You might need to increase max_worker_processes.")));
}

/* Lock a subscription; false if it is gone, or somebody else has it. */
static bool
lock_subscription(Oid subid)
{
	char	   *name;
	LOCKTAG		tag;
	bool		locked;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, SubscriptionRelationId, subid, 0);
	locked = LockAcquire(&tag, AccessExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
	AcceptInvalidationMessages();
	name = get_subscription_name(subid, true);
	if (name != NULL && !locked)
		ereport(LOG,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("subscription \"%s\" cannot be marked as stale because it is locked", name),
				 errdetail("It is tried again as long as the publisher stays away.")));
	return name != NULL && locked;
}

/* Has nothing been heard of the peer since the request?  One that nobody looks after any more is none. */
static bool
is_still_away(const MarkRequest *request)
{
	bool		away;

	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	away = KdbHorizon->incomplete;
	for (int i = 0; i < KdbHorizon->npeers; i++)
	{
		const KdbSharedPeer *peer = &KdbHorizon->peers[i];

		if (peer->subid == request->subid)
			away = peer->alive == request->since;
	}
	LWLockRelease(KdbHorizon->lock);
	return away;
}

/* The process that marks one subscription. */
void
KdbStaleMarkMain(Datum main_arg)
{
	MarkRequest request;

	memcpy(&request, MyBgworkerEntry->bgw_extra, sizeof(request));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(request.dbid, InvalidOid, BGWORKER_BYPASS_ALLOWCONN);

	/* Once others see the mark it must survive a crash. */
	SetConfigOption("synchronous_commit", "local", PGC_SUSET, PGC_S_OVERRIDE);

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (lock_subscription(request.subid) && is_still_away(&request) &&
		KdbMarkSubscriptionStale(request.subid, request.since))
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is stale and takes no changes any more",
						get_subscription_name(request.subid, false)),
				 errdetail("It has not come any further since %s, which is longer than \"%s\" or \"%s\" allows. Deleted rows are no longer kept for it.",
						   timestamptz_to_str(request.since),
						   "krahodb.max_retention", "krahodb.max_retention_size"),
				 errhint("See view krahodb.horizon, and \"Retention\" in the manual's page on conflicts.")));
	PopActiveSnapshot();
	CommitTransactionCommand();
	KdbHorizonWake();
	proc_exit(0);
}

KDB_SQL_FUNCTION(krahodb_accept_stale_peer);

/* Have a stale subscription take changes again, as they are. */
Datum
krahodb_accept_stale_peer(PG_FUNCTION_ARGS)
{
	char	   *name = NameStr(*PG_GETARG_NAME(0));
	Oid			subid = get_subscription_oid(name, false);

	if (!pg_subscription_ownercheck(subid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_SUBSCRIPTION, name);
	PreventCommandIfReadOnly("krahodb.accept_stale_peer()");
	LockSharedObject(SubscriptionRelationId, subid, 0, AccessExclusiveLock);
	if (!KdbClearSubscriptionStale(subid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("subscription \"%s\" is not stale", name)));
	ereport(LOG,
			(errmsg("stale subscription \"%s\" takes changes again", name)));
	PG_RETURN_VOID();
}
