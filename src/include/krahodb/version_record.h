/*
 * version_record.h
 *		Version records: versions and claims that the heap does not show.
 *
 * The heap knows of a row the transaction that wrote or ended it.  What it does
 * not know stands in a store of records (krahodb.version_records), written in the
 * transaction of the change that it speaks of:
 *
 *	TRUTH	the live row that a transaction of version "shown" wrote has version
 *			"version"
 *	KILLED	the deletion of the key that a transaction of version "shown" did
 *			counts as one of version "version"
 *	DEAD	the key was dead at "version"
 *	CLAIM	a row of the key has claimed values of a unique index (KdbIndexPlace) at "version"
 *	FLOOR	(of a table; the key is empty) the table was copied from a node that had
 *			applied all that the node of "version" wrote until its time, and all of its
 *			stream before the position that is the time of "shown"
 *	AGAIN	(of a table; the key is empty) the copy whose rows have the time of "version" was made for the
 *			subscription that is its node, with a slot that is older than its snapshot.  That is the
 *			image; the time of "shown" is a position of the stream behind all that it shows
 *	REWRITTEN	(of a table; the key is empty) the transaction whose id is the time of "shown"
 *			has written all rows anew, with the command ids of its node; see rewritten.c.  Its image says where.
 *			TRUTH of these rows has the same "shown"
 *	MERGED	a write of version "version" has contributed these values to the merged
 *			columns of the key; and what the heap shows of the transaction of
 *			version "shown" is no contribution by itself
 *	SEALED	what transactions of the versions in its image have contributed to the
 *			merged columns of the key is in MERGED records of the transaction of
 *			version "shown" as well, and these count instead
 *			(an initial copy has such records of the keys that it brings)
 *
 * Records are only added.  Of several that apply the greatest version counts, as
 * versions of a key only grow.  TRUTH and KILLED apply only while the heap shows
 * what it showed then: a local user's write makes them void without knowing of
 * them.  All of them stay until the retention horizon has passed them.
 */
#ifndef KRAHODB_VERSION_RECORD_H
#define KRAHODB_VERSION_RECORD_H

#include "postgres.h"
#include "access/skey.h"
#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "krahodb/record.h"
#include "krahodb/shared.h"
#include "krahodb/version.h"

typedef enum KdbVersionRecordKind
{
	KDB_RECORD_TRUTH = 't',
	KDB_RECORD_KILLED = 'k',
	KDB_RECORD_DEAD = 'd',
	KDB_RECORD_CLAIM = 'c',
	KDB_RECORD_FLOOR = 'f',
	KDB_RECORD_AGAIN = 'a',
	KDB_RECORD_REWRITTEN = 'r',
	KDB_RECORD_MERGED = 'm',
	KDB_RECORD_SEALED = 's'
} KdbVersionRecordKind;

/*
 * Values of a key, with what compares them.  None is toasted out of line.  Columns are the table's; what was recorded of
 * a key of other columns, which the table had before, is not found by it.
 *
 * Values claimed of an exclusion constraint have operators: scan keys whose
 * functions say if others conflict with them.  So have keys and values of an index whose equality
 * is not that of the types.  Such values have no hash, so all records of the table's keys, or
 * of that index, are looked through.
 */
typedef struct KdbRecordedKey
{
	int			n;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	Oid			types[INDEX_MAX_KEYS];
	Oid			collations[INDEX_MAX_KEYS];
	AttrNumber	columns[INDEX_MAX_KEYS];	/* 0: of values that are claimed */
	const ScanKeyData *operators;	/* NULL: the types' equality */
	const char *images[INDEX_MAX_KEYS];	/* of values that were read from a record, else NULL */
} KdbRecordedKey;

/* The same for equal keys, whatever their images are; and of values that are claimed, for keys of these columns. */
extern uint64 KdbRecordedKeyHash(const KdbRecordedKey *key);
extern uint64 KdbClaimedHash(const KdbRecordedKey *claimed, Oid place, const KdbRecordedKey *key);

typedef struct KdbVersionRecord
{
	KdbVersionRecordKind kind;
	KdbVersion	version;
	KdbVersion	shown;			/* TRUTH, KILLED, MERGED, SEALED */
	bool		own;			/* written by the current transaction */
	bytea	   *merged;			/* MERGED, SEALED, AGAIN, REWRITTEN: in a format of the writer's own */
	uint64		hash;			/* of one that was read: by which it is found, of its key or what it claims */
} KdbVersionRecord;

/*
 * What speaks of the end of the current transaction is kept at least so long, and until the horizon
 * has passed that time: it must outlive the moment when the horizon passes the commit,
 * which may come long after the record is written.
 */
#define KDB_REWRITE_KEEP_US		(3600 * USECS_PER_SEC)

/*
 * A version to record (TRUTH, DEAD, CLAIM): that of the current transaction, which nobody knows
 * before it has ended.  Readers get the version that it has got.
 */
extern KdbVersion KdbVersionOfRecord(void);
extern bool KdbIsVersionOfRecord(KdbVersion version);

/* Can versions be recorded in this database?  Cheap. */
extern bool KdbVersionRecordsPresent(void);

/* What a user of records knows of those of one table; start with zeros. */
typedef struct KdbVersionRecordsKnown
{
	bool		any;
	uint64		appended;		/* counter when that was found out */
	uint64		changes;		/* of the store, likewise; 0: nothing is known */
} KdbVersionRecordsKnown;

/* For KdbVersionRecordsAny. */
extern KdbRecordStore KdbVersionRecordStore;
extern bool KdbVersionRecordsLook(Oid relid, KdbVersionRecordsKnown *known);

/*
 * May there be records of the table?  Cheap unless somebody has added some: it is asked several
 * times for each row.
 */
static inline bool
KdbVersionRecordsAny(Oid relid, KdbVersionRecordsKnown *known)
{
	if (known->changes == KdbVersionRecordStore.changes &&
		known->appended == pg_atomic_read_u64(&KdbShared->version_records))
		return known->any;
	return KdbVersionRecordsLook(relid, known);
}

/*
 * Add a record in the current transaction.  claimed and place, of the index: CLAIM only.
 * Does nothing in a database without the extension.
 */
extern void KdbVersionRecordAdd(Oid relid, const KdbVersionRecord *record,
								const KdbRecordedKey *key, Oid place,
								const KdbRecordedKey *claimed);

/*
 * Wait for the transaction that has called this for the key, if one runs, and have
 * others wait until this one ends.
 */
extern void KdbVersionRecordsLock(Oid relid, const KdbRecordedKey *key);

/*
 * Call back for each record of the key, CLAIM excepted.  Waits for transactions
 * in progress that have added some, and sees those of the current one.
 */
typedef void (*KdbVersionRecordCallback) (void *arg, const KdbVersionRecord *record);

extern void KdbVersionRecordsOfKey(Oid relid, const KdbRecordedKey *key,
								   KdbVersionRecordCallback callback, void *arg);

/* Likewise, but those that the snapshot sees; waits for nobody. */
extern void KdbVersionRecordsOfKeyIn(Oid relid, const KdbRecordedKey *key, Snapshot snapshot,
									 KdbVersionRecordCallback callback, void *arg);
/*
 * Call back for each record of the table that the active snapshot shows and whose
 * version is later than since: the values of its key and, for a claim, of the index,
 * as they were given, for the time of the call; so is what a record of merged columns has, which may be toasted.
 * nkeys: columns of the key.  A column may have got another type since: see KdbRecordedValueFits.
 */
typedef void (*KdbTableRecordCallback) (void *arg, const KdbVersionRecord *record,
										const KdbRecordedKey *key, Oid place,
										const KdbRecordedKey *claimed);

extern void KdbVersionRecordsOfTable(Oid relid, TimestampTz since, int nkeys,
									 KdbTableRecordCallback callback, void *arg);

/*
 * Forget all that is recorded of keys of the table, and claimed for them, and that the active snapshot shows: the
 * transaction, which has locked the table exclusively, has given its rows other keys.
 */
extern void KdbVersionRecordsForget(Oid relid);

/* Can value number i of a record's key have been one of that type? */
extern bool KdbRecordedValueFits(const KdbRecordedKey *key, int i, Oid type);

/* Has another key claimed these values of the index at a greater version? */
extern bool KdbVersionRecordsClaimed(Oid relid, Oid place, const KdbRecordedKey *claimed,
									 const KdbRecordedKey *key, KdbVersion version);

/*
 * Discard generations of records that the horizon has passed, if that is due.
 * Outside of any transaction; to be called after each remote transaction.
 */
extern void KdbVersionRecordsMaintain(void);

#endif							/* KRAHODB_VERSION_RECORD_H */
