/*
 * merge_unsent.c
 *		What the writer had seen, and the values that it did not send.
 *
 * The stream leaves unchanged out-of-line values out.  They are in the row that the
 * writer overwrote, so the local row may give them if it is provably that one:
 *
 * - everything that the writer may have seen of other nodes has been applied here
 *   (upper bounds), and all that it wrote itself before (streams are in order): the
 *   writer's row was not greater than the one here;
 * - the local version is among what the writer surely had seen (lower bound), or it
 *   is the writer's own: the row here is not greater than the writer's.
 *
 * Equal versions of a key are equal rows.  That the local version is the writer's
 * own proves nothing without the first condition: the writer may have overwritten
 * another node's row that has not arrived here.
 *
 * Otherwise the row is fetched.  What is there is the last state of whatever
 * transaction wrote it, and need not be what the row was in the middle of that
 * transaction; so after a fetch, rows that were written in the transaction being
 * applied share nothing any more.
 */
#include "merge_private.h"

/*
 * Had the writer seen the local version?  Then the write is no conflict with it.
 */
bool
KdbMergeWriterSaw(const KdbMergeOps *ops, void *arg, const KdbMergeContext *context, const KdbLocalRow *local)
{
	if (!local->version_known || local->version.ts <= context->horizon)
		return true;
	if (local->version.node == context->version.node)
		return true;
	return KdbSeenSurely(&context->seen, local->version.node,
						 ops->position(arg, local));
}

/* Is all here that the writer may have seen? */
static bool
caught_up(KdbMergeRun *run)
{
	const KdbSeen *seen = &run->context->seen;

	for (int i = 0; i < seen->nentries; i++)
	{
		if (seen->entries[i].node != run->context->version.node &&
			run->ops->progress(run->arg, seen->entries[i].node) < seen->entries[i].maybe)
			return false;
	}
	return true;
}

bool
KdbMergeMayShare(KdbMergeRun *run, const KdbLocalRow *local)
{
	int			order;

	if (local->state != KDB_ROW_LIVE || local->rewritten)
		return false;
	order = KdbMergeOrder(run->context->version, local);
	if (order == 0 && local->same_transaction)
		return !run->context->fetched || !KDB_RULE(FETCHED_ONCE);
	if (order <= 0)
		return false;
	if (KDB_RULE(SHARE_SEEN) && !KdbMergeWriterSaw(run->ops, run->arg, run->context, local))
		return false;
	return !KDB_RULE(SHARE_READY) || caught_up(run);
}

void
KdbMergeFetch(KdbMergeRun *run)
{
	if (run->has_fetched)
		return;
	run->ops->fetch(run->arg, &run->fetched);
	run->has_fetched = true;
	run->context->fetched = true;
	run->context->newest = false;
}
