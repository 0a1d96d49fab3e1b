/*
 * merged_listed.c
 *		What has been contributed to the merged columns of a table's keys, for whoever copies it.
 *
 * A row that is copied is one version, in which all contributions have been added up.  A change that
 * comes late to the copy, and is older than some of these (an INSERT of the key, a value
 * to or from NULL, a maximum that was lowered), must be followed by the newer ones;
 * and an update that revives a deleted row must find what had been added until then.
 * So a copy also gets the histories (merged_history.c) of the keys that something newer than
 * the retention horizon was done to, as of the snapshot that is copied:
 *
 *	key, live			number of the key in the list; has it a row in this snapshot?
 *	columns, values		the key
 *	time, node			version of the contribution
 *	contributed			for each merged column: name, how it is merged, kind, value
 *
 * of which kind is n (nothing), v (a value), w (a value of the type in which is added up) or
 * c (a change).  Contributions of one key follow each other, in the order in which they combine.
 * Rows that the list lacks consist of what is behind the horizon: one assignment.
 *
 * The horizon is held by the session, as for the versions of rows (conflict/table_versions.c).
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "merged_private.h"

PG_FUNCTION_INFO_V1(krahodb_merged_history);

#define COLUMNS		7
#define FIELDS		4			/* of a contribution to one column */

/* Keys with the same hash. */
typedef struct Keys
{
	uint64		hash;			/* hash key */
	List	   *keys;			/* of KdbRecordedKey */
} Keys;

/* A table or partition whose histories are listed. */
typedef struct Listing
{
	ReturnSetInfo *result;
	int64	   *number;			/* of the key at hand, over all partitions */
	TimestampTz since;
	KdbApplyTarget target;
	HTAB	   *keys;			/* of Keys */
	MemoryContext context;		/* of the keys */
	MemoryContext scratch;		/* of one row, one key */
} Listing;

/* ---- keys ---- */

static bool
same_key(const KdbApplyTarget *target, const KdbRecordedKey *a, const KdbRecordedKey *b)
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

static KdbRecordedKey *
copy_key(const Listing *listing, const KdbRecordedKey *key)
{
	MemoryContext old = MemoryContextSwitchTo(listing->context);
	KdbRecordedKey *copy = palloc(sizeof(KdbRecordedKey));

	*copy = *key;
	for (int i = 0; i < key->n; i++)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(key->types[i], &len, &byval);
		copy->values[i] = len == -1 ? PointerGetDatum(PG_DETOAST_DATUM_COPY(key->values[i])) :
									  datumCopy(key->values[i], byval, len);
	}
	MemoryContextSwitchTo(old);
	return copy;
}

/* Something newer than the horizon was done to the key. */
static void
note_key(Listing *listing, const KdbRecordedKey *key)
{
	uint64		hash = KdbRecordedKeyHash(key);
	MemoryContext old;
	Keys	   *keys;
	bool		found;
	ListCell   *lc;

	for (int i = 0; i < key->n; i++)
	{
		if (key->isnull[i])
			return;
	}
	keys = hash_search(listing->keys, &hash, HASH_ENTER, &found);
	if (!found)
		keys->keys = NIL;
	foreach(lc, keys->keys)
	{
		if (same_key(&listing->target, lfirst(lc), key))
			return;
	}
	old = MemoryContextSwitchTo(listing->context);
	keys->keys = lappend(keys->keys, copy_key(listing, key));
	MemoryContextSwitchTo(old);
}

/* The transactions that wrote and ended a tuple, as far as the snapshot shows them. */
static void
tuple_transactions(TupleTableSlot *slot, Snapshot snapshot, TransactionId *xmin, TransactionId *xmax)
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

	if (invalid ||
		(!frozen && (!TransactionIdIsNormal(*xmin) || XidInMVCCSnapshot(*xmin, snapshot) || !TransactionIdDidCommit(*xmin))))
		*xmin = *xmax = InvalidTransactionId;
	if (!TransactionIdIsNormal(*xmax) || XidInMVCCSnapshot(*xmax, snapshot) ||
		!TransactionIdDidCommit(*xmax))
		*xmax = InvalidTransactionId;
}

static bool
is_newer(const Listing *listing, TransactionId xid)
{
	KdbLocalRow row = {0};

	if (!TransactionIdIsNormal(xid))
		return false;
	KdbTransactionVersion(xid, InvalidRepOriginId, 0, &row);
	return row.version_known && row.version.ts > listing->since;
}

static void
note_tuple(Listing *listing, TupleTableSlot *slot, Snapshot snapshot)
{
	KdbRecordedKey key = {0};
	TransactionId xmin;
	TransactionId xmax;

	tuple_transactions(slot, snapshot, &xmin, &xmax);
	if (!is_newer(listing, xmax) &&
		(!is_newer(listing, xmin) || KdbTargetRewrite(&listing->target, slot, xmin)))
		return;
	KdbKeyOfRow(&listing->target, slot, &key);
	note_key(listing, &key);
}

static void
note_heap(Listing *listing)
{
	TupleTableSlot *slot = table_slot_create(listing->target.rel, NULL);
	TableScanDesc scan = table_beginscan(listing->target.rel, SnapshotAny, 0, NULL);

	while (TTS_IS_BUFFERTUPLE(slot) && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(listing->scratch);

		CHECK_FOR_INTERRUPTS();
		note_tuple(listing, slot, GetActiveSnapshot());
		MemoryContextSwitchTo(old);
		MemoryContextReset(listing->scratch);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

static void
note_record(void *arg, const KdbVersionRecord *record, const KdbRecordedKey *recorded,
			Oid index, const KdbRecordedKey *claimed)
{
	Listing    *listing = arg;
	const KdbApplyTarget *target = &listing->target;
	KdbRecordedKey key = *recorded;

	if (record->kind == KDB_RECORD_CLAIM || key.n != target->nkeys)
		return;
	for (int i = 0; i < key.n; i++)
	{
		key.types[i] = TupleDescAttr(target->tupdesc, target->key_attnum[i] - 1)->atttypid;
		if (!KdbRecordedValueFits(&key, i, key.types[i]))
			return;
		key.collations[i] = target->key_template[i].sk_collation;
	}
	note_key(listing, &key);
}

/* ---- histories ---- */

static Datum
text_of(Oid type, Datum value)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	return CStringGetTextDatum(OidOutputFunctionCall(function, value));
}

static Datum
text_array(Datum *values, bool *isnull, int n)
{
	int			dims[1] = {n};
	int			bounds[1] = {1};

	return PointerGetDatum(construct_md_array(values, isnull, 1, dims, bounds,
											  TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
names_of_key(const KdbApplyTarget *target)
{
	Datum		names[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS] = {false};

	for (int i = 0; i < target->nkeys; i++)
		names[i] = CStringGetTextDatum(NameStr(TupleDescAttr(target->tupdesc,
															 target->key_attnum[i] - 1)
												   ->attname));
	return text_array(names, isnull, target->nkeys);
}

static Datum
values_of_key(const KdbRecordedKey *key)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS] = {false};

	for (int i = 0; i < key->n; i++)
		values[i] = text_of(key->types[i], key->values[i]);
	return text_array(values, isnull, key->n);
}

static const char *
kind_of(const KdbColumnContribution *contribution)
{
	switch (contribution->kind)
	{
		case KDB_CONTRIBUTES_VALUE:
			return contribution->wide ? "w" : "v";
		case KDB_CONTRIBUTES_CHANGE:
			return "c";
		case KDB_CONTRIBUTES_NOTHING:
			break;
	}
	return "n";
}

static Datum
contributed_fields(const Listing *listing, const KdbMergedChange *change, const KdbContributed *contributed)
{
	Datum	   *values = palloc0_array(Datum, change->n * FIELDS);
	bool	   *isnull = palloc0_array(bool, change->n *FIELDS);

	for (int i = 0; i < change->n; i++)
	{
		const KdbMergedColumn *column = change->columns[i];
		const KdbColumnContribution *contribution = &contributed->columns[i];
		int			field = i * FIELDS;

		values[field] = CStringGetTextDatum(NameStr(TupleDescAttr(listing->target.tupdesc,
																  column->attnum - 1)
														->attname));
		values[field + 1] = CStringGetTextDatum(KdbMergeKindName(column->kind));
		values[field + 2] = CStringGetTextDatum(kind_of(contribution));
		isnull[field + 3] = contribution->isnull || contribution->kind == KDB_CONTRIBUTES_NOTHING;
		if (!isnull[field + 3])
			values[field + 3] = text_of(KdbMergedContributionType(column, contribution),
										contribution->value);
	}
	return text_array(values, isnull, change->n * FIELDS);
}

static void
put_history(Listing *listing, const KdbRecordedKey *key, const KdbMergedChange *change)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};

	values[0] = Int64GetDatum(++*listing->number);
	values[1] = BoolGetDatum(change->live);
	values[2] = names_of_key(&listing->target);
	values[3] = values_of_key(key);
	for (int i = 0; i < change->nhistory; i++)
	{
		const KdbContributed *contributed = &change->history[i];

		values[4] = Int64GetDatum(contributed->version.ts);
		values[5] = CStringGetTextDatum(psprintf(UINT64_FORMAT, contributed->version.node));
		values[6] = contributed_fields(listing, change, contributed);
		tuplestore_putvalues(listing->result->setResult, listing->result->setDesc, values, nulls);
	}
}

/* The key in a row that has nothing else. */
static TupleTableSlot *
row_of_key(const KdbApplyTarget *target, const KdbRecordedKey *key)
{
	TupleTableSlot *slot = ExecClearTuple(target->search);

	memset(slot->tts_isnull, true, target->tupdesc->natts * sizeof(bool));
	for (int i = 0; i < key->n; i++)
	{
		slot->tts_values[target->key_attnum[i] - 1] = key->values[i];
		slot->tts_isnull[target->key_attnum[i] - 1] = false;
	}
	return ExecStoreVirtualTuple(slot);
}

static void
list_key(Listing *listing, const KdbRecordedKey *key)
{
	KdbApplyTarget *target = &listing->target;
	KdbMergedChange change = {.n = target->nmerged, .as_of = GetActiveSnapshot()};
	KdbConverge c = {.operation = KDB_UPDATE, .merged = &change};

	change.columns = palloc_array(const KdbMergedColumn *, target->nmerged);
	for (int i = 0; i < target->nmerged; i++)
		change.columns[i] = &target->merged_columns[i];
	c.sides[KDB_KEY_NEW].target = c.sides[KDB_KEY_OLD].target = target;
	c.sides[KDB_KEY_NEW].key = c.sides[KDB_KEY_OLD].key = row_of_key(target, key);
	KdbMergedReadHistory(&c);
	put_history(listing, key, &change);
}

static void
list_keys(Listing *listing)
{
	HASH_SEQ_STATUS status;
	Keys	   *keys;

	hash_seq_init(&status, listing->keys);
	while ((keys = hash_seq_search(&status)) != NULL)
	{
		ListCell   *lc;

		foreach(lc, keys->keys)
		{
			MemoryContext old = MemoryContextSwitchTo(listing->scratch);

			CHECK_FOR_INTERRUPTS();
			list_key(listing, lfirst(lc));
			MemoryContextSwitchTo(old);
			MemoryContextReset(listing->scratch);
		}
	}
}

/* ---- the table ---- */

static void
begin_keys(Listing *listing)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Keys);
	ctl.hcxt = listing->context;
	listing->keys = hash_create("KrahoDB keys with histories", 256, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
list_table(ReturnSetInfo *result, int64 *number, Oid relid, TimestampTz since)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	MemoryContext old = CurrentMemoryContext;
	Listing		listing = {.result = result, .number = number, .since = since};

	if (RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind) && KdbMergedColumns(relid) != NIL)
	{
		listing.context = AllocSetContextCreate(old, "KrahoDB merged histories", ALLOCSET_DEFAULT_SIZES);
		listing.scratch = AllocSetContextCreate(listing.context, "KrahoDB merged history",
												ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(listing.context);
		if (KdbTargetOpenToRead(&listing.target, rel))
		{
			begin_keys(&listing);
			note_heap(&listing);
			KdbVersionRecordsOfTable(relid, since, listing.target.nkeys, note_record, &listing);
			list_keys(&listing);
			KdbTargetCloseRead(&listing.target);
		}
		MemoryContextSwitchTo(old);
		MemoryContextDelete(listing.context);
	}
	relation_close(rel, NoLock);
}

/* krahodb.merged_history(regclass, bigint) */
Datum
krahodb_merged_history(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	TimestampTz since = PG_GETARG_INT64(1);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		hidden = KdbRowsAreHidden(relid);
	int64		number = 0;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (hidden)
		return (Datum) 0;
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		if (lfirst_oid(lc) == relid || get_rel_relispartition(lfirst_oid(lc)))
			list_table(result, &number, lfirst_oid(lc), since);
	}
	return (Datum) 0;
}
