/*
 * origin_id.c
 *		replication_origin_id: the id of a subscription's replication origin.
 *
 * The engine gives each origin the first free id.  Filters on other nodes name
 * origins by id (filter_origins), so the user must be able to choose it.  The
 * engine has no function for that, but an origin that was never used is nothing
 * but its row of pg_replication_origin: its id can still be changed there, in
 * the transaction that creates the subscription.  Once a worker has set the
 * origin up, the id is in shared memory, in WAL records and in commit
 * timestamps, and stays.
 *
 * CREATE SUBSCRIPTION must know that the id is free before it creates the slot
 * on the publisher, which cannot be rolled back, but the origin exists only
 * after that.  So a row under another name reserves the id.  The lock is held
 * only while a row is written, as the engine does: other sessions look with a
 * dirty snapshot, which sees rows of transactions in progress.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_replication_origin.h"
#include "catalog/pg_subscription.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "krahodb/shared.h"

#include "options_private.h"

static void
reservation_name(RepOriginId id, char *name)
{
	snprintf(name, NAMEDATALEN, "krahodb_reserved_%u", id);
}

/* Raise an error if any transaction has the id; rel is locked. */
static void
check_id_is_free(Relation rel, RepOriginId id)
{
	SnapshotData dirty;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, Anum_pg_replication_origin_roident, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(id));
	scan = systable_beginscan(rel, ReplicationOriginIdentIndex, true, &dirty, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		name = heap_getattr(tuple, Anum_pg_replication_origin_roname,
										RelationGetDescr(rel), &isnull);

		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("replication origin id %u is already in use", id),
				 errdetail("It is the id of replication origin \"%s\".", TextDatumGetCString(name)),
				 errhint("Choose another replication_origin_id; pg_replication_origin shows those in use.")));
	}
	systable_endscan(scan);
}

void
KdbReserveOriginId(RepOriginId id)
{
	Relation	rel = table_open(ReplicationOriginRelationId, ExclusiveLock);
	Datum		values[Natts_pg_replication_origin];
	bool		nulls[Natts_pg_replication_origin] = {false};
	char		name[NAMEDATALEN];
	HeapTuple	tuple;

	check_id_is_free(rel, id);
	reservation_name(id, name);
	values[Anum_pg_replication_origin_roident - 1] = ObjectIdGetDatum(id);
	values[Anum_pg_replication_origin_roname - 1] = CStringGetTextDatum(name);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	CommandCounterIncrement();
	table_close(rel, ExclusiveLock);
}

/* Give up this transaction's reservation of the id.  Returns false if there is none. */
static bool
release_reservation(Relation rel, RepOriginId id)
{
	char		name[NAMEDATALEN];
	HeapTuple	tuple;

	reservation_name(id, name);
	tuple = SearchSysCache1(REPLORIGNAME, CStringGetTextDatum(name));
	if (!HeapTupleIsValid(tuple))
		return false;
	CatalogTupleDelete(rel, &tuple->t_self);
	ReleaseSysCache(tuple);
	CommandCounterIncrement();
	return true;
}

/*
 * Has the subscription ever replicated, or may it be about to?  One that
 * pg_dump's script has just made is disabled and has not.
 */
static bool
may_have_replicated(Oid subid, RepOriginId origin)
{
	HeapTuple	tuple = SearchSysCache1(SUBSCRIPTIONOID, ObjectIdGetDatum(subid));
	bool		enabled;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for subscription %u", subid);
	enabled = ((Form_pg_subscription) GETSTRUCT(tuple))->subenabled;
	ReleaseSysCache(tuple);
	return enabled || KdbHasWorkers(subid, false) ||
		replorigin_get_progress(origin, false) != InvalidXLogRecPtr;
}

static void
update_id(Relation rel, RepOriginId old_id, RepOriginId id)
{
	Datum		values[Natts_pg_replication_origin] = {0};
	bool		nulls[Natts_pg_replication_origin] = {false};
	bool		replaces[Natts_pg_replication_origin] = {false};
	HeapTuple	old = SearchSysCacheCopy1(REPLORIGIDENT, ObjectIdGetDatum(old_id));
	HeapTuple	new;

	if (!HeapTupleIsValid(old))
		elog(ERROR, "cache lookup failed for replication origin with ID %d", old_id);
	values[Anum_pg_replication_origin_roident - 1] = ObjectIdGetDatum(id);
	replaces[Anum_pg_replication_origin_roident - 1] = true;
	new = heap_modify_tuple(old, RelationGetDescr(rel), values, nulls, replaces);
	CatalogTupleUpdate(rel, &new->t_self, new);
	CommandCounterIncrement();
}

void
KdbAssignOriginId(Oid subid, RepOriginId id)
{
	char		name[NAMEDATALEN];
	RepOriginId old_id;
	Relation	rel;

	snprintf(name, sizeof(name), "pg_%u", subid);
	old_id = replorigin_by_name(name, false);
	if (old_id == id)
		return;

	rel = table_open(ReplicationOriginRelationId, ExclusiveLock);
	if (!release_reservation(rel, id))
	{
		if (may_have_replicated(subid, old_id))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot change \"%s\" of a subscription", "replication_origin_id"),
					 errdetail("The subscription's changes are already marked with replication origin id %u.", old_id)));
		check_id_is_free(rel, id);
	}
	update_id(rel, old_id, id);
	table_close(rel, ExclusiveLock);
}
