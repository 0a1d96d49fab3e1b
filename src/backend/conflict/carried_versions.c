/*
 * carried_versions.c
 *		The versions of rows that ALTER TABLE writes anew.
 *
 * A command that rewrites a table makes all rows its own, and leaves no dead ones.  What is newer
 * than the retention horizon must be known all the same: a change that is older than
 * such a row, or than such a deletion, and still on its way, loses everywhere else.  So
 *
 * 1.	before the command, what is needed to read the old rows is noted: columns, key, unique indexes.
 *		Most commands rewrite nothing, so that must be cheap.
 * 2.	when the engine is about to write the new rows (it has made the table that
 *		will hold them, which the object access hook tells), heap and version records
 *		are read as they are read for an initial copy: KdbListHeap.  The table is
 *		locked exclusively.  By then the catalogs have the new types, and some old indexes are gone.
 * 3.	after the command, when its command ids are known, all of it becomes version records
 *		of the table as it is now.
 *
 * In between it is a list of lines in a tuplestore, each with a version and some columns of a row as
 * it was, dead or alive:
 *
 *	t, d, c		from the heap: a live row, a death, unique values that a dead row had
 *	T, D, C		from version records; C with the index
 *	X			C of an index of expressions, without their values
 *	K, M, S		from version records, see below
 *	H			what a key's merged columns consist of
 *
 * Live rows get TRUTH records that name the command (rewritten.c), and by these their
 * claims are known too.  Deaths become DEAD records.  D records stay good where the key is as it was, C records where the
 * index is, too: one that was only built anew is the same (index_place.c), one with a column
 * that was altered is not.
 *
 * NOT REWRITTEN.  Where the new type has the same representation the rows stay, and so do their versions.
 * But records of keys and of unique values are found by their types, and the index may be a new one.
 * Then the records are carried over, KILLED ones and those of merged columns too, with what they name as shown.
 *
 * OTHER KEYS.  USING may make other keys of the same type: 2 of 1, 3 of 2.  What was recorded of key 2 would then speak of
 * another row.  So whenever keys become others the old records are deleted.  (By a key of other
 * columns they are not found, version_record.c.)
 *
 * WHAT THIS TRANSACTION has done before the command is the newest of all, at a version that nobody
 * knows yet: KdbVersionOfRecord.
 *
 * THE HORIZON may move meanwhile.  What it passes is not needed any more.  If it is not known, nothing
 * is carried.
 *
 * MERGED COLUMNS.  Of these there is more to know than versions: KdbCarriedHistories.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "krahodb/horizon_shared.h"

#include "conflict_private.h"

struct KdbCarried
{
	KdbListing	before;
	KdbCarriedValues *values;
	Bitmapset  *needed;			/* columns of a line from the heap */
	MemoryContext context;
	TupleDesc	line_desc;
	Tuplestorestate *lines;		/* NULL: nothing was read */
	KdbCarriedHistories histories;	/* zeros: no merged columns */
};

/* Columns of a line; those of the row follow. */
enum
{
	LINE_KIND,
	LINE_TS,
	LINE_NODE,
	LINE_INDEX,
	LINE_SHOWN_TS,
	LINE_SHOWN_NODE,
	LINE_IMAGE,					/* of a record of merged columns, else NULL */
	LINE_COLUMNS
};

/* ---- 1. before ------------------------------------------------------------- */

static void
describe_lines(KdbCarried *carried)
{
	TupleDesc	row = carried->before.desc;
	TupleDesc	desc = CreateTemplateTupleDesc(LINE_COLUMNS + row->natts);

	TupleDescInitEntry(desc, LINE_KIND + 1, "kind", CHAROID, -1, 0);
	TupleDescInitEntry(desc, LINE_TS + 1, "ts", INT8OID, -1, 0);
	TupleDescInitEntry(desc, LINE_NODE + 1, "node", INT8OID, -1, 0);
	TupleDescInitEntry(desc, LINE_INDEX + 1, "index", OIDOID, -1, 0);
	TupleDescInitEntry(desc, LINE_SHOWN_TS + 1, "shown_ts", INT8OID, -1, 0);
	TupleDescInitEntry(desc, LINE_SHOWN_NODE + 1, "shown_node", INT8OID, -1, 0);
	TupleDescInitEntry(desc, LINE_IMAGE + 1, "image", BYTEAOID, -1, 0);
	for (int i = 0; i < row->natts; i++)
		TupleDescCopyEntry(desc, LINE_COLUMNS + i + 1, row, i + 1);
	carried->line_desc = desc;
}

/* See conflict.h. */
KdbCarried *
KdbCarriedPrepare(Relation rel, List *commands)
{
	KdbCarried *carried = palloc0(sizeof(KdbCarried));

	carried->context = CurrentMemoryContext;
	if (!KdbListingPrepare(&carried->before, rel))
		return NULL;
	carried->values = KdbCarriedValuesPrepare(rel, commands);
	carried->needed = KdbCarriedValuesNeeded(carried->values, carried->before.indexed);
	carried->before.columns = carried->needed;
	describe_lines(carried);
	return carried;
}

/* See conflict.h. */
void
KdbCarriedSetHistories(KdbCarried *carried, const KdbCarriedHistories *histories)
{
	carried->histories = *histories;
}

/* ---- 2. the old rows ------------------------------------------------------- */

typedef struct Line
{
	Datum	   *values;
	bool	   *isnull;
} Line;

static void
begin_line(const KdbCarried *carried, Line *line, char kind, KdbVersion version, Oid place)
{
	int			n = carried->line_desc->natts;

	line->values = palloc0_array(Datum, n);
	line->isnull = palloc_array(bool, n);
	memset(line->isnull, true, n * sizeof(bool));
	line->values[LINE_KIND] = CharGetDatum(kind);
	line->values[LINE_TS] = Int64GetDatum(version.ts);
	line->values[LINE_NODE] = Int64GetDatum((int64) version.node);
	line->values[LINE_INDEX] = ObjectIdGetDatum(place);
	memset(line->isnull, false, LINE_COLUMNS * sizeof(bool));
	line->isnull[LINE_IMAGE] = true;
}

static void
set_image(Line *line, bytea *image)
{
	line->values[LINE_IMAGE] = PointerGetDatum(PG_DETOAST_DATUM(PointerGetDatum(image)));
	line->isnull[LINE_IMAGE] = false;
}

/* Out-of-line values will be gone. */
static void
set_column(const KdbCarried *carried, Line *line, AttrNumber attnum, Datum value, bool isnull)
{
	int			i = LINE_COLUMNS + attnum - 1;

	if (!isnull && TupleDescAttr(carried->line_desc, i)->attlen == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM(value));
	line->values[i] = value;
	line->isnull[i] = isnull;
}

static void
end_line(KdbCarried *carried, Line *line)
{
	tuplestore_putvalues(carried->lines, carried->line_desc, line->values, line->isnull);
}

static void
keep_row(void *arg, char kind, KdbVersion version, TupleTableSlot *slot)
{
	KdbCarried *carried = arg;
	int			attnum = -1;
	Line		line;

	begin_line(carried, &line, kind, version, InvalidOid);
	while ((attnum = bms_next_member(carried->needed, attnum)) >= 0)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, (AttrNumber) attnum, &isnull);

		set_column(carried, &line, (AttrNumber) attnum, value, isnull);
	}
	end_line(carried, &line);
}

static bool
set_recorded(const KdbCarried *carried, Line *line, const KdbRecordedKey *key, int n, const AttrNumber *columns)
{
	if (key->n < n)
		return false;
	for (int i = 0; i < n; i++)
	{
		/* it may be older than the column's type */
		if (!KdbRecordedValueFits(key, i, TupleDescAttr(carried->before.desc, columns[i] - 1)->atttypid))
			return false;
		set_column(carried, line, columns[i], key->values[i], key->isnull[i]);
	}
	return true;
}

/* 0: it is not carried. */
static char
kind_of_line(const KdbVersionRecord *record, const KdbUniqueIndex *index, bool rewriting)
{
	switch (record->kind)
	{
		case KDB_RECORD_TRUTH:
			return 'T';
		case KDB_RECORD_DEAD:
			return 'D';
		case KDB_RECORD_KILLED:
			return rewriting ? 0 : 'K';
		case KDB_RECORD_MERGED:
			return rewriting ? 0 : 'M';
		case KDB_RECORD_SEALED:
			return rewriting ? 0 : 'S';
		case KDB_RECORD_CLAIM:
			if (index)
				return index->plain ? 'C' : 'X';
			return 0;
		default:
			return 0;
	}
}

static void
keep_record(void *arg, const KdbVersionRecord *record, const KdbRecordedKey *key,
			Oid place, const KdbRecordedKey *claimed)
{
	KdbCarried *carried = arg;
	const KdbListing *before = &carried->before;
	const KdbUniqueIndex *index = KdbListingIndex(before, place);
	MemoryContext old = MemoryContextSwitchTo(before->context);
	char		kind = kind_of_line(record, index, before->rewriting);
	Line		line;

	begin_line(carried, &line, kind, record->version, place);
	line.values[LINE_SHOWN_TS] = Int64GetDatum(record->shown.ts);
	line.values[LINE_SHOWN_NODE] = Int64GetDatum((int64) record->shown.node);
	if (kind != 0 && record->merged)
		set_image(&line, record->merged);
	if (kind != 0 && KdbListingNeeds(before, record, key, place, claimed) && set_recorded(carried, &line, key, before->nkeys, before->keys) &&
		(kind != 'C' || set_recorded(carried, &line, claimed, index->n, index->columns)))
		end_line(carried, &line);
	MemoryContextSwitchTo(old);
	MemoryContextReset(before->context);
}

/* See conflict.h. */
void
KdbCarriedHistory(KdbCarried *carried, const KdbRecordedKey *key, KdbVersion version, bytea *image)
{
	const KdbListing *before = &carried->before;
	MemoryContext old = MemoryContextSwitchTo(before->context);
	Line		line;

	begin_line(carried, &line, 'H', version, InvalidOid);
	for (int i = 0; i < before->nkeys; i++)
		set_column(carried, &line, before->keys[i], key->values[i], key->isnull[i]);
	set_image(&line, image);
	end_line(carried, &line);
	MemoryContextSwitchTo(old);
	MemoryContextReset(before->context);
}

/*
 * Where rows stay, all records do, whatever the horizon: the base of what is added up (of version {0, 0}) would be
 * missing.
 */
static void
read_versions(KdbCarried *carried, Relation rel)
{
	KdbListing *before = &carried->before;

	carried->lines = tuplestore_begin_heap(false, false, work_mem);
	before->put_row = keep_row;
	before->arg = carried;
	before->context = AllocSetContextCreate(carried->context, "KrahoDB carried version",
											ALLOCSET_DEFAULT_SIZES);
	KdbTransactionVersionForget();
	PushActiveSnapshot(GetLatestSnapshot());
	if (before->rewriting)
		KdbListHeap(before, rel, GetActiveSnapshot());
	KdbVersionRecordsOfTable(before->relid, before->rewriting ? before->since : PG_INT64_MIN,
							 before->nkeys, keep_record, carried);
	if (before->rewriting && carried->histories.read)
		carried->histories.read(carried->histories.state, carried, rel, before->since);
	PopActiveSnapshot();
}

/* See conflict.h. */
void
KdbCarriedRead(KdbCarried *carried)
{
	MemoryContext old;
	Relation	rel;

	carried->before.rewriting = true;
	carried->before.since = KdbHorizonTimestamp();
	if (carried->before.since == 0 || carried->lines)
		return;
	old = MemoryContextSwitchTo(carried->context);
	rel = table_open(carried->before.relid, NoLock);
	if (table_slot_callbacks(rel) == &TTSOpsBufferHeapTuple)
		read_versions(carried, rel);
	table_close(rel, NoLock);
	MemoryContextSwitchTo(old);
}

/* ---- 3. what becomes of a line --------------------------------------------- */

typedef struct NewIndex
{
	Relation	index;
	Oid			place;
	IndexInfo  *info;
	Bitmapset  *columns;
	KdbRecordedKey values;		/* but for the values; in a line, those it claims */
	bool		claimed;
} NewIndex;

typedef struct Writer
{
	KdbCarried *carried;
	Relation	rel;
	KdbListing	now;
	KdbVersion	shown;			/* by the rows that the command has written; else by the line */
	bool		same_key;
	bool		careful;		/* something is converted */
	bool		careful_histories;
	EState	   *estate;
	List	   *indexes;		/* of NewIndex */
	TupleTableSlot *line;
	TupleTableSlot *old_row;
	TupleTableSlot *new_row;
	bool		lost;

	/* of the line */
	char		kind;
	Oid			place;			/* of the index */
	KdbVersion	version;
	bytea	   *image;
	Bitmapset  *available;		/* columns of the old row */
	Bitmapset  *converted;		/* columns of the new one */
} Writer;

static KdbRecordedKey
key_of(const Writer *w)
{
	KdbRecordedKey key = {.n = w->now.nkeys, .operators = w->now.equality};

	for (int i = 0; i < key.n; i++)
	{
		AttrNumber	attnum = w->now.keys[i];

		key.values[i] = w->new_row->tts_values[attnum - 1];
		key.isnull[i] = w->new_row->tts_isnull[attnum - 1];
		key.types[i] = TupleDescAttr(w->now.desc, attnum - 1)->atttypid;
		key.collations[i] = w->now.collations[i];
		key.columns[i] = attnum;
	}
	return key;
}

static bool
has_key(const Writer *w)
{
	for (int i = 0; i < w->now.nkeys; i++)
	{
		if (!bms_is_member(w->now.keys[i], w->converted))
			return false;
	}
	return true;
}

/* Index expressions are code of the table's owner. */
static void
form_values(const Writer *w, NewIndex *index)
{
	Oid			user;
	int			security;

	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(w->rel->rd_rel->relowner, security | SECURITY_RESTRICTED_OPERATION);
	index->claimed = KdbFormIndexValues(index->info, w->new_row, w->estate, index->values.values,
										index->values.isnull);
	SetUserIdAndSecContext(user, security);
}

/* What a dead row has claimed. */
static void
form_claims(const Writer *w)
{
	ListCell   *lc;

	foreach(lc, w->indexes)
	{
		NewIndex   *index = lfirst(lc);

		index->claimed = false;
		if (bms_is_subset(index->columns, w->converted))
			form_values(w, index);
	}
}

/* Is a record of the old index found as one of the new one? */
static bool
finds_records_of(const Writer *w, const NewIndex *index, const KdbUniqueIndex *old)
{
	for (int i = 0; i < old->n && old->plain; i++)
	{
		if (!KdbCarriedValueIsSame(w->carried->values, old->columns[i]))
			return false;
	}
	return w->same_key && index->place == old->place;
}

/* What a record of the old index says.  The one that replaces it is alike, or has its name. */
static void
form_recorded_claim(Writer *w)
{
	const KdbUniqueIndex *old = KdbListingIndex(&w->carried->before, w->place);
	ListCell   *lc;

	foreach(lc, w->indexes)
	{
		NewIndex   *index = lfirst(lc);

		index->claimed = (index->place == old->place ||
						  strcmp(RelationGetRelationName(index->index), old->name) == 0) &&
			!finds_records_of(w, index, old);
		if (!index->claimed)
			continue;
		index->claimed = index->values.n == old->n && old->plain;
		for (int i = 0; index->claimed && i < old->n; i++)
		{
			AttrNumber	attnum = index->info->ii_IndexAttrNumbers[i];

			index->claimed = attnum > 0 && bms_is_member(attnum, w->converted);
			if (!index->claimed)
				break;
			index->values.values[i] = w->new_row->tts_values[attnum - 1];
			index->values.isnull[i] = w->new_row->tts_isnull[attnum - 1];
		}
		w->lost |= !index->claimed;
	}
}

static void
convert_line(void *arg)
{
	Writer	   *w = arg;

	w->converted = KdbCarriedValuesConvert(w->carried->values, w->old_row, w->available, w->new_row);
	if (w->kind == 'c')
		form_claims(w);
	else if (w->kind == 'C' || w->kind == 'X')
		form_recorded_claim(w);
}

static void
convert_history(void *arg)
{
	Writer	   *w = arg;
	const KdbCarriedHistories *histories = &w->carried->histories;

	w->image = histories->convert(histories->state, w->image);
}

/* What a key's merged columns consist of, in a record of the command. */
static void
add_history(Writer *w, const KdbRecordedKey *key)
{
	const KdbCarriedHistories *histories = &w->carried->histories;
	KdbVersionRecord record = {KDB_RECORD_SEALED, w->version, w->shown};
	bytea	   *before = w->image;

	if (!w->careful_histories)
		convert_history(w);
	else if (!KdbTry(convert_history, w))
		w->image = histories->forget(histories->state, before);
	record.merged = w->image;
	if (w->image)
		KdbVersionRecordAdd(w->now.relid, &record, key, InvalidOid, NULL);
}

static void
add_claims(const Writer *w, const KdbRecordedKey *key)
{
	KdbVersionRecord record = {KDB_RECORD_CLAIM, w->version, w->version};
	ListCell   *lc;

	foreach(lc, w->indexes)
	{
		const NewIndex *index = lfirst(lc);

		if (index->claimed)
			KdbVersionRecordAdd(w->now.relid, &record, key, index->place, &index->values);
	}
}

/* Is the record that the line comes from as good as before? */
static bool
is_still_good(const Writer *w)
{
	if (!w->same_key)
		return false;
	return w->kind == 'D' || (!w->carried->before.rewriting && strchr("TKMS", w->kind) != NULL);
}

static void
add_records(Writer *w)
{
	KdbVersionRecord record = {KDB_RECORD_TRUTH, w->version, w->shown};
	KdbRecordedKey key;

	if (is_still_good(w))
		return;
	if (!has_key(w))
	{
		w->lost = true;
		return;
	}
	key = key_of(w);
	if (w->kind == 'd' || w->kind == 'D')
		record.kind = KDB_RECORD_DEAD;
	if (w->kind == 'K')
		record.kind = KDB_RECORD_KILLED;
	if (w->kind == 'M')
		record.kind = KDB_RECORD_MERGED;
	if (w->kind == 'S')
		record.kind = KDB_RECORD_SEALED;
	record.merged = w->image;
	if (w->kind == 'H')
		add_history(w, &key);
	else if (w->kind == 'c' || w->kind == 'C' || w->kind == 'X')
		add_claims(w, &key);
	else
		KdbVersionRecordAdd(w->now.relid, &record, &key, InvalidOid, NULL);
}

/* ---- 3. after -------------------------------------------------------------- */

static void
add_members(Bitmapset **set, const AttrNumber *columns, int n)
{
	for (int i = 0; i < n; i++)
		*set = bms_add_member(*set, columns[i]);
}

/* Columns of the old row that a line has. */
static Bitmapset *
columns_of_line(const Writer *w)
{
	const KdbUniqueIndex *index = KdbListingIndex(&w->carried->before, w->place);
	Bitmapset  *columns = NULL;

	if (w->kind == 't' || w->kind == 'd' || w->kind == 'c')
		return bms_copy(w->carried->needed);
	add_members(&columns, w->carried->before.keys, w->carried->before.nkeys);
	if (w->kind == 'C')
		add_members(&columns, index->columns, index->n);
	return columns;
}

static void
read_line(Writer *w)
{
	int			n = w->carried->before.desc->natts;

	slot_getallattrs(w->line);
	w->kind = DatumGetChar(w->line->tts_values[LINE_KIND]);
	w->version.ts = DatumGetInt64(w->line->tts_values[LINE_TS]);
	w->version.node = (uint64) DatumGetInt64(w->line->tts_values[LINE_NODE]);
	w->place = DatumGetObjectId(w->line->tts_values[LINE_INDEX]);
	w->image = w->line->tts_isnull[LINE_IMAGE] ? NULL : DatumGetByteaP(w->line->tts_values[LINE_IMAGE]);
	if (!w->carried->before.rewriting)
	{
		w->shown.ts = DatumGetInt64(w->line->tts_values[LINE_SHOWN_TS]);
		w->shown.node = (uint64) DatumGetInt64(w->line->tts_values[LINE_SHOWN_NODE]);
	}
	ExecClearTuple(w->old_row);
	memcpy(w->old_row->tts_values, w->line->tts_values + LINE_COLUMNS, n * sizeof(Datum));
	memcpy(w->old_row->tts_isnull, w->line->tts_isnull + LINE_COLUMNS, n * sizeof(bool));
	ExecStoreVirtualTuple(w->old_row);
	w->available = columns_of_line(w);
}

static void
write_line(Writer *w)
{
	bool		done = true;

	read_line(w);
	if (w->careful || w->kind == 'c')
		done = KdbTry(convert_line, w);
	else
		convert_line(w);
	if (done)
		add_records(w);
	ResetPerTupleExprContext(w->estate);
}

static void
write_lines(Writer *w)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB carried version",
												  ALLOCSET_DEFAULT_SIZES);

	while (tuplestore_gettupleslot(w->carried->lines, true, false, w->line))
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		write_line(w);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
}

static void
open_index(Writer *w, Oid oid)
{
	static const ScanKeyData by_operators;
	NewIndex   *new = palloc0(sizeof(NewIndex));

	new->index = index_open(oid, AccessShareLock);
	new->info = BuildIndexInfo(new->index);
	if (oid == w->now.identity || !KdbIsUniqueIndex(new->index))
	{
		index_close(new->index, NoLock);
		return;
	}
	new->place = KdbIndexPlace(new->index);
	new->columns = KdbIndexColumns(new->index, w->now.desc);
	KdbIndexedTypes(new->index, new->info, w->now.desc, &new->values);
	if (new->info->ii_ExclusionOps || KdbIndexHasOwnEquality(new->index, &new->values))
		new->values.operators = &by_operators;
	w->indexes = lappend(w->indexes, new);
}

/* Are keys compared as before, and no others? */
static bool
is_same_key(const Writer *w)
{
	const KdbListing *before = &w->carried->before;

	if (w->now.nkeys != before->nkeys)
		return false;
	for (int i = 0; i < before->nkeys; i++)
	{
		if (w->now.keys[i] != before->keys[i] || w->now.collations[i] != before->collations[i] ||
			!KdbCarriedValueIsSame(w->carried->values, before->keys[i]))
			return false;
	}
	return true;
}

static bool
begin_writing(Writer *w)
{
	const KdbCarried *carried = w->carried;
	int			attnum = -1;
	ListCell   *lc;

	if (!KdbListingPrepare(&w->now, w->rel))
		return false;
	KdbCarriedValuesBuild(carried->values, w->rel, bms_union(carried->before.indexed, carried->histories.columns));
	if (carried->histories.begin)
		w->careful_histories = carried->histories.begin(carried->histories.state, w->carried, w->rel);
	w->same_key = is_same_key(w);
	while ((attnum = bms_next_member(carried->before.indexed, attnum)) >= 0)
		w->careful |= !KdbCarriedValueIsSame(carried->values, (AttrNumber) attnum);
	w->estate = CreateExecutorState();
	foreach(lc, RelationGetIndexList(w->rel))
		open_index(w, lfirst_oid(lc));
	w->line = MakeSingleTupleTableSlot(carried->line_desc, &TTSOpsMinimalTuple);
	w->old_row = MakeSingleTupleTableSlot(carried->before.desc, &TTSOpsVirtual);
	w->new_row = MakeSingleTupleTableSlot(w->now.desc, &TTSOpsVirtual);
	return true;
}

static void
end_writing(Writer *w)
{
	ListCell   *lc;

	ExecDropSingleTupleTableSlot(w->line);
	ExecDropSingleTupleTableSlot(w->old_row);
	ExecDropSingleTupleTableSlot(w->new_row);
	foreach(lc, w->indexes)
		index_close(((NewIndex *) lfirst(lc))->index, NoLock);
	FreeExecutorState(w->estate);
}

static void
forget_keys(const Writer *w)
{
	PushActiveSnapshot(GetLatestSnapshot());
	KdbVersionRecordsForget(w->now.relid);
	PopActiveSnapshot();
}

static bool
has_new_index(const Writer *w)
{
	List	   *indexes = RelationGetIndexList(w->rel);
	ListCell   *lc;

	foreach(lc, w->carried->before.indexes)
	{
		if (!list_member_oid(indexes, ((const KdbUniqueIndex *) lfirst(lc))->oid))
			return true;
	}
	return false;
}

/* False if something could not be carried.  shown: by rows that were written anew. */
static bool
write_versions(KdbCarried *carried, KdbVersion shown)
{
	Writer		w = {.carried = carried, .shown = shown};

	w.rel = table_open(carried->before.relid, NoLock);
	if (begin_writing(&w))
	{
		if (!carried->before.rewriting && (!w.same_key || has_new_index(&w)))
			read_versions(carried, w.rel);
		if (!w.same_key)
			forget_keys(&w);
		if (carried->lines)
			write_lines(&w);
		end_writing(&w);
	}
	if (carried->lines)
		tuplestore_end(carried->lines);
	carried->lines = NULL;
	if (w.lost)
		ereport(WARNING,
				(errmsg("versions of rows of table \"%s\" could not be carried over",
						RelationGetRelationName(w.rel)),
				 errdetail("Changes that are older than these rows, or than deletions, and have not arrived yet, will win here and lose elsewhere."),
				 errhint("Change the key of such a table when writing rests and all changes have arrived.")));
	table_close(w.rel, NoLock);
	return !w.lost && w.now.nkeys > 0;
}

/* See conflict.h. */
void
KdbCarriedFinish(KdbCarried *carried, Oid relid, CommandId first, CommandId last)
{
	KdbRewrite	rewrite = {GetCurrentTransactionId(), first, last};
	bool		known = carried && carried->lines;
	bool		complete = carried && write_versions(carried, KdbRewriteShown(&rewrite)) && known;

	KdbNoteRewrite(relid, first, last, complete);
}

/* See conflict.h. */
void
KdbCarriedNotRewritten(KdbCarried *carried)
{
	MemoryContext old;

	if (!KdbVersionRecordsAny(carried->before.relid, &carried->before.records))
		return;
	old = MemoryContextSwitchTo(carried->context);
	carried->before.rewriting = false;
	carried->before.since = KdbHorizonTimestamp();
	(void) write_versions(carried, (KdbVersion) {0, 0});
	MemoryContextSwitchTo(old);
}

/* See conflict.h. */
bool
KdbCarriedIsSame(const KdbCarried *carried, AttrNumber attnum)
{
	return KdbCarriedValueIsSame(carried->values, attnum);
}

/* See conflict.h. */
bool
KdbCarriedIsCast(const KdbCarried *carried, AttrNumber attnum)
{
	return KdbCarriedValueIsCast(carried->values, attnum);
}

/* See conflict.h. */
bool
KdbCarriedConvert(const KdbCarried *carried, AttrNumber attnum, Datum *value, bool *isnull)
{
	return KdbCarriedValueConvert(carried->values, attnum, value, isnull);
}
