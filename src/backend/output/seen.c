/*
 * seen.c
 *		What the writers of the transactions that are sent had seen of other nodes.
 *
 * A KrahoDB subscriber gets with each transaction a lower and an upper bound, per
 * node, of what had been applied here when the transaction was written; see seen.h
 * and doc/internals/seen.md, which also argues why this is right.  In short:
 *
 * - The engine asks the origin filter about each record of an applied transaction,
 *	 its commit record included, in the order of the log.  Commit records carry the
 *	 end of the transaction in its origin's stream.  So what was noted when a
 *	 transaction's own commit (or prepare) record has been decoded is what had been
 *	 committed here before it.
 * - A row that both an applied and a local transaction wrote was locked by the first
 *	 until behind its commit record.  So of two commit records the first belongs to
 *	 who wrote the row first.
 *
 * LOWER BOUND ("surely"): the newest commit noted.  Commits before the start of the
 * session were not read; instead the progress at the start counts from the point of
 * the log on where the session started, because it stands in commit records before
 * that.  While a subscription here is still copying tables nothing is sure: its
 * progress does not hold for those.
 *
 * UPPER BOUND ("maybe"): the progress at the start of the session, the commits noted,
 * and what has been noted as seen ahead of the stream (seen_ahead.c).
 *
 * Only origins that this session filters out take part.  What is passed on is in
 * this very stream, in order, and needs no telling.
 *
 * Nor does what other databases of this server have applied; records of theirs are not asked about.
 *
 * COST.  Without a change since the last vector, two comparisons per transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/rmgr.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "catalog/pg_subscription_rel.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"

#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"
#include "krahodb/wire.h"
#include "output_private.h"

#define LOOK_AGAIN_MS	1

/* What was applied here by the subscription of an origin. */
typedef struct SeenOrigin
{
	RepOriginId origin;
	uint64		node;			/* 0: not known so far */
	XLogRecPtr	started;		/* progress at the start of the session; 0 when it is in surely */
	XLogRecPtr	surely;
	XLogRecPtr	maybe;
} SeenOrigin;

struct KdbOutputSeen
{
	MemoryContext context;
	int			norigins;
	int			max_origins;
	SeenOrigin *origins;
	XLogRecPtr	start;			/* what was in "started" was committed before this */
	bool		start_passed;
	bool		sure;			/* of anything, in the last vector */
	bool		changed;		/* since the last vector */
	uint64		ahead_generation;

	int			nsent;
	KdbSeenEntry sent[KDB_WIRE_MAX_SEEN];	/* by node */
};

/*
 * Are all tables of this database's subscriptions synchronised?  As of the
 * transaction that is being decoded: invalidations come in its order.  But a transaction
 * that began before they changed has a snapshot from before, at least for its first changes.
 */
static bool tables_known = false;
static bool tables_synchronised = false;
static XLogRecPtr tables_since = InvalidXLogRecPtr; /* have changed before */
static bool tables_callback_registered = false;

static void
forget_tables(Datum arg, int cacheid, uint32 hashvalue)
{
	tables_known = false;
}

/* Needs a catalog snapshot, and the lock. */
static bool
all_tables_synchronised(void)
{
	Relation	rel = table_open(SubscriptionRelRelationId, NoLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	bool		result = true;

	while (result && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		char		state = ((Form_pg_subscription_rel) GETSTRUCT(tuple))->srsubstate;

		result = state == SUBREL_STATE_READY || state == SUBREL_STATE_SYNCDONE;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Look at the tables again if they have changed; needs a catalog snapshot.  ALTER
 * SUBSCRIPTION ... REFRESH keeps the catalog locked while it talks to another node, which
 * may do the same and wait for this walsender to end; and who waits for a lock does not
 * notice that his client has gone.  So nobody is waited for: nothing is sure then.
 */
static void
check_tables(KdbOutputSeen *seen, const ReorderBufferTXN *txn)
{
	bool		before = tables_synchronised;

	if (tables_known || txn->first_lsn < tables_since)
		return;
	if (!ConditionalLockRelationOid(SubscriptionRelRelationId, AccessShareLock))
	{
		seen->changed = true;
		return;
	}
	tables_known = true;
	tables_synchronised = all_tables_synchronised();
	if (tables_synchronised != before)
		seen->changed = true;
}

static SeenOrigin *
add_origin(KdbOutputSeen *seen, RepOriginId origin, uint64 node)
{
	SeenOrigin *entry;

	if (seen->norigins == seen->max_origins)
	{
		seen->max_origins = Max(8, seen->max_origins * 2);
		if (seen->origins == NULL)
			seen->origins = MemoryContextAlloc(seen->context,
											   seen->max_origins * sizeof(SeenOrigin));
		else
			seen->origins = repalloc(seen->origins, seen->max_origins * sizeof(SeenOrigin));
	}
	entry = &seen->origins[seen->norigins++];
	memset(entry, 0, sizeof(*entry));
	entry->origin = origin;
	entry->node = node;
	return entry;
}

/*
 * Has the publisher of an origin told who it is meanwhile?  What was noted before
 * is taken over, but nothing of it is sure: it may be another node's.
 */
static void
settle_node(SeenOrigin *entry)
{
	if (entry->node != 0)
		return;
	entry->node = KdbOriginNode(entry->origin);
	if (entry->node != 0)
	{
		entry->surely = InvalidXLogRecPtr;
		entry->started = InvalidXLogRecPtr;
	}
}

/* The entry of the origin for the node that it stands for now. */
static SeenOrigin *
find_origin(KdbOutputSeen *seen, RepOriginId origin)
{
	uint64		node = KdbOriginNode(origin);

	for (int i = 0; i < seen->norigins; i++)
	{
		SeenOrigin *entry = &seen->origins[i];

		if (entry->origin != origin)
			continue;
		settle_node(entry);
		if (entry->node == node)
			return entry;
	}
	return add_origin(seen, origin, node);
}

/*
 * Wait for commits that are between their log record and moving the progress of
 * their origin.
 */
static void
wait_for_commits(void)
{
	int			n;
	VirtualTransactionId *committing = GetVirtualXIDsDelayingChkpt(&n, DELAY_CHKPT_START);

	while (n > 0 && HaveVirtualXIDsDelayingChkpt(committing, n, DELAY_CHKPT_START))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_AGAIN_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(committing);
}

/* At the start of a session that is framed; allocates in parent. */
void
KdbOutputSeenInit(LogicalDecodingContext *ctx, KdbOutput *output, MemoryContext parent)
{
	KdbOutputSeen *seen = MemoryContextAllocZero(parent, sizeof(KdbOutputSeen));

	seen->context = parent;
	seen->changed = true;
	tables_known = false;
	tables_since = ctx->slot->data.confirmed_flush;
	if (!tables_callback_registered)
	{
		CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, forget_tables, (Datum) 0);
		tables_callback_registered = true;
	}

	wait_for_commits();
	for (uint32 origin = 1; origin < DoNotReplicateId; origin++)
	{
		XLogRecPtr	progress = replorigin_get_progress((RepOriginId) origin, false);
		uint64		node = KdbOriginNode((RepOriginId) origin);

		if (progress != InvalidXLogRecPtr && !KdbOriginIsElsewhere((RepOriginId) origin))
		{
			SeenOrigin *entry = add_origin(seen, (RepOriginId) origin, node);

			entry->started = progress;
			entry->maybe = progress;
		}
	}
	seen->start = GetXLogInsertRecPtr();
	output->seen = seen;
}

static bool
parse_commit(XLogReaderState *record, xl_xact_parsed_commit *parsed)
{
	uint8		info;

	if (XLogRecGetRmid(record) != RM_XACT_ID)
		return false;
	info = XLogRecGetInfo(record) & XLOG_XACT_OPMASK;
	if (info != XLOG_XACT_COMMIT && info != XLOG_XACT_COMMIT_PREPARED)
		return false;
	ParseCommitRecord(XLogRecGetInfo(record), (xl_xact_commit *) XLogRecGetData(record), parsed);
	return true;
}

/*
 * Does the transaction that is committed change states of tables?  The callback above does
 * not tell: it is called as well for what others commit while this is being decoded.
 */
static bool
changes_tables(const xl_xact_parsed_commit *parsed)
{
	for (int i = 0; i < parsed->nmsgs; i++)
	{
		if (parsed->msgs[i].id == SUBSCRIPTIONRELMAP && parsed->msgs[i].cc.dbId == MyDatabaseId)
			return true;
	}
	return false;
}

/*
 * The engine has asked the origin filter about the record that it is decoding,
 * which has this origin.
 */
void
KdbOutputSeenNote(LogicalDecodingContext *ctx, RepOriginId origin)
{
	KdbOutputSeen *seen = KdbOutputOf(ctx)->seen;
	xl_xact_parsed_commit parsed;
	XLogRecPtr	position;
	SeenOrigin *entry;

	if (!parse_commit(ctx->reader, &parsed))
		return;
	if (changes_tables(&parsed))
		tables_since = Max(tables_since, ctx->reader->EndRecPtr);
	position = (parsed.xinfo & XACT_XINFO_HAS_ORIGIN) ? parsed.origin_lsn : InvalidXLogRecPtr;

	/* What synchronisation workers commit is at no position of the main stream. */
	if (position == InvalidXLogRecPtr || origin == InvalidRepOriginId || origin == DoNotReplicateId)
		return;
	if (KdbOriginNode(origin) != 0 && ctx->reader->ReadRecPtr < KdbOriginNodeSince(origin))
		return;					/* of whom the origin stood for before; see KdbSeenKeepProgress */
	entry = find_origin(seen, origin);
	entry->surely = Max(entry->surely, position);
	entry->maybe = Max(entry->maybe, position);
	seen->changed = true;
}

/* ---- the vector ---- */

/* What was known at the start has been committed before lsn. */
static void
pass_start(KdbOutputSeen *seen, XLogRecPtr lsn)
{
	if (seen->start_passed || lsn < seen->start)
		return;
	seen->start_passed = true;
	seen->changed = true;
	for (int i = 0; i < seen->norigins; i++)
	{
		SeenOrigin *entry = &seen->origins[i];

		entry->surely = Max(entry->surely, entry->started);
	}
}

static int
compare_entries(const void *a, const void *b)
{
	uint64		node_a = ((const KdbSeenEntry *) a)->node;
	uint64		node_b = ((const KdbSeenEntry *) b)->node;

	return node_a < node_b ? -1 : node_a > node_b;
}

/*
 * Sort by node and join the entries of each: several subscriptions to one node have
 * surely applied what the least of them has.  Returns their number.
 */
static int
join_entries(KdbSeenEntry *entries, int n)
{
	int			joined = 0;

	qsort(entries, n, sizeof(KdbSeenEntry), compare_entries);
	for (int i = 1; i < n; i++)
	{
		if (entries[i].node != entries[joined].node)
			entries[++joined] = entries[i];
		else
		{
			entries[joined].surely = Min(entries[joined].surely, entries[i].surely);
			entries[joined].maybe = Max(entries[joined].maybe, entries[i].maybe);
		}
	}
	return n > 0 ? joined + 1 : 0;
}

static void
raise_maybe(KdbSeenEntry *entries, int *n, int nstreams, const KdbSeenAheadEntry *ahead)
{
	uint64		node = ahead->node != 0 ? ahead->node : KdbOriginNode((RepOriginId) ahead->origin);

	for (int i = 0; i < nstreams; i++)
	{
		if (entries[i].node == node)
		{
			entries[i].maybe = Max(entries[i].maybe, ahead->lsn);
			return;
		}
	}
	entries[*n].node = node;
	entries[*n].surely = 0;
	entries[*n].maybe = ahead->lsn;
	(*n)++;
}

/* All entries, palloc'd; returns their number. */
static int
build_vector(LogicalDecodingContext *ctx, KdbSeenEntry **result)
{
	KdbOutputSeen *seen = KdbOutputOf(ctx)->seen;
	KdbSeenAheadEntry *ahead;
	int			nahead = KdbSeenAheadList(&ahead);
	KdbSeenEntry *entries = palloc((seen->norigins + nahead) * sizeof(KdbSeenEntry) + 1);
	int			nstreams;
	int			n = 0;

	for (int i = 0; i < seen->norigins; i++)
	{
		SeenOrigin *entry = &seen->origins[i];

		settle_node(entry);
		if (!KdbOriginIsFiltered(&KdbOutputOf(ctx)->parameters, entry->origin))
			continue;
		entries[n].node = entry->node;
		entries[n].surely = seen->sure && entry->node != 0 ? entry->surely : 0;
		entries[n++].maybe = entry->maybe;
	}
	nstreams = n = join_entries(entries, n);
	for (int i = 0; i < nahead; i++)
	{
		if (ahead[i].node != 0 ||
			KdbOriginIsFiltered(&KdbOutputOf(ctx)->parameters, (RepOriginId) ahead[i].origin))
			raise_maybe(entries, &n, nstreams, &ahead[i]);
	}
	n = join_entries(entries, n);
	if (n > KDB_WIRE_MAX_SEEN)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot send changes of more than %d nodes", KDB_WIRE_MAX_SEEN)));
	pfree(ahead);
	*result = entries;
	return n;
}

/* Keep those that differ from what was sent last; returns their number. */
static int
keep_changed(const KdbOutputSeen *seen, KdbSeenEntry *entries, int n)
{
	int			kept = 0;

	for (int i = 0; i < n; i++)
	{
		const KdbSeenEntry *sent = bsearch(&entries[i], seen->sent, seen->nsent,
										   sizeof(KdbSeenEntry), compare_entries);

		if (sent == NULL || sent->surely != entries[i].surely || sent->maybe != entries[i].maybe)
			entries[kept++] = entries[i];
	}
	return kept;
}

static void
remember_sent(KdbOutputSeen *seen, const KdbSeenEntry *entries, int n)
{
	for (int i = 0; i < n; i++)
	{
		KdbSeenEntry *sent = bsearch(&entries[i], seen->sent, seen->nsent,
									 sizeof(KdbSeenEntry), compare_entries);

		if (sent == NULL)
		{
			if (seen->nsent == KDB_WIRE_MAX_SEEN)
				elog(ERROR, "too many nodes in a seen vector");
			seen->sent[seen->nsent++] = entries[i];
			qsort(seen->sent, seen->nsent, sizeof(KdbSeenEntry), compare_entries);
		}
		else
			*sent = entries[i];
	}
}

static void
send_entries(LogicalDecodingContext *ctx, KdbMessagePosition position,
			 const KdbSeenEntry *entries, int n)
{
	StringInfo	out = KdbMessageStart(ctx, position);

	enlargeStringInfo(out, KDB_WIRE_SEEN_SIZE(n));
	out->len += KdbWireSeenWrite(out->data + out->len, entries, n);
	out->data[out->len] = '\0';
	KdbMessageEnd(ctx, position);
}

/*
 * A part of a streamed transaction begins.  At its end there is no catalog snapshot, so the
 * tables are looked at here; if they change behind this, that is known when it ends.
 */
void
KdbOutputSeenLook(LogicalDecodingContext *ctx, const ReorderBufferTXN *txn)
{
	KdbOutputSeen *seen = KdbOutputOf(ctx)->seen;

	if (seen != NULL)
		check_tables(seen, txn);
}

/*
 * Send what has changed of the vector, for the transaction that is decoded now
 * and whose commit or prepare record is known.  in_transaction: there is a
 * catalog snapshot.  More messages of the transaction must follow.
 */
void
KdbSendSeen(LogicalDecodingContext *ctx, const ReorderBufferTXN *txn, bool in_transaction)
{
	KdbOutputSeen *seen = KdbOutputOf(ctx)->seen;
	uint64		generation;
	bool		sure;
	KdbSeenEntry *entries;
	int			n;

	if (seen == NULL)
		return;
	if (!tables_known)
	{
		if (in_transaction)
			check_tables(seen, txn);
		else
			seen->changed = true;
	}
	sure = tables_known && tables_synchronised && txn->first_lsn >= tables_since;
	seen->changed |= sure != seen->sure;
	seen->sure = sure;
	pass_start(seen, txn->final_lsn);
	generation = KdbSeenAheadGeneration();
	if (!seen->changed && generation == seen->ahead_generation)
		return;

	n = build_vector(ctx, &entries);
	n = keep_changed(seen, entries, n);
	if (n > 0)
	{
		send_entries(ctx, KDB_MESSAGE_INNER, entries, n);
		remember_sent(seen, entries, n);
	}
	pfree(entries);

	/* while the tables are not known it is to be looked at again */
	seen->changed = !tables_known;
	seen->ahead_generation = generation;
}
