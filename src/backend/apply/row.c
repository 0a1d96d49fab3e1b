/*
 * row.c
 *		INSERT, UPDATE and DELETE of one row.
 *
 * Each is a loop: look at the local row, decide (KdbResolveRow and
 * KdbResolveUnique, the pure rules), act.  When the row turns out to have
 * changed between the look and the act, nothing has been done and the loop
 * starts again; a transaction that holds the row is waited for with a lock that
 * the deadlock detector sees.
 *
 * Without resolvers (a plain subscription) the decision is the stock server's
 * and no version is looked up.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/tableam.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

#include "relation_private.h"

/* A change on its way to one table. */
typedef struct Change
{
	KdbApplyRelation *rel;
	KdbApplyTarget *target;
	KdbOperation operation;
	TupleTableSlot *search;		/* key, and the full old row if old_is_full */
	bool		old_is_full;
	KdbRemoteRow *row;			/* new row; NULL for a delete */
	KdbVersion	version;
	TupleTableSlot *written;	/* the row as it is written, for the record */
	int			clashes;		/* unique keys of an update that were found taken */
} Change;

/*
 * How often rows in the way are dealt with before the engine is left to raise its
 * error: triggers may have changed a key to one that is taken, or keep a row that is
 * to be removed.  Each try has waited for those who were at the rows, so races
 * end much earlier.
 */
#define KDB_MAX_CLASHES	16

static KdbVersion
incoming_version(void)
{
	KdbVersion	version;

	version.ts = KdbApply.remote_commit_time;
	version.node = KdbApply.remote_node;
	return version;
}

/* The row as a decision leaves it here; NULL if it leaves none, or the local one. */
static TupleTableSlot *
applied_row(const Change *change, const KdbDecision *decision)
{
	switch (decision->action)
	{
		case KDB_ACTION_INSERT:
		case KDB_ACTION_UPDATE:
			return change->written;
		default:
			return NULL;
	}
}

/* The record of a conflict.  With action ERROR, the error. */
static void
report(Change *change, const KdbDecision *decision, const KdbLocalRow *local,
	   const KdbHolder *holders, int nholders)
{
	KdbConflictSide sides[KDB_MAX_HOLDERS + 1] = {0};
	KdbConflictSide remote = {0};
	int			n = 0;

	if (decision->conflict == KDB_CONFLICT_NONE)
		return;
	KdbLaneMustBeFirst();
	if (decision->action == KDB_ACTION_ERROR)
		KdbLaneLeaveError();
	if (local && local->state != KDB_ROW_ABSENT)
	{
		sides[n].slot = local->state == KDB_ROW_LIVE ? change->target->local : NULL;
		sides[n].has_version = local->version_known;
		sides[n].version = local->version;
		sides[n].origin = local->origin;
		sides[n].xid = local->xid;
		sides[n++].index = decision->conflict == KDB_CONFLICT_INSERT_EXISTS ?
			change->target->identity_index : InvalidOid;
	}
	for (int i = 0; i < nholders; i++)
	{
		sides[n].slot = holders[i].copy;
		sides[n].has_version = holders[i].row.version_known;
		sides[n].version = holders[i].row.version;
		sides[n].origin = holders[i].row.origin;
		sides[n].xid = holders[i].row.xid;
		sides[n++].index = holders[i].index;
	}
	remote.slot = change->row ? change->row->slot : NULL;
	remote.has_version = true;
	remote.version = change->version;
	remote.origin = KdbApply.origin;
	remote.xid = KdbApply.remote_xid;
	remote.lsn = KdbApply.remote_final_lsn;
	remote.sent = change->row ? change->row->sent : NULL;
	KdbReportConflict(change->target->estate, change->target->relinfo,
					  change->operation, decision, change->search, sides, n, &remote,
					  applied_row(change, decision));
}

/* Delete a row that is in the way; false if it has changed meanwhile. */
static bool
remove_holder(KdbApplyTarget *target, const KdbHolder *holder)
{
	ItemPointerData tid = holder->tid;

	if (!table_tuple_fetch_row_version(target->rel, &tid, SnapshotAny, target->local))
		return false;
	return KdbWriteDelete(target, &tid) == KDB_WRITE_DONE;
}

typedef enum UniqueVerdict
{
	UNIQUE_FREE,				/* nobody in the way: write */
	UNIQUE_ENGINE,				/* not resolved: write, the engine raises its error */
	UNIQUE_DONE,				/* the write is dropped, and that is recorded */
	UNIQUE_AGAIN				/* rows were removed or have changed: look again */
} UniqueVerdict;

/*
 * Rows of other keys that hold unique values of the row to be written: either
 * they go or the write does.
 */
static UniqueVerdict
clear_the_way(Change *change, TupleTableSlot *slot, ItemPointer self,
			  const Bitmapset *changed)
{
	KdbHolder	holders[KDB_MAX_HOLDERS];
	KdbLocalRow rows[KDB_MAX_HOLDERS];
	KdbDecision decision;
	int			n;

	n = KdbFindHolders(change->target, slot, self, changed, holders, KDB_MAX_HOLDERS);
	if (n == 0)
		return UNIQUE_FREE;
	if (KdbLaneSettle())
		return UNIQUE_AGAIN;
	for (int i = 0; i < n; i++)
		rows[i] = holders[i].row;
	decision = KdbResolveUnique(change->operation, change->version, rows, n,
								&change->target->resolvers);
	if (decision.conflict == KDB_CONFLICT_NONE)
		return UNIQUE_ENGINE;
	if (decision.action == KDB_ACTION_SKIP || decision.action == KDB_ACTION_ERROR)
	{
		report(change, &decision, NULL, holders, n);
		return UNIQUE_DONE;
	}
	/* It may point into the buffer of target->local, which is about to be reused. */
	ExecMaterializeSlot(slot);
	for (int i = 0; i < n; i++)
	{
		if (!remove_holder(change->target, &holders[i]))
			return UNIQUE_AGAIN;
	}
	change->clashes++;
	change->written = slot;
	report(change, &decision, NULL, holders, n);
	return UNIQUE_AGAIN;
}

static void
local_row(Change *change, bool found, KdbLocalRow *local)
{
	memset(local, 0, sizeof(KdbLocalRow));
	if (found)
		(void) KdbTargetRowVersion(change->target, change->target->local, local);
	else if (!KdbFindDead(change->target, change->search, local))
	{
		local->state = KDB_ROW_ABSENT;
		return;
	}
	local->seen = !local->same_origin && KdbApplyWriterSaw(local);
}

/*
 * Deal with the rows that have a key which the row in target->merged is about to
 * take.  *depends: does the update change any key?
 */
static UniqueVerdict
clear_for_update(Change *change, bool *depends)
{
	KdbApplyTarget *target = change->target;
	ItemPointerData self = target->local->tts_tid;
	Bitmapset  *changed;

	KdbComputeGenerated(target, target->merged);
	changed = KdbChangedColumns(target->tupdesc, target->local, target->merged);
	*depends = KdbUniqueDependsOn(target, changed);
	if (!*depends)
		return UNIQUE_FREE;
	if (change->clashes >= KDB_MAX_CLASHES)
		return UNIQUE_ENGINE;
	return clear_the_way(change, target->merged, &self, changed);
}

/*
 * Put the new row over the local one in target->local, inside its table.
 * Returns false if all is to be looked at again.
 */
static bool
overwrite(Change *change, const KdbDecision *decision, const KdbLocalRow *local)
{
	KdbApplyTarget *target = change->target;
	Bitmapset  *columns = KdbSentColumns(change->row, target->tupdesc->natts);
	bool		notice = false;
	KdbWriteResult result;

	KdbMergeRow(target->merged, target->local, change->row);
	if (target->resolving)
	{
		switch (clear_for_update(change, &notice))
		{
			case UNIQUE_FREE:
				break;
			case UNIQUE_ENGINE:
				notice = false;
				break;
			case UNIQUE_DONE:
				return true;
			case UNIQUE_AGAIN:
				return false;
		}
	}
	result = KdbWriteUpdate(target, target->merged, columns,
							notice && change->clashes < KDB_MAX_CLASHES);
	if (result == KDB_WRITE_CONFLICT && !KdbLaneSettle())
		change->clashes++;
	if (result != KDB_WRITE_DONE)
		return false;
	change->written = target->merged;
	report(change, decision, local, NULL, 0);
	return true;
}

/* The row of the key exists: an insert's conflict with it. */
static bool
insert_over_live_row(Change *change)
{
	KdbLocalRow local;
	KdbDecision decision;

	local_row(change, true, &local);
	decision = KdbResolveRow(KDB_INSERT, change->version, &local,
							 &change->target->resolvers);
	switch (decision.action)
	{
		case KDB_ACTION_UPDATE:
			return overwrite(change, &decision, &local);
		case KDB_ACTION_INSERT:
			/* not resolved: the engine's error */
			return KdbWriteInsert(change->target, change->row->slot,
								  KDB_NOTICE_NONE) == KDB_WRITE_DONE;
		default:
			report(change, &decision, &local, NULL, 0);
			return true;
	}
}

/*
 * Deal with the rows that have a key of the row to be inserted.  UNIQUE_FREE:
 * insert it; UNIQUE_DONE: there is nothing left to do.
 */
static UniqueVerdict
clear_for_insert(Change *change)
{
	if (OidIsValid(change->target->identity_index) &&
		KdbFindRow(change->target, change->row->slot))
		return insert_over_live_row(change) ? UNIQUE_DONE : UNIQUE_AGAIN;
	return clear_the_way(change, change->row->slot, NULL, NULL);
}

/*
 * Fire the BEFORE ROW triggers of the insert.  Columns that they change are
 * as if they had been sent.
 */
static bool
fire_before_insert(Change *change)
{
	KdbApplyTarget *target = change->target;
	TupleTableSlot *slot = change->row->slot;
	Bitmapset  *changed;

	ExecCopySlot(target->merged, slot);
	if (!KdbBeforeInsert(target, slot))
		return false;
	changed = KdbChangedColumns(target->tupdesc, target->merged, slot);
	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, changed))
			change->row->sent[i] = true;
	}
	return true;
}

/* Has a greater version deleted the key of the row to be inserted? */
static bool
stays_deleted(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbLocalRow local = {0};
	KdbDecision decision;

	do
	{
		if (!KdbFindDead(target, change->row->slot, &local))
			return false;
	} while (KdbLaneSettle());
	decision = KdbResolveRow(KDB_INSERT, change->version, &local, &target->resolvers);
	if (decision.action != KDB_ACTION_SKIP && decision.action != KDB_ACTION_ERROR)
		return false;

	/* What was found may have been superseded only: then the row is there. */
	if (KdbFindRow(target, change->row->slot))
		return false;
	report(change, &decision, &local, NULL, 0);
	return true;
}

/*
 * Insert it, and deal with the rows in the way whenever a key turns out to be taken.
 * A row that is gone again when it is looked at may have been deleted just now.
 */
static void
insert_until_done(Change *change)
{
	KdbNotice	notice = KDB_NOTICE_ALL;

	for (int tries = 0;; tries++)
	{
		CHECK_FOR_INTERRUPTS();
		if (tries == KDB_MAX_CLASHES)
			notice = KDB_NOTICE_NONE;
		if (KdbWriteInsert(change->target, change->row->slot, notice) == KDB_WRITE_DONE)
			return;
		(void) KdbLaneSettle();
		switch (clear_for_insert(change))
		{
			case UNIQUE_FREE:	/* gone again, or tolerated as it is deferrable */
				if (change->operation == KDB_INSERT && stays_deleted(change))
					return;
				notice = KDB_NOTICE_IMMEDIATE;
				break;
			case UNIQUE_ENGINE:
				notice = KDB_NOTICE_NONE;
				break;
			case UNIQUE_DONE:
				return;
			case UNIQUE_AGAIN:
				break;
		}
	}
}

/*
 * Insert with resolvers: it is tried, and only if a unique key is taken are the
 * rows in the way looked at.  With BEFORE ROW triggers they are looked at first,
 * so that the triggers fire only for a row that is inserted, and once.
 */
static void
insert_resolving(Change *change)
{
	if (KdbHasBeforeInsertTriggers(change->target))
	{
		UniqueVerdict verdict = UNIQUE_AGAIN;

		for (int tries = 0; verdict == UNIQUE_AGAIN && tries < KDB_MAX_CLASHES; tries++)
			verdict = clear_for_insert(change);
		if (verdict == UNIQUE_DONE || !fire_before_insert(change))
			return;
	}
	insert_until_done(change);
}

static void
insert_row(Change *change)
{
	KdbApplyTarget *target = change->target;

	if (target->resolving)
		insert_resolving(change);
	else if (!KdbHasBeforeInsertTriggers(target) ||
			 KdbBeforeInsert(target, change->row->slot))
		KdbWriteInsert(target, change->row->slot, KDB_NOTICE_NONE);
}

/* The insert of a key; one that was deleted by a greater version stays deleted. */
static void
apply_insert(Change *change)
{
	if (change->target->resolving && stays_deleted(change))
		return;
	insert_row(change);
}

/*
 * The row of a partitioned table, in that table's format, to where it belongs:
 * all of it is known.
 */
static Change
aim_whole_row(const Change *change, TupleTableSlot *root)
{
	Change		insert = *change;

	insert.target = KdbRoute(change->rel, root, &insert.search);
	KdbTargetCheckUpdatable(insert.target, change->rel);
	insert.row = &insert.target->remote;
	ExecCopySlot(insert.row->slot, insert.search);
	memset(insert.row->sent, true, insert.target->tupdesc->natts);
	return insert;
}

/*
 * Move the row to another partition, if the new row does not belong to the one
 * of the old.  Returns true if that was the case; *done as overwrite() returns.
 */
static bool
moved_to_other_partition(Change *change, const KdbDecision *decision,
						 const KdbLocalRow *local, bool *done)
{
	KdbApplyTarget *target = change->target;
	Change		insert;
	TupleTableSlot *root;
	ItemPointerData tid = target->local->tts_tid;

	if (!change->rel->partitioned || !target->rel->rd_rel->relispartition)
		return false;
	KdbMergeRow(target->merged, target->local, change->row);
	if (ExecPartitionCheck(target->relinfo, target->merged, target->estate, false))
		return false;

	/* The merged row outlives the old one, whose slot the deletion may reuse. */
	ExecMaterializeSlot(target->merged);
	root = KdbRouteBack(change->rel, target, target->merged);
	ExecMaterializeSlot(root);
	slot_getallattrs(root);
	*done = KdbWriteDelete(target, &tid) == KDB_WRITE_DONE;
	if (!*done)
		return true;
	change->written = target->merged;
	report(change, decision, local, NULL, 0);

	insert = aim_whole_row(change, root);
	insert.operation = KDB_INSERT;
	apply_insert(&insert);
	return true;
}

static bool
overwrite_or_move(Change *change, const KdbDecision *decision, const KdbLocalRow *local)
{
	bool		done;

	if (moved_to_other_partition(change, decision, local, &done))
		return done;
	return overwrite(change, decision, local);
}

/*
 * An UPDATE that becomes an insert needs the full row.  Values that were not
 * sent can come from the full old row of REPLICA IDENTITY FULL, and from
 * nowhere else: the row here, if there was one, may be another version.
 */
static void
complete_row(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbRemoteRow *row = change->row;

	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (!target->compared[i] || row->sent[i])
			continue;
		if (!change->old_is_full)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot insert the row of an UPDATE because the publisher did not send column \"%s\"",
							NameStr(TupleDescAttr(target->tupdesc, i)->attname)),
					 errdetail("The row to be updated does not exist here, and an unchanged out-of-line value is not part of the change."),
					 errhint("Copy the row from the publisher, set REPLICA IDENTITY FULL on the publisher's table, or set the resolver of update_missing and update_deleted to skip.")));
		row->slot->tts_values[i] = change->search->tts_values[i];
		row->slot->tts_isnull[i] = change->search->tts_isnull[i];
		row->sent[i] = true;
	}
}

/* The row to be updated is not there (any more). */
static void
update_absent_row(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbLocalRow local;
	KdbDecision decision;

	if (!target->resolving)
	{
		elog(DEBUG1, "logical replication did not find row to be updated in replication target relation%s \"%s\"",
			 change->rel->partitioned ? "'s partition" : "",
			 RelationGetRelationName(target->rel));
		return;
	}
	local_row(change, false, &local);
	decision = KdbResolveRow(KDB_UPDATE, change->version, &local, &target->resolvers);
	if (decision.action == KDB_ACTION_INSERT)
		complete_row(change);
	change->written = change->row->slot;
	report(change, &decision, &local, NULL, 0);
	if (decision.action != KDB_ACTION_INSERT)
		return;

	if (change->rel->partitioned)
	{
		/* The new row may belong to another partition than the old one. */
		TupleTableSlot *root = KdbRouteBack(change->rel, target, change->row->slot);
		Change		insert;

		KdbFillDefaults(change->rel, root);
		insert = aim_whole_row(change, root);
		insert_row(&insert);
		return;
	}
	KdbFillDefaults(change->rel, change->row->slot);
	insert_row(change);
}

static void
apply_update(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbDecision decision = {KDB_ACTION_UPDATE, KDB_CONFLICT_NONE, KDB_RESOLVER_ENGINE};
	KdbLocalRow local;

	KdbTargetCheck(target, ACL_SELECT);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (!KdbFindRow(target, change->search))
		{
			if (KdbLaneSettle())
				continue;
			update_absent_row(change);
			return;
		}
		if (target->resolving)
		{
			local_row(change, true, &local);
			decision = KdbResolveRow(KDB_UPDATE, change->version, &local,
									 &target->resolvers);
			if (decision.conflict != KDB_CONFLICT_NONE && KdbLaneSettle())
				continue;
			if (decision.action != KDB_ACTION_UPDATE)
			{
				report(change, &decision, &local, NULL, 0);
				return;
			}
		}
		if (overwrite_or_move(change, &decision, &local))
			return;
	}
}

static void
apply_delete(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbDecision decision = {KDB_ACTION_DELETE, KDB_CONFLICT_NONE, KDB_RESOLVER_ENGINE};
	KdbLocalRow local;

	KdbTargetCheck(target, ACL_SELECT);
	for (;;)
	{
		bool		found;

		CHECK_FOR_INTERRUPTS();
		found = KdbFindRow(target, change->search);
		if (!found && KdbLaneSettle())
			continue;
		if (!found && !target->resolving)
		{
			elog(DEBUG1, "logical replication did not find row to be deleted in replication target relation \"%s\"",
				 RelationGetRelationName(target->rel));
			return;
		}
		if (target->resolving)
		{
			local_row(change, found, &local);
			decision = KdbResolveRow(KDB_DELETE, change->version, &local,
									 &target->resolvers);
			if (decision.conflict != KDB_CONFLICT_NONE && KdbLaneSettle())
				continue;
		}
		if (decision.action != KDB_ACTION_DELETE)
		{
			report(change, &decision, &local, NULL, 0);
			return;
		}
		if (KdbWriteDelete(target, &target->local->tts_tid) == KDB_WRITE_DONE)
		{
			if (target->resolving)
				report(change, &decision, &local, NULL, 0);
			return;
		}
	}
}

/*
 * Common part of the three messages: a step, the relation, whose turn it is.
 * Returns NULL if the change is not for this worker.
 */
static KdbApplyRelation *
begin_change(uint32 remoteid, KdbOperation operation)
{
	KdbApplyRelation *rel;

	KdbApplyBeginStep();
	if (operation != KDB_INSERT)
		KdbBatchFlush();
	rel = KdbApplyRelationOpen(remoteid, RowExclusiveLock);
	if (!KdbApplyRelationWanted(rel))
	{
		KdbApplyEndStep();
		return NULL;
	}
	KdbApplyErrorContext.nspname = rel->nspname;
	KdbApplyErrorContext.relname = rel->relname;
	return rel;
}

static void
end_change(KdbApplyTarget *target, const KdbUserContext *user)
{
	ExecClearTuple(target->local);
	KdbRestoreUser(user);
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
	KdbApplyEndStep();
}

/* The row is to be written later, and the step ends then. */
static void
end_batched_change(void)
{
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
}

/* The target of a table that is not partitioned: itself. */
static KdbApplyTarget *
own_target(KdbApplyRelation *rel)
{
	if (rel->target == NULL)
		rel->target = KdbTargetOpen(rel->localreloid, RowExclusiveLock, rel);
	return rel->target;
}

/*
 * Send the change to the table that its key belongs to; search and row are in
 * the format of rel's local table and are put into that of the target.
 */
static void
aim(Change *change, KdbApplyRelation *rel, TupleTableSlot *key)
{
	change->rel = rel;
	change->version = incoming_version();
	if (!rel->partitioned)
	{
		change->target = own_target(rel);
		change->search = key;
	}
	else
	{
		change->target = KdbRoute(rel, key, &change->search);
		if (change->row)
			change->row = KdbRouteRow(rel, change->target, change->row);
	}
	if (change->target->fires)
	{
		KdbApplyRelationsCloseOthers(rel, change->target);
		KdbApplyFreshSnapshot();
	}
}

/*
 * By the convergence rules?  Rows of an initial copy are written by a transaction
 * that has another version than they have: their own function knows.
 */
static bool
converges(const Change *change)
{
	return change->target->converging && TransactionIdIsValid(KdbApply.remote_xid);
}

/*
 * A row of an initial copy whose version can be recorded, from a KrahoDB.  (Merged
 * columns would need their history there.)
 */
static bool
is_copied_state(const Change *change)
{
	return change->target->converging && !TransactionIdIsValid(KdbApply.remote_xid) &&
		change->target->nmerged == 0 &&
		KdbApply.remote_node != 0 && KdbVersionRecordsPresent();
}

/* INSERT message. */
void
KdbApplyInsert(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid, KDB_INSERT);
	Change		change = {.operation = KDB_INSERT};
	KdbUserContext user;

	if (rel == NULL)
		return;
	if (KdbBatchInsert(rel, rel->partitioned ? NULL : own_target(rel),
					   &message->u.row.new_row))
	{
		end_batched_change();
		return;
	}
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, &message->u.row.new_row, rel->remote.slot, rel->remote.sent);
	KdbFillDefaults(rel, rel->remote.slot);
	change.row = &rel->remote;
	aim(&change, rel, rel->remote.slot);
	if (converges(&change))
		KdbConvergeInsert(rel, change.target, change.row);
	else if (is_copied_state(&change))
		KdbConvergeCopiedRow(rel, change.target, change.row);
	else
		apply_insert(&change);
	end_change(change.target, &user);
}

/* UPDATE message. */
void
KdbApplyUpdate(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid, KDB_UPDATE);
	Change		change = {.operation = KDB_UPDATE};
	TupleTableSlot *key;
	KdbUserContext user;

	if (rel == NULL)
		return;
	if (!rel->partitioned)
		KdbTargetCheckUpdatable(own_target(rel), rel);
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, &message->u.row.new_row, rel->remote.slot, rel->remote.sent);
	key = rel->remote.slot;
	if (message->u.row.old_kind)
	{
		key = rel->search;
		KdbConvertTuple(rel, &message->u.row.old_row, key, NULL);
		change.old_is_full = message->u.row.old_kind == 'O';
	}
	change.row = &rel->remote;
	aim(&change, rel, key);
	KdbTargetCheckUpdatable(change.target, rel);
	if (converges(&change))
		KdbConvergeUpdate(rel, change.target, message->u.row.old_kind ? key : NULL,
						  change.old_is_full);
	else
		apply_update(&change);
	end_change(change.target, &user);
}

/* DELETE message. */
void
KdbApplyDelete(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid, KDB_DELETE);
	Change		change = {.operation = KDB_DELETE};
	KdbUserContext user;

	if (rel == NULL)
		return;
	if (!rel->partitioned)
		KdbTargetCheckUpdatable(own_target(rel), rel);
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, &message->u.row.old_row, rel->search, NULL);
	aim(&change, rel, rel->search);
	KdbTargetCheckUpdatable(change.target, rel);
	if (converges(&change))
		KdbConvergeDelete(rel, change.target, change.search);
	else
		apply_delete(&change);
	end_change(change.target, &user);
}
