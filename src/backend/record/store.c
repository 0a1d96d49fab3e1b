/*
 * store.c
 *		Stores of records: what they are, and finding their relations.
 *
 * KrahoDB keeps records of its own in the database (conflicts; versions).  They
 * are written in the transaction that they speak of, survive crashes as any row
 * does, and must never be replicated: not to a stock subscriber FOR ALL TABLES,
 * and not to a tool that decodes everything.  So:
 *
 * KIND.  The relations are materialized views, made by the extension.  The engine
 * publishes tables only, refuses INSERT, UPDATE, DELETE and TRUNCATE of users on
 * materialized views, and otherwise stores, vacuums, copies and recovers them as
 * tables.  REFRESH is refused (commands/utility.c), so that a script that refreshes
 * all materialized views does not empty them.
 *
 * APPEND ONLY.  Rows are inserted through the table access method with
 * TABLE_INSERT_NO_LOGICAL: the WAL record, and those of out-of-line values, then
 * have no tuple for logical decoding, which passes over them.  A deletion or update
 * would be decoded (test_decoding shows it without columns), so there is none.
 *
 * GENERATIONS.  What is too old goes by generations: a relation all of whose
 * records are older than the caller wants gets new, empty storage, as TRUNCATE
 * gives it, but without TRUNCATE's record for decoding.  A generation is:
 *
 *	current		records are appended to it
 *	full		it has been current for 1/(N-1) of the time that records are kept
 *	expired		its youngest record is older than that time; next: empty
 *	empty		next: current
 *
 * By the time that the N-1 others are full, the oldest has expired.  Nothing of this
 * is stored: the current generation is the one with the youngest record, and each
 * generation's oldest and youngest stamps are at the ends of an index.  A process
 * that is not up to date appends to another generation, which is allowed: they are
 * all equal, and whether one has expired is looked up under an exclusive lock.
 *
 * LOCKS.  A writer holds RowExclusiveLock on a generation until its transaction ends,
 * a reader AccessShareLock on all.  Emptying takes AccessExclusiveLock, only if it is
 * free at once, in a transaction that does nothing else.  So nobody waits for longer
 * than that takes, and rotation is in no deadlock.
 *
 * TRUST.  Anybody who may create a schema could make relations of these names before
 * the extension does; only members of the extension are written to.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "krahodb/init.h"
#include "record_private.h"

#define EXTENSION_NAME	KRAHODB_LIBRARY

/* Stores that have been used in this process. */
#define MAX_STORES		4
static KdbRecordStore *stores[MAX_STORES];
static int	nstores = 0;

static bool
concerns(const KdbRecordStore *store, Oid relid)
{
	/* Whether a new relation is one of ours is not known yet. */
	if (!OidIsValid(relid) || !store->present)
		return true;
	for (int i = 0; i < KDB_RECORD_GENERATIONS; i++)
	{
		if (store->relids[i] == relid)
			return true;
	}
	return false;
}

/* A relation was created, dropped, or got new storage. */
static void
relation_changed(Datum arg, Oid relid)
{
	for (int i = 0; i < nstores; i++)
	{
		if (!concerns(stores[i], relid))
			continue;
		stores[i]->looked_up = false;
		stores[i]->changes++;
		KdbRecordForgetCurrent(stores[i]);
	}
}

static void
remember_store(KdbRecordStore *store)
{
	for (int i = 0; i < nstores; i++)
	{
		if (stores[i] == store)
			return;
	}
	if (nstores == 0)
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	if (nstores >= MAX_STORES)
		elog(ERROR, "too many stores of records");
	stores[nstores++] = store;
}

/* See record.h. */
bool
KdbRecordIsGeneration(Oid relid)
{
	Oid			extension;

	if (get_rel_relkind(relid) != RELKIND_MATVIEW)
		return false;
	extension = get_extension_oid(EXTENSION_NAME, true);
	return OidIsValid(extension) &&
		getExtensionOfObject(RelationRelationId, relid) == extension;
}

/* The relation of a generation, or InvalidOid. */
static Oid
generation_relid(const KdbRecordStore *store, Oid namespace, int generation)
{
	char	   *name = psprintf("%s_%d", store->name, generation + 1);
	Oid			relid = get_relname_relid(name, namespace);

	pfree(name);
	return OidIsValid(relid) && KdbRecordIsGeneration(relid) ? relid : InvalidOid;
}

/* See record_private.h. */
void
KdbRecordForgetCurrent(KdbRecordStore *store)
{
	store->current_known = false;
	store->retry_at = 0;
}

static bool
find_generations(KdbRecordStore *store)
{
	Oid			namespace = get_namespace_oid("krahodb", true);

	if (!OidIsValid(namespace))
		return false;
	for (int i = 0; i < KDB_RECORD_GENERATIONS; i++)
	{
		store->relids[i] = generation_relid(store, namespace, i);
		if (!OidIsValid(store->relids[i]))
			return false;
	}
	return true;
}

/* See record_private.h. */
bool
KdbRecordLookUp(KdbRecordStore *store)
{
	uint64		changes = store->changes;

	if (store->looked_up)
		return store->present;
	remember_store(store);
	store->present = false;
	store->present = find_generations(store);

	/* What has come in meanwhile is looked at the next time. */
	store->looked_up = store->changes == changes;
	return store->present;
}

/* See record.h. */
bool
KdbRecordPresent(KdbRecordStore *store)
{
	return KdbRecordLookUp(store);
}

/* Not one of an administrator's that has only some of the records, or no order. */
static bool
begins_with(Relation index, const AttrNumber *columns, int ncolumns)
{
	if (!index->rd_index->indisvalid || index->rd_rel->relam != BTREE_AM_OID ||
		RelationGetIndexPredicate(index) != NIL ||
		IndexRelationGetNumberOfKeyAttributes(index) < ncolumns)
		return false;
	for (int i = 0; i < ncolumns; i++)
	{
		if (index->rd_index->indkey.values[i] != columns[i])
			return false;
	}
	return true;
}

/* See record_private.h. */
Relation
KdbRecordOpenIndex(Relation rel, const AttrNumber *columns, int ncolumns,
				   LOCKMODE lockmode)
{
	List	   *indexes = RelationGetIndexList(rel);
	Relation	result = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), lockmode);

		if (begins_with(index, columns, ncolumns))
		{
			result = index;
			break;
		}
		index_close(index, lockmode);
	}
	list_free(indexes);
	return result;
}
