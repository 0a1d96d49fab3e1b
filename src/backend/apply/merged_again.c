/*
 * merged_again.c
 *		Changes of the stream that a copied row has in it already.
 *
 * A copy that begins again with its old slot shows the publisher as of a later snapshot
 * than the stream begins with (sync/copy_resume.c).  What lies between comes once more.  For most of a row
 * that is nothing new, but a contribution to a merged column would count twice.  Rows that
 * stayed as they were here lack it, though, so it is a question of each key: has it anything here
 * of that copy?
 *
 *	row version		written by the copy: its transactions have its time
 *	SEALED			the publisher's history of the key (merged_copied.c), or another one's copy of
 *					that row's history
 *
 * If so, what the snapshot shows is in it, and the change is left out.  The publisher's transaction tells whether
 * the snapshot shows it: AGAIN records have the snapshot, a position in the stream behind all
 * that it shows, and the copy's time.  Nothing of this can be vacuumed or pruned before, as the horizon waits
 * for tables that are being copied.
 */
#include "postgres.h"

#include "access/transam.h"

#include "merged_private.h"

/* A copy of the subscription's. */
struct KdbCopiedAgain
{
	TimestampTz time;
	XLogRecPtr	position;
	char	   *snapshot;		/* as SQL shows it: xmin:xmax:xid,xid,... */
};

/* See converge_private.h. */
void
KdbCopiedAgainForget(KdbFloor *floor)
{
	for (int i = 0; i < floor->nagain; i++)
		pfree(floor->again[i].snapshot);
	floor->nagain = 0;
}

/* See converge_private.h. */
void
KdbCopiedAgainTake(KdbApplyTarget *target, const KdbVersionRecord *record)
{
	KdbFloor   *floor = &target->floor;
	MemoryContext old;
	KdbCopiedAgain *again;

	if (record->version.node != MySubscription->oid || target->nmerged == 0)
		return;
	old = MemoryContextSwitchTo(target->context);
	if (floor->again == NULL)
		floor->again = palloc_array(KdbCopiedAgain, 1);
	else
		floor->again = repalloc(floor->again, (floor->nagain + 1) * sizeof(KdbCopiedAgain));
	again = &floor->again[floor->nagain];
	again->time = record->version.ts;
	again->position = (XLogRecPtr) record->shown.ts;
	again->snapshot = pnstrdup(VARDATA_ANY(record->merged), VARSIZE_ANY_EXHDR(record->merged));
	floor->nagain++;
	MemoryContextSwitchTo(old);
}

/* Does the snapshot show the publisher's transaction, whose id has no epoch? */
static bool
shows(const char *snapshot, TransactionId xid)
{
	char	   *p;
	TransactionId xmin = (TransactionId) strtou64(snapshot, &p, 10);
	TransactionId xmax;

	if (*p == ':')
		p++;
	xmax = (TransactionId) strtou64(p, &p, 10);
	if (TransactionIdPrecedes(xid, xmin))
		return true;
	if (!TransactionIdPrecedes(xid, xmax))
		return false;
	while (*p == ':' || *p == ',')
	{
		char	   *next = ++p;

		if ((TransactionId) strtou64(next, &p, 10) == xid && p != next)
			return false;
	}
	return true;
}

static bool
is_shown(const KdbCopiedAgain *again)
{
	return KdbApply.remote_final_lsn < again->position && shows(again->snapshot, KdbApply.remote_xid);
}

/* ---- the key ---- */

typedef struct Trace
{
	TimestampTz time;
	bool		found;
} Trace;

static void
look_at_record(void *arg, const KdbVersionRecord *record)
{
	Trace	   *trace = arg;
	KdbMergedSeal seal;

	if (record->kind != KDB_RECORD_SEALED || trace->found)
		return;
	trace->found = record->shown.ts == trace->time;
	KdbMergedSealNames(record, &seal);
	for (int i = 0; i < seal.n; i++)
		trace->found |= seal.versions[i].ts == trace->time;
}

static bool
has_row_of(KdbConverge *c, TimestampTz time)
{
	KdbMergedChange change = {0};
	ListCell   *lc;
	bool		found = false;

	c->merged = &change;
	foreach(lc, KdbMergedRowVersions(c))
		found |= ((KdbRowVersion *) lfirst(lc))->version.ts == time;
	c->merged = NULL;
	return found;
}

static bool
has_anything_of(KdbConverge *c, TimestampTz time)
{
	const KdbConvergeSide *side = KdbSideOf(c, KDB_KEY_NEW);
	Trace		trace = {time};
	KdbRecordedKey key;

	if (has_row_of(c, time))
		return true;
	KdbKeyOfRow(side->target, side->key, &key);
	KdbVersionRecordsOfKey(side->target->relid, &key, look_at_record, &trace);
	return trace.found;
}

/* See converge_private.h. */
bool
KdbIsInCopiedRow(KdbConverge *c)
{
	const KdbFloor *floor = &KdbSideOf(c, KDB_KEY_NEW)->target->floor;

	if (c->operation == KDB_DELETE)
		return false;			/* contributes nothing */
	for (int i = 0; i < floor->nagain; i++)
	{
		if (is_shown(&floor->again[i]) && has_anything_of(c, floor->again[i].time))
			return true;
	}
	return false;
}
