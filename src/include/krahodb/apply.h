/*
 * apply.h
 *		The worker that applies a subscription's changes.
 *
 * One entry function serves apply workers and table synchronisation workers,
 * as the engine's does in 15: which one it is stands in the worker's slot of
 * the engine's shared array (relid).
 */
#ifndef KRAHODB_APPLY_H
#define KRAHODB_APPLY_H

#include "postgres.h"
#include "catalog/pg_subscription.h"
#include "nodes/parsenodes.h"
#include "replication/worker_internal.h"
#include "utils/relcache.h"
#include "krahodb/options.h"

/* Entry function; main_arg is the slot's index in the engine's array. */
extern PGDLLEXPORT void KdbApplyWorkerMain(Datum main_arg);

/* KrahoDB's options of MySubscription; kept current with it. */
extern KdbSubscriptionOptions *KdbMyOptions;

/* krahodb.fetch_timeout, milliseconds: how long fetching a row may take. */
extern int	KdbFetchTimeout;

/*
 * At the start of a worker, in a transaction: read both for
 * MyLogicalRepWorker->subid, or exit if there is nothing to work for.
 */
extern void KdbSubscriptionLoad(void);

/*
 * Call it often where something takes long and the stream is not looked at, between
 * messages: the publisher is told now and then that there is somebody, so that it does
 * not end the connection after wal_sender_timeout.  In a lane, which has no connection, it does
 * nothing.
 */
extern void KdbFeedbackWhileBusy(void);

/*
 * Table synchronisation plugs in here (sync is a layer above apply, so it
 * registers itself; KdbSyncInit does).
 */
typedef struct KdbSyncCallbacks
{
	/*
	 * Copy the table of MyLogicalRepWorker->relid; returns the name of the
	 * slot to stream from (palloc'd) and where to start; leaves
	 * LogRepWorkerWalRcvConn connected and the session's origin set up, with
	 * replorigin_session_origin as the origin that applied changes are to be
	 * marked with (the subscription's main one, not the session's), or exits
	 * the process if nothing is left to do.
	 */
	char	   *(*start_table_sync) (XLogRecPtr *origin_startpos);

	/* Called between transactions with the LSN that has been applied. */
	void		(*process_syncing_tables) (XLogRecPtr current_lsn);

	/*
	 * In a synchronisation worker, called by whoever commits an applied
	 * transaction, when all is done but CommitTransactionCommand: the session's
	 * origin LSN (= end_lsn) and timestamp are set.  It makes the progress
	 * durable in that same transaction, and may change
	 * replorigin_session_origin and _lsn; the caller sets them back to what
	 * changes are marked with (KdbApply.origin) and 0 after the commit.
	 */
	void		(*before_commit) (XLogRecPtr end_lsn);

	/*
	 * Is no table being synchronised, as of the last process_syncing_tables?
	 * False before the first one.
	 */
	bool		(*tables_ready) (void);

	/*
	 * State of a table of MySubscription and its LSN, as
	 * GetSubscriptionRelState, for deciding whether changes to it may be
	 * applied: a table whose synchronisation is finished but not yet tidied up
	 * counts as SYNCDONE.  Needs a transaction.
	 */
	char		(*relation_state) (Oid relid, XLogRecPtr *lsn);
} KdbSyncCallbacks;

extern void KdbRegisterSync(const KdbSyncCallbacks *callbacks);

/*
 * Connect a process that applies or copies to a database, with the settings that it
 * needs whatever those of the role and the database are.
 */
extern void KdbWorkerConnectToDatabase(Oid dbid, Oid userid);

/*
 * Start one more worker in the engine's shared array with KrahoDB's entry
 * function: an apply worker, or one that synchronises relid.  Same checks,
 * limits and messages as the engine's logicalrep_worker_launch.
 */
extern void KdbWorkerLaunch(Oid dbid, Oid subid, const char *subname,
							Oid userid, Oid relid);

/*
 * The engine's shared memory of its launcher, "Logical Replication Launcher
 * Data".  No header of the engine declares it; the elements are of the
 * installed header's type.
 */
typedef struct KdbLauncherShared
{
	pid_t		launcher_pid;	/* 0 if none runs; woken by SIGUSR1 */
	LogicalRepWorker workers[FLEXIBLE_ARRAY_MEMBER];	/* max_logical_replication_workers */
} KdbLauncherShared;

extern KdbLauncherShared *KdbLauncherAttach(void);

/*
 * Apply workers that ended by an error have a time of their own at which they are
 * started again: at once after something that passes (a deadlock), and not before
 * wal_retrieve_retry_interval otherwise.
 */
typedef enum KdbRetryState
{
	KDB_RETRY_NONE,				/* not such a worker */
	KDB_RETRY_NOW,				/* start it now; said once */
	KDB_RETRY_LATER				/* not before *wait milliseconds have passed */
} KdbRetryState;

extern KdbRetryState KdbRetryAsk(Oid subid, long *wait);

/*
 * The least pause, in milliseconds, before a worker is started again that has failed so
 * often in succession; wal_retrieve_retry_interval may be longer.
 */
extern int	KdbRetryPause(int failures);

/*
 * How far the stream of a subscription has come, as its apply worker said last
 * since the server started; false if none has.  The position is one of the
 * stream whose KdbStreamHash is given: all that the publisher wrote before it is
 * applied and flushed here, unless tables are still being synchronised.  The
 * horizon worker is woken when it gets to wanted.
 */
typedef struct KdbStreamProgress
{
	uint32		stream;
	RepOriginId origin;
	uint64		node;			/* the publisher, and its server's run; 0: stock, or not known */
	uint64		incarnation;
	bool		tables_ready;
	XLogRecPtr	durable;
} KdbStreamProgress;

extern bool KdbGetStreamProgress(Oid subid, XLogRecPtr wanted, KdbStreamProgress *result);

/*
 * For the horizon worker: what comes by that stream was written by who had applied
 * all changes until that time (0: not known).
 */
extern void KdbSetStreamSeenUntil(Oid subid, uint32 stream, TimestampTz seen_until);

extern uint32 KdbStreamHash(const char *conninfo, const char *slotname);

/*
 * With run_as_owner = false, become the owner of a table for
 * the time that its triggers, expressions and checks run; errors if the
 * subscription's owner could not SET ROLE to it.  With run_as_owner = true
 * both do nothing.  An error in between needs no cleanup.
 */
typedef struct KdbUserContext
{
	bool		switched;
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;
} KdbUserContext;

extern void KdbSwitchToTableOwner(Relation rel, KdbUserContext *context);
extern void KdbSwitchToPrepare(Relation rel, KdbUserContext *context);
extern void KdbRestoreUser(const KdbUserContext *context);

/*
 * Privileges of the current user on a target relation, and no row
 * security there; the engine's errors.
 */
extern void KdbCheckTargetPrivileges(Relation rel, AclMode mode);

/*
 * Apply rows of an initial copy one by one, with conflict resolution.  columns
 * is of String: the publisher's, in the order of the fields.  A field is text,
 * or NULL; written is when the row was written as far as that is known, for
 * comparing it with rows that are here.  In a transaction with an active
 * snapshot and replorigin_session_origin set.
 */
extern void KdbApplyCopyBegin(Oid remoteid, const char *nspname,
							  const char *relname, List *columns);
extern void KdbApplyCopiedRow(char **fields, TimestampTz written);
extern void KdbApplyCopyEnd(void);

/*
 * Between Begin and End: what the publisher says of a version there, for tables that
 * converge.  columns as above; the commit that follows must have the time
 * KdbCopiedRowTime.
 */
typedef struct KdbCopiedVersion
{
	char		kind;			/* KdbVersionRecordKind: TRUTH, DEAD or CLAIM; or 'i', a claim of one index */
	TimestampTz time;
	uint64		node;
	int			ncolumns;
	char	  **names;			/* of the columns that follow */
	char	  **values;			/* text, or NULL */
	const char *index;			/* 'i': KdbIndexText, and what it has of the row: */
	int			nclaimed;
	char	  **claimed;
} KdbCopiedVersion;

extern void KdbApplyCopiedVersion(List *columns, const KdbCopiedVersion *version);

/*
 * Likewise, what has been contributed to the merged columns of a key there: fields are four
 * for each column, its name, how it is merged, kind of the contribution, and value (text, or
 * NULL).  since: the publisher's horizon.
 */
typedef struct KdbCopiedContribution
{
	TimestampTz time;
	uint64		node;
	int			nfields;
	char	  **fields;
} KdbCopiedContribution;

extern void KdbApplyCopiedHistory(List *columns, const KdbCopiedVersion *key, bool live,
								  List *contributions, TimestampTz since);

/*
 * ALTER TABLE may be about to write rel anew: have what its merged columns consist of carried over, too.  In the memory
 * context that carried is in.
 */
struct KdbCarried;
extern void KdbMergedCarry(struct KdbCarried *carried, Relation rel);

/*
 * The time that rows of an initial copy show: as old as can be, since any change that is
 * still in flight must win against what has no true version.  (0 means "none".)
 * Another one for each copy, because true versions are recorded for what is shown.
 * KdbCopiedRowNewTime chooses one; helpers take over their leader's.
 */
extern TimestampTz KdbCopiedRowTime;
extern void KdbCopiedRowNewTime(void);

/* Of each row that is newer the publisher of the copy has said so; the end of time: of none. */
extern TimestampTz KdbCopiedVersionsFrom;

#endif							/* KRAHODB_APPLY_H */
