/*
 * worker.c
 *		The process that works for a subscription: start-up and ways out.
 *
 * One entry function serves the apply worker of a subscription and the workers
 * that synchronise single tables; relid in the worker's slot tells which.
 *
 * START-UP
 *	1. attach to the slot (from then on ALTER and DROP SUBSCRIPTION can stop us)
 *	2. connect to the database as the subscription's owner; replica role, empty
 *	   search_path, the database's encoding
 *	3. read the subscription
 *	4. apply worker: take over the origin "pg_<subid>", connect to the publisher
 *	   table synchronisation: copy the table (sync/), which does both
 *	5. start streaming from the origin's position, and apply until stopped
 *
 * TWO-PHASE is a state of three: asked for (PENDING) by CREATE SUBSCRIPTION, it
 * becomes ENABLED by the first start of the apply worker at which all tables
 * are synchronised, because a synchronisation worker could not know what to do
 * with a transaction that was prepared before its copy.
 *
 * WAYS OUT.  An error ends the process and the launcher starts another one
 * (when: retry.c); with disable_on_error the subscription is disabled first.  Not so an error that
 * only says that others were at the same rows (a deadlock, a serialization
 * failure, a lock timeout): the remote transaction is applied again promptly
 * (retry.c), and neither counts it as an error nor disables it.  On each way the
 * session's origin state is cleared before any transaction is aborted (see
 * ORIGIN POSITION in transaction.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_subscription.h"
#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/logicalworker.h"
#include "replication/origin.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "krahodb/origin_nodes.h"
#include "krahodb/stream.h"
#include "apply_private.h"

const KdbSyncCallbacks *KdbSync = NULL;

/* callbacks lives as long as the process; called from _PG_init. */
void
KdbRegisterSync(const KdbSyncCallbacks *callbacks)
{
	KdbSync = callbacks;
}

static void
reset_origin_on_exit(int code, Datum arg)
{
	KdbResetOriginState();
}

/* pg_subscription_rel changed. */
static void
note_relation_states(Datum arg, int cacheid, uint32 hashvalue)
{
	/* the engine's own list, which AllTablesyncsReady looks at */
	invalidate_syncing_table_states(arg, cacheid, hashvalue);
	KdbApplyRelationsForgetStates();
	KdbLeaderRelationStatesChanged();
	KdbEarlySettingsChanged();
}

static void
report_worker_error(void)
{
	pgstat_report_subscription_error(MyLogicalRepWorker->subid, !am_tablesync_worker());
}

/*
 * Called with an error in flight: report it, leave the failed transaction and
 * disable the subscription.
 */
static void pg_attribute_noreturn()
disable_subscription_and_exit(void)
{
	HOLD_INTERRUPTS();
	EmitErrorReport();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	RESUME_INTERRUPTS();

	report_worker_error();
	KdbConflictLogFailed();

	/* Its row may have out-of-line values, so a snapshot is needed. */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	DisableSubscription(MySubscription->oid);
	PopActiveSnapshot();
	CommitTransactionCommand();

	ereport(LOG,
			(errmsg("subscription \"%s\" has been disabled because of an error",
					MySubscription->name)));
	proc_exit(0);
}

/* Does the error in flight pass by itself?  One that a resolver asked for does not. */
static bool
error_passes(void)
{
	switch (geterrcode())
	{
		case ERRCODE_T_R_DEADLOCK_DETECTED:
		case ERRCODE_T_R_SERIALIZATION_FAILURE:
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return !KdbConflictRaisedError();
		default:
			return false;
	}
}

/* How soon is it tried again?  The apply worker starts synchronisation workers. */
static const char *
schedule_retry(void)
{
	int			delay;

	if (am_tablesync_worker())
		return psprintf("after wal_retrieve_retry_interval, %d ms", wal_retrieve_retry_interval);
	delay = KdbRetrySchedule(KdbApply.remote_final_lsn);
	return delay == 0 ? "at once" : psprintf("after %d ms", delay);
}

/* In a PG_CATCH: leave the failed transaction, to be applied again. */
static void pg_attribute_noreturn()
retry_and_exit(void)
{
	ErrorData  *error;
	const char *when;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(ApplyContext);
	error = CopyErrorData();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	RESUME_INTERRUPTS();

	MemoryContextSwitchTo(ApplyContext);
	when = schedule_retry();
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("subscription \"%s\" could not go on and tries again %s: %s",
					MySubscription->name, when, error->message),
			 error->detail_log ? errdetail_internal("%s", error->detail_log) :
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->context ? errcontext("%s", error->context) : 0));
	proc_exit(0);
}

/* The error in flight steps aside for a transaction. */
static void pg_attribute_noreturn()
log_conflict_and_rethrow(void)
{
	ErrorData  *error;

	MemoryContextSwitchTo(ApplyContext);
	error = CopyErrorData();
	FlushErrorState();
	KdbConflictLogFailed();
	ReThrowError(error);
}

/* In a PG_CATCH: count the error, then exit or go on raising it. */
static void
handle_worker_error(void)
{
	KdbResetOriginState();

	if (error_passes())
		retry_and_exit();
	if (MySubscription->disableonerr)
		disable_subscription_and_exit();

	/* Statistics are sent from outside a transaction only. */
	AbortOutOfAnyTransaction();
	report_worker_error();
	if (KdbConflictRaisedError())
		log_conflict_and_rethrow();
	PG_RE_THROW();
}

static char *
synchronise_table(XLogRecPtr *startpoint)
{
	char	   *slotname = NULL;

	PG_TRY();
	{
		slotname = KdbSync->start_table_sync(startpoint);
	}
	PG_CATCH();
	{
		handle_worker_error();
	}
	PG_END_TRY();

	return MemoryContextStrdup(ApplyContext, slotname);
}

static void
apply_stream(XLogRecPtr startpoint)
{
	PG_TRY();
	{
		KdbApplyLoop(startpoint);
	}
	PG_CATCH();
	{
		handle_worker_error();
	}
	PG_END_TRY();
}

/*
 * What counts here, whatever ALTER ROLE, ALTER DATABASE and the configuration say to sessions of
 * users.  Index expressions and the like must not be redirected to others' functions.  Input
 * functions are to take arrays and xml as the publisher's output functions mean them.  What is
 * replicated is written although users shall only read; and what functions read is not to be older than what
 * the transaction has waited for.
 */
static const struct
{
	const char *name;
	const char *value;
}			settings[] = {
	{"search_path", ""},
	{"array_nulls", "on"},
	{"xmloption", "content"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"}
};

/*
 * See apply.h.  What comes from the publisher is in the database's encoding; receive
 * functions and COPY would take it for what "client_encoding" says.
 */
void
KdbWorkerConnectToDatabase(Oid dbid, Oid userid)
{
	SetConfigOption("session_replication_role", "replica",
					PGC_SUSET, PGC_S_OVERRIDE);
	BackgroundWorkerInitializeConnectionByOid(dbid, userid, 0);
	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i].name, settings[i].value, PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("client_encoding", GetDatabaseEncodingName(),
					PGC_SUSET, PGC_S_OVERRIDE);
}

/* See apply_private.h. */
void
KdbWorkerConnect(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	MyLogicalRepWorker->last_send_time = MyLogicalRepWorker->last_recv_time =
		MyLogicalRepWorker->reply_time = GetCurrentTimestamp();

	load_file("libpqwalreceiver", false);

	KdbWorkerConnectToDatabase(MyLogicalRepWorker->dbid, MyLogicalRepWorker->userid);

	/* Registered last, so it runs before the engine aborts the open transaction. */
	before_shmem_exit(reset_origin_on_exit, (Datum) 0);
	KdbOriginPositionWatch();
	KdbWalWriterSpare();
}

static void
log_start(void)
{
	if (KdbInLane)
		return;
	if (am_tablesync_worker())
		ereport(LOG,
				(errmsg("logical replication table synchronization worker for subscription \"%s\", table \"%s\" has started",
						MySubscription->name,
						get_rel_name(MyLogicalRepWorker->relid))));
	else
	{
		ereport(LOG,
				(errmsg("logical replication apply worker for subscription \"%s\" has started",
						MySubscription->name)));
		/* the server may have been restarted, or the subscription restored, with another configuration */
		KdbWarnAboutTimestamps(MySubscription->name, KdbMyOptions);
	}
}

/* See apply_private.h. */
void
KdbWorkerLoadSubscription(void)
{
	ApplyContext = AllocSetContextCreate(TopMemoryContext, "ApplyContext",
										 ALLOCSET_DEFAULT_SIZES);
	KdbApplyMessageContext = AllocSetContextCreate(ApplyContext,
												   "KrahoDB apply message",
												   ALLOCSET_DEFAULT_SIZES);

	StartTransactionCommand();
	KdbSubscriptionLoad();
	log_start();
	CommitTransactionCommand();
	CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, note_relation_states, (Datum) 0);

	elog(DEBUG1, "connecting to publisher using connection string \"%s\"",
		 MySubscription->conninfo);
}

/*
 * Take over the subscription's origin; returns its position.  CREATE
 * SUBSCRIPTION has made it, with the id that replication_origin_id asks for;
 * it is missing only if somebody dropped it.
 */
static XLogRecPtr
set_up_origin(const char *name)
{
	RepOriginId origin;
	XLogRecPtr	position;

	StartTransactionCommand();
	origin = replorigin_by_name(name, true);
	if (origin == InvalidRepOriginId)
		origin = replorigin_create(name);
	replorigin_session_setup(origin);
	replorigin_session_origin = origin;
	position = replorigin_session_get_progress(false);
	CommitTransactionCommand();

	return position;
}

/*
 * A publisher whose log ends before what has been applied of it has lost changes (it was set back to an
 * earlier time, or a standby was promoted that had not received all), or is another server.  The stream
 * would begin where its log has not come to yet, and leave out all until there.  (Less than
 * a record's alignment is what who skips a transaction adds to its end.)
 */
static void
check_ahead(XLogRecPtr startpoint, XLogRecPtr end)
{
	if (startpoint < end + MAXIMUM_ALIGNOF)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subscription \"%s\" has applied its publisher's changes until %X/%X, but the publisher's log ends at %X/%X",
					MySubscription->name, LSN_FORMAT_ARGS(startpoint), LSN_FORMAT_ARGS(end)),
			 errdetail("The publisher was set back to an earlier time, or is another server than before."),
			 errhint("Drop the subscription, make its tables equal to the publisher's, and create it again.")));
}

/* The publisher's server, as origin_nodes.h has it. */
static uint32 cluster = 0;

static void
read_cluster(const char *system_identifier)
{
	uint64		number = strtou64(system_identifier, NULL, 10);

	cluster = (uint32) (number ^ (number >> 32));
}

/*
 * Positions in another server's log mean nothing in this one's.  If the slot there is behind that place, the
 * stream would begin in the middle, and leave out what comes before.
 */
static void
check_same_cluster(XLogRecPtr startpoint)
{
	uint32		before = KdbOriginCluster(replorigin_session_origin);
	XLogRecPtr	confirmed;

	if (before == 0 || before == cluster || XLogRecPtrIsInvalid(startpoint))
		return;
	confirmed = KdbStreamSlotConfirmed(LogRepWorkerWalRcvConn, MySubscription->slotname);
	if (XLogRecPtrIsInvalid(confirmed) || startpoint <= confirmed)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("subscription \"%s\" has applied another server's changes until %X/%X, but replication slot \"%s\" of its publisher is at %X/%X",
					MySubscription->name, LSN_FORMAT_ARGS(startpoint), MySubscription->slotname,
					LSN_FORMAT_ARGS(confirmed)),
			 errdetail("What this publisher has committed between these positions would be left out."),
			 errhint("Drop the subscription, make its tables equal to the publisher's, and create it again. If they are equal as of the slot's position, disable it, run SELECT pg_replication_origin_advance('pg_%u', '%X/%X'), and enable it.",
					 MySubscription->oid, LSN_FORMAT_ARGS(confirmed))));
}

static void
connect_to_publisher(XLogRecPtr startpoint)
{
	char	  **row;
	char	   *err;

	LogRepWorkerWalRcvConn = walrcv_connect(MySubscription->conninfo, true,
											MySubscription->name, &err);
	if (LogRepWorkerWalRcvConn == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not connect to the publisher: %s", err)));

	/* This also initialises the walsender. */
	row = KdbStreamQueryRow(LogRepWorkerWalRcvConn, "IDENTIFY_SYSTEM", 4, "system identification");
	check_ahead(startpoint, DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(row[2]))));
	read_cluster(row[0]);
	check_same_cluster(startpoint);
}

/* Step 4 of start-up: returns the slot to stream from, and where to start. */
static char *
set_up_stream(XLogRecPtr *startpoint)
{
	char		originname[NAMEDATALEN];
	char	   *slotname;

	if (am_tablesync_worker())
	{
		slotname = synchronise_table(startpoint);
		ReplicationOriginNameForTablesync(MySubscription->oid,
										  MyLogicalRepWorker->relid,
										  originname, sizeof(originname));
	}
	else
	{
		/* Somebody changed the catalog by hand; libpqwalreceiver would crash. */
		slotname = MySubscription->slotname;
		if (slotname == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("subscription has no replication slot set")));

		snprintf(originname, sizeof(originname), "pg_%u", MySubscription->oid);
		*startpoint = set_up_origin(originname);
		connect_to_publisher(*startpoint);
	}

	KdbApply.origin = replorigin_session_origin;
	KdbApplyErrorContext.origin_name = MemoryContextStrdup(ApplyContext, originname);
	return slotname;
}

/* The stream has started with two_phase: it is enabled from here on. */
static void
mark_two_phase_enabled(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	UpdateTwoPhaseState(MySubscription->oid, LOGICALREP_TWOPHASE_STATE_ENABLED);
	MySubscription->twophasestate = LOGICALREP_TWOPHASE_STATE_ENABLED;
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static const char *
two_phase_state_name(char state)
{
	switch (state)
	{
		case LOGICALREP_TWOPHASE_STATE_DISABLED:
			return "DISABLED";
		case LOGICALREP_TWOPHASE_STATE_PENDING:
			return "PENDING";
		case LOGICALREP_TWOPHASE_STATE_ENABLED:
			return "ENABLED";
		default:
			return "?";
	}
}

static void
start_streaming(const char *slotname, XLogRecPtr startpoint)
{
	KdbStreamStart start = {0};
	KdbPublisher publisher;

	KdbStreamIdentify(LogRepWorkerWalRcvConn, &publisher);
	KdbApply.remote_text = publisher.text;
	start.slotname = slotname;
	start.startpoint = startpoint;
	start.publications = MySubscription->publications;
	start.binary = MySubscription->binary;
	start.streaming = MySubscription->stream;
	start.options = KdbMyOptions;
	start.two_phase = !am_tablesync_worker() &&
		MySubscription->twophasestate == LOGICALREP_TWOPHASE_STATE_PENDING &&
		AllTablesyncsReady();

	KdbApply.krahodb_stream = KdbStreamStartReplication(LogRepWorkerWalRcvConn, &start);
	KdbStreamCheckTwoPhase(KdbApply.krahodb_stream,
						   MySubscription->twophasestate != LOGICALREP_TWOPHASE_STATE_DISABLED,
						   start.options);
	KdbApplyFramesStart(KdbApply.krahodb_stream ? KdbMyOptions->compression : KDB_COMPRESSION_OFF);
	KdbApplySeenReset();
	if (!KdbApply.krahodb_stream)
	{
		KdbApply.remote_node = KdbApply.origin; /* see version_lookup.c */
		KdbRememberOriginNode(KdbApply.origin, 0);	/* the id may have been another's */
	}

	if (!am_tablesync_worker())
	{
		if (KdbOriginCluster(KdbApply.origin) != cluster)
			KdbRetryOfAnotherServer();
		KdbRememberOriginCluster(KdbApply.origin, cluster);
	}

	if (start.two_phase)
		mark_two_phase_enabled();
	if (!am_tablesync_worker())
		ereport(DEBUG1,
				(errmsg_internal("logical replication apply worker for subscription \"%s\" two_phase is %s",
								 MySubscription->name,
								 two_phase_state_name(MySubscription->twophasestate))));
}

/*
 * The publisher begins behind what was confirmed, which is further than the origin's progress if there was nothing to
 * apply: while all tables were being copied, that has none.  A table that waits to be told how far to catch up
 * must come that far, or what is between the two is left out.
 */
static XLogRecPtr
stream_begins_at(const char *slotname, XLogRecPtr startpoint)
{
	if (am_tablesync_worker())
		return startpoint;
	return Max(startpoint, KdbStreamSlotConfirmed(LogRepWorkerWalRcvConn, slotname));
}

void
KdbApplyWorkerMain(Datum main_arg)
{
	XLogRecPtr	startpoint = InvalidXLogRecPtr;
	XLogRecPtr	received;
	char	   *slotname;

	KdbProgressClear(DatumGetInt32(main_arg));
	logicalrep_worker_attach(DatumGetInt32(main_arg));
	if (!am_tablesync_worker())
		KdbRetryWatch();
	KdbWorkerConnect();
	KdbWorkerLoadSubscription();
	if (!am_tablesync_worker())
		KdbRetryStarting();

	slotname = set_up_stream(&startpoint);
	if (!am_tablesync_worker())
		KdbProgressStart();
	received = stream_begins_at(slotname, startpoint);
	start_streaming(slotname, startpoint);
	KdbRetryStarted();

	apply_stream(received);
	proc_exit(0);
}
