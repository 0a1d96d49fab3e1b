/*
 * record.h
 *		Stores of records: append-only relations that nobody replicates.
 *
 * A store is a few relations of the extension, its generations.  Records are
 * appended to the current one (and deleted only where they have become wrong); when it has been in use for long enough another
 * one takes over, and a generation all of whose records are too old is emptied
 * as a whole.  The top of record/store.c says more.
 */
#ifndef KRAHODB_RECORD_H
#define KRAHODB_RECORD_H

#include "postgres.h"
#include "access/genam.h"
#include "access/skey.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

#define KDB_RECORD_GENERATIONS	4	/* of each store */
#define KDB_RECORD_MAX_KEYS		4	/* columns that a scan compares */

/*
 * A store; one static variable each, its first part initialised.  Its relations
 * are krahodb.<name>_1, _2, ...; their first column is a timestamptz, the
 * record's stamp, and an index begins with it.
 */
typedef struct KdbRecordStore
{
	const char *name;
	int			ncolumns;
	const Oid  *types;			/* of the columns */

	/* record/store.c's own: what this process knows */
	bool		looked_up;		/* false: the catalogs have changed */
	uint64		changes;		/* how often they have */
	bool		present;		/* the extension is in this database */
	Oid			relids[KDB_RECORD_GENERATIONS];
	bool		current_known;
	int			current;		/* generation to append to */
	TimestampTz current_since;	/* stamp of its oldest record; 0 if it has none */
	TimestampTz retry_at;		/* no other generation was free: not again before */
} KdbRecordStore;

/* Does the database have the extension?  Cheap. */
extern bool KdbRecordPresent(KdbRecordStore *store);

/* Is it a relation of a store, or could be: a materialized view of the extension? */
extern bool KdbRecordIsGeneration(Oid relid);

/*
 * Append a record in the current transaction; values[0] is its stamp.  Returns
 * false, and has done nothing, if the database does not have the extension (or
 * a version of it with other columns: then with a warning).  Locks the
 * generation in RowExclusiveLock mode until the transaction ends.  Invisible to
 * logical decoding.
 */
extern bool KdbRecordAppend(KdbRecordStore *store, Datum *values, bool *isnull);

/* A scan over all generations by equality of columns that an index begins with. */
typedef struct KdbRecordScan
{
	KdbRecordStore *store;
	Snapshot	snapshot;
	int			nkeys;
	AttrNumber	columns[KDB_RECORD_MAX_KEYS];	/* in the index's order */
	Datum		values[KDB_RECORD_MAX_KEYS];

	/* record/scan.c's own */
	int			next;			/* generation to open */
	Relation	rel;
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
} KdbRecordScan;

/*
 * The first five members are set by the caller.  Next returns a slot that is
 * valid until the next call, or NULL at the end; generations in no particular
 * order.  Nothing is found in a database without the extension.
 */
extern void KdbRecordScanBegin(KdbRecordScan *scan);
extern TupleTableSlot *KdbRecordScanNext(KdbRecordScan *scan);

/* Delete the record that it has returned last, which no other transaction may do. */
extern void KdbRecordScanDelete(KdbRecordScan *scan);
extern void KdbRecordScanEnd(KdbRecordScan *scan);

/*
 * Should KdbRecordRotate be called, given how long records are kept?  Cheap; to
 * be asked after an append.
 */
extern bool KdbRecordRotationDue(const KdbRecordStore *store, int64 keep_us);

/*
 * Empty generations that hold nothing younger than keep_us, and move on to an
 * empty one if the current one has been in use long enough.  Never waits for a
 * reader or writer: what is in use stays for the next time.  To be called in a
 * short transaction of its own, since an emptied generation stays locked
 * exclusively until the transaction ends.
 */
extern void KdbRecordRotate(KdbRecordStore *store, int64 keep_us);

/*
 * Empty each generation all of whose records are older than "before"; the
 * current one too.  Returns how many were emptied; adds to *busy those that
 * were in use.  Same lock as above.
 */
extern int	KdbRecordPrune(KdbRecordStore *store, TimestampTz before, int *busy);

#endif							/* KRAHODB_RECORD_H */
