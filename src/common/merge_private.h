/*
 * merge_private.h
 *		What the files of the convergence rules share.  Nobody else includes this, but
 *		the simulator for the names of the rules.
 *
 *	merge.c			the write's own key: who wins, and what is done
 *	merge_unique.c	unique values of other keys
 *	merge_unsent.c	values that were not sent: shared or fetched
 *	merge_columns.c merged columns: contributions and their fold
 */
#ifndef MERGE_PRIVATE_H
#define MERGE_PRIVATE_H

#include "krahodb/merge.h"

/* One write on its way; lives on KdbMerge's stack. */
typedef struct KdbMergeRun
{
	const KdbMergeOps *ops;
	void	   *arg;
	KdbMergeContext *context;
	const KdbMergeWrite *write; /* NULL while a state is merged without a write */
	bool		unique;
	bool		deferrable;
	int			nmerged;

	/* What the write is to the new key: the key UPDATE's second half is an INSERT. */
	KdbOperation operation;

	bool		has_fetched;
	KdbFetched	fetched;
	bool		old_key_shared; /* the old key's row may give unsent values */
	bool		look_for_holders;	/* an insert has met a taken value */
} KdbMergeRun;

/*
 * A rule of the simulator's list, which may be switched off there to show that it
 * is needed (make check-sim).  Always true in the server.
 */
#ifdef KDB_MERGE_MUTATIONS
#define KDB_RULE(name)	((KdbMergeWithout & KDB_WITHOUT_##name) == 0)
#else
#define KDB_RULE(name)	true
#endif

enum
{
	KDB_WITHOUT_DEAD_ROWS = 1 << 0,
	KDB_WITHOUT_BURY = 1 << 1,
	KDB_WITHOUT_UPDATE_REVIVES = 1 << 2,
	KDB_WITHOUT_KEY_DELETE = 1 << 3,
	KDB_WITHOUT_NODE_ORDER = 1 << 4,
	KDB_WITHOUT_LOSER_CLAIMS = 1 << 5,
	KDB_WITHOUT_NEWER_CLAIMS = 1 << 6,
	KDB_WITHOUT_BEATEN_CLAIM = 1 << 7,
	KDB_WITHOUT_OWN_VERSION = 1 << 8,
	KDB_WITHOUT_SHARE_READY = 1 << 9,
	KDB_WITHOUT_SHARE_SEEN = 1 << 10,
	KDB_WITHOUT_FETCHED_VERSION = 1 << 11,
	KDB_WITHOUT_FETCHED_ONCE = 1 << 12,
	KDB_WITHOUT_FETCHED_LAST = 1 << 13,
	KDB_WITHOUT_FETCHED_CLAIM = 1 << 14,
	KDB_WITHOUT_TRUE_VERSION = 1 << 15,
	KDB_WITHOUT_LOSER_CHANGES = 1 << 16,
	KDB_WITHOUT_DEAD_CHANGES = 1 << 17,
	KDB_WITHOUT_HISTORY = 1 << 18,
	KDB_WITHOUT_MANY_HOLDERS = 1 << 19,
	KDB_WITHOUT_KEEP_SEEN = 1 << 20,
	KDB_WITHOUT_KEEP_WRITTEN = 1 << 21,
	KDB_WITHOUT_KEPT_CLAIMED = 1 << 22
};

/* merge.c: less than, equal to or greater than 0 as the version is to the local one. */
extern int	KdbMergeOrder(KdbVersion version, const KdbLocalRow *local);

/* merge_unique.c */
typedef enum KdbUniqueVerdict
{
	KDB_UNIQUE_FREE,			/* nobody in the way (any more) */
	KDB_UNIQUE_BEATEN,			/* a greater version of another key has a value */
	KDB_UNIQUE_AGAIN			/* something has changed: look again */
} KdbUniqueVerdict;

/*
 * A row of the new key claims its unique values at a version.  Older rows of other
 * keys that hold one go.  contender: the row wants to live; else only its claim
 * counts.
 */
extern KdbUniqueVerdict KdbMergeUnique(KdbMergeRun *run, KdbRowPart part,
									   KdbVersion version, bool contender);

/* merge_unsent.c */
extern bool KdbMergeWriterSaw(const KdbMergeOps *ops, void *arg, const KdbMergeContext *context,
							  const KdbLocalRow *local);
extern bool KdbMergeMayShare(KdbMergeRun *run, const KdbLocalRow *local);
extern void KdbMergeFetch(KdbMergeRun *run);

/* merge_columns.c: does the write contribute anything to merged columns? */
extern bool KdbMergeContributes(KdbMergeRun *run);

/* Values of merged columns from the history; false if there is no history. */
extern bool KdbMergeFold(KdbMergeRun *run);

/* Put the write's contributions into the history of a key that stays dead. */
extern void KdbMergeContributeDead(KdbMergeRun *run);

#endif							/* MERGE_PRIVATE_H */
