/*
 * row_message.c
 *		The messages INSERT, UPDATE and DELETE.
 *
 * Each is one step: convert the row to the local table's format, find the table that it
 * belongs to (itself, or a partition), and hand the change to those who decide about
 * it: converge.c where the last update wins, else row.c.  Rows that may be inserted
 * together with others are collected instead (batch.c).
 */
#include "postgres.h"

#include "relation_private.h"

/* Where a change goes, and what it is in the format of that table. */
typedef struct Aim
{
	KdbApplyTarget *target;
	TupleTableSlot *search;		/* the key, or the full old row */
	KdbRemoteRow *row;			/* new row; NULL for a delete */
} Aim;

/*
 * Common part of the three messages: a step, the relation, whose turn it is.
 * Returns NULL if the change is not for this worker.
 */
static KdbApplyRelation *
begin_change(const KdbWireMessage *message, KdbOperation operation)
{
	KdbApplyRelation *rel;

	KdbApplyBeginStep();
	if (operation != KDB_INSERT)
		KdbBatchFlush();
	rel = KdbApplyRelationOpen(message->u.row.relid, RowExclusiveLock);
	if (!KdbApplyRelationWanted(rel))
	{
		KdbApplyEndStep();
		return NULL;
	}
	KdbApplyErrorContext.nspname = rel->nspname;
	KdbApplyErrorContext.relname = rel->relname;
	rel->message = message;
	return rel;
}

static void
end_change(KdbApplyRelation *rel, KdbApplyTarget *target, const KdbUserContext *user)
{
	rel->message = NULL;
	ExecClearTuple(target->local);
	KdbTargetsLetGo();
	KdbRestoreUser(user);
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
	KdbApplyEndStep();
}

/* The row is to be written later, and the step ends then. */
static void
end_batched_change(KdbApplyRelation *rel)
{
	rel->message = NULL;
	KdbApplyErrorContext.nspname = NULL;
	KdbApplyErrorContext.relname = NULL;
}

/*
 * The target of a table that is not partitioned: itself.  If it is a partition here, and changes of a table there that
 * has the name of its root came to it, its columns were mapped to that one's.
 */
static KdbApplyTarget *
own_target(KdbApplyRelation *rel)
{
	if (rel->target == NULL || rel->target->bound_to != rel->generation)
		rel->target = KdbTargetOpen(rel->localreloid, RowExclusiveLock, rel);
	return rel->target;
}

/*
 * Send the change to the table that its key belongs to; key and row are in the format of
 * rel's local table and are put into that of the target.
 */
static Aim
aim_at(KdbApplyRelation *rel, TupleTableSlot *key, KdbRemoteRow *row)
{
	Aim			aim = {.search = key, .row = row};

	if (!rel->partitioned)
		aim.target = own_target(rel);
	else
	{
		aim.target = KdbRoute(rel, key, &aim.search);
		if (row)
			aim.row = KdbRouteRow(rel, aim.target, row);
	}
	KdbReadyToRead(rel, aim.target, NULL);
	return aim;
}

/*
 * By the convergence rules?  Rows of an initial copy are written by a transaction
 * that has another version than they have: their own function knows.
 */
static bool
converges(const KdbApplyTarget *target)
{
	return target->converging && TransactionIdIsValid(KdbApply.remote_xid);
}

/* A row of an initial copy whose version can be recorded, from a KrahoDB. */
static bool
is_copied_state(const KdbApplyTarget *target)
{
	return target->converging && !TransactionIdIsValid(KdbApply.remote_xid) &&
		KdbApply.remote_node != 0 && KdbVersionRecordsPresent();
}

/*
 * Of a run into a partitioned table: collect the row that has been converted, or write those
 * that were and go on with it.
 */
static bool
collect_routed(KdbApplyRelation *rel, size_t bytes, KdbUserContext *user)
{
	KdbApplyTarget *target = KdbRouteTo(rel, rel->remote.slot);

	KdbRestoreUser(user);
	if (KdbBatchRouted(rel, target, rel->remote.slot, bytes))
		return true;
	KdbBatchFlush();
	KdbSwitchToTableOwner(rel->rel, user);
	return false;
}

/* INSERT message. */
void
KdbApplyInsert(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message, KDB_INSERT);
	const KdbWireTuple *tuple = &message->u.row.new_row;
	KdbUserContext user;
	bool		in_run;
	size_t		bytes;
	Aim			aim;

	if (rel == NULL)
		return;
	in_run = KdbBatchBegin(rel, tuple, &bytes);
	if (!rel->partitioned)
		(void) own_target(rel);
	if (in_run && !rel->partitioned && KdbBatchConvert(rel, rel->target, tuple, bytes))
	{
		end_batched_change(rel);
		return;
	}
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, tuple, rel->remote.slot, rel->remote.sent);
	KdbFillDefaults(rel, rel->remote.slot);
	if (in_run && rel->partitioned && collect_routed(rel, bytes, &user))
	{
		end_batched_change(rel);
		return;
	}
	aim = aim_at(rel, rel->remote.slot, &rel->remote);
	if (converges(aim.target))
		KdbConvergeInsert(rel, aim.target, aim.row);
	else if (is_copied_state(aim.target))
		KdbConvergeCopiedRow(rel, aim.target, aim.row);
	else
		KdbRowInsert(rel, aim.target, aim.search, aim.row);
	end_change(rel, aim.target, &user);
}

/* UPDATE message. */
void
KdbApplyUpdate(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message, KDB_UPDATE);
	TupleTableSlot *key;
	bool		old_is_full = false;
	KdbUserContext user;
	Aim			aim;

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
		old_is_full = message->u.row.old_kind == 'O';
	}
	aim = aim_at(rel, key, &rel->remote);
	KdbTargetCheckUpdatable(aim.target, rel);
	if (converges(aim.target))
		KdbConvergeUpdate(rel, aim.target, message->u.row.old_kind ? key : NULL, old_is_full);
	else
		KdbRowUpdate(rel, aim.target, aim.search, old_is_full, aim.row);
	end_change(rel, aim.target, &user);
}

/* DELETE message. */
void
KdbApplyDelete(const KdbWireMessage *message)
{
	KdbApplyRelation *rel = begin_change(message, KDB_DELETE);
	KdbUserContext user;
	Aim			aim;

	if (rel == NULL)
		return;
	if (!rel->partitioned)
		KdbTargetCheckUpdatable(own_target(rel), rel);
	KdbSwitchToTableOwner(rel->rel, &user);
	KdbConvertTuple(rel, &message->u.row.old_row, rel->search, NULL);
	aim = aim_at(rel, rel->search, NULL);
	KdbTargetCheckUpdatable(aim.target, rel);
	if (converges(aim.target))
		KdbConvergeDelete(rel, aim.target, aim.search);
	else
		KdbRowDelete(rel, aim.target, aim.search);
	end_change(rel, aim.target, &user);
}
