/*
 * converge_facts.c
 *		What this node knows of a key and of unique values, for the rules.
 *
 * A live row is found by the identity index, with whoever is changing it waited
 * for.  Its version is that of the transaction that wrote it, unless a record of
 * its truth says otherwise.  A dead key's version is the greatest of: the ends of
 * its dead tuples, each by the record of its truth; and the records of its death.
 *
 * Claims are those of all tuples that a unique index still finds, dead ones
 * too, and the recorded ones.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"

#include "krahodb/clock.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/node.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"

#include "converge_private.h"

/* See converge_private.h. */
void
KdbKeyOfRow(KdbApplyTarget *target, TupleTableSlot *slot, KdbRecordedKey *key)
{
	key->n = target->nkeys;
	key->operators = target->own_key_equality ? target->key_template : NULL;
	for (int i = 0; i < target->nkeys; i++)
	{
		AttrNumber	attnum = target->key_attnum[i];

		key->values[i] = slot_getattr(slot, attnum, &key->isnull[i]);
		key->types[i] = TupleDescAttr(target->tupdesc, attnum - 1)->atttypid;
		key->collations[i] = target->key_template[i].sk_collation;
		key->columns[i] = attnum;
	}
}

/* What this transaction has written has its version. */
static void
give_own_version(KdbConverge *c, KdbLocalRow *local)
{
	if (!local->same_transaction)
		return;
	local->version = c->context->version;
	local->version_known = true;
}

/* The records of a key, as far as they say something of what the heap shows. */
typedef struct Truth
{
	KdbConverge *c;
	bool		live;			/* there is a row: */
	KdbVersion	shown;			/* by it; {0, 0}: nothing */
	List	   *killed;			/* of KdbVersionRecord */
	KdbLocalRow dead;			/* newest DEAD record */
} Truth;

static void
take_version(KdbLocalRow *row, const KdbVersionRecord *record)
{
	row->version = record->version;
	row->version_known = record->version.ts != 0 || record->version.node != 0;
	row->same_transaction = record->own;
}

static void
collect_truth(void *arg, const KdbVersionRecord *record)
{
	Truth	   *truth = arg;

	switch (record->kind)
	{
		case KDB_RECORD_TRUTH:
			if (truth->live && KdbVersionCompare(truth->shown, (KdbVersion){0, 0}) != 0 &&
				KdbVersionCompare(record->shown, truth->shown) == 0)
			{
				KdbVersionRecord *copy = palloc(sizeof(KdbVersionRecord));

				*copy = *record;
				truth->killed = lappend(truth->killed, copy);
			}
			break;
		case KDB_RECORD_KILLED:
			if (!truth->live)
			{
				KdbVersionRecord *copy = palloc(sizeof(KdbVersionRecord));

				*copy = *record;
				truth->killed = lappend(truth->killed, copy);
			}
			break;
		case KDB_RECORD_DEAD:
			if (truth->dead.state == KDB_ROW_DEAD &&
				KdbVersionCompare(record->version, truth->dead.version) <= 0)
				break;
			truth->dead.state = KDB_ROW_DEAD;
			take_version(&truth->dead, record);
			truth->dead.origin = record->version.node == KdbLocalNodeIdentity() ?
				InvalidRepOriginId : KdbApply.origin;
			break;
		case KDB_RECORD_CLAIM:
		case KDB_RECORD_FLOOR:
		case KDB_RECORD_AGAIN:
		case KDB_RECORD_REWRITTEN:
		case KDB_RECORD_MERGED:
		case KDB_RECORD_SEALED:
			break;
	}
}

/* See converge_private.h. */
void
KdbTrueVersion(KdbConverge *c, KdbApplyTarget *target, TupleTableSlot *slot,
			   KdbLocalRow *local)
{
	Truth		truth = {.c = c, .live = true};
	KdbRecordedKey key;
	ListCell   *lc;

	truth.shown = KdbTargetRowVersion(target, slot, local);
	give_own_version(c, local);
	if (local->same_transaction)
		truth.shown = local->version;
	if (!KdbVersionRecordsAny(target->relid, &target->records))
		return;
	KdbKeyOfRow(target, slot, &key);
	KdbVersionRecordsOfKey(target->relid, &key, collect_truth, &truth);
	foreach(lc, truth.killed)
	{
		const KdbVersionRecord *record = lfirst(lc);

		if (lc == list_head(truth.killed) ||
			KdbVersionCompare(record->version, local->version) > 0)
			take_version(local, record);
		local->rewritten = false;
	}
}

/* What a deletion that the heap shows counts as. */
static void
true_end(void *arg, KdbLocalRow *candidate)
{
	Truth	   *truth = arg;
	KdbVersion	shown;
	bool		first = true;
	ListCell   *lc;

	give_own_version(truth->c, candidate);
	shown = candidate->version;
	foreach(lc, truth->killed)
	{
		const KdbVersionRecord *record = lfirst(lc);

		if (KdbVersionCompare(record->shown, shown) != 0)
			continue;
		if (first || KdbVersionCompare(record->version, candidate->version) > 0)
			candidate->version = record->version;
		first = false;
	}
}

/* See converge_private.h. */
bool
KdbTrueDeath(KdbConverge *c, KdbApplyTarget *target, TupleTableSlot *search,
			 KdbLocalRow *local)
{
	Truth		truth = {.c = c};
	KdbRecordedKey key;
	bool		found;

	if (KdbVersionRecordsAny(target->relid, &target->records))
	{
		KdbKeyOfRow(target, search, &key);
		KdbVersionRecordsOfKey(target->relid, &key, collect_truth, &truth);
	}
	found = KdbFindTrueDeath(target, search, local, true_end, &truth);
	if (truth.dead.state == KDB_ROW_DEAD &&
		(!found || KdbVersionCompare(truth.dead.version, local->version) > 0))
	{
		*local = truth.dead;
		found = true;
	}
	return found;
}

/* See converge_private.h. */
bool
KdbKilledBefore(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key)
{
	Truth		truth = {.c = c};
	ListCell   *lc;

	if (!KdbVersionRecordsAny(target->relid, &target->records))
		return false;
	KdbVersionRecordsOfKey(target->relid, key, collect_truth, &truth);
	foreach(lc, truth.killed)
	{
		const KdbVersionRecord *record = lfirst(lc);

		if (KdbVersionCompare(record->shown, c->context->version) == 0)
			return true;
	}
	return false;
}

/* Keep the row that gives the new one what was not sent. */
static void
keep_old_row(KdbConverge *c, TupleTableSlot *row)
{
	if (c->old_row == NULL)
		c->old_row = MakeSingleTupleTableSlot(c->sides[KDB_KEY_OLD].target->tupdesc,
											  &TTSOpsHeapTuple);
	ExecCopySlot(c->old_row, row);
}

/*
 * Most keys that are inserted have never been here, which one probe of the index
 * tells.  Whoever inserts it at this moment is noticed by the insert.
 */
static bool
is_new_key(KdbConverge *c, KdbConvergeSide *side)
{
	return c->operation == KDB_INSERT && c->clashes == 0 &&
		!KdbKeyHasTuples(side->target, side->key);
}

/* See converge_private.h. */
void
KdbStartLook(KdbConverge *c)
{
	c->clock = KdbClockMark();
	c->events = pg_atomic_read_u64(&KdbShared->merge_events);
	pg_read_barrier();
	c->looking = true;
}

static void
find(KdbConverge *c, KdbMergeKey which, KdbLocalRow *local)
{
	KdbConvergeSide *side = KdbSideOf(c, which);
	bool		new_key;

	memset(local, 0, sizeof(KdbLocalRow));
	KdbMergedForget(c);
	if (!c->looking && KdbLooksForNewer(c))
		KdbStartLook(c);
	c->looking = false;
	new_key = is_new_key(c, side);
	side->live = !new_key && KdbFindRow(side->target, side->key);
	if (new_key && !KdbVersionRecordsAny(side->target->relid, &side->target->records))
		local->state = KDB_ROW_ABSENT;
	else if (side->live)
	{
		side->tid = side->target->local->tts_tid;
		KdbTrueVersion(c, side->target, side->target->local, local);
		if (which == KDB_KEY_OLD && c->key_changed)
			keep_old_row(c, side->target->local);
	}
	else if (!KdbTrueDeath(c, side->target, side->key, local))
		local->state = KDB_ROW_ABSENT;
}

/*
 * Does the write do the same whatever else is applied here first?  It inserts a key that
 * is not here, or writes over a row that it follows.
 */
static bool
is_plain(KdbConverge *c, KdbMergeKey which, const KdbLocalRow *local)
{
	bool		inserts = c->operation == KDB_INSERT || (c->key_changed && which == KDB_KEY_NEW);

	if (inserts || local->state != KDB_ROW_LIVE)
		return inserts && local->state == KDB_ROW_ABSENT;
	if (local->same_transaction)
		return true;
	return local->version_known &&
		KdbVersionCompare(c->context->version, local->version) > 0 &&
		(local->version.node == c->context->version.node || KdbApplyWriterSaw(local));
}

/* See merge.h. */
void
KdbFactFind(void *arg, KdbMergeKey which, KdbLocalRow *local)
{
	KdbConverge *c = arg;

	do
	{
		find(c, which, local);
	} while (!is_plain(c, which, local) && KdbLaneSettle());
}

/*
 * Deleting a row of a table with triggers takes the slot.
 */
bool
KdbSideIsLocal(KdbConvergeSide *side)
{
	KdbApplyTarget *target = side->target;

	if (!TTS_EMPTY(target->local) && ItemPointerEquals(&target->local->tts_tid, &side->tid))
		return true;
	return KdbFindRow(target, side->key) &&
		ItemPointerEquals(&target->local->tts_tid, &side->tid);
}

/* See merge.h. */
bool
KdbFactUniqueChanges(void *arg, KdbRowPart part)
{
	KdbConverge *c = arg;
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;

	return KdbUniqueDependsOn(target, KdbChangedColumns(target->tupdesc, target->local, KdbNewRow(c, part)));
}

/* Do two rows have the same key? */
static bool
same_key(KdbApplyTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	for (int i = 0; i < target->nkeys; i++)
	{
		ScanKeyData *key = &target->key_template[i];
		bool		a_null;
		bool		b_null;
		Datum		a_value = slot_getattr(a, target->key_attnum[i], &a_null);
		Datum		b_value = slot_getattr(b, target->key_attnum[i], &b_null);

		if (a_null || b_null ||
			!DatumGetBool(FunctionCall2Coll(&key->sk_func, key->sk_collation,
											a_value, b_value)))
			return false;
	}
	return true;
}

typedef enum WhichHolders
{
	HOLDERS_ALL,
	HOLDERS_OLDER,				/* not greater than the version */
	HOLDERS_NEWER
} WhichHolders;

typedef struct HolderSearch
{
	KdbConverge *c;
	KdbVersion	version;
	WhichHolders which;
} HolderSearch;

static int
order_to(KdbVersion version, const KdbLocalRow *row)
{
	return row->version_known ? KdbVersionCompare(version, row->version) : 1;
}

/*
 * Does an older row keep a deferrable value, until the end of the transaction perhaps (converge_deferred.c)?
 */
static bool
may_keep(KdbConverge *c, KdbVersion version, const KdbLocalRow *holder)
{
	KdbMergeKeeping keeping = KdbMergeMayKeep(&KdbConvergeOps, c, c->context, version, holder, c->at_end);

	if (keeping == KDB_KEEPS_FOR_NOW)
		KdbNoteKeptHolder(c);
	return keeping != KDB_KEEPS_NOT;
}

static bool
is_in_the_way(void *arg, Relation index, TupleTableSlot *existing)
{
	HolderSearch *search = arg;
	KdbConvergeSide *side = KdbSideOf(search->c, KDB_KEY_NEW);
	KdbLocalRow holder = {0};

	if (same_key(side->target, existing, side->key))
		return false;
	if (index->rd_index->indimmediate && search->which == HOLDERS_ALL)
		return true;
	KdbTrueVersion(search->c, side->target, existing, &holder);
	if (search->which != HOLDERS_ALL &&
		(order_to(search->version, &holder) >= 0) != (search->which == HOLDERS_OLDER))
		return false;
	return index->rd_index->indimmediate || !may_keep(search->c, search->version, &holder);
}

/* Behind those that are listed already. */
static int
list_holders(HolderSearch *search, TupleTableSlot *row, int listed, int max)
{
	KdbConverge *c = search->c;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);

	return listed + KdbFindHolders(side->target, row, side->live ? &side->tid : NULL, NULL, is_in_the_way, search, c->holders + listed, max - listed);
}

/* See merge.h. */
int
KdbFactHolders(void *arg, KdbRowPart part, KdbVersion version, KdbMergeHolder *list, int max)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	HolderSearch search = {c, version, HOLDERS_ALL};
	TupleTableSlot *row = KdbNewRow(c, part);
	int			n;

	/* Whoever takes a value at this moment is noticed by the write. */
	c->unclaimed = c->clashes == 0 && KdbHasNewValues(side->target, row);
	if (c->unclaimed)
		return 0;
	max = Min(max, KDB_MERGE_MAX_HOLDERS);
	n = list_holders(&search, row, 0, max);
	if (n == max)
	{
		search.which = HOLDERS_OLDER;
		n = list_holders(&search, row, 0, max);
		search.which = HOLDERS_NEWER;
		if (n < max)
			n = list_holders(&search, row, n, max);
	}
	for (int i = 0; i < n; i++)
	{
		KdbTrueVersion(c, side->target, c->holders[i].copy, &c->holders[i].row);
		list[i].row = c->holders[i].row;
		list[i].handle = i;
	}
	if (n > 0)
		KdbLaneMustBeFirst();
	return n;
}

typedef struct ClaimSearch
{
	KdbConverge *c;
	KdbVersion	version;
} ClaimSearch;

typedef struct Carried
{
	KdbVersion	shown;
	KdbVersion	version;
	bool		found;
} Carried;

static void
take_carried(void *arg, const KdbVersionRecord *record)
{
	Carried    *carried = arg;

	if (record->kind != KDB_RECORD_TRUTH || KdbVersionCompare(record->shown, carried->shown) != 0 ||
		(carried->found && KdbVersionCompare(record->version, carried->version) <= 0))
		return;
	carried->version = record->version;
	carried->found = true;
}

/* The version of a tuple that was only written anew; false if the horizon had passed it. */
static bool
carried_version(KdbApplyTarget *target, TupleTableSlot *slot, const KdbRewrite *rewrite, KdbVersion *version)
{
	Carried		carried = {KdbRewriteShown(rewrite)};
	KdbRecordedKey key;

	KdbKeyOfRow(target, slot, &key);
	KdbVersionRecordsOfKey(target->relid, &key, take_carried, &carried);
	*version = carried.version;
	return carried.found;
}

/* Version of a tuple by who wrote it, whatever has become of the tuple. */
static bool
written_version(KdbApplyTarget *target, TupleTableSlot *slot, KdbVersion *version)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	TransactionId xmin;
	bool		settled;
	bool		invalid;
	const KdbRewrite *rewrite = NULL;
	KdbLocalRow row = {0};

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	xmin = KdbTupleWriter(tuple);
	settled = HeapTupleHeaderXminCommitted(tuple) || HeapTupleHeaderXminFrozen(tuple);
	invalid = HeapTupleHeaderXminInvalid(tuple);
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);

	if (invalid || !TransactionIdIsNormal(xmin) ||
		TransactionIdIsCurrentTransactionId(xmin))
		return false;
	if (!settled && (TransactionIdIsInProgress(xmin) || !TransactionIdDidCommit(xmin)))
		return false;
	KdbTransactionVersion(xmin, KdbApply.origin, KdbApply.remote_node, &row);
	*version = row.version;
	if (!row.version_known)
		return false;
	if (row.version.ts > KdbHorizonTimestamp())
		rewrite = KdbTargetRewrite(target, slot, xmin);
	return rewrite == NULL || carried_version(target, slot, rewrite, version);
}

/* A tuple of another key, dead or alive, that had the values at a greater version? */
static bool
claimed_in_heap(ClaimSearch *search, const KdbUniqueValues *unique)
{
	KdbConvergeSide *side = KdbSideOf(search->c, KDB_KEY_NEW);
	TupleTableSlot *scratch = side->target->scratch;
	KdbTupleScan scan;
	bool		found = false;

	if (!TTS_IS_BUFFERTUPLE(scratch))
		return false;
	KdbTupleScanBegin(&scan, side->target->rel, unique->index, unique->key, unique->nkeys,
					  scratch, KdbTargetLeftOut(side->target, unique->index));
	while (!found && KdbTupleScanNext(&scan))
	{
		KdbVersion	version;

		/* Out-of-line values of older ones may be gone. */
		found = written_version(side->target, scratch, &version) &&
			KdbVersionCompare(version, search->version) > 0 &&
			(!scan.recheck || KdbUniqueMatches(side->target, unique, scratch)) &&
			!same_key(side->target, scratch, side->key);
	}
	KdbTupleScanEnd(&scan);
	return found;
}

static bool
claimed_by_another(void *arg, const KdbUniqueValues *unique)
{
	ClaimSearch *search = arg;
	KdbConvergeSide *side = KdbSideOf(search->c, KDB_KEY_NEW);
	KdbRecordedKey key;

	if (!search->c->unclaimed && claimed_in_heap(search, unique))
		return true;
	if (!KdbVersionRecordsAny(side->target->relid, &side->target->records))
		return false;
	KdbKeyOfRow(side->target, side->key, &key);
	return KdbVersionRecordsClaimed(side->target->relid, unique->place, &unique->values, &key,
									search->version);
}

/* See converge_private.h. */
bool
KdbClaimedByAnother(KdbConverge *c, TupleTableSlot *row, KdbVersion version)
{
	ClaimSearch search = {c, version};

	return KdbForEachUnique(c->sides[KDB_KEY_NEW].target, row, claimed_by_another, &search);
}

/* See merge.h. */
bool
KdbFactNewerClaim(void *arg, KdbRowPart part, KdbVersion version)
{
	bool		claimed = KdbClaimedByAnother(arg, KdbNewRow(arg, part), version);

	if (claimed)
		KdbLaneMustBeFirst();
	return claimed;
}

/* See merge.h. */
uint64_t
KdbFactPosition(void *arg, const KdbLocalRow *local)
{
	return KdbSeenPosition(local);
}

/* See merge.h. */
uint64_t
KdbFactProgress(void *arg, uint64_t node)
{
	return KdbSeenProgress(node);
}

static void
take_floor(void *arg, const KdbVersionRecord *record)
{
	KdbApplyTarget *target = arg;
	KdbFloor   *floor = &target->floor;

	if (record->kind == KDB_RECORD_AGAIN)
		KdbCopiedAgainTake(target, record);
	if (record->kind != KDB_RECORD_FLOOR || record->version.node != floor->node)
		return;
	floor->until = Max(floor->until, record->version.ts);
	floor->position = Max(floor->position, (XLogRecPtr) record->shown.ts);
}

/* Is the change at a position of its own node's stream that the copy contains? */
static bool
is_behind_position(const KdbFloor *floor, const KdbApplyTarget *target)
{
	return target->nmerged > 0 && floor->node == KdbApply.remote_node &&
		KdbApply.remote_final_lsn < floor->position;
}

static void
read_floor(KdbApplyTarget *target, uint64 node, uint64 floors)
{
	KdbFloor   *floor = &target->floor;
	KdbRecordedKey none = {0};

	floor->until = PG_INT64_MIN;
	floor->position = InvalidXLogRecPtr;
	floor->node = node;
	floor->floors = floors;
	KdbCopiedAgainForget(floor);
	KdbVersionRecordsOfKey(target->relid, &none, take_floor, target);
}

/* See converge_private.h. */
bool
KdbIsBehindFloor(KdbConverge *c, KdbApplyTarget *target)
{
	KdbFloor   *floor = &target->floor;
	KdbVersion	version = c->context->version;
	uint64		floors;

	if (!KdbVersionRecordsAny(target->relid, &target->records))
		return false;
	floors = pg_atomic_read_u64(&KdbShared->floors);
	if (floor->floors != floors || floor->node != version.node)
		read_floor(target, version.node, floors);
	return version.ts <= floor->until || is_behind_position(floor, target);
}
