/*
 * write.c
 *		Writing one row: heap, indexes, constraints, triggers.
 *
 * The path of an INSERT, UPDATE or DELETE of the executor for a single row,
 * on state that is kept (KdbApplyTarget).  Differences:
 *
 * - Rows are not locked before they are written.  The heap itself says if the
 *   row has changed since it was found; the caller then looks again.
 * - An insert that is to notice conflicts is speculative, as that of ON CONFLICT
 *   is: a taken unique key is a result, not an error, whatever others do at the
 *   same moment.  An update cannot be taken back so; it runs in a
 *   subtransaction, and only if the caller says that unique keys change.
 * - BEFORE ROW triggers of an insert are fired by a call of their own, once,
 *   before the first of several tries to insert the row.
 * - Tables with BEFORE ROW triggers go through the engine's own functions
 *   (ExecSimpleRelation...), on rows that are locked.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "relation_private.h"

static void
begin_write(KdbApplyTarget *target)
{
	KdbTargetOpenIndexes(target);
	target->estate->es_output_cid = GetCurrentCommandId(true);
	target->estate->es_trig_target_relations = NIL; /* what an error has left */
	if (target->relinfo->ri_TrigDesc)
		AfterTriggerBeginQuery();
}

/*
 * Events of other tables have fired as well, where a foreign key cascades.  The engine keeps these tables
 * open until the end of a query, which for this executor state never comes, and has looked up their functions in
 * memory of this message.
 */
static void
close_other_tables(KdbApplyTarget *target)
{
	EState	   *estate = target->estate;
	ListCell   *lc;

	KdbTargetDropTriggerSlots(target);
	foreach(lc, estate->es_trig_target_relations)
	{
		ResultRelInfo *other = lfirst(lc);

		table_close(other->ri_RelationDesc, NoLock);
		if (other->ri_TrigDesc)
		{
			FreeTriggerDesc(other->ri_TrigDesc);
			pfree(other->ri_TrigFunctions);
			pfree(other->ri_TrigWhenExprs);
		}
		pfree(other);
	}
	list_free(estate->es_trig_target_relations);
	estate->es_trig_target_relations = NIL;
}

static void
end_write(KdbApplyTarget *target)
{
	if (target->relinfo->ri_TrigDesc)
		AfterTriggerEndQuery(target->estate);
	if (target->estate->es_trig_target_relations != NIL)
		close_other_tables(target);
	target->rte->updatedCols = NULL;	/* lives no longer than the message */
	ResetPerTupleExprContext(target->estate);
}

/* The row's generated columns as they will be written. */
void
KdbComputeGenerated(KdbApplyTarget *target, TupleTableSlot *slot)
{
	if (target->has_generated)
		ExecComputeStoredGenerated(target->relinfo, target->estate, slot, CMD_INSERT);
}

/* Generated columns, constraints, partition bounds. */
static void
compute_and_check(KdbApplyTarget *target, TupleTableSlot *slot)
{
	Relation	rel = target->rel;

	KdbComputeGenerated(target, slot);
	if (rel->rd_att->constr)
		ExecConstraints(target->relinfo, slot, target->estate);
	if (rel->rd_rel->relispartition)
		ExecPartitionCheck(target->relinfo, slot, target->estate, true);
}

/*
 * Insert so that a taken unique key is noticed; false if it was.  *recheck are
 * the indexes where the key may be taken, deferrable ones among them.
 */
static bool
insert_speculatively(KdbApplyTarget *target, TupleTableSlot *slot, KdbNotice notice,
					 List **recheck)
{
	uint32		token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	bool		conflict = false;

	table_tuple_insert_speculative(target->rel, slot, target->estate->es_output_cid,
								   0, NULL, token);
	*recheck = ExecInsertIndexTuples(target->relinfo, slot, target->estate,
									 false, true, &conflict, NIL);
	if (notice == KDB_NOTICE_ALL && *recheck != NIL)
		conflict = true;
	table_tuple_complete_speculative(target->rel, slot, token, !conflict);
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());
	return !conflict;
}

static bool
has_constraint_index(KdbApplyTarget *target)
{
	return target->has_unique || OidIsValid(target->identity_index);
}

bool
KdbHasBeforeInsertTriggers(KdbApplyTarget *target)
{
	return target->relinfo->ri_TrigDesc &&
		target->relinfo->ri_TrigDesc->trig_insert_before_row;
}

/*
 * Fire the BEFORE ROW triggers of an insert, which may change the row in the
 * (virtual) slot; false if they say that it is not to be inserted.
 */
bool
KdbBeforeInsert(KdbApplyTarget *target, TupleTableSlot *slot)
{
	bool		insert;

	KdbTargetCheck(target, ACL_INSERT);
	begin_write(target);
	slot->tts_tableOid = target->relid;
	insert = ExecBRInsertTriggers(target->estate, target->relinfo, slot);
	if (insert)
		ExecMaterializeSlot(slot);	/* end_write frees what the triggers made */
	end_write(target);
	return insert;
}

/* Likewise; columns that the triggers change are as if they had been sent. */
bool
KdbBeforeInsertOf(KdbApplyTarget *target, KdbRemoteRow *row)
{
	Bitmapset  *changed;

	ExecCopySlot(target->merged, row->slot);
	if (!KdbBeforeInsert(target, row->slot))
		return false;
	changed = KdbChangedColumns(target->tupdesc, target->merged, row->slot);
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, changed))
			row->sent[i] = true;
	}
	return true;
}

/*
 * Insert the row in the (virtual) slot, whose BEFORE ROW triggers have been
 * fired.  DONE or, if a key is taken that is to be noticed, CONFLICT with nothing
 * inserted.
 */
KdbWriteResult
KdbWriteInsert(KdbApplyTarget *target, TupleTableSlot *slot, KdbNotice notice)
{
	ResultRelInfo *relinfo = target->relinfo;
	EState	   *estate = target->estate;
	List	   *recheck = NIL;
	bool		inserted = true;

	KdbTargetCheck(target, ACL_INSERT);
	begin_write(target);
	slot->tts_tableOid = target->relid;
	compute_and_check(target, slot);
	if (notice != KDB_NOTICE_NONE && has_constraint_index(target))
		inserted = insert_speculatively(target, slot, notice, &recheck);
	else
	{
		table_tuple_insert(target->rel, slot, estate->es_output_cid, 0, NULL);
		if (target->nindexes > 0)
			recheck = ExecInsertIndexTuples(relinfo, slot, estate, false, false, NULL, NIL);
	}
	if (inserted)
	{
		ExecARInsertTriggers(estate, relinfo, slot, recheck, NULL);
		KdbRecallPut(target, slot);
	}
	end_write(target);
	return inserted ? KDB_WRITE_DONE : KDB_WRITE_CONFLICT;
}

/* See relation_private.h. */
bool
KdbWriteInserts(KdbApplyTarget *target, TupleTableSlot **slots, int nslots)
{
	EState	   *estate = target->estate;
	bool		maybe_taken = false;

	KdbTargetCheck(target, ACL_INSERT);
	begin_write(target);
	for (int i = 0; i < nslots; i++)
	{
		slots[i]->tts_tableOid = target->relid;
		compute_and_check(target, slots[i]);
		ResetPerTupleExprContext(estate);
	}
	table_multi_insert(target->rel, slots, nslots, estate->es_output_cid, 0, NULL);
	for (int i = 0; i < nslots && target->nindexes > 0; i++)
	{
		maybe_taken |= ExecInsertIndexTuples(target->relinfo, slots[i], estate, false, false,
											 NULL, NIL) != NIL;
		ResetPerTupleExprContext(estate);
	}
	end_write(target);
	return maybe_taken;
}

/* The engine's way, for tables with BEFORE ROW triggers. */
static KdbWriteResult
update_locked(KdbApplyTarget *target, TupleTableSlot *slot)
{
	EPQState	epq;

	if (!KdbLockRow(target, LockTupleExclusive))
		return KDB_WRITE_CHANGED;
	begin_write(target);
	EvalPlanQualInit(&epq, target->estate, NULL, NIL, -1);
	EvalPlanQualSetSlot(&epq, slot);
	ExecSimpleRelationUpdate(target->relinfo, target->estate, &epq, target->local, slot);
	EvalPlanQualEnd(&epq);
	ExecMaterializeSlot(slot);	/* end_write frees what the triggers made */
	end_write(target);
	return KDB_WRITE_DONE;
}

static KdbWriteResult
result_of(TM_Result result)
{
	switch (result)
	{
		case TM_Ok:
			return KDB_WRITE_DONE;
		case TM_Updated:
		case TM_Deleted:
			return KDB_WRITE_CHANGED;
		default:
			elog(ERROR, "unexpected status %u of a row to be changed", result);
	}
	return KDB_WRITE_CHANGED;
}

static KdbWriteResult
update_directly(KdbApplyTarget *target, TupleTableSlot *slot)
{
	ItemPointer tid = &target->local->tts_tid;
	EState	   *estate = target->estate;
	TM_FailureData failure;
	LockTupleMode lockmode;
	bool		update_indexes;
	List	   *recheck = NIL;
	KdbWriteResult result;

	CheckCmdReplicaIdentity(target->rel, CMD_UPDATE);
	begin_write(target);
	slot->tts_tableOid = target->relid;
	compute_and_check(target, slot);
	result = result_of(table_tuple_update(target->rel, tid, slot, estate->es_output_cid,
										  InvalidSnapshot, InvalidSnapshot, true,
										  &failure, &lockmode, &update_indexes));
	if (result == KDB_WRITE_DONE)
	{
		if (target->nindexes > 0 && update_indexes)
			recheck = KdbInsertUpdatedEntries(target, slot);
		target->maybe_taken = recheck != NIL;
		ExecARUpdateTriggers(estate, target->relinfo, NULL, NULL, tid, NULL, slot,
							 recheck, NULL, false);
		KdbRecallPut(target, slot);
	}
	end_write(target);
	return result;
}

static KdbWriteResult
update_row(KdbApplyTarget *target, TupleTableSlot *slot)
{
	target->maybe_taken = false;
	if (target->row_triggers)
		return update_locked(target, slot);
	return update_directly(target, slot);
}

/* Let go of what the current resource owner holds for the target's slots. */
static void
release_slots(KdbApplyTarget *target)
{
	if (!TTS_EMPTY(target->local))
		ExecMaterializeSlot(target->local);
	KdbTargetDropTriggerSlots(target);
}

/*
 * In a subtransaction, so that a unique key which another transaction took a
 * moment ago is a result and not an error.
 *
 * Buffer pins belong to a resource owner, and that of the subtransaction goes with
 * it.  So the local row, and the new one which points into it, are copied out of
 * their buffers before it begins, and whatever the update leaves in slots (the lock
 * of a table with triggers puts the local row there again, and triggers have slots
 * of their own) before it ends.  Everything else is left as on any error: the
 * engine takes back queued trigger events, snapshots and locks.
 */
static KdbWriteResult
update_in_subtransaction(KdbApplyTarget *target, TupleTableSlot *slot,
						 KdbMayStay may_stay, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ResourceOwner inner;
	volatile KdbWriteResult result = KDB_WRITE_CONFLICT;

	ExecMaterializeSlot(slot);
	release_slots(target);
	BeginInternalSubTransaction(NULL);
	inner = CurrentResourceOwner;
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = update_row(target, slot);
		if (result == KDB_WRITE_DONE && may_stay && !may_stay(arg, slot))
			result = KDB_WRITE_CHANGED;
		release_slots(target);
		if (result == KDB_WRITE_DONE)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		CurrentResourceOwner = inner;
		ExecClearTuple(target->local);
		KdbTargetDropTriggerSlots(target);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_UNIQUE_VIOLATION &&
			error->sqlerrcode != ERRCODE_EXCLUSION_VIOLATION)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		FreeErrorData(error);
		result = KDB_WRITE_CONFLICT;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return result;
}

static Bitmapset *
all_columns(KdbApplyTarget *target)
{
	if (target->all_columns == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(target->context);

		target->all_columns = bms_add_range(NULL, 1 - FirstLowInvalidHeapAttributeNumber,
											target->tupdesc->natts - FirstLowInvalidHeapAttributeNumber);
		MemoryContextSwitchTo(old);
	}
	return target->all_columns;
}

/* See relation_private.h. */
Bitmapset *
KdbSentColumns(KdbApplyTarget *target, const KdbRemoteRow *row)
{
	Bitmapset  *columns = NULL;
	int			natts = target->tupdesc->natts;

	if (memchr(row->sent, false, natts) == NULL)
		return all_columns(target);
	for (int i = 0; i < natts; i++)
	{
		if (row->sent[i])
			columns = bms_add_member(columns, i + 1 - FirstLowInvalidHeapAttributeNumber);
	}
	return columns;
}

/*
 * Update the row in target->local to what the (virtual) slot holds.
 * sent_columns is what the engine calls updatedCols (column triggers, index
 * hints).  DONE, CHANGED with nothing done, or (if notice_conflicts) CONFLICT
 * with nothing done.
 */
KdbWriteResult
KdbWriteUpdate(KdbApplyTarget *target, TupleTableSlot *slot, Bitmapset *sent_columns,
			   bool notice_conflicts)
{
	KdbTargetCheck(target, ACL_UPDATE);
	target->rte->updatedCols = sent_columns;
	if (notice_conflicts)
		return update_in_subtransaction(target, slot, NULL, NULL);
	return update_row(target, slot);
}

/*
 * The same, with conflicts noticed; CHANGED with nothing done also if the row may
 * not stay.
 */
KdbWriteResult
KdbWriteUpdateIf(KdbApplyTarget *target, TupleTableSlot *slot, Bitmapset *sent_columns,
				 KdbMayStay may_stay, void *arg)
{
	KdbTargetCheck(target, ACL_UPDATE);
	target->rte->updatedCols = sent_columns;
	return update_in_subtransaction(target, slot, may_stay, arg);
}

/* Delete the row; target->local must hold it if the table has row triggers. */
KdbWriteResult
KdbWriteDelete(KdbApplyTarget *target, ItemPointer tid)
{
	TM_FailureData failure;
	KdbWriteResult result;

	KdbTargetCheck(target, ACL_DELETE);
	if (target->row_triggers)
	{
		EPQState	epq;

		Assert(ItemPointerEquals(tid, &target->local->tts_tid));
		if (!KdbLockRow(target, LockTupleExclusive))
			return KDB_WRITE_CHANGED;
		begin_write(target);
		EvalPlanQualInit(&epq, target->estate, NULL, NIL, -1);
		EvalPlanQualSetSlot(&epq, target->local);
		ExecSimpleRelationDelete(target->relinfo, target->estate, &epq, target->local);
		EvalPlanQualEnd(&epq);
		end_write(target);
		return KDB_WRITE_DONE;
	}

	CheckCmdReplicaIdentity(target->rel, CMD_DELETE);
	begin_write(target);
	result = result_of(table_tuple_delete(target->rel, tid, target->estate->es_output_cid,
										  InvalidSnapshot, InvalidSnapshot, true,
										  &failure, false));
	if (result == KDB_WRITE_DONE)
		ExecARDeleteTriggers(target->estate, target->relinfo, tid, NULL, NULL, false);
	end_write(target);
	return result;
}
