/*
 * converge_private.h
 *		A row change on its way through the convergence rules.
 *
 *	converge.c			the change, which table and key it is for, the report
 *	converge_facts.c	what is known here: heap, dead rows, records, claims
 *	converge_actions.c	what the rules order: rows written, killed, remembered
 *	converge_deferred.c	deferrable keys that were taken twice for a while
 *	converge_merged.c	columns whose values are merged (merged_private.h)
 *	converge_row.c		the rows that are written, from what was sent, is here, was fetched
 *	converge_inserts.c	runs of inserts, written together if all of their values are new
 *	fetch.c				the row of the key from the publisher
 */
#ifndef CONVERGE_PRIVATE_H
#define CONVERGE_PRIVATE_H

#include "relation_private.h"

#include "krahodb/merge.h"
#include "krahodb/version_record.h"

/* One side of the change: the key of the old row, the key of the new one. */
typedef struct KdbConvergeSide
{
	KdbApplyTarget *target;
	TupleTableSlot *key;		/* values of the key's columns, target's format */
	bool		live;			/* find has found a live row ... */
	ItemPointerData tid;		/* ... here */
} KdbConvergeSide;

typedef struct KdbMergedChange KdbMergedChange;

typedef struct KdbConverge
{
	KdbApplyRelation *rel;
	KdbOperation operation;
	KdbConvergeSide sides[2];	/* by KdbMergeKey; the same unless key_changed */
	KdbRemoteRow *row;			/* new row, format of the new side; NULL for a delete */
	KdbRemoteRow fetched;		/* the row as the publisher has it, likewise; slot NULL: not fetched */
	KdbMergeContext *context;
	KdbHolder  *holders;		/* as listed last: KDB_MERGE_MAX_HOLDERS */
	uint64		events;			/* KdbShared->merge_events when the key was looked at */
	uint64		clock;			/* KdbClockMark at that time */

	/* zeros until the rules have something to say, from here on (KdbConvergeInit) */
	bool		key_changed;
	bool		old_is_full;	/* the old side's key is the whole old row */
	bool		looking;		/* the events have just been noted, and nothing been looked at yet */
	bool		local_completed;	/* columns that the publisher does not have */
	bool		triggers_fired; /* BEFORE ROW, of the insert */
	bool		unclaimed;		/* no tuple has a unique value of the new row */
	bool		kept_holder;	/* noted: an older row has kept a deferrable value */
	bool		at_end;			/* of the transaction: none keeps it any more */
	int			clashes;		/* unique keys that were found taken while writing */
	int			kept;			/* rows in the way that triggers have kept, each time */
	KdbVersion	version;		/* of a copied row; else {0, 0}: the context's */
	KdbMergedChange *merged;	/* NULL if no column is merged */
	KdbMergedChange *revived;	/* of a copied row of a key that is dead here; else NULL */
	TupleTableSlot *old_row;	/* key_changed: copy of the old key's row, or NULL */
	TupleTableSlot *written;	/* the row as it was written last, for the record */
} KdbConverge;

/*
 * How often a taken unique key is a result before it is the engine's error:
 * triggers may change a key to one that is taken, or keep a row that is to go.
 */
#define KDB_CONVERGE_CLASHES	16

/*
 * A change of one key in one table.  To clear the whole struct would cost more than what the
 * rules do for a change without conflict.
 */
static inline void
KdbConvergeInit(KdbConverge *c, KdbApplyRelation *rel, KdbApplyTarget *target, KdbOperation operation,
				KdbRemoteRow *row, TupleTableSlot *key)
{
	c->rel = rel;
	c->operation = operation;
	for (int i = 0; i < 2; i++)
	{
		c->sides[i].target = target;
		c->sides[i].key = key;
		c->sides[i].live = false;
	}
	c->row = row;
	c->fetched.slot = NULL;
	c->fetched.sent = NULL;
	c->context = NULL;
	c->holders = NULL;
	c->events = c->clock = 0;
	memset(&c->key_changed, 0, sizeof(KdbConverge) - offsetof(KdbConverge, key_changed));
}

static inline KdbConvergeSide *
KdbSideOf(KdbConverge *c, KdbMergeKey key)
{
	return &c->sides[key];
}

/* converge.c: the callbacks of the rules. */
extern const KdbMergeOps KdbConvergeOps;

/* converge.c: set c up for the transaction, whose first change it may be. */
extern void KdbConvergeStart(KdbConverge *c);

/* converge_facts.c */
extern void KdbFactFind(void *arg, KdbMergeKey key, KdbLocalRow *local);
extern bool KdbFactUniqueChanges(void *arg, KdbRowPart part);
extern int	KdbFactHolders(void *arg, KdbRowPart part, KdbVersion version,
						   KdbMergeHolder *list, int max);
extern bool KdbFactNewerClaim(void *arg, KdbRowPart part, KdbVersion version);
extern uint64_t KdbFactPosition(void *arg, const KdbLocalRow *local);
extern uint64_t KdbFactProgress(void *arg, uint64_t node);

/* The key of the target's identity in a row of it. */
extern void KdbKeyOfRow(KdbApplyTarget *target, TupleTableSlot *slot, KdbRecordedKey *key);

/* The live row of a side is in its target's local slot (again). */
extern bool KdbSideIsLocal(KdbConvergeSide *side);

/* Version of the live row in slot, by its truth. */
extern void KdbTrueVersion(KdbConverge *c, KdbApplyTarget *target, TupleTableSlot *slot,
						   KdbLocalRow *local);

/* The newest true deletion of the key; false if none is known. */
extern bool KdbTrueDeath(KdbConverge *c, KdbApplyTarget *target, TupleTableSlot *key,
						 KdbLocalRow *local);

/* Is there a KILLED record of the key for what this transaction shows? */
extern bool KdbKilledBefore(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key);

/* Has another key claimed a unique value of the row at a greater version? */
extern bool KdbClaimedByAnother(KdbConverge *c, TupleTableSlot *row, KdbVersion version);

/* What is found from here on must hold when the row is written. */
extern void KdbStartLook(KdbConverge *c);

/* Nobody asks what is newer than a deletion: it puts nothing in anybody's way. */
static inline bool
KdbLooksForNewer(const KdbConverge *c)
{
	return c->operation != KDB_DELETE;
}

/* converge_deferred.c: an older row keeps a value of the new row, for now. */
extern void KdbNoteKeptHolder(KdbConverge *c);

/* Forget those of the transaction. */
extern void KdbForgetKeptHolders(void);

/* converge.c: the new row is here, and claims its values once more. */
extern void KdbConvergeClaimAtEnd(KdbConverge *c);

/* converge_row.c */

/* The row that is written or fetched; part is one of these. */
extern KdbRemoteRow *KdbRowOfPart(KdbConverge *c, KdbRowPart part);

/* Are values of the new row missing? */
extern bool KdbRowIsIncomplete(KdbConverge *c);

/* That row put over the live one, as far as it is known; in the message context's life. */
extern TupleTableSlot *KdbNewRow(KdbConverge *c, KdbRowPart part);

/* Put what was not sent into the new row; unsent is where from, as in KdbMergePut. */
extern void KdbCompleteRow(KdbConverge *c, KdbRowPart unsent);

/* Columns that the publisher does not have, of a row to be inserted. */
extern void KdbCompleteLocalColumns(KdbConverge *c, KdbRemoteRow *row);

/*
 * fetch.c: wait a moment for what the writer may have seen, so that a row with missing
 * values need not be fetched; before anything is locked.
 */
extern void KdbAwaitSeen(void);

/* See merge.h. */
extern void KdbFetchRow(void *arg, KdbFetched *fetched);

/*
 * Was the table copied from a node that had applied the change?  Then what it has done
 * is here, or something newer is.
 */
extern bool KdbIsBehindFloor(KdbConverge *c, KdbApplyTarget *target);

/*
 * merged_again.c: of a copy that began again, known by AGAIN records.  Has the copied row of the new key the
 * change in it already?  After KdbIsBehindFloor, which reads the records.
 */
typedef struct KdbCopiedAgain KdbCopiedAgain;

extern void KdbCopiedAgainForget(KdbFloor *floor);
extern void KdbCopiedAgainTake(KdbApplyTarget *target, const KdbVersionRecord *record);
extern bool KdbIsInCopiedRow(KdbConverge *c);

/* converge_merged.c */

/* The target has merged columns: begin with them.  Not for a DELETE. */
extern void KdbMergedBegin(KdbConverge *c);

/* How many columns does the change merge? */
extern int	KdbMergedCount(const KdbConverge *c);

/* The key is looked up (again): its history is not known any more. */
extern void KdbMergedForget(KdbConverge *c);

/*
 * Merged columns of the row (with their values of the local one for an overwrite) that
 * is about to be put; and after it has been.
 */
extern void KdbMergedBeforePut(KdbConverge *c, const KdbMergePut *put, TupleTableSlot *row,
							   TupleTableSlot *local);
extern void KdbMergedAfterPut(KdbConverge *c);

/*
 * merged_copied.c: record what the publisher of a copy has listed (of KdbCopiedContribution) for the
 * key; has_row: there will be a row that contains it.  since: its horizon.
 */
extern void KdbMergedCopied(KdbConverge *c, bool has_row, List *contributions, TimestampTz since);

/* The copied row's key is dead here: its history, with that of the copy, makes up its merged columns. */
extern void KdbMergedRevive(KdbConverge *c);

/* Has another worker contributed to the key since its history was read? */
extern bool KdbMergedOvertaken(KdbConverge *c);

extern bool KdbMergedHistory(void *arg, int column, int i, KdbContribution *contribution);
extern KdbContributionKind KdbMergedOwn(void *arg, int column);
extern void KdbMergedFoldStart(void *arg, int column, int i);
extern void KdbMergedFoldChange(void *arg, int column, int i);
extern void KdbMergedContribute(void *arg, bool with_base);

/* converge_actions.c */
extern void KdbActRecord(KdbConverge *c, KdbVersionRecordKind kind, KdbVersion version);
extern KdbMergeResult KdbActInsert(void *arg, const KdbMergePut *put);
extern KdbMergeResult KdbActOverwrite(void *arg, const KdbMergePut *put);
extern KdbMergeResult KdbActRemove(void *arg, KdbMergeKey key, KdbVersion version, bool remember);
extern KdbMergeResult KdbActKill(void *arg, const KdbMergeHolder *holder, KdbVersion version,
								 bool remember);
extern void KdbActBury(void *arg, KdbMergeKey key, KdbVersion version);
extern void KdbActClaim(void *arg, KdbRowPart part, KdbVersion version);

/* Is there still nothing newer than what was found when the key was looked at? */
extern bool KdbIsUndisturbed(KdbConverge *c, KdbVersion version);

/* Has somebody meanwhile done something that beats the inserted row? */
extern bool KdbIsOvertaken(KdbConverge *c, const KdbMergePut *put);

/* Delete the inserted row again. */
extern void KdbTakeBack(KdbConverge *c, KdbApplyTarget *target, ItemPointer where);

extern void KdbAddRecord(KdbConverge *c, KdbApplyTarget *target, const KdbRecordedKey *key,
						 KdbVersionRecordKind kind, KdbVersion version, bytea *merged);

/* Something died, was claimed or contributed: those who are inserting now look again. */
extern void KdbMergeEvent(void);

#endif							/* CONVERGE_PRIVATE_H */
