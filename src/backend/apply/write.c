/*
 * write.c
 *		Writing one row: heap, indexes, constraints, triggers.
 *
 * The path of an INSERT, UPDATE or DELETE of the executor for a single row,
 * on state that is kept (KdbApplyTarget).  Differences:
 *
 * - Rows are not locked before they are written.  The heap itself says if the
 *   row has changed since it was found; the caller then looks again.
 * - With notice_conflicts an insert is speculative, as that of ON CONFLICT is:
 *   a taken unique key is a result, not an error, whatever others do at the
 *   same moment.  An update cannot be taken back so; it runs in a
 *   subtransaction, and only if the caller says that unique keys change.
 * - Tables with BEFORE ROW triggers go through the engine's own functions
 *   (ExecSimpleRelation...), on rows that are locked.
 */
#include "postgres.h"

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
	if (target->relinfo->ri_TrigDesc)
		AfterTriggerBeginQuery();
}

static void
end_write(KdbApplyTarget *target)
{
	if (target->relinfo->ri_TrigDesc)
		AfterTriggerEndQuery(target->estate);
	ResetPerTupleExprContext(target->estate);
}

/* Generated columns, constraints, partition bounds. */
static void
compute_and_check(KdbApplyTarget *target, TupleTableSlot *slot, CmdType command)
{
	Relation	rel = target->rel;

	if (rel->rd_att->constr)
	{
		if (rel->rd_att->constr->has_generated_stored)
			ExecComputeStoredGenerated(target->relinfo, target->estate, slot, command);
		ExecConstraints(target->relinfo, slot, target->estate);
	}
	if (rel->rd_rel->relispartition)
		ExecPartitionCheck(target->relinfo, slot, target->estate, true);
}

/* Insert so that a taken unique key is noticed; false if it was. */
static bool
insert_speculatively(KdbApplyTarget *target, TupleTableSlot *slot, List **recheck)
{
	uint32		token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	bool		conflict = false;

	table_tuple_insert_speculative(target->rel, slot, target->estate->es_output_cid,
								   0, NULL, token);
	*recheck = ExecInsertIndexTuples(target->relinfo, slot, target->estate,
									 false, true, &conflict, NIL);
	table_tuple_complete_speculative(target->rel, slot, token, !conflict);
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());
	return !conflict;
}

static bool
has_constraint_index(KdbApplyTarget *target)
{
	return target->has_unique || OidIsValid(target->identity_index);
}

/*
 * Insert the row in the (virtual) slot.  DONE or, if notice_conflicts,
 * CONFLICT with nothing inserted; otherwise a taken key is the engine's error.
 */
KdbWriteResult
KdbWriteInsert(KdbApplyTarget *target, TupleTableSlot *slot, bool notice_conflicts)
{
	ResultRelInfo *relinfo = target->relinfo;
	EState	   *estate = target->estate;
	List	   *recheck = NIL;
	bool		inserted = true;

	KdbTargetCheck(target, ACL_INSERT);
	begin_write(target);
	slot->tts_tableOid = target->relid;
	if (relinfo->ri_TrigDesc && relinfo->ri_TrigDesc->trig_insert_before_row &&
		!ExecBRInsertTriggers(estate, relinfo, slot))
	{
		end_write(target);
		return KDB_WRITE_DONE;
	}

	compute_and_check(target, slot, CMD_INSERT);
	if (notice_conflicts && has_constraint_index(target))
		inserted = insert_speculatively(target, slot, &recheck);
	else
	{
		table_tuple_insert(target->rel, slot, estate->es_output_cid, 0, NULL);
		if (target->nindexes > 0)
			recheck = ExecInsertIndexTuples(relinfo, slot, estate, false, false, NULL, NIL);
	}
	if (inserted)
		ExecARInsertTriggers(estate, relinfo, slot, recheck, NULL);
	end_write(target);
	return inserted ? KDB_WRITE_DONE : KDB_WRITE_CONFLICT;
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
	compute_and_check(target, slot, CMD_UPDATE);
	result = result_of(table_tuple_update(target->rel, tid, slot, estate->es_output_cid,
										  InvalidSnapshot, InvalidSnapshot, true,
										  &failure, &lockmode, &update_indexes));
	if (result == KDB_WRITE_DONE)
	{
		if (target->nindexes > 0 && update_indexes)
			recheck = ExecInsertIndexTuples(target->relinfo, slot, estate, true, false,
											NULL, NIL);
		ExecARUpdateTriggers(estate, target->relinfo, NULL, NULL, tid, NULL, slot,
							 recheck, NULL, false);
	}
	end_write(target);
	return result;
}

static KdbWriteResult
update_row(KdbApplyTarget *target, TupleTableSlot *slot)
{
	if (target->row_triggers)
		return update_locked(target, slot);
	return update_directly(target, slot);
}

/*
 * In a subtransaction, so that a unique key which another transaction took a
 * moment ago is a result and not an error.
 */
static KdbWriteResult
update_in_subtransaction(KdbApplyTarget *target, TupleTableSlot *slot)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile KdbWriteResult result = KDB_WRITE_CONFLICT;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = update_row(target, slot);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
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
		return update_in_subtransaction(target, slot);
	return update_row(target, slot);
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
