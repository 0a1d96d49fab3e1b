/*
 * converge_actions.c
 *		What the rules order: rows written, removed, remembered.
 *
 * All of it happens in the local transaction of the change, the records too.
 *
 * TWO WORKERS.  Rows are not locked before they are written; the heap tells if a
 * live row has changed.  But nothing in the heap tells a worker that inserts a key
 * of another one that remembers the deletion of that key, which it has not found.
 * So each does its part first and looks then: who buries a key or claims values
 * looks for live rows once more afterwards, with a dirty snapshot, and takes away
 * what is older; who writes a row looks at a counter of such events afterwards, and
 * if it has moved, for deletions and claims, records of running transactions
 * included.  Whatever the order, one of the two finds the other; if both do, they
 * wait for each other, which the deadlock detector ends.
 *
 * A user's transaction that has inserted and deleted the key, or taken and given
 * back a unique value, between the look and the write is no such event.  It moves
 * the number of the clock rule, which is looked at likewise.
 *
 * A row that is found to be overtaken is taken back: an inserted one is deleted
 * again, an overwritten one is rolled back with its subtransaction.  Then the rules
 * start again.  src/test/tap/t/152_two_workers.pl forces each order.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "krahodb/clock.h"
#include "krahodb/fault.h"
#include "krahodb/shared.h"

#include "converge_private.h"

/* See converge_private.h. */
void
KdbMergeEvent(void)
{
	pg_atomic_fetch_add_u64(&KdbShared->merge_events, 1);
}

/* See converge_private.h. */
void
KdbAddRecord(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key,
			 KdbVersionRecordKind kind, KdbVersion version, bytea *merged)
{
	KdbVersionRecord record = {kind, version, c->context->version, true, merged};

	KdbVersionRecordAdd(target->relid, &record, key, InvalidOid, NULL);
}

/* See converge_private.h. */
void
KdbActRecord(KdbConverge *c, KdbVersionRecordKind kind, KdbVersion version)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	KdbKeyOfRow(side->target, side->key, &key);
	KdbAddRecord(c, side->target, &key, kind, version, NULL);
}

/* The key's row was deleted, and is dead at that version. */
static void
note_death(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key,
		   KdbVersion version, bool remember)
{
	if (remember)
		KdbAddRecord(c, target, key, KDB_RECORD_KILLED, version, NULL);
	else if (KdbKilledBefore(c, target, key))
		KdbAddRecord(c, target, key, KDB_RECORD_DEAD, version, NULL);
	KdbMergeEvent();
}

/*
 * Delete a row that is not the change's own; false if it has changed.
 */
static bool
delete_other_row(KdbApplyTarget *target, ItemPointer where)
{
	ItemPointerData tid = *where;

	if (target->row_triggers &&
		!table_tuple_fetch_row_version(target->rel, &tid, SnapshotAny, target->local))
		return false;
	return KdbWriteDelete(target, &tid) == KDB_WRITE_DONE;
}

/* ---- rows that triggers keep ---- */

/* Has a BEFORE ROW trigger kept the row that was to be deleted, as it was or as another one? */
static bool
was_kept(KdbApplyTarget *target, ItemPointer where)
{
	ItemPointerData tid = *where;
	HeapTupleHeader tuple;

	if (!target->row_triggers || !TTS_IS_BUFFERTUPLE(target->local) ||
		!table_tuple_fetch_row_version(target->rel, &tid, SnapshotAny, target->local))
		return false;
	tuple = ((BufferHeapTupleTableSlot *) target->local)->base.tuple->t_data;
	return (tuple->t_infomask & HEAP_XMAX_INVALID) ||
		HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_infomask) ||
		!ItemPointerEquals(&tuple->t_ctid, where);
}

/* The change cannot be done as long as that is so; the engine would only say that a key is taken. */
static void
refuse_kept(KdbConverge *c)
{
	Relation	rel = c->sides[KDB_KEY_NEW].target->rel;

	ereport(ERROR,
			(errcode(ERRCODE_TRIGGERED_ACTION_EXCEPTION),
			 errmsg("a trigger of table \"%s\" keeps a row that is in the way of a change",
					RelationGetRelationName(rel)),
			 errdetail("The row holds a unique value of the new one and is older, or has the key that the new one had before."),
			 errhint("BEFORE DELETE triggers that fire when changes are applied must not keep such rows. The transaction is tried again.")));
}

/* A row of this version was put: its truth, if that is another than is shown. */
static void
note_truth(KdbConverge *c, const KdbMergePut *put)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbRecordedKey key;

	if (!put->remember)
		return;
	KdbKeyOfRow(side->target, side->key, &key);
	KdbAddRecord(c, side->target, &key, KDB_RECORD_TRUTH, put->version, NULL);
}

/* See converge_private.h. */
bool
KdbIsUndisturbed(KdbConverge *c, KdbVersion version)
{
	uint64		clock;

	pg_memory_barrier();
	if (pg_atomic_read_u64(&KdbShared->merge_events) != c->events)
		return false;
	clock = KdbClockMark();
	return clock != 0 && (clock == c->clock || (TimestampTz) clock < version.ts);
}

/* See converge_private.h. */
bool
KdbIsOvertaken(KdbConverge *c, const KdbMergePut *put)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbLocalRow dead = {0};

	if (KdbIsUndisturbed(c, put->version))
		return false;
	if (KdbTrueDeath(c, side->target, side->key, &dead) && dead.version_known &&
		!dead.same_transaction && KdbVersionCompare(dead.version, put->version) > 0)
		return true;
	if (KdbMergedOvertaken(c))
		return true;
	c->unclaimed = false;
	return side->target->has_unique &&
		KdbFactNewerClaim(c, put->chosen, put->version);
}

/*
 * See converge_private.h.  The row is to be deleted, and gone for whoever looks for it
 * next: a command each.
 */
void
KdbTakeBack(KdbConverge *c, KdbApplyTarget *target, ItemPointer where)
{
	CommandCounterIncrement();
	c->context->newest = false;
	if (!delete_other_row(target, where))
		elog(ERROR, "could not take back an inserted row");
	CommandCounterIncrement();
}

/*
 * A deferrable key may be taken for a while: once it has turned out that nobody is
 * in the way, the engine looks when the transaction ends.
 */
static KdbNotice
notice_of(const KdbConverge *c)
{
	if (c->clashes == 0)
		return KDB_NOTICE_ALL;
	return c->clashes < KDB_CONVERGE_CLASHES ? KDB_NOTICE_IMMEDIATE : KDB_NOTICE_NONE;
}

/* See merge.h. */
KdbMergeResult
KdbActInsert(void *arg, const KdbMergePut *put)
{
	KdbConverge *c = arg;
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	KdbRemoteRow *row = KdbRowOfPart(c, put->chosen);
	TupleTableSlot *slot = row->slot;

	CHECK_FOR_INTERRUPTS();
	if (c->clashes >= KDB_CONVERGE_CLASHES && c->kept > 0)
		refuse_kept(c);
	if (put->chosen == KDB_PART_WRITTEN)
		KdbCompleteRow(c, put->unsent);
	if (c->operation == KDB_UPDATE || put->chosen == KDB_PART_FETCHED)
		KdbCompleteLocalColumns(c, row);
	KdbMergedBeforePut(c, put, slot, NULL);
	if (KdbHasBeforeInsertTriggers(target) && !c->triggers_fired)
	{
		c->triggers_fired = true;
		if (!KdbBeforeInsertOf(target, row))
			return KDB_MERGE_DONE;
	}
	KDB_FAULT_POINT("converge_insert");
	if (KdbWriteInsert(target, slot, notice_of(c)) != KDB_WRITE_DONE)
	{
		(void) KdbLaneSettle();
		c->clashes++;
		return KDB_MERGE_CHANGED;
	}
	c->written = slot;
	if (KdbIsOvertaken(c, put))
	{
		KdbTakeBack(c, target, &slot->tts_tid);
		return KDB_MERGE_CHANGED;
	}
	KDB_FAULT_POINT("converge_inserted");
	note_truth(c, put);
	KdbMergedAfterPut(c);
	return KDB_MERGE_DONE;
}

typedef struct Overwrite
{
	KdbConverge *c;
	KdbVersion	version;
} Overwrite;

/*
 * The row is in the heap; has somebody meanwhile claimed one of its unique values?  Or
 * taken a deferrable one, see notice_of?
 */
static bool
may_stay(void *arg, TupleTableSlot *row)
{
	Overwrite  *overwrite = arg;
	KdbConverge *c = overwrite->c;

	if (c->sides[KDB_KEY_NEW].target->maybe_taken && c->clashes == 0)
	{
		c->clashes++;
		return false;
	}
	if (KdbIsUndisturbed(c, overwrite->version))
		return true;
	c->unclaimed = false;
	c->context->newest = false;
	return !KdbClaimedByAnother(c, row, overwrite->version);
}

/* See merge.h. */
KdbMergeResult
KdbActOverwrite(void *arg, const KdbMergePut *put)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	KdbRemoteRow *row = KdbRowOfPart(c, put->chosen);
	Overwrite	overwrite = {c, put->version};
	Bitmapset  *columns;
	bool		notice = false;
	KdbWriteResult result;

	CHECK_FOR_INTERRUPTS();
	if (c->clashes >= KDB_CONVERGE_CLASHES && c->kept > 0)
		refuse_kept(c);
	KDB_FAULT_POINT("converge_overwrite");
	if (!KdbSideIsLocal(side))
		return KDB_MERGE_CHANGED;
	if (put->chosen == KDB_PART_WRITTEN)
		KdbCompleteRow(c, put->unsent);
	if (put->chosen == KDB_PART_LOCAL)
		ExecCopySlot(target->merged, target->local);
	else
		KdbMergeRow(target->merged, target->local, row);
	KdbMergedBeforePut(c, put, target->merged, target->local);
	KdbComputeGenerated(target, target->merged);
	if (target->has_unique)
		notice = (target->has_deferrable && !c->context->newest) ||
			KdbUniqueDependsOn(target, KdbChangedColumns(target->tupdesc, target->local, target->merged));
	columns = KdbSentColumns(target, row);
	if (notice && c->clashes < KDB_CONVERGE_CLASHES)
		result = KdbWriteUpdateIf(target, target->merged, columns, may_stay, &overwrite);
	else
		result = KdbWriteUpdate(target, target->merged, columns, false);
	if (result == KDB_WRITE_CONFLICT)
	{
		(void) KdbLaneSettle();
		c->clashes++;
	}
	if (result != KDB_WRITE_DONE)
		return KDB_MERGE_CHANGED;
	c->written = target->merged;
	note_truth(c, put);
	KdbMergedAfterPut(c);
	return KDB_MERGE_DONE;
}

/* See merge.h. */
KdbMergeResult
KdbActRemove(void *arg, KdbMergeKey which, KdbVersion version, bool remember)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, which);
	KdbRecordedKey key;

	CHECK_FOR_INTERRUPTS();
	if (!KdbSideIsLocal(side) ||
		KdbWriteDelete(side->target, &side->tid) != KDB_WRITE_DONE)
		return KDB_MERGE_CHANGED;
	side->live = false;
	if (!remember && !KdbVersionRecordsAny(side->target->relid, &side->target->records))
		KdbMergeEvent();
	else
	{
		KdbKeyOfRow(side->target, side->key, &key);
		note_death(c, side->target, &key, version, remember);
	}
	return KDB_MERGE_DONE;
}

/* See merge.h. */
KdbMergeResult
KdbActKill(void *arg, const KdbMergeHolder *holder, KdbVersion version, bool remember)
{
	KdbConverge *c = arg;
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	KdbHolder  *row = &c->holders[holder->handle];
	KdbRecordedKey key;

	CHECK_FOR_INTERRUPTS();
	KdbLaneMustBeFirst();
	if (!delete_other_row(target, &row->tid))
		return KDB_MERGE_CHANGED;
	if (was_kept(target, &row->tid) && ++c->kept > KDB_CONVERGE_CLASHES * KDB_MERGE_MAX_HOLDERS)
		refuse_kept(c);
	KdbKeyOfRow(target, row->copy, &key);
	note_death(c, target, &key, version, remember);
	return KDB_MERGE_DONE;
}

/* See merge.h. */
void
KdbActBury(void *arg, KdbMergeKey which, KdbVersion version)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, which);
	KdbRecordedKey key;

	KdbLaneMustBeFirst();
	KDB_FAULT_POINT("converge_bury");
	KdbKeyOfRow(side->target, side->key, &key);
	KdbAddRecord(c, side->target, &key, KDB_RECORD_DEAD, version, NULL);
	KdbMergeEvent();
	KDB_FAULT_POINT("converge_buried");

	/* Somebody may have inserted it meanwhile. */
	while (KdbFindRow(side->target, side->key))
	{
		ItemPointerData tid = side->target->local->tts_tid;
		KdbLocalRow local = {0};

		CHECK_FOR_INTERRUPTS();
		KdbTrueVersion(c, side->target, side->target->local, &local);
		if (local.version_known && KdbVersionCompare(local.version, version) >= 0)
			break;
		if (KdbWriteDelete(side->target, &tid) == KDB_WRITE_DONE)
		{
			note_death(c, side->target, &key, version,
					   KdbVersionCompare(version, c->context->version) != 0);
			break;
		}
	}
}

typedef struct Claim
{
	KdbConverge *c;
	KdbVersion	version;
} Claim;

static bool
claim_values(void *arg, const KdbUniqueValues *unique)
{
	Claim	   *claim = arg;
	KdbConvergeSide *side = KdbSideOf(claim->c, KDB_KEY_NEW);
	KdbVersionRecord record = {KDB_RECORD_CLAIM, claim->version, claim->c->context->version, true};
	KdbRecordedKey key;

	KdbKeyOfRow(side->target, side->key, &key);
	KdbVersionRecordAdd(side->target->relid, &record, &key, unique->place, &unique->values);
	return false;
}

/* False if one of them has changed, or there may be more, so that all is to be looked at again. */
static bool
kill_older_holders(KdbConverge *c, KdbRowPart part, KdbVersion version)
{
	KdbMergeHolder holders[KDB_MERGE_MAX_HOLDERS];
	int			n = KdbFactHolders(c, part, version, holders, KDB_MERGE_MAX_HOLDERS);
	int			killed = 0;

	for (int i = 0; i < n; i++)
	{
		KdbVersion	own = holders[i].row.version_known ? holders[i].row.version : (KdbVersion) {0, 0};

		if (KdbVersionCompare(own, version) >= 0)
			continue;
		if (KdbActKill(c, &holders[i], own,
					   KdbVersionCompare(own, c->context->version) != 0) != KDB_MERGE_DONE)
			return false;
		killed++;
	}
	return killed < KDB_MERGE_MAX_HOLDERS;
}

/* See merge.h. */
void
KdbActClaim(void *arg, KdbRowPart part, KdbVersion version)
{
	KdbConverge *c = arg;
	Claim		claim = {c, version};

	KdbLaneMustBeFirst();
	KDB_FAULT_POINT("converge_claim");
	KdbForEachUnique(c->sides[KDB_KEY_NEW].target, KdbNewRow(c, part), claim_values, &claim);
	KdbMergeEvent();
	KDB_FAULT_POINT("converge_claimed");

	/* Somebody may have written an older row with one of the values meanwhile. */
	while (!kill_older_holders(c, part, version))
		;
}
