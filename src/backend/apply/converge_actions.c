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
 * what is older; who inserts looks at a counter of such events afterwards, and if
 * it has moved, for deletions and claims, records of running transactions
 * included.  Whatever the order, one of the two finds the other; if both do, they
 * wait for each other, which the deadlock detector ends.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "krahodb/shared.h"

#include "converge_private.h"

/* See converge_private.h. */
void
KdbMergeEvent(void)
{
	pg_atomic_fetch_add_u64(&KdbShared->merge_events, 1);
}

static void
add_record(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key,
		   KdbVersionRecordKind kind, KdbVersion version)
{
	KdbVersionRecord record = {kind, version, c->context->version, true};

	KdbVersionRecordAdd(target->relid, &record, key, InvalidOid, NULL);
}

/* The key's row was deleted, and is dead at that version. */
static void
note_death(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key,
		   KdbVersion version, bool remember)
{
	if (remember)
		add_record(c, target, key, KDB_RECORD_KILLED, version);
	else if (KdbKilledBefore(c, target, key))
		add_record(c, target, key, KDB_RECORD_DEAD, version);
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

/* Partitions may have their columns in another order. */
static AttrNumber
column_of(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped &&
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) == 0)
			return i + 1;
	}
	return 0;
}

/* A column's value in the row that the old key had, if that has the column. */
static bool
take_from_old_row(KdbConverge *c, int column)
{
	TupleTableSlot *slot = c->row->slot;
	AttrNumber	attnum = 0;

	if (c->old_row)
		attnum = column_of(c->old_row->tts_tupleDescriptor,
						   NameStr(TupleDescAttr(slot->tts_tupleDescriptor, column)->attname));
	if (attnum == 0)
		return false;
	slot->tts_values[column] = slot_getattr(c->old_row, attnum, &slot->tts_isnull[column]);
	return true;
}

/*
 * Values that were not sent, for a row that is inserted or gets another key: of
 * the row that the old key had.  There is nowhere else to take them from.
 */
static void
complete_row(KdbConverge *c)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;

	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (!target->compared[i] || c->row->sent[i])
			continue;
		if (!take_from_old_row(c, i))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot insert the row of an UPDATE because the publisher did not send column \"%s\"",
							NameStr(TupleDescAttr(target->tupdesc, i)->attname)),
					 errdetail("The row to be updated does not exist here, and an unchanged out-of-line value is not part of the change."),
					 errhint("Copy the row from the publisher, set REPLICA IDENTITY FULL on the publisher's table, or set the resolver of update_missing and update_deleted to skip.")));
		c->row->sent[i] = true;
	}
}

/* Columns that the publisher does not have: as they were, or defaults. */
static void
complete_local_columns(KdbConverge *c)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	TupleTableSlot *routed;
	TupleTableSlot *root;
	bool		old = false;

	if (c->local_completed || c->rel->ndefaults == 0)
		return;
	c->local_completed = true;
	for (int i = 0; i < side->target->tupdesc->natts; i++)
	{
		if (!side->target->compared[i] &&
			!TupleDescAttr(side->target->tupdesc, i)->attisdropped &&
			!TupleDescAttr(side->target->tupdesc, i)->attgenerated)
			old |= take_from_old_row(c, i);
	}
	if (old)
		return;
	if (!c->rel->partitioned)
	{
		KdbFillDefaults(c->rel, c->row->slot);
		return;
	}
	root = KdbRouteBack(c->rel, side->target, c->row->slot);
	KdbFillDefaults(c->rel, root);
	(void) KdbRoute(c->rel, root, &routed);
	ExecCopySlot(c->row->slot, routed);
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
	add_record(c, side->target, &key, KDB_RECORD_TRUTH, put->version);
}

/* Has another worker meanwhile remembered something that beats the inserted row? */
static bool
is_overtaken(KdbConverge *c, KdbVersion version)
{
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbLocalRow dead = {0};

	pg_memory_barrier();
	if (pg_atomic_read_u64(&KdbShared->merge_events) == c->events)
		return false;
	if (KdbTrueDeath(c, side->target, side->key, &dead) && dead.version_known &&
		!dead.same_transaction && KdbVersionCompare(dead.version, version) > 0)
		return true;
	c->unclaimed = false;
	return side->target->has_unique &&
		KdbFactNewerClaim(c, KDB_PART_WRITTEN, version);
}

static void
take_back(KdbConverge *c, KdbApplyTarget *target, ItemPointer where)
{
	CommandCounterIncrement();
	c->context->newest = false;
	if (!delete_other_row(target, where))
		elog(ERROR, "could not take back an inserted row");
}

/*
 * Fire the BEFORE ROW triggers of the insert.  Columns that they change are as if
 * they had been sent.
 */
static bool
fire_before_insert(KdbConverge *c)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	TupleTableSlot *slot = c->row->slot;
	Bitmapset  *changed;

	ExecCopySlot(target->merged, slot);
	if (!KdbBeforeInsert(target, slot))
		return false;
	changed = KdbChangedColumns(target->tupdesc, target->merged, slot);
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, changed))
			c->row->sent[i] = true;
	}
	return true;
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
	TupleTableSlot *slot = c->row->slot;

	CHECK_FOR_INTERRUPTS();
	if (c->operation == KDB_UPDATE)
	{
		complete_row(c);
		complete_local_columns(c);
	}
	if (KdbHasBeforeInsertTriggers(target) && !c->triggers_fired)
	{
		c->triggers_fired = true;
		if (!fire_before_insert(c))
			return KDB_MERGE_DONE;
	}
	if (KdbWriteInsert(target, slot, notice_of(c)) != KDB_WRITE_DONE)
	{
		(void) KdbLaneSettle();
		c->clashes++;
		return KDB_MERGE_CHANGED;
	}
	c->written = slot;
	if (is_overtaken(c, put->version))
	{
		take_back(c, target, &slot->tts_tid);
		return KDB_MERGE_CHANGED;
	}
	note_truth(c, put);
	return KDB_MERGE_DONE;
}

/* What the engine's updatedCols are: the columns that were sent. */
static Bitmapset *
sent_columns(const KdbRemoteRow *row, int natts)
{
	Bitmapset  *columns = NULL;

	for (int i = 0; i < natts; i++)
	{
		if (row->sent[i])
			columns = bms_add_member(columns, i + 1 - FirstLowInvalidHeapAttributeNumber);
	}
	return columns;
}

/* See merge.h. */
KdbMergeResult
KdbActOverwrite(void *arg, const KdbMergePut *put)
{
	KdbConverge *c = arg;
	KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	KdbApplyTarget *target = side->target;
	bool		notice = false;
	KdbWriteResult result;

	CHECK_FOR_INTERRUPTS();
	if (!KdbSideIsLocal(side))
		return KDB_MERGE_CHANGED;
	if (c->key_changed)
		complete_row(c);
	KdbMergeRow(target->merged, target->local, c->row);
	KdbComputeGenerated(target, target->merged);
	if (target->has_unique)
		notice = KdbUniqueDependsOn(target, KdbChangedColumns(target->tupdesc, target->local,
															  target->merged));
	result = KdbWriteUpdate(target, target->merged,
							sent_columns(c->row, target->tupdesc->natts),
							notice && c->clashes < KDB_CONVERGE_CLASHES);
	if (result == KDB_WRITE_CONFLICT)
	{
		(void) KdbLaneSettle();
		c->clashes++;
	}
	if (result != KDB_WRITE_DONE)
		return KDB_MERGE_CHANGED;
	c->written = target->merged;
	note_truth(c, put);
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
	KdbKeyOfRow(side->target, side->key, &key);
	note_death(c, side->target, &key, version, remember);
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
	KdbKeyOfRow(side->target, side->key, &key);
	add_record(c, side->target, &key, KDB_RECORD_DEAD, version);
	KdbMergeEvent();

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
	KdbVersionRecord record = {KDB_RECORD_CLAIM, claim->version, claim->version, true};
	KdbRecordedKey key;

	if (!unique->by_equality)
		return false;
	KdbKeyOfRow(side->target, side->key, &key);
	KdbVersionRecordAdd(side->target->relid, &record, &key,
						RelationGetRelid(unique->index), &unique->values);
	return false;
}

/* See merge.h. */
void
KdbActClaim(void *arg, KdbRowPart part, KdbVersion version)
{
	KdbConverge *c = arg;
	Claim		claim = {c, version};
	KdbMergeHolder holders[KDB_MERGE_MAX_HOLDERS];
	int			n;

	KdbLaneMustBeFirst();
	KdbForEachUnique(c->sides[KDB_KEY_NEW].target, KdbNewRow(c), claim_values, &claim);
	KdbMergeEvent();

	/* Somebody may have inserted an older row with one of the values meanwhile. */
	n = KdbFactHolders(c, part, holders, KDB_MERGE_MAX_HOLDERS);
	for (int i = 0; i < n; i++)
	{
		KdbVersion	own = holders[i].row.version_known ? holders[i].row.version : (KdbVersion) {0, 0};

		if (KdbVersionCompare(own, version) < 0)
			(void) KdbActKill(c, &holders[i], own,
							  KdbVersionCompare(own, c->context->version) != 0);
	}
}
