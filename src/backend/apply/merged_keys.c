/*
 * merged_keys.c
 *		The keys of a table whose merged columns have histories that somebody needs.
 *
 * For who copies the table (merged_listed.c), and for ALTER TABLE when it writes it anew
 * (merged_rewritten.c): the keys that something newer than the retention horizon was done to, by
 * one scan of all tuples and one of the table's records.
 *
 * ALTER TABLE reads the rows of these keys by another scan: while it runs the index of the key is maybe gone already,
 * and the new one is not built.  So all of these are in memory at once: some 150 bytes for each key, and as much for each
 * version.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "merged_private.h"

/* Keys with the same hash. */
typedef struct Keys
{
	uint64		hash;			/* hash key */
	List	   *keys;			/* of KdbMergedKey */
} Keys;

static bool
same_key(const KdbApplyTarget *target, const KdbMergedKey *a, const KdbRecordedKey *b)
{
	for (int i = 0; i < target->nkeys; i++)
	{
		const ScanKeyData *key = &target->key_template[i];

		if (!DatumGetBool(FunctionCall2Coll(unconstify(FmgrInfo *, &key->sk_func), key->sk_collation,
											a->values[i], b->values[i])))
			return false;
	}
	return true;
}

static KdbMergedKey *
copy_key(const KdbRecordedKey *key)
{
	KdbMergedKey *copy = palloc(offsetof(KdbMergedKey, values) + key->n * sizeof(Datum));

	copy->versions = NIL;
	for (int i = 0; i < key->n; i++)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(key->types[i], &len, &byval);
		copy->values[i] = len == -1 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(key->values[i])) :
									  datumCopy(key->values[i], byval, len);
	}
	return copy;
}

static bool
has_null(const KdbRecordedKey *key)
{
	for (int i = 0; i < key->n; i++)
	{
		if (key->isnull[i])
			return true;
	}
	return false;
}

/* One of those that have been noted, or NULL. */
static KdbMergedKey *
find_key(KdbMergedKeys *keys, const KdbRecordedKey *key, Keys *alike)
{
	ListCell   *lc;

	foreach(lc, alike->keys)
	{
		if (same_key(keys->target, lfirst(lc), key))
			return lfirst(lc);
	}
	return NULL;
}

/* Something newer than the horizon was done to the key. */
static void
note_key(KdbMergedKeys *keys, const KdbRecordedKey *key)
{
	uint64		hash;
	MemoryContext old;
	Keys	   *alike;
	bool		found;

	if (has_null(key))
		return;
	hash = KdbRecordedKeyHash(key);
	alike = hash_search(keys->table, &hash, HASH_ENTER, &found);
	if (!found)
		alike->keys = NIL;
	if (find_key(keys, key, alike) != NULL)
		return;
	old = MemoryContextSwitchTo(keys->context);
	alike->keys = lappend(alike->keys, copy_key(key));
	MemoryContextSwitchTo(old);
}

/* ---- tuples ---- */

/* For the snapshot; what this transaction has done is for the rewriting. */
static bool
has_happened(const KdbMergedKeys *keys, TransactionId xid)
{
	if (TransactionIdIsCurrentTransactionId(xid))
		return keys->rewriting;
	return TransactionIdIsNormal(xid) && !XidInMVCCSnapshot(xid, GetActiveSnapshot()) &&
		TransactionIdDidCommit(xid);
}

/* The transactions that wrote and ended a tuple, as far as they have happened. */
static void
tuple_transactions(const KdbMergedKeys *keys, TupleTableSlot *slot, TransactionId *xmin, TransactionId *xmax)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	bool		frozen;
	bool		invalid;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	*xmin = KdbTupleWriter(tuple);
	frozen = HeapTupleHeaderXminFrozen(tuple);
	invalid = HeapTupleHeaderXminInvalid(tuple) && !frozen;
	*xmax = InvalidTransactionId;
	if (!(tuple->t_infomask & HEAP_XMAX_INVALID) && !HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask))
		*xmax = HeapTupleHeaderGetUpdateXid(tuple);
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);

	if (invalid || (!frozen && !has_happened(keys, *xmin)))
		*xmin = *xmax = InvalidTransactionId;
	if (!has_happened(keys, *xmax))
		*xmax = InvalidTransactionId;
}

static bool
is_newer(const KdbMergedKeys *keys, TransactionId xid)
{
	KdbLocalRow row = {0};

	if (!TransactionIdIsNormal(xid))
		return false;
	if (TransactionIdIsCurrentTransactionId(xid))
		return true;
	KdbTransactionVersion(xid, InvalidRepOriginId, 0, &row);
	return row.version_known && row.version.ts > keys->since;
}

static void
note_tuple(KdbMergedKeys *keys, TupleTableSlot *slot)
{
	KdbRecordedKey key = {0};
	TransactionId xmin;
	TransactionId xmax;

	tuple_transactions(keys, slot, &xmin, &xmax);
	if (!is_newer(keys, xmax) &&
		(!is_newer(keys, xmin) || KdbTargetRewrite(keys->target, slot, xmin)))
		return;
	KdbReadLeftOutValues(keys->target->rel, slot, keys->columns);
	KdbKeyOfRow(keys->target, slot, &key);
	note_key(keys, &key);
}

/* Call back for all tuples; slots are of the target's columns, which the table may not have any more. */
static void
each_tuple(KdbMergedKeys *keys, void (*each) (KdbMergedKeys *keys, TupleTableSlot *slot))
{
	Relation	rel = keys->target->rel;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(keys->target->tupdesc, table_slot_callbacks(rel));
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);

	while (TTS_IS_BUFFERTUPLE(slot) && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(keys->scratch);

		CHECK_FOR_INTERRUPTS();
		each(keys, slot);
		MemoryContextSwitchTo(old);
		MemoryContextReset(keys->scratch);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

static void
note_record(void *arg, const KdbVersionRecord *record, const KdbRecordedKey *recorded,
			Oid index, const KdbRecordedKey *claimed)
{
	KdbMergedKeys *keys = arg;
	const KdbApplyTarget *target = keys->target;
	KdbRecordedKey key = *recorded;

	if (record->kind == KDB_RECORD_CLAIM || key.n != target->nkeys)
		return;
	key.operators = target->own_key_equality ? target->key_template : NULL;
	for (int i = 0; i < key.n; i++)
	{
		key.types[i] = TupleDescAttr(target->tupdesc, target->key_attnum[i] - 1)->atttypid;
		if (!KdbRecordedValueFits(&key, i, key.types[i]))
			return;
		key.collations[i] = target->key_template[i].sk_collation;
		key.columns[i] = target->key_attnum[i];
	}
	if (KdbRecordedKeyHash(&key) == record->hash)
		note_key(keys, &key);
}

/* See merged_private.h. */
void
KdbMergedKeysFind(KdbMergedKeys *keys)
{
	const KdbApplyTarget *target = keys->target;
	HASHCTL		ctl = {0};

	keys->scratch = AllocSetContextCreate(keys->context, "KrahoDB merged history", ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Keys);
	ctl.hcxt = keys->context;
	keys->table = hash_create("KrahoDB keys with histories", 256, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < target->nkeys; i++)
		keys->columns = bms_add_member(keys->columns, target->key_attnum[i]);
	for (int i = 0; i < target->nmerged; i++)
		keys->columns = bms_add_member(keys->columns, target->merged_columns[i].attnum);
	each_tuple(keys, note_tuple);
	KdbVersionRecordsOfTable(target->relid, keys->since, target->nkeys, note_record, keys);
}

/* ---- their rows ---- */

static void
read_row(KdbMergedKeys *keys, TupleTableSlot *slot)
{
	KdbRecordedKey key = {0};
	KdbRowVersion version = {0};
	KdbMergedKey *noted;
	MemoryContext old;
	Keys	   *alike;
	uint64		hash;

	if (!KdbMergedRowCounts(keys->reader, slot, keys->oldest, &version))
		return;
	KdbReadLeftOutValues(keys->target->rel, slot, keys->columns);
	KdbKeyOfRow(keys->target, slot, &key);
	if (has_null(&key))
		return;
	hash = KdbRecordedKeyHash(&key);
	alike = hash_search(keys->table, &hash, HASH_FIND, NULL);
	noted = alike ? find_key(keys, &key, alike) : NULL;
	if (noted == NULL)
		return;
	old = MemoryContextSwitchTo(keys->context);
	noted->versions = lappend(noted->versions, KdbMergedReadRow(keys->reader, slot, &version));
	MemoryContextSwitchTo(old);
}

/* See merged_private.h. */
void
KdbMergedKeysReadRows(KdbMergedKeys *keys, KdbConverge *reader)
{
	if (hash_get_num_entries(keys->table) == 0)
		return;
	keys->reader = reader;
	keys->oldest = GetOldestNonRemovableTransactionId(keys->target->rel);
	each_tuple(keys, read_row);
}

/* See merged_private.h. */
void
KdbMergedKeysEach(KdbMergedKeys *keys, void (*each) (void *arg, KdbMergedKey *key), void *arg)
{
	HASH_SEQ_STATUS status;
	Keys	   *alike;
	ListCell   *lc;

	hash_seq_init(&status, keys->table);
	while ((alike = hash_seq_search(&status)) != NULL)
	{
		foreach(lc, alike->keys)
		{
			MemoryContext old = MemoryContextSwitchTo(keys->scratch);

			CHECK_FOR_INTERRUPTS();
			each(arg, lfirst(lc));
			MemoryContextSwitchTo(old);
			MemoryContextReset(keys->scratch);
		}
	}
}

/* See merged_private.h. */
TupleTableSlot *
KdbMergedRowOfKey(const KdbApplyTarget *target, const KdbMergedKey *key)
{
	TupleTableSlot *slot = ExecClearTuple(target->search);

	memset(slot->tts_isnull, true, target->tupdesc->natts * sizeof(bool));
	for (int i = 0; i < target->nkeys; i++)
	{
		slot->tts_values[target->key_attnum[i] - 1] = key->values[i];
		slot->tts_isnull[target->key_attnum[i] - 1] = false;
	}
	return ExecStoreVirtualTuple(slot);
}
