/*
 * merged_private.h
 *		Merged columns of the tables that changes are applied to.
 *
 *	merged_values.c		one column: what a write contributes, how it combines
 *	merged_rows.c		versions of a row in the heap
 *	merged_history.c	what all writes since the horizon have contributed to a key
 *	merged_records.c	contributions as they are recorded
 *	merged_keys.c		the keys of a table that have histories
 *	merged_listed.c		their histories, for whoever copies the table
 *	merged_copied.c		and here, as the publisher has listed them
 *	merged_again.c		what the stream brings again of these
 *	merged_rewritten.c	and over an ALTER TABLE
 *	converge_merged.c	a change's way through the convergence rules
 *
 * What they mean is src/common/merge_columns.c.
 */
#ifndef MERGED_PRIVATE_H
#define MERGED_PRIVATE_H

#include "converge_private.h"

#include "utils/typcache.h"

/* A merged column of a target; lives as long as the target's other state. */
typedef struct KdbMergedColumn
{
	AttrNumber	attnum;
	KdbMergeKind kind;
	Oid			type;
	int32		typmod;
	Oid			base_type;		/* behind domains */
	Oid			collation;
	int16		typlen;
	bool		typbyval;
	TypeCacheEntry *order;		/* MAX, MIN */
	bool		is_domain;
	void	   *domain;			/* the engine's cache of its constraints ... */
	MemoryContext context;		/* ... and where it is: that of the column */
} KdbMergedColumn;

/*
 * What a write contributes to one column.  VALUE: a value of the column's type.
 * CHANGE: of a maximum or minimum too; of a delta the difference, numeric for all
 * types of numbers and for money, else interval.
 */
typedef struct KdbColumnContribution
{
	KdbContributionKind kind;
	Datum		value;
	bool		isnull;
	bool		wide;			/* VALUE: in the type in which it is added up */
} KdbColumnContribution;

/* One write's contributions to all merged columns of the change. */
typedef struct KdbContributed
{
	KdbVersion	version;
	KdbVersion	shown;			/* recorded ones: of the transaction that recorded it */
	bool		own;			/* by the transaction that is being applied, or copied by it */
	bool		recorded;		/* else seen in the heap */
	bool		has_row;		/* recorded ones: with a row version in the heap */
	uint64		order;			/* among those of one transaction */
	KdbColumnContribution *columns;
} KdbContributed;

/* The part of a KdbConverge that is about merged columns; in the message context. */
struct KdbMergedChange
{
	int			n;				/* those that the publisher sends */
	const KdbMergedColumn **columns;
	KdbColumnContribution *before;	/* values of the old row; UPDATE only */
	KdbColumnContribution *own; /* what the write contributes */
	Datum	   *written;		/* values of the new row */
	bool	   *written_null;
	Snapshot	as_of;			/* what the history is read with; NULL: what there is now */
	bool		rows_read;		/* the key's rows are these, and none of them is left when the history counts */
	List	   *rows;			/* of KdbRowVersion */

	KdbContributed *history;
	int			nhistory;
	KdbVersion *earlier;		/* whom a seal names: other transactions that it is of */
	int			nearlier;
	bool		others_count;	/* the history has contributions of other transactions */
	bool		unsealed;		/* such as are in row versions */
	bool		live;			/* there was a row when it was read */
	bool		key_locked;		/* see merged_history.c */
	bool		row_comes;		/* that of the copy, to which its SEALED record belongs */
	int			foreign_records;	/* other transactions' records of the key, when it was read */
	bool		history_known;

	KdbColumnContribution *folded;	/* value so far; in the wide type, see KdbMergedWiden */

	bool		recording_known;
	bool		recording;		/* this transaction's contributions to the key are recorded */
	bool		record_after;	/* the put's own is to be recorded when it is done */
	bool		begins_anew;	/* the put inserts a row with what others have contributed */
	bool		put;			/* the write is in the heap */
};

/* ---- merged_values.c ---- */

extern void KdbMergedContribution(const KdbMergedColumn *column, Datum old, bool old_null,
								  Datum new, bool new_null, KdbColumnContribution *result);

/*
 * A value in the type in which it is added up, which has no bounds, and back: with
 * an error if it does not fit.
 */
extern void KdbMergedWiden(const KdbMergedColumn *column, KdbColumnContribution *value);
extern void KdbMergedNarrow(const KdbMergedColumn *column, Relation rel, Datum *value, bool *isnull);

/* Combine a CHANGE into a wide value. */
extern void KdbMergedCombine(const KdbMergedColumn *column, KdbColumnContribution *value,
							 const KdbColumnContribution *change);

/* The reverse of that for a delta, in a value that becomes wide; nothing for others. */
extern void KdbMergedTakeOut(const KdbMergedColumn *column, KdbColumnContribution *value,
							 const KdbColumnContribution *change);

extern Oid	KdbMergedChangeType(const KdbMergedColumn *column);

/* ---- merged_records.c ---- */

/* The type of a contribution's value: of a change, and of a value that is wide, the wide one. */
extern Oid	KdbMergedContributionType(const KdbMergedColumn *column,
									  const KdbColumnContribution *contribution);

extern bytea *KdbMergedEncode(const KdbMergedChange *change, const KdbColumnContribution *columns,
							  bool has_row);
extern void KdbMergedDecode(const KdbMergedChange *change, const bytea *image,
							KdbContributed *result);

/* A SEALED record: whom it names, and what counts instead. */
typedef struct KdbMergedSeal
{
	KdbVersion *versions;
	int			n;
	List	   *contributed;	/* of KdbContributed */
} KdbMergedSeal;

/* The change's history, without what is its transaction's own; and back: whom it names, and the rest. */
extern bytea *KdbMergedEncodeSeal(const KdbMergedChange *change, bool has_row);
extern void KdbMergedSealNames(const KdbVersionRecord *record, KdbMergedSeal *seal);
extern void KdbMergedDecodeSeal(const KdbMergedChange *change, const KdbVersionRecord *record,
								KdbMergedSeal *seal);

/* ---- merged_rows.c ---- */

/* A version of the row in the heap. */
typedef struct KdbRowVersion
{
	ItemPointerData tid;
	ItemPointerData next;
	TransactionId writer;
	TransactionId ender;		/* InvalidTransactionId: not ended */
	bool		update;			/* replaced another one */
	bool		combo;			/* written and ended by one transaction */
	CommandId	command;		/* of its end, comparable among those */
	bool		own;
	KdbVersion	version;		/* of the writer, {0, 0} if unknown; of one that was written anew, KdbRewriteShown */
	struct KdbRowVersion *previous;
	struct KdbRowVersion *following;
	KdbColumnContribution *values;	/* kind is not set */
} KdbRowVersion;

/*
 * What the tuple's header says; false if it is no version, or vacuum may remove it.  And the rest, for one that is; palloc'd,
 * without its links.
 */
extern bool KdbMergedRowCounts(KdbConverge *c, TupleTableSlot *slot, TransactionId oldest, KdbRowVersion *version);
extern KdbRowVersion *KdbMergedReadRow(KdbConverge *c, TupleTableSlot *slot, const KdbRowVersion *header);

/* Those of the key of the new row, linked, in the order of their places. */
extern List *KdbMergedRowVersions(KdbConverge *c);

/* ---- merged_history.c ---- */

extern void KdbMergedReadHistory(KdbConverge *c);

/* Records of other transactions for the key of the new row, now. */
extern int	KdbMergedForeignRecords(KdbConverge *c);

/* Has this transaction recorded contributions to the key? */
extern bool KdbMergedRecording(KdbConverge *c);

/* ---- merged_copied.c ---- */

/* The row that is about to be put gets what the history makes of its merged columns. */
extern void KdbMergedRevivedRow(KdbConverge *c, TupleTableSlot *row);

/* Has another worker contributed to its key since? */
extern bool KdbMergedRevivalOvertaken(KdbConverge *c);

/* ---- merged_keys.c ---- */

/* A key that something newer than the horizon was done to. */
typedef struct KdbMergedKey
{
	List	   *versions;		/* of KdbRowVersion, once they are read */
	Datum		values[FLEXIBLE_ARRAY_MEMBER];	/* no NULLs */
} KdbMergedKey;

/* Those of a table.  Zeros, and the first four, which the caller sets. */
typedef struct KdbMergedKeys
{
	KdbApplyTarget *target;		/* its relation is open */
	TimestampTz since;			/* the horizon */
	bool		rewriting;		/* what the current transaction has done counts, too */
	MemoryContext context;		/* for all of them */

	MemoryContext scratch;		/* for one */
	struct HTAB *table;
	Bitmapset  *columns;		/* attribute numbers of the key and of merged columns */
	KdbConverge *reader;
	TransactionId oldest;
} KdbMergedKeys;

/* Find them, by the active snapshot. */
extern void KdbMergedKeysFind(KdbMergedKeys *keys);

/* Read their rows, without an index.  The reader's change tells the columns. */
extern void KdbMergedKeysReadRows(KdbMergedKeys *keys, KdbConverge *reader);

/* Call back for each of them, in a memory context that is reset afterwards. */
extern void KdbMergedKeysEach(KdbMergedKeys *keys, void (*each) (void *arg, KdbMergedKey *key), void *arg);

/* The key in a row that has nothing else: target->search. */
extern TupleTableSlot *KdbMergedRowOfKey(const KdbApplyTarget *target, const KdbMergedKey *key);

#endif							/* MERGED_PRIVATE_H */
