/*
 * status.c
 *		What the horizon worker shows to others.
 *
 *	shared memory			for view krahodb.horizon (monitor/horizon_view.c)
 *	krahodb.frontiers		a setting that cannot be set, for subscribers to this
 *							server: it can be read in any database and without
 *							an extension
 *
 * krahodb.frontiers is "origin:frontier:received:node ...", for each peer the local
 * origin id of its changes (0 if that is not known yet), its frontier and what it has
 * received (peers.c), in microseconds (0 likewise), and its identity.  Who
 * gets changes of that origin from this server gets none that are older than
 * the frontier any more, and what comes was written by who had applied all that was
 * received.  Empty if there are no peers; "0:0:0:0" as long as nobody knows
 * whether there are, and if they cannot all be told.
 *
 * Whoever reads it takes it that nothing will be committed here at an earlier time
 * than now.  The clock rule sees to that once it has been told of the time.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "krahodb/clock.h"
#include "krahodb/origin_nodes.h"
#include "horizon_private.h"

const char *
KdbPeerStateName(KdbPeerState state)
{
	static const char *const names[KDB_PEER_STATES] = {
		[KDB_PEER_STARTING] = "starting",
		[KDB_PEER_OK] = "ok",
		[KDB_PEER_APPLYING] = "applying",
		[KDB_PEER_COPYING] = "copying tables",
		[KDB_PEER_TRANSACTION] = "transaction on peer",
		[KDB_PEER_FORWARDING] = "peer waits for others",
		[KDB_PEER_RECEIVING] = "peer is behind",
		[KDB_PEER_NOT_APPLYING] = "not applying",
		[KDB_PEER_UNREACHABLE] = "unreachable",
		[KDB_PEER_DISABLED] = "disabled",
		[KDB_PEER_STALE] = "stale",
	};

	return names[state];
}

static void
append_reason(StringInfo reason, const KdbPeer *peer)
{
	switch (peer->state)
	{
		case KDB_PEER_OK:
			break;
		case KDB_PEER_STARTING:
			appendStringInfoString(reason, "the publisher has not been asked yet");
			break;
		case KDB_PEER_APPLYING:
			appendStringInfo(reason, "waiting until the subscription has applied everything before %X/%X; it has come to %X/%X",
							 LSN_FORMAT_ARGS(peer->target), LSN_FORMAT_ARGS(peer->durable));
			break;
		case KDB_PEER_COPYING:
			appendStringInfoString(reason, "tables are being synchronised, see pg_subscription_rel");
			break;
		case KDB_PEER_TRANSACTION:
			appendStringInfo(reason, "a transaction older than %llu is running or prepared on the publisher, see pg_stat_activity and pg_prepared_xacts there",
							 (unsigned long long) peer->wait_xid);
			break;
		case KDB_PEER_FORWARDING:
			appendStringInfoString(reason, "the publisher passes on changes of others and waits for them, see krahodb.horizon there");
			break;
		case KDB_PEER_RECEIVING:
			appendStringInfoString(reason, "the publisher has not applied yet what other nodes, this one included, have written, see krahodb.horizon there");
			break;
		case KDB_PEER_NOT_APPLYING:
			appendStringInfoString(reason, "the subscription's apply worker is not running, see the server log");
			break;
		case KDB_PEER_UNREACHABLE:
			appendStringInfoString(reason, peer->unreadable ? peer->unreadable :
								   peer->connection.error[0] != '\0' ? peer->connection.error :
								   "another server has answered than the one whose changes come");
			break;
		case KDB_PEER_DISABLED:
			appendStringInfoString(reason, "the subscription is disabled");
			break;
		case KDB_PEER_STALE:
			appendStringInfo(reason, "it was away for too long and must be synchronised again%s",
							 peer->excluded ? "" : "; its worker is still stopping");
			break;
	}
}

static void
publish_peer(KdbSharedPeer *shared, const KdbPeer *peer)
{
	StringInfoData reason;

	initStringInfo(&reason);
	append_reason(&reason, peer);
	shared->subid = peer->subid;
	shared->origin = peer->origin != InvalidRepOriginId ? peer->origin : peer->options->replication_origin_id;
	shared->state = peer->state;
	shared->excluded = peer->excluded;
	shared->since = peer->since;
	shared->alive = peer->alive_time;
	shared->frontier = peer->frontier;
	shared->streamed = peer->streamed;
	shared->received = peer->received;
	strlcpy(shared->reason, reason.data, sizeof(shared->reason));
	pfree(reason.data);
}

/* See horizon_private.h. */
void
KdbPublishPeers(void)
{
	int			n = 0;
	bool		warn;
	ListCell   *lc;

	LWLockAcquire(KdbHorizon->lock, LW_EXCLUSIVE);
	foreach(lc, KdbPeers)
	{
		if (n < KdbHorizon->max_peers)
			publish_peer(&KdbHorizon->peers[n++], lfirst(lc));
	}
	KdbHorizon->npeers = n;
	KdbHorizon->published = true;
	warn = n < list_length(KdbPeers) && !KdbHorizon->incomplete;
	KdbHorizon->incomplete = n < list_length(KdbPeers);
	LWLockRelease(KdbHorizon->lock);
	if (warn)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("more than %d subscriptions resolve conflicts", KdbHorizon->max_peers),
				 errdetail("Other nodes keep deleted rows, and cannot copy tables from here, until there are fewer."),
				 errhint("You might need to increase max_logical_replication_workers.")));
}

/* See horizon.h. */
const char *
KdbShowFrontiers(void)
{
	static const char *const not_known = "0:0:0:0";
	static char buffer[KDB_FRONTIERS_LENGTH];
	bool		known;
	size_t		len = 0;

	buffer[0] = '\0';
	if (KdbHorizon == NULL)
		return buffer;
	KdbClockReached();

	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	known = KdbHorizon->published || KdbHorizon->nprogress == 0;
	for (int i = 0; i < KdbHorizon->npeers && len < sizeof(buffer); i++)
	{
		const KdbSharedPeer *peer = &KdbHorizon->peers[i];

		if (peer->excluded)
			continue;
		len += snprintf(buffer + len, sizeof(buffer) - len, "%s%u:" INT64_FORMAT ":" INT64_FORMAT ":" UINT64_FORMAT,
						len == 0 ? "" : " ", peer->origin, peer->frontier, peer->received,
						KdbOriginNode(peer->origin));
	}
	known = known && !KdbHorizon->incomplete && len < sizeof(buffer);
	LWLockRelease(KdbHorizon->lock);
	return known ? buffer : not_known;
}

/* See horizon.h. */
const char *
KdbShowFrontiersNow(void)
{
	if (KdbHorizon != NULL)
	{
		pg_atomic_write_u64(&KdbHorizon->asked_at, (uint64) GetCurrentTimestamp());
		KdbHorizonWake();
	}
	return KdbShowFrontiers();
}
