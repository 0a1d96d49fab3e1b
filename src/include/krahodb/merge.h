/*
 * merge.h
 *		The convergence rules: merging one incoming write into what a node knows.
 *
 * Decide in pure code, act elsewhere.  KdbMerge is given a write, what its writer
 * had seen, and a struct of callbacks; by these it asks for facts and orders
 * actions.  The server's callbacks look at indexes, heap and version records, the
 * simulator's (src/test/sim) at arrays; the object code in between is the same.
 * The guarantee, and why each rule is there, is doc/internals/convergence.md.
 *
 * A callback may leave by longjmp: nothing is held and nothing is allocated here.
 * The transaction that is being applied is then rolled back by whoever called, and
 * all of it is delivered again.
 *
 * CONTRACT OF THE CALLBACKS
 *
 * Truth.  An action that carries a version makes that the key's version: from then
 * on "find" must answer it, whatever the commit timestamp of the local transaction
 * is.  "remember" says that the transaction's version is another one, so that a
 * version record is needed.  Without it none is needed, unless the key has one
 * already or the heap's dead tuples of the key end with a greater version.
 *
 * Claims.  Each row that was ever written here claims its unique values at its
 * version, dead rows included, until the horizon has passed; what "claim" is
 * called for counts as much.
 *
 * History.  For tables with merged columns "history" lists what each write has
 * contributed to the key since the horizon, in the order of arrival here: local
 * writes, puts with KDB_MERGED_WRITTEN of an INSERT, puts with KDB_MERGED_COMBINE,
 * and what "contribute" was called for.  A put with KDB_MERGED_FOLDED, or of an
 * UPDATE with KDB_MERGED_WRITTEN, is none by itself: "contribute" follows it.
 * Contributions behind the horizon are one assignment of the version of the last of
 * them.
 *
 * Races.  Facts are asked before an action and must hold when it is done.  A row of
 * the key or a live holder that comes in between is met by the heap or the unique
 * index, and the action answers KDB_MERGE_CHANGED.  What leaves no live row must be
 * looked for again by insert and overwrite, when the new row is in the heap and before
 * it counts (its speculative token is still held): if the greatest timestamp of the
 * clock rule has passed the write's since newest was set, clear newest; if that
 * timestamp has moved since find or newer_claim was asked, ask them again.  A different
 * answer: take the row back, KDB_MERGE_CHANGED.
 *
 * Unique columns and merged columns are always sent.
 *
 * Pure C: no server calls, no allocation.
 */
#ifndef KRAHODB_MERGE_H
#define KRAHODB_MERGE_H

#include "krahodb/conflict_rules.h"
#include "krahodb/seen.h"
#include "krahodb/version.h"

/* Asked for at once; more are asked for again.  The simulator has less. */
#ifndef KDB_MERGE_MAX_HOLDERS
#define KDB_MERGE_MAX_HOLDERS	32
#endif

/* Which key of the write.  Both are the same unless an UPDATE changes the key. */
typedef enum KdbMergeKey
{
	KDB_KEY_OLD,				/* of the row to be updated or deleted */
	KDB_KEY_NEW					/* of the new row */
} KdbMergeKey;

/* Where a row, or a part of one, comes from. */
typedef enum KdbRowPart
{
	KDB_PART_NONE,				/* nothing of that kind is needed */
	KDB_PART_WRITTEN,			/* the incoming write */
	KDB_PART_LOCAL,				/* the live row of the new key */
	KDB_PART_OLD_KEY,			/* the row that the old key had before this write */
	KDB_PART_FETCHED			/* the row that "fetch" has brought */
} KdbRowPart;

/* Where the values of merged columns come from. */
typedef enum KdbMergedPart
{
	KDB_MERGED_WRITTEN,			/* the new row's, as they were sent */
	KDB_MERGED_COMBINE,			/* the local row's, combined with the write's contribution */
	KDB_MERGED_FOLDED			/* what the fold_* calls have left */
} KdbMergedPart;

/* How a merged column combines. */
typedef enum KdbMergeKind
{
	KDB_MERGE_DELTA,
	KDB_MERGE_MAX,
	KDB_MERGE_MIN
} KdbMergeKind;

/*
 * What a write does to a merged column.  Assignments are chosen by version;
 * what is combined is combined with the last assignment before it.
 */
typedef enum KdbContributionKind
{
	KDB_CONTRIBUTES_NOTHING,
	KDB_CONTRIBUTES_VALUE,		/* an assignment: INSERT, to or from NULL, a maximum lowered */
	KDB_CONTRIBUTES_CHANGE		/* new - old of a delta, new of a maximum or minimum */
} KdbContributionKind;

typedef struct KdbContribution
{
	KdbVersion	version;
	KdbContributionKind kind;
} KdbContribution;

/* The state of a key at another node, by its truth there. */
typedef struct KdbFetched
{
	KdbRowState state;			/* LIVE or DEAD; for KdbMergeState also ABSENT: only a claim */
	KdbVersion	version;
} KdbFetched;

/* A live row of another key that holds a unique value of the row in question. */
typedef struct KdbMergeHolder
{
	KdbLocalRow row;
	int			handle;			/* the callbacks' own */
} KdbMergeHolder;

typedef struct KdbMergePut
{
	KdbRowPart	chosen;			/* WRITTEN, LOCAL or FETCHED: columns chosen by version */
	KdbRowPart	unsent;			/* with WRITTEN: LOCAL, OLD_KEY or FETCHED for what was not sent */
	KdbMergedPart merged;		/* merged columns, if the table has any */
	KdbVersion	version;
	bool		remember;
} KdbMergePut;

typedef enum KdbMergeResult
{
	KDB_MERGE_DONE,
	KDB_MERGE_CHANGED			/* nothing done: the state has changed, or a unique value is taken */
} KdbMergeResult;

/*
 * A conflict on the write's own key (local), or with rows of other keys (holders):
 * those are removed for the write (INSERT, UPDATE), removed by the claim of a write
 * that is itself dropped (DELETE), or the write is dropped for them (SKIP).
 */
typedef struct KdbMergeReport
{
	KdbDecision decision;
	const KdbLocalRow *local;	/* row of the key, or NULL */
	const KdbMergeHolder *holders;	/* rows of other keys */
	int			nholders;
	bool		claimed;		/* beaten by a claim that no live row holds */
} KdbMergeReport;

/* arg is the caller's own, passed through. */
typedef struct KdbMergeOps
{
	/* ---- facts ---- */

	/* What is known of the key: live row, else newest dead version or record, else absent.  Fills in all of *local. */
	void		(*find) (void *arg, KdbMergeKey key, KdbLocalRow *local);

	/* Would the row change a unique value of the live row that find(NEW) has found? */
	bool		(*unique_changes) (void *arg, KdbRowPart part);

	/*
	 * Live rows of other keys than the new one that hold a unique value of the
	 * row; returns how many were put into the list, at most max.  If there are more,
	 * those that are not greater than the version come first.
	 */
	int			(*holders) (void *arg, KdbRowPart part, KdbVersion version,
							KdbMergeHolder *list, int max);

	/*
	 * Has another key than the new one claimed a unique value of the row at a
	 * greater version?  Dead rows and recorded claims; live rows need not be
	 * looked at.
	 */
	bool		(*newer_claim) (void *arg, KdbRowPart part, KdbVersion version);

	/* An upper bound of where a version stands in its node's stream. */
	uint64_t	(*position) (void *arg, const KdbLocalRow *local);

	/* How far this node has applied that node's stream; all of its own. */
	uint64_t	(*progress) (void *arg, uint64_t node);

	/*
	 * Fetch the new key's row from the writer, or from a node that has applied
	 * this write.  What it may have seen must enter this node's own upper bound
	 * (KdbSeenEntry.maybe) and its version the clock rule before this returns.  A
	 * row that has left no trace there is an error: this node is stale.
	 */
	void		(*fetch) (void *arg, KdbFetched *fetched);

	/* Contribution number i of the history of a merged column; false at the end. */
	bool		(*history) (void *arg, int column, int i, KdbContribution *contribution);

	/* What an UPDATE does to a merged column, see KdbContributionOf. */
	KdbContributionKind (*contribution) (void *arg, int column);

	/* ---- arithmetic of merged columns; i as in history, -1: this write's own ---- */
	void		(*fold_start) (void *arg, int column, int i);
	void		(*fold_change) (void *arg, int column, int i);

	/* ---- actions ---- */

	/* Insert a row of the new key, which has no live one. */
	KdbMergeResult (*insert) (void *arg, const KdbMergePut *put);

	/* Overwrite the live row of the new key. */
	KdbMergeResult (*overwrite) (void *arg, const KdbMergePut *put);

	/* Delete the live row; the key is dead at that version. */
	KdbMergeResult (*remove) (void *arg, KdbMergeKey key, KdbVersion version, bool remember);

	/* Delete a holder; its key is dead at the given version. */
	KdbMergeResult (*kill) (void *arg, const KdbMergeHolder *holder, KdbVersion version, bool remember);

	/* No live row: the key is dead at that version. */
	void		(*bury) (void *arg, KdbMergeKey key, KdbVersion version);

	/* The new key has claimed the row's unique values at that version. */
	void		(*claim) (void *arg, KdbRowPart part, KdbVersion version);

	/*
	 * Put the write's contributions to the merged columns into the history of the
	 * new key.  with_base: there is none yet, the old row's values come first, as
	 * an assignment of version {0, 0}.
	 */
	void		(*contribute) (void *arg, bool with_base);

	/* A conflict, after its resolution; before it, as an error to be raised, for KDB_ACTION_ERROR. */
	void		(*report) (void *arg, const KdbMergeReport *report);
} KdbMergeOps;

/*
 * The transaction that is being applied.  newest and fetched are changed by
 * KdbMerge; give all writes of the transaction the same struct.
 */
typedef struct KdbMergeContext
{
	const KdbResolvers *resolvers;	/* none of them KDB_RESOLVER_ENGINE */
	KdbVersion	version;		/* of all its writes */
	KdbSeen		seen;			/* what its writer had seen */

	/*
	 * Versions up to this time were applied by every node before it wrote what
	 * arrives here from now on; INT64_MIN if nothing is known.
	 */
	int64_t		horizon;

	/*
	 * The version is greater than all that was ever applied, fetched or committed
	 * here, so neither dead rows nor claims need be looked for.  May be false.
	 */
	bool		newest;

	/* A row was fetched for this transaction, now or earlier; false at its start. */
	bool		fetched;
} KdbMergeContext;

typedef struct KdbMergeWrite
{
	KdbOperation operation;
	bool		key_changed;	/* UPDATE: the new row's key is another one */
	bool		unsent;			/* values of the new row are missing */
	bool		unique;			/* the table has unique keys beside its identity ... */
	bool		deferrable;		/* ... and one of them is deferrable */
	int			nmerged;		/* merged columns of the table */
} KdbMergeWrite;

/*
 * Merge one write of the transaction.
 */
extern void KdbMerge(const KdbMergeOps *ops, void *arg, KdbMergeContext *context,
					 const KdbMergeWrite *write);

/*
 * Merge the state that a key has at another node, outside of any stream; "fetch"
 * is not called, KDB_PART_FETCHED is that state's row.  For rows that survivors
 * had fetched from a node that was lost.  write->operation is not looked at.
 */
extern void KdbMergeState(const KdbMergeOps *ops, void *arg, KdbMergeContext *context,
						  const KdbMergeWrite *write, const KdbFetched *state);

/*
 * A row that the transaction has written claims its unique values once more, at the end of the
 * transaction, KDB_PART_WRITTEN being the row that is here: for holders that were left alone before, as a
 * deferrable key may be taken twice for a while.  The row is removed if one has become newer since.
 */
extern void KdbMergeClaimAtEnd(const KdbMergeOps *ops, void *arg, KdbMergeContext *context);

/*
 * May the holder keep a value of a deferrable key that a row of that version takes, so that "holders" does
 * not list it?  A value may be taken twice until the end of a transaction.  at_end: "holders" is asked by
 * KdbMergeClaimAtEnd.
 */
typedef enum KdbMergeKeeping
{
	KDB_KEEPS_NOT,
	KDB_KEEPS,
	KDB_KEEPS_FOR_NOW			/* KdbMergeClaimAtEnd must be called for the new key */
} KdbMergeKeeping;

extern KdbMergeKeeping KdbMergeMayKeep(const KdbMergeOps *ops, void *arg, const KdbMergeContext *context,
									   KdbVersion version, const KdbLocalRow *holder, bool at_end);

/*
 * What an UPDATE does to a merged column; order is that of the new value to the
 * old one, and not looked at if one of them is NULL.
 */
extern KdbContributionKind KdbContributionOf(KdbMergeKind kind, bool old_null,
											 bool new_null, int order);

/* The sum of rules that are switched off; only in the simulator's build. */
#ifdef KDB_MERGE_MUTATIONS
extern uint64_t KdbMergeWithout;
#endif

#endif							/* KRAHODB_MERGE_H */
