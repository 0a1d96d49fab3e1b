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
 * Who does what:
 *	sync.c			registers the callbacks
 *	states.c		cached list of the tables that are not ready
 *	supervise.c		the apply worker: starts workers, sets c and r
 *	tablesync.c		the synchronisation worker from its start to w
 *	remote_table.c	what the publisher says of the table
 *	copy.c			the copy itself
 *	copy_command.c	how it is asked for at the publisher
 *	progress.c		origins: marks on changes, progress over crashes
 *	finish.c		from c to s, and how the worker ends
 */
#ifndef SYNC_PRIVATE_H
#define SYNC_PRIVATE_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

#include "krahodb/apply.h"

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
extern void KdbSyncOriginDrop(void);
extern void KdbSyncNoteCopied(XLogRecPtr startpos);
extern void KdbSyncStampCopy(void);
extern void KdbSyncBeforeCommit(XLogRecPtr end_lsn);

/* What the publisher says of a table (remote_table.c). */
typedef struct KdbRemoteTable
{
	char	   *nspname;
	char	   *relname;
	Oid			relid;			/* there */
	char		relkind;
	List	   *columns;		/* of String: those that are replicated, in their order */
	List	   *filters;		/* of String: copy rows that pass any; NIL: all rows */
} KdbRemoteTable;

extern KdbRemoteTable *KdbSyncFetchRemoteTable(char *nspname, char *relname);

/*
 * copy_command.c: COPY TO of the table's rows; with_times: and behind their
 * columns one that says when each was written, in microseconds of a TimestampTz,
 * or null.
 */
extern char *KdbSyncCopyCommand(const KdbRemoteTable *table, bool with_times);

/* copy.c: needs a transaction with an active snapshot; rel is locked */
extern void KdbSyncCopyTable(Relation rel);

/*
 * A copied row's true version is mostly not known; it must lose against any
 * change that is still in flight, so it is as old as can be.  (0 means "none".)
 */
#define KDB_COPIED_ROW_TIMESTAMP	((TimestampTz) 1)

#endif							/* SYNC_PRIVATE_H */
