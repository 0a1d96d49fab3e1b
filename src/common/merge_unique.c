/*
 * merge_unique.c
 *		Unique values: a row lives only if no greater version of another key ever
 *		claimed one of its values.
 *
 * Each write claims the unique values of its row at its version, also one that loses
 * on its own key.  So an incoming claim removes the older rows that hold its values,
 * each of which stays dead at its own version, so that a newer write to its key
 * revives it; and the incoming row is itself dropped, dead at its version, if a
 * greater claim is known: of a live row, a dead one, or one that is only recorded.
 *
 * A holder of an equal version belongs to the same transaction, which is going to
 * write it again: its check is deferred, or it was fetched.  It goes as well.
 *
 * Where the key is deferrable here, too, it stays: an exchange would be two conflicts otherwise.  So does, until
 * the end of the transaction, an older holder that the writer had seen.  Mostly the same transaction writes
 * it again; else another node has taken the value away from it, unknown here (KdbMergeClaimAtEnd).
 * Not a holder that the writer had not seen: for that the value is taken even if it is given
 * back at once, since it is at the writer, too.  And not for a row that was fetched as
 * another version: that is no step of this transaction.
 */
#include "merge_private.h"

#include <stddef.h>

static bool
chosen_by_version(KdbMergeRun *run, KdbConflictType conflict)
{
	return run->context->resolvers->by_type[conflict] == KDB_RESOLVER_LAST_UPDATE_WINS;
}

static KdbConflictType
conflict_with(KdbMergeRun *run, int nholders)
{
	if (nholders > 1)
		return KDB_CONFLICT_MULTIPLE_UNIQUE_CONFLICTS;
	return run->operation == KDB_INSERT ? KDB_CONFLICT_INSERT_EXISTS : KDB_CONFLICT_UPDATE_EXISTS;
}

static KdbMergeResult
kill(KdbMergeRun *run, const KdbMergeHolder *holder, KdbVersion claim)
{
	KdbVersion	own = holder->row.version_known ? holder->row.version : (KdbVersion){0, 0};

	if (!KDB_RULE(OWN_VERSION))
		own = claim;
	return run->ops->kill(run->arg, holder, own,
						  KdbVersionCompare(own, run->context->version) != 0);
}

static void
report(KdbMergeRun *run, KdbConflictType conflict, KdbAction action,
	   const KdbMergeHolder *holders, int nholders, bool claimed)
{
	KdbMergeReport r = {0};

	r.decision.action = action;
	r.decision.conflict = conflict;
	r.decision.resolver = (KdbResolver) run->context->resolvers->by_type[conflict];
	r.holders = holders;
	r.nholders = nholders;
	r.claimed = claimed;
	run->ops->report(run->arg, &r);
}

/* The user has chosen another resolver: all holders go, or the row does. */
static KdbUniqueVerdict
resolve_otherwise(KdbMergeRun *run, const KdbMergeHolder *holders, int n, bool contender)
{
	KdbLocalRow rows[KDB_MERGE_MAX_HOLDERS];
	KdbDecision decision;

	if (!contender)
		return KDB_UNIQUE_BEATEN;
	for (int i = 0; i < n; i++)
		rows[i] = holders[i].row;
	decision = KdbResolveUnique(run->operation,
								run->context->version, rows, n, run->context->resolvers);
	if (decision.action == KDB_ACTION_SKIP || decision.action == KDB_ACTION_ERROR)
	{
		report(run, decision.conflict, decision.action, holders, n, false);
		return KDB_UNIQUE_BEATEN;
	}
	for (int i = 0; i < n; i++)
	{
		if (kill(run, &holders[i], run->context->version) == KDB_MERGE_CHANGED)
			return KDB_UNIQUE_AGAIN;
	}
	report(run, decision.conflict, decision.action, holders, n, false);
	return KDB_UNIQUE_FREE;
}

static KdbAction
write_action(KdbMergeRun *run)
{
	return run->operation == KDB_INSERT ? KDB_ACTION_INSERT : KDB_ACTION_UPDATE;
}

/*
 * Older holders go, and are moved to the front of the list; for a newer one a
 * contender is dropped.  Two records if it is both.  If there may be more of them than the list has,
 * the newer ones wait until all of the older have gone.
 */
static KdbUniqueVerdict
against_holders(KdbMergeRun *run, KdbVersion version, bool contender,
				KdbMergeHolder *holders, int n)
{
	bool		dropped;
	int			killed = 0;

	for (int i = 0; i < n; i++)
	{
		KdbMergeHolder holder = holders[i];

		if (KdbMergeOrder(version, &holder.row) < 0)
			continue;
		if (kill(run, &holder, version) == KDB_MERGE_CHANGED)
			return KDB_UNIQUE_AGAIN;
		holders[i] = holders[killed];
		holders[killed++] = holder;
	}
	dropped = killed < n;
	if (killed > 0)
		report(run, conflict_with(run, killed),
			   contender && !dropped ? write_action(run) : KDB_ACTION_DELETE,
			   holders, killed, false);
	if (n == KDB_MERGE_MAX_HOLDERS && killed > 0 && KDB_RULE(MANY_HOLDERS))
		return KDB_UNIQUE_AGAIN;
	if (dropped && contender)
		report(run, conflict_with(run, n - killed), KDB_ACTION_SKIP,
			   holders + killed, n - killed, false);
	return dropped ? KDB_UNIQUE_BEATEN : KDB_UNIQUE_FREE;
}

static bool
newer_claim(KdbMergeRun *run, KdbRowPart part, KdbVersion version)
{
	if (run->context->newest || !KDB_RULE(NEWER_CLAIMS))
		return false;
	return run->ops->newer_claim(run->arg, part, version);
}

KdbMergeKeeping
KdbMergeMayKeep(const KdbMergeOps *ops, void *arg, const KdbMergeContext *context, KdbVersion version,
				const KdbLocalRow *holder, bool at_end)
{
	int			order = KdbMergeOrder(context->version, holder);

	if (at_end)
		return order == 0 ? KDB_KEEPS : KDB_KEEPS_NOT;
	if (KdbVersionCompare(version, context->version) != 0 && KDB_RULE(KEEP_WRITTEN))
		return KDB_KEEPS_NOT;
	if (order == 0)
		return KDB_KEEPS;
	if (order < 0 || (!KdbMergeWriterSaw(ops, arg, context, holder) && KDB_RULE(KEEP_SEEN)))
		return KDB_KEEPS_NOT;
	return KDB_KEEPS_FOR_NOW;
}

KdbUniqueVerdict
KdbMergeUnique(KdbMergeRun *run, KdbRowPart part, KdbVersion version, bool contender)
{
	KdbMergeHolder holders[KDB_MERGE_MAX_HOLDERS];
	KdbUniqueVerdict verdict = KDB_UNIQUE_FREE;
	int			n;

	n = run->ops->holders(run->arg, part, version, holders, KDB_MERGE_MAX_HOLDERS);
	if (n > 0 && !chosen_by_version(run, conflict_with(run, n)))
		return resolve_otherwise(run, holders, n, contender);
	if (n > 0)
		verdict = against_holders(run, version, contender, holders, n);
	if (verdict != KDB_UNIQUE_FREE || !contender)
		return verdict;
	if (chosen_by_version(run, conflict_with(run, 1)) && newer_claim(run, part, version))
	{
		report(run, conflict_with(run, 1), KDB_ACTION_SKIP, NULL, 0, true);
		return KDB_UNIQUE_BEATEN;
	}
	return KDB_UNIQUE_FREE;
}
