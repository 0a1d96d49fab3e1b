/*
 * merged_history.c
 *		What writes have contributed to the merged columns of a key.
 *
 * WHERE IT IS.  Each write that was newer than all others left a version of the row
 * in the heap, and what it contributed is the difference to the version before: so
 * do all writes of local users, who need no more than that, and most writes that are
 * applied.  Contributions that left no row, or one that shows something else (a write
 * that lost, or came to a dead key, an INSERT over a row, a value to or from NULL
 * over one that its writer had not seen) are in version records.
 *
 * A transaction of which anything is recorded for the key has all its contributions
 * to the key recorded (KdbMergedBeforePut sees to it), so that its rows in the heap
 * count for nothing: that is what a record's "shown" is for.
 *
 * CHAINS.  The index finds all versions of the row that vacuum has left.  An update
 * links a version to the next (ctid), so they form chains; a key that was deleted and
 * inserted again has several.  The first of a chain is an assignment: it was
 * inserted, or what was before it has been vacuumed, so is behind the horizon.
 *
 * HORIZON.  What is behind it counts as one assignment.  Vacuum and the removal of
 * records do not happen at the same time, and changes do not arrive in the order of
 * their versions, so there is no place in a chain before which all is behind the
 * horizon and after which nothing.  The assignment's value is that of the last version
 * in the chain whose transaction is behind, with what newer transactions had contributed
 * by then taken out again: these count by themselves.  (To take out is to subtract. A
 * maximum need not be: it counts again, with the same result.  If one of them was an
 * assignment, the value does not matter.)  Records of transactions that are in it do not
 * count; so it does not matter which of them are left.  Nothing that is newer than the
 * horizon has been removed.
 *
 * ORDER.  Only that of contributions of the same version matters: in a chain as the
 * chain goes, of several chains in one transaction as they ended, which the command
 * ids of their last versions tell.
 *
 * COST.  One look at each version of the row since the horizon, and one at each of its
 * records; a row that is updated all the time has thousands.  So all that is looked up
 * in between is sorted first.
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
#include "utils/datum.h"

#include "krahodb/horizon_shared.h"

#include "merged_private.h"

/* A version of the row in the heap. */
typedef struct RowVersion
{
	ItemPointerData tid;
	ItemPointerData next;
	TransactionId writer;
	TransactionId ender;		/* InvalidTransactionId: not ended */
	bool		update;			/* replaced another one */
	bool		combo;			/* written and ended by one transaction */
	CommandId	command;		/* of its end, comparable among those */
	bool		own;
	KdbVersion	version;		/* of the writer; {0, 0} if unknown */
	struct RowVersion *previous;
	struct RowVersion *following;
	KdbColumnContribution *values;	/* kind is not set */
} RowVersion;

/* A set of transactions, by their versions. */
typedef struct Transactions
{
	KdbVersion *versions;		/* sorted */
	int			n;
} Transactions;

typedef struct History
{
	KdbConverge *c;
	KdbMergedChange *change;
	TimestampTz horizon;
	List	   *records;		/* of KdbContributed */
	Transactions recorded;		/* that have any of these */
	List	   *versions;		/* of RowVersion, in the order of their places */
	List	   *behind;			/* of RowVersion: cut off, see above */
	List	   *result;			/* of KdbContributed */
} History;

/* ---- records ---------------------------------------------------------------- */

typedef struct RecordLook
{
	KdbMergedChange *change;
	List	   *found;
	bool		own;
} RecordLook;

static void
look_at_record(void *arg, const KdbVersionRecord *record)
{
	RecordLook *look = arg;
	KdbContributed *contributed;

	if (record->kind != KDB_RECORD_MERGED)
		return;
	contributed = palloc0(sizeof(KdbContributed));
	contributed->version = record->version;
	contributed->shown = record->shown;
	contributed->own = record->own;
	contributed->recorded = true;
	KdbMergedDecode(look->change, record->merged, contributed);
	look->found = lappend(look->found, contributed);
	look->own |= record->own;
}

static void
read_records(KdbConverge *c, RecordLook *look)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	look->change = c->merged;
	if (!KdbVersionRecordsAny(side->target->relid, &side->target->records))
		return;
	KdbKeyOfRow(side->target, side->key, &key);
	KdbVersionRecordsOfKey(side->target->relid, &key, look_at_record, look);
}

static int
count_foreign(List *records)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, records)
	{
		if (!((KdbContributed *) lfirst(lc))->own)
			n++;
	}
	return n;
}

/* See merged_private.h. */
int
KdbMergedForeignRecords(KdbConverge *c)
{
	RecordLook	look = {0};

	read_records(c, &look);
	return count_foreign(look.found);
}

/* See merged_private.h. */
bool
KdbMergedRecording(KdbConverge *c)
{
	RecordLook	look = {0};

	if (!c->merged->recording_known)
	{
		read_records(c, &look);
		c->merged->recording = look.own;
		c->merged->recording_known = true;
	}
	return c->merged->recording;
}

/* ---- versions in the heap ----------------------------------------------------- */

/* What the header says; false if the version never lived, or does not yet. */
static bool
read_header(TupleTableSlot *slot, RowVersion *version)
{
	BufferHeapTupleTableSlot *heap = (BufferHeapTupleTableSlot *) slot;
	HeapTupleHeader tuple = heap->base.tuple->t_data;
	bool		settled;
	bool		invalid;
	bool		ended;

	LockBuffer(heap->buffer, BUFFER_LOCK_SHARE);
	version->writer = HeapTupleHeaderGetRawXmin(tuple);
	settled = HeapTupleHeaderXminCommitted(tuple) || HeapTupleHeaderXminFrozen(tuple);
	invalid = HeapTupleHeaderXminInvalid(tuple) && !HeapTupleHeaderXminFrozen(tuple);
	ended = !(tuple->t_infomask & HEAP_XMAX_INVALID) &&
		!HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask);
	version->ender = ended ? HeapTupleHeaderGetUpdateXid(tuple) : InvalidTransactionId;
	version->update = (tuple->t_infomask & HEAP_UPDATED) != 0;
	version->combo = (tuple->t_infomask & HEAP_COMBOCID) != 0;
	version->command = HeapTupleHeaderGetRawCommandId(tuple);
	version->next = tuple->t_ctid;
	LockBuffer(heap->buffer, BUFFER_LOCK_UNLOCK);

	version->tid = slot->tts_tid;
	if (invalid || !TransactionIdIsValid(version->writer))
		return false;
	version->own = TransactionIdIsCurrentTransactionId(version->writer);
	return version->own || settled ||
		(!TransactionIdIsInProgress(version->writer) && TransactionIdDidCommit(version->writer));
}

static bool
has_ended(TransactionId ender)
{
	return TransactionIdIsValid(ender) &&
		(TransactionIdIsCurrentTransactionId(ender) ||
		 (!TransactionIdIsInProgress(ender) && TransactionIdDidCommit(ender)));
}

static void
read_version(History *history, TupleTableSlot *slot, RowVersion *version)
{
	KdbMergedChange *change = history->change;
	KdbLocalRow row = {0};

	if (!has_ended(version->ender))
		version->ender = InvalidTransactionId;
	if (version->own)
		version->version = history->c->context->version;
	else
	{
		KdbTransactionVersion(version->writer, KdbApply.origin, KdbApply.remote_node, &row);
		if (row.version_known)
			version->version = row.version;
	}
	version->values = palloc0_array(KdbColumnContribution, change->n);
	for (int i = 0; i < change->n; i++)
	{
		const KdbMergedColumn *column = change->columns[i];
		KdbColumnContribution *value = &version->values[i];

		value->value = slot_getattr(slot, column->attnum, &value->isnull);
		if (value->isnull)
			continue;
		if (column->typlen == -1)
			value->value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value->value));
		else
			value->value = datumCopy(value->value, column->typbyval, column->typlen);
	}
}

static void
read_versions(History *history)
{
	KdbConvergeSide *side = KdbSideOf(history->c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	ScanKeyData key[INDEX_MAX_KEYS];
	IndexScanDesc scan;

	if (!TTS_IS_BUFFERTUPLE(target->scratch) || !KdbIdentityKey(target, side->key, key))
		return;
	scan = index_beginscan(target->rel, KdbIdentityRelation(target), SnapshotAny, target->nkeys, 0);
	scan->ignore_killed_tuples = false;
	index_rescan(scan, key, target->nkeys, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, target->scratch))
	{
		RowVersion *version = palloc0(sizeof(RowVersion));

		if (!read_header(target->scratch, version))
			continue;
		read_version(history, target->scratch, version);
		history->versions = lappend(history->versions, version);
	}
	ExecClearTuple(target->scratch);
	index_endscan(scan);
}

static int
by_tid(const ListCell *a, const ListCell *b)
{
	return ItemPointerCompare(&((RowVersion *) lfirst(a))->tid, &((RowVersion *) lfirst(b))->tid);
}

/* The version that replaced this one, if it has the same key. */
static RowVersion *
find_next(List *versions, RowVersion *version)
{
	int			low = 0;
	int			high = list_length(versions);

	while (low < high)
	{
		int			middle = (low + high) / 2;
		RowVersion *other = list_nth(versions, middle);
		int			order = ItemPointerCompare(&other->tid, &version->next);

		if (order == 0)
			return other != version && other->writer == version->ender ? other : NULL;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

static void
link_versions(List *versions)
{
	ListCell   *lc;

	list_sort(versions, by_tid);
	foreach(lc, versions)
	{
		RowVersion *version = lfirst(lc);

		if (!TransactionIdIsValid(version->ender))
			continue;
		version->following = find_next(versions, version);
		if (version->following)
			version->following->previous = version;
	}
}

/* ---- contributions ------------------------------------------------------------ */

static int
compare_versions(const void *a, const void *b)
{
	return KdbVersionCompare(*(const KdbVersion *) a, *(const KdbVersion *) b);
}

static void
begin_transactions(Transactions *set, int max)
{
	set->versions = palloc_array(KdbVersion, max + 1);
	set->n = 0;
}

static void
sort_transactions(Transactions *set)
{
	qsort(set->versions, set->n, sizeof(KdbVersion), compare_versions);
}

static bool
has_transaction(const Transactions *set, KdbVersion version)
{
	return bsearch(&version, set->versions, set->n, sizeof(KdbVersion), compare_versions) != NULL;
}

static void
note_recorded(History *history)
{
	ListCell   *lc;

	begin_transactions(&history->recorded, list_length(history->records));
	foreach(lc, history->records)
		history->recorded.versions[history->recorded.n++] = ((KdbContributed *) lfirst(lc))->shown;
	sort_transactions(&history->recorded);
}

/*
 * The place among contributions of the same transaction: chains that it has ended
 * itself first, in the order of their ends.
 */
static uint64
place_of(const RowVersion *version, const RowVersion *last, int position)
{
	uint64		chain = PG_UINT32_MAX;

	if (last->ender == version->writer)
		chain = last->combo ? (uint64) last->command + 1 : 0;
	return (chain << 24) | position;
}

static KdbContributed *
add_contributed(History *history, const RowVersion *version, uint64 place)
{
	KdbContributed *contributed = palloc0(sizeof(KdbContributed));

	contributed->version = version->version;
	contributed->own = version->own;
	contributed->order = place;
	contributed->columns = palloc0_array(KdbColumnContribution, history->change->n);
	history->result = lappend(history->result, contributed);
	return contributed;
}

static KdbContributed *
add_assignment(History *history, const RowVersion *version, KdbVersion at, uint64 place)
{
	KdbContributed *contributed = add_contributed(history, version, place);

	contributed->version = at;
	for (int i = 0; i < history->change->n; i++)
	{
		contributed->columns[i] = version->values[i];
		contributed->columns[i].kind = KDB_CONTRIBUTES_VALUE;
	}
	return contributed;
}

/* The difference of a version to the one before it. */
static void
step_of(const History *history, const RowVersion *version, KdbColumnContribution *columns)
{
	for (int i = 0; i < history->change->n; i++)
	{
		const KdbColumnContribution *old = &version->previous->values[i];
		const KdbColumnContribution *new = &version->values[i];

		KdbMergedContribution(history->change->columns[i], old->value, old->isnull,
							  new->value, new->isnull, &columns[i]);
	}
}

/*
 * The horizon is not known for some time after a server's start, but the heap tells
 * how far it has been: a version whose predecessor is gone was behind it, as the
 * predecessor was vacuumed.  Or the predecessor had another key, and the version is an
 * assignment, which may as well be taken for the base: what is older does not count.
 */
static void
extend_horizon(History *history)
{
	ListCell   *lc;

	foreach(lc, history->versions)
	{
		RowVersion *version = lfirst(lc);

		if (version->update && version->previous == NULL && !version->own)
			history->horizon = Max(history->horizon, version->version.ts);
	}
}

static bool
is_behind(const History *history, const RowVersion *version)
{
	return !version->own && version->version.ts <= history->horizon;
}

/* The last version of a chain that is behind the horizon, or NULL. */
static RowVersion *
find_cut(const History *history, RowVersion *first)
{
	RowVersion *cut = NULL;

	if (!is_behind(history, first))
		return NULL;
	for (RowVersion *v = first; v; v = v->following)
	{
		if (is_behind(history, v))
			cut = v;
	}
	return cut;
}

/* Take the changes to deltas out of the value at the cut; all other columns are idempotent. */
static void
take_out(History *history, KdbContributed *base, const KdbColumnContribution *columns)
{
	for (int i = 0; i < history->change->n; i++)
	{
		if (columns[i].kind == KDB_CONTRIBUTES_CHANGE)
			KdbMergedTakeOut(history->change->columns[i], &base->columns[i], &columns[i]);
	}
}

/* Take out what newer transactions have contributed before the cut. */
static void
take_out_newer(History *history, RowVersion *first, RowVersion *cut, KdbContributed *base)
{
	KdbColumnContribution *step = palloc_array(KdbColumnContribution, history->change->n);
	Transactions newer;
	ListCell   *lc;

	begin_transactions(&newer, list_length(history->versions));
	for (RowVersion *v = first; v != cut; v = v->following)
	{
		if (is_behind(history, v))
			continue;
		if (has_transaction(&history->recorded, v->version))
		{
			newer.versions[newer.n++] = v->version;
			continue;
		}
		step_of(history, v, step);
		take_out(history, base, step);
	}
	sort_transactions(&newer);
	foreach(lc, history->records)
	{
		KdbContributed *record = lfirst(lc);

		if (has_transaction(&newer, record->shown))
			take_out(history, base, record->columns);
	}
}

/* What is behind the horizon, as one assignment. */
static void
add_base(History *history, RowVersion *first, RowVersion *cut, uint64 place)
{
	KdbVersion	greatest = {0, 0};
	KdbContributed *base;

	for (RowVersion *v = first; v != cut->following; v = v->following)
	{
		if (!is_behind(history, v))
			continue;
		history->behind = lappend(history->behind, v);
		if (KdbVersionCompare(v->version, greatest) > 0)
			greatest = v->version;
	}
	base = add_assignment(history, cut, greatest, place);
	take_out_newer(history, first, cut, base);
}

static void
add_chain(History *history, RowVersion *first)
{
	RowVersion *last = first;
	RowVersion *cut = find_cut(history, first);
	int			position = 0;

	while (last->following)
		last = last->following;
	if (cut)
		add_base(history, first, cut, place_of(cut, last, position++));
	for (RowVersion *v = first; v; v = v->following)
	{
		uint64		place = place_of(v, last, position++);

		/* A recorded transaction's row versions do not count. */
		if ((cut && is_behind(history, v)) || has_transaction(&history->recorded, v->version))
			continue;
		if (v->previous)
			step_of(history, v, add_contributed(history, v, place)->columns);
		else
			(void) add_assignment(history, v, v->version, place);
	}
}

/* Those of transactions that were cut off do not count. */
static void
add_records(History *history)
{
	Transactions behind;
	ListCell   *lc;

	begin_transactions(&behind, list_length(history->behind));
	foreach(lc, history->behind)
		behind.versions[behind.n++] = ((RowVersion *) lfirst(lc))->version;
	sort_transactions(&behind);
	foreach(lc, history->records)
	{
		if (!has_transaction(&behind, ((KdbContributed *) lfirst(lc))->shown))
			history->result = lappend(history->result, lfirst(lc));
	}
}

/* The base that an update brings comes before all else of version {0, 0}. */
static int
in_order(const ListCell *a, const ListCell *b)
{
	const KdbContributed *x = lfirst(a);
	const KdbContributed *y = lfirst(b);
	int			order = KdbVersionCompare(x->version, y->version);

	if (order == 0)
		order = (int) y->recorded - (int) x->recorded;
	return order != 0 ? order : (x->order > y->order) - (x->order < y->order);
}

/* Records that contribute nothing say only that the heap does not count. */
static bool
contributes(const KdbMergedChange *change, const KdbContributed *contributed)
{
	for (int i = 0; i < change->n; i++)
	{
		if (contributed->columns[i].kind != KDB_CONTRIBUTES_NOTHING)
			return true;
	}
	return false;
}

/*
 * Does it begin with anything?  Records of changes to a row that was deleted are kept
 * longer than the row, and say nothing of the next row of that key.
 */
static bool
has_assignment(const KdbMergedChange *change)
{
	for (int i = 0; i < change->nhistory; i++)
	{
		if (change->history[i].columns[0].kind == KDB_CONTRIBUTES_VALUE)
			return true;
	}
	return false;
}

/* See merged_private.h. */
void
KdbMergedReadHistory(KdbConverge *c)
{
	KdbMergedChange *change = c->merged;
	History		history = {.c = c, .change = change};
	RecordLook	look = {0};
	ListCell   *lc;

	read_records(c, &look);
	history.records = look.found;
	history.horizon = KdbHorizonTimestamp();
	note_recorded(&history);
	read_versions(&history);
	link_versions(history.versions);
	extend_horizon(&history);
	foreach(lc, history.versions)
	{
		if (((RowVersion *) lfirst(lc))->previous == NULL)
			add_chain(&history, lfirst(lc));
	}
	add_records(&history);
	list_sort(history.result, in_order);

	change->history = palloc_array(KdbContributed, list_length(history.result) + 1);
	change->nhistory = 0;
	foreach(lc, history.result)
	{
		if (contributes(change, lfirst(lc)))
			change->history[change->nhistory++] = *(KdbContributed *) lfirst(lc);
	}
	if (!has_assignment(change))
		change->nhistory = 0;
	change->foreign_records = count_foreign(look.found);
	change->recording = look.own;
	change->recording_known = true;
	change->history_known = true;
}
