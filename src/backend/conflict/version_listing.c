/*
 * version_listing.c
 *		What the heap says of the versions of a table's rows.
 *
 * For those who need the versions of everything newer than a retention horizon: who copies the
 * table (table_versions.c), and ALTER TABLE when it writes it anew (carried_versions.c).  One
 * scan of all tuples, dead ones too, says
 *
 *	t	a live row: its version
 *	d	a key that is dead: the version of its death
 *	c	unique values that a row has or had: its version
 *
 * Of dead tuples those are deaths that were deleted, or updated in a key column; others have a successor of the
 * same key.  HEAP_KEYS_UPDATED says which (and so may those have it where another unique column was updated: then a live
 * row of that version or a later one is listed too, or a later death).  But CLUSTER and VACUUM FULL
 * do not keep that, and so the successor is looked at of those that do not have it.
 *
 * What the heap does not say is in version records, which the caller lists.  Of a row that was
 * written anew before, all is: it has no line "t".
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "storage/bufmgr.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "conflict_private.h"

/* ---- tuples ---- */

typedef struct Tuple
{
	bool		live;
	TransactionId xmin;
	TransactionId ended;		/* by that transaction; or invalid */
	bool		key_updated;	/* or deleted; or not known */
	bool		hot_updated;
	ItemPointerData next;		/* itself: deleted */
} Tuple;

static bool
has_happened(const KdbListing *listing, TransactionId xid, Snapshot snapshot)
{
	if (TransactionIdIsCurrentTransactionId(xid))
		return listing->rewriting;
	return TransactionIdIsNormal(xid) && !XidInMVCCSnapshot(xid, snapshot) &&
		TransactionIdDidCommit(xid);
}

/* What the snapshot says of a tuple; false if it is nothing to it. */
static bool
look_at_tuple(const KdbListing *listing, TupleTableSlot *slot, Snapshot snapshot, Tuple *result)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	TransactionId xmax = InvalidTransactionId;
	bool		frozen;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	result->live = HeapTupleSatisfiesVisibility(heap->base.tuple, snapshot, heap->buffer);
	result->xmin = KdbTupleWriter(tuple);
	frozen = HeapTupleHeaderXminFrozen(tuple);
	if (!(tuple->t_infomask & HEAP_XMAX_INVALID) && !HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask))
		xmax = HeapTupleHeaderGetUpdateXid(tuple);
	result->key_updated = (tuple->t_infomask2 & HEAP_KEYS_UPDATED) != 0;
	result->hot_updated = HeapTupleHeaderIsHotUpdated(tuple);
	result->next = tuple->t_ctid;
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);

	result->ended = InvalidTransactionId;
	if (result->live)
		return true;
	if (!frozen && !has_happened(listing, result->xmin, snapshot))
		return false;
	if (has_happened(listing, xmax, snapshot))
		result->ended = xmax;
	return true;
}

/* ---- versions ---- */

/* The version of a transaction; false if the horizon has passed it. */
static bool
version_of(const KdbListing *listing, TransactionId xid, KdbVersion *version)
{
	KdbLocalRow row = {0};

	if (TransactionIdIsCurrentTransactionId(xid))
	{
		*version = KdbVersionOfRecord();
		return listing->rewriting;
	}
	KdbTransactionVersion(xid, InvalidRepOriginId, 0, &row);
	*version = row.version;
	return row.version_known && row.version.ts > listing->since;
}

/* The greatest version that records of a kind give to what is shown. */
typedef struct Truth
{
	KdbVersionRecordKind kind;	/* TRUTH or KILLED */
	KdbVersion	shown;
	KdbVersion	version;
	bool		found;
} Truth;

static void
take_truth(void *arg, const KdbVersionRecord *record)
{
	Truth	   *truth = arg;

	if (record->kind != truth->kind ||
		KdbVersionCompare(record->shown, truth->shown) != 0 ||
		(truth->found && KdbVersionCompare(record->version, truth->version) <= 0))
		return;
	truth->version = record->version;
	truth->found = true;
}

static void
look_for_truth(KdbListing *listing, TupleTableSlot *slot, Truth *truth)
{
	KdbRecordedKey key = {0};

	if (!KdbVersionRecordsAny(listing->relid, &listing->records))
		return;
	key.n = listing->nkeys;
	key.operators = listing->equality;
	for (int i = 0; i < key.n; i++)
	{
		key.values[i] = slot_getattr(slot, listing->keys[i], &key.isnull[i]);
		key.types[i] = TupleDescAttr(listing->desc, listing->keys[i] - 1)->atttypid;
		key.collations[i] = listing->collations[i];
		key.columns[i] = listing->keys[i];
	}
	KdbVersionRecordsOfKey(listing->relid, &key, take_truth, truth);
}

/* The version of a death, by its record if there is one. */
static KdbVersion
death_of(KdbListing *listing, TupleTableSlot *slot, KdbVersion shown)
{
	Truth		truth = {KDB_RECORD_KILLED, shown, shown, false};

	look_for_truth(listing, slot, &truth);
	return truth.version;
}

/* What was known of a row when it was written anew; false if the horizon had passed it. */
static bool
version_before(KdbListing *listing, TupleTableSlot *slot, const KdbRewrite *rewrite, KdbVersion *version)
{
	Truth		truth = {KDB_RECORD_TRUTH, KdbRewriteShown(rewrite)};

	look_for_truth(listing, slot, &truth);
	*version = truth.version;
	return truth.found && version->ts > listing->since;
}

static void
list_writer(KdbListing *listing, TupleTableSlot *slot, const Tuple *tuple)
{
	KdbVersion	version;
	const KdbRewrite *rewrite;

	if (!version_of(listing, tuple->xmin, &version))
		return;
	rewrite = KdbFindRewrite(listing->relid, &listing->rewrites, &listing->records,
							 listing->table_context, slot, tuple->xmin);
	if (rewrite)
		listing->rewritten = KdbRewriteShown(rewrite);
	if (rewrite && !version_before(listing, slot, rewrite, &version))
		return;
	if (tuple->live && !rewrite)
		listing->put_row(listing->arg, 't', version, slot);
	if (listing->has_unique && !(tuple->live && listing->rewriting))
		listing->put_row(listing->arg, 'c', version, slot);
}

static bool
is_same_key(const KdbListing *listing, TupleTableSlot *a, TupleTableSlot *b)
{
	for (int i = 0; i < listing->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(listing->desc, listing->keys[i] - 1);
		bool		a_null;
		bool		b_null;
		Datum		a_value = slot_getattr(a, listing->keys[i], &a_null);
		Datum		b_value = slot_getattr(b, listing->keys[i], &b_null);

		if (a_null != b_null ||
			(!a_null && !datum_image_eq(a_value, b_value, att->attbyval, att->attlen)))
			return false;
	}
	return true;
}

/* Is the tuple that has replaced this one of the same key?  The horizon has not passed that, so it is there. */
static bool
key_goes_on(const KdbListing *listing, Relation rel, TupleTableSlot *slot, const Tuple *tuple, TupleTableSlot *next)
{
	ItemPointerData tid = tuple->next;
	bool		result;

	if (tuple->key_updated || tuple->hot_updated)
		return !tuple->key_updated;
	if (ItemPointerEquals(&tid, &slot->tts_tid) || ItemPointerIndicatesMovedPartitions(&tid) ||
		ItemPointerGetBlockNumber(&tid) >= RelationGetNumberOfBlocks(rel) ||
		!table_tuple_fetch_row_version(rel, &tid, SnapshotAny, next))
		return false;
	KdbReadLeftOutValues(rel, next, listing->read);
	result = HeapTupleHeaderGetRawXmin(((HeapTupleTableSlot *) next)->tuple->t_data) == tuple->ended &&
		is_same_key(listing, slot, next);
	ExecClearTuple(next);
	return result;
}

static void
list_tuple(KdbListing *listing, Relation rel, TupleTableSlot *slot, const Tuple *tuple, TupleTableSlot *next)
{
	KdbVersion	version;

	KdbReadLeftOutValues(rel, slot, listing->read);
	list_writer(listing, slot, tuple);
	if (TransactionIdIsValid(tuple->ended) && version_of(listing, tuple->ended, &version) &&
		!key_goes_on(listing, rel, slot, tuple, next))
		listing->put_row(listing->arg, 'd', death_of(listing, slot, version), slot);
}

/* See conflict_private.h. */
void
KdbListHeap(KdbListing *listing, Relation rel, Snapshot snapshot)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(listing->desc, table_slot_callbacks(rel));
	TupleTableSlot *next = MakeSingleTupleTableSlot(listing->desc, table_slot_callbacks(rel));
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);

	listing->read = bms_union(listing->columns, listing->indexed);
	while (TTS_IS_BUFFERTUPLE(slot) && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(listing->context);
		Tuple		tuple;

		CHECK_FOR_INTERRUPTS();
		if (look_at_tuple(listing, slot, snapshot, &tuple))
			list_tuple(listing, rel, slot, &tuple, next);
		MemoryContextSwitchTo(old);
		MemoryContextReset(listing->context);
	}
	listing->scanned = true;
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	ExecDropSingleTupleTableSlot(next);
}

/* ---- the table ---- */

static void
find_keys(KdbListing *listing, Relation rel)
{
	KdbRecordedKey types = {0};
	Relation	index;

	listing->identity = RelationGetReplicaIndex(rel);
	if (!OidIsValid(listing->identity))
		listing->identity = RelationGetPrimaryKeyIndex(rel);
	listing->nkeys = 0;
	if (!OidIsValid(listing->identity))
		return;
	index = index_open(listing->identity, AccessShareLock);
	listing->nkeys = types.n = index->rd_index->indnkeyatts;
	for (int i = 0; i < listing->nkeys; i++)
	{
		listing->keys[i] = index->rd_index->indkey.values[i];
		listing->collations[i] = index->rd_indcollation[i];
		listing->indexed = bms_add_member(listing->indexed, listing->keys[i]);
		types.types[i] = TupleDescAttr(listing->desc, listing->keys[i] - 1)->atttypid;
	}
	listing->equality = KdbIndexOwnEquality(index, &types);
	index_close(index, AccessShareLock);
}

/* All that an expression over the whole row depends on. */
static Bitmapset *
all_columns(TupleDesc desc, Bitmapset *columns)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			columns = bms_add_member(columns, i + 1);
	}
	return columns;
}

/* See conflict_private.h. */
Bitmapset *
KdbIndexColumns(Relation index, TupleDesc desc)
{
	Bitmapset  *attributes = NULL;
	Bitmapset  *columns = NULL;
	int			member = -1;

	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
	{
		if (index->rd_index->indkey.values[i] > 0)
			columns = bms_add_member(columns, index->rd_index->indkey.values[i]);
	}
	pull_varattnos((Node *) RelationGetIndexExpressions(index), 1, &attributes);
	pull_varattnos((Node *) RelationGetIndexPredicate(index), 1, &attributes);
	while ((member = bms_next_member(attributes, member)) >= 0)
	{
		AttrNumber	attnum = member + FirstLowInvalidHeapAttributeNumber;

		if (attnum == 0)
			columns = all_columns(desc, columns);
		else if (attnum > 0)
			columns = bms_add_member(columns, attnum);
	}
	return columns;
}

/* See conflict_private.h. */
bool
KdbIsUniqueIndex(Relation index)
{
	return index->rd_index->indisunique || index->rd_index->indisexclusion;
}

static KdbUniqueIndex *
describe(Relation index, TupleDesc desc)
{
	static const ScanKeyData by_operators;
	KdbUniqueIndex *result = palloc0(sizeof(KdbUniqueIndex));
	IndexInfo  *info = BuildIndexInfo(index);

	KdbIndexedTypes(index, info, desc, &result->types);
	if (info->ii_ExclusionOps || KdbIndexHasOwnEquality(index, &result->types))
		result->types.operators = &by_operators;

	result->oid = RelationGetRelid(index);
	result->place = KdbIndexPlace(index);
	result->name = pstrdup(RelationGetRelationName(index));
	result->n = index->rd_index->indnkeyatts;
	result->plain = true;
	for (int i = 0; i < result->n; i++)
	{
		result->columns[i] = index->rd_index->indkey.values[i];
		result->plain &= AttrNumberIsForUserDefinedAttr(result->columns[i]);
	}
	return result;
}

/* See conflict_private.h. */
const KdbUniqueIndex *
KdbListingIndex(const KdbListing *listing, Oid place)
{
	ListCell   *lc;

	foreach(lc, listing->indexes)
	{
		const KdbUniqueIndex *index = lfirst(lc);

		if (index->place == place)
			return index;
	}
	return NULL;
}

static KdbRecordedKey
types_of_key(const KdbListing *listing)
{
	KdbRecordedKey types = {.n = listing->nkeys, .operators = listing->equality};

	for (int i = 0; i < types.n; i++)
	{
		types.types[i] = TupleDescAttr(listing->desc, listing->keys[i] - 1)->atttypid;
		types.collations[i] = listing->collations[i];
		types.columns[i] = listing->keys[i];
	}
	return types;
}

/* Give what was recorded these types; false if it cannot be of them. */
static bool
take_values(KdbRecordedKey *types, const KdbRecordedKey *recorded)
{
	if (recorded->n < types->n)
		return false;
	for (int i = 0; i < types->n; i++)
	{
		if (!KdbRecordedValueFits(recorded, i, types->types[i]))
			return false;
		types->values[i] = recorded->values[i];
		types->isnull[i] = recorded->isnull[i];
	}
	return true;
}

/* See conflict_private.h. */
bool
KdbListingNeeds(const KdbListing *listing, const KdbVersionRecord *record,
				const KdbRecordedKey *key, Oid place, const KdbRecordedKey *claimed)
{
	const KdbUniqueIndex *index;
	KdbRecordedKey typed;
	KdbRecordedKey columns;

	if (record->kind == KDB_RECORD_TRUTH && listing->scanned && KdbIsRewriteShown(record->shown) &&
		KdbVersionCompare(record->shown, listing->rewritten) != 0)
		return false;
	if (claimed == NULL)
	{
		typed = types_of_key(listing);
		return take_values(&typed, key) && KdbRecordedKeyHash(&typed) == record->hash;
	}
	index = KdbListingIndex(listing, place);
	if (index == NULL)
		return false;
	typed = index->types;
	columns = types_of_key(listing);
	return take_values(&typed, claimed) && KdbClaimedHash(&typed, place, &columns) == record->hash;
}

/* Could a row of which only some columns are known be taken for one that claims something else there? */
static bool
needs_whole_rows(Relation index, TupleDesc desc)
{
	Bitmapset  *columns = KdbIndexColumns(index, desc);
	bool		generated = false;
	int			attnum = -1;

	while ((attnum = bms_next_member(columns, attnum)) >= 0)
		generated |= TupleDescAttr(desc, attnum - 1)->attgenerated != '\0';
	return generated || index->rd_index->indnullsnotdistinct ||
		RelationGetIndexExpressions(index) != NIL || RelationGetIndexPredicate(index) != NIL;
}

static void
find_unique(KdbListing *listing, Relation rel)
{
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(rel))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (KdbIsUniqueIndex(index))
			listing->indexes = lappend(listing->indexes, describe(index, listing->desc));
		if (lfirst_oid(lc) != listing->identity && KdbIsUniqueIndex(index))
		{
			listing->has_unique = true;
			listing->whole_rows |= needs_whole_rows(index, listing->desc);
			listing->indexed = bms_add_members(listing->indexed, KdbIndexColumns(index, listing->desc));
		}
		index_close(index, AccessShareLock);
	}
}

/* What rows must tell so that others can compute their values in unique indexes. */
static void
find_columns(KdbListing *listing)
{
	TupleDesc	desc = listing->desc;
	bool		generated = false;

	listing->columns = bms_copy(listing->indexed);
	for (int i = 0; i < desc->natts; i++)
		generated |= TupleDescAttr(desc, i)->attgenerated && bms_is_member(i + 1, listing->columns);
	for (int i = 0; i < desc->natts; i++)
	{
		if (TupleDescAttr(desc, i)->attgenerated)
			listing->columns = bms_del_member(listing->columns, i + 1);
		else if (generated && !TupleDescAttr(desc, i)->attisdropped)
			listing->columns = bms_add_member(listing->columns, i + 1);
	}
}

/* See conflict_private.h. */
bool
KdbListingPrepare(KdbListing *listing, Relation rel)
{
	listing->relid = RelationGetRelid(rel);
	if (!RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
		return false;
	listing->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	listing->table_context = CurrentMemoryContext;
	find_keys(listing, rel);
	if (listing->nkeys == 0)
		return false;
	find_unique(listing, rel);
	find_columns(listing);
	return true;
}
