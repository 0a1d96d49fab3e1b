/*
 * merge.c
 *		Merging one incoming write into what a node knows: its own key.
 *
 * Of each key the greatest version wins.  With w the incoming version and v that of
 * the local row, live or dead:
 *
 *	w > v, or nothing known		the write is done: insert, overwrite, delete, or
 *								remember the deletion of what is not here
 *	w < v						skipped, but what it claims (merge_unique.c) and
 *								contributes (merge_columns.c) counts
 *	w = v						done: it comes later in its transaction; or the row here
 *								was fetched or copied as that version, and all that its
 *								transaction wrote comes now, the last of it last
 *
 * KdbResolveRow decides the first two, by the resolver of the conflict that it is;
 * that a write follows what its writer had seen is no conflict and decided here.
 *
 * A fetched row replaces the write (merge_unsent.c): it is the state of the key at
 * a node that has done the write, so its version is w or greater, and it is merged
 * as that version.  A row that is dead there is merged likewise.
 *
 * An UPDATE of the key is a DELETE of the old key and an INSERT of the new one at
 * the same version.
 *
 * Each step is a loop: look, decide, act.  An action that finds the state changed
 * has done nothing, and the step starts again; what was done before it (holders that
 * were removed) stays done and is not found again.
 *
 * WHAT IT COSTS.  A write without conflict asks for nothing but what applying needs:
 * the row of its key for UPDATE and DELETE, nothing at all before an INSERT if
 * context->newest.  Unique values are looked for only if they change.
 */
#include "merge_private.h"

#include <stddef.h>

#ifdef KDB_MERGE_MUTATIONS
uint64_t	KdbMergeWithout = 0;
#endif

int
KdbMergeOrder(KdbVersion version, const KdbLocalRow *local)
{
	if (!local->version_known)
		return 1;
	if (!KDB_RULE(NODE_ORDER) && version.ts == local->version.ts)
		return 1;
	return KdbVersionCompare(version, local->version);
}

/* The write is done, or it is not. */
typedef struct judgement
{
	bool		wins;
	KdbDecision decision;
} judgement;

static const judgement nothing_known = {true, {KDB_ACTION_INSERT, KDB_CONFLICT_NONE, KDB_RESOLVER_ENGINE}};

/*
 * Is it clear without a resolver how this ends?  A write follows the row that its
 * writer had seen, and other writes of its transaction; and one that is older than a
 * state that was fetched from its own node is contained in that.  None of that is a
 * conflict.
 */
static bool
uncontested(KdbMergeRun *run, const KdbLocalRow *local, int order, bool *wins)
{
	*wins = false;
	if (order < 0 && local->version.node == run->context->version.node)
		return true;
	*wins = true;
	if (order == 0 || (order > 0 && local->same_transaction))
		return true;
	return order > 0 && local->state == KDB_ROW_LIVE &&
		KdbMergeWriterSaw(run->ops, run->arg, run->context, local);
}

/*
 * Does the write on this key win, and is that a conflict?  *j is nothing_known before.
 */
static void
judge(KdbMergeRun *run, KdbOperation operation, KdbLocalRow *local, judgement *j)
{
	int			order = 1;

	if (!KDB_RULE(DEAD_ROWS) && local->state == KDB_ROW_DEAD)
		local->state = KDB_ROW_ABSENT;
	if (local->state != KDB_ROW_ABSENT)
	{
		order = KdbMergeOrder(run->context->version, local);
		if (uncontested(run, local, order, &j->wins))
			return;
	}
	/* What the writer follows is decided above. */
	local->same_origin = false;
	local->same_transaction = false;
	j->decision = KdbResolveRow(operation, run->context->version, local, run->context->resolvers);
	if (operation == KDB_UPDATE && local->state != KDB_ROW_LIVE && !KDB_RULE(UPDATE_REVIVES))
		j->decision.action = KDB_ACTION_SKIP;

	/* There is nothing to do to a row that is not there, but the deletion's version counts. */
	if (operation == KDB_DELETE && local->state != KDB_ROW_LIVE)
		j->wins = order > 0;
	else
		j->wins = j->decision.action != KDB_ACTION_SKIP;
}

static void
report(KdbMergeRun *run, const judgement *j, const KdbLocalRow *local)
{
	KdbMergeReport r = {0};

	if (j->decision.conflict == KDB_CONFLICT_NONE)
		return;
	r.decision = j->decision;
	r.local = local;
	run->ops->report(run->arg, &r);
}

/* The key is dead at a version, whatever it was. */
static KdbMergeResult
make_dead(KdbMergeRun *run, KdbMergeKey key, const KdbLocalRow *local, KdbVersion version)
{
	bool		remember = KdbVersionCompare(version, run->context->version) != 0;

	if (local->state == KDB_ROW_LIVE)
		return run->ops->remove(run->arg, key, version, remember);
	if (KDB_RULE(BURY))
		run->ops->bury(run->arg, key, version);
	return KDB_MERGE_DONE;
}

static KdbMergeResult
put(KdbMergeRun *run, const KdbLocalRow *local, KdbMergePut *row)
{
	row->remember = KdbVersionCompare(row->version, run->context->version) != 0;
	if (row->remember && !KDB_RULE(TRUE_VERSION))
	{
		row->version = run->context->version;
		row->remember = false;
	}
	if (local->state == KDB_ROW_LIVE)
		return run->ops->overwrite(run->arg, row);
	return run->ops->insert(run->arg, row);
}

/*
 * Put a row whose merged columns come from the history, and the write's own
 * contributions into the history.
 */
static KdbMergeResult
put_folded(KdbMergeRun *run, const KdbLocalRow *local, KdbMergePut *row)
{
	bool		base = false;

	if (run->nmerged > 0)
	{
		base = !KdbMergeFold(run);
		row->merged = base ? KDB_MERGED_WRITTEN : KDB_MERGED_FOLDED;
	}
	if (put(run, local, row) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (run->nmerged > 0 && run->write != NULL)
		run->ops->contribute(run->arg, base && run->operation == KDB_UPDATE);
	return KDB_MERGE_DONE;
}

/* A row that is not to live here, or not as this version, has claimed its values. */
static KdbMergeResult
claim_only(KdbMergeRun *run, KdbRowPart part, KdbVersion version)
{
	if (!run->unique || !KDB_RULE(LOSER_CLAIMS))
		return KDB_MERGE_DONE;
	if (KdbMergeUnique(run, part, version, false) == KDB_UNIQUE_AGAIN)
		return KDB_MERGE_CHANGED;
	run->ops->claim(run->arg, part, version);
	return KDB_MERGE_DONE;
}

/*
 * The write loses on its own key: its claims, its contributions.
 */
static KdbMergeResult
put_lost(KdbMergeRun *run, const KdbLocalRow *local)
{
	KdbMergePut row = {KDB_PART_LOCAL, KDB_PART_NONE, KDB_MERGED_FOLDED, local->version, false};

	if (run->unique &&
		(local->state != KDB_ROW_LIVE || run->ops->unique_changes(run->arg, KDB_PART_WRITTEN)) &&
		claim_only(run, KDB_PART_WRITTEN, run->context->version) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (run->nmerged == 0)
		return KDB_MERGE_DONE;
	if (local->state != KDB_ROW_LIVE)
	{
		KdbMergeContributeDead(run);
		return KDB_MERGE_DONE;
	}
	if (!KDB_RULE(LOSER_CHANGES) || !KdbMergeContributes(run))
		return KDB_MERGE_DONE;
	return put_folded(run, local, &row);
}

/*
 * A greater version of another key has one of the row's values: it is dead at its
 * own version from the start.
 */
static KdbMergeResult
put_beaten(KdbMergeRun *run, const KdbLocalRow *local, KdbRowPart part, KdbVersion version)
{
	if (make_dead(run, KDB_KEY_NEW, local, version) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (KDB_RULE(BEATEN_CLAIM))
		run->ops->claim(run->arg, part, version);
	KdbMergeContributeDead(run);
	return KDB_MERGE_DONE;
}

/*
 * Must unique values of the live row's successor be looked at?  What has not changed was looked at when it
 * was written, and no other key has claimed it since, or the row would not live.  But it may have kept a
 * deferrable value in spite of a claim.
 */
static bool
values_matter(KdbMergeRun *run, KdbRowPart part)
{
	if (run->deferrable && !run->context->newest && KDB_RULE(KEPT_CLAIMED))
		return true;
	return run->ops->unique_changes(run->arg, part);
}

/*
 * Is the state at the other node later than what is here?  Of equal versions it is
 * if the row here is from the middle of that transaction.
 */
static bool
state_is_later(KdbMergeRun *run, const KdbLocalRow *local)
{
	int			order = KdbMergeOrder(run->fetched.version, local);

	return order > 0 || (order == 0 && run->write && local->same_transaction && KDB_RULE(FETCHED_LAST));
}

/*
 * Merge the key's state at another node.  With a write, that write is contained in
 * it and only its contributions are left.
 */
static KdbMergeResult
merge_state(KdbMergeRun *run)
{
	KdbMergePut row = {KDB_PART_FETCHED, KDB_PART_NONE, KDB_MERGED_FOLDED, run->fetched.version, false};
	KdbVersion	version = run->fetched.version;
	KdbLocalRow local;

	if (run->fetched.state == KDB_ROW_ABSENT)
		return claim_only(run, KDB_PART_FETCHED, version);
	run->ops->find(run->arg, KDB_KEY_NEW, &local);
	if (local.state != KDB_ROW_ABSENT && !state_is_later(run, &local))
		return run->write ? put_lost(run, &local) : KDB_MERGE_DONE;
	if (run->fetched.state == KDB_ROW_DEAD)
	{
		if (make_dead(run, KDB_KEY_NEW, &local, version) == KDB_MERGE_CHANGED)
			return KDB_MERGE_CHANGED;
		KdbMergeContributeDead(run);
		return KDB_MERGE_DONE;
	}
	if (run->unique && (local.state != KDB_ROW_LIVE || values_matter(run, KDB_PART_FETCHED)))
	{
		switch (KdbMergeUnique(run, KDB_PART_FETCHED, version, true))
		{
			case KDB_UNIQUE_FREE:
				break;
			case KDB_UNIQUE_BEATEN:
				return put_beaten(run, &local, KDB_PART_FETCHED, version);
			case KDB_UNIQUE_AGAIN:
				return KDB_MERGE_CHANGED;
		}
	}
	if (!KDB_RULE(FETCHED_VERSION))
		row.version = run->context->version;
	if (put_folded(run, &local, &row) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (run->unique && KDB_RULE(FETCHED_CLAIM))
		run->ops->claim(run->arg, KDB_PART_FETCHED, version);
	return KDB_MERGE_DONE;
}

/*
 * The state that was fetched is a later one than the write's, or a dead one: what
 * the write itself claims counts, then that state is merged instead of it.  What
 * was here is gone all the same, so the conflict is the write's.
 */
static KdbMergeResult
put_state_instead(KdbMergeRun *run, const judgement *j, const KdbLocalRow *local)
{
	judgement	done = *j;

	if (claim_only(run, KDB_PART_WRITTEN, run->context->version) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (merge_state(run) == KDB_MERGE_CHANGED)
		return KDB_MERGE_CHANGED;
	if (run->fetched.state == KDB_ROW_DEAD)
		done.decision.action = local->state == KDB_ROW_LIVE ? KDB_ACTION_DELETE : KDB_ACTION_SKIP;
	report(run, &done, local);
	return KDB_MERGE_DONE;
}

/* Where the values that were not sent come from; fetches the row if need be. */
static KdbRowPart
unsent_part(KdbMergeRun *run, const KdbLocalRow *local)
{
	if (!run->write->unsent)
		return KDB_PART_NONE;
	if (run->write->key_changed)
	{
		if (run->old_key_shared)
			return KDB_PART_OLD_KEY;
	}
	else if (KdbMergeMayShare(run, local))
		return KDB_PART_LOCAL;
	KdbMergeFetch(run);
	return KDB_PART_FETCHED;
}

/* Must other keys' rows be looked at before this row is put? */
static bool
unique_matters(KdbMergeRun *run, const KdbLocalRow *local)
{
	if (!run->unique)
		return false;
	if (local->state == KDB_ROW_LIVE)
		return values_matter(run, KDB_PART_WRITTEN);
	/* A speculative insert tells by itself that a live row holds a value. */
	return run->look_for_holders || !run->context->newest;
}

/* The write wins on its own key. */
static KdbMergeResult
put_winning(KdbMergeRun *run, const judgement *j, KdbLocalRow *local)
{
	KdbMergePut row = {KDB_PART_WRITTEN, KDB_PART_NONE, KDB_MERGED_WRITTEN, run->context->version, false};
	KdbMergeResult result;

	row.unsent = unsent_part(run, local);
	if (row.unsent == KDB_PART_FETCHED &&
		(run->fetched.state == KDB_ROW_DEAD ||
		 KdbVersionCompare(run->fetched.version, run->context->version) != 0))
		return put_state_instead(run, j, local);

	if (unique_matters(run, local))
	{
		switch (KdbMergeUnique(run, KDB_PART_WRITTEN, run->context->version, true))
		{
			case KDB_UNIQUE_FREE:
				break;
			case KDB_UNIQUE_BEATEN:
				return put_beaten(run, local, KDB_PART_WRITTEN, run->context->version);
			case KDB_UNIQUE_AGAIN:
				return KDB_MERGE_CHANGED;
		}
	}

	if (run->operation == KDB_UPDATE && local->state == KDB_ROW_LIVE)
		row.merged = KDB_MERGED_COMBINE;
	if (run->operation == KDB_UPDATE && local->state != KDB_ROW_LIVE)
		result = put_folded(run, local, &row);
	else
		result = put(run, local, &row);
	if (result == KDB_MERGE_DONE)
		report(run, j, local);
	else if (local->state != KDB_ROW_LIVE)
		run->look_for_holders = true;
	return result;
}

/* An error to be raised is the report's; if it returns, the write is skipped. */
static bool
is_error(KdbMergeRun *run, const judgement *j, const KdbLocalRow *local)
{
	if (j->decision.action != KDB_ACTION_ERROR)
		return false;
	report(run, j, local);
	return true;
}

static void
merge_put(KdbMergeRun *run)
{
	KdbMergeResult result;

	do
	{
		KdbLocalRow local = {KDB_ROW_ABSENT};
		judgement	j = nothing_known;

		/* Nothing greater is here, so a speculative insert finds all there is to find. */
		if (run->operation != KDB_INSERT || !run->context->newest || run->look_for_holders)
		{
			run->ops->find(run->arg, KDB_KEY_NEW, &local);
			judge(run, run->operation, &local, &j);
		}
		if (is_error(run, &j, &local))
			return;
		if (j.wins)
			result = put_winning(run, &j, &local);
		else
		{
			result = put_lost(run, &local);
			if (result == KDB_MERGE_DONE)
				report(run, &j, &local);
		}
	} while (result == KDB_MERGE_CHANGED);
}

static void
merge_delete(KdbMergeRun *run)
{
	KdbMergeResult result;

	do
	{
		KdbLocalRow local;
		judgement	j = nothing_known;

		run->ops->find(run->arg, KDB_KEY_OLD, &local);
		run->old_key_shared = run->write->key_changed && KdbMergeMayShare(run, &local);
		judge(run, KDB_DELETE, &local, &j);
		result = KDB_MERGE_DONE;
		if (is_error(run, &j, &local))
			return;
		if (j.wins)
			result = make_dead(run, KDB_KEY_OLD, &local, run->context->version);
		if (result == KDB_MERGE_DONE)
			report(run, &j, &local);
	} while (result == KDB_MERGE_CHANGED);
}

void
KdbMerge(const KdbMergeOps *ops, void *arg, KdbMergeContext *context,
		 const KdbMergeWrite *write)
{
	KdbMergeRun run = {0};

	run.ops = ops;
	run.arg = arg;
	run.context = context;
	run.write = write;
	run.unique = write->unique;
	run.deferrable = write->deferrable;
	run.nmerged = write->nmerged;
	run.operation = write->operation;
	if (write->operation == KDB_DELETE)
	{
		merge_delete(&run);
		return;
	}
	if (write->key_changed)
	{
		if (KDB_RULE(KEY_DELETE))
			merge_delete(&run);
		run.operation = KDB_INSERT;
	}
	merge_put(&run);
}

void
KdbMergeState(const KdbMergeOps *ops, void *arg, KdbMergeContext *context,
			  const KdbMergeWrite *write, const KdbFetched *state)
{
	KdbMergeRun run = {0};

	run.ops = ops;
	run.arg = arg;
	run.context = context;
	run.unique = write->unique;
	run.deferrable = write->deferrable;
	run.nmerged = write->nmerged;
	run.operation = KDB_INSERT;
	run.has_fetched = true;
	run.fetched = *state;
	while (merge_state(&run) == KDB_MERGE_CHANGED)
		continue;
}

void
KdbMergeClaimAtEnd(const KdbMergeOps *ops, void *arg, KdbMergeContext *context)
{
	KdbMergeRun run = {0};
	KdbUniqueVerdict verdict;
	KdbLocalRow local;

	run.ops = ops;
	run.arg = arg;
	run.context = context;
	run.unique = true;
	run.operation = KDB_UPDATE;
	do
	{
		ops->find(arg, KDB_KEY_NEW, &local);
		if (local.state != KDB_ROW_LIVE || KdbMergeOrder(context->version, &local) != 0)
			return;
		verdict = KdbMergeUnique(&run, KDB_PART_WRITTEN, context->version, true);
		if (verdict == KDB_UNIQUE_BEATEN &&
			make_dead(&run, KDB_KEY_NEW, &local, context->version) == KDB_MERGE_CHANGED)
			verdict = KDB_UNIQUE_AGAIN;
	} while (verdict == KDB_UNIQUE_AGAIN);
}
