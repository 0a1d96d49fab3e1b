/*
 * merge_columns.c
 *		Merged columns: contributions and their fold.
 *
 * The value of a merged column is a function of the set of all writes to its key.
 * Each contributes an assignment (INSERT, to or from NULL, a maximum that its user
 * lowered), a change (a delta, a maximum raised), or nothing.  The value is the
 * assignment of the greatest version, with all changes that come after it in the
 * order of versions combined into it.  Deletions contribute nothing: a key that is
 * inserted again starts from its new assignment, and a deletion that loses to an
 * update has taken nothing away.
 *
 * No order of arrival matters, since a contribution is known with its version and
 * arrives exactly once: a fetched row brings the columns chosen by version and never
 * the merged ones, which contain changes that are still on their way here.
 *
 * Within one transaction versions are equal and the order of arrival is the order
 * of writing, on every node.
 *
 * An UPDATE may arrive before the INSERT of its row.  Then the old value that its
 * writer had stands for the assignment, with the least version there is: any
 * assignment that arrives replaces it, and the INSERT will arrive.
 *
 * The fold looks at the history, which costs.  It is not needed where the write is
 * greater than all that is known of a live key: then the local value is the fold,
 * and the write's contribution goes on top.
 */
#include "merge_private.h"

#include <stddef.h>

KdbContributionKind
KdbContributionOf(KdbMergeKind kind, bool old_null, bool new_null, int order)
{
	if (old_null && new_null)
		return KDB_CONTRIBUTES_NOTHING;
	if (old_null || new_null)
		return KDB_CONTRIBUTES_VALUE;
	if (order == 0)
		return KDB_CONTRIBUTES_NOTHING;
	if ((kind == KDB_MERGE_MAX && order < 0) || (kind == KDB_MERGE_MIN && order > 0))
		return KDB_CONTRIBUTES_VALUE;
	return KDB_CONTRIBUTES_CHANGE;
}

static KdbContributionKind
own_contribution(KdbMergeRun *run, int column)
{
	if (run->write == NULL)
		return KDB_CONTRIBUTES_NOTHING;
	if (run->operation == KDB_INSERT)
		return KDB_CONTRIBUTES_VALUE;
	return run->ops->contribution(run->arg, column);
}

bool
KdbMergeContributes(KdbMergeRun *run)
{
	for (int column = 0; column < run->nmerged; column++)
	{
		if (own_contribution(run, column) != KDB_CONTRIBUTES_NOTHING)
			return true;
	}
	return false;
}

/*
 * The last assignment by version, the later arrival among equals; -1 if it is the
 * write's own, and with that no known version.
 */
static int
last_assignment(KdbMergeRun *run, int column, KdbContributionKind own, KdbVersion *version)
{
	KdbContribution c;
	int			last = -1;

	for (int i = 0; run->ops->history(run->arg, column, i, &c); i++)
	{
		if (c.kind == KDB_CONTRIBUTES_VALUE &&
			(last < 0 || KdbVersionCompare(c.version, *version) >= 0))
		{
			last = i;
			*version = c.version;
		}
	}
	if (own == KDB_CONTRIBUTES_VALUE &&
		(last < 0 || KdbVersionCompare(run->context->version, *version) >= 0))
	{
		last = -1;
		*version = run->context->version;
	}
	return last;
}

static void
fold_column(KdbMergeRun *run, int column)
{
	KdbContributionKind own = own_contribution(run, column);
	KdbVersion	assigned = {0, 0};
	KdbContribution c;
	int			last = last_assignment(run, column, own, &assigned);

	run->ops->fold_start(run->arg, column, last);
	for (int i = 0; run->ops->history(run->arg, column, i, &c); i++)
	{
		int			order = KdbVersionCompare(c.version, assigned);

		if (!KDB_RULE(HISTORY) && last < 0)
			break;
		if (c.kind == KDB_CONTRIBUTES_CHANGE &&
			(order > 0 || (order == 0 && last >= 0 && i > last)))
			run->ops->fold_change(run->arg, column, i);
	}
	if (own == KDB_CONTRIBUTES_CHANGE &&
		KdbVersionCompare(run->context->version, assigned) >= 0)
		run->ops->fold_change(run->arg, column, -1);
}

bool
KdbMergeFold(KdbMergeRun *run)
{
	KdbContribution c;

	if (!run->ops->history(run->arg, 0, 0, &c))
		return false;
	for (int column = 0; column < run->nmerged; column++)
		fold_column(run, column);
	return true;
}

void
KdbMergeContributeDead(KdbMergeRun *run)
{
	KdbContribution c;

	if (run->write == NULL || run->nmerged == 0 || !KDB_RULE(DEAD_CHANGES))
		return;
	if (!KdbMergeContributes(run))
		return;
	run->ops->contribute(run->arg, run->operation == KDB_UPDATE &&
						 !run->ops->history(run->arg, 0, 0, &c));
}
