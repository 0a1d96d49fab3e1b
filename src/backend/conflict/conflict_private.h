/*
 * conflict_private.h
 *		What the files of conflict/ share.  Nobody else includes this.
 */
#ifndef CONFLICT_PRIVATE_H
#define CONFLICT_PRIVATE_H

#include "krahodb/conflict.h"
#include "krahodb/conflict_counters.h"
#include "krahodb/version_record.h"

extern KdbConflictOutcome KdbConflictOutcomeOf(KdbAction action);

/*
 * count.c: count a conflict on a table, when the transaction commits; an error
 * at once.
 */
extern void KdbCountConflict(Oid relid, KdbConflictType type, KdbConflictOutcome outcome);

/*
 * log.c: a row for krahodb.conflict_log, in this transaction; for an error it is
 * kept for KdbConflictLogFailed.
 */
extern void KdbLogConflict(Relation rel, const KdbDecision *decision,
						   TupleTableSlot *search,
						   const KdbConflictSide *local, int nlocal,
						   const KdbConflictSide *remote, TupleTableSlot *applied);

/*
 * row_json.c: columns of a row as jsonb, in the current memory context; those
 * for which wanted (by attnum - 1; NULL: all) is true.
 */
extern Datum KdbRowToJsonb(TupleTableSlot *slot, const bool *wanted);

/* Several rows, as a jsonb array. */
extern Datum KdbJsonbArray(const Datum *rows, int nrows);

/* A unique index, or one of an exclusion constraint. */
typedef struct KdbUniqueIndex
{
	Oid			oid;
	Oid			place;			/* KdbIndexPlace */
	char	   *name;
	int			n;
	AttrNumber	columns[INDEX_MAX_KEYS];
	bool		plain;			/* no expressions */
	KdbRecordedKey types;		/* of what it holds, as it is recorded, without the values */
} KdbUniqueIndex;

/*
 * version_listing.c: a table whose versions are listed.  Zeros, and what the caller sets: since,
 * put_row with its argument, context, rewriting.
 */
typedef struct KdbListing
{
	Oid			relid;
	TupleDesc	desc;			/* of the tuples */
	TimestampTz since;			/* what is not newer is left out */

	/*
	 * For the current transaction, which is about to write all live rows anew: what it has done
	 * itself is listed too (as KdbVersionOfRecord), and claims of dead tuples only.
	 */
	bool		rewriting;
	Oid			identity;
	int			nkeys;
	AttrNumber	keys[INDEX_MAX_KEYS];
	Oid			collations[INDEX_MAX_KEYS];
	const ScanKeyData *equality;	/* NULL: that of the types */
	Bitmapset  *indexed;		/* attribute numbers: of the key and of unique indexes */
	Bitmapset  *columns;		/* the same, but instead of generated columns all others; put_row looks at them */
	Bitmapset  *read;			/* both, while the heap is listed */
	bool		has_unique;		/* other unique keys than the identity */
	bool		whole_rows;		/* for one of them: a part of a row does not tell what it claims */
	List	   *indexes;		/* of KdbUniqueIndex, the identity too */
	KdbVersionRecordsKnown records;
	KdbRewrites rewrites;
	bool		scanned;		/* KdbListHeap has been called, and has found: */
	KdbVersion	rewritten;		/* the command that has written rows anew, as shown */
	MemoryContext table_context;
	MemoryContext context;		/* of one row; put_row is called in it */
	void		(*put_row) (void *arg, char kind, KdbVersion version, TupleTableSlot *slot);
	void	   *arg;
} KdbListing;

/*
 * Fill in what there is to know of the table; into the current memory context, which must last as
 * long.  False if it has no rows or no key.
 */
extern bool KdbListingPrepare(KdbListing *listing, Relation rel);
extern void KdbListHeap(KdbListing *listing, Relation rel, Snapshot snapshot);

/*
 * Does a record say anything that is not known without it?  Not if it is not found any more, as types have changed
 * since; nor does the truth of rows that a command has written anew if another one has done that since.
 */
extern bool KdbListingNeeds(const KdbListing *listing, const KdbVersionRecord *record,
							const KdbRecordedKey *key, Oid place, const KdbRecordedKey *claimed);

/* The index that a CLAIM record names, or NULL. */
extern const KdbUniqueIndex *KdbListingIndex(const KdbListing *listing, Oid place);

/* Unique or for an exclusion constraint?  Attribute numbers that it depends on. */
extern bool KdbIsUniqueIndex(Relation index);
extern Bitmapset *KdbIndexColumns(Relation index, TupleDesc desc);

/*
 * carried_values.c: what ALTER TABLE makes of the values of a table's columns.  Prepare before the
 * command, rel as it is then and locked; Build when rel is as it will be.
 */
typedef struct KdbCarriedValues KdbCarriedValues;

extern KdbCarriedValues *KdbCarriedValuesPrepare(Relation rel, List *commands);

/* The columns with those that their new values are made of; the latter only. */
extern Bitmapset *KdbCarriedValuesNeeded(const KdbCarriedValues *values, const Bitmapset *columns);
extern void KdbCarriedValuesBuild(KdbCarriedValues *values, Relation rel, const Bitmapset *columns);

/* Does the command leave the column's values as they are? */
extern bool KdbCarriedValueIsSame(const KdbCarriedValues *values, AttrNumber attnum);

/* Or does it nothing but cast them? */
extern bool KdbCarriedValueIsCast(const KdbCarriedValues *values, AttrNumber attnum);

/*
 * What becomes of one value of a column; false if nobody can tell, as it is made of others too.  May raise the errors of
 * conversions.
 */
extern bool KdbCarriedValueConvert(const KdbCarriedValues *values, AttrNumber attnum, Datum *value, bool *isnull);

/*
 * Fill the new row (virtual) with what follows from the columns of the old one that are available;
 * returns which columns these are.  May raise the errors of conversions.
 */
extern Bitmapset *KdbCarriedValuesConvert(const KdbCarriedValues *values, TupleTableSlot *old_row,
										  const Bitmapset *available, TupleTableSlot *new_row);

/*
 * Do that in a subtransaction which is always rolled back; false if it has raised an error that
 * is not about to end the transaction.  In the current memory context.
 */
extern bool KdbTry(void (*work)(void *arg), void *arg);

#endif							/* CONFLICT_PRIVATE_H */
