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
} Change;

static void apply_insert(Change *change);

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
			return change->row->slot;
		case KDB_ACTION_UPDATE:
			return change->target->merged;
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
	KdbReportConflict(change->target->estate, change->target->relinfo, decision,
					  change->search, sides, n, &remote, applied_row(change, decision));
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
	UNIQUE_LOST,				/* the write is dropped, and that is recorded */
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
	for (int i = 0; i < n; i++)
		rows[i] = holders[i].row;
	decision = KdbResolveUnique(change->operation, change->version, rows, n,
								&change->target->resolvers);
	if (decision.conflict == KDB_CONFLICT_NONE)
		return UNIQUE_FREE;		/* the engine's index raises the error */
	if (decision.action == KDB_ACTION_SKIP || decision.action == KDB_ACTION_ERROR)
	{
		report(change, &decision, NULL, holders, n);
		return UNIQUE_LOST;
	}
	for (int i = 0; i < n; i++)
	{
		if (!remove_holder(change->target, &holders[i]))
			return UNIQUE_AGAIN;
	}
	report(change, &decision, NULL, holders, n);
	return UNIQUE_AGAIN;
}

static void
local_row(Change *change, bool found, KdbLocalRow *local)
{
	memset(local, 0, sizeof(KdbLocalRow));
	if (found)
		KdbLocalRowVersion(change->target->local, KdbApply.origin,
						   KdbApply.remote_node, local);
	else if (!KdbFindDead(change->target, change->search, local))
		local->state = KDB_ROW_ABSENT;
}

/*
 * What the engine's updatedCols are: the columns that were sent.
 */
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

/*
 * Put the new row over the local one in target->local, inside its table.
 * Returns false if all is to be looked at again.
 */
static bool
overwrite(Change *change, const KdbDecision *decision, const KdbLocalRow *local)
{
	KdbApplyTarget *target = change->target;
	Bitmapset  *columns = sent_columns(change->row, target->tupdesc->natts);
	bool		unique = false;

	KdbMergeRow(target->merged, target->local, change->row);
	if (target->resolving)
	{
		Bitmapset  *changed = KdbChangedColumns(target->tupdesc, target->local,
												target->merged);

		unique = KdbUniqueDependsOn(target, changed);
		if (unique)
		{
			ItemPointerData self = target->local->tts_tid;

			switch (clear_the_way(change, target->merged, &self, changed))
			{
				case UNIQUE_FREE:
					break;
				case UNIQUE_LOST:
					return true;
				case UNIQUE_AGAIN:
					return false;
			}
		}
	}
	if (KdbWriteUpdate(target, target->merged, columns, unique) != KDB_WRITE_DONE)
		return false;
	report(change, decision, local, NULL, 0);
	return true;
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
	Change		insert = *change;
	TupleTableSlot *root;
	TupleTableSlot *routed;
	ItemPointerData tid = target->local->tts_tid;
	KdbRemoteRow whole;

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
	report(change, decision, local, NULL, 0);

	insert.target = KdbRoute(change->rel, root, &routed);
	KdbTargetCheckUpdatable(insert.target, change->rel);
	whole.slot = routed;
	whole.sent = insert.target->remote.sent;
	memset(whole.sent, true, insert.target->tupdesc->natts);
	insert.operation = KDB_INSERT;
	insert.row = &whole;
	insert.search = routed;
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
			return KdbWriteInsert(change->target, change->row->slot, false) == KDB_WRITE_DONE;
		default:
			report(change, &decision, &local, NULL, 0);
			return true;
	}
}

/*
 * Insert with resolvers.  A key that was deleted by a greater version stays
 * deleted; then the insert is tried, and only if a unique key is taken are the
 * rows in the way looked at.
 */
static void
insert_resolving(Change *change)
{
	KdbApplyTarget *target = change->target;
	KdbLocalRow local;

	memset(&local, 0, sizeof(local));
	if (KdbFindDead(target, change->row->slot, &local))
	{
		KdbDecision decision = KdbResolveRow(KDB_INSERT, change->version, &local,
											 &target->resolvers);

		/* What was found may have been superseded only: then the row is there. */
		if ((decision.action == KDB_ACTION_SKIP || decision.action == KDB_ACTION_ERROR) &&
			!KdbFindRow(target, change->row->slot))
		{
			report(change, &decision, &local, NULL, 0);
			return;
		}
	}
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (KdbWriteInsert(target, change->row->slot, true) == KDB_WRITE_DONE)
			return;
		if (OidIsValid(target->identity_index) &&
			KdbFindRow(target, change->row->slot))
		{
			if (insert_over_live_row(change))
				return;
		}
		else
		{
			switch (clear_the_way(change, change->row->slot, NULL, NULL))
			{
				case UNIQUE_FREE:	/* gone again, or the engine is to raise */
					if (target->resolvers.by_type[KDB_CONFLICT_INSERT_EXISTS] == KDB_RESOLVER_ENGINE ||
						target->resolvers.by_type[KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS] == KDB_RESOLVER_ENGINE)
					{
						KdbWriteInsert(target, change->row->slot, false);
						return;
					}
					break;
				case UNIQUE_LOST:
					return;
				case UNIQUE_AGAIN:
					break;
			}
		}
	}
}

static void
apply_insert(Change *change)
{
	if (change->target->resolving)
		insert_resolving(change);
	else
		KdbWriteInsert(change->target, change->row->slot, false);
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
	report(change, &decision, &local, NULL, 0);
	if (decision.action != KDB_ACTION_INSERT)
		return;
	complete_row(change);
	if (change->rel->ndefaults > 0 && !change->rel->partitioned)
		KdbFillDefaults(change->rel, change->row->slot);
	apply_insert(change);
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
			update_absent_row(change);
			return;
		}
		if (target->resolving)
		{
			local_row(change, true, &local);
			decision = KdbResolveRow(KDB_UPDATE, change->version, &local,
									 &target->resolvers);
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
begin_change(uint32 remoteid)
{
	KdbApplyRelation *rel;

	KdbApplyBeginStep();
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
		return;
	}
	change->target = KdbRoute(rel, key, &change->search);
	if (change->row)
		change->row = KdbRouteRow(rel, change->target, change->row);
}

/* INSERT message. */
void
KdbApplyInsert(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid);
	Change		change = {.operation = KDB_INSERT};
	KdbUserContext user;

	if (rel == NULL)
		return;
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, &message->u.row.new_row, rel->remote.slot, rel->remote.sent);
	KdbFillDefaults(rel, rel->remote.slot);
	change.row = &rel->remote;
	aim(&change, rel, rel->remote.slot);
	apply_insert(&change);
	end_change(change.target, &user);
}

/* UPDATE message. */
void
KdbApplyUpdate(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid);
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
	apply_update(&change);
	end_change(change.target, &user);
}

/* DELETE message. */
void
KdbApplyDelete(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message->u.row.relid);
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
	apply_delete(&change);
	end_change(change.target, &user);
}
