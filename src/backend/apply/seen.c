/*
 * seen.c
 *		What the writer of the transaction that is applied had seen of other nodes.
 *
 * The publisher sends changes of its seen vector with the transactions; they
 * accumulate here.  One worker has one connection in its life, and a publisher
 * starts each connection with nothing sent, so there is nothing to take over.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "krahodb/compat.h"
#include "krahodb/node.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"

#include "apply_private.h"

static KdbSeenEntry accumulated[KDB_WIRE_MAX_SEEN];

/* ---- the vector ---- */

void
KdbApplySeenReset(void)
{
	KdbApply.seen.nentries = 0;
	KdbApply.seen.entries = accumulated;
}

static KdbSeenEntry *
find_or_add(uint64 node)
{
	int			n = KdbApply.seen.nentries;

	for (int i = 0; i < n; i++)
	{
		if (accumulated[i].node == node)
			return &accumulated[i];
	}
	if (n == KDB_WIRE_MAX_SEEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("publisher's transactions have seen more than %d nodes", KDB_WIRE_MAX_SEEN)));
	KdbApply.seen.nentries++;
	return &accumulated[n];
}

/* The whole vector. */
void
KdbApplySeenSet(const KdbSeenEntry *entries, int n)
{
	Assert(n <= KDB_WIRE_MAX_SEEN);
	memcpy(accumulated, entries, n * sizeof(KdbSeenEntry));
	KdbApply.seen.nentries = n;
}

/* It comes before the first change, or outside transactions for a streamed one. */
void
KdbApplySeen(const KdbWireMessage *message)
{
	if (KdbSpoolActive() ||
		(in_remote_transaction && IsTransactionState() && !am_tablesync_worker()))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg_internal("SEEN message sent out of order")));

	for (int i = 0; i < message->u.seen.nentries; i++)
	{
		KdbSeenEntry entry = KdbWireSeenEntry(message, i);

		*find_or_add(entry.node) = entry;
		elog(DEBUG2, "publisher has seen of node " UINT64_FORMAT " surely %X/%X and maybe %X/%X",
			 entry.node, LSN_FORMAT_ARGS(entry.surely), LSN_FORMAT_ARGS(entry.maybe));
	}
}

const KdbSeen *
KdbSeenOfTransaction(void)
{
	return &KdbApply.seen;
}

bool
KdbApplyWriterSaw(const KdbLocalRow *row)
{
	const KdbSeenEntry *entry;

	if (!row->version_known || row->same_transaction)
		return false;
	entry = KdbSeenFind(&KdbApply.seen, row->version.node);
	return entry != NULL && entry->surely > 0 && KdbSeenPosition(row) <= entry->surely;
}

/* ---- progress of this node ---- */

typedef struct Subscribed
{
	Oid			subid;
	RepOriginId origin;
	bool		synchronised;
} Subscribed;

/* This database's subscriptions; in TopMemoryContext. */
static Subscribed *subscribed = NULL;
static int	nsubscribed = 0;
static bool subscribed_valid = false;
static uint64 subscription_changes = 0;

static void
forget_subscribed(Datum arg, int cacheid, uint32 hashvalue)
{
	subscribed_valid = false;
	subscription_changes++;
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	CacheRegisterSyscacheCallback(SUBSCRIPTIONOID, forget_subscribed, (Datum) 0);
	CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, forget_subscribed, (Datum) 0);
	registered = true;
}

static void
add_subscribed(Oid subid)
{
	char		name[NAMEDATALEN];

	if (subscribed == NULL)
		subscribed = MemoryContextAlloc(TopMemoryContext, sizeof(Subscribed));
	else
		subscribed = repalloc(subscribed, (nsubscribed + 1) * sizeof(Subscribed));
	snprintf(name, sizeof(name), "pg_%u", subid);
	subscribed[nsubscribed].subid = subid;
	subscribed[nsubscribed].origin = replorigin_by_name(name, true);
	subscribed[nsubscribed++].synchronised = true;
}

static void
read_subscriptions(void)
{
	Relation	rel = table_open(SubscriptionRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	nsubscribed = 0;
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_subscription form = (Form_pg_subscription) GETSTRUCT(tuple);

		if (form->subdbid == MyDatabaseId)
			add_subscribed(form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static void
read_table_states(void)
{
	Relation	rel = table_open(SubscriptionRelRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_subscription_rel form = (Form_pg_subscription_rel) GETSTRUCT(tuple);

		if (form->srsubstate == SUBREL_STATE_READY || form->srsubstate == SUBREL_STATE_SYNCDONE)
			continue;
		for (int i = 0; i < nsubscribed; i++)
		{
			if (subscribed[i].subid == form->srsubid)
				subscribed[i].synchronised = false;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/* By transactions that came, or by what the stream has passed without any. */
static XLogRecPtr
applied(const Subscribed *subscription)
{
	return Max(replorigin_get_progress(subscription->origin, false),
			   KdbStreamDurable(subscription->subid));
}

/*
 * Another worker moves its progress before its rows become visible.  For the row
 * in question that does no harm: it has been looked at and locked by whoever asks,
 * so a transaction that writes it is either over, or has still to wait.
 */
uint64
KdbSeenProgress(uint64 node)
{
	uint64		progress = UINT64_MAX;
	bool		found = false;

	if (node == KdbLocalNodeIdentity())
		return UINT64_MAX;
	register_callbacks();
	while (!subscribed_valid)
	{
		uint64		changes = subscription_changes;

		read_subscriptions();
		read_table_states();
		subscribed_valid = changes == subscription_changes;
	}
	for (int i = 0; i < nsubscribed; i++)
	{
		const Subscribed *subscription = &subscribed[i];

		if (KdbOriginNode(subscription->origin) != node)
			continue;
		found = true;
		progress = Min(progress, subscription->synchronised ? applied(subscription) : 0);
	}
	return found ? progress : 0;
}

#ifdef KRAHODB_FAULT_POINTS

/* For tests: KdbSeenProgress of a node, as text; the node as text too. */
KDB_SQL_FUNCTION(krahodb_test_seen_progress);

Datum
krahodb_test_seen_progress(PG_FUNCTION_ARGS)
{
	uint64		node = strtou64(text_to_cstring(PG_GETARG_TEXT_PP(0)), NULL, 10);

	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT, KdbSeenProgress(node))));
}

#endif							/* KRAHODB_FAULT_POINTS */
