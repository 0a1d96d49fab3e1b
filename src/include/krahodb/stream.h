/*
 * stream.h
 *		The subscriber's end of a replication connection.
 *
 * Built on the engine's libpqwalreceiver.  START_REPLICATION and
 * CREATE_REPLICATION_SLOT with KrahoDB's plugin and options are sent through
 * walrcv_exec, which hands a COPY BOTH result back as WALRCV_OK_COPY_BOTH;
 * then walrcv_receive, walrcv_send and walrcv_endstreaming work as usual.
 */
#ifndef KRAHODB_STREAM_H
#define KRAHODB_STREAM_H

#include "postgres.h"
#include "catalog/pg_subscription.h"
#include "pgtime.h"
#include "replication/walreceiver.h"
#include "krahodb/options.h"

#define KDB_OUTPUT_PLUGIN	"krahodb_output"

/* What a publisher is, as it says itself. */
/* Settings there that say how values are written as text; those that no session fixes. */
typedef struct KdbTextSettings
{
	char		timezone[TZ_STRLEN_MAX + 1];
	char		bytea_output[NAMEDATALEN];
} KdbTextSettings;

typedef struct KdbPublisher
{
	int			server_version; /* server_version_num */
	int			krahodb_version;	/* KRAHODB_VERSION_NUM, 0 if stock */
	bool		plugin_allowed; /* krahodb_output may be used there (output_plugin_libraries) */
	uint64		node;			/* identity of the database; 0 if stock */
	uint64		incarnation;	/* of the server, see KdbShowNode; 0 if stock */
	KdbTextSettings text;
} KdbPublisher;

/*
 * Ask the publisher; raises an error if the connection fails.  Logical
 * connections are asked as soon as they are made, so this sends nothing then:
 * it may be used inside a transaction of the publisher.
 */
extern void KdbStreamIdentify(WalReceiverConn *conn, KdbPublisher *publisher);

/* The output plugin of a slot there; palloc'd, NULL if there is no such slot. */
extern char *KdbStreamSlotPlugin(WalReceiverConn *conn, const char *slotname);

/* Is there such a slot, and can it still be streamed from (max_slot_wal_keep_size)? */
extern bool KdbStreamSlotIsUsable(WalReceiverConn *conn, const char *slotname);

/* Up to where the slot's consumer has confirmed the stream; InvalidXLogRecPtr if there is no such slot. */
extern XLogRecPtr KdbStreamSlotConfirmed(WalReceiverConn *conn, const char *slotname);

/*
 * Can that publisher do what the options ask (origin filters, compression)?
 * Raises an error with a hint if not.
 */
extern void KdbStreamCheckOptions(const KdbPublisher *publisher,
								  const KdbSubscriptionOptions *options);

/*
 * Raises an error if the subscription resolves conflicts and the publisher says
 * that it is this node: one of the two is a copy that cannot be told from the other.
 */
extern void KdbStreamCheckNode(const KdbPublisher *publisher,
							   const KdbSubscriptionOptions *options);

/*
 * Raises an error if the options compare times of changes and the publisher sends
 * prepared transactions before their time is known: a stock one with two_phase.
 */
extern void KdbStreamCheckTwoPhase(bool krahodb, bool two_phase,
								   const KdbSubscriptionOptions *options);

/*
 * Can that slot do what the options ask?  Raises an error with a hint if not; a
 * slot that does not exist is no error here.
 */
extern void KdbStreamCheckSlot(WalReceiverConn *conn, const KdbPublisher *publisher,
							   const char *slotname,
							   const KdbSubscriptionOptions *options);

/*
 * Create a logical slot on the publisher: with krahodb_output if it is a
 * KrahoDB, else with pgoutput.  Same contract as walrcv_create_slot; installed
 * in the engine's WalReceiverFunctions so that CREATE SUBSCRIPTION and table
 * synchronisation use it.
 */
extern char *KdbStreamCreateSlot(WalReceiverConn *conn, const char *slotname,
								 bool temporary, bool two_phase,
								 CRSSnapshotAction snapshot_action,
								 XLogRecPtr *lsn);

/* From where the last slot brings changes that this session has made for a subscription's stream. */
extern XLogRecPtr KdbStreamSlotStart;

typedef struct KdbStreamStart
{
	const char *slotname;
	XLogRecPtr	startpoint;
	List	   *publications;	/* of String */
	bool		binary;			/* the subscription's option */
	bool		streaming;
	bool		two_phase;
	const KdbSubscriptionOptions *options;
} KdbStreamStart;

/*
 * krahodb.stream_in_progress: have a KrahoDB publisher send what would outgrow
 * logical_decoding_work_mem while it runs, also without the subscription's streaming.
 */
extern bool KdbStreamInProgress;

/*
 * Start streaming.  A slot of another plugin is read without compression, which is
 * logged.  Returns true if the stream is a KrahoDB stream (framed,
 * handshake first), false if it is plain pgoutput.  The plugin is that of the
 * slot: a subscription may have been made with either.
 */
extern bool KdbStreamStartReplication(WalReceiverConn *conn,
									  const KdbStreamStart *start);

/*
 * Called for each logical connection, once it is made and identified, before
 * whoever asked for it gets it.  May raise an error.  Returns the previous one,
 * to be set back.
 */
typedef void (*KdbStreamConnectCallback) (WalReceiverConn *conn,
										  const KdbPublisher *publisher);
extern KdbStreamConnectCallback KdbStreamSetConnectCallback(KdbStreamConnectCallback callback);

/*
 * Run a query there.  Result is a List, one entry for each row, of arrays of
 * ncolumns strings (NULL for null), palloc'd; what says in the error what was to
 * be found out ("list of publications").  Needs no transaction.
 */
extern List *KdbStreamQuery(WalReceiverConn *conn, const char *query,
							int ncolumns, const char *what);

/* Likewise, where NULL is no answer. */
extern List *KdbStreamQueryNotNull(WalReceiverConn *conn, const char *query,
								   int ncolumns, const char *what);

/* Likewise, where one row is the answer. */
extern char **KdbStreamQueryRow(WalReceiverConn *conn, const char *query,
								int ncolumns, const char *what);

/*
 * Values that are sent as text outside of a stream are read and written with the same
 * settings on both sides, whatever the session has.  Returns the level for
 * AtEOXact_GUC, which ends that.
 */
extern int	KdbStreamTextFormats(void);

/* Likewise, for rows that are asked for and answered as text on both sides: money is the same number there. */
extern int	KdbStreamRowFormats(void);

/* Likewise, with the settings of that publisher's stream. */
extern int	KdbStreamTextFormatsOf(const KdbTextSettings *settings);

/* Wrap WalReceiverFunctions; once, from _PG_init. */
extern void KdbStreamInit(void);

#endif							/* KRAHODB_STREAM_H */
