/*
 * conflict.h
 *		Conflicts in the server: versions of local rows, and the record.
 */
#ifndef KRAHODB_CONFLICT_H
#define KRAHODB_CONFLICT_H

#include "postgres.h"
#include "access/genam.h"
#include "access/htup.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "replication/origin.h"
#include "utils/relcache.h"
#include "krahodb/conflict_rules.h"
#include "krahodb/version_record.h"

/*
 * The version of a local tuple (slot holds a physical tuple of the heap): the
 * commit timestamp and the node of the transaction that made it.  remote_origin
 * is the origin that this worker applies for and remote_node its identity.
 * Fills state LIVE, version, version_known, same_origin, same_transaction.
 */
extern void KdbLocalRowVersion(TupleTableSlot *slot, RepOriginId remote_origin,
							   uint64 remote_node, KdbLocalRow *row);

/*
 * The version that a local transaction's writes have; fills all but state.
 */
extern void KdbTransactionVersion(TransactionId xid, RepOriginId remote_origin,
								  uint64 remote_node, KdbLocalRow *row);

/* Transaction ids may mean others from now on: at least once in a while. */
extern void KdbTransactionVersionForget(void);

/*
 * The transaction that wrote a tuple; FrozenTransactionId if its id has come round again, so
 * that it would be taken for a recent one.
 */
extern TransactionId KdbTupleWriter(HeapTupleHeader tuple);

/*
 * The transaction that ended a tuple, or InvalidTransactionId if it is still
 * alive, never lived, or its end is not settled.
 */
extern TransactionId KdbTupleEndedBy(TupleTableSlot *slot);

/*
 * Has a row been deleted or overwritten later than since, and if that was done here, later than
 * own_since; or is it just now, by another transaction?  One scan of all tuples.
 */
extern bool KdbTableHasDeaths(Relation rel, TimestampTz since, TimestampTz own_since);

/*
 * The values that a row has in an index; into the executor's memory for a tuple.  False if it
 * cannot violate the index: it is outside a partial one, or has NULLs that are distinct.
 */
extern bool KdbFormIndexValues(struct IndexInfo *info, TupleTableSlot *slot, struct EState *estate,
							   Datum *values, bool *isnull);

/*
 * left_out.c: an index may lack dead tuples that must still be found.  Lacks: the
 * transaction before which those have ended, or InvalidTransactionId if it lacks none that
 * matter; and do those matter still?
 */
extern TransactionId KdbIndexLacksBefore(Relation index);
extern bool KdbIndexStillLacks(TransactionId until);

/* These tuples; reads the whole table.  In the current memory context. */
typedef struct KdbLeftOut KdbLeftOut;

extern KdbLeftOut *KdbLeftOutCollect(Relation rel, Relation index, TransactionId until);

/*
 * All tuples with the key in a unique or exclusion index, dead or alive, into the (heap)
 * slot; some may come twice.  The keys are one for each of the index's columns and must last as
 * long as the scan.  left_out: what the index lacks, or NULL.
 */
typedef struct KdbTupleScan
{
	bool		recheck;		/* the index does not know surely that the tuple has the key */
	Relation	rel;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	const ScanKeyData *key;
	KdbLeftOut *left_out;
	bool		behind_index;
	uint64		hash;
	int			next;
} KdbTupleScan;

extern void KdbTupleScanBegin(KdbTupleScan *scan, Relation rel, Relation index,
							  const ScanKeyData *key, int nkeys, TupleTableSlot *slot,
							  KdbLeftOut *left_out);
extern bool KdbTupleScanNext(KdbTupleScan *scan);
extern void KdbTupleScanEnd(KdbTupleScan *scan);

/*
 * left_out_values.c: values of a dead tuple that the index of the TOAST table lacks, into the slot; in the
 * current memory context, which must last as long as the tuple is in it.  columns: attribute numbers of those that
 * are needed; NULL: those of indexes, and merged ones.
 */
extern void KdbReadLeftOutValues(Relation rel, TupleTableSlot *slot, const Bitmapset *columns);

/* May correct what a dead tuple says: sets version and version_known. */
typedef void (*KdbDeathTruth) (void *arg, KdbLocalRow *row);

/*
 * The newest deletion of the key among the dead tuples that the heap still
 * holds, found by the given unique index (left_out: what that lacks).  Returns false if
 * none is found; else state DEAD with the deletion's version.  With truth, which is
 * called for each dead tuple, versions alone say which is the newest.
 */
extern bool KdbFindDeadRow(Relation rel, Relation index, struct ScanKeyData *skey,
						   int nkeys, TupleTableSlot *scratch, KdbLeftOut *left_out,
						   RepOriginId remote_origin, uint64 remote_node,
						   KdbLocalRow *row, KdbDeathTruth truth, void *arg);

/*
 * rewritten.c: a command of this transaction, with these command ids, has written all rows of the
 * table anew.  carried: records tell the versions of all that were newer than the horizon.
 */
extern void KdbNoteRewrite(Oid relid, CommandId first, CommandId last, bool carried);

typedef struct KdbRewrite
{
	TransactionId xid;
	CommandId	first;
	CommandId	last;
	bool		carried;
	Oid			node;			/* where it has written to, up to: */
	ItemPointerData end;
} KdbRewrite;

/*
 * Those of a table, the last one of each transaction; start with zeros, and anew when the table has changed.  With a
 * snapshot, those that it shows: whoever is about to add one is not waited for.
 */
typedef struct KdbRewrites
{
	Snapshot	snapshot;
	bool		known;
	int			n;
	KdbRewrite *list;			/* in the context that was given */
} KdbRewrites;

/*
 * Was the tuple in the slot, which names xmin as its writer, only written anew, and by which
 * command?  Then records of its truth (KDB_RECORD_TRUTH) name that as shown, and without one its
 * version is not known.  Without slot the transaction counts.
 */
extern const KdbRewrite *KdbFindRewrite(Oid relid, KdbRewrites *rewrites, KdbVersionRecordsKnown *known,
										MemoryContext context, TupleTableSlot *slot, TransactionId xmin);
extern KdbVersion KdbRewriteShown(const KdbRewrite *rewrite);
extern bool KdbIsRewriteShown(KdbVersion shown);

/*
 * carried_versions.c: versions of rows that ALTER TABLE is about to write anew, maybe.  rel is
 * locked exclusively, and the same for the command and its children; commands are of
 * AlterTableCmd.  NULL if the table's rows have no key.  All is allocated in the current memory context.
 */
typedef struct KdbCarried KdbCarried;

extern KdbCarried *KdbCarriedPrepare(Relation rel, List *commands);

/*
 * What keys' merged columns consist of is carried by whoever knows about that (apply/merged_rewritten.c): he says so between
 * Prepare and the command.  An image is one of a SEALED record; state is given to all of these.
 */
typedef struct KdbCarriedHistories
{
	void	   *state;
	Bitmapset  *columns;		/* attribute numbers of merged columns */

	/* The old rows are here yet: say KdbCarriedHistory for each key with contributions newer than since. */
	void		(*read) (void *state, KdbCarried *carried, Relation rel, TimestampTz since);

	/* rel is as it will be.  May conversions raise errors? */
	bool		(*begin) (void *state, KdbCarried *carried, Relation rel);

	/* What becomes of an image, NULL: nothing.  The other one is for what could not be converted. */
	bytea	   *(*convert) (void *state, bytea *image);
	bytea	   *(*forget) (void *state, bytea *image);
} KdbCarriedHistories;

extern void KdbCarriedSetHistories(KdbCarried *carried, const KdbCarriedHistories *histories);

/* version: until the horizon has passed it, the record is needed. */
extern void KdbCarriedHistory(KdbCarried *carried, const KdbRecordedKey *key, KdbVersion version, bytea *image);

/*
 * For begin and convert: does the command leave a merged column's values as they are; or does it only cast them?  And what
 * becomes of one, false if nobody can tell.
 */
extern bool KdbCarriedIsSame(const KdbCarried *carried, AttrNumber attnum);
extern bool KdbCarriedIsCast(const KdbCarried *carried, AttrNumber attnum);
extern bool KdbCarriedConvert(const KdbCarried *carried, AttrNumber attnum, Datum *value, bool *isnull);

/* Now it does: read them, before that has begun. */
extern void KdbCarriedRead(KdbCarried *carried);

/* Rows have stayed as they were, but types of their columns may be others. */
extern void KdbCarriedNotRewritten(KdbCarried *carried);

/* They were written; carried may be NULL. */
extern void KdbCarriedFinish(KdbCarried *carried, Oid relid, CommandId first, CommandId last);

/* Fill the number, types and collations of the columns of an index. */
extern void KdbIndexedTypes(Relation index, const struct IndexInfo *info, TupleDesc desc,
							KdbRecordedKey *key);

/*
 * Is the equality of an index another one than that of the types, which are filled in?
 * The second one returns it: scan keys without values, palloc'd; NULL if not.
 */
extern bool KdbIndexHasOwnEquality(Relation index, const KdbRecordedKey *key);
extern const ScanKeyData *KdbIndexOwnEquality(Relation index, const KdbRecordedKey *key);

/*
 * index_place.c: what stands in CLAIM records for a unique index, or one of an exclusion constraint: the same for
 * one that replaces it.
 */
extern Oid	KdbIndexPlace(Relation index);

/*
 * What such an index is made of, as text: the same for one of another server's table of that name, if neither has a
 * search_path.  In the current memory context.
 */
extern char *KdbIndexText(Relation index);

/* The function of a btree operator of an index, for two values of its column (from 0). */
extern Oid	KdbIndexOperatorFunction(Relation index, int column, StrategyNumber strategy);

/* One side of a conflict's record. */
typedef struct KdbConflictSide
{
	TupleTableSlot *slot;		/* row, or NULL */
	bool		has_version;
	KdbVersion	version;
	RepOriginId origin;			/* InvalidRepOriginId: written locally */
	TransactionId xid;			/* local side: local transaction that wrote or
								 * deleted it; remote side: the publisher's */
	Oid			index;			/* unique index violated, or InvalidOid */
	const bool *sent;			/* remote side: per column, was it sent; NULL: all */
	XLogRecPtr	lsn;			/* remote side: commit LSN at the publisher, or 0 */
} KdbConflictSide;

/*
 * Record a conflict: one server log line in PostgreSQL 18's wording
 * ("conflict detected on relation \"s.t\": conflict=insert_exists", with key,
 * existing local row, remote row and the resolution in the detail), a count and,
 * with the extension, a row in krahodb.conflict_log.  applied is the row as it
 * is now here, NULL if the change was skipped or deleted it.  With action ERROR
 * raises the error (SQLSTATE unique_violation for *_exists,
 * T_R_SERIALIZATION_FAILURE otherwise).  In the worker of MySubscription.
 */
extern void KdbReportConflict(EState *estate, ResultRelInfo *relinfo,
							  KdbOperation operation, const KdbDecision *decision,
							  TupleTableSlot *searchslot,
							  const KdbConflictSide *local, int nlocal,
							  const KdbConflictSide *remote,
							  TupleTableSlot *applied);

/* Has the resolver "error" raised the error that this process is dealing with? */
extern bool KdbConflictRaisedError(void);

/* krahodb.conflict_log_retention in seconds; 0: no log. */
extern int	KdbConflictLogRetention;

/*
 * Write the log's row of the conflict that raised an error, if there is one, in
 * a transaction of its own.  Outside of any transaction; raises no error.
 */
extern void KdbConflictLogFailed(void);

/*
 * Rotate the log, if that is due.  Outside of any transaction; to be called
 * after each remote transaction: costs nothing unless there was a conflict.
 */
extern void KdbConflictLogMaintain(void);

/*
 * Discard parts of the log in which everything is older; see KdbRecordPrune.
 */
extern int	KdbConflictLogPrune(TimestampTz before, int *busy);

/*
 * For who is to be told of all rows of a table, dead ones too: raises an error if the user may not read
 * it.  True if policies hide rows from him: what is hidden stays so, and nothing is said at all.
 */
extern bool KdbRowsAreHidden(Oid relid);

/*
 * How far streams are applied now: a snapshot that this session takes later has all of
 * that, which krahodb.table_versions() will say.
 */
extern void KdbTableVersionsNote(void);

#endif							/* KRAHODB_CONFLICT_H */
