/*
 * row.c
 *		INSERT, UPDATE and DELETE of one row, by the resolver of each conflict.
 *
 * Of tables where the last update wins in all of them converge.c is in charge.
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

static void
report_conflict(Change *change, const KdbDecision *decision, const KdbLocalRow *local,
				const KdbHolder *holders, int nholders)
{
	KdbConflictSide sides[KDB_MAX_HOLDERS + 1] = {0};
	KdbConflictSide remote = {0};
	int			n = 0;

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

/* The record of a conflict, if there is one.  With action ERROR, the error. */
static void
report(Change *change, const KdbDecision *decision, const KdbLocalRow *local,
	   const KdbHolder *holders, int nholders)
{
	if (decision->conflict != KDB_CONFLICT_NONE)
		report_conflict(change, decision, local, holders, nholders);
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

	n = KdbFindHolders(change->target, slot, self, changed, NULL, NULL, holders, KDB_MAX_HOLDERS);
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
	Bitmapset  *columns = KdbSentColumns(target, change->row);
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
 * An UPDATE that becomes an insert needs the full row.  Values that were not
 * sent can come from the full old row of REPLICA IDENTITY FULL, and from
 * nowhere else: the row here, if there was one, may be another version.  They are no
 * NULLs: an old row that has one is that of a partition which is not FULL as its table is.
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
		if (!change->old_is_full || change->search->tts_isnull[i])
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

static bool
is_incomplete(const Change *change)
{
	KdbApplyTarget *target = change->target;

	for (int i = 0; i < target->tupdesc->natts; i++)
	{
		if (target->compared[i] && !change->row->sent[i])
			return true;
	}
	return false;
}

/*
 * Insert with resolvers: it is tried, and only if a unique key is taken are the
 * rows in the way looked at.  With BEFORE ROW triggers they are looked at first,
 * so that the triggers fire only for a row that is inserted, and once.  So they are if
 * the row lacks values, as that of an UPDATE may which made it pass the publication's
 * filter: it may be written over one that is here, and not inserted.
 */
static void
insert_resolving(Change *change)
{
	bool		triggers = KdbHasBeforeInsertTriggers(change->target);

	if (triggers || is_incomplete(change))
	{
		UniqueVerdict verdict = UNIQUE_AGAIN;

		for (int tries = 0; verdict == UNIQUE_AGAIN && tries < KDB_MAX_CLASHES; tries++)
			verdict = clear_for_insert(change);
		if (verdict == UNIQUE_DONE)
			return;
		complete_row(change);
		if (triggers && !KdbBeforeInsertOf(change->target, change->row))
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
	if (insert.target != change->target)
		KdbReadyToRead(change->rel, insert.target, change->target);
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

/* See relation_private.h. */
void
KdbRowInsert(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *search, KdbRemoteRow *row)
{
	Change		change = {.rel = rel, .target = target, .operation = KDB_INSERT, .search = search, .row = row};

	change.version = incoming_version();
	apply_insert(&change);
}

/* See relation_private.h. */
void
KdbRowUpdate(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *search, bool old_is_full,
			 KdbRemoteRow *row)
{
	Change		change = {.rel = rel, .target = target, .operation = KDB_UPDATE, .search = search, .row = row};

	change.old_is_full = old_is_full;
	change.version = incoming_version();
	apply_update(&change);
}

/* See relation_private.h. */
void
KdbRowDelete(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *search)
{
	Change		change = {.rel = rel, .target = target, .operation = KDB_DELETE, .search = search};

	change.version = incoming_version();
	apply_delete(&change);
}
