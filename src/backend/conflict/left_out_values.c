/*
 * left_out_values.c
 *		Out-of-line values of dead tuples that the index of the TOAST table lacks.
 *
 * REINDEX TABLE CONCURRENTLY builds the index of the TOAST table anew as well, and as with any other
 * index (left_out.c) without what is dead by then.  The values of dead tuples are still there, kept
 * by the horizon's slot, and whoever reads one gets an error: "missing chunk number 0".  For an apply
 * worker that must know the key of a dead row this would not end, as the horizon waits for the worker.
 *
 * So such values are read from the TOAST table itself, and put into the slot instead of the pointers to
 * them: those that are asked for, of indexed and of merged columns mostly.
 *
 * WHAT IT COSTS.  Nothing for tuples without out-of-line values, and next to nothing while no such index
 * is new.  Else a scan of the TOAST table for each value that its index lacks, for the few seconds until
 * the horizon has passed the build.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/toast_internals.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "krahodb/conflict.h"
#include "krahodb/options.h"

#include "conflict_private.h"

/* Columns of a TOAST table. */
#define CHUNK_ID	1
#define CHUNK_SEQ	2
#define CHUNK_DATA	3

typedef struct Toast
{
	Relation	rel;
	Relation   *indexes;
	int			nindexes;
	int			valid;			/* the index that is used */
	SnapshotData snapshot;
} Toast;

static bool
index_has(Toast *toast, Oid value)
{
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, CHUNK_ID, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(value));
	scan = systable_beginscan_ordered(toast->rel, toast->indexes[toast->valid], &toast->snapshot, 1, &key);
	found = systable_getnext_ordered(scan, ForwardScanDirection) != NULL;
	systable_endscan_ordered(scan);
	return found;
}

/* Its place in the value; returns how many bytes that were. */
static Size
put_chunk(Toast *toast, HeapTuple chunk, struct varlena *value, Size size)
{
	TupleDesc	desc = RelationGetDescr(toast->rel);
	bool		isnull;
	int32		seq = DatumGetInt32(heap_getattr(chunk, CHUNK_SEQ, desc, &isnull));
	struct varlena *data = (struct varlena *) DatumGetPointer(heap_getattr(chunk, CHUNK_DATA, desc, &isnull));
	Size		length = VARSIZE_ANY_EXHDR(data);
	Size		offset = (Size) seq * TOAST_MAX_CHUNK_SIZE;

	if (offset + length > size)
		return 0;
	memcpy(VARDATA(value) + offset, VARDATA_ANY(data), length);
	return length;
}

/* The value from the table itself, maybe compressed; NULL if it is not all there. */
static struct varlena *
read_value(Toast *toast, const struct varatt_external *pointer)
{
	Size		size = VARATT_EXTERNAL_GET_EXTSIZE(*pointer);
	struct varlena *value = palloc(size + VARHDRSZ);
	Size		done = 0;
	ScanKeyData key;
	TableScanDesc scan;
	HeapTuple	chunk;

	ScanKeyInit(&key, CHUNK_ID, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(pointer->va_valueid));
	scan = table_beginscan(toast->rel, &toast->snapshot, 1, &key);
	while ((chunk = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		done += put_chunk(toast, chunk, value, size);
	}
	table_endscan(scan);
	if (done != size)
		return NULL;
	if (VARATT_EXTERNAL_IS_COMPRESSED(*pointer))
		SET_VARSIZE_COMPRESSED(value, size + VARHDRSZ);
	else
		SET_VARSIZE(value, size + VARHDRSZ);
	return value;
}

static void
fill_column(Toast *toast, TupleTableSlot *slot, int i)
{
	struct varatt_external pointer;
	struct varlena *value;

	if (slot->tts_isnull[i] || TupleDescAttr(slot->tts_tupleDescriptor, i)->attlen != -1 ||
		!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(slot->tts_values[i])))
		return;
	VARATT_EXTERNAL_GET_POINTER(pointer, DatumGetPointer(slot->tts_values[i]));
	if (pointer.va_toastrelid != RelationGetRelid(toast->rel) || index_has(toast, pointer.va_valueid))
		return;
	value = read_value(toast, &pointer);
	if (value)
		slot->tts_values[i] = PointerGetDatum(value);
}

/* Columns of indexes, and merged ones. */
static Bitmapset *
usual_columns(Relation rel)
{
	Bitmapset  *indexed = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_ALL);
	Bitmapset  *columns = NULL;
	int			member = -1;
	ListCell   *lc;

	while ((member = bms_next_member(indexed, member)) >= 0)
	{
		if (member + FirstLowInvalidHeapAttributeNumber == 0)	/* the whole row */
			columns = bms_add_range(columns, 1, RelationGetNumberOfAttributes(rel));
		else if (member + FirstLowInvalidHeapAttributeNumber > 0)
			columns = bms_add_member(columns, member + FirstLowInvalidHeapAttributeNumber);
	}
	foreach(lc, KdbMergedColumns(RelationGetRelid(rel)))
		columns = bms_add_member(columns, ((KdbColumnMerge *) lfirst(lc))->attnum);
	return columns;
}

static void
fill_columns(Toast *toast, TupleTableSlot *slot, const Bitmapset *columns)
{
	int			attnum = -1;

	slot_getallattrs(slot);
	while ((attnum = bms_next_member(columns, attnum)) >= 0)
		fill_column(toast, slot, attnum - 1);
}

/* See conflict.h. */
void
KdbReadLeftOutValues(Relation rel, TupleTableSlot *slot, const Bitmapset *columns)
{
	Toast		toast;

	if (!TTS_IS_BUFFERTUPLE(slot) || !OidIsValid(rel->rd_rel->reltoastrelid) ||
		!HeapTupleHasExternal(((HeapTupleTableSlot *) slot)->tuple) ||
		!TransactionIdIsValid(KdbTupleEndedBy(slot)))
		return;
	toast.rel = table_open(rel->rd_rel->reltoastrelid, AccessShareLock);
	toast.valid = toast_open_indexes(toast.rel, AccessShareLock, &toast.indexes, &toast.nindexes);
	if (TransactionIdIsValid(KdbIndexLacksBefore(toast.indexes[toast.valid])))
	{
		init_toast_snapshot(&toast.snapshot);
		fill_columns(&toast, slot, columns ? columns : usual_columns(rel));
	}
	toast_close_indexes(toast.indexes, toast.nindexes, AccessShareLock);
	table_close(toast.rel, AccessShareLock);
}
