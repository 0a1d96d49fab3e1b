/*
 * sync_private.h
 *		What the files of sync/ share.  Nobody else includes this.
 *
 * Table synchronisation brings one table of a subscription from nothing to
 * where the apply worker is: a worker of its own copies the table's rows as
 * of a snapshot, streams from where the snapshot was taken until it has caught
 * up with the apply worker, and leaves.
 *
 * STATES.  Durable ones stand in pg_subscription_rel (with an LSN), w and c
 * only in the worker's slot of the engine's shared array:
 *
 *	i INIT			nothing done
 *	d DATASYNC		copying; a restart begins anew
 *	f FINISHEDCOPY	rows are copied; a restart goes on streaming.  The LSN, if
 *					there is one, is how far changes have been applied
 *	w SYNCWAIT		waits for the apply worker to say how far to go
 *	c CATCHUP		streams up to the LSN that the apply worker has set
 *	f, no origin	caught up with the LSN, only the slot is still to be dropped
 *	s SYNCDONE		caught up with the LSN, nothing left at the publisher
 *	r READY			the apply worker has passed that LSN: an ordinary table
 *
 * Who writes what: the synchronisation worker writes d, f, w and s, the apply
 * worker c and r.  Between f and c the apply worker leaves the table alone;
 * once it has set c it waits until it sees s or the worker is gone, so it
 * never passes the LSN of s before that is durable.
 *
 * WHY THE LAST f.  A slot at the publisher is dropped at once, but SYNCDONE
 * becomes durable with a later commit.  A crash in between, with f only, would
 * leave a table that has to stream from a slot that no longer exists, and an
 * apply worker that runs ahead meanwhile.  Setting SYNCDONE first is no way
 * out: DROP and ALTER SUBSCRIPTION take SYNCDONE to mean that no slot is left.
 * So before dropping the slot the worker stores "all applied up to this LSN"
 * durably, by the LSN of f and by dropping its own replication origin, and
 * from there on the table counts as SYNCDONE for everybody who asks whether a
 * change is to be applied (KdbSyncRelationState).
 *
 * ORIGINS.  See progress.c.
 *
 * RANGES.  A table of some size is copied in ranges of its pages, by several
 * processes, each range in a transaction of its own; what is done is marked in
 * the same transaction, and a worker that finds DATASYNC and marks goes on with
 * them.  See copy_ranges.c, copy_marks.c and copy_resume.c.
 *
 * Who does what:
 *	sync.c			registers the callbacks
 *	states.c		cached list of the tables that are not ready
 *	supervise.c		the apply worker: starts workers, sets c and r
 *	tablesync.c		the synchronisation worker from its start to w
 *	remote_table.c	what the publisher says of the table
 *	copy.c			rows from there to here
 *	copied_versions.c	the true versions of its rows
 *	copy_deaths.c	what was deleted here, and is newer
 *	copy_command.c	how they are asked for at the publisher
 *	copy_receive.c	the connection's end of it: rate limit, counts
 *	copy_plan.c		how a table is divided into ranges
 *	copy_marks.c	what is done, durably
 *	copy_resume.c	what of it is still right
 *	copy_ranges.c	the leader: copies the ranges, with helpers
 *	copy_helper.c	a helper
 *	progress.c		origins: marks on changes, progress over crashes
 *	finish.c		from c to s, and how the worker ends
 */
#ifndef SYNC_PRIVATE_H
#define SYNC_PRIVATE_H

#include "postgres.h"

#include "access/transam.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "utils/rel.h"

#include "krahodb/apply.h"

struct KdbSharedCopy;

/* Waits for another worker look again after this time, in ms. */
#define KDB_SYNC_WAIT_MS	1000L

/*
 * states.c.  The list is of SubscriptionRelState, kept until the next call;
 * *started_tx is set if a transaction was started that the caller must end.
 */
extern List *KdbSyncNotReadyTables(bool *started_tx);
extern bool KdbSyncAllReady(void);
extern bool KdbSyncNoneLeft(void);
extern char KdbSyncRelationState(Oid relid, XLogRecPtr *lsn);
extern bool KdbSyncSlotOnlyLeft(Oid relid, char state, XLogRecPtr lsn);
extern void KdbSyncSetShared(char state, XLogRecPtr lsn);

/* supervise.c */
extern void KdbSyncSupervise(XLogRecPtr current_lsn);

/* tablesync.c */
extern char *KdbSyncStart(XLogRecPtr *origin_startpos);

/* finish.c */
extern void KdbSyncCatchup(XLogRecPtr current_lsn);
extern void KdbSyncDropSlotAndExit(XLogRecPtr lsn, bool slot_missing_ok) pg_attribute_noreturn();
extern void KdbSyncExit(void) pg_attribute_noreturn();

/* progress.c: all but the last need a transaction */
extern void KdbSyncOriginCreate(void);
extern void KdbSyncOriginBegin(XLogRecPtr startpos);
extern XLogRecPtr KdbSyncOriginResume(XLogRecPtr lsn);
extern XLogRecPtr KdbSyncOriginProgress(void);
extern void KdbSyncOriginDrop(void);
extern void KdbSyncNoteCopied(XLogRecPtr startpos);
extern void KdbSyncStampCopy(void);
extern void KdbSyncHelperOriginsCreate(int nhelpers);
extern void KdbSyncHelperOriginUse(int number);
extern void KdbSyncHelperOriginsDrop(void);
extern void KdbSyncBeforeCommit(XLogRecPtr end_lsn);

/* What the publisher says of a table (remote_table.c). */
typedef struct KdbRemoteTable
{
	char	   *nspname;
	char	   *relname;
	Oid			relid;			/* there */
	char		relkind;
	bool		readable;		/* by us; if not, some of its columns may be */
	List	   *columns;		/* of String: those that are replicated, in their order */
	List	   *attnums;		/* of int: theirs there */
	List	   *types;			/* of Oid: theirs there */
	List	   *filters;		/* of String: copy rows that pass any; NIL: all rows */
	bool		partial;		/* a row filter or a column list leaves something out */
	bool		as_ancestor;	/* its changes come as an ancestor's: no row is copied */
} KdbRemoteTable;

extern KdbRemoteTable *KdbSyncFetchRemoteTable(char *nspname, char *relname);

/* Pages of a table there, or of a partition. */
typedef struct KdbCopyRange
{
	Oid			relid;			/* there */
	Oid			filenode;		/* there; another one: its rows are elsewhere */
	BlockNumber start;
	BlockNumber end;			/* the first that does not belong to it; Invalid: none */
} KdbCopyRange;

/* Which rows of a table are asked for, and how they come. */
typedef struct KdbCopySource
{
	const KdbCopyRange *range;	/* NULL: all of it */
	const char *relation;		/* quoted name of the range's relation */
	bool		binary;
	bool		again;			/* an earlier attempt may have copied the rows */
	bool		with_times;		/* a last column says when each row was written, in
								 * microseconds of a TimestampTz, or null; as text */
} KdbCopySource;

/* copy_command.c */
extern char *KdbSyncCopyCommand(const KdbRemoteTable *table, const KdbCopySource *source);
extern char *KdbSyncCountCommand(const KdbRemoteTable *table, const KdbCopyRange *range,
								 const char *relation, TransactionId xmin);

/* What to do about rows that are there already. */
typedef enum KdbCopyConflicts
{
	KDB_COPY_FAIL,				/* raise the unique index's error */
	KDB_COPY_RESOLVE,			/* resolve row by row, if there are any */
	KDB_COPY_MERGE				/* resolve row by row */
} KdbCopyConflicts;

/* What was copied. */
typedef struct KdbCopyResult
{
	uint64		rows;
	TransactionId xid;			/* xmin of the rows */
	bool		resolved;		/* row by row: not each row was written */
} KdbCopyResult;

/* copy.c: need a transaction with an active snapshot; rel is locked */
extern void KdbSyncCheckColumns(const KdbRemoteTable *table, Relation rel);
extern bool KdbSyncBinarySafe(const KdbRemoteTable *table, Relation rel);
extern bool KdbSyncExistingRowsResolved(void);

/* Can rows be in the way of others without COPY's failing? */
extern bool KdbSyncTakenUnnoticed(Relation rel);

/*
 * Has something been deleted here that may be newer than what is copied (copy_deaths.c)?  resumed: by the
 * same copy, some of which is here.
 */
extern bool KdbSyncDeletedHere(Relation rel, bool resumed);

/* Is it the error of rows that are there already? */
extern bool KdbSyncRowsInTheWay(int sqlstate);
extern KdbCopyResult KdbSyncCopyRows(Relation rel, const KdbRemoteTable *table,
									 const KdbCopySource *source,
									 KdbCopyConflicts conflicts);

/* copy_receive.c: COPY's data, of LogRepWorkerWalRcvConn, and that session */
extern void KdbCopyRemoteTimeouts(void);
extern void KdbCopyReceiveCount(struct KdbSharedCopy *copy);
extern void KdbCopyReceiveStart(void);
extern int	KdbCopyReceive(void *outbuf, int minread, int maxread);
extern void KdbCopyReceiveSkip(void);

/* How a table is divided (copy_plan.c). */
typedef struct KdbCopyPlan
{
	uint64		sysid;			/* of the publisher */
	TimeLineID	timeline;
	uint64		shape;			/* hash of what is copied, and to where */
	uint64		pages;
	int			nranges;
	KdbCopyRange *ranges;		/* of one relation: one after the other */
} KdbCopyPlan;

/* NULL: cannot be copied in ranges */
extern KdbCopyPlan *KdbCopyPlanMake(const KdbRemoteTable *table, Relation rel,
									uint64 sysid, TimeLineID timeline);
extern bool KdbCopyPlanStillRight(const KdbCopyPlan *plan, const KdbCopyPlan *now);
extern char *KdbCopyPlanToText(const KdbCopyPlan *plan);
extern KdbCopyPlan *KdbCopyPlanFromText(const char *text);
extern char *KdbCopyRangeRelation(const KdbCopyRange *range);
extern uint64 KdbCopyShape(const KdbRemoteTable *table, Relation rel);

/* A range that is done (copy_marks.c). */
typedef struct KdbCopyMark
{
	int			range;			/* its number in the plan, from 0 */
	FullTransactionId xid;		/* of its rows here */
	uint64		xmin;			/* of the publisher's snapshot, an xid8 */
	XLogRecPtr	lsn;			/* where the stream was to begin */
	uint64		rows;
	bool		resolved;
} KdbCopyMark;

/* They need a transaction; what is read, a snapshot. */
extern void KdbCopyMarkPlan(Oid relid, const KdbCopyPlan *plan);
extern KdbCopyPlan *KdbCopyMarkedPlan(Oid relid, Oid *subid);
extern void KdbCopyMarkDone(Oid relid, const KdbCopyMark *mark);
extern List *KdbCopyMarks(Oid relid);
extern bool KdbCopyIsMarked(Oid relid, int range);
extern void KdbCopyUnmark(Oid relid, int range);

/* How a table is to be copied in ranges. */
typedef struct KdbCopyJob
{
	Oid			relid;
	KdbRemoteTable *table;
	KdbCopyPlan *plan;
	bool		binary;
	bool		resolving;
	bool		resumed;
	uint64		xmin;			/* of the publisher's snapshot */
	XLogRecPtr	startpos;		/* where the stream begins */
	char	   *snapshot;		/* exported there; NULL: nobody else can use it */
	uint8	   *merge;			/* for each range: is it to be merged row by row? */
	uint8	   *done;			/* and is it done? */
} KdbCopyJob;

/*
 * copy_resume.c.  KdbCopyKeepsSlot: before anything is done at the publisher.
 * KdbCopyPrepare: in the transaction there that the rows are read in; NULL if the
 * table is not to be copied in ranges.  Both need a transaction with a snapshot.
 */
extern bool KdbCopyKeepsSlot(Relation rel, XLogRecPtr startpos);
extern KdbCopyJob *KdbCopyPrepare(Relation rel, KdbRemoteTable *table,
								  uint64 sysid, TimeLineID timeline,
								  XLogRecPtr startpos, bool kept_slot);

/*
 * copy_ranges.c.  The first in the transaction that has prepared the copy, the others
 * not in a transaction.
 */
extern void KdbCopyLockForSession(Oid relid);
extern void KdbCopyUnlockAtExit(void);
extern void KdbCopyRunRanges(KdbCopyJob *job);
extern bool KdbCopyTakeRange(struct KdbSharedCopy *copy, uint8 state, uint8 taker, int *range);
extern void KdbCopyOneRange(const KdbCopyJob *job, struct KdbSharedCopy *copy, int range,
							KdbCopyConflicts conflicts);

/* copy_ranges.c: announce the copy in shared memory; job NULL: as a whole */
extern void KdbCopyAnnounce(Oid relid, const KdbCopyJob *job);

/* How many rows it will be, for the view; of a copy as a whole. */
extern void KdbCopyExpectRows(uint64 rows);

/* copy_estimate.c: about how many rows the publisher's table has; 0 if nobody knows */
extern uint64 KdbCopyEstimateRows(const KdbRemoteTable *table);
extern void KdbCopyEnd(void);

/* copy_helper.c */
typedef struct KdbCopyHelperRequest
{
	int			entry;			/* in KdbCopies */
	int			number;			/* from 1 */
	uint64		generation;
} KdbCopyHelperRequest;

/*
 * copied_versions.c.  Prepare: before the transaction there whose snapshot is copied.
 * Copy: inside it, before its rows are visible here; in a transaction whose commit is
 * stamped by KdbSyncStampCopy.  NoteAgain: likewise, if the slot is older than that transaction; position: behind all that
 * it shows.
 */
extern void KdbSyncVersionsPrepare(void);
extern void KdbSyncVersionsCopy(const KdbRemoteTable *table, Relation rel);
extern void KdbSyncNoteAgain(Relation rel, XLogRecPtr position);

#endif							/* SYNC_PRIVATE_H */
