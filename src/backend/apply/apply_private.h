/*
 * apply_private.h
 *		What the files of apply/ share.  Nobody else includes this.
 *
 * Who does what:
 *	launch.c		fills a slot of the engine's shared array, starts a worker
 *	worker.c		entry function, start-up, exit, disable_on_error
 *	retry.c			starting again at once after a deadlock and the like
 *	subscription.c	MySubscription and KdbMyOptions, re-read on change
 *	loop.c			receive, wait, time out
 *	frame.c			payloads of the stream, plain or compressed
 *	feedback.c		what is flushed locally, and telling the publisher
 *	dispatch.c		one message: decode, then to the function for its type
 *	transaction.c	begin, commit, two-phase, origin position
 *	skip.c			ALTER SUBSCRIPTION ... SKIP
 *	spool.c			streamed transactions to files, and back
 *	truncate.c		TRUNCATE
 *	seen.c			what the writer had seen of other nodes
 *	spool_read.c	reading those files
 *	lane_*.c		applying in parallel, see lanes_private.h
 *	early_*.c		streamed transactions applied while they arrive
 *	usercontext.c	acting as a table's owner (run_as_owner = false)
 *	error.c			error context
 *	relation.c		KdbApplyRelation: remote relation to local relation
 *	convert.c		wire columns to datums in slots
 *	lookup.c		finding the local row of a key
 *	walk.c			the same for keys in ascending order, without a descent for each
 *	recall.c		the same for rows that were written lately
 *	gaps.c			whether values of many rows are new to an index
 *	row.c			INSERT, UPDATE, DELETE
 *	batch.c			runs of INSERTs, written together
 *	converge.c		the same where the last update wins: by the convergence rules
 *	fetch.c			a row from the publisher, where a change has not all of it
 *	partition.c		routing to partitions
 *	write.c			heap and index writes
 *	entries.c		index entries of updated rows
 *
 * MEMORY.  ApplyContext (the engine's global) lives as long as the worker.
 * KdbApplyMessageContext is reset after each message.  Relation entries have
 * a context each, dropped when the relation is invalidated.
 *
 * TRANSACTIONS.  KdbApplyBeginStep starts the local transaction at the first
 * change of a remote one, and pushes one snapshot that stays active until the
 * transaction ends.  Relations and indexes opened for a change stay open (and
 * locked) until KdbApplyRelationsClose, which whoever ends the transaction
 * calls before it does.  An error ends the process; the launcher starts it again.
 */
#ifndef APPLY_PRIVATE_H
#define APPLY_PRIVATE_H

#include "postgres.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "replication/origin.h"
#include "replication/worker_internal.h"
#include "storage/lock.h"
#include "utils/rel.h"

#include "krahodb/apply.h"
#include "krahodb/compress.h"
#include "krahodb/conflict.h"
#include "krahodb/conflict_rules.h"
#include "krahodb/options.h"
#include "krahodb/seen.h"
#include "krahodb/stream.h"
#include "krahodb/wire.h"

/* What this worker is applying now. */
typedef struct KdbApplyState
{
	RepOriginId origin;			/* changes are marked with it */
	bool		krahodb_stream; /* framed, with a handshake; else pgoutput */
	uint64		remote_node;	/* from the handshake; 0 from a stock publisher */
	KdbTextSettings remote_text;	/* of the publisher's session */

	TransactionId remote_xid;
	XLogRecPtr	remote_final_lsn;	/* commit or prepare LSN */
	TimestampTz remote_commit_time; /* or prepare time; the version's ts */
	KdbSeen		seen;			/* what its writer had seen; see seen_state.h */
	bool		skipping;		/* ALTER SUBSCRIPTION ... SKIP hit this one */
	XLogRecPtr	applied_end;	/* end of the last one that is over */
} KdbApplyState;

extern KdbApplyState KdbApply;

extern MemoryContext KdbApplyMessageContext;

/*
 * transaction.c: a step is one change.  The first step of a remote transaction
 * starts the local one; the current memory context is KdbApplyMessageContext
 * afterwards and an active snapshot is set.  KdbApplyEndStep makes the step's
 * effects visible to the next one.
 */
extern void KdbApplyBeginStep(void);
extern void KdbApplyEndStep(void);

/* In a step: what is read from now on, by functions of triggers, is what is committed by now. */
extern void KdbApplyFreshSnapshot(void);

/* Message functions of transaction.c. */
extern void KdbApplyBegin(const KdbWireMessage *message);
extern void KdbApplyCommit(const KdbWireMessage *message);
extern void KdbApplyBeginPrepare(const KdbWireMessage *message);
extern void KdbApplyPrepare(const KdbWireMessage *message);
extern void KdbApplyCommitPrepared(const KdbWireMessage *message);
extern void KdbApplyRollbackPrepared(const KdbWireMessage *message);
extern void KdbApplyStreamCommit(const KdbWireMessage *message);
extern void KdbApplyStreamPrepare(const KdbWireMessage *message);
extern void KdbApplyOrigin(const KdbWireMessage *message);

/* Commit the changes of a streamed transaction that were applied early; in a lane. */
extern void KdbApplyCommitEarly(XLogRecPtr end_lsn, TimestampTz commit_time);

/* No transaction has an origin position from here on; on every way out. */
extern void KdbResetOriginState(void);

/* Once per process: nor has what the engine commits while the process exits. */
extern void KdbOriginPositionWatch(void);

/* skip.c */
extern void KdbSkipMaybeStart(XLogRecPtr finish_lsn);
extern void KdbSkipStop(void);
extern void KdbSkipClear(XLogRecPtr finish_lsn);

/*
 * spool.c: between STREAM START and STREAM STOP changes go to a file; replay
 * applies the file of a transaction through KdbApplyDispatch.
 */
extern bool KdbSpoolActive(void);
extern void KdbSpoolChange(const char *data, size_t len);
extern void KdbSpoolForget(TransactionId xid);
extern void KdbApplyStreamStart(const KdbWireMessage *message);
extern void KdbApplyStreamStop(const KdbWireMessage *message);
extern void KdbApplyStreamAbort(const KdbWireMessage *message);

/* The set of files, and a transaction's open for reading, name of KDB_SPOOL_NAME bytes. */
#define KDB_SPOOL_NAME		64
extern struct FileSet *KdbSpoolFiles(void);
extern struct BufFile *KdbSpoolOpenChanges(TransactionId xid, char *name);

/*
 * spool_read.c.  Replay applies the whole file, in a local transaction that is open
 * afterwards.  A reader belongs to the local transaction; Apply reads one record and
 * applies it, false if there is none.
 */
typedef struct KdbSpoolReader KdbSpoolReader;

extern void KdbSpoolReplay(TransactionId xid);
extern KdbSpoolReader *KdbSpoolReaderOpen(TransactionId xid);
extern bool KdbSpoolReaderApply(KdbSpoolReader *reader);
extern uint64 KdbSpoolReaderCount(const KdbSpoolReader *reader);
extern void KdbSpoolReaderClose(KdbSpoolReader *reader);

/* frame.c: at the start of the stream, then for each payload. */
extern void KdbApplyFramesStart(KdbCompression compression);
extern bool KdbApplyFrameOpen(const char *payload, size_t len, const char **raw,
							  size_t *raw_len, KdbWireError *error);

/*
 * dispatch.c: data is one message, without frame.  KdbApplyMessageContext is
 * reset behind it.
 */
extern void KdbApplyDispatch(const char *data, size_t len);
extern const char *KdbApplyMessageName(char type);

/* This process gets messages behind the handshake. */
extern void KdbDispatchInLane(void);

/*
 * feedback.c: a remote transaction that ends at remote_end is durable here once
 * local WAL is flushed up to local_end (InvalidXLogRecPtr: it is already).
 */
extern void KdbFeedbackCommitted(XLogRecPtr remote_end, XLogRecPtr local_end);
extern bool KdbFeedbackPending(void);
extern void KdbFeedbackFlushIfDue(TimestampTz now);
extern bool KdbFeedbackDue(TimestampTz now);
extern void KdbFeedbackSend(XLogRecPtr received, TimestampTz now, bool force,
							bool request_reply);
extern XLogRecPtr KdbFeedbackDurable(XLogRecPtr received, TimestampTz now);

/*
 * progress.c: for the retention horizon; only apply workers report.  Clear: a worker
 * is about to take that slot of the engine's array.  SeenUntil: see KdbSetStreamSeenUntil.
 */
extern void KdbProgressClear(int slot);
extern void KdbProgressStart(void);
extern void KdbProgressReport(XLogRecPtr received);
extern TimestampTz KdbProgressSeenUntil(void);

/* This process applies for the worker in that slot of the engine's array. */
extern void KdbProgressInLane(int slot);
extern void KdbProgressReportIfDue(XLogRecPtr received, TimestampTz now);

/* loop.c: returns when the publisher ends the stream. */
extern void KdbApplyLoop(XLogRecPtr last_received);

/*
 * retry.c: this worker is to be started again soon (returns in how many ms), since a remote
 * transaction that ends behind lsn has failed (0: if any, it is not known which); it
 * is starting; its publisher is another server than the one whose transaction has failed; it streams now;
 * it has finished a remote transaction that ends at end_lsn; it is watched, so that its end by an error counts (called when it has attached to its slot).
 */
extern int	KdbRetrySchedule(XLogRecPtr lsn);
extern void KdbRetryStarting(void);
extern void KdbRetryOfAnotherServer(void);
extern void KdbRetryStarted(void);
extern void KdbRetrySucceeded(XLogRecPtr end_lsn);
extern void KdbRetryWatch(void);

/* Is the remote transaction tried again that an earlier worker could not finish? */
extern bool KdbRetrying(void);

/* subscription.c */
extern void KdbSubscriptionReread(void);

/* worker.c: become a process that applies, first half */
extern void KdbWorkerConnect(void);
extern void KdbWorkerLoadSubscription(void);

/* wal_writer.c: once per process that applies, when it has its database */
extern void KdbWalWriterSpare(void);

/* worker.c: the registered table synchronisation, see apply.h; never NULL */
extern const KdbSyncCallbacks *KdbSync;

/* error.c: what the error context says */
typedef struct KdbErrorContext
{
	char		command;		/* KdbWireType, 0 outside a message */
	const char *nspname;		/* target relation as the publisher names it, or NULL */
	const char *relname;
	const char *attname;		/* column being converted, or NULL */
	TransactionId remote_xid;
	XLogRecPtr	finish_lsn;
	char	   *origin_name;
} KdbErrorContext;

extern KdbErrorContext KdbApplyErrorContext;

extern void KdbApplyErrorCallback(void *arg);
extern void KdbApplyErrorSetTransaction(TransactionId xid, XLogRecPtr finish_lsn);
extern void KdbApplyErrorReset(void);

/* relation.c */
typedef struct KdbApplyRelation KdbApplyRelation;	/* relation_private.h */

extern void KdbApplyHandleRelation(const KdbWireMessage *message);

/*
 * The local relation for a remote one, opened and locked; stays so until the
 * transaction ends.  Errors: unknown remote relation, no such local table,
 * unsupported kind, missing columns.
 */
extern KdbApplyRelation *KdbApplyRelationOpen(uint32 remoteid, LOCKMODE lockmode);
extern Relation KdbApplyRelationLocal(KdbApplyRelation *rel);

/* May changes to it be applied by this worker now (table sync states)? */
extern bool KdbApplyRelationWanted(KdbApplyRelation *rel);

/*
 * names.c: from now on that relation of the publisher has the name.  Returns which one had it before, as far as
 * known; it may have got another name since.  names: NULL at first.
 */
struct HTAB;
extern uint32 KdbTakeName(struct HTAB **names, const char *nspname, const char *relname, uint32 remoteid);

/* Close all that is open; before commit, prepare and every other end. */
extern void KdbApplyRelationsClose(void);

/* The transaction was aborted with relations open: forget them, and all local state. */
extern void KdbApplyRelationsAbandon(void);

/* Between transactions: start anew if there are many relations whose table is gone. */
extern void KdbApplyRelationsLook(void);

/* SUBSCRIPTIONRELMAP changed: forget the cached states of all relations. */
extern void KdbApplyRelationsForgetStates(void);

/*
 * KdbMyOptions now points to other options (resolvers, run_as_owner): forget
 * what was derived from the old ones.  Called between transactions or at the
 * start of one, before any relation is open.
 */
extern void KdbApplyRelationsForgetOptions(void);

/* row_message.c */
extern void KdbApplyInsert(const KdbWireMessage *message);
extern void KdbApplyUpdate(const KdbWireMessage *message);
extern void KdbApplyDelete(const KdbWireMessage *message);

/* batch.c: write the rows that are collected; before anything else is done to any table. */
extern void KdbBatchFlush(void);

/* The transaction was aborted, and they with it. */
extern void KdbBatchAbandon(void);

/* converge_deferred.c: the remote transaction has no more changes. */
extern void KdbConvergeBeforeEnd(void);

/* converge.c: the remote transaction is over. */
extern void KdbConvergeEnd(void);

/*
 * progress.c: all of the subscription's stream before it is applied; 0 if not known.
 */
extern XLogRecPtr KdbStreamDurable(Oid subid);

/*
 * seen.c: nothing has been told by the publisher; SEEN message; had the writer of
 * this transaction surely seen the local row's version (another node's than its own)?
 */
extern void KdbApplySeenReset(void);
extern void KdbApplySeen(const KdbWireMessage *message);
extern bool KdbApplyWriterSaw(const KdbLocalRow *row);

extern void KdbApplySeenSet(const KdbSeenEntry *entries, int n);

/*
 * Applying in parallel.  A lane is a process beside the apply worker, its leader.
 */
extern bool KdbInLane;			/* is this process one? */

/* lane_worker.c; the entry function of lanes */
extern PGDLLEXPORT void KdbLaneMain(Datum main_arg);

/*
 * lane_turn.c.  Settle: what was found is not what changes usually find.  True: earlier
 * transactions of the subscription were not over when it was found, but are now; look
 * again.  False: it was found behind all of them.
 */
extern bool KdbLaneSettle(void);
/* The same, where it is too late to look again: the transaction begins again then. */
extern void KdbLaneMustBeFirst(void);
/* A conflict is to be an error, which is the worker's to raise. */
extern void KdbLaneLeaveError(void);
/*
 * Advisory locks that a trigger has taken for its session, and left.  One process would get them again; a lane
 * would wait for good for another one that has nothing to do.  Also of the leader, if there are lanes.
 */
extern void KdbLaneReleaseSessionLocks(void);
extern void KdbLaneBeforeCommit(void);
/* Has this lane the subscription's origin now? */
extern bool KdbLaneHoldsOrigin(void);
extern void KdbCountMerging(bool begin);

/*
 * lane_leader.c.  Take: a message from the stream; true: it has been dealt with, false:
 * it is to be dispatched.  Busy: are transactions on their way in lanes?
 */
extern bool KdbLeaderTake(const char *data, size_t len);
extern bool KdbLeaderBusy(void);
extern void KdbLeaderLook(void);
extern void KdbLeaderBeforeWait(void);
extern void KdbLeaderRelation(const char *data, size_t len);
extern void KdbLeaderRelationStatesChanged(void);
extern void KdbLeaderTakeOrigin(void);
extern void KdbLeaderLetGoOfOrigin(void);

/*
 * early_leader.c: the transaction that arrives in blocks is applied by another process
 * meanwhile, if that may be.  Begin: its first block comes.  Applies: is it so?  Arrived:
 * so many records are in the file.  Relation: one of them, as it is in the file, is a
 * RELATION.  Stop: not any more, and nothing of it is left.  Commit: its turn has come;
 * true: it is committed, false: it is to be applied.  Look: stop if what it was begun with
 * has changed.  Finishing: in the middle of Commit.
 */
extern void KdbEarlyBegin(TransactionId xid);
extern bool KdbEarlyApplies(TransactionId xid);
extern void KdbEarlyArrived(uint64 nrecords);
extern void KdbEarlyRelation(const char *data, size_t len);
extern void KdbEarlyStop(TransactionId xid);
extern bool KdbEarlyCommit(TransactionId xid, XLogRecPtr end_lsn, TimestampTz commit_time);
extern void KdbEarlyLook(void);
extern bool KdbEarlyFinishing(void);
extern void KdbEarlySettingsChanged(void);

/*
 * early_worker.c: the other process.  Entry function; is this process it; the attempt has
 * failed (an error); the origin is taken for the commit, and has been.
 */
extern PGDLLEXPORT void KdbEarlyMain(Datum main_arg);
extern bool KdbInEarly(void);
extern void KdbEarlyGiveUp(const char *reason) pg_attribute_noreturn();
extern void KdbEarlyTakeOrigin(void);
extern bool KdbEarlyHoldsOrigin(void);

/* truncate.c */
extern void KdbApplyTruncate(const KdbWireMessage *message);

#endif							/* APPLY_PRIVATE_H */
