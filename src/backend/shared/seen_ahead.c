/*
 * seen_ahead.c
 *		What this node has seen of others ahead of their streams.
 *
 * Ordinarily this node has seen of another one what its subscription has applied,
 * and the log tells walsenders when.  Rows that came another way (fetched one by
 * one, copied with a table) are later states than that.  A transaction that builds
 * on them has then seen more than the streams say, and the upper bounds that are
 * sent with it must not be lower.
 *
 * So who brings such rows notes it here before they are committed.  A transaction
 * that has seen them commits later, so a walsender that sends it finds the note,
 * whenever it looks.  That must hold after a crash too: the file
 * krahodb/seen_ahead (state_file.h) is written before KdbSeenAheadOfOrigin returns.
 *
 * A note is obsolete when the node's stream has passed it: then each walsender
 * either reads commits of it beyond the note before what it sends, or starts with
 * a progress beyond it.  It goes when the file is written next.  A note of an
 * origin that is to be dropped never gets so far, and stays.  Of these the oldest are forgotten
 * when there are many, as dropping a subscription must not fail, and what is sent of them has a limit too:
 * who could still miss such a note has not heard of its node since the subscriptions to hundreds of others
 * were dropped here.
 *
 * A note is of one database: what the subscriptions of another one have applied is not in its
 * rows, and makes nothing obsolete.  With a database that was dropped its notes go.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/syscache.h"

#include "krahodb/origin_nodes.h"
#include "krahodb/seen_state.h"

#include "state_file.h"

static const KdbStateFile state_file = {
	.name = "seen_ahead",
	.magic = 0x4b445341,		/* KDSA */
	.version = 2,
	.max_entries = KDB_SEEN_AHEAD_MAX,
	.entry_size = sizeof(KdbSeenAheadEntry),
	.removal_hint = "rows that were fetched or copied shortly before may then count as not seen, and may differ between nodes.",
};

typedef struct SeenAhead
{
	LWLock		lock;
	int			tranche;
	pg_atomic_uint64 generation;
	int			nentries;
	KdbSeenAheadEntry entries[KDB_SEEN_AHEAD_MAX];
} SeenAhead;

static SeenAhead *ahead = NULL;

Size
KdbSeenAheadSize(void)
{
	return MAXALIGN(sizeof(SeenAhead));
}

void
KdbSeenAheadStart(void)
{
	bool		found;

	ahead = ShmemInitStruct("KrahoDB seen ahead", KdbSeenAheadSize(), &found);
	if (!found)
	{
		uint32		count;
		KdbSeenAheadEntry *entries = KdbStateFileRead(&state_file, &count);

		ahead->tranche = LWLockNewTrancheId();
		LWLockInitialize(&ahead->lock, ahead->tranche);
		pg_atomic_init_u64(&ahead->generation, 0);
		ahead->nentries = count;
		if (count > 0)
			memcpy(ahead->entries, entries, count * sizeof(KdbSeenAheadEntry));
		pfree(entries);
	}
	LWLockRegisterTranche(ahead->tranche, "KrahoDBSeenAhead");
}

/* The node that an entry is about, 0 if that is not known. */
static uint64
node_of(const KdbSeenAheadEntry *entry)
{
	return entry->node != 0 ? entry->node : KdbOriginNode((RepOriginId) entry->origin);
}

/* Is it this database's note of that? */
static bool
is_of(const KdbSeenAheadEntry *entry, uint64 node, RepOriginId origin)
{
	return entry->node == node && entry->origin == origin && entry->database == MyDatabaseId;
}

/* Lock held. */
static KdbSeenAheadEntry *
find_entry(uint64 node, RepOriginId origin)
{
	for (int i = 0; i < ahead->nentries; i++)
	{
		if (is_of(&ahead->entries[i], node, origin))
			return &ahead->entries[i];
	}
	return NULL;
}

static XLogRecPtr
lookup(uint64 node, RepOriginId origin)
{
	KdbSeenAheadEntry *entry;
	XLogRecPtr	lsn;

	LWLockAcquire(&ahead->lock, LW_SHARED);
	entry = find_entry(node, origin);
	lsn = entry ? entry->lsn : InvalidXLogRecPtr;
	LWLockRelease(&ahead->lock);
	return lsn;
}

static XLogRecPtr
lookup_node(uint64 node)
{
	return node == 0 ? InvalidXLogRecPtr : lookup(node, InvalidRepOriginId);
}

XLogRecPtr
KdbSeenAheadOrigin(RepOriginId origin)
{
	return Max(lookup(0, origin), lookup_node(KdbOriginNode(origin)));
}

uint64
KdbSeenAheadGeneration(void)
{
	return pg_atomic_read_u64(&ahead->generation);
}

/* All of them, of each database; palloc'd. */
static int
copy_entries(KdbSeenAheadEntry **result)
{
	int			n;

	LWLockAcquire(&ahead->lock, LW_SHARED);
	n = ahead->nentries;
	*result = palloc(n * sizeof(KdbSeenAheadEntry) + 1);
	memcpy(*result, ahead->entries, n * sizeof(KdbSeenAheadEntry));
	LWLockRelease(&ahead->lock);
	return n;
}

int
KdbSeenAheadList(KdbSeenAheadEntry **result)
{
	int			n = copy_entries(result);
	int			mine = 0;

	for (int i = 0; i < n; i++)
	{
		if ((*result)[i].database == MyDatabaseId)
			(*result)[mine++] = (*result)[i];
	}
	return mine;
}

/* Databases of entries that do not exist any more. */
static List *
dropped_databases(void)
{
	List	   *result = NIL;
	KdbSeenAheadEntry *entries;
	int			n;

	if (!IsTransactionState())
		return NIL;
	n = copy_entries(&entries);
	for (int i = 0; i < n; i++)
	{
		if (!SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(entries[i].database)))
			result = list_append_unique_oid(result, entries[i].database);
	}
	pfree(entries);
	return result;
}

static XLogRecPtr
progress_of(const KdbSeenAheadEntry *entry, bool flush)
{
	uint64		node = node_of(entry);

	if (node != 0)
		return KdbNodeProgress(node, entry->database, flush);
	return replorigin_get_progress((RepOriginId) entry->origin, flush);
}

/* Copy those that the streams have not passed; returns their number.  Lock held. */
static int
still_ahead(KdbSeenAheadEntry *result, List *dropped)
{
	int			n = 0;

	for (int i = 0; i < ahead->nentries; i++)
	{
		KdbSeenAheadEntry *entry = &ahead->entries[i];

		if (!list_member_oid(dropped, entry->database) && progress_of(entry, true) <= entry->lsn)
			result[n++] = *entry;
	}
	return n;
}

/*
 * Make room for one more note: forget the oldest of nodes that nothing is applied of any more, until there are
 * fewer than KDB_SEEN_AHEAD_DEPARTED notes.  Returns their number.  Lock held.
 */
static int
forget_departed(KdbSeenAheadEntry *entries, int n)
{
	int			excess = n - (KDB_SEEN_AHEAD_DEPARTED - 1);
	int			kept = 0;

	if (excess <= 0)
		return n;
	for (int i = 0; i < n; i++)
	{
		if (excess > 0 && entries[i].node != 0 &&
			progress_of(&entries[i], false) == InvalidXLogRecPtr)
			excess--;
		else
			entries[kept++] = entries[i];
	}
	return kept;
}

/*
 * Raise the entry, in the file first: an error changes nothing.
 */
static void
raise_entry(uint64 node, RepOriginId origin, XLogRecPtr lsn)
{
	KdbSeenAheadEntry *entries = palloc((KDB_SEEN_AHEAD_MAX + 1) * sizeof(KdbSeenAheadEntry));
	List	   *dropped = dropped_databases();
	KdbSeenAheadEntry *entry;
	int			n;

	LWLockAcquire(&ahead->lock, LW_EXCLUSIVE);
	entry = find_entry(node, origin);
	if (entry == NULL || entry->lsn < lsn)
	{
		int			i;

		n = still_ahead(entries, dropped);
		for (i = 0; i < n; i++)
		{
			if (is_of(&entries[i], node, origin))
				break;
		}
		if (i == n)
			n = i = forget_departed(entries, n);
		if (i == KDB_SEEN_AHEAD_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("cannot remember rows that were fetched or copied from more than %d nodes",
							KDB_SEEN_AHEAD_MAX)));
		memset(&entries[i], 0, sizeof(KdbSeenAheadEntry));
		entries[i].node = node;
		entries[i].origin = origin;
		entries[i].database = MyDatabaseId;
		entries[i].lsn = lsn;
		n = Max(n, i + 1);

		KdbStateFileWrite(&state_file, entries, n);
		memcpy(ahead->entries, entries, n * sizeof(KdbSeenAheadEntry));
		ahead->nentries = n;
		pg_atomic_fetch_add_u64(&ahead->generation, 1);
	}
	LWLockRelease(&ahead->lock);
	list_free(dropped);
	pfree(entries);
}

static void
raise_node(uint64 node, XLogRecPtr lsn)
{
	if (node == 0 || lsn <= lookup_node(node) ||
		lsn <= KdbNodeProgress(node, MyDatabaseId, false))
		return;
	raise_entry(node, InvalidRepOriginId, lsn);
}

void
KdbSeenAheadOfOrigin(RepOriginId origin, XLogRecPtr lsn)
{
	if (origin == InvalidRepOriginId || lsn <= KdbSeenAheadOrigin(origin) ||
		lsn <= replorigin_get_progress(origin, false))
		return;
	raise_entry(0, origin, lsn);
}

/*
 * Nobody has to know of an origin that has not told which node it is: others
 * could not do anything with that.
 */
void
KdbSeenKeepProgress(RepOriginId origin)
{
	uint64		node = KdbOriginNode(origin);
	XLogRecPtr	progress = replorigin_get_progress(origin, true);
	XLogRecPtr	lsn = Max(progress, lookup(0, origin));

	if (node != 0 && lsn > lookup_node(node))
		raise_entry(node, InvalidRepOriginId, lsn);
}

/* ---- as text, for peers ---- */

static void
append_text(StringInfo text, uint64 node, XLogRecPtr lsn)
{
	if (node == 0 || lsn == InvalidXLogRecPtr)
		return;
	appendStringInfo(text, "%s" UINT64_FORMAT "/" UINT64_FORMAT,
					 text->len > 0 ? " " : "", node, (uint64) lsn);
}

char *
KdbSeenText(uint64 own_node)
{
	KdbSeenAheadEntry *entries;
	StringInfoData text;
	int			n;

	initStringInfo(&text);
	append_text(&text, own_node, GetXLogInsertRecPtr());
	for (uint32 origin = 1; origin < DoNotReplicateId; origin++)
	{
		uint64		node = KdbOriginNode((RepOriginId) origin);

		if (node != 0 && !KdbOriginIsElsewhere((RepOriginId) origin))
			append_text(&text, node, replorigin_get_progress((RepOriginId) origin, false));
	}
	n = KdbSeenAheadList(&entries);
	for (int i = 0; i < n; i++)
		append_text(&text, node_of(&entries[i]), entries[i].lsn);
	pfree(entries);
	return text.data;
}

void
KdbSeenAheadFromText(const char *text, uint64 own_node)
{
	const char *p = text;

	while (*p != '\0')
	{
		char	   *end;
		uint64		node = strtou64(p, &end, 10);
		uint64		lsn;

		if (end == p || *end != '/')
			break;
		p = end + 1;
		lsn = strtou64(p, &end, 10);
		if (end == p || (*end != ' ' && *end != '\0'))
			break;
		p = *end == ' ' ? end + 1 : end;
		if (node != own_node)
			raise_node(node, lsn);
	}
	if (*p != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("invalid value of \"%s\" from the publisher: \"%s\"", "krahodb.seen", text)));
}
