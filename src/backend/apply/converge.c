/*
 * converge.c
 *		Row changes of tables where the last update wins: by the convergence rules.
 *
 * The rules are pure code (merge.h); here are the facts and actions that they ask
 * for, over heap, indexes and version records.  Tables come here that have a key,
 * under a subscription (or with an option of their own) that resolves every type of
 * conflict by last_update_wins.  All others go through row.c.
 *
 * An UPDATE whose new row has another key, or belongs to another partition, is a
 * DELETE of the old key and an INSERT of the new one, so a change has two
 * sides (KdbConvergeSide), which are the same for every other change.
 */
#include "postgres.h"

#include "access/xact.h"
#include "storage/ipc.h"

#include "krahodb/clock.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"

#include "converge_private.h"

static KdbMergeContext context;
static bool context_ready = false;

/* ---- the report ---------------------------------------------------------- */

static void
fill_side(KdbConflictSide *side, TupleTableSlot *slot, const KdbLocalRow *row, Oid index)
{
	side->slot = slot;
	side->has_version = row->version_known;
	side->version = row->version;
	side->origin = row->origin;
	side->xid = row->xid;
	side->index = index;
}

/*
 * What is about rows in the way is reported before the row is written.  A write that
 * is skipped may have changed merged columns of the row.
 */
static TupleTableSlot *
applied_row(KdbConverge *c, KdbAction action)
{
	if (action == KDB_ACTION_SKIP && c->merged)
		return c->written;
	if (action != KDB_ACTION_INSERT && action != KDB_ACTION_UPDATE)
		return NULL;
	return c->written ? c->written : KdbNewRow(c, KDB_PART_WRITTEN);
}

/* An update of the key is a deletion and an insertion. */
static KdbOperation
operation_of(const KdbConverge *c, bool of_old)
{
	if (!c->key_changed)
		return c->operation;
	return of_old ? KDB_DELETE : KDB_INSERT;
}

static void
report(void *arg, const KdbMergeReport *r)
{
	KdbConverge *c = arg;
	bool		of_old = c->operation == KDB_DELETE ||
		(c->key_changed && r->decision.conflict == KDB_CONFLICT_DELETE_MISSING) ||
		(c->key_changed && r->decision.conflict == KDB_CONFLICT_DELETE_ORIGIN_DIFFERS);
	KdbConvergeSide *side = KdbSideOf(c, of_old ? KDB_KEY_OLD : KDB_KEY_NEW);
	KdbConflictSide sides[KDB_MERGE_MAX_HOLDERS + 1] = {0};
	KdbConflictSide remote = {0};
	int			n = 0;

	KdbLaneMustBeFirst();
	if (r->local && r->local->state != KDB_ROW_ABSENT)
		fill_side(&sides[n++],
				  r->local->state == KDB_ROW_LIVE && !TTS_EMPTY(side->target->local) ?
				  side->target->local : NULL,
				  r->local,
				  r->decision.conflict == KDB_CONFLICT_INSERT_EXISTS ?
				  side->target->identity_index : InvalidOid);
	for (int i = 0; i < r->nholders; i++)
	{
		KdbHolder  *holder = &c->holders[r->holders[i].handle];

		fill_side(&sides[n++], holder->copy, &r->holders[i].row, holder->index);
	}
	remote.slot = c->row ? c->row->slot : NULL;
	remote.has_version = true;
	remote.version = c->version.ts != 0 ? c->version : context.version;
	remote.origin = KdbApply.origin;
	remote.xid = KdbApply.remote_xid;
	remote.lsn = KdbApply.remote_final_lsn;
	remote.sent = c->row ? c->row->sent : NULL;
	KdbReportConflict(side->target->estate, side->target->relinfo,
					  operation_of(c, of_old), &r->decision, side->key, sides, n, &remote, applied_row(c, r->decision.action));
}

/* ---- the transaction ------------------------------------------------------- */

static void
leave(int code, Datum arg)
{
	KdbConvergeEnd();
}

/* See apply_private.h. */
void
KdbConvergeEnd(void)
{
	if (!context_ready)
		return;
	context_ready = false;
	KdbForgetKeptHolders();
	KdbCountMerging(false);
}

static void
begin_transaction(void)
{
	static bool registered = false;
	TimestampTz seen_until;

	if (!registered)
		before_shmem_exit(leave, (Datum) 0);
	registered = true;
	memset(&context, 0, sizeof(context));
	context.version.ts = KdbApply.remote_commit_time;
	context.version.node = KdbApply.remote_node;
	seen_until = KdbProgressSeenUntil();
	context.horizon = seen_until != 0 ? seen_until : INT64_MIN;
	context.seen = *KdbSeenOfTransaction();
	context_ready = true;
	KdbCountMerging(true);
}

/*
 * Begin to look.  Does nothing that is applied or being applied here have a greater version?
 * Others who merge may have deleted or buried something that is not committed.  They are counted after
 * events have been noted: whose event is in that number was counted before it, and whose
 * is not, and what is committed from here on, is noticed when the row is written.
 */
static bool
look_for_newer(KdbConverge *c)
{
	KdbStartLook(c);
	return !context.fetched && pg_atomic_read_u32(&KdbShared->merging) == 1 &&
		c->clock != 0 && (TimestampTz) c->clock < context.version.ts;
}

/* ---- the change ------------------------------------------------------------ */

/* See converge_private.h. */
const KdbMergeOps KdbConvergeOps = {
	.find = KdbFactFind,
	.unique_changes = KdbFactUniqueChanges,
	.holders = KdbFactHolders,
	.newer_claim = KdbFactNewerClaim,
	.position = KdbFactPosition,
	.progress = KdbFactProgress,
	.fetch = KdbFetchRow,
	.history = KdbMergedHistory,
	.contribution = KdbMergedOwn,
	.fold_start = KdbMergedFoldStart,
	.fold_change = KdbMergedFoldChange,
	.insert = KdbActInsert,
	.overwrite = KdbActOverwrite,
	.remove = KdbActRemove,
	.kill = KdbActKill,
	.bury = KdbActBury,
	.claim = KdbActClaim,
	.contribute = KdbMergedContribute,
	.report = report
};

/* See converge_private.h. */
void
KdbConvergeStart(KdbConverge *c)
{
	static KdbHolder holders[KDB_MERGE_MAX_HOLDERS];
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;

	if (c->row && !TransactionIdIsValid(GetTopTransactionIdIfAny()) && KdbRowIsIncomplete(c))
		KdbAwaitSeen();			/* nothing is locked yet */
	if (!context_ready)
		begin_transaction();
	context.resolvers = &target->resolvers;
	c->context = &context;

	/* BEFORE ROW triggers fire for a row that is inserted: look before. */
	context.newest = KdbLooksForNewer(c) && look_for_newer(c) && !KdbHasBeforeInsertTriggers(target);
	c->holders = holders;
}

static void
drop_old_row(KdbConverge *c)
{
	if (c->old_row)
		ExecDropSingleTupleTableSlot(c->old_row);
}

/* Is nothing of the change new here?  If only its old key still has to go, it does. */
static bool
is_here(KdbConverge *c, KdbApplyTarget *target)
{
	const KdbConvergeSide *old = KdbSideOf(c, KDB_KEY_OLD);

	if (KdbIsBehindFloor(c, target))
		return true;
	if (!KdbIsInCopiedRow(c))
		return false;
	if (c->key_changed)
		KdbConvergeDelete(c->rel, old->target, old->key);
	return true;
}

static void
merge(KdbConverge *c)
{
	KdbApplyTarget *target = c->sides[KDB_KEY_NEW].target;
	KdbMergeWrite write = {0};

	KdbConvergeStart(c);
	if (is_here(c, target))
	{
		drop_old_row(c);
		return;
	}
	write.operation = c->operation;
	write.key_changed = c->key_changed;
	write.unsent = KdbRowIsIncomplete(c);
	write.unique = target->has_unique;
	write.deferrable = target->has_deferrable;
	if (target->nmerged > 0 && c->operation != KDB_DELETE)
		KdbMergedBegin(c);
	write.nmerged = KdbMergedCount(c);
	KdbMerge(&KdbConvergeOps, c, &context, &write);
	drop_old_row(c);
}

/* See converge_private.h. */
void
KdbConvergeClaimAtEnd(KdbConverge *c)
{
	KdbConvergeStart(c);
	c->at_end = true;
	KdbMergeClaimAtEnd(&KdbConvergeOps, c, &context);
}

/*
 * Values that the old row has for what was not sent with the new one: all of them
 * with REPLICA IDENTITY FULL, else those of the key.  What was not sent is no NULL: where the
 * old row has one, it is the key only of a partition whose table is FULL.
 */
static void
take_from_old(KdbApplyRelation *rel, KdbRemoteRow *row, TupleTableSlot *old, bool full)
{
	for (int i = 0; i < rel->nlocal; i++)
	{
		int			remote = rel->inputs[i].remote;

		if (remote < 0 || row->sent[i] || old->tts_isnull[i] ||
			!(full || rel->attkeys[remote]))
			continue;
		row->slot->tts_values[i] = old->tts_values[i];
		row->slot->tts_isnull[i] = old->tts_isnull[i];
		row->sent[i] = true;
	}
}

/* Is the key of both rows the same, by the index's equality? */
static bool
keys_equal(KdbApplyTarget *target, TupleTableSlot *a, TupleTableSlot *b)
{
	for (int i = 0; i < target->nkeys; i++)
	{
		int			att = target->key_attnum[i] - 1;
		ScanKeyData *key = &target->key_template[i];

		if (a->tts_isnull[att] != b->tts_isnull[att])
			return false;
		if (!a->tts_isnull[att] &&
			!DatumGetBool(FunctionCall2Coll(&key->sk_func, key->sk_collation,
											a->tts_values[att], b->tts_values[att])))
			return false;
	}
	return true;
}

/* The two sides of an UPDATE with an old key, in a partitioned table. */
static void
route_update(KdbConverge *c, KdbApplyRelation *rel, TupleTableSlot *old)
{
	KdbConvergeSide *new_side = KdbSideOf(c, KDB_KEY_NEW);
	KdbConvergeSide *old_side = KdbSideOf(c, KDB_KEY_OLD);
	TupleTableSlot *routed;

	new_side->target = KdbRoute(rel, rel->remote.slot, &routed);
	c->row = KdbRouteRow(rel, new_side->target, &rel->remote);
	new_side->key = c->row->slot;
	old_side->target = KdbRoute(rel, old, &old_side->key);
	c->key_changed = old_side->target != new_side->target ||
		!keys_equal(new_side->target, old_side->key, new_side->key);
	if (old_side->target != new_side->target)	/* the old one is */
		KdbReadyToRead(rel, new_side->target, old_side->target);
}

/* See relation_private.h. */
void
KdbConvergeInsert(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row)
{
	KdbConverge c;

	KdbConvergeInit(&c, rel, target, KDB_INSERT, row, row->slot);
	merge(&c);
}

/* See relation_private.h. */
void
KdbConvergeUpdate(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *old,
				  bool old_is_full)
{
	KdbConverge c;

	KdbConvergeInit(&c, rel, target, KDB_UPDATE, &rel->remote, rel->remote.slot);
	c.old_is_full = old && old_is_full;
	if (old)
		take_from_old(rel, &rel->remote, old, old_is_full);
	if (rel->partitioned)
		route_update(&c, rel, old ? old : rel->remote.slot);
	else
	{
		if (old)
			c.sides[KDB_KEY_OLD].key = old;
		c.key_changed = old && !keys_equal(target, old, rel->remote.slot);
	}
	for (int i = 0; i < 2; i++)
	{
		KdbTargetCheckUpdatable(c.sides[i].target, rel);
		KdbTargetCheck(c.sides[i].target, ACL_SELECT);
	}
	merge(&c);
}

/* The version of a copied row: as the publisher has said before, or when it was written. */
static void
take_truth(void *arg, const KdbVersionRecord *record)
{
	KdbVersion *version = arg;

	if (record->kind == KDB_RECORD_TRUTH &&
		KdbVersionCompare(record->shown, context.version) == 0 &&
		KdbVersionCompare(record->version, *version) > 0)
		*version = record->version;
}

/*
 * The time of a row is that of the transaction whose id it has.  That says too much of a row that a command like
 * ALTER TABLE has only written anew, or one so old that its id has come round again.  So it is not believed
 * where the publisher says of each row what its version is (take_truth).
 */
static TimestampTz
time_of_copied_row(void)
{
	return KdbApply.remote_commit_time > KdbCopiedVersionsFrom ? KdbCopiedRowTime : KdbApply.remote_commit_time;
}

static KdbVersion
copied_version(KdbApplyTarget *target, TupleTableSlot *row, KdbVersion version)
{
	KdbRecordedKey key;

	if (!KdbVersionRecordsAny(target->relid, &target->records))
		return version;
	KdbKeyOfRow(target, row, &key);
	KdbVersionRecordsOfKey(target->relid, &key, take_truth, &version);
	return version;
}

/*
 * What the publisher said of a key when the table was copied: the version of its row,
 * or of its death, or of unique values that it had.
 */
void
KdbConvergeCopied(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row,
				  KdbVersionRecordKind kind, KdbVersion version)
{
	static KdbHolder holders[KDB_MERGE_MAX_HOLDERS];
	KdbConverge c;

	if (!target->converging)
		return;
	if (!context_ready)
		begin_transaction();
	KdbConvergeInit(&c, rel, target, KDB_INSERT, row, row->slot);
	context.resolvers = &target->resolvers;
	c.context = &context;
	c.holders = holders;
	switch (kind)
	{
		case KDB_RECORD_DEAD:
			/* unless there is a row, of that version or a later one */
			if (KdbVersionCompare(copied_version(target, row->slot, (KdbVersion){0, 0}), version) < 0)
				KdbActBury(&c, KDB_KEY_NEW, version);
			break;
		case KDB_RECORD_CLAIM:
			KdbActClaim(&c, KDB_PART_WRITTEN, version);
			break;
		default:
			KdbActRecord(&c, kind, version);
			break;
	}
}

/* What was contributed to the merged columns of a key there; live: to a row that is copied. */
void
KdbConvergeCopiedHistory(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row,
						 bool live, List *contributions, TimestampTz since)
{
	KdbConverge c;
	KdbVersion	version;
	KdbLocalRow dead = {0};

	if (!target->converging || target->nmerged == 0)
		return;
	if (!context_ready)
		begin_transaction();
	KdbConvergeInit(&c, rel, target, KDB_INSERT, row, row->slot);
	c.context = &context;
	version = copied_version(target, row->slot, context.version);
	if (live && KdbTrueDeath(&c, target, row->slot, &dead) && dead.version_known &&
		KdbVersionCompare(dead.version, version) > 0)
		live = false;			/* it will not be here */
	KdbMergedCopied(&c, live, contributions, since);
}

static void
report_copied(KdbConverge *c, const KdbLocalRow *local)
{
	KdbMergeReport r = {{0}};

	r.decision = KdbResolveRow(KDB_INSERT, c->version, local, context.resolvers);
	r.local = local;
	if (r.decision.conflict != KDB_CONFLICT_NONE)
		report(c, &r);
}

/* A copied row meets one that is here, maybe: it is the state of its key there. */
void
KdbConvergeCopiedRow(KdbApplyRelation *rel, KdbApplyTarget *target, KdbRemoteRow *row)
{
	static KdbHolder holders[KDB_MERGE_MAX_HOLDERS];
	KdbConverge c;
	KdbMergeWrite write = {.operation = KDB_INSERT, .unique = target->has_unique, .deferrable = target->has_deferrable};
	KdbFetched	state = {KDB_ROW_LIVE};
	KdbLocalRow local;

	if (!context_ready)
		begin_transaction();
	context.version.ts = KdbCopiedRowTime;
	context.resolvers = &target->resolvers;
	context.newest = false;
	KdbConvergeInit(&c, rel, target, KDB_INSERT, row, row->slot);
	c.fetched = *row;
	c.context = &context;
	c.holders = holders;

	state.version.ts = time_of_copied_row();
	state.version.node = context.version.node;
	state.version = copied_version(target, row->slot, state.version);
	c.version = state.version;

	KdbFactFind(&c, KDB_KEY_NEW, &local);
	if (local.state == KDB_ROW_LIVE && KdbVersionCompare(state.version, local.version) != 0)
		report_copied(&c, &local);
	if (target->nmerged > 0 && local.state == KDB_ROW_DEAD && KdbVersionCompare(state.version, local.version) > 0)
		KdbMergedRevive(&c);
	KdbStartLook(&c);
	KdbMergeState(&KdbConvergeOps, &c, &context, &write, &state);
}

/* See relation_private.h. */
void
KdbConvergeDelete(KdbApplyRelation *rel, KdbApplyTarget *target, TupleTableSlot *old)
{
	KdbConverge c;

	KdbConvergeInit(&c, rel, target, KDB_DELETE, NULL, old);
	KdbTargetCheck(target, ACL_SELECT);
	merge(&c);
}
