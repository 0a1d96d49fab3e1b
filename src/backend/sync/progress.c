/*
 * progress.c
 *		Replication origins of a synchronisation worker.
 *
 * Two things hang on origins: what changes are marked with, so that the
 * publisher's side of a subscription in the other direction can tell them from
 * local ones, and how far changes have been applied, exact over a crash.
 *
 * MARKS.  Rows that are copied or caught up are as much the publisher's as
 * those that the apply worker brings later, so their WAL is marked with the
 * subscription's main origin (pg_<subid>): it is the one that filter_origins
 * and replication_origin_id speak of, and unlike the worker's own origin it is
 * not dropped, and its number not given to somebody else, when the worker is
 * done.  Origin filters look at the mark of each change; a transaction of which
 * nothing is left is not sent.
 *
 * PROGRESS.  It must not be the main origin's: that one belongs to the apply
 * worker, which is elsewhere in the stream.  Three cases:
 *
 * - The copy.  Its commit is marked with the main origin and LSN 0, which moves
 *	 no progress, neither in memory nor in recovery (both only move forwards).
 *	 That the copy is done is FINISHEDCOPY, in the same transaction.
 * - Catching up, plain subscription.  The commit is marked with the worker's
 *	 own origin (pg_<subid>_<relid>) and the LSN, as in the engine: exact, and
 *	 an engine without KrahoDB could go on from it.
 * - Catching up with conflict resolution.  The origin of the commit is what the
 *	 row's version will be judged by, so it has to be the main one, with LSN 0.
 *	 The LSN goes into pg_subscription_rel in the same transaction.
 *
 * So after a restart the greater of the two is right, whatever the
 * subscription's options were before.
 *
 * The session acquires the worker's own origin: the main one is acquired by
 * the apply worker.  At commit the engine moves the acquired one in memory.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_replication_origin.h"
#include "catalog/pg_subscription_rel.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "krahodb/copy_marks.h"
#include "krahodb/copy_shared.h"
#include "krahodb/node.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"
#include "krahodb/stream.h"

#include "sync_private.h"

static RepOriginId own_origin = InvalidRepOriginId;

static RepOriginId
main_origin(void)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "pg_%u", MySubscription->oid);
	return replorigin_by_name(name, false);
}

static void
own_origin_name(char *name)
{
	ReplicationOriginNameForTablesync(MySubscription->oid,
									  MyLogicalRepWorker->relid,
									  name, NAMEDATALEN);
}

static void
acquire_own_origin(void)
{
	replorigin_session_setup(own_origin);
	replorigin_session_origin = main_origin();
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
}

/*
 * Make sure that the worker's own origin exists.  To be committed before it is
 * used: progress in shared memory would outlive an origin that is rolled back,
 * and be taken for that of the next one with the same number.
 */
void
KdbSyncOriginCreate(void)
{
	char		name[NAMEDATALEN];

	own_origin_name(name);
	own_origin = replorigin_by_name(name, true);
	if (own_origin == InvalidRepOriginId)
	{
		own_origin = replorigin_create(name);
		KdbRememberOriginNode(own_origin, 0);	/* the id may have been another's */
	}
}

/* Where an earlier attempt began, or 0. */
XLogRecPtr
KdbSyncOriginProgress(void)
{
	char		name[NAMEDATALEN];
	RepOriginId origin;

	own_origin_name(name);
	origin = replorigin_by_name(name, true);
	return origin == InvalidRepOriginId ? InvalidXLogRecPtr : replorigin_get_progress(origin, false);
}

/* Begin at startpos: where the slot's snapshot was taken. */
void
KdbSyncOriginBegin(XLogRecPtr startpos)
{
	/* the lock keeps the origin from being dropped meanwhile */
	LockRelationOid(ReplicationOriginRelationId, RowExclusiveLock);
	replorigin_advance(own_origin, startpos, InvalidXLogRecPtr,
					   true /* go backward */, true /* WAL log */);
	UnlockRelationOid(ReplicationOriginRelationId, RowExclusiveLock);

	acquire_own_origin();
}

/* Go on after a restart; lsn is that of FINISHEDCOPY.  Returns where. */
XLogRecPtr
KdbSyncOriginResume(XLogRecPtr lsn)
{
	char		name[NAMEDATALEN];

	own_origin_name(name);
	own_origin = replorigin_by_name(name, false);
	acquire_own_origin();
	return Max(lsn, replorigin_session_get_progress(false));
}

/*
 * Release and drop the worker's own origin.  The caller has stored the
 * progress in a transaction before: the drop itself is not rolled back.
 */
void
KdbSyncOriginDrop(void)
{
	char		name[NAMEDATALEN];

	replorigin_session_origin = InvalidRepOriginId;
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
	replorigin_session_reset();
	own_origin = InvalidRepOriginId;

	own_origin_name(name);
	replorigin_drop_by_name(name, true, false);
}

/*
 * Helpers commit with the main origin too, and the engine wants a session that
 * does to have acquired some origin.  So each has one for as long as the copy
 * lasts.  They are dropped with the subscription if it ends before.
 */
static void
helper_origin_name(char *name, int number)
{
	snprintf(name, NAMEDATALEN, "pg_%u_%u_%d", MySubscription->oid,
			 MyLogicalRepWorker->relid, number);
}

/* To be committed before they are used. */
void
KdbSyncHelperOriginsCreate(int nhelpers)
{
	char		name[NAMEDATALEN];

	for (int i = 1; i <= nhelpers; i++)
	{
		helper_origin_name(name, i);
		if (replorigin_by_name(name, true) == InvalidRepOriginId)
			KdbRememberOriginNode(replorigin_create(name), 0);
	}
}

/* In a helper. */
void
KdbSyncHelperOriginUse(int number)
{
	char		name[NAMEDATALEN];

	helper_origin_name(name, number);
	own_origin = replorigin_by_name(name, false);
	acquire_own_origin();
}

/* All helpers are gone. */
void
KdbSyncHelperOriginsDrop(void)
{
	char		name[NAMEDATALEN];

	for (int i = 1; i < KDB_COPY_MAX_WORKERS; i++)
	{
		helper_origin_name(name, i);
		replorigin_drop_by_name(name, true, false);
	}
}

/* Of a helper for a table that the subscription does not have? */
static bool
is_left_behind(Oid subid, const char *origin, const char *prefix)
{
	XLogRecPtr	lsn;
	char	   *end;
	Oid			relid;

	if (strncmp(origin, prefix, strlen(prefix)) != 0)
		return false;
	relid = strtoul(origin + strlen(prefix), &end, 10);
	return *end == '_' &&
		GetSubscriptionRelState(subid, relid, &lsn) == SUBREL_STATE_UNKNOWN;
}

/* See copy_marks.h. */
void
KdbCopyDropHelperOrigins(Oid subid)
{
	char	   *prefix = psprintf("pg_%u_", subid);
	Relation	rel = table_open(ReplicationOriginRelationId, RowExclusiveLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	List	   *names = NIL;
	HeapTuple	tuple;
	ListCell   *lc;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		name = heap_getattr(tuple, Anum_pg_replication_origin_roname,
										RelationGetDescr(rel), &isnull);
		char	   *string = TextDatumGetCString(name);

		if (is_left_behind(subid, string, prefix))
			names = lappend(names, string);
	}
	systable_endscan(scan);
	table_close(rel, RowExclusiveLock);
	foreach(lc, names)
		replorigin_drop_by_name(lfirst(lc), true, false);
}

/*
 * The rows of the table have been copied, and are about to be committed: they are
 * ahead of the publisher's stream, and maybe of those of other nodes that the
 * publisher had seen.
 */
void
KdbSyncNoteCopied(XLogRecPtr startpos)
{
	KdbPublisher publisher;

	KdbSeenAheadOfOrigin(main_origin(), startpos);
	KdbStreamIdentify(LogRepWorkerWalRcvConn, &publisher);
	if (publisher.krahodb_version > 0)
	{
		char	  **row = KdbStreamQueryRow(LogRepWorkerWalRcvConn, "SHOW krahodb.seen", 1,
											"what the publisher has seen");

		KdbSeenAheadFromText(row[0], KdbLocalNodeIdentity());
	}
}

/* Set what the commit of the copy is stamped with. */
void
KdbSyncStampCopy(void)
{
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp =
		KdbResolversActive(&KdbMyOptions->resolvers) ?
		KdbCopiedRowTime :
		GetCurrentTimestamp();
}

/*
 * What is caught up may be ahead of the main origin.  Up to the goal at once, so
 * that it is not said for each transaction.
 */
static void
note_caught_up(XLogRecPtr end_lsn)
{
	SpinLockAcquire(&MyLogicalRepWorker->relmutex);
	if (MyLogicalRepWorker->relstate == SUBREL_STATE_CATCHUP)
		end_lsn = Max(end_lsn, MyLogicalRepWorker->relstate_lsn);
	SpinLockRelease(&MyLogicalRepWorker->relmutex);
	KdbSeenAheadOfOrigin(replorigin_session_origin, end_lsn);
}

/* The before_commit callback of apply.h. */
void
KdbSyncBeforeCommit(XLogRecPtr end_lsn)
{
	note_caught_up(end_lsn);
	if (!KdbResolversActive(&KdbMyOptions->resolvers))
	{
		replorigin_session_origin = own_origin;
		return;
	}

	UpdateSubscriptionRelState(MySubscription->oid, MyLogicalRepWorker->relid,
							   SUBREL_STATE_FINISHEDCOPY, end_lsn);
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
}
