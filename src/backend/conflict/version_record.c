/*
 * version_record.c
 *		Version records; see version_record.h for what they say.
 *
 * KEYS.  A record has the values of its key as they were stored, and a hash of
 * them by the types' own hash functions, so that equal keys have equal hashes
 * whatever their images are (1.0 and 1.00).  Found by the hash, compared by the
 * types' equality.  The hash covers types and collations: of a column that
 * changes its type no records are found any more, as its values are others; ALTER TABLE makes new ones
 * of them (carried_versions.c).  It also covers which columns of the table the key has: a table may
 * get another one, by which what was recorded speaks of other rows or of none.  Where records
 * are not found by the hash of their key (claims of its values, and all of a table) the stored values
 * must at least have the form of such a type.
 *
 * WHO SEES THEM.  They are looked for with a dirty snapshot, and a transaction in
 * progress that has added one is waited for: it is another worker that deletes
 * what this one is about to insert.
 *
 * NONE.  Most of the time there are no records, and nobody should pay for asking.
 * A counter in shared memory goes up with each record that anybody adds; who
 * has found that a table has none does not look again until it changes.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "krahodb/clock.h"
#include "krahodb/conflict.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/version_record.h"

/* The columns of type krahodb.version_record, in its order. */
#define RECORD_COLUMNS(X) \
	X(STAMP, TIMESTAMPTZOID) \
	X(RELID, OIDOID) \
	X(HASH, INT8OID) \
	X(KIND, CHAROID) \
	X(INDEX, OIDOID) \
	X(KEY, BYTEAOID) \
	X(CLAIMED, BYTEAOID) \
	X(TS, TIMESTAMPTZOID) \
	X(NODE, INT8OID) \
	X(SHOWN_TS, TIMESTAMPTZOID) \
	X(SHOWN_NODE, INT8OID)

#define AS_INDEX(name, type)	REC_##name,
#define AS_TYPE(name, type)		type,

typedef enum RecordColumn
{
	RECORD_COLUMNS(AS_INDEX)
	NCOLUMNS
} RecordColumn;

static const Oid column_types[NCOLUMNS] = {RECORD_COLUMNS(AS_TYPE)};

KdbRecordStore KdbVersionRecordStore = {
	.name = "version_records",
	.changes = 1,				/* nobody knows anything yet */
	.ncolumns = NCOLUMNS,
	.types = column_types
};

/* Records are kept for that long at least, and looked through that often at most. */
#define KEEP_US		(60 * USECS_PER_SEC)

static bool rotation_due = false;
static TimestampTz prune_at = 0;

/* See version_record.h. */
bool
KdbVersionRecordsPresent(void)
{
	return KdbRecordPresent(&KdbVersionRecordStore);
}

static uint64
appended(void)
{
	return pg_atomic_read_u64(&KdbShared->version_records);
}

/*
 * ---- keys ----
 */

static uint64
hash_of(const KdbRecordedKey *key, Oid place)
{
	uint64		hash = hash_uint32_extended(place, 0);

	for (int i = 0; i < key->n; i++)
	{
		/* with the equality, as a hash that does not fit it is forgotten when that gets known */
		TypeCacheEntry *type = lookup_type_cache(key->types[i],
												 TYPECACHE_EQ_OPR_FINFO | TYPECACHE_HASH_EXTENDED_PROC_FINFO);
		uint64		h = 0;

		if (key->operators)
			h = 2;
		else if (key->isnull[i])
			h = 1;
		else if (OidIsValid(type->hash_extended_proc_finfo.fn_oid))
			h = DatumGetUInt64(FunctionCall2Coll(&type->hash_extended_proc_finfo,
												 key->collations[i], key->values[i],
												 UInt64GetDatum(0)));
		hash = hash_combine64(hash, hash_uint32_extended(key->types[i], key->collations[i]));
		hash = hash_combine64(hash, hash_uint32_extended((uint32) key->columns[i], 0));
		hash = hash_combine64(hash, h);
	}
	return hash;
}

/* See version_record.h. */
uint64
KdbRecordedKeyHash(const KdbRecordedKey *key)
{
	return hash_of(key, InvalidOid);
}

/* See version_record.h. */
uint64
KdbClaimedHash(const KdbRecordedKey *claimed, Oid place, const KdbRecordedKey *key)
{
	uint64		hash = hash_of(claimed, place);

	for (int i = 0; i < key->n; i++)
		hash = hash_combine64(hash, hash_uint32_extended((uint32) key->columns[i], 0));
	return hash;
}

static bytea *
image_of(const KdbRecordedKey *key)
{
	KdbRecordedKey flat = *key;
	Size		size = VARHDRSZ;
	bytea	   *result;
	char	   *p;

	for (int i = 0; i < key->n; i++)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(key->types[i], &len, &byval);
		if (len == -1 && !flat.isnull[i])
			flat.values[i] = PointerGetDatum(PG_DETOAST_DATUM(flat.values[i]));
		size += datumEstimateSpace(flat.values[i], flat.isnull[i], byval, len);
	}
	result = palloc0(size);
	p = VARDATA(result);
	for (int i = 0; i < key->n; i++)
	{
		int16		len;
		bool		byval;

		get_typlenbyval(key->types[i], &len, &byval);
		datumSerialize(flat.values[i], flat.isnull[i], byval, len, &p);
	}
	SET_VARSIZE(result, size);
	return result;
}

/* Is this the image of a stored value of that type, as far as one can tell? */
static bool
has_form(const char *image, Oid type)
{
	int			length;
	int16		typlen;
	bool		byval;
	uint32		header;

	memcpy(&length, image, sizeof(length));
	get_typlenbyval(type, &typlen, &byval);
	if (length == -2)
		return true;			/* NULL */
	if (byval || length < 0)
		return byval && length == -1;
	if (typlen != -1)
		return typlen == -2 || length == typlen;
	if (length < VARHDRSZ)
		return false;
	memcpy(&header, image + sizeof(length), sizeof(header));
	return VARATT_IS_4B_U(&header) && VARSIZE_4B(&header) == (Size) length;
}

static bool
same_value(const KdbRecordedKey *key, int i, Datum stored)
{
	TypeCacheEntry *type = lookup_type_cache(key->types[i], TYPECACHE_EQ_OPR_FINFO);

	if (key->operators)
		return DatumGetBool(FunctionCall2Coll(unconstify(FmgrInfo *, &key->operators[i].sk_func),
											  key->operators[i].sk_collation,
											  stored, key->values[i]));
	if (OidIsValid(type->eq_opr_finfo.fn_oid))
		return DatumGetBool(FunctionCall2Coll(&type->eq_opr_finfo, key->collations[i],
											  stored, key->values[i]));
	return datum_image_eq(stored, key->values[i], type->typbyval, type->typlen);
}

/*
 * Does the stored image hold an equal (or conflicting) key?  Both have the same
 * types, by the hash.
 */
static bool
same_key(const KdbRecordedKey *key, Datum image)
{
	bytea	   *stored = DatumGetByteaPP(image);
	Size		size = VARSIZE_ANY_EXHDR(stored);
	char	   *copy = palloc(size);
	char	   *p = copy;

	memcpy(copy, VARDATA_ANY(stored), size);
	for (int i = 0; i < key->n; i++)
	{
		bool		isnull;
		Datum		value;

		if (p >= copy + size || !has_form(p, key->types[i]))
			return false;
		value = datumRestore(&p, &isnull);
		if (isnull != key->isnull[i])
			return false;
		if (isnull)
			continue;
		if (!same_value(key, i, value))
			return false;
	}
	return true;
}

/*
 * ---- adding ----
 */

/*
 * For how long records are kept: until the retention horizon has passed them, as then
 * all that arrives is newer.  For ever if the horizon is not known.
 */
static int64
keep_us(void)
{
	TimestampTz horizon = KdbHorizonTimestamp();

	if (horizon == 0)
		return PG_INT64_MAX;
	return Max(GetCurrentTimestamp() - horizon, KEEP_US);
}

/* See version_record.h. */
void
KdbVersionRecordAdd(Oid relid, const KdbVersionRecord *record, const KdbRecordedKey *key,
					Oid place, const KdbRecordedKey *claimed)
{
	Datum		values[NCOLUMNS];
	bool		isnull[NCOLUMNS] = {false};
	TimestampTz stamp = Max(KdbTimeHere(), record->version.ts);
	MemoryContext context;
	MemoryContext old;

	if (!KdbVersionRecordsPresent())
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB version record",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	values[REC_STAMP] = TimestampTzGetDatum(stamp);
	values[REC_RELID] = ObjectIdGetDatum(relid);
	values[REC_HASH] = Int64GetDatum((int64) (claimed ? KdbClaimedHash(claimed, place, key) : hash_of(key, place)));
	values[REC_KIND] = CharGetDatum((char) record->kind);
	values[REC_INDEX] = ObjectIdGetDatum(place);
	values[REC_KEY] = PointerGetDatum(image_of(key));
	isnull[REC_CLAIMED] = claimed == NULL && record->merged == NULL;
	values[REC_CLAIMED] = PointerGetDatum(claimed ? image_of(claimed) : record->merged);
	values[REC_TS] = TimestampTzGetDatum(record->version.ts);
	values[REC_NODE] = Int64GetDatum((int64) record->version.node);
	values[REC_SHOWN_TS] = TimestampTzGetDatum(record->shown.ts);
	values[REC_SHOWN_NODE] = Int64GetDatum((int64) record->shown.node);
	if (KdbRecordAppend(&KdbVersionRecordStore, values, isnull) &&
		KdbRecordRotationDue(&KdbVersionRecordStore, keep_us()))
		rotation_due = true;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);

	/* Behind the record, so that who sees the numbers also finds the record. */
	if (record->kind == KDB_RECORD_FLOOR || record->kind == KDB_RECORD_AGAIN)
		pg_atomic_fetch_add_u64(&KdbShared->floors, 1);
	pg_atomic_fetch_add_u64(&KdbShared->version_records, 1);
}

/* An advisory lock of a class that SQL has not. */
#define KEY_LOCK_CLASS	0x4b44	/* KD */

/* See version_record.h. */
void
KdbVersionRecordsLock(Oid relid, const KdbRecordedKey *key)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, relid, (uint32) hash_of(key, InvalidOid), KEY_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * ---- looking ----
 */

/*
 * A scan over the records of a table, by hash if there is one; with a dirty snapshot
 * if none is given.
 */
typedef struct Look
{
	KdbRecordScan scan;
	SnapshotData dirty;
} Look;

static void
begin_look(Look *look, Oid relid, const uint64 *hash, Snapshot snapshot)
{
	InitDirtySnapshot(look->dirty);
	look->dirty.xmin = InvalidTransactionId;
	memset(&look->scan, 0, sizeof(look->scan));
	look->scan.store = &KdbVersionRecordStore;
	look->scan.snapshot = snapshot ? snapshot : &look->dirty;
	look->scan.nkeys = hash ? 2 : 1;
	look->scan.columns[0] = REC_RELID + 1;
	look->scan.values[0] = ObjectIdGetDatum(relid);
	if (hash)
	{
		look->scan.columns[1] = REC_HASH + 1;
		look->scan.values[1] = Int64GetDatum((int64) *hash);
	}
	KdbRecordScanBegin(&look->scan);
}

/* Next record; NULL at the end.  *wait: whose transaction it is, if not over. */
static TupleTableSlot *
next_record(Look *look, TransactionId *wait)
{
	TupleTableSlot *slot = KdbRecordScanNext(&look->scan);

	*wait = InvalidTransactionId;
	if (slot && TransactionIdIsValid(look->dirty.xmin))
		*wait = look->dirty.xmin;
	return slot;
}

/*
 * A time until when it is needed at least, as the horizon must pass the end of the transaction,
 * which is still to come; and no node.
 */
#define NODE_OF_RECORD	PG_UINT64_MAX

KdbVersion
KdbVersionOfRecord(void)
{
	return (KdbVersion){GetCurrentTimestamp() + KDB_REWRITE_KEEP_US, NODE_OF_RECORD};
}

/* See version_record.h. */
bool
KdbIsVersionOfRecord(KdbVersion version)
{
	return version.node == NODE_OF_RECORD;
}

/*
 * What is not known of this transaction stays greater than all that is; what is not known any more
 * is older.
 */
static void
find_version(KdbVersionRecord *record, TransactionId writer)
{
	KdbLocalRow row = {0};

	if (record->version.node != NODE_OF_RECORD || record->own)
		return;
	KdbTransactionVersion(writer, InvalidRepOriginId, 0, &row);
	record->version = row.version_known ? row.version : (KdbVersion) {0, 0};
}

static Datum
column(TupleTableSlot *slot, RecordColumn c)
{
	bool		isnull;

	return slot_getattr(slot, c + 1, &isnull);
}

static void
read_record(TupleTableSlot *slot, KdbVersionRecord *record)
{
	bool		isnull;
	Datum		xmin = slot_getsysattr(slot, MinTransactionIdAttributeNumber, &isnull);

	record->kind = (KdbVersionRecordKind) DatumGetChar(column(slot, REC_KIND));
	record->version.ts = DatumGetTimestampTz(column(slot, REC_TS));
	record->version.node = (uint64) DatumGetInt64(column(slot, REC_NODE));
	record->shown.ts = DatumGetTimestampTz(column(slot, REC_SHOWN_TS));
	record->shown.node = (uint64) DatumGetInt64(column(slot, REC_SHOWN_NODE));
	record->own = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
	record->merged = NULL;
	record->hash = (uint64) DatumGetInt64(column(slot, REC_HASH));
	find_version(record, DatumGetTransactionId(xmin));
}

/* See version_record.h. */
bool
KdbVersionRecordsLook(Oid relid, KdbVersionRecordsKnown *known)
{
	uint64		now = appended();
	uint64		changes = KdbVersionRecordStore.changes;
	TransactionId wait;
	Look		look;

	if (known->any && known->changes == changes)
		return true;
	/* what is known of an absent store is found out each time */
	if (!KdbVersionRecordsPresent())
		return false;
	begin_look(&look, relid, NULL, NULL);
	known->any = next_record(&look, &wait) != NULL;
	KdbRecordScanEnd(&look.scan);
	known->appended = now;
	known->changes = changes;
	return known->any;
}

/*
 * Look at the records with that hash; returns false if somebody had to be waited
 * for, so that all is to be looked at again.
 */
typedef bool (*RecordFilter) (void *arg, TupleTableSlot *slot);

static bool
look_once(Oid relid, uint64 hash, Snapshot snapshot, RecordFilter filter, void *arg)
{
	TransactionId wait = InvalidTransactionId;
	TupleTableSlot *slot;
	Look		look;

	begin_look(&look, relid, &hash, snapshot);
	while ((slot = next_record(&look, &wait)) != NULL)
	{
		if (TransactionIdIsValid(wait))
			break;
		if (!filter(arg, slot))
			break;
	}
	KdbRecordScanEnd(&look.scan);
	if (!TransactionIdIsValid(wait))
		return true;
	XactLockTableWait(wait, NULL, NULL, XLTW_None);
	return false;
}

typedef struct KeyLook
{
	const KdbRecordedKey *key;
	List	   *found;			/* of KdbVersionRecord */
} KeyLook;

static bool
of_key(void *arg, TupleTableSlot *slot)
{
	KeyLook    *look = arg;
	KdbVersionRecord record;

	read_record(slot, &record);
	if (record.kind != KDB_RECORD_CLAIM && same_key(look->key, column(slot, REC_KEY)))
	{
		KdbVersionRecord *copy = palloc(sizeof(KdbVersionRecord));

		*copy = record;
		if (record.kind == KDB_RECORD_MERGED || record.kind == KDB_RECORD_SEALED ||
			record.kind == KDB_RECORD_AGAIN || record.kind == KDB_RECORD_REWRITTEN)
			copy->merged = DatumGetByteaPCopy(column(slot, REC_CLAIMED));
		look->found = lappend(look->found, copy);
	}
	return true;
}

/* See version_record.h. */
void
KdbVersionRecordsOfKey(Oid relid, const KdbRecordedKey *key,
					   KdbVersionRecordCallback callback, void *arg)
{
	KdbVersionRecordsOfKeyIn(relid, key, NULL, callback, arg);
}

/* See version_record.h. */
void
KdbVersionRecordsOfKeyIn(Oid relid, const KdbRecordedKey *key, Snapshot snapshot,
						 KdbVersionRecordCallback callback, void *arg)
{
	KeyLook		look = {key, NIL};
	uint64		hash = hash_of(key, InvalidOid);
	ListCell   *lc;

	while (!look_once(relid, hash, snapshot, of_key, &look))
		look.found = NIL;
	foreach(lc, look.found)
		callback(arg, lfirst(lc));
}

/* The values of a stored image; types are not filled in. */
static void
values_of(Datum image, int n, KdbRecordedKey *key)
{
	bytea	   *stored = DatumGetByteaPCopy(image);
	char	   *p = VARDATA(stored);
	char	   *end = p + VARSIZE(stored) - VARHDRSZ;

	memset(key, 0, sizeof(KdbRecordedKey));
	while (key->n < n && p < end)
	{
		key->images[key->n] = p;
		key->values[key->n] = datumRestore(&p, &key->isnull[key->n]);
		key->n++;
	}
}

/* See version_record.h. */
bool
KdbRecordedValueFits(const KdbRecordedKey *key, int i, Oid type)
{
	return key->images[i] != NULL && has_form(key->images[i], type);
}

/* See version_record.h. */
void
KdbVersionRecordsOfTable(Oid relid, TimestampTz since, int nkeys,
						 KdbTableRecordCallback callback, void *arg)
{
	TupleTableSlot *slot;
	MemoryContext context;
	Look		look;

	if (!KdbVersionRecordsPresent())
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB version record",
									ALLOCSET_SMALL_SIZES);
	begin_look(&look, relid, NULL, GetActiveSnapshot());
	while ((slot = KdbRecordScanNext(&look.scan)) != NULL)
	{
		MemoryContext old;
		KdbVersionRecord record;
		KdbRecordedKey key;
		KdbRecordedKey claimed;
		bool		no_claim;
		Datum		image;

		read_record(slot, &record);
		if (record.version.ts <= since || record.kind == KDB_RECORD_FLOOR ||
			record.kind == KDB_RECORD_AGAIN || record.kind == KDB_RECORD_REWRITTEN)
			continue;
		old = MemoryContextSwitchTo(context);
		values_of(column(slot, REC_KEY), nkeys, &key);
		image = slot_getattr(slot, REC_CLAIMED + 1, &no_claim);
		no_claim |= record.kind != KDB_RECORD_CLAIM;
		if (!no_claim)
			values_of(image, INDEX_MAX_KEYS, &claimed);
		if (record.kind == KDB_RECORD_MERGED || record.kind == KDB_RECORD_SEALED)
			record.merged = (bytea *) DatumGetPointer(image);
		callback(arg, &record, &key, DatumGetObjectId(column(slot, REC_INDEX)),
				 no_claim ? NULL : &claimed);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	KdbRecordScanEnd(&look.scan);
	MemoryContextDelete(context);
}

/* See version_record.h. */
void
KdbVersionRecordsForget(Oid relid)
{
	TupleTableSlot *slot;
	Look		look;

	if (!KdbVersionRecordsPresent())
		return;
	begin_look(&look, relid, NULL, GetActiveSnapshot());
	while ((slot = KdbRecordScanNext(&look.scan)) != NULL)
	{
		char		kind = DatumGetChar(column(slot, REC_KIND));

		CHECK_FOR_INTERRUPTS();
		if (kind != KDB_RECORD_FLOOR && kind != KDB_RECORD_AGAIN && kind != KDB_RECORD_REWRITTEN)
			KdbRecordScanDelete(&look.scan);
	}
	KdbRecordScanEnd(&look.scan);
}

typedef struct ClaimLook
{
	const KdbRecordedKey *claimed;
	const KdbRecordedKey *key;
	Oid			place;
	KdbVersion	version;
	bool		found;
} ClaimLook;

static bool
is_newer_claim(void *arg, TupleTableSlot *slot)
{
	ClaimLook  *look = arg;
	KdbVersionRecord record;

	read_record(slot, &record);
	look->found = record.kind == KDB_RECORD_CLAIM &&
		DatumGetObjectId(column(slot, REC_INDEX)) == look->place &&
		KdbVersionCompare(record.version, look->version) > 0 &&
		same_key(look->claimed, column(slot, REC_CLAIMED)) &&
		!same_key(look->key, column(slot, REC_KEY));
	return !look->found;
}

/* See version_record.h. */
bool
KdbVersionRecordsClaimed(Oid relid, Oid place, const KdbRecordedKey *claimed,
						 const KdbRecordedKey *key, KdbVersion version)
{
	ClaimLook	look = {claimed, key, place, version, false};
	uint64		hash = KdbClaimedHash(claimed, place, key);

	while (!look_once(relid, hash, NULL, is_newer_claim, &look))
		continue;
	return look.found;
}

/* Is it time to look for generations that are behind the horizon? */
static bool
prune_due(void)
{
	TimestampTz now = GetCurrentTransactionStopTimestamp();

	if (now < prune_at || KdbHorizonTimestamp() == 0)
		return false;
	prune_at = now + KEEP_US;
	return true;
}

/* See version_record.h. */
void
KdbVersionRecordsMaintain(void)
{
	RepOriginId origin = replorigin_session_origin;
	MemoryContext old = CurrentMemoryContext;
	bool		prune = prune_due();
	int			busy = 0;

	if (!rotation_due && !prune)
		return;
	replorigin_session_origin = InvalidRepOriginId;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (rotation_due && keep_us() < PG_INT64_MAX)
		KdbRecordRotate(&KdbVersionRecordStore, keep_us());
	else if (prune)
		(void) KdbRecordPrune(&KdbVersionRecordStore, KdbHorizonTimestamp(), &busy);
	rotation_due = false;
	PopActiveSnapshot();
	CommitTransactionCommand();
	replorigin_session_origin = origin;
	replorigin_session_origin_timestamp = 0;
	MemoryContextSwitchTo(old);
}
