/*
 * table_versions.c
 *		The true versions of a table's rows, for whoever copies it.
 *
 * A subscriber that copies a table writes all rows in one transaction, with one
 * commit timestamp.  What is older than the retention horizon may look old: nothing
 * that is older will meet it.  Of what is newer it must know more than the rows:
 *
 *	t	a live row: its version
 *	d	a key that is dead: the version of its death
 *	c	unique values that a row has or had: its version (also of live rows)
 *	i	unique values that a record says a row had in one index: its version
 *	f	a node all of whose changes until the horizon are in what is copied, with a
 *		position instead of columns
 *
 * All as of the active snapshot, which is the one that is copied.  Each comes with
 * the columns of the key and of unique indexes, as text.  What the heap says of this is listed by
 * version_listing.c, what version records say is added here.  A record does not know the whole row,
 * so if an index has expressions, generated columns, a predicate or equal NULLs, claims are told of one index: there are the
 * columns of the key, the index (KdbIndexText), and an array of what it has of the row.
 *
 * THE HORIZON must not move between the moment when it is asked for, before the
 * snapshot is taken, and the scan: what it passes may be gone.  So the copying session
 * holds it (KdbHorizonHold).
 *
 * What nodes a table has all changes of: those whose changes a subscription of this
 * database applies that counts in the horizon and has finished copying the
 * table.  Until the horizon, or until when that is known of them if they are new.
 *
 * POSITIONS.  That a later change of such a node is in the copy as well, does not matter:
 * it meets its own version.  But a contribution to a merged column would count twice.
 * So a floor also says up to which position of that node's stream the snapshot has all
 * of it: the greater one of what had been applied when the horizon was taken hold
 * of, before the snapshot, and of the last transaction of that origin which the
 * snapshot shows.  (The latter must be a recent one, as it has been applied since.)
 * Where no worker has reported since the server started, or none runs, the progress of
 * the subscription's origin counts: its publisher may be away for long.  Else that is no
 * position to rely on, as it moves before the transaction is visible.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "replication/origin.h"
#include "storage/spin.h"
#include "storage/lwlock.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "krahodb/compat.h"
#include "krahodb/horizon_shared.h"
#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"
#include "krahodb/shared.h"

#include "conflict_private.h"

KDB_SQL_FUNCTION(krahodb_table_versions);

#define COLUMNS		5

/* A table or partition whose versions are listed. */
typedef struct Listing
{
	KdbListing	table;
	ReturnSetInfo *result;
} Listing;

/* ---- what is sent ---- */

typedef struct Line
{
	int			n;
	Datum		names[MaxHeapAttributeNumber];
	Datum		values[MaxHeapAttributeNumber];
	bool		isnull[MaxHeapAttributeNumber];
} Line;

static Datum
text_of_value(Oid type, Datum value)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	return CStringGetTextDatum(OidOutputFunctionCall(function, value));
}

static void
add_column(Listing *listing, Line *line, AttrNumber attnum, Datum value, bool isnull)
{
	Form_pg_attribute att = TupleDescAttr(listing->table.desc, attnum - 1);

	line->names[line->n] = CStringGetTextDatum(NameStr(att->attname));
	line->isnull[line->n] = isnull;
	if (!isnull)
		line->values[line->n] = text_of_value(att->atttypid, value);
	line->n++;
}

static void
put_line(ReturnSetInfo *result, char kind, KdbVersion version, Line *line)
{
	Datum		values[COLUMNS];
	bool		nulls[COLUMNS] = {false};
	int			dims[1] = {line->n};
	int			bounds[1] = {1};

	values[0] = CharGetDatum(kind);
	values[1] = Int64GetDatum(version.ts);
	values[2] = CStringGetTextDatum(psprintf(UINT64_FORMAT, version.node));
	values[3] = PointerGetDatum(construct_array(line->names, line->n, TEXTOID, -1, false, TYPALIGN_INT));
	values[4] = PointerGetDatum(construct_md_array(line->values, line->isnull, 1, dims, bounds,
												   TEXTOID, -1, false, TYPALIGN_INT));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void
put_row(void *arg, char kind, KdbVersion version, TupleTableSlot *slot)
{
	Listing    *listing = arg;
	Line	   *line = palloc0(sizeof(Line));
	int			attnum = -1;

	while ((attnum = bms_next_member(listing->table.columns, attnum)) >= 0)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, (AttrNumber) attnum, &isnull);

		add_column(listing, line, (AttrNumber) attnum, value, isnull);
	}
	put_line(listing->result, kind, version, line);
}

/* ---- records ---- */

static Oid
type_of_column(const Listing *listing, AttrNumber attnum)
{
	return TupleDescAttr(listing->table.desc, attnum - 1)->atttypid;
}

/* What is claimed of one index. */
static void
add_indexed(Line *line, const KdbUniqueIndex *index, const KdbRecordedKey *claimed)
{
	Relation	rel = index_open(index->oid, AccessShareLock);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	int			dims[1] = {index->n};
	int			bounds[1] = {1};
	ArrayType  *array;

	for (int i = 0; i < index->n; i++)
	{
		isnull[i] = claimed->isnull[i];
		if (!isnull[i])
			values[i] = text_of_value(index->types.types[i], claimed->values[i]);
	}
	array = construct_md_array(values, isnull, 1, dims, bounds, TEXTOID, -1, false, TYPALIGN_INT);
	line->names[line->n] = CStringGetTextDatum(KdbIndexText(rel));
	line->isnull[line->n] = false;
	line->values[line->n++] = text_of_value(TEXTARRAYOID, PointerGetDatum(array));
	index_close(rel, NoLock);
}

/* The columns of an index that is nothing but columns. */
static void
add_claimed(Listing *listing, Line *line, const KdbUniqueIndex *index, const KdbRecordedKey *claimed)
{
	for (int i = 0; i < index->n; i++)
	{
		bool		is_key = false;

		for (int j = 0; j < listing->table.nkeys; j++)
			is_key |= listing->table.keys[j] == index->columns[i];
		if (!is_key)
			add_column(listing, line, index->columns[i], claimed->values[i], claimed->isnull[i]);
	}
}

/* KdbListingNeeds has found the index, and values that fit it. */
static void
put_claim(Listing *listing, Line *line, const KdbVersionRecord *record, Oid place, const KdbRecordedKey *claimed)
{
	const KdbUniqueIndex *index = KdbListingIndex(&listing->table, place);

	if (listing->table.whole_rows)
		add_indexed(line, index, claimed);
	else
		add_claimed(listing, line, index, claimed);
	put_line(listing->result, listing->table.whole_rows ? 'i' : 'c', record->version, line);
}

/* False if a column has got another type since. */
static bool
add_key(Listing *listing, Line *line, const KdbRecordedKey *key)
{
	for (int i = 0; i < key->n; i++)
	{
		if (!KdbRecordedValueFits(key, i, type_of_column(listing, listing->table.keys[i])))
			return false;
		add_column(listing, line, listing->table.keys[i], key->values[i], key->isnull[i]);
	}
	return true;
}

static void
list_record(void *arg, const KdbVersionRecord *record, const KdbRecordedKey *key,
			Oid place, const KdbRecordedKey *claimed)
{
	Listing    *listing = arg;
	MemoryContext old = MemoryContextSwitchTo(listing->table.context);
	Line	   *line = palloc0(sizeof(Line));

	if (KdbListingNeeds(&listing->table, record, key, place, claimed) && add_key(listing, line, key))
	{
		if (record->kind == KDB_RECORD_TRUTH)
			put_line(listing->result, 't', record->version, line);
		else if (record->kind == KDB_RECORD_DEAD)
			put_line(listing->result, 'd', record->version, line);
		else if (record->kind == KDB_RECORD_CLAIM && claimed)
			put_claim(listing, line, record, place, claimed);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(listing->table.context);
}

/* ---- the table ---- */

static void
list_table(ReturnSetInfo *result, Oid relid, TimestampTz since)
{
	Listing		listing = {.result = result};
	Relation	rel = relation_open(relid, AccessShareLock);

	listing.table.since = since;
	listing.table.put_row = put_row;
	listing.table.arg = &listing;
	if (KdbListingPrepare(&listing.table, rel))
	{
		listing.table.context = AllocSetContextCreate(CurrentMemoryContext, "KrahoDB table versions",
													  ALLOCSET_DEFAULT_SIZES);
		KdbListHeap(&listing.table, rel, GetActiveSnapshot());
		KdbVersionRecordsOfTable(relid, since, listing.table.nkeys, list_record, &listing);
		MemoryContextDelete(listing.table.context);
	}
	relation_close(rel, NoLock);
}

/* ---- what is complete ---- */

static bool
is_applied(Oid subid, Oid relid)
{
	List	   *tables = lcons_oid(relid, get_partition_ancestors(relid));
	ListCell   *lc;

	foreach(lc, tables)
	{
		XLogRecPtr	lsn;

		if (GetSubscriptionRelState(subid, lfirst_oid(lc), &lsn) == SUBREL_STATE_READY)
			return true;
	}
	return false;
}

/* How far streams had been applied when this session took hold of the horizon. */
typedef struct Applied
{
	Oid			subid;
	XLogRecPtr	lsn;
} Applied;

static Applied *applied = NULL;
static int	napplied = 0;

static RepOriginId
origin_of(Oid subid)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "pg_%u", subid);
	return replorigin_by_name(name, true);
}

static XLogRecPtr
noted_position(Oid subid)
{
	XLogRecPtr	position = InvalidXLogRecPtr;

	for (int i = 0; i < napplied; i++)
	{
		if (applied[i].subid == subid)
			position = Max(position, applied[i].lsn);
	}
	return position;
}

static KdbSharedPeer *
read_peers(int *n)
{
	KdbSharedPeer *peers = palloc(mul_size(KdbHorizon->max_peers, sizeof(KdbSharedPeer)));

	LWLockAcquire(KdbHorizon->lock, LW_SHARED);
	*n = KdbHorizon->npeers;
	memcpy(peers, KdbHorizon->peers, *n * sizeof(KdbSharedPeer));
	LWLockRelease(KdbHorizon->lock);
	return peers;
}

static void
note_reported(void)
{
	for (int i = 0; i < KdbHorizon->nprogress; i++)
	{
		KdbSharedProgress *progress = &KdbHorizon->progress[i];

		SpinLockAcquire(&progress->mutex);
		applied[napplied] = (Applied){progress->subid, Max(progress->started, progress->durable)};
		SpinLockRelease(&progress->mutex);
		if (OidIsValid(applied[napplied].subid))
			napplied++;
	}
}

/*
 * See conflict.h.  Origins are read first.  If then no worker of the subscription runs, or
 * none has reported, none was about to commit when its origin was read, or is done with it.
 */
void
KdbTableVersionsNote(void)
{
	int			npeers;
	KdbSharedPeer *peers = read_peers(&npeers);
	XLogRecPtr *positions = palloc0(mul_size(npeers, sizeof(XLogRecPtr)));

	for (int i = 0; i < npeers; i++)
	{
		RepOriginId origin = origin_of(peers[i].subid);

		if (origin != InvalidRepOriginId)
			positions[i] = replorigin_get_progress(origin, false);
	}
	if (applied == NULL)
		applied = MemoryContextAlloc(TopMemoryContext,
									 (KdbHorizon->nprogress + KdbHorizon->max_peers) * sizeof(Applied));
	napplied = 0;
	note_reported();
	for (int i = 0; i < npeers; i++)
	{
		if (noted_position(peers[i].subid) == InvalidXLogRecPtr || !KdbHasWorkers(peers[i].subid, true))
			applied[napplied++] = (Applied){peers[i].subid, positions[i]};
	}
}

static XLogRecPtr
position_in_snapshot(Oid subid, RepOriginId origin)
{
	XLogRecPtr	position = KdbSeenLastPosition(origin, KdbOriginNode(origin), GetActiveSnapshot());

	return Max(position, noted_position(subid));
}

static void
put_floor(ReturnSetInfo *result, KdbVersion floor, XLogRecPtr position)
{
	Line		line = {0};

	line.n = 1;
	line.names[0] = CStringGetTextDatum("lsn");
	line.values[0] = CStringGetTextDatum(psprintf(UINT64_FORMAT, position));
	put_line(result, 'f', floor, &line);
}

static bool
is_of_this_database(Oid subid)
{
	HeapTuple	tuple = SearchSysCache1(SUBSCRIPTIONOID, ObjectIdGetDatum(subid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_subscription) GETSTRUCT(tuple))->subdbid == MyDatabaseId;
	ReleaseSysCache(tuple);
	return result;
}

static void
list_floors(ReturnSetInfo *result, Oid relid, TimestampTz since)
{
	int			n;
	KdbSharedPeer *peers = read_peers(&n);

	for (int i = 0; i < n; i++)
	{
		RepOriginId origin;
		KdbVersion	floor;

		if (peers[i].excluded || !is_of_this_database(peers[i].subid) ||
			!is_applied(peers[i].subid, relid))
			continue;
		/* its worker may not have told yet */
		origin = peers[i].origin != InvalidRepOriginId ? peers[i].origin : origin_of(peers[i].subid);
		floor = (KdbVersion){Min(since, peers[i].streamed), KdbOriginNode(origin)};
		if (floor.node != 0)
			put_floor(result, floor, position_in_snapshot(peers[i].subid, origin));
	}
}

/* See conflict.h.  The table is named by its OID, so nobody has asked for its schema. */
bool
KdbRowsAreHidden(Oid relid)
{
	AclResult	acl = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT);
	Oid			schema;

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, get_relkind_objtype(get_rel_relkind(relid)), get_rel_name(relid));
	schema = get_rel_namespace(relid);
	acl = pg_namespace_aclcheck(schema, GetUserId(), ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(schema));
	return check_enable_rls(relid, InvalidOid, true) == RLS_ENABLED;
}

/* krahodb.table_versions(regclass, bigint); since the end of time: floors only */
Datum
krahodb_table_versions(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	TimestampTz since = PG_GETARG_INT64(1);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		hidden = KdbRowsAreHidden(relid);
	ListCell   *lc;

	KdbTransactionVersionForget();
	InitMaterializedSRF(fcinfo, 0);
	if (hidden)
		return (Datum) 0;
	list_floors(result, relid, since);
	if (since == PG_INT64_MAX)
		return (Datum) 0;
	foreach(lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		if (lfirst_oid(lc) == relid || get_rel_relispartition(lfirst_oid(lc)))
			list_table(result, lfirst_oid(lc), since);
	}
	return (Datum) 0;
}
