/*
 * relation_cache.c
 *		What the session knows of each relation that has changed.
 *
 * An entry says whether and as what the changes of a relation are published,
 * and holds all that is needed to send a row: slots, maps, filter, columns,
 * functions.  It is computed at the relation's first change and kept until
 * something that it depends on changes.
 *
 *		absent --lookup--> valid --invalidation--> invalid --lookup--> valid
 *						   invalid --sweep--> absent
 *
 * Invalidation: relcache events of the relation, and of the root that its changes are
 * published as (which may get another name by itself); changes of pg_publication
 * (publication.c), pg_publication_rel, pg_publication_namespace and pg_namespace
 * (a schema that is renamed says nothing of its tables), for which all entries are
 * invalidated as the event does not say whom it concerns.  The events come from
 * the log, in the order of the changes, so an entry always shows the catalogs as
 * they were when the change was made.
 *
 * An event can arrive whenever a catalog is read, also while an entry is being
 * used or computed.  The callbacks therefore only clear "valid", and the
 * contents are thrown away at the next lookup, when nobody holds the entry.  If
 * computing an entry fails (a publication is missing, column lists differ, the
 * transaction was aborted meanwhile) it stays invalid and is computed anew.
 *
 * An invalid entry is as good as none, also for what was sent: the schema is
 * sent again.  So invalid entries are swept when the cache has doubled;
 * otherwise every relation that ever existed would stay until the walsender
 * ends.  Memory: an entry and its context per relation that is alive and
 * changes, plus at most as many of others (MIN_SWEEP_SIZE at least).
 *
 * The callbacks cannot be unregistered, but with the SQL interface sessions end
 * in a process that lives on: they find the cache by a pointer that is cleared
 * when its memory goes, however the session ended.
 */
#include "postgres.h"

#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "output_private.h"

#define MIN_SWEEP_SIZE	256

struct KdbRelationCache
{
	MemoryContext context;		/* holds all of the cache */
	HTAB	   *table;			/* of KdbPublishedRelation by OID */
	HTAB	   *roots;			/* OIDs that changes of others were ever published as */
	KdbPublishedRelation *last; /* the last one looked up, or NULL */
	long		sweep_size;		/* number of entries to sweep at */
	MemoryContextCallback reset;
};

/* The cache of this process's session, NULL if there is none. */
static KdbRelationCache *active_cache = NULL;

static void
cache_gone(void *arg)
{
	if (active_cache == arg)
		active_cache = NULL;
}

/* Every entry is out of date. */
void
KdbRelationCacheInvalidateAll(void)
{
	HASH_SEQ_STATUS scan;
	KdbPublishedRelation *entry;

	if (active_cache == NULL)
		return;
	hash_seq_init(&scan, active_cache->table);
	while ((entry = hash_seq_search(&scan)) != NULL)
		entry->valid = false;
}

static void
invalidate_published_as(Oid root)
{
	HASH_SEQ_STATUS scan;
	KdbPublishedRelation *entry;

	hash_seq_init(&scan, active_cache->table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->publish_as == root)
			entry->valid = false;
	}
}

static void
relation_changed(Datum arg, Oid relid)
{
	KdbPublishedRelation *entry;

	if (active_cache == NULL)
		return;
	if (!OidIsValid(relid))
	{
		KdbRelationCacheInvalidateAll();
		return;
	}
	entry = hash_search(active_cache->table, &relid, HASH_FIND, NULL);
	if (entry != NULL)
		entry->valid = false;
	if (hash_search(active_cache->roots, &relid, HASH_FIND, NULL) != NULL)
		invalidate_published_as(relid);
}

static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	KdbRelationCacheInvalidateAll();
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PUBLICATIONRELMAP, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(PUBLICATIONNAMESPACEMAP, catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, (Datum) 0);
	registered = true;
}

/* Make the session's cache, in a child of parent. */
void
KdbRelationCacheInit(KdbOutput *output, MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "krahodb output relations",
												  ALLOCSET_DEFAULT_SIZES);
	KdbRelationCache *cache = MemoryContextAllocZero(context, sizeof(KdbRelationCache));
	HASHCTL		ctl;

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(KdbPublishedRelation);
	ctl.hcxt = context;
	cache->context = context;
	cache->table = hash_create("krahodb output relations", MIN_SWEEP_SIZE, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.entrysize = sizeof(Oid);
	cache->roots = hash_create("krahodb output roots", 16, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cache->sweep_size = MIN_SWEEP_SIZE;
	cache->reset.func = cache_gone;
	cache->reset.arg = cache;
	MemoryContextRegisterResetCallback(context, &cache->reset);

	output->relations = active_cache = cache;
	register_callbacks();
}

/* Throw away all that an entry holds; afterwards it is as a new one. */
static void
clear_entry(KdbPublishedRelation *entry)
{
	Oid			relid = entry->relid;

	list_free(entry->streamed_xids);

	/* The slots' descriptors are copies in there too: nothing is pinned. */
	if (entry->context != NULL)
		MemoryContextDelete(entry->context);
	memset(entry, 0, sizeof(KdbPublishedRelation));
	entry->relid = relid;
}

static void
sweep(KdbRelationCache *cache)
{
	HASH_SEQ_STATUS scan;
	KdbPublishedRelation *entry;

	cache->last = NULL;
	hash_seq_init(&scan, cache->table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->valid)
			continue;
		clear_entry(entry);
		(void) hash_search(cache->table, &entry->relid, HASH_REMOVE, NULL);
	}
	cache->sweep_size = Max(MIN_SWEEP_SIZE, 2 * hash_get_num_entries(cache->table));
}

static KdbPublishedRelation *
find_or_add(KdbRelationCache *cache, Oid relid)
{
	bool		found;
	KdbPublishedRelation *entry = hash_search(cache->table, &relid, HASH_FIND, NULL);

	if (entry != NULL)
		return entry;
	if (hash_get_num_entries(cache->table) >= cache->sweep_size)
		sweep(cache);
	entry = hash_search(cache->table, &relid, HASH_ENTER, &found);
	memset(entry, 0, sizeof(KdbPublishedRelation));
	entry->relid = relid;
	return entry;
}

/* Slots for the relation's rows, and for them as target has them. */
static void
build_slots(KdbPublishedRelation *entry, Relation relation, Relation target)
{
	MemoryContext old = MemoryContextSwitchTo(entry->context);
	TupleDesc	desc = CreateTupleDescCopyConstr(RelationGetDescr(relation));

	entry->old_slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	entry->new_slot = MakeSingleTupleTableSlot(desc, &TTSOpsHeapTuple);
	if (target != relation)
		entry->attrmap = build_attrmap_by_name_if_req(desc, RelationGetDescr(target));
	if (entry->attrmap != NULL)
	{
		desc = CreateTupleDescCopyConstr(RelationGetDescr(target));
		entry->old_mapped = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
		entry->new_mapped = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	}
	MemoryContextSwitchTo(old);
}

/* What is needed to send rows. */
static void
build_row_state(KdbRelationCache *cache, KdbPublishedRelation *entry, Relation relation,
				List *publications)
{
	Relation	target = relation;

	if (entry->publish_as != RelationGetRelid(relation))
	{
		target = RelationIdGetRelation(entry->publish_as);
		if (!RelationIsValid(target))
			elog(ERROR, "could not open relation with OID %u", entry->publish_as);
		(void) hash_search(cache->roots, &entry->publish_as, HASH_ENTER, NULL);
	}
	entry->context = AllocSetContextCreate(cache->context, "krahodb output relation",
										   ALLOCSET_SMALL_SIZES);
	MemoryContextCopyAndSetIdentifier(entry->context, RelationGetRelationName(relation));
	build_slots(entry, relation, target);
	entry->filter = KdbBuildRowFilter(publications, entry->publish_as, entry->context);
	entry->columns = KdbBuildColumnList(publications, target, entry->context);
	if (target != relation)
		RelationClose(target);
}

static void
compute_entry(KdbOutput *output, KdbPublishedRelation *entry, Relation relation)
{
	List	   *publications;

	clear_entry(entry);
	publications = KdbFindPublications(output, relation, &entry->actions, &entry->publish_as);
	if (entry->actions.pubinsert || entry->actions.pubupdate || entry->actions.pubdelete)
		build_row_state(output->relations, entry, relation, publications);
	entry->valid = true;
}

/*
 * The valid entry of a relation.  It can be used until the next lookup.  Leaves
 * garbage in the current memory context when the entry has to be computed.
 */
KdbPublishedRelation *
KdbRelationCacheLookup(KdbOutput *output, Relation relation)
{
	KdbRelationCache *cache = output->relations;
	KdbPublishedRelation *entry = cache->last;
	Oid			relid = RelationGetRelid(relation);

	if (entry == NULL || entry->relid != relid)
		cache->last = entry = find_or_add(cache, relid);
	if (!entry->valid)
		compute_entry(output, entry, relation);
	return entry;
}

/* Has the streamed top-level transaction carried the schema? */
bool
KdbSchemaSentInStream(const KdbPublishedRelation *entry, TransactionId xid)
{
	return list_member_oid(entry->streamed_xids, xid);
}

void
KdbSetSchemaSentInStream(KdbOutput *output, KdbPublishedRelation *entry, TransactionId xid)
{
	MemoryContext old = MemoryContextSwitchTo(output->relations->context);

	/* A list of OIDs serves for what is as unsigned and as wide. */
	entry->streamed_xids = lappend_oid(entry->streamed_xids, xid);
	MemoryContextSwitchTo(old);
}

/*
 * A streamed top-level transaction has ended.  If it committed, the subscriber
 * knows the schemas that it carried from now on.
 */
void
KdbRelationCacheForgetStream(KdbOutput *output, TransactionId xid, bool committed)
{
	HASH_SEQ_STATUS scan;
	KdbPublishedRelation *entry;

	hash_seq_init(&scan, output->relations->table);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!list_member_oid(entry->streamed_xids, xid))
			continue;
		entry->streamed_xids = list_delete_oid(entry->streamed_xids, xid);
		if (committed)
			entry->schema_sent = true;
	}
}
