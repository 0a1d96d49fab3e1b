/*
 * recall.c
 *		Where rows that were written lately are.
 *
 * Some rows are changed again and again: counters, queues, what was inserted a moment
 * ago.  Each change leaves a dead version, which a lookup by the index has to pass
 * until it is pruned; where conflicts are resolved, dead versions are kept until the
 * retention horizon passes, so a row that is updated a thousand times a second
 * would cost a thousand versions to find.  So the place of what this worker has
 * written last is remembered, by a hash of the key.
 *
 * IT IS ONLY A HINT.  The row at that place is taken if the dirty snapshot sees it, if
 * it has the key that is asked for, and if nobody is changing it: then it is what the
 * index would find, since the key is unique.  Else the index is asked.
 *
 * The page is pruned on the way, as an index scan would: where nobody reads the table, no one
 * else does, and each new version of the row would go to a place further on.
 *
 * What is remembered lasts across transactions.  Meanwhile the table may have become
 * shorter, and then there is nothing to read at such a place; while this transaction
 * has it open it cannot.  A page that is still in the buffer where it was seen last is there (those
 * that are cut off leave the buffers); else the table's length is asked for, which is a
 * system call.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "common/hashfn.h"
#include "storage/bufmgr.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "krahodb/compat.h"

#include "relation_private.h"

#define KDB_RECALL_PLACES	1024	/* a power of two */

typedef struct KdbRecallPlace
{
	uint32		hash;
	ItemPointerData tid;		/* invalid: nothing */
	Buffer		buffer;			/* where its page was, or invalid */
} KdbRecallPlace;

/* Of the key in the slot, by the image of its values; false if one is NULL. */
static bool
hash_key(KdbApplyTarget *target, TupleTableSlot *slot, uint32 *hash)
{
	*hash = 0;
	for (int i = 0; i < target->nkeys; i++)
	{
		int			att = target->key_attnum[i] - 1;
		Form_pg_attribute attr = TupleDescAttr(target->tupdesc, att);

		if (slot->tts_isnull[att])
			return false;
		*hash = hash_combine(*hash, datum_image_hash(slot->tts_values[att],
													 attr->attbyval, attr->attlen));
	}
	return true;
}

static bool
key_equals(KdbApplyTarget *target, TupleTableSlot *search)
{
	for (int i = 0; i < target->nkeys; i++)
	{
		ScanKeyData *key = &target->key_template[i];
		bool		isnull;
		Datum		value = slot_getattr(target->local, target->key_attnum[i], &isnull);

		if (isnull ||
			!DatumGetBool(FunctionCall2Coll(&key->sk_func, key->sk_collation, value,
											search->tts_values[target->key_attnum[i] - 1])))
			return false;
	}
	return true;
}

static bool
is_within(KdbApplyTarget *target, BlockNumber block)
{
	KdbRecall  *recall = &target->recall;

	if (block >= recall->blocks)
		recall->blocks = RelationGetNumberOfBlocks(target->rel);
	return block < recall->blocks;
}

/* Pin the page, if the table still has it: in place->buffer. */
static bool
pin_page(KdbApplyTarget *target, KdbRecallPlace *place)
{
	BlockNumber block = ItemPointerGetBlockNumber(&place->tid);

	if (BufferIsValid(place->buffer) && KdbReadRecentBuffer(target->rel, block, place->buffer))
		return true;
	if (!is_within(target, block))
		return false;
	place->buffer = ReadBuffer(target->rel, block);
	return true;
}

/* See relation_private.h. */
void
KdbRecallPut(KdbApplyTarget *target, TupleTableSlot *slot)
{
	KdbRecall  *recall = &target->recall;
	uint32		hash;
	KdbRecallPlace *place;

	if (!OidIsValid(target->identity_index) || !hash_key(target, slot, &hash))
		return;
	if (recall->places == NULL)
		recall->places = MemoryContextAllocZero(target->context,
												sizeof(KdbRecallPlace) * KDB_RECALL_PLACES);
	place = &recall->places[hash & (KDB_RECALL_PLACES - 1)];
	if (place->hash != hash || !ItemPointerIsValid(&place->tid) ||
		ItemPointerGetBlockNumber(&place->tid) != ItemPointerGetBlockNumber(&slot->tts_tid))
		place->buffer = InvalidBuffer;
	place->hash = hash;
	place->tid = slot->tts_tid;
}

/*
 * So that heap_page_prune_opt() would do something?  It asks for what is removable first, which
 * takes longer.  Without a lock, as there: a wrong answer does no harm.
 */
static bool
is_nearly_full(Relation rel, Page page)
{
	Size		spared = RelationGetTargetPageFreeSpace(rel, HEAP_DEFAULT_FILLFACTOR);

	return PageIsFull(page) || PageGetHeapFreeSpace(page) < Max(spared, BLCKSZ / 10);
}

/* See relation_private.h. */
bool
KdbRecallFind(KdbApplyTarget *target, TupleTableSlot *search)
{
	uint32		hash;
	KdbRecallPlace *place;
	SnapshotData dirty;
	bool		found;

	if (target->recall.places == NULL || !hash_key(target, search, &hash))
		return false;
	place = &target->recall.places[hash & (KDB_RECALL_PLACES - 1)];
	if (place->hash != hash || !ItemPointerIsValid(&place->tid) || !pin_page(target, place))
		return false;
	if (target->rel->rd_tableam == GetHeapamTableAmRoutine() &&
		is_nearly_full(target->rel, BufferGetPage(place->buffer)))
		heap_page_prune_opt(target->rel, place->buffer);
	InitDirtySnapshot(dirty);
	found = table_tuple_fetch_row_version(target->rel, &place->tid, &dirty, target->local) &&
		!TransactionIdIsValid(dirty.xmin) && !TransactionIdIsValid(dirty.xmax) &&
		key_equals(target, search);
	ReleaseBuffer(place->buffer);
	if (found)
		return true;
	ExecClearTuple(target->local);
	ItemPointerSetInvalid(&place->tid);
	return false;
}
