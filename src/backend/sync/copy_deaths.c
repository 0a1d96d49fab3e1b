/*
 * copy_deaths.c
 *		Is anything that was deleted here newer than what is copied?
 *
 * COPY fails if a row is in the way, and then the rows come one by one and are resolved
 * (copy.c).  It notices nothing of rows that were here and are not any more: it would
 * bring them back, though the deletion is later, and is on its way to the publisher.  Nor does it
 * notice of a row with another key that it had one of the unique values later.  So
 * where something is known that is dead, rows come one by one as well.
 *
 * WHAT COUNTS is what the horizon here has not passed: all else the publisher has seen
 * before it wrote what is copied.
 *
 *	dead tuples		that were deleted, or overwritten, by another node's transaction; or by
 *					one of this node after the subscription was made.  Whoever empties a table with
 *					DELETE so as to subscribe to it does not want it to stay empty: no
 *					other node hears of that.
 *	records			of deaths and claims, by changes that were applied; not those that an
 *					earlier attempt of this copy has from the publisher itself, which
 *					knows of them.
 *
 * A deletion by a copy (copy_resume.c takes rows away) is dated to the beginning of 2000 as well.
 *
 * NOT COVERED are rows that were here before the copy, and are deleted between this look and the
 * moment when COPY comes to them; what deletes a row by the rules finds such a copied row itself.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_inherits.h"
#include "replication/origin.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "krahodb/conflict.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/version_record.h"

#include "sync_private.h"

/*
 * When the subscription was made: its origin was made with it, and that row is never
 * changed.  0: so long ago that it is not known.
 */
static TimestampTz
subscribed_at(void)
{
	HeapTuple	tuple = SearchSysCache1(REPLORIGIDENT, ObjectIdGetDatum(replorigin_session_origin));
	KdbLocalRow row = {0};

	if (!HeapTupleIsValid(tuple))
		return 0;
	KdbTransactionVersion(KdbTupleWriter(tuple->t_data), InvalidRepOriginId, 0, &row);
	ReleaseSysCache(tuple);
	return row.version_known ? row.version.ts : 0;
}

typedef struct Records
{
	bool		resumed;
	bool		found;
} Records;

static void
look_at_record(void *arg, const KdbVersionRecord *record, const KdbRecordedKey *key,
			   Oid place, const KdbRecordedKey *claimed)
{
	Records    *records = arg;

	if (record->own || (records->resumed && record->shown.ts <= KdbCopiedRowTime))
		return;
	if (record->kind == KDB_RECORD_DEAD || record->kind == KDB_RECORD_KILLED ||
		record->kind == KDB_RECORD_CLAIM)
		records->found = true;
}

static bool
has_records(Relation rel, bool resumed)
{
	KdbVersionRecordsKnown known = {0};
	Records		records = {resumed};

	if (!KdbVersionRecordsAny(RelationGetRelid(rel), &known))
		return false;
	PushActiveSnapshot(GetLatestSnapshot());
	KdbVersionRecordsOfTable(RelationGetRelid(rel), KdbHorizonTimestamp(), 0, look_at_record, &records);
	PopActiveSnapshot();
	return records.found;
}

/* Without a key nobody can say what is dead. */
static bool
has_deaths(Relation rel, bool resumed, TimestampTz own_since)
{
	if (!OidIsValid(RelationGetPrimaryKeyIndex(rel)) && !OidIsValid(RelationGetReplicaIndex(rel)))
		return false;
	return KdbTableHasDeaths(rel, Max(KdbHorizonTimestamp(), KdbCopiedRowTime), own_since) ||
		has_records(rel, resumed);
}

/* See sync_private.h. */
bool
KdbSyncDeletedHere(Relation rel, bool resumed)
{
	TimestampTz own_since;
	bool		found = false;
	ListCell   *lc;

	if (!KdbOptionsCompareTimes(KdbMyOptions))
		return false;
	KdbTransactionVersionForget();
	own_since = subscribed_at();
	foreach(lc, find_all_inheritors(RelationGetRelid(rel), RowExclusiveLock, NULL))
	{
		Relation	child = relation_open(lfirst_oid(lc), NoLock);

		if (child->rd_rel->relkind == RELKIND_RELATION &&
			(child == rel || child->rd_rel->relispartition))
			found = found || has_deaths(child, resumed, own_since);
		relation_close(child, NoLock);
	}
	return found;
}
