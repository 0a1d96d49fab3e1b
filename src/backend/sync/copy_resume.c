/*
 * copy_resume.c
 *		What an earlier attempt to copy a table has left, and what of it is right.
 *
 * When the process that holds the snapshot at the publisher dies, the snapshot is
 * gone.  The ranges that are done show the table as of that snapshot, at LSN 1; the
 * rest can only be copied with a new one, at LSN 2, and rows may have changed, come
 * and gone, and moved between ranges meanwhile.  CTID ranges do not map to keys, so no
 * stream can repair that for tables without a key.
 *
 * So nothing is repaired: each range that is done is compared with the new snapshot,
 * and either it is the same in both, or it is taken away and copied again.  After
 * that every row is as of LSN 2, and the stream begins there, with a new slot, as
 * for any copy.
 *
 * THE SAME IN BOTH.  Let S be the old snapshot, and U the rows that the new one shows
 * in the range's pages whose xmin precedes S.xmin.  All transactions before S.xmin
 * had ended at S, so their rows in U were there for S: what the new snapshot sees
 * was not deleted before.  And they were in the same place, because a row
 * version never moves, but by a rewrite, which gives the relation another file.  So U
 * is part of what was copied.  If it has as many rows as were copied, it is all of it;
 * if the range has no others either, the range is the same.  A row version is never
 * changed in place, ctid and xmin together name it.  That needs no more than a count at
 * the publisher.  Rows between S.xmin and S are taken for changed, for subtransactions
 * are not in what a server shows of its snapshots; that only costs time.  The old xmin
 * must not be as far away as to be ambiguous (XMIN_DISTANCE).
 *
 * AND HERE?  Rows of a range can be told by their xmin: it is the range's transaction.
 * They can be changed by others as soon as they are committed, as no state of the
 * table keeps anybody off.  If as many are there as were copied, they are the rows
 * that were copied.  If not:
 *
 * - A plain subscription copies the range again, if there is a key that would tell of
 *	 rows that others have put in the place of copied ones; else only if the table is
 *	 empty, that is was truncated.  Else it stops and says so.
 * - If conflicts are resolved, rows that were changed here stay, as changes that are
 *	 newer than the copy.  But what the publisher did with these rows between the two
 *	 snapshots, deletes above all, must still be weighed against them.  So here the old slot
 *	 is kept, and the stream begins at LSN 1: ranges that are not the same come once
 *	 more, row by row and with the time of each row, and nothing is taken away.  That the
 *	 stream then brings changes that the copied rows have in them is nothing new to
 *	 it: a copied row is older than each of them, and the last one stays; contributions to merged columns are
 *	 left out where they are in it (apply/merged_again.c).  If that slot is gone, or
 *	 the publisher could not keep the log for it, there is no such stream; then no row may be here.
 *	 Nor without a key: what comes a second time would be there twice.
 *
 * ANOTHER SUBSCRIPTION may have left the marks, or be about to (it is waited for).  While it exists, they are its own, and
 * the table is copied as a whole.  If it was dropped, they are gone on with if all
 * is as it was left, at the same publisher; else they are forgotten, and its rows
 * are like any that are there already.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_subscription_rel.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "krahodb/copy_marks.h"
#include "krahodb/copy_shared.h"
#include "krahodb/stream.h"

#include "sync_private.h"

/* Snapshots that are further apart, in transactions, are not compared. */
#define XMIN_DISTANCE		(UINT64CONST(1) << 30)

/* Rows of a range, here. */
typedef struct LocalRows
{
	TransactionId xid;			/* hash key */
	uint64		found;
	bool		take_away;
} LocalRows;

/* What is there from before. */
typedef struct Earlier
{
	Oid			subid;			/* whose it is */
	KdbCopyPlan *plan;
	List	   *marks;			/* of KdbCopyMark */
	HTAB	   *rows;			/* of LocalRows */
	uint64		other_rows;
} Earlier;

static LocalRows *
rows_of(const Earlier *earlier, const KdbCopyMark *mark)
{
	TransactionId xid = XidFromFullTransactionId(mark->xid);

	return hash_search(earlier->rows, &xid, HASH_FIND, NULL);
}

static HTAB *
make_rows(List *marks)
{
	HASHCTL		ctl = {.keysize = sizeof(TransactionId), .entrysize = sizeof(LocalRows),
		.hcxt = CurrentMemoryContext};
	HTAB	   *rows = hash_create("KrahoDB copied rows", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ListCell   *lc;

	foreach(lc, marks)
	{
		TransactionId xid = XidFromFullTransactionId(((KdbCopyMark *) lfirst(lc))->xid);
		LocalRows  *entry = hash_search(rows, &xid, HASH_ENTER, NULL);

		entry->found = 0;
		entry->take_away = false;
	}
	return rows;
}

static TransactionId
xmin_of(TupleTableSlot *slot)
{
	bool		isnull;

	return DatumGetTransactionId(slot_getsysattr(slot, MinTransactionIdAttributeNumber, &isnull));
}

/* Each row of one relation: count it, or take it away. */
static void
walk_rows(Earlier *earlier, Relation rel, bool take_away)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		TransactionId xmin = xmin_of(slot);
		LocalRows  *entry = hash_search(earlier->rows, &xmin, HASH_FIND, NULL);

		CHECK_FOR_INTERRUPTS();
		if (!take_away && entry == NULL)
			earlier->other_rows++;
		else if (!take_away)
			entry->found++;
		else if (entry != NULL && entry->take_away)
		{
			simple_table_tuple_delete(rel, &slot->tts_tid, snapshot);
			entry->found--;
		}
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
}

static void
walk_table(Earlier *earlier, Relation rel, bool take_away)
{
	ListCell   *lc;

	foreach(lc, find_all_inheritors(RelationGetRelid(rel), RowExclusiveLock, NULL))
	{
		Relation	child = relation_open(lfirst_oid(lc), NoLock);

		if (child->rd_rel->relkind == RELKIND_RELATION &&
			(child == rel || child->rd_rel->relispartition))
			walk_rows(earlier, child, take_away);
		relation_close(child, NoLock);
	}
}

/* NULL if there is nothing. */
static Earlier *
read_earlier(Relation rel)
{
	Earlier    *earlier = palloc0(sizeof(Earlier));

	earlier->plan = KdbCopyMarkedPlan(RelationGetRelid(rel), &earlier->subid);
	earlier->marks = KdbCopyMarks(RelationGetRelid(rel));
	if (earlier->plan == NULL && earlier->marks == NIL && !OidIsValid(earlier->subid))
		return NULL;
	earlier->rows = make_rows(earlier->marks);
	if (earlier->marks != NIL)
		walk_table(earlier, rel, false);
	return earlier;
}

/* Has nobody changed the rows of a range? */
static bool
unchanged_here(const Earlier *earlier, const KdbCopyMark *mark)
{
	return !mark->resolved && rows_of(earlier, mark)->found == mark->rows &&
		U64FromFullTransactionId(ReadNextFullTransactionId()) -
		U64FromFullTransactionId(mark->xid) < XMIN_DISTANCE;
}

static bool
all_unchanged_here(const Earlier *earlier)
{
	ListCell   *lc;

	foreach(lc, earlier->marks)
	{
		if (!unchanged_here(earlier, lfirst(lc)))
			return false;
	}
	return true;
}

/* Is nothing left of it, and nothing else there? */
static bool
nothing_is_here(const Earlier *earlier)
{
	HASH_SEQ_STATUS status;
	LocalRows  *entry;
	uint64		left = earlier->other_rows;

	hash_seq_init(&status, earlier->rows);
	while ((entry = hash_seq_search(&status)) != NULL)
		left += entry->found;
	return left == 0;
}

static void
raise_changed_here(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("rows of table \"%s.%s\" were changed here before its initial copy was finished",
					get_namespace_name(RelationGetNamespace(rel)), RelationGetRelationName(rel)),
			 errdetail("The copy was interrupted, and cannot go on with rows that are not as they were copied."),
			 errhint("Truncate the table here (without publishing that): the copy then begins anew.")));
}

/* Does a unique index tell all rows apart that could be there? */
static bool
is_key(Oid indexid, TupleDesc desc)
{
	Relation	index = index_open(indexid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		result = form->indisunique && form->indisvalid &&
		RelationGetIndexPredicate(index) == NIL;

	for (int i = 0; i < form->indnkeyatts; i++)
		result = result && form->indkey.values[i] > 0 &&
			TupleDescAttr(desc, form->indkey.values[i] - 1)->attnotnull;
	index_close(index, AccessShareLock);
	return result;
}

/* Is a row that comes a second time known for that? */
static bool
rows_are_unique(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	bool		result = false;
	ListCell   *lc;

	foreach(lc, indexes)
		result = result || is_key(lfirst_oid(lc), RelationGetDescr(rel));
	list_free(indexes);
	return result;
}

/*
 * Is the stream to begin where the earlier attempt began, with its slot?  See
 * above.  startpos is that of the attempt; invalid if its slot cannot be used any more.
 */
bool
KdbCopyKeepsSlot(Relation rel, XLogRecPtr startpos)
{
	Earlier    *earlier;
	ListCell   *lc;

	if (!KdbSyncExistingRowsResolved())
		return false;
	earlier = read_earlier(rel);
	if (earlier == NULL || earlier->subid != MySubscription->oid || all_unchanged_here(earlier))
		return false;
	if (!rows_are_unique(rel))
		startpos = InvalidXLogRecPtr;
	if (startpos == InvalidXLogRecPtr && nothing_is_here(earlier))
		return false;
	foreach(lc, earlier->marks)
	{
		/* changed in the moment between being looked at and a new slot */
		if (startpos == InvalidXLogRecPtr || ((KdbCopyMark *) lfirst(lc))->lsn < startpos)
			raise_changed_here(rel);
	}
	return true;
}

/* Does the new snapshot show in a range what was copied? */
static bool
same_there(const Earlier *earlier, const KdbRemoteTable *table, const KdbCopyMark *mark,
		   uint64 xmin)
{
	const KdbCopyRange *range = &earlier->plan->ranges[mark->range];
	char	  **row;

	if (xmin < mark->xmin || xmin - mark->xmin >= XMIN_DISTANCE)
		return false;
	row = KdbStreamQueryRow(LogRepWorkerWalRcvConn,
							KdbSyncCountCommand(table, range, KdbCopyRangeRelation(range),
												(TransactionId) mark->xmin),
							2, "number of rows");
	return strtou64(row[0], NULL, 10) == mark->rows && strtou64(row[1], NULL, 10) == 0;
}

static bool
has_key(Relation rel)
{
	(void) RelationGetIndexList(rel);
	return OidIsValid(rel->rd_pkindex) || OidIsValid(RelationGetReplicaIndex(rel));
}

/* A range whose rows were changed here is to be copied again: can it be? */
static void
check_changed_here(const Earlier *earlier, Relation rel)
{
	/* if conflicts are resolved, just now, or the old slot is gone: look at it again */
	if ((KdbSyncExistingRowsResolved() || !has_key(rel)) && !nothing_is_here(earlier))
		raise_changed_here(rel);
}

/*
 * Take away the rows of ranges that are not right any more.  If conflicts are
 * resolved, all of them must still be there.
 */
static void
take_away(Earlier *earlier, Relation rel)
{
	HASH_SEQ_STATUS status;
	LocalRows  *entry;
	bool		all = true;

	walk_table(earlier, rel, true);
	hash_seq_init(&status, earlier->rows);
	while ((entry = hash_seq_search(&status)) != NULL)
		all = all && (!entry->take_away || entry->found == 0);
	if (!all && KdbSyncExistingRowsResolved())
		raise_changed_here(rel);
}

/* It is as of the new snapshot, too. */
static void
keep_range(KdbCopyJob *job, KdbCopyMark *mark)
{
	job->done[mark->range] = 1;
	mark->xmin = job->xmin;
	mark->lsn = job->startpos;
	KdbCopyMarkDone(job->relid, mark);
}

/* Of the marks, keep those that are right; the rest is undone. */
static void
settle(Earlier *earlier, Relation rel, KdbCopyJob *job, bool right, bool kept_slot)
{
	bool		any_away = false;
	ListCell   *lc;

	foreach(lc, earlier->marks)
	{
		KdbCopyMark *mark = lfirst(lc);
		bool		same = right && mark->range < earlier->plan->nranges;
		bool		merge = kept_slot;

		if (!kept_slot && !unchanged_here(earlier, mark))
		{
			check_changed_here(earlier, rel);
			same = false;
			merge = KdbSyncExistingRowsResolved();	/* with what was deleted here */
		}
		same = same && same_there(earlier, job->table, mark, job->xmin);
		if (same)
			keep_range(job, mark);
		else
		{
			if (right)
				job->merge[mark->range] = merge;
			rows_of(earlier, mark)->take_away = !kept_slot;
			any_away = any_away || !kept_slot;
			KdbCopyUnmark(RelationGetRelid(rel), mark->range);
		}
	}
	if (any_away)
		take_away(earlier, rel);
}

/* Is it of a subscription that is gone, and not as that one left it? */
static bool
is_foreign(const Earlier *earlier, bool right)
{
	return earlier->subid != MySubscription->oid && (!right || !all_unchanged_here(earlier));
}

static uint64
remote_xmin(void)
{
	char	  **row = KdbStreamQueryRow(LogRepWorkerWalRcvConn,
										"SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())",
										1, "snapshot");

	return strtou64(row[0], NULL, 10);
}

static char *
export_snapshot(void)
{
	return KdbStreamQueryRow(LogRepWorkerWalRcvConn, "SELECT pg_catalog.pg_export_snapshot()",
							 1, "snapshot")[0];
}

static KdbCopyJob *
make_job(Relation rel, KdbRemoteTable *table, XLogRecPtr startpos)
{
	KdbCopyJob *job = palloc0(sizeof(KdbCopyJob));

	job->relid = RelationGetRelid(rel);
	job->table = table;
	job->binary = KdbSyncBinarySafe(table, rel);
	job->resolving = KdbSyncExistingRowsResolved();
	job->xmin = remote_xmin();
	job->startpos = startpos;
	job->merge = palloc0(KDB_COPY_MAX_RANGES);
	job->done = palloc0(KDB_COPY_MAX_RANGES);
	return job;
}

/* A job without a plan: what was marked is undone, and the table is to be copied as a whole.  NULL: only that. */
static KdbCopyJob *
prepare(Relation rel, KdbRemoteTable *table, uint64 sysid, TimeLineID timeline,
		XLogRecPtr startpos, bool kept_slot)
{
	Oid			relid = RelationGetRelid(rel);
	KdbCopyPlan *now = KdbCopyPlanMake(table, rel, sysid, timeline);
	Earlier    *earlier = read_earlier(rel);
	bool		changed = earlier != NULL && !all_unchanged_here(earlier);
	KdbCopyJob *job;
	bool		right = false;

	if (earlier == NULL && now == NULL)
		return NULL;
	if (earlier != NULL && earlier->subid != MySubscription->oid &&
		get_subscription_name(earlier->subid, true) != NULL)
		return NULL;

	job = make_job(rel, table, startpos);
	if (earlier != NULL)
	{
		right = earlier->plan != NULL && now != NULL &&
			KdbCopyPlanStillRight(earlier->plan, now);
		job->resumed = !is_foreign(earlier, right);
		if (job->resumed)
			settle(earlier, rel, job, right, kept_slot);
		CommandCounterIncrement();
		if (!job->resumed || !right)
			KdbCopyUnmarkAll(relid);
	}
	job->plan = right && job->resumed ? earlier->plan : now;
	if (job->plan == NULL)
		return job;

	if ((!right && (kept_slot || (changed && job->resolving))) ||
		(job->resolving && (KdbSyncTakenUnnoticed(rel) || KdbSyncDeletedHere(rel, job->resumed))))
		memset(job->merge, 1, KDB_COPY_MAX_RANGES);
	CommandCounterIncrement();
	KdbCopyMarkPlan(relid, job->plan);
	job->snapshot = export_snapshot();
	return job;
}

/*
 * One subscription after the other: two that find no marks would both leave a plan.  The
 * second one sees the first one's, once that is committed; and so that marks are gone.
 */
KdbCopyJob *
KdbCopyPrepare(Relation rel, KdbRemoteTable *table, uint64 sysid, TimeLineID timeline,
			   XLogRecPtr startpos, bool kept_slot)
{
	KdbCopyJob *job;

	LockDatabaseObject(SubscriptionRelRelationId, RelationGetRelid(rel), 0, ExclusiveLock);
	job = prepare(rel, table, sysid, timeline, startpos, kept_slot);
	if (job == NULL)
		UnlockDatabaseObject(SubscriptionRelRelationId, RelationGetRelid(rel), 0, ExclusiveLock);
	return job != NULL && job->plan != NULL ? job : NULL;
}
