/*
 * peers.c
 *		How far each peer is: what it committed until when is applied here.
 *
 * A peer is a subscription that resolves conflicts, enabled or not.  Its FRONTIER
 * is a time by its own clock: every change that it committed at or before it, and
 * that it sends here, has been applied and flushed here.  It is found by one
 * measurement after another:
 *
 *	1. ask the peer.  s is its clock before, x the next transaction id after that.  Who
 *	   committed at or before s has an id below x.
 *	2. ask again until no transaction below x runs there any more (mostly that
 *	   is so in the first answer).  The insert position of WAL that came with that
 *	   answer, read after the snapshot, is L: all those commits lie before it.
 *	3. wait until the subscription's stream has passed L, all that came before is
 *	   flushed here, and no table is being synchronised.  Then the frontier is s.
 *
 * Prepared transactions count as running, so this holds for them too.  A
 * transaction that runs there for long makes the frontier wait, no more: whatever
 * it will commit is not older.
 *
 * CLOCKS.  s and the timestamps of the peer's changes come from the same clock.
 * A KrahoDB peer that reads krahodb.frontiers for us makes its clock rule take
 * notice of the time, so that it commits nothing at an earlier time later, even
 * if the clock is set back.
 *
 * PASSED ON.  A peer may send what it got from others, with their timestamps.
 * Then s is not more than its own frontier for each of those (KrahoDB peers tell,
 * status.c), those left out that the subscription does not get (filter_origins,
 * origin = none).  Read before the snapshot as well: what was applied there then
 * lies before L.
 *
 * RECEIVED.  A KrahoDB peer's answer also says its own first level: the least of its
 * frontiers.  It had applied that much before the snapshot, so all that it wrote
 * without is before L as well, and when the measurement ends, that is what the
 * peer has received.  (A transaction there that had written a row before the peer
 * applied somebody else's change of it has ended then: the change had to wait.)  Of
 * what it passes on, the writers must have received it, which it tells too.
 * Nobody writes to a peer without peers of its own: it has received all.  A stock
 * peer does not tell, and is taken to have received all: with stock nodes
 * only the first level is promised.
 *
 * STREAMED.  Whoever copies a table from here needs to know that all peers' changes of that table are
 * applied until the horizon; other tables may be synchronised meanwhile.  So the
 * same time is noted as soon as the stream has passed L.  (If it waited for the tables, two nodes that
 * copy from each other would wait for each other.)
 *
 * That is also kept with the horizon, as far as it counted there: a peer that is away when
 * this server starts must not keep others from joining.
 *
 * WHOSE.  All of this is known of one node.  ALTER SUBSCRIPTION ... CONNECTION may lead to
 * another one, of which nothing is known, or only change the password.  That shows when the
 * worker has connected.  Until then the horizon stays where it is.
 *
 * A measurement belongs to a stream and a server.  A connection string may lead to several
 * servers, at different times: then it is no measurement.  With another stream, and when
 * the connection breaks, it starts over, as positions may mean something else.
 * (It goes on when we close the connection for its age: a stream that is behind
 * may need longer than that.)
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_subscription.h"
#include "replication/logicallauncher.h"
#include "replication/worker_internal.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "krahodb/apply.h"
#include "krahodb/node.h"
#include "krahodb/shared.h"
#include "horizon_private.h"

/* Pause between two questions; and while nothing is to be learnt from one, ms. */
#define ASK_PAUSE		500
#define PING_PAUSE		5000

/* What a healthy peer may take to have all before a candidate here, ms. */
#define OK_DELAY		3000

List	   *KdbPeers = NIL;

/* What was known before this process: these had applied all until then. */
static List *recalled = NIL;	/* of KdbHorizonCounted */
static TimestampTz recalled_horizon = 0;

static KdbPeer *
find_peer(Oid subid)
{
	ListCell   *lc;

	foreach(lc, KdbPeers)
	{
		if (((KdbPeer *) lfirst(lc))->subid == subid)
			return lfirst(lc);
	}
	return NULL;
}

/* See horizon_private.h. */
TimestampTz
KdbRecallPeers(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	recalled_horizon = KdbHorizonStored(&recalled);
	MemoryContextSwitchTo(old);
	return recalled_horizon;
}

static void
recall_peer(KdbPeer *peer)
{
	ListCell   *lc;

	foreach(lc, recalled)
	{
		const KdbHorizonCounted *known = lfirst(lc);

		if (known->subid != peer->subid)
			continue;
		peer->streamed = recalled_horizon;
		peer->node = known->node;
	}
}

/* See horizon_private.h. */
void
KdbPeersStore(TimestampTz horizon)
{
	List	   *counted = NIL;
	ListCell   *lc;

	foreach(lc, KdbPeers)
	{
		KdbPeer    *peer = lfirst(lc);
		KdbHorizonCounted *known;

		if (peer->excluded || peer->streamed < horizon)
			continue;
		known = palloc(sizeof(KdbHorizonCounted));
		known->subid = peer->subid;
		known->node = peer->node;
		counted = lappend(counted, known);
	}
	KdbHorizonStore(horizon, counted);
	list_free_deep(counted);
}

static void
forget_measurement(KdbPeer *peer)
{
	peer->measured = 0;
	peer->target = InvalidXLogRecPtr;
}

/* It is of another publisher. */
static void
forget_known(KdbPeer *peer)
{
	peer->frontier = 0;
	peer->streamed = 0;
	peer->received = 0;
	peer->seen_until = 0;
	peer->unconfirmed = false;
	forget_measurement(peer);
}

static KdbPeer *
add_peer(Oid subid)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	KdbPeer    *peer = palloc0(sizeof(KdbPeer));

	peer->subid = subid;
	peer->state = KDB_PEER_STARTING;
	recall_peer(peer);
	peer->since = peer->alive_time = GetCurrentTimestamp();
	peer->alive_at = KdbTicksNow();
	peer->alive_lsn = GetXLogInsertRecPtr();
	KdbPeers = lappend(KdbPeers, peer);
	MemoryContextSwitchTo(old);
	return peer;
}

/* Text of a row of pg_subscription; NULL if it is out of line (no database here, so no TOAST). */
static char *
text_attribute(Relation rel, HeapTuple tuple, int attribute)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attribute, RelationGetDescr(rel), &isnull);

	if (isnull || VARATT_IS_EXTERNAL(DatumGetPointer(value)))
		return NULL;
	return TextDatumGetCString(value);
}

static char *
slot_name(Relation rel, HeapTuple tuple)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, Anum_pg_subscription_subslotname,
									 RelationGetDescr(rel), &isnull);

	return isnull ? NULL : pstrdup(NameStr(*DatumGetName(value)));
}

/*
 * A worker that applies the peer's changes may have started before the mark was
 * there, and will notice it soon.  Workers that start now see it.
 */
static void
note_old_workers(KdbPeer *peer)
{
	KdbLauncherShared *shared = KdbLauncherAttach();
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	for (int i = 0; i < max_logical_replication_workers; i++)
	{
		LogicalRepWorker *worker = &shared->workers[i];

		if (worker->in_use && worker->subid == peer->subid)
			peer->old_workers = lappend_int(peer->old_workers,
											i * (PG_UINT16_MAX + 1) + worker->generation);
	}
	LWLockRelease(LogicalRepWorkerLock);
	MemoryContextSwitchTo(old);
}

static bool
old_workers_are_gone(const KdbPeer *peer)
{
	KdbLauncherShared *shared = KdbLauncherAttach();
	bool		gone = true;
	ListCell   *lc;

	LWLockAcquire(LogicalRepWorkerLock, LW_SHARED);
	foreach(lc, peer->old_workers)
	{
		LogicalRepWorker *worker = &shared->workers[lfirst_int(lc) / (PG_UINT16_MAX + 1)];

		if (worker->in_use && worker->generation == lfirst_int(lc) % (PG_UINT16_MAX + 1))
			gone = false;
	}
	LWLockRelease(LogicalRepWorkerLock);
	return gone;
}

/* The connection or the slot is another one now. */
static void
note_other_stream(KdbPeer *peer)
{
	KdbPeerConnectionClose(&peer->connection);
	peer->connection.connect_at = 0;
	peer->durable = InvalidXLogRecPtr;
	peer->seen_until = 0;
	forget_measurement(peer);
	if (peer->context == NULL)
		return;					/* it has just been found */
	if (peer->node != 0)
		peer->unconfirmed = true;
	else
		forget_known(peer);
}

static const char *
what_is_unreadable(const KdbPeer *peer)
{
	if (peer->conninfo == NULL)
		return "the connection string is too long to be read by the horizon worker";
	if (peer->options == NULL)
		return "the options of the subscription cannot be read by the horizon worker";
	return NULL;
}

/* Take over what the catalogs say; in a transaction. */
static void
update_peer(KdbPeer *peer, Relation rel, HeapTuple tuple)
{
	Form_pg_subscription form = (Form_pg_subscription) GETSTRUCT(tuple);
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "KrahoDB peer",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	uint32		stream;
	bool		was_stale = peer->stale_since != 0;

	peer->dbid = form->subdbid;
	peer->enabled = form->subenabled;
	peer->name = pstrdup(NameStr(form->subname));
	peer->conninfo = text_attribute(rel, tuple, Anum_pg_subscription_subconninfo);
	stream = peer->conninfo ? KdbStreamHash(peer->conninfo, slot_name(rel, tuple)) : 0;
	peer->options = KdbTryGetSubscriptionOptions(peer->subid);
	peer->unreadable = what_is_unreadable(peer);
	if (peer->options == NULL)
		peer->options = KdbParseSubscriptionOptions(NIL);
	else
		peer->stale_since = peer->options->stale_since;
	MemoryContextSwitchTo(old);

	if (stream != peer->stream)
		note_other_stream(peer);
	peer->stream = stream;
	if (!was_stale && peer->stale_since != 0)
	{
		list_free(peer->old_workers);
		peer->old_workers = NIL;
		note_old_workers(peer);
	}
	if (was_stale && peer->stale_since == 0)
	{
		/* somebody has accepted it: it counts again, from now on */
		peer->excluded = false;
		peer->frontier = 0;
		peer->received = 0;
		peer->seen_until = 0;
		peer->alive_at = KdbTicksNow();
		peer->alive_time = GetCurrentTimestamp();
		peer->alive_lsn = GetXLogInsertRecPtr();
	}
	if (peer->context != NULL)
		MemoryContextDelete(peer->context);
	peer->context = context;
	peer->found = true;
}

static void
remove_missing(void)
{
	ListCell   *lc;

	foreach(lc, KdbPeers)
	{
		KdbPeer    *peer = lfirst(lc);

		if (peer->found)
			continue;
		KdbPeerConnectionClose(&peer->connection);
		if (peer->context != NULL)
			MemoryContextDelete(peer->context);
		pfree(peer);
		KdbPeers = foreach_delete_current(KdbPeers, lc);
	}
}

/* See horizon_private.h. */
void
KdbReadPeers(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	MemoryContext old = CurrentMemoryContext;
	ListCell   *lc;

	foreach(lc, KdbPeers)
		((KdbPeer *) lfirst(lc))->found = false;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	rel = table_open(SubscriptionRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Oid			subid = ((Form_pg_subscription) GETSTRUCT(tuple))->oid;
		KdbPeer    *peer = find_peer(subid);
		KdbSubscriptionOptions *options = KdbTryGetSubscriptionOptions(subid);

		/* If nobody can say, it may be one. */
		if (options != NULL && !KdbResolversActive(&options->resolvers))
			continue;
		update_peer(peer ? peer : add_peer(subid), rel, tuple);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);

	remove_missing();
}

/* ---- measuring ------------------------------------------------------------- */

static bool
is_filtered(const KdbSubscriptionOptions *options, RepOriginId origin)
{
	for (int i = 0; i < options->nfilter_origins; i++)
	{
		if (options->filter_origins[i] == origin)
			return true;
	}
	return false;
}

typedef struct Frontier
{
	RepOriginId origin;
	TimestampTz frontier;
	TimestampTz received;
	uint64		node;
} Frontier;

/* Read an entry "origin:frontier:received:node"; false if it is none. */
static bool
read_frontier(const char **text, Frontier *entry)
{
	long long	frontier,
				received;
	unsigned long long node;
	unsigned int origin;
	int			length;

	if (sscanf(*text, "%u:%lld:%lld:%llu%n", &origin, &frontier, &received, &node, &length) != 4)
		return false;
	entry->origin = (RepOriginId) origin;
	entry->frontier = frontier;
	entry->received = received;
	entry->node = node;
	*text += length;
	*text += strspn(*text, " ");
	return true;
}

/* What a peer says of its own peers.  Times are 0 if one is not known, DT_NOEND if there is none. */
typedef struct Told
{
	TimestampTz forwarded;		/* until when what it passes on to us is complete */
	TimestampTz first_level;	/* until when it has applied what anybody wrote */
	TimestampTz writers;		/* until when those have whose changes it passes on to us */
	bool		of_us;			/* one of its peers is the database of the subscription */
} Told;

static void
read_told(const KdbPeer *peer, const PeerAnswer *answer, Told *told)
{
	const char *p = answer->frontiers;
	uint64		us = KdbNodeIdentityOf(peer->dbid);
	Frontier	entry;

	told->forwarded = told->first_level = told->writers = DT_NOEND;
	told->of_us = false;
	while (*p != '\0' && !answer->frontiers_cut && read_frontier(&p, &entry))
	{
		told->first_level = Min(told->first_level, entry.frontier);
		told->of_us |= entry.node == us;
		if (peer->options->origin == KDB_ORIGIN_NONE ||
			(entry.origin != 0 && is_filtered(peer->options, entry.origin)))
			continue;
		told->forwarded = Min(told->forwarded, entry.frontier);
		told->writers = Min(told->writers, entry.received);
	}
	if (*p == '\0' && !answer->frontiers_cut)
		return;
	if (peer->options->origin != KDB_ORIGIN_NONE)
		told->forwarded = told->writers = 0;
	told->first_level = 0;
}

static void
begin_measurement(KdbPeer *peer, const PeerAnswer *answer)
{
	Told		told;

	read_told(peer, answer, &told);
	peer->held_by_forwarded = told.forwarded < answer->now;
	peer->measured = Min(answer->now, told.forwarded);
	peer->measured_received = Min(answer->now, Min(told.first_level, told.writers));
	peer->measured_seen = told.of_us ? peer->measured_received : 0;
	peer->wait_xid = answer->next_xid;
	strlcpy(peer->measured_server, answer->server, sizeof(peer->measured_server));
}

static void
note_answer(KdbPeer *peer, const PeerAnswer *answer)
{
	if (peer->measured != 0 && strcmp(peer->measured_server, answer->server) != 0)
		forget_measurement(peer);
	if (peer->measured == 0)
		begin_measurement(peer, answer);
	if (XLogRecPtrIsInvalid(peer->target) && answer->snapshot_xmin >= peer->wait_xid)
		peer->target = answer->insert_lsn;
}

static void
note_alive(KdbPeer *peer, KdbTicks now)
{
	peer->alive_at = now;
	peer->alive_time = GetCurrentTimestamp();
	peer->alive_lsn = GetXLogInsertRecPtr();
}

/* It has answered and its stream has come, though both may say that it waits for others. */
static void
end_measurement(KdbPeer *peer, KdbTicks now)
{
	note_alive(peer, now);
	peer->frontier = Max(peer->frontier, peer->measured);
	peer->received = Max(peer->received, peer->measured_received);
	peer->seen_until = Max(peer->seen_until, peer->measured_seen);
	forget_measurement(peer);
}

/*
 * A record that ends at the end of a page has its end there; the insert position
 * is behind the next page's header then, where a stream that waits for more never
 * gets to.
 */
static XLogRecPtr
without_page_header(XLogRecPtr lsn)
{
	uint64		offset = lsn % XLOG_BLCKSZ;

	return offset == SizeOfXLogShortPHD || offset == SizeOfXLogLongPHD ? lsn - offset : lsn;
}

/* Its worker has connected by the connection that it has now: to whom? */
static void
look_at_node(KdbPeer *peer, const KdbStreamProgress *progress)
{
	/* 0 is a stock server, or nothing that can be said (KdbProgressClear) */
	if (progress->node == 0 && (!peer->unconfirmed || XLogRecPtrIsInvalid(progress->durable)))
		return;
	if (peer->node != 0 && progress->node != peer->node)
		forget_known(peer);
	peer->node = progress->node;
	peer->unconfirmed = false;
}

/* Has the one answered who sends the stream?  False also if nobody can say (KdbProgressClear). */
static bool
is_same_server(const KdbPeer *peer, const KdbStreamProgress *progress)
{
	char		server[sizeof(peer->measured_server)] = "";

	if (progress->node != 0)
		snprintf(server, sizeof(server), UINT64_FORMAT "/" UINT64_FORMAT,
				 progress->node, progress->incarnation);
	return progress->node == peer->node && strcmp(server, peer->measured_server) == 0;
}

/* Look how far its stream is; finish the measurement if that is far enough. */
static void
look_at_progress(KdbPeer *peer, KdbTicks now, KdbStreamProgress *progress)
{
	XLogRecPtr	target = without_page_header(peer->target);

	memset(progress, 0, sizeof(*progress));
	if (!KdbGetStreamProgress(peer->subid, target, progress))
		return;
	peer->origin = progress->origin;
	if (progress->stream == peer->stream)
		look_at_node(peer, progress);
	KdbSetStreamSeenUntil(peer->subid, peer->stream, peer->seen_until);
	if (progress->stream != peer->stream)
	{
		progress->durable = InvalidXLogRecPtr;
		return;
	}
	if (progress->durable > peer->durable)
	{
		peer->durable = progress->durable;
		note_alive(peer, now);
	}
	if (XLogRecPtrIsInvalid(target) || XLogRecPtrIsInvalid(progress->durable))
		return;
	peer->other_server = false;
	if (!is_same_server(peer, progress))
	{
		peer->other_server = progress->node != 0 && KdbHasWorkers(peer->subid, true);
		forget_measurement(peer);
		return;
	}
	if (progress->durable < target)
		return;
	peer->streamed = Max(peer->streamed, peer->measured);
	if (progress->tables_ready)
		end_measurement(peer, now);
}

/* ---- judging --------------------------------------------------------------- */

/* Is the time not so much before the wanted one that something must be wrong? */
static bool
is_near(TimestampTz time, TimestampTz wanted)
{
	return time != 0 &&
		(time >= wanted ||
		 !TimestampDifferenceExceeds(wanted, GetCurrentTimestamp(), OK_DELAY));
}

static KdbPeerState
judge(const KdbPeer *peer, TimestampTz wanted, const KdbStreamProgress *progress)
{
	if (peer->stale_since != 0)
		return KDB_PEER_STALE;
	if (!peer->enabled)
		return KDB_PEER_DISABLED;
	if (peer->unreadable != NULL || peer->connection.error[0] != '\0' || peer->other_server)
		return KDB_PEER_UNREACHABLE;
	if (peer->unconfirmed)
		return KdbHasWorkers(peer->subid, false) ? KDB_PEER_STARTING : KDB_PEER_NOT_APPLYING;
	if (is_near(peer->frontier, wanted) && (wanted == 0 || is_near(peer->received, wanted)))
		return KDB_PEER_OK;
	if (!KdbHasWorkers(peer->subid, false))
		return KDB_PEER_NOT_APPLYING;
	if (peer->measured != 0 && XLogRecPtrIsInvalid(peer->target))
		return KDB_PEER_TRANSACTION;
	if (!XLogRecPtrIsInvalid(progress->durable) && !progress->tables_ready)
		return KDB_PEER_COPYING;
	if (peer->held_by_forwarded)
		return KDB_PEER_FORWARDING;
	if (is_near(peer->frontier, wanted) && (peer->measured == 0 || peer->measured_received < wanted))
		return KDB_PEER_RECEIVING;
	if (peer->measured != 0)
		return KDB_PEER_APPLYING;
	return peer->frontier == 0 ? KDB_PEER_STARTING : KDB_PEER_OK;
}

static void
set_state(KdbPeer *peer, KdbPeerState state)
{
	if (state == peer->state)
		return;
	if (state == KDB_PEER_UNREACHABLE && peer->unreadable == NULL)
		ereport(LOG,
				(errmsg("publisher of subscription \"%s\" does not answer: %s",
						peer->name,
						peer->connection.error[0] != '\0' ? peer->connection.error : "another server has answered"),
				 errdetail("Deleted rows are kept until it does, but no longer than \"%s\" and \"%s\" allow.",
						   "krahodb.max_retention", "krahodb.max_retention_size")));
	peer->state = state;
	peer->since = state == KDB_PEER_STALE ? peer->stale_since : GetCurrentTimestamp();
}

/* Has it answered? */
static bool
step_connection(KdbPeer *peer, TimestampTz wanted, TimestampTz asked, KdbTicks now)
{
	PeerPhase	before = peer->connection.phase;
	bool		ask = now >= peer->ask_at &&
		(peer->frontier < Max(wanted, asked) || peer->received < wanted ||
		 peer->connection.error[0] != '\0');
	PeerAnswer	answer;
	bool		answered;

	if (!peer->enabled || peer->stale_since != 0 || peer->unreadable != NULL)
	{
		KdbPeerConnectionClose(&peer->connection);
		peer->connection.error[0] = '\0';
		return false;
	}
	peer->connection.urge = peer->received < wanted;
	answered = KdbPeerConnectionStep(&peer->connection, peer->conninfo, ask, now, &answer);
	if (answered)
	{
		note_answer(peer, &answer);
		peer->ask_at = now + (XLogRecPtrIsInvalid(peer->target) ? ASK_PAUSE : PING_PAUSE);
	}
	if (before >= PHASE_IDLE && peer->connection.phase == PHASE_CLOSED &&
		peer->connection.error[0] != '\0')
		forget_measurement(peer);
	return answered;
}

/* Is all that it had written here, and only a table's copy is waited for? */
static bool
waits_for_copy(const KdbPeer *peer)
{
	return peer->measured != 0 && peer->streamed >= peer->measured && KdbHasWorkers(peer->subid, false);
}

/* See horizon_private.h. */
void
KdbPeerStep(KdbPeer *peer, TimestampTz wanted, TimestampTz asked, KdbTicks now)
{
	KdbStreamProgress progress;
	bool		measuring;
	bool		answered = step_connection(peer, wanted, asked, now);

	measuring = peer->measured != 0;
	look_at_progress(peer, now, &progress);
	if (answered && waits_for_copy(peer))
		note_alive(peer, now);
	if (measuring && peer->measured == 0)
		peer->ask_at = Min(peer->ask_at, now + ASK_PAUSE);

	if (peer->stale_since != 0 && !peer->excluded)
		peer->excluded = old_workers_are_gone(peer);
	/*
	 * What it has received only moves while it answers, and that moves the frontier.  Who cannot
	 * even be asked is not judged.
	 */
	if (peer->unreadable != NULL ||
		(peer->frontier >= wanted && peer->received >= wanted && peer->frontier != 0 && !peer->unconfirmed))
		note_alive(peer, now);
	set_state(peer, judge(peer, wanted, &progress));

	if (peer->stale_since == 0 && now >= peer->mark_at && KdbPeerIsAwayTooLong(peer, now))
		KdbPeerStartMarking(peer);
}
